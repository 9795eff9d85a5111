"""The oldest versions that pyproject.toml allows make an image, a film, and a comparison.

Torch is the exception: older CPU builds are not on the default package index, whose builds for
Linux bring gigabytes of CUDA.  Its bound is installed where TORCH_INDEX names an index of CPU
builds; elsewhere the test takes the version of constraints.txt.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ROOT, run_clean

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [*PROJECT["dependencies"], *EXTRAS["verify"], *EXTRAS["study"]]


def lowest(requirement: str) -> str:
    """`numpy>=2.0` as `numpy==2.0`; what has no lower bound is an error."""
    found = re.fullmatch(r"([\w-]+)>=([\d.]+)(,<[\d.]+)?", requirement)
    assert found, f"{requirement}: NAME>=VERSION, and at most an upper bound behind it"
    return f"{found[1]}=={found[2]}"


def pinned(name: str) -> str:
    """The line of constraints.txt for a package."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith(f"{name}=="))


def test_every_requirement_has_a_lower_bound() -> None:
    assert [lowest(requirement) for requirement in REQUIREMENTS]


@pytest.mark.slow
def test_the_lower_bounds_make_an_image(wheel: Path, tmp_path: Path) -> None:
    run_clean(sys.executable, "-m", "venv", "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    pip = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    versions = {lowest(requirement) for requirement in REQUIREMENTS}
    torch = next(version for version in versions if version.startswith("torch=="))
    index = os.environ.get("TORCH_INDEX")
    if index:
        run_clean(*pip, "--index-url", index, torch, cwd=tmp_path)
    else:
        versions = versions - {torch} | {pinned("torch")}
    run_clean(*pip, *sorted(versions), cwd=tmp_path)
    run_clean(*pip, "--no-deps", wheel, cwd=tmp_path)

    pare = tmp_path / "env" / "bin" / "pare"
    run_clean(pare, "generate", "a snowy road", "--steps", "2", "--out", "road.png", cwd=tmp_path)
    assert Image.open(tmp_path / "road.png").size == (128, 128)
    run_clean(pare, "film", "a snowy road", "--steps", "2", "--out", "road.mp4", cwd=tmp_path)
    assert (tmp_path / "road.mp4").stat().st_size > 1000
    run_clean(pare, "verify", "--only", "vae", "--device", "cpu", cwd=tmp_path)
