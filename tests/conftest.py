"""What all tests share.  Nothing here sets threads or seeds for good; of the environment alone
how OpenMP's threads wait, which torch reads when it is imported: they sleep, as in the command."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ROOT = Path(__file__).resolve().parent.parent
ROADS = ROOT / "pare" / "models" / "roads"

# A busy machine is no failure; and what passed in CI passes there again.
settings.register_profile(
    "pare",
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,
)
settings.load_profile("pare")

RunPare = Callable[..., subprocess.CompletedProcess[str]]


def pytest_configure() -> None:
    """A shell's background jobs ignore Ctrl-C, and so would every `pare` that a test interrupts."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip GPU tests, with the reason, where there is no GPU."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked or importlib.util.find_spec("torch") is None:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def run_clean(*command: object, cwd: Path) -> str:
    """The command's output; a clean environment, so that the checkout is not found by chance."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRT"))
    }
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**environment, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=1200,
        check=True,
    )
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the files that a clone has."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    run_clean("git", "clone", "--quiet", ROOT, source, cwd=folder)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run_clean(*pip, "--wheel-dir", folder, source, cwd=folder)
    (built,) = folder.glob("pare-*.whl")
    return built


@pytest.fixture
def run_pare(tmp_path: Path) -> RunPare:
    """Run `pare ARGUMENTS` as a user does: another process, in an empty folder."""

    def run(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        settings: dict[str, object] = {
            "cwd": tmp_path,
            "env": environment,
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "timeout": 600,
        }
        command = [sys.executable, "-m", "pare", *map(str, arguments)]
        return subprocess.run(command, **(settings | options))  # type: ignore[call-overload]

    return run


@pytest.fixture
def gradient() -> Image.Image:
    """An image in which every pixel differs from its neighbours: 48 x 32, RGB."""
    image = Image.new("RGB", (48, 32))
    image.putdata([(5 * x, 7 * y, (3 * x + 2 * y) % 256) for y in range(32) for x in range(48)])
    return image
