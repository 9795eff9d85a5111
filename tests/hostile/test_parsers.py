"""What parses, fed with anything: only pare's own errors come out."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pare.config import HubConfig, TextConfig, UNetConfig, VAEConfig
from pare.errors import PareError
from pare.io.images import check_mask, load_mask, match_mask
from pare.schedulers import build_scheduler
from tests.fuzz.targets import TARGETS, check, roads_tokenizer
from tests.hostile.damage import archive
from tests.random_models import TINY_UNET
from tests.tiny_model import SCHEDULER, TEXT, VAE

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
    | st.sampled_from([2**70, -1, 0, 1e300, "F32", "silu", "\ud800"])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def accepted_or_refused(read: Any, *arguments: object) -> object:
    try:
        return read(*arguments)
    except PareError:
        return None


@pytest.mark.parametrize(
    ("config", "good"), [(UNetConfig, TINY_UNET), (VAEConfig, VAE), (TextConfig, TEXT)]
)
@given(data=st.data())
def test_any_config(config: type[HubConfig], good: dict[str, Any], data: st.DataObject) -> None:
    keys = st.sampled_from(sorted(good)) | st.text(max_size=9)
    changes = data.draw(st.dictionaries(keys, VALUES, max_size=3))
    read = accepted_or_refused(config.read, good | changes, "config.json")
    assert read is None or hash(read) is not None  # an accepted one is made of plain values


@given(st.dictionaries(st.sampled_from(sorted(SCHEDULER)) | st.text(max_size=9), VALUES))
def test_any_scheduler(changes: dict[str, Any]) -> None:
    accepted_or_refused(build_scheduler, SCHEDULER | changes, "scheduler_config.json")


@given(
    header=st.dictionaries(
        st.text(max_size=5),
        st.fixed_dictionaries(
            {},
            optional={
                "dtype": st.sampled_from(["F32", "F16", "I64", "BOOL", "F8_E4M3", "X", "f32"]),
                "shape": st.lists(st.integers(-1, 4) | st.sampled_from([2**31, 2**62]), max_size=4),
                "data_offsets": st.lists(st.integers(-1, 70) | st.just(2**63), max_size=3),
                "more": VALUES,
            },
        )
        | VALUES,
        max_size=4,
    ),
    length=st.none() | st.integers(0, 2**64 - 1),
    numbers=st.binary(max_size=64),
)
def test_any_safetensors_header(header: dict[str, Any], length: int | None, numbers: bytes) -> None:
    text = json.dumps(header).encode()
    size = len(text) if length is None else length
    check("safetensors", struct.pack("<Q", size) + text + numbers)


OPCODES = [bytes([code]) for code in b"()]}.0NKM\x88\x89\x85\x86\x87htq\x8aoRbsueaQ2"]


@given(st.lists(st.sampled_from(OPCODES) | st.binary(max_size=2), max_size=30).map(b"".join))
def test_any_pickle(tmp_path_factory: pytest.TempPathFactory, code: bytes) -> None:
    check("ckpt", b"\x80\x02" + code + b".")


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.binary(max_size=200))
def test_any_bytes(name: str, data: bytes) -> None:
    check(name, data)


@given(st.text(st.characters(codec="utf-8"), max_size=200))
def test_any_prompt_comes_back_from_its_tokens(prompt: str) -> None:
    """Where all of it is known: the tokens say the prompt, but for blanks and capitals."""
    check("prompts", prompt.encode())
    tokenizer = roads_tokenizer()
    ascii_prompt = "".join(c for c in prompt if " " <= c <= "~" and c not in "<|>").lower()
    ids = tokenizer(ascii_prompt, add_special_tokens=False).input_ids
    assert "".join(tokenizer.decode(ids).split()) == "".join(ascii_prompt.split())


MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "I", "F")


@given(
    mode=st.sampled_from(MODES),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    other=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    seed=st.integers(0, 2**32 - 1),
    invert=st.booleans(),
)
def test_any_mask(
    tmp_path_factory: pytest.TempPathFactory,
    mode: str, size: tuple[int, int], other: tuple[int, int], seed: int, invert: bool,
) -> None:  # fmt: skip
    path = tmp_path_factory.mktemp("mask") / "a.tiff"
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    try:
        image = image.convert(mode)
    except ValueError:
        image = image.convert("L").convert(mode)
    image.save(path, "PNG" if mode in ("I;16", "P", "LA") else "TIFF") if mode != "HSV" else (
        image.convert("RGB").save(path, "PNG")
    )
    mask = accepted_or_refused(load_mask, path, invert)
    if isinstance(mask, Image.Image):
        assert (mask.mode, mask.size) == ("L", size)
        accepted_or_refused(match_mask, mask, other)
        accepted_or_refused(check_mask, mask)


def test_a_storage_that_is_shorter_than_it_says_is_refused(tmp_path: Path) -> None:
    """torch would map what lies behind it in the file."""
    from pare.errors import WeightsError
    from pare.loading.checkpoint import open_checkpoint
    from tests.hostile.damage import tensor

    archive(tensor((4,), (1,)), {"0": bytes(8)})(tmp_path / "a.ckpt")
    with pytest.raises(WeightsError, match="holds 8 bytes as storage '0'; expected 16"):
        open_checkpoint(tmp_path / "a.ckpt")
