"""Reproducing an image from its recipe: finds inputs, model and device, and compares results.

A recipe is untrusted input.  Files that it names are used only if they are unchanged (inputs by
their SHA-256, models by their fingerprints), and nothing is downloaded for it.  Files that the
user names instead are used as they are, and a difference is reported.
`pare.cli.commands.rerun` runs the recipe's command with what is found here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from pare.errors import DeviceError, RecipeError
from pare.io.whole_files import sha256
from pare.loading.hub_client import COMMIT, find_cached, looks_like_repository
from pare.loading.lora_source import cached_by_hash
from pare.loading.model_source import fingerprint_function, tokenizer_fingerprints
from pare.loading.resolve import BUILT_IN, ModelFolder, ResolvedModel, resolve_model
from pare.recipes.recipe import Recipe
from pare.runtime.device import choose_device, choose_dtype
from pare.runtime.extensions import SCHEDULERS as EXTENSIONS
from pare.runtime.extensions import extensions
from pare.schedulers import SCHEDULERS, Scheduler, find_solver, rebuild_scheduler

if TYPE_CHECKING:
    from PIL import Image

MAX_INPUT = 2**30  # bytes that are hashed because a recipe says so


# --- inputs and model -----------------------------------------------------------------


def find_input(
    name: str, recorded: Mapping[str, str], image: Path, folders: Sequence[Path] = ()
) -> Path:
    """The file of the input `name`: beside the image, in the current folder, or in `folders`.

    Args:
        recorded: its "name" and its "sha256".  A recipe of the first format may have a path.
        image: the file with the recipe.

    Raises:
        RecipeError: no such file, or it has changed.
        OSError: a file of that name cannot be opened.
    """
    typed = Path(recorded["name"])
    places = (typed, image.parent / typed, image.parent / typed.name,
              *(folder / one for folder in folders for one in (typed, typed.name)))  # fmt: skip
    there = [path for path in dict.fromkeys(places) if worth_hashing(path)]
    for path in there:
        if sha256(path) == recorded["sha256"]:
            return path
    cached = cached_by_hash(recorded["name"], recorded["sha256"])
    if cached is not None and sha256(cached) == recorded["sha256"]:
        return cached
    raise RecipeError(
        f"the {name} that {image} was made from, {short(typed, 200)}, "
        + ("has changed since" if there else "is not there"),
        fix=f"name the file (`inputs={name}=PATH`), or a folder to look in (`folders=FOLDER`)",
    )


def worth_hashing(path: Path) -> bool:
    """Whether it is a regular file of at most 1 GiB: a device or a file of /proc may never end."""
    return os.path.isfile(path) and 0 < path.stat().st_size <= MAX_INPUT


def find_model(recipe: Recipe, dtype: str, folders: Sequence[Path] = ()) -> ResolvedModel:
    """The model that the recipe names, on this machine and unchanged.

    Args:
        dtype: of the weights to be, as a repository may have float16 files too.
        folders: where to look for a file or a folder, beside the current one.

    Raises:
        RecipeError: it is not on this machine, or it has changed.
    """
    name, commit = str(recipe.arguments.get("model")), recipe.model.get("revision")
    if commit is not None:
        folder = cached_repository(name, commit, dtype)
    elif name in BUILT_IN:
        folder = BUILT_IN[name]
    else:
        folder = first_there(Path(name), folders)
        if not (folder.is_dir() or folder.is_file()):
            raise RecipeError(f"the model {name!r} is not here", fix="pass it as `model`")
    changed = changed_files(recipe.model, folder)
    if changed:
        raise RecipeError(
            f"the model {name!r} has changed since ({changed[0]})",
            fix=f"to run it as it is now, pass `model={name}`",
        )
    if folder.is_file():
        return resolve_model(folder)  # after its fingerprint: this opens it
    return ModelFolder(name, folder, commit)


def first_there(path: Path, folders: Sequence[Path]) -> Path:
    """The path, or the first of its name in `folders`; as it is if there is none."""
    places = [path, *(folder / path.name for folder in folders)]
    return next((place for place in places if place.name and place.exists()), path)


def cached_repository(name: str, commit: object, dtype: str) -> Path:
    """The folder in the Hub's cache of a repository at a commit."""
    from huggingface_hub.errors import HFValidationError

    if not looks_like_repository(name) or not COMMIT.fullmatch(str(commit)):
        raise RecipeError(f"the recipe's model, {name!r} at {commit!r}, is none of the Hub's")
    try:
        cached = find_cached(name, str(commit), half=dtype == "float16")
    except HFValidationError as error:
        raise RecipeError(f"the recipe's model, {name!r}, is none of the Hub's") from error
    if cached is None:
        raise RecipeError(
            f"the model {name} at commit {str(commit)[:7]} is not in the Hub's cache",
            fix=f"to download it, pass `model={name}`",
        )
    return cached.folder


