"""`pare p2p`: its options, its several images a seed, and words that do not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pare.cli.image_run import check_images
from pare.cli.main import main
from pare.errors import SettingError
from pare.pipeline import Pipeline
from pare.recipes.recipe import read_recipe
from tests.conftest import ROOT
from tests.tiny_model import write_tiny_model

SUNNY, SNOWY, RAINY = "a sunny road", "a snowy road", "a rainy road"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(autouse=True)
def work(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder, with nothing in it but a tiny model."""
    (tmp_path / "model").symlink_to(tiny)
    monkeypatch.chdir(tmp_path)


def p2p(*given: str, model: Path | str = "model", steps: int = 2) -> int:
    return main(["p2p", "--model", str(model), "--steps", str(steps), *given])


def names() -> list[str]:
    return sorted(path.name for path in Path().iterdir() if path.name != "model")


def pixels(path: str) -> Any:
    return np.asarray(Image.open(path)).astype(int)


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pare: ")
    assert captured.err.count("\n") == 1
    return captured.err


# --- several images a seed --------------------------------------------------------------


def test_every_seed_makes_a_source_and_its_targets(capsys: pytest.CaptureFixture[str]) -> None:
    assert p2p(SUNNY, SNOWY, RAINY, "--seed", "5", "--seed", "3", "--out", "r.png", "--json") == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    parts = ["source", "target-1", "target-2"]
    expected = [(f"r-{seed}-{part}.png", seed, part) for seed in (5, 3) for part in parts]
    assert [(p["path"], p["seed"], p["part"]) for p in result["images"]] == expected
    assert names() == sorted(path for path, _, _ in expected)
    assert len(result["targets"]) == 4
    assert all(row["may_differ"] is None and row["structure"] > 0 for row in result["targets"])
    assert "'a snowy road': " in printed.err
    recipe = read_recipe("r-3-target-2.png")
    assert (recipe.seed, recipe.part, recipe.parts) == (3, "target-2", parts)
    assert recipe.arguments["batch"] == 6


def test_a_single_target_has_no_number() -> None:
    assert p2p(SUNNY, SNOWY) == 0
    assert names() == ["p2p-0-source.png", "p2p-0-target.png"]
    assert p2p(SUNNY, SNOWY, "--out", "a.png") == 0
    assert {"a-source.png", "a-target.png"} < set(names())


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--batch", "4", "--scheduler", "euler-ancestral"],
        ["--separately"],
        ["--blend", "road", "--weight", "snowy=1.5", "--cross-replace-word", "snowy=0.5"],
    ],
)
def test_any_image_is_made_again_to_the_pixel(
    capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    assert p2p(SUNNY, SNOWY, RAINY, "--count", "3", *more) == 0
    for name in ("p2p-1-target-2.png", "p2p-2-source.png"):
        capsys.readouterr()
        assert main(["rerun", name, "--out", "again.png", "--force"]) == 0
        assert f"{name}, made again, is the same to the pixel" in capsys.readouterr().err
        again, first = read_recipe("again.png"), read_recipe(name)
        assert (again.seed, again.part) == (first.seed, first.part)
        assert main(["rerun", "again.png", "--check"]) == 0
    assert main(["rerun", "p2p-1-target-2.png"]) == 0
    assert "rerun-1-target-2.png" in names()


def test_the_command_line_that_a_recipe_gives_makes_it_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = ["--weight", "snowy=-1", "--cross-replace", "0.2:0.8", "--self-grid", "0.25:1"]
    assert p2p(SUNNY, SNOWY, *more) == 0
    capsys.readouterr()
    assert main(["rerun", "p2p-0-target.png", "--show"]) == 0
    shown = capsys.readouterr().out
    assert "part: target, of source, target" in shown
    line = shown.splitlines()[-1]
    for text in (
        f"pare p2p '{SUNNY}' '{SNOWY}'",
        "--weight snowy=-1",
        "--cross-replace 0.2:0.8",
        "--self-grid 0.25:1",
    ):
        assert text in line


def change_recipe(path: str, change: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads(read_recipe(path).to_json())
    change(raw)
    with Image.open(path) as image:
        image.load()
    information = PngImagePlugin.PngInfo()
    information.add_text("pare", json.dumps(raw))
    image.save(path, pnginfo=information)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.update(parts=["source", "other"], part="other"),
        lambda raw: raw.update(parts=["target", "source"]),
        lambda raw: raw["arguments"].update(targets=[SNOWY, RAINY]),
        lambda raw: raw["arguments"].update(targets=[]),
        lambda raw: raw["arguments"].update(explain=True),
        lambda raw: raw["arguments"].update(weight=["snowy=nan"]),
        lambda raw: (raw.pop("parts"), raw.pop("part")),
    ],
)
def test_a_recipe_that_contradicts_itself_is_not_run(
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, Any]], object],
) -> None:
    assert p2p(SUNNY, SNOWY) == 0
    change_recipe("p2p-0-target.png", change)
    capsys.readouterr()
    assert main(["rerun", "p2p-0-target.png"]) == 2
    assert "recipe" in error_line(capsys)


