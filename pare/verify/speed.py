"""`pare bench`: speed and peak memory beside diffusers.

Seconds depend on the machine and its load, ratios much less: both sides run in turns, in one
process, on the same weights (`paired_timing.py`).  Memory is measured in a new process for each
side, which loads nothing of the other: the peak of the whole process, Python and the libraries
included.  `loading_speed.py` measures loading.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pare.config import UNetConfig, VAEConfig
from pare.loading.architectures import UNETS, VAE
from pare.loading.model_configs import config_of
from pare.loading.model_source import ModelSource
from pare.loading.modules import load_model
from pare.loading.resolve import resolve_model
from pare.recipes.recipe import current_versions
from pare.runtime.device import DTYPES, choose_device, choose_dtype
from pare.runtime.peak_memory import peak_memory
from pare.unet import UNet
from pare.vae import AutoencoderKL
from pare.verify.diffusers_side import load_reference, quiet, require_diffusers, require_folder
from pare.verify.paired_timing import in_turns
from pare.verify.parity_table import aligned

BATCH = 2  # one image under classifier-free guidance
SPEED_BOUND = 1.03
MEMORY_BOUND = 1.0


@dataclass(frozen=True)
class Measurement:
    """One quantity, measured on both sides."""

    name: str
    unit: str  # 's' | 'GiB'
    ours: float
    theirs: float
    ratio: float  # of seconds, the median of the pairs' ratios
    bound: float

    @property
    def passed(self) -> bool:
        return self.ratio <= self.bound


@dataclass(frozen=True)
class BenchReport:
    """All measurements, with the model, device and versions."""

    model: str
    device: str
    dtype: str
    threads: int
    versions: Mapping[str, str]
    measures: list[Measurement]

    @property
    def passed(self) -> bool:
        return all(measure.passed for measure in self.measures)

    def to_json(self) -> dict[str, Any]:
        rows = [dataclasses.asdict(m) | {"passed": m.passed} for m in self.measures]
        return dataclasses.asdict(self) | {"measures": rows, "passed": self.passed}

    def table(self) -> str:
        lines = [("", "pare", "diffusers", "ratio", "bound", "")]
        for m in self.measures:
            verdict = "ok" if m.passed else "BROKEN"
            ours, theirs = (f"{value:.3f} {m.unit}" for value in (m.ours, m.theirs))
            lines.append((m.name, ours, theirs, f"{m.ratio:.3f}", f"{m.bound:.2f}", verdict))
        return (
            f"{aligned(lines)}\n{self.model} on {self.device}, {self.dtype}, {self.threads} "
            f"threads, diffusers {self.versions['diffusers']}, torch {self.versions['torch']}"
        )


@dataclass(frozen=True)
class TimedModel:
    """One side's model, ready to be called."""

    unet: Callable[[Tensor, int, Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


@torch.no_grad()
def run_bench(
    model: str | Path = "roads",
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    pairs: int = 5,
    progress: Callable[[str], None] | None = None,
) -> BenchReport:
    """Measurement a UNet step, a VAE decoding, and the peak memory of a step.

    Args:
        model: "sd1" or "sd21": random weights at true size, latents of 64 x 64; or what
            `run_verify` takes, at the model's own size.
        dtype: "auto" is float16 on a GPU, float32 elsewhere.
        revision: a branch, a tag or a commit's hash of a repository.
        pairs: how often both sides run, taking turns.

    Raises:
        MissingExtraError: diffusers is not installed.
        PareError: the model, the device or the dtype.
    """
    diffusers = require_diffusers()
    say = progress or (lambda words: None)
    place = choose_device(device)
    kind = choose_dtype(dtype, place)
    where = place_of(str(model), kind, revision)
    measures = []
    with quiet():
        # First, while this process holds no weights yet.
        say("memory of a UNet step, each side in a process of its own")
        measures.append(memory_of_a_step(where, place, kind))

        say("loading the model for both")
        states = random_states(where, place, kind)
        ours = our_parts(where, place, kind, states)
        theirs = their_parts(where, place, kind, states)
        x_t, text = inputs(where, place, kind)
        batch, _, h, w = x_t.shape
        say("UNet steps in turns")
        step = f"UNet step, batch {batch}, {h} x {w}"
        run = in_turns_after_warm_up(
            lambda: ours.unet(x_t, 981, text), lambda: theirs.unet(x_t, 981, text), place, pairs
        )
        measures.append(Measurement(step, "s", *run, SPEED_BOUND))
        say("VAE decodings in turns")
        latents = x_t[:1, :4]
        run = in_turns_after_warm_up(
            lambda: ours.decode(latents), lambda: theirs.decode(latents), place, pairs
        )
        measures.append(Measurement(f"VAE decoding, {h} x {w}", "s", *run, SPEED_BOUND))
    return BenchReport(
        model=str(model),
        device=str(place),
        dtype=str(kind).removeprefix("torch."),
        threads=torch.get_num_threads(),
        versions=current_versions() | {"diffusers": diffusers.__version__},
        measures=measures,
    )


def in_turns_after_warm_up(
    ours: Callable[[], Tensor], theirs: Callable[[], Tensor], device: torch.device, pairs: int
) -> tuple[float, float, float]:
    """Median seconds of both, and the median of the pairs' ratios."""
    ours()
    theirs()
    timing = in_turns(ours, theirs, device, pairs=pairs)
    return (
        statistics.median(timing.our_seconds),
        statistics.median(timing.their_seconds),
        timing.ratio,
    )


# --- models -------------------------------------------------------------------------------

States = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Tensors of the UNet and of the VAE."""


def place_of(model: str, dtype: torch.dtype, revision: str | None) -> str:
    """The folder of a model, found once so that all measure the same files; or its name, of
    random weights."""
    if model in UNETS and revision is None:
        return model
    folder = resolve_model(model, dtype=dtype, revision=revision).path
    require_folder(folder)
    return str(folder)


def configs(model: str) -> tuple[UNetConfig, VAEConfig]:
    if model in UNETS:
        return UNetConfig.read(UNETS[model], model), VAEConfig.read(VAE, model)
    folder = Path(model)
    return (
        UNetConfig.read(*config_of(folder, "unet")),
        VAEConfig.read(*config_of(folder, "vae")),
    )


def inputs(model: str, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x_t (2, 4, h, w) and text (2, 77, C): unit noise will do."""
    config, _ = configs(model)
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(BATCH, config.in_channels, *config.sample_size, generator=generator)
    text = torch.randn(BATCH, 77, config.cross_attention_dim, generator=generator)
    return x_t.to(device, dtype), text.to(device, dtype)


def random_states(model: str, device: torch.device, dtype: torch.dtype) -> States | None:
    """Random tensors for "sd1" and "sd21", which both sides share; None for real models."""
    if model not in UNETS:
        return None
    unet_config, vae_config = configs(model)
    with torch.device("meta"):
        modules = UNet(unet_config), AutoencoderKL(vae_config)
    unet, vae = (random_state(module, device, dtype) for module in modules)
    return unet, vae


def random_state(module: nn.Module, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights at a scale that keeps activations finite.

    A million random numbers over and over: drawing 860 million would take a minute.
    """
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(1_000_003, generator=generator)  # a prime: no two rows are alike
    state = {}
    for name, tensor in module.state_dict().items():
        count = tensor.numel()
        values = block.repeat(math.ceil(count / len(block)))[:count].view(tensor.shape)
        fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
        scale = fan_in**-0.5 if tensor.ndim > 1 else 0.1
        state[name] = (values * scale).to(device, dtype)
    return state


def our_parts(
    model: str, device: torch.device, dtype: torch.dtype, states: States | None
) -> TimedModel:
    if states is None:
        loaded = load_model(model, device=str(device), dtype=dtype)
        unet, vae = loaded.unet, loaded.vae
    else:
        unet_config, vae_config = configs(model)
        with torch.device("meta"):
            unet, vae = UNet(unet_config), AutoencoderKL(vae_config)
        fill(unet, states[0])
        fill(vae, states[1])
    return TimedModel(unet, vae.decode)


def their_parts(
    model: str, device: torch.device, dtype: torch.dtype, states: States | None
) -> TimedModel:
    diffusers = require_diffusers()
    if states is None:
        with quiet():
            pipeline = load_reference(ModelSource(model, model), device, dtype)
        unet, vae = pipeline.unet, pipeline.vae
    else:
        with torch.device("meta"):
            unet = diffusers.UNet2DConditionModel.from_config(UNETS[model])
            vae = diffusers.AutoencoderKL.from_config(VAE)
        fill(unet, states[0])
        fill(vae, states[1])
    return TimedModel(
        lambda x_t, t, text: unet(x_t, t, encoder_hidden_states=text).sample,
        lambda latents: vae.decode(latents).sample,
    )


def fill(module: nn.Module, state: dict[str, Tensor]) -> None:
    module.load_state_dict(state, strict=True, assign=True)
    module.eval().requires_grad_(False)


# --- memory -------------------------------------------------------------------------------


def memory_of_a_step(model: str, device: torch.device, dtype: torch.dtype) -> Measurement:
    """Peak memory of a process that loads one side's model and takes one UNet step.

    The libraries that it imports count: much beside a small model, little beside SD.
    """
    given = [model, str(device), str(dtype).removeprefix("torch."), str(torch.get_num_threads())]
    peaks = []
    for side in ("pare", "diffusers"):
        # A new process for each, so that neither sees the other's memory.
        command = [sys.executable, "-m", "pare.verify.speed", side, *given]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        peaks.append(int(run.stdout.splitlines()[-1]) / 2**30)
    ours, theirs = peaks
    return Measurement(
        "memory of a process with a UNet step", "GiB", ours, theirs, ours / theirs, MEMORY_BOUND
    )


@torch.no_grad()
def peak_of_a_step(side: str, model: str, device: str, dtype: str, threads: str) -> int:
    """Bytes.  What the processes above run, with what they were given as text."""
    torch.set_num_threads(int(threads))
    place, kind = torch.device(device), DTYPES[dtype]
    build = our_parts if side == "pare" else their_parts
    parts = build(model, place, kind, random_states(model, place, kind))
    x_t, text = inputs(model, place, kind)
    parts.unet(x_t, 981, text)
    return peak_memory(place)


if __name__ == "__main__":
    print(peak_of_a_step(*sys.argv[1:]))
