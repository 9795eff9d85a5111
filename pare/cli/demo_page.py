"""`make demo`: one page of images that the hand-written model made, with their commands.

    python -m pare.cli.demo_page --out demo

Everything on the page is made by the command that stands above it: the demo runs exactly
those words, in one process so that the model's libraries are imported once.
"""

from __future__ import annotations

import argparse
import html
import io
import json
import shlex
import sys
import textwrap
import time
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import pare.cli.main
from roads import photo
from roads.contact_sheet import contact_sheet

PROMPT = "a sunny road in the mountains with a red car"
SCHEDULERS = ("pndm", "ddim", "dpm++2m", "lms", "euler", "euler-ancestral")
WORLD = (
    "a snowy road in the forest",
    "a road in the desert at night",
    "a sunny road in the desert with clouds",
    "a rainy road in the forest",
    "a sunny road in the city",
    "a snowy road in the desert",
)
SCENE = 10
STRIP = (  # the README's image: four generated ones; a photograph and three edits
    *("dpmpp2m.png", "world-0.png", "world-1.png", "world-2.png"),
    *("photo.png", "clouds-paste.png", "no-car-1.png", "img2img-0.6.png"),
)

ROUND_TRIP = """\
import pare
from pare.io.images import load_image, to_pil, to_tensor

pipe = pare.Pipeline.from_pretrained("roads")
x0 = pipe.encode(to_tensor(load_image("photo.png")))    # (1, 4, 16, 16)
to_pil(pipe.decode(x0))[0].save("round-trip.png")
for channel, plane in enumerate(x0[0]):
    grey = plane.sub(plane.min()).div(plane.max() - plane.min()).mul(2).sub(1)
    to_pil(grey.expand(1, 3, -1, -1))[0].resize((128, 128), 0).save(f"latent-{channel}.png")
"""


