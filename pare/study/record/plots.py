"""Figures by matplotlib (`pip install 'pare[study]'`), to show or to save.

    schedule_figure(pipe.scheduler, steps=15).savefig("schedule.png")

They are made without pyplot: no global state is changed, and no window opens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pare.errors import MissingExtraError
from pare.schedulers import Scheduler

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "matplotlib is not installed, which draws curves",
            fix="run `pip install 'pare[study]'`",
        ) from error
    return Figure((width, height), layout="constrained")


def schedule_figure(scheduler: Scheduler, steps: int) -> Figure:
    """The training's noise schedule, and the noise levels of a run of `steps`.

    Left the two coefficients of x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps over the
    training timesteps; right sigma, their ratio, step by step.
    """
    timesteps = scheduler.timesteps(steps)
    alpha_bar = scheduler.schedule.alpha_bar
    levels = timesteps.levels[:-1]
    figure = new_figure(9, 3)
    left, right = figure.subplots(1, 2)
    left.plot(alpha_bar.sqrt().numpy(), label="signal, $\\sqrt{\\bar\\alpha}$")
    left.plot((1 - alpha_bar).sqrt().numpy(), label="noise, $\\sqrt{1 - \\bar\\alpha}$")
    left.plot(
        [level.t for level in levels], [level.noise_rate for level in levels], "k.",
        label=f"the {len(levels)} evaluations of {scheduler.name}",
    )  # fmt: skip
    left.set_xlabel("timestep t")
    left.legend(fontsize="small")
    right.plot([level.sigma for level in timesteps.levels], "o-", markersize=3)
    right.set_xlabel("step index i")
    right.set_ylabel("sigma = noise / signal")
    return figure


def embedding_figure(embedding: Tensor, names: Sequence[str], most: int = 20) -> Figure:
    """A prompt's embedding (77, C) as an image: one row per token, one column per channel.

    Args:
        names: of the tokens (`Words.names`).
        most: rows that are shown.
    """
    rows = embedding.detach().float().cpu()[:most]
    # A few channels are many times larger than the rest, and would set the scale.
    bound = float(rows.abs().quantile(0.98))
    figure = new_figure(10, 0.6 + 0.22 * len(rows))
    axes = figure.subplots()
    shown = axes.imshow(
        rows.numpy(), cmap="RdBu", vmin=-bound, vmax=bound, aspect="auto", interpolation="nearest"
    )
    axes.set_yticks(range(len(rows)), list(names[: len(rows)]))
    axes.set_xlabel("channel")
    figure.colorbar(shown)
    return figure


def difference_figure(one: Tensor, other: Tensor, names: Sequence[str]) -> Figure:
    """The relative distance of two prompts' embeddings (77, C), token by token.

    The text encoder's attention is causal: up to the first token that differs, it is 0.
    """
    apart = torch.linalg.vector_norm((one - other).detach().float().cpu(), dim=1)
    size = torch.linalg.vector_norm(one.detach().float().cpu(), dim=1)
    figure = new_figure(10, 2.4)
    axes = figure.subplots()
    axes.bar(range(len(apart)), (apart / size).tolist())
    shown = [k for k, name in enumerate(names) if name != "<padding>"]
    axes.set_xticks(shown, [names[k] for k in shown], rotation=60, ha="right", fontsize="small")
    axes.set_ylabel("|difference| / |embedding|")
    return figure


def curves_figure(curves: Mapping[str, Sequence[float]], across: str, up: str) -> Figure:
    """Named curves over a step index."""
    figure = new_figure(7, 2.6)
    axes = figure.subplots()
    for name, values in curves.items():
        axes.plot(values, label=name)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.legend(fontsize="small")
    return figure
