"""A run: what is planned before the model works, and written after it."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pare.cli.options import InputFile
from pare.cli.printing import plain
from pare.errors import OutputError, SettingError
from pare.io.whole_files import check_output, sha256, write_whole
from pare.runtime import validation

if TYPE_CHECKING:
    from PIL import Image
    from transformers import CLIPTokenizer

    from pare.loading.resolve import ResolvedModel
    from pare.pipeline import Pipeline
    from pare.recipes.recipe import Recipe
    from pare.schedulers import Scheduler


class ImageCommand(click.Command):
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


@dataclass
class Again:
    """What `pare rerun` has the command that it runs do otherwise; the context's object."""

    scheduler: Scheduler
    model: ResolvedModel | None  # None: the one that the options name
    made: list[tuple[Image.Image, Recipe]] = field(default_factory=list)
    """What the command would have written."""
    watch: Callable[[Pipeline], Pipeline] | None = None
    """What stands in for the pipeline, to see the run."""


@dataclass(frozen=True)
class Run:
    """What a command was given, and where its images go."""

    command: str
    arguments: Mapping[str, Any]
    inputs: Mapping[str, Mapping[str, str]]
    seeds: list[int]
    parts: list[str]
    """The images of each seed, by name; empty where it makes a single one."""
    paths: list[Path]
    """One an image: seed by seed, and within each part by part."""
    force: bool
    as_json: bool
    started: float
    again: Again | None = None

    @classmethod
    def plan(cls) -> Run:
        """The run that the command line asks for, every output checked and input hashed.

        Raises:
            OutputError, SettingError: a file that cannot or must not be written; seeds that
                cannot be.
            OSError: an input that cannot be opened.
        """
        started = time.perf_counter()
        context = click.get_current_context()
        assert isinstance(context.command, ImageCommand)
        command, given = str(context.info_name), context.params
        again = context.find_object(Again)
        seeds = validation.consecutive_seeds(given["seed"], given["count"])
        parts = context.command.parts(given)
        check_images(seeds, parts)
        paths = output_paths(given["out"], command, seeds, parts)
        if again is None:
            for path in paths:
                check_output(path, force=given["force"])
        inputs: dict[str, Mapping[str, str]] = {
            name: {"path": str(path), "sha256": sha256(path)}
            for name, path in input_files(context.command, given).items()
        }
        return cls(
            command, plain(given), inputs, seeds, parts, paths, given["force"], given["as_json"],
            started, again,
        )  # fmt: skip

    @property
    def places(self) -> list[tuple[int, str]]:
        """Of every image: which of the seeds is its own, and which part of it; "" if all."""
        return [(index, part) for index in range(len(self.seeds)) for part in self.parts or [""]]

    def noting(self, **arguments: Any) -> Run:
        """The run with what was chosen for it, so that its images can be made again."""
        return dataclasses.replace(self, arguments={**self.arguments, **arguments})

    def write(self, pipe: Pipeline, images: Sequence[Image.Image], **report: object) -> None:
        """Write every image with its recipe; print the paths, or all as a JSON object."""
        from pare.recipes.recipe import save_png

        recipes = [self.recipe(pipe, index, part) for index, part in self.places]
        if self.again is not None:
            self.again.made.extend(zip(images, recipes, strict=True))
            return
        seconds = time.perf_counter() - self.started
        for recipe, image, path in zip(recipes, images, self.paths, strict=True):
            write_whole(path, functools.partial(save_png, image, recipe), force=self.force)
            if not self.as_json:
                click.echo(path)
        if self.as_json:
            written = [
                {"path": str(path), "seed": recipe.seed}
                | ({"part": recipe.part} if recipe.parts else {})
                | {"width": image.width, "height": image.height}
                for path, recipe, image in zip(self.paths, recipes, images, strict=True)
            ]
            result = {"command": self.command, "images": written, "seconds": round(seconds, 3)}
            click.echo(json.dumps(result | report, indent=2))

    def say(self, words: str) -> None:
        """Tell something about the images that were written."""
        if self.again is None:
            click.echo(words, err=True)

    def recipe(self, pipe: Pipeline, index: int, part: str = "") -> Recipe:
        """The recipe of an image of the run, see `places`."""
        import torch

        from pare.recipes.recipe import Recipe, current_versions

        model = pipe.source.describe()
        model.pop("path", None)  # where it lies on this machine is nobody else's business
        return Recipe(
            command=self.command,
            arguments=self.arguments,
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
        )


