"""Images that pare made before run again, or a sentence says why not.

`format_1` holds what pare 0.1.0 wrote when recipes had their first format, on the tiny model of
these tests (`write_tiny_model`), from photo.png and mask.png.  `full-path.png` names both by
full paths of another machine.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from pare.cli.main import main
from pare.recipes.recipe import read_recipe
from tests.conftest import ROOT
from tests.tiny_model import write_tiny_model

FORMAT_1 = ROOT / "tests" / "recipes" / "format_1"
INPUTS = ("photo.png", "mask.png", "full-path.png")
IMAGES = sorted(path.name for path in FORMAT_1.glob("*.png") if path.name not in INPUTS)
DRAWN_OTHERWISE = ("attention.png",)  # the page has other colours and captions since
VERSIONS = {"threads"} | {
    f"versions.{name}"
    for name in (
        "pare",
        "python",
        "torch",
        "transformers",
        "numpy",
        "pillow",
        "scipy",
        "machine",
        "cpu",
    )
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images with their inputs and their model."""
    folder = tmp_path_factory.mktemp("before") / "folder"
    shutil.copytree(FORMAT_1, folder)
    write_tiny_model(folder / "model")
    return folder


def test_there_is_one_of_every_command() -> None:
    commands = {read_recipe(FORMAT_1 / name).command for name in IMAGES}
    assert commands == {
        "generate", "img2img", "blend", "erase", "guide", "edit", "p2p", "invert", "sweep",
        "attention", "trace",
    }  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_of_the_first_format_runs_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(folder)
    threads = torch.get_num_threads()
    code = main(["rerun", name, "--json", "--check"])
    torch.set_num_threads(threads)
    captured = capsys.readouterr()
    assert code in (0, 1), captured.err
    made = json.loads(captured.out)
    assert {row["name"] for row in made["recipe"]} <= VERSIONS
    # Another processor rounds differently; one that drew other words would be far off.
    largest = made["pixels"]["largest"]
    assert largest is not None
    assert largest <= 2 or name in DRAWN_OTHERWISE, captured.out


def test_full_paths_of_another_machine_are_found_beside_the_image(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["rerun", str(folder / "full-path.png"), "--check"]) in (0, 1)
    shutil.copy(folder / "full-path.png", tmp_path)
    capsys.readouterr()
    assert main(["rerun", "full-path.png", "--check"]) == 2
    assert "photo.png, is not there; name the file (--input image=PATH)" in capsys.readouterr().err
    assert main(["rerun", "full-path.png", "--check", "--inputs", str(folder)]) in (0, 1)
