"""The images of pages whose commands stand beside them, made by these very commands.

python docs/images/examples.py              # four-edits.png, p2p.png, erasure-maps.png
python docs/images/examples.py report       # report-words.png, report-u.png: needs Chromium
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

import pare.cli.main
from pare.io.whole_files import write_whole
from roads import photo
from roads.contact_sheet import contact_sheet

HERE = Path(__file__).parent
FOUR_EDITS = (
    "day", "clouds", "night", "dark", "again", "snowy", "view-source", "view-target",
)  # fmt: skip
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")


@contextlib.contextmanager
def elsewhere() -> Iterator[Path]:
    """An empty current folder."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


def run(line: str) -> None:
    """A command as a page shows it."""
    program, *arguments = shlex.split(line)
    code = pare.cli.main.main(arguments) if program == "pare" else photo.main(arguments[2:])
    if code:
        sys.exit(code)


def save(name: str, image: Image.Image) -> None:
    whole = functools.partial(image.save, format="PNG", optimize=True)
    write_whole(HERE / name, whole, force=True)
    print(name)


def side_by_side(names: tuple[str, ...], columns: int) -> Image.Image:
    return contact_sheet([np.asarray(Image.open(f"{name}.png")) for name in names], columns)


def four_edits() -> None:
    with elsewhere():
        text = (HERE.parent / "four-edits.md").read_text(encoding="utf-8")
        for block in re.findall(r"^```bash\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", "").strip().splitlines():
                run(line)
        save("four-edits.png", side_by_side(FOUR_EDITS, columns=4))


def p2p() -> None:
    with elsewhere():
        run('pare p2p "a sunny mountain road with a red car" '
            '"a sunny mountain road with a blue car"')  # fmt: skip
        save("p2p.png", side_by_side(("p2p-0-source", "p2p-0-target"), columns=2))


def erasure_maps() -> None:
    with elsewhere():
        run('pare erase "a road at night" --concept streetlights=10 --concept "the moon=10" '
            "--gates sega --warm-up 2 --steps 20 --seed 4 --maps maps.png")  # fmt: skip
        save("erasure-maps.png", Image.open("maps.png"))


def report() -> None:
    """The page in a browser: its beginning with a word chosen, and the U with a layer opened."""
    from playwright.sync_api import sync_playwright

    with elsewhere() as folder, sync_playwright() as driver:
        run('pare report "a red car on a snowy road in the mountains" --seed 7 --out road.html')
        root = sys.platform == "linux" and os.geteuid() == 0  # has no sandbox of its own
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"] if root else []
        )
        page = browser.new_page(viewport={"width": 1180, "height": 760})
        page.goto((folder / "road.html").as_uri())
        page.wait_for_selector("html[data-ready]")
        page.click("#sentence >> text=car")
        shot(page.screenshot, "report-words.png")
        page.fill("#step", "16")
        page.click("[title='unet.up_blocks.2.attentions.1']")
        page.eval_on_selector("#u", "u => u.scrollIntoView()")
        shot(page.screenshot, "report-u.png")
        browser.close()


def shot(take: Callable[..., bytes], name: str) -> None:
    take(path="shot.png")
    save(name, Image.open("shot.png").convert("RGB"))


if __name__ == "__main__":
    for draw in [report] if sys.argv[1:] == ["report"] else [four_edits, p2p, erasure_maps]:
        draw()
