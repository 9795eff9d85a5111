"""Concept erasure: guidance with the directions of unwanted concepts subtracted.

Classifier-free guidance adds the direction of the prompt.  Erasure subtracts those of concepts:

    eps = u + s (c - u) - sum_i w_i g_i (e_i - u)

u, c and e_i are the predictions for the empty prompt, the prompt and concept i, from one
batch; s is the guidance scale, w_i a weight and g_i, in [0, 1], a gate for each place.  With
g = 1 this is composable diffusion (arXiv:2206.01714, eq. 11), where a negative w_i adds the
concept.

Ungated, a term acts on every pixel at every step, also where the concept is not, and several
outweigh the prompt: five of weight 10 against a guidance scale of 7.5 destroy the image.
`Gates` limit where and when they act: safe latent diffusion (arXiv:2211.05105), SEGA
(arXiv:2301.12247) and LEDITS++ (arXiv:2311.16711) are presets.

`erase_latents` is the loop, `ErasureGuidance` the formula, `gate` computes g.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pare.attention import AttentionCall, Control, Site
from pare.errors import SettingError
from pare.guidance import guide
from pare.noise import Noise
from pare.pipeline import Pipeline, Progress
from pare.runtime import validation
from pare.schedulers import History, NoiseLevel, Timesteps
from pare.text.text_encoder import PromptEmbeddings, words_of

MAX_CONCEPTS = 32
MAX_WEIGHT = 1000.0


@dataclass(frozen=True)
class Concept:
    """Something that is not to be in the image, in words."""

    prompt: str
    weight: float = 10.0
    """w, how strongly it is subtracted; below 0 it is added instead."""


@dataclass(frozen=True)
class Gates:
    """Where and when the concepts' terms act.  The defaults do not limit them."""

    warm_up: int = 0
    """Steps before the first subtraction.  The early steps decide the layout."""
    threshold: float | None = None
    """Act only where c - e is below this: where the prompt's prediction does not already
    differ from the concept's (arXiv:2211.05105, eq. 6)."""
    sensitivity: float | None = None
    """Scale each term by clamp(|c - e| * sensitivity, max 1), as the paper's code does (its
    eq. 6 has a maximum in this place)."""
    quantile: float | None = None
    """In each channel, act only at the pixels where |e - u| is above this quantile
    (arXiv:2301.12247, eq. 5)."""
    attention: float | None = None
    """Act only where the cross-attention weight of the concept's words is above this quantile
    (arXiv:2311.16711, eq. 10)."""
    momentum: float = 0.0
    """How much of the earlier steps' terms is added (arXiv:2211.05105, eq. 7)."""
    memory: float = 0.0
    """The decay of the momentum, beta in arXiv:2211.05105, eq. 8."""
    cap: float | None = None
    """The norm of the sum of all terms is at most this times that of s (c - u)."""


# Published settings, by name.  safe-*: arXiv:2211.05105, table 1 ("Hyp-..."); there the weight
# is the guidance scale, and all unwanted concepts are one prompt.
PRESETS: Mapping[str, Gates] = {
    "ungated": Gates(),
    "safe-medium": Gates(10, threshold=0.01, sensitivity=1000, momentum=0.3, memory=0.4),
    "safe-strong": Gates(7, threshold=0.025, sensitivity=2000, momentum=0.5, memory=0.7),
    "safe-max": Gates(0, threshold=1.0, sensitivity=5000, momentum=0.5, memory=0.7),
    "sega": Gates(10, quantile=0.9, momentum=0.1, memory=0.4),
    "ledits++": Gates(2, quantile=0.9, attention=0.75),
}


def usual_weight(preset: str, guidance: float) -> float:
    """The weight of a concept in the source of `preset`: 10 for the ungated formula, the
    guidance scale in safe latent diffusion, 5 in the code of SEGA and LEDITS++."""
    if preset == "ungated":
        return Concept.weight
    return guidance if preset.startswith("safe") else 5.0


# --- the algorithm -------------------------------------------------------------------------


