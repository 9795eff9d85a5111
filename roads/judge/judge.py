"""The judge: a classifier that finds what is in an image of the little world, and where.

    judge = load_judge()
    verdict = judge(images)[0]
    verdict.weather, verdict.car, verdict.has("house"), presence(verdict, "car", region)

One small convolutional network takes 128 x 128 pixels.  Weather and place are classified from
the whole image.  Each object has a map of 16 x 16 probabilities, "this object covers this cell";
the probability that it is in the image, or in a region, is that of the most probable cell
there.  So the verdicts on the whole image and on a region come from the same numbers.

`roads/judge/train_judge.py` trains it and reports how often it is right.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from pare.errors import ImageError, ModelError, SettingError
from pare.io.images import to_tensor
from pare.runtime.short_repr import short_repr
from roads.world.render import SIZE
from roads.world.scene import CARS, OBJECTS, PLACES, WEATHERS, Scene

FOLDER = Path(__file__).parents[2] / "pare" / "models" / "roads" / "judge"
GRID = 16  # cells along a side of the cover maps
COLOURS = CARS[1:]
CAR = OBJECTS.index("car")
ATTRIBUTES = ("weather", "place", "car", "streetlights", "clouds", "house", "orb")
REGION_SHARE = 1 / 8  # of a cell, from which on it belongs to a region that touches it

Array = npt.NDArray[np.float64]


# --- a verdict ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Verdict:
    """What the judge finds in one image."""

    weather: str
    place: str
    car: str  # "none" or its colour
    streetlights: bool
    clouds: bool
    house: bool
    orb: bool  # the sun; by night, the moon
    probability: Mapping[str, float]
    """Attribute -> the probability of the value that was chosen."""
    cover: Mapping[str, Array]
    """Object -> (16, 16): the probability that the object covers the cell."""

    __repr__ = short_repr

    def has(self, thing: str) -> bool:
        """Whether the object `thing` (one of OBJECTS) is in the image."""
        return self.car != "none" if thing == "car" else bool(getattr(self, thing))

    def agrees(self, scene: Scene, unseen: Collection[str] = frozenset()) -> dict[str, bool]:
        """Attribute -> whether it is as in `scene`.

        `unseen` are objects that are in the scene but cannot be made out in its image
        (`Data.unseen`): nothing can be said about them, and they are left out.
        """
        return {
            name: getattr(self, name) == getattr(scene, name)
            for name in ATTRIBUTES
            if name not in unseen
        }


def presence(verdict: Verdict, thing: str, region: npt.NDArray[np.bool_]) -> float:
    """The probability that `thing` is, in part at least, in the region (128, 128) bool.

    That of the best cell of which the region covers an eighth, or, where the region is too
    small for that, of the cell that it covers most.

    Raises:
        SettingError: not an object, a region of another shape, or an empty one.
    """
    if thing not in OBJECTS:
        raise SettingError(f"no object is called {thing!r}", expected=" or ".join(OBJECTS))
    if region.shape != (SIZE, SIZE):
        raise SettingError(f"the region is {region.shape}", expected=f"({SIZE}, {SIZE})")
    cell = SIZE // GRID
    share = region.astype(bool).reshape(GRID, cell, GRID, cell).mean(axis=(1, 3))
    if share.max() == 0:
        raise SettingError("the region is empty", expected="at least one pixel")
    inside = share >= min(REGION_SHARE, share.max())
    return float(verdict.cover[thing][inside].max())


# --- the network --------------------------------------------------------------------------


@dataclass(frozen=True)
class JudgeConfig:
    """`config.json` of the judge's folder."""

    widths: tuple[int, int, int, int] = (24, 48, 64, 96)
    """Channels at 64, 32, 16 and 8 cells a side."""
    temperatures: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Head -> what its logits are divided by, so that probabilities are frequencies
    (arXiv:1706.04599, section 4.2).  Heads: weather, place, colour, and every object."""

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> JudgeConfig:
        first, second, third, fourth = raw["widths"]
        return cls((first, second, third, fourth), dict(raw["temperatures"]))

    def temperature(self, head: str) -> float:
        return self.temperatures.get(head, 1.0)


@dataclass(frozen=True)
class Logits:
    """weather (B, 4), place (B, 4), colour of the car (B, 4), cover (B, 5, 16, 16)."""

    weather: Tensor
    place: Tensor
    colour: Tensor
    cover: Tensor

    __repr__ = short_repr

    @property
    def present(self) -> Tensor:
        """(B, 5): the logits of each object's most probable cell."""
        return self.cover.amax(dim=(2, 3))

    def calibrated(self, config: JudgeConfig) -> Logits:
        """Every head's logits divided by its temperature."""
        cover = self.cover.new_tensor([config.temperature(name) for name in OBJECTS])
        return Logits(
            self.weather / config.temperature("weather"),
            self.place / config.temperature("place"),
            self.colour / config.temperature("colour"),
            self.cover / cover.view(-1, 1, 1),
        )


class Convolution(nn.Sequential):
    """A convolution, batch normalisation (arXiv:1502.03167), ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )


class Residual(nn.Module):
    """x + two convolutions of it (arXiv:1512.03385, figure 2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Convolution(width, width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.second(self.first(x))))


