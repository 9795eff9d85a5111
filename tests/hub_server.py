"""A small Hub on loopback, for the real client: repositories in memory, a log of requests.

As on the real one, a repository answers at `/api/models/<id>` with its commit and its file
names, small files come from `/<id>/resolve/<revision>/<file>`, and for large ones that
address leads to a second server (the CDN), which must never see the token.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
LARGE = (".safetensors", ".bin")

XET = re.compile(r"/api/models/(?P<id>[^/]+/[^/]+)/xet-read-token/.+")
API = re.compile(r"/api/models/(?P<id>[^/]+/[^/]+?)(?:/revision/(?P<revision>.+))?")
RESOLVE = re.compile(r"/(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@functools.lru_cache(maxsize=32)
def digest(content: bytes) -> str:
    """SHA-256, once for each file."""
    return hashlib.sha256(content).hexdigest()


Trick = Callable[[BaseHTTPRequestHandler], None]
"""Answers a request by hand, as no server should."""


@dataclass
class Message:
    """An answer, before it is sent."""

    status: int
    headers: list[tuple[str, str]]
    content: bytes
    cut: int | None = None
    """After how many bytes of the content it breaks off."""
    reset: bool = False
    """Whether it breaks off with a reset instead of an orderly end."""
    pause: float = 0.0
    """Seconds before the content."""
    repeat: int = 1
    """How often the content is sent."""


@dataclass
class Repository:
    """What the server says of one model, and how it misbehaves."""

    files: dict[str, bytes]
    commit: str = COMMIT
    revisions: set[str] = field(default_factory=lambda: {"main"})
    gated: bool = False
    """Files are only given to those who accepted the terms, which nobody did."""
    private: bool = False
    """Only shown to those who send the token."""
    disabled: bool = False
    status: int | None = None
    """Every answer is this error."""
    cuts: dict[str, list[int]] = field(default_factory=dict)
    """File -> after how many bytes its next transfers break off."""
    reset: bool = False
    """They break off with a reset instead of an orderly end."""
    claimed_sizes: dict[str, int] = field(default_factory=dict)
    """File -> the size that is announced for it."""
    api: Any = None
    """What the API says instead of the truth: text as it is, anything else as JSON."""
    xet: bool = False
    """Large files come from a third server, by the Hub's own protocol; it is down."""
    file_commit: str | None = None
    """The commit that files claim to be of."""
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    """File -> headers that its answers have instead of their own; "" is the listing."""
    tricks: dict[str, Trick] = field(default_factory=dict)
    """File -> what answers in place of the server; "" is the listing, "cdn:FILE" the CDN."""

    @classmethod
    def of(cls, folder: Path, **settings: Any) -> Repository:
        """The files of a folder, and two that no loader of Stable Diffusion needs."""
        files = {
            str(path.relative_to(folder).as_posix()): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        files["README.md"] = b"A model."
        files["safety_checker/model.safetensors"] = b"weights that nobody asked for"
        return cls(files, **settings)


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    token: str | None


class Hub:
    """The two servers. Use as a context manager; `url` is what HF_ENDPOINT is set to."""

    TOKEN = "hf_a_token_for_tests"

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.log: list[Request] = []
        self.cdn_log: list[Request] = []
        self.xet_url = "http://127.0.0.1:9"  # where nobody listens
        self.mutate: Callable[[Message], Message] | None = None
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(self, cdn=False))
        self.cdn = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(self, cdn=True))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.cdn_url = f"http://127.0.0.1:{self.cdn.server_port}"

    def __enter__(self) -> Hub:
        for server in (self.server, self.cdn):
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in (self.server, self.cdn):
            server.shutdown()
            server.server_close()

    def fetched(self) -> list[str]:
        """The files whose content was asked for, in order."""
        names = [found["file"] for r in self.log if (found := self.small(r))]
        return names + [unquote(r.path).partition("/cdn/")[2] for r in self.cdn_log]

    def small(self, request: Request) -> re.Match[str] | None:
        return RESOLVE.fullmatch(request.path) if request.method == "GET" else None


