"""Whole runs: diffusers' images, pure of everything around them."""

from __future__ import annotations

import functools
import random
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import pare
from pare.attention import AttentionCall, Control, Site
from pare.errors import (
    DeviceError,
    ImageError,
    ModelError,
    PareError,
    PromptError,
    SchedulerError,
    SettingError,
)
from pare.io.images import to_tensor
from pare.loading import resolve
from pare.pipeline import Pipeline
from pare.schedulers import SCHEDULERS
from tests.random_models import TINY_UNET, normal
from tests.tiny_model import SCHEDULER, change_json, write_tiny_model

PROMPTS = ["the snowy road", "a car"]
SEEDS = [7, 2**63 - 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder, device="cpu", dtype="float32")


# --- diffusers' images -------------------------------------------------------------------

# pare's options, and the class and configuration that say the same to diffusers.
KARRAS = {"use_karras_sigmas": True}
SOLVERS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "pndm": ({}, "PNDMScheduler", {}),
    "ddim": ({}, "DDIMScheduler", {"clip_sample": False}),
    "lms": ({}, "LMSDiscreteScheduler", {}),
    "euler": ({}, "EulerDiscreteScheduler", {}),
    "euler-ancestral": ({}, "EulerAncestralDiscreteScheduler", {}),
    "dpm++2m": ({}, "DPMSolverMultistepScheduler", {}),
    "dpm++2m karras": ({"karras": True}, "DPMSolverMultistepScheduler", KARRAS),
}
# A run of one step under the linspace spacing starts without noise in diffusers; pare's
# starts with it.  So these three are not compared there.
ONE_STEP = sorted(SOLVERS.keys() - {"lms", "euler", "euler-ancestral"})
RUNS = [(solver, 7) for solver in SOLVERS] + [(solver, 1) for solver in ONE_STEP]


@pytest.fixture(scope="module")
def reference(folder: Path) -> Callable[..., Any]:
    """diffusers' pipeline of the same folder, under the class's scheduler."""
    import diffusers

    loaded = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )

    def under(kind: str, class_name: str, changes: Mapping[str, Any]) -> Any:
        # SD 1.4's file, with each class's own defaults for what it does not name.
        given = {key: value for key, value in SCHEDULER.items() if key != "_class_name"}
        scheduler = getattr(diffusers, class_name).from_config({**given, **changes})
        parts = loaded.components | {"scheduler": scheduler}
        made = getattr(diffusers, kind)(**parts, requires_safety_checker=False)
        made.set_progress_bar_config(disable=True)
        return made

    return under


