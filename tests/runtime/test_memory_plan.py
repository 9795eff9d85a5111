"""Runs that need much memory: planned to fit, or refused in a sentence."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pare.cli.terminal import run_in_words
from pare.config import VAEConfig
from pare.errors import NotEnoughMemoryError, SettingError, is_out_of_memory
from pare.pipeline import Pipeline
from pare.runtime import memory_plan
from pare.runtime.memory_plan import MemoryWarning, Plan, fitting_count, fitting_tile
from tests.conftest import ROOT, RunPare
from tests.random_models import normal
from tests.tiny_model import write_tiny_model

GIB = 2**30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Pipeline:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the safety checker
        return Pipeline.from_pretrained(folder, device="cpu", dtype="float32")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Says how much memory is free from now on."""

    def say(count: int | None) -> None:
        monkeypatch.setattr("pare.runtime.memory_plan.free_bytes", lambda device: count)
        monkeypatch.setattr("pare.pipeline.free_bytes", lambda device: count)

    return say


# --- the plan -----------------------------------------------------------------------------


def test_what_fits() -> None:
    assert fitting_count(100, None, 7) == 7
    assert fitting_count(100, 1000, 8) == 8
    assert fitting_count(100, 1000, 9) == 8
    assert fitting_count(100, 1, 9) == 1
    assert fitting_tile(800, 1000, 512, 512, 8) is None
    assert fitting_tile(801, 1000, 512, 512, 8) == 256  # a power of two in latents
    assert fitting_tile(10**9, 1000, 4096, 4096, 8) == 64  # the smallest there is
    assert Plan(5, 2, None).batches == [slice(0, 2), slice(2, 4), slice(4, 5)]


def test_with_room_a_run_is_one_batch_and_whole(pipe: Pipeline) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pipe.plan(3, 64, 64) == Plan(3, 3, None)
        assert pipe.plan(3, 64, 64, batch=2, tile=64) == Plan(3, 2, 64)
        assert pipe.plan(3, 64, 64, batch=200) == Plan(3, 3, None)
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(SettingError, match="`batch` is"):
            pipe.plan(3, 64, 64, batch=wrong)  # type: ignore[arg-type]