def handler_of(hub: Hub, *, cdn: bool) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if path == "/api/agent-harnesses":  # the client's own curiosity, once a day
                self.send_all(200, b"{}", {})
                return
            if XET.fullmatch(path):
                nowhere = {
                    "X-Xet-Cas-Url": hub.xet_url,
                    "X-Xet-Access-Token": "a token",
                    "X-Xet-Token-Expiration": str(int(time.time()) + 3600),
                }
                self.send_all(200, b"{}", nowhere)
                return
            token = self.headers.get("Authorization")
            request = Request(self.command, path, self.headers.get("Range"), token)
            (hub.cdn_log if cdn else hub.log).append(request)
            if cdn:
                name, file = path.removeprefix("/").split("/cdn/")
                if self.tricked(hub.repositories[name], f"cdn:{file}"):
                    return
                self.send_content(hub.repositories[name], file, hub.repositories[name].files[file])
                return
            raw = urlsplit(self.path).path
            match = API.fullmatch(raw) or RESOLVE.fullmatch(raw)
            found = {k: unquote(v or "") for k, v in match.groupdict().items()} if match else None
            repository = hub.repositories.get(found["id"]) if found else None
            signed_in = token == f"Bearer {hub.TOKEN}"
            if token and not signed_in:
                message = "Invalid credentials in Authorization header"
                self.send_error_page(401, message=message)
            elif found is None:
                self.send_error_page(404)
            elif repository is None or (repository.private and not signed_in):
                # The Hub does not tell strangers which of the two it is.
                self.send_error_page(404 if signed_in else 401, "RepoNotFound")
            elif repository.status:
                self.send_error_page(repository.status)
            elif repository.disabled:
                self.send_error_page(403, message="Access to this resource is disabled.")
            elif (found["revision"] or "main") not in {*repository.revisions, repository.commit}:
                self.send_error_page(404, "RevisionNotFound")
            elif self.tricked(repository, found.get("file", "")):
                pass
            elif "file" not in found:
                self.send_api(repository, found["id"])
            elif repository.gated:
                self.send_error_page(403 if signed_in else 401, "GatedRepo")
            elif found["file"] not in repository.files:
                self.send_error_page(404, "EntryNotFound")
            else:
                self.send_file(repository, found["id"], found["file"])

        def tricked(self, repository: Repository, file: str) -> bool:
            trick = repository.tricks.get(file)
            if trick is not None:
                self.close_connection = True
                with contextlib.suppress(OSError):  # the client went away
                    trick(self)
            return trick is not None

        def send_api(self, repository: Repository, name: str) -> None:
            answer: Any = {
                "id": name,
                "sha": repository.commit,
                "siblings": [{"rfilename": file} for file in repository.files],
            }
            if repository.api is not None:
                answer = repository.api
            text = answer if isinstance(answer, str) else json.dumps(answer)
            headers = {"Content-Type": "application/json"} | repository.headers.get("", {})
            self.send_all(200, text.encode(), headers)

        def send_file(self, repository: Repository, name: str, file: str) -> None:
            content = repository.files[file]
            headers = {
                "ETag": f'"{digest(content)}"',
                "X-Repo-Commit": repository.file_commit or repository.commit,
            }
            if file.endswith(LARGE):
                headers["X-Linked-Etag"] = headers.pop("ETag")
                headers["X-Linked-Size"] = str(repository.claimed_sizes.get(file, len(content)))
                headers["Location"] = f"{hub.cdn_url}/{name}/cdn/{file}"
                if repository.xet:
                    route = f"{hub.url}/api/models/{name}/xet-read-token/{repository.commit}"
                    headers |= {"X-Xet-Hash": "a" * 64, "X-Xet-Refresh-Route": route}
                headers |= repository.headers.get(file, {})
                self.send_all(302, b"", headers)
            else:
                headers |= repository.headers.get(file, {})
                self.send_content(repository, file, content, headers)

        def send_content(
            self,
            repository: Repository,
            file: str,
            content: bytes,
            headers: dict[str, str] | None = None,
        ) -> None:
            headers, status = {**(headers or {}), "Accept-Ranges": "bytes"}, 200
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if asked and content:  # an empty file has no part to send
                start, whole = int(asked[1]), len(content)
                content = content[start : int(asked[2]) + 1 if asked[2] else whole]
                end, status = start + len(content) - 1, 206
                headers["Content-Range"] = f"bytes {start}-{end}/{whole}"
            cuts = repository.cuts.get(file, [])
            cut = cuts.pop(0) if cuts and self.command == "GET" else None
            if self.command == "HEAD" and file in repository.claimed_sizes:
                headers["Content-Length"] = str(repository.claimed_sizes[file])
            self.send_all(status, content, headers, cut, reset=repository.reset)

        def send_error_page(self, status: int, code: str = "", message: str = "") -> None:
            headers = {"X-Error-Code": code} if code else {}
            if message:
                headers["X-Error-Message"] = message
            self.send_all(status, b'{"error": "no"}', headers)

        def send_all(
            self,
            status: int,
            content: bytes,
            headers: dict[str, str],
            cut: int | None = None,
            *,
            reset: bool = False,
        ) -> None:
            whole = {"Content-Length": str(len(content))} | headers
            message = Message(status, list(whole.items()), content, cut, reset)
            if hub.mutate is None:
                self.send_message(message)
                return
            self.close_connection = True
            with contextlib.suppress(OSError):  # the client went away
                self.send_message(hub.mutate(message))

        def send_message(self, message: Message) -> None:
            self.send_response(message.status)
            for name, value in message.headers:
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if message.pause:
                self.wfile.flush()
                time.sleep(message.pause)
            for _ in range(message.repeat):
                self.wfile.write(message.content[: message.cut])
            if message.cut is not None:
                self.wfile.flush()
                self.close_connection = True
                if message.reset:
                    linger = struct.pack("ii", 1, 0)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    self.connection.close()

    return Handler