def changed_files(model: Mapping[str, Any], folder: Path) -> list[str]:
    """Those of the model's recorded files that are not in `folder`, or are others there.

    Raises:
        RecipeError: the recipe names no files, or files elsewhere.
    """
    weights, configs = table(model, "files"), table(model, "configs")
    # The recipe has its own scheduler.
    recorded = {k: v for k, v in configs.items() if not k.startswith("scheduler/")} | dict(weights)
    if not weights:
        raise RecipeError("the recipe does not say which files its model had")
    fingerprint = fingerprint_function(model.get("fingerprint"))
    if folder.is_file():  # which may have another name today
        return [] if fingerprint(folder) in weights.values() else [folder.name]
    for name in recorded:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            raise RecipeError(f"the recipe's model has a file {name[:80]!r}, which is elsewhere")
    return [
        name
        for name, digest in recorded.items()
        if not (folder / name).is_file() or fingerprint(folder / name) != digest
    ]


def table(model: Mapping[str, Any], key: str) -> Mapping[str, str]:
    """A table of texts in what a recipe says about its model."""
    found = model.get(key, {})
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise RecipeError(f"the recipe's model is not what pare writes ({key})")
    return found


def find_tokenizer(recipe: Recipe, folders: Sequence[Path] = ()) -> Path | None:
    """The folder that a single file's tokenizer came from, unchanged; None if it had its own.

    Raises:
        RecipeError: it is not there, or it has changed.
    """
    name = recipe.arguments.get("tokenizer")
    if name is None:
        return None
    folder, recorded = first_there(Path(str(name)), folders), table(recipe.model, "configs")
    fingerprint = fingerprint_function(recipe.model.get("fingerprint"))
    if not folder.is_dir() or dict(tokenizer_fingerprints(folder, fingerprint)) != recorded:
        raise RecipeError(
            f"the tokenizer {name!r} is not here, or has changed since",
            fix="pass the folder as `tokenizer`",
        )
    return folder


def find_scheduler(description: Mapping[str, Any]) -> Scheduler:
    """The scheduler that a recipe describes.

    Raises:
        RecipeError: it is no description of one.
        PareError: what `rebuild_scheduler` finds wrong in it.
    """
    name = description.get("name")
    known = isinstance(name, str) and (name in SCHEDULERS or name in extensions(EXTENSIONS))
    kind = find_solver(str(name)) if known else None
    if kind is None or set(description) != {"name", "config", *kind.field_options}:
        raise RecipeError("the recipe's scheduler is not what pare writes")
    if not isinstance(description["config"], dict):
        raise RecipeError("the recipe's scheduler has no config")
    return rebuild_scheduler(description)


# --- device, threads and batch ------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """The device, dtype and threads of a rerun, and notes on what differs from the recipe."""

    device: str
    dtype: str
    threads: int
    notes: list[str] = field(default_factory=list)


def find_machine(
    recipe: Recipe, device: str | None = None, dtype: str | None = None, threads: int | None = None
) -> Machine:
    """Device, dtype and threads: those given, else the recipe's, else what the machine has."""
    notes = []
    kind = recipe.dtype
    if device is None:
        device = recipe.device
        try:
            choose_device(device)
        except DeviceError:
            device, kind = str(choose_device("auto")), "auto"
            notes.append(f"made on {recipe.device}, which this machine lacks: on {device} now")
    processors = os.cpu_count() or 1
    kind = str(choose_dtype(dtype or kind, choose_device(device)))
    if threads is None and recipe.threads > processors:
        notes.append(f"made with {recipe.threads} threads: with {processors} now, one a processor")
    threads = threads or min(recipe.threads, processors)
    return Machine(device, kind.removeprefix("torch."), threads, notes)


def batch_of(recipe: Recipe) -> list[int]:
    """The seeds of the images that went through the model together with this one.

    Their number matters, as matrix products of another shape round differently; what they
    show does not.  The images of a run may be more: they go in batches of `batch`, seed by
    seed and part by part, so that a seed's parts may lie in two batches.  The seeds from one
    seam between two batches to the next make the same batches by themselves.
    """
    size, parts = batch_size(recipe), max(1, len(recipe.parts))
    seams = [seed for seed in range(len(recipe.seeds)) if seed * parts % size == 0]
    first = max(seam for seam in seams if seam <= recipe.index)
    end = min((seam for seam in seams if seam > recipe.index), default=len(recipe.seeds))
    return list(recipe.seeds[first:end])


def batch_size(recipe: Recipe) -> int:
    """How many images went through the model together, at most."""
    images = len(recipe.seeds) * max(1, len(recipe.parts))
    size = recipe.arguments.get("batch")
    return size if isinstance(size, int) and 1 <= size <= images else images


