"""Small real files for the tests of `seedvr2.video`: every frame tells its number, sound is a tone."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import VideoReformatter

from seedvr2.video.frame import ColorTags, Orientation, VideoInfo

INFO = VideoInfo(
    path="source.mp4",
    kind="video",
    width=64,
    height=48,
    fps=Fraction(30_000, 1001),
    time_base=Fraction(1, 30_000),
    duration=None,
    bit_depth=8,
    color=ColorTags(primaries=1, transfer=1, matrix=1, range=1),
    orientation=Orientation(),
    sample_aspect_ratio=Fraction(1),
    audio=(),
    container="mov,mp4,m4a,3gp,3g2,mj2",
    codec="h264",
    frame_count=None,
)
SWS = {1: 1, 6: 5, 9: 9}


def picture(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """Smooth colours that drift, uint8 (H, W, 3); the mean brightness rises with `number`."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [60 + 40 * np.sin((columns + number) / 11), 60 + 40 * np.cos(rows / 13), 60 + rows * 0.5]
    return np.clip(np.stack(channels, axis=-1) + 2 * number, 0, 255).astype(np.uint8)


def pictures(count: int, width: int = 64, height: int = 48) -> list[np.ndarray]:
    return [picture(number, width, height) for number in range(count)]


def make_clip(
    path: Path,
    count: int = 24,
    *,
    frames: Sequence[np.ndarray] | None = None,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    fps: Fraction = Fraction(25),
    time_base: Fraction | None = None,
    pts: Sequence[int] | None = None,
    matrix: int = 2,
    range_: int = 0,
    primaries: int = 2,
    transfer: int = 2,
    aspect: Fraction | None = None,
    rotation: float | None = None,
    hflip: bool = False,
    audio: Sequence[str] = (),
) -> Path:
    """Write a clip; `audio` names encoders, one stream each, a little longer than the video."""
    frames = frames if frames is not None else pictures(count)
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(
            codec, rate=fps, options={"crf": "4", **(options or {})} if "26" in codec else options
        )
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        context = stream.codec_context
        context.time_base = time_base or 1 / fps
        context.color_primaries, context.color_trc = primaries, transfer
        context.colorspace, context.color_range = matrix, range_
        if aspect is not None:
            context.sample_aspect_ratio = aspect
        if rotation is not None:
            stream.set_display_rotation(rotation, hflip=hflip)
        sounds = [_add_sound(container, name) for name in audio]
        reformatter, packets = VideoReformatter(), []
        for number, data in enumerate(frames):
            frame = _to_frame(data, pixel_format, matrix, range_, reformatter)
            frame.pts = pts[number] if pts is not None else number
            frame.time_base = time_base or 1 / fps
            packets += stream.encode(frame)
        packets += stream.encode(None)
        seconds = float(pts[-1] * time_base if pts and time_base else len(frames) / fps) + 0.3
        for number, sound in enumerate(sounds, start=3):
            packets += _encode_tone(sound, seconds, 110 * number)
        container.mux(sorted(packets, key=lambda packet: (packet.dts or 0) * packet.time_base))
    return path


def cut(path: Path, target: Path, fraction: float) -> Path:
    """The first part of a file."""
    content = path.read_bytes()
    target.write_bytes(content[: int(len(content) * fraction)])
    return target


def packets(path: Path, kind: str, index: int = 0) -> list[tuple[float, float, bytes]]:
    """(presentation seconds, decoding seconds, content) of one stream's packets."""
    with av.open(str(path)) as container:
        stream = [s for s in container.streams if s.type == kind][index]
        return [
            (
                float(packet.pts * packet.time_base),
                float((packet.dts if packet.dts is not None else packet.pts) * packet.time_base),
                bytes(packet),
            )
            for packet in container.demux(stream)
            if packet.size
        ]


def _to_frame(data, pixel_format, matrix, range_, reformatter):
    if data.dtype == np.uint16 and data.ndim == 3 and pixel_format.startswith("yuv"):
        frame = av.VideoFrame(data.shape[1], data.shape[0], pixel_format)
        for plane, samples in zip(frame.planes, np.moveaxis(data, -1, 0), strict=True):
            rows = np.frombuffer(plane, np.uint16).reshape(frame.height, -1)
            rows[:, : frame.width] = samples
        return frame
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(data), format="rgb24")
    spec = SWS.get(matrix, 5)
    frame = reformatter.reformat(
        frame,
        format=pixel_format,
        src_colorspace=spec,
        dst_colorspace=spec,
        src_color_range=2,
        dst_color_range=range_ or 1,
        interpolation="BICUBIC",
    )
    if matrix != 2:
        frame.colorspace = matrix
    frame.color_range = range_
    return frame


def _add_sound(container: OutputContainer, name: str):
    stream = container.add_stream(name, rate=48_000)
    stream.codec_context.layout = "stereo"
    return stream


def _encode_tone(stream, seconds: float, frequency: float) -> list:
    times = np.arange(int(seconds * 48_000)) / 48_000
    tone = (np.sin(2 * np.pi * frequency * times) * 8000).astype(np.int16)
    block, packets = 960, []
    for start in range(0, len(tone) - block, block):
        data = np.repeat(tone[np.newaxis, start : start + block], 2, axis=0).T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(data), format="s16", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, start, Fraction(1, 48_000)
        packets += stream.encode(frame)
    return packets + stream.encode(None)
