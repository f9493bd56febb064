"""What streaming costs, what the collapsed kernel of images gains, and what bfloat16 gains, in the same run.

python -m tests.benchmarks.bench_autoencoder
"""

import copy
from collections.abc import Callable
from functools import partial

import click
import torch
from torch import Tensor

from seedvr2.config import load_preset
from seedvr2.models.autoencoder import Autoencoder
from seedvr2.models.causal_conv import CacheWalk, CausalConv3d
from tests.benchmarks.bench_attention import fastest


class FullKernelConv3d(CausalConv3d):
    """The convolution without the short cut: an image stands behind two copies of itself."""

    def forward(self, x: Tensor, walk: CacheWalk) -> Tensor:
        """Convolve one image (B, C, 1, H, W)."""
        kernel = self.weight.shape[2]
        return self._convolve(x.expand(-1, -1, kernel, -1, -1), self.weight)


def with_full_kernels(model: Autoencoder) -> Autoencoder:
    """A copy that computes images with all taps of its kernels."""
    full = copy.deepcopy(model)
    for module in full.modules():
        if isinstance(module, CausalConv3d):
            module.__class__ = FullKernelConv3d
    return full


def encode_stream(model: Autoencoder, pixels: Tensor) -> Tensor:
    """Posterior means by slices of 4 frames."""
    return torch.cat([posterior.mean for posterior in model.encode_stream([pixels])], dim=2)


def decode_stream(model: Autoencoder, latent: Tensor) -> Tensor:
    """Pixels by slices of one latent frame."""
    return torch.cat(list(model.decode_stream([latent])), dim=2)


def compare(
    name: str, slow: Callable[[], Tensor], fast: Callable[[], Tensor], labels: tuple[str, str], repeats: int
) -> None:
    """Print both times, their ratio, and how far the results are apart."""
    difference = (slow().float() - fast().float()).abs().max().item()
    seconds = fastest((slow, fast), repeats)
    click.echo(
        f"{name}: {labels[0]} {1e3 * seconds[0]:8.1f} ms, {labels[1]} {1e3 * seconds[1]:8.1f} ms, "
        f"ratio {seconds[0] / seconds[1]:5.2f}, largest difference {difference:.1e}"
    )


@click.command()
@click.option("--preset", default="nano", show_default=True, help="Model size.")
@click.option("--side", default=128, show_default=True, help="Pixels on each side, a multiple of 8.")
@click.option("--frames", default=17, show_default=True, help="Frames of the clip, 4n + 1.")
@click.option("--repeats", default=3, show_default=True, help="Calls to take the fastest of.")
@torch.inference_mode()
def main(preset: str, side: int, frames: int, repeats: int) -> None:
    """Print the time of the first way over that of the second; above 1 the second is faster."""
    torch.manual_seed(0)
    model = Autoencoder(load_preset(preset).autoencoder).eval()
    full, half = with_full_kernels(model), copy.deepcopy(model).to(torch.bfloat16)
    clip, latent = torch.rand(1, 3, frames, side, side) * 2 - 1, None
    latent = model.to_latent(model.encode(clip).mode())
    click.echo(f"{preset}, {frames} frames of {side}x{side}, {torch.get_num_threads()} threads")

    def encode(model: Autoencoder, pixels: Tensor) -> Tensor:
        return model.encode(pixels).mean

    labels = ("whole", "streamed")
    streams = (partial(encode_stream, model, clip), partial(decode_stream, model, latent))
    compare("encode a clip  ", partial(encode, model, clip), streams[0], labels, repeats)
    compare("decode a clip  ", partial(model.decode, latent), streams[1], labels, repeats)
    labels = ("all taps", "collapsed")
    image, code = clip[:, :, :1], latent[:, :, :1]
    compare("encode an image", partial(encode, full, image), partial(encode, model, image), labels, repeats)
    compare("decode an image", partial(full.decode, code), partial(model.decode, code), labels, repeats)
    labels = ("float32", "bfloat16")
    clip_half, latent_half = clip.bfloat16(), latent.bfloat16()
    compare("encode a clip  ", streams[0], partial(encode_stream, half, clip_half), labels, repeats)
    compare("decode a clip  ", streams[1], partial(decode_stream, half, latent_half), labels, repeats)


if __name__ == "__main__":
    main()
