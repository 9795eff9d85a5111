"""The tables as Markdown, and the page that they stand in."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pare.errors import OutputError
from roads.benchmark.compared_methods import FRAME, TECHNIQUES
from roads.benchmark.edit_benchmark import TechniqueRow
from roads.benchmark.edit_tasks import WHOLE_IMAGE, Split
from roads.benchmark.tables import edit_table, erasure_table, p2p_table
from roads.benchmark.tables.jobs import JobResults
from techniques.inversion import EDIT_METHODS

MARKED = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

# Background PSNR in dB of PIE-Bench, SD 1.4 with prompt-to-prompt (arXiv:2310.01506, table 1).
PIE_BENCH = {"direct": 27.22, "null-text": 27.03, "negative": 26.21, "ddim": 17.87}


def fill(text: str, tables: Mapping[str, str]) -> str:
    """The page with every table between its markers; tables that were not made stay.

    Raises:
        OutputError: the page has no place for a table.
    """
    places = [name for _, name, _ in MARKED.findall(text)]
    for name in tables:
        if places.count(name) != 1:
            raise OutputError(
                f"the page has {places.count(name)} places for the table {name!r}",
                expected=f"one, between <!-- table: {name} --> and <!-- end -->",
            )

    def filled(match: re.Match[str]) -> str:
        start, name, end = match.groups()
        return f"{start}\n{tables[name]}\n\n{end}" if name in tables else match[0]

    return MARKED.sub(filled, text)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table: the first column to the left, the others to the right; "" without rows."""
    if not rows:
        return ""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float, digits: int = 0) -> str:
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return "exact"
    return f"{value:.{digits}f}"


def percent(value: float) -> str:
    return number(100 * value)


