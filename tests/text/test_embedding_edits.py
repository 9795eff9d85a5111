"""Learned words, replaced and mixed embeddings: against diffusers, and what they leave alone."""

from __future__ import annotations

import copy
import threading
import warnings
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pare.errors import EmbeddingError, ModelError, PareError, PromptError, WeightsError
from pare.loading.embedding_file import load_learned_words
from pare.pipeline import Pipeline
from pare.text.embedding_edits import (
    Layout,
    Mix,
    MixPrompts,
    Replace,
    TextEdits,
    TokenIdWarning,
    changed,
    nearest_tokens,
    with_rows,
)
from pare.text.text_encoder import PromptTruncated, UnknownWords, tokenize
from pare.text.textual_inversion import LearnedWord
from pare.text.words import read
from tests.random_models import normal
from tests.tiny_model import write_tiny_model

WIDTH = 12
ONE, TWO = normal(1, WIDTH, seed=5), normal(2, WIDTH, seed=6)
TOY = LearnedWord("<cat-toy>", TWO)
PROMPT = "the snowy road, the car"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder, device="cpu")


def cond(pipe: Pipeline, prompt: str, *words: Replace | Mix, **more: Any) -> Tensor:
    return pipe.with_text_edits(TextEdits(words=words, **more)).encode_prompts(prompt).cond


def table(pipe: Pipeline) -> Tensor:
    weights: Tensor = pipe.text_encoder.get_input_embeddings().weight
    return weights


