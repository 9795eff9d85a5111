"""A model's folder to a model: strict, mapped, and every mistake in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pare.errors import ConfigError, ModelError, WeightsError
from pare.loading import resolve
from pare.loading.hub_client import Snapshot
from pare.loading.modules import Components, load_model
from tests.hub_configs import SD14_UNET
from tests.tiny_model import SCHEDULER, change_json, write_tiny_model

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
ALL = (UNET, VAE, TEXT)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(original, tmp_path / "model"))


def change_tensors(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(path)), path)


def loaded(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.state_dict())


# --- what is loaded ------------------------------------------------------------------------


def test_every_tensor_is_the_files(original: Path) -> None:
    parts = load_model(original, device="cpu")
    for module, name in ((parts.unet, UNET), (parts.vae, VAE), (parts.text_encoder, TEXT)):
        stored = {
            key: tensor
            for key, tensor in load_file(original / name).items()
            if "position_ids" not in key
        }
        assert loaded(module).keys() == stored.keys()
        assert all(torch.equal(tensor, stored[key]) for key, tensor in loaded(module).items())
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert not any(buffer.is_meta for buffer in module.buffers())
    assert parts.scheduler_config == SCHEDULER
    assert parts.source.name == parts.source.path == str(original)
    assert set(parts.source.files) == set(ALL)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_any_floating_type_is_cast_to_the_one_that_is_wanted(
    folder: Path, stored: torch.dtype, dtype: str
) -> None:
    for name in (UNET, VAE):
        change_tensors(folder / name, lambda ts: {key: t.to(stored) for key, t in ts.items()})
    parts = load_model(folder, device="cpu", dtype=dtype)
    wanted = getattr(torch, dtype)
    assert {t.dtype for t in loaded(parts.unet).values()} == {wanted}
    assert {t.dtype for t in loaded(parts.vae).values()} == {wanted}
    assert {t.dtype for t in loaded(parts.text_encoder).values()} == {wanted}
    tensor = load_file(folder / UNET)["conv_in.weight"].to(wanted)
    assert torch.equal(parts.unet.conv_in.weight, tensor)


@pytest.mark.parametrize(
    ("there", "dtype", "taken"),
    [
        (("plain", "fp16"), "float16", "fp16"),
        (("plain", "fp16"), "float32", "plain"),
        (("plain", "fp16"), "bfloat16", "plain"),  # float16 would lose bfloat16's range
        (("fp16",), "float32", "fp16"),
        (("plain",), "float16", "plain"),
    ],
)
def test_the_variant_that_fits_the_type_is_taken(
    folder: Path, there: tuple[str, ...], dtype: str, taken: str
) -> None:
    for name in ALL:
        plain = folder / name
        half = plain.with_suffix(".fp16.safetensors")
        marked = {key: torch.zeros_like(t).half() for key, t in load_file(plain).items()}
        if "fp16" in there:
            save_file({k: t.long() if "position_ids" in k else t for k, t in marked.items()}, half)
        if "plain" not in there:
            plain.unlink()
    parts = load_model(folder, device="cpu", dtype=dtype)
    zeros = {not any(t.any() for t in loaded(m).values()) for m in modules(parts)}
    assert zeros == {taken == "fp16"}
    assert {("fp16" in name) for name in parts.source.files} == {taken == "fp16"}


def modules(parts: Components) -> tuple[nn.Module, ...]:
    return parts.unet, parts.vae, parts.text_encoder


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_weights_stay_in_the_mapped_file(folder: Path) -> None:
    parts = load_model(folder, device="cpu", dtype="float32")
    mapped = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if str(folder) in line
    ]
    for module in modules(parts):
        for name, tensor in loaded(module).items():
            assert any(low <= tensor.data_ptr() < high for low, high in mapped), name


def test_the_text_encoders_prefix_may_be_there_or_not(folder: Path, original: Path) -> None:
    """transformers 4 wrote `text_model.` and the positions' numbers; 5 writes neither."""
    change_tensors(
        folder / TEXT,
        lambda tensors: {
            key.removeprefix("text_model."): tensor
            for key, tensor in tensors.items()
            if "position_ids" not in key
        },
    )
    old, new = load_model(original, device="cpu"), load_model(folder, device="cpu")
    for name, tensor in loaded(old.text_encoder).items():
        assert torch.equal(tensor, loaded(new.text_encoder)[name])


