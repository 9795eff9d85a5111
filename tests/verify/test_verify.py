"""`pare verify` finds what is equal to be equal, and what is wrong to be wrong."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import techniques.erasure.erasure_loop
from pare.cli.main import main
from pare.errors import MissingExtraError, SettingError
from pare.schedulers import NoiseLevel
from pare.schedulers.ddim_inverse import DDIMInverse
from pare.schedulers.dpmpp_2m import DPMPlusPlus2M
from pare.verify import (
    GROUPS,
    ParityReport,
    ParityRow,
    diffusers_side,
    image_parity,
    model_parity,
    run_verify,
    scheduler_parity,
    technique_parity,
)
from pare.verify.model_pair import ModelPair, exact_float32, load_pair
from pare.verify.parity_table import SAME_BITS, Bound, Distance, Skipped
from techniques.prompt_to_prompt import Injection
from tests.random_models import TINY_UNET, random_state, unet_pair
from tests.tiny_model import write_part, write_tiny_model


@pytest.fixture(scope="module")
def report(tiny_model: Path) -> ParityReport:
    return run_verify(tiny_model, device="cpu", steps=3)


@pytest.fixture
def models(tiny_model: Path) -> Iterator[ModelPair]:
    """Loaded afresh, so that a test may damage it."""
    with diffusers_side.quiet(), torch.no_grad():
        yield load_pair(tiny_model, "cpu", "float32", steps=3)


def rows_of(found: Iterator[Any]) -> list[ParityRow]:
    return [row for row in found if isinstance(row, ParityRow)]


# --- what is right passes -----------------------------------------------------------------


def test_every_comparison_holds(report: ParityReport) -> None:
    assert report.passed, report.table()
    assert [group for group in GROUPS if any(row.group == group for row in report.rows)] == list(
        GROUPS
    )
    assert report.skipped == {}


def test_models_have_the_same_bits_layer_by_layer(report: ParityReport) -> None:
    rows = [row for row in report.rows if row.group in ("text", "unet", "vae")]
    assert len(rows) == 4 + 2 + 2
    for row in rows:
        assert row.bound == SAME_BITS
        assert row.distance == Distance(0, 0)
        assert int(row.note.removesuffix(" layers")) > 20
        assert row.time_ratio is not None


def test_every_solver_makes_images(report: ParityReport) -> None:
    for group in ("generate", "img2img", "blend"):
        names = [row.name for row in report.rows if row.group == group]
        assert len(names) == 6 + 3
        assert all(row.levels in (0, 1) for row in report.rows if row.group == group)


def test_half_precision_is_held_to_diffusers_own_error(tiny_model: Path) -> None:
    report = run_verify(
        tiny_model, device="cpu", dtype="bfloat16", steps=2, only=["unet", "vae", "generate"]
    )
    assert report.passed, report.table()
    assert report.dtype == "bfloat16"
    for row in report.rows:
        assert row.bound.limit > 0
    assert list(report.skipped) == ["generate, euler-ancestral"]


def test_v_prediction_and_what_cannot_be_compared(models: ModelPair) -> None:
    config = {**models.pipe.scheduler_config, "prediction_type": "v_prediction"}
    models.pipe.scheduler_config = config
    found = list(scheduler_parity.scheduler_rows(models))
    assert [one.name for one in found if isinstance(one, Skipped)] == ["pndm"]
    assert all(row.passed for row in found if isinstance(row, ParityRow))


def test_an_inpainting_model_is_compared_as_far_as_it_goes(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "inpainting")
    raw = TINY_UNET | {"in_channels": 9}
    tensors = random_state(unet_pair(raw)[0], torch.Generator().manual_seed(0))
    write_part(folder / "unet", raw, tensors)
    report = run_verify(folder, device="cpu", only=["unet", "vae", "generate"])
    assert report.passed, report.table()
    assert {row.group for row in report.rows} == {"unet", "vae"}
    assert "takes a mask" in report.skipped["generate"]


# --- what is wrong is found ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "departs"),
    [
        ("conv_in", "conv_in"),
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",) * 2,
        ("mid_block.resnets.1.conv2",) * 2,
        ("up_blocks.1.resnets.0.norm1",) * 2,
    ],
)
def test_the_first_layer_that_departs_is_named(models: ModelPair, layer: str, departs: str) -> None:
    weight = models.pipe.unet.get_submodule(layer).get_parameter("weight")
    weight.data = weight.data * (1 + 1e-6)  # a tensor of its own: diffusers keeps its
    (row, odd) = rows_of(model_parity.unet_rows(models))
    assert not row.passed
    assert not odd.passed
    assert row.note == f"departs first at {departs}"


def test_a_wrong_vae_is_found(models: ModelPair) -> None:
    weight = models.pipe.vae.decoder.conv_out.weight
    weight.data = weight.data * 1.001
    encoder, decoder = rows_of(model_parity.vae_rows(models))
    assert encoder.passed
    assert not decoder.passed
    assert decoder.note == "departs first at decoder.conv_out"


def test_a_wrong_solver_is_found(models: ModelPair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off by one level in the second-order term."""
    right = DPMPlusPlus2M.step

    def wrong(self: DPMPlusPlus2M, timesteps: Any, i: int, *rest: Any) -> Any:
        levels = [NoiseLevel(level.t, level.sigma * 1.0001) for level in timesteps.levels]
        return right(self, dataclasses.replace(timesteps, levels=tuple(levels)), i, *rest)

    monkeypatch.setattr(DPMPlusPlus2M, "step", wrong)
    broken = {
        row.name for row in rows_of(scheduler_parity.scheduler_rows(models)) if not row.passed
    }
    assert broken == {"dpm++2m", "dpm++2m with Karras sigmas"}


