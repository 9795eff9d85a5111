"""Downloads a model from the Hub into huggingface_hub's cache: only the files that are read.

    1. list the repository's files at the revision, and resolve it to a commit
    2. fetch model_index.json, and check that it is a model that pare runs
    3. fetch the configs and the tokenizer, and check them
    4. fetch one set of weights for each part (see `pare.loading.hub_folder`)

Everything goes through huggingface_hub: its cache (`HF_HOME`), its token (`hf auth login`
or `HF_TOKEN`), its endpoint (`HF_ENDPOINT`) and its resuming.  Where the Hub cannot be
reached, or no longer has the model, the copy in the cache is used, with a warning.
"""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pare.config import read_json
from pare.errors import ModelError, PareError
from pare.loading import hub_folder
from pare.loading.bounded_http import (
    JSON_BYTES,
    TEXT_BYTES,
    Connection,
    NotServedError,
    connection,
)
from pare.loading.model_source import sha256_of

# Repositories that were removed from the Hub (how their names begin), and where the same
# files are today: the owner is another one, the rest of the name is the same.
REMOVED = {
    "runwayml/stable-diffusion": "stable-diffusion-v1-5",  # 2024
    "stabilityai/stable-diffusion-2": "sd2-community",  # November 2025
}

COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
SECONDS = 10  # to wait for the Hub's first response

LARGEST_WEIGHTS = 16 * 2**30
"""Bytes of a file of weights of which nothing else is known."""

Check = Callable[[Path], object]
"""Looks at a folder and raises a `PareError` if pare cannot run what is in it."""

Limits = Callable[[Path], Mapping[str, int]]
"""A folder with its configs -> how many bytes each part's weights can have."""


@dataclass(frozen=True)
class Snapshot:
    """A model's files at one commit of its repository."""

    folder: Path
    revision: str
    """The commit's hash."""


def accept(folder: Path) -> None:
    """A check that accepts every folder."""


