"""Prompt-to-Prompt against the published loops on diffusers, and what it promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import pare
from pare.errors import PareError
from pare.verify.published.published_p2p import (
    Controller,
    reference_p2p,
    reference_replay,
    refinement_mapper,
    replacement_mapper,
)
from pare.verify.published.published_p2p import LocalBlend as TheirBlend
from techniques.prompt_to_prompt import (
    Edit,
    LocalBlend,
    Sites,
    Words,
    attention_edit,
    edit_latents,
    local_blend,
    p2p_loop,
    prepare,
    prompt_to_prompt,
    token_map,
    tutorial,
)
from techniques.prompt_to_prompt.local_blend import default_stage
from tests.random_models import normal
from tests.techniques.blending import SCHEDULER_CONFIG, TinyModel, distance, embedding
from tests.techniques.mutants import mutant
from tests.techniques.test_prompt_to_prompt_words import words

BOUND = 1e-5
STEPS, GUIDANCE = 6, 4.0
NOISE = normal(1, 4, 9, 11, seed=3)

SOURCE = words(("a", 1), ("lion", 1), ("eats", 1), ("grass", 2))
SWAPPED = words(("a", 1), ("hippo", 3), ("eats", 1), ("hay", 1))
LONGER = words(("a", 1), ("big", 1), ("lion", 1), ("eats", 1), ("green", 2), ("grass", 2))


@pytest.fixture(scope="module")
def model() -> TinyModel:
    return TinyModel.build()


def scheduler(name: str, prediction_type: str = "epsilon") -> Any:
    solvers: dict[str, tuple[Any, dict[str, Any]]] = {
        "ddim": (diffusers.DDIMScheduler, {"clip_sample": False}),
        "dpm++2m": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
        "euler": (diffusers.EulerDiscreteScheduler, {}),
        "pndm": (diffusers.PNDMScheduler, {}),
    }
    kind, options = solvers[name]
    config = {**SCHEDULER_CONFIG, **options, "prediction_type": prediction_type}
    if name != "pndm":
        config.pop("skip_prk_steps")
    return kind.from_config(config)


Combine = Callable[[Tensor, Tensor], Tensor]  # base, own -> edited


def their_replace(base: Tensor, own: Tensor) -> Tensor:
    return base @ replacement_mapper([(1, 1), (1, 3), (1, 1), (2, 1)])


def their_refine(base: Tensor, own: Tensor) -> Tensor:
    places, alphas = refinement_mapper(SOURCE.ids, LONGER.ids)
    return base[:, :, places] * alphas + own * (1 - alphas)


def their_weights(base: Tensor, own: Tensor) -> Tensor:
    factors = torch.ones(77)
    factors[2] = -1.5  # the lion
    return base * factors


def their_refined_weights(base: Tensor, own: Tensor) -> Tensor:
    factors = torch.ones(77)
    factors[[5, 6]] = 3.0  # green
    return their_refine(base, own) * factors


CASES: dict[str, tuple[Words, Edit, Combine]] = {
    "replace": (SWAPPED, Edit("swapped", "replace"), their_replace),
    "refine": (LONGER, Edit("longer", "refine"), their_refine),
    "reweight": (SOURCE, Edit("source", weights={"lion": -1.5}), their_weights),
    "chain": (LONGER, Edit("longer", weights={"green": 3.0}), their_refined_weights),
}


def ours(
    model: TinyModel,
    targets: list[tuple[Words, Edit]],
    *,
    solver: str = "ddim",
    prediction_type: str = "epsilon",
    cross: Any = 0.5,
    self_replace: float = 0.34,
    blend: LocalBlend | None = None,
    batch: int | None = None,
    seeds: int = 1,
    modules: dict[str, ModuleType] | None = None,
) -> Tensor:
    """Latents of the source and the targets, by the loop or by a mutant of it."""
    modules = modules or {}
    pipe = model.pipe(solver, prediction_type=prediction_type)
    timesteps = pipe.scheduler.timesteps(STEPS)
    group = 1 + len(targets)
    tables = [
        token_map(SOURCE, target, mode=edit.mode, weights=edit.weights) for target, edit in targets
    ]
    edits = [
        Edit(edit.prompt, cross_replace=cross, self_replace=self_replace) for _, edit in targets
    ]
    injection = prepare(tables, edits, len(timesteps), (9, 11), blend=blend)
    if "control" in modules:
        injection.__class__ = modules["control"].Injection
    if "local_blend" in modules and injection.masks:
        injection.masks.__class__ = modules["local_blend"].LocalBlendMasks
    embeddings = pipe.encode_prompts(["source", *(edit.prompt for edit in edits)] * seeds)
    noise = [normal(1, 4, 9, 11, seed=3 + k).expand(group, -1, -1, -1) for k in range(seeds)]
    return modules.get("loop", p2p_loop).edit_latents(
        pipe,
        torch.cat(noise) * timesteps.initial_scale,
        timesteps,
        embeddings,
        injection,
        guidance=GUIDANCE,
        batch=batch,
    )


def theirs(
    model: TinyModel,
    targets: list[tuple[Edit, Combine]],
    *,
    solver: str = "ddim",
    prediction_type: str = "epsilon",
    cross: float = 0.5,
    self_replace: float = 0.34,
    blend: TheirBlend | None = None,
) -> Tensor:
    evaluations = STEPS + 1 if solver == "pndm" else STEPS
    alpha = torch.zeros(evaluations + 1, len(targets), 77)
    alpha[: round(cross * evaluations)] = 1
    return reference_p2p(
        model.their_unet,
        scheduler(solver, prediction_type),
        NOISE,
        [embedding("source"), *(embedding(edit.prompt) for edit, _ in targets)],
        embedding(""),
        lambda layers: Controller(
            [combine for _, combine in targets],
            layers,
            alpha,
            round(self_replace * evaluations),
            blend=blend,
        ),
        steps=STEPS,
        guidance=GUIDANCE,
    )


# --- parity --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_edits_are_the_published_loop_s(model: TinyModel, name: str) -> None:
    target, edit, combine = CASES[name]
    made = ours(model, [(target, edit)])
    assert distance(made, theirs(model, [(edit, combine)])) < BOUND
    # Each part of the edit is there: without it, the target is another.
    parts: list[dict[str, Any]] = [{"cross": 0.0}, {"self_replace": 0.0}]
    for without in parts:
        assert distance(ours(model, [(target, edit)], **without)[1:], made[1:]) > 100 * BOUND


@pytest.mark.parametrize(
    ("solver", "prediction_type"),
    [("dpm++2m", "epsilon"), ("euler", "epsilon"), ("pndm", "epsilon"), ("ddim", "v_prediction")],
)
def test_every_solver_and_several_targets(
    model: TinyModel, solver: str, prediction_type: str
) -> None:
    given: dict[str, Any] = {"solver": solver, "prediction_type": prediction_type}
    cases = [CASES["replace"], CASES["refine"]]
    made = ours(model, [(target, edit) for target, edit, _ in cases], **given)
    assert distance(made, theirs(model, [(edit, c) for _, edit, c in cases], **given)) < BOUND


BLEND = LocalBlend(("lion", "hippo"), ("grass",), threshold=0.85, start=0.34, stage=0)


def their_blend() -> TheirBlend:
    return TheirBlend([[2], [2, 3, 4]], [[4, 5], []], (9, 11), start=2, threshold=0.85)


def test_local_blend_is_the_published_one(model: TinyModel) -> None:
    target, edit, combine = CASES["replace"]
    made = ours(model, [(target, edit)], blend=BLEND)
    # Where a prompt has none of the words to subtract, the published code divides 0 by 0.
    reference = theirs(model, [(edit, combine)], blend=their_blend())
    assert distance(made, reference) < BOUND
    kept = (made[0] == made[1]).all(0).float().mean()
    assert 0.1 < kept < 0.9


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.37])
def test_the_tutorial_s_variant_is_the_tutorial_s(model: TinyModel, ratio: float) -> None:
    made = replayed(model, ratio)
    reference = reference_replay(
        model.their_unet,
        lambda: scheduler("ddim"),
        NOISE,
        embedding("source"),
        embedding("swapped"),
        embedding(""),
        steps=STEPS,
        guidance=GUIDANCE,
        injection_ratio=ratio,
    )
    assert distance(made[0], reference[0]) < BOUND
    assert distance(made[1], reference[1]) < BOUND
    assert distance(replayed(model, ratio - 0.2)[1], made[1]) > 100 * BOUND  # the ratio is alive


def replayed(model: TinyModel, ratio: float, **given: Any) -> tuple[Tensor, Tensor]:
    pipe = model.pipe("ddim")
    timesteps = pipe.scheduler.timesteps(STEPS)
    return given.pop("module", tutorial).replay_latents(
        pipe,
        NOISE * timesteps.initial_scale,
        timesteps,
        pipe.encode_prompts(["source"]),
        pipe.encode_prompts(["swapped"]),
        guidance=GUIDANCE,
        injection_ratio=ratio,
        **given,
    )


MUTATIONS = {
    "source and target change rows": ("control", "if k == 0:\n", "if k == len(self.targets):\n"),
    "both halves are edited": ("control", 'meaning.branch != "cond"', 'meaning.branch == ""'),
    "the other half is edited": ("control", 'meaning.branch != "cond"', 'meaning.branch == "cond"'),
    "the table reads the target": ("control", "apply(source, own)", "apply(own, source)"),
    "the table starts a step late": (
        "control",
        "target.cross[call.step]",
        "target.cross[call.step] * (call.step > 0)",
    ),
    "self-attention is the target's": ("control", "edited[row] = source\n", "pass\n"),
    "the level is one too far": (
        "loop",
        "level = timesteps.levels[i]",
        "level = timesteps.levels[i + 1]",
    ),
    "the mask is the target's alone": (
        "local_blend",
        "here = here | self.attends(kind, image",
        "here = self.attends(kind, image",
    ),
    "the mask is not pooled": ("local_blend", "        if pool:", "        if not pool:"),
    "the blend begins a step late": ("local_blend", "if i < self.first", "if i <= self.first"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_comparison_notices(model: TinyModel, name: str, tmp_path: Path) -> None:
    which, old, new = MUTATIONS[name]
    module = {"control": attention_edit, "loop": p2p_loop, "local_blend": local_blend}[which]
    target, edit, combine = CASES["replace"]
    mutants = {which: mutant(module, old, new, tmp_path)}
    reference = theirs(model, [(edit, combine)], blend=their_blend())
    try:
        made = ours(model, [(target, edit)], blend=BLEND, modules=mutants)
    except KeyError:  # a target that comes before its source
        return
    assert not distance(made, reference) < 10 * BOUND


def test_with_nothing_replaced_the_runs_are_plain_ones(model: TinyModel) -> None:
    pipe = model.pipe("ddim")
    timesteps = pipe.scheduler.timesteps(STEPS)
    prompts = pipe.encode_prompts(["swapped"])
    x_T = NOISE * timesteps.initial_scale
    plain = pipe.denoise(x_T, timesteps, prompts, guidance=GUIDANCE)
    assert torch.equal(replayed(model, 0.0)[1], plain)


def test_the_comparison_notices_a_replay_in_one_half(model: TinyModel, tmp_path: Path) -> None:
    changed = mutant(
        tutorial,
        "return dict(enumerate(self.maps.pop(key)))",
        "return {1: self.maps.pop(key)[1]}",
        tmp_path,
    )
    assert distance(replayed(model, 0.5, module=changed)[1], replayed(model, 0.5)[1]) > 100 * BOUND


# --- what the run promises -----------------------------------------------------------------


@pytest.fixture(scope="module")
def roads() -> pare.Pipeline:
    return pare.Pipeline.from_pretrained("roads", scheduler="dpm++2m", karras=True)


def test_the_source_is_what_generate_makes_bit_for_bit(roads: pare.Pipeline) -> None:
    source, target = "a sunny road in the forest", "a snowy road in the forest"
    done = prompt_to_prompt(roads, source, [target], [3, 4], steps=3, batch=4)
    plain = roads.generate([source, target] * 2, [3, 3, 4, 4], steps=3, batch=4)
    for k in range(2):
        assert done.sources[k].tobytes() == plain[2 * k].tobytes()
        assert done.targets[k][0].tobytes() != plain[2 * k + 1].tobytes()


def test_the_source_s_latents_are_those_of_denoise_bit_for_bit(model: TinyModel) -> None:
    pipe = model.pipe("dpm++2m")
    timesteps = pipe.scheduler.timesteps(STEPS)
    plain = pipe.denoise(
        NOISE.expand(2, -1, -1, -1) * timesteps.initial_scale,
        timesteps,
        pipe.encode_prompts(["source", "swapped"]),
        guidance=GUIDANCE,
    )
    target, edit, _ = CASES["replace"]
    for blend in (None, BLEND):
        made = ours(model, [(target, edit)], solver="dpm++2m", blend=blend)
        assert torch.equal(made[0], plain[0])
        assert not torch.equal(made[1], plain[1])
    # With nothing injected, the target is as if generated, too.
    idle = ours(model, [(target, edit)], solver="dpm++2m", cross=0.0, self_replace=0.0)
    assert torch.equal(idle, plain)


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_source_and_targets_one_after_the_other(model: TinyModel, batch: int) -> None:
    targets = [(target, edit) for target, edit, _ in (CASES["replace"], CASES["refine"])]
    together = ours(model, targets, seeds=2, blend=BLEND)
    assert distance(ours(model, targets, seeds=2, blend=BLEND, batch=batch), together) < BOUND
    alone = ours(model, targets, blend=BLEND)
    assert distance(together[:3], alone) < BOUND


def test_no_map_outlives_its_step(model: TinyModel) -> None:
    held: list[int] = []
    target, edit, _ = CASES["replace"]
    injection = prepare([token_map(SOURCE, target)], [edit], STEPS, (9, 11), blend=BLEND)
    pipe = model.pipe("ddim")

    def watched(indices: Any) -> Any:
        for i in indices:
            yield i
            sums = injection.masks.sums.values() if injection.masks else ()
            held.append(len(injection.sources) + sum(total.numel() for total in sums))

    edit_latents(
        pipe,
        NOISE.expand(2, -1, -1, -1),
        pipe.scheduler.timesteps(STEPS),
        pipe.encode_prompts(["source", "swapped"]),
        injection,
        guidance=GUIDANCE,
        progress=watched,
    )
    assert set(held) == {4 * 9 * 11}  # two rows, words and words to subtract
    assert not injection.sources


def test_layers_are_chosen_by_block_and_by_share_of_the_grid(model: TinyModel) -> None:
    sites = list(model.components.unet.sites())
    for chosen, expected in (
        (Sites(), {"down", "mid", "up"}),
        (Sites(("mid",)), {"mid"}),
        (Sites(coarsest=0.6), {"down", "up"}),
        (Sites(finest=0.5), {"mid"}),
    ):
        assert {site.block for site in sites if chosen.has(site)} == expected
    for bad in ({"blocks": ("top",)}, {"blocks": ()}, {"coarsest": 0.9, "finest": 0.1}):
        with pytest.raises(PareError):
            Sites(**bad)


def test_words_have_schedules_of_their_own(model: TinyModel) -> None:
    target, _, _ = CASES["refine"]
    table = token_map(SOURCE, target)
    whole = prepare([table], [Edit("longer", cross_replace=1.0)], 4, (9, 11))
    some = prepare([table], [Edit("l", cross_replace_words={"lion": (0.5, 1)})], 4, (9, 11))
    assert whole.targets[0].cross.min() == 1
    assert some.targets[0].cross[:, 3].tolist() == [0, 0, 1, 1]
    assert some.targets[0].cross[:, 1].tolist() == [1, 1, 1, 0]


# --- local blend ---------------------------------------------------------------------------


def test_a_user_s_mask_alone_or_with_words(model: TinyModel) -> None:
    target, edit, _ = CASES["replace"]
    mask = torch.zeros(1, 1, 9, 11)
    mask[..., 2:5, 3:8] = 1
    outside = (mask[0] == 0).expand(4, -1, -1)
    for blend in (
        LocalBlend(mask=mask),
        LocalBlend(("lion", "hippo"), mask=mask, threshold=0.2, stage=0),
    ):
        made = ours(model, [(target, edit)], blend=blend)
        assert torch.equal(made[0][outside], made[1][outside])
        assert not torch.equal(made[0][~outside], made[1][~outside])


@pytest.mark.parametrize(
    ("grid", "level"),
    [((64, 64), 2), ((96, 96), 2), ((16, 16), 1), ((8, 8), 0), ((24, 64), 2), ((5, 6), 0)],
)
def test_maps_come_from_a_quarter_of_the_grid_or_finer(grid: tuple[int, int], level: int) -> None:
    assert default_stage(grid) == level


def test_words_are_subtracted_without_others(model: TinyModel) -> None:
    target, edit, _ = CASES["replace"]
    blend = LocalBlend(subtract=("lion", "hippo"), threshold=0.85, stage=0)
    made = ours(model, [(target, edit)], blend=blend)
    kept = (made[0] == made[1]).all(0).float().mean()
    assert 0 < kept < 1


def test_a_level_without_cross_attention_is_said(model: TinyModel) -> None:
    target, edit, _ = CASES["replace"]
    for blend, where in (
        (LocalBlend(("lion",), stage=3), "stage 3 of its down, mid, up blocks"),
        (LocalBlend(("lion",), stage=0, blocks=("mid",)), "stage 0 of its mid blocks"),
        (LocalBlend(("lion",), stage=0, blocks=()), "stage 0 of its no blocks"),
    ):
        with pytest.raises(PareError, match=f"no cross-attention at {where}; choose another"):
            ours(model, [(target, edit)], blend=blend)


def test_a_blend_may_see_one_side_of_the_u_alone(model: TinyModel) -> None:
    target, edit, _ = CASES["replace"]
    masks = [
        ours(
            model,
            [(target, edit)],
            blend=LocalBlend(("lion", "hippo"), threshold=0.85, stage=0, blocks=blocks),
        )
        for blocks in (("down",), ("up",))
    ]
    assert not torch.equal(masks[0], masks[1])


# --- errors --------------------------------------------------------------------------------

ROAD, SNOW = "a sunny road", "a snowy road"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"targets": []}, "0 targets are given"),
        ({"targets": [Edit(SNOW, weights={"moon": 2})]}, "'moon' is not in the prompt"),
        ({"targets": [Edit("a road", "replace")]}, "swaps word for word"),
        ({"targets": [Edit(SNOW, words={"rainy": "snowy"})]}, "'rainy' is not in the prompt"),
        ({"targets": [Edit(SNOW, cross_replace=2)]}, "`cross_replace` is 2"),
        ({"targets": [Edit(SNOW, self_replace=(0.5, 0.1))]}, "`self_replace` ends at 0.1"),
        ({"blend": LocalBlend()}, "neither words nor a mask"),
        ({"blend": LocalBlend(mask=torch.ones(1, 1, 8, 8))}, r"`mask` is \(1, 1, 8, 8\)"),
        ({"blend": LocalBlend(("moon",))}, "'moon' is in none of the prompts"),
        ({"blend": LocalBlend(("road",), threshold=3)}, "`threshold` is 3"),
        ({"steps": 0}, "`steps` is 0"),
    ],
)
def test_bad_settings_are_refused(
    roads: pare.Pipeline, changes: dict[str, Any], sentence: str
) -> None:
    given = {"targets": [SNOW], "steps": 2, **changes}
    with pytest.raises(PareError, match=sentence):
        prompt_to_prompt(roads, ROAD, **given)


def test_a_run_on_roads_with_everything(roads: pare.Pipeline) -> None:
    done = prompt_to_prompt(
        roads.with_scheduler("euler-ancestral"),
        "a sunny road in the forest",
        [Edit("a snowy road in the forest", weights={"snowy": 1.5}), "a road in the city"],
        [1, 2],
        steps=3,
        height=96,
        width=160,
        blend=LocalBlend(("road",), threshold=0.5),
    )
    assert [image.size for image in done.sources] == [(160, 96)] * 2
    assert [len(images) for images in done.targets] == [2, 2]
    assert done.labels == ["source", "target-1", "target-2"] * 2
    assert done.latents.shape == (6, 4, 12, 20)
    latents = done.latents.view(2, 3, 4, 12, 20)
    assert done.masks is not None
    assert done.masks.shape == (2, 2, 12, 20)
    inside = done.masks[:, :, None].bool().expand(-1, -1, 4, -1, -1)
    assert torch.equal(latents[:, 1:][~inside], latents[:, :1].expand(-1, 2, -1, -1, -1)[~inside])
    assert str(done.tables[1]).startswith("'a sunny road in the forest' -> 'a road in the city'")
