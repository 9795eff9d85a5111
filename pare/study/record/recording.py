"""Recording a run: the activations of any layer, attention weights, and the latents at each step.

    recording = Recording(pipe, "unet.mid_block", attention="unet.mid_block.*.attn2")
    with recording as recorded:
        images = recorded.generate("a snowy road", 7, steps=25)
    recording["x0"]                             # (25, 1, 4, h, w)
    recording["unet.mid_block:activations"]     # (25, 2, C, h / 8, w / 8)

Attention weights come through attention's own hook point, a `Control` (`pare.attention`).  Other
layers' outputs need PyTorch's forward hooks.  A hook belongs to a module, not to a run: on the
pipeline's own modules it would fire for every thread that uses the model.  So the hooks are set on
a copy of the modules that shares their weight tensors (`twin`), made for one recording.  The
pipeline `recorded` runs on the copy; the original never has a hook, keeps its speed, and two
recordings at once do not interfere.

Tensors are reduced as they arrive (`reductions`), and `Recording.plan` says beforehand how large
the recording will be.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pare.attention import AttentionCall, BatchRow, Control, ControlledStep, Site
from pare.errors import SettingError
from pare.pipeline import Pipeline
from pare.runtime.memory_plan import check_room
from pare.schedulers import NoiseLevel, Prediction, Timesteps
from pare.study.inspect.layer_table import (
    Layer,
    LayerTable,
    Shape,
    is_glob,
    join,
    layer_table,
    nearest,
    outer_names,
    tensors_in,
    trace,
    without_weights,
)
from pare.study.record.attention_maps import AttentionRecorder, Observers, find_sites, grid_at
from pare.study.record.reductions import REDUCTIONS, Grid, Reduction
from pare.study.record.self_attention import SelfAttentionRecorder
from pare.text.text_encoder import PromptEmbeddings
from pare.unet.transformer import SpatialTransformer

PARTS = ("unet", "vae", "text_encoder")
Module = TypeVar("Module", bound=nn.Module)

LATENTS = ("image", "channel", "y", "x")


@dataclass(frozen=True)
class Planned:
    """One tensor of a recording."""

    name: str
    """`x_t`, or the layer and what is kept of it: `unet.mid_block:activations`."""
    axes: tuple[str, ...]
    shape: Shape
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Recording(Control):
    """The recording of one run, the one inside its `with` block.

    Always kept, in float32: `x_t` (steps + 1, images, 4, h, w), which ends with the finished
    latents; `x0` and `eps`, the guided prediction at each step; and `output.cond`,
    `output.uncond`, …: the UNet's outputs (eps or v) before guidance.
    """

    def __init__(
        self,
        pipe: Pipeline,
        layers: str | Sequence[str] = (),
        *,
        keep: str | Sequence[str] | Mapping[str, Reduction] = ("statistics", "activations"),
        attention: str | Sequence[str] = (),
        branches: str | Sequence[str] | None = None,
        every: int = 1,
        each_head: bool = False,
        observers: Sequence[Control] = (),
        last: bool = False,
    ) -> None:
        """
        Args:
            layers: names or globs, as `pare inspect` lists them: `unet.mid_block`, `unet.*.attn2`.
                Of the VAE those of the decoder, which runs once per image or tile; the text encoder
                runs once per prompt.
            keep: what to keep of them, see `pare.study.record.reductions`: "statistics",
                "activations" (all values), "map" (root mean square of every pixel), "channels"
                (their means); or your own reductions, by name.
            attention: names or globs of attention layers whose weights are kept.
            branches: the branches of the guidance to record, such as "cond"; None is all.
            every: record layers and attention at every so many steps, the first included.
            each_head: keep each head's weights, not their mean.
            observers: other controls that observe the run, such as recorders of attention maps.
            last: if the model runs several trajectories, as in an inversion followed by sampling,
                keep the last one.  Otherwise a second one is an error.

        Raises:
            SettingError: a layer that does not exist (the nearest are named), or a setting
                out of range.
        """
        self.pipe = pipe
        self.keep = dict(keep) if isinstance(keep, Mapping) else chosen_reductions(listed(keep))
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise SettingError(f"`every` is {every!r}", expected="a whole number, at least 1")
        self.branches = None if branches is None else listed(branches)
        self.every, self.each_head = every, each_head
        self.observers, self.last = tuple(observers), last
        self.layers = find_layers(pipe, listed(layers))
        self.sites = {
            f"unet.{site.name}": site for site in find_sites(pipe.unet.sites(), listed(attention))
        }

        self.tensors: dict[str, Tensor] = {}
        """By name, once the `with` block is left."""
        self.axes: dict[str, tuple[str, ...]] = {}
        """The names of each tensor's axes."""
        self.levels: list[NoiseLevel] = []
        """The noise level of each step."""
        self.recorded_steps: list[int] = []
        """The steps at which layers and attention were recorded; an edit may begin after 0."""
        self.rows: tuple[BatchRow, ...] = ()
        """What the rows of layers and attention stand for."""

        self.streams: dict[str, list[Tensor]] = {}
        self.handles: list[RemovableHandle] = []
        self.now: ControlledStep | None = None
        self.grid: Grid | None = None
        self.first_step = 0
        self.last_step = -1
        self.repeated = False
        """Whether the last trajectory began at the step at which the one before it had ended."""
        self.final: Tensor | None = None
        self.used = False

    def __getitem__(self, name: str) -> Tensor:
        """One of `tensors`.

        Raises:
            SettingError: there is none of that name; the nearest are named.
        """
        if name not in self.tensors:
            near = nearest(name, list(self.tensors))
            fix = f"did you mean {' or '.join(near)}?" if near else "the run has not ended"
            raise SettingError(f"the recording has no {name!r}", fix=fix)
        return self.tensors[name]

    # --- its size -----------------------------------------------------------------------

    def plan(
        self,
        steps: int,
        size: tuple[int, int] | None = None,
        *,
        count: int = 1,
        guidance: float = 7.5,
        texts: int = 2,
    ) -> list[Planned]:
        """The tensors that recording a run of `count` images of `size` (width, height) will hold.

        Args:
            texts: how many different prompts and negative prompts the text encoder encodes.
        """
        width, height = size or self.pipe.trained_size
        latents = (count, *self.pipe.latent_shape(height, width))
        branches = ["cond"] if guidance == 1 else ["uncond", "cond"]
        rows = count * sum(self.branches is None or branch in self.branches for branch in branches)
        evaluations = len(self.pipe.scheduler.timesteps(steps))  # PNDM's are one more
        recorded = math.ceil(evaluations / self.every)
        lengths = {"x_t": evaluations + 1, "x0": evaluations, "eps": evaluations}
        lengths |= {f"output.{branch}": evaluations for branch in branches}
        planned = [
            Planned(name, ("step", *LATENTS), (length, *latents), torch.float32)
            for name, length in lengths.items()
        ]
        calls = {"unet": (recorded, rows), "vae": (count, 1), "text_encoder": (texts, 1)}
        for part in dict.fromkeys(part_of(name) for name in self.layers):
            table = part_table(self.pipe, part, (latents[2], latents[3]))
            for name in self.layers:
                if part_of(name) == part:
                    planned += self.planned_layer(table, name, calls[part])
        planned += self.planned_attention((recorded, rows), (latents[2], latents[3]))
        return planned

    def planned_layer(self, table: LayerTable, name: str, calls: Shape) -> Iterator[Planned]:
        (_, *shape), grid = table[name].outputs[0], grid_of(table, name)
        seen = torch.empty((1, *shape), dtype=self.pipe.dtype, device="meta")
        for kind, reduction in self.keep.items():
            kept = reduction.reduce(seen, grid)
            axes = (first_axis(name), "row", *reduction.axes(seen.ndim, grid))
            yield Planned(f"{name}:{kind}", axes, (*calls, *kept.shape[1:]), kept.dtype)

    def planned_attention(self, calls: Shape, latents: Grid) -> Iterator[Planned]:
        for name, site in self.sites.items():
            h, w = grid_at(latents, site.stage)
            keys = h * w if site.kind == "self" else text_length(self.pipe)
            heads = (site.heads,) if self.each_head else ()
            axes = attention_axes(site, self.each_head)
            shape = (*calls, *heads, h, w, keys)
            yield Planned(f"{name}:attention", axes, shape, torch.float32)

    # --- the run --------------------------------------------------------------------------

    def __enter__(self) -> RecordedPipeline:
        """The pipeline whose run is recorded; its weights are those of the given one.

        Raises:
            SettingError: the recording holds a run already.
        """
        if self.used:
            raise SettingError("this recording holds a run already", fix="make one per run")
        self.used = True
        recorded = RecordedPipeline(self.pipe, self)
        recorded.unet = twin(self.pipe.unet)
        unet = recorded.unet
        self.handles.append(unet.register_forward_pre_hook(self.begin, with_kwargs=True))
        parts = {part_of(name) for name in self.layers}
        if "vae" in parts:
            recorded.vae = twin(self.pipe.vae)
        if "text_encoder" in parts:
            recorded.text_encoder = twin(self.pipe.text_encoder)
        modules = {name: m for part in parts for name, m in modules_of(recorded, part).items()}
        for module in unet.modules():
            if isinstance(module, SpatialTransformer):
                self.handles.append(module.register_forward_pre_hook(self.note_grid))
        for name in self.layers:
            self.handles.append(modules[name].register_forward_hook(self.recording_hook(name)))
        self.handles.append(unet.register_forward_hook(self.end))
        return recorded

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        """End the recording: remove the hooks and put `tensors` together."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.now = None
        if error is not None:
            return
        if self.levels:
            final = self.streams["x0"][-1] if self.final is None else self.final
            self.stream("x_t", final, LATENTS)
        while self.streams:
            name, kept = next(iter(self.streams.items()))
            self.tensors[name] = torch.stack(kept)
            del self.streams[name]  # one after the other, so that not everything is there twice

    def stream(self, name: str, x: Tensor, axes: tuple[str, ...], first: str = "step") -> None:
        self.streams.setdefault(name, []).append(x)
        self.axes[name] = (first, *axes)

    def begin(self, unet: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Before the UNet runs: note the step, and what the rows of the batch stand for."""
        control = named.get("control", args[3] if len(args) > 3 else None)
        # Without one the call is not part of the run: the search for a NaN's origin is such a call.
        self.now = control if isinstance(control, ControlledStep) else None
        if self.now is None:
            return
        if self.now.step <= self.last_step:
            if not self.last:
                raise SettingError(
                    f"step {self.now.step} has been recorded already",
                    fix="make one recording per run, of one batch",
                )
            self.forget()
        if self.last_step < 0:
            self.first_step = self.now.step
        self.last_step, self.final = self.now.step, None
        if self.wants(self.now.step):
            self.recorded_steps.append(self.now.step)
            self.rows = tuple(self.now.rows[i] for i in self.chosen(self.now.rows))

    def end(self, unet: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """After the UNet has run: keep the output of each branch of the guidance."""
        if self.now is None:
            return
        outputs = output.detach().float().cpu()
        for branch in dict.fromkeys(row.branch for row in self.now.rows):
            rows = [i for i, row in enumerate(self.now.rows) if row.branch == branch]
            self.stream(f"output.{branch}", outputs[rows], LATENTS)
        self.now = None

    def forget(self) -> None:
        """Another trajectory begins: drop the one before it."""
        self.repeated = self.now is not None and self.now.step == self.last_step
        for kept in (self.streams, self.levels, self.recorded_steps):
            kept.clear()
        self.last_step = -1
        for observer in self.observers:
            if isinstance(observer, AttentionRecorder | SelfAttentionRecorder):
                observer.forget()

    def wants(self, step: int) -> bool:
        return (step - self.first_step) % self.every == 0

    @property
    def recorded_indices(self) -> list[int]:
        """`recorded_steps`, counted from the run's own first step."""
        return [step - self.first_step for step in self.recorded_steps]

    def chosen(self, rows: Sequence[BatchRow]) -> list[int]:
        """The rows of the batch that are recorded."""
        return [i for i, row in enumerate(rows) if self.observes_row(row)]

    def note_grid(self, transformer: nn.Module, args: tuple[Any, ...]) -> None:
        height, width = args[0].shape[-2:]
        self.grid = (height, width)

    def recording_hook(self, name: str) -> Callable[..., None]:
        """The forward hook of a layer: keep the reductions of its output."""
        of_unet, pixels = part_of(name) == "unet", has_pixels(name)

        def hook(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            x = next(tensors_in(output)).detach()
            if of_unet:
                if self.now is None or not self.wants(self.now.step):
                    return
                if self.branches is not None:
                    x = x[self.chosen(self.now.rows)]
            grid = self.grid if pixels and x.ndim == 3 else None
            for kind, reduction in self.keep.items():
                axes = ("row", *reduction.axes(x.ndim, grid))
                self.stream(f"{name}:{kind}", reduction.reduce(x, grid), axes, first_axis(name))

        return hook

    # As a `Control` of attention:

    def observes(self, site: Site, step: int) -> bool:
        return f"unet.{site.name}" in self.sites and self.wants(step)

    def observes_row(self, row: BatchRow) -> bool:
        return self.branches is None or row.branch in self.branches

    def observe(self, call: AttentionCall, row: int, heads: slice, weights: Tensor) -> None:
        name, site = f"unet.{call.site.name}:attention", call.site
        chosen = self.chosen(call.rows)
        if row == chosen[0] and heads.start == 0:
            own = (site.heads,) if self.each_head else ()
            empty = torch.zeros(len(chosen), *own, call.height, call.width, weights.shape[-1])
            self.stream(name, empty, attention_axes(site, self.each_head)[1:])
        kept = self.streams[name][-1][chosen.index(row)]
        seen = weights.detach().cpu().view(-1, *kept.shape[-3:])
        if self.each_head:
            kept[heads] = seen
        else:
            kept += seen.sum(dim=0) / site.heads

    # As called by `RecordedPipeline`:

    def note(self, level: NoiseLevel, x_t: Tensor, prediction: Prediction) -> None:
        """The guided prediction of a step."""
        self.levels.append(level)
        for name, x in (("x_t", x_t), ("x0", prediction.x0), ("eps", prediction.eps)):
            self.stream(name, x.detach().float().cpu().clone(), LATENTS)

    def note_final(self, latents: Tensor) -> None:
        """The run's final latents: the first that it returns or decodes after its last step.

        An edit may return only the target, the last of the rows; the other rows keep their last
        predicted x0.
        """
        if not self.handles or not self.levels or self.final is not None:
            return
        final = self.streams["x0"][-1].clone()
        if latents.shape[1:] == final.shape[1:]:
            final[-len(latents) :] = latents.detach().float().cpu()
        self.final = final


class RecordedPipeline(Pipeline):
    """A pipeline whose run is recorded; its results are those of the original, bit for bit."""

    def __init__(self, pipe: Pipeline, recording: Recording) -> None:
        self.__dict__.update(pipe.__dict__)
        self.recording = recording

    def observed(self, control: Control | None) -> ObservedControl:
        """The run's own control, observed by the recording."""
        own = [] if control is None else [control]
        return ObservedControl([*self.recording.observers, self.recording, *own])

    def noted(self, prediction: Prediction, x_t: Tensor, level: NoiseLevel) -> Prediction:
        if self.recording.handles:
            self.recording.note(level, x_t, prediction)
        return prediction

    def predict(
        self,
        x_t: Tensor,
        level: NoiseLevel,
        prompts: PromptEmbeddings,
        guidance: float,
        *,
        control: Control | None = None,
        **more: Any,
    ) -> Prediction:
        control = self.observed(control)
        prediction = super().predict(x_t, level, prompts, guidance, control=control, **more)
        return self.noted(prediction, x_t, level)

    def branch_outputs(
        self,
        x_t: Tensor,
        level: NoiseLevel,
        texts: Mapping[str, Tensor],
        *,
        control: Control | None = None,
        **more: Any,
    ) -> dict[str, Tensor]:
        return super().branch_outputs(x_t, level, texts, control=self.observed(control), **more)

    def interpret(self, output: Tensor, x_t: Tensor, level: NoiseLevel) -> Prediction:
        return self.noted(super().interpret(output, x_t, level), x_t, level)

    def denoise(
        self, x_t: Tensor, timesteps: Timesteps, prompts: PromptEmbeddings, **more: Any
    ) -> Tensor:
        x0 = super().denoise(x_t, timesteps, prompts, **more)
        self.recording.note_final(x0)
        return x0

    def decode(self, x0: Tensor, **more: Any) -> Tensor:
        self.recording.note_final(x0)
        return super().decode(x0, **more)


class ObservedControl(Observers):
    """Observers, of which the last is the run's own control and may edit as well."""

    def edits(self, site: Site, step: int) -> bool:
        return self.controls[-1].edits(site, step)

    def edit(self, call: AttentionCall, weights: Callable[[int], Tensor]) -> Mapping[int, Tensor]:
        return self.controls[-1].edit(call, weights)


def twin(module: Module) -> Module:
    """A copy of a module and of all in it, on the same weights.

    `deepcopy` takes the tensors from the memo and copies none of them.
    """
    memo: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, memo)


# --- names --------------------------------------------------------------------------------


def listed(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def chosen_reductions(names: Sequence[str]) -> dict[str, Reduction]:
    """Those of `REDUCTIONS` that are named.

    Raises:
        SettingError: one that there is not.
    """
    for name in names:
        if name not in REDUCTIONS:
            raise SettingError(
                f"{name!r} cannot be kept of a layer", expected=f"any of {', '.join(REDUCTIONS)}"
            )
    return {name: REDUCTIONS[name] for name in names}


def part_of(name: str) -> str:
    return name.partition(".")[0]


def first_axis(name: str) -> str:
    """The first axis of a layer's tensors: the UNet runs once per step, the others on call."""
    return "step" if part_of(name) == "unet" else "call"


def attention_axes(site: Site, each_head: bool) -> tuple[str, ...]:
    heads = ("head",) if each_head else ()
    return ("step", "row", *heads, "y", "x", "pixel" if site.kind == "self" else "token")


def has_pixels(name: str) -> bool:
    """Whether the n of a layer's output (B, n, C) counts pixels, not the tokens of the prompt."""
    return part_of(name) == "unet" and not name.endswith(("attn2.to_k", "attn2.to_v"))


def grid_of(table: LayerTable, name: str) -> Grid | None:
    """The height and width of the pixels that a layer's output (B, h * w, C) is flattened from."""
    if len(table[name].outputs[0]) != 3 or not has_pixels(name):
        return None
    outer = (table[n] for n in outer_names(name) if n in table.names)
    shapes = (layer.outputs[0] for layer in outer if layer.outputs)
    return next(((s[2], s[3]) for s in shapes if len(s) == 4), None)


def find_layers(pipe: Pipeline, wanted: Sequence[str]) -> dict[str, Layer]:
    """The layers that some names or globs mean, in the order in which they run.

    Raises:
        SettingError: none of that name; the nearest are named.
    """
    parts = [part for part in PARTS if any(could_be_in(part, name) for name in wanted)]
    tables = [part_table(pipe, part) for part in parts or ["unet"]] if wanted else []
    every = LayerTable.of([layer for table in tables for layer in table if layer.outputs])
    named = {layer.name for name in wanted for layer in every.find(name)}
    return {layer.name: layer for layer in every if layer.name in named}


def could_be_in(part: str, name: str) -> bool:
    return part_of(name) == part or (part_of(name) not in PARTS and is_glob(part_of(name)))


def modules_of(pipe: Pipeline, part: str) -> dict[str, nn.Module]:
    """A part's modules by the names that they have in its layer table."""
    module: nn.Module = getattr(pipe, part)
    return {join(part, name): one for name, one in module.named_modules()}


def part_table(pipe: Pipeline, part: str, latents: Grid | None = None) -> LayerTable:
    """The layer table of a part for a run of one image."""
    config = pipe.unet.config
    h, w = latents or config.sample_size
    length = text_length(pipe)
    if part == "unet":
        text = (1, length, config.cross_attention_dim)
        return layer_table(pipe.unet, (1, config.in_channels, h, w), 500, text, prefix="unet")
    if part == "text_encoder":
        tokens = torch.zeros(1, length, dtype=torch.long, device="meta")
        return layer_table(pipe.text_encoder, tokens, prefix=part)
    vae: Any = without_weights(pipe.vae)
    shape = (1, pipe.vae.config.latent_channels, h, w)
    x = torch.empty(shape, dtype=pipe.dtype, device="meta")
    return trace(vae, lambda: vae.decode(x), "vae")


def text_length(pipe: Pipeline) -> int:
    """How many tokens a prompt has, start, end and padding included: 77."""
    return int(pipe.text_encoder.config.max_position_embeddings)


def check_memory(planned: Sequence[Planned]) -> int:
    """The bytes that a recording will take in the computer's memory.

    Raises:
        NotEnoughMemoryError: so many are not free.
    """
    need = sum(one.bytes for one in planned)
    most = max((one.bytes for one in planned), default=0)
    check_room(
        "the recording",
        need + most,  # one tensor at a time is there twice while it is put together
        torch.device("cpu"),
        "record fewer layers, or keep less of them (--keep statistics, --every)",
    )
    return need
