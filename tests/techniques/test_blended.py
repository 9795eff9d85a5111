"""What must hold of every blend, on tiny models."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import binary_dilation
from torch import Tensor

from pare.errors import ImageError, SettingError
from pare.io.images import ImageWarning, to_pil, to_tensor
from pare.schedulers import NoiseLevel, Prediction, Scheduler, interpret
from techniques.blended import (
    Blended,
    at_mask,
    blend,
    blend_latents,
    decode_tuned,
    difference,
    first_step,
    mask_on_grid,
    measure_history,
    prepare_mask,
    shrunken,
)
from techniques.blended.edit_canvas import as_tensor, resampled
from tests.random_models import normal
from tests.schedulers.analytic import posterior_mean
from tests.techniques.blending import TinyModel, TinyPipeline, distance, random_image, rectangle

PROMPT = "a snowy road"
SIZE = (40, 32)
IMAGE = random_image(*SIZE)
MASK = rectangle(SIZE, (8, 12, 24, 24))


@pytest.fixture(scope="module")
def model() -> TinyModel:
    return TinyModel.build()


@pytest.fixture(scope="module")
def pipe(model: TinyModel) -> TinyPipeline:
    return model.pipe("dpm++2m", karras=True)


def edit(pipe: TinyPipeline, **changes: Any) -> Blended:
    """A blend of few steps with some settings changed."""
    given: dict[str, Any] = {"image": IMAGE, "mask": MASK, "seeds": [7], "steps": 4, **changes}
    return blend(pipe, prompts=PROMPT, **given)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def on_latents(
    pipe: TinyPipeline, mask: Tensor, steps: int = 4, start: int = 1, **changes: Any
) -> tuple[Tensor, Tensor]:
    """Source and edited latents (2, 4, h, w) for a mask (1, 1, h, w)."""
    shape = (2, 4, *mask.shape[2:])
    source = normal(*shape, seed=2)
    timesteps = pipe.scheduler.timesteps(steps, start)
    prompts = pipe.encode_prompts([PROMPT, "rain"])
    edited = blend_latents(
        pipe, timesteps, prompts, source, mask, normal(*shape, seed=3), normal(*shape, seed=4),
        guidance=7.5, noise=pipe.noise([1, 2]), **changes,
    )  # fmt: skip
    return source, edited


# --- the loop ------------------------------------------------------------------------------

SOLVERS: list[tuple[str, dict[str, Any]]] = [
    ("dpm++2m", {"karras": True}), ("ddim", {}), ("ddim", {"eta": 1.0}), ("lms", {}),
    ("euler", {}), ("euler-ancestral", {}), ("pndm", {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), SOLVERS)
@pytest.mark.parametrize("shrink", [0, 2])
def test_the_background_is_the_source_to_the_bit(
    model: TinyModel, name: str, options: dict[str, Any], shrink: int
) -> None:
    mask = torch.zeros(1, 1, 9, 7)
    mask[..., 2:5, 1:4] = mask[..., 8, 6] = 1
    source, edited = on_latents(model.pipe(name, **options), mask, shrink=shrink)
    keep = (mask == 0).expand_as(source)
    assert torch.equal(edited[keep], source[keep])
    assert (edited[~keep] != source[~keep]).all()


def test_a_mask_of_nothing_changes_nothing(pipe: TinyPipeline) -> None:
    source, edited = on_latents(pipe, torch.zeros(1, 1, 8, 8))
    assert torch.equal(edited, source)


@pytest.mark.parametrize(("name", "options"), SOLVERS)
def test_a_full_mask_is_img2img(model: TinyModel, name: str, options: dict[str, Any]) -> None:
    """Same seed, same noise, same images: the foreground's noise is drawn first."""
    pipe = model.pipe(name, **options)
    full = rectangle(SIZE, (0, 0, *SIZE))
    given: dict[str, Any] = {"strength": 0.6, "steps": 5, "negative": "a car"}
    images = pipe.img2img(IMAGE, PROMPT, [7, 8], **given)
    stochastic = pipe.scheduler.stochastic
    with pytest.warns(ImageWarning, match="nothing is kept"):
        result = blend(pipe, IMAGE, full, PROMPT, [7, 8], background="latent", **given)
    same = [
        np.array_equal(pixels(a), pixels(b)) for a, b in zip(result.images, images, strict=True)
    ]
    # A stochastic solver draws its noise after the background's, which img2img has not.
    assert same == [not stochastic] * 2
    assert result.outside is None
    assert result.vae_alone is None


