"""A tokenizer's folder to CLIP's tokenizer.

    tokenizer.json              all of it, as transformers 5 writes it; or, as before it,
    vocab.json, merges.txt      the tokens and their ids; which pairs of tokens become one
    tokenizer_config.json, special_tokens_map.json, added_tokens.json
                                the start, end, padding and unknown tokens; tokens added later

transformers would trust these files, which anyone may have written, and what it cannot
read ends in whatever its parser raises.  Here they are read and checked first; its CLIP
tokenizer is then built from what they say.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pare.config import read_json, read_text, short_json
from pare.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
SPECIAL = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
"""The special tokens, and what they are if no file says."""

FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")
"""How the tokenizers library is to find an added token in a text."""

Flags = dict[str, bool]


@dataclass(frozen=True)
class Added:
    """A token that is found in a text before the text is split."""

    content: str
    flags: Flags


@dataclass(frozen=True)
class TokenizerFiles:
    """What the files of a tokenizer's folder say, checked."""

    folder: Path
    vocabulary: Mapping[str, int]
    merges: tuple[tuple[str, str], ...]
    special: Mapping[str, Added]
    """By the names in `SPECIAL`."""
    added: Mapping[int, Added]
    """By id."""


def read_tokenizer(folder: Path, size: int) -> TokenizerFiles:
    """Read the folder, for a text encoder that knows `size` tokens.

    Raises:
        ModelError: a file is missing.
        ConfigError: a file that is not what its name says, or ids that are not below `size`.
        OSError: a file cannot be opened.
    """
    whole = folder / "tokenizer.json"
    special: dict[str, Added] = {}
    added: dict[int, Added] = {}
    if whole.exists():
        vocabulary, merges, added = read_whole(whole, size)
    else:
        vocabulary = check_ids(read_part(folder, "vocab.json"), size, folder / "vocab.json")
        merges = check_merges(read_merges(folder), vocabulary, folder / "merges.txt")
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).exists():
            path, raw = folder / name, read_json(folder / name)
            special |= {key: read_token(raw[key], path) for key in SPECIAL if raw.get(key)}
            added |= read_decoder(raw.get("added_tokens_decoder") or {}, size, path)
    if (folder / "added_tokens.json").exists():
        path = folder / "added_tokens.json"
        for content, number in check_ids(read_json(path), size, path).items():
            added.setdefault(number, Added(content, {}))
    special = {key: special.get(key, Added(token, {})) for key, token in SPECIAL.items()}
    unknown = special["unk_token"].content
    if unknown not in vocabulary:
        raise ConfigError(
            f"{folder} has no token {short_json(unknown)}, which stands for unknown ones",
            fix="download it again",
        )
    return TokenizerFiles(folder, vocabulary, merges, special, added)


def read_part(folder: Path, name: str) -> dict[str, Any]:
    if not (folder / name).is_file():
        raise ModelError(
            f"{folder} has no {name}",
            expected="vocab.json and merges.txt, or tokenizer.json",
            fix="download the whole model",
        )
    return read_json(folder / name)


def read_whole(
    path: Path, size: int
) -> tuple[dict[str, int], tuple[tuple[str, str], ...], dict[int, Added]]:
    """Vocabulary, merges and added tokens of a tokenizer.json."""
    raw = read_json(path)
    model = raw.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        wrong(path, "has no model with a vocab")
    vocabulary = check_ids(model["vocab"], size, path)
    listed = model.get("merges")
    if not isinstance(listed, list):
        wrong(path, "has no list of merges")
    # A pair is a string in older files.
    pairs = (tuple(pair.split(" ")) if isinstance(pair, str) else pair for pair in listed)
    merges = check_merges(pairs, vocabulary, path)
    entries = raw.get("added_tokens") or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        wrong(path, "has added_tokens that are no list of tokens")
    return (
        vocabulary,
        merges,
        {check_id(e.get("id"), size, path): read_token(e, path) for e in entries},
    )


def read_merges(folder: Path) -> list[tuple[str, ...]]:
    """The pairs in merges.txt, one a line."""
    path = folder / "merges.txt"
    if not path.is_file():
        raise ModelError(f"{folder} has no merges.txt", fix="download the whole model")
    lines = read_text(path).split("\n")
    return [
        tuple(line.split(" ")) for line in lines if line.strip() and not line.startswith("#version")
    ]


def check_merges(
    pairs: Iterable[Any], vocabulary: Mapping[str, int], path: Path
) -> tuple[tuple[str, str], ...]:
    """The pairs, if each is two tokens that join to a third."""
    listed = list(pairs)
    if all_join(listed, vocabulary):
        return tuple(map(tuple, listed))
    for number, pair in enumerate(listed, start=1):
        good = isinstance(pair, list | tuple) and len(pair) == 2
        if not good or not all(isinstance(piece, str) for piece in pair):
            wrong(path, f"has no pair as merge {number}: {short_json(pair)}")
        first, second = pair
        if not {first, second, first + second} <= vocabulary.keys():
            raise ConfigError(
                f"merge {number} of {path} is {short_json(f'{first} {second}')}",
                expected="two tokens of the vocabulary that join to a third",
                fix="download it again",
            )
    raise AssertionError("what does not join was found above")


