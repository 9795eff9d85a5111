"""A model's folder, as the Hub lays it out, to configs and tensors.  Strictly.

    model_index.json                            which class each part is
    unet/config.json, unet/diffusion_pytorch_model.safetensors
    vae/config.json, vae/diffusion_pytorch_model.safetensors
    text_encoder/config.json, text_encoder/model.safetensors
    tokenizer/…, scheduler/scheduler_config.json

Modules are built on the `meta` device, where tensors have shapes and no memory.  The
file's tensors, mapped into memory rather than read, are then put in their place, and
every name and shape has to match: nothing is initialised only to be overwritten, and
nothing is silently left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pare.config import UNetConfig, VAEConfig, read_json
from pare.errors import DeviceError, ModelError, WeightsError
from pare.unet import UNet
from pare.vae import AutoencoderKL

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

Module = TypeVar("Module", bound=nn.Module)

BUILT_IN = {"roads": Path(__file__).parent / "models" / "roads"}

# What each part of a model may be, by the class that `model_index.json` names.
PARTS: dict[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}

# Old VAE files name the projections of their attention differently.
LEGACY_VAE_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class ModelSource:
    """Where a model came from: enough to find it again, and to see that it is the same."""

    name: str
    """As the user wrote it."""
    path: str
    files: Mapping[str, str] = field(default_factory=dict)
    """Weight file -> fingerprint (see `fingerprint`)."""


@dataclass(frozen=True)
class Components:
    """The parts of a model, loaded."""

    unet: UNet
    vae: AutoencoderKL
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    scheduler_config: Mapping[str, Any]
    """The JSON object of `scheduler_config.json`: any solver can be built from it."""
    source: ModelSource


def load_model(
    model: str | Path, *, device: str = "auto", dtype: str | torch.dtype = "auto"
) -> Components:
    """Load the model in `model`: "roads", or a folder in the Hub's layout.

    Raises:
        ModelError: no such model, or one that is incomplete or of another kind.
        ConfigError, WeightsError: a config or a tensor that does not fit.
        DeviceError: a device that this machine does not have.
    """
    place = choose_device(device)
    kind = choose_dtype(dtype, place)
    folder = find_folder(model)
    check_index(folder)
    scheduler_config = read_json(part_file(folder, "scheduler", "scheduler_config.json"))
    with torch.device("meta"):
        unet = UNet(UNetConfig.read(*config_of(folder, "unet")))
        vae = AutoencoderKL(VAEConfig.read(*config_of(folder, "vae")))

    stem = "diffusion_pytorch_model"
    unet_file = find_weights(folder, "unet", stem, kind)
    vae_file = find_weights(folder, "vae", stem, kind)
    text_file = find_weights(folder, "text_encoder", "model", kind)
    load_weights(unet, unet_file, kind)
    load_weights(vae, vae_file, kind, renames=LEGACY_VAE_NAMES)
    files = {str(f.relative_to(folder)): fingerprint(f) for f in (unet_file, vae_file, text_file)}
    return Components(
        unet.to(place),
        vae.to(place),
        load_tokenizer(folder),
        load_text_encoder(folder, text_file, kind).to(place),
        scheduler_config,
        ModelSource(str(model), str(folder), files),
    )


# --- where things are ---------------------------------------------------------------------


def find_folder(model: str | Path) -> Path:
    """The folder of a built-in model's name or of a path."""
    if str(model) in BUILT_IN:
        return BUILT_IN[str(model)]
    folder = Path(model)
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise ModelError(
            f"the model {str(model)!r} {what}",
            expected=f"{' or '.join(BUILT_IN)}, or a model's folder in the Hub's layout",
        )
    return folder


def check_index(folder: Path) -> None:
    """Check that `model_index.json` describes a Stable Diffusion 1.x / 2.x model."""
    path = folder / "model_index.json"
    if not path.is_file():
        raise ModelError(
            f"{folder} has no model_index.json",
            expected="a model's whole folder, as the Hub lays it out",
            fix="name the folder that holds unet/ and vae/",
        )
    index = read_json(path)
    pipeline = index.get("_class_name", "")
    for part, classes in PARTS.items():
        entry = index.get(part)
        name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if name not in classes:
            raise ModelError(
                f"{path} names {name or 'no class'} as its {part} (pipeline {pipeline!r})",
                expected=f"{classes[0]}, as Stable Diffusion 1.x and 2.x have",
            )
    if index.get("text_encoder_2") is not None:
        raise ModelError(
            f"{path} has a second text encoder: it is a {pipeline}",
            expected="Stable Diffusion 1.x or 2.x",
        )


def config_of(folder: Path, part: str) -> tuple[dict[str, Any], str]:
    path = part_file(folder, part, "config.json")
    return read_json(path), str(path)


def part_file(folder: Path, part: str, name: str) -> Path:
    path = folder / part / name
    if not path.is_file():
        raise ModelError(f"{folder} has no {part}/{name}", fix="download the whole model")
    return path


def find_weights(folder: Path, part: str, stem: str, dtype: torch.dtype) -> Path:
    """The safetensors file of a part; the float16 variant where that is what is wanted."""
    plain, half = f"{stem}.safetensors", f"{stem}.fp16.safetensors"
    for name in (half, plain) if dtype == torch.float16 else (plain, half):
        if (folder / part / name).is_file():
            return folder / part / name
    raise ModelError(f"{folder} has no {part}/{plain}", fix="download the whole model")


