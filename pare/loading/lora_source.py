"""Where a LoRA's file is: a path, or a repository on the Hub."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pare.errors import ModelError
from pare.loading.hub_client import SHA256, cache_folder, fetch_file, looks_like_repository
from pare.loading.lora_file import HUB_FILES

LARGEST = 4 * 2**30
"""Bytes of a LoRA on the Hub: those of high rank for SD 1.x have 0.3 GiB."""


def find_lora(name: str | Path) -> Path:
    """A LoRA's file or folder; of a repository on the Hub its file in the cache, downloaded once.

    Args:
        name: a path, `owner/name` or `owner/name/file.safetensors`.  A path that exists takes
            precedence.

    Raises:
        ModelError: there is none, or the Hub does not give it.
    """
    if Path(name).exists():
        return Path(name)
    repository, file = split_hub_name(str(name))
    if repository is None:
        raise ModelError(
            f"the LoRA {str(name)!r} does not exist",
            expected="a file, or owner/name or owner/name/file.safetensors on the Hub",
        )
    return fetch_file(repository, lambda names: choose_file(names, repository, file), LARGEST)


def split_hub_name(name: str) -> tuple[str | None, str]:
    """`owner/name/file.safetensors` as ("owner/name", "file.safetensors"); (None, "") if the text
    cannot be the name of a repository."""
    owner, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    known = looks_like_repository(f"{owner}/{repository}")
    unsafe = "\\" in name or any(part in ("", ".", "..") for part in file.split("/") if file)
    return (f"{owner}/{repository}", file) if known and not unsafe else (None, "")


def choose_file(names: Collection[str], repository: str, wanted: str) -> str:
    """The file of a repository that holds its LoRA.

    Raises:
        ModelError: it has none, or several and none by a usual name.
    """
    if wanted:
        if wanted not in names:
            raise ModelError(f"{repository} has no {wanted}")
        return wanted
    usual = [name for name in HUB_FILES if name in names]
    listed = usual[:1] or sorted(name for name in names if name.endswith(".safetensors"))
    if len(listed) != 1:
        some = ", ".join(listed[:4]) + (", …" if len(listed) > 4 else "")
        raise ModelError(
            f"{repository} has {len(listed)} files that could be a LoRA ({some or 'none'})",
            expected=f"{repository}/FILE",
        )
    return listed[0]


def cached_by_hash(name: str, sha256: str) -> Path | None:
    """The file of a repository in the Hub's cache that has this SHA-256; nothing is downloaded."""
    repository, _ = split_hub_name(name)
    if repository is None or not SHA256.fullmatch(sha256):
        return None
    folder = Path(cache_folder()) / f"models--{repository.replace('/', '--')}"
    blob = folder / "blobs" / sha256  # files in LFS, as weights are, are called so
    return blob if blob.is_file() else None
