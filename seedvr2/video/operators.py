"""The operators of a degradation: what was drawn for each, and what it does to a stream of frames.

An operator is a frozen record with one value per frame for whatever drifts, and an `apply` that is a pure
function of record and frames. Frames flow through as float32 on [0, 1] or, after JPEG and video codecs, as
uint8; they may differ in size while a resize scale drifts. Values leave [0, 1] only until the next
quantisation, which clamps and never wraps.

Source: RealBasicVSR (arXiv 2111.12704) and Real-ESRGAN (arXiv 2107.10833), published pipelines.
"""

from collections.abc import Iterator
from fractions import Fraction
from typing import Literal, TypeAlias

import av
import cv2
import numpy as np
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream
from numpy.typing import NDArray

from seedvr2.config import Config
from seedvr2.errors import VideoError
from seedvr2.video.degrade_config import Codec, Interpolation, Preset
from seedvr2.video.kernels import Kernel, KernelFamily, filter_frame, gaussian_kernel, sinc_kernel
from seedvr2.video.levels import Frame, as_levels, as_unit
from seedvr2.video.noise import gaussian_field, poisson_field

Size: TypeAlias = tuple[int, int]
"""(height, width) in pixels."""

INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA, "bicubic": cv2.INTER_CUBIC}


class Operator(Config):
    """What all operators record."""

    stage: Literal[1, 2, 3]
    """1 and 2 degrade, 3 brings the clip to its final size."""