@dataclass(frozen=True)
class Pages:
    """What was measured, as tables."""

    found: JobResults
    memory: Mapping[str, float]  # megabytes by name
    chosen: Mapping[str, float]  # family of erasure -> the weight that development chose

    def tables(self) -> dict[str, str]:
        """All those whose measurements are there, by their names on the page."""
        makers: dict[str, Callable[[], str]] = {
            "edits": self.edits_table, "order": self.order_table, "blend": self.blend_table,
            "erasing-choice": self.erasing_choice_table, "erasing": self.erasing_table,
            "erasing-images": self.erasing_images_table, "words": self.words_table,
            "words-memory": self.words_memory_table, "defaults": self.defaults_table,
        }  # fmt: skip
        made = {name: make() for name, make in makers.items()}
        return {name: table for name, table in made.items() if table}

    # --- edits of images ------------------------------------------------------------------

    def rows(self, names: Sequence[str], split: Split = "held-out") -> list[TechniqueRow]:
        """One a technique that was measured."""
        found = [(n, self.found.records("edits", n, split)) for n in names]
        return [edit_table.row(name, records) for name, records in found if records]

    def edits_table(self) -> str:
        rows = self.rows([*FRAME, *TECHNIQUES])
        head = ["", "success", "unchanged", "dB outside", "dB beyond the mask", "to the truth",
                "to the source", "UNet rows", "seconds", "MB"]  # fmt: skip
        return markdown(head, [
            [
                row.technique, number(row.success), number(row.unchanged),
                number(row.outside_psnr, 1), number(row.beyond_mask_psnr, 1),
                number(row.structure, 3), number(row.moved, 3), number(row.evaluations),
                number(row.processor_seconds, 1),
                number(self.memory.get(row.technique, math.nan)),
            ]
            for row in rows
        ])  # fmt: skip

    def order_table(self) -> str:
        """Which inversion keeps the background best, beside PIE-Bench."""
        lines: list[list[str]] = []
        ours: dict[str, float] = {}
        for method in EDIT_METHODS["p2p"]:
            p2p, plain = (self.rows([f"{kind} {method}"]) for kind in ("p2p", "resample"))
            if not p2p:
                continue
            ours[method] = p2p[0].outside_psnr
            lines.append([
                method, number(PIE_BENCH.get(method, math.nan), 2),
                number(p2p[0].outside_psnr, 2), number(p2p[0].success), number(p2p[0].moved, 3),
                *([number(plain[0].outside_psnr, 2), number(plain[0].success)]
                  if plain else ["", ""]),
            ])  # fmt: skip
        theirs = [method for method in PIE_BENCH if method in ours]
        here = sorted(theirs, key=lambda method: -ours[method])
        lines.sort(key=lambda line: -float(line[2]))
        head = ["inversion", "PIE-Bench, dB", "p2p, dB outside", "success", "to the source",
                "resampled, dB outside", "success"]  # fmt: skip
        if not lines:
            return ""
        same = "the same as" if here == theirs else "not"
        return markdown(head, lines) + (
            f"\n\nTheir order here, {', '.join(here)}, is {same} that of PIE-Bench "
            f"({', '.join(theirs)})."
        )

    def blend_table(self) -> str:
        local = [row for row in self.local_rows() if row.technique.startswith("blend")]
        if not local:
            return ""
        head = ["background", "success", "dB beyond the mask", "SSIM outside", "seconds"]
        return markdown(head, [
            [row.technique.removeprefix("blend "), number(row.success),
             number(row.beyond_mask_psnr, 1), number(row.outside_ssim, 3),
             number(row.processor_seconds, 1)]
            for row in local
        ])  # fmt: skip

    def local_rows(self) -> list[TechniqueRow]:
        """Over the tasks that leave something alone."""
        found = [
            (name, [
                record for record in self.found.records("edits", name, "held-out")
                if record["kind"] not in WHOLE_IMAGE
            ])
            for name in TECHNIQUES
        ]  # fmt: skip
        return [edit_table.row(name, records) for name, records in found if records]

    def erasing_images_table(self) -> str:
        rows = self.rows([*erasure_table.ON_IMAGES])
        head = ["", "gone", "unchanged", "dB outside", "to the source"]
        return markdown(head, [
            [row.technique, number(row.success), number(row.unchanged),
             number(row.outside_psnr, 1), number(row.moved, 3)]
            for row in rows
        ])  # fmt: skip

    # --- erasure from noise -----------------------------------------------------------------

    def erasing_line(self, split: Split, variant: str) -> list[str]:
        def mean(field: str) -> float:
            return self.found.mean("erasing", variant, split, field)

        return [
            percent(mean("gone")), percent(mean("kept")), number(mean("structure"), 3),
            *(f"{percent(mean(f'gone {n}'))} / {percent(mean(f'kept {n}'))}"
              for n in erasure_table.COUNTS),
        ]  # fmt: skip

    ERASING = ("gone", "kept", "structure", "1: gone / kept", "3", "5")

    def erasing_choice_table(self) -> str:
        lines = [
            [variant + (" (chosen)" if self.is_chosen(variant) else ""),
             *self.erasing_line("development", variant)]
            for variant in erasure_table.variants()
            if self.found.records("erasing", variant, "development")
        ]  # fmt: skip
        return markdown(["gates and weight", *self.ERASING], lines)

    def is_chosen(self, variant: str) -> bool:
        family, weight = variant.rsplit(" ", 1)
        return self.chosen.get(family) == float(weight)

    def erasing_table(self) -> str:
        names = [f"{family} {weight:g}" for family, weight in self.chosen.items()]
        if not names or not self.found.records("erasing", names[0], "held-out"):
            return ""
        lines = [[name, *self.erasing_line("held-out", name)] for name in names]
        formula, *gated = names

        def mean(name: str, field: str) -> float:
            return self.found.mean("erasing", name, "held-out", field)

        said = []
        for name in gated:
            more = 100 * (mean(name, "gone") - mean(formula, "gone"))
            kept = 100 * (mean(name, "kept") - mean(formula, "kept"))
            said.append(f"`{name}` erases {more:+.0f} points and keeps {kept:+.0f}")
        return markdown(["", *self.ERASING], lines) + (
            f"\n\nBeside `{formula}`: {'; '.join(said)}."
        )

    # --- prompt-to-prompt from noise --------------------------------------------------------

    def words_lines(self, split: Split, names: Sequence[str]) -> list[list[str]]:
        def mean(name: str, field: str) -> float:
            return self.found.mean("words", name, split, field)

        return [
            [name, percent(mean(name, "success")), percent(mean(name, "kept")),
             number(mean(name, "structure"), 3)]
            for name in names
            if self.found.records("words", name, split)
        ]  # fmt: skip

    def words_table(self) -> str:
        names = [*p2p_table.VARIANTS, p2p_table.TUTORIAL]
        lines = self.words_lines("held-out", names)
        if len(lines) < len(names):
            return ""

        def mean(name: str, field: str) -> float:
            return self.found.mean("words", name, "held-out", field)

        free = "no injection"
        equal = [n for n in p2p_table.VARIANTS if mean(n, "success") >= mean(free, "success")]
        best = min(equal, key=lambda name: mean(name, "structure"))
        return markdown(["", "success", "kept", "to the source"], lines) + (
            f"\n\nAt no less success than without injection, `{best}` is nearest to its source: "
            f"{mean(best, 'structure'):.3f} against {mean(free, 'structure'):.3f}."
        )

    def words_memory_table(self) -> str:
        from roads.benchmark.tables.memory_table import LENGTHS

        lines = []
        for variant in ("cross 0.8, self 0.4", p2p_table.TUTORIAL):
            cells = [self.memory.get(f"{variant}, {steps} steps", math.nan) for steps in LENGTHS]
            if any(map(math.isnan, cells)):
                return ""
            lines.append([variant, *map(number, cells)])
        return markdown(["MB", *(f"{steps} steps" for steps in LENGTHS)], lines)

    # --- defaults ---------------------------------------------------------------------------

    def defaults_table(self) -> str:
        """What was compared on the development split."""
        lines = [
            [f"`{row.technique}`", number(row.success), number(row.unchanged),
             number(row.outside_psnr, 1), number(row.moved, 3)]
            for row in self.rows([*edit_table.COMPARED], "development")
        ]  # fmt: skip
        lines += [
            [f"p2p from noise, `{name}`", success, kept, "", structure]
            for name, success, kept, structure in self.words_lines(
                "development", [*p2p_table.VARIANTS]
            )
        ]
        head = ["compared", "success", "unchanged", "dB outside", "to the source"]
        return markdown(head, lines)