@torch.no_grad()
def erase_latents(
    pipe: Pipeline,
    x_t: Tensor,
    timesteps: Timesteps,
    prompts: PromptEmbeddings,
    concepts: Sequence[Concept],
    *,
    guidance: float,
    gates: Gates = PRESETS["ungated"],
    rescale: float = 0.0,
    noise: Noise | None = None,
    progress: Progress = iter,
    watch: Callable[[int, list[Tensor]], None] | None = None,
) -> Tensor:
    """x_t at the first of the timesteps -> latents at the last, both (B, 4, h, w).

    Args:
        watch: called with the step index and the concepts' terms w_i g_i (e_i - u), each
            (B, 4, h, w), of every step that subtracts them.
    """
    erasure = ErasureGuidance(pipe, concepts, gates, guidance, rescale)
    texts = erasure.texts(prompts)
    history: History = ()
    for i in progress(range(len(timesteps))):
        level = timesteps.levels[i]
        outputs = pipe.branch_outputs(x_t, level, texts, control=erasure.attention, step=i)
        output, terms = erasure.combine(i, outputs, x_t, level)
        prediction = pipe.interpret(output, x_t, level)
        fresh = pipe.fresh_noise(noise, x_t)
        x_t, history = pipe.scheduler.step(timesteps, i, x_t, prediction, history, fresh)
        if watch and i >= gates.warm_up:
            watch(i, terms)
    return x_t


class ErasureGuidance:
    """Combines one run's branch outputs by the formula above; keeps the momentum between steps.

    Attributes:
        attention: the control that the UNet is to be run with; None without an attention gate.
    """

    def __init__(
        self,
        pipe: Pipeline,
        concepts: Sequence[Concept],
        gates: Gates,
        guidance: float,
        rescale: float = 0.0,
    ) -> None:
        self.pipe, self.concepts, self.gates = pipe, concepts, gates
        self.guidance, self.rescale = guidance, rescale
        self.attention = ConceptAttention(pipe, concepts) if gates.attention is not None else None
        self.momentum: Tensor | float = 0.0

    def texts(self, prompts: PromptEmbeddings) -> dict[str, Tensor]:
        """(B, 77, C) for each branch of the batch, in its order: uncond, cond, the concepts."""
        texts = {"uncond": prompts.uncond, "cond": prompts.cond}
        for k, concept in enumerate(self.concepts):
            rows = [concept.prompt] * len(prompts)
            texts[f"{CONCEPT_BRANCH}{k}"] = self.pipe.encode_prompts(rows).cond
        return texts

    def combine(
        self, i: int, outputs: Mapping[str, Tensor], x_t: Tensor, level: NoiseLevel
    ) -> tuple[Tensor, list[Tensor]]:
        """The guided output of step `i` from those of all branches, and each concept's term.

        All are (B, 4, h, w), eps or v as the model predicts.
        """
        gates = self.gates
        uncond, cond, *unwanted = outputs.values()

        # The gates' thresholds are published for eps: other outputs are brought to its scale.
        to_eps = eps_per_output(level, self.pipe.scheduler.prediction_type)
        terms = []
        for k, (concept, output) in enumerate(zip(self.concepts, unwanted, strict=True)):
            attention = self.attention.maps_of(k, x_t) if self.attention else None
            direction = output - uncond
            through = gate(direction * to_eps, (cond - output) * to_eps, gates, attention)
            terms.append(concept.weight * through * direction)

        total = torch.stack(terms).sum(0) + gates.momentum * self.momentum
        self.momentum = gates.memory * self.momentum + (1 - gates.memory) * total
        if gates.cap is not None:
            total = capped(total, self.guidance * (cond - uncond), gates.cap)

        guided = guide(uncond, cond, self.guidance, self.rescale)
        if i >= gates.warm_up:
            guided = guided - total
        return guided, terms


def gate(
    direction: Tensor, towards: Tensor, gates: Gates, attention: Tensor | None = None
) -> Tensor:
    """g: how much of a concept's term acts at each place, in [0, 1], (B, 4, h, w).

    Args:
        direction: e - u, from the empty prompt to the concept, in units of eps, (B, 4, h, w).
        towards: c - e, from the concept to the prompt.
        attention: the attention weight of the concept's words at each place, (B, 1, h, w).
    """
    through = torch.ones_like(direction)
    if gates.sensitivity is not None:
        through = through * (towards.abs() * gates.sensitivity).clamp(max=1.0)
    if gates.threshold is not None:
        through = through * (towards < gates.threshold)
    if gates.quantile is not None:
        size = direction.abs()
        through = through * (size >= quantile(size, gates.quantile))
    if gates.attention is not None and attention is not None:
        through = through * (attention >= quantile(attention, gates.attention))
    return through


def quantile(values: Tensor, q: float) -> Tensor:
    """The quantile `q` of each channel of each image: (B, C, h, w) -> (B, C, 1, 1)."""
    # In float32: torch has no quantile of half precision, and ranks need the digits.
    return torch.quantile(values.float().flatten(2), q, dim=2)[..., None, None]


