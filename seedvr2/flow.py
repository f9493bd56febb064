"""The straight path between a clean latent (timestep 0) and noise (timestep 1000).

Training mixes latents with noise along it, sampling walks it back by Euler steps, and restoration is the
case of one step from pure noise. Timesteps here are exact: lists are built from integers, and the
resolution-dependent warp is evaluated for (frames, height, width), which the released script mixes up.

Noise is keyed, not drawn in order: what one latent frame gets depends on the seed, the source and the
frame's place in the source only, so that segment plans, retries, batches and hosts all agree.

Samples are channel-first, `(..., C, T', h, w)`; mixing happens in float32 whatever the inputs.

Source: SeedVR2 (arXiv 2506.05301) and the released configurations; rectified flow with linear schedule.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import torch
from einops import rearrange
from torch import Tensor

from seedvr2.errors import ConfigError, ShapeError

FULL_NOISE = 1000.0
"""The timestep of pure noise."""

NoisePurpose = Literal["noise", "posterior"]
"""What a keyed draw is for: the start of the flow, or the draw from the autoencoder's posterior."""

TimestepT = TypeVar("TimestepT", float, Tensor)


def interpolate(latent: Tensor, noise: Tensor, timestep: float | Tensor) -> Tensor:
    """The point of the path at `timestep`: `(1 - t/1000) * latent + t/1000 * noise`, in float32.

    Args:
        latent: Clean sample.
        noise: Standard normal sample of the same shape.
        timestep: One timestep in [0, 1000], or one per entry of the first axis.
    """
    level = _noise_level(timestep, noise)
    return (1 - level) * _precise(latent) + level * _precise(noise)


def velocity(latent: Tensor, noise: Tensor) -> Tensor:
    """What the generator predicts anywhere on the path: `noise - latent`, in float32."""
    return _precise(noise) - _precise(latent)


def latent_from_velocity(velocity: Tensor, sample: Tensor, timestep: float | Tensor) -> Tensor:
    """The clean end of the path through `sample` with this velocity: `x - t/1000 * v`."""
    return _precise(sample) - _noise_level(timestep, sample) * _precise(velocity)


def noise_from_velocity(velocity: Tensor, sample: Tensor, timestep: float | Tensor) -> Tensor:
    """The noisy end of the path through `sample` with this velocity: `x + (1 - t/1000) * v`."""
    return _precise(sample) + (1 - _noise_level(timestep, sample)) * _precise(velocity)


def timestep_shift_for(latent_size: tuple[int, int, int]) -> float:
    """How strongly timesteps are warped towards noise for a sample of this size.

    It is linear in the pixels of a picture, or in the pixels of all frames of a video, through two anchors
    each, and is not clamped outside of them.

    Args:
        latent_size: Latent frames, height and width (T', h, w), each at least 1.

    Raises:
        ShapeError: A size below 1.

    Source: the released training configuration. Used for training timesteps and for the noise on the
    condition, never for the timesteps of sampling.
    """
    if min(latent_size) < 1:
        raise ShapeError(f"expected latent frames, height and width of at least 1, got {tuple(latent_size)}")
    frames, height, width = (latent_size[0] - 1) * 4 + 1, latent_size[1] * 8, latent_size[2] * 8
    if frames == 1:
        return _line(height * width, (256 * 256, 1.0), (1024 * 1024, 3.2))
    return _line(height * width * frames, (256 * 256 * 37, 1.0), (1280 * 720 * 145, 5.0))


def shift_timestep(timestep: TimestepT, timestep_shift: float) -> TimestepT:
    """Warp a timestep: `1000 * s*u / (1 + (s-1)*u)` with `u = t/1000`; 0, 1000 and `s = 1` change nothing."""
    share = timestep / FULL_NOISE
    return FULL_NOISE * (timestep_shift * share / (1 + (timestep_shift - 1) * share))


def trailing_timesteps(steps: int, timestep_shift: float = 1.0) -> list[float]:
    """The timesteps of a sampler, from 1000 downwards in `steps` even steps; 0 is not among them.

    Args:
        steps: Evaluations of the generator, at least 1; SeedVR2 uses 1.
        timestep_shift: Constant warp; 1.0, the released setting, is none.

    Raises:
        ConfigError: `steps` below 1 or a `timestep_shift` that is not positive.

    Source: the released sampler, except that it steps in floating point and for some counts adds a step.
    """
    if steps < 1 or not timestep_shift > 0:
        raise ConfigError(
            f"expected at least 1 step and a timestep shift above 0, got {steps} and {timestep_shift}"
        )
    return [shift_timestep(FULL_NOISE * ((steps - k) / steps), timestep_shift) for k in range(steps)]


def euler_step(velocity: Tensor, sample: Tensor, timestep: float, next_timestep: float) -> Tensor:
    """Walk from `timestep` to `next_timestep` on the line through `sample`; 0 gives the clean latent."""
    latent = latent_from_velocity(velocity, sample, timestep)
    if next_timestep == 0:
        return latent
    return interpolate(latent, noise_from_velocity(velocity, sample, timestep), next_timestep)


def sample_euler(
    predict: Callable[[Tensor, float], Tensor], noise: Tensor, timesteps: Sequence[float]
) -> Tensor:
    """Turn noise into a clean latent with one prediction per timestep.

    Args:
        predict: From a sample and its timestep to the velocity there, same shape.
        noise: The start; taken as the sample at the first timestep.
        timesteps: Descending, as from `trailing_timesteps`; after the last one follows 0.

    Returns:
        The latent, float32.
    """
    sample = noise
    for timestep, next_timestep in zip(timesteps, [*timesteps[1:], 0.0], strict=True):
        sample = euler_step(predict(sample, timestep), sample, timestep, next_timestep)
    return sample


