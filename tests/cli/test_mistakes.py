"""Fifty things that users get wrong: each ends in one sentence that says what to do instead."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from pare.cli.main import main
from pare.pipeline import Pipeline
from tests.fake_pipeline import FakePipeline

A_ROAD = "a road"
MISTAKES: list[tuple[list[str], str]] = [
    # Commands, arguments and options.
    (["genrate", A_ROAD], "'generate'?)"),
    (["image2image", "photo.png", A_ROAD], "No such command"),
    (["generate"], "Missing argument 'PROMPT'"),
    (["generate", "a", "road"], "put a prompt of several words in quotes"),
    (["generate", A_ROAD, "--grid", "grid.png"], "--grid takes no value"),
    (["generate", "--force", "a", "road"], "put a prompt of several words in quotes"),
    (["generate", A_ROAD, "--step", "5"], "Did you mean"),
    (["generate", A_ROAD, "--guidence", "5"], "Did you mean one of: '--device', '--guidance'"),
    (["generate", A_ROAD, "--steps"], "'--steps' requires an argument"),
    (["img2img", A_ROAD, "photo.png"], "the image comes first: IMAGE PROMPT"),
    (["img2img", "photo.png"], "Missing argument 'PROMPT'"),
    (["p2p", A_ROAD], "Missing argument 'TARGET...'"),
    # Numbers.
    (["generate", A_ROAD, "--steps", "0"], "--steps is 0; expected a whole number from 1 to 1000"),
    (["generate", A_ROAD, "--steps", "many"], "'many' is not a valid integer"),
    (["generate", A_ROAD, "--steps", "2.5"], "'2.5' is not a valid integer"),
    (["generate", A_ROAD, "--guidance", "1..5"], "pare sweep --vary guidance=1..5"),
    (["generate", A_ROAD, "--steps", "5,10,20"], "pare sweep --vary steps=5,10,20"),
    (["generate", A_ROAD, "--guidance", "nan"], "--guidance is nan; expected a number"),
    (["generate", A_ROAD, "--rescale", "2"], "--rescale is 2.0; expected a number from 0 to 1"),
    (["generate", A_ROAD, "--size", "100x100"], "the width is 100; expected a multiple of 8"),
    (["generate", A_ROAD, "--size", "513"], "the width is 513; expected a multiple of 8"),
    (["generate", A_ROAD, "--size", "big"], "expected WIDTHxHEIGHT, for example 512x512"),
    (["img2img", "photo.png", A_ROAD, "--strength", "0"], "--strength is 0, which runs no step"),
    (["img2img", "photo.png", A_ROAD, "--strength", "60"], "expected a number above 0, at most 1"),
    (["img2img", "photo.png", A_ROAD, "--strength", "1.5"], "expected a number above 0, at most 1"),
    (["img2img", "photo.png", A_ROAD, "--strength", "1", "--start", "3"], "--start exclude each"),
    # Seeds.
    (["generate", A_ROAD, "--seed", "-2"], "or -1 for a random one"),
    (["generate", A_ROAD, "--seed", "4-1"], "expected a range of 1 to 256 seeds"),
    (["generate", A_ROAD, "--seed", "1-999"], "expected a range of 1 to 256 seeds"),
    (["generate", A_ROAD, "--seed", "seven"], "expected a whole number"),
    (["generate", A_ROAD, "--seed", "7", "--seed", "7"], "give each once"),
    (["generate", A_ROAD, "--seed", "1-2", "--count", "2"], "give several seeds, or one seed"),
    (["generate", A_ROAD, "--count", "0"], "--count is 0; expected a whole number from 1"),
    # Names.
    (["generate", A_ROAD, "--scheduler", "dpmpp_3m"], "(Did you mean 'dpm++2m'?)"),
    (["generate", A_ROAD, "--scheduler", "dreamer"], "is not one of 'ddim'"),
    (["generate", A_ROAD, "--dtype", "int8"], "is not one of 'auto'"),
    (["sweep", A_ROAD, "--over", "foo=1"], "expected AXIS=VALUE,VALUE"),
    (["sweep", A_ROAD, "--over", "steps=a,b"], "'--steps': 'a' is not a valid integer"),
    (["sweep", A_ROAD, "--over", "replace=sky,sea"], "'sky' is not in the prompt"),
    (["sweep", A_ROAD, "--over", "start=1"], "start needs an image to start from; pass --image"),
    (["completion", "tcsh"], "'tcsh' is not one of 'bash'"),
    # Files.
    (["img2img", "missing.png", A_ROAD], "missing.png: no such file or folder"),
    (["img2img", ".", A_ROAD], ".: is a folder; expected a file"),
    (["img2img", "text.txt", A_ROAD], "is not an image that pare reads; expected PNG"),
    (["generate", A_ROAD, "--out", "road.gif"], "expected a name that ends in .png or .jpg"),
    (["generate", A_ROAD, "--out", "missing/a.png"], "does not exist; create it first"),
    (["generate", A_ROAD, "--out", "photo.png"], "photo.png exists; pass --force to overwrite it"),
    (["film", A_ROAD, "--out", "road.avi"], "expected a name that ends in .mp4 or .gif"),
    (["report", A_ROAD, "--out", "road.pdf"], "expected a name that ends in .html"),
    (["rerun", "photo.png"], "carries no recipe; expected an image as `pare` wrote it"),
    (["rerun", "photo.png", "--show", "--check"], "exclude each other"),
    (["convert", "text.txt"], "Missing argument 'TARGET'"),
    # Presets.
    (["generate", A_ROAD, "--preset", "drafts"], "there is no preset 'drafts' (did you mean"),
    (["generate", A_ROAD, "--preset", "typo"], "'stesp', which is no option of `pare generate` ("),
    (["generate", A_ROAD, "--preset", "wrong"], "steps of [wrong] in"),
    (["blend", "photo.png", A_ROAD, "--preset", "draft"], "sets 'batch_sise', which is no option"),
    # Masks and words.
    (["blend", "photo.png", A_ROAD], "Missing option '--mask'"),
    (["blend", "photo.png", A_ROAD, "--mask", "black.png"], "pass --invert-mask"),
    (["blend", "photo.png", A_ROAD, "--mask", "wide.png"], "expected a mask of the image's shape"),
    (["erase", A_ROAD], "Missing option '--concept'"),
    (["erase", A_ROAD, "--concept", "=5"], "expected WORDS or WORDS=WEIGHT"),
    (["p2p", A_ROAD, "a snowy road", "--weight", "snowy"], "expected WORD=NUMBER"),
    (["p2p", A_ROAD, "a snowy road", "--cross-replace", "2"], "expected a number from 0 to 1"),
    (["edit", "photo.png", "--to", A_ROAD], "Missing option '--from': what IMAGE shows"),
    (["edit", "photo.png", "--from", A_ROAD, "--to", "x", "--concept", "a"], "has no effect with"),
    (["generate", A_ROAD, "--replace", "sunny"], "--replace is 'sunny'; expected WORD=OTHER"),
    (["attention", A_ROAD, "--pixel", "2,2"], "expected X,Y from 0,0 (upper left)"),
]


PRESETS = """
draft = {steps = 3, blend = {batch_sise = 1}}
typo = {stesp = 3}
wrong = {steps = true}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pipe = FakePipeline()
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda *_, **__: pipe)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (16, 16)).save("photo.png")
    Image.new("L", (16, 16)).save("black.png")
    Image.linear_gradient("L").resize((64, 16)).save("wide.png")
    Path("text.txt").write_text("text\n")
    Path("pare.toml").write_text(PRESETS)
    return tmp_path


def test_there_are_fifty() -> None:
    assert len(MISTAKES) >= 50


@pytest.mark.parametrize(("arguments", "sentence"), MISTAKES, ids=lambda one: " ".join(one)[:50])
def test_a_mistake_gets_a_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    before = sorted(path.name for path in folder.iterdir())
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pare: ")
    assert captured.err.count("\n") == 1
    assert sentence in captured.err
    assert "`" not in re.sub("`pare[^`]*`", "", captured.err)  # a parameter that is no option
    assert sorted(path.name for path in folder.iterdir()) == before
