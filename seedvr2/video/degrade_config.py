"""Every range and probability of the degradation model, with its source.

[RBV] is RealBasicVSR's published configuration (arXiv 2111.12704), which Upscale-A-Video follows and
SeedVR2 after it; [RE] is Real-ESRGAN (arXiv 2107.10833), its version for pictures. "Assumption" marks
choices of ours where neither speaks.
"""

import math
from typing import Annotated, Literal, Self, TypeAlias

from annotated_types import Ge, Le, MinLen
from pydantic import AfterValidator, model_validator

from seedvr2.config import Config

Probability: TypeAlias = Annotated[float, Ge(0), Le(1)]
Weight: TypeAlias = Annotated[float, Ge(0)]
Step: TypeAlias = Annotated[float, Ge(0)]
Interpolation: TypeAlias = Literal["bilinear", "area", "bicubic"]
Codec: TypeAlias = Literal["libx264", "h264", "mpeg4"]
Preset: TypeAlias = Literal[
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"
]


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if not bounds[0] <= bounds[1]:
        raise ValueError(f"expected a range (low, high), got {bounds}")
    return bounds


def _positive(bounds: tuple[float, float]) -> tuple[float, float]:
    if not bounds[0] > 0:
        raise ValueError(f"expected a range above zero, got {bounds}")
    return bounds


def _odd(sizes: tuple[int, int]) -> tuple[int, int]:
    if not (1 <= sizes[0] <= sizes[1] and sizes[0] % 2 and sizes[1] % 2):
        raise ValueError(f"expected an ordered range of odd kernel sizes, got {sizes}")
    return sizes


def _quality(bounds: tuple[int, int]) -> tuple[int, int]:
    if not 1 <= bounds[0] <= bounds[1] <= 100:
        raise ValueError(f"expected an ordered range within 1..100, got {bounds}")
    return bounds


Range: TypeAlias = Annotated[tuple[float, float], AfterValidator(_ordered)]
PositiveRange: TypeAlias = Annotated[tuple[float, float], AfterValidator(_ordered), AfterValidator(_positive)]
OddRange: TypeAlias = Annotated[tuple[int, int], AfterValidator(_odd)]
QualityRange: TypeAlias = Annotated[tuple[int, int], AfterValidator(_quality)]


class FamilyWeights(Config):
    """Relative frequencies of the kernel families. [RBV]; equal to [RE]'s two-step draw."""

    isotropic: Weight = 0.405
    anisotropic: Weight = 0.225
    generalized_isotropic: Weight = 0.108
    generalized_anisotropic: Weight = 0.027
    plateau_isotropic: Weight = 0.108
    plateau_anisotropic: Weight = 0.027
    sinc: Weight = 0.10

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        if not sum(dict(self).values()) > 0:
            raise ValueError("at least one kernel family needs a weight above zero")
        return self


class BlurConfig(Config):
    """Blur of the first stage. [RBV]."""

    probability: Probability = 1.0
    """Chance that a clip is blurred at all."""
    families: FamilyWeights = FamilyWeights()
    kernel_size: OddRange = (7, 21)
    """Pixels; uniform over the odd sizes."""
    sigma: PositiveRange = (0.2, 3.0)
    """Pixels, of each axis."""
    theta: Range = (-math.pi, math.pi)
    """Radians; clipped at its ends, not wrapped."""
    beta_generalized: PositiveRange = (0.5, 4.0)
    beta_plateau: PositiveRange = (1.0, 2.0)
    cutoff_small: PositiveRange = (math.pi / 3, math.pi)
    """Radians per pixel, sinc kernels below 13 pixels."""
    cutoff_large: PositiveRange = (math.pi / 5, math.pi)
    """Radians per pixel, sinc kernels from 13 pixels."""
    sigma_step: Step = 0.02
    """Largest change from frame to frame, as for the other steps."""
    theta_step: Step = 0.31416
    beta_generalized_step: Step = 0.05
    """[RBV] re-draws beta instead of walking; a true drift is an assumption."""
    beta_plateau_step: Step = 0.1
    """As for `beta_generalized_step`."""
    cutoff_step: Step = 0.0628


