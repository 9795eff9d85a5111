"""An image made again is the same to the pixel, and a stranger's recipe does no harm."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shlex
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file

from pare.cli.image_run import ImageCommand
from pare.cli.json_output import plain
from pare.cli.main import cli, main
from pare.cli.recipe_arguments import check_recipe, for_a_shell, parse, words
from pare.cli.time_limit import TimedRun, limit_of
from pare.errors import PareError, RecipeError
from pare.loading.model_source import sampled_fingerprint
from pare.recipes.rebuild import (
    batch_length,
    batch_of,
    changed_files,
    compare_pixels,
    compare_recipes,
    find_machine,
    find_scheduler,
)
from pare.recipes.recipe import Recipe, parse_recipe, read_recipe
from pare.schedulers import SCHEDULERS, build_scheduler
from tests.conftest import RunPare
from tests.tiny_model import SCHEDULER, change_json, write_tiny_model

IMAGE_COMMANDS = [name for name, one in cli.commands.items() if isinstance(one, ImageCommand)]
COMMANDS = {
    "generate": ["generate", "a snowy road"],
    "img2img": ["img2img", "photo.png", "a car", "--strength", "0.7"],
    "blend": ["blend", "photo.png", "--mask", "mask.png", "the car", "--sample"],
}
SCHEDULERS_OF_MANY_KINDS = {
    "the model's own": [],
    "stochastic": ["--scheduler", "euler-ancestral"],
    "with history": ["--scheduler", "dpm++2m", "--karras"],
    "ddim": ["--scheduler", "ddim", "--eta", "0.5"],
    "lms": ["--scheduler", "lms"],
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def work(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a model, an image of odd size and a mask in it."""
    folder = tmp_path / "work"
    folder.mkdir()
    shutil.copytree(tiny, folder / "model")
    photo = Image.linear_gradient("L").resize((44, 30)).convert("RGB")
    photo.save(folder / "photo.png")
    mask = Image.new("L", (44, 30))
    mask.paste(255, (8, 8, 36, 24))
    mask.save(folder / "mask.png")
    monkeypatch.chdir(folder)
    threads = torch.get_num_threads()
    yield folder
    torch.set_num_threads(threads)


def make(command: str = "generate", *more: str) -> None:
    assert main([*COMMANDS[command], "--model", "model", "--steps", "3", *more]) == 0


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


def raw_recipe(path: Path | str) -> dict[str, Any]:
    return json.loads(read_recipe(path).to_json())


def change_recipe(path: Path | str, change: Callable[[dict[str, Any]], object]) -> None:
    """Let a stranger edit the recipe in an image."""
    raw = raw_recipe(path)
    change(raw)
    with Image.open(path) as image:
        image.load()
    save_with_recipe(path, image, json.dumps(raw))


def save_with_recipe(path: Path | str, image: Image.Image, text: str) -> None:
    information = PngImagePlugin.PngInfo()
    information.add_text("pare", text)
    image.save(path, pnginfo=information)


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr; nothing on stdout."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pare: ")
    assert captured.err.count("\n") == 1
    return captured.err


OTHER_FILES = {"film", "report"}  # a GIF, a video, a page: nothing that `rerun` reads


# --- to the pixel -------------------------------------------------------------------------


def test_the_cases_below_are_all_commands_that_make_images() -> None:
    assert set(IMAGE_COMMANDS) >= set(COMMANDS)
    for name, command in cli.commands.items():
        takes = {parameter.name for parameter in command.params}
        seeded = {"seed", "out"} <= takes and name not in OTHER_FILES
        assert seeded == (name in IMAGE_COMMANDS), name


