"""The most memory that this process has held at a time."""

from __future__ import annotations

import sys
from pathlib import Path

import torch


def peak_memory(device: torch.device) -> int:
    """Bytes.  On CUDA what was allocated there; elsewhere the process's resident memory.

    Resident memory counts every page that was touched and has not been dropped, whether it
    is the process's own or a page of a mapped file (weights, as `pare.loading.modules` loads them).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        # Linux.  Not `ru_maxrss`: a child process begins with its parent's as its own.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
