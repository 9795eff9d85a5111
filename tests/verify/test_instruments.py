"""The instruments of `pare verify`: layers, the clock, the denoiser, memory, the bench."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pare.errors import ModelError, SettingError
from pare.runtime.peak_memory import peak_memory
from pare.schedulers import build_scheduler
from pare.verify.analytic_denoiser import HIGH, LOW, SPREAD, denoiser
from pare.verify.diffusers_side import require_folder
from pare.verify.layer_parity import compare_layers, watching
from pare.verify.paired_timing import in_turns
from pare.verify.speed import Measurement, place_of, run_bench
from tests.random_models import normal
from tests.schedulers.rollout import SD14

CPU = torch.device("cpu")


class Twice(nn.Module):
    """Two layers, and one that tells more than its result."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.first(x))


def test_layers_are_compared_in_the_order_of_execution() -> None:
    ours, theirs = Twice(), Twice()
    theirs.load_state_dict(ours.state_dict())
    x = normal(2, 4)
    compared = compare_layers(ours, theirs, lambda: ours(x), lambda: theirs(x))
    assert list(compared.layers) == ["first", "inner.0", "inner.1", "inner"]
    assert compared.first_departure() is None

    with torch.no_grad():
        theirs.inner[0].get_parameter("bias").add_(1e-3)
    compared = compare_layers(ours, theirs, lambda: ours(x), lambda: theirs(x))
    assert compared.first_departure() == "inner.0"
    assert compared.first_departure(limit=1.0) is None
    assert torch.equal(compared.ours, ours(x))
    assert torch.equal(compared.theirs, theirs(x))


def test_a_layer_that_is_not_a_number_departs() -> None:
    ours, theirs = nn.Sequential(nn.Identity()), nn.Sequential(nn.Identity())
    compared = compare_layers(
        ours, theirs, lambda: ours(torch.tensor(math.nan)), lambda: theirs(torch.tensor(1.0))
    )
    assert compared.first_departure(limit=1e9) == "0"


def test_no_hook_stays_behind() -> None:
    module = Twice()
    with pytest.raises(RuntimeError, match="shapes"), watching(module, lambda *_: None):
        module(torch.ones(1, 5))
    assert not any(part._forward_hooks for part in module.modules())


def test_runs_take_turns() -> None:
    order: list[str] = []

    def ours() -> str:
        order.append("ours")
        return "a"

    def theirs() -> str:
        order.append("theirs")
        return "b"

    timing = in_turns(ours, theirs, CPU, pairs=3)
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert (timing.ours, timing.theirs) == ("a", "b")
    assert len(timing.our_seconds) == len(timing.their_seconds) == 3


def test_the_ratio_is_the_median_of_the_pairs() -> None:
    timing = in_turns(lambda: 0, lambda: 0, CPU, pairs=3)
    timing.our_seconds[:] = [1.0, 10.0, 3.0]
    timing.their_seconds[:] = [2.0, 4.0, 3.0]  # ratios 0.5, 2.5, 1
    assert timing.ratio == 1.0


@pytest.mark.parametrize("t", [0, 1, 250.5, 999])
def test_the_denoiser_is_the_posterior_mean(t: float) -> None:
    """Against the integral over x0, done by brute force."""
    schedule = build_scheduler(SD14, "a test", "ddim").schedule
    x_t = torch.linspace(-2.5, 2.5, 11)
    x0 = denoiser(schedule, "sample")(x_t, t)
    eps = denoiser(schedule, "epsilon")(x_t, t)
    velocity = denoiser(schedule, "v_prediction")(x_t, t)

    table = schedule.alpha_bar
    alpha_bar = torch.lerp(table[int(t)], table[min(int(t) + 1, 999)], t - int(t))
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    grid = torch.linspace(-6, 6, 200_001, dtype=torch.float64)
    prior = sum(torch.exp(-(((grid - centre) / SPREAD) ** 2) / 2) for centre in (LOW, HIGH))
    for index, x in enumerate(x_t.double()):
        weight = prior * torch.exp(-(((x - signal * grid) / noise) ** 2) / 2)
        mean = (weight * grid).sum() / weight.sum()
        assert x0[index].item() == pytest.approx(mean.item(), abs=1e-5)
    torch.testing.assert_close(signal * x0.double() + noise * eps.double(), x_t.double(),
                               rtol=0, atol=1e-5)  # fmt: skip
    torch.testing.assert_close(signal * eps.double() - noise * x0.double(), velocity.double(),
                               rtol=0, atol=1e-5)  # fmt: skip


def test_peak_memory_rises_with_what_is_held() -> None:
    before = peak_memory(CPU)
    held = torch.ones(1 << 28, dtype=torch.uint8)  # 256 MiB
    risen = peak_memory(CPU) - before
    del held
    assert before > 50 * 2**20
    assert risen <= (256 + 16) * 2**20
    # What was freed before may have been reused, but hardly all of it.
    assert peak_memory(CPU) >= 256 * 2**20


def test_a_measure_is_held_to_its_ratio() -> None:
    assert Measurement("x", "s", 1.0, 1.0, ratio=1.03, bound=1.03).passed
    assert not Measurement("x", "s", 1.0, 1.0, ratio=1.031, bound=1.03).passed
    assert not Measurement("x", "s", 1.0, 1.0, ratio=math.nan, bound=1.03).passed


def test_what_the_bench_measures_is_found_once(tiny_model: Path, tmp_path: Path) -> None:
    assert place_of("sd1", torch.float32, None) == "sd1"
    assert place_of(str(tiny_model), torch.float32, None) == str(tiny_model)
    with pytest.raises(SettingError, match="'v1', and sd1 is not a model on the Hub"):
        place_of("sd1", torch.float32, "v1")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match="is a single file; expected a folder"):
        require_folder(tmp_path / "model.safetensors")


@pytest.mark.slow
def test_the_bench_measures_speed_and_memory(tiny_model: Path) -> None:
    report = run_bench(tiny_model, device="cpu", pairs=3)
    read = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert [m["name"] for m in read["measures"]] == [
        "memory of a process with a UNet step",
        "UNet step, batch 2, 8 x 8",
        "VAE decoding, 8 x 8",
    ]
    memory, *times = report.measures
    assert 0.1 < memory.ours < memory.theirs < 4
    assert all(0 < time.ours < 5 and 0 < time.theirs < 5 for time in times)
    assert "diffusers" in report.table()
