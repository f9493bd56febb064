"""Find the cuts of a film while its frames stream by.

A segment must not reach across a cut: the autoencoder is causal and would carry the old scene into the new
one. Detection looks at thumbnails only and keeps three numbers per frame, so that a film of any length fits.

A cut separates the frames before it from the frames after it: the *least* difference between any of the
three frames on one side and any of the three on the other stays large, in place (mean absolute difference)
and in colour (histogram). A flash of one or two frames fails that, because the scene is the same again after
it; motion keeps its colours; a fade has no pair of frames that differ much. A difference must also stand out
from the motion around it.

Source: own work; the thresholds were set on hand-held, surveillance and animated film.
"""

from collections import deque
from collections.abc import Iterable
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from seedvr2.errors import ConfigError, ShapeError

THUMBNAIL_SIZE = (36, 64)
"""Height and width of the thumbnails."""
REACH = 3
"""Frames compared on either side of a possible cut."""
LEAST_DIFFERENCE = 8.0
"""Mean absolute difference, of 255, that a cut must exceed."""
LEAST_COLOR_CHANGE = 0.25
"""Share of pixels, in [0, 1], that must change their colour bin."""
LEAST_CONTRAST = 3.0
"""A cut's difference over the median difference of consecutive frames around it."""
NEIGHBOURS = 12
"""Frames on either side that this median is taken over."""


def thumbnail(frame: NDArray[np.uint8] | NDArray[np.uint16], bit_depth: int = 8) -> NDArray[np.uint8]:
    """A small copy of a frame for `ShotDetector`.

    Args:
        frame: (H, W, 3) RGB, uint8 or, above 8 bit, uint16.
        bit_depth: Bits per value of the frame.

    Returns:
        uint8 (36, 64, 3).
    """
    height, width = THUMBNAIL_SIZE
    small = np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint16)
    return (small >> (bit_depth - 8)).astype(np.uint8)


class ShotDetector:
    """Collects thumbnails one at a time, then tells the shots.

    Args:
        min_length: Frames of the shortest shot; of cuts that lie closer together the clearest is kept. The
            default is the shortest video the autoencoder takes.

    Raises:
        ConfigError: `min_length` below 1.
    """

    def __init__(self, min_length: int = 5) -> None:
        if min_length < 1:
            raise ConfigError(f"expected a shortest shot of at least 1 frame, got {min_length}")
        self._min_length = min_length
        self._recent: deque[tuple[NDArray[np.int16], NDArray[np.float64]]] = deque(maxlen=2 * REACH - 1)
        self._motion: list[float] = []
        self._difference: list[float] = []
        self._color_change: list[float] = []

    def push(self, thumbnail: NDArray[np.uint8]) -> None:
        """Take the next frame's thumbnail, uint8 (36, 64, 3) RGB.

        Raises:
            ShapeError: A thumbnail of another size or type.
        """
        if thumbnail.shape != (*THUMBNAIL_SIZE, 3) or thumbnail.dtype != np.uint8:
            raise ShapeError(
                f"expected a uint8 thumbnail of shape {(*THUMBNAIL_SIZE, 3)}, "
                f"got {thumbnail.dtype} {thumbnail.shape}"
            )
        image, colors = thumbnail.astype(np.int16), _color_histogram(thumbnail)
        frame = len(self._motion)
        self._motion.append(0.0)
        self._difference.append(np.inf)
        self._color_change.append(np.inf)
        for lag, (earlier_image, earlier_colors) in enumerate(reversed(self._recent), start=1):
            difference = float(np.abs(image - earlier_image).mean())
            color_change = float(np.abs(colors - earlier_colors).sum() / 2)
            if lag == 1:
                self._motion[frame] = difference
            # Every cut between the two frames that has both within reach.
            for cut in range(max(frame - lag, frame - REACH) + 1, min(frame - lag + REACH, frame) + 1):
                self._difference[cut] = min(self._difference[cut], difference)
                self._color_change[cut] = min(self._color_change[cut], color_change)
        self._recent.append((image, colors))

    def shots(self) -> list[tuple[int, int]]:
        """The shots so far as (start, stop), stop exclusive; they cover every frame pushed, in order."""
        frames = len(self._motion)
        accepted = [0, frames]
        for cut in sorted(self._candidates(), key=lambda cut: (-self._difference[cut], cut)):
            if all(abs(cut - other) >= self._min_length for other in accepted):
                accepted.append(cut)
        edges = sorted(accepted)
        return list(pairwise(edges)) if frames else []

    def _candidates(self) -> Iterable[int]:
        motion = np.array(self._motion)
        for cut in range(1, len(motion)):
            if self._difference[cut] < LEAST_DIFFERENCE or self._color_change[cut] < LEAST_COLOR_CHANGE:
                continue
            before, after = motion[max(1, cut - NEIGHBOURS) : cut], motion[cut + 1 : cut + 1 + NEIGHBOURS]
            around = np.concatenate([before, after])
            if not around.size or self._difference[cut] >= LEAST_CONTRAST * np.median(around):
                yield cut


def detect_shots(thumbnails: Iterable[NDArray[np.uint8]], min_length: int = 5) -> list[tuple[int, int]]:
    """The shots of a whole film; see `ShotDetector`.

    Args:
        thumbnails: One uint8 (36, 64, 3) per frame, from `thumbnail`.
        min_length: Frames of the shortest shot.

    Returns:
        (start, stop) of each shot, stop exclusive, in order; empty without frames.
    """
    detector = ShotDetector(min_length)
    for image in thumbnails:
        detector.push(image)
    return detector.shots()


def _color_histogram(thumbnail: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Shares of pixels in 8 x 8 x 8 colour bins."""
    red, green, blue = np.moveaxis(thumbnail.astype(np.intp) >> 5, -1, 0)
    bins = (red << 6) | (green << 3) | blue
    shares: NDArray[np.float64] = np.bincount(bins.ravel(), minlength=512) / bins.size
    return shares
