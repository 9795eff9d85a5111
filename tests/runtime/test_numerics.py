"""Numbers that go wrong: noticed, explained, mended where it is known how."""

from __future__ import annotations

import shutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pare.attention import AttentionCall, Control, Site
from pare.cli.main import main
from pare.config import VAEConfig
from pare.errors import NonFiniteError, WeightsError
from pare.pipeline import Pipeline
from pare.runtime.numerics import Numbers, PrecisionWarning, first_bad_layer, is_finite
from pare.vae import AutoencoderKL
from pare.vae.half_precision import in_float32
from tests.random_models import TINY_VAE, normal, random_state
from tests.tiny_model import change_json, write_tiny_model

NAN = float("nan")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def load(folder: Path, dtype: str = "float32") -> Pipeline:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Pipeline.from_pretrained(folder, device="cpu", dtype=dtype)


def weights_of(folder: Path, part: str) -> Path:
    return next((folder / part).glob("*.safetensors"))


def change_weights(folder: Path, part: str, **changes: Callable[[torch.Tensor], object]) -> None:
    """Put tensors through functions, in their file."""
    path = weights_of(folder, part)
    tensors = load_file(path)
    for name, change in changes.items():
        name = name.replace("__", ".")
        changed = change(tensors[name])
        assert isinstance(changed, torch.Tensor)
        tensors[name] = changed
    save_file(tensors, path, metadata={"format": "pt"})


def with_a_nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[3] = NAN
    return tensor


# --- looking at numbers ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2]
)
@pytest.mark.parametrize("wrong", [NAN, float("inf"), -float("inf")])
def test_one_wrong_number_of_thousands_is_seen(dtype: torch.dtype, wrong: float) -> None:
    for place in (0, 1234, 4999):
        numbers = torch.linspace(-7, 7, 5000)
        assert is_finite(numbers.to(dtype))
        numbers[place] = wrong
        assert not is_finite(numbers.to(dtype))
    assert is_finite(torch.empty(0, dtype=dtype))


def test_numbers_in_words() -> None:
    numbers = Numbers.of(torch.tensor([[1.0, NAN, -3.0], [float("inf"), 2.0, 0.5]]))
    assert str(numbers) == "2 x 3 float32, -3 to 2, 1 NaN and 1 infinite of 6 numbers"
    assert Numbers.of(torch.tensor([NAN])).nan == 1


# --- where, and why ---------------------------------------------------------------------------


def test_a_nan_in_the_unets_weights_is_named(copy: Path) -> None:
    change_weights(copy, "unet", mid_block__resnets__0__conv1__weight=with_a_nan)
    pipe = load(copy)
    with pytest.raises(NonFiniteError) as caught:
        pipe.generate("a car", [0], steps=2)
    sentence = str(caught.value)
    assert "the UNet's output at step 0 (t = 5" in sentence
    assert "in float32, as the file has NaN or infinities in its weights: 1 tensors" in sentence
    assert "mid_block.resnets.0.conv1.weight (1 NaN of 2304 numbers)" in sentence
    assert caught.value.find_layer is not None
    layer: Any = caught.value.find_layer()
    assert layer is not None
    assert layer.name == "mid_block.resnets.0.conv1"
    assert layer.weights["weight"].nan == 1
    assert all(not numbers.wrong for numbers in layer.inputs)


def test_a_nan_that_comes_later_tells_its_step(folder: Path) -> None:
    """Latents that go wrong between two steps are the next one's input, and said to be."""
    pipe = load(folder)
    prompts = pipe.encode_prompts("a car")
    x_t = normal(1, 4, 8, 8)
    level = pipe.scheduler.timesteps(5).levels[3]
    x_t[0, 0, 0, 0] = NAN
    with pytest.raises(NonFiniteError, match=r"step 3 .* as the latents held 2 NaN of 512"):
        pipe.predict(x_t, level, prompts, 5.0, step=3)
    half = load(folder, "float16")
    huge = normal(1, 4, 8, 8) * 1e5
    with pytest.raises(NonFiniteError, match=r"the latents reached .*e\+05, and float16 ends at"):
        half.predict(huge, level, half.encode_prompts("a car"), 1.0, step=3)


def test_an_overflow_says_what_to_do(copy: Path) -> None:
    change_weights(copy, "unet", conv_in__weight=lambda w: w * 3e4)
    pipe = load(copy, "float16")
    with pytest.raises(
        NonFiniteError, match="in float16; use `dtype='float32'`, or `dtype='bfloat16'`; `f"
    ):
        pipe.generate("a car", [0], steps=1)
    for dtype in ("float32", "bfloat16"):
        assert load(copy, dtype).generate("a car", [0], steps=1).tensor.isfinite().all()


def test_sd_2_1_without_its_key_is_told_of_it(copy: Path) -> None:
    change_json(copy / "unet" / "config.json", use_linear_projection=True)
    path = weights_of(copy, "unet")
    tensors = {
        name: weight[:, :, 0, 0].contiguous() if "proj_" in name and weight.ndim == 4 else weight
        for name, weight in load_file(path).items()
    }
    tensors["conv_in.weight"] = tensors["conv_in.weight"] * 3e4
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(NonFiniteError, match='"upcast_attention": true in unet'):
        load(copy, "float16").generate("a car", [0], steps=1)


