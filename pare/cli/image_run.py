"""A run that makes images: what is checked before the model loads, and what is written after it.

Every command that makes images reads in this order:

    run  = ImageRun.start()                  outputs checked, inputs hashed
    pipe = run.load_pipeline(texts=[prompt]) the model that the options name
    …                                        the technique
    run.write(pipe, images)                  each image with its recipe
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pare.cli import embedding_options, terminal
from pare.cli.grouped_help import PareCommand
from pare.cli.json_output import plain
from pare.cli.lora_options import given_loras, with_loras
from pare.cli.option_types import InputFile, noted
from pare.cli.output_files import free_paths, output_paths
from pare.errors import OutputError, SettingError
from pare.io.whole_files import sha256, write_whole
from pare.runtime import validation

if TYPE_CHECKING:
    from PIL import Image
    from transformers import CLIPTokenizer

    from pare.loading.resolve import ResolvedModel
    from pare.pipeline import Pipeline
    from pare.recipes.recipe import Recipe
    from pare.schedulers import Scheduler
    from pare.text.embedding_edits import TextEdits
    from roads.judge.comparison import Comparison

NOT_IN_RECIPE = frozenset(("out", "force", "as_json"))
"""Arguments that say where images go, not what they are."""


class ImageCommand(PareCommand):
    """A command whose images carry a recipe: `pare rerun` can run it again."""

    def __init__(
        self,
        *given: Any,
        parts: Callable[[Mapping[str, Any]], Sequence[str]] | None = None,
        **named: Any,
    ) -> None:
        """`parts`: where a seed makes several images, their names, from the arguments."""
        super().__init__(*given, **named)
        self.name_parts = parts

    def parts(self, arguments: Mapping[str, Any]) -> list[str]:
        """The names of a seed's images; none where it makes a single one."""
        return list(self.name_parts(arguments)) if self.name_parts else []


def image_command(
    *, cls: type[ImageCommand] = ImageCommand, **settings: Any
) -> Callable[[Callable[..., Any]], ImageCommand]:
    """As `click.command`, for `ImageCommand`."""
    return click.command(cls=cls, **settings)


@dataclass
class Rerun:
    """What a command does otherwise when `pare rerun` or `pare sweep` runs it; the context's
    object."""

    scheduler: Scheduler | None  # None, as of the model: the one that the options name
    model: ResolvedModel | None
    made: list[tuple[Image.Image, Recipe]] = field(default_factory=list)
    """What the command would have written."""
    watch: Callable[[Pipeline], Pipeline] | None = None
    """What stands in for the pipeline, to see the run."""
    loaded: dict[object, Pipeline] = field(default_factory=dict)
    """The models that earlier runs of a sweep have loaded."""


@dataclass
class BatchJob:
    """What a command does otherwise as a job of `pare batch`; the context's object."""

    load: Callable[..., Pipeline] | None = None
    """In the place of `Pipeline.from_pretrained`; None: the job is only read, not run."""
    share: Callable[[Pipeline], Pipeline] = lambda pipe: pipe
    """Lets the pipeline's UNet be called together with those of other jobs."""
    together: int = 1
    """How many jobs those are, this one included."""


