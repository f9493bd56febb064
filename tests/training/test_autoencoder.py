import copy
from pathlib import Path

import pytest
import torch

from seedvr2.checkpoint import load_autoencoder
from seedvr2.config import AutoencoderConfig
from seedvr2.training.autoencoder import AutoencoderStage, AutoencoderStageConfig, normalise_latent
from seedvr2.training.stage import OptimiserConfig
from seedvr2.video.resize import frames_to_pixels
from tests.conftest import make_tiny_autoencoder, natural_crops
from tests.video.synthetic import natural_clip

TINY = AutoencoderConfig(channels=(8, 8, 16, 16), encoder_resnets=1, decoder_resnets=1, norm_groups=4)


def make_stage(autocast: bool = False, seed: int = 0, steps: int = 30) -> AutoencoderStage:
    optimiser = OptimiserConfig(lr=3e-3, warmup=3)
    config = AutoencoderStageConfig(steps=steps, autocast=autocast, optimiser=optimiser)
    return AutoencoderStage(TINY, config, seed=seed, device=torch.device("cpu"))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("frames", [1, 5])
def test_steps_lower_the_loss_on_a_fixed_batch(autocast: bool, frames: int) -> None:
    stage = make_stage(autocast)
    pixels = frames_to_pixels(natural_clip(frames, 16, 16, seed=2)).expand(2, -1, -1, -1, -1)
    metrics = [stage.step(pixels, step) for step in range(12)]
    assert metrics[-1]["loss/l1"] < 0.8 * metrics[0]["loss/l1"]
    assert metrics[-1]["quality/psnr"] > metrics[0]["quality/psnr"]


def test_metrics_tell_the_quality_of_the_reconstruction() -> None:
    stage, pixels = make_stage(), natural_crops(2, 16, seed=3).unsqueeze(2)
    with torch.no_grad():
        posterior = stage.model.encode(pixels)
        draw = posterior.sample(torch.Generator().manual_seed(0))
        error = (stage.model.decode(stage.model.to_latent(draw)) - pixels).square().mean()
    metrics = stage.step(pixels, 0)
    assert metrics["quality/psnr"] == pytest.approx(-10 * torch.log10(error / 4).item(), abs=1e-3)


def test_the_start_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = make_stage(seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    second, other = make_stage(seed=5), make_stage(seed=6)
    assert torch.equal(first.model.decoder.conv_in.weight, second.model.decoder.conv_in.weight)
    assert not torch.equal(first.model.decoder.conv_in.weight, other.model.decoder.conv_in.weight)


def test_a_step_depends_on_weights_batch_and_number_alone() -> None:
    pixels = natural_crops(2, 16, seed=3).unsqueeze(2)
    first, second = make_stage(), make_stage()
    torch.manual_seed(9)
    assert first.step(pixels, 4) == second.step(pixels, 4)


def test_every_step_draws_its_own_noise() -> None:
    pixels = natural_crops(2, 16, seed=3).unsqueeze(2)
    first, second, other = (
        stage.step(pixels, step)["loss/l1"]
        for stage, step in ((make_stage(), 4), (make_stage(), 5), (make_stage(seed=1), 4))
    )
    assert first != second
    assert first != other


def test_the_rate_follows_the_schedule() -> None:
    stage, pixels = make_stage(), natural_crops(1, 8, seed=3).unsqueeze(2)
    for step in (0, 10, 29):
        stage.step(pixels, step)
        expected = stage.config.optimiser.lr_at(step, 30)
        assert [group["lr"] for group in stage.optimiser.param_groups] == [expected]


def test_the_average_is_exported(tmp_path: Path) -> None:
    stage, pixels = make_stage(), natural_crops(1, 8, seed=3).unsqueeze(2)
    for step in range(3):
        stage.step(pixels, step)
    stage.export(tmp_path)
    exported = load_autoencoder(tmp_path).state_dict()
    assert all(torch.equal(tensor, exported[name]) for name, tensor in stage.ema.model.state_dict().items())
    assert not torch.equal(exported["decoder.conv_in.weight"], stage.model.decoder.conv_in.weight)


@torch.no_grad()
def test_normalising_changes_latents_to_unit_variance_and_no_reconstruction() -> None:
    plain = make_tiny_autoencoder()
    plain.encoder.conv_out.weight[:16] *= torch.linspace(0.3, 3.0, 16)[:, None, None, None, None]
    pixels = torch.cat([frames_to_pixels(natural_clip(5, 32, 32, seed=seed)) for seed in range(6)])
    posterior = plain.encode(pixels)
    normalised = copy.deepcopy(plain)
    normalise_latent(normalised, posterior.mean)

    changed = normalised.encode(pixels)
    latent = normalised.to_latent(changed.mean)
    torch.testing.assert_close(
        latent.transpose(0, 1).flatten(1).std(dim=1), torch.ones(16), rtol=0, atol=1e-3
    )
    for draw in (lambda p: p.mode(), lambda p: p.sample(torch.Generator().manual_seed(0))):
        before = plain.decode(plain.to_latent(draw(posterior)))
        after = normalised.decode(normalised.to_latent(draw(changed)))
        torch.testing.assert_close(after, before, rtol=0, atol=2e-4)
