"""--preview shows predictions of x0 and changes no bit of the run."""

from __future__ import annotations

import base64
import os
import pty
import re
import termios
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pare.cli import preview
from pare.cli.main import main
from pare.io import whole_files
from tests.tiny_model import write_tiny_model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_tiny_model(tmp_path / "model")
    return tmp_path


def test_the_file_is_replaced_while_the_model_samples(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["generate", "a road", "--model", "model", "--steps", "3", "--seed", "1-2"]
    assert main([*given, "--out", "plain.png"]) == 0
    seen: list[bytes] = []
    whole = whole_files.write_whole

    def write_whole(path: Path, write: object, *, force: bool) -> None:
        whole(path, write, force=force)  # type: ignore[arg-type]
        assert path == Path("shown-1-preview.png")
        seen.append(path.read_bytes())

    monkeypatch.setattr(preview, "write_whole", write_whole)
    monkeypatch.setattr(preview.PreviewClock, "due", lambda clock: True)
    capsys.readouterr()
    assert main([*given, "--out", "shown.png", "--preview"]) == 0
    assert "pare: the preview is shown-1-preview.png\n" in capsys.readouterr().err
    assert len(seen) == 4  # PNDM's three steps are four evaluations
    assert len(set(seen)) > 1
    assert not list(Path().glob("*preview*"))
    for seed in (1, 2):
        with Image.open(f"plain-{seed}.png") as one, Image.open(f"shown-{seed}.png") as other:
            assert one.tobytes() == other.tobytes()


def test_a_file_of_that_name_stays(folder: Path) -> None:
    Path("a-preview.png").write_bytes(b"mine")
    given = ["generate", "a road", "--model", "model", "--steps", "2", "--preview"]
    assert main([*given, "--out", "a.png"]) == 0
    assert Path("a-preview.png").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("environment", "begins"),
    [
        ({"KITTY_WINDOW_ID": "1"}, "\x1b_G"),
        ({"TERM_PROGRAM": "WezTerm"}, "\x1b_G"),
        ({"TERM_PROGRAM": "iTerm.app"}, "\x1b7\x1b]1337;File=inline=1"),
    ],
)
def test_terminals_that_draw_images(
    environment: dict[str, str], begins: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    preview.shower(environment, tmp_path / "a.png")(Image.effect_noise((64, 64), 50))
    drawn = capsys.readouterr().err
    assert drawn.startswith(begins)
    assert not list(tmp_path.iterdir())


def test_kitty_gets_the_whole_png_in_pieces() -> None:
    data = preview.png(Image.effect_noise((128, 128), 50))
    pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", preview.kitty(data))
    assert len(pieces) > 1
    assert [keys[-3:] for keys, _ in pieces] == ["m=1"] * (len(pieces) - 1) + ["m=0"]
    assert base64.b64decode("".join(text for _, text in pieces)) == data


def decoded(sequence: str) -> np.ndarray[Any, Any]:
    """The pixels of sixels, as a terminal draws them: (H, W, 3) in percent."""
    found = re.fullmatch(r'\x1b7\x1bP0;1q"1;1;(\d+);(\d+)(.*)\x1b\\\x1b8', sequence)
    assert found
    width, height = int(found[1]), int(found[2])
    page = np.full((height + 6, width, 3), -1)
    colours: dict[int, tuple[int, ...]] = {}
    top = left = colour = 0
    pattern = r"#(\d+);2;(\d+);(\d+);(\d+)|#(\d+)|!(\d+)(.)|([$-])|([?-~])"
    for one in re.finditer(pattern, found[3]):
        if one[1]:
            colours[int(one[1])] = tuple(map(int, one.group(2, 3, 4)))
        elif one[5]:
            colour = int(one[5])
        elif one[8]:
            left, top = 0, top + 6 * (one[8] == "-")
        else:
            times, bits = int(one[6] or 1), ord(one[7] or one[9]) - 63
            for k in range(6):
                if bits >> k & 1:
                    page[top + k, left : left + times] = colours[colour]
            left += times
    assert (page[height:] == -1).all()  # nothing is drawn below the image
    return page[:height]


@pytest.mark.parametrize("size", [(128, 128), (7, 13), (1, 1), (40, 6)])
def test_sixels_are_the_image(size: tuple[int, int]) -> None:
    image = Image.effect_noise(size, 80).convert("RGB").quantize(16).convert("RGB")
    shown = decoded(preview.sixels(image))
    assert (np.abs(shown - np.asarray(image).astype(float) * 100 / 255) <= 1).all()


@pytest.mark.parametrize(
    ("answer", "drawn"),
    [
        (b"\x1b[?62;4;22c", True),
        (b"\x1b[?62;22c", False),
        (b"\x1b[?64;1;14;40c", False),  # 4 is an attribute, not a digit of one
        (b"x\x1b[?4c", True),  # after a key that was pressed
        (b"", False),  # no answer
        (b"\x1b[?62", False),  # half of one
    ],
)
def test_a_terminal_is_asked_whether_it_draws_sixels(answer: bytes, drawn: bool) -> None:
    master, slave = pty.openpty()
    try:
        before = termios.tcgetattr(slave)

        def respond() -> None:
            asked = os.read(master, 16)
            assert asked == b"\x1b[c"
            os.write(master, answer)

        terminal = threading.Thread(target=respond)
        terminal.start()
        assert preview.says_sixels(slave, 5 if drawn or answer.endswith(b"c") else 0.2) is drawn
        terminal.join(5)
        assert termios.tcgetattr(slave) == before
    finally:
        os.close(master)
        os.close(slave)


def test_without_a_terminal_nothing_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_terminal(*_: object) -> int:
        raise OSError(6, "no such device")

    monkeypatch.setattr(os, "open", no_terminal)
    assert not preview.has_sixels()
    monkeypatch.undo()
    monkeypatch.setattr(preview, "has_sixels", lambda: True)
    preview.shower({}, tmp_path / "a.png")(Image.new("RGB", (8, 8)))
    assert capsys.readouterr().err.startswith("\x1b7\x1bP0;1q")


def test_previews_take_a_share_of_the_time() -> None:
    clock = preview.PreviewClock()
    assert clock.due()
    with clock:
        pass
    clock.began -= 10
    clock.__exit__()
    assert not clock.due()
