"""The table of docs/prompt-to-prompt.md: how strictly Prompt-to-Prompt keeps the layout.

python docs/images/how_strictly.py
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import pare
from pare.io.metrics import structure_distance
from roads.benchmark.edit_tasks import ATTRIBUTES
from roads.judge.judge import Judge, load_judge
from techniques.prompt_to_prompt import Edit, Sites, prompt_to_prompt

CHANGES = (("sunny", "snowy"), ("sunny", "rainy"), ("forest", "desert"))
SOURCE, SEEDS, STEPS = "a sunny road in the forest", (102, 103, 104, 105), 15
# How fine a grid self-attention is the source's in -> the shares of the steps, cross and self.
LINES = {
    0.25: ((0.8, 0.4),),
    0.5: ((0.0, 0.0), (0.8, 0.0), (0.8, 0.4), (0.8, 0.8)),
    1.0: ((0.8, 0.4), (0.8, 0.8), (1.0, 0.6)),
}


def measured(
    pipe: pare.Pipeline, judge: Judge, shares: Sequence[tuple[float, float]], finest: float
) -> list[list[float]]:
    """Of each pair of shares: edited, kept and structure, the means over changes and seeds."""
    found = []
    for old, new in CHANGES:
        target = SOURCE.replace(old, new)
        edits = [Edit(target, cross_replace=cross, self_replace=own) for cross, own in shares]
        changed = "weather" if old == "sunny" else "place"
        others = [name for name in ATTRIBUTES if name != changed]
        for seed in SEEDS:
            done = prompt_to_prompt(
                pipe, SOURCE, edits, [seed], steps=STEPS, self_sites=Sites(finest=finest)
            )
            images = [done.sources[0], *done.targets[0]]
            first, *verdicts = judge(images)
            pixels = [np.asarray(image) for image in images]
            found.append(
                [
                    [
                        float(getattr(verdict, changed) == new),
                        np.mean([getattr(verdict, k) == getattr(first, k) for k in others]),
                        structure_distance(pixels[0], after),
                    ]
                    for verdict, after in zip(verdicts, pixels[1:], strict=True)
                ]
            )
    means: list[list[float]] = np.mean(found, axis=0).tolist()
    return means


def main() -> None:
    pipe = pare.Pipeline.from_pretrained("roads", scheduler="dpm++2m", karras=True)
    judge = load_judge()
    rows = [
        (cross, own, finest if own else 0.0, *figures)
        for finest, shares in LINES.items()
        for (cross, own), figures in zip(shares, measured(pipe, judge, shares, finest), strict=True)
    ]
    print("| cross | self | self up to | edited | kept | structure |")
    print("|---:|---:|---:|---:|---:|---:|")
    for cross, own, finest, edited, kept, structure in sorted(rows):
        grid = {0.0: "", 0.25: "1/4", 0.5: "1/2", 1.0: "1"}[finest]
        print(f"| {cross:g} | {own:g} | {grid} | {edited:.2f} | {kept:.2f} | {structure:.3f} |")


if __name__ == "__main__":
    main()
