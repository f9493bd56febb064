import math

import pytest
import torch
from torch.distributions import Normal
from torch.distributions import kl_divergence as reference_kl

from seedvr2.losses import charbonnier, kl_divergence, velocity_loss


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_divergence_of_a_normal_distribution_matches_the_definition() -> None:
    mean, log_variance = draws(2, 3, 4), draws(2, 3, 4, seed=1)
    posterior = Normal(mean, (0.5 * log_variance).exp())
    expected = reference_kl(posterior, Normal(torch.tensor(0.0), torch.tensor(1.0))).mean()
    torch.testing.assert_close(kl_divergence(mean, log_variance), expected)


def test_the_standard_normal_has_no_divergence_from_itself() -> None:
    assert kl_divergence(torch.zeros(5), torch.zeros(5)) == 0


def test_velocity_loss_is_the_mean_squared_error() -> None:
    predicted, target = draws(4, 5), draws(4, 5, seed=1)
    torch.testing.assert_close(
        velocity_loss(predicted, target), torch.nn.functional.mse_loss(predicted, target)
    )


def test_a_weight_of_the_velocity_loss_counts_channels() -> None:
    predicted, target = draws(2, 3, 4), draws(2, 3, 4, seed=1)
    weight = torch.tensor([0.0, 2.0])[:, None, None]
    torch.testing.assert_close(
        velocity_loss(predicted, target, weight), velocity_loss(predicted[1], target[1])
    )


def test_charbonnier_is_the_absolute_error_far_from_zero_and_smooth_at_it() -> None:
    far = torch.tensor([3.0, -5.0])
    torch.testing.assert_close(charbonnier(far, torch.zeros(2)), torch.tensor(4.0), rtol=0, atol=1e-6)
    same = torch.ones(3, requires_grad=True)
    loss = charbonnier(same, torch.ones(3), epsilon=0.01)
    loss.backward()
    assert loss.item() == pytest.approx(0.01)
    assert same.grad is not None
    assert torch.equal(same.grad, torch.zeros(3))


@pytest.mark.parametrize("loss", [velocity_loss, charbonnier])
def test_half_precision_is_compared_in_float32(loss) -> None:
    predicted, target = draws(100).bfloat16(), draws(100, seed=1).bfloat16()
    computed = loss(predicted, target)
    assert computed.dtype == torch.float32
    assert math.isclose(computed.item(), loss(predicted.double(), target.double()).item(), rel_tol=1e-5)
