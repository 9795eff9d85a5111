"""`pare bench load`: how long loading a model takes, and its peak memory, beside diffusers.

Each loading runs in a process of its own.  It imports all libraries, reads the model's files
once so that the system caches them, and then measures the time until every page of every
weight has been touched.  Both sides take turns, so that other load on the machine slows both;
processor time hardly depends on it.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from pare.config import TextConfig, UNetConfig, VAEConfig
from pare.loading import conversion
from pare.loading.architectures import SCHEDULERS, TEXTS, UNETS, VAE
from pare.loading.model_source import ModelSource
from pare.loading.modules import load_model
from pare.loading.resolve import ModelFolder, resolve_model
from pare.loading.single_file import SingleFile, StoredPart
from pare.recipes.recipe import current_versions
from pare.runtime.device import DTYPES, choose_dtype
from pare.runtime.peak_memory import peak_memory
from pare.text.clip import TextEncoder
from pare.unet import UNet
from pare.vae import AutoencoderKL
from pare.verify.diffusers_side import (
    load_reference,
    load_reference_file,
    quiet,
    require_diffusers,
)
from pare.verify.speed import MEMORY_BOUND, BenchReport, Measurement

SIDES = ("pare", "diffusers")
TIME_BOUND = 1.5  # every tensor and every token is checked, which takes a few tenths of a second


@dataclass(frozen=True)
class Loading:
    """One loading, in a process of its own."""

    reading: float
    """Seconds that reading the model's weight files once took, just before."""
    seconds: float
    processor: float
    """Seconds of the processor in that time, the system's work for the process included."""
    before: int
    """Bytes: the process's peak with all libraries imported, before it loads."""
    peak: int
    """Bytes: its peak in the end, mapped pages that were touched included."""
    weights: int
    """Bytes of the weights in memory."""


def run_load_bench(
    model: str = "roads",
    *,
    dtype: str = "auto",
    revision: str | None = None,
    pairs: int = 5,
    progress: Callable[[str], None] | None = None,
) -> BenchReport:
    """Measure loading on the CPU: seconds, and the process's peak memory in the end.

    Args:
        model: "sd1" or "sd21", which are written to the current folder at true size (8.5 and
            10.3 GB in float32) and deleted; or what `load_model` takes.
        dtype: what the weights are loaded as; "auto" is float32.
        revision: a branch, a tag or a commit's hash of a repository.
        pairs: how often both sides load, taking turns.

    Raises:
        MissingExtraError: diffusers is not installed.
        PareError: the model or the dtype.
    """
    diffusers = require_diffusers()
    say = progress or (lambda words: None)
    kind = choose_dtype(dtype, torch.device("cpu"))
    measures = []
    say("the files of the model")
    with models_to_load(model, kind, revision) as things:
        for name, (path, configs) in things.items():
            say(f"loading {name} in turns, each time in a process of its own")
            measures += measures_of(name, *run_pairs(path, configs, kind, pairs))
    return BenchReport(
        model=model,
        device="cpu",
        dtype=str(kind).removeprefix("torch."),
        threads=torch.get_num_threads(),
        versions=current_versions() | {"diffusers": diffusers.__version__},
        measures=measures,
    )


def measures_of(name: str, ours: list[Loading], theirs: list[Loading]) -> list[Measurement]:
    """Medians of both sides, and of the pairs' ratios."""

    def measure(
        what: str, unit: str, bound: float, read: Callable[[Loading], float]
    ) -> Measurement:
        pairs = [(read(one), read(other)) for one, other in zip(ours, theirs, strict=True)]
        one, other = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(one / other for one, other in pairs)
        return Measurement(f"{what} {name}", unit, one, other, ratio, bound)

    return [
        measure("loading", "s", TIME_BOUND, lambda run: run.seconds),
        measure("processor time of loading", "s", TIME_BOUND, lambda run: run.processor),
        measure(
            "memory of a process that loads", "GiB", MEMORY_BOUND, lambda run: run.peak / 2**30
        ),
    ]


def run_pairs(
    path: Path, configs: Path, dtype: torch.dtype, pairs: int
) -> tuple[list[Loading], list[Loading]]:
    """Load a folder or a single file with both sides, `pairs` times; pare's first.

    Args:
        configs: for a single file, a folder with the configs and the tokenizer, which
            diffusers would download; for a folder, that folder.
    """
    runs: dict[str, list[Loading]] = {side: [] for side in SIDES}
    for pair in range(pairs):
        for side in SIDES[:: -1 if pair % 2 else 1]:
            kind = str(dtype).removeprefix("torch.")
            command = [
                sys.executable,
                "-m",
                "pare.verify.loading_speed",
                side,
                str(path),
                str(configs),
            ]
            run = subprocess.run([*command, kind], stdout=subprocess.PIPE, text=True, check=True)
            runs[side].append(Loading(**json.loads(run.stdout.splitlines()[-1])))
    return runs["pare"], runs["diffusers"]


# --- what is loaded -----------------------------------------------------------------------


