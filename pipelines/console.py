"""What the command line shows: progress, results and models.

On a terminal there are bars and tables; into a pipe or a log goes plain text, and no bar at all.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError, safe_open

from seedvr2.checkpoint import ModelRecord, file_digest, read_record
from seedvr2.restore import Restored

_SPEED_WINDOW = 300
"""Seconds over which the speed is averaged: segments come in bursts."""


class _FramesPerSecond(ProgressColumn):
    """Frames per second of a task."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.2f} fps" if speed else "")


@contextmanager
def frames_progress(console: Console) -> Iterator[Callable[[float, int], None] | None]:
    """A progress bar with frames done, frames per second and time left.

    Args:
        console: Where it is drawn; nothing is if that is no terminal.

    Yields:
        A function to call with the work done, in frames, and the number of frames; None without a terminal.
    """
    if not console.is_terminal:
        yield None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[frames]}"),
        _FramesPerSecond(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, speed_estimate_period=_SPEED_WINDOW) as progress:
        task = progress.add_task("reading", total=None, frames="")

        def show(done: float, total: int) -> None:
            frames = f"{int(done + 1e-6)}/{total} frames"
            progress.update(task, description="restoring", completed=done, total=total, frames=frames)

        yield show


@contextmanager
def steps_progress(
    console: Console, steps: int, every: int = 50
) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """A progress bar of a training run with its latest metrics; without a terminal, a line now and then.

    Args:
        console: Where it is drawn.
        steps: Updates in all.
        every: Updates that the shown metrics are averaged over.

    Yields:
        A function to call after each update with its number and metrics.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    recent: list[dict[str, float]] = []
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=steps)

        def on_step(step: int, metrics: dict[str, float]) -> None:
            recent.append(metrics)
            if (step + 1) % every == 0 or step + 1 == steps:
                mean = {name: sum(row[name] for row in recent) / len(recent) for name in metrics}
                line = "  ".join(f"{name} {value:.4g}" for name, value in mean.items())
                console.print(f"{step + 1}/{steps}  {line}", highlight=False)
                recent.clear()
            bar.update(task, completed=step + 1)

        yield on_step


def restored_lines(restored: Restored, source: str) -> list[str]:
    """What a restoration did: its result, the time that it took, and what is not as usual."""
    total = sum(restored.seconds.values())
    rooms = ", ".join(f"{room} {seconds:.1f} s" for room, seconds in restored.seconds.items())
    height, width = restored.size
    lines = [
        f"{restored.output}: {width}x{height}, {count(restored.frames, 'frame')} in {total:.1f} s "
        f"({restored.frames / total:.2f} fps; {rooms})"
    ]
    if restored.resumed:
        lines.append(f"{count(restored.resumed, 'segment')} kept from an earlier run")
    if restored.lost:
        lines.append(f"{source}: {count(restored.lost, 'frame')} could not be decoded and are missing")
    return lines


def count(number: int, noun: str) -> str:
    """A number with its noun, in the plural unless it is one."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@dataclass(frozen=True)
class PartFacts:
    """One file of a model directory as it is found on the disk."""

    part: str
    parameters: int
    bytes: int
    dtype: str
    state: str
    """`ok`, `missing`, or `damaged` if it is not the file that was saved."""


def model_facts(folder: Path) -> tuple[ModelRecord, list[PartFacts]]:
    """The record of a model directory, and what its files are; reads every byte, but loads nothing.

    Raises:
        CheckpointError: Not a model directory.
    """
    record = read_record(folder)
    return record, [_part_facts(folder / name, record) for name in sorted(record.files)]


def _part_facts(path: Path, record: ModelRecord) -> PartFacts:
    if not path.is_file():
        return PartFacts(path.stem, 0, 0, "", "missing")
    size = path.stat().st_size
    try:
        with safe_open(path, framework="pt") as file:
            slices = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118 it is no dictionary
            parameters = sum(_product(part.get_shape()) for part in slices)
            dtype = " ".join(sorted({part.get_dtype() for part in slices}))
    except (SafetensorError, OSError):
        return PartFacts(path.stem, 0, size, "", "damaged")
    state = "ok" if file_digest(path) == record.files[path.name].sha256 else "damaged"
    return PartFacts(path.stem, parameters, size, dtype, state)


def _product(sides: Sequence[int]) -> int:
    product = 1
    for side in sides:
        product *= side
    return product


def model_json(record: ModelRecord, parts: Sequence[PartFacts]) -> str:
    """Everything about a model for machines."""
    tree = {**record.model_dump(mode="json"), "digest": record.digest, "parts": [asdict(p) for p in parts]}
    return json.dumps(tree, indent=2)


def print_model(console: Console, folder: Path, record: ModelRecord, parts: Sequence[PartFacts]) -> None:
    """Everything about a model for people: a table of its files, and its configuration."""
    table = Table("part", "parameters", "bytes", "dtype", "digest", "sha256")
    rows = [
        (
            p.part,
            f"{p.parameters:,}",
            f"{p.bytes:,}",
            p.dtype,
            p.state,
            record.files[f"{p.part}.safetensors"].sha256,
        )
        for p in parts
    ]
    title = f"{folder}: model {record.name} of stage {record.stage}, digest {record.digest}"
    console.print(title, highlight=False, markup=False, soft_wrap=True)
    if console.is_terminal:
        for row in rows:
            table.add_row(*row[:-1], row[-1][:12])
        console.print(table)
    else:
        for row in rows:
            console.print("  ".join(row), highlight=False, markup=False, soft_wrap=True)
    for part in ("generator", "autoencoder"):
        config = getattr(record, part)
        if config is not None:
            values = " ".join(f"{key}={value}" for key, value in config.model_dump(mode="json").items())
            console.print(f"{part}: {values}", highlight=False, markup=False, soft_wrap=True)
