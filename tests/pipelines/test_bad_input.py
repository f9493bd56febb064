"""Bad input through the command line: one line with the file and the remedy, and nothing is spoilt."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from einops import reduce
from PIL import Image
from safetensors.torch import load_file, save_file

from seedvr2.checkpoint import ModelRecord, file_digest
from seedvr2.video.io import open_video, probe
from tests.pipelines.conftest import assert_one_line, left_behind
from tests.video.clips import cut, make_clip, picture
from tests.video.test_probe import audio_only, png_that_declares, without_frames

INDEX_FIRST = {"movflags": "+faststart"}


def written(path, content):
    path.write_bytes(content)
    return path


def huge_video(path):
    make_clip(path, 2, codec="rawvideo", pixel_format="yuv420p")
    content = path.read_bytes()
    width = content.find(b"strf") + 12
    return written(path, content[:width] + (30_000).to_bytes(4, "little") + content[width + 4 :])


BAD_SOURCES = {
    "missing": (lambda folder: folder / "missing.mp4", "no such file or directory; check the path"),
    "empty": (lambda folder: written(folder / "a.mp4", b""), "the file is empty; replace it"),
    "cut before its index": (
        lambda folder: cut(make_clip(folder / "whole.mp4"), folder / "a.mp4", 0.6),
        "cut off before its index (moov); check or replace the file",
    ),
    "no frames": (
        lambda folder: without_frames(folder / "a.mp4"),
        "no frame can be decoded; the file is damaged",
    ),
    "audio only": (
        lambda folder: audio_only(folder / "a.m4a"),
        "found only audio; choose a file with pictures",
    ),
    "no medium": (lambda folder: written(folder / "a.mp4", b"hello\n" * 200), "not a video"),
    "no picture": (lambda folder: written(folder / "a.png", b"hello\n" * 200), "not a picture"),
    "huge picture": (
        lambda folder: png_that_declares(folder / "a.png", 100_000, 100_000),
        "scaled down first",
    ),
    "huge video": (lambda folder: huge_video(folder / "a.avi"), "declares 30000x48 pixels"),
    "no pictures": (lambda folder: folder, "found none; check the path"),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_a_source_that_cannot_be_restored_is_named_and_left_alone(tmp_path, tiny_model, run, case):
    make, reason = BAD_SOURCES[case]
    source = make(tmp_path)
    before = source.read_bytes() if source.is_file() else None
    known = [path.name for path in tmp_path.iterdir()]
    answer = run("restore", source, tmp_path / "out.mp4", "--model", tiny_model)
    assert_one_line(answer, source, reason)
    assert left_behind(tmp_path, known) == []
    assert before is None or source.read_bytes() == before


def test_a_truncated_video_restores_what_decodes_and_says_what_is_lost(tmp_path, tiny_model, run):
    whole = make_clip(tmp_path / "whole.mp4", 10, options={"g": "4"}, container_options=INDEX_FIRST)
    source, output = cut(whole, tmp_path / "a.mp4", 0.75), tmp_path / "out.mp4"
    answer = run("restore", source, output, "--model", tiny_model, "--scale", 1)
    frames = probe(output).frame_count
    assert answer.code == 0
    assert 0 < frames < 10
    assert f"{source}: {10 - frames} frames could not be decoded and are missing" in answer.out


def test_a_truncated_video_is_an_error_if_strict(tmp_path, tiny_model, run):
    whole = make_clip(tmp_path / "whole.mp4", 10, container_options=INDEX_FIRST)
    source = cut(whole, tmp_path / "a.mp4", 0.75)
    answer = run("restore", source, tmp_path / "out.mp4", "--model", tiny_model, "--scale", 1, "--strict")
    assert_one_line(answer, source, "frames are lost or damaged; get a whole copy", "--strict")
    assert left_behind(tmp_path, ["whole.mp4", "a.mp4"]) == []


@pytest.mark.parametrize(("width", "height", "count"), [(33, 21, 2), (1, 1, 2), (1, 40, 1), (64, 48, 1)])
def test_odd_and_tiny_sizes_and_single_frames_are_restored(tmp_path, tiny_model, run, width, height, count):
    source, output = tmp_path / "a.avi", tmp_path / "out.mp4"
    frames = [picture(number, width, height) for number in range(count)]
    make_clip(source, frames=frames, codec="rawvideo", pixel_format="bgr24")
    answer = run("restore", source, output, "--model", tiny_model, "--scale", 1)
    assert answer.code == 0, answer
    info = probe(output)
    assert (info.width, info.height, info.frame_count) == (width, height, count)


def sixteen_bit(path):
    Image.fromarray(picture(0)[..., 0].astype(np.uint16) * 257).save(path)


PICTURES = {
    "grey": lambda path: Image.fromarray(picture(0)).convert("L").save(path),
    "grey with alpha": lambda path: Image.fromarray(picture(0)).convert("LA").save(path),
    "rgba": lambda path: Image.fromarray(picture(0)).convert("RGBA").save(path),
    "palette": lambda path: Image.fromarray(picture(0)).convert("P").save(path),
    "one bit": lambda path: Image.fromarray(picture(0)).convert("1").save(path),
    "16 bit": sixteen_bit,
}


def block_means(picture):
    return reduce(picture, "(h y) (w x) c -> h w c", "mean", y=16, x=16)


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_of_every_kind_are_restored(tmp_path, tiny_model, run, kind):
    source, output = tmp_path / "a.png", tmp_path / "out.png"
    PICTURES[kind](source)
    before = source.read_bytes()
    answer = run("restore", source, output, "--model", tiny_model, "--scale", 1)
    assert answer.code == 0, answer
    restored = np.asarray(Image.open(output)).astype(float)
    with open_video(source) as opened:
        frame = next(iter(opened))
    seen = frame.data.astype(float) / (2**frame.bit_depth - 1) * 255
    assert restored.shape == (48, 64, 3)
    assert np.abs(block_means(restored) - block_means(seen)).mean() < 12  # dither gets lost
    assert source.read_bytes() == before


@pytest.mark.parametrize("place", ["/proc/out.mp4", "{folder}/a.mp4/out.mp4", "{folder}/missing/out.mp4"])
def test_an_output_that_cannot_be_written_is_refused_at_once(tmp_path, tiny_model, run, place):
    source = make_clip(tmp_path / "a.mp4", 3)
    output = place.format(folder=tmp_path)
    answer = run("restore", source, output, "--model", tiny_model)
    assert_one_line(answer, output, "; c")  # check, create or choose
    assert left_behind(tmp_path, ["a.mp4"]) == []


@pytest.mark.parametrize("output", ["out", "out.gif", "out-%06d.jpg"])
def test_an_output_of_an_unknown_kind_is_refused(tmp_path, tiny_model, run, output):
    source = make_clip(tmp_path / "a.mp4", 3)
    answer = run("restore", source, tmp_path / output, "--model", tiny_model)
    assert_one_line(answer, tmp_path / output, ".png")


@pytest.mark.parametrize("options", [(), ("--overwrite",)])
def test_an_output_that_is_the_source_is_refused(tmp_path, tiny_model, run, options):
    source = make_clip(tmp_path / "a.mp4", 3)
    before = source.read_bytes()
    answer = run("restore", source, source, "--model", tiny_model, *options)
    assert_one_line(answer, source, "the output is the source", "choose another name")
    assert source.read_bytes() == before


def test_an_existing_output_is_kept_without_overwrite_and_replaced_with_it(tmp_path, tiny_model, run):
    source, output = make_clip(tmp_path / "a.mp4", 3), written(tmp_path / "out.mp4", b"mine")
    command = ("restore", source, output, "--model", tiny_model, "--scale", 1)
    assert_one_line(run(*command), output, "exists already; choose another name or pass --overwrite")
    assert output.read_bytes() == b"mine"
    assert run(*command, "--overwrite").code == 0
    assert probe(output).frame_count == 3


def restore_with_file_limit(limit, *arguments):
    command = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    command += "; from pipelines.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", command, "restore", *map(str, arguments), "--scale", "1", "--color", "none"],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("name", ["out.mp4", "frames/"])
def test_a_full_disk_leaves_nothing_under_the_final_name(tmp_path, tiny_model, name):
    source = make_clip(tmp_path / "a.mp4", 3)
    before = source.read_bytes()
    ended = restore_with_file_limit(600, source, f"{tmp_path}/{name}", "--model", tiny_model)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("seedvr2: error: ")
    assert "cannot write: File too large; free space" in ended.stderr
    assert all(".parts-" in name for name in left_behind(tmp_path, ["a.mp4"]))
    assert source.read_bytes() == before


def test_a_full_disk_at_a_shared_tail_is_one_line_as_well(tmp_path, tiny_model):
    source = make_clip(tmp_path / "a.mp4", frames=[np.full((48, 64, 3), 90, np.uint8)] * 10)
    options = ("--model", tiny_model, "--segment-frames", 9, "--overlap", 5)
    ended = restore_with_file_limit(20_000, source, tmp_path / "out.mp4", *options)
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "tail.safetensors: cannot write: File too large; free space" in ended.stderr


def edit(model, change):
    """Change the generator's tensors as if the record had been made for them."""
    path = model / "generator.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    record = ModelRecord.model_validate_json((model / "model.json").read_text())
    files = dict(record.files)
    files[path.name] = files[path.name].model_copy(
        update={"sha256": file_digest(path), "bytes": path.stat().st_size}
    )
    (model / "model.json").write_text(record.model_copy(update={"files": files}).model_dump_json())


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


