"""`pare …`: parsing and printing only.

Every command reads in the same order: check everything that a user can get wrong, the
output's name included; load the model; run; write.  torch is imported only when a
command runs, so that `pare --help` answers at once.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

import pare
from pare import settings
from pare.console import progress, run_in_words
from pare.errors import OutputError
from pare.files import check_output, sha256, write_whole

if TYPE_CHECKING:
    from PIL import Image

    from pare.pipeline import Pipeline
    from pare.recipe import Recipe
    from pare.verify import Report
    from pare.verify.bench import BenchReport
    from techniques.blended import Difference

# pare.schedulers imports torch, so its names stand here too; a test holds them together.
SCHEDULER_NAMES = ("ddim", "dpm++2m", "lms", "pndm", "euler", "euler-ancestral")
DTYPE_NAMES = ("auto", "float32", "float16", "bfloat16")

Command = TypeVar("Command", bound=Callable[..., None])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `pare` with the given arguments (default: the process's); the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)

    def body() -> int:
        with cli.make_context("pare", given) as context:
            cli.invoke(context)
        return 0

    return run_in_words(body)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(pare.__version__, prog_name="pare", message="%(prog)s %(version)s")
def cli() -> None:
    """Stable Diffusion with nothing hidden: make pictures, edit them, check the model.

    Results go to stdout, everything else to stderr.
    """


# --- options that commands share ---------------------------------------------------------


def checked(check: Callable[[Any], Any]) -> Callable[..., Any]:
    """An option's callback that applies a check of `pare.settings` unless the option is absent."""

    def callback(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        return None if value is None else check(value)

    return callback


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, in the order in which --help lists them."""

    def decorate(command: Command) -> Command:
        return functools.reduce(lambda inner, add: add(inner), reversed(decorators), command)

    return decorate


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")

model_options = options(
    click.option("--model", default="roads", show_default=True,
                 help="`roads` (built in), a model's folder in the Hub's layout, a single file, or "
                      "OWNER/NAME on the Hub."),
    click.option("--device", default="auto", show_default=True,
                 help="auto, cpu, cuda, cuda:1, mps."),
    click.option("--dtype", default="auto", show_default=True, type=click.Choice(DTYPE_NAMES),
                 help="The number type of the weights; auto: float16 on a GPU, else float32."),
    click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads."),
)  # fmt: skip

tokenizer_option = click.option(
    "--tokenizer", type=click.Path(path_type=Path), metavar="FOLDER",
    help="For a single file that has not CLIP's own tokens.",
)  # fmt: skip

revision_option = click.option(
    "--revision", metavar="NAME",
    help="A branch, a tag or a commit's hash of a model on the Hub; the main branch if not given.",
)  # fmt: skip

scheduler_options = options(
    click.option("--scheduler", type=click.Choice(SCHEDULER_NAMES),
                 help="The solver; the model's own if not given."),
    click.option("--karras/--no-karras", default=None, help="Karras sigmas, where they apply."),
    click.option("--eta", type=float, callback=checked(settings.check_eta),
                 help="DDIM's share of fresh noise, 0 to 1."),
)  # fmt: skip

sampling_options = options(
    click.option("--steps", type=int, default=25, show_default=True,
                 callback=checked(settings.check_steps), help="Sampling steps, 1 to 1000."),
    click.option("--guidance", type=float, default=7.5, show_default=True,
                 callback=checked(settings.check_guidance),
                 help="Scale of classifier-free guidance; 1: none."),
    click.option("--rescale", type=float, default=0.0, show_default=True,
                 callback=checked(settings.check_rescale),
                 help="Draw the guided contrast back, 0 to 1."),
    click.option("--negative", default="", callback=checked(settings.check_prompt),
                 help="What the picture should not show."),
)  # fmt: skip

output_options = options(
    click.option("--seed", type=int, multiple=True, default=(0,),
                 help="The noise to start from (0); give it several times for several pictures."),
    click.option("--count", type=int, default=1, show_default=True,
                 help="So many pictures, with consecutive seeds."),
    click.option("--out", type=click.Path(path_type=Path), default=Path(),
                 help="NAME.png (NAME-SEED.png for several seeds) or a folder (COMMAND-SEED.png "
                      "in it); the current folder if not given."),
    click.option("--force", is_flag=True, help="Overwrite existing files."),
    json_option,
)  # fmt: skip

generate_options = click.option(
    "--size", metavar="WxH", callback=checked(settings.parse_size),
    help="Multiples of 8; the size that the model was trained at if not given.",
)  # fmt: skip

img2img_options = options(
    click.option("--strength", type=float, default=0.8, show_default=True,
                 callback=checked(settings.check_strength),
                 help="How much of the trajectory is run: 1 keeps nothing of IMAGE."),
    click.option("--size", metavar="WxH", callback=checked(settings.parse_size),
                 help="Work at this size (multiples of 8); IMAGE's own if not given."),
)  # fmt: skip

blend_options = options(
    click.option("--mask", required=True, type=click.Path(path_type=Path),
                 help="White is edited, black is kept; of IMAGE's shape, in any size and mode."),
    click.option("--invert-mask", is_flag=True, help="Black is edited, white is kept."),
    click.option("--strength", type=float, default=0.95, show_default=True,
                 callback=checked(settings.check_strength),
                 help="How much of the trajectory is run: 1 forgets what was under the mask."),
    click.option("--background", type=click.Choice(["paste", "poisson", "latent"]),
                 default="paste", show_default=True,
                 help="Outside the mask: IMAGE's pixels, exactly, with a soft seam inside it "
                      "(paste) or with the edit's gradients (poisson); or what the VAE makes of "
                      "them (latent)."),
    click.option("--feather", type=float, default=4.0, show_default=True,
                 callback=checked(lambda width: settings.check_number("feather", width, 0, 1000)),
                 help="Width of paste's seam in pixels; 0: hard."),
    click.option("--shrink", type=click.IntRange(0, 16), default=0, show_default=True,
                 help="For thin masks: begin with one that is larger by so many latent pixels."),
    click.option("--cover", is_flag=True, help="Edit every latent pixel that the mask touches."),
    click.option("--history", type=click.Choice(["keep", "drop"]), default="keep",
                 show_default=True, help="Whether a multistep solver remembers across a blend."),
    click.option("--rounding", type=click.Choice(["nearest", "up"]), default="nearest",
                 show_default=True, help="Of steps x strength to whole steps."),
    click.option("--sample", is_flag=True, help="Draw IMAGE's latents from the VAE's posterior."),
)  # fmt: skip

verify_options = click.option(
    "--only", multiple=True, metavar="GROUP",
    help="text, unet, vae, schedulers, generate, img2img or blend; several if repeated.",
)  # fmt: skip

bench_options = click.option(
    "--pairs", type=click.IntRange(1, 100), default=5, show_default=True,
    help="How often both sides run, taking turns.",
)  # fmt: skip

convert_options = options(
    click.option("--check", "check_only", is_flag=True,
                 help="List every tensor of SOURCE, a single file, and write nothing."),
    click.option("--ema/--no-ema", default=None,
                 help="The UNet's moving average, or its last step; the average if there is one."),
    click.option("--prediction", type=click.Choice(("eps", "v")),
                 help="What the UNet predicts; guessed, and said how, if not given."),
    click.option("--dtype", default="keep", show_default=True,
                 type=click.Choice(("keep", *DTYPE_NAMES[1:])), help="The weights' type."),
    click.option("--tokenizer", type=click.Path(path_type=Path), metavar="FOLDER",
                 help="vocab.json and merges.txt of a model that has not CLIP's own."),
    click.option("--only", type=click.Choice(("unet", "vae")),
                 help="Of a file that need not have more than this."),
    click.option("--drop", multiple=True, metavar="BEGINNING",
                 help="Pass over tensors whose names begin so."),
    click.option("--old-vae-names", "old_vae", is_flag=True,
                 help="In a folder: the VAE's attention as programs before 2023 want it."),
    click.option("--force", is_flag=True, help="Replace TARGET."),
)  # fmt: skip

prompt_argument = click.argument("prompt", callback=checked(settings.check_prompt))
image_argument = click.argument("image", type=click.Path(path_type=Path))


# --- a run: what is planned before the model works, and written after it ------------------


@dataclass(frozen=True)
class Run:
    """What a command was given, and where its pictures go."""

    command: str
    arguments: Mapping[str, Any]
    inputs: Mapping[str, Mapping[str, str]]
    seeds: list[int]
    paths: list[Path]
    force: bool
    as_json: bool
    started: float

    @classmethod
    def plan(cls) -> Run:
        """The run that the command line asks for, every output checked and input hashed.

        Raises:
            OutputError, SettingError: a file that cannot or must not be written; seeds that
                cannot be.
            OSError: an input that cannot be opened.
        """
        started = time.perf_counter()
        context = click.get_current_context()
        command, given = str(context.info_name), context.params
        seeds = settings.consecutive_seeds(given["seed"], given["count"])
        paths = output_paths(given["out"], command, seeds)
        for path in paths:
            check_output(path, force=given["force"])
        inputs: dict[str, Mapping[str, str]] = {
            name: {"path": str(given[name]), "sha256": sha256(given[name])}
            for name in ("image", "mask")
            if name in given
        }
        arguments = {name: plain(value) for name, value in given.items()}
        return cls(
            command, arguments, inputs, seeds, paths, given["force"], given["as_json"], started
        )

    def write(self, pipe: Pipeline, images: Sequence[Image.Image], **report: object) -> None:
        """Write every picture with its recipe; print the paths, or all as a JSON object."""
        from pare.recipe import save_png

        seconds = time.perf_counter() - self.started
        for index, (image, path) in enumerate(zip(images, self.paths, strict=True)):
            recipe = self.recipe(pipe, index)
            write_whole(path, functools.partial(save_png, image, recipe), force=self.force)
            if not self.as_json:
                click.echo(path)
        if self.as_json:
            pictures = [
                {"path": str(path), "seed": seed, "width": image.width, "height": image.height}
                for path, seed, image in zip(self.paths, self.seeds, images, strict=True)
            ]
            result = {"command": self.command, "pictures": pictures, "seconds": round(seconds, 3)}
            click.echo(json.dumps(result | report, indent=2))

    def recipe(self, pipe: Pipeline, index: int) -> Recipe:
        """The recipe of the picture at `index` of the run."""
        import torch

        from pare.recipe import Recipe, current_versions

        model = plain(pipe.source)
        model.pop("path", None)  # where it lies on this machine is nobody else's business
        return Recipe(
            command=self.command,
            arguments=self.arguments,
            inputs=self.inputs,
            model=model,
            scheduler=pipe.scheduler.describe(),
            seeds=self.seeds,
            index=index,
            device=str(pipe.device),
            dtype=str(pipe.dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
            versions=current_versions(),
        )


def output_paths(out: Path, command: str, seeds: Sequence[int]) -> list[Path]:
    """One file name a seed: in the folder `out`, or made from the name `out`."""
    if out.is_dir():
        return [out / f"{command}-{seed}.png" for seed in seeds]
    if out.suffix.lower() != ".png":
        raise OutputError(
            f"--out is {out}",
            expected="a name that ends in .png (which keeps the recipe), or a folder that exists",
        )
    if len(seeds) == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{seed}{out.suffix}") for seed in seeds]


def plain(value: Any) -> Any:
    """The value as JSON has it: paths as text, tuples as lists, dataclasses as objects."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def load_pipeline(
    given: Mapping[str, Any], preferred: Mapping[str, object] | None = None
) -> Pipeline:
    """The model and scheduler that the options name; `preferred` if they name no scheduler."""
    from pare.pipeline import Pipeline

    use_threads(given)
    names = ("scheduler", "karras", "eta")
    chosen = {name: given[name] for name in names if given[name] is not None}
    if "scheduler" not in chosen:
        chosen = {**(preferred or {}), **chosen}
    return Pipeline.from_pretrained(
        given["model"],
        device=given["device"],
        dtype=given["dtype"],
        revision=given["revision"],
        tokenizer=given["tokenizer"],
        **chosen,
    )


