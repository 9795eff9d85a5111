"""The examples that end every command's help run as they stand, but for fewer steps."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from pare.cli.grouped_help import PareCommand
from pare.cli.main import all_commands, main
from pare.loading import conversion
from tests.lora_files import kohya
from tests.single_files import UNET1, original_checkpoint

# Diffusers takes long to load; many tasks take long to edit.
SLOW = ("verify", "bench", "bench load", "bench edits")


def examples_of(command: click.Command) -> list[str]:
    assert isinstance(command, PareCommand)
    return list(command.examples)


def all_examples() -> list[object]:
    return [
        pytest.param(line, id=line, marks=pytest.mark.slow if name in SLOW else ())
        for name, command in all_commands().items()
        for line in examples_of(command)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that examples may name."""
    folder = tmp_path_factory.mktemp("examples")
    gradient = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
    gradient.save(folder / "photo.jpg")
    mask = Image.new("L", gradient.size)
    ImageDraw.Draw(mask).ellipse((16, 12, 48, 36), fill=255)
    mask.save(folder / "mask.png")
    road = ["generate", "a snowy road", "--steps", "1", "--out", str(folder / "road.png")]
    assert main(road) == 0
    checkpoint = original_checkpoint("SD 1")
    torch.save(checkpoint, folder / "model.ckpt")
    inpainting = original_checkpoint("SD 1", unet=UNET1 | {"in_channels": 9})
    for name, tensors in (("model", checkpoint), ("inpainting", inpainting)):
        whole = {key: tensor.contiguous() for key, tensor in tensors.items()}
        save_file(whole, folder / f"{name}.safetensors")
    (folder / "jobs.jsonl").write_text('{"prompt": "a road", "steps": 1}\n')
    (folder / "grid.toml").write_text('prompt = "a road"\nseed = "0..1"\nsteps = 1\n')
    conversion.convert(folder / "model.ckpt", folder / "model")
    style = kohya({"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k": (64, 64)})
    save_file(style, folder / "style.safetensors")
    return folder


def test_every_command_has_an_example_at_the_end_of_its_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, command in all_commands().items():
        examples = examples_of(command)
        assert examples, name
        assert all(line.startswith(f"pare {name}") for line in examples)
        assert max(map(len, examples)) <= 96  # the help is at most 100 wide
        assert main([*name.split(), "--help"]) == 0
        shown = capsys.readouterr().out.rstrip().splitlines()
        assert [line.strip() for line in shown[-len(examples) :]] == examples
        assert shown[-len(examples) - 1].strip() == "Examples:"


@pytest.mark.parametrize("example", all_examples())
def test_examples_run(
    example: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(example)
    # Of an option that is given twice the second holds.
    options = {parameter.name for parameter in all_commands()[arguments[0]].params}
    cheaper = ["--steps", "2"] if "steps" in options else []
    cheaper += ["--size", "64x48"] if "--size" in arguments else []
    assert program == "pare"
    # The bounds of bench are for models of gigabytes on a machine that does nothing else.
    fine = (0, 1) if arguments[0] == "bench" and arguments[1] != "edits" else (0,)
    assert main([*arguments, *cheaper]) in fine
