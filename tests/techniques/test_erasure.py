"""Concept erasure against the published loops on diffusers, and what its gates promise."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import pare
import techniques.erasure.erasure_loop
from pare.errors import PareError
from pare.schedulers import add_noise
from pare.verify.published.published_erasure import Combine, reference_erase, safe, sega, tutorial
from techniques.erasure import PRESETS, Concept, Gates, erase
from techniques.erasure.erasure_loop import capped, gate, quantile
from tests.conftest import ROOT
from tests.random_models import normal
from tests.techniques.blending import (
    SCHEDULER_CONFIG,
    TinyModel,
    distance,
    embedding,
    random_image,
)
from tests.techniques.mutants import mutant

BOUND = 1e-5
SOURCE, NOISE = normal(1, 4, 9, 11, seed=2), normal(1, 4, 9, 11, seed=3)
WORDS = ["streetlights", "headlights", "lamps"]


@pytest.fixture(scope="module")
def model() -> TinyModel:
    return TinyModel.build()


def both(
    model: TinyModel,
    combine: Combine,
    concepts: list[Concept],
    gates: Gates,
    *,
    module: ModuleType = techniques.erasure.erasure_loop,
    guidance: float = 7.5,
    steps: int = 20,
    start: int = 5,
    prediction_type: str = "epsilon",
) -> tuple[Tensor, Tensor]:
    """Latents by `module`'s loop (the real one, or a mutant) and by the reference."""
    pipe = model.pipe("dpm++2m", karras=True, prediction_type=prediction_type)
    timesteps = pipe.scheduler.timesteps(steps, start)
    ours = module.erase_latents(
        pipe,
        add_noise(SOURCE, NOISE, timesteps.levels[0].alpha_bar),
        timesteps,
        pipe.encode_prompts(["a road at night"]),
        concepts,
        guidance=guidance,
        gates=gates,
    )
    theirs = reference_erase(
        model.their_unet,
        diffusers.DPMSolverMultistepScheduler.from_config(
            SCHEDULER_CONFIG,
            algorithm_type="dpmsolver++",
            use_karras_sigmas=True,
            prediction_type=prediction_type,
        ),
        SOURCE,
        [embedding(""), embedding("a road at night"), *(embedding(c.prompt) for c in concepts)],
        NOISE,
        steps=steps,
        start=start,
        combine=combine,
    )
    return ours, theirs


# --- parity --------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("weights", [[10.0], [10.0, -4.0, 2.5]])
def test_ungated_is_the_tutorial_s_formula(
    model: TinyModel, weights: list[float], prediction_type: str
) -> None:
    concepts = [Concept(word, w) for word, w in zip(WORDS, weights, strict=False)]
    ours, theirs = both(
        model, tutorial(7.5, weights), concepts, Gates(), prediction_type=prediction_type
    )
    assert distance(ours, theirs) < BOUND


@pytest.mark.parametrize("name", ["safe-medium", "safe-strong", "safe-max"])
def test_safe_presets_are_the_published_code(model: TinyModel, name: str) -> None:
    published = {  # warm-up, s, lambda, s_m, beta
        "safe-medium": (10, 1000, 0.01, 0.3, 0.4),
        "safe-strong": (7, 2000, 0.025, 0.5, 0.7),
        "safe-max": (0, 5000, 1.0, 0.5, 0.7),
    }
    warm_up, scale, threshold, momentum, beta = published[name]
    reference = safe(7.5, scale, threshold, warm_up, momentum, beta)
    ours, theirs = both(model, reference, [Concept("lamps", 7.5)], PRESETS[name], start=0)
    # The threshold decides pixel by pixel: one that lies within rounding of it may fall on
    # the other side.
    assert near_everywhere(ours, theirs)


def test_sega_is_the_published_code(model: TinyModel) -> None:
    concepts = [Concept("lamps", 5.0), Concept("streetlights", 8.0)]
    reference = sega(7.5, [5.0, 8.0], 0.9, 10, 0.1, 0.4)
    ours, theirs = both(model, reference, concepts, PRESETS["sega"], start=0)
    assert near_everywhere(ours, theirs)


