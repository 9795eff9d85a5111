"""Losses written in a line: `(image[:, 2] - 0.9).abs().mean()`, `blue + 0.5 * symmetry`.

A line is arithmetic on one image, `image`, (1, 3, H, W) in [0, 1] with the channels red,
green and blue:

    image                       the image
    1, 0.5, -2                  numbers
    + - * / **                  of images and numbers
    image[:, 2], image[..., :64]    parts of an image
    x.mean(), x.clamp(0, 1), …  the methods of a tensor that `METHODS` lists
    blue, symmetry              losses by name, of the image
    colour("orange")            losses with arguments

Nothing else.  A line is parsed by Python's grammar and interpreted here, never executed: any
other syntax is refused.  So a line from a stranger's image can do no more than compute a
number, and `pare rerun` may compute it.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from torch import Tensor

from pare.errors import LossError, PareError
from techniques.loss_guidance import losses
from techniques.loss_guidance.loss_guided_loop import Loss

Value = Tensor | float
Step = Callable[[Tensor], Value]

METHODS = (
    "abs", "amax", "amin", "clamp", "cos", "exp", "flip", "log", "mean", "norm", "pow",
    "relu", "roll", "sigmoid", "sin", "sqrt", "square", "std", "sum", "tanh", "var",
)  # fmt: skip
OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
LONGEST = 1000  # characters
# What tensors raise where their shapes or arguments do not fit.
MISFITS = (TypeError, ValueError, IndexError, RuntimeError, ArithmeticError, NotImplementedError)


Makers = Mapping[str, Callable[..., Loss]]
"""The names of a line beside `image`: functions that return a loss, without arguments (`blue`) or
with constants (`colour("orange")`).  They are called once, when the line is read."""

USUAL: Makers = {
    "blue": lambda: losses.blue,
    "symmetry": lambda: losses.symmetry,
    "brightness": losses.brightness,
    "colour": losses.colour,
}


def read_loss(line: str, makers: Makers = USUAL) -> Loss:
    """The loss that a line describes.

    Raises:
        LossError: the line cannot be read, or holds something else; when it is computed, too,
            if it asks for something that tensors cannot do.
        PareError: what a maker finds wrong.
    """
    if len(line) > LONGEST:
        raise LossError(f"the loss has {len(line)} characters", expected=f"at most {LONGEST}")
    try:
        tree = ast.parse(line.strip(), mode="eval")
        step = Reader(line, makers).step(tree.body)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        if isinstance(error, PareError):
            raise
        reason = getattr(error, "msg", None) or type(error).__name__
        raise refused(line, f"cannot be read ({reason})") from error

    def loss(image: Tensor) -> Tensor:
        try:
            value = step(image)
        except MISFITS as error:
            if isinstance(error, PareError) or "memory" in str(error):
                raise
            reason = " ".join(str(error).split("\n")[0].split())[:160]
            raise refused(line, f"cannot be computed ({reason})") from error
        return image.new_tensor(value) if isinstance(value, float | int) else value

    return loss


class Reader:
    """From Python's syntax tree to functions of an image."""

    def __init__(self, line: str, makers: Makers) -> None:
        self.line, self.makers = line, makers

    def step(self, node: ast.expr) -> Step:
        """What a part of the line computes."""
        match node:
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                constant = float(number)
                return lambda image: constant
            case ast.Name(id="image"):
                return lambda image: image
            case ast.Name(id=name):
                return self.made(name, (), {})
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=inner):
                value, factor = self.step(inner), -1.0 if isinstance(sign, ast.USub) else 1.0
                return lambda image: factor * value(image)
            case ast.BinOp(left=left, op=kind, right=right) if type(kind) in OPERATORS:
                combine, a, b = OPERATORS[type(kind)], self.step(left), self.step(right)
                return lambda image: real(combine(a(image), b(image)))
            case ast.Subscript(value=whole, slice=place):
                value, index = self.step(whole), self.index(place)
                return lambda image: tensor(value(image))[index]
            case ast.Call(func=ast.Attribute(value=owner, attr=method), args=given, keywords=named):
                return self.method(self.step(owner), method, *self.constants(given, named))
            case ast.Call(func=ast.Name(id=name), args=given, keywords=named):
                return self.made(name, *self.constants(given, named))
        raise refused(self.line, f"holds {ast.unparse(node)[:60]!r}, which is no part of a loss")

    def made(self, name: str, given: tuple[Any, ...], named: Mapping[str, Any]) -> Loss:
        """The loss of a name, with what it is told."""
        if name not in self.makers:
            known = ["image", *self.makers]
            raise refused(self.line, f"names {name!r}", f"one of {', '.join(known)}", name, known)
        try:
            return self.makers[name](*given, **named)
        except TypeError as error:
            told = "what it does not take" if given or named else "nothing that it could go by"
            raise refused(self.line, f"tells {name} {told}") from error

    def method(
        self, owner: Step, name: str, given: tuple[Any, ...], named: Mapping[str, Any]
    ) -> Step:
        if name not in METHODS:
            listed = ", ".join(METHODS)
            raise refused(self.line, f"calls .{name}", f"one of {listed}", name, METHODS)
        return lambda image: getattr(tensor(owner(image)), name)(*given, **named)

    def constants(
        self, given: list[ast.expr], named: list[ast.keyword]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments, which are numbers, truths, texts and lists of them."""
        if any(keyword.arg is None for keyword in named):
            raise refused(self.line, "passes arguments on with **")
        return (
            tuple(self.constant(node) for node in given),
            {str(keyword.arg): self.constant(keyword.value) for keyword in named},
        )

    def constant(self, node: ast.expr) -> Any:
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError) as error:
            what = f"has {ast.unparse(node)[:60]!r} as an argument"
            raise refused(self.line, what, "a number or a text") from error

    def index(self, node: ast.expr) -> Any:
        """What stands in brackets: whole numbers, slices, `...`."""
        match node:
            case ast.Tuple(elts=parts):
                return tuple(self.index(part) for part in parts)
            case ast.Slice(lower=lower, upper=upper, step=step):
                bounds = (lower, upper, step)
                return slice(*(None if b is None else self.whole(b) for b in bounds))
            case ast.Constant(value=value) if value is Ellipsis:
                return value
        return self.whole(node)

    def whole(self, node: ast.expr) -> int:
        number = self.constant(node)
        if isinstance(number, bool) or not isinstance(number, int) or abs(number) > 2**31:
            raise refused(self.line, f"has {number!r} in brackets", "whole numbers and slices")
        return number


def tensor(value: Value) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError("a number has no parts and no methods")
    return value


def real(value: Any) -> Value:
    if isinstance(value, complex):  # of a root of a negative number
        raise ValueError("a root of a negative number")
    return value


def refused(
    line: str, why: str, expected: str = "", wrong: str = "", known: Sequence[str] = ()
) -> LossError:
    near = get_close_matches(wrong, known, n=1)
    fix = f"did you mean {near[0]}?" if near else ""
    return LossError(f"the loss {line.strip()[:120]!r} {why}", expected=expected, fix=fix)
