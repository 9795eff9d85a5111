"""The report: what goes into the page is what the run did, and nothing in it can break out."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pare.attention import Site
from pare.cli.main import main
from pare.io.images import to_pil
from pare.pipeline import Pipeline
from pare.recipes.recipe import read_recipe
from pare.study.inspect.layer_table import LayerTable, layer_table
from pare.study.inspect.model_summary import describe
from pare.study.inspect.model_tables import layers
from pare.study.inspect.source_lines import source_lines
from pare.study.record import html_report as report_module
from pare.study.record.attention_maps import WordMap
from pare.study.record.html_packing import Pack, eight_bit
from pare.study.record.html_report import RunReport, choose_stage, images, sketches, skips_of, small
from pare.text.words import Words, read
from tests.tiny_model import write_tiny_model

PROMPT = "a snowy road"
HOSTILE = 'a </script><script>alert("road")</script> {{facts}} & <b>'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def pipe(model: Path) -> Pipeline:
    return Pipeline.from_pretrained(model, device="cpu", scheduler="ddim")


class Page:
    """A page, read as its JavaScript reads it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.facts: dict[str, Any] = json.loads(self.script("facts"))
        self.block = gzip.decompress(base64.b64decode(self.script("numbers")))

    def script(self, name: str) -> str:
        (found,) = re.findall(rf'<script type="[^"]*" id="{name}">(.*?)</script>', self.text, re.S)
        return str(found)

    def array(self, place: dict[str, Any]) -> np.ndarray[Any, Any]:
        kind = {"uint8": np.uint8, "float32": np.float32}[place["type"]]
        count = int(np.prod(place["shape"]))
        return np.frombuffer(self.block, kind, count, place["at"]).reshape(place["shape"])

    def numbers(self, stack: dict[str, Any]) -> np.ndarray[Any, Any]:
        """A stack of small images as numbers again, to 1/255 of each one's range."""
        bits, ends = self.array(stack["images"]), self.array(stack["ends"])
        low, high = ends[..., 0, None, None], ends[..., 1, None, None]
        return low + bits / 255 * (high - low)


def made(
    pipe: Pipeline, prompt: str = PROMPT, steps: int = 3, **given: Any
) -> tuple[Page, RunReport]:
    reported = RunReport(pipe, [read(pipe.tokenizer, prompt)], steps=steps, size=(72, 40))
    with reported as watched:
        image = watched.generate(prompt, [7], steps=steps, width=72, height=40, **given)
    return Page(reported.page(image[0], {"prompt": prompt, "seed": 7})), reported


@pytest.fixture(scope="module")
def page_and_report(pipe: Pipeline) -> tuple[Page, RunReport]:
    return made(pipe)


def close(found: np.ndarray[Any, Any], expected: torch.Tensor) -> bool:
    """To half of one of 255 parts of each image's range."""
    x = expected.double().numpy()
    span = x.max(axis=(-2, -1), keepdims=True) - x.min(axis=(-2, -1), keepdims=True)
    return bool((np.abs(found - x) <= span / 509 + 1e-5 * np.abs(x).max()).all())


def test_the_page_holds_what_was_recorded(page_and_report: tuple[Page, RunReport]) -> None:
    page, reported = page_and_report
    facts, recording = page.facts, reported.recording
    assert close(page.numbers(facts["latents"]["x_t"]), recording["x_t"][:, 0])
    assert close(page.numbers(facts["latents"]["x0"]), recording["x0"][:, 0])
    change = recording["output.cond"] - recording["output.uncond"]
    assert close(page.numbers(facts["guidance"]["heat"]), change[:, 0].square().mean(1).sqrt())
    assert facts["guidance"]["change"] == pytest.approx(change.flatten(1).norm(dim=1).tolist())
    assert [step["t"] for step in facts["steps"]] == [level.t for level in recording.levels]
    table = layer_table(reported.pipe.unet, (1, 4, 5, 9), 500, (1, 77, 12), prefix="unet")
    assert [layer["name"] for layer in facts["layers"]] == [x.name for x in table if x.outputs]
    for layer in facts["layers"]:
        name = layer["name"]
        assert close(page.numbers(layer), recording[f"{name}:images"][:, 1])
        numbers = page.array(layer["statistics"])
        assert np.array_equal(numbers, recording[f"{name}:statistics"][:, 1].numpy())