def batch_length(recipe: Recipe) -> int:
    """How many images this one's batch had, itself included; the run's last may be short."""
    size, parts = batch_size(recipe), max(1, len(recipe.parts))
    place = recipe.index * parts + (recipe.parts.index(recipe.part) if recipe.parts else 0)
    return min(size, len(recipe.seeds) * parts - place // size * size)


# --- two recipes --------------------------------------------------------------------------

# Arguments whose effect a recipe tells elsewhere (`model`, `scheduler`, `seeds`, …), or that
# have none on the image.
MODEL = ("model", "revision", "tokenizer", "device", "dtype", "threads")
TOLD_ELSEWHERE = frozenset(
    (*MODEL, "scheduler", "karras", "eta", "seed", "count", "batch", "out", "force", "as_json")
)


DIGESTS = ("model.files.", "model.configs.", "model.fingerprint")


@dataclass(frozen=True)
class Change:
    """One setting in which two recipes differ; None where a recipe does not have it."""

    name: str
    one: Any
    other: Any

    def in_words(self) -> str:
        """The change in words, from an image to its rerun."""
        kind, _, name = self.name.partition(".")
        if kind == "input":
            return f"the {name} is another file"
        if kind == "model" and "." in name:
            return f"the model's {name.partition('.')[2]} is another file"
        if self.name == "batch":
            return f"it was made in a batch of {self.one} and is now in one of {self.other}"
        words = name if kind == "versions" else self.name
        return f"{words} was {short(self.one)} and is {short(self.other)}"


def facts(recipe: Recipe) -> dict[str, Any]:
    """Every setting that affects the pixels, as a flat table: nested names have dots."""
    own = {
        name: value
        for name, value in recipe.arguments.items()
        # An option that came later was not given before; nor is one that is given no value.
        if name not in TOLD_ELSEWHERE and name not in recipe.inputs and value not in (None, [])
    }
    model = {key: value for key, value in recipe.model.items() if key != "name"}
    return flat(
        {
            "command": recipe.command,
            **own,
            "input": {name: recorded["sha256"] for name, recorded in recipe.inputs.items()},
            "seed": recipe.seed,
            **({"part": recipe.part} if recipe.parts else {}),
            "batch": batch_length(recipe) * recipe.together,
            "scheduler": recipe.scheduler,
            "model": model,
            "device": recipe.device,
            "dtype": recipe.dtype,
            "threads": recipe.threads,
            "versions": recipe.versions,
        }
    )


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flattened: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flattened |= flat(value, f"{prefix}{key}.")
        else:
            flattened[prefix + key] = value
    return flattened


def compare_recipes(one: Recipe, other: Recipe) -> list[Change]:
    """The facts in which two recipes differ, in the order of `facts`."""
    ours, theirs = facts(one), facts(other)
    if one.model.get("fingerprint") != other.model.get("fingerprint"):
        # Sums over other bytes of the files, which tell nothing; `find_model` compares.
        ours, theirs = ({k: v for k, v in some.items() if not k.startswith(DIGESTS)}
                        for some in (ours, theirs))  # fmt: skip
    names = dict.fromkeys([*ours, *theirs])
    return [
        Change(name, ours.get(name), theirs.get(name))
        for name in names
        if ours.get(name) != theirs.get(name)
    ]


def short(value: Any, most: int = 60) -> str:
    """A value for a line of text; of a digest its first 10 digits, as Git does."""
    text = "none" if value is None else str(value)
    if len(text) == 64 and all(letter in "0123456789abcdef" for letter in text):
        return text[:10]
    return text if len(text) <= most else text[: most - 1] + "…"


# --- two images -------------------------------------------------------------------------


@dataclass(frozen=True)
class PixelDifference:
    """The difference of two 8-bit images; for unequal sizes only the sizes are known."""

    sizes: tuple[tuple[int, int], tuple[int, int]]  # (width, height) of each
    pixels: int | None = None  # how many differ in any channel
    largest: int | None = None  # of any channel of any pixel, 0 to 255
    psnr: float | None = None  # dB over all pixels and channels; None if they are equal

    @property
    def same(self) -> bool:
        return self.largest == 0

    def in_words(self) -> str:
        if self.same:
            return "the same to the pixel"
        if self.largest is None:
            (width, height), (other_width, other_height) = self.sizes
            return f"of another size ({other_width} x {other_height}, was {width} x {height})"
        width, height = self.sizes[0]
        return (
            f"different: at most {self.largest} of 255, {self.psnr:.1f} dB, "
            f"in {self.pixels} of {width * height} pixels"
        )


def compare_pixels(one: Image.Image, other: Image.Image) -> PixelDifference:
    """The difference of two RGB images."""
    sizes = (one.size, other.size)
    if one.size != other.size:
        return PixelDifference(sizes)
    apart = np.abs(np.asarray(one).astype(np.int64) - np.asarray(other))  # (H, W, 3)
    mean_square = float(np.square(apart).mean())
    psnr = 10 * math.log10(255**2 / mean_square) if mean_square else None
    return PixelDifference(sizes, int(apart.any(axis=-1).sum()), int(apart.max()), psnr)