def looks_like_repository(model: str) -> bool:
    """Whether a text has the form `owner/name` of a repository on the Hub."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", model) is not None and model[0] not in ".-"


def fetch_snapshot(
    repo_id: str,
    *,
    revision: str | None = None,
    half: bool = False,
    check_index: Check = accept,
    check_configs: Check = accept,
    limits: Limits = lambda _: {},
    check_hashes: bool = True,
) -> Snapshot:
    """The folder of a repository on the Hub, downloaded as far as the cache does not have it.

    Args:
        repo_id: `owner/name`.
        revision: a branch, a tag or a commit's hash; None is the main branch.
        half: prefer the float16 variant of the weights.
        check_index: called once model_index.json is there, before anything else is fetched.
        check_configs: called once the configs and the tokenizer are there, before the weights.
        limits: called with the checked configs, if weights have to be downloaded.
        check_hashes: see that a downloaded file of weights has the SHA-256 that was announced.

    Raises:
        ModelError: no such repository or revision, no access to it, no complete model in it,
            or no network and no copy in the cache.
        PareError: what the checks raise.
        OSError: the cache cannot be written.
    """
    try:
        with connection():
            return download(
                repo_id, revision, half, check_index, check_configs, limits, check_hashes
            )
    except NotServedError as refusal:
        cached = find_cached(repo_id, revision, half)
        if cached is None:
            raise ModelError(
                refusal.problem, expected=refusal.expected, fix=refusal.fix
            ) from refusal.__cause__
        warnings.warn(
            f"{refusal.problem}; using the copy in the cache, commit {cached.revision[:7]}",
            stacklevel=2,
        )
        check_index(cached.folder)
        check_configs(cached.folder)
        return cached


def fetch_file(
    repo_id: str, choose: Callable[[Collection[str]], str], most: int, revision: str | None = None
) -> Path:
    """The path in the cache of one file of weights, downloaded if the cache does not have it.

    Args:
        choose: picks it from the names of all files in the repository.
        most: bytes that it can have.

    Raises:
        ModelError: as `fetch_snapshot`, or what `choose` raises.
        OSError: the cache cannot be written.
    """
    snapshots = Path(cache_folder()) / f"models--{repo_id.replace('/', '--')}" / "snapshots"
    try:
        with connection():
            commit, names = ask(repo_id, revision)
            name = choose(names)
            fetch_weights(repo_id, commit, name, snapshots / commit, most, check_hash=True)
            return snapshots / commit / name
    except NotServedError as refusal:
        newest_first = sorted(snapshots.glob("*"), key=lambda path: -path.stat().st_mtime)
        for snapshot in newest_first:
            files = (path for path in snapshot.rglob("*") if path.is_file())
            with contextlib.suppress(ModelError):
                name = choose({path.relative_to(snapshot).as_posix() for path in files})
                warnings.warn(
                    f"{refusal.problem}; using the copy in the cache, commit {snapshot.name[:7]}",
                    stacklevel=2,
                )
                return snapshot / name
        raise ModelError(
            refusal.problem, expected=refusal.expected, fix=refusal.fix
        ) from refusal.__cause__


# --- downloading --------------------------------------------------------------------------


def download(
    repo_id: str,
    revision: str | None,
    half: bool,
    check_index: Check,
    check_configs: Check,
    limits: Limits,
    check_hashes: bool,
) -> Snapshot:
    commit, names = ask(repo_id, revision)
    if hub_folder.INDEX not in names:
        raise ModelError(
            f"{repo_id} has no {hub_folder.INDEX}",
            expected="a Stable Diffusion model in the Hub's folder layout",
        )
    folder = fetch(repo_id, commit, hub_folder.INDEX).parent
    if folder.name != commit:
        raise strange_answer(repo_id)
    check_index(folder)
    for name in config_names(names, repo_id):
        fetch(repo_id, commit, name, folder)
    check_configs(folder)
    weights = chosen_weights(names, repo_id, half)
    most: Mapping[str, int] = {}
    if not all(is_cached(repo_id, commit, name) for name in weights):
        say_what_is_left_out(repo_id, folder)
        most = limits(folder)
    for name in weights:
        most_bytes = most.get(name.partition("/")[0], LARGEST_WEIGHTS)
        files = [name]
        if hub_folder.is_index(name):
            fetch(repo_id, commit, name, folder)
            files = shard_names(folder, name, names, repo_id)
        for file in files:
            fetch_weights(repo_id, commit, file, folder, most_bytes, check_hash=check_hashes)
    if revision != commit:
        # The cache notes which commit a branch's name stands for.  This comes last, so that
        # without a network the name leads to a copy that is whole.
        fetch(repo_id, revision, hub_folder.INDEX)
    return Snapshot(folder, commit)


def config_names(names: Collection[str], where: str) -> list[str]:
    """The small files of a model: all that must be there, and those that may be."""
    spare = hub_folder.IN_TOKENIZER_JSON if "tokenizer/tokenizer.json" in names else frozenset()
    for name in hub_folder.CONFIGS:
        if name not in names and name not in spare:
            raise ModelError(f"{where} has no {name}", expected="a whole Stable Diffusion model")
    return [name for name in (*hub_folder.CONFIGS, *hub_folder.TOKENIZER_EXTRAS) if name in names]


def chosen_weights(names: Collection[str], where: str, half: bool) -> list[str]:
    """A file of weights, or an index of files, for each part."""
    chosen = {part: hub_folder.choose_weights(names, part, half) for part in hub_folder.WEIGHTS}
    for part, name in chosen.items():
        if name is None:
            raise ModelError(
                f"{where} has no weights of the {part} that pare reads",
                expected=" or ".join(list(hub_folder.weight_names(part, half=False))[:2]),
            )
    return [name for name in chosen.values() if name is not None]


def shard_names(folder: Path, index: str, names: Collection[str], where: str) -> list[str]:
    """The files that an index in the folder names, as paths inside the repository."""
    part = index.rpartition("/")[0]
    shards = [f"{part}/{shard}" for shard in hub_folder.read_shards(folder / index)]
    for shard in shards:
        if shard not in names:
            raise ModelError(f"{where} has no {shard}, which its {index} names")
    return shards


def ask(repo_id: str, revision: str | None) -> tuple[str, set[str]]:
    """The commit that a revision stands for, and the names of all files in it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    try:
        with connection() as server, server.asking(f"the listing of {repo_id}", JSON_BYTES):
            info = HfApi().model_info(repo_id, revision=revision, timeout=SECONDS)
    except HFValidationError as error:
        raise ModelError(
            f"{repo_id!r} cannot be the name of a repository",
            expected="owner/name, as CompVis/stable-diffusion-v1-4",
        ) from error
    except client_errors() as error:
        raise refused(error, repo_id, revision) from error
    except PareError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        # The client takes the answer's fields as they come.  A hotel's login page lands here.
        raise strange_answer(repo_id) from error
    if not COMMIT.fullmatch(str(info.sha)) or info.siblings is None:
        raise strange_answer(repo_id)
    return str(info.sha), {str(file.rfilename) for file in info.siblings}


