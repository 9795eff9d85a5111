"""Builds the pages whose code runs: the course, docs/text.md and docs/guide.md.

    python -m docs.course.build              all pages; the course's notebooks as well
    python -m docs.course.build 03 text      these alone
    python -m docs.course.build --sources    only the code of pare that pages show; runs nothing

A page is Markdown; a page of the course is also the only source of its notebook.  The fenced
`python` blocks of a page run from top to bottom in one namespace.  The builder writes what
stands between these marks; never edit it by hand:

    <!-- source: pare.guidance.guide -->        a definition, taken from its file; see `Source`
    <!-- end -->

    <!-- output: what the image shows -->       what the block above printed and drew
    <!-- end -->
"""

from __future__ import annotations

import argparse
import ast
import base64
import contextlib
import io
import os
import re
import sys
import tempfile
import textwrap
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COURSE = Path(__file__).parent
ROOT = COURSE.parent.parent
OTHERS = (ROOT / "docs" / "text.md", ROOT / "docs" / "guide.md")
DPI = 80  # of plots
COLOURS = 256  # of an image
WIDEST = 110  # columns of printed output
LONGEST = 60  # lines of it


class PageError(ValueError):
    """A page that cannot be built: where, and what is wrong."""


# --- the parts of a page -------------------------------------------------------------------


@dataclass
class Text:
    """Markdown as it is."""

    lines: list[str]

    def __str__(self) -> str:
        return "\n".join(self.lines)


@dataclass
class Code:
    """A Python block that is run."""

    code: str
    line: int
    """Of its first line in the page, from 1."""

    def __str__(self) -> str:
        return f"```python\n{self.code}\n```"


@dataclass
class Source:
    """A piece of pare, techniques or roads: `<!-- source: NAME | OPTION | OPTION -->`.

    NAME is the dotted path of a module, class, function, method or constant.  Options:
    `bare` leaves the docstring out; `from TEXT` and `to TEXT` cut it to the lines from the first
    that contains the one text to the next that contains the other.
    """

    spec: str
    shown: str = ""

    def __str__(self) -> str:
        return f"<!-- source: {self.spec} -->\n{self.shown}\n<!-- end -->"


@dataclass
class Output:
    """What the code block before it printed and drew."""

    alt: str
    text: str = ""
    images: list[str] = field(default_factory=list)
    """Paths, relative to the page."""

    def __str__(self) -> str:
        shown = [f"<!-- output: {self.alt} -->" if self.alt else "<!-- output -->"]
        if self.text:
            shown.append(f"```text\n{self.text}\n```")
        shown += [f"![{self.alt}]({path})" for path in self.images]
        return "\n".join([*shown, "<!-- end -->"])


Part = Text | Code | Source | Output

MARK = re.compile(r"<!-- (source|output)(?:: (.*))? -->")
IMAGE = re.compile(r"!\[.*\]\((.+)\)")


def read_page(path: Path) -> list[Part]:
    """The page's parts; joined by newlines they are the page again.

    Raises:
        PageError: a mark or a block without its end; output that no block comes before.
    """
    parts: list[Part] = []
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    k = 0
    while k < len(lines):
        mark = MARK.fullmatch(lines[k])
        if mark:
            end = closing(lines, k, "<!-- end -->", path)
            parts.append(marked(mark, lines[k + 1 : end], parts, f"{path.name}:{k + 1}"))
        elif lines[k] == "```python":
            end = closing(lines, k, "```", path)
            parts.append(Code("\n".join(lines[k + 1 : end]), k + 2))
        else:
            if not (parts and isinstance(parts[-1], Text)):
                parts.append(Text([]))
            text = parts[-1]
            assert isinstance(text, Text)
            end = closing(lines, k, "```", path) if lines[k].startswith("```") else k
            text.lines += lines[k : end + 1]
        k = end + 1 if mark or lines[k].startswith("```") else k + 1
    return parts


def closing(lines: list[str], start: int, end: str, path: Path) -> int:
    for k in range(start + 1, len(lines)):
        if lines[k] == end:
            return k
        if MARK.fullmatch(lines[k]):
            break
    raise PageError(f"{path.name}:{start + 1}: {lines[start]!r} has no {end!r}")


def marked(mark: re.Match[str], inside: list[str], before: list[Part], where: str) -> Part:
    kind, rest = mark[1], (mark[2] or "").strip()
    if kind == "source":
        return Source(rest, "\n".join(inside))
    code = [part for part in before if not (isinstance(part, Text) and not str(part).strip())]
    if not (code and isinstance(code[-1], Code)):
        raise PageError(f"{where}: an output needs a python block before it")
    text, images = "\n".join(inside), IMAGE.findall("\n".join(inside))
    fenced = re.search(r"^```text\n(.*)\n```$", text, re.DOTALL | re.MULTILINE)
    return Output(rest, fenced[1] if fenced else "", images)


def page_text(parts: list[Part]) -> str:
    return "\n".join(map(str, parts)) + "\n"


