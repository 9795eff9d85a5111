"""--preview shows predictions of x0 and changes no bit of the run."""

from __future__ import annotations

import base64
import re
from pathlib import Path

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


def test_previews_take_a_share_of_the_time() -> None:
    clock = preview.PreviewClock()
    assert clock.due()
    with clock:
        pass
    clock.began -= 10
    clock.__exit__()
    assert not clock.due()
