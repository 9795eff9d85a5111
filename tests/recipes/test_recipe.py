"""Recipes survive the image, and reading a stranger's does no harm."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from pare.errors import ImageError, RecipeError
from pare.io.images import load_image
from pare.io.whole_files import write_whole
from pare.recipes.recipe import (
    EXIF_FOLDER,
    FORMAT,
    MAX_FILE,
    MAX_TEXT,
    USER_COMMENT,
    Recipe,
    as_stored,
    current_versions,
    parse_recipe,
    read_recipe,
    save_image,
)

RECIPE = Recipe(
    command="blend",
    arguments={"prompt": "Straße — 雪 \udcff", "mask": "m.png", "steps": 25, "size": None},
    inputs={"mask": {"name": "m.png", "sha256": "00" * 32}},
    model={"spec": "roads"},
    scheduler={"name": "ddim", "eta": 0.0},
    seeds=[7, 2**63 - 1],
    index=1,
    device="cpu",
    dtype="float32",
    threads=2,
    versions=current_versions(),
)


def test_an_image_brings_its_recipe_back(tmp_path: Path, gradient: Image.Image) -> None:
    write_whole(tmp_path / "a.png", lambda file: save_image(gradient, RECIPE, ".png", file))
    assert read_recipe(tmp_path / "a.png") == RECIPE
    assert RECIPE.seed == 2**63 - 1
    with Image.open(tmp_path / "a.png") as image:
        assert image.tobytes() == gradient.tobytes()
        assert image.info["pare"].isascii()


def test_a_place_in_a_run_is_a_seed_and_a_part(tmp_path: Path, gradient: Image.Image) -> None:
    target = dataclasses.replace(RECIPE, parts=["source", "target-1"], part="target-1")
    write_whole(tmp_path / "a.png", lambda file: save_image(gradient, target, ".png", file))
    assert read_recipe(tmp_path / "a.png") == target
    # A run that makes one image a seed says nothing of parts: every pare reads its recipes.
    assert not {"parts", "part"} & set(json.loads(RECIPE.to_json()))


def test_versions_name_what_can_change_a_pixel() -> None:
    assert {"pare", "python", "torch", "transformers", "numpy", "pillow"} <= set(current_versions())


def test_images_without_a_recipe(tmp_path: Path, gradient: Image.Image) -> None:
    gradient.save(tmp_path / "a.png")
    with pytest.raises(RecipeError, match="carries no recipe"):
        read_recipe(tmp_path / "a.png")
    for ending in (".jpg", ".webp", ".avif"):
        gradient.save(tmp_path / f"a{ending}")
        with pytest.raises(RecipeError, match="carries no recipe"):
            read_recipe(tmp_path / f"a{ending}")
    gradient.save(tmp_path / "a.gif")
    with pytest.raises(ImageError, match="is not an image"):
        read_recipe(tmp_path / "a.gif")


@pytest.mark.parametrize("ending", [".jpg", ".jpeg", ".webp", ".avif"])
def test_other_formats_carry_the_recipe_in_their_exif(
    tmp_path: Path, gradient: Image.Image, ending: str
) -> None:
    path = tmp_path / f"a{ending}"
    write_whole(path, lambda file: save_image(gradient, RECIPE, ending, file))
    assert read_recipe(path) == RECIPE
    # What is compared with such a file is first stored as it was.
    stored = as_stored(gradient, path)
    assert (stored.mode, stored.size) == ("RGB", gradient.size)
    assert stored.tobytes() == load_image(path).tobytes()
    assert (load_image(path).tobytes() == gradient.tobytes()) == (ending == ".webp")


@pytest.mark.parametrize(
    "comment", [b"", b"UNICODE\0{}", b"ASCII\0\0\0", b"ASCII\0\0\0a photo", "text", 5]
)
def test_another_comment_is_no_recipe(
    tmp_path: Path, gradient: Image.Image, comment: object
) -> None:
    exif = Image.Exif()
    exif.get_ifd(EXIF_FOLDER)[USER_COMMENT] = comment
    gradient.save(tmp_path / "a.jpg", exif=exif)
    with pytest.raises(RecipeError, match="carries no recipe"):
        read_recipe(tmp_path / "a.jpg")


def test_a_recipe_of_the_first_format_keeps_its_paths_and_loses_its_outputs() -> None:
    old = {
        "format": 1,
        "inputs": {"mask": {"path": "/home/me/m.png", "sha256": "00" * 32}},
        "arguments": {"mask": "/home/me/m.png", "out": "a.png", "force": True, "as_json": False},
    }
    recipe = parse_recipe(with_changes(**old), "a.png")
    assert recipe.inputs == {"mask": {"name": "/home/me/m.png", "sha256": "00" * 32}}
    assert recipe.arguments == {"mask": "/home/me/m.png"}
    assert recipe.format == FORMAT


def save_with_texts(path: Path, text: str, *, times: int = 1, kind: str = "tEXt") -> None:
    information = PngImagePlugin.PngInfo()
    for _ in range(times):
        if kind == "iTXt":
            information.add_itxt("pare", text, zip=True)
        else:
            information.add_text("pare", text, zip=kind == "zTXt")
    Image.new("RGB", (8, 8)).save(path, pnginfo=information)


@pytest.mark.parametrize("kind", ["zTXt", "iTXt"])
@pytest.mark.parametrize(("size", "times"), [(20_000_000, 1), (1_000_000, 100)])
def test_texts_that_unpack_to_a_hundred_megabytes(
    tmp_path: Path, kind: str, size: int, times: int
) -> None:
    save_with_texts(tmp_path / "a.png", "x" * size, times=times, kind=kind)
    assert (tmp_path / "a.png").stat().st_size < 200_000
    tracemalloc.start()
    try:
        with pytest.raises((RecipeError, ImageError)) as caught:
            read_recipe(tmp_path / "a.png")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 1000
    assert peak < 150_000_000


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt"])
def test_other_programs_may_pack_the_text_otherwise(tmp_path: Path, kind: str) -> None:
    save_with_texts(tmp_path / "a.png", RECIPE.to_json(), kind=kind)
    assert read_recipe(tmp_path / "a.png") == RECIPE


def test_a_file_larger_than_any_image_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(MAX_FILE + 1)  # takes no room on the disk
    with pytest.raises(RecipeError, match="larger than any image"):
        read_recipe(tmp_path / "a.png")


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
        with_changes(arguments={"guidance": float("inf")}),
        with_changes(arguments={"guidance": 0.5}).replace("0.5", "1e999"),
        with_changes(arguments={"a": json.loads("[" * 20 + "]" * 20)}),
        with_changes(device="/dev/sda"),
        with_changes(device="cuda:"),
        with_changes(dtype="object"),
        with_changes(dtype=["float32"]),
        with_changes(seed=1),
        with_changes(model="ABSENT"),
        with_changes(model="roads"),
        with_changes(arguments=[]),
        with_changes(inputs={"image": "a.png"}),
        with_changes(inputs={"image": {"name": "a.png"}}),
        with_changes(inputs={"image": {"name": "a.png", "sha256": 1}}),
        with_changes(inputs={"image": {"path": "a.png", "sha256": "00"}}),
        with_changes(inputs={"image": {"name": "\ud800.png", "sha256": "00"}}),
        with_changes(arguments={"prompt": "a", "model": "\ud800"}),
        with_changes(arguments={"\ud800": "a"}),
        with_changes(model={"name": ["\udfff"]}),
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
        with_changes(parts=["source", "target"]),
        with_changes(part="source"),
        with_changes(parts=[], part=""),
        with_changes(parts=["source"], part="source"),
        with_changes(parts=["source", "target"], part="other"),
        with_changes(parts=["source", "target"], part=0),
        with_changes(parts=["source", "source"], part="source"),
        with_changes(parts=["source", "../target"], part="source"),
        with_changes(parts=["source", "a\x1b[2J"], part="source"),
        with_changes(parts=["source", ["target"]], part="source"),
        with_changes(parts="source", part="source"),
        with_changes(parts=[f"p{k}" for k in range(65)], part="p1"),
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
        parse_recipe(with_changes(format=3, something_new=1), "a.png")


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