def pages() -> list[Path]:
    """The course's pages, in reading order."""
    return sorted(COURSE.glob("[0-9][0-9]-*.md"))


def short_name(path: Path) -> str:
    """What `build` is told and images begin with: `03` for 03-latents.md, `text` for text.md."""
    return path.stem[:2] if path.parent == COURSE else path.stem


# --- pare's own code -----------------------------------------------------------------------


def excerpt(spec: str, folder: Path = COURSE) -> str:
    """The definition's name, as a link for a page in `folder`, and its code, as Markdown.

    Raises:
        PageError: there is no such thing, or not these lines in it.
    """
    name, *options = (part.strip() for part in spec.split("|"))
    path, lines = definition(name, bare="bare" in options)
    for option in options:
        word, _, text = option.partition(" ")
        if option == "bare":
            continue
        hit = next((k for k, line in enumerate(lines) if text and text in line), None)
        if word not in ("from", "to") or hit is None:
            raise PageError(f"{spec!r}: {option!r} is no option, or no line has this text")
        if word == "from":
            lines = lines[hit:]
        else:
            lines = lines[: hit + 1]
    # The name, not a line number: numbers are wrong after the next commit.
    link = Path(os.path.relpath(path, folder)).as_posix()
    code = textwrap.dedent("\n".join(lines))
    return f"[`{name}`]({link}):\n\n```python\n{code}\n```"


def definition(name: str, *, bare: bool) -> tuple[Path, list[str]]:
    """Its file and its lines."""
    path, inner = module_of(name)
    source = path.read_text(encoding="utf-8")
    body: list[ast.stmt] = ast.parse(source).body
    node: ast.stmt | None = None
    for word in inner:
        node = next((one for one in body if word in names_of(one)), None)
        if node is None:
            raise PageError(f"there is no {word!r} of {name!r} in {path.relative_to(ROOT)}")
        body = node.body if isinstance(node, ast.ClassDef) else []
    if node is None:
        raise PageError(f"{name!r} is a module; expected something in it")
    decorators = node.decorator_list if isinstance(node, ast.ClassDef | ast.FunctionDef) else []
    first = min([node.lineno, *(one.lineno for one in decorators)])
    last = node.end_lineno or first
    kept = list(range(first, last + 1))
    if bare and isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
        docstring = node.body[0]
        kept = [k for k in kept if not docstring.lineno <= k <= (docstring.end_lineno or 0)]
    lines = source.split("\n")
    return path, [lines[k - 1] for k in kept]


def module_of(name: str) -> tuple[Path, list[str]]:
    """`pare.unet.unet.UNet.forward` -> (pare/unet/unet.py, ["UNet", "forward"])"""
    words = name.split(".")
    for k in range(len(words), 0, -1):
        path = ROOT.joinpath(*words[:k]).with_suffix(".py")
        if path.is_file():
            return path, words[k:]
    raise PageError(f"there is no module for {name!r}")


def names_of(node: ast.stmt) -> list[str]:
    """What a statement defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


# --- running -------------------------------------------------------------------------------


@dataclass
class Ran:
    """What a block left."""

    text: str
    images: list[bytes]
    """PNG files."""


def run_block(code: Code, namespace: dict[str, Any], where: str) -> Ran:
    """Run a block as a notebook does: what it prints, its last value, and its plots.

    Raises:
        PageError: the block fails; with the traceback.
    """
    tree = ast.parse(code.code, where)
    ast.increment_lineno(tree, code.line - 1)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    value: Any = None
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(tree, where, "exec"), namespace)
            if isinstance(last, ast.Expr):
                expression = compile(ast.Expression(last.value), where, "eval")
                value = eval(expression, namespace)
    except Exception as error:  # whatever a page's own code raises
        raise PageError(f"{where}: {error}\n{traceback.format_exc()}") from error
    images = plots()
    if hasattr(value, "save") and hasattr(value, "convert"):  # Pillow's
        file = io.BytesIO()
        # 256 colours: smooth images take a third, and nobody sees it at this size.
        value.convert("RGB").quantize(COLOURS, kmeans=2).save(file, format="PNG", optimize=True)
        images.append(file.getvalue())
    elif value is not None:
        print(repr(value), file=printed)
    return Ran(printed.getvalue().rstrip("\n"), images)


def plots() -> list[bytes]:
    """The figures that are open, as PNG; they are closed."""
    plt = sys.modules.get("matplotlib.pyplot")
    if plt is None:
        return []
    drawn = []
    for number in plt.get_fignums():
        file = io.BytesIO()
        plt.figure(number).savefig(file, format="png", dpi=DPI, bbox_inches="tight")
        drawn.append(file.getvalue())
    plt.close("all")
    return drawn


def run_parts(parts: list[Part], name: str) -> Iterator[tuple[Code, Output | None, Ran]]:
    """Run the blocks in order, each with the output that follows it.

    Raises:
        PageError: a block fails, or leaves something that the page has no place for.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    solid = [part for part in parts if not isinstance(part, Text) or str(part).strip()]
    for part, after in zip(solid, [*solid[1:], None], strict=True):
        if not isinstance(part, Code):
            continue
        output = after if isinstance(after, Output) else None
        where = f"{name}:{part.line}"
        ran = run_block(part, namespace, where)
        if output is None and (ran.text or ran.images):
            raise PageError(f"{where}: it prints or draws, and no <!-- output --> follows")
        if output is not None and not (ran.text or ran.images):
            raise PageError(f"{where}: an <!-- output --> follows, and there is none")
        yield part, output, ran


