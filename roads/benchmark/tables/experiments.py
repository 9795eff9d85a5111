"""Every experiment by its name: what it measures of one job."""

from __future__ import annotations

from roads.benchmark.tables import edit_table, erasure_table, p2p_table
from roads.benchmark.tables.jobs import Measure

EXPERIMENTS: dict[str, Measure] = {
    "edits": edit_table.measure,
    "erasing": erasure_table.measure,
    "words": p2p_table.measure,
}
