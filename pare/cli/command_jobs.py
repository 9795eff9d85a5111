"""Jobs that are runs of commands: read from rows of options, and done by a worker.

    jobs = command_jobs(Path("jobs.jsonl"))
    for result in pare.batch.run(jobs, CommandWorker, "images", together=4):
        print(result.job.files, result.status)

A row goes through the command's own parser, as a recipe does that is run again, so that every
check of the command line holds for it.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from pare.batch.job import Job
from pare.cli import terminal
from pare.cli.commands.blend import blend
from pare.cli.commands.edit import edit
from pare.cli.commands.erase import erase
from pare.cli.commands.generate import generate
from pare.cli.commands.guide import guide
from pare.cli.commands.img2img import img2img
from pare.cli.commands.invert import invert
from pare.cli.commands.p2p import p2p
from pare.cli.image_run import (
    NOT_IN_RECIPE,
    BatchJob,
    ImageRun,
    files_and_types,
    with_files,
)
from pare.cli.job_files import Row, read_rows
from pare.cli.json_output import plain
from pare.cli.output_files import file_names
from pare.cli.recipe_arguments import words
from pare.errors import JobFileError, PareError
from pare.io.whole_files import sha256

if TYPE_CHECKING:
    from pare.batch.shared_unet import Together
    from pare.pipeline import Pipeline
    from pare.unet import UNet

COMMANDS: Mapping[str, click.Command] = {
    str(one.name): one for one in (generate, img2img, blend, erase, invert, p2p, edit, guide)
}
MACHINE = ("model", "revision", "tokenizer", "lora", "device", "dtype", "threads")
NO_IMAGE = ("device", "threads", "batch")
"""Settings that change an image by rounding alone: they are no part of a job's name."""
NAME_LENGTH = 32  # hexadecimal digits: a billion jobs share one with a probability of 10^-21
MOST_MODELS = 2  # that a worker keeps in memory
REPORTED_ELSEWHERE = ("command", "images", "seconds", "inversions", "maps", "grid")
TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


# --- from a row to a job ------------------------------------------------------------------


def command_jobs(
    path: Path | str, defaults: Mapping[str, Any] | None = None, folders: Sequence[Path] = ()
) -> Iterator[Job]:
    """The jobs of a file, in its order; a row that cannot be run is a job with an error.

    Args:
        defaults: options that rows need not have: those of the model and the machine.
        folders: where the files that rows name may be, beside the job file's own folder.

    Raises:
        JobFileError, MissingExtraError, OSError: see `read_rows`.
    """
    places = [folder.resolve() for folder in (Path(path).parent, *folders)]
    for row in read_rows(Path(path)):
        yield row_job(row, defaults or {}, places)


def row_job(row: Row, defaults: Mapping[str, Any], folders: Sequence[Path]) -> Job:
    """The job of a row."""
    reason = row.error
    if not reason:
        try:
            return checked_job(row, defaults, folders)
        except click.UsageError as error:
            reason = error.format_message()
        except PareError as error:
            reason = error.args[0]
        except OSError as error:
            reason = f"{error.filename or 'a file'}: {error.strerror}"
    reason = terminal.one_line(reason.rstrip("."))
    name = hashlib.sha256(f"{row.number} {reason}".encode()).hexdigest()[:NAME_LENGTH]
    return Job(name, dict(row.values), number=row.number, error=f"{row.place}: {reason}")


