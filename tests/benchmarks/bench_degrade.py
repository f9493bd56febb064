"""Clips per core-second of the video degradation, against a straightforward port of the published pipeline.

Both sides run the same drawn records on the same 720p clip, on one thread. The reference works as
RealBasicVSR's published code does: frame by frame, a two-dimensional kernel built and applied with
`cv2.filter2D`, double precision noise from numpy's legacy generator, `np.unique` for the Poisson levels,
video through an MP4 container. x264's effort is the largest single cost, so two references are timed: with
our settings (what the arithmetic alone gains) and with x264's defaults, which the published code uses.

Run: python -m tests.benchmarks.bench_degrade [--clips N] [--frames T] [--height H] [--width W]
"""

import argparse
import io
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import av
import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from seedvr2.video.degrade import Degradation, degrade_clip, sample_degradation
from seedvr2.video.kernels import sinc_kernel
from seedvr2.video.operators import INTERPOLATIONS, Blur, Jpeg, Noise, Resize, VideoCodec
from tests.video.synthetic import natural_clip

Frames = list[np.ndarray[Any, Any]]


def reference_degrade(frames: np.ndarray[Any, Any], degradation: Degradation) -> np.ndarray[Any, Any]:
    """The published pipeline, spelled out, for the choices of a record; its noise is drawn differently."""
    current = [np.float32(frame) / 255 for frame in frames]
    for operator in degradation.operators:
        current = reference_operator(current, operator)
    return np.stack([np.clip(np.round(frame * 255), 0, 255).astype(np.uint8) for frame in current])


def reference_operator(frames: Frames, operator: object) -> Frames:
    match operator:
        case Blur():
            return [
                cv2.filter2D(frame, -1, reference_kernel(operator, i), borderType=cv2.BORDER_REFLECT_101)
                for i, frame in enumerate(frames)
            ]
        case Resize():
            return [
                cv2.resize(frame, (width, height), interpolation=INTERPOLATIONS[operator.interpolation])
                for frame, (height, width) in zip(frames, operator.sizes, strict=True)
            ]
        case Noise():
            random = np.random.RandomState(operator.seed % 2**32)
            return [reference_noise(frame, operator, i, random) for i, frame in enumerate(frames)]
        case Jpeg():
            return [reference_jpeg(f, q) for f, q in zip(frames, operator.quality, strict=True)]
        case VideoCodec():
            return list(reference_codec(frames, operator))
    raise TypeError(type(operator))


def reference_kernel(blur: Blur, i: int) -> np.ndarray[Any, Any]:
    if blur.family == "sinc":
        return sinc_kernel(blur.size, blur.cutoff[i])
    axis = np.arange(blur.size) - (blur.size - 1) // 2
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).astype(np.float64)
    theta = blur.theta[i] if blur.theta else 0.0
    sigma = (blur.sigma_x[i], blur.sigma_y[i] if blur.sigma_y else blur.sigma_x[i])
    rotation = np.array([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])
    inverse = np.linalg.inv(rotation @ np.diag(np.square(sigma)) @ rotation.T)
    m = np.sum((grid @ inverse) * grid, axis=2)
    if blur.family.startswith("plateau"):
        kernel = 1 / (m ** blur.beta[i] + 1)
    else:
        kernel = np.exp(-0.5 * m ** (blur.beta[i] if blur.beta else 1.0))
    return kernel / kernel.sum()


def reference_noise(
    frame: np.ndarray[Any, Any], noise: Noise, i: int, random: np.random.RandomState
) -> np.ndarray[Any, Any]:
    height, width, _ = frame.shape
    if noise.family == "gaussian":
        field = random.randn(height, width, 1 if noise.grey else 3) * noise.strength[i] / 255
    else:
        source = np.float32(frame)
        if noise.grey:
            source = cv2.cvtColor(source, cv2.COLOR_RGB2GRAY)[..., None]
        source = np.clip((source * 255.0).round(), 0, 255) / 255
        values = 2 ** np.ceil(np.log2(len(np.unique(source))))
        field = (random.poisson(source * values) / values - source) * noise.strength[i]
    return frame + field