def input_files(command: click.Command, arguments: Mapping[str, Any]) -> dict[str, Path]:
    """The files that an image is made from, by the names that its recipe gives them.

    These are the names of arguments and options; of one that is given several times `name`,
    `name#2` and so on.
    """
    return {
        name: kind.file(value)
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


def check_images(seeds: Sequence[int], parts: Sequence[str]) -> None:
    count = len(seeds) * max(1, len(parts))
    if count > validation.MAX_IMAGES:
        raise SettingError(
            f"{len(seeds)} seeds make {len(parts)} images each",
            expected=f"at most {validation.MAX_IMAGES} images in all",
        )


def output_paths(
    out: Path,
    command: str,
    seeds: Sequence[int],
    parts: Sequence[str] = (),
    option: str = "--out",
) -> list[Path]:
    """One file name an image: in the folder `out`, or made from the name `out`."""
    folder = out.is_dir()
    if not folder and out.suffix.lower() != ".png":
        raise OutputError(
            f"{option} is {out}",
            expected="a name that ends in .png (which keeps the recipe), or a folder that exists"
            if option == "--out"
            else "a name that ends in .png, or a folder that exists",
        )
    # A name says what tells the images apart; in a folder, where more will come, all.
    words = [
        ([str(seed)] if folder or len(seeds) > 1 else [])
        + ([part] if part and (folder or len(parts) > 1) else [])
        for seed in seeds
        for part in parts or [""]
    ]
    if folder:
        return [out / ("-".join([command, *some]) + ".png") for some in words]
    return [out.with_name("-".join([out.stem, *some]) + out.suffix) for some in words]


def load_pipeline(
    given: Mapping[str, Any], preferred: Mapping[str, object] | None = None
) -> Pipeline:
    """The model and scheduler that the options name; `preferred` if they name no scheduler."""
    from pare.loading.modules import load_model
    from pare.pipeline import Pipeline

    use_threads(given)
    again = click.get_current_context().find_object(Again)
    if again is not None:
        components = load_model(
            again.model or given["model"],
            device=given["device"],
            dtype=given["dtype"],
            revision=given["revision"],
            tokenizer=given["tokenizer"],
        )
        pipe = Pipeline(components, again.scheduler)
        return again.watch(pipe) if again.watch else pipe
    names = ("scheduler", "karras", "eta")
    chosen = {name: given[name] for name in names if given[name] is not None}
    if "scheduler" not in chosen:
        chosen = {**(preferred or {}), **chosen}
    return Pipeline.from_pretrained(
        given["model"],
        device=given["device"],
        dtype=given["dtype"],
        revision=given["revision"],
        tokenizer=given["tokenizer"],
        **chosen,
    )


def load_words(given: Mapping[str, Any]) -> tuple[CLIPTokenizer, int]:
    """The tokenizer of the model that the options name, and the length of its prompts."""
    from pare.loading.modules import load_tokenizer

    again = click.get_current_context().find_object(Again)
    model = (again.model if again else None) or given["model"]
    return load_tokenizer(model, revision=given["revision"], tokenizer=given["tokenizer"])


def use_threads(given: Mapping[str, Any]) -> None:
    import torch

    if given["threads"] is not None:
        torch.set_num_threads(given["threads"])


def warn_of_size(pipe: Pipeline, size: tuple[int, int], remedy: str) -> None:
    """Say so if an image is far larger than what the model has seen: slow, and repetitive."""
    (width, height), (trained_width, trained_height) = size, pipe.trained_size
    if width * height > 8 * trained_width * trained_height:
        warnings.warn(
            f"the image is {width} x {height}, and the model was trained at "
            f"{trained_width} x {trained_height}: this will be slow and may repeat things; "
            f"{remedy}",
            stacklevel=2,
        )


def sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling settings by the names that the pipeline gives them."""
    return {name: given[name] for name in ("steps", "guidance", "rescale", "negative")}


def fit_memory(
    pipe: Pipeline, run: Run, given: Mapping[str, Any], height: int, width: int
) -> dict[str, Any]:
    """The batch and the tile of a run: those given, or what fits into memory."""
    plan = pipe.plan(
        len(run.paths),
        height,
        width,
        guidance=given["guidance"],
        batch=given["batch"],
        tile=given["tile"],
    )
    return {"batch": plan.batch, "tile": plan.tile}
