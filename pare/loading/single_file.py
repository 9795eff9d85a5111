"""A model in one file, as model sites share them, to what the Hub's folder would hold.

Every tensor of the file gets an answer: it is a weight of the UNet, of the VAE or of the
text encoder; or it is not needed, and why; or it is unexpected, and then nothing is
loaded.  `inventory` is that list; `load_single_file` acts on it.  No number is copied:
the result's tensors are views of the mapped file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pare.config import UNetConfig, VAEConfig
from pare.errors import ModelError, SettingError, WeightsError
from pare.loading import ldm_names
from pare.loading.checkpoint import Checkpoint, open_checkpoint
from pare.loading.ldm_names import Place, Shape, Shapes
from pare.unet import UNet
from pare.vae import AutoencoderKL

PARTS = ("unet", "vae", "text_encoder")
PREDICTIONS = {"eps": "epsilon", "epsilon": "epsilon", "v": "v_prediction",
               "v_prediction": "v_prediction"}  # fmt: skip

# A tensor that every file with the part has, and what may stand before its name.
LANDMARKS = {
    "unet": ("input_blocks.0.0.weight", ("model.diffusion_model.", "")),
    "vae": ("encoder.down.0.block.0.conv1.weight", ("first_stage_model.", "")),
    "clip": (
        "embeddings.token_embedding.weight",
        ("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."),
    ),
    "open_clip": ("token_embedding.weight", ("cond_stage_model.model.",)),
}

# What a file is if it has a tensor whose name matches, the surest signs first.
OTHER_MODELS = (
    (r"(lora_(unet|te)|.*\.(lora_|hada_|lokr_|oft_))", "a LoRA: a change to a model, not a model"),
    (r"(control_model\.|input_hint_block\.|controlnet_cond_embedding\.)", "a ControlNet"),
    (r"conditioner\.embedders\.", "Stable Diffusion XL"),
    (r".*\bjoint_blocks\.", "Stable Diffusion 3"),
    (r".*\bdouble_blocks\.", "Flux"),
    (r".*motion_modules\.", "an AnimateDiff motion module"),
    (r".*\.fuser\.", "a GLIGEN model"),
    (r"(ip_adapter|image_proj)\.", "an IP-Adapter"),
    (r"(emb_params|string_to_param|clip_[lg])$", "a textual-inversion embedding"),
    (r"model\.diffusion_model\.label_emb\.0\.0\.", "Stable Diffusion XL or unCLIP"),
    (r"label_emb\.0\.0\.", "Stable Diffusion XL's or unCLIP's UNet"),
    (r"(model\.diffusion_model\.)?label_emb\.weight", "the x4 upscaler"),
    (r"(embedder|cc_projection)\.", "a model that is conditioned on images"),
    (r"(clip_txt_mapper|.*\bchannelwise)\b", "Stable Cascade"),
    (r"(encoder\.block\.0\.layer\.0\.SelfAttention|model\.layers\.\d+\.self_attn)\.",
     "a language model"),
    (r"(conv_first|body\.0\.rdb1|model\.0\.weight|params_ema)", "an image upscaler"),
    (r"vision_model\.|visual\.", "a CLIP image encoder"),
    (r"(down_blocks\.0\.resnets|mid_block\.attentions)\.",
     "the UNet of a model's folder on the Hub; name the folder"),
    (r"(en|de)coder\.mid_block\.", "the VAE of a model's folder on the Hub; name the folder"),
    (r"(text_model\.)?(embeddings|encoder\.layers)\.",
     "the text encoder of a model's folder on the Hub; name the folder"),
)  # fmt: skip

# What a file may hold beside the weights, and why it is not needed.
NOT_NEEDED = (
    (r"(betas|(log_one_minus_)?alphas_cumprod\w*|sqrt_\w+|posterior_\w+|lvlb_weights|logvar)$",
     "the noise schedule, which the scheduler's config says"),
    (r"model_ema\.(decay|num_updates)$", "the moving average's own counters"),
    (r"(first_stage_model\.)?loss\.", "the loss that the VAE was trained with"),
    (r"(first_stage_model\.)?model_ema\.", "the VAE's other copy"),
    (r"cond_stage_model\.(model\.)?logit_scale$", "CLIP's temperature, for comparing images"),
    (r"cond_stage_model\.model\.text_projection$", "CLIP's head, for comparing images"),
    (r"cond_stage_model\.model\.attn_mask$", "the causal mask, made anew"),
    (r"cond_stage_model\.transformer\.(text_model\.)?embeddings\.position_ids$",
     "the numbers 0 to 76"),
    (r"(v_pred|ztsnr|scale_factor)$", "a note, read"),
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """The UNet, the VAE or the text encoder, as the Hub has it."""

    config: Mapping[str, Any]
    """The JSON object of its config.json."""
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class SingleFile:
    """All that a single file says."""

    path: Path
    kind: str
    """"SD 1" or "SD 2": which text encoder, and with it which tokenizer's padding."""
    parts: Mapping[str, Part]
    """"unet", "vae" and "text_encoder"; fewer if the file has fewer."""
    scheduler_config: Mapping[str, Any]
    notes: tuple[str, ...]
    """What was found or chosen, each in a sentence."""
    guess: str = ""
    """What was guessed and may be wrong, and what to do then."""


