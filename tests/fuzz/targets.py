"""What is fuzzed: one function a parser, each fed bytes.

A target may return, or raise an error that pare means for its user (`PareError`), or an
operating-system error that the command puts in words.  Anything else is a finding.
"""

from __future__ import annotations

import errno
import functools
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save

from pare.cli.terminal import OS_ERRORS, one_line
from pare.config import TextConfig, UNetConfig, VAEConfig, read_json
from pare.errors import PareError
from pare.io import images
from pare.loading import checkpoint, hub_folder, model_configs, modules, single_file
from pare.recipes import recipe
from pare.runtime import validation
from pare.schedulers import build_scheduler
from pare.text import text_encoder as text
from pare.text.tokenizer import build_tokenizer, read_tokenizer
from tests.conftest import ROADS
from tests.hostile import damage
from tests.random_models import TINY_UNET
from tests.tiny_model import MODEL_INDEX, SCHEDULER, TEXT, VAE

Target = Callable[[Path, bytes], object]
"""(an empty folder, what the fuzzer made up)"""


def put(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def safetensors(folder: Path, data: bytes) -> None:
    """Both readers: the folders', which looks at the table, and the single files'."""
    path = put(folder, "a.safetensors", data)
    stored = modules.open_weights(path)
    modules.check_names({"a": (2, 2)}, {n: tuple(t.shape) for n, t in stored.items()}, path)
    checkpoint.open_checkpoint(path)


def ckpt(folder: Path, data: bytes) -> None:
    """The pickle alone is made up: the archive around it would eat the fuzzer's time."""
    path = folder / "a.ckpt"
    damage.archive(data, damage.FOUR)(path)
    opened = checkpoint.open_checkpoint(path)
    assert all(tensor.device.type == "cpu" for tensor in opened.tensors.values())
    for tensor in opened.tensors.values():
        if checkpoint.stored_dtype(tensor) in checkpoint.FLOATING and sum(tensor.shape) < 100:
            tensor.contiguous().to(torch.float16)


def archive(folder: Path, data: bytes) -> None:
    """The zip archive itself."""
    checkpoint.open_checkpoint(put(folder, "a.ckpt", data))


def configs(folder: Path, data: bytes) -> None:
    """One JSON object, as any of the files that hold one."""
    raw = read_json(put(folder, "a.json", data))
    for read in (UNetConfig.read, VAEConfig.read, TextConfig.read, build_scheduler):
        attempt(functools.partial(read, raw, "a.json"))
    put(folder, hub_folder.INDEX, data)
    attempt(functools.partial(model_configs.check_index, folder))
    attempt(functools.partial(hub_folder.read_shards, folder / "a.json"))


def recipes(folder: Path, data: bytes) -> None:
    recipe.parse_recipe(data.decode("utf-8", "surrogateescape"), "a.png")


def recipes_in_images(folder: Path, data: bytes) -> None:
    recipe.read_recipe(put(folder, "a.png", data))


def image_files(folder: Path, data: bytes) -> None:
    loaded = images.load_image(put(folder, "a", data))
    assert loaded.mode == "RGB"


def masks(folder: Path, data: bytes) -> None:
    mask = images.load_mask(put(folder, "a", data))
    assert mask.mode == "L"
    images.match_mask(mask, (48, 32))


def tokenizer_files(folder: Path, data: bytes) -> None:
    """The first byte says which file the rest is."""
    names = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json",
             "special_tokens_map.json", "added_tokens.json")  # fmt: skip
    for path in (ROADS / "tokenizer").iterdir():
        put(folder, path.name, path.read_bytes())
    put(folder, names[(data[:1] or b"\0")[0] % len(names)], data[1:])
    tokenizer = build_tokenizer(read_tokenizer(folder, 664), 664, 77)
    text.tokenize(tokenizer, ["a snowy road"])


@functools.cache
def roads_tokenizer() -> Any:
    return build_tokenizer(read_tokenizer(ROADS / "tokenizer", 664), 664, 77)


