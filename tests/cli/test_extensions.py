"""The example package, installed: its technique, solver and loss appear in the command."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from pare.cli.main import main
from pare.errors import ExtensionError
from pare.recipes.recipe import read_recipe
from pare.runtime.extensions import extensions, load_extension
from tests.conftest import ROOT
from tests.tiny_model import write_tiny_model

MODULES = ("pare_example", "pare_example_solver")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for sys.path with the package in it, as pip installs it."""
    folder = tmp_path_factory.mktemp("extension")
    source = shutil.copytree(ROOT / "docs" / "extension_example", folder / "source")
    pip = ["pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run(
        [sys.executable, "-m", *pip, "--target", folder / "site", source], check=True, timeout=120
    )
    write_tiny_model(folder / "model")
    return folder


@pytest.fixture
def there(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(installed / "site"))
    monkeypatch.chdir(tmp_path)
    extensions.cache_clear()
    yield installed
    extensions.cache_clear()
    for name in MODULES:
        sys.modules.pop(name, None)


def test_a_technique(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "  mirror " in capsys.readouterr().out
    given = ["a road", "--model", str(there / "model"), "--steps", "2", "--seed", "3"]
    assert main(["mirror", *given]) == 0
    assert main(["generate", *given, "--out", "plain.png"]) == 0
    with Image.open("mirror-3.png") as mirrored, Image.open("plain.png") as plain:
        assert mirrored.tobytes() == ImageOps.mirror(plain).tobytes()
    assert read_recipe(Path("mirror-3.png")).command == "mirror"
    assert main(["rerun", "mirror-3.png", "--check", "--inputs", str(there)]) == 0
    swept = ["sweep", "--command", "mirror", *given, "--over", "guidance=1,2"]
    assert main([*swept, "--out", "page.png"]) == 0


def test_a_solver_and_a_loss(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["a road", "--model", str(there / "model"), "--steps", "2"]
    assert main(["generate", *given, "--scheduler", "midnight", "--out", "dark.png"]) == 0
    assert main(["generate", *given, "--scheduler", "euler", "--out", "euler.png"]) == 0
    assert Path("dark.png").read_bytes() != Path("euler.png").read_bytes()
    assert main(["rerun", "dark.png", "--check", "--inputs", str(there)]) == 0
    assert main(["guide", *given, "--loss", "red", "--every", "1", "--out", "red.png"]) == 0
    assert "red.png: the loss was" in capsys.readouterr().err
    assert main(["generate", *given, "--scheduler", "midnite"]) == 2
    assert "(Did you mean 'midnight'?)" in capsys.readouterr().err


def test_without_it_pare_is_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mirror", "x"]) == 2
    assert "No such command 'mirror'" in capsys.readouterr().err
    assert load_extension("pare.schedulers", "midnight") is None


def test_a_package_that_cannot_be_loaded(
    there: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pare_example", None)  # importing it fails
    with pytest.raises(ExtensionError, match="'red' of the package pare-example cannot be loaded"):
        load_extension("pare.losses", "red")
    assert main(["mirror", "x"]) == 2
    assert "pare: 'mirror' of the package pare-example" in capsys.readouterr().err
    assert main(["--help"]) == 0
    captured = capsys.readouterr()
    assert "generate " in captured.out
    assert "pare: warning: 'mirror' of the package" in captured.err