@dataclass(frozen=True)
class Row:
    """What one tensor of the file is: one line of `pare convert --check`."""

    name: str
    shape: Shape
    dtype: str
    status: str
    """"ok", "missing", "wrong shape: …", "wrong type", "unexpected" or "not needed: …"."""

    @property
    def fine(self) -> bool:
        return self.status == "ok" or self.status.startswith("not needed")


@dataclass(frozen=True)
class Outline:
    """A part of the file before its tensors are looked at."""

    config: Mapping[str, Any]
    shapes: Shapes
    """The Hub's names, and the shapes that the config asks for."""
    places: Mapping[str, Place]
    """The Hub's names, and where in the file they are."""


@dataclass(frozen=True)
class Plan:
    """What a file is made of, and which of it is used."""

    checkpoint: Checkpoint
    kind: str
    outlines: Mapping[str, Outline]
    dropped: tuple[tuple[str, str], ...] = ()
    """(pattern of names, why they are not needed), beside `NOT_NEEDED`."""
    notes: tuple[str, ...] = field(default=())


# --- from a file to its parts -------------------------------------------------------------


def load_single_file(
    path: Path,
    *,
    ema: bool | None = None,
    prediction: str | None = None,
    only: str | None = None,
    drop: Iterable[str] = (),
) -> SingleFile:
    """Read a Stable Diffusion 1.x / 2.x checkpoint into the Hub's names, without copies.

    Args:
        ema: the UNet's moving average (True), the last step's weights (False), or the
            average where there is one (None), which files for inference hold alone.
        prediction: "eps" or "v"; None guesses, and `notes` says how.
        only: "unet" or "vae" accepts a file with just this part.
        drop: beginnings of names that are not to be looked at.

    Raises:
        ModelError: the file is another kind of model, and which.
        WeightsError: it is damaged, or has missing, unexpected or misshapen tensors.
        ConfigError: an architecture that pare does not run.
    """
    plan = make_plan(open_checkpoint(path), ema=ema, only=only, drop=tuple(drop))
    check_rows(path, inventory(plan))
    tensors = plan.checkpoint.tensors
    parts = {
        name: Part(
            outline.config,
            {hub: place.take(tensors[place.name]) for hub, place in outline.places.items()},
        )
        for name, outline in plan.outlines.items()
    }
    if "unet" not in parts:
        return SingleFile(path, plan.kind, parts, {}, plan.notes)
    chosen, reason, sure = choose_prediction(plan, parts["unet"], prediction)
    scheduler, schedule_notes = scheduler_config(plan.checkpoint, chosen)
    parts = trained_size(parts, 768 if chosen == "v_prediction" else 512)
    found = f"the model predicts {chosen}: {reason}"
    other = "eps" if chosen == "v_prediction" else "v"
    advice = f"if its images are noise, `pare convert --prediction {other}`"
    guess = "" if sure else f"{found}; {advice}"
    notes = (*plan.notes, guess or found, *schedule_notes)
    return SingleFile(path, plan.kind, parts, scheduler, notes, guess)


