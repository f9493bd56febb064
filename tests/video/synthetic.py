"""Natural-looking test clips without files: 1/f texture, a gradient, moving shapes."""

import cv2
import numpy as np
from numpy.typing import NDArray


def natural_clip(num_frames: int, height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """A panning 1/f texture with edges and a moving disc, uint8 (T, H, W, 3)."""
    random = np.random.default_rng(seed)
    texture = np.zeros((height + 32, width + 32, 3), np.float32)
    for octave in range(1, 9):
        cells = random.standard_normal((2 + 2**octave * height // width, 2 + 2**octave, 3), dtype=np.float32)
        layer = cv2.resize(cells, (width + 32, height + 32), interpolation=cv2.INTER_CUBIC)
        texture += layer * np.float32(0.3 / 2 ** (octave / 2))
    texture += np.linspace(-0.3, 0.3, width + 32, dtype=np.float32)[None, :, None]
    levels = np.clip(128 + 127 * np.tanh(texture), 0, 255).astype(np.uint8)
    unit = max(height // 16, 1)
    for index in range(12):
        corner = (int(random.integers(0, width)), int(random.integers(0, height)))
        color = tuple(int(value) for value in random.integers(0, 256, 3))
        other = (corner[0] + unit * (1 + index % 3), corner[1] + unit)
        cv2.rectangle(levels, corner, other, color, cv2.FILLED if index % 2 else max(unit // 8, 1))
    frames = []
    for index in range(num_frames):
        frame = levels[index % 32 : index % 32 + height, 2 * index % 32 : 2 * index % 32 + width].copy()
        cv2.circle(
            frame, (width // 4 + index * unit // 2, height // 2), unit, (230, 40, 60), cv2.FILLED, cv2.LINE_AA
        )
        frames.append(frame)
    return np.stack(frames)
