"""The recipe of the built-in model, from nothing: world, tokenizer, VAE, text encoder + UNet.

    python -m roads.train all                 # everything, then export
    python -m roads.train vae  --steps 9000   # one stage; a run that was stopped goes on
    python -m roads.train unet --steps 9000
    python -m roads.train export              # runs/roads -> pare/models/roads

The same code runs on the CPU and on a GPU.  Checkpoints, curves (`*.jsonl`) and sample
sheets lie in the run's folder.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from roads import data
from roads.train_vae import VAESettings, round_trip_psnr, train_vae

MODEL = Path(__file__).parent.parent / "pare" / "models" / "roads"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m roads.train", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("stage", choices=("all", "vae", "unet", "export"))
    parser.add_argument("--run", type=Path, default=Path("runs/roads"), help="the run's folder")
    parser.add_argument("--out", type=Path, default=MODEL, help="where export writes the model")
    parser.add_argument("--pictures", type=int, default=24_000, help="rendered training scenes")
    parser.add_argument("--steps", type=int, help="optimizer steps of this stage")
    parser.add_argument("--batch", type=int, help="samples a step")
    parser.add_argument("--peak", type=float, help="the highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16",
                        help="of the matrix products and convolutions")  # fmt: skip
    options = parser.parse_args(arguments)

    device = torch.device(options.device)
    given = {"seed": options.seed, "dtype": options.dtype}
    for name in ("steps", "batch", "peak"):
        if getattr(options, name) is not None:
            given[name] = getattr(options, name)
    scenes = data.load("train", options.pictures, options.run.parent)
    unseen = data.load("test", 512, options.run.parent)

    if options.stage in ("all", "vae"):
        vae = train_vae(scenes, options.run, replace(VAESettings(), **given), device)
        psnr, inside, _pictures = round_trip_psnr(vae, unseen, device)
        print(f"round trip on held-out scenes: {psnr:.2f} dB; inside objects: {inside}")
    if options.stage in ("all", "unet"):
        from roads.tokenizer import build_tokenizer
        from roads.train_unet import UNetSettings, train_unet

        tokenizer = build_tokenizer(options.run / "tokenizer")
        settings = replace(UNetSettings(), **given)
        train_unet(scenes, unseen, tokenizer, options.run, settings, device)
    if options.stage in ("all", "export"):
        from roads import export

        export.export(options.run, options.out)


if __name__ == "__main__":
    main()
