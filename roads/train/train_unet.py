"""Training the text encoder and the UNet together: to predict the noise in a latent.

x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps        arXiv:2006.11239, eq. 4
loss = w(t) |eps - unet(x_t, t, text)|^2                      arXiv:2006.11239, eq. 14
     + what the text encoder cannot name of its caption

python -m roads.train unet --steps 4700
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTokenizer

from pare.config import TextConfig, UNetConfig
from pare.guidance import guide
from pare.schedulers import Scheduler, add_noise, build_scheduler, interpret
from pare.text.clip import TextEncoder
from pare.unet import UNet
from pare.vae import AutoencoderKL
from roads.contact_sheet import contact_sheet
from roads.train.scene_data import Data, source_fingerprint, standing
from roads.train.train_tokenizer import LENGTH
from roads.train.train_vae import encode_all, new_vae, tensor_to_pixels
from roads.train.training_loop import (
    Average,
    Log,
    attention_for,
    average_gradients,
    batch_random,
    continued,
    learning_rate,
    load_checkpoint,
    optimizer_for,
    precision,
    save_checkpoint,
    save_whole,
    seeded,
    set_learning_rate,
    share,
    wait_for_workers,
    worker,
)
from roads.world.captions import caption, full_caption, read_caption
from roads.world.scene import CARS, OBJECTS, PLACES, WEATHERS

CONFIG: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "attention_head_dim": 8,  # the number of heads, in spite of its name
    "block_out_channels": [64, 128, 128, 64],
    "center_input_sample": False,
    "cross_attention_dim": 128,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 16,
    "out_channels": 4,
    "sample_size": 16,
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}
# The same keys as SD 1.4's text encoder, at a quarter of its depth and a sixth of its width.
TEXT_CONFIG: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 662,
    # diffusers loads in this dtype; float16 would not fit its float32 UNet.
    "dtype": "float32",
    "eos_token_id": 663,
    "hidden_act": "quick_gelu",
    "hidden_size": 128,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": LENGTH,
    "model_type": "clip_text_model",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "pad_token_id": 663,
    "projection_dim": 128,
    "transformers_version": "5.23.0",
    "vocab_size": 664,
}
# `scheduler_config.json`.  The noise schedule is SD 1.4's.  The solver is DPM++ 2M with Karras
# sigmas: on this model PNDM and LMS become unstable when they start midway (docs/schedulers.md).
# The last four keys are those that SD 1.4's file holds for other solvers.
SCHEDULER: dict[str, Any] = {
    "_class_name": "DPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "euler_at_final": False,
    "final_sigmas_type": "zero",
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "solver_order": 2,
    "solver_type": "midpoint",
    "trained_betas": None,
    "use_karras_sigmas": True,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
CAPTIONS_PER_SCENE = 6
UNSEEN_STEP = 2**40  # far beyond every training step: its own noise, the same at every evaluation

# What the progress sheets show, four seeds each.
SHEET_PROMPTS = (
    "a sunny road in the forest",
    "a snowy road in the mountains with a house",
    "a rainy road in the city with a blue car",
    "a desert road at night with a red car and the moon",
    "a dashcam view of a city at night with streetlights",
    "a sunny road in the desert with clouds and a yellow car",
)


@dataclass(frozen=True)
class UNetSettings:
    """What a run depends on, besides the data and the VAE."""

    steps: int = 4700
    batch: int = 24
    peak: float = 1e-3
    warm_up: int = 300
    decay: float = 0.999
    caption_dropout: float = 0.1
    naming: float = 0.2  # weight of the text encoder's own task
    objects: float = 6.0  # how much more the loss weighs where objects (would) stand, at first
    snr_low: float = 1.0
    snr_high: float = 5.0
    seed: int = 0
    dtype: str = "bfloat16"
    save_every: int = 250
    sheet_every: int = 500  # steps between sample sheets; 0: none


def new_unet(seed: int) -> UNet:
    """An untrained UNet; the same seed gives the same weights."""
    with seeded(seed):
        return UNet(UNetConfig.read(CONFIG, "roads' UNet config"))


def new_text_encoder(seed: int) -> TextEncoder:
    """An untrained text encoder, with first weights as CLIP's (arXiv:2103.00020, sec. 2.4)."""
    config = TextConfig.read(TEXT_CONFIG, "roads' text encoder config")
    width, depth = config.hidden_size, config.num_hidden_layers
    deviations = {
        "token_embedding": 0.02,
        "position_embedding": 0.02,
        "out_proj": width**-0.5,
        "fc1": (2 * width) ** -0.5,
    }
    with seeded(seed):
        encoder = TextEncoder(config)
        for name, module in encoder.named_modules():
            if isinstance(module, nn.Embedding | nn.Linear):
                deviation = deviations.get(name.rpartition(".")[2], (2 * depth * width) ** -0.5)
                nn.init.normal_(module.weight, std=deviation)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
    return encoder


