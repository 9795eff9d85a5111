"""Attention maps against the renderer's masks: scores by hand, and what is looked at."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from pare.errors import OutputError
from pare.pipeline import Pipeline
from pare.text.words import read
from roads.benchmark import attention_accuracy
from roads.benchmark.attention_accuracy import (
    AMONG,
    BEGIN,
    END,
    ThingMap,
    cells,
    hidden,
    layers_of,
    main,
    markdown,
    named,
    put_into,
    score,
    scores,
    thing_maps,
)
from roads.world.captions import full_caption
from roads.world.render import render
from roads.world.scene import OBJECTS, draw_scene


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_pretrained("roads", device="cpu")


TRUTH = np.zeros((3, 4, 4), bool)
TRUTH[0, :1, :2], TRUTH[1, 1:3, 1:3], TRUTH[2, 3:, :] = True, True, True


def test_a_perfect_map() -> None:
    found = score(TRUTH.astype(float), TRUTH, ~TRUTH)
    assert (found.auc, found.elsewhere, found.pointing, found.iou) == (1, 0, 1, 1)
    assert found.count == 3
    assert found.pointing_chance == pytest.approx(10 / 48)


def test_a_map_turned_round() -> None:
    found = score(-TRUTH.astype(float), TRUTH, ~TRUTH)
    assert (found.auc, found.elsewhere, found.pointing, found.iou) == (0, 1, 0, 0)


def test_a_flat_map_is_chance() -> None:
    found = score(np.ones((3, 4, 4)), TRUTH, TRUTH)
    assert found.auc == found.elsewhere == 0.5
    assert found.pointing == pytest.approx(found.pointing_chance)


def test_random_maps_are_chance() -> None:
    rng = np.random.default_rng(0)
    truth = np.tile(TRUTH, (700, 1, 1))
    found = score(rng.random(truth.shape), truth, truth)
    assert found.auc == pytest.approx(0.5, abs=0.02)
    assert found.pointing == pytest.approx(found.pointing_chance, abs=0.03)
    assert found.iou == pytest.approx(found.iou_chance, abs=0.03)


def test_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    """Against its definition, pair by pair, ties counting half."""
    rng = np.random.default_rng(1)
    heat = rng.integers(0, 4, TRUTH.shape).astype(float)
    for one, truth in zip(heat, TRUTH, strict=True):
        pairs = [np.sign(inside - out) for inside in one[truth] for out in one[~truth]]
        found = score(one[None], truth[None], truth[None])
        assert found.auc == pytest.approx(np.mean(pairs) / 2 + 0.5)


def test_the_cells_of_a_thing() -> None:
    mask = np.zeros((128, 128), bool)
    mask[0:8, 0:8], mask[8:16, 0:2], mask[16, 0] = True, True, True
    covered = cells(mask, (16, 16))
    assert np.argwhere(covered).tolist() == [[0, 0], [1, 0]]  # whole, and a quarter
    small = np.zeros((128, 128), bool)
    small[50, 70] = True
    assert np.argwhere(cells(small, (16, 16))).tolist() == [[6, 8]]


def test_every_thing_has_its_word_in_the_caption(pipe: Pipeline) -> None:
    for number in range(attention_accuracy.FIRST_SCENE, attention_accuracy.FIRST_SCENE + 60):
        scene = draw_scene(number)
        out = [name for name in hidden(render(scene)) if scene.has(name)]
        words = read(pipe.tokenizer, full_caption(scene, out))
        things = named(scene, out)
        assert {owner for _, owner in things.values()} == {
            name for name in OBJECTS if scene.has(name) and name not in out
        }
        for word, _ in things.values():
            assert words.find(word)


def test_looks_and_tables(pipe: Pipeline, tmp_path: Path) -> None:
    maps_found = list(thing_maps(pipe, range(4), (200, 800)))
    layers = layers_of(pipe)
    assert {one.scene for one in maps_found} == {0, 1, 2, 3}
    for one in maps_found:
        assert one.heat.shape == (2, len(layers), 2, 16, 16)
        assert np.isfinite(one.heat).all()
        assert one.truth.any()
        assert not one.truth.all()
    # A second look is the same look.
    again = next(iter(thing_maps(pipe, range(4), (200, 800))))
    assert np.array_equal(again.heat, maps_found[0].heat)
    page = markdown(scores(maps_found, layers, (200, 800)), 4, (200, 800))
    for name in (*layers, "t = 200", "t = 800", "all layers"):
        assert f"\n| {name} |" in page


def test_a_model_that_knows_gets_full_marks(pipe: Pipeline) -> None:
    """Maps that are the masks, in one layer alone: the tables find the layer."""
    layers = layers_of(pipe)
    knowing = layers.index("up_blocks.3.attentions.1")
    rng = np.random.default_rng(0)

    def told(one: ThingMap) -> ThingMap:
        heat = rng.random(one.heat.shape).astype(np.float32)
        heat[:, knowing] = one.truth
        return dataclasses.replace(one, heat=heat)

    maps_found = [told(one) for one in thing_maps(pipe, range(6), (500,))]
    tables = scores(maps_found, layers, (500,))
    for among in AMONG:
        assert tables[among]["layers"]["up_blocks.3.attentions.1"].auc == 1
        assert tables[among]["layers"]["up_blocks.3.attentions.1"].elsewhere < 0.9
        assert attention_accuracy.best_layer(tables[among]["layers"]) == "up_blocks.3.attentions.1"


def test_tables_go_between_the_page_s_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    once = put_into(page, "new")
    assert once == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    page.write_text(once)
    assert put_into(page, "new") == once
    page.write_text("nothing")
    with pytest.raises(OutputError, match="with <!-- end --> behind it"):
        put_into(page, "new")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--scenes", "3", "--levels", "500"]
    files = ["--json", str(tmp_path / "a.json"), "--sheet", str(tmp_path / "a.png")]
    assert main([*few, *files]) == 0
    assert "| all layers |" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text())["words"]["together"]["count"] > 3
    assert (tmp_path / "a.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--scenes", "1"], "scenes is 1; expected 2 to 10000"),
        (["--levels", "1000"], "there is no noise level at timestep 1000"),
        (["--json", "/no/such/folder/a.json"], "the folder /no/such/folder does not exist"),
        (["--model", "no-such-folder/"], "no-such-folder"),
    ],
)
def test_what_cannot_be(
    given: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(given) == 2
    assert sentence in capsys.readouterr().err
