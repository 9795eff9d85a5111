"""The table of experiments: five public documents on Stable Diffusion, redone with pare.

    python -m docs.experiment_table        # writes docs/experiments.md from docs/experiments.toml

`tests/docs/test_experiments.py` runs every row, and checks what the row says.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
DATA: Mapping[str, Any] = tomllib.loads((DOCS / "experiments.toml").read_text(encoding="utf-8"))
PAGE = DOCS / "experiments.md"

TITLES = {
    "Deconstruct": "HF Diffusers Deconstruct Core99: four edits from raw components",
    "Deep Dive": "Stable Diffusion Deep Dive (Jonathan Whitaker)",
    "Recitation": "Prompt-to-Prompt, a recitation of CMU 10-423/623",
    "From code": "Understand Stable Diffusion from Code (Masamune Ishihara)",
    "Understanding P2P": "Understanding Prompt to Prompt, part 1 (Isamu Isozaki)",
}

HEAD = """# Experiments

Every experiment of five public documents on Stable Diffusion, redone with the built-in model
`roads`: what the document shows, the command or the Python that shows it here, and what is checked.

```bash
{commands}
```

```python
{setup}
```

come first; Python rows follow each other, and use the names of rows above them. *The judge* is the
classifier that comes with the built-in model (`roads.judge`). `python -m pytest -m slow
tests/docs/test_experiments.py` runs all {count} rows. With `--model sd15` on a command, or `sd15`
in the first block, they run on Stable Diffusion itself; the last column's figures are of `roads`.
"""


@dataclass(frozen=True)
class Row:
    """One experiment of a document."""

    id: str
    document: str
    """A key of `TITLES`."""
    shows: str
    here: str
    """Commands (`pare …`, `python -m roads.photo …`), or Python."""
    checked: str

    @property
    def lines(self) -> list[str]:
        return self.here.strip().splitlines()

    @property
    def is_command(self) -> bool:
        return self.here.strip().startswith(("pare ", "python -m "))

    def cells(self) -> str:
        """The row as Markdown."""
        indented = (line.replace("    ", 4 * "\N{NO-BREAK SPACE}") for line in self.lines)
        code = "<br>".join(f"`{line}`" for line in indented)
        return f"| {self.shows} | {code} | {self.checked} |"


ROWS = tuple(Row(**row) for row in DATA["row"])
COMMANDS: tuple[str, ...] = tuple(DATA["photo_commands"])
SETUP = str(DATA["setup"]).strip()


def page() -> str:
    """The page's text."""
    text = HEAD.format(commands="\n".join(COMMANDS), setup=SETUP, count=len(ROWS))
    for document, title in TITLES.items():
        rows = [row.cells() for row in ROWS if row.document == document]
        table = ["| it shows | here | checked |", "|---|---|---|", *rows]
        text += f"\n## {title}\n\n" + "\n".join(table) + "\n"
    return text


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.name}: {len(ROWS)} rows")


if __name__ == "__main__":
    main()
