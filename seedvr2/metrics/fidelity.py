"""How close a result is to a reference: peak signal-to-noise ratio and structural similarity.

Both are taken per frame on uint8 RGB and averaged over frames, the convention of restoration papers.

Source: SSIM by Wang et al., 2004, with their Gaussian window; luma by ITU-R BT.601.
"""

from collections.abc import Iterable

import numpy as np
from einops import einsum
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from seedvr2.errors import ShapeError

LARGEST_PSNR = 100.0
"""dB given to a frame that equals its reference, whose ratio is infinite; no frame gets more."""
SSIM_WINDOW = 11
"""Pixels along a side of the Gaussian window (sigma 1.5, cut at 3.5 sigma)."""
LUMA_WEIGHTS = (65.481, 128.553, 24.966)
"""BT.601 weights of red, green, blue in [0, 1] for luma in [16, 235]."""


def psnr(reference: NDArray[np.uint8], result: NDArray[np.uint8]) -> float:
    """Mean over frames of the PSNR over all RGB values of a frame, in dB, at most 100.

    Args:
        reference: uint8 (T, H, W, 3) RGB.
        result: The same shape.

    Raises:
        ShapeError: Shapes that differ, another type, or no frames.
    """
    _require_frames(reference, result)
    return _mean_psnr(
        (one.astype(np.float64), other.astype(np.float64))
        for one, other in zip(reference, result, strict=True)
    )


def psnr_y(reference: NDArray[np.uint8], result: NDArray[np.uint8]) -> float:
    """Like `psnr`, over BT.601 luma alone, unrounded, as super-resolution papers report it.

    Raises:
        ShapeError: Shapes that differ, another type, or no frames.
    """
    _require_frames(reference, result)
    return _mean_psnr((_luma(one), _luma(other)) for one, other in zip(reference, result, strict=True))


def ssim(reference: NDArray[np.uint8], result: NDArray[np.uint8]) -> float:
    """Mean over frames and RGB channels of the structural similarity, in [-1, 1].

    Args:
        reference: uint8 (T, H, W, 3) RGB, sides of at least 11.
        result: The same shape.

    Raises:
        ShapeError: Shapes that differ, another type, no frames, or frames smaller than the window.
    """
    _require_frames(reference, result)
    if min(reference.shape[1:3]) < SSIM_WINDOW:
        raise ShapeError(f"expected frames of at least {SSIM_WINDOW}x{SSIM_WINDOW}, got {reference.shape}")
    values = [
        structural_similarity(  # type: ignore[no-untyped-call]  # scikit-image is not annotated here
            one,
            other,
            channel_axis=-1,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for one, other in zip(reference, result, strict=True)
    ]
    return float(np.mean(values))


def _mean_psnr(pairs: Iterable[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> float:
    errors = np.array([np.mean((one - other) ** 2) for one, other in pairs])
    least_error = 255**2 / 10 ** (LARGEST_PSNR / 10)
    return float(np.mean(10 * np.log10(255**2 / np.maximum(errors, least_error))))


def _luma(frame: NDArray[np.uint8]) -> NDArray[np.float64]:
    luma: NDArray[np.float64] = einsum(frame / 255, np.array(LUMA_WEIGHTS), "h w c, c -> h w")
    return luma + 16


def _require_frames(reference: NDArray[np.uint8], result: NDArray[np.uint8]) -> None:
    for frames in (reference, result):
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or frames.size == 0:
            raise ShapeError(f"expected uint8 frames (T, H, W, 3), got {frames.dtype} {frames.shape}")
    if reference.shape != result.shape:
        raise ShapeError(
            f"expected two videos of one shape, got {reference.shape} and {result.shape}; "
            "crop or resize the reference to the result"
        )
