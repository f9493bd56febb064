"""Decoded pictures to RGB arrays, and RGB arrays to pictures for an encoder.

FFmpeg's implicit conversions assume BT.601 whatever the tags say, treat gray as full range, and are 0.3 %
too dark above 8 bit (limited-range white of 10 bits becomes 1020, not 1023). So every conversion here names
its matrix and range; above 8 bit the matrix is applied here and FFmpeg only resamples the chroma; gray is
scaled here.

Alpha is dropped, not composited: the colours under it are what the model should see. A palette is resolved.

Source: ITU-T H.273 for matrices and ranges.
"""

from dataclasses import replace
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from seedvr2.errors import VideoError
from seedvr2.video.frame import ColorTags, PixelArray, scale_depth

LIMITED, FULL = 1, 2
"""ColorTags.range: black and white at 16 and 235 (of 8 bits), or at the ends of the scale."""
BT709, BT601 = 1, 6
"""ColorTags.matrix of HD and SD material."""

_LUMA_WEIGHTS = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
    10: (0.2627, 0.0593),
}
"""ColorTags.matrix -> weights of red and blue in luma; 10 (constant luminance) is read as 9."""
_SWS_COLORSPACE = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
"""ColorTags.matrix -> swscale's own numbering."""
_DEPTHS = (8, 9, 10, 12, 14, 16)
"""Bit depths that have a planar pixel format."""
_EXACT = Interpolation.ACCURATE_RND | Interpolation.BITEXACT
"""The same bytes on every processor; with one thread, for every number of cores."""
_CHROMA = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP | _EXACT


def resolve_matrix(matrix: int, lines: int, name: str) -> int:
    """The matrix to convert with: the tagged one, else BT.601 below 720 lines and BT.709 from there.

    Args:
        matrix: ColorTags.matrix.
        lines: Stored rows of the picture.
        name: File named in an error.

    Raises:
        VideoError: A matrix that is no linear transform of RGB.
    """
    if matrix in (0, 2, 3):
        return BT601 if lines < 720 else BT709
    if matrix not in _LUMA_WEIGHTS:
        raise VideoError(
            f"{name}: colour matrix {matrix} of ITU-T H.273 is not supported; "
            "convert the file to BT.709 or BT.2020 (non-constant luminance) first"
        )
    return matrix


def output_color(color: ColorTags, lines: int, kind: str, name: str) -> ColorTags:
    """The tags of a YUV output: those of the source, with matrix and range made definite.

    Args:
        color: Tags of the source.
        lines: Rows of the output.
        kind: VideoInfo.kind; what was decoded from pictures becomes limited range, as players expect.
        name: File named in an error.

    Raises:
        VideoError: A matrix that is no linear transform of RGB.
    """
    keep_range = kind == "video" and color.range == FULL and color.matrix != 0
    matrix = resolve_matrix(color.matrix if kind == "video" else 2, lines, name)
    return replace(color, matrix=matrix, range=FULL if keep_range else LIMITED)


def color_tags(picture: av.VideoFrame) -> ColorTags:
    """The tags that a decoded picture carries."""
    return ColorTags(
        int(picture.color_primaries),
        int(picture.color_trc),
        int(picture.colorspace),
        int(picture.color_range),
    )


def bit_depth(pixel_format: Any) -> int:
    """Bits per decoded sample (8, 9, 10, 12, 14 or 16) of an av.VideoFormat."""
    bits = max(component.bits for component in pixel_format.components if not component.is_alpha)
    return next((depth for depth in _DEPTHS if bits <= depth), 16)


