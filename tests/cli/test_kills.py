"""Killed at any moment: no half file under its final name, and the next run works.

The command runs in processes that are forked from one that has imported everything, so
that a hundred kills take a minute and most of them hit the work rather than the imports.
Moments are chosen in three ways: evenly over the whole run; as soon as something
half written lies on the disk, and a little later; and at every line of the code that
writes, the first and the last time that it runs.  What was at the target before is known
by every byte, and so is what comes after: nothing else may ever be there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.conftest import ROOT
from tests.single_files import original_checkpoint
from tests.tiny_model import write_tiny_model

# Reads {"arguments", "signal", "line"}, one a line, and forks a process for each that runs
# `pare`.  With `line` that process sends the signal to itself before so many lines of the
# code that writes; its answer is [exit code, the lines' places if `line` is -1].
SERVER = """
import json, os, sys
import torch, transformers.models.clip.modeling_clip, transformers.models.clip.tokenization_clip
import pare.pipeline, pare.loading.conversion
from pare.cli.main import main

WRITERS = (
    "pare/io/whole_files.py", "pare/loading/conversion.py", "pare/cli/run_command.py",
    "pare/cli/commands/convert.py",
)

def traced(limit, number, places):
    def local(frame, event, arg):
        if event == "line":
            places.append(f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}")
            if len(places) == limit:
                os.kill(os.getpid(), number)
        return local
    return lambda frame, event, arg: local if frame.f_code.co_filename.endswith(WRITERS) else None

def run(task, answers):
    places = []
    if task["line"] is not None:
        sys.settrace(traced(task["line"], task["signal"], places))
    code = main(task["arguments"])
    sys.settrace(None)
    os.write(answers, json.dumps(places if task["line"] == -1 else []).encode())
    return code

print("ready", flush=True)
for line in sys.stdin:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.dup2(1, 2)
        code = 1
        try:
            code = run(json.loads(line), writing)
        finally:
            os._exit(code)
    os.close(writing)
    print(child, flush=True)
    with open(reading) as answer:
        places = answer.read()
    _, status = os.waitpid(child, 0)
    print(json.dumps([os.waitstatus_to_exitcode(status), json.loads(places or "[]")]), flush=True)
"""


class Server:
    """Starts `pare ARGUMENTS` in forked processes, one at a time."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.read() == "ready"

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start(self, arguments: Sequence[str], number: int = 0, line: int | None = None) -> int:
        """Start a run; its process's number."""
        assert self.process.stdin is not None
        task = {"arguments": list(arguments), "signal": number, "line": line}
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        return int(self.read())

    def wait(self) -> tuple[int, list[str]]:
        """The exit code of the run, and the lines that it went through if that was asked."""
        code, places = json.loads(self.read())
        return code, places

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    started = Server()
    yield started
    started.close()


State = dict[str, str]
"""File -> SHA-256 of its bytes; empty: there is nothing at the target."""


def state(folder: Path, names: Sequence[str]) -> dict[str, State]:
    """What lies at each target."""
    found = {}
    for name in names:
        files = [folder / name, *sorted((folder / name).rglob("*"))]
        found[name] = {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
            if path.is_file()
        }
    return found


@dataclass
class Work:
    """A command, and what its targets hold before and after it."""

    folder: Path
    arguments: list[str]
    targets: list[str]
    old: Path | None
    """A folder with what is at the targets before: None, nothing is."""
    new: dict[str, State] = field(default_factory=dict)
    seconds: float = 0.0
    lines: list[str] = field(default_factory=list)

    def reset(self) -> None:
        """Put back what was there before the run; leftovers stay."""
        for name in self.targets:
            shutil.rmtree(self.folder / name, ignore_errors=True)
            if not (self.folder / name).is_dir():
                (self.folder / name).unlink(missing_ok=True)
        if self.old is not None:
            shutil.copytree(self.old, self.folder, dirs_exist_ok=True)

    def leftovers(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()} - set(self.targets)

    def learn(self, server: Server) -> None:
        """Run to the end: how long it takes, what it writes, through which lines it goes."""
        self.reset()
        started = time.perf_counter()
        server.start(self.arguments)
        assert server.wait()[0] == 0
        self.seconds = time.perf_counter() - started
        self.new = state(self.folder, self.targets)
        assert all(self.new.values())
        self.reset()
        server.start(self.arguments, line=-1)
        code, self.lines = server.wait()
        assert code == 0
        assert state(self.folder, self.targets) == self.new  # to the byte
        assert self.leftovers() == set()

    def ending(self, code: int, number: int, before: Mapping[str, State], moment: object) -> str:
        """How a run has ended: every target as it was or as it should be; then put all back."""
        now = state(self.folder, self.targets)
        for name, content in now.items():
            assert content in (before[name], self.new[name]), (name, moment)
        assert all(name.startswith(".pare-") for name in self.leftovers()), moment
        # 1: a signal before the command has begun, in the forked process.
        assert code in (0, 1, -number, 128 + number), (code, moment)
        assert code or now == self.new
        self.reset()
        count = sum(now[name] == self.new[name] for name in self.targets)
        return f"{signal.Signals(number).name}, {count} of {len(self.targets)} written"


