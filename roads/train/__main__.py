"""The recipe of the built-in model, from nothing: world, tokenizer, VAE, text encoder + UNet.

    python -m roads.train all                 # everything, then export
    python -m roads.train vae  --steps 4000   # one stage; a run that was stopped goes on
    python -m roads.train unet --steps 4000
    python -m roads.train export              # runs/roads -> pare/models/roads
    python -m roads.train adopt               # pare/models/roads -> runs/roads, to go on training

Several workers share a batch when torchrun starts them (two of one thread each suit two
CPU cores): `OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m roads.train all`.

The same code runs on the CPU and on a GPU.  Checkpoints, curves (`*.jsonl`) and sample
sheets lie in the run's folder.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTokenizer

from roads.train import scene_data
from roads.train.export_model import adopt, export
from roads.train.train_tokenizer import build_tokenizer
from roads.train.train_unet import UNetSettings, train_unet
from roads.train.train_vae import VAESettings, round_trip_psnr, train_vae
from roads.train.training_loop import join_workers, wait_for_workers, worker

MODEL = Path(__file__).parents[2] / "pare" / "models" / "roads"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m roads.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=("all", "vae", "unet", "export", "adopt"))
    parser.add_argument("--folder", type=Path, default=Path("runs/roads"), help="the run's folder")
    parser.add_argument("--out", type=Path, default=MODEL, help="the model's folder")
    parser.add_argument("--images", type=int, default=24_000, help="rendered training scenes")
    parser.add_argument("--steps", type=int, help="optimizer steps of this stage")
    parser.add_argument("--batch", type=int, help="samples a step")
    parser.add_argument("--peak", type=float, help="the highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="bfloat16",
        help="of the matrix products and convolutions",
    )
    options = parser.parse_args(arguments)

    device = torch.device(options.device)
    given: dict[str, Any] = {"seed": options.seed, "dtype": options.dtype}
    for name in ("steps", "batch", "peak"):
        if getattr(options, name) is not None:
            given[name] = getattr(options, name)
    join_workers()
    if options.stage == "adopt":
        adopt(options.out, options.folder)
        return
    if options.stage != "export":
        train(options, device, given)
    if options.stage in ("all", "export") and worker()[0] == 0:
        export(options.folder, options.out)


def train(options: argparse.Namespace, device: torch.device, given: dict[str, Any]) -> None:
    """One of the two trainings, or both; `given` are the settings that the user chose."""
    first = worker()[0] == 0
    if first:  # renders what is not cached yet
        scene_data.standing(
            scene_data.load("train", options.images, options.folder.parent), options.folder.parent
        )
        scene_data.load("test", 512, options.folder.parent)
    wait_for_workers()
    scenes = scene_data.load("train", options.images, options.folder.parent)
    unseen = scene_data.load("test", 512, options.folder.parent)

    if options.stage in ("all", "vae"):
        vae = train_vae(scenes, options.folder, replace(VAESettings(), **given), device)
        if first:
            psnr, inside, _images = round_trip_psnr(vae, unseen, device)
            print(f"round trip on held-out scenes: {psnr:.2f} dB; inside objects: {inside}")
    if options.stage in ("all", "unet"):
        # Built once: a training that goes on must keep its tokens' numbers.
        if first and not (options.folder / "tokenizer").exists():
            build_tokenizer(options.folder / "tokenizer")
        wait_for_workers()
        tokenizer = CLIPTokenizer.from_pretrained(options.folder / "tokenizer")
        settings = replace(UNetSettings(), **given)
        train_unet(scenes, unseen, tokenizer, options.folder, settings, device)


if __name__ == "__main__":
    main()
