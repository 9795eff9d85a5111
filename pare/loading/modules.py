"""A model on the Hub, or in a folder as the Hub lays it out, to tensors.  Strictly.

    model_index.json                            which class each part is
    unet/config.json, unet/diffusion_pytorch_model.safetensors
    vae/config.json, vae/diffusion_pytorch_model.safetensors
    text_encoder/config.json, text_encoder/model.safetensors
    tokenizer/vocab.json, tokenizer/merges.txt, …
    scheduler/scheduler_config.json

Modules are built on the `meta` device, where tensors have shapes and no memory.  The
file's tensors, mapped into memory rather than read, are then put in their place, and
every name and shape has to match: nothing is initialised only to be overwritten, and
nothing is silently left out.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import tempfile
import warnings
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pare.config import UNetConfig, VAEConfig, read_json, short_json
from pare.errors import ConfigError, ModelError, SettingError, WeightsError
from pare.loading import hub_folder
from pare.loading.checkpoint import open_checkpoint
from pare.loading.hub_client import fetch_snapshot, looks_like_repository, say_what_is_left_out
from pare.loading.single_file import SingleFile, load_single_file, tokenizer_files
from pare.runtime.device import choose_device, choose_dtype, dtype_name
from pare.runtime.numerics import Numbers, PrecisionWarning, is_finite
from pare.text.text_encoder import TextConfig
from pare.text.tokenizer import TokenizerFiles, build_tokenizer, read_tokenizer
from pare.unet import UNet
from pare.vae import AutoencoderKL

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

BUILT_IN = {"roads": Path(__file__).parents[1] / "models" / "roads"}

# What each part of a model may be, by the class that `model_index.json` names.
PARTS: dict[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
# Parts that look at finished images or at nothing; pare does not load them.  The
# scheduler is described by its own file.
SKIPPED = frozenset({"scheduler", "safety_checker", "feature_extractor"})

# Pipelines of other models, by how their class names begin.
OTHER_MODELS = {
    "StableDiffusionXL": "Stable Diffusion XL",
    "StableDiffusion3": "Stable Diffusion 3",
    "StableCascade": "Stable Cascade",
    "Flux": "Flux",
    "Kandinsky": "Kandinsky",
    "PixArt": "PixArt",
}

# Old VAE files name the projections of their attention differently.
LEGACY_VAE_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

# The number types of weights, as safetensors names them.
FLOATING = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class ModelSource:
    """Where a model came from: enough to find it again, and to see that it is the same."""

    name: str
    """As the user wrote it."""
    path: str
    files: Mapping[str, str] = field(default_factory=dict)
    """Weight file -> fingerprint (see `fingerprint`)."""
    revision: str | None = None
    """The commit's hash, of a model on the Hub."""
    configs: Mapping[str, str] = field(default_factory=dict)
    """Config or tokenizer file -> fingerprint."""


@dataclass(frozen=True)
class Found:
    """A model's folder or file on this machine, and what led to it."""

    name: str
    folder: Path
    revision: str | None = None
    """The commit's hash, of a model on the Hub."""
    single: SingleFile | None = None
    """A model in one file, whose path `folder` is then."""


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
    model: str | Path | Found,
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    tokenizer: Path | None = None,
) -> Components:
    """Load a model: "roads", a folder in the Hub's layout, a file, or `owner/name` on the Hub.

    What can be wrong with a folder is looked for before anything slow happens: reading
    gigabytes, and importing transformers.

    Args:
        revision: a branch, a tag or a commit's hash of a model on the Hub.
        tokenizer: a tokenizer's folder, for a single file that does not have CLIP's own tokens.

    Raises:
        ModelError: no such model, or one that is incomplete or of another kind.
        ConfigError, WeightsError: a config or a tensor that does not fit.
        DeviceError: a device that this machine does not have.
        SettingError: a revision of a model that is not on the Hub.
    """
    place = choose_device(device)
    kind = choose_dtype(dtype, place)
    if not isinstance(model, Found):
        model = find_model(model, dtype=kind, revision=revision)
    if model.single is not None:
        return load_from_file(model, model.single, place, kind, tokenizer)
    if tokenizer is not None:
        raise SettingError(f"{model.name} has its own tokenizer", fix="leave out --tokenizer")
    folder = model.folder
    check_index(folder)
    scheduler_config, _ = scheduler_of(folder)
    unet_config, vae_config, text_config = read_parts(folder)
    tokens = check_tokenizer(folder, text_config)
    files = {part: find_weights(folder, part, kind) for part in hub_folder.WEIGHTS}
    fingerprints = {
        str(file.relative_to(folder)): fingerprint(file)
        for path in files.values()
        for file in weight_files(path)
    }
    for path in files.values():
        with open_weights(path):
            pass

    with torch.device("meta"):
        unet, vae = UNet(unet_config), AutoencoderKL(vae_config)
    load_weights(unet, files["unet"], kind)
    load_weights(vae, files["vae"], kind, vae_name)
    text_encoder = empty_text_encoder(text_config)
    load_weights(text_encoder, files["text_encoder"], kind, text_name)
    return Components(
        unet.to(place),
        vae.to(place),
        load_tokenizer(tokens, text_config),
        text_encoder.to(place),
        scheduler_config,
        ModelSource(
            model.name, str(folder), fingerprints, model.revision, config_fingerprints(folder)
        ),
    )


