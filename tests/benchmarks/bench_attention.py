"""How much batching equal windows gains over a loop over windows, in the same run.

python -m tests.benchmarks.bench_attention
"""

import time
from collections.abc import Callable
from functools import partial

import click
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from seedvr2.models.attention import packed_attention
from seedvr2.models.windows import Grid, window_layout, windows

NUM_WINDOWS = (4, 3, 3)


def looped_attention(
    q: Tensor, k: Tensor, v: Tensor, grids: tuple[Grid, ...], text_length: int, shifted: bool
) -> tuple[Tensor, Tensor]:
    """Window attention of equally long texts, one window after another."""
    sizes = [t * h * w for t, h, w in grids] + [text_length] * len(grids)
    pieces = [torch.split(x, sizes) for x in (q, k, v)]
    videos, texts = [], []
    for sample, grid in enumerate(grids):
        boxes = windows(grid, NUM_WINDOWS, shifted)
        inputs = [piece[sample].view(*grid, *q.shape[1:]) for piece in pieces]
        prompts = [piece[len(grids) + sample] for piece in pieces]
        video, text = torch.empty_like(inputs[0]), torch.zeros_like(prompts[0])
        for box in boxes:
            sequence = (torch.cat((x[box].flatten(0, 2), y)) for x, y in zip(inputs, prompts, strict=True))
            q_, k_, v_ = (rearrange(x, "s h d -> 1 h s d") for x in sequence)
            attended = rearrange(functional.scaled_dot_product_attention(q_, k_, v_), "1 h s d -> s h d")
            video[box] = attended[: len(attended) - text_length].view_as(video[box])
            text += attended[len(attended) - text_length :]
        videos.append(video.flatten(0, 2))
        texts.append(text / len(boxes))
    return torch.cat(videos), torch.cat(texts)


def fastest(runs: tuple[Callable[[], object], ...], repeats: int) -> list[float]:
    """Seconds of the fastest of some calls of each; they take turns, so that a busy machine hits all."""
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, taken in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
    return [min(taken) for taken in seconds]


@click.command()
@click.option("--heads", default=4, show_default=True, help="Attention heads.")
@click.option("--head-dim", default=32, show_default=True, help="Channels per head.")
@click.option("--text-length", default=58, show_default=True, help="Text tokens.")
@click.option("--repeats", default=15, show_default=True, help="Calls to take the fastest of.")
@torch.no_grad()
def main(heads: int, head_dim: int, text_length: int, repeats: int) -> None:
    """Print the time of the loop over the time of the batched windows; above 1 is faster."""
    torch.manual_seed(0)
    batches = [((5, 16, 16),), ((1, 45, 80),), ((6, 30, 40),), ((20, 8, 64),), ((5, 8, 8),) * 16]
    for grids in batches:
        for shifted in (False, True):
            texts = (text_length,) * len(grids)
            layout = window_layout(grids, texts, NUM_WINDOWS, shifted, torch.device("cpu"))
            tokens = sum(layout.video_lengths) + sum(texts)
            q, k, v = torch.randn(3, tokens, heads, head_dim).unbind()
            loop = partial(looped_attention, q, k, v, grids, text_length, shifted)
            batch = partial(packed_attention, q, k, v, layout, backend="sdpa")
            looped, batched = (1e3 * seconds for seconds in fastest((loop, batch), repeats))
            click.echo(
                f"{len(grids):2} x grid {grids[0]!s:12} {'shifted' if shifted else 'regular'}, "
                f"{len(layout.offsets) - 1:3} windows: "
                f"loop {looped:7.2f} ms, batched {batched:7.2f} ms, ratio {looped / batched:.2f}"
            )


if __name__ == "__main__":
    main()
