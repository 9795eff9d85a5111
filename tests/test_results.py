"""The result of a run: a sequence of images that saves and shows itself."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pare.errors import OutputError
from pare.recipes.recipe import Recipe, read_recipe
from pare.results import Images

DECODED = torch.linspace(-1.2, 1.2, 2 * 3 * 8 * 16).view(2, 3, 8, 16)


@pytest.fixture
def images() -> Images:
    return Images.from_decoded(DECODED, [7, 8])


def test_it_is_a_sequence_of_images(images: Images) -> None:
    assert len(images) == 2
    assert (images[1].size, images[1].mode) == ((16, 8), "RGB")
    assert [image.size for image in images] == [image.size for image in images[:]] == [(16, 8)] * 2
    assert images[-1] in images
    assert images.tensor is DECODED
    assert images.report() == {}


def test_without_the_decoders_output_the_tensor_is_that_of_the_8_bit_images(images: Images) -> None:
    rounded = Images(images=images.images).tensor
    assert rounded.shape == DECODED.shape
    assert (rounded - DECODED.clamp(-1, 1)).abs().max() <= 1.001 / 255


def test_its_repr_is_one_short_line(images: Images) -> None:
    assert repr(images) == "Images(2 images of 16 x 8, seeds 7, 8)"
    many = Images(images=[images[0]] * 9, seeds=range(9))
    assert repr(many) == "Images(9 images of 16 x 8, seeds 0, 1, 2, 3, 4, …)"

    @dataclass(frozen=True, eq=False, repr=False, kw_only=True)
    class Blended(Images):
        scores: list[float]

    assert repr(Blended(images=images[:1], scores=[1.0])) == "Blended(1 image of 16 x 8)"


@pytest.mark.parametrize("ending", ["png", "webp", "jpg"])
def test_save_names_files_by_seed_and_label(images: Images, tmp_path: Path, ending: str) -> None:
    paths = images.save(tmp_path / f"snow.{ending}")
    assert [path.name for path in paths] == [f"snow-7.{ending}", f"snow-8.{ending}"]
    with Image.open(paths[1]) as saved:
        assert saved.size == (16, 8)
        if ending == "png":
            assert np.array_equal(np.asarray(saved), np.asarray(images[1]))
    alone = Images(images=images[:1], seeds=[7])
    assert alone.save(tmp_path / f"one.{ending}") == [tmp_path / f"one.{ending}"]
    pair = Images(images=images.images, seeds=[7, 7], labels=["source", "target"])
    names = [path.name for path in pair.paths(Path(f"p.{ending}"))]
    assert names == [f"p-7-source.{ending}", f"p-7-target.{ending}"]
    same = Images(images=images.images, seeds=[7, 7])
    assert [path.name for path in same.paths(Path("p.png"))] == ["p-1-7.png", "p-2-7.png"]
    nameless = Images(images=images.images)
    assert [path.name for path in nameless.paths(Path("p.png"))] == ["p-1.png", "p-2.png"]


def test_save_overwrites_nothing_unless_forced_and_is_whole_or_nothing(
    images: Images, tmp_path: Path
) -> None:
    (tmp_path / "snow-8.png").write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists"):
        images.save(tmp_path / "snow.png")
    assert [path.name for path in tmp_path.iterdir()] == ["snow-8.png"]
    images.save(tmp_path / "snow.png", force=True)
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(OutputError, match=r"`path` is .*snow.txt"):
        images.save(tmp_path / "snow.txt")


def test_notebooks_show_the_images_with_captions(images: Images) -> None:
    with Image.open(io.BytesIO(images._repr_png_())) as row:
        beside = np.concatenate([np.asarray(one) for one in images], axis=1)
        assert np.array_equal(np.asarray(row), beside)
    shown = Images(
        images=images.images, seeds=[7, 8], before=images[0], maps={"attention <&>": images[1]}
    )._repr_html_()
    assert shown.count("<img ") == 4
    for caption in ("before", "seed 7", "seed 8", "attention &lt;&amp;&gt;"):
        assert f"<figcaption>{caption}</figcaption>" in shown


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_saved_with_its_recipes_each_image_carries_its_own(
    images: Images, tmp_path: Path, ending: str
) -> None:
    recipes = [
        Recipe(
            command="generate", arguments={"prompt": "a road"}, inputs={}, model={}, scheduler={},
            seeds=[7, 8], index=index, device="cpu", dtype="float32", threads=1, versions={},
        )
        for index in (0, 1)
    ]  # fmt: skip
    run = Images(images=images.images, seeds=[7, 8], recipes=recipes)
    paths = run.save(tmp_path / f"road.{ending}")
    assert [read_recipe(path).seed for path in paths] == [7, 8]
