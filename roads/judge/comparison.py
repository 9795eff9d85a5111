"""What an edit changed, kept, lost and added, according to the judge.

    found = compare(before, after, prompt="a snowy road in the mountains with a red car")
    print(found.sentence())  # judge: sunny -> snowy; kept mountains, red car; lost the sun; …

Fidelity figures such as PSNR compare pixels: an edit that loses a small car can still score
well.  The judge names what is in each image, so that such a loss is said.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from roads.judge.judge import Judge, Verdict, load_judge
from roads.world.captions import read_caption


@dataclass(frozen=True)
class Comparison:
    """Two verdicts side by side, and what the prompt asked for.

    Every entry is a word of this world: a weather, a place, "red car", "house", "the sun".
    """

    changed: tuple[str, ...] = ()
    """Weather, place or the car's colour, as "sunny -> snowy"."""
    kept: tuple[str, ...] = ()
    """The place and objects that are in both images; the weather where it is the same."""
    lost: tuple[str, ...] = ()
    """Objects that are in the first image only."""
    added: tuple[str, ...] = ()
    """Objects that are in the second image only."""
    found: tuple[str, ...] = ()
    """What the prompt names and the second image shows."""
    missing: tuple[str, ...] = ()
    """What the prompt names and the second image does not show."""
    erased: tuple[str, ...] = ()
    """Unwanted things that the second image does not show."""
    remaining: tuple[str, ...] = ()
    """Unwanted things that the second image still shows."""

    @property
    def succeeded(self) -> bool:
        """Whether all that the prompt names is there and nothing unwanted is."""
        return not self.missing and not self.remaining

    def sentence(self) -> str:
        """One line of text: "judge: …", with the empty parts left out."""
        lists = {
            "kept": self.kept,
            "lost": [name for name in self.lost if name not in self.erased],
            "added": self.added,
            "erased": [name for name in self.erased if name in self.lost],
            "without": [name for name in self.erased if name not in self.lost],
            "still there:": self.remaining,
            "not there, though the prompt names it:": self.missing,
        }
        parts = [*self.changed]
        parts += [f"{word} {', '.join(names)}" for word, names in lists.items() if names]
        if self.found and not self.missing:
            parts.append("all that the prompt names is there")
        return f"judge: {'; '.join(parts)}" if parts else "judge: nothing to say"

    def report(self) -> dict[str, Any]:
        """The same for JSON: lists, `succeeded` and the sentence."""
        lists = {name: list(value) for name, value in asdict(self).items()}
        return {**lists, "succeeded": self.succeeded, "sentence": self.sentence()}


def compare(
    before: Image.Image | None,
    after: Image.Image,
    *,
    prompt: str = "",
    unwanted: Sequence[str] = (),
    judge: Judge | None = None,
) -> Comparison:
    """What the judge finds in an image, beside the one that it was made of.

    Args:
        before: None for an image made from a prompt alone.
        prompt: what `after` is to show; words that this world does not have say nothing.
        unwanted: phrases that name what `after` is not to show, such as "streetlights", even if
            the prompt names it.
        judge: by default the built-in one.
    """
    judge = judge or builtin_judge()
    verdicts = judge([after] if before is None else [after, before])
    return compare_verdicts(verdicts[1] if before is not None else None, verdicts[0],
                            prompt=prompt, unwanted=unwanted)  # fmt: skip


def compare_verdicts(
    before: Verdict | None, after: Verdict, *, prompt: str = "", unwanted: Sequence[str] = ()
) -> Comparison:
    """The same from verdicts."""
    changed, kept, lost, added = [], [], [], []
    if before is not None:
        for name in ("weather", "place", "car", "streetlights", "clouds", "house", "orb"):
            old, new = shown(before, name), shown(after, name)
            if old == new:
                kept += [old] if old else []
            elif old and new and name != "orb":
                changed.append(f"{old} -> {new}")
            else:  # an object came or went; by night the sun is another object, the moon
                lost += [old] if old else []
                added += [new] if new else []
    asked = read_caption(prompt.lower())
    refused = [pair for text in unwanted for pair in read_caption(text.lower()).items()]
    hated = {phrase(name, value, after): shows(after, name, value) for name, value in refused}
    wanted = {phrase(name, value, after): shows(after, name, value)
              for name, value in asked.items() if name not in dict(refused)}  # fmt: skip
    return Comparison(
        changed=tuple(changed),
        kept=tuple(kept),
        lost=tuple(lost),
        added=tuple(added),
        found=where(wanted, True),
        missing=where(wanted, False),
        erased=where(hated, False),
        remaining=where(hated, True),
    )


def where(marks: Mapping[str, bool], value: bool) -> tuple[str, ...]:
    return tuple(name for name, mark in marks.items() if mark is value)


def shown(verdict: Verdict, name: str) -> str:
    """What the verdict says of an attribute, in a word or two; "" for an absent object."""
    value = getattr(verdict, name)
    if name in ("weather", "place"):
        return str(value)
    return phrase(name, value, verdict) if verdict.has(name) else ""


def phrase(name: str, value: str | bool, verdict: Verdict) -> str:
    """An attribute and its value as words: "red car", "no house", "the moon"."""
    if name in ("weather", "place"):
        return str(value)
    things = {"orb": "the moon" if verdict.weather == "night" else "the sun", "car": "car"}
    thing = things.get(name, name)
    if value in ("none", False):
        return f"no {thing.removeprefix('the ')}"
    return f"{value} car" if name == "car" and value != "any" else thing


def shows(verdict: Verdict, name: str, value: str | bool) -> bool:
    """Whether the image is as a caption says (`read_caption`)."""
    if value == "any":
        return verdict.has(name)
    return bool(getattr(verdict, name) == value)


@functools.cache
def builtin_judge() -> Judge:
    return load_judge()


def success_rate(comparisons: Iterable[Comparison]) -> float:
    """The share of comparisons that succeeded."""
    marks = [comparison.succeeded for comparison in comparisons]
    return sum(marks) / len(marks)
