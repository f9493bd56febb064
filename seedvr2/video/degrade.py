"""Synthesis of low-quality clips: draw a degradation, then apply it.

`sample_degradation` draws every random number first, in the order of application, into a record that
survives JSON exactly; `degrade_clip` is then a pure function of record and source, so that a training pair
can be made again from its row.

    video     blur, resize, noise, JPEG, codec | blur, resize, noise, JPEG | {codec}, {final resize, sinc}
    picture   blur, resize, noise, JPEG        | blur, resize, noise       | {JPEG}, {final resize, sinc}

The two groups in braces come in random order. Discrete choices hold for the clip; continuous parameters walk
at random from frame to frame, clipped to their ranges. No unsharp masking anywhere (assumption).

Source: SeedVR2 (arXiv 2506.05301) trains on the degradation of Upscale-A-Video (arXiv 2312.06640), which is
RealBasicVSR's (arXiv 2111.12704); pictures follow Real-ESRGAN (arXiv 2107.10833).
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Annotated, Literal, Self, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from seedvr2.config import Config
from seedvr2.errors import ShapeError
from seedvr2.video.degrade_config import (
    BlurConfig,
    CodecConfig,
    DegradationConfig,
    FinalConfig,
    JpegConfig,
    NoiseConfig,
    ResizeConfig,
)
from seedvr2.video.kernels import KernelFamily
from seedvr2.video.levels import Frame, as_levels
from seedvr2.video.operators import Blur, Jpeg, Noise, Resize, Size, VideoCodec

FACTOR = 4
"""Ratio of high- to low-quality sizes. SeedVR2, Sec. 4."""
SMALLEST = 8
"""Frames on the way are never smaller than this in height or width (assumption)."""
LOWEST_BIT_RATE = 1000
"""bit/s; x264 takes whole kbit/s, and none of them is an error."""

AnyOperator: TypeAlias = Annotated[Blur | Resize | Noise | Jpeg | VideoCodec, Field(discriminator="kind")]
Choice = TypeVar("Choice")


class Degradation(Config):
    """One drawn degradation: all that is random about a training pair."""

    seed: int
    size: Size
    """(height, width) of the source."""
    num_frames: int
    model: Literal["video", "real-esrgan"]
    operators: tuple[AnyOperator, ...]
    """In order of application."""

    @model_validator(mode="after")
    def _one_value_per_frame(self) -> Self:
        for operator in self.operators:
            for name, values in operator:
                if isinstance(values, tuple) and name != "size" and len(values) not in (0, self.num_frames):
                    raise ValueError(
                        f"{operator.kind}.{name} has {len(values)} values for {self.num_frames} frames"
                    )
        return self


def sample_degradation(
    seed: int, size: Size, num_frames: int, config: DegradationConfig | None = None
) -> Degradation:
    """Draw a degradation for one clip or, with one frame, picture.

    Args:
        seed: Non-negative; the same seed, size, length and configuration draw the same record.
        size: (height, width) of the source in pixels, multiples of 4.
        num_frames: Frames of the clip, at least 1.
        config: Ranges and probabilities; the published ones by default.

    Raises:
        ShapeError: `size` is no multiple of 4, or `num_frames` is below 1.
    """
    height, width = size
    if height < FACTOR or width < FACTOR or height % FACTOR or width % FACTOR or num_frames < 1:
        raise ShapeError(
            f"a clip needs sides that are multiples of {FACTOR} and at least one frame, "
            f"got {num_frames} frames of {height}x{width}; crop it"
        )
    config = config or DegradationConfig()
    model: Literal["video", "real-esrgan"] = config.image_mode if num_frames == 1 else "video"
    draw = _Draw(seed, num_frames)
    operators = _picture(draw, size, config) if model == "real-esrgan" else _video(draw, size, config)
    return Degradation(
        seed=seed, size=(height, width), num_frames=num_frames, model=model, operators=tuple(operators)
    )


def degrade_clip(frames: NDArray[np.uint8], degradation: Degradation) -> NDArray[np.uint8]:
    """Apply a degradation; the same record and frames give the same bytes, on any number of threads.

    Args:
        frames: uint8 (T, H, W, 3) RGB.
        degradation: A record drawn for T frames of (H, W).

    Returns:
        uint8 (T, H/4, W/4, 3) RGB.

    Raises:
        ShapeError: The frames do not fit the record.
        VideoError: A video codec lost frames.
    """
    expected = (degradation.num_frames, *degradation.size, 3)
    if frames.shape != expected or frames.dtype != np.uint8:
        raise ShapeError(
            f"this degradation was drawn for uint8 frames {expected}, got {frames.dtype} {frames.shape}; "
            "draw another for this clip"
        )
    stream: Iterator[Frame] = iter(np.ascontiguousarray(frames))
    for operator in degradation.operators:
        stream = operator.apply(stream)
    return np.stack([as_levels(frame) for frame in stream])


class _Draw:
    """Random draws of one record; walks have one value per frame."""

    def __init__(self, seed: int, num_frames: int) -> None:
        self.random = np.random.Generator(np.random.PCG64(seed))
        self.num_frames = num_frames

    def chance(self, probability: float) -> bool:
        return bool(self.random.random() < probability)

    def uniform(self, bounds: tuple[float, float]) -> float:
        return bounds[0] + (bounds[1] - bounds[0]) * float(self.random.random())

    def integer(self, bounds: tuple[int, int]) -> int:
        return int(self.random.integers(bounds[0], bounds[1] + 1))

    def pick(self, choices: Sequence[Choice]) -> Choice:
        return choices[self.integer((0, len(choices) - 1))]

    def weighted(self, weights: dict[Choice, float]) -> Choice:
        point = sum(weights.values()) * float(self.random.random())
        for choice, total in zip(weights, accumulate(weights.values()), strict=True):
            if point < total:
                return choice
        return max(weights, key=lambda choice: weights[choice])  # rounding at the far end

    def walk(self, start: float, bounds: tuple[float, float], step: float) -> tuple[float, ...]:
        low, high = bounds
        steps = (step * (2 * self.random.random(self.num_frames - 1) - 1)).tolist()
        return tuple(accumulate(steps, lambda value, by: min(max(value + by, low), high), initial=start))

    def drift(self, bounds: tuple[float, float], step: float) -> tuple[float, ...]:
        return self.walk(self.uniform(bounds), bounds, step)


def _video(draw: _Draw, size: Size, config: DegradationConfig) -> Iterator[AnyOperator]:
    """RealBasicVSR's two stages and shuffled last stage."""
    yield from _blur(draw, config.first.blur, stage=1)
    resize = _resize(draw, config.first.resize, size, stage=1)
    yield resize
    yield _noise(draw, config.first.noise, stage=1, clip=False)
    yield _jpeg(draw, config.first.jpeg, stage=1)
    yield _codec(draw, config.codec, resize.sizes[0], stage=1)
    yield from _blur(draw, config.second.blur, stage=2)
    resize = _resize(draw, config.second.resize, resize.sizes[0], stage=2)
    yield resize
    yield _noise(draw, config.second.noise, stage=2, clip=False)
    yield _jpeg(draw, config.second.jpeg, stage=2)
    final = (size[0] // FACTOR, size[1] // FACTOR)
    if draw.chance(config.codec_first_probability):
        yield _codec(draw, config.codec, resize.sizes[0], stage=3)
        yield from _final(draw, config.final, final)
    else:
        yield from _final(draw, config.final, final)
        yield _codec(draw, config.codec, final, stage=3)


def _picture(draw: _Draw, size: Size, config: DegradationConfig) -> Iterator[AnyOperator]:
    """Real-ESRGAN's model: no codec, clipped noise, second resize relative to the final size."""
    final = (size[0] // FACTOR, size[1] // FACTOR)
    yield from _blur(draw, config.first.blur, stage=1, split_beta=True)
    yield _resize(draw, config.first.resize, size, stage=1)
    yield _noise(draw, config.first.noise, stage=1, clip=True)
    yield _jpeg(draw, config.first.jpeg, stage=1)
    yield from _blur(draw, config.second.blur, stage=2, split_beta=True)
    yield _resize(draw, config.second.resize, final, stage=2)
    yield _noise(draw, config.second.noise, stage=2, clip=True)
    if draw.chance(config.codec_first_probability):
        yield _jpeg(draw, config.second.jpeg, stage=3)
        yield from _final(draw, config.final, final)
    else:
        yield from _final(draw, config.final, final)
        yield _jpeg(draw, config.second.jpeg, stage=3)


def _blur(draw: _Draw, config: BlurConfig, stage: Literal[1, 2], split_beta: bool = False) -> Iterator[Blur]:
    if not draw.chance(config.probability):
        return
    weights = config.families
    family: KernelFamily = draw.weighted(
        {
            "isotropic": weights.isotropic,
            "anisotropic": weights.anisotropic,
            "generalized-isotropic": weights.generalized_isotropic,
            "generalized-anisotropic": weights.generalized_anisotropic,
            "plateau-isotropic": weights.plateau_isotropic,
            "plateau-anisotropic": weights.plateau_anisotropic,
            "sinc": weights.sinc,
        }
    )
    size = draw.pick(range(config.kernel_size[0], config.kernel_size[1] + 1, 2))
    if family == "sinc":
        bounds = config.cutoff_small if size < 13 else config.cutoff_large
        yield Blur(stage=stage, family=family, size=size, cutoff=draw.drift(bounds, config.cutoff_step))
        return
    sigma_x = draw.drift(config.sigma, config.sigma_step)
    rotated = "anisotropic" in family
    sigma_y = draw.drift(config.sigma, config.sigma_step) if rotated else ()
    theta = draw.drift(config.theta, config.theta_step) if rotated else ()
    beta: tuple[float, ...] = ()
    if family.startswith("generalized"):
        beta = _beta(draw, config.beta_generalized, config.beta_generalized_step, split_beta)
    elif family.startswith("plateau"):
        beta = _beta(draw, config.beta_plateau, config.beta_plateau_step, split_beta)
    yield Blur(
        stage=stage, family=family, size=size, sigma_x=sigma_x, sigma_y=sigma_y, theta=theta, beta=beta
    )


def _beta(draw: _Draw, bounds: tuple[float, float], step: float, split: bool) -> tuple[float, ...]:
    """Real-ESRGAN first tosses whether beta lies below or above 1."""
    if split and bounds[0] <= 1 <= bounds[1]:
        part = (bounds[0], 1.0) if draw.chance(0.5) else (1.0, bounds[1])
        return draw.walk(draw.uniform(part), bounds, step)
    return draw.drift(bounds, step)


def _resize(draw: _Draw, config: ResizeConfig, size: Size, stage: Literal[1, 2]) -> Resize:
    mode: Literal["up", "down", "keep"] = draw.weighted(
        {"up": config.up, "down": config.down, "keep": config.keep}
    )
    low, high = config.scale
    start = 1.0
    if mode != "keep":
        start = draw.uniform((1.0, high) if mode == "up" else (low, 1.0))
    interpolation = draw.pick(config.interpolations)
    scale = draw.walk(start, config.scale, config.scale_step)
    even = 2 if config.even_sizes else 1
    sizes = tuple(
        (
            max(int(size[0] * factor) // even * even, SMALLEST),
            max(int(size[1] * factor) // even * even, SMALLEST),
        )
        for factor in scale
    )
    return Resize(stage=stage, mode=mode, interpolation=interpolation, scale=scale, sizes=sizes)


def _noise(draw: _Draw, config: NoiseConfig, stage: Literal[1, 2], clip: bool) -> Noise:
    gaussian = draw.chance(config.gaussian_probability)
    if gaussian:
        strength = draw.drift(config.gaussian_sigma, config.gaussian_step)
    else:
        strength = draw.drift(config.poisson_scale, config.poisson_step)
    return Noise(
        stage=stage,
        family="gaussian" if gaussian else "poisson",
        grey=draw.chance(config.grey_probability),
        strength=strength,
        clip=clip,
        seed=draw.integer((0, 2**53 - 1)),  # any JSON reader keeps 53 bits
    )


def _jpeg(draw: _Draw, config: JpegConfig, stage: Literal[1, 2, 3]) -> Jpeg:
    low, high = config.quality
    steps = (config.quality_step * (2 * draw.random.random(draw.num_frames - 1) - 1)).tolist()
    quality = accumulate(
        steps, lambda value, by: min(max(round(value + by), low), high), initial=draw.integer(config.quality)
    )
    return Jpeg(stage=stage, quality=tuple(quality))


def _codec(draw: _Draw, config: CodecConfig, size: Size, stage: Literal[1, 3]) -> VideoCodec:
    codec = draw.pick(config.codecs)
    bit_rate = draw.integer(config.bit_rate)
    scaled = bit_rate * size[0] * size[1] / 65_536 if config.scale_bit_rate else bit_rate
    return VideoCodec(
        stage=stage,
        codec=codec,
        preset=config.preset,
        bit_rate=bit_rate,
        encoder_bit_rate=max(round(scaled), LOWEST_BIT_RATE),
        size=size,
    )


def _final(draw: _Draw, config: FinalConfig, size: Size) -> Iterator[AnyOperator]:
    yield Resize(
        stage=3,
        mode="final",
        interpolation=draw.pick(config.interpolations),
        sizes=(size,) * draw.num_frames,
    )
    if draw.chance(config.sinc_probability):
        kernel_size = draw.pick(range(config.kernel_size[0], config.kernel_size[1] + 1, 2))
        cutoff = draw.drift(config.cutoff, config.cutoff_step)
        yield Blur(stage=3, family="sinc", size=kernel_size, cutoff=cutoff)