def checked_job(row: Row, defaults: Mapping[str, Any], folders: Sequence[Path]) -> Job:
    """
    Raises:
        JobFileError: an option that the command does not have, or a value of another kind.
        click.UsageError, PareError: what the command has against the options.
        OSError: an input that cannot be opened.
    """
    values = dict(row.values)
    name = values.pop("command", "generate")
    command = COMMANDS.get(str(name))
    if command is None:
        raise JobFileError(
            f"there is no command {name!r}", expected=f"one of {', '.join(COMMANDS)}"
        )
    given = by_parameter(command, values, typed=row.typed)
    given = with_places(command, given, [key for key in values if key == "model"], folders)
    given = {**{key: plain(value) for key, value in defaults.items() if value is not None}, **given}
    context = command.make_context(command.name, words(command, given), obj=BatchJob())
    context.meta[terminal.CAPTURED] = []
    with context:
        run = ImageRun.start()
    arguments = {k: v for k, v in run.arguments.items() if k not in NO_IMAGE}
    hashed = {key: one["sha256"] for key, one in run.inputs.items()}
    decides = [command.name, arguments, hashed, fingerprint(given)]
    text = json.dumps(plain(decides), sort_keys=True)
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:NAME_LENGTH]
    return Job(
        digest,
        {"command": command.name, **given},
        tuple(file_names(digest, ".png", run.seeds, run.parts)),
        group=json.dumps([plain(given.get(key)) for key in MACHINE]),
        number=row.number,
    )


def by_parameter(
    command: click.Command, values: Mapping[str, Any], *, typed: bool
) -> dict[str, Any]:
    """The values by the names of the command's parameters; a key may be any name of an option."""
    known = parameters(command)
    given: dict[str, Any] = {}
    for key, value in values.items():
        parameter = known.get(str(key).strip().lstrip("-").replace("-", "_"))
        if parameter is None:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else ""
            raise JobFileError(f"{command.name} has no option {str(key)[:40]!r} in a job", fix=hint)
        name = str(parameter.name)
        if name in given:
            raise JobFileError(f"{name} is given twice, as {str(key)[:40]!r} too")
        if value is not None:
            given[name] = fitting(parameter, value, typed=typed)
    return given


@cache
def parameters(command: click.Command) -> dict[str, click.Parameter]:
    """Every name that a row may use: of arguments and options, aliases included."""
    found: dict[str, click.Parameter] = {}
    for parameter in command.params:
        if parameter.expose_value and parameter.name not in NOT_IN_RECIPE:
            options = parameter.opts if isinstance(parameter, click.Option) else []
            for name in (str(parameter.name), *options):
                if not name.startswith("-") or name.startswith("--"):
                    found[name.lstrip("-").replace("-", "_")] = parameter
    return found


def fitting(parameter: click.Parameter, value: Any, *, typed: bool) -> Any:
    """The value as `recipe_arguments.words` takes it."""
    if isinstance(parameter, click.Option) and parameter.is_flag:
        if not typed:
            value = TRUTH.get(str(value).lower(), value)
        if not isinstance(value, bool):
            raise JobFileError(f"{parameter.name} is {value!r}", expected="true or false")
        return value
    values = value if isinstance(value, list) else [value]
    for one in values:
        if isinstance(one, bool) or not isinstance(one, str | int | float):
            raise JobFileError(
                f"{parameter.name} is {str(one)[:40]!r}",
                expected="text, a number or a list of them",
            )
    if parameter.name == "seed" and any(str(one).strip() == "-1" for one in values):
        raise JobFileError(
            "the seed is -1, another one in every run", expected="a seed that makes the job itself"
        )
    many = parameter.multiple or parameter.nargs != 1
    return values if many or isinstance(value, list) else value


def with_places(
    command: click.Command, given: dict[str, Any], model: Sequence[str], folders: Sequence[Path]
) -> dict[str, Any]:
    """The options with the full paths of their files.

    Raises:
        JobFileError: a file that is in none of the `folders`.
    """
    from pare.loading.hub_client import looks_like_repository

    files = {
        name: place_of(path, folders)
        for name, (path, _) in files_and_types(command, given).items()
        if not name.startswith("lora") or not looks_like_repository(str(path))
    }
    placed = with_files(command, given, {name: str(path) for name, path in files.items()})
    for name in ("tokenizer", *model):
        value = placed.get(name)
        if value is not None and ("/" in str(value) or "\\" in str(value)):
            local = folders[0] / str(value)
            if Path(str(value)).is_absolute() or ".." in Path(str(value)).parts or local.exists():
                placed[name] = str(place_of(Path(str(value)), folders))
    return placed


