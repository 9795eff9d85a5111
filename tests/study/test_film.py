"""Films and sweeps: what they show is what the run did, and their files can be read."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pare.cli.commands.sweep import parse_axis, settings
from pare.cli.main import all_commands, main
from pare.errors import OutputError, SettingError
from pare.io.images import to_pil, to_tensor
from pare.pipeline import Pipeline
from pare.study.record.film_file import LAST, check_film, write_film
from pare.study.record.image_grid import GAP
from pare.study.record.recording import Recording
from pare.study.record.run_frames import enlarged, film_frames
from pare.study.record.setting_sweep import (
    MOST,
    SETTINGS,
    check_sweep,
    one_leap,
    strength_from,
    subtract_noise,
    sweep,
    sweep_function,
)
from techniques.prompt_to_prompt import Edit, prompt_to_prompt
from tests.conftest import ROOT
from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder, device="cpu")


# --- frames ---------------------------------------------------------------------------------


def recorded(pipe: Pipeline, **settings: Any) -> Recording:
    recording = Recording(pipe)
    with recording as watched:
        watched.generate("road", 0, **settings)
    return recording


def panel(frame: Image.Image, k: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The k-th image of a frame; captions stand above."""
    left, top = GAP + k * (size[0] + GAP), frame.height - size[1] - GAP
    return np.asarray(frame.crop((left, top, left + size[0], top + size[1])))


@pytest.mark.parametrize("scheduler", ["pndm", "dpm++2m"])
def test_frames_have_one_size_and_end_with_the_image(pipe: Pipeline, scheduler: str) -> None:
    under = pipe.with_scheduler(scheduler)
    recording = recorded(under, steps=2, height=16, width=24)
    frames = list(film_frames(under, recording))
    assert len(frames) == len(recording.levels) + 1 == len(under.scheduler.timesteps(2)) + 1
    assert len({frame.size for frame in frames}) == 1
    last = enlarged(under.generate("road", 0, steps=2, height=16, width=24)[0])
    assert np.array_equal(panel(frames[-1], 0, last.size), np.asarray(last))
    assert np.array_equal(panel(frames[-1], 1, last.size), np.asarray(last))


def test_a_frame_shows_x_t_before_the_step_and_after_it(pipe: Pipeline) -> None:
    recording = recorded(pipe, steps=3, height=16, width=24)
    frames = list(film_frames(pipe, recording, ["x_t", "x0", "next"]))
    for i in range(len(recording.levels)):
        latents = recording["x_t"][i], recording["x0"][i], recording["x_t"][i + 1]
        for k, x in enumerate(latents):
            shown = enlarged(to_pil(pipe.decode(x))[0])
            assert np.array_equal(panel(frames[i], k, shown.size), np.asarray(shown))


def test_raw_latents_are_grey_and_not_decoded(pipe: Pipeline) -> None:
    recording = recorded(pipe, steps=1, height=16, width=24)
    x_t = recording["x_t"][0, 0]  # 4 channels of (2, 3)
    (first, _) = list(film_frames(pipe, recording, ["x_t"], raw=True))
    wanted = torch.cat([torch.cat([x_t[0], x_t[1]], 1), torch.cat([x_t[2], x_t[3]], 1)])
    grey = ((wanted + 4) / 8 * 255).round().clamp(0, 255)
    shown = panel(first, 0, (6 * 64, 4 * 64))[32::64, 32::64]
    assert shown.shape == (4, 6, 3)
    assert np.array_equal(shown, np.repeat(grey.numpy().astype(np.uint8)[..., None], 3, axis=2))


@pytest.mark.parametrize("panels", [[], ["x_1"]])
def test_panels_that_there_are_not(pipe: Pipeline, panels: list[str]) -> None:
    with pytest.raises(SettingError, match="expected some of x_t, x0, next"):
        next(film_frames(pipe, recorded(pipe, steps=1), panels))


