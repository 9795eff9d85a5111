"""The benchmark of loading: what it loads, and what it makes of the measurements."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pare.loading.modules import load_model
from pare.verify.diffusers_side import load_reference_file
from pare.verify.loading_speed import (
    Loading,
    load_once,
    measures_of,
    models_to_load,
    run_load_bench,
)
from pare.verify.model_parity import without_prefix
from tests.single_files import original_checkpoint


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    save_file({n: t.contiguous() for n, t in original_checkpoint("SD 1").items()}, path)
    return path


def run(seconds: float, peak: int) -> Loading:
    return Loading(
        reading=1.0, seconds=seconds, processor=seconds / 2, before=0, peak=peak, weights=1
    )


def test_ratios_are_of_pairs() -> None:
    gib = 2**30
    ours, theirs = [run(1, gib), run(10, gib), run(3, gib)], [run(2, 2 * gib)] * 3
    seconds, processor, memory = measures_of("a file", ours, theirs)
    assert (seconds.name, seconds.ours, seconds.theirs, seconds.ratio) == (
        "loading a file", 3, 2, 1.5,
    )  # fmt: skip
    assert (processor.ours, processor.theirs, processor.ratio) == (1.5, 1, 1.5)
    assert seconds.passed
    assert (memory.unit, memory.ours, memory.theirs, memory.ratio) == ("GiB", 1, 2, 0.5)
    assert memory.passed


def test_diffusers_loads_the_same_single_file(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with models_to_load(str(single), torch.float32, None) as things:
        ((name, (path, configs)),) = things.items()
        assert (name, path) == ("a single file", single)
        assert not list(configs.rglob("*.safetensors"))
        theirs = load_reference_file(path, configs, torch.float32)
    assert list(tmp_path.iterdir()) == []
    ours = load_model(single, device="cpu", dtype="float32")
    for part in ("unet", "vae", "text_encoder"):
        reference = without_prefix(getattr(theirs, part)).state_dict()
        for key, tensor in without_prefix(getattr(ours, part)).state_dict().items():
            assert torch.equal(tensor, reference[key]), key


def test_a_loading_is_measured(tiny_model: Path) -> None:
    once = load_once("pare", tiny_model, tiny_model, torch.float32)
    files = sum(file.stat().st_size for file in tiny_model.rglob("*.safetensors"))
    assert 0 < once.processor <= once.seconds * torch.get_num_threads() + 0.1
    assert 0 < once.before <= once.peak
    assert 0.8 * files < once.weights < files  # the files have headers, too


@pytest.mark.slow
def test_both_sides_load_in_turns(single: Path) -> None:
    report = run_load_bench(str(single), pairs=1)
    assert [measure.name for measure in report.measures] == [
        "loading a single file",
        "processor time of loading a single file",
        "memory of a process that loads a single file",
    ]
    assert all(measure.ours > 0.1 and measure.theirs > 0.1 for measure in report.measures)
