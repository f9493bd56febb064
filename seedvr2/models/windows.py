"""Adaptive window partition of the video token grid, and the index tensors that let attention use it.

A generator block attends inside windows whose size follows the input's aspect ratio, so a 2K frame is cut
into windows of the size seen in 720p training. Samples of any size are packed along one token axis without
padding; a `WindowLayout` says, for one batch of sizes, where each token goes. It depends on sizes alone, so
it is computed once per batch of sizes and kept by value.

Source: SeedVR2 (arXiv 2506.05301), Sec. 3.2, and the released weights where they depart from it.
"""

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seedvr2.errors import ShapeError

Grid = tuple[int, int, int]
"""Token counts along (frames, height, width)."""

Window = tuple[slice, slice, slice]
"""A box of tokens inside a grid."""

PROXY_AREA = 45 * 80
"""Tokens of one 1280 x 720 frame: 8x autoencoder, 2x2 patches."""

LONGEST_CLIP = 30
"""Latent frames beyond which windows grow no longer."""


def window_size(grid: Grid, num_windows: Grid = (4, 3, 3)) -> Grid:
    """Window size (frames, height, width), in tokens, for one video's token grid.

    Args:
        grid: Token counts (frames, height, width), each at least 1.
        num_windows: Windows per axis on a 720p clip.

    Raises:
        ShapeError: An axis of `grid` is below 1.

    Source: Eq. 1-2. The released weights round the proxy size (half to even) before the division, and take
    the real number of frames, which the equations do not.
    """
    if min(grid) < 1:
        raise ShapeError(f"expected a token grid of at least 1x1x1, got {grid}; use a larger input")
    frames, height, width = grid
    scale = math.sqrt(PROXY_AREA / (height * width))
    proxy = (min(frames, LONGEST_CLIP), max(round(height * scale), 1), max(round(width * scale), 1))
    size = [-(-length // count) for length, count in zip(proxy, num_windows, strict=True)]
    return size[0], size[1], size[2]


def windows(grid: Grid, num_windows: Grid = (4, 3, 3), shifted: bool = False) -> list[Window]:
    """Cut a token grid into windows; every token lies in exactly one.

    Args:
        grid: Token counts (frames, height, width).
        num_windows: Windows per axis on a 720p clip.
        shifted: Move the cuts by half a window, as odd blocks do, on axes with more than one window.

    Returns:
        Boxes in the order of the released code: width outermost, frames innermost. Border windows are
        smaller; nothing wraps around.

    Raises:
        ShapeError: An axis of `grid` is below 1.

    Source: Sec. 3.2; the half-window offset is that of the released weights.
    """
    cut = _shifted_cuts if shifted else _regular_cuts
    frames, rows, columns = (cut(n, p) for n, p in zip(grid, window_size(grid, num_windows), strict=True))
    return [(t, h, w) for w in columns for h in rows for t in frames]


def _regular_cuts(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _shifted_cuts(length: int, size: int) -> list[slice]:
    if size >= length:
        return [slice(0, length)]
    count = math.ceil((length - 0.5) / size) + 1
    edges = [(max(int((k - 0.5) * size), 0), min(int((k + 0.5) * size), length)) for k in range(count)]
    return [slice(start, stop) for start, stop in edges if start < stop]


@dataclass(frozen=True, eq=False)
class WindowLayout:
    """Where the tokens of a packed batch go for window attention.

    Attention runs over sequences, one per window: the window's video tokens, then all text tokens of its
    sample. Sequences of equal length are neighbours, so that a dense kernel can take them as one batch.
    "Token row" counts rows of `cat(video tokens, text tokens)`; "packed row" counts rows of the sequences.
    """

    video_lengths: tuple[int, ...]
    """Video tokens per sample."""
    text_lengths: tuple[int, ...]
    """Text tokens per sample."""
    window_counts: tuple[int, ...]
    """Windows per sample."""
    groups: tuple[tuple[int, int], ...]
    """(sequences, tokens per sequence), in packed order."""
    sources: Tensor
    """(packed rows,) int64: the token row that each packed row reads."""
    results: Tensor
    """(packed rows,) int64: the packed row of each video token, then those of each text token, one per window
    of its sample."""
    offsets: Tensor
    """(sequences + 1,) int32: first packed row of each sequence, as kernels of variable length want it."""
    longest: int
    """Tokens of the longest sequence."""


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def window_layout(
    grids: tuple[Grid, ...],
    text_lengths: tuple[int, ...],
    num_windows: Grid,
    shifted: bool,
    device: torch.device,
) -> WindowLayout:
    """The layout of a packed batch; equal arguments give the same object.

    Args:
        grids: Token grid of each sample.
        text_lengths: Text tokens of each sample.
        num_windows: Windows per axis on a 720p clip.
        shifted: Whether the cuts are those of odd blocks.
        device: Where the index tensors live.

    Raises:
        ShapeError: An axis of a grid is below 1.
    """
    # Inference mode is switched off: tensors made in it could not serve a later training step.
    video_lengths = tuple(math.prod(grid) for grid in grids)
    text_start = sum(video_lengths)
    sequences: list[npt.NDArray[np.int64]] = []
    window_counts = []
    video_start = 0
    for sample, (grid, text_length) in enumerate(zip(grids, text_lengths, strict=True)):
        rows = np.arange(video_start, video_start + video_lengths[sample]).reshape(grid)
        text = np.arange(text_start, text_start + text_length)
        boxes = windows(grid, num_windows, shifted)
        sequences += [np.concatenate((rows[box].reshape(-1), text)) for box in boxes]
        window_counts.append(len(boxes))
        video_start += video_lengths[sample]
        text_start += text_length

    sequences.sort(key=len)
    lengths = [len(sequence) for sequence in sequences]
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    sources = np.concatenate(sequences)
    return WindowLayout(
        video_lengths=video_lengths,
        text_lengths=text_lengths,
        window_counts=tuple(window_counts),
        groups=tuple((count, length) for length, count in Counter(lengths).items()),
        sources=torch.from_numpy(sources).to(device),
        results=torch.from_numpy(np.argsort(sources, kind="stable")).to(device),
        offsets=torch.from_numpy(offsets.astype(np.int32)).to(device),
        longest=lengths[-1],
    )