def test_a_run_has_a_most_of_images() -> None:
    check_images([0] * 85, ["a", "b", "c"])
    with pytest.raises(SettingError, match="86 seeds make 3 images each; expected at most 256"):
        check_images([0] * 86, ["a", "b", "c"])


# --- what the options do ------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        ["--cross-replace", "0"],
        ["--cross-replace", "0.5:1"],
        ["--cross-replace-word", "snowy=0"],
        ["--self-replace", "0"],
        ["--self-grid", "1"],
        ["--self-blocks", "down"],
        ["--cross-grid", "0.5"],
        ["--cross-blocks", "up,down"],
        ["--mode", "own"],
        ["--mode", "refine"],
        ["--mode", "own", "--map", "road=road"],
        ["--weight", "snowy=3"],
        ["--weight", "snowy=0"],
        ["--blend", "road", "--threshold", "0.9"],
        ["--subtract", "road"],
        ["--mask", "mask.png"],
        ["--mask", "mask.png", "--invert-mask"],
    ],
    ids=" ".join,
)
def test_every_option_changes_the_target_and_leaves_the_source(
    more: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 20, 64))
    mask.save("mask.png")
    plain = PLAIN.setdefault("folder", tmp_path_factory.mktemp("plain"))
    if not any(plain.iterdir()):
        assert p2p(SUNNY, SNOWY, "--out", str(plain)) == 0
    assert p2p(SUNNY, SNOWY, *more) == 0
    assert np.array_equal(pixels("p2p-0-source.png"), pixels(f"{plain}/p2p-0-source.png"))
    assert not np.array_equal(pixels("p2p-0-target.png"), pixels(f"{plain}/p2p-0-target.png"))


PLAIN: dict[str, Path] = {}


def test_a_mask_says_how_much_may_differ(capsys: pytest.CaptureFixture[str]) -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 31, 64))  # up to the middle of a cell, which then counts
    mask.save("mask.png")
    assert p2p(SUNNY, SNOWY, "--mask", "mask.png", "--json") == 0
    assert json.loads(capsys.readouterr().out)["targets"][0]["may_differ"] == 0.5
    assert main(["rerun", "p2p-0-target.png", "--check"]) == 0
    Image.new("L", (64, 64), 7).save("mask.png")
    capsys.readouterr()
    assert main(["rerun", "p2p-0-target.png", "--check"]) == 2
    assert "mask.png, has changed since" in error_line(capsys)


def test_one_after_the_other_but_for_rounding() -> None:
    assert p2p(SUNNY, SNOWY, "--out", "a.png") == 0
    assert p2p(SUNNY, SNOWY, "--separately", "--out", "b.png") == 0
    assert read_recipe("b-target.png").arguments["batch"] == 1
    for part in ("source", "target"):
        assert np.abs(pixels(f"a-{part}.png") - pixels(f"b-{part}.png")).max() <= 1