def make_plan(
    checkpoint: Checkpoint, *, ema: bool | None, only: str | None, drop: tuple[str, ...] = ()
) -> Plan:
    """Find the parts of a file and their architecture."""
    shapes = {name: s for name, s in checkpoint.shapes.items() if not name.startswith(drop or "\0")}
    checkpoint = Checkpoint(
        checkpoint.path, {name: checkpoint.tensors[name] for name in shapes}, checkpoint.extras
    )
    prefixes = {part: find_prefix(shapes, part) for part in LANDMARKS}
    check_kind(checkpoint, prefixes, only)
    dropped: list[tuple[str, str]] = []
    notes: list[str] = []
    outlines: dict[str, Outline] = {}
    if prefixes["unet"] is not None and only in (None, "unet"):
        outlines["unet"], how = outline_unet(shapes, prefixes["unet"], ema, checkpoint.path)
        dropped += [(r"model_ema\.", "the moving average")] if how == "last" else []
        dropped += [(r"model\.diffusion_model\.", "the last step's")] if how == "average" else []
        notes += ["the UNet's weights are the moving average's"] if how == "average" else []
    if prefixes["vae"] is not None and only in (None, "vae"):
        outlines["vae"] = outline_vae(shapes, prefixes["vae"], checkpoint)
    if only is None:
        outlines["text_encoder"], more = outline_text(checkpoint, prefixes)
        dropped += more
    else:
        dropped += [(".", f"--only {only}")]
    kind = "SD 2" if prefixes["open_clip"] is not None else "SD 1"
    return Plan(checkpoint, kind, outlines, tuple(dropped), tuple(notes))


def find_prefix(shapes: Shapes, part: str) -> str | None:
    landmark, prefixes = LANDMARKS[part]
    return next((prefix for prefix in prefixes if prefix + landmark in shapes), None)


def without_prefix(shapes: Shapes, prefix: str) -> dict[str, Shape]:
    return {name[len(prefix) :]: s for name, s in shapes.items() if name.startswith(prefix)}


def outline_unet(shapes: Shapes, prefix: str, ema: bool | None, path: Path) -> tuple[Outline, str]:
    """The UNet, and whose weights are taken: "average", "last", or "only" if there is no choice."""
    averaged = ldm_names.ema_name("input_blocks.0.0.weight") in shapes
    if ema and not averaged:
        raise WeightsError(f"{path} has no moving average (model_ema.…)", fix="leave out --ema")
    use_average = averaged if ema is None else ema
    config = ldm_names.read_unet(without_prefix(shapes, prefix))
    read = UNetConfig.read(config, f"{path} (unet)")
    read.check_inputs(str(path))
    with torch.device("meta"):
        wanted = shapes_of(UNet(read))
    places = {}
    for name in wanted:
        original = ldm_names.unet_name(name, read)
        places[name] = Place(ldm_names.ema_name(original) if use_average else prefix + original)
    how = ("average" if use_average else "last") if averaged else "only"
    return Outline(config, wanted, places), how


def outline_vae(shapes: Shapes, prefix: str, checkpoint: Checkpoint) -> Outline:
    config = ldm_names.read_vae(without_prefix(shapes, prefix))
    scale = checkpoint.tensors.get("scale_factor")
    if scale is not None and scale.numel() == 1:
        config["scaling_factor"] = float(scale)
    read = VAEConfig.read(config, f"{checkpoint.path} (vae)")
    with torch.device("meta"):
        wanted = shapes_of(AutoencoderKL(read))
    levels = len(read.block_out_channels)
    return Outline(
        config, wanted, prefixed(wanted, prefix, lambda n: ldm_names.vae_place(n, levels))
    )