def test_words_are_looked_at_as_recorded(page_and_report: tuple[Page, RunReport]) -> None:
    page, reported = page_and_report
    facts = page.facts
    assert [word["text"] for word in facts["words"]] == PROMPT.split()
    assert facts["tokens"][0]["text"] == "<start>"
    assert len(facts["tokens"]) == 77
    cross = [site for site in reported.pipe.unet.sites() if site.kind == "cross"]
    assert [site["name"] for site in facts["sites"]] == [f"unet.{site.name}" for site in cross]
    maps = reported.recorder.maps()
    for site in facts["sites"]:
        weights = page.numbers(site)  # (columns, steps, h, w)
        np.testing.assert_allclose(weights.sum(axis=0), 1, atol=0.02)
        own = [one for one in maps if f"unet.{one.site.name}" == site["name"]]
        assert close(weights, torch.stack([one.weights[0] for one in own], dim=1))
    # Every token of every word has a column, and the padding the last one.
    tokens = [token for word in facts["words"] for token in word["tokens"]]
    assert tokens == list(range(1, facts["padding"] - 1))
    assert facts["sites"][0]["images"]["shape"][0] == facts["padding"] + 1


def test_self_attention_is_that_of_every_pixel(page_and_report: tuple[Page, RunReport]) -> None:
    page, report = page_and_report
    stored, recorder = page.facts["self"], report.self_recorder
    assert recorder is not None
    sites = [site for site in report.pipe.unet.sites() if site.kind == "self"]
    assert stored["stage"] == min(site.stage for site in sites)
    assert stored["layers"] == sum(site.stage == stored["stage"] for site in sites)
    maps = page.numbers(stored)  # (steps, query pixels, h, w)
    h, w = stored["grid"]
    assert maps.shape == (3, h * w, h, w)
    np.testing.assert_allclose(maps.sum(axis=(2, 3)), 1, atol=0.05)
    assert close(maps[1], recorder.matrix(1).view(h * w, h, w))


def test_self_attention_gives_way_to_the_budget(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = [Site("down", stage, 0, "self", 8, f"down_blocks.{stage}") for stage in range(4)]
    assert choose_stage(sites, (64, 64), 50) == 2  # SD 1: 16 x 16 pixels
    assert choose_stage(sites, (96, 96), 50) == 3
    assert choose_stage(sites, (16, 16), 50) == 0
    monkeypatch.setattr(report_module, "SELF_BUDGET", 1)
    page, report = made(pipe, steps=1)
    assert report.self_recorder is None
    assert "self" not in page.facts


def test_films_are_images_of_each_step(page_and_report: tuple[Page, RunReport]) -> None:
    page, _ = page_and_report
    films = page.facts["films"]
    assert {name: len(film) for name, film in films.items()} == {
        "x_t": 4, "x0": 3, "cond": 3, "uncond": 3,
    }  # fmt: skip
    assert page.facts["decoded"]
    for film in (*films.values(), [page.facts["image"]["file"]]):
        for at, size in film:
            assert page.block[at : at + 4] == b"RIFF"
            assert at + size <= len(page.block)


def test_the_page_is_one_file_that_asks_nobody(page_and_report: tuple[Page, RunReport]) -> None:
    page, _ = page_and_report
    around = page.text.replace(page.script("numbers"), "")
    # The only address in it is SVG's name for itself.
    assert set(re.findall(r"https?://[^\s\"']+", around)) == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"<link(?![^>]*href=\"data:)|@import|url\(|src=\"(?!data:)", around)
    assert "default-src 'none'" in page.text
    assert "{{" not in around


def test_nothing_in_a_prompt_gets_out_of_its_place(pipe: Pipeline) -> None:
    page, _ = made(pipe, HOSTILE, steps=1)
    assert page.facts["about"]["prompt"] == HOSTILE
    assert page.text.count("<script") == page.text.count("</script") == 3
    assert "<title>a &lt;/script&gt;" in page.text
    assert "innerHTML" not in page.text


@pytest.mark.parametrize("prompt", ["", "é 雪 🚗 !? " + "road " * 500], ids=["none", "long"])
@pytest.mark.filterwarnings("ignore:the prompt has")
def test_any_prompt_has_a_page(pipe: Pipeline, prompt: str) -> None:
    page, _ = made(pipe, prompt, steps=1)
    lost = [word for word in page.facts["words"] if not word["tokens"]]
    assert bool(lost) == (len(prompt) > 1000)
    assert max([t for word in page.facts["words"] for t in word["tokens"]], default=0) < 76


def test_without_guidance_there_is_one_side(pipe: Pipeline) -> None:
    page, _ = made(pipe, guidance=1.0)
    assert "guidance" not in page.facts
    assert set(page.facts["films"]) == {"x_t", "x0"}