def fetch_weights(
    repo_id: str, commit: str, name: str, folder: Path, most: int, *, check_hash: bool
) -> None:
    """Fetch a file of weights, and see once that its bytes are those that were announced.

    Files in LFS, as weights are, have their SHA-256 as ETag, which is the file's name in the
    cache.

    Raises:
        ModelError: they are others; the file is taken away again.
    """
    known = is_cached(repo_id, commit, name)
    path = fetch(repo_id, commit, name, folder, most)
    blob = path.resolve()
    if known or not check_hash or not SHA256.fullmatch(blob.name):
        return
    if sha256_of(blob) != blob.name:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise NotServedError(
            f"{name} of {repo_id} has other bytes than the server announced (their SHA-256)",
            fix="try again, or from somewhere else",
        )


def fetch(
    repo_id: str,
    revision: str | None,
    name: str,
    folder: Path | None = None,
    most: int | None = None,
) -> Path:
    """The path in the cache of one file, fetched if it is not there.

    Args:
        folder: where the other files of the commit lie.
        most: bytes of a file of weights; None: it is a small file.
    """
    from huggingface_hub import hf_hub_download

    small = JSON_BYTES if name.endswith(".json") and "tokenizer/" not in name else TEXT_BYTES
    size = small if most is None else most
    try:
        what = f"{name} of {repo_id}"
        with connection() as server, server.asking(what, size, small=most is None):
            bar = progress_bar(server)
            path = Path(hf_hub_download(repo_id, name, revision=revision, tqdm_class=bar))
    except client_errors() as error:
        raise refused(error, repo_id, revision) from error
    except OSError as error:
        if error.errno is None:  # not the system's: what arrived is not what was announced
            raise went_wrong(name, repo_id, error) from error
        # A full disk does not say what it is full of.
        raise OSError(error.errno, error.strerror, error.filename or cache_folder()) from error
    except RuntimeError as error:
        # What hf_xet, which carries large files, raises for a lost connection.
        if "hf_xet" not in sys.modules:
            raise
        raise went_wrong(name, repo_id, error) from error
    except PareError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise strange_answer(repo_id) from error  # the client takes headers as they come
    if folder is not None and path != folder / name:
        raise strange_answer(repo_id)
    return path


def fetch_beginning(repo_id: str, commit: str, name: str, count: int) -> tuple[bytes, int | None]:
    """The first `count` bytes of a file, and how many it has in all, if the server says so.

    A server that sends more is cut off.

    Raises:
        ModelError: the server does not give them.
    """
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        hf_raise_for_status,
    )

    headers = build_hf_headers() | {"Range": f"bytes=0-{count - 1}"}
    url = hf_hub_url(repo_id, name, revision=commit)
    what = f"the beginning of {name} of {repo_id}"
    begun = bytearray()
    try:
        with (
            connection() as server,
            server.asking(what, count + JSON_BYTES, part=True),
            get_session().stream(
                "GET", url, headers=headers, timeout=SECONDS, follow_redirects=True
            ) as response,
        ):
            hf_raise_for_status(response)
            for chunk in response.iter_raw(2**16):
                begun += chunk
                if len(begun) >= count:
                    break
    except client_errors() as error:
        raise refused(error, repo_id, commit) from error
    whole = response.headers.get("Content-Range", "").rpartition("/")[2]
    if response.status_code != 206:
        whole = response.headers.get("Content-Length", "")
    size = int(whole) if re.fullmatch(r"[0-9]{1,18}", whole) else None
    return bytes(begun[:count]), size


def progress_bar(server: Connection) -> Any:
    """A bar for each file where somebody watches, else what huggingface_hub finds right.

    Either shows the connection how much has come: hf_xet carries large files past it.
    """
    from huggingface_hub.utils.tqdm import tqdm as quiet_bar
    from tqdm import tqdm

    watched = sys.stderr.isatty()

    class Bar(tqdm if watched else quiet_bar):  # type: ignore[misc]
        monitor_interval = 0  # or tqdm starts a thread for each class, which never ends
        taken = 0.0  # a bar that is not drawn does not count

        def __init__(self, *args: Any, name: str = "", **options: Any) -> None:
            if watched:
                super().__init__(*args, **options | {"leave": False, "disable": False})
            else:
                super().__init__(*args, name=name, **options)

        def update(self, n: float | None = 1) -> bool | None:
            drawn: bool | None = super().update(n)
            self.taken += n or 0
            server.show(int(self.taken))
            return drawn

    return Bar


LEFT_OUT = ("safety_checker", "feature_extractor")


