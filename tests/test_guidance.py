"""Classifier-free guidance: what its formula promises, and what the model is asked."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pare.attention import AttentionCall, BatchRow, Control, Site
from pare.errors import SettingError
from pare.guidance import guide, predict
from pare.schedulers import NoiseLevel, Prediction, interpret
from pare.text.text_encoder import PromptEmbeddings
from pare.unet import UNet
from tests.random_models import TINY_UNET, normal, unet_pair

SCALES = st.floats(-20, 20)
SEEDS = st.integers(0, 1000)
LEVEL = NoiseLevel(500.0, 1.6)


def pair(seed: int) -> tuple[Tensor, Tensor]:
    """uncond and cond, (2, 4, 3, 5), float64."""
    return normal(2, 4, 3, 5, seed=seed).double(), normal(2, 4, 3, 5, seed=seed + 1).double()


# --- the formula ---------------------------------------------------------------------------


@given(SEEDS)
def test_scale_1_is_the_conditional_and_0_the_unconditional(seed: int) -> None:
    uncond, cond = pair(seed)
    assert torch.allclose(guide(uncond, cond, 1.0), cond, rtol=1e-12, atol=1e-12)
    assert torch.equal(guide(uncond, cond, 0.0), uncond)


@given(SEEDS, SCALES, SCALES)
def test_it_is_linear_in_the_scale(seed: int, one: float, other: float) -> None:
    uncond, cond = pair(seed)
    middle = guide(uncond, cond, (one + other) / 2)
    ends = guide(uncond, cond, one) + guide(uncond, cond, other)
    assert torch.allclose(middle, ends / 2, rtol=1e-9, atol=1e-9)


def test_it_moves_away_from_the_unconditional() -> None:
    """The sign: documents often have it the other way round.  arXiv:2207.12598, eq. 6"""
    uncond, cond = torch.tensor([1.0]), torch.tensor([3.0])
    assert guide(uncond, cond, 7.5).item() == 1.0 + 7.5 * 2.0


@given(SEEDS, SCALES)
def test_full_rescale_keeps_each_images_standard_deviation(seed: int, scale: float) -> None:
    uncond, cond = pair(seed)
    rescaled = guide(uncond, cond * 3, scale, rescale=1.0)
    for row in range(2):  # of each image alone, not of the batch
        assert torch.isclose(rescaled[row].std(), 3 * cond[row].std(), rtol=1e-9)


@given(SEEDS, SCALES, st.floats(0, 1))
def test_rescale_mixes_the_plain_and_the_fully_rescaled(
    seed: int, scale: float, rescale: float
) -> None:
    uncond, cond = pair(seed)
    plain, full = guide(uncond, cond, scale), guide(uncond, cond, scale, 1.0)
    mixed = guide(uncond, cond, scale, rescale)
    assert torch.allclose(mixed, rescale * full + (1 - rescale) * plain, rtol=1e-9, atol=1e-9)


# --- what the model is asked ---------------------------------------------------------------


@pytest.fixture(scope="module")
def unet() -> UNet:
    return unet_pair(TINY_UNET)[0]


@pytest.fixture(scope="module")
def prompts() -> PromptEmbeddings:
    return PromptEmbeddings(cond=normal(2, 77, 12, seed=2), uncond=normal(2, 77, 12, seed=3))


class Witness(Control):
    """Keeps what each call was told."""

    def __init__(self) -> None:
        self.calls: list[AttentionCall] = []

    def observes(self, site: Site, step: int) -> bool:
        return True

    def observe(self, call: AttentionCall, row: int, heads: slice, weights: Tensor) -> None:
        self.calls.append(call)


def ask(
    unet: UNet,
    prompts: PromptEmbeddings,
    guidance: float,
    rescale: float = 0.0,
    prediction_type: str = "epsilon",
    control: Control | None = None,
) -> Prediction:
    return predict(
        unet,
        normal(2, 4, 8, 8),
        LEVEL,
        prompts,
        guidance,
        prediction_type=prediction_type,
        rescale=rescale,
        control=control,
        step=3,
    )


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(("guidance", "rescale"), [(7.5, 0.0), (0.0, 0.0), (-2.0, 0.0), (5.0, 0.7)])
def test_predict_guides_what_the_model_puts_out_and_then_interprets_it(
    unet: UNet, prompts: PromptEmbeddings, guidance: float, rescale: float, prediction_type: str
) -> None:
    x_t = normal(2, 4, 8, 8)
    uncond, cond = (unet(x_t, LEVEL.t, text) for text in (prompts.uncond, prompts.cond))
    expected = interpret(guide(uncond, cond, guidance, rescale), x_t, LEVEL, prediction_type)
    got = ask(unet, prompts, guidance, rescale, prediction_type)
    assert torch.allclose(got.x0, expected.x0, rtol=1e-4, atol=1e-4)
    assert torch.allclose(got.eps, expected.eps, rtol=1e-4, atol=1e-4)


def test_guidance_1_asks_once_and_for_the_conditional(
    unet: UNet, prompts: PromptEmbeddings
) -> None:
    witness = Witness()
    prediction = ask(unet, prompts, 1.0, control=witness)
    assert {call.rows for call in witness.calls} == {(BatchRow(0, "cond"), BatchRow(1, "cond"))}
    assert torch.equal(prediction.eps, unet(normal(2, 4, 8, 8), LEVEL.t, prompts.cond))


@pytest.mark.parametrize("guidance", [0.0, 7.5])
def test_a_control_is_told_the_step_and_what_each_row_is(
    unet: UNet, prompts: PromptEmbeddings, guidance: float
) -> None:
    witness = Witness()
    ask(unet, prompts, guidance, control=witness)
    rows = (BatchRow(0, "uncond"), BatchRow(1, "uncond"), BatchRow(0, "cond"), BatchRow(1, "cond"))
    assert {(call.step, call.rows) for call in witness.calls} == {(3, rows)}


def test_predictions_are_float32_also_when_the_model_is_not(prompts: PromptEmbeddings) -> None:
    half = unet_pair(TINY_UNET, dtype=torch.bfloat16)[0]
    prediction = ask(half, prompts, 7.5)  # the embeddings here are float32, which must not matter
    assert prediction.x0.dtype == prediction.eps.dtype == torch.float32


def test_gradients_flow_through_predict(unet: UNet, prompts: PromptEmbeddings) -> None:
    """Techniques differentiate by x_t or by the embeddings."""
    x_t = normal(2, 4, 8, 8).requires_grad_()
    prediction = predict(unet, x_t, LEVEL, prompts, 7.5, prediction_type="epsilon")
    (gradient,) = torch.autograd.grad(prediction.x0.square().sum(), x_t)
    assert gradient.abs().max() > 0


def test_as_many_prompts_as_latents(unet: UNet, prompts: PromptEmbeddings) -> None:
    with pytest.raises(SettingError, match="2 prompts are given for 3 latents; expected one each"):
        predict(unet, normal(3, 4, 8, 8), LEVEL, prompts, 7.5, prediction_type="epsilon")


def test_an_inpainting_unets_extra_channels_go_with_every_row(prompts: PromptEmbeddings) -> None:
    """One mask and masked image for all images of the batch, beside x_t, in both branches."""
    unet = unet_pair({**TINY_UNET, "in_channels": 9})[0]
    x_t, extra = normal(2, 4, 8, 8), normal(1, 5, 8, 8, seed=4)
    got = predict(unet, x_t, LEVEL, prompts, 1.0, prediction_type="epsilon", extra=extra)
    beside = torch.cat([x_t, torch.cat([extra, extra])], dim=1)
    assert torch.equal(got.eps, unet(beside, LEVEL.t, prompts.cond))
    other = predict(unet, x_t, LEVEL, prompts, 1.0, prediction_type="epsilon", extra=extra + 1)
    assert not torch.equal(got.eps, other.eps)
