"""Every experiment by its name: what it measures of one job."""

from __future__ import annotations

from roads.tables import edits, erasing, words
from roads.tables.jobs import Measure

EXPERIMENTS: dict[str, Measure] = {
    "edits": edits.measure,
    "erasing": erasing.measure,
    "words": words.measure,
}
