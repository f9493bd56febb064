"""One video file through FFmpeg: opening, decoding in presentation order, and counting what is lost.

Frames are lost where a file is cut off or damaged. What the file's tables promise, what its packets hold and
what the decoder gives are counted apart; a frame that decodes with errors is delivered and counted as lost.

Source: ISO/IEC 14496-12 (sample tables, edit lists), RFC 8794 and RFC 9559 (Matroska), ISO/IEC 13818-1.
"""

import heapq
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
from av.container import Flags, InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from seedvr2.errors import VideoError
from seedvr2.video.pictures import check_size

DEFAULT_FPS = Fraction(25)
"""Frames per second of pictures, and of videos that do not say."""
_HIGHEST_FPS = 1000
"""A larger declared rate is a clock rate, not a frame rate."""
_GUESS_TIMES = cast(int, Flags.gen_pts.value)
"""FFmpeg's invention of presentation times, which PyAV turns on."""
_NO_MEDIA = frozenset(("adf", "bin", "concat", "dash", "hls", "idf", "sdp", "svg_pipe", "tty", "xbin"))
"""FFmpeg formats that draw text or refer to other files."""


def open_container(path: Path) -> InputContainer:
    """Open a video file; nothing that it refers to (playlists, addresses) is followed.

    Raises:
        VideoError: Missing, empty, unreadable, or not a medium.
    """
    try:
        if path.stat().st_size == 0:
            raise VideoError(f"{path}: the file is empty; replace it")
        container = av.open(
            f"file:{os.path.abspath(path)}",
            mode="r",
            metadata_errors="replace",
            options={"protocol_whitelist": "file"},
        )
        container.flags &= ~_GUESS_TIMES
        if container.format.name in _NO_MEDIA:
            container.close()
            raise VideoError(f"{path}: not a video or picture, but text or a playlist; choose another file")
        return container
    except av.InvalidDataError as error:
        with path.open("rb") as handle:
            is_mp4 = handle.read(8)[4:] == b"ftyp"
        cause = "cut off before its index (moov)" if is_mp4 else "not a video or picture that can be read"
        raise VideoError(f"{path}: {cause}; check or replace the file") from error
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: cannot open: {error.strerror}; check the file") from error


def video_stream(path: Path, container: InputContainer) -> VideoStream:
    """The first video stream that is no cover picture.

    Raises:
        VideoError: There is none, it has no decoder, or its declared size is absurd.
    """
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        found = "only audio" if container.streams.audio else "none"
        raise VideoError(f"{path}: expected a video stream, found {found}; choose a file with pictures")
    context = streams[0].codec_context
    if context is None:
        raise VideoError(f"{path}: no decoder for its video codec; convert the file to H.264 first")
    check_size(path, context.width, context.height)
    return streams[0]


def frame_rate(stream: VideoStream) -> Fraction:
    """Average frames per second, as declared or guessed; 25 if nothing plausible is known."""
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate is not None and 0 < rate <= _HIGHEST_FPS:
            return rate
    return DEFAULT_FPS


def declared_frames(container: InputContainer, stream: VideoStream) -> int:
    """Frames that the file's own tables promise; 0 if it has no such table."""
    if "mp4" in container.format.name:
        return sum(1 for entry in stream.index_entries if entry.size > 0 and not entry.is_discard)
    return stream.frames


@dataclass
class Ledger:
    """What was read of one file so far."""

    packets: int = 0
    """Packets that should each give a frame."""
    empty: int = 0
    """Packets without content: the frame before is to be repeated, as AVI files do."""
    frames: int = 0
    damaged: int = 0
    """Frames that decoded with errors."""
    broken: bool = False
    """Reading stopped at an error instead of at the end."""
    end: int = 0
    """End of the last frame, in units of the stream's time base."""
    regular: int = 0
    """Frames that begin where the one before ends."""
    skipped: int = 0
    """Frames that would fill the gaps between others."""
    key_packets: list[int | None] = field(default_factory=list)
    """Times by which the packets of key frames are known: of presentation, else of decoding."""
    key_frames: list[int] = field(default_factory=list)
    """Indices of the frames that were decoded from them."""
    sorted_times: bool = False
    """Frames have the sorted times of packets, not their own."""

    def keys(self) -> tuple[tuple[int, int], ...]:
        """Index and time of every key frame; nothing if packets and frames do not pair up."""
        times = [time for time in self.key_packets if time is not None]
        is_paired = len(self.key_packets) == len(self.key_frames) == len(set(times))
        return tuple(zip(self.key_frames, times, strict=True)) if is_paired else ()

    def count(self, frame: av.VideoFrame, step: int) -> None:
        """Take a decoded frame into account; `step` is the usual time from one to the next."""
        if frame.key_frame:
            self.key_frames.append(self.frames)
        self.frames += 1
        self.damaged += frame.is_corrupt
        if frame.pts is None:
            return
        gap = frame.pts - self.end
        self.regular += abs(gap) <= step // 10
        self.skipped += max(0, round(gap / step)) if self.frames > 1 else 0
        self.end = frame.pts + step

    def lost(self, path: Path, container: InputContainer, stream: VideoStream) -> int:
        """Frames that are missing or damaged, after everything was read."""
        declared = declared_frames(container, stream)
        if "mp4" not in container.format.name:
            declared -= self.empty
        missing = max(declared, self.packets) - self.frames
        if "matroska" in container.format.name:
            missing = max(missing, _missing_matroska_frames(path, stream, self.end))
        if "mpeg" in container.format.name and self.regular >= 0.9 * self.frames:
            missing = max(missing, self.skipped)  # no table, but a constant rate: a gap is a loss
        return max(max(missing, 0) + self.damaged, int(self.broken))


