"""Guidance by a loss against the published loop on diffusers; losses, and lines that say them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import techniques.loss_guidance.loss_guided_loop
from pare.errors import LossError, ModelError, PareError, SettingError
from pare.pipeline import Pipeline
from pare.schedulers import SCHEDULERS, build_scheduler
from techniques.loss_guidance import GuidedStep, LossWarning, check_loss, guide, losses
from techniques.loss_guidance.clip_loss import clip_loss
from techniques.loss_guidance.loss_language import METHODS, USUAL, read_loss
from tests.random_models import normal
from tests.references.reference_guide import reference_guide
from tests.techniques.blending import SCHEDULER_CONFIG, TinyModel, distance, embedding, random_image
from tests.techniques.mutants import mutant
from tests.tiny_model import TEXT, write_tokenizer

BOUND = 1e-5
PROMPT = "a campfire"
NOISE = normal(1, 4, 8, 8, seed=3)


@pytest.fixture(scope="module")
def model() -> TinyModel:
    return TinyModel.build().exact()


def ours(
    pipe: Pipeline,
    noise: Tensor = NOISE,
    *,
    steps: int = 8,
    module: ModuleType = techniques.loss_guidance.loss_guided_loop,
    **given: Any,
) -> tuple[Tensor, list[GuidedStep]]:
    timesteps = pipe.scheduler.timesteps(steps)
    looks: list[GuidedStep] = []
    settings: dict[str, Any] = {"scale": 100.0, "every": 3, "guidance": 5.0}
    latents = module.guide_latents(
        pipe,
        noise * timesteps.initial_scale,
        timesteps,
        pipe.encode_prompts([PROMPT] * len(noise)),
        losses.blue,
        watch=lambda _, look: looks.append(look),
        **(settings | given),
    )
    return latents, looks


def theirs(model: TinyModel, *, steps: int = 8, **given: Any) -> tuple[Tensor, list[float]]:
    scheduler = diffusers.LMSDiscreteScheduler.from_config(SCHEDULER_CONFIG)
    texts = embedding(""), embedding(PROMPT)
    settings: dict[str, Any] = {"scale": 100.0, "every": 3, "guidance": 5.0}
    return reference_guide(
        model.their_unet, model.their_vae, scheduler, texts, NOISE, losses.blue,
        steps=steps, **(settings | given),
    )  # fmt: skip


# --- parity --------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("through_unet", [False, True])
def test_the_loop_is_the_published_one(
    model: TinyModel, through_unet: bool, prediction_type: str
) -> None:
    pipe = model.pipe("lms", prediction_type=prediction_type)
    mine, looks = ours(pipe, through_unet=through_unet)
    velocity = prediction_type == "v_prediction"
    reference, seen = theirs(model, through_unet=through_unet, velocity=velocity)
    assert distance(mine, reference) < BOUND
    assert [look.loss for look in looks] == pytest.approx(seen, rel=1e-5)
    unguided, _ = ours(pipe, scale=0.0)
    assert distance(unguided, reference) > 0.01  # it does something
    other, _ = ours(pipe, through_unet=not through_unet)
    assert distance(other, reference) > 1e-3


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(1 - level.alpha_bar) * gradient", "level.sigma**2 * gradient"),
        ("(1 - level.alpha_bar) * gradient", "level.noise_rate * gradient"),
        ("x_t.detach() - move", "x_t.detach() + move"),
        (
            "            prediction = interpret(eps, x_t, level, \"epsilon\")\n",
            "",
        ),
        ("i % every == 0", "(i + 1) % every == 0"),
        (" / 2 + 0.5\n\n\ndef one", "\n\n\ndef one"),
        ("x0 / vae.config.scaling_factor", "x0"),
    ],
    ids=["sigma in x_t", "noise rate", "uphill", "x0 stays", "other steps", "range", "unscaled"],
)  # fmt: skip
def test_mistakes_are_noticed(model: TinyModel, tmp_path: Path, old: str, new: str) -> None:
    wrong = mutant(techniques.loss_guidance.loss_guided_loop, old, new, tmp_path)
    mine, _ = ours(model.pipe("lms"), module=wrong)
    assert not distance(mine, theirs(model)[0]) < 10 * BOUND


# --- what guidance promises ----------------------------------------------------------------


def test_a_loss_that_rises_is_said(model: TinyModel) -> None:
    options: dict[str, Any] = {"steps": 4, "every": 1, "height": 32, "width": 32}
    with pytest.warns(LossWarning, match=r"the loss did not fall: .* without guidance \(seed 1\)"):
        led = guide(model.pipe("lms"), PROMPT, losses.blue, [1], scale=-100, **options)
    assert led.unguided is not None
    assert led.losses[0] > led.unguided[0]
    report: Any = led.report()
    (told,) = report["guidance"]
    assert (told["loss"], told["unguided"]) == (led.losses[0], led.unguided[0])
    unasked = guide(
        model.pipe("lms"), PROMPT, losses.blue, [1], scale=-100, compare=False, **options
    )
    assert unasked.unguided is None
    assert unasked.losses == led.losses


SOLVERS = sorted(set(SCHEDULERS) - {"ddim-inverse"})


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scheduler", SOLVERS)
def test_the_loss_falls_under_every_scheduler(
    model: TinyModel, scheduler: str, prediction_type: str
) -> None:
    pipe = model.pipe(scheduler, prediction_type=prediction_type)
    # Steps as long as DPM2 ancestral's are in six turn a move of x_t round: where v is 0, a step
    # multiplies it by 1 - (sigma - sigma_down) sigma_middle / (1 + sigma_middle^2), below -1 here.
    steps = 16 if scheduler == "dpm2-ancestral" else 6
    options: dict[str, Any] = {"steps": steps, "every": 2, "height": 32, "width": 32}
    free = guide(pipe, PROMPT, losses.blue, [1], scale=0, **options)
    led = guide(pipe, PROMPT, losses.blue, [1], scale=300, **options)
    assert led.losses[0] < free.losses[0]
    assert led.unguided == free.losses
    assert free.unguided is None
    assert free.steps == [[]]
    assert [look.step for look in led.steps[0]][:3] == [0, 2, 4]


@pytest.mark.parametrize("scheduler", ["lms", "euler-ancestral"])
def test_without_a_scale_it_is_generate(model: TinyModel, scheduler: str) -> None:
    pipe = model.pipe(scheduler)
    led = guide(pipe, PROMPT, losses.blue, [4, 5], scale=0, steps=3, height=32, width=40, batch=2)
    plain = pipe.generate(PROMPT, [4, 5], steps=3, height=32, width=40, batch=2)
    assert torch.equal(pipe.decode(led.latents, sliced=True), plain.tensor)


def test_an_image_does_not_depend_on_its_batch_and_runs_repeat(model: TinyModel) -> None:
    pipe = model.pipe("lms")
    options: dict[str, Any] = {"scale": 200, "steps": 4, "every": 1, "height": 32, "width": 32}
    together = guide(pipe, PROMPT, losses.blue, [4, 5], batch=2, **options)
    alone = [guide(pipe, PROMPT, losses.blue, [seed], **options) for seed in (4, 5)]
    for k, one in enumerate(alone):
        assert distance(together.latents[k : k + 1], one.latents) < BOUND
        assert together.losses[k] == pytest.approx(one.losses[0], rel=1e-4)
    again = guide(pipe, PROMPT, losses.blue, [4, 5], batch=2, **options)
    assert torch.equal(again.latents, together.latents)
    assert again.steps == together.steps


def test_gradients_leave_nothing_behind(model: TinyModel) -> None:
    pipe = model.pipe("lms")
    latents, _ = ours(pipe, steps=2, every=1, through_unet=True)
    assert not latents.requires_grad
    assert torch.is_grad_enabled()
    for part in (pipe.unet, pipe.vae):
        assert all(p.grad is None and not p.requires_grad for p in part.parameters())


def test_half_precision_takes_its_gradients_in_float32(model: TinyModel) -> None:
    import copy

    components = dataclasses.replace(
        model.components,
        unet=copy.deepcopy(model.components.unet).to(torch.bfloat16),
        vae=copy.deepcopy(model.components.vae).to(torch.bfloat16),
    )
    pipe = type(model.pipe())(components, build_scheduler(SCHEDULER_CONFIG, "it", "lms"))
    seen: list[torch.dtype] = []

    def loss(image: Tensor) -> Tensor:
        seen.append(image.dtype)
        return losses.blue(image)

    led = guide(pipe, PROMPT, loss, [1], scale=200, steps=2, every=1, height=32, width=32)
    assert led.latents.isfinite().all()
    assert set(seen) == {torch.float32}


def test_a_level_without_signal_is_passed_over(model: TinyModel) -> None:
    config = SCHEDULER_CONFIG | {"prediction_type": "v_prediction"}
    config |= {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}
    config |= {"timestep_spacing": "trailing"}
    del config["skip_prk_steps"]
    solver = build_scheduler(config, "it", "ddim")
    pipe = type(model.pipe())(model.components, solver)
    assert math.isinf(solver.timesteps(4).levels[0].sigma)
    latents, looks = ours(pipe, steps=4, every=1)
    assert latents.isfinite().all()
    assert [look.step for look in looks] == [1, 2, 3]


# --- losses that are none ------------------------------------------------------------------


def rootless(image: Tensor) -> Tensor:
    return (image * 0).sqrt().mean()


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda image: 3.0, "the loss is a float; expected a tensor"),
        (lambda image: None, "the loss is a NoneType"),
        (lambda image: image, r"shape \(1, 3, 32, 32\); expected one number; take its .mean()"),
        (lambda image: image.mean() / 0, "the loss is inf"),
        (lambda image: image.mean() * torch.nan, "the loss is nan"),
        (lambda image: torch.tensor(1.0), "does not depend on the image"),
        (lambda image: image.detach().mean(), "does not depend on the image"),
        (lambda image: (image > 0.5).float().mean(), "does not depend on the image"),
        (rootless, "gradient at step 0 holds NaN"),
    ],
)
def test_a_loss_that_is_none_is_a_sentence(model: TinyModel, loss: Any, words: str) -> None:
    with pytest.raises(LossError, match=words):
        guide(model.pipe("lms"), PROMPT, loss, [1], steps=1, height=32, width=32)


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": math.nan},
        {"scale": 1e10},
        {"every": 0},
        {"every": 1.5},
        {"batch": 0},
        {"steps": 0},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(model: TinyModel, wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        guide(model.pipe("lms"), PROMPT, losses.blue, [1], **wrong)


# --- the ready-made ones -------------------------------------------------------------------


def flat(red: float, green: float, blue: float) -> Tensor:
    return torch.tensor([red, green, blue]).float().view(1, 3, 1, 1).expand(1, 3, 32, 32).clone()


def test_plain_losses_are_0_where_they_are_met() -> None:
    assert losses.blue(flat(0, 1, 0.9)).item() == 0
    assert losses.blue(flat(0, 1, 0.4)).item() == pytest.approx(0.5)
    assert losses.colour("#ff8000")(flat(1, 128 / 255, 0)).item() == pytest.approx(0, abs=1e-6)
    assert losses.colour("white")(flat(0, 0, 0)).item() == pytest.approx(1)
    assert losses.brightness(1)(flat(1, 1, 1)).item() == pytest.approx(0, abs=1e-6)
    assert losses.brightness(0.2126)(flat(1, 0, 0)).item() == pytest.approx(0, abs=1e-6)
    image = normal(1, 3, 8, 8).sigmoid()
    assert losses.symmetry(image).item() > 0.01
    assert losses.symmetry((image + image.flip(3)) / 2).item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(LossError, match="'sky' is no colour"):
        losses.colour("sky")
    with pytest.raises(SettingError, match="brightness is 2"):
        losses.brightness(2)


@pytest.mark.parametrize("statistic", ["gram", "moments"])
@pytest.mark.parametrize("features", [losses.vae_features, losses.unet_features])
def test_style_forgets_places_and_keeps_what_is_there(
    model: TinyModel, features: Any, statistic: Any
) -> None:
    pipe = model.pipe("lms")
    reference = random_image(32, 32)
    loss = losses.style(features(pipe), reference, statistic, factor=4)
    same = torch.tensor(list(reference.getdata())).view(32, 32, 3).permute(2, 0, 1)[None] / 255
    assert loss(same).item() < 1e-6
    other = same.flip(1).requires_grad_(True)  # blue is red
    value = loss(other)
    assert value.item() > 1e-3
    (slope,) = torch.autograd.grad(value, other)
    assert slope.abs().max() > 0
    if features is losses.unet_features:  # its noise lies elsewhere in another size
        return
    larger = losses.style(features(pipe), reference.resize((48, 40)), statistic, factor=4)
    assert larger(same).item() < value.item()


def test_statistics_are_their_formulas() -> None:
    x = normal(1, 3, 4, 5)
    flat = x[0].view(3, 20)
    assert torch.allclose(losses.gram(x), torch.einsum("ap,bp->ab", flat, flat) / 20, atol=1e-6)
    mean, deviation = losses.moments(x)
    assert torch.allclose(mean, flat.mean(1))
    assert torch.allclose(deviation, flat.std(1, correction=0), atol=1e-6)
    mixed = x.flatten(2)[:, :, torch.randperm(20, generator=torch.Generator().manual_seed(1))]
    assert torch.allclose(losses.gram(mixed.view_as(x)), losses.gram(x), atol=1e-6)
    with pytest.raises(LossError, match="gram or moments"):
        losses.style(lambda image: [image], Image.new("RGB", (8, 8)), "histogram")  # type: ignore[arg-type]


def test_a_classifier_is_a_loss(model: TinyModel) -> None:
    def classify(image: Tensor) -> Tensor:  # is it rather red, green or blue?
        return 10 * image.mean(dim=(2, 3))

    loss = losses.unlikely(classify, 2)
    sure, unsure = loss(flat(0, 0, 1)).item(), loss(flat(1, 1, 1)).item()
    assert unsure == pytest.approx(math.log(3), abs=1e-5)
    assert sure < 0.001
    options: dict[str, Any] = {"steps": 6, "every": 2, "height": 32, "width": 32}
    pipe = model.pipe("ddim")
    free = guide(pipe, PROMPT, loss, [1], scale=0, **options)
    led = guide(pipe, PROMPT, loss, [1], scale=5, **options)
    assert led.losses[0] < free.losses[0]


def test_the_judge_is_a_loss() -> None:
    from roads.judge.judge import load_judge
    from roads.judge.judge_loss import judge_loss
    from roads.world.render import render
    from roads.world.scene import HELD_OUT_SEEDS, draw_scene

    judge = load_judge()
    scene = dataclasses.replace(draw_scene(HELD_OUT_SEEDS + 7), weather="snowy")
    shown = torch.from_numpy(render(scene).pixels.copy()).permute(2, 0, 1)[None].float() / 255
    snowy, night = (judge_loss(judge, word) for word in ("snowy", "night"))
    assert snowy(shown).item() < math.log(2) < night(shown).item()
    seen = judge(2 * shown - 1)[0]
    assert snowy(shown).item() == pytest.approx(-math.log(seen.probability["weather"]), abs=1e-3)
    house, none = (judge_loss(judge, word)(shown).exp().item() for word in ("house", "no house"))
    assert 1 / house + 1 / none == pytest.approx(1, abs=1e-3)
    image = shown.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(night(image), image)
    assert slope.abs().max() > 0
    with pytest.raises(LossError, match="knows no 'dragon'"):
        judge_loss(judge, "dragon")
    with pytest.raises(LossError, match="did you mean 'red car'"):
        judge_loss(judge, "red cars")


# --- CLIP ----------------------------------------------------------------------------------


def write_clip(folder: Path) -> Path:
    """A whole CLIP, tiny and random."""
    from transformers.models.clip.configuration_clip import CLIPConfig
    from transformers.models.clip.modeling_clip import CLIPModel

    text = {key: TEXT[key] for key in TEXT if key not in ("architectures", "torch_dtype")}
    vision = {
        "hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 2,
        "num_hidden_layers": 2, "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


def test_clip_s_score_is_transformers_own(clip_folder: Path) -> None:
    from transformers.models.clip.modeling_clip import CLIPModel

    from pare.text.text_encoder import tokenize
    from pare.text.tokenizer import build_tokenizer, read_tokenizer

    text, image = "the snowy road", normal(1, 3, 32, 32).sigmoid()
    theirs = CLIPModel.from_pretrained(clip_folder).eval()
    tokenizer = build_tokenizer(read_tokenizer(clip_folder, 524), 524, 77)
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1)
        for values in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    with torch.no_grad():
        answer = theirs(input_ids=tokenize(tokenizer, [text]), pixel_values=(image - mean) / std)
    cosine = (answer.logits_per_image / theirs.logit_scale.exp()).item()
    loss = clip_loss(clip_folder, text)
    assert loss(image).item() == pytest.approx(1 - cosine, abs=1e-5)
    assert loss(torch.nn.functional.interpolate(image, (64, 48))).isfinite()
    check_loss(loss, 40, 24)


def test_what_is_no_clip_is_a_sentence(clip_folder: Path, tmp_path: Path) -> None:
    import json
    import shutil

    with pytest.raises(ModelError, match=r"has no config\.json"):
        clip_loss(tmp_path, "x")
    copy = tmp_path / "copy"
    shutil.copytree(clip_folder, copy)
    raw = json.loads((copy / "config.json").read_text())
    for change, error in (
        ({"model_type": "bert"}, "of the kind 'bert'"),
        ({"projection_dim": 7}, "does not fit its config.json"),
        ({"vision_config": {"hidden_size": "many"}}, "no CLIP"),
    ):
        (copy / "config.json").write_text(json.dumps(raw | change))
        with pytest.raises(PareError, match=error):
            clip_loss(copy, "x")


# --- lines ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "same"),
    [
        ("(image[:, 2] - 0.9).abs().mean()", losses.blue),
        (" blue", losses.blue),
        ("2 * blue + -symmetry / 4", lambda x: 2 * losses.blue(x) - losses.symmetry(x) / 4),
        ("colour('orange')", losses.colour("orange")),
        ("brightness(level=0.2) ** 2", lambda x: losses.brightness(0.2)(x) ** 2),
        (
            "image[..., :4, 1::2].std(dim=(2, 3)).sum()",
            lambda x: x[..., :4, 1::2].std((2, 3)).sum(),
        ),
        ("image.flip(-1).roll(2, dims=3).amax()", lambda x: x.flip(-1).roll(2, dims=3).amax()),
        ("(1 - image).clamp(0, 0.5).norm()", lambda x: (1 - x).clamp(0, 0.5).norm()),
    ],
)
def test_a_line_is_what_it_says(line: str, same: Any) -> None:
    image = normal(1, 3, 8, 8).sigmoid()
    assert read_loss(line)(image).item() == pytest.approx(same(image).item(), rel=1e-6)


@pytest.mark.parametrize(
    "line",
    [
        "", "image image", "__import__('os')", "().__class__", "image.__class__", "image.data",
        "image.grad", "image.backward()", "image.numpy()", "image.register_hook(blue)",
        "image.mean(out=image)", "image.mean.__self__", "[x for x in image]", "lambda: image",
        "image if 1 else 0", "image > 0", "not image", "image @ image", "f'{image}'", "open('x')",
        "colour(image)", "colour", "colour()", "blue(1)", "bleu", "image[None]", "image[True]",
        "image[0.5]", "image[image]", "image[9]", "image.mean(9)", "image.mean('x')", "'text'",
        "None", "True", "...", "image := 1", "(yield)", "await image", "image.mean(*[1])",
        "image.mean(**{})", "1 .real", "2 ** 99999 * image", "image.abs", "print(image)", "1j",
        "blue.mean", "image.clamp_(0)", "image; blue", "image\nblue", "=1", "\x00", "image" * 300,
        "(" * 300 + "image" + ")" * 300, "image" + "[0]" * 300,
        "image.repeat(9)", "image.to('cuda')", "image.new_zeros(99)", "image.expand(9)",
    ],
)  # fmt: skip
def test_what_is_no_arithmetic_is_refused(line: str) -> None:
    with pytest.raises(LossError) as caught:
        read_loss(line)(torch.full((1, 3, 8, 8), 0.5))
    assert len(str(caught.value)) < 600


def test_wrong_names_are_told_the_right_ones() -> None:
    with pytest.raises(LossError, match=r"names 'bleu'; expected one of image.*mean blue\?"):
        read_loss("bleu")
    with pytest.raises(LossError, match=r"calls .means; expected one of abs.*mean mean\?"):
        read_loss("image.means()")


ATOMS = st.sampled_from(["image", "blue", "0.5", "2", "symmetry", "colour('red')", "image[:, 0]"])


def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "**"]), inner)
    calls = st.tuples(inner, st.sampled_from([*METHODS, "__class__", "item"]))
    return pairs.map(lambda p: f"({p[0]} {p[1]} {p[2]})") | calls.map(lambda c: f"{c[0]}.{c[1]}()")


@given(st.recursive(ATOMS, larger, max_leaves=8) | st.text(max_size=40))
def test_any_line_is_a_loss_or_a_sentence(line: str) -> None:
    try:
        value = read_loss(line)(torch.full((1, 3, 4, 4), 0.5))
    except PareError:
        return
    assert isinstance(value, Tensor)


def test_every_usual_loss_is_one() -> None:
    told = {"brightness": "(0.5)", "colour": "('#102030')"}
    for name in USUAL:
        check_loss(read_loss(name + told.get(name, "")), 16, 24)
