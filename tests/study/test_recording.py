"""A recording holds what the run did, announces its size, and leaves no trace in the model."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

from pare.attention import AttentionCall, Control, Site
from pare.errors import NotEnoughMemoryError, OutputError, SettingError
from pare.guidance import guide
from pare.pipeline import Pipeline
from pare.schedulers import add_noise
from pare.study.record import recording as recording_module
from pare.study.record.recording import Recording, check_memory
from pare.study.record.reductions import REDUCTIONS
from pare.study.record.trace_file import write_trace
from tests.tiny_model import write_tiny_model

PROMPT = "a snowy road"
EVERYTHING = tuple(REDUCTIONS)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = write_tiny_model(tmp_path_factory.mktemp("model"))
    return Pipeline.from_pretrained(folder, device="cpu", scheduler="ddim")


def run(pipe: Pipeline, seed: int = 7, **given: object) -> Tensor:
    settings = {"steps": 3, "width": 72, "height": 40} | given
    return pipe.generate(PROMPT, seed, **settings).tensor  # type: ignore[arg-type]


def hooks_in(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


@pytest.mark.parametrize("guidance", [7.5, 1.0])
@pytest.mark.parametrize("scheduler", ["ddim", "pndm"])
def test_what_is_announced_is_what_is_recorded(
    pipe: Pipeline, scheduler: str, guidance: float
) -> None:
    pipe = pipe.with_scheduler(scheduler)
    recording = Recording(pipe, "*", keep=EVERYTHING, attention="*", every=2)
    planned = recording.plan(3, (72, 40), guidance=guidance)
    with recording as watched:
        run(watched, guidance=guidance)
    assert {one.name for one in planned} == set(recording.tensors)
    parts = {name.partition(".")[0] for name in recording.layers}
    assert parts == {"unet", "vae", "text_encoder"}
    for one in planned:
        tensor = recording[one.name]
        assert (one.shape, one.dtype) == (tuple(tensor.shape), tensor.dtype), one.name
        assert one.axes == recording.axes[one.name], one.name
        assert len(one.axes) == tensor.ndim
        assert one.bytes == tensor.numel() * tensor.dtype.itemsize
    assert recording.recorded_steps == [0, 2]


def test_watching_everything_changes_no_bit_and_the_model_never_has_a_hook(
    pipe: Pipeline,
) -> None:
    before = run(pipe)
    recording = Recording(pipe, "*", keep=EVERYTHING, attention="*")
    with recording as watched:
        assert hooks_in(watched.unet) > 100
        assert hooks_in(pipe.unet) == hooks_in(pipe.vae) == 0
        assert {p.data_ptr() for p in watched.unet.parameters()} == {
            p.data_ptr() for p in pipe.unet.parameters()
        }
        seen = run(watched)
    assert torch.equal(seen, before)
    assert torch.equal(run(pipe), before)
    assert hooks_in(watched.unet) == hooks_in(watched.vae) == 0
    # Whoever kept the twin runs it unrecorded.
    count = len(recording["x_t"])
    assert torch.equal(run(watched), before)
    assert len(recording["x_t"]) == count


def test_an_error_in_the_run_leaves_no_hook_and_no_half_recording(pipe: Pipeline) -> None:
    recording = Recording(pipe, "unet.mid_block")

    def stop(steps: object) -> object:
        yield 0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), recording as watched:
        run(watched, progress=stop)
    assert hooks_in(watched.unet) == 0
    assert recording.tensors == {}
    with pytest.raises(SettingError, match="the run has not ended"):
        recording["x_t"]


def test_two_recordings_at_once_do_not_meet(pipe: Pipeline) -> None:
    alone = {}
    for seed in (1, 2):
        recording = Recording(pipe, "unet.*", attention="*")
        with recording as watched:
            run(watched, seed)
        alone[seed] = recording.tensors
    together: dict[int, Mapping[str, Tensor]] = {}
    ready = threading.Barrier(2)

    def work(seed: int) -> None:
        recording = Recording(pipe, "unet.*", attention="*")
        with recording as watched:
            ready.wait()
            run(watched, seed)
        together[seed] = recording.tensors

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (1, 2):
        assert together[seed].keys() == alone[seed].keys()
        assert all(torch.equal(together[seed][name], x) for name, x in alone[seed].items())
    assert not torch.equal(alone[1]["x0"], alone[2]["x0"])


def test_the_tensors_are_what_their_names_say(pipe: Pipeline) -> None:
    layers = ["unet.conv_in", "unet.conv_out", "unet.down_blocks.0.attentions.0.*"]
    recording = Recording(pipe, layers, keep=EVERYTHING)
    with recording as watched:
        image = run(watched)
    x_t, x0, eps = recording["x_t"], recording["x0"], recording["eps"]
    cond, uncond = recording["output.cond"], recording["output.uncond"]
    assert torch.equal(eps, guide(uncond, cond, 7.5))
    answers = recording["unet.conv_out:activations"]  # uncond and cond, as `rows` says
    assert [row.branch for row in recording.rows] == ["uncond", "cond"]
    assert torch.equal(answers, torch.stack([uncond[:, 0], cond[:, 0]], dim=1))
    for i, level in enumerate(recording.levels):
        again = add_noise(x0[i], eps[i], level.alpha_bar)
        torch.testing.assert_close(again, x_t[i], rtol=1e-4, atol=1e-4)
    assert torch.equal(pipe.decode(x_t[-1]), image)

    for name in recording.layers:
        x = recording[f"{name}:activations"].float()
        flat = x.flatten(2)
        expected = torch.stack(
            [flat.mean(2), flat.std(2, correction=0), flat.amin(2), flat.amax(2)], dim=2
        )
        torch.testing.assert_close(recording[f"{name}:statistics"], expected)
        channel = recording.axes[f"{name}:activations"].index("channel")
        strength = x.square().mean(channel).sqrt() if x.ndim > 3 else x
        found = recording[f"{name}:map"]
        torch.testing.assert_close(found.flatten(2), strength.flatten(2))
        if recording.axes[f"{name}:activations"][2] == "pixel":
            assert found.shape[-2:] == (5, 9)  # the grid of the latents, row by row


def test_attention_maps_are_its_probabilities(pipe: Pipeline) -> None:
    mean = Recording(pipe, attention="unet.*")
    with mean as watched:
        run(watched)
    apart = Recording(pipe, attention="unet.mid_block", each_head=True, branches="cond")
    with apart as watched:
        run(watched)
    assert {name.partition(".")[2].split(".")[0] for name in apart.sites} == {"mid_block"}
    for name in apart.sites:
        heads = apart[f"{name}:attention"]
        assert heads.shape[1:3] == (1, apart.sites[name].heads)
        torch.testing.assert_close(heads.mean(2), mean[f"{name}:attention"][:, 1:])
    for name in mean.sites:
        x = mean[f"{name}:attention"]
        torch.testing.assert_close(x.sum(-1), torch.ones(x.shape[:-1]))
    # The text's side of cross-attention, from the layer's own queries and keys.
    at = "unet.mid_block.attentions.0.transformer_blocks.0.attn2"
    keys = Recording(pipe, [f"{at}.to_q", f"{at}.to_k"], keep="activations", branches="cond")
    with keys as watched:
        run(watched)
    count = mean.sites[at].heads
    q, k = (
        keys[f"{at}.{n}:activations"][0, 0].unflatten(-1, (count, -1)) for n in ("to_q", "to_k")
    )
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    expected = scores.softmax(-1).mean(0)
    torch.testing.assert_close(mean[f"{at}:attention"][0, 1].flatten(0, 1), expected)
    assert keys.axes[f"{at}.to_k:activations"][2] == "token"


def test_branches_and_every_choose(pipe: Pipeline) -> None:
    whole = Recording(pipe, "unet.mid_block", keep="activations")
    with whole as watched:
        run(watched, steps=5)
    some = Recording(pipe, "unet.mid_block", keep="activations", branches="cond", every=2)
    with some as watched:
        run(watched, steps=5)
    assert some.recorded_steps == [0, 2, 4]
    assert [row.branch for row in some.rows] == ["cond"]
    name = "unet.mid_block:activations"
    assert torch.equal(some[name], whole[name][::2, 1:])
    assert len(some["x0"]) == 5


def test_images_to_images_are_recorded_too(pipe: Pipeline, tmp_path: Path) -> None:
    image = torch.linspace(-1, 1, 3 * 40 * 72).view(1, 3, 40, 72)
    expected = pipe.img2img(image, PROMPT, 3, steps=6, strength=0.5).tensor
    recording = Recording(pipe, "unet.mid_block", keep="statistics")
    with recording as watched:
        made = watched.img2img(image, PROMPT, 3, steps=6, strength=0.5)
        assert torch.equal(made.tensor, expected)
    assert len(recording["unet.mid_block:statistics"]) == 3
    assert torch.equal(pipe.decode(recording["x_t"][-1]), expected)


class Flat(Control):
    """Edits: every word gets the same attention.  Looks: counts its calls."""

    def __init__(self) -> None:
        self.seen = 0

    def observes(self, site: Site, step: int) -> bool:
        return site.kind == "self" and step == 0

    def observe(self, call: AttentionCall, row: int, heads: slice, weights: Tensor) -> None:
        self.seen += 1

    def edits(self, site: Site, step: int) -> bool:
        return site.kind == "cross"

    def edit(self, call: AttentionCall, weights: Callable[[int], Tensor]) -> Mapping[int, Tensor]:
        own = weights(1)
        return {1: torch.full_like(own, 1 / own.shape[-1])}


def test_a_run_keeps_its_own_control(pipe: Pipeline) -> None:
    alone, beside, looks = Flat(), Flat(), Flat()
    edited = run(pipe, control=alone)
    assert not torch.equal(edited, run(pipe))
    recording = Recording(pipe, attention="unet.*.attn2", observers=[looks])
    with recording as watched:
        assert torch.equal(run(watched, control=beside), edited)
    assert looks.seen == beside.seen == alone.seen > 0
    # What is recorded is the model's own, before the edit.
    name = next(iter(recording.sites))
    assert recording[f"{name}:attention"][0, 1].std() > 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"layers": "unet.mid_blok"}, "no layer 'unet.mid_blok'; did you mean unet.mid_block"),
        ({"layers": "mid_block"}, "did you mean unet.mid_block"),
        ({"layers": ""}, "there is no layer ''"),
        ({"layers": ["unet.mid_block", "unet.*.attn9"]}, "no layer matches 'unet.*.attn9'"),
        ({"layers": "vae.encoder.conv_in"}, "did you mean vae.decoder.conv_in"),
        ({"attention": "unet.conv_in"}, "of the UNet is called 'unet.conv_in'; did you"),
        ({"keep": "everything"}, "'everything' cannot be kept of a layer; expected any of stat"),
        ({"every": 0}, "`every` is 0"),
        ({"every": True}, "`every` is True"),
    ],
    ids=str,
)
def test_what_cannot_be_recorded_is_said(
    pipe: Pipeline, given: dict[str, object], words: str
) -> None:
    with pytest.raises(SettingError, match=words.replace("*", r"\*")):
        Recording(pipe, **given)  # type: ignore[arg-type]


def test_one_recording_serves_one_run(pipe: Pipeline) -> None:
    recording = Recording(pipe)
    with recording as watched:
        run(watched)
        with pytest.raises(SettingError, match="step 0 has been recorded already"):
            run(watched)
    with pytest.raises(SettingError, match="holds a run already"), recording:
        pass


def test_a_vae_in_tiles_is_looked_at_once_a_tile(pipe: Pipeline) -> None:
    recording = Recording(pipe, "vae.decoder.conv_out", keep="activations")
    with recording as watched:
        run(watched, width=104, height=104, tile=64)
    name = "vae.decoder.conv_out:activations"
    assert recording[name].shape == (4, 1, 3, 64, 64)
    assert recording.axes[name][0] == "call"


def test_a_recording_that_does_not_fit_is_refused(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = Recording(pipe, "unet.*").plan(3)
    need = sum(one.bytes for one in planned)
    assert check_memory(planned) == need
    monkeypatch.setattr("pare.runtime.memory_plan.free_bytes", lambda device: need)
    with pytest.raises(NotEnoughMemoryError, match=r"the recording needs about .* record fewer"):
        check_memory(planned)


# --- files --------------------------------------------------------------------------------


def test_numpy_opens_the_file_and_the_json_explains_it(pipe: Pipeline, tmp_path: Path) -> None:
    recording = Recording(pipe, "unet.mid_block", attention="unet.mid_block")
    with recording as watched:
        run(watched)
    path = tmp_path / "road.safetensors"
    write_trace(recording, path, {"prompt": PROMPT})
    tensors, notes = load_file(path), json.loads((tmp_path / "road.json").read_text())
    assert set(tensors) == set(notes["tensors"]) == set(recording.tensors)
    for name, x in recording.tensors.items():
        assert np.array_equal(tensors[name], x.numpy())
        assert notes["tensors"][name]["shape"] == list(x.shape)
    assert notes["prompt"] == PROMPT
    assert notes["rows"] == [{"prompt": 0, "branch": "uncond"}, {"prompt": 0, "branch": "cond"}]
    assert [level["t"] for level in notes["levels"]] == [level.t for level in recording.levels]
    assert "pare/unet/blocks.py:" in notes["layers"]["unet.mid_block"]["code"]
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["pare"]) == notes


def test_half_precision_is_kept_as_it_is(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    pipe = Pipeline.from_pretrained(folder, device="cpu", dtype="bfloat16", scheduler="ddim")
    recording = Recording(pipe, "unet.mid_block", attention="unet.mid_block")
    planned = {one.name: one.dtype for one in recording.plan(2, (72, 40))}
    with recording as watched:
        run(watched, steps=2)
    assert planned["unet.mid_block:activations"] == torch.bfloat16
    assert {name: x.dtype for name, x in recording.tensors.items()} == planned
    write_trace(recording, tmp_path / "a.safetensors", {})
    from safetensors.torch import load_file as load

    read = load(tmp_path / "a.safetensors")
    assert all(torch.equal(read[name], x) for name, x in recording.tensors.items())


def test_nothing_is_overwritten(pipe: Pipeline, tmp_path: Path) -> None:
    recording = Recording(pipe)
    with recording as watched:
        run(watched, steps=1)
    path = tmp_path / "a.safetensors"
    for name in ("a.json", "a.safetensors"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(OutputError, match="exists"):
            write_trace(recording, path, {})
        assert (tmp_path / name).read_text() == "mine"
        assert [p.name for p in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()


def test_every_layer_that_runs_has_a_name_that_the_twin_has(pipe: Pipeline) -> None:
    for part in recording_module.PARTS:
        table = recording_module.part_table(pipe, part)
        names = {layer.name for layer in table if layer.outputs}
        assert names <= set(recording_module.modules_of(pipe, part))
    assert list(itertools.islice(recording_module.modules_of(pipe, "unet"), 1)) == ["unet"]
