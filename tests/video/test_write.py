"""One part: its frames, its clock, its colours, its bytes."""

import errno
import os
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
from pydantic import ValidationError

from seedvr2.errors import VideoError
from seedvr2.video.frame import ColorTags, Frame
from seedvr2.video.io import open_video, probe
from seedvr2.video.write import EncodeSettings, write_part, writing
from tests.video.clips import INFO, picture

CODECS = ["h264", "hevc", "png"]


def frames(count, width=64, height=48):
    return [Frame(picture(number, width, height), 8, 1000 + number) for number in range(count)]


def settings(codec="h264", **options):
    return EncodeSettings(codec=codec, preset="veryfast", **options)


def read(path):
    with open_video(path) as source:
        return list(source)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_a_part_holds_its_frames_on_a_clock_of_one_tick_per_frame(tmp_path, codec, count):
    part = tmp_path / "part.mov"
    assert write_part(part, frames(count), settings(codec), INFO) == count
    with av.open(str(part)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        ticks = [packet.pts * stream.time_base * INFO.fps for packet in packets]
        dts = [packet.dts for packet in packets]
    assert sorted(ticks) == list(range(count))
    assert ticks[0] == 0
    assert packets[0].is_keyframe
    assert all(a < b for a, b in pairwise(dts))
    assert all(packet.dts <= packet.pts for packet in packets)
    errors = [np.abs(f.data.astype(int) - picture(n)).mean() for n, f in enumerate(read(part))]
    assert max(errors) < (2.5 if codec != "png" else 1e-9)


def test_long_parts_use_b_frames(tmp_path):
    write_part(tmp_path / "part.mov", frames(20), settings(), INFO)
    with av.open(str(tmp_path / "part.mov")) as container:
        assert any(
            packet.pts != packet.dts + packet.duration for packet in container.demux(video=0) if packet.size
        )


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("preset", ["ultrafast", "veryslow"])
def test_no_preset_reorders_more_than_the_clock_allows(tmp_path, codec, preset):
    write_part(tmp_path / "part.mov", frames(40), EncodeSettings(codec=codec, preset=preset), INFO)
    assert [frame.pts for frame in read(tmp_path / "part.mov")] == [1001 * n for n in range(40)]


@pytest.mark.parametrize("codec", CODECS)
def test_the_same_frames_give_the_same_bytes(tmp_path, codec):
    for name in "ab":
        write_part(tmp_path / name, frames(12), settings(codec), INFO)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("tags", [ColorTags(1, 1, 1, 1), ColorTags(6, 6, 6, 1), ColorTags(1, 1, 1, 2),
                                  ColorTags(5, 6, 5, 2), ColorTags(9, 16, 9, 1), ColorTags(9, 18, 9, 1)])  # fmt: skip
def test_colours_and_tags_survive(tmp_path, codec, tags):
    part = tmp_path / "part.mov"
    write_part(part, frames(2), settings(codec, crf=4), replace(INFO, color=tags))
    assert probe(part).color == tags
    assert np.abs(read(part)[0].data.astype(int) - picture(0)).mean() < 2


def test_untagged_colours_are_tagged_with_the_matrix_that_was_used(tmp_path):
    part = tmp_path / "part.mov"
    write_part(part, frames(2), settings(crf=4), replace(INFO, color=ColorTags()))
    assert probe(part).color == ColorTags(matrix=6, range=1)
    assert np.abs(read(part)[0].data.astype(int) - picture(0)).mean() < 2


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_ten_bits_arrive_as_ten_bits(tmp_path, codec):
    ramp = np.linspace(0, 1023, 64).astype(np.uint16)
    data = np.ascontiguousarray(np.broadcast_to(ramp[np.newaxis, :, np.newaxis], (48, 64, 3)))
    part = tmp_path / "part.mov"
    write_part(part, [Frame(data, 10, 0)] * 2, settings(codec, bit_depth=10, crf=4), INFO)
    frame = read(part)[0]
    assert frame.bit_depth == 10
    assert np.abs(frame.data.astype(int) - data).mean() < 4


def test_sixteen_bit_png_is_exact(tmp_path):
    data = np.random.default_rng(0).integers(0, 65536, (48, 64, 3)).astype(np.uint16)
    write_part(tmp_path / "part.mov", [Frame(data, 16, 0)], settings("png", bit_depth=10), INFO)
    (frame,) = read(tmp_path / "part.mov")
    assert frame.bit_depth == 16
    assert np.array_equal(frame.data, data)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (65, 47), (64, 47), (2, 2)])
