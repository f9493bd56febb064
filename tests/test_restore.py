"""Whole restorations with a model that needs no training: it gives its source back, enlarged."""

import dataclasses
import os
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from seedvr2.checkpoint import Model, load_model
from seedvr2.errors import ConfigError, ShapeError, VideoError
from seedvr2.restore import (
    DEFAULT_AREA,
    MAX_PIXELS,
    Decoder,
    Encoder,
    OneStepGenerator,
    Plan,
    RestoreOptions,
    plan_restore,
    restore_video,
    segment_noise,
    source_pixels,
)
from seedvr2.video.color import match_color
from seedvr2.video.frame import PixelArray
from seedvr2.video.io import open_video, scan
from seedvr2.video.resize import frames_to_pixels, pixels_to_frames, resize_pixels
from seedvr2.video.segments import Segment, cross_fade_weights
from seedvr2.video.write import EncodeSettings
from tests.video.clips import cut, make_clip, packets
from tests.video.synthetic import natural_clip

FAST = EncodeSettings(preset="ultrafast", crf=1)
SHORT = RestoreOptions(scale=2, segment_frames=9, overlap=1, encode=FAST)
"""Three segments for a clip of 23 frames."""


def footage(count: int, width: int = 32, height: int = 32, seed: int = 3) -> list[PixelArray]:
    """A slow pan over a natural picture."""
    still = natural_clip(1, height + 32, width + 32, seed)[0]
    frames = []
    for index in range(count):
        move = np.array([[1, 0, -8 - 0.25 * index], [0, 1, -8 - 0.125 * index]], np.float32)
        frames.append(np.asarray(cv2.warpAffine(still, move, (width, height), flags=cv2.INTER_CUBIC)))
    return frames


def picture_sequence(folder: Path, frames: list[PixelArray]) -> Path:
    folder.mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index:04d}.png")
    return folder


def read(path: Path) -> np.ndarray:
    with open_video(path) as source:
        return np.stack([frame.data for frame in source])


def bicubic(path: Path, size: tuple[int, int]) -> np.ndarray:
    return pixels_to_frames(resize_pixels(frames_to_pixels(read(path)), size))


def quality(restored: np.ndarray, reference: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.square(restored.astype(float) - reference).mean())


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=footage(23), audio=("aac",))


