"""Moving average of a model's weights."""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Ema(Generic[ModuleT]):
    """Exponential moving average; early on it forgets faster, so that the start leaves no trace.

    Args:
        model: The model to follow; it is copied.
        decay: Weight of the past, at most; at step n it is min(decay, (1 + n) / (10 + n)).
    """

    def __init__(self, model: ModuleT, decay: float) -> None:
        self.model: ModuleT = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: ModuleT, step: int) -> None:
        """Follow `model` after its update number `step`."""
        weight = 1.0 - min(self.decay, (1 + step) / (10 + step))
        averages: list[torch.Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(averages, [p.detach() for p in model.parameters()], weight)