def fingerprint(path: Path) -> str:
    """SHA-256 of the file's size and content; of large files, of 256 blocks spread evenly.

    Hashing all of a model would take longer than making a picture with it; any two
    trainings of one model differ in every block.
    """
    size, blocks, block = path.stat().st_size, 256, 2**16
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= blocks * block:
            digest.update(file.read())
        else:
            for k in range(blocks):
                file.seek((size - block) * k // (blocks - 1))
                digest.update(file.read(block))
    return digest.hexdigest()


# --- tensors ------------------------------------------------------------------------------


def load_weights(
    module: nn.Module,
    path: Path,
    dtype: torch.dtype,
    *,
    renames: Mapping[str, str] | None = None,
) -> None:
    """Give a module on the meta device the tensors of a safetensors file, every one.

    On the CPU, tensors that have `dtype` already stay mapped: the operating system reads
    them when they are first used, and can drop and re-read them.

    Raises:
        WeightsError: the file cannot be read, or its names, shapes or types do not match.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    try:
        with ExitStack() as stack:
            file = stack.enter_context(safe_open(path, framework="pt"))
            stored = {rename(key, renames or {}): key for key in file.keys()}  # noqa: SIM118
            found = {name: tuple(file.get_slice(key).get_shape()) for name, key in stored.items()}
            if renames:
                found = {name: squeeze(shape, wanted.get(name)) for name, shape in found.items()}
            check_names(wanted, found, path)
            tensors: dict[str, Tensor] = {}
            for name, key in stored.items():
                tensor = file.get_tensor(key)
                if not tensor.is_floating_point():
                    raise WeightsError(
                        f"{path} holds {key} as {str(tensor.dtype).removeprefix('torch.')}",
                        expected="floating-point numbers",
                    )
                tensors[name] = tensor.view(wanted[name]).to(dtype)
    except SafetensorError as error:
        raise WeightsError(
            f"{path} is not a whole safetensors file ({error})", fix="download it again"
        ) from error
    module.load_state_dict(tensors, strict=True, assign=True)
    module.eval().requires_grad_(False)


def rename(name: str, renames: Mapping[str, str]) -> str:
    """The tensor's name today: `….query.weight` is `….to_q.weight`."""
    *path, kind, leaf = name.split(".") if name.count(".") else ("", "", name)
    return ".".join([*path, renames[kind], leaf]) if kind in renames else name


def squeeze(shape: tuple[int, ...], wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    """Old VAEs hold linear layers as 1x1 convolutions: (C, C, 1, 1) stands for (C, C)."""
    return wanted if wanted is not None and shape == (*wanted, 1, 1) else shape


def check_names(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], path: Path
) -> None:
    """Raise one table of everything that does not match, or return."""
    rows: list[tuple[str, str, tuple[object, ...]]]
    rows = [("missing", name, shape) for name, shape in wanted.items() if name not in found]
    rows += [("unexpected", name, shape) for name, shape in found.items() if name not in wanted]
    rows += [
        ("wrong shape", name, (*found[name], "instead of", *wanted[name]))
        for name in wanted.keys() & found.keys()
        if wanted[name] != found[name]
    ]
    if not rows:
        return
    lines = [f"  {problem:12} {name}  {' '.join(map(str, s))}" for problem, name, s in sorted(rows)]
    if len(lines) > 20:
        lines = [*lines[:20], f"  … and {len(lines) - 20} more"]
    raise WeightsError(
        f"{path} does not fit its config.json in {len(rows)} of {len(wanted)} tensors:\n"
        + "\n".join(lines)
        + "\n"
    )


# --- the text encoder ---------------------------------------------------------------------


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    # transformers takes seconds to import: not before everything else has been checked.
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    for name in ("vocab.json", "merges.txt"):
        part_file(folder, "tokenizer", name)
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    return tokenizer


def load_text_encoder(folder: Path, weights: Path, dtype: torch.dtype) -> CLIPTextModel:
    """CLIP's text encoder, through transformers, which knows the Hub's prefixes."""
    from transformers.models.clip.modeling_clip import CLIPTextModel

    config_of(folder, "text_encoder")
    try:
        model, info = CLIPTextModel.from_pretrained(
            folder / "text_encoder",
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            variant="fp16" if weights.name.endswith(".fp16.safetensors") else None,
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise WeightsError(
            f"{weights} is not a whole safetensors file ({error})", fix="download it again"
        ) from error
    problems = [f"missing {key}" for key in info["missing_keys"]]
    problems += [
        f"unexpected {key}" for key in info["unexpected_keys"] if "position_ids" not in key
    ]
    problems += [f"wrong shape {key}" for key in info["mismatched_keys"]]
    if problems:
        raise WeightsError(
            f"{weights} does not fit its config.json in {len(problems)} tensors: "
            + ", ".join(sorted(problems)[:5])
        )
    loaded: CLIPTextModel = model.eval().requires_grad_(False)
    return loaded


# --- device and dtype ---------------------------------------------------------------------


def choose_device(device: str) -> torch.device:
    """ "auto" is CUDA, MPS or the CPU, in this order.

    Raises:
        DeviceError: a device that does not exist or that this machine does not have.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(
            f"there is no device {device!r}", expected="auto, cpu, cuda, cuda:N or mps"
        ) from error
    if place.type == "cuda" and not (place.index or 0) < torch.cuda.device_count():
        raise DeviceError(
            f"the device {device!r} is not on this machine", fix="use --device cpu or auto"
        )
    if place.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("the device 'mps' is not on this machine", fix="use --device cpu or auto")
    if place.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(
            f"pare does not run on the device {device!r}", expected="auto, cpu, cuda or mps"
        )
    return place


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """ "auto" is float16 on CUDA, float32 elsewhere."""
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise DeviceError(f"the dtype is {dtype!r}", expected=f"auto, {', '.join(DTYPES)}")
    return DTYPES[str(dtype)]