@pytest.fixture(scope="module")
def undisturbed(clip: Path, tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    output = tmp_path_factory.mktemp("undisturbed") / "restored.mp4"
    restore_video(clip, output, tiny_model, SHORT)
    return output.read_bytes()


class Interrupted(Exception):
    """Stands for whatever ends a run."""


def interrupt_after(parts: int, folder: Path):
    """A progress callback that fails in the middle of the segment after `parts` finished ones."""

    def on_progress(done: float, total: int) -> None:
        if len(list(folder.glob(".*.parts-*/*.mov"))) - len(list(folder.glob(".*.parts-*/.*.mov"))) >= parts:
            raise Interrupted

    return on_progress


def test_a_restored_video_keeps_frames_times_and_sound(tmp_path: Path, tiny_model: Model) -> None:
    pts = [0, 40, 90, 120, 170, 200, 260, 300, 333, 370, 410, 441]
    time_base = Fraction(1, 1000)
    source = make_clip(
        tmp_path / "in.mkv", frames=footage(12), pts=pts, time_base=time_base, audio=("aac", "libopus")
    )
    output = tmp_path / "out.mkv"
    result = restore_video(source, output, tiny_model, SHORT)
    assert (result.frames, result.lost, result.resumed, result.size) == (12, 0, 0, (64, 64))
    assert read(output).shape == (12, 64, 64, 3)
    before, after = scan(source), scan(output)
    assert after.pts == before.pts
    for index in range(2):
        sound = packets(source, "audio", index)
        assert len(sound) > 10
        assert packets(output, "audio", index) == sound


def test_sound_can_be_left_out(tmp_path: Path, clip: Path, tiny_model: Model) -> None:
    options = RestoreOptions(scale=1, audio=False, encode=FAST)
    restore_video(clip, tmp_path / "out.mp4", tiny_model, options)
    with pytest.raises(IndexError):
        packets(tmp_path / "out.mp4", "audio")


def test_the_identity_restores_like_bicubic_enlargement(
    clip: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    output = tmp_path / "restored.mp4"
    output.write_bytes(undisturbed)
    assert quality(read(output), bicubic(clip, (64, 64))) > 25


@pytest.mark.parametrize("output", ["restored.png", "restored.jpg", "restored.mp4"])
def test_one_picture_is_restored(tmp_path: Path, tiny_model: Model, output: str) -> None:
    Image.fromarray(footage(1)[0]).save(tmp_path / "picture.png")
    options = RestoreOptions(scale=2, encode=FAST)
    result = restore_video(tmp_path / "picture.png", tmp_path / output, tiny_model, options)
    assert (result.frames, result.size) == (1, (64, 64))
    restored = read(tmp_path / output)
    assert restored.shape == (1, 64, 64, 3)
    assert quality(restored, bicubic(tmp_path / "picture.png", (64, 64))) > 25


def test_a_video_of_one_frame_is_restored(tmp_path: Path, tiny_model: Model) -> None:
    source = make_clip(tmp_path / "one.mp4", frames=footage(1))
    assert restore_video(source, tmp_path / "out.mp4", tiny_model, SHORT).frames == 1
    assert read(tmp_path / "out.mp4").shape == (1, 64, 64, 3)


def test_a_sequence_of_pictures_is_restored_to_a_sequence(tmp_path: Path, tiny_model: Model) -> None:
    source = picture_sequence(tmp_path / "in", footage(7))
    result = restore_video(source, f"{tmp_path}/out/", tiny_model, SHORT)
    assert result.frames == 7
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"{number:06d}.png" for number in range(1, 8)
    ]
    assert quality(read(tmp_path / "out"), bicubic(source, (64, 64))) > 25
    assert leftovers(tmp_path) == []


def test_pictures_under_a_pattern_leave_nothing_else_in_their_directory(
    tmp_path: Path, tiny_model: Model
) -> None:
    source = picture_sequence(tmp_path / "in", footage(2))
    restore_video(source, tmp_path / "out" / "%03d.png", tiny_model, SHORT)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["001.png", "002.png"]


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (21, 35), (40, 17)])
def test_frames_of_any_size_are_restored(tmp_path: Path, tiny_model: Model, size: tuple[int, int]) -> None:
    width, height = size
    source = picture_sequence(tmp_path / "in", [frame[:height, :width] for frame in footage(2, 48, 48)])
    result = restore_video(source, f"{tmp_path}/out/", tiny_model, RestoreOptions(scale=2))
    assert result.size == (2 * height, 2 * width)
    assert read(tmp_path / "out").shape == (2, 2 * height, 2 * width, 3)


def test_odd_sides_survive_in_a_video(tmp_path: Path, tiny_model: Model) -> None:
    source = picture_sequence(tmp_path / "in", [frame[:33, :35] for frame in footage(3, 48, 48)])
    restore_video(source, tmp_path / "out.mp4", tiny_model, RestoreOptions(scale=1, encode=FAST))
    assert read(tmp_path / "out.mp4").shape == (3, 33, 35, 3)


