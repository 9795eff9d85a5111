"""Recipes: the settings that made an image, as JSON in its PNG text or EXIF metadata.

A recipe names files by their names and SHA-256 sums, and never says in which folders they are.
A recipe is untrusted input: every size and type is checked.  The settings' values are checked
when they are run again (`pare.recipes.rebuild`).
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from PIL import Image, PngImagePlugin

from pare.errors import RecipeError
from pare.io.images import WRITTEN_FORMATS, open_image, readable
from pare.runtime.validation import MAX_IMAGES, MAX_SEED
from pare.version import __version__

KEY = "pare"
FORMAT = 2  # raised when a reader of the old format would misunderstand the new one
EXIF_FOLDER, USER_COMMENT = 0x8769, 0x9286  # EXIF 2.32, 4.6.3 and 4.6.5
ASCII = b"ASCII\0\0\0"  # how a user comment says its character code
NOT_ARGUMENTS = ("out", "force", "as_json")  # of format 1: where its images went
NEW_DEFAULTS = {"sweep": {"cell": 0}}  # what commands did before they had an argument for it
GONE = {  # arguments that commands have no more, and the only value that they run without
    ("p2p", "method"): "lockstep",
    ("p2p", "injection_ratio"): None,
}
RENAMED = {("attention", "per", "level"): "stage"}  # values that have another name now
MAX_TEXT = 1_000_000  # characters
MAX_DEPTH = 16  # objects and lists inside each other; pare writes 4
MAX_FILE = 500_000_000  # bytes of the image's file; the largest image is 150 MB, unpacked
RECORDED = ("torch", "transformers", "numpy", "pillow", "scipy")  # what can change a pixel
DEVICE = re.compile(r"(cpu|cuda|mps)(:[0-9]{1,3})?")
DTYPES = ("float32", "float16", "bfloat16")
PART = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
MAX_PARTS = 64  # images of one seed


@dataclass(frozen=True)
class Recipe:
    """Everything needed to make an image again, and to explain a difference.

    The image's own seed is `seeds[index]`: an image depends on the size of its batch
    (matrix products of other shapes round differently), so the batch is recorded whole.
    Where a seed makes several images, as a source and its edits, `part` says which of
    `parts` this one is; so its place in the run is a seed and a part.
    """

    command: str  # the command of `pare`: "generate", "blend", …
    arguments: Mapping[str, Any]  # all that decide the image, defaults included
    inputs: Mapping[str, Mapping[str, str]]  # argument -> {"name", "sha256"}
    model: Mapping[str, Any]  # what was loaded: where from, revision, hashes
    scheduler: Mapping[str, Any]  # what builds it again
    seeds: Sequence[int]
    index: int
    device: str
    dtype: str
    threads: int
    versions: Mapping[str, str]
    format: int = FORMAT
    parts: Sequence[str] = ()  # the names of the images that each seed makes, if several
    part: str = ""
    together: int = 1  # jobs of `pare batch` whose images went through the UNet in one batch

    @property
    def seed(self) -> int:
        return self.seeds[self.index]

    def to_json(self) -> str:
        """One line of ASCII, so that every PNG tool shows it."""
        fields = dataclasses.asdict(self)
        if not self.parts:  # as every pare reads it
            del fields["parts"], fields["part"]
        if self.together == 1:
            del fields["together"]
        return json.dumps(fields, allow_nan=False)


def current_versions(device: str = "cpu") -> dict[str, str]:
    """The versions of pare, Python and the libraries, and the kinds of processor, that can
    change a pixel; of graphics cards the one that is `device`."""
    import torch

    versions = {"pare": __version__, "python": platform.python_version()}
    for name in RECORDED:
        versions[name] = metadata.version(name)
    versions["machine"] = platform.machine()
    versions["cpu"] = torch.backends.cpu.get_cpu_capability()  # AVX2 and AVX512 round differently
    if torch.device(device).type == "cuda":
        versions["gpu"] = torch.cuda.get_device_name(device)
        versions["cuda"] = str(torch.version.cuda)
    return versions


def save_image(image: Image.Image, recipe: Recipe, suffix: str, file: BinaryIO) -> None:
    """Write an image with its recipe into an open file (see `pare.io.whole_files.write_whole`).

    Args:
        suffix: the ending of the file's name, a key of `WRITTEN_FORMATS`.  A PNG's and a WebP's
            pixels are exact.
    """
    kind, settings = WRITTEN_FORMATS[suffix.lower()]
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_text(KEY, recipe.to_json())
        image.save(file, format=kind, pnginfo=text)
    else:
        exif = Image.Exif()
        exif.get_ifd(EXIF_FOLDER)[USER_COMMENT] = ASCII + recipe.to_json().encode()
        image.save(file, format=kind, exif=exif.tobytes(), **settings)


def as_stored(image: Image.Image, path: Path) -> Image.Image:
    """The image as a file in the format of `path` gives it back: JPEG and AVIF change pixels."""
    with open_image(path) as file:
        kind = file.format
    settings = next((how for one, how in WRITTEN_FORMATS.values() if one == kind), {})
    if kind == "PNG" or not settings or settings.get("lossless"):
        return image
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **settings)
    with Image.open(buffer) as stored:
        return stored.convert("RGB")


def read_recipe(path: Path | str) -> Recipe:
    """The recipe of the image in `path`.

    Raises:
        RecipeError: the image carries none, or one that pare did not write.
        ImageError: not an image of a format that pare writes.
        OSError: the file cannot be opened.
    """
    if Path(path).stat().st_size > MAX_FILE:  # of a text Pillow would read all
        raise RecipeError(f"{path} is larger than any image that pare makes")
    kinds = tuple(dict.fromkeys(kind for kind, _ in WRITTEN_FORMATS.values()))
    with open_image(path, formats=kinds) as image, readable(path):
        text = image.info.get(KEY) if image.format == "PNG" else user_comment(image)
    if text is None:
        raise RecipeError(
            f"{path} carries no recipe", expected="an image as `pare` wrote it, not re-saved since"
        )
    return parse_recipe(str(text), str(path))


def user_comment(image: Image.Image) -> str | None:
    """The comment in the image's EXIF, if it is a JSON object, as a recipe is."""
    comment = image.getexif().get_ifd(EXIF_FOLDER).get(USER_COMMENT)
    if not isinstance(comment, bytes) or not comment.startswith(ASCII + b"{"):
        return None
    return comment.removeprefix(ASCII).decode("ascii", "replace")


