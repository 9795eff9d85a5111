"""`pare` in this process, watched: what it says, what it leaves, what it costs."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from pare.cli.main import main

MOST_MEMORY = 300 * 2**20
"""Bytes that a refusal may take on top of what the process has: an image of 50 megapixels is
150 MB, and a copy of it is made."""
MOST_SECONDS = 10.0
"""Of the processor; most refusals take a hundredth of that."""

Footprint = dict[str, tuple[int, int, int]]


@dataclass
class Command:
    """`pare` with its own current folder, and an `out` in it that is to stay as it is."""

    folder: Path
    capture: pytest.CaptureFixture[str]

    def refuses(self, *arguments: str | Path, words: str = "") -> str:
        """Exit code 2, one sentence (a table may follow it) and nothing else; what was said."""
        before, (code, out, err) = footprint(self.folder), self.run(arguments)
        assert code == 2, (code, out, err)
        assert out == ""
        assert re.fullmatch(r"pare: [^\n]{10,6000}\n(  [^\n]+\n){0,25}", err), err
        assert err.replace("\n", "").isprintable()
        assert not err.startswith("pare: warning"), err
        assert "Traceback" not in err
        assert "weights_only" not in err  # torch's advice to read a pickle without its safeguards
        assert words in err
        assert footprint(self.folder) == before
        return err

    def works(self, *arguments: str | Path, words: str = "") -> list[str]:
        """Exit code 0; the warnings, one a line, of which one holds `words`."""
        code, out, err = self.run(arguments)
        assert code == 0, (code, out, err)
        lines = err.splitlines()
        assert all(line.isprintable() for line in lines), err
        said = [line for line in lines if line.startswith("pare: warning: ")]
        assert any(words in line for line in said) if words else not said, err
        assert not list(self.folder.rglob(".pare-*"))
        return said

    def run(self, arguments: Sequence[str | Path]) -> tuple[int, str, str]:
        self.capture.readouterr()
        start = time.process_time()
        reset_peak()
        before = memory("VmRSS")
        code = main([str(argument) for argument in arguments])
        grown = memory("VmHWM") - before
        assert time.process_time() - start < MOST_SECONDS
        assert grown < MOST_MEMORY, f"{grown / 2**20:.0f} MiB"
        captured = self.capture.readouterr()
        return code, captured.out, captured.err


def footprint(folder: Path) -> Footprint:
    """Everything in the folder: kind, size and time of each file, links not followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        is_folder = path.is_dir() and not path.is_symlink()
        found[str(path)] = (status.st_mode, 0 if is_folder else status.st_size, status.st_mtime_ns)
    return found


def reset_peak() -> None:
    """Make the system forget the peak of this process's memory so far (Linux only)."""
    if os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")


def memory(kind: str) -> int:
    """VmRSS (in use) or VmHWM (at most, since `reset_peak`) in bytes; 0 where it is not told."""
    status = Path("/proc/self/status")
    match = (
        re.search(rf"^{kind}:\s+(\d+) kB", status.read_text(), re.M) if status.exists() else None
    )
    return 1024 * int(match[1]) if match else 0
