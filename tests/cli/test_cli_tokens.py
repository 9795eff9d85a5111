"""`pare tokens`, and the options that edit embeddings on commands that make images."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from pare.cli.embedding_options import LearnedWordFile, parse_mix, parse_mix_prompt, parse_replace
from pare.cli.main import main
from pare.errors import PareError
from pare.io.whole_files import sha256
from pare.recipes.recipe import read_recipe
from tests.random_models import normal
from tests.tiny_model import change_json, write_tiny_model

TOY = normal(2, 12, seed=6)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a tiny model and a learned word of two vectors."""
    monkeypatch.chdir(tmp_path)
    folder = write_tiny_model(tmp_path / "tiny")
    none = {"safety_checker": [None, None], "feature_extractor": [None, None]}
    change_json(folder / "model_index.json", **none)  # that it is left out would be said
    torch.save({"<cat-toy>": TOY}, tmp_path / "toy.bin")
    return folder


def generate(*arguments: str) -> int:
    settings = ["--model", "tiny", "--steps", "2", "--size", "16x16", "--force"]
    return main(["generate", *settings, *arguments])


# --- pare tokens ---------------------------------------------------------------------------


def test_the_table_has_a_line_a_token(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokens", "the snowy car", "--model", "tiny"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert captured.err == ""
    assert [line.split()[2] for line in lines[1:]] == [
        "<start>", "the", "sno", "wy", "car", "<end>", "padding",
    ]  # fmt: skip
    assert lines[-1].startswith(" 6-76")
    assert "moved" not in captured.out


def test_json_has_all_77(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["tokens", "the <cat-toy> car", "--model", "tiny", "--embedding", "toy.bin"]
    assert main([*arguments, "--near", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = found["tokens"]
    assert len(rows) == 77
    assert [row["text"] for row in rows[:6]] == [
        "<start>", "the", "<cat-toy>", "<cat-toy>", "car", "<end>",
    ]  # fmt: skip
    assert [row["id"] for row in rows[2:4]] == [found["vocabulary"], found["vocabulary"] + 1]
    assert rows[2]["token_norm"] == pytest.approx(TOY[0].norm().item(), abs=1e-3)
    assert all(len(row["nearest"]) == 2 for row in rows)
    assert rows[1]["moved"] == 0
    assert rows[2]["moved"] > 0


def test_the_causal_reach_of_a_word_is_told(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["tokens", "the road, the car", "--model", "tiny"]
    assert main([*arguments, "--mix", "the#2=road=0.1"]) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"outputs 0 to 3 are the same to the bit; 4 to 76 move, by .*", told)
    assert main([*arguments, "--replace", "car=car"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "the edits change none of the 77 outputs"


# --- images ------------------------------------------------------------------------------


def test_an_image_under_every_edit_is_made_again(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edits = [
        *("--embedding", "toy.bin", "--replace", "road=the", "--mix", "car=the=0.3"),
        *("--mix-prompt", "a car=0.25"),
    ]
    assert generate("the road, <cat-toy> car", *edits, "--out", "a.png") == 0
    recipe = read_recipe("a.png")
    assert recipe.inputs == {
        "embedding": {"name": "toy.bin", "sha256": sha256(tiny.parent / "toy.bin")}
    }
    assert recipe.arguments["embedding"] == ["toy.bin=<cat-toy>"]
    assert recipe.arguments["mix"] == ["car=the=0.3"]
    assert generate("the road, <cat-toy> car", "--embedding", "toy.bin", "--out", "b.png") == 0
    assert Image.open("a.png").tobytes() != Image.open("b.png").tobytes()
    capsys.readouterr()
    assert main(["rerun", "a.png", "--check"]) == 0
    assert "the same to the pixel" in capsys.readouterr().out


def test_several_learned_words_and_files_that_have_moved(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"<b>": TOY[:1]}, "b.bin")
    learned = ["--embedding", "toy.bin=<toy>", "--embedding", "b.bin"]
    assert generate("the <toy> car", *learned, "--negative", "<b>", "--out", "a.png") == 0
    assert list(read_recipe("a.png").inputs) == ["embedding", "embedding#2"]
    shutil.move("b.bin", "moved.bin")
    assert main(["rerun", "a.png", "--check"]) == 2
    assert "name the file (--input embedding#2=PATH)" in capsys.readouterr().err
    assert main(["rerun", "a.png", "--check", "--input", "embedding#2=moved.bin"]) == 0
    torch.save({"<b>": -9 * TOY[:1]}, "b.bin")  # another one under the old name
    assert main(["rerun", "a.png", "--check"]) == 2
    assert "has changed since" in capsys.readouterr().err
    assert main(["rerun", "a.png", "--check", "--input", "embedding#2=b.bin"]) == 1


def test_repainting_and_blending_know_the_edits(tiny: Path) -> None:
    Image.linear_gradient("L").resize((32, 24)).convert("RGB").save("photo.png")
    mask = Image.new("L", (32, 24))
    mask.paste(255, (8, 8, 24, 16))
    mask.save("mask.png")
    for command in (["img2img"], ["blend", "--mask", "mask.png"]):
        settings = ["photo.png", "--model", "tiny", "--steps", "2", "--force"]
        made = []
        for edit in (["the car"], ["the road", "--replace", "road=car"], ["the road"]):
            assert main([*command, *settings, *edit, "--out", "a.png"]) == 0
            made.append(Image.open("a.png").tobytes())
        assert made[0] == made[1]
        assert made[0] != made[2]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--replace", "car"], "--replace is 'car'; expected WORD=OTHER"),
        (["--replace", "=car"], "expected WORD=OTHER"),
        (["--replace", "dog=car"], "'dog' is not in the prompt 'the car'"),
        (["--mix", "car=the=x"], "expected WORD=OTHER or WORD=OTHER=SHARE"),
        (["--mix", "car=the=nan"], "share is nan"),
        (["--mix", "car=snowy"], "'car' is 1 token and 'snowy' 2 tokens"),
        (["--mix-prompt", "a road=99"], "share is 99.0"),
        (["--embedding", "none.bin"], "none.bin: no such file or folder"),
        (["--embedding", "."], "is a folder"),
        (["--embedding", "toy.bin"], "the learned word '<cat-toy>' is not in the prompt 'the car'"),
        (["--embedding", "toy.bin="], "a learned word is called ''"),
        (["--embedding", "tiny/model_index.json"], "not a whole safetensors file"),
    ],
    ids=str,
)
def test_edits_that_cannot_be_are_a_sentence(
    tiny: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert generate("the car", *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pare: ")
    assert captured.err.count("\n") == 1
    assert sentence in captured.err
    assert not list(tiny.parent.glob("*.png"))


# --- reading the options -------------------------------------------------------------------


def test_options_are_read_as_they_are_meant() -> None:
    assert parse_replace(" cat = a = b") == ("cat", "a = b")
    assert parse_mix("cat=dog") == ("cat", "dog", 0.5)
    assert parse_mix("cat=red dog=-0.25") == ("cat", "red dog", -0.25)
    assert parse_mix("cat=7") == ("cat", "7", 0.5)
    assert parse_mix_prompt("a = b") == ("a = b", 0.5)
    assert parse_mix_prompt("a leopard=0.65") == ("a leopard", 0.65)
    for text in ("", "=", "cat=", "a=b=", "a==0.5"):
        with pytest.raises(PareError):
            parse_mix(text)


@pytest.mark.parametrize(
    ("value", "file", "word"),
    [
        ("toy.bin", "toy.bin", None),
        ("toy.bin=<cat>", "toy.bin", "<cat>"),
        ("a=b.pt", "a=b.pt", None),
        ("a=b.pt=<c>", "a=b.pt", "<c>"),
        ("learned=<c>", "learned", "<c>"),
        ("learned", "learned", None),
    ],
)
def test_a_file_and_its_word(value: str, file: str, word: str | None) -> None:
    assert LearnedWordFile.split(value) == (file, word)
    kind = LearnedWordFile()
    assert LearnedWordFile.split(kind.with_file(value, "x.pt")) == ("x.pt", word)