def guide(positive: Tensor, negative: Tensor | None, scale: float, rescale: float = 0.0) -> Tensor:
    """Classifier-free guidance of two velocities: `v_neg + s * (v_pos - v_neg)`, then optionally rescaled.

    Args:
        positive: Velocity under the wanted text, `(..., C, T', h, w)`.
        negative: Velocity under the unwanted text; not read at scale 1, so callers may pass None there.
        scale: 1 is no guidance (SeedVR2).
        rescale: Share, in [0, 1], by which the result is brought back to the spread of `positive`. The
            spread is taken per token: unbiased, over the channels.

    Returns:
        The velocity, float32; at scale 1 `positive` itself.

    Raises:
        ConfigError: No negative velocity at a scale other than 1.

    Source: classifier-free guidance as in the released sampler.
    """
    if scale == 1:
        return positive
    if negative is None:
        raise ConfigError(f"guidance scale {scale} needs a negative prediction; only scale 1 goes without")
    positive, negative = _precise(positive), _precise(negative)
    guided = negative + scale * (positive - negative)
    if rescale == 0:
        return guided
    ratio = positive.std(dim=-4, keepdim=True) / guided.std(dim=-4, keepdim=True)
    return guided * (rescale * ratio + (1 - rescale))


def build_condition(latent: Tensor) -> Tensor:
    """The condition of restoration: the LQ latent in every frame, and a mask of ones as the last channel.

    Args:
        latent: LQ latent (..., C, T', h, w).

    Returns:
        Condition (..., C+1, T', h, w); the generator reads `[noisy latent | condition]`.
    """
    mask = torch.ones_like(latent[..., :1, :, :, :])
    return torch.cat([latent, mask], dim=-4)


def noise_condition(latent: Tensor, noise: Tensor, noise_scale: float) -> Tensor:
    """Blur the LQ latent with noise, so that the generator trusts it less.

    Args:
        latent: LQ latent (..., C, T', h, w).
        noise: Standard normal sample of the same shape.
        noise_scale: In [0, 1], before the resolution-dependent warp; 0 (SeedVR2) returns `latent` itself.

    Raises:
        ConfigError: `noise_scale` outside [0, 1].

    Source: the released script, except that it evaluates the warp for (h, w, C) in place of (T', h, w).
    """
    if not 0 <= noise_scale <= 1:
        raise ConfigError(f"expected a condition noise scale in [0, 1], got {noise_scale}")
    if noise_scale == 0:
        return latent
    frames, height, width = latent.shape[-3:]
    warp = timestep_shift_for((frames, height, width))
    return interpolate(latent, noise, shift_timestep(FULL_NOISE * noise_scale, warp))


def keyed_noise(seed: int, source: str, purpose: NoisePurpose, frame: int, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers that depend on nothing but the arguments.

    They are drawn in double precision and rounded: float32 draws differ between kinds of CPU in the last bit.
    torch seeds a CPU generator by 32 bits, so two of very many keys may share their noise.

    Args:
        seed: The user's seed, any integer.
        source: Digest of the source file, or any name that survives a retry on another host.
        purpose: Draws for different purposes are independent.
        frame: Index, in the source, of the last frame the latent frame covers.
        shape: Shape of the result.

    Returns:
        float32 on the CPU.
    """
    key = "\x1f".join((str(seed), source, purpose, str(frame)))
    digest = hashlib.sha256(key.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64).float()


def keyed_latent_noise(
    seed: int, source: str, purpose: NoisePurpose, start_frame: int, latent_shape: tuple[int, int, int, int]
) -> Tensor:
    """Keyed noise of a whole latent that starts at `start_frame` of the source.

    Latent frame k ends at source frame `start_frame + 4*k`, which is its key: segments that overlap, with
    starts a multiple of 4 apart, see the same noise in the frames they share.

    Args:
        seed: The user's seed.
        source: Digest of the source file.
        purpose: What the noise is for.
        start_frame: Index of the latent's first frame in the source.
        latent_shape: (C, T', h, w).

    Returns:
        float32 (C, T', h, w) on the CPU.
    """
    channels, frames, height, width = latent_shape
    return torch.stack(
        [
            keyed_noise(seed, source, purpose, start_frame + 4 * k, (channels, height, width))
            for k in range(frames)
        ],
        dim=1,
    )


def _precise(sample: Tensor) -> Tensor:
    return sample.to(torch.promote_types(sample.dtype, torch.float32))


def _noise_level(timestep: float | Tensor, sample: Tensor) -> float | Tensor:
    """t/1000, shaped to multiply `sample`."""
    if not isinstance(timestep, Tensor):
        return timestep / FULL_NOISE
    level = _precise(timestep.to(sample.device)) / FULL_NOISE
    if level.ndim == 0:
        return level
    if level.ndim > 1 or level.shape[0] not in (1, sample.shape[0]):
        raise ShapeError(
            f"expected one timestep or one per sample, got {tuple(timestep.shape)} for {tuple(sample.shape)}"
        )
    return rearrange(level, f"b -> b {'1 ' * (sample.ndim - 1)}")


def _line(x: float, first: tuple[float, float], second: tuple[float, float]) -> float:
    """The value at x of the line through two points."""
    slope = (second[1] - first[1]) / (second[0] - first[0])
    return first[1] + slope * (x - first[0])