def test_a_nan_in_the_text_encoder_is_its_own(copy: Path) -> None:
    name = "text_model__encoder__layers__1__mlp__fc1__weight"
    change_weights(copy, "text_encoder", **{name: with_a_nan})
    with pytest.raises(NonFiniteError, match=r"^the text encoder's embeddings held") as caught:
        load(copy).generate("a car", [0], steps=1)
    assert caught.value.find_layer is not None
    layer = caught.value.find_layer()
    assert layer is not None
    assert layer.name.endswith("encoder.layers.1.mlp.fc1")


def test_an_edit_of_attention_that_breaks_is_not_the_models_fault(folder: Path) -> None:
    class Broken(Control):
        def edits(self, site: Site, step: int) -> bool:
            return step == 1

        def edit(self, call: AttentionCall, weights: Callable[[int], torch.Tensor]) -> dict:  # type: ignore[type-arg]
            return {1: weights(1) * NAN}

    with pytest.raises(NonFiniteError, match="at step 1 ") as caught:
        load(folder).generate("a car", [0], steps=3, control=Broken())
    assert caught.value.find_layer is not None
    assert caught.value.find_layer() is None


def test_nothing_is_looked_at_when_nothing_is_wrong(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look an answer: the model's, not the layers'."""
    looks = []

    def look(x: torch.Tensor) -> bool:
        looks.append(tuple(x.shape))
        return is_finite(x)

    pipe = load(folder)
    for module in ("runtime.numerics", "vae.half_precision"):
        monkeypatch.setattr(f"pare.{module}.is_finite", look)
    pipe.generate("a car", [0], steps=3)
    evaluations = len(pipe.scheduler.timesteps(3))
    assert looks == [(1, 77, 12)] * 2 + [(2, 4, 8, 8)] * evaluations + [(1, 3, 64, 64)]


# --- the layer ----------------------------------------------------------------------------------


def hooks_of(module: nn.Module) -> int:
    tables: tuple[str, ...] = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs")
    tables += ("_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(part, table)) for part in module.modules() for table in tables)


def test_attention_that_overflows_is_named_and_no_hook_stays(folder: Path) -> None:
    """What no module computes is the fault of the module around it."""
    unet = load(folder).unet
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    attention = unet.get_submodule(name)
    x_t, text = normal(1, 4, 8, 8), normal(1, 77, 12, seed=2)
    with torch.no_grad():
        attention.get_parameter("to_k.weight").mul_(1e30)
        attention.get_parameter("to_q.weight").mul_(1e30)
    layer = first_bad_layer(unet, lambda: unet(x_t, 500, text))
    assert layer is not None
    assert (layer.name, layer.kind) == (name, "Attention")
    assert layer.after == f"{name}.to_v"
    assert layer.output.wrong
    assert f"first in: {name} (Attention), after {name}.to_v" in layer.table()
    assert hooks_of(unet) == 0

    def fails() -> None:
        unet(x_t, 500, text)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first_bad_layer(unet, fails)
    assert hooks_of(unet) == 0


def test_another_threads_run_is_not_watched(folder: Path) -> None:
    unet = load(folder).unet
    good, text = normal(1, 4, 8, 8), normal(1, 77, 12, seed=2)

    def both() -> None:
        thread = threading.Thread(target=lambda: unet(good * NAN, 500, text))
        thread.start()
        thread.join()
        unet(good, 500, text)

    assert first_bad_layer(unet, both) is None


def test_find_nan_prints_the_layer(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_weights(copy, "vae", decoder__conv_out__bias=with_a_nan_first)
    given = ["generate", "a car", "--model", str(copy), "--steps", "1", "--device", "cpu"]
    for more in ([], ["--find-nan"]):
        assert main([*given, "--out", str(tmp_path / "out.png"), *more]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines[-1].startswith("pare: the VAE's decoding held 4096 NaN of 12288 numbers")
        assert any("first in: decoder.conv_out (Conv2d)" in line for line in lines) == bool(more)
        assert not (tmp_path / "out.png").exists()


def with_a_nan_first(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[0] = NAN
    return tensor


# --- the VAE in float16 ---------------------------------------------------------------------------


def overflowing_vae(folder: Path) -> None:
    """Activations of 1e5 before a norm, which takes them back: float32 does not mind."""
    change_weights(
        folder,
        "vae",
        encoder__conv_in__weight=lambda w: w * 8e4,
        decoder__conv_in__weight=lambda w: w * 2e4,
    )


def test_a_vae_that_overflows_in_float16_works_in_float32_once(copy: Path) -> None:
    overflowing_vae(copy)
    pipe, exact = load(copy, "float16"), load(copy)
    weights = {name: weight.clone() for name, weight in pipe.vae.state_dict().items()}
    # The same weights: those that float16 has left of them.
    exact.vae.load_state_dict({name: weight.float() for name, weight in weights.items()})
    x0, image = normal(2, 4, 4, 6) * 5, normal(1, 3, 32, 48).sign()
    with pytest.warns(PrecisionWarning, match="the VAE's decoding overflowed in float16"):
        decoded = pipe.decode(x0, sliced=True)
    assert torch.equal(decoded, exact.decode(x0, sliced=True))
    with pytest.warns(PrecisionWarning, match="the VAE's encoding overflowed in float16"):
        encoded = pipe.encode(image)
    assert torch.equal(encoded, exact.encode(image))
    for name, weight in pipe.vae.state_dict().items():
        assert weight.dtype == torch.float16
        assert torch.equal(weight, weights[name])


def test_a_vae_that_fits_float16_stays_in_it(folder: Path) -> None:
    pipe = load(folder, "float16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pipe.decode(normal(1, 4, 4, 6)).isfinite().all()
        assert pipe.posterior(normal(1, 3, 32, 48).tanh()).mean.dtype == torch.float16


def test_what_float32_cannot_mend_is_not_tried(copy: Path) -> None:
    change_weights(copy, "vae", decoder__conv_out__bias=with_a_nan_first)
    path = weights_of(copy, "vae")
    save_file({n: w.half() for n, w in load_file(path).items()}, path, metadata={"format": "pt"})
    with pytest.raises(NonFiniteError, match=r"NaN .* in its weights: 1 tensors.*decoder.conv_out"):
        load(copy, "float16").decode(normal(1, 4, 4, 6))


def test_latents_that_are_wrong_already_are_not_the_vaes_fault(folder: Path) -> None:
    latents = normal(1, 4, 4, 6)
    latents[0, 0, 0, 0] = NAN
    with pytest.raises(NonFiniteError, match="as the latents held 1 NaN of 96"):
        load(folder, "float16").decode(latents)


def test_the_float32_copy_is_another_module() -> None:
    with torch.device("meta"):
        vae = AutoencoderKL(VAEConfig.read(TINY_VAE, "the test's config"))
    state = random_state(vae, torch.Generator().manual_seed(0))
    vae.load_state_dict({n: w.half() for n, w in state.items()}, assign=True)
    copy = in_float32(vae)
    assert {w.dtype for w in copy.parameters()} == {torch.float32}
    assert {w.dtype for w in vae.parameters()} == {torch.float16}
    assert not any(w.requires_grad for w in copy.parameters())


# --- weights ------------------------------------------------------------------------------


def test_weights_that_are_cast_are_looked_at(copy: Path) -> None:
    change_weights(copy, "unet", conv_in__weight=lambda w: w * 1e6)
    with pytest.raises(
        WeightsError, match=r"holds 5.*e\+05 in conv_in.weight, and float16 ends at 6"
    ):
        load(copy, "float16")
    assert load(copy, "bfloat16").dtype == torch.bfloat16
    change_weights(copy, "unet", conv_in__weight=with_a_nan)
    with pytest.raises(WeightsError, match="holds 1 NaN of 288 numbers in conv_in"):
        load(copy, "bfloat16")
    load(copy, "float32")  # mapped and not read: found by the first run


@pytest.mark.parametrize("eight", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_8_bit_weights_are_cast_and_said(copy: Path, eight: torch.dtype) -> None:
    path = weights_of(copy, "unet")
    small = {name: weight.to(eight) for name, weight in load_file(path).items()}
    save_file(small, path, metadata={"format": "pt"})
    kind = "F8_E4M3" if eight == torch.float8_e4m3fn else "F8_E5M2"
    with pytest.warns(PrecisionWarning, match=rf"in 8 bits \({kind}\): they are cast to float32"):
        pipe = Pipeline.from_pretrained(copy, device="cpu", dtype="float32")
    weight = pipe.unet.conv_in.weight
    assert torch.equal(weight, small["conv_in.weight"].float())
    assert pipe.generate("a car", [0], steps=1).tensor.isfinite().all()


def test_a_folder_says_that_no_image_is_checked(folder: Path) -> None:
    with pytest.warns(
        UserWarning, match="has a safety_checker and a feature_extractor, which pare"
    ):
        Pipeline.from_pretrained(folder, device="cpu")


def test_a_conversion_reads_everything_and_says_so(copy: Path, tmp_path: Path) -> None:
    from pare.loading import conversion

    assert all(row.fine for row in conversion.check(copy))
    change_weights(copy, "unet", conv_in__weight=with_a_nan)
    wrong = [row for row in conversion.check(copy) if not row.fine]
    assert [(row.name, row.status) for row in wrong] == [
        ("unet/conv_in.weight", "not finite: 1 NaN of 288 numbers")
    ]
    note = "1 tensors hold NaN or infinities, the first being unet/conv_in.weight"
    done = conversion.convert(copy, tmp_path / "one.safetensors")
    assert any(line.startswith(note) for line in done.notes)
