"""Reading: videos, pictures and picture sequences as one kind of stream of frames, in constant memory.

Decided here, where files leave it open:

- Frames are turned upright (display matrix, EXIF). Pixels that are not square stay as they are: the sample
  aspect ratio is in `VideoInfo` and is written to the output, so that no resampling comes before the model.
- Untagged material is BT.601 below 720 lines and BT.709 from there, and limited range.
- A missing, repeated or falling time of presentation is replaced by the next possible one.
- What cannot be decoded is left out and counted: `lost`. `strict` turns that into an error.

FFmpeg's frame threads swallow decoding errors and the frames around them, so they are used only where a
`scan` has found the file to be whole.
"""

import hashlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from seedvr2.errors import VideoError
from seedvr2.video.convert import Thumbnail, ToRgb, color_tags
from seedvr2.video.decode import Ledger, Timeline, decode_frames, open_container, video_stream
from seedvr2.video.frame import (
    AudioInfo,
    ColorTags,
    Frame,
    Orientation,
    PixelArray,
    VideoInfo,
    scale_depth,
)
from seedvr2.video.pictures import list_pictures, read_picture
from seedvr2.video.probe import probe

__all__ = [
    "AudioInfo",
    "ColorTags",
    "Frame",
    "Orientation",
    "PixelArray",
    "Scan",
    "Source",
    "VideoInfo",
    "open_video",
    "probe",
    "scan",
]

_SEEK_BACK = (0, 1, 3, 10)
"""Key frames to go back when a seek overshoots, as it does in formats without an index."""
THUMBNAIL = (36, 64)
"""Height and width of the pictures that `scan` hands out."""


@dataclass(frozen=True)
class Scan:
    """What one decoding pass over a source found.

    Args:
        frames: Frames that decode.
        pts: Their times in units of `VideoInfo.time_base`, strictly increasing.
        lost: Frames that are missing or damaged.
        digest: SHA-256 (hex) of the file's bytes; of all files in order for a sequence.
        keys: Index of each key frame and the time by which a seek finds it; empty where seeks are not safe.
    """

    frames: int
    pts: tuple[int, ...]
    lost: int
    digest: str
    keys: tuple[tuple[int, int], ...]


class Decoded(NamedTuple):
    """A frame as it is stored."""

    picture: av.VideoFrame
    pts: int
    orientation: Orientation


