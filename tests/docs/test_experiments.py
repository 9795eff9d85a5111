"""Every row of docs/experiments.md runs, and shows what its document shows.

A row's code is run as it stands on the page, once, in order; its check looks at what came out:
files in the folder, and the names of the Python rows.  One row can be run alone, after those
that it needs: `pytest -m slow tests/docs/test_experiments.py -k blend`.
"""

from __future__ import annotations

import contextlib
import io
import shlex
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pare.cli.main
from docs import experiment_table as experiments
from docs.experiment_table import ROWS, Row
from pare.io.metrics import mse, psnr, structure_distance
from roads import photo
from roads.judge.comparison import Comparison, builtin_judge, compare
from roads.judge.judge import Verdict

Names = dict[str, Any]
Check = Callable[[Names], None]
CHECKS: dict[str, Check] = {}
CAPTION = "a sunny road in the mountains with a red car and a house and the sun"
SNOWY = "a snowy road in the mountains with a red car"


def check(id: str) -> Callable[[Check], Check]:
    def note(function: Check) -> Check:
        assert id not in CHECKS
        CHECKS[id] = function
        return function

    return note


# --- running ------------------------------------------------------------------------------


class Bench:
    """The folder and the names that all rows share; each row's code runs once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.names, self.done = folder, Names(), set[str]()
        for command in experiments.COMMANDS:
            self.command(command)
        exec(experiments.SETUP, self.names)

    def command(self, line: str) -> str:
        program, *arguments = shlex.split(line)
        if program == "python":
            assert arguments[:2] == ["-m", "roads.photo"]
            assert not photo.main(arguments[2:])
            return ""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            assert pare.cli.main.main(arguments) == 0, line
        return printed.getvalue()

    def run(self, row: Row) -> None:
        if row.id in self.done:
            return
        self.done.add(row.id)
        if row.is_command:
            self.names["printed"] = "".join(self.command(line) for line in row.lines)
        else:
            exec(compile(row.here.strip(), row.id, "exec"), self.names)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("experiments")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.chdir(folder)
        yield Bench(folder)


P2P_ROWS = ["erase-batch", "erase-scale", "invert-no-cfg", "blend-pin", "batch-sizes"]
NEEDS = {
    "blend-strength": ["blend-pin"],
    "blend-guidance": ["blend-pin"],
    "erase-formula": ["erase-batch"],
    "visual-steps": ["invert-no-cfg"],
    "invert-prompt": ["invert-steps"],
    "invert-edit": ["invert-no-cfg"],
    "save-order": ["cross-or-self"],
    "injection-ratio": ["inject"],
    "seed-lock": ["p2p"],
    "batch-sizes": P2P_ROWS[:-1],
    "latent-channels": ["latent-shape"],
    "lms-timesteps": ["loop-by-hand"],
    "lms-sigmas": ["loop-by-hand", "lms-timesteps"],
    "noised-image": ["loop-by-hand", "lms-timesteps", "latent-shape"],
    "add-noise-sigma": ["loop-by-hand", "lms-timesteps", "latent-shape", "noised-image"],
    "initial-noise": ["loop-by-hand"],
    "clip-names": ["clip-tokens"],
    "output-embeddings": ["clip-tokens"],
    "token-embeddings": ["clip-tokens", "output-embeddings"],
    "input-embeddings": [
        "clip-tokens", "output-embeddings", "token-embeddings", "position-embeddings",
    ],
    "through-layers": [
        "clip-tokens", "output-embeddings", "token-embeddings", "position-embeddings",
        "input-embeddings",
    ],
    "replace-id": ["replace-token"],
    "mix-tokens": ["replace-token"],
    "textual-inversion": ["clip-tokens", "output-embeddings", "token-embeddings", "replace-token"],
    "learned-style": [
        "clip-tokens", "output-embeddings", "token-embeddings", "replace-token",
        "textual-inversion",
    ],
    "learned-in-place": [
        "clip-tokens", "output-embeddings", "token-embeddings", "replace-token",
        "textual-inversion", "learned-style",
    ],
    "mix-prompts": ["replace-token"],
    "sampler-step": ["loop-by-hand"],
    "loss-scale": ["blue-loss"],
    "loss-every": ["blue-loss"],
    "loss-unet": ["blue-loss", "loss-every"],
    "classifier-guidance": ["blue-loss"],
    "style-loss": ["blue-loss", "img2img", "img2img-start"],
    "early-composition": P2P_ROWS,
    "injection-figure": [
        *P2P_ROWS, "early-composition",
    ],
    "algorithm-1": [
        *P2P_ROWS, "early-composition", "injection-figure",
    ],
    "mapper-identity": ["clip-tokens"],
    "mapper-one-to-n": ["clip-tokens", "mapper-identity"],
    "mapper-n-to-one": ["clip-tokens", "mapper-identity"],
    "mapper-n-to-m": ["clip-tokens", "mapper-identity"],
    "sd2-tokens": ["clip-tokens"],
    "embedding-shape": ["encode-twice", "latent-shape", "latent-channels"],
    "play-embeddings": ["encode-twice"],
    "denoise-film": ["film"],
    "denoise-decoded": ["film"],
    "ddim-step": ["ddim-timesteps", "unet-shape"],
    "no-scheduler": ["one-step"],
    "ratio": ["one-step", "no-scheduler"],
    "vae-decode": ["latent-shape"],
    "rescale": ["two-branches"],
    "softmax": ["attention-formula"],
    "early-maps": ["cross-or-self"],
    "fixed-seed": ["p2p"],
    "reweight": [
        *P2P_ROWS, "early-composition",
    ],
    "inversion-cfg": ["invert-no-cfg"],
    "null-text": ["invert-no-cfg", "inversion-cfg"],
}  # fmt: skip
NOT_ON_ROADS = {"early-composition"}  # and the page says so
BY_ID = {row.id: row for row in ROWS}


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_the_row_shows_what_its_document_shows(row: Row, bench: Bench) -> None:
    for needed in NEEDS.get(row.id, []):
        bench.run(BY_ID[needed])
    bench.run(row)
    if row.id in NOT_ON_ROADS:
        with pytest.raises(AssertionError):
            CHECKS[row.id](bench.names)
        return
    CHECKS[row.id](bench.names)


def test_the_page_is_made_of_the_rows() -> None:
    assert experiments.PAGE.read_text(encoding="utf-8") == experiments.page()
    assert list(CHECKS) == [row.id for row in ROWS]
    assert len(BY_ID) == len(ROWS)
    assert {row.document for row in ROWS} == set(experiments.TITLES)


# --- what the checks are made of ----------------------------------------------------------


def pixels(image: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    if isinstance(image, str):
        image = Image.open(image).convert("RGB")
    if isinstance(image, torch.Tensor):
        from pare.io.images import to_pil

        image = to_pil(image)[0]
    return np.asarray(image)


def seen(image: Any) -> Verdict:
    return builtin_judge()([Image.fromarray(pixels(image))])[0]


def compared(before: Any, after: Any, prompt: str = "") -> Comparison:
    one, other = (Image.fromarray(pixels(image)) for image in (before, after))
    return compare(one, other, prompt=prompt)


def error(one: Any, other: Any) -> float:
    a, b = pixels(one), pixels(other)
    return float(mse(a, b, np.ones(a.shape[:2], bool)))


def decibels(one: Any, other: Any) -> float:
    return float(psnr(error(one, other)))


def structure(one: Any, other: Any) -> float:
    return float(structure_distance(pixels(one), pixels(other)))


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).square().mean().sqrt())


def rising(values: Any) -> bool:
    listed = list(values)
    return all(a < b for a, b in zip(listed, listed[1:], strict=False))


def falling(values: Any) -> bool:
    return rising([-value for value in values])


def close(one: torch.Tensor, other: torch.Tensor, bound: float = 1e-5) -> bool:
    return float((one - other).abs().max()) <= bound


# --- HF Diffusers Deconstruct ---------------------------------------------------------------


@check("load-parts")
def _(n: Names) -> None:
    for name in ("unet", "vae", "text_encoder"):
        ours, whole = n[name].state_dict(), getattr(n["pipe"], name).state_dict()
        assert ours.keys() == whole.keys()
        assert all(torch.equal(ours[key], whole[key]) for key in ours)
    assert n["tokenizer"](n["sunny"]).input_ids == n["pipe"].tokenizer(n["sunny"]).input_ids
    assert n["scheduler"].describe() == n["pipe"].scheduler.describe()


@check("karras")
def _(n: Names) -> None:
    roots = torch.tensor([level.sigma ** (1 / 7) for level in n["karras"].levels[:-1]])
    assert torch.allclose(roots.diff(), roots.diff().mean().expand(24), atol=1e-5)
    assert roots[0] ** 7 == pytest.approx(14.6146, abs=1e-3)
    assert roots[-1] ** 7 == pytest.approx(0.0292, abs=1e-3)


@check("few-steps")
def _(n: Names) -> None:
    assert falling(distance(n["fast"][k], n["fast"][50]) for k in (6, 12, 25))
    assert distance(n["fast"][12], n["fast"][50]) < 0.5 * distance(n["slow"][12], n["slow"][50])


@check("latent-scaling")
def _(n: Names) -> None:
    mode = n["pipe"].posterior("photo.png").mode()
    assert close(n["latents"], mode * n["pipe"].vae.config.scaling_factor)
    assert decibels(n["decoded"], "photo.png") >= 20


@check("mask-grid")
def _(n: Names) -> None:
    assert n["grid_mask"].shape == (1, 1, 16, 16)
    assert sorted(n["grid_mask"].unique().tolist()) == [0, 1]


@check("two-branches")
def _(n: Names) -> None:
    uncond, cond = n["branches"].values()
    assert close(n["guided"], uncond + 7.5 * (cond - uncond), 1e-4)


@check("strength-slice")
def _(n: Names) -> None:
    assert n["starts"] == [int(25 * (1 - s) + 1e-9) for s in (0.2, 0.6, 1.0)] == [20, 10, 0]
    scheduler = n["pipe"].scheduler
    assert scheduler.timesteps(25, 10).levels == scheduler.timesteps(25).levels[10:]


@check("blend")
def _(n: Names) -> None:
    found = compared("photo.png", "clouds.png", CAPTION + " and clouds")
    assert found.succeeded
    assert found.added == ("clouds",)
    assert not found.lost
    outside = np.asarray(Image.open("sky.png").convert("L")) < 128
    assert (pixels("clouds.png") == pixels("photo.png"))[outside].all()


@check("blend-pin")
def _(n: Names) -> None:
    from techniques.blended.edit_canvas import as_tensor, mask_on_grid, prepare_mask

    mask = mask_on_grid(as_tensor(prepare_mask("sky.png", (128, 128))), 8, cover=False)
    kept = (mask == 0).expand(1, 4, 16, 16)
    assert torch.equal(n["blended"].latents[kept], n["pipe"].encode("photo.png")[kept])
    outside = np.asarray(Image.open("sky.png").convert("L")) < 128
    assert (pixels(n["blended"][0]) != pixels("photo.png"))[outside].any()


@check("blend-strength")
def _(n: Names) -> None:
    photo_latents = n["pipe"].encode("photo.png")
    assert rising(distance(n[name].latents, photo_latents) for name in ("weak", "strong"))


@check("blend-guidance")
def _(n: Names) -> None:
    mask = np.asarray(Image.open("sky.png").convert("L")) >= 128
    spread = [pixels(n["clouds"][g][0])[mask].std() for g in (1.0, 7.5, 15.0)]
    assert rising(spread), spread


@check("erase-batch")
def _(n: Names) -> None:
    assert list(n["texts"])[:2] == ["uncond", "cond"]
    assert len(n["texts"]) == 4
    assert torch.equal(n["texts"]["cond"], n["prompts"].cond)
    third = list(n["texts"].values())[2]
    assert torch.equal(third, n["pipe"].encode_prompts("streetlights").cond)


@check("erase-formula")
def _(n: Names) -> None:
    assert close(n["erased"], n["by_hand"], 1e-4)


@check("erase")
def _(n: Names) -> None:
    before, after = seen("night.png"), seen("dark.png")
    assert before.streetlights
    assert not after.streetlights
    assert before.weather == after.weather == "night"


@check("erase-image")
def _(n: Names) -> None:
    kept, gone = seen("kept.png"), seen("gone.png")
    assert seen("lamps.png").streetlights
    assert kept.streetlights
    assert not gone.streetlights
    assert kept.has("car")
    assert gone.has("car")


@check("erase-scale")
def _(n: Names) -> None:
    far = [distance(one.latents, n["plain"]) for one in n["erasures"]]
    assert rising(far)
    assert far[0] < 0.01


@check("inverse-scheduler")
def _(n: Names) -> None:
    sampler, inverter = n["sampler"], n["inverter"]
    assert torch.equal(sampler.schedule.alpha_bar, inverter.schedule.alpha_bar)
    down = [level.sigma for level in sampler.timesteps(20).levels]
    up = [level.sigma for level in inverter.timesteps(20).levels]
    assert falling(down)
    assert up == pytest.approx(down[::-1])


@check("mode")
def _(n: Names) -> None:
    one, other = n["mode"]
    assert torch.equal(one, other)
    assert not torch.equal(n["samples"][0], n["samples"][1])
    assert not torch.equal(n["samples"][0], one)


@check("invert")
def _(n: Names) -> None:
    assert decibels("photo.png", "again.png") >= 22
    assert compared("photo.png", "again.png", CAPTION).succeeded


@check("invert-no-cfg")
def _(n: Names) -> None:
    assert n["counted"]().evaluations == 10  # rows of batches
    assert torch.equal(n["inverted"].trace.x_T, n["once_more"].trace.x_T)


@check("visual-steps")
def _(n: Names) -> None:
    assert list(n["visited"]) == [0, 1, 2]
    source = n["inverted"].trace.source
    assert falling(distance(x, source) for x in n["visited"].values())


@check("invert-steps")
def _(n: Names) -> None:
    assert falling(n["cards"][k].latent_error for k in (5, 20, 50))


@check("invert-prompt")
def _(n: Names) -> None:
    error = distance(n["astray"].latents, n["pipe"].encode("photo.png"))
    assert error > n["cards"][20].latent_error


@check("invert-edit")
def _(n: Names) -> None:
    verdict = seen(n["resampled"][0])
    assert (verdict.weather, verdict.place) == ("snowy", "mountains")


@check("invert-edit-kept")
def _(n: Names) -> None:
    found = compared("photo.png", "edited.png", CAPTION.replace("sunny", "snowy"))
    assert found.succeeded
    assert not found.lost


@check("ddim-only")
def _(n: Names) -> None:
    from pare.errors import SchedulerError

    for name in ("dpm++2m", "euler-ancestral", "lms"):
        with pytest.raises(SchedulerError, match=r"(?i)ddim"):
            n["solvers"](n["pipe"].with_scheduler(name))


@check("cross-or-self")
def _(n: Names) -> None:
    maps = n["words"].maps()
    cross = [site.name for site in n["pipe"].unet.sites() if site.kind == "cross"]
    assert {one.site.name for one in maps} == set(cross)
    for one in maps:
        assert one.weights.ndim == 4
        assert torch.allclose(one.weights.sum(1), torch.ones(()), atol=1e-4)


@check("save-order")
def _(n: Names) -> None:
    cross = [site.name for site in n["pipe"].unet.sites() if site.kind == "cross"]
    assert n["order"] == [(step, name) for step in range(4) for name in cross]


@check("inject")
def _(n: Names) -> None:
    source, target = n["replays"][1.0]
    plain = n["ddim"]("a sunny mountain road with a red car", 0, steps=10).latents
    assert torch.equal(source, n["replays"][0.0][0])
    assert close(source, plain, 1e-3)
    assert not close(source, target, 0.1)


@check("injection-ratio")
def _(n: Names) -> None:
    far = [distance(n["replays"][r][1], n["free"]) for r in (0.0, 0.4, 1.0)]
    assert far[0] == 0
    assert rising(far)


@check("p2p")
def _(n: Names) -> None:
    found = compared("p2p-source.png", "p2p-target.png", SNOWY)
    assert found.changed == ("sunny -> snowy",)
    assert {"mountains", "red car"} <= set(found.kept)


@check("seed-lock")
def _(n: Names) -> None:
    assert structure(n["source"], n["unlocked"]) > structure("p2p-source.png", "p2p-target.png")


@check("minimal-edit")
def _(n: Names) -> None:
    from techniques.prompt_to_prompt.token_mapper import PairingWarning

    source, target = n["few"].source, n["few"].target
    assert sum(a != b for a, b in zip(source.ids, target.ids, strict=True)) == 1
    with pytest.warns(PairingWarning):
        n["token_maps"](n["pipe"], "a sunny road with a red car", ["the moon at night by a house"])


@check("word-swap")
def _(n: Names) -> None:
    from techniques.prompt_to_prompt import Edit, token_maps

    edit = Edit("a snowy road with a red car", mode="own", words={"sunny": "snowy"})
    table = token_maps(n["pipe"], "a sunny road with a red car", [edit])[0]
    assert (table.own == 0).sum() == 1
    assert error("swap-source.png", "swap-target.png") > 0


@check("map-reweight")
def _(n: Names) -> None:
    source, target = seen("weight-source.png"), seen("weight-target.png")
    assert source.clouds
    assert not target.clouds
    assert source.car == target.car == "red"


@check("layer-selective")
def _(n: Names) -> None:
    from techniques.prompt_to_prompt import prompt_to_prompt

    everywhere = prompt_to_prompt(n["pipe"], n["sunny"], SNOWY, 0, steps=8)
    assert error("coarse-source.png", everywhere[0]) == 0
    assert error("coarse-target.png", everywhere[1]) > 0


@check("batch-sizes")
def _(n: Names) -> None:
    rows = [n[name]().evaluations for name in ("blend_rows", "erase_rows", "p2p_rows")]
    assert rows == [4, 8, 8]


# --- Stable Diffusion Deep Dive -------------------------------------------------------------


@check("one-line")
def _(n: Names) -> None:
    assert n["image"].size == (128, 128)
    assert compared(n["image"], n["image"], n["sunny"]).succeeded
    for part in ("unet", "vae", "tokenizer", "text_encoder", "scheduler"):
        assert getattr(n["pipe"], part) is not None


@check("loop-by-hand")
def _(n: Names) -> None:
    assert torch.equal(n["x"], n["lms"](n["sunny"], 0, steps=30).latents)


@check("latent-shape")
def _(n: Names) -> None:
    assert n["latents"].shape == (1, 4, 16, 16)
    assert 3 * 128 * 128 / n["latents"].numel() == 48


@check("latent-channels")
def _(n: Names) -> None:
    assert [one.size for one in n["channels"]] == [(16, 16)] * 4
    assert len({one.tobytes() for one in n["channels"]}) == 4


@check("round-trip")
def _(n: Names) -> None:
    assert 20 <= decibels(n["again"], "photo.png") < 60


@check("lms-timesteps")
def _(n: Names) -> None:
    printed = [999.0000, 927.6429, 856.2857, 784.9286, 713.5714, 642.2143, 570.8571, 499.5000,
               428.1429, 356.7857, 285.4286, 214.0714, 142.7143, 71.3571, 0.0000]  # fmt: skip
    assert [round(level.t, 4) for level in n["fifteen"][:-1]] == printed


@check("lms-sigmas")
def _(n: Names) -> None:
    printed = [14.6146, 9.6826, 6.6780, 4.7746, 3.5221, 2.6666, 2.0606, 1.6156, 1.2768, 1.0097,
               0.7913, 0.6056, 0.4397, 0.2780, 0.0292, 0.0000]  # fmt: skip
    assert n["sigmas"] == pytest.approx(printed, abs=2e-4)
    assert falling(n["sigmas"])


@check("noised-image")
def _(n: Names) -> None:
    assert falling(error(n["noised"][k], "photo.png") for k in (5, 10, 14))


@check("add-noise-sigma")
def _(n: Names) -> None:
    factor = (n["fifteen"][10].sigma ** 2 + 1) ** 0.5
    assert close(n["exploding"] / factor, n["preserving"])


@check("initial-noise")
def _(n: Names) -> None:
    first, sigma = n["first"], n["first"].levels[0].sigma
    exploding = first.initial_scale * (sigma**2 + 1) ** 0.5  # of unit noise
    assert exploding == pytest.approx(14.6146, rel=3e-3)


@check("img2img")
def _(n: Names) -> None:
    found = compared("road.png", "snow.png", SNOWY)
    assert found.succeeded
    assert found.changed == ("sunny -> snowy",)
    assert not found.lost


@check("img2img-start")
def _(n: Names) -> None:
    assert falling(error(image, "road.png") for image in n["begun"].values())


@check("clip-tokens")
def _(n: Names) -> None:
    words = [49406, 320, 1674, 539, 320, 6829]
    assert n["puppy"].tolist() == [words + [49407] * 71]


@check("clip-names")
def _(n: Names) -> None:
    assert n["names"] == [
        "<|startoftext|>", "a</w>", "picture</w>", "of</w>", "a</w>", "puppy</w>",
        "<|endoftext|>", "<|endoftext|>",
    ]  # fmt: skip
    assert n["skunk"] == [49406, 42194, 49407]


@check("tokens-table")
def _(n: Names) -> None:
    ids = n["pipe"].tokenizer(n["sunny"]).input_ids
    rows = [line.split() for line in n["printed"].splitlines()]
    printed = [int(row[1]) for row in rows if len(row) > 2 and row[0].isdigit()]
    assert printed[: len(ids)] == ids


@check("output-embeddings")
def _(n: Names) -> None:
    width = n["pipe"].text_encoder.config.hidden_size
    assert n["output"].shape == (1, 77, width)
    assert torch.equal(n["output"], n["prompts"].cond)


@check("token-embeddings")
def _(n: Names) -> None:
    ids, tokens = n["ids"][0].tolist(), n["tokens"][0]
    twice = [k for k, number in enumerate(ids) if number == ids[1]]  # "a"
    assert len(twice) == 2
    assert torch.equal(tokens[twice[0]], tokens[twice[1]])


@check("position-embeddings")
def _(n: Names) -> None:
    assert n["positions"].shape[0] == 77
    assert len({tuple(row) for row in n["positions"].tolist()}) == 77


@check("input-embeddings")
def _(n: Names) -> None:
    assert torch.equal(n["summed"], n["embeddings"](n["ids"]))


@check("through-layers")
def _(n: Names) -> None:
    assert close(n["rebuilt"], n["output"])


@check("replace-token")
def _(n: Names) -> None:
    assert n["moved"][:2] == [0, 0]
    assert min(n["moved"][2:]) > 0


@check("replace-generate")
def _(n: Names) -> None:
    verdict = seen("replaced.png")
    assert (verdict.weather, verdict.car) == ("snowy", "red")
    assert error("replaced.png", n["pipe"](SNOWY, 0)[0]) == 0


@check("replace-id")
def _(n: Names) -> None:
    from pare.text.embedding_edits import Replace, TextEdits

    by_word = n["pipe"].with_text_edits(TextEdits(words=[Replace("sunny", "snowy")]))
    assert torch.equal(by_word.encode_prompts(n["sunny"]).cond,
                       n["replaced"].encode_prompts(n["sunny"]).cond)  # fmt: skip
    assert seen(n["by_id"][0]).weather == "snowy"


@check("mix-tokens")
def _(n: Names) -> None:
    from pare.text.embedding_edits import Layout

    pipe = n["pipe"]
    layout = Layout(pipe.tokenizer, pipe.text_encoder, n["mixed"].text_edits)
    edited = layout.read(n["sunny"])
    red, blue = (pipe.tokenizer(word).input_ids[1] for word in ("red", "blue"))
    table = pipe.text_encoder.get_input_embeddings().weight
    assert close(edited.rows, (0.5 * table[red] + 0.5 * table[blue])[None])
    mixed, plain = n["mixtures"]
    assert seen(mixed[0]).has("car")
    assert error(mixed[0], plain[0]) > 0


@check("textual-inversion")
def _(n: Names) -> None:
    from pare.loading.embedding_file import load_learned_words

    (learned,) = load_learned_words(Path("learned_embeds.bin"), None)
    assert learned.word == "<snow-style>"
    assert learned.vectors.shape == (1, n["pipe"].text_encoder.config.hidden_size)


@check("learned-style")
def _(n: Names) -> None:
    verdict = seen("style.png")
    assert (verdict.weather, verdict.car) == ("snowy", "red")


@check("learned-in-place")
def _(n: Names) -> None:
    assert error("in-place.png", "style.png") == 0


@check("mix-prompts")
def _(n: Names) -> None:
    from pare.text.embedding_edits import MixPrompts, TextEdits

    pipe = n["pipe"]
    mixed = pipe.with_text_edits(TextEdits(prompts=[MixPrompts(SNOWY, 0.65)]))
    expected = 0.35 * n["prompts"].cond + 0.65 * pipe.encode_prompts(SNOWY).cond
    assert close(mixed.encode_prompts(n["sunny"]).cond, expected)
    assert seen("chimera.png").weather == "snowy"


@check("unet-shape")
def _(n: Names) -> None:
    assert n["eps"].shape == (1, 4, 16, 16)


@check("predicted-x0")
def _(n: Names) -> None:
    level, prediction = n["level"], n["prediction"]
    exploding = n["x_T"] * (level.sigma**2 + 1) ** 0.5
    assert close(exploding - level.sigma * prediction.eps, prediction.x0, 1e-3)


@check("film")
def _(n: Names) -> None:
    recording, frames = n["recording"], n["frames"]
    assert len(frames) == 13
    x_t, x0 = recording["x_t"], recording["x0"]
    assert distance(x0[0], x_t[0]) > distance(x_t[1], x_t[0])


@check("guidance-sweep")
def _(n: Names) -> None:
    assert compared(n["pages"][7.5], n["pages"][7.5], n["sunny"]).succeeded
    clipped = {g: np.isin(pixels(image), (0, 255)).mean() for g, image in n["pages"].items()}
    assert clipped[40] > clipped[7.5]


def roughness(image: Any) -> float:
    return float(np.abs(np.diff(pixels(image).astype(float), axis=1)).mean())


@check("one-step")
def _(n: Names) -> None:
    assert roughness(n["blur"]) < 0.6 * roughness("road.png")
    assert not seen(n["blur"]).has("car")


@check("sampler-step")
def _(n: Names) -> None:
    here, there = n["steps"].levels[:2]
    exploding = n["start"] * (here.sigma**2 + 1) ** 0.5
    moved = exploding + (there.sigma - here.sigma) * n["one"].eps
    assert close(moved / (there.sigma**2 + 1) ** 0.5, n["stepped"], 1e-4)


@check("blue-loss")
def _(n: Names) -> None:
    assert n["blued"].losses[0] < 0.9 * n["blued"].unguided[0]
    assert seen(n["blued"][0]).has("car")


@check("loss-scale")
def _(n: Names) -> None:
    assert falling(n["scales"][s] for s in (0, 20, 120))


@check("loss-every")
def _(n: Names) -> None:
    assert [len(n[name].steps[0]) for name in ("fifth", "each")] == [2, 10]
    for name in ("fifth", "each"):
        assert n[name].losses[0] < n[name].unguided[0]


@check("loss-unet")
def _(n: Names) -> None:
    one, other = n["exact"].steps[0][0], n["fifth"].steps[0][0]
    assert one.loss == pytest.approx(other.loss, rel=1e-4)
    assert one.moved != pytest.approx(other.moved, rel=1e-3)


@check("classifier-guidance")
def _(n: Names) -> None:
    assert n["classified"].losses[0] < n["classified"].unguided[0]


@check("style-loss")
def _(n: Names) -> None:
    assert n["styled"].losses[0] < n["styled"].unguided[0]


# --- Recitation -------------------------------------------------------------------------------


@check("layout-in-maps")
def _(n: Names) -> None:
    from pare.study.record.attention_maps import WordRecorder, heat_map
    from pare.text.words import read

    recorder = WordRecorder({"cond": [read(n["pipe"].tokenizer, n["sunny"])]})
    made = n["pipe"](n["sunny"], 0, control=recorder)
    heat = heat_map(recorder.maps(), "car", (16, 16), among="words")
    there = torch.from_numpy(seen(made[0]).cover["car"] > 0.5)
    assert there.any()
    assert heat[there].mean() > 1.5 * heat.mean()
    assert Path("car-map.png").exists()


@check("early-composition")
def _(n: Names) -> None:
    source, early, late = n["spans"]
    assert structure(source, early) < structure(source, late)


@check("injection-figure")
def _(n: Names) -> None:
    source, without, _, full = n["figure"]
    assert structure(source, full) < structure(source, without)


@check("algorithm-1")
def _(n: Names) -> None:
    assert close(n["figure"].latents[:1], n["alone"].latents, 1e-3)


@check("mapper-identity")
def _(n: Names) -> None:
    assert torch.equal(n["same"], torch.eye(77))


def block(table: Any, source: str, target: str) -> torch.Tensor:
    rows, columns = table.source.find(source), table.target.find(target)
    return torch.as_tensor(table.matrix[list(rows)][:, list(columns)])


@check("mapper-one-to-n")
def _(n: Names) -> None:
    fed = block(n["one_to_n"], "lion", "hippopotamus")
    assert fed.shape[0] == 1
    assert fed.shape[1] > 1
    assert torch.allclose(fed, torch.full_like(fed, 1 / fed.shape[1]))
    assert block(n["one_to_n"], "eating", "eating").tolist() == [[1]]


@check("mapper-n-to-one")
def _(n: Names) -> None:
    fed = block(n["n_to_one"], "hippopotamus", "lion")
    assert fed.shape[0] > 1
    assert fed.shape[1] == 1
    assert torch.allclose(fed, torch.full_like(fed, 1 / fed.shape[0]))


@check("mapper-n-to-m")
def _(n: Names) -> None:
    fed = block(n["n_to_m"], "unimaginably", "inconceivably")
    assert min(fed.shape) > 1
    assert torch.allclose(fed, torch.full_like(fed, 1 / max(fed.shape)))


@check("pipeline-parts")
def _(n: Names) -> None:
    tokenizer = n["pipe"].tokenizer
    assert (tokenizer.model_max_length, tokenizer.padding_side) == (77, "right")
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|startoftext|>", "<|endoftext|>")
    for part in ("UNet", "VAE"):
        assert part.lower() in n["printed"].lower()


# --- Understand Stable Diffusion from Code ----------------------------------------------------


@check("four-steps")
def _(n: Names) -> None:
    assert torch.equal(n["pixels"], n["pipe"](n["sunny"], 0).tensor)


@check("attention-formula")
def _(n: Names) -> None:
    q, k, v = n["q"], n["k"], n["v"]
    formula = torch.softmax(q @ k.transpose(-1, -2) / 4, -1) @ v
    assert close(formula, n["spelled"])
    assert close(formula, n["fused"])


@check("ddpm-forward")
def _(n: Names) -> None:
    alpha_bar, chain = float(n["alphas"][99]), n["chain"]
    assert chain.mean() == pytest.approx(alpha_bar**0.5, abs=0.01)
    assert chain.std() == pytest.approx((1 - alpha_bar) ** 0.5, abs=0.01)


@check("encode-twice")
def _(n: Names) -> None:
    assert torch.equal(n["both"].uncond, n["empty"].cond)


@check("sd2-tokens")
def _(n: Names) -> None:
    printed = [49406, 3086, 24970, 518, 2102, 267, 5610, 267, 1158, 267, 1486, 2631, 267, 275,
               330, 267, 6353, 794, 49407]  # fmt: skip
    assert n["sea"].tolist() == [printed + [0] * (77 - len(printed))]


@check("embedding-shape")
def _(n: Names) -> None:
    width = n["pipe"].text_encoder.config.hidden_size
    assert n["both"].cond.shape == (1, 77, width)
    assert n["picture"].size == (width, 77)


@check("play-embeddings")
def _(n: Names) -> None:
    from pare.text.embedding_edits import MixPrompts, TextEdits

    mixed = n["pipe"].with_text_edits(TextEdits(prompts=[MixPrompts(SNOWY, 0.5)]))
    assert close(mixed.encode_prompts(n["sunny"]).cond, n["between"].cond)


@check("get-latent")
def _(n: Names) -> None:
    drawn = n["drawn"]
    assert drawn.shape == (3, 4, 8, 12)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert drawn.std() == pytest.approx(1, abs=0.1)


@check("denoise-film")
def _(n: Names) -> None:
    assert len(n["raw_frames"]) == 13
    assert len({frame.size for frame in n["raw_frames"]}) == 1
    x_t = n["recording"]["x_t"]
    assert falling(distance(x, x_t[-1]) for x in x_t)


@check("denoise-decoded")
def _(n: Names) -> None:
    errors = [error(image, n["shown"][-1]) for image in n["shown"]]
    assert len(errors) == 4
    assert falling(errors)


@check("alphas")
def _(n: Names) -> None:
    from pare.schedulers.schedule import CLEAN

    alpha_bar = n["pipe"].scheduler.schedule.alpha_bar
    assert torch.allclose(torch.cumprod(1 - n["betas"], 0), alpha_bar, atol=1e-12)
    assert CLEAN.alpha_bar == 1


@check("ddim-timesteps")
def _(n: Names) -> None:
    assert [level.t for level in n["spaced"].levels[:-1]] == list(range(981, 0, -20))


@check("ddim-step")
def _(n: Names) -> None:
    assert close(n["previous"], n["stepped_v"])


@check("no-scheduler")
def _(n: Names) -> None:
    assert all(decibels(image, "road.png") < 25 for image in n["without"].values())
    assert compared("road.png", "road.png", n["sunny"]).succeeded


@check("ratio")
def _(n: Names) -> None:
    assert n["roughness"][0.5] > n["roughness"][1.475]


@check("unet-blocks")
def _(n: Names) -> None:
    assert "resnet" in n["printed"].lower()
    assert "transformer" in n["printed"].lower()
    assert "859,520,964" in n["printed"]


@check("u-shape")
def _(n: Names) -> None:
    shape = n["by_name"]
    assert shape["unet.conv_in"] == (2, 320, 64, 64)
    assert shape["unet.mid_block"] == (2, 1280, 8, 8)
    assert shape["unet.conv_out"] == (2, 4, 64, 64)


@check("vae-decode")
def _(n: Names) -> None:
    decoded = n["pipe"].decode(n["latents"])
    assert close((decoded / 2 + 0.5).clamp(0, 1), n["pixels01"])


@check("rescale")
def _(n: Names) -> None:
    u, c = n["u0"], n["c0"]
    cfg = u + 7.5 * (c - u)
    dims = [1, 2, 3]
    scaled = cfg * (c.std(dim=dims, keepdim=True) / cfg.std(dim=dims, keepdim=True))
    assert close(0.7 * scaled + 0.3 * cfg, n["rescaled"])


# --- Understanding Prompt to Prompt -----------------------------------------------------------


@check("inpainting")
def _(n: Names) -> None:
    found = compared("photo.png", "inpainted.png", CAPTION + " and clouds")
    assert found.succeeded
    assert not found.lost


@check("softmax")
def _(n: Names) -> None:
    from pare.attention import attention_weights

    assert torch.allclose(n["weights"].sum(-1), torch.ones(()), atol=1e-5)
    assert close(attention_weights(n["q"], n["k"]), n["weights"])


@check("nth-token")
def _(n: Names) -> None:
    from pare.text.words import read

    (place,) = read(n["pipe"].tokenizer, n["sunny"]).find("red")
    now, later = n["prompts"].cond[0], n["later"][0]
    assert torch.equal(now[:place], later[:place])
    assert not torch.equal(now[place], later[place])


@check("early-maps")
def _(n: Names) -> None:
    there = torch.from_numpy(seen(n["car_run"][0]).cover["car"] > 0.5)
    assert there.any()
    assert n["early_map"][there].mean() > n["early_map"].mean()


@check("fixed-seed")
def _(n: Names) -> None:
    edit = structure("p2p-source.png", "p2p-target.png")
    assert all(structure("p2p-source.png", image) > edit for image in n["unfixed"])


@check("swap-words")
def _(n: Names) -> None:
    found = compared("blue-source.png", "blue-target.png")
    assert found.changed == ("red car -> blue car",)
    assert not found.lost
    assert not found.added


@check("add-phrase")
def _(n: Names) -> None:
    found = compared("house-source.png", "house-target.png")
    assert found.added == ("house",)
    assert {"mountains", "red car"} <= set(found.kept)


@check("reweight")
def _(n: Names) -> None:
    source, *targets = n["weighted"]
    assert [seen(image).clouds for image in targets] == [False, False, True, True]
    assert error(source, targets[2]) < 1


@check("real-image")
def _(n: Names) -> None:
    assert compared("photo.png", "real.png", CAPTION.replace("sunny", "snowy")).succeeded


@check("ddim-eta")
def _(n: Names) -> None:
    assert torch.equal(*n["still"])
    assert n["noisy"].scheduler.stochastic
    assert not n["ddim"].scheduler.stochastic
    assert not close(n["noisy"](n["sunny"], 0, steps=6).latents, n["still"][0], 0.1)


@check("inversion-cfg")
def _(n: Names) -> None:
    assert n["errors"][7.5] > 2 * n["errors"][1.0]


@check("null-text")
def _(n: Names) -> None:
    again = n["sample"](n["ddim"], n["null"])
    found = (again.latents - n["null"].trace.source).square().mean().item()
    assert found < 0.5 * n["errors"][7.5]
