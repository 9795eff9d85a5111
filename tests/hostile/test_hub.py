"""A server in the Hub's place that lies: no byte outside the cache, no end of what it sends.

Each case is a real HTTP server on loopback (`tests.hub_server`) and the real client.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from pare.loading import bounded_http
from pare.study.inspect.model_summary import describe
from tests.hostile.command import footprint, memory, reset_peak
from tests.hub_server import COMMIT, Hub, Repository
from tests.loading.test_hub_client import NAME, SMALL, WEIGHTS, Result, User, files
from tests.tiny_model import write_tiny_model

CONFIG, VOCABULARY = "unet/config.json", "tokenizer/vocab.json"
UNET = "unet/diffusion_pytorch_model.safetensors"
MEBIBYTE = 2**20


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        yield server


@pytest.fixture
def user(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> User:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return User(hub, tmp_path / "home")


def repository(**settings: Any) -> Repository:
    return Repository(files(*SMALL, *WEIGHTS), **settings)


def refused(user: User, words: str, **given: Any) -> Result:
    """One sentence, in a little time and memory, and nothing outside the cache."""
    outside = {p: s for p, s in footprint(user.home.parent).items() if "/home" not in p}
    start = time.monotonic()
    reset_peak()
    before = memory("VmRSS")
    result = user.fetch(**given)
    assert memory("VmHWM") - before < 150 * MEBIBYTE
    assert time.monotonic() - start < 30
    assert words in result.error
    assert "\n" not in result.error
    assert result.output["kind"] == "ModelError"
    assert outside == {p: s for p, s in footprint(user.home.parent).items() if "/home" not in p}
    there = {path.relative_to(user.home).parts[0] for path in user.home.rglob("*")}
    assert there <= {"hub", "harnesses"}
    assert not list(user.home.rglob("*.incomplete"))
    return result


# --- names of files that the server chooses ------------------------------------------------

ETAGS = ("/{}/x.pth", "../../x", "../../../../{}/x", "a/b", "..", ".", "", "a\\b", "C:x", "x" * 500,
         "a b", "W/")  # fmt: skip


@pytest.mark.parametrize("file", [CONFIG, UNET])
@pytest.mark.parametrize("etag", ETAGS)
def test_an_etag_is_a_plain_token(
    hub: Hub, user: User, tmp_path: Path, etag: str, file: str
) -> None:
    etag = etag.format(tmp_path / "elsewhere")
    name = "X-Linked-Etag" if file == UNET else "ETag"
    hub.repositories[NAME] = repository(headers={file: {name: f'"{etag}"', "ETag": f'"{etag}"'}})
    refused(user, "" if etag in ("", "W/") else "the ETag")
    assert file not in hub.fetched()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("commit", ["../../../../x", "/{}/x", "main", COMMIT.upper(), COMMIT + "0"])
@pytest.mark.parametrize("status", [200, 404])
def test_a_commit_is_a_commit(
    hub: Hub, user: User, tmp_path: Path, commit: str, status: int
) -> None:
    commit = commit.format(tmp_path / "elsewhere")

    def missing(handler: BaseHTTPRequestHandler) -> None:
        headers = {"X-Repo-Commit": commit, "X-Error-Code": "EntryNotFound"}
        send_head(handler, status, headers | {"Content-Length": "0", "ETag": '"a"'})

    hub.repositories[NAME] = repository(tricks={CONFIG: missing})
    refused(user, "names the commit")
    assert not list(user.home.rglob(".no_exist"))


# --- bytes that are not those that were announced --------------------------------------------


def test_weights_that_are_not_what_was_announced(hub: Hub, user: User) -> None:
    hub.repositories[NAME] = repository(headers={UNET: {"X-Linked-Etag": f'"{"a" * 64}"'}})
    for _ in range(2):
        refused(user, f"{UNET} of {NAME} has other bytes than the server announced")
        assert not list(user.home.rglob(Path(UNET).name + "*"))[1:]  # the text encoder's has none
        assert not list(user.home.rglob("a" * 64))
    assert user.fetch(check_hashes=False).names == SMALL | WEIGHTS


def test_a_hash_is_checked_once(hub: Hub, user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[NAME] = repository()
    assert user.fetch().names == SMALL | WEIGHTS
    monkeypatch.setattr("pare.loading.hub_client.sha256_of", lambda _: pytest.fail("again"))
    assert user.fetch().names == SMALL | WEIGHTS


def test_a_download_leaves_no_thread(hub: Hub, user: User) -> None:
    hub.repositories[NAME] = repository()
    before = threading.active_count()
    assert user.fetch().names == SMALL | WEIGHTS
    idle = {thread.name for thread in threading.enumerate() if "process_request" not in thread.name}
    assert len(idle) <= before, idle


# --- sizes ---------------------------------------------------------------------------------


def send_head(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()


def endless(chunk: bytes = b" " * MEBIBYTE, **headers: str) -> Callable[..., None]:
    """Answers HEAD with what a file of the Hub has but its size, and GET without end."""

    def trick(handler: BaseHTTPRequestHandler) -> None:
        send_head(handler, 200, {"ETag": '"abc"', "X-Repo-Commit": COMMIT} | headers)
        while handler.command == "GET":
            handler.wfile.write(chunk)

    return trick


@pytest.mark.parametrize("file", ["", "model_index.json", CONFIG])
def test_json_without_end(hub: Hub, user: User, file: str) -> None:
    hub.repositories[NAME] = repository(tricks={file: endless()})
    refused(user, "does not end; expected at most 16.0 MiB")


@pytest.mark.parametrize("file", [UNET, f"cdn:{UNET}"])
def test_weights_without_end(hub: Hub, user: User, file: str) -> None:
    claimed = {UNET: "x"} if file.startswith("cdn") else {}
    headers = {UNET: {"X-Linked-Size": "x"}} if claimed else {}
    hub.repositories[NAME] = repository(tricks={file: endless()}, headers=headers)
    refused(user, f"{UNET} of {NAME} does not end", limits=lambda _: {"unet": 8 * MEBIBYTE})


@pytest.mark.parametrize("file", [CONFIG, VOCABULARY, UNET])
@pytest.mark.parametrize("size", [60 * 10**9, 10**19 - 1])
def test_sizes_that_no_such_file_has(hub: Hub, user: User, file: str, size: int) -> None:
    hub.repositories[NAME] = repository(claimed_sizes={file: size})
    refused(user, f"{file} of {NAME} is announced with")
    assert file not in hub.fetched()


def test_a_disk_that_is_too_small_is_known_before_a_byte(
    hub: Hub, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories[NAME] = repository(claimed_sizes={UNET: 10 * 2**30})
    usage = shutil.disk_usage("/")._replace(free=2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    refused(user, "has 10.0 GiB, and the disk of")
    assert UNET not in hub.fetched()


BOMB = gzip.compress(bytes(2**20)) * 2000  # 2 MB that unpack to 2 GB


@pytest.mark.parametrize("file", ["", CONFIG])
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_packed_answers_that_grow(hub: Hub, user: User, file: str, encoding: str) -> None:
    def bomb(handler: BaseHTTPRequestHandler) -> None:
        headers = {"ETag": '"abc"', "X-Repo-Commit": COMMIT, "Content-Encoding": encoding}
        send_head(handler, 200, headers | {"Content-Length": str(len(BOMB))})
        if handler.command == "GET":
            handler.wfile.write(BOMB)

    hub.repositories[NAME] = repository(tricks={file: bomb})
    refused(user, "")


ENDLESS = {
    "more after the end": (gzip.compress(bytes(3 * 2**20)), bytes(2**16)),
    "blocks of nothing": (gzip.compress(b"")[:10], b"\0\0\0\xff\xff" * 2**13),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_packed_listing_without_end(hub: Hub, user: User, kind: str) -> None:
    begin, rest = ENDLESS[kind]

    def answer(handler: BaseHTTPRequestHandler) -> None:
        headers = {"ETag": '"abc"', "X-Repo-Commit": COMMIT, "Content-Encoding": "gzip"}
        send_head(handler, 200, headers)
        handler.wfile.write(begin)
        while handler.command == "GET":
            handler.wfile.write(rest)

    hub.repositories[NAME] = repository(tricks={"": answer})
    refused(user, "")


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "x" * 1000])
def test_packed_in_ways_that_were_not_asked_for(hub: Hub, user: User, encoding: str) -> None:
    hub.repositories[NAME] = repository(headers={"": {"Content-Encoding": encoding}})
    refused(user, "sends the listing of")


def test_a_packed_listing_is_read(hub: Hub, user: User) -> None:
    """As some proxies pack what nobody asked them to."""
    listing = {
        "id": NAME, "sha": COMMIT,
        "siblings": [{"rfilename": name} for name in SMALL | WEIGHTS],
    }  # fmt: skip
    packed = gzip.compress(json.dumps(listing).encode())

    def answer(handler: BaseHTTPRequestHandler) -> None:
        send_head(handler, 200, {"Content-Encoding": "gzip", "Content-Length": str(len(packed))})
        handler.wfile.write(packed)

    hub.repositories[NAME] = repository(tricks={"": answer})
    assert user.fetch().names == SMALL | WEIGHTS


# --- time ------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute is a second here."""
    for name in ("JSON_SECONDS", "WINDOW"):
        monkeypatch.setattr(bounded_http, name, 1.0)
    monkeypatch.setattr(bounded_http, "SAID_AFTER", 0.3)