def load_from_file(
    found: Found,
    single: SingleFile,
    device: torch.device,
    dtype: torch.dtype,
    tokenizer: Path | None,
) -> Components:
    """As from a folder, where one file holds everything under other names."""
    path = found.folder
    unet_config = UNetConfig.read(single.parts["unet"].config, f"{path} (unet)")
    vae_config = VAEConfig.read(single.parts["vae"].config, f"{path} (vae)")
    text_config = TextConfig.read(single.parts["text_encoder"].config, f"{path} (text encoder)")
    check_fit(path, unet_config, vae_config, text_config)
    loaded_tokenizer = tokenizer_of_file(single, text_config, tokenizer)

    with torch.device("meta"):
        unet, vae = UNet(unet_config), AutoencoderKL(vae_config)
    text_encoder = empty_text_encoder(text_config)
    modules: dict[str, nn.Module] = {"unet": unet, "vae": vae, "text_encoder": text_encoder}
    for name, module in modules.items():
        rename = text_name if name == "text_encoder" else same_name
        fill(module, as_stored(single.parts[name].tensors), path, dtype, rename)
    return Components(
        unet.to(device),
        vae.to(device),
        loaded_tokenizer,
        text_encoder.to(device),
        single.scheduler_config,
        ModelSource(
            found.name,
            str(path),
            {path.name: fingerprint(path)},
            configs=tokenizer_fingerprints(tokenizer) if tokenizer else {},
        ),
    )


def tokenizer_of_file(single: SingleFile, config: TextConfig, folder: Path | None) -> CLIPTokenizer:
    """The tokenizer of a single file: CLIP's own, or that of `folder`."""
    tokens = tokenizer_files(single.kind, config.vocab_size, folder)
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "tokenizer").mkdir()
        for name, content in tokens.items():
            (Path(temporary) / "tokenizer" / name).write_bytes(content)
        return load_tokenizer(check_tokenizer(Path(temporary), config), config)


def load_words(
    model: str | Path | Found, *, revision: str | None = None, tokenizer: Path | None = None
) -> tuple[CLIPTokenizer, int]:
    """A model's tokenizer, and how many tokens of a prompt it reads; no weights are read.

    Raises:
        ModelError, ConfigError, SettingError: as `load_model`.
    """
    found = model if isinstance(model, Found) else find_model(model, revision=revision)
    if found.single is not None:
        raw, where = found.single.parts["text_encoder"].config, f"{found.folder} (text encoder)"
        config = TextConfig.read(raw, where)
        return tokenizer_of_file(found.single, config, tokenizer), config.max_position_embeddings
    if tokenizer is not None:
        raise SettingError(f"{found.name} has its own tokenizer", fix="leave out --tokenizer")
    check_index(found.folder)
    config = TextConfig.read(*config_of(found.folder, "text_encoder"))
    loaded = load_tokenizer(check_tokenizer(found.folder, config), config)
    return loaded, config.max_position_embeddings


