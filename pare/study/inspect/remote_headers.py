"""A repository on the Hub without its weights: its configs, and the headers of its weights.

Configs are a few kilobytes and are downloaded into the Hub's cache.  Of a file of weights that is
not in the cache only the header is requested (a safetensors file begins with all names, dtypes and
shapes): a few kilobytes for a model of gigabytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from pare.errors import ModelError
from pare.loading import hub_client, hub_folder
from pare.loading.bounded_http import NotServedError
from pare.study.inspect.weight_files import WeightFile, look_at, looks_like, read_beginning

FIRST_BYTES = 100_000
"""Of a file: the header of Stable Diffusion's UNet has 90,000."""
LONGEST_REMOTE_HEADER = 16 * 2**20

Weights = Callable[[str], Sequence[WeightFile]]
"""A part's name -> the content of its files of weights."""


def find_repository(repo_id: str, revision: str | None) -> tuple[Path, str, Weights | None]:
    """A repository's folder in the cache, with its configs; the commit's hash; its weights.

    The weights are None without a connection, and the folder holds those that are cached.

    Raises:
        ModelError: there is none of that name for this user, or neither a connection nor a copy in
            the cache.
    """
    try:
        commit, names = hub_client.ask(repo_id, revision)
    except NotServedError:
        cached = hub_client.find_cached(repo_id, revision, half=False)
        if cached is None:
            raise
        return cached.folder, cached.revision, None
    if hub_folder.INDEX not in names:
        raise ModelError(
            f"{repo_id} has no {hub_folder.INDEX}", expected="a Stable Diffusion model"
        )
    folder = hub_client.fetch(repo_id, commit, hub_folder.INDEX).parent
    for name in (*hub_folder.CONFIGS, *hub_folder.TOKENIZER_EXTRAS):
        if name in names:
            hub_client.fetch(repo_id, commit, name, folder)

    def remote(part: str) -> Sequence[WeightFile]:
        chosen = hub_folder.choose_weights(names, part, half=False)
        if chosen is None:
            raise ModelError(f"{repo_id} has no weights of the {part} that pare reads")
        files = [chosen]
        if hub_folder.is_index(chosen):
            hub_client.fetch(repo_id, commit, chosen, folder)
            files = hub_client.shard_names(folder, chosen, names, repo_id)
        return [read_remote_header(repo_id, commit, name, folder) for name in files]

    return folder, commit, remote


def read_remote_header(repo_id: str, commit: str, name: str, folder: Path) -> WeightFile:
    """The content of a file by its header; of one in the cache by `look_at`."""
    if hub_client.is_cached(repo_id, commit, name):
        return look_at(folder / name)
    path = Path(repo_id) / name
    if not name.endswith(".safetensors"):
        return WeightFile(path, 0, "ckpt, not downloaded")
    beginning, size = hub_client.fetch_beginning(repo_id, commit, name, FIRST_BYTES)
    length = 8 + int.from_bytes(beginning[:8], "little")
    if len(beginning) < length <= LONGEST_REMOTE_HEADER:
        beginning, size = hub_client.fetch_beginning(repo_id, commit, name, length)
    found = read_beginning(path, len(beginning) if size is None else size, beginning)
    if found.kind != "safetensors":
        return found
    found = dataclasses.replace(found, kind="safetensors, not downloaded")
    return dataclasses.replace(found, looks_like=looks_like(found.shapes, found.metadata))
