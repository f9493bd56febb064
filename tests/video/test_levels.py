import numpy as np

from seedvr2.video.levels import as_levels, as_unit


def test_floats_are_rounded_and_clamped_to_8_bit_never_wrapped():
    frame = np.linspace(-3, 4, 999, dtype=np.float32).reshape(9, 37, 3)
    expected = np.clip(np.rint(frame * np.float32(255)), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(as_levels(frame), expected)


def test_every_8_bit_level_survives_the_way_to_float_and_back():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    unit = as_unit(levels)
    assert unit.dtype == np.float32
    assert (unit.min(), unit.max()) == (0, 1)
    np.testing.assert_array_equal(as_levels(unit), levels)