def use_threads(given: Mapping[str, Any]) -> None:
    import torch

    if given["threads"] is not None:
        torch.set_num_threads(given["threads"])


def warn_of_size(pipe: Pipeline, picture: Image.Image, remedy: str) -> None:
    """Say so if a picture is far larger than what the model has seen: slow, and repetitive."""
    _, h, w = pipe.latent_shape()
    width, height = w * settings.SIZE_STEP, h * settings.SIZE_STEP
    if picture.width * picture.height > 8 * width * height:
        warnings.warn(
            f"the picture is {picture.width} x {picture.height}, and the model was trained at "
            f"{width} x {height}: this will be slow and may repeat things; {remedy}",
            stacklevel=2,
        )


def sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling settings by the names that the pipeline gives them."""
    return {name: given[name] for name in ("steps", "guidance", "rescale", "negative")}


# --- commands ----------------------------------------------------------------------------


@cli.command()
@prompt_argument
@generate_options
@sampling_options
@scheduler_options
@model_options
@revision_option
@tokenizer_option
@output_options
def generate(prompt: str, size: tuple[int, int] | None, **given: Any) -> None:
    """Make pictures from PROMPT."""
    from pare.image import to_pil

    run = Run.plan()
    pipe = load_pipeline(given)
    width, height = size or (None, None)
    images = pipe.generate(
        prompt, run.seeds, width=width, height=height, progress=progress(), **sampling(given)
    )
    run.write(pipe, to_pil(images))


@cli.command()
@image_argument
@prompt_argument
@img2img_options
@sampling_options
@scheduler_options
@model_options
@revision_option
@tokenizer_option
@output_options
def img2img(
    image: Path, prompt: str, strength: float, size: tuple[int, int] | None, **given: Any
) -> None:
    """Make IMAGE over, as PROMPT says; the result has IMAGE's size."""
    from pare.image import fit, load_image, to_pil, to_tensor

    run = Run.plan()
    picture, restore = fit(load_image(image), size)
    pipe = load_pipeline(given)
    warn_of_size(pipe, picture, "--size works smaller")
    images = pipe.img2img(
        to_tensor(picture), prompt, run.seeds, strength=strength, progress=progress(),
        **sampling(given),
    )  # fmt: skip
    run.write(pipe, [restore(made) for made in to_pil(images)])


