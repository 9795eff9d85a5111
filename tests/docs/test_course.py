"""The course, docs/text.md and docs/guide.md: what they show is what their code and pare make."""

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
BUILT = (*PAGES, *build.OTHERS)
GLOSSARY = ROOT / "docs" / "glossary.md"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
# Pages that take long even with few steps: trainings, inversions, many runs, diffusers.
SLOW = ("09", "12", "14", "15", "16", "17", "18", "text", "guide")


@pytest.fixture(params=PAGES, ids=NAMES)
def page(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture(params=BUILT, ids=[page.stem for page in BUILT])
def built(request: pytest.FixtureRequest) -> Path:
    """A page of the course, or another that the builder makes."""
    path: Path = request.param
    return path


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def test_the_pages_are_numbered_without_a_gap() -> None:
    assert [page.name[:2] for page in PAGES] == [f"{k:02d}" for k in range(1, len(PAGES) + 1)]
    assert len(PAGES) >= 19


def test_a_page_read_is_the_page_written(built: Path) -> None:
    assert build.page_text(build.read_page(built)) == built.read_text(encoding="utf-8")


def test_the_code_of_pare_that_a_page_shows_is_pares(built: Path) -> None:
    for part in build.read_page(built):
        if isinstance(part, Source):
            assert part.shown == build.excerpt(part.spec, built.parent), (
                f"{part.spec} has changed: run `python -m docs.course.build --sources`"
            )


def test_a_page_has_what_every_page_has(page: Path) -> None:
    parts, text = build.read_page(page), page.read_text(encoding="utf-8")
    assert text.startswith(f"# {int(page.name[:2])}. ")
    assert any(isinstance(part, Code) for part in parts)
    assert any(isinstance(part, Source) for part in parts)
    needed, head = text.index("**What you need to know:**"), text.index("```python")
    assert needed < text.index("**What you will see:**") < head
    assert "(../glossary.md)" in text[:head]
    assert "## Try this" in text
    questions = text.partition("## Questions")[2]
    assert questions.count("<details") == questions.count("</details>") in (2, 3)
    assert "**Read on:**" in text


def test_every_output_was_built(built: Path) -> None:
    for part in build.read_page(built):
        if isinstance(part, Output):
            assert part.text or part.images, f"{built.name} was never built"
            assert part.alt or not part.images, f"{built.name}: {part.images} without words"


@pytest.mark.parametrize(
    "source", [*BUILT, GLOSSARY, build.COURSE / "README.md"], ids=lambda path: path.stem
)
def test_links_and_images_are_there(source: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)]*))?\)", prose(source)):
        path = source.parent / target if target else source
        assert path.exists(), f"{source.name} links to {target}"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{source.name} links to {target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """The anchors of its headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


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
        page.parent / image
        for page in BUILT
        for part in build.read_page(page)
        if isinstance(part, Output)
        for image in part.images
    }
    images = list((build.COURSE / "images").iterdir())
    assert set(images) == {path for path in shown if path.parent == build.COURSE / "images"}
    files = [*images, *build.COURSE.glob("*.ipynb")]
    assert sum(path.stat().st_size for path in files) < 6_000_000


def test_the_table_of_contents_names_every_page() -> None:
    contents = (build.COURSE / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"\]\((\d\d-[\w-]+)\.md\)", contents)
    assert listed == NAMES


# --- the glossary --------------------------------------------------------------------------


def test_the_glossary_is_sorted_and_says_something_of_every_term() -> None:
    entries = re.findall(r"^### (.+)\n\n(.+)$", GLOSSARY.read_text("utf-8"), flags=re.MULTILINE)
    terms = [term for term, _ in entries]
    assert terms == sorted(terms, key=lambda term: term.lower().replace("_", ""))
    assert len(terms) > 90
    assert all(len(text) > 30 for _, text in entries)
    assert GLOSSARY.read_text("utf-8").count("### ") == len(entries)


def test_the_glossary_names_code_that_exists() -> None:
    names = re.findall(r"`((?:pare|techniques|roads)\.[\w.]+)`", GLOSSARY.read_text("utf-8"))
    assert len(names) > 40
    for name in names:
        if not ROOT.joinpath(*name.split(".")).is_dir():
            path, inner = build.module_of(name)
            if inner:
                build.definition(name, bare=False)
            else:
                assert path.is_file()


@pytest.mark.parametrize(
    "term",
    ["classifier-free guidance", "forward process", "latent space", "sampler", "skip connection",
     "residual", "attention weights", "forward pass", "attention map", "noise level", "sampling",
     "inversion", "reverse process", "concept erasure", "negative guidance", "upsample",
     "guidance scale", "guidance rescale", "predicted x0", "noise schedule"],
)  # fmt: skip
def test_the_standard_terms_are_in_the_glossary_and_in_the_course(term: str) -> None:
    glossary = GLOSSARY.read_text(encoding="utf-8").lower()
    assert re.search(rf"^### .*{term}", glossary, flags=re.MULTILINE)
    assert any(term in prose(page).lower().replace("\n", " ") for page in PAGES)


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
        pytest.param(
            page, id=page.stem, marks=pytest.mark.slow if build.short_name(page) in SLOW else ()
        )
        for page in BUILT
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


def alike(one: str, other: str) -> bool:
    """Whether two texts are the same but for rounding in their numbers.

    What is of the size of rounding itself may differ by more: 3e-7 on one processor is 5e-7
    on another.
    """
    if NUMBER.split(one) != NUMBER.split(other):
        return False
    pairs = zip(NUMBER.findall(one), NUMBER.findall(other), strict=True)
    return all(float(a) == pytest.approx(float(b), rel=0.01, abs=0.01) for a, b in pairs)


@pytest.mark.slow
def test_every_page_prints_what_it_shows(built: Path) -> None:
    for code, output, ran in run(built, steps=None):
        assert output is None or alike(ran.text, output.text), (
            f"{built.name}:{code.line} prints\n{ran.text}\nrun `python -m docs.course.build "
            f"{build.short_name(built)}`"
        )


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("loss 0.272", "loss 0.273", True),
        ("loss 0.272", "loss 0.302", False),
        ("0.547 rain", "0.594 rain", False),
        ("2.42", "2.45", False),
        ("27.91 dB", "27.86 dB", True),
        ("seed 4", "seed 5", False),
        ("largest 3.2e-07", "largest 5.0e-07", True),
        ("a car", "a house", False),
    ],
)
def test_what_is_alike(one: str, other: str, same: bool) -> None:
    assert alike(one, other) is same


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
    assert whole.startswith("[`pare.guidance.guide`](../../pare/guidance.py):")
    assert "def guide(" in whole
    assert '"""' in whole
    assert '"""' not in build.excerpt("pare.guidance.guide | bare")
    cut = build.excerpt("pare.unet.unet.UNet.forward | from skips = | to x = self.mid_block")
    code = cut.partition("```python\n")[2]
    assert code.startswith("skips = [x]")
    assert code.rstrip("`\n").endswith("self.mid_block(x, time, text, control)")
    assert "](../pare/unet/unet.py)" in build.excerpt("pare.unet.unet.UNet", ROOT / "docs")
    assert build.excerpt("pare.pipeline.Progress").count("Progress = ") == 1


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


def test_an_unknown_page_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["99"]) == 2
    assert "no page '99'" in capsys.readouterr().err
