"""The `seedvr2` command.

Errors that have a remedy are one line on stderr and exit code 1, or 2 if an option is wrong; 130 after Ctrl-C.
Everything else is a bug and keeps its traceback. Heavy modules are imported inside the commands, so that help
comes at once.
"""

import logging
import sys
from pathlib import Path
from typing import Any

import click

from seedvr2 import __version__
from seedvr2.errors import CheckpointError, ConfigError, SeedVR2Error

_OUT_OF_MEMORY = (
    "out of memory; lower --segment-frames, or the size of the output by --resolution, --scale or --area, "
    "or use --dtype bfloat16"
)
_LOG = logging.getLogger(__name__)


class OneLineErrors(click.Group):
    """A group of commands that ends every foreseeable error in one line."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the group's own options; a mistake in them becomes one line."""
        try:
            return super().make_context(*args, **kwargs)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            raise _failure(_usage(error), 2) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; see the module for what its errors become."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise _failure(_usage(error), 2) from error
        except SeedVR2Error as error:
            raise _failure(str(error), 2 if isinstance(error, ConfigError) else 1) from error
        except KeyboardInterrupt as error:
            resumes = ctx.invoked_subcommand in ("restore", "demo", "train")
            kept = "finished parts are kept, the same command continues after them"
            raise _failure(f"interrupted; {kept if resumes else 'nothing is kept'}", 130) from error
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            raise _failure(_OUT_OF_MEMORY, 1) from error


def _failure(message: str, code: int) -> click.exceptions.Exit:
    """Print one line; what is returned ends the command when raised."""
    _LOG.debug("where it happened", exc_info=True)
    click.echo(f"seedvr2: error: {' '.join(message.splitlines())}", err=True)
    return click.exceptions.Exit(code)


def _usage(error: click.UsageError) -> str:
    command = error.ctx.command_path if error.ctx else "seedvr2"
    return f"{_sentence(error.format_message())}; see `{command} --help`"


def _sentence(message: str) -> str:
    return (message[:1].lower() + message[1:]).rstrip(".")


def _is_out_of_memory(error: BaseException) -> bool:
    torch_module = sys.modules.get("torch")
    kinds: tuple[Any, ...] = (MemoryError,)
    if torch_module is not None:
        kinds = (MemoryError, torch_module.OutOfMemoryError)
    return isinstance(error, kinds) or "DefaultCPUAllocator" in str(error)


@click.group(
    cls=OneLineErrors, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, package_name="seedvr2")
def main() -> None:
    """Restore videos in one step with SeedVR2."""


def _start_logging(_ctx: click.Context, _option: click.Parameter, verbose: bool) -> None:
    if verbose:
        logging.basicConfig(stream=sys.stderr, format="%(name)s: %(message)s", force=True)
        for ours in ("pipelines", "seedvr2"):
            logging.getLogger(ours).setLevel(logging.DEBUG)


_verbose = click.option(
    "--verbose",
    is_flag=True,
    expose_value=False,
    callback=_start_logging,
    help="Log what is done, and where an error happened.",
)
_device = click.option(
    "--device",
    default="auto",
    metavar="DEVICE",
    help="auto, cpu, cuda or cuda:N; auto takes CUDA if it is there.",
)
_dtype = click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    help="Numbers that the networks compute in; auto is bfloat16 on CUDA, else float32.",
)


def _pixels(_ctx: click.Context, _option: click.Parameter, value: str | None) -> int | None:
    """An area given as a number or as WIDTHxHEIGHT."""
    if value is None:
        return None
    sides = value.lower().split("x")
    try:
        numbers = [int(side) for side in sides]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or min(numbers) < 1:
        raise click.BadParameter(f"expected pixels such as 1280x720 or 921600, got {value!r}")
    return numbers[0] * numbers[-1] if len(numbers) == 2 else numbers[0]