def test_a_long_run_is_looked_at_now_and_then(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_module, "MOST_STEPS", 3)
    page, reported = made(pipe, steps=8)
    assert reported.recording.recorded_steps == [0, 3, 6]
    assert [step["i"] for step in page.facts["steps"]] == [0, 3, 6]
    assert page.facts["count"] == 8
    assert page.array(page.facts["layers"][0]["statistics"]).shape == (3, 4)
    last = page.numbers(page.facts["latents"]["x_t"])[-1]
    assert close(last, reported.recording["x_t"][-1, 0])


def test_images_give_way_to_the_budget(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    words = read(pipe.tokenizer, PROMPT)
    sizes = []
    for budget in (10**9, 200_000, 40_000):
        monkeypatch.setattr(report_module, "IMAGES_BUDGET", budget)
        reported = RunReport(pipe, [words], steps=10, size=(512, 512))
        planned = reported.recording.plan(10, (512, 512), guidance=1)
        sizes.append(sum(x.shape[-1] * x.shape[-2] * x.shape[-3] * x.shape[0]
                         for x in planned if x.name.endswith(":images")))  # fmt: skip
        assert sizes[-1] <= budget
    assert sizes[0] > sizes[1] > sizes[2] > 0


def test_small_images_are_means_and_strength_is_their_length() -> None:
    x = torch.randn(2, 6, 8, 4, generator=torch.Generator().manual_seed(0))
    kept = images(64, 2).reduce(x, None)
    assert torch.equal(kept[:, 1:], x[:, [1, 4]])
    torch.testing.assert_close(kept[:, 0], x.square().mean(1).sqrt())
    halved = images(4, 2).reduce(x, None)
    assert halved.shape == (2, 3, 4, 2)
    expected = x[:, 1].unflatten(1, (4, 2)).unflatten(3, (2, 2)).mean((2, 4))
    torch.testing.assert_close(halved[:, 1], expected)
    tokens = x.flatten(2).transpose(1, 2)
    assert torch.equal(images(64, 2).reduce(tokens, (8, 4)), kept)
    assert images(64, 2).reduce(tokens, None).shape == (2, 1, 1, 32)
    assert torch.equal(images(64, 2).reduce(tokens[:, 0], None)[:, 0, 0], tokens[:, 0])
    assert small((64, 96), 32) == (21, 32)
    assert small((1, 500), 32) == (1, 32)


def test_skips_join_what_the_forward_joins(pipe: Pipeline) -> None:
    table = layer_table(pipe.unet, (1, 4, 8, 8), 500, (1, 77, 12), prefix="unet")
    skips = skips_of(table)
    assert skips == [
        ("unet.down_blocks.1.resnets.0", "unet.up_blocks.0.resnets.0"),
        ("unet.down_blocks.0.downsamplers.0", "unet.up_blocks.0.resnets.1"),
        ("unet.down_blocks.0.attentions.0", "unet.up_blocks.1.resnets.0"),
        ("unet.conv_in", "unet.up_blocks.1.resnets.1"),
    ]
    for made_by, taken_by in skips:  # the widths fit
        width = table[taken_by].inputs["x"][1]
        assert table[made_by].outputs[0][1] < width


def test_sketches_are_the_best_linear_images() -> None:
    generator = torch.Generator().manual_seed(0)
    final = torch.randn(4, 6, 5, generator=generator)
    matrix = torch.tensor([[0.05, 0.1, 0.0], [0.1, 0.0, 0.05], [0.0, 0.05, 0.1], [0.05, 0.0, 0.05]])
    colours = torch.einsum("chw,cd->dhw", final, matrix) + 0.5
    (image,) = to_pil(2 * colours[None] - 1)
    (again,) = sketches(final[None], final, image)
    apart = np.asarray(again).astype(int) - np.asarray(image)
    assert np.abs(apart).max() <= 1


def test_eight_bits_and_numbers_that_are_none() -> None:
    x = np.array([[[np.nan, 1.0], [3.0, np.inf]], [[2.0, 2.0], [2.0, 2.0]]])
    bits, ends = eight_bit(x, axes=2)
    assert ends.tolist() == [[1, 3], [2, 2]]
    assert bits.tolist() == [[[0, 0], [255, 255]], [[0, 0], [0, 0]]]
    pack = Pack()
    places = [pack.add(bits[0, :1, :1]), pack.add(ends)]
    assert places[1]["at"] % 4 == 0
    assert pack.text() == pack.text()


def test_sources_are_the_lines_that_compute() -> None:
    import inspect

    from pare.unet.resnet import ResnetBlock

    lines, first = inspect.getsourcelines(ResnetBlock.forward)
    found = source_lines(f"pare/unet/resnet.py:{first}")
    assert found == {"first": first, "mark": first, "lines": [x.rstrip("\n") for x in lines]}
    called: Any = source_lines(f"pare/unet/resnet.py:{first + 2}")
    assert called["first"] == first
    assert len(called["lines"]) == 5
    assert source_lines("nowhere/at_all.py:3")["lines"] == []
    assert source_lines("pare/unet/resnet.py:99999")["lines"] == []


# --- the command --------------------------------------------------------------------------


def test_of_a_prompt_and_of_the_image_it_makes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["--model", str(model), "--steps", "2", "--seed", "5"]
    assert main(["generate", PROMPT, *settings, "--count", "2", "--out", "road.png"]) == 0
    assert main(["report", PROMPT, *settings]) == 0
    assert main(["report", "road-5.png", "--json", "--inputs", str(model.parent)]) == 0
    captured = capsys.readouterr()
    assert "pare: recording takes" in captured.err
    assert "report-5.html" in captured.out
    result = json.loads(captured.out[captured.out.index("{") :])
    assert result["path"] == "road-5.html"
    assert result["bytes"] == Path("road-5.html").stat().st_size
    one, other = (Page(Path(name).read_text()) for name in ("report-5.html", "road-5.html"))
    assert one.facts["about"]["command"].startswith("pare report 'a snowy road' --seed 5 --steps 2")
    assert other.facts["about"]["command"].startswith("pare generate 'a snowy road' --")
    assert one.facts["latents"] == other.facts["latents"]
    assert one.block == other.block  # the same run
    assert read_recipe("road-5.png").seed == other.facts["about"]["seed"] == 5


def test_of_an_image_made_from_an_image(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gradient: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    gradient.crop((0, 0, 45, 30)).save("photo.png")
    options = ["--model", str(model), "--steps", "4", "--strength", "0.5", "--out", "night.png"]
    assert main(["img2img", "photo.png", PROMPT, *options]) == 0
    assert main(["report", "night.png", "--inputs", str(model.parent)]) == 0
    page = Page(Path("night.html").read_text())
    assert page.facts["image"]["width"] == 45
    assert page.facts["count"] >= 2


EDITED = {  # what makes the image, and how many looks its last walk has (PNDM's: one more)
    "blend": (["photo.png", "--mask", "mask.png", PROMPT, "--background", "latent",
               "--strength", "0.5"], 2),
    "guide": ([PROMPT, "--loss", "blue", "--every", "2", "--size", "40x24"], 5),
    "guide through": ([PROMPT, "--loss", "blue", "--through-unet", "--size", "40x24"], 5),
    "erase": ([PROMPT, "--concept", "a car", "--concept", "the sun"], 4),
    "erase by attention": (["photo.png", PROMPT, "--concept", "a car", "--gates", "ledits++",
                            "--strength", "0.75"], 3),
    "p2p": (["a sunny road", PROMPT, "a rainy road", "--size", "40x24"], 4),
    "edit": (["photo.png", "--from", "a sunny road", "--to", PROMPT, "--strength", "0.75"], 3),
    "edit negative": (["photo.png", "--from", "a sunny road", "--to", PROMPT, "--edit", "resample",
                       "--method", "negative"], 4),
    "edit null-text": (["photo.png", "--from", "a sunny road", "--to", PROMPT,
                        "--method", "null-text"], 4),
    "edit erase": (["photo.png", "--from", PROMPT, "--edit", "erase", "--concept", "a car"], 3),
    "invert": (["photo.png", PROMPT, "--method", "fixed-point"], 4),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITED)
def test_of_images_that_the_techniques_made(
    name: str, pipe: Pipeline, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    gradient: Any,
) -> None:  # fmt: skip
    """The page ends with the image, and its words are those of the image's own row."""
    monkeypatch.chdir(tmp_path)
    gradient.crop((0, 0, 40, 24)).save("photo.png")
    Image.fromarray(np.repeat(np.array([[0] * 20 + [255] * 20], np.uint8), 24, axis=0)).save(
        "mask.png"
    )
    given, looks = EDITED[name]
    command = name.partition(" ")[0]
    assert main([command, "--model", str(model), "--steps", "4", *given, "--out", "new.png"]) == 0
    made = "new-target-1.png" if command == "p2p" else "new.png"
    assert main(["report", made, "--out", "page.html", "--inputs", str(model.parent)]) == 0
    page = Page(Path("page.html").read_text())
    assert page.facts["about"]["prompt"] == PROMPT
    assert [word["text"] for word in page.facts["words"]] == PROMPT.split()
    assert page.facts["count"] == len(page.facts["steps"]) == looks
    noises = [step["alpha_bar"] for step in page.facts["steps"]]
    assert noises == sorted(noises)  # on the way to the image, not from it
    assert set(page.facts["films"]) == {"x_t", "x0", "cond", "uncond"} - (
        {"cond", "uncond"} if name == "invert" else set()
    )
    last = torch.from_numpy(page.numbers(page.facts["latents"]["x_t"])[-1:]).float()
    apart = np.asarray(to_pil(pipe.decode(last))[0]).astype(int) - np.asarray(Image.open(made))
    assert np.abs(apart).mean() < 1


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["edit", "photo.png", "--from", "a road", "--to", PROMPT, "--method", "edict"],
         "EDICT samples two coupled latents"),
        (["p2p", "a sunny road", PROMPT, "--separately"], "ran one after the other"),
        (["attention", PROMPT, "--word", "road"], "was made by `pare attention`; expected a"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)  # fmt: skip
def test_runs_that_cannot_be_followed_are_refused(
    command: list[str], words: str, model: Path, tmp_path: Path, gradient: Any,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    gradient.crop((0, 0, 40, 24)).save("photo.png")
    settings = ["--model", str(model), "--steps", "2", "--out", "new.png"]
    assert main([*command, *settings]) == 0
    capsys.readouterr()
    made = "new-target.png" if command[0] == "p2p" else "new.png"
    assert main(["report", made, "--out", "page.html", "--inputs", str(model.parent)]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert not Path("page.html").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["no.png"], "no.png: no such file"),
        (["photo.png"], "photo.png carries no recipe"),
        ([PROMPT, "--out", "a.png"], "--out is a.png; expected a name that ends in .html"),
        ([PROMPT, "--out", "mine.html"], "mine.html exists"),
        ([PROMPT, "--seed", str(2**70)], "seed is"),
        ([PROMPT, "--steps", "0"], "steps is 0"),
        ([PROMPT, "--model", "nowhere/"], "nowhere"),
    ],
    ids=str,
)
def test_mistakes_are_one_sentence_and_leave_nothing(
    given: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], gradient: Any,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    gradient.save("photo.png")
    Path("mine.html").write_text("mine")
    assert main(["report", *given]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.html", "photo.png"]
    assert Path("mine.html").read_text() == "mine"


def test_at_full_size_the_layers_fit_the_page() -> None:
    """SD 1.4: base64 of the three budgets is 37 MB, and what comes to it is little."""
    table = layers(describe("sd1"), "unet")
    shown = LayerTable.of([layer for layer in table if layer.outputs])
    side, channels = report_module.choose_images(shown, 30)
    sizes = [report_module.image_size(shown, layer, side, channels) for layer in shown]
    assert 30 * sum(sizes) <= report_module.IMAGES_BUDGET
    assert (side, channels) == (32, 0)
    looks = report_module.MOST_STEPS
    numbers = len(shown) * looks * 4 * (4 + 2 * (1 + channels))  # statistics, and ranges
    films = 4 * looks * 12_000
    budgets = report_module.IMAGES_BUDGET + report_module.WORDS_BUDGET + report_module.SELF_BUDGET
    assert (budgets + numbers + films) * 4 / 3 < 40_000_000


def test_at_full_size_the_words_fit_the_page() -> None:
    """SD 1.4's 16 cross-attention layers, 75 tokens and 60 looks stay within the budget."""
    grids = [64] * 2 + [32] * 2 + [16] * 2 + [8] + [16] * 3 + [32] * 3 + [64] * 3
    empty = Words("", (), (0,) * 77, ("",) * 77)
    site = Site("down", 0, 0, "cross", 8, "down_blocks.0.attentions.0.transformer_blocks.0.attn2")
    where: dict[str, Any] = {"site": site, "step": 0, "prompt": 0, "branch": "cond", "words": empty}
    by_site = {
        str(k): [WordMap(weights=torch.empty(1, 78, grid, grid), **where)]
        for k, grid in enumerate(grids)
    }
    side = report_module.side_that_fits(by_site, 78, 60)
    assert report_module.cells_within(by_site, side) * 78 * 60 <= report_module.WORDS_BUDGET
    assert side >= 4
