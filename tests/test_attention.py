"""Attention under a control: observing changes no bit, editing changes the named rows alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pare.attention
from pare.attention import (
    Attention,
    AttentionCall,
    BatchRow,
    Control,
    ControlledStep,
    Site,
    attend,
    attention_weights,
    fused_attention,
    head_chunks,
    spelled_out_attention,
)
from pare.unet import UNet
from tests.random_models import TINY_UNET, normal, unet_pair

SITE = Site("mid", 0, 0, "cross", 2, "a.layer")
ROWS = (BatchRow(0, "uncond"), BatchRow(0, "cond"))
GRID = (2, 3)


@pytest.fixture(scope="module")
def unet() -> UNet:
    return unet_pair(TINY_UNET | {"attention_head_dim": [2, 4]})[0]


@dataclass
class Recorder(Control):
    """Sees everything."""

    calls: list[tuple[AttentionCall, int, slice, Tensor]] = field(default_factory=list)

    def observes(self, site: Site, step: int) -> bool:
        return True

    def observe(self, call: AttentionCall, row: int, heads: slice, weights: Tensor) -> None:
        self.calls.append((call, row, heads, weights.clone()))


@dataclass
class Editor(Control):
    """Replaces the weights of some rows at some sites."""

    rows: tuple[int, ...] = (1,)
    change: Callable[[Tensor], Tensor] = lambda weights: weights
    kinds: tuple[str, ...] = ("self", "cross")

    def edits(self, site: Site, step: int) -> bool:
        return site.kind in self.kinds

    def edit(self, call: AttentionCall, weights: Callable[[int], Tensor]) -> Mapping[int, Tensor]:
        return {row: self.change(weights(row)) for row in self.rows}


def run(unet: UNet, control: Control | None, step: int = 3) -> Tensor:
    x_t, text = normal(2, 4, 8, 6), normal(2, 7, 12, seed=2)
    return unet(x_t, 300, text, control and ControlledStep(control, step, ROWS))


def qkv(rows: int = 2, heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    query = normal(rows, heads, 6, 4)
    return query, normal(rows, heads, 7, 4, seed=2), normal(rows, heads, 7, 4, seed=3)


# --- looking ------------------------------------------------------------------------------


def test_an_image_that_is_watched_at_every_site_has_the_same_bits(unet: UNet) -> None:
    recorder = Recorder()
    assert torch.equal(run(unet, recorder), run(unet, None))
    seen = {call.site.name for call, *_ in recorder.calls}
    assert seen == {site.name for site in unet.sites()}


def test_what_a_control_is_told(unet: UNet) -> None:
    recorder = Recorder()
    run(unet, recorder, step=17)
    sites = {site.name: site for site in unet.sites()}
    for call, row, heads, weights in recorder.calls:
        assert call.site is sites[call.site.name]
        assert call.step == 17
        assert call.rows == ROWS
        assert row in (0, 1)
        # Level 0 works on 8 x 6 latents, level 1 on half of each side.
        scale = 2**call.site.stage
        assert (call.height, call.width) == (8 // scale, 6 // scale)
        keys = 7 if call.site.kind == "cross" else call.height * call.width
        count = len(range(*heads.indices(call.site.heads)))
        assert weights.shape == (count, call.height * call.width, keys)


def test_the_fused_and_the_spelled_out_path_agree() -> None:
    query, key, value = qkv()
    fused = fused_attention(query, key, value)
    torch.testing.assert_close(spelled_out_attention(query, key, value), fused)
    for row in range(2):
        weights = attention_weights(query[row], key[row])
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 6))
        torch.testing.assert_close(weights @ value[row], fused[row])


def test_attention_weights_by_hand() -> None:
    """One head of width 4, one query, two keys: scores 4 / sqrt(4) = 2 and 0."""
    query, key = torch.ones(1, 1, 4), torch.tensor([[[1.0] * 4, [0.0] * 4]])
    one = 1 / (1 + torch.tensor(-2.0).exp())
    expected = torch.stack([one, 1 - one]).view(1, 1, 2)
    torch.testing.assert_close(attention_weights(query, key), expected)


@pytest.mark.parametrize("at_once", [1, 42, 43, 100, 2**24])
def test_chunks_of_heads_join_up(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pare.attention, "OBSERVED_AT_ONCE", at_once)
    query, key, value = qkv(heads=5)
    recorder = Recorder()
    attend(query, key, value, SITE, GRID, ControlledStep(recorder, 0, ROWS))
    for row in range(2):
        chunks = [(heads, seen) for _, r, heads, seen in recorder.calls if r == row]
        joined = torch.cat([seen for _, seen in chunks])
        assert torch.equal(joined, attention_weights(query[row], key[row]))
        assert [h for heads, _ in chunks for h in range(heads.start, heads.stop)] == [0, 1, 2, 3, 4]
        # No chunk is larger than allowed, unless a single head is.
        assert all(seen.numel() <= max(at_once, 6 * 7) for _, seen in chunks)


def test_chunks_are_as_large_as_they_may_be() -> None:
    assert list(head_chunks(8, pare.attention.OBSERVED_AT_ONCE // 3)) == [
        slice(0, 3),
        slice(3, 6),
        slice(6, 8),
    ]
    assert list(head_chunks(2, 10 * pare.attention.OBSERVED_AT_ONCE)) == [slice(0, 1), slice(1, 2)]


def test_a_control_that_wants_nothing_is_not_called(unet: UNet) -> None:
    class Bored(Control):
        def observe(self, *_: object) -> None:
            raise AssertionError("not asked for")

        def edit(self, *_: object) -> Mapping[int, Tensor]:
            raise AssertionError("not asked for")

    assert torch.equal(run(unet, Bored()), run(unet, None))


def test_rows_that_a_control_does_not_observe_are_not_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @dataclass
    class OneSide(Recorder):
        def observes_row(self, row: BatchRow) -> bool:
            return row.branch == "cond"

    computed: list[int] = []

    def counting(query: Tensor, key: Tensor) -> Tensor:
        computed.append(1)
        return attention_weights(query, key)

    monkeypatch.setattr(pare.attention, "attention_weights", counting)
    recorder = OneSide()
    attend(*qkv(), SITE, GRID, ControlledStep(recorder, 0, ROWS))
    assert [row for _, row, *_ in recorder.calls] == [1]
    assert len(computed) == 1


# --- editing ------------------------------------------------------------------------------


def test_the_models_own_weights_put_back_change_only_rounding(unet: UNet) -> None:
    edited = run(unet, Editor(rows=(0, 1)))
    torch.testing.assert_close(edited, run(unet, None), rtol=1e-5, atol=1e-5)


def test_rows_that_are_not_named_keep_their_bits(unet: UNet) -> None:
    plain = run(unet, None)
    uniform = Editor(rows=(1,), change=lambda p: torch.full_like(p, 1 / p.shape[-1]))
    edited = run(unet, uniform)
    assert torch.equal(edited[0], plain[0])
    assert not torch.allclose(edited[1], plain[1], atol=1e-3)


def test_an_edit_of_nothing_keeps_every_bit(unet: UNet) -> None:
    assert torch.equal(run(unet, Editor(rows=())), run(unet, None))


def test_an_edit_is_what_the_values_are_weighed_with() -> None:
    """All weight on key 4: every query of that row gets value 4."""
    query, key, value = qkv()

    def only_key_4(weights: Tensor) -> Tensor:
        return F.one_hot(torch.tensor(4), 7).float().expand_as(weights)

    control = ControlledStep(Editor(rows=(1,), change=only_key_4), 0, ROWS)
    output = attend(query, key, value, SITE, GRID, control)
    assert torch.equal(output[1], value[1, :, 4:5].expand(2, 6, 4))
    assert torch.equal(output[0], F.scaled_dot_product_attention(query, key, value)[0])


def test_observing_and_editing_at_once_shows_the_unedited(unet: UNet) -> None:
    @dataclass
    class Both(Recorder, Editor):
        pass

    both = Both(rows=(1,), change=lambda p: p.flip(-1))
    alone = Recorder()
    query, key, value = qkv()
    attend(query, key, value, SITE, GRID, ControlledStep(alone, 0, ROWS))
    edited = attend(query, key, value, SITE, GRID, ControlledStep(both, 0, ROWS))
    assert all(torch.equal(a[3], b[3]) for a, b in zip(alone.calls, both.calls, strict=True))
    flipped = attention_weights(query[1], key[1]).flip(-1) @ value[1]
    assert torch.equal(edited[1], flipped)


def test_gradients_flow_through_an_edit(unet: UNet) -> None:
    """As for null-text and loss guidance: the gradient is the finite difference."""
    sharpen = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    query, key, value = (part.double() for part in qkv())

    def answer(power: Tensor) -> Tensor:
        editor = Editor(rows=(1,), change=lambda p: (p**power) / (p**power).sum(-1, keepdim=True))
        return attend(query, key, value, SITE, GRID, ControlledStep(editor, 0, ROWS))

    assert torch.autograd.gradcheck(answer, (sharpen,))
    (gradient,) = torch.autograd.grad(answer(sharpen)[1].square().sum(), sharpen)
    assert gradient != 0
    # Row 0 was not edited: nothing flows there.
    (nothing,) = torch.autograd.grad(answer(sharpen)[0].sum(), sharpen, allow_unused=True)
    assert nothing is None or nothing == 0


def test_gradients_reach_the_input_through_a_watched_unet(unet: UNet) -> None:
    text = normal(2, 7, 12, seed=2)
    gradients = []
    for control in (None, ControlledStep(Recorder(), 0, ROWS)):
        x_t = normal(2, 4, 8, 6).requires_grad_()
        unet(x_t, 300, text, control).square().sum().backward()
        assert x_t.grad is not None
        gradients.append(x_t.grad)
    assert gradients[0].abs().max() > 0
    assert torch.equal(gradients[0], gradients[1])


# --- runs beside each other ---------------------------------------------------------------


def test_two_threads_with_different_controls_do_not_meet(unet: UNet) -> None:
    """One UNet, two controls at a time: each run gives what it gives alone."""
    controls: list[Control] = [
        Editor(rows=(0,), change=lambda p: p.flip(-1)),
        Editor(rows=(1,), change=lambda p: torch.full_like(p, 1 / p.shape[-1])),
        Recorder(),
    ]
    alone = [run(unet, control) for control in controls]
    assert not torch.equal(alone[0], alone[1])
    barrier = threading.Barrier(len(controls))
    results: dict[int, list[Tensor]] = {}

    def work(number: int) -> None:
        barrier.wait()
        results[number] = [run(unet, controls[number]) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(controls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, expected in enumerate(alone):
        assert all(torch.equal(result, expected) for result in results[number])


# --- upcasting ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_upcast_attention_is_exact_up_to_its_last_rounding(dtype: torch.dtype) -> None:
    """Scores, softmax and sum in float32: the float64 answer, rounded once."""
    layer = Attention(16, 16, SITE.heads, upcast=True).requires_grad_(False)
    for index, parameter in enumerate(layer.parameters()):
        parameter.copy_(normal(*parameter.shape, seed=index) * 16**-0.5)
    layer.to_out[0].get_parameter("weight").copy_(torch.eye(16))
    layer.to_out[0].get_parameter("bias").zero_()
    layer.to(dtype)
    hidden = 3 * normal(2, 6, 16, dtype=dtype)

    q, k, v = (layer.split_heads(p(hidden)).double() for p in (layer.to_q, layer.to_k, layer.to_v))
    exact = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 6, 16)
    torch.testing.assert_close(
        layer(hidden, grid=GRID), exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6
    )


def test_half_precision_scores_do_not_overflow() -> None:
    """SD 2.1 makes products beyond float16's 65504; the fused kernel copes with them."""
    query = torch.full((1, 2, 64), 60.0, dtype=torch.float16)
    weights = attention_weights(query, query)
    assert weights.isfinite().all()
    torch.testing.assert_close(weights, torch.full((1, 2, 2), 0.5))
