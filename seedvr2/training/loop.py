"""The one training loop: time, data, checkpoints and metrics. Losses belong to the stage.

A batch is a function of the step number, so there is no loader position to save; a rerun of the same
command continues after the last complete checkpoint and ends with the same weights, bit for bit on a CPU.
"""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from seedvr2.checkpoint import load_training_state, save_training_state
from seedvr2.errors import CheckpointError, TrainingDiverged
from seedvr2.storage import write_atomic
from seedvr2.training.stage import BatchT, Stage

COMPLETE = "COMPLETE"
"""A checkpoint without this file was cut off while being written."""


def train(
    stage: Stage[BatchT],
    batches: Callable[[int], BatchT],
    steps: int,
    folder: Path,
    checkpoint_every: int,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> None:
    """Train a stage up to `steps` updates and export its model to `folder`/model.

    Args:
        stage: What is trained.
        batches: Step number to batch.
        steps: Updates in all.
        folder: The run: metrics.jsonl (row n is step n), checkpoints/step-*/, model/. Its last checkpoint is resumed.
        checkpoint_every: Updates between checkpoints; the two latest are kept.
        on_step: Called after each update with its number and metrics.

    Raises:
        TrainingDiverged: A metric is not finite; the last checkpoint stays.
        CheckpointError: A checkpoint does not fit the stage.
    """
    first = resume(stage, folder / "checkpoints")
    folder.mkdir(parents=True, exist_ok=True)
    _forget(folder / "metrics.jsonl", first)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as log:
        for step in range(first, steps):
            began = time.perf_counter()
            batch = batches(step)
            loaded = time.perf_counter()
            metrics = stage.step(batch, step)
            for term, value in metrics.items():
                if not abs(value) < float("inf"):
                    raise TrainingDiverged(
                        f"{stage.name}: {term} is {value} at step {step}; lower the learning rate and rerun, "
                        f"it continues from the last checkpoint",
                        stage=stage.name,
                        step=step,
                        term=term,
                    )
            metrics |= {"time/data_s": loaded - began, "time/step_s": time.perf_counter() - loaded}
            log.write(json.dumps({"step": step, **metrics}) + "\n")
            log.flush()
            if (step + 1) % checkpoint_every == 0 or step + 1 == steps:
                _checkpoint(stage, folder / "checkpoints", step + 1)
            if on_step:
                on_step(step, metrics)
    stage.export(folder / "model")


def resume(stage: Stage[BatchT], checkpoints: Path) -> int:
    """Load the latest complete checkpoint, if any, and return the number of updates done.

    Raises:
        CheckpointError: It is damaged or does not fit the stage.
    """
    complete = sorted(path.parent for path in checkpoints.glob(f"step-*/{COMPLETE}"))
    if not complete:
        return 0
    latest = complete[-1]
    state = load_training_state(latest)
    try:
        stage.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{latest}: does not fit stage {stage.name!r} with this configuration; train in another folder"
        ) from error
    return int(latest.name.removeprefix("step-"))


def _forget(log: Path, first: int) -> None:
    """Drop the metrics of steps that are done again."""
    if log.exists():
        rows = log.read_text(encoding="utf-8").splitlines(keepends=True)[:first]
        with write_atomic(log) as temporary:
            temporary.write_text("".join(rows), encoding="utf-8")


def _checkpoint(stage: Stage[BatchT], checkpoints: Path, step: int) -> None:
    folder = checkpoints / f"step-{step:08d}"
    save_training_state(folder, stage.state_dict())
    (folder / COMPLETE).touch()
    latest = sorted(path.parent for path in checkpoints.glob(f"step-*/{COMPLETE}"))[-2:]
    for old in set(checkpoints.glob("step-*")) - set(latest):
        shutil.rmtree(old)
