"""Training the judge, and its own report card.

    python -m roads.judge.train_judge                # train, calibrate, write the judge's folder
    python -m roads.judge.train_judge --report       # how often the shipped judge is right

It learns from renders, their VAE round trips and degraded copies of both (`judge_data.py`),
of all combinations of attributes: it will have to judge those that the generator never saw.
Its layouts are disjoint from those of the report.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from pare.loading.modules import load_model
from pare.vae import AutoencoderKL
from roads.judge.judge import FOLDER, JudgeConfig, JudgeNetwork, Logits
from roads.judge.judge_data import (
    CALIBRATION_SEEDS,
    UNKNOWN,
    VARIANT_SEEDS,
    Truth,
    chosen,
    degrade,
    joined,
    load_round_trips,
    load_variants,
    shifted,
    truth,
)
from roads.judge.judge_report import print_report
from roads.train import scene_data
from roads.train.export_model import write_json
from roads.train.scene_data import Data
from roads.train.train_vae import pixels_to_tensor
from roads.train.training_loop import (
    Average,
    Log,
    average_gradients,
    batch_random,
    continued,
    join_workers,
    learning_rate,
    load_checkpoint,
    optimizer_for,
    precision,
    save_checkpoint,
    seeded,
    set_learning_rate,
    wait_for_workers,
    worker,
)
from roads.world.scene import OBJECTS

RENDERS = 40_000  # of the UNet's own training scenes
VARIANTS = 6_000  # counterfactuals, held-out combinations among them
TRIPS_EVERY = 6, 40  # every sixth variant and every fortieth render take a round trip
SHARES = {"renders": 0.35, "variants": 0.25, "round trips": 0.40}  # of a batch
SHIFT = 6  # pixels, at most


@dataclass(frozen=True)
class JudgeSettings:
    """What a run depends on, besides the data and the VAE."""

    steps: int = 500
    batch: int = 64
    peak: float = 3e-3
    warm_up: int = 50
    decay: float = 0.99
    degraded: float = 0.5  # of the images
    seed: int = 0
    dtype: str = "bfloat16"
    save_every: int = 50


@dataclass(frozen=True)
class Batch:
    """image (B, 3, 128, 128); weather, place, colour (B,); present (B, 5); cover (B, 5, 16, 16)."""

    image: Tensor
    weather: Tensor
    place: Tensor
    colour: Tensor
    present: Tensor
    cover: Tensor

    @classmethod
    def of(cls, pixels: Sequence[np.ndarray], truths: Sequence[Truth]) -> Batch:
        return cls(
            pixels_to_tensor(np.stack(pixels)),
            torch.tensor([t.weather for t in truths]),
            torch.tensor([t.place for t in truths]),
            torch.tensor([t.colour for t in truths]),
            torch.from_numpy(np.stack([t.present for t in truths])),
            torch.from_numpy(np.stack([t.cover for t in truths])),
        )

    def to(self, device: torch.device) -> Batch:
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m roads.judge.train_judge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--report", action="store_true", help="judge the judge; do not train")
    parser.add_argument("--folder", type=Path, default=Path("runs/judge"), help="the run's folder")
    parser.add_argument("--renders", type=Path, default=Path("runs"), help="the scenes' cache")
    parser.add_argument("--model", default="roads", help="whose VAE makes the round trips")
    parser.add_argument("--out", type=Path, default=FOLDER, help="the judge's folder")
    parser.add_argument("--steps", type=int, default=JudgeSettings.steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sheet", type=Path, help="with --report: a .png of what is misjudged")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    vae = load_model(options.model, device="cpu", dtype="float32").vae
    if options.report:
        print_report(options.out, vae, options.renders, options.folder, device, options.sheet)
        return
    settings = replace(JudgeSettings(), steps=options.steps, seed=options.seed)
    join_workers()
    pools = training_data(vae, options.renders, options.folder, settings.dtype)
    network = train_judge(pools, options.folder, settings, device)
    seen = calibration_data(vae, options.folder, settings.dtype)
    if worker()[0] == 0:
        write_judge(options.out, network, calibrate(network, seen, device))


def training_data(vae: AutoencoderKL, renders: Path, folder: Path, dtype: str) -> dict[str, Data]:
    """The three kinds of images of SHARES; what is not there yet is made."""
    if worker()[0] == 0:
        scene_data.load("train", RENDERS, renders)
        load_variants(VARIANT_SEEDS, VARIANTS, folder)
    wait_for_workers()
    train = scene_data.load("train", RENDERS, renders)
    variants = load_variants(VARIANT_SEEDS, VARIANTS, folder)
    some = joined(
        chosen(variants, range(0, VARIANTS, TRIPS_EVERY[0])),
        chosen(train, range(0, RENDERS, TRIPS_EVERY[1])),
    )
    trips = load_round_trips(vae, some, "train", folder, dtype)
    return {"renders": train, "variants": variants, "round trips": trips}


def train_judge(
    pools: dict[str, Data], folder: Path, settings: JudgeSettings, device: torch.device
) -> JudgeNetwork:
    """Train, or go on training, a judge; returns it with its averaged weights."""
    with seeded(settings.seed):
        network = JudgeNetwork(JudgeConfig()).to(device).train()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    modules = {"judge": network}
    optimizer = optimizer_for([network], weight_decay=1e-2)
    average = Average(modules, settings.decay)
    checkpoint = folder / "judge.pt"
    first, runs = load_checkpoint(checkpoint, modules, average, optimizer)
    runs = continued(runs, first, settings, sum(len(pool.scenes) for pool in pools.values()))
    log = Log(folder / "judge.jsonl", every=10)

    for step in range(first, settings.steps):
        rate = learning_rate(step, settings.steps, settings.peak, settings.warm_up)
        set_learning_rate(optimizer, rate)
        batch = judge_batch(pools, settings, step).to(device)
        with precision(device, settings.dtype):
            logits = network(batch.image.contiguous(memory_format=torch.channels_last))
        terms = judge_loss(logits, batch)
        loss = sum(terms.values(), start=torch.zeros((), device=device))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        average_gradients([network])
        torch.nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimizer.step()
        average.update(modules, step)
        log.add(step, settings.batch, **{k: v.detach() for k, v in terms.items()})
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            save_checkpoint(checkpoint, step + 1, modules, average, optimizer, runs)

    network.load_state_dict(average.weights["judge"])
    return network.eval()


def judge_batch(pools: dict[str, Data], settings: JudgeSettings, step: int) -> Batch:
    """This worker's share of the batch of one step.

    Mirrored with odds one half, moved by a few pixels with their masks, and degraded with
    odds `settings.degraded`: nothing of this changes what is in the image.
    """
    chooser, _noise = batch_random(settings.seed, step)
    names, odds = list(SHARES), list(SHARES.values())
    picks = [names[k] for k in chooser.choice(len(names), size=settings.batch, p=odds)]
    numbers = [int(chooser.integers(len(pools[name].scenes))) for name in picks]
    rank, count = worker()
    images, truths = [], []
    for row in range(rank, settings.batch, count):
        rng = np.random.default_rng([settings.seed, step, row])
        pool, number = pools[picks[row]], numbers[row]
        pixels, objects = np.asarray(pool.pixels[number]), np.asarray(pool.objects[number])
        down, across = (int(v) for v in rng.integers(-SHIFT, SHIFT + 1, size=2))
        pixels, objects = shifted(pixels, down, across), shifted(objects, down, across)
        if rng.random() < 0.5:
            pixels, objects = pixels[:, ::-1], objects[:, ::-1]
        if rng.random() < settings.degraded:
            pixels = degrade(np.ascontiguousarray(pixels), rng)
        images.append(pixels)
        truths.append(truth(pool.scenes[number], objects))
    return Batch.of(images, truths)


def judge_loss(logits: Logits, batch: Batch) -> dict[str, Tensor]:
    """Cross entropies, in nats; what is UNKNOWN counts nowhere.

    The cells weigh as much as ten cells of one object would: an image has 1280 of them, and
    nearly all are empty and easy.
    """
    return {
        "weather": F.cross_entropy(logits.weather, batch.weather),
        "place": F.cross_entropy(logits.place, batch.place),
        "colour": known_cross_entropy(logits.colour, batch.colour),
        "present": 2 * known_binary(logits.present, batch.present),
        "cover": 10 * known_binary(logits.cover, batch.cover),
    }


def known_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over the known targets; 0 where there are none."""
    total = F.cross_entropy(logits, target, ignore_index=UNKNOWN, reduction="sum")
    return total / (target != UNKNOWN).sum().clamp(min=1)


