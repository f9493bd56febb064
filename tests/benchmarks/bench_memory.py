"""Peak memory of restoring a long video over that of a short one of the same frame size.

python -m tests.benchmarks.bench_memory

Each restoration has a process of its own. This process stays small, and so imports no torch: a child's peak
starts at the size of the process that made it.
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np

from tests.video.clips import make_clip

UNIT = 1024 if sys.platform == "linux" else 1024**2
"""Units of ru_maxrss in one MiB: KiB on Linux, bytes elsewhere."""


def restore_once(source: str, output: str, scale: float, segment_frames: int) -> None:
    """Restore with an untrained model of the bundled size; print the peaks before and after, in MiB."""
    import torch

    from seedvr2.checkpoint import Model, ModelRecord, TextEmbedding
    from seedvr2.config import load_preset
    from seedvr2.models.autoencoder import Autoencoder
    from seedvr2.models.generator import Generator
    from seedvr2.restore import RestoreOptions, restore_video

    torch.manual_seed(0)
    preset = load_preset("nano")
    text = TextEmbedding(*torch.randn(2, 4, preset.generator.text_channels).unbind())
    generator, autoencoder = Generator(preset.generator).eval(), Autoencoder(preset.autoencoder).eval()
    model = Model(ModelRecord(name="nano", stage="untrained"), generator, autoencoder, text)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    restore_video(source, output, model, RestoreOptions(scale=scale, segment_frames=segment_frames))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    click.echo(f"{before / UNIT} {after / UNIT}")


def measure(
    folder: Path, frames: int, size: tuple[int, int], scale: float, segment_frames: int
) -> list[float]:
    """Peaks in MiB of a fresh process: with the model loaded, and after restoring a clip of `frames` frames."""
    rng = np.random.default_rng(0)
    still = np.kron(rng.integers(0, 256, (size[1] // 4 + 8, size[0] // 4 + 8, 3)), np.ones((4, 4, 1)))
    moves = [(index % 16, index // 2 % 16) for index in range(frames)]
    pictures = [still[y : y + size[1], x : x + size[0]].astype(np.uint8) for x, y in moves]
    source = make_clip(folder / f"{frames}.mp4", frames=pictures, options={"g": "30"})
    arguments = f"{str(source)!r}, {str(folder / f'{frames}-restored.mp4')!r}, {scale}, {segment_frames}"
    code = f"from tests.benchmarks.bench_memory import restore_once; restore_once({arguments})"
    run = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    return [float(word) for word in run.stdout.split()]


@click.command()
@click.option("--size", default="96x72", show_default=True, help="WIDTHxHEIGHT of the source's frames.")
@click.option("--scale", default=2.0, show_default=True, help="Enlargement of both sides.")
@click.option("--frames", nargs=2, default=(60, 240), show_default=True, help="Lengths of the two clips.")
@click.option("--segment-frames", default=61, show_default=True, help="Most frames of one segment.")
@click.option("--limit", type=float, help="Exit with 1 if the ratio is above this.")
def main(size: str, scale: float, frames: tuple[int, int], segment_frames: int, limit: float | None) -> None:
    """Print both peaks and their ratio; the goal is at most 1.15."""
    width, height = (int(side) for side in size.split("x"))
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for count in frames:
            before, after = measure(Path(folder), count, (width, height), scale, segment_frames)
            peaks.append(after)
            click.echo(
                f"{count:5} frames of {width}x{height} to {width * scale:.0f}x{height * scale:.0f}: "
                f"peak {after:.0f} MiB, of which {before:.0f} MiB were there before the first frame"
            )
    ratio = peaks[1] / peaks[0]
    click.echo(f"ratio {ratio:.3f}")
    sys.exit(limit is not None and ratio > limit)


if __name__ == "__main__":
    main()
