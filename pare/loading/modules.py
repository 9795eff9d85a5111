"""Loads a resolved model into modules, strictly.

Modules are built on the `meta` device, where tensors have shapes but no memory.  The file's
tensors, memory-mapped, are then assigned.  Every name and shape must match: no weight is
initialised only to be overwritten, and none is left out silently.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from torch import Tensor, nn

import pare.text.clip
import pare.unet
import pare.vae
from pare.config import HubConfig, TextConfig, UNetConfig, VAEConfig
from pare.errors import SettingError, WeightsError, memory_for_reading
from pare.loading import hub_folder
from pare.loading.checkpoint import (
    FLOATING,
    STORED_DTYPES,
    open_checkpoint,
    open_safetensors,
    stored_dtype,
)
from pare.loading.hub_names import RENAMES, Rename, own_names, same_name
from pare.loading.model_configs import (
    check_fit,
    check_index,
    config_of,
    read_configs,
    scheduler_config_of,
)
from pare.loading.model_source import (
    Fingerprints,
    ModelSource,
    config_fingerprints,
    tokenizer_fingerprints,
)
from pare.loading.resolve import ModelFile, ModelFolder, ResolvedModel, resolve_model
from pare.loading.single_file import tokenizer_files
from pare.runtime.device import choose_device, choose_dtype, dtype_name
from pare.runtime.forked import check_forked
from pare.runtime.numerics import Numbers, PrecisionWarning, is_finite
from pare.text.tokenizer import build_tokenizer, read_tokenizer

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


Config = TypeVar("Config", bound=HubConfig)
Module = TypeVar("Module", bound=nn.Module)


class UNet(pare.unet.UNet):
    """The UNet, which can be loaded by itself: `UNet.from_pretrained("roads")`."""

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        subfolder: str = "unet",
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
    ) -> Self:
        """A model's UNet alone; `model` and what it raises as for `load_model`."""
        return load_part(cls, UNetConfig, model, "unet", subfolder, device, dtype, revision)


class AutoencoderKL(pare.vae.AutoencoderKL):
    """The VAE, which can be loaded by itself: `AutoencoderKL.from_pretrained("roads")`."""

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        subfolder: str = "vae",
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
    ) -> Self:
        """A model's VAE alone; `model` and what it raises as for `load_model`."""
        return load_part(cls, VAEConfig, model, "vae", subfolder, device, dtype, revision)


class TextEncoder(pare.text.clip.TextEncoder):
    """The text encoder, which can be loaded by itself: `TextEncoder.from_pretrained("roads")`."""

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        subfolder: str = "text_encoder",
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
    ) -> Self:
        """A model's text encoder alone; `model` and what it raises as for `load_model`."""
        return load_part(cls, TextConfig, model, "text_encoder", subfolder, device, dtype, revision)


@dataclass(frozen=True)
class Components:
    """The parts of a model, loaded."""

    unet: pare.unet.UNet
    vae: pare.vae.AutoencoderKL
    tokenizer: CLIPTokenizer
    text_encoder: pare.text.clip.TextEncoder
    scheduler_config: Mapping[str, Any]
    """The JSON object of `scheduler_config.json`: any solver can be built from it."""
    source: ModelSource


def load_model(
    model: str | Path | ResolvedModel,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    tokenizer: Path | None = None,
    check_hashes: bool = True,
    strict: bool = False,
) -> Components:
    """Load a model: "roads", a folder in the Hub's layout, a file, or `owner/name` on the Hub.

    Names and configs are checked before the slow parts: reading weights, importing
    transformers.

    Args:
        revision: a branch, a tag or a commit's hash of a model on the Hub.
        tokenizer: a tokenizer's folder, for a single file that does not have CLIP's own tokens.
        check_hashes: see `resolve_model`.
        strict: refuse keys of the configs that do not describe the model (`HubConfig.read`).

    Raises:
        ModelError: no such model, or one that is incomplete or of another kind.
        ConfigError, WeightsError: a config or a tensor that does not fit.
        DeviceError: a device that this machine does not have.
        SettingError: a revision of a model that is not on the Hub.
        NotEnoughMemoryError: the weights do not fit.
    """
    torch_device = choose_device(device)
    torch_dtype = choose_dtype(dtype, torch_device)
    resolved = resolve_model(
        model, dtype=torch_dtype, revision=revision, check_hashes=check_hashes, strict=strict
    )
    with memory_for_reading(f"the model {resolved.name}"):
        if isinstance(resolved, ModelFile):
            parts = load_file(resolved, torch_dtype, tokenizer)
        else:
            refuse_tokenizer(resolved, tokenizer)
            parts = load_folder(resolved, torch_dtype)
        for module in (parts.unet, parts.vae, parts.text_encoder):
            module.to(torch_device)
    return parts


