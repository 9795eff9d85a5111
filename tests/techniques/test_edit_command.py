"""`pare edit` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pare.cli.main import main
from pare.recipes.recipe import read_recipe
from roads.benchmark.edit_tasks import tasks

TASK = tasks("development")[0]
WORDS = ("--from", "a sunny road", "--to", "a snowy road")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image, a mask of its left half, and an inversion."""
    folder = tmp_path_factory.mktemp("edit")
    TASK.image.save(folder / "photo.png")
    mask = Image.new("L", (128, 128))
    mask.paste(255, (0, 0, 64, 128))
    mask.save(folder / "mask.png")
    Image.new("L", (100, 80), 255).save(folder / "other.png")
    arguments = ["invert", str(folder / "photo.png"), "a sunny road", "--steps", "2"]
    assert main([*arguments, "--method", "negative", "--out", str(folder / "again.png")]) == 0
    return folder


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_an_edit_is_written_reported_and_made_again(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["edit", "photo.png", *WORDS, "--steps", "2", "--out", "snowy.png", "--json"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["edit"], result["method"]) == ("p2p", "direct")
    (report,) = result["report"]
    assert report["reconstruction"]["psnr"] == report["vae_alone"]["psnr"]
    assert report["outside"] is None
    assert "the direct inversion by itself gives IMAGE back" in err
    assert read_recipe(Path("snowy.png")).inputs.keys() == {"image"}
    assert main(["rerun", "snowy.png", "--check"]) == 0
    assert "the same to the pixel" in capsys.readouterr().out


def test_an_inversion_s_file_is_edited_without_inverting_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["edit", "photo.png", "--inversion", "again.safetensors", "--to", "a snowy road"]
    arguments += ["--mask", "mask.png", "--out", "left.png", "--no-reconstruction"]
    assert main(arguments) == 0
    before, after = np.asarray(TASK.image), np.asarray(Image.open("left.png"))
    assert np.array_equal(after[:, 64:], before[:, 64:])
    assert not np.array_equal(after[:, :64], before[:, :64])
    assert read_recipe(Path("left.png")).inputs.keys() == {"image", "mask", "inversion"}
    assert "outside the mask: IMAGE's pixels, exactly" in capsys.readouterr().err
    assert main(["rerun", "left.png", "--check"]) == 0


def test_edit_friendly_draws_noise_and_the_others_say_that_they_do_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["edit", "photo.png", *WORDS, "--steps", "2", "--edit", "resample", "--count", "2"]
    assert main([*arguments, "--no-reconstruction", "--out", "many.png"]) == 0
    one, two = (Image.open(f"many-{seed}.png") for seed in (0, 1))
    assert one.tobytes() != two.tobytes()
    capsys.readouterr()
    assert main([*arguments, "--method", "ddim", "--out", "more.png"]) == 2
    assert "ddim draws no noise" in capsys.readouterr().err


def test_erasing_asks_for_the_source_again_and_takes_weights() -> None:
    arguments = ["edit", "photo.png", "--from", "a sunny road", "--edit", "erase", "--steps", "2"]
    concepts = ["--concept", "a car=3", "--concept", "the sun"]
    assert main([*arguments, *concepts, "--no-reconstruction", "--out", "less.png"]) == 0
    assert read_recipe(Path("less.png")).arguments["concept"] == ["a car=3", "the sun"]


def test_the_table_of_words_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["edit", "photo.png", *WORDS, "--explain"]) == 0
    assert "snowy" in capsys.readouterr().out
    assert not Path("edit-0.png").exists()


WRONG = {
    "no source": (["--to", "a road"], "Missing option '--from': what IMAGE shows"),
    "no target": (["--from", "a road"], "Missing option '--to'"),
    "the same twice": (
        ["--inversion", "again.safetensors", "--to", "a", "--steps", "2"],
        "--steps is that of --inversion: leave it out",
    ),
    "another prompt": (
        ["--inversion", "again.safetensors", "--from", "a road", "--to", "a"],
        "the inversion is of 'a sunny road'",
    ),
    "no inversion": (["--inversion", "photo.png", "--to", "a"], "no whole safetensors file"),
    "no file": (["--inversion", "none.safetensors", "--to", "a"], "no such file"),
    "words of another edit": (
        [*WORDS, "--edit", "resample", "--self-replace", "0.3"],
        "--self-replace has no effect with --edit resample",
    ),
    "concepts of another edit": (
        [*WORDS, "--concept", "car"], "--concept has no effect with --edit p2p",
    ),
    "a concept without a number": (
        ["--from", "a", "--edit", "erase", "--concept", "car=much"], "WORDS or WORDS=WEIGHT",
    ),
    "an empty concept": (["--from", "a", "--edit", "erase", "--concept", " "], "concept is empty"),
    "nothing to erase": (["--from", "a road", "--edit", "erase"], "0 concepts"),
    "a seam without a mask": ([*WORDS, "--feather", "2"], "--feather needs --mask"),
    "no mask": ([*WORDS, "--edit", "blend"], "needs --mask"),
    "another shape": ([*WORDS, "--edit", "blend", "--mask", "other.png"], "mask"),
    "a word that is not there": ([*WORDS, "--weight", "car=2"], "'car' is not in the prompt"),
    "a method that does not go": (
        [*WORDS, "--edit", "blend", "--mask", "mask.png", "--method", "direct"],
        "direct inversion has no effect on the edit 'blend'",
    ),
    "another solver": ([*WORDS, "--scheduler", "euler", "--steps", "2"], "no exact inverse"),
    "no steps": ([*WORDS, "--steps", "0"], "steps is 0"),
    "guidance that is no number": ([*WORDS, "--guidance", "nan"], "guidance is nan"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG)
def test_what_is_wrong_is_said_in_a_sentence(
    mistake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, sentence = WRONG[mistake]
    assert main(["edit", "photo.png", *arguments, "--out", "wrong.png"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert not Path("wrong.png").exists()


def test_an_inversion_of_another_image_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(TASK.target_pixels).save("target.png")
    arguments = ["edit", "target.png", "--inversion", "again.safetensors", "--to", "a"]
    assert main([*arguments, "--out", "wrong.png"]) == 2
    assert "the inversion is of another image" in capsys.readouterr().err
