"""Text to image by latent diffusion (arXiv:2112.10752): the parts of a run, and whole runs.

    pipe      = Pipeline.from_pretrained("roads")
    prompts   = pipe.encode_prompts(["a snowy road"])
    timesteps = pipe.scheduler.timesteps(25)
    noise     = pipe.noise([7])
    x_T       = noise.draw(pipe.latent_shape()) * timesteps.initial_scale
    x0        = pipe.denoise(x_T, timesteps, prompts, guidance=7.5, noise=noise)
    image     = pipe.decode(x0)

`generate` and `img2img` are these lines, batched to fit into memory.  The techniques use
the same parts and write their own sampling loop in place of `denoise`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from pare import guidance as guiding
from pare.attention import Control
from pare.errors import ImageError, ModelError, SettingError
from pare.io.images import ImageLike, as_image_tensor, to_pil
from pare.loading.lora import LoraWeights, with_lora
from pare.loading.lora_file import LoraFile, load_lora
from pare.loading.lora_source import find_lora
from pare.loading.model_source import ModelSource
from pare.loading.modules import Components, load_model
from pare.loading.resolve import resolve_model, scheduler_config
from pare.noise import Noise
from pare.results import Images
from pare.runtime import validation
from pare.runtime.calls import checked_keywords
from pare.runtime.device import choose_device, choose_dtype, dtype_name
from pare.runtime.memory_plan import (
    Plan,
    decoder_bytes,
    decoder_tile,
    encoder_tile,
    fitting_count,
    free_bytes,
    plan_run,
)
from pare.schedulers import (
    NoiseLevel,
    Prediction,
    Scheduler,
    Timesteps,
    add_noise,
    build_scheduler,
    find_solver,
    interpret,
    start_index,
)
from pare.schedulers.reliability import read_reliability, warn_of_unreliable_solver
from pare.text.embedding_edits import NO_EDITS, TextEdits, encode_prompts_edited
from pare.text.text_encoder import (
    PromptEmbeddings,
    encode,
    known_words,
    paired,
    warn_of_unknown_words,
)
from pare.vae import Posterior
from pare.vae.half_precision import run_vae

Progress = Callable[[Iterable[int]], Iterable[int]]
"""Wraps the step indices of a loop, as tqdm does."""


class Pipeline:
    """A model's parts with a scheduler, and the steps of a run as methods.

    Latents are float32, variance-preserving and scaled by the VAE's `scaling_factor`.  The
    UNet gets them in its own dtype.
    """

    def __init__(self, components: Components, scheduler: Scheduler) -> None:
        self.unet = components.unet
        self.vae = components.vae
        self.tokenizer = components.tokenizer
        self.text_encoder = components.text_encoder
        self.source: ModelSource = components.source
        self.words = known_words(components.source.path)
        self.reliability = read_reliability(components.source.path)
        self.scheduler_config = components.scheduler_config
        self.scheduler = scheduler
        self.text_edits: TextEdits = NO_EDITS

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "roads",
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
        tokenizer: Path | None = None,
        check_hashes: bool = True,
        strict: bool = False,
        scheduler: str | None = None,
        **scheduler_options: Any,
    ) -> Self:
        """Load a model: "roads" (built in), a folder as on the Hub, a file, or a Hub repository.

        Args:
            device: "auto" is CUDA, MPS or the CPU, in this order.
            dtype: "auto" is float16 on CUDA and float32 elsewhere.
            revision: a branch, a tag or a commit's hash of a repository.
            tokenizer: a folder, for a single file that does not have CLIP's own tokens.
            check_hashes: see that the weights of a repository, as they are downloaded, have the
                SHA-256 that the server announced: three seconds for 4 GB.
            strict: refuse every key of the model's configs that does not describe the model, and
                a solver that pare does not have; else they are left out, or replaced, with a
                warning.
            scheduler: a name from `pare.schedulers.SCHEDULERS`; None is the model's own.
            scheduler_options: see `build_scheduler`.

        Raises:
            PareError: its subclasses say what is wrong with the model or a setting.
        """
        # The scheduler first: a wrong name should not wait until gigabytes are downloaded or read.
        if scheduler is not None:
            find_solver(scheduler)
        torch_dtype = choose_dtype(dtype, choose_device(device))
        resolved = resolve_model(
            model,
            dtype=torch_dtype,
            revision=revision,
            check_hashes=check_hashes,
            strict=strict,
        )
        config, where = scheduler_config(resolved)
        solver = build_scheduler(config, where, scheduler, strict=strict, **scheduler_options)
        parts = load_model(resolved, device=device, dtype=torch_dtype, tokenizer=tokenizer)
        return cls(parts, solver)

    def with_scheduler(self, name: str | None, **options: Any) -> Self:
        """The same model, not copied, under another scheduler; None is the model's own."""
        where = f"{self.source.path}/scheduler/scheduler_config.json"
        other = copy.copy(self)
        other.scheduler = build_scheduler(self.scheduler_config, where, name, **options)
        return other

    def with_text_edits(self, edits: TextEdits) -> Self:
        """The same model, not copied, that reads prompts under edits (`pare.text.embedding_edits`).

        Raises:
            EmbeddingError, PromptError, SettingError: edits that make no sense for the model.
        """
        edits.check(self.text_encoder.config.hidden_size, self.source.name)
        other = copy.copy(self)
        other.text_edits = edits
        return other

    def with_lora(
        self,
        lora: str | Path | LoraFile,
        weight: float = 1.0,
        *,
        blocks: Mapping[str, float] | None = None,
    ) -> Self:
        """The same model under a LoRA (arXiv:2106.09685); every weight is shared, not copied.

        Calls add up: `pipe.with_lora(style).with_lora(subject, 0.7)`.

        Args:
            lora: a file of kohya's, diffusers' or peft's, such a folder, `owner/name` or
                `owner/name/file.safetensors` on the Hub, or what `load_lora` read.
            weight: 1 is as trained, 0 changes nothing.
            blocks: other weights for some parts of the model, `{"text": 0, "up.1": 1.5}`; see
                `pare.loading.lora.LoraWeights`.

        Raises:
            ModelError: no LoRA, or one for another base model.
            WeightsError: a damaged file, or one that does not fit the model's layers.
            SettingError: a weight out of range, or a block that there is not.
        """
        file = lora if isinstance(lora, LoraFile) else load_lora(find_lora(lora))
        weights = LoraWeights(weight, blocks or {})
        other = copy.copy(self)
        other.unet, other.text_encoder = with_lora(
            self.unet, self.text_encoder, file, weights, self.source.name
        )
        return other

    def to(
        self,
        device: str | torch.device | torch.dtype | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> Self:
        """Move UNet, VAE and text encoder to a device, a dtype, or both; returns the pipeline.

        In place, as PyTorch's modules do it: pipelines that share the model (`with_scheduler`,
        `with_text_edits`) move with it.  `pipe.to(torch.float16)` changes the dtype alone.

        Raises:
            DeviceError: a device that this machine does not have, or a dtype that models do
                not run in.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        place = self.device if device is None else choose_device(str(device))
        kind = self.dtype if dtype is None else choose_dtype(dtype, place)
        for part in (self.unet, self.vae, self.text_encoder):
            part.to(place, kind)
        return self

    def __repr__(self) -> str:
        width, height = self.trained_size
        where = f"{self.device}, {dtype_name(self.dtype)}"
        return f"Pipeline({self.source.name}, {width} x {height}, {self.scheduler.name}, {where})"

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.conv_in.weight.dtype

    # --- the parts of a run ---------------------------------------------------------------

    def encode_prompts(
        self, prompts: str | Sequence[str], negative: str | Sequence[str] = ""
    ) -> PromptEmbeddings:
        """Prompts and negative prompts (one for all, or one each) as (B, 77, C) each.

        Every text is encoded by itself, so that its embedding does not depend on the others.

        Warns:
            PromptTruncated: a text that has more than 77 tokens; what is cut off is shown.
            UnknownWords: words that are not in the model's own list of words, if it has one.

        Raises:
            SettingError: no prompts, or not as many negative prompts.
            PromptError: a prompt that is no text, or far too long; under text edits also a word
                that no prompt has.
        """
        prompts = validation.prompt_list(prompts)
        if not prompts:
            raise SettingError("no prompts are given", expected='at least one, which may be ""')
        negatives = paired(prompts, negative)
        unique = list(dict.fromkeys([*prompts, *negatives]))
        edits = self.text_edits
        if self.words is not None:
            texts = [edits.without_learned(text) for text in (*unique, *edits.outside_prompts)]
            warn_of_unknown_words(texts, self.words, self.source.name)
        if edits:
            return encode_prompts_edited(
                self.tokenizer, self.text_encoder, prompts, negatives, edits
            )
        rows = {text: encode(self.tokenizer, self.text_encoder, [text]) for text in unique}
        return PromptEmbeddings(
            cond=torch.cat([rows[prompt] for prompt in prompts]),
            uncond=torch.cat([rows[prompt] for prompt in negatives]),
        )

    def noise(self, seeds: int | Sequence[int]) -> Noise:
        """A stream of unit Gaussian noise for a batch, one seed per image."""
        return Noise(seeds, self.device)

    @property
    def trained_size(self) -> tuple[int, int]:
        """Width and height in pixels of the images that the model was trained on."""
        height, width = (self.vae.config.factor * side for side in self.unet.config.sample_size)
        return width, height

    def latent_shape(
        self, height: int | None = None, width: int | None = None
    ) -> tuple[int, int, int]:
        """(channels, h, w) of the latents of an image of `height` x `width` pixels.

        A side that is not given is the one that the model was trained at.

        Raises:
            SettingError: a side that is not a multiple of the VAE's factor (8 for SD), or too
                long.
        """
        factor = self.vae.config.factor
        height = self.trained_size[1] if height is None else height
        width = self.trained_size[0] if width is None else width
        validation.check_size(width, height, factor)
        return self.vae.config.latent_channels, height // factor, width // factor

    def plan(
        self,
        count: int,
        height: int | None = None,
        width: int | None = None,
        *,
        guidance: float = 7.5,
        batch: int | None = None,
        tile: int | None = None,
        rows: int | None = None,
    ) -> Plan:
        """How a run of `count` images fits into the memory that is free now.

        What is given is kept; what is None is chosen, and a warning says so where that is
        not simply all images together and whole.

        Args:
            rows: of the UNet's batch for each image, where it is not guidance that decides.

        Raises:
            SettingError: a size, batch or tile that cannot be.
            NotEnoughMemoryError: not even one image fits, on a CPU.
        """
        _, h, w = self.latent_shape(height, width)
        if rows is None:
            rows = 1 if guidance == 1 else 2
        return plan_run(
            self.unet.config, self.vae.config, (h, w), count, rows,
            device=self.device, dtype=self.dtype, batch=batch, tile=tile,
        )  # fmt: skip

    def timesteps(self, steps: int, start: int = 0) -> Timesteps:
        """The scheduler's timesteps of a run, from step index `start` on.

        Raises:
            SettingError: as `Scheduler.timesteps`.

        Warns:
            UnreliableSolver: the solver was measured to fail on this model in such a run.
        """
        timesteps = self.scheduler.timesteps(steps, start)
        warn_of_unreliable_solver(
            self.reliability,
            self.scheduler,
            steps,
            start,
            model=self.source.name,
            own=self.scheduler_config.get("_class_name"),
        )
        return timesteps

    @torch.no_grad()
    def encode(
        self, image: ImageLike, *, generator: torch.Generator | None = None, tile: int | None = None
    ) -> Tensor:
        """image (B, 3, H, W) in [-1, 1] -> scaled latents (B, 4, H/8, W/8), float32.

        The posterior's mode; with a `generator` a sample from it.  A PIL image, a path or a
        numpy array will do as well (see `io.images.as_image`).

        Raises:
            ImageError, SettingError, NonFiniteError: as `posterior`.
        """
        posterior = self.posterior(image, tile=tile)
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        return latents.float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def posterior(self, image: ImageLike, *, tile: int | None = None) -> Posterior:
        """image (B, 3, H, W) in [-1, 1] -> posterior over unscaled latents (B, 4, H/8, W/8).

        In float32 where the VAE overflows in float16, with a warning.

        Args:
            tile: side of the tiles in pixels; None: whole, or tiles where that needs too much
                memory (with a warning).

        Raises:
            ImageError: not of this shape, or of sides that are not multiples of 8.
            SettingError: a `tile` that is no multiple of 8, or less than 64.
            NonFiniteError: the output holds NaN or infinities.
        """
        factor = self.vae.config.factor
        if not isinstance(image, Tensor):
            image = as_image_tensor(image)
        if image.ndim != 4 or image.shape[1] != self.vae.config.in_channels:
            raise ImageError(
                f"the image is a tensor of shape {tuple(image.shape)}", expected="(B, 3, H, W)"
            )
        if not image.numel() or image.shape[2] % factor or image.shape[3] % factor:
            raise ImageError(
                f"the image is {image.shape[3]} x {image.shape[2]} pixels",
                expected=f"multiples of {factor}",
                fix="see pare.io.images.fit_to_multiple",
            )
        if tile is None:
            tile = encoder_tile(
                self.vae.config, image.shape[2], image.shape[3], self.device, self.dtype
            )
        moments = run_vae(
            self.vae,
            image.to(self.device),
            lambda vae, x: vae.moments(x, tile=tile),
            what="the VAE's encoding",
            given="the image",
        )
        return Posterior.from_moments(moments)

    @torch.no_grad()
    def decode(self, x0: Tensor, *, sliced: bool = False, tile: int | None = None) -> Tensor:
        """scaled latents (B, 4, h, w) -> image (B, 3, 8h, 8w), about [-1, 1], float32, CPU.

        In float32 where the VAE overflows in float16, with a warning.

        Args:
            sliced: one image at a time, as also happens where all need too much memory.
            tile: as for `posterior`; pixels of the image here, too.

        Raises:
            SettingError, NonFiniteError: as `posterior`.
        """
        config, factor = self.vae.config, self.vae.config.factor
        latents = (x0 / config.scaling_factor).to(self.device)
        height, width = (factor * side for side in latents.shape[2:])
        if tile is None:
            tile = decoder_tile(config, height, width, self.device, self.dtype)
        need = decoder_bytes(config, height, width, self.dtype)
        fit = fitting_count(need, free_bytes(self.device), len(latents))
        images = []
        for some in latents.chunk(len(latents) if sliced or fit < len(latents) else 1):
            image = run_vae(
                self.vae,
                some,
                lambda vae, x: vae.decode(x, tile=tile),
                what="the VAE's decoding",
                given="the latents",
            )
            images.append(image.float().cpu())
        return torch.cat(images)

    # Not under no_grad: techniques differentiate through it.
    def predict(
        self,
        x_t: Tensor,
        level: NoiseLevel,
        prompts: PromptEmbeddings,
        guidance: float,
        *,
        rescale: float = 0.0,
        control: Control | None = None,
        step: int = 0,
        extra: Tensor | None = None,
    ) -> Prediction:
        """The guided prediction for x_t (B, 4, h, w), x0 and eps; see `guidance.predict`."""
        if extra is None:
            self.require_channels("this")
        return guiding.predict(
            self.unet,
            x_t,
            level,
            prompts,
            guidance,
            prediction_type=self.scheduler.prediction_type,
            rescale=rescale,
            control=control,
            step=step,
            extra=extra,
        )

    def branch_outputs(
        self,
        x_t: Tensor,
        level: NoiseLevel,
        texts: Mapping[str, Tensor],
        *,
        control: Control | None = None,
        step: int = 0,
    ) -> dict[str, Tensor]:
        """The UNet's outputs for x_t under several texts; see `guidance.branch_outputs`.

        For another formula in the place of guidance; `interpret` takes the result.
        """
        return guiding.branch_outputs(self.unet, x_t, level, texts, control=control, step=step)

    def interpret(self, output: Tensor, x_t: Tensor, level: NoiseLevel) -> Prediction:
        """x0 and eps of a UNet's output, which is eps or v as this model was trained for."""
        return interpret(output, x_t, level, self.scheduler.prediction_type)

    @torch.no_grad()
    def denoise(
        self,
        x_t: Tensor,
        timesteps: Timesteps,
        prompts: PromptEmbeddings,
        *,
        guidance: float,
        rescale: float = 0.0,
        noise: Noise | None = None,
        control: Control | None = None,
        extra: Tensor | None = None,
        progress: Progress = iter,
    ) -> Tensor:
        """The reverse process: x_t at the first noise level -> x0 at the last, both (B, 4, h, w).

        Schedulers that are `stochastic` need `noise`, inpainting models `extra` (see
        `guidance.predict`).
        """
        history: tuple[Tensor, ...] = ()
        for i in progress(range(len(timesteps))):
            level = timesteps.levels[i]
            prediction = self.predict(
                x_t,
                level,
                prompts,
                guidance,
                rescale=rescale,
                control=control,
                step=i,
                extra=extra,
            )
            fresh = self.fresh_noise(noise, x_t)
            x_t, history = self.scheduler.step(timesteps, i, x_t, prediction, history, fresh)
        return x_t

    def fresh_noise(self, noise: Noise | None, x_t: Tensor) -> Tensor | None:
        """The noise of one step, drawn only where the scheduler wants it."""
        if not self.scheduler.stochastic or noise is None:
            return None
        return noise.draw(tuple(x_t.shape[1:]))

    # --- whole runs -----------------------------------------------------------------------

    @checked_keywords
    def generate(
        self,
        prompts: str | Sequence[str],
        seeds: int | Sequence[int] = 0,
        *,
        steps: int = 25,
        guidance: float = 7.5,
        rescale: float = 0.0,
        negative: str | Sequence[str] = "",
        height: int | None = None,
        width: int | None = None,
        control: Control | None = None,
        batch: int | None = None,
        tile: int | None = None,
        progress: Progress = iter,
    ) -> Images:
        """Text to image: samples one image per seed, guided by its prompt.

        `pipe(...)` is the same.

        Args:
            prompts: one for all seeds, or one for each.
            steps: solver steps, 1 to the model's number of training timesteps (1000).
            guidance: the scale of classifier-free guidance; 1 is none.
            rescale: guidance rescale in [0, 1], see `guidance.guide`.
            negative: takes the place of the empty prompt in guidance; one for all, or one each.
            height, width: in pixels, multiples of 8; None: what the model was trained at.
            control: attention control; with one, all images run in one batch.
            batch: images that go through the UNet together, which changes them by rounding
                alone; None: as many as fit, see `plan`.
            tile: see `posterior`.

        Raises:
            SettingError: a setting out of range, or prompts and seeds that do not pair.
            NotEnoughMemoryError: not even one image fits, on a CPU.
            NonFiniteError: the model's output holds NaN or infinities.
        """
        self.require_channels("generate")
        self.require_denoising("generate")
        check_sampling(steps, guidance, rescale)
        shape = self.latent_shape(height, width)
        timesteps = self.timesteps(steps)
        noise = self.noise(seeds)
        embeddings = self.encode_prompts(one_per_seed(prompts, seeds), negative)
        together = batch if control is None else len(noise)
        plan = self.plan(len(noise), height, width, guidance=guidance, batch=together, tile=tile)
        latents, decoded = [], []
        for some in plan.batches:
            x_T = noise[some].draw(shape) * timesteps.initial_scale
            x0 = self.denoise(
                x_T,
                timesteps,
                embeddings[some],
                guidance=guidance,
                rescale=rescale,
                noise=noise[some],
                control=control,
                progress=progress,
            )
            latents.append(x0)
            decoded.append(self.decode(x0, sliced=True, tile=plan.tile))
        return Images.from_decoded(torch.cat(decoded), noise.seeds, latents=torch.cat(latents))

    __call__ = generate

    @checked_keywords
    def img2img(
        self,
        image: ImageLike,
        prompts: str | Sequence[str],
        seeds: int | Sequence[int] = 0,
        *,
        strength: float = 0.8,
        steps: int = 25,
        guidance: float = 7.5,
        rescale: float = 0.0,
        negative: str | Sequence[str] = "",
        batch: int | None = None,
        tile: int | None = None,
        progress: Progress = iter,
    ) -> Images:
        """Image to image (SDEdit, arXiv:2108.01073): add noise to an image, then denoise it.

        The forward process takes the image's latents to an intermediate timestep; sampling
        goes on from there.

        Args:
            image: a PIL image, a path, a numpy array or a tensor (see `io.images.as_image`),
                for all seeds; or a tensor (B, 3, H, W), one image per seed.
            strength: the fraction of the steps that is run, above 0 and at most 1.
            Others as for `generate`.

        Raises:
            SettingError: a setting out of range, or prompts, images and seeds that do not
                pair.
            ImageError: no image, or one of sides that are not multiples of 8.
            NotEnoughMemoryError, NonFiniteError: as `generate`.
        """
        self.require_channels("img2img")
        self.require_denoising("img2img")
        check_sampling(steps, guidance, rescale)
        noise, sources = self.noise(seeds), as_image_tensor(image)
        if len(sources) not in (1, len(noise)):
            raise SettingError(
                f"{len(sources)} images and {len(noise)} seeds are given",
                expected="one seed per image, or one image for all seeds",
            )
        timesteps = self.timesteps(steps, start_index(steps, strength))
        embeddings = self.encode_prompts(one_per_seed(prompts, seeds), negative)
        height, width = sources.shape[-2:]
        source = self.encode(sources, tile=tile).expand(len(noise), -1, -1, -1)
        plan = self.plan(len(noise), height, width, guidance=guidance, batch=batch, tile=tile)
        latents, decoded = [], []
        for some in plan.batches:
            fresh = noise[some].draw(tuple(source.shape[1:]))
            x0 = self.denoise(
                add_noise(source[some], fresh, timesteps.levels[0].alpha_bar),
                timesteps,
                embeddings[some],
                guidance=guidance,
                rescale=rescale,
                noise=noise[some],
                progress=progress,
            )
            latents.append(x0)
            decoded.append(self.decode(x0, sliced=True, tile=plan.tile))
        return Images(
            images=to_pil(torch.cat(decoded)),
            seeds=noise.seeds,
            decoded=torch.cat(decoded),
            latents=torch.cat(latents),
            before=to_pil(sources)[0] if len(sources) == 1 else None,
        )

    def require_channels(self, task: str) -> None:
        """Raise a ModelError for an inpainting model, whose UNet wants a mask as well."""
        if self.unet.config.inpaints:
            raise ModelError(
                f"{self.source.name} is an inpainting model: its UNet reads a mask and the masked "
                "image, too",
                expected=f"a text-to-image model for {task}",
                fix="`pare blend` gives it both",
            )

    def require_denoising(self, task: str) -> None:
        """Raise a SettingError for a scheduler that goes from an image to its noise."""
        if not self.scheduler.makes_images:
            raise SettingError(
                f"the scheduler {self.scheduler.name} goes from an image to its noise, and "
                f"{task} the other way",
                fix="choose another, or give `denoise` an image's latents",
            )


def check_sampling(steps: int, guidance: float, rescale: float) -> None:
    validation.check_steps(steps)
    validation.check_guidance(guidance)
    validation.check_rescale(rescale)


def one_per_seed(prompts: str | Sequence[str], seeds: int | Sequence[int]) -> list[str]:
    """One prompt per seed; a single prompt serves all seeds."""
    count = len(validation.seed_list(seeds))
    listed = validation.prompt_list(prompts)
    if len(listed) == 1:
        listed *= count
    if len(listed) != count:
        raise SettingError(
            f"{len(listed)} prompts and {count} seeds are given",
            expected="one seed per prompt, or one prompt for all seeds",
        )
    return listed
