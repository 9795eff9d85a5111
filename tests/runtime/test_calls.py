"""Keywords of other libraries, warnings at the caller's line, representations of one line."""

from __future__ import annotations

import dataclasses
import linecache
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from pare.errors import ParameterError
from pare.pipeline import Pipeline
from pare.runtime.calls import OTHER_NAMES, checked_keywords
from pare.runtime.short_repr import short, short_repr
from pare.text.text_encoder import PromptEmbeddings, PromptTruncated
from techniques.blended import blend
from techniques.erasure import erase
from techniques.inversion import edit, invert
from techniques.loss_guidance import guide
from techniques.prompt_to_prompt import prompt_to_prompt
from tests.tiny_model import write_tiny_model

CALLS: list[Any] = [
    Pipeline.generate, Pipeline.img2img, blend, erase, edit, invert, guide, prompt_to_prompt,
]  # fmt: skip


@pytest.mark.parametrize("function", CALLS, ids=lambda one: one.__name__)
@pytest.mark.parametrize(
    ("name", "meant"),
    [("cfg", "guidance"), ("guidance_scale", "guidance"), ("num_inference_steps", "steps")],
)
def test_names_that_diffusers_has(function: Any, name: str, meant: str) -> None:
    with pytest.raises(ParameterError, match=f"has no parameter `{name}`; did you mean `{meant}`"):
        function(None, **{name: 3})
    with pytest.raises(TypeError):  # as any wrong keyword is
        function(None, **{name: 3})


def test_other_keywords_and_right_ones() -> None:
    @checked_keywords
    def paint(prompts: str, *, width: int = 1) -> tuple[str, int]:
        return prompts, width

    assert paint("a", width=3) == ("a", 3)
    with pytest.raises(ParameterError, match="did you mean `width`"):
        paint("a", widht=3)  # type: ignore[call-arg]
    with pytest.raises(ParameterError, match="it has prompts, width"):
        paint("a", zebra=3)  # type: ignore[call-arg]
    with pytest.raises(ParameterError, match="did you mean `prompts`"):
        paint(prompt="a")  # type: ignore[call-arg]
    assert all(name != meant for name, meant in OTHER_NAMES.items())


def test_a_warning_stands_at_the_line_of_the_caller(tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    write_tiny_model(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = Pipeline.from_pretrained(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipe.encode_prompts("a road " * 60)
    (cut,) = [one for one in caught if one.category is PromptTruncated]
    assert cut.filename == __file__
    assert "encode_prompts" in linecache.getline(__file__, cut.lineno)


def test_representations_fit_a_line() -> None:
    tensor = torch.zeros(2, 77, 768)
    assert repr(PromptEmbeddings(tensor, tensor.half())) == (
        "PromptEmbeddings(cond=float32 (2, 77, 768), uncond=float16 (2, 77, 768))"
    )
    assert short(np.zeros((3, 2), np.uint8)) == "uint8 (3, 2)"
    assert short([1, 2, 3, 4, 5]) == "[1, 2, 3, … 5 in all]"
    assert short({"a": tensor, "b": "x" * 200}).startswith("{'a': float32 (2, 77, 768), 'b': 'xx")
    assert len(short("x" * 1000)) < 100
    assert short(torch.nn.Linear(2, 2)) == "Linear"


def test_fields_without_a_representation_are_left_out() -> None:
    @dataclasses.dataclass
    class Pair:
        one: int
        two: int = dataclasses.field(default=2, repr=False)

        __repr__ = short_repr

    assert repr(Pair(1)) == "Pair(one=1)"
