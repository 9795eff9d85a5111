"""Memory planning: an estimate of what a run needs, what is free, and how to fit it in.

Beside the weights a run needs memory for activations.  They are largest at full resolution,
in the first stage of the UNet and of the VAE, so the estimate is a multiple of that stage's
channels for every latent or pixel.  The factors are measured
(`tests/runtime/test_memory_plan.py` measures them again).  Attention adds little, as the
fused kernels never materialize its scores.

The estimate decides how many images go through the UNet together, whether the VAE works in
tiles, and whether a run on the CPU starts at all: Linux kills a process that uses too much
memory instead of refusing the allocation.
"""

from __future__ import annotations

import math
import re
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from pare.config import UNetConfig, VAEConfig
from pare.errors import NotEnoughMemoryError
from pare.runtime import validation

# Peak number of activations, as a multiple of a stage's channels (per latent or pixel).
UNET_COPIES = 40  # of the first stage, per latent; 16 of these are the feed-forward's
DECODER_COPIES = 5  # of the second stage, per pixel: the output of the last upsampling
ENCODER_COPIES = 5  # of the first stage, per pixel
IMAGE_COPIES = 3  # of a finished image in float32, while it is converted to 8 bits

USABLE = 0.8
"""The fraction of the free memory that is planned with; the rest is for what is not counted."""


class MemoryWarning(UserWarning):
    """Images are made in smaller batches, or decoded in tiles, so that a run fits into memory."""


# --- what is needed -----------------------------------------------------------------------


def unet_bytes(config: UNetConfig, h: int, w: int, dtype: torch.dtype) -> int:
    """Bytes of the UNet's activations for one row of its batch, latents of h x w."""
    return UNET_COPIES * config.block_out_channels[0] * h * w * dtype.itemsize


def decoder_bytes(config: VAEConfig, height: int, width: int, dtype: torch.dtype) -> int:
    """Bytes of the VAE's activations to decode one image of height x width pixels."""
    channels = config.block_out_channels[:2][-1]
    return DECODER_COPIES * channels * height * width * dtype.itemsize


def encoder_bytes(config: VAEConfig, height: int, width: int, dtype: torch.dtype) -> int:
    """Bytes of the VAE's activations to encode one image of height x width pixels."""
    return ENCODER_COPIES * config.block_out_channels[0] * height * width * dtype.itemsize


def image_bytes(height: int, width: int) -> int:
    """Bytes that one finished image takes on the CPU until it is written."""
    return IMAGE_COPIES * 3 * height * width * torch.float32.itemsize


# --- what there is ------------------------------------------------------------------------


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a device in bytes; None where it is unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What PyTorch's allocator caches is free as well.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + kept
    if device.type != "cpu":
        return None
    limits = [left for left in (system_bytes(), group_bytes(), process_bytes()) if left is not None]
    return min(limits, default=None)


def system_bytes() -> int | None:
    """Bytes available without swapping, by Linux's estimate."""
    return colon_table(Path("/proc/meminfo")).get("MemAvailable")


def process_bytes() -> int | None:
    """Bytes left of the process's own limit (`ulimit -v`)."""
    if sys.platform == "win32":
        return None
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = colon_table(Path("/proc/self/status")).get("VmSize")
    if limit == resource.RLIM_INFINITY or used is None:
        return None
    return max(0, limit - used)


