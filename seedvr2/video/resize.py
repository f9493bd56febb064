"""From the frames of a file to the pixels of the model, and back.

The model works at the output's size: low-quality frames are enlarged first. Sides then become multiples of
16 (8 by the autoencoder, 2 by the generator's patches), by cropping as the released code does or by padding,
which keeps the whole picture; the number of frames becomes 4n+1. Everything in space is done frame by frame,
so a video may come in pieces of any length with the same result.

Source: the released inference configuration (resize by area, crop, frame padding); padding of sides is ours.
"""

import math

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from seedvr2.errors import ShapeError

Frames = NDArray[np.uint8] | NDArray[np.uint16]
"""(T, H, W, 3) RGB, uint8 at 8 bit and uint16 above."""

SIDE_MULTIPLE = 16
"""Sides of the model's pixels are multiples of this."""


def size_for_area(height: int, width: int, area: int) -> tuple[int, int]:
    """The size with this aspect ratio and about `area` pixels; sides round half to even.

    Args:
        height: Source rows.
        width: Source columns.
        area: Wanted pixels; 720p is 1280 * 720, whatever the aspect ratio.

    Raises:
        ShapeError: An argument below 1.
    """
    _require_positive(height=height, width=width, area=area)
    return size_for_scale(height, width, math.sqrt(area / (height * width)))


def size_for_short_side(height: int, width: int, short_side: int) -> tuple[int, int]:
    """The size with this aspect ratio whose shorter side is `short_side`; the other rounds half to even.

    Raises:
        ShapeError: An argument below 1.
    """
    _require_positive(height=height, width=width, short_side=short_side)
    if height <= width:
        return short_side, round(width * short_side / height)
    return round(height * short_side / width), short_side


