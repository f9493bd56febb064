"""Joined parts are the parts, under the source's times, with the source's sound."""

import os
import subprocess
import sys
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from seedvr2.errors import VideoError
from seedvr2.video.io import open_video, probe, scan
from seedvr2.video.join import join_parts
from seedvr2.video.output import check_output
from seedvr2.video.write import EncodeSettings, write_part
from tests.video.clips import cut, make_clip, packets, picture, pictures

VFR = [0, 40, 50, 130, 131, 200, 333, 334, 400, 900, 940, 980, 1000, 1300, 1301, 1302, 1400, 1500, 1700, 1705]
FAST = EncodeSettings(preset="ultrafast")
B_FRAMES = EncodeSettings(preset="veryfast")


def copy(source, output, settings=B_FRAMES, length=7, **options):
    """Write `source` to `output` through parts of `length` frames; the parts."""
    info, found = probe(source), scan(source)
    settings = check_output(output, info, settings, **options)
    folder = Path(source).parent / "parts"
    folder.mkdir(exist_ok=True)
    parts = []
    for start in range(0, found.frames, length):
        part = folder / f"{start}.mov"
        with open_video(source, start=start, known=found) as frames:
            write_part(part, islice(frames, length), settings, info)
        parts.append(part)
    join_parts(output, parts, source, info, found.pts, settings, **options)
    return parts


def read(path):
    with open_video(path) as source:
        return list(source)


def seconds(path):
    time_base = probe(path).time_base
    return [time * time_base for time in scan(path).pts]


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("times", [None, VFR])
def test_frames_and_times_survive(tmp_path, codec, suffix, times):
    timing = {} if times is None else {"time_base": Fraction(1, 1000), "pts": times}
    source = make_clip(tmp_path / "in.mp4", 20, fps=Fraction(30_000, 1001), **timing)
    output = tmp_path / f"out{suffix}"
    copy(source, output, EncodeSettings(codec=codec, preset="veryfast"))
    expected, found = seconds(source), seconds(output)
    if suffix == ".mkv":
        assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= Fraction(1, 2000)
    else:
        assert found == expected
    assert scan(output).lost == 0
    for number, frame in enumerate(read(output)):
        assert np.abs(frame.data.astype(int) - picture(number)).mean() < 4, number


@pytest.mark.parametrize("length", [1, 2, 3, 5, 20])
def test_joined_parts_decode_to_the_frames_of_the_parts(tmp_path, length):
    source = make_clip(tmp_path / "in.mp4", 20)
    parts = copy(source, tmp_path / "out.mp4", length=length)
    alone = [frame.data for part in parts for frame in read(part)]
    joined = [frame.data for frame in read(tmp_path / "out.mp4")]
    assert all(np.array_equal(a, b) for a, b in zip(alone, joined, strict=True))
    with av.open(str(tmp_path / "out.mp4")) as container:
        found = [(p.dts, p.pts) for p in container.demux(video=0) if p.size]
    assert all(a[0] < b[0] for a, b in pairwise(found))
    assert all(dts <= pts for dts, pts in found)


@pytest.mark.parametrize(
    ("source_name", "output_name", "encoders"),
    [
        ("in.mp4", "out.mp4", ("aac", "aac")),
        ("in.mp4", "out.mov", ("aac",)),
        ("in.mkv", "out.mkv", ("pcm_s16le", "libopus")),
        ("in.mkv", "out.mp4", ("libopus", "flac")),
        ("in.mov", "out.mov", ("pcm_s16le",)),
    ],
)
def test_audio_packets_are_the_same_at_the_same_times(tmp_path, source_name, output_name, encoders):
    source = make_clip(tmp_path / source_name, 24, audio=encoders)
    output = tmp_path / output_name
    copy(source, output)
    assert [stream.codec for stream in probe(output).audio] == [
        stream.codec for stream in probe(source).audio
    ]
    for index in range(len(encoders)):
        expected, found = packets(source, "audio", index), packets(output, "audio", index)
        assert len(expected) > 10
        assert [content for _, _, content in found] == [content for _, _, content in expected]
        assert [time for time, _, _ in found] == pytest.approx([time for time, _, _ in expected], abs=0.0011)
    assert [float(t) for t in seconds(output)] == pytest.approx(
        [float(t) for t in seconds(source)], abs=0.0006
    )


def test_audio_of_mp4_keeps_its_exact_times(tmp_path):
    source = make_clip(tmp_path / "in.mp4", 24, audio=("aac",))
    copy(source, tmp_path / "out.mp4")
    assert packets(source, "audio") == packets(tmp_path / "out.mp4", "audio")
    assert packets(source, "audio")[0][0] < 0  # priming before zero is kept


