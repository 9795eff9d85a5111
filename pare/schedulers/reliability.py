"""From how many steps on each solver was measured to work, for models that bring such a file.

The built-in model has one, written by `python -m roads.benchmark.solver_reliability`: on it,
some solvers become unstable with few steps, or when they start midway.  Other models have
none, and nothing is said about them.

    {"trusted from": {"pndm": {"from noise": 25, "midway": null}, "lms karras": {…}, …}}

null: with no number of steps that was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pare.config import read_json, wrong_value
from pare.runtime.calls import warn_caller
from pare.schedulers.scheduler import Scheduler

RELIABILITY_FILE = "solver_reliability.json"  # in a model's folder
TRUSTED = "trusted from"
FROM_NOISE, MIDWAY = "from noise", "midway"

Reliability = Mapping[str, Mapping[str, int | None]]
"""Solver -> FROM_NOISE and MIDWAY -> the fewest steps to trust, or None."""


class UnreliableSolver(UserWarning):
    """A solver that was measured to fail on this model with so few steps, or from midway."""


def solver_label(scheduler: Scheduler) -> str:
    """The solver's name in the file: "lms karras" where Karras sigmas are chosen."""
    karras = getattr(scheduler.config, "use_karras_sigmas", False)
    return f"{scheduler.name} karras" if karras else scheduler.name


def read_reliability(folder: Path | str) -> Reliability:
    """What the model's folder says about solvers; empty if it has no such file.

    Raises:
        ConfigError: the file does not have the form above.
    """
    path = Path(folder) / RELIABILITY_FILE
    if not path.is_file():
        return {}
    solvers = read_json(path).get(TRUSTED)
    expected = "solvers with their fewest steps, or null"
    if not isinstance(solvers, dict):
        raise wrong_value(str(path), TRUSTED, solvers, expected)
    for solver, fewest in solvers.items():
        if not isinstance(fewest, dict) or not all(
            n is None or type(n) is int for n in fewest.values()
        ):
            raise wrong_value(str(path), solver, fewest, expected)
    return solvers


def warn_of_unreliable_solver(
    reliability: Reliability,
    scheduler: Scheduler,
    steps: int,
    start: int,
    *,
    model: str,
    own: str | None = None,
) -> None:
    """Warn where the file says that a run of `steps` from step index `start` is not to be trusted.

    Args:
        model, own: the model's name, and its own solver's Hub class.

    Warns:
        UnreliableSolver: with the fewest steps that are to be trusted.
    """
    solver, place = solver_label(scheduler), MIDWAY if start else FROM_NOISE
    fewest = reliability.get(solver, {}).get(place, 0)
    if fewest is not None and steps >= fewest:
        return
    problem = f"the solver {solver} is not reliable on {model} when a run starts {place}"
    its_own = own == scheduler.config.HUB_CLASS
    advice = [] if its_own else ["leave out `scheduler` for the model's own"]
    if fewest is not None:
        problem += f" with fewer than {fewest} steps"
        advice.insert(0, "raise `steps`")
    warn_caller(f"{problem}; {', or '.join(advice)}" if advice else problem, UnreliableSolver)
