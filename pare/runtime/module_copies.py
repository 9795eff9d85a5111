"""Copies of a network with other layers in some places, which share everything else."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def shallow(module: Module) -> Module:
    """A shallow copy: the same weights and children, which can be replaced in the copy."""
    other = copy.copy(module)
    other._modules = dict(module._modules)
    return other


def with_layers(module: Module, layers: Mapping[str, nn.Module]) -> Module:
    """A copy of `module` with `layers` at their paths; `module` itself is unchanged.

    Only the modules on the paths are new objects.  All weights are shared, not copied.
    """
    twin = shallow(module)
    copied: dict[str, nn.Module] = {"": twin}
    for path, layer in layers.items():
        owner = ""
        *parents, leaf = path.split(".")
        for name in parents:
            inner = f"{owner}.{name}".lstrip(".")
            if inner not in copied:
                copied[inner] = shallow(copied[owner].get_submodule(name))
                copied[owner]._modules[name] = copied[inner]
            owner = inner
        copied[owner]._modules[leaf] = layer
    return twin
