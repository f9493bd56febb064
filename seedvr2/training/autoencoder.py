"""Training of the causal video autoencoder: pictures and clips in, the same pixels out.

The paper starts from a trained autoencoder; a small model needs a small one. The loss is the smooth
absolute error of the reconstruction with a slight pull of the posterior towards N(0, 1).
"""

import math
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor

from seedvr2.config import AutoencoderConfig, Config
from seedvr2.losses import charbonnier, kl_divergence
from seedvr2.models.autoencoder import Autoencoder
from seedvr2.training.ema import Ema
from seedvr2.training.stage import OptimiserConfig


class AutoencoderStageConfig(Config):
    """Knobs of autoencoder training."""

    steps: int = Field(10_000, ge=1)
    """Updates."""
    weight_kl: float = Field(1e-4, ge=0)
    """Pull of the posterior towards N(0, 1), per latent element."""
    autocast: bool = True
    """Compute in bfloat16 where PyTorch holds it safe; weights and losses stay fp32."""
    optimiser: OptimiserConfig = OptimiserConfig()


class AutoencoderStage:
    """Trains an autoencoder on batches of pixels (B, 3, T, H, W) in [-1, 1].

    Args:
        model: Sizes of the autoencoder.
        config: Knobs.
        seed: Of the initial weights and of the posterior's draws.
        device: Where to train.
    """

    name = "autoencoder"

    def __init__(
        self, model: AutoencoderConfig, config: AutoencoderStageConfig, seed: int, device: torch.device
    ) -> None:
        self.config = config
        self.seed = seed
        self.device = device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = Autoencoder(model).to(device)
        self.ema = Ema(self.model, config.optimiser.ema_decay)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.optimiser.lr,
            betas=config.optimiser.betas,
            weight_decay=config.optimiser.weight_decay,
        )

    def step(self, batch: Tensor, step: int) -> dict[str, float]:
        """One update."""
        settings = self.config.optimiser
        for group in self.optimiser.param_groups:
            group["lr"] = settings.lr_at(step, self.config.steps)
        pixels = batch.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.autocast):
            posterior = self.model.encode(pixels)
            draws = torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + step)
            latent = self.model.to_latent(posterior.sample(draws))
            reconstruction = self.model.decode(latent)
        l1 = charbonnier(reconstruction, pixels)
        kl = kl_divergence(posterior.mean.float(), posterior.log_variance.float())
        (l1 + self.config.weight_kl * kl).backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.ema.update(self.model, step)
        mse = (reconstruction.detach().float() - pixels).square().mean().item()
        return {
            "loss/l1": l1.item(),
            "loss/kl": kl.item(),
            "gradient/norm": norm.item(),
            "quality/psnr": -10.0 * math.log10(max(mse / 4.0, 1e-10)),
        }

    def state_dict(self) -> dict[str, Any]:
        """Weights, their average and the optimiser."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        self.model.load_state_dict(state["model"])
        self.ema.model.load_state_dict(state["ema"])
        self.optimiser.load_state_dict(state["optimiser"])

    def export(self, folder: Path) -> None:
        """Write the averaged weights as a model directory without a generator."""
        from seedvr2.checkpoint import save_model

        save_model(folder, autoencoder=self.ema.model, stage=self.name)


@torch.no_grad()
def normalise_latent(model: Autoencoder, means: Tensor) -> None:
    """Rescale each latent channel to unit variance after scaling, without changing a reconstruction.

    The factor moves into the encoder's last and the decoder's first convolution, so that
    `scaling_factor` means the same for every model.

    Args:
        model: Changed in place.
        means: Posterior means of representative clips, (B, 16, T', h, w).
    """
    deviation = rearrange(means.float(), "b c t h w -> c (b t h w)").std(dim=1)
    factor = 1.0 / (deviation * model.config.scaling_factor)  # (16,)
    out, first = model.encoder.conv_out, model.decoder.conv_in
    channels = model.config.latent_channels
    out.weight[:channels] *= factor[:, None, None, None, None]
    out.bias[:channels] *= factor
    out.bias[channels:] += 2.0 * factor.log()
    first.weight.div_(factor[None, :, None, None, None])
