"""MkDocs hook: the pages of the site that are not files of `docs/`, and links into the code.

The home page is README.md; contributing, changelog and security come from the repository's
root.  Every module of pare, techniques and roads gets an API page, `api/pare.unet.unet.md`.
A link to a module's file becomes a link to its API page, so that the same Markdown works in
the repository and on the site, and no link depends on line numbers.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pare", "techniques", "roads")
ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security-policy.md",
}
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
# The link that docs/course/build.py writes above an excerpt, and the name of what it shows.
EXCERPT = re.compile(r"<!-- source: (?P<name>[\w.]+)[^>]*-->\n\[(?P<text>[^\]]*)\]\([^)]*\)")
# A dotted name in code marks, outside a link's text: a link where the API has that name.
NAME = re.compile(r"(?<![\[`])`(?P<name>(?:pare|techniques|roads)(?:\.\w+)+)`(?![`\]])")
FENCE = re.compile(r"^```.*?^```", flags=re.MULTILINE | re.DOTALL)


def modules() -> dict[str, str]:
    """Every module's file, relative to the root, and its name; a package's file is its folder."""
    found = {"weights_convert.py": "weights_convert"}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.name != "__main__.py":
                file = path.relative_to(ROOT)
                parts = (file.parent if path.name == "__init__.py" else file.with_suffix("")).parts
                found[file.as_posix()] = ".".join(parts)
                if path.name == "__init__.py":
                    found[file.parent.as_posix()] = ".".join(parts)
    return found


MODULES = modules()


def api_page(module: str) -> str:
    return f"api/{module}.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and complete the navigation with the course and the API."""
    for source, page in ROOT_PAGES.items():
        content = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=content))
    for module in set(MODULES.values()):
        content = f"---\ntitle: {module}\n---\n\n::: {module}\n"
        files.append(File.generated(config, api_page(module), content=content))
    course = sorted(path.name for path in (ROOT / "docs" / "course").glob("[0-9]*.md"))
    pages: dict[str, list[Any]] = {
        "course": [f"course/{name}" for name in ("README.md", *course)],
        "api": [api_navigation(package) for package in PACKAGES] + [api_page("weights_convert")],
    }
    config.nav = filled(config.nav, pages)
    listed = set(re.findall(r"[\w-]+\.md", repr(config.nav)))
    new = sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name not in listed)
    if new:  # a page that mkdocs.yml does not place yet is not lost
        config.nav.append({"More": new})
    return files


def filled(nav: Any, pages: dict[str, list[Any]]) -> Any:
    """`nav`, with the names of `pages` replaced by what they stand for."""
    if isinstance(nav, list):
        return [filled(item, pages) for item in nav]
    if isinstance(nav, dict):
        return {title: filled(item, pages) for title, item in nav.items()}
    return pages.get(nav, nav)


def api_navigation(package: str) -> dict[str, Any]:
    """A package's modules, then its packages, as a section of the navigation."""
    names = set(MODULES.values())
    children = sorted(name for name in names if name.rpartition(".")[0] == package)
    has_children = {name.rpartition(".")[0] for name in names}
    return {
        package.rpartition(".")[2]: [api_page(package)]
        + [
            {name.rpartition(".")[2]: api_page(name)}
            for name in children
            if name not in has_children
        ]
        + [api_navigation(name) for name in children if name in has_children]
    }


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at the site's pages: API pages for code, pages for the root's files."""
    source = page.file.src_uri
    if source.startswith("api/"):
        return markdown
    original = {made: name for name, made in ROOT_PAGES.items()}.get(source)
    # Where the page's own links start from, in the repository.
    folder = "" if original else posixpath.dirname(f"docs/{source}")

    def by_name(match: re.Match[str]) -> str:
        name = match["name"]
        if any(part.startswith("_") for part in name.split(".")):
            return match[0]
        return f"[{match['text']}][{name}]"

    def named(match: re.Match[str]) -> str:
        name = match["name"]
        return f'<autoref optional identifier="{name}"><code>{name}</code></autoref>'

    def moved(match: re.Match[str]) -> str:
        target, anchor = match["target"], match["anchor"] or ""
        if ":" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        if path in MODULES:
            there, anchor = api_page(MODULES[path]), ""
        elif path in ROOT_PAGES:
            there = ROOT_PAGES[path]
        elif path.startswith("docs/") and (ROOT / path).is_file() and not path.endswith(".py"):
            there = path.removeprefix("docs/")
        elif (ROOT / path).exists():
            return match["text"]  # a file of the repository that the site has no page for
        else:
            return match[0]  # the strict build says so
        return f"[{match['text']}]({posixpath.relpath(there, posixpath.dirname(source))}{anchor})"

    text = EXCERPT.sub(by_name, markdown)
    if folder == "":
        text = re.sub(r"!\[([^\]]*)\]\(docs/", r"![\1](", text)
    # Code keeps its text: in it, [a](b) is no link.
    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [NAME.sub(named, LINK.sub(moved, text[end : fence.start()])), fence[0]]
        end = fence.end()
    return "".join([*parts, NAME.sub(named, LINK.sub(moved, text[end:]))])
