"""The comparisons of `pare verify`, from single layers to finished images.

Bounds:

- text encoder, UNet and VAE: the same bits in float32 on the CPU; 1e-5 on a GPU; in half
  precision no farther from diffusers than diffusers is from its own float32 run.
- solvers, rolled out on a denoiser whose exact output is known: 1e-5.
- images: no 8-bit channel of any pixel differs by more than 1.  In half precision: no
  farther from diffusers' image, at that precision or in float32, than those two are apart.
- techniques that amplify rounding (gates with a threshold per pixel, training): a PSNR, and
  the loss that is reached (`technique_parity.py`).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from pare.errors import SettingError
from pare.recipes.recipe import current_versions
from pare.schedulers.reliability import UnreliableSolver
from pare.verify import (
    diffusers_side,
    image_parity,
    model_parity,
    scheduler_parity,
    technique_parity,
)
from pare.verify.model_pair import ModelPair, exact_float32, load_pair
from pare.verify.parity_table import Compared, ParityReport, ParityRow

COMPARISONS: dict[str, Callable[[ModelPair], Iterator[Compared]]] = {
    "text": model_parity.text_rows,
    "unet": model_parity.unet_rows,
    "vae": model_parity.vae_rows,
    "schedulers": scheduler_parity.scheduler_rows,
    "generate": image_parity.generate_rows,
    "img2img": image_parity.img2img_rows,
    "blend": image_parity.blend_rows,
    "erase": technique_parity.erase_rows,
    "invert": technique_parity.invert_rows,
    "p2p": technique_parity.p2p_rows,
}
GROUPS = tuple(COMPARISONS)

Say = Callable[[str], None]


@torch.no_grad()
def run_verify(
    model: str | Path = "roads",
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    only: Sequence[str] | None = None,
    steps: int = 10,
    progress: Say | None = None,
) -> ParityReport:
    """Compare pare with diffusers on one model.

    Args:
        model: "roads", a folder in the Hub's layout, or a repository on the Hub.
        device: "auto" is CUDA, MPS or the CPU, in this order.
        dtype: "auto" is float32, in which the comparison is strictest.
        revision: a branch, a tag or a commit's hash of a repository.
        only: some of `GROUPS`; None: all of them.
        steps: of the runs that make images.
        progress: called with a few words before each comparison.

    Raises:
        MissingExtraError: diffusers is not installed.
        SettingError: an unknown group.
        PareError: the model, the device or the dtype.
    """
    groups = chosen(only)
    diffusers = diffusers_side.require_diffusers()
    started = time.perf_counter()
    say = progress or (lambda words: None)
    rows: list[ParityRow] = []
    skipped: dict[str, str] = {}
    with diffusers_side.quiet(), exact_float32(), warnings.catch_warnings():
        # Every solver is compared, however few steps it is given: the images' quality is not asked.
        warnings.simplefilter("ignore", UnreliableSolver)
        say("loading the model with pare and with diffusers")
        kind = "float32" if dtype == "auto" else dtype
        models = load_pair(model, device, kind, steps, revision)
        for group in groups:
            say(f"comparing: {group}")
            for found in COMPARISONS[group](models):
                if isinstance(found, ParityRow):
                    rows.append(found)
                else:
                    skipped[found.name] = found.reason
    return ParityReport(
        model=models.pipe.source.describe(),
        device=str(models.device),
        dtype=str(models.pipe.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        versions=current_versions() | {"diffusers": diffusers.__version__},
        rows=rows,
        skipped=skipped,
        seconds=round(time.perf_counter() - started, 3),
    )


def chosen(only: Sequence[str] | None) -> list[str]:
    """The groups to run, in their order."""
    for group in only or ():
        if group not in GROUPS:
            raise SettingError(f"there is no comparison {group!r}", expected=", ".join(GROUPS))
    return [group for group in GROUPS if not only or group in only]
