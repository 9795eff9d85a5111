"""Words as people write them, and the tables of which word feeds which."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import pare
from pare.errors import PareError, PromptError, SettingError
from pare.text.words import Word, Words, read
from pare.verify.published.published_p2p import refinement_mapper, replacement_mapper
from techniques.prompt_to_prompt import token_mapper
from techniques.prompt_to_prompt.attention_edit import cross_schedule, steps_of
from techniques.prompt_to_prompt.token_mapper import (
    PairingWarning,
    TokenMap,
    aligned,
    refined,
    replaced,
    reweighted,
    token_map,
    untouched,
    with_word,
)
from tests.techniques.mutants import mutant

PROMPT = "A sunny road, at night: streetlights (and a ROAD)!"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import CLIPTokenizer

    folder = Path(pare.__file__).parent / "models" / "roads" / "tokenizer"
    return CLIPTokenizer.from_pretrained(folder)


def words(*counts: tuple[str, int]) -> Words:
    """Words of so many tokens each; a token's id is made of its word and its place in it."""
    listed, ids, place = [], [1], 1
    for text, count in counts:
        listed.append(Word(text, tuple(range(place, place + count))))
        ids += [1000 + 10 * sum(text.encode()) + k for k in range(count)]
        place += count
    ids.append(2)
    names = ["<start>", *(f"{t}.{k}" for t, n in counts for k in range(n)), "<end>"]
    names += ["<padding>"] * (77 - len(names))
    return Words(" ".join(t for t, _ in counts), tuple(listed), tuple(ids), tuple(names))


# --- words ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "spelled"),
    [
        ("sunny", "sunny"),
        ("SUNNY,", "sunny"),
        ("'night'", "night"),
        ("streetlights", "streetlights"),
        ("road", "roadROAD"),
        ("road#1", "road"),
        ("Road # 2", "ROAD"),
        ("a ROAD", "aROAD"),
        ("sunny road", "sunnyroad"),
        ("road, at", "road,at"),
        (",", ","),
    ],
)
def test_words_are_found_as_people_write_them(tokenizer: Any, wanted: str, spelled: str) -> None:
    prompt = read(tokenizer, PROMPT)
    assert "".join(prompt.names[place] for place in prompt.find(wanted)) == spelled


def test_several_tokens_a_word_and_accents(tokenizer: Any) -> None:
    prompt = read(tokenizer, "cafe\u0301 by the streetlights 😀")
    assert prompt.find("café") == (1, 2, 3, 4)
    assert len(prompt.find("streetlights")) == 3
    assert prompt.find("😀") == tuple(range(len(prompt.ids) - 5, len(prompt.ids) - 1))


@pytest.mark.filterwarnings("ignore::pare.text.text_encoder.PromptTruncated")
@given(text=st.text(max_size=60))
@example("\x1f")
def test_every_token_belongs_to_one_word(tokenizer: Any, text: str) -> None:
    try:
        prompt = read(tokenizer, text)
    except PromptError:
        return
    places = [place for word in prompt.words for place in word.tokens]
    if prompt.words:
        assert places == list(range(1, len(prompt.ids) - 1))
    assert len(prompt.names) == 77


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (
            "snowy",
            "'snowy' is not in the prompt .*expected of its words: A, sunny, road, at, night",
        ),
        ("road#3", "asks for occurrence 3 of 'road'; expected 1 to 2"),
        ("road#0", "asks for occurrence 0"),
        ("", "'' is not in the prompt"),
    ],
)
def test_an_unknown_word_is_a_sentence(tokenizer: Any, wanted: str, sentence: str) -> None:
    with pytest.raises(PromptError, match=sentence):
        read(tokenizer, PROMPT).find(wanted)


def test_a_word_that_is_cut_off_is_said(tokenizer: Any) -> None:
    with pytest.warns(pare.text.text_encoder.PromptTruncated):
        prompt = read(tokenizer, "road " * 80 + "house")
    with pytest.raises(PromptError, match="stands behind the 77 tokens"):
        prompt.find("house")


# --- replace: the course's tables ----------------------------------------------------------