@pytest.mark.parametrize(
    ("command", "scheduler"),
    [*(("generate", scheduler) for scheduler in SCHEDULERS_OF_MANY_KINDS),
     ("img2img", "stochastic"), ("blend", "with history")],
)  # fmt: skip
def test_every_command_again_to_the_pixel(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    command: str, scheduler: str,
) -> None:  # fmt: skip
    make(command, *SCHEDULERS_OF_MANY_KINDS[scheduler], "--seed", "5", "--seed", "3")
    capsys.readouterr()
    assert main(["rerun", f"{command}-3.png"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "rerun-3.png\n"
    assert captured.err == f"{command}-3.png, made again, is the same to the pixel\n"
    with Image.open("rerun-3.png") as again, Image.open(f"{command}-3.png") as first:
        assert again.tobytes() == first.tobytes()
    # The new image has a recipe as good as the old one's.
    assert compare_recipes(read_recipe(f"{command}-3.png"), read_recipe("rerun-3.png")) == []


def test_a_second_making_can_be_made_again(work: Path) -> None:
    make("blend", "--count", "2")
    assert main(["rerun", "blend-1.png", "--out", "second.png"]) == 0
    assert main(["rerun", "second.png", "--out", "third.png"]) == 0
    assert main(["rerun", "third.png", "--check"]) == 0


def test_from_another_working_directory(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make("blend")
    (work / "elsewhere").mkdir()
    monkeypatch.chdir(work / "elsewhere")
    # Inputs and models are found beside the image, here, and where --inputs says.
    assert main(["rerun", "../blend-0.png", "--check"]) == 0
    shutil.copy("../blend-0.png", "copy.png")
    capsys.readouterr()
    assert main(["rerun", "copy.png", "--check"]) == 2
    assert "photo.png, is not there; name the file (--input image=PATH)" in capsys.readouterr().err
    assert main(["rerun", "copy.png", "--check", "--input", "image=../photo.png",
                 "--input", "mask=../mask.png"]) == 2  # fmt: skip
    assert "the model 'model' is not here; pass it as --model" in capsys.readouterr().err
    assert main(["rerun", "copy.png", "--check", "--inputs", ".."]) == 0
    Path("copy.png").unlink()
    assert main(["rerun", "../blend-0.png", "--model", "../model"]) == 0
    assert names(work / "elsewhere") == ["rerun-0.png"]
    assert str(work) not in read_recipe("rerun-0.png").to_json()


@pytest.mark.parametrize(("count", "batch"), [(3, None), (5, 2)])
def test_of_a_run_only_the_batch_is_made_that_the_image_was_in(
    work: Path, capsys: pytest.CaptureFixture[str], count: int, batch: int | None
) -> None:
    make("generate", "--count", str(count), *([] if batch is None else ["--batch", str(batch)]))
    last = count - 1
    recipe = read_recipe(f"generate-{last}.png")
    assert batch_of(recipe) == ([0, 1, 2] if batch is None else [4])
    capsys.readouterr()
    assert main(["rerun", f"generate-{last}.png"]) == 0
    assert read_recipe(f"rerun-{last}.png").seeds == batch_of(recipe)
    assert read_recipe(f"rerun-{last}.png").seed == last


@pytest.mark.parametrize(
    ("seeds", "parts", "batch", "index", "together", "length"),
    [
        (3, 1, None, 1, [0, 1, 2], 3),
        (3, 1, 2, 2, [2], 1),
        (3, 2, None, 1, [0, 1, 2], 6),
        (3, 2, 1, 1, [1], 1),
        (3, 2, 2, 1, [1], 2),
        (3, 2, 4, 0, [0, 1], 4),
        (3, 2, 4, 2, [2], 2),
        # Batches of 4 cut the seeds' three images anywhere; a new one begins with seed 4.
        (6, 3, 4, 2, [0, 1, 2, 3], 4),
        (6, 3, 4, 5, [4, 5], 2),
        (2, 3, 99, 1, [0, 1], 6),
    ],
)
def test_the_seeds_that_make_an_image_s_batch(
    seeds: int, parts: int, batch: int | None, index: int, together: list[int], length: int
) -> None:
    recipe = recipe_of("generate", {"prompt": "a road", "batch": batch})
    named = [f"p{k}" for k in range(parts)] if parts > 1 else []
    recipe = dataclasses.replace(
        recipe, seeds=list(range(seeds)), index=index, parts=named, part=named[-1] if named else ""
    )
    assert batch_of(recipe) == together
    assert batch_length(recipe) == length
    # The same batches, made by themselves: every image is in one of the same length.
    again = dataclasses.replace(recipe, seeds=together, index=together.index(index))
    assert batch_length(again) == length
    assert batch_of(again) == together


def test_an_image_of_a_batch_made_alone(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("generate", "--count", "3", "--scheduler", "pndm")
    capsys.readouterr()
    code = main(["rerun", "generate-1.png", "--alone", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert code == (0 if result["same"] else 1)  # rounding differs; whether it shows depends
    assert result["pixels"]["largest"] <= 1
    assert result["recipe"] == [{"name": "batch", "one": 3, "other": 1}]
    assert read_recipe("rerun-1.png").seeds == [1]


# --- what has moved or changed ------------------------------------------------------------


def test_an_input_that_has_moved(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("blend")
    (work / "moved").mkdir()
    shutil.move("photo.png", "moved/p.png")
    capsys.readouterr()
    assert main(["rerun", "blend-0.png"]) == 2
    line = error_line(capsys)
    assert "the image that blend-0.png was made from, photo.png, is not there" in line
    assert "(--input image=PATH)" in line
    assert names(work) == ["blend-0.png", "mask.png", "moved/p.png"]
    assert main(["rerun", "blend-0.png", "--input", "image=moved/p.png", "--check"]) == 0
    assert main(["rerun", "blend-0.png", "--input", "photo=moved/p.png"]) == 2
    assert "its inputs: image, mask" in capsys.readouterr().err


def test_an_input_that_has_changed(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("img2img")
    Image.new("RGB", (44, 30), "navy").save("photo.png")
    capsys.readouterr()
    assert main(["rerun", "img2img-0.png"]) == 2
    assert "photo.png, has changed since" in error_line(capsys)
    assert main(["rerun", "img2img-0.png", "--input", "image=photo.png", "--out", "b.png"]) == 1
    said = capsys.readouterr().err
    assert "photo.png is not the image that img2img-0.png was made from" in said
    assert "made again, is different: at most" in said
    assert "the image is another file" in said


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_a_model_that_has_changed(
    work: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    make()
    file = next((work / "model" / part).glob("*.safetensors"))
    tensors = load_file(file)
    name = max(tensors, key=lambda key: tensors[key].numel() if "weight" in key else 0)
    save_file({**tensors, name: tensors[name] * 3}, file, metadata={"format": "pt"})
    capsys.readouterr()
    assert main(["rerun", "generate-0.png"]) == 2
    changed = f"{part}/{file.name}"
    assert f"the model 'model' has changed since ({changed})" in error_line(capsys)
    assert main(["rerun", "generate-0.png", "--model", "model", "--check"]) == 1
    assert f"the model's {changed} is another file" in capsys.readouterr().out


def test_a_config_that_has_changed(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make()
    change_json(work / "model" / "vae" / "config.json", scaling_factor=0.2)
    capsys.readouterr()
    assert main(["rerun", "generate-0.png"]) == 2
    assert "has changed since (vae/config.json)" in error_line(capsys)


def test_the_scheduler_is_the_recipe_s_and_not_the_model_s(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make("generate", "--scheduler", "ddim")
    change_json(work / "model" / "scheduler" / "scheduler_config.json", beta_end=0.02)
    capsys.readouterr()
    assert main(["rerun", "generate-0.png", "--model", "model", "--check"]) == 0
    words = capsys.readouterr().out
    assert "is the same to the pixel" in words
    assert "the model's scheduler/scheduler_config.json is another file" in words


def test_a_model_that_has_moved(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make()
    shutil.move("model", "models")
    assert main(["rerun", "generate-0.png", "--model", "models", "--check"]) == 0


def test_a_model_from_the_hub_is_taken_from_the_cache_at_its_commit(
    work: Path, nothing_from_afar: None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    make()
    commit = "0123456789" * 4
    change_recipe("generate-0.png", arguments(model="owner/tiny"))
    change_recipe("generate-0.png", model(name="owner/tiny", revision=commit))
    cache = work / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    capsys.readouterr()
    assert main(["rerun", "generate-0.png"]) == 2
    assert "is not in the Hub's cache; to download it, pass --model" in error_line(capsys)

    shutil.move("model", cache / "models--owner--tiny" / "snapshots" / commit)
    assert main(["rerun", "generate-0.png"]) == 0
    again = read_recipe("rerun-0.png")
    assert (again.model["name"], again.model["revision"]) == ("owner/tiny", commit)
    assert str(work) not in again.to_json()
    capsys.readouterr()
    assert main(["rerun", "rerun-0.png", "--show"]) == 0
    line = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert line[line.index("--model") + 1] == "owner/tiny"
    assert line[line.index("--revision") + 1] == commit


def test_other_threads(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("generate", "--threads", "2")
    assert read_recipe("generate-0.png").threads == 2
    torch.set_num_threads(1)
    capsys.readouterr()
    main(["rerun", "generate-0.png", "--threads", "1"])  # whether rounding shows depends
    assert "threads was 2 and is 1" in capsys.readouterr().err
    assert read_recipe("rerun-0.png").threads == 1


def test_a_machine_that_is_not_here(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make()
    many = (os.cpu_count() or 1) + 1
    change_recipe("generate-0.png", lambda raw: raw.update(device="cuda:77", threads=many))
    machine = find_machine(read_recipe("generate-0.png"))
    assert machine.device.partition(":")[0] in ("cpu", "cuda", "mps")
    assert machine.threads == many - 1
    capsys.readouterr()
    main(["rerun", "generate-0.png", "--device", "cpu", "--dtype", "float32"])
    said = capsys.readouterr().err
    assert f"made with {many} threads: with {many - 1} now" in said
    assert "device was cuda:77 and is cpu" in said
    assert any("cuda:77, which this machine lacks" in note for note in machine.notes)


def test_other_versions_are_said(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make()
    change_recipe("generate-0.png", lambda raw: raw["versions"].update(torch="1.0"))
    capsys.readouterr()
    assert main(["rerun", "generate-0.png", "--check"]) == 0
    assert f"torch was 1.0 and is {torch.__version__}" in capsys.readouterr().out


def test_pixels_that_were_painted_over(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make()
    recipe = read_recipe("generate-0.png").to_json()
    with Image.open("generate-0.png") as image:
        image.putpixel((3, 4), (1, 2, 3))
        save_with_recipe("painted.png", image, recipe)
        save_with_recipe("small.png", image.resize((20, 10)), recipe)
    capsys.readouterr()
    assert main(["rerun", "painted.png", "--check"]) == 1
    words = capsys.readouterr().out
    assert "in 1 of 4096 pixels" in words
    assert "nothing that a recipe holds differs" in words
    assert main(["rerun", "small.png", "--check"]) == 1
    assert "of another size (64 x 64, was 20 x 10)" in capsys.readouterr().out


# --- where it writes ----------------------------------------------------------------------


def test_it_never_writes_where_the_recipe_says(work: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    make("generate", "--out", str(tmp_path / "out"))
    (tmp_path / "out" / "generate-0.png").rename("a.png")
    for odd in ({"force": True}, {"as_json": True}, {"out": "b.png"}):
        with Image.open("a.png") as image:
            image.load()
        raw = raw_recipe("a.png")
        raw["arguments"] |= odd
        save_with_recipe("odd.png", image, json.dumps(raw))
        assert main(["rerun", "odd.png"]) == 2
    Path("odd.png").unlink()
    assert main(["rerun", "a.png"]) == 0
    assert names(tmp_path / "out") == []
    assert names(work) == ["a.png", "mask.png", "photo.png", "rerun-0.png"]


def test_what_is_there_stays_without_force(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("generate", "--out", "a.png")
    before = Path("a.png").read_bytes()
    capsys.readouterr()
    assert main(["rerun", "a.png", "--out", "a.png"]) == 2
    assert "a.png exists; pass --force" in error_line(capsys)
    assert Path("a.png").read_bytes() == before
    assert main(["rerun", "a.png", "--out", "a.png", "--force"]) == 0
    assert main(["rerun", "a.png", "--out", "a.txt"]) == 2


def test_json(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("blend")
    capsys.readouterr()
    assert main(["rerun", "blend-0.png", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    result = json.loads(captured.out)
    assert (result["image"], result["path"], result["same"]) == (
        "blend-0.png", "rerun-0.png", True,
    )  # fmt: skip
    assert result["pixels"] == {
        "sizes": [[44, 30], [44, 30]], "pixels": 0, "largest": 0, "psnr": None,
    }  # fmt: skip


# --- looking, without running -------------------------------------------------------------


def test_show(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("blend", "--seed", "7", "--seed", "8", "--negative", "it's")
    capsys.readouterr()
    assert main(["rerun", "blend-8.png", "--show"]) == 0
    shown = capsys.readouterr().out
    assert "seed: 8, image 2 of 2" in shown
    line = shown.splitlines()[-1]
    command = ["blend", "photo.png", "the car", "--mask", "mask.png", "--sample", "--steps", "3"]
    more = ["--negative", "it's", "--model", "model", "--seed", "7", "--seed", "8"]
    more += ["--batch", "2"]
    assert shlex.split(line) == ["pare", *command, *more]
    # The line does what it says.
    assert main([*shlex.split(line)[1:], "--out", "again.png"]) == 0
    with Image.open("again-8.png") as again, Image.open("blend-8.png") as first:
        assert again.tobytes() == first.tobytes()
    capsys.readouterr()
    assert main(["rerun", "blend-8.png", "--show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == raw_recipe("blend-8.png") | {"command_line": line}


def test_compare(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("generate", "--out", "a.png")
    make("generate", "--out", "b.png", "--guidance", "3", "--scheduler", "euler")
    make("img2img", "--out", "c.png")
    capsys.readouterr()
    assert main(["rerun", "a.png", "--compare", "b.png", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    changes = {row["name"]: (row["one"], row["other"]) for row in result["recipe"]}
    assert changes["guidance"] == (7.5, 3.0)
    assert changes["scheduler.name"] == ("pndm", "euler")
    assert {name.partition(".")[0] for name in changes} == {"guidance", "scheduler"}
    assert not result["same"]

    assert main(["rerun", "a.png", "--compare", "c.png"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["a.png", "c.png"]
    assert table[1].split() == ["command", "generate", "img2img"]
    assert any(row.split()[:2] == ["input.image", "none"] for row in table)
    assert table[-1] == "pixels: of another size (44 x 30, was 64 x 64)"

    assert main(["rerun", "a.png", "--compare", "a.png"]) == 0
    words = "recipes: nothing that decides a pixel differs\npixels: the same to the pixel\n"
    assert capsys.readouterr().out == words
    assert main(["rerun", "a.png", "--compare", "photo.png"]) == 2
    assert "photo.png carries no recipe" in error_line(capsys)
    assert main(["rerun", "a.png", "--compare", "b.png", "--show"]) == 2


def test_the_difference_of_pixels() -> None:
    black = Image.new("RGB", (10, 10))
    other = black.copy()
    other.putpixel((0, 0), (0, 255, 0))
    found = compare_pixels(black, other)
    assert (found.largest, found.pixels, found.same) == (255, 1, False)
    assert found.psnr == pytest.approx(24.7712, abs=1e-4)  # 10 log10(300): 1 of 300 channels
    assert compare_pixels(black, black).same


# --- a stranger's recipe ------------------------------------------------------------------

Raw = dict[str, Any]


def arguments(**changes: Any) -> Callable[[Raw], None]:
    return lambda raw: raw["arguments"].update(changes)


def model(**changes: Any) -> Callable[[Raw], None]:
    return lambda raw: raw["model"].update(changes)


def scheduler(**changes: Any) -> Callable[[Raw], None]:
    return lambda raw: raw["scheduler"].update(changes)


def without(*path: str) -> Callable[[Raw], None]:
    def change(raw: Raw) -> None:
        for key in path[:-1]:
            raw = raw[key]
        del raw[path[-1]]

    return change


def both(*changes: Callable[[Raw], None]) -> Callable[[Raw], None]:
    def change(raw: Raw) -> None:
        for one in changes:
            one(raw)

    return change


def image_at(path: str) -> Callable[[Raw], None]:
    def change(raw: Raw) -> None:
        raw["arguments"]["image"] = raw["inputs"]["image"]["name"] = path

    return change


HOSTILE: dict[str, Callable[[Raw], None]] = {
    "no such command": lambda raw: raw.update(command="frobnicate"),
    "no command for images": lambda raw: raw.update(command="convert"),
    "itself": lambda raw: raw.update(command="rerun"),
    "another's arguments": lambda raw: raw.update(command="generate"),
    "the group": lambda raw: raw.update(command="pare"),
    "a command with blanks": lambda raw: raw.update(command="img2img --help"),
    "a newer pare": lambda raw: raw.update(format=99),
    "unknown setting": arguments(frobnicate=1),
    "help": arguments(help=True),
    "hidden": arguments(find_nan=True),
    "a prompt that steers": both(
        arguments(prompt="\x1b[2J\x07\n\r"), model(files={"\x1b[2J": "\x1b"}, name="\x1b[2J")
    ),
    "no prompt": without("arguments", "prompt"),
    "a prompt of another type": arguments(prompt=5),
    "a prompt that is a list": arguments(prompt=["a", "b"]),
    "a prompt that is an object": arguments(prompt={"a": 1}),
    "a prompt without end": arguments(prompt="x" * 30_000),
    "a prompt that is no text": arguments(prompt="\udcff"),
    "steps as text": arguments(steps="3"),
    "steps as a fraction": arguments(steps=3.5),
    "steps true": arguments(steps=True),
    "no steps": arguments(steps=0),
    "steps without end": arguments(steps=10**9),
    "guidance without end": arguments(guidance=1e30),
    "guidance that is nothing": arguments(guidance=[]),
    "strength as a list": arguments(strength=[0.5, 0.5]),
    "a size without end": arguments(size=[99_999_992, 8]),
    "a size of three": arguments(size=[8, 8, 8]),
    "a size of texts": arguments(size=["8", "8"]),
    "a flag that is text": arguments(karras="true"),
    "a flag that is a number": arguments(karras=1),
    "a count without end": arguments(count=10**6),
    "other seeds": lambda raw: raw.update(seeds=[1, 2, 3]),
    "seeds that are none": arguments(seed=[-1]),
    "seeds as a text": arguments(seed="0"),
    "an unheard-of scheduler": arguments(scheduler="dream"),
    "threads as text": arguments(threads="1"),
    "an option for a value": arguments(negative=["--out=x.png"]),
    "inputs that are not hashed": lambda raw: raw.update(inputs={}),
    "an input elsewhere": arguments(image="/etc/passwd"),
    "the passwords": image_at("/etc/passwd"),
    "the passwords, from here": image_at("../" * 30 + "etc/passwd"),
    "a device": image_at("/dev/zero"),
    "a terminal": image_at("/dev/stdin"),
    "the kernel's": image_at("/proc/self/mem"),
    "the environment": image_at("/proc/self/environ"),
    "a folder": image_at("."),
    "nothing": image_at(""),
    "a zero byte": image_at("a\0b"),
    "a name too long": image_at("x" * 5000),
    "another's home": image_at("~root/photo.png"),
    "an address": image_at("https://example.com/photo.png"),
    "the recipe's image": image_at("img2img-0.png"),
    "no model": without("arguments", "model"),
    "a model of another type": arguments(model=["model"]),
    "a model elsewhere": arguments(model="/"),
    "a model that is a device": arguments(model="/dev/zero"),
    "a model that is a pickle": arguments(model="evil.ckpt"),
    "a model on the Hub": arguments(model="example/model"),
    "a model on the Hub, at a commit": both(arguments(model="a/b"), model(revision="0" * 40)),
    "a model at an address": arguments(model="https://example.com/model.safetensors"),
    "a strange name": both(arguments(model="a/" + "b" * 200), model(revision="0" * 40)),
    "dots": both(arguments(model="a..b/c--d"), model(revision="0" * 40)),
    "a revision that is none": model(revision="../../main"),
    "a revision of another type": model(revision=7),
    "a revision in the arguments": arguments(revision=7),
    "a model without files": model(files={}),
    "a model without a word": lambda raw: raw.update(model={}),
    "files of another type": model(files=["unet"]),
    "files elsewhere": model(files={"../photo.png": "0"}),
    "files at the root": model(files={"/etc/passwd": "0"}),
    "another file": model(files={"unet/diffusion_pytorch_model.safetensors": "0" * 64}),
    "a file with a zero byte": model(files={"a\0b": "0"}),
    "configs of another type": model(configs=3),
    "a tokenizer elsewhere": arguments(tokenizer="/etc"),
    "a tokenizer that is a device": arguments(tokenizer="/dev/zero"),
    "no scheduler": lambda raw: raw.update(scheduler={}),
    "a scheduler of another type": scheduler(name=["ddim"]),
    "a scheduler's class": scheduler(name="__class__"),
    "a keyword for a scheduler": scheduler(hub_config={}),
    "another keyword": scheduler(where="here"),
    "a config of another type": scheduler(config=[]),
    "an empty config": scheduler(config={"frobnicate": 1}),
    "a schedule without end": lambda raw: raw["scheduler"]["config"].update(
        num_train_timesteps=10**9
    ),
    "betas that are text": lambda raw: raw["scheduler"]["config"].update(beta_start="0"),
    "betas that are long": lambda raw: raw["scheduler"]["config"].update(beta_start=10**400),
    "a device that is none": lambda raw: raw.update(device="/dev/sda"),
    "a dtype that is none": lambda raw: raw.update(dtype="object"),
    "too many threads": lambda raw: raw.update(threads=2**40),
}


@pytest.fixture(scope="module")
def victim(
    tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Image.Image, dict[str, Any]]:
    """A folder with what img2img made in it, that image, and its recipe."""
    folder = tmp_path_factory.mktemp("victim")
    shutil.copytree(tiny, folder / "model")
    photo = Image.linear_gradient("L").resize((24, 16)).convert("RGB")
    photo.save(folder / "photo.png")
    (folder / "evil.ckpt").write_bytes(pickle.dumps(Evil(str(folder / "was here"))))
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main([*COMMANDS["img2img"], "--model", "model", "--steps", "2"]) == 0
    finally:
        os.chdir(before)
    with Image.open(folder / "img2img-0.png") as image:
        image.load()
    return folder, image, raw_recipe(folder / "img2img-0.png")


class Evil:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def stop(*_: Any, **__: Any) -> None:
    raise AssertionError("reached")


@pytest.fixture
def nothing_from_afar(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no network, and whoever looks for it fails the test."""
    monkeypatch.setattr(socket.socket, "connect", stop)
    monkeypatch.setattr(socket, "getaddrinfo", stop)


@pytest.fixture
def nothing_runs(victim: Any, nothing_from_afar: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The victim's folder, where no model is loaded."""
    monkeypatch.chdir(victim[0])
    monkeypatch.setattr("pare.loading.modules.load_model", stop)
    monkeypatch.setattr("pare.loading.resolve.open_checkpoint", stop)
    return victim[0]


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    stats = {path: path.lstat() for path in folder.rglob("*")}
    return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_strangers_recipe_ends_in_a_sentence(
    nothing_runs: Path, victim: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    _, image, recipe = victim
    raw = json.loads(json.dumps(recipe))
    HOSTILE[name](raw)
    save_with_recipe(tmp_path / "a.png", image, json.dumps(raw))
    before = snapshot(nothing_runs)
    assert main(["rerun", str(tmp_path / "a.png")]) == 2
    assert len(error_line(capsys)) < 1000
    assert main(["rerun", str(tmp_path / "a.png"), "--show"]) in (0, 2)  # much can be shown
    assert "\x1b" not in "".join(capsys.readouterr())
    assert main(["rerun", str(tmp_path / "a.png"), "--compare", "img2img-0.png"]) in (0, 2)
    assert "\x1b" not in "".join(capsys.readouterr())
    assert snapshot(nothing_runs) == before
    assert not (nothing_runs / "was here").exists()


def test_the_recipe_that_the_hostile_ones_are_made_from_is_good(
    victim: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(victim[0])
    assert main(["rerun", "img2img-0.png", "--check"]) == 0


def test_a_pickle_that_is_what_it_was_is_not_run_either(
    victim: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, image, recipe = victim
    monkeypatch.chdir(folder)
    raw = json.loads(json.dumps(recipe))
    arguments(model="evil.ckpt")(raw)
    raw["model"]["files"] = {"evil.ckpt": sampled_fingerprint(folder / "evil.ckpt")}
    save_with_recipe(tmp_path / "a.png", image, json.dumps(raw))
    assert main(["rerun", str(tmp_path / "a.png")]) == 2
    assert "evil.ckpt" in error_line(capsys)
    assert not (folder / "was here").exists()


def test_a_large_run_is_said_before_it_begins(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make()
    change_recipe("generate-0.png", arguments(size=[4096, 4096], steps=900))
    monkeypatch.setattr("pare.loading.modules.load_model", stop)
    capsys.readouterr()
    with pytest.raises(AssertionError, match="reached"):
        main(["rerun", "generate-0.png"])
    said = capsys.readouterr().err
    assert "the recipe asks for 1 image of 4096 x 4096 in 900 steps, which may take minutes" in said


@pytest.mark.parametrize("command", [["rerun", "--check"], ["report", "--out", "page.html"]])
def test_a_run_longer_than_its_limit_ends(
    work: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    make("generate", "--steps", "900")
    capsys.readouterr()
    before = sorted(work.iterdir())
    assert main([*command, "generate-0.png", "--time-limit", "0.001"]) == 2  # 60 ms
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert "expected at most 0.06 seconds; allow more with --time-limit" in sentence
    assert sorted(work.iterdir()) == before


def test_steps_are_timed_by_the_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 3.0])
    monkeypatch.setattr("pare.cli.time_limit.time.monotonic", lambda: next(clock))
    assert list(TimedRun(None).follow(range(50), bar=iter)) == list(range(50))
    assert capsys.readouterr().err == "pare: by the first of 50 steps, these take 2 minutes\n"
    clock = iter([0.0, 3.0])
    steps = TimedRun(100.0).follow(range(50), bar=iter)
    assert next(steps) == 0
    with pytest.raises(RecipeError, match="will take 2 minutes, by its first step; expected at"):
        next(steps)


@pytest.mark.parametrize(
    ("minutes", "unattended", "seconds"),
    [(None, True, 1800), (None, False, None), (0, True, None), (2, False, 120)],
)
def test_limits(minutes: float | None, unattended: bool, seconds: float | None) -> None:
    assert limit_of(minutes, unattended=unattended) == seconds


@pytest.mark.parametrize(
    ("make_file", "sentence"),
    [
        (lambda path: path.write_bytes(b""), "is not an image"),
        (lambda path: path.write_text("{}"), "is not an image"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: os.mkfifo(path), "is not a regular file"),
        (lambda path: Image.new("RGB", (8, 8)).save(path), "carries no recipe"),
        (lambda path: Image.new("RGB", (8, 8)).save(path, "JPEG"), "carries no recipe"),
        (lambda path: Image.new("RGB", (8, 8)).save(path, "GIF"), "is not an image"),
        (lambda path: None, "no such file"),
    ],
)
def test_images_without_a_recipe(
    nothing_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    make_file: Callable[[Path], object], sentence: str,
) -> None:  # fmt: skip
    make_file(tmp_path / "a.png")
    for look in ([], ["--show"], ["--check"]):
        assert main(["rerun", str(tmp_path / "a.png"), *look]) == 2
        assert sentence in error_line(capsys)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
    | st.sampled_from(["model", "photo.png", "/dev/zero", "ddim", "--help", "-", "a/b", "cuda"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner,
                                                                max_size=3),
    max_leaves=5,
)  # fmt: skip


@st.composite
def damage(draw: st.DrawFn) -> Callable[[Raw], None]:
    """Something else at one place of a recipe, or nothing there."""
    keys = draw(st.lists(st.integers(0, 40), min_size=1, max_size=3))
    value, leave_out = draw(JSON), draw(st.integers(0, 4)) == 0

    def change(raw: Raw) -> None:
        place: Any = raw
        names = sorted(place)
        for key in keys[:-1]:
            inner = place[names[key % len(names)]]
            if not isinstance(inner, dict) or not inner:
                break
            place, names = inner, sorted(inner)
        name = names[keys[-1] % len(names)]
        if leave_out:
            del place[name]
        else:
            place[name] = value

    return change


@settings(max_examples=200)
@given(changes=st.lists(damage(), min_size=1, max_size=3))
@example(changes=[])
def test_any_recipe_is_run_as_it_says_or_refused(
    victim: Any, changes: list[Callable[[Raw], None]]
) -> None:
    raw = json.loads(json.dumps(victim[2]))
    for change in changes:
        change(raw)
    command = cli.commands["img2img"]
    try:
        recipe = parse_recipe(json.dumps(raw), "a.png")
        told = check_recipe(command, recipe, "a.png")
        found = find_scheduler(recipe.scheduler)
        find_machine(recipe)
        changed_files(recipe.model, victim[0] / "model")
    except PareError:
        return
    # What click reads is what the recipe says, number by number.
    read = parse(command, told, "a.png").params
    assert {key: plain(read[key]) for key in told} == told
    assert recipe.seed in batch_of(recipe)
    assert found.describe()["name"] in SCHEDULERS
    assert "\x1b" not in for_a_shell(command, told)


NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)


@given(
    name=st.sampled_from(sorted(SCHEDULERS)),
    changes=st.dictionaries(st.sampled_from(sorted(SCHEDULER)), JSON | NUMBERS, max_size=2),
    options=st.dictionaries(st.sampled_from(["eta", "order", "karras", "name"]), JSON, max_size=1),
)
def test_any_description_is_a_scheduler_or_an_error(
    name: str, changes: dict[str, Any], options: dict[str, Any]
) -> None:
    description = build_scheduler(SCHEDULER, "a test", name).describe()
    description |= {"config": description["config"] | changes}
    try:
        found = find_scheduler(description | options)
        found.timesteps(3)
    except PareError:
        return


# --- back to the command line -------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
PROMPTS = TEXT | st.sampled_from(
    ["", "-", "--", "--help", "--seed=3", "a 'b' \"c\" $d `e` \\", "\x1b[2J\n"]
)


def recipe_of(name: str, given: dict[str, Any]) -> Recipe:
    inputs = {str(key): {"name": str(given[key]), "sha256": "0"} for key in ("image", "mask")
              if key in given}  # fmt: skip
    return Recipe(
        command=name, arguments=given, inputs=inputs, model={}, scheduler={}, seeds=[9], index=0,
        device="cpu", dtype="float32", threads=1, versions={},
    )  # fmt: skip


@given(
    prompt=PROMPTS, negative=PROMPTS, guidance=st.floats(-1000, 1000),
    size=st.none() | st.tuples(st.integers(1, 100), st.integers(1, 100)),
    karras=st.sampled_from([None, True, False]),
)  # fmt: skip
def test_a_command_line_says_what_the_recipe_says(
    prompt: str, negative: str, guidance: float, size: tuple[int, int] | None, karras: bool | None
) -> None:
    wanted = {
        "prompt": prompt, "negative": negative, "guidance": guidance, "karras": karras,
        "size": size and [8 * side for side in size], "seed": [9], "count": 1,
    }  # fmt: skip
    command = cli.commands["generate"]
    assert check_recipe(command, recipe_of("generate", wanted), "a.png") == wanted
    line = for_a_shell(command, wanted)
    assert line.isprintable()
    if "$'" not in line:
        with command.make_context("generate", shlex.split(line)[2:]) as context:
            assert {key: plain(context.params[key]) for key in wanted} == wanted


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("prompt", ["a\nb", "\x1b[2J'\\n", "über\x07", "tab\t'q' $(date)", "a!b"])
def test_a_shell_reads_the_command_line_as_it_is_meant(prompt: str) -> None:
    line = for_a_shell(cli.commands["generate"], {"prompt": prompt})
    script = "pare() { printf '%s\\0' \"$@\"; }\n" + line
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:2] == ["generate", prompt]


@pytest.mark.parametrize("name", IMAGE_COMMANDS)
def test_every_commands_examples_survive_the_way_through_a_recipe(name: str) -> None:
    """So will whatever a new command takes, if its help ends with an example of it."""
    command: Any = cli.commands[name]
    for line in command.examples:
        typed = shlex.split(line)[2:]
        given = command.make_context(name, typed, click.Context(cli))
        first, read = plain(given.params), given.command  # `sweep --command` reads another's line
        again = read.make_context(name, words(read, json.loads(json.dumps(first))))
        assert plain(again.params) == first


def test_an_argument_of_another_pare() -> None:
    with pytest.raises(RecipeError, match="generate has no setting 'frobnicate'"):
        words(cli.commands["generate"], {"frobnicate": 1})
    with pytest.raises(click.UsageError):
        cli.commands["generate"].make_context("generate", [])


# --- the built-in model -------------------------------------------------------------------


def test_a_road_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    made = ["generate", "a snowy road", "--steps", "2", "--seed", "7", "--seed", "8"]
    assert main([*made, "--threads", "1"]) == 0
    assert main(["rerun", "generate-8.png"]) == 0
    torch.set_num_threads(threads)
    assert "is the same to the pixel" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", SCHEDULERS_OF_MANY_KINDS)
@pytest.mark.parametrize("command", COMMANDS)
def test_roads_by_every_command_again_to_the_pixel(
    run_pare: RunPare, tmp_path: Path, command: str, scheduler: str
) -> None:
    Image.linear_gradient("L").resize((100, 76)).convert("RGB").save(tmp_path / "photo.png")
    mask = Image.new("L", (100, 76))
    mask.paste(255, (16, 16, 80, 60))
    mask.save(tmp_path / "mask.png")
    more = [*SCHEDULERS_OF_MANY_KINDS[scheduler], "--steps", "4", "--count", "2"]
    done = run_pare(*COMMANDS[command], *more)
    assert done.returncode == 0, done.stderr
    # Another process, in another folder.
    (tmp_path / "elsewhere").mkdir()
    done = run_pare("rerun", f"../{command}-1.png", "--check", cwd=tmp_path / "elsewhere")
    assert done.returncode == 0, done.stdout
