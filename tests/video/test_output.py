"""What cannot be written is found out before the work, in one line."""

import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from seedvr2.errors import VideoError
from seedvr2.video.frame import AudioInfo
from seedvr2.video.io import probe
from seedvr2.video.output import check_output, output_kind, sequence_pattern
from seedvr2.video.write import EncodeSettings
from tests.video.clips import INFO, make_clip, picture

H264 = EncodeSettings()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.mp4", "video"),
        ("a.MKV", "video"),
        ("a.mov", "video"),
        ("a.png", "picture"),
        ("a.jpeg", "picture"),
        ("a.webp", "picture"),
        ("frames/", "sequence"),
        ("a-%06d.png", "sequence"),
        ("50%.mp4", "video"),
    ],
)
def test_a_name_tells_its_kind(tmp_path, name, kind):
    assert output_kind(f"{tmp_path}/{name}") == kind


def test_an_existing_directory_is_a_sequence(tmp_path):
    assert output_kind(tmp_path) == "sequence"
    assert sequence_pattern(tmp_path) == tmp_path / "%06d.png"
    assert sequence_pattern(tmp_path / "x%d.png") == tmp_path / "x%d.png"


@pytest.mark.parametrize("name", ["a.webm", "a.avi", "a", "a.%06d.jpg", "a.xyz"])
def test_an_unknown_kind_lists_what_is_known(tmp_path, name):
    with pytest.raises(VideoError, match=r"\.mp4|\.png"):
        check_output(tmp_path / name, INFO, H264)


def test_pictures_and_sequences_are_made_of_png_parts(tmp_path):
    wanted = EncodeSettings(bit_depth=10)
    assert check_output(tmp_path / "a.mp4", INFO, wanted) == wanted
    for name, depth in (("a%d.png", 10), ("a.png", 10), ("a.jpg", 8)):
        found = check_output(tmp_path / name, INFO, wanted)
        assert (found.codec, found.bit_depth) == ("png", depth)


def test_checking_leaves_nothing_behind(tmp_path):
    check_output(tmp_path / "a.mp4", INFO, H264)
    check_output(f"{tmp_path}/frames/", INFO, H264)
    assert os.listdir(tmp_path) == []


def test_an_existing_output_needs_overwrite(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(VideoError, match=r"a\.mp4: exists already; .*--overwrite"):
        check_output(tmp_path / "a.mp4", INFO, H264)
    check_output(tmp_path / "a.mp4", INFO, H264, overwrite=True)


def test_a_directory_with_numbered_pictures_needs_overwrite_and_with_others_does_not(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    check_output(tmp_path, INFO, H264)
    (tmp_path / "000001.png").write_bytes(b"x")
    with pytest.raises(VideoError, match="exists already"):
        check_output(tmp_path, INFO, H264)
    check_output(tmp_path, INFO, H264, overwrite=True)


def test_the_source_is_never_overwritten_by_whatever_name(tmp_path):
    source = make_clip(tmp_path / "a.mp4", 2)
    (tmp_path / "soft.mp4").symlink_to(source)
    (tmp_path / "hard.mp4").hardlink_to(source)
    for name in ("a.mp4", "soft.mp4", "hard.mp4", "../" + tmp_path.name + "/a.mp4"):
        with pytest.raises(VideoError, match="is the source"):
            check_output(tmp_path / name, probe(source), H264, overwrite=True)


def test_a_sequence_is_not_written_over_its_source(tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / "000001.png")
    for output in (tmp_path, tmp_path / "x-%06d.png"):
        with pytest.raises(VideoError, match="is the source"):
            check_output(output, probe(tmp_path), H264, overwrite=True)


def test_a_missing_directory_and_a_file_in_its_place_are_named(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    for name in ("missing/a.mp4", "file/a.mp4", "missing/deeper/%06d.png"):
        with pytest.raises(VideoError, match="no directory"):
            check_output(tmp_path / name, INFO, H264)
    (tmp_path / "a.mp4").mkdir()
    (tmp_path / "a.png").mkdir()
    assert output_kind(tmp_path / "a.png") == "sequence"


def test_a_directory_that_cannot_be_written_is_named():
    with pytest.raises(VideoError, match=r"/proc/a\.mp4: cannot write"):
        check_output("/proc/a.mp4", INFO, H264)


def test_audio_that_the_container_cannot_hold_has_two_remedies(tmp_path):
    info = replace(INFO, audio=(AudioInfo("aac", 2, 48_000), AudioInfo("tta", 2, 48_000)))
    with pytest.raises(VideoError, match=r"\.mp4 cannot hold tta; use \.mkv, or pass --no-audio"):
        check_output(tmp_path / "a.mp4", info, H264)
    check_output(tmp_path / "a.mkv", info, H264)
    check_output(tmp_path / "a.mp4", info, H264, audio=False)


def test_audio_that_no_container_can_hold_has_one_remedy(tmp_path):
    info = replace(INFO, audio=(AudioInfo("unknown", 0, 0),))
    with pytest.raises(VideoError, match=r"\.mkv cannot hold unknown; pass --no-audio"):
        check_output(tmp_path / "a.mkv", info, H264)


def test_lossless_video_goes_into_quicktime(tmp_path):
    with pytest.raises(VideoError, match=r"\.mkv cannot hold png; use .*\.mov, or another codec"):
        check_output(tmp_path / "a.mkv", INFO, EncodeSettings(codec="png"))
    check_output(tmp_path / "a.mov", INFO, EncodeSettings(codec="png"))


def test_one_picture_does_not_hold_a_video(tmp_path):
    with pytest.raises(VideoError, match="cannot hold 24 frames"):
        check_output(tmp_path / "a.png", replace(INFO, frame_count=24), H264)
    check_output(tmp_path / "a.png", replace(INFO, frame_count=1), H264)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "in.jpg")
    check_output(tmp_path / "a.png", probe(tmp_path / "in.jpg"), H264)


def test_a_picture_is_not_restored_into_its_own_directory(tmp_path):
    picture = tmp_path / "000001.png"
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(picture)
    with pytest.raises(VideoError, match="is the source"):
        check_output(f"{tmp_path}/", probe(picture), EncodeSettings(), overwrite=True)