# --- old VAE files -------------------------------------------------------------------------

OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def old_vae(tensors: dict[str, Tensor], *, convolutions: bool) -> dict[str, Tensor]:
    out = {}
    for name, tensor in tensors.items():
        old = name
        for today, before in OLD_NAMES.items():
            old = old.replace(f"attentions.0.{today}.", f"attentions.0.{before}.")
        linear = old != name and tensor.ndim == 2
        out[old] = tensor[..., None, None].contiguous() if convolutions and linear else tensor
    assert len(out.keys() - tensors.keys()) == 16
    return out


@pytest.mark.parametrize("convolutions", [False, True])
def test_old_vae_files_load_to_the_same_tensors(
    folder: Path, original: Path, convolutions: bool
) -> None:
    change_tensors(folder / VAE, lambda tensors: old_vae(tensors, convolutions=convolutions))
    new, old = load_model(original, device="cpu").vae, load_model(folder, device="cpu").vae
    assert loaded(new).keys() == loaded(old).keys()
    for name, tensor in loaded(new).items():
        assert torch.equal(tensor, loaded(old)[name])


@pytest.mark.parametrize("sizes", [(1.0, 2.0), (2.0, 1.0)])
def test_a_vae_with_both_names_is_refused_whatever_comes_first(
    folder: Path, sizes: tuple[float, float]
) -> None:
    name = "encoder.mid_block.attentions.0.to_q.weight"
    old = name.replace("to_q", "query")
    change_tensors(
        folder / VAE,
        lambda tensors: tensors | {name: tensors[name] * sizes[0], old: tensors[name] * sizes[1]},
    )
    with pytest.raises(WeightsError, match=rf"unexpected +{old}"):
        load_model(folder, device="cpu")


def test_the_unet_has_no_old_names(folder: Path) -> None:
    change_tensors(
        folder / UNET,
        lambda tensors: {key.replace("attn1.to_q", "attn1.query"): t for key, t in tensors.items()},
    )
    with pytest.raises(WeightsError, match=r"unexpected +\S+attn1\.query"):
        load_model(folder, device="cpu")


# --- weights that do not fit ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "gone", "bent"),
    [
        (UNET, "conv_in.bias", "conv_out.weight"),
        (VAE, "quant_conv.bias", "post_quant_conv.weight"),
        (
            TEXT,
            "text_model.final_layer_norm.bias",
            "text_model.embeddings.token_embedding.weight",
        ),
    ],
)
def test_a_mismatch_is_one_sorted_table(folder: Path, part: str, gone: str, bent: str) -> None:
    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        removed = tensors.pop(gone)
        extra = {"zz.extra": removed, "aa.extra": removed.clone()}
        return tensors | extra | {bent: tensors[bent][:1].contiguous()}

    change_tensors(folder / part, change)
    with pytest.raises(WeightsError) as caught:
        load_model(folder, device="cpu")
    first, *rows = str(caught.value).splitlines()
    assert first == f"{folder / part} does not fit its config.json in 4 tensors:"
    words = [row.split()[:2] for row in rows]
    assert words == [
        ["missing", gone],
        ["unexpected", "aa.extra"],
        ["unexpected", "zz.extra"],
        ["wrong", "shape"],
    ]
    assert bent in rows[3]
    assert "instead of" in rows[3]


def test_a_long_table_is_cut(folder: Path) -> None:
    change_tensors(folder / UNET, lambda tensors: {"a": tensors["conv_in.bias"]})
    with pytest.raises(WeightsError, match="… and") as caught:
        load_model(folder, device="cpu")
    assert len(str(caught.value).splitlines()) == 22


@pytest.mark.parametrize("part", ALL)
@pytest.mark.parametrize("kind", [torch.int32, torch.bool, torch.complex64])
def test_numbers_that_are_no_weights_are_refused(
    folder: Path, part: str, kind: torch.dtype
) -> None:
    name = next(key for key in load_file(folder / part) if key.endswith(".bias"))
    change_tensors(folder / part, lambda tensors: tensors | {name: tensors[name].to(kind)})
    with pytest.raises(WeightsError, match=f"holds {name} as .*; expected one of F64"):
        load_model(folder, device="cpu")


