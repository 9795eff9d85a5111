"""The Python of docs/text.md and docs/guide.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image
from torch import Tensor

from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("page", ["text", "guide"])
def test_the_python_of_the_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", content, flags=re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(code, f"{page}.md", "exec"), names)
    if page == "guide":
        assert Image.open("warm.png").size == (128, 128)
    else:
        image = names["image"]
        assert isinstance(image, Tensor)
        assert image.shape == (1, 3, 128, 128)


@pytest.mark.parametrize("page", ["text", "guide"])
def test_its_images_are_there(page: str) -> None:
    content = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    images = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", content)
    assert images
    for name in images:
        assert (ROOT / "docs" / name).stat().st_size < 500_000
