"""The one renderer: a scene becomes an image and, for every object, two masks.

Painter's algorithm, from the sky to the car.  Two masks per object:

- `masks[name]`: the pixels that show the object itself;
- `reach[name]`: every pixel that the object influences: itself, its shadow, its
  reflection on a wet road, its light by night.  Outside the reach, the image with the
  object and the image without it are equal to the bit.

Read `canvas.py`, `light.py` and `road.py` for the means, `sky.py`, `places.py` and
`objects.py` for what is painted.
"""

from __future__ import annotations

import numpy as np

from roads.world.canvas import Canvas, Rendering
from roads.world.light import LIGHTS
from roads.world.objects import paint_car, paint_house, paint_streetlights
from roads.world.places import BACKGROUNDS, FOREGROUNDS
from roads.world.road import Road, paint_ground, paint_own_headlights, paint_road
from roads.world.scene import Scene
from roads.world.sky import paint_clouds, paint_orb, paint_rain, paint_sky

SIZE = 128  # pixels, height and width


def render(scene: Scene, size: int = SIZE) -> Rendering:
    """Render `scene` as `size` x `size` pixels.  The same scene gives the same bits."""
    canvas = Canvas(size)
    light = LIGHTS[scene.weather].tinted(scene.layout.tint, scene.place)
    road = Road(scene.layout)

    paint_sky(canvas, scene, light)
    if scene.orb:
        paint_orb(canvas, scene, light)
    if scene.clouds:
        paint_clouds(canvas, scene, light)
    BACKGROUNDS[scene.place](canvas, scene, light, scenery_stream(scene, "far"))
    paint_ground(canvas, scene, light, road)
    paint_road(canvas, scene, light, road)
    FOREGROUNDS[scene.place](canvas, scene, light, road, scenery_stream(scene, "near"))
    if scene.weather == "night":
        paint_own_headlights(canvas, road)
    if scene.house:
        paint_house(canvas, scene, light, road)
    if scene.streetlights:
        paint_streetlights(canvas, scene, light, road)
    if scene.car != "none":
        paint_car(canvas, scene, light, road)
    if scene.weather == "rainy":
        paint_rain(canvas, scenery_stream(scene, "rain"))
    return canvas.finish()


def scenery_stream(scene: Scene, part: str) -> np.random.Generator:
    """Trees, peaks and towers are drawn from the layout's seed, the same in every weather."""
    return np.random.default_rng([scene.layout.scenery, len(part), len(scene.place)])