@dataclass
class ImageRun:
    """One run of a command: what it was given, and where its images go."""

    command: click.Command
    given: dict[str, Any]
    """The command's parameters, by name."""
    arguments: dict[str, Any]
    """What the recipe keeps of them."""
    inputs: Mapping[str, Mapping[str, str]]
    seeds: list[int]
    parts: list[str]
    """The images of each seed, by name; empty where it makes a single one."""
    paths: list[Path]
    """One an image: seed by seed, and within each part by part."""
    edits: TextEdits | None
    """The edits of embeddings that the options ask for."""
    started: float
    rerun: Rerun | None

    @classmethod
    def start(cls, *, number: str = "", prompt: str | None = None, **files: Any) -> ImageRun:
        """The run that the command line asks for, every output checked and input hashed.

        Args:
            number: of one of several runs, for the files' names.
            prompt: of such a run.
            files: see `output_paths`.

        Raises:
            OutputError, SettingError: a file that cannot or must not be written; seeds that
                cannot be.
            OSError: an input that cannot be opened.
        """
        context = click.get_current_context()
        command, given = context.command, context.params
        if prompt is not None:
            given = {**given, "prompt": prompt}
        check_order(given)
        terminal.busy("starting")
        rerun, job = context.find_object(Rerun), context.find_object(BatchJob)
        seeds = validation.consecutive_seeds(given["seed"], given.get("count", 1))
        parts = command.parts(given) if isinstance(command, ImageCommand) else []
        check_images(seeds, parts)
        name, out = "-".join(filter(None, [context.info_name, number])), given["out"]
        if number and out is not None and not out.is_dir():
            out = out.with_stem(f"{out.stem}-{number}")
        paths = [Path(f"{name}.png")] * len(seeds) * max(1, len(parts))
        if rerun is None and (job is None or job.load is not None):
            paths = output_paths(out, name, seeds, parts, force=given["force"], **files)
        inputs = {
            one: {"name": shown_path(path, kind), "sha256": sha256(kind.local(path))}
            for one, (path, kind) in files_and_types(command, given).items()
        }
        edits = embedding_options.read_edits(given) if "embedding" in given else None
        arguments = recipe_arguments(command, given)
        arguments |= embedding_options.named_words(given, edits, shown_path) if edits else {}
        return cls(
            command, given, arguments, inputs, seeds, parts, paths, edits,
            context.meta.setdefault(terminal.STARTED, time.perf_counter()), rerun,
        )  # fmt: skip

    @property
    def force(self) -> bool:
        return bool(self.given["force"])

    @property
    def as_json(self) -> bool:
        return bool(self.given["as_json"])

    @property
    def places(self) -> list[tuple[int, str]]:
        """Of every image: which of the seeds is its own, and which part of it; "" if all."""
        return [(index, part) for index in range(len(self.seeds)) for part in self.parts or [""]]

    # --- the model --------------------------------------------------------------------------

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampling settings by the names that the pipeline gives them."""
        return sampling(self.given)

    def load_pipeline(
        self, preferred: Mapping[str, object] | None = None, texts: Sequence[str] = ()
    ) -> Pipeline:
        """The model and scheduler that the options name, under the edits of `texts`.

        Args:
            preferred: the scheduler if the options name none; None is the model's own.
            texts: what is encoded; a learned word must be in one of them.
        """
        return self.with_edits(load_pipeline(self.given, preferred), texts)

    def with_edits(self, pipe: Pipeline, texts: Sequence[str]) -> Pipeline:
        """The pipeline under the edits of embeddings that the options ask for."""
        return embedding_options.with_edits(pipe, self.edits, texts) if self.edits else pipe

    @contextlib.contextmanager
    def preview(self, pipe: Pipeline) -> Iterator[Pipeline]:
        """The pipeline that shows its predictions of x0 if --preview is given."""
        if not noted("preview") or self.rerun is not None:
            yield pipe
            return
        from pare.cli.preview import with_preview

        first = self.paths[0]
        (path,) = free_paths([first.with_name(f"{first.stem}-preview.png")])
        try:
            yield with_preview(pipe, path)
        finally:
            path.unlink(missing_ok=True)

    def size(self, pipe: Pipeline, own: tuple[int, int] | None = None) -> tuple[int, int]:
        """Width and height to work at: --size, or the image's `own`, or that of training."""
        size: tuple[int, int] = self.given.get("size") or own or pipe.trained_size
        warn_of_size(pipe, size, self.given)
        return size

    def fit_memory(self, pipe: Pipeline, width: int, height: int) -> dict[str, Any]:
        """The batch and the tile: those given, or what fits into memory; the recipe keeps them."""
        given = {name: self.given[name] for name in ("guidance", "batch", "tile")}
        plan = pipe.plan(len(self.paths), height, width, **given)
        return self.note(batch=plan.batch, tile=plan.tile)

    def note(self, **arguments: Any) -> dict[str, Any]:
        """Let the recipe keep what was chosen for the run; hands it back."""
        self.arguments |= arguments
        return arguments

    # --- the images -------------------------------------------------------------------------

    def judge(
        self, pipe: Pipeline, image: Image.Image, *, before: Image.Image | None = None,
        prompt: str, unwanted: Sequence[str] = (),
    ) -> Comparison | None:  # fmt: skip
        """What the judge of the built-in world finds in an image, beside the one `before` it;
        None for other models, whose images it does not know."""
        if self.rerun is not None or pipe.source.describe()["name"] != "roads":
            return None
        from roads.judge.comparison import Comparison, compare

        found = compare(before, image, prompt=prompt, unwanted=unwanted)
        return None if found == Comparison() else found

    def write(
        self, pipe: Pipeline, images: Sequence[Image.Image],
        judged: Sequence[Comparison | None] = (), /, **report: object,
    ) -> None:  # fmt: skip
        """Write every image with its recipe; print the paths, or all as a JSON object.

        Args:
            judged: what the judge finds in each image.
            report: what else the JSON says.
        """
        judged = judged or [None] * len(images)
        recipes = [self.recipe(pipe, index, part) for index, part in self.places]
        if self.rerun is not None:
            self.rerun.made.extend(zip(images, recipes, strict=True))
            return
        seconds = time.perf_counter() - self.started
        for k, (image, recipe) in enumerate(zip(images, recipes, strict=True)):
            self.paths[k] = self.write_one(image, recipe, self.paths[k])
            if not self.as_json:
                terminal.result(self.paths[k])
        if noted("grid") and len(images) > 1:
            report["grid"] = str(self.write_grid(images))
        if self.as_json:
            written = [
                {"path": str(path), "seed": recipe.seed}
                | ({"part": recipe.part} if recipe.parts else {})
                | {"width": image.width, "height": image.height}
                | ({"judge": found.report()} if found else {})
                for path, recipe, image, found in zip(
                    self.paths, recipes, images, judged, strict=True
                )
            ]
            result = {"command": self.command.name, "images": written, "seconds": round(seconds, 3)}
            terminal.result(json.dumps(result | report, indent=2))
        terminal.summary(self.summary(seconds))
        for path, found in zip(self.paths, judged, strict=True):
            if found:
                self.say(f"{path}: {found.sentence()}")

    def write_one(self, image: Image.Image, recipe: Recipe, path: Path) -> Path:
        """Write an image; under the next free name if the one that pare chose is taken by now."""
        from pare.recipes.recipe import save_image

        while True:
            write = functools.partial(save_image, image, recipe, path.suffix)
            try:
                write_whole(path, write, force=self.force)
            except OutputError:
                if self.given["out"] is not None or not path.exists():
                    raise
                (path,) = free_paths([path])
            else:
                return path

    def write_grid(self, images: Sequence[Image.Image]) -> Path:
        """Write the contact sheet beside the images."""
        from pare.study.record.image_grid import gallery

        captions = [f"seed {self.seeds[index]} {part}".rstrip() for index, part in self.places]
        out = self.given["out"]
        stem = self.command.name if out is None or out.is_dir() else out.stem
        (path,) = free_paths([self.paths[0].with_name(f"{stem}-grid.png")])
        sheet = gallery(dict(zip(captions, images, strict=True)), len(self.parts) or 4)
        write_whole(path, functools.partial(sheet.save, format="PNG"), force=self.force)
        if not self.as_json:
            terminal.result(path)
        return path

    def summary(self, seconds: float) -> str:
        """One line: files, seeds, steps, seconds."""
        files = str(self.paths[0])
        if len(self.paths) > 1:
            files = f"{len(self.paths)} images, {files} to {self.paths[-1].name}"
        seeds = ", ".join(map(str, self.seeds[:8])) + (", …" if len(self.seeds) > 8 else "")
        named = f"seed {seeds}" if len(self.seeds) == 1 else f"seeds {seeds}"
        steps = self.given.get("steps")
        walked = f", {steps} steps" if steps else ""
        return f"{files}: {named}{walked}, {seconds:.1f} s"

    def say(self, words: str) -> None:
        """Tell something about the images that were written."""
        if self.rerun is None:
            terminal.note(words, prefix="")

    def recipe(self, pipe: Pipeline, index: int, part: str = "") -> Recipe:
        """The recipe of an image of the run, see `places`."""
        import torch

        from pare.recipes.recipe import Recipe, current_versions

        job = click.get_current_context().find_object(BatchJob)
        model = pipe.source.describe()
        model.pop("path", None)
        model["name"] = shown_model(str(model["name"]))
        return Recipe(
            command=str(self.command.name),
            arguments=dict(self.arguments),
            inputs=self.inputs,
            model=model,
            scheduler=pipe.scheduler.describe(),
            seeds=self.seeds,
            index=index,
            device=str(pipe.device),
            dtype=str(pipe.dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
            versions=current_versions(str(pipe.device)),
            parts=self.parts,
            part=part,
            together=job.together if job else 1,
        )


# --- what a recipe keeps of the command line --------------------------------------------------


def recipe_arguments(command: click.Command, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as JSON, with files and folders by their names alone."""
    arguments = {key: value for key, value in plain(given).items() if key not in NOT_IN_RECIPE}
    files = files_and_types(command, given)
    names = {name: shown_path(path, kind) for name, (path, kind) in files.items()}
    arguments = with_files(command, arguments, names)
    if arguments.get("tokenizer") is not None:
        arguments["tokenizer"] = shown_path(Path(arguments["tokenizer"]))
    arguments["model"] = shown_model(arguments["model"])
    return arguments


def shown_path(path: Path, kind: InputFile | None = None) -> str:
    """The path as a recipe has it: the name alone, unless --keep-paths is given."""
    return str(path.absolute() if noted("keep_paths") else (kind or InputFile()).bare_name(path))


def shown_model(model: str) -> str:
    """A model as a recipe has it: a local file or folder by its name alone."""
    path = Path(model)
    return shown_path(path) if path.exists() and model not in ("roads", "sd1", "sd21") else model


def input_files(command: click.Command, arguments: Mapping[str, Any]) -> dict[str, Path]:
    """The files that an image is made from, by the names that its recipe gives them.

    These are the names of arguments and options; of one that is given several times `name`,
    `name#2` and so on.
    """
    return {name: path for name, (path, _) in files_and_types(command, arguments).items()}


def files_and_types(
    command: click.Command, arguments: Mapping[str, Any]
) -> dict[str, tuple[Path, InputFile]]:
    """As `input_files`, with the type of the parameter that names each."""
    return {
        name: (kind.file(value), kind)
        for parameter in command.params
        if isinstance(kind := parameter.type, InputFile)
        for name, value in named_values(parameter, arguments)
    }


def with_files(
    command: click.Command, arguments: Mapping[str, Any], files: Mapping[str, str]
) -> dict[str, Any]:
    """The arguments with other files, by the names of `input_files`."""
    changed = dict(arguments)
    for parameter in command.params:
        if not isinstance(kind := parameter.type, InputFile):
            continue
        values = [
            kind.with_file(value, files[name]) if name in files else value
            for name, value in named_values(parameter, arguments)
        ]
        if values:
            changed[str(parameter.name)] = values if parameter.multiple else values[0]
    return changed


def named_values(
    parameter: click.Parameter, arguments: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    value = arguments.get(str(parameter.name))
    values = value if parameter.multiple and value is not None else [value]
    for number, one in enumerate(values, start=1):
        if one is not None:
            yield f"{parameter.name}#{number}" if number > 1 else str(parameter.name), one


def check_order(given: Mapping[str, Any]) -> None:
    """Raise a UsageError for a prompt and an image in each other's places."""
    image, prompt = given.get("image"), given.get("prompt")
    if image is None or prompt is None or Path(image).exists():
        return
    if len(prompt) < 256 and "\0" not in prompt and Path(prompt).is_file():
        raise click.UsageError(f"{prompt} is a file; the image comes first: IMAGE PROMPT.")


def check_images(seeds: Sequence[int], parts: Sequence[str]) -> None:
    count = len(seeds) * max(1, len(parts))
    if count > validation.MAX_IMAGES:
        raise SettingError(
            f"{len(seeds)} seeds make {len(parts)} images each",
            expected=f"at most {validation.MAX_IMAGES} images in all",
        )


# --- the model that the options name ----------------------------------------------------------


def load_pipeline(
    given: Mapping[str, Any], preferred: Mapping[str, object] | None = None
) -> Pipeline:
    """The model and scheduler that the options name; `preferred` if they name no scheduler."""
    terminal.busy(f"loading {given['model']}")
    from pare.loading.modules import load_model
    from pare.pipeline import Pipeline
    from pare.schedulers import build_scheduler

    use_threads(given)
    where = {name: given[name] for name in ("device", "dtype", "revision", "tokenizer")}
    where["check_hashes"] = not noted("no_hash")
    where["strict"] = bool(noted("strict"))
    names = ("scheduler", "karras", "eta")
    chosen = {name: given[name] for name in names if given[name] is not None}
    if "scheduler" not in chosen:
        chosen = {**(preferred or {}), **chosen}
    context = click.get_current_context()
    rerun, job = context.find_object(Rerun), context.find_object(BatchJob)
    if rerun is None:
        load = job.load if job and job.load else Pipeline.from_pretrained
        pipe = with_loras(load(given["model"], **where, **chosen), given_loras(given))
        return job.share(pipe) if job else pipe
    key = tuple(map(str, (given["model"], *where.values())))
    loaded = rerun.loaded.get(key)
    if loaded is not None:
        pipe = loaded
    elif rerun.scheduler is None and rerun.model is None:
        pipe = Pipeline.from_pretrained(given["model"], **where, **chosen)
    else:
        parts = load_model(rerun.model or given["model"], **where)
        pipe = Pipeline(parts, rerun.scheduler or build_scheduler(parts.scheduler_config, ""))
    if rerun.scheduler is None:
        pipe = pipe.with_scheduler(chosen.pop("scheduler", None), **chosen)
    rerun.loaded.setdefault(key, pipe)
    pipe = with_loras(pipe, given_loras(given))
    return rerun.watch(pipe) if rerun.watch else pipe


def load_words(given: Mapping[str, Any]) -> tuple[CLIPTokenizer, int]:
    """The tokenizer of the model that the options name, and the length of its prompts."""
    from pare.loading.modules import load_tokenizer

    rerun = click.get_current_context().find_object(Rerun)
    model = (rerun.model if rerun else None) or given["model"]
    return load_tokenizer(model, revision=given["revision"], tokenizer=given["tokenizer"])


def use_threads(given: Mapping[str, Any]) -> None:
    import torch

    if given["threads"] is not None:
        torch.set_num_threads(given["threads"])


def warn_of_size(pipe: Pipeline, size: tuple[int, int], given: Mapping[str, Any]) -> None:
    """Say so if an image is far larger than what the model has seen: slow, and repetitive."""
    (width, height), (trained_width, trained_height) = size, pipe.trained_size
    if width * height > 8 * trained_width * trained_height:
        remedy = "a smaller `size` is quicker" if "size" in given else "scale it down first"
        warnings.warn(
            f"the image is {width} x {height}, and the model was trained at "
            f"{trained_width} x {trained_height}: this will be slow and may repeat things; "
            f"{remedy}",
            stacklevel=2,
        )


def sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling settings by the names that the pipeline gives them."""
    return {name: given[name] for name in ("steps", "guidance", "rescale", "negative")}
