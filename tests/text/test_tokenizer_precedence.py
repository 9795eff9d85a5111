"""A tokenizer's folder whose files contradict each other: the one wins that wins in transformers.

transformers itself reads every folder that is generated here.  No order of precedence is written
down in this file, but for the folder of Stable Diffusion 2, which is why it matters.
"""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from pare.errors import ConfigError
from pare.loading.single_file import tokenizer_files
from pare.pipeline import Pipeline
from pare.text.text_encoder import tokenize
from pare.text.tokenizer import build_tokenizer, read_tokenizer
from tests.conftest import ROADS
from tests.tiny_model import change_json, write_json, write_tiny_model, write_tokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
SIZE = 600  # of the text encoder: beyond the tiny vocabulary's 524 there is room for added tokens
CONFIG, MAP = "tokenizer_config.json", "special_tokens_map.json"
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")

PROMPTS = (
    "", "!", "the car!", "the car ! !! a!b", "a <cat>", "A <Dog> <dog>on the road <pad> <DOG>",
    f"a {START} b {END} !", "  <cat>  the <cat>", "car " * 90 + "!", "! " * 74 + "<cat> <Dog> !",
)  # fmt: skip


# --- what the files say -------------------------------------------------------------------

Said = Mapping[str, Any]
"""The JSON objects by file name, and "vocabulary": which files hold it."""


def write_folder(folder: Path, said: Said) -> None:
    """Write the tiny tokenizer in one of three forms, and what else is `said`."""
    write_tokenizer(folder)
    for name in (CONFIG, MAP):
        (folder / name).unlink()
    whole: dict[str, Any] = said.get("tokenizer.json", {})
    if said["vocabulary"] != "slow":
        vocabulary = json.loads((folder / "vocab.json").read_text())
        if said["vocabulary"] == "both":  # two vocabularies that disagree about every "the"
            vocabulary |= {"the</w>": vocabulary["car</w>"], "car</w>": vocabulary["the</w>"]}
        merges = (folder / "merges.txt").read_text().splitlines()[1:]
        model = {"type": "BPE", "vocab": vocabulary, "merges": merges}
        write_json(folder / "tokenizer.json", {"version": "1.0", "added_tokens": [], **whole,
                                               "model": model})  # fmt: skip
    if said["vocabulary"] == "fast":
        for name in ("vocab.json", "merges.txt"):
            (folder / name).unlink()
    for name in (CONFIG, MAP, "added_tokens.json"):
        if said.get(name) is not None:
            write_json(folder / name, said[name])


def compare(said: Said) -> str:
    """Read the folder as transformers does and as pare does; "same", or why pare refuses it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_folder(folder, said)
        try:
            theirs = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except TypeError as error:
            return f"transformers stops: {error}"
        try:
            ours = build_tokenizer(read_tokenizer(folder, SIZE), SIZE, 77)
        except ConfigError as error:
            return str(error)
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.get_vocab() == theirs.get_vocab()
    assert {n: str(t) for n, t in ours.added_tokens_decoder.items()} == {
        n: str(t) for n, t in theirs.added_tokens_decoder.items()
    }
    # How they are found: lstrip, normalized, …
    assert repr(ours.added_tokens_decoder) == repr(theirs.added_tokens_decoder)
    for name in ("bos", "eos", "unk", "pad"):
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id")
    wanted = theirs(list(PROMPTS), padding="max_length", max_length=77, truncation=True).input_ids
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # prompts that are too long
        assert tokenize(ours, PROMPTS).tolist() == wanted
    return "same"


def as_object(content: str, *, typed: bool = False, **flags: bool) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False} | flags
    return {"content": content, **flags} | ({"__type": "AddedToken"} if typed else {})


# --- the folder of Stable Diffusion 2 -----------------------------------------------------


def test_stable_diffusion_2_pads_with_its_maps_exclamation_mark(tmp_path: Path) -> None:
    """stabilityai/stable-diffusion-2: "!" in the map, the end token in the config."""
    shutil.copytree(ROADS / "tokenizer", tmp_path, dirs_exist_ok=True)
    change_json(tmp_path / MAP, pad_token="!")
    assert json.loads((tmp_path / CONFIG).read_text())["pad_token"] == END
    tokenizer = build_tokenizer(read_tokenizer(tmp_path, 664), 664, 77)
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    assert (
        (tokenizer.pad_token, tokenizer.pad_token_id)
        == ("!", 0)
        == (
            theirs.pad_token,
            theirs.pad_token_id,
        )
    )
    prompts = ["a snowy road!", "a snowy road ! in the forest"]
    wanted = theirs(prompts, padding="max_length", max_length=77, truncation=True)
    assert tokenize(tokenizer, prompts).tolist() == wanted.input_ids


@pytest.mark.parametrize(("split", "token"), [(False, "!"), (True, "!</w>")])
def test_what_an_exclamation_mark_becomes(tmp_path: Path, split: bool, token: str) -> None:
    """The padding token in diffusers; with `split_special_tokens` OpenCLIP's end of a word."""
    for name, content in tokenizer_files("SD 2", 49408).items():
        (tmp_path / name).write_bytes(content)
    if split:
        change_json(tmp_path / CONFIG, split_special_tokens=True)
    tokenizer = build_tokenizer(read_tokenizer(tmp_path, 49408), 49408, 77)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    ids = tokenize(tokenizer, ["a cat!"])[0].tolist()
    text = [vocabulary[piece] for piece in (START, "a</w>", "cat</w>", token, END)]
    assert ids == text + [vocabulary["!"]] * (77 - len(text))
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    assert ids == theirs("a cat!", padding="max_length", max_length=77).input_ids


