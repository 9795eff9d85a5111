"""`make demo`: one page of images that the hand-written model made, with their commands.

    python -m pare.cli.demo_page --out demo

Every image on the page is made by the command above it: the demo runs exactly these
commands, in one process, so that the libraries are imported once.
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
from roads.judge.comparison import compare

# Prompts name all that is to be there: what a prompt leaves out, this model leaves out, too.
PROMPT = "a sunny road in the mountains with a red car"
SNOWY = "a snowy road in the mountains with a red car"
SCHEDULERS = ("dpm++2m", "ddim", "euler", "euler-ancestral", "lms", "pndm")
WORLD = {  # prompt -> seed
    "a snowy road in the forest with a house": 4,
    "a road in the mountains at night with streetlights": 0,
    "a sunny road in the desert with a yellow car and clouds": 4,
    "a rainy road in the forest with a blue car": 0,
    "a sunny road in the city with a white car and clouds": 3,
    "a road in the forest at night with a red car": 4,
}
SCENE = 10
PHOTO = f"python -m roads.photo --scene {SCENE} --weather sunny --no-clouds --out photo.png"
PHOTO_CAPTION = "a sunny road in the mountains with a red car and a house and the sun"
STRIP = (  # the README's image: four generated ones; a photograph and three edits
    *("dpmpp2m.png", "world-0.png", "world-1.png", "world-2.png"),
    *("photo.png", "clouds-paste.png", "edited.png", "img2img-0.6.png"),
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
    judged: str = ""
    """What the judge finds in it."""


@dataclass(frozen=True)
class Section:
    """A heading, an explanation, the commands as they ran, and what they made."""

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
        sections = [
            by_prompt(), prompt_to_prompt(), round_trip(), img2img(), blend(), another_car(),
            edit_photo(), by_scheduler(),
        ]  # fmt: skip
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
        "The same noise and the same prompt, denoised by six solvers. The deterministic ones "
        "approximate the same differential equation and so arrive at nearly the same image; "
        "Euler ancestral adds fresh noise at every step.",
        commands,
        figures,
    )


def by_prompt() -> Section:
    commands, figures = [], []
    for number, (prompt, seed) in enumerate(WORLD.items()):
        file = f"world-{number}.png"
        command = f'pare generate "{prompt}" --seed {seed} --out {file} --force'
        run(command)
        commands.append(command)
        figures.append(Figure(file, prompt, judged(file, prompt)))
    return Section(
        "What the built-in model can draw",
        "roads is a latent diffusion model with Stable Diffusion 1.4's architecture and tensor "
        "names, only narrower, trained on rendered dashcam images. Under each image stands what "
        "an independent classifier, the judge, finds in it.",
        commands,
        figures,
    )


def round_trip() -> Section:
    make_photo = f"{PHOTO} --mask sky --mask-out sky.png"
    run(make_photo)
    show(ROUND_TRIP)
    exec(compile(ROUND_TRIP, "round trip", "exec"), {})  # the page shows these lines
    return Section(
        "An image through the VAE and back",
        "The encoder maps 128 x 128 x 3 pixels to latents of 16 x 16 x 4 numbers, in which the "
        "diffusion model works; the decoder maps them back. What is lost here, every technique "
        "on latents loses as well.",
        [make_photo, ROUND_TRIP],
        [
            Figure("photo.png", "a rendered scene that is not in the training data"),
            *(Figure(f"latent-{channel}.png", f"latent channel {channel}") for channel in range(4)),
            Figure("round-trip.png", "decoded again"),
        ],
    )


def img2img() -> Section:
    prompt = PHOTO_CAPTION.replace("sunny", "snowy")
    commands, figures = [], [Figure("photo.png", "the source")]
    for strength in (0.5, 0.6, 0.8):
        file = f"img2img-{strength}.png"
        command = f'pare img2img photo.png "{prompt}" --strength {strength} --out {file} --force'
        run(command)
        commands.append(command)
        words = judged(file, prompt, "photo.png")
        figures.append(Figure(file, f"strength {strength}", words))
    return Section(
        "Image-to-image",
        "Noise is added to the image's latents up to an intermediate timestep, and they are "
        "denoised under a new prompt. The strength says how far: a low one keeps the image, "
        "a high one only its composition.",
        commands,
        figures,
    )


def blend() -> Section:
    prompt = PHOTO_CAPTION.replace(" and the sun", " and clouds and the sun")
    commands, figures = [], [Figure("photo.png", "the source"), Figure("sky.png", "the mask")]
    for background in ("latent", "paste", "poisson"):
        file = f"clouds-{background}.png"
        command = (
            f'pare blend photo.png --mask sky.png "{prompt}" --background {background} --seed 1 '
            f"--out {file} --force"
        )
        report = run(command)
        commands.append(command)
        words = judged(file, prompt, "photo.png")
        figures.append(Figure(file, f"{background}: {outside(report)}", words))
    return Section(
        "Clouds into the sky: blended latent diffusion",
        "Before every step, the latents outside the mask are replaced by the source's, noised "
        "to the noise level of that step. The decoder still changes every pixel a little; "
        "paste and poisson put the source's pixels back outside the mask.",
        commands,
        figures,
    )


def another_car() -> Section:
    mask = f"{PHOTO} --mask car --mask-out car.png --grow 3"
    truth = PHOTO.replace("photo.png", "truth.png") + " --car blue"
    prompt = PHOTO_CAPTION.replace("red", "blue")
    edit = (
        f'pare blend photo.png --mask car.png "{prompt}" --strength 1 --seed 0 --seed 1 '
        "--out blue.png --force"
    )
    for command in (mask, truth, edit):
        run(command)
    edited = [
        Figure(file, f"edited, seed {seed}", judged(file, prompt, "photo.png"))
        for seed, file in ((0, "blue-0.png"), (1, "blue-1.png"))
    ]
    return Section(
        "Another car",
        "The same technique with a small mask. The renderer knows the scene with a blue car, so "
        "the edit can be compared with the true image.",
        [mask, truth, edit],
        [
            Figure("photo.png", "the source"),
            Figure("car.png", "the mask: the car, three pixels wider"),
            *edited,
            Figure("truth.png", "the true image"),
        ],
    )


def prompt_to_prompt() -> Section:
    commands: list[str] = []
    figures: list[Figure] = []
    for name, target in (
        ("snowy", SNOWY),
        ("house", f"{PROMPT} and a house"),
        ("clouds", f"{PROMPT} and clouds"),
    ):
        command = f'pare p2p "{PROMPT}" "{target}" --seed 3 --out {name}.png --force'
        run(command)
        commands.append(command)
        if not figures:
            figures.append(Figure(f"{name}-source.png", f"source: {PROMPT}"))
        file = f"{name}-target.png"
        words = judged(file, target, f"{name}-source.png")
        figures.append(Figure(file, f"target: {target}", words))
    return Section(
        "A word changed, the layout kept: prompt-to-prompt",
        "Source and target are denoised side by side, and the target uses the source's "
        "attention weights in the first part of the steps. Attention decides what is where, so "
        "the layout stays.",
        commands,
        figures,
    )


def edit_photo() -> Section:
    target = PHOTO_CAPTION.replace("sunny", "snowy")
    command = (
        f'pare edit photo.png --from "{PHOTO_CAPTION}" --to "{target}" --steps 30 '
        "--out edited.png --force"
    )
    run(command)
    return Section(
        "An image that was not generated: inversion and edit",
        "DDIM inversion finds the noise from which the model would generate the image. Sampling "
        "from that noise under another prompt, with prompt-to-prompt, edits the image.",
        [command],
        [
            Figure("photo.png", "the source"),
            Figure("edited.png", "edited", judged("edited.png", target, "photo.png")),
        ],
    )


def judged(file: str, prompt: str, before: str | None = None) -> str:
    """The judge's sentence about an image, beside the one that it was made of."""
    source = None if before is None else Image.open(before).convert("RGB")
    return compare(source, Image.open(file).convert("RGB"), prompt=prompt).sentence()


def outside(report: dict[str, Any]) -> str:
    """What `pare blend` says of the pixels outside the mask, in a few words."""
    (difference,) = report["outside"]
    if difference["largest"] == 0:
        return "outside the mask not a pixel differs"
    return f"outside the mask {difference['psnr']:.1f} dB to the source"


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
        f"<figcaption>{html.escape(figure.caption)}"
        f"{f'<br><i>{html.escape(figure.judged)}</i>' if figure.judged else ''}"
        "</figcaption></figure>"
        for figure in section.figures
    )
    return (
        f"<section><h2>{html.escape(section.title)}</h2><p>{html.escape(section.words)}</p>"
        f'<pre>{commands}</pre><div class="figures">{figures}</div></section>\n'
    )


if __name__ == "__main__":
    sys.exit(main())
