"""How long pare's bounded downloads take, against plain huggingface_hub, over loopback.

    python -m tests.loading.download_speed                # MB of weights: 256; pairs: 5
    python -m tests.loading.download_speed --mb 64 --pairs 3

Both sides fetch the same files from the same server, in turn; the medians are printed.  Plain
huggingface_hub lists the repository and calls `hf_hub_download` for each file that pare reads.
Loopback is the hardest case for pare: from a network both wait for the same bytes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pare.loading.hub_client import fetch_snapshot
from tests.hub_server import Hub, Repository
from tests.loading.test_hub_client import NAME, SMALL, WEIGHTS, User, content_of

UNET = "unet/diffusion_pytorch_model.safetensors"

Fetch = Callable[[bool], object]
"""Fetches the whole model; whether offline."""


def plain(offline: bool) -> None:
    """What a program does that trusts the server."""
    from huggingface_hub import HfApi, hf_hub_download

    index = Path(hf_hub_download(NAME, "model_index.json", local_files_only=offline))
    commit = index.parent.name if offline else HfApi().model_info(NAME).sha
    for name in sorted(SMALL | WEIGHTS):
        hf_hub_download(NAME, name, revision=commit, local_files_only=offline)


def bounded(offline: bool) -> None:
    fetch_snapshot(NAME)


def bounded_without_hash(offline: bool) -> None:
    fetch_snapshot(NAME, check_hashes=False)


SIDES: dict[str, Fetch] = {
    "huggingface_hub": plain,
    "pare": bounded,
    "pare --no-hash": bounded_without_hash,
}
KINDS = ("configs and small weights", "large weights", "large weights, cut off half-way",
         "from the cache", "from the cache, offline")  # fmt: skip


def seconds(fetch: Fetch, user: User, kind: str) -> float:
    """One download into an empty cache, or one from a full one."""
    cached = kind.startswith("from the cache")
    if not cached and user.home.exists():
        shutil.rmtree(user.home)
    offline = kind.endswith("offline")
    repository = user.hub.repositories[NAME]
    repository.cuts = {UNET: [len(repository.files[UNET]) // 2]} if "cut off" in kind else {}
    with user.client(offline=offline):
        start = time.perf_counter()
        fetch(offline)
        return time.perf_counter() - start


def measure(kind: str, size: int, pairs: int, folder: Path) -> dict[str, float]:
    """Side -> the median of its seconds; the sides take turns."""
    files = {name: content_of(name) for name in SMALL | WEIGHTS}
    if "large" in kind:
        files[UNET] = os.urandom(size)
    with Hub() as hub:
        hub.repositories[NAME] = Repository(files)
        user = User(hub, folder / "home")
        with user.client():
            plain(offline=False)  # imports, and a cache for those that read one
        times = [{side: seconds(fetch, user, kind) for side, fetch in SIDES.items()}
                 for _ in range(pairs)]  # fmt: skip
    return {side: statistics.median(turn[side] for turn in times) for side in SIDES}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.loading.download_speed")
    parser.add_argument("--mb", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args(arguments)
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    print("|  | " + " | ".join(f"{side}, s" for side in SIDES) + " |")
    print("|---" * (1 + len(SIDES)) + "|")
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(kind, options.mb * 10**6, options.pairs, Path(folder))
        shown = kind.replace("large weights", f"{options.mb} MB of weights")
        print(f"| {shown} | " + " | ".join(f"{s:.3f}" for s in found.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