class ResizeConfig(Config):
    """Resize of the first stage. [RBV]."""

    up: Weight = 0.2
    """Relative frequency of a scale from [1, max]."""
    down: Weight = 0.7
    """Relative frequency of a scale from [min, 1]."""
    keep: Weight = 0.1
    """Relative frequency of scale 1, which drifts like the others."""
    scale: PositiveRange = (0.15, 1.5)
    interpolations: Annotated[tuple[Interpolation, ...], MinLen(1)] = ("bilinear", "area", "bicubic")
    """One is drawn, uniformly."""
    even_sizes: bool = True
    """Round sizes down to multiples of 2."""
    scale_step: Step = 0.015
    """Largest change of the scale from frame to frame."""

    @model_validator(mode="after")
    def _contains_one(self) -> Self:
        if not self.scale[0] <= 1 <= self.scale[1]:
            raise ValueError(f"scale {self.scale} must contain 1")
        if not self.up + self.down + self.keep > 0:
            raise ValueError("one of up, down and keep must be above zero")
        return self


class NoiseConfig(Config):
    """Noise of the first stage. [RBV]."""

    gaussian_probability: Probability = 0.5
    """Otherwise Poisson."""
    gaussian_sigma: Range = (1.0, 30.0)
    """8-bit levels."""
    poisson_scale: Range = (0.05, 3.0)
    grey_probability: Probability = 0.4
    """Chance that the channels share one field."""
    gaussian_step: Step = 0.1
    """8-bit levels per frame."""
    poisson_step: Step = 0.005


class JpegConfig(Config):
    """JPEG of both stages. [RBV]."""

    quality: QualityRange = (30, 95)
    quality_step: Step = 3.0
    """Largest change from frame to frame, before rounding to an integer."""


class StageConfig(Config):
    """The first stage."""

    blur: BlurConfig = BlurConfig()
    resize: ResizeConfig = ResizeConfig()
    noise: NoiseConfig = NoiseConfig()
    jpeg: JpegConfig = JpegConfig()


class SecondBlurConfig(BlurConfig):
    """Blur of the second stage. [RBV]."""

    probability: Probability = 0.8
    sigma: PositiveRange = (0.2, 1.5)


class SecondResizeConfig(ResizeConfig):
    """Resize of the second stage. [RBV]."""

    up: Weight = 0.3
    down: Weight = 0.4
    keep: Weight = 0.3
    scale: PositiveRange = (0.3, 1.2)
    scale_step: Step = 0.03


class SecondNoiseConfig(NoiseConfig):
    """Noise of the second stage. [RBV]."""

    gaussian_sigma: Range = (1.0, 25.0)
    poisson_scale: Range = (0.05, 2.5)


class SecondStageConfig(StageConfig):
    """The second stage: the first one's kinds of operators, milder."""

    blur: SecondBlurConfig = SecondBlurConfig()
    resize: SecondResizeConfig = SecondResizeConfig()
    noise: SecondNoiseConfig = SecondNoiseConfig()


class CodecConfig(Config):
    """Video codec after the first stage and in the last one. [RBV]."""

    codecs: Annotated[tuple[Codec, ...], MinLen(1)] = ("libx264", "h264", "mpeg4")
    """One is drawn, uniformly; "h264" is libx264 by its other name."""
    bit_rate: tuple[int, int] = (10_000, 100_000)
    """bit/s at 1 frame/s; uniform over the integers."""
    scale_bit_rate: bool = True
    """Multiply the rate by (pixels of the encoded frame) / 65,536, because it was tuned for crops of 256 x
    256 pixels (assumption); off gives the raw number to frames of any size."""
    preset: Preset = "veryfast"
    """x264's effort. [RBV] leaves it at "medium", 4 times slower at a similar picture (assumption)."""

    @model_validator(mode="after")
    def _rates_ordered(self) -> Self:
        if not 1 <= self.bit_rate[0] <= self.bit_rate[1]:
            raise ValueError(f"expected an ordered range of positive bit rates, got {self.bit_rate}")
        return self


class FinalConfig(Config):
    """Resize to the final size and sinc filter. [RBV], [RE]."""

    interpolations: Annotated[tuple[Interpolation, ...], MinLen(1)] = ("bilinear", "area", "bicubic")
    sinc_probability: Probability = 0.8
    kernel_size: OddRange = (7, 21)
    cutoff: PositiveRange = (math.pi / 3, math.pi)
    """Radians per pixel."""
    cutoff_step: Step = 0.0628


class DegradationConfig(Config):
    """The whole model: two stages, then codec and final size in random order."""

    first: StageConfig = StageConfig()
    second: SecondStageConfig = SecondStageConfig()
    codec: CodecConfig = CodecConfig()
    final: FinalConfig = FinalConfig()
    codec_first_probability: Probability = 0.5
    """Chance that the last codec (in [RE]'s model: JPEG) precedes the final resize. [RBV], [RE]."""
    image_mode: Literal["real-esrgan", "video"] = "real-esrgan"
    """Model of single frames: [RE]'s own, or the video's with one frame (assumption)."""
