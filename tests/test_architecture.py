"""Imports point one way, and nothing happens on import."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("pare", "techniques", "roads")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
# The command and verify/ bring the packages together.
BRINGS_TOGETHER = [ROOT / "pare" / name for name in ("cli.py", "commands", "verify")]


def imports(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Every imported top-level name of a module, with its statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.partition(".")[0], node
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0], node


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def under(path: Path, parents: list[Path]) -> bool:
    return any(path.is_relative_to(parent) for parent in parents)


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_imports_point_one_way(path: Path) -> None:
    imported = {name for name, _ in imports(ast.parse(path.read_text()))}
    package = path.relative_to(ROOT).parts[0]
    if package == "pare" and not under(path, BRINGS_TOGETHER):
        assert not imported & {"techniques", "roads", "weights_convert"}
    if package == "techniques":
        assert "roads" not in imported
    assert "tests" not in imported


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_diffusers_is_imported_in_verify_alone_and_only_when_it_runs(path: Path) -> None:
    tree = ast.parse(path.read_text())
    mentioned = [node for name, node in imports(tree) if name == "diffusers"]
    if not under(path, [ROOT / "pare" / "verify"]):
        assert not mentioned
    at_import = [node for node in tree.body if not isinstance(node, ast.If)]
    assert not [node for node in mentioned if node in at_import]


def test_this_test_sees_imports_inside_functions() -> None:
    code = "def f():\n    import diffusers.models\n    from roads import scene\n"
    assert [name for name, _ in imports(ast.parse(code))] == ["diffusers", "roads"]
    assert len(SOURCES) > 20


def test_importing_pare_and_its_command_is_light() -> None:
    code = "import sys, pare, pare.cli.main; print(*sorted(sys.modules))"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(output.stdout.split())
    assert not loaded & {"torch", "transformers", "diffusers", "numpy", "PIL", "scipy", "tqdm"}


def test_importing_everything_leaves_random_state_threads_and_environment_alone() -> None:
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SOURCES]
    modules = [name.removesuffix(".__init__") for name in modules if "__main__" not in name]
    code = f"""
import importlib, os, random, warnings
import numpy, torch
import transformers.models.clip.modeling_clip  # what libraries do on import is theirs
def state():
    return (random.getstate(), repr(numpy.random.get_state()), torch.get_rng_state().tolist(),
            torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(), os.environ.copy(), os.getcwd())
before = state()
for name in {modules!r}:
    importlib.import_module(name)
    assert state() == before, name
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