def train_unet(
    data: Data,
    unseen: Data,
    tokenizer: CLIPTokenizer,
    folder: Path,
    settings: UNetSettings,
    device: torch.device,
) -> None:
    """Train, or go on training, on the latents of the VAE in `folder`."""
    vae, scaling_factor, latents, unseen_latents = prepare_latents(
        data, unseen, folder, settings.dtype, device
    )
    covers = torch.from_numpy(standing(data, folder.parent))
    texts = captions(data, CAPTIONS_PER_SCENE)
    tokens = tokenize_captions(texts, tokenizer)
    said = what_is_said(texts)
    unseen_tokens = tokenize_captions(captions(unseen, 1), tokenizer)
    empty = tokenize(tokenizer, [""])[0]

    model = new_model(settings.seed)
    modules = model.modules()
    for module in modules.values():
        module.to(device).train()
    optimizer = optimizer_for(modules.values(), weight_decay=1e-2)
    average = Average(modules, settings.decay)
    checkpoint = folder / "unet.pt"
    first, runs = load_checkpoint(checkpoint, modules, average, optimizer)
    runs = continued(runs, first, settings, len(data.scenes))
    scheduler = build_scheduler(SCHEDULER, "roads' scheduler", "ddim")
    alpha_bar = scheduler.schedule.alpha_bar.float()
    log = Log(folder / "unet.jsonl", every=50)

    for step in range(first, settings.steps):
        set_learning_rate(
            optimizer, learning_rate(step, settings.steps, settings.peak, settings.warm_up)
        )
        batch = unet_batch(latents, covers, tokens, said, empty, alpha_bar, settings, step)
        loss, plain, naming = unet_loss(model, batch.to(device), settings, step)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss + settings.naming * naming)
        average_gradients(modules.values())
        torch.nn.utils.clip_grad_norm_(
            [p for module in modules.values() for p in module.parameters()], 1.0
        )
        optimizer.step()
        average.update(modules, step)
        log.add(step, settings.batch, loss=loss.detach(), mse=plain, naming=naming.detach())
        done = step + 1
        if done % settings.save_every == 0 or done == settings.steps:
            save_checkpoint(checkpoint, done, modules, average, optimizer, runs)
        if settings.sheet_every and done % settings.sheet_every == 0 and worker()[0] == 0:
            averaged = averaged_model(average, device)
            error = unseen_error(
                averaged, unseen_latents, unseen_tokens, empty, alpha_bar, settings
            )
            log.write(step=done, unseen_mse=round(error, 6))
            images = sample(
                averaged, vae, scaling_factor, tokenizer, scheduler, SHEET_PROMPTS, range(4)
            )
            sheet = contact_sheet(list(images), columns=3 * 4)
            sheet.save(folder / f"samples-{done:06d}.png")


@dataclass(frozen=True)
class Model:
    """The two networks that are trained together."""

    unet: UNet
    text_encoder: TextEncoder

    def modules(self) -> dict[str, torch.nn.Module]:
        return {"unet": self.unet, "text_encoder": self.text_encoder}