@cli.command()
@image_argument
@prompt_argument
@blend_options
@sampling_options
@scheduler_options
@model_options
@revision_option
@tokenizer_option
@output_options
def blend(image: Path, mask: Path, invert_mask: bool, prompt: str, **given: Any) -> None:
    """Repaint what the mask marks in IMAGE as PROMPT says; keep the rest.

    The scheduler is dpm++2m with Karras sigmas if none is given.
    """
    from pare.image import load_image, load_mask, match_mask

    run = Run.plan()
    picture, marked = load_image(image), load_mask(mask, invert_mask)
    match_mask(marked, picture.size)  # before the model loads; `blend` does it again

    from techniques import blended

    pipe = load_pipeline(given, blended.PREFERRED_SCHEDULER)
    warn_of_size(pipe, picture, "shrink it first")
    result = blended.blend(
        pipe, picture, marked, prompt, run.seeds,
        strength=given["strength"],
        background=given["background"],
        feather_radius=given["feather"],
        shrink=given["shrink"],
        cover=given["cover"],
        history_choice=given["history"],
        rounding=given["rounding"],
        sample=given["sample"],
        progress=progress(),
        **sampling(given),
    )  # fmt: skip
    run.write(pipe, result.images, **result.report())
    if result.outside and result.vae_alone:
        for path, difference in zip(run.paths, result.outside, strict=True):
            click.echo(f"{path}, outside the mask: {difference_in_words(difference)}", err=True)
        alone = difference_in_words(result.vae_alone)
        click.echo(f"(through the VAE and back, without an edit: {alone})", err=True)


