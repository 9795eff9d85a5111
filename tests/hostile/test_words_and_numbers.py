"""Prompts and settings: what is out of range, and what is merely strange."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pare.pipeline import Pipeline
from pare.unet import UNet
from tests.hostile.command import Command

QUICK = ("--steps", "1", "--size", "16x16", "--out", "out")

WRONG_SETTINGS = """
--steps 0|--steps -1|--steps 1001|--steps 1e3|--steps 0x10|--steps 1.5|--steps nan|--steps ten
--steps 99999999999999999999|--steps=|--guidance nan|--guidance inf|--guidance -inf
--guidance 1e400|--guidance 1e9|--guidance 7,5|--guidance=|--rescale -0.1|--rescale 1.1
--rescale nan|--seed -2|--seed 9223372036854775808|--seed 1180591620717411303424|--seed 0x7
--seed 1e3|--seed nan|--seed=|--seed 1_|--seed 7 --seed 7|--seed 1 --seed 2 --count 2
--seed 9223372036854775807 --count 2|--count 0|--count -1|--count 257|--count 1000000000000
--size 0x0|--size 9|--size 8x|--size x8|--size -8x8|--size 12x16|--size 8200x8|--size 16x16x16
--size 999999999999x8|--size 8.0x8|--size nanxnan|--size=|--size ٨x٨|--eta -0.1|--eta nan
--eta 2|--eta inf|--scheduler dream|--scheduler=|--scheduler DDIMM|--device cuda:99|--device tpu
--device cuda:128|--device cuda:9999999999|--device cuda:1:2|--device CUDA|--device mps:7
--device cpu:7|--device=|--device cuda:-1|--device mps|--dtype int8|--dtype float64|--threads 0
--threads 1000000|--threads -1|--revision main|--tokenizer nowhere|--frobnicate|--out
--json=1|--steps 1 2|--scheduler euler --eta 0.5|--scheduler ddim --karras
"""
WRONG_BLENDS = """
--strength 0|--strength -0.1|--strength 1.01|--strength nan|--strength inf|--strength=
--feather -1|--feather nan|--feather 1e9|--shrink -1|--shrink 17|--background magic
--history forget|--rounding down|--mask=
"""


def listed(table: str) -> list[str]:
    return [words for line in table.strip().splitlines() for words in line.split("|")]


@pytest.mark.parametrize("words", listed(WRONG_SETTINGS))
def test_wrong_settings(pare: Command, model: Path, words: str) -> None:
    pare.refuses("generate", "x", "--model", "model", *QUICK, *words.split(" "))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_gpu_that_is_not_there(pare: Command, model: Path, device: str) -> None:
    pare.refuses("generate", "x", "--model", "model", *QUICK, "--device", device, words=device)


def test_a_report_by_a_name_that_is_not_text(loaded: Command) -> None:
    name = os.fsdecode(b"a\xffb.html")
    code, _, err = loaded.run(("report", "x", "--steps", "1", "--size", "16x16", "--out", name))
    assert code == 0, err
    assert os.path.exists(name)


def test_memory_that_a_file_asks_for(
    pare: Command, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is named, not the size of the image."""
    for failure in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: …")):
        monkeypatch.setattr("pare.loading.checkpoint.safe_open", raising(failure))
        err = pare.refuses("generate", "x", "--model", "model", *QUICK, words="reading the model")
        assert "--size" not in err


