"""What is in a file of weights: whole, broken and lying."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from pare.study.inspect import weight_values
from pare.study.inspect.weight_files import look_at
from tests.single_files import original_checkpoint

SMALL = {
    "a": torch.arange(20.0).view(4, 5),
    "b": torch.tensor([1, 2, 3], dtype=torch.int64),
    "c": torch.ones(3, dtype=torch.float16),
}
WHOLE = save(SMALL, metadata={"format": "pt"})


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(begin: int, end: int, dtype: str = "F32", shape: tuple[int, ...] = (2,)) -> Any:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(WHOLE)
    file = look_at(path)
    assert file.all_problems == ()
    assert file.kind == "safetensors"
    assert file.shapes == {"a": (4, 5), "b": (3,), "c": (3,)}
    assert file.dtypes == {"F32": 20, "I64": 3, "F16": 3}
    assert file.parameters == 26
    assert file.ends == file.size == len(WHOLE)
    assert file.metadata == {"format": "pt"}


def test_a_file_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(WHOLE[:-4])
    file = look_at(path)
    assert file.ends == len(WHOLE)
    assert f"ends at byte {len(WHOLE) - 4} of {len(WHOLE)}: 2 of 3 tensors" in file.problems[0]
    (cut,) = [tensor for tensor in file.tensors if tensor.problem]
    assert "cut off after" in cut.problem
    assert file.parameters == 26 - cut.numbers


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, 12, "b: its offsets overlap those of a"),
        ({"a": entry(0, 8), "b": entry(12, 20)}, 20, "4 bytes before b belong to no tensor"),
        ({"a": entry(0, 12)}, 12, "12 bytes, and its shape needs 8"),
        ({"a": entry(8, 0)}, 8, "a: its offsets are impossible: 8 to 0"),
        ({"a": entry(-8, 0)}, 8, "a: its offsets are impossible: -8 to 0"),
        ({"a": entry(0, 8, "F31")}, 8, 'its type is "F31"'),
        ({"a": entry(0, 8, shape=(-1, 2))}, 8, "a: its shape is [-1, 2]"),
        ({"a": entry(0, 8) | {"data_offsets": "x"}}, 8, 'a: its offsets are "x"'),
        ({"a": 3}, 0, "a: no object: 3"),
        ({"a": entry(0, 8)}, 20, "12 bytes after the last tensor belong to none"),
        (b'{"a": ' + json.dumps(entry(0, 8)).encode() + b', "b"', 8, "the header is not JSON"),
        (b'{"a": 1' + b"0" * 5000 + b"}", 0, "the header is not JSON"),
        (b'{"a":' * 5000, 0, "the header is not JSON"),
        (b'{"a": 3, "a": 4}', 0, "a is listed 2 times"),
    ],
)
def test_lies(tmp_path: Path, header: Any, data: int, words: str) -> None:
    file = look_at(write(tmp_path / "model.safetensors", header, bytes(data)))
    assert any(words in problem for problem in file.all_problems), file.all_problems


def test_what_can_be_made_out_of_a_broken_header(tmp_path: Path) -> None:
    header = json.dumps({"first": entry(0, 8), "second": entry(8, 16), "third": entry(16, 24)})
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + header[:-30].encode())
    file = look_at(path)
    assert [tensor.name for tensor in file.tensors] == ["first", "second"]
    assert f"claims {2**60:,} bytes" in file.problems[0]
    assert file.header_bytes is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"hello", "no known kind"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS pointer"),
        (b"<!DOCTYPE html>", "web page"),
        (b"\x89PNG\r\n", "an image"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    file = look_at(path)
    assert words in file.kind
    assert file.problems


def test_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": SMALL, "global_step": 7}, path)
    file = look_at(path)
    assert (file.kind, file.shapes, file.all_problems) == ("ckpt", look_at(path).shapes, ())
    assert file.metadata["global_step"] == "7"
    path.write_bytes(path.read_bytes()[:-100])
    assert any("cut off" in problem for problem in look_at(path).problems)


def named(*names: str) -> dict[str, Tensor]:
    return {name: torch.zeros(2, 2, 2) for name in names}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (named("lora_unet_down.lora_up.weight"), "a LoRA"),
        (named("conditioner.embedders.0.x"), "Stable Diffusion XL"),
        (named("first_stage_model.encoder.down.0.block.0.conv1.weight"), "VAE alone"),
        (named("encoder.down.0.block.0.conv1.weight"), "VAE alone"),
        (named("mid_block.attentions.0.norm.weight"), "UNet of a model's folder on the Hub"),
        ({"emb_params": torch.zeros(4, 768)}, "textual-inversion"),
        (named("x", "y", "z"), "nothing that pare knows"),
    ],
)
def test_what_it_looks_like(tmp_path: Path, tensors: dict[str, Tensor], words: str) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    assert words in look_at(tmp_path / "model.safetensors").looks_like


@pytest.mark.parametrize("kind", ["SD 1", "SD 2"])
def test_a_checkpoint_is_known_by_its_names(kind: str, tmp_path: Path) -> None:
    tensors = original_checkpoint(kind, "meta")
    offset, header = 0, {}
    for name, tensor in tensors.items():
        dtype = {torch.float32: "F32", torch.int64: "I64"}[tensor.dtype]
        header[name] = entry(offset, offset + tensor.nbytes, dtype, tuple(tensor.shape))
        offset += tensor.nbytes
    file = look_at(write(tmp_path / "model.safetensors", header))
    assert file.looks_like == f"a Stable Diffusion {kind[-1]} checkpoint"
    assert len(file.all_problems) == 1 + len(tensors)  # the file ends where its numbers begin


def loads(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                file.get_tensor(name)
    except SafetensorError:
        return False
    return True


@given(st.data())
def test_whatever_safetensors_refuses_has_a_problem(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A file with any bytes changed, cut or put in: no exception; and never silence."""
    content = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["change", "cut", "insert"])):
            case "change":
                content[place] = data.draw(st.integers(0, 255))
            case "cut":
                del content[place : place + data.draw(st.integers(1, 40))]
            case "insert":
                content[place:place] = data.draw(st.binary(min_size=1, max_size=9))
        if not content:
            break
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(content)
    problems = look_at(path).all_problems
    if not loads(path):
        assert problems, bytes(content)


