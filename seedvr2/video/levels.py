"""Frames inside the degradation: float32 on [0, 1] or uint8, and the exact way between them.

To 8 bit, values are rounded and clamped, never wrapped: noise and bicubic filters overshoot [0, 1].
"""

from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

Frame: TypeAlias = NDArray[np.uint8 | np.float32]
"""(H, W, 3) RGB or (H, W)."""


def as_unit(frame: Frame) -> NDArray[np.float32]:
    """A frame as float32, uint8 scaled to [0, 1]."""
    if frame.dtype == np.float32:
        return frame.view(np.float32)
    return np.asarray(cv2.multiply(frame, np.full(4, 1 / 255), dtype=cv2.CV_32F), np.float32)


def as_levels(frame: Frame) -> NDArray[np.uint8]:
    """A frame as uint8: float on [0, 1] is rounded and clamped."""
    if frame.dtype == np.uint8:
        return frame.view(np.uint8)
    return np.asarray(cv2.multiply(frame, np.full(4, 255.0), dtype=cv2.CV_8U), np.uint8)
