"""A model in one file, as model sites share them, to what the Hub's folder would hold.

Each tensor of the file is classified: a weight of the UNet, of the VAE or of the text
encoder; not needed, with the reason; or unexpected, and then nothing is loaded.
`inventory` makes that list, and `load_single_file` acts on it.  Nothing is copied: the
result's tensors are views of the mapped file.
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

from pare.config import TextConfig, UNetConfig, VAEConfig
from pare.errors import ModelError, WeightsError
from pare.loading import hub_names, ldm_names
from pare.loading.checkpoint import Checkpoint, open_checkpoint
from pare.loading.file_kinds import LANDMARKS, check_kind, find_prefix
from pare.loading.ldm_names import Place, Shape, Shapes
from pare.loading.prediction import choose_prediction, scheduler_config
from pare.runtime.device import dtype_name
from pare.runtime.short_repr import short_repr
from pare.text.clip import TextEncoder
from pare.unet import UNet
from pare.vae import AutoencoderKL

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
class StoredPart:
    """The UNet, the VAE or the text encoder, as the Hub has it."""

    config: Mapping[str, Any]
    """The JSON object of its config.json."""
    tensors: Mapping[str, Tensor]

    __repr__ = short_repr


@dataclass(frozen=True)
class SingleFile:
    """All that a single file says."""

    path: Path
    kind: str
    """"SD 1" or "SD 2": which text encoder, and with it which tokenizer's padding."""
    parts: Mapping[str, StoredPart]
    """"unet", "vae" and "text_encoder"; fewer if the file has fewer."""
    scheduler_config: Mapping[str, Any]
    notes: tuple[str, ...]
    """What was found or chosen, each in a sentence."""
    guess: str = ""
    """What was guessed and may be wrong, and what to do then."""


@dataclass(frozen=True)
class TensorCheck:
    """What was found of one tensor: a line of `pare convert --check`."""

    name: str
    shape: Shape
    dtype: str
    status: str
    """"ok", "missing", "wrong shape: …", "wrong type", "unexpected" or "not needed: …"."""

    @property
    def fine(self) -> bool:
        return self.status == "ok" or self.status.startswith("not needed")


@dataclass(frozen=True)
class PartPlan:
    """What a part of the file should hold, by its architecture."""

    config: Mapping[str, Any]
    shapes: Shapes
    """The Hub's names, and the shapes that the config asks for."""
    places: Mapping[str, Place]
    """The Hub's names, and where in the file they are."""


@dataclass(frozen=True)
class FilePlan:
    """An opened file: what it is made of, and which of it is used."""

    checkpoint: Checkpoint
    kind: str
    parts: Mapping[str, PartPlan]
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
        drop: prefixes of tensor names to leave out.

    Raises:
        ModelError: the file is another kind of model, and which.
        WeightsError: it is damaged, or has missing, unexpected or misshapen tensors.
        ConfigError: an architecture that pare does not run.
    """
    plan = make_plan(open_checkpoint(path), ema=ema, only=only, drop=tuple(drop))
    check_rows(path, inventory(plan))
    return read_plan(plan, prediction)


def read_plan(plan: FilePlan, prediction: str | None = None) -> SingleFile:
    """The parts of a file whose tensors are checked, under the Hub's names.

    Args:
        prediction: "eps" or "v"; None reads the file's notes, and without one runs the UNet once.
    """
    checkpoint = plan.checkpoint
    parts = {
        name: StoredPart(
            part.config,
            {hub: place.take(checkpoint.tensors[place.name]) for hub, place in part.places.items()},
        )
        for name, part in plan.parts.items()
    }
    if "unet" not in parts:
        return SingleFile(checkpoint.path, plan.kind, parts, {}, plan.notes)
    unet = parts["unet"]
    chosen, reason, sure = choose_prediction(
        checkpoint, plan.kind, unet.config, unet.tensors, prediction
    )
    scheduler, schedule_notes = scheduler_config(checkpoint, chosen)
    parts = trained_size(parts, 768 if chosen == "v_prediction" else 512)
    found = f"the model predicts {chosen}: {reason}"
    other = "eps" if chosen == "v_prediction" else "v"
    advice = f"if its images are noise, `pare convert --prediction {other}`"
    guess = "" if sure else f"{found}; {advice}"
    notes = (*plan.notes, guess or found, *schedule_notes)
    return SingleFile(checkpoint.path, plan.kind, parts, scheduler, notes, guess)


def make_plan(
    checkpoint: Checkpoint, *, ema: bool | None, only: str | None, drop: tuple[str, ...] = ()
) -> FilePlan:
    """Find the parts of a file and their architecture."""
    shapes = {name: s for name, s in checkpoint.shapes.items() if not name.startswith(drop or "\0")}
    checkpoint = Checkpoint(
        checkpoint.path, {name: checkpoint.tensors[name] for name in shapes}, checkpoint.extras
    )
    prefixes = {part: find_prefix(shapes, part) for part in LANDMARKS}
    check_kind(checkpoint, prefixes, only)
    dropped: list[tuple[str, str]] = []
    notes: list[str] = []
    parts: dict[str, PartPlan] = {}
    if prefixes["unet"] is not None and only in (None, "unet"):
        parts["unet"], how = plan_unet(shapes, prefixes["unet"], ema, checkpoint.path)
        dropped += [(r"model_ema\.", "the moving average")] if how == "last" else []
        dropped += [(r"model\.diffusion_model\.", "the last step's")] if how == "average" else []
        notes += ["the UNet's weights are the moving average's"] if how == "average" else []
    if prefixes["vae"] is not None and only in (None, "vae"):
        parts["vae"] = plan_vae(shapes, prefixes["vae"], checkpoint)
    if only is None:
        parts["text_encoder"], more = plan_text(checkpoint, prefixes)
        dropped += more
    else:
        dropped += [(".", f"only the {only} is asked for")]
    kind = "SD 2" if prefixes["open_clip"] is not None else "SD 1"
    return FilePlan(checkpoint, kind, parts, tuple(dropped), tuple(notes))


def without_prefix(shapes: Shapes, prefix: str) -> dict[str, Shape]:
    return {name[len(prefix) :]: s for name, s in shapes.items() if name.startswith(prefix)}


def plan_unet(shapes: Shapes, prefix: str, ema: bool | None, path: Path) -> tuple[PartPlan, str]:
    """The UNet, and whose weights are taken: "average", "last", or "only" if there is no choice."""
    averaged = ldm_names.ema_name("input_blocks.0.0.weight") in shapes
    if ema and not averaged:
        raise WeightsError(f"{path} has no moving average (model_ema.…)", fix="leave out `ema`")
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
    return PartPlan(config, wanted, places), how


def plan_vae(shapes: Shapes, prefix: str, checkpoint: Checkpoint) -> PartPlan:
    config = ldm_names.read_vae(without_prefix(shapes, prefix))
    scale = checkpoint.tensors.get("scale_factor")
    if scale is not None and scale.numel() == 1:
        config["scaling_factor"] = float(scale)
    read = VAEConfig.read(config, f"{checkpoint.path} (vae)")
    with torch.device("meta"):
        wanted = shapes_of(AutoencoderKL(read))
    stages = len(read.block_out_channels)
    return PartPlan(
        config, wanted, prefixed(wanted, prefix, lambda n: ldm_names.vae_place(n, stages))
    )


def plan_text(
    checkpoint: Checkpoint, prefixes: Mapping[str, str | None]
) -> tuple[PartPlan, list[tuple[str, str]]]:
    """The text encoder, and what of OpenCLIP's is not needed."""
    shapes, open_clip = checkpoint.shapes, prefixes["open_clip"]
    if open_clip is not None:
        config = ldm_names.read_text(without_prefix(shapes, open_clip), open_clip=True)
        wanted = text_shapes(config, checkpoint.path)
        last = rf"{re.escape(open_clip)}transformer\.resblocks\.{config['num_hidden_layers']}\."
        dropped = [(last, "OpenCLIP's last layer: SD 2 reads the one before")]
        return PartPlan(
            config, wanted, prefixed(wanted, open_clip, ldm_names.open_clip_place)
        ), dropped
    prefix = str(prefixes["clip"]).removesuffix("text_model.")
    stem = "" if str(prefixes["clip"]).endswith("text_model.") else "text_model."
    bare = {stem + name: shape for name, shape in without_prefix(shapes, prefix).items()}
    config = ldm_names.read_text(bare, open_clip=False)
    wanted = text_shapes(config, checkpoint.path)
    ids = checkpoint.tensors.get(prefix + hub_names.POSITION_IDS.removeprefix(stem))
    if ids is not None and ids.dtype == torch.int64 and ids.shape == (1, counted(config)):
        wanted[hub_names.POSITION_IDS] = tuple(ids.shape)
    return PartPlan(config, wanted, prefixed(wanted, prefix, lambda n: Place(n[len(stem) :]))), []