def test_without_strength_the_foreground_keeps_what_was_there(pipe: TinyPipeline) -> None:
    mask = torch.ones(1, 1, 8, 8)
    changes = [
        (edited - source).square().mean().item()
        for source, edited in (on_latents(pipe, mask, 50, start) for start in (0, 25, 45, 49))
    ]
    assert changes == sorted(changes, reverse=True)


def test_the_stages_of_a_shrinking_mask() -> None:
    mask = torch.zeros(1, 1, 21, 21)
    mask[..., 10, 10] = 1
    widths = [int(shrunken(mask, 3, i, 24)[0, 0, 10].sum()) for i in range(24)]
    assert widths == [7] * 6 + [5] * 6 + [3] * 6 + [1] * 6
    assert [int(shrunken(mask, 3, i, 2)[0, 0, 10].sum()) for i in range(2)] == [7, 3]
    assert int(shrunken(mask, 3, 0, 1)[0, 0, 10].sum()) == 7
    assert all(torch.equal(shrunken(mask, 0, i, 5), mask) for i in range(5))


@given(seed=st.integers(0, 999), radius=st.integers(0, 4))
def test_the_dilation_is_scipy_s(seed: int, radius: int) -> None:
    edit = np.random.default_rng(seed).random((9, 13)) < 0.05
    mask = torch.from_numpy(edit.astype(np.float32))[None, None]
    ours = shrunken(mask, radius, 0, 8)[0, 0].numpy() > 0
    square = np.ones((2 * radius + 1,) * 2)
    assert np.array_equal(ours, binary_dilation(edit, square))


def test_shrinking_changes_the_edit(pipe: TinyPipeline) -> None:
    mask = torch.zeros(1, 1, 9, 9)
    mask[..., 4, 4] = 1
    plain, shrinking = (on_latents(pipe, mask, shrink=s)[1] for s in (0, 3))
    assert not torch.equal(plain, shrinking)


# --- the solver's history ------------------------------------------------------------------


@dataclass(frozen=True)
class ExactPipeline:
    """A denoiser known in closed form, which looks at a pixel's neighbours as well."""

    scheduler: Scheduler

    def predict(
        self, x_t: Tensor, level: NoiseLevel, prompts: Any, guidance: float, **_: Any
    ) -> Prediction:
        around = torch.nn.functional.avg_pool2d(x_t, 3, stride=1, padding=1)
        x0 = posterior_mean(0.7 * x_t + 0.3 * around, level.alpha_bar)
        return interpret(x0, x_t, level, "sample")

    def fresh_noise(self, noise: Any, x_t: Tensor) -> None:
        return None


def error_of(model: TinyModel, steps: int, keep: bool, exact: Tensor | None) -> Any:
    shape = (1, 4, 8, 8)
    pipe: Any = ExactPipeline(model.pipe("dpm++2m", karras=True).scheduler)
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    mask[..., 2:6, 2:6] = 1
    noises = [normal(*shape, seed=s, dtype=torch.float64) for s in (2, 3, 4)]
    timesteps = pipe.scheduler.timesteps(steps)
    no_prompts: Any = None
    edited = blend_latents(
        pipe, timesteps, no_prompts, noises[0], mask, *noises[1:],
        guidance=1.0, keep_history=keep,
    )  # fmt: skip
    return edited if exact is None else (edited - exact).square().mean().sqrt().item()


def test_keeping_the_history_keeps_the_solver_s_order(model: TinyModel) -> None:
    """Inside the mask a blend changes nothing, so the order of DPM++ 2M survives it.

    Twice the steps: a quarter of the error with the history, half of it without.
    """
    exact = error_of(model, 1000, True, None)
    keep = [error_of(model, steps, True, exact) for steps in (20, 40, 80)]
    drop = [error_of(model, steps, False, exact) for steps in (20, 40, 80)]
    assert keep[1] < 0.35 * keep[0]
    assert keep[2] < 0.35 * keep[1]
    assert drop[1] > 0.4 * drop[0]
    assert drop[2] > 0.4 * drop[1]
    assert keep[0] < 0.5 * drop[0]


