import math
from typing import get_args

import cv2
import numpy as np
import pytest
import torch

from seedvr2.errors import ShapeError
from seedvr2.video.kernels import TOLERANCE, Kernel, KernelFamily, filter_frame, gaussian_kernel, sinc_kernel
from tests.video.synthetic import natural_clip

FAMILIES: tuple[KernelFamily, ...] = get_args(KernelFamily)
SIZES = (7, 9, 11, 13, 15, 17, 19, 21)


def some_kernel(family: KernelFamily, size: int, seed: int = 0) -> Kernel:
    random = np.random.default_rng((seed, size))
    if family == "sinc":
        return sinc_kernel(size, random.uniform(math.pi / 3, math.pi))
    return gaussian_kernel(
        family,
        size,
        random.uniform(0.2, 3),
        random.uniform(0.2, 3),
        random.uniform(-3, 3),
        random.uniform(1, 2),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_sum_to_one_and_are_point_symmetric(family: KernelFamily):
    for size in SIZES:
        kernel = some_kernel(family, size)
        assert kernel.shape == (size, size)
        assert kernel.sum() == pytest.approx(1, abs=1e-12)
        np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-15)


@pytest.mark.parametrize("family", [family for family in FAMILIES if "anisotropic" not in family])
def test_isotropic_kernels_have_all_symmetries_of_the_square(family: KernelFamily):
    kernel = some_kernel(family, 13)
    np.testing.assert_allclose(kernel, kernel.T, atol=1e-15)
    np.testing.assert_allclose(kernel, kernel[::-1], atol=1e-15)


def test_narrow_gaussian_is_the_identity():
    identity = np.zeros((7, 7))
    identity[3, 3] = 1
    np.testing.assert_allclose(gaussian_kernel("isotropic", 7, 0.2, 0.2), identity, atol=2e-5)


def test_gaussian_has_the_covariance_of_its_rotated_axes():
    sigma_x, sigma_y, theta = 2.5, 1.2, 0.6
    kernel = gaussian_kernel("anisotropic", 41, sigma_x, sigma_y, theta)
    axis = np.arange(41) - 20
    x, y = np.meshgrid(axis, axis)
    measured = [[(kernel * a * b).sum() for a in (x, y)] for b in (x, y)]
    rotation = np.array([[math.cos(theta), -math.sin(theta)], [math.sin(theta), math.cos(theta)]])
    np.testing.assert_allclose(measured, rotation @ np.diag([sigma_x**2, sigma_y**2]) @ rotation.T, rtol=1e-3)


def test_generalized_kernel_with_exponent_one_is_the_gaussian():
    shape = (15, 1.7, 0.9, 0.4)
    np.testing.assert_allclose(
        gaussian_kernel("generalized-anisotropic", *shape, beta=1.0), gaussian_kernel("anisotropic", *shape)
    )


def test_plateau_kernel_follows_its_formula():
    kernel = gaussian_kernel("plateau-isotropic", 7, 2.0, 2.0, beta=1.5)
    assert kernel[3, 3] / kernel[3, 5] == pytest.approx(1 + 1.0**1.5)
    assert kernel[3, 3] / kernel[5, 6] == pytest.approx(1 + ((4 + 9) / 4) ** 1.5)


def test_sinc_kernel_has_negative_lobes_and_matches_the_bessel_function():
    size, cutoff = 21, math.pi / 3
    axis = torch.arange(size, dtype=torch.float64) - 10
    radius = torch.sqrt(axis[None] ** 2 + axis[:, None] ** 2)
    expected = cutoff * torch.special.bessel_j1(cutoff * radius) / (2 * math.pi * radius)
    expected[10, 10] = cutoff**2 / (4 * math.pi)
    kernel = sinc_kernel(size, cutoff)
    assert kernel.min() < -1e-3
    np.testing.assert_allclose(kernel, (expected / expected.sum()).numpy(), atol=1e-8)  # torch is no closer


def test_even_kernel_size_is_refused():
    with pytest.raises(ShapeError, match="odd"):
        sinc_kernel(8, 1.0)
    with pytest.raises(ShapeError, match="odd"):
        gaussian_kernel("isotropic", 0, 1.0, 1.0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(48, 70), (6, 5)])
def test_fast_filter_equals_the_plain_two_dimensional_one(family: KernelFamily, shape: tuple[int, int]):
    levels = natural_clip(1, *shape, seed=3)[0]
    unit = levels / 255
    for size in SIZES:
        for seed in range(3):
            kernel = some_kernel(family, size, seed)
            plain = cv2.filter2D(unit, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
            for frame in (levels, unit.astype(np.float32)):
                filtered = filter_frame(frame, kernel)
                assert filtered.dtype == np.float32
                np.testing.assert_allclose(filtered, plain, atol=TOLERANCE + 2e-6)


def test_filtering_reflects_at_the_border_without_repeating_the_edge():
    frame = natural_clip(1, 20, 24, seed=5)[0].astype(np.float32) / 255
    padded = np.pad(frame, ((7, 7), (7, 7), (0, 0)), mode="reflect")
    kernel = some_kernel("anisotropic", 15)
    inner = filter_frame(padded, kernel)[7:-7, 7:-7]
    np.testing.assert_allclose(filter_frame(frame, kernel), inner, atol=2e-6)