def parse_recipe(text: str, where: str) -> Recipe:
    """The recipe in `text`; `where` names its file in error messages."""
    if len(text) > MAX_TEXT:
        raise broken(where, f"it has {len(text)} characters, more than {MAX_TEXT}")
    try:
        raw = json.loads(text, parse_constant=refuse_constant, parse_float=finite)
    except (ValueError, RecursionError) as error:  # json's own errors are ValueErrors
        raise broken(where, f"it is not JSON: {error}") from error
    if too_deep(raw, MAX_DEPTH):
        raise broken(where, "it is nested too deeply")
    if not isinstance(raw, dict):
        raise broken(where, "it is not a JSON object")
    if isinstance(raw.get("format"), int) and raw["format"] > FORMAT:
        raise RecipeError(f"the recipe in {where} is of a newer pare", fix="update pare")
    check_fields(raw, where)
    if raw["format"] == 1:
        raw = from_format_1(raw)
    check_names(raw, where)
    return Recipe(**raw)


def from_format_1(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe of the first format, which had paths as they were typed, in today's."""
    arguments = {key: value for key, value in raw["arguments"].items() if key not in NOT_ARGUMENTS}
    arguments = {**NEW_DEFAULTS.get(raw["command"], {}), **arguments}
    for (command, name), usual in GONE.items():
        if raw["command"] == command and arguments.pop(name, usual) != usual:
            raise RecipeError(f"this pare has no `pare {command}` with another {name} than {usual}")
    for (command, name, old), new in RENAMED.items():
        if raw["command"] == command and arguments.get(name) == old:
            arguments[name] = new
    inputs = {
        name: {"name": recorded["path"], "sha256": recorded["sha256"]}
        for name, recorded in raw["inputs"].items()
    }
    return {**raw, "arguments": arguments, "inputs": inputs, "format": FORMAT}


def check_names(raw: Mapping[str, Any], where: str) -> None:
    """Refuse what cannot be a file's name: text that no file system can hold."""
    for value in texts_in([raw["arguments"], raw["inputs"], raw["model"]]):
        try:
            os.fsencode(value)
        except UnicodeEncodeError as error:
            raise broken(where, "it holds half of a character") from error


def texts_in(value: object) -> Iterator[str]:
    """Every text in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        for one in inner:
            yield from texts_in(one)


def check_fields(raw: Mapping[str, Any], where: str) -> None:
    names = {field.name for field in dataclasses.fields(Recipe)}
    if not {"parts", "part"} & set(raw):
        names -= {"parts", "part"}
    if "together" not in raw:
        names -= {"together"}
    if set(raw) != names:
        odd = ", ".join(sorted(repr(key)[:40] for key in set(raw) ^ names)[:5])
        raise broken(where, f"missing or unknown: {odd}")
    require(isinstance(raw["command"], str), "command", where)
    device, dtype = raw["device"], raw["dtype"]
    require(isinstance(device, str) and bool(DEVICE.fullmatch(device)), "device", where)
    require(dtype in DTYPES, "dtype", where)
    for name in ("arguments", "model", "scheduler"):
        require(isinstance(raw[name], dict), name, where)
    for name in ("format", "threads"):
        require(whole(raw[name], 1, 2**20), name, where)
    require(is_text_table(raw["versions"]), "versions", where)
    inputs, keys = raw["inputs"], {"path" if raw["format"] == 1 else "name", "sha256"}
    good = isinstance(inputs, dict) and all(is_input(one, keys) for one in inputs.values())
    require(good, "inputs", where)
    seeds = raw["seeds"]
    good = isinstance(seeds, list) and 1 <= len(seeds) <= MAX_IMAGES
    require(good and all(whole(seed, 0, MAX_SEED) for seed in seeds), "seeds", where)
    require(whole(raw["index"], 0, len(seeds) - 1), "index", where)
    if "together" in raw:
        require(whole(raw["together"], 2, MAX_IMAGES), "together", where)
    if "parts" in raw:
        require(are_parts(raw["parts"]), "parts", where)
        require(raw["part"] in raw["parts"], "part", where)


def whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_text_table(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def is_input(value: object, keys: set[str]) -> bool:
    return isinstance(value, dict) and set(value) == keys and is_text_table(value)


def are_parts(value: object) -> bool:
    if not isinstance(value, list) or not 2 <= len(value) <= MAX_PARTS:
        return False
    named = all(isinstance(part, str) and PART.fullmatch(part) for part in value)
    return named and len(set(value)) == len(value)


def require(good: bool, name: str, where: str) -> None:
    if not good:
        raise broken(where, f"its {name!r} is not what pare writes")


def too_deep(value: object, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(too_deep(one, levels - 1) for one in inner)


def refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def finite(digits: str) -> float:
    if not math.isfinite(float(digits)):
        raise ValueError(f"{digits[:20]} is too large a number")
    return float(digits)


def broken(where: str, reason: str) -> RecipeError:
    reason = " ".join(reason.split())[:200]
    return RecipeError(f"the recipe in {where} cannot be read ({reason})")
