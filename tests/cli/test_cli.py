"""The command: what it prints where, its exit codes, and what it leaves on the disk."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pare.cli.main
import pare.verify
from pare.cli.main import main
from pare.cli.option_types import SCHEDULER_NAMES
from pare.cli.terminal import OTHER_WAITING
from pare.errors import ModelError
from pare.io.whole_files import sha256
from pare.pipeline import Pipeline
from pare.recipes.recipe import read_recipe
from pare.schedulers import SCHEDULERS
from tests.conftest import ROOT, RunPare
from tests.fake_pipeline import FakePipeline


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakePipeline:
    """The commands run on a fake model, in an empty folder."""
    pipe = FakePipeline()
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda *_, **__: pipe)
    monkeypatch.chdir(tmp_path)
    return pipe


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr; nothing on stdout."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pare: ")
    assert captured.err.count("\n") == 1
    return captured.err


# --- help ------------------------------------------------------------------------------


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pare {pare.__version__}\n"
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    for command in pare.cli.main.cli.commands:
        assert f"  {command} " in listed
        assert main([command, "--help"]) == 0
        assert capsys.readouterr().err == ""


def processor_seconds() -> float:
    """What the processes that ended have used: the time to wait for if nothing else runs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_help_comes_at_once(run_pare: RunPare) -> None:
    before = processor_seconds()
    assert run_pare("--help").returncode == 0
    assert processor_seconds() - before < 0.5


def test_the_help_names_the_schedulers_that_there_are() -> None:
    assert set(SCHEDULER_NAMES) == set(SCHEDULERS) - {"ddim-inverse"}


# --- what a user gets wrong --------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("generate", "Missing argument 'PROMPT'"),
        ("generate x y", "unexpected extra argument"),
        ("generate x --frobnicate", "No such option"),
        ("frobnicate", "No such command 'frobnicate'"),
        ("generate x --steps many", "not a valid integer"),
        ("generate x --steps 0", "steps is 0; expected a whole number from 1 to 1000"),
        ("generate x --steps 1001", "steps is 1001"),
        ("generate x --guidance nan", "guidance is nan"),
        ("generate x --guidance inf", "guidance is inf"),
        ("generate x --rescale 2", "rescale is 2.0"),
        ("generate x --eta -1", "eta is -1.0"),
        ("generate x --scheduler dream", "not one of 'ddim'"),
        ("generate x --size 100x100", "a multiple of 8"),
        ("generate x --size huge", "WIDTHxHEIGHT"),
        ("generate x --seed -2", "--seed is '-2'; expected a whole number"),
        ("generate x --seed 9223372036854775808", "2**63 - 1"),
        ("generate x --seed 7 --seed 7", "given 2 times"),
        ("generate x --seed 7 --seed 8 --count 2", "several seeds, or one seed and a count"),
        ("generate x --count 0", "count is 0"),
        ("generate x --dtype int8", "not one of 'auto'"),
        ("generate x --threads 0", "not in the range"),
        ("generate x --out missing/a.png", "missing does not exist"),
        ("generate x --out text.txt", "ends in .png"),
        ("generate x --out text.txt/a.png", "does not exist"),
        ("generate x --out missing/", "ends in .png"),
        ("generate x --out here.png", "here.png exists; pass --force"),
        ("generate x --out there.png", "there.png"),
        ("img2img missing.png x", "missing.png: no such file"),
        ("img2img . x", ".: is a folder"),
        ("img2img text.txt x", "text.txt is not an image"),
        ("img2img here.png x --strength 0", "strength is 0, which runs no step"),
        ("img2img here.png x --strength 1.5", "strength is 1.5"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(
    fake: FakePipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    arguments: str, sentence: str,
) -> None:  # fmt: skip
    Image.new("RGB", (16, 16)).save(tmp_path / "here.png")
    Path("there.png").mkdir()
    Path("there.png/generate-0.png").touch()
    Path("text.txt").write_text("text\n")
    before = names(tmp_path)
    assert main(arguments.split()) == 2
    assert sentence in error_line(capsys)
    assert names(tmp_path) == before
    assert fake.asked == {}  # found before the model ran


def test_a_prompt_that_is_no_text(fake: FakePipeline, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", os.fsdecode(b"a\xffb")]) == 2
    assert "expected UTF-8" in error_line(capsys)


def test_file_names_cannot_steer_the_terminal(
    fake: FakePipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["img2img", "a\n\x1b[2Jb.png", "x"]) == 2
    line = error_line(capsys)
    assert "\x1b" not in line
    assert "\\x1b[2Jb.png: no such file" in line


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--model empty", "empty has no model_index.json"),
        ("--model missing", "'missing' does not exist"),
        ("--device cuda:99", "is not on this machine"),
        ("--device abacus", "the device 'abacus'"),
        ("--scheduler euler --eta 0.5", "eta"),
        ("--scheduler ddim --karras", "karras"),
    ],
)
def test_mistakes_that_the_model_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: str, sentence: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    assert main(["generate", "x", "--steps", "1", *arguments.split()]) == 2
    assert sentence in error_line(capsys)
    assert names(tmp_path) == ["empty"]


