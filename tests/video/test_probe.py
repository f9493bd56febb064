"""What a source is, and one clear line for everything that is none."""

import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from seedvr2.errors import VideoError
from seedvr2.video.frame import ColorTags
from seedvr2.video.probe import probe
from tests.video.clips import cut, make_clip, picture


def png_that_declares(path, width, height):
    Image.fromarray(picture(0)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    path.write_bytes(content)
    return path


def audio_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        frame.sample_rate = 48_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def without_frames(path):
    make_clip(path, 3, container_options={"movflags": "+faststart"})
    content = path.read_bytes()
    path.write_bytes(content[: content.find(b"mdat") + 4])
    return path


def test_a_video_tells_its_facts(tmp_path):
    info = probe(
        make_clip(
            tmp_path / "clip.mp4",
            fps=Fraction(30_000, 1001),
            matrix=1,
            range_=1,
            primaries=1,
            transfer=1,
            aspect=Fraction(4, 3),
            audio=("aac", "aac"),
        )
    )
    assert (info.kind, info.width, info.height, info.codec) == ("video", 64, 48, "h264")
    assert (info.fps, info.frame_count, info.bit_depth) == (Fraction(30_000, 1001), 24, 8)
    assert (info.time_base, info.sample_aspect_ratio) == (Fraction(1, 30_000), Fraction(4, 3))
    assert info.color == ColorTags(1, 1, 1, 1)
    assert [(a.codec, a.channels, a.rate) for a in info.audio] == [("aac", 2, 48_000)] * 2
    assert info.duration == pytest.approx(24 * 1001 / 30_000)
    assert info.rotation == 0


@pytest.mark.parametrize(("degrees", "clockwise"), [(-90, 90), (90, 270), (180, 180)])
def test_a_display_matrix_turns_size_and_aspect_ratio(tmp_path, degrees, clockwise):
    info = probe(make_clip(tmp_path / "clip.mp4", 3, rotation=degrees, aspect=Fraction(4, 3)))
    turned = clockwise != 180
    assert info.rotation == clockwise
    assert (info.width, info.height) == ((48, 64) if turned else (64, 48))
    assert info.sample_aspect_ratio == (Fraction(3, 4) if turned else Fraction(4, 3))


def test_more_than_eight_bits_are_seen(tmp_path):
    clip = make_clip(tmp_path / "clip.mkv", 3, codec="ffv1", pixel_format="yuv420p10le")
    assert probe(clip).bit_depth == 10


def test_a_picture_and_a_directory_of_pictures(tmp_path):
    for number in range(3):
        Image.fromarray(picture(number)).save(tmp_path / f"{number}.png")
    one, many = probe(tmp_path / "1.png"), probe(tmp_path)
    assert (one.kind, one.frame_count, one.codec) == ("picture", 1, "png")
    assert (many.kind, many.frame_count, many.fps) == ("sequence", 3, 25)


def test_a_picture_without_a_suffix_and_a_video_named_like_a_picture(tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / "photo", format="JPEG")
    assert probe(tmp_path / "photo").kind == "picture"
    make_clip(tmp_path / "clip.mp4", 3).rename(tmp_path / "clip.png")
    assert probe(tmp_path / "clip.png").kind == "video"


@pytest.mark.parametrize("name", ["strange: %03d name?.mp4", "-clip.mp4", "concat:a.mp4", "é‰.mp4"])
def test_names_that_mean_something_to_ffmpeg_are_only_names(tmp_path, name):
    make_clip(tmp_path / "clip.mp4", 3).rename(tmp_path / name)
    assert probe(tmp_path / name).frame_count == 3


BAD = {
    "missing": (lambda folder: folder / "missing.mp4", "no such file"),
    "empty file": (lambda folder: _write(folder / "empty.mp4", b""), "empty"),
    "empty picture": (lambda folder: _write(folder / "empty.png", b""), "empty"),
    "noise": (lambda folder: _write(folder / "noise.mp4", bytes(range(7, 250)) * 40), "not a video"),
    "noise picture": (
        lambda folder: _write(folder / "noise.jpg", bytes(range(7, 250)) * 40),
        "not a picture",
    ),
    "text": (lambda folder: _write(folder / "notes.txt", b"hello\n" * 200), "not a video"),
    "ansi art": (lambda folder: _write(folder / "notes.nfo", b"hello\n" * 200), "not a video"),
    "playlist": (
        lambda folder: _write(
            folder / "list.m3u8",
            b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n",
        ),
        "not a video",
    ),
    "audio only": (lambda folder: audio_only(folder / "song.m4a"), "only audio"),
    "without index": (lambda folder: cut(make_clip(folder / "a.mp4"), folder / "cut.mp4", 0.6), "index"),
    "without frames": (lambda folder: without_frames(folder / "clip.mp4"), "no frame"),
    "empty directory": (lambda folder: folder, "found none"),
    "pattern without files": (lambda folder: folder / "x-%06d.png", "found none"),
    "glob without files": (lambda folder: folder / "x*.png", "found none"),
    "huge picture": (lambda folder: png_that_declares(folder / "h.png", 100_000, 100_000), "134217728"),
    "wide picture": (lambda folder: png_that_declares(folder / "w.png", 17_000, 10), "17000x10"),
}


def _write(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_with_the_file_and_the_remedy(tmp_path, case):
    make, reason = BAD[case]
    path = make(tmp_path)
    with pytest.raises(VideoError) as caught:
        probe(path)
    message = str(caught.value)
    assert str(path) in message
    assert reason in message
    assert ";" in message
    assert "\n" not in message


def test_a_video_that_declares_a_huge_size_is_refused_before_it_is_decoded(tmp_path):
    clip = make_clip(tmp_path / "clip.avi", 2, codec="rawvideo", pixel_format="yuv420p")
    content = clip.read_bytes()
    header = content.find(b"strf") + 8
    content = content[: header + 4] + (30_000).to_bytes(4, "little") + content[header + 8 :]
    clip.write_bytes(content)
    with pytest.raises(VideoError, match="30000x48"):
        probe(clip)
