import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seedvr2.checkpoint import load_autoencoder, load_training_state
from seedvr2.config import AutoencoderConfig
from seedvr2.errors import CheckpointError, TrainingDiverged
from seedvr2.training.autoencoder import AutoencoderStage, AutoencoderStageConfig
from seedvr2.training.loop import COMPLETE, resume, train
from seedvr2.training.stage import OptimiserConfig

TINY = AutoencoderConfig(channels=(4, 4, 8, 8), encoder_resnets=1, decoder_resnets=1, norm_groups=2)


class LineStage:
    """The smallest real stage: a linear layer learns a batch."""

    name = "line"

    def __init__(self, width: int = 2) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(width, 1)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.done: list[int] = []

    def step(self, batch: Tensor, step: int) -> dict[str, float]:
        self.done.append(step)
        loss = (self.model(batch) - batch.sum(dim=1, keepdim=True)).square().mean()
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        return {"loss/line": loss.item(), "size/batch": len(batch)}

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])

    def export(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        torch.save(self.model.state_dict(), folder / "line.pt")


def batches(step: int) -> Tensor:
    return torch.randn(4, 2, generator=torch.Generator().manual_seed(step))


class Interrupted(Exception):
    """Stands for whatever ends a run."""


def interrupted_at(last: int, source: Callable[[int], Tensor] = batches) -> Callable[[int], Tensor]:
    def until(step: int) -> Tensor:
        if step == last:
            raise Interrupted
        return source(step)

    return until


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(stage: LineStage) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in stage.model.parameters()])


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.fixture
def straight(tmp_path: Path) -> LineStage:
    stage = LineStage()
    train(stage, batches, 10, tmp_path / "straight", checkpoint_every=100)
    return stage


@pytest.mark.parametrize("stops", [(4,), (5,), (3, 7), (1,), (9,)])
def test_an_interrupted_run_ends_with_the_same_weights(
    tmp_path: Path, straight: LineStage, stops: tuple[int, ...]
) -> None:
    for last in stops:
        with pytest.raises(Interrupted):
            train(LineStage(), interrupted_at(last), 10, tmp_path / "run", checkpoint_every=2)
    stage = LineStage()
    train(stage, batches, 10, tmp_path / "run", checkpoint_every=2)
    assert stage.done == list(range(stops[-1] // 2 * 2, 10))
    assert torch.equal(weights(stage), weights(straight))


def test_a_real_stage_resumes_bit_for_bit(tmp_path: Path) -> None:
    def pixels(step: int) -> Tensor:
        return torch.rand(2, 3, 5, 8, 8, generator=torch.Generator().manual_seed(step)) * 2 - 1

    def stage() -> AutoencoderStage:
        config = AutoencoderStageConfig(steps=6, optimiser=OptimiserConfig(warmup=2))
        return AutoencoderStage(TINY, config, seed=1, device=torch.device("cpu"))

    train(stage(), pixels, 6, tmp_path / "straight", checkpoint_every=100)
    with pytest.raises(Interrupted):
        train(stage(), interrupted_at(4, pixels), 6, tmp_path / "run", checkpoint_every=3)
    train(stage(), pixels, 6, tmp_path / "run", checkpoint_every=3)

    one = load_training_state(tmp_path / "straight" / "checkpoints" / "step-00000006")
    other = load_training_state(tmp_path / "run" / "checkpoints" / "step-00000006")
    for part in ("model", "ema"):
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part])
    first, second = (load_autoencoder(tmp_path / run / "model") for run in ("straight", "run"))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_finished_run_does_nothing_but_export(tmp_path: Path) -> None:
    train(LineStage(), batches, 4, tmp_path, checkpoint_every=3)
    before = rows(tmp_path)
    shutil.rmtree(tmp_path / "model")
    stage = LineStage()
    train(stage, interrupted_at(0), 4, tmp_path, checkpoint_every=3)
    assert stage.done == []
    assert (tmp_path / "model" / "line.pt").is_file()
    assert rows(tmp_path) == before


def test_more_steps_continue_a_finished_run(tmp_path: Path, straight: LineStage) -> None:
    train(LineStage(), batches, 6, tmp_path / "run", checkpoint_every=100)
    stage = LineStage()
    train(stage, batches, 10, tmp_path / "run", checkpoint_every=100)
    assert stage.done == [6, 7, 8, 9]
    assert torch.equal(weights(stage), weights(straight))


