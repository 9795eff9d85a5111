"""What is taken for an image: paths, PIL images, numpy arrays and tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pare.errors import ImageError
from pare.io.images import as_image, as_image_tensor, to_tensor


def test_an_image_may_be_a_path_a_pil_image_an_array_or_a_tensor(tmp_path: Path) -> None:
    pixels = np.arange(8 * 16 * 3, dtype=np.uint8).reshape(8, 16, 3)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    expected = to_tensor(image)
    for given in (
        image, pixels, pixels.astype(np.float64) / 255, tmp_path / "a.png", str(tmp_path / "a.png"),
        expected, expected[0],
    ):  # fmt: skip
        assert torch.equal(as_image_tensor(given), expected)
        assert np.array_equal(np.asarray(as_image(given)), pixels)
    grey = np.asarray(as_image(pixels[:, :, 0]))
    assert np.array_equal(grey, np.asarray(as_image(pixels[:, :, :1])))
    assert np.array_equal(grey, np.stack([pixels[:, :, 0]] * 3, axis=2))
    empty = np.zeros((8, 16, 4), np.uint8)
    for given in (empty, Image.fromarray(empty)):
        assert np.asarray(as_image(given)).min() == 255  # laid on white
    deep = Image.fromarray(np.full((4, 4), 257 * 9, np.uint16))
    assert np.asarray(as_image(deep)).max() == 9


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (7, "`image` is a int"),
        (None, "`image` is a NoneType"),
        (np.zeros((3, 8, 8, 3), np.uint8), r"array of shape \(3, 8, 8, 3\)"),
        (np.zeros((8, 8, 2), np.uint8), r"array of shape \(8, 8, 2\)"),
        (np.zeros((0, 8, 3), np.uint8), r"array of shape \(0, 8, 3\)"),
        (np.full((8, 8, 3), 1.5), "float64 from 1.5 to 1.5"),
        (np.full((8, 8, 3), np.nan), "float64 from nan to nan"),
        (np.zeros((8, 8, 3), np.int64), "int64 from 0 to 0"),
        (torch.zeros(8, 8), r"tensor of shape \(8, 8\)"),
        (torch.zeros(1, 4, 8, 8), r"tensor of shape \(1, 4, 8, 8\)"),
    ],
)
def test_anything_else_is_said_in_a_sentence(given: Any, problem: str) -> None:
    for take in (as_image, as_image_tensor):
        with pytest.raises(ImageError, match=problem):
            take(given)


def test_a_tensor_of_two_images_is_not_one_image() -> None:
    assert as_image_tensor(torch.zeros(2, 3, 8, 8)).shape == (2, 3, 8, 8)
    with pytest.raises(ImageError, match="a tensor of 2 images"):
        as_image(torch.zeros(2, 3, 8, 8))
