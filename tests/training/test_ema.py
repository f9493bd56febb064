import pytest
import torch
from torch import nn

from seedvr2.training.ema import Ema


def constant(value: float) -> nn.Linear:
    model = nn.Linear(2, 2)
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    return model


def value_of(ema: Ema[nn.Linear]) -> float:
    values = torch.cat([parameter.flatten() for parameter in ema.model.parameters()])
    assert values.min() == values.max()
    return values[0].item()


def test_the_average_follows_its_formula() -> None:
    ema, expected = Ema(constant(1.0), decay=0.9), 1.0
    for step in range(200):
        target = float(step % 7)
        ema.update(constant(target), step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * target
        assert value_of(ema) == pytest.approx(expected, abs=1e-5)


def test_the_start_is_soon_forgotten() -> None:
    ema = Ema(constant(1000.0), decay=0.9999)
    for step in range(30):
        ema.update(constant(0.0), step)
    assert value_of(ema) < 1e-3


def test_a_decay_of_zero_is_the_model_itself() -> None:
    ema = Ema(constant(1.0), decay=0.0)
    ema.update(constant(3.0), step=0)
    assert value_of(ema) == 3.0


def test_the_model_that_is_followed_stays_as_it_is() -> None:
    model = constant(1.0)
    ema = Ema(model, decay=0.5)
    ema.update(constant(2.0), step=100)
    assert all((parameter == 1.0).all() for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
