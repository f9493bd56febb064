"""The facts about a source, read from its header and its first frame."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.stream import VideoStream

from seedvr2.errors import VideoError
from seedvr2.video.convert import bit_depth, color_tags
from seedvr2.video.decode import (
    DEFAULT_FPS,
    Ledger,
    declared_frames,
    decode_frames,
    frame_rate,
    open_container,
    video_stream,
)
from seedvr2.video.frame import AudioInfo, Orientation, VideoInfo
from seedvr2.video.pictures import (
    PICTURE_SUFFIXES,
    Picture,
    check_size,
    is_picture_format,
    list_pictures,
    read_picture,
)


def probe(path: str | Path) -> VideoInfo:
    """Read what a source is: a video file, a picture, or a sequence of pictures.

    Args:
        path: A file, a directory of pictures, a pattern such as `shot-%06d.png`, or a glob.

    Raises:
        VideoError: Missing, empty, not a medium, without a video stream, without a decodable frame, too
            large, or a directory without pictures.
    """
    pictures = list_pictures(path)
    if pictures is not None:
        return _describe_pictures(path, read_picture(pictures[0]), len(pictures), "sequence")
    file = Path(path)
    if file.suffix.lower() in PICTURE_SUFFIXES and not _is_video_inside(file):
        return _describe_pictures(path, read_picture(file), 1, "picture")
    with open_container(file) as container:
        if is_picture_format(container.format.name):
            return _describe_pictures(path, read_picture(file), 1, "picture")
        return _describe_video(file, container)


def _is_video_inside(path: Path) -> bool:
    """Whether a file named like a picture holds a video."""
    try:
        with path.open("rb") as handle, av.open(handle, mode="r") as container:
            return not is_picture_format(container.format.name)
    except (av.FFmpegError, OSError):
        return False


def _describe_video(path: Path, container: InputContainer) -> VideoInfo:
    stream = video_stream(path, container)
    frame = next(decode_frames(container, stream, Ledger()), None)
    if frame is None:
        raise VideoError(f"{path}: no frame can be decoded; the file is damaged or cut off")
    check_size(path, frame.width, frame.height)
    orientation = _orientation(frame)
    aspect = stream.sample_aspect_ratio or Fraction(1)
    time_base = stream.time_base or Fraction(1, 1000)
    width, height = orientation.size(frame.width, frame.height)
    return VideoInfo(
        path=str(path),
        kind="video",
        width=width,
        height=height,
        fps=frame_rate(stream),
        time_base=time_base,
        duration=_duration(container, stream, time_base),
        bit_depth=bit_depth(frame.format),
        color=color_tags(frame),
        orientation=orientation,
        sample_aspect_ratio=1 / aspect if orientation.transpose else aspect,
        audio=tuple(_describe_audio(audio) for audio in container.streams.audio),
        container=container.format.name,
        codec=stream.codec_context.codec.canonical_name,
        frame_count=declared_frames(container, stream) or None,
    )


def _describe_pictures(path: str | Path, picture: Picture, count: int, kind: Any) -> VideoInfo:
    width, height = picture.orientation.size(picture.frame.width, picture.frame.height)
    return VideoInfo(
        path=str(path),
        kind=kind,
        width=width,
        height=height,
        fps=DEFAULT_FPS,
        time_base=1 / DEFAULT_FPS,
        duration=float(count / DEFAULT_FPS),
        bit_depth=bit_depth(picture.frame.format),
        color=color_tags(picture.frame),
        orientation=picture.orientation,
        sample_aspect_ratio=Fraction(1),
        audio=(),
        container=picture.container,
        codec=picture.codec,
        frame_count=count,
    )


def _describe_audio(stream: Any) -> AudioInfo:
    context = stream.codec_context
    if context is None:
        return AudioInfo("unknown", 0, 0)
    return AudioInfo(context.codec.canonical_name, context.layout.nb_channels, context.sample_rate)


def _orientation(frame: av.VideoFrame) -> Orientation:
    """From the display matrix, if the frame carries one."""
    try:
        side_data: Any = frame.side_data
        matrix = np.frombuffer(side_data[SideDataType.DISPLAYMATRIX], np.int32)
    except KeyError:
        return Orientation()
    except (
        ValueError
    ):  # some side data beside it is unknown to PyAV: the turn is still readable, a mirror is not
        return Orientation.from_rotation(-frame.rotation)
    a, b, _, c, d = (int(value) for value in matrix[:5])
    return Orientation.from_matrix(a, b, c, d)


def _duration(container: InputContainer, stream: VideoStream, time_base: Fraction) -> float | None:
    if stream.duration is not None:
        return float(stream.duration * time_base)
    return container.duration / av.time_base if container.duration is not None else None
