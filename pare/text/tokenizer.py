"""Reads and checks a tokenizer's folder, and builds transformers' CLIP tokenizer from it.

    tokenizer.json              all of it, as transformers 5 writes it; or, as before it,
    vocab.json, merges.txt      the tokens and their ids; which pairs of tokens become one
    tokenizer_config.json, special_tokens_map.json, added_tokens.json
                                the start, end, padding and unknown tokens; tokens added later

transformers does not validate these files, which anyone may have written: errors come from
within its parsers.  So they are read and checked here first.

**Which file wins** where two disagree is transformers' order
(`PreTrainedTokenizerBase._from_pretrained`, 5.23), since the embeddings depend on it:

1. `tokenizer.json` has the vocabulary and the merges if it is there, else `vocab.json` and
   `merges.txt` do.
2. `tokenizer_config.json` with the key `added_tokens_decoder` (written since transformers 4.34)
   says all the rest.  `special_tokens_map.json`, `added_tokens.json` and the added tokens of
   `tokenizer.json` are not read.
3. Without that key, `special_tokens_map.json` goes before `tokenizer_config.json`, key by key.
   Stable Diffusion 2 needs this: its map pads with "!" (id 0), its config with the end token.
   Added tokens come from `added_tokens.json`, and over them from `tokenizer.json`.
4. What no file says is CLIP's own (`SPECIAL`).

Two exceptions to 3, for tokens beyond CLIP's own: a key such as `image_token` that both files
have as text is `tokenizer_config.json`'s, and so is the list `additional_special_tokens`.

transformers 4 (checked: 4.57) has the order 2 to 4, too, so that SD 2 pads with "!" there as well.
It differs in 1: its `CLIPTokenizer`, the class that SD's folders name, reads `vocab.json` and
`merges.txt` alone, and `tokenizer.json` only for added tokens.  It also joins the two files' lists
of `additional_special_tokens`, and finds added tokens in a text with code of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Mapping, Sequence
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

NAMED = (*SPECIAL, "sep_token", "cls_token", "mask_token")
"""The last three CLIP does without: where a file names one, it is added."""

FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")
"""How the tokenizers library is to find an added token in a text."""

Flags = dict[str, bool]

CONFIG, MAP = "tokenizer_config.json", "special_tokens_map.json"
DECODER = "added_tokens_decoder"
EXTRA, ADDITIONAL = "extra_special_tokens", "additional_special_tokens"
"""A list of special tokens: transformers 5's name, and the one before."""

ELSEWHERE = ("vocab", "merges", "init_inputs", "fast_tokenizer_files")
"""Keys by which a config could bring another vocabulary than the files that have it."""


@dataclass(frozen=True)
class Added:
    """A token that is found in a text before the text is split."""

    content: str
    flags: Flags | None
    """None if a file has the token as plain text."""
    late: bool = False
    """An object that transformers turns into a token only after it has read added_tokens.json
    (all of tokenizer_config.json): there it does not see that the token is a special one."""


@dataclass(frozen=True)
class TokenizerFiles:
    """What the files of a tokenizer's folder say, checked."""

    folder: Path
    vocabulary: Mapping[str, int]
    merges: tuple[tuple[str, str], ...]
    special: Mapping[str, Added]
    """By the names in `NAMED`; those in `SPECIAL` are always there."""
    added: Mapping[int, Added]
    """By id."""
    other: Mapping[str, Added]
    """Special tokens by any other name, as `image_token`."""
    extra: tuple[Added, ...]
    """Special tokens without a name."""
    split_special: bool = False
    """Whether a special token that is written in a prompt is split like other text."""
    length: float | None = None
    """Tokens a prompt (`model_max_length`), if a file says so."""


def read_tokenizer(folder: Path, size: int) -> TokenizerFiles:
    """Read the folder, for a text encoder that knows `size` tokens.

    Raises:
        ModelError: a file is missing.
        ConfigError: a file that is not what its name says, or ids that are not below `size`.
        OSError: a file cannot be opened.
    """
    vocabulary = read_vocabulary(folder, size)
    said = read_said(folder, vocabulary.sides)
    if said.decoder is not None:
        added = read_decoder(said.decoder, size, folder / CONFIG)
    else:
        added = {**read_added(folder, size, said.known), **vocabulary.added}
    by_content = {token.content: token for token in added.values()}
    special = {key: Added(token, None) for key, token in SPECIAL.items()}
    special |= {key: by_content.get(t.content, t) for key, t in said.special.items()}
    unknown = special["unk_token"].content
    if unknown not in vocabulary.ids:
        raise ConfigError(
            f"{folder} has no token {short_json(unknown)}, which stands for unknown ones",
            fix="download it again",
        )
    return TokenizerFiles(
        folder,
        vocabulary.ids,
        vocabulary.merges,
        special,
        added,
        {**said.other, **said.specific},
        said.extra,
        said.split_special,
        said.length,
    )