def raw_file(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


LIE = {"a": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 8]}}
BROKEN_FILES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda good: b"",
    "no header": lambda good: good[:4],
    "half a header": lambda good: good[:100],
    "cut off": lambda good: good[:-1],
    "longer": lambda good: good + b"\0",
    "a web page": lambda good: b"<!DOCTYPE html><html>Not found</html>" * 10,
    "a git-lfs pointer": lambda good: b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
    "a huge header": lambda good: struct.pack("<Q", 2**63 - 1) + b"{}",
    "a header that is a list": lambda good: raw_file(b"[]"),
    "a header that is not text": lambda good: raw_file(b"\xff\xfe{}"),
    "a header that nests": lambda good: raw_file(b'{"a":' * 10_000),
    "a shape that lies": lambda good: raw_file(LIE, bytes(8)),
    "offsets that lie": lambda good: raw_file(
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [2**40, 2**40 + 8]}}, bytes(8)
    ),
    "an unknown type": lambda good: raw_file(
        {"a": {"dtype": "X7", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)
    ),
}


@pytest.mark.parametrize("part", ALL)
@pytest.mark.parametrize("case", BROKEN_FILES)
def test_a_broken_file_is_one_sentence(folder: Path, part: str, case: str) -> None:
    path = folder / part
    path.write_bytes(BROKEN_FILES[case](path.read_bytes()))
    with pytest.raises(WeightsError) as caught:
        load_model(folder, device="cpu")
    message = str(caught.value)
    assert message.startswith(f"{path} is not a whole safetensors file (")
    assert message.endswith("download it again")
    assert len(message.splitlines()) == 1
    assert len(message) < 500


# --- folders that are no model -------------------------------------------------------------


def test_names_that_are_no_model(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(ModelError, match="does not exist; expected roads, a model's folder"):
        load_model("./CompVis/stable-diffusion-v1-4", device="cpu")
    with pytest.raises(WeightsError, match="is empty"):
        load_model(file, device="cpu")
    with pytest.raises(ModelError, match=r"has no model_index.json; .*unet/ and vae/"):
        load_model(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"_class_name": "StableDiffusionXLPipeline"}, "is a model of Stable Diffusion XL"),
        ({"_class_name": "StableDiffusion3Pipeline"}, "is a model of Stable Diffusion 3"),
        ({"_class_name": "FluxPipeline", "unet": ...}, "is a model of Flux"),
        (
            {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]},
            "a part that pare does not run: text_encoder_2",
        ),
        ({"controlnet": ["diffusers", "ControlNetModel"]}, "does not run: controlnet"),
        ({"unet": ...}, "names no class as the unet of a StableDiffusionPipeline"),
        ({"unet": [None, None]}, "names no class as the unet"),
        ({"unet": "UNet2DConditionModel"}, "names no class as the unet"),
        ({"unet": ["diffusers", ["a"]]}, r'names \["a"\] as the unet'),
        ({"vae": ["diffusers", "AutoencoderTiny"]}, 'names "AutoencoderTiny" as the vae'),
        ({"text_encoder": ["transformers", "T5EncoderModel"]}, '"T5EncoderModel" as the text_enc'),
    ],
    ids=lambda value: str(value)[:40],
)
def test_models_of_another_kind_are_named(
    folder: Path, changes: dict[str, object], sentence: str
) -> None:
    change_json(folder / "model_index.json", **changes)
    with pytest.raises(ModelError, match=sentence):
        load_model(folder, device="cpu")


@pytest.mark.parametrize(
    "changes",
    [
        {"safety_checker": [None, None], "feature_extractor": [None, None]},
        {"safety_checker": ..., "feature_extractor": ..., "requires_safety_checker": ...},
        {"image_encoder": [None, None], "_class_name": "StableDiffusionInpaintPipeline"},
        {"tokenizer": ["transformers", "CLIPTokenizerFast"]},
    ],
    ids=str,
)
def test_parts_that_make_no_difference_make_none(folder: Path, changes: dict[str, object]) -> None:
    change_json(folder / "model_index.json", **changes)
    load_model(folder, device="cpu")


