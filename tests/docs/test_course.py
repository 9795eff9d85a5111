"""The course: its code runs, and what it shows of pare is what pare is."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import pytest

import pare
from docs.course import build
from docs.course.build import Code, Output, PageError, Source
from tests.conftest import ROOT

PAGES = build.pages()
NAMES = [page.stem for page in PAGES]
LINES = re.compile(r"(, line |#L)\d+")
# Pages that take long even with few steps: trainings, long walks, many runs, diffusers.
SLOW = ("09", "12", "15", "16", "17", "18")


@pytest.fixture(params=PAGES, ids=NAMES)
def page(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_the_pages_are_numbered_without_a_gap() -> None:
    assert [page.name[:2] for page in PAGES] == [f"{k:02d}" for k in range(1, len(PAGES) + 1)]
    assert len(PAGES) >= 18


def test_a_page_read_is_the_page_written(page: Path) -> None:
    assert build.page_text(build.read_page(page)) == page.read_text(encoding="utf-8")


def test_the_code_of_pare_that_a_page_shows_is_pares(page: Path) -> None:
    """But for the numbers of its lines, which every commit moves and every build sets right."""
    sources = [part for part in build.read_page(page) if isinstance(part, Source)]
    for part in sources:
        shown, current = part.shown, build.excerpt(part.spec)
        assert LINES.sub("", shown) == LINES.sub("", current), (
            f"{part.spec} has changed: run `python -m docs.course.build --sources`"
        )


def test_a_page_has_code_an_image_and_something_to_try(page: Path) -> None:
    parts, text = build.read_page(page), page.read_text(encoding="utf-8")
    assert text.startswith(f"# {int(page.name[:2])}. ")
    assert any(isinstance(part, Code) for part in parts)
    assert any(isinstance(part, Source) for part in parts)
    assert "## Try this" in text
    assert "**Read on:**" in text
    for part in parts:
        if isinstance(part, Output):
            assert part.text or part.images, f"{page.name} was never built"
            assert part.alt or not part.images, f"{page.name}: {part.images} without words"


def test_links_and_images_are_there(page: Path) -> None:
    text = re.sub(
        r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_notebook_is_the_page(page: Path) -> None:
    notebook = json.loads(page.with_suffix(".ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    parts = [part for part in build.read_page(page) if isinstance(part, Code | Output)]
    assert ["".join(cell["source"]) for cell in cells] == [
        part.code for part in parts if isinstance(part, Code)
    ]
    printed = [
        "".join(output["text"]).rstrip("\n")
        for cell in cells
        for output in cell["outputs"]
        if output["output_type"] == "stream"
    ]
    assert printed == [part.text for part in parts if isinstance(part, Output) and part.text]
    drawn = sum(output["output_type"] == "display_data" for c in cells for output in c["outputs"])
    assert drawn == sum(len(part.images) for part in parts if isinstance(part, Output))


def test_every_image_belongs_to_a_page_and_all_are_small() -> None:
    shown = {
        image
        for page in PAGES
        for part in build.read_page(page)
        if isinstance(part, Output)
        for image in part.images
    }
    assert shown == {f"images/{path.name}" for path in build.IMAGES.iterdir()}
    files = [*build.IMAGES.iterdir(), *build.COURSE.glob("*.ipynb")]
    assert sum(path.stat().st_size for path in files) < 6_000_000


def test_the_table_of_contents_names_every_page() -> None:
    contents = (build.COURSE / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"\]\((\d\d-[\w-]+)\.md\)", contents)
    assert listed == NAMES


# --- running -------------------------------------------------------------------------------


def run(page: Path, steps: int | None) -> list[tuple[Code, Output | None, build.Ran]]:
    """Run a page's code; with `steps` wherever the page sets its number of steps."""
    parts = build.read_page(page)
    for part in parts:
        if isinstance(part, Code) and steps is not None:
            part.code = re.sub(r"^steps = \d+$", f"steps = {steps}", part.code, flags=re.MULTILINE)
    with build.quiet_folder():
        return list(build.run_parts(parts, page.name))


