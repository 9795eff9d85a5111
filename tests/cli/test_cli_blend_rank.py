"""`pare blend --rank`: which of several images shows the prompt best, and who says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pare.cli.main import main
from pare.io.images import to_tensor
from pare.recipes.recipe import read_recipe
from roads.judge.judge import load_judge
from roads.judge.judge_loss import judge_loss
from techniques.loss_guidance.clip_loss import clip_loss
from tests.techniques.test_loss_guidance import write_clip
from tests.tiny_model import write_tiny_model

PROMPT = "a snowy road with a red car and no house"
BOX = (8, 16, 32, 40)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rank")
    write_tiny_model(folder / "model")
    write_clip(folder / "clip")
    colours = np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8)
    Image.fromarray(colours).save(folder / "photo.png")
    mask = np.zeros((48, 48), np.uint8)
    mask[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return folder


def blend(*more: str, prompt: str = PROMPT) -> int:
    given = ["--mask", "mask.png", "--model", "model", "--steps", "2", "--force"]
    return main(["blend", "photo.png", prompt, *given, *more])


def score(candidate: Image.Image, who: str) -> float:
    """How well the image shows PROMPT, computed another way."""
    if who == "judge":
        image = to_tensor(candidate) / 2 + 0.5
        wanted = ("snowy", "red car", "no house")
        return -sum(float(judge_loss(load_judge(), name)(image)) for name in wanted)
    return -float(clip_loss(Path("clip"), PROMPT)(to_tensor(candidate.crop(BOX)) / 2 + 0.5))


@pytest.mark.parametrize("who", ["judge", "clip"])
def test_images_are_ranked(
    who: str, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny)
    assert blend("--rank", who, "--count", "3", "--json") == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    paths = [image["path"] for image in result["images"]]
    expected = [score(Image.open(path), who) for path in paths]
    assert result["scores"] == pytest.approx(expected, abs=1e-4)
    assert len(set(expected)) == 3
    # To look at images changes none: the recipe does not know of it.
    assert "rank" not in read_recipe(paths[0]).arguments
    assert main(["rerun", paths[0], "--check"]) == 0


def test_the_best_is_named_first(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny)
    assert blend("--rank", "judge", "--count", "3") == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "best by judge" in line]
    scores = {name: score(Image.open(name), "judge") for name in
              ("blend-0.png", "blend-1.png", "blend-2.png")}  # fmt: skip
    places = [line.index(name) for name in sorted(scores, key=lambda name: -scores[name])]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("more", "prompt", "words"),
    [
        (["--rank", "nowhere"], PROMPT, "nowhere"),
        (["--rank", "model"], PROMPT, "model"),
        (["--rank", "judge"], "a dragon", "'a dragon' says nothing that the judge of roads knows"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_is_made(
    more: list[str], prompt: str, words: str, tiny: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tiny)
    assert blend(*more, "--out", "none.png", prompt=prompt) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert not Path("none.png").exists()
