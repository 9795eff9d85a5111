"""Real images edited by sampling from an inversion: every method with every edit."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import pare
from pare.errors import InversionError, PareError, SettingError
from roads.benchmark.edit_tasks import tasks
from techniques import inversion
from techniques import prompt_to_prompt as p2p
from techniques.erasure import PRESETS, Concept, ErasureGuidance, Gates, erase_latents
from techniques.inversion import (
    EDIT_METHODS,
    Edited,
    Inverted,
    Kind,
    Method,
    Trace,
    ddim_inversion,
    edit,
    inverted_sampling,
)
from techniques.inversion.invert_image import described, embedded, fingerprints
from tests.random_models import normal
from tests.references.reference_inverted_sampling import reference_sampling
from tests.techniques.blending import TinyModel, TinyPipeline, distance, random_image, rectangle
from tests.techniques.mutants import mutant
from tests.techniques.test_prompt_to_prompt_words import words

STEPS = 5
SOURCE, TARGET = "a lion eats grass", "a hippo eats grass"
SIZE = (44, 36)  # 11 x 9 latents
PAIRS = [(kind, method) for kind, methods in EDIT_METHODS.items() for method in methods]
ON_ONE_WAY = [m for m in get_args(Method) if m not in ("edict", "direct")]


@pytest.fixture(scope="module")
def pipe() -> TinyPipeline:
    return TinyModel.build().pipe("ddim")


@pytest.fixture(scope="module")
def inversions(pipe: TinyPipeline) -> dict[str, Inverted]:
    """One of each method, of one image."""
    return {
        method: inversion.invert(
            pipe, random_image(*SIZE), SOURCE, method=method, steps=STEPS, guidance=3.0
        )
        for method in get_args(Method)
    }


def injection(steps: int = STEPS, **of_edit: Any) -> p2p.Injection:
    before = words(("a", 1), ("lion", 1), ("eats", 1), ("grass", 2))
    after = words(("a", 1), ("hippo", 3), ("eats", 1), ("grass", 2))
    table = p2p.token_map(before, after)
    return p2p.prepare([table], [p2p.Edit(after.prompt, **of_edit)], steps, (9, 11))


def sampled(
    pipe: TinyPipeline,
    inverted: Inverted,
    *prompts: str,
    module: ModuleType = inverted_sampling,
    **given: Any,
) -> Tensor:
    latents: Tensor = module.sample_latents(
        pipe, inverted.trace, embedded(pipe, inverted, prompts), 4.0,
        method=inverted.method, **given,
    )  # fmt: skip
    return latents


# --- the loop ------------------------------------------------------------------------------


def apart(pipe: TinyPipeline, inversions: dict[str, Inverted], module: ModuleType) -> float:
    """How far the loop of `module` (or of a mutant) is from each method's own, at most."""
    found = []
    for skip in (0, 2):
        for method in ON_ONE_WAY:
            ours = sampled(pipe, inversions[method], TARGET, module=module, skip=skip)
            reference = reference_sampling(pipe, inversions[method], [TARGET], 4.0, skip=skip)
            found.append(distance(ours, reference))
        both = (SOURCE, TARGET)
        ours = sampled(
            pipe, inversions["direct"], *both,
            module=module, skip=skip, keep_source=True, injection=injection(),
        )  # fmt: skip
        reference = reference_sampling(
            pipe, inversions["direct"], both, 4.0, skip=skip, control=injection()
        )
        found.append(distance(ours, reference))
    return max(found)


def test_one_loop_samples_as_each_method_s_own(
    pipe: TinyPipeline, inversions: dict[str, Inverted]
) -> None:
    assert apart(pipe, inversions, inverted_sampling) == 0