def dripping(seconds: float, part: str) -> Callable[..., None]:
    """A byte at a time: of the headers, or of the body."""

    def trick(handler: BaseHTTPRequestHandler) -> None:
        if part == "head":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        else:
            headers = {"ETag": '"abc"', "X-Repo-Commit": COMMIT, "Content-Length": "60000"}
            send_head(handler, 200, headers)
        while part == "head" or handler.command == "GET":
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(seconds)

    return trick


@pytest.mark.parametrize("part", ["head", "body"])
@pytest.mark.parametrize("file", ["", CONFIG, UNET, f"cdn:{UNET}"])
def test_a_byte_at_a_time(hub: Hub, user: User, impatient: None, file: str, part: str) -> None:
    hub.repositories[NAME] = repository(tricks={file: dripping(0.05, part)})
    result = refused(user, "")
    assert re.search("has not come within 1 seconds|comes at less than", result.error)
    assert any("waiting for" in warning for warning in result.warnings) or part == "body"


def test_a_xet_store_that_never_answers(hub: Hub, user: User, impatient: None) -> None:
    pytest.importorskip("hf_xet")
    hub.repositories[NAME] = repository(xet=True)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub.xet_url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        result = user.fetch()  # its log lies in hf_xet's own cache, not in the tests'
    assert f"of {NAME} comes at less than" in result.error
    assert any("waiting for" in warning for warning in result.warnings)


