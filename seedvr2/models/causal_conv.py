"""Convolution that is causal in time, and the state that lets it work on a video slice by slice.

A kernel of three frames looks at the present and two earlier frames. At the start of a sequence the first
frame stands in for the missing past; later slices use the frames that the previous slice left behind. That
state is a value: `CausalCache` goes in, another comes out, nothing stays on a module, so two videos may be
processed by turns.

Source: spec of the released video autoencoder; SeedVR2 (arXiv 2506.05301), Sec. 3.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class CausalCache:
    """Last input frames of every temporal convolution, in order of execution.

    The empty cache means the start of a sequence.
    """

    states: tuple[Tensor, ...] = ()
    """Each (B, C, frames, H, W), with frames = kernel - stride."""

    @property
    def is_start(self) -> bool:
        """Whether nothing came before."""
        return not self.states


@dataclass
class CacheWalk:
    """One pass over the convolutions: hands each its past and collects what it leaves behind.

    `keep=False` collects nothing, for a whole clip in one call.
    """

    cache: CausalCache = field(default_factory=CausalCache)
    keep: bool = True

    def __post_init__(self) -> None:
        self._past: Iterator[Tensor] = iter(self.cache.states)
        self._left: list[Tensor] = []

    def take(self) -> Tensor | None:
        """The past of the next convolution, or None at the start of a sequence."""
        return None if self.cache.is_start else next(self._past)

    def leave(self, frames: Tensor) -> None:
        """Remember the last frames of a convolution's input, without keeping their source alive."""
        if self.keep:
            self._left.append(frames.clone())

    def result(self) -> CausalCache:
        """The cache for the next slice."""
        return CausalCache(tuple(self._left))


class CausalConv3d(nn.Module):
    """3-D convolution, causal in time and zero-padded in space.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Kernel size (frames, rows, columns); frames is 1 or 3.
        stride: Stride (frames, rows, columns).
        padding: Zeros on (left, right, top, bottom); by default half the kernel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int, int] = (3, 3, 3),
        stride: tuple[int, int, int] = (1, 1, 1),
        padding: tuple[int, int, int, int] | None = None,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.padding = padding or (kernel[2] // 2, kernel[2] // 2, kernel[1] // 2, kernel[1] // 2)
        reference = nn.Conv3d(in_channels, out_channels, kernel)  # PyTorch's default initialisation
        assert reference.bias is not None
        self.weight = nn.Parameter(reference.weight)
        self.bias = nn.Parameter(reference.bias)

    def forward(self, x: Tensor, walk: CacheWalk) -> Tensor:
        """Convolve one slice (B, C, T, H, W); see `CacheWalk` for the past."""
        kernel, stride = self.weight.shape[2], self.stride[0]
        if kernel == 1:
            return self._convolve(x, self.weight)
        past = walk.take()
        if past is None and x.shape[2] == 1:  # three copies of one frame: their taps add up
            walk.leave(x.expand(-1, -1, kernel - stride, -1, -1))
            return self._convolve(x, self.weight.sum(dim=2, keepdim=True), time_stride=1)
        if past is None:
            past = x[:, :, :1].expand(-1, -1, kernel - 1, -1, -1)
        x = torch.cat([past, x], dim=2)
        walk.leave(x[:, :, x.shape[2] - (kernel - stride) :])
        return self._convolve(x, self.weight)

    def _convolve(self, x: Tensor, weight: Tensor, time_stride: int | None = None) -> Tensor:
        """The one place that touches pixels: exact row bands would go here."""
        left, right, top, bottom = self.padding
        if left != right or top != bottom:
            x, padding = F.pad(x, self.padding), (0, 0, 0)
        else:
            padding = (0, top, left)
        stride = (time_stride or self.stride[0], *self.stride[1:])
        if x.shape[2] == 1 and weight.shape[2] == 1:
            flat = F.conv2d(x[:, :, 0], weight[:, :, 0], self.bias, stride[1:], padding[1:])
            return flat.unsqueeze(2)
        if _is_slow_alone(x):
            return F.conv3d(x.expand(2, -1, -1, -1, -1), weight, self.bias, stride, padding)[:1]
        return F.conv3d(x, weight, self.bias, stride, padding)


def _is_slow_alone(x: Tensor) -> bool:
    """Whether PyTorch's slow 3-D kernel would run; it takes one small fp32 sample on a CPU, but not two."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and len(x) == 1 and x[..., 0].numel() <= 20480