def test_small_images_are_enlarged_by_whole_numbers() -> None:
    assert enlarged(Image.new("RGB", (100, 120))).size == (200, 240)
    assert enlarged(Image.new("RGB", (512, 300))).size == (512, 300)


# --- files ----------------------------------------------------------------------------------


def colours(count: int, size: tuple[int, int] = (31, 21)) -> list[Image.Image]:
    return [Image.new("RGB", size, (60 * k, 255 - 60 * k, 90)) for k in range(count)]


def n_frames(film: Any) -> int:
    """Animated formats have it, and Pillow's types do not say so."""
    return int(film.n_frames)


def test_a_gif_has_every_frame_and_the_last_stays() -> None:
    file = io.BytesIO()
    write_film(colours(4), file, ".gif", fps=8, comment="how it was made")
    with Image.open(file) as gif:
        assert n_frames(gif) == 4
        assert gif.info["comment"] == b"how it was made"
        assert gif.info["loop"] == 0
        durations = []
        for k, wanted in enumerate(colours(4)):
            gif.seek(k)
            durations.append(gif.info["duration"])
            assert gif.convert("RGB").getpixel((5, 5)) == wanted.getpixel((5, 5))
    assert durations == [120, 120, 120, 1000 * LAST]


def test_an_mp4_has_every_frame_and_the_last_stays() -> None:
    av = pytest.importorskip("av")
    file = io.BytesIO()
    write_film(colours(4), file, ".mp4", fps=8, comment="how it was made")
    file.seek(0)
    with av.open(file) as container:
        assert container.metadata["comment"] == "how it was made"
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 8
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 3 + LAST * 8
    for frame, wanted in zip(frames, colours(4), strict=False):
        assert frame.shape == (22, 32, 3)  # even sides
        # Colours are coded as brightness and two differences, in whole numbers.
        assert np.abs(frame[5, 5].astype(int) - wanted.getpixel((5, 5))).max() <= 6


@pytest.mark.parametrize("name", ["film.png", "film", "film.mp4.zip"])
def test_other_kinds_of_files_are_refused(name: str) -> None:
    with pytest.raises(OutputError, match=r"expected a name that ends in \.mp4 or \.gif"):
        check_film(Path(name))


def test_the_film_command_shows_what_is_asked_for(folder: Path, tmp_path: Path) -> None:
    widths = []
    for name, given in (("two", []), ("three", ["--show", "x_t", "--show", "x0", "--show", "next"]),
                        ("raw", ["--show", "x_t", "--latents"])):  # fmt: skip
        out = tmp_path / f"{name}.gif"
        asked = ["film", "road", "--model", str(folder), "--steps", "1", "--out", str(out)]
        assert main([*asked, *given]) == 0
        with Image.open(out) as film:
            widths.append(film.width)
    two, three, raw = widths
    assert 2 * (three - GAP) == 3 * (two - GAP)
    assert raw < two