@pytest.mark.parametrize("status", [429, 503, 408])
@pytest.mark.parametrize("wanted", ["3600", "9" * 200])
def test_nobody_waits_for_an_hour(hub: Hub, user: User, status: int, wanted: str) -> None:
    def later(handler: BaseHTTPRequestHandler) -> None:
        send_head(handler, status, {"Retry-After": wanted, "Content-Length": "0"})

    for file in ("", CONFIG, UNET, f"cdn:{UNET}"):
        hub.repositories[NAME] = repository(tricks={file: later})
        refused(user, "asks to wait for")
        shutil.rmtree(user.home, ignore_errors=True)


def test_a_short_wait_is_said_and_done(hub: Hub, user: User) -> None:
    times = []

    def later(handler: BaseHTTPRequestHandler) -> None:
        times.append(time.monotonic())
        if len(times) == 2:
            del hub.repositories[NAME].tricks[f"cdn:{UNET}"]
        send_head(handler, 429, {"Retry-After": "1", "Content-Length": "0"})

    hub.repositories[NAME] = repository(tricks={f"cdn:{UNET}": later})
    result = user.fetch()
    assert result.names == SMALL | WEIGHTS
    assert any("asks to wait for 1 seconds" in warning for warning in result.warnings)
    assert len(times) == 2
    assert times[1] - times[0] >= 1


# --- addresses -------------------------------------------------------------------------------

ADDRESSES = ("http://[", "http://127.0.0.1:99999/x", "http://127.0.0.1:0/x", "ftp://127.0.0.1/x",
             "file:///etc/passwd", "http://", "http:///x", "//[::1", "javascript:1")  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("file", ["", CONFIG, UNET, f"cdn:{UNET}"])
def test_redirects_to_what_is_no_address(hub: Hub, user: User, address: str, file: str) -> None:
    def elsewhere(handler: BaseHTTPRequestHandler) -> None:
        headers = {"ETag": '"abc"', "X-Repo-Commit": COMMIT, "Location": address}
        send_head(handler, 302, headers | {"Content-Length": "0"})

    hub.repositories[NAME] = repository(tricks={file: elsewhere})
    refused(user, "leads to")


@pytest.mark.parametrize("file", ["", CONFIG, f"cdn:{UNET}"])
def test_redirects_in_a_circle(hub: Hub, user: User, file: str) -> None:
    def again(handler: BaseHTTPRequestHandler) -> None:
        headers = {"ETag": '"abc"', "X-Repo-Commit": COMMIT, "Location": handler.path}
        send_head(handler, 302, headers | {"Content-Length": "0"})

    hub.repositories[NAME] = repository(tricks={file: again})
    refused(user, "")