BROKEN_MODELS = {
    "missing tensor": (
        lambda m: edit(m, lambda t: t.pop("text_in.bias")),
        "1 tensors missing, first 'text_in.bias'",
    ),
    "extra tensor": (
        lambda m: edit(m, lambda t: t.update(more=t["text_in.bias"].clone())),
        "1 tensors extra",
    ),
    "misshaped tensor": (
        lambda m: edit(m, lambda t: t.update({"text_in.bias": t["text_in.bias"][1:].clone()})),
        "1 tensors misshaped, first 'text_in.bias'",
    ),
    "flipped bit": (lambda m: flip_last_byte(m / "generator.safetensors"), "damaged"),
    "cut file": (lambda m: cut(m / "generator.safetensors", m / "generator.safetensors", 0.5), "damaged"),
    "pickle": (lambda m: written(m / "generator.safetensors", b"\x80\x04cos\nsystem\n."), "damaged"),
    "missing file": (lambda m: (m / "autoencoder.safetensors").unlink(), "missing; copy the whole model"),
    "missing record": (lambda m: (m / "model.json").unlink(), "not a model directory"),
    "damaged record": (
        lambda m: cut(m / "model.json", m / "model.json", 0.5),
        "damaged or of another version",
    ),
    "no directory": (lambda m: shutil.rmtree(m), "not a model directory"),
}


