"""Jobs are done once, whoever is killed; the output never has a part of a file."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pare.batch import Job, run
from pare.errors import SettingError

pytest.importorskip("pyarrow")

from pare.batch.manifest import latest
from pare.batch.output_folder import open_output


def jobs_of(count: int, **content: Any) -> list[Job]:
    return [
        Job(f"{k:032x}", {"k": k, **content}, (f"{k:032x}.txt",), number=k + 1)
        for k in range(count)
    ]


class Writer:
    """Writes a file a job; `bad` jobs fail, so often as they say."""

    def __init__(self) -> None:
        self.given: list[list[int]] = []

    def run(self, jobs: Sequence[Job], folder: Path) -> list[Mapping[str, Any] | BaseException]:
        self.given.append([job.content["k"] for job in jobs])
        return [self.one(job, folder) for job in jobs]

    def one(self, job: Job, folder: Path) -> Mapping[str, Any] | BaseException:
        k = job.content["k"]
        time.sleep(job.content.get("seconds", 0))
        if k in job.content.get("bad", ()):
            return RuntimeError(f"{k} is bad")
        if k in job.content.get("wrong", ()):
            return SettingError(f"{k} is wrong")
        with open(folder / job.files[0], "w") as file:
            for part in range(100):
                file.write(f"{k} {part}\n")
        return {"k": k}


def expected(k: int) -> str:
    return "".join(f"{k} {part}\n" for part in range(100))


def check_all(folder: Path, count: int) -> None:
    names = sorted(path.name for path in folder.glob("*.txt"))
    assert names == [f"{k:032x}.txt" for k in range(count)]
    for k in range(count):
        assert (folder / f"{k:032x}.txt").read_text() == expected(k)


def test_what_is_there_is_not_done_again(tmp_path: Path) -> None:
    writer = Writer()
    first = list(run(jobs_of(5), lambda: writer, tmp_path))
    assert [result.status for result in first] == ["done"] * 5
    (tmp_path / jobs_of(5)[2].files[0]).unlink()
    second = list(run(jobs_of(5), lambda: writer, tmp_path))
    assert sorted((r.job.number, r.status) for r in second) == [
        (1, "kept"), (2, "kept"), (3, "done"), (4, "kept"), (5, "kept"),
    ]  # fmt: skip
    assert writer.given == [[0], [1], [2], [3], [4], [2]]
    check_all(tmp_path, 5)


def test_an_equal_job_is_done_once(tmp_path: Path) -> None:
    writer = Writer()
    results = list(run(jobs_of(2) + jobs_of(2), lambda: writer, tmp_path, together=4))
    assert sorted(result.status for result in results) == ["done", "done", "kept", "kept"]
    assert writer.given == [[0, 1]]


def test_jobs_of_one_group_are_given_together_as_the_list_has_them(tmp_path: Path) -> None:
    writer = Writer()
    list(run(jobs_of(5), lambda: writer, tmp_path, together=2))
    assert writer.given == [[0, 1], [2, 3], [4]]
    (tmp_path / jobs_of(5)[2].files[0]).unlink()
    results = list(run(jobs_of(5), lambda: writer, tmp_path, together=2))
    assert writer.given[3:] == [[2, 3]]  # as before, so that they are rounded as before
    assert [result.status for result in results].count("done") == 1


def test_a_job_that_fails_is_tried_three_times_and_the_rest_goes_on(tmp_path: Path) -> None:
    writer = Writer()
    jobs = jobs_of(4, bad=[1], wrong=[2])
    results = {r.job.number: r for r in run(jobs, lambda: writer, tmp_path, together=4)}
    assert [results[k].status for k in (1, 2, 3, 4)] == ["done", "failed", "failed", "done"]
    assert (results[2].attempts, results[2].error) == (3, "RuntimeError: 1 is bad")
    assert (results[3].attempts, results[3].error) == (1, "2 is wrong")
    assert writer.given == [[0, 1, 2, 3], [1], [1]]
    rows = latest(open_output(tmp_path))
    assert [row["status"] for row in rows.values()] == ["done", "failed", "failed", "done"]


def test_a_job_that_cannot_be_run_is_reported(tmp_path: Path) -> None:
    (result,) = run([Job("0" * 32, {}, error="line 1: no")], Writer, tmp_path)
    assert (result.status, result.error, result.attempts) == ("failed", "line 1: no", 0)


def test_jobs_are_read_as_they_are_needed(tmp_path: Path) -> None:
    read: list[int] = []

    def jobs() -> Any:
        for job in jobs_of(100):
            read.append(job.number)
            yield job

    results = run(jobs(), Writer, tmp_path, together=2)
    next(results)
    assert len(read) < 10
    results.close()


def test_a_second_run_notes_what_the_first_did_not(tmp_path: Path) -> None:
    list(run(jobs_of(3), Writer, tmp_path))
    for path in (tmp_path / "manifest").iterdir():
        path.unlink()
    list(run(jobs_of(3), Writer, tmp_path))
    assert [row["status"] for row in latest(open_output(tmp_path)).values()] == ["kept"] * 3
    list(run(jobs_of(3), Writer, tmp_path))
    assert len(list((tmp_path / "manifest").iterdir())) == 1


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_an_address_of_fsspec_is_an_output_too(scheme: str, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    address = f"{scheme}://{tmp_path}/out"
    for status in ("done", "kept"):
        assert [r.status for r in run(jobs_of(3), Writer, address)] == [status] * 3
    files, root = fsspec.core.url_to_fs(address)
    for k in range(3):
        assert files.cat_file(f"{root}/{k:032x}.txt").decode() == expected(k)
    assert [row["status"] for row in latest(open_output(address)).values()] == ["done"] * 3


def drive(folder: Path, count: int) -> None:
    for _ in run(jobs_of(count, seconds=0.002), Writer, folder, together=3):
        pass


def test_nothing_is_lost_or_half_written_when_the_driver_is_killed(tmp_path: Path) -> None:
    """100 kills at random moments; what is there is whole at each, and at the end it is all."""
    count, chance = 150, random.Random(0)
    context = multiprocessing.get_context("fork")
    kills = 0
    while kills < 100:
        process = context.Process(target=drive, args=(tmp_path, count))
        process.start()
        time.sleep(chance.uniform(0.0, 0.06))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
        for path in tmp_path.glob("*.txt"):
            assert path.read_text() == expected(int(path.stem, 16))
    drive(tmp_path, count)
    check_all(tmp_path, count)
    assert len(latest(open_output(tmp_path))) == count
