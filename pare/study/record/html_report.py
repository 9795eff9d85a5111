"""The report: one run as one HTML page, for a browser.

    report = RunReport(pipe, [read(pipe.tokenizer, prompt)], steps=30)
    with report as recorded:
        images = recorded.generate(prompt, 7, steps=30)
    report.write(Path("road.html"), images[0], {"prompt": prompt, "seed": 7})

The page is one file that needs no network and no server.  It shows what was recorded during the run
(`recording`, `attention_maps`, `self_attention`): latents and predictions at each step, both
branches of the guidance, the attention maps of every word and of every pixel, and each layer's
statistics and a few of its channels as small images.  `page/` has its HTML, CSS and JavaScript.
"""

from __future__ import annotations

import html
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pare.attention import Site
from pare.io.images import to_pil
from pare.io.whole_files import write_whole
from pare.pipeline import Pipeline
from pare.schedulers import interpret
from pare.study.inspect.as_json import as_json
from pare.study.inspect.layer_table import Layer, LayerTable
from pare.study.inspect.source_lines import source_lines
from pare.study.inspect.u_shape import u_shape
from pare.study.record.attention_maps import WordMap, WordRecorder, grid_at, layer_name
from pare.study.record.html_packing import Pack, eight_bit
from pare.study.record.recording import (
    RecordedPipeline,
    Recording,
    check_memory,
    grid_of,
    part_table,
)
from pare.study.record.reductions import REDUCTIONS, Grid, Reduction, to_cpu
from pare.study.record.self_attention import SelfAttentionRecorder
from pare.text.words import Words

PAGE = Path(__file__).parent / "page"

SCRIPTS = ("run.js", "drawing.js", "attention.js", "steps.js", "u.js", "main.js")

MOST_STEPS = 60
"""Of a longer run at most so many steps are recorded, evenly spaced."""
IMAGES_BUDGET = 16_000_000
"""Bytes of layers' images in a page, before compression; `CHOICES` are tried in order."""
CHOICES = ((64, 4), (32, 4), (32, 2), (32, 0), (16, 0), (8, 0), (4, 0))
"""Largest side of a layer's images, and channels of it that are shown."""
WORDS_BUDGET = 6_000_000
"""Bytes of cross-attention maps."""
SELF_BUDGET = 4_000_000
"""Bytes of self-attention matrices: those of the finest resolution stage that fits."""
DECODED = 256 * 256
"""Pixels up to which the VAE decodes every step; larger images are sketched (`sketches`)."""
SIDE = 320
"""Pixels of the longest side of a step's image in the page."""
LONGEST_ROW = 256
"""Values of a vector that are shown; a longer one is averaged down."""


