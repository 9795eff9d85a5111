"""What an option's value may be: parsing, normal forms, and what TAB offers for it.

A callback or a type here returns what a recipe keeps.
"""

from __future__ import annotations

import difflib
import re
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from pare.errors import SettingError
from pare.runtime import validation
from pare.runtime.extensions import SCHEDULERS, extensions

# pare.schedulers imports torch, so its names stand here too; a test holds them together.
SCHEDULER_NAMES = (
    "ddim", "ddpm", "pndm", "lms", "euler", "euler-ancestral", "heun", "dpm2", "dpm2-ancestral",
    "dpm++2m", "dpm++2s", "dpm++2s-ancestral", "dpm++sde", "dpm++2m-sde", "dpm++3m-sde", "unipc",
    "deis", "lcm", "tcd",
)  # fmt: skip
DTYPE_NAMES = ("auto", "float32", "float16", "bfloat16")

# What other programs call the schedulers, without blanks, dots, dashes and capitals.
SCHEDULER_ALIASES = {
    "plms": "pndm", "eulera": "euler-ancestral", "k_euler": "euler", "dpmsolver++": "dpm++2m",
    "dpmsolvermultistep": "dpm++2m", "dpm2m": "dpm++2m", "lmsdiscrete": "lms",
    "eulerdiscrete": "euler", "eulerancestraldiscrete": "euler-ancestral",
    "heundiscrete": "heun", "kdpm2discrete": "dpm2", "kdpm2ancestraldiscrete": "dpm2-ancestral",
    "dpm_2": "dpm2", "dpm2a": "dpm2-ancestral", "dpm++2sa": "dpm++2s-ancestral",
    "dpmsolversinglestep": "dpm++2s", "dpmsolversde": "dpm++sde", "dpm++2m_sde_gpu": "dpm++2m-sde",
    "dpm++3m_sde_gpu": "dpm++3m-sde", "dpm++sde_gpu": "dpm++sde", "unipcmultistep": "unipc",
    "uni_pc": "unipc", "uni_pc_bh2": "unipc", "deismultistep": "deis",
}  # fmt: skip
KARRAS = "pare.karras"  # where a context's `meta` keeps that a scheduler's name asks for it
FIND_NAN = "pare.find_nan"  # and whether --find-nan is given, see `not_in_recipe`


# --- callbacks ----------------------------------------------------------------------------


