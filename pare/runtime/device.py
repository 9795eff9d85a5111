"""The device that a model runs on, and the dtype of its weights, by name."""

from __future__ import annotations

import re

import torch

from pare.errors import DeviceError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""The dtypes that a model can run in, by the names that users give."""

DEVICE = re.compile(r"(cpu|cuda|mps)(:(0|[1-9][0-9]{0,3}))?")


def choose_device(device: str | torch.device) -> torch.device:
    """The torch device of a name; "auto" is CUDA, MPS or the CPU, in this order.

    Raises:
        DeviceError: a device that does not exist, or that this machine does not have.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    match = DEVICE.fullmatch(str(device))
    if match is None:
        raise DeviceError(
            f"pare does not run on the device {device!r}", expected="auto, cpu, cuda, cuda:N or mps"
        )
    kind, index = match[1], int(match[3] or 0)
    # torch.device holds the index in 8 bits: 128 becomes negative, so the number is compared first.
    count = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    if index >= count[kind]:
        raise DeviceError(
            f"the device {device!r} is not on this machine",
            fix="use `device='cpu'` or `device='auto'`",
        )
    return torch.device(device)


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of a name; "auto" is float16 on CUDA and float32 elsewhere.

    Raises:
        DeviceError: a dtype that models do not run in.
    """
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise DeviceError(f"`dtype` is {dtype!r}", expected=f"auto, {', '.join(DTYPES)}")
    return DTYPES[str(dtype)]


def dtype_name(dtype: torch.dtype) -> str:
    """`float16` for `torch.float16`."""
    return str(dtype).removeprefix("torch.")