def size_for_scale(height: int, width: int, scale: float) -> tuple[int, int]:
    """Both sides times `scale`, rounded half to even, at least 1.

    Raises:
        ShapeError: A side below 1 or a scale that is not a positive number.
    """
    _require_positive(height=height, width=width)
    if not 0 < scale < math.inf:
        raise ShapeError(f"expected a positive scale, got {scale}")
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_pixels(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize every frame, bicubic with antialiasing, and clamp what overshoots.

    Args:
        pixels: (B, 3, T, H, W) in [-1, 1], float32. They are resized in [0, 1], as the released code does.
        size: Wanted (height, width). The same size returns `pixels` itself.

    Raises:
        ShapeError: A wanted side below 1.
    """
    _require_positive(height=size[0], width=size[1])
    if tuple(pixels.shape[-2:]) == tuple(size):
        return pixels
    images = rearrange(pixels, "b c t h w -> b (c t) h w")
    unit = images * 0.5 + 0.5
    unit = functional.interpolate(unit, size=tuple(size), mode="bicubic", antialias=True).clamp_(0, 1)
    return rearrange(unit.sub_(0.5).div_(0.5), "b (c t) h w -> b c t h w", c=pixels.shape[1])


def crop_box(height: int, width: int, multiple: int = SIDE_MULTIPLE) -> tuple[int, int, int, int]:
    """The centred box with sides that are multiples: (top, left, height, width); offsets round half to even.

    Raises:
        ShapeError: A side below `multiple`.
    """
    if min(height, width) < multiple:
        raise ShapeError(
            f"expected at least {multiple}x{multiple} pixels to crop to multiples of {multiple}, "
            f"got {height}x{width}; ask for a larger size, or pad instead of crop"
        )
    inner_height, inner_width = height // multiple * multiple, width // multiple * multiple
    return round((height - inner_height) / 2), round((width - inner_width) / 2), inner_height, inner_width


def crop_to_multiple(pixels: Tensor, multiple: int = SIDE_MULTIPLE) -> Tensor:
    """Cut (..., H, W) down, around the centre, to sides that are multiples; see `crop_box`.

    Raises:
        ShapeError: A side below `multiple`.
    """
    top, left, height, width = crop_box(pixels.shape[-2], pixels.shape[-1], multiple)
    return pixels[..., top : top + height, left : left + width]


def pad_to_multiple(pixels: Tensor, multiple: int = SIDE_MULTIPLE) -> Tensor:
    """Repeat the last row and column of (B, 3, T, H, W) until the sides are multiples; any size will do.

    `crop_to_size` takes the padding off again.
    """
    bottom, right = -pixels.shape[-2] % multiple, -pixels.shape[-1] % multiple
    if bottom == right == 0:
        return pixels
    images = rearrange(pixels, "b c t h w -> b (c t) h w")
    images = functional.pad(images, (0, right, 0, bottom), mode="replicate")
    return rearrange(images, "b (c t) h w -> b c t h w", c=pixels.shape[1])


def crop_to_size(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """The top left (height, width) of (..., H, W): the inverse of `pad_to_multiple`.

    Raises:
        ShapeError: `size` is larger than the pixels.
    """
    height, width = pixels.shape[-2:]
    if not (0 < size[0] <= height and 0 < size[1] <= width):
        raise ShapeError(f"expected a size within {height}x{width}, got {size[0]}x{size[1]}")
    return pixels[..., : size[0], : size[1]]


def padded_length(frames: int, sequence_parallel: int = 1) -> int:
    """The number of frames the model sees for `frames` of a video: 1, or 4n+1 and at least 5.

    Args:
        frames: Frames of the video, at least 1.
        sequence_parallel: Devices that share one video, P: the length is then 4P*n + 1, or 1.

    Raises:
        ShapeError: An argument below 1.
    """
    _require_positive(frames=frames, sequence_parallel=sequence_parallel)
    step = 4 * sequence_parallel
    return frames if frames == 1 else max(1, -(-(frames - 1) // step)) * step + 1


def repeat_last_frame(pixels: Tensor, length: int) -> Tensor:
    """Make (B, 3, T, H, W) `length` frames long by repeating its last frame.

    Raises:
        ShapeError: No frame to repeat, or more than `length` already.
    """
    missing = length - pixels.shape[2]
    if missing < 0 or pixels.shape[2] == 0:
        raise ShapeError(f"expected between 1 and {length} frames, got {pixels.shape[2]}")
    if missing == 0:
        return pixels
    return torch.cat([pixels, pixels[:, :, -1:].expand(-1, -1, missing, -1, -1)], dim=2)


def frames_to_pixels(frames: Frames, bit_depth: int = 8) -> Tensor:
    """Frames of a file as pixels of the model.

    Args:
        frames: (T, H, W, 3) RGB, uint8 or uint16.
        bit_depth: Bits per value, 8 for uint8 and 9 to 16 for uint16.

    Returns:
        float32 (1, 3, T, H, W) in [-1, 1].

    Raises:
        ShapeError: Frames of another shape or type.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != _frame_type(bit_depth):
        raise ShapeError(
            f"expected {bit_depth} bit frames as {_frame_type(bit_depth)} (T, H, W, 3), "
            f"got {frames.dtype} {frames.shape}"
        )
    values = torch.from_numpy(frames.copy()).to(torch.float32)  # torch takes no negative strides
    pixels = rearrange(values, "t h w c -> 1 c t h w").contiguous()
    return pixels.div_(2**bit_depth - 1).sub_(0.5).div_(0.5)


def pixels_to_frames(pixels: Tensor, bit_depth: int = 8) -> Frames:
    """Pixels of one video as frames for a file: clipped to [-1, 1], rounded half to even.

    Args:
        pixels: (1, 3, T, H, W).
        bit_depth: Bits per value of the frames, 8 to 16.

    Returns:
        (T, H, W, 3) RGB: uint8 at 8 bit, else uint16.

    Raises:
        ShapeError: More than one video, or not three channels.
    """
    if pixels.ndim != 5 or pixels.shape[:2] != (1, 3):
        raise ShapeError(f"expected pixels of one video, (1, 3, T, H, W), got {tuple(pixels.shape)}")
    values = pixels.to(torch.float32).clamp(-1, 1).mul_(0.5).add_(0.5).mul_(2**bit_depth - 1).round_()
    # Rearranged as integers, to move less; through int32 above 8 bit, as torch does little with uint16.
    if _frame_type(bit_depth) == np.uint8:
        narrow = rearrange(values.to(torch.uint8), "1 c t h w -> t h w c")
        return np.ascontiguousarray(narrow.cpu().numpy(), dtype=np.uint8)
    wide = rearrange(values.to(torch.int32), "1 c t h w -> t h w c")
    return np.ascontiguousarray(wide.cpu().numpy(), dtype=np.uint16)


def _frame_type(bit_depth: int) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
    if not 8 <= bit_depth <= 16:
        raise ShapeError(f"expected 8 to 16 bits per value, got {bit_depth}")
    return np.dtype(np.uint8) if bit_depth == 8 else np.dtype(np.uint16)


def _require_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ShapeError(f"expected a {name.replace('_', ' ')} of at least 1, got {value}")
