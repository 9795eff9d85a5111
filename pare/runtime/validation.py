"""Validation of settings: steps, guidance, strength, seeds, sizes, prompts.

Each function returns the value in its normal form or raises a SettingError (PromptError
for prompts).  The API and the command share these checks.  No value is clamped silently,
and 0 means 0: `guidance=0` and `seed=0` are not replaced by a default.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from pare.errors import PromptError, SettingError

MAX_STEPS = 1000  # the length of the training schedule
MAX_SEED = 2**63 - 1  # the largest that torch.Generator and JSON readers of 64 bits take
MAX_IMAGES = 256  # in one run
MAX_SIDE = 8192  # pixels
MAX_PROMPT = 20_000  # characters; 77 tokens are never more than a few hundred
MAX_WEIGHT = 100.0  # of a word; papers take -2 to 2
SIZE_STEP = 8  # a VAE of four stages downsamples three times
MIN_TILE = 8  # latents along a side of the VAE's tiles


def check_steps(steps: int, most: int = MAX_STEPS) -> int:
    """The number of sampling steps, 1 to `most`, the model's number of training timesteps."""
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= most:
        raise SettingError(f"`steps` is {steps!r}", expected=f"a whole number from 1 to {most}")
    return steps


def check_guidance(guidance: float) -> float:
    """The guidance scale: 1 is the conditional prediction alone, 0 the unconditional one."""
    return check_number("guidance", guidance, -1000.0, 1000.0)


def check_rescale(rescale: float) -> float:
    """Guidance rescale, 0 (none) to 1 (arXiv:2305.08891, 3.4)."""
    return check_number("rescale", rescale, 0.0, 1.0)


def check_eta(eta: float) -> float:
    """DDIM's eta: 0 is deterministic, 1 adds as much fresh noise as DDPM."""
    return check_number("eta", eta, 0.0, 1.0)


def check_strength(strength: float) -> float:
    """The fraction of the steps that is run on a given image: above 0, at most 1."""
    expected = "a number above 0, at most 1, such as 0.6"
    if not isinstance(strength, bool) and strength == 0:
        raise SettingError("`strength` is 0, which runs no step at all", expected=expected)
    try:
        return check_number("strength", strength, 0.0, 1.0)
    except SettingError as error:
        raise SettingError(error.problem, expected=expected) from None


def check_number(name: str, value: float, low: float, high: float) -> float:
    """A finite number between `low` and `high`, both included.

    Args:
        name: for the message: a parameter, or words such as "the weight of 'car'".
    """
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not low <= value <= high or not math.isfinite(value):
        what = f"`{name}`" if name.isidentifier() else name
        raise SettingError(f"{what} is {value!r}", expected=f"a number from {low:g} to {high:g}")
    return float(value)


def check_seed(seed: int) -> int:
    """A seed, 0 to 2**63 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise SettingError(f"`seed` is {seed!r}", expected="a whole number from 0 to 2**63 - 1")
    return seed


def seed_list(seeds: int | Sequence[int]) -> list[int]:
    """One seed or several as a list: at least one; a seed may occur twice.

    Raises:
        SettingError: no seeds, or something that is no seed.
    """
    listed: object = [seeds] if isinstance(seeds, int) else seeds
    if isinstance(listed, str) or not isinstance(listed, Sequence):
        raise SettingError(f"`seeds` is {seeds!r}", expected="a whole number, or several")
    if not listed:
        raise SettingError("no seeds are given", expected="one per image")
    return [check_seed(seed) for seed in listed]


def check_seeds(seeds: Sequence[int]) -> list[int]:
    """Seeds of one batch: at least one, none twice (equal seeds make equal images)."""
    checked = [check_seed(seed) for seed in seeds]
    if not 1 <= len(checked) <= MAX_IMAGES:
        raise SettingError(f"{len(checked)} seeds are given", expected=f"1 to {MAX_IMAGES}")
    for seed in checked:
        if checked.count(seed) > 1:
            raise SettingError(
                f"seed {seed} is given {checked.count(seed)} times",
                fix="give each once: equal seeds make equal images",
            )
    return checked


def consecutive_seeds(seeds: Sequence[int], count: int) -> list[int]:
    """The seeds of a run: those given, or `count` consecutive ones from a single one."""
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_IMAGES:
        raise SettingError(
            f"`count` is {count!r}", expected=f"a whole number from 1 to {MAX_IMAGES}"
        )
    if count > 1 and len(seeds) > 1:
        raise SettingError(
            f"{len(seeds)} seeds and a count of {count} are given",
            fix="give several seeds, or one seed and a count",
        )
    if count > 1:
        return check_seeds([check_seed(seeds[0]) + offset for offset in range(count)])
    return check_seeds(seeds)


def check_batch(batch: int) -> int:
    """How many images may go through the model together."""
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise SettingError(f"`batch` is {batch!r}", expected="a whole number, at least 1")
    return batch


def check_size(width: int, height: int, step: int = SIZE_STEP) -> tuple[int, int]:
    """Width and height in pixels: multiples of `step`, the VAE's factor, at most 8192."""
    for name, side in (("width", width), ("height", height)):
        good = isinstance(side, int) and not isinstance(side, bool)
        if not good or not step <= side <= MAX_SIDE or side % step:
            raise SettingError(
                f"the {name} is {side!r}",
                expected=f"a multiple of {step} from {step} to {MAX_SIDE}",
            )
    return width, height


