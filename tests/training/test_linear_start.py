import pytest
import torch

from seedvr2.config import AutoencoderConfig, GeneratorConfig, load_preset
from seedvr2.errors import StageError
from seedvr2.flow import FULL_NOISE, build_condition, latent_from_velocity
from seedvr2.models.autoencoder import Autoencoder
from seedvr2.models.generator import Generator
from seedvr2.training.linear_start import start_identity, start_linear
from seedvr2.video.resize import frames_to_pixels
from tests.conftest import (
    TINY_AUTOENCODER,
    TINY_GENERATOR,
    make_tiny_autoencoder,
    make_tiny_generator,
    natural_crops,
)
from tests.video.synthetic import natural_clip


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean() / 4))


def reconstruct(model: Autoencoder, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.decode(model.to_latent(model.encode(pixels).mode()))


def start(config: AutoencoderConfig) -> Autoencoder:
    torch.manual_seed(0)
    model = Autoencoder(config).eval()
    start_linear(model, natural_crops(16, 64, seed=1))
    return model


@pytest.mark.parametrize("config", [TINY_AUTOENCODER, load_preset("nano").autoencoder], ids=["tiny", "nano"])
def test_an_untrained_autoencoder_reconstructs_pictures_it_never_saw(config: AutoencoderConfig) -> None:
    pixels = natural_crops(8, 64, seed=9).unsqueeze(2)
    assert psnr(reconstruct(start(config), pixels), pixels) > 20


def test_an_untrained_autoencoder_reconstructs_a_still_video() -> None:
    pixels = frames_to_pixels(natural_clip(1, 48, 64, seed=4)).expand(-1, -1, 9, -1, -1)
    assert psnr(reconstruct(make_tiny_autoencoder(), pixels), pixels) > 20


def test_reconstruction_does_not_depend_on_the_random_start() -> None:
    """Nothing random is left on the way of the pixels."""
    pixels = natural_crops(2, 32, seed=9).unsqueeze(2)
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = Autoencoder(TINY_AUTOENCODER).eval()
        start_linear(model, natural_crops(16, 64, seed=1))
        results.append(reconstruct(model, pixels))
    assert psnr(*results) > 45


def test_latents_of_a_linear_start_have_about_unit_size() -> None:
    model = make_tiny_autoencoder()
    with torch.no_grad():
        latent = model.to_latent(model.encode(natural_crops(16, 64, seed=1).unsqueeze(2)).mode())
    size = latent.square().mean(dim=(0, 2, 3, 4)).sqrt()
    assert size.min() > 0.5
    assert size.max() < 1.5


@pytest.mark.parametrize(
    ("channels", "groups"),
    [((16, 32, 64, 128), 4), ((8, 32, 64, 64), 2), ((16, 32, 32, 32), 4), ((16, 32, 64, 64), 8)],
)
def test_an_autoencoder_too_narrow_for_the_construction_is_refused(
    channels: tuple[int, int, int, int], groups: int
) -> None:
    model = Autoencoder(AutoencoderConfig(channels=channels, norm_groups=groups))
    with pytest.raises(StageError, match="linear start needs"):
        start_linear(model, natural_crops(2, 16, seed=1))


@pytest.mark.parametrize("config", [TINY_GENERATOR, load_preset("nano").generator], ids=["tiny", "nano"])
@pytest.mark.parametrize("size", [(1, 4, 4), (3, 6, 10)])
def test_an_untrained_generator_gives_its_source_back(
    config: GeneratorConfig, size: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    generator = Generator(config).eval()
    start_identity(generator)
    latent, noise = torch.randn(2, 16, *size).unbind()
    with torch.no_grad():
        (velocity,) = generator(
            [torch.cat([noise, build_condition(latent)])],
            torch.tensor([FULL_NOISE]),
            [torch.randn(4, config.text_channels)],
        )
    torch.testing.assert_close(latent_from_velocity(velocity, noise, FULL_NOISE), latent, rtol=0, atol=0.2)


def test_the_identity_holds_at_every_timestep_and_prompt() -> None:
    generator = make_tiny_generator()
    draws = torch.Generator().manual_seed(0)
    video = torch.randn(33, 1, 4, 4, generator=draws)
    with torch.no_grad():
        results = [
            generator([video], torch.tensor([timestep]), [torch.randn(3, 8, generator=draws)])[0]
            for timestep in (0.0, 500.0, 1000.0)
        ]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_every_weight_of_an_identity_start_can_learn() -> None:
    """Branches start at zero, but no pair of factors does: a few steps reach every weight."""
    generator = make_tiny_generator().train()
    optimiser = torch.optim.Adam(generator.parameters(), lr=1e-3)
    before = {name: parameter.detach().clone() for name, parameter in generator.named_parameters()}
    draws = torch.Generator().manual_seed(0)
    for _ in range(4):
        video = torch.randn(33, 2, 4, 4, generator=draws)
        (velocity,) = generator([video], torch.tensor([FULL_NOISE]), [torch.randn(3, 8, generator=draws)])
        (velocity - torch.randn(velocity.shape, generator=draws)).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    still = [name for name, parameter in generator.named_parameters() if torch.equal(parameter, before[name])]
    assert still == []


def test_a_generator_too_narrow_for_the_construction_is_refused() -> None:
    narrow = TINY_GENERATOR.model_copy(update={"width": 128, "heads": 2, "head_dim": 64})
    with pytest.raises(StageError, match="width above 128"):
        start_identity(Generator(narrow))


def test_a_generator_without_output_norm_is_refused() -> None:
    with pytest.raises(StageError, match="output norm"):
        start_identity(Generator(TINY_GENERATOR.model_copy(update={"output_norm": False})))
