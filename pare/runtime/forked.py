"""A check against running a model in a process forked from one that has run a model.

PyTorch's threads (OpenMP) do not exist in a forked child, which then waits for them for ever.
`multiprocessing` forks by default on Linux until Python 3.14.
"""

from __future__ import annotations

import os

import torch

from pare.errors import DeviceError

process: int | None = None
"""The process in which a model was first loaded or run."""


def check_forked() -> None:
    """Note that this process runs a model, or raise in a forked one, which would hang.

    Raises:
        DeviceError: the process was forked from one that has run a model with several threads.
    """
    global process
    if process is None:
        process = os.getpid()
    if process != os.getpid() and torch.get_num_threads() > 1:
        raise DeviceError(
            "this process was forked from one that has run a model, whose threads it lacks",
            fix='start it with multiprocessing.get_context("spawn"), or call '
            "torch.set_num_threads(1) in it first",
        )