@dataclass(frozen=True)
class Figure:
    """One image on the page."""

    file: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading, a few words, the commands as they ran, and what they made."""

    title: str
    words: str
    commands: list[str]
    figures: list[Figure]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pare.cli.demo_page", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), help="the page's folder")
    out: Path = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with chdir(out):
        sections = [by_scheduler(), by_prompt(), round_trip(), img2img(), blend(), remove_car()]
        seconds = time.perf_counter() - started
        Path("index.html").write_text(render_page(sections, seconds), encoding="utf-8")
        strip([*STRIP]).save("first-light.png")
    images = sum(len(section.figures) for section in sections)
    print(f"{out / 'index.html'}: {images} images in {seconds:.0f} s")
    return 0


# --- the sections -------------------------------------------------------------------------


def by_scheduler() -> Section:
    commands, figures = [], []
    for name in SCHEDULERS:
        file = f"{name.replace('+', 'p')}.png"
        command = f'pare generate "{PROMPT}" --seed 3 --scheduler {name} --out {file} --force'
        seconds = run(command)["seconds"]
        commands.append(command)
        figures.append(Figure(file, f"{name}, 25 steps, {seconds:.1f} s"))
    return Section(
        "One prompt under every scheduler",
        "The same noise, six ways to walk from it to an image. The deterministic solvers "
        "agree on what the noise means; Euler ancestral adds noise of its own on the way.",
        commands,
        figures,
    )


def by_prompt() -> Section:
    commands, figures = [], []
    for number, prompt in enumerate(WORLD):
        file = f"world-{number}.png"
        command = f'pare generate "{prompt}" --seed 4 --out {file} --force'
        run(command)
        commands.append(command)
        figures.append(Figure(file, prompt))
    return Section(
        "What the built-in model has learnt",
        "A UNet with SD 1.4's 686 tensors, only narrower, trained with pare's own modules on "
        "a little world of dashcam images.",
        commands,
        figures,
    )


def round_trip() -> Section:
    make_photo = (
        f"python -m roads.photo --scene {SCENE} --out photo.png --mask sky --mask-out sky.png"
    )
    run(make_photo)
    show(ROUND_TRIP)
    exec(compile(ROUND_TRIP, "round trip", "exec"), {})  # the page shows these lines
    return Section(
        "A photograph through the VAE and back",
        "128 x 128 x 3 numbers become 16 x 16 x 4, on which the diffusion works, and come back. "
        "What is lost here no technique can keep.",
        [make_photo, ROUND_TRIP],
        [
            Figure("photo.png", "a rendered photograph that the model never saw"),
            *(Figure(f"latent-{channel}.png", f"latent channel {channel}") for channel in range(4)),
            Figure("round-trip.png", "decoded again"),
        ],
    )


def img2img() -> Section:
    commands, figures = [], [Figure("photo.png", "the photograph")]
    for strength in (0.4, 0.6, 0.8):
        file = f"img2img-{strength}.png"
        command = (
            'pare img2img photo.png "a snowy road in the mountains" --seed 3 '
            f"--strength {strength} --out {file} --force"
        )
        run(command)
        commands.append(command)
        figures.append(Figure(file, f"strength {strength}"))
    return Section(
        "Repainted from mid-way",
        "img2img noises the photograph to a point of the timestep schedule and denoises from "
        "there: the later the start, the more remains.",
        commands,
        figures,
    )


def blend() -> Section:
    commands, figures = [], [Figure("photo.png", "the photograph"), Figure("sky.png", "the mask")]
    for background in ("latent", "paste", "poisson"):
        file = f"clouds-{background}.png"
        command = (
            'pare blend photo.png --mask sky.png "a sunny road in the mountains with clouds '
            f'in the sky" --background {background} --seed 5 --out {file} --force'
        )
        report = run(command)
        commands.append(command)
        figures.append(Figure(file, f"{background}: {outside(report)}"))
    return Section(
        "Clouds into the sky",
        "Blended latent diffusion: before every step, everything outside the mask is replaced "
        "by the photograph, noised to the level of that step. Background latent keeps latents, "
        "and the VAE still changes every pixel a little; paste and poisson keep the pixels.",
        commands,
        figures,
    )


def remove_car() -> Section:
    mask = (
        f"python -m roads.photo --scene {SCENE} --out photo.png --mask car --mask-out car.png "
        "--grow 5"
    )
    truth = f"python -m roads.photo --scene {SCENE} --car none --out without.png"
    edit = (
        'pare blend photo.png --mask car.png "an empty sunny road in the mountains" '
        "--strength 1 --seed 1 --seed 2 --out no-car.png --force"
    )
    for command in (mask, truth, edit):
        run(command)
    return Section(
        "The car off the road",
        "The same technique with a small mask. The world knows what the scene looks like "
        "without the car, so an edit can be held against the truth.",
        [mask, truth, edit],
        [
            Figure("photo.png", "the photograph"),
            Figure("car.png", "the car, five pixels wider"),
            Figure("no-car-1.png", "edited, seed 1"),
            Figure("no-car-2.png", "edited, seed 2"),
            Figure("without.png", "the truth: the same scene without a car"),
        ],
    )


def outside(report: dict[str, Any]) -> str:
    """What `pare blend` says of the pixels outside the mask, in a few words."""
    (difference,) = report["outside"]
    if difference["largest"] == 0:
        return "outside the mask not a pixel differs"
    return f"outside the mask {difference['psnr']:.1f} dB to the photograph"


def strip(files: list[str]) -> Image.Image:
    """Some of the images side by side, twice their size: the image of the README."""
    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    return contact_sheet(images, columns=len(images) // 2, zoom=2)


# --- running and showing ------------------------------------------------------------------


def run(command: str) -> dict[str, Any]:
    """Run a command line in this process, as the shell would; its JSON, if it prints any.

    Raises:
        SystemExit: the command failed; it has said why.
    """
    show(command)
    program, *arguments = shlex.split(command)
    if program == "pare":
        printed = io.StringIO()
        with redirect_stdout(printed):
            code = pare.cli.main.main([*arguments, "--json"])
        result: dict[str, Any] = json.loads(printed.getvalue() or "{}")
    else:
        code, result = photo.main(arguments[2:]), {}
    if code:
        sys.exit(code)
    return result


def show(command: str) -> None:
    print(
        textwrap.indent(command.strip(), "$ " if "\n" not in command.strip() else "> "), flush=True
    )


# --- the page -----------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1c1e21, #e6e3dc);
  --soft: light-dark(#6a6f76, #9b9a94); --paper: light-dark(#faf9f6, #17181a);
  --card: light-dark(#ffffff, #202225); --line: light-dark(#e2dfd8, #34363a); }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 17px/1.55 system-ui, sans-serif }
main { max-width: 68rem; margin: 0 auto; padding: 3rem 1.5rem 5rem }
h1 { font-size: 2.4rem; letter-spacing: -.02em; margin: 0 }
h2 { font-size: 1.35rem; margin: 3.5rem 0 .3rem }
p { max-width: 46rem; margin: .3rem 0 1rem } .soft { color: var(--soft) }
.figures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)) }
figure { margin: 0; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; overflow: hidden }
figure img { display: block; width: 100%; aspect-ratio: 1 }
figcaption { padding: .5rem .7rem .6rem; font-size: .82rem; line-height: 1.35;
  color: var(--soft) }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .8rem 1rem; overflow-x: auto; font: .8rem/1.6 ui-monospace, monospace }
"""


def render_page(sections: list[Section], seconds: float) -> str:
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>pare: Stable Diffusion with nothing hidden</title><style>{STYLE}</style></head>
<body><main>
<h1>pare</h1>
<p class="soft">Stable Diffusion with nothing hidden. Every image below was made on this
machine, by the command above it, in {seconds:.0f} seconds altogether; each PNG carries the
recipe that made it.</p>
{"".join(map(render_section, sections))}
</main></body></html>
"""


def render_section(section: Section) -> str:
    commands = "\n".join(html.escape(command.strip()) for command in section.commands)
    figures = "".join(
        f'<figure><img src="{html.escape(figure.file)}" alt="{html.escape(figure.caption)}">'
        f"<figcaption>{html.escape(figure.caption)}</figcaption></figure>"
        for figure in section.figures
    )
    return (
        f"<section><h2>{html.escape(section.title)}</h2><p>{html.escape(section.words)}</p>"
        f'<pre>{commands}</pre><div class="figures">{figures}</div></section>\n'
    )


if __name__ == "__main__":
    sys.exit(main())
