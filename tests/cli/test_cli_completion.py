"""Shell completion, asked for by real shells where they are installed."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pare.cli.commands.completion import VARIABLE
from pare.cli.commands.verify import GROUPS
from pare.cli.main import main
from pare.verify import parity

START = {
    "bash": ["--norc", "--noprofile", "-i"],
    "zsh": ["-f", "-i"],
    "fish": ["--no-config"],
}
SET_UP = {
    "bash": 'eval "$(pare completion bash)"',
    "zsh": 'autoload -Uz compinit; compinit -u -D; eval "$(pare completion zsh)"',
}
PATIENCE = 60  # seconds, on a busy machine


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """`pare` on the path, and an empty home."""
    script = tmp_path / "bin" / "pare"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pare "$@"\n')
    script.chmod(0o755)
    path = f"{script.parent}{os.pathsep}{os.environ['PATH']}"
    home = tmp_path / "home"
    home.mkdir()
    variables = {"PATH": path, "HOME": str(home), "HF_HUB_CACHE": str(tmp_path / "hub")}
    return {**os.environ, **variables}


def find(shell: str) -> str:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    return program


def read_until(terminal: int, words: str) -> str:
    """What a shell writes to its terminal until `words` are among it."""
    seen, end = "", time.monotonic() + PATIENCE
    while words not in seen:
        readable, _, _ = select.select([terminal], [], [], max(0, end - time.monotonic()))
        assert readable, f"no {words!r} in {seen!r}"
        seen += os.read(terminal, 65536).decode(errors="replace")
    return seen


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_tab_is_pressed(shell: str, environment: dict[str, str]) -> None:
    import pty  # not there on Windows, nor are these shells

    terminal, theirs = pty.openpty()
    process = subprocess.Popen(
        [find(shell), *START[shell]],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    try:
        os.write(terminal, f"{SET_UP[shell]}; echo REA''DY\n".encode())
        read_until(terminal, "READY")
        os.write(terminal, b"pare gen\t")
        read_until(terminal, "erate")  # the rest of the word
        os.write(terminal, b"x --scheduler ddi\t")
        read_until(terminal, "ddim")
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


def test_fish(environment: dict[str, str]) -> None:
    script = "pare completion fish | source; complete --do-complete '{}'"

    def complete(line: str) -> list[str]:
        done = subprocess.run(
            [find("fish"), *START["fish"], "-c", script.format(line)],
            env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=PATIENCE, check=True,
        )  # fmt: skip
        assert done.stderr == ""
        return [found.partition("\t")[0] for found in done.stdout.splitlines()]

    assert complete("pare gen") == ["generate"]
    assert complete("pare generate x --scheduler eu") == ["euler", "euler-ancestral"]


def offered(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], words: str
) -> list[str]:
    """What `pare` answers the shells' script, as `type,value`."""
    monkeypatch.setenv("_PARE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    monkeypatch.setattr(sys, "argv", ["pare"])
    assert main() == 0
    return capfdbinary.readouterr().out.decode().split()


def test_models_are_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    for name in ("models--owner--name", "models--other--one", "datasets--owner--name"):
        (tmp_path / name / "snapshots").mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    line = "pare generate --model "
    repositories = ["plain,other/one", "plain,owner/name"]
    found = offered(monkeypatch, capfdbinary, line)
    assert found == ["file,", "plain,roads", *repositories]
    assert offered(monkeypatch, capfdbinary, line + "ow") == ["file,ow", "plain,owner/name"]
    assert offered(monkeypatch, capfdbinary, line + "./mod") == ["file,./mod"]


def test_files_devices_and_groups_are_offered(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert offered(monkeypatch, capfdbinary, "pare img2img pho") == ["file,pho"]
    devices = offered(monkeypatch, capfdbinary, "pare generate x --device cu")
    assert devices == ["plain,cuda"]
    assert offered(monkeypatch, capfdbinary, "pare verify --only v") == ["plain,vae"]
    assert GROUPS == parity.GROUPS


def test_a_command_inside_a_program_does_not_complete(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, "bash_complete")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("pare ")