@pytest.mark.parametrize(("fit", "size"), [("pad", (60, 88)), ("crop", (48, 80))])
def test_sides_are_padded_and_cut_back_or_cropped(
    tmp_path: Path, tiny_model: Model, fit: str, size: tuple[int, int]
) -> None:
    source = picture_sequence(tmp_path / "in", footage(2, 44, 30))
    options = RestoreOptions(scale=2, fit=fit)
    result = restore_video(source, f"{tmp_path}/out/", tiny_model, options)
    assert result.size == plan_restore(source, options).output_size == size
    top, left = ((60 - size[0]) // 2, (88 - size[1]) // 2)
    reference = bicubic(source, (60, 88))[:, top : top + size[0], left : left + size[1]]
    restored = read(tmp_path / "out")
    assert restored.shape == reference.shape
    assert quality(restored, reference) > 25


def test_a_frame_too_small_to_crop_is_refused_before_any_work(tmp_path: Path, tiny_model: Model) -> None:
    source = picture_sequence(tmp_path / "in", footage(2, 12, 40))
    with pytest.raises(ShapeError, match="pad instead of crop"):
        restore_video(source, f"{tmp_path}/out/", tiny_model, RestoreOptions(scale=1, fit="crop"))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_same_call_gives_the_same_bytes(
    tmp_path: Path, clip: Path, tiny_model: Model, undisturbed: bytes
) -> None:
    result = restore_video(clip, tmp_path / "again.mp4", tiny_model, SHORT)
    assert result.resumed == 0
    assert (tmp_path / "again.mp4").read_bytes() == undisturbed
    assert leftovers(tmp_path) == []


def test_other_seeds_give_other_pixels(
    tmp_path: Path, clip: Path, tiny_model: Model, undisturbed: bytes
) -> None:
    restore_video(clip, tmp_path / "other.mp4", tiny_model, SHORT.model_copy(update={"seed": 1}))
    assert (tmp_path / "other.mp4").read_bytes() != undisturbed


def test_an_interrupted_restoration_resumes_to_the_same_bytes(
    tmp_path: Path, clip: Path, tiny_model: Model, undisturbed: bytes
) -> None:
    output = tmp_path / "restored.mp4"
    for finished in (1, 2):
        with pytest.raises(Interrupted):
            restore_video(clip, output, tiny_model, SHORT, on_progress=interrupt_after(finished, tmp_path))
        assert not output.exists()
    result = restore_video(clip, output, tiny_model, SHORT)
    assert result.resumed == 2
    assert output.read_bytes() == undisturbed
    assert leftovers(tmp_path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from seedvr2.checkpoint import load_model
from seedvr2.restore import RestoreOptions, restore_video

source, output, model, options, threads = sys.argv[1:]
torch.set_num_threads(int(threads))

def on_progress(done, total):
    if list(Path(output).parent.glob(".*.parts-*/000000.mov")):
        os.kill(os.getpid(), signal.SIGKILL)

restore_video(source, output, load_model(Path(model)), RestoreOptions.model_validate_json(options),
              on_progress=on_progress)
"""


def test_a_killed_restoration_resumes_to_the_same_bytes(
    tmp_path: Path, clip: Path, tiny_folder: Path, tiny_model: Model, undisturbed: bytes
) -> None:
    output = tmp_path / "restored.mp4"
    arguments = [
        str(clip),
        str(output),
        str(tiny_folder),
        SHORT.model_dump_json(),
        str(torch.get_num_threads()),
    ]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not output.exists()
    result = restore_video(clip, output, tiny_model, SHORT)
    assert result.resumed == 1
    assert output.read_bytes() == undisturbed
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("change", [{"seed": 7}, {"color": "none"}, {"segment_frames": 13}, {"scale": 1.5}])
def test_other_options_do_not_reuse_finished_parts(
    tmp_path: Path, clip: Path, tiny_model: Model, change: dict[str, object]
) -> None:
    output = tmp_path / "restored.mp4"
    with pytest.raises(Interrupted):
        restore_video(clip, output, tiny_model, SHORT, on_progress=interrupt_after(1, tmp_path))
    assert len(leftovers(tmp_path)) == 1
    other = SHORT.model_copy(update=change)
    with pytest.raises(Interrupted):
        restore_video(clip, output, tiny_model, other, on_progress=interrupt_after(0, tmp_path))
    (folder,) = leftovers(tmp_path)  # the useless parts are gone
    assert not list((tmp_path / folder).glob("*.mov"))


def test_other_weights_do_not_reuse_finished_parts(tmp_path: Path, clip: Path, tiny_model: Model) -> None:
    output = tmp_path / "restored.mp4"
    with pytest.raises(Interrupted):
        restore_video(clip, output, tiny_model, SHORT, on_progress=interrupt_after(1, tmp_path))
    files = {
        name: file.model_copy(update={"sha256": "0" * 64}) for name, file in tiny_model.record.files.items()
    }
    other = dataclasses.replace(tiny_model, record=tiny_model.record.model_copy(update={"files": files}))
    assert restore_video(clip, output, other, SHORT).resumed == 0


def test_an_existing_output_stays_without_overwrite(tmp_path: Path, clip: Path, tiny_model: Model) -> None:
    output = tmp_path / "precious.mp4"
    output.write_bytes(b"precious")
    with pytest.raises(VideoError, match="--overwrite"):
        restore_video(clip, output, tiny_model, SHORT)
    with pytest.raises(Interrupted):
        restore_video(
            clip, output, tiny_model, SHORT, overwrite=True, on_progress=interrupt_after(0, tmp_path)
        )
    assert output.read_bytes() == b"precious"
    restore_video(clip, output, tiny_model, SHORT, overwrite=True)
    assert len(read(output)) == 23


def test_a_truncated_source_gives_what_can_be_decoded(tmp_path: Path, tiny_model: Model) -> None:
    whole = make_clip(
        tmp_path / "whole.mp4",
        frames=footage(23),
        options={"g": "6", "bf": "0"},
        container_options={"movflags": "faststart"},
    )
    source = cut(whole, tmp_path / "cut.mp4", 0.7)
    result = restore_video(source, tmp_path / "out.mp4", tiny_model, SHORT)
    assert 0 < result.frames < 23
    assert result.lost == 23 - result.frames
    assert len(read(tmp_path / "out.mp4")) == result.frames
    with pytest.raises(VideoError, match="lost"):
        restore_video(source, tmp_path / "strict.mp4", tiny_model, SHORT.model_copy(update={"strict": True}))
    assert not (tmp_path / "strict.mp4").exists()


def test_progress_rises_to_the_number_of_frames(tmp_path: Path, clip: Path, tiny_model: Model) -> None:
    told: list[tuple[float, int]] = []
    restore_video(
        clip, tmp_path / "out.mp4", tiny_model, SHORT, on_progress=lambda *state: told.append(state)
    )
    done = [state[0] for state in told]
    assert done == sorted(done)
    assert done[-1] == pytest.approx(23, abs=0.5)
    assert {state[1] for state in told} == {23}


def latents(plan: Plan, model: Model) -> list[tuple[Segment, torch.Tensor]]:
    encoder = Encoder(model.autoencoder)
    return [(segment, encoder(plan, segment)) for segment in plan.segments]


def test_noise_and_posterior_draw_of_a_frame_are_the_same_in_every_plan(
    tmp_path: Path, tiny_model: Model
) -> None:
    """The tiny autoencoder's variance is constant, so that the draw is what sampling adds to the mode."""
    source = picture_sequence(tmp_path / "in", footage(41))
    noise: dict[int, torch.Tensor] = {}
    draws: dict[int, torch.Tensor] = {}
    compared = 0
    for segment_frames, overlap in ((61, 5), (21, 9), (13, 5), (9, 0)):
        options = RestoreOptions(scale=1, segment_frames=segment_frames, overlap=overlap)
        plan = plan_restore(source, options)
        by_mode = dataclasses.replace(plan, options=options.model_copy(update={"posterior": "mode"}))
        for (segment, sample), (_, mode) in zip(
            latents(plan, tiny_model), latents(by_mode, tiny_model), strict=True
        ):
            fields = segment_noise(plan, segment, sample)
            for k in range(sample.shape[1]):
                frame = segment.start + 4 * k
                compared += frame in noise
                assert torch.equal(fields[:, k], noise.setdefault(frame, fields[:, k]))
                draw = (sample - mode)[:, k]
                torch.testing.assert_close(draw, draws.setdefault(frame, draw), rtol=0, atol=2e-6)
    assert compared > 10
    assert not any(torch.equal(noise[0], other) for frame, other in noise.items() if frame)


def test_segments_of_different_sizes_are_generated_together_as_one_by_one(tiny_model: Model) -> None:
    generator = OneStepGenerator(tiny_model.generator, tiny_model.text)
    draws = torch.Generator().manual_seed(0)
    sizes = [(16, 3, 6, 8), (16, 1, 10, 4), (16, 2, 4, 4)]
    sources = [torch.randn(size, generator=draws) for size in sizes]
    noises = [torch.randn(size, generator=draws) for size in sizes]
    together = generator(sources, noises)
    for source, noise, restored in zip(sources, noises, together, strict=True):
        alone = generator([source], [noise])[0]
        torch.testing.assert_close(restored, alone, rtol=0, atol=1e-5)
        assert (restored - source).abs().max() < 0.3


def test_frames_before_a_cut_do_not_depend_on_what_comes_after(tmp_path: Path, tiny_model: Model) -> None:
    before = footage(14, seed=5)
    restored = []
    for name, seed in (("a", 6), ("b", 7)):
        source = picture_sequence(tmp_path / name, before + footage(9, seed=seed))
        plan = plan_restore(source, SHORT.model_copy(update={"overlap": 5}))
        assert {segment.shot for segment in plan.segments} == {0, 1}
        first_shot = [segment for segment in plan.segments if segment.shot == 0]
        assert first_shot[-1].stop == 14
        # Noise is keyed by the digest of the source, which knows the end.
        plan = dataclasses.replace(plan, found=dataclasses.replace(plan.found, digest="same"))
        encoder, decoder = Encoder(tiny_model.autoencoder), Decoder(tiny_model.autoencoder)
        generator = OneStepGenerator(tiny_model.generator, tiny_model.text)
        pixels = []
        for segment in first_shot:
            latent = encoder(plan, segment)
            result = generator([latent], [segment_noise(plan, segment, latent)])[0]
            pixels += list(decoder.pixels(plan, segment, result))
        restored.append(torch.cat(pixels, dim=2))
    assert torch.equal(restored[0], restored[1])


def test_overlapping_segments_are_cross_faded(tmp_path: Path, tiny_model: Model) -> None:
    source = picture_sequence(tmp_path / "in", footage(29))
    options = RestoreOptions(scale=1, segment_frames=13, overlap=5)
    plan = plan_restore(source, options)
    generator, decoder = (
        OneStepGenerator(tiny_model.generator, tiny_model.text),
        Decoder(tiny_model.autoencoder),
    )
    joined = torch.zeros(1, 3, 29, 32, 32)
    for segment, latent in latents(plan, tiny_model):
        (restored,) = generator([latent], [segment_noise(plan, segment, latent)])
        pixels = torch.cat(list(decoder.pixels(plan, segment, restored)), dim=2)
        shared = slice(segment.start, segment.start + segment.overlap)
        weights = cross_fade_weights(segment.overlap)[:, None, None]
        blended = weights * joined[:, :, shared] + (1 - weights) * pixels[:, :, : segment.overlap]
        joined[:, :, segment.start : segment.stop] = pixels
        joined[:, :, shared] = blended
    assert len(plan.segments) >= 3
    restore_video(source, f"{tmp_path}/out/", tiny_model, options)
    difference = np.abs(read(tmp_path / "out").astype(int) - pixels_to_frames(joined).astype(int))
    assert difference.max() <= 1  # the tail of a segment is kept in half precision
    assert np.count_nonzero(difference) < 0.02 * difference.size


def test_no_seam_shows_between_overlapping_segments(tmp_path: Path, tiny_model: Model) -> None:
    source = picture_sequence(tmp_path / "in", footage(29))
    results = {}
    for name, segment_frames, overlap in (("whole", 61, 5), ("blended", 13, 5), ("abutting", 13, 0)):
        options = RestoreOptions(scale=2, segment_frames=segment_frames, overlap=overlap)
        restore_video(source, f"{tmp_path}/{name}/", tiny_model, options)
        results[name] = read(tmp_path / name).astype(float)
    seams = [segment.start for segment in plan_restore(source, options).segments[1:]]
    assert len(seams) >= 2
    change = {name: np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3)) for name, frames in results.items()}
    assert change["blended"].max() <= 1.05 * change["whole"].max()
    error = {name: np.abs(frames - results["whole"]).mean() for name, frames in results.items()}
    assert error["blended"] < error["abutting"]


