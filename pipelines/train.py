"""Train one stage from a recipe: the autoencoder of a small model, or its one-step generator.

A rerun of the same command continues after the last complete checkpoint.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Self

import cv2
import numpy as np
import torch
from pydantic import model_validator

from pipelines.footage import Footage
from pipelines.pairs import BucketsConfig, Prefetch, clean_batch, latent_pairs
from seedvr2.checkpoint import load_autoencoder
from seedvr2.config import Config, load_config, load_preset
from seedvr2.errors import ConfigError, StageError
from seedvr2.storage import write_atomic
from seedvr2.training.autoencoder import AutoencoderStage, AutoencoderStageConfig, normalise_latent
from seedvr2.training.linear_start import start_linear
from seedvr2.training.loop import train
from seedvr2.training.regression import RegressionStage, RegressionStageConfig
from seedvr2.video.resize import frames_to_pixels

START_CROPS = 1500
"""Pictures whose principal components the autoencoder starts from."""


class TrainRecipe(Config):
    """One training run."""

    preset: str
    """Model size: nano, 3b or 7b."""
    footage: str
    """Folder of clean pictures and clips."""
    seed: int = 1
    checkpoint_every: int = 500
    """Updates."""
    data: BucketsConfig
    autoencoder: AutoencoderStageConfig | None = None
    """Train the autoencoder so."""
    regression: RegressionStageConfig | None = None
    """Train the generator so."""
    parent: str = ""
    """Model directory whose autoencoder the generator works on."""

    @model_validator(mode="after")
    def _one_stage(self) -> Self:
        if (self.autoencoder is None) == (self.regression is None):
            raise ValueError("give one of the tables [autoencoder] and [regression]")
        if self.regression is not None and not self.parent:
            raise ValueError("parent is needed: the model directory with the autoencoder")
        return self

    @property
    def steps(self) -> int:
        """Updates of the stage."""
        return sum(stage.steps for stage in (self.autoencoder, self.regression) if stage is not None)


def load_recipe(name: str, overrides: tuple[str, ...] = ()) -> TrainRecipe:
    """A recipe by the name of a bundled one, or from a TOML file.

    Args:
        name: Such as nano-regression, or a path that ends in .toml.
        overrides: `key=value` strings, see `load_config`.

    Raises:
        ConfigError: No such recipe, an unknown key, or a value that does not fit.
    """
    if name.endswith(".toml"):
        return load_config(TrainRecipe, name, overrides)
    bundled = {path.stem: path for path in Path(__file__).with_name("recipes").glob("*.toml")}
    if name not in bundled:
        raise ConfigError(f"no recipe {name!r}; name a .toml file, or one of {', '.join(sorted(bundled))}")
    return load_config(TrainRecipe, bundled[name], overrides)


def run_recipe(
    recipe: TrainRecipe,
    folder: Path,
    device: torch.device,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> Path:
    """Train the recipe's stage in `folder` and return the exported model directory.

    Args:
        recipe: What to train.
        folder: The run; a run of another recipe is refused.
        device: Where to train.
        on_step: Called after every update with its number and metrics.

    Raises:
        StageError: `folder` holds a run of another recipe, or footage or parent are missing.
        TrainingDiverged: A loss is not finite.
    """
    _claim(folder, recipe)
    cv2.setNumThreads(1)
    footage = Footage(Path(recipe.footage))
    if recipe.autoencoder is not None:
        _train_autoencoder(recipe, recipe.autoencoder, footage, folder, device, on_step)
    if recipe.regression is not None:
        _train_regression(recipe, recipe.regression, footage, folder, device, on_step)
    return folder / "model"


def _train_autoencoder(
    recipe: TrainRecipe,
    config: AutoencoderStageConfig,
    footage: Footage,
    folder: Path,
    device: torch.device,
    on_step: Callable[[int, dict[str, float]], None] | None,
) -> None:
    stage = AutoencoderStage(load_preset(recipe.preset).autoencoder, config, recipe.seed, device)
    start_linear(stage.model, _start_crops(footage, recipe.seed).to(device))
    stage.ema.model.load_state_dict(stage.model.state_dict())
    batches = Prefetch(lambda step: clean_batch(footage, recipe.data, recipe.seed, step), config.steps, 1)
    train(stage, batches, config.steps, folder, recipe.checkpoint_every, on_step)
    batches.close()
    sample = _sample_clips(footage, recipe.seed).to(device)
    with torch.inference_mode():
        means = stage.ema.model.encode(sample).mode()
    normalise_latent(stage.ema.model, means)
    stage.export(folder / "model")


def _train_regression(
    recipe: TrainRecipe,
    config: RegressionStageConfig,
    footage: Footage,
    folder: Path,
    device: torch.device,
    on_step: Callable[[int, dict[str, float]], None] | None,
) -> None:
    autoencoder = load_autoencoder(Path(recipe.parent), device=device)
    sample = _sample_clips(footage, recipe.seed).to(device)
    with torch.inference_mode():
        latents = autoencoder.to_latent(autoencoder.encode(sample).mode())
    preset = load_preset(recipe.preset).generator
    stage = RegressionStage(preset, autoencoder, config, latents.clone(), recipe.seed, device)
    batches = Prefetch(
        lambda step: latent_pairs(footage, recipe.data, autoencoder, recipe.seed, step, config.autocast),
        config.steps,
    )
    train(stage, batches, config.steps, folder, recipe.checkpoint_every, on_step)
    batches.close()


def _start_crops(footage: Footage, seed: int) -> torch.Tensor:
    """Pictures (N, 3, 64, 64) in [-1, 1]."""
    rng = np.random.default_rng([seed, 1 << 41])
    return torch.cat([frames_to_pixels(footage.crop(rng, 1, 64))[:, :, 0] for _ in range(START_CROPS)])


def _sample_clips(footage: Footage, seed: int) -> torch.Tensor:
    """Clips (N, 3, 5, 128, 128) in [-1, 1] that stand for all footage."""
    rng = np.random.default_rng([seed, 1 << 40])
    return torch.cat([frames_to_pixels(footage.crop(rng, 5, 128)) for _ in range(32)])


def _claim(folder: Path, recipe: TrainRecipe) -> None:
    """Write the resolved recipe into the run, or check that it is the one there."""
    path = folder / "resolved.json"
    resolved = recipe.model_dump_json(indent=2) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") != resolved:
        raise StageError(f"{folder}: holds a run of another recipe; choose another folder or delete it")
    folder.mkdir(parents=True, exist_ok=True)
    with write_atomic(path) as temporary:
        temporary.write_text(resolved, encoding="utf-8")