def test_without_room_a_run_is_planned_to_fit(
    pipe: Pipeline, free: Callable[[int | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("UNET_COPIES", "DECODER_COPIES"):  # as if the model were of SD's width
        monkeypatch.setattr(memory_plan, name, 100 * getattr(memory_plan, name))
    one = 2 * memory_plan.unet_bytes(pipe.unet.config, 64, 64, torch.float32)
    free(3 * one)
    with pytest.warns(MemoryWarning) as caught:
        plan = pipe.plan(9, 512, 512)
    assert (plan.batch, plan.tile) == (2, 256)
    said = [str(warning.message) for warning in caught]
    assert said[0] == "2 of 9 images are made at a time, as more would not fit memory"
    assert "512 x 512 is decoded in tiles of 256 pixels, as the whole needs about" in said[1]
    assert pipe.plan(9, 512, 512, guidance=1.0, tile=64).batch == 4  # half of the rows
    free(one - 1)
    with pytest.raises(NotEnoughMemoryError, match=r"512 x 512 needs about .*; make it smaller"):
        pipe.plan(1, 512, 512)
    free(one)
    with pytest.raises(NotEnoughMemoryError, match=r"holding 256 images .* fewer at once"):
        pipe.plan(256, 512, 512)


def test_batches_change_images_by_rounding_alone(pipe: Pipeline) -> None:
    """Also where the scheduler draws noise at every step."""
    solver = pipe.with_scheduler("euler-ancestral")
    prompts, seeds = ["a car", "the road", "a car"], [3, 7, 9]
    together = solver.generate(prompts, seeds, steps=3).tensor
    for batch in (1, 2):
        apart = solver.generate(prompts, seeds, steps=3, batch=batch).tensor
        assert torch.allclose(together, apart, atol=1e-3)
    alone = solver.generate(prompts[2], seeds[2:], steps=3).tensor
    assert torch.equal(solver.generate(prompts, seeds, steps=3, batch=2).tensor[2:], alone)
    image = normal(1, 3, 16, 24).tanh()
    together = pipe.img2img(image, prompts, seeds, steps=3).tensor
    apart = pipe.img2img(image, prompts, seeds, steps=3, batch=2).tensor
    assert torch.allclose(together, apart, atol=1e-3)


def test_little_memory_decodes_alone_and_in_tiles(
    pipe: Pipeline, free: Callable[[int | None], None]
) -> None:
    x0 = normal(2, 4, 24, 16)
    whole, sliced = pipe.decode(x0), pipe.decode(x0, sliced=True)
    need = memory_plan.decoder_bytes(pipe.vae.config, 192, 128, torch.float32)
    free(int(need / 0.8) + 2)
    assert torch.equal(pipe.decode(x0), sliced)
    assert torch.allclose(sliced, whole, atol=1e-4)
    free(int(need / 0.8) - 2)
    with pytest.warns(MemoryWarning, match="192 is decoded in tiles of 128 pixels"):
        tiled = pipe.decode(x0)
    free(None)
    assert torch.equal(tiled, pipe.decode(x0, sliced=True, tile=128))
    image = normal(1, 3, 192, 128).tanh()
    explicit = pipe.encode(image, tile=64)
    free(int(memory_plan.encoder_bytes(pipe.vae.config, 192, 128, torch.float32) / 4))
    with pytest.warns(MemoryWarning, match="192 is encoded in tiles of 64 pixels"):
        assert torch.equal(pipe.encode(image), explicit)


@pytest.mark.parametrize("tile", [0, 32, 60, 68, True, 64.0])
def test_tiles_count_pixels_at_both_ends(pipe: Pipeline, tile: int) -> None:
    for work in (
        lambda: pipe.decode(normal(1, 4, 24, 16), tile=tile),
        lambda: pipe.encode(normal(1, 3, 192, 128), tile=tile),
    ):
        with pytest.raises(SettingError, match=r"`tile` is .*; expected a multiple of 8, at"):
            work()


def test_sizes_go_by_the_models_own_factor(folder: Path, pipe: Pipeline) -> None:
    import copy

    from pare.config import UNetConfig
    from pare.vae import AutoencoderKL

    other = copy.copy(pipe)
    widths = [8, 8, 16]
    config = VAEConfig.read(
        {
            "block_out_channels": widths,
            "down_block_types": ["DownEncoderBlock2D"] * 3,
            "up_block_types": ["UpDecoderBlock2D"] * 3,
            "norm_num_groups": 4,
        },
        "the test's config",
    )
    other.vae = AutoencoderKL(config)
    assert isinstance(other.unet.config, UNetConfig)
    assert other.latent_shape(20, 36) == (4, 5, 9)
    assert other.trained_size == (32, 32)
    with pytest.raises(SettingError, match="the height is 18; expected a multiple of 4 from 4"):
        other.latent_shape(18, 36)


# --- how much there is --------------------------------------------------------------------


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    assert memory_plan.group_bytes(tmp_path) is None
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("5000\n")
    assert memory_plan.group_bytes(tmp_path) is None
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("8000\n")
    assert memory_plan.group_bytes(tmp_path) == 3000
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700\n")
    assert memory_plan.group_bytes(tmp_path) == 3000
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 50\n")
    assert memory_plan.group_bytes(tmp_path) == 350


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_free_memory_is_a_plausible_number(monkeypatch: pytest.MonkeyPatch) -> None:
    free = memory_plan.free_bytes(torch.device("cpu"))
    assert free is not None
    assert 2**20 < free < 2**50
    assert memory_plan.free_bytes(torch.device("meta")) is None
    used = memory_plan.colon_table(Path("/proc/self/status"))["VmSize"]
    monkeypatch.setattr(resource, "getrlimit", lambda which: (used + 2**20, -1))
    left = memory_plan.free_bytes(torch.device("cpu"))
    assert left is not None
    assert left <= 2**20


# --- out of memory nonetheless ------------------------------------------------------------


def test_an_allocator_that_fails_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> int:
        torch.empty(2**45)
        return 0

    assert run_in_words(body) == 2
    line = capsys.readouterr().err
    assert line.startswith("pare: there is not enough memory (140737488355328 bytes more were")
    assert "make a smaller image (--size), fewer at once (--batch, --count)" in line
    assert line.count("\n") == 1


def test_only_allocators_are_out_of_memory() -> None:
    gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has …")
    assert is_out_of_memory(gpu)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"))
    for error in (
        RuntimeError("out of memory"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        NotImplementedError("DefaultCPUAllocator: can't allocate memory"),
        ValueError("DefaultCPUAllocator: can't allocate memory"),
    ):
        assert not is_out_of_memory(error)


def test_an_injected_runtime_error_keeps_its_traceback() -> None:
    def body() -> int:
        raise RuntimeError("memory is what this is not about")

    with pytest.raises(RuntimeError, match="not about"):
        run_in_words(body)


@pytest.mark.skipif(sys.platform != "linux", reason="`ulimit -v` means something on Linux")
def test_a_run_beyond_the_processs_limit_is_one_sentence(run_pare: RunPare, tmp_path: Path) -> None:
    """The real thing: refused beforehand."""
    limit = 6 * GIB
    done = run_pare(
        "generate", "a car", "--size", "8192x8192", "--steps", "1",
        "--out", "big.png", "--device", "cpu",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 2
    assert "an image of 8192 x 8192 needs about 20.0 GiB of memory, and" in done.stderr
    assert "the model was trained at 128 x 128" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


# --- what is in the recipe ----------------------------------------------------------------


def test_the_recipe_knows_the_batch(run_pare: RunPare, folder: Path, tmp_path: Path) -> None:
    from pare.recipes.recipe import read_recipe

    given = ["generate", "a car", "--model", folder, "--steps", "1", "--device", "cpu"]
    done = run_pare(*given, "--count", "3", "--batch", "2", "--tile", "64", "--out", "a.png")
    assert done.returncode == 0, done.stderr
    recipe = read_recipe(tmp_path / "a-2.png")
    assert (recipe.arguments["batch"], recipe.arguments["tile"]) == (2, 64)
    assert "find_nan" not in recipe.arguments


# --- the estimates ------------------------------------------------------------------------


# In a process of its own: one that has run other tests has memory to use again.
MEASURED = """
import json
from pathlib import Path
import torch
from pare.runtime import memory_plan
from pare.pipeline import Pipeline

def peak(run):
    # Bytes of resident memory that `run` needs more than before it.
    status = Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on
    before = memory_plan.colon_table(status)["VmRSS"]
    run()
    return memory_plan.colon_table(status)["VmHWM"] - before

pipe = Pipeline.from_pretrained("roads", device="cpu", dtype="float32")
unet, vae = pipe.unet, pipe.vae
text = torch.zeros(2, 77, unet.config.cross_attention_dim)
x_t, latents = torch.zeros(2, 4, 64, 64), torch.zeros(1, 4, 64, 64)
with torch.no_grad():
    # What the first call of all needs (kernels, their work space) is no part of a run's size.
    unet(x_t[..., :16, :16], 500, text), vae.decode(latents[..., :8, :8])
    measured = peak(lambda: unet(x_t, 500, text)), peak(lambda: vae.decode(latents))
estimated = (
    2 * memory_plan.unet_bytes(unet.config, 64, 64, torch.float32),
    memory_plan.decoder_bytes(vae.config, 512, 512, torch.float32),
)
print(json.dumps([measured, estimated]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measures with /proc")
def test_estimates_are_no_less_than_what_is_measured_and_not_twice_it() -> None:
    """The built-in model: what `docs/numbers.md` says of the factors."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for measured, estimate in zip(*json.loads(done.stdout), strict=True):
        assert 0.8 * measured < estimate < 2 * measured
