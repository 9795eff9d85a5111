"""Recipes survive the picture, and reading a stranger's does no harm."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from pare.errors import ImageError, RecipeError
from pare.files import write_whole
from pare.recipe import MAX_TEXT, Recipe, current_versions, parse_recipe, read_recipe, save_png

RECIPE = Recipe(
    command="blend",
    arguments={"prompt": "Straße — 雪 \udcff", "mask": "m.png", "steps": 25, "size": None},
    inputs={"mask": {"path": "m.png", "sha256": "00" * 32}},
    model={"spec": "roads"},
    scheduler={"name": "ddim", "eta": 0.0},
    seeds=[7, 2**63 - 1],
    index=1,
    device="cpu",
    dtype="float32",
    threads=2,
    versions=current_versions(),
)


def test_a_picture_brings_its_recipe_back(tmp_path: Path, gradient: Image.Image) -> None:
    write_whole(tmp_path / "a.png", lambda file: save_png(gradient, RECIPE, file))
    assert read_recipe(tmp_path / "a.png") == RECIPE
    assert RECIPE.seed == 2**63 - 1
    with Image.open(tmp_path / "a.png") as image:
        assert image.tobytes() == gradient.tobytes()
        assert image.info["pare"].isascii()


def test_versions_name_what_can_change_a_pixel() -> None:
    assert {"pare", "python", "torch", "transformers", "numpy", "pillow"} <= set(current_versions())


def test_pictures_without_a_recipe(tmp_path: Path, gradient: Image.Image) -> None:
    gradient.save(tmp_path / "a.png")
    with pytest.raises(RecipeError, match="carries no recipe"):
        read_recipe(tmp_path / "a.png")
    gradient.save(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="is not a picture"):
        read_recipe(tmp_path / "a.jpg")


def save_with_text(path: Path, text: str) -> None:
    information = PngImagePlugin.PngInfo()
    information.add_text("pare", text, zip=True)
    Image.new("RGB", (8, 8)).save(path, pnginfo=information)


def test_a_text_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    save_with_text(tmp_path / "a.png", "x" * 50_000_000)
    assert (tmp_path / "a.png").stat().st_size < 100_000
    with pytest.raises((RecipeError, ImageError)) as caught:
        read_recipe(tmp_path / "a.png")
    assert len(str(caught.value)) < 1000


def with_changes(**changes: Any) -> str:
    raw = {**json.loads(RECIPE.to_json()), **changes}
    return json.dumps({key: value for key, value in raw.items() if value != "ABSENT"})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '"pare"',
        "null",
        "[" * 100_000,
        '{"a":' * 50_000,
        " " * (MAX_TEXT + 1),
        with_changes(threads=float("nan")),
        with_changes(seed=1),
        with_changes(model="ABSENT"),
        with_changes(model="roads"),
        with_changes(arguments=[]),
        with_changes(inputs={"image": "a.png"}),
        with_changes(inputs={"image": {"path": "a.png"}}),
        with_changes(inputs={"image": {"path": "a.png", "sha256": 1}}),
        with_changes(seeds=[]),
        with_changes(seeds=[-1, 0]),
        with_changes(seeds=[True, False]),
        with_changes(seeds=list(range(10_000))),
        with_changes(index=2),
        with_changes(index=-1),
        with_changes(index=0.0),
        with_changes(threads=0),
        with_changes(device=None),
        with_changes(versions={"torch": 2}),
        with_changes(format=0),
        with_changes(format=True),
        with_changes(format="1"),
        '{"seeds": ' + "9" * 5000 + "}",
    ],
    ids=lambda text: text[:20],
)
def test_what_pare_did_not_write_is_refused(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "a.png")
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


def test_a_newer_format_is_told_from_a_broken_one() -> None:
    with pytest.raises(RecipeError, match="newer pare"):
        parse_recipe(with_changes(format=2, something_new=1), "a.png")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
FIELDS = st.sampled_from([field.name for field in dataclasses.fields(Recipe)])


@given(changes=st.dictionaries(FIELDS, JSON, max_size=3))
@example(changes={})
def test_any_json_is_a_recipe_or_a_recipe_error(changes: dict[str, Any]) -> None:
    try:
        recipe = parse_recipe(with_changes(**changes), "a.png")
    except RecipeError:
        return
    assert parse_recipe(recipe.to_json(), "a.png") == recipe
    assert isinstance(recipe.seed, int)