@pytest.fixture
def one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages share what they load: nothing that they do changes a model."""
    load = pare.Pipeline.from_pretrained
    monkeypatch.setattr(pare.Pipeline, "from_pretrained", functools.cache(load))


@pytest.mark.usefixtures("one_model")
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=pytest.mark.slow if page.name[:2] in SLOW else ())
        for page in PAGES
    ],
)
def test_every_page_runs_with_few_steps(page: Path) -> None:
    blocks = run(page, steps=2)
    assert all(ran.text or ran.images for _, output, ran in blocks if output)
    # Of the kinds that the page shows: a plot where there is a plot.
    for _, output, ran in blocks:
        if output is not None:
            assert len(ran.images) == len(output.images)
            assert bool(ran.text) == bool(output.text)


@pytest.mark.slow
def test_every_page_runs_as_it_stands(page: Path) -> None:
    run(page, steps=None)


@pytest.mark.slow
def test_a_notebook_runs_in_jupyter() -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(build.COURSE / "04-noise.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT)}})
    made = client.execute()
    images = [
        output
        for cell in made.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(images) == 2  # the plot of the schedule, and the gallery


# --- the builder's own ---------------------------------------------------------------------


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "01-page.md"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<!-- output -->\n<!-- end -->", "needs a python block"),
        ("```python\n1\n```\n<!-- output -->\n", "has no '<!-- end -->'"),
        ("```python\n1\n", "has no '```'"),
        ("<!-- source: a -->\n<!-- source: b -->\n<!-- end -->", "has no '<!-- end -->'"),
    ],
)
def test_a_page_that_cannot_be_read(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(PageError, match=re.escape(words)):
        build.read_page(written(tmp_path, text))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("```python\nprint(1)\n```", "no <!-- output --> follows"),
        ("```python\nx = 1\n```\n<!-- output -->\n<!-- end -->", "and there is none"),
        ("text\n```python\n\n1 / 0\n```\n<!-- output -->\n<!-- end -->", "line 4, in"),
    ],
)
def test_code_that_does_not_fit_its_page(tmp_path: Path, code: str, words: str) -> None:
    with pytest.raises(PageError, match=re.escape(words)):
        list(build.run_parts(build.read_page(written(tmp_path, code)), "01-page.md"))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("pare.nothing.here", "there is no module"),
        ("pare.guidance.nothing", "there is no 'nothing'"),
        ("pare.guidance", "is a module"),
        ("pare.guidance.guide | from nowhere", "no line has this text"),
        ("pare.guidance.guide | upside down", "is no option"),
    ],
)
def test_a_source_that_is_not_there(spec: str, words: str) -> None:
    with pytest.raises(PageError, match=re.escape(words)):
        build.excerpt(spec)


def test_what_an_excerpt_shows() -> None:
    whole = build.excerpt("pare.guidance.guide")
    assert whole.startswith("[pare/guidance.py, line ")
    assert "def guide(" in whole
    assert '"""' in whole
    assert '"""' not in build.excerpt("pare.guidance.guide | bare")
    cut = build.excerpt("pare.unet.unet.UNet.forward | from skips = | to x = self.mid_block")
    code = cut.partition("```python\n")[2]
    assert code.startswith("skips = [x]")
    assert code.rstrip("`\n").endswith("self.mid_block(x, time, text, control)")
    line = int(re.findall(r"#L(\d+)", cut)[0])
    assert (ROOT / "pare/unet/unet.py").read_text().split("\n")[line - 1].strip() == "skips = [x]"
    assert build.excerpt("pare.pipeline.Progress").count("Progress") == 1


def test_blocks_print_draw_and_share_names(tmp_path: Path) -> None:
    page = written(
        tmp_path,
        "```python\nx = 2\n```\n\n"
        "```python\nprint('a')\nx + 1\n```\n<!-- output -->\n<!-- end -->\n"
        "```python\nfrom PIL import Image\n\nImage.new('RGB', (4, 4))\n```\n"
        "<!-- output: a black square -->\n<!-- end -->",
    )
    first, second, third = build.run_parts(build.read_page(page), "01-page.md")
    assert (first[2].text, first[2].images) == ("", [])
    assert second[2].text == "a\n3"
    assert third[2].images[0].startswith(b"\x89PNG")


def test_an_unknown_page_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["99"]) == 2
    assert "no page '99'" in capsys.readouterr().err
