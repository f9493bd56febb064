"""A small model that really restores, and the command line as a user meets it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pipelines.cli import main
from seedvr2.checkpoint import TextEmbedding, save_model
from seedvr2.config import AutoencoderConfig, GeneratorConfig
from seedvr2.models.autoencoder import Autoencoder
from seedvr2.models.generator import Generator
from seedvr2.training.linear_start import start_identity, start_linear
from seedvr2.video.resize import frames_to_pixels
from tests.video.clips import pictures


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A model directory that gives back what it gets: a block codec, and a generator that changes nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder = Autoencoder(
            AutoencoderConfig(channels=(16, 32, 64, 64), encoder_resnets=1, decoder_resnets=1, norm_groups=4)
        )
        crops = frames_to_pixels(np.stack(pictures(8)))[0].transpose(0, 1)
        start_linear(autoencoder, crops + 0.02 * torch.randn(crops.shape))
        generator = Generator(
            GeneratorConfig(width=132, heads=3, head_dim=44, layers=2, separate_layers=1, text_channels=8)
        )
        start_identity(generator)
        text = TextEmbedding(torch.randn(5, 8), torch.randn(4, 8))
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(folder, name="tiny", stage="test", generator=generator, autoencoder=autoencoder, text=text)
    return folder


@dataclass(frozen=True)
class Answer:
    """What a user sees of one command."""

    code: int
    out: str
    err: str


def run_command(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> Answer:
    """Run `seedvr2` with arguments; what C libraries write counts as well."""
    capfd.readouterr()
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    below = capfd.readouterr()
    return Answer(result.exit_code, result.stdout + below.out, result.stderr + below.err)


@pytest.fixture
def run(capfd) -> Callable[..., Answer]:
    """`run_command` for the test."""
    return partial(run_command, capfd)


def assert_one_line(answer: Answer, *parts: str | Path, code: int = 1) -> None:
    """The command failed with one line on stderr that holds all `parts`, and said nothing else."""
    assert answer.code == code, answer
    assert answer.out == ""
    assert answer.err.startswith("seedvr2: error: "), answer.err
    assert answer.err.count("\n") == 1, answer.err
    for part in parts:
        assert str(part) in answer.err


def left_behind(folder: Path, known: Sequence[str]) -> list[str]:
    """Names in a folder beyond the known ones."""
    return sorted(path.name for path in folder.iterdir() if path.name not in known)