@main.command(short_help="Restore a video, a picture or a sequence of pictures.")
@click.argument("source", metavar="INPUT")
@click.argument("output", required=False)
@click.option("--model", default="nano", metavar="nano|DIRECTORY", help="The bundled model, or a directory.")
@click.option("--scale", type=float, metavar="FACTOR", help="Multiply both sides by this.")
@click.option("--resolution", type=int, metavar="PIXELS", help="Length of the output's short side.")
@click.option(
    "--area",
    callback=_pixels,
    metavar="WIDTHxHEIGHT",
    help="Pixels of an output frame, of the source's aspect ratio: 1280x720, or a number. Without --scale, "
    "--resolution and --area: 1280x720, and larger sources keep their size.",
)
@click.option(
    "--fit",
    type=click.Choice(["pad", "crop"]),
    default="pad",
    help="Keep the whole picture, or crop sides to multiples of 16 pixels.",
)
@click.option(
    "--color",
    type=click.Choice(["wavelet", "wavelet_capped", "adain", "lab", "hsv", "wavelet_adaptive", "none"]),
    default="wavelet",
    help="How colours are matched to the source.",
)
@click.option(
    "--segment-frames",
    type=int,
    default=61,
    metavar="FRAMES",
    help="Most frames that the model sees at once; fewer take less memory.",
)
@click.option(
    "--overlap", type=int, default=5, metavar="FRAMES", help="Blend this many frames between segments."
)
@click.option("--seed", type=int, default=666, metavar="NUMBER", help="Seed of all noise.")
@click.option(
    "--posterior",
    type=click.Choice(["sample", "mode"]),
    default="sample",
    help="Draw the latent of the source, or take the most likely one.",
)
@click.option(
    "--codec", type=click.Choice(["h264", "hevc"]), default="h264", help="Of a video; pictures are lossless."
)
@click.option("--crf", type=int, default=17, metavar="0..51", help="Constant rate factor, lower is better.")
@click.option(
    "--preset", default="medium", metavar="NAME", help="Effort of the encoder, ultrafast to veryslow."
)
@click.option("--bit-depth", type=click.Choice([8, 10]), default=8, help="Bits per sample of the output.")
@click.option("--no-audio", is_flag=True, help="Leave out the source's audio.")
@click.option("--strict", is_flag=True, help="Refuse a damaged source instead of restoring what decodes.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@_device
@_dtype
@_verbose
def restore(
    source: str, output: str | None, model: str, overwrite: bool, device: str, dtype: str, **choices: Any
) -> None:
    """Restore INPUT: a video, a picture, a directory of pictures, shot-%06d.png or a glob.

    OUTPUT is a video (.mp4 .mov .mkv), a picture (.png .jpg .webp), or a name with %06d.png or a directory that
    ends in a slash. Without it, the result lies beside INPUT and is named after it, with _restored. Run the
    same command again after an interruption, and it continues.
    """
    from rich.console import Console

    from pipelines.console import frames_progress, restored_lines
    from pipelines.options import choose_device, choose_dtype, default_output, model_folder, restore_options
    from seedvr2.checkpoint import load_model
    from seedvr2.restore import restore_video
    from seedvr2.video.io import probe
    from seedvr2.video.output import check_output

    options = restore_options(choices)
    where = choose_device(device)
    numbers = choose_dtype(dtype, where)
    info = probe(source)  # mistakes show before weights are loaded
    options.size(info.height, info.width)
    output = output or default_output(info, options)
    check_output(output, info, options.encode, overwrite, options.audio)
    _LOG.info("%s: %dx%d %s, %s fps, to %s", source, info.width, info.height, info.codec, info.fps, output)
    network = load_model(model_folder(model), device=where, dtype=numbers)
    _LOG.info("model %s, %s, on %s in %s", network.record.name, network.record.digest, where, numbers)
    with frames_progress(Console(stderr=True)) as on_progress:
        restored = restore_video(
            source, output, network, options, overwrite=overwrite, on_progress=on_progress
        )
    for line in restored_lines(restored, source):
        click.echo(line)


@main.command()
@click.argument("folder", metavar="OUTPUT_DIR", type=click.Path(path_type=Path))
@click.option(
    "--generator",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Weights of the generator, .pth or .safetensors: seedvr2_ema_3b or seedvr2_ema_7b.",
)
@click.option(
    "--autoencoder",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Weights of the autoencoder: ema_vae.",
)
@click.option(
    "--positive", metavar="FILE", type=click.Path(path_type=Path), help="Text embedding: pos_emb.pt."
)
@click.option(
    "--negative", metavar="FILE", type=click.Path(path_type=Path), help="Text embedding: neg_emb.pt."
)
@click.option("--overwrite", is_flag=True, help="Replace a model that is in OUTPUT_DIR.")
@_verbose
def convert(
    folder: Path,
    generator: Path,
    autoencoder: Path | None,
    positive: Path | None,
    negative: Path | None,
    overwrite: bool,
) -> None:
    """Make a model directory of released weights.

    Restoring needs all four files; their numbers are kept as they are.
    """
    from pipelines.console import count
    from seedvr2.convert import convert_released

    if (positive is None) != (negative is None):
        raise ConfigError("--positive and --negative belong together; give both or none")
    text = (positive, negative) if positive and negative else None
    record = convert_released(folder, generator, autoencoder, text, overwrite=overwrite)
    size = sum(file.bytes for file in record.files.values())
    click.echo(f"{folder}: model {record.name}, {count(len(record.files), 'file')}, {size / 1e6:,.1f} MB")
    lacking = [
        option
        for option, value in (("--autoencoder", autoencoder), ("--positive and --negative", text))
        if value is None
    ]
    if lacking:
        click.echo(f"not complete: `seedvr2 restore` also needs {', '.join(lacking)}")


@main.command()
@click.argument("path", metavar="nano|DIRECTORY")
@click.option("--json", "as_json", is_flag=True, help="For machines: JSON.")
@_verbose
def show(path: str, as_json: bool) -> None:
    """Show a model: sizes, number types, digests and configuration.

    Ends with exit code 1 if a file is missing or damaged.
    """
    from rich.console import Console

    from pipelines.console import model_facts, model_json, print_model
    from pipelines.options import model_folder

    folder = model_folder(path)
    record, parts = model_facts(folder)
    if as_json:
        click.echo(model_json(record, parts))
    else:
        print_model(Console(), folder, record, parts)
    broken = next((part for part in parts if part.state != "ok"), None)
    if broken is not None:
        raise CheckpointError(
            f"{folder / broken.part}.safetensors: {broken.state}; copy the whole model directory again"
        )


@main.command(short_help="Restore and measure a bundled clip.")
@click.option(
    "--output-dir",
    default="demo",
    metavar="DIRECTORY",
    type=click.Path(path_type=Path),
    help="Where the results go; those of an earlier demo are replaced.",
)
@_device
@_dtype
@_verbose
def demo(output_dir: Path, device: str, dtype: str) -> None:
    """Restore a bundled clip with the bundled model, and measure it against the clean original."""
    from rich.console import Console

    from pipelines.console import frames_progress
    from pipelines.demo import demo_lines, run_demo
    from pipelines.options import choose_device, choose_dtype
    from seedvr2.checkpoint import bundled_model, load_model

    where = choose_device(device)
    model = load_model(bundled_model(), device=where, dtype=choose_dtype(dtype, where))
    material = bundled_model() / "demo"
    with frames_progress(Console(stderr=True)) as on_progress:
        result = run_demo(output_dir, model, material / "lq.mp4", material / "hq.mp4", on_progress)
    for line in demo_lines(result):
        click.echo(line)


@main.command()
@click.argument("recipe", metavar="NAME|FILE.toml")
@click.option(
    "--output", "folder", required=True, metavar="DIRECTORY", type=click.Path(path_type=Path), help="The run."
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a value of the recipe.")
@click.option("--threads", type=click.IntRange(1), metavar="NUMBER", help="CPU threads of one computation.")
@_device
@_verbose
def train(recipe: str, folder: Path, overrides: tuple[str, ...], threads: int | None, device: str) -> None:
    """Train one stage from a recipe, bundled (see `pipelines/recipes`) or your own.

    The model lies in DIRECTORY/model in the end, metrics in DIRECTORY/metrics.jsonl. Run the same command again
    after an interruption, and it continues from the last checkpoint.
    """
    import torch
    from rich.console import Console

    from pipelines.console import steps_progress
    from pipelines.options import choose_device
    from pipelines.train import load_recipe, run_recipe

    if threads:
        torch.set_num_threads(threads)
    chosen = load_recipe(recipe, overrides)
    with steps_progress(Console(stderr=True), chosen.steps) as on_step:
        model = run_recipe(chosen, folder, choose_device(device), on_step)
    click.echo(f"{model}: trained, {chosen.steps:,} steps")
