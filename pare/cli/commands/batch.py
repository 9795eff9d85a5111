"""`pare batch`: many images from a file of jobs."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pare.cli import terminal
from pare.cli.grouped_help import command, option, options
from pare.cli.option_types import noted
from pare.cli.options import json_option, model_options
from pare.errors import JobFileError, SettingError

if TYPE_CHECKING:
    from pare.batch.job import Job, JobResult

EVERY = 60.0  # seconds between two lines of progress where no terminal shows a bar

job_options = options(
    "Jobs",
    option("--out", "-o", metavar="DIR", usual=True,
           help="Folder of the images and the manifest, or an address: s3://…, gs://…."),
    option("--check", is_flag=True, usual=True,
           help="Read every job and list all mistakes with their lines; run nothing."),
    option("--inputs", "folders", multiple=True, metavar="FOLDER",
           type=click.Path(path_type=Path, exists=True, file_okay=False),
           help="Jobs may also name files in here. Default: in the folder of JOBS alone."),
    option("--together", type=click.IntRange(1, 64), default=4, show_default=True, metavar="N",
           usual=True,
           help="Jobs of one model that run side by side: where their latents have one shape they "
                "go through the UNet as one batch. Changes images by rounding alone."),
    option("--tries", type=click.IntRange(1, 100), default=3, show_default=True, metavar="N",
           help="Attempts after which a job has failed."),
    json_option,
)  # fmt: skip

EXAMPLES = (
    "pare batch jobs.jsonl --check",
    "pare batch jobs.jsonl --out images",
    "pare batch grid.toml --out images --together 8",
)


@command(section="make", examples=EXAMPLES)
@click.argument("jobs", type=click.Path(path_type=Path))
@job_options
@model_options
def batch(
    jobs: Path, out: str | None, check: bool, folders: tuple[Path, ...], together: int,
    tries: int, as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Many images: run the jobs in the file JOBS whose images are not in DIR yet.

    JOBS is JSON lines (.jsonl), CSV or parquet with the options of one command in each row
    (`command` is generate, img2img, blend, erase, invert, p2p, edit or guide), or a grid in YAML or
    TOML, in which a list gives several jobs. An image is named by the SHA-256 of all that decides
    it, and DIR/manifest tells what became of each job. Started again, the command does what is
    missing. Exit code 1 if jobs failed. Needs the extra: pip install "pare[batch]".
    """
    from pare.cli.command_jobs import CommandWorker, command_jobs
    from pare.cli.job_files import count_rows

    listed = command_jobs(jobs, given, folders)
    if check:
        check_jobs(jobs, listed, as_json)
        return
    if out is None:
        raise click.UsageError("Missing option '--out'.")

    from pare.batch import job_runner

    terminal.busy("starting")
    started = time.perf_counter()
    checks = {"check_hashes": not noted("no_hash"), "strict": bool(noted("strict"))}
    load = partial(CommandWorker, **checks)
    results = job_runner.run(listed, load, out, together=together, tries=tries)
    counted = count(shown(results, count_rows(jobs)))
    summarise(counted, out, time.perf_counter() - started, as_json)


def check_jobs(path: Path, jobs: Iterable[Job], as_json: bool) -> None:
    """Print what is wrong with the file; exit code 2 if anything is."""
    mistakes: list[str] = []
    total, equal = 0, Counter[str]()
    for job in jobs:
        total += 1
        equal[job.name] += 1
        if job.error:
            mistakes.append(job.error)
            if not as_json:
                terminal.result(f"{path}, {job.error}")
    twice = total - len(equal)
    if as_json:
        told = {"command": "batch", "jobs": total, "equal": twice, "mistakes": mistakes}
        terminal.result(json.dumps(told, indent=2))
    elif not mistakes:
        same = f", {twice} of them equal to others" if twice else ""
        terminal.result(f"{path}: {total} jobs{same}, no mistakes")
    if not total:
        raise JobFileError(f"{path} holds no jobs", expected="at least one")
    if mistakes:
        terminal.note(f"{len(mistakes)} of {total} jobs cannot be run")
        click.get_current_context().exit(2)


def shown(results: Iterable[JobResult], total: int | None) -> Iterator[JobResult]:
    """The results, with a bar on a terminal, else a line a minute: rate, time left, failures."""
    failed = 0
    if sys.stderr.isatty():
        from tqdm import tqdm

        terminal.clear_busy()
        with tqdm(total=total, desc="jobs", unit="job", smoothing=0.05) as bar:
            for result in results:
                failed += result.status == "failed"
                if result.status == "failed":
                    bar.write(f"pare: {failure(result)}", file=sys.stderr)
                bar.set_postfix(failed=failed, refresh=False)
                bar.update()
                yield result
        return
    started = said = time.monotonic()
    for number, result in enumerate(results, start=1):
        failed += result.status == "failed"
        if result.status == "failed":
            terminal.note(failure(result))
        now = time.monotonic()
        if now - said > EVERY:
            said = now
            terminal.note(progress_line(number, total, failed, now - started))
        yield result


def failure(result: JobResult) -> str:
    tries = f" ({result.attempts} attempts)" if result.attempts > 1 else ""
    place = "" if result.job.error else f"job {result.job.number}: "
    return terminal.one_line(f"{place}{result.error}{tries}")


def progress_line(number: int, total: int | None, failed: int, seconds: float) -> str:
    rate = number / seconds
    left = f", {(total - number) / rate:.0f} s left" if total and total > number else ""
    of = f" of {total}" if total else ""
    return f"{number}{of} jobs, {failed} failed, {rate:.3g} a second{left}"


def count(results: Iterable[JobResult]) -> Counter[str]:
    return Counter(result.status for result in results)


def summarise(counted: Counter[str], out: str, seconds: float, as_json: bool) -> None:
    """What became of the jobs; exit code 1 if any failed."""
    if not counted.total():
        raise SettingError("the file holds no jobs", expected="at least one")
    if as_json:
        told: dict[str, Any] = {"command": "batch", "jobs": counted.total()}
        told |= {name: counted[name] for name in ("done", "kept", "failed")}
        terminal.result(json.dumps({**told, "seconds": round(seconds, 3), "out": out}, indent=2))
    else:
        kept = f", {counted['kept']} were there" if counted["kept"] else ""
        terminal.result(f"{out}: {counted['done']} jobs done{kept}, {counted['failed']} failed")
    if counted["failed"]:
        click.get_current_context().exit(1)