# --- bugs, interrupts, full disks --------------------------------------------------------

PATCHED = """
import os, signal, sys
import pare.cli.main, pare.recipes.recipe
{patch}
sys.exit(pare.cli.main.main(sys.argv[1:]))
"""


def run_patched(tmp_path: Path, patch: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`pare ARGUMENTS` in a process in which something has been replaced."""
    fake = "from tests.fake_pipeline import FakePipeline\n"
    fake += "from pare.pipeline import Pipeline\n"
    fake += "Pipeline.from_pretrained = lambda *_, **__: FakePipeline()\n"
    return subprocess.run(
        [sys.executable, "-c", PATCHED.format(patch=fake + patch), *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=120,
    )


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    patch = (
        "def generate(*_, **__): raise RuntimeError('injected')\nFakePipeline.generate = generate"
    )
    done = run_patched(tmp_path, patch, "generate", "x")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Traceback (most recent call last)")
    assert done.stderr.endswith("\nRuntimeError: injected\n")
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError, KeyError, EOFError, TypeError])
def test_no_other_error_is_taken_for_the_user_s(
    fake: FakePipeline, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def generate(*_: Any, **__: Any) -> None:
        raise error("injected")

    monkeypatch.setattr(FakePipeline, "generate", generate)
    with pytest.raises(error, match="injected"):
        main(["generate", "x"])


def test_ctrl_c_while_writing_leaves_nothing_half_written(tmp_path: Path) -> None:
    patch = """
whole = pare.recipes.recipe.save_image
def save_image(image, recipe, suffix, file):
    if recipe.seed == 1:
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGINT)
    whole(image, recipe, suffix, file)
pare.recipes.recipe.save_image = save_image
"""
    done = run_patched(tmp_path, patch, "generate", "x", "--count", "3")
    assert done.returncode == 130
    assert done.stderr == "pare: interrupted\n"
    assert done.stdout == "generate-0.png\n"
    assert names(tmp_path) == ["generate-0.png"]
    assert read_recipe(tmp_path / "generate-0.png").seeds == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "code", "word"), [("INT", 130, "interrupted"), ("TERM", 143, "terminated")]
)
def test_a_signal_that_a_library_swallowed_still_ends_the_run(
    name: str, code: int, word: str, tmp_path: Path
) -> None:
    """As numpy does where torch's C code imports it, and the signal comes just then."""
    patch = f"""
def generate(*given, **more):
    try:
        os.kill(os.getpid(), signal.SIG{name})
        for _ in range(1000):
            pass
    except KeyboardInterrupt:
        pass
    raise ImportError("cannot load module more than once per process")
FakePipeline.generate = generate
"""
    done = run_patched(tmp_path, patch, "generate", "x")
    assert done.returncode == code, done.stderr
    assert done.stderr == f"pare: {word}\n"


