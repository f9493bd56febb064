"""The demo: restore a degraded clip, and compare the result and plain enlargement with the clean original."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from seedvr2.checkpoint import Model
from seedvr2.errors import ShapeError
from seedvr2.metrics.fidelity import psnr, ssim
from seedvr2.restore import Restored, RestoreOptions, restore_video
from seedvr2.storage import write_atomic
from seedvr2.video.frame import scale_depth
from seedvr2.video.io import open_video, probe
from seedvr2.video.resize import frames_to_pixels, pixels_to_frames, resize_pixels
from seedvr2.video.write import writing

_Pictures: TypeAlias = NDArray[np.uint8]

_ZOOM = 3
"""Enlargement of the lower half of the picture, pixel by pixel."""
_MARGIN = 8
"""Pixels between and around panels."""
_PAPER, _INK, _FRAME = (255, 255, 255), (20, 20, 20), (255, 210, 0)


@dataclass(frozen=True)
class Quality:
    """How close frames are to the clean original."""

    psnr: float
    """dB, mean over frames."""
    ssim: float


@dataclass(frozen=True)
class DemoResult:
    """What a demo made and measured."""

    restored: Restored
    picture: Path
    """Before and after, with a zoomed crop."""
    bicubic: Quality
    """Of the degraded clip, enlarged."""
    result: Quality
    """Of the restored file, as it decodes."""


def run_demo(
    folder: Path,
    model: Model,
    lq: Path,
    hq: Path,
    on_progress: Callable[[float, int], None] | None = None,
) -> DemoResult:
    """Restore a clip to the size of its original; write `restored.mp4` and `before_after.png`.

    Args:
        folder: Where the results go, made if missing; earlier results are replaced.
        model: Networks on their device.
        lq: Degraded clip of low resolution.
        hq: The clean original, larger by one factor on both sides.
        on_progress: As of `restore_video`.

    Raises:
        VideoError: A clip cannot be read, or a result cannot be written.
        ShapeError: The clips do not belong together.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    scale = probe(hq).width / probe(lq).width
    options = RestoreOptions(scale=scale)
    restored = restore_video(
        lq, folder / "restored.mp4", model, options, overwrite=True, on_progress=on_progress
    )
    clean, after = _read(hq), _read(restored.output)
    before = _enlarge(_read(lq), (clean.shape[1], clean.shape[2]))
    if clean.shape != before.shape or clean.shape != after.shape:
        raise ShapeError(
            f"expected {hq} to have the frames of {lq} at {scale:g} times the size, got {clean.shape} "
            f"for {before.shape}; choose clips that belong together"
        )
    qualities = [Quality(psnr(clean, frames), ssim(clean, frames)) for frames in (before, after)]
    picture = folder / "before_after.png"
    middle = len(clean) // 2
    image = compare(
        [
            (f"bicubic x{scale:g}, {qualities[0].psnr:.2f} dB", before[middle]),
            (f"restored, {qualities[1].psnr:.2f} dB", after[middle]),
        ],
        detail_box(clean[middle], _ZOOM),
    )
    with writing(picture), write_atomic(picture) as temporary:
        image.save(temporary, "PNG", optimize=True)
    return DemoResult(restored, picture, *qualities)


def demo_lines(result: DemoResult) -> list[str]:
    """The result in words: both paths, and the measurements in a small table."""
    restored = result.restored
    height, width = restored.size
    lines = [
        f"restored video: {restored.output}",
        f"before and after: {result.picture}",
        f"{restored.frames} frames of {width}x{height} in {sum(restored.seconds.values()):.1f} s",
        "against the clean original:",
    ]
    for name, quality in (("bicubic", result.bicubic), ("restored", result.result)):
        lines.append(f"  {name:<8}  PSNR {quality.psnr:5.2f} dB  SSIM {quality.ssim:.4f}")
    return lines


def detail_box(picture: _Pictures, zoom: int) -> tuple[int, int, int, int]:
    """The crop (left, top, right, bottom) of 1/zoom of both sides with the strongest edges.

    Args:
        picture: uint8 (H, W, 3); the clean original, so that neither result chooses.
        zoom: Sides of the picture over those of the crop.
    """
    luma = picture.astype(np.float64).mean(axis=-1)
    rows, columns = np.gradient(luma)
    sums = np.pad(np.hypot(rows, columns).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    height, width = max(1, luma.shape[0] // zoom), max(1, luma.shape[1] // zoom)
    boxes = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    top, left = (int(place) for place in np.unravel_index(boxes.argmax(), boxes.shape))
    return left, top, left + width, top + height


def compare(panels: list[tuple[str, _Pictures]], box: tuple[int, int, int, int]) -> Image.Image:
    """Labelled pictures side by side, each above its enlarged crop.

    Args:
        panels: Label and picture, uint8 (H, W, 3), all of one size.
        box: The crop (left, top, right, bottom).
    """
    height, width = panels[0][1].shape[:2]
    zoomed = ((box[2] - box[0]) * _ZOOM, (box[3] - box[1]) * _ZOOM)
    size = max(12, width // 24)
    font = ImageFont.load_default(size)
    label = size + _MARGIN
    column = max(width, zoomed[0]) + _MARGIN
    sheet = Image.new(
        "RGB", (_MARGIN + column * len(panels), 3 * _MARGIN + label + height + zoomed[1]), _PAPER
    )
    draw = ImageDraw.Draw(sheet)
    for place, (text, pixels) in enumerate(panels):
        left, top = _MARGIN + place * column, _MARGIN + label
        picture = Image.fromarray(pixels)
        draw.text((left, _MARGIN), text, _INK, font)
        sheet.paste(picture, (left, top))
        marked = (left + box[0] - 1, top + box[1] - 1, left + box[2], top + box[3])
        draw.rectangle(marked, outline=_FRAME)
        crop = picture.crop(box).resize(zoomed, Image.Resampling.NEAREST)
        sheet.paste(crop, (left, top + height + _MARGIN))
    return sheet


def _read(path: Path) -> _Pictures:
    """All frames of a short clip at 8 bit: (T, H, W, 3)."""
    with open_video(path) as source:
        return np.stack([scale_depth(frame.data, frame.bit_depth, 8) for frame in source])


def _enlarge(frames: _Pictures, size: tuple[int, int]) -> _Pictures:
    enlarged = pixels_to_frames(resize_pixels(frames_to_pixels(frames), size))
    return enlarged.astype(np.uint8, copy=False)
