"""A model's summary: its parts, their configs and files, and every problem; no weights are read.

    model = describe("roads")
    model.parts["unet"].parameters

The loader (`pare.loading`) raises at the first problem.  `describe` calls its checks part by part
and collects what they raise, so that the summary of a broken model says which parts are whole, and
what is wrong with the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pare.config import TextConfig, UNetConfig, VAEConfig, read_json
from pare.errors import ModelError, PareError, SettingError
from pare.loading import (
    architectures,
    file_kinds,
    hub_folder,
    model_configs,
    modules,
    single_file,
)
from pare.loading.checkpoint import Checkpoint, open_checkpoint
from pare.loading.hub_client import looks_like_repository
from pare.loading.hub_names import POSITION_IDS, RENAMES, own_names
from pare.loading.prediction import noted_prediction, scheduler_config
from pare.loading.resolve import BUILT_IN, HUB_NAMES
from pare.schedulers import build_scheduler
from pare.study.inspect.remote_headers import Weights, find_repository
from pare.study.inspect.weight_files import (
    ITEM_SIZES,
    Shape,
    WeightFile,
    as_checkpoint,
    dtype_counts,
    look_at,
)
from pare.text.clip import TextEncoder
from pare.text.text_encoder import known_words
from pare.text.tokenizer import read_tokenizer, read_vocabulary
from pare.unet import UNet
from pare.vae import AutoencoderKL

Config = UNetConfig | VAEConfig | TextConfig

CLASSES = {
    "text_encoder": "CLIPTextModel",
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
}
READERS: dict[str, Callable[[Mapping[str, Any], str], Config]] = {
    "text_encoder": TextConfig.read,
    "unet": UNetConfig.read,
    "vae": VAEConfig.read,
}


@dataclass(frozen=True)
class PartSummary:
    """The summary of a text encoder, a UNet or a VAE."""

    name: str
    kind: str
    """Its class on the Hub."""
    config: Config | None = None
    """None if it cannot be read."""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The JSON object that the config was read from."""
    parameters: int = 0
    """Counted by the config; by the files if it cannot be read."""
    files: tuple[WeightFile, ...] = ()
    """Empty where there are no weights to read: an architecture, a repository's pickle."""
    bytes: int = 0
    """Of its tensors in the files."""
    dtypes: Mapping[str, int] = field(default_factory=dict)
    """Dtype -> how many stored values have it."""
    stored: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The Hub's name of each tensor -> the name that it has in the file."""
    problems: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        return not self.problems


