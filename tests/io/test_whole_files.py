"""Whole or not at all, and never over something by accident."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import BinaryIO

import pytest

from pare.errors import OutputError
from pare.io import whole_files
from pare.io.whole_files import check_output, exchange, sha256, write_whole
from tests.conftest import ROOT


def write_new(file: BinaryIO) -> None:
    file.write(b"new")


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_writes_a_new_file_with_the_umask_s_permissions(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    write_whole(tmp_path / "a.png", write_new)
    assert (tmp_path / "a.png").read_bytes() == b"new"
    assert names(tmp_path) == ["a.png", "plain"]
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_refuses_to_overwrite_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="force=True"):
        write_whole(path, write_new)
    assert path.read_bytes() == b"old"
    write_whole(path, write_new, force=True)
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a.png"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
@pytest.mark.parametrize("force", [False, True])
def test_an_interrupted_write_leaves_everything_as_it_was(
    tmp_path: Path, error: BaseException, force: bool
) -> None:
    path = tmp_path / "a.png"
    if force:
        path.write_bytes(b"old")

    def half(file: BinaryIO) -> None:
        file.write(b"ne")
        raise error

    with pytest.raises(type(error)):
        write_whole(path, half, force=force)
    assert names(tmp_path) == (["a.png"] if force else [])
    assert not force or path.read_bytes() == b"old"


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.png"

    def write(file: BinaryIO) -> None:
        file.write(b"new")
        path.write_bytes(b"somebody else's")

    with pytest.raises(OutputError, match="exists"):
        write_whole(path, write)
    assert path.read_bytes() == b"somebody else's"
    assert names(tmp_path) == ["a.png"]


def test_of_many_writers_without_force_exactly_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    losers: list[int] = []

    def run(number: int) -> None:
        try:
            write_whole(path, lambda file: file.writelines([b"%d" % number]))
        except OutputError:
            losers.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(losers) == 7
    assert {int(path.read_bytes())} == set(range(8)) - set(losers)
    assert names(tmp_path) == ["a.png"]


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "a.png"
    write_whole(path, write_new)
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a.png"]

    def write(file: BinaryIO) -> None:
        (tmp_path / "b.png").write_bytes(b"somebody else's")

    with pytest.raises(OutputError, match="exists"):
        write_whole(tmp_path / "b.png", write)
    assert (tmp_path / "b.png").read_bytes() == b"somebody else's"


@pytest.mark.parametrize("at_once", [True, False])
def test_names_change_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    if not at_once:
        monkeypatch.setattr(whole_files, "exchanged_at_once", lambda one, other: False)
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    exchange(one, other)
    assert ((one / "name").read_text(), (other / "name").read_text()) == ("other", "one")
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "nobody", other)
    assert (other / "name").read_text() == "one"
    assert names(tmp_path) == ["one", "other"]


def test_follows_links_and_leaves_them_links(tmp_path: Path) -> None:
    target, link = tmp_path / "target.png", tmp_path / "link.png"
    target.write_bytes(b"old")
    link.symlink_to(target)
    with pytest.raises(OutputError, match="exists"):
        write_whole(link, write_new)
    write_whole(link, write_new, force=True)
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_what_no_output_can_be(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        check_output(tmp_path / "missing" / "a.png")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="does not exist"):
        check_output(tmp_path / "file" / "a.png")
    with pytest.raises(OutputError, match="is a folder"):
        check_output(tmp_path, force=True)
    os.mkfifo(tmp_path / "pipe")
    for special in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(OutputError, match="not a regular file"):
            check_output(special, force=True)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written"):
        check_output(tmp_path / "a.png")


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # the example of FIPS 180
    assert sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223b00361a39617")


# --- leftovers of writers that were killed -------------------------------------------------

WRITER = """
import sys, time
from pathlib import Path
from pare.io.whole_files import write_whole

def write(file):
    file.write(b"half of it")
    file.flush()
    print("begun", flush=True)
    time.sleep(60)

write_whole(Path(sys.argv[1]), write)
"""


def leftovers(folder: Path) -> list[Path]:
    return sorted(folder.glob(".pare-*"))


def age(path: Path) -> None:
    os.utime(path, (1, 1))


@pytest.mark.skipif(sys.platform == "win32", reason="locks of other kinds there")
def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"begun\n"
        [part] = leftovers(tmp_path)
        age(part)
        write_whole(tmp_path / "one", lambda file: None)
        assert leftovers(tmp_path) == [part]  # its writer lives
        writer.kill()
    write_whole(tmp_path / "two", lambda file: None)
    assert leftovers(tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}


def test_what_is_young_or_not_pares_stays(tmp_path: Path) -> None:
    young = tmp_path / ".pare-0123456789abcdef.part"
    young.write_bytes(b"")
    others = [tmp_path / name for name in (".pare-0123456789abcdef.old", ".pare-x.part", "a.part")]
    for path in others:
        path.write_bytes(b"mine")
        age(path)
    target = tmp_path / "target"
    target.write_bytes(b"mine")
    link = tmp_path / ".pare-00000000000000ff.part"
    link.symlink_to(target)
    os.utime(link, (1, 1), follow_symlinks=False)
    write_whole(tmp_path / "one", lambda file: None)
    assert young.exists()
    assert link.is_symlink()
    assert all(path.read_bytes() == b"mine" for path in (*others, target))


def test_an_abandoned_folder_is_removed_too(tmp_path: Path) -> None:
    folder = tmp_path / ".pare-0123456789abcdef.part"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "a").write_bytes(b"half")
    age(folder)
    write_whole(tmp_path / "one", lambda file: None)
    assert not folder.exists()