class JudgeNetwork(nn.Module):
    """Pixels to logits: down to 16 x 16 cells, further down to 8 x 8, and up again."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        w64, w32, w16, w8 = config.widths
        self.fine = nn.Sequential(  # 128 -> 16 cells a side
            Convolution(3, w64, kernel=5, stride=2),
            Convolution(w64, w32, stride=2),
            Residual(w32),
            Convolution(w32, w16, stride=2),
            Residual(w16),
            Residual(w16),
        )
        self.coarse = nn.Sequential(Convolution(w16, w8, stride=2), Residual(w8))
        self.widen = nn.Conv2d(w8, w16, 1)
        self.weather = nn.Linear(w8, len(WEATHERS))
        self.place = nn.Linear(w8, len(PLACES))
        self.cover = nn.Conv2d(w16, len(OBJECTS), 1)
        self.colour = nn.Conv2d(w16, len(COLOURS), 1)
        nn.init.constant_(self.cover.bias, -4.0)  # type: ignore[arg-type]  # most cells are empty

    def forward(self, image: Tensor) -> Logits:
        """image (B, 3, 128, 128) in [-1, 1]."""
        fine = self.fine(image)
        coarse = self.coarse(fine)
        whole = coarse.mean(dim=(2, 3))
        cells = F.relu(fine + F.interpolate(self.widen(coarse), scale_factor=2.0))
        cover = self.cover(cells).float()
        # The car's colour is read where the car is.
        there = cover[:, CAR].detach().flatten(1).softmax(dim=1)
        colour = (self.colour(cells).float().flatten(2) * there.unsqueeze(1)).sum(dim=2)
        return Logits(self.weather(whole).float(), self.place(whole).float(), colour, cover)


# --- using it -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Judge:
    """The network with its weights and calibration."""

    network: JudgeNetwork
    config: JudgeConfig

    __repr__ = short_repr

    @torch.no_grad()
    def __call__(self, images: Tensor | Sequence[Image.Image]) -> list[Verdict]:
        """Classify images: (B, 3, H, W) in [-1, 1], or PIL images of any sizes.

        Other sizes than 128 x 128 are resized, antialiased.

        Raises:
            ImageError: a tensor of another shape.
        """
        verdicts: list[Verdict] = []
        for start in range(0, len(images), 64):
            image = prepare(images[start : start + 64])
            device = next(self.network.parameters()).device
            logits = self.network(image.to(device)).calibrated(self.config)
            verdicts += decide(logits)
        return verdicts


def load_judge(folder: Path | None = None, device: str = "cpu") -> Judge:
    """The judge in `folder` (config.json, model.safetensors); by default, the built-in one.

    Raises:
        ModelError: the folder lacks one of its files.
    """
    folder = FOLDER if folder is None else folder
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ModelError(
                f"{folder} has no {name}", fix="train a judge: roads.judge.train_judge"
            )
    config = JudgeConfig.read(json.loads((folder / "config.json").read_text()))
    network = JudgeNetwork(config)
    weights = {
        name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()
    }
    # Batch normalisation counts its training steps; the files do not keep that.
    counters = {name: torch.tensor(0) for name in network.state_dict() if name.endswith("tracked")}
    network.load_state_dict({**weights, **counters})
    return Judge(network.to(device).eval(), config)


def prepare(images: Tensor | Sequence[Image.Image]) -> Tensor:
    """The images as the network takes them: (B, 3, 128, 128) float32 in [-1, 1]."""
    if not isinstance(images, Tensor):
        return torch.cat([resized(to_tensor(image)) for image in images])
    if images.ndim != 4 or images.shape[1] != 3:
        raise ImageError(f"the images are {tuple(images.shape)}", expected="(B, 3, H, W)")
    return resized(images.float())


def resized(image: Tensor) -> Tensor:
    if image.shape[-2:] != (SIZE, SIZE):
        image = F.interpolate(image, (SIZE, SIZE), mode="bilinear", antialias=True)
    return image.clamp(-1, 1)  # a decoder's output may be a little outside


def decide(logits: Logits) -> list[Verdict]:
    """The most probable value of every attribute; `logits` are calibrated."""
    weather = logits.weather.double().softmax(dim=1).cpu()
    place = logits.place.double().softmax(dim=1).cpu()
    colour = logits.colour.double().softmax(dim=1).cpu()
    cover = logits.cover.double().sigmoid().cpu()
    return [verdict(*rows) for rows in zip(weather, place, colour, cover, strict=True)]


def verdict(weather: Tensor, place: Tensor, colour: Tensor, cover: Tensor) -> Verdict:
    """The verdict on one image, from probabilities (4,), (4,), (4,), (5, 16, 16)."""
    there = cover.amax(dim=(1, 2)).tolist()
    has = [odds > 0.5 for odds in there]
    sure = {name: max(odds, 1 - odds) for name, odds in zip(OBJECTS, there, strict=True)}
    if has[CAR]:  # there, and of this colour
        sure["car"] = there[CAR] * float(colour.max())
    return Verdict(
        weather=WEATHERS[int(weather.argmax())],
        place=PLACES[int(place.argmax())],
        car=COLOURS[int(colour.argmax())] if has[CAR] else "none",
        **{name: seen for name, seen in zip(OBJECTS, has, strict=True) if name != "car"},
        probability={"weather": float(weather.max()), "place": float(place.max()), **sure},
        cover=dict(zip(OBJECTS, cover.numpy(), strict=True)),
    )
