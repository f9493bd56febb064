"""The demo: what it writes, measures and shows."""

import cv2
import numpy as np
import pytest
from PIL import Image

from pipelines.demo import compare, demo_lines, detail_box, run_demo
from seedvr2.checkpoint import load_model
from seedvr2.errors import ShapeError, VideoError
from seedvr2.metrics.fidelity import psnr, ssim
from seedvr2.video.io import open_video, probe
from tests.pipelines.conftest import assert_one_line
from tests.video.clips import make_clip
from tests.video.synthetic import natural_clip


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A clean clip of 64x48, and the same at half the size."""
    folder = tmp_path_factory.mktemp("demo")
    clean = natural_clip(4, 48, 64, seed=3)
    small = [cv2.resize(frame, (32, 24), interpolation=cv2.INTER_AREA) for frame in clean]
    lq = make_clip(folder / "lq.mp4", frames=small)
    return lq, make_clip(folder / "hq.mp4", frames=list(clean))


@pytest.fixture(scope="module")
def shown(material, tiny_model, tmp_path_factory):
    """The result of one demo, and its folder."""
    folder = tmp_path_factory.mktemp("run") / "made" / "by the demo"
    return run_demo(folder, load_model(tiny_model), *material), folder


def frames_of(path):
    with open_video(path) as source:
        return np.stack([frame.data for frame in source])


def test_demo_writes_a_video_of_the_originals_size_and_a_picture(shown):
    result, folder = shown
    assert sorted(path.name for path in folder.iterdir()) == ["before_after.png", "restored.mp4"]
    info = probe(result.restored.output)
    assert (info.width, info.height, info.frame_count) == (64, 48, 4)
    width, height = Image.open(result.picture).size
    assert width > 2 * 64
    assert height > 2 * 48


def test_demo_measures_the_file_that_it_wrote(shown, material):
    result, _ = shown
    clean, after = frames_of(material[1]), frames_of(result.restored.output)
    assert (result.result.psnr, result.result.ssim) == (psnr(clean, after), ssim(clean, after))


def test_bicubic_enlargement_is_measured_without_a_detour(shown, material):
    result, _ = shown
    clean = frames_of(material[1])
    enlarged = [
        cv2.resize(frame, (64, 48), interpolation=cv2.INTER_CUBIC) for frame in frames_of(material[0])
    ]
    assert result.bicubic.psnr == pytest.approx(psnr(clean, np.stack(enlarged)), abs=0.5)
    assert result.bicubic.ssim == pytest.approx(ssim(clean, np.stack(enlarged)), abs=0.05)


def test_demo_tells_paths_measurements_and_time(shown):
    result, folder = shown
    text = "\n".join(demo_lines(result))
    assert f"restored video: {folder / 'restored.mp4'}" in text
    assert f"before and after: {folder / 'before_after.png'}" in text
    assert f"bicubic   PSNR {result.bicubic.psnr:5.2f} dB  SSIM {result.bicubic.ssim:.4f}" in text
    assert f"restored  PSNR {result.result.psnr:5.2f} dB  SSIM {result.result.ssim:.4f}" in text
    assert "4 frames of 64x48 in " in text


def test_a_second_demo_replaces_the_first(shown, material, tiny_model):
    _, folder = shown
    (folder / "before_after.png").write_bytes(b"old")
    again = run_demo(folder, load_model(tiny_model), *material)
    assert Image.open(again.picture).size[0] > 128
    assert sorted(path.name for path in folder.iterdir()) == ["before_after.png", "restored.mp4"]


def test_clips_that_do_not_belong_together_are_refused(tmp_path, material, tiny_model):
    shorter = make_clip(tmp_path / "short.mp4", frames=list(natural_clip(3, 48, 64, seed=3)))
    with pytest.raises(ShapeError, match="belong together"):
        run_demo(tmp_path / "out", load_model(tiny_model), material[0], shorter)


def test_a_place_that_cannot_be_written_is_refused(tmp_path, material, tiny_model):
    with pytest.raises(VideoError, match="cannot write"):
        run_demo(material[0] / "out", load_model(tiny_model), *material)


def test_the_command_ends_in_one_line_where_it_cannot_write(tmp_path, run):
    (tmp_path / "file").touch()
    answer = run("demo", "--output-dir", tmp_path / "file")
    assert_one_line(answer)


def test_the_crop_shows_the_strongest_edges():
    picture = np.full((64, 96, 3), 128, np.uint8)
    picture[36:44, 60:70] = np.indices((8, 10)).sum(axis=0)[..., None] % 2 * 255
    left, top, right, bottom = detail_box(picture, 4)
    assert (right - left, bottom - top) == (24, 16)
    assert left <= 60
    assert right >= 70
    assert top <= 36
    assert bottom >= 44


def test_pictures_stand_side_by_side_above_their_crops():
    dark, light = np.full((40, 60, 3), 10, np.uint8), np.full((40, 60, 3), 240, np.uint8)
    sheet = np.asarray(compare([("dark", dark), ("light", light)], (0, 0, 20, 13)))
    halves = np.split(sheet[:, : sheet.shape[1] // 2 * 2], 2, axis=1)
    assert np.count_nonzero((halves[0] == 10).all(axis=-1)) > (40 + 39) * 60 - 200  # its frame covers some
    assert np.count_nonzero((halves[1] == 240).all(axis=-1)) > 2 * 40 * 60 - 200