@pytest.mark.parametrize("color", ["lab", "wavelet_adaptive"])
def test_colours_are_matched_over_the_whole_segment(tmp_path: Path, tiny_model: Model, color: str) -> None:
    source = picture_sequence(tmp_path / "in", footage(7))
    plain = plan_restore(source, RestoreOptions(scale=2, color="none"))
    matched = dataclasses.replace(plain, options=plain.options.model_copy(update={"color": color}))
    (segment,) = plain.segments
    decoder, latent = Decoder(tiny_model.autoencoder), latents(plain, tiny_model)[0][1]
    everything = dataclasses.replace(segment, stop=segment.start + segment.padded)
    content = torch.cat(list(decoder.pixels(plain, everything, latent)), dim=2)
    style = torch.cat(list(source_pixels(plain, segment)), dim=2)
    expected = match_color(content[0].transpose(0, 1), style[0].transpose(0, 1), color).transpose(0, 1)
    pixels = torch.cat(list(decoder.pixels(matched, segment, latent)), dim=2)
    torch.testing.assert_close(pixels[0], expected[:, :7], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "color", ["wavelet", "wavelet_capped", "adain", "lab", "hsv", "wavelet_adaptive", "none"]
)
def test_every_colour_method_restores(tmp_path: Path, tiny_model: Model, color: str) -> None:
    source = picture_sequence(tmp_path / "in", footage(6))
    restore_video(source, f"{tmp_path}/out/", tiny_model, RestoreOptions(scale=1, color=color))
    assert quality(read(tmp_path / "out"), read(source)) > 20


