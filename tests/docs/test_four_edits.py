"""The four classic edits of docs/four-edits.md run as they stand, but for fewer steps."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

import pare.cli.main
from pare.recipes.recipe import read_recipe
from roads import photo

PAGE = (Path(__file__).parents[2] / "docs/four-edits.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def run(command: str) -> None:
    program, *arguments = shlex.split(command)
    if program == "pare":
        # Of an option that is given twice the second holds.
        cheaper = [] if "--inversion" in arguments else ["--steps", "2"]
        assert pare.cli.main.main([*arguments, *cheaper]) == 0
    else:
        assert [program, *arguments[:2]] == ["python", "-m", "roads.photo"]
        assert not photo.main(arguments[2:])


def test_the_four_edits_by_command_and_in_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [
        line for block in blocks("bash") for line in block.replace("\\\n", "").strip().splitlines()
    ]
    for command in commands:
        run(command)
    made = {path.name for path in tmp_path.glob("*.png")}
    assert made == {
        "day.png", "sky.png", "night.png", "clouds.png", "dark.png", "again.png", "snowy.png",
        "view-source.png", "view-target.png",
    }  # fmt: skip
    drawn = {"day.png", "sky.png", "night.png"}
    commands_of = {read_recipe(tmp_path / name).command for name in made - drawn}
    assert commands_of == {"blend", "erase", "invert", "edit", "p2p"}

    code = "\n".join(blocks("python"))
    assert code.count("steps=") == 4
    exec(compile(re.sub(r"steps=\d+", "steps=2", code), "docs/four-edits.md", "exec"), {})
    for name in ("clouds", "dark", "snowy", "view"):
        assert Image.open(tmp_path / f"python-{name}.png").size == (128, 128)
