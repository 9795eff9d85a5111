"""Prompts to embeddings, and what is said when a prompt does not fit."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from pare.config import TextConfig
from pare.errors import ConfigError, PromptError, SettingError
from pare.pipeline import Pipeline
from pare.text.text_encoder import PromptTruncated, encode, paired, tokenize
from tests.tiny_model import TEXT, change_json, write_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder, device="cpu")


def test_embeddings_are_transformers_own_bit_for_bit(pipe: Pipeline, folder: Path) -> None:
    from transformers import CLIPTextModel, CLIPTokenizer

    prompts = ["the snowy road", "", "The CAR"]
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    ids = tokenizer(
        prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    theirs = CLIPTextModel.from_pretrained(folder / "text_encoder")(ids)
    ours = encode(pipe.tokenizer, pipe.text_encoder, prompts)
    assert ours.shape == (3, 77, 12)
    assert torch.equal(ours, theirs.last_hidden_state)
    assert torch.equal(pipe.text_encoder(ids).pooler_output, theirs.pooler_output)
    assert ours.std() > 0.1
    assert not ours.requires_grad


def test_a_prompt_is_padded_as_the_tokenizer_says(folder: Path, tmp_path: Path) -> None:
    """SD 1 pads with the end token, SD 2 with "!" (id 0), which its map alone says."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    assert tokenize(tokenizer, ["the car"])[0, 4:].unique().tolist() == [523]
    copy = write_tiny_model(tmp_path / "sd2")
    change_json(copy / "tokenizer" / "special_tokens_map.json", pad_token="!")
    padded = tokenize(Pipeline.from_pretrained(copy, device="cpu").tokenizer, ["the car"])
    assert padded[0, 3] == 523
    assert padded[0, 4:].unique().tolist() == [0]


# --- prompts that do not fit ---------------------------------------------------------------


def test_what_is_cut_is_shown_as_it_was_written(pipe: Pipeline) -> None:
    with pytest.warns(PromptTruncated) as caught:
        encode(pipe.tokenizer, pipe.text_encoder, ["car " * 74 + "the Snowy Café"])
    message = "the prompt has 81 tokens and the text encoder reads 75: 'Snowy Café' is cut off"
    assert [str(warning.message) for warning in caught] == [message]


def test_exactly_as_much_as_fits_is_no_matter(pipe: Pipeline) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode(pipe.tokenizer, pipe.text_encoder, ["car " * 75])
    with pytest.warns(PromptTruncated, match="'car' is cut off"):
        encode(pipe.tokenizer, pipe.text_encoder, ["car " * 76])


def test_a_long_prompt_is_spoken_of_once(pipe: Pipeline, capfd: pytest.CaptureFixture[str]) -> None:
    long, longer = "car " * 80, "road " * 500
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipe.encode_prompts([long, long, longer], negative=long)
    assert len(caught) == 2
    assert all(len(str(warning.message)) < 200 for warning in caught)
    assert capfd.readouterr().err == ""  # transformers has its own warning


def test_a_prompts_embedding_does_not_depend_on_its_neighbours(pipe: Pipeline) -> None:
    alone = pipe.encode_prompts(["the car"])
    among = pipe.encode_prompts(["a road", "the car", "snow"], negative=["x", "", "y"])
    assert torch.equal(alone.cond[0], among.cond[1])
    assert torch.equal(alone.uncond[0], among.uncond[1])
    assert len(among) == 3
    assert not torch.equal(among.uncond[0], among.uncond[1])


def test_one_prompt_may_be_given_without_a_list(pipe: Pipeline) -> None:
    assert torch.equal(pipe.encode_prompts("the car").cond, pipe.encode_prompts(["the car"]).cond)


@pytest.mark.parametrize("prompt", [3, None, b"car", "\ud800", "car" * 10_000])
def test_what_is_no_prompt_is_refused(pipe: Pipeline, prompt: Any) -> None:
    with pytest.raises(PromptError, match="the prompt"):
        pipe.encode_prompts([prompt])


def test_no_prompts_are_refused(pipe: Pipeline) -> None:
    with pytest.raises(SettingError, match="no prompts"):
        pipe.encode_prompts([])


def test_negative_prompts_are_paired() -> None:
    assert paired(["a", "b"], "n") == ["n", "n"]
    assert paired(["a", "b"], ("n", "m")) == ["n", "m"]
    with pytest.raises(SettingError, match="3 negative prompts are given for 2 prompts"):
        paired(["a", "b"], ["n", "m", "o"])


# --- the config ----------------------------------------------------------------------------


def test_the_config_passes_over_what_is_not_the_models() -> None:
    config = TextConfig.read(TEXT | {"num_beams": 1, "torch_dtype": "float16"}, "it")
    assert (config.hidden_size, config.num_hidden_layers, config.hidden_act) == (
        12,
        2,
        "quick_gelu",
    )


def test_what_transformers_writes_is_known() -> None:
    from transformers.models.clip.configuration_clip import CLIPTextConfig

    ours = TextConfig.read(CLIPTextConfig(**TEXT).to_dict(), "it")
    assert ours == TextConfig.read(TEXT, "it")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"hiden_act": "gelu"}, "hidden_act"),
        ({"model_type": "clip"}, "clip_text_model"),
        ({"quantization_config": {"bits": 4}}, "plain numbers"),
        ({"pruned_heads": {"3": [1]}}, "all its heads"),
    ],
    ids=str,
)
def test_nothing_in_the_config_is_silently_ignored(more: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TextConfig.read(TEXT | more, "it", strict=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden_size": "12"},
        {"hidden_size": 13},
        {"num_hidden_layers": 0},
        {"num_attention_heads": True},
        {"max_position_embeddings": 2},
        {"hidden_act": "relu"},
        {"layer_norm_eps": None},
        {"vocab_size": -1},
        {"eos_token_id": 524},
    ],
    ids=repr,
)
def test_a_wrong_config_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^it "):
        TextConfig.read(TEXT | wrong, "it")