def test_a_start_off_by_one_is_found(models: ModelPair, monkeypatch: pytest.MonkeyPatch) -> None:
    right: Any = vars(image_parity)["start_index"]
    monkeypatch.setattr(image_parity, "start_index", lambda *given: right(*given) + 1)
    assert not any(row.passed for row in rows_of(image_parity.img2img_rows(models)))
    assert not any(row.passed for row in rows_of(image_parity.blend_rows(models)))


def test_a_wrong_technique_is_found(models: ModelPair, monkeypatch: pytest.MonkeyPatch) -> None:
    guide, step = vars(techniques.erasure.erasure_loop)["guide"], DDIMInverse.step

    def stronger(uncond: Any, cond: Any, scale: float, *more: Any) -> Any:
        return guide(uncond, cond, 1.5 * scale, *more)

    def noisier(self: DDIMInverse, timesteps: Any, i: int, x_t: Any, seen: Any, *more: Any) -> Any:
        seen = dataclasses.replace(seen, eps=1.1 * seen.eps)
        return step(self, timesteps, i, x_t, seen, *more)

    monkeypatch.setattr(techniques.erasure.erasure_loop, "guide", stronger)
    monkeypatch.setattr(Injection, "crosses", lambda *given: False)
    monkeypatch.setattr(DDIMInverse, "step", noisier)
    erased = rows_of(technique_parity.erase_rows(models))
    assert erased
    assert not any(row.passed for row in erased)
    lockstep = [
        row for row in rows_of(technique_parity.p2p_rows(models)) if "replay" not in row.name
    ]
    assert [row.name for row in lockstep if row.passed] == []
    noise, *_ = rows_of(technique_parity.invert_rows(models))
    assert not noise.passed


def test_a_psnr_has_to_be_reached() -> None:
    bound = Bound("psnr", 40)
    for psnr, passed in ((39.9, False), (40, True), (math.inf, True), (math.nan, False)):
        assert ParityRow("erase", "x", Distance(0, 0), bound, psnr=psnr).passed == passed
    assert not ParityRow("erase", "x", Distance(0, 0), bound).passed
    assert str(bound) == "40 dB"


