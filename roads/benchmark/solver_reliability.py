"""From how many steps on each solver can be trusted on the built-in model.

    python -m roads.benchmark.solver_reliability --cells runs/solvers.json \\
        --page docs/schedulers.md --write pare/models/roads/solver_reliability.json

A cell of the table is one solver, one number of steps and one strength: 20 runs, each from
another held-out scene.  Strength 1 starts from noise; less starts midway, as image-to-image
does, from the scene's latents at that noise level.  The prompt names everything in the scene,
under another weather, and guidance is 7.5.  The judge says which of the named things are in
the result.  Where a solver becomes unstable, the image dissolves and they are not.

Cells that `--cells` already holds are not measured again, so a run can be interrupted.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from pare.io.whole_files import write_whole
from pare.noise import Noise
from pare.pipeline import Pipeline
from pare.schedulers import add_noise, start_index
from pare.schedulers.reliability import FROM_NOISE, MIDWAY, TRUSTED
from roads.benchmark.tables.tables_page import fill, markdown
from roads.command_line import exit_code_of
from roads.judge.judge import Judge, Verdict, load_judge
from roads.train.train_vae import pixels_to_tensor
from roads.world.captions import full_caption, read_caption
from roads.world.render import render
from roads.world.scene import HELD_OUT_SEEDS, WEATHERS, Scene, draw_scene

FIRST_SCENE = HELD_OUT_SEEDS + 400_000
STEPS = (5, 8, 10, 15, 20, 25, 30, 50)
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
GUIDANCE = 7.5
MARGIN = 0.05  # of the share found by the best solver at the same strength, at any steps
TABLE = "solvers"

# Label, as `pare.schedulers.reliability.solver_label` gives it -> solver and its options.
SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm++2m karras": ("dpm++2m", {"karras": True}),
    "ddim": ("ddim", {}),
    "euler karras": ("euler", {"karras": True}),
    "euler-ancestral": ("euler-ancestral", {}),
    "lms karras": ("lms", {"karras": True}),
    "pndm": ("pndm", {}),
    "dpm++2m": ("dpm++2m", {"karras": False}),
    "lms": ("lms", {"karras": False}),
    "euler": ("euler", {"karras": False}),
}


@dataclass(frozen=True)
class Cell:
    """One entry of the table."""

    solver: str  # a key of SOLVERS
    strength: float
    steps: int

    @property
    def key(self) -> str:
        return f"{self.solver}, strength {self.strength:g}, {self.steps} steps"


@dataclass(frozen=True)
class Starts:
    """What all cells start from: `latents` (N, 4, 16, 16), and a prompt for each."""

    latents: Tensor
    prompts: list[str]


def scenes(count: int) -> list[Scene]:
    """`count` held-out sunny scenes, each with a car."""
    drawn = (draw_scene(FIRST_SCENE + k).replace(weather="sunny") for k in range(100 * count))
    seen = [scene for scene in drawn if scene.car != "none" and not scene.held_out]
    return seen[:count]


def starts(pipe: Pipeline, count: int) -> Starts:
    """The scenes' latents; the prompts ask for snow, rain and night in turn."""
    chosen = scenes(count)
    pixels = np.stack([render(scene).pixels for scene in chosen])
    others = [weather for weather in WEATHERS if weather != "sunny"]
    prompts = [
        full_caption(scene.replace(weather=others[k % len(others)], orb=False))
        for k, scene in enumerate(chosen)
    ]
    return Starts(pipe.encode(pixels_to_tensor(pixels)), prompts)


@torch.no_grad()
def images(pipe: Pipeline, given: Starts, strength: float, steps: int, batch: int) -> Tensor:
    """One image (N, 3, 128, 128) per start; image k has the seed k."""
    parts = []
    for first in range(0, len(given.prompts), batch):
        rows = slice(first, min(first + batch, len(given.prompts)))
        noise = Noise(list(range(rows.start, rows.stop)))
        unit = noise.draw(tuple(given.latents.shape[1:]))
        timesteps = pipe.scheduler.timesteps(steps, start_index(steps, strength))
        if strength == 1:
            x_t = unit * timesteps.initial_scale
        else:
            x_t = add_noise(given.latents[rows], unit, timesteps.levels[0].alpha_bar)
        prompts = pipe.encode_prompts(given.prompts[rows])
        x0 = pipe.denoise(x_t, timesteps, prompts, guidance=GUIDANCE, noise=noise)
        parts.append(pipe.decode(x0))
    return torch.cat(parts)


def share_found(prompts: Sequence[str], verdicts: Sequence[Verdict], *, weather: bool) -> float:
    """The share of what the prompts name that the judge finds.

    `weather` counts only in images from noise: midway the start may have settled it.
    """
    marks = [
        getattr(verdict, name) == value
        for prompt, verdict in zip(prompts, verdicts, strict=True)
        for name, value in read_caption(prompt).items()
        if weather or name != "weather"
    ]
    return float(np.mean(marks))


