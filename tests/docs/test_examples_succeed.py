"""What README and help show succeeds: the judge finds in each image what its prompt claims.

Each command runs as it stands, at full steps.  Of an edit, the source stands beside the result,
and what a prompt names must be there; a concept that is erased must be gone.
"""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import click
import pytest
from PIL import Image

import pare.cli.main
from pare.cli.grouped_help import PareCommand
from pare.cli.main import all_commands
from roads import photo
from roads.judge.comparison import compare
from roads.world.captions import read_caption

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/four-edits.md")
MAKING = ("generate", "img2img", "blend", "erase", "edit", "p2p")  # commands that answer a prompt


def commands_of(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", "").splitlines()
    return [line for line in lines if line.startswith(("pare ", "python -m roads.photo"))]


def parsed(arguments: list[str]) -> tuple[str, dict[str, object]]:
    """The command's name, and its options and arguments by name."""
    name, *given = arguments
    command = all_commands()[name]
    context = command.make_context(name, given, resilient_parsing=True)
    return name, context.params


def prompt_of(name: str, given: dict[str, object]) -> str:
    """The prompt that the last image made is to show."""
    if name == "edit":
        return str(given["target"] or given["source"])
    if name == "p2p":
        targets = given["targets"]
        assert isinstance(targets, tuple | list)
        return str(targets[-1])
    return str(given["prompt"])


def unwanted_words(arguments: list[str]) -> list[str]:
    """Concepts that are erased, and words whose weight is 0; not what has a weight below."""
    words = []
    for option, value in itertools.pairwise(arguments):
        word, _, weight = value.partition("=")
        if option == "--concept" and not weight.startswith("-"):
            words.append(word)
        if option == "--weight" and float(weight) == 0:
            words.append(word)
    return words


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def judged(line: str, folder: Path) -> None:
    """Run a command, and judge the newest image that it made."""
    program, *arguments = shlex.split(line)
    if program == "python":
        assert photo.main(arguments[2:]) == 0
        return
    before = set(folder.glob("*.png"))
    assert pare.cli.main.main(arguments) == 0, line
    name, given = parsed(arguments)
    new = [path for path in set(folder.glob("*.png")) - before if size_of(path) == (128, 128)]
    made = sorted(new, key=lambda path: path.stat().st_mtime_ns)  # without the contact sheet
    if name not in MAKING or not made:
        return
    prompt = prompt_of(name, given)
    if not read_caption(prompt.lower()):
        return  # it says nothing that the judge knows
    unwanted = unwanted_words(arguments)
    for word in unwanted:
        prompt = prompt.replace(word, "")
    source = given.get("image")
    shown = None if source is None else Image.open(str(source)).convert("RGB")
    with Image.open(made[-1]) as image:
        found = compare(shown, image.convert("RGB"), prompt=prompt, unwanted=unwanted)
    assert found.succeeded, f"{line}\n{found.sentence()}"


@pytest.mark.parametrize("page", PAGES)
def test_pages(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = commands_of(page)
    assert commands
    for line in commands:
        judged(line, tmp_path)


def help_examples() -> list[object]:
    """Those that generate from noise: the others edit an image of the user's own."""
    found: list[object] = []
    for name in ("generate", "p2p", "erase"):
        command: click.Command = all_commands()[name]
        found += [
            pytest.param(line, id=line)
            for line in (command.examples if isinstance(command, PareCommand) else ())
            if "photo.jpg" not in line and "--explain" not in line
        ]
    return found


@pytest.mark.parametrize("line", help_examples())
def test_help(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    judged(line, tmp_path)
