"""Quality of a model on a folder of clean clips: degraded x4 with fixed seeds, restored, compared with bicubic.

    python -m tests.benchmarks.bench_nano [FOLDER] [--model DIRECTORY] [--frames 9] [--size 256]

Coded video of at least 480 lines is halved first, so that its own artefacts do not count as ground truth. Every
clip gives items from a third and two thirds of its length, cropped around the centre.
"""

import argparse
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from seedvr2.checkpoint import Model, bundled_model, load_model
from seedvr2.errors import VideoError
from seedvr2.flow import keyed_latent_noise
from seedvr2.metrics.fidelity import psnr, ssim
from seedvr2.restore import OneStepGenerator
from seedvr2.video.color import match_color
from seedvr2.video.degrade import degrade_clip, sample_degradation
from seedvr2.video.io import open_video, scan
from seedvr2.video.resize import frames_to_pixels, pixels_to_frames, resize_pixels


def items(folder: Path, frames: int, size: int):
    """Named clean clips (T, H, W, 3) uint8 with sides that are multiples of 16."""
    for path in (
        [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    ):
        try:
            found = scan(path)
        except VideoError:
            continue
        for number, start in enumerate(found.frames * np.array([1, 2]) // 3):
            if start + frames > found.frames:
                continue
            with open_video(path, start=int(start), known=found) as source:
                taken = [frame.data for frame in islice(source, frames)]
            if min(taken[0].shape[:2]) >= 480:
                half = (taken[0].shape[1] // 2, taken[0].shape[0] // 2)
                taken = [cv2.resize(frame, half, interpolation=cv2.INTER_AREA) for frame in taken]
            height, width = (min(size, side // 16 * 16) for side in taken[0].shape[:2])
            top, left = (taken[0].shape[0] - height) // 2, (taken[0].shape[1] - width) // 2
            yield f"{path.stem}:{number}", np.stack(taken)[:, top : top + height, left : left + width]


@torch.inference_mode()
def measure(model: Model, clean: np.ndarray, seed: int) -> dict[str, float]:
    record = sample_degradation(seed, clean.shape[1:3], len(clean))
    enlarged = resize_pixels(frames_to_pixels(degrade_clip(clean, record)), clean.shape[1:3])
    autoencoder = model.autoencoder
    latent = autoencoder.to_latent(autoencoder.encode(enlarged).mode())[0]
    noise = keyed_latent_noise(666, f"item {seed}", "noise", 0, tuple(latent.shape))
    restored = OneStepGenerator(model.generator, model.text)([latent], [noise])[0]
    pixels = autoencoder.decode(restored[None])
    matched = match_color(pixels[0].transpose(0, 1), enlarged[0].transpose(0, 1), "wavelet")
    results = {
        "bicubic": pixels_to_frames(enlarged),
        "restored": pixels_to_frames(matched.transpose(0, 1)[None]),
        "unmatched": pixels_to_frames(pixels),
        "autoencoder": pixels_to_frames(
            autoencoder.decode(autoencoder.to_latent(autoencoder.encode(frames_to_pixels(clean)).mode()))
        ),
    }
    scores = {f"{name} psnr": psnr(clean, result) for name, result in results.items()}
    return scores | {f"{name} ssim": ssim(clean, results[name]) for name in ("bicubic", "restored")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=bundled_model() / "demo" / "hq.mp4")
    parser.add_argument("--model", type=Path, default=bundled_model())
    parser.add_argument("--frames", type=int, default=9, help="4n + 1")
    parser.add_argument("--size", type=int, default=256, help="largest side of a crop, pixels")
    parser.add_argument("--seeds", type=int, default=2, help="degradations per item")
    options = parser.parse_args()
    model = load_model(options.model)
    rows = [
        (f"{name} seed {seed}", measure(model, clean, seed))
        for name, clean in items(options.folder, options.frames, options.size)
        for seed in range(options.seeds)
    ]
    if not rows:
        parser.error(f"{options.folder}: no clip of {options.frames} frames in it")
    table = Table("item", *rows[0][1], title=f"{options.model}, x4, {options.frames} frames")
    for name, scores in [*rows, ("mean", {k: np.mean([s[k] for _, s in rows]) for k in rows[0][1]})]:
        table.add_row(
            name, *(f"{value:.3f}" if "ssim" in k else f"{value:.2f}" for k, value in scores.items())
        )
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