def test_a_solver_of_order_1_has_no_history_to_drop(model: TinyModel) -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:6, 2:6] = 1
    for name, same in (("ddim", True), ("euler", True), ("dpm++2m", False), ("lms", False)):
        pipe = model.pipe(name)
        keep, drop = (on_latents(pipe, mask, keep_history=k)[1] for k in (True, False))
        assert torch.equal(keep, drop) == same


def test_pndm_cannot_drop_its_history(model: TinyModel) -> None:
    with pytest.raises(SettingError, match="pndm needs its history"):
        edit(model.pipe("pndm"), history="drop")


def test_the_measure_of_a_history(pipe: TinyPipeline) -> None:
    """Distances shrink with the steps; the run that is measured against is at no distance."""
    given: dict[str, Any] = {"seeds": [1], "guidance": 2.0, "exact_steps": 12}
    rows = measure_history(pipe, IMAGE, MASK, PROMPT, steps=(2, 6, 12), **given)
    assert [row.steps for row in rows] == [2, 6, 12]
    assert rows[0].keep > rows[1].keep > rows[2].keep == 0
    assert rows[0].drop > rows[1].drop > rows[2].drop > 0
    for name in ("euler-ancestral", "pndm"):
        with pytest.raises(SettingError, match=f"{name} cannot be measured"):
            measure_history(pipe.with_scheduler(name), IMAGE, MASK, PROMPT)


# --- randomness ----------------------------------------------------------------------------


def test_noise_comes_in_the_documented_order(
    pipe: TinyPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def record(*arguments: Any, **_: Any) -> Tensor:
        seen.extend(arguments[3:7])  # source, mask, foreground's noise, background's
        latents: Tensor = arguments[3]
        return latents

    monkeypatch.setattr("techniques.blended.blend_image.blend_latents", record)
    edit(pipe, sample=True, seeds=[7, 9])
    source, _, foreground, background = seen
    for row, seed in enumerate((7, 9)):
        generator = torch.Generator().manual_seed(seed)
        first, second, third = (torch.randn(4, 8, 10, generator=generator) for _ in range(3))
        assert torch.equal(foreground[row], first)
        assert torch.equal(background[row], second)
        posterior = pipe.vae.encode(to_tensor(IMAGE))
        sampled = (posterior.mean + posterior.std * third) * pipe.vae.config.scaling_factor
        assert torch.equal(source[row], sampled[0])


def test_sampling_the_source_changes_no_other_noise(pipe: TinyPipeline) -> None:
    mode, sample = edit(pipe), edit(pipe, sample=True)
    assert not torch.equal(mode.latents, sample.latents)
    assert mode.vae_alone != sample.vae_alone


def test_an_image_does_not_depend_on_its_neighbours(model: TinyModel) -> None:
    for name, options in SOLVERS:
        pipe = model.pipe(name, **options)
        together = edit(pipe, seeds=[3, 4, 5]).latents
        for row, seed in enumerate((3, 4, 5)):
            alone = edit(pipe, seeds=[seed]).latents
            # Not to the bit: matrix products of another shape add up in another order.
            assert distance(together[row : row + 1], alone) < 1e-5


def test_two_prompts_from_one_noise(pipe: TinyPipeline) -> None:
    result = blend(pipe, IMAGE, MASK, [PROMPT, "rain"], [7, 7], steps=4)
    assert distance(result.latents[:1], edit(pipe).latents) < 1e-5
    assert not torch.equal(result.latents[0], result.latents[1])


def test_two_runs_give_the_same_bits_and_leave_no_trace(pipe: TinyPipeline) -> None:
    before = torch.get_rng_state()
    inputs = IMAGE.tobytes(), MASK.tobytes()
    one, two = edit(pipe, seeds=[1, 2]), edit(pipe, seeds=[1, 2])
    assert torch.equal(one.latents, two.latents)
    assert [a.tobytes() for a in one.images] == [b.tobytes() for b in two.images]
    assert torch.equal(before, torch.get_rng_state())
    assert inputs == (IMAGE.tobytes(), MASK.tobytes())


def test_two_threads_give_what_each_gives_alone(model: TinyModel) -> None:
    def run(seed: int) -> Tensor:
        pipe = model.pipe("dpm++2m" if seed % 2 else "lms")
        return edit(pipe, seeds=[seed], steps=8).latents

    alone = [run(seed) for seed in range(6)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(run, range(6)))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


# --- backgrounds ---------------------------------------------------------------------------


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    width=st.integers(1, 50),
    height=st.integers(1, 50),
    seed=st.integers(0, 999),
    background=st.sampled_from(["paste", "poisson"]),
    radius=st.sampled_from([0.0, 4.0, 100.0]),
)
def test_outside_the_mask_not_one_bit_changes(
    pipe: TinyPipeline, width: int, height: int, seed: int, background: Any, radius: float
) -> None:
    """For images of any size, and masks of many parts that touch the border."""
    image = random_image(width, height, seed)
    coarse = np.random.default_rng(seed).random((3, 3)) < 0.5
    coarse[seed % 3, seed % 2] = True
    mask = Image.fromarray((coarse * 255).astype(np.uint8)).resize((width, height))
    outside = pixels(mask) < 128
    if outside.all():
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)
        result = edit(
            pipe, image=image, mask=mask, steps=1, background=background,
            feather=radius, cover=True,
        )  # fmt: skip
    [edited] = result.images
    assert edited.size == (width, height)
    assert np.array_equal(pixels(edited)[outside], pixels(image)[outside])
    if outside.any():
        assert result.outside is not None
        assert result.outside[0].largest == 0
        assert math.isinf(result.outside[0].psnr)
        assert result.report()["outside"] == [{"psnr": None, "largest": 0}]