def write_single_file(path: Path, change: float) -> None:
    tensors = original_checkpoint("SD 1")
    tensors["model.diffusion_model.out.2.bias"] += change
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to make images with, and two single files that differ in one number."""
    folder = tmp_path_factory.mktemp("things")
    write_tiny_model(folder / "tiny")
    write_single_file(folder / "old.safetensors", 0)
    write_single_file(folder / "new.safetensors", 1)
    return folder


CASES = {
    "generate": 50,
    "generate --force": 50,
    "convert to a folder": 25,
    "convert to a folder --force": 25,
    "convert to a file": 25,
    "convert to a file --force": 25,
}
"""A command, and how often it is killed."""

TARGETS = {
    "generate": ["generate-1.png", "generate-2.png"],
    "convert to a folder": ["model"],
    "convert to a file": ["model.safetensors"],
}


def make_work(case: str, things: Path, folder: Path, server: Server) -> Work:
    work = folder / "work"
    work.mkdir()
    targets = TARGETS[case.removesuffix(" --force")]

    def arguments(version: str) -> list[str]:
        if case.startswith("generate"):
            given = ["--model", str(things / "tiny"), "--steps", "2", "--seed", "1", "--count", "2"]
            return ["generate", f"a {version} road", *given, "--out", str(work), "--device", "cpu"]
        source = things / f"{version}.safetensors"
        return ["convert", str(source), str(work / targets[0])]

    old = None
    if case.endswith("--force"):
        server.start(arguments("old"))
        assert server.wait()[0] == 0
        old = folder / "old"
        shutil.copytree(work, old)
    done = Work(work, [*arguments("new"), *(["--force"] if old else [])], targets, old)
    done.learn(server)
    return done


def kill_at(work: Work, server: Server, moment: float | None, number: int) -> int:
    """Send a signal `moment` seconds into a run, or (None) once something half written is there.

    The run's exit code.
    """
    leftovers = work.leftovers()
    child = server.start(work.arguments)
    if moment is None:
        end = time.perf_counter() + 60
        while work.leftovers() <= leftovers and time.perf_counter() < end:
            time.sleep(0.0002)
        moment = random.random() ** 3 * 0.1
    time.sleep(moment)
    with contextlib.suppress(ProcessLookupError):  # it has come to its end
        os.kill(child, number)
    return server.wait()[0]


def survive(work: Work, server: Server, kills: int, lines: Sequence[int]) -> Counter[str]:
    """Kill so many runs, over all of the run and while it writes, then at the lines.

    How the runs ended.
    """
    ends: Counter[str] = Counter()
    work.reset()
    before = state(work.folder, work.targets)
    for index in range(kills):
        number = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)[index // 2 % 4]
        moment = None if index % 2 else work.seconds * index / kills
        code = kill_at(work, server, moment, number)
        ends[work.ending(code, number, before, moment)] += 1
    for index, line in enumerate(lines):
        number = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)[index % 3]
        leftovers = work.leftovers()
        server.start(work.arguments, number, line)
        code, _ = server.wait()
        where = work.lines[line - 1]
        ends[work.ending(code, number, before, where)] += 1
        # A signal in the middle of taking a leftover away cuts that short.
        if number != signal.SIGKILL and not takes_away(where):
            assert work.leftovers() == leftovers, where
    # And over all that the killed ones have left, the next run works.
    server.start(work.arguments)
    assert server.wait()[0] == 0
    assert state(work.folder, work.targets) == work.new
    return ends


def takes_away(place: str) -> bool:
    """Whether a line, as "conversion.py:220", is where leftovers are removed."""
    name, _, number = place.rpartition(":")
    [path] = (ROOT / "pare").rglob(name)
    line = path.read_text().splitlines()[int(number) - 1]
    return "rmtree(" in line or ".unlink(" in line


@pytest.mark.parametrize("case", ["generate --force", "convert to a folder --force"])
def test_a_few_kills(case: str, things: Path, tmp_path: Path, server: Server) -> None:
    work = make_work(case, things, tmp_path, server)
    last = len(work.lines)
    survive(work, server, 4, [last - 3, last - 2])


@pytest.mark.slow
@pytest.mark.parametrize(("case", "kills"), CASES.items())
def test_a_hundred_kills(
    case: str, kills: int, things: Path, tmp_path: Path, server: Server
) -> None:
    """A hundred of each command, and more at the lines that write over something."""
    work = make_work(case, things, tmp_path, server)
    last_times = {place: number for number, place in enumerate(work.lines, start=1)}
    lines = sorted(last_times.values()) if case.endswith("--force") else []
    print(f"{case}, {work.seconds:.2f} s:", dict(survive(work, server, kills, lines)))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_kills_from_a_cold_start(number: signal.Signals, things: Path, tmp_path: Path) -> None:
    """The command as a user starts it, imports included; also before it can speak for itself."""
    command = [sys.executable, "-m", "pare", "convert", str(things / "new.safetensors"), "model"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    started = time.perf_counter()
    first = start()
    assert first.communicate()[1].startswith("pare: ")
    seconds = time.perf_counter() - started
    new = state(tmp_path, ["model"])
    for k in range(8):
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        process = start()
        time.sleep(seconds * (k + 0.5) / 8)
        process.send_signal(number)
        _, error = process.communicate()
        assert state(tmp_path, ["model"])["model"] in ({}, new["model"])
        assert process.returncode in (0, -number, 128 + number), error
        if number != signal.SIGKILL:
            assert not list(tmp_path.glob(".pare-*")), (k, error)
        if process.returncode == 128 + number:
            assert error.splitlines()[-1] in ("pare: interrupted", "pare: terminated")
