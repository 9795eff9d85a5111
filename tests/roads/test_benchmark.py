"""The edit benchmark: its frame, its bookkeeping, and the command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pare
from pare.cli.main import main
from pare.errors import SettingError
from roads.benchmark.compared_methods import FRAME, chosen_techniques
from roads.benchmark.edit_benchmark import (
    EditReport,
    Measured,
    TechniqueRow,
    counted_evaluations,
    run_edits,
)
from roads.benchmark.edit_tasks import Task, tasks
from roads.judge.judge import load_judge


def half_way(_pipe: pare.Pipeline, task: Task, _seed: int) -> Image.Image:
    """The truth where it should be, and the middle grey everywhere else."""
    pixels = np.where(task.touched[..., None], task.target_pixels, 127)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def pipe() -> pare.Pipeline:
    return pare.Pipeline.from_pretrained("roads")


@pytest.fixture(scope="module")
def report(pipe: pare.Pipeline) -> EditReport:
    return run_edits(pipe, load_judge(), "development", {"half way": half_way}, per_kind=2)


def test_the_frame_is_the_floor_and_the_ceiling(report: EditReport) -> None:
    none, truth, through_vae, _half_way = report.rows()
    assert (none.technique, truth.technique) == ("no edit", "truth")
    assert none.success <= 10
    assert none.unchanged >= 98
    assert none.outside_psnr == truth.outside_psnr == truth.inside_psnr == math.inf
    assert truth.success == 100
    assert truth.unchanged >= 98
    assert truth.structure == pytest.approx(0)
    assert truth.outside_ssim == pytest.approx(1)
    assert through_vae.success >= 90
    assert 25 < through_vae.outside_psnr < 40


def test_what_is_spoilt_outside_the_edit_is_seen(report: EditReport) -> None:
    row = report.rows()[-1]
    assert row.inside_psnr == math.inf
    assert row.outside_psnr < 15
    assert row.unchanged < 90


def test_rows_are_means_and_psnr_is_of_the_mean_error() -> None:
    def measured(error: float, success: bool) -> Measured:
        return Measured(
            technique="t", task="a", kind="add", success=success, unchanged=0.5,
            inside_mse=error, inside_ssim=1.0, outside_mse=math.nan, outside_ssim=math.nan,
            beyond_mask_mse=math.nan, structure=0.1, moved=0.1, seconds=2.0,
            processor_seconds=1.0, evaluations=50,
        )  # fmt: skip

    row = TechniqueRow.of("t", [measured(0.01, True), measured(0.03, False)])
    assert row.success == 50
    assert row.inside_psnr == pytest.approx(-10 * math.log10(0.02))
    assert math.isnan(row.outside_psnr)


def test_evaluations_are_counted_by_row_and_the_model_is_left_as_it_was(
    pipe: pare.Pipeline,
) -> None:
    with counted_evaluations(pipe) as rows:
        pipe.with_scheduler("ddim").generate("a road", [0, 1], steps=3)
    assert sum(rows) == 2 * 2 * 3
    pipe.generate("a road", steps=1)
    assert sum(rows) == 2 * 2 * 3


def test_json_has_no_number_that_is_none(report: EditReport) -> None:
    text = json.dumps(report.to_json(), allow_nan=False)
    again = json.loads(text)
    assert len(again["measured"]) == 4 * 12
    assert again["rows"]["all"][1]["inside_psnr"] is None


def test_the_sheet_shows_source_truth_and_techniques(report: EditReport) -> None:
    sheet = report.sheet(per_kind=1)
    assert sheet.size == (3 * (128 + 4) + 4, 6 * (128 + 4) + 4)
    first = tasks("development")[0]
    corner = np.asarray(sheet)[4:132, 4:132]
    assert np.array_equal(corner, first.source_pixels)


def test_techniques_are_chosen_by_name() -> None:
    assert list(chosen_techniques(["blend paste"])) == ["blend paste"]
    assert len(chosen_techniques([])) >= 20
    assert {"p2p direct", "p2p null-text"} <= set(chosen_techniques(["p2p"]))
    assert all(name.startswith("p2p ") for name in chosen_techniques(["p2p"]))
    assert not set(FRAME) & set(chosen_techniques([]))
    with pytest.raises(SettingError, match="no technique 'blen'; expected a group"):
        chosen_techniques(["blen"])


def test_the_command_prints_a_table_and_writes_a_sheet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "edits.png"
    arguments = ["bench", "edits", "--per-kind", "1", "--only", "img2img 0.5"]
    assert main([*arguments, "--out", str(sheet)]) == 0
    assert "img2img 0.5" in capsys.readouterr().out
    assert Image.open(sheet).width == 3 * 132 + 4
    assert main([*arguments, "--out", str(sheet)]) == 2
    assert "exists" in capsys.readouterr().err


def test_options_before_the_subcommand_are_not_passed_over(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["bench", "--model", "sd1", "edits"]) == 2
    assert "pare bench edits --model" in capsys.readouterr().err