def new_model(seed: int) -> Model:
    """Both networks, untrained."""
    return Model(new_unet(seed), new_text_encoder(seed))


def averaged_model(average: Average, device: torch.device) -> Model:
    """Both networks with their averaged weights, ready to be used."""
    model = new_model(seed=0)
    for name, module in model.modules().items():
        module.load_state_dict(average.weights[name])
        module.to(device).eval()
    return model


def prepare_latents(
    data: Data, unseen: Data, folder: Path, dtype: str, device: torch.device
) -> tuple[AutoencoderKL, float, Tensor, Tensor]:
    """The trained VAE, its scaling factor, and the scaled latents of all images.

    They are computed once and kept beside the checkpoint, which names the VAE's step.
    """
    saved = torch.load(folder / "vae.pt", map_location="cpu", weights_only=True)
    vae = new_vae(0)
    vae.load_state_dict(saved["average"]["vae"])
    vae.to(device).eval()
    path = folder / f"latents-{saved['step']}-{len(data.pixels)}-{source_fingerprint()}.pt"
    if not path.exists():
        latents = encode_all(vae, data, device, dtype)
        scaling_factor = known_scaling_factor(folder) or 1 / float(latents.std())
        unseen_latents = encode_all(vae, unseen, device, dtype)
        wait_for_workers()  # or one that comes late would find what another one wrote
        if worker()[0] == 0:
            kept = {"train": latents, "unseen": unseen_latents, "factor": scaling_factor}
            save_whole(path, kept)
            (folder / "vae.json").write_text(json.dumps({"scaling_factor": scaling_factor}) + "\n")
    wait_for_workers()
    kept = torch.load(path, weights_only=True)
    factor = float(kept["factor"])
    return vae, factor, kept["train"] * factor, kept["unseen"] * factor


