"""Encoding one independent part of a result.

A part is one file per segment. Its frames are numbered, its clock ticks once per frame, it starts with an IDR
picture and refers to nothing outside, so parts made on different machines or in different runs can be joined
without encoding again. The same frames give the same bytes: thread counts are fixed, processor-dependent
shortcuts are off, and no date, version or random number is written.

Sizes with an odd side are coded as 4:4:4 (H.264 High 4:4:4 Predictive, HEVC Main 4:4:4), so that nothing is
cropped; all others as 4:2:0. The codec "png" is lossless RGB, with 16 bits per channel if more than 8 are
asked.
"""

import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, Literal, cast

import av
from av.container import Flags, OutputContainer
from av.video.stream import VideoStream
from pydantic import Field

from seedvr2.config import Config
from seedvr2.errors import VideoError
from seedvr2.storage import write_atomic
from seedvr2.video.convert import FromRgb, output_color
from seedvr2.video.frame import ColorTags, Frame, VideoInfo

PART_SUFFIX = ".mov"
"""Usual suffix of a part: QuickTime holds every codec here, with exact clocks."""
_THREADS = 4
"""Fixed: the number of threads decides the bytes."""
_REORDER = 2
"""Frames by which decoding runs ahead of presentation: both encoders use one level of B pyramid at most."""
_ENCODERS: dict[str, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {"x264-params": "cpu-independent=1:log=-1"}),
    "hevc": ("libx265", {"x265-params": "frame-threads=2:pools=4:open-gop=0:log-level=none"}),
    "png": ("png", {}),
}


class EncodeSettings(Config):
    """How a result is encoded."""

    codec: Literal["h264", "hevc", "png"] = "h264"
    """png is lossless; picture and sequence outputs always use it."""
    crf: int = Field(17, ge=0, le=51)
    """Quality of h264 and hevc: constant rate factor, lower is better, 6 less doubles the size."""
    preset: Literal[
        "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"
    ] = "medium"
    """Effort of h264 and hevc."""
    bit_depth: Literal[8, 10] = 8
    """Bits per sample; png knows 8 and 16, and takes 16 for 10."""


def write_part(path: str | Path, frames: Iterable[Frame], settings: EncodeSettings, info: VideoInfo) -> int:
    """Encode frames as one part, atomically.

    Args:
        path: The part; whatever its suffix, the container is QuickTime.
        frames: In order of presentation, all of one size; their pts is ignored, they are numbered from 0.
        settings: As `check_output` returned them.
        info: Facts about the source: frame rate, colour and sample aspect ratio are taken over.

    Returns:
        Number of frames written.

    Raises:
        VideoError: No frames, frames of different sizes, a size that the codec cannot hold, a full disk, or a
            directory that cannot be written. Nothing is left under the final name.
    """
    following = iter(frames)
    first = next(following, None)
    if first is None:
        raise VideoError(f"{path}: expected at least one frame to write, got none; check the source")
    height, width = first.data.shape[:2]
    clock = {"video_track_timescale": str(info.fps.numerator)}
    with writing(path), write_atomic(path) as temporary, open_output(temporary, "mov", clock) as output:
        stream, color = _add_stream(output, path, (width, height), settings, info)
        convert = FromRgb(stream.codec_context.pix_fmt or "", color)
        written = 0
        for count, frame in enumerate(chain([first], following)):
            if frame.data.shape[:2] != (height, width):
                found = f"{frame.data.shape[1]}x{frame.data.shape[0]}"
                raise VideoError(f"{path}: expected frames of {width}x{height}, got {found}; use one size")
            picture = convert(frame.data, frame.bit_depth)
            picture.pts, picture.time_base = count, 1 / info.fps
            written = _mux(output, stream, stream.encode(picture), written)
        return _mux(output, stream, stream.encode(None), written)


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn errors of the disk or of FFmpeg into one line that names the file and the remedy.

    Raises:
        VideoError: For every OSError and FFmpegError in the block.
    """
    try:
        yield
    except (OSError, av.FFmpegError) as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            remedy = "free space, raise the file size limit, or choose another place"
        else:
            remedy = "check the place and its permissions, or choose another"
        raise VideoError(f"{path}: cannot write: {error.strerror}; {remedy}") from error


@contextmanager
def open_output(path: Path, container: str, options: dict[str, str]) -> Iterator[OutputContainer]:
    """A container for writing without dates, versions or random numbers; finished only without an error.

    Args:
        path: File to write.
        container: FFmpeg's name of the format.
        options: Options of the format.
    """
    output = av.open(str(path), mode="w", format=container, options=options)
    output.flags |= cast(int, Flags.bitexact.value)
    try:
        yield output
    except BaseException:
        with suppress(OSError, av.FFmpegError):
            output.close()
        raise
    output.close()


def _add_stream(
    output: OutputContainer,
    path: str | Path,
    size: tuple[int, int],
    settings: EncodeSettings,
    info: VideoInfo,
) -> tuple[VideoStream, ColorTags]:
    """The opened video stream of a part, and the tags that it carries."""
    width, height = size
    encoder, options = _ENCODERS[settings.codec]
    if settings.codec != "png":
        options = {**options, "crf": str(settings.crf), "preset": settings.preset}
    stream: Any = output.add_stream(encoder, rate=info.fps, options=options)
    color = output_color(info.color, height, info.kind, info.path)
    context = stream.codec_context
    context.width, context.height = width, height
    context.pix_fmt = _pixel_format(settings, width, height)
    context.time_base = 1 / info.fps
    context.thread_count = _THREADS
    context.thread_type = "FRAME"
    context.sample_aspect_ratio = info.sample_aspect_ratio
    if settings.codec != "png":
        context.color_primaries, context.color_trc = color.primaries, color.transfer
        context.colorspace, context.color_range = color.matrix, color.range
    try:
        context.open()
    except av.FFmpegError as error:
        raise VideoError(
            f"{path}: {settings.codec} cannot hold frames of {width}x{height}; "
            "choose another size, or the codec h264"
        ) from error
    return stream, color


def _pixel_format(settings: EncodeSettings, width: int, height: int) -> str:
    if settings.codec == "png":
        return "rgb24" if settings.bit_depth == 8 else "rgb48be"
    layout = "yuv444p" if width % 2 or height % 2 else "yuv420p"
    return layout if settings.bit_depth == 8 else f"{layout}10le"


def _mux(output: OutputContainer, stream: VideoStream, packets: Sequence[Any], written: int) -> int:
    """Write packets; returns how many there are now.

    Decoding times are counted here: libx265 leaves them undefined in parts shorter than its reordering.
    """
    for packet in packets:
        packet.dts = written - _REORDER
        output.mux(packet)
        written += 1
    return written