# --- which of two files says it -----------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """What tokenizer_config.json and special_tokens_map.json say, where they agree or not."""

    special: Mapping[str, Added]
    """By the names in `SPECIAL` and `OTHER_SPECIAL`."""
    other: Mapping[str, Added]
    """By any other name."""
    specific: Mapping[str, Added]
    """The same; these go before `other`."""
    extra: tuple[Added, ...]
    known: frozenset[str]
    """The special tokens that transformers knows of when it reads added_tokens.json."""
    decoder: Mapping[str, Any] | None
    """tokenizer_config.json's `added_tokens_decoder`: then no other file has a say."""
    split_special: bool
    length: float | None


def read_said(folder: Path, sides: Mapping[str, object]) -> Said:
    """Merge the two files, as `PreTrainedTokenizerBase._from_pretrained` does."""
    config = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    mapped = {}
    if DECODER not in config and (folder / MAP).exists():
        mapped = read_json(folder / MAP)
    said = read_tokens(config, folder / CONFIG)
    if said.get(ADDITIONAL) and not said.get(EXTRA):
        said[EXTRA] = said.pop(ADDITIONAL)
    specific = {
        key: said.pop(key)
        for key, token in list(said.items())
        if isinstance(token, Added) and token.flags is None and key not in NAMED
    }
    specific |= take_named(said)
    for key, value in read_tokens(mapped, folder / MAP).items():
        there = said.get(EXTRA) or []
        more = key == EXTRA and isinstance(value, list)
        said[key] = there + [token for token in value if token not in there] if more else value
    specific |= take_named(said)
    counted = [*(said.get(key) for key in NAMED), *(said.get(EXTRA) or [])]
    for key in SPECIAL:
        if key in said and said[key] is None:
            path = folder / (MAP if key in mapped else CONFIG)
            wrong(path, f"sets {key} to null; a prompt is encoded with it")
    values = {**sides, **config, **mapped}
    check_values(values, folder)
    return Said(
        {key: said[key] for key in NAMED if said.get(key)},
        {
            key: token
            for key, token in said.items()
            if isinstance(token, Added) and key not in NAMED
        },
        specific,
        tuple((said[EXTRA] if EXTRA in said else said.get(ADDITIONAL)) or ()),
        frozenset(token.content for token in counted if token is not None and not token.late),
        read_object(config, folder / CONFIG) if DECODER in config else None,
        values.get("split_special_tokens") or False,
        values.get("model_max_length", values.get("max_len")),
    )


