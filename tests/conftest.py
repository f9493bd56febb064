"""What several test files need: the reference tensors, and a quiet, reproducible torch."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from seedvr2.checkpoint import Model, TextEmbedding, load_model, save_model
from seedvr2.config import AutoencoderConfig, GeneratorConfig
from seedvr2.models.autoencoder import Autoencoder
from seedvr2.models.generator import Generator
from seedvr2.training.linear_start import start_identity, start_linear
from seedvr2.video.resize import frames_to_pixels
from tests.video.synthetic import natural_clip

REPOSITORY = Path(__file__).resolve().parent.parent
TINY_AUTOENCODER = AutoencoderConfig(
    channels=(16, 32, 64, 64), encoder_resnets=1, decoder_resnets=1, norm_groups=4
)
TINY_GENERATOR = GeneratorConfig(
    width=132, heads=3, head_dim=44, layers=2, separate_layers=1, text_channels=8
)


def golden_folder() -> Path:
    return Path(os.environ.get("SEEDVR2_GOLDEN", REPOSITORY.parent / "shared" / "golden"))


def golden_cases(pattern: str) -> list[Any]:
    """Parameters for the golden files that match `pattern`; one skipped parameter if there are none."""
    files = sorted(golden_folder().glob(pattern))
    if files:
        return [pytest.param(path, id=str(path.relative_to(golden_folder()))) for path in files]
    reason = f"no {pattern} in {golden_folder()}; set SEEDVR2_GOLDEN to the folder of reference tensors"
    return [pytest.param(None, marks=pytest.mark.skip(reason=reason))]


def load_golden(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors of one golden file (floating ones as float32) and the JSON beside it."""
    tensors = {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}
    return tensors, json.loads(path.with_suffix(".json").read_text())


def max_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape, f"{tuple(a.shape)} != {tuple(b.shape)}"
    return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0


def natural_crops(count: int, size: int, seed: int) -> torch.Tensor:
    """Square pictures with the statistics of photographs, (count, 3, size, size) in [-1, 1]."""
    pictures = [frames_to_pixels(natural_clip(1, size, size, seed * 1000 + i))[:, :, 0] for i in range(count)]
    return torch.cat(pictures)


def make_tiny_autoencoder() -> Autoencoder:
    """An untrained autoencoder that codes blocks by principal components, and so reconstructs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        autoencoder = Autoencoder(TINY_AUTOENCODER).eval()
        start_linear(autoencoder, natural_crops(16, 64, seed=1))
    return autoencoder


def make_tiny_generator() -> Generator:
    """An untrained generator that gives its source back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = Generator(TINY_GENERATOR).eval()
        start_identity(generator)
    return generator


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory whose restoration is, nearly, bicubic enlargement. Not to be changed."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    draws = torch.Generator().manual_seed(2)
    prompts = torch.randn(2, 4, TINY_GENERATOR.text_channels, generator=draws).unbind()
    save_model(
        folder,
        name="tiny",
        stage="start",
        generator=make_tiny_generator(),
        autoencoder=make_tiny_autoencoder(),
        text=TextEmbedding(*prompts),
    )
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> Model:
    """The model of `tiny_folder`. Not to be changed."""
    return load_model(tiny_folder)


def released_generator_config(released: dict[str, Any]) -> GeneratorConfig:
    """Our configuration from the released one stored beside a reference checkpoint."""
    shares = "mm_layers" in released
    return GeneratorConfig(
        width=released["vid_dim"],
        heads=released["heads"],
        head_dim=released["head_dim"],
        layers=released["num_layers"],
        separate_layers=released["mm_layers"] if shares else released["num_layers"],
        text_channels=released["txt_in_dim"],
        mlp="swiglu" if released["mlp_type"] == "swiglu" else "gelu",
        rope="language" if released.get("rope_type") == "mmrope3d" else "pixel",
        output_norm="vid_out_norm" in released,
        video_only_last_layer=shares,
        num_windows=tuple(released["window"][0]),
        latent_channels=released["vid_out_channels"],
        norm_eps=released["norm_eps"],
    )
