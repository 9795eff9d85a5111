"""Inpainting models: loaded from everywhere, against diffusers' own pipeline, and refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import pare.guidance
from pare.errors import ModelError, SettingError
from pare.io.images import to_tensor
from pare.loading import prediction
from pare.loading.modules import load_model
from pare.pipeline import Pipeline
from pare.schedulers import build_scheduler
from techniques.blended import Blended, blend
from techniques.blended.inpainting_model import masked_image
from tests.random_models import normal
from tests.references.reference_inpaint import (
    ModeInpaintPipeline,
    inpaint_pipeline,
    reference_inpaint,
)
from tests.single_files import UNET1, UNET2, original_checkpoint
from tests.techniques.blending import (
    SCHEDULER_CONFIG,
    TinyModel,
    TinyPipeline,
    distance,
    embedding,
    random_image,
    rectangle,
)  # fmt: skip
from tests.techniques.mutants import mutant
from tests.techniques.test_blended_parity import SOLVERS
from tests.tiny_model import change_json, write_inpainting_model

BOUND = 1e-5
PROMPT, NEGATIVE = "a snowy road", "a car"
SIZE = (40, 32)
IMAGE = random_image(*SIZE)
MASK = rectangle(SIZE, (8, 12, 24, 24))
MASK.paste(255, (32, 0, 40, 8))  # a second part, at the border


@pytest.fixture(scope="module")
def model() -> TinyModel:
    return TinyModel.build(in_channels=9)


@pytest.fixture(scope="module")
def pipe(model: TinyModel) -> TinyPipeline:
    return model.pipe("ddim")


def edit(pipe: Pipeline, **changes: Any) -> Blended:
    given: dict[str, Any] = {"seeds": [7], "steps": 4, "background": "latent", **changes}
    return blend(pipe, given.pop("image", IMAGE), given.pop("mask", MASK), PROMPT, **given)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def theirs(
    model: TinyModel, solver: str, *, seeds: list[int], guidance: float = 5.0, **given: Any
) -> Any:
    _, their_class, options = SOLVERS[solver]
    config = SCHEDULER_CONFIG | {"prediction_type": given.pop("prediction", "epsilon")}
    scheduler = their_class.from_config(config, **options)
    pipeline = inpaint_pipeline(model.their_unet, model.their_vae, scheduler)
    return reference_inpaint(
        pipeline,
        IMAGE,
        MASK,
        seeds,
        prompt_embeds=embedding(PROMPT).expand(len(seeds), -1, -1),
        negative_prompt_embeds=embedding(NEGATIVE).expand(len(seeds), -1, -1),
        guidance_scale=guidance,
        **given,
    )


# --- parity --------------------------------------------------------------------------------


def compare(ours: Blended, reference: tuple[Any, list[Image.Image]]) -> None:
    latents, images = reference
    assert distance(ours.latents, latents) < BOUND
    for one, other in zip(ours.images, images, strict=True):
        assert np.abs(pixels(one) - pixels(other)).max() <= 1


FROM_NOISE = [(solver, 1.0) for solver in SOLVERS]
# Midway, the reference's PNDM and LMS reach for a history that is not there.
MIDWAY = [(solver, 0.5) for solver in SOLVERS if solver not in ("pndm", "lms karras")]


@pytest.mark.parametrize(("solver", "strength"), FROM_NOISE + MIDWAY)
def test_images_are_the_reference_s(model: TinyModel, solver: str, strength: float) -> None:
    reference = theirs(model, solver, seeds=[7], num_inference_steps=6, strength=strength)
    ours = edit(
        model.pipe(**SOLVERS[solver][0]), steps=6, strength=strength, guidance=5.0,
        negative=NEGATIVE,
    )  # fmt: skip
    compare(ours, reference)


@pytest.mark.parametrize("solver", ["ddim", "dpm++2m karras", "euler"])
def test_v_prediction(model: TinyModel, solver: str) -> None:
    given: dict[str, Any] = {"seeds": [7], "prediction": "v_prediction", "num_inference_steps": 6}
    reference = theirs(model, solver, strength=0.5, **given)
    pipe = model.pipe(**SOLVERS[solver][0], prediction_type="v_prediction")
    compare(edit(pipe, steps=6, strength=0.5, guidance=5.0, negative=NEGATIVE), reference)


def test_a_batch_and_no_guidance(model: TinyModel) -> None:
    given: dict[str, Any] = {"seeds": [3, 4], "num_inference_steps": 4, "strength": 1.0}
    reference = theirs(model, "ddim", guidance=1.0, **given)
    compare(edit(model.pipe("ddim"), seeds=[3, 4], guidance=1.0), reference)


MUTATIONS = {
    "the order of the channels": (
        "torch.cat([x_t, extra.expand(len(x_t), -1, -1, -1)], dim=1)",
        "torch.cat([x_t, extra.expand(len(x_t), -1, -1, -1).roll(-1, 1)], dim=1)",
    ),
    "the mask the other way round": (
        "torch.cat([x_t, extra.expand(len(x_t), -1, -1, -1)], dim=1)",
        "torch.cat([x_t, 1 - extra[:, :1], extra[:, 1:]], dim=1)",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_mistakes_are_noticed(
    model: TinyModel, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = mutant(pare.guidance, *MUTATIONS[name], tmp_path)
    monkeypatch.setattr(pare.pipeline, "guiding", module)
    latents, _ = theirs(model, "ddim", seeds=[7], num_inference_steps=4, strength=1.0)
    ours = edit(model.pipe("ddim"), guidance=5.0, negative=NEGATIVE)
    assert distance(ours.latents, latents) > 100 * BOUND


def test_a_visible_inside_is_noticed(model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("techniques.blended.blend_image.masked_image", lambda seen, edit: seen)
    latents, _ = theirs(model, "ddim", seeds=[7], num_inference_steps=4, strength=1.0)
    ours = edit(model.pipe("ddim"), guidance=5.0, negative=NEGATIVE)
    assert distance(ours.latents, latents) > 100 * BOUND


# --- a model's folder, and other ways to come by one ------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inpainting_model(tmp_path_factory.mktemp("inpainting"))


def test_a_folder_from_words_to_pixels(folder: Path) -> None:
    reference = ModeInpaintPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    reference.set_progress_bar_config(disable=True)
    reference.scheduler = diffusers.DDIMScheduler.from_config(
        reference.scheduler.config, clip_sample=False
    )
    expected = reference_inpaint(
        reference, IMAGE, MASK16, [5], prompt=PROMPT, negative_prompt=NEGATIVE,
        num_inference_steps=4, strength=0.75, guidance_scale=4.0,
    )  # fmt: skip
    pipe = Pipeline.from_pretrained(folder, device="cpu", dtype="float32", scheduler="ddim")
    compare(
        edit(pipe, mask=MASK16, seeds=[5], strength=0.75, guidance=4.0, negative=NEGATIVE),
        expected,
    )


MASK16 = rectangle(SIZE, (8, 8, 24, 24))  # this model's grid is of 8 x 8 pixels


@pytest.mark.parametrize("kind", ["SD 1", "SD 2"])
def test_a_single_file(kind: str, tmp_path: Path) -> None:
    """The names of the original code; that it inpaints is told by one shape."""
    raw = (UNET1 if kind == "SD 1" else UNET2) | {"in_channels": 9}
    tensors = original_checkpoint(kind, unet=raw)
    save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / "model.safetensors")
    if kind == "SD 2":  # random weights: what they predict can only be guessed
        with pytest.warns(UserWarning, match="--prediction eps"):
            unet = load_model(tmp_path / "model.safetensors", device="cpu").unet
    else:
        unet = load_model(tmp_path / "model.safetensors", device="cpu").unet
    assert unet.config.inpaints
    expected = tensors["model.diffusion_model.input_blocks.0.0.weight"]
    assert torch.equal(unet.conv_in.weight, expected)


class Answers(torch.nn.Module):
    """A UNet that, shown noise with everything to paint, answers that noise."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, self.conv_in = config, torch.nn.Conv2d(9, 4, 3)
        self.seen: list[torch.Tensor] = []

    def load_state_dict(self, *_: Any, **__: Any) -> Any:
        return None

    def forward(self, x: torch.Tensor, *_: Any) -> torch.Tensor:
        self.seen.append(x)
        return x[:, :4] + 0.1


