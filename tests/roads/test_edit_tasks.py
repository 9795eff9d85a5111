"""The benchmark's tasks: what they promise about their ground truth."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from pare.errors import SettingError
from roads.benchmark.edit_tasks import CLEARLY, Split, Task, tasks, visible_pixels
from roads.world.scene import HELD_OUT_SEEDS, OBJECTS, draw_layout

SPLITS: tuple[Split, ...] = ("development", "held-out")


@pytest.fixture(scope="module", params=SPLITS)
def all_tasks(request: pytest.FixtureRequest) -> tuple[Task, ...]:
    return tasks(request.param)


def test_each_split_asks_56_questions_of_six_kinds(all_tasks: tuple[Task, ...]) -> None:
    kinds = Counter(task.kind for task in all_tasks)
    expected = {"weather": 12, "place": 12, "add": 8, "remove": 8, "recolour": 8, "clouds": 8}
    assert kinds == expected
    assert len({task.name for task in all_tasks}) == 56


def test_one_attribute_changes_and_the_layout_stays(all_tasks: tuple[Task, ...]) -> None:
    for task in all_tasks:
        before, after = dataclasses.asdict(task.source), dataclasses.asdict(task.target)
        assert [name for name in before if before[name] != after[name]] == [task.attribute]


def test_no_task_is_a_held_out_combination(all_tasks: tuple[Task, ...]) -> None:
    assert not any(task.source.held_out or task.target.held_out for task in all_tasks)


def test_what_is_added_or_removed_can_be_seen(all_tasks: tuple[Task, ...]) -> None:
    for task in all_tasks:
        if task.attribute in OBJECTS:
            there = [s for s in (task.source, task.target) if s.has(task.attribute)]
            assert there
            assert all(visible_pixels(scene, task.attribute) >= CLEARLY for scene in there)


def test_the_brush_covers_what_the_edit_touches(all_tasks: tuple[Task, ...]) -> None:
    for task in all_tasks:
        assert task.touched.any()
        assert not (task.touched & ~task.brushed).any()
        assert task.untouched.any() == (task.kind not in ("weather", "place"))
        assert not (task.touched & task.untouched).any()


def test_prompts_name_the_change_and_nothing_hidden(all_tasks: tuple[Task, ...]) -> None:
    words = {"orb": ("sun", "moon"), "car": ("car",)}
    for task in all_tasks:
        assert task.source_prompt != task.target_prompt
        for hidden in task.hidden:
            named = words.get(hidden, (hidden,))
            both = f"{task.source_prompt} {task.target_prompt}".split()
            assert not set(named) & set(both)
        assert task.attribute not in task.kept()
        assert not task.hidden & set(task.kept())


def test_the_splits_share_no_layout_and_no_training_seed() -> None:
    layouts = [{task.source.layout for task in tasks(split)} for split in SPLITS]
    assert not layouts[0] & layouts[1]
    assert all(len(found) == 56 for found in layouts)
    # Every layout of the benchmark comes from a seed that no training draws.
    beyond = {draw_layout(HELD_OUT_SEEDS + 600_000 + k) for k in range(400)}
    assert layouts[0] <= beyond


def test_tasks_are_the_same_at_every_call() -> None:
    again = tasks.__wrapped__("development")
    for one, other in zip(tasks("development"), again, strict=True):
        assert one == other
        assert np.array_equal(one.target_pixels, other.target_pixels)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(SettingError, match="development or held-out"):
        tasks("test")
