"""Atomic replacement of files, also with concurrent writers."""

from __future__ import annotations

from pathlib import Path

import pytest

from sspsam.files import replacing


def test_two_writers_at_once_leave_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    with replacing(path) as one:
        one.write_text("the first half, ")
        with replacing(path) as other:
            other.write_text("other")
        assert path.read_text() == "other"
        with one.open("a") as file:
            file.write("the second half")
    assert path.read_text() == "the first half, the second half"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_text("before")

    def write_half() -> None:
        with replacing(path) as aside:
            aside.write_text("half")
            tmp_path.write_text("a folder cannot be written")

    with pytest.raises(IsADirectoryError):
        write_half()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