def test_the_embeddings_are_those_of_diffusers_pipeline(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    folder = write_tiny_model(tmp_path)
    change_json(folder / "tokenizer" / MAP, pad_token="!")
    change_json(folder / "model_index.json", safety_checker=[None, None],
                feature_extractor=[None, None])  # fmt: skip
    theirs = StableDiffusionPipeline.from_pretrained(folder)
    prompts = ["the snowy road!", "the car"]
    cond, uncond = theirs.encode_prompt(prompts, "cpu", 1, True, negative_prompt=["", "!"])
    ours = Pipeline.from_pretrained(folder, device="cpu").encode_prompts(prompts, ["", "!"])
    assert (ours.cond == cond).all()
    assert (ours.uncond == uncond).all()


# --- all combinations of the files, for the token that SD 2's disagree about --------------

PAD_SHAPES: dict[str, dict[str, Any]] = {
    "silent": {},
    "text": {"pad_token": "!"},
    "object": {"pad_token": as_object("!")},
}
OTHER_PADS: dict[str, dict[str, Any]] = {
    "silent": {},
    "text": {"pad_token": "<pad>"},
    "object": {"pad_token": as_object("<pad>", typed=True, normalized=False)},
}
DECODER = {"524": as_object("<cat>", special=False), "525": as_object("<pad>", special=True)}


@pytest.mark.parametrize("vocabulary", ["slow", "fast", "both"])
@pytest.mark.parametrize("in_map", [None, *PAD_SHAPES])
@pytest.mark.parametrize("in_config", [None, *OTHER_PADS])
def test_the_padding_token(vocabulary: str, in_map: str | None, in_config: str | None) -> None:
    for decoder, added, listed in itertools.product([False, True], repeat=3):
        config = None if in_config is None else dict(OTHER_PADS[in_config])
        if decoder:
            config = (config or {}) | {"added_tokens_decoder": DECODER}
        said = {
            "vocabulary": vocabulary,
            CONFIG: config,
            MAP: None if in_map is None else PAD_SHAPES[in_map],
            "added_tokens.json": {"<pad>": 524} if added else None,
            "tokenizer.json": {
                "added_tokens": [{"id": 524, **as_object("<pad>", special=True)}] if listed else []
            },
        }
        assert compare(said) == "same", said


# --- everything at once -------------------------------------------------------------------

KNOWN, NEW = (START, END, "!", "car</w>"), ("<cat>", "<Dog>", "<pad>", "road")


@st.composite
def token(draw: st.DrawFn, *, typed: bool, known: bool = False) -> Any:
    content = draw(st.sampled_from(KNOWN if known else KNOWN + NEW))
    if draw(st.booleans()):
        return content
    flags = draw(
        st.dictionaries(
            st.sampled_from(["lstrip", "rstrip", "normalized", "single_word", "special"]),
            st.booleans(),
        )
    )
    return {"content": content, **flags} | ({"__type": "AddedToken"} if typed else {})


@st.composite
def side_file(draw: st.DrawFn, *, typed: bool) -> dict[str, Any]:
    """What tokenizer_config.json (whose objects are typed) or special_tokens_map.json says."""
    keys = draw(st.sets(st.sampled_from(NAMED)))
    # Without an unknown token that is in the vocabulary pare refuses a folder.
    said = {key: draw(token(typed=typed, known=key == "unk_token")) for key in sorted(keys)}
    more = {
        "image_token": token(typed=typed) | st.just(3),
        "extra_special_tokens": st.lists(token(typed=typed), max_size=3)
        | st.dictionaries(st.sampled_from(["box_token", "image_token"]), token(typed=True))
        | st.none(),
        # Untyped objects in the older list end transformers 5, as does null for an "…_token".
        "additional_special_tokens": st.lists(token(typed=True), max_size=3) | st.none(),
        "split_special_tokens": st.booleans(),
        "model_max_length": st.sampled_from([77, 1000000000000000019884624838656]),
        "add_bos_token": st.booleans(),
        "add_prefix_space": st.booleans(),
        "do_lower_case": st.booleans(),
        "tokenizer_class": st.just("BertTokenizer"),
    }
    for key in sorted(draw(st.sets(st.sampled_from(sorted(more)), max_size=4))):
        said[key] = draw(more[key])
    order = draw(st.permutations(sorted(said)))  # which decides about the ids of new tokens
    return {key: said[key] for key in order}


@st.composite
def folders(draw: st.DrawFn) -> Said:
    new = draw(st.permutations(NEW))
    flags = st.fixed_dictionaries(
        {key: st.booleans() for key in ("lstrip", "rstrip", "normalized", "special", "single_word")}
    )
    # Of the added tokens each file has a beginning, so that ids mostly are the next ones.
    decoder = {str(524 + k): {"content": c, **draw(flags)}
               for k, c in enumerate(new[: draw(st.integers(0, 3))])}  # fmt: skip
    listed = [{"id": 524 + k, "content": c, **draw(flags)}
              for k, c in enumerate(new[: draw(st.integers(0, 3))])]  # fmt: skip
    added = {c: 524 + k for k, c in enumerate(new[: draw(st.integers(0, 3))])}
    config = draw(st.none() | side_file(typed=True))
    if draw(st.integers(0, 3)) == 0:
        config = (config or {}) | {"added_tokens_decoder": decoder}
    return {
        "vocabulary": draw(st.sampled_from(["slow", "fast", "both"])),
        CONFIG: config,
        MAP: draw(st.none() | side_file(typed=False)),
        "added_tokens.json": draw(st.none() | st.just(added)),
        "tokenizer.json": {"added_tokens": listed},
    }


@settings(max_examples=300)
@given(folders())
def test_whatever_the_files_say(said: Said) -> None:
    result = compare(said)
    assume(not result.startswith("transformers stops"))
    assert result == "same", said
