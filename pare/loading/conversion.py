"""Single-file and legacy checkpoints <-> the Hub's folder layout.

    pare convert model.safetensors model/          one file -> a folder
    pare convert model/ model.safetensors          and back
    pare convert --check model.safetensors         what is in it, tensor by tensor

A conversion renames; it computes nothing.  Tensors stay mapped from their files and go to
the disk one at a time, so that no more than the largest of them is ever in memory.  How
names correspond stands in `pare.loading.ldm_names`; what a file is and what of it is used, in
`pare.loading.single_file`.  This module reads and writes the two layouts.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from pare.config import TextConfig, UNetConfig, VAEConfig
from pare.errors import ModelError, OutputError, SettingError, WeightsError
from pare.io.whole_files import check_output, claim, exchange, part_beside, write_whole
from pare.loading import ldm_names
from pare.loading.checkpoint import (
    DTYPE_NAMES,
    FLOATING,
    STORED_DTYPES,
    open_checkpoint,
    stored_dtype,
)
from pare.loading.hub_folder import find_weights
from pare.loading.hub_names import POSITION_IDS, current_vae_name, legacy_vae_name
from pare.loading.ldm_names import Place, Shape
from pare.loading.lora import LoraWeights, bake
from pare.loading.lora_file import LoraFile, load_lora
from pare.loading.lora_source import find_lora
from pare.loading.model_configs import check_index, config_of
from pare.loading.modules import open_weights, squeeze
from pare.loading.single_file import (
    SingleFile,
    StoredPart,
    TensorCheck,
    inventory,
    load_single_file,
    make_plan,
    shapes_of,
    tokenizer_files,
)
from pare.runtime.numerics import Numbers, is_finite
from pare.text.clip import TextEncoder
from pare.unet import UNet
from pare.vae import AutoencoderKL

SINGLE_FILES = (".safetensors", ".ckpt")
"""How the names of single files end that this module writes."""

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
}


@dataclass(frozen=True)
class Converted:
    """What a conversion did."""

    target: Path
    kind: str
    tensors: int
    bytes: int
    notes: tuple[str, ...]


def convert(
    source: Path,
    target: Path,
    *,
    ema: bool | None = None,
    prediction: str | None = None,
    dtype: torch.dtype | None = None,
    tokenizer: Path | None = None,
    only: str | None = None,
    drop: Iterable[str] = (),
    old_vae: bool = False,
    loras: Iterable[tuple[str | Path, LoraWeights]] = (),
    force: bool = False,
) -> Converted:
    """Write the model in `source` as `target`: a folder, or a .safetensors or .ckpt file.

    Args:
        ema, prediction, only, drop: see `load_single_file`.
        dtype: convert the weights to this type; None keeps every tensor's bytes.
        tokenizer: a folder with vocab.json and merges.txt, instead of CLIP's own.
        loras: LoRA files, as `Pipeline.with_lora` takes them, to add to the weights.  Those that
            they change are in memory meanwhile.
        old_vae: in a folder, name the VAE's attention as before 2023 (`query` for `to_q`).
        force: replace what is at `target`.

    Raises:
        PareError: its subclasses say what is wrong with the source, or why the target
            cannot be written; SettingError: an option that would have no effect.  Then
            nothing has changed at `target`.
    """
    single, drop = target.suffix.lower() in SINGLE_FILES, tuple(drop)
    from_file = {"`ema`": ema is not None, "`prediction`": prediction, "`only`": only,
                 "`drop`": drop}  # fmt: skip
    to_folder = {"`tokenizer`": tokenizer, "`old_vae`": old_vae}
    refuse(from_file if source.is_dir() else {}, f"{source} is a folder")
    refuse(to_folder if single else {}, f"{target} is a single file")
    check_target(target, single, force)
    if source.is_dir():
        model = read_folder(source)
    else:
        model = load_single_file(source, ema=ema, prediction=prediction, only=only, drop=drop)
    model = with_loras(model, [(load_lora(find_lora(name)), weights) for name, weights in loras])
    tensors = [tensor for part in model.parts.values() for tensor in part.tensors.values()]
    size = sum(tensor.numel() * stored_type(tensor, dtype).itemsize for tensor in tensors)
    check_space(target, size)
    notes = [*model.notes, *non_finite_notes(model)]
    if single:
        notes += write_single_file(model, target, dtype, force=force)
    else:
        own = source / "tokenizer" if source.is_dir() else None
        write_folder(model, target, tokenizer or own, dtype, old_vae=old_vae, force=force)
    return Converted(target, model.kind, len(tensors), size, tuple(notes))


def with_loras(model: SingleFile, loras: Sequence[tuple[LoraFile, LoraWeights]]) -> SingleFile:
    """The model with LoRA files added to its weights.

    Raises:
        ModelError: it has no text encoder or no UNet; a LoRA for another base.
        WeightsError, SettingError: as `pare.loading.lora.with_lora`.
    """
    if not loras:
        return model
    for part in ("unet", "text_encoder"):
        if part not in model.parts:
            raise ModelError(f"{model.path} has no {part}, so a LoRA cannot be added to it")
    configs = {name: part.config for name, part in model.parts.items()}
    with torch.device("meta"):
        unet = UNet(UNetConfig.read(configs["unet"], "the UNet"))
        text = TextEncoder(TextConfig.read(configs["text_encoder"], "the text encoder"))
    stored = {name: part.tensors for name, part in model.parts.items()}
    baked = bake(unet, text, stored, loras, str(model.path))
    parts = {
        name: dataclasses.replace(part, tensors=baked[name]) for name, part in model.parts.items()
    }
    return dataclasses.replace(model, parts=parts)


def check(
    path: Path, *, ema: bool | None = None, only: str | None = None, drop: Iterable[str] = ()
) -> list[TensorCheck]:
    """Every tensor of a single file or of a model's folder, with its shape, its type and what
    is thought of it.

    Raises:
        ModelError, WeightsError, ConfigError: no list can be made, as a file is damaged or
            another kind of model.
        SettingError: an option that means nothing for a folder.
    """
    drop = tuple(drop)
    if path.is_dir():
        refuse({"`ema`": ema is not None, "`only`": only, "`drop`": drop}, f"{path} is a folder")
        return check_folder(path)
    plan = make_plan(open_checkpoint(path), ema=ema, only=only, drop=drop)
    tensors = plan.checkpoint.tensors
    return [
        dataclasses.replace(row, status=judge_numbers(tensors[row.name])) if row.status == "ok"
        else row for row in inventory(plan)
    ]  # fmt: skip


def non_finite_notes(model: SingleFile) -> list[str]:
    """A sentence about tensors with NaN or infinities, if there are any.

    Reads every tensor: the disk is asked once, as the writing that follows finds them in memory.
    """
    bad = [
        f"{part}/{name}"
        for part, content in model.parts.items()
        for name, tensor in content.tensors.items()
        if not is_finite(tensor)
    ]
    if not bad:
        return []
    count = f"{len(bad)} tensors hold NaN or infinities"
    return [f"{count}, the first being {bad[0]}: no image comes of that"]


def judge_numbers(tensor: Tensor) -> str:
    """Whether a tensor holds numbers only, "ok", or what else.  Reads all of it."""
    return "ok" if is_finite(tensor) else f"not finite: {Numbers.of(tensor).wrong_in_words()}"


# --- from a folder ------------------------------------------------------------------------


def read_folder(folder: Path) -> SingleFile:
    """A model's folder in the Hub's layout, with the names that are in use today.

    Raises:
        ModelError, ConfigError, WeightsError: as for `pare.loading.modules.load_model`.
    """
    check_index(folder)
    parts = {}
    for name in WEIGHTS:
        config, where = config_of(folder, name)
        stored = open_weights(find_weights(folder, name, half=False))
        parts[name] = StoredPart(config, {current_name(name, k): t for k, t in stored.items()})
        check_part(name, parts[name], where)
    scheduler, _ = config_of(folder, "scheduler")
    kind = "SD 2" if parts["text_encoder"].config.get("hidden_act") == "gelu" else "SD 1"
    return SingleFile(folder, kind, parts, scheduler, ())


def current_name(part: str, name: str) -> str:
    """The name that a tensor of the Hub has today."""
    if part == "vae":
        return current_vae_name(name)
    if part == "text_encoder" and not name.startswith("text_model."):
        return f"text_model.{name}"  # transformers 5 writes it without
    return name


def check_part(name: str, part: StoredPart, where: str) -> None:
    """Raise unless the tensors are those that the config asks for."""
    wanted = set(hub_shapes(name, part.config, where))
    found = set(part.tensors) - {POSITION_IDS}
    if wanted != found:
        differing = sorted(wanted ^ found)
        raise WeightsError(
            f"{where} and the weights beside it differ in {len(differing)} tensors, the first "
            f"being {differing[0]}",
            fix="download the whole model",
        )


def check_folder(folder: Path) -> list[TensorCheck]:
    """A row for every tensor of a model's folder, and for every one that should be there.

    Names are the files' own, behind the part's: `vae/decoder.conv_in.weight`.
    """
    check_index(folder)
    rows = []
    for part in WEIGHTS:
        missing = hub_shapes(part, *config_of(folder, part))
        for key, tensor in open_weights(find_weights(folder, part, half=False)).items():
            name = current_name(part, key)
            status = judge_stored(tensor, name, missing.pop(name, None))
            rows.append(
                TensorCheck(f"{part}/{key}", tuple(tensor.shape), stored_dtype(tensor), status)
            )
        rows += [TensorCheck(f"{part}/{n}", shape, "", "missing") for n, shape in missing.items()]
    return sorted(rows, key=lambda row: row.name)


def judge_stored(tensor: Tensor, name: str, wanted: Shape | None) -> str:
    """What is wrong with a folder's tensor that has the Hub's `name` today, or "ok"."""
    if name == POSITION_IDS:
        return "not needed: the numbers 0 to 76"
    if wanted is None:
        return "unexpected"
    if squeeze(tuple(tensor.shape), wanted) != wanted:
        return f"wrong shape: expected {' '.join(map(str, wanted))}"
    if stored_dtype(tensor) not in FLOATING:
        return "wrong type: expected floating-point numbers"
    return judge_numbers(tensor)


def hub_shapes(name: str, config: Mapping[str, Any], where: str) -> dict[str, Shape]:
    """Names and shapes of a part's tensors on the Hub."""
    with torch.device("meta"):
        if name == "unet":
            return shapes_of(UNet(UNetConfig.read(config, where)))
        if name == "vae":
            return shapes_of(AutoencoderKL(VAEConfig.read(config, where)))
        return shapes_of(TextEncoder(TextConfig.read(config, where)))


