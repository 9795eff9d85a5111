"""The comparisons of `pare verify`: from single layers to finished images.

Bounds:

- text encoder, UNet and VAE: in float32 on the CPU the same bits; on a GPU 1e-5; in half
  precision no farther from diffusers than diffusers is from its own float32.
- solvers, rolled out on a denoiser that is known exactly: 1e-5.
- images: no channel of any pixel off by more than 1 of 255.  In half precision: no
  farther from diffusers', at that precision or in float32, than those two are apart.
- techniques that enlarge rounding (gates that decide pixel by pixel, training): by PSNR, and
  by the loss that is reached (`techniques.py`).
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from pare.errors import SettingError
from pare.io.images import to_pil, to_tensor
from pare.noise import Noise
from pare.pipeline import Pipeline
from pare.recipes.recipe import current_versions
from pare.schedulers import Scheduler, build_scheduler, interpret, start_index
from pare.text.text_encoder import PromptTruncated, encode
from pare.verify import diffusers_side
from pare.verify.analytic_denoiser import Denoiser, denoiser
from pare.verify.layer_parity import compare_layers
from pare.verify.paired_timing import in_turns
from pare.verify.parity_table import SAME_BITS, Bound, Distance, Report, Row

GROUPS = (
    "text", "unet", "vae", "schedulers", "generate", "img2img", "blend", "erase", "invert", "p2p",
)  # fmt: skip

SOLVERS = ("ddim", "dpm++2m", "lms", "pndm", "euler", "euler-ancestral")
KARRAS = ("dpm++2m", "lms", "euler")

PROMPT, NEGATIVE = "a snowy road in the forest", "night"
PROMPTS = {
    "a prompt": PROMPT,
    "the empty prompt": "",
    "odd characters": "Straße №7 -- 2 cars, (snow!) 雪",
    "more than 77 tokens": "a red car behind a tree on a winding road at dawn, " * 12,
}
SEED, GUIDANCE = 7, 7.5
ROLLOUTS = (2, 7, 20, 25, 50)  # steps
EDGE = 32  # latents along a side at most, where every layer's output is kept

Say = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """One model, loaded by both."""

    pipe: Pipeline
    theirs: Any
    """diffusers' pipeline, at the same device and dtype."""
    exact: Any | None
    """diffusers' pipeline in float32, where the comparison is in half precision."""
    steps: int

    @property
    def device(self) -> torch.device:
        return self.pipe.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.pipe.latent_shape()

    @property
    def inpaints(self) -> bool:
        """Whether the UNet wants a mask and a masked image beside the latents."""
        return self.pipe.unet.config.in_channels != self.pipe.vae.config.latent_channels

    @cached_property
    def image(self) -> Image.Image:
        """An image of the model's own world to edit: made by diffusers, for both."""
        if self.inpaints:
            return soft_colours()
        scheduler = diffusers_side.build_scheduler("ddim", self.pipe.scheduler_config)
        images = diffusers_side.generate(
            self.exact or self.theirs,
            scheduler,
            PROMPT,
            seed=SEED,
            steps=self.steps,
            guidance=GUIDANCE,
            negative="",
            latent_shape=self.latent_shape,
        )
        image: Image.Image = diffusers_side.to_8_bits(self.theirs, images)[0]
        return image

    def bound(self, theirs: Tensor, run_exact: Callable[[Any], Tensor]) -> Bound:
        """What one call of a model has to keep; `theirs` is what diffusers gave."""
        if self.exact is not None:
            own = Distance.between(theirs, run_exact(self.exact))
            return Bound("relative", own.relative)
        return SAME_BITS if self.device.type == "cpu" else Bound("relative", 1e-5)


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
) -> Report:
    """Compare pare with diffusers on one model.

    Args:
        model: "roads", a folder in the Hub's layout, or a repository on the Hub.
        device: "auto" is CUDA, MPS or the CPU, in this order.
        dtype: "auto" is float32, in which the comparison is strictest.
        revision: a branch, a tag or a commit's hash of a repository.
        only: some of `GROUPS`; None: all of them.
        steps: of the runs that make images.
        progress: is told what is compared next, in a few words.

    Raises:
        MissingExtraError: diffusers is not installed.
        SettingError: an unknown group.
        PareError: the model, the device or the dtype.
    """
    groups = chosen(only)
    diffusers = diffusers_side.require_diffusers()
    started = time.perf_counter()
    say = progress or (lambda words: None)
    rows: list[Row] = []
    skipped: dict[str, str] = {}
    with diffusers_side.quiet(), exact_float32():
        say("loading the model, twice")
        kind = "float32" if dtype == "auto" else dtype
        subject = load_subject(model, device, kind, steps, revision)
        for group in groups:
            say(f"comparing: {group}")
            for found in comparison(group)(subject):
                if isinstance(found, Row):
                    rows.append(found)
                else:
                    skipped[found[0]] = found[1]
    return Report(
        model=asdict(subject.pipe.source),
        device=str(subject.device),
        dtype=str(subject.pipe.dtype).removeprefix("torch."),
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


def comparison(group: str) -> Callable[[Subject], Iterator[Found]]:
    from pare.verify import technique_parity  # which is made of what is here

    return {**COMPARISONS, **technique_parity.COMPARISONS}[group]


def load_subject(
    model: str | Path, device: str, dtype: str, steps: int, revision: str | None = None
) -> Subject:
    pipe = Pipeline.from_pretrained(
        model, device=device, dtype=dtype, revision=revision, scheduler="ddim"
    )
    theirs = diffusers_side.load_reference(pipe.source, pipe.device, pipe.dtype)
    exact = None
    if pipe.dtype != torch.float32:
        exact = diffusers_side.load_reference(pipe.source, pipe.device, torch.float32)
    return Subject(pipe, theirs, exact, steps)


@contextmanager
def exact_float32() -> Iterator[None]:
    """No TensorFloat32 (a 10-bit mantissa) in matrix products and convolutions on a GPU."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


# --- text encoder, UNet, VAE: layer by layer ----------------------------------------------

Found = Row | tuple[str, str]
"""A comparison, or (what was skipped, why)."""


def text_rows(subject: Subject) -> Iterator[Found]:
    """Tokens and every layer of the text encoder."""
    pipe = subject.pipe
    for name, prompt in PROMPTS.items():

        def ours(prompt: str = prompt) -> Tensor:
            with warnings.catch_warnings():  # one of the prompts is too long on purpose
                warnings.simplefilter("ignore", PromptTruncated)
                return encode(pipe.tokenizer, pipe.text_encoder, [prompt])

        def theirs(pipeline: Any, prompt: str = prompt) -> Tensor:
            cond: Tensor = pipeline.encode_prompt(prompt, pipeline.device, 1, False)[0]
            return cond

        yield model_row(subject, "text", name, "text_encoder", ours, theirs)


def unet_rows(subject: Subject) -> Iterator[Found]:
    """Every layer of the UNet, on grids of even and of odd size."""
    unet = subject.pipe.unet
    height, width = (min(side, EDGE) for side in unet.config.sample_size)
    cond, uncond = diffusers_side.embeddings(subject.theirs, PROMPT, "")
    text = torch.cat([uncond, cond])
    # Two images, each at a timestep of its own.
    t = torch.tensor([981, 17], device=subject.device)
    for h, w in ((height, width), (max(1, height // 2 - 1), max(1, width // 2 + 1))):
        x_t = unit_noise((2, unet.config.in_channels, h, w)).to(text)

        def ours(x_t: Tensor = x_t) -> Tensor:
            return unet(x_t, t, text)

        def theirs(pipeline: Any, x_t: Tensor = x_t) -> Tensor:
            there = pipeline.dtype
            answer: Tensor = pipeline.unet(
                x_t.to(there), t, encoder_hidden_states=text.to(there)
            ).sample
            return answer

        yield model_row(subject, "unet", f"latents {h} x {w}", "unet", ours, theirs)


def vae_rows(subject: Subject) -> Iterator[Found]:
    """Every layer of the encoder and of the decoder."""
    vae = subject.pipe.vae
    height, width = (min(side, EDGE) for side in subject.latent_shape[1:])
    factor = vae.config.factor
    resized = subject.image.resize((width * factor, height * factor))
    image = to_tensor(resized).to(subject.device, subject.pipe.dtype)
    latents = subject.theirs.vae.encode(image).latent_dist.mode()

    def our_encoding() -> Tensor:
        posterior = vae.encode(image)
        return torch.cat([posterior.mean, posterior.std], dim=1)

    def their_encoding(pipeline: Any) -> Tensor:
        posterior = pipeline.vae.encode(image.to(pipeline.dtype)).latent_dist
        return torch.cat([posterior.mean, posterior.std], dim=1)

    def our_decoding() -> Tensor:
        return vae.decode(latents)

    def their_decoding(pipeline: Any) -> Tensor:
        decoded: Tensor = pipeline.vae.decode(latents.to(pipeline.dtype)).sample
        return decoded

    size = f"{resized.height} x {resized.width}"
    yield model_row(subject, "vae", f"encoder {size}", "vae", our_encoding, their_encoding)
    yield model_row(subject, "vae", f"decoder {size}", "vae", our_decoding, their_decoding)


def model_row(
    subject: Subject,
    group: str,
    name: str,
    part: str,
    ours: Callable[[], Tensor],
    theirs: Callable[[Any], Tensor],
) -> Row:
    """Compare one part of the model, layer by layer, then time it.

    `ours()` runs pare's part and `theirs(pipeline)` diffusers' on the same input.
    """
    compared = compare_layers(
        getattr(subject.pipe, part),
        getattr(subject.theirs, part),
        ours,
        lambda: theirs(subject.theirs),
    )
    bound = subject.bound(compared.theirs, theirs)
    departed = compared.first_departure(bound.limit)
    note = f"departs first at {departed}" if departed else f"{len(compared.layers)} layers"
    duel = in_turns(ours, lambda: theirs(subject.theirs), subject.device, pairs=5)
    distance = Distance.between(compared.ours, compared.theirs)
    return Row(group, name, distance, bound, time_ratio=duel.ratio, note=note)


# --- solvers on a denoiser that is known exactly ------------------------------------------


def scheduler_rows(subject: Subject) -> Iterator[Found]:
    """Every solver from its start and from midway, each the worst of all its runs."""
    config = subject.pipe.scheduler_config
    variants: list[tuple[str, bool, float]] = [(name, False, 0.0) for name in SOLVERS]
    variants += [("ddim", False, 1.0), ("ddim-inverse", False, 0.0)]
    variants += [(name, True, 0.0) for name in KARRAS]
    for name, karras, eta in variants:
        label = name + (" with eta 1" if eta else "") + (" with Karras sigmas" if karras else "")
        reason = diffusers_side.known_deviation(name, config, karras=karras)
        if reason:
            yield label, reason
            continue
        options = solver_options(name, karras) | ({"eta": eta} if eta else {})
        ours = build_scheduler(config, "the model's scheduler_config.json", name, **options)
        model = denoiser(ours.schedule, ours.prediction_type)
        distances, ratios = [], []
        for steps in ROLLOUTS:
            for start in (0, steps // 3):
                theirs = diffusers_side.build_scheduler(name, config, karras=karras)
                run = diffusers_side.Run(name, theirs, steps, start)
                duel = in_turns(
                    partial(our_rollout, ours, model, steps, start),
                    partial(their_rollout, run, model, eta),
                    torch.device("cpu"),
                    pairs=1,
                )
                distances.append(Distance.between(duel.ours, duel.theirs))
                ratios.append(duel.ratio)
        worst, bound = Distance.worst(distances), Bound("relative", 1e-5)
        note = f"{len(distances)} runs of {ROLLOUTS[0]} to {ROLLOUTS[-1]} steps"
        ratio = statistics.median(ratios)
        yield Row("schedulers", label, worst, bound, time_ratio=ratio, note=note)


def solver_options(name: str, karras: bool) -> dict[str, Any]:
    """`karras` as an option, given also where it is False: the model's file may say otherwise."""
    return {"karras": karras} if name in KARRAS else {}


def our_rollout(scheduler: Scheduler, model: Denoiser, steps: int, start: int) -> Tensor:
    timesteps = scheduler.timesteps(steps, start)
    noise = Noise([SEED])
    x_t = noise.draw((4, 8, 8)) * (timesteps.initial_scale if start == 0 else 1.0)
    history: tuple[Tensor, ...] = ()
    for i in range(len(timesteps)):
        level = timesteps.levels[i]
        prediction = interpret(model(x_t, level.t), x_t, level, scheduler.prediction_type)
        fresh = noise.draw((4, 8, 8)) if scheduler.stochastic else None
        x_t, history = scheduler.step(timesteps, i, x_t, prediction, history, fresh)
    return x_t


def their_rollout(run: diffusers_side.Run, model: Denoiser, eta: float) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn((1, 4, 8, 8), generator=generator)
    x = run.begin(noise) if run.start == 0 else run.from_latents(noise)
    return run.to_the_end(x, lambda x_t, t: model(x_t, float(t)), generator, eta)


# --- images -----------------------------------------------------------------------------


def generate_rows(subject: Subject) -> Iterator[Found]:
    """A prompt to an image under every solver; diffusers' side is its own pipeline call."""

    def theirs(pipeline: Any, name: str, karras: bool) -> Tensor:
        config = subject.pipe.scheduler_config
        return diffusers_side.generate(
            pipeline,
            diffusers_side.build_scheduler(name, config, karras=karras),
            PROMPT,
            seed=SEED,
            steps=subject.steps,
            guidance=GUIDANCE,
            negative=NEGATIVE,
            latent_shape=subject.latent_shape,
        )

    def ours(pipe: Pipeline) -> Tensor:
        return pipe.generate(
            PROMPT, [SEED], steps=subject.steps, guidance=GUIDANCE, negative=NEGATIVE
        ).tensor

    yield from image_rows(subject, "generate", ours, theirs)


def img2img_rows(subject: Subject) -> Iterator[Found]:
    """An image repainted from mid-timestep schedule under every solver."""
    strength = 0.6

    def theirs(pipeline: Any, name: str, karras: bool) -> Tensor:
        return diffusers_side.img2img(
            pipeline,
            their_run(subject, name, karras, strength),
            subject.image,
            PROMPT,
            seed=SEED,
            guidance=GUIDANCE,
            negative=NEGATIVE,
        )

    def ours(pipe: Pipeline) -> Tensor:
        return pipe.img2img(
            subject.image,
            PROMPT,
            [SEED],
            strength=strength,
            steps=subject.steps,
            guidance=GUIDANCE,
            negative=NEGATIVE,
        ).tensor

    yield from image_rows(subject, "img2img", ours, theirs)


def blend_rows(subject: Subject) -> Iterator[Found]:
    """Blended latent diffusion under every solver, its background as the VAE decodes it.

    Both sides hand over finished 8-bit images, so that the errors are whole 255ths.
    """
    from techniques.blended import blend

    strength = 0.8
    mask = middle_mask(subject.image.size)

    def theirs(pipeline: Any, name: str, karras: bool) -> Tensor:
        edited, _ = diffusers_side.blend(
            pipeline,
            their_run(subject, name, karras, strength),
            subject.image,
            mask,
            PROMPT,
            seed=SEED,
            guidance=GUIDANCE,
            negative=NEGATIVE,
        )
        image = diffusers_side.to_8_bits(pipeline, edited)[0]
        return to_tensor(image) / 2 + 0.5

    def ours(pipe: Pipeline) -> Tensor:
        blended = blend(
            pipe,
            subject.image,
            mask,
            PROMPT,
            [SEED],
            strength=strength,
            steps=subject.steps,
            guidance=GUIDANCE,
            negative=NEGATIVE,
            background="latent",
        )
        return to_tensor(blended.images[0])

    yield from image_rows(subject, "blend", ours, theirs)


def their_run(subject: Subject, name: str, karras: bool, strength: float) -> diffusers_side.Run:
    """diffusers' run that starts at the step at which pare's does for this strength."""
    scheduler = diffusers_side.build_scheduler(name, subject.pipe.scheduler_config, karras=karras)
    start = start_index(subject.steps, strength)
    return diffusers_side.Run(name, scheduler, subject.steps, start, subject.device)


def image_rows(
    subject: Subject,
    group: str,
    ours: Callable[[Pipeline], Tensor],
    theirs: Callable[[Any, str, bool], Tensor],
) -> Iterator[Found]:
    """One row a solver.  `ours(pipe)` gives (1, 3, H, W) in [-1, 1] and
    `theirs(pipeline, solver, karras)` the same in [0, 1]."""
    if subject.inpaints:
        yield group, "an inpainting model, whose UNet wants a mask as well"
        return
    config = subject.pipe.scheduler_config
    for name, karras in (*((name, False) for name in SOLVERS), *((name, True) for name in KARRAS)):
        label = name + (" with Karras sigmas" if karras else "")
        reason = diffusers_side.known_deviation(name, config, karras=karras)
        if name == "euler-ancestral" and subject.exact is not None:
            reason = "diffusers draws the noise of its steps in half precision"
        if reason:
            yield f"{group}, {label}", reason
            continue
        pipe = subject.pipe.with_scheduler(name, **solver_options(name, karras))
        duel = in_turns(
            partial(ours, pipe),
            partial(theirs, subject.theirs, name, karras),
            subject.device,
            pairs=1,
        )
        levels = apart(subject, duel.ours, duel.theirs)
        limit = 1
        if subject.exact is not None:
            # pare keeps latents in float32 between the steps and diffusers does not, so that
            # pare may be nearer to diffusers' float32: either will do.
            exact = theirs(subject.exact, name, karras)
            limit = max(1, apart(subject, exact * 2 - 1, duel.theirs))
            levels = min(levels, apart(subject, duel.ours, exact))
        distance = Distance.between((duel.ours / 2 + 0.5).clamp(0, 1), duel.theirs)
        yield Row(group, label, distance, Bound("levels", limit), levels, duel.ratio)


def apart(subject: Subject, ours: Tensor, theirs: Tensor) -> int:
    """The largest difference of two images in 8-bit levels, each rounded by its own side."""
    one = np.asarray(to_pil(ours)[0]).astype(int)
    other = np.asarray(diffusers_side.to_8_bits(subject.theirs, theirs)[0]).astype(int)
    return int(np.abs(one - other).max())


def middle_mask(size: tuple[int, int]) -> Image.Image:
    """White in the middle half of the image, black around it."""
    width, height = size
    mask = Image.new("L", size, 0)
    box = (width // 4, height // 4, width * 3 // 4 - 1, height * 3 // 4 - 1)
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    return mask


def soft_colours() -> Image.Image:
    """An image of nothing, for models that cannot make one from a prompt alone."""
    colours = np.random.default_rng(SEED).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((256, 256), Image.Resampling.BICUBIC)


def unit_noise(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(SEED))


COMPARISONS: dict[str, Callable[[Subject], Iterator[Found]]] = {
    "text": text_rows,
    "unet": unet_rows,
    "vae": vae_rows,
    "schedulers": scheduler_rows,
    "generate": generate_rows,
    "img2img": img2img_rows,
    "blend": blend_rows,
}