def known_binary(logits: Tensor, target: Tensor) -> Tensor:
    """Mean binary cross entropy over the known targets; 0 where there are none."""
    known = target != UNKNOWN
    each = F.binary_cross_entropy_with_logits(logits, target.float(), reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)


# --- calibration --------------------------------------------------------------------------


def calibration_data(vae: AutoencoderKL, folder: Path, dtype: str) -> Batch:
    """Renders, round trips, and strongly degraded copies of both, with held-out layouts."""
    if worker()[0] == 0:
        load_variants(CALIBRATION_SEEDS, 600, folder)
    wait_for_workers()
    renders = load_variants(CALIBRATION_SEEDS, 600, folder)
    trips = load_round_trips(vae, renders, "calibration", folder, dtype)
    pixels = [*renders.pixels, *trips.pixels]
    copies = [
        degrade(p, np.random.default_rng([CALIBRATION_SEEDS, k]), odds=0.8)
        for k, p in enumerate(pixels)
    ]
    truths = [truth(s, o) for s, o in zip(renders.scenes, renders.objects, strict=True)]
    return Batch.of([*pixels, *copies], truths * 4)


@torch.no_grad()
def calibrate(network: JudgeNetwork, seen: Batch, device: torch.device) -> JudgeConfig:
    """Temperatures that make every head's mean log-likelihood largest."""
    parts = [network(part.to(device)) for part in torch.split(seen.image, 64)]
    logits = {
        name: torch.cat([getattr(part, name) for part in parts]).cpu()
        for name in ("weather", "place", "colour", "present")
    }
    found = {
        name: best_temperature(logits[name], getattr(seen, name))
        for name in ("weather", "place", "colour")
    }
    for k, name in enumerate(OBJECTS):
        both = torch.stack([torch.zeros(len(seen.image)), logits["present"][:, k]], dim=1)
        found[name] = best_temperature(both, seen.present[:, k])
    return JudgeConfig(temperatures=found)


def best_temperature(logits: Tensor, target: Tensor) -> float:
    """Of temperatures between a half and 4, the likeliest one.

    Not below a half: with hardly a mistake to learn from, the likelihood would have the judge
    be quite sure of everything.
    """
    grid = torch.logspace(-1, 2, 201, base=2)
    losses = torch.stack([known_cross_entropy(logits / t, target) for t in grid])
    return round(float(grid[losses.argmin()]), 4)


def write_judge(folder: Path, network: JudgeNetwork, config: JudgeConfig) -> None:
    """config.json and float16 weights."""
    write_json(folder / "config.json", {"_class_name": "Judge", **asdict(config)})
    tensors = {
        name: value.detach().to("cpu", torch.float16).contiguous()
        for name, value in network.state_dict().items()
        if not name.endswith("tracked")  # a counter of training steps
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
