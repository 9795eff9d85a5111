"""HTTP limits for huggingface_hub's client: sizes, speed, waiting, redirects, headers.

huggingface_hub trusts the server: it names files in its cache by the server's ETag, waits as
long as a header asks, and reads a body until it ends.  A mirror (`HF_ENDPOINT`), a proxy or a
login page may send anything.  `connection` gives huggingface_hub's own client
hooks that check every response before its body is read:

    ETag, X-Repo-Commit     are names of files in the cache: plain tokens, or refused
    sizes                   known before a byte is taken, and no byte more is taken
    compressed bodies       unpacked no further than the same size
    speed                   at least `FLOOR` bytes in `WINDOW` seconds
    Retry-After             a minute in all, with a message
    redirects               to addresses that are addresses
    the token               to the endpoint and the Hub alone, not to whom a header names
"""

from __future__ import annotations

import re
import shutil
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from pare.errors import ModelError

JSON_BYTES = 16 * 2**20
"""Of a listing, a config or an index."""
TEXT_BYTES = 64 * 2**20
"""Of a tokenizer's file: CLIP's vocabulary has a million."""
ERROR_BYTES = 2**20
"""Of the page that comes with an error."""

JSON_SECONDS = 60.0
"""For a small file as a whole."""
WINDOW, FLOOR = 60.0, 60 * 2**10
"""A large file has to come at this many bytes in this many seconds."""
MOST_WAITING = 60
"""Seconds that a server may ask to wait, in all."""
SAID_AFTER = 10.0
"""Seconds without a byte until it is said what is waited for."""

TOKEN = re.compile(r"[A-Za-z0-9_+=-][A-Za-z0-9._+=-]{0,127}")
CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18}-[0-9]{1,18}|\*)/([0-9]{1,18}|\*)")
COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_HOSTS = ("huggingface.co", "hf.co")


class NotServedError(ModelError):
    """The Hub does not give what was asked; a copy in the cache may do."""


