"""What an output name means, and whether it can be written: asked before hours of work, not after.

A name is a video (`.mp4 .m4v .mov .mkv`), a picture (`.png .jpg .jpeg .webp`), or a sequence of PNG pictures:
a name with `%d` or `%06d`, an existing directory, or a name that ends in a slash.
"""

import io
import os
from pathlib import Path
from typing import Literal

import av

from seedvr2.errors import VideoError
from seedvr2.storage import write_atomic
from seedvr2.video.frame import VideoInfo
from seedvr2.video.pictures import is_pattern, list_pictures, numbered_files
from seedvr2.video.write import EncodeSettings, writing

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""Suffix of a video output -> FFmpeg's name of the container."""
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_NAME_IN_DIRECTORY = "%06d.png"


def output_kind(output: str | Path) -> Literal["video", "picture", "sequence"]:
    """What kind of output a name stands for.

    Raises:
        VideoError: An unknown suffix, or a numbered pattern that is not PNG.
    """
    name, suffix = os.fspath(output), Path(output).suffix.lower()
    if is_pattern(output):
        if suffix != ".png":
            raise VideoError(f"{output}: a numbered sequence is written as .png; rename it")
        return "sequence"
    if name.endswith(("/", os.sep)) or Path(output).is_dir():
        return "sequence"
    if suffix in CONTAINERS:
        return "video"
    if suffix in _PICTURES:
        return "picture"
    known = " ".join((*CONTAINERS, *_PICTURES))
    raise VideoError(
        f"{output}: unknown kind of output {suffix or 'without a suffix'}; "
        f"use one of {known}, a name with %06d.png, or a directory name that ends in a slash"
    )


def sequence_pattern(output: str | Path) -> Path:
    """The path with `%d` or `%06d` under which the pictures of a sequence output appear."""
    path = Path(output)
    return path if is_pattern(path) else path / _NAME_IN_DIRECTORY


def check_output(
    output: str | Path, info: VideoInfo, settings: EncodeSettings, overwrite: bool = False, audio: bool = True
) -> EncodeSettings:
    """Find out before the work whether its result can be written.

    Args:
        output: File, pattern or directory to write.
        info: Facts about the source.
        settings: How to encode.
        overwrite: Whether an existing output may be replaced.
        audio: Whether audio streams are to be copied.

    Returns:
        The settings to encode parts with: `settings`, with codec png for pictures and sequences.

    Raises:
        VideoError: An unknown suffix, a directory that is missing or cannot be written, an output that is the
            source or exists already, a picture from a video, or a codec that the container cannot hold.
    """
    kind = output_kind(output)
    _refuse_source(output, info, kind)
    _refuse_existing(output, kind, overwrite)
    _refuse_unwritable(output, kind)
    if kind == "picture" and info.kind != "picture" and info.frame_count not in (None, 1):
        raise VideoError(
            f"{output}: one picture cannot hold {info.frame_count} frames; "
            "use a name with %06d.png, or a video suffix such as .mp4"
        )
    if kind != "video":
        keeps_depth = kind == "sequence" or Path(output).suffix.lower() == ".png"
        depth = settings.bit_depth if keeps_depth else 8
        return settings.model_copy(update={"codec": "png", "bit_depth": depth})
    _refuse_codecs(output, info, settings, audio)
    return settings


def _refuse_source(output: str | Path, info: VideoInfo, kind: str) -> None:
    source = Path(info.path)
    if kind == "sequence":
        directory = sequence_pattern(output).parent
        sources: tuple[Path, ...] = (source,) if info.kind == "picture" else ()
        if info.kind == "sequence":
            sources = list_pictures(info.path) or ()
        is_source = bool(sources) and directory.is_dir() and directory.samefile(sources[0].parent)
    else:
        is_source = Path(output).exists() and source.exists() and source.samefile(output)
    if is_source:
        raise VideoError(f"{output}: the output is the source {info.path}; choose another name")


def _refuse_existing(output: str | Path, kind: str, overwrite: bool) -> None:
    path = Path(output)
    if kind != "sequence" and path.is_dir():
        raise VideoError(f"{output}: is a directory; choose a file name")
    exists = bool(numbered_files(sequence_pattern(output))) if kind == "sequence" else os.path.lexists(path)
    if exists and not overwrite:
        raise VideoError(f"{output}: exists already; choose another name or pass --overwrite")


def _refuse_unwritable(output: str | Path, kind: str) -> None:
    """Try to create a file where the output will be."""
    directory = Path(output).parent
    if kind == "sequence":
        target = sequence_pattern(output).parent
        directory = target if target.exists() else target.parent
    if not directory.is_dir():
        raise VideoError(f"{output}: no directory {directory}; create it first")
    try:
        with writing(output), write_atomic(directory / "probe"):
            raise _DryRunError
    except _DryRunError:
        return


class _DryRunError(Exception):
    """Ends a trial of writing, so that nothing stays."""


def _refuse_codecs(output: str | Path, info: VideoInfo, settings: EncodeSettings, audio: bool) -> None:
    suffix = Path(output).suffix.lower()
    codecs = [settings.codec, *(stream.codec for stream in info.audio if audio)]
    refused = next((codec for codec in codecs if not _holds(suffix, codec)), None)
    if refused is not None:
        others = " or ".join(s for s in CONTAINERS if all(_holds(s, codec) for codec in codecs))
        choices = [f"use {others}"] if others else []
        choices.append("another codec" if refused == settings.codec else "pass --no-audio")
        raise VideoError(f"{output}: {suffix} cannot hold {refused}; {', or '.join(choices)}")


def _holds(suffix: str, codec: str) -> bool:
    """Whether FFmpeg can put a codec into the container of a suffix."""
    with av.open(io.BytesIO(), mode="w", format=CONTAINERS[suffix]) as container:
        try:
            container.add_mux_stream(codec)
        except ValueError:
            return False
    return True