def load_folder(model: ModelFolder, dtype: torch.dtype) -> Components:
    """The parts of a folder in the Hub's layout, on the CPU."""
    folder = model.path
    check_index(folder)
    scheduler_config, _ = scheduler_config_of(folder)
    configs = read_configs(folder, strict=model.strict)
    half = dtype == torch.float16
    paths = {part: hub_folder.find_weights(folder, part, half) for part in hub_folder.WEIGHTS}
    files = [file for path in paths.values() for file in hub_folder.weight_files(path)]
    fingerprints = Fingerprints({str(file.relative_to(folder)): file for file in files})
    stored = {part: open_weights(path) for part, path in paths.items()}

    modules = empty_modules(configs.unet, configs.vae, configs.text_encoder)
    for part in ("unet", "vae", "text_encoder"):
        # A cast copies: drop the file before the next one is read.
        fill(modules[part], stored.pop(part), paths[part], dtype, RENAMES[part])
    text = configs.text_encoder
    return Components(
        **modules,
        tokenizer=build_tokenizer(configs.tokenizer, text.vocab_size, text.max_position_embeddings),
        scheduler_config=scheduler_config,
        source=ModelSource(
            model.name, str(folder), fingerprints, model.revision, config_fingerprints(folder)
        ),
    )


def load_file(model: ModelFile, dtype: torch.dtype, tokenizer: Path | None) -> Components:
    """The parts of a single file, on the CPU."""
    path, content = model.path, model.content
    unet = UNetConfig.read(content.parts["unet"].config, f"{path} (unet)")
    vae = VAEConfig.read(content.parts["vae"].config, f"{path} (vae)")
    text = TextConfig.read(content.parts["text_encoder"].config, f"{path} (text encoder)")
    check_fit(path, unet, vae, text)
    loaded_tokenizer = tokenizer_of_file(content.kind, text, tokenizer)

    modules = empty_modules(unet, vae, text)
    for part, module in modules.items():
        rename = RENAMES[part] if part == "text_encoder" else same_name
        fill(module, content.parts[part].tensors, path, dtype, rename)
    return Components(
        **modules,
        tokenizer=loaded_tokenizer,
        scheduler_config=content.scheduler_config,
        source=ModelSource(
            model.name,
            str(path),
            Fingerprints({path.name: path}),
            configs=tokenizer_fingerprints(tokenizer) if tokenizer else {},
        ),
    )


def load_part(
    build: Callable[[Config], Module],
    config_type: type[Config],
    model: str | Path,
    part: str,
    subfolder: str,
    device: str | torch.device,
    dtype: str | torch.dtype,
    revision: str | None,
) -> Module:
    """One network of a model: "unet", "vae" or "text_encoder".

    Of a repository on the Hub, the whole model is downloaded into the cache, once.

    Args:
        build: the module's class.
        subfolder: as diffusers has it; it is the part's own name.

    Raises:
        SettingError: another `subfolder`.
        PareError: as `load_model`.
    """
    check_subfolder(part, subfolder)
    torch_device = choose_device(device)
    torch_dtype = choose_dtype(dtype, torch_device)
    resolved = resolve_model(model, dtype=torch_dtype, revision=revision)
    if isinstance(resolved, ModelFile):
        found, path = resolved.content.parts[part], resolved.path
        raw, where, stored = found.config, f"{path} ({part})", found.tensors
        rename = RENAMES[part] if part == "text_encoder" else same_name
    else:
        check_index(resolved.path)
        raw, where = config_of(resolved.path, part)
        path = hub_folder.find_weights(resolved.path, part, torch_dtype == torch.float16)
        stored, rename = open_weights(path), RENAMES[part]
    config = config_type.read(raw, where)
    with torch.device("meta"):
        module = build(config)
    fill(module, stored, path, torch_dtype, rename)
    return module.to(torch_device)


