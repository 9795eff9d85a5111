"""LoRA files in every format against diffusers and peft; what they leave alone; what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pare.errors import ModelError, PareError, SettingError, WeightsError
from pare.loading.lora import describe_layers, places_by_name, unet_blocks
from pare.loading.lora_file import flat, load_lora
from pare.loading.lora_layers import merged_weight
from pare.pipeline import Pipeline
from tests.lora_files import ATTENTION, TEXT, kohya, named_layers, random_adapter, write_lora
from tests.random_models import normal
from tests.tiny_model import write_tiny_model

BOUND = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder, device="cpu")


@pytest.fixture
def theirs(folder: Path) -> Any:
    pytest.importorskip("peft")
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None
    )


def outputs(unet: nn.Module, text_encoder: nn.Module) -> tuple[Tensor, Tensor]:
    """The UNet's output and the text encoder's for fixed inputs."""
    x_t, context = normal(2, 4, 8, 8), normal(2, 77, 12, seed=2)
    ids = torch.tensor([[522, 3, 40, 5, 523]])
    with torch.no_grad():
        eps = unet(x_t, torch.tensor([501, 30]), context)
        return getattr(eps, "sample", eps), text_encoder(ids)[0]


def distance(one: Tensor, other: Tensor) -> float:
    return ((one - other).abs().max() / other.abs().max()).item()


def agree(ours: Pipeline, unet: nn.Module, text_encoder: nn.Module, plain: Pipeline) -> None:
    found, reference = outputs(ours.unet, ours.text_encoder), outputs(unet, text_encoder)
    before = outputs(plain.unet, plain.text_encoder)
    assert distance(before[0], reference[0]) > 1e-2  # the file does something
    for one, other in zip(found, reference, strict=True):
        assert distance(one, other) < BOUND


# --- files that diffusers and peft write, and read ------------------------------------------


def test_the_file_that_diffusers_writes_today(pipe: Pipeline, theirs: Any, tmp_path: Path) -> None:
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    plain = LoraConfig(r=3, lora_alpha=6, target_modules=[*ATTENTION, "proj_in", "conv1"])
    text = LoraConfig(r=2, lora_alpha=2, target_modules=list(TEXT))
    theirs.unet.add_adapter(plain)
    theirs.text_encoder.add_adapter(text)
    for module in (theirs.unet, theirs.text_encoder):
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                parameter.data.copy_(0.3 * normal(*parameter.shape, seed=len(name)))
    layers = {
        part: convert_state_dict_to_diffusers(get_peft_model_state_dict(getattr(theirs, part)))
        for part in ("unet", "text_encoder")
    }
    theirs.save_lora_weights(
        tmp_path,
        unet_lora_layers=layers["unet"],
        text_encoder_lora_layers=layers["text_encoder"],
        unet_lora_adapter_metadata=plain.to_dict(),
        text_encoder_lora_adapter_metadata=text.to_dict(),
    )
    agree(pipe.with_lora(tmp_path), theirs.unet, theirs.text_encoder, pipe)


OLD_PROCESSORS = {
    "q": ("to_q", "to_q_lora"), "k": ("to_k", "to_k_lora"), "v": ("to_v", "to_v_lora"),
    "o": ("to_out.0", "to_out_lora"),
}  # fmt: skip


def processor_file(pipe: Pipeline) -> dict[str, Tensor]:
    """As diffusers wrote attention processors in 2023."""
    tensors: dict[str, Tensor] = {}
    for name, module in pipe.unet.named_modules():
        if name.endswith(("attn1", "attn2")):
            for layer, old in OLD_PROCESSORS.values():
                outs, ins = module.get_parameter(f"{layer}.weight").shape
                stem = f"unet.{name}.processor.{old}"
                tensors[f"{stem}.down.weight"] = 0.3 * normal(4, ins, seed=len(tensors))
                tensors[f"{stem}.up.weight"] = 0.3 * normal(outs, 4, seed=len(tensors))
    return tensors


@pytest.mark.parametrize("kind", ["processors", "kohya", "kohya-1", "kohya-half", "pickle"])
def test_a_file_that_diffusers_reads(
    pipe: Pipeline, theirs: Any, tmp_path: Path, kind: str
) -> None:
    unet = named_layers(theirs.unet, "lora_unet_", [*ATTENTION, "proj_in", "proj"])
    text = named_layers(pipe.text_encoder, "lora_te_", TEXT)
    text = {
        name.replace("lora_te_", "lora_te_text_model_").replace(
            "text_model_text_model", "text_model"
        ): s
        for name, s in text.items()
    }
    file = tmp_path / ("lora.bin" if kind == "pickle" else "lora.safetensors")
    rank = 1 if kind == "kohya-1" else 4
    tensors = kohya(unet | text, rank, alpha=2.0)
    if kind == "processors":
        tensors = processor_file(pipe)
    if kind == "kohya-half":
        tensors = {n: t.half() for n, t in tensors.items()}
    if kind == "pickle":
        torch.save(tensors, file)
    else:
        save_file(tensors, file)
    theirs.load_lora_weights(tmp_path, weight_name=file.name, adapter_name="a")
    agree(pipe.with_lora(file), theirs.unet, theirs.text_encoder, pipe)
    theirs.set_adapters(["a"], [0.35])
    agree(pipe.with_lora(file, 0.35), theirs.unet, theirs.text_encoder, pipe)


def test_two_files_at_once(pipe: Pipeline, theirs: Any, tmp_path: Path) -> None:
    names = named_layers(theirs.unet, "lora_unet_", ATTENTION)
    one = write_lora(tmp_path / "one.safetensors", kohya(names, 2))
    two = write_lora(tmp_path / "two.safetensors", kohya(names, 5, alpha=None, seed=9))
    for name, file in (("one", one), ("two", two)):
        theirs.load_lora_weights(tmp_path, weight_name=file.name, adapter_name=name)
    theirs.set_adapters(["one", "two"], [0.8, -0.4])
    ours = pipe.with_lora(one, 0.8).with_lora(two, -0.4)
    agree(ours, theirs.unet, theirs.text_encoder, pipe)


def peft_configs() -> Iterator[Any]:
    pytest.importorskip("peft")
    from peft import LoHaConfig, LoKrConfig, LoraConfig

    linear, both = list(ATTENTION), [*ATTENTION, "conv1", "conv2", "proj_in", "linear_1"]
    yield LoraConfig(r=4, lora_alpha=3, target_modules=both, use_rslora=True)
    yield LoraConfig(r=4, lora_alpha=4, target_modules=both, use_dora=True)
    yield LoraConfig(r=4, target_modules=linear, lora_bias=True)
    yield LoraConfig(
        r=4, target_modules=linear, rank_pattern={"to_q": 2}, alpha_pattern={"to_q": 5}
    )
    yield LoHaConfig(r=4, alpha=2, target_modules=both)
    yield LoHaConfig(r=4, alpha=2, target_modules=both, use_effective_conv2d=True)
    yield LoKrConfig(r=2, alpha=3, target_modules=both)
    yield LoKrConfig(r=2, alpha=3, target_modules=both, use_effective_conv2d=True)
    yield LoKrConfig(r=2, alpha=3, target_modules=linear, decompose_both=True)
    yield LoKrConfig(r=9999, alpha=9999, target_modules=linear)


@pytest.mark.parametrize("number", range(10))
def test_the_adapters_of_peft(pipe: Pipeline, theirs: Any, tmp_path: Path, number: int) -> None:
    from peft.utils import get_peft_model_state_dict

    config = list(peft_configs())[number]
    random_adapter(theirs.unet, config)
    theirs.unet.peft_config = {"default": config}
    state = get_peft_model_state_dict(theirs.unet, adapter_name="default")
    named = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in state.items()}
    save_file(named, tmp_path / "adapter_model.safetensors")
    config.save_pretrained(tmp_path)
    agree(pipe.with_lora(tmp_path), theirs.unet, pipe.text_encoder, pipe)


# --- what is not in diffusers: LyCORIS' forms, against the formula --------------------------


def test_lycoris_with_a_core_and_magnitudes_by_input(pipe: Pipeline, tmp_path: Path) -> None:
    """conv: CP decomposition, Tucker; DoRA over inputs.  Against weights put together here."""
    path = "down_blocks.0.resnets.0.conv1"
    weight: Tensor = pipe.unet.get_parameter(f"{path}.weight")
    outs, ins, *kernel = weight.shape
    down, mid, up = normal(2, ins, 1, 1), normal(3, 2, *kernel), normal(outs, 3, 1, 1)
    name = f"lora_unet_{flat(path)}"
    magnitude = 1 + normal(1, ins, 1, 1).abs()
    file = write_lora(tmp_path / "a.safetensors", {
        f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up,
        f"{name}.lora_mid.weight": mid, f"{name}.alpha": torch.tensor(4.0),
        f"{name}.dora_scale": magnitude,
    })  # fmt: skip
    delta = torch.zeros_like(weight)
    for o in range(outs):
        for r in range(3):
            for s in range(2):
                delta[o] += up[o, r, 0, 0] * mid[r, s] * down[s, :, 0, 0][:, None, None]
    moved = weight + 0.5 * (4 / 2) * delta
    norms = torch.stack([moved[:, i].norm() for i in range(ins)])
    wanted = moved * (magnitude.flatten() / norms)[:, None, None]

    layer: Any = pipe.with_lora(file, 0.5).unet.get_submodule(path)
    x = normal(1, ins, 5, 5)
    bias = layer.bias
    expected = torch.nn.functional.conv2d(x, wanted, bias, padding=1)
    assert distance(layer(x), expected) < BOUND
    assert distance(merged_weight(weight, layer.changes), wanted) < BOUND


def test_full_differences(pipe: Pipeline, tmp_path: Path) -> None:
    layer: Any = pipe.unet.conv_in
    diff, bias = normal(*layer.weight.shape), normal(*layer.bias.shape)
    tensors = {"lora_unet_conv_in.diff": diff, "lora_unet_conv_in.diff_b": bias}
    twin = pipe.with_lora(write_lora(tmp_path / "a.safetensors", tensors), 0.5).unet.conv_in
    x = normal(1, 4, 6, 6)
    wanted = torch.nn.functional.conv2d(
        x, layer.weight + diff / 2, layer.bias + bias / 2, padding=1
    )
    assert distance(twin(x), wanted) < BOUND


# --- what a twin is -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everywhere(pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of every layer."""
    names = named_layers(pipe.unet, "lora_unet_") | named_layers(pipe.text_encoder, "lora_te_")
    return write_lora(tmp_path_factory.mktemp("lora") / "all.safetensors", kohya(names))


