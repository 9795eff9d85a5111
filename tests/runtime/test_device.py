"""Devices and dtypes by name: those that there are, and one sentence about any other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pare.errors import DeviceError
from pare.runtime.device import choose_device, choose_dtype


@pytest.mark.parametrize(
    "device",
    [
        "gpu",
        "",
        "cuda:x",
        "meta",
        "cuda:99",
        "cuda:128",
        "cuda:200",
        "cuda:-1",
        "cuda:" + "9" * 30,
        "mps:128",
        "xpu",
        "cpu:1",
        "cpu\n",
        "cuda:٣",
    ],
)
def test_devices_that_are_not_there_are_refused(device: str) -> None:
    with pytest.raises(DeviceError):
        choose_device(device)


def test_dtypes() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_dtype("auto", cpu) == torch.float32
    assert choose_dtype("auto", cuda) == torch.float16
    assert choose_dtype("bfloat16", cpu) == torch.bfloat16
    assert choose_dtype(torch.float16, cpu) == torch.float16
    wrong: Any
    for wrong in ("float64", "half", "", torch.float64, torch.int8, None):
        with pytest.raises(DeviceError, match=r"`dtype` is .*; expected auto, float32"):
            choose_dtype(wrong, cpu)


def test_the_cpu_by_its_number_is_the_cpu() -> None:
    assert choose_device("cpu:0").type == choose_device("cpu").type == "cpu"
