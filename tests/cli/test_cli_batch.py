"""`pare batch`: job files, names, images as those of single commands, and mistakes in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pare.cli.command_jobs import command_jobs
from pare.cli.main import main
from pare.recipes.recipe import read_recipe

pytest.importorskip("pyarrow")

PROMPT = "a sunny road with a red car"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pixels(path: Path) -> Any:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_the_same_job_in_every_kind_of_file_has_the_same_name(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [
        {"prompt": PROMPT, "seed": 1, "karras": True},
        {"prompt": PROMPT, "seed": 2, "karras": True},
    ]
    write(tmp_path / "jobs.jsonl", rows)
    csv = f"prompt,seed,karras\n{PROMPT},1,yes\n{PROMPT},2,true\n"
    (tmp_path / "jobs.csv").write_text(csv)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "jobs.parquet")
    (tmp_path / "jobs.toml").write_text(f'prompt = "{PROMPT}"\nseed = "1..2"\nkarras = true\n')
    (tmp_path / "jobs.yaml").write_text(f"prompt: {PROMPT}\nseed: [1, 2]\nkarras: true\n")
    names = [
        [job.name for job in command_jobs(tmp_path / f"jobs.{ending}")]
        for ending in ("jsonl", "csv", "parquet", "toml", "yaml")
    ]
    assert len(set(names[0])) == 2
    assert all(some == names[0] for some in names)


def test_a_name_follows_what_decides_the_image_alone(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "b.png")

    def name(**row: Any) -> str:
        (job,) = command_jobs(write(tmp_path / "one.jsonl", [{"prompt": PROMPT, **row}]))
        assert not job.error
        return job.name

    assert name() == name(seed=0) == name(steps=25) == name(threads=1) == name(cfg=7.5)
    assert (
        len({name(), name(seed=1), name(steps=24), name(negative="a"), name(scheduler="ddim")}) == 5
    )
    edits = {name(command="img2img", image=file) for file in ("a.png", "b.png")}
    (tmp_path / "a.png").rename(tmp_path / "c.png")
    assert len(edits) == 2
    assert name(command="img2img", image="b.png") in edits


def test_images_equal_those_of_single_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    single = ["generate", PROMPT, "--steps", "2", "--scheduler", "euler-ancestral", "--seed", "1"]
    assert main([*single, "--out", "alone.png"]) == 0
    common = {"prompt": PROMPT, "steps": 2, "scheduler": "euler-ancestral"}
    rows: list[dict[str, Any]] = [
        {**common, "seed": 1},
        {**common, "seed": 2, "guidance": 1},
        {**common, "command": "img2img", "image": "alone.png", "steps": 3},
    ]
    jobs = write(tmp_path / "jobs.jsonl", rows)
    first = next(iter(command_jobs(jobs))).files[0]
    for together in ("1", "3"):
        assert main(["batch", str(jobs), "--out", f"out{together}", "--together", together]) == 0
    assert np.array_equal(pixels(tmp_path / "alone.png"), pixels(tmp_path / "out1" / first))
    for path in (tmp_path / "out1").glob("*.png"):
        other = tmp_path / "out3" / path.name
        assert abs(pixels(path) - pixels(other)).max() <= 2
        assert (read_recipe(path).together, read_recipe(other).together) == (1, 3)


def test_every_mistake_is_listed_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": PROMPT, "sed": 1},
        {"prompt": PROMPT, "steps": 0},
        {"prompt": PROMPT, "out": "/tmp/x.png"},
        {"prompt": PROMPT, "seed": -1},
        {"command": "rerun", "image": "x"},
        {"command": "img2img", "image": "../x.png", "prompt": PROMPT},
        {"command": "img2img", "image": "/etc/hostname", "prompt": PROMPT},
        {"command": "img2img", "image": "none.png", "prompt": PROMPT},
        {"prompt": PROMPT, "karras": "maybe"},
        {"prompt": PROMPT, "model": "../models/x"},
        {"prompt": {"a": 1}},
        {"prompt": PROMPT, "guidance": 3, "cfg": 4},
        {},
    ]
    jobs = write(tmp_path / "jobs.jsonl", rows)
    with jobs.open("a") as file:
        file.write('nope\n[]\n{"prompt": "a", "prompt": "b"}\n' + "[" * 10_000 + "\n")
    assert main(["batch", str(jobs), "--check"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{jobs}, line {k}" for k in range(1, 18)]
    assert "did you mean 'seed'?" in lines[0]


def test_a_line_of_any_length_ends_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = tmp_path / "jobs.jsonl"
    with jobs.open("wb") as file:
        file.seek(2**30)  # a sparse file: 1 GiB of zeros
        file.write(b'\n{"prompt": "a road"}\n')
    assert main(["batch", str(jobs), "--check"]) == 2
    shown = capsys.readouterr().out.splitlines()
    assert shown == [f"{jobs}, line 1: it is longer than 1048576 bytes"]


@pytest.mark.parametrize("cell", ["=1+1", "@SUM(A1)", "+cmd", "-x"])
def test_formulas_are_refused(
    cell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "jobs.csv").write_text(f"prompt,negative\na road,\na road,{cell}\n")
    assert main(["batch", str(tmp_path / "jobs.csv"), "--check"]) == 2
    assert "line 3: negative is" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.yaml", "a: &x [1]\nb: *x\n"),
        ("a.yaml", "!!python/object:os.system x"),
        ("a.toml", "prompt = "),
        ("a.toml", f'seed = "0..{10**15}"\nprompt = "a"\n'),
        ("a.yaml", "just text"),
        ("a.txt", "x"),
        ("a.parquet", "x"),
        ("a.csv", "a,a\n1,2\n"),
    ],
)
def test_files_that_are_none_end_in_a_sentence(
    name: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(content)
    assert main(["batch", str(tmp_path / name), "--check"]) == 2
    assert capsys.readouterr().err.startswith("pare: ")


def test_a_run_with_failed_jobs_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = write(tmp_path / "jobs.jsonl", [{"prompt": PROMPT, "steps": 1}, {"sed": 1}])
    for done, kept in ((1, 0), (0, 1)):
        assert main(["batch", str(jobs), "--out", str(tmp_path / "out"), "--json"]) == 1
        told = json.loads(capsys.readouterr().out)
        assert (told["done"], told["kept"], told["failed"]) == (done, kept, 1)
