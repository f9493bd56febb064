"""Pictures as a source: one file, a directory, a numbered pattern or a glob.

Source: EXIF 2.32 for the orientation, ITU-T T.81 for the markers of a JPEG file.
"""

import io
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import av
from PIL import Image, UnidentifiedImageError

from seedvr2.errors import VideoError
from seedvr2.video.frame import Orientation

PICTURE_SUFFIXES = frozenset(
    (".bmp", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)
"""Suffixes taken as pictures in a directory, and read as one picture."""
MAX_SIDE = 16_384
"""Pixels per side that are accepted; a larger declared size is a damaged or hostile file."""
MAX_PIXELS = 2**27
"""Pixels per frame that are accepted: one frame of 16K."""
_NUMBER_PATTERN = re.compile(r"%(?:0(\d+))?d")
_EXIF_ORIENTATION = 274


class Picture(NamedTuple):
    """A decoded picture as it is stored, and how to turn it upright."""

    frame: av.VideoFrame
    orientation: Orientation
    damaged: bool
    """The end of the file is missing; the rest of the picture is filled in."""
    container: str
    codec: str


def list_pictures(path: str | Path) -> tuple[Path, ...] | None:
    """The files of a picture sequence in their order, or None if `path` is a single file.

    Args:
        path: A file; a directory, whose pictures are sorted naturally (2 before 10); a pattern such as
            `shot-%06d.png`, sorted by number, gaps allowed; or a glob.

    Raises:
        VideoError: Nothing there, or no picture in it.
    """
    source = Path(path)
    if source.is_file():
        return None
    if source.is_dir():
        found = [file for file in source.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES]
        wanted = f"a directory with pictures ({', '.join(sorted(PICTURE_SUFFIXES))})"
    elif is_pattern(source):
        found = list(numbered_files(source))
        wanted = "pictures that match the pattern"
    elif any(character in source.name for character in "*?["):
        found = list(source.parent.glob(source.name)) if source.parent.is_dir() else []
        wanted = "pictures that match the pattern"
    else:
        raise VideoError(f"{path}: no such file or directory; check the path")
    files = sorted((file for file in found if file.is_file() and file.name[0] != "."), key=_natural_key)
    if not files:
        raise VideoError(f"{path}: expected {wanted}, found none; check the path")
    return tuple(files)


def numbered_files(pattern: Path) -> list[Path]:
    """Existing files beside `pattern` whose name matches its `%d` or `%06d`; none without a directory."""
    match = _NUMBER_PATTERN.search(pattern.name)
    if match is None or not pattern.parent.is_dir():
        return []
    digits = rf"\d{{{int(match[1])},}}" if match[1] else r"\d+"
    before, after = pattern.name[: match.start()], pattern.name[match.end() :]
    name = re.compile(re.escape(before) + digits + re.escape(after))
    return [file for file in pattern.parent.iterdir() if name.fullmatch(file.name)]


def numbered_name(pattern: Path, number: int) -> str:
    """The file name that `%d` or `%06d` in a pattern's name stands for."""
    return _NUMBER_PATTERN.sub(lambda match: str(number).zfill(int(match[1] or 0)), pattern.name, count=1)


def is_pattern(path: str | Path) -> bool:
    """Whether a name holds `%d` or `%06d`."""
    return _NUMBER_PATTERN.search(Path(path).name) is not None


def read_picture(path: Path) -> Picture:
    """Decode one picture file; the name does not matter, the content does.

    Raises:
        VideoError: Unreadable, empty, no picture, too large, or damaged beyond its first rows.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise VideoError(f"{path}: cannot read: {error.strerror}; check the file") from error
    if not content:
        raise VideoError(f"{path}: the file is empty; replace it")
    orientation = _read_header(path, content)
    try:
        with av.open(io.BytesIO(content), mode="r", metadata_errors="replace") as container:
            frame = next(container.decode(video=0))
            name, codec = container.format.name, container.streams.video[0].codec.canonical_name
    except (av.FFmpegError, IndexError, StopIteration) as error:
        raise VideoError(f"{path}: not a picture that can be decoded; replace or remove the file") from error
    check_size(path, frame.width, frame.height)
    return Picture(frame, orientation, frame.is_corrupt or _is_cut_jpeg(content), name, codec)


def is_picture_format(container: str) -> bool:
    """Whether FFmpeg's container name stands for a single picture."""
    return container == "image2" or container.endswith("_pipe")


def check_size(path: str | Path, width: int, height: int) -> None:
    """Refuse sizes that no real source has.

    Raises:
        VideoError: More than 16384 pixels on a side, or 2^27 in all.
    """
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise VideoError(
            f"{path}: declares {width}x{height} pixels, more than {MAX_SIDE} per side or {MAX_PIXELS} "
            "in all; the file is damaged, or has to be scaled down first"
        )


def _read_header(path: Path, content: bytes) -> Orientation:
    """The EXIF orientation; refuses a huge declared size before anything is decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                check_size(path, *image.size)
                return Orientation.from_exif(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Image.DecompressionBombError as error:
        raise VideoError(
            f"{path}: declares a size of more than {MAX_PIXELS} pixels; "
            "the file is damaged, or has to be scaled down first"
        ) from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return Orientation()


def _is_cut_jpeg(content: bytes) -> bool:
    """Whether a JPEG file has no end marker after its last scan."""
    return content[:2] == b"\xff\xd8" and content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda")


def _natural_key(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Sort key that compares runs of digits as numbers."""
    pieces = re.split(r"(\d+)", path.name.lower())
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in pieces], path.name