THIRD, FOURTH = 1 / 3, 1 / 4
TABLES: dict[str, tuple[Any, Any, list[list[float]]]] = {
    "A haunted house -> A magical house": (
        [("A", 1), ("haunted", 2), ("house", 1)],
        [("A", 1), ("magical", 2), ("house", 1)],
        [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]],
    ),
    "A lion eating -> A hippopotamus eating": (
        [("A", 1), ("lion", 1), ("eating", 1)],
        [("A", 1), ("hippopotamus", 3), ("eating", 1)],
        [
            [1, 0, 0, 0, 0, 0],
            [0, 1, 0, 0, 0, 0],
            [0, 0, THIRD, THIRD, THIRD, 0],
            [0, 0, 0, 0, 0, 1],
            [0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0],
        ],
    ),
    "A hippopotamus eating -> A lion eating": (
        [("A", 1), ("hippopotamus", 3), ("eating", 1)],
        [("A", 1), ("lion", 1), ("eating", 1)],
        [
            [1, 0, 0, 0, 0, 0],
            [0, 1, 0, 0, 0, 0],
            [0, 0, THIRD, 0, 0, 0],
            [0, 0, THIRD, 0, 0, 0],
            [0, 0, THIRD, 0, 0, 0],
            [0, 0, 0, 1, 0, 0],
        ],
    ),
    "An unimaginably large house -> An inconceivably large house": (
        [("An", 1), ("unimaginably", 3), ("large", 1), ("house", 1)],
        [("An", 1), ("inconceivably", 4), ("large", 1), ("house", 1)],
        [
            [1, 0, 0, 0, 0, 0, 0, 0],
            [0, 1, 0, 0, 0, 0, 0, 0],
            [0, 0, FOURTH, FOURTH, FOURTH, FOURTH, 0, 0],
            [0, 0, FOURTH, FOURTH, FOURTH, FOURTH, 0, 0],
            [0, 0, FOURTH, FOURTH, FOURTH, FOURTH, 0, 0],
            [0, 0, 0, 0, 0, 0, 1, 0],
            [0, 0, 0, 0, 0, 0, 0, 1],
            [0, 0, 0, 0, 0, 0, 0, 0],
        ],
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_replace_is_the_course_s_table(name: str) -> None:
    before, after, table = TABLES[name]
    made = replaced(words(*before), words(*after))
    expected = torch.tensor(table, dtype=torch.float32)
    assert torch.equal(made.matrix[: len(table), : len(table[0])], expected)
    assert made.own.sum() == 0
    # Behind the words everything shifts along, to the end.
    counts = [(n, m) for (_, n), (_, m) in zip(before, after, strict=True)]
    assert torch.equal(made.matrix, replacement_mapper(counts))


COUNTS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), max_size=8)


def pair(counts: list[tuple[int, int]]) -> tuple[Words, Words]:
    before = words(*((f"w{k}", n) for k, (n, _) in enumerate(counts)))
    return before, words(*((f"v{k}", m) for k, (_, m) in enumerate(counts)))


@given(COUNTS)
def test_replace_keeps_everything_behind_every_swap_aligned(counts: list[tuple[int, int]]) -> None:
    before, after = pair(counts)
    table = replaced(before, after)
    assert torch.equal(table.matrix, replacement_mapper(counts))
    for old, new in zip(before.words, after.words, strict=True):
        block = table.matrix[list(old.tokens)][:, list(new.tokens)]
        assert torch.isclose(block.sum(), table.matrix[list(old.tokens)].sum())
        assert torch.isclose(block.sum(), table.matrix[:, list(new.tokens)].sum())
    assert table.matrix[len(before.ids) - 1, len(after.ids) - 1] == 1  # the end on the end


@given(COUNTS)
def test_replace_sums(counts: list[tuple[int, int]]) -> None:
    before, after = pair(counts)
    plain, whole = (replaced(before, after, normalised=n).matrix for n in (False, True))
    assert torch.allclose(whole.sum(1), torch.ones(77))
    assert plain.sum(1).max() <= 1 + 1e-6
    assert plain.sum(0).max() <= 1 + 1e-6
    for (n, m), old in zip(counts, before.words, strict=True):
        assert torch.allclose(plain[list(old.tokens)].sum(1), torch.tensor(min(1.0, m / n)))


@given(st.lists(st.integers(1, 4), max_size=8))
def test_equal_counts_are_the_identity(counts: list[int]) -> None:
    before, after = pair([(n, n) for n in counts])
    for normalised in (False, True):
        assert torch.equal(replaced(before, after, normalised=normalised).matrix, torch.eye(77))