def checked(check: Callable[[Any], Any]) -> Callable[..., Any]:
    """An option's callback that applies a check of `validation` unless the option is absent."""

    def callback(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        return None if value is None else check(value)

    return callback


def number(name: str, low: float, high: float) -> Callable[..., Any]:
    """The callback of a number from `low` to `high`."""
    return checked(lambda value: validation.check_number(name, value, low, high))


def each(check: Callable[[Any], Any]) -> Callable[..., Any]:
    """As `checked`, for every value of an option that may be repeated."""
    return checked(lambda values: tuple(check(value) for value in values))


def as_typed(check: Callable[[Any], Any]) -> Callable[..., Any]:
    """Checks a value, or every value, and keeps what was typed, for the recipe."""

    def keep(value: Any) -> Any:
        for one in value if isinstance(value, tuple) else (value,):
            check(one)
        return value

    return checked(keep)


def not_in_recipe(name: str) -> dict[str, Any]:
    """Settings of an option that changes no image, and so is no argument of a run; see `noted`."""

    def callback(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        context.meta[f"pare.{name}"] = value

    return {"expose_value": False, "callback": callback}


def noted(name: str) -> Any:
    """The running command's value of an option with `not_in_recipe`."""
    return click.get_current_context().meta.get(f"pare.{name}")


# --- types --------------------------------------------------------------------------------


class SchedulerName(click.Choice[str]):
    """A scheduler by the name that pare, diffusers or a web interface has for it."""

    def __init__(self) -> None:
        super().__init__(SCHEDULER_NAMES)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        name, karras = scheduler_of(str(value))
        if karras and ctx is not None:
            ctx.meta[KARRAS] = True
        names = (*SCHEDULER_NAMES, *extensions(SCHEDULERS))
        if name not in names:
            near = difflib.get_close_matches(name, names, 1, 0.5)
            hint = f" (Did you mean {near[0]!r}?)" if near else ""
            known = ", ".join(map(repr, names))
            self.fail(f"{value!r} is not one of {known}{hint}", param, ctx)
        return name


def scheduler_of(text: str) -> tuple[str, bool]:
    """`DPM++ 2M Karras` as ("dpm++2m", True); what nobody knows as it is, in small letters."""
    if text in SCHEDULER_NAMES:
        return text, False
    key = re.sub(r"[\s._-]", "", text.lower()).replace("dpmpp", "dpm++")
    key = key.removesuffix("scheduler").removeprefix("sample")
    bare = key.removesuffix("karras")
    plain = {re.sub(r"[._-]", "", name): name for name in SCHEDULER_NAMES}
    aliases = {re.sub(r"[._-]", "", name): found for name, found in SCHEDULER_ALIASES.items()}
    return (plain | aliases).get(bare, text.lower()), bare != key


def karras_of_name(
    context: click.Context, parameter: click.Parameter, value: bool | None
) -> bool | None:
    """--karras where it is given, or what the scheduler's name says."""
    return context.meta.get(KARRAS) if value is None else value


class OneNumber(click.ParamType[float]):
    """A number of an option that `pare sweep` can vary; several numbers say so."""

    def __init__(self, kind: click.ParamType[Any]) -> None:
        self.kind, self.name = kind, kind.name

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, str) and re.fullmatch(r"[0-9.]+(,|\.\.)[0-9.,]+", value):
            name = f"--{param.name}" if param else "it"
            self.fail(
                f"{name} takes one number; to vary it, use `pare sweep --vary {name[2:]}={value}`"
            )
        number: float = self.kind.convert(value, param, ctx)
        return number


class SeedRange(click.ParamType[tuple[int, ...]]):
    """A seed, several (`1-4`, `3,5`), or -1 for a random one."""

    name = "seed"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        typed = ctx is not None and ctx.parent is not None  # and not a recipe's
        parts = [part.strip() for part in str(value).split(",")]
        return tuple(seed for part in parts for seed in (random_seed() if typed and part == "-1"
                                                         else seeds_of(part)))  # fmt: skip


def random_seed() -> Sequence[int]:
    seed = secrets.randbelow(2**32)
    click.echo(f"pare: the random seed is {seed}", err=True)
    return [seed]


def seeds_of(text: str) -> Sequence[int]:
    """`7` as [7], `1-4` and `1..4` as 1 to 4."""
    found = re.fullmatch(r"([0-9]{1,30})(?:(?:-|\.\.)([0-9]{1,30}))?", text)
    if not found:
        raise SettingError(
            f"`seed` is {text!r}",
            expected="a whole number, 1-4 or 3,5 for several, or -1 for a random one",
        )
    first = validation.check_seed(int(found[1]))
    last = validation.check_seed(int(found[2])) if found[2] else first
    if not 0 <= last - first < validation.MAX_IMAGES:
        raise SettingError(
            f"`seed` is {text!r}", expected=f"a range of 1 to {validation.MAX_IMAGES} seeds"
        )
    return range(first, last + 1)


def flat_seeds(
    context: click.Context, parameter: click.Parameter, value: Sequence[tuple[int, ...]]
) -> tuple[int, ...]:
    return tuple(seed for some in value for seed in some) or (0,)


class InputFile(click.Path):
    """The name of a file that an image is made from: the recipe keeps its name and SHA-256."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def file(self, value: Any) -> Path:
        """The file in an option's value, which may say more."""
        return Path(value)

    def with_file(self, value: Any, path: str) -> str:
        """The value with another file."""
        return path

    def local(self, path: Path) -> Path:
        """Where the file is on this machine; what is on the Hub is downloaded."""
        return path

    def bare_name(self, path: Path) -> Path:
        """The file as a recipe has it, without the folders in which it lies."""
        return Path(path.name or path.resolve().name)


# --- what TAB offers ----------------------------------------------------------------------

# Quoted: CompletionItem takes no type argument in the oldest click that pare supports.
Offer = Callable[[click.Context, click.Parameter, str], "list[CompletionItem[str]]"]


def offer(*words: str) -> Offer:
    """Words to choose from for an option that takes others as well."""

    def complete(
        context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        return [CompletionItem(word) for word in words if word.startswith(incomplete)]

    return complete


def offer_models(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """The built-in model, the repositories in the Hub's cache, and files."""
    from huggingface_hub.constants import HF_HUB_CACHE

    kept = sorted(Path(HF_HUB_CACHE).glob("models--*--*/snapshots"))
    repositories = [path.parent.name.removeprefix("models--").replace("--", "/") for path in kept]
    found = offer("roads", *repositories)(context, parameter, incomplete)
    return [CompletionItem(incomplete, type="file"), *found]
