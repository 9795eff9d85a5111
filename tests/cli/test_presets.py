"""Presets: options under a name, from the user's and the project's TOML file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from PIL import Image

from pare.cli.main import all_commands, cli, main
from pare.cli.presets import Preset, settable, settings_for
from pare.pipeline import Pipeline
from pare.recipes.recipe import read_recipe
from tests.fake_pipeline import FakePipeline

USER = """
[draft]
steps = 9
scheduler = "euler"

[mine]
guidance = 2
"""
PROJECT = """
[draft]
num-inference-steps = 12
cfg = 3
negative = "fog"
seed = ["2-3", 7]
karras = false
grid = true

[draft.img2img]
strength = 0.5
seed = 4
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    """A folder below that of the project; the user's settings are beside it."""
    pipe = FakePipeline()
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda *_, **named: note(pipe, named))
    monkeypatch.setattr("click.get_app_dir", lambda name: str(tmp_path / "settings" / name))
    (tmp_path / "settings" / "pare").mkdir(parents=True)
    (tmp_path / "settings" / "pare" / "presets.toml").write_text(USER)
    (tmp_path / "project" / "inner").mkdir(parents=True)
    (tmp_path / "project" / "pare.toml").write_text(PROJECT)
    monkeypatch.chdir(tmp_path / "project" / "inner")
    return pipe


def note(pipe: FakePipeline, named: dict[str, Any]) -> FakePipeline:
    pipe.loaded = named  # type: ignore[attr-defined]
    return pipe


def test_the_projects_preset_goes_before_the_users(fake: FakePipeline) -> None:
    assert main(["generate", "x", "--preset", "draft"]) == 0
    asked = fake.asked
    assert (asked["steps"], asked["guidance"], asked["negative"]) == (12, 3.0, "fog")
    assert asked["seeds"] == [2, 3, 7]
    assert fake.loaded["karras"] is False  # type: ignore[attr-defined]
    assert "scheduler" not in fake.loaded  # type: ignore[attr-defined]
    assert Path("generate-grid.png").exists()  # an option that is not in recipes, too


def test_what_is_typed_goes_before_presets_and_later_ones_before_earlier(
    fake: FakePipeline,
) -> None:
    assert main(["generate", "x", "--preset", "draft", "--preset", "mine", "--steps", "5"]) == 0
    assert (fake.asked["steps"], fake.asked["guidance"], fake.asked["negative"]) == (5, 2.0, "fog")


def test_a_table_of_one_command(fake: FakePipeline) -> None:
    Image.new("RGB", (16, 16)).save("photo.png")
    assert main(["img2img", "photo.png", "x", "--preset", "draft"]) == 0
    assert (fake.asked["strength"], fake.asked["seeds"]) == (0.5, [4])


def test_recipes_hold_what_a_preset_stands_for(
    fake: FakePipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "x", "--preset", "draft"]) == 0
    recipe = read_recipe(Path("generate-2.png"))
    assert recipe.arguments["steps"] == 12
    assert not {"preset", "presets"} & set(recipe.arguments)
    assert main(["rerun", "generate-2.png", "--show"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "pare generate x --steps 12 --guidance 3.0 --negative fog --no-karras --seed 2 --seed 3 "
        "--seed 7 --batch 3"
    )


def test_erases_old_option_still_chooses_gates() -> None:
    context = click.Context(cli, info_name="pare")
    for typed in (["--gates", "safe-max"], ["--preset", "safe-max"]):
        command = all_commands()["erase"]
        with command.make_context("erase", ["x", "--concept", "y", *typed], context) as inner:
            assert inner.params["preset"] == "safe-max"


def test_every_option_of_every_command_can_be_set() -> None:
    """Whatever `pare COMMAND --help-all` lists, its own files and flags included."""
    for command in all_commands().values():
        for name, option in settable(command):
            value: Any = True if option.is_flag else "1"
            preset = Preset("all", Path("pare.toml"), {name.replace("-", "_"): value})
            found = settings_for(preset, command)
            assert found == {option.name: ["1"] if option.multiple else value}


def test_the_list(fake: FakePipeline, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("draft: num-inference-steps 12, cfg 3, negative fog, ")
    assert "img2img: strength 0.5" in first
    assert second.startswith("mine: guidance 2 (")
    assert main(["presets", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mine"]["guidance"] == 2
    Path("pare.toml").write_text("")  # nearer than the project's
    (Path("../../settings/pare/presets.toml")).unlink()
    assert main(["presets"]) == 0
    assert capsys.readouterr().err.startswith("pare: no presets: neither pare.toml (here or above)")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("steps = 3", "'steps' in {} is no table; expected presets, each under [NAME]"),
        ("[draft", "{} is not valid TOML"),
        ("[draft]\nsteps = [1, 2]", "steps of [draft] in {} is [1, 2]; expected text or a number"),
        ("[draft]\ngrid = 1", "grid of [draft] in {} is 1; expected true or false"),
        ("[draft]\nsteps = 0", "--steps is 0; expected a whole number from 1 to 1000"),
        ("[draft]\nguidence = 0", "(did you mean 'guidance'?); options of one command stand under"),
        ("[draft]\ngenerate = 1", "[draft] in {} sets 'generate', which is no option of"),
    ],
)
def test_mistakes(
    fake: FakePipeline, capsys: pytest.CaptureFixture[str], content: str, sentence: str
) -> None:
    file = Path("pare.toml").absolute()
    file.write_text(content)
    assert main(["generate", "x", "--preset", "draft"]) == 2
    err = capsys.readouterr().err
    assert sentence.format(file) in err
    assert err.count("\n") == 1
