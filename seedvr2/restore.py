"""Restore a video: file -> frames -> latent -> generator -> latent -> frames -> file.

Each arrow is a room: `Encoder`, `OneStepGenerator`, `Decoder`. Rooms are plain classes that take a plan and a
segment, so that the command line can call them in a row and other hosts can run them apart: only latents pass
between them, the encoder reads its own source and the decoder writes its own result.

A long video is restored segment by segment. Each finished segment is a part file beside the output; the parts
are joined by remux at the end. A rerun of the same call keeps finished parts, and the bytes of the result do not
depend on where it was interrupted.

Source: SeedVR2 (arXiv 2506.05301), Sec. 3, and the released inference code's recipe; segments are ours.
"""

import glob
import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from safetensors.torch import load_file, save
from torch import Tensor

from seedvr2 import __version__
from seedvr2.checkpoint import Model, TextEmbedding
from seedvr2.config import Config
from seedvr2.errors import ConfigError
from seedvr2.flow import FULL_NOISE, build_condition, keyed_latent_noise, latent_from_velocity
from seedvr2.models.autoencoder import Autoencoder, Posterior
from seedvr2.models.generator import Generator
from seedvr2.storage import write_atomic
from seedvr2.video.color import ColorMethod, match_color
from seedvr2.video.io import Frame, Scan, VideoInfo, open_video, probe, scan
from seedvr2.video.join import join_parts
from seedvr2.video.output import check_output
from seedvr2.video.resize import (
    crop_box,
    crop_to_multiple,
    crop_to_size,
    frames_to_pixels,
    pad_to_multiple,
    pixels_to_frames,
    resize_pixels,
    size_for_area,
    size_for_scale,
    size_for_short_side,
)
from seedvr2.video.segments import Segment, cross_fade_weights, plan_segments
from seedvr2.video.shots import ShotDetector
from seedvr2.video.write import PART_SUFFIX, EncodeSettings, write_part, writing

DEFAULT_AREA = 1280 * 720
"""Pixels per frame that the released models were trained at."""
MAX_PIXELS = 1 << 26
"""Largest output frame; beyond it a size is taken for a mistake."""
WHOLE_SEGMENT_COLORS = ("lab", "hsv", "wavelet_adaptive")
"""Colour methods that compare all frames of a segment at once, and so hold them all."""
ENCODE_SHARE = 0.28
"""Part of the work that is encoding: the decoder costs 2.6 times as much."""