def known_scaling_factor(folder: Path) -> float | None:
    """The scaling factor of a UNet that was trained before on this VAE's latents, if any.

    It is 1 / their standard deviation, so that the data have unit variance, as SD's 0.18215
    is (arXiv:2112.10752, appendix G); measured once, for other images would move it.
    """
    path = folder / "vae.json"
    return float(json.loads(path.read_text())["scaling_factor"]) if path.exists() else None


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Token ids (B, 77), padded with the end token as SD 1 does."""
    ids = tokenizer(
        list(texts), padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    return torch.as_tensor(ids)


def captions(data: Data, each: int) -> list[list[str]]:
    """`each` captions of every scene.

    The last of several names all that there is: most of the others say little of objects.
    """
    rng = np.random.default_rng(1)
    return [
        [
            full_caption(scene, unseen) if 0 < k == each - 1 else caption(scene, rng, unseen)
            for k in range(each)
        ]
        for scene, unseen in zip(data.scenes, data.unseen(), strict=True)
    ]


def tokenize_captions(texts: Sequence[Sequence[str]], tokenizer: CLIPTokenizer) -> Tensor:
    """Captions, as many of every scene, as token ids (N, each, 77) int16."""
    # In parts: the tokenizer's own output takes a hundred times the memory of the numbers.
    parts = [texts[i : i + 1000] for i in range(0, len(texts), 1000)]
    ids = [
        tokenize(tokenizer, [text for row in part for text in row]).to(torch.int16)
        for part in parts
    ]
    return torch.cat(ids).view(len(texts), len(texts[0]), LENGTH)


# What a caption can say of each attribute, "" for nothing.
SAYABLE: dict[str, tuple[str | bool, ...]] = {
    "weather": ("", *WEATHERS),
    "place": ("", *PLACES),
    "car": ("", "any", *CARS),
    **{name: ("", False, True) for name in OBJECTS if name != "car"},
}


def what_is_said(texts: Sequence[Sequence[str]]) -> Tensor:
    """Captions as numbers of SAYABLE (N, each, 7) int8."""
    numbers = [
        [
            [options.index(asked.get(name, "")) for name, options in SAYABLE.items()]
            for asked in map(read_caption, row)
        ]
        for row in texts
    ]
    return torch.tensor(numbers, dtype=torch.int8)


def naming_loss(hidden: Tensor, tokens: Tensor, said: Tensor) -> Tensor:
    """Cross-entropy of classifying what a caption says (B, 7) from its embedding (B, 77, C).

    SD's text encoder came trained: as a half of CLIP it knew what words mean before a UNet
    listened to it (arXiv:2103.00020, section 2.3).  Ours starts with this one, and a UNet
    teaches it the weather, which is everywhere in an image, long before the colour of a
    car.  So it has a task of its own: from the end of the caption on, where a position has
    seen all words, a fixed read-out of each vector must name every attribute that the
    caption names, and know which it does not.  Cross entropy in nats, a mean over
    attributes.  The read-out (orthonormal directions) is never trained: the words must
    come apart in the vectors themselves, for the UNet to find.
    """
    choices = sum(len(options) for options in SAYABLE.values())
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((hidden.shape[-1], choices), generator=generator)
    directions = torch.linalg.qr(noise).Q.to(hidden.device)
    behind = tokens == tokens[:, -1:]  # the end token, which also pads
    logits = hidden.float() @ directions
    losses = []
    for k, part in enumerate(logits.split([len(options) for options in SAYABLE.values()], dim=-1)):
        wanted = said[:, k, None].expand_as(tokens)
        losses.append(F.cross_entropy(part[behind], wanted[behind]))
    return torch.stack(losses).mean()


@dataclass(frozen=True)
class Batch:
    """x_t and eps (B, 4, 16, 16), t (B,), alpha_bar (B,), cover (B, 16, 16), tokens (B, 77) and
    what they say, (B, 7) numbers of SAYABLE."""

    x_t: Tensor
    eps: Tensor
    t: Tensor
    alpha_bar: Tensor
    cover: Tensor
    tokens: Tensor
    said: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def unet_batch(
    latents: Tensor, covers: Tensor, tokens: Tensor, said: Tensor, empty: Tensor,
    alpha_bar: Tensor, settings: UNetSettings, step: int,
) -> Batch:  # fmt: skip
    """The samples of one step: random images, captions, timesteps and noise.

    covers (N, 16, 16) uint8: where objects (would) stand, see `roads.train.scene_data.standing`.
    """
    chooser, generator = batch_random(settings.seed, step)
    size = settings.batch
    index = torch.from_numpy(chooser.integers(len(latents), size=size))
    which = torch.from_numpy(chooser.integers(tokens.shape[1], size=size))
    chosen = tokens[index, which].long()
    # Classifier-free guidance needs an unconditional prediction, without a caption: every tenth
    # caption is dropped (arXiv:2207.12598, algorithm 1).
    dropped = torch.from_numpy(chooser.random(size) < settings.caption_dropout)
    chosen = torch.where(dropped[:, None], empty, chosen)
    say = torch.where(dropped[:, None], 0, said[index, which].long())
    # One timestep from each of B equal parts of the schedule: each is still uniform, and
    # the batch as a whole covers the schedule evenly, which steadies the gradient.
    part = np.arange(size) + chooser.random(size)
    t = torch.from_numpy((part * len(alpha_bar) / size).astype(np.int64))
    eps = torch.randn((size, *latents.shape[1:]), generator=generator)
    x_t = add_noise(latents[index], eps, alpha_bar[t])
    cover = covers[index].float() / 255
    return Batch(*share(x_t, eps, t, alpha_bar[t], cover, chosen, say))


def unet_loss(
    model: Model, batch: Batch, settings: UNetSettings, step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The UNet's weighted loss, the plain mean squared error of eps, and the naming loss."""
    device = batch.x_t.device
    with precision(device, settings.dtype), attention_for(device):
        text = model.text_encoder(batch.tokens).last_hidden_state
        output = model.unet(batch.x_t, batch.t, text)
    error = (output.float() - batch.eps).square().mean(dim=1)
    level = snr_weight(batch.alpha_bar, settings.snr_low, settings.snr_high)
    place = object_weight(batch.cover, settings, step)
    weighted = (level * (place * error).mean(dim=(1, 2))).mean()
    return weighted, error.detach().mean(), naming_loss(text, batch.tokens, batch.said)


