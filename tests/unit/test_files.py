"""Copies of files."""

from __future__ import annotations

from pathlib import Path

from catalog.files import copy_file


def test_an_edit_in_place_of_a_copy_does_not_reach_what_it_was_made_from(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(range(256)) * 8192)
    target.write_bytes(b"longer" * 1_000_000)
    copy_file(source, target)
    assert target.read_bytes() == source.read_bytes()
    with target.open("r+b") as file:
        file.write(b"edited")
    assert source.read_bytes() == bytes(range(256)) * 8192