class RestoreOptions(Config):
    """What a restoration may choose; together with the source and the model it determines the result."""

    area: int | None = Field(None, ge=256, le=MAX_PIXELS)
    """Pixels of an output frame; the aspect ratio is kept."""
    resolution: int | None = Field(None, ge=16, le=16384)
    """Pixels on the short side of the output."""
    scale: float | None = Field(None, gt=0, le=64)
    """Factor on both sides. Without any of the three: the area of 720p, and larger sources keep their size."""
    fit: Literal["pad", "crop"] = "pad"
    """How sides become multiples of 16: padded and cut off again, or cropped as the released code does."""
    segment_frames: int = Field(61, ge=5)
    """Most frames that the generator sees at once."""
    overlap: int = Field(5, ge=0)
    """Least frames that two segments of one shot share and blend."""
    color: ColorMethod = "wavelet"
    """How colours are taken from the source."""
    posterior: Literal["sample", "mode"] = "sample"
    """Draw the latent of the source as the released code does, or take the most likely one."""
    seed: int = Field(666, ge=0, lt=2**63)
    """Of all noise; the released code's default."""
    strict: bool = False
    """Refuse a damaged source."""
    audio: bool = True
    """Copy all audio streams of the source."""
    encode: EncodeSettings = EncodeSettings()

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        given = [name for name in ("area", "resolution", "scale") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; give one")
        return self

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Size (height, width) of the restored frames before padding or cropping.

        Raises:
            ConfigError: Larger than any sensible frame.
        """
        if self.scale is not None:
            size = size_for_scale(height, width, self.scale)
        elif self.resolution is not None:
            size = size_for_short_side(height, width, self.resolution)
        elif self.area is not None:
            size = size_for_area(height, width, self.area)
        else:
            size = (
                (height, width)
                if height * width >= DEFAULT_AREA
                else size_for_area(height, width, DEFAULT_AREA)
            )
        if size[0] * size[1] > MAX_PIXELS or max(size) > 16384:
            raise ConfigError(
                f"an output of {size[1]}x{size[0]} pixels is beyond the limit of 16384 per side and {MAX_PIXELS} "
                "in all; lower --scale, --resolution or --area"
            )
        return size


@dataclass(frozen=True)
class Plan:
    """Everything about one restoration that is decided before any network runs; plain, picklable values."""

    source: str
    info: VideoInfo
    found: Scan
    options: RestoreOptions
    segments: tuple[Segment, ...]
    size: tuple[int, int]
    """(height, width) that source frames are resized to."""

    @property
    def output_size(self) -> tuple[int, int]:
        """(height, width) of the output."""
        return self.size if self.options.fit == "pad" else crop_box(*self.size)[2:]


def plan_restore(source: str | Path, options: RestoreOptions) -> Plan:
    """Read a source once, find its shots, and cut it into segments.

    Raises:
        VideoError: A source that cannot be read, or a damaged one if `options.strict`.
        ConfigError: An output size or segment length that cannot be.
        ShapeError: A frame too small to crop.
    """
    info = probe(source)
    size = options.size(info.height, info.width)
    if options.fit == "crop":
        crop_box(*size)
    plan_segments(
        [(0, 1)], options.segment_frames, options.overlap
    )  # refuses bad numbers before the long pass
    detector = ShotDetector()
    found = scan(source, strict=options.strict, on_frame=detector.push)
    segments = plan_segments(detector.shots(), options.segment_frames, options.overlap)
    return Plan(str(source), info, found, options, tuple(segments), size)


def source_pixels(plan: Plan, segment: Segment, group: int = 4) -> Iterator[Tensor]:
    """A segment's source frames at the model's size, `group` at a time: float32 (1, 3, t, H, W).

    The last frame is repeated until the segment has its padded length.
    """
    left = segment.padded
    piece = None
    with open_video(plan.source, start=segment.start, known=plan.found) as source:
        frames = islice(source, segment.length)
        while batch := list(islice(frames, group)):
            pixels = frames_to_pixels(np.stack([frame.data for frame in batch]), batch[0].bit_depth)
            piece = resize_pixels(pixels, plan.size)
            piece = pad_to_multiple(piece) if plan.options.fit == "pad" else crop_to_multiple(piece)
            left -= piece.shape[2]
            yield piece
    if left and piece is not None:
        yield piece[:, :, -1:].expand(-1, -1, left, -1, -1)


class Encoder:
    """Source segment to scaled latent.

    Args:
        autoencoder: On its device, in its dtype.
    """

    def __init__(self, autoencoder: Autoencoder) -> None:
        self.autoencoder = autoencoder

    @torch.inference_mode()
    def __call__(
        self, plan: Plan, segment: Segment, on_frames: Callable[[int], None] | None = None
    ) -> Tensor:
        """Read and encode one segment.

        Args:
            plan: The restoration.
            segment: One of its segments.
            on_frames: Told of every group of frames that is encoded.

        Returns:
            Latent (16, T', h, w), float32 on the CPU.
        """
        weight = next(self.autoencoder.parameters())
        pixels = (piece.to(weight.device, weight.dtype) for piece in source_pixels(plan, segment))
        latents: list[Tensor] = []
        for posterior in self.autoencoder.encode_stream(pixels):
            posterior = Posterior(posterior.mean.float().cpu(), posterior.log_variance.float().cpu())
            draw = posterior.mode()[0]
            if plan.options.posterior == "sample":
                first = segment.start + 4 * sum(latent.shape[1] for latent in latents)
                channels, frames, height, width = draw.shape
                shape = (channels, frames, height, width)
                noise = keyed_latent_noise(plan.options.seed, plan.found.digest, "posterior", first, shape)
                draw = posterior.sample(noise=noise[None])[0]
            latents.append(self.autoencoder.to_latent(draw))
            if on_frames:
                on_frames(4 * draw.shape[1])
        return torch.cat(latents, dim=1)


class OneStepGenerator:
    """Latent of the source to latent of the restored video, in one evaluation.

    Args:
        generator: On its device, in its dtype.
        text: Prompts; one step uses the positive one alone.
    """

    def __init__(self, generator: Generator, text: TextEmbedding) -> None:
        self.generator = generator
        self.text = text

    @torch.inference_mode()
    def __call__(self, latents: Sequence[Tensor], noises: Sequence[Tensor]) -> list[Tensor]:
        """Restore several latents of any sizes in one packed batch, with the same result as one by one.

        Args:
            latents: Each (16, T', h, w) with even h and w.
            noises: Standard normal noise, the same shapes; see `segment_noise`.

        Returns:
            Restored latents, float32 on the CPU: noise - velocity at timestep 1000.
        """
        weight = self.generator.patch_in.weight
        inputs = [
            torch.cat([noise, build_condition(latent)]).to(weight.device, weight.dtype)
            for latent, noise in zip(latents, noises, strict=True)
        ]
        timesteps = torch.full((len(inputs),), FULL_NOISE, device=weight.device)
        velocities = self.generator(inputs, timesteps, [self.text.positive.to(weight.device)] * len(inputs))
        return [
            latent_from_velocity(velocity.float().cpu(), noise, FULL_NOISE)
            for velocity, noise in zip(velocities, noises, strict=True)
        ]


def segment_noise(plan: Plan, segment: Segment, latent: Tensor) -> Tensor:
    """The noise that a segment starts from: a function of seed, source and frame, whatever the segments."""
    channels, frames, height, width = latent.shape
    shape = (channels, frames, height, width)
    return keyed_latent_noise(plan.options.seed, plan.found.digest, "noise", segment.start, shape)


class Decoder:
    """Restored latent to finished frames, and to a part file.

    Args:
        autoencoder: On its device, in its dtype.
    """

    def __init__(self, autoencoder: Autoencoder) -> None:
        self.autoencoder = autoencoder

    @torch.inference_mode()
    def pixels(self, plan: Plan, segment: Segment, latent: Tensor) -> Iterator[Tensor]:
        """Decode one segment, match its colours to the source and cut off all padding.

        Yields:
            float32 (1, 3, t, H, W) in about [-1, 1] on the CPU, `segment.length` frames in all.
        """
        weight = next(self.autoencoder.parameters())
        latents = torch.split(latent[None].to(weight.device, weight.dtype), 1, dim=2)
        stream = self.autoencoder.decode_stream(latents)
        decoded: Iterable[Tensor] = (piece.float().cpu() for piece in stream)
        if plan.options.color in WHOLE_SEGMENT_COLORS:
            decoded = [torch.cat(list(decoded), dim=2)]
        styles = _Frames(source_pixels(plan, segment))
        left = segment.length
        for content in decoded:
            style = styles.take(content.shape[2])
            matched = match_color(content[0].transpose(0, 1), style[0].transpose(0, 1), plan.options.color)
            piece = crop_to_size(matched.transpose(0, 1)[None], plan.output_size)[:, :, :left]
            left -= piece.shape[2]
            if piece.shape[2]:
                yield piece

    def __call__(
        self,
        plan: Plan,
        segment: Segment,
        latent: Tensor,
        parts: "Parts",
        on_frames: Callable[[int], None] | None = None,
    ) -> None:
        """Decode one segment and write its part, blended with the tail of the previous segment.

        Args:
            plan: The restoration.
            segment: One of its segments; the one before it must be written already if they overlap.
            latent: Restored latent (16, T', h, w).
            parts: Where to write.
            on_frames: Told of every group of frames that is decoded.
        """
        depth = plan.options.encode.bit_depth

        def frames() -> Iterator[Frame]:
            previous = parts.read_tail(segment.index - 1) if segment.overlap else None
            weights = cross_fade_weights(segment.overlap)
            owned, at = len(segment.owned), 0
            tail: list[Tensor] = []
            for pixels in self.pixels(plan, segment, latent):
                for pixel in pixels.unbind(dim=2):
                    if previous is not None and at < segment.overlap:
                        pixel = torch.lerp(pixel, previous[:, :, at], weights[at].item())
                    if at < owned:
                        data = pixels_to_frames(pixel.unsqueeze(2), depth)[0]
                        yield Frame(data, depth, at)
                    else:
                        tail.append(pixel)
                    at += 1
                if on_frames:
                    on_frames(pixels.shape[2])
            if tail:
                parts.write_tail(segment.index, torch.stack(tail, dim=2))

        write_part(parts.path(segment.index), frames(), plan.options.encode, plan.info)


class _Frames:
    """Takes any number of frames from a stream of pieces (1, 3, t, H, W)."""

    def __init__(self, pieces: Iterable[Tensor]) -> None:
        self._pieces = iter(pieces)
        self._held: Tensor | None = None

    def take(self, count: int) -> Tensor:
        held = [] if self._held is None else [self._held]
        while sum(piece.shape[2] for piece in held) < count:
            held.append(next(self._pieces))
        joined = torch.cat(held, dim=2)
        self._held = joined[:, :, count:]
        return joined[:, :, :count]


@dataclass(frozen=True)
class Parts:
    """Finished segments of one restoration in a directory beside the output."""

    folder: Path

    @classmethod
    def beside(cls, output: Path, plan: Plan, model_digest: str, precision: str) -> Self:
        """The directory for this output, named after everything that determines its content."""
        choices = plan.options.model_dump_json(exclude={"audio", "strict"})
        determined = [__version__, plan.found.digest, choices, model_digest, precision]
        key = hashlib.sha256("\n".join(determined).encode()).hexdigest()[:12]
        prefix = f".{output.name}.parts-"
        for other in output.parent.glob(f"{glob.escape(prefix)}*"):
            if other.name != prefix + key:  # of the same output with other options: of no use any more
                shutil.rmtree(other, ignore_errors=True)
        folder = output.parent / (prefix + key)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return cls(folder)

    def path(self, index: int) -> Path:
        """Part file of one segment."""
        return self.folder / f"{index:06d}{PART_SUFFIX}"

    def is_done(self, index: int) -> bool:
        """Whether a segment is finished."""
        return self.path(index).exists()

    def write_tail(self, index: int, pixels: Tensor) -> None:
        """Keep the frames that the next segment blends into: (1, 3, t, H, W), stored as float16."""
        path = self._tail(index)
        with writing(path), write_atomic(path) as temporary:
            temporary.write_bytes(save({"pixels": pixels.half().contiguous()}))

    def read_tail(self, index: int) -> Tensor:
        """Frames kept by `write_tail`, float32."""
        return load_file(self._tail(index))["pixels"].float()

    def drop_tail(self, index: int) -> None:
        """Forget a tail that has been used."""
        self._tail(index).unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the directory."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _tail(self, index: int) -> Path:
        return self.folder / f"{index:06d}.tail.safetensors"


@dataclass(frozen=True)
class Restored:
    """What a restoration did."""

    output: Path
    frames: int
    lost: int
    """Frames of the source that could not be decoded."""
    resumed: int
    """Segments found finished from an earlier call."""
    size: tuple[int, int]
    """(height, width)."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by room: plan, encode, generate, decode, join."""


def restore_video(
    source: str | Path,
    output: str | Path,
    model: Model,
    options: RestoreOptions,
    *,
    overwrite: bool = False,
    on_progress: Callable[[float, int], None] | None = None,
) -> Restored:
    """Restore a video, picture or picture sequence.

    Args:
        source: File, directory of pictures, pattern or glob.
        output: Video file, picture, or directory or pattern of pictures; appears only when complete.
        model: Networks on their device, in their dtype.
        options: Everything else.
        overwrite: Replace an existing output.
        on_progress: Told the work done, in frames, and the number of frames.

    Raises:
        VideoError: Source or output cannot be read or written.
        ConfigError: Options that cannot be.
        ShapeError: A size that cannot be processed.
    """
    clock = Clock()
    info = probe(source)
    encode = check_output(output, info, options.encode, overwrite, options.audio)
    plan = plan_restore(source, options.model_copy(update={"encode": encode}))
    weight = next(model.autoencoder.parameters())
    parts = Parts.beside(Path(output), plan, model.record.digest, f"{weight.device.type}-{weight.dtype}")
    clock.lap("plan")
    encoder, decoder = Encoder(model.autoencoder), Decoder(model.autoencoder)
    generator = OneStepGenerator(model.generator, model.text)
    done, resumed = 0.0, 0

    def advance(frames: int, share: float) -> None:
        nonlocal done
        done += frames * share
        if on_progress:
            on_progress(min(done, plan.found.frames), plan.found.frames)

    for segment in plan.segments:
        owned = len(segment.owned)
        if parts.is_done(segment.index):
            resumed += 1
            advance(owned, 1.0)
            continue
        latent = encoder(plan, segment, partial(advance, share=ENCODE_SHARE * owned / (segment.padded + 3)))
        clock.lap("encode")
        restored = generator([latent], [segment_noise(plan, segment, latent)])[0]
        clock.lap("generate")
        decoder(
            plan,
            segment,
            restored,
            parts,
            partial(advance, share=(1 - ENCODE_SHARE) * owned / segment.length),
        )
        parts.drop_tail(segment.index - 1)
        clock.lap("decode")
    files = [parts.path(segment.index) for segment in plan.segments]
    join_parts(output, files, plan.source, info, plan.found.pts, encode, overwrite, options.audio)
    parts.remove()
    clock.lap("join")
    return Restored(
        Path(output), plan.found.frames, plan.found.lost, resumed, plan.output_size, clock.seconds
    )


class Clock:
    """Adds up wall time by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Book the time since the last call under `name`."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