def test_matroska_moves_sound_and_picture_together(tmp_path):
    source = make_clip(tmp_path / "in.mp4", 24, audio=("aac",))
    copy(source, tmp_path / "out.mkv")
    before = packets(source, "audio")[0][0] - float(seconds(source)[0])
    after = packets(tmp_path / "out.mkv", "audio")[0][0] - float(seconds(tmp_path / "out.mkv")[0])
    assert after == pytest.approx(before, abs=0.0011)


def test_a_transport_stream_starts_at_zero_in_sync(tmp_path):
    source = make_clip(tmp_path / "in.ts", 24, audio=("aac",))
    output = tmp_path / "out.mp4"
    copy(source, output)
    starts = [packets(path, "audio")[0][0] - float(seconds(path)[0]) for path in (source, output)]
    assert min(float(seconds(output)[0]), packets(output, "audio")[0][0]) == 0
    assert starts[0] == pytest.approx(starts[1], abs=1e-4)
    assert len(packets(source, "audio")) == len(packets(output, "audio"))


def test_audio_can_be_left_out(tmp_path):
    source = make_clip(tmp_path / "in.mp4", 6, audio=("aac",))
    copy(source, tmp_path / "out.mp4", audio=False)
    assert probe(tmp_path / "out.mp4").audio == ()


def test_a_cut_source_keeps_what_is_there_in_sync(tmp_path):
    whole = make_clip(
        tmp_path / "whole.mp4", 60, audio=("aac",), container_options={"movflags": "+faststart"}
    )
    source = cut(whole, tmp_path / "in.mp4", 0.6)
    assert scan(source).lost > 0
    copy(source, tmp_path / "out.mp4")
    assert seconds(tmp_path / "out.mp4") == seconds(source)
    found = packets(tmp_path / "out.mp4", "audio")
    assert found == packets(whole, "audio")[: len(found)]
    assert len(found) >= 10


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_the_last_frame_keeps_its_duration(tmp_path, suffix):
    source = tmp_path / f"in{suffix}"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time in enumerate([*VFR, None]):
            frame = None
            if time is not None:
                frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24").reformat(format="yuv420p")
                frame.pts, frame.time_base = time, Fraction(1, 1000)
            for packet in stream.encode(frame):
                packet.duration = 700 if packet.pts == VFR[-1] else 1
                container.mux(packet)
    copy(source, tmp_path / f"out{suffix}")
    assert whole_duration(source) == whole_duration(tmp_path / f"out{suffix}") == pytest.approx(1.705 + 0.7)


def whole_duration(path):
    with av.open(str(path)) as container:
        return container.duration / av.time_base


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_tags_and_aspect_ratio_survive_and_rotation_is_baked_in(tmp_path, suffix):
    source = make_clip(
        tmp_path / "in.mp4",
        4,
        matrix=1,
        range_=1,
        primaries=1,
        transfer=1,
        aspect=Fraction(4, 3),
        rotation=-90,
    )
    output = tmp_path / f"out{suffix}"
    copy(source, output)
    info, written = probe(source), probe(output)
    assert (written.width, written.height, written.rotation) == (48, 64, 0)
    assert written.sample_aspect_ratio == info.sample_aspect_ratio == Fraction(3, 4)
    assert written.color == info.color
    assert np.abs(read(output)[0].data.astype(int) - read(source)[0].data).mean() < 4