def test_replace_wants_as_many_words() -> None:
    with pytest.raises(SettingError, match="swaps word for word, and 'a b' has 2 words"):
        replaced(words(("a", 1), ("b", 1)), words(("a", 1)))


MUTATIONS = {
    "everything behind the last swap is misaligned": (
        "shift = len(target.ids) - len(source.ids)",
        "shift = 0",
    ),
    "blocks carry the wrong share": ("else max(n, m)", "else min(n, m)"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_tables_notice(name: str, tmp_path: Path) -> None:
    changed = mutant(token_mapper, *MUTATIONS[name], tmp_path)
    before, after, _ = TABLES["A lion eating -> A hippopotamus eating"]
    made = changed.replaced(words(*before), words(*after))
    assert not torch.equal(made.matrix, replacement_mapper([(1, 1), (1, 3), (1, 1)]))


# --- refine --------------------------------------------------------------------------------

IDS = st.lists(st.integers(3, 6), max_size=12)


@given(IDS, IDS)
def test_refine_is_the_published_alignment(before: list[int], after: list[int]) -> None:
    source, target = [1, *before, 2], [1, *after, 2]
    partners = aligned(source, target)
    places, alphas = refinement_mapper(source, target)
    assert (
        partners
        == [None if a == 0 else int(p) for p, a in zip(places, alphas, strict=True)][: len(target)]
    )
    kept = [(i, j) for j, i in enumerate(partners) if i is not None]
    assert kept == sorted(kept)  # in order, none twice
    assert len({i for i, _ in kept}) == len(kept)
    assert all(source[i] == target[j] for i, j in kept)


@given(IDS)
def test_a_prompt_refines_itself_by_the_identity(ids: list[int]) -> None:
    assert aligned(ids, ids) == list(range(len(ids)))


def test_new_tokens_keep_their_own_attention() -> None:
    before = words(("a", 1), ("castle", 2))
    after = words(("a", 1), ("drawing", 3), ("of", 1), ("a", 1), ("castle", 2))
    table = refined(before, after)
    # "a" occurs twice: the published order pairs the earlier one.
    assert table.own[: len(after.ids)].tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0, 0]
    assert table.matrix[1, 1] == table.matrix[2, 7] == table.matrix[3, 8] == 1
    assert torch.equal(table.matrix.sum(0), 1 - table.own)


def test_padding_is_fed_by_padding_alone() -> None:
    long, short = words(("a", 1), ("large", 4), ("house", 1)), words(("a", 1), ("house", 1))
    table = refined(long, short)
    assert table.own[: len(short.ids)].sum() == 0
    assert table.own[len(short.ids) : len(long.ids)].min() == 1
    assert torch.equal(table.matrix[len(long.ids) :, len(long.ids) :].diagonal(), torch.ones(69))


# --- maps of words, weights, chains --------------------------------------------------------


def test_a_map_of_words_overrides_what_is_under_it(tokenizer: Any) -> None:
    before = read(tokenizer, "a sunny road in the forest")
    after = read(tokenizer, "a road in the forest, snowy")
    table = token_map(before, after, words={"sunny": "snowy"})
    (sunny,), (snowy,) = before.find("sunny"), after.find("snowy")
    assert table.own[snowy] == 0
    assert table.matrix[:, snowy].nonzero().flatten().tolist() == [sunny]
    alone = with_word(untouched(before, after), "sunny", "snowy")
    assert alone.matrix.sum() == 1
    assert alone.own.sum() == 76


def test_words_that_occur_several_times_are_paired_in_order() -> None:
    before = words(("cat", 1), ("and", 1), ("cat", 1))
    after = words(("tigers", 2), ("and", 1), ("tigers", 2))
    table = with_word(untouched(before, after), "cat", "tigers")
    assert table.matrix.nonzero().tolist() == [[1, 1], [1, 2], [3, 4], [3, 5]]
    with pytest.raises(PromptError, match="'cat' occurs 2 times"):
        with_word(table, "cat", "tigers#1")


def test_weights_scale_columns_with_their_signs(tokenizer: Any) -> None:
    prompt = read(tokenizer, "streetlights by a road, a road")
    table = reweighted(replaced(prompt, prompt), {"streetlights": -2, "road#2": 3.5})
    maps = torch.rand(2, 5, 77, generator=torch.Generator().manual_seed(0))
    made = table.apply(maps, torch.zeros_like(maps))
    factors = torch.ones(77)
    factors[list(prompt.find("streetlights"))] = -2
    factors[list(prompt.find("road"))[1]] = 3.5
    assert torch.allclose(made, maps * factors)
    with pytest.raises(SettingError, match="weight of 'road' is nan"):
        reweighted(table, {"road": float("nan")})
    with pytest.raises(PromptError, match="'house' is not in the prompt"):
        reweighted(table, {"house": 1})


def test_the_table_is_told_in_words(tokenizer: Any) -> None:
    before, after, _ = TABLES["A lion eating -> A hippopotamus eating"]
    told = str(reweighted(replaced(words(*before), words(*after)), {"eating": 2}))
    assert told.splitlines() == [
        "'A lion eating' -> 'A hippopotamus eating'",
        "   0  <start>         <-  0 <start>",
        "   1  A.0             <-  1 A.0",
        "   2  hippopotamus.0  <-  1/3 of 2 lion.0",
        "   3  hippopotamus.1  <-  1/3 of 2 lion.0",
        "   4  hippopotamus.2  <-  1/3 of 2 lion.0",
        "   5  eating.0        <-  3 eating.0, times 2",
        "   6  <end>           <-  4 <end>",
        "   7  … padding       <-  5 <padding>, and so on",
    ]
    told = str(refined(read(tokenizer, "a wet road"), read(tokenizer, "a road, sunny")))
    assert told.splitlines()[4:] == [
        "   3  ,          <-  its own",
        "   4  sunny      <-  its own",
        "   5  <end>      <-  4 <end>",
        "   6  … padding  <-  6 <padding>, and so on",
        "not used, of the source: 2 wet",
    ]


# --- schedules -----------------------------------------------------------------------------


def counted(prompt: str) -> Words:
    return words(*((word, 1) for word in prompt.split()))


@pytest.mark.parametrize(
    ("source", "target", "pairs"),
    [
        ("a road in the forest", "a road with a car", "with <- in; a <- the; car <- forest"),
        ("a red car in town", "in town a red car", "in <- a; town <- red"),
        ("one two", "three four", "three <- one; four <- two"),
    ],
)
def test_words_that_are_paired_by_their_places_alone_are_said(
    source: str, target: str, pairs: str
) -> None:
    before, after = counted(source), counted(target)
    with pytest.warns(PairingWarning, match=pairs):
        blind = token_map(before, after)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asked = token_map(before, after, mode="replace")
    assert torch.equal(blind.matrix, asked.matrix)


@pytest.mark.parametrize(
    ("source", "target", "chosen"),
    [
        ("a sunny road in the forest", "a snowy road in the city", {}),
        ("a lion", "a hippo", {}),
        ("lion", "hippo", {}),
        ("a road", "a road", {}),
        ("one two", "three four", {"one": "three", "two": "four"}),
    ],
)
def test_words_that_belong_together_are_paired_in_silence(
    source: str, target: str, chosen: dict[str, str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        token_map(counted(source), counted(target), words=chosen)


def test_schedules_are_shares_of_the_steps() -> None:
    assert steps_of(0.8, 50, "x") == range(40)
    assert steps_of((0.2, 1.0), 5, "x") == range(1, 5)
    assert len(steps_of(0.0, 9, "x")) == 0
    target = words(("a", 1), ("snowy", 2), ("road", 1))
    acts = cross_schedule(target, 10, 0.5, {"snowy": (0.2, 0.9)})
    assert acts[:, 1].tolist() == [1] * 5 + [0] * 5
    assert acts[:, 2].tolist() == acts[:, 3].tolist() == [0] * 2 + [1] * 7 + [0]
    for bad in (1.5, (0.5, 0.2), float("nan")):
        with pytest.raises(PareError, match=r"x`? "):
            steps_of(bad, 10, "x")


def test_apply_mixes_source_and_own() -> None:
    before, after = words(("a", 1), ("b", 1)), words(("a", 1), ("c", 1))
    table: TokenMap = refined(before, after)
    source, own = torch.rand(2, 3, 77, generator=torch.Generator().manual_seed(0))
    made = table.apply(source, own)
    assert torch.equal(made[:, 1], source[:, 1])
    assert torch.equal(made[:, 2], own[:, 2])