def read_scheduler_config(model: str | Path | Found) -> tuple[dict[str, Any], str]:
    """A model's `scheduler_config.json` and its name, without loading the model.

    Raises:
        ModelError, ConfigError: as `load_model`.
    """
    found = model if isinstance(model, Found) else find_model(model)
    if found.single is not None:
        return dict(found.single.scheduler_config), str(found.folder)
    check_index(found.folder)
    return scheduler_of(found.folder)


# --- where things are ---------------------------------------------------------------------


def find_model(
    model: str | Path, *, dtype: torch.dtype = torch.float32, revision: str | None = None
) -> Found:
    """The model of a built-in name, of a path, or of `owner/name` on the Hub.

    A folder or file that exists goes before a repository of that name.  What the cache does not
    have of a repository is downloaded: no other file than one that is read, and no weights
    before the configs are known to be a model that pare runs.

    Args:
        dtype: what the weights will be cast to, as a repository may have float16 files too.
    """
    name, path = str(model), Path(model)
    if not path.exists() and isinstance(model, str) and looks_like_repository(model):
        half = dtype == torch.float16
        snapshot = fetch_snapshot(
            model, revision=revision, half=half, check_index=check_index, check_configs=read_configs
        )
        return Found(name, snapshot.folder, snapshot.revision)
    if revision is not None:
        raise SettingError(
            f"the revision is {revision!r}, and {name} is not a model on the Hub",
            fix="leave it out",
        )
    if name in BUILT_IN:
        return Found(name, BUILT_IN[name])
    if path.is_file():
        single = load_single_file(path)
        if single.guess:
            warnings.warn(single.guess, stacklevel=2)
        return Found(name, path, single=single)
    if not path.is_dir():
        what = "is neither a file nor a folder" if path.exists() else "does not exist"
        raise ModelError(
            f"the model {name!r} {what}",
            expected=f"{' or '.join(BUILT_IN)}, a model's folder in the Hub's layout, "
            "a single file, or owner/name on the Hub",
        )
    if (path / hub_folder.INDEX).is_file():
        say_what_is_left_out(name, path)
    return Found(name, path)


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
    pipeline = str(index.get("_class_name", "unnamed"))
    for beginning, name in OTHER_MODELS.items():
        if pipeline.startswith(beginning):
            raise ModelError(
                f"{folder} is a model of {name} ({pipeline})",
                expected="Stable Diffusion 1.x or 2.x",
            )
    # A part is ["library", "Class"]; [null, null] says that there is none.
    classes = {
        part: entry[1] for part, entry in index.items() if isinstance(entry, list) and entry[1:]
    }
    for part, wanted in PARTS.items():
        if classes.get(part) not in wanted:
            named = short_json(classes.get(part)) if classes.get(part) else "no class"
            raise ModelError(
                f"{path} names {named} as the {part} of a {pipeline}",
                expected=f"{wanted[0]}, as Stable Diffusion 1.x and 2.x have",
            )
    for part, name in classes.items():
        if name is not None and part not in PARTS and part not in SKIPPED:
            raise ModelError(
                f"{path} has a part that pare does not run: {part}, {short_json(name)}",
                expected="Stable Diffusion 1.x or 2.x",
            )


def read_configs(folder: Path) -> tuple[UNetConfig, VAEConfig, TextConfig]:
    """The parts' configs, checked against each other and against the tokenizer."""
    unet, vae, text = read_parts(folder)
    check_tokenizer(folder, text)
    return unet, vae, text


def read_parts(folder: Path) -> tuple[UNetConfig, VAEConfig, TextConfig]:
    """The parts' configs, checked against each other."""
    unet = UNetConfig.read(*config_of(folder, "unet"))
    vae = VAEConfig.read(*config_of(folder, "vae"))
    text = TextConfig.read(*config_of(folder, "text_encoder"))
    check_fit(folder, unet, vae, text)
    return unet, vae, text


