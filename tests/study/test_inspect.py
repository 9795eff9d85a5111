"""`pare inspect`: pages of 100 columns, JSON, exit codes; and no weights read."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import pare.cli.main
from pare.study.inspect.inspection import split_names
from pare.study.inspect.text_tables import common_prefix, layers_text, short, size
from tests.conftest import ROOT
from tests.loading.test_weights_convert import FULL
from tests.single_files import original_checkpoint
from tests.tiny_model import write_tiny_model

Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("inspect") / "model")


def inspect(capsys: Output, *arguments: object, code: int = 0) -> tuple[str, str]:
    """What the command prints to stdout and to stderr."""
    assert pare.cli.main.main(["inspect", *map(str, arguments)]) == code
    output = capsys.readouterr()
    return output.out, output.err


def as_json(capsys: Output, *arguments: object, code: int = 0) -> Any:
    return json.loads(inspect(capsys, *arguments, "--json", code=code)[0])


def narrow(page: str) -> bool:
    return all(len(line) <= 100 for line in page.splitlines())


def test_the_page_of_a_model(capsys: Output) -> None:
    page, error = inspect(capsys)
    assert error == ""
    assert narrow(page)
    for words in (
        "roads   Stable Diffusion 1, folder",
        "128 x 128 pixels, latents 4 x 16 x 16",
        "down_blocks.1  1 128 4 4    2 ResNet+transformer ↓",
        "── 128 128 128 ──",
        "mid_block  RT R",
        "snowy",
    ):
        assert words in page


def test_the_us_drawing_of_sd14(capsys: Output) -> None:
    page, _ = inspect(capsys, "sd1", "--batch", "2")
    assert narrow(page)
    page = page.partition("the VAE")[0]
    lines = [line.split() for line in page.splitlines()]
    drawn = [line.split() for line in page.splitlines() if "▶" in line and "up_blocks" in line]
    assert [[word for word in line if word.isdigit()][2:] for line in drawn] == [
        ["320", "320", "320"],
        ["320", "640", "640"],
        ["640", "1280", "1280"],
        ["1280", "1280", "1280"],
    ]
    table = {line[0]: line[1:5] for line in lines if len(line) > 4}
    assert table["down_blocks.0"] == ["2", "320", "32", "32"]
    assert table["up_blocks.2"] == ["2", "640", "64", "64"]


def test_a_layer_opened(capsys: Output) -> None:
    name = "unet.down_blocks.1.attentions.0"
    page, _ = inspect(capsys, "sd1", name)
    assert narrow(page)
    for words in (
        "SpatialTransformer",
        "pare/unet/transformer.py:",
        "x 1 640 32 32, text 1 77 768",
        "transformer_blocks.0.attn2.to_k.weight      640 768",
        "77 768 → 77 640",
    ):
        assert words in page
    found = as_json(capsys, "sd1", name)
    (layer,) = found["layers"]
    assert layer["flops"]["total"] == sum(
        layer["flops"][kind] for kind in ("convolution", "linear", "attention", "norm")
    )
    assert layer["inputs"] == {"x": [1, 640, 32, 32], "text": [1, 77, 768]}
    assert len(found["inside"]) > 20


def test_a_layer_of_the_default_model(capsys: Output) -> None:
    page, _ = inspect(capsys, "unet.mid_block", "--size", "64x256", "--dtype", "float16")
    assert page.startswith("unet.mid_block   MidBlock\n")
    assert "computed for  64 x 256, batch 1, float16" in page
    assert "input         x 1 64 4 1, time 1 256, text 1 77 128" in page


def test_the_text_encoder(capsys: Output) -> None:
    page, _ = inspect(capsys, "text_encoder", "--depth", "2")
    assert narrow(page)
    assert "pare/text/clip.py" in page
    assert "layers.2" in page


def test_globs(capsys: Output) -> None:
    page, _ = inspect(capsys, "sd1", "unet.*.attn2")
    assert narrow(page)
    assert page.startswith("16 layers")
    both = as_json(capsys, "*.mid_block.attentions.0")
    assert [layer["name"] for layer in both["layers"]] == [
        "unet.mid_block.attentions.0",
        "vae.encoder.mid_block.attentions.0",
        "vae.decoder.mid_block.attentions.0",
    ]


def test_depth(capsys: Output) -> None:
    shallow, deep = (inspect(capsys, "roads", "vae", "--depth", d)[0] for d in ("1", "3"))
    assert "\n    down_blocks.1 " not in shallow
    assert "\n    down_blocks.1 " in deep
    assert "layers inside these" in shallow


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["unet.mid_blok"], "did you mean unet.mid_block"),
        (["mid_block.resnets.0"], "did you mean unet.mid_block.resnets.0"),
        (["roads", "nothing"], "there is no layer 'nothing'"),
        (["roads", "unet.*.attn3"], "no layer matches 'unet.*.attn3'"),
        (["nowhere"], "does not exist"),
        (["roads", "unet", "vae"], "one name too many"),
        (["roads", "--size", "100x100"], "multiple"),
    ],
)
def test_mistakes(capsys: Output, arguments: list[str], words: str) -> None:
    page, error = inspect(capsys, *arguments, code=2)
    assert page == ""
    assert words in error
    assert error.count("\n") == 1


def test_which_name_is_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert split_names((), None) == ("roads", None)
    assert split_names(("sd1",), None) == ("sd1", None)
    assert split_names(("unet.conv_in",), None) == ("roads", "unet.conv_in")
    assert split_names(("unet.conv_in",), "sd1") == ("sd1", "unet.conv_in")
    assert split_names(("sd1", "vae"), None) == ("sd1", "vae")
    (tmp_path / "unet").mkdir()
    assert split_names(("unet",), None) == ("unet", None)


# --- broken things ------------------------------------------------------------------------


def test_a_broken_folder(capsys: Output, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-20_000])
    (folder / "vae" / "config.json").write_text("[]")
    page, error = inspect(capsys, folder, code=2)
    assert error.count("\n") == 1
    assert "is broken" in error
    assert "tensors are whole" in page
    assert "holds a JSON list" in " ".join(page.split())  # a long path wraps the line
    assert "up_blocks.1" in page  # the UNet's diagram is there all the same
    found = as_json(capsys, folder, code=2)
    assert len(found["model"]["parts"]["unet"]["problems"]) > 5
    assert found["model"]["parts"]["text_encoder"]["problems"] == []


def test_names_cannot_steer_the_terminal(capsys: Output, tmp_path: Path) -> None:
    save_file({"\x1b[31mred\nline": torch.zeros(2)}, tmp_path / "model.safetensors")
    page, _ = inspect(capsys, tmp_path / "model.safetensors")
    assert "\x1b" not in page
    assert "\\x1b[31mred\\nline" in page


def test_a_name_that_lies_about_its_size(capsys: Output, tmp_path: Path) -> None:
    header = {"x": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 2**126]}}
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    page, _ = inspect(capsys, tmp_path / "model.safetensors", code=2)
    assert "the file ends before it" in page


# --- values -------------------------------------------------------------------------------


def test_values(capsys: Output, tiny: Path, tmp_path: Path) -> None:
    page, _ = inspect(capsys, tiny, "--values")
    assert "0 with NaN or Inf" in page
    tensors = load_file(tiny / "unet" / "diffusion_pytorch_model.safetensors")
    tensors["conv_in.bias"][2] = math.nan
    save_file(tensors, tmp_path / "unet.safetensors")
    page, error = inspect(capsys, tmp_path / "unet.safetensors", "--values", code=2)
    assert "NaN or Inf in 1 tensor: conv_in.bias" in error
    assert "conv_in.bias" in page
    found = as_json(capsys, tmp_path / "unet.safetensors", "conv_in.*", "--values", code=2)
    assert {value["name"]: value["nan"] for value in found["values"]} == {
        "conv_in.bias": 1,
        "conv_in.weight": 0,
    }


def test_values_of_a_layer(capsys: Output, tiny: Path) -> None:
    found = as_json(capsys, tiny, "unet.mid_block.resnets.0", "--values")
    assert len(found["values"]) == 10
    assert all(value["name"].startswith("mid_block.resnets.0.") for value in found["values"])


# --- at true size, without the weights -----------------------------------------------------

MEASURED = """
import json, sys
import torch
import pare.cli.main
from pare.runtime.peak_memory import peak_memory
code = pare.cli.main.main(["inspect", *sys.argv[1:]])
sys.stdout.flush()
with open("/proc/self/io") as file:
    read = int(file.readline().split()[1])  # rchar: what read() brought
