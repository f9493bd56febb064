"""Cut a long video into segments the model can hold, and say how they are joined again.

Segments never reach across a shot. Within a shot they overlap, have 4n+1 frames and begin at multiples of 4
from the shot's start, so that a latent frame covers the same source frames in every plan and gets the same
keyed noise. Lengths are balanced: a short tail, padded up by repeating its last frame, wastes work and looks
worse.

Source: own work; the cross-fade is the one of a widely used derivative.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from seedvr2.errors import ConfigError, ShapeError
from seedvr2.video.resize import padded_length


@dataclass(frozen=True)
class Segment:
    """A piece of a video that the model sees at once.

    To join: restore the segments in order, cross-fade the first `overlap` frames with the last frames of the
    previous segment (as they are after its own cross-fade), and write the frames in `owned`.

    Attributes:
        index: Place in the plan.
        shot: Place of its shot.
        start: Its first source frame.
        stop: The source frame after its last.
        overlap: Its leading frames that the previous segment has as well; 0 at the start of a shot.
        owned_stop: The source frame after the last one that it owns; the rest belongs to the next segment.
    """

    index: int
    shot: int
    start: int
    stop: int
    overlap: int
    owned_stop: int

    @property
    def length(self) -> int:
        """Source frames."""
        return self.stop - self.start

    @property
    def padded(self) -> int:
        """Frames the model sees: 1, or 4n+1 by repeating the last frame."""
        return padded_length(self.length)

    @property
    def owned(self) -> range:
        """Source frames whose final pixels this segment writes; each frame of a video has one owner."""
        return range(self.start, self.owned_stop)


def plan_segments(shots: Sequence[tuple[int, int]], max_frames: int, overlap: int = 5) -> list[Segment]:
    """Cut a video into as few segments as possible, then as evenly as possible.

    Only the last segment of a shot may have a length other than 4n+1, and lacks at most three frames of it.

    Args:
        shots: (start, stop) of each shot in order and without gaps, stop exclusive.
        max_frames: Most frames of one segment, at least 5; it is rounded down to 4n+1.
        overlap: Least frames that consecutive segments of a shot share. 0 lets them abut; anything else is
            rounded up to 4n+1, which keeps starts at multiples of 4 from the shot's start.

    Raises:
        ConfigError: `max_frames` below 5, a negative overlap, or an overlap that leaves no new frames.
        ShapeError: Shots that are empty, out of order or apart.
    """
    longest, shared = _check_limits(max_frames, overlap)
    for start, stop in shots:
        if start >= stop:
            raise ShapeError(f"expected shots of at least one frame, got ({start}, {stop})")
    for (_, stop), (start, _) in pairwise(shots):
        if start != stop:
            raise ShapeError(f"expected shots without gaps, got one that ends at {stop} and one from {start}")

    segments: list[Segment] = []
    for shot, (first, end) in enumerate(shots):
        starts = [first]
        for length in _balanced_lengths(end - first, longest, shared)[:-1]:
            starts.append(starts[-1] + length - shared)
        for place, start in enumerate(starts):
            is_last = place == len(starts) - 1
            segments.append(
                Segment(
                    index=len(segments),
                    shot=shot,
                    start=start,
                    stop=end if is_last else starts[place + 1] + shared,
                    overlap=shared if place else 0,
                    owned_stop=end if is_last else starts[place + 1],
                )
            )
    return segments


def cross_fade_weights(overlap: int) -> Tensor:
    """Weight of the previous segment in each frame that two segments share, float32 (overlap,) from 1 to 0.

    The first and last third hold still, with half a cosine between them; below three frames it is a line.

    Raises:
        ConfigError: A negative overlap.

    Source: the widely used derivative's blending of batches.
    """
    if overlap < 0:
        raise ConfigError(f"expected an overlap of at least 0 frames, got {overlap}")
    if overlap < 3:
        return torch.linspace(1, 0, overlap)
    position = (3 * torch.linspace(0, 1, overlap) - 1).clamp(0, 1)
    return 0.5 + 0.5 * torch.cos(math.pi * position)


def _check_limits(max_frames: int, overlap: int) -> tuple[int, int]:
    """Longest segment and frames shared, both of the form 4n+1 (or none shared)."""
    if max_frames < 5:
        raise ConfigError(f"expected at least 5 frames per segment (5, 9, 13, ...), got {max_frames}")
    if overlap < 0:
        raise ConfigError(f"expected an overlap of at least 0 frames, got {overlap}")
    longest = (max_frames - 1) // 4 * 4 + 1
    shared = padded_length(overlap) if overlap else 0
    if shared >= longest:
        raise ConfigError(
            f"segments of {longest} frames allow an overlap of 0 to "
            f"{longest - 4}, got {overlap}; lower the overlap or allow at least {shared + 4} frames"
        )
    return longest, shared


def _balanced_lengths(frames: int, longest: int, shared: int) -> list[int]:
    """Lengths 4n+1 of segments that cover `frames`, the last one including its padding."""
    if frames <= longest:
        return [padded_length(frames)]
    count = -(-(frames - shared) // (longest - shared))
    # Segment i has 4 * n_i + 1 frames; all of them must cover frames + (count - 1) * shared.
    quarters = -(-(frames + (count - 1) * shared - count) // 4)
    base, longer = divmod(quarters, count)
    lengths = [4 * base + 1] * (count - longer) + [4 * base + 5] * longer
    # The last one bears the padding, so it is a long one; but a lone frame may only come last.
    return lengths if base else lengths[::-1]
