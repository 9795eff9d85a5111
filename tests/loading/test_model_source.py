"""Fingerprints: the SHA-256 of all bytes, computed when asked for, once for a file as it is."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from pare.loading import model_source
from pare.loading.model_source import (
    ALGORITHM,
    CHANGED,
    Fingerprints,
    ModelSource,
    fingerprint_function,
    sampled_fingerprint,
    sha256_of,
)

LARGE = bytes(range(256)) * 8192  # 2 MiB


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pare" / "sha256.json"


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    return path


def of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("content", [b"", b"abc", LARGE], ids=len)
def test_a_fingerprint_is_the_sha256_of_all_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert sha256_of(path) == sha256_of(path) == of(content)


def test_a_large_file_is_hashed_once(
    large: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sha256_of(large) == of(LARGE)
    assert list(json.loads(cache.read_text())) == [str(large)]
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
        assert sha256_of(large) == of(LARGE)
        link = large.with_name("link")
        link.symlink_to(large)
        assert sha256_of(link) == of(LARGE)


@pytest.mark.parametrize("change", ["content", "time", "size"])
def test_a_changed_file_is_hashed_again(large: Path, change: str) -> None:
    sha256_of(large)
    content = LARGE
    if change == "content":
        content = b"\1" + LARGE[1:]
        large.write_bytes(content)
        os.utime(large, ns=(1, 1))
    elif change == "time":
        os.utime(large, ns=(1, 1))
    else:
        content = LARGE + b"a"
        large.write_bytes(content)
    assert sha256_of(large) == of(content)


DAMAGE = ["", "[]", "{", "7" * 5000, "[" * 100_000, "\0\xff", '{"%s": [1, 2, 3]}', '{"%s": "a"}']


@pytest.mark.parametrize("text", DAMAGE, ids=lambda text: text[:9])
def test_a_damaged_cache_is_no_cache(large: Path, cache: Path, text: str) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(text.replace("%s", str(large)), encoding="latin-1")
    assert sha256_of(large) == of(LARGE)
    assert sha256_of(large) == of(LARGE)


def test_a_cache_that_cannot_be_written_is_no_error(large: Path, cache: Path) -> None:
    cache.parent.parent.write_text("a file")
    assert sha256_of(large) == of(LARGE)


def test_the_cache_is_bounded(large: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_source, "MOST_REMEMBERED", 3)
    for number in range(5):
        path = large.with_name(f"large-{number}")
        path.write_bytes(LARGE)
        sha256_of(path)
    assert [Path(name).name for name in json.loads(cache.read_text())] == [
        "large-2", "large-3", "large-4"
    ]  # fmt: skip


def test_nothing_is_hashed_before_it_is_asked_for(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []

    def sha256(path: Path) -> str:
        hashed.append(path)
        return "the hash"

    monkeypatch.setattr(model_source, "sha256_of", sha256)
    source = ModelSource("a", str(large), Fingerprints({"large": large}))
    assert list(source.files) == ["large"]
    assert hashed == []
    assert source.describe()["files"] == source.describe()["files"] == {"large": "the hash"}
    assert hashed == [large]


def test_a_file_that_was_changed_after_it_was_loaded_has_no_fingerprint(large: Path) -> None:
    files = Fingerprints({"large": large})
    large.write_bytes(b"another")
    with pytest.warns(UserWarning, match="large has changed since it was loaded"):
        assert dict(files) == {"large": CHANGED}
    files = Fingerprints({"large": large})
    large.unlink()
    with pytest.warns(UserWarning, match="has changed"):
        assert dict(files) == {"large": CHANGED}


def test_fingerprints_from_before_are_told_from_todays(large: Path) -> None:
    assert fingerprint_function(ALGORITHM)(large) == of(LARGE)
    assert fingerprint_function(None)(large) == sampled_fingerprint(large) != of(LARGE)
    source = ModelSource("a", str(large), Fingerprints({"large": large}))
    assert source.has_files({"large": of(LARGE)})
    assert source.has_files({"large": sampled_fingerprint(large)})
    assert not source.has_files({"large": of(b"another")})
    assert not source.has_files({"other": of(LARGE)})
    assert not source.has_files({})


def test_a_sample_of_a_large_file_is_cheap_and_sees_both_ends(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(2**32)  # sparse: takes no room on the disk
    start = time.perf_counter()
    before = sampled_fingerprint(path)
    assert time.perf_counter() - start < 5
    seen = {before}
    for place in (0, 2**32 - 1):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"\1")
        seen.add(sampled_fingerprint(path))
    with path.open("r+b") as file:
        file.truncate(2**32 + 1)
    seen.add(sampled_fingerprint(path))
    assert len(seen) == 4