def test_a_prompt_into_itself_is_the_source() -> None:
    assert p2p(SUNNY, SUNNY) == 0
    apart = np.abs(pixels("p2p-0-source.png") - pixels("p2p-0-target.png"))
    assert apart.max() <= 1


def test_a_word_turned_off_is_another_image_than_without_it() -> None:
    assert p2p("a road with a car", "a road with a car", "--weight", "car=0") == 0
    assert np.abs(pixels("p2p-0-source.png") - pixels("p2p-0-target.png")).max() > 1


@pytest.mark.parametrize("scheduler", ["ddim", "lms", "pndm", "euler", "euler-ancestral"])
def test_every_scheduler(scheduler: str) -> None:
    assert p2p(SUNNY, SNOWY, "--scheduler", scheduler) == 0
    assert read_recipe("p2p-0-target.png").scheduler["name"] == scheduler


def test_odd_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    long = "a road, " * 30
    pairs = [("Straße №7 雪 🚗", "Straße №8 雪 🚗"), ("", "a road"), (long, long + "at night")]
    for k, (source, target) in enumerate(pairs):
        assert p2p("--out", f"{k}.png", "--", source, target, steps=1) == 0
    assert "tokens and the text encoder reads 75" in capsys.readouterr().err


# --- the tables ---------------------------------------------------------------------------


def stop(*_: Any, **__: Any) -> None:
    raise AssertionError("the model is loaded")


