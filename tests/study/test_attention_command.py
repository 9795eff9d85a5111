"""`pare attention`, on the built-in model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pare.attention import Site
from pare.cli.main import main
from pare.errors import SettingError
from pare.study.record.attention_maps import find_sites
from pare.study.record.attention_sheet import MOST_MAPS, tiles
from pare.study.record.image_grid import GAP
from tests.conftest import ROOT

PROMPT = "a snowy road with a red car"
QUICK = ["--steps", "1", "--seed", "3"]


def sites() -> list[Site]:
    names = ["down_blocks.0.attentions.0", "down_blocks.1.attentions.0", "mid_block.attentions.0"]
    return [
        Site("mid", 0, 0, "cross", 1, f"{name}.transformer_blocks.0.{kind}")
        for name in names
        for kind in ("attn1", "attn2")
    ]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (["*"], 6),
        (["unet.down_blocks.1.attentions.0"], 2),
        (["down_blocks.*"], 4),
        (["mid_block", "unet.mid_block.attentions.0"], 2),
        (["unet.*.attn2"], 3),
        (["unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1"], 1),
    ],
)
def test_layers_by_name(wanted: list[str], found: int) -> None:
    assert len(find_sites(sites(), wanted)) == found


@pytest.mark.parametrize("name", ["down_block.1", "unet.down_blocks.1.resnets.0", "vae", "", "*["])
def test_a_wrong_layer_gets_the_nearest(name: str) -> None:
    with pytest.raises(
        SettingError, match=r"no attention layer of the UNet is called .*; did you mean"
    ):
        find_sites(sites(), [name])


def test_a_page_has_an_end() -> None:
    with pytest.raises(SettingError, match=rf"{MOST_MAPS + 1} x 1 maps do not fit on a page"):
        tiles([], ["word"] * (MOST_MAPS + 1), (8, 8))


def test_a_page_its_report_and_its_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    looks = ["--word", "red car", "--word", "<padding>", "--pixel", "0.5,0.9", "--components"]
    assert main(["attention", PROMPT, *QUICK, *looks, "--out", "page.png", "--json"]) == 0
    said = capsys.readouterr()
    assert "the attention maps take 0.4 MB of memory" in said.err
    result = json.loads(said.out)
    words = {row["of"]: row for row in result["attention"][0]}
    assert list(words) == ["red car", "<padding>", "pixel 0.5,0.9"]
    for row in words.values():
        assert row["group"] == "all"
        assert 0 <= row["lowest"] <= row["mean"] <= row["highest"]
        assert all(0 < part < 1 for part in row["hottest"])
    # Bicubic enlargement keeps a mean but for the edges.
    assert words["pixel 0.5,0.9"]["mean"] == pytest.approx(1, abs=0.05)

    # The image on the page is the one that is made when nobody looks.
    assert main(["generate", PROMPT, *QUICK, "--out", "image.png"]) == 0
    image = np.asarray(Image.open("image.png"))
    with Image.open("page.png") as page:
        top = next(
            top
            for top in range(page.height - 128)
            if np.array_equal(np.asarray(page.crop((GAP, top, GAP + 128, top + 128))), image)
        )
        assert top < 100
    assert main(["rerun", "page.png", "--check"]) == 0


@pytest.mark.parametrize(
    ("given", "count"),
    [
        (["--per", "layer", "--at", "up_blocks.*", "--word", "car"], 9),
        (["--per", "step", "--steps", "2", "--scheduler", "ddim"], 12),
        (["--per", "head", "--at", "mid_block", "--word", "car", "--pixel", "1,1"], 16),
        (["--branch", "uncond", "--negative", "rainy night"], 2),
    ],
)
def test_maps_for_each(
    given: list[str], count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.png"
    assert main(["attention", PROMPT, *QUICK, *given, "--out", str(out), "--json"]) == 0
    (rows,) = json.loads(capsys.readouterr().out)["attention"]
    assert len({(row["of"], row["group"]) for row in rows}) == len(rows) == count


def test_the_page_s_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "attention.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    made: dict[str, Any] = {}
    exec(code.replace("steps=10", "steps=2"), made)
    assert Image.open("car.png").size == (128, 128)
    assert made["whole"].shape == (128, 128)
    assert list(made["by_step"])[:2] == ["step 0", "step 1"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--word", "boat"], "'boat' is not in the prompt"),
        (["--word", ""], "'' is not in the prompt"),
        (["--word", "road#2"], "expected 1 to 1"),
        (["--pixel", "1.5,0"], "--pixel is '1.5,0'; expected X,Y from 0,0"),
        (["--pixel", "nan,nan"], "--pixel is 'nan,nan'"),
        (["--pixel", "0.5"], "--pixel is '0.5'"),
        (["--at", "up_blocks.9"], "no attention layer of the UNet is called 'up_blocks.9'"),
        (["--branch", "uncond"], "'' has no words to show maps of"),
        (["--branch", "uncond", "--guidance", "1"], "is 1: there is no uncond branch"),
        (["--steps", "0"], "steps is 0"),
    ],
)
def test_what_cannot_be(
    given: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["attention", PROMPT, *QUICK, *given, "--out", str(tmp_path / "page.png")]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())
