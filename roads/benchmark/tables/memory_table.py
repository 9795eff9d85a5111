"""How much memory a technique takes: each in a process of its own, as peaks do not go down.

    python -m roads.tables.memory "p2p direct"

prints the megabytes by which the process grew over what the loaded model, one round trip
through the VAE and the judge had already taken.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable, Mapping

import torch

from pare.image import to_tensor
from pare.pipeline import Pipeline
from pare.verify.memory import peak_memory
from roads.contestants import TECHNIQUES
from roads.edits import Task, tasks
from roads.tables import words

LENGTHS = (10, 50, 200)  # steps of prompt-to-prompt


def at_length(pipe: Pipeline, task: Task, seed: int, *, variant: str, steps: int) -> object:
    solver = pipe.with_scheduler("dpm++2m", karras=True)
    return words.made(
        solver, variant, task.source_prompt, task.target_prompt, seed, steps=steps
    )  # fmt: skip


RUNS: Mapping[str, Callable[[Pipeline, Task, int], object]] = {
    **TECHNIQUES,
    **{
        f"{variant}, {steps} steps": functools.partial(at_length, variant=variant, steps=steps)
        for variant in ("cross 0.8, self 0.4", words.TUTORIAL)
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
    command = [sys.executable, "-m", "roads.tables.memory", name, model]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    print(growth(sys.argv[1], sys.argv[2]))