peak = peak_memory(torch.device("cpu"))  # mapped pages included
print(json.dumps({"code": code, "read": read, "peak": peak}), file=sys.stderr)
"""


def full_size_header(path: Path) -> int:
    """Write SD 1's single file, 4.27 GB: the header, and a hole for the numbers; its size."""
    header, offset = {}, 0
    for name, tensor in original_checkpoint("SD 1", "meta", **FULL["SD 1"]).items():
        dtype = "F32" if tensor.is_floating_point() else "I64"
        header[name] = {
            "dtype": dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    return offset


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs Linux's /proc")
def test_the_weights_of_4_gigabytes_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    size = full_size_header(path)
    assert size > 4.2e9
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, path.name], env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    measured = json.loads(run.stderr.splitlines()[-1])
    assert measured["code"] == 0, run.stdout
    # Python and PyTorch themselves take 0.3 GB.
    assert measured["peak"] < 0.2 * size, measured
    assert measured["read"] < 0.05 * size, measured
    assert "up_blocks.1" in run.stdout
    assert narrow(run.stdout)


def test_the_docs_python(capsys: Output) -> None:
    page = (ROOT / "docs" / "inspect.md").read_text(encoding="utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    exec(compile(code, "docs/inspect.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("((2, 640, 32, 32),)")
    assert "up_blocks.3 (2, 320, 64, 64)" in printed[-3]


# --- small things -------------------------------------------------------------------------


def test_numbers_are_short() -> None:
    given = (0, 7, 999, 1000, 11_840, 99_960, 859_520_964, 999_600_000, 1.6e12, 5e15)
    assert [short(n) for n in given] == [
        "0", "7", "999", "1.00k", "11.8k", "100k", "860M", "1.00G", "1.60T", "5000T",
    ]  # fmt: skip
    assert (size(512), size(1720), size(4_270_000_000)) == ("512 B", "1.72 kB", "4.27 GB")


def test_words_and_beginnings() -> None:
    assert layers_text(("ResNet", "transformer") * 2 + ("downsample",)) == "2 ResNet+transformer ↓"
    assert layers_text(("ResNet",) * 3 + ("upsample",)) == "3 ResNet ↑"
    assert layers_text(("ResNet", "transformer", "ResNet")) == "ResNet+transformer+ResNet"
    assert common_prefix(["a.b.c", "a.b.d.e"]) == "a.b."
    assert common_prefix(["a", "a.b"]) == ""
