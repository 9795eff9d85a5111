"""The layer table: every layer of a model with its shapes, its cost and its line of code.

    table = layer_table(pipe.unet, (1, 4, 64, 64), 500, (1, 77, 768), prefix="unet")
    table["unet.down_blocks.1.attentions.0"].outputs      # ((1, 640, 32, 32),)

The model is copied to PyTorch's `meta` device, where tensors have shapes and no values, and runs
there once while every call of a module and of a PyTorch function is recorded.  So the table always
agrees with the code, and a model that does not fit into memory has one too.
"""

from __future__ import annotations

import copy
import fnmatch
import inspect
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pare.errors import SettingError
from pare.study.inspect.flops import Flops, count

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """One module of a model, as recorded in one run."""

    name: str
    """Its path, the prefix of its tensors' names on the Hub, after the part's name:
    `unet.down_blocks.1.attentions.0`."""
    kind: str
    """Its class: `Conv2d`, `SpatialTransformer`."""
    inputs: Mapping[str, Shape]
    """By the names of `forward`'s arguments.  Empty for lists of modules, which do not run."""
    outputs: tuple[Shape, ...]
    parameters: int
    """Its own and those of all layers in it."""
    flops: Flops
    """As `parameters`."""
    output_bytes: int
    """Of its outputs."""
    peak_bytes: int
    """Peak memory of activations while it runs, its inputs included, without gradients.  Workspace
    inside PyTorch's own functions (fused attention) does not count."""
    code: str
    """The line of its `forward`, or, for PyTorch's own layers, the line that calls it:
    `pare/unet/transformer.py:88`."""
    called: str
    """The line that calls it; empty for the whole model."""
    tensors: Mapping[str, Shape]
    """The shapes of its weights, by their path inside the layer."""


@dataclass(frozen=True)
class LayerTable:
    """All layers, outer before inner, in the order in which they ran."""

    layers: tuple[Layer, ...]
    names: Mapping[str, Layer] = field(repr=False)

    @classmethod
    def of(cls, layers: Sequence[Layer]) -> LayerTable:
        return cls(tuple(layers), {layer.name: layer for layer in layers})

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> Layer:
        return self.find(name)[0]

    def find(self, name: str) -> list[Layer]:
        """The layer of that name, or all that a glob (`unet.*.attn2`) matches.

        Raises:
            SettingError: there is none; the message names the nearest.
        """
        if name in self.names:
            return [self.names[name]]
        found = [layer for layer in self if fnmatch.fnmatchcase(layer.name, name)]
        if found:
            return found
        what = "no layer matches" if is_glob(name) else "there is no layer"
        near = nearest(name, list(self.names))
        raise SettingError(f"{what} {name!r}", fix=f"did you mean {' or '.join(near)}?")

    def inside(self, name: str) -> list[Layer]:
        """The layers in a layer, itself left out."""
        return [layer for layer in self if layer.name.startswith(f"{name}.")]


def is_glob(name: str) -> bool:
    return any(letter in name for letter in "*?[")


def nearest(name: str, names: Sequence[str], count: int = 3) -> list[str]:
    """The names most similar to a name, those that share its longest correct prefix first.

    `unet.down_blocks.9.attentions.0` is correct up to `unet.down_blocks`: layers in there are
    preferred to names that only look alike.  `mid_block` lacks its prefix.
    """
    ends = [n for n in names if n.endswith(f".{name}")]
    if ends:
        return ends[:count]
    known = name
    while known and known not in names:
        known = known.rpartition(".")[0]
    depth = known.count(".") + 1 if known else 0
    parents = {n for n in names if n.startswith(f"{known}.")} if known else set(names)
    beside = [n for n in parents if n.count(".") <= max(name.count("."), depth)]
    close = get_close_matches(name, beside, n=count, cutoff=0.3)
    return close or get_close_matches(name, names, n=count, cutoff=0.0)


# --- making one ---------------------------------------------------------------------------


