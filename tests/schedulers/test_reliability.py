"""The warning of a solver that was measured to break on a model."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

import pare
from pare.errors import ConfigError
from pare.schedulers import build_scheduler
from pare.schedulers.reliability import (
    RELIABILITY_FILE,
    UnreliableSolver,
    read_reliability,
    solver_label,
    warn_of_unreliable_solver,
)
from roads.benchmark.solver_reliability import SOLVERS, STEPS
from tests.conftest import ROADS
from tests.schedulers.rollout import SD14

MEASURED: dict[str, dict[str, int | None]] = {
    "pndm": {"from noise": 25, "midway": None},
    "lms karras": {"from noise": 5},
}


def check(name: str, steps: int, start: int = 0, **options: bool) -> None:
    scheduler = build_scheduler(SD14, "a file", name, **options)
    warn_of_unreliable_solver(
        MEASURED, scheduler, steps, start, model="a model", own="LMSDiscreteScheduler"
    )


@pytest.mark.parametrize(
    ("solver", "steps", "start", "problem", "advice"),
    [
        ("pndm", 24, 0, "starts from noise with fewer than 25 steps",
         "raise `steps`, or leave out `scheduler` for the model's own"),
        ("pndm", 50, 20, "starts midway", "leave out `scheduler` for the model's own"),
        ("lms", 4, 0, "starts from noise with fewer than 5 steps", "raise `steps`"),
    ],
)  # fmt: skip
def test_too_few_steps_are_said(
    solver: str, steps: int, start: int, problem: str, advice: str
) -> None:
    karras = {"karras": True} if solver == "lms" else {}
    with pytest.warns(UnreliableSolver) as caught:
        check(solver, steps, start, **karras)
    (warning,) = caught
    said = str(warning.message)
    assert said.endswith(f"is not reliable on a model when a run {problem}; {advice}")


def test_what_was_measured_to_work_or_not_measured_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check("pndm", 25)
        check("lms", 1)  # its plain sigmas are another entry
        check("lms", 5, karras=True)
        check("lms", 5, start=2, karras=True)
        check("ddim", 1, start=0)


def test_the_file_of_the_built_in_model() -> None:
    measured = read_reliability(ROADS)
    assert set(measured) == set(SOLVERS)
    for fewest in measured.values():
        assert set(fewest) <= {"from noise", "midway"}
        assert set(fewest.values()) <= {None, *STEPS}
    pipe = pare.Pipeline.from_pretrained("roads", device="cpu")
    own = measured[solver_label(pipe.scheduler)]
    assert all(fewest is not None and fewest <= 25 for fewest in own.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.timesteps(25)
        pipe.timesteps(25, start=10)
    with pytest.warns(UnreliableSolver, match="pndm"):
        pipe.with_scheduler("pndm").timesteps(10, start=4)


@pytest.mark.parametrize("content", [[], {}, {"trusted from": {"pndm": 3}},
                                     {"trusted from": {"pndm": {"midway": "25"}}},
                                     {"trusted from": {"pndm": {"midway": True}}}])  # fmt: skip
def test_a_file_of_another_form_is_refused(content: object, tmp_path: Path) -> None:
    (tmp_path / RELIABILITY_FILE).write_text(json.dumps(content))
    with pytest.raises(ConfigError):
        read_reliability(tmp_path)


def test_most_models_have_no_such_file(tmp_path: Path) -> None:
    assert read_reliability(tmp_path) == {}
