"""Reading gives the right frames at the right times, from any place."""

import hashlib
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from seedvr2.errors import VideoError
from seedvr2.video.io import ColorTags, open_video, probe, scan
from tests.video.clips import make_clip, picture, pictures

OPEN_GOP = {"x264-params": "open-gop=1:keyint=8:min-keyint=4:bframes=3:b-pyramid=normal:scenecut=0"}
VFR = [0, 40, 50, 130, 131, 200, 333, 334, 400, 900, 940, 980, 1000, 1300, 1301, 1302, 1400, 1500, 1700, 1705,
       1710, 1800, 2000, 2100, 2101, 2200, 2300, 2303, 2400, 2500]  # fmt: skip


def read(path, **options):
    with open_video(path, **options) as source:
        return list(source)


def test_frames_come_in_order_with_their_content_and_time(tmp_path):
    frames = read(make_clip(tmp_path / "a.mp4", 24, options={"crf": "1"}))
    assert [frame.pts for frame in frames] == [512 * n for n in range(24)]
    for number, frame in enumerate(frames):
        assert (frame.bit_depth, frame.data.dtype, frame.data.flags.c_contiguous) == (8, np.uint8, True)
        assert np.abs(frame.data.astype(int) - picture(number)).mean() < 2


def test_variable_frame_rate_times_are_exact(tmp_path):
    clip = make_clip(tmp_path / "a.mp4", len(VFR), time_base=Fraction(1, 1000), pts=VFR)
    assert [frame.pts * probe(clip).time_base for frame in read(clip)] == [Fraction(t, 1000) for t in VFR]


@pytest.mark.parametrize(
    ("name", "codec", "options", "times"),
    [
        ("a.mp4", "libx264", OPEN_GOP, None),
        ("a.mp4", "libx264", OPEN_GOP, VFR),
        ("a.mkv", "libx264", OPEN_GOP, VFR),
        ("a.ts", "libx264", OPEN_GOP, None),
        ("a.mp4", "libx265", {"x265-params": "open-gop=1:keyint=8:min-keyint=4:log-level=none"}, None),
        ("a.mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=8"}, None),
        ("a.mpg", "mpeg2video", {"g": "6", "bf": "2"}, None),
        ("a.avi", "mpeg4", {"g": "6", "bf": "2"}, None),
        ("a.avi", "libx264", OPEN_GOP, None),
        ("a.flv", "libx264", OPEN_GOP, None),
        ("a.mov", "prores_ks", None, VFR),
        ("a.webm", "libvpx", {"g": "6"}, None),
        ("a.mkv", "ffv1", None, VFR),
    ],
)
def test_reading_from_any_index_gives_the_frames_of_a_full_reading(tmp_path, name, codec, options, times):
    timing = {} if times is None else {"time_base": Fraction(1, 1000), "pts": times}
    if codec == "prores_ks":
        timing["pixel_format"] = "yuv422p10le"
    clip = make_clip(tmp_path / name, len(VFR), codec=codec, options=options, **timing)
    whole, known = read(clip), scan(clip)
    assert [frame.pts for frame in whole] == list(known.pts)
    for start in range(0, len(whole), 3):
        frames = read(clip, start=start, known=known)
        assert [frame.pts for frame in frames] == [frame.pts for frame in whole[start:]]
        assert all(np.array_equal(a.data, b.data) for a, b in zip(frames, whole[start:], strict=True)), start


def test_reading_from_an_index_without_a_scan_is_exact_too(tmp_path):
    clip = make_clip(tmp_path / "a.mp4", 24, options=OPEN_GOP)
    whole, tail = read(clip), read(clip, start=13)
    assert [frame.pts for frame in tail] == [frame.pts for frame in whole[13:]]
    assert np.array_equal(tail[0].data, whole[13].data)


def test_a_start_behind_the_end_gives_nothing(tmp_path):
    clip = make_clip(tmp_path / "a.mp4", 5)
    assert read(clip, start=5) == []
    assert read(clip, start=5, known=scan(clip)) == []


