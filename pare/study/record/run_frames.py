"""The frames of a film of a run: x_t beside the predicted x0, step by step.

    recording = Recording(pipe)
    with recording as recorded:
        recorded.generate("a snowy road", 7, steps=25)
    frames = list(film_frames(pipe, recording))

The predicted x0 looks like an image early in the run, while x_t is still noise and changes little
at each step.  `film_frames` can also show `next`, x_t after the step, and the latents themselves
instead of their decoded images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor

from pare.errors import SettingError
from pare.io.images import to_pil
from pare.pipeline import Pipeline
from pare.study.record.heatmap import grey_image
from pare.study.record.image_grid import gallery
from pare.study.record.recording import Recording

PANELS = ("x_t", "x0", "next")
SMALLEST = 256  # pixels: a smaller image is shown enlarged
LATENT_RANGE = (-4.0, 4.0)  # from black to white; the noise has standard deviation 1


def film_frames(
    pipe: Pipeline,
    recording: Recording,
    panels: Sequence[str] = ("x_t", "x0"),
    *,
    raw: bool = False,
    image: int = 0,
) -> Iterator[Image.Image]:
    """A frame for each step and one for the finished image, all of one size.

    Args:
        panels: what a frame shows side by side: "x_t", the latents before the step; "x0", the
            predicted x0; "next", the latents after the step.
        raw: show the latents' four channels in grey, -4 black and 4 white, instead of decoding
            them.
        image: which image of the run.

    Raises:
        SettingError: no panels, or one that does not exist.
    """
    if not panels or not set(panels) <= set(PANELS):
        raise SettingError(f"`panels` is {list(panels)}", expected=f"some of {', '.join(PANELS)}")
    x_t, x0 = recording["x_t"][:, image], recording["x0"][:, image]
    count = len(recording.levels)
    for i, level in enumerate(recording.levels):
        step = f"step {i + 1} of {count}"
        shown = {
            "x_t": (f"x_t, {step}: t = {level.t:.0f}, sigma {level.sigma:.2f}", x_t[i]),
            "x0": (f"predicted x0, {step}", x0[i]),
            "next": (f"x_t after {step}", x_t[i + 1]),
        }
        yield frame(pipe, [shown[panel] for panel in panels], raw)
    # A label has to differ from panel to panel.
    ends = {"x_t": f"x_t after {count} steps", "x0": "the image", "next": "the finished latents"}
    yield frame(pipe, [(ends[panel], x_t[-1]) for panel in panels], raw)


@torch.no_grad()
def frame(pipe: Pipeline, panels: Sequence[tuple[str, Tensor]], raw: bool) -> Image.Image:
    """Captioned latents (4, h, w) side by side."""
    if raw:
        images = {caption: latent_image(latents) for caption, latents in panels}
    else:
        images = {
            caption: enlarged(to_pil(pipe.decode(latents[None]))[0]) for caption, latents in panels
        }
    return gallery(images, columns=len(images))


def latent_image(latents: Tensor) -> Image.Image:
    """The four channels of latents (4, h, w), two above two."""
    rows = [torch.cat([latents[0], latents[1]], dim=1), torch.cat([latents[2], latents[3]], dim=1)]
    return enlarged(grey_image(torch.cat(rows), bounds=LATENT_RANGE))


def enlarged(image: Image.Image, smallest: int = SMALLEST) -> Image.Image:
    """A small image at a whole multiple of its size, its pixels as squares."""
    factor = max(1, smallest // min(image.size))
    size = image.width * factor, image.height * factor
    return image.resize(size, Image.Resampling.NEAREST)