def test_inside_the_mask_something_changes(pipe: TinyPipeline) -> None:
    inside = pixels(MASK) >= 128
    for background in ("latent", "paste", "poisson"):
        [edited] = edit(pipe, background=background).images
        assert (pixels(edited)[inside] != pixels(IMAGE)[inside]).mean() > 0.5


def test_what_latent_costs_is_reported(pipe: TinyPipeline) -> None:
    """The two errors, computed once more and by other means."""
    result = edit(
        pipe,
        background="latent",
        image=random_image(37, 29),
        mask=rectangle((37, 29), (8, 8, 20, 20)),
    )
    outside = np.ones((29, 37), dtype=bool)
    outside[8:20, 8:20] = False
    padded = np.pad(pixels(random_image(37, 29)), [(0, 3), (0, 3), (0, 0)], mode="edge")
    source = pipe.encode(to_tensor(Image.fromarray(padded.astype(np.uint8))))
    [through_vae] = to_pil(pipe.decode(source))
    assert result.outside is not None
    for reported, image in (
        (result.outside[0], pixels(result.images[0])),
        (result.vae_alone, pixels(through_vae)[:29, :37]),
    ):
        assert reported is not None
        apart = (image - pixels(random_image(37, 29)))[outside]
        assert reported.largest == np.abs(apart).max() > 0
        assert reported.psnr == pytest.approx(20 * np.log10(255 / np.sqrt((apart**2).mean())))


def test_the_hard_seam_takes_the_whole_mask_from_the_edit(pipe: TinyPipeline) -> None:
    latent, hard, soft = (
        pixels(edit(pipe, **changes).images[0])
        for changes in (
            {"background": "latent"}, {"feather": 0.0}, {"feather": 3.0},
        )
    )  # fmt: skip
    inside = pixels(MASK) >= 128
    assert np.array_equal(hard[inside], latent[inside])
    # One pixel inside the edge the soft seam is a quarter of the way.
    row, column = 18, 8
    expected = 0.75 * pixels(IMAGE)[row, column] + 0.25 * latent[row, column]
    assert np.abs(soft[row, column] - expected).max() <= 0.51


def test_the_difference_by_hand() -> None:
    black, grey = Image.new("RGB", (4, 2)), Image.new("RGB", (4, 2), (0, 0, 30))
    where = np.ones((2, 4), dtype=bool)
    found = difference(black, grey, where)
    assert found.largest == 30
    assert found.psnr == pytest.approx(10 * math.log10(255**2 / (30**2 / 3)))
    assert difference(grey, black, where) == found


# --- a decoder of the image's own ----------------------------------------------------------