def test_not_a_number_keeps_no_bound() -> None:
    for distance in (Distance(math.nan, math.nan), Distance.between(*torch.tensor([1, math.nan]))):
        for bound in (SAME_BITS, Bound("relative", 1e-5)):
            assert not ParityRow("unet", "x", distance, bound).passed
    assert not ParityRow("generate", "x", Distance(0, 0), Bound("levels", 1), levels=None).passed
    assert math.isnan(Distance.worst([Distance(1, 1), Distance(math.nan, 1)]).absolute)


def test_a_distance_between_other_shapes_is_infinite() -> None:
    assert Distance.between(torch.ones(2), torch.ones(1)) == Distance(math.inf, math.inf)


def test_a_report_of_nothing_does_not_pass(report: ParityReport) -> None:
    assert not dataclasses.replace(report, rows=[]).passed


# --- the report ---------------------------------------------------------------------------


def test_the_report_as_json(report: ParityReport) -> None:
    nan = ParityRow("unet", "x", Distance(math.nan, math.inf), SAME_BITS)
    broken = dataclasses.replace(report, rows=[*report.rows, nan])
    read = json.loads(json.dumps(broken.to_json(), allow_nan=False))
    assert read["passed"] is False
    assert [row["passed"] for row in read["rows"]] == [True] * len(report.rows) + [False]
    assert read["rows"][-1]["distance"] == {"absolute": "nan", "relative": "inf"}
    assert read["rows"][0]["bound"]["text"] == "same bits"
    assert set(read["model"]["files"]) >= {"unet/diffusion_pytorch_model.safetensors"}


def test_the_report_as_a_table(report: ParityReport) -> None:
    table = report.table()
    assert "all bounds hold" in table
    assert "BROKEN" not in table
    bad = ParityRow("unet", "x", Distance(1, 1), SAME_BITS, note="departs first at conv_in")
    broken = dataclasses.replace(report, rows=[bad], skipped={"pndm": "a reason"}).table()
    assert "BROKEN  departs first at conv_in" in broken
    assert "1 of 1 bounds broken" in broken
    assert "skipped: pndm: a reason" in broken


# --- settings, extras, the command --------------------------------------------------------


def test_an_unknown_group_is_said(tiny_model: Path) -> None:
    with pytest.raises(SettingError, match="no comparison 'unett'; expected text, unet"):
        run_verify(tiny_model, only=["unett"])


def test_without_diffusers_one_sentence_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "diffusers" else find(name, *rest),
    )
    with pytest.raises(MissingExtraError, match=r"pip install 'pare\[verify\]'"):
        run_verify()
    assert main(["verify"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert "pip install 'pare[verify]'" in printed.err


def test_importing_verify_does_not_import_diffusers() -> None:
    code = "import sys, pare.verify, pare.verify.speed; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tf32_is_off_for_the_comparison_and_as_before_after_it() -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = True
        with exact_float32():
            assert (matmul.allow_tf32, cudnn.allow_tf32) == (False, False)
        assert (matmul.allow_tf32, cudnn.allow_tf32) == (True, True)
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def test_the_command(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["verify", "--model", str(tiny_model), "--device", "cpu", "--only", "unet"]
    assert main([*given, "--json"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert {row["group"] for row in read["rows"]} == {"unet"}
    assert main(["verify", "--only", "nothing"]) == 2


def test_a_broken_bound_is_exit_code_1(
    report: ParityReport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = ParityRow("unet", "x", Distance(1, 1), SAME_BITS)
    broken = dataclasses.replace(report, rows=[bad])
    monkeypatch.setattr("pare.verify.run_verify", lambda *given, **named: broken)
    assert main(["verify"]) == 1
    assert "BROKEN" in capsys.readouterr().out


# --- on a GPU -----------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_on_a_gpu(dtype: str, tiny_model: Path) -> None:
    for model in ("roads", tiny_model):
        report = run_verify(model, device="cuda", dtype=dtype)
        assert report.passed, report.table()
