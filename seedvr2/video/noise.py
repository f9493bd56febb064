"""Gaussian and Poisson noise fields, keyed by (seed, frame) and drawn much faster than numpy's own.

A field depends on its key alone, never on the order or number of other draws. Values are produced in runs
that stay in the processor's cache: Gaussian ones by the Box-Muller transform, Poisson ones from one alias
table for all 256 brightness levels, exact to probabilities of 2^-32.
"""

import math
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

RUN = 1 << 15
"""Values per run: a few arrays of 128 KB."""
COLUMNS = 512
"""Columns of the alias table: counts 0..511, 16 standard deviations above the largest mean, 256."""


def generator(seed: int, frame: int) -> np.random.PCG64:
    """The source of random bits of one frame's noise."""
    return np.random.PCG64(np.random.SeedSequence((seed, frame)))


def gaussian_field(shape: tuple[int, ...], seed: int, frame: int) -> NDArray[np.float32]:
    """Standard normal values of any shape, from the key (seed, frame)."""
    bits = generator(seed, frame)
    count = math.prod(shape)
    field = np.empty(count + count % 2, np.float32)
    for start in range(0, count, RUN):
        run = field[start : start + RUN]
        half = run.size // 2
        uniform = bits.random_raw(half).view(np.uint32).astype(np.float32)
        uniform *= np.float32(2.0**-32)
        radius, angle = uniform[:half], uniform[half:]
        np.maximum(radius, np.float32(2.0**-33), out=radius)
        np.log(radius, out=radius)
        radius *= np.float32(-2)
        np.sqrt(radius, out=radius)
        angle *= np.float32(2 * math.pi)
        np.multiply(np.cos(angle), radius, out=run[:half])
        np.multiply(np.sin(angle, out=angle), radius, out=run[half:])
    return field[:count].reshape(shape)


def poisson_field(levels: NDArray[np.uint8], seed: int, frame: int) -> NDArray[np.float32]:
    """Shot noise `Poisson(x V) / V - x` for x = levels / 255, from the key (seed, frame).

    `V = 2^ceil(log2(number of distinct levels))`, over all of `levels`.

    Args:
        levels: 8-bit values of any shape.
        seed: First half of the key.
        frame: Second half of the key.

    Source: Real-ESRGAN's Poisson noise.
    """
    histogram = cv2.calcHist([levels.reshape(-1)], [0], None, [256], [0, 256])
    values = 1 << (int(np.count_nonzero(histogram)) - 1).bit_length()
    table = _alias_table(values).reshape(-1)
    bits = generator(seed, frame)
    flat = levels.reshape(-1)
    field = np.empty(flat.size, np.float32)
    for start in range(0, flat.size, RUN):
        level = flat[start : start + RUN]
        draw = bits.random_raw((level.size + 1) // 2).view(np.uint32)[: level.size]
        column = draw & np.uint32(COLUMNS - 1)
        index = level.astype(np.uint32)
        index *= np.uint32(COLUMNS)
        index += column
        cell = table.take(index, mode="clip")
        other = cell & np.uint32(COLUMNS - 1)
        draw >>= np.uint32(9)
        cell >>= np.uint32(9)
        np.copyto(other, column, where=draw < cell)
        run = field[start : start + RUN]
        run[:] = other.view(np.int32)
        run *= np.float32(1 / values)
        run -= level * np.float32(1 / 255)
    return field.reshape(levels.shape)


@lru_cache(maxsize=9)
def _alias_table(values: int) -> NDArray[np.uint32]:
    """Walker's alias method for Poisson(level / 255 * values), all 256 levels: (256, COLUMNS).

    A cell packs 23 bits of threshold above 9 bits of alias. The 256 tables are built in lockstep.
    """
    mean = np.arange(256)[:, None] / 255 * values
    count = np.arange(COLUMNS)[None, :]
    log_factorial = np.cumsum(np.log(np.maximum(np.arange(COLUMNS), 1)))
    with np.errstate(divide="ignore", invalid="ignore"):
        mass = np.exp(count * np.log(mean) - mean - log_factorial)
    mass[0] = count[0] == 0
    mass *= COLUMNS / mass.sum(axis=1, keepdims=True)
    alias = np.tile(count, (256, 1))
    threshold = np.ones_like(mass)
    open_low = mass.copy()  # columns already closed are set to +inf / -inf
    open_high = mass.copy()
    row = np.arange(256)
    for _ in range(COLUMNS - 1):
        low, high = open_low.argmin(axis=1), open_high.argmax(axis=1)
        share = open_low[row, low]
        threshold[row, low] = np.minimum(share, 1.0)
        alias[row, low] = high
        rest = open_high[row, high] - (1.0 - share)
        open_high[row, high] = open_low[row, high] = rest
        open_low[row, low] = np.inf
        open_high[row, low] = -np.inf
    parts = np.rint(threshold * 2**23)
    full = parts >= 2**23  # does not fit in 23 bits: let the column be its own alias
    packed = np.where(full, 0, parts).astype(np.uint32) << np.uint32(9)
    return np.asarray(packed | np.where(full, count, alias).astype(np.uint32))
