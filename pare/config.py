"""The Hub's `config.json` files as frozen dataclasses, with nothing silently ignored.

Every key of a config file is exactly one of

- **modelled**: a field of the dataclass, typed and normalised;
- **pinned**: pare supports one value (or a few); any other raises, with the reason;
- **unused**: known, but without meaning for this class (a DDIM file that carries
  PNDM's `skip_prk_steps`);
- **provenance**: its name begins with `_`;
- **unknown**: left out with a warning, as diffusers does it; under `strict` it raises.

People's files also say the same thing in other forms: a flag as null, one value as a list with
an entry per stage, `swish` for `silu`.  `HubConfig.usual_form` brings them to one form.  A value
that changes the image is used, or refused by name.

Old files are sparse: a key that is absent means "the default of that time".  Those
defaults stand in one table per class, `HUB_DEFAULTS`, and nowhere else.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import stat
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from pare.errors import ConfigError, ModelError

LARGEST_TEXT = 8 * 2**20
"""Bytes of a JSON or text file; CLIP's tokenizer.json, the largest of a model's, has half."""


@dataclass(frozen=True)
class Pin:
    """A key that pare accepts with these values only, and why."""

    values: tuple[object, ...]
    reason: str


MOST_NAMED = 12
"""Keys that a warning names."""


class UnusedKeys(UserWarning):
    """Keys of a config file that are left out, because they do not describe the model."""


@dataclass(frozen=True)
class HubConfig:
    """Base of the configs: `read` turns the Hub's JSON object into the dataclass."""

    HUB_DEFAULTS: ClassVar[Mapping[str, object]] = {}
    PINNED: ClassVar[Mapping[str, Pin]] = {}
    UNUSED: ClassVar[frozenset[str]] = frozenset()
    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset()
    """Pinned keys that change nothing in the layers that pare has, whatever they say."""

    @classmethod
    def read(cls, raw: Mapping[str, Any], where: str, *, strict: bool = False) -> Self:
        """Build the config from the JSON object `raw`.

        Args:
            where: names the file in messages.
            strict: refuse unknown keys, and every value that is not in its usual form.

        Raises:
            ConfigError: an unsupported value of a pinned key, a value of the wrong type, or an
                absent key that has no default; under `strict` also an unknown key.

        Warns:
            UnusedKeys: keys that are left out.
        """
        if not strict:
            raw = cls.usual_form(raw, where)
        fields = {field.name for field in dataclasses.fields(cls)}
        values: dict[str, Any] = dict(cls.HUB_DEFAULTS)
        for key, value in raw.items():
            if key.startswith("_") or key in cls.UNUSED:
                continue
            if key in cls.PINNED:
                check_pin(key, value, cls.PINNED[key], where)
            elif key in fields:
                values[key] = value
            else:
                raise unknown_key(key, fields | set(cls.PINNED), where)
        absent = sorted(fields - set(values))
        if absent:
            raise ConfigError(
                f"{where} lacks {', '.join(map(repr, absent))}",
                expected="every key that describes the architecture",
                fix="take the file from the model's own folder",
            )
        return cls(**cls.normalise(values, where))

    @classmethod
    def usual_form(cls, raw: Mapping[str, Any], where: str) -> dict[str, Any]:
        """`raw` without the keys that say nothing, and with each value in its usual form."""
        known = {field.name for field in dataclasses.fields(cls)} | cls.PINNED.keys()
        usual, dropped = dict[str, Any](), []
        for key, value in raw.items():
            if key.startswith("_") or key in cls.UNUSED:
                continue
            if key not in known:
                near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.8)
                dropped.append(short_json(key) + (f" (did you mean {near[0]!r}?)" if near else ""))
                continue
            value = cls.usual_value(key, value, raw)
            if key in cls.WITHOUT_EFFECT and not pinned(value, cls.PINNED[key]):
                dropped.append(short_json(key))
            else:
                usual[key] = value
        if dropped:
            more = f" and {len(dropped) - MOST_NAMED} more" if len(dropped) > MOST_NAMED else ""
            warnings.warn(
                f"{where} has keys that do not change this model and are not used: "
                f"{', '.join(dropped[:MOST_NAMED])}{more}",
                UnusedKeys,
                stacklevel=3,
            )
        return usual

    @classmethod
    def usual_value(cls, key: str, value: object, raw: Mapping[str, Any]) -> object:
        """`value` of `key` in its usual form; here flags, which may be null, 0 or 1."""
        pin = cls.PINNED.get(key)
        usual = pin.values[0] if pin else cls.HUB_DEFAULTS.get(key)
        if isinstance(usual, bool) and (value is None or (type(value) is int and value in (0, 1))):
            return bool(value)
        return value

    @classmethod
    def normalise(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
        """Check types and ranges; bring equal spellings of one thing to one form."""
        return values


def pinned(value: object, pin: Pin) -> bool:
    """Whether `value` is one that the pin allows."""
    # JSON's true equals 1 in Python: compare types as well, but let 1 stand for 1.0.
    return any(
        value == allowed and isinstance(value, bool) == isinstance(allowed, bool)
        for allowed in pin.values
    )


def check_pin(key: str, value: object, pin: Pin, where: str) -> None:
    if pinned(value, pin):
        return
    allowed_text = " or ".join(json.dumps(v) for v in pin.values)
    raise ConfigError(
        f"{where} sets {key!r} to {short_json(value)}",
        expected=f"{allowed_text} ({pin.reason})",
        fix="use another model: pare does not support this",
    )


def unknown_key(key: str, known: set[str], where: str) -> ConfigError:
    near = difflib.get_close_matches(key, sorted(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "remove it if it has no meaning"
    return ConfigError(f"{where} has the unknown key {short_json(key)}", fix=hint)


def short_json(value: object, limit: int = 80) -> str:
    """`value` as JSON on one line, cut to `limit` characters."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def integer(values: Mapping[str, Any], key: str, where: str, low: int, high: int = 2**20) -> int:
    """The integer under `key`, between `low` and `high`, or a ConfigError."""
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise wrong_value(where, key, value, f"a whole number from {low} to {high}")
    return value


def number(values: Mapping[str, Any], key: str, where: str, low: float, high: float) -> float:
    """The finite number under `key`, between `low` and `high`, or a ConfigError."""
    value = values[key]
    good = isinstance(value, int | float) and not isinstance(value, bool)
    # In this order: a whole number may be too large for isfinite.
    if not good or not low <= value <= high or not math.isfinite(value):
        raise wrong_value(where, key, value, f"a number from {low} to {high}")
    return float(value)


def boolean(values: Mapping[str, Any], key: str, where: str) -> bool:
    """The boolean under `key`, or a ConfigError."""
    value = values[key]
    if not isinstance(value, bool):
        raise wrong_value(where, key, value, "true or false")
    return value


def one_of(values: Mapping[str, Any], key: str, where: str, options: tuple[str, ...]) -> str:
    """The string under `key`, one of `options`, or a ConfigError."""
    value = values[key]
    if not isinstance(value, str) or value not in options:
        raise wrong_value(where, key, value, f"one of {', '.join(options)}")
    return value


def per_stage(values: Mapping[str, Any], key: str, where: str, stages: int) -> tuple[int, ...]:
    """The integers under `key`, one per stage; a single integer stands for all stages."""
    value = values[key]
    listed = [value] * stages if isinstance(value, int) else value
    good = isinstance(listed, list | tuple) and len(listed) == stages
    if not good or not all(
        isinstance(v, int) and not isinstance(v, bool) and 1 <= v <= 2**16 for v in listed
    ):
        raise wrong_value(where, key, value, f"{stages} positive whole numbers, one per stage")
    return tuple(listed)


def wrong_value(where: str, key: str, value: object, expected: str) -> ConfigError:
    return ConfigError(f"{where} sets {key!r} to {short_json(value)}", expected=expected)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        ConfigError: not UTF-8, not JSON, nested too deeply, too large, or not an object.
        OSError: the file cannot be opened.
    """
    text = read_text(path)
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:  # numbers can be too long, too
        problem = f"{path} is not a JSON file ({error})"
        raise ConfigError(problem, fix="download it again") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds a JSON {type(raw).__name__}", expected="an object")
    return raw


def read_text(path: Path) -> str:
    """The text in `path`.

    Raises:
        ConfigError: not a regular file, not UTF-8, or far larger than any file of its kind.
        OSError: the file cannot be opened.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{path} is not a regular file", expected="a text file")
    if status.st_size > LARGEST_TEXT:
        raise ConfigError(
            f"{path} has {status.st_size} bytes", expected=f"a text file of at most {LARGEST_TEXT}"
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        problem = f"{path} is not a text file ({error})"
        raise ConfigError(problem, fix="download it again") from error


# What other models of the family read, by the UNet's number of input channels.
OTHER_INPUTS = {
    5: "SD 2's depth-to-image model",
    7: "the x4 upscaler",
    8: "InstructPix2Pix",
}

_SD1_DOWN = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
_SD1_UP = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3


@dataclass(frozen=True, repr=False)
class UNetConfig(HubConfig):
    """The architecture of a UNet: `unet/config.json` (class `UNet2DConditionModel`).

    A stage is a resolution: stage 0 is the latent grid itself, stage 1 half of its
    resolution, and so on.  Tuples with one entry per stage are in that order.
    """

    sample_size: tuple[int, int]
    """Latent height and width that the model was trained at (512 pixels are 64)."""
    in_channels: int
    """4; 9 for inpainting (noisy latents 4, mask 1, the masked image's latents 4)."""
    out_channels: int
    block_out_channels: tuple[int, ...]
    down_block_types: tuple[str, ...]
    """Level 0 first: `CrossAttnDownBlock2D` attends to the text, `DownBlock2D` does not."""
    up_block_types: tuple[str, ...]
    """The lowest resolution first, as the Hub has it."""
    layers_per_block: int
    cross_attention_dim: int
    """Width of the text embeddings: 768 for SD 1, 1024 for SD 2."""
    attention_head_dim: tuple[int, ...]
    """Misnamed on the Hub: the *number* of heads of each stage.  Read it as `heads`."""
    norm_num_groups: int
    norm_eps: float
    """Of the ResNet blocks and the output norm; the transformers' GroupNorm has 1e-6."""
    use_linear_projection: bool
    """How a transformer is entered and left: linear (SD 2) or 1x1 convolution (SD 1)."""
    upcast_attention: bool
    """Compute attention scores in float32: SD 2.1 overflows in float16 without it."""
    flip_sin_to_cos: bool
    freq_shift: float
    time_embedding_dim: int | None
    """Width of the time embedding; None is four times the first stage's."""
    time_cond_proj_dim: int | None
    """Width of the embedded guidance scale, which latent consistency models read; else None."""

    # A config that lacks a key means what the class meant when the file was written.
    HUB_DEFAULTS: ClassVar[Mapping[str, object]] = {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": _SD1_DOWN,
        "up_block_types": _SD1_UP,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "cross_attention_dim": 1280,
        "attention_head_dim": 8,
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "use_linear_projection": False,
        "upcast_attention": False,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "time_embedding_dim": None,
        "time_cond_proj_dim": None,
    }
    PINNED: ClassVar[Mapping[str, Pin]] = {
        "act_fn": Pin(("silu",), "every SD 1.x / 2.x UNet uses SiLU"),
        "center_input_sample": Pin((False,), "latents are centred already"),
        "dropout": Pin((0,), "dropout is a matter of training, and SD has none"),
        "downsample_padding": Pin((1,), "the UNet's strided convolutions pad by 1"),
        "mid_block_scale_factor": Pin((1,), "SD adds residuals unscaled"),
        "mid_block_type": Pin(("UNetMidBlock2DCrossAttn",), "SD's middle attends to the text"),
        "mid_block_only_cross_attention": Pin((None, False), "SD's blocks have self-attention"),
        "only_cross_attention": Pin((False,), "SD's blocks have self-attention too"),
        "dual_cross_attention": Pin((False,), "SD has one text encoder"),
        "num_attention_heads": Pin((None,), "the heads are under attention_head_dim"),
        "transformer_layers_per_block": Pin((1,), "more than one is SDXL's"),
        "reverse_transformer_layers_per_block": Pin((None,), "that is SDXL's"),
        "encoder_hid_dim": Pin((None,), "that is Kandinsky's and DeepFloyd's"),
        "encoder_hid_dim_type": Pin((None,), "that is Kandinsky's and DeepFloyd's"),
        "class_embed_type": Pin((None,), "that is the upscaler's and unCLIP's"),
        "num_class_embeds": Pin((None,), "that is the upscaler's"),
        "class_embeddings_concat": Pin((False,), "that is the audio models'"),
        "projection_class_embeddings_input_dim": Pin((None,), "that is SDXL's and unCLIP's"),
        "addition_embed_type": Pin((None,), "that is SDXL's"),
        "addition_time_embed_dim": Pin((None,), "that is SDXL's"),
        "resnet_time_scale_shift": Pin(("default",), "SD adds the time embedding"),
        "resnet_skip_time_act": Pin((False,), "that is DeepFloyd's"),
        "resnet_out_scale_factor": Pin((1,), "SD adds residuals unscaled"),
        "time_embedding_type": Pin(("positional",), "SD's timesteps are sines and cosines"),
        "time_embedding_act_fn": Pin((None,), "that is Kandinsky's"),
        "timestep_post_act": Pin((None,), "that is Kandinsky's"),
        "conv_in_kernel": Pin((3,), "SD's first convolution is 3x3"),
        "conv_out_kernel": Pin((3,), "SD's last convolution is 3x3"),
        "attention_type": Pin(("default",), "gated attention is GLIGEN's"),
        "cross_attention_norm": Pin((None,), "that is DeepFloyd's"),
    }
    UNUSED: ClassVar[frozenset[str]] = frozenset({"addition_embed_type_num_heads"})
    # Read by other kinds of blocks, by embeddings that are pinned to none, or in training.
    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset(
        """
        addition_time_embed_dim cross_attention_norm dropout mid_block_only_cross_attention
        projection_class_embeddings_input_dim resnet_out_scale_factor resnet_skip_time_act
        """.split()  # noqa: SIM905
    )
    # One value for all stages, which files may list stage by stage.
    ONE_FOR_ALL_STAGES: ClassVar[frozenset[str]] = frozenset(
        {"layers_per_block", "cross_attention_dim", "only_cross_attention",
         "transformer_layers_per_block"}
    )  # fmt: skip

    def __repr__(self) -> str:
        return f"UNetConfig(widths {self.block_out_channels}, text {self.cross_attention_dim})"

    @property
    def inpaints(self) -> bool:
        """Whether the UNet reads a mask and the masked image's latents beside x_t."""
        return self.in_channels == 2 * self.out_channels + 1

    def check_inputs(self, where: str) -> None:
        """Raise a ModelError unless the UNet reads latents, or what an inpainting model does.

        `where` names the model; the error says which other model this probably is.
        """
        if self.in_channels == self.out_channels or self.inpaints:
            return
        family = OTHER_INPUTS.get(self.in_channels, "of an unknown kind")
        raise ModelError(
            f"{where} is {family}: its UNet reads {self.in_channels} channels",
            expected=f"{self.out_channels} (latents), or {2 * self.out_channels + 1} "
            "(inpainting: latents, mask, the masked image's latents)",
        )

    @property
    def heads(self) -> tuple[int, ...]:
        """The number of attention heads of each stage."""
        return self.attention_head_dim

    @property
    def time_channels(self) -> int:
        """Width of the time embedding that every ResNet block receives."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    @classmethod
    def usual_value(cls, key: str, value: object, raw: Mapping[str, Any]) -> object:
        match key, value:
            case "sample_size", None:
                return cls.HUB_DEFAULTS[key]
            case "act_fn", str():
                return usual_activation(value)
            case "down_block_types" | "up_block_types", [*names]:
                return [usual_block_name(name) for name in names]
            case "reverse_transformer_layers_per_block", [_, *_] if all_one(value):
                return None
        if key in cls.ONE_FOR_ALL_STAGES and isinstance(value, list):
            stages = raw.get("block_out_channels", cls.HUB_DEFAULTS["block_out_channels"])
            if isinstance(stages, list | tuple) and len(value) == len(stages):
                value = value[0] if all(one == value[0] for one in value) else value
        return super().usual_value(key, value, raw)

    @classmethod
    def normalise(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
        stages = stage_count(values, where)
        values["block_out_channels"] = per_stage(values, "block_out_channels", where, stages)
        values["attention_head_dim"] = per_stage(values, "attention_head_dim", where, stages)
        values["sample_size"] = per_stage(values, "sample_size", where, 2)
        for key, types in (
            ("down_block_types", ("CrossAttnDownBlock2D", "DownBlock2D")),
            ("up_block_types", ("CrossAttnUpBlock2D", "UpBlock2D")),
        ):
            values[key] = block_types(values, key, where, stages, types)
        integer(values, "in_channels", where, 1, 64)
        integer(values, "out_channels", where, 1, 64)
        integer(values, "layers_per_block", where, 1, 16)
        integer(values, "cross_attention_dim", where, 1, 2**16)
        for key in ("time_embedding_dim", "time_cond_proj_dim"):
            if values[key] is not None:
                integer(values, key, where, 2, 2**16)
        values["norm_eps"] = number(values, "norm_eps", where, 0, 1)
        values["freq_shift"] = number(values, "freq_shift", where, -1, 1)
        for key in ("use_linear_projection", "upcast_attention", "flip_sin_to_cos"):
            boolean(values, key, where)
        check_groups(values, where)
        for channels, heads in zip(
            values["block_out_channels"], values["attention_head_dim"], strict=True
        ):
            if channels % heads:
                problem = f"{where} splits {channels} channels into {heads} heads"
                raise ConfigError(problem, expected="a number of heads that divides the width")
        return values


@dataclass(frozen=True, repr=False)
class VAEConfig(HubConfig):
    """The architecture of a VAE: `vae/config.json` (class `AutoencoderKL`)."""

    in_channels: int
    out_channels: int
    latent_channels: int
    block_out_channels: tuple[int, ...]
    """Widths from the image's resolution down; each further stage halves the resolution."""
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    layers_per_block: int
    """ResNet blocks per stage of the encoder; the decoder has one more."""
    norm_num_groups: int
    sample_size: tuple[int, int]
    """Image height and width that the model was trained at, in pixels."""
    scaling_factor: float
    """Latents are multiplied by this so that the UNet sees unit variance: 0.18215 for SD."""

    # SD 1.4's file has neither `scaling_factor` nor `norm_num_groups`.
    HUB_DEFAULTS: ClassVar[Mapping[str, object]] = {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": (64,),
        "down_block_types": ("DownEncoderBlock2D",),
        "up_block_types": ("UpDecoderBlock2D",),
        "layers_per_block": 1,
        "norm_num_groups": 32,
        "sample_size": 32,
        "scaling_factor": 0.18215,
    }
    PINNED: ClassVar[Mapping[str, Pin]] = {
        "act_fn": Pin(("silu",), "every SD 1.x / 2.x VAE uses SiLU"),
        "shift_factor": Pin((None, 0), "shifted latents are SD 3's and Flux's"),
        "latents_mean": Pin((None,), "shifted latents are SD 3's and Flux's"),
        "latents_std": Pin((None,), "shifted latents are SD 3's and Flux's"),
        "use_quant_conv": Pin((True,), "a VAE without it is SD 3's or Flux's"),
        "use_post_quant_conv": Pin((True,), "a VAE without it is SD 3's or Flux's"),
        "mid_block_add_attention": Pin((True,), "SD's VAE attends in the middle"),
    }
    # `force_upcast` is read by SDXL's pipelines only.
    UNUSED: ClassVar[frozenset[str]] = frozenset({"force_upcast"})
    # Read by other models' pipelines: SD's multiplies latents by the scaling factor alone.
    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset(
        {"shift_factor", "latents_mean", "latents_std"}
    )

    def __repr__(self) -> str:
        return f"VAEConfig(widths {self.block_out_channels}, latents {self.latent_channels})"

    @property
    def factor(self) -> int:
        """Pixels along a side of one latent: 8 for SD."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @classmethod
    def usual_value(cls, key: str, value: object, raw: Mapping[str, Any]) -> object:
        match key, value:
            case "sample_size", None:
                return cls.HUB_DEFAULTS[key]
            case "act_fn", str():
                return usual_activation(value)
            case "down_block_types" | "up_block_types", [*names]:
                return [usual_block_name(name) for name in names]
        return super().usual_value(key, value, raw)

    @classmethod
    def normalise(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
        stages = stage_count(values, where)
        values["block_out_channels"] = per_stage(values, "block_out_channels", where, stages)
        values["sample_size"] = per_stage(values, "sample_size", where, 2)
        for key, types in (
            ("down_block_types", ("DownEncoderBlock2D",)),
            ("up_block_types", ("UpDecoderBlock2D",)),
        ):
            values[key] = block_types(values, key, where, stages, types)
        for key in ("in_channels", "out_channels", "latent_channels"):
            integer(values, key, where, 1, 64)
        integer(values, "layers_per_block", where, 1, 16)
        values["scaling_factor"] = number(values, "scaling_factor", where, 1e-6, 1e6)
        check_groups(values, where)
        return values


@dataclass(frozen=True)
class TextConfig(HubConfig):
    """The architecture of the text encoder: `text_encoder/config.json` (`CLIPTextModel`)."""

    vocab_size: int
    hidden_size: int
    """Width of the embeddings, the UNet's `cross_attention_dim`."""
    intermediate_size: int
    num_hidden_layers: int
    """12 for SD 1; 23 for SD 2, which leaves out the last of OpenCLIP's 24."""
    num_attention_heads: int
    max_position_embeddings: int
    """Tokens a prompt, its start and its end included: 77."""
    hidden_act: str
    layer_norm_eps: float
    bos_token_id: int
    eos_token_id: int
    """Where the encoder's pooled output is read, which Stable Diffusion does not use."""
    pad_token_id: int

    # What transformers' class meant by an absent key when SD 1 was published.
    HUB_DEFAULTS: ClassVar[Mapping[str, object]] = {
        "vocab_size": 49408,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }

    PINNED: ClassVar[Mapping[str, Pin]] = {
        "model_type": Pin(("clip_text_model",), "SD's text encoder is CLIP's alone"),
        "pruned_heads": Pin(({}, None), "SD's text encoder has all its heads"),
        "is_decoder": Pin((False,), "SD's text encoder writes no text"),
        "is_encoder_decoder": Pin((False,), "SD's text encoder writes no text"),
        "add_cross_attention": Pin((False,), "SD's text encoder sees text alone"),
        "quantization_config": Pin((None,), "pare reads plain numbers"),
    }
    # What transformers writes into the file of any model, over the years: how to train it, what
    # to return from a call, how to write text with it.  None of it changes the embeddings.
    UNUSED: ClassVar[frozenset[str]] = frozenset(
        """
        architectures attention_dropout dropout initializer_factor initializer_range
        projection_dim transformers_version name_or_path
        torch_dtype dtype use_bfloat16 torchscript tf_legacy_loss gradient_checkpointing
        attn_implementation auto_map chunk_size_feed_forward use_cache
        output_attentions output_hidden_states output_scores return_dict return_dict_in_generate
        tie_word_embeddings tie_encoder_decoder cross_attention_hidden_size
        finetuning_task id2label label2id num_labels problem_type task_specific_params
        tokenizer_class prefix sep_token_id decoder_start_token_id
        max_length min_length do_sample early_stopping num_beams num_beam_groups
        diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
        no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
        forced_bos_token_id forced_eos_token_id remove_invalid_values
        exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
        """.split()  # noqa: SIM905 - one name a line would fill a screen
    )

    @classmethod
    def normalise(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
        for key in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"):
            integer(values, key, where, 1)
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            integer(values, key, where, 0, values["vocab_size"] - 1)
        integer(values, "num_hidden_layers", where, 1, 1000)
        integer(values, "max_position_embeddings", where, 3, 1000)  # start, a token, end
        one_of(values, "hidden_act", where, ("quick_gelu", "gelu"))
        values["layer_norm_eps"] = number(values, "layer_norm_eps", where, 0, 1)
        if values["hidden_size"] % values["num_attention_heads"]:
            raise ConfigError(
                f"{where} splits {values['hidden_size']} channels into "
                f"{values['num_attention_heads']} heads",
                expected="a number of heads that divides the width",
            )
        return values


def usual_activation(name: str) -> str:
    """`Swish` and `SiLU` are one function by two names."""
    return "silu" if name.lower() in ("silu", "swish") else name


def usual_block_name(name: object) -> object:
    """`UNetResDownBlock2D`, in files of 2022, is `DownBlock2D`."""
    return name.removeprefix("UNetRes") if isinstance(name, str) else name


def all_one(value: object) -> bool:
    """Whether `value` is 1, or a list of lists of such."""
    if isinstance(value, list):
        return all(map(all_one, value))
    return value == 1 and not isinstance(value, bool)


def stage_count(values: Mapping[str, Any], where: str) -> int:
    """How many resolutions the model has: the length of `block_out_channels`."""
    widths = values["block_out_channels"]
    if not isinstance(widths, list | tuple) or not 1 <= len(widths) <= 8:
        raise wrong_value(where, "block_out_channels", widths, "a list of 1 to 8 widths")
    return len(widths)


def block_types(
    values: Mapping[str, Any], key: str, where: str, stages: int, types: tuple[str, ...]
) -> tuple[str, ...]:
    """The names under `key`, one per stage, each one of `types`."""
    value = values[key]
    good = isinstance(value, list | tuple) and len(value) == stages
    if not good or not all(isinstance(name, str) and name in types for name in value):
        raise wrong_value(where, key, value, f"{stages} names out of {', '.join(types)}")
    return tuple(value)


def check_groups(values: Mapping[str, Any], where: str) -> None:
    """GroupNorm needs widths that its number of groups divides."""
    groups = integer(values, "norm_num_groups", where, 1)
    for width in values["block_out_channels"]:
        if width % groups:
            problem = f"{where} normalises {width} channels in {groups} groups"
            raise ConfigError(problem, expected="a norm_num_groups that divides every width")