def check_subfolder(part: str, subfolder: str) -> None:
    if subfolder != part:
        raise SettingError(f"`subfolder` is {subfolder!r}", expected=repr(part))


def refuse_tokenizer(model: ModelFolder, tokenizer: Path | None) -> None:
    if tokenizer is not None:
        raise SettingError(f"{model.name} has its own tokenizer", fix="leave out `tokenizer`")


def load_tokenizer(
    model: str | Path | ResolvedModel,
    *,
    revision: str | None = None,
    tokenizer: Path | None = None,
) -> tuple[CLIPTokenizer, int]:
    """A model's tokenizer, and how many tokens of a prompt it reads; no weights are read.

    Raises:
        ModelError, ConfigError, SettingError: as `load_model`.
    """
    resolved = resolve_model(model, revision=revision)
    if isinstance(resolved, ModelFile):
        raw = resolved.plan.parts["text_encoder"].config
        config = TextConfig.read(raw, f"{resolved.path} (text encoder)")
        loaded = tokenizer_of_file(resolved.plan.kind, config, tokenizer)
        return loaded, config.max_position_embeddings
    refuse_tokenizer(resolved, tokenizer)
    check_index(resolved.path)
    config = TextConfig.read(*config_of(resolved.path, "text_encoder"))
    files = read_tokenizer(resolved.path / "tokenizer", config.vocab_size)
    length = config.max_position_embeddings
    return build_tokenizer(files, config.vocab_size, length), length


def tokenizer_of_file(kind: str, config: TextConfig, folder: Path | None) -> CLIPTokenizer:
    """The tokenizer of a single file: CLIP's own, or that of `folder`.

    Args:
        kind: "SD 1" or "SD 2", which pad prompts differently.
    """
    with tempfile.TemporaryDirectory() as temporary:
        for name, content in tokenizer_files(kind, config.vocab_size, folder).items():
            (Path(temporary) / name).write_bytes(content)
        files = read_tokenizer(Path(temporary), config.vocab_size)
        return build_tokenizer(files, config.vocab_size, config.max_position_embeddings)


# --- tensors ------------------------------------------------------------------------------


def open_weights(path: Path) -> dict[str, Tensor]:
    """The mapped tensors of a safetensors file, of a `.bin`, or of the shards of an index.

    Raises:
        WeightsError: a file that is not what its name says, or cut off; a `.bin` with code in
            it; a tensor that two shards hold.
        ModelError: a shard is missing.
    """
    tensors: dict[str, Tensor] = {}
    for file in hub_folder.weight_files(path):
        opened = (open_checkpoint if file.suffix == ".bin" else open_safetensors)(file).tensors
        twice = tensors.keys() & opened.keys()
        if twice:
            raise WeightsError(f"{file} holds {min(twice)}, which another shard holds too")
        tensors |= opened
    return tensors


def load_weights(
    module: nn.Module, path: Path, dtype: torch.dtype, rename: Rename = same_name
) -> None:
    """Give a module on the meta device the tensors of a file or of shards, every one.

    On the CPU, tensors that have `dtype` already stay mapped: the operating system reads
    them when they are first used, and can drop and re-read them.

    Args:
        rename: see `pare.loading.hub_names`.

    Raises:
        WeightsError: the file cannot be read, or its names, shapes or types do not match.
    """
    fill(module, open_weights(path), path, dtype, rename)


def fill(
    module: nn.Module,
    stored: Mapping[str, Tensor],
    path: Path,
    dtype: torch.dtype,
    rename: Rename = same_name,
) -> None:
    """Give a module on the meta device the tensors that `path` holds, every one."""
    check_forked()
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    keys = own_names(stored, wanted, rename)
    found = {n: squeeze(tuple(stored[key].shape), wanted.get(n)) for n, key in keys.items()}
    check_names(wanted, found, path)
    dtypes = {key: stored_dtype(stored[key]) for key in keys.values()}
    for key, stored_as in dtypes.items():
        check_type(key, stored_as, path)
    tensors = {
        name: in_dtype(key, stored[key].contiguous().view(wanted[name]), dtype, path)
        for name, key in keys.items()
    }
    warn_of_8_bits(list(dtypes.values()), path, dtype)
    module.load_state_dict(tensors, strict=True, assign=True)
    module.eval().requires_grad_(False)