def prompts(folder: Path, data: bytes) -> None:
    """Prompts to tokens, cut where they are too long."""
    prompt = validation.check_prompt(data.decode("utf-8", "surrogateescape"))
    tokens = text.tokenize(roads_tokenizer(), [prompt])
    assert tokens.shape == (1, 77)
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < 664


def kinds(folder: Path, data: bytes) -> None:
    """What a single file is, told by its tensors' names and shapes: one name a line."""
    tensors = {}
    for line in data.decode("utf-8", "replace").splitlines()[:200]:
        name, _, shape = line.partition("\t")
        sides = [min(ord(letter), 4096) for letter in shape[:5]]
        tensors[name] = torch.empty(sides, device="meta")
    opened = checkpoint.Checkpoint(Path("a.safetensors"), tensors)
    single_file.make_plan(opened, ema=None, only=None)


def sizes(folder: Path, data: bytes) -> None:
    validation.parse_size(data.decode("utf-8", "surrogateescape"))


TARGETS: dict[str, Target] = {
    target.__name__: target  # mypy takes the tuple's parts for modules
    for target in (
        safetensors, ckpt, archive, configs, recipes, recipes_in_images, image_files, masks,
        tokenizer_files, prompts, kinds, sizes,
    )
}  # fmt: skip


def attempt(body: Callable[[], object]) -> None:
    """Run the body; what pare says to its user is no finding, if it is something to say."""
    try:
        body()
    except PareError as error:
        assert one_line(str(error)).isprintable()  # noqa: PT017 - this is no test
    except OSError as error:
        if error.errno not in OS_ERRORS and error.errno != errno.EINVAL:
            raise


def check(name: str, data: bytes) -> None:
    """One try of one target."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attempt(functools.partial(TARGETS[name], Path(folder), data))


# --- what the fuzzers begin with -----------------------------------------------------------------


def seeds(name: str, folder: Path) -> Iterator[bytes]:
    """Good files and bad ones: the tests' own."""
    good = save({"a": torch.ones(2, 2), "b": torch.ones(3).half()})
    objects = [TINY_UNET, VAE, TEXT, SCHEDULER, MODEL_INDEX, {"weight_map": {"a": "a.safetensors"}}]
    documents = [json.dumps(content).encode() for content in objects]
    match name:
        case "safetensors":
            yield good
            yield from damaged(damage.SAFETENSORS, folder, good)
        case "ckpt":
            yield damage.tensor((2, 2), (2, 1))
            yield from (damage.call("collections.OrderedDict", b""), damage.exponential(4))
        case "archive":
            torch.save({"a": torch.ones(2, 2)}, folder / "a.ckpt")
            yield (folder / "a.ckpt").read_bytes()
            yield from damaged(damage.PICKLES, folder, (folder / "a.ckpt").read_bytes())
        case "configs":
            yield from documents
            yield from damaged(damage.JSON, folder, documents[0])
        case "recipes":
            yield from documents
        case "image_files" | "masks" | "recipes_in_images":
            for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
                Image.linear_gradient("L").resize((24, 16)).save(folder / "a", kind)
                yield (folder / "a").read_bytes()
        case "tokenizer_files":
            yield from (bytes([k]) + b'{"a": {"content": "b", "id": 3}}' for k in range(6))
        case "kinds":
            yield b"model.diffusion_model.input_blocks.0.0.weight\t\x40\x04\x03\x03"
            yield b"\n".join(part.encode() for part, _ in single_file_names())
        case _:
            yield from (b"a snowy road", "雪 🚗\0".encode(), b"512x768", b"\xff")


def single_file_names() -> Iterator[tuple[str, tuple[int, ...]]]:
    from tests.single_files import original_checkpoint

    for name, tensor in list(original_checkpoint("SD 1", "meta").items())[:200]:
        yield f"{name}\t{''.join(map(chr, tensor.shape))}", tuple(tensor.shape)


def damaged(table: dict[str, damage.Damage], folder: Path, good: bytes) -> Iterator[bytes]:
    for kind, apply in table.items():
        if "gigabytes" not in kind and "bomb" not in kind and "large" not in kind:
            path = folder / kind
            path.write_bytes(good)
            apply(path)
            if path.stat().st_size < 20_000:
                yield path.read_bytes()
