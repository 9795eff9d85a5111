"""How the files of a run are named: as --out says, or by names that never collide."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from pare.errors import OutputError
from pare.io.whole_files import check_output

OUTPUTS = Path("outputs")
"""Where images go without --out, if there is such a folder."""


def output_paths(
    out: Path | None,
    command: str,
    seeds: Sequence[int],
    parts: Sequence[str] = (),
    *,
    endings: Sequence[str] = (),
    beside: Sequence[str] = (),
    force: bool = False,
    option: str = "--out",
) -> list[Path]:
    """One file a seed and part, each checked: in a folder, or made from the name `out`.

    Args:
        seeds: none for a single file without a seed in its name.
        out: None: names that no file has yet, counted up where they are taken.
        parts: the names of a seed's images, where it makes several.
        endings: what a name may end in, if not an image's; the first is taken where pare chooses
            the name.
        beside: the endings of further files of the same names.

    Raises:
        OutputError: a name of another ending, or a file that cannot or must not be written.
    """
    from pare.io.images import WRITTEN_FORMATS

    endings = endings or tuple(WRITTEN_FORMATS)
    words = [[str(seed), *([part] if part else [])] for seed in seeds for part in parts or [""]]
    words = words or [[]]
    if out is None or out.is_dir():
        folder = out or (OUTPUTS if OUTPUTS.is_dir() else Path())
        paths = [folder / ("-".join([command, *some]) + endings[0]) for some in words]
        if out is None and not force:
            paths = free_paths(paths, beside)
    elif out.suffix.lower() in endings:
        names = file_names(out.stem, out.suffix, seeds, parts)
        paths = [out.with_name(name) for name in names]
    else:
        raise OutputError(
            f"{option} is {out}",
            expected=f"a name that ends in {' or '.join(endings)}, or a folder that exists",
        )
    for path in paths:
        for file in (path, *(path.with_suffix(ending) for ending in beside)):
            check_output(file, force=force)
    return paths


def file_names(
    stem: str, suffix: str, seeds: Sequence[int], parts: Sequence[str] = ()
) -> list[str]:
    """One name a seed and part, which says what tells the images apart."""
    several = [str(seed) if len(seeds) > 1 else "" for seed in seeds or [0]]
    named = parts if len(parts) > 1 else [""]
    return [
        "-".join(filter(None, [stem, seed, part])) + suffix for seed in several for part in named
    ]


def free_paths(paths: Sequence[Path], beside: Sequence[str] = ()) -> list[Path]:
    """The paths, or all of them with -2, -3, … behind their names: the first of which none is
    taken."""
    return next(some for some in numbered(paths) if not any(is_taken(p, beside) for p in some))


def numbered(paths: Sequence[Path]) -> Iterator[list[Path]]:
    yield list(paths)
    for count in itertools.count(2):
        yield [path.with_stem(f"{path.stem}-{count}") for path in paths]


def is_taken(path: Path, beside: Sequence[str]) -> bool:
    files = [path, *(path.with_suffix(ending) for ending in beside)]
    return any(file.exists() or file.is_symlink() for file in files)