def test_a_model_in_bfloat16_restores(tmp_path: Path, tiny_folder: Path) -> None:
    source = picture_sequence(tmp_path / "in", footage(6))
    model = load_model(tiny_folder, dtype=torch.bfloat16)
    restore_video(source, f"{tmp_path}/out/", model, RestoreOptions(scale=2))
    assert quality(read(tmp_path / "out"), bicubic(source, (64, 64))) > 20


def test_ten_bits_reach_the_file(tmp_path: Path, tiny_model: Model) -> None:
    source = picture_sequence(tmp_path / "in", footage(2))
    options = RestoreOptions(scale=1, encode=FAST.model_copy(update={"bit_depth": 10}))
    restore_video(source, tmp_path / "out.mp4", tiny_model, options)
    with open_video(tmp_path / "out.mp4") as restored:
        assert {frame.bit_depth for frame in restored} == {10}


def test_source_pixels_repeat_the_last_frame_up_to_the_model_length(tmp_path: Path) -> None:
    source = picture_sequence(tmp_path / "in", footage(6))
    plan = plan_restore(source, RestoreOptions(scale=1))
    pixels = torch.cat(list(source_pixels(plan, plan.segments[0])), dim=2)
    assert pixels.shape == (1, 3, 9, 32, 32)
    assert torch.equal(pixels[:, :, :6], frames_to_pixels(read(source)))
    assert torch.equal(pixels[:, :, 6:], pixels[:, :, 5:6].expand(-1, -1, 3, -1, -1))