def read_tokens(raw: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The keys of a file that hold a token, a list of tokens, or tokens by name."""
    found: dict[str, Any] = {}
    for key, value in raw.items():
        if key in (EXTRA, ADDITIONAL):
            found[key] = read_list(value, path, key)
        elif key in NAMED:
            found[key] = None if value is None else read_special(value, path)
        elif key.endswith("_token"):  # as image_token; add_bos_token, a boolean, is none
            typed = isinstance(value, dict) and (path.name == MAP or "__type" in value)
            good = isinstance(value, str) or typed
            found[key] = read_special(value, path) if good else None
    return found


def read_list(raw: object, path: Path, key: str) -> dict[str, Added] | list[Added] | None:
    if isinstance(raw, dict) and key == EXTRA:
        return {name: read_special(token, path, marked=False) for name, token in raw.items()}
    if not isinstance(raw, list | None):
        wrong(path, f"has {key} that are no list of tokens")
    return raw and [read_special(token, path, marked=key == EXTRA) for token in raw]


def read_special(raw: object, path: Path, *, marked: bool = True) -> Added:
    """A token of either file.

    Args:
        marked: of an object in the map, whether it is special whatever itself says.
    """
    token = read_token(raw, path)
    if token.flags is None:
        return token
    if path.name == MAP and marked:
        return Added(token.content, token.flags | {"special": True})
    return Added(token.content, token.flags, late=True)


def take_named(said: dict[str, Any]) -> dict[str, Added]:
    """Take the extra tokens out if they have names."""
    return said.pop(EXTRA) if isinstance(said.get(EXTRA), dict) else {}


def read_added(folder: Path, size: int, special: Container[str]) -> dict[int, Added]:
    """added_tokens.json: {"<cat-toy>": 49408}."""
    path = folder / "added_tokens.json"
    if not path.exists():
        return {}
    added = {}
    for content, number in check_ids(read_json(path), size, path).items():
        known = content in special
        flags = {"lstrip": False, "rstrip": False, "normalized": not known, "special": known}
        added[number] = Added(content, flags)
    return added


def check_values(values: Mapping[str, Any], folder: Path) -> None:
    """Refuse what would encode a prompt in a way that pare does not follow."""
    for key in ("padding_side", "truncation_side"):
        if values.get(key, "right") != "right":
            raise ConfigError(
                f"{folder} sets {key!r} to {short_json(values[key])}",
                expected='"right": Stable Diffusion pads and cuts a prompt at its end',
            )
    if values.get("split_special_tokens") not in (None, False, True):
        wrong(folder, f"sets split_special_tokens to {short_json(values['split_special_tokens'])}")
    length = values.get("model_max_length", values.get("max_len"))
    if length is not None and (isinstance(length, bool) or not isinstance(length, int | float)):
        wrong(folder, f"sets model_max_length to {short_json(length)}, which is no number")
    for key in ELSEWHERE:
        if values.get(key):
            raise ConfigError(
                f"{folder} has {key!r} in {CONFIG} or {MAP}",
                expected="the vocabulary in tokenizer.json, or in vocab.json and merges.txt",
                fix=f"remove {key!r}",
            )


# --- the files, one by one ----------------------------------------------------------------


@dataclass(frozen=True)
class Vocabulary:
    """The tokens and what becomes one, from wherever they are."""

    ids: Mapping[str, int]
    merges: tuple[tuple[str, str], ...]
    added: Mapping[int, Added]
    """Of tokenizer.json."""
    sides: Mapping[str, object]
    """On which side tokenizer.json pads and cuts, which counts if no other file says it."""


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    if (folder / "tokenizer.json").exists():
        return read_whole(folder / "tokenizer.json", size)
    ids = check_ids(read_part(folder, "vocab.json"), size, folder / "vocab.json")
    return Vocabulary(ids, check_merges(read_merges(folder), ids, folder / "merges.txt"), {}, {})


def read_part(folder: Path, name: str) -> dict[str, Any]:
    if not (folder / name).is_file():
        raise ModelError(
            f"{folder} has no {name}",
            expected="vocab.json and merges.txt, or tokenizer.json",
            fix="download the whole model",
        )
    return read_json(folder / name)


def read_whole(path: Path, size: int) -> Vocabulary:
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
    added = {check_id(entry.get("id"), size, path): read_token(entry, path) for entry in entries}
    sides = {
        f"{key}_side": raw[key].get("direction", "Right")
        for key in ("padding", "truncation")
        if isinstance(raw.get(key), dict)
    }
    lower = {key: side.lower() if isinstance(side, str) else side for key, side in sides.items()}
    return Vocabulary(vocabulary, merges, added, lower)


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


def read_object(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    raw = config[DECODER]
    if not isinstance(raw, dict):
        wrong(path, "has an added_tokens_decoder that is no object")
    return raw


def read_decoder(raw: Mapping[str, Any], size: int, path: Path) -> dict[int, Added]:
    """tokenizer_config.json's `added_tokens_decoder`: {"49408": {"content": …}}."""
    # An id is written as text there; what is no number stays what it is, and is refused.
    ids = {key: int(key) if key.isdecimal() and len(key) < 10 else key for key in raw}
    found = {check_id(ids[key], size, path): read_token(raw[key], path) for key in raw}
    for number, token in found.items():
        if token.flags is None:  # transformers stops here, too
            wrong(path, f"has the added token {number} as text, where an object is needed")
    return found


def read_token(raw: object, path: Path) -> Added:
    """A token as text, or as an object with how it is to be found."""
    plain = isinstance(raw, str)
    if isinstance(raw, str):
        raw = {"content": raw}
    if not isinstance(raw, dict) or not isinstance(raw.get("content"), str):
        wrong(path, f"has a token that is no text: {short_json(raw)}")
    content = check_text(raw["content"], path)
    flags = {name: raw[name] for name in FLAGS if name in raw}
    if not content or not all(isinstance(flag, bool) for flag in flags.values()):
        wrong(path, f"has a token that makes no sense: {short_json(raw)}")
    return Added(content, None if plain else flags)


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

    def token_of(token: Added) -> str | AddedToken:
        return token.content if token.flags is None else AddedToken(token.content, **token.flags)

    if files.length is not None and files.length < length:
        raise ConfigError(
            f"{files.folder} cuts a prompt after {files.length} tokens (model_max_length)",
            expected=f"{length} or more: the text encoder's max_position_embeddings",
            fix=f"set it to {length} in {CONFIG}",
        )
    tokenizer: CLIPTokenizer = CLIPTokenizer(
        vocab=dict(files.vocabulary),
        merges=list(files.merges),
        model_max_length=length,
        added_tokens_decoder={number: token_of(t) for number, t in files.added.items()},
        model_specific_special_tokens={name: token_of(t) for name, t in files.other.items()},
        extra_special_tokens=[token_of(token) for token in files.extra],
        split_special_tokens=files.split_special,
        **{name: token_of(token) for name, token in files.special.items()},
    )
    for number, token in sorted(files.added.items()):
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