def layer_table(module: nn.Module, *inputs: object, prefix: str = "") -> LayerTable:
    """The table of a module for inputs of given shapes.

    Args:
        inputs: what `forward` takes: a shape (a tuple) stands for a tensor of the module's
            dtype; anything else is passed on as it is.
        prefix: the name of the whole, `unet`; it stands before all names.

    Raises:
        whatever the module raises when it gets such shapes.
    """
    empty = without_weights(module)
    dtype = next((p.dtype for p in empty.parameters()), torch.float32)

    def tensor(value: object) -> object:
        shape = isinstance(value, tuple)
        return torch.empty(value, dtype=dtype, device="meta") if shape else value  # type: ignore[call-overload]

    arguments = [tensor(value) for value in inputs]
    return trace(empty, lambda: empty(*arguments), prefix)


def without_weights(module: nn.Module) -> nn.Module:
    """A copy of the module on the meta device; the module itself if it is there already."""
    tensors = [*module.parameters(), *module.buffers()]
    if all(tensor.is_meta for tensor in tensors):
        return module
    # `deepcopy` takes from the memo what it finds there, and so never copies a number.
    memo: dict[int, Any] = {}
    for tensor in tensors:
        empty = tensor.detach().to("meta")
        memo[id(tensor)] = (
            nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
        )
    return copy.deepcopy(module, memo)


def trace(module: nn.Module, run: Callable[[], object], prefix: str = "") -> LayerTable:
    """The table of the calls in `module` while `run` runs, which may call parts of it.

    The module has forward hooks meanwhile: pass a model that no other thread uses.
    """
    tracer = Tracer(module)
    names = {part: join(prefix, name) for name, part in module.named_modules()}
    with ExitStack() as stack:
        for part, name in names.items():
            before = part.register_forward_pre_hook(tracer.enter(name), with_kwargs=True)
            after = part.register_forward_hook(tracer.leave)
            stack.callback(before.remove)
            stack.callback(after.remove)
        with torch.no_grad(), tracer:
            run()
    return LayerTable.of(list(finish(tracer.calls, names)))


def join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix and name else prefix or name


@dataclass
class ModuleCall:
    """A call of a module."""

    name: str
    inputs: dict[str, Shape]
    called: str
    input_bytes: int
    live_at_start: int
    most_live: int
    flops: Flops = field(default_factory=Flops)
    outputs: tuple[Shape, ...] = ()
    output_bytes: int = 0

    @property
    def peak_bytes(self) -> int:
        return self.most_live - self.live_at_start + self.input_bytes