@dataclass(frozen=True)
class ModelSummary:
    """What is known of a model without reading its weights."""

    name: str
    form: str
    """"folder", "single file", "repository" or "architecture"."""
    place: str
    """The folder, the file, or the repository."""
    parts: Mapping[str, PartSummary]
    """By name."""
    kind: str = ""
    """"Stable Diffusion 1", "Stable Diffusion 2", or what a file is instead."""
    revision: str | None = None
    file: WeightFile | None = None
    """The single file, also one that is no model."""
    prediction: str = ""
    """What the UNet predicts: "epsilon", "v_prediction", "sample"; "" if unknown."""
    scheduler_config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    tokens: int = 0
    """The size of the tokenizer's vocabulary; 0 without a tokenizer."""
    words: tuple[str, ...] = ()
    """The words of its training captions, where its folder lists them (`known_words`)."""
    skipped: tuple[str, ...] = ()
    """Parts that pare does not load, such as the safety checker."""
    notes: tuple[str, ...] = ()
    """What was inferred, and from what."""
    problems: tuple[str, ...] = ()
    """Problems of the whole, beside those of the parts."""

    @property
    def all_problems(self) -> tuple[str, ...]:
        return (*self.problems, *(p for part in self.parts.values() for p in part.problems))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of the training images.

        Raises:
            ModelError: its UNet's config cannot be read.
        """
        height, width = self.config("unet").sample_size
        return width * self.factor, height * self.factor

    @property
    def factor(self) -> int:
        """Pixels per latent pixel along a side; 8, as in SD, if the VAE is unknown."""
        vae = self.parts.get("vae")
        return vae.config.factor if vae and isinstance(vae.config, VAEConfig) else 8

    def config(self, part: str) -> Any:
        """A part's config: `UNetConfig`, `VAEConfig`, `TextConfig`.

        Raises:
            ModelError: there is none that can be read.
        """
        found = self.parts.get(part)
        if found is None or found.config is None:
            why = found.problems[0] if found and found.problems else f"{self.name} has no {part}"
            raise ModelError(f"the layers of the {part} are not known: {why}")
        return found.config


def describe(model: str | Path, *, revision: str | None = None) -> ModelSummary:
    """Summarise a model.

    Args:
        model: what `load_model` takes, or "sd1" or "sd21" for these architectures without
            weights.  Of a repository on the Hub only the configs are downloaded, and the header of
            each file of weights.

    Raises:
        ModelError: there is no such model.  Problems of one that exists are collected in its
            `problems` instead.
        OSError: a file that exists and cannot be opened.
    """
    name, path = str(model), Path(model)
    if name in architectures.UNETS and not path.exists():
        return describe_architecture(name)
    if not path.exists() and looks_like_repository(name := HUB_NAMES.get(name, name)):
        summary = describe_folder(name, *find_repository(name, revision))
        return dataclasses.replace(summary, form="repository", place=name)
    if revision is not None:
        raise SettingError(f"the revision is {revision!r}, and {name} is not on the Hub")
    if name in BUILT_IN:
        return describe_folder(name, BUILT_IN[name])
    if path.is_file():
        return describe_file(name, path)
    if path.is_dir():
        return describe_folder(name, path)
    raise ModelError(
        f"the model {name!r} does not exist",
        expected=f"{' or '.join([*BUILT_IN, *architectures.UNETS])}, a model's folder in "
        "the Hub's layout, a single file, or owner/name on the Hub",
    )


@contextlib.contextmanager
def noting(problems: list[str]) -> Iterator[None]:
    """Collect an error's message instead of raising it."""
    try:
        yield
    except PareError as error:
        problems.append(str(error).rstrip())
    except OSError as error:
        if error.strerror is None:
            raise
        problems.append(f"{error.filename}: {error.strerror.lower()}")


# --- an architecture ----------------------------------------------------------------------


def describe_architecture(name: str) -> ModelSummary:
    latents = architectures.LATENT_SIZES[name]
    raws: dict[str, Mapping[str, Any]] = {
        "text_encoder": dict(TextConfig.HUB_DEFAULTS) | architectures.TEXTS[name],
        "unet": architectures.UNETS[name] | {"sample_size": latents},
        "vae": architectures.VAE | {"sample_size": 8 * latents},
    }
    parts = {}
    for part, raw in raws.items():
        config = READERS[part](raw, name)
        parameters = sum(map(math.prod, wanted_shapes(part, config, raw).values()))
        parts[part] = PartSummary(part, CLASSES[part], config, raw, parameters)
    scheduler = architectures.SCHEDULERS[name]
    return ModelSummary(
        name,
        "architecture",
        name,
        parts,
        kind=generation(parts),
        prediction=str(scheduler["prediction_type"]),
        scheduler_config=scheduler,
        tokens=49_408,
    )


def generation(parts: Mapping[str, PartSummary]) -> str:
    """Stable Diffusion 2 enters its transformers by linear layers, 1 by convolutions."""
    part = parts.get("unet")
    config = part.config if part is not None else None
    if not isinstance(config, UNetConfig):
        return ""
    kind = f"Stable Diffusion {2 if config.use_linear_projection else 1}"
    return f"{kind}, for inpainting" if config.in_channels == 9 else kind


# --- a folder -----------------------------------------------------------------------------


def describe_folder(
    name: str, folder: Path, revision: str | None = None, weights: Weights | None = None
) -> ModelSummary:
    """A model in the Hub's layout, part by part."""
    problems: list[str] = []
    index: Mapping[str, Any] = {}
    with noting(problems):
        model_configs.check_index(folder)
    with noting([]):  # its problems have just been noted
        index = read_json(folder / hub_folder.INDEX)
    look = weights or (lambda part: weights_in(folder, part))
    parts = {part: folder_part(folder, part, look) for part in CLASSES}
    scheduler: dict[str, Any] = {}
    prediction = ""
    with noting(problems):
        scheduler, where = model_configs.scheduler_config_of(folder)
        prediction = build_scheduler(scheduler, where).prediction_type
    tokens = 0
    text = parts["text_encoder"].config
    with noting(problems):
        tokens = len(read_vocabulary(folder / "tokenizer", 2**31).ids)
        if isinstance(text, TextConfig):
            read_tokenizer(folder / "tokenizer", text.vocab_size)
    with noting(problems):
        configs = [parts[part].config for part in ("unet", "vae", "text_encoder")]
        if None not in configs:
            model_configs.check_fit(folder, *configs)  # type: ignore[arg-type]
    return ModelSummary(
        name,
        "folder",
        str(folder),
        parts,
        kind=generation(parts),
        revision=revision,
        prediction=prediction,
        scheduler_config=scheduler,
        tokens=tokens,
        words=tuple(sorted(known_words(folder) or ())),
        skipped=skipped_parts(index),
        problems=tuple(problems),
    )


