"""The result of `pare inspect`: as text and as JSON.

found = inspect_model("sd1", "unet.mid_block", batch=2)
print(found.page)
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pare.errors import SettingError
from pare.runtime.device import DTYPES
from pare.study.inspect import text_tables
from pare.study.inspect.as_json import as_json
from pare.study.inspect.layer_table import LayerTable, is_glob, nearest
from pare.study.inspect.lora_summary import summarise_lora
from pare.study.inspect.model_summary import CLASSES, ModelSummary, describe
from pare.study.inspect.model_tables import layers
from pare.study.inspect.u_shape import u_shape
from pare.study.inspect.weight_files import WeightFile
from pare.study.inspect.weight_values import Values, read_values

# How the name of a layer may begin; the part is missing from the last ones, which gets a hint.
BEGINNINGS = (*CLASSES, "down_blocks", "mid_block", "up_blocks", "encoder", "decoder", "text_model")


@dataclass(frozen=True)
class Inspection:
    """The result."""

    page: str
    """For a terminal of 100 columns."""
    json: Any
    problem: str = ""
    """What is broken, in a sentence; "" if nothing is."""


@dataclass(frozen=True)
class Settings:
    """Options of an inspection."""

    size: tuple[int, int] | None = None
    """Width and height of the images; None is the training size."""
    batch: int = 1
    dtype: str = "float32"
    """The dtype that shapes and memory are computed for."""
    depth: int | None = None
    """Levels of nested layers that are listed; None is as many as fit on a screen."""
    values: bool = False
    """Read the weights for statistics of their values."""


def split_names(names: tuple[str, ...], model: str | None) -> tuple[str, str | None]:
    """The model and the layer that `[MODEL] [LAYER]` name; the model's default is roads.

    One name alone is a layer if it begins as layers do (`unet.mid_block`) and no file or folder
    is called so.

    Raises:
        SettingError: too many names.
    """
    listed = list(names)
    if len(listed) == 1 and model is None:
        first = listed[0]
        if (first.partition(".")[0] in BEGINNINGS or is_glob(first)) and not Path(first).exists():
            return "roads", first
        return first, None
    chosen = model or (listed.pop(0) if listed else "roads")
    if len(listed) > 1:
        raise SettingError(f"{listed[1]!r} is one name too many", expected="a model and a layer")
    return chosen, listed[0] if listed else None


def inspect_model(
    name: str,
    layer: str | None = None,
    settings: Settings | None = None,
    *,
    revision: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Inspection:
    """Inspect a model, one of its layers, or the tensors of a file.

    Args:
        name: see `describe`.
        layer: the name of a layer, or a glob; in a file that is no model, of a tensor.
        progress: called with the name of each tensor that is read.

    Raises:
        ModelError: there is no such model, or it has not got the part that was named.
        SettingError: there is no such layer.
        OSError: a file that cannot be opened.
    """
    settings = settings or Settings()
    model = describe(name, revision=revision)
    if model.file is not None and (not model.parts or named_tensors(model.file, layer)):
        return file_inspection(model, layer, settings, progress)
    if layer is not None:
        return layer_inspection(model, layer, settings, progress)
    return model_inspection(model, settings, progress)


def problem_of(model: ModelSummary) -> str:
    problems = model.all_problems
    if not problems:
        return ""
    first = problems[0].splitlines()[0]
    count = "one problem" if len(problems) == 1 else f"{len(problems)} problems, the first"
    return f"{model.name} is broken: {count}: {first}"


# --- a whole model ------------------------------------------------------------------------


def model_inspection(
    model: ModelSummary, settings: Settings, progress: Callable[[str], None] | None
) -> Inspection:
    title = title_of(model, settings)
    known = [p for p in ("unet", "vae") if p in model.parts and model.parts[p].config is not None]
    tables = {part: part_layers(model, part, settings) for part in known}
    sections = [
        text_tables.model_head(model) + text_tables.facts_section(model),
        text_tables.parts_section(model),
    ]
    if "unet" in tables:
        u = u_shape(tables["unet"])
        sections.append(text_tables.u_section(u, tables["unet"]["unet"], f"the UNet   ({title})"))
    if "vae" in tables and settings.depth is None:
        sections.append([f"the VAE   ({title})", *text_tables.tree_lines(tables["vae"], "vae", 2)])
    if settings.depth is not None:
        for part, table in tables.items():
            sections.append([part, *text_tables.tree_lines(table, part, settings.depth)])
    values = model_values(model, settings, progress)
    sections.append(text_tables.values_section(values, every=False))
    sections.append(text_tables.words_section(model.words))
    sections.append(text_tables.problems_section(model.all_problems))
    if tables:
        sections.append([f"one layer: pare inspect {model.name} {next(iter(tables))}.…"])
    found = {"model": as_json(model), "size": settings.size, "batch": settings.batch}
    found |= {"layers": {part: as_json(table) for part, table in tables.items()}}
    if "unet" in tables:
        found["u"] = as_json(u_shape(tables["unet"]))
    if settings.values:
        found["values"] = as_json(values)
    return Inspection(
        text_tables.page(*sections), found, problem_of(model) or problem_of_values(model, values)
    )


def part_layers(model: ModelSummary, part: str, settings: Settings) -> LayerTable:
    return layers(
        model, part, size=settings.size, batch=settings.batch, dtype=DTYPES[settings.dtype]
    )


def title_of(model: ModelSummary, settings: Settings) -> str:
    size = ""
    if settings.size is not None or text_tables.trained_size(model):
        width, height = settings.size or model.size
        size = f"{width} x {height}, "
    return f"{size}batch {settings.batch}, {settings.dtype}"


def model_values(
    model: ModelSummary, settings: Settings, progress: Callable[[str], None] | None
) -> list[Values]:
    if not settings.values:
        return []
    if model.file is not None:
        return file_values(model.file, None, progress)
    return [
        dataclasses.replace(value, name=f"{part.name}.{value.name}")
        for part in model.parts.values()
        for file in part.files
        for value in file_values(file, None, progress)
    ]


def file_values(
    file: WeightFile, glob: str | None, progress: Callable[[str], None] | None
) -> list[Values]:
    found = []
    for value in read_values(file, lambda name: glob is None or fnmatch.fnmatchcase(name, glob)):
        if progress is not None:
            progress(value.name)
        found.append(value)
    return found


def problem_of_values(model: ModelSummary, values: list[Values]) -> str:
    bad = [value for value in values if not value.finite]
    if not bad:
        return ""
    return (
        f"{model.name} has NaN or Inf in {text_tables.counted(len(bad), 'tensor')}: {bad[0].name} …"
    )


# --- a layer ------------------------------------------------------------------------------


def layer_inspection(
    model: ModelSummary, layer: str, settings: Settings, progress: Callable[[str], None] | None
) -> Inspection:
    part = layer.partition(".")[0]
    wanted = [part] if part in CLASSES else list(CLASSES) if is_glob(part) else []
    if not wanted:
        names = [*CLASSES, *every_name(model, settings)]
        near = nearest(layer, names)
        raise SettingError(f"there is no layer {layer!r}", fix=f"did you mean {' or '.join(near)}?")
    present = [name for name in wanted if len(wanted) == 1 or name in model.parts]
    tables = {name: part_layers(model, name, settings) for name in present}
    joined = LayerTable.of([one for table in tables.values() for one in table])
    if layer == "text_encoder":  # it holds `text_model` alone, whose page says the same and more
        layer = "text_encoder.text_model"
    found = joined.find(layer)
    title = title_of(model, settings)
    values: list[Values] = []
    if len(found) == 1 and not is_glob(layer):
        text = text_tables.layer_page(found[0], tables[part], model, title, settings.depth)
    else:
        text = text_tables.glob_page(found, title)
    if settings.values:
        values = layer_values(model, [one.name for one in found], progress)
        text = text_tables.page([text], text_tables.values_section(values, every=True))
    inside = [one for one in joined for outer in found if one.name.startswith(f"{outer.name}.")]
    return Inspection(
        text,
        {"model": model.name, "size": settings.size, "batch": settings.batch,
         "layers": as_json(found), "inside": [] if is_glob(layer) else as_json(inside),
         "values": as_json(values)},
        problem_of_values(model, values),
    )  # fmt: skip


def every_name(model: ModelSummary, settings: Settings) -> list[str]:
    known = [p for p in CLASSES if p in model.parts and model.parts[p].config is not None]
    return [layer.name for part in known for layer in part_layers(model, part, settings)]


def layer_values(
    model: ModelSummary, names: list[str], progress: Callable[[str], None] | None
) -> list[Values]:
    """Statistics of the tensors of some layers and of all layers in them."""
    values: list[Values] = []
    for part in model.parts.values():
        inside = {
            stored
            for hub_name, stored in part.stored.items()
            if any(f"{part.name}.{hub_name}".startswith(f"{name}.") for name in names)
        }
        for file in part.files if inside else ():
            for value in read_values(file, inside.__contains__):
                if progress is not None:
                    progress(value.name)
                values.append(value)
    return values


# --- a file -------------------------------------------------------------------------------


def named_tensors(file: WeightFile, glob: str | None) -> bool:
    """Whether a glob matches tensors of a file (and not layers of the model in it)."""
    return glob is not None and any(fnmatch.fnmatchcase(t.name, glob) for t in file.tensors)


def file_inspection(
    model: ModelSummary,
    glob: str | None,
    settings: Settings,
    progress: Callable[[str], None] | None,
) -> Inspection:
    file = model.file
    assert file is not None
    wanted = file.tensors
    if glob is not None:
        wanted = tuple(t for t in file.tensors if fnmatch.fnmatchcase(t.name, glob))
        if not wanted:
            near = nearest(glob, [t.name for t in file.tensors])
            hint = f"did you mean {' or '.join(near)}?" if near else "it has none"
            raise SettingError(f"{file.path} has no tensor {glob!r}", fix=hint)
    values = file_values(file, glob, progress) if settings.values else []
    every = len(values) <= text_tables.ROWS or glob is not None
    lora = None if glob is not None or file.all_problems else summarise_lora(file.path)
    text = text_tables.page(
        [text_tables.file_page(file, wanted, lora)], text_tables.values_section(values, every=every)
    )
    found = {"model": as_json(model), "tensors": as_json(wanted), "values": as_json(values)}
    if lora is not None:
        found["lora"] = as_json(lora) | {"kinds": lora.kinds, "ranks": lora.ranks}
    return Inspection(text, found, problem_of(model) or problem_of_values(model, values))