def check_type(key: str, stored_as: str, path: Path) -> None:
    """Raise unless a tensor's dtype, by safetensors' name, is one that weights have."""
    if stored_as not in FLOATING:
        raise WeightsError(
            f"{path} holds {key} as {stored_as}", expected=f"one of {', '.join(FLOATING)}"
        )


def in_dtype(key: str, tensor: Tensor, dtype: torch.dtype, path: Path) -> Tensor:
    """A weight in the model's dtype.

    A weight that has this dtype stays mapped and is not read, so it is not checked here: a
    NaN in it is found by the first run (`pare.runtime.numerics`).  A weight that is cast is
    checked, which costs little as it is in the CPU's cache.

    Raises:
        WeightsError: it holds NaN or infinities, or numbers beyond the range of `dtype`.
    """
    if tensor.dtype == dtype:
        return tensor
    cast = tensor.to(dtype)
    if is_finite(cast):
        return cast
    numbers = Numbers.of(tensor)
    if numbers.wrong:
        raise WeightsError(
            f"{path} holds {numbers.wrong_in_words()} in {key}",
            fix="get it again, or from somewhere else",
        )
    largest = max(-numbers.low, numbers.high)
    raise WeightsError(
        f"{path} holds {largest:.3g} in {key}, and {dtype_name(dtype)} ends at "
        f"{torch.finfo(dtype).max:.3g}",
        fix="use `dtype='bfloat16'` or `dtype='float32'`",
    )


def warn_of_8_bits(dtypes: Sequence[str], path: Path, dtype: torch.dtype) -> None:
    small = [name for name in dtypes if STORED_DTYPES[name].itemsize == 1]
    if small:
        warnings.warn(
            f"{path} holds {len(small)} of {len(dtypes)} tensors in 8 bits ({small[0]}): they are "
            f"cast to {dtype_name(dtype)} in memory, which does not restore their precision",
            PrecisionWarning,
            stacklevel=2,
        )


def squeeze(shape: tuple[int, ...], wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    """Old VAEs hold linear layers as 1x1 convolutions: (C, C, 1, 1) stands for (C, C)."""
    if wanted is not None and len(wanted) == 2 and shape == (*wanted, 1, 1):
        return wanted
    return shape


def mismatches(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> list[tuple[str, str, tuple[object, ...]]]:
    """(problem, name, shape) of every tensor that is missing, unexpected or has a wrong shape."""
    rows: list[tuple[str, str, tuple[object, ...]]]
    rows = [("missing", name, shape) for name, shape in wanted.items() if name not in found]
    rows += [("unexpected", name, shape) for name, shape in found.items() if name not in wanted]
    rows += [
        ("wrong shape", name, (*found[name], "instead of", *wanted[name]))
        for name in wanted.keys() & found.keys()
        if wanted[name] != found[name]
    ]
    return sorted(rows)


def check_names(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], path: Path
) -> None:
    """Raise a WeightsError with a table of everything that does not match."""
    rows = mismatches(wanted, found)
    if not rows:
        return
    table = [f"  {problem:12} {name}  {' '.join(map(str, s))}" for problem, name, s in rows]
    if len(table) > 20:
        table = [*table[:20], f"  … and {len(table) - 20} more"]
    raise WeightsError(f"{path} does not fit its config.json in {len(rows)} tensors", table=table)


# --- empty modules ------------------------------------------------------------------------


def empty_modules(unet: UNetConfig, vae: VAEConfig, text: TextConfig) -> dict[str, Any]:
    """The three networks on the meta device, by the names of `Components`."""
    with torch.device("meta"):
        return {
            "unet": UNet(unet),
            "vae": AutoencoderKL(vae),
            "text_encoder": TextEncoder(text),
        }