def test_a_twin_shares_every_tensor_and_leaves_the_model_alone(
    pipe: Pipeline, everywhere: Path
) -> None:
    before = outputs(pipe.unet, pipe.text_encoder)
    twin = pipe.with_lora(everywhere)
    changed = outputs(twin.unet, twin.text_encoder)
    for one, other in ((pipe.unet, twin.unet), (pipe.text_encoder, twin.text_encoder)):
        ours, shared = one.state_dict(), other.state_dict()
        assert ours.keys() == shared.keys()
        assert all(shared[name].data_ptr() == tensor.data_ptr() for name, tensor in ours.items())
    assert twin.vae is pipe.vae
    for old, now, new in zip(before, outputs(pipe.unet, pipe.text_encoder), changed, strict=True):
        assert torch.equal(old, now)
        assert not torch.equal(old, new)
    assert [site.name for site in twin.unet.sites()] == [site.name for site in pipe.unet.sites()]


def test_weight_0_is_the_model_to_the_bit(pipe: Pipeline, everywhere: Path) -> None:
    twin = pipe.with_lora(everywhere, 0)
    assert twin.unet is pipe.unet
    assert twin.text_encoder is pipe.text_encoder


def changed_layers(twin: Pipeline) -> set[str]:
    found = {f"unet.{n}" for n, m in twin.unet.named_modules() if hasattr(m, "changes")}
    return found | {
        f"text.{n}" for n, m in twin.text_encoder.named_modules() if hasattr(m, "changes")
    }