@pytest.mark.parametrize(
    ("degrees", "hflip"), [(-90, False), (90, False), (180, False), (0, True), (-90, True)]
)
def test_frames_are_turned_upright(tmp_path, degrees, hflip):
    clip = make_clip(tmp_path / "a.mp4", 3, rotation=degrees, hflip=hflip)
    plain = read(make_clip(tmp_path / "b.mp4", 3))
    expected = np.rot90(plain[0].data, degrees // 90)
    expected = expected[:, ::-1] if hflip else expected
    data = read(clip)[0].data
    assert data.flags.c_contiguous
    assert np.array_equal(data, expected)


@pytest.mark.parametrize("matrix", [1, 6, 9])
@pytest.mark.parametrize("range_", [1, 2])
def test_tagged_colours_are_read_with_their_matrix_and_range(tmp_path, matrix, range_):
    clip = make_clip(tmp_path / "a.mp4", 2, matrix=matrix, range_=range_, options={"crf": "1"})
    assert np.abs(read(clip)[0].data.astype(int) - picture(0)).mean() < 1.5


def test_untagged_small_video_is_read_as_bt601(tmp_path):
    assert np.abs(read(make_clip(tmp_path / "a.mp4", 2))[0].data.astype(int) - picture(0)).mean() < 1.5


def test_ten_bit_samples_arrive_as_ten_bit_values(tmp_path):
    yuv = np.zeros((48, 64, 3), np.uint16)
    yuv[..., 0] = np.linspace(64, 940, 64).astype(np.uint16)
    yuv[..., 1:] = 512
    clip = make_clip(
        tmp_path / "a.mkv", frames=[yuv] * 2, codec="ffv1", pixel_format="yuv444p10le", matrix=1, range_=1
    )
    frame = read(clip)[0]
    expected = np.rint((yuv[..., :1].astype(float) - 64) / 876 * 1023)
    assert (frame.bit_depth, frame.data.dtype) == (10, np.uint16)
    assert np.abs(frame.data - expected).max() <= 1
    assert (frame.data.min(), frame.data.max()) == (0, 1023)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (65, 47), (2, 3)])
def test_odd_sizes_are_whole(tmp_path, width, height):
    clip = make_clip(
        tmp_path / "a.mkv", frames=pictures(2, width, height), codec="ffv1", pixel_format="yuv444p"
    )
    assert read(clip)[0].data.shape == (height, width, 3)


def test_gray_video_is_read(tmp_path):
    clip = make_clip(tmp_path / "a.mkv", 2, codec="ffv1", pixel_format="gray", range_=2)
    data = read(clip)[0].data.astype(int)
    luma = picture(0) @ np.array([0.299, 0.587, 0.114])
    assert (data[..., 0] == data[..., 1]).all()
    assert np.abs(data[..., 0] - luma).max() <= 2


def test_the_scan_hands_out_thumbnails_and_a_digest(tmp_path):
    clip = make_clip(tmp_path / "a.mp4", 12)
    seen = []
    found = scan(clip, on_frame=seen.append)
    assert len(seen) == found.frames == len(found.pts) == 12
    assert {(small.shape, small.dtype.name) for small in seen} == {((36, 64, 3), "uint8")}
    means = [float(small.mean()) for small in seen]
    assert means == sorted(means)
    assert found.digest == hashlib.sha256(clip.read_bytes()).hexdigest()


def test_leaving_early_releases_the_file(tmp_path):
    clip = make_clip(tmp_path / "a.mp4", 12)
    with open_video(clip) as source:
        frames = iter(source)
        next(frames)
    with pytest.raises(StopIteration):
        next(frames)


def test_an_unsupported_matrix_is_an_error_that_names_the_file(tmp_path):
    with open_video(make_clip(tmp_path / "a.mp4", 2)) as source:
        source.info = replace(source.info, color=ColorTags(matrix=8))
        with pytest.raises(VideoError, match=r"a\.mp4: colour matrix 8"):
            next(iter(source))
