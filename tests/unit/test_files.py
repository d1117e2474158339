"""Copies of files, and temporary folders of processes that were killed."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from catalog.errors import NotFoundError, UsageError
from catalog.files import (
    copy_file,
    read_limited,
    remove_abandoned,
    replace_file,
    replace_folder,
    temporary_folder,
)

# Makes a temporary folder with a file in it, says so, and waits to be killed.
KILLED = """
import sys
from pathlib import Path
from catalog.files.disk import temporary_folder
with temporary_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_bytes(b"half")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def abandoned(tmp_path: Path) -> Path:
    """A temporary folder whose process was killed."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdin=pipe, stdout=pipe, text=True, cwd=Path.cwd()
    ) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().rstrip())
        with temporary_folder(tmp_path) as other:
            assert (folder / "half").is_file(), "a folder in use was removed"
            assert other != folder
        process.kill()
    assert (folder / "half").is_file()
    return folder


def test_an_edit_in_place_of_a_copy_does_not_reach_what_it_was_made_from(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(range(256)) * 8192)
    target.write_bytes(b"longer" * 1_000_000)
    copy_file(source, target)
    assert target.read_bytes() == source.read_bytes()
    with target.open("r+b") as file:
        file.write(b"edited")
    assert source.read_bytes() == bytes(range(256)) * 8192


def test_the_next_start_removes_what_a_killed_process_left(abandoned: Path, tmp_path: Path) -> None:
    with temporary_folder(tmp_path):
        assert not abandoned.exists()
    assert not any(tmp_path.iterdir())


def test_files_of_others_are_left_alone(abandoned: Path, tmp_path: Path) -> None:
    (tmp_path / ".loradex-notes").write_text("a file of the user")
    (tmp_path / "folder").mkdir()
    (tmp_path / ".loradex-link").symlink_to(tmp_path / "folder")
    (tmp_path / "folder" / "file").write_text("of the user")
    remove_abandoned(tmp_path)
    assert not abandoned.exists()
    names = {path.name for path in tmp_path.rglob("*")}
    assert names == {".loradex-notes", ".loradex-link", "folder", "file"}


def test_a_folder_that_was_being_replaced_is_put_back(abandoned: Path, tmp_path: Path) -> None:
    (abandoned / "before" / "result").mkdir(parents=True)
    (abandoned / "before" / "result" / "weights").write_bytes(b"the only copy")
    remove_abandoned(tmp_path)
    assert not abandoned.exists()
    assert (tmp_path / "result" / "weights").read_bytes() == b"the only copy"


def test_a_folder_that_was_replaced_is_not_put_back(abandoned: Path, tmp_path: Path) -> None:
    (abandoned / "before" / "result").mkdir(parents=True)
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "new").touch()
    remove_abandoned(tmp_path)
    assert not abandoned.exists()
    assert [path.name for path in (tmp_path / "result").iterdir()] == ["new"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "target"
    for content in ("first", "second"):
        with temporary_folder(tmp_path) as temporary:
            new = temporary / "new"
            new.mkdir()
            (new / content).touch()
            replace_folder(new, target, temporary)
        assert [path.name for path in target.iterdir()] == [content]
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_is_replaced_by_all_of_its_new_bytes_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in ("first", "second"):
        with replace_file(path) as new:
            new.write_text(content)
        assert path.read_text() == content
    with pytest.raises(OSError), replace_file(path) as new:
        new.mkdir()  # is not a file that could take the place of one
    assert path.read_text() == "second"
    assert list(tmp_path.iterdir()) == [path]


def test_threads_that_begin_at_once_keep_their_folders(tmp_path: Path) -> None:
    wrong: list[str] = []

    def work() -> None:
        for number in range(30):
            with temporary_folder(tmp_path) as folder:
                (folder / "file").write_text(str(number))
                if (folder / "file").read_text() != str(number):
                    wrong.append(str(folder))

    threads = [threading.Thread(target=work) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there is no file without an end")
@pytest.mark.parametrize("file", ["/dev/zero", "long"])
def test_a_file_is_read_to_its_limit_whatever_size_it_states(file: str, tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b"12345")
    path = tmp_path / file
    with pytest.raises(UsageError, match="is too large for a list; give another file"):
        read_limited(path, 4, kind="a list", advice="give a list", error=UsageError)
    assert read_limited(tmp_path / "long", 5, kind="a list", advice="", error=UsageError) == b"12345"


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist; give a list"):
        read_limited(tmp_path / "none", 4, kind="a list", advice="give a list", error=UsageError)
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_limited(tmp_path, 4, kind="a list", advice="give a list", error=UsageError)
