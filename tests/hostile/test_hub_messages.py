"""Every message of a server in the Hub's place, changed at random, around a whole loading.

Three promises: no traceback, no byte outside the cache, and an end within a minute and 1 GB.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import random
import shutil
import time
import warnings
from pathlib import Path

import pytest
from huggingface_hub import constants

from pare.cli.terminal import OS_ERRORS
from pare.errors import PareError
from pare.loading import bounded_http, hub_client
from pare.loading.modules import load_model
from tests.hostile.command import footprint, memory, reset_peak
from tests.hub_server import Hub, Message, Repository
from tests.loading.test_hub_client import NAME, User
from tests.tiny_model import write_tiny_model

RUNS = int(os.environ.get("PARE_FUZZ_RUNS", "1000"))
STATUSES = (200, 204, 206, 301, 302, 304, 307, 308, 400, 401, 403, 404, 408, 410, 416, 429, 451,
            500, 502, 503, 504, 599, 799)  # fmt: skip
HEADERS = ("ETag", "X-Repo-Commit", "X-Linked-Etag", "X-Linked-Size", "Location", "Content-Length",
           "Content-Encoding", "Content-Range", "Content-Type", "Content-Disposition",
           "Retry-After", "RateLimit", "RateLimit-Policy", "X-Xet-Hash", "X-Xet-Refresh-Route",
           "Link", "X-Error-Code", "X-Error-Message", "Transfer-Encoding", "Set-Cookie",
           "X-HF-Warning", "Connection")  # fmt: skip
VALUES = ("", "0", "-1", "1", "60000", "9" * 18, "9" * 30, "x" * 5000, "../../x", "/etc/passwd",
          "a/b", "..", '"', '""', 'W/"', '"../x"', "http://[", "http://127.0.0.1:99999/", "//",
          "http://127.0.0.1:9/x", "gzip", "deflate", "br", "chunked", "identity", "\xff\xfe",
          "bytes 0-9/10", "bytes */0", "bytes x-y/z", "RepoNotFound", "EntryNotFound", "GatedRepo",
          "RevisionNotFound", '<http://localhost:9/x>; rel="xet-auth"', "<", "close",
          "multipart/byteranges", "attachment; filename=../../x", "%00", "\t", "3600", "1", "0",
          '"default";r=0;t=3600', '"default";r=0;t=1', "a" * 64, "A" * 40, "0" * 40)  # fmt: skip


def mutate(message: Message, random: random.Random) -> Message:
    """One to three changes of a message, or none: most have to pass to reach the next."""
    for _ in range(random.choice((0, 0, 0, 0, 0, 0, 1, 1, 2, 3))):
        kind = random.randrange(10)
        if kind == 0:
            message.status = random.choice(STATUSES)
        elif kind <= 3:
            name = random.choice(HEADERS)
            message.headers.append((name, random.choice(VALUES)))
            if random.random() < 0.7:  # in place of the true one
                message.headers = [
                    pair for pair in message.headers[:-1] if pair[0].lower() != name.lower()
                ] + message.headers[-1:]
        elif kind == 4 and message.headers:
            message.headers.pop(random.randrange(len(message.headers)))
        elif kind == 5:
            message.cut = random.randrange(len(message.content) + 1)
            message.reset = random.random() < 0.5
        elif kind == 6:
            message.pause = random.choice((0.1, 3.0))
        elif kind == 7:
            message.repeat = random.choice((0, 2, 200_000))
        elif kind == 8:
            message.content = gzip.compress(message.content + bytes(random.choice((0, 10**7))))
            message.headers.append(("Content-Encoding", "gzip"))
        else:
            message.content = damaged(message.content, random)
    return message


def damaged(content: bytes, random: random.Random) -> bytes:
    kind = random.randrange(5)
    if kind == 0:
        return random.randbytes(random.randrange(1000))
    if kind == 1:
        return b"[" * 100_000
    if kind == 2:
        return content[: random.randrange(len(content) + 1)]
    if kind == 3:
        return content + b" " * random.choice((1, 10**7))
    at = random.randrange(len(content) or 1)
    return content[:at] + bytes([random.randrange(256)]) + content[at + 1 :]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes minutes takes a second or two here, so that thousands of runs end."""
    for name in ("JSON_SECONDS", "WINDOW"):
        monkeypatch.setattr(bounded_http, name, 2.0)
    monkeypatch.setattr(hub_client, "SECONDS", 1)
    for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):
        monkeypatch.setattr(constants, name, 1)
    sleep = time.sleep
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda s: sleep(min(s, 0.05)))


def run(seed: int, hub: Hub, user: User) -> str:
    """One loading; how it ended."""
    chosen = random.Random(seed)
    hub.mutate = lambda message: mutate(message, chosen)
    outside = {p: s for p, s in footprint(user.home.parent).items() if "/home" not in p}
    start = time.monotonic()
    reset_peak()
    before = memory("VmRSS")
    end: Exception | None = None
    with user.client(token=hub.TOKEN), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            load_model(NAME, device="cpu")
        except (PareError, OSError) as error:
            end = error
    if isinstance(end, OSError):
        assert end.errno in OS_ERRORS, seed
    elif end is not None:
        assert "\n" not in end.args[0], seed
    assert time.monotonic() - start < 60, seed
    assert memory("VmHWM") - before < 2**30, seed
    assert outside == {p: s for p, s in footprint(user.home.parent).items() if "/home" not in p}
    there = {path.relative_to(user.home).parts[0] for path in user.home.rglob("*")}
    assert there <= {"hub", "harnesses"}, (seed, there)
    return type(end).__name__


def survive(seeds: range, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / "hub" / "cache"))
    ends = set()
    with Hub() as hub:
        hub.repositories[NAME] = Repository.of(tiny)
        user = User(hub, tmp_path / "home")
        for seed in seeds:
            ends.add(run(seed, hub, user))
            if seed % 4 == 0:  # else the next finds what this one left in the cache
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(user.home)
    return ends


def test_fifty_runs(
    tiny: Path, tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert survive(range(50), tiny, tmp_path, monkeypatch) >= {"NoneType", "ModelError"}


@pytest.mark.slow
def test_a_thousand_runs(  # PARE_FUZZ_RUNS=5000 takes half an hour
    tiny: Path, tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    survive(range(50, 50 + RUNS), tiny, tmp_path, monkeypatch)