def place_of(path: Path, folders: Sequence[Path]) -> Path:
    """The file of that name in one of the folders, symbolic links followed."""
    if "\0" in str(path):
        raise JobFileError("a file's name holds a zero byte")
    there = [(folder / path).resolve() for folder in folders]
    inside = [one for one in there if any(one.is_relative_to(folder) for folder in folders)]
    if not inside:
        raise JobFileError(
            f"the file {str(path)[:200]} is outside the job file's folder",
            fix="allow its folder with --inputs",
        )
    return next((one for one in inside if one.exists()), inside[0])


def fingerprint(given: Mapping[str, Any]) -> list[str]:
    """Of a local model's weights, which may change under its name; empty for one of the Hub."""
    from pare.loading.resolve import BUILT_IN

    name = str(given.get("model", "roads"))
    folder = BUILT_IN.get(name, Path(name))
    if not folder.exists():
        return []
    paths = [folder] if folder.is_file() else sorted(folder.glob("*/*.safetensors"))
    return [digest(path, path.stat().st_mtime_ns, path.stat().st_size) for path in paths]


@cache
def digest(path: Path, changed: int, size: int) -> str:
    return sha256(path)


# --- the worker -------------------------------------------------------------------------------


class CommandWorker:
    """Runs the commands of jobs.  A model is loaded once, and stays while others are not used."""

    def __init__(self, *, check_hashes: bool = True, strict: bool = False) -> None:
        """How models are loaded, see `Pipeline.from_pretrained`."""
        self.checks: dict[str, Any] = {"check_hashes": check_hashes, "strict": strict}
        self.models: dict[tuple[object, ...], Pipeline] = {}

    def run(self, jobs: Sequence[Job], folder: Path) -> list[Mapping[str, Any] | BaseException]:
        from pare.batch.shared_unet import Together

        group = Together()
        return group.run([partial(self.run_one, group, len(jobs), job, folder) for job in jobs])

    def run_one(self, group: Together, count: int, job: Job, folder: Path) -> Mapping[str, Any]:
        """Write the images of one job, with their recipes; what --json says of them."""
        command = COMMANDS[job.content["command"]]
        given = {name: value for name, value in job.content.items() if name != "command"}
        given |= {"out": str(folder / f"{job.name}.png"), "as_json": True}
        run = BatchJob(self.load, partial(self.share, group), count)
        context = command.make_context(command.name, words(command, given), obj=run)
        results: list[str] = []
        context.meta[terminal.CAPTURED] = results
        with context:
            command.invoke(context)
        report: dict[str, Any] = json.loads(results[-1])
        return {key: value for key, value in report.items() if key not in REPORTED_ELSEWHERE}

    def load(self, model: str, **options: Any) -> Pipeline:
        """As `Pipeline.from_pretrained`; the scheduler is another one's of the same model."""
        from pare.pipeline import Pipeline

        names = ("device", "dtype", "revision", "tokenizer")
        where = {name: options.pop(name) for name in names if name in options}
        options = {name: value for name, value in options.items() if name not in self.checks}
        key = (model, *map(str, where.values()))
        pipe = self.models.pop(key, None)
        if pipe is None:
            while len(self.models) >= MOST_MODELS:
                del self.models[next(iter(self.models))]
            pipe = Pipeline.from_pretrained(model, **where, **self.checks)
        self.models[key] = pipe  # the one used last stands last
        return pipe.with_scheduler(options.pop("scheduler", None), **options)

    @staticmethod
    def share(group: Together, pipe: Pipeline) -> Pipeline:
        """The pipeline, whose UNet is called together with those of the other jobs."""
        shared = copy.copy(pipe)
        shared.unet = cast("UNet", group.share(pipe.unet))
        return shared