def seeds_own(pipe: Pipeline, embeddings: Tensor) -> Tensor:
    """The outputs for given input embeddings (1, 77, C) without positions, by a loop that is
    written on the encoder's layers, as the seed's is."""
    encoder: Any = pipe.text_encoder.text_model
    x = embeddings + encoder.embeddings.position_embedding.weight
    mask = torch.full((77, 77), -torch.inf).triu(1)
    for layer in encoder.encoder.layers:
        attention, normed = layer.self_attn, layer.layer_norm1(x)
        query, key, value = (
            attention.split_heads(project(normed))
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + mask
        attended = (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(x.shape)
        x = x + attention.out_proj(attended)
        x = x + layer.mlp(layer.layer_norm2(x))
    return torch.as_tensor(encoder.final_layer_norm(x))


# --- learned words, against diffusers ------------------------------------------------------


FILES: dict[str, tuple[str, Any, Tensor]] = {
    "diffusers, one vector": ("learned_embeds.bin", {"<cat-toy>": ONE[0]}, ONE),
    "diffusers, two": ("learned_embeds.safetensors", {"<cat-toy>": TWO}, TWO),
    "web UI": (
        "x.pt",
        {"string_to_token": {"*": 265}, "string_to_param": {"*": TWO}, "name": "<cat-toy>"},
        TWO,
    ),
    "float16": ("learned_embeds.bin", {"<cat-toy>": TWO.half()}, TWO.half().float()),
}


def write(path: Path, content: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("name", FILES)
def test_embeddings_are_diffusers_own_bit_for_bit(
    pipe: Pipeline, folder: Path, tmp_path: Path, name: str
) -> None:
    from diffusers.loaders import TextualInversionLoaderMixin
    from transformers import CLIPTextModel, CLIPTokenizer

    file, content, vectors = FILES[name]
    path = write(tmp_path / file, content)
    (ours,) = load_learned_words(path)
    assert ours.word == "<cat-toy>"
    assert torch.equal(ours.vectors.float(), vectors)

    class Theirs(TextualInversionLoaderMixin):  # type: ignore[misc]
        hf_device_map = None
        components: ClassVar[dict[str, Any]] = {}

    theirs = Theirs()
    theirs.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    theirs.text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    theirs.load_textual_inversion(str(path.parent), weight_name=path.name)
    for prompt in ("the <cat-toy> on the road", "<cat-toy>", "a car, <cat-toy>, <cat-toy>!"):
        converted = theirs.maybe_convert_prompt(prompt, theirs.tokenizer)
        ids = theirs.tokenizer(
            converted, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            expected = theirs.text_encoder(ids).last_hidden_state
        assert torch.equal(cond(pipe, prompt, learned=[ours]), expected), prompt


def test_every_kind_of_file_is_read(tmp_path: Path) -> None:
    kept = torch.nn.ParameterDict({"*": torch.nn.Parameter(TWO)})
    files: dict[str, tuple[Any, str]] = {
        "my toy.pt": ({"string_to_token": {"*": 265}, "string_to_param": {"*": TWO}}, "my-toy"),
        "old.pt": ({"string_to_token": {"*": 265}, "string_to_param": kept}, "old"),
        "birb.safetensors": ({"emb_params": TWO}, "birb"),
        "a.bin": ({"<birb>": TWO}, "<birb>"),
    }
    for name, (content, word) in files.items():
        path = write(tmp_path / name, content)
        (learned,) = load_learned_words(path)
        assert (learned.word, len(learned.vectors)) == (word, 2), name
        assert torch.equal(learned.vectors, TWO)
        (called,) = load_learned_words(path, "other")
        assert called.word == "other"


def test_a_file_of_several_words_gives_them_all_or_the_one_that_is_asked_for(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "two.bin", {"<a>": ONE, "<b>": TWO})
    assert [learned.word for learned in load_learned_words(path)] == ["<a>", "<b>"]
    (one,) = load_learned_words(path, "<b>")
    assert torch.equal(one.vectors, TWO)
    with pytest.raises(EmbeddingError, match="'<c>' is none of them; expected of them: <a>, <b>"):
        load_learned_words(path, "<c>")


class Harmful:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit",)


BAD: dict[str, tuple[str, Any, str]] = {
    "code": ("x.bin", {"<a>": ONE, "b": Harmful()}, "pickle with code in it"),
    "code beside": ("x.pt", {"string_to_param": {"*": ONE}, "n": Harmful()}, "code in it"),
    "NaN": ("x.bin", {"<a>": ONE * torch.nan}, "NaN or infinities"),
    "infinite": ("x.bin", {"<a>": ONE / 0}, "NaN or infinities"),
    "nothing": ("x.bin", {}, "0 tensors"),
    "no numbers": ("x.bin", {"<a>": ONE[:, :0]}, "'<a>', 1 x 0"),
    "no vectors": ("x.bin", {"<a>": ONE[:0]}, "'<a>', 0 x 12"),
    "whole numbers": ("x.bin", {"<a>": ONE.long()}, "int64"),
    "one number": ("x.bin", {"<a>": torch.tensor(1.0)}, "a single number"),
    "three axes": ("x.bin", {"<a>": ONE[None]}, "1 x 1 x 12"),
    "far too many": ("x.bin", {"<a>": torch.zeros(76, WIDTH)}, "with 76 vectors"),
    "a model": ("x.safetensors", {"unet.conv_in.weight": ONE}, "tensors by other names"),
    "SDXL": ("x.safetensors", {"clip_l": ONE, "clip_g": TWO}, "Stable Diffusion XL"),
    "two params": ("x.pt", {"string_to_param": {"*": ONE, "+": ONE}}, "no table of one"),
    "no param": ("x.pt", {"string_to_param": {"*": 3}}, "without a tensor"),
    "a list": ("x.pt", [ONE], "expected named tensors"),
    "an empty name": ("x.bin", {"": ONE}, "a learned word is called ''"),
    "spaces": ("x.bin", {"a b": ONE}, "without spaces"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_embedding_is_refused_in_a_sentence(tmp_path: Path, case: str) -> None:
    name, content, words = BAD[case]
    path = write(tmp_path / name, content)
    with pytest.raises(PareError, match=words) as caught:
        load_learned_words(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "error"),
    [(b"", WeightsError), (b"<html>no</html>", ModelError), (b"PK\x03\x04 no", WeightsError)],
)
def test_files_that_are_no_files_of_tensors(
    tmp_path: Path, content: bytes, error: type[PareError]
) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(error):
        load_learned_words(path)
    with pytest.raises(OSError, match="No such file"):
        load_learned_words(tmp_path / "none.pt")


def test_a_word_for_another_model_is_refused(pipe: Pipeline) -> None:
    wide = TextEdits(learned=[LearnedWord("<a>", torch.zeros(1, 768))])
    with pytest.raises(
        EmbeddingError, match=r"768 numbers, as Stable Diffusion 1 has; expected 12"
    ):
        pipe.with_text_edits(wide)
    with pytest.raises(PromptError, match="two learned words are called"):
        pipe.with_text_edits(TextEdits(learned=[TOY, LearnedWord("<CAT-toy>", ONE)]))


# --- words in a prompt ---------------------------------------------------------------------


def ids(pipe: Pipeline, prompt: str, *words: Replace | Mix, **more: Any) -> list[int]:
    edits = TextEdits(words=words, **more)
    return Layout(pipe.tokenizer, pipe.text_encoder, edits).read(prompt).ids[0].tolist()


def test_without_edits_a_prompt_is_what_it_was(pipe: Pipeline) -> None:
    for prompt in (PROMPT, "", "Café — the  ROAD's", "🚗 car"):
        assert ids(pipe, prompt) == tokenize(pipe.tokenizer, [prompt])[0].tolist()
        layout = Layout(pipe.tokenizer, pipe.text_encoder, TextEdits())
        assert layout.read(prompt).words == read(pipe.tokenizer, prompt)
    unused = TextEdits(learned=[TOY])
    plain = pipe.encode_prompts(PROMPT, "the car")
    edited = pipe.with_text_edits(unused).encode_prompts(PROMPT, "the car")
    assert torch.equal(plain.cond, edited.cond)
    assert torch.equal(plain.uncond, edited.uncond)


def test_a_learned_word_is_found_in_any_case_and_not_inside_of_others(pipe: Pipeline) -> None:
    known = len(table(pipe))
    birb = LearnedWord("birb", ONE)
    assert ids(pipe, "a Birb, birbs", learned=[birb]).count(known) == 1
    assert ids(pipe, "a<cat-toy>b", learned=[TOY])[2:4] == [known, known + 1]
    assert ids(pipe, "a cat toy", learned=[TOY]) == ids(pipe, "a cat toy")


def test_the_longer_of_two_learned_words_is_found(pipe: Pipeline) -> None:
    known = len(table(pipe))
    words = [LearnedWord("<a>", ONE), LearnedWord("<a><b>", TWO)]
    assert ids(pipe, "<a><b> <a>", learned=words)[1:4] == [known + 1, known + 2, known]


def test_words_are_found_where_learned_ones_stand_between_them(pipe: Pipeline) -> None:
    layout = Layout(pipe.tokenizer, pipe.text_encoder, TextEdits(learned=[TOY]))
    words = layout.read("the <cat-toy> road").words
    assert [(word.text, word.tokens) for word in words.words] == [
        ("the", (1,)),
        ("<cat-toy>", (2, 3)),
        ("road", (4,)),
    ]
    assert words.names[:6] == ("<start>", "the", "<cat-toy>", "<cat-toy>", "road", "<end>")


def test_the_negative_prompt_knows_learned_words_alone(pipe: Pipeline) -> None:
    edits = TextEdits(learned=[TOY], words=[Replace("car", "road")])
    both = pipe.with_text_edits(edits).encode_prompts("the car", "the car <cat-toy>")
    alone = pipe.with_text_edits(TextEdits(learned=[TOY])).encode_prompts("the car <cat-toy>")
    assert torch.equal(both.uncond, alone.cond)
    assert torch.equal(both.cond, pipe.encode_prompts("the road").cond)


def test_a_prompt_that_grows_too_long_is_cut_and_said_once(pipe: Pipeline) -> None:
    long = LearnedWord("<long>", normal(75, WIDTH))
    with pytest.warns(PromptTruncated) as caught:
        found = ids(pipe, "the <long> car", learned=[long])
    assert [str(w.message) for w in caught] == [
        "the prompt has 77 tokens and the text encoder reads 75: '<long> car' is cut off"
    ]
    assert len(found) == 77
    assert found[-1] == pipe.tokenizer.eos_token_id
    with pytest.warns(PromptTruncated, match="80 tokens"):
        ids(pipe, "car " * 80, Replace("car#1", "the"))


# --- replacing and mixing ------------------------------------------------------------------


def test_a_replaced_word_is_the_seeds_own_way(pipe: Pipeline) -> None:
    tokens = tokenize(pipe.tokenizer, [PROMPT])
    place = read(pipe.tokenizer, PROMPT).find("car")[0]
    road = tokenize(pipe.tokenizer, ["road"])[0, 1]
    embeddings = table(pipe)[tokens]
    embeddings[0, place] = table(pipe)[road]
    expected = seeds_own(pipe, embeddings)
    ours = cond(pipe, PROMPT, Replace("car", "road"))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert torch.equal(ours, cond(pipe, "the snowy road, the road"))


def test_a_mixture_is_the_seeds_own_way(pipe: Pipeline) -> None:
    tokens = tokenize(pipe.tokenizer, [PROMPT])
    place = read(pipe.tokenizer, PROMPT).find("car")[0]
    car, the = (tokenize(pipe.tokenizer, [word])[0, 1] for word in ("car", "the"))
    embeddings = table(pipe)[tokens]
    embeddings[0, place] = 0.7 * table(pipe)[car] + 0.3 * table(pipe)[the]
    ours = cond(pipe, PROMPT, Mix("car", "the", 0.3))
    torch.testing.assert_close(ours, seeds_own(pipe, embeddings), rtol=0, atol=1e-5)


def test_the_ends_of_a_mixture_are_the_words_themselves(pipe: Pipeline) -> None:
    plain = pipe.encode_prompts(PROMPT).cond
    assert torch.equal(cond(pipe, PROMPT, Mix("car", "road", 0.0)), plain)
    replaced = cond(pipe, PROMPT, Replace("car", "road"))
    assert torch.equal(cond(pipe, PROMPT, Mix("car", "road", 1.0)), replaced)
    half = cond(pipe, PROMPT, Mix("car", "road"))
    assert not torch.equal(half, plain)
    assert not torch.equal(half, replaced)


def test_a_vector_replaces_a_word(pipe: Pipeline) -> None:
    learned = LearnedWord("<v>", ONE)
    by_word = cond(pipe, "the <v>", learned=[learned])
    by_edit = cond(pipe, "the car", Replace("car", "<v>"), learned=[learned])
    assert torch.equal(by_word, by_edit)
    assert torch.equal(by_word, cond(pipe, "the car", learned=[LearnedWord("car", ONE)]))
    mixed = cond(pipe, "the <v>", Mix("<V>", "car", 1.0), learned=[learned])
    assert torch.equal(mixed, pipe.encode_prompts("the car").cond)


def test_words_of_more_tokens_push_on_what_is_behind(pipe: Pipeline) -> None:
    edited = Layout(
        pipe.tokenizer, pipe.text_encoder, TextEdits(words=[Replace("the#1", "snowy")])
    ).read("the road, the car")
    assert edited.ids.tolist()[0] == tokenize(pipe.tokenizer, ["snowy road, the car"])[0].tolist()
    assert edited.words.find("road") == (3,)
    assert edited.words.find("the#1") == (1, 2)  # what stands for it now
    several = ids(pipe, "the road, the car", Replace("car", "snowy"), Replace("the", "road"))
    assert several == ids(pipe, "road road, road snowy")


def test_only_what_is_at_and_behind_the_word_changes(pipe: Pipeline) -> None:
    place = read(pipe.tokenizer, PROMPT).find("road")[0]
    moved = changed(pipe.encode_prompts(PROMPT).cond, cond(pipe, PROMPT, Mix("road", "car", 0.1)))
    assert len(moved) == 77
    assert moved[:place] == [0.0] * place
    assert min(moved[place:]) > 0


def test_a_token_can_be_named_by_its_id(pipe: Pipeline) -> None:
    (road,) = pipe.tokenizer("road", add_special_tokens=False).input_ids
    by_id = cond(pipe, PROMPT, Replace("car", f"#{road}"))
    assert torch.equal(by_id, cond(pipe, PROMPT, Replace("car", "road")))
    assert torch.equal(cond(pipe, PROMPT, Mix("car", f" #{road} ", 1.0)), by_id)
    with pytest.warns(TokenIdWarning, match=f"'{road}' is taken as text; .*write '#{road}'"):
        cond(pipe, PROMPT, Replace("car", str(road)))


def test_prompts_are_mixed_behind_the_encoder(pipe: Pipeline) -> None:
    mouse, leopard = (pipe.encode_prompts(text).cond for text in ("the car", "a road"))
    mixed = cond(pipe, "the car", prompts=[MixPrompts("a road", 0.65)])
    assert torch.equal(mixed, (1 - 0.65) * mouse + 0.65 * leopard)
    several = cond(pipe, "the car", prompts=[MixPrompts("a road", 0.5), MixPrompts("", 0.25)])
    nothing = pipe.encode_prompts("").cond
    torch.testing.assert_close(several, 0.25 * mouse + 0.5 * leopard + 0.25 * nothing)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (Replace("dog", "car"), "'dog' is not in the prompt .*; expected of its words: the, snowy"),
        (Replace("the#3", "car"), "asks for occurrence 3 of 'the'; expected 1 to 2"),
        (Replace("<x>", "car"), "is not in the prompt"),
        (Replace("", "car"), "an edit's word is empty"),
        (Replace("car", " "), "an edit's word is empty"),
        (Mix("car", "snowy"), "'car' is 1 token and 'snowy' 2 tokens; expected words of as many"),
        (Mix("car", "road", torch.nan), "`share` is nan"),
        (Mix("car", "road", 11), "`share` is 11"),
        (Replace("car", "\ud800"), "not text"),
        (Replace("car", "#999999"), "there is no token #999999; expected an id from #0 to #"),
    ],
)
def test_edits_that_cannot_be_are_a_sentence(
    pipe: Pipeline, edit: Replace | Mix, words: str
) -> None:
    with pytest.raises(PareError, match=words):
        cond(pipe, PROMPT, edit)


def test_one_place_is_not_edited_twice(pipe: Pipeline) -> None:
    with pytest.raises(PromptError, match="are one place"):
        cond(pipe, PROMPT, Replace("the", "car"), Mix("the#2", "road"))


def test_an_edit_is_done_in_the_prompts_that_have_the_word(pipe: Pipeline) -> None:
    edited = pipe.with_text_edits(TextEdits(words=[Replace("car", "road")]))
    both = edited.encode_prompts(["the snowy", "the car"])
    assert torch.equal(both.cond, pipe.encode_prompts(["the snowy", "the road"]).cond)


def test_a_learned_word_is_not_unknown(pipe: Pipeline) -> None:
    taught = copy.copy(pipe)
    taught.words = frozenset(["the", "car"])
    edits = TextEdits(learned=[TOY], words=[Replace("car", "dragon")])
    with pytest.warns(UnknownWords) as caught:
        taught.with_text_edits(edits).encode_prompts("the <cat-toy> car")
    assert "'dragon';" in str(caught[0].message)


# --- the model is left alone ---------------------------------------------------------------


def test_the_model_and_the_pipeline_are_not_changed(pipe: Pipeline) -> None:
    before = {name: id(module) for name, module in pipe.text_encoder.named_modules()}
    weights = {name: tensor.clone() for name, tensor in pipe.text_encoder.state_dict().items()}
    plain = pipe.encode_prompts(PROMPT).cond
    cond(pipe, "the <cat-toy>", learned=[TOY])
    assert {name: id(module) for name, module in pipe.text_encoder.named_modules()} == before
    after = pipe.text_encoder.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())
    assert torch.equal(pipe.encode_prompts(PROMPT).cond, plain)
    assert len(pipe.tokenizer) == len(tokenizer_words(pipe))


def tokenizer_words(pipe: Pipeline) -> dict[str, int]:
    words: dict[str, int] = pipe.tokenizer.get_vocab()
    return words


def test_nothing_of_the_model_is_copied(pipe: Pipeline) -> None:
    twin = with_rows(pipe.text_encoder, TWO)
    ours = {tensor.data_ptr() for tensor in pipe.text_encoder.parameters()}
    assert {tensor.data_ptr() for tensor in twin.parameters()} == ours
    assert with_rows(pipe.text_encoder, TWO[:0]) is pipe.text_encoder


def test_two_threads_with_two_meanings_of_a_word_do_not_meet(pipe: Pipeline) -> None:
    vectors = [normal(2, WIDTH, seed=seed) for seed in (1, 2)]
    edits = [TextEdits(learned=[LearnedWord("<w>", rows)]) for rows in vectors]
    alone = [pipe.with_text_edits(one).encode_prompts("the <w> car").cond for one in edits]
    wrong: list[int] = []

    def run(which: int) -> None:
        for _ in range(30):
            found = pipe.with_text_edits(edits[which]).encode_prompts("the <w> car").cond
            if not torch.equal(found, alone[which]):
                wrong.append(which)

    threads = [threading.Thread(target=run, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not torch.equal(alone[0], alone[1])


def test_an_image_under_edits_is_the_other_prompts(pipe: Pipeline) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        edited = pipe.with_text_edits(TextEdits(words=[Replace("car", "road")]))
        ours = edited.generate("the car", [3], steps=2, height=16, width=16)
    same = pipe.generate("the road", [3], steps=2, height=16, width=16)
    assert torch.equal(ours.tensor, same.tensor)


def test_the_nearest_token_of_a_tokens_vector_is_itself(pipe: Pipeline) -> None:
    number = tokenize(pipe.tokenizer, ["car"])[0, 1].item()
    (near,) = nearest_tokens(pipe.tokenizer, pipe.text_encoder, table(pipe)[[number]])
    assert (near[0].token, near[0].id, near[0].cosine) == ("car", number, 1.0)
    assert [n.cosine for n in near] == sorted((n.cosine for n in near), reverse=True)
