"""Words that a model was taught later, by textual inversion (arXiv:2208.01618).

A few images of a thing, or of a style, teach one or several vectors that go into the text
encoder where a token's embedding would.  They are passed on as small files of four kinds:

    learned_embeds.bin / .safetensors     {"<cat-toy>": (C,) or (n, C)}, as diffusers trains them
    NAME.pt / .bin                        {"string_to_param": {"*": (n, C)}, "name": …}, the web UI
                                          of AUTOMATIC1111, and the paper's own code
    NAME.safetensors                      {"emb_params": (n, C)}, as kohya's scripts do

Nothing in a file is run (`pare.loading.checkpoint`), and what is no embedding is refused in
a sentence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pare.errors import EmbeddingError, PromptError
from pare.loading.checkpoint import Checkpoint, Kept, open_checkpoint
from pare.runtime.validation import check_prompt

MOST_VECTORS = 75  # tokens of a prompt without its start and end
UNNAMED = ("*", "")  # what stands for the word in the web UI's files
MODELS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 1280: "Stable Diffusion XL"}


@dataclass(frozen=True, eq=False)
class LearnedWord:
    """A word, and the vectors that the text encoder reads in its place."""

    word: str
    vectors: Tensor
    """(n, C): one a token, C the text encoder's width."""

    def __post_init__(self) -> None:
        check_word(self.word)
        if self.vectors.ndim != 2 or not self.vectors.is_floating_point():
            raise EmbeddingError(
                f"{self.word!r} is a tensor of shape {tuple(self.vectors.shape)}",
                expected="floating-point vectors (n, C), one a token",
            )
        if not 1 <= len(self.vectors) <= MOST_VECTORS:
            raise EmbeddingError(
                f"{self.word!r} has {len(self.vectors)} vectors",
                expected=f"1 to {MOST_VECTORS}, as many as a prompt has tokens",
            )
        if not self.vectors.isfinite().all():
            raise EmbeddingError(
                f"the vectors of {self.word!r} hold NaN or infinities", fix="train it again"
            )


def check_word(word: str) -> str:
    """A word that can be found in a prompt: not empty, and without spaces."""
    check_prompt(word)
    if not word or any(letter.isspace() for letter in word):
        raise PromptError(
            f"a learned word is called {word!r}", expected="a word without spaces, as <cat-toy>"
        )
    return word


def load_learned_words(path: Path, word: str | None = None) -> list[LearnedWord]:
    """The words in a file, usually one.

    Args:
        word: what to call it in prompts; None: as the file says, or else as the file is called.
            Of a file that holds several words this picks one.

    Raises:
        EmbeddingError: the file holds something else.
        ModelError, WeightsError: it is damaged, or a pickle that wants to run code.
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
    """The word and the tensor of each embedding in a file, whatever of the kinds it is."""
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


def check_width(learned: LearnedWord, width: int, model: str) -> None:
    """Raise unless the vectors are as wide as those of the model's table.

    Raises:
        EmbeddingError: they are for another model.
    """
    got = learned.vectors.shape[1]
    if got != width:
        named = f", as {MODELS[got]} has" if got in MODELS else ""
        raise EmbeddingError(
            f"{learned.word!r} has vectors of {got} numbers{named}",
            expected=f"{width}, the width of {model}'s text encoder",
        )


def no_embedding(path: Path, what: str) -> EmbeddingError:
    return EmbeddingError(
        f"{path} holds {what}",
        expected="a word's vectors, as textual inversion makes them",
    )
