"""The `seedvr2` command: options, names, outputs, exit codes."""

import io
import json
import logging
import re
import signal
import subprocess
import sys
import time
from typing import get_args

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from rich.console import Console

from pipelines.cli import OneLineErrors, main
from pipelines.console import frames_progress
from pipelines.options import choose_device, choose_dtype, default_output, restore_options
from seedvr2.checkpoint import load_model
from seedvr2.restore import RestoreOptions, restore_video
from seedvr2.video.io import probe
from seedvr2.video.write import EncodeSettings
from tests.pipelines.conftest import assert_one_line
from tests.video.clips import make_clip, packets, picture, pictures

HEAVY = ("torch", "av", "ray", "numpy", "rich", "pydantic", "cv2", "PIL", "seedvr2.config")
HELP = """
import resource, sys
from pipelines.cli import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    assert ended.code == 0
seconds = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
print(seconds, *sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize("command", ["", *main.commands])
def test_help_comes_at_once_and_imports_nothing_heavy(command):
    ended = subprocess.run(
        [sys.executable, "-c", HELP, *command.split(), "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    seconds, *modules = ended.stderr.split()
    assert "Usage:" in ended.stdout
    assert not set(HEAVY) & set(modules)
    assert float(seconds) < 0.5


def choices(**changed):
    """Every option of `restore` as the command would hand it over."""
    command = main.commands["restore"]
    context = command.make_context("restore", ["a.mp4"])
    others = ("source", "output", "model", "overwrite", "device", "dtype")
    return {name: value for name, value in context.params.items() if name not in others} | changed


def test_defaults_and_choices_are_those_of_the_library():
    assert restore_options(choices()) == RestoreOptions()
    fields = RestoreOptions.model_fields | EncodeSettings.model_fields
    for option in main.commands["restore"].params:
        if isinstance(option.type, click.Choice) and option.name != "dtype":
            known = [value for value in get_args(fields[option.name].annotation) if value != "png"]
            assert list(option.type.choices) == known


@pytest.mark.parametrize("command", main.commands.values(), ids=lambda command: command.name)
def test_every_option_is_explained(command):
    assert command.help
    for option in command.params:
        assert isinstance(option, click.Argument) or option.help


@pytest.mark.parametrize(("text", "area"), [("1280x720", 921_600), ("640X480", 307_200), ("1000", 1000)])
def test_an_area_is_a_number_or_two_sides(text, area):
    context = main.commands["restore"].make_context("restore", ["a.mp4", "--area", text])
    assert context.params["area"] == area


@pytest.mark.parametrize(
    ("name", "device", "dtype"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "cuda", torch.bfloat16),
        ("float32", "cuda", torch.float32),
        ("float16", "cpu", torch.float16),
    ],
)
def test_automatic_dtype_is_bfloat16_on_cuda_alone(name, device, dtype):
    assert choose_dtype(name, torch.device(device)) == dtype


def test_automatic_device_is_one_that_is_there():
    torch.zeros(1, device=choose_device("auto"))
    assert choose_device("cpu") == torch.device("cpu")


def test_a_video_is_restored_with_its_sound_and_summed_up(tmp_path, tiny_model, run):
    source = make_clip(tmp_path / "a.mp4", 5, audio=("aac",))
    answer = run("restore", source, "--model", tiny_model, "--scale", 2)
    output = tmp_path / "a_restored.mp4"
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.count("\n") == 1
    summary = (
        r": 128x96, 5 frames in [\d.]+ s \([\d.]+ fps; plan .* s, encode .* s, generate .* s, decode .* s"
    )
    assert re.match(re.escape(str(output)) + summary, answer.out)
    info = probe(output)
    assert (info.width, info.height, info.frame_count) == (128, 96, 5)
    assert packets(output, "audio")[0][2] == packets(source, "audio")[0][2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "a_restored.mp4"]


def test_sound_can_be_left_out_and_the_codec_chosen(tmp_path, tiny_model, run):
    source, output = make_clip(tmp_path / "a.mp4", 2, audio=("aac",)), tmp_path / "out.mkv"
    options = ("--scale", 1, "--no-audio", "--codec", "hevc", "--bit-depth", 10, "--preset", "ultrafast")
    assert run("restore", source, output, "--model", tiny_model, *options).code == 0
    info = probe(output)
    assert (info.codec, info.bit_depth, info.audio) == ("hevc", 10, ())


def test_pictures_and_sequences_get_names_beside_them(tmp_path, tiny_model, run):
    folder = tmp_path / "shots"
    folder.mkdir()
    for number in range(2):
        Image.fromarray(picture(number)).save(folder / f"shot-{number:06d}.png")
    model = ("--model", tiny_model, "--scale", 1)
    assert run("restore", folder / "shot-000000.png", *model).code == 0
    assert np.asarray(Image.open(folder / "shot-000000_restored.png")).shape == (48, 64, 3)
    (folder / "shot-000000_restored.png").unlink()
    assert run("restore", folder, *model).code == 0
    assert sorted(p.name for p in (tmp_path / "shots_restored").iterdir()) == ["000001.png", "000002.png"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("shots", "shots_restored/"),
        ("shots/", "shots_restored/"),
        ("shots/shot-%06d.png", "shots/shot_restored/"),
        ("shots/shot-*.png", "shots/shot_restored/"),
        ("shots/*.png", "shots/restored/"),
    ],
)
def test_a_sequence_becomes_a_directory(tmp_path, monkeypatch, name, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shots").mkdir()
    Image.fromarray(picture(0)).save(tmp_path / "shots" / "shot-000001.png")
    assert default_output(probe(name), RestoreOptions()) == expected


def test_a_sequence_in_the_current_directory_goes_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture(0)).save(tmp_path / "shot-000001.png")
    assert default_output(probe("."), RestoreOptions()) == f"{tmp_path}_restored/"


@pytest.mark.parametrize(
    ("sound", "audio", "suffix"),
    [("aac", True, "mp4"), ("pcm_u8", True, "mkv"), ("tta", False, "mp4")],
)
def test_a_video_becomes_mp4_unless_its_sound_does_not_fit(tmp_path, sound, audio, suffix):
    source = make_clip(tmp_path / "a.mkv", 2, audio=(sound,))
    output = default_output(probe(source), RestoreOptions(audio=audio))
    assert output == str(tmp_path / f"a_restored.{suffix}")


def test_an_interrupted_restoration_says_how_to_go_on_and_does(tmp_path, tiny_model, run):
    source, output = make_clip(tmp_path / "a.mp4", frames=pictures(40, 32, 32)), tmp_path / "out.mp4"
    command = ["restore", source, output, "--model", tiny_model, "--scale", 1]
    command += ["--segment-frames", 5, "--overlap", 0]
    process = subprocess.Popen(
        [sys.executable, "-c", "from pipelines.cli import main; main()", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.mp4.parts-*/000000.mov")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err == (
        "seedvr2: error: interrupted; finished parts are kept, the same command continues after them\n"
    )
    assert not output.exists()
    answer = run(*command)
    assert re.search(r"^[1-9]\d* segments? kept from an earlier run$", answer.out, re.MULTILINE)
    assert probe(output).frame_count == 40


ENDS = [
    (torch.OutOfMemoryError("CUDA out of memory"), 1, "out of memory; lower --segment-frames"),
    (MemoryError(), 1, "out of memory; lower --segment-frames"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 1, "out of memory; lower"),
    (KeyboardInterrupt(), 130, "interrupted; nothing is kept"),
]


@pytest.mark.parametrize(("error", "code", "line"), ENDS, ids=lambda value: str(value)[:12])
def test_foreseeable_ends_are_one_line(error, code, line):
    result = CliRunner().invoke(raising(error), ["job"])
    assert result.exit_code == code
    assert result.stderr.startswith(f"seedvr2: error: {line}")
    assert result.stderr.count("\n") == 1


def test_a_bug_keeps_its_traceback():
    bug = ValueError("this should not happen")
    result = CliRunner().invoke(raising(bug), ["job"])
    assert result.exception is bug


def raising(error):
    @click.group(cls=OneLineErrors)
    def group():
        pass

    @group.command()
    def job():
        raise error

    return group


@pytest.mark.parametrize(
    "arguments", [("restore",), ("resotre",), ("--fast",), ("convert", "out"), ("demo", "--output-dir")]
)
def test_a_mistaken_command_is_one_line_that_points_to_help(run, arguments):
    assert_one_line(run(*arguments), "--help`", code=2)


@pytest.fixture
def fresh_logging():
    """Logging as it was, after a test that turns it on."""
    loggers = [logging.getLogger(name) for name in (None, "pipelines", "seedvr2")]
    before = [(list(logger.handlers), logger.level) for logger in loggers]
    yield
    for logger, (handlers, level) in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers
        logger.setLevel(level)


@pytest.mark.usefixtures("fresh_logging")
def test_verbose_tells_what_is_done(tmp_path, tiny_model, run):
    source = make_clip(tmp_path / "a.mp4", 2)
    answer = run("restore", source, "--model", tiny_model, "--scale", 1, "--verbose")
    assert f"{source}: 64x48 h264, 25 fps, to {tmp_path / 'a_restored.mp4'}" in answer.err
    assert "model tiny, " in answer.err
    assert "on cpu in torch.float32" in answer.err


@pytest.mark.parametrize(("count", "options"), [(1, {}), (10, {}), (10, {"segment_frames": 9})])
def test_progress_rises_to_all_frames(tmp_path, tiny_model, count, options):
    source, told = make_clip(tmp_path / "a.mp4", count), []
    restore_video(
        source,
        tmp_path / "out.mp4",
        load_model(tiny_model),
        RestoreOptions(scale=1, **options),
        on_progress=lambda done, total: told.append((done, total)),
    )
    assert told == sorted(told)
    assert told[-1] == (pytest.approx(count), count)


def test_progress_shows_frames_and_speed_on_a_terminal():
    terminal = io.StringIO()
    with frames_progress(Console(file=terminal, force_terminal=True, width=120)) as on_progress:
        on_progress(2.6, 10)
        time.sleep(0.2)
        on_progress(7.5, 10)
        time.sleep(0.2)
    assert "7/10 frames" in terminal.getvalue()
    assert " fps" in terminal.getvalue()


def test_progress_is_silent_elsewhere():
    log = io.StringIO()
    with frames_progress(Console(file=log)) as on_progress:
        assert on_progress is None
    assert log.getvalue() == ""


def test_show_lists_the_files_of_a_model(tiny_model, run):
    answer = run("show", tiny_model)
    assert (answer.code, answer.err) == (0, "")
    assert re.search(r"^generator  [\d,]+  [\d,]+  F32  ok  [0-9a-f]{64}$", answer.out, re.MULTILINE)
    assert re.search(r"^text_embedding  72  ", answer.out, re.MULTILINE)
    assert "generator: width=132 heads=3" in answer.out


def test_show_for_machines_is_complete(tiny_model, run):
    tree = json.loads(run("show", tiny_model, "--json").out)
    parts = {part["part"]: part for part in tree["parts"]}
    assert set(parts) == {"autoencoder", "generator", "text_embedding"}
    for name, part in parts.items():
        assert part["state"] == "ok"
        assert part["bytes"] == tree["files"][f"{name}.safetensors"]["bytes"]
    assert tree["autoencoder"]["channels"] == [16, 32, 64, 64]
    assert tree["generator"]["head_dim"] == 44


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_show_marks_a_broken_file_and_fails(tmp_path, tiny_model, run, damage):
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "generator.safetensors"
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:-1])
    answer = run("show", tmp_path)
    assert answer.code == 1
    assert re.search(rf"^generator  .*  {damage}  ", answer.out, re.MULTILINE)
    assert answer.err == (f"seedvr2: error: {path}: {damage}; copy the whole model directory again\n")


def test_show_of_no_model_is_one_line(tmp_path, run):
    assert_one_line(run("show", tmp_path), tmp_path, "not a model directory", "seedvr2 convert")
