"""What a training stage is: it owns models, losses and optimisers; the loop owns everything else."""

from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import Field

from seedvr2.config import Config

BatchT = TypeVar("BatchT", contravariant=True)


class Stage(Protocol[BatchT]):
    """One kind of training."""

    name: str

    def step(self, batch: BatchT, step: int) -> dict[str, float]:
        """Do update number `step` (from 0) and return its metrics, named as paths."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        ...

    def export(self, folder: Path) -> None:
        """Write the trained model as a model directory."""
        ...


class OptimiserConfig(Config):
    """AdamW with warm-up, a plateau and a linear decay to zero."""

    lr: float = Field(1e-3, gt=0)
    """Learning rate of the plateau."""
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.99)
    warmup: int = Field(200, ge=0)
    """Steps from zero to `lr`."""
    decay: float = Field(0.3, ge=0, le=1)
    """Last part of the run in which the rate falls to zero."""
    clip_norm: float = Field(1.0, gt=0)
    """Largest norm of the gradient of all parameters together."""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """Decay of the moving average of the weights, which is what is exported."""

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of one step."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        fall = (steps - step) / max(1.0, self.decay * steps)
        return self.lr * min(rise, fall, 1.0)