class Tracer(TorchFunctionMode):
    """Records the calls of modules (by hooks) and of PyTorch's functions (as a mode)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.calls: dict[str, ModuleCall] = {}
        self.stack: list[ModuleCall] = []
        self.live = 0
        # Weights are no activations; nor is a view of one.
        self.weights = [t.untyped_storage() for t in (*module.parameters(), *module.buffers())]
        self.counted = {id(storage) for storage in self.weights}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        flops = count(func, output, args, kwargs)
        for call in self.stack:
            call.flops += flops
        for tensor in tensors_in(output):
            self.hold(tensor)
        return output

    def hold(self, tensor: Tensor) -> None:
        """Count a result's memory until Python frees it; its views are not counted again."""
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self.counted:
            return
        self.counted.add(key)
        weakref.finalize(storage, self.release, key, size)
        self.live += size
        for call in self.stack:
            call.most_live = max(call.most_live, self.live)

    def release(self, key: int, size: int) -> None:
        self.counted.discard(key)
        self.live -= size

    def enter(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            given = named_tensors(module, args, kwargs)
            size = bytes_of(given.values())
            inputs = {key: tuple(tensor.shape) for key, tensor in given.items()}
            self.stack.append(ModuleCall(name, inputs, caller(), size, self.live, self.live))
            # A layer that runs again keeps its first call's shapes.
            self.calls.setdefault(name, self.stack[-1])

        return hook

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        call = self.stack.pop()
        results = list(tensors_in(output))
        call.outputs = tuple(tuple(result.shape) for result in results)
        call.output_bytes = bytes_of(results)
        if self.calls[call.name] is not call:
            self.calls[call.name].flops += call.flops


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a value, which may be nested in lists, tuples and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from tensors_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from tensors_in(inner)


def named_tensors(module: nn.Module, args: Any, kwargs: Any) -> dict[str, Tensor]:
    """The tensors among the arguments of `forward`: `x`, `text`, `skips.0`, `skips.1`."""
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    named: dict[str, Tensor] = {}
    for name, value in bound.arguments.items():
        inner = list(tensors_in(value))
        single = isinstance(value, Tensor)
        named |= {name if single else f"{name}.{i}": tensor for i, tensor in enumerate(inner)}
    return named


def bytes_of(tensors: Any) -> int:
    """The memory under some tensors; what two of them share counts once."""
    storages = {id(s): s for s in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storage.nbytes() for storage in storages.values())


def finish(calls: Mapping[str, ModuleCall], modules: Mapping[nn.Module, str]) -> Iterator[Layer]:
    """The calls as layers; each list of modules before the first of its layers."""
    parts = {name: part for part, name in modules.items()}
    done: set[str] = set()
    for name, call in calls.items():
        for outer in reversed(list(outer_names(name))):
            if outer in parts and outer not in calls and outer not in done:
                done.add(outer)
                yield list_layer(outer, parts[outer], calls)
        part = parts[name]
        own = type(part).__module__.partition(".")[0] != "torch"
        yield Layer(
            name=name,
            kind=type(part).__name__,
            inputs=call.inputs,
            outputs=call.outputs,
            parameters=sum(p.numel() for p in part.parameters()),
            flops=call.flops,
            output_bytes=call.output_bytes,
            peak_bytes=call.peak_bytes,
            code=forward_line(part) if own else call.called,
            called=call.called,
            tensors={key: tuple(tensor.shape) for key, tensor in part.state_dict().items()},
        )


def outer_names(name: str) -> Iterator[str]:
    """`a.b.c` -> `a.b`, `a`, and the nameless whole."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def list_layer(name: str, part: nn.Module, calls: Mapping[str, ModuleCall]) -> Layer:
    """A container that does not run itself: the sum of the layers called in it."""
    inside = {n: call for n, call in calls.items() if n.startswith(f"{name}.") or not name}
    outermost = [
        call for n, call in inside.items() if not any(o in inside for o in outer_names(n) if o != n)
    ]
    flops = Flops()
    for call in outermost:
        flops += call.flops
    return Layer(
        name=name,
        kind=type(part).__name__,
        inputs={},
        outputs=(),
        parameters=sum(p.numel() for p in part.parameters()),
        flops=flops,
        output_bytes=0,
        peak_bytes=max((call.peak_bytes for call in outermost), default=0),
        code="",
        called="",
        tensors={key: tuple(tensor.shape) for key, tensor in part.state_dict().items()},
    )


# --- lines of code ------------------------------------------------------------------------


def forward_line(module: nn.Module) -> str:
    """The line of the class's `forward`."""
    function = inspect.unwrap(type(module).forward)
    return line_of(function.__code__.co_filename, function.__code__.co_firstlineno, module)


def line_of(path: str, line: int, module: nn.Module) -> str:
    return f"{short_path(path, type(module).__module__)}:{line}"


def caller() -> str:
    """The line that called the module whose hook this runs in; "" if the tracer did."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module != __name__ and module.partition(".")[0] != "torch":
            if module.startswith("pare.study."):
                return ""
            return f"{short_path(frame.f_code.co_filename, module)}:{frame.f_lineno}"
        if module == __name__ and frame.f_code.co_name == "trace":
            return ""
        frame = frame.f_back
    return ""


def short_path(path: str, module: str) -> str:
    """A source file's path from its package on: `pare/unet/resnet.py`."""
    top = getattr(sys.modules.get(module.partition(".")[0]), "__file__", None)
    root = Path(top).parent.parent if top is not None and top.endswith("__init__.py") else None
    file = Path(path)
    return file.relative_to(root).as_posix() if root and file.is_relative_to(root) else file.name
