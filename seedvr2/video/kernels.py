"""Blur kernels of the degradation model, and a fast filter for them.

Seven families on an odd square grid: Gaussian, generalised Gaussian and plateau (each isotropic or rotated
anisotropic) and the circular low-pass "sinc". A kernel is filtered as a short sum of separable kernels
whenever that is cheaper than a two-dimensional one and equal to it within `TOLERANCE`.

Source: Real-ESRGAN (arXiv 2107.10833), Sec. 3; RealBasicVSR (arXiv 2111.12704), published configuration.
"""

import math
from collections.abc import Iterator
from functools import reduce
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from seedvr2.errors import ShapeError
from seedvr2.video.levels import Frame, as_unit

KernelFamily: TypeAlias = Literal[
    "isotropic",
    "anisotropic",
    "generalized-isotropic",
    "generalized-anisotropic",
    "plateau-isotropic",
    "plateau-anisotropic",
    "sinc",
]
Kernel: TypeAlias = NDArray[np.float64]

TOLERANCE = 1e-5
"""Largest change of a filtered value in [0, 1] by the separable form: 1/400 of an 8-bit level."""

DIRECT_TAPS = 129
"""OpenCV filters kernels of up to so many taps directly, and larger ones by Fourier transform."""
TAP_COST, PASS_COST, FOURIER_COST = 0.095, 1.5, 28.0
"""Relative times per value, measured: a tap of a direct filter, a pass over the frame, a transformed filter."""


def gaussian_kernel(
    family: KernelFamily, size: int, sigma_x: float, sigma_y: float, theta: float = 0.0, beta: float = 1.0
) -> Kernel:
    """One kernel of the six Gaussian-like families, (size, size), sum 1.

    With `m = g^T C^-1 g` and `C = R(theta) diag(sigma_x^2, sigma_y^2) R(theta)^T` on the integer grid `g`:
    Gaussian `exp(-m / 2)`, generalised `exp(-m^beta / 2)`, plateau `1 / (1 + m^beta)`.

    Args:
        family: Any family but "sinc"; isotropic ones use `sigma_x` alone.
        size: Odd side length in pixels.
        sigma_x: Standard deviation along the first axis of the rotated frame, in pixels.
        sigma_y: The same along the second axis.
        theta: Rotation in radians.
        beta: Shape exponent of the generalised and plateau families; 1 elsewhere.

    Raises:
        ShapeError: `size` is even or below 1.
    """
    if "anisotropic" not in family:
        sigma_y, theta = sigma_x, 0.0
    x, y = _grid(size)
    cos, sin = math.cos(theta), math.sin(theta)
    m = ((cos * x + sin * y) / sigma_x) ** 2 + ((cos * y - sin * x) / sigma_y) ** 2
    if family.startswith("plateau"):
        kernel = 1.0 / (1.0 + m**beta)
    elif family.startswith("generalized"):
        kernel = np.exp(-0.5 * m**beta)
    else:
        kernel = np.exp(-0.5 * m)
    return np.asarray(kernel / kernel.sum())


def sinc_kernel(size: int, cutoff: float) -> Kernel:
    """Circular low-pass kernel `w J1(w r) / (2 pi r)` with `w^2 / (4 pi)` at its centre, (size, size), sum 1.

    Args:
        size: Odd side length in pixels.
        cutoff: Cutoff frequency w in radians per pixel, in (0, pi].

    Raises:
        ShapeError: `size` is even or below 1.
    """
    x, y = _grid(size)
    squares, where = np.unique(x**2 + y**2, return_inverse=True)
    radius = np.sqrt(squares)
    profile = np.full_like(radius, cutoff**2 / (4 * math.pi))
    profile[1:] = cutoff * _bessel_j1(cutoff * radius[1:]) / (2 * math.pi * radius[1:])
    kernel = profile[where].reshape(size, size)
    return np.asarray(kernel / kernel.sum())


