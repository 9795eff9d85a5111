"""The table of docs/inversion.md: every inversion's report card, the mean of two images.

python docs/images/report_card.py
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from PIL import Image

import pare
from roads.world.captions import full_caption
from roads.world.render import render
from roads.world.scene import draw_scene
from techniques.inversion.invert_image import USUAL_GUIDANCE
from techniques.inversion.latent_trace import Method
from techniques.inversion.report_card import invert_and_report

SCENES, STEPS = (3, 4), 50
# `proximal` gives its own prompt's image back as `negative` does.
ROWS: list[tuple[Method, float]] = [
    (method, guidance)
    for method, usual in USUAL_GUIDANCE.items() if method != "proximal"
    for guidance in ([usual, 7.5] if method == "ddim" else [usual])
]  # fmt: skip


def numbers(card: dict[str, Any], found: dict[str, float], name: str = "") -> dict[str, float]:
    """Tables within a table as one flat one: `noise.std`, …"""
    for key, value in card.items():
        if isinstance(value, dict):
            numbers(value, found, f"{name}{key}.")
        else:
            found[name + key] = value
    return found


def main() -> None:
    torch.set_num_threads(1)
    pipe = pare.Pipeline.from_pretrained("roads", device="cpu", scheduler="ddim")
    print(
        "| method, guidance | PSNR, dB | SSIM | latents' error | std | autocorrelation | kurtosis "
        "| UNet rows, there + back | seconds |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    )
    vae = 0.0
    for method, guidance in ROWS:
        cards = []
        for number in SCENES:
            scene = draw_scene(number)
            image = Image.fromarray(render(scene).pixels)
            _, _, card = invert_and_report(
                pipe, image, full_caption(scene),
                method=method, steps=STEPS, guidance=guidance,
            )  # fmt: skip
            cards.append(numbers(dataclasses.asdict(card), {}))
        mean = {name: float(np.mean([card[name] for card in cards])) for name in cards[0]}
        vae = mean["vae_alone.psnr"]
        print(
            f"| `{method}`, {guidance:g} | {mean['reconstruction.psnr']:.1f} "
            f"| {mean['reconstruction.ssim']:.3f} | {mean['latent_error']:.2g} "
            f"| {mean['noise.std']:.2f} | {mean['noise.autocorrelation']:.2f} "
            f"| {mean['noise.kurtosis']:.1f} "
            f"| {mean['inverting.evaluations']:.0f} + {mean['sampling.evaluations']:.0f} "
            f"| {mean['inverting.seconds']:.0f} + {mean['sampling.seconds']:.0f} |"
        )
    print(f"\nThe VAE alone: {vae:.1f} dB.")


if __name__ == "__main__":
    main()