def images(side: int, channels: int) -> Reduction:
    """The root mean square over the channels and some channels, evenly spaced, as small images.

    (rows, …) -> (rows, 1 + channels, h, w) with h and w at most `side`; without pixels
    (rows, 1, 1, n).
    """

    def reduce(x: Tensor, grid: Grid | None) -> Tensor:
        x = x.float()
        if x.ndim == 3 and grid is not None:
            x = x.transpose(1, 2).unflatten(2, grid)  # type: ignore[no-untyped-call]
        if x.ndim != 4:
            row = x if x.ndim == 2 else x.square().mean(dim=-1).sqrt()
            shown = F.adaptive_avg_pool1d(row, min(row.shape[1], LONGEST_ROW))
            return to_cpu(shown[:, None, None])
        strength = x.square().mean(dim=1, keepdim=True).sqrt()
        count = min(channels, x.shape[1])
        chosen = x[:, [(2 * k + 1) * x.shape[1] // (2 * count) for k in range(count)]]
        shown = torch.cat([strength, chosen], dim=1)
        h, w = shown.shape[2:]
        return to_cpu(F.adaptive_avg_pool2d(shown, small((h, w), side)))

    return Reduction(reduce, lambda ndim, grid: ("image", "y", "x"))


def small(grid: Grid, side: int) -> Grid:
    """The grid, its longest side brought down to at most `side`."""
    shrink = min(1.0, side / max(grid))
    return max(1, round(grid[0] * shrink)), max(1, round(grid[1] * shrink))


def choose_images(table: LayerTable, steps: int) -> tuple[int, int]:
    """Side and channels of layers' images with which those of all recorded steps fit the page."""
    for side, channels in CHOICES:
        if steps * sum(image_size(table, layer, side, channels) for layer in table) <= (
            IMAGES_BUDGET
        ):
            break
    return side, channels


def image_size(table: LayerTable, layer: Layer, side: int, channels: int) -> int:
    """How many values a layer's images of one step have."""
    seen = torch.empty((1, *layer.outputs[0][1:]), device="meta")
    return images(side, channels).reduce(seen, grid_of(table, layer.name)).numel()


def choose_stage(sites: Iterable[Site], latents: Grid, steps: int) -> int | None:
    """The finest resolution stage whose self-attention of all recorded steps fits the page."""
    stages = sorted({site.stage for site in sites if site.kind == "self"})
    fits = (s for s in stages if steps * math.prod(grid_at(latents, s)) ** 2 <= SELF_BUDGET)
    return next(fits, None)


class RecordedWords(WordRecorder):
    """Word maps of the steps that a recording keeps."""

    recording: Recording

    def observes(self, site: Site, step: int) -> bool:
        return super().observes(site, step) and self.recording.wants(step)


class RunReport:
    """The report on one run, the one inside its `with` block."""

    def __init__(
        self,
        pipe: Pipeline,
        texts: Sequence[Words],
        *,
        steps: int,
        size: tuple[int, int] | None = None,
        image: int = 0,
    ) -> None:
        """
        Args:
            texts: the prompts of all images of the run's batch.
            steps: of the run.
            size: width and height in pixels; None is the model's own.
            image: which of the run's images the report is about.

        Of several trajectories, as in an edit that inverts and samples, the last one is reported.
        """
        self.pipe, self.words, self.image = pipe, texts[image], image
        self.count = len(texts)
        width, height = size or pipe.trained_size
        _, *self.latents = pipe.latent_shape(height, width)
        self.size = width, height
        every = math.ceil(steps / MOST_STEPS)
        recorded = math.ceil(steps / every)
        table = part_table(pipe, "unet", (self.latents[0], self.latents[1]))
        self.table = LayerTable.of([layer for layer in table if layer.outputs])
        side, channels = choose_images(self.table, recorded)
        self.recorder = RecordedWords({"cond": texts})
        grid = self.latents[0], self.latents[1]
        stage = choose_stage(pipe.unet.sites(), grid, recorded)
        self.self_recorder = None if stage is None else SelfAttentionRecorder(
            stage, prompt=image, each_step=True, steps=lambda step: self.recording.wants(step)
        )  # fmt: skip
        observers = [self.recorder, *([self.self_recorder] if self.self_recorder else [])]
        self.recording = Recording(
            pipe,
            "unet*",
            keep={"statistics": REDUCTIONS["statistics"], "images": images(side, channels)},
            branches=("uncond", "cond"),
            every=every,
            observers=observers,
            last=True,
        )  # fmt: skip
        self.recorder.recording = self.recording

    def check_memory(self, steps: int, guidance: float) -> int:
        """The bytes that recording the run takes.

        Raises:
            NotEnoughMemoryError: so many are not free.
        """
        planned = self.recording.plan(steps, self.size, count=self.count, guidance=guidance)
        grid, sites = (self.latents[0], self.latents[1]), self.pipe.unet.sites()
        need = check_memory(planned) + self.recorder.bytes_needed(sites, grid, steps)
        if self.self_recorder is not None:
            need += self.self_recorder.bytes_needed(sites, grid, steps)
        return need

    def __enter__(self) -> RecordedPipeline:
        return self.recording.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.recording.__exit__(kind, error, where)

    # --- the page -------------------------------------------------------------------------

    def write(
        self, path: Path, image: Image.Image, about: Mapping[str, Any], *, force: bool = False
    ) -> int:
        """Write the page; its size in bytes.

        Args:
            image: the finished image.
            about: the settings that the page lists, by name: prompt, seed, ….

        Raises:
            OutputError: a file that exists, or cannot be.
        """
        whole = self.page(image, about).encode(errors="replace")  # a file name need not be text

        def write(file: Any) -> None:
            file.write(whole)

        write_whole(path, write, force=force)
        return len(whole)

    def page(self, image: Image.Image, about: Mapping[str, Any]) -> str:
        """The HTML."""
        pack = Pack()
        facts = {
            "about": dict(about),
            "image": {"width": image.width, "height": image.height,
                        "file": self.add_file(pack, encoded(image, longest=768))},
            **self.run_facts(pack, image),
            **self.word_facts(pack),
            **self.self_attention_facts(pack),
            **self.unet_facts(pack),
        }  # fmt: skip
        text = json.dumps(as_json(facts), separators=(",", ":"), ensure_ascii=False)
        parts = {
            "title": html.escape(str(about.get("prompt") or "an image without a prompt")),
            "style": read_page("page.css"),
            "script": "\n".join(map(read_page, SCRIPTS)),
            # Inside a script element nothing but "<" could end it.
            "facts": text.replace("<", "\\u003c"),
            "numbers": pack.text(),
        }
        pieces = read_page("page.html").split("{{")
        page = [pieces[0]]
        for piece in pieces[1:]:  # each part is put in once; "{{" inside it stays as it is
            name, _, rest = piece.partition("}}")
            page += [parts[name], rest]
        return "".join(page)

    @staticmethod
    def add_file(pack: Pack, data: bytes) -> list[int]:
        return [pack.add_bytes(data), len(data)]

    def mine(self, name: str) -> Tensor:
        """A tensor of the recording, of this report's image, at the recorded steps."""
        x = self.recording[name][:, self.image]
        steps = self.recording.recorded_indices
        return x[steps] if name != "x_t" else x[[*steps, len(x) - 1]]

    def run_facts(self, pack: Pack, image: Image.Image) -> dict[str, Any]:
        """Latents, predictions and guidance, step by step."""
        recording = self.recording
        levels = [recording.levels[i] for i in recording.recorded_indices]
        x_t, x0 = self.mine("x_t"), self.mine("x0")
        outputs = {
            name.partition(".")[2]: self.mine(name)
            for name in recording.tensors
            if name.startswith("output.")
        }
        kind = self.pipe.scheduler.prediction_type
        branches = {
            branch: torch.cat([
                interpret(output[i : i + 1], x_t[i : i + 1], level, kind).x0
                for i, level in enumerate(levels)
            ])
            for branch, output in outputs.items()
        }  # fmt: skip
        shown = {"x_t": x_t, "x0": x0}
        if "uncond" in branches and "cond" in branches:
            shown |= {"cond": branches["cond"], "uncond": branches["uncond"]}
        films, decoded = self.films(pack, shown, image)
        facts: dict[str, Any] = {
            "steps": [
                {"i": i, "t": level.t, "sigma": level.sigma, "alpha_bar": level.alpha_bar}
                for i, level in zip(recording.recorded_indices, levels, strict=True)
            ],
            "count": len(recording.levels),
            "films": films,
            "decoded": decoded,
            "latents": {name: self.add_images(pack, x) for name, x in
                        (("x_t", x_t), ("x0", x0))},
        }  # fmt: skip
        if "uncond" in outputs and "cond" in outputs:
            change = outputs["cond"] - outputs["uncond"]
            heat = change.square().mean(dim=1).sqrt()
            norms = {
                "change": change.flatten(1).norm(dim=1).tolist(),
                "cond": outputs["cond"].flatten(1).norm(dim=1).tolist(),
                "cosine": F.cosine_similarity(
                    outputs["cond"].flatten(1), outputs["uncond"].flatten(1)
                ).tolist(),
            }
            facts["guidance"] = {"heat": self.add_images(pack, heat), **norms}
        return facts

    def films(
        self, pack: Pack, shown: Mapping[str, Tensor], image: Image.Image
    ) -> tuple[dict[str, list[list[int]]], bool]:
        """Latents as images, a small file per step; and whether the VAE has decoded them."""
        decoded = image.width * image.height <= DECODED
        films = {}
        for name, latents in shown.items():
            if decoded:
                some = (self.pipe.decode(latents[k : k + 8]) for k in range(0, len(latents), 8))
                frames = [frame for part in some for frame in to_pil(part)]
            else:
                frames = sketches(latents, shown["x_t"][-1], image)
            files = [encoded(frame, longest=SIDE) for frame in frames]
            films[name] = [self.add_file(pack, file) for file in files]
        return films, decoded

    @staticmethod
    def add_images(pack: Pack, x: Tensor) -> dict[str, Any]:
        bits, ends = eight_bit(x.numpy(), axes=2)
        return {"images": pack.add(bits), "ends": pack.add(ends)}

    def word_facts(self, pack: Pack) -> dict[str, Any]:
        """Tokens, words, and the cross-attention map of each token, by layer and step."""
        read = self.words
        indices = {step: k for k, step in enumerate(self.recording.recorded_steps)}
        by_site: dict[str, list[WordMap]] = {}
        for one in self.recorder.maps():
            if one.prompt == self.image and one.step in indices:
                by_site.setdefault(one.site.name, []).append(one)
        columns = len(read.ids) + 1
        side = side_that_fits(by_site, columns, len(indices))
        sites = []
        for name, maps in by_site.items():
            ordered = sorted(maps, key=lambda one: indices[one.step or 0])
            # (columns, steps, h, w)
            weights = torch.stack([one.weights[0] for one in ordered], dim=1)
            h, w = weights.shape[2:]
            weights = F.adaptive_avg_pool2d(weights, small((h, w), side))
            site = ordered[0].site
            sites.append(
                {"name": f"unet.{name}", "label": layer_name(site), "block": site.block,
                 "grid": [h, w], **self.add_images(pack, weights)}
            )  # fmt: skip
        return {
            "tokens": [
                {"text": name, "id": read.ids[k] if k < len(read.ids) else None}
                for k, name in enumerate(read.names)
            ],
            "words": [{"text": word.text, "tokens": word.tokens} for word in read.words],
            "padding": len(read.ids),
            "sites": sites,
        }

    def self_attention_facts(self, pack: Pack) -> dict[str, Any]:
        """The self-attention map of every pixel of one resolution stage, step by step."""
        recorder = self.self_recorder
        if recorder is None or recorder.grid is None:
            return {}
        matrices = torch.stack([recorder.matrix(step) for step in self.recording.recorded_steps])
        maps = matrices.unflatten(-1, recorder.grid)  # type: ignore[no-untyped-call]
        layers = sum(map(recorder.wants, self.pipe.unet.sites()))
        stored = self.add_images(pack, maps)  # (steps, query pixels, h, w)
        return {
            "self": {"stage": recorder.stage, "grid": recorder.grid, "layers": layers, **stored}
        }

    def unet_facts(self, pack: Pack) -> dict[str, Any]:
        """Every layer: its shapes, cost and source, and its output's images and statistics."""
        row = self.row_of("cond")
        layers, lines = [], {}
        for layer in self.table:
            bits, ends = eight_bit(self.recording[f"{layer.name}:images"][:, row].numpy(), axes=2)
            numbers = self.recording[f"{layer.name}:statistics"][:, row].numpy()
            layers.append(
                {
                    "name": layer.name, "kind": layer.kind, "inputs": layer.inputs,
                    "outputs": layer.outputs, "parameters": layer.parameters,
                    "flops": layer.flops.total, "memory": layer.peak_bytes,
                    "code": layer.code, "called": layer.called,
                    "images": pack.add(bits), "ends": pack.add(ends),
                    "statistics": pack.add(np.ascontiguousarray(numbers, dtype=np.float32)),
                }
            )  # fmt: skip
            for place in (layer.code, layer.called):
                if place and place not in lines:
                    lines[place] = source_lines(place)
        shape = u_shape(self.table)
        return {
            "layers": layers,
            "stages": [{"name": s.name, "shape": s.shape, "grid": s.grid} for s in shape.stages],
            "skips": skips_of(self.table),
            "sources": lines,
        }

    def row_of(self, branch: str) -> int:
        rows = [(row.prompt, row.branch) for row in self.recording.rows]
        return rows.index((self.image, branch))


def side_that_fits(by_site: Mapping[str, Sequence[WordMap]], columns: int, steps: int) -> int:
    """The largest side of word maps with which all of them fit the page."""
    side = 64
    while side > 1 and cells_within(by_site, side) * columns * steps > WORDS_BUDGET:
        side //= 2
    return side


def cells_within(by_site: Mapping[str, Sequence[WordMap]], side: int) -> int:
    """Values of one token's maps in all layers, averaged down to `side`."""
    grids = (maps[0].weights.shape[2:] for maps in by_site.values())
    return sum(math.prod(small((grid[0], grid[1]), side)) for grid in grids)


def skips_of(table: LayerTable, prefix: str = "unet") -> list[tuple[str, str]]:
    """Skip connections: (the encoder layer whose output is kept, the decoder's ResNet block)."""
    names = [layer.name for layer in table]
    made = [f"{prefix}.conv_in"]
    stage = 0
    while any(name.startswith(f"{prefix}.down_blocks.{stage}.") for name in names):
        block = f"{prefix}.down_blocks.{stage}"
        count = sum(parent(name) == f"{block}.resnets" for name in names)
        for i in range(count):
            attention = f"{block}.attentions.{i}"
            made.append(attention if attention in table.names else f"{block}.resnets.{i}")
        made += [name for name in (f"{block}.downsamplers.0",) if name in table.names]
        stage += 1
    taken = [
        name for name in names
        if name.startswith(f"{prefix}.up_blocks.") and parent(name).endswith(".resnets")
    ]  # fmt: skip
    return list(zip(reversed(made), taken, strict=True))


def parent(name: str) -> str:
    return name.rpartition(".")[0]


def sketches(latents: Tensor, final: Tensor, image: Image.Image) -> list[Image.Image]:
    """Latents (n, 4, h, w) as images of h x w pixels without the VAE.

    A latent pixel's colour is a linear function of its four channels, fitted by least squares to
    the finished latents and `image`.
    """
    h, w = final.shape[1:]
    pixels = np.asarray(image.resize((w, h), Image.Resampling.BOX), dtype=np.float64) / 255

    def columns(x: Tensor) -> Any:
        flat = x.double().flatten(1).T.numpy()
        return np.concatenate([flat, np.ones((len(flat), 1))], axis=1)

    matrix, *_ = np.linalg.lstsq(columns(final), pixels.reshape(-1, 3), rcond=None)
    made = [(columns(x) @ matrix).clip(0, 1).reshape(h, w, 3) for x in latents]
    return [Image.fromarray(np.rint(255 * frame).astype(np.uint8)) for frame in made]


def encoded(image: Image.Image, longest: int) -> bytes:
    """A WebP file, at most `longest` pixels on a side."""
    if max(image.size) > longest:
        image = image.copy()
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, format="WEBP", quality=88, method=4)
    return file.getvalue()


def read_page(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")
