"""Regression of the one-step velocity: the generator learns, from pure noise and the source, the clean latent.

It sees only timestep 1000, where the velocity with the least squared error is noise - E[clean | source]. This
is the shortest way to a generator that restores in one step; what it cannot know it averages, so fine texture
stays soft. Latent channels of equal variance stand for very unequal parts of a picture, and the fine ones can
hardly be predicted; so each channel's error counts by the squared error of pixels that it causes. And each sample's
error counts relative to that of its source, so that the worst samples do not drown the others.

Source: flow matching as in SeedVR2 (arXiv 2506.05301), Sec. 3.1, at its end point.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from seedvr2.checkpoint import TextEmbedding, save_model
from seedvr2.config import Config, GeneratorConfig
from seedvr2.flow import FULL_NOISE, build_condition, latent_from_velocity
from seedvr2.losses import charbonnier, velocity_loss
from seedvr2.models.autoencoder import Autoencoder
from seedvr2.models.generator import Generator
from seedvr2.training.ema import Ema
from seedvr2.training.linear_start import start_identity
from seedvr2.training.stage import OptimiserConfig


@dataclass(frozen=True)
class LatentPair:
    """One training sample, already encoded."""

    lq: Tensor
    """Latent of the enlarged source (16, T', h, w)."""
    hq: Tensor
    """Latent of the clean clip, the same shape."""
    pixels: Tensor
    """The clean clip (3, T, 8h, 8w) in [-1, 1]."""


class RegressionStageConfig(Config):
    """Knobs of one-step regression."""

    steps: int = Field(4_000, ge=1)
    """Updates."""
    weight_pixels: float = Field(0.0, ge=0)
    """Of the absolute error after decoding, beside the squared error of the velocity."""
    text_tokens: int = Field(4, ge=1)
    """Tokens of each prompt; a small model's prompts are fixed random vectors."""
    autocast: bool = True
    """Compute in bfloat16 where PyTorch holds it safe; weights and losses stay fp32."""
    optimiser: OptimiserConfig = OptimiserConfig()


class RegressionStage:
    """Trains a generator for one step at timestep 1000.

    Args:
        model: Sizes of the generator.
        autoencoder: Frozen; decodes for the pixel loss and is exported beside the generator.
        config: Knobs.
        sample: Clean latents (B, 16, T', h, w); the first four tell what each channel means in pixels.
        seed: Of the initial weights, the prompts and the noise.
        device: Where to train.
    """

    name = "regression"

    def __init__(
        self,
        model: GeneratorConfig,
        autoencoder: Autoencoder,
        config: RegressionStageConfig,
        sample: Tensor,
        seed: int,
        device: torch.device,
    ) -> None:
        self.config = config
        self.seed = seed
        self.device = device
        self.autoencoder = autoencoder.to(device).eval().requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = Generator(model).to(device)
            shape = (config.text_tokens, model.text_channels)
            self.text = TextEmbedding(torch.randn(shape, device=device), torch.randn(shape, device=device))
        start_identity(self.model)
        self.channel_weight = pixel_energy(self.autoencoder, sample[:4].to(device))
        self.ema = Ema(self.model, config.optimiser.ema_decay)
        settings = config.optimiser
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
        )

    def step(self, batch: Sequence[LatentPair], step: int) -> dict[str, float]:
        """One update on pairs of any sizes."""
        settings = self.config.optimiser
        for group in self.optimiser.param_groups:
            group["lr"] = settings.lr_at(step, self.config.steps)
        draws = torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + step)
        lq = [pair.lq.to(self.device) for pair in batch]
        hq = [pair.hq.to(self.device) for pair in batch]
        noise = [torch.randn(z.shape, generator=draws, device=self.device) for z in lq]
        inputs = [torch.cat([n, build_condition(z)]) for n, z in zip(noise, lq, strict=True)]
        timesteps = torch.full((len(inputs),), FULL_NOISE, device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.autocast):
            velocities = self.model(inputs, timesteps, [self.text.positive] * len(inputs))
            restored = [
                latent_from_velocity(v.float(), n, FULL_NOISE) for v, n in zip(velocities, noise, strict=True)
            ]
        weight = self.channel_weight
        errors = torch.stack(
            [velocity_loss(v, n - z, weight) for v, n, z in zip(velocities, noise, hq, strict=True)]
        )
        source_errors = torch.stack([velocity_loss(a, b, weight) for a, b in zip(lq, hq, strict=True)])
        loss = (errors / (source_errors + 1e-4)).mean()
        metrics = {
            "loss/relative": loss.item(),
            "loss/velocity": errors.mean().item(),
            "loss/velocity_of_source": source_errors.mean().item(),
        }
        if self.config.weight_pixels:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.autocast):
                decoded = [self.autoencoder.decode(x[None])[0] for x in restored]
            pixel_error = torch.stack(
                [charbonnier(x, pair.pixels.to(self.device)) for x, pair in zip(decoded, batch, strict=True)]
            ).mean()
            loss = loss + self.config.weight_pixels * pixel_error
            metrics["loss/pixels"] = pixel_error.item()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.ema.update(self.model, step)
        return {**metrics, "gradient/norm": norm.item()}

    def state_dict(self) -> dict[str, Any]:
        """Weights, their average and the optimiser."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "channel_weight": self.channel_weight,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        self.model.load_state_dict(state["model"])
        self.ema.model.load_state_dict(state["ema"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.channel_weight = state["channel_weight"].to(self.device)

    def export(self, folder: Path) -> None:
        """Write the averaged generator, the autoencoder and the prompts as a model directory, in fp16."""
        save_model(
            folder,
            name="nano",
            stage=self.name,
            generator=self.ema.model,
            autoencoder=self.autoencoder,
            text=self.text,
            dtype=torch.float16,
        )


@torch.no_grad()
def pixel_energy(autoencoder: Autoencoder, latent: Tensor, step: float = 0.2) -> Tensor:
    """Squared error of pixels per squared error of each latent channel, scaled to a mean of 1.

    Args:
        autoencoder: Its decoder is measured.
        latent: Representative latents (B, 16, T', h, w).
        step: Size of the random change that is made to one channel at a time.

    Returns:
        (16, 1, 1, 1).
    """
    draws = torch.Generator(latent.device).manual_seed(0)
    clean = autoencoder.decode(latent)
    energies = []
    for channel in range(latent.shape[1]):
        changed = latent.clone()
        field = changed[:, channel]
        field += step * torch.randn(field.shape, generator=draws, device=latent.device)
        energies.append((autoencoder.decode(changed) - clean).square().mean())
    energy = torch.stack(energies)
    return (energy / energy.mean()).reshape(-1, 1, 1, 1)
