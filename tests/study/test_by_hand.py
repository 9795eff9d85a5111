"""The model's pieces by hand are the model's; curves show the numbers that they were given."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pare.attention import Attention
from pare.errors import MissingExtraError
from pare.pipeline import Pipeline
from pare.study.record import plots
from pare.study.record.by_hand import attention_steps, group_norm, noised, resnet_steps, silu
from pare.text.words import read
from pare.unet.resnet import ResnetBlock
from tests.random_models import normal, random_state
from tests.tiny_model import write_tiny_model

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    return Pipeline.from_pretrained(folder, device="cpu")


def blocks(pipe: Pipeline, kind: type[Any]) -> list[Any]:
    return [module for module in pipe.unet.modules() if isinstance(module, kind)]


def test_group_norm_and_silu_by_hand() -> None:
    norm = torch.nn.GroupNorm(4, 12, eps=1e-3)
    norm.load_state_dict(random_state(norm, torch.Generator().manual_seed(0)))
    x = 3 + 5 * normal(2, 12, 6, 4)
    torch.testing.assert_close(group_norm(x, norm), norm(x))
    torch.testing.assert_close(silu(x), F.silu(x))


def test_every_resnet_block_by_hand(pipe: Pipeline) -> None:
    time = pipe.unet.embed_time(300, normal(2, 4, 8, 8))
    for block in blocks(pipe, ResnetBlock):
        x = normal(2, block.norm1.num_channels, 6, 4)
        steps = resnet_steps(block, x, time)
        assert torch.equal(steps["x + hidden"], block(x, time))
        assert list(steps)[:4] == ["x", "norm1", "SiLU", "conv1"]
        without = resnet_steps(block, x)
        assert "+ time" not in without
        assert torch.equal(without["x + hidden"], block(x))


def test_every_attention_layer_by_hand(pipe: Pipeline) -> None:
    for attention in blocks(pipe, Attention):
        hidden = normal(2, 24, attention.to_q.in_features)
        crosses = attention.site.kind == "cross"
        context = normal(2, 7, attention.to_k.in_features, seed=3) if crosses else None
        steps = attention_steps(attention, hidden, context)
        torch.testing.assert_close(
            steps["output"], attention(hidden, context, grid=(6, 4)), rtol=1e-4, atol=1e-5
        )
        keys = 7 if crosses else 24
        assert steps["weights"].shape == (2, attention.heads, 24, keys)


def test_noise_on_a_latent(pipe: Pipeline) -> None:
    x0 = normal(1, 4, 8, 8)
    made = noised(pipe, x0, [0, 500, 999], seed=4)
    level = pipe.scheduler.schedule.level(500)
    noise = pipe.noise([4]).draw((4, 8, 8))
    expected = level.signal_rate * x0 + level.noise_rate * noise
    torch.testing.assert_close(made[1:2], expected)
    assert (made[0] - x0).abs().mean() < 0.1 < (made[2] - x0).abs().mean()


def test_figures(pipe: Pipeline, tmp_path: Path) -> None:
    under = pipe.with_scheduler("ddim")
    figure = plots.schedule_figure(under.scheduler, steps=5)
    left, right = figure.axes
    levels = under.scheduler.timesteps(5).levels
    assert np.asarray(left.lines[2].get_xdata()).tolist() == [level.t for level in levels[:-1]]
    assert np.asarray(right.lines[0].get_ydata()).tolist() == [level.sigma for level in levels]
    words = read(pipe.tokenizer, "the road")
    one, other = (pipe.encode_prompts(text).cond[0] for text in ("the road", "the car"))
    image = plots.embedding_figure(one, words.names, most=6)
    assert image.axes[0].images[0].get_size() == (6, one.shape[1])
    apart = plots.difference_figure(one, other, words.names).axes[0]
    patches: list[Any] = list(apart.patches)
    bars = [bar.get_height() for bar in patches]
    assert bars[:2] == [0, 0]  # start, "the": the encoder looks backwards alone
    assert all(bar > 0 for bar in bars[2:])
    lines = plots.curves_figure({"a": [1, 2]}, "i", "loss").axes[0].lines
    assert np.asarray(lines[0].get_ydata()).tolist() == [1, 2]
    for k, made in enumerate((figure, image)):
        made.savefig(tmp_path / f"{k}.png")
        assert (tmp_path / f"{k}.png").stat().st_size > 5_000


def test_without_matplotlib_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"run `pip install 'pare\[study\]'`"):
        plots.new_figure(1, 1)
