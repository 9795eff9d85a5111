"""A repository on the Hub, looked at from afar: its configs, and its weights' headers.

Configs are a few kilobytes and go to the Hub's ordinary cache.  Of a file of weights that
the cache has not got, only the header is asked for (safetensors puts all names, types and
shapes at the front), so that a model of gigabytes takes as many kilobytes to look at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pare.errors import ModelError, WeightsError
from pare.loading import hub_client, hub_folder
from pare.study.inspect.weight_files import StoredTensor, WeightFile, look_at


@dataclass(frozen=True)
class Repository:
    """A repository's files, as far as they were asked for."""

    folder: Path
    """In the cache, with the configs in it."""
    revision: str
    """The commit's hash."""
    weights: Callable[[str], Sequence[WeightFile]]
    """What is in a part's files of weights."""


def find_repository(repo_id: str, revision: str | None) -> Repository:
    """Look at a repository, without its weights.

    Raises:
        ModelError: there is none of that name for this user, or no network and no copy in the
            cache.
    """
    try:
        commit, names = hub_client.ask(repo_id, revision)
    except hub_client.NotServedError:
        cached = hub_client.find_cached(repo_id, revision, half=False)
        if cached is None:
            raise
        folder = cached.folder

        def local(part: str) -> Sequence[WeightFile]:
            return [
                look_at(file)
                for file in hub_folder.weight_files(
                    hub_folder.find_weights(folder, part, half=False)
                )
            ]

        return Repository(folder, cached.revision, local)
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
        return [look_from_afar(repo_id, commit, name, folder) for name in files]

    return Repository(folder, commit, remote)


def look_from_afar(repo_id: str, commit: str, name: str, folder: Path) -> WeightFile:
    """What a file's header says; of one in the cache, what `look_at` says."""
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
