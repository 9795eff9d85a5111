"""Type checkers find pare's types from a user's folder, in the environment that make sets up."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

SCRIPT = """\
import pare
image = pare.Pipeline.from_pretrained("roads").generate("a road", seeds=1)[0]
wrong: int = image
"""


def test_the_editable_install_is_a_plain_path() -> None:
    """Pylance reads the folders in .pth files; it does not run an import hook."""
    folder = Path(sysconfig.get_path("purelib"))
    hooks = [path.name for path in folder.glob("__editable___pare_*_finder.py")]
    assert not hooks, f"{hooks}: install with `--config-settings editable_mode=compat` (make does)"


@pytest.mark.slow  # mypy reads torch's types: half a minute without its cache
def test_mypy_sees_the_types_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-I", "-m", "mypy", "--strict", "script.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    (error, _) = done.stdout.splitlines()
    assert error.startswith("script.py:3: error: Incompatible types in assignment")
    assert 'expression has type "Image"' in error
