"""What the measurement of solvers makes of its cells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from roads.benchmark import solver_reliability
from roads.benchmark.solver_reliability import Cell, reliability, scenes, table, trusted_from

FOUND = {
    Cell("ddim", 1.0, 10): 0.96,
    Cell("ddim", 1.0, 25): 1.0,
    Cell("ddim", 0.6, 25): 1.0,
    Cell("pndm", 1.0, 10): 0.6,
    Cell("pndm", 1.0, 25): 0.97,
    Cell("pndm", 0.6, 25): 0.5,
}
KNOWN = {cell.key: found for cell, found in FOUND.items()}


def test_the_fewest_steps_from_which_all_are_good() -> None:
    assert trusted_from({5: 0.9, 10: 0.96, 25: 1.0}, best=1.0) == 10
    assert trusted_from({5: 1.0, 10: 0.8, 25: 1.0}, best=1.0) == 25  # 10 in between is not
    assert trusted_from({5: 1.0, 25: 0.9}, best=1.0) is None


def test_of_every_solver() -> None:
    found = reliability(KNOWN, (10, 25), (0.6, 1.0))
    assert found["ddim"] == {"from noise": 10, "midway": 25}
    assert found["pndm"] == {"from noise": 25, "midway": None}
    assert found["lms"] == {}


def test_the_table() -> None:
    shown = table(KNOWN, (10, 25), (0.6, 1.0)).splitlines()
    assert shown[0] == "| found, % | 10 steps | 25 steps |"
    assert shown[2:] == [
        "| ddim, strength 1 | 96 | 100 |",
        "| pndm, strength 1 | 60 | 97 |",
        "| ddim, strength 0.6 |  | 100 |",
        "| pndm, strength 0.6 |  | 50 |",
    ]


def test_its_scenes_are_sunny_and_have_a_car() -> None:
    drawn = scenes(20)
    assert len(drawn) == 20
    assert all(s.weather == "sunny" and s.car != "none" and not s.held_out for s in drawn)


def test_cells_are_kept_and_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells, page, data = (tmp_path / name for name in ("cells.json", "page.md", "data.json"))
    page.write_text("<!-- table: solvers -->\n<!-- end -->\n", encoding="utf-8")
    given = ["--steps", "2", "--strengths", "0.6", "1", "--seeds", "2", "--solver", "ddim",
             "--cells", str(cells), "--page", str(page), "--write", str(data)]  # fmt: skip
    assert solver_reliability.main(given) == 0
    kept = json.loads(cells.read_text(encoding="utf-8"))
    assert set(kept) == {"ddim, strength 0.6, 2 steps", "ddim, strength 1, 2 steps"}
    assert all(0 <= share <= 1 for share in kept.values())
    assert "| ddim, strength 1 |" in page.read_text(encoding="utf-8")
    assert set(json.loads(data.read_text(encoding="utf-8"))["trusted from"]["ddim"]) == {
        "from noise", "midway",
    }  # fmt: skip

    monkeypatch.delattr(solver_reliability, "measure")
    assert solver_reliability.main(given) == 0  # nothing is left to measure