def say_what_is_left_out(repo_id: str, folder: Path) -> None:
    """Say, of a folder or when a model is first fetched, that pare checks no image."""
    index = read_json(folder / hub_folder.INDEX)
    entries = {part: index.get(part) for part in LEFT_OUT}
    named = [part for part, entry in entries.items() if isinstance(entry, list) and any(entry)]
    if named:
        warnings.warn(
            f"{repo_id} has a {' and a '.join(named)}, which pare leaves out: no image is checked",
            stacklevel=2,
        )


# --- the cache ----------------------------------------------------------------------------


def cache_folder() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return HF_HUB_CACHE


def is_cached(repo_id: str, commit: str, name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo_id, name, revision=commit), str)


def find_cached(repo_id: str, revision: str | None, half: bool) -> Snapshot | None:
    """The copy in the cache, if it has every file that is needed."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        index = hf_hub_download(repo_id, hub_folder.INDEX, revision=revision, local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    folder = Path(index).parent
    names = {str(f.relative_to(folder).as_posix()) for f in folder.rglob("*") if f.is_file()}
    try:
        config_names(names, repo_id)
        for name in chosen_weights(names, repo_id, half):
            if hub_folder.is_index(name):
                shard_names(folder, name, names, repo_id)
    except PareError:
        return None  # cut off while it was fetched
    return Snapshot(folder, folder.name)


# --- why the Hub does not give a file, in words -------------------------------------------


def client_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises when the Hub refuses, or does not respond."""
    from huggingface_hub import errors

    # huggingface_hub 1 stands on httpx and 2 on httpx2; both have the base of errors here.
    no_answer: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
    return no_answer, errors.EntryNotFoundError, errors.OfflineModeIsEnabled


def refused(error: Exception, repo_id: str, revision: str | None) -> ModelError:
    """The error of the client, as one sentence with a way out."""
    from huggingface_hub import errors
    from huggingface_hub.constants import ENDPOINT

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # why it looked into the cache
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    message = response.headers.get("X-Error-Message", "") if response is not None else ""
    log_in = "log in with `hf auth login` or set HF_TOKEN"

    if isinstance(error, errors.OfflineModeIsEnabled):
        return NotServedError(
            f"{repo_id} is not looked for on the Hub, because HF_HUB_OFFLINE is set",
            fix="the cache has no whole copy: unset it to download the model",
        )
    if isinstance(error, errors.GatedRepoError):
        return NotServedError(
            f"{repo_id} is only given to those who accept its terms",
            fix=f"accept them at {ENDPOINT}/{repo_id} and {log_in}",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(
            f"{repo_id} has no revision {revision!r}", expected="a branch, a tag or a commit's hash"
        )
    if isinstance(error, errors.DisabledRepoError):
        return NotServedError(f"the Hub has disabled access to {repo_id}", fix=elsewhere(repo_id))
    if status == 401 and "credentials" in message.lower():
        return NotServedError(
            f"the Hub does not accept your token for {repo_id}",
            fix="log in again with `hf auth login`, or unset HF_TOKEN",
        )
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return NotServedError(
            f"{repo_id} lists a file that it does not have", fix="try another revision"
        )
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404, 410):
        return NotServedError(
            f"the Hub has no model {repo_id} for you",
            fix=elsewhere(repo_id) or f"check the name; if it is private, {log_in}",
        )
    if status == 403:
        return NotServedError(
            f"you may not read {repo_id}", fix=f"{log_in}, with a token that may read it"
        )
    if status == 429:
        return NotServedError("the Hub has had too many requests from here", fix="try again later")
    if status is not None:
        return NotServedError(
            f"the Hub responded with status {status} for {repo_id}", fix="try again later"
        )
    return NotServedError(
        f"{ENDPOINT} cannot be reached for {repo_id} ({first_line(error)})",
        fix="the cache has no whole copy: connect, or name a model's folder",
    )


def went_wrong(name: str, repo_id: str, error: Exception) -> ModelError:
    return NotServedError(
        f"the download of {name} from {repo_id} went wrong ({first_line(error)})", fix="try again"
    )


def elsewhere(repo_id: str) -> str:
    """Where the files of a removed repository are, if it is a known one."""
    for beginning, owner in REMOVED.items():
        if repo_id.lower().startswith(beginning):
            name = repo_id.partition("/")[2].lower()
            return f"it was removed; the same files are at {owner}/{name}"
    return ""


def strange_answer(repo_id: str) -> ModelError:
    from huggingface_hub.constants import ENDPOINT

    return NotServedError(
        f"{ENDPOINT} does not answer about {repo_id} as the Hub does",
        fix="check the network's login page, the proxy and HF_ENDPOINT",
    )


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its name where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__
