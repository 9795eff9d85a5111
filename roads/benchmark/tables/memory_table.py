"""How much memory a technique takes: each in a process of its own, as peaks do not go down.

    python -m roads.benchmark.tables.memory_table "p2p direct"

prints the megabytes by which the process grew over what the loaded model, one round trip
through the VAE and the judge had already taken.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable, Mapping

import torch

from pare.io.images import to_tensor
from pare.pipeline import Pipeline
from pare.runtime.peak_memory import peak_memory
from roads.benchmark.compared_methods import TECHNIQUES
from roads.benchmark.edit_tasks import Task, tasks
from roads.benchmark.tables import p2p_table

LENGTHS = (10, 50, 200)  # steps of prompt-to-prompt


def at_length(pipe: Pipeline, task: Task, seed: int, *, variant: str, steps: int) -> object:
    solver = pipe.with_scheduler("dpm++2m", karras=True)
    return p2p_table.made(
        solver, variant, task.source_prompt, task.target_prompt, seed, steps=steps
    )  # fmt: skip


RUNS: Mapping[str, Callable[[Pipeline, Task, int], object]] = {
    **TECHNIQUES,
    **{
        f"{variant}, {steps} steps": functools.partial(at_length, variant=variant, steps=steps)
        for variant in ("cross 0.8, self 0.4", p2p_table.TUTORIAL)
        for steps in LENGTHS
    },
}


def growth(name: str, model: str) -> float:
    """Megabytes, in this process."""
    pipe = Pipeline.from_pretrained(model, device="cpu")
    task = tasks("development")[0]
    pipe.decode(pipe.encode(to_tensor(task.image)))
    before = peak_memory(torch.device("cpu"))
    RUNS[name](pipe, task, 0)
    return (peak_memory(torch.device("cpu")) - before) / 1e6


def measured(name: str, model: str) -> float:
    """Megabytes, in a process of its own."""
    command = [sys.executable, "-m", "roads.benchmark.tables.memory_table", name, model]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    print(growth(sys.argv[1], sys.argv[2]))
