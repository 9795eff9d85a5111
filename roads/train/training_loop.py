"""What both trainings share: learning rate, moving average, checkpoints, the log.

The batch of step n is a function of the seed and n alone (`batch_random`), so a resumed
run needs no random state: it goes on where it stopped, bit for bit.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# One stretch of a training: its first step, settings, images, workers and commit.
Run = dict[str, Any]


def batch_random(seed: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """The random numbers of one step: for choosing the batch, and for its noise (CPU)."""
    chooser = np.random.default_rng([seed, step])
    noise = torch.Generator().manual_seed(int(chooser.integers(2**62)))
    return chooser, noise


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within this context, layers start from the weights that belong to `seed`.

    PyTorch's layers draw their first weights from the global random state; it is put back
    afterwards, so that nobody else notices.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # noqa: TID251 — the layers take no generator
        yield


def join_workers() -> None:
    """Become one of several workers if `torchrun` started us, each with its share of a batch.

    On a CPU that others use too, two workers of one thread are a third faster than one
    worker of two threads, which wait for each other at every layer.
    """
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("gloo")


def worker() -> tuple[int, int]:
    """Which worker this is, and how many there are; number 0 writes the files."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def wait_for_workers() -> None:
    if dist.is_initialized():
        dist.barrier()


def share(*tensors: Tensor) -> tuple[Tensor, ...]:
    """This worker's rows of tensors that hold the whole batch."""
    rank, count = worker()
    return tuple(tensor[rank::count] for tensor in tensors)


def gather(tensor: Tensor) -> list[Tensor]:
    """Every worker's tensor, in the workers' order, on every worker."""
    _rank, count = worker()
    if count == 1:
        return [tensor]
    parts: list[Any] = [None] * count
    dist.all_gather_object(parts, tensor)
    return parts


def average_gradients(modules: Iterable[nn.Module]) -> None:
    """Every worker's gradients become the mean over workers, so that all take one step."""
    _rank, count = worker()
    if count == 1:
        return
    gradients = [p.grad for m in modules for p in m.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= count
    means = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))


def learning_rate(step: int, steps: int, peak: float, warm_up: int) -> float:
    """Linear warm-up, then half a cosine down to zero (arXiv:1608.03983, eq. 5)."""
    rise = min(1.0, (step + 1) / warm_up)
    fall = 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    return peak * rise * fall


class Average:
    """An exponential moving average of weights (arXiv:2006.11239, appendix B).

    The weights of single steps jitter around the valley's floor; their average lies in it.
    """

    def __init__(self, modules: Mapping[str, nn.Module], decay: float) -> None:
        self.decay = decay
        self.weights = {
            name: {key: value.detach().clone() for key, value in module.state_dict().items()}
            for name, module in modules.items()
        }

    @torch.no_grad()
    def update(self, modules: Mapping[str, nn.Module], step: int) -> None:
        # A short memory first, or the average would remember the random start for long.
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, module in modules.items():
            for key, value in module.state_dict().items():
                kept = self.weights[name][key]
                if kept.is_floating_point():
                    kept.lerp_(value, 1 - decay)
                else:
                    kept.copy_(value)


class Float32Attention(TorchFunctionMode):
    """Within this context, the fused attention kernel gets float32, whatever else is in bfloat16.

    Heads here are 8 to 16 numbers wide, and the CPU's kernel is made for 64 and more: its
    backward pass in bfloat16 is up to nine times slower than in float32.  So computed,
    256 queries and keys take less than a quarter of the time of the two products and the
    softmax spelled out, and a training step half.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args
        with torch.autocast("cpu", enabled=False):
            attended = func(query.float(), key.float(), value.float())
        return attended.to(query.dtype)


def attention_for(device: torch.device) -> AbstractContextManager[Any]:
    """The faster attention for a training with narrow heads on this device."""
    return Float32Attention() if device.type == "cpu" else nullcontext()


def precision(device: torch.device, name: str) -> AbstractContextManager[Any]:
    """`float32`, or `bfloat16` for the products only: weights and sums stay float32."""
    enabled = name == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def optimizer_for(modules: Iterable[nn.Module], weight_decay: float) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101); matrices and kernels decay, biases and norms do not."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def save_checkpoint(
    path: Path,
    step: int,
    modules: Mapping[str, nn.Module],
    average: Average,
    optimizer: torch.optim.Optimizer,
    runs: Sequence[Run],
) -> None:
    """Write everything that step `step` needs to start, and how the run came there."""
    if worker()[0] != 0:
        return
    content = {
        "step": step,
        "modules": {name: module.state_dict() for name, module in modules.items()},
        "average": average.weights,
        "optimizer": optimizer.state_dict(),
        "runs": list(runs),
    }
    save_whole(path, content)


def save_whole(path: Path, content: Mapping[str, Any]) -> None:
    """`torch.save`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".partial-{os.getpid()}")
    torch.save(content, partial)
    os.replace(partial, path)


def load_checkpoint(
    path: Path,
    modules: Mapping[str, nn.Module],
    average: Average,
    optimizer: torch.optim.Optimizer,
) -> tuple[int, list[Run]]:
    """Put a checkpoint back; returns the step to go on with, and the runs up to there.

    Where there is none: 0, and no runs.
    """
    if not path.exists():
        return 0, []
    saved = torch.load(path, map_location="cpu", weights_only=True)
    for name, module in modules.items():
        module.load_state_dict(saved["modules"][name])
        for key, value in saved["average"][name].items():
            average.weights[name][key].copy_(value)
    if "optimizer" in saved:  # a model folder has none, see `roads.train.export_model.adopt`
        optimizer.load_state_dict(saved["optimizer"])
    return int(saved["step"]), saved.get("runs", [])


def continued(runs: Sequence[Run], first: int, settings: Any, images: int) -> list[Run]:
    """The runs that led to step `first`, and this one, which goes on from there.

    A training that was steered by hand cannot hide it: every change of settings, of the
    number of images, of workers or of the code is one more entry, with its first step.
    """
    run: Run = {
        "first_step": first,
        "settings": dataclasses.asdict(settings),
        "images": images,
        "workers": worker()[1],
        "commit": commit(),
    }
    same = bool(runs) and {**runs[-1], "first_step": first} == run
    return list(runs) if same else [*runs, run]


def commit() -> str:
    """The commit of the code that runs, with a + where files were changed since."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        return "unknown"
    return done.stdout.strip()


class Log:
    """One JSON line every `every` steps, on disk and on the terminal."""

    def __init__(self, path: Path, every: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.every = path, every
        self.sums: dict[str, float] = {}
        self.count, self.since = 0, time.monotonic()

    def add(self, step: int, samples: int, **values: Tensor | float) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.count += 1
        if (step + 1) % self.every == 0:
            means = {name: round(total / self.count, 6) for name, total in self.sums.items()}
            speed = self.count * samples / (time.monotonic() - self.since)
            speed = round(speed, 1)
            self.write(step=step + 1, samples_per_second=speed, **means)
            self.sums, self.count, self.since = {}, 0, time.monotonic()

    def write(self, **record: Any) -> None:
        if worker()[0] != 0:
            return
        line = json.dumps(record)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)