def generators(seeds: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def as_image(images: Tensor) -> np.ndarray:
    """[-1, 1] (B, 3, H, W) -> [0, 1] (B, H, W, 3), clipped"""
    return (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(("solver", "steps"), RUNS)
def test_generated_images_are_diffusers_own(
    pipe: Pipeline, reference: Callable[..., Any], solver: str, steps: int
) -> None:
    options, class_name, changes = SOLVERS[solver]
    theirs = reference("StableDiffusionPipeline", class_name, changes)(
        PROMPTS,
        negative_prompt=["snow", ""],
        num_inference_steps=steps,
        guidance_scale=5.0,
        guidance_rescale=0.3,
        generator=generators(SEEDS),
        height=48,
        width=72,
        output_type="np",
    ).images
    ours = pipe.with_scheduler(solver.split()[0], **options).generate(
        PROMPTS,
        SEEDS,
        negative=["snow", ""],
        steps=steps,
        guidance=5.0,
        rescale=0.3,
        height=48,
        width=72,
    )
    assert theirs.std() > 0.1
    assert np.abs(as_image(ours.tensor) - theirs).max() < 1e-3  # a quarter of an 8-bit step


@pytest.mark.parametrize("solver", ["ddim", "dpm++2m", "dpm++2m karras", "euler"])
def test_repainted_images_are_diffusers_own(
    pipe: Pipeline, reference: Callable[..., Any], solver: str
) -> None:
    options, class_name, changes = SOLVERS[solver]
    image = normal(1, 3, 48, 72, seed=4).tanh()
    theirs = reference("StableDiffusionImg2ImgPipeline", class_name, changes)
    latents = theirs.vae.encode(image).latent_dist.mode() * theirs.vae.config.scaling_factor
    expected = theirs(
        "the snowy road",
        image=latents.detach(),
        strength=0.6,
        num_inference_steps=10,
        guidance_scale=5.0,
        generator=generators([7]),
        output_type="np",
    ).images
    ours = pipe.with_scheduler(solver.split()[0], **options).img2img(
        image, "the snowy road", [7], strength=0.6, steps=10, guidance=5.0
    )
    assert np.abs(as_image(ours.tensor) - expected).max() < 1e-3


def test_guidance_1_is_diffusers_run_without_guidance(
    pipe: Pipeline, reference: Callable[..., Any]
) -> None:
    theirs = reference("StableDiffusionPipeline", "PNDMScheduler", {})(
        PROMPTS, num_inference_steps=3, guidance_scale=1.0, generator=generators(SEEDS),
        height=64, width=64, output_type="np",
    ).images  # fmt: skip
    ours = pipe.generate(PROMPTS, SEEDS, steps=3, guidance=1.0)
    assert np.abs(as_image(ours.tensor) - theirs).max() < 1e-3


# --- what a run depends on -----------------------------------------------------------------


def test_guidance_0_is_the_negative_prompts_image(pipe: Pipeline) -> None:
    nothing = pipe.generate("the snowy road", [7], steps=3, guidance=0, negative="a car")
    negative = pipe.generate("a car", [7], steps=3, guidance=1)
    other = pipe.generate("a road", [7], steps=3)
    assert torch.allclose(nothing.tensor, negative.tensor, atol=1e-4)
    assert not torch.allclose(nothing.tensor, other.tensor, atol=1e-2)


@pytest.mark.parametrize("scheduler", ["pndm", "euler-ancestral"])
def test_an_image_does_not_depend_on_its_neighbours(pipe: Pipeline, scheduler: str) -> None:
    solver = pipe.with_scheduler(scheduler)
    alone = solver.generate("a car", [3], steps=4).tensor
    among = solver.generate(["the snowy road", "a car", "the"], [0, 3, 9], steps=4).tensor
    # Batches of other sizes round differently, hence not to the bit.
    assert torch.allclose(alone[0], among[1], atol=1e-3)
    assert not torch.allclose(among[0], among[1], atol=1e-1)


def test_an_image_depends_on_prompt_and_seed_and_nothing_else(pipe: Pipeline) -> None:
    first = pipe.generate(PROMPTS, SEEDS, steps=2).tensor
    assert torch.equal(first, pipe(PROMPTS, SEEDS, steps=2).tensor)
    assert not torch.equal(first, pipe.generate(PROMPTS, [0, 1], steps=2).tensor)
    assert not torch.equal(first, pipe.generate(PROMPTS[::-1], SEEDS, steps=2).tensor)
    assert first.shape == (2, 3, 64, 64)
    assert first.dtype == torch.float32


def global_state() -> list[Any]:
    return [
        torch.get_rng_state().tolist(),
        random.getstate(),
        repr(np.random.get_state()),  # noqa: NPY002
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
    ]


@pytest.mark.parametrize("scheduler", ["ddim", "euler-ancestral"])
def test_a_run_leaves_global_state_alone(pipe: Pipeline, scheduler: str) -> None:
    before = global_state()
    solver = pipe.with_scheduler(scheduler)
    images = solver.generate("a car", [0], steps=2).tensor
    solver.img2img(images, "a road", [1], steps=2, strength=0.5)
    assert global_state() == before
    assert not images.requires_grad
    assert not any(p.requires_grad or p.grad is not None for p in pipe.unet.parameters())


def test_latents_are_float32_outside_a_model_of_any_type(folder: Path) -> None:
    half = Pipeline.from_pretrained(folder, device="cpu", dtype="bfloat16")
    seen: list[torch.dtype] = []
    plain_step = type(half.scheduler).step

    class Watched(type(half.scheduler)):  # type: ignore[misc]
        def step(self, timesteps: Any, i: int, x_t: Tensor, *rest: Any, **named: Any) -> Any:
            seen.append(x_t.dtype)
            return plain_step(self, timesteps, i, x_t, *rest, **named)

    half.scheduler = Watched(half.scheduler.config, half.scheduler.schedule)
    images = half.generate("a car", [0], steps=3).tensor
    assert set(seen) == {torch.float32}
    assert images.dtype == torch.float32
    assert images.isfinite().all()
    assert half.encode(images).dtype == torch.float32


# --- two runs in one process ---------------------------------------------------------------


class Sums(Control):
    """Adds up what every layer attended to, and sharpens it at one step."""

    def __init__(self, sharpened: int) -> None:
        self.sharpened = sharpened
        self.sums: dict[tuple[str, int, int], float] = {}

    def observes(self, site: Site, step: int) -> bool:
        return True

    def observe(self, call: AttentionCall, row: int, heads: slice, weights: Tensor) -> None:
        self.sums[call.site.name, call.step, row] = weights.square().sum().item()

    def edits(self, site: Site, step: int) -> bool:
        return site.kind == "cross" and step == self.sharpened

    def edit(self, call: AttentionCall, weights: Callable[[int], Tensor]) -> Mapping[int, Tensor]:
        rows = [k for k, row in enumerate(call.rows) if row.branch == "cond"]
        return {row: (4 * weights(row).log()).softmax(-1) for row in rows}


def test_two_runs_in_two_threads_give_what_they_give_alone(pipe: Pipeline) -> None:
    solvers = {"ancestral": pipe.with_scheduler("euler-ancestral"), "pndm": pipe}

    def run(name: str) -> tuple[Tensor, dict[tuple[str, int, int], float]]:
        control = Sums(sharpened=1 if name == "pndm" else 2)
        images = solvers[name].generate(PROMPTS, SEEDS, steps=4, control=control)
        return images.tensor, control.sums

    alone = {name: run(name) for name in solvers}
    assert not torch.equal(alone["pndm"][0], alone["ancestral"][0])
    together: dict[tuple[str, int], tuple[Tensor, dict[tuple[str, int, int], float]]] = {}
    start = threading.Barrier(4)

    def thread(name: str, number: int) -> None:
        start.wait()
        for turn in range(3):
            together[name, 3 * number + turn] = run(name)

    threads = [threading.Thread(target=thread, args=(n, k)) for n in solvers for k in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(together) == 12
    for (name, _), (images, sums) in together.items():
        assert torch.equal(images, alone[name][0])
        assert sums == alone[name][1]


def test_a_control_is_told_of_both_branches_and_changes_the_image(pipe: Pipeline) -> None:
    control = Sums(sharpened=0)
    edited = pipe.generate(PROMPTS, SEEDS, steps=2, control=control).tensor
    watched = pipe.generate(PROMPTS, SEEDS, steps=2, control=Sums(sharpened=-1)).tensor
    plain = pipe.generate(PROMPTS, SEEDS, steps=2).tensor
    assert torch.equal(watched, plain)
    assert not torch.equal(edited, plain)
    evaluations = len(pipe.scheduler.timesteps(2))
    sites = len(list(pipe.unet.sites()))
    assert len(control.sums) == sites * evaluations * 4


# --- the API as it is written --------------------------------------------------------------


def code_in(docstring: str | None) -> str:
    """The indented lines of a docstring."""
    lines = (docstring or "").splitlines()
    return "\n".join(line[4:] for line in lines if line.startswith("    "))


def test_the_lines_of_the_docstrings_run_as_they_are_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(resolve.BUILT_IN, "roads", folder)
    names: dict[str, Any] = {"Pipeline": Pipeline}
    code = code_in(pare.pipeline.__doc__)
    assert len(code.splitlines()) == 7
    exec(code, names)
    whole = names["pipe"].generate(["a snowy road"], seeds=[7]).tensor
    assert torch.equal(names["image"], whole)
    exec(code_in(pare.__doc__), names)
    assert names["images"].tensor.shape == whole.shape


def test_another_scheduler_shares_the_model(pipe: Pipeline) -> None:
    other = pipe.with_scheduler("dpm++2m", karras=True)
    assert (other.scheduler.name, pipe.scheduler.name) == ("dpm++2m", "pndm")
    assert other.unet is pipe.unet
    assert other.text_encoder is pipe.text_encoder
    assert other.with_scheduler(None).scheduler.name == "pndm"
    assert type(other) is Pipeline


def test_a_pipeline_says_what_it_is(pipe: Pipeline, folder: Path) -> None:
    assert (pipe.device, pipe.dtype) == (torch.device("cpu"), torch.float32)
    assert pipe.source.path == str(folder)
    assert pipe.latent_shape() == (4, 8, 8)
    assert pipe.latent_shape(48, 72) == (4, 6, 9)
    assert pipe.latent_shape(width=72) == (4, 8, 9)


def test_encode_and_decode_undo_each_others_scaling(pipe: Pipeline) -> None:
    image = normal(2, 3, 16, 24, seed=5).tanh()
    unscaled = pipe.vae.encode(image).mode()
    assert torch.equal(pipe.encode(image), unscaled * 0.3)
    assert torch.allclose(pipe.decode(unscaled * 0.3), pipe.vae.decode(unscaled), atol=1e-5)
    drawn = [pipe.encode(image, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], pipe.encode(image))


def test_every_scheduler_runs_one_step_and_from_midway(pipe: Pipeline) -> None:
    image = normal(1, 3, 16, 24, seed=5).tanh()
    for name in set(SCHEDULERS) - {"ddim-inverse"}:
        solver = pipe.with_scheduler(name)
        for steps, strength in ((1, 1.0), (1, 0.1), (3, 0.5)):
            made = solver.img2img(image, "a car", [0, 1], steps=steps, strength=strength).tensor
            assert made.shape == (2, 3, 16, 24), name
            assert made.isfinite().all(), name


def test_progress_wraps_the_steps(pipe: Pipeline) -> None:
    seen: list[int] = []

    def progress(indices: Any) -> Any:
        for i in indices:
            yield i
            seen.append(i)

    pipe.generate("a car", [0], steps=3, progress=progress)
    assert seen == list(range(len(pipe.scheduler.timesteps(3))))


# --- mistakes ------------------------------------------------------------------------------

Call_ = Callable[[Any], object]  # mistakes are not typed
IMAGE = torch.zeros(1, 3, 16, 24)
MISTAKES: dict[str, tuple[type[PareError], Call_]] = {
    "2 prompts and 3 seeds": (SettingError, lambda p: p.generate(PROMPTS, [1, 2, 3])),
    "0 prompts": (SettingError, lambda p: p.generate([], [1])),
    "no seeds": (SettingError, lambda p: p.generate("a", [])),
    "3 negative prompts": (SettingError, lambda p: p.generate("a", [1], negative=["a"] * 3)),
    "the prompts are a int": (PromptError, lambda p: p.generate(7, [1])),
    "the prompt is a int": (PromptError, lambda p: p.generate([7], [1])),
    "the prompts are a NoneType": (PromptError, lambda p: p.generate("a", [1], negative=None)),
    "`seeds` is None": (SettingError, lambda p: p.generate("a", None)),
    "`seeds` is '7'": (SettingError, lambda p: p.generate("a", "7")),
    "`image` is a NoneType": (ImageError, lambda p: p.img2img(None, "a")),
    "`image` is a int": (ImageError, lambda p: p.encode(3)),
    "`model` is None": (ModelError, lambda p: p.from_pretrained(None)),
    "the device '3'": (DeviceError, lambda p: p.to(3)),
    "the width is 65": (SettingError, lambda p: p.generate("a", [1], width=65)),
    "the height is 0": (SettingError, lambda p: p.generate("a", [1], height=0)),
    "`steps` is 0": (SettingError, lambda p: p.generate("a", [1], steps=0)),
    "`guidance` is nan": (SettingError, lambda p: p.generate("a", [1], guidance=float("nan"))),
    "`rescale` is 2": (SettingError, lambda p: p.generate("a", [1], rescale=2)),
    "`strength` is 0": (SettingError, lambda p: p.img2img(IMAGE, "a", [1], strength=0)),
    "2 images and 3 seeds": (
        SettingError,
        lambda p: p.img2img(IMAGE.expand(2, -1, -1, -1), "a", [1, 2, 3]),
    ),
    "is 24 x 15 pixels": (ImageError, lambda p: p.img2img(IMAGE[:, :, 1:], "a", [1])),
    r"shape \(3, 16, 24\)": (ImageError, lambda p: p.encode(IMAGE[0])),
    r"shape \(1, 1, 16, 24\)": (ImageError, lambda p: p.encode(IMAGE[:, :1])),
    "no scheduler 'dimm'": (SettingError, lambda p: p.with_scheduler("dimm")),
    "ddim-inverse goes from an image to its noise, and generate": (
        SettingError,
        lambda p: p.with_scheduler("ddim-inverse").generate("a", [1]),
    ),
    "ddim-inverse goes from an image to its noise, and img2img": (
        SettingError,
        lambda p: p.with_scheduler("ddim-inverse").img2img(IMAGE, "a", [1]),
    ),
    "no option 'eta'": (SettingError, lambda p: p.with_scheduler("lms", eta=0.5)),
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_mistakes_are_sentences(pipe: Pipeline, sentence: str) -> None:
    kind, call = MISTAKES[sentence]
    with pytest.raises(kind, match=sentence):
        call(pipe)


def test_a_stochastic_scheduler_without_noise_is_refused(pipe: Pipeline) -> None:
    solver = pipe.with_scheduler("euler-ancestral")
    with pytest.raises(SchedulerError, match="needs noise"):
        solver.denoise(
            normal(1, 4, 8, 8),
            solver.scheduler.timesteps(2),
            solver.encode_prompts("a"),
            guidance=1,
        )


def test_an_inpainting_model_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    change_json(copy / "unet" / "config.json", in_channels=9)
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    width = TINY_UNET["block_out_channels"][0]
    save_file(load_file(path) | {"conv_in.weight": torch.zeros(width, 9, 3, 3)}, path)
    inpainting = Pipeline.from_pretrained(copy, device="cpu")
    with pytest.raises(ModelError, match=r"an inpainting model.*text-to-image model for generate"):
        inpainting.generate("a", [1])
    with pytest.raises(ModelError, match="text-to-image model for img2img"):
        inpainting.img2img(IMAGE, "a", [1])


# --- as other libraries' pipelines are used ------------------------------------------------


def test_a_pipeline_is_called_moved_and_shown(folder: Path) -> None:
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    images = pipe("a car", seeds=3, steps=1)
    assert torch.equal(images.tensor, pipe.generate(["a car"], [3], steps=1).tensor)
    assert images.latents is not None
    assert torch.equal(pipe.decode(images.latents), images.tensor)
    assert list(images.seeds) == [3]
    assert pipe.to("cpu") is pipe
    assert pipe.to(torch.bfloat16).dtype == torch.bfloat16
    for part in (pipe.vae, pipe.text_encoder):
        assert {weight.dtype for weight in part.parameters()} == {torch.bfloat16}
    assert pipe.to(device="cpu", dtype="float32").dtype == torch.float32
    for wrong in ("gpu", "cpu:7"):
        with pytest.raises(DeviceError):
            pipe.to(wrong)
    with pytest.raises(DeviceError):
        pipe.to(torch.int8)
    for value in (pipe, pipe.scheduler, pipe.scheduler.timesteps(20), pipe.unet.config):
        assert len(repr(value).replace(str(folder), "")) < 120, repr(value)


def test_image_to_image_takes_what_an_image_is(pipe: Pipeline, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    run = functools.partial(pipe.img2img, prompts="a road", seeds=3, steps=2, strength=0.5)
    made = run(image)
    assert made.before is not None
    assert made.before.tobytes() == image.tobytes()
    for given in (pixels, tmp_path / "a.png", to_tensor(image)):
        assert torch.equal(run(given).tensor, made.tensor)
