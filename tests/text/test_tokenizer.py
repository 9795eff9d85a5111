"""A tokenizer's folder: what transformers makes of it, or one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AddedToken, CLIPTokenizer

from pare.errors import ConfigError, ModelError
from pare.loading.single_file import tokenizer_files
from pare.text.tokenizer import build_tokenizer, read_tokenizer
from tests.conftest import ROADS
from tests.tiny_model import change_json, write_tokenizer

PROMPTS = (
    "a snowy road, by night!", "", "  two\n\tspaces ", "it's THE car's", "雪 🚗 e\u0301 \u202eabc",
    "<|startoftext|> a <|endoftext|> <cat-toy> <Cat-Toy>", "x" * 300, "\0\x1b[2J", "3.14 !!!?",
)  # fmt: skip

Folder = Callable[[Path], Path]


def roads(folder: Path) -> Path:
    return ROADS / "tokenizer"


def roads_with_an_added_token(folder: Path) -> Path:
    """As textual inversion leaves it."""
    tokenizer = CLIPTokenizer.from_pretrained(ROADS / "tokenizer")
    tokenizer.add_tokens(["<cat-toy>", AddedToken("<dog>", lstrip=True)])
    tokenizer.save_pretrained(folder)
    return folder


def as_transformers_5_saves_it(folder: Path) -> Path:
    CLIPTokenizer.from_pretrained(ROADS / "tokenizer").save_pretrained(folder)
    assert not (folder / "vocab.json").exists()
    return folder


def clips_own(kind: str) -> Folder:
    def write(folder: Path) -> Path:
        for name, content in tokenizer_files(kind, 49408).items():
            (folder / name).write_bytes(content)
        return folder

    return write


FOLDERS: dict[str, Folder] = {
    "roads": roads,
    "added": roads_with_an_added_token,
    "transformers-5": as_transformers_5_saves_it,
    "sd-1": clips_own("SD 1"),
    "sd-2": clips_own("SD 2"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_it_is_what_transformers_reads(tmp_path: Path, kind: str) -> None:
    folder = FOLDERS[kind](tmp_path)
    theirs = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    ours = build_tokenizer(read_tokenizer(folder, len(theirs)), len(theirs), 77)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.model_max_length == theirs.model_max_length == 77
    for prompt in PROMPTS:
        options = {"add_special_tokens": False, "return_offsets_mapping": True}
        assert ours(prompt, **options).data == theirs(prompt, **options).data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The tiny model's: 524 tokens."""
    write_tokenizer(tmp_path)
    return tmp_path


CONFIG, MAP = "tokenizer_config.json", "special_tokens_map.json"


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("vocab.json", {"the</w>": 524}, "the id 524"),
        ("vocab.json", {"the</w>": -1}, "the id -1"),
        ("vocab.json", {"the</w>": 1.0}, "the id 1.0"),
        ("vocab.json", {"the</w>": True}, "the id true"),
        ("vocab.json", {"the</w>": 0}, "one id"),
        ("vocab.json", {"\ud800": 523}, "no text"),
        ("vocab.json", {"<|endoftext|>": ...}, "stands for unknown ones"),
        (MAP, {"unk_token": "<new>"}, "stands for unknown ones"),
        (CONFIG, {"bos_token": 7}, "no text: 7"),
        (CONFIG, {"bos_token": ["a"]}, "no text"),
        (CONFIG, {"bos_token": {"content": 3}}, "no text"),
        (CONFIG, {"bos_token": {"content": "a", "lstrip": "yes"}}, "makes no sense"),
        (CONFIG, {"bos_token": "\udfff"}, "no text"),
        (MAP, {"pad_token": "<new>"}, "has 525 tokens"),
        (MAP, {"pad_token": None}, "sets pad_token to null"),
        (MAP, {"pad_token": ""}, "makes no sense"),
        (MAP, {"padding_side": "left"}, "at its end"),
        (CONFIG, {"padding_side": "left"}, "at its end"),
        (CONFIG, {"truncation_side": "left"}, "at its end"),
        (CONFIG, {"split_special_tokens": 1.5}, "split_special_tokens to 1.5"),
        (CONFIG, {"model_max_length": 76}, "after 76 tokens"),
        (CONFIG, {"model_max_length": "77"}, "no number"),
        (CONFIG, {"vocab": {"a": 0}}, "'vocab' in tokenizer_config.json"),
        (MAP, {"merges": ["a b"]}, "'merges' in"),
        (CONFIG, {"extra_special_tokens": 3}, "no list"),
        (CONFIG, {"additional_special_tokens": {"a": "b"}}, "no list"),
        (MAP, {"additional_special_tokens": [3]}, "no text: 3"),
        (CONFIG, {"added_tokens_decoder": None}, "no object"),
        (CONFIG, {"added_tokens_decoder": {"523": "<|endoftext|>"}}, "as text"),
        (CONFIG, {"added_tokens_decoder": [1]}, "no object"),
        (CONFIG, {"added_tokens_decoder": {"-1": "a"}}, 'the id "-1"'),
        (CONFIG, {"added_tokens_decoder": {"9" * 5000: "a"}}, "the id"),
        (CONFIG, {"added_tokens_decoder": {"3": None}}, "no text: null"),
        (CONFIG, {"added_tokens_decoder": {"3": {"content": "<new>"}}}, "the id 3"),
    ],
)  # fmt: skip
def test_what_makes_no_tokenizer(
    folder: Path, name: str, changes: dict[str, object], words: str
) -> None:
    change_json(folder / name, **changes)
    with pytest.raises(ConfigError, match=words):
        build_tokenizer(read_tokenizer(folder, 524), 524, 77)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "no model with a vocab"),
        ({"model": 3}, "no model with a vocab"),
        ({"model": {"vocab": []}}, "no model with a vocab"),
        ({"model": {"vocab": {"a": 0}}}, "no list of merges"),
        ({"model": {"vocab": {"a": 0}, "merges": [["a"]]}}, "no pair as merge 1"),
        ({"model": {"vocab": {"a": 0}, "merges": [3]}}, "no pair as merge 1"),
        ({"model": {"vocab": {"a": 0}, "merges": ["a a"]}}, "merge 1 of"),
        ({"model": {"vocab": {"a": 0}, "merges": []}, "added_tokens": 1}, "no list of tokens"),
        ({"model": {"vocab": {"a": 0}, "merges": []}, "added_tokens": [{"id": []}]}, "the id"),
        ({"model": {"vocab": {"a": 0}, "merges": []}}, "stands for unknown ones"),
    ],
)  # fmt: skip
def test_what_makes_no_tokenizer_json(folder: Path, content: object, words: str) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=words):
        read_tokenizer(folder, 524)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "merges.txt").unlink()
    with pytest.raises(ModelError, match=r"has no merges\.txt"):
        read_tokenizer(folder, 524)