class ToRgb:
    """Converts decoded pictures of one stream to RGB arrays.

    Args:
        color: Tags of the stream.
        width: Stored pixels per row of the result; a picture of another size is scaled to it.
        height: Rows of the result.
        name: File named in an error.

    Raises:
        VideoError: A matrix that is no linear transform of RGB.
    """

    def __init__(self, color: ColorTags, width: int, height: int, name: str) -> None:
        self._matrix = resolve_matrix(color.matrix, height, name)
        self._range = color.range
        self._size = {"width": width, "height": height}
        self._reformatter = VideoReformatter()

    def __call__(self, picture: av.VideoFrame) -> tuple[PixelArray, int]:
        """RGB (H, W, 3) and its bit depth."""
        depth = bit_depth(picture.format)
        name = picture.format.name
        is_rgb = picture.format.is_rgb or name.startswith(("pal", "mono"))
        full = is_rgb or self._range == FULL or name.startswith("yuvj")
        if name.startswith(("gray", "ya8", "ya16")):
            gray = self._reformat(picture, "gray" if depth == 8 else f"gray{depth}le", FULL, FULL)
            return self._from_gray(gray.to_ndarray(), depth), depth
        if depth == 8:
            rgb = self._reformat(picture, "rgb24", FULL if full else LIMITED, FULL)
            return np.ascontiguousarray(rgb.to_ndarray()), depth
        if is_rgb:
            rgb = self._reformat(picture, "rgb48le" if depth == 16 else f"gbrp{depth}le", FULL, FULL)
            return np.ascontiguousarray(rgb.to_ndarray()), depth
        kept = FULL if full else LIMITED
        yuv = self._reformat(picture, f"yuv444p{depth}le", kept, kept)
        return _rgb_from_yuv(_planes(yuv), depth, self._matrix, full), depth

    def _reformat(self, picture: av.VideoFrame, target: str, range_: int, target_range: int) -> av.VideoFrame:
        spec = _SWS_COLORSPACE[self._matrix]
        return self._reformatter.reformat(
            picture,
            **self._size,
            format=target,
            src_colorspace=spec,
            dst_colorspace=spec,
            src_color_range=range_,
            dst_color_range=target_range,
            interpolation=_CHROMA,
            threads=1,
        )

    def _from_gray(self, luma: PixelArray, depth: int) -> PixelArray:
        """Gray is full range unless it is tagged as limited."""
        if self._range == LIMITED:
            scale = 2 ** (depth - 8)
            luma = _quantise((luma.astype(np.float32) - 16 * scale) / (219 * scale), depth)
        return np.ascontiguousarray(np.repeat(luma[..., np.newaxis], 3, axis=2))


class FromRgb:
    """Converts RGB arrays to pictures for an encoder.

    Args:
        pixel_format: rgb24, rgb48be, yuv420p, yuv444p, yuv420p10le or yuv444p10le.
        color: Tags of the output with a definite matrix and range, as `output_color` gives.
    """

    def __init__(self, pixel_format: str, color: ColorTags) -> None:
        self._format = pixel_format
        self._color = color
        self._reformatter = VideoReformatter()

    def __call__(self, data: PixelArray, depth: int) -> av.VideoFrame:
        """The picture of RGB samples (H, W, 3) of `depth` bits."""
        if self._format == "rgb48be":
            wide = np.ascontiguousarray(scale_depth(data, depth, 16))
            return av.VideoFrame.from_ndarray(wide, format="rgb48be")
        if self._format.endswith("10le"):
            yuv = _yuv_from_rgb(data, depth, 10, self._color.matrix, self._color.range == FULL)
            picture = av.VideoFrame(data.shape[1], data.shape[0], "yuv444p10le")
            for plane, samples in zip(_planes(picture), yuv, strict=True):
                plane[:] = samples
            return self._tagged(self._reformat(picture, self._color.range))
        picture = av.VideoFrame.from_ndarray(
            np.ascontiguousarray(scale_depth(data, depth, 8)), format="rgb24"
        )
        return picture if self._format == "rgb24" else self._tagged(self._reformat(picture, FULL))

    def _reformat(self, picture: av.VideoFrame, range_: int) -> av.VideoFrame:
        spec = _SWS_COLORSPACE[self._color.matrix]
        return self._reformatter.reformat(
            picture,
            format=self._format,
            src_colorspace=spec,
            dst_colorspace=spec,
            src_color_range=range_,
            dst_color_range=self._color.range,
            interpolation=_CHROMA,
            threads=1,
        )

    def _tagged(self, picture: av.VideoFrame) -> av.VideoFrame:
        picture.colorspace = self._color.matrix
        picture.color_range = self._color.range
        picture.color_primaries = self._color.primaries
        picture.color_trc = self._color.transfer
        return picture


