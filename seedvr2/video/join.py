"""Joining parts into the result: their packets under the source's times, with the source's audio, unchanged.

Nothing is encoded again. A part counts frames; here frame i gets the real time i of the source, so a
variable frame rate and the last frame's duration survive. Packet number n in order of decoding gets decoding
time n - delay on the same clock, with the smallest delay that puts no packet after its own presentation;
below frame 0 the clock continues with its first step.

MPEG transport and program streams count time from an arbitrary origin; their earliest stream is moved to
zero, audio and video alike. All other sources keep their times exactly (Matroska outputs round to
milliseconds, and move everything by the audio's priming if that starts below zero).

Source: ISO/IEC 14496-12 for edit lists, H.264 and H.265 Annex C for decoding times.
"""

import heapq
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, cast

import av
from av.container import InputContainer, OutputContainer
from av.format import Flags
from PIL import Image

from seedvr2.errors import VideoError
from seedvr2.storage import write_atomic, write_directory
from seedvr2.video.decode import open_container, video_stream
from seedvr2.video.frame import VideoInfo
from seedvr2.video.output import CONTAINERS, check_output, output_kind, sequence_pattern
from seedvr2.video.pictures import numbered_files, numbered_name
from seedvr2.video.write import EncodeSettings, open_output, writing

_LOSSY_QUALITY = 95
"""Quality of JPEG and WebP pictures, of 100."""
_ARBITRARY_ORIGIN = cast(int, Flags.ts_discont.value)


def join_parts(
    output: str | Path,
    parts: Sequence[Path],
    source: str | Path,
    info: VideoInfo,
    timestamps: Sequence[int],
    settings: EncodeSettings,
    overwrite: bool = False,
    audio: bool = True,
) -> None:
    """Make the result of parts, atomically.

    Args:
        output: File, pattern or directory to write; its name decides the kind, see `output_kind`. Pictures of
            a sequence are numbered from 1; with `overwrite`, those of an earlier, longer result are removed.
        parts: Files that `write_part` made, in order.
        source: The restored file, for its audio and the duration of its last frame.
        info: Facts about the source.
        timestamps: Presentation time of every frame of all parts, strictly increasing, in units of
            `info.time_base`.
        settings: As `check_output` returned them.
        overwrite: Whether an existing output may be replaced.
        audio: Whether to copy all audio streams, packet by packet.

    Raises:
        VideoError: As `check_output`; parts that do not fit each other or `timestamps`; a full disk. Nothing
            is left under the final name, and an older output stays.
    """
    kind = output_kind(output)
    check_output(output, info, settings, overwrite, audio)
    orders = [_display_order(part, info.fps) for part in parts]
    if sum(len(order) for order in orders) != len(timestamps) or not timestamps:
        held = sum(len(order) for order in orders)
        raise VideoError(
            f"{output}: expected {len(timestamps)} frames in its {len(parts)} parts, found {held}; "
            "delete the parts and restore again"
        )
    if kind == "video":
        with writing(output), write_atomic(output) as temporary:
            _join_video(temporary, Path(output), parts, orders, Path(source), info, timestamps, audio)
    elif kind == "sequence":
        _join_sequence(sequence_pattern(output), parts)
    else:
        _join_picture(Path(output), parts)


def _display_order(part: Path, fps: Fraction) -> list[int]:
    """Indices of a part's frames in order of decoding."""
    with open_container(part) as container:
        ticks = fps * (container.streams.video[0].time_base or 1)
        return [round(packet.pts * ticks) for packet in _packets(container, container.streams.video[0])]


def _packets(container: InputContainer, *streams: Any) -> Iterator[Any]:
    """Packets with content, up to the first error of the container."""
    try:
        for packet in container.demux(*streams):
            if packet.size and not packet.is_corrupt:
                yield packet
    except av.FFmpegError:
        return


def _join_video(
    temporary: Path,
    output: Path,
    parts: Sequence[Path],
    orders: Sequence[list[int]],
    source: Path,
    info: VideoInfo,
    timestamps: Sequence[int],
    audio: bool,
) -> None:
    container = CONTAINERS[output.suffix.lower()]
    end = _end_of_last_frame(source, info, timestamps)
    with ExitStack() as stack:
        reader = stack.enter_context(open_container(source)) if info.kind == "video" else None
        sounds = list(reader.streams.audio) if reader is not None and audio else []
        origin = _clock_origin(reader, sounds, timestamps[0] * info.time_base)
        shift = round(origin / info.time_base)
        times = _Times([time - shift for time in timestamps], end - shift, orders)
        ticks = math.lcm(1000, info.time_base.denominator, *(sound.rate for sound in sounds))
        options = {"movflags": "+faststart"} if container != "matroska" else {}
        if container != "matroska" and ticks < 2**31:
            options["movie_timescale"] = str(ticks)
        writer = stack.enter_context(open_output(temporary, container, options))
        video = _add_video(writer, parts[0], info, container)
        copies = {sound.index: _add_audio(writer, sound) for sound in sounds}
        sources = [_video_packets(parts, orders, times, video, info)]
        if reader is not None and sounds:
            sources.append(_audio_packets(reader, sounds, copies, origin))
        for _, packet in heapq.merge(*sources, key=lambda timed: timed[0]):
            writer.mux(packet)


