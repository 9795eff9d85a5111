"""The manifest: a row for every job that ran, in a folder of parquet files.

    pyarrow.parquet.read_table("images/manifest")      # or pandas.read_parquet

Rows are kept in memory until there are enough of them, or the oldest has waited long enough, and
are then written as one more file, whole.  So a manifest of a million jobs takes no more memory
than one of a thousand, and what a killed driver had not yet written is a few seconds of rows:
their files are there, and the next run notes them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from pare.batch.job import JobResult
from pare.batch.output_folder import Output, needs_extra

if TYPE_CHECKING:
    import pyarrow

FOLDER = "manifest"
MOST_ROWS = 10_000
MOST_SECONDS = 10.0

TYPES = {
    "job": "string", "number": "int64", "status": "string", "seconds": "double",
    "worker": "string", "attempts": "int32", "error": "string", "files": "list",
    "settings": "string", "report": "string", "finished": "double",
}  # fmt: skip
"""`settings` and `report` are JSON; `finished` is in seconds since 1970."""


def schema() -> pyarrow.Schema:
    try:
        import pyarrow
    except ImportError as error:
        raise needs_extra() from error
    kinds = {
        "string": pyarrow.string(), "int64": pyarrow.int64(), "int32": pyarrow.int32(),
        "double": pyarrow.float64(), "list": pyarrow.list_(pyarrow.string()),
    }  # fmt: skip
    return pyarrow.schema([(name, kinds[kind]) for name, kind in TYPES.items()])


class Manifest:
    """Writes the rows of one run into an output."""

    def __init__(self, output: Output) -> None:
        self.output, self.schema = output, schema()
        self.rows: list[dict[str, Any]] = []
        self.oldest = 0.0
        # Sorted and of fixed width: 64 bytes a job, where a set takes 150.
        done = [name for name, status in statuses(output) if status != "failed"]
        self.noted = np.unique(np.array(done, dtype="S64"))

    def add(self, result: JobResult) -> None:
        """Note what became of a job, unless it was kept and an earlier run has noted it."""
        job = result.job
        if result.status == "kept" and self.has(job.name):
            return
        if not self.rows:
            self.oldest = time.monotonic()
        self.rows.append(
            {
                "job": job.name,
                "number": job.number,
                "status": result.status,
                "seconds": result.seconds,
                "worker": result.worker,
                "attempts": result.attempts,
                "error": result.error,
                "files": list(job.files),
                "settings": json.dumps(dict(job.content), default=str),
                "report": json.dumps(dict(result.report), default=str),
                "finished": time.time(),
            }
        )
        if len(self.rows) >= MOST_ROWS or time.monotonic() - self.oldest > MOST_SECONDS:
            self.flush()

    def has(self, name: str) -> bool:
        at = int(np.searchsorted(self.noted, name.encode()))
        return at < len(self.noted) and self.noted[at] == name.encode()

    def flush(self) -> None:
        """Write the rows that wait."""
        if not self.rows:
            return
        import pyarrow
        from pyarrow import parquet

        table = pyarrow.Table.from_pylist(self.rows, schema=self.schema)
        with self.output.scratch() as folder:
            file = folder / f"{time.time_ns():020}.parquet"
            parquet.write_table(table, file)
            self.output.place(file, f"{FOLDER}/{file.name}")
        self.rows.clear()


def rows(output: Output, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Every row of the manifest, from the oldest to the newest; a job may have several."""
    schema()
    import pyarrow
    from pyarrow import parquet

    for name in output.names(FOLDER):
        if name.endswith(".parquet"):
            source = pyarrow.BufferReader(output.read(f"{FOLDER}/{name}"))
            for batch in parquet.ParquetFile(source).iter_batches(columns=columns):
                yield from batch.to_pylist()


def statuses(output: Output) -> Iterator[tuple[str, str]]:
    """The name and the status of every row."""
    return ((row["job"], row["status"]) for row in rows(output, ["job", "status"]))


def latest(output: Output) -> dict[str, dict[str, Any]]:
    """The newest row of every job, in the order of `number`; a job that was done stays so."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows(output):
        if row["status"] != "kept" or row["job"] not in found:
            found[row["job"]] = row
    return dict(sorted(found.items(), key=lambda item: item[1]["number"]))
