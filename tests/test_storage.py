"""Files appear complete or not at all."""

import os
import stat
from contextlib import suppress

import pytest

from seedvr2.storage import write_atomic, write_directory


def test_a_file_appears_with_its_content_and_nothing_beside_it(tmp_path):
    target = tmp_path / "result.bin"
    with write_atomic(target) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["result.bin"]


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    target = tmp_path / "result.bin"
    target.write_bytes(b"old")
    with suppress(RuntimeError), write_atomic(target) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["result.bin"]


def test_a_new_file_gets_the_permissions_that_the_process_gives(tmp_path):
    plain, atomic = tmp_path / "plain", tmp_path / "atomic"
    plain.write_bytes(b"")
    with write_atomic(atomic) as temporary:
        temporary.write_bytes(b"")
    assert stat.S_IMODE(atomic.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_the_temporary_file_keeps_the_suffix(tmp_path):
    with write_atomic(tmp_path / "clip.mp4") as temporary:
        assert temporary.suffix == ".mp4"


def test_a_missing_directory_is_an_operating_system_error(tmp_path):
    with pytest.raises(FileNotFoundError), write_atomic(tmp_path / "missing" / "x"):
        raise AssertionError("not reached")


def test_a_name_of_255_bytes_can_be_written(tmp_path):
    target = tmp_path / ("x" * 255)
    with write_atomic(target) as temporary:
        temporary.write_bytes(b"1")
    assert target.read_bytes() == b"1"


def test_a_directory_appears_in_one_step(tmp_path):
    target = tmp_path / "frames"
    with write_directory(target) as temporary:
        (temporary / "1.png").write_bytes(b"1")
        assert not target.exists()
    assert os.listdir(target) == ["1.png"]
    assert os.listdir(tmp_path) == ["frames"]


def test_files_move_into_an_existing_directory_beside_what_is_there(tmp_path):
    (tmp_path / "notes.txt").write_text("keep")
    (tmp_path / "1.png").write_bytes(b"old")
    with write_directory(tmp_path) as temporary:
        (temporary / "1.png").write_bytes(b"new")
        assert (tmp_path / "1.png").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["1.png", "notes.txt"]
    assert (tmp_path / "1.png").read_bytes() == b"new"


def test_an_error_leaves_no_directory(tmp_path):
    with suppress(RuntimeError), write_directory(tmp_path / "frames") as temporary:
        (temporary / "1.png").write_bytes(b"1")
        raise RuntimeError
    assert os.listdir(tmp_path) == []