def outline_text(
    checkpoint: Checkpoint, prefixes: Mapping[str, str | None]
) -> tuple[Outline, list[tuple[str, str]]]:
    """The text encoder, and what of OpenCLIP's is not needed."""
    shapes, open_clip = checkpoint.shapes, prefixes["open_clip"]
    if open_clip is not None:
        config = ldm_names.read_text(without_prefix(shapes, open_clip), open_clip=True)
        wanted = ldm_names.text_shapes(config)
        last = rf"{re.escape(open_clip)}transformer\.resblocks\.{config['num_hidden_layers']}\."
        dropped = [(last, "OpenCLIP's last layer: SD 2 reads the one before")]
        return Outline(
            config, wanted, prefixed(wanted, open_clip, ldm_names.open_clip_place)
        ), dropped
    prefix = str(prefixes["clip"]).removesuffix("text_model.")
    stem = "" if str(prefixes["clip"]).endswith("text_model.") else "text_model."
    bare = {stem + name: shape for name, shape in without_prefix(shapes, prefix).items()}
    config = ldm_names.read_text(bare, open_clip=False)
    wanted = ldm_names.text_shapes(config)
    ids = checkpoint.tensors.get(prefix + ldm_names.POSITION_IDS.removeprefix(stem))
    if ids is not None and ids.dtype == torch.int64 and ids.shape == (1, counted(config)):
        wanted[ldm_names.POSITION_IDS] = tuple(ids.shape)
    return Outline(config, wanted, prefixed(wanted, prefix, lambda n: Place(n[len(stem) :]))), []


def counted(config: Mapping[str, Any]) -> int:
    return int(config["max_position_embeddings"])


def prefixed(names: Iterable[str], prefix: str, place: Callable[[str], Place]) -> dict[str, Place]:
    found = {name: place(name) for name in names}
    return {n: Place(prefix + p.name, p.third, p.convolution) for n, p in found.items()}


