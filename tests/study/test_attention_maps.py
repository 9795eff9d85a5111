"""Attention maps: they are what attention did, put together as the papers have it."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pare.attention
from pare.attention import AttentionCall, BatchRow, Control, ControlledStep, Site
from pare.config import UNetConfig
from pare.errors import PromptError, SettingError
from pare.pipeline import Pipeline
from pare.study.record.attention_maps import (
    Observers,
    PixelRecorder,
    WordMap,
    WordRecorder,
    cell_at,
    grid_at,
    grouped,
    heat_map,
    layer_name,
    normalised,
    select,
    stage_map,
)
from pare.study.record.self_attention import (
    SelfAttentionRecorder,
    components_image,
    explained,
    principal_components,
)
from pare.text.words import Word, Words, read
from pare.unet import UNet
from tests.random_models import TINY_UNET, normal, random_state

KEYS = 9
ROWS = (BatchRow(0, "uncond"), BatchRow(1, "uncond"), BatchRow(0, "cond"), BatchRow(1, "cond"))


def words(*counts: tuple[str, int]) -> Words:
    """A text whose words have so many tokens each."""
    listed, place = [], 1
    for text, count in counts:
        listed.append(Word(text, tuple(range(place, place + count))))
        place += count
    names = ["<start>"] + ["token"] * (place - 1) + ["<end>"]
    names += ["<padding>"] * (KEYS - len(names))
    return Words(
        " ".join(t for t, _ in counts), tuple(listed), tuple(range(place + 1)), tuple(names)
    )


TEXTS = (words(("a", 1), ("red", 1), ("car", 2)), words(("road", 1)))
NEGATIVES = (words(), words(("rain", 1)))


@pytest.fixture(scope="module")
def unet() -> UNet:
    with torch.device("meta"):
        unet = UNet(
            UNetConfig.read(TINY_UNET | {"attention_head_dim": [2, 4]}, "the test's config")
        )
    unet.load_state_dict(random_state(unet, torch.Generator().manual_seed(0)), assign=True)
    return unet.eval().requires_grad_(False)


class Everything(Control):
    """Keeps all weights, whole: (site, step, row) -> (heads, queries, keys)."""

    def __init__(self) -> None:
        self.seen: dict[tuple[Site, int, int], Tensor] = {}

    def observes(self, site: Site, step: int) -> bool:
        return True

    def observe(self, call: AttentionCall, row: int, heads: slice, weights: Tensor) -> None:
        key = call.site, call.step, row
        before = [self.seen[key]] if key in self.seen else []
        self.seen[key] = torch.cat([*before, weights])


def run(unet: UNet, control: Control | None, steps: int = 3) -> Tensor:
    """A few steps on two images of an odd size under guidance; the answers, stacked."""
    x_t, text = normal(4, 4, 9, 6), normal(4, KEYS, 12, seed=2)
    return torch.stack(
        [
            unet(x_t, 900 - 300 * step, text, control and ControlledStep(control, step, ROWS))
            for step in range(steps)
        ]
    )


@pytest.fixture(scope="module")
def seen(unet: UNet) -> dict[tuple[Site, int, int], Tensor]:
    everything = Everything()
    run(unet, everything)
    return everything.seen


def recorded(unet: UNet, **options: Any) -> WordRecorder:
    recorder = WordRecorder({"cond": TEXTS, "uncond": NEGATIVES}, **options)
    run(unet, recorder)
    return recorder


# --- recording ------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 2**24])
@pytest.mark.parametrize("each_head", [False, True])
def test_what_is_kept_is_what_attention_did(
    unet: UNet,
    seen: dict[tuple[Site, int, int], Tensor],
    each_head: bool,
    at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Column by column, against the weights kept whole; also when heads come singly."""
    monkeypatch.setattr(pare.attention, "OBSERVED_AT_ONCE", at_once)
    maps = recorded(unet, each_head=each_head).maps()
    cross = [key for key in seen if key[0].kind == "cross"]
    assert len(maps) == len(cross)
    for one in maps:
        assert one.step is not None
        whole = seen[one.site, one.step, ROWS.index(BatchRow(one.prompt, one.branch))]
        whole = whole if each_head else whole.mean(0, keepdim=True)
        assert one.weights.shape[2:] == grid_at((9, 6), one.site.stage)
        own = len(one.words.ids)
        for column in range(own):
            expected = whole[..., column].view(-1, *one.weights.shape[2:])
            torch.testing.assert_close(one.weights[:, column], expected)
        expected = whole[..., own:].sum(-1).view(-1, *one.weights.shape[2:])
        torch.testing.assert_close(one.of("<padding>"), expected)
        torch.testing.assert_close(one.weights.sum(1), torch.ones_like(one.weights[:, 0]))


