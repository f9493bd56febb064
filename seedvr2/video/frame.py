"""What a video is, apart from its pixels: frames, colour tags, orientation, and the facts about a file.

Plain values that travel between processes; nothing here opens a file.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

PixelArray: TypeAlias = NDArray[Any]
"""RGB samples, uint8 at 8 bit and uint16 above."""


@dataclass(frozen=True)
class ColorTags:
    """Colour description of a stream, as numbers of ITU-T H.273 (FFmpeg's AVCOL_* values).

    Args:
        primaries: Colour primaries; 2 is unspecified.
        transfer: Transfer characteristics; 2 is unspecified, 16 is PQ, 18 is HLG.
        matrix: RGB to YUV matrix; 2 is unspecified, 0 is RGB.
        range: 1 limited, 2 full, 0 unspecified.
    """

    primaries: int = 2
    transfer: int = 2
    matrix: int = 2
    range: int = 0


@dataclass(frozen=True)
class Orientation:
    """How stored rows and columns become upright: transpose first, then flip.

    Args:
        transpose: Exchange rows and columns.
        flip_rows: Then turn upside down.
        flip_columns: Then exchange left and right.
    """

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    @classmethod
    def from_exif(cls, value: int) -> Self:
        """The orientation of an EXIF tag 274; 1 and unknown values mean upright."""
        transpose = value in (5, 6, 7, 8)
        return cls(transpose, flip_rows=value in (3, 4, 7, 8), flip_columns=value in (2, 3, 6, 7))

    @classmethod
    def from_matrix(cls, a: int, b: int, c: int, d: int) -> Self:
        """The nearest orientation of a display matrix: x' = a x + c y, y' = b x + d y."""
        if abs(b) > abs(a):
            return cls(True, flip_rows=b < 0, flip_columns=c < 0)
        return cls(False, flip_rows=d < 0, flip_columns=a < 0)

    @classmethod
    def from_rotation(cls, degrees: float) -> Self:
        """The nearest orientation of a clockwise rotation."""
        return {
            0: cls(),
            1: cls(True, flip_columns=True),
            2: cls(False, flip_rows=True, flip_columns=True),
            3: cls(True, flip_rows=True),
        }[round(degrees / 90) % 4]

    @property
    def rotation(self) -> int:
        """Clockwise degrees (0, 90, 180, 270) of the turn; a mirrored orientation flips columns after it."""
        mirrored = self.transpose == (self.flip_rows == self.flip_columns)
        flip_columns = self.flip_columns != mirrored
        if self.transpose:
            return 90 if flip_columns else 270
        return 180 if flip_columns else 0

    @property
    def mirrored(self) -> bool:
        """Whether the picture is reflected as well as turned."""
        return self.transpose == (self.flip_rows == self.flip_columns)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Upright (width, height) of a stored picture."""
        return (height, width) if self.transpose else (width, height)

    def apply(self, data: PixelArray) -> PixelArray:
        """Turn a stored picture (H, W, 3) upright; the result is contiguous."""
        upright = np.swapaxes(data, 0, 1) if self.transpose else data
        rows, columns = -1 if self.flip_rows else 1, -1 if self.flip_columns else 1
        return np.ascontiguousarray(upright[::rows, ::columns])


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a video.

    Args:
        data: RGB (H, W, 3), upright; uint8 at 8 bit, uint16 above, full range 0..2^bit_depth - 1.
        bit_depth: Bits per sample, 8 to 16.
        pts: Presentation time in units of the source's `time_base`; when writing a part, the frame's index.
    """

    data: PixelArray
    bit_depth: int
    pts: int


@dataclass(frozen=True)
class AudioInfo:
    """One audio stream: codec name, number of channels, samples per second."""

    codec: str
    channels: int
    rate: int


@dataclass(frozen=True)
class VideoInfo:
    """The facts about a source that restoring and writing need.

    Args:
        path: File, directory or pattern.
        kind: A video file, one picture, or a sequence of pictures.
        width: Stored pixels per row, after turning upright. Pixels are not made square.
        height: Rows, after turning upright.
        fps: Average frames per second.
        time_base: Seconds per unit of pts.
        duration: Seconds, if declared.
        bit_depth: Bits per sample of a decoded frame, 8 to 16.
        color: Tags as found; unspecified stays unspecified.
        orientation: What the reader does to turn frames upright.
        sample_aspect_ratio: Width of a pixel over its height, after turning upright.
        audio: Audio streams in file order.
        container: FFmpeg's name of the container format.
        codec: Name of the video codec.
        frame_count: Declared number of frames, if any; a truncated file holds fewer.
    """

    path: str
    kind: Literal["video", "picture", "sequence"]
    width: int
    height: int
    fps: Fraction
    time_base: Fraction
    duration: float | None
    bit_depth: int
    color: ColorTags
    orientation: Orientation
    sample_aspect_ratio: Fraction
    audio: tuple[AudioInfo, ...]
    container: str
    codec: str
    frame_count: int | None

    @property
    def rotation(self) -> int:
        """Clockwise degrees by which the reader turns stored frames; already applied to width and height."""
        return self.orientation.rotation


def scale_depth(data: PixelArray, depth: int, target: int) -> PixelArray:
    """Samples of one bit depth at another, white to white, rounded to nearest.

    Args:
        data: Samples in 0..2^depth - 1.
        depth: Bits per sample of `data`, 8 to 16.
        target: Bits per sample of the result, 8 to 16; uint8 for 8, else uint16.
    """
    if depth == target:
        return data
    white, new_white = 2**depth - 1, 2**target - 1
    scaled = (data.astype(np.uint32) * np.uint32(new_white) + np.uint32(white // 2)) // np.uint32(white)
    return scaled.astype(np.uint8) if target == 8 else scaled.astype(np.uint16)
