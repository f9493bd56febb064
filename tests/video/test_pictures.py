"""Pictures of every kind, and sequences of them."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from seedvr2.errors import VideoError
from seedvr2.video.io import open_video, scan
from seedvr2.video.pictures import list_pictures, numbered_files, numbered_name
from tests.video.clips import picture


def read(path):
    with open_video(path) as source:
        return list(source)


def save(path, data, **options):
    Image.fromarray(data).save(path, **options)
    return path


def test_a_directory_is_sorted_naturally_and_other_files_are_passed_over(tmp_path):
    for name in ("shot10.png", "shot2.png", "shot1.JPG", ".hidden.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_pictures(tmp_path)] == ["shot1.JPG", "shot2.png", "shot10.png"]


def test_a_pattern_takes_its_numbers_and_nothing_else(tmp_path):
    for name in ("a-000009.png", "a-000010.png", "a-1000000.png", "a-7.png", "b-000001.png", "a-000001.jpg"):
        (tmp_path / name).write_bytes(b"x")
    names = [path.name for path in list_pictures(tmp_path / "a-%06d.png")]
    assert names == ["a-000009.png", "a-000010.png", "a-1000000.png"]
    assert len(numbered_files(tmp_path / "a-%d.png")) == 4
    assert numbered_name(tmp_path / "50%-%06d.png", 12) == "50%-000012.png"


def test_a_glob_is_a_sequence_and_a_file_of_that_very_name_is_not(tmp_path):
    for name in ("x1.png", "x2.png", "y1.png"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in list_pictures(tmp_path / "x*.png")] == ["x1.png", "x2.png"]
    (tmp_path / "x%03d.png").write_bytes(b"x")
    assert list_pictures(tmp_path / "x%03d.png") is None


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm"])
def test_lossless_pictures_are_exact(tmp_path, suffix):
    data = np.random.default_rng(0).integers(0, 256, (47, 65, 3), np.uint8)
    (frame,) = read(save(tmp_path / f"a{suffix}", data))
    assert frame.bit_depth == 8
    assert np.array_equal(frame.data, data)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_pictures_agree_with_pillow(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}", picture(0), quality=95)
    (frame,) = read(path)
    expected = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert np.abs(frame.data.astype(int) - expected).mean() < 1.5


@pytest.mark.parametrize("mode", ["L", "P", "LA", "RGBA", "1"])
def test_gray_palette_and_alpha_pictures_become_rgb(tmp_path, mode):
    image = Image.fromarray(picture(0)).convert(mode)
    image.save(tmp_path / "a.png")
    (frame,) = read(tmp_path / "a.png")
    expected = np.asarray(image.convert("RGB" if mode in ("RGBA", "P") else "L").convert("RGB"))
    assert np.array_equal(frame.data, expected)


def test_colours_under_transparency_stay(tmp_path):
    data = np.dstack([picture(0), np.zeros((48, 64), np.uint8)])
    (frame,) = read(save(tmp_path / "a.png", data))
    assert np.array_equal(frame.data, data[..., :3])


def test_sixteen_bit_gray_keeps_its_bits(tmp_path):
    data = np.random.default_rng(0).integers(0, 65536, (48, 64)).astype(np.uint16)
    (frame,) = read(save(tmp_path / "a.png", data))
    assert (frame.bit_depth, frame.data.dtype) == (16, np.uint16)
    assert np.array_equal(frame.data, np.repeat(data[..., np.newaxis], 3, axis=2))


def test_one_pixel_is_a_picture(tmp_path):
    (frame,) = read(save(tmp_path / "a.png", np.array([[[1, 2, 3]]], np.uint8)))
    assert frame.data.tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("value", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, value):
    exif = Image.Exif()
    exif[274] = value
    path = save(tmp_path / "a.jpg", picture(0, 64, 40), exif=exif, quality=95)
    (frame,) = read(path)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    assert frame.data.shape == expected.shape
    assert np.abs(frame.data.astype(int) - expected.astype(int)).mean() < 1.5


def test_a_sequence_comes_in_order_with_running_times(tmp_path):
    for number in range(12):
        save(tmp_path / f"f{number}.png", picture(number))
    frames = read(tmp_path)
    assert [frame.pts for frame in frames] == list(range(12))
    assert all(np.array_equal(frame.data, picture(n)) for n, frame in enumerate(frames))
    with open_video(tmp_path, start=5) as source:
        assert np.array_equal(next(iter(source)).data, picture(5))


def test_a_sequence_has_one_bit_depth(tmp_path):
    save(tmp_path / "1.png", picture(0))
    save(tmp_path / "2.png", np.full((48, 64), 65535, np.uint16))
    first, second = read(tmp_path)
    assert (first.bit_depth, second.bit_depth, second.data.dtype) == (8, 8, np.uint8)
    assert (second.data == 255).all()


def test_a_picture_of_another_size_is_named(tmp_path):
    save(tmp_path / "1.png", picture(0))
    save(tmp_path / "2.png", picture(0, 32, 24))
    with pytest.raises(VideoError, match=r"2\.png: expected 64x48 .* found 32x24"):
        read(tmp_path)


def test_a_damaged_picture_of_a_sequence_is_lost_and_counted(tmp_path):
    for number in range(3):
        save(tmp_path / f"{number}.png", picture(number))
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:200])
    assert (scan(tmp_path).frames, scan(tmp_path).lost) == (2, 1)
    with open_video(tmp_path, start=1, known=scan(tmp_path)) as source:
        assert np.array_equal(next(iter(source)).data, picture(2))
    with pytest.raises(VideoError, match="1 frames are lost"):
        scan(tmp_path, strict=True)


def test_a_cut_jpeg_is_delivered_and_counted(tmp_path):
    path = save(tmp_path / "a.jpg", np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert (scan(path).frames, scan(path).lost) == (1, 1)


def test_the_digest_of_a_sequence_covers_all_its_files(tmp_path):
    for number in range(2):
        save(tmp_path / f"{number}.png", picture(number))
    before = scan(tmp_path).digest
    save(tmp_path / "1.png", picture(7))
    assert scan(tmp_path).digest != before