@contextlib.contextmanager
def quiet_folder() -> Iterator[None]:
    """Within this context, files are written to a folder that goes away, plots to no screen."""
    before, backend = Path.cwd(), os.environ.get("MPLBACKEND")
    os.environ["MPLBACKEND"] = "Agg"
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*non-interactive.*")
            os.chdir(folder)
            yield
            os.chdir(before)
    finally:
        os.chdir(before)
        if backend is None:
            del os.environ["MPLBACKEND"]
        else:
            os.environ["MPLBACKEND"] = backend


# --- building ------------------------------------------------------------------------------


def build(path: Path) -> None:
    """Run a page; write it, its images and, for a page of the course, its notebook."""
    parts = read_page(path)
    refresh(parts, path.parent)
    prefix = short_name(path)
    made: dict[str, bytes] = {}
    with quiet_folder():
        for code, output, ran in run_parts(parts, path.name):
            if output is None:
                continue
            check_size(ran.text, f"{path.name}:{code.line}")
            output.text, output.images = ran.text, []
            for image in ran.images:
                name = f"images/{prefix}-{len(made) + 1}.png"
                output.images.append(name)
                made[name] = image
    folder = path.parent / "images"
    folder.mkdir(exist_ok=True)
    for old in folder.glob(f"{prefix}-[0-9]*.png"):
        old.unlink()
    for name, image in made.items():
        (path.parent / name).write_bytes(image)
    write(path, parts)


def write(path: Path, parts: list[Part]) -> None:
    path.write_text(page_text(parts), encoding="utf-8")
    if path.parent == COURSE:
        path.with_suffix(".ipynb").write_text(notebook(parts), encoding="utf-8")


def check_size(text: str, where: str) -> None:
    lines = text.split("\n")
    if len(lines) > LONGEST or max(map(len, lines)) > WIDEST:
        raise PageError(
            f"{where}: {len(lines)} lines of up to {max(map(len, lines))} columns are printed; "
            f"expected at most {LONGEST} of {WIDEST}"
        )


def refresh(parts: list[Part], folder: Path) -> None:
    """Take the code that a page in `folder` shows from its files again."""
    for part in parts:
        if isinstance(part, Source):
            part.shown = excerpt(part.spec, folder)


def notebook(parts: list[Part]) -> str:
    """The page as an executed notebook (nbformat 4.5).

    Links and images are those of the page: the notebook lies beside it.
    """
    import nbformat

    v4: Any = nbformat.v4  # its functions have no types

    cells: list[Any] = []
    for part in parts:
        if isinstance(part, Code):
            count = 1 + sum(cell.cell_type == "code" for cell in cells)
            cells.append(v4.new_code_cell(part.code, execution_count=count))
        elif isinstance(part, Output):
            cell = next(one for one in reversed(cells) if one.cell_type == "code")
            if part.text:
                cell.outputs.append(v4.new_output("stream", name="stdout", text=part.text + "\n"))
            for path in part.images:
                png = base64.b64encode((COURSE / path).read_bytes()).decode("ascii")
                data = {"image/png": png, "text/plain": part.alt}
                cell.outputs.append(v4.new_output("display_data", data))
        else:
            text = str(part.shown if isinstance(part, Source) else part).strip()
            if text and cells and cells[-1].cell_type == "markdown":
                cells[-1].source += "\n\n" + text
            elif text:
                cells.append(v4.new_markdown_cell(text))
    for k, cell in enumerate(cells):
        cell.id = f"cell-{k}"  # random ones would differ from build to build
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made = v4.new_notebook(
        cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}}
    )
    nbformat.validate(made)
    written: str = v4.writes(made)
    return written + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m docs.course.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="as 03 or text; all if none")
    parser.add_argument("--sources", action="store_true", help="only refresh pare's code")
    options = parser.parse_args(arguments)
    named = {short_name(path): path for path in (*pages(), *OTHERS)}
    unknown = [page for page in options.pages if page not in named]
    if unknown:
        print(f"there is no page {unknown[0]!r}; expected {', '.join(named)}", file=sys.stderr)
        return 2
    try:
        for path in [named[page] for page in options.pages or named]:
            began = time.monotonic()
            if options.sources:
                parts = read_page(path)
                refresh(parts, path.parent)
                write(path, parts)
            else:
                build(path)
            print(f"{path.name}  {time.monotonic() - began:.1f} s", flush=True)
    except PageError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