def check_fit(folder: Path, unet: UNetConfig, vae: VAEConfig, text: TextConfig) -> None:
    """Check that the parts speak to each other: what one puts out, the next takes in.

    Raises:
        ModelError: a UNet for another task.
        ConfigError: parts that are not of one model.
    """
    unet.check_inputs(str(folder))
    for one, width, other, wanted in (
        ("text encoder", text.hidden_size, "UNet's cross-attention", unet.cross_attention_dim),
        ("VAE", vae.latent_channels, "UNet's output", unet.out_channels),
    ):
        if width != wanted:
            raise ConfigError(
                f"{folder} has parts of different models: the {one} has {width} channels "
                f"and the {other} {wanted}",
                fix="download the whole model again",
            )


def config_of(folder: Path, part: str) -> tuple[dict[str, Any], str]:
    """The JSON object of a part's config file, and the file's name for messages."""
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    path = part_file(folder, part, name)
    return read_json(path), str(path)


def scheduler_of(folder: Path) -> tuple[dict[str, Any], str]:
    """The scheduler's config as diffusers' Stable Diffusion pipelines run it, and its file's name.

    Some things are not as `scheduler_config.json` says:

    - The class is the one that `model_index.json` names.  Whoever gives a model another solver
      often changes it there alone.
    - `steps_offset` is 1.  Files from before October 2022 are silent or say 0, and the model's own
      code starts at 1.
    - `clip_sample` is false: clipping is for pixels, and DDIM's class clips if nobody speaks.
    - `skip_prk_steps` is true of a model for inpainting.
    """
    config, where = config_of(folder, "scheduler")
    index = read_json(folder / hub_folder.INDEX) if (folder / hub_folder.INDEX).is_file() else {}
    entry = index.get("scheduler")
    named = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if named is not None and named != config.get("_class_name"):
        config |= {"_class_name": named}
        where = f"{where}, under {hub_folder.INDEX}'s class,"
    if type(config.get("steps_offset", 0)) is int:  # anything else is refused later
        config |= {"steps_offset": 1}
    if config.get("clip_sample", config.get("_class_name") == "DDIMScheduler") is True:
        config |= {"clip_sample": False}
    inpaints = index.get("_class_name") == "StableDiffusionInpaintPipeline"
    silent = config.get("_class_name") != "PNDMScheduler"
    if inpaints and config.get("skip_prk_steps", silent) is False:
        config |= {"skip_prk_steps": True}
    return config, where


def part_file(folder: Path, part: str, name: str) -> Path:
    path = folder / part / name
    if not path.is_file():
        raise ModelError(f"{folder} has no {part}/{name}", fix="download the whole model")
    return path


def find_weights(folder: Path, part: str, dtype: torch.dtype) -> Path:
    """The file of a part's weights that suits `dtype` best, or the index of its shards."""
    there = {f"{part}/{path.name}" for path in (folder / part).glob("*") if path.is_file()}
    name = hub_folder.choose_weights(there, part, dtype == torch.float16)
    if name is not None:
        return folder / name
    others = sorted(path.name for path in (folder / part).glob("*.[bs][ia][nf]*"))
    raise ModelError(
        f"{folder} has no {next(hub_folder.weight_names(part, half=False))}"
        + (f", only {', '.join(others[:3])}" if others else ""),
        expected="each part's weights as safetensors or .bin, under the Hub's names",
        fix="download the whole model",
    )


def weight_files(path: Path) -> list[Path]:
    """The files that hold a part's weights: `path` itself, or the shards that it lists."""
    if not hub_folder.is_index(path.name):
        return [path]
    files = [path.with_name(name) for name in hub_folder.read_shards(path)]
    for file in files:
        if not file.is_file():
            raise ModelError(
                f"{path} names {file.name}, which is not there", fix="download the whole model"
            )
    return files


def fingerprint(path: Path) -> str:
    """SHA-256 of the file's size and content; of large files, of 256 blocks spread evenly.

    Hashing all of a model would take longer than making an image with it; any two
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


def config_fingerprints(folder: Path) -> dict[str, str]:
    """The fingerprints of a model's small files: they decide about an image as weights do."""
    names = (*hub_folder.CONFIGS, *hub_folder.TOKENIZER_EXTRAS)
    return {name: fingerprint(folder / name) for name in names if (folder / name).is_file()}