MUTATIONS = {
    "the source is not put back": ("if keep_source", "if False"),
    "the source is put back one step late": (
        "trace.before_sampling(i + 1, 1, pipe.device)", "trace.before_sampling(i, 1, pipe.device)",
    ),
    "null-text's steps are not counted from skip": ("trace.uncond[i]", "trace.uncond[k]"),
    "noise is not counted from skip": ("trace.noise[i]", "trace.noise[k]"),
    "what was optimised is not used": ("if trace.uncond is not None", "if False"),
    "proximal lets everything through": ('if method == "proximal"', "if False"),
    "negative is guided as usual": (
        'outputs["uncond"] + guidance', 'outputs["cond"] + guidance',
    ),
    "edit-friendly without fresh noise": (
        "ddpm_solver(pipe) if trace.noise is not None else solvers(pipe)[0]", "solvers(pipe)[0]",
    ),
    "controls count from skip": (
        "guidance, control=injection, step=i", "guidance, control=injection, step=k",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MUTATIONS)
def test_mistakes_of_the_loop_are_noticed(
    pipe: TinyPipeline, inversions: dict[str, Inverted], mistake: str, tmp_path: Path
) -> None:
    assert apart(pipe, inversions, mutant(inverted_sampling, *MUTATIONS[mistake], tmp_path)) > 1e-4


def lockstep(pipe: TinyPipeline, inverted: Inverted, **of_edit: Any) -> Tensor:
    """Prompt-to-prompt as `edit` runs it: the source's row and the target's."""
    return sampled(
        pipe, inverted, SOURCE, TARGET,
        injection=injection(**of_edit), keep_source=inverted.method in ("direct", "edit-friendly"),
    )  # fmt: skip


@pytest.mark.parametrize("method", [*ON_ONE_WAY, "direct"])
def test_without_injection_the_rows_are_independent(
    pipe: TinyPipeline, inversions: dict[str, Inverted], method: str
) -> None:
    inverted = inversions[method]
    _, target = lockstep(pipe, inverted, cross_replace=0.0, self_replace=0.0).split(1)
    plain = inversions["ddim"] if method == "direct" else inverted
    assert distance(target, sampled(pipe, plain, TARGET)) < 1e-5


@pytest.mark.parametrize("method", [*ON_ONE_WAY, "direct"])
def test_attention_of_the_source_reaches_the_target_and_not_the_source(
    pipe: TinyPipeline, inversions: dict[str, Inverted], method: str
) -> None:
    free = lockstep(pipe, inversions[method], cross_replace=0.0, self_replace=0.0)
    held = lockstep(pipe, inversions[method], cross_replace=1.0, self_replace=1.0)
    assert distance(held[:1], free[:1]) < 1e-5
    assert distance(held[1:], free[1:]) > 1e-3


@pytest.mark.parametrize("method", ["direct", "edit-friendly"])
def test_the_source_stays_on_the_inversion_at_any_guidance(
    pipe: TinyPipeline, inversions: dict[str, Inverted], method: str
) -> None:
    inverted = inversions[method]
    source, _ = lockstep(pipe, inverted).split(1)
    assert torch.equal(source, inverted.trace.source)


def test_the_published_source_of_edit_friendly_is_there_by_itself(
    pipe: TinyPipeline, inversions: dict[str, Inverted]
) -> None:
    """At the guidance of the inversion its own loop brings it where `keep_source` puts it."""
    inverted = inversions["edit-friendly"]
    prompts = embedded(pipe, inverted, [SOURCE])
    by_itself = inverted_sampling.sample_latents(pipe, inverted.trace, prompts, inverted.guidance)
    assert distance(by_itself, inverted.trace.source) < 1e-5


@pytest.mark.parametrize("method", [*ON_ONE_WAY, "direct"])
def test_a_blend_leaves_the_outside_exactly(
    pipe: TinyPipeline, inversions: dict[str, Inverted], method: str
) -> None:
    mask = torch.zeros(1, 1, 9, 11)
    mask[..., 2:5, 3:8] = 1
    made = sampled(pipe, inversions[method], TARGET, mask=mask)
    source = inversions[method].trace.source
    assert torch.equal(made * (1 - mask), source * (1 - mask))
    assert distance(made * mask, source * mask) > 1e-2


def test_erasing_nothing_is_resampling(pipe: TinyPipeline, inversions: dict[str, Inverted]) -> None:
    nothing = ErasureGuidance(pipe, [Concept("grass", weight=0.0)], Gates(), 4.0)
    erased = sampled(pipe, inversions["ddim"], TARGET, erasure=nothing)
    assert distance(erased, sampled(pipe, inversions["ddim"], TARGET)) < 1e-5


@pytest.mark.parametrize(
    "gates",
    [PRESETS["ungated"], PRESETS["sega"], Gates(1, 0.5, 2.0, momentum=0.5, memory=0.3, cap=0.7)],
    ids=["ungated", "sega", "all"],
)
def test_erasure_from_a_ddim_inversion_is_erasure_from_its_noise(
    pipe: TinyPipeline, inversions: dict[str, Inverted], gates: Gates
) -> None:
    gates = dataclasses.replace(gates, warm_up=min(gates.warm_up, 1))
    concepts = [Concept("grass", 3.0), Concept("sand", -1.5)]
    trace, solver = inversions["ddim"].trace, ddim_inversion.solvers(pipe)[0]
    from_noise = erase_latents(
        with_solver(pipe), trace.x_T, solver.timesteps(trace.steps),
        pipe.encode_prompts([TARGET]), concepts, guidance=4.0, gates=gates,
    )  # fmt: skip
    erasure = ErasureGuidance(pipe, concepts, gates, 4.0)
    assert distance(sampled(pipe, inversions["ddim"], TARGET, erasure=erasure), from_noise) < 1e-5


def with_solver(pipe: TinyPipeline) -> TinyPipeline:
    """The pipeline under the solver that samples from inversions."""
    other = TinyPipeline.__new__(TinyPipeline)
    other.__dict__ |= pipe.__dict__ | {"scheduler": ddim_inversion.solvers(pipe)[0]}
    return other


# --- images ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def roads() -> pare.Pipeline:
    return pare.Pipeline.from_pretrained("roads", scheduler="ddim")


TASK = tasks("development")[0]  # sunny to snowy


def edited(roads: pare.Pipeline, kind: Kind, method: Method | None = None, **given: Any) -> Edited:
    of_kind: dict[str, Any] = {"mask": rectangle((128, 128), (0, 0, 64, 64))}
    if kind == "erase":
        of_kind["concepts"] = [Concept("car", 5.0)]
    if kind == "resample":
        of_kind = {}
    return edit(
        roads, TASK.image, TASK.source_prompt, TASK.target_prompt, kind=kind, method=method,
        **{"steps": 2, "reconstruct": False} | of_kind | given,
    )  # fmt: skip


@functools.cache
def inverted_once(roads: pare.Pipeline, method: Method) -> Inverted:
    return inversion.invert(roads, TASK.image, TASK.source_prompt, method=method, steps=2)


@pytest.mark.parametrize(("kind", "method"), PAIRS)
def test_every_method_with_every_edit(roads: pare.Pipeline, kind: Kind, method: Method) -> None:
    made = edited(roads, kind, inverted=inverted_once(roads, method))
    before, after = np.asarray(TASK.image), np.asarray(made[0])
    assert after.shape == before.shape
    assert np.abs(after.astype(int) - before).max() > 8
    assert made.inverted.method == method
    if kind != "resample":
        assert np.array_equal(after[64:], before[64:])
        assert made.outside is not None
        assert made.outside.largest == 0


def test_the_usual_method_is_the_first_that_is_listed(roads: pare.Pipeline) -> None:
    assert edited(roads, "p2p").inverted.method == EDIT_METHODS["p2p"][0]


def test_an_inversion_serves_many_edits(roads: pare.Pipeline) -> None:
    inverted = edited(roads, "p2p", "negative").inverted
    again = edited(roads, "p2p", inverted=inverted)
    assert again[0].tobytes() == edited(roads, "p2p", "negative")[0].tobytes()
    other = edited(roads, "resample", inverted=inverted, strength=0.5)
    assert other[0].tobytes() != again[0].tobytes()


def test_a_reconstruction_is_reported(roads: pare.Pipeline) -> None:
    report = edited(roads, "p2p", "direct", reconstruct=True).report()
    assert report["reconstruction"] == report["vae_alone"]  # direct loses nothing of its own
    assert report["outside"] == {"psnr": None, "largest": 0}
    assert edited(roads, "resample").report()["reconstruction"] is None


def test_less_strength_keeps_more(roads: pare.Pipeline) -> None:
    def apart(strength: float) -> float:
        made = edited(roads, "resample", "ddim", steps=4, strength=strength)
        return (made.latents - made.inverted.trace.source).square().mean().item()

    assert apart(0.25) < apart(1.0)


def test_any_size_comes_back_as_it_was(roads: pare.Pipeline) -> None:
    made = edit(
        roads, random_image(67, 45), "a road", "a snowy road", kind="blend",
        mask=rectangle((67, 45), (0, 0, 40, 45)), steps=2,
    )  # fmt: skip
    assert made[0].size == (67, 45)
    assert made.reconstruction is not None
    assert made.reconstruction.size == (67, 45)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no such edit": ({"kind": "swap"}, "`kind` is 'swap'; expected p2p, resample"),
    "no such method": ({"kind": "p2p", "method": "magic"}, "`method` is 'magic'; expected dir"),
    "direct without attention": (
        {"kind": "resample", "method": "direct"},
        "direct inversion has no effect on the edit 'resample'; expected one of edit-fr",
    ),
    "edict erases nothing": ({"kind": "erase", "method": "edict"}, "expected one of edit-friendly"),
    "blend without a mask": ({"kind": "blend", "mask": None}, "needs `mask`"),
    "resample with a mask": (
        {"kind": "resample", "mask": rectangle((128, 128), (0, 0, 9, 9))}, "use `kind=blend`",
    ),
    "nothing to erase": ({"kind": "erase", "concepts": []}, "0 concepts"),
    "an empty concept": ({"kind": "erase", "concepts": [Concept(" ")]}, "a concept is empty"),
    "concepts of another edit": ({"kind": "p2p", "concepts": [Concept("car")]}, "use `kind=erase`"),
    "words of another edit": (
        {"kind": "blend", "local_blend": p2p.LocalBlend(("road",))}, "use `kind=p2p`",
    ),
    "edict has two latents": (
        {"kind": "p2p", "method": "edict", "local_blend": p2p.LocalBlend(("road",))},
        "samples two latents",
    ),
    "no steps": ({"kind": "p2p", "steps": 0}, "`steps` is 0"),
    "no strength": ({"kind": "p2p", "strength": 0.0}, "`strength` is 0"),
    "guidance that is no number": ({"kind": "p2p", "guidance": float("nan")}, "`guidance` is nan"),
    "null-text in many steps": (
        {"kind": "p2p", "method": "null-text", "steps": 101}, "at most 100",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG)
def test_what_makes_no_sense_is_said(roads: pare.Pipeline, mistake: str) -> None:
    given, sentence = WRONG[mistake]
    with pytest.raises(PareError, match=sentence):
        edited(roads, **given)


def as_if_of(pipe: pare.Pipeline, image: Image.Image, prompt: str = "a road") -> Inverted:
    """An inversion that fits the pipeline, of noise."""
    trace = Trace(normal(3, 4, 16, 16, seed=1))
    solver = ddim_inversion.solvers(pipe)[0]
    return Inverted("ddim", prompt, 1.0, *image.size, fingerprints(pipe), described(solver), trace)


def test_an_inversion_of_something_else_is_refused(roads: pare.Pipeline) -> None:
    inverted = as_if_of(roads, TASK.image, TASK.source_prompt)
    with pytest.raises(InversionError, match="another image"):
        edited(roads, "p2p", inverted=inverted)
    with pytest.raises(InversionError, match="the inversion is of 'a road'"):
        edited(roads, "p2p", inverted=dataclasses.replace(inverted, prompt="a road"))
    with pytest.raises(InversionError, match="the inversion's was 121 x 128"):
        edited(roads, "p2p", inverted=dataclasses.replace(inverted, width=121))
    with pytest.raises(InversionError, match="another model"):
        edited(roads, "p2p", inverted=dataclasses.replace(inverted, model={"unet": "other"}))
    with pytest.raises(SettingError, match="made with 'ddim'"):
        edited(roads, "p2p", "negative", inverted=inverted)
    with pytest.raises(SettingError, match="has no effect on"):
        edited(roads, "erase", inverted=dataclasses.replace(inverted, method="proximal"))
