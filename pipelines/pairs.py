"""Training batches for small models, each a function of its step: crops of footage, and degraded pairs.

A step's batch can be made again from seed and step alone, so a resumed run sees what an undisturbed one sees,
and batches can be prepared ahead by threads.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pipelines.footage import Footage
from seedvr2.config import Config
from seedvr2.models.autoencoder import Autoencoder
from seedvr2.training.regression import LatentPair
from seedvr2.video.degrade import degrade_clip, sample_degradation
from seedvr2.video.resize import frames_to_pixels, resize_pixels

BatchT = TypeVar("BatchT")


class Bucket(Config):
    """One shape of batch."""

    samples: int = Field(ge=1)
    frames: int = Field(ge=1)
    """4n + 1."""
    size: int = Field(ge=16, multiple_of=16)
    """Pixels per side of the square crop."""
    weight: float = Field(1.0, gt=0)
    """How often it is drawn, relative to the others."""


class BucketsConfig(Config):
    """The shapes a run draws its batches from: pictures first, then everything."""

    buckets: tuple[Bucket, ...] = Field(min_length=1)
    pictures_first: int = Field(0, ge=0)
    """Steps in which only buckets of one frame are drawn."""

    def draw(self, rng: np.random.Generator, step: int) -> Bucket:
        """The bucket of one step."""
        choices = (
            [b for b in self.buckets if b.frames == 1] if step < self.pictures_first else list(self.buckets)
        )
        weights = np.array([bucket.weight for bucket in choices])
        return choices[rng.choice(len(choices), p=weights / weights.sum())]


def clean_batch(footage: Footage, config: BucketsConfig, seed: int, step: int) -> Tensor:
    """Pixels (B, 3, T, H, W) in [-1, 1] for the autoencoder."""
    rng = np.random.default_rng([seed, step])
    bucket = config.draw(rng, step)
    crops = [footage.crop(rng, bucket.frames, bucket.size) for _ in range(bucket.samples)]
    return torch.cat([frames_to_pixels(crop) for crop in crops])


@torch.inference_mode()
def latent_pairs(
    footage: Footage,
    config: BucketsConfig,
    autoencoder: Autoencoder,
    seed: int,
    step: int,
    autocast: bool = True,
) -> list[LatentPair]:
    """Degraded pairs, encoded: the source enlarged bicubically, as at inference."""
    rng = np.random.default_rng([seed, step])
    bucket = config.draw(rng, step)
    clean, enlarged = [], []
    for _ in range(bucket.samples):
        crop = footage.crop(rng, bucket.frames, bucket.size)
        record = sample_degradation(int(rng.integers(2**62)), crop.shape[1:3], len(crop))
        clean.append(frames_to_pixels(crop))
        enlarged.append(resize_pixels(frames_to_pixels(degrade_clip(crop, record)), crop.shape[1:3]))
    device = next(autoencoder.parameters()).device
    pixels = torch.cat(clean + enlarged)
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        latents = autoencoder.to_latent(autoencoder.encode(pixels.to(device)).mode()).float()
    hq, lq = latents.clone().chunk(2)
    return [LatentPair(*sample) for sample in zip(lq, hq, torch.cat(clean), strict=True)]


class Prefetch(Generic[BatchT]):
    """Prepares the batches of coming steps in threads.

    Args:
        make: Step number to batch.
        steps: Number of steps; none is prepared beyond.
        workers: Threads.
    """

    def __init__(self, make: Callable[[int], BatchT], steps: int, workers: int = 2) -> None:
        self._make = make
        self._steps = steps
        self._ahead = 2 * workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
        self._coming: dict[int, Future[BatchT]] = {}

    def __call__(self, step: int) -> BatchT:
        """The batch of one step; steps are asked for in order."""
        for coming in range(step, min(step + self._ahead, self._steps)):
            if coming not in self._coming:
                self._coming[coming] = self._pool.submit(self._make, coming)
        return self._coming.pop(step).result()

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(cancel_futures=True)
