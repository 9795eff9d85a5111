"""The report's page in a real browser: it draws itself, and everything on it can be used.

Needs Chromium (Debian's package `chromium`, or CHROMIUM=/path/to/it) and playwright, the extra
`browser`; skipped where one of them is missing.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pare.pipeline import Pipeline
from pare.study.record.html_report import Reported
from pare.text.words import read

pytestmark = pytest.mark.slow

PROMPT = 'a red car on a snowy road <b id="in">'
STEPS = 6
NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on an image of the built-in model."""
    pipe = Pipeline.from_pretrained("roads", device="cpu", scheduler="ddim")
    reported = Reported(pipe, [read(pipe.tokenizer, PROMPT)], steps=STEPS)
    with reported as watched:
        image = watched.generate(PROMPT, [7], steps=STEPS)
    path = tmp_path_factory.mktemp("report") / "road.html"
    reported.write(path, image[0], {"prompt": PROMPT, "seed": 7, "scheduler": "ddim"})
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright: extra `browser`")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium is installed (apt-get install chromium, or set CHROMIUM)")
    with playwright.sync_playwright() as driver:
        # In a container's root account Chromium has no sandbox of its own.
        arguments = ["--no-sandbox"] if sys.platform == "linux" and os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


class Opened:
    """The page in a window, with everything that it complained about or asked the network."""

    def __init__(self, browser: Any, path: Path, width: int, scheme: str) -> None:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, has_touch=width < 600
        )
        self.page = context.new_page()
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready]")

    def pixels(self, selector: str) -> str:
        """What a canvas shows."""
        return str(self.page.eval_on_selector(selector, "canvas => canvas.toDataURL()"))

    def attribute(self, selector: str, name: str) -> str | None:
        value = self.page.get_attribute(selector, name)
        return None if value is None else str(value)


@pytest.fixture(params=[(1280, "light"), (400, "dark")], ids=["wide", "narrow"])
def opened(request: pytest.FixtureRequest, browser: Any, html: Path) -> Iterator[Opened]:
    window = Opened(browser, html, *request.param)
    yield window
    assert window.complaints == []
    remote = [url for url in window.asked if not url.startswith(("file:", "blob:", "data:"))]
    assert remote == []
    window.page.context.close()


def test_it_draws_itself_and_fits_the_window(opened: Opened) -> None:
    page = opened.page
    assert page.inner_text("#prompt") == PROMPT
    assert page.query_selector("#in") is None  # the prompt is text
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.viewport_size["width"]
    assert page.inner_text("#where").startswith("finished")
    blank = "canvas => new Set(canvas.getContext('2d').getImageData(0, 0, 8, 8).data).size < 3"
    assert not page.eval_on_selector("#overlay", blank)
    assert len(page.query_selector_all("#u .tile")) == 47
    assert len(page.query_selector_all("#sites .site")) == 16


def test_the_slider_moves_everything(opened: Opened) -> None:
    page = opened.page
    watched = ["#latents canvas", "[title='unet.mid_block.resnets.0'] canvas", "#sites canvas"]
    before = [opened.pixels(selector) for selector in watched]
    film = opened.attribute("#films img", "src")
    page.focus("#step")
    page.keyboard.press("Home")
    assert page.inner_text("#where").startswith(f"step 1 of {STEPS}")
    after = [opened.pixels(selector) for selector in watched]
    assert all(one != other for one, other in zip(before, after, strict=True))
    assert opened.attribute("#films img", "src") != film
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#where").startswith("step 2 of")
    page.click("#play")
    page.wait_for_selector("#where >> text=finished")
    page.wait_for_selector("#play[aria-label=Play]")
    assert opened.attribute("#play", "aria-label") == "Play"


def test_words_show_where_they_look(opened: Opened) -> None:
    page = opened.page
    seen = {}
    for word in ("car", "road"):
        page.click(f"#sentence button:text-is('{word}')")
        page.mouse.move(0, 0)
        assert page.inner_text("#overlay-caption").startswith(f"“{word}” takes")
        page.wait_for_timeout(100)
        seen[word] = opened.pixels("#overlay")
    assert seen["car"] != seen["road"]
    page.click("#sites .site >> nth=13")
    assert "in up_blocks.3.attentions.0" in page.inner_text("#overlay-caption")
    page.wait_for_timeout(100)
    assert opened.pixels("#overlay") != seen["road"]
    page.click("#all-layers")
    assert "all layers" in page.inner_text("#overlay-caption")


def test_every_layer_opens(opened: Opened) -> None:
    page = opened.page
    page.click("[title='unet.up_blocks.2.attentions.1']")
    assert page.inner_text("#layer .kind") == "SpatialTransformer"
    assert "#unet.up_blocks.2.attentions.1" in page.url
    page.click("#layer .inside button:text-is('transformer_blocks.0')")
    page.click("#layer .inside button:text-is('attn2')")
    assert page.inner_text("#layer .kind") == "Attention"
    assert "pare/attention.py:" in page.inner_text("#layer")
    assert "self.split_heads" in page.inner_text("#layer .code >> nth=0")
    page.click("#layer .path button:text-is('up_blocks.2')")
    assert page.inner_text("#layer .kind") == "UpBlock"
    page.fill("#find", "unet.conv_out")
    page.keyboard.press("Enter")
    assert page.inner_text("#layer .kind") == "Conv2d"
    # Not one of them breaks the page.
    page.evaluate("for (const name of layers.keys()) { open(name); go(2); }")


def test_it_is_small_and_opens_at_once(browser: Any, html: Path) -> None:
    assert html.stat().st_size < 15_000_000 * STEPS / 30 + 1_000_000
    window = Opened(browser, html, 1280, "light")
    spent = window.page.evaluate("performance.now()")
    window.page.context.close()
    # 2 s is the aim, on a machine that does nothing else.
    assert spent < 5_000