class Connection:
    """What is asked of a server just now, and how much of it has come."""

    def __init__(self) -> None:
        self.what, self.most, self.seconds = "", JSON_BYTES, JSON_SECONDS
        self.busy = self.small = self.part = self.said = False
        self.received = self.shown = self.waited = 0
        self.started = self.changed = time.monotonic()
        self.failure: NotServedError | None = None
        self.ended = threading.Event()
        self.base: Any = None

    @contextmanager
    def asking(
        self, what: str, most: int, *, small: bool = True, part: bool = False
    ) -> Iterator[None]:
        """Bounds for one file.

        Args:
            what: "unet/config.json of owner/name", for messages.
            most: bytes that it may have.
            small: it has to come within `JSON_SECONDS` as a whole.
            part: only the beginning is asked for, of a file of any size.
        """
        self.what, self.most, self.small, self.part = what, most, small, part
        self.failure, self.said = None, False
        self.received = self.shown = self.waited = 0
        self.started = self.changed = time.monotonic()
        self.busy = True
        try:
            yield
        except Exception as error:
            failure: NotServedError | None = self.failure  # which the watch sets
            if failure is None or error is failure:
                raise
            raise failure from error
        finally:
            self.busy = False

    def take(self, count: int) -> None:
        """Note bytes of a body that have come."""
        self.received += count
        self.changed = time.monotonic()

    def show(self, total: int) -> None:
        """Note what a progress bar shows: hf_xet carries large files past the hooks."""
        if total > self.shown:
            self.shown, self.changed = total, time.monotonic()

    @property
    def progress(self) -> int:
        """Bytes of the file that have come, by either account."""
        return max(self.received, self.shown)

    # --- hooks of the client ---

    def client(self) -> Any:
        """The factory of huggingface_hub's client."""
        client = self.base()
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks.get("request", []), self.before],
            "response": [*hooks.get("response", []), self.after],
        }
        return client

    def before(self, request: Any) -> None:
        if self.failure is not None:
            raise self.failure
        request.headers["Accept-Encoding"] = "identity"
        if "Authorization" in request.headers and not trusted(str(request.url)):
            del request.headers["Authorization"]

    def after(self, response: Any) -> None:
        """Check a response's headers, and bound its body."""
        self.check_names(response)
        self.check_redirect(response)
        self.check_waiting(response)
        self.check_size(response)
        drop_foreign_routes(response)
        if response.request.method != "HEAD":
            self.bound_body(response)

    def check_names(self, response: Any) -> None:
        commit = response.headers.get("X-Repo-Commit")
        if commit is not None and not COMMIT.fullmatch(commit):
            raise self.broken(f"names the commit {commit[:80]!r}")
        etag = response.headers.get("X-Linked-ETag") or response.headers.get("ETag")
        if etag is None or response.request.method != "HEAD" or response.status_code >= 400:
            return
        if not TOKEN.fullmatch(etag.removeprefix("W/").strip('"')):
            raise self.broken(f"gives {self.what} the ETag {etag[:80]!r}")

    def check_redirect(self, response: Any) -> None:
        location = response.headers.get("Location")
        if location is None or not 300 <= response.status_code < 400:
            return
        try:
            target = urlsplit(urljoin(str(response.request.url), location))
            good = target.scheme in ("http", "https") and bool(target.hostname)
            good = good and target.port != 0
            absolute = urlsplit(location)
            good = good and (not absolute.scheme or bool(absolute.hostname))
        except ValueError:  # a port out of range, half of an IPv6 address
            good = False
        if not good:
            raise self.broken(f"leads to {location[:80]!r}")

    def check_waiting(self, response: Any) -> None:
        if response.status_code not in (408, 429, 500, 502, 503, 504):
            return
        wanted = response.headers.get("Retry-After", "").strip()
        reset = re.search(r"\bt=(\d{1,12})\b", response.headers.get("RateLimit", ""))
        wanted = reset[1] if reset and response.status_code == 429 else wanted
        if not re.fullmatch(r"[0-9]{1,300}", wanted):
            return
        self.waited += int(wanted)
        host = response.request.url.host
        if self.waited > MOST_WAITING:
            raise NotServedError(
                f"{host} asks to wait for {wanted[:12]} seconds before it gives {self.what}",
                expected=f"at most {MOST_WAITING}",
                fix="try again later",
            )
        say(f"{host} asks to wait for {wanted} seconds before it gives {self.what}: waiting")

    def check_size(self, response: Any) -> None:
        """Raise if a response is announced as larger than the file can be."""
        headers = response.headers
        part = headers.get("Content-Range")
        if part is not None and not CONTENT_RANGE.fullmatch(part):
            raise self.broken(f"sends the part {part[:80]!r} of {self.what}")
        own = "" if response.is_redirect else headers.get("Content-Length", "")
        announced = headers.get("X-Linked-Size") or own
        known = re.fullmatch(r"[0-9]{1,30}", announced)
        if self.part or response.status_code >= 400 or not known:
            return
        if int(announced) > self.most:
            raise self.too_large(f"is announced with {in_bytes(int(announced))}")
        if int(announced) > JSON_BYTES:
            self.check_disk(int(announced))

    def check_disk(self, size: int) -> None:
        from huggingface_hub.constants import HF_HUB_CACHE

        folder = Path(HF_HUB_CACHE)
        existing = next((p for p in (folder, *folder.parents) if p.is_dir()), None)
        free = shutil.disk_usage(existing).free if existing else size
        if free < size:
            raise ModelError(
                f"{self.what} has {in_bytes(size)}, and the disk of {folder} has {in_bytes(free)}",
                fix="free some space, or set HF_HOME to another disk",
            )

    def bound_body(self, response: Any) -> None:
        """Count the body as it comes, unpacked, and end it where it goes past its bound."""
        encoding = response.headers.pop("Content-Encoding", "identity").strip().lower()
        if encoding not in ("identity", "", "gzip", "deflate"):
            raise self.broken(f"sends {self.what} as {encoding[:40]!r}")
        most = self.most if response.status_code < 400 else ERROR_BYTES
        stream, inner = streams(response), response.stream
        packed = encoding in ("gzip", "deflate")
        if packed:
            response.headers.pop("Content-Length", None)

        class Bounded(stream):  # type: ignore[misc,valid-type]
            def __iter__(self) -> Iterator[bytes]:
                return body

            def close(self) -> None:
                inner.close()

        # Compression may add a little, and may unpack to anything.
        body = self.bounded(inner, most + (most // 1000 + 2**16 if packed else 0), self.take)
        if packed:
            body = self.bounded(unpacked(body, most), most)
        response.stream = Bounded()

    def bounded(
        self, chunks: Iterable[bytes], most: int, take: Callable[[int], object] = int
    ) -> Iterator[bytes]:
        """The chunks, which `take` is told of, up to `most` bytes."""
        total = 0
        for chunk in chunks:
            take(len(chunk))
            total += len(chunk)
            if total > most:
                raise self.too_large("does not end")
            yield chunk

    # --- what went wrong ---

    def broken(self, what: str) -> NotServedError:
        from huggingface_hub.constants import ENDPOINT

        return NotServedError(
            f"{ENDPOINT} {what}, which the Hub does not do",
            fix="check HF_ENDPOINT and the proxy",
        )

    def too_large(self, problem: str) -> NotServedError:
        return NotServedError(
            f"{self.what} {problem}", expected=f"at most {in_bytes(self.most)}",
            fix="check the model and HF_ENDPOINT",
        )  # fmt: skip

    # --- the watch ---

    def watch(self) -> None:
        """In a thread of its own: end what is too slow, and say what is waited for."""
        begun, before = time.monotonic(), 0
        while not self.ended.wait(min(0.5, WINDOW / 4, JSON_SECONDS / 4)):
            now = time.monotonic()
            if not self.busy or self.failure is not None or begun < self.started:
                begun, before = now, self.progress if self.busy else 0
                continue
            if now - self.changed > SAID_AFTER and not self.said:
                self.said = True
                say(f"waiting for {self.what}")
            slow = ""
            if self.small and now - self.started > JSON_SECONDS:
                slow = f"has not come within {JSON_SECONDS:g} seconds"
            elif now - begun > WINDOW:
                if not self.small and self.progress - before < FLOOR:
                    slow = f"comes at less than {FLOOR} bytes in {WINDOW:g} seconds"
                begun, before = now, self.progress
            if slow:
                self.end(NotServedError(f"{self.what} {slow}", fix="try again later"))
            elif self.shown > self.most and not self.part:
                self.end(self.too_large("does not end"))

    def end(self, failure: NotServedError) -> None:
        """Let what waits for a byte get an error."""
        from huggingface_hub import close_session

        self.failure = failure
        close_session()
        abort = xet_abort()
        if abort is not None and "hf_xet" in sys.modules:
            abort()


def streams(response: Any) -> Any:
    """The class of a body, of httpx for huggingface_hub 1 and of httpx2 for 2."""
    return sys.modules[type(response).__module__.partition(".")[0]].SyncByteStream


def unpacked(chunks: Iterable[bytes], most: int) -> Iterator[bytes]:
    """gzip or deflate, unpacked a piece at a time and no further than a byte past `most`.

    What follows the end of the compressed data is not read.
    """
    unpacker = zlib.decompressobj(47)  # with either header
    total = 0
    for chunk in chunks:
        while chunk and total <= most:
            try:
                piece = unpacker.decompress(chunk, min(2**20, most + 1 - total))
            except zlib.error as error:
                raise NotServedError(f"a response has damaged compression ({error})") from error
            if unpacker.eof:
                yield piece
                return
            chunk = unpacker.unconsumed_tail
            total += len(piece)
            yield piece


def drop_foreign_routes(response: Any) -> None:
    """Forget a store of large files (Xet) that is elsewhere, as the token would go there.

    Also where a transfer from it could not be ended.  Without one, huggingface_hub takes the
    file from the server itself.
    """
    headers = response.headers
    link = response.links.get("xet-auth", {}) if "Link" in headers else {}
    for route in (headers.get("X-Xet-Refresh-Route"), link.get("url")):
        if route is not None and (xet_abort() is None or not trusted(str(route))):
            for name in ("X-Xet-Hash", "X-Xet-Refresh-Route", "Link"):
                headers.pop(name, None)
            return


def xet_abort() -> Any:
    """What ends a transfer of hf_xet; None where this huggingface_hub has nothing that does."""
    from huggingface_hub.utils import _xet

    return getattr(_xet, "abort_xet_session", None)


def trusted(url: str) -> bool:
    """Whether the user's token may go there: to the endpoint, or to the Hub itself."""
    from huggingface_hub.constants import ENDPOINT

    try:
        target, endpoint = urlsplit(url), urlsplit(ENDPOINT)
        if (target.scheme, target.hostname, target.port or 0) == (
            endpoint.scheme, endpoint.hostname, endpoint.port or 0,
        ):  # fmt: skip
            return True
        host = target.hostname or ""
    except ValueError:
        return False
    return target.scheme == "https" and any(
        host == known or host.endswith(f".{known}") for known in HUB_HOSTS
    )


def in_bytes(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def say(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=3)


LOCK = threading.RLock()
current: list[Connection] = []


@contextmanager
def connection() -> Iterator[Connection]:
    """huggingface_hub's client within bounds, as long as this lasts; one thread at a time."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    with LOCK:
        if current:  # a file of a download that has begun
            yield current[0]
            return
        made = Connection()
        made.base = getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory)
        set_client_factory(made.client)
        current.append(made)
        watcher = threading.Thread(target=made.watch, daemon=True)
        watcher.start()
        try:
            yield made
        finally:
            made.ended.set()
            watcher.join()
            current.clear()
            set_client_factory(made.base)
