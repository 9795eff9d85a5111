"""Real images edited on the way back from an inversion: every method with every edit."""

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
from pare.text.text_encoder import PromptEmbeddings
from roads.benchmark.edit_tasks import tasks
from techniques import edit as technique
from techniques import inversion
from techniques import prompt_to_prompt as p2p
from techniques.edit import METHODS, Edited, Kind, edit, edit_loops, sampling_back
from techniques.erasure import PRESETS, Concept, Gates, erase_latents
from techniques.inversion import Inverted, Method, Trace, ddim, direct
from techniques.inversion.invert_image import described, fingerprints, sample_rows
from tests.random_models import normal
from tests.techniques.blending import TinyModel, TinyPipeline, distance, random_image, rectangle
from tests.techniques.mutants import mutant
from tests.techniques.test_prompt_to_prompt_words import words

STEPS = 5
SOURCE, TARGET = "a lion eats grass", "a hippo eats grass"
SIZE = (44, 36)  # 11 x 9 latents
PAIRS = [(kind, method) for kind, methods in METHODS.items() for method in methods]
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


def rows(pipe: TinyPipeline, *prompts: str) -> PromptEmbeddings:
    return pipe.encode_prompts(prompts)


# --- the way back --------------------------------------------------------------------------


def apart(pipe: TinyPipeline, inversions: dict[str, Inverted], module: ModuleType) -> float:
    """How far the way of `module` (or of a mutant) is from the methods' own loops, at most."""
    found = []
    for skip in (0, 2):
        for method in ON_ONE_WAY:
            back = module.Way(pipe, inversions[method], rows(pipe, TARGET), 4.0, skip=skip)
            own = sample_rows(pipe, inversions[method], TARGET, 4.0, skip=skip)
            found.append(distance(edit_loops.resample_latents(back), own))
        both, trace = rows(pipe, SOURCE, TARGET), inversions["direct"].trace
        back = module.Way(pipe, inversions["direct"], both, 4.0, skip=skip)
        own = direct.sample_latents(pipe, trace, both, 4.0, skip=skip, control=injection())
        found.append(distance(edit_loops.prompt_to_prompt_latents(back, injection()), own))
    return max(found)


def test_the_way_is_that_of_the_methods_own_loops(
    pipe: TinyPipeline, inversions: dict[str, Inverted]
) -> None:
    assert apart(pipe, inversions, sampling_back) == 0