def test_hdr_tags_survive(tmp_path):
    source = make_clip(
        tmp_path / "in.mkv",
        3,
        codec="ffv1",
        pixel_format="yuv420p",
        matrix=9,
        range_=1,
        primaries=9,
        transfer=16,
    )
    copy(source, tmp_path / "out.mp4", EncodeSettings(codec="hevc", preset="ultrafast", bit_depth=10))
    assert probe(tmp_path / "out.mp4").color == probe(source).color
    assert probe(tmp_path / "out.mp4").bit_depth == 10


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_the_same_parts_give_the_same_bytes(tmp_path, suffix):
    source = make_clip(tmp_path / "in.mp4", 12, audio=("aac",))
    for name in "ab":
        copy(source, tmp_path / f"{name}{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_an_mp4_can_be_played_while_it_loads(tmp_path):
    copy(make_clip(tmp_path / "in.mp4", 6), tmp_path / "out.mp4", FAST)
    content = (tmp_path / "out.mp4").read_bytes()
    assert content.find(b"moov") < content.find(b"mdat")


def test_a_video_becomes_a_directory_of_pictures(tmp_path):
    source = make_clip(tmp_path / "in.mp4", 12)
    copy(source, f"{tmp_path}/out/")
    assert sorted(os.listdir(tmp_path / "out")) == [f"{n:06d}.png" for n in range(1, 13)]
    pictures_, frames = read(tmp_path / "out"), read(source)
    assert all(np.array_equal(a.data, b.data) for a, b in zip(pictures_, frames, strict=True))


def test_a_shorter_sequence_replaces_a_longer_one_and_leaves_other_files(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "notes.txt").write_text("keep")
    copy(make_clip(tmp_path / "long.mp4", 5), folder / "x-%d.png")
    copy(make_clip(tmp_path / "short.mp4", 3), folder / "x-%d.png", overwrite=True)
    assert sorted(os.listdir(folder)) == ["notes.txt", "x-1.png", "x-2.png", "x-3.png"]


def test_a_sequence_becomes_a_video(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number, data in enumerate(pictures(9)):
        Image.fromarray(data).save(folder / f"{number}.png")
    copy(folder, tmp_path / "out.mp4")
    assert seconds(tmp_path / "out.mp4") == [Fraction(n, 25) for n in range(9)]
    assert np.abs(read(tmp_path / "out.mp4")[8].data.astype(int) - picture(8)).mean() < 4


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_picture_becomes_a_picture(tmp_path, suffix):
    data = picture(0, 65, 47)
    Image.fromarray(data).save(tmp_path / "in.png")
    copy(tmp_path / "in.png", tmp_path / f"out{suffix}")
    found = np.asarray(Image.open(tmp_path / f"out{suffix}").convert("RGB"))
    assert np.abs(found.astype(int) - data).mean() < (2 if suffix != ".png" else 1e-9)


def test_a_sixteen_bit_picture_stays_exact(tmp_path):
    data = np.random.default_rng(0).integers(0, 65536, (48, 64)).astype(np.uint16)
    Image.fromarray(data).save(tmp_path / "in.png")
    copy(tmp_path / "in.png", tmp_path / "out.png", EncodeSettings(bit_depth=10))
    assert np.array_equal(read(tmp_path / "out.png")[0].data[..., 0], data)


def test_a_video_does_not_fit_one_picture(tmp_path):
    source = make_clip(tmp_path / "in.mkv", 3)
    with pytest.raises(VideoError, match="one picture cannot hold"):
        copy(source, tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


def test_parts_that_do_not_fit_leave_nothing_under_the_name(tmp_path):
    source = make_clip(tmp_path / "in.mp4", 12)
    info, found = probe(source), scan(source)
    parts = copy(source, tmp_path / "ok.mp4")
    with pytest.raises(VideoError, match="expected 12 frames in its 1 parts, found 7"):
        join_parts(tmp_path / "out.mp4", parts[:1], source, info, found.pts, B_FRAMES)
    other = parts[1].with_name("other.mov")
    with open_video(source, start=7) as frames:
        write_part(other, frames, FAST, info)
    with pytest.raises(VideoError, match="other settings"):
        join_parts(tmp_path / "out.mp4", [parts[0], other], source, info, found.pts, B_FRAMES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "ok.mp4", "parts"]


def test_an_existing_output_stays_when_joining_fails(tmp_path):
    source = make_clip(tmp_path / "in.mp4", 6)
    parts = copy(source, tmp_path / "out.mp4")
    before = (tmp_path / "out.mp4").read_bytes()
    with pytest.raises(VideoError):
        join_parts(tmp_path / "out.mp4", parts[:0], source, probe(source), (), B_FRAMES, overwrite=True)
    with pytest.raises(VideoError, match="exists already"):
        join_parts(tmp_path / "out.mp4", parts, source, probe(source), scan(source).pts, B_FRAMES)
    assert (tmp_path / "out.mp4").read_bytes() == before


LIMITED = """
import resource, sys
from pathlib import Path
from seedvr2.errors import VideoError
from seedvr2.video.io import probe, scan
from seedvr2.video.join import join_parts
from seedvr2.video.write import EncodeSettings
source, output, *parts = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, 6_000))
try:
    join_parts(output, [Path(p) for p in parts], source, probe(source), scan(source).pts, EncodeSettings(codec="png"))
except VideoError as error:
    print(error)
else:
    print("written")
"""


@pytest.mark.parametrize("name", ["out.mp4", "out.mov", "frames/"])
def test_a_full_disk_leaves_nothing_behind(tmp_path, name):
    rng = np.random.default_rng(0)
    source = make_clip(tmp_path / "in.mp4", frames=[rng.integers(0, 256, (48, 64, 3), np.uint8)] * 6)
    parts = copy(source, tmp_path / "ok.mov", EncodeSettings(codec="png"))
    (tmp_path / "ok.mov").unlink()
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(source), f"{tmp_path}/{name}", *map(str, parts)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "cannot write: File too large; free space" in run.stdout
    assert sorted(os.listdir(tmp_path)) == ["in.mp4", "parts"]
