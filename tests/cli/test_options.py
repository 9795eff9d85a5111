"""Options as hands type them, help in groups, and parameters of the library as options."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest
from PIL import Image

from pare.cli.grouped_help import SECTIONS, Option, PareCommand
from pare.cli.main import all_commands, cli, main
from pare.cli.option_types import SCHEDULER_NAMES, scheduler_of
from pare.cli.parameter_names import OTHER_NAMES, with_options
from pare.pipeline import Pipeline
from pare.recipes.recipe import read_recipe
from tests.fake_pipeline import FakePipeline


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What `Pipeline.from_pretrained` was called with, in an empty folder."""
    chosen: dict[str, Any] = {}

    def from_pretrained(model: str, **given: Any) -> FakePipeline:
        chosen.update(given, model=model, pipe=FakePipeline())
        return chosen["pipe"]

    monkeypatch.setattr(Pipeline, "from_pretrained", from_pretrained)
    monkeypatch.chdir(tmp_path)
    return chosen


@pytest.mark.parametrize(
    ("typed", "asked"),
    [
        ("--cfg 3", {"guidance": 3.0}),
        ("--guidance-scale 3", {"guidance": 3.0}),
        ("--num-inference-steps 7", {"steps": 7}),
        ("--negative-prompt fog", {"negative": "fog"}),
        ("--size 64", {"width": 64, "height": 64}),
        ("-s 3", {"seeds": [3]}),
        ("--seed 1-3", {"seeds": [1, 2, 3]}),
        ("--seed 1..3", {"seeds": [1, 2, 3]}),
        ("--seed 5,2", {"seeds": [5, 2]}),
        ("--seed 5 --seed 7-8", {"seeds": [5, 7, 8]}),
        ("-s 4 -n 2", {"seeds": [4, 5]}),
    ],
)
def test_other_names_and_short_forms(
    fake: dict[str, Any], typed: str, asked: dict[str, Any]
) -> None:
    assert main(["generate", "x", "-o", "a.png", "-m", "any", *typed.split()]) == 0
    assert fake["model"] == "any"
    assert {name: fake["pipe"].asked[name] for name in asked} == asked


@pytest.mark.parametrize(
    ("typed", "name", "karras"),
    [
        ("dpmpp_2m", "dpm++2m", None),
        ("DPM++ 2M Karras", "dpm++2m", True),
        ("DPMSolverMultistepScheduler", "dpm++2m", None),
        ("Euler a", "euler-ancestral", None),
        ("EulerAncestralDiscreteScheduler", "euler-ancestral", None),
        ("k_euler", "euler", None),
        ("DPM++ 2M SDE Karras", "dpm++2m-sde", True),
        ("dpmpp_3m_sde_gpu", "dpm++3m-sde", None),
        ("DPM++ SDE", "dpm++sde", None),
        ("DPM++ 2S a Karras", "dpm++2s-ancestral", True),
        ("dpmpp_2s_ancestral", "dpm++2s-ancestral", None),
        ("DPM2 a", "dpm2-ancestral", None),
        ("dpm_2", "dpm2", None),
        ("Heun", "heun", None),
        ("UniPC", "unipc", None),
        ("uni_pc_bh2", "unipc", None),
        ("LCM", "lcm", None),
        ("KDPM2AncestralDiscreteScheduler", "dpm2-ancestral", None),
        ("DPMSolverSinglestepScheduler", "dpm++2s", None),
        ("DEISMultistepScheduler", "deis", None),
        ("LMS Karras", "lms", True),
        ("DDIM", "ddim", None),
        ("plms", "pndm", None),
    ],
)
def test_schedulers_by_the_names_of_other_programs(
    fake: dict[str, Any], typed: str, name: str, karras: bool | None
) -> None:
    assert main(["generate", "x", "--sampler", typed]) == 0
    assert fake["scheduler"] == name
    assert fake.get("karras") == karras
    assert main(["generate", "x", "--no-karras", "--scheduler", typed]) == 0
    assert fake["karras"] is False