def all_join(pairs: Sequence[Any], vocabulary: Mapping[str, int]) -> bool:
    """Whether every pair is two tokens of the vocabulary that join to a third.

    CLIP has 48,894 pairs: to look at them one by one takes longer than to map gigabytes of
    weights, so this asks all of them at once.
    """
    if not set(map(type, pairs)) <= {list, tuple} or not set(map(len, pairs)) <= {2}:
        return False
    if not set(map(type, itertools.chain.from_iterable(pairs))) <= {str}:
        return False
    joined = {first + second for first, second in pairs}
    return joined.union(*pairs) <= vocabulary.keys()


def read_decoder(raw: object, size: int, path: Path) -> dict[int, Added]:
    """tokenizer_config.json's `added_tokens_decoder`: {"49408": {"content": …}}."""
    if not isinstance(raw, dict):
        wrong(path, "has an added_tokens_decoder that is no object")
    # An id is written as text there; what is no number stays what it is, and is refused.
    ids = {key: int(key) if key.isdecimal() and len(key) < 10 else key for key in raw}
    return {check_id(ids[key], size, path): read_token(raw[key], path) for key in raw}


def read_token(raw: object, path: Path) -> Added:
    """A token as text, or as an object with how it is to be found."""
    if isinstance(raw, str):
        raw = {"content": raw}
    if not isinstance(raw, dict) or not isinstance(raw.get("content"), str):
        wrong(path, f"has a token that is no text: {short_json(raw)}")
    content = check_text(raw["content"], path)
    flags = {name: raw[name] for name in FLAGS if name in raw}
    if not content or not all(isinstance(flag, bool) for flag in flags.values()):
        wrong(path, f"has a token that makes no sense: {short_json(raw)}")
    return Added(content, flags)


def check_ids(raw: Mapping[str, Any], size: int, path: Path) -> dict[str, int]:
    """{token: id}, every id below `size` and given once."""
    ids = raw.values()
    if (  # again all at once
        set(map(type, ids)) == {int}
        and 0 <= min(ids) <= max(ids) < size
        and len(set(ids)) == len(ids)
        and is_text("".join(raw))
    ):
        return dict(raw)
    tokens: dict[int, str] = {}
    for token, number in raw.items():
        check_text(token, path)
        if check_id(number, size, path, token) in tokens:
            wrong(path, f"gives {short_json(tokens[number])} and {short_json(token)} one id")
        tokens[number] = token
    return {token: number for number, token in tokens.items()}


def check_id(number: object, size: int, path: Path, token: str = "") -> int:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < size:
        raise ConfigError(
            f"{path} gives {short_json(token) if token else 'a token'} the id {short_json(number)}",
            expected=f"0 to {size - 1}, the text encoder's vocabulary",
        )
    return number


def check_text(token: str, path: Path) -> str:
    """The token, if it is text: JSON can hold halves of characters, which no library takes."""
    if not is_text(token):
        wrong(path, f"has a token that is no text: {short_json(token)}")
    return token


def is_text(token: str) -> bool:
    try:
        token.encode()
    except UnicodeEncodeError:
        return False
    return True


def wrong(path: Path, problem: str) -> NoReturn:
    raise ConfigError(f"{path} {problem}", fix="download it again")


def build_tokenizer(files: TokenizerFiles, size: int, length: int) -> CLIPTokenizer:
    """transformers' CLIP tokenizer with these tokens: `size` at most, `length` a prompt.

    Raises:
        ConfigError: there are more tokens than the text encoder knows, or an added token's id
            is not the next one.
    """
    # transformers takes seconds to import: not before everything else has been checked.
    from tokenizers import AddedToken
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    special = {
        name: AddedToken(token.content, **token.flags) if token.flags else token.content
        for name, token in files.special.items()
    }
    tokenizer: CLIPTokenizer = CLIPTokenizer(
        vocab=dict(files.vocabulary),
        merges=list(files.merges),
        model_max_length=length,
        **special,
    )
    for number, token in sorted(files.added.items()):
        tokenizer.add_tokens(AddedToken(token.content, **token.flags))
        if tokenizer.convert_tokens_to_ids(token.content) != number:
            raise ConfigError(
                f"{files.folder} gives the added token {short_json(token.content)} the id {number}",
                expected="its id in the vocabulary, or the next one after it",
            )
    if len(tokenizer) > size:  # special tokens that the vocabulary does not have
        raise ConfigError(
            f"{files.folder} has {len(tokenizer)} tokens",
            expected=f"at most {size}, the text encoder's vocabulary",
        )
    return tokenizer
