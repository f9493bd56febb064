"""Pixels keep their colour on the way in and out."""

from fractions import Fraction

import av
import numpy as np
import pytest

from seedvr2.errors import VideoError
from seedvr2.video.convert import FromRgb, Thumbnail, ToRgb, output_color, resolve_matrix
from seedvr2.video.frame import ColorTags
from tests.video.clips import picture

MATRICES = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}


def expected_rgb(y, u, v, matrix, full, depth):
    """ITU-T H.273, straight from the definition, in float64."""
    scale, white = 2 ** (depth - 8), 2**depth - 1
    luma = y / white if full else (y - 16 * scale) / (219 * scale)
    span = white if full else 224 * scale
    blue_difference, red_difference = (u - 128 * scale) / span, (v - 128 * scale) / span
    red_weight, blue_weight = MATRICES[matrix]
    red = luma + 2 * (1 - red_weight) * red_difference
    blue = luma + 2 * (1 - blue_weight) * blue_difference
    green = (luma - red_weight * red - blue_weight * blue) / (1 - red_weight - blue_weight)
    return np.clip(np.array([red, green, blue]), 0, 1) * white


@pytest.mark.parametrize("matrix", sorted(MATRICES))
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("pixel_format", "depth"), [("yuv420p", 8), ("yuv420p10le", 10), ("yuv422p12le", 12)]
)
def test_yuv_becomes_the_rgb_of_its_matrix_and_range(matrix, full, pixel_format, depth):
    scale = 2 ** (depth - 8)
    values = (120 * scale, 100 * scale, 180 * scale)
    frame = av.VideoFrame(64, 48, pixel_format)
    for plane, value in zip(frame.planes, values, strict=True):
        np.frombuffer(plane, np.uint8 if depth == 8 else np.uint16)[:] = value
    convert = ToRgb(ColorTags(matrix=matrix, range=2 if full else 1), 64, 48, "clip")
    data, found = convert(frame)
    assert (found, data.shape, data.dtype) == (depth, (48, 64, 3), np.uint8 if depth == 8 else np.uint16)
    difference = np.abs(data.astype(float) - expected_rgb(*values, matrix, full, depth))
    assert difference.max() <= (1.0 if depth == 8 else 0.51)


def test_ten_bit_limited_white_is_white():
    frame = av.VideoFrame(64, 48, "yuv420p10le")
    for plane, value in zip(frame.planes, (940, 512, 512), strict=True):
        np.frombuffer(plane, np.uint16)[:] = value
    data, _ = ToRgb(ColorTags(matrix=1, range=1), 64, 48, "clip")(frame)
    assert (data == 1023).all()


@pytest.mark.parametrize(("range_", "white"), [(0, 235), (1, 255), (2, 235)])
def test_gray_is_full_range_unless_tagged_limited(range_, white):
    frame = av.VideoFrame(64, 48, "gray")
    np.frombuffer(frame.planes[0], np.uint8)[:] = 235
    data, depth = ToRgb(ColorTags(range=range_), 64, 48, "clip")(frame)
    assert depth == 8
    assert (data == white).all()


def test_sixteen_bit_rgb_is_exact():
    samples = np.random.default_rng(0).integers(0, 65536, (48, 64, 3)).astype(np.uint16)
    frame = av.VideoFrame.from_ndarray(samples, format="rgb48be")
    data, depth = ToRgb(ColorTags(matrix=0), 64, 48, "picture")(frame)
    assert depth == 16
    assert np.array_equal(data, samples)
    back = FromRgb("rgb48be", ColorTags())(data, 16)
    assert np.array_equal(back.to_ndarray(), samples)


def test_alpha_is_dropped_and_the_colours_under_it_stay():
    samples = np.random.default_rng(0).integers(0, 256, (48, 64, 4), np.uint8)
    frame = av.VideoFrame.from_ndarray(samples, format="rgba")
    data, _ = ToRgb(ColorTags(matrix=0), 64, 48, "picture")(frame)
    assert np.array_equal(data, samples[..., :3])


@pytest.mark.parametrize("matrix", sorted(MATRICES))
@pytest.mark.parametrize("range_", [1, 2])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv420p10le", "yuv444p10le"])
def test_rgb_survives_conversion_there_and_back(matrix, range_, pixel_format):
    data, color = picture(3), ColorTags(matrix=matrix, range=range_)
    frame = FromRgb(pixel_format, color)(data, 8)
    assert (frame.format.name, frame.colorspace, frame.color_range) == (pixel_format, matrix, range_)
    back, depth = ToRgb(color, 64, 48, "clip")(frame)
    error = np.abs(back.astype(float) / (2**depth - 1) * 255 - data)
    assert error.mean() < (1.0 if pixel_format.endswith("p") else 0.6)
    assert error.max() <= 6


def test_untagged_material_is_bt601_below_720_lines_and_bt709_from_there():
    assert [resolve_matrix(2, lines, "clip") for lines in (480, 719, 720, 1080)] == [6, 6, 1, 1]


def test_an_unsupported_matrix_is_named_with_a_remedy():
    with pytest.raises(VideoError, match=r"clip: colour matrix 14 .* convert"):
        resolve_matrix(14, 1080, "clip")


def test_output_tags_are_those_of_the_source_with_matrix_and_range_definite():
    hdr = ColorTags(primaries=9, transfer=16, matrix=9, range=1)
    assert output_color(hdr, 2160, "video", "clip") == hdr
    assert output_color(ColorTags(), 480, "video", "clip") == ColorTags(matrix=6, range=1)
    assert output_color(ColorTags(matrix=5, range=2), 1080, "video", "clip").range == 2
    assert output_color(ColorTags(matrix=5, range=2), 1080, "sequence", "x") == ColorTags(matrix=1, range=1)


def test_a_picture_of_another_size_is_scaled_to_the_stream():
    frame = av.VideoFrame.from_ndarray(picture(0, 32, 24), format="rgb24")
    data, _ = ToRgb(ColorTags(matrix=0), 64, 48, "clip")(frame)
    assert data.shape == (48, 64, 3)


def test_a_thumbnail_is_small_and_repeatable():
    frame = av.VideoFrame.from_ndarray(picture(0, 640, 480), format="rgb24")
    frame.pts, frame.time_base = 0, Fraction(1, 25)
    small = Thumbnail(64, 36)(frame)
    assert (small.shape, small.dtype) == ((36, 64, 3), np.uint8)
    assert np.array_equal(small, Thumbnail(64, 36)(frame))
    assert abs(float(small.mean()) - float(picture(0, 640, 480).mean())) < 1