def test_a_tuned_decoder_meets_the_background(pipe: TinyPipeline) -> None:
    """Better with every step outside, near what it made of the edit inside, and a copy."""
    before = {name: tensor.clone() for name, tensor in pipe.vae.state_dict().items()}
    results = [edit(pipe, background="decoder", decoder_steps=n) for n in (0, 5, 40)]
    errors = [result.outside[0].psnr for result in results if result.outside]
    assert errors == sorted(errors)
    assert errors[2] > errors[0] + 0.5
    plain = edit(pipe, background="latent")
    assert np.array_equal(pixels(results[0].images[0]), pixels(plain.images[0]))
    assert torch.equal(results[2].latents, plain.latents)
    inside = pixels(MASK) >= 128
    moved = np.abs(pixels(results[2].images[0]) - pixels(plain.images[0]))[inside].mean()
    apart = np.abs(pixels(IMAGE) - pixels(plain.images[0]))[inside].mean()
    assert moved < 0.5 * apart  # it did not learn the original there
    assert all(torch.equal(tensor, before[n]) for n, tensor in pipe.vae.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in pipe.vae.parameters())


def test_each_image_has_a_decoder_of_its_own(pipe: TinyPipeline) -> None:
    given: dict[str, Any] = {"background": "decoder", "decoder_steps": 3}
    with torch.no_grad():  # whatever the caller has switched off
        together = edit(pipe, seeds=[1, 2], **given)
    for seed, image in zip((1, 2), together.images, strict=True):
        [alone] = edit(pipe, seeds=[seed], **given).images
        assert np.abs(pixels(alone) - pixels(image)).max() <= 1


def test_the_decoders_steps_are_adams(pipe: TinyPipeline) -> None:
    """The loss of the paper, written out once more with its own norms."""
    latents, original = normal(1, 4, 4, 4, seed=5), normal(1, 3, 16, 16, seed=6).clamp(-1, 1)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 0:8] = 1
    tuned = decode_tuned(pipe, latents, original, mask, steps=2)

    scaled = latents / pipe.vae.config.scaling_factor
    edited = pipe.decode(latents)
    decoder = copy.deepcopy(pipe.vae.decoder).requires_grad_(True)
    adam = torch.optim.Adam(decoder.parameters(), lr=1e-4)
    for _ in range(2):
        adam.zero_grad()
        image = decoder(pipe.vae.post_quant_conv(scaled))
        loss = ((image - edited) * mask).square().mean()
        loss = loss + 100 * ((image - original) * (1 - mask)).square().mean()
        loss.backward()
        adam.step()
    expected = decoder(pipe.vae.post_quant_conv(scaled))
    assert distance(tuned, expected) < 1e-5
    assert distance(tuned, edited) > 1e-3


# --- candidates ----------------------------------------------------------------------------


def brightness(image: Image.Image, prompt: str) -> float:
    return float(pixels(image).mean())


def test_candidates_are_ranked(pipe: TinyPipeline) -> None:
    asked: list[str] = []

    def rank(image: Image.Image, prompt: str) -> float:
        asked.append(prompt)
        return brightness(image, prompt)

    result = edit(pipe, seeds=[1, 2, 3, 4], rank=rank, background="latent")
    assert asked == [PROMPT] * 4
    assert result.scores == [brightness(image, "") for image in result.images]
    ordered = [result.scores[index] for index in result.order]
    assert ordered == sorted(ordered, reverse=True)
    assert result.report()["scores"] == result.scores
    unranked = edit(pipe, seeds=[1, 2])
    assert unranked.order == [0, 1]
    assert "scores" not in unranked.report()


def test_a_ranking_that_sees_the_mask_alone() -> None:
    seen: list[Image.Image] = []

    def rank(image: Image.Image, prompt: str) -> float:
        seen.append(image)
        return 1.0

    for margin, box in ((0.0, (8, 12, 24, 24)), (0.5, (0, 4, 32, 32))):
        assert at_mask(rank, MASK, margin)(IMAGE, PROMPT) == 1.0
        assert np.array_equal(pixels(seen[-1]), pixels(IMAGE.crop(box)))
    at_mask(rank, MASK.resize((20, 16), Image.Resampling.NEAREST))(IMAGE, PROMPT)
    assert seen[-1].size == (16, 12)


