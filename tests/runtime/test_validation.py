"""Values at, inside and outside their ranges; 0 is a value like any other."""

from __future__ import annotations

import math

import pytest

from pare.errors import PareError, PromptError, SettingError
from pare.runtime import validation

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (validation.check_steps, [1, 25, 1000], [0, -1, 1001, 2.5, "7", True, None]),
        (validation.check_guidance, [0, 1, 7.5, -3.0, 1000], [NAN, INF, -INF, 1001, "7", True]),
        (validation.check_rescale, [0, 0.7, 1], [-0.1, 1.1, NAN]),
        (validation.check_eta, [0, 1], [-1e-9, 1.1, NAN]),
        (validation.check_strength, [1e-9, 0.5, 1], [0, 0.0, -0.5, 1.0001, NAN, INF]),
        (validation.check_seed, [0, 7, 2**63 - 1], [-1, 2**63, 1.0, "7", False]),
        (validation.check_prompt, ["", "Straße 雪 🚗"], [None, b"road", "\udcff", "a" * 20001]),
        (validation.check_seeds, [[0], [7, 8]], [[], [7, 7], [-1], list(range(257))]),
    ],
)  # fmt: skip
def test_ranges(check, good, bad) -> None:  # type: ignore[no-untyped-def]
    for value in good:
        assert check(value) == value
    for value in bad:
        with pytest.raises(PareError) as caught:
            check(value)
        assert "\n" not in str(caught.value)
        assert type(caught.value) in (SettingError, PromptError)


def test_sizes() -> None:
    assert validation.parse_size("128x256") == (128, 256)
    assert validation.parse_size("8X8192") == (8, 8192)
    assert validation.parse_size("512") == (512, 512)
    for text in ("", "128x", "x128", "128x128x3", "-8x8", "1e3x8", "٨x٨", "128 x 128"):
        with pytest.raises(SettingError, match="WIDTHxHEIGHT"):
            validation.parse_size(text)
    for text in ("0", "100", "0x8", "100x128", "128x100", "8200x8", "999999x8"):
        with pytest.raises(SettingError, match="a multiple of 8"):
            validation.parse_size(text)


def test_consecutive_seeds() -> None:
    assert validation.consecutive_seeds([7], 1) == [7]
    assert validation.consecutive_seeds([7], 4) == [7, 8, 9, 10]
    assert validation.consecutive_seeds([9, 0], 1) == [9, 0]
    for seeds, count in (([7, 8], 2), ([7], 0), ([7], 257), ([2**63 - 1], 2)):
        with pytest.raises(SettingError):
            validation.consecutive_seeds(seeds, count)
