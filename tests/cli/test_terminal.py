"""What `pare` prints on a terminal, to someone who watches, and to nobody else."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, RunPare
from tests.tiny_model import write_tiny_model

CLOSED = "pare: standard output is closed; redirect it to /dev/null instead\n"
PATIENCE = 120  # seconds, on a busy machine


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model")


def on_terminal(folder: Path, *arguments: str) -> tuple[int, str]:
    """The exit code of `pare ARGUMENTS` and what it writes to a terminal of its own."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "pare", *arguments], cwd=folder, stdin=theirs, stdout=theirs,
        stderr=theirs, env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    seen, end = b"", time.monotonic() + PATIENCE
    while select.select([ours], [], [], max(0, end - time.monotonic()))[0]:
        try:
            some = os.read(ours, 65536)
        except OSError:  # Linux: the other side is closed
            break
        if not some:
            break
        seen += some
    os.close(ours)
    return process.wait(PATIENCE), seen.decode(errors="replace")


def test_a_run_is_watched(tmp_path: Path, tiny: Path) -> None:
    given = ["generate", "a road", "--model", "model", "--steps", "2", "--seed", "3-4"]
    code, seen = on_terminal(tmp_path, *given)
    assert code == 0, seen
    assert seen.index("pare: starting …") < seen.index("pare: loading model …")
    assert seen.index("pare: loading model …") < seen.index("generate-3.png")
    lines = [re.sub(r"\x1b\[K", "", line.split("\r")[-1]) for line in seen.split("\r\n")]
    assert "generate-3.png" in lines
    assert "generate-4.png" in lines
    summary = r"pare: 2 images, generate-3.png to generate-4.png: seeds 3, 4, 2 steps, [\d.]+ s"
    assert re.fullmatch(summary, lines[-2])
    assert lines[-1] == ""


def test_an_error_takes_the_busy_line_s_place(tmp_path: Path) -> None:
    code, seen = on_terminal(tmp_path, "generate", "a road", "--model", "nowhere/")
    assert code == 2
    last = seen.rstrip("\r\n").split("\r\n")[-1]
    assert last.split("\x1b[K")[-1].startswith("pare: ")
    assert "nowhere" in last


def test_in_a_pipe_only_results_are_printed(run_pare: RunPare, tiny: Path) -> None:
    done = run_pare("generate", "a road", "--model", "model", "--steps", "2")
    assert done.stdout == "generate-0.png\n"
    lines = [line for line in done.stderr.splitlines() if "pare: warning: " not in line]
    assert lines == []


def test_closed_outputs_are_no_bug(tmp_path: Path, tiny: Path) -> None:
    command = f'"{sys.executable}" -m pare inspect model'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for closed, code in ((">&-", 2), ("2>&-", 0), (">&- 2>&-", 2)):
        done = subprocess.run(
            ["sh", "-c", f"{command} {closed}"], cwd=tmp_path, env=environment, text=True,
            capture_output=True,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == code, (closed, done)
        assert (done.stderr == CLOSED) == (closed == ">&-")