def test_a_full_disk_keeps_the_images_that_are_whole(
    fake: FakePipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole = pare.recipes.recipe.save_image

    def save_image(image: Image.Image, recipe: Any, suffix: str, file: Any) -> None:
        if recipe.seed == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(image, recipe, suffix, file)

    monkeypatch.setattr(pare.recipes.recipe, "save_image", save_image)
    assert main(["generate", "x", "--count", "3"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "pare: the disk is full\n"
    assert captured.out == "generate-0.png\n"
    assert names(tmp_path) == ["generate-0.png"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_stdout_on_a_full_disk(run_pare: RunPare) -> None:
    with open("/dev/full", "w") as full:
        done = run_pare("--version", stdout=full)
    assert (done.returncode, done.stderr) == (2, "pare: the disk is full\n")


def test_nobody_reads_the_output(run_pare: RunPare) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run_pare("--help", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_os_errors_without_words_are_bugs(
    fake: FakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(*_: Any, **__: Any) -> None:
        raise OSError("a library's own, without a number")

    monkeypatch.setattr(FakePipeline, "generate", generate)
    with pytest.raises(OSError, match="a library's own"):
        main(["generate", "x"])


def test_warnings_are_one_line_and_no_failure(
    fake: FakePipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = FakePipeline.generate

    def generate(self: FakePipeline, *given: Any, **more: Any) -> Any:
        warnings.warn("the prompt has\n80 tokens", UserWarning, stacklevel=1)
        warnings.warn("for developers", DeprecationWarning, stacklevel=1)
        warnings.warn("for developers", FutureWarning, stacklevel=1)
        return whole(self, *given, **more)

    monkeypatch.setattr(FakePipeline, "generate", generate)
    assert main(["generate", "x"]) == 0
    assert capsys.readouterr().err == "pare: warning: the prompt has 80 tokens\n"


def test_the_process_is_left_as_it_was(fake: FakePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY", raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "0")
    for name in OTHER_WAITING:
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ), list(warnings.filters), warnings.showwarning, os.getcwd()
    seen: dict[str, Any] = {}

    def generate(*_: Any, **__: Any) -> None:
        seen.update(os.environ)
        raise ModelError("no")

    monkeypatch.setattr(FakePipeline, "generate", generate)
    assert main(["generate", "x"]) == 2
    assert (dict(os.environ), list(warnings.filters), warnings.showwarning, os.getcwd()) == before
    assert seen["TRANSFORMERS_VERBOSITY"] == "error"
    assert seen["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    seen.clear()
    assert main(["generate", "x"]) == 2
    assert "OMP_WAIT_POLICY" not in seen
    assert seen["HF_HUB_DISABLE_PROGRESS_BARS"] == "0"  # the user's own word


# --- outputs -----------------------------------------------------------------------------


def test_names_of_the_images(
    fake: FakePipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("folder").mkdir()
    for arguments, expected in (
        ("", ["generate-0.png"]),
        ("--out a.png", ["a.png"]),
        ("--out b.PNG --seed 7", ["b.PNG"]),
        ("--out c.png --seed 7 --seed 3", ["c-7.png", "c-3.png"]),
        ("--out folder --seed 7 --count 2", ["folder/generate-7.png", "folder/generate-8.png"]),
        ("--out folder/", ["folder/generate-0.png"]),
    ):
        assert main(["generate", "x", *arguments.split()]) == 0
        assert capsys.readouterr().out.split() == expected
        assert all(Path(name).is_file() for name in expected)
    assert len(names(tmp_path)) + len(names(tmp_path / "folder")) == 9


def test_nothing_is_overwritten_without_force(
    fake: FakePipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a-1.png").write_bytes(b"mine")
    Path("folder").mkdir()
    Path("folder/generate-1.png").write_bytes(b"mine")
    for out, taken in (("a.png", "a-1.png"), ("folder", "folder/generate-1.png")):
        assert main(["generate", "x", "--count", "2", "--out", out]) == 2
        assert f"{taken} exists; pass --force to overwrite it" in error_line(capsys)
        assert names(tmp_path) == ["a-1.png", "folder"]
        assert names(tmp_path / "folder") == ["generate-1.png"]
        assert Path(taken).read_bytes() == b"mine"
        assert main(["generate", "x", "--count", "2", "--out", out, "--force"]) == 0
        assert Image.open(taken).getpixel((0, 0)) == (1, 1, 1)
        Path(taken.replace("1", "0")).unlink()
        capsys.readouterr()


def test_without_out_a_second_run_takes_new_names(
    fake: FakePipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("generate-1.png").write_bytes(b"mine")
    for arguments, expected in (
        ("", ["generate-0.png"]),
        ("", ["generate-0-2.png"]),
        ("--count 2", ["generate-0-3.png", "generate-1-3.png"]),
        ("--count 2 --force", ["generate-0.png", "generate-1.png"]),
    ):
        assert main(["generate", "x", *arguments.split()]) == 0
        assert capsys.readouterr().out.split() == expected
    Path("outputs").mkdir()
    for expected in (["outputs/generate-0.png"], ["outputs/generate-0-2.png"]):
        assert main(["generate", "x"]) == 0
        assert capsys.readouterr().out.split() == expected


def test_a_name_that_another_run_took_meanwhile_is_counted_up(
    fake: FakePipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole = FakePipeline.generate

    def generate(self: FakePipeline, *given: Any, **more: Any) -> Any:
        Path("generate-0.png").write_bytes(b"another run's")
        return whole(self, *given, **more)

    monkeypatch.setattr(FakePipeline, "generate", generate)
    assert main(["generate", "x"]) == 0
    assert capsys.readouterr().out == "generate-0-2.png\n"
    assert Path("generate-0.png").read_bytes() == b"another run's"


def test_two_seeds_make_two_images_with_their_recipes(fake: FakePipeline, tmp_path: Path) -> None:
    arguments = ["generate", "a road", "--seed", "200", "--seed", "0", "--guidance", "0"]
    assert main(arguments) == 0
    assert fake.asked["seeds"] == [200, 0]
    assert fake.asked["guidance"] == 0
    for index, seed in enumerate((200, 0)):
        path = tmp_path / f"generate-{seed}.png"
        assert Image.open(path).getpixel((0, 0)) == (seed, seed, seed)
        recipe = read_recipe(path)
        assert (recipe.command, recipe.seeds, recipe.index) == ("generate", [200, 0], index)
        assert recipe.seed == seed
        assert recipe.arguments["prompt"] == "a road"
        assert recipe.arguments["steps"] == 25  # defaults are recorded as well
        assert recipe.arguments["guidance"] == 0
        assert recipe.threads == torch.get_num_threads()
        assert (recipe.device, recipe.dtype) == ("cpu", "float32")


def test_json(fake: FakePipeline, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "x", "--count", "2", "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert captured.err == ""
    assert result["command"] == "generate"
    assert [image["seed"] for image in result["images"]] == [0, 1]
    assert result["images"][1] == {"path": "generate-1.png", "seed": 1, "width": 24, "height": 16}
    assert result["seconds"] >= 0


def test_file_names_that_are_no_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"a\xff.png")
    done = run_patched(tmp_path, "", "generate", "x", "--out", name)
    assert (done.returncode, done.stdout) == (0, name + "\n"), done.stderr
    assert os.listdir(os.fsencode(tmp_path)) == [b"a\xff.png"]


def image_of(path: Path, width: int, height: int) -> Image.Image:
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    image.save(path)
    return image


def test_img2img_works_at_multiples_of_8_and_hands_back_the_input_s_size(
    fake: FakePipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = image_of(tmp_path / "a.png", 30, 19)
    arguments = ["img2img", "a.png", "x", "--strength", "0.5", "--seed", "3"]
    assert main([*arguments, "--out", "b.png"]) == 0
    assert fake.asked["image"].size == (32, 24)
    assert fake.asked["strength"] == 0.5
    made = Image.open(tmp_path / "b.png")
    assert made.tobytes() == bytes(255 - level for level in image.tobytes())  # the fake inverts
    recipe = read_recipe(tmp_path / "b.png")
    assert recipe.inputs["image"] == {"name": "a.png", "sha256": sha256(tmp_path / "a.png")}

    started = ["img2img", "a.png", "x", "--seed", "3", "--steps", "20", "--start"]
    assert main([*started, "15", "--out", "d.png"]) == 0
    assert fake.asked["strength"] == 0.25
    assert main([*started, "20"]) == 2
    assert "--start is 20; expected a step from 0 to 19" in capsys.readouterr().err

    assert main([*arguments, "--size", "64x40", "--out", "c.png"]) == 0
    assert fake.asked["image"].size == (64, 40)
    assert Image.open(tmp_path / "c.png").size == (30, 19)
    assert capsys.readouterr().err == ""


def test_an_image_far_larger_than_the_model_s_is_said(
    fake: FakePipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image_of(tmp_path / "a.png", 100, 80)
    assert main(["img2img", "a.png", "x"]) == 0
    assert "trained at 24 x 16" in capsys.readouterr().err


@pytest.fixture
def blended(fake: FakePipeline, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """`pare blend` on a fake technique; what it was called with."""
    from pare.runtime.memory_plan import Plan
    from techniques import blended

    asked: dict[str, Any] = {}

    def blend(pipe: Any, image: Any, mask: Any, prompt: Any, seeds: Any, **given: Any) -> Any:
        asked.update(given, image=image, mask=mask, prompt=prompt, seeds=seeds)
        exact, changed = blended.Difference(math.inf, 0), blended.Difference(25.0, 91)
        outside = [exact, changed][: len(seeds)]
        latents = torch.zeros(len(seeds), 4, 2, 2)
        plan = Plan(len(seeds), batch=len(seeds), tile=None)
        return blended.Blended(
            images=[image] * len(seeds),
            latents=latents,
            outside=outside,
            vae_alone=changed,
            scores=None,
            plan=plan,
        )

    monkeypatch.setattr(blended, "blend", blend)
    return asked


def test_blend(blended: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = image_of(tmp_path / "a.png", 24, 16)
    mask = Image.new("L", (12, 8), 255)
    mask.paste(0, (0, 0, 5, 5))
    mask.save(tmp_path / "m.png")
    arguments = ["blend", "a.png", "--mask", "m.png", "a moon", "--invert-mask", "--count", "2"]
    assert main([*arguments, "--history", "drop", "--feather", "0", "--out", "b.png"]) == 0
    assert (blended["prompt"], blended["seeds"]) == ("a moon", [0, 1])
    assert (blended["history"], blended["feather"]) == ("drop", 0)
    assert (blended["method"], blended["strength"], blended["size"]) == (None, None, None)
    assert blended["image"].tobytes() == image.tobytes()
    assert blended["mask"].getpixel((0, 0)) == 255
    assert blended["mask"].getpixel((11, 7)) == 0
    captured = capsys.readouterr()
    assert captured.out == "b-0.png\nb-1.png\n"
    scaled, first, second, alone = captured.err.splitlines()
    assert scaled.startswith("pare: warning: the mask is 12 x 8: scaled to the image's 24 x 16")
    assert first == "b-0.png, outside the mask: IMAGE's pixels, exactly"
    assert second == "b-1.png, outside the mask: 25.0 dB from IMAGE, at most 91 of 255"
    assert "without an edit: 25.0 dB" in alone
    recipe = read_recipe(tmp_path / "b-1.png")
    assert (recipe.command, recipe.index) == ("blend", 1)
    for name, path in (("image", "a.png"), ("mask", "m.png")):
        assert recipe.inputs[name] == {"name": path, "sha256": sha256(tmp_path / path)}

    more = ["--method", "both", "--size", "32x24", "--strength", "0.5", "--background", "decoder"]
    assert main([*arguments, *more, "--decoder-steps", "9", "--json"]) == 0
    assert (blended["method"], blended["strength"], blended["size"]) == ("both", 0.5, (32, 24))
    assert (blended["background"], blended["decoder_steps"]) == ("decoder", 9)
    result = json.loads(capsys.readouterr().out)
    assert result["outside"] == [{"psnr": None, "largest": 0}, {"psnr": 25.0, "largest": 91}]


@pytest.mark.parametrize(
    ("mask", "more", "sentence"),
    [
        (Image.new("L", (24, 16), 0), [], "m.png marks nothing to edit"),
        (Image.new("L", (24, 16), 255), ["--invert-mask"], "m.png marks nothing to edit"),
        (Image.new("L", (16, 24), 255), [], "the mask is 16 x 24 and the image 24 x 16"),
        (Image.new("L", (24, 16), 255), ["--feather", "-1"], "feather is -1.0"),
        (Image.new("L", (24, 16), 255), ["--shrink", "99"], "not in the range"),
        (Image.new("L", (24, 16), 255), ["--background", "blur"], "is not one of 'paste'"),
        (None, [], "m.png: no such file"),
    ],
)
def test_masks_that_cannot_be(
    blended: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    mask: Image.Image | None, more: list[str], sentence: str,
) -> None:  # fmt: skip
    image_of(tmp_path / "a.png", 24, 16)
    if mask:
        mask.save(tmp_path / "m.png")
    assert main(["blend", "a.png", "--mask", "m.png", "a moon", *more]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert sentence in errors[-1]
    assert blended == {}


def test_a_mask_is_needed(blended: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["blend", "a.png", "a moon"]) == 2
    assert "Missing option '--mask'" in error_line(capsys)


@pytest.mark.parametrize("passed", [True, False])
def test_a_broken_bound_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], passed: bool
) -> None:
    asked: dict[str, Any] = {}

    def run_verify(model: str, **given: Any) -> Any:
        asked.update(given, model=model)
        return SimpleNamespace(passed=passed, table=lambda: "table", to_json=lambda: {"rows": []})

    monkeypatch.setattr(pare.verify, "run_verify", run_verify)
    only = ["--only", "unet", "--only", "vae"]
    assert main(["verify", *only, "--revision", "v1"]) == (0 if passed else 1)
    assert (asked["model"], asked["revision"]) == ("roads", "v1")
    assert asked["only"] == ("unet", "vae")
    assert capsys.readouterr().out == "table\n"
    assert main(["verify", "--json"]) == (0 if passed else 1)
    assert asked["only"] is None
    assert json.loads(capsys.readouterr().out) == {"rows": []}


def test_bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import pare.verify.speed

    def run_bench(model: str, **given: Any) -> Any:
        assert (model, given["pairs"], given["device"]) == ("sd1", 2, "cpu")
        assert given["revision"] is None
        return SimpleNamespace(passed=True, table=lambda: "table", to_json=lambda: {"measures": []})

    monkeypatch.setattr(pare.verify.speed, "run_bench", run_bench)
    arguments = ["bench", "--model", "sd1", "--pairs", "2", "--device", "cpu"]
    assert main(arguments) == 0
    assert main([*arguments, "--json"]) == 0
    assert capsys.readouterr().out == 'table\n{\n  "measures": []\n}\n'


# --- the built-in model ------------------------------------------------------------------


def test_the_built_in_model_end_to_end(run_pare: RunPare, tmp_path: Path) -> None:
    command = [
        "generate",
        "a snowy road in the forest",
        "--steps",
        "10",
        "--seed",
        "7",
        "--seed",
        "8",
    ]
    done = run_pare(*command, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    first, second = (Image.open(tmp_path / f"generate-{seed}.png") for seed in (7, 8))
    assert first.size == (128, 128)
    assert first.tobytes() != second.tobytes()
    recipe = read_recipe(tmp_path / "generate-7.png")
    assert recipe.arguments["model"] == "roads"
    assert recipe.scheduler["name"] in SCHEDULERS
    assert recipe.model["name"] == "roads"
    assert str(ROOT) not in recipe.to_json()  # an image does not tell where its maker works
    # Again, to the pixel.
    assert run_pare(*command, "--out", "again.png").stdout == "again-7.png\nagain-8.png\n"
    assert Image.open(tmp_path / "again-7.png").tobytes() == first.tobytes()


def test_an_image_takes_seconds_from_a_cold_start(run_pare: RunPare) -> None:
    before = processor_seconds()
    assert run_pare("generate", "a snowy road in the forest", "--steps", "25").returncode == 0
    assert processor_seconds() - before < 10  # on one thread


def test_img2img_hands_back_the_input_s_size(run_pare: RunPare, tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((100, 75)).convert("RGB").save(tmp_path / "a.jpg")
    done = run_pare("img2img", "a.jpg", "a road by night", "--steps", "20", "--out", "b.png")
    assert (done.returncode, done.stdout) == (0, "b.png\n")
    assert done.stderr.startswith("b.png: judge: ")
    assert done.stderr.count("\n") == 1
    assert Image.open(tmp_path / "b.png").size == (100, 75)
    recipe = read_recipe(tmp_path / "b.png")
    assert recipe.inputs["image"]["name"] == "a.jpg"
    assert re.fullmatch("[0-9a-f]{64}", recipe.inputs["image"]["sha256"])


def test_blend_keeps_what_the_mask_keeps(run_pare: RunPare, tmp_path: Path) -> None:
    image = image_of(tmp_path / "a.png", 100, 76)
    mask = Image.new("RGBA", (50, 38))
    mask.paste("white", (10, 8, 40, 30))
    mask.save(tmp_path / "m.png")
    done = run_pare("blend", "a.png", "--mask", "m.png", "a car", "--steps", "4", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outside"] == [{"psnr": None, "largest": 0}]
    made = np.asarray(Image.open(tmp_path / "blend-0.png"))
    marked = np.asarray(mask.getchannel("A").resize((100, 76), Image.Resampling.NEAREST)) > 0
    assert np.array_equal(made[~marked], np.asarray(image)[~marked])
    assert not np.array_equal(made[marked], np.asarray(image)[marked])
    assert read_recipe(tmp_path / "blend-0.png").scheduler["name"] == "dpm++2m"


def test_a_real_ctrl_c(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pare", "generate", "a road", "--steps", "1000"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=60)
    assert (process.returncode, output, error) == (130, "", "pare: interrupted\n")
    assert names(tmp_path) == []


def test_ctrl_c_within_exec_as_imports_have_it(tmp_path: Path) -> None:
    (tmp_path / "interrupted.py").write_text(
        "import sys\nfrom pare.cli.terminal import run_in_words\n"
        "sys.exit(run_in_words(lambda: exec('raise KeyboardInterrupt')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "interrupted"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (130, "pare: interrupted\n")