def group_bytes(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes left of the control group's limit (containers): cgroup version 2, then 1."""
    for limit_file, usage_file, cache_key in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, usage = whole_number(root / limit_file), whole_number(root / usage_file)
        if limit is None or usage is None or limit >= 2**60:  # 2**63 stands for none
            continue
        # The page cache counts as used, and is reclaimed when needed.
        cache = space_table((root / limit_file).with_name("memory.stat")).get(cache_key, 0)
        return max(0, limit - usage + cache)
    return None


def whole_number(path: Path) -> int | None:
    text = read_if_there(path).strip()
    return int(text) if text.isdecimal() else None


def colon_table(path: Path) -> dict[str, int]:
    """Parse lines like `MemAvailable:  123 kB`; values in bytes."""
    rows = re.findall(r"^(\w+):\s+(\d+) kB$", read_if_there(path), re.MULTILINE)
    return {name: 1024 * int(count) for name, count in rows}


def space_table(path: Path) -> dict[str, int]:
    """Parse lines like `inactive_file 123`."""
    rows = re.findall(r"^(\w+) (\d+)$", read_if_there(path), re.MULTILINE)
    return {name: int(count) for name, count in rows}


def read_if_there(path: Path) -> str:
    """The text of a file of the kernel; "" where it does not exist or cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""


# --- what to do ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """How a run fits into memory."""

    count: int
    """Images in all."""
    batch: int
    """Images that go through the UNet together."""
    tile: int | None
    """Side of the VAE's tiles in pixels; None: it works on the whole image."""

    @property
    def batches(self) -> list[slice]:
        starts = range(0, self.count, self.batch)
        return [slice(start, min(start + self.batch, self.count)) for start in starts]


def plan_run(
    unet: UNetConfig,
    vae: VAEConfig,
    grid: tuple[int, int],
    count: int,
    rows: int,
    *,
    device: torch.device,
    dtype: torch.dtype,
    batch: int | None = None,
    tile: int | None = None,
) -> Plan:
    """The batch size and VAE tile with which `count` images fit into free memory.

    Args:
        grid: latents, h and w.
        rows: of the UNet's batch for each image: 2 under guidance.
    """
    height, width = (vae.factor * side for side in grid)
    need = rows * unet_bytes(unet, *grid, dtype)
    check_room(f"an image of {width} x {height}", need, device, "make it smaller")
    finished = count * image_bytes(height, width)
    many = f"holding {count} images of {width} x {height} until they are written"
    check_room(many, finished, torch.device("cpu"), "make fewer at once")
    if batch is None:
        batch = fitting_count(need, free_bytes(device), count)
        if batch < count:
            warn(f"{batch} of {count} images are made at a time, as more would not fit memory")
    if tile is None:
        tile = decoder_tile(vae, height, width, device, dtype)
    return Plan(count, min(validation.check_batch(batch), count), tile)


def decoder_tile(
    vae: VAEConfig, height: int, width: int, device: torch.device, dtype: torch.dtype
) -> int | None:
    """The tiles in which an image has to be decoded, with a warning; None: whole."""
    need = decoder_bytes(vae, height, width, dtype)
    return choose_tile("decoded", need, device, height, width, vae.factor)


def encoder_tile(
    vae: VAEConfig, height: int, width: int, device: torch.device, dtype: torch.dtype
) -> int | None:
    """The tiles in which an image has to be encoded, with a warning; None: whole."""
    need = encoder_bytes(vae, height, width, dtype)
    return choose_tile("encoded", need, device, height, width, vae.factor)


def choose_tile(
    done: str, need: int, device: torch.device, height: int, width: int, factor: int
) -> int | None:
    free = free_bytes(device)
    tile = fitting_tile(need, free, height, width, factor)
    if tile is not None:
        warn(
            f"the image of {width} x {height} is {done} in tiles of {tile} pixels, as the whole "
            f"needs about {in_gib(need)} of memory and {in_gib(free or 0)} are free: tiles do not "
            "see each other, and their colours may differ a little"
        )
    return tile


def fitting_count(need: int, free: int | None, most: int) -> int:
    """How many things of `need` bytes each fit at once: 1 to `most`."""
    if free is None or need * most <= USABLE * free:
        return most
    return max(1, int(USABLE * free) // need)


def fitting_tile(need: int, free: int | None, height: int, width: int, factor: int) -> int | None:
    """The side in pixels of the largest tile that fits; None: the whole image does.

    In latents it is a power of two, so that machines of about the same memory choose alike.

    Args:
        need: bytes for the whole image, of height x width pixels.
        factor: pixels along a side of one latent.
    """
    if free is None or need <= USABLE * free:
        return None
    side = math.sqrt(USABLE * free / need * height * width)
    return factor * int(2 ** int(math.log2(max(side / factor, validation.MIN_TILE))))


def check_room(what: str, need: int, device: torch.device, fix: str) -> None:
    """Raise before a CPU is asked for more memory than it has.

    Linux would end the process instead of refusing.  A GPU raises an error for too large
    an allocation, for which the command has words (`pare.cli.terminal`).

    Raises:
        NotEnoughMemoryError: `need` bytes are more than what is free.
    """
    if device.type != "cpu":
        return
    free = free_bytes(device)
    if free is not None and need > free:
        raise NotEnoughMemoryError(
            f"{what} needs about {in_gib(need)} of memory, and {in_gib(free)} are free", fix=fix
        )


def warn(sentence: str) -> None:
    warnings.warn(sentence, MemoryWarning, stacklevel=4)


def in_gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
