import math

import numpy as np
import pytest

from seedvr2.video.noise import gaussian_field, poisson_field


def test_gaussian_field_has_the_normal_distribution():
    field = np.sort(gaussian_field((400, 500, 1), seed=1, frame=0).reshape(-1).astype(np.float64))
    count = field.size
    cumulative = np.array([0.5 * (1 + math.erf(value / math.sqrt(2))) for value in field[::20]])
    assert np.abs(cumulative - (np.arange(count)[::20] + 0.5) / count).max() < 1.95 / math.sqrt(count)
    assert 4 < field.max() < 6.7
    assert -6.7 < field.min() < -4


def test_gaussian_field_is_white():
    field = gaussian_field((256, 256), seed=2, frame=0)
    spectrum = np.abs(np.fft.rfft2(field)) ** 2 / field.size
    assert spectrum[:, 1:-1].max() < 20
    assert np.corrcoef(field[:128].ravel(), field[128:].ravel())[0, 1] == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 9, 3), (181, 182)])
def test_fields_depend_on_their_key_alone(shape: tuple[int, ...]):
    levels = (np.arange(math.prod(shape)) % 256).astype(np.uint8).reshape(shape)
    for field in (lambda *key: gaussian_field(shape, *key), lambda *key: poisson_field(levels, *key)):
        first = field(5, 7)
        assert first.shape == shape
        assert np.isfinite(first).all()
        np.testing.assert_array_equal(field(5, 7), first)
        if math.prod(shape) > 2:
            assert not np.array_equal(field(5, 8), first)
            assert not np.array_equal(field(6, 7), first)


def test_poisson_field_of_a_flat_frame_has_one_count_per_unit():
    levels = np.full((200, 200), 128, np.uint8)
    field = poisson_field(levels, seed=3, frame=0)
    x = 128 / 255
    assert field.std() == pytest.approx(math.sqrt(x), rel=0.02)
    np.testing.assert_allclose(field + x, np.rint(field + x), atol=1e-6)


def test_poisson_field_rounds_the_number_of_levels_up_to_a_power_of_two():
    levels = np.tile(np.array([10, 100, 200], np.uint8), (100, 100))
    counts = (poisson_field(levels, seed=3, frame=0) + levels / 255) * 4
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-5)
    assert (np.rint(counts) % 2 == 1).any()


@pytest.mark.parametrize("level", [1, 10, 64, 128, 255])
def test_poisson_field_of_natural_content_has_the_exact_distribution(level: int):
    repeats = 60_000
    levels = np.concatenate([np.arange(256), np.full(repeats, level)]).astype(np.uint8)
    field = poisson_field(levels, seed=4, frame=level)[256:]
    mean = level / 255 * 256
    counts = np.rint((field + level / 255) * 256).astype(int)
    support = np.arange(counts.max() + 1)
    log_factorial = np.array([math.lgamma(k + 1) for k in support])
    expected = repeats * np.exp(support * math.log(mean) - mean - log_factorial)
    observed = np.bincount(counts, minlength=support.size)
    common = expected > 20
    statistic = ((observed - expected)[common] ** 2 / expected[common]).sum()
    freedom = int(common.sum())
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)
    assert field.std() == pytest.approx(math.sqrt(level / 255 / 256), rel=0.02)


def test_black_has_no_poisson_noise():
    levels = np.arange(256, dtype=np.uint8).repeat(50)
    assert (poisson_field(levels, seed=1, frame=0)[levels == 0] == 0).all()
