from pathlib import Path
from typing import Any

import pytest
import torch

from seedvr2.checkpoint import load_model
from seedvr2.training.loop import train
from seedvr2.training.regression import LatentPair, RegressionStage, RegressionStageConfig, pixel_energy
from seedvr2.training.stage import OptimiserConfig
from tests.conftest import TINY_GENERATOR, make_tiny_autoencoder


def make_pair(seed: int = 0, frames: int = 1, size: int = 4) -> LatentPair:
    """A source that lacks half of the clean latent."""
    draws = torch.Generator().manual_seed(seed)
    hq = torch.randn(16, frames, size, size, generator=draws)
    pixels = torch.randn(3, 4 * frames - 3, 8 * size, 8 * size, generator=draws).clamp(-1, 1)
    return LatentPair(lq=0.5 * hq, hq=hq, pixels=pixels)


def make_stage(steps: int = 40, **knobs: Any) -> RegressionStage:
    optimiser = OptimiserConfig(lr=2e-3, warmup=3)
    config = RegressionStageConfig(steps=steps, **{"autocast": False, "optimiser": optimiser, **knobs})
    sample = make_pair(seed=8).hq[None]
    return RegressionStage(
        TINY_GENERATOR, make_tiny_autoencoder(), config, sample, seed=0, device=torch.device("cpu")
    )


@pytest.mark.parametrize("knobs", [{}, {"autocast": True}, {"weight_pixels": 1.0}])
def test_steps_lower_the_loss_on_a_fixed_pair(knobs: dict[str, Any]) -> None:
    stage, batch = make_stage(**knobs), [make_pair()]
    metrics = [stage.step(batch, step) for step in range(12)]
    assert metrics[-1]["loss/velocity"] < 0.8 * metrics[0]["loss/velocity"]
    assert ("loss/pixels" in metrics[0]) == ("weight_pixels" in knobs)


def test_training_starts_where_the_source_is_given_back() -> None:
    metrics = make_stage().step([make_pair()], 0)
    assert metrics["loss/velocity"] == pytest.approx(metrics["loss/velocity_of_source"], rel=0.1)


def test_pairs_of_different_sizes_share_a_batch() -> None:
    batch = [make_pair(1), make_pair(2, frames=3, size=6)]
    together = make_stage().step(batch, 0)["loss/velocity_of_source"]
    alone = [make_stage().step([pair], 0)["loss/velocity_of_source"] for pair in batch]
    assert together == pytest.approx(sum(alone) / 2, rel=1e-5)


def test_the_autoencoder_stays_as_it_is() -> None:
    stage = make_stage(weight_pixels=1.0)
    before = {name: tensor.clone() for name, tensor in stage.autoencoder.state_dict().items()}
    for step in range(2):
        stage.step([make_pair()], step)
    assert all(torch.equal(tensor, before[name]) for name, tensor in stage.autoencoder.state_dict().items())
    assert all(parameter.grad is None for parameter in stage.autoencoder.parameters())


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    def batches(step: int) -> list[LatentPair]:
        return [make_pair(step), make_pair(step + 100, frames=2)]

    def until_three(step: int) -> list[LatentPair]:
        if step == 3:
            raise InterruptedError
        return batches(step)

    straight, first, resumed = make_stage(5), make_stage(5), make_stage(5)
    train(straight, batches, 5, tmp_path / "straight", checkpoint_every=10)
    with pytest.raises(InterruptedError):
        train(first, until_three, 5, tmp_path / "run", checkpoint_every=2)
    train(resumed, batches, 5, tmp_path / "run", checkpoint_every=2)
    for a, b in ((straight.model, resumed.model), (straight.ema.model, resumed.ema.model)):
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_the_export_is_a_complete_model_in_half_precision(tmp_path: Path) -> None:
    stage = make_stage()
    stage.step([make_pair()], 0)
    stage.export(tmp_path)
    model = load_model(tmp_path)
    assert model.record.stage == "regression"
    torch.testing.assert_close(model.text.positive, stage.text.positive, rtol=0, atol=2e-3)
    exported = model.generator.state_dict()
    for name, tensor in stage.ema.model.state_dict().items():
        expected = tensor if "frequencies" in name else tensor.half().float()
        assert torch.equal(exported[name], expected), name


def test_the_start_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = make_stage()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    second = make_stage()
    assert torch.equal(first.text.positive, second.text.positive)
    assert all(
        torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True)
    )


def test_energy_tells_what_a_channel_means_in_pixels() -> None:
    autoencoder, latent = make_tiny_autoencoder(), torch.cat([make_pair(seed).hq[None] for seed in range(3)])
    energy = pixel_energy(autoencoder, latent)
    assert energy.shape == (16, 1, 1, 1)
    assert energy.mean().item() == pytest.approx(1.0, abs=1e-5)
    with torch.no_grad():  # a channel that the decoder does not read means nothing
        autoencoder.decoder.conv_in.weight[:, 3] = 0
    assert pixel_energy(autoencoder, latent)[3].item() == 0