def test_a_score_that_is_no_number(pipe: TinyPipeline) -> None:
    with pytest.raises(SettingError, match="`rank` gives image 1 nan"):
        edit(pipe, rank=lambda image, prompt: math.nan)


def test_batches_change_no_image(pipe: TinyPipeline) -> None:
    whole, parts = (edit(pipe, seeds=[1, 2, 3], sample=True, batch=b) for b in (3, 2))
    assert distance(whole.latents, parts.latents) < 1e-5


# --- masks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P", "LA"])
def test_masks_of_every_mode_are_one_mask(pipe: TinyPipeline, mode: str) -> None:
    expected = edit(pipe).images[0].tobytes()
    assert edit(pipe, mask=MASK.convert(mode)).images[0].tobytes() == expected


def test_a_mask_of_another_scale_is_scaled_and_said(pipe: TinyPipeline) -> None:
    half = MASK.resize((20, 16), Image.Resampling.NEAREST)
    with pytest.warns(ImageWarning, match="20 x 16: scaled to the image's 40 x 32"):
        scaled = edit(pipe, mask=half)
    assert scaled.images[0].tobytes() == edit(pipe).images[0].tobytes()


@pytest.mark.parametrize(
    ("mask", "problem"),
    [
        (Image.new("L", SIZE), "marks nothing"),
        (Image.new("L", SIZE, 127), "marks nothing"),
        (Image.new("L", (20, 16)), "marks nothing"),
        (rectangle((40, 40), (0, 0, 9, 9)), "40 x 40 and the image 40 x 32"),
        (rectangle(SIZE, (0, 3, 40, 4)), "nothing of it is left"),
    ],
)
def test_masks_that_cannot_be_used(pipe: TinyPipeline, mask: Image.Image, problem: str) -> None:
    with pytest.raises(ImageError, match=problem) as caught:
        edit(pipe, mask=mask)
    assert "\n" not in str(caught.value)


def test_a_thin_line_can_be_covered(pipe: TinyPipeline) -> None:
    """Factor 4: the middle of a latent pixel is pixel 2, and the line runs along pixel 3."""
    line = rectangle(SIZE, (0, 3, 40, 4))
    result = edit(pipe, mask=line, cover=True, shrink=2)
    changed = (pixels(result.images[0]) != pixels(IMAGE)).any(axis=2)
    assert changed[3].all()
    assert not changed[np.arange(32) != 3].any()