def parse_size(text: str) -> tuple[int, int]:
    """`512x768` as (width, height) = (512, 768), `512` as (512, 512)."""
    match = re.fullmatch(r"([0-9]{1,6})(?:[x×]([0-9]{1,6}))?", text.strip().lower())
    if not match:
        raise SettingError(f"the size is {text!r}", expected="WIDTHxHEIGHT, for example 512x512")
    return check_size(int(match[1]), int(match[2] or match[1]))


def parse_span(name: str, text: str) -> tuple[float, float]:
    """A fraction of the steps as (start, end) in [0, 1]: `0.8` is (0, 0.8), `0.2:0.8` both."""
    low, colon, high = text.rpartition(":")
    try:
        span = float(low) if colon else 0.0, float(high)
    except ValueError:
        raise SettingError(
            f"`{name}` is {text!r}", expected="0.8, for example, or 0.2:0.8"
        ) from None
    start, end = (check_number(name, value, 0.0, 1.0) for value in span)
    if start > end:
        raise SettingError(f"`{name}` ends at {end:g} and begins at {start:g}")
    return start, end


def parse_pair(name: str, text: str, form: str) -> tuple[str, str]:
    """`car=2` as ("car", "2"); `form` is the expected form for the message: "WORD=NUMBER"."""
    left, equals, right = (part.strip() for part in text.rpartition("="))
    if not left or not equals or not right:
        raise SettingError(f"`{name}` is {text!r}", expected=form)
    return left, right


def parse_weight(name: str, text: str) -> tuple[str, float]:
    """`car=2` as ("car", 2.0)."""
    word, number = parse_pair(name, text, "WORD=NUMBER")
    weight = parse_number(name, number, text, "WORD=NUMBER")
    return word, check_number(f"`{name}` of {word!r}", weight, -MAX_WEIGHT, MAX_WEIGHT)


def parse_number(name: str, number: str, text: str, form: str) -> float:
    """`number` as a float; `text`, of the form `form`, is the value that it is a part of."""
    try:
        return float(number)
    except ValueError:
        raise SettingError(f"`{name}` is {text!r}", expected=form) from None


def prompt_list(prompts: str | Sequence[str]) -> list[str]:
    """One prompt or several as a list.

    Raises:
        PromptError: something that is no prompt.
    """
    listed: object = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(listed, Sequence):
        raise PromptError(
            f"the prompts are a {type(prompts).__name__}", expected="text, or a sequence of texts"
        )
    return [check_prompt(prompt) for prompt in listed]


def check_prompt(prompt: str) -> str:
    """A prompt: text that can be encoded as UTF-8, of at most 20,000 characters; "" is one."""
    if not isinstance(prompt, str):
        raise PromptError(f"the prompt is a {type(prompt).__name__}", expected="text")
    if len(prompt) > MAX_PROMPT:
        raise PromptError(
            f"the prompt has {len(prompt)} characters", expected=f"at most {MAX_PROMPT}"
        )
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"the prompt holds bytes that are not text (at character {error.start + 1})",
            expected="UTF-8",
        ) from error
    return prompt


LORA_BLOCK = re.compile(r"text|unet|in|out|time|mid|(down|up|stage)(\.[0-9]{1,2})?")
LORA_BLOCKS = "text, unet, in, time, down, down.0 …, mid, up, up.0 …, out, stage.0 …"


def check_lora_weights(weight: float, blocks: Mapping[str, float]) -> None:
    """Check how strongly a LoRA changes the model, and some blocks of it (`pare.loading.lora`)."""
    check_number("the LoRA's weight", weight, -100.0, 100.0)
    for block, own in blocks.items():
        if not LORA_BLOCK.fullmatch(block):
            raise SettingError(f"a LoRA's block is {block!r}", expected=f"one of {LORA_BLOCKS}")
        check_number(f"the LoRA's weight in {block}", own, -100.0, 100.0)