def reference_jpeg(frame: np.ndarray[Any, Any], quality: int) -> np.ndarray[Any, Any]:
    levels = np.clip(frame * 255.0, 0, 255).round().astype(np.uint8)
    _, code = cv2.imencode(".jpg", levels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.float32(cv2.imdecode(code, cv2.IMREAD_COLOR)[..., ::-1]) / 255


def reference_codec(frames: Frames, codec: VideoCodec) -> Iterator[np.ndarray[Any, Any]]:
    height, width = frames[0].shape[:2]
    buffer = io.BytesIO()
    with av.open(buffer, "w", "mp4") as container:
        ours = {"preset": codec.preset, "mbtree": "0"}
        options = {} if codec.codec == "mpeg4" or codec.preset == "medium" else ours
        stream = container.add_stream(codec.codec, rate=Fraction(1, 1), options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = codec.encoder_bit_rate
        stream.codec_context.thread_count = 1
        for frame in frames:
            levels = np.clip(frame * 255, 0, 255).astype(np.uint8)
            if levels.shape[:2] != (height, width):
                levels = cv2.resize(levels, (width, height), interpolation=cv2.INTER_CUBIC)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(levels, format="rgb24")))
        container.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer, "r", "mp4") as container:
        container.streams.video[0].codec_context.thread_count = 1
        for picture in container.decode(video=0):
            yield picture.to_ndarray(format="rgb24").astype(np.float32) / 255


def with_preset(degradation: Degradation, preset: str) -> Degradation:
    operators = tuple(
        operator.model_copy(update={"preset": preset}) if isinstance(operator, VideoCodec) else operator
        for operator in degradation.operators
    )
    return degradation.model_copy(update={"operators": operators})


def core_seconds(clip: np.ndarray[Any, Any], records: Iterable[Degradation], run: Any) -> float:
    start = time.process_time()
    for record in records:
        run(clip, record)
    return time.process_time() - start


def operator_seconds(clip: np.ndarray[Any, Any], records: list[Degradation], ours: bool) -> dict[str, float]:
    """Core-seconds by kind of operator; each sees the same input on both sides."""
    total: dict[str, float] = defaultdict(float)
    for record in records:
        frames: Frames = list(clip)
        for operator in record.operators:
            name = operator.kind + (f" {operator.family}" if operator.kind == "noise" else "")
            name += f" {operator.codec}".replace("libx264", "h264") if operator.kind == "codec" else ""
            inputs = frames if ours else [f if f.dtype != np.uint8 else np.float32(f) / 255 for f in frames]
            start = time.process_time()
            outputs = list(operator.apply(iter(inputs))) if ours else reference_operator(inputs, operator)
            total[name] += time.process_time() - start
            frames = outputs if ours else list(operator.apply(iter(frames)))
    return total


def main() -> None:
    """Print core-seconds by operator, and the ratios of clips per core-second."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--width", type=int, default=1280)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    console = Console()
    size = (arguments.height, arguments.width)
    clip = natural_clip(arguments.frames, *size, seed=0)
    records = [sample_degradation(seed, size, arguments.frames) for seed in range(arguments.clips)]
    medium = [with_preset(record, "medium") for record in records]
    degrade_clip(clip[:1], sample_degradation(0, size, 1))

    ours, theirs = (operator_seconds(clip, records, side) for side in (True, False))
    table = Table(
        "operator",
        "reference ms/frame",
        "ours ms/frame",
        "ratio",
        title="Cost by operator, same x264 settings",
    )
    frames = arguments.clips * arguments.frames
    for name in sorted(ours):
        table.add_row(
            name,
            f"{1e3 * theirs[name] / frames:.2f}",
            f"{1e3 * ours[name] / frames:.2f}",
            f"{theirs[name] / ours[name]:.2f}",
        )
    console.print(table)

    fast = core_seconds(clip, records, degrade_clip)
    same = core_seconds(clip, records, reference_degrade)
    published = core_seconds(clip, medium, reference_degrade)
    console.print(f"{arguments.clips} clips of {arguments.frames} frames of {size[0]}x{size[1]}, one thread")
    console.print(f"ours                               {arguments.clips / fast:7.3f} clips per core-second")
    console.print(f"reference, our x264 settings       {arguments.clips / same:7.3f}")
    console.print(f"reference, x264's defaults         {arguments.clips / published:7.3f}")
    console.print(f"ratio at the same x264 settings: {same / fast:.2f}")
    console.print(f"ratio to the published pipeline: {published / fast:.2f}")


if __name__ == "__main__":
    main()
