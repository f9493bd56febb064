"""Frozen outputs of our own networks, so that some protection travels without the reference tensors.

Weights and inputs are sines of their index, the same on every machine. The snapshots were frozen when all reference
tests passed; after a wanted change of behaviour, freeze them again with

    python -m tests.test_snapshots
"""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from seedvr2.config import AutoencoderConfig, GeneratorConfig
from seedvr2.flow import keyed_latent_noise
from seedvr2.models.autoencoder import Autoencoder
from seedvr2.models.generator import Generator
from seedvr2.video.color import match_color

FOLDER = Path(__file__).with_name("snapshots")


def wave(*shape: int, step: float = 0.37, start: float = 0.0) -> Tensor:
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(start + step * index).float().reshape(shape)


def with_waves(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        for number, (name, parameter) in enumerate(network.named_parameters()):
            values = wave(*parameter.shape, step=1.7, start=number)
            if parameter.ndim > 1:
                parameter.copy_(values / math.sqrt(parameter[0].numel()))
            else:
                parameter.copy_(0.3 * values + (1.0 if "norm" in name and "weight" in name else 0.0))
    return network.eval()


def generator(config: GeneratorConfig) -> dict[str, Tensor]:
    network = with_waves(Generator(config))
    videos = [wave(33, 5, 8, 10), wave(33, 1, 48, 60, start=1.0)]
    texts = [wave(3, config.text_channels), wave(5, config.text_channels, start=2.0)]
    long, picture = network(videos, torch.tensor([1000.0, 250.0]), texts)
    return {"clip": long, "picture": picture[:, :, ::7, ::7].contiguous()}


def language_generator() -> dict[str, Tensor]:
    return generator(
        GeneratorConfig(width=48, heads=2, head_dim=24, layers=3, separate_layers=1, text_channels=8)
    )


def pixel_generator() -> dict[str, Tensor]:
    return generator(
        GeneratorConfig(
            width=48,
            heads=2,
            head_dim=24,
            layers=3,
            separate_layers=3,
            text_channels=8,
            mlp="gelu",
            rope="pixel",
            output_norm=False,
            video_only_last_layer=False,
        )
    )


def autoencoder() -> dict[str, Tensor]:
    network = with_waves(
        Autoencoder(
            AutoencoderConfig(channels=(8, 8, 16, 16), encoder_resnets=1, decoder_resnets=1, norm_groups=4)
        )
    )
    assert isinstance(network, Autoencoder)
    posterior = network.encode(wave(1, 3, 9, 24, 32, step=0.05))
    return {
        "mean": posterior.mean,
        "log_variance": posterior.log_variance,
        "pixels": network.decode(wave(1, 16, 3, 3, 4))[..., ::3, ::3].contiguous(),
    }


def noise() -> dict[str, Tensor]:
    return {"noise": keyed_latent_noise(666, "0" * 64, "noise", 8, (16, 2, 4, 4))}


def color() -> dict[str, Tensor]:
    content, style = wave(2, 3, 20, 28, step=0.11), wave(2, 3, 20, 28, step=0.13)
    return {method: match_color(content, style, method) for method in ("wavelet", "adain")}


SNAPSHOTS: dict[str, Callable[[], dict[str, Tensor]]] = {
    function.__name__: function
    for function in (language_generator, pixel_generator, autoencoder, noise, color)
}


@pytest.mark.parametrize("name", SNAPSHOTS)
@torch.no_grad()
def test_output_is_as_frozen(name):
    frozen = load_file(FOLDER / f"{name}.safetensors")
    now = SNAPSHOTS[name]()
    assert now.keys() == frozen.keys()
    for key, expected in frozen.items():
        torch.testing.assert_close(
            now[key], expected, rtol=1e-4, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}"
        )


if __name__ == "__main__":
    with torch.no_grad():
        for name, function in SNAPSHOTS.items():
            save_file(function(), FOLDER / f"{name}.safetensors")