def filter_frame(frame: Frame, kernel: Kernel) -> NDArray[np.float32]:
    """Correlate each channel with a point-symmetric kernel; borders reflect without repeating the edge.

    Args:
        frame: (H, W, 3), float in [0, 1] or uint8; 8-bit values are scaled to [0, 1] on the way.
        kernel: (K, K), K odd.

    Returns:
        Float frame (H, W, 3), within `TOLERANCE` of the plain two-dimensional filter.
    """
    kernel = _crop(kernel)
    strips = _strips(kernel)
    taps = sum(np.count_nonzero(strip) for strip in strips)
    plain = min(TAP_COST * taps + PASS_COST * len(strips), FOURIER_COST)
    terms = _separate(kernel, most=int(plain / (PASS_COST + 1.5 * TAP_COST * sum(kernel.shape))))
    if terms:
        scale = 1 / 255 if frame.dtype == np.uint8 else 1.0
        parts: Iterator[NDArray[Any]] = (
            cv2.sepFilter2D(frame, cv2.CV_32F, row * scale, column, borderType=cv2.BORDER_REFLECT_101)
            for row, column in terms
        )
    elif len(strips) == 1 or plain == FOURIER_COST:
        parts = iter([cv2.filter2D(as_unit(frame), cv2.CV_32F, kernel, borderType=cv2.BORDER_REFLECT_101)])
    else:
        parts = _filter_strips(as_unit(frame), kernel, strips)
    return np.asarray(reduce(lambda total, part: cv2.add(total, part, dst=total), parts), np.float32)


def _grid(size: int) -> tuple[Kernel, Kernel]:
    if size < 1 or size % 2 == 0:
        raise ShapeError(f"a kernel's size must be odd and positive, got {size}")
    axis = np.arange(size, dtype=np.float64) - (size - 1) // 2
    return axis[None, :], axis[:, None]


def _bessel_j1(x: Kernel) -> Kernel:
    """Bessel's integral by the midpoint rule, which is exact to rounding for this periodic integrand."""
    nodes = (np.arange(128) + 0.5) * (math.pi / 128)
    return np.asarray(np.cos(nodes - x[:, None] * np.sin(nodes)).mean(axis=1))


def _crop(kernel: Kernel) -> Kernel:
    """Zero the smallest taps, `TOLERANCE` / 10 of weight in all, and drop outer rows and columns of zeros."""
    magnitude = np.abs(kernel)
    ordered = np.sort(magnitude, axis=None)
    dropped = int(np.searchsorted(np.cumsum(ordered), TOLERANCE / 10))
    kernel = np.where(magnitude < ordered[dropped], 0.0, kernel)
    used = kernel != 0
    top = min(int(used.any(axis=1).argmax()), kernel.shape[0] // 2)
    left = min(int(used.any(axis=0).argmax()), kernel.shape[1] // 2)
    return kernel[top : kernel.shape[0] - top, left : kernel.shape[1] - left]


def _separate(kernel: Kernel, most: int) -> list[tuple[Kernel, Kernel]]:
    """The kernel as a sum of at most `most` separable ones (row, column), or nothing if that is too few."""
    columns, weights, rows = np.linalg.svd(kernel)
    rest = kernel
    terms: list[tuple[Kernel, Kernel]] = []
    for index in range(min(most, len(weights))):
        terms.append((rows[index] * weights[index], columns[:, index]))
        rest = rest - np.outer(terms[-1][1], terms[-1][0])
        if np.abs(rest).sum() < TOLERANCE:
            return terms
    return []


def _strips(kernel: Kernel) -> list[Kernel]:
    """The kernel cut into runs of rows that OpenCV filters directly, at a cost of its nonzero taps alone."""
    height, width = kernel.shape
    rows = math.ceil(height / math.ceil(height * width / DIRECT_TAPS))
    return [kernel[start : start + rows] for start in range(0, height, rows)]


def _filter_strips(
    frame: NDArray[np.float32], kernel: Kernel, strips: list[Kernel]
) -> Iterator[NDArray[Any]]:
    """The terms of the sum over strips, (H, W, 3) each."""
    height, reach = frame.shape[0], kernel.shape[0] // 2
    padded = cv2.copyMakeBorder(frame, reach, reach, 0, 0, cv2.BORDER_REFLECT_101)
    start = 0
    for strip in strips:
        rows = strip.shape[0]
        source = padded[start : start + height + rows - 1]
        anchor = (strip.shape[1] // 2, 0)
        part = cv2.filter2D(source, cv2.CV_32F, strip, anchor=anchor, borderType=cv2.BORDER_REFLECT_101)
        yield part[:height]
        start += rows
