"""A repository on the Hub without its weights: its configs, and the headers of its weights.

Configs are a few kilobytes and are downloaded into the Hub's cache.  Of a file of weights that is
not in the cache only the header is requested (a safetensors file begins with all names, dtypes and
shapes): a few kilobytes for a model of gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pare.errors import ModelError, WeightsError
from pare.loading import hub_client, hub_folder
from pare.loading.bounded_http import NotServedError
from pare.study.inspect.weight_files import StoredTensor, WeightFile, look_at

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
    from huggingface_hub import HfApi
    from huggingface_hub.errors import SafetensorsParsingError

    try:
        header = HfApi().parse_safetensors_file_metadata(repo_id, name, revision=commit)
    except SafetensorsParsingError as error:
        raise WeightsError(f"{path} does not begin as safetensors do") from error
    except hub_client.client_errors() as error:
        raise hub_client.refused(error, repo_id, commit) from error
    tensors = tuple(
        StoredTensor(key, info.dtype, tuple(info.shape)) for key, info in header.tensors.items()
    )
    size = max((info.data_offsets[1] for info in header.tensors.values()), default=0)
    metadata = {key: str(value) for key, value in header.metadata.items()}
    return WeightFile(path, size, "safetensors, not downloaded", tensors, metadata=metadata)