def test_a_checkpoint_that_was_cut_off_is_ignored(tmp_path: Path, straight: LineStage) -> None:
    with pytest.raises(Interrupted):
        train(LineStage(), interrupted_at(7), 10, tmp_path / "run", checkpoint_every=3)
    folder = tmp_path / "run" / "checkpoints"
    (folder / "step-00000006" / COMPLETE).unlink()
    (folder / "step-00000006" / "state.json").write_text("{")
    stage = LineStage()
    assert resume(stage, folder) == 3
    train(stage, batches, 10, tmp_path / "run", checkpoint_every=3)
    assert torch.equal(weights(stage), weights(straight))


def test_the_two_latest_complete_checkpoints_are_kept(tmp_path: Path) -> None:
    train(LineStage(), batches, 10, tmp_path, checkpoint_every=3)
    assert checkpoints(tmp_path) == ["step-00000009", "step-00000010"]


def test_checkpoints_that_were_cut_off_do_not_push_out_complete_ones(tmp_path: Path) -> None:
    for step in (50, 60):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    train(LineStage(), batches, 4, tmp_path, checkpoint_every=2)
    assert checkpoints(tmp_path) == ["step-00000002", "step-00000004"]


def test_without_a_checkpoint_a_run_starts_at_the_beginning(tmp_path: Path) -> None:
    assert resume(LineStage(), tmp_path / "absent") == 0


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    train(LineStage(), batches, 2, tmp_path, checkpoint_every=2)
    (tmp_path / "checkpoints" / "step-00000002" / "state.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="step-00000002"):
        train(LineStage(), batches, 4, tmp_path, checkpoint_every=2)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    train(LineStage(), batches, 2, tmp_path, checkpoint_every=2)
    with pytest.raises(CheckpointError, match=r"step-00000002.*does not fit stage 'line'"):
        train(LineStage(width=3), batches, 4, tmp_path, checkpoint_every=2)


def test_metrics_continue_row_by_row(tmp_path: Path) -> None:
    train(LineStage(), batches, 4, tmp_path, checkpoint_every=2)
    train(LineStage(), batches, 7, tmp_path, checkpoint_every=2)
    assert [row["step"] for row in rows(tmp_path)] == list(range(7))
    assert all(
        {"loss/line", "size/batch", "time/data_s", "time/step_s"} < row.keys() for row in rows(tmp_path)
    )


def test_steps_that_are_repeated_after_an_interruption_have_the_same_loss(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(LineStage(), interrupted_at(5), 6, tmp_path, checkpoint_every=2)
    train(LineStage(), batches, 6, tmp_path, checkpoint_every=2)
    losses: dict[float, set[float]] = {}
    for row in rows(tmp_path):
        losses.setdefault(row["step"], set()).add(row["loss/line"])
    assert sorted(losses) == list(range(6))
    assert all(len(values) == 1 for values in losses.values())


def test_every_step_is_told(tmp_path: Path) -> None:
    told: list[int] = []
    train(LineStage(), batches, 3, tmp_path, 2, on_step=lambda step, metrics: told.append(step))
    assert told == [0, 1, 2]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_divergence_names_stage_step_and_term_and_keeps_the_checkpoint(tmp_path: Path, value: float) -> None:
    def poisoned(step: int) -> Tensor:
        return batches(step) * (value if step == 5 else 1.0)

    with pytest.raises(TrainingDiverged, match=r"line: loss/line is .* at step 5.*learning rate") as caught:
        train(LineStage(), poisoned, 10, tmp_path, checkpoint_every=2)
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert (error.stage, error.step, error.term) == ("line", 5, "loss/line")
        assert str(error) == str(caught.value)
    assert checkpoints(tmp_path) == ["step-00000002", "step-00000004"]
    assert not (tmp_path / "model").exists()
    assert [row["step"] for row in rows(tmp_path)] == [0, 1, 2, 3, 4]


def test_the_learning_rate_rises_holds_and_falls() -> None:
    settings = OptimiserConfig(lr=2.0, warmup=10, decay=0.25)
    rates = [settings.lr_at(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert set(rates[10:75]) == {2.0}
    assert rates[75:] == pytest.approx([2.0 * (100 - step) / 25 for step in range(75, 100)])
    assert min(rates) > 0


def test_the_learning_rate_may_stay_the_same() -> None:
    settings = OptimiserConfig(lr=0.5, warmup=0, decay=0.0)
    assert {settings.lr_at(step, 20) for step in range(20)} == {0.5}


def test_steps_that_are_done_again_are_logged_once(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(LineStage(), interrupted_at(5), 8, tmp_path, checkpoint_every=3)
    assert len(rows(tmp_path)) == 5
    train(LineStage(), batches, 8, tmp_path, checkpoint_every=3)
    assert [row["step"] for row in rows(tmp_path)] == list(range(8))