MUTATIONS = {
    "the source is not put back": ("if self.method not in ON_THE_WAY", "if True"),
    "the source is put back one step late": ("self.inverted_at(i + 1)", "self.inverted_at(i)"),
    "null-text's steps are not counted from skip": (
        "self.trace.uncond[self.skip + i]", "self.trace.uncond[i]",
    ),
    "noise is not counted from skip": ("self.trace.noise[self.skip + i]", "self.trace.noise[i]"),
    "what was learnt is not used": ("if self.trace.uncond is not None", "if False"),
    "proximal lets everything through": ('if self.method == "proximal"', "if False"),
    "the negative is the empty prompt": (
        'self.source_text = pipe.encode_prompts([inverted.prompt]).cond', "pass",
    ),
    "edit-friendly without fresh noise": ('if self.method == "edit-friendly"', "if False"),
    "controls count from skip": (
        "guidance, control=control, step=self.skip + i", "guidance, control=control, step=i",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MUTATIONS)
def test_mistakes_on_the_way_are_noticed(
    pipe: TinyPipeline, inversions: dict[str, Inverted], mistake: str, tmp_path: Path
) -> None:
    assert apart(pipe, inversions, mutant(sampling_back, *MUTATIONS[mistake], tmp_path)) > 1e-4


def test_edict_has_no_such_way(pipe: TinyPipeline, inversions: dict[str, Inverted]) -> None:
    with pytest.raises(ValueError, match="two latents"):
        sampling_back.Way(pipe, inversions["edict"], rows(pipe, TARGET), 4.0)


def lockstep(pipe: TinyPipeline, inverted: Inverted, **of_edit: Any) -> Tensor:
    back = sampling_back.Way(pipe, inverted, rows(pipe, SOURCE, TARGET), 4.0)
    return edit_loops.prompt_to_prompt_latents(back, injection(**of_edit))


@pytest.mark.parametrize("method", [*ON_ONE_WAY, "direct"])
def test_without_injection_the_rows_do_not_know_of_each_other(
    pipe: TinyPipeline, inversions: dict[str, Inverted], method: str
) -> None:
    inverted = inversions[method]
    _, target = lockstep(pipe, inverted, cross_replace=0.0, self_replace=0.0).split(1)
    plain = inversions["ddim"] if method == "direct" else inverted
    alone = sample_rows(pipe, plain, TARGET, 4.0)
    assert distance(target, alone) < 1e-5


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
    """At the guidance of the inversion its own loop brings it where `with_source` puts it."""
    inverted = inversions["edit-friendly"]
    by_itself = sample_rows(pipe, inverted, SOURCE, inverted.guidance)
    assert distance(by_itself, inverted.trace.source) < 1e-5


@pytest.mark.parametrize("method", [*ON_ONE_WAY, "direct"])
def test_a_blend_leaves_the_outside_exactly(
    pipe: TinyPipeline, inversions: dict[str, Inverted], method: str
) -> None:
    mask = torch.zeros(1, 1, 9, 11)
    mask[..., 2:5, 3:8] = 1
    back = sampling_back.Way(pipe, inversions[method], rows(pipe, TARGET), 4.0)
    made = edit_loops.blend_latents(back, mask)
    source = inversions[method].trace.source
    assert torch.equal(made * (1 - mask), source * (1 - mask))
    assert distance(made * mask, source * mask) > 1e-2


def test_erasing_nothing_is_resampling(pipe: TinyPipeline, inversions: dict[str, Inverted]) -> None:
    back = sampling_back.Way(pipe, inversions["ddim"], rows(pipe, TARGET), 4.0)
    nothing = edit_loops.erase_latents(back, [Concept("grass", weight=0.0)], Gates())
    assert distance(nothing, edit_loops.resample_latents(back)) < 1e-5


@pytest.mark.parametrize(
    "gates",
    [PRESETS["ungated"], PRESETS["sega"], Gates(1, 0.5, 2.0, momentum=0.5, memory=0.3, cap=0.7)],
    ids=["ungated", "sega", "all"],
)
def test_erasure_on_the_way_of_ddim_is_erasure_from_its_noise(
    pipe: TinyPipeline, inversions: dict[str, Inverted], gates: Gates
) -> None:
    gates = dataclasses.replace(gates, warm_up=min(gates.warm_up, 1))
    concepts = [Concept("grass", 3.0), Concept("sand", -1.5)]
    back = sampling_back.Way(pipe, inversions["ddim"], rows(pipe, TARGET), 4.0)
    from_noise = erase_latents(
        with_solver(pipe), back.start(), back.timesteps, back.prompts, concepts,
        guidance=4.0, gates=gates,
    )  # fmt: skip
    assert distance(edit_loops.erase_latents(back, concepts, gates), from_noise) < 1e-5


def with_solver(pipe: TinyPipeline) -> TinyPipeline:
    """The pipeline under the solver that inversions are walked back with."""
    other = TinyPipeline.__new__(TinyPipeline)
    other.__dict__ |= pipe.__dict__ | {"scheduler": ddim.solvers(pipe)[0]}
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
    before, after = np.asarray(TASK.image), np.asarray(made.image)
    assert after.shape == before.shape
    assert np.abs(after.astype(int) - before).max() > 8
    assert made.inverted.method == method
    if kind != "resample":
        assert np.array_equal(after[64:], before[64:])
        assert made.outside is not None
        assert made.outside.largest == 0


def test_the_usual_method_is_the_first_that_is_listed(roads: pare.Pipeline) -> None:
    assert edited(roads, "p2p").inverted.method == technique.USUAL_METHOD["p2p"]


def test_an_inversion_serves_many_edits(roads: pare.Pipeline) -> None:
    inverted = edited(roads, "p2p", "negative").inverted
    again = edited(roads, "p2p", inverted=inverted)
    assert again.image.tobytes() == edited(roads, "p2p", "negative").image.tobytes()
    other = edited(roads, "resample", inverted=inverted, strength=0.5)
    assert other.image.tobytes() != again.image.tobytes()


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
    assert made.image.size == (67, 45)
    assert made.reconstruction is not None
    assert made.reconstruction.size == (67, 45)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no such edit": ({"kind": "swap"}, "the edit is 'swap'; expected p2p, resample"),
    "no such method": ({"kind": "p2p", "method": "magic"}, "the method is 'magic'; expected dir"),
    "direct without attention": (
        {"kind": "resample", "method": "direct"},
        "direct inversion has nothing to give to the edit 'resample'; expected one of edit-fr",
    ),
    "edict erases nothing": ({"kind": "erase", "method": "edict"}, "expected one of edit-friendly"),
    "blend without a mask": ({"kind": "blend", "mask": None}, "has no mask"),
    "resample with a mask": (
        {"kind": "resample", "mask": rectangle((128, 128), (0, 0, 9, 9))}, "take 'blend'",
    ),
    "nothing to erase": ({"kind": "erase", "concepts": []}, "0 concepts"),
    "an empty concept": ({"kind": "erase", "concepts": [Concept(" ")]}, "a concept is empty"),
    "concepts of another edit": ({"kind": "p2p", "concepts": [Concept("car")]}, "take 'erase'"),
    "words of another edit": (
        {"kind": "blend", "local_blend": p2p.LocalBlend(("road",))}, "take 'p2p'",
    ),
    "edict has two latents": (
        {"kind": "p2p", "method": "edict", "local_blend": p2p.LocalBlend(("road",))}, "has two",
    ),
    "no steps": ({"kind": "p2p", "steps": 0}, "steps is 0"),
    "no strength": ({"kind": "p2p", "strength": 0.0}, "strength is 0"),
    "guidance that is no number": ({"kind": "p2p", "guidance": float("nan")}, "guidance is nan"),
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
    solver = ddim.solvers(pipe)[0]
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
    with pytest.raises(SettingError, match="has nothing to give"):
        edited(roads, "erase", inverted=dataclasses.replace(inverted, method="proximal"))
