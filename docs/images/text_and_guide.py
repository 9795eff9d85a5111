"""The images of docs/text.md and docs/guide.md, made anew by the built-in model.

python docs/images/text_and_guide.py            # all; or the names of some: text guide
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image

import pare
from pare.io.whole_files import write_whole
from pare.study.record.image_grid import gallery
from pare.text.embedding_edits import Mix, MixPrompts, TextEdits
from roads.judge.judge import load_judge
from roads.judge.judge_loss import judge_loss
from roads.world.render import render
from roads.world.scene import draw_scene
from techniques.loss_guidance import Loss, guide, losses

HERE = Path(__file__).parent
PROMPT, SEED, STEPS, GUIDANCE = "a sunny road in the forest", 5, 16, 5.0
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
SCENE = 10  # whose image gives the style, as `python -m roads.photo --scene 10` makes it


def text(pipe: pare.Pipeline) -> Image.Image:
    """A word on its way to another, and a prompt."""
    ways: Mapping[str, Callable[[float], TextEdits]] = {
        "--mix": lambda share: TextEdits(words=[Mix("forest", "desert", share)]),
        "--mix-prompt": lambda share: TextEdits(
            prompts=[MixPrompts("a road in the city at night", share)]
        ),
    }
    images = {}
    for name, edits in ways.items():
        for share in SHARES:
            edited = pipe.with_text_edits(edits(share))
            made = edited.generate(PROMPT, SEED, steps=STEPS, guidance=GUIDANCE)
            images[f"{name} {share:g}"] = made[0]
    return gallery(images, len(SHARES))


def guided(pipe: pare.Pipeline) -> Image.Image:
    """One noise, under losses and scales."""
    reference = Image.fromarray(render(draw_scene(SCENE)).pixels)
    style = losses.style(losses.vae_features(pipe), reference, "moments")
    runs: dict[str, tuple[Loss, float]] = {
        **{f"blue, scale {scale}": (losses.blue, scale) for scale in (0, 10, 30, 100, 300)},
        "colour('orange'), 200": (losses.colour("orange"), 200),
        "judge('house'), 0.4": (judge_loss(load_judge(), "house"), 0.4),
        "judge('snowy'), 1": (judge_loss(load_judge(), "snowy"), 1.0),
        "style by moments, 5": (style, 5),
    }
    images = {}
    for label, (loss, scale) in runs.items():
        done = guide(
            pipe, PROMPT, loss, [SEED], scale=scale, every=2, steps=STEPS, guidance=GUIDANCE
        )
        first = done.steps[0][0].loss if done.steps[0] else done.losses[0]
        print(f"{label}: {first:.3g} -> {done.losses[0]:.3g}")
        images[label] = done.images[0]
    return gallery(images | {"whose style": reference}, 5)


PAGES = {"text": text, "guide": guided}


def main() -> None:
    pipe = pare.Pipeline.from_pretrained("roads", scheduler="dpm++2m", karras=True)
    for name in sys.argv[1:] or PAGES:
        page = PAGES[name](pipe)
        save = functools.partial(page.save, format="PNG", optimize=True)
        write_whole(HERE / f"{name}.png", save, force=True)


if __name__ == "__main__":
    main()
