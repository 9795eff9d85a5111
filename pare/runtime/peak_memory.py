"""Peak memory of this process."""

from __future__ import annotations

import sys
from pathlib import Path

import torch


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of CUDA allocations, elsewhere of the process's resident memory.

    Resident memory counts every page in RAM, those of mapped files included (weights, as
    `pare.loading.modules` loads them).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        # Linux.  Not `ru_maxrss`, which a child process inherits from its parent.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