class Thumbnail:
    """Shrinks decoded pictures to a fixed small RGB size, as a cheap signature of their content."""

    def __init__(self, width: int, height: int) -> None:
        self._size = {"width": width, "height": height}
        self._reformatter = VideoReformatter()

    def __call__(self, picture: av.VideoFrame) -> NDArray[np.uint8]:
        """RGB uint8 (height, width, 3); neither the colour matrix nor the orientation is honoured."""
        small = self._reformatter.reformat(
            picture, **self._size, format="rgb24", interpolation=Interpolation.AREA | _EXACT, threads=1
        )
        return np.ascontiguousarray(small.to_ndarray(), dtype=np.uint8)


def _planes(picture: av.VideoFrame) -> list[NDArray[np.uint16]]:
    """The planes of a 4:4:4 picture above 8 bit as views (H, W) of its memory."""
    rows = [np.frombuffer(plane, np.uint16).reshape(picture.height, -1) for plane in picture.planes[:3]]  # type: ignore[call-overload]
    return [row[:, : picture.width] for row in rows]


def _quantise(unit: NDArray[np.float32], depth: int) -> PixelArray:
    """Values in [0, 1] as full-range samples."""
    white = 2**depth - 1
    samples: PixelArray = np.clip(np.rint(unit * white), 0, white)
    return samples.astype(np.uint8) if depth == 8 else samples.astype(np.uint16)


def _levels(depth: int, full: bool) -> tuple[float, float, float, float]:
    """Luma offset and span, chroma offset and span, in samples."""
    scale = 2.0 ** (depth - 8)
    white = 2.0**depth - 1
    return (0.0, white, 128 * scale, white) if full else (16 * scale, 219 * scale, 128 * scale, 224 * scale)


def _rgb_from_yuv(yuv: list[NDArray[np.uint16]], depth: int, matrix: int, full: bool) -> PixelArray:
    red_weight, blue_weight = _LUMA_WEIGHTS[matrix]
    offset, span, neutral, chroma_span = _levels(depth, full)
    luma = (yuv[0].astype(np.float32) - offset) / span
    red = luma + (yuv[2].astype(np.float32) - neutral) * (2 * (1 - red_weight) / chroma_span)
    blue = luma + (yuv[1].astype(np.float32) - neutral) * (2 * (1 - blue_weight) / chroma_span)
    green = (luma - red_weight * red - blue_weight * blue) / (1 - red_weight - blue_weight)
    return _quantise(np.stack([red, green, blue], axis=-1), depth)


def _yuv_from_rgb(data: PixelArray, depth: int, target: int, matrix: int, full: bool) -> PixelArray:
    red_weight, blue_weight = _LUMA_WEIGHTS[matrix]
    offset, span, neutral, chroma_span = _levels(target, full)
    unit = data.astype(np.float32) / np.float32(2**depth - 1)
    red, blue = unit[..., 0], unit[..., 2]
    luma = red_weight * red + (1 - red_weight - blue_weight) * unit[..., 1] + blue_weight * blue
    planes: PixelArray = np.stack(
        [
            offset + span * luma,
            neutral + chroma_span * (blue - luma) / (2 * (1 - blue_weight)),
            neutral + chroma_span * (red - luma) / (2 * (1 - red_weight)),
        ]
    )
    return np.rint(planes).clip(0, 2**target - 1).astype(np.uint16)
