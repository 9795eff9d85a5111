"""`pare erase`: concepts and gates as one types them, its maps, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

import techniques.erasure
from pare.cli.commands import erase as command
from pare.cli.main import main
from pare.recipes.recipe import read_recipe
from techniques.erasure import Concept
from techniques.erasure.erasure_maps import MOST_COLUMNS, drawn_steps, term_sheet
from tests.conftest import ROOT
from tests.tiny_model import write_tiny_model

PROMPT = "a road at night"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(autouse=True)
def work(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder, with a tiny model and an image of odd size in it."""
    (tmp_path / "model").symlink_to(tiny)
    Image.linear_gradient("L").resize((44, 30)).convert("RGB").save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)


def erase(*given: str, steps: int = 2) -> int:
    return main(["erase", "--model", "model", "--steps", str(steps), *given])


def names() -> list[str]:
    return sorted(p.name for p in Path().iterdir() if p.name not in ("model", "photo.png"))


def pixels(path: str) -> Any:
    return np.asarray(Image.open(path)).astype(int)


def test_the_presets_are_those_of_the_technique() -> None:
    assert set(command.PRESETS) == set(techniques.erasure.PRESETS)


# --- images -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        [PROMPT, "--gates", "ledits++", "--count", "2"],
        [PROMPT, "--count", "3", "--batch", "2", "--scheduler", "euler-ancestral"],
        ["photo.png", PROMPT, "--strength", "0.7", "--seed", "5", "--quantile", "0.5"],
        ["photo.png", PROMPT, "--size", "64x48", "--negative", "snow"],
    ],
)
def test_any_image_is_made_again_to_the_pixel(
    capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    assert erase(*more, "--concept", "lamps=3", "--concept", "clouds", "--warm-up", "0") == 0
    last = names()[-1]
    capsys.readouterr()
    assert main(["rerun", last, "--check"]) == 0
    assert "is the same to the pixel" in capsys.readouterr().out
    recipe = read_recipe(last)
    assert list(recipe.inputs) == (["image"] if more[0] == "photo.png" else [])
    assert Image.open(last).size == ((44, 30) if recipe.inputs else (64, 64))
    assert main(["rerun", last, "--show"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert "--concept lamps=3 --concept clouds " in line
    assert "--warm-up 0" in line


def test_what_each_concept_did_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    given = [PROMPT, "--concept", "lamps=4", "--concept", "clouds=0", "--concept", "snow=-1"]
    assert erase(*given, "--gates", "ungated", "--json") == 0
    printed = capsys.readouterr()
    rows = json.loads(printed.out)["terms"][0]
    assert [(row["concept"], row["weight"], row["steps"]) for row in rows] == [
        ("lamps", 4.0, 2),
        ("clouds", 0.0, 0),
        ("snow", -1.0, 2),
    ]
    assert rows[0]["fraction"] == 1.0
    assert "guided away from 'lamps' in 2 steps, at 100% of all latent pixels" in printed.err
    assert "'clouds' had no effect at any step" in printed.err
    assert "guided towards 'snow' in 2 steps" in printed.err


@pytest.mark.parametrize(
    ("given", "weights"),
    [
        (["--gates", "ungated"], [10.0, 3.0]),
        (["--gates", "sega"], [5.0, 3.0]),
        (["--gates", "safe-max", "--guidance", "6"], [6.0, 3.0]),
        (["--weight", "0"], [0.0, 3.0]),
    ],
)
def test_a_concept_without_a_weight_has_the_usual_one(
    monkeypatch: pytest.MonkeyPatch, given: list[str], weights: list[float]
) -> None:
    seen: list[Concept] = []
    check = techniques.erasure.check_concepts

    def checked(found: Sequence[Concept]) -> object:
        seen.extend(found)
        return check(found)

    monkeypatch.setattr(techniques.erasure, "check_concepts", checked)
    assert erase(PROMPT, "--concept", "lamps", "--concept", "snow=3", *given, steps=1) == 0
    assert [concept.weight for concept in seen[:2]] == weights


@pytest.mark.parametrize(
    "more",
    [
        ["--warm-up", "1"],
        ["--quantile", "0.9"],
        ["--attention", "0.75"],
        ["--quantile", "0.5", "--attention", "0.5"],
        ["--threshold", "0"],
        ["--sensitivity", "0.5"],
        ["--momentum", "0.5"],
        ["--momentum", "0.5", "--momentum-memory", "0.5"],
        ["--cap", "0.1"],
    ],
    ids=" ".join,
)
def test_every_gate_changes_the_image(more: list[str]) -> None:
    base = [PROMPT, "--concept", "lamps=6", "--gates", "ungated", "--out"]
    assert erase(*base, "a.png", steps=3) == 0
    assert erase(*base, "b.png", *more, steps=3) == 0
    assert not np.array_equal(pixels("a.png"), pixels("b.png"))


def test_a_concept_that_is_the_prompt_and_prompts_of_all_kinds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    long = "a road, " * 30
    for k, (prompt, concept) in enumerate([(PROMPT, PROMPT), ("Straße 雪", "雪 🚗"), ("", long)]):
        assert erase("--concept", concept, "--out", f"{k}.png", "--", prompt, steps=1) == 0
    assert "tokens and the text encoder reads 75" in capsys.readouterr().err


# --- maps ---------------------------------------------------------------------------------


def test_maps_are_a_page_and_numbers_for_each_image(capsys: pytest.CaptureFixture[str]) -> None:
    Path("maps").mkdir()
    given = ["--concept", "lamps=3", "--concept", "snow", "--gates", "ungated", "--count", "2"]
    assert erase(PROMPT, *given, "--maps", "maps", steps=3) == 0
    made = sorted(path.name for path in Path("maps").iterdir())
    assert made == [f"erase-maps-{k}.{end}" for k in (0, 1) for end in ("png", "safetensors")]
    with safe_open("maps/erase-maps-1.safetensors", "pt") as file:
        pushes, about = file.get_tensor("term_norms"), json.loads(file.metadata()["pare"])
    assert pushes.shape[:2] == (3, 2)
    assert pushes.min() > 0
    assert (about["concepts"], about["weights"]) == (["lamps", "snow"], [3.0, 10.0])
    assert about["first_step"] == 0
    # No recipe names them, so that none can make `pare rerun` write.
    assert "maps" not in read_recipe("erase-0.png").arguments
    before = names()
    assert main(["rerun", "erase-0.png", "--check"]) == 0
    assert names() == before


def test_maps_of_an_image_begin_where_its_run_does() -> None:
    given = ["photo.png", PROMPT, "--concept", "snow", "--gates", "ungated", "--strength", "0.5"]
    assert erase(*given, "--maps", "m.png", steps=4) == 0
    with safe_open("m.safetensors", "pt") as file:
        assert file.get_tensor("term_norms").shape[0] == 2
        assert json.loads(file.metadata()["pare"])["first_step"] == 2


def test_the_page_has_a_row_a_concept_and_is_bright_where_it_was_pushed() -> None:
    pushes = torch.zeros(2, 2, 4, 4)
    pushes[1, 0, 0, 0] = 2.0
    concepts = [Concept("lamps", 3.0), Concept("雪" * 40, -1.0)]
    page = np.asarray(term_sheet(Image.new("RGB", (64, 64), "grey"), pushes, concepts)).astype(int)
    assert page.shape == (16 + 2 * (16 + 128 + 4), 4 + 3 * 132, 3)
    top, left = 32, 4 + 2 * 132  # the first concept's second step
    pushed, beside = page[top + 16, left + 16], page[top + 16, left + 80]
    assert pushed.min() > beside.max() + 50
    assert np.array_equal(page[top + 16, left - 132 + 16], beside)
    empty: Tensor = torch.zeros(1, 1, 4, 4)
    term_sheet(Image.new("RGB", (8, 900)), empty, concepts[:1])


def test_of_many_steps_some_are_drawn() -> None:
    assert drawn_steps(5) == [0, 1, 2, 3, 4]
    some = drawn_steps(50)
    assert (some[0], some[-1], len(some)) == (0, 49, MOST_COLUMNS)
    assert some == sorted(set(some))


# --- what a user gets wrong ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([PROMPT], "Missing option '--concept'"),
        (["--concept", "snow"], "Missing argument 'PROMPT'"),
        (["photo.png", "--concept", "snow"], "Missing argument 'PROMPT': photo.png is an image"),
        (["photo.png", PROMPT, "x", "--concept", "snow"], "extra argument"),
        ([PROMPT, "--concept", " "], "a concept is empty"),
        ([PROMPT, "--concept", "=5"], "concept is '=5'; expected WORDS or WORDS=WEIGHT"),
        ([PROMPT, "--concept", "snow="], "concept is 'snow='"),
        ([PROMPT, "--concept", "snow=much"], "concept is 'snow=much'; expected WORDS"),
        ([PROMPT, "--concept", "snow=nan"], "the weight of 'snow' is nan"),
        ([PROMPT, "--concept", "snow=1e9"], "the weight of 'snow' is 1000000000.0"),
        ([PROMPT, *["--concept", "snow"] * 33], "33 concepts are given"),
        ([PROMPT, "--concept", "snow", "--weight", "inf"], "weight is inf"),
        ([PROMPT, "--concept", "snow", "--gates", "mild"], "not one of 'ungated'"),
        ([PROMPT, "--concept", "snow", "--quantile", "1.5"], "quantile is 1.5"),
        ([PROMPT, "--concept", "snow", "--attention", "-1"], "attention is -1.0"),
        ([PROMPT, "--concept", "snow", "--momentum", "nan"], "momentum is nan"),
        ([PROMPT, "--concept", "snow", "--strength", "0.5"], "--strength needs an IMAGE"),
        (["photo.png", PROMPT, "--concept", "snow", "--strength", "0"], "strength is 0"),
        (["none.png", PROMPT, "--concept", "snow"], "none.png: no such file"),
        ([PROMPT, "--concept", "snow", "--maps", "m.txt"], "--maps is m.txt; expected a name"),
        ([PROMPT, "--concept", "snow", "--maps", "no/m.png"], "does not exist"),
        ([PROMPT, "--concept", "snow", "--maps", "old.png"], "old.safetensors exists"),
        ([PROMPT, "--concept", "snow", "--maps", "a.png", "--out", "a.png"], "both name a.png"),
        ([PROMPT, "--concept", "snow", "--size", "10x10"], "a multiple of 8"),
        ([PROMPT, "--concept", "snow", "--seed", str(2**70)], "2**63 - 1"),
        ([PROMPT, "--concept", "snow", "--steps", "0"], "steps is 0"),
        (["x" * 30_000, "--concept", "snow"], "characters; expected at most 20000"),
    ],
)  # fmt: skip
def test_mistakes_get_one_line_and_leave_nothing(
    capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    Path("old.safetensors").touch()
    assert erase(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sentence in captured.err
    assert captured.err.count("\n") == 1
    assert names() == ["old.safetensors"]


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from techniques.erasure import erasure_loop
from pare.cli.main import main
whole = erasure_loop.gate
def gate(*given):
    os.kill(os.getpid(), signal.SIGINT)
    return whole(*given)
erasure_loop.gate = gate
sys.exit(main(sys.argv[1:]))
"""
    given = ["erase", PROMPT, "--concept", "snow", "--maps", "m.png", "--model", "model"]
    done = subprocess.run(
        [sys.executable, "-c", code, *given],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.splitlines()[-1] == "pare: interrupted"
    assert names() == []
