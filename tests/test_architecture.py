"""Imports point one way, without circles, and nothing happens on import."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

# A module may import from the rows above its own, and from its own package.
LAYERS = (
    ("pare.version",),
    ("pare.errors",),
    ("pare.config",),
    ("pare.runtime",),
    ("pare.attention", "pare.noise"),
    ("pare.unet",),
    ("pare.vae",),  # it is made of the same ResNet blocks
    ("pare.schedulers",),
    ("pare.text",),
    ("pare.guidance",),
    ("pare.io",),
    ("pare.batch",),  # runs jobs of any kind, commands and measurements: it knows files and a UNet
    ("pare.loading",),
    ("pare.recipes",),
    ("pare.results",),
    ("pare.pipeline",),
    ("pare.study.inspect",),
    ("pare.study.record",),
    ("techniques",),
    ("roads",),
    ("pare.verify",),
    ("pare.cli",),
    ("weights_convert", "pare"),  # the fronts
)
LIGHT = {"torch", "transformers", "diffusers", "numpy", "PIL", "scipy", "tqdm"}

FOLDERS = ("pare", "techniques", "roads")
SOURCES = [
    ROOT / "weights_convert.py",
    *sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")),
]


def module_name(path: Path) -> str:
    """`pare.unet` for pare/unet/__init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text())


def imported_names(node: ast.AST, modules: Mapping[str, Path] = MODULES) -> Iterator[str]:
    """What one statement imports; of this project the modules, not the names in them."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute here"
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if inner in modules else str(node.module)


def imports(name: str, *, at_import: bool = False) -> set[str]:
    """All that a module imports: in functions and for the type checker, too, or on import alone."""
    nodes = tree(name).body if at_import else ast.walk(tree(name))
    return {found for node in nodes for found in imported_names(node)}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def layer(name: str) -> tuple[int, str]:
    """The row of LAYERS that a module is in, and the package that stands there."""
    fitting = [
        (len(package), row, package)
        for row, packages in enumerate(LAYERS)
        for package in packages
        if name == package or (package != "pare" and within(name, package))
    ]
    assert fitting, f"{name} is in no layer: give it one"
    return max(fitting)[1:]


LAYERED = [name for name in MODULES if not name.endswith("__main__") and name != "pare.study"]


@pytest.mark.parametrize("name", LAYERED)
def test_imports_point_one_way(name: str) -> None:
    row, package = layer(name)
    ours = [found for found in imports(name) if found in MODULES]
    wrong = [found for found in ours if layer(found)[0] >= row and layer(found)[1] != package]
    assert not wrong
    assert not any(within(found, "tests") for found in imports(name))


def test_no_modules_import_each_other() -> None:
    graph = {name: {found for found in imports(name) if found in MODULES} for name in MODULES}
    assert not circles(graph)


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The groups of modules that all reach each other."""
    reached = {name: reachable(name, graph) for name in graph}
    groups = {
        tuple(sorted(other for other in reached[name] if name in reached[other]))
        for name in graph
        if name in reached[name]
    }
    return [list(group) for group in sorted(groups)]


def reachable(name: str, graph: Mapping[str, set[str]]) -> set[str]:
    """All modules that a module imports, and that those import, and so on."""
    found: set[str] = set()
    ahead = [name]
    while ahead:
        new = graph[ahead.pop()] - found
        found |= new
        ahead += new
    return found


def test_no_two_modules_share_a_name() -> None:
    names = Counter(p.stem for p in SOURCES if p.stem not in ("__init__", "__main__"))
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("name", MODULES)
def test_diffusers_is_imported_in_verify_alone_and_only_when_it_runs(name: str) -> None:
    everywhere = {found.partition(".")[0] for found in imports(name)}
    assert "diffusers" not in everywhere or within(name, "pare.verify")
    assert "diffusers" not in {found.partition(".")[0] for found in imports(name, at_import=True)}


def test_these_tests_see_what_they_look_for() -> None:
    code = "def f():\n    import diffusers.models\n    from pare.unet import unet, UNet\n"
    found = [name for node in ast.walk(ast.parse(code)) for name in imported_names(node)]
    assert found == ["diffusers.models", "pare.unet.unet", "pare.unet"]
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}, "e": set()}
    assert circles(graph) == [["b", "c"]]
    assert circles({"a": {"b"}, "b": set[str]()}) == []
    assert layer("pare.unet.blocks") == (layer("pare.unet")[0], "pare.unet")
    assert len(MODULES) > 200


def test_importing_pare_and_its_command_is_light() -> None:
    code = "import sys, pare, pare.cli.main; print(*sorted(sys.modules))"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not set(output.stdout.split()) & LIGHT


def test_importing_everything_leaves_random_state_threads_and_environment_alone() -> None:
    names = [name for name in MODULES if not name.endswith("__main__")]
    code = f"""
import importlib, os, random, warnings
import numpy, torch
import transformers.models.clip.modeling_clip  # what libraries do on import is theirs
def state():
    return (random.getstate(), repr(numpy.random.get_state()), torch.get_rng_state().tolist(),
            torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(), os.environ.copy(), os.getcwd())
before = state()
for name in {names!r}:
    importlib.import_module(name)
    assert state() == before, name
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