def object_weight(cover: Tensor, settings: UNetSettings, step: int) -> Tensor:
    """cover (B, 16, 16) in [0, 1] -> what an error counts in each cell of the latent.

    A car is a dozen of 256 cells, and its colour one of their four channels: a plain mean
    takes long to notice whether it is the one that was asked for.  So cells count more
    where the layout has room for an object, whether it stands there or not: weighing the
    present ones alone would teach that things are there more often than they are.  In
    noise that hides the layout a rest of this fault remains, hence the weight fades
    towards the end of the training.
    """
    return 1 + settings.objects * max(0.0, 1 - step / settings.steps) * cover


def snr_weight(alpha_bar: Tensor, low: float, high: float) -> Tensor:
    """clamp(SNR, low, high) / SNR: what an error of eps counts at a level of noise.

    An error of eps is an error of x0 times SNR; so x0 counts clamp(SNR, low, high).
    - `high`: nearly clean latents have a huge SNR and would otherwise rule the gradient
      (min-SNR, arXiv:2303.09556, section 3.4);
    - `low`: in almost pure noise an error of x0 would hardly count, but it is there that a
      image's weather and light are settled, by the caption or else by chance
      (truncated SNR, arXiv:2202.00512, section 4).
    """
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(low, high) / snr


@torch.no_grad()
def unseen_error(
    model: Model,
    latents: Tensor,
    tokens: Tensor,
    empty: Tensor,
    alpha_bar: Tensor,
    settings: UNetSettings,
) -> float:
    """Mean squared error of eps on held-out scenes, always with the same noise."""
    device = next(model.unet.parameters()).device
    errors = []
    covers = torch.zeros((len(latents), *latents.shape[2:]), dtype=torch.uint8)
    said = torch.zeros((len(latents), 1, len(SAYABLE)), dtype=torch.int8)  # not asked for here
    for k in range(8):
        step = UNSEEN_STEP + k
        batch = unet_batch(latents, covers, tokens, said, empty, alpha_bar, settings, step)
        errors.append(float(unet_loss(model, batch.to(device), settings, step)[1]))
    return sum(errors) / len(errors)


@torch.no_grad()
def sample(
    model: Model,
    vae: AutoencoderKL,
    scaling_factor: float,
    tokenizer: CLIPTokenizer,
    scheduler: Scheduler,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int = 25,
    guidance: float = 4.0,
) -> npt.NDArray[np.uint8]:
    """Images (prompts x seeds, H, W, 3) by DDIM under classifier-free guidance."""
    device = next(model.unet.parameters()).device
    each = [(prompt, seed) for prompt in prompts for seed in seeds]
    tokens = tokenize(tokenizer, [""] * len(each) + [prompt for prompt, _seed in each])
    text = model.text_encoder(tokens.to(device)).last_hidden_state
    timesteps = scheduler.timesteps(steps)
    noise = [
        torch.randn((4, 16, 16), generator=torch.Generator().manual_seed(seed)) for _, seed in each
    ]
    x_t = torch.stack(noise).to(device) * timesteps.initial_scale
    history: tuple[Tensor, ...] = ()
    for i in range(len(timesteps)):
        level = timesteps.levels[i]
        uncond, cond = model.unet(torch.cat([x_t, x_t]), level.t, text).chunk(2)
        output = guide(uncond, cond, guidance)
        prediction = interpret(output, x_t, level, scheduler.prediction_type)
        x_t, history = scheduler.step(timesteps, i, x_t, prediction, history)
    return tensor_to_pixels(torch.cat([vae.decode(x0[None] / scaling_factor) for x0 in x_t]))