def test_a_prepared_mask_is_taken_again_as_it_is(pipe: TinyPipeline) -> None:
    half = MASK.resize((20, 16), Image.Resampling.NEAREST).convert("RGB")
    with pytest.warns(ImageWarning, match="scaled to the image's 40 x 32"):
        prepared = prepare_mask(half, SIZE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prepare_mask(prepared, SIZE) is prepared
        edited = edit(pipe, mask=prepared)
    assert edited[0].tobytes() == edit(pipe)[0].tobytes()


def test_lost_parts_of_a_mask_are_said(pipe: TinyPipeline) -> None:
    mask = rectangle(SIZE, (8, 12, 24, 24))
    mask.paste(255, (30, 3, 40, 4))
    with pytest.warns(ImageWarning, match="1 of its 2 parts less than half"):
        edit(pipe, mask=mask)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        edit(pipe, mask=mask, cover=True)
        edit(pipe)


@pytest.mark.parametrize("background", ["paste", "latent"])
def test_an_image_is_worked_at_another_size(pipe: TinyPipeline, background: str) -> None:
    """Smaller or larger, it comes back at its own, and the paste is of its own pixels."""
    outside = pixels(MASK) < 128
    for size in ((24, 16), (80, 64)):
        result = edit(pipe, size=size, background=background)
        assert tuple(result.latents.shape[2:]) == (size[1] // 4, size[0] // 4)
        [edited] = result.images
        assert edited.size == SIZE
        same = np.array_equal(pixels(edited)[outside], pixels(IMAGE)[outside])
        assert same == (background == "paste")
    assert torch.equal(edit(pipe, size=SIZE).latents, edit(pipe).latents)


@given(
    seed=st.integers(0, 999),
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    to=st.sampled_from([(8, 8), (16, 24), (64, 64)]),
)
def test_a_mask_at_another_size(seed: int, width: int, height: int, to: tuple[int, int]) -> None:
    """Never empty under `cover`; what is marked all over, or not at all, stays so."""
    edit = np.random.default_rng(seed).random((height, width)) < 0.1
    edit[seed % height, seed % width] = True
    mask = Image.fromarray((edit * 255).astype(np.uint8))
    covered = resampled(as_tensor(mask), to, cover=True)[0, 0].numpy() > 0
    half = resampled(as_tensor(mask), to, cover=False)[0, 0].numpy() > 0
    assert covered.shape == half.shape == to[::-1]
    assert covered.any()
    assert not (half & ~covered).any()
    for y, x in zip(*edit.nonzero(), strict=True):  # every marked pixel is still under it
        assert covered[y * to[1] // height, x * to[0] // width]
    full = Image.new("L", (width, height), 255)
    assert resampled(as_tensor(full), to, cover=False).all()


@given(seed=st.integers(0, 999), factor=st.sampled_from([1, 2, 4, 8]))
def test_cover_is_the_smallest_grid_that_holds_the_mask(seed: int, factor: int) -> None:
    edit = np.random.default_rng(seed).random((4 * factor, 5 * factor)) < 0.05
    mask = Image.fromarray((edit * 255).astype(np.uint8))
    grid = mask_on_grid(as_tensor(mask), factor, cover=True)[0, 0].numpy() > 0
    assert grid.shape == (4, 5)
    for y in range(4):
        for x in range(5):
            cell = edit[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
            assert grid[y, x] == cell.any()


# --- settings ------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "strength"), [(25, 0.95), (25, 1.0), (50, 0.3), (10, 0.01)])
def test_both_roundings_of_strength(steps: int, strength: float) -> None:
    up = first_step(steps, strength, "up")
    assert up == min(int(steps * (1 - strength)), steps - 1)
    assert steps - up == max(1, math.ceil(round(steps * strength, 9)))
    assert steps - first_step(steps, strength, "nearest") == max(1, round(steps * strength))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"strength": 0}, "`strength` is 0"),
        ({"strength": 0, "rounding": "up"}, "`strength` is 0"),
        ({"strength": 1.5, "rounding": "up"}, "`strength` is 1.5"),
        ({"strength": math.nan}, "`strength` is nan"),
        ({"steps": 0}, "`steps` is 0"),
        ({"guidance": math.inf}, "`guidance` is inf"),
        ({"rescale": 2}, "`rescale` is 2"),
        ({"background": "blur"}, "`background` is 'blur'"),
        ({"history": "forget"}, "`history` is 'forget'"),
        ({"rounding": "down"}, "`rounding` is 'down'"),
        ({"feather": -1}, "`feather` is -1"),
        ({"shrink": -1}, "`shrink` is -1"),
        ({"shrink": 1.5}, "`shrink` is 1.5"),
        ({"shrink": 1000}, "`shrink` is 1000"),
        ({"decoder_steps": -1}, "`decoder_steps` is -1"),
        ({"decoder_steps": 2.0}, "`decoder_steps` is 2.0"),
        ({"size": (30, 32)}, "the width is 30"),
        ({"batch": 0}, "`batch` is 0"),
        ({"seeds": []}, "no seeds"),
        ({"seeds": [-1]}, "`seed` is -1"),
    ],
)
def test_settings_out_of_range(pipe: TinyPipeline, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingError) as caught:
        edit(pipe, **changes)
    assert problem in str(caught.value)


def test_progress_sees_every_step(pipe: TinyPipeline) -> None:
    seen: list[int] = []

    def progress(indices: Any) -> Any:
        for i in indices:
            seen.append(i)
            yield i

    edit(pipe, steps=10, strength=0.5, progress=progress)
    assert seen == list(range(5))


@pytest.mark.parametrize("convert", [lambda i: i.convert("L"), lambda i: i.convert("RGBA")])
def test_images_of_other_modes(
    pipe: TinyPipeline, convert: Callable[[Image.Image], Image.Image]
) -> None:
    image = convert(IMAGE)
    result = edit(pipe, image=image)
    assert result.images[0].mode == "RGB"
    assert result.outside is not None
    assert result.outside[0].largest == 0