def test_a_plan_survives_the_way_to_another_process(clip: Path) -> None:
    import pickle

    plan = plan_restore(clip, SHORT)
    assert pickle.loads(pickle.dumps(plan)) == plan


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (RestoreOptions(scale=1.5), (150, 300)),
        (RestoreOptions(resolution=300), (300, 600)),
        (RestoreOptions(area=80_000), (200, 400)),
        (RestoreOptions(), (679, 1358)),
    ],
)
def test_output_size_follows_the_option(options: RestoreOptions, size: tuple[int, int]) -> None:
    assert options.size(100, 200) == size


def test_sources_larger_than_720p_keep_their_size_by_default() -> None:
    assert RestoreOptions().size(1080, 1920) == (1080, 1920)
    height, width = RestoreOptions().size(480, 640)
    assert height * width == pytest.approx(DEFAULT_AREA, rel=1e-2)


def test_sizes_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="area and scale exclude each other"):
        RestoreOptions(area=100_000, scale=2)


def test_absurd_output_sizes_are_refused(clip: Path) -> None:
    with pytest.raises(ConfigError, match=str(MAX_PIXELS)):
        RestoreOptions(scale=64).size(1080, 1920)
    with pytest.raises(ConfigError, match="16384 per side"):
        RestoreOptions(area=1 << 20).size(1, 1000)


@pytest.mark.parametrize(("segment_frames", "overlap"), [(9, 9), (13, 40)])
def test_impossible_segments_are_refused_before_reading_the_source(
    clip: Path, segment_frames: int, overlap: int
) -> None:
    with pytest.raises(ConfigError, match="overlap"):
        plan_restore(clip, RestoreOptions(segment_frames=segment_frames, overlap=overlap))


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_length_of_the_video(tmp_path: Path) -> None:
    """Through the benchmark's own process: a child inherits the peak of the process that started it."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_memory", "--size", "64x48", "--limit", "1.15"]
    repository = Path(__file__).resolve().parent.parent
    run = subprocess.run(
        command, cwd=repository, env={**os.environ}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
