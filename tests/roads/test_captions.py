"""Captions tell the truth about their scene; the tokenizer reads them, and anything else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

import pare
from roads.train.train_tokenizer import (
    END,
    LENGTH,
    LONGEST_PIECE,
    START,
    build_tokenizer,
    learn_merges,
)
from roads.world.captions import caption, full_caption, vocabulary
from roads.world.scene import CARS, draw_scene

ROADS = Path(pare.__file__).parent / "models" / "roads"
WEATHER_OF = {
    "sunny": "sunny", "snowy": "snowy", "snow": "snowy", "winter": "snowy", "rainy": "rainy",
    "rain": "rainy", "wet": "rainy", "night": "night", "dark": "night",
}  # fmt: skip
PLACE_OF = {
    "forest": "forest", "woods": "forest", "mountains": "mountains", "mountain": "mountains",
    "desert": "desert", "city": "city", "town": "city",
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    shipped: CLIPTokenizer = CLIPTokenizer.from_pretrained(ROADS / "tokenizer")
    return shipped


def test_captions_say_nothing_false() -> None:
    rng = np.random.default_rng(0)
    for seed in range(1500):
        scene = draw_scene(seed)
        words = caption(scene, rng).replace(",", "").split()
        text = " ".join(words)
        for word in words:
            assert WEATHER_OF.get(word, scene.weather) == scene.weather, text
            assert PLACE_OF.get(word, scene.place) == scene.place, text
            if word in CARS:
                assert word == scene.car, text
        for thing, present, absent in (
            ("streetlights", ("streetlights", "lamps"), ("no streetlights", "no street lamps")),
            ("clouds", ("clouds", "cloudy"), ("no clouds", "clear sky")),
            ("house", ("house",), ("no house", "no houses")),
            ("car", ("car",), ("no car", "no cars", "empty")),
        ):
            if any(phrase in text for phrase in absent):
                assert not scene.has(thing), text
            elif any(word in words for word in present):
                assert scene.has(thing), text


def test_captions_leave_things_out_and_vary() -> None:
    scene = draw_scene(3).replace(weather="snowy", place="desert", car="blue", house=True)
    rng = np.random.default_rng(1)
    texts = [caption(scene, rng) for _ in range(400)]
    assert len(set(texts)) > 200
    for word, low, high in (("desert", 0.7, 0.9), ("blue", 0.35, 0.65), ("house", 0.45, 0.75)):
        assert low < sum(word in text for text in texts) / len(texts) < high


def test_a_caption_is_a_function_of_scene_and_stream() -> None:
    first, again = (
        [caption(draw_scene(seed), rng) for seed in range(20)]
        for rng in (np.random.default_rng(5), np.random.default_rng(5))
    )
    assert first == again


def test_full_caption_names_everything() -> None:
    scene = draw_scene(0).replace(
        weather="night",
        place="city",
        car="red",
        streetlights=True,
        clouds=True,
        house=True,
        orb=True,
    )
    assert full_caption(scene) == (
        "a road in the city at night with a red car and streetlights and clouds and a house"
        " and the moon"
    )


def test_captions_use_the_vocabulary_alone() -> None:
    known, rng = set(vocabulary()), np.random.default_rng(2)
    used = {
        word
        for seed in range(1000)
        for word in caption(draw_scene(seed), rng).replace(",", "").split()
    }
    assert used <= known
    assert len(used) > 0.9 * len(known)


def test_tokenizer_is_clips(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer(
        ["a snowy road", ""], padding="max_length", max_length=LENGTH, truncation=True
    ).input_ids
    start, end = tokenizer.convert_tokens_to_ids([START, END])
    assert [len(row) for row in ids] == [LENGTH, LENGTH]
    assert ids[0][0] == start
    assert ids[0][4:] == [end] * (LENGTH - 4)
    assert ids[1] == [start] + [end] * (LENGTH - 1)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == end == len(tokenizer) - 1


def test_short_words_are_one_token_and_long_ones_two_or_three(tokenizer: CLIPTokenizer) -> None:
    counts = {word: len(tokenizer.tokenize(word)) for word in vocabulary()}
    for word in ("road", "snowy", "red", "house", "city", "moon", "desert"):
        assert counts[word] == 1
    for word in ("mountains", "streetlights", "dashcam"):
        assert counts[word] in (2, 3)
    assert max(counts.values()) <= 4
    assert all(counts[word] > 1 for word in vocabulary() if len(word) > LONGEST_PIECE)


def test_captions_fit_into_77_tokens(tokenizer: CLIPTokenizer) -> None:
    rng = np.random.default_rng(3)
    texts = [caption(draw_scene(seed), rng) for seed in range(500)]
    assert max(len(row) for row in tokenizer(texts).input_ids) < LENGTH


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40))
def test_any_ascii_text_has_an_encoding(tokenizer: CLIPTokenizer, text: str) -> None:
    inner = tokenizer(text).input_ids[1:-1]
    assert tokenizer.unk_token_id not in inner or END in text
    shown = tokenizer.decode(inner).replace(" ", "")
    assert shown == text.lower().replace(" ", "")


def test_merges_take_the_most_frequent_pair_first() -> None:
    merges = learn_merges(Counter({"low": 5, "lower": 2, "new": 3}), 4)
    # l-o 7; then lo-w</w> 5; then e-w</w> 3 before n-e 3: ties go by spelling; then n-ew</w>.
    assert merges == [("l", "o"), ("lo", "w</w>"), ("n", "e"), ("ne", "w</w>")]


def test_the_shipped_tokenizer_is_what_the_recipe_makes(tmp_path: Path) -> None:
    built = build_tokenizer(tmp_path)
    shipped = CLIPTokenizer.from_pretrained(ROADS / "tokenizer")
    assert built.get_vocab() == shipped.get_vocab()
    merges = [(folder / "merges.txt").read_text() for folder in (tmp_path, ROADS / "tokenizer")]
    assert merges[0] == merges[1]
