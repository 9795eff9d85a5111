"""What lies on the disk: models in the Hub's cache and in folders, LoRA files and embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pare.loading.hub_folder import INDEX
from pare.loading.model_source import sha256_of
from pare.study.inspect.lora_summary import summarise_lora
from pare.study.inspect.model_summary import ModelSummary, describe_file, describe_folder
from pare.study.inspect.weight_files import WeightFile, dtype_counts
from pare.text.textual_inversion import MODELS

ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class ListedModel:
    """A model, a LoRA or an embedding on the disk."""

    name: str
    """What --model, --lora or --embedding takes."""
    kind: str
    """Its architecture, or what else it is; of a LoRA and an embedding with the base model."""
    dtype: str
    """The most frequent one of its weights."""
    bytes: int
    sha256: str = ""
    """Of a file, if it was asked for."""
    revision: str = ""
    """The commit, of a repository in the Hub's cache."""


def hub_models() -> Iterator[ListedModel]:
    """The models in the Hub's cache, by huggingface_hub's own list."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repository in sorted(repositories, key=lambda one: one.repo_id):
        for revision in sorted(repository.revisions, key=lambda one: -one.last_modified):
            folder = Path(revision.snapshot_path)
            if repository.repo_type == "model" and (folder / INDEX).is_file():
                model = describe_folder(repository.repo_id, folder, revision.commit_hash)
                yield listed(model, revision.size_on_disk, revision=revision.commit_hash)


def models_in(folder: Path, *, hashes: bool = False) -> Iterator[ListedModel]:
    """The models in a folder: files of weights, and folders in the Hub's layout.

    Args:
        hashes: read every file for its SHA-256.

    Raises:
        OSError: it cannot be read.
    """
    for path in sorted(folder.iterdir()):
        if path.is_dir() and (path / INDEX).is_file():
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            yield listed(describe_folder(str(path), path), size)
        elif path.is_file() and path.suffix.lower() in ENDINGS:
            digest = sha256_of(path) if hashes else ""
            model = describe_file(str(path), path)
            yield listed(model, path.stat().st_size, sha256=digest)


def listed(model: ModelSummary, size: int, *, sha256: str = "", revision: str = "") -> ListedModel:
    files: Sequence[WeightFile] = [file for part in model.parts.values() for file in part.files]
    if model.file is not None:
        files = [model.file]
    counts = dtype_counts([tensor for file in files for tensor in file.tensors])
    kind = model.kind or "nothing that pare knows"
    if model.file is not None and not model.parts:
        kind = kind_of_file(model.file)
    if model.all_problems:
        kind = f"{kind}, broken"
    return ListedModel(model.name, kind, next(iter(counts), ""), size, sha256, revision)


def kind_of_file(file: WeightFile) -> str:
    """What a file is that holds no model, with its base if it says so."""
    lora = None if file.all_problems else summarise_lora(file.path)
    if lora is not None:
        return f"LoRA for {lora.base}" if lora.base else "LoRA"
    if "embedding" in file.looks_like:
        widths = [tensor.shape[-1] for tensor in file.tensors if tensor.shape]
        base = MODELS.get(widths[0]) if widths else None
        return f"embedding for {base}" if base else "embedding"
    return file.looks_like or "nothing that pare knows"