def test_sd_2_is_asked_with_everything_to_paint(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Answers] = []

    def unet(config: Any) -> Answers:
        asked.append(Answers(config))
        return asked[-1]

    monkeypatch.setattr(prediction, "UNet", unet)
    predicts, _ = prediction.probe_unet(UNET2 | {"in_channels": 9}, {})
    assert predicts == "epsilon"
    [seen] = asked[0].seen
    assert (seen[:, 4] == 1).all()
    assert (seen[:, 5:] == 0).all()


@pytest.mark.parametrize("channels", [5, 7, 8, 6])
def test_kin_with_other_inputs_are_named(folder: Path, tmp_path: Path, channels: int) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    change_json(copy / "unet" / "config.json", in_channels=channels)
    words = {5: "depth-to-image", 7: "x4 upscaler", 8: "InstructPix2Pix", 6: "unknown kind"}
    with pytest.raises(
        ModelError, match=rf"{words[channels]}.* reads {channels} channels"
    ) as error:
        load_model(copy, device="cpu")
    assert "\n" not in str(error.value)


# --- what the methods do ---------------------------------------------------------------------


def test_the_model_chooses_the_method(pipe: TinyPipeline) -> None:
    chosen, named = edit(pipe), edit(pipe, method="inpaint", strength=1.0)
    assert torch.equal(chosen.latents, named.latents)
    blended = TinyModel.build().pipe("ddim")
    chosen, named = edit(blended), edit(blended, method="blend", strength=0.95)
    assert torch.equal(chosen.latents, named.latents)


