"""What a run hands back: a sequence of images with their seeds, latents and the run's report.

    images = pipe.generate("a snowy road", seeds=[7, 8])
    images[0]               # a PIL image
    images.tensor           # (2, 3, H, W) in [-1, 1]
    images.save("snow.png") # snow-7.png, snow-8.png

`Pipeline.generate` and `img2img` return `Images`; each technique returns a subclass with
what it measured.  Notebooks show it as the images, with the image before and the maps.
"""

from __future__ import annotations

import base64
import functools
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self, overload

from PIL import Image

from pare.errors import OutputError
from pare.io.images import WRITTEN_FORMATS, to_pil, to_tensor
from pare.io.whole_files import check_output, write_whole

if TYPE_CHECKING:
    from torch import Tensor

    from pare.recipes.recipe import Recipe


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Images(Sequence[Image.Image]):
    """The images of one run, in the order of their seeds: a sequence of 8-bit RGB images."""

    images: Sequence[Image.Image]
    seeds: Sequence[int] = ()
    """The seed of each image; empty where no noise was drawn."""
    labels: Sequence[str] = ()
    """What tells apart the images of one seed ("source", "target"); empty where it is one each."""
    decoded: Tensor | None = None
    """(B, 3, H, W), float32 on the CPU: the decoder's output before it is rounded to 8 bits."""
    latents: Tensor | None = None
    """(B, 4, h, w), float32, scaled by the VAE's `scaling_factor`."""
    before: Image.Image | None = None
    """The image that was edited; None for images from noise."""
    maps: Mapping[str, Image.Image] = field(default_factory=dict)
    """Images that explain the run, by their captions: masks, attention maps."""
    recipes: Sequence[Recipe] = ()
    """What makes each image again (`pare rerun`); empty where only the command writes one."""

    @classmethod
    def from_decoded(
        cls, decoded: Tensor, seeds: Sequence[int], *, latents: Tensor | None = None
    ) -> Self:
        """The images of a decoder's output (B, 3, H, W) in [-1, 1].

        Raises:
            ImageError: a value is NaN or infinite.
        """
        images = to_pil(decoded)
        return cls(images=images, seeds=tuple(seeds), decoded=decoded, latents=latents)

    @property
    def tensor(self) -> Tensor:
        """(B, 3, H, W), float32 on the CPU, about [-1, 1]; exact where the run kept it, else
        from the 8-bit images."""
        if self.decoded is not None:
            return self.decoded
        import torch

        return torch.cat([to_tensor(image) for image in self.images])

    def report(self) -> dict[str, object]:
        """What the run measured, fit for JSON; techniques add theirs."""
        return {}

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Image.Image]: ...
    def __getitem__(self, index: int | slice) -> Image.Image | Sequence[Image.Image]:
        return self.images[index]

    def __iter__(self) -> Iterator[Image.Image]:
        return iter(self.images)

    def __repr__(self) -> str:
        sizes = sorted({image.size for image in self.images})
        size = " or ".join(f"{width} x {height}" for width, height in sizes)
        count = f"{len(self)} image{'s' if len(self) != 1 else ''}"
        seeds = list(dict.fromkeys(self.seeds))
        some = ", ".join(map(str, seeds[:5])) + (", …" if len(seeds) > 5 else "")
        named = f", seed{'s' if len(seeds) != 1 else ''} {some}" if seeds else ""
        return f"{type(self).__name__}({count} of {size}{named})"

    # --- files ----------------------------------------------------------------------------

    def save(self, path: Path | str, *, force: bool = False) -> list[Path]:
        """Write the images and return their paths.

        One image is written to `path`; of several each gets its seed (and label) into its
        name: `snow.png` becomes `snow-7.png`, `snow-8.png`.  The ending says the format: .png,
        .jpg, .webp or .avif.  The file carries the image's recipe where there is one.

        Raises:
            OutputError: another ending, a path that cannot be written, or one that exists
                while `force` is False; then nothing is written.
            OSError: the disk is full, ….
        """
        paths = self.paths(Path(path))
        for one in paths:
            check_output(one, force=force)
        for k, one in enumerate(paths):
            write_whole(one, functools.partial(self.write, k, one.suffix), force=force)
        return paths

    def paths(self, path: Path) -> list[Path]:
        """The file of each image under the name `path`."""
        if path.suffix.lower() not in WRITTEN_FORMATS:
            endings = ", ".join(WRITTEN_FORMATS)
            raise OutputError(f"`path` is {path}", expected=f"a name that ends in {endings}")
        if len(self) == 1:
            return [path]
        names = [self.caption(k, "{seed}", "{label}", "-") for k in range(len(self))]
        if len(set(names)) < len(names):  # a seed that occurs twice: number them
            names = [f"{k + 1}-{name}".removesuffix("-") for k, name in enumerate(names)]
        return [path.with_name(f"{path.stem}-{name}{path.suffix}") for name in names]

    def write(self, k: int, suffix: str, file: BinaryIO) -> None:
        """Write image `k` into an open file, in the format of the name's ending `suffix`."""
        if self.recipes:
            from pare.recipes.recipe import save_image

            save_image(self.images[k], self.recipes[k], suffix, file)
        else:
            kind, settings = WRITTEN_FORMATS[suffix.lower()]
            self.images[k].save(file, format=kind, **settings)

    def caption(self, k: int, seed: str, label: str, between: str) -> str:
        """Image `k`'s seed and label in words, by the patterns `seed` and `label`."""
        words = []
        if self.seeds:
            words.append(seed.format(seed=self.seeds[k]))
        if self.labels:
            words.append(label.format(label=self.labels[k]))
        return between.join(words)

    # --- notebooks ------------------------------------------------------------------------

    def _repr_png_(self) -> bytes:
        """The images side by side."""
        width = sum(image.width for image in self.images)
        row = Image.new("RGB", (width, max(image.height for image in self.images)), "white")
        left = 0
        for image in self.images:
            row.paste(image, (left, 0))
            left += image.width
        return png(row)

    def _repr_html_(self) -> str:
        """The image before, the images with their seeds, and the maps."""
        captions = [self.caption(k, "seed {seed}", "{label}", ", ") for k in range(len(self))]
        shown = list(zip(captions, self.images, strict=True))
        if self.before is not None:
            shown.insert(0, ("before", self.before))
        figures = [figure(caption, image) for caption, image in [*shown, *self.maps.items()]]
        return f'<div style="display: flex; flex-wrap: wrap; gap: 8px">{"".join(figures)}</div>'


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def figure(caption: str, image: Image.Image) -> str:
    data = base64.b64encode(png(image)).decode()
    text = html.escape(caption)
    return (
        f'<figure style="margin: 0"><img alt="{text}" src="data:image/png;base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>"
    )
