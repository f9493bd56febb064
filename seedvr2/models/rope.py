"""Three-axis rotary embedding with positions that start again in every window.

The 3B flavour takes the frequencies of language models and rotates video and text: text token j sits at
(j, j, j) and video follows it in time. The 7B flavour takes the frequencies of images, whose positions span
-1..1 in each window, and leaves text alone. Both are tables of one angle per token, axis and frequency.

Pixel angles reach 128 pi, where half a unit in the last place of float32 is 1.5e-5 rad: the angle is one
float32 product of a library linspace and the stored frequency, whatever the dtype of the model.

Source: SeedVR2 (arXiv 2506.05301), Sec. 3.2, and the released weights.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, Self

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional

from seedvr2.errors import ConfigError
from seedvr2.models.windows import Grid, windows

RopeKind = Literal["language", "pixel"]

MAX_PIXEL_FREQUENCY = 128.0
"""Highest frequency of the pixel table, in units of pi."""


def rope_frequencies(kind: RopeKind, head_dim: int) -> Tensor:
    """Canonical frequencies of one axis, float32; 21 (language) or 10 (pixel) for heads of 128.

    A third of the head (language), or of half the head (pixel), belongs to each axis; a frequency turns
    a pair of channels.
    """
    if kind == "language":
        axis_dim = head_dim // 3
        return 1.0 / 10_000.0 ** (torch.arange(0, axis_dim, 2)[: axis_dim // 2].float() / axis_dim)
    count = head_dim // 2 // 3 // 2
    return torch.linspace(1.0, MAX_PIXEL_FREQUENCY, count) * math.pi


def video_positions(kind: RopeKind, window: Grid, text_length: int) -> Tensor:
    """Positions of the video tokens of one window, row-major; (tokens, 3) float32.

    Args:
        kind: Language: integers, with time starting at `text_length`. Pixel: -1..1 along each axis of the
            window, and -1 on an axis of one token.
        window: Token counts (frames, height, width) of the window, border windows included.
        text_length: Text tokens of the window's sample.
    """
    if kind == "language":
        axes = [torch.arange(length, dtype=torch.float32, device="cpu") for length in window]
        axes[0] += text_length
    else:
        axes = [torch.linspace(-1.0, 1.0, length, device="cpu") for length in window]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)


def text_positions(kind: RopeKind, text_length: int) -> Tensor:
    """Positions of the text tokens of one sample: (j, j, j), or zero where text is not rotated; float32."""
    positions = torch.arange(text_length, dtype=torch.float32, device="cpu")
    return repeat(positions if kind == "language" else positions * 0, "n -> n axes", axes=3)


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def packed_positions(
    kind: RopeKind,
    grids: tuple[Grid, ...],
    text_lengths: tuple[int, ...],
    num_windows: Grid,
    shifted: bool,
    device: torch.device,
) -> Tensor:
    """Positions of all tokens of a packed batch; equal arguments give the same object.

    Args:
        kind: Language or pixel positions.
        grids: Token grid of each sample.
        text_lengths: Text tokens of each sample.
        num_windows: Windows per axis on a 720p clip.
        shifted: Whether the windows are those of odd blocks.
        device: Where the table lives.

    Returns:
        (video tokens + text tokens, 3) float32, in token order.
    """
    video = []
    for grid, text_length in zip(grids, text_lengths, strict=True):
        positions = torch.empty(*grid, 3, device="cpu")
        for t, h, w in windows(grid, num_windows, shifted):
            extent = (t.stop - t.start, h.stop - h.start, w.stop - w.start)
            positions[t, h, w] = video_positions(kind, extent, text_length).view(*extent, 3)
        video.append(positions.flatten(0, 2))
    return torch.cat([*video, *(text_positions(kind, length) for length in text_lengths)]).to(device)


class Rope(nn.Module):
    """The frequencies of a generator, and the rotations they give.

    `frequencies` is part of the state dict and stays float32 when the model is cast to a shorter dtype.

    Args:
        kind: Language or pixel frequencies.
        head_dim: Channels of one head, even.

    Raises:
        ConfigError: `head_dim` is odd.
    """

    frequencies: Tensor

    def __init__(self, kind: RopeKind, head_dim: int) -> None:
        super().__init__()
        if head_dim % 2:
            raise ConfigError(f"expected an even head_dim, got {head_dim}; rotations turn pairs of channels")
        self.kind = kind
        self.head_dim = head_dim
        self.register_buffer("frequencies", rope_frequencies(kind, head_dim))

    def forward(self, positions: Tensor) -> Tensor:
        """Rotations at some positions.

        Args:
            positions: (tokens, 3) float32.

        Returns:
            (tokens, 1, head_dim / 2) complex64, of modulus 1: one factor per pair of channels. The three axes
            come in the order time, height, width; the pairs left over are not turned.
        """
        angles = rearrange(self.angles(positions), "n pairs -> n 1 pairs")
        angles = functional.pad(angles, (0, self.head_dim // 2 - angles.shape[-1]))
        return torch.complex(angles.cos(), angles.sin())

    def angles(self, positions: Tensor) -> Tensor:
        """Angles in radians, (tokens, 3 * frequencies) float32, for positions (tokens, 3)."""
        angles = positions.float()[:, :, None] * self.frequencies.float()
        return rearrange(angles, "n axes pairs -> n (axes pairs)")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow moves between devices, but not casts."""
        exact = self.frequencies
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.frequencies.dtype != torch.float32:
            self.frequencies = exact.to(self.frequencies.device)
        return self


def rotate(heads: Tensor, rotation: Tensor) -> Tensor:
    """Turn neighbouring channels (2j, 2j + 1) of queries or keys, in float32.

    Args:
        heads: (tokens, heads, head_dim), any floating dtype.
        rotation: (tokens, 1, head_dim / 2) complex64, from `Rope`.

    Returns:
        A tensor of the shape and dtype of `heads`.
    """
    pairs = torch.view_as_complex(rearrange(heads.float(), "n h (pairs two) -> n h pairs two", two=2))
    return rearrange(torch.view_as_real(pairs * rotation), "n h pairs two -> n h (pairs two)").to(heads.dtype)