# --- values -------------------------------------------------------------------------------


def statistics(path: Path) -> dict[str, weight_values.Values]:
    return {value.name: value for value in weight_values.read_values(look_at(path))}


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_values_are_torchs(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_values, "AT_ONCE", 7)  # several blocks a tensor, the last not full
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "float": torch.randn(5, 9, generator=generator),
        "far": torch.randn(40, generator=generator) * 1e-3 + 1e4,
        "half": torch.randn(30, generator=generator).half(),
        "brain": torch.randn(3, 4, generator=generator).bfloat16(),
        "whole": torch.arange(20),
        "single": torch.tensor(3.0),
        "none": torch.zeros(0),
    }
    path = tmp_path / f"model.{suffix}"
    save_file(tensors, path) if suffix == "safetensors" else torch.save(tensors, path)
    found = statistics(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        numbers, value = tensor.double(), found[name]
        if not tensor.numel():
            assert math.isnan(value.mean)
            continue
        assert (value.minimum, value.maximum) == (float(numbers.min()), float(numbers.max()))
        assert value.mean == pytest.approx(float(numbers.mean()), rel=1e-12, abs=1e-12)
        assert value.std == pytest.approx(float(numbers.std(correction=0)), rel=1e-9, abs=1e-15)
        assert (value.nan, value.inf, value.finite) == (0, 0, True)


def test_values_count_what_is_not_finite(tmp_path: Path) -> None:
    inf, nan = math.inf, math.nan
    tensors = {"some": torch.tensor([1.0, nan, inf, -inf, 3.0]), "all": torch.full((3,), nan)}
    save_file(tensors, tmp_path / "model.safetensors")
    found = statistics(tmp_path / "model.safetensors")
    some = found["some"]
    assert (some.nan, some.inf, some.minimum, some.maximum, some.mean) == (1, 2, 1, 3, 2)
    assert found["all"].nan == 3
    assert math.isnan(found["all"].mean)


def test_values_of_a_broken_file_are_those_of_its_whole_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(WHOLE[:-4])
    broken = {tensor.name for tensor in look_at(path).tensors if tensor.problem}
    assert statistics(path).keys() == SMALL.keys() - broken
