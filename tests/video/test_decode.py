"""Times that rise, and frames that are counted when they are lost."""

import pytest

from seedvr2.errors import VideoError
from seedvr2.video.decode import Timeline
from seedvr2.video.io import open_video, scan
from tests.video.clips import cut, make_clip

FASTSTART = {"movflags": "+faststart"}
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}
GOP = {"g": "12"}


def run(times, step=10, second=1000):
    timeline = Timeline(step, second)
    return [timeline.next(time) for time in times]


def test_rising_times_are_kept():
    assert run([5, 15, 16, 90]) == [5, 15, 16, 90]


def test_missing_times_follow_the_usual_step():
    assert run([None, None, 50, None]) == [0, 10, 50, 60]


def test_a_repeated_or_falling_time_moves_just_past_the_one_before():
    assert run([0, 10, 10, 20, 15, 30]) == [0, 10, 11, 20, 21, 30]


def test_a_clock_that_starts_anew_is_carried_on():
    assert run([5000, 5010, 0, 10, 20]) == [5000, 5010, 5020, 5030, 5040]


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", None),
        ("a.mp4", "libx264", FASTSTART),
        ("a.mp4", "libx264", FRAGMENTED),
        ("a.mkv", "libx264", None),
        ("a.ts", "libx264", None),
        ("a.avi", "mpeg4", None),
        ("a.mpg", "mpeg2video", None),
        ("a.webm", "libvpx", None),
        ("a.webm", "libvpx-vp9", None),
        ("a.mov", "prores_ks", None),
    ],
)
def test_a_whole_file_loses_nothing(tmp_path, name, codec, options):
    pixel_format = "yuv422p10le" if codec == "prores_ks" else "yuv420p"
    clip = make_clip(
        tmp_path / name, 30, codec=codec, pixel_format=pixel_format, options=GOP, container_options=options
    )
    found = scan(clip, strict=True)
    assert (found.frames, found.lost) == (30, 0)
    assert found.keys[0][0] == 0
    assert codec == "libvpx-vp9" or len(found.keys) >= 3


@pytest.mark.parametrize("options", [FASTSTART, FRAGMENTED])
def test_a_cut_mp4_gives_what_is_there_and_counts_the_rest(tmp_path, options):
    clip = make_clip(tmp_path / "a.mp4", 48, options=GOP, container_options=options)
    found = scan(cut(clip, tmp_path / "cut.mp4", 0.6))
    declared = 48 if options is FASTSTART else 36
    assert 10 < found.frames < declared
    assert found.frames + found.lost in (declared, declared + 1)  # one frame may be both seen and damaged
    assert found.keys == ()


def test_a_cut_matroska_file_counts_up_to_its_declared_end(tmp_path):
    clip = make_clip(tmp_path / "a.mkv", 48, options=GOP)
    found = scan(cut(clip, tmp_path / "cut.mkv", 0.6))
    assert 10 < found.frames < 48
    assert found.frames + found.lost in (48, 49)


@pytest.mark.parametrize("fraction", [0.5, 0.57, 0.6, 0.7])
def test_a_cut_transport_stream_counts_frames_that_are_broken_or_left_out(tmp_path, fraction):
    clip = make_clip(tmp_path / "a.ts", 48, options=GOP)
    found = scan(cut(clip, tmp_path / "cut.ts", fraction))
    assert 10 < found.frames < 48
    gaps = [round((b - a) / 3600) - 1 for a, b in zip(found.pts, found.pts[1:], strict=False)]
    assert found.lost >= sum(gaps)


def test_a_hole_in_a_transport_stream_is_counted(tmp_path):
    clip = make_clip(tmp_path / "a.ts", 48, options={"g": "12", "bf": "0"})
    content = clip.read_bytes()
    middle = len(content) // 188 // 2 * 188
    clip.write_bytes(content[:middle] + content[middle + 20 * 188 :])
    found = scan(clip)
    assert found.frames < 48
    assert found.frames + found.lost >= 48


def test_a_hole_in_the_middle_is_passed_over_and_counted(tmp_path):
    clip = make_clip(tmp_path / "a.mp4", 48, codec="mpeg4", options=GOP)
    content = bytearray(clip.read_bytes())
    middle = content.find(b"mdat") + len(content) // 2
    content[middle : middle + 200] = bytes(200)
    clip.write_bytes(content)
    found = scan(clip)
    assert found.lost >= 1
    assert found.frames >= 36
    assert list(found.pts) == sorted(set(found.pts))


def test_strict_makes_a_loss_an_error(tmp_path):
    clip = make_clip(tmp_path / "a.mp4", 48, container_options=FASTSTART)
    broken = cut(clip, tmp_path / "cut.mp4", 0.6)
    with pytest.raises(VideoError, match=r"cut\.mp4: \d+ frames are lost .*--strict"):
        scan(broken, strict=True)
    with pytest.raises(VideoError, match="frames are lost"), open_video(broken, strict=True) as source:
        for _ in source:
            pass


def test_the_reader_counts_what_the_scan_counts(tmp_path):
    clip = make_clip(tmp_path / "a.mp4", 48, container_options=FASTSTART)
    broken = cut(clip, tmp_path / "cut.mp4", 0.6)
    found = scan(broken)
    for known in (None, found):
        with open_video(broken, known=known) as source:
            assert sum(1 for _ in source) == found.frames
            assert source.lost == found.lost