def skipped_parts(index: Mapping[str, Any]) -> tuple[str, ...]:
    named = model_configs.SKIPPED - {"scheduler"}
    return tuple(sorted(p for p in named if isinstance(index.get(p), list) and any(index[p])))


def weights_in(folder: Path, part: str) -> Sequence[WeightFile]:
    path = hub_folder.find_weights(folder, part, half=False)
    return [look_at(file) for file in hub_folder.weight_files(path)]


def folder_part(folder: Path, part: str, look: Weights) -> PartSummary:
    """One part of a folder: its config, its files, and whether the two match."""
    problems: list[str] = []
    raw: Mapping[str, Any] = {}
    config: Config | None = None
    files: Sequence[WeightFile] = ()
    shapes: Mapping[str, Shape] = {}
    stored: Mapping[str, str] = {}
    with noting(problems):
        raw, where = model_configs.config_of(folder, part)
        config = READERS[part](raw, where)
        shapes = wanted_shapes(part, config, raw)
    with noting(problems):
        files = look(part)
    problems += [f"{file.path}: {problem}" for file in files for problem in file.all_problems]
    readable = [file for file in files if file.tensors]
    if config is not None and readable:
        stored = check_stored(part, shapes, readable, problems)
    tensors = [tensor for file in files for tensor in file.tensors]
    parameters = sum(map(math.prod, shapes.values()))
    return PartSummary(
        part,
        CLASSES[part],
        config,
        raw,
        parameters or sum(tensor.numbers for tensor in tensors if not tensor.problem),
        tuple(files),
        sum(file.size for file in files),
        dtype_counts(tensors),
        stored,
        tuple(problems),
    )


def wanted_shapes(part: str, config: Config, raw: Mapping[str, Any]) -> dict[str, Shape]:
    """The names on the Hub and the shapes of a part's tensors."""
    return single_file.shapes_of(empty_module(config))


def empty_module(config: Config) -> UNet | AutoencoderKL | TextEncoder:
    with torch.device("meta"):
        if isinstance(config, TextConfig):
            return TextEncoder(config)
        return UNet(config) if isinstance(config, UNetConfig) else AutoencoderKL(config)


def check_stored(
    part: str, shapes: Mapping[str, Shape], files: Sequence[WeightFile], problems: list[str]
) -> dict[str, str]:
    """The Hub's name of each tensor -> the file's; mismatches are noted in `problems`."""
    found: dict[str, Shape] = {}
    for file in files:
        found |= {tensor.name: tensor.shape for tensor in file.tensors}
        for tensor in file.tensors:
            with noting(problems):
                if not tensor.name.endswith("position_ids") and not tensor.problem:
                    modules.check_type(tensor.name, tensor.dtype, file.path)
    names = own_names(found, shapes, RENAMES[part])
    fitted = {name: modules.squeeze(found[key], shapes.get(name)) for name, key in names.items()}
    for problem, name, shape in modules.mismatches(shapes, fitted):
        sizes = f", {' '.join(map(str, shape))}" if problem == "wrong shape" else ""
        problems.append(f"{part}: {name}: {problem}{sizes}")
    return {name: key for name, key in names.items() if name in shapes}


# --- a single file ------------------------------------------------------------------------