class Blur(Operator):
    """Filtering by one kernel per frame; a parameter that the family lacks is empty."""

    kind: Literal["blur"] = "blur"
    family: KernelFamily
    size: int
    """Side of the kernel in pixels."""
    sigma_x: tuple[float, ...] = ()
    """Pixels; alone for both axes in isotropic families."""
    sigma_y: tuple[float, ...] = ()
    theta: tuple[float, ...] = ()
    """Radians."""
    beta: tuple[float, ...] = ()
    cutoff: tuple[float, ...] = ()
    """Radians per pixel (sinc)."""

    def kernel(self, index: int) -> Kernel:
        """The kernel of frame `index`, (size, size), sum 1."""
        if self.family == "sinc":
            return sinc_kernel(self.size, self.cutoff[index])
        sigma_y = self.sigma_y[index] if self.sigma_y else self.sigma_x[index]
        theta = self.theta[index] if self.theta else 0.0
        beta = self.beta[index] if self.beta else 1.0
        return gaussian_kernel(self.family, self.size, self.sigma_x[index], sigma_y, theta, beta)

    def apply(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """Filter every frame, to float."""
        for index, frame in enumerate(frames):
            yield filter_frame(frame, self.kernel(index))


class Resize(Operator):
    """Resampling without antialiasing, except by "area"; sizes follow a drifting scale."""

    kind: Literal["resize"] = "resize"
    mode: Literal["up", "down", "keep", "final"]
    interpolation: Interpolation
    scale: tuple[float, ...] = ()
    """Relative to the current size, or to the final one in Real-ESRGAN's second stage; empty for "final"."""
    sizes: tuple[Size, ...]
    """Resulting size of each frame."""

    def apply(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """Resize every frame to its size."""
        for frame, size in zip(frames, self.sizes, strict=True):
            yield _resized(frame, size, self.interpolation)


class Noise(Operator):
    """Additive Gaussian noise, or signal-dependent Poisson noise."""

    kind: Literal["noise"] = "noise"
    family: Literal["gaussian", "poisson"]
    grey: bool
    """One field shared by the channels; Poisson noise then follows luma."""
    strength: tuple[float, ...]
    """Standard deviation in 8-bit levels (Gaussian), factor (Poisson)."""
    clip: bool
    """Clip to [0, 1] afterwards, as Real-ESRGAN does and RealBasicVSR does not."""
    seed: int
    """Key of the noise fields, together with the frame's index."""

    def apply(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """Add noise to every frame."""
        for index, frame in enumerate(frames):
            noisy = self._add(as_unit(frame), index)
            yield np.clip(noisy, 0, 1, out=noisy) if self.clip else noisy

    def _add(self, frame: NDArray[np.float32], index: int) -> NDArray[np.float32]:
        if self.family == "gaussian":
            field = gaussian_field(frame.shape[:2] if self.grey else frame.shape, self.seed, index)
            factor = self.strength[index] / 255
        else:
            source: NDArray[np.float32] = frame
            if self.grey:
                source = np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.float32)
            field = poisson_field(as_levels(source), self.seed, index)
            factor = self.strength[index]
        if self.grey:
            field = np.asarray(cv2.cvtColor(field, cv2.COLOR_GRAY2RGB))
        return np.asarray(cv2.scaleAdd(field, factor, frame))


class Jpeg(Operator):
    """JPEG compression of every frame."""

    kind: Literal["jpeg"] = "jpeg"
    quality: tuple[int, ...]

    def apply(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """Encode and decode every frame, to uint8; clamps first."""
        for frame, quality in zip(frames, self.quality, strict=True):
            swapped = cv2.cvtColor(as_levels(frame), cv2.COLOR_RGB2BGR)
            _, code = cv2.imencode(".jpg", swapped, (cv2.IMWRITE_JPEG_QUALITY, quality))
            yield np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR_RGB))


class VideoCodec(Operator):
    """Compression of the clip as one video stream at 1 frame/s, 4:2:0."""

    kind: Literal["codec"] = "codec"
    codec: Codec
    preset: Preset
    """x264's effort; not used by MPEG-4."""
    bit_rate: int
    """bit/s, as drawn."""
    encoder_bit_rate: int
    """bit/s, as given to the encoder: scaled to the size of its frames, or as drawn."""
    size: Size
    """Size of the encoded frames: the first one's, to which the others are resized."""

    def apply(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """Encode the clip and decode it, to uint8 of one size; clamps first.

        Raises:
            VideoError: The decoder returns another number of frames than the encoder took.
        """
        name = "mpeg4" if self.codec == "mpeg4" else "h264"
        decoder = _codec_context(name, "r")
        sent = received = 0
        packets = self.encode(frames)
        for packet in packets:
            sent += 1
            for picture in decoder.decode(packet):
                received += 1
                yield self._crop(picture)
        for picture in decoder.decode(None):
            received += 1
            yield self._crop(picture)
        if sent != received:
            raise VideoError(f"{self.codec} returned {received} of {sent} frames; check the build of FFmpeg")

    def encode(self, frames: Iterator[Frame]) -> "Iterator[Packet[VideoStream]]":
        """The packets of the compressed stream, one per frame."""
        height, width = self.size
        encoder = _codec_context(self.codec, "w")
        encoder.width, encoder.height = width + width % 2, height + height % 2
        encoder.pix_fmt = "yuv420p"
        encoder.time_base = Fraction(1, 1)
        encoder.framerate = Fraction(1, 1)
        encoder.bit_rate = self.encoder_bit_rate
        # x264's macroblock tree reads uninitialised memory on processors with AVX-512, which makes the result
        # vary from call to call; without it, all x86 processors from SSSE3 on give the same bytes.
        encoder.options = {} if self.codec == "mpeg4" else {"preset": self.preset, "mbtree": "0"}
        for index, frame in enumerate(frames):
            if frame.shape[:2] != self.size:
                frame = _resized(frame, self.size, "bicubic")
            levels = as_levels(frame)
            if height % 2 or width % 2:
                levels = np.pad(levels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            picture = av.VideoFrame.from_ndarray(levels, format="rgb24")
            picture.pts = index
            yield from encoder.encode(picture)
        yield from encoder.encode(None)

    def _crop(self, picture: av.VideoFrame) -> NDArray[np.uint8]:
        height, width = self.size
        return np.ascontiguousarray(picture.to_ndarray(format="rgb24")[:height, :width])


def _resized(frame: Frame, size: Size, interpolation: Interpolation) -> Frame:
    if frame.shape[:2] == size:
        return frame
    return np.asarray(cv2.resize(frame, (size[1], size[0]), interpolation=INTERPOLATIONS[interpolation]))


def _codec_context(name: str, mode: Literal["r", "w"]) -> VideoCodecContext:
    context = av.CodecContext.create(name, mode)
    assert isinstance(context, VideoCodecContext)
    context.thread_count = 1  # the number of threads changes x264's decisions, hence the result
    return context
