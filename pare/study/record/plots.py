"""Curves, by matplotlib (`pip install 'pare[study]'`): figures to show or to save.

    schedule_figure(pipe.scheduler, steps=15).savefig("schedule.png")

Figures are made without pyplot, so that nothing global is touched and no window opens.
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
    """The noise of the training, and the levels at which a run of `steps` looks.

    Left the two parts of x_t = signal * x0 + noise * eps over the timesteps; right sigma, their
    ratio, step by step.
    """
    timesteps = scheduler.timesteps(steps)
    alpha_bar = scheduler.schedule.alpha_bar
    looks = timesteps.levels[:-1]
    figure = new_figure(9, 3)
    left, right = figure.subplots(1, 2)
    left.plot(alpha_bar.sqrt().numpy(), label="signal, $\\sqrt{\\bar\\alpha}$")
    left.plot((1 - alpha_bar).sqrt().numpy(), label="noise, $\\sqrt{1 - \\bar\\alpha}$")
    left.plot(
        [level.t for level in looks], [level.noise_rate for level in looks], "k.",
        label=f"the {len(looks)} looks of {scheduler.name}",
    )  # fmt: skip
    left.set_xlabel("timestep t")
    left.legend(fontsize="small")
    right.plot([level.sigma for level in timesteps.levels], "o-", markersize=3)
    right.set_xlabel("step index i")
    right.set_ylabel("sigma = noise / signal")
    return figure


def embedding_figure(embedding: Tensor, names: Sequence[str], most: int = 20) -> Figure:
    """A prompt's embedding (77, C) as an image: a row a token, a column a channel.

    Args:
        names: of the tokens (`Words.names`).
        most: rows that are shown.
    """
    rows = embedding.detach().float().cpu()[:most]
    # A few channels are many times as large as the rest, and would leave it grey.
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
    """How far two prompts' embeddings (77, C) are apart, token by token.

    The text encoder looks backwards alone: before the first word that differs nothing does.
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
