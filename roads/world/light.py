"""Light: what weather and time of day do to every colour."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from roads.world.canvas import Array, Colour, rgb

WHITE = (0.96, 0.97, 1.0)


@dataclass(frozen=True)
class Light:
    """What weather and time of day do to colours."""

    sky_top: tuple[float, float, float]
    sky_low: tuple[float, float, float]
    ambient: tuple[float, float, float]  # multiplies every surface colour
    haze: float  # how fast things fade into the lower sky with distance
    snow: float = 0.0  # how much of every upper surface is white
    wet: float = 0.0  # how strongly the road mirrors
    dark: bool = False  # lamps are lit

    def tinted(self, tint: float, place: str) -> Light:
        """Warmer (tint > 0) or cooler light; the place colours the lower sky."""
        warm = np.array([1 + 0.05 * tint, 1.0, 1 - 0.06 * tint])
        low = np.array(self.sky_low) * warm
        dust = {"desert": (0.99, 0.86, 0.70), "city": (0.80, 0.72, 0.62)}.get(place)
        if dust is not None:
            low += (0.35 if place == "desert" else 0.22) * np.array(dust) * low.mean()
            low *= np.array(self.sky_low).mean() / low.mean()
        return replace(
            self,
            sky_top=triple(np.array(self.sky_top) * warm),
            sky_low=triple(low),
            ambient=triple(np.array(self.ambient) * warm),
        )

    def on(self, colour: Colour, distance: float = 0.0, own: float = 0.0) -> Array:
        """`colour` under this light, faded by `distance` (0 here … 1 at the horizon).

        `own` in [0, 1] keeps a part of the colour from the dark: things in headlights.
        """
        surface = rgb(colour)
        ambient = rgb(self.ambient)
        lit = surface * (ambient * (1 - own) + own)
        haze = rgb(self.sky_low)
        return lit + (haze - lit) * (self.haze * distance)

    def snowed(self, colour: Colour, share: float = 1.0) -> Array:
        """A surface colour with snow on it."""
        surface = rgb(colour)
        return surface + (rgb(WHITE) - surface) * (self.snow * share)


def triple(colour: npt.NDArray[np.floating]) -> tuple[float, float, float]:
    r, g, b = (float(v) for v in np.clip(colour, 0, 1))
    return r, g, b


LIGHTS = {
    "sunny": Light((0.16, 0.45, 0.90), (0.72, 0.88, 0.99), (1.0, 0.99, 0.95), haze=0.45),
    "snowy": Light((0.56, 0.66, 0.80), (0.84, 0.88, 0.93), (0.86, 0.90, 0.97), haze=0.6, snow=0.92),
    "rainy": Light((0.25, 0.29, 0.35), (0.50, 0.54, 0.58), (0.56, 0.60, 0.66), haze=0.75, wet=1.0),
    "night": Light(
        (0.02, 0.03, 0.13), (0.13, 0.17, 0.36), (0.27, 0.32, 0.50), haze=0.45, dark=True
    ),
}
