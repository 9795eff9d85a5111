"""The Hub's `config.json` files as frozen dataclasses, with nothing silently ignored.

Every key of a config file is exactly one of

- **modelled**: a field of the dataclass, typed and normalised;
- **pinned**: pare supports one value (or a few); any other raises, with the reason;
- **unused**: known, but without meaning for this class (a DDIM file that carries
  PNDM's `skip_prk_steps`);
- **provenance**: its name begins with `_`;
- **unknown**: raises.

Old files are sparse: a key that is absent means "the default of that time".  Those
defaults stand in one table per class, `HUB_DEFAULTS`, and nowhere else.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from pare.errors import ConfigError


@dataclass(frozen=True)
class Pin:
    """A key that pare accepts with these values only, and why."""

    values: tuple[object, ...]
    reason: str


@dataclass(frozen=True)
class HubConfig:
    """Base of the configs: `read` turns the Hub's JSON object into the dataclass."""

    HUB_DEFAULTS: ClassVar[Mapping[str, object]] = {}
    PINNED: ClassVar[Mapping[str, Pin]] = {}
    UNUSED: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def read(cls, raw: Mapping[str, Any], where: str) -> Self:
        """Build the config from the JSON object `raw`.

        `where` names the file in error messages.

        Raises:
            ConfigError: an unknown key, an unsupported value of a pinned key, a value of
                the wrong type, or an absent key that has no default.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        values: dict[str, Any] = dict(cls.HUB_DEFAULTS)
        for key, value in raw.items():
            if key.startswith("_") or key in cls.UNUSED:
                continue
            if key in cls.PINNED:
                check_pin(key, value, cls.PINNED[key], where)
            elif key in fields:
                values[key] = value
            else:
                raise unknown_key(key, fields | set(cls.PINNED), where)
        absent = sorted(fields - set(values))
        if absent:
            raise ConfigError(
                f"{where} lacks {', '.join(map(repr, absent))}",
                expected="every key that describes the architecture",
                fix="take the file from the model's own folder",
            )
        return cls(**cls.normalise(values, where))

    @classmethod
    def normalise(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
        """Check types and ranges; bring equal spellings of one thing to one form."""
        return values


def check_pin(key: str, value: object, pin: Pin, where: str) -> None:
    for allowed in pin.values:
        # JSON's true equals 1 in Python: compare types as well, but let 1 stand for 1.0.
        if value == allowed and isinstance(value, bool) == isinstance(allowed, bool):
            return
    allowed_text = " or ".join(json.dumps(v) for v in pin.values)
    raise ConfigError(
        f"{where} sets {key!r} to {short_json(value)}",
        expected=f"{allowed_text} ({pin.reason})",
        fix="this model needs something that pare does not do",
    )


def unknown_key(key: str, known: set[str], where: str) -> ConfigError:
    near = difflib.get_close_matches(key, sorted(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "remove it if it has no meaning"
    return ConfigError(f"{where} has the unknown key {short_json(key)}", fix=hint)


def short_json(value: object, limit: int = 80) -> str:
    """`value` as JSON on one line, cut to `limit` characters."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def integer(values: Mapping[str, Any], key: str, where: str, low: int, high: int = 2**20) -> int:
    """The integer under `key`, between `low` and `high`, or a ConfigError."""
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise wrong_value(where, key, value, f"a whole number from {low} to {high}")
    return value


def number(values: Mapping[str, Any], key: str, where: str, low: float, high: float) -> float:
    """The finite number under `key`, between `low` and `high`, or a ConfigError."""
    value = values[key]
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not math.isfinite(value) or not low <= value <= high:
        raise wrong_value(where, key, value, f"a number from {low} to {high}")
    return float(value)


def boolean(values: Mapping[str, Any], key: str, where: str) -> bool:
    """The boolean under `key`, or a ConfigError."""
    value = values[key]
    if not isinstance(value, bool):
        raise wrong_value(where, key, value, "true or false")
    return value


def one_of(values: Mapping[str, Any], key: str, where: str, options: tuple[str, ...]) -> str:
    """The string under `key`, one of `options`, or a ConfigError."""
    value = values[key]
    if not isinstance(value, str) or value not in options:
        raise wrong_value(where, key, value, f"one of {', '.join(options)}")
    return value


def per_level(values: Mapping[str, Any], key: str, where: str, levels: int) -> tuple[int, ...]:
    """The integers under `key`, one a level; a single integer stands for all levels."""
    value = values[key]
    listed = [value] * levels if isinstance(value, int) else value
    good = isinstance(listed, list | tuple) and len(listed) == levels
    if not good or not all(
        isinstance(v, int) and not isinstance(v, bool) and 1 <= v <= 2**16 for v in listed
    ):
        raise wrong_value(where, key, value, f"{levels} positive whole numbers, one a level")
    return tuple(listed)


def wrong_value(where: str, key: str, value: object, expected: str) -> ConfigError:
    return ConfigError(f"{where} sets {key!r} to {short_json(value)}", expected=expected)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        ConfigError: not UTF-8, not JSON, nested too deeply, or not an object.
        OSError: the file cannot be opened.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        problem = f"{path} is not a JSON file ({error})"
        raise ConfigError(problem, fix="download it again") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds a JSON {type(raw).__name__}", expected="an object")
    return raw
