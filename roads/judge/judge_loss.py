"""The judge as a differentiable loss: -log of the probability that an image shows something.

    from techniques.loss_guidance import guide

    guide(pipe, "a road in the forest", judge_loss(load_judge(), "snowy"), seeds=[3])

A classifier's gradient also finds adversarial patterns: an image with a low loss need not show
the thing (arXiv:2105.05233 trains its classifier on noisy images for that reason).
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pare.errors import LossError
from roads.judge.judge import CAR, COLOURS, Judge, Logits, prepare
from roads.world.captions import read_caption
from roads.world.scene import OBJECTS, PLACES, WEATHERS

Pick = Callable[[Logits], Tensor]


def judge_loss(judge: Judge, wanted: str) -> Callable[[Tensor], Tensor]:
    """-log p that an image, (1, 3, H, W) in [0, 1], is or shows what is wanted.

    Args:
        wanted: a weather (`snowy`), a place (`city`), an object (`house`), its absence
            (`no house`) or a car of a colour (`red car`).

    Raises:
        LossError: the judge does not know it.
    """
    known = picks()
    name = " ".join(wanted.lower().split())
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise LossError(
            f"the judge knows no {wanted[:40]!r}", expected=f"one of {', '.join(known)}{hint}"
        )
    pick = known[name]

    def loss(image: Tensor) -> Tensor:
        device = next(judge.network.parameters()).device
        logits = judge.network(prepare(2 * image - 1).to(device)).calibrated(judge.config)
        return -pick(logits)

    return loss


def caption_loss(judge: Judge, caption: str) -> Callable[[Tensor], Tensor]:
    """-log p that an image, (1, 3, H, W) in [0, 1], is all that a caption of this world says.

    Raises:
        LossError: the caption says nothing that the judge knows.
    """
    said = read_caption(caption)
    if not said:
        raise LossError(
            f"{caption[:60]!r} says nothing that the judge of roads knows",
            expected="a weather, a place or an object, like 'a snowy road with a red car'",
        )
    losses = [judge_loss(judge, wanted(name, value)) for name, value in said.items()]
    return lambda image: torch.stack([loss(image) for loss in losses]).sum()


def wanted(name: str, value: str | bool) -> str:
    """What `read_caption` has found, as `judge_loss` calls it."""
    if name in ("weather", "place"):
        return str(value)
    if value in ("none", False):
        return f"no {name}"
    return f"{value} car" if value in COLOURS else name


def picks() -> dict[str, Pick]:
    """Everything that can be wanted -> its log-probability, from the logits of one image."""
    known = {weather: partial(weather_is, k) for k, weather in enumerate(WEATHERS)}
    known |= {place: partial(place_is, k) for k, place in enumerate(PLACES)}
    known |= {thing: partial(has, k) for k, thing in enumerate(OBJECTS)}
    known |= {f"no {thing}": partial(has_not, k) for k, thing in enumerate(OBJECTS)}
    known |= {f"{colour} car": partial(car_is, k) for k, colour in enumerate(COLOURS)}
    return dict(known)


def weather_is(index: int, logits: Logits) -> Tensor:
    return logits.weather.log_softmax(dim=1)[0, index]


def place_is(index: int, logits: Logits) -> Tensor:
    return logits.place.log_softmax(dim=1)[0, index]


def has(index: int, logits: Logits) -> Tensor:
    return F.logsigmoid(logits.present[0, index])


def has_not(index: int, logits: Logits) -> Tensor:
    return F.logsigmoid(-logits.present[0, index])


def car_is(index: int, logits: Logits) -> Tensor:
    return has(CAR, logits) + logits.colour.log_softmax(dim=1)[0, index]