def test_a_mean_over_steps_is_the_mean_of_the_steps(unet: UNet) -> None:
    apart = recorded(unet).maps()
    for mean in recorded(unet, each_step=False).maps():
        same = [
            one.weights
            for one in apart
            if (one.site, one.prompt, one.branch) == (mean.site, mean.prompt, mean.branch)
        ]
        assert mean.step is None
        assert len(same) == 3
        torch.testing.assert_close(mean.weights, torch.stack(same).mean(0))


def test_watching_everything_changes_no_bit(unet: UNet) -> None:
    watched = Observers(
        [
            WordRecorder({"cond": TEXTS, "uncond": NEGATIVES}, each_head=True),
            PixelRecorder([(0.5, 0.5)], ROWS, each_head=True),
            SelfAttentionRecorder(0),
        ]
    )
    assert torch.equal(run(unet, watched), run(unet, None))


def test_watching_words_on_roads_costs_under_30_percent() -> None:
    """Both sides of the guidance, every layer, head and step; processor time, in turns."""
    pipe = Pipeline.from_pretrained("roads", device="cpu")
    prompt = "a snowy road in the forest with a red car and a house"
    texts = {"cond": [read(pipe.tokenizer, prompt)], "uncond": [read(pipe.tokenizer, "")]}
    prompts, timesteps = pipe.encode_prompts(prompt), pipe.scheduler.timesteps(4)
    x_t = pipe.noise([0]).draw(pipe.latent_shape())

    def seconds(control: Control | None) -> float:
        start = time.process_time()
        pipe.denoise(x_t, timesteps, prompts, guidance=7.5, control=control)
        return time.process_time() - start

    seconds(None)
    pairs = [(seconds(None), seconds(WordRecorder(texts, each_head=True))) for _ in range(5)]
    plain, watched = (min(times) for times in zip(*pairs, strict=True))
    assert watched < 1.3 * plain


def test_only_what_is_asked_for_is_kept(unet: UNet) -> None:
    recorder = WordRecorder({"cond": TEXTS[:1]}, sites=lambda site: site.block == "up", steps=[1])
    run(unet, recorder)
    assert {(m.site.block, m.step, m.prompt, m.branch) for m in recorder.maps()} == {
        ("up", 1, 0, "cond")
    }


@pytest.mark.parametrize("each_step", [False, True])
@pytest.mark.parametrize("each_head", [False, True])
@pytest.mark.parametrize("steps", [None, [1], [7]])
def test_memory_is_announced_to_the_byte(
    unet: UNet, each_step: bool, each_head: bool, steps: list[int] | None
) -> None:
    recorder = recorded(unet, each_step=each_step, each_head=each_head, steps=steps)
    kept = sum(total.nbytes for total in recorder.sums.values())
    assert recorder.bytes_needed(unet.sites(), (9, 6), steps=3) == kept


def test_nothing_is_kept_for_gradients(unet: UNet) -> None:
    recorder = WordRecorder({"cond": TEXTS})
    x_t = normal(4, 4, 8, 6).requires_grad_()
    unet(x_t, 300, normal(4, KEYS, 12, seed=2), ControlledStep(recorder, 0, ROWS))
    assert not any(one.weights.requires_grad for one in recorder.maps())


# --- words ----------------------------------------------------------------------------------


def by_hand() -> WordMap:
    """One head, one pixel beside another: start, "car" of two tokens, end, padding."""
    site = Site("up", 0, 0, "cross", 1, "up_blocks.1.attentions.0.transformer_blocks.0.attn2")
    left, right = [0.5, 0.125, 0.125, 0.125, 0.125], [0.25, 0.0, 0.5, 0.0, 0.25]
    weights = torch.tensor([left, right]).T.reshape(1, 5, 1, 2)
    text = words(("red", 1), ("car", 1))
    return WordMap(site=site, step=0, prompt=0, branch="cond", words=text, weights=weights)


def test_a_word_s_weight_by_hand() -> None:
    one = by_hand()
    assert one.of("car").tolist() == [[[0.125, 0.5]]]
    assert one.of("red car").tolist() == [[[0.25, 0.5]]]  # the sum over its tokens
    assert one.of("car", "words").tolist() == [[[0.5, 1.0]]]
    assert one.of("<start>").tolist() == [[[0.5, 0.25]]]
    assert one.of("<end>").tolist() == [[[0.125, 0.0]]]
    assert one.of("<padding>").tolist() == [[[0.125, 0.25]]]
    with pytest.raises(PromptError, match="'boat' is not in the prompt 'red car'"):
        one.of("boat")