# --- to a folder --------------------------------------------------------------------------


def write_folder(
    model: SingleFile,
    target: Path,
    tokenizer: Path | None,
    dtype: torch.dtype | None,
    *,
    old_vae: bool,
    force: bool,
) -> None:
    """Write the model's folder under another name, then give it its own in one step."""
    target = Path(os.path.realpath(target))
    building = part_beside(target)
    descriptor = None
    try:
        building.mkdir()
        descriptor = os.open(building, os.O_RDONLY)
        claim(descriptor)
        fill_folder(model, building, tokenizer, dtype, old_vae=old_vae)
        move_folder(building, target, force=force)
    finally:
        shutil.rmtree(building, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def fill_folder(
    model: SingleFile,
    folder: Path,
    tokenizer: Path | None,
    dtype: torch.dtype | None,
    *,
    old_vae: bool,
) -> None:
    write_configs(model, folder, tokenizer)
    for name, part in model.parts.items():
        tensors = old_vae_names(part.tensors) if old_vae and name == "vae" else part.tensors
        with open(folder / name / WEIGHTS[name], "xb") as file:
            stream_safetensors(file, tensors, dtype)


def write_configs(model: SingleFile, folder: Path, tokenizer: Path | None) -> None:
    """Everything that a model's folder has but the weights.

    Args:
        folder: exists and is empty.
        tokenizer: a folder with vocab.json and merges.txt, instead of CLIP's own.
    """
    for name, part in model.parts.items():
        (folder / name).mkdir()
        write_json(folder / name / "config.json", part.config)
    if "text_encoder" not in model.parts:
        return
    (folder / "tokenizer").mkdir()
    vocabulary = int(model.parts["text_encoder"].config["vocab_size"])
    for file_name, content in tokenizer_files(model.kind, vocabulary, tokenizer).items():
        (folder / "tokenizer" / file_name).write_bytes(content)
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", model.scheduler_config)
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline"}
    if model.parts["unet"].config.get("in_channels") == 9:
        index["_class_name"] = "StableDiffusionInpaintPipeline"
    index |= {"feature_extractor": [None, None], "safety_checker": [None, None]}
    index |= {name: list(CLASSES[name]) for name in model.parts}
    index |= {"scheduler": ["diffusers", model.scheduler_config["_class_name"]]}
    index |= {"tokenizer": ["transformers", "CLIPTokenizer"]}
    write_json(folder / "model_index.json", index)


def old_vae_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The VAE's tensors as diffusers named them before 2023."""
    return {legacy_vae_name(name): tensor for name, tensor in tensors.items()}


def move_folder(building: Path, target: Path, *, force: bool) -> None:
    """Give a finished folder its name.  An old one under it, if `force`, takes the other name."""
    sync_folder(building)
    if force and target.exists():
        exchange(building, target)
        return
    try:
        os.rename(building, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise exists(target) from error
        raise


def sync_folder(folder: Path) -> None:
    """See to it that the files are on the disk before the folder gets its name."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


# --- to one file --------------------------------------------------------------------------


def write_single_file(
    model: SingleFile, target: Path, dtype: torch.dtype | None, *, force: bool
) -> list[str]:
    """Write the model under LDM's names; what the file has no place for is said."""
    tensors, notes = ldm_tensors(model)
    if target.suffix.lower() == ".ckpt":
        # torch's own writer wants all tensors at once: they stay mapped unless they change.
        pickled = {"state_dict": {n: in_type(n, t, dtype) for n, t in tensors.items()}}
        write_whole(target, lambda file: torch.save(pickled, file), force=force)
    else:
        write_whole(target, lambda file: stream_safetensors(file, tensors, dtype), force=force)
    return notes


def ldm_tensors(model: SingleFile) -> tuple[dict[str, Tensor], list[str]]:
    """The model's tensors under LDM's names, and what is lost or remarkable about it."""
    unet, vae, text = (model.parts.get(name) for name in ("unet", "vae", "text_encoder"))
    notes: list[str] = []
    tensors: dict[str, Tensor] = {}
    if unet is not None:
        config = UNetConfig.read(unet.config, "the UNet")
        for name, tensor in unet.tensors.items():
            tensors["model.diffusion_model." + ldm_names.unet_name(name, config)] = tensor
    if vae is not None:
        stages = len(VAEConfig.read(vae.config, "the VAE").block_out_channels)
        for name, tensor in vae.tensors.items():
            place = ldm_names.vae_place(name, stages)
            matrix = place.convolution and tensor.ndim == 2
            stored = tensor[:, :, None, None] if matrix else tensor
            tensors["first_stage_model." + place.name] = stored
    if text is not None and model.kind == "SD 1":
        tensors |= {f"cond_stage_model.transformer.{n}": t for n, t in text.tensors.items()}
    elif text is not None:
        tensors |= open_clip_tensors(text)
        notes.append("the text encoder has OpenCLIP's layers but the last, which SD 2 skips")
    prediction = model.scheduler_config.get("prediction_type", "epsilon")
    if prediction != "epsilon":
        notes.append(f"the model predicts {prediction}, which a single file does not say")
    return tensors, notes


def open_clip_tensors(text: StoredPart) -> dict[str, Tensor]:
    """The text encoder under OpenCLIP's names; query, key and value become one tensor."""
    whole: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    for name, tensor in text.tensors.items():
        if name == POSITION_IDS:
            continue
        place: Place = ldm_names.open_clip_place(name)
        if place.third is None:
            whole[place.name] = tensor
        else:
            thirds.setdefault(place.name, {})[place.third] = tensor
    whole |= {name: torch.cat([t[0], t[1], t[2]]) for name, t in thirds.items()}
    return {f"cond_stage_model.model.{name}": tensor for name, tensor in whole.items()}


# --- safetensors, one tensor at a time ----------------------------------------------------


def stream_safetensors(
    file: BinaryIO, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None
) -> None:
    """Write tensors as safetensors' own writer does, without holding them all in memory.

    The format: the header's length as a 64-bit little-endian number; the header, JSON, with
    type, shape and offsets of every tensor, padded to a multiple of 8; then the numbers.
    Widest types come first, so that every tensor is aligned.
    """
    types = {name: stored_type(tensor, dtype) for name, tensor in tensors.items()}
    order = sorted(tensors, key=lambda name: (-types[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        if types[name] not in STORED_DTYPES.values():
            raise WeightsError(f"{name} has the type {types[name]}", expected="plain numbers")
        start, end = end, end + tensors[name].numel() * types[name].itemsize
        header[name] = {
            "dtype": DTYPE_NAMES[types[name]],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        # A view as bytes: no copy, unless the tensor does not lie in one piece.
        flat = in_type(name, tensors[name], dtype).detach().contiguous().reshape(-1)
        file.write(flat.view(torch.uint8).numpy().data)


def stored_type(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The type that a tensor is written in: whole numbers stay what they are."""
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


def in_type(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The tensor as it is written.

    Raises:
        SettingError: it has a finite number that the type cannot hold.
    """
    wanted = stored_type(tensor, dtype)
    if wanted == tensor.dtype:
        return tensor
    converted = tensor.to(wanted)
    if bool((converted.isinf() & ~tensor.float().isinf()).any()):
        raise SettingError(f"{name} has numbers that {wanted} cannot hold", fix="choose bfloat16")
    return converted


# --- before anything is written -----------------------------------------------------------


def refuse(options: Mapping[str, object], why: str) -> None:
    """Raise if one of the options, none of which would have any effect, was given."""
    for name, given in options.items():
        if given:
            raise SettingError(f"{why}, for which {name} means nothing", fix="leave it out")


def check_target(target: Path, single: bool, force: bool) -> None:
    """Raise what can be known beforehand to stand in the target's way."""
    if single:
        check_output(target, force=force)
        return
    place = Path(os.path.realpath(target))
    if not place.parent.is_dir():
        raise OutputError(f"the folder {place.parent} does not exist", fix="create it first")
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise OutputError(f"the folder {place.parent} cannot be written", fix="choose another")
    if not place.exists():
        return
    if not place.is_dir():
        raise OutputError(
            f"{target} is a file",
            expected=f"a folder's name, or one that ends in {' or '.join(SINGLE_FILES)}",
        )
    # `force` replaces a model, and never a folder that something else is in.
    if any(place.iterdir()) and not (place / "model_index.json").is_file():
        raise OutputError(f"{target} is a folder with other things in it", fix="choose another")
    if not force:
        raise exists(target)


def exists(target: Path) -> OutputError:
    return OutputError(f"{target} exists", fix="pass `force=True` to replace it")


def check_space(target: Path, size: int) -> None:
    free = shutil.disk_usage(Path(os.path.realpath(target)).parent).free
    if free < size:
        raise OutputError(
            f"{target} needs {size / 2**30:.1f} GiB and its disk has {free / 2**30:.1f} GiB",
            fix="free some space, or choose a smaller `dtype`",
        )
