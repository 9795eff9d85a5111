"""Model summaries and layer tables as text for a terminal of 100 columns."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterable, Sequence

from pare.config import TextConfig
from pare.study.inspect.flops import Flops
from pare.study.inspect.layer_table import Layer, LayerTable, Shape, outer_names
from pare.study.inspect.lora_summary import LoraSummary, joint_norm
from pare.study.inspect.model_summary import ModelSummary, PartSummary, stored_bytes
from pare.study.inspect.u_shape import Stage, UShape
from pare.study.inspect.weight_files import StoredTensor, WeightFile
from pare.study.inspect.weight_values import Values

WIDTH = 100
ROWS = 40
"""Longer tables are shortened, unless a depth was given."""

TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


# --- numbers and columns ------------------------------------------------------------------


def short(value: float) -> str:
    """Three digits and a unit prefix: 859520964 -> `860M`."""
    for letter in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5 or letter == "T":
            break
        value /= 1000
    digits = f"{value:.0f}" if not letter or abs(value) >= 99.95 else f"{value:#.3g}"
    return digits + letter


def size(count: int) -> str:
    """Bytes, in steps of 1000: `1.72 GB`."""
    text = short(count)
    return f"{text[:-1]} {text[-1]}B" if text[-1].isalpha() else f"{text} B"


def spaced(shape: Shape) -> str:
    return " ".join(map(str, shape)) or "scalar"


def counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def printable(text: str) -> str:
    """Names come from files: escape what would control the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def columns(rows: Iterable[Sequence[str]], right: str = "", indent: int = 2) -> list[str]:
    """Rows as aligned text; columns whose letter in `right` is "r" are aligned to the right."""
    listed = [[printable(cell) for cell in row] for row in rows]
    if not listed:
        return []
    widths = [max(map(len, column)) for column in zip(*listed, strict=True)]
    sides = right.ljust(len(widths), "l")
    lines = []
    for row in listed:
        cells = (
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(row, widths, sides, strict=True)
        )
        lines.append(" " * indent + "  ".join(cells).rstrip())
    return lines