class Source:
    """An opened source: iterate it once for its frames in order of presentation.

    Args:
        info: Facts about the source.
        strict: Raise VideoError at the end if frames were lost.
        start: Index of the first frame to deliver.
        known: A scan of the same source, for exact seeking and faster decoding.
    """

    def __init__(self, info: VideoInfo, *, strict: bool, start: int, known: Scan | None) -> None:
        self.info = info
        self.lost = known.lost if known is not None else 0
        """Frames missing or damaged; final when the iteration has ended."""
        self.keys: tuple[tuple[int, int], ...] = ()
        """As in `Scan`; final when a whole reading has ended."""
        self._strict = strict
        self._start = start
        self._known = known
        self._active: Generator[Frame, None, None] | None = None

    def __iter__(self) -> Iterator[Frame]:
        """Frames from `start` on.

        Raises:
            VideoError: No frame decodes, pictures of a sequence differ in size, a colour matrix is not
                supported, or frames are lost in strict mode.
        """
        self._active = self._convert()
        return self._active

    def close(self) -> None:
        """Release the file; an iteration that is under way ends."""
        if self._active is not None:
            self._active.close()

    def decode(self) -> Iterator[Decoded]:
        """Frames from `start` on as they are stored, without conversion."""
        frames = self._decode_video() if self.info.kind == "video" else self._decode_pictures()
        is_empty = True
        for decoded in frames:
            is_empty = False
            yield decoded
        if is_empty and self._start == 0:
            raise VideoError(f"{self.info.path}: no frame can be decoded; the file is damaged or cut off")
        if self._strict and self.lost:
            raise VideoError(
                f"{self.info.path}: {self.lost} frames are lost or damaged; "
                "get a whole copy, or restore what is there without --strict"
            )

    def _convert(self) -> Generator[Frame, None, None]:
        info = self.info
        to_rgb = ToRgb(info.color, *info.orientation.size(info.width, info.height), info.path)
        for picture, pts, orientation in self.decode():
            if info.kind != "video":  # each picture has its own tags and stored size
                to_rgb = ToRgb(color_tags(picture), picture.width, picture.height, info.path)
            data, depth = to_rgb(picture)
            yield Frame(orientation.apply(scale_depth(data, depth, info.bit_depth)), info.bit_depth, pts)

    def _decode_pictures(self) -> Iterator[Decoded]:
        files = list_pictures(self.info.path) or (Path(self.info.path),)
        wanted = (self.info.width, self.info.height)
        self.lost = 0
        index = self._start if self._known is not None and self._known.lost == 0 else 0
        for path in files[index:]:
            try:
                picture = read_picture(path)
            except VideoError:
                if len(files) == 1:
                    raise
                self.lost += 1
                continue
            size = picture.orientation.size(picture.frame.width, picture.frame.height)
            if size != wanted:
                raise VideoError(
                    f"{path}: expected {wanted[0]}x{wanted[1]} as the first picture of the sequence, "
                    f"found {size[0]}x{size[1]}; remove or resize it"
                )
            self.lost += picture.damaged
            if index >= self._start:
                yield Decoded(picture.frame, index, picture.orientation)
            index += 1

    def _decode_video(self) -> Iterator[Decoded]:
        known, index = self._known, self._start
        if known is not None:
            before = [time for key, time in known.keys if 0 < key <= index]
            for back in _SEEK_BACK[: len(before)]:
                for decoded in self._decode_from(before[max(-1 - back, -len(before))], known):
                    yield decoded
                    index += 1
                if index > self._start:
                    break
            if index >= known.frames:
                return
        yield from self._decode_through(index)

    def _decode_from(self, time: int, known: Scan) -> Iterator[Decoded]:
        """Frames from `start` on by a seek to `time`; none if the seek misses, fewer if frames do not fit.

        A decoder may show broken frames before the first key frame it shows, but none after it. From there
        frames are counted, and their times taken from the scan.
        """
        path, keys = Path(self.info.path), {key_time: index for index, key_time in known.keys}
        ledger, index = Ledger(), -1
        with open_container(path) as container:
            stream = video_stream(path, container)
            stream.thread_type = "AUTO"
            try:
                container.seek(time, stream=stream)
            except av.FFmpegError:
                return
            for picture in decode_frames(container, stream, ledger):
                if index >= 0:
                    index += 1
                elif picture.key_frame and ledger.key_packets:
                    found = ledger.key_packets[0]
                    if found not in keys or keys[found] > self._start:
                        return
                    if not ledger.sorted_times and picture.pts not in (None, found):
                        return  # the decoder needed more than this key frame
                    index = keys[found]
                if index >= known.frames:
                    return
                if index >= self._start:
                    yield Decoded(picture, known.pts[index], self.info.orientation)

    def _decode_through(self, start: int) -> Iterator[Decoded]:
        """Frames from `start` on by decoding everything before them."""
        path = Path(self.info.path)
        second = round(1 / self.info.time_base)
        timeline = Timeline(max(1, round(1 / (self.info.fps * self.info.time_base))), second)
        ledger = Ledger()
        with open_container(path) as container:
            stream = video_stream(path, container)
            is_whole = self._known is not None and self._known.lost == 0
            stream.thread_type = "AUTO" if is_whole else "SLICE"
            for index, picture in enumerate(decode_frames(container, stream, ledger)):
                time = timeline.next(picture.pts)
                if index >= start:
                    yield Decoded(picture, time, self.info.orientation)
            self.lost = ledger.lost(path, container, stream)
            self.keys = ledger.keys() if self.lost == 0 else ()


@contextmanager
def open_video(
    path: str | Path, *, strict: bool = False, start: int = 0, known: Scan | None = None
) -> Iterator[Source]:
    """Open a video, a picture or a sequence of pictures for reading.

    Args:
        path: What `probe` accepts.
        strict: Raise VideoError at the end of the iteration if frames were lost.
        start: Index of the first frame to deliver, in order of presentation; exactly the frame that a full
            reading delivers at that place.
        known: A scan of the same source. With it `start` is found by a seek, without it by decoding and
            dropping what comes before.

    Yields:
        The source; iterate it for its frames.

    Raises:
        VideoError: As `probe`; while iterating, as `Source`.
    """
    source = Source(probe(path), strict=strict, start=start, known=known)
    try:
        yield source
    finally:
        source.close()


def scan(
    path: str | Path, *, strict: bool = False, on_frame: Callable[[NDArray[np.uint8]], None] | None = None
) -> Scan:
    """Decode a source once, to know its frames, their times and its damage before any work is planned.

    Args:
        path: What `probe` accepts.
        strict: Raise VideoError if frames are lost.
        on_frame: Called with a thumbnail of every frame, uint8 (36, 64, 3), as it is stored.

    Raises:
        VideoError: As `probe` and `Source`.
    """
    source = Source(probe(path), strict=strict, start=0, known=None)
    shrink = Thumbnail(width=THUMBNAIL[1], height=THUMBNAIL[0])
    times = []
    for decoded in source.decode():
        times.append(decoded.pts)
        if on_frame is not None:
            on_frame(shrink(decoded.picture))
    digest = hashlib.sha256()
    for file in list_pictures(path) or (Path(path),):
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return Scan(len(times), tuple(times), source.lost, digest.hexdigest(), source.keys)