def test_weights_among_words_add_up_to_one(unet: UNet) -> None:
    for one in select(recorded(unet).maps()):
        total = sum(one.of(word, "words") for word in ("a", "red", "car"))
        torch.testing.assert_close(total, torch.ones_like(one.weights[:, 0]))


# --- putting together -----------------------------------------------------------------------


def test_heat_map_is_daam_s_equation(unet: UNet) -> None:
    """Upscale every head of every layer at every step by itself, then add them up.

    A layer's sum is clamped to its own range, which bicubic interpolation leaves at edges.
    """
    maps = select(recorded(unet, each_head=True).maps())
    total, count = torch.zeros(18, 12), 0
    for one in maps:
        upscaled = torch.zeros(18, 12)
        for head in one.of("car").unbind(0):
            upscaled += F.interpolate(head[None, None], (18, 12), mode="bicubic")[0, 0]
            count += 1
        total += upscaled.clamp(0, float(one.of("car").sum(0).max()))
    assert count == sum(one.site.heads for one in maps)
    torch.testing.assert_close(heat_map(maps, "car", (18, 12)), total / count)


def test_stage_map_averages_one_resolution(unet: UNet) -> None:
    maps = select(recorded(unet).maps())
    level = [one for one in maps if one.site.stage == 0 and one.site.block != "mid"]
    expected = torch.stack([one.of("red")[0] for one in level]).mean(0)
    torch.testing.assert_close(stage_map(maps, "red", 0), expected)
    up = [one.of("red")[0] for one in level if one.site.block == "up"]
    torch.testing.assert_close(stage_map(maps, "red", 0, blocks=["up"]), torch.stack(up).mean(0))


@pytest.mark.parametrize(
    "put", [lambda: heat_map([], "car", (4, 4)), lambda: stage_map([], "car", 7)]
)
def test_no_maps_are_said(put: Any) -> None:
    with pytest.raises(SettingError, match="no attention map was recorded; record more layers"):
        put()


def test_groups(unet: UNet) -> None:
    maps = select(recorded(unet, each_head=True).maps())
    layers = {site for site in unet.sites() if site.kind == "cross"}
    assert len(grouped(maps, "layer")) == len(layers)
    assert list(grouped(maps, "step")) == ["step 0", "step 1", "step 2"]
    # Each in its own words: the mean over the groups is the whole, where they are equally many.
    whole = heat_map(maps, "car", (9, 6))
    steps = [heat_map(group, "car", (9, 6)) for group in grouped(maps, "step").values()]
    torch.testing.assert_close(torch.stack(steps).mean(0), whole)
    heads = grouped(maps, "head")
    assert len(heads) == sum(site.heads for site in layers)
    for name, group in heads.items():
        assert {f"{layer_name(one.site)}, head {one.head}" for one in group} == {name}
        assert all(one.weights.shape[0] == 1 for one in group)


def test_what_was_not_kept_apart_cannot_be_grouped(unet: UNet) -> None:
    maps = recorded(unet, each_step=False).maps()
    with pytest.raises(SettingError, match="means over the steps; record with each_step=True"):
        grouped(maps, "step")
    with pytest.raises(SettingError, match="means over the heads; record with each_head=True"):
        grouped(maps, "head")


def test_normalised() -> None:
    heat = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    assert normalised(heat).tolist() == [[0.0, 0.25], [0.5, 1.0]]
    assert normalised(torch.full((2, 2), 0.3)).tolist() == [[0.0, 0.0], [0.0, 0.0]]


# --- self-attention -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "cell"), [((0.0, 0.0), 0), ((0.99, 0.0), 3), ((1.0, 1.0), 11), ((0.3, 0.4), 5)]
)
def test_the_cell_under_a_point(point: tuple[float, float], cell: int) -> None:
    assert cell_at(point, (3, 4)) == cell


@pytest.mark.parametrize("points", [[], [(0.5, 1.01)], [(-0.1, 0.5)], [(math.nan, 0.5)]])
def test_points_outside_the_image_are_refused(points: list[tuple[float, float]]) -> None:
    with pytest.raises(SettingError):
        PixelRecorder(points)