@pytest.mark.parametrize("bit_depth", [8, 10])
def test_no_pixel_is_cropped(tmp_path, width, height, bit_depth):
    part = tmp_path / "part.mov"
    write_part(part, frames(3, width, height), settings(bit_depth=bit_depth, crf=4), INFO)
    found = read(part)
    assert len(found) == 3
    assert found[0].data.shape == (height, width, 3)
    wide = found[0].data.astype(float) / (2 ** found[0].bit_depth - 1) * 255
    assert np.abs(wide - picture(0, width, height)).mean() < 4


def test_pixels_keep_their_aspect_ratio(tmp_path):
    write_part(
        tmp_path / "part.mov", frames(2), settings(), replace(INFO, sample_aspect_ratio=Fraction(4, 3))
    )
    assert probe(tmp_path / "part.mov").sample_aspect_ratio == Fraction(4, 3)


def test_a_size_that_the_codec_cannot_hold_is_named(tmp_path):
    with pytest.raises(VideoError, match=r"hevc cannot hold frames of 1x1; .*h264"):
        write_part(tmp_path / "part.mov", frames(1, 1, 1), settings("hevc"), INFO)
    assert os.listdir(tmp_path) == []


def test_no_frames_and_mixed_sizes_are_errors_that_leave_nothing(tmp_path):
    with pytest.raises(VideoError, match="at least one frame"):
        write_part(tmp_path / "part.mov", [], settings(), INFO)
    with pytest.raises(VideoError, match="expected frames of 64x48, got 32x24"):
        write_part(tmp_path / "part.mov", frames(2) + frames(1, 32, 24), settings(), INFO)
    assert os.listdir(tmp_path) == []


def test_an_error_of_the_frames_passes_and_leaves_nothing(tmp_path):
    def failing():
        yield from frames(30)
        raise VideoError("source.mp4: gone")

    with pytest.raises(VideoError, match=r"source\.mp4: gone"):
        write_part(tmp_path / "part.mov", failing(), settings(), INFO)
    assert os.listdir(tmp_path) == []


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(VideoError, match=r"missing/part\.mov: cannot write: No such file"):
        write_part(tmp_path / "missing" / "part.mov", frames(1), settings(), INFO)


def test_absurd_settings_are_refused():
    for options in ({"crf": -1}, {"crf": 99}, {"codec": "vp9"}, {"bit_depth": 9}, {"quality": 1}):
        with pytest.raises(ValidationError):
            EncodeSettings(**options)


def test_a_full_disk_names_the_remedy():
    with (
        pytest.raises(VideoError, match=r"out\.mp4: cannot write: No space left on device; free space"),
        writing("out.mp4"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


LIMITED = """
import resource, sys
import numpy as np
from seedvr2.errors import VideoError
from seedvr2.video.frame import Frame
from seedvr2.video.write import EncodeSettings, write_part
from tests.video.clips import INFO
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
noise = np.random.default_rng(0)
frames = (Frame(noise.integers(0, 256, (96, 128, 3), np.uint8), 8, 0) for _ in range(40))
try:
    write_part(sys.argv[1], frames, EncodeSettings(codec=sys.argv[2], crf=1, preset="ultrafast"), INFO)
except VideoError as error:
    print(error)
else:
    print("written")
"""


@pytest.mark.parametrize("codec", CODECS)
def test_a_full_disk_leaves_nothing_behind(tmp_path, codec):
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "part.mov"), codec],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "part.mov: cannot write: File too large; free space" in run.stdout
    assert run.stdout.count("\n") == 1
    assert os.listdir(tmp_path) == []
