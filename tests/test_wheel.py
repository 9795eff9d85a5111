"""What is installed is all that it takes: a wheel, outside the checkout, makes an image."""

from __future__ import annotations

import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from pare.recipes.recipe import read_recipe
from tests.conftest import ROOT, run_clean

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment with the wheel in it; the dependencies are lent by this one.

    A .pth file adds this environment's site-packages.  Its own .pth files, the one that
    makes the checkout importable among them, have no effect there.
    """
    folder = tmp_path_factory.mktemp("environment")
    run_clean(sys.executable, "-m", "venv", folder, cwd=folder)
    pip = [
        folder / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    run_clean(*pip, wheel, cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def test_the_wheel_holds_the_packages_the_model_and_the_licence(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    model = ROOT / "pare" / "models" / "roads"
    assert {str(path.relative_to(ROOT)) for path in model.rglob("*") if path.is_file()} <= names
    modules = run_clean("git", "ls-files", "pare/*.py", "techniques/*.py", "roads/*.py", cwd=ROOT)
    assert set(modules.split()) <= names
    assert {"pare/py.typed", "roads/world/scene.py", "weights_convert.py"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "runs/", "demo/", "docs/"))]
    # What was committed by mistake would be seen here: the model is the only large part.
    assert wheel.stat().st_size < 40_000_000


def test_the_checkout_is_out_of_reach(environment: Path) -> None:
    python = environment / "bin" / "python"
    code = (
        "import pare, techniques, roads; print(pare.__file__, techniques.__file__, roads.__file__)"
    )
    for file in run_clean(python, "-c", code, cwd=environment).split():
        assert Path(file).is_relative_to(environment)


def test_the_installed_command_makes_an_image(environment: Path, tmp_path: Path) -> None:
    command = [
        environment / "bin" / "pare",
        "generate",
        "a snowy road in the forest",
    ]
    assert run_clean(*command, "--steps", "2", "--out", "road.png", cwd=tmp_path) == "road.png\n"
    assert Image.open(tmp_path / "road.png").size == (128, 128)
    assert read_recipe(tmp_path / "road.png").arguments["model"] == "roads"