@contextmanager
def models_to_load(
    model: str, dtype: torch.dtype, revision: str | None
) -> Iterator[dict[str, tuple[Path, Path]]]:
    """What to call each thing that is loaded -> where it is, and its configs.

    "sd1" and "sd21" are a single file and a folder with random weights; any other model is
    what it is.
    """
    with TemporaryDirectory(prefix="pare-", dir=".") as name:
        folder = Path(name)
        if model in UNETS:
            write_random_file(model, folder / "model.safetensors", dtype)
            conversion.convert(folder / "model.safetensors", folder / "model")
            yield {
                "a single file": (folder / "model.safetensors", folder / "model"),
                "a folder": (folder / "model", folder / "model"),
            }
            return
        resolved = resolve_model(model, dtype=dtype, revision=revision)
        if isinstance(resolved, ModelFolder):
            yield {"a folder": (resolved.path, resolved.path)}
            return
        conversion.write_configs(resolved.content, folder, None)
        yield {"a single file": (resolved.path, folder)}


def write_random_file(model: str, path: Path, dtype: torch.dtype) -> None:
    """A single file at true size.  All its tensors are beginnings of one row of numbers."""
    text = TextConfig.read(TEXTS[model], model)
    with torch.device("meta"):
        states: dict[str, Mapping[str, Tensor]] = {
            "unet": UNet(UNetConfig.read(UNETS[model], model)).state_dict(),
            "vae": AutoencoderKL(VAEConfig.read(VAE, model)).state_dict(),
            "text_encoder": TextEncoder(text).state_dict(),
        }
    largest = max(tensor.numel() for state in states.values() for tensor in state.values())
    numbers = torch.randn(largest, generator=torch.Generator().manual_seed(0)) * 0.02
    numbers = numbers.to(dtype)
    configs: dict[str, Any] = {"unet": UNETS[model], "vae": VAE}
    configs["text_encoder"] = dataclasses.asdict(text)
    parts = {
        name: StoredPart(
            configs[name], {n: numbers[: t.numel()].view(t.shape) for n, t in state.items()}
        )
        for name, state in states.items()
    }
    kind = "SD 1" if model == "sd1" else "SD 2"
    tensors, _ = conversion.ldm_tensors(SingleFile(path, kind, parts, SCHEDULERS[model], ()))
    if kind == "SD 2":
        tensors["v_pred"] = torch.zeros(1)  # the mark of a v-model: nothing is to be guessed
    with path.open("xb") as file:
        conversion.stream_safetensors(file, tensors)


# --- one loading, in a process of its own -------------------------------------------------


def load_once(side: str, path: Path, configs: Path, dtype: torch.dtype) -> Loading:
    """Load the model here and now; call it once a process."""
    import_libraries(side)
    started = time.perf_counter()
    read_once(path)
    reading = time.perf_counter() - started
    before = peak_memory(torch.device("cpu"))
    started, worked = time.perf_counter(), time.process_time()
    with quiet():
        modules = (
            our_modules(path, dtype) if side == "pare" else their_modules(path, configs, dtype)
        )
    weights = touch(modules)
    seconds, processor = time.perf_counter() - started, time.process_time() - worked
    peak = peak_memory(torch.device("cpu"))
    return Loading(reading, seconds, processor, before, peak, weights)


def import_libraries(side: str) -> None:
    """What loading would import on the way, and which is no part of loading."""
    clip = [f"transformers.models.clip.{name}" for name in ("modeling_clip", "tokenization_clip")]
    for name in clip:
        importlib.import_module(name)
    if side == "diffusers":
        # By its name: diffusers imports its classes when they are asked for.
        getattr(importlib.import_module("diffusers"), "StableDiffusionPipeline")  # noqa: B009


def read_once(path: Path) -> None:
    block = bytearray(2**24)
    for file_name in sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]:
        with file_name.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass


def our_modules(path: Path, dtype: torch.dtype) -> list[nn.Module]:
    loaded = load_model(path, device="cpu", dtype=dtype)
    return [loaded.unet, loaded.vae, loaded.text_encoder]


def their_modules(path: Path, configs: Path, dtype: torch.dtype) -> list[nn.Module]:
    cpu = torch.device("cpu")
    if path.is_dir():
        pipeline = load_reference(ModelSource(path.name, str(path)), cpu, dtype)
    else:
        pipeline = load_reference_file(path, configs, dtype)
    return [pipeline.unet, pipeline.vae, pipeline.text_encoder]


def touch(modules: list[nn.Module]) -> int:
    """Read a byte of every page of the weights, as the first image would; their bytes."""
    weights = 0
    for module in modules:
        for tensor in module.state_dict().values():
            tensor.contiguous().reshape(-1).view(torch.uint8)[::4096].sum()
            weights += tensor.nbytes
    return weights


def main(side: str, path: str, configs: str, dtype: str) -> None:
    """What `run_pairs` starts, with what it was given as text."""
    loading = load_once(side, Path(path), Path(configs), DTYPES[dtype])
    print(json.dumps(dataclasses.asdict(loading)))


if __name__ == "__main__":
    main(*sys.argv[1:])
