"""Training: the pieces do what they say, and a run that was stopped goes on bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import CLIPTokenizer

import pare
from roads.train import train_unet, train_vae, training_loop
from roads.train.export_model import adopt, export
from roads.train.scene_data import Data, standing
from roads.train.train_unet import (
    SAYABLE,
    UNetSettings,
    naming_loss,
    object_weight,
    snr_weight,
    unet_batch,
    what_is_said,
)
from roads.train.train_vae import VAESettings, crop_corner, kl_to_unit, vae_batch, vae_loss
from roads.train.training_loop import Average, Float32Attention, batch_random, learning_rate
from roads.world.render import render
from roads.world.scene import OBJECTS, training_scenes

ROADS = Path(pare.__file__).parent / "models" / "roads"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> Data:
    scenes = training_scenes(6)
    images = [render(scene) for scene in scenes]
    bits = [
        np.sum([p.masks[name] << k for k, name in enumerate(OBJECTS)], axis=0).astype(np.uint8)
        for p in images
    ]
    return Data(scenes, np.stack([p.pixels for p in images]), np.stack(bits))


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the run be interrupted in the middle of step number `step`."""
    add = training_loop.Log.add

    def interrupted(log: training_loop.Log, at: int, *rest: object, **values: float) -> None:
        if at == step:
            raise KeyboardInterrupt
        add(log, at, *rest, **values)  # type: ignore[arg-type]

    monkeypatch.setattr(training_loop.Log, "add", interrupted)