def tokenizer_fingerprints(folder: Path) -> dict[str, str]:
    """The same for a tokenizer's folder, or a model's whole folder that stands for it."""
    whole = (folder / "tokenizer").is_dir()
    names = [
        name for name in (*hub_folder.CONFIGS, *hub_folder.TOKENIZER_EXTRAS) if "tokenizer/" in name
    ]
    paths = {name: folder / (name if whole else Path(name).name) for name in names}
    return {name: fingerprint(path) for name, path in paths.items() if path.is_file()}


# --- tensors ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, before it is read."""

    shape: tuple[int, ...]
    dtype: str
    """As safetensors names it."""
    read: Callable[[], Tensor]


@contextmanager
def open_weights(path: Path) -> Iterator[dict[str, Stored]]:
    """The tensors of a safetensors file, of a `.bin`, or of the shards that an index lists.

    Raises:
        WeightsError: a file that is not what its name says, or cut off; a `.bin` with code in
            it; a tensor that two shards hold.
        ModelError: a shard is missing.
    """
    stored: dict[str, Stored] = {}
    with ExitStack() as stack:
        for file in weight_files(path):
            try:
                tensors = open_bin(file) if file.suffix == ".bin" else open_mapped(file, stack)
            except SafetensorError as error:
                raise WeightsError(
                    f"{file} is not a whole safetensors file ({error})", fix="download it again"
                ) from error
            twice = stored.keys() & tensors.keys()
            if twice:
                raise WeightsError(f"{file} holds {min(twice)}, which another shard holds too")
            stored |= tensors
        yield stored


def open_mapped(path: Path, stack: ExitStack) -> dict[str, Stored]:
    file = stack.enter_context(safe_open(path, framework="pt"))
    tensors = {}
    for name in file.keys():  # noqa: SIM118 - it is no mapping
        view = file.get_slice(name)
        read = functools.partial(file.get_tensor, name)
        tensors[name] = Stored(tuple(view.get_shape()), view.get_dtype(), read)
    return tensors


def open_bin(path: Path) -> dict[str, Stored]:
    return as_stored(open_checkpoint(path).tensors)


def as_stored(tensors: Mapping[str, Tensor]) -> dict[str, Stored]:
    names = {dtype: name for name, dtype in FLOATING.items()}
    return {
        name: Stored(
            tuple(tensor.shape), names.get(tensor.dtype, str(tensor.dtype)), tensor.contiguous
        )
        for name, tensor in tensors.items()
    }


def same_name(name: str, wanted: Container[str]) -> str | None:
    return name


def vae_name(name: str, wanted: Container[str]) -> str | None:
    """A VAE tensor's name today: `….query.weight` is `….to_q.weight`."""
    path, dot, leaf = name.rpartition(".")
    parent, _, kind = path.rpartition(".")
    today = f"{parent}.{LEGACY_VAE_NAMES.get(kind, kind)}{dot}{leaf}"
    return today if today in wanted else name


def text_name(name: str, wanted: Container[str]) -> str | None:
    """A text encoder's tensor without, or with, the prefix that comes and goes.

    None for the positions' numbers, which old files hold: they only count the tokens.
    """
    bare = name.removeprefix("text_model.")
    if bare == "embeddings.position_ids":
        return None
    return next((n for n in (bare, f"text_model.{bare}") if n in wanted), name)


def load_weights(
    module: nn.Module,
    path: Path,
    dtype: torch.dtype,
    rename: Callable[[str, Container[str]], str | None] = same_name,
) -> None:
    """Give a module on the meta device the tensors of a file or of shards, every one.

    On the CPU, tensors that have `dtype` already stay mapped: the operating system reads
    them when they are first used, and can drop and re-read them.

    Args:
        rename: the module's name for a name in the file, given all names that are wanted;
            None leaves the tensor out.

    Raises:
        WeightsError: the file cannot be read, or its names, shapes or types do not match.
    """
    with open_weights(path) as stored:
        fill(module, stored, path, dtype, rename)


