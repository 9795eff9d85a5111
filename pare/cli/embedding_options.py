"""Options that edit a prompt's embeddings: --embedding, --replace, --mix, --mix-prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pare.cli.grouped_help import option, options
from pare.cli.option_types import InputFile, as_typed
from pare.errors import PromptError, SettingError
from pare.runtime import validation

if TYPE_CHECKING:
    from pare.pipeline import Pipeline
    from pare.text.embedding_edits import TextEdits

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
MIX_FORM = "WORD=OTHER or WORD=OTHER=SHARE"


class LearnedWordFile(InputFile):
    """`FILE` or `FILE=WORD`."""

    name = "learned word"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)

    def file(self, value: Any) -> Path:
        return Path(self.split(value)[0])

    def with_file(self, value: Any, path: str) -> str:
        word = self.split(value)[1]
        return path if word is None else f"{path}={word}"

    @staticmethod
    def split(value: str) -> tuple[str, str | None]:
        """The file and the word; by the text alone, wherever the file may be."""
        file, equals, word = value.rpartition("=")
        if not equals or value.lower().endswith(SUFFIXES):
            return value, None
        return file, word


def parse_replace(text: str) -> tuple[str, str]:
    """`cat=dog` as ("cat", "dog")."""
    word, _, other = (part.strip() for part in text.partition("="))
    if not word or not other:
        raise SettingError(f"`replace` is {text!r}", expected="WORD=OTHER")
    return validation.check_prompt(word), validation.check_prompt(other)


def parse_mix(text: str) -> tuple[str, str, float]:
    """`cat=dog=0.3` as ("cat", "dog", 0.3); `cat=dog` is half of each."""
    word, _, rest = (part.strip() for part in text.partition("="))
    other, equals, number = (part.strip() for part in rest.rpartition("="))
    if not equals:
        other, number = number, "0.5"
    if not word or not other:
        raise SettingError(f"`mix` is {text!r}", expected=MIX_FORM)
    try:
        share = float(number)
    except ValueError:
        raise SettingError(f"`mix` is {text!r}", expected=MIX_FORM) from None
    return validation.check_prompt(word), validation.check_prompt(other), check_share(share)


def parse_mix_prompt(text: str) -> tuple[str, float]:
    """`a leopard=0.65` as ("a leopard", 0.65); without a number half of each."""
    prompt, equals, number = text.rpartition("=")
    try:
        share = float(number) if equals else None
    except ValueError:
        share = None
    if share is None:
        return validation.check_prompt(text), 0.5
    return validation.check_prompt(prompt), check_share(share)


def check_share(share: float) -> float:
    return validation.check_number("the share", share, -10.0, 10.0)


embedding_options = options(
    "Prompt embeddings",
    option("--embedding", multiple=True, type=LearnedWordFile(), metavar="FILE[=WORD]",
           help="A textual inversion; PROMPT and --negative may use its WORD (default: the name "
                "that FILE has for it)."),
    option("--replace", multiple=True, metavar="WORD=OTHER", callback=as_typed(parse_replace),
           help="Give a WORD of PROMPT the token embedding of OTHER; road#2 is the second road."),
    option("--mix", multiple=True, metavar="WORD=OTHER[=SHARE]", callback=as_typed(parse_mix),
           help="Mix SHARE (0.5) of OTHER's token embedding into that of a WORD of PROMPT."),
    option("--mix-prompt", multiple=True, metavar="PROMPT[=SHARE]",
           callback=as_typed(parse_mix_prompt),
           help="Mix SHARE (0.5) of another prompt's encoding into that of PROMPT."),
)  # fmt: skip


def read_edits(given: Mapping[str, Any]) -> TextEdits:
    """The edits that the options ask for; their files are read.

    Raises:
        EmbeddingError, ModelError, WeightsError: a file that holds no learned word.
        OSError: one that cannot be opened.
    """
    from pare.loading.embedding_file import load_learned_words
    from pare.text.embedding_edits import Mix, MixPrompts, Replace, TextEdits

    learned = [
        word for value in given["embedding"] for word in load_learned_words(*path_and_word(value))
    ]
    replaced = [Replace(*parse_replace(text)) for text in given["replace"]]
    mixed = [Mix(*parse_mix(text)) for text in given["mix"]]
    prompts = [MixPrompts(*parse_mix_prompt(text)) for text in given["mix_prompt"]]
    return TextEdits(tuple(learned), (*replaced, *mixed), tuple(prompts))


def path_and_word(value: str) -> tuple[Path, str | None]:
    file, word = LearnedWordFile.split(value)
    return Path(file), word


def named_words(
    given: Mapping[str, Any], edits: TextEdits, shown: Callable[[Path], str]
) -> dict[str, Any]:
    """The argument `embedding` with the words that its files stand for, whatever the files will
    be called; `shown` is how a recipe has a path."""
    if not given["embedding"] or len(edits.learned) != len(given["embedding"]):
        return {}
    named = [
        f"{shown(path_and_word(value)[0])}={learned.word}"
        for value, learned in zip(given["embedding"], edits.learned, strict=True)
    ]
    return {"embedding": named}


def with_edits(pipe: Pipeline, edits: TextEdits, texts: Sequence[str]) -> Pipeline:
    """The pipeline that encodes `texts`, prompt and negative prompt, under the edits.

    Raises:
        PromptError: a learned word that is in none of them.
        PareError: what `Pipeline.with_text_edits` finds wrong.
    """
    for learned in edits.learned:
        if not edits.uses(learned, texts):
            raise PromptError(
                f"the learned word {learned.word!r} is not in the prompt {texts[0]!r}",
                fix=f"write {learned.word} where it is to be read, or name it: FILE=WORD",
            )
    return pipe.with_text_edits(edits)
