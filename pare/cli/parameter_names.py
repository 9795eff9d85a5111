"""The library's parameters as the command's options.

The library's errors and warnings name parameters, in backticks: "`steps` is 0", "pass
`force=True`".  A person at a terminal types options, so the running command shows its own:
"--steps is 0", "pass --force".
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import click

# In backticks, or without before a value where the sentence begins: "steps is 0".
VALUE = r"(?:is (?:-?[0-9]|-?inf|nan|'|True|False|None)|ends at |names ')"
PARAMETER = re.compile(rf"`([a-z][a-z0-9_]*)(?:=([^`]*))?`|^([a-z][a-z0-9_]*)(?= {VALUE})")

# Parameters of the library whose options have other names.
OTHER_NAMES: Mapping[str, str] = {
    "seeds": "seed",
    "height": "size",
    "width": "size",
    "prompts": "prompt",
    "invert": "invert_mask",
    "words": "word_map",
    "concept": "concepts",
    "cross_replace_words": "cross_replace_word",
}


def with_options(text: str, command: click.Command) -> str:
    """`text` with the command's options in place of parameters; other backticks stay.

    >>> with_options("`steps` is 0; pass `force=True`", generate)
    '--steps is 0; pass --force'
    """
    named = {str(parameter.name): parameter for parameter in command.params}

    def replace(match: re.Match[str]) -> str:
        name, value = match[1] or match[3], match[2]
        parameter = named.get(name) or named.get(OTHER_NAMES.get(name, ""))
        # "image is 9 x 9" is about a file of that name.
        if parameter is None or (match[3] and not isinstance(parameter, click.Option)):
            return match[0]
        return in_words(parameter, value)

    return PARAMETER.sub(replace, text)


def in_words(parameter: click.Parameter, value: str | None) -> str:
    """An option, with a value if there is one; an argument by the name that --help gives it."""
    if not isinstance(parameter, click.Option):
        return parameter.human_readable_name.strip("[]") + ("" if value is None else f" {value}")
    if parameter.is_flag:
        off = value == "False" and parameter.secondary_opts
        return parameter.secondary_opts[0] if off else parameter.opts[0]
    return parameter.opts[0] + ("" if value is None else " " + value.strip("'\""))