# --- the token -------------------------------------------------------------------------------


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[str | None]]]:
    """Another host's address, and the tokens that came there."""
    tokens: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            tokens.append(self.headers.get("Authorization"))
            send_head(self, 500, {"Content-Length": "0"})

        do_HEAD = do_POST = do_GET

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://localhost:{server.server_port}", tokens
        server.shutdown()


@pytest.mark.parametrize("kind", ["route", "link", "user info"])
def test_the_token_goes_to_no_other_host(
    hub: Hub, user: User, elsewhere: tuple[str, list[str | None]], kind: str
) -> None:
    url, tokens = elsewhere
    route = f"{url}/api/models/{NAME}/xet-read-token/{COMMIT}"
    headers = {"X-Xet-Hash": "a" * 64}
    if kind == "route":
        headers |= {"X-Xet-Refresh-Route": route}
    elif kind == "link":
        headers |= {"Link": f'<{route}>; rel="xet-auth"'}
    else:
        headers |= {"X-Xet-Refresh-Route": route.replace("http://", f"{hub.url}@")}
    hub.repositories[NAME] = repository(headers={UNET: headers})
    assert user.fetch(token=hub.TOKEN).names == SMALL | WEIGHTS  # from the server itself
    assert tokens == []


def test_the_token_is_not_redirected(
    hub: Hub, user: User, elsewhere: tuple[str, list[str | None]]
) -> None:
    url, tokens = elsewhere

    def away(handler: BaseHTTPRequestHandler) -> None:
        send_head(handler, 302, {"Location": f"{url}/x", "Content-Length": "0"})

    hub.repositories[NAME] = repository(tricks={"": away})
    user.fetch(token=hub.TOKEN)
    assert set(tokens) <= {None}
    assert tokens


# --- a model that is inspected from afar -----------------------------------------------------


def header(text: bytes, length: int | None = None) -> bytes:
    return (len(text) if length is None else length).to_bytes(8, "little") + text


HEADERS = {
    "a list": header(b"[1, 2]"),
    "null offsets": header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": null}}'),
    "null shape": header(b'{"a": {"dtype": "F32", "shape": null, "data_offsets": [0, 4]}}'),
    "null": header(b'{"a": null}'),
    "metadata": header(b'{"__metadata__": [], "a": 7}'),
    "nesting": header(b'{"a":' * 100_000),
    "no text": header(b'{"\xff\xfe'),
    "numbers": header(b'{"a": {"dtype": 1, "shape": [1e999], "data_offsets": [0.5, "x"]}}'),
    "long number": header(b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b"]}}"),
    "claims": header(b"{}", 2**63),
    "claims 10 MiB": header(b"{}", 10 * MEBIBYTE),
    "empty": b"",
    "short": b"\x08\0",
    "web page": b"<!DOCTYPE html>" * 100,
    "zeros": bytes(200_000),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_hostile_remote_headers(hub: Hub, user: User, tiny: Path, kind: str) -> None:
    hub.repositories[NAME] = Repository.of(tiny)
    hub.repositories[NAME].files[UNET] = HEADERS[kind]
    with user.client():
        model = describe(NAME)
    assert model.parts["unet"].problems
    assert not model.parts["vae"].problems
    assert not list(user.home.rglob("*.safetensors"))
    if kind in ("a list", "empty", "short", "web page", "zeros"):
        assert any("does not begin as safetensors do" in p for p in model.parts["unet"].problems)


@pytest.mark.parametrize("file", [UNET, f"cdn:{UNET}"])
def test_a_range_that_is_answered_with_everything(
    hub: Hub, user: User, tiny: Path, file: str
) -> None:
    real = (tiny / UNET).read_bytes()

    def everything(handler: BaseHTTPRequestHandler) -> None:
        send_head(handler, 200, {"ETag": '"abc"', "X-Repo-Commit": COMMIT})
        handler.wfile.write(real)
        while True:
            handler.wfile.write(bytes(MEBIBYTE))

    hub.repositories[NAME] = Repository.of(tiny, tricks={file: everything})
    reset_peak()
    before = memory("VmRSS")
    with user.client():
        model = describe(NAME)
    assert memory("VmHWM") - before < 150 * MEBIBYTE
    assert model.parts["unet"].parameters == describe(tiny).parts["unet"].parameters


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")