def decode_frames(container: InputContainer, stream: VideoStream, ledger: Ledger) -> Iterator[av.VideoFrame]:
    """Frames in presentation order, passing over what cannot be decoded; `ledger` is kept up to date."""
    step = max(1, round(1 / (frame_rate(stream) * (stream.time_base or Fraction(1, 1000)))))
    times = _PacketTimes()
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            ledger.broken = True
            packet = None
        is_end = packet is None or (packet.size == 0 and packet.dts is None)
        if packet is not None and not is_end:
            if packet.size == 0:
                ledger.empty += 1  # and not decoded: an empty packet would end decoding
                continue
            # Packets of VP8 that only serve as a reference give no frame.
            ledger.packets += not packet.is_discard and stream.codec_context.codec.canonical_name != "vp8"
            if packet.is_keyframe and not packet.is_discard:
                ledger.key_packets.append(packet.pts if packet.pts is not None else packet.dts)
            times.add(packet.pts, packet.dts)
        try:
            frames = stream.codec_context.decode(packet)
        except av.FFmpegError:
            frames = []
        for frame in frames:
            earliest = times.take()
            ledger.sorted_times = stream.codec_context.reorder_depth > 0 and times.are_of_decoding
            if ledger.sorted_times and earliest is not None:
                frame.pts = earliest
            ledger.count(frame, step)
            yield frame
        if is_end:
            return


class _PacketTimes:
    """Presentation times of streams that carry only decoding times although they are reordered.

    Some files (AVI, faulty MP4) do that: the delay from decoding to presentation never changes, or is unknown
    for every packet. Sorted, these times are those of presentation: a frame gets the earliest one still free.
    """

    def __init__(self) -> None:
        self._delays: set[int | None] = set()
        self._free: list[int] = []

    def add(self, pts: int | None, dts: int | None) -> None:
        self._delays.add(None if pts is None or dts is None else pts - dts)
        time = pts if pts is not None else dts
        if time is not None:
            heapq.heappush(self._free, time)

    def take(self) -> int | None:
        """The earliest time that no frame has taken."""
        return heapq.heappop(self._free) if self._free else None

    @property
    def are_of_decoding(self) -> bool:
        return len(self._delays) == 1


class Timeline:
    """Gives every frame a time after the one before.

    Args:
        step: Usual units between frames, at least 1.
        second: Units per second; a jump back of more than that is a new beginning of the clock.
    """

    def __init__(self, step: int, second: int) -> None:
        self._step = step
        self._second = second
        self._offset = 0
        self._last: int | None = None

    def next(self, pts: int | None) -> int:
        """The time of the next frame: as found if it lies after the last one, else repaired."""
        if self._last is None:
            time = 0 if pts is None else pts
        else:
            time = self._last + self._step if pts is None else pts + self._offset
            if pts is not None and time < self._last - self._second:
                time = self._last + self._step
                self._offset = time - pts
            time = max(time, self._last + 1)
        self._last = time
        return time


def _missing_matroska_frames(path: Path, stream: VideoStream, end: int) -> int:
    """Frames between the last one read and the declared end, if the file is shorter than its segment says."""
    if not _is_cut_matroska(path) or stream.time_base is None:
        return 0
    try:
        hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
        declared = int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds.strip("\0 "))
    except ValueError:
        return 1
    return max(1, round((declared - end * stream.time_base) * frame_rate(stream)))


def _is_cut_matroska(path: Path) -> bool:
    with path.open("rb") as handle:
        head = handle.read(256)
    segment = head.find(b"\x18\x53\x80\x67")
    if segment < 0 or segment + 12 > len(head):
        return False
    width = 9 - head[segment + 4].bit_length()
    field = int.from_bytes(head[segment + 4 : segment + 4 + width]) & ((1 << 7 * width) - 1)
    is_unknown = field == (1 << 7 * width) - 1
    return not is_unknown and segment + 4 + width + field > path.stat().st_size
