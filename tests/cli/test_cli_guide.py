"""`pare guide`: what it prints, what it refuses, and that its images can be made again."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from pare.cli.main import main
from pare.io.whole_files import sha256
from pare.recipes.recipe import read_recipe
from tests.tiny_model import change_json, write_tiny_model


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a tiny model and an image."""
    monkeypatch.chdir(tmp_path)
    folder = write_tiny_model(tmp_path / "tiny")
    none = {"safety_checker": [None, None], "feature_extractor": [None, None]}
    change_json(folder / "model_index.json", **none)  # that it is left out would be said
    Image.linear_gradient("L").resize((20, 12)).convert("RGB").save(tmp_path / "photo.png")
    return tmp_path


def guide(*arguments: str) -> int:
    settings = ["--model", "tiny", "--steps", "3", "--size", "16x24", "--every", "2", "--force"]
    return main(["guide", "the road", *settings, *arguments])


def test_every_look_is_told_and_in_the_json(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert guide("--loss", "blue", "--out", "a.png") == 0
    captured = capsys.readouterr()
    assert captured.out == "a.png\n"
    number = r"[\d.e-]+"
    told = (
        rf"a.png: the loss was {number}, {number} at the guided steps, and is {number}, "
        rf"without guidance {number}"
    )
    assert re.fullmatch(told, captured.err.strip())
    assert guide("--loss", "blue", "--seed", "1", "--count", "2", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [image["seed"] for image in found["images"]] == [1, 2]
    assert [[look["step"] for look in one["steps"]] for one in found["guidance"]] == [[0, 2]] * 2
    assert set(found["guidance"][0]["steps"][0]) == {"step", "t", "loss", "moved"}


def test_without_a_scale_the_image_is_generate_s(tiny: Path) -> None:
    assert guide("--loss", "blue", "--scale", "0", "--out", "a.png") == 0
    again = ["--model", "tiny", "--steps", "3", "--size", "16x24", "--out", "b.png"]
    assert main(["generate", "the road", *again]) == 0
    assert Image.open("a.png").tobytes() == Image.open("b.png").tobytes()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--loss", "(image[:, 2] - 0.9).abs().mean() + 0.1 * symmetry", "--through-unet"],
        ["--loss", "style", "--style", "photo.png", "--style-by", "moments", "--scale", "2"],
        ["--loss", "style", "--style", "photo.png", "--style-of", "unet", "--count", "2"],
        ["--loss", "-image.mean()", "--replace", "road=car", "--scheduler", "euler-ancestral"],
        ["--loss", "judge('no car')", "--scale", "1e2"],
    ],
    ids=lambda arguments: arguments[1],
)
def test_images_are_made_again(
    tiny: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert guide(*arguments, "--seed", "4", "--out", "a.png") == 0
    made = sorted(tiny.glob("a*.png"))
    recipe = read_recipe(made[-1])
    assert recipe.arguments["loss"] == arguments[1]
    hashed = {"style": {"name": "photo.png", "sha256": sha256(tiny / "photo.png")}}
    assert recipe.inputs == (hashed if "--style" in arguments else {})
    capsys.readouterr()
    assert main(["rerun", str(made[-1]), "--check"]) == 0
    assert "the same to the pixel" in capsys.readouterr().out


def test_a_stranger_s_loss_is_read_as_yours_is(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import PngImagePlugin

    assert guide("--loss", "blue", "--out", "a.png") == 0
    image = Image.open("a.png")
    text = PngImagePlugin.PngInfo()
    harm = "__import__('pathlib').Path('harm').touch()"
    text.add_text("pare", image.info["pare"].replace('"blue"', json.dumps(harm)))
    image.save("b.png", pnginfo=text)
    capsys.readouterr()
    assert main(["rerun", "b.png"]) == 2
    assert "names '__import__'" in capsys.readouterr().err
    assert not (tiny / "harm").exists()


def test_clip_is_named_by_its_folder_and_kept_by_its_weights(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.techniques.test_loss_guidance import write_clip

    write_clip(tiny / "clip")
    options = ["--loss", "clip + clip('a car')", "--clip", "clip", "--out", "a.png"]
    assert guide(*options) == 0
    recipe = read_recipe("a.png")
    weights = "clip/model.safetensors"
    assert recipe.inputs == {"clip": {"name": weights, "sha256": sha256(tiny / weights)}}
    shutil.move("clip", "moved")
    capsys.readouterr()
    assert main(["rerun", "a.png", "--check"]) == 2
    assert "--input clip=PATH" in capsys.readouterr().err
    assert main(["rerun", "a.png", "--check", "--input", "clip=moved/model.safetensors"]) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "Missing option '--loss'"),
        (["--loss", "bleu"], "did you mean blue?"),
        (["--loss", "image"], "expected one number; take its .mean()"),
        (["--loss", "3"], "does not depend on the image"),
        (["--loss", "(image - image).log().mean()"], "the loss is -inf"),
        (["--loss", "(image - image).sqrt().mean()"], "gradient at step 0 holds NaN"),
        (["--loss", "blue", "--scale", "nan"], "scale is nan"),
        (["--loss", "blue", "--every", "0"], "--every"),
        (["--loss", "blue", "--steps", "0"], "steps is 0"),
        (["--loss", "style"], "name an image: --style IMAGE"),
        (["--loss", "style", "--style", "none.png"], "none.png: no such file"),
        (["--loss", "style", "--style", "tiny/model_index.json"], "is not an image"),
        (["--loss", "blue", "--style", "photo.png"], "does not use it"),
        (["--loss", "clip"], "name a model's folder: --clip FOLDER"),
        (["--loss", "clip", "--clip", "tiny"], "tiny/model.safetensors: no such file"),
        (["--loss", "judge"], "tells judge nothing"),
        (["--loss", "judge('dragon')"], "knows no 'dragon'"),
    ],
    ids=str,
)
def test_what_cannot_be_is_a_sentence(
    tiny: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert guide(*arguments, "--out", "out.png") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pare: ")
    assert captured.err.count("\n") == 1
    assert sentence in captured.err
    assert not (tiny / "out.png").exists()
