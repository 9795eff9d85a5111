"""What the command says of prompts, masks and weights that do not fit, on every command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pare.cli.main import main
from pare.text.text_encoder import known_words
from tests.conftest import ROADS
from tests.tiny_model import change_json, write_tiny_model

LONG = "a car " * 40 + "behind the house"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a tiny model, an image and a mask."""
    monkeypatch.chdir(tmp_path)
    Image.linear_gradient("L").resize((32, 24)).convert("RGB").save("photo.png")
    mask = Image.new("L", (32, 24))
    mask.paste(255, (8, 8, 24, 16))
    mask.save("mask.png")
    folder = write_tiny_model(tmp_path / "tiny")
    none = {"safety_checker": [None, None], "feature_extractor": [None, None]}
    change_json(folder / "model_index.json", **none)  # that it is left out would be said
    return folder


COMMANDS = {
    "generate": ["--size", "32x24"],
    "img2img": ["photo.png"],
    "blend": ["photo.png", "--mask", "mask.png"],
}


def warnings_of(
    capsys: pytest.CaptureFixture[str], command: str, prompt: str, *more: str
) -> list[str]:
    arguments = [command, *COMMANDS[command], "--model", "tiny", "--steps", "1", "--force"]
    assert main([*arguments, *more, "--", prompt]) == 0
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if "warning" in line]


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_cut_off_a_long_prompt_is_shown(
    tiny: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (line,) = warnings_of(capsys, command, LONG)
    assert re.search(r"the prompt has \d+ tokens .* reads 75: '.*behind the house' is cut", line)
    (line,) = warnings_of(capsys, command, "a car", "--negative", LONG)
    assert "behind the house' is cut off" in line
    assert warnings_of(capsys, command, "a car", "--negative", "the house") == []


@pytest.mark.parametrize("command", COMMANDS)
def test_words_that_the_model_does_not_know_are_named(
    tiny: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert warnings_of(capsys, command, "a dragon") == []  # it lists no words
    (tiny / "tokenizer" / "words.txt").write_text("a\ncar\nnight\n")
    assert warnings_of(capsys, command, "A car, a CAR!", "--negative", "night") == []
    (line,) = warnings_of(capsys, command, "a dragon's car, dragon's", "--negative", "blurry night")
    assert line == (
        "pare: warning: tiny was not trained on \"dragon's\", 'blurry'; "
        "`pare inspect tiny` lists the 3 words that it knows"
    )


def test_the_built_in_model_knows_its_words() -> None:
    known = known_words(ROADS)
    assert known is not None
    assert {"a", "snowy", "road", "car", "forest"} <= known
    assert not known & {"dragon", ",", ""}


def test_a_mask_that_is_white_everywhere_is_said_once(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (32, 24), 255).save("mask.png")
    (line,) = warnings_of(capsys, "blend", "a car")
    assert line == "pare: warning: the mask is white everywhere: nothing is kept"
    Image.new("L", (16, 12), 255).save("mask.png")
    lines = warnings_of(capsys, "blend", "a car")
    assert sum("white everywhere" in line for line in lines) == 1


def test_weights_that_do_not_fit_are_a_sentence_and_a_sorted_table(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["conv_out.bias"]
    tensors["conv_in.bias"] = torch.zeros(3)
    tensors |= {name: torch.zeros(1) for name in ("a.more", "z.\x1b[2J")}
    save_file(tensors, path)
    assert main(["generate", "a car", "--model", "tiny"]) == 2
    captured = capsys.readouterr()
    sentence, *table = captured.err.splitlines()
    assert captured.out == ""
    assert (
        sentence
        == f"pare: {path.relative_to(Path.cwd())} does not fit its config.json in 4 tensors"
    )
    rows = [tuple(row.split()) for row in table]
    assert [row[:2] for row in rows[:2]] == [("missing", "conv_out.bias"), ("unexpected", "a.more")]
    assert rows[2][1] == r"z.\x1b[2J"
    assert table[3].startswith("  wrong shape  conv_in.bias  3 instead of ")
    assert len(table) == 4