def facts(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """`name  value`, for those that have a value."""
    return columns([pair for pair in pairs if pair[1]])


def limited(lines: Sequence[str], limit: int = ROWS) -> list[str]:
    if len(lines) <= limit:
        return list(lines)
    return [*lines[:limit], f"  … and {len(lines) - limit} more (--json lists all)"]


def page(*sections: Sequence[str]) -> str:
    return "\n\n".join("\n".join(section) for section in sections if section)


# --- a model ------------------------------------------------------------------------------


def model_head(model: ModelSummary) -> list[str]:
    what = ", ".join(text for text in (model.kind, model.form) if text)
    return [printable(f"{model.name}   {what}")]


def parts_section(model: ModelSummary) -> list[str]:
    rows = [("part", "class", "parameters", "on disk", "type", "")]
    for part in model.parts.values():
        rows.append(
            (
                part.name,
                part.kind,
                short(part.parameters),
                size(part.bytes) if part.bytes else "-",
                types(part.dtypes),
                "" if part.whole else f"broken: {counted(len(part.problems), 'problem')}",
            )
        )
    parameters = sum(part.parameters for part in model.parts.values())
    on_disk = sum(part.bytes for part in model.parts.values())
    rows.append(("all", "", short(parameters), size(on_disk) if on_disk else "-", "", ""))
    return columns(rows, "llrr")


def types(dtypes: dict[str, int] | object) -> str:
    names = list(dtypes) if isinstance(dtypes, dict) else []
    return ", ".join(TYPES.get(name, name) for name in names if name not in ("I64",)) or "-"


def facts_section(model: ModelSummary) -> list[str]:
    config = model.scheduler_config
    schedule = ""
    if config:
        trained = config.get("trained_betas")
        betas = (
            "trained_betas"
            if trained
            else f"betas {config.get('beta_start')} to {config.get('beta_end')}, "
            f"{config.get('beta_schedule')}"
        )
        schedule = (
            f"{config.get('_class_name')}, {config.get('num_train_timesteps', 1000)} timesteps, "
            f"{betas}"
        )
    meaning = {"epsilon": "epsilon (the noise)", "v_prediction": "v_prediction (the velocity)",
               "sample": "sample (x0)"}  # fmt: skip
    text = model.parts["text_encoder"].config if "text_encoder" in model.parts else None
    pairs = [
        ("from", model.place if model.place != model.name else ""),
        ("revision", model.revision or ""),
        ("predicts", meaning.get(model.prediction, model.prediction)),
        ("scheduler", schedule),
        ("trained at", trained_size(model)),
        ("text", text_encoder_line(text) if isinstance(text, TextConfig) else ""),
        ("tokenizer", f"{model.tokens} tokens" if model.tokens else ""),
        ("not loaded", ", ".join(model.skipped)),
        *(("note", note) for note in model.notes),
    ]
    return facts(pairs)


def trained_size(model: ModelSummary) -> str:
    if "unet" not in model.parts or model.parts["unet"].config is None:
        return ""
    width, height = model.size
    unet = model.config("unet")
    h, w = unet.sample_size
    return f"{width} x {height} pixels, latents {unet.out_channels} x {h} x {w}"


def text_encoder_line(config: TextConfig) -> str:
    return (
        f"{config.max_position_embeddings} tokens, {counted(config.num_hidden_layers, 'layer')}, "
        f"{config.hidden_size} channels, {counted(config.num_attention_heads, 'head')}, "
        f"{config.hidden_act}"
    )


def problems_section(problems: Sequence[str]) -> list[str]:
    """The problems, one a line; three tensors or more with the same problem are counted."""
    if not problems:
        return []
    same_problem: dict[str, list[str]] = {}
    for problem in problems:
        name, _, reason = problem.rpartition(": ")
        same_problem.setdefault(reason if name else problem, []).append(problem)
    lines = []
    for reason, same in same_problem.items():
        if len(same) < 3:
            lines += [line for problem in same for line in bullet(problem)]
        else:
            names = [problem.rpartition(": ")[0] for problem in same]
            lines += bullet(f"{len(same)} tensors: {reason}\nfrom {names[0]}\nto {names[-1]}")
    return [f"problems ({len(problems)})", *limited([printable(line) for line in lines])]


def words_section(words: Sequence[str]) -> list[str]:
    """The vocabulary of the model's training, as many words on a line as fit."""
    if not words:
        return []
    text = textwrap.wrap(printable(" ".join(words)), WIDTH - 2, break_on_hyphens=False)
    return [f"the {len(words)} words of its training captions", *(f"  {line}" for line in text)]


def bullet(problem: str) -> list[str]:
    first, *rest = problem.splitlines()
    wrapped = textwrap.wrap(first, WIDTH - 4, break_long_words=False, break_on_hyphens=False)
    lines = [*wrapped, *rest] or [""]
    return [f"  - {lines[0]}", *(f"    {line}" for line in lines[1:])]


def common_prefix(names: Sequence[str]) -> str:
    """The common prefix of dotted names, up to and with a dot: `mid_block.resnets.`."""
    pieces = [name.split(".")[:-1] for name in names]
    shared = []
    for column in zip(*pieces, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return "".join(f"{piece}." for piece in shared)


# --- the UNet --------------------------------------------------------------------------------

SIGNS = {"ResNet": "R", "transformer": "T", "downsample": "↓", "upsample": "↑", "convolution": "C"}


def u_section(u: UShape, whole: Layer, title: str) -> list[str]:
    """The diagram, then a line for each block, then the whole UNet."""
    return [title, "", *u_drawing(u), "", *stage_lines(u.stages, whole)]


def u_drawing(u: UShape) -> list[str]:
    """A line for each resolution stage: down block, channels of the skip connections, up block."""
    downs, ups = u.named("down_blocks"), u.named("up_blocks")[::-1]
    rows = []
    for level, (down, up) in enumerate(zip(downs, ups, strict=True)):
        left = f"{down.name}  {signs(down.layers)}"
        right = f"{signs(up.layers, ups=True)}  {up.name}"
        widths = " ".join(str(shape[1]) for shape in up.skips[::-1])
        rows.append((grid_text(down.grid), "   " * level + left, widths, right, level))
    left_width = max(len(row[1]) for row in rows)
    right_width = max(len(row[3]) + 3 * row[4] for row in rows)
    middle = max(len(row[2]) for row in rows) + 8
    lines = []
    for grid, left, widths, right, level in rows:
        arrow = f"── {widths} ".ljust(middle, "─")
        fill = "─" * (left_width - len(left))
        pad = right_width - len(right) - 3 * level
        lines.append(f"  {grid:>9}  {left} {fill}{arrow}{'─' * pad}▶ {right}")
    bottom = u.named("mid_block")[0]
    text = f"{bottom.name}  {signs(bottom.layers)}"
    where = " " * (3 * len(rows) + max(0, (left_width + middle - 3 * len(rows) - len(text)) // 2))
    lines.append(f"  {grid_text(bottom.grid):>9}  {where}{text}")
    legend = (
        "R ResNet block, T transformer, ↓ downsample, ↑ upsample; "
        "── channels of the skip connections ──▶"
    )
    return [*lines, "", f"  {legend}"]


def signs(layers: Sequence[str], *, ups: bool = False) -> str:
    """`RT RT ↓`; of an up block, whose line is read from the bottom, the arrow comes first."""
    text = ""
    for word in layers:
        text += SIGNS[word] if word == "transformer" else f" {SIGNS[word]}"
    text = text.strip()
    return f"↑ {text.removesuffix(' ↑')}" if ups and text.endswith("↑") else text


def grid_text(grid: tuple[int, int]) -> str:
    height, width = grid
    return f"{width} x {height}"


def stage_lines(stages: Sequence[Stage], whole: Layer) -> list[str]:
    rows = [("block", "output", "layers", "params", "FLOP", "memory", "computed by")]
    for stage in stages:
        rows.append(
            (
                stage.name,
                spaced(stage.shape),
                layers_text(stage.layers),
                short(stage.parameters) if stage.parameters else "",
                short(stage.flops.total) if stage.flops.total else "",
                size(stage.peak_bytes) if stage.peak_bytes else "",
                code(stage.code),
            )
        )
    rows.append(("unet", "", "", *layer_cells(whole)[1:]))
    return columns(rows, "lllrrr")


def layers_text(layers: Sequence[str]) -> str:
    """`2 ResNet+transformer ↓`."""
    words = list(layers)
    arrow = f" {SIGNS[words.pop()]}" if words and words[-1] in ("downsample", "upsample") else ""
    for period in (1, 2):
        repeats = len(words) // period
        if repeats > 1 and words == words[:period] * repeats:
            return f"{repeats} {'+'.join(words[:period])}{arrow}"
    return "+".join(words) + arrow


def code(place: str) -> str:
    """The line of code, shortened: without pare's own name; of other packages the file alone."""
    return place.removeprefix("pare/") if place.startswith("pare/") else place.rpartition("/")[2]


# --- layers -------------------------------------------------------------------------------

HIDDEN = ("Sequential", "Identity", "Dropout")
"""Containers and identities, which the tree leaves out."""


def tree(
    layers: Iterable[Layer], root: str, depth: int | None
) -> tuple[list[tuple[int, str, Layer]], int]:
    """(depth, label, layer) of the layers in `root`, and how many are deeper than `depth`.

    Without a depth, as deep as fits into `ROWS` lines.
    """
    depths = {root: 0}
    found = []
    for layer in layers:
        if not layer.outputs or layer.kind in HIDDEN or layer.name == root:
            continue
        parent = next((name for name in outer_names(layer.name) if name in depths), root)
        depths[layer.name] = depths[parent] + 1
        found.append((depths[layer.name], layer.name[len(parent) :].lstrip("."), layer))
    if depth is None:
        deepest = max((row[0] for row in found), default=1)
        depth = next(
            (d for d in range(deepest, 1, -1) if sum(row[0] <= d for row in found) <= ROWS), 1
        )
    shown = [row for row in found if row[0] <= depth]
    return shown, len(found) - len(shown)


HEAD = ("layer", "in → out", "params", "FLOP", "memory", "computed by")


def tree_lines(layers: Iterable[Layer], root: str, depth: int | None) -> list[str]:
    rows, deeper = tree(layers, root, depth)
    table = [HEAD]
    table += [("  " * (at - 1) + label, *layer_cells(layer)) for at, label, layer in rows]
    more = [f"  … and {deeper} layers inside these; --depth shows them"] if deeper else []
    return columns(table, "llrrr") + more


def layer_cells(layer: Layer) -> tuple[str, str, str, str, str]:
    return (
        shapes_text(layer),
        short(layer.parameters) if layer.parameters else "",
        short(layer.flops.total) if layer.flops.total else "",
        size(layer.peak_bytes),
        code(layer.code),
    )


def shapes_text(layer: Layer) -> str:
    """Input and output shape without the batch; once if they are equal."""
    given = next(iter(layer.inputs.values()), ())[1:]
    made = layer.outputs[0][1:] if layer.outputs else ()
    return spaced(made) if given == made else f"{spaced(given)} → {spaced(made)}"


def layer_page(
    layer: Layer, table: LayerTable, model: ModelSummary, title: str, depth: int | None
) -> str:
    """One layer: shapes, cost, code; the layers in it; its tensors."""
    part = model.parts[layer.name.partition(".")[0]]
    head = [f"{layer.name}   {layer.kind}"]
    inputs = ", ".join(f"{name} {spaced(shape)}" for name, shape in shown_inputs(layer))
    runs = [(spaced(shape), len(list(run))) for shape, run in itertools.groupby(layer.outputs)]
    outputs = ", ".join(f"{count} of {shape}" if count > 1 else shape for shape, count in runs)
    head += facts(
        [
            ("computed for", title),
            ("computed by", layer.code),
            ("called at", layer.called if layer.called != layer.code else ""),
            ("input", inputs),
            ("output", outputs),
            ("parameters", f"{layer.parameters:,}"),
            ("FLOP", flops_text(layer.flops)),
            ("activations", activations(layer)),
        ]
    )  # fmt: skip
    inside = table.inside(layer.name)
    lines = tree_lines(inside, layer.name, depth) if inside else []
    return page(head, lines, tensor_lines(layer, part))


def activations(layer: Layer) -> str:
    return f"{size(layer.peak_bytes)} at the peak; its output {size(layer.output_bytes)}"


def shown_inputs(layer: Layer) -> list[tuple[str, Shape]]:
    """The inputs; of a list of skips the last three, which an up block takes."""
    pairs = list(layer.inputs.items())
    listed = [pair for pair in pairs if "." in pair[0]]
    return [pair for pair in pairs if pair not in listed] + listed[-3:]


def flops_text(flops: Flops) -> str:
    kinds = {
        "convolution": flops.convolution,
        "linear": flops.linear,
        "attention": flops.attention,
        "norm": flops.norm,
    }
    split = ", ".join(f"{name} {short(value)}" for name, value in kinds.items() if value)
    return f"{short(flops.total)}: {split}" if split else "0"


def tensor_lines(layer: Layer, part: PartSummary) -> list[str]:
    """The layer's tensors by their names on the Hub, and in the file where those differ."""
    if not layer.tensors:
        return []
    path = layer.name.partition(".")[2]
    before = f"{path}." if path else ""
    stored = {key: part.stored.get(before + key, before + key) for key in layer.tensors}
    renamed = any(stored[key] != before + key for key in stored)
    prefix = common_prefix(list(stored.values()))
    head = f"tensors on the Hub, in {part.name}/: {before}…"
    if renamed:
        head += f"\nand in the file: {prefix}…"
    rows = [
        (key, spaced(shape), stored[key].removeprefix(prefix) if renamed else "")
        for key, shape in layer.tensors.items()
    ]
    return [head, *limited(columns(rows))]


def glob_page(found: Sequence[Layer], title: str) -> str:
    """All layers that a glob matches, one a line, and their sum."""
    rows = [HEAD, *((layer.name, *layer_cells(layer)) for layer in found)]
    # Where names are long the right columns are left out: a layer's own page has them.
    wanted = len(HEAD)
    while wanted > 3 and max(map(len, columns([row[:wanted] for row in rows]))) > WIDTH:
        wanted -= 1
    lines = columns([row[:wanted] for row in rows], "llrrr"[:wanted])
    outer = [a for a in found if not any(a.name.startswith(f"{b.name}.") for b in found)]
    total = sum((layer.flops for layer in outer), Flops())
    parameters = sum(layer.parameters for layer in outer)
    costs = f"{short(parameters)} parameters, {short(total.total)} FLOP"
    return page([f"{counted(len(found), 'layer')}: {costs}   ({title})"], lines)


# --- files --------------------------------------------------------------------------------


def file_page(
    file: WeightFile,
    wanted: Sequence[StoredTensor] | None = None,
    lora: LoraSummary | None = None,
) -> str:
    """A file of weights: all its tensors, or those that were asked for."""
    what = ", ".join(text for text in (file.kind, size(file.size), file.looks_like) if text)
    head = [printable(f"{file.path}   {what}")]
    header = ""
    if file.kind == "safetensors":
        header = (
            f"readable, {size(file.header_bytes)}" if file.header_bytes else "damaged"
        ) + f"; {counted(len(file.tensors), 'tensor')} found in it"
    elif file.tensors:
        header = counted(len(file.tensors), "tensor")
    ends = f"at byte {file.size:,}"
    if file.ends is not None and file.ends != file.size:
        ends += f"; its header says {file.ends:,}"
    notes = [("metadata", f"{key}: {value[:60]}") for key, value in list(file.metadata.items())[:8]]
    head += facts(
        [
            ("header", header),
            ("file ends", ends),
            ("values", f"{short(file.parameters)}, {types(file.dtypes)}" if file.tensors else ""),
            *notes,
        ]
    )
    if lora is not None:
        return page(head, lora_section(lora))
    return page(head, tensors_section(wanted if wanted is not None else file.tensors),
                problems_section(file.all_problems))  # fmt: skip


def lora_section(lora: LoraSummary) -> list[str]:
    """What a LoRA changes: by block, and the layers that it changes most."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in lora.kinds.items())
    ranks = ", ".join(map(str, lora.ranks[:8])) + (", …" if len(lora.ranks) > 8 else "")
    notes = [(name, printable(value)) for name, value in lora.training.items()]
    if lora.tags:
        listed = ", ".join(f"{printable(tag)} {count}" for tag, count in lora.tags.items())
        notes.append(("tags", listed))
    head = facts([("base", lora.base), ("layers", kinds), ("rank", ranks), *notes])
    blocks = [("block", "layers", "|delta|", "largest in")]
    for block, layers in lora.blocks.items():
        top = max(layers, key=lambda layer: layer.norm)
        blocks.append(
            (
                block,
                str(len(layers)),
                f"{joint_norm(layers):.3f}",
                f"{printable(top.name)} {top.norm:.3f}",
            )
        )
    shown = sorted(lora.layers, key=lambda layer: -layer.norm)[:10]
    rows = [("layer", "kind", "rank", "|delta|")]
    rows += [
        (
            printable(one.name),
            one.kind,
            "" if one.rank is None else str(one.rank),
            f"{one.norm:.3f}",
        )
        for one in shown
    ]
    return [*head, "", *columns(blocks, "lrrl"), "", *columns(rows, "llrr")]


def tensors_section(tensors: Sequence[StoredTensor]) -> list[str]:
    """Each tensor, or, of many, how many have the same prefix."""
    if len(tensors) <= ROWS:
        rows = [(t.name, spaced(t.shape), TYPES.get(t.dtype, t.dtype), t.problem) for t in tensors]
        return columns([("tensor", "shape", "type", ""), *rows]) if rows else []
    for pieces in (3, 2, 1):
        groups: dict[str, list[StoredTensor]] = {}
        for tensor in tensors:
            groups.setdefault(".".join(tensor.name.split(".")[:pieces]), []).append(tensor)
        if len(groups) <= ROWS:
            break
    table = [("prefix", "tensors", "values", "bytes", "")]
    for prefix, inner in groups.items():
        broken = sum(1 for tensor in inner if tensor.problem)
        table.append(
            (
                prefix if len(inner) == 1 else f"{prefix}.…",
                str(len(inner)),
                short(sum(tensor.numbers for tensor in inner)),
                size(sum(stored_bytes(tensor.numbers, tensor.dtype) for tensor in inner)),
                f"{broken} broken" if broken else "",
            )
        )
    return limited(columns(table, "lrrr"))


def values_section(values: Sequence[Values], *, every: bool) -> list[str]:
    """The tensors' statistics: of all, or of the non-finite and the widest ones."""
    if not values:
        return []
    bad = [v for v in values if not v.finite]
    flat = [v for v in values if v.std == 0 and v.maximum != 0]
    zero = [v for v in values if v.minimum == v.maximum == 0]
    widest = sorted((v for v in values if v.finite), key=lambda v: -max(-v.minimum, v.maximum))
    chosen = list(values) if every else [*bad, *(v for v in widest[:8] if v not in bad)]
    head = (
        f"statistics: {counted(len(values), 'tensor')} read, {len(bad)} with NaN or Inf, "
        f"{len(zero)} all zero, {len(flat)} otherwise constant"
    )
    prefix = common_prefix([v.name for v in chosen])
    head += "" if every else "; the widest:"
    name = f"{prefix}…" if prefix else "tensor"
    rows: list[tuple[str, ...]] = [(name, "min", "max", "mean", "std", "NaN", "Inf")]
    rows += [
        (v.name.removeprefix(prefix), *map(number, (v.minimum, v.maximum, v.mean, v.std)),
         str(v.nan), str(v.inf))
        for v in chosen
    ]  # fmt: skip
    return [head, *limited(columns(rows, "lrrrrrr"), len(rows) if every else ROWS)]


def number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"