def difference_in_words(difference: Difference) -> str:
    if difference.largest == 0:
        return "IMAGE's pixels, exactly"
    return f"{difference.psnr:.1f} dB from IMAGE, at most {difference.largest} of 255"


@cli.command()
@model_options
@verify_options
@json_option
def verify(only: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Compare pare with diffusers on the same weights; exit code 1 if a bound is broken.

    Needs the extra: pip install "pare[verify]".
    """
    from pare.verify import run_verify

    use_threads(given)
    report = run_verify(
        given["model"],
        device=given["device"],
        dtype=given["dtype"],
        only=only or None,
        progress=say_on_terminal(),
    )
    print_report(report, as_json)


@cli.command()
@model_options
@bench_options
@json_option
def bench(pairs: int, as_json: bool, **given: Any) -> None:
    """Measure speed and memory beside diffusers; exit code 1 if a bound is broken.

    --model may also be sd1 or sd21: random weights at true size. The bounds are meant for a
    machine that does nothing else. Needs the extra: pip install "pare[verify]".
    """
    from pare.verify.bench import run_bench

    use_threads(given)
    report = run_bench(
        given["model"],
        device=given["device"],
        dtype=given["dtype"],
        pairs=pairs,
        progress=say_on_terminal(),
    )
    print_report(report, as_json)


@cli.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path), required=False)
@convert_options
@json_option
def convert(
    source: Path, target: Path | None, check_only: bool, dtype: str, as_json: bool, **given: Any
) -> None:
    """Convert SOURCE to TARGET: a single file to the Hub's folder layout, or back.

    TARGET is a single file if its name ends in .safetensors or .ckpt, else a folder. Nothing
    in a .ckpt is run. --check exits with code 2 if the file would not load.
    """
    import torch

    import weights_convert

    if check_only:
        looked_at = {name: given[name] for name in ("ema", "only", "drop")}
        rows = weights_convert.check(source, **looked_at)
        print_rows([dataclasses.asdict(row) for row in rows], as_json)
        weights_convert.check_rows(source, rows)
        return
    if target is None:
        raise click.UsageError("Missing argument 'TARGET' (or the option --check).")
    done = weights_convert.convert(
        source, target, dtype=None if dtype == "keep" else getattr(torch, dtype), **given
    )
    for note in done.notes:
        click.echo(f"pare: {note}", err=True)
    click.echo(json.dumps(plain(done), indent=2) if as_json else target)


def print_rows(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """A checkpoint's tensors, one a line: status, type, shape, name."""
    if as_json:
        click.echo(json.dumps(plain(rows), indent=2))
        return
    for row in rows:
        shape = " ".join(map(str, row["shape"]))
        click.echo(f"{row['name']}  {shape}  {row['dtype']}  {row['status']}")


def print_report(report: Report | BenchReport, as_json: bool) -> None:
    """The table, or the JSON; leaves with exit code 1 if a bound is broken."""
    click.echo(json.dumps(report.to_json(), indent=2) if as_json else report.table())
    if not report.passed:
        click.get_current_context().exit(1)


def say_on_terminal() -> Callable[[str], None] | None:
    """What a long command tells about its progress, for who watches."""
    if not sys.stderr.isatty():
        return None
    return lambda words: click.echo(f"pare: {words}", err=True)