def text_shapes(config: Mapping[str, Any], path: Path) -> dict[str, Shape]:
    with torch.device("meta"):
        return shapes_of(TextEncoder(TextConfig.read(config, f"{path} (text encoder)")))


def counted(config: Mapping[str, Any]) -> int:
    return int(config["max_position_embeddings"])


def prefixed(names: Iterable[str], prefix: str, place: Callable[[str], Place]) -> dict[str, Place]:
    found = {name: place(name) for name in names}
    return {n: Place(prefix + p.name, p.third, p.convolution) for n, p in found.items()}


def shapes_of(module: torch.nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


# --- every tensor is classified -----------------------------------------------------------


def inventory(plan: FilePlan) -> list[TensorCheck]:
    """A row for every tensor of the file, and for every one that should be there."""
    tensors = plan.checkpoint.tensors
    wanted: dict[str, tuple[Shape, Place, bool]] = {}
    for outline in plan.parts.values():
        for hub, place in outline.places.items():
            integers = hub == hub_names.POSITION_IDS
            wanted[place.name] = (outline.shapes[hub], place, integers)
    rows = [
        TensorCheck(name, place.shape(shape), "", "missing")
        for name, (shape, place, _) in wanted.items()
        if name not in tensors
    ]
    for name, tensor in tensors.items():
        status = judge(tensor, *wanted[name]) if name in wanted else reason(name, plan)
        rows.append(TensorCheck(name, tuple(tensor.shape), dtype_name(tensor.dtype), status))
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


def reason(name: str, plan: FilePlan) -> str:
    """Why a tensor that is no weight of the model may be there, or "unexpected"."""
    for pattern, words in (*NOT_NEEDED, *plan.dropped):
        if re.match(pattern, name):
            return f"not needed: {words}"
    return "unexpected"


def check_rows(path: Path, rows: Iterable[TensorCheck]) -> None:
    """Raise one table of every tensor that is missing, misshapen or unexpected, or return."""
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
        fix=f"if you know that they do not matter, pass `drop={min(strange)}`"
        if strange and all(row.status == "unexpected" for row in wrong) and not path.is_dir()
        else "",
        table=table,
    )


def trained_size(parts: Mapping[str, StoredPart], pixels: int) -> dict[str, StoredPart]:
    """The parts, with the size of the images that the model was trained on."""
    sizes = {"vae": pixels, "unet": pixels // 8}
    return {
        name: StoredPart({**part.config, "sample_size": sizes[name]}, part.tensors)
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
            fix="pass the folder of the model's own tokenizer as `tokenizer`",
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