def test_both_keeps_the_latents_outside(pipe: TinyPipeline) -> None:
    """The model's own way leaves the outside to the background, the blend pins it."""
    inpainted, both = edit(pipe), edit(pipe, method="both")
    source = pipe.encode(to_tensor(IMAGE))
    outside = torch.ones(1, 4, 8, 10, dtype=torch.bool)
    outside[..., 3:6, 2:6] = outside[..., 0:2, 8:10] = False
    assert distance(both.latents[outside], source[outside]) < 1e-6
    assert distance(inpainted.latents[outside], source[outside]) > 0.01
    assert not torch.equal(both.latents[~outside], inpainted.latents[~outside])


@pytest.mark.parametrize("background", ["paste", "poisson"])
def test_the_paste_gives_the_outside_back(pipe: TinyPipeline, background: str) -> None:
    [edited] = edit(pipe, background=background).images
    outside = pixels(MASK) < 128
    assert np.array_equal(pixels(edited)[outside], pixels(IMAGE)[outside])


def test_at_strength_1_nothing_of_the_inside_is_seen(pipe: TinyPipeline) -> None:
    """Whatever was under the mask, the same image comes out."""
    other = IMAGE.copy()
    other.paste((255, 0, 0), (0, 0, *SIZE), MASK)
    assert torch.equal(edit(pipe).latents, edit(pipe, image=other).latents)
    partly = [edit(pipe, image=i, strength=0.5).latents for i in (IMAGE, other)]
    assert not torch.equal(*partly)


def test_the_masked_image_is_grey_inside() -> None:
    seen, edit = normal(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)
    edit[..., 1:3, 0:2] = 1
    masked = masked_image(seen, edit)
    assert (masked[..., 1:3, 0:2] == 0).all()
    keep = (edit == 0).expand_as(seen)
    assert torch.equal(masked[keep], seen[keep])


def test_samples_are_drawn_in_the_documented_order(
    pipe: TinyPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[torch.Tensor] = []
    real = torch.randn

    def record(*arguments: Any, **given: Any) -> torch.Tensor:
        noise = real(*arguments, **given)
        if noise.numel() == 4 * 8 * 10:  # latents; prompts' embeddings are random here, too
            drawn.append(noise)
        return noise

    monkeypatch.setattr(torch, "randn", record)
    edit(pipe, sample=True)
    generator = torch.Generator().manual_seed(7)
    for noise in drawn:  # foreground, background, the source's encoding, the masked image's
        assert torch.equal(noise.flatten(), real(4 * 8 * 10, generator=generator))
    assert len(drawn) == 4


@pytest.mark.parametrize(
    ("changes", "error", "problem"),
    [
        ({"method": "blend"}, ModelError, "inpainting model, whose UNet must be given the mask"),
        ({"method": "paint"}, SettingError, "`method` is 'paint'"),
        ({"shrink": 2}, SettingError, "`shrink` is 2, and the method inpaint does not blend"),
        ({"history": "drop"}, SettingError, "`history` is 'drop', and the method inpaint"),
    ],
)
def test_what_an_inpainting_model_cannot_do(
    pipe: TinyPipeline, changes: dict[str, Any], error: type[Exception], problem: str
) -> None:
    with pytest.raises(error, match=problem):
        edit(pipe, **changes)


@pytest.mark.parametrize("method", ["inpaint", "both"])
def test_a_text_to_image_model_reads_no_mask(method: str) -> None:
    with pytest.raises(ModelError, match="tiny is a text-to-image model, whose UNet reads no mask"):
        edit(TinyModel.build().pipe("ddim"), method=method)


def test_a_loop_that_forgets_the_mask_is_refused(pipe: TinyPipeline) -> None:
    """Whatever technique it is, `predict` says so instead of a convolution."""
    timesteps = pipe.scheduler.timesteps(2)
    prompts = pipe.encode_prompts([PROMPT])
    with pytest.raises(ModelError, match=r"tiny is an inpainting model.*`pare blend` gives it"):
        pipe.predict(normal(1, 4, 8, 8), timesteps.levels[0], prompts, 2.0)


def test_a_solver_that_draws_noise(model: TinyModel) -> None:
    solver = build_scheduler(SCHEDULER_CONFIG, "the test's file", "euler-ancestral")
    stochastic = TinyPipeline(model.components, solver)
    one, two = edit(stochastic, seeds=[1]), edit(stochastic, seeds=[1])
    assert torch.equal(one.latents, two.latents)
