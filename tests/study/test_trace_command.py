"""`pare trace`: the image of `pare generate`, and beside it what happened inside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from safetensors.numpy import load_file

from pare.cli.main import main
from pare.recipes.recipe import read_recipe
from pare.study.record.recording import Recording
from tests.tiny_model import write_tiny_model

BASE = ("a snowy road", "--model", "tiny", "--steps", "3", "--scheduler", "ddim")


@pytest.fixture(autouse=True)
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_tiny_model(tmp_path / "tiny")


def test_the_image_is_generates_and_can_be_made_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["generate", *BASE, "--seed", "5", "--out", "plain.png"]) == 0
    given = ["--at", "unet.*", "--attention", "unet", "--seed", "5", "--seed", "6"]
    assert main(["trace", *BASE, *given, "--out", "road.png"]) == 0
    captured = capsys.readouterr()
    assert captured.out.split() == ["plain.png", "road-5.png", "road-6.png"]
    announced = next(line for line in captured.err.splitlines() if "a trace takes" in line)
    assert "of memory and of the disk" in announced
    assert Image.open("road-5.png").tobytes() == Image.open("plain.png").tobytes()
    assert read_recipe("road-5.png").command == "trace"
    assert main(["rerun", "road-6.png", "--check"]) == 0
    for seed in (5, 6):
        notes = json.loads(Path(f"road-{seed}.json").read_text())
        tensors = load_file(f"road-{seed}.safetensors")
        assert notes["seed"] == seed
        assert notes["tokens"][0] == "<start>"
        assert set(tensors) == set(notes["tensors"])
        assert tensors["x_t"].shape == (4, 1, 4, 8, 8)


def test_a_rerun_records_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["trace", *BASE, "--at", "unet.mid_block", "--out", "road.png"]) == 0
    before = sorted(path.name for path in Path().iterdir())

    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Recording, "__init__", never)
    assert main(["rerun", "road.png", "--out", "again.png"]) == 0
    assert sorted(path.name for path in Path().iterdir()) == sorted([*before, "again.png"])


def test_the_plan_runs_nothing_and_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--at", "unet.mid_block", "--keep", "map", "--every", "2", "--branch", "cond"]
    assert main(["trace", *BASE, *given, "--plan", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert [path.name for path in Path().iterdir()] == ["tiny"]
    assert main(["trace", *BASE, *given, "--out", "a.png", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["traces"] == ["a.safetensors"]
    tensors = load_file("a.safetensors")
    assert result["bytes"] == planned["bytes"] == sum(x.nbytes for x in tensors.values())
    shapes = {name: tuple(one["shape"]) for name, one in planned["tensors"].items()}
    assert shapes == {name: x.shape for name, x in tensors.items()}
    assert shapes["unet.mid_block:map"] == (2, 1, 4, 4)
    assert main(["trace", *BASE, *given, "--plan"]) == 0
    assert f"{len(tensors)} tensors, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--at", "unet.mid_blok"], "did you mean unet.mid_block"),
        (["--attention", "vae"], "no attention layer of the UNet is called 'vae'"),
        (["--keep", "all"], "'all' is not one of"),
        (["--every", "0"], "0 is not in the range"),
        (["--steps", "0"], "steps is 0"),
        (["--out", "no/where.png"], "does not exist"),
    ],
    ids=str,
)
def test_mistakes_are_one_sentence_and_leave_nothing(
    given: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", *BASE, *given]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if "warning" not in line]
    assert captured.out == ""
    assert len(lines) == 1
    assert words in lines[0]
    assert [path.name for path in Path().iterdir()] == ["tiny"]


@pytest.mark.parametrize("name", ["trace-0.safetensors", "trace-0.json", "trace-0.png"])
def test_no_file_is_overwritten_before_or_after(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(name).write_text("mine")
    assert main(["trace", *BASE, "--out", "."]) == 2
    assert f"{name} exists" in capsys.readouterr().err
    assert Path(name).read_text() == "mine"
    assert main(["trace", *BASE]) == 0  # under other names
    assert Path(name).read_text() == "mine"
    assert Path("trace-0-2.safetensors").stat().st_size > 1000
    assert main(["trace", *BASE, "--force"]) == 0
    assert Path("trace-0.safetensors").stat().st_size > 1000