def eps_per_output(level: NoiseLevel, prediction_type: str) -> float:
    """The derivative of eps in the model's output, for the same x_t."""
    if prediction_type == "v_prediction":
        return level.signal_rate  # eps = sqrt(alpha_bar) v + sqrt(1 - alpha_bar) x_t
    if prediction_type == "sample":
        return level.signal_rate / level.noise_rate
    return 1.0


def capped(total: Tensor, guidance_term: Tensor, cap: float) -> Tensor:
    """`total`, its norm in each image at most `cap` times that of `guidance_term`.

    All (B, 4, h, w).
    """
    dims = tuple(range(1, total.ndim))
    norm = torch.linalg.vector_norm(total, dim=dims, keepdim=True)
    largest = cap * torch.linalg.vector_norm(guidance_term, dim=dims, keepdim=True)
    return total * (largest / norm.clamp(min=1e-12)).clamp(max=1.0)


# --- the concepts' attention ---------------------------------------------------------------

CONCEPT_BRANCH = "concept "
"""The name of concept k's rows in the batch is this and k."""


class ConceptAttention(Control):
    """Records the cross-attention weights of each concept's words, one step at a time.

    In the concepts' own rows of the batch: the sum over the words, the mean over heads and
    layers.  Layers of the coarsest stage, and in large images of the finest, are left out:
    the others localise best (arXiv:2208.01626, section 3; LEDITS++ takes 16 x 16).
    """

    LARGEST_GRID = 32  # cells a side

    def __init__(self, pipe: Pipeline, concepts: Sequence[Concept]) -> None:
        room = pipe.text_encoder.config.max_position_embeddings - 2
        self.tokens = [
            slice(1, 1 + max(1, len(words_of(pipe.tokenizer, concept.prompt, room))))
            for concept in concepts
        ]
        self.coarsest = len(pipe.unet.config.block_out_channels) - 1
        self.maps: dict[tuple[int, int], list[Tensor]] = {}

    def observes(self, site: Site, step: int) -> bool:
        return site.kind == "cross" and site.stage < self.coarsest

    def observe(self, call: AttentionCall, row: int, heads: slice, weights: Tensor) -> None:
        here, side = call.rows[row], max(call.height, call.width)
        if not here.branch.startswith(CONCEPT_BRANCH) or side > self.LARGEST_GRID:
            return
        k = int(here.branch.removeprefix(CONCEPT_BRANCH))
        of_words = weights[:, :, self.tokens[k]].sum(2).mean(0)
        found = self.maps.setdefault((k, here.prompt), [])
        found.append(of_words.view(1, 1, call.height, call.width))

    def maps_of(self, k: int, x_t: Tensor) -> Tensor:
        """Concept `k`'s maps of the last forward pass, at the size of x_t: (B, 1, h, w)."""
        size = (x_t.shape[2], x_t.shape[3])
        rows = []
        for image in range(len(x_t)):
            maps = self.maps.pop((k, image))
            resized = [F.interpolate(m, size, mode="bilinear", antialias=False) for m in maps]
            rows.append(torch.stack(resized).mean(0))
        return torch.cat(rows)


# --- what is refused -----------------------------------------------------------------------


def check_concepts(concepts: Sequence[Concept]) -> None:
    """Raise a SettingError for no concepts, too many, empty ones, or weights out of range."""
    if not 1 <= len(concepts) <= MAX_CONCEPTS:
        raise SettingError(f"{len(concepts)} concepts are given", expected=f"1 to {MAX_CONCEPTS}")
    for concept in concepts:
        validation.check_prompt(concept.prompt)
        if not concept.prompt.strip():
            raise SettingError("a concept is empty", expected="words, for example 'streetlights'")
        what = f"the weight of {concept.prompt!r}"
        validation.check_number(what, concept.weight, -MAX_WEIGHT, MAX_WEIGHT)


def check_gates(gates: Gates) -> None:
    """Raise a SettingError for a gate out of range."""
    if isinstance(gates.warm_up, bool) or not 0 <= gates.warm_up <= 1000:
        raise SettingError(f"`warm_up` is {gates.warm_up!r}", expected="steps, 0 to 1000")
    bounds = {
        "threshold": (-1000.0, 1000.0), "sensitivity": (0.0, 1e6), "quantile": (0.0, 1.0),
        "attention": (0.0, 1.0), "momentum": (0.0, 1.0), "memory": (0.0, 1.0),
        "cap": (0.0, 1000.0),
    }  # fmt: skip
    for name, (low, high) in bounds.items():
        value = getattr(gates, name)
        if value is not None:
            validation.check_number(name, value, low, high)