def resumed_equals_straight(
    run: Callable[[Path], object], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "straight")
    with monkeypatch.context() as patch:
        stop_at(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped")
    half = torch.load(tmp_path / "stopped" / file, weights_only=True)
    assert half["step"] == 1
    run(tmp_path / "stopped")
    straight = torch.load(tmp_path / "straight" / file, weights_only=True)
    stopped = torch.load(tmp_path / "stopped" / file, weights_only=True)
    assert straight["step"] == stopped["step"] == 2
    for kind in ("modules", "average"):
        for name, weights in straight[kind].items():
            for key, value in weights.items():
                assert torch.equal(value, stopped[kind][name][key]), (kind, name, key)
    moved = [
        not torch.equal(value, half["modules"][name][key])
        for name, weights in straight["modules"].items()
        for key, value in weights.items()
    ]
    assert sum(moved) > 0.9 * len(moved)


def test_vae_training_resumes_bit_for_bit(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = VAESettings(steps=2, batch=2, crop=32, save_every=1, dtype="float32", whole_from=1.0)
    resumed_equals_straight(
        lambda folder: train_vae.train_vae(data, folder, settings, CPU),
        "vae.pt",
        tmp_path,
        monkeypatch,
    )


def test_unet_training_resumes_bit_for_bit(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(train_unet.CONFIG, "block_out_channels", [16, 32, 32, 16])
    tokenizer = CLIPTokenizer.from_pretrained(ROADS / "tokenizer")
    settings = UNetSettings(steps=2, batch=2, save_every=1, sheet_every=0, dtype="float32")
    vae = train_vae.new_vae(0)

    def run(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        torch.save({"step": 0, "average": {"vae": vae.state_dict()}}, folder / "vae.pt")
        train_unet.train_unet(data, data, tokenizer, folder, settings, CPU)

    resumed_equals_straight(run, "unet.pt", tmp_path, monkeypatch)


def test_a_step_is_a_function_of_seed_and_number() -> None:
    (one, noise), (same, same_noise) = batch_random(0, 7), batch_random(0, 7)
    assert one.random() == same.random()
    assert torch.equal(torch.randn(3, generator=noise), torch.randn(3, generator=same_noise))
    assert batch_random(0, 8)[0].random() != batch_random(1, 7)[0].random()


def test_learning_rate_rises_and_falls_to_zero() -> None:
    rates = [learning_rate(step, 100, 2.0, 10) for step in range(101)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == pytest.approx(2.0, rel=0.03)
    assert rates[50] == pytest.approx(1.0)
    assert rates[100] == 0
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_average_remembers_little_at_first_and_long_later() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(0.0)
        average = Average({"layer": layer}, decay=0.9)
        layer.weight.fill_(1.0)
    average.update({"layer": layer}, step=0)  # decay 1/10
    assert average.weights["layer"]["weight"].item() == pytest.approx(0.9)
    with torch.no_grad():
        layer.weight.fill_(0.0)
    average.update({"layer": layer}, step=10_000)  # decay 0.9
    assert average.weights["layer"]["weight"].item() == pytest.approx(0.81)


def test_attention_is_in_float32_within_bfloat16() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn((2, 8, n, 8), generator=generator).bfloat16() for n in (16, 77, 77))
    exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    with torch.autocast("cpu", torch.bfloat16), Float32Attention():
        attended = F.scaled_dot_product_attention(q, k, v)
    assert torch.equal(attended, exact.bfloat16())
    assert not torch.equal(attended, F.scaled_dot_product_attention(q, k, v))


def test_snr_weight() -> None:
    snr = torch.tensor([1000.0, 5.0, 2.0, 1.0, 0.005], dtype=torch.float64)
    weight = snr_weight(snr / (1 + snr), low=1.0, high=5.0)
    expected = torch.tensor([0.005, 1.0, 1.0, 1.0, 200.0], dtype=torch.float64)
    assert torch.allclose(weight, expected)


def test_objects_weigh_more_at_first_and_the_same_at_last() -> None:
    settings = UNetSettings(steps=100, objects=6.0)
    cover = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1)
    assert object_weight(cover, settings, 0).flatten().tolist() == [1, 4, 7]
    assert object_weight(cover, settings, 50).flatten().tolist() == [1, 2.5, 4]
    assert object_weight(cover, settings, 100).flatten().tolist() == [1, 1, 1]


def test_where_things_stand_does_not_say_whether_they_do(data: Data, tmp_path: Path) -> None:
    bare = [scene.replace(house=False, clouds=False, orb=False) for scene in data.scenes]
    bare = [scene.without("car").without("streetlights") for scene in bare]
    covers = standing(data, tmp_path)
    (tmp_path / "other").mkdir()
    same = standing(Data(bare, data.pixels, data.objects), tmp_path / "other")
    assert covers.shape == (6, 16, 16)
    assert (covers == same).all()
    shown = (data.objects > 0).reshape(6, 16, 8, 16, 8).any(axis=(2, 4))
    assert 0.1 < (covers > 0).mean() < 0.9
    assert (covers[shown] > 0).mean() > 0.97  # some pixels are hidden by what would stand before


def test_what_is_said_is_what_is_read() -> None:
    (row,) = what_is_said([["a dark road", "a road in town with a red car and no clouds"]])
    said = [
        {name: options[n] for n, (name, options) in zip(line, SAYABLE.items(), strict=True)}
        for line in row.tolist()
    ]
    nothing = dict.fromkeys(SAYABLE, "")
    assert said[0] == {**nothing, "weather": "night"}
    assert said[1] == {**nothing, "place": "city", "car": "red", "clouds": False}


def test_naming_loss_reads_the_end_of_the_caption_alone() -> None:
    tokens = torch.tensor([[8, 1, 2, 9, 9, 9]])
    said = torch.zeros((1, 7), dtype=torch.long)
    hidden = torch.zeros((1, 6, 128))
    unknown = naming_loss(hidden, tokens, said)
    options = [len(values) for values in SAYABLE.values()]
    assert unknown == pytest.approx(np.mean(np.log(options)), rel=1e-5)
    hidden[:, :3] = torch.randn((3, 128), generator=torch.Generator().manual_seed(0))
    assert naming_loss(hidden, tokens, said) == unknown
    hidden.requires_grad_()
    for _ in range(20):  # vectors that descend come to say it, and the read-out stays as it is
        (slope,) = torch.autograd.grad(naming_loss(hidden, tokens, said), hidden)
        hidden = (hidden - 20 * slope).detach().requires_grad_()
    assert naming_loss(hidden, tokens, said) < 0.1 * unknown
    assert naming_loss(hidden, tokens, said + 1) > unknown


def test_unet_batch_is_noised_latents_with_some_captions_dropped() -> None:
    latents = torch.arange(10.0).view(10, 1, 1, 1).expand(10, 4, 16, 16)
    tokens = torch.arange(1, 11).view(10, 1, 1).expand(10, 3, 77)
    alpha_bar = torch.linspace(0.99, 0.01, 1000)
    settings = UNetSettings(batch=200)
    covers = torch.full((10, 16, 16), 51, dtype=torch.uint8)
    said = torch.arange(1, 11, dtype=torch.int8).view(10, 1, 1).expand(10, 3, 7)
    empty = torch.zeros(77).long()
    batch = unet_batch(latents, covers, tokens, said, empty, alpha_bar, settings, 0)
    assert torch.equal(batch.said[:, 0], batch.tokens[:, 0])  # a dropped caption says nothing
    assert torch.allclose(batch.cover, torch.tensor(0.2))
    x0 = batch.x_t - (1 - batch.alpha_bar).sqrt().view(-1, 1, 1, 1) * batch.eps
    x0 = (x0 / batch.alpha_bar.sqrt().view(-1, 1, 1, 1)).mean(dim=(1, 2, 3))
    dropped = batch.tokens[:, 0] == 0
    assert torch.allclose(x0[~dropped] + 1, batch.tokens[~dropped, 0].float(), atol=1e-3)
    assert 0.03 < dropped.float().mean() < 0.2
    # One timestep in each of 200 equal parts of the schedule.
    assert torch.equal(batch.t // 5, torch.arange(200))


def test_vae_crops_are_the_images(data: Data) -> None:
    image, weight, noise = vae_batch(data, seed=0, step=3, count=8, size=32)
    assert image.shape == (8, 3, 32, 32)
    assert noise.shape == (8, 4, 4, 4)
    assert set(weight.unique().tolist()) == {1.0, 4.0}
    pixels = ((image + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    for crop in pixels:
        windows = np.lib.stride_tricks.sliding_window_view(data.pixels, (32, 32), axis=(1, 2))
        assert (windows == np.moveaxis(crop, -1, 0)).all(axis=(-3, -2, -1)).any()


def test_crops_lie_within_the_image_and_often_around_objects(data: Data) -> None:
    objects = np.zeros((128, 128), np.uint8)
    objects[10:14, 100:104] = 1
    chooser = np.random.default_rng(0)
    corners = [crop_corner(objects, 32, chooser) for _ in range(300)]
    assert all(0 <= top <= 96 and 0 <= left <= 96 for top, left in corners)
    caught = [top < 12 < top + 32 and left < 102 < left + 32 for top, left in corners]
    assert 0.45 < np.mean(caught) < 0.75
    assert crop_corner(objects, 128, chooser) == (0, 0)


def test_vae_loss_weighs_objects() -> None:
    image, output = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    output[..., 0, 0] = 1
    plain, heavy = torch.ones(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    heavy[..., 0, 0] = 4
    assert vae_loss(output, image, plain)["l1"] == pytest.approx(1 / 64)
    assert vae_loss(output, image, heavy)["l1"] == pytest.approx(4 / 67)
    assert all(v == 0 for v in vae_loss(image, image, heavy).values())


def test_kl_of_a_unit_gaussian_is_zero() -> None:
    zero = torch.zeros(2, 4, 2, 2)
    assert kl_to_unit(zero, zero) == 0
    assert kl_to_unit(zero + 2, zero) == pytest.approx(2.0)


def test_a_model_folder_becomes_a_training_and_a_model_folder_again(tmp_path: Path) -> None:
    adopt(ROADS, tmp_path / "run")
    checkpoint = torch.load(tmp_path / "run" / "unet.pt", weights_only=True)
    assert checkpoint["step"] == 0
    export(tmp_path / "run", tmp_path / "out")
    for name in (
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    ):
        shipped, again = load_file(ROADS / name), load_file(tmp_path / "out" / name)
        assert shipped.keys() == again.keys()
        assert all(torch.equal(value, again[key]) for key, value in shipped.items())
    for name in ("unet/config.json", "vae/config.json", "tokenizer/vocab.json"):
        assert (ROADS / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