def shapes_of(module: torch.nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


# --- what a file is -----------------------------------------------------------------------


def check_kind(
    checkpoint: Checkpoint, prefixes: Mapping[str, str | None], only: str | None
) -> None:
    """Raise, and say what the file is, unless it is a Stable Diffusion 1.x / 2.x model."""
    path, shapes = checkpoint.path, checkpoint.shapes
    if only is not None and only not in ("unet", "vae"):
        raise SettingError(f"--only is {only!r}", expected="unet or vae")
    what = name_model([*shapes, *checkpoint.extras])
    embedding = len(shapes) <= 2 and all(len(shape) <= 2 for shape in shapes.values())
    if what is None and embedding and prefixes["unet"] is None and shapes:
        what = "a textual-inversion embedding"
    if what is None and (*shapes.get("decoder.conv_in.weight", ()), 0, 0)[1] == 16:
        what = "Flux's or Stable Diffusion 3's VAE"
    if what is not None:
        raise ModelError(f"{path} is {what}", expected="a Stable Diffusion 1.x or 2.x checkpoint")
    text = prefixes["clip"] is not None or prefixes["open_clip"] is not None
    found = {"unet": prefixes["unet"] is not None, "vae": prefixes["vae"] is not None,
             "text encoder": text}  # fmt: skip
    if only is not None and found[only]:
        return
    missing = [part for part, there in found.items() if not there]
    if not missing:
        return
    if len(missing) == 3:
        some = ", ".join(sorted(shapes)[:3]) or "none"
        raise ModelError(
            f"{path} is no model that pare knows ({len(shapes)} tensors: {some} …)",
            expected="a Stable Diffusion 1.x or 2.x checkpoint",
        )
    has = " and ".join(part for part, there in found.items() if there)
    raise ModelError(
        f"{path} has a {has} and no {' and no '.join(missing)}",
        expected="a whole model",
        fix="convert a UNet or a VAE alone with `pare convert --only unet` or `--only vae`",
    )


def name_model(names: Iterable[str]) -> str | None:
    """What a file with these tensors is, if it is one of `OTHER_MODELS`."""
    listed = list(names)
    for pattern, words in OTHER_MODELS:
        match = re.compile(pattern).match
        if any(match(name) for name in listed):
            return words
    return None


# --- every tensor gets an answer ----------------------------------------------------------


def inventory(plan: Plan) -> list[Row]:
    """A row for every tensor of the file, and for every one that should be there."""
    tensors = plan.checkpoint.tensors
    wanted: dict[str, tuple[Shape, Place, bool]] = {}
    for outline in plan.outlines.values():
        for hub, place in outline.places.items():
            integers = hub == ldm_names.POSITION_IDS
            wanted[place.name] = (outline.shapes[hub], place, integers)
    rows = [
        Row(name, place.shape(shape), "", "missing")
        for name, (shape, place, _) in wanted.items()
        if name not in tensors
    ]
    for name, tensor in tensors.items():
        status = judge(tensor, *wanted[name]) if name in wanted else reason(name, plan)
        rows.append(Row(name, tuple(tensor.shape), dtype_name(tensor), status))
    return sorted(rows, key=lambda row: row.name)


def judge(tensor: Tensor, shape: Shape, place: Place, integers: bool) -> str:
    """What is wrong with a tensor that should have the Hub's `shape`, or "ok"."""
    expected = place.shape(shape)
    # Some VAEs came through a converter and hold attention's projections as matrices.
    if tuple(tensor.shape) not in ((expected, shape) if place.convolution else (expected,)):
        return f"wrong shape: expected {' '.join(map(str, expected))}"
    if not integers and not tensor.is_floating_point():
        return "wrong type: expected floating-point numbers"
    return "ok"


def reason(name: str, plan: Plan) -> str:
    """Why a tensor that is no weight of the model may be there, or "unexpected"."""
    for pattern, words in (*NOT_NEEDED, *plan.dropped):
        if re.match(pattern, name):
            return f"not needed: {words}"
    return "unexpected"


def check_rows(path: Path, rows: list[Row]) -> None:
    """Raise one table of everything that is wrong, or return."""
    wrong = [row for row in rows if not row.fine]
    if not wrong:
        return
    table = [f"  {row.status:12} {row.name}  {' '.join(map(str, row.shape))}" for row in wrong]
    table.sort()
    if len(table) > 20:
        table = [*table[:20], f"  … and {len(table) - 20} more"]
    strange = {row.name.split(".")[0] for row in wrong if row.status == "unexpected"}
    raise WeightsError(
        f"{path} differs from its architecture in {len(wrong)} tensors",
        fix=f"if you know that they do not matter, --drop {min(strange)}"
        if strange and all(row.status == "unexpected" for row in wrong) and not path.is_dir()
        else "",
        table=table,
    )


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


# --- what no tensor of a model says -------------------------------------------------------


def choose_prediction(plan: Plan, unet: Part, prediction: str | None) -> tuple[str, str, bool]:
    """What the UNet predicts, "epsilon" or "v_prediction"; how that is known; how surely."""
    if prediction is not None:
        if prediction not in PREDICTIONS:
            raise SettingError(f"--prediction is {prediction!r}", expected="eps or v")
        return PREDICTIONS[prediction], "as asked", True
    noted = noted_prediction(plan)
    return (*noted, True) if noted is not None else (*ask_unet(unet), False)


def noted_prediction(plan: Plan) -> tuple[str, str] | None:
    """What the UNet predicts, and how that is known, if the file tells without its weights."""
    extras, tensors = plan.checkpoint.extras, plan.checkpoint.tensors
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):
        noted = str(extras.get(key, "")).lower()
        if noted in PREDICTIONS:
            return PREDICTIONS[noted], f"the file's metadata says so ({key})"
    if "v_pred" in tensors:
        return "v_prediction", "the file carries the mark v_pred"
    if plan.kind == "SD 1":
        return "epsilon", "SD 1 models do"
    if extras.get("global_step") == 875_000:  # the SD 2.0 base model's number of steps
        return "epsilon", "its 875000 training steps are those of the SD 2 base model"
    return None


@torch.no_grad()
def ask_unet(part: Part) -> tuple[str, str]:
    """SD 2 came as eps and as v: show the UNet almost pure noise, and see whether it says so.

    At t = 999, alpha_bar is 0.0047, so x_t is nearly eps.  A UNet that predicts eps
    answers nearly its input; one that predicts v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar)
    x0 (arXiv:2202.00512, appendix D) answers an image, which the noise does not resemble.
    """
    with torch.device("meta"):
        unet = UNet(UNetConfig.read(part.config, "the checkpoint's UNet"))
    unet.load_state_dict(dict(part.tensors), strict=True, assign=True)
    dtype = unet.conv_in.weight.dtype
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return "v_prediction", f"most SD 2 models do, and {dtype} cannot be tried"
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((1, unet.config.out_channels, 16, 16), generator=generator)
    inputs = noise
    if unet.config.inpaints:  # all is to be painted, and of the image nothing is to be seen
        inputs = torch.cat([noise, torch.ones_like(noise[:, :1]), torch.zeros_like(noise)], dim=1)
    text = torch.zeros(1, 77, unet.config.cross_attention_dim, dtype=dtype)
    answer = unet.eval()(inputs.to(dtype), 999, text).float()
    pair = torch.stack([answer.flatten(), noise.flatten()])
    likeness = float(torch.corrcoef(pair)[0, 1])
    how = f"shown pure noise, its answer and the noise correlate by {likeness:.2f}"
    return ("epsilon" if likeness > 0.5 else "v_prediction"), how