def describe_file(name: str, path: Path) -> ModelSummary:
    """A file: a whole checkpoint, a part of one, or something else."""
    file = look_at(path)
    problems = list(file.problems)
    model = ModelSummary(name, "single file", str(path), {}, file.looks_like, file=file)
    if not parts_to_plan(file):
        return dataclasses.replace(model, problems=file.all_problems)
    checkpoint = whole_checkpoint(file)
    for only in parts_to_plan(file):
        plan = None
        with noting(problems):
            plan = single_file.make_plan(checkpoint, ema=None, only=only)
        if plan is not None:
            model = with_plan(model, plan, file)
    return dataclasses.replace(model, problems=tuple(problems) + model.problems)


def whole_checkpoint(file: WeightFile) -> Checkpoint:
    """The mapped tensors of a whole file; of a damaged one tensors on the meta device."""
    if not file.all_problems and file.tensors:
        return open_checkpoint(file.path)
    empty = as_checkpoint(file)
    # Those whose values would be read are left out.
    read = ("scale_factor", "betas")
    tensors = {name: tensor for name, tensor in empty.tensors.items() if name not in read}
    return Checkpoint(file.path, tensors, empty.extras)


def parts_to_plan(file: WeightFile) -> list[str | None]:
    """What a file can hold: a whole model (None), or the UNet or the VAE alone."""
    if file.looks_like.startswith("a Stable Diffusion"):
        return [None]
    if not file.looks_like.startswith("a part of"):
        return []
    shapes = file.shapes
    return [part for part in ("unet", "vae") if file_kinds.find_prefix(shapes, part) is not None]


def with_plan(model: ModelSummary, plan: single_file.FilePlan, file: WeightFile) -> ModelSummary:
    """The model with the parts that a plan found in its file."""
    rows = [row for row in single_file.inventory(plan) if not row.fine]
    entries = {tensor.name: tensor for tensor in file.tensors}
    parts = dict(model.parts)
    problems = list(model.problems)
    unplaced = {row.name: row_problem(row) for row in rows}
    unplaced |= {t.name: f"{t.name}: {t.problem}" for t in file.tensors if t.problem}
    for name, planned in plan.parts.items():
        places = {hub_name: place.name for hub_name, place in planned.places.items()}
        used = dict.fromkeys(places.values())
        mine = [unplaced.pop(key) for key in used if key in unplaced]
        there = [entries[key] for key in used if key in entries]
        problem_list: list[str] = []
        config: Config | None = None
        with noting(problem_list):
            config = READERS[name](planned.config, f"{model.place} ({name})")
        parts[name] = PartSummary(
            name,
            CLASSES[name],
            config,
            planned.config,
            sum(math.prod(s) for n, s in planned.shapes.items() if n != POSITION_IDS),
            (file,),
            sum(stored_bytes(tensor.numbers, tensor.dtype) for tensor in there),
            dtype_counts(there),
            places,
            (*problem_list, *mine),
        )
    problems += unplaced.values()
    if plan.parts.keys() < CLASSES.keys():
        return dataclasses.replace(model, parts=parts, problems=tuple(problems))
    noted = noted_prediction(plan.checkpoint, plan.kind)
    prediction, how = noted or ("", "")
    scheduler, more = scheduler_config(plan.checkpoint, prediction or "v_prediction")
    pixels = 512 if prediction == "epsilon" else 768
    parts = {n: trained_at(part, pixels) for n, part in parts.items()}
    notes = [*plan.notes, f"the model predicts {prediction}: {how}" if noted else NOT_TOLD]
    notes += [*more, "the architecture is inferred from the tensors' names and shapes"]
    return dataclasses.replace(
        model,
        parts=parts,
        kind=generation(parts),
        prediction=prediction,
        scheduler_config=scheduler,
        notes=tuple(notes),
        problems=tuple(problems),
    )


NOT_TOLD = "eps or v cannot be told from names: loading the model finds out by a run of the UNet"


def stored_bytes(numbers: int, dtype: str) -> int:
    return numbers * ITEM_SIZES.get(dtype, 0)


def row_problem(row: single_file.TensorCheck) -> str:
    return f"{row.name}: {row.status.replace(': ', ', ')}"


def trained_at(part: PartSummary, pixels: int) -> PartSummary:
    """The part with the training size of models of its kind."""
    if isinstance(part.config, UNetConfig):
        side = pixels // 8
    elif isinstance(part.config, VAEConfig):
        side = pixels
    else:
        return part
    return dataclasses.replace(
        part, config=dataclasses.replace(part.config, sample_size=(side, side))
    )
