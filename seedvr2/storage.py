"""Files that appear under their final name only when they are complete.

A run that is killed, or a disk that fills up, leaves either the old state or the new one: content is written
beside the target, flushed to the disk and renamed. Paths are local; object stores commit with one put instead
and get their own branch here.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def write_atomic(path: str | Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its name when the block ends without an error.

    The temporary file exists and is empty when the block starts, and keeps the suffix of `path`. A file that
    was there before is replaced only at the end; after an error the temporary file is gone.

    Args:
        path: The final name; its directory must exist.

    Yields:
        The temporary path, in the same directory.

    Raises:
        OSError: The directory is missing or not writable, or the disk is full.
    """
    target = Path(path)
    temporary = _temporary_name(target)
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _flush(target.parent)


@contextmanager
def write_directory(path: str | Path) -> Iterator[Path]:
    """A temporary directory whose files appear in `path` when the block ends without an error.

    If `path` does not exist, the whole directory is renamed in one step; otherwise its files are moved in one
    by one, each replacing a file of its name in one step.

    Args:
        path: The final directory; its parent must exist.

    Yields:
        The temporary directory: beside `path`, or inside it if it exists.

    Raises:
        OSError: The parent is missing or not writable, `path` is a file, or the disk is full.
    """
    target = Path(path)
    exists = target.exists()
    temporary = _temporary_name(target / "files" if exists else target)
    temporary.mkdir()
    try:
        yield temporary
        files = sorted(temporary.iterdir())
        for file in files:
            _flush(file)
        if exists:
            for file in files:
                file.replace(target / file.name)
            temporary.rmdir()
        else:
            _flush(temporary)
            temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _flush(target if exists else target.parent)


def _temporary_name(target: Path) -> Path:
    return target.with_name(f".seedvr2-{secrets.token_hex(8)}.tmp{target.suffix}")


def _flush(path: Path) -> None:
    """Force a file's content, or a directory's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