def test_every_scheduler_has_its_own_name_too() -> None:
    for name in SCHEDULER_NAMES:
        assert scheduler_of(name) == (name, False)
        assert scheduler_of(name.upper()) == (name, False)


def test_a_random_seed_is_said_and_recorded(
    fake: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "x", "--seed", "-1", "--out", "a.png"]) == 0
    said = capsys.readouterr().err
    seed = fake["pipe"].asked["seeds"][0]
    assert said == f"pare: the random seed is {seed}\n"
    assert read_recipe("a.png").arguments["seed"] == [seed]
    assert main(["generate", "x", "--seed", "-1", "--out", "b.png"]) == 0
    assert fake["pipe"].asked["seeds"] != [seed]


def test_a_contact_sheet(fake: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "x", "--count", "5", "--grid"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "generate-grid.png"
    with Image.open("generate-grid.png") as sheet:
        assert sheet.width > 4 * 24
        assert sheet.height > 2 * 16
    assert main(["generate", "x", "--count", "2", "--grid", "--out", "a.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["grid"] == "a-grid.png"


@pytest.mark.parametrize("ending", [".jpg", ".webp", ".avif", ".PNG"])
def test_the_ending_says_the_format(fake: dict[str, Any], ending: str) -> None:
    assert main(["generate", "a road", "--seed", "200", "--out", f"a{ending}"]) == 0
    assert read_recipe(f"a{ending}").seeds == [200]
    with Image.open(f"a{ending}") as image:
        expected = {".jpg": "JPEG", ".webp": "WEBP", ".avif": "AVIF", ".PNG": "PNG"}
        assert image.format == expected[ending]


# --- recipes say where nobody lives -------------------------------------------------------


def test_a_recipe_holds_no_path(fake: dict[str, Any], tmp_path: Path) -> None:
    home = tmp_path / "home" / "me"
    (home / "model").mkdir(parents=True)
    Image.new("RGB", (24, 16)).save(home / "photo.png")
    given = ["img2img", str(home / "photo.png"), "a road", "--model", str(home / "model")]
    assert main([*given, "--tokenizer", str(home / "model"), "--out", str(tmp_path / "a.png")]) == 0
    recipe = read_recipe("a.png")
    assert "home" not in recipe.to_json()
    assert recipe.arguments["image"] == recipe.inputs["image"]["name"] == "photo.png"
    assert recipe.arguments["model"] == recipe.arguments["tokenizer"] == "model"

    assert main([*given, "--keep-paths", "--out", "b.png"]) == 0
    recipe = read_recipe("b.png")
    assert recipe.inputs["image"]["name"] == str(home / "photo.png")
    assert recipe.arguments["model"] == str(home / "model")


# --- help ---------------------------------------------------------------------------------


def test_every_command_stands_in_a_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, command in cli.commands.items():
        assert isinstance(command, PareCommand)
        assert command.section in SECTIONS
        sentence = command.get_short_help_str(limit=200)
        assert "..." not in sentence
        assert sentence.endswith(".")
        assert f"  {name} " in shown
        assert sentence.split()[-1] in shown


@pytest.mark.parametrize("name", sorted(all_commands()))
def test_all_options_are_listed_in_groups(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = all_commands()[name]
    assert isinstance(command, PareCommand)
    assert main([*name.split(), "--help"]) == 0
    usual = capsys.readouterr().out
    assert len(usual.splitlines()) <= 75
    rest = command.unusual()
    assert ("--help-all lists" in usual) == bool(rest)
    if not rest:
        return
    assert main([*name.split(), "--help-all"]) == 0
    whole = capsys.readouterr().out
    for option in command.params:
        if isinstance(option, Option):
            assert option.listed_names[0] in whole
            assert f"{option.title}:" in whole
            row = rf"^  (-., )?{re.escape(option.listed_names[0])}( |,|/|$)"
            assert bool(re.search(row, usual, re.MULTILINE)) == (option not in rest)
            assert option.help


def test_aliases_are_taken_and_not_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--help-all"]) == 0
    shown = capsys.readouterr().out
    assert "--guidance FLOAT" in shown
    assert "--cfg" not in shown


# --- the library's parameters -------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("`steps` is 0", "--steps is 0"),
        ("steps is 0", "--steps is 0"),
        ("strength is nan", "--strength is nan"),
        ("the steps is 0", "the steps is 0"),
        ("steps is damaged or cut off", "steps is damaged or cut off"),  # a file
        ("pass `force=True` to overwrite it", "pass --force to overwrite it"),
        ("pass `karras=False`", "pass --no-karras"),
        ("use `dtype=float32`", "use --dtype float32"),
        ("use `dtype='float32'`", "use --dtype float32"),
        ("give `image`", "give IMAGE"),
        ("fewer `seeds`, a smaller `height`", "fewer --seed, a smaller --size"),
        ("`pare tokens` shows them", "`pare tokens` shows them"),
        ("`unet` is no parameter", "`unet` is no parameter"),
        ("`as_json=True`", "--json"),
    ],
)
def test_parameters_become_options(text: str, shown: str) -> None:
    assert with_options(text, cli.commands["img2img"]) == shown


def test_other_names_lead_to_parameters_that_commands_have() -> None:
    names = {p.name for command in all_commands().values() for p in command.params}
    assert set(OTHER_NAMES.values()) <= names


def test_messages_keep_parameters_where_nobody_typed_an_option() -> None:
    command = cli.commands["generate"]
    with pytest.raises(ValueError, match=r"^`steps` is 0"):
        command.make_context("generate", ["x", "--steps", "0"])
    with (
        click.Context(cli, info_name="pare") as parent,
        pytest.raises(ValueError, match=r"^--steps is 0"),
    ):
        command.make_context("generate", ["x", "--steps", "0"], parent=parent)


def test_prompts_from_a_file(fake: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    Path("prompts.txt").write_text("# roads\na snowy road\n\n  a road at night  \n")
    assert main(["generate", "--prompts-from", "prompts.txt", "--count", "2"]) == 0
    made = ["generate-1-0.png", "generate-1-1.png", "generate-2-0.png", "generate-2-1.png"]
    assert capsys.readouterr().out.split() == made
    assert read_recipe("generate-1-1.png").arguments["prompt"] == "a snowy road"
    assert read_recipe("generate-2-0.png").arguments["prompt"] == "a road at night"
    assert main(["generate", "--prompts-from", "prompts.txt", "--out", "a.png"]) == 0
    assert capsys.readouterr().out.split() == ["a-1.png", "a-2.png"]
    Path("a-2.png").rename("b.png")
    assert main(["generate", "--prompts-from", "prompts.txt", "--out", "a.png"]) == 2
    assert "a-1.png exists" in capsys.readouterr().err
    assert not Path("a-2.png").exists()


@pytest.mark.parametrize(
    ("content", "more", "sentence"),
    [
        (b"", [], "holds 0 prompts; expected 1 to 10000, one a line"),
        (b"a\xffb\n", [], "expected UTF-8"),
        (b"a road\n", ["a road"], "PROMPT and --prompts-from exclude each other"),
        (None, [], "prompts.txt: no such file"),
    ],
)
def test_files_of_prompts_that_cannot_be(
    fake: dict[str, Any], capsys: pytest.CaptureFixture[str],
    content: bytes | None, more: list[str], sentence: str,
) -> None:  # fmt: skip
    if content is not None:
        Path("prompts.txt").write_bytes(content)
    assert main(["generate", *more, "--prompts-from", "prompts.txt"]) == 2
    assert sentence in capsys.readouterr().err