def test_parts_of_different_models_are_noticed(folder: Path) -> None:
    change_json(folder / "text_encoder" / "config.json", hidden_size=24)
    with pytest.raises(ConfigError, match=r"text encoder has 24 channels and .* cross-att.* 12"):
        load_model(folder, device="cpu")


def test_weights_in_another_format_are_named(folder: Path) -> None:
    (folder / UNET).rename(folder / "unet" / "other_model.bin")
    with pytest.raises(
        ModelError, match=rf"has no {UNET}, only other_model.bin; expected .* safetens"
    ):
        load_model(folder, device="cpu")


# What breaks a folder -> what the sentence says.  None of these may reach transformers,
# which takes seconds to import and speaks of its own affairs.
Breaker = Callable[[Path], object]
BROKEN_FOLDERS: dict[str, Breaker] = {
    "no model_index.json": lambda f: (f / "model_index.json").unlink(),
    "model_index.json is not a JSON": lambda f: (f / "model_index.json").write_text("{"),
    "no scheduler/scheduler_config.json": lambda f: shutil.rmtree(f / "scheduler"),
    "no unet/config.json": lambda f: (f / "unet/config.json").unlink(),
    "no vae/config.json": lambda f: (f / "vae/config.json").unlink(),
    "no text_encoder/config.json": lambda f: (f / "text_encoder/config.json").unlink(),
    "that is SDXL's": lambda f: change_json(f / "unet/config.json", addition_embed_type="text"),
    "'hidden_act'": lambda f: change_json(f / "text_encoder/config.json", hidden_act=3),
    f"no {UNET}": lambda f: (f / UNET).unlink(),
    f"no {VAE}": lambda f: (f / VAE).unlink(),
    f"no {TEXT}": lambda f: (f / TEXT).unlink(),
    f"{TEXT} is not a whole": lambda f: (f / TEXT).write_bytes(b"x"),
    "no vocab.json": lambda f: (f / "tokenizer/vocab.json").unlink(),
    "no merges.txt": lambda f: (f / "tokenizer/merges.txt").unlink(),
    "vocab.json is not a JSON": lambda f: (f / "tokenizer/vocab.json").write_text("<html>"),
    "vocab.json holds a JSON list": lambda f: (f / "tokenizer/vocab.json").write_text("[]"),
    'gives "the</w>" the id 9999': lambda f: change_json(
        f / "tokenizer/vocab.json", **{"the</w>": 9999}
    ),
    'the id "0"': lambda f: change_json(f / "tokenizer/vocab.json", **{"the</w>": "0"}),
    "merge 1 of": lambda f: (f / "tokenizer/merges.txt").write_text("#version: 0.2\n雪 雪\n"),
    'merge 1: ["s", "n", "o"]': lambda f: (f / "tokenizer/merges.txt").write_text("s n o\n"),
    "merges.txt is not a text": lambda f: (f / "tokenizer/merges.txt").write_bytes(b"\xff"),
    "tokenizer_config.json is not": lambda f: (f / "tokenizer/tokenizer_config.json").write_text(
        "null,"
    ),
    "special_tokens_map.json holds": lambda f: (f / "tokenizer/special_tokens_map.json").write_text(
        "7"
    ),
}


