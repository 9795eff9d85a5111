"""What the README shows runs as it stands: its commands and its Python."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

import pare.cli.main
from pare.recipes.recipe import read_recipe
from roads import photo

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def run(command: str) -> None:
    program, *arguments = shlex.split(command)
    if program == "pare":
        assert pare.cli.main.main(arguments) == 0
    else:
        assert [program, *arguments[:2]] == ["python", "-m", "roads.photo"]
        assert not photo.main(arguments[2:])


def test_the_first_edit_by_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [line for block in blocks("bash") for line in block.strip().splitlines()]
    assert len(commands) >= 4
    for command in commands:
        run(command)
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"road.png", "snow.png", "photo.png", "sky.png", "clouds.png"}
    for name in ("road.png", "snow.png", "clouds.png"):
        assert read_recipe(name).command in ("generate", "img2img", "blend")
        assert Image.open(name).size == (128, 128)


def test_the_first_edit_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    command = (
        'pare generate "a sunny road in the mountains with a red car" --seed 0 --out command.png'
    )
    run(command)
    made, same = Image.open("road.png"), Image.open("command.png")
    assert made.tobytes() == same.tobytes()  # the five lines are what the command does


def test_nothing_is_left_to_fill_in() -> None:
    pages = [
        ROOT / "README.md",
        ROOT / "pare/models/roads/README.md",
        *(ROOT / "docs").glob("*.md"),
    ]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"@[A-Z]{3,}@|PARITY_TABLE|SPEED_LINE|TODO", text), page


def test_every_file_that_the_docs_name_exists() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