@pytest.mark.parametrize(
    ("blocks", "wanted"),
    [
        ({"text": 1}, lambda n: n.startswith("text.")),
        ({"mid": 1}, lambda n: n.startswith("unet.mid_block")),
        ({"up.1": 1}, lambda n: n.startswith("unet.up_blocks.1")),
        (
            {"stage.1": 1},
            lambda n: n.startswith(("unet.mid", "unet.down_blocks.1", "unet.up_blocks.0")),
        ),
        ({"unet": 1, "up": 0}, lambda n: n.startswith("unet.") and "up_blocks" not in n),
        ({"time": 1}, lambda n: n.startswith("unet.time_embedding")),
        ({"in": 1, "out": 1}, lambda n: n in ("unet.conv_in", "unet.conv_out")),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "names",
)
def test_weights_by_block(pipe: Pipeline, everywhere: Path, blocks: Any, wanted: Any) -> None:
    everything = changed_layers(pipe.with_lora(everywhere))
    assert changed_layers(pipe.with_lora(everywhere, 0, blocks=blocks)) == set(
        filter(wanted, everything)
    )


def test_the_resolution_stages_of_sd_1() -> None:
    assert unet_blocks("up_blocks.3.attentions.0.proj_in", 4)[-1] == "stage.0"
    assert unet_blocks("mid_block.resnets.0.conv1", 4)[-1] == "stage.3"


def test_a_twin_moves_to_half_precision(folder: Path, everywhere: Path) -> None:
    twin = Pipeline.from_pretrained(folder, device="cpu").with_lora(everywhere, 0.1)
    wanted = twin.encode_prompts("a road").cond
    twin.to("cpu", "bfloat16")
    found = twin.encode_prompts("a road").cond
    assert found.dtype == torch.bfloat16
    assert distance(found.float(), wanted) < 0.05


def test_what_a_file_changes(everywhere: Path, pipe: Pipeline) -> None:
    file = load_lora(everywhere)
    for change in describe_layers(file):
        parts = file.layers[change.name]
        product = parts["up"].flatten(1) @ parts["down"].flatten(1)
        assert change.norm == pytest.approx(product.norm().item() / 2, rel=1e-5)  # alpha / rank
        assert (change.kind, change.rank) == ("LoRA", 2)


def test_every_name_of_a_layer_leads_to_it(pipe: Pipeline) -> None:
    places = places_by_name(pipe.unet, pipe.text_encoder)
    for name in (
        "mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0",
        "mid_block_attentions_0_transformer_blocks_0_attn1_to_out",
        "middle_block_1_transformer_blocks_0_attn1_to_out_0",  # in a single file
    ):
        assert places[name].path.endswith("attn1.to_out.0")
    for name in ("text_model_encoder_layers_0_self_attn_q_proj", "encoder_layers_0_self_attn_to_q"):
        assert places[name].path.endswith("encoder.layers.0.self_attn.q_proj")


# --- what is refused -------------------------------------------------------------------------

Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"


def base(width: int) -> dict[str, Tensor]:
    return kohya({Q: (16, width)})


REFUSED: dict[str, tuple[dict[str, Tensor], str]] = {
    "SD 1": (base(768), "trained for Stable Diffusion 1"),
    "SD 2": (base(1024), "trained for Stable Diffusion 2"),
    "SDXL by width": (base(2048), "trained for Stable Diffusion XL"),
    "SDXL by names": (kohya({"lora_te1_text_model_encoder_layers_0_mlp_fc1": (4, 4)}), "XL"),
    "Flux": (kohya({"lora_unet_double_blocks_0_img_attn_proj": (4, 4)}), "Flux"),
    "another layer": (kohya({"lora_unet_elsewhere": (4, 4)}), "does not have"),
    "no LoRA": ({"a.weight": torch.ones(2)}, "holds no LoRA"),
    "alphas alone": ({f"{Q}.alpha": torch.ones(())}, "holds no LoRA"),
    "half of one": ({f"{Q}.lora_down.weight": torch.ones(2, 12)}, "does not fit"),
    "wrong ranks": (
        {f"{Q}.lora_down.weight": torch.ones(2, 12), f"{Q}.lora_up.weight": torch.ones(16, 3)},
        "does not fit",
    ),
    "numbers of no dimension": (
        {f"{Q}.lora_down.weight": torch.ones(()), f"{Q}.lora_up.weight": torch.ones(())},
        "does not fit",
    ),
    "NaN": (base(12) | {f"{Q}.lora_up.weight": torch.full((16, 2), torch.nan)}, "NaN"),
    "integers": (base(12) | {f"{Q}.lora_up.weight": torch.ones(16, 2, dtype=torch.int8)}, "I8"),
    "an endless alpha": (base(12) | {f"{Q}.alpha": torch.tensor(torch.inf)}, "alpha"),
    "a long alpha": (base(12) | {f"{Q}.alpha": torch.ones(3)}, "alpha"),
    "magnitudes": (base(12) | {f"{Q}.dora_scale": torch.ones(3)}, "magnitudes"),
    "a bias": (base(12) | {f"{Q}.diff_b": torch.ones(3)}, "bias"),
    "something else too": (base(12) | {f"{Q}.oft_blocks": torch.ones(3)}, "oft_blocks"),
    "one layer under two names": (
        base(12) | kohya({"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (16, 12)}),
        "twice",
    ),
    "one layer twice": (
        base(12) | kohya({"lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k": (16, 12)}),
        "twice",
    ),
    "a Kronecker product of another size": (
        {f"{Q}.lokr_w1": torch.ones(3, 3), f"{Q}.lokr_w2": torch.ones(4, 4)}, "does not fit",
    ),
    "Hadamard factors of unlike sizes": (
        {f"{Q}.hada_w1_a": torch.ones(16, 2), f"{Q}.hada_w1_b": torch.ones(2, 12),
         f"{Q}.hada_w2_a": torch.ones(16, 2), f"{Q}.hada_w2_b": torch.ones(3, 12)}, "does not fit",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_lora_for_this_model(pipe: Pipeline, tmp_path: Path, kind: str) -> None:
    tensors, words = REFUSED[kind]
    file = write_lora(tmp_path / "a.safetensors", tensors)
    with pytest.raises((ModelError, WeightsError), match=words) as caught:
        pipe.with_lora(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    "config", ["{", "[" * 9999, '{"unet.lora_alpha": "x"}', '{"unet.r": NaN}', "7"], ids=str
)
def test_configs_that_are_none(pipe: Pipeline, tmp_path: Path, config: str) -> None:
    tensors = {"unet.conv_in.lora_A.weight": normal(2, 4, 3, 3),
               "unet.conv_in.lora_B.weight": normal(8, 2, 1, 1)}  # fmt: skip
    file = write_lora(tmp_path / "a.safetensors", tensors, lora_adapter_metadata=config)
    if config == "7":  # without a meaning, and so without one here
        assert pipe.with_lora(file).unet is not pipe.unet
    else:
        with pytest.raises(WeightsError, match=r"a\.safetensors"):
            pipe.with_lora(file)


def test_settings_that_cannot_be(pipe: Pipeline, everywhere: Path, tmp_path: Path) -> None:
    for weight, blocks, words in (
        (101, {}, "weight"), (float("nan"), {}, "weight"), (1, {"sideways": 1}, "block"),
        (1, {"up": 1e9}, "up"),
    ):  # fmt: skip
        with pytest.raises(SettingError, match=words):
            pipe.with_lora(everywhere, weight, blocks=blocks)
    with pytest.raises(ModelError, match="does not exist"):
        pipe.with_lora(tmp_path / "none.safetensors")
    with pytest.raises(ModelError, match="without a LoRA"):
        pipe.with_lora(tmp_path)


SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
KEYS = st.sampled_from(
    ["lora_down.weight", "lora_up.weight", "lora_mid.weight", "hada_w1_a", "hada_w1_b",
     "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1", "lokr_w1_a", "lokr_w1_b",
     "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "diff", "diff_b", "alpha", "dora_scale",
     "lora_magnitude_vector"]
)  # fmt: skip


@given(st.dictionaries(KEYS, SHAPES, min_size=1, max_size=7))
def test_tensors_of_any_shape_are_refused_or_used(
    pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, tuple[int, ...]]
) -> None:
    tensors = {f"lora_unet_conv_in.{key}": torch.ones(shape) for key, shape in shapes.items()}
    file = write_lora(tmp_path_factory.mktemp("any") / "a.safetensors", tensors)
    try:
        twin = pipe.with_lora(file)
        list(describe_layers(load_lora(file)))
    except PareError:
        return
    assert twin.unet.conv_in(normal(1, 4, 6, 6)).isfinite().all()


def test_a_json_config_beside_an_adapter_counts(pipe: Pipeline, tmp_path: Path) -> None:
    tensors = {"base_model.model.conv_in.lora_A.weight": normal(2, 4, 3, 3),
               "base_model.model.conv_in.lora_B.weight": normal(8, 2, 1, 1)}  # fmt: skip
    write_lora(tmp_path / "adapter_model.safetensors", tensors)
    x = normal(1, 4, 6, 6)
    moved = {}
    for alpha in (2, 6):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": alpha}))
        moved[alpha] = pipe.with_lora(tmp_path).unet.conv_in(x) - pipe.unet.conv_in(x)
    assert distance(moved[6], 3 * moved[2]) < BOUND
    assert load_file(tmp_path / "adapter_model.safetensors").keys() == tensors.keys()


# --- the command ------------------------------------------------------------------------------


@pytest.mark.slow
def test_generate_convert_inspect_and_rerun(run_pare: Any, folder: Path, everywhere: Path) -> None:
    """The recipe keeps weight and SHA-256; baked in, the image is the same, rounding aside."""
    from PIL import Image

    from pare.io.images import to_tensor
    from pare.recipes.recipe import read_recipe

    cwd = everywhere.parent
    lora = f"{everywhere.name}=0.3,text=0.1"
    same = ("a road", "--steps", "2", "--size", "64", "--device", "cpu", "--force", "--model")
    done = run_pare("generate", *same, folder, "--lora", lora, "--out", "a.png", cwd=cwd)
    assert done.returncode == 0, done.stderr
    recipe = read_recipe(cwd / "a.png")
    assert recipe.arguments["lora"] == [lora]
    assert recipe.inputs["lora"]["name"] == everywhere.name
    again = run_pare("rerun", "a.png", "--check", "--inputs", folder.parent, cwd=cwd)
    assert again.returncode == 0, again.stderr
    assert "same to the pixel" in again.stdout

    assert run_pare("convert", folder, "baked", "--lora", lora, cwd=cwd).returncode == 0
    done = run_pare("generate", *same, "baked", "--out", "b.png", cwd=cwd)
    assert done.returncode == 0, done.stderr
    one, other = (to_tensor(Image.open(cwd / name)) for name in ("a.png", "b.png"))
    assert (one - other).abs().max() <= 2 / 127.5

    shown = json.loads(run_pare("inspect", everywhere.name, "--json", cwd=cwd).stdout)
    assert shown["lora"]["ranks"] == [2]
    page = run_pare("inspect", everywhere.name, cwd=cwd).stdout
    assert "|delta|" in page

    save_file({"a": torch.ones(2)}, cwd / "other.safetensors")
    for bad, words in (("other.safetensors", "holds no LoRA"), ("none.safetensors", "No such file"),
                       (f"{everywhere.name}=1,nowhere=1", "block")):  # fmt: skip
        done = run_pare("generate", *same, folder, "--lora", bad, "--out", "c.png", cwd=cwd)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert words.lower() in done.stderr.lower() or "does not exist" in done.stderr