def test_a_folders_mistakes_are_found_before_anything_slow(original: Path, tmp_path: Path) -> None:
    for number, breaker in enumerate(BROKEN_FOLDERS.values()):
        breaker(Path(shutil.copytree(original, tmp_path / str(number))))
    code = f"""
import json, sys
from pare.errors import PareError
from pare.pipeline import Pipeline
said = []
for number in range({len(BROKEN_FOLDERS)}):
    try:
        Pipeline.from_pretrained({str(tmp_path)!r} + f"/{{number}}", device="cpu")
    except PareError as error:
        said.append(str(error))
    else:
        said.append("nothing")
try:
    Pipeline.from_pretrained({str(original)!r}, device="cpu", scheduler="dimm")
except PareError as error:
    assert "no scheduler" in str(error)
assert "transformers" not in sys.modules
print(json.dumps(said))
"""
    # The folder's safety_checker is warned of: here only mistakes count.
    done = subprocess.run(
        [sys.executable, "-W", "ignore::UserWarning", "-c", code],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    for sentence, said in zip(BROKEN_FOLDERS, json.loads(done.stdout), strict=True):
        assert sentence in said
        assert len(said.splitlines()) == 1
    assert done.stderr == ""


def test_special_tokens_beyond_the_vocabulary_are_refused(folder: Path) -> None:
    """transformers gives them new ids, which the text encoder has no rows for."""
    change_json(folder / "tokenizer" / "tokenizer_config.json", pad_token="<|new|>")
    change_json(folder / "tokenizer" / "special_tokens_map.json", pad_token="<|new|>")
    with pytest.raises(ConfigError, match=r"has 525 tokens; expected at most 524"):
        load_model(folder, device="cpu")


# --- manners -------------------------------------------------------------------------------


def test_loading_is_silent_and_leaves_global_state_alone(folder: Path) -> None:
    nothing_left_out = {"safety_checker": [None, None], "feature_extractor": [None, None]}
    change_json(folder / "model_index.json", **nothing_left_out)
    code = f"""
import os, random
import numpy, torch
from transformers.utils import logging
from huggingface_hub.utils import are_progress_bars_disabled
def state():
    return (random.getstate(), repr(numpy.random.get_state()), torch.get_rng_state().tolist(),
            torch.is_grad_enabled(), torch.get_default_dtype(), os.environ.copy(),
            logging.is_progress_bar_enabled(), logging.get_verbosity(),
            are_progress_bars_disabled())
before = state()
from pare.pipeline import Pipeline
pipe = Pipeline.from_pretrained({str(folder)!r}, device="cpu", dtype="bfloat16")
pipe.encode_prompts(["the snowy road"])
assert state() == before
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_the_default_type_stays_while_a_model_loads(
    original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' own loader sets it for all threads, and noise drawn meanwhile is lost."""
    set_to: list[torch.dtype] = []
    monkeypatch.setattr(torch, "set_default_dtype", set_to.append)
    load_model(original, device="cpu", dtype="bfloat16")
    assert set(set_to) <= {torch.get_default_dtype()}


# --- memory --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux alone")
def test_sd_14s_unet_and_one_forward_fit_in_a_quarter_more_than_its_weights(
    tmp_path: Path,
) -> None:
    """Zeros, in a sparse file: they take as much memory as any weights, and no disk."""
    code = f"""
import json, resource, struct, sys
from pathlib import Path
import torch
from pare.config import UNetConfig
from pare.loading.modules import load_weights
from pare.unet import UNet
with torch.device("meta"):
    unet = UNet(UNetConfig.read(json.loads({json.dumps(SD14_UNET)!r}), "it"))
header, size = {{}}, 0
for name, tensor in unet.state_dict().items():
    end = size + 4 * tensor.numel()
    header[name] = {{"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [size, end]}}
    size = end
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
path = Path({str(tmp_path)!r}) / "unet.safetensors"
with path.open("wb") as file:
    file.write(struct.pack("<Q", len(text)) + text)
    file.truncate(8 + len(text) + size)
load_weights(unet, path, torch.float32)
with torch.no_grad():
    unet(torch.zeros(1, 4, 8, 8), 500, torch.zeros(1, 77, 768))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / size)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    assert 1 < float(done.stdout) <= 1.25


def test_short_names_of_repositories(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def fetch(repo_id: str, **_: object) -> Snapshot:
        asked.append(repo_id)
        return Snapshot(folder, "0" * 40)

    monkeypatch.setattr(resolve, "fetch_snapshot", fetch)
    monkeypatch.chdir(tmp_path)
    found = [resolve.resolve_model(name) for name in resolve.HUB_NAMES]
    assert asked == [model.name for model in found] == list(resolve.HUB_NAMES.values())
    assert all("/" in name for name in asked)
    shutil.copytree(folder, tmp_path / "sd15")
    assert resolve.resolve_model("sd15").path == Path("sd15")  # what exists goes first
    with pytest.raises(ModelError, match="sd14, sd15"):
        resolve.resolve_model("sd1")