class _Times:
    """Presentation and decoding times of frames by index.

    Args:
        presentation: Time of every frame.
        end: End of the last frame.
        orders: Per part, the indices of its frames in order of decoding.
    """

    def __init__(self, presentation: Sequence[int], end: int, orders: Sequence[list[int]]) -> None:
        self._presentation = presentation
        self._end = end
        step = presentation[1] - presentation[0] if len(presentation) > 1 else end - presentation[0]
        self._step = max(1, step)
        self._delay = max(number - index for order in orders for number, index in enumerate(order))

    def presentation(self, index: int) -> int:
        return self._presentation[index]

    def decoding(self, number: int) -> int:
        index = number - self._delay
        return self._presentation[0] + index * self._step if index < 0 else self._presentation[index]

    def duration(self, index: int) -> int:
        last = index + 1 == len(self._presentation)
        return (self._end if last else self._presentation[index + 1]) - self._presentation[index]


def _add_video(writer: OutputContainer, part: Path, info: VideoInfo, container: str) -> Any:
    """The video stream of the output, described as in the first part."""
    with open_container(part) as reader:
        stream: Any = writer.add_stream_from_template(reader.streams.video[0], opaque=True)
    stream.time_base = info.time_base
    stream.codec_context.framerate = info.fps
    if stream.codec_context.codec.canonical_name == "hevc" and container != "matroska":
        stream.codec_context.codec_tag = "hvc1"  # Apple's players refuse the default
    return stream


def _add_audio(writer: OutputContainer, sound: Any) -> Any:
    stream = writer.add_stream_from_template(sound, opaque=True)
    stream.metadata.update(
        {key: value for key, value in sound.metadata.items() if key in ("language", "title")}
    )
    stream.disposition = sound.disposition.value
    return stream


def _video_packets(
    parts: Sequence[Path], orders: Sequence[list[int]], times: _Times, stream: Any, info: VideoInfo
) -> Iterator[tuple[float, Any]]:
    """Packets of all parts with their real times, and the seconds at which each is due."""
    first, description = 0, None
    for part, order in zip(parts, orders, strict=True):
        with open_container(part) as container:
            extradata = container.streams.video[0].codec_context.extradata
            if first and extradata != description:
                raise VideoError(f"{part}: encoded with other settings than the parts before; restore again")
            description = extradata
            for number, packet in enumerate(_packets(container, container.streams.video[0])):
                index = first + order[number]
                packet.stream = stream
                packet.time_base = info.time_base
                packet.pts = times.presentation(index)
                packet.dts = times.decoding(first + number)
                packet.duration = times.duration(index)
                yield float(packet.dts * info.time_base), packet
        first += len(order)


def _audio_packets(
    reader: InputContainer, sounds: Sequence[Any], copies: dict[int, Any], origin: Fraction
) -> Iterator[tuple[float, Any]]:
    """Packets of the source's audio streams under their own times, and the seconds at which each is due."""
    latest: dict[int, int] = {}
    for packet in _packets(reader, *sounds):
        index, shift = packet.stream_index, round(origin / packet.time_base)
        earliest = latest[index] + 1 if index in latest else None
        found = packet.dts if packet.dts is not None else packet.pts
        dts = found - shift if found is not None else (earliest or 0)
        dts = dts if earliest is None else max(dts, earliest)  # a container needs rising times
        packet.pts = max(packet.pts - shift, dts) if packet.pts is not None else dts
        packet.dts = latest[index] = dts
        packet.stream = copies[index]
        yield float(dts * packet.time_base), packet


def _clock_origin(reader: InputContainer | None, sounds: Sequence[Any], start: Fraction) -> Fraction:
    """Seconds that the output's zero lies after the source's: 0 unless the source's zero is arbitrary."""
    if reader is None or not reader.format.flags & _ARBITRARY_ORIGIN:
        return Fraction(0)
    starts = [Fraction(s.start_time * s.time_base) for s in sounds if s.start_time is not None]
    return min([start, *starts])


def _end_of_last_frame(source: Path, info: VideoInfo, timestamps: Sequence[int]) -> int:
    """Where the last restored frame ends, in units of the time base."""
    last = timestamps[-1]
    usual = last - timestamps[-2] if len(timestamps) > 1 else round(1 / (info.fps * info.time_base))
    if info.kind == "video":
        with open_container(source) as container, suppress(av.FFmpegError):
            stream = video_stream(source, container)
            if "mp4" in container.format.name and len(timestamps) == info.frame_count and stream.duration:
                end = (stream.start_time or 0) + stream.duration
                if end > last:  # else it is a sum of decoding times, with a variable frame rate
                    return end
            container.seek(last, stream=stream)
            for packet in _packets(container, stream):
                if packet.pts == last and packet.duration:
                    return last + int(packet.duration)
    return last + max(1, usual)


def _pictures(parts: Sequence[Path]) -> Iterator[bytes]:
    """The content of one PNG file per frame."""
    for part in parts:
        with open_container(part) as container:
            for packet in _packets(container, container.streams.video[0]):
                yield bytes(packet)


def _join_sequence(pattern: Path, parts: Sequence[Path]) -> None:
    names = set()
    with writing(pattern), write_directory(pattern.parent) as directory:
        for number, content in enumerate(_pictures(parts), start=1):
            names.add(numbered_name(pattern, number))
            (directory / numbered_name(pattern, number)).write_bytes(content)
    for stale in numbered_files(pattern):
        if stale.name not in names:
            stale.unlink(missing_ok=True)


def _join_picture(output: Path, parts: Sequence[Path]) -> None:
    content, *more = islice(_pictures(parts), 2)
    if more:
        raise VideoError(f"{output}: one picture cannot hold a video; use a name with %06d.png, or .mp4")
    with writing(output), write_atomic(output) as temporary:
        if output.suffix.lower() == ".png":
            temporary.write_bytes(content)
        elif output.suffix.lower() == ".webp":
            Image.open(io.BytesIO(content)).save(temporary, "WEBP", quality=_LOSSY_QUALITY)
        else:
            Image.open(io.BytesIO(content)).save(temporary, "JPEG", quality=_LOSSY_QUALITY, subsampling=0)