def measure(
    pipe: Pipeline,
    judge: Judge,
    cells: Sequence[Cell],
    known: dict[str, float],
    *,
    count: int,
    batch: int,
    keep: Path | None = None,
) -> dict[str, float]:
    """Cell -> share found; `known` cells are kept, and each new one is written to `keep`."""
    given = starts(pipe, count)
    for cell in cells:
        if cell.key in known:
            continue
        name, options = SOLVERS[cell.solver]
        solver = pipe.with_scheduler(name, **options)
        made = images(solver, given, cell.strength, cell.steps, batch)
        found = share_found(given.prompts, judge(made), weather=cell.strength == 1)
        known[cell.key] = round(found, 4)
        print(f"{cell.key}: {100 * found:.1f} %", flush=True)
        if keep is not None:
            write_json(keep, known)
    return known


# --- the result ---------------------------------------------------------------------------


def trusted_from(found: Mapping[int, float], best: float) -> int | None:
    """The fewest steps from which on every measured number of steps is within MARGIN of `best`.

    `found`: steps -> share found.  None: not even the most steps are.
    """
    fewest = None
    for steps in sorted(found, reverse=True):
        if found[steps] < best - MARGIN:
            break
        fewest = steps
    return fewest


def reliability(
    known: Mapping[str, float], steps: Sequence[int], strengths: Sequence[float]
) -> dict[str, dict[str, int | None]]:
    """Solver -> FROM_NOISE and MIDWAY -> the fewest steps to trust, or None.

    Midway takes the worst of all strengths below 1.
    """
    result: dict[str, dict[str, int | None]] = {}
    for solver in SOLVERS:
        fewest: dict[float, int | None] = {}
        for strength in strengths:
            best = max(known[Cell(s, strength, n).key] for s in SOLVERS for n in steps
                       if Cell(s, strength, n).key in known)  # fmt: skip
            own = {n: known[key] for n in steps if (key := Cell(solver, strength, n).key) in known}
            if own:
                fewest[strength] = trusted_from(own, best)
        midway = [value for strength, value in fewest.items() if strength < 1]
        result[solver] = {}
        if 1.0 in fewest:
            result[solver][FROM_NOISE] = fewest[1.0]
        if midway:
            result[solver][MIDWAY] = None if None in midway else max(n for n in midway if n)
    return result


def table(known: Mapping[str, float], steps: Sequence[int], strengths: Sequence[float]) -> str:
    """One row per solver and strength, one column per number of steps; in per cent."""
    rows = []
    for strength in sorted(strengths, reverse=True):
        for solver in SOLVERS:
            found = [known.get(Cell(solver, strength, n).key) for n in steps]
            if any(value is not None for value in found):
                shown = ["" if value is None else f"{100 * value:.0f}" for value in found]
                rows.append([f"{solver}, strength {strength:g}", *shown])
    return markdown(["found, %", *(f"{n} steps" for n in steps)], rows)


def write_json(path: Path, content: Any) -> None:
    def write(file: BinaryIO) -> None:
        file.write((json.dumps(content, indent=2) + "\n").encode())

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, write, force=True)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m roads.benchmark.solver_reliability",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="roads", help="as for pare generate: a name or a folder")
    add("--solver", action="append", choices=[*SOLVERS], help="only this one; repeatable")
    add("--steps", type=int, nargs="+", default=[*STEPS], help="numbers of steps")
    add("--strengths", type=float, nargs="+", default=[*STRENGTHS], help="1 starts from noise")
    add("--seeds", type=int, default=20, help="runs per cell")
    add("--batch", type=int, default=5, help="images at a time")
    add("--cells", type=Path, help="a .json that keeps what was measured")
    add("--keep", action="store_true", help="measure nothing: write what --cells holds")
    add("--page", type=Path, help="write the table between its markers on this page")
    add("--write", type=Path, help="write from how many steps on to trust each solver, as JSON")
    return parser


def main(arguments: list[str] | None = None) -> int:
    return exit_code_of(functools.partial(run, parser().parse_args(arguments)))


def run(options: argparse.Namespace) -> int:
    kept = options.cells is not None and options.cells.is_file()
    known = json.loads(options.cells.read_text(encoding="utf-8")) if kept else {}
    cells = [
        Cell(solver, strength, steps)
        for steps in options.steps
        for strength in options.strengths
        for solver in options.solver or SOLVERS
    ]
    if not options.keep and any(cell.key not in known for cell in cells):
        pipe, judge = Pipeline.from_pretrained(options.model), load_judge()
        measure(
            pipe, judge, cells, known, count=options.seeds, batch=options.batch, keep=options.cells
        )
    shown = table(known, options.steps, options.strengths)
    print(shown)
    if options.page is not None:
        text = fill(options.page.read_text(encoding="utf-8"), {TABLE: shown})
        write_whole(options.page, functools.partial(write_bytes, content=text.encode()), force=True)
    if options.write is not None:
        trusted = reliability(known, options.steps, options.strengths)
        write_json(options.write, {TRUSTED: trusted})
    return 0


def write_bytes(file: BinaryIO, content: bytes) -> None:
    file.write(content)


if __name__ == "__main__":
    sys.exit(main())
