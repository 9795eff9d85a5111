"""What the judge finds in an edited image is said, for the built-in model alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from pare.cli.main import main
from pare.pipeline import Pipeline
from roads.world.render import render
from roads.world.scene import HELD_OUT_SEEDS, draw_scene
from tests.fake_pipeline import FakePipeline


def pipeline_of(model: str) -> FakePipeline:
    return FakePipeline(source=SimpleNamespace(describe=lambda: {"name": model}))


@pytest.mark.parametrize("model", ["roads", "another"])
def test_img2img(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda *_, **__: pipeline_of(model))
    monkeypatch.chdir(tmp_path)
    scene = draw_scene(HELD_OUT_SEEDS + 10).replace(weather="sunny", car="red")
    Image.fromarray(render(scene).pixels).save("photo.png")
    given = ["img2img", "photo.png", "a road with a red car", "--size", "128x128"]

    assert main(given) == 0
    captured = capsys.readouterr()
    assert captured.out == "img2img-0.png\n"
    assert ("img2img-0.png: judge: " in captured.err) is (model == "roads")
    # The fake paints a negative: the car is lost.
    assert ("not there, though the prompt names it: red car" in captured.err) is (model == "roads")

    assert main([*given, "--json", "--force"]) == 0
    (image,) = json.loads(capsys.readouterr().out)["images"]
    assert ("judge" in image) is (model == "roads")
    if model == "roads":
        assert image["judge"]["missing"] == ["red car"]
        assert image["judge"]["sentence"].startswith("judge: ")