def raising(error: Exception) -> Any:
    def fail(*given: object, **named: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("words", listed(WRONG_BLENDS))
def test_wrong_settings_of_blend(loaded: Command, words: str) -> None:
    given = ("blend", "good.png", "--mask", "mask.png", "x", "--steps", "1", "--out", "out")
    loaded.refuses(*given, *words.split(" "))


@pytest.mark.parametrize("words", ["", "frobnicate", "generate", "blend", "--frobnicate", "\udcff"])
def test_no_such_command(pare: Command, words: str) -> None:
    code, out, err = pare.run(words.split())
    assert (code, out) == (2, "")
    assert "Traceback" not in err


PROMPTS: dict[str, str] = {
    "empty": "",
    "blanks": " \t\n ",
    "nul": "a\0b",
    "control": "".join(map(chr, range(32))) + "\x7f\x9b",
    "escape": "\x1b[2J\x1b]0;title\x07",
    "right-to-left": "\u202eדרך מושלגת\u202c عربى",
    "emoji": "🚗👩‍👩‍👧‍👦🏳️‍🌈",
    "combining": "e" + "\u0301" * 60,
    "private-use": "\ue000\U000f0000\U0010ffff\ufffe",
    "special-tokens": "<|startoftext|> a road <|endoftext|>",
    "format": "%s %n {0} {__class__} $(true) `true` ; rm -rf x",
    "dashes": "-" * 60,
    "markup": "((road:1.5)) [snow|rain] <lora:x:1>",
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_strange_prompts(loaded: Command, kind: str) -> None:
    prompt = PROMPTS[kind]
    loaded.run(("generate", *QUICK, "--negative", "", "--", prompt))
    assert os.listdir("out") == ["generate-0.png"]
    written: Any = Image.open("out/generate-0.png")
    assert prompt in written.text["pare"] or not prompt.isascii() or (
        not prompt.isprintable()
    )  # fmt: skip


LONG_PROMPTS = {
    "500-words": "road " * 500,
    "one-long-word": "x" * 1000,
    "emojis": "🚗" * 200,
    "at-the-limit": "y " * 10_000,
}


@pytest.mark.parametrize("kind", LONG_PROMPTS)
def test_long_prompts_are_cut_and_said(loaded: Command, kind: str) -> None:
    said = loaded.works("generate", LONG_PROMPTS[kind], *QUICK, words="is cut off")
    assert len(said) == 1
    assert len(said[0]) < 300


@pytest.mark.parametrize(
    "prompt", ["\udcff", "a\ud800b", "x" * 20_001, "x" * 1_000_000, "🚗" * 300_000]
)
@pytest.mark.parametrize("where", ["prompt", "negative"])
def test_what_is_no_prompt(loaded: Command, prompt: str, where: str) -> None:
    words = (prompt,) if where == "prompt" else ("x", "--negative", prompt)
    loaded.refuses("generate", *QUICK, *words)


# --- outputs -----------------------------------------------------------------------------------


def a_file(path: Path) -> None:
    path.write_bytes(b"mine")


OUTPUTS = {
    "exists": ("there.png", a_file),
    "exists-as-link": ("link.png", lambda path: path.symlink_to("good.png")),
    "folder": ("f.png", lambda path: (path / "generate-0.png").mkdir(parents=True)),
    "fifo": ("fifo.png", os.mkfifo),
    "device": ("zero.png", lambda path: path.symlink_to("/dev/zero")),
    "full": ("full.png", lambda path: path.symlink_to("/dev/full")),
    "loop": ("loop.png", lambda path: path.symlink_to(path.name)),
    "dangling-outside": ("gone.png", lambda path: path.symlink_to("no/such.png")),
    "no-folder": ("no/such/a.png", None),
    "file-as-folder": ("mine/a.png", lambda path: a_file(Path("mine"))),
    "gif": ("a.gif", None),
    "no-ending": ("image", None),
    "empty": ("", lambda path: a_file(Path("generate-0.png"))),
    "long": ("x" * 300 + ".png", None),
    "very-long": ("x/" * 2000 + "a.png", None),
    "dot": (".png", None),
    "absolute": ("/proc/a.png", None),
}  # fmt: skip


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_that_cannot_be(loaded: Command, kind: str) -> None:
    name, make = OUTPUTS[kind]
    if make is not None:
        make(Path(name))
    loaded.refuses("generate", "x", "--steps", "1", "--size", "16x16", "--out", name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_must_not_be_written(loaded: Command) -> None:
    Path("locked").mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    loaded.refuses("generate", "x", "--out", "locked", words="cannot be written")


# --- bugs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, ValueError, KeyError, OSError, RecursionError])
def test_a_bug_in_the_model_is_no_mistake_of_the_users(
    loaded: Command, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def forward(*_: object, **__: object) -> None:
        raise error("injected")

    monkeypatch.setattr(UNet, "forward", forward)
    with pytest.raises(error, match="injected"):
        loaded.run(("generate", "x", *QUICK))
    assert not os.listdir("out")


def test_a_bug_while_loading_is_one_too(
    pare: Command, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(*_: object, **__: object) -> None:
        raise TypeError("injected")

    monkeypatch.setattr(Pipeline, "__init__", built)
    with pytest.raises(TypeError, match="injected"):
        pare.run(("generate", "x", "--model", "model", *QUICK))
