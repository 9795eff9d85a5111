"""The command, and a model and an image for it, in a folder that is thrown away."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from pare.pipeline import Pipeline
from tests.hostile.command import Command
from tests.tiny_model import change_json, write_tiny_model


@pytest.fixture(scope="session")
def good_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model, never changed."""
    folder = write_tiny_model(tmp_path_factory.mktemp("good") / "model")
    # Without what pare would say that it leaves out.
    change_json(folder / "model_index.json", safety_checker=..., feature_extractor=...)
    return folder


@pytest.fixture(scope="session")
def good_pipeline(good_model: Path) -> Pipeline:
    """The same, loaded once.  This also imports what is slow to import."""
    return Pipeline.from_pretrained(good_model, device="cpu")


@pytest.fixture
def pare(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    good_pipeline: Pipeline,
) -> Iterator[Command]:
    """The command in an empty folder, with `out` for what it makes and `temporary` for the rest."""
    (tmp_path / "out").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", os.fspath(tmp_path / "temporary"))
    monkeypatch.setenv("TMPDIR", os.fspath(tmp_path / "temporary"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models here are too small for more
    yield Command(tmp_path, capfd)
    torch.set_num_threads(threads)
    assert not list((tmp_path / "temporary").iterdir())


@pytest.fixture
def model(pare: Command, good_model: Path) -> Path:
    """A copy to damage, as `model` in the current folder."""
    return Path(shutil.copytree(good_model, pare.folder / "model"))


@pytest.fixture
def loaded(pare: Command, good_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command with its model loaded already, for what is not about models."""
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda *_, **__: good_pipeline)
    Image.linear_gradient("L").resize((16, 16)).convert("RGB").save("good.png")
    mask = Image.new("L", (16, 16))
    mask.paste(255, (4, 4, 12, 12))
    mask.save("mask.png")
    return pare
