"""`pare attention`: an image's attention maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from pare.cli.grouped_help import option, options
from pare.cli.image_run import ImageRun, image_command
from pare.cli.option_types import as_typed
from pare.cli.options import prompt_argument, run_options, size_option
from pare.cli.terminal import progress
from pare.errors import SettingError

if TYPE_CHECKING:
    from PIL import Image

    from pare.attention import Site
    from pare.pipeline import Pipeline
    from pare.study.record.attention_sheet import MapTile


def point_of(text: str) -> tuple[float, float]:
    """`0.5,0.7` as (x, y), each from 0 to 1."""
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        x = y = -1.0
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise SettingError(
            f"`pixels` is {text!r}",
            expected="X,Y from 0,0 (upper left) to 1,1 (lower right), for example 0.5,0.7",
        )
    return x, y


attention_options = options(
    "Attention maps",
    option("--word", "words", multiple=True, metavar="WORD", usual=True,
           help="Cross-attention: how strongly each pixel attends to this word. Several words in a "
                "row are one; road#2 is the second road; <start>, <end> and <padding> are words, "
                "too. Default: all of PROMPT's."),
    option("--pixel", "pixels", multiple=True, metavar="X,Y", callback=as_typed(point_of),
           usual=True,
           help="Self-attention: how strongly this pixel attends to each pixel. 0,0 is the upper "
                "left corner, 1,1 the lower right."),
    option("--components", is_flag=True, usual=True,
           help="Self-attention of each resolution: its first three principal components as red, "
                "green and blue."),
    option("--per", type=click.Choice(["stage", "layer", "head", "step"]), usual=True,
           help="A map for each resolution stage, layer, head or step. Default: their mean (DAAM, "
                "arXiv:2210.04885)."),
    option("--at", multiple=True, metavar="GLOB",
           help="Layers, as `pare inspect` lists them: unet.mid_block, 'unet.up_blocks.*'. "
                "Default: all."),
    option("--among", type=click.Choice(["all", "words"]), default="words", show_default=True,
           help="Normalise attention weights over the words, or over all tokens, with start, end "
                "and padding."),
    option("--branch", type=click.Choice(["cond", "uncond"]), default="cond", show_default=True,
           help="Branch of the guidance: conditional (PROMPT) or unconditional (--negative)."),
)  # fmt: skip

EXAMPLES = (
    'pare attention "a snowy road in the forest with a red car" --word car --word forest',
    'pare attention "a road in the city with a house" --word house --per layer --out layers.png',
    'pare attention "a road with a car" --pixel 0.5,0.7 --components --out pixels.png',
)


@image_command(section="study", examples=EXAMPLES)
@prompt_argument
@attention_options
@size_option
@run_options
def attention(prompt: str, **given: Any) -> None:
    """Show attention maps: generate PROMPT, and draw where the pixels attend to each word.

    In cross-attention pixels (queries) attend to the prompt's tokens (keys). Writes one page per
    seed: the image, and the maps laid over it, in colours from each map's lowest attention weight
    to its highest, which stand above it. Recording changes no bit of the image.
    """

    run = ImageRun.start()
    pipe = run.load_pipeline()
    width, height = run.size(pipe)
    sites = sites_of(pipe, given)
    pages, found = [], []
    for seed in run.seeds:
        watch = Watch(pipe, prompt, sites, given)
        watch.check_memory(run, height, width)
        images = pipe.generate(
            prompt, [seed], width=width, height=height, control=watch.control,
            progress=progress(), **run.sampling,
        )  # fmt: skip
        page, maps = watch.page(images[0])
        pages.append(page)
        found.append(maps)
    run.write(pipe, pages, attention=[[tile.report() for tile in maps] for maps in found])
    if given["per"] is None:
        for path, maps in zip(run.paths, found, strict=True):
            for tile in maps:
                x, y = tile.hottest
                run.say(f"{path}: {tile.name}: {tile.scale}, most at {x:.2f},{y:.2f}")


def sites_of(pipe: Pipeline, given: dict[str, Any]) -> list[Site]:
    from pare.study.record.attention_maps import find_sites

    return find_sites(pipe.unet.sites(), given["at"] or ["*"])


class Watch:
    """The recorders of one run."""

    def __init__(
        self, pipe: Pipeline, prompt: str, sites: Sequence[Site], given: dict[str, Any]
    ) -> None:
        """
        Raises:
            PromptError: a word that the prompt does not have.
            SettingError: nothing to record.
        """
        from pare.attention import BatchRow, Control
        from pare.study.record import attention_maps as maps
        from pare.study.record.self_attention import SelfAttentionRecorder
        from pare.text.words import read

        self.pipe, self.sites, self.given = pipe, list(sites), given
        branch = given["branch"]
        if branch == "uncond" and given["guidance"] == 1:
            raise SettingError(
                "`guidance` is 1: there is no uncond branch", fix="pass `branch=cond`"
            )
        chosen = set(sites)
        apart = {"each_step": given["per"] == "step", "each_head": given["per"] == "head"}
        watched: list[Control] = []

        self.words: list[str] = list(dict.fromkeys(given["words"]))
        self.word_recorder = None
        if self.words or not (given["pixels"] or given["components"]):
            length = pipe.text_encoder.config.max_position_embeddings
            text = read(pipe.tokenizer, prompt if branch == "cond" else given["negative"], length)
            self.words = self.words or list(dict.fromkeys(text.spoken()))
            if not self.words:
                raise SettingError(f"{text.prompt!r} has no words to show maps of")
            for word in self.words:
                if word not in maps.SPECIAL_TOKENS:
                    text.find(word)
            self.word_recorder = maps.WordRecorder(
                {branch: [text]}, sites=chosen.__contains__, **apart
            )
            watched.append(self.word_recorder)

        self.points = [point_of(pixel) for pixel in given["pixels"]]
        self.pixel_recorder = None
        if self.points:
            self.pixel_recorder = maps.PixelRecorder(
                self.points, [BatchRow(0, branch)], sites=chosen.__contains__, **apart
            )
            watched.append(self.pixel_recorder)

        stages = sorted({site.stage for site in sites if site.kind == "self"})
        self.matrices = [
            SelfAttentionRecorder(stage, branch=branch, sites=chosen.__contains__)
            for stage in stages
            if given["components"]
        ]
        self.control = maps.Observers([*watched, *self.matrices])

    def check_memory(self, run: ImageRun, height: int, width: int) -> None:
        """Say how much memory the maps will take.

        Raises:
            NotEnoughMemoryError: more than there is, on a CPU.
        """
        from pare.runtime.memory_plan import check_room

        grid = self.pipe.latent_shape(height, width)[1:]
        recorders = [r for r in (self.word_recorder, self.pixel_recorder) if r is not None]
        # PNDM evaluates the model once more than it has steps.
        evaluations = len(self.pipe.scheduler.timesteps(self.given["steps"]))
        need = sum(r.bytes_needed(self.sites, grid, evaluations) for r in recorders)
        need += sum(matrix.bytes_needed(self.sites, grid, evaluations) for matrix in self.matrices)
        run.say(f"pare: the attention maps take {need / 1e6:.1f} MB of memory")
        fix = "record fewer layers (`at`), or only their mean (leave out `per`)"
        check_room("keeping the attention maps", need, self.pipe.device, fix)

    def page(self, image: Image.Image) -> tuple[Image.Image, list[MapTile]]:
        """The page, and its maps."""
        from pare.study.record.attention_sheet import attention_sheet, tiles

        by, among = self.given["per"], self.given["among"]
        size = (image.height, image.width)
        found: list[MapTile] = []
        if self.word_recorder is not None:
            maps = self.word_recorder.maps()
            found += tiles(maps, self.words, size, by=by, among=among)
        if self.pixel_recorder is not None:
            found += tiles(self.pixel_recorder.maps(), self.points, size, by=by)
        rows = [[t for t in found if t.what == what] for what in [*self.words, *self.points]]
        return attention_sheet(image, rows, self.matrices), found
