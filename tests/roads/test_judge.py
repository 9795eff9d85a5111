"""The judge: its words, its network, and how often the shipped weights are right."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pare.errors import ImageError, ModelError, SettingError
from pare.loading.modules import load_model
from pare.loading.resolve import resolve_model
from pare.vae import AutoencoderKL
from roads.judge.judge import (
    ATTRIBUTES,
    FOLDER,
    Judge,
    JudgeConfig,
    JudgeNetwork,
    Logits,
    Verdict,
    decide,
    load_judge,
    presence,
)
from roads.judge.judge_data import UNKNOWN, degrade, four, round_trips, shifted, truth, variants
from roads.judge.judge_report import (
    Judgement,
    accuracy,
    calibration_error,
    judgements,
    regions,
    verdicts_of,
)
from roads.judge.train_judge import (
    Batch,
    JudgeSettings,
    best_temperature,
    judge_batch,
    judge_loss,
    train_judge,
    write_judge,
)
from roads.train.scene_data import Data, render_chunk
from roads.train.train_vae import pixels_to_tensor
from roads.world.scene import HELD_OUT_SEEDS, OBJECTS, Scene, draw_scene


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_judge()


@pytest.fixture(scope="module")
def unseen() -> Data:
    scenes = [draw_scene(HELD_OUT_SEEDS + 10_000 + i) for i in range(64)]
    return Data(scenes, *render_chunk(scenes))


@pytest.fixture(scope="module")
def verdicts(judge: Judge, unseen: Data) -> list[Verdict]:
    return verdicts_of(judge, unseen)


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return load_model("roads", device="cpu", dtype="float32").vae


def empty_verdict(**cover: np.ndarray) -> Verdict:
    maps = {name: cover.get(name, np.zeros((16, 16))) for name in OBJECTS}
    return Verdict("sunny", "city", "none", False, False, False, False, {}, maps)


# --- the shipped weights ------------------------------------------------------------------


def share_right(verdicts: list[Verdict], images: Data) -> float:
    return float(np.mean([answer.right for answer in judgements(verdicts, images)]))


def test_held_out_renders_are_judged_right(verdicts: list[Verdict], unseen: Data) -> None:
    assert share_right(verdicts, unseen) >= 0.98


def test_held_out_round_trips_are_judged_right(
    judge: Judge, unseen: Data, vae: AutoencoderKL
) -> None:
    few = Data(unseen.scenes[:20], unseen.pixels[:20], unseen.objects[:20])
    trips = round_trips(vae, few.pixels, ("mode", "sample"), "bfloat16")
    few = dataclasses.replace(few, pixels=trips)
    assert share_right(verdicts_of(judge, few), few) >= 0.98


def test_degraded_renders_are_judged_right(judge: Judge, unseen: Data) -> None:
    copies = [degrade(p, np.random.default_rng(k)) for k, p in enumerate(unseen.pixels)]
    copied = dataclasses.replace(unseen, pixels=np.stack(copies))
    assert share_right(verdicts_of(judge, copied), copied) >= 0.98


def test_an_object_is_found_where_it_is_and_nowhere_else(
    verdicts: list[Verdict], unseen: Data
) -> None:
    right = []
    for verdict, scene in zip(verdicts[:16], unseen.scenes[:16], strict=True):
        for name in OBJECTS:
            for region, there in regions(scene, name):
                right.append((presence(verdict, name, region) > 0.5) == there)
    assert len(right) > 70
    assert np.mean(right) >= 0.96


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_a_scene_with_one_attribute_changed_does_not_agree(
    verdicts: list[Verdict], unseen: Data, attribute: str
) -> None:
    caught = []
    for verdict, scene, hidden in zip(verdicts, unseen.scenes, unseen.unseen(), strict=True):
        if attribute not in hidden:
            agrees = verdict.agrees(mutated(scene, attribute), hidden)
            caught.append(not agrees[attribute])
            assert list(agrees) == [name for name in ATTRIBUTES if name not in hidden]
    assert np.mean(caught) >= 0.95


def mutated(scene: Scene, attribute: str) -> Scene:
    other = {"weather": ("sunny", "night"), "place": ("city", "desert"), "car": ("none", "red")}
    value = getattr(scene, attribute)
    if attribute in other:
        first, second = other[attribute]
        return scene.replace(**{attribute: second if value == first else first})
    return scene.replace(**{attribute: not value})


def test_the_judge_says_the_same_again_and_of_every_image_by_itself(
    judge: Judge, unseen: Data
) -> None:
    image = pixels_to_tensor(unseen.pixels[:5])
    together, again = judge(image), judge(image)
    alone = [judge(image[k : k + 1])[0] for k in range(5)]
    for a, b, c in zip(together, again, alone, strict=True):
        assert a.probability == b.probability
        assert a.probability == pytest.approx(c.probability, abs=1e-4)
        for name in OBJECTS:
            np.testing.assert_allclose(a.cover[name], c.cover[name], atol=1e-4)


def test_pil_images_of_any_size_are_judged_like_tensors(judge: Judge, unseen: Data) -> None:
    image = Image.fromarray(unseen.pixels[0])
    large = image.resize((300, 200), Image.Resampling.BICUBIC)
    first, second = judge([image, large])
    tensor = judge(pixels_to_tensor(unseen.pixels[:1]))[0]
    assert first.probability == pytest.approx(tensor.probability, abs=1e-4)
    hidden = unseen.unseen()[0]
    assert all(first.agrees(unseen.scenes[0], hidden).values())
    assert all(second.agrees(unseen.scenes[0], hidden).values())


def test_a_judge_that_is_not_there_and_images_that_are_none_are_refused(
    judge: Judge, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        load_judge(tmp_path)
    with pytest.raises(ImageError, match=r"\(3, 128, 128\)"):
        judge(torch.zeros(3, 128, 128))
    assert judge([]) == []


def test_the_judge_lies_beside_the_model_and_does_not_disturb_it() -> None:
    assert resolve_model("roads").path == FOLDER.parent
    files = [path for path in FOLDER.parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 32_000_000


# --- verdicts and regions -----------------------------------------------------------------


def test_a_verdict_takes_the_likeliest_and_says_how_sure_it_is() -> None:
    cover = torch.full((1, 5, 16, 16), -5.0)
    cover[0, OBJECTS.index("car"), 3, 4] = np.log(4)  # 0.8
    cover[0, OBJECTS.index("house")] = -np.log(9)  # 0.1
    colour = torch.tensor([[0.0, np.log(3), -50.0, -50.0]])  # blue at 0.75
    weather = torch.tensor([[0.0, 0.0, 0.0, np.log(7)]])
    (verdict,) = decide(Logits(weather, weather.flip(1), colour, cover))
    assert (verdict.weather, verdict.place, verdict.car) == ("night", "forest", "blue")
    assert verdict.has("car")
    assert not verdict.has("house")
    assert verdict.probability["weather"] == pytest.approx(0.7)
    assert verdict.probability["car"] == pytest.approx(0.8 * 0.75)
    assert verdict.probability["house"] == pytest.approx(0.9)
    everywhere = np.ones((128, 128), bool)
    assert presence(verdict, "car", everywhere) == pytest.approx(0.8)
    assert presence(verdict, "house", everywhere) == pytest.approx(0.1)


def test_presence_looks_at_the_cells_of_the_region_alone() -> None:
    cover = np.zeros((16, 16))
    cover[3, 4], cover[10, 2] = 0.9, 0.6
    verdict = empty_verdict(car=cover)
    region = np.zeros((128, 128), bool)
    region[24:32, 32:33] = True  # an eighth of the cell (3, 4)
    assert presence(verdict, "car", region) == 0.9
    region[80:88, 16:24] = True
    region[24:32, 32:33] = False
    assert presence(verdict, "car", region) == 0.6
    region[:] = False
    region[24, 32], region[24:26, 40] = True, True  # a speck: the cell with most of it, (3, 5)
    assert presence(verdict, "car", region) == 0.0


def test_presence_refuses_what_it_cannot_answer() -> None:
    verdict, region = empty_verdict(), np.zeros((128, 128), bool)
    with pytest.raises(SettingError, match="empty"):
        presence(verdict, "car", region)
    with pytest.raises(SettingError, match="'dog'"):
        presence(verdict, "dog", ~region)
    with pytest.raises(SettingError, match=r"\(64, 64\)"):
        presence(verdict, "car", np.ones((64, 64), bool))


# --- truth and data -----------------------------------------------------------------------


def test_the_truth_is_what_can_be_seen(unseen: Data) -> None:
    hidden = 0
    for scene, objects, names in zip(unseen.scenes, unseen.objects, unseen.unseen(), strict=True):
        seen = truth(scene, objects)
        for k, name in enumerate(OBJECTS):
            expected = 0 if not scene.has(name) else UNKNOWN if name in names else 1
            assert seen.present[k] == expected
            counts = ((objects >> k) & 1).reshape(16, 8, 16, 8).sum(axis=(1, 3))
            assert (seen.cover[k][counts == 0] == 0).all()
            assert (seen.cover[k][(counts > 0) & (counts < 6)] == UNKNOWN).all()
            assert (seen.cover[k][counts >= 6] == (1 if expected == 1 else UNKNOWN)).all()
        hidden += len(names)
        assert (seen.colour == UNKNOWN) == (seen.present[0] != 1)
    assert hidden > 0


def test_unknown_labels_pull_at_nothing() -> None:
    network = JudgeNetwork(JudgeConfig((8, 8, 8, 8))).eval()
    image = torch.zeros(2, 3, 128, 128)
    unknown = torch.full((2,), UNKNOWN)
    batch = Batch(
        image,
        torch.zeros(2, dtype=torch.long),
        torch.zeros(2, dtype=torch.long),
        unknown,
        torch.full((2, 5), UNKNOWN),
        torch.full((2, 5, 16, 16), UNKNOWN),
    )
    terms = judge_loss(network(image), batch)
    assert terms["colour"] == terms["present"] == terms["cover"] == 0
    terms = judge_loss(network(image), dataclasses.replace(batch, present=torch.ones(2, 5)))
    assert terms["present"] > 1


def test_variants_hold_counterfactuals_and_combinations_that_the_generator_never_saw() -> None:
    scene, changed, toggled, held_out = four(500_000)
    assert held_out.held_out
    assert {s.layout for s in (scene, changed, toggled, held_out)} == {scene.layout}
    fields = {f.name for f in dataclasses.fields(scene)}
    for other in (changed, toggled):
        assert sum(getattr(scene, f) != getattr(other, f) for f in fields) == 1
    assert variants(500_000, 6) == [*four(500_000), *four(500_001)[:2]]


def test_degraded_copies_are_close_but_not_equal(unseen: Data) -> None:
    for seed, pixels in enumerate(unseen.pixels[:8]):
        copy = degrade(pixels, np.random.default_rng(seed), odds=1.0)
        difference = np.abs(copy.astype(float) - pixels).mean()
        assert 1 < difference < 30
        assert (degrade(pixels, np.random.default_rng(seed), odds=0.0) == pixels).all()


def test_an_image_and_its_mask_move_together() -> None:
    image = np.arange(128 * 128).reshape(128, 128).astype(np.uint8)
    moved = shifted(image, 2, -3)
    assert (moved[2:, :-3] == image[:-2, 3:]).all()


# --- training -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pools() -> dict[str, Data]:
    scenes = [draw_scene(i) for i in range(8)]
    few = Data(scenes, *render_chunk(scenes))
    return {"renders": few, "variants": few, "round trips": few}


def test_a_resumed_training_is_the_uninterrupted_one(
    pools: dict[str, Data], tmp_path: Path
) -> None:
    settings = JudgeSettings(steps=3, batch=4, dtype="float32", save_every=1)
    cpu = torch.device("cpu")
    whole = train_judge(pools, tmp_path / "whole", settings, cpu).state_dict()
    train_judge(pools, tmp_path / "parts", settings, cpu)
    checkpoint = tmp_path / "parts" / "judge.pt"
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["step"] == 3
    assert [run["first_step"] for run in saved["runs"]] == [0]

    checkpoint.unlink()
    interrupt_after(2, pools, tmp_path / "parts", settings)
    assert torch.load(checkpoint, weights_only=True)["step"] == 2
    resumed = train_judge(pools, tmp_path / "parts", settings, cpu).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def interrupt_after(
    steps: int, pools: dict[str, Data], folder: Path, settings: JudgeSettings
) -> None:
    """Train, and have the images fail at step number `steps`."""

    class Gone(Exception):
        pass

    class Scenes(list[Scene]):
        asked = 0

        def __getitem__(self, index):  # type: ignore[no-untyped-def]
            Scenes.asked += 1
            if Scenes.asked > steps * settings.batch:
                raise Gone
            return super().__getitem__(index)

    failing = {
        name: dataclasses.replace(pool, scenes=Scenes(pool.scenes)) for name, pool in pools.items()
    }
    with pytest.raises(Gone):
        train_judge(failing, folder, settings, torch.device("cpu"))


def test_a_written_judge_is_the_one_that_is_read(tmp_path: Path, unseen: Data) -> None:
    config = JudgeConfig((8, 8, 8, 8), {"weather": 2.0, "car": 0.5})
    network = JudgeNetwork(config).half().float().eval()
    write_judge(tmp_path, network, config)
    read = load_judge(tmp_path)
    assert read.config == config
    image = pixels_to_tensor(unseen.pixels[:2])
    with torch.no_grad():
        expected = decide(network(image).calibrated(config))
    assert read(image)[1].probability == expected[1].probability


def test_a_batch_is_a_function_of_seed_and_step(pools: dict[str, Data]) -> None:
    settings = JudgeSettings(batch=4)
    first, again = judge_batch(pools, settings, 7), judge_batch(pools, settings, 7)
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, judge_batch(pools, settings, 8).image)


# --- the report's arithmetic --------------------------------------------------------------


def test_the_temperature_undoes_a_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn((4000, 3), generator=generator)
    target = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)
    assert best_temperature(3 * logits, target) == pytest.approx(3, rel=0.1)
    assert best_temperature(logits, target) == pytest.approx(1, rel=0.1)


def test_the_calibration_error_is_the_gap_between_sureness_and_success() -> None:
    sure = [Judgement("house", k, "True", "True" if k < 7 else "False", 0.9) for k in range(10)]
    assert accuracy(sure, "house") == 0.7
    assert calibration_error(sure) == pytest.approx(0.2)
    unsure = [Judgement("house", k, "True", "True" if k < 6 else "False", 0.6) for k in range(10)]
    assert calibration_error([*sure, *unsure]) == pytest.approx(0.1)