def test_the_film_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "film.gif"
    asked = ["film", "road", "--model", str(folder), "--steps", "2", "--seed", "3"]
    assert main([*asked, "--scheduler", "ddim", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 3
    with Image.open(out) as gif:
        recipe = json.loads(gif.info["comment"])
    assert recipe["command"] == "film"
    assert recipe["seeds"] == [3]
    assert recipe["arguments"]["prompt"] == "road"
    before = out.read_bytes()
    assert main([*asked, "--out", str(out)]) == 2
    assert "exists" in capsys.readouterr().err
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--fps", "0"], "fps is 0.0; expected a number from 0.1 to 60"),
        (["--fps", "nan"], "fps is nan"),
        (["--seed", str(2**70)], "seed is"),
        (["--out", "film.avi"], "expected a name that ends in .mp4 or .gif"),
        (["--steps", "0"], "steps is 0"),
    ],
)
def test_what_a_film_cannot_be(
    given: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["film", "road", *given]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# --- sweeps ---------------------------------------------------------------------------------


def test_a_sweep_is_its_runs(pipe: Pipeline) -> None:
    over: dict[str, Any] = {"scheduler": ["ddim", "euler"], "guidance": [1.0, 7.5]}
    made = sweep(pipe, "snowy road", over, seed=4, steps=2)
    assert list(made) == [
        f"scheduler {name}\nguidance {value}"
        for name in ("ddim", "euler")
        for value in ("1", "7.5")
    ]
    alone = pipe.with_scheduler("euler").generate("snowy road", [4], steps=2, guidance=7.5)
    last = made["scheduler euler\nguidance 7.5"]
    assert np.array_equal(np.asarray(last), np.asarray(alone[0]))


def test_a_sweep_of_a_technique_s_settings(pipe: Pipeline) -> None:
    def make(**given: Any) -> Image.Image:
        edits = [Edit("a snowy road", **given)]
        return prompt_to_prompt(pipe, "a sunny road", edits, [3], steps=2).targets[0][0]

    made = sweep_function(make, {"cross_replace": [0.0, 1.0], "self_replace": [0.0, 0.5]})
    assert list(made) == [
        f"cross_replace {cross}\nself_replace {own}" for cross in ("0", "1") for own in ("0", "0.5")
    ]
    alone = make(cross_replace=1.0, self_replace=0.5)
    assert np.array_equal(np.asarray(made["cross_replace 1\nself_replace 0.5"]), np.asarray(alone))


@pytest.mark.parametrize(
    ("over", "sentence"),
    [
        ({}, "expected one setting or two"),
        ({"scale": []}, "expected one setting or two, with values"),
        ({"a": [1], "b": [1], "c": [1]}, "expected one setting or two"),
        ({"scale": range(101)}, "`over` asks for 101 images; expected at most 100"),
    ],
)
def test_functions_that_cannot_be_swept(over: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence):
        sweep_function(lambda **_: Image.new("RGB", (1, 1)), over)


def test_an_image_by_the_step_at_which_the_run_begins(
    pipe: Pipeline, gradient: Image.Image
) -> None:
    image = to_tensor(gradient)
    under = pipe.with_scheduler("ddim")
    made = sweep(under, "road", {"start": [0, 3]}, image=image, steps=4)
    for start, strength in ((0, 1.0), (3, 0.25)):
        assert strength_from(start, 4) == strength
        alone = under.img2img(image, "road", 0, steps=4, strength=strength)[0]
        assert np.array_equal(np.asarray(made[f"start {start}"]), np.asarray(alone))


@pytest.mark.parametrize("steps", [1, 3, 7, 25, 50, 1000])
def test_every_start_has_its_strength(steps: int) -> None:
    from pare.schedulers import start_index

    assert [start_index(steps, strength_from(k, steps)) for k in range(steps)] == list(range(steps))
    with pytest.raises(SettingError, match=f"a step from 0 to {steps - 1}"):
        strength_from(steps, steps)


@pytest.mark.parametrize(
    ("over", "sentence"),
    [
        ({}, "0 settings are to change"),
        ({"guidance": [1], "steps": [1], "rescale": [0]}, "3 settings are to change"),
        ({"eta": [1]}, "'eta' cannot be swept"),
        ({"guidance": []}, "guidance has no values"),
        ({"guidance": [float("nan")]}, "`guidance` is nan"),
        ({"steps": [0]}, "`steps` is 0"),
        ({"start": [0]}, "start needs an image to start from"),
        ({"scheduler": ["ddpn"]}, "there is no scheduler 'ddpn'"),
        ({"guidance": list(range(11)), "steps": list(range(1, 11))}, f"at most {MOST}"),
    ],
)
def test_what_cannot_be_swept(over: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence):
        check_sweep(over, "a road", has_image=False)


def test_strength_and_start_are_one_setting() -> None:
    with pytest.raises(SettingError, match="strength and start are one setting"):
        check_sweep({"strength": [0.5], "start": [1]}, "a road", has_image=True)


def test_the_command_knows_every_setting() -> None:
    for name in set(SETTINGS) - {"replace"}:
        assert name in dict(settings(all_commands()["img2img"]))
    assert parse_axis(" guidance = 1, 7.5") == ("guidance", ["1", "7.5"])
    assert parse_axis("--cross-replace=0") == ("cross_replace", ["0"])
    assert parse_axis("self_blocks=down,mid;up") == ("self_blocks", ["down,mid", "up"])


def test_the_sweep_command(
    folder: Path, tmp_path: Path, gradient: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    gradient.save(tmp_path / "photo.png")
    out, photo = tmp_path / "page.png", ["--image", str(tmp_path / "photo.png")]
    asked = ["sweep", "road", "--model", str(folder), "--steps", "2", *photo]
    assert main([*asked, "--over", "strength=0.5,1", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["over"] == {"strength": [0.5, 1.0]}
    assert main(["rerun", str(out), "--check", "--inputs", str(folder.parent)]) == 0


def test_a_sweep_over_seeds_and_words(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.png"
    asked = ["sweep", "a road", "--model", str(folder), "--steps", "2", "--cell", "0"]
    axes = ["--over", "replace=road,car", "--vary", "seed=3..4"]
    assert main([*asked, *axes, "--out", str(out)]) == 0
    # The same images as `generate` makes of the words and seeds, row by row.
    made = ["generate", "a car", "--model", str(folder), "--steps", "2", "--seed", "4"]
    assert main([*made, "--out", str(tmp_path / "car.png")]) == 0
    cell, alone = last_cell(out, tmp_path / "car.png")
    assert cell == alone


def last_cell(page: Path, like: Path) -> tuple[bytes, bytes]:
    """The pixels of the page's last cell, and those of an image of its size."""
    with Image.open(page) as sheet, Image.open(like) as image:
        corner = (sheet.width - GAP - image.width, sheet.height - GAP - image.height)
        box = (*corner, corner[0] + image.width, corner[1] + image.height)
        return sheet.crop(box).tobytes(), image.tobytes()


@pytest.mark.parametrize(
    ("command", "over", "last"),
    [
        (["p2p", "a road", "a car"], ["cross-replace=0,1"], ["--cross-replace", "1"]),
        (["p2p", "a road", "a car"], ["weight=car=2;car=-1"], ["--weight", "car=-1"]),
        (["p2p", "a road", "a car"], ["replace=car,sea"], ["a road", "a sea"]),
        (["erase", "a road", "--concept", "car"], ["gates=sega,ungated"], ["--gates", "ungated"]),
        (["guide", "a road", "--loss", "blue"], ["scale=1,90", "every=1,2"],
         ["--scale", "90", "--every", "2"]),
        (["blend", "photo.png", "a car", "--mask", "mask.png"], ["background=latent,poisson"],
         ["--background", "poisson"]),
        (["edit", "photo.png", "--from", "a road", "--to", "a car"],
         ["self_replace=0,1", "method=ddim,direct"], ["--self-replace", "1", "--method", "direct"]),
        (["generate", "a road"], ["karras=no,yes", "scheduler=DPM++ 2M"],
         ["--karras", "--scheduler", "dpm++2m"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)  # fmt: skip
def test_any_setting_of_any_command(
    command: list[str], over: list[str], last: list[str], folder: Path, gradient: Image.Image,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    gradient.save("photo.png")
    Image.linear_gradient("L").resize(gradient.size).save("mask.png")
    model = ["--model", str(folder), "--steps", "2", "--seed", "4"]
    axes = [word for axis in over for word in ("--over", axis)]
    swept = ["sweep", "--command", *command, *model, "--cell", "0", *axes, "--out", "page.png"]
    assert main(swept) == 0
    words = [command[0], *last] if over[0].startswith("replace") else [*command, *last]
    assert main([*words, *model, "--out", "one.png"]) == 0
    one = Path("one-target.png" if command[0] == "p2p" else "one.png")
    cell, alone = last_cell(Path("page.png"), one)
    assert cell == alone
    assert main(["rerun", "page.png", "--check", "--inputs", str(folder.parent)]) == 0
    assert main(["rerun", "page.png", "--show"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"pare sweep --command {command[0]} ")


def test_commands_are_an_axis(
    folder: Path, tmp_path: Path, gradient: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    gradient.save(tmp_path / "photo.png")
    Image.linear_gradient("L").resize(gradient.size).save(tmp_path / "mask.png")
    asked = ["sweep", "--command=img2img,blend", str(tmp_path / "photo.png"), "a car"]
    asked += ["--mask", str(tmp_path / "mask.png"), "--model", str(folder), "--steps", "4"]
    out = tmp_path / "page.png"
    assert main([*asked, "--over", "strength=0.5,1", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["over"] == {
        "command": ["img2img", "blend"],
        "strength": [0.5, 1.0],
    }
    assert main(["rerun", str(out), "--check", "--inputs", str(folder.parent)]) == 0


def test_ranges_on_an_axis() -> None:
    assert parse_axis("steps=1..3,8") == ("steps", ["1", "2", "3", "8"])
    assert parse_axis("replace=sunny road,snowy road") == ("replace", ["sunny road", "snowy road"])
    with pytest.raises(SettingError, match="empty or too long"):
        parse_axis("seed=5..1")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--over", "guidance"], "expected AXIS=VALUE,VALUE"),
        (["--over", "guidence=1"], "an option of `pare generate` (did you mean 'guidance'?)"),
        (["--over", "guidance=high"], "Invalid value for '--guidance': 'high' is not a valid"),
        (["--over", "steps=1.5"], "Invalid value for '--steps': '1.5' is not a valid integer"),
        (["--over", "steps=0"], "--steps is 0; expected a whole number from 1"),
        (["--over", "steps=1", "--over", "steps=2"], "an axis is given twice"),
        (["--over", "start=1"], "start needs an image to start from"),
        (["--over", "steps=1", "--strength", "0.5"], "--strength needs an image"),
        (["--over", "karras=perhaps"], "--karras is 'perhaps'; expected true or false"),
        (["--over", "guidance=1..40", "--over", "steps=1..3"], "--over asks for 120 images"),
        ([], "0 settings change (none); expected one, or two"),
        (["--command", "film", "--over", "steps=1"], "--command is 'film'; expected one of gen"),
        (["--command", "p2p", "--over", "steps=1"], "Missing argument 'TARGET...'"),
        (["--command", "p2p", "b", "--over", "self_replace=2"], "--self-replace is 2.0"),
        (["--command", "p2p", "b", "--over", "start=1"], "an option of `pare p2p` (did you mean"),
    ],
)
def test_sweeps_that_cannot_be(
    given: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "road", *given, "--out", str(tmp_path / "page.png")]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# --- without a scheduler --------------------------------------------------------------------


def test_one_leap_is_one_look_at_pure_noise(pipe: Pipeline) -> None:
    noise = pipe.noise([2]).draw(pipe.latent_shape())
    level = pipe.scheduler.schedule.level(999)
    expected = pipe.predict(noise, level, pipe.encode_prompts("road"), 3.0).x0
    assert torch.equal(one_leap(pipe, "road", seed=2, guidance=3.0), expected)


def test_subtracting_noise_by_hand(pipe: Pipeline) -> None:
    under, prompts = pipe.with_scheduler("ddim"), pipe.encode_prompts("road")
    timesteps = under.scheduler.timesteps(2)
    x = under.noise([2]).draw(under.latent_shape())
    for level in timesteps.levels[:2]:
        x = x - 0.75 * under.predict(x, level, prompts, 7.5).eps
    made = subtract_noise(under, "road", seed=2, steps=2, ratio=1.5)
    torch.testing.assert_close(made, x, rtol=1e-5, atol=1e-5)


def test_the_page_s_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "film.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    exec(code.replace("steps=10", "steps=1"), {})
    with Image.open("noise.gif") as film:
        assert n_frames(film) == 2