@pytest.mark.parametrize("case", BROKEN_MODELS)
def test_a_broken_model_is_named(tmp_path, tiny_model, run, case):
    damage, reason = BROKEN_MODELS[case]
    source, model = make_clip(tmp_path / "a.mp4", 3), tmp_path / "model"
    shutil.copytree(tiny_model, model)
    damage(model)
    answer = run("restore", source, tmp_path / "out.mp4", "--model", model, "--scale", 1)
    assert_one_line(answer, model, reason, ";")
    assert left_behind(tmp_path, ["a.mp4", "model"]) == []


BAD_OPTIONS = [
    (("--scale", "-1"), "--scale -1.0: input should be greater than 0"),
    (("--scale", "0"), "--scale 0.0: input should be greater than 0"),
    (("--scale", "nan"), "--scale nan: input should be"),
    (("--scale", "inf"), "--scale inf: input should be less than or equal to 64"),
    (("--scale", "big"), "'--scale': 'big' is not a valid float"),
    (("--resolution", "-720"), "--resolution -720: input should be greater"),
    (("--resolution", "99999999"), "--resolution 99999999: input should be less"),
    (("--area", "-5"), "'--area': expected pixels such as 1280x720"),
    (("--area", "1280x"), "'--area': expected pixels such as 1280x720"),
    (("--area", "9x9x9"), "'--area': expected pixels such as 1280x720"),
    (("--area", "999999x999999"), "--area 999998000001: input should be less"),
    (("--scale", "2", "--area", "1280x720"), "area and scale exclude each other; give one"),
    (("--segment-frames", "-3"), "--segment-frames -3: input should be greater than or equal to 5"),
    (("--overlap", "-1"), "--overlap -1: input should be greater than or equal to 0"),
    (("--segment-frames", "9", "--overlap", "9"), "lower the overlap"),
    (("--seed", "-1"), "--seed -1: input should be greater"),
    (("--seed", str(2**70)), f"--seed {2**70}: input should be less"),
    (("--crf", "52"), "--crf 52: input should be less than or equal to 51"),
    (("--crf", "-1"), "--crf -1: input should be greater"),
    (("--preset", "warp"), "--preset warp: input should be 'ultrafast'"),
    (("--bit-depth", "9"), "'--bit-depth'"),
    (("--codec", "png"), "'--codec'"),
    (("--fit", "stretch"), "'--fit'"),
    (("--color", "sepia"), "'--color'"),
    (("--dtype", "int8"), "'--dtype'"),
    (("--device", "toaster"), "--device toaster: expected auto, cpu, cuda or cuda:N"),
    (("--device", "cuda:99"), "--device cuda:99:"),
    (("--device", "cuda:-1"), "--device cuda:-1: expected"),
    (("--speed", "9"), "no such option '--speed'"),
]


@pytest.mark.parametrize(("options", "reason"), BAD_OPTIONS, ids=lambda value: " ".join(value)[:40])
def test_an_option_that_cannot_be_is_named(tmp_path, tiny_model, run, options, reason):
    source = make_clip(tmp_path / "a.mp4", 2)
    answer = run("restore", source, tmp_path / "out.mp4", "--model", tiny_model, *options)
    assert_one_line(answer, reason, code=2)
    assert left_behind(tmp_path, ["a.mp4"]) == []


def test_an_output_beyond_the_largest_size_is_refused(tmp_path, tiny_model, run):
    source = make_clip(tmp_path / "a.mp4", frames=[picture(0, 640, 16)] * 2)
    answer = run("restore", source, tmp_path / "out.mp4", "--model", tiny_model, "--scale", 64)
    assert_one_line(answer, "40960x1024 pixels is beyond the limit", "lower --scale", code=2)


def test_a_picture_too_small_to_crop_is_refused(tmp_path, tiny_model, run):
    source = make_clip(tmp_path / "a.mp4", frames=[picture(0, 32, 8)] * 2)
    command = ("restore", source, tmp_path / "out.mp4", "--model", tiny_model, "--scale", 1, "--fit", "crop")
    assert_one_line(run(*command), "expected at least 16x16 pixels", "pad instead of crop")
    assert left_behind(tmp_path, ["a.mp4"]) == []
