"""Random crops of a folder of clean pictures and clips, for the training of small models.

The folder is read into memory once. A crop is a function of its random generator alone, so a batch can be
made again from the number of its step. Coded video is halved first, which removes most of its artefacts.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from seedvr2.errors import StageError, VideoError
from seedvr2.video.io import open_video, probe

Frames = NDArray[np.uint8]

LARGEST_SIDE = 1600
"""Pictures are reduced to this many pixels on their longer side."""
CUT_DIFFERENCE = 24.0
"""Mean difference (8-bit levels) of neighbouring frames beyond which no clip spans them."""


@dataclass(frozen=True)
class Take:
    """One source in memory."""

    frames: Frames
    """(T, H, W, 3); T = 1 for a picture."""
    cuts: NDArray[np.bool_]
    """(T - 1,) whether frame t + 1 starts a new shot."""


class Footage:
    """Pictures and clips of a folder tree.

    Args:
        folder: Searched recursively.
        max_frames: Frames kept of each clip.

    Raises:
        StageError: No picture or no clip in it.
    """

    def __init__(self, folder: Path, max_frames: int = 120) -> None:
        self.pictures: list[Take] = []
        self.clips: list[Take] = []
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            try:
                if probe(path).kind == "picture":
                    self.pictures.append(_picture(path))
                else:
                    self.clips.append(_clip(path, max_frames))
            except VideoError as error:
                logging.getLogger(__name__).warning("left out: %s", error)
        if not self.pictures or not self.clips:
            raise StageError(
                f"{folder}: {len(self.pictures)} pictures and {len(self.clips)} clips; training needs both"
            )

    def crop(self, rng: np.random.Generator, frames: int, size: int) -> Frames:
        """One random crop (frames, size, size, 3): flipped, turned and reduced at random.

        One frame comes from a picture (3 of 4 times) or a clip; several from a clip, or from a picture under
        a moving camera (1 of 4 times).
        """
        of_picture = rng.random() < (0.75 if frames == 1 else 0.25)
        crop = self._from_picture(rng, frames, size) if of_picture else self._from_clip(rng, frames, size)
        if rng.random() < 0.5:
            crop = crop[:, :, ::-1]
        if rng.random() < 0.5:
            crop = crop[::-1]
        if rng.random() < 0.5:
            crop = crop.transpose(0, 2, 1, 3)
        return np.ascontiguousarray(crop)

    def _from_picture(self, rng: np.random.Generator, frames: int, size: int) -> Frames:
        picture = self.pictures[rng.integers(len(self.pictures))].frames
        if frames == 1:
            return _reduced(rng, picture, size)
        margin = size // 4
        wide = _reduced(rng, picture, size + 2 * margin)[0]
        # A camera that moves, turns and zooms a little at constant speed.
        centre, half = wide.shape[0] / 2, size / 2
        speed = rng.uniform(-1, 1, 2) * margin / frames
        turn, zoom = rng.uniform(-0.5, 0.5), rng.uniform(-0.006, 0.006)
        views = []
        for t in range(frames):
            at = t - frames / 2
            matrix = cv2.getRotationMatrix2D((centre, centre), turn * at, 1 + zoom * at)
            matrix[:, 2] += half - centre + speed * at
            views.append(
                cv2.warpAffine(
                    wide, matrix, (size, size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
                )
            )
        return np.stack(views).astype(np.uint8)

    def _from_clip(self, rng: np.random.Generator, frames: int, size: int) -> Frames:
        while True:
            take = self.clips[rng.integers(len(self.clips))]
            stride = int(rng.integers(1, 3)) if frames > 1 else 1
            span = (frames - 1) * stride + 1
            if len(take.frames) < span or min(take.frames.shape[1:3]) < size:
                continue
            start = int(rng.integers(len(take.frames) - span + 1))
            if not take.cuts[start : start + span - 1].any():
                return _reduced(rng, take.frames[start : start + span : stride], size)


def _reduced(rng: np.random.Generator, frames: Frames, size: int) -> Frames:
    """A random square of `frames`, reduced by a random factor to `size`."""
    height, width = frames.shape[1:3]
    side = int(np.exp(rng.uniform(np.log(size), np.log(min(height, width, 4 * size)))))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    square = frames[:, top : top + side, left : left + side]
    if side == size:
        return square
    return np.stack(
        [cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA) for frame in square]
    ).astype(np.uint8)


def _picture(path: Path) -> Take:
    with open_video(path) as source:
        frame = next(iter(source))
    picture = (frame.data >> (frame.bit_depth - 8)).astype(np.uint8)
    scale = LARGEST_SIDE / max(picture.shape[:2])
    if scale < 1:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA).astype(np.uint8)
    return Take(picture[None], np.zeros(0, dtype=bool))


def _clip(path: Path, max_frames: int) -> Take:
    frames: list[Frames] = []
    with open_video(path) as source:
        for frame in source:
            picture = (frame.data >> (frame.bit_depth - 8)).astype(np.uint8)
            if min(picture.shape[:2]) >= 360:
                half = (picture.shape[1] // 2, picture.shape[0] // 2)
                picture = cv2.resize(picture, half, interpolation=cv2.INTER_AREA).astype(np.uint8)
            frames.append(picture)
            if len(frames) == max_frames:
                break
    clip = np.stack(frames)
    small = np.stack([cv2.resize(frame, (32, 18), interpolation=cv2.INTER_AREA) for frame in clip]).astype(
        np.int16
    )
    return Take(clip, np.abs(np.diff(small, axis=0)).mean(axis=(1, 2, 3)) > CUT_DIFFERENCE)