def test_explain_shows_the_table_and_loads_no_weights(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Pipeline, "from_pretrained", stop)
    monkeypatch.setattr("pare.loading.modules.open_weights", stop)
    given = ["p2p", SUNNY, SNOWY, "a sunny road at night", "--explain", "--weight", "night=2"]
    assert main(given) == 0
    out = capsys.readouterr().out
    assert "replace: 'a sunny road' -> 'a snowy road'\n" in out
    assert "  2  snowy      <-  2 sunny\n" in out
    assert "refine: 'a sunny road' -> 'a sunny road at night'\n" in out
    assert "its own, times 2\n" in out
    assert main([*given, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["tables"]
    assert first["tokens"][2]["fed_by"] == [{"place": 2, "token": "sunny", "share": 1.0}]
    assert (second["mode"], second["tokens"][-1]["token"]) == ("refine", "<padding>")
    assert names() == []


def test_explain_reads_a_single_file_s_words(capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import save_file

    from tests.single_files import original_checkpoint

    tensors = {name: t.contiguous() for name, t in original_checkpoint("SD 1").items()}
    save_file(tensors, "model.safetensors")
    assert main(["p2p", "a cat", "a dog", "--explain", "--model", "model.safetensors"]) == 0
    assert "dog" in capsys.readouterr().out


# --- what a user gets wrong ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "Missing argument 'TARGET...'"),
        ([SNOWY, "--weight", "snowy"], "weight is 'snowy'; expected WORD=NUMBER"),
        ([SNOWY, "--weight", "snowy=much"], "weight is 'snowy=much'; expected WORD=NUMBER"),
        ([SNOWY, "--weight", "=2"], "expected WORD=NUMBER"),
        ([SNOWY, "--weight", "snowy=nan"], "weight of 'snowy' is nan"),
        ([SNOWY, "--weight", "snowy=inf"], "weight of 'snowy' is inf"),
        ([SNOWY, "--weight", "snowy=1", "--weight", "snowy=2"], "names 'snowy' 2 times"),
        ([SNOWY, "--weight", "sunny=2"], "'sunny' is not in the prompt 'a snowy road'; expected"),
        ([SNOWY, RAINY, "--weight", "moon=2"], "in none of the targets; expected a, snowy, road"),
        ([SNOWY, "--weight", "road#2=2"], "asks for occurrence 2 of 'road'; expected 1 to 1"),
        ([SNOWY, "--map", "sunny"], "map is 'sunny'; expected OLD=NEW"),
        ([SNOWY, "--map", "rainy=snowy"], "'rainy' is not in the prompt 'a sunny road'"),
        ([SNOWY, "--map", "sunny=rainy"], "'rainy' is not in the prompt 'a snowy road'"),
        (["a road and a road", "--mode", "own", "--map", "road=road"], "say which: 'road#1'"),
        ([SNOWY, "--map", "a=snowy", "--map", "a=road"], "--map names 'a' 2 times"),
        (["a road", "--mode", "replace"], "replace swaps word for word"),
        ([SNOWY, "--cross-replace", "2"], "cross-replace is 2.0"),
        ([SNOWY, "--cross-replace", "0.8:0.2"], "cross-replace ends at 0.2 and begins at 0.8"),
        ([SNOWY, "--cross-replace", "all"], "cross-replace is 'all'"),
        ([SNOWY, "--cross-replace-word", "moon=0.5"], "'moon' is not in the prompt"),
        ([SNOWY, "--cross-replace-word", "snowy"], "expected WORD=SHARE"),
        ([SNOWY, "--self-replace", "nan"], "self-replace is nan"),
        ([SNOWY, "--self-grid", ""], "self-grid is ''"),
        ([SNOWY, "--self-blocks", "top"], "self-blocks is 'top'; expected some of down,mid,up"),
        ([SNOWY, "--blend", "moon"], "'moon' is in none of the prompts; expected one of a, sunny"),
        ([SNOWY, "--blend", "road", "--blend-level", "9"], "no cross-attention at stage 9"),
        ([SNOWY, "--blend", "road", "--threshold", "2"], "threshold is 2.0"),
        ([SNOWY, "--mask", "wide.png"], "the mask is 64 x 16 and the image 128 x 128"),
        ([SNOWY, "--mask", "black.png"], "marks nothing to edit"),
        ([SNOWY, "--mask", "none.png"], "none.png: no such file"),
        ([SNOWY, "--invert-mask"], "--invert-mask needs --mask"),
        ([SNOWY, "--separately", "--batch", "2"], "--separately and --batch 2 exclude each other"),
        ([SNOWY] * 33, "33 targets are given; expected 1 to 32"),
        ([SNOWY, "--seed", str(2**70)], "2**63 - 1"),
        ([SNOWY, "--size", "100x100"], "a multiple of 8"),
        ([SNOWY, "--tokenizer", "."], "roads has its own tokenizer"),
        ([SNOWY, "--model", "nothing/"], "does not exist"),
        (["x " * 20_000], "characters; expected at most 20000"),
        ([SNOWY, "--out", "missing/a.png"], "missing does not exist"),
        ([SNOWY, "--out", "there.png"], "there-target.png exists; pass --force"),
    ],
)  # fmt: skip
def test_mistakes_get_one_line_and_leave_nothing(
    capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    Image.new("L", (64, 16), 255).save("wide.png")
    Image.new("L", (64, 64)).save("black.png")
    Path("there-target.png").touch()
    before = names()
    assert main(["p2p", "a sunny road", *arguments, "--steps", "2"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("pare: ")
    assert sentence in error
    assert names() == before


def test_words_behind_the_end_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    long = "a road " * 50 + "at night"
    assert main(["p2p", long, long, "--weight", "night=2", "--steps", "1"]) == 2
    assert "'night' stands behind the 77 tokens" in capsys.readouterr().err


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pare.cli.main import main
from techniques.prompt_to_prompt import attention_edit
whole, calls = attention_edit.Injection.edit, []
def edit(self, call, weights):
    calls.append(call.step)
    if call.step == 1:
        os.kill(os.getpid(), signal.SIGINT)
    return whole(self, call, weights)
attention_edit.Injection.edit = edit
sys.exit(main(sys.argv[1:]))
"""
    given = ["p2p", SUNNY, SNOWY, "--steps", "3"]
    done = subprocess.run(
        [sys.executable, "-c", code, *given],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1] == "pare: interrupted"
    assert done.stdout == ""
    assert names() == []