def near_everywhere(ours: Tensor, theirs: Tensor) -> bool:
    """Within the bound but for what one flipped gate can do: its own place, slightly."""
    return distance(ours, theirs) < 1e-3 and psnr(ours, theirs) > 80


def psnr(ours: Tensor, theirs: Tensor) -> float:
    peak = float(theirs.abs().max())
    return float(10 * torch.log10(peak**2 / (ours - theirs).square().mean().clamp(min=1e-30)))


MUTATIONS = {
    "the concepts' rows are taken in another order": (
        "uncond, cond, *unwanted = outputs.values()",
        "cond, uncond, *unwanted = outputs.values()",
    ),
    "the concept is added": ("guided = guided - total", "guided = guided + total"),
    "directions start from the prompt": ("output - uncond", "output - cond"),
    "the momentum is added after it was remembered": (
        "+ gates.momentum * self.momentum\n",
        "\n",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_comparison_notices(model: TinyModel, name: str, tmp_path: Path) -> None:
    changed = mutant(techniques.erasure.erasure_loop, *MUTATIONS[name], tmp_path)
    reference = safe(7.5, 5000, 1.0, 0, 0.5, 0.7)
    ours, theirs = both(
        model, reference, [Concept("lamps", 7.5)], PRESETS["safe-max"], module=changed, start=0
    )
    assert not near_everywhere(ours, theirs)


# --- gates ---------------------------------------------------------------------------------

DIRECTION, TOWARDS = normal(2, 4, 6, 8, seed=5), normal(2, 4, 6, 8, seed=6)


def test_no_gate_lets_everything_through() -> None:
    assert torch.equal(gate(DIRECTION, TOWARDS, Gates()), torch.ones_like(DIRECTION))


@given(st.floats(0, 1))
def test_the_quantile_lets_its_share_through(share: float) -> None:
    through = gate(DIRECTION, TOWARDS, Gates(quantile=share))
    passed = through.flatten(2).mean(2)
    assert torch.all((passed - (1 - share)).abs() <= 1 / 48 + 1e-6)
    kept = DIRECTION.abs().where(through > 0, torch.inf).flatten(2).amin(2)
    cut = DIRECTION.abs().where(through == 0, 0.0).flatten(2).amax(2)
    assert torch.all(cut <= kept)


def test_the_threshold_is_shut_where_the_prompt_leads_away() -> None:
    through = gate(DIRECTION, TOWARDS, Gates(threshold=0.25))
    assert torch.equal(through > 0, TOWARDS < 0.25)


def test_sensitivity_grows_with_the_disagreement() -> None:
    through = gate(DIRECTION, TOWARDS, Gates(sensitivity=0.5))
    assert torch.allclose(through, (0.5 * TOWARDS.abs()).clamp(max=1))


def test_attention_chooses_places_for_all_channels() -> None:
    looks = torch.rand(2, 1, 6, 8, generator=torch.Generator().manual_seed(0))
    through = gate(DIRECTION, TOWARDS, Gates(attention=0.75), looks)
    assert torch.equal(through, (looks >= quantile(looks, 0.75)).expand_as(through).float())
    assert through.mean() == pytest.approx(0.25, abs=0.02)


def test_a_cap_bounds_the_push_of_each_image_by_itself() -> None:
    total = torch.cat([100 * DIRECTION[:1], 0.01 * DIRECTION[1:]])
    short = capped(total, TOWARDS, 0.5)
    assert short[0].norm() == pytest.approx(0.5 * float(TOWARDS[0].norm()), rel=1e-5)
    assert torch.equal(short[1], total[1])


def test_presets_are_in_range() -> None:
    for gates in PRESETS.values():
        techniques.erasure.check_gates(gates)


# --- the run -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def roads() -> pare.Pipeline:
    return pare.Pipeline.from_pretrained("roads", scheduler="dpm++2m", karras=True)


def test_weight_0_is_plain_generation(roads: pare.Pipeline) -> None:

    prompt, seeds = "a road in the city at night", [3, 4]
    done = erase(roads, prompt, [Concept("streetlights", 0.0)], seeds, steps=3, gates=Gates())
    plain = roads.generate(prompt, seeds, steps=3)
    for ours, theirs in zip(done.images, plain, strict=True):
        # A batch of three rows an image rounds differently from one of two.
        assert largest_difference(ours, theirs) <= 1
    assert done.term_norms.abs().max() == 0


def test_an_image_does_not_depend_on_its_neighbours(roads: pare.Pipeline) -> None:
    given: dict[str, Any] = {"steps": 4, "gates": dataclasses.replace(PRESETS["ledits++"])}
    concepts = [Concept("streetlights", 5.0), Concept("a red car", 5.0)]
    prompt = "a road in the city at night"
    together = erase(roads, prompt, concepts, [3, 4], **given)
    alone = erase(roads, prompt, concepts, [4], **given)
    assert largest_difference(together.images[1], alone.images[0]) <= 1


def test_terms_are_reported_by_step_concept_and_place(roads: pare.Pipeline) -> None:
    gates = Gates(warm_up=2, quantile=0.5)
    concepts = [Concept("streetlights", 5.0), Concept("clouds", 1.0)]
    done = erase(roads, "a road at night", concepts, [3], steps=4, gates=gates)
    assert done.term_norms.shape == (4, 2, 1, 16, 16)
    assert done.term_norms[:2].abs().max() == 0
    assert (done.term_norms[2:] > 0).flatten(2).any(2).all()
    assert done.term_norms[2:, 0].mean() > done.term_norms[2:, 1].mean()


def test_an_image_is_repainted_at_its_own_size(roads: pare.Pipeline) -> None:
    done = erase(
        roads,
        "a road",
        [Concept("lamps")],
        [0, 1],
        image=random_image(77, 91),
        steps=4,
        strength=0.5,
    )
    assert [image.size for image in done.images] == [(77, 91)] * 2
    assert done.latents.shape == (2, 4, 12, 10)


def test_attention_looks_at_the_concept_s_own_words(roads: pare.Pipeline) -> None:
    seen: list[Tensor] = []

    class Spy(techniques.erasure.erasure_loop.ConceptAttention):
        def maps_of(self, k: int, x_t: Tensor) -> Tensor:
            looks = super().maps_of(k, x_t)
            seen.append(looks)
            return looks

    original = techniques.erasure.erasure_loop.ConceptAttention
    techniques.erasure.erasure_loop.ConceptAttention = Spy  # type: ignore[misc]
    try:
        erase(roads, "a road", [Concept("clouds")], [0], steps=1, gates=PRESETS["ledits++"])
    finally:
        techniques.erasure.erasure_loop.ConceptAttention = original  # type: ignore[misc]
    (looks,) = seen
    assert looks.shape == (1, 1, 16, 16)
    assert 0 < looks.min() < looks.max() < 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"concepts": []}, "0 concepts are given"),
        ({"concepts": [Concept("a")] * 33}, "33 concepts are given"),
        ({"concepts": [Concept(" ")]}, "a concept is empty"),
        ({"concepts": [Concept("a", float("nan"))]}, "the weight of 'a' is nan"),
        ({"gates": Gates(quantile=1.5)}, "`quantile` is 1.5"),
        ({"gates": Gates(warm_up=-1)}, "`warm_up` is -1"),
        ({"gates": Gates(momentum=float("inf"))}, "`momentum` is inf"),
        ({"strength": 0.0, "image": random_image(16, 16)}, "`strength` is 0"),
    ],
)
def test_bad_settings_are_refused(
    roads: pare.Pipeline, changes: dict[str, Any], words: str
) -> None:
    given = {"concepts": [Concept("lamps")], **changes}
    with pytest.raises(PareError, match=words):
        erase(roads, "a road", **given)


def largest_difference(one: Any, other: Any) -> int:
    import numpy as np

    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other)).max())


def test_the_docs_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "erasure.md").read_text(encoding="utf-8")
    code = "import pare" + page.partition("```python\nimport pare")[2].partition("```")[0]
    exec(compile(code, "docs/erasure.md", "exec"), {})
    assert "torch.Size([20, 2, 1, 16, 16])" in capsys.readouterr().out
    assert (tmp_path / "dark.png").exists()