def fill(
    module: nn.Module,
    stored: Mapping[str, Stored],
    path: Path,
    dtype: torch.dtype,
    rename: Callable[[str, Container[str]], str | None],
) -> None:
    """Give a module on the meta device the tensors that `path` holds, every one."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    tensors: dict[str, Tensor] = {}
    keys = own_names(stored, wanted, rename)
    found = {name: stored[key].shape for name, key in keys.items()}
    check_names(wanted, {n: squeeze(s, wanted.get(n)) for n, s in found.items()}, path)
    for name, key in keys.items():
        check_type(key, stored[key].dtype, path)
        tensors[name] = in_type(key, stored[key].read().view(wanted[name]), dtype, path)
    say_what_is_in_8_bits([stored[key].dtype for key in keys.values()], path, dtype)
    module.load_state_dict(tensors, strict=True, assign=True)
    module.eval().requires_grad_(False)


def own_names(
    stored: Collection[str],
    wanted: Container[str],
    rename: Callable[[str, Container[str]], str | None],
) -> dict[str, str]:
    """The module's name of each tensor in a file -> the file's."""
    keys: dict[str, str] = {}
    for key in stored:
        name = rename(key, wanted)
        if name is not None:
            # Where the file has both, the old name stays what it is: unexpected.
            keys[key if name in stored else name] = key
    return keys


def check_type(key: str, kind: str, path: Path) -> None:
    if kind not in FLOATING:
        raise WeightsError(
            f"{path} holds {key} as {kind}", expected=f"one of {', '.join(FLOATING)}"
        )


def in_type(key: str, tensor: Tensor, dtype: torch.dtype, path: Path) -> Tensor:
    """A weight in the type that the model works in.

    One that has this type stays mapped and is not read, so neither is it looked at here: a
    NaN in it is found by the first run (`pare.runtime.numerics`).  One that is cast is in the CPU's
    cache just then, and looking at it costs next to nothing.

    Raises:
        WeightsError: it holds NaN or infinities, or numbers that `dtype` does not reach.
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
        fix="use --dtype bfloat16 or float32",
    )


def say_what_is_in_8_bits(kinds: Sequence[str], path: Path, dtype: torch.dtype) -> None:
    small = [kind for kind in kinds if FLOATING[kind].itemsize == 1]
    if small:
        warnings.warn(
            f"{path} holds {len(small)} of {len(kinds)} tensors in 8 bits ({small[0]}): they are "
            f"cast to {dtype_name(dtype)} in memory, and what was rounded away stays away",
            PrecisionWarning,
            stacklevel=2,
        )


def squeeze(shape: tuple[int, ...], wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    """Old VAEs hold linear layers as 1x1 convolutions: (C, C, 1, 1) stands for (C, C)."""
    if wanted is not None and len(wanted) == 2 and shape == (*wanted, 1, 1):
        return wanted
    return shape


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
    table = [f"  {problem:12} {name}  {' '.join(map(str, s))}" for problem, name, s in sorted(rows)]
    if len(table) > 20:
        table = [*table[:20], f"  … and {len(table) - 20} more"]
    raise WeightsError(f"{path} does not fit its config.json in {len(rows)} tensors", table=table)


# --- the text encoder ---------------------------------------------------------------------


def check_tokenizer(folder: Path, config: TextConfig) -> TokenizerFiles:
    """The tokenizer's files in a model's folder, checked.

    Raises:
        ModelError, ConfigError: one is missing, or is not what its name says.
    """
    return read_tokenizer(folder / "tokenizer", config.vocab_size)


def load_tokenizer(files: TokenizerFiles, config: TextConfig) -> CLIPTokenizer:
    """The tokenizer of these files."""
    return build_tokenizer(files, config.vocab_size, config.max_position_embeddings)


def empty_text_encoder(config: TextConfig) -> CLIPTextModel:
    """transformers' module on the meta device, for tensors read as strictly as the others.

    Its own loader would set torch's default dtype meanwhile, for all threads of the process.
    """
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel

    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(**dataclasses.asdict(config)))
    # The positions' numbers are in no state dict: what is loaded later leaves them alone.
    for name, buffer in list(model.named_buffers()):
        if name.endswith("position_ids"):
            owner = model.get_submodule(name.rpartition(".")[0])
            owner.position_ids = torch.arange(buffer.shape[-1]).expand(1, -1)
    return model