def scheduler_config(checkpoint: Checkpoint, prediction: str) -> tuple[dict[str, Any], list[str]]:
    """The Hub's `scheduler_config.json`: SD's own schedule unless the file has another."""
    config: dict[str, Any] = {
        "_class_name": "DDIMScheduler" if prediction == "v_prediction" else "PNDMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": prediction,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    }
    if "ztsnr" in checkpoint.tensors:
        zero_snr = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        config |= zero_snr | {"_class_name": "DDIMScheduler"}
        return config, ["its noise schedule ends at zero signal (the mark ztsnr)"]
    stored = checkpoint.tensors.get("betas")
    if stored is None or stored.ndim != 1 or not 0 < stored.numel() <= 100_000:
        return config, []
    betas = stored.double()
    standard = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    # Half-precision files hold the betas in half precision too.
    if betas.shape == standard.shape and torch.allclose(betas, standard, rtol=5e-3):
        return config, []
    config |= {"num_train_timesteps": betas.numel(), "trained_betas": betas.tolist()}
    return config, ["its noise schedule is its own: the betas in the file"]


def trained_size(parts: Mapping[str, Part], pixels: int) -> dict[str, Part]:
    """The parts, with the size of the images that the model was trained on."""
    sizes = {"vae": pixels, "unet": pixels // 8}
    return {
        name: Part({**part.config, "sample_size": sizes[name]}, part.tensors)
        if name in sizes
        else part
        for name, part in parts.items()
    }


# --- the tokenizer, which no single file has ----------------------------------------------

CLIP_TOKENIZER = Path(__file__).parents[1] / "data" / "clip"
"""CLIP's vocabulary, under OpenAI's licence (MIT, beside it)."""

START, END = "<|startoftext|>", "<|endoftext|>"
PADDING = {"SD 1": END, "SD 2": "!"}
"""SD 2 was trained with OpenCLIP's padding, id 0, which happens to be an exclamation mark."""


def tokenizer_config(kind: str) -> dict[str, Any]:
    """The Hub's `tokenizer_config.json`."""
    return {
        "add_prefix_space": False,
        "bos_token": START,
        "do_lower_case": True,
        "eos_token": END,
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": PADDING[kind],
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": END,
    }


def tokenizer_files(kind: str, vocabulary: int, folder: Path | None = None) -> dict[str, bytes]:
    """What the Hub's `tokenizer/` holds: the files of `folder`, or CLIP's own.

    Args:
        vocabulary: how many tokens the text encoder knows.

    Raises:
        ModelError: the folder lacks a file, or CLIP's tokens are not the model's.
    """
    if folder is None and vocabulary != 49_408:
        raise ModelError(
            f"the text encoder knows {vocabulary} tokens and CLIP has 49408",
            fix="pass the model's own tokenizer: --tokenizer FOLDER",
        )
    place = folder or CLIP_TOKENIZER
    if folder is not None and (folder / "tokenizer").is_dir():
        place = folder / "tokenizer"  # a model's whole folder was named
    files = {}
    # transformers 5 reads tokenizer.json alone if it is there, transformers 4 the other two.
    whole = (place / "tokenizer.json").is_file()
    for name in ("vocab.json", "merges.txt"):
        if (place / name).is_file():
            files[name] = (place / name).read_bytes()
        elif not whole:
            raise ModelError(f"{place} has no {name}", expected="a tokenizer's folder")
    if whole:
        files["tokenizer.json"] = (place / "tokenizer.json").read_bytes()
    config = json.dumps(tokenizer_config(kind), indent=2).encode() + b"\n"
    files["tokenizer_config.json"] = config
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if folder is not None and (place / name).is_file():
            files[name] = (place / name).read_bytes()
    return files
