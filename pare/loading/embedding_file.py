"""Reads textual-inversion embeddings from files.

    learned_embeds.bin / .safetensors     {"<cat-toy>": (C,) or (n, C)}, as diffusers trains them
    NAME.pt / .bin                        {"string_to_param": {"*": (n, C)}, "name": …}, the web UI
                                          of AUTOMATIC1111, and the paper's own code
    NAME.safetensors                      {"emb_params": (n, C)}, as kohya's scripts do

No code in a file is run (`pare.loading.checkpoint`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from pare.errors import EmbeddingError
from pare.loading.checkpoint import Checkpoint, Kept, open_checkpoint
from pare.text.textual_inversion import MOST_VECTORS, LearnedWord

UNNAMED = ("*", "")  # what stands for the word in the web UI's files


def load_learned_words(path: Path, word: str | None = None) -> list[LearnedWord]:
    """The words in a file, usually one.

    Args:
        word: what to call it in prompts; None: as the file says, or else as the file is called.
            Of a file that holds several words this picks one.

    Raises:
        EmbeddingError: the file holds something else.
        ModelError, WeightsError: it is damaged, or a pickle that would run code.
        OSError: it cannot be opened.
    """
    found = {name: as_rows(path, name, vectors) for name, vectors in named_vectors(path)}
    if word is None:
        return [LearnedWord(name, vectors) for name, vectors in found.items()]
    if len(found) > 1:
        if word not in found:
            raise EmbeddingError(
                f"{path} holds {len(found)} words, and {word!r} is none of them",
                expected=f"of them: {', '.join(list(found)[:5])}",
            )
        return [LearnedWord(word, found[word])]
    return [LearnedWord(word, *found.values())]


def named_vectors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The word and the tensor of each embedding in a file of any of these formats."""
    file = open_checkpoint(path)
    if "clip_l" in file.tensors or "clip_g" in file.tensors:
        raise EmbeddingError(
            f"{path} was trained for Stable Diffusion XL", expected="Stable Diffusion 1.x or 2.x"
        )
    if "string_to_param" in file.extras:
        yield from web_ui_vectors(path, file)
    elif "emb_params" in file.tensors:
        yield stem(path), file.tensors["emb_params"]
    elif 1 <= len(file.tensors) <= 1000 and not any("." in name for name in file.tensors):
        yield from file.tensors.items()
    else:
        raise no_embedding(path, f"{len(file.tensors)} tensors by other names")


def web_ui_vectors(path: Path, file: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    params = file.extras["string_to_param"]
    if isinstance(params, Kept):  # a ParameterDict: the paper's own code
        params = params.entries()
    if not isinstance(params, Mapping) or len(params) != 1:
        raise no_embedding(path, "a string_to_param that is no table of one")
    ((key, vectors),) = params.items()
    if not isinstance(vectors, Tensor):
        raise no_embedding(path, "a string_to_param without a tensor")
    names = (file.extras.get("name"), key)
    good = (name for name in names if isinstance(name, str) and name not in UNNAMED)
    yield next((name for name in good if not any(map(str.isspace, name))), stem(path)), vectors


def stem(path: Path) -> str:
    """The file's name as a word."""
    return "-".join(path.stem.split())


def as_rows(path: Path, name: str, vectors: Tensor) -> Tensor:
    """(C,) or (n, C) -> (n, C), in memory of its own: the file may change."""
    if vectors.ndim not in (1, 2) or not vectors.numel() or not vectors.is_floating_point():
        shape = " x ".join(map(str, vectors.shape)) or "a single number"
        raise no_embedding(path, f"{name[:40]!r}, {shape}, {vectors.dtype}")
    if vectors.ndim == 2 and len(vectors) > MOST_VECTORS:
        raise no_embedding(path, f"{name[:40]!r} with {len(vectors)} vectors")
    return vectors.detach().reshape(-1, vectors.shape[-1]).clone()


def no_embedding(path: Path, what: str) -> EmbeddingError:
    return EmbeddingError(
        f"{path} holds {what}",
        expected="a word's vectors, as textual inversion makes them",
    )
