"""A pipeline that loads in no time, for tests of what surrounds it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from PIL import Image, ImageOps

from pare.results import Images


@dataclasses.dataclass
class FakePipeline:
    """A model that paints every image, 24 x 16, in the grey level of its seed."""

    device: str = "cpu"
    dtype: str = "torch.float32"
    source: Any = dataclasses.field(
        default_factory=lambda: SimpleNamespace(describe=lambda: {"name": "fake"})
    )
    scheduler: Any = dataclasses.field(
        default_factory=lambda: SimpleNamespace(describe=lambda: {"name": "ddim"})
    )
    asked: dict[str, Any] = dataclasses.field(default_factory=dict)

    trained_size: tuple[int, int] = (24, 16)

    def plan(
        self, count: int, height: int, width: int, *, batch: int | None, tile: int | None, **_: Any
    ) -> Any:
        return SimpleNamespace(batch=batch or count, tile=tile)

    def generate(self, prompt: str, seeds: Sequence[int], **given: Any) -> Any:
        self.asked = {"prompt": prompt, "seeds": list(seeds), **given}
        grey = [Image.new("RGB", (24, 16), (seed % 256,) * 3) for seed in seeds]
        return Images(images=grey, seeds=seeds)

    def img2img(self, image: Any, prompt: str, seeds: Sequence[int], **given: Any) -> Any:
        self.asked = {"image": image, "prompt": prompt, "seeds": list(seeds), **given}
        return Images(images=[ImageOps.invert(image)] * len(seeds), seeds=seeds)