@pytest.mark.parametrize("at_once", [1, 2**24])
def test_the_self_attention_of_a_pixel(
    unet: UNet,
    seen: dict[tuple[Site, int, int], Tensor],
    at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pare.attention, "OBSERVED_AT_ONCE", at_once)
    recorder = PixelRecorder([(0.1, 0.2), (0.9, 0.9)], ROWS[2:], each_head=True, each_step=False)
    matrix = SelfAttentionRecorder(0, prompt=1)
    run(unet, Observers([recorder, matrix]))
    assert {(one.branch, one.prompt) for one in recorder.maps()} == {("cond", 0), ("cond", 1)}
    kept = sum(total.nbytes for total in recorder.sums.values())
    assert recorder.bytes_needed(unet.sites(), (9, 6), 3) == kept
    for one in recorder.maps():
        grid = grid_at((9, 6), one.site.stage)
        row = ROWS.index(BatchRow(one.prompt, one.branch))
        whole = torch.stack([seen[one.site, step, row] for step in range(3)]).mean(0)
        for k, point in enumerate(recorder.points):
            expected = whole[:, cell_at(point, grid)].view(-1, *grid)
            # In multiples of what a pixel gets on average.
            torch.testing.assert_close(one.of(point), expected * math.prod(grid))
            torch.testing.assert_close(one.weights[:, k], expected)
    mean = torch.stack(
        [p for (s, _, r), p in seen.items() if s.kind == "self" and s.stage == 0 and r == 3]
    ).mean((0, 1))
    assert matrix.grid == (9, 6)
    torch.testing.assert_close(matrix.matrix(), mean)
    assert matrix.matrix().nbytes == matrix.bytes_needed(unet.sites(), (9, 6), 3)


def test_a_stage_without_self_attention_is_an_error() -> None:
    with pytest.raises(SettingError, match="no attention map"):
        SelfAttentionRecorder(5).matrix()


def test_principal_components_are_those_of_the_covariance() -> None:
    """Against the eigenvectors, which is another way to the same."""
    features = normal(50, 7) * torch.arange(7, 0, -1) + 3
    scores = principal_components(features, 3)
    covariance = torch.cov(features.double().T)
    values, vectors = torch.linalg.eigh(covariance)
    centred = features.double() - features.double().mean(0)
    for k in range(3):
        expected = centred @ vectors[:, -1 - k]
        expected = expected * expected[expected.abs().argmax()].sign()
        torch.testing.assert_close(scores[:, k].double(), expected, atol=1e-4, rtol=1e-4)
    fractions = (values / values.sum()).flip(0)[:3]
    torch.testing.assert_close(torch.tensor(explained(features)).double(), fractions)


def test_two_kinds_of_pixels_have_two_colours() -> None:
    kinds = torch.tensor([0, 0, 1, 1, 0, 1])
    features = torch.eye(2)[kinds] @ normal(2, 8) + 0.01 * normal(6, 8, seed=3)
    scores = principal_components(features)
    assert (scores[kinds == 0, 0] > 0).all() != (scores[kinds == 1, 0] > 0).all()
    image = components_image(scores, (2, 3), (30, 20))
    assert image.size == (30, 20)
    red = [image.getpixel((10 * (k % 3) + 5, 10 * (k // 3) + 5))[0] for k in range(6)]  # type: ignore[index]
    assert len({value > 127 for value, kind in zip(red, kinds, strict=True) if kind == 0}) == 1
    assert (red[0] > 127) != (red[2] > 127)


def test_more_components_than_there_are_is_refused() -> None:
    with pytest.raises(SettingError, match="4 components are asked of 9 pixels with 3 features"):
        principal_components(torch.zeros(9, 3), 4)
    # A flat image has none, and that is no error.
    assert not principal_components(torch.ones(9, 3)).any()


def test_a_resized_weight_stays_a_weight() -> None:
    """Bicubic interpolation of one cell with weight 1 would overshoot it."""
    site = Site("up", 0, 0, "cross", 1, "up_blocks.1.attentions.0.transformer_blocks.0.attn2")
    weights = torch.zeros(1, 4, 4, 4)
    weights[0, 1, 1:3, 1:3] = 1  # start, "car", end, padding
    weights[0, 0] = 1 - weights[0, 1]
    one = WordMap(site=site, step=0, prompt=0, branch="cond", words=words(("car", 1)),
                  weights=weights)  # fmt: skip
    assert F.interpolate(one.of("car")[None], (32, 32), mode="bicubic").max() > 1.05
    heat = heat_map([one], "car", (32, 32))
    assert heat.min() == 0
    assert heat.max() == 1


def test_a_self_attention_matrix_for_each_step(unet: UNet) -> None:
    apart = SelfAttentionRecorder(0, each_step=True, steps=lambda step: step != 1)
    mean = SelfAttentionRecorder(0, steps=lambda step: step != 1)
    run(unet, Observers([apart, mean]))
    assert list(apart.sums) == [0, 2]
    both = torch.stack([apart.matrix(0), apart.matrix(2)])
    torch.testing.assert_close(both.mean(0), mean.matrix())
    torch.testing.assert_close(both.sum(-1), torch.ones(2, 54))
    assert both.nbytes == apart.bytes_needed(unet.sites(), (9, 6), 3)
    with pytest.raises(SettingError, match="no attention map"):
        apart.matrix(1)
