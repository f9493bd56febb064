"""Orientation and bit depth as plain values."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from seedvr2.video.frame import Orientation, scale_depth


@pytest.mark.parametrize("value", range(1, 9))
def test_exif_orientations_agree_with_pillow(value):
    data = np.random.default_rng(value).integers(0, 256, (5, 7, 3), np.uint8)
    image = Image.fromarray(data)
    image.getexif()[274] = value
    upright = np.asarray(ImageOps.exif_transpose(image))
    orientation = Orientation.from_exif(value)
    assert np.array_equal(orientation.apply(data), upright)
    assert orientation.size(7, 5) == upright.shape[1::-1]


@pytest.mark.parametrize("value", range(1, 9))
def test_every_orientation_is_a_turn_and_perhaps_a_mirror(value):
    data = np.random.default_rng(value).integers(0, 256, (5, 7, 3), np.uint8)
    orientation = Orientation.from_exif(value)
    turned = np.rot90(data, -orientation.rotation // 90)
    assert np.array_equal(orientation.apply(data), turned[:, ::-1] if orientation.mirrored else turned)


@pytest.mark.parametrize("degrees", [-90, 0, 90, 179.5, 180, 270])
def test_a_rotation_is_clockwise(degrees):
    assert Orientation.from_rotation(degrees).rotation == round(degrees) % 360 // 89 * 90
    assert not Orientation.from_rotation(degrees).mirrored


@pytest.mark.parametrize(("depth", "target"), [(8, 10), (8, 16), (10, 16), (12, 16)])
def test_depth_scaling_keeps_black_and_white_and_returns(depth, target):
    samples = np.arange(2**depth).astype(np.uint8 if depth == 8 else np.uint16)
    scaled = scale_depth(samples, depth, target)
    assert (scaled[0], scaled[-1]) == (0, 2**target - 1)
    assert np.array_equal(scale_depth(scaled, target, depth), samples)


def test_sixteen_bits_scale_without_overflow():
    assert scale_depth(np.array([65535, 32768], np.uint16), 16, 8).tolist() == [255, 128]
