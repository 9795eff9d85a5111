"""The world's own CLIP tokenizer: byte-pair encoding trained on its captions.

The same algorithm and files as CLIP's (`vocab.json`, `merges.txt`; byte-level BPE,
arXiv:1508.07909), with 150 merges in place of 48,894.  No piece is longer than six letters:
in CLIP, "streetlights" is two tokens because it is rare; here, because it is long.  What
deals with prompts word by word thus meets words of several tokens.  Anything that is not
in a caption falls apart into bytes: every text has an encoding.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
from transformers import CLIPTokenizer

from roads.world.captions import caption
from roads.world.scene import training_scenes

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77  # tokens a prompt, as in Stable Diffusion
MERGES = 150
LONGEST_PIECE = 6  # letters
WORD_END = "</w>"

Word = tuple[str, ...]  # a word as its current pieces
Pair = tuple[str, str]


def byte_alphabet() -> list[str]:
    """GPT-2's 256 printable stand-ins for the 256 bytes, in CLIP's order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + k) for k in range(len(rest))]


def learn_merges(words: Counter[str], count: int) -> list[Pair]:
    """The `count` most profitable merges: always the pair that occurs most often."""
    pieces: dict[Word, int] = {(*w[:-1], w[-1] + WORD_END): n for w, n in words.items()}
    merges: list[Pair] = []
    while len(merges) < count:
        pairs: Counter[Pair] = Counter()
        for word, number in pieces.items():
            for pair in itertools.pairwise(word):
                if len("".join(pair).removesuffix(WORD_END)) <= LONGEST_PIECE:
                    pairs[pair] += number
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))  # ties: by spelling
        merges.append(best)
        pieces = {merge(word, best): number for word, number in pieces.items()}
    return merges


def merge(word: Word, pair: Pair) -> Word:
    """`word` with every occurrence of the two neighbours `pair` made one piece."""
    out: list[str] = []
    i = 0
    while i < len(word):
        if word[i : i + 2] == pair:
            out.append(word[i] + word[i + 1])
            i += 2
        else:
            out.append(word[i])
            i += 1
    return tuple(out)


def caption_words(count: int = 20_000) -> Counter[str]:
    """How often each word occurs in captions of the training scenes.

    Their odds are fixed here: captions may come to name more or less, the tokens stay.
    """
    rng = np.random.default_rng(0)
    scenes = training_scenes(count)
    text = (caption(scene, rng, present=0.6, absent=0.125) for scene in scenes)
    return Counter(word for line in text for word in line.replace(",", " ,").split())


def write_tokenizer(folder: Path, merges: list[Pair]) -> None:
    """The tokenizer's four files, as SD 1.4's `tokenizer/` has them."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = byte_alphabet()
    tokens = [*alphabet, *(c + WORD_END for c in alphabet), *(a + b for a, b in merges), START, END]
    vocab = {token: index for index, token in enumerate(tokens)}
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    config = {
        **special,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": LENGTH,
        "tokenizer_class": "CLIPTokenizer",
    }
    text = {
        "vocab.json": json.dumps(vocab, ensure_ascii=False),
        "merges.txt": "\n".join(lines) + "\n",
        "special_tokens_map.json": json.dumps(special, indent=2) + "\n",
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
    }
    for name, content in text.items():
        (folder / name).write_text(content, encoding="utf-8")


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Learn the merges, write the files, and read them back as anyone would."""
    write_tokenizer(folder, learn_merges(caption_words(), MERGES))
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer
