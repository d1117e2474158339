"""The content-addressed store: a name that is there has exactly those bytes, whatever happened before."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.errors import DamagedFileError, IntegrityError, StorageError
from catalog.files import BlobStore, digest_of, temporary_store

DATA = bytes(range(256)) * 40
SHA = hashlib.sha256(DATA).hexdigest()
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def fill(store: BlobStore, data: bytes = DATA) -> None:
    with store.writer(SHA, len(DATA)) as blob:
        blob.write(data)


def files(store: BlobStore) -> list[str]:
    paths = [path for path in store.root.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return sorted(str(path.relative_to(store.root)) for path in paths)


class BrokenWayError(Exception):
    """What a lost connection raises inside a writer's block."""


def interrupt(store: BlobStore, data: bytes, validator: str | None = None) -> None:
    def begin() -> None:
        with store.writer(SHA, len(DATA)) as blob:
            blob.remember(validator)
            blob.write(data)
            raise BrokenWayError

    with pytest.raises(BrokenWayError):
        begin()


def test_a_blob_is_named_by_its_hash(store: BlobStore) -> None:
    assert not store.has(SHA)
    fill(store)
    assert store.path(SHA) == store.root / SHA[:2] / SHA[2:]
    assert store.path(SHA).read_bytes() == DATA
    assert store.has(SHA)
    assert store.verify(SHA)
    assert files(store) == [f"{SHA[:2]}/{SHA[2:]}"]


def test_a_blob_that_is_there_is_not_written(store: BlobStore) -> None:
    fill(store)
    before = store.path(SHA).stat()
    with store.writer(SHA, len(DATA)) as blob:
        assert blob.present
    assert store.path(SHA).stat() == before


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(DATA[:-1], id="case-35-too-short"),
        pytest.param(b"", id="case-35-nothing"),
        pytest.param(DATA + b"x", id="case-36-too-long"),
        pytest.param(b"x" + DATA[1:], id="case-37-same-size"),
    ],
)
def test_wrong_bytes_leave_nothing(store: BlobStore, data: bytes) -> None:
    with pytest.raises(IntegrityError):
        fill(store, data)
    assert files(store) == []
    fill(store)
    assert store.verify(SHA)


def test_what_arrived_is_continued(store: BlobStore) -> None:
    interrupt(store, DATA[:1000], '"name"')
    assert not store.has(SHA)
    with store.writer(SHA, len(DATA)) as blob:
        assert (blob.resumed, blob.offset, blob.validator) == (1000, 1000, '"name"')
        blob.write(DATA[1000:])
    assert store.verify(SHA)
    assert files(store) == [f"{SHA[:2]}/{SHA[2:]}"]


def test_a_fresh_writer_continues_nothing(store: BlobStore) -> None:
    interrupt(store, b"spoilt", '"name"')
    with store.writer(SHA, len(DATA), fresh=True) as blob:
        assert (blob.resumed, blob.validator) == (0, None)
        blob.write(DATA)
    assert store.verify(SHA)


def test_a_restarted_writer_begins_again(store: BlobStore) -> None:
    interrupt(store, b"spoilt", '"name"')
    with store.writer(SHA, len(DATA)) as blob:
        blob.restart()
        assert (blob.offset, blob.validator) == (0, None)
        blob.write(DATA)
    assert store.verify(SHA)


def test_more_than_there_should_be_is_not_continued(store: BlobStore) -> None:
    interrupt(store, b"")
    (store.root / "partial" / SHA).write_bytes(DATA + b"more")
    with store.writer(SHA, len(DATA)) as blob:
        assert blob.resumed == 0
        blob.write(DATA)
    assert store.verify(SHA)


@given(st.lists(st.integers(0, len(DATA)), max_size=4))
@settings(max_examples=25, deadline=None)
def test_any_interruptions_end_in_the_same_file(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int]
) -> None:
    store = BlobStore(tmp_path_factory.mktemp("blobs"))
    offset = 0
    for stop in sorted(stops):
        interrupt(store, DATA[offset:stop])
        offset = stop
    fill(store, DATA[offset:])
    assert store.path(SHA).read_bytes() == DATA


def test_verify_reads_the_bytes(store: BlobStore) -> None:
    assert not store.verify(SHA)
    fill(store)
    store.path(SHA).write_bytes(b"x" + DATA[1:])
    assert store.has(SHA)
    assert not store.verify(SHA)


def test_remove(store: BlobStore) -> None:
    store.remove(SHA)
    interrupt(store, DATA[:10], '"name"')
    store.remove(SHA)
    assert files(store) == []
    fill(store)
    store.remove(SHA)
    assert files(store) == []


@pytest.mark.parametrize("name", ["../../etc/passwd", "", SHA.upper(), SHA[:-1], f"{SHA}\n", "g" * 64])
def test_case_39_nothing_but_a_hash_is_a_name(store: BlobStore, name: str) -> None:
    for ask in (store.path, store.has, store.verify, store.remove):
        with pytest.raises(ValueError, match="not a sha256"):
            ask(name)
    with pytest.raises(ValueError, match="not a sha256"), store.writer(name, 5):
        pass
    assert not store.root.exists()


# The disk


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_case_46_a_full_disk_shows_no_part(store: BlobStore) -> None:
    interrupt(store, b"")
    assert files(store) == []
    partial = store.root / "partial" / SHA
    partial.symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left"):
        fill(store)
    assert files(store) == []
    fill(store)
    assert store.verify(SHA)


def test_case_46_a_disk_that_fills_up_in_the_middle(tmp_path: Path) -> None:
    program = f"""
import resource
from pathlib import Path
from catalog.files.blobs import BlobStore
from catalog.errors import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
data = bytes(range(256)) * 40
try:
    with BlobStore(Path({str(tmp_path)!r})).writer({SHA!r}, len(data)) as blob:
        for start in range(0, len(data), 100):
            blob.write(data[start:start + 100])
except StorageError as error:
    print(error)
"""
    ended = run(program)
    assert ended.returncode == 0
    assert "Cannot store a file" in ended.stdout
    assert files(BlobStore(tmp_path)) == []


def test_case_46_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("")
    store = BlobStore(tmp_path / "blobs")
    with pytest.raises(StorageError):
        fill(store)
    with pytest.raises(StorageError):
        store.verify(SHA)
    with pytest.raises(StorageError):
        store.remove(SHA)


@pytest.mark.parametrize("taken", ["target", "folder"])
def test_case_46_a_place_that_is_taken(store: BlobStore, taken: str) -> None:
    if taken == "target":
        (store.path(SHA) / "in the way").mkdir(parents=True)
    else:
        store.root.mkdir()
        store.path(SHA).parent.write_text("")
    with pytest.raises(StorageError):
        fill(store)
    assert not store.has(SHA)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="whoever is root may write anywhere")
def test_case_46_a_folder_that_may_not_be_written(store: BlobStore) -> None:
    store.root.mkdir()
    store.root.chmod(0o500)
    with pytest.raises(StorageError, match="Permission denied"):
        fill(store)
    store.root.chmod(0o700)
    assert files(store) == []


# Several at once, and sudden ends


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


KILLED = """
import os
from pathlib import Path
from catalog.files.blobs import BlobStore
data = bytes(range(256)) * 40
def die(*_, **__):
    os._exit(9)
{patch}
with BlobStore(Path({root!r})).writer({sha!r}, len(data)) as blob:
    blob.write(data[blob.offset:{stop}])
    {inside}
"""


@pytest.mark.parametrize(
    ("patch", "stop", "inside", "there"),
    [
        pytest.param("", 5000, "die()", False, id="case-47-in-the-middle"),
        pytest.param("os.fsync = die", len(DATA), "", False, id="case-47-before-the-bytes-are-on-the-disk"),
        pytest.param("Path.replace = die", len(DATA), "", False, id="case-47-between-write-and-rename"),
        pytest.param("os.close = die", len(DATA), "", True, id="case-47-after-the-rename"),
    ],
)
def test_a_killed_writer_leaves_no_bad_blob(
    store: BlobStore, patch: str, stop: int, inside: str, there: bool
) -> None:
    ended = run(KILLED.format(patch=patch, root=str(store.root), sha=SHA, stop=stop, inside=inside))
    assert ended.returncode == 9, ended.stderr
    assert store.has(SHA) is store.verify(SHA) is there
    with store.writer(SHA, len(DATA)) as blob:
        if not blob.present:
            blob.write(DATA[blob.offset :])
    assert store.verify(SHA)
    assert files(store) == [f"{SHA[:2]}/{SHA[2:]}"]


def test_case_48_threads_write_a_blob_once(store: BlobStore) -> None:
    start = threading.Barrier(8)
    written = []

    def work() -> None:
        start.wait(10)
        with store.writer(SHA, len(DATA)) as blob:
            if not blob.present:
                blob.write(DATA)
                written.append(blob)

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(written) == 1
    assert files(store) == [f"{SHA[:2]}/{SHA[2:]}"]


def test_case_48_processes_write_a_blob_once(store: BlobStore) -> None:
    program = f"""
from pathlib import Path
from catalog.files.blobs import BlobStore
data = bytes(range(256)) * 40
input()
with BlobStore(Path({str(store.root)!r})).writer({SHA!r}, len(data)) as blob:
    if not blob.present:
        blob.write(data)
        print("written")
"""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    outputs = [worker.communicate(timeout=60)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert sorted(outputs) == ["", "", "written\n"]
    assert store.verify(SHA)


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The digests of the files of which all bytes were read, in order."""
    result: list[str] = []

    def noting(path: Path) -> str:
        result.append(digest_of(path))
        return result[-1]

    monkeypatch.setattr("catalog.files.verified.digest_of", noting)
    return result


def age(path: Path, seconds: float = 100.0) -> None:
    """Moves the dates of a file back, so that a change now shows; its inode's date stays."""
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def age_blob(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The blob of the store, last changed long ago by the clock of the store."""
    fill(store)
    now = store.path(SHA).stat().st_ctime_ns + 10**10
    monkeypatch.setattr("catalog.files.verified.time.time_ns", lambda: now)
    return store.path(SHA)


def test_a_blob_is_read_once_by_all_processes_until_it_changes(
    store: BlobStore, readings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = age_blob(store, monkeypatch)
    for _ in range(2):
        assert store.path_of(SHA) == path
        assert BlobStore(store.root).path_of(SHA) == path
    assert readings == [SHA]
    age(path)
    assert BlobStore(store.root).path_of(SHA) == path
    assert readings == [SHA, SHA], "a file with other dates was not read again"


def test_a_change_in_place_is_noticed_whatever_was_read_before(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = age_blob(store, monkeypatch)
    assert store.path_of(SHA) == path
    dates = path.stat()
    with path.open("r+b") as file:
        file.write(b"x")
    os.utime(path, ns=(dates.st_atime_ns, dates.st_mtime_ns + 1))
    for item in (store, BlobStore(store.root)):
        with pytest.raises(DamagedFileError, match=r"run `repair_weights\(\)`"):
            item.path_of(SHA)


def test_what_was_read_right_after_a_change_is_not_remembered(store: BlobStore, readings: list[str]) -> None:
    fill(store)
    for _ in range(2):
        BlobStore(store.root).path_of(SHA)
    assert readings == [SHA, SHA]


@pytest.mark.parametrize(
    "line", [b"", b"\xff\n", SHA.encode(), f"{SHA} 1 2\n".encode(), f"{SHA} a b c d\n".encode()]
)
def test_what_makes_no_sense_among_the_remembered_is_passed_over(
    store: BlobStore, readings: list[str], line: bytes
) -> None:
    fill(store)
    (store.root / "verified").mkdir()
    (store.root / "verified" / SHA[:2]).write_bytes(line)
    assert store.path_of(SHA) == store.path(SHA)
    assert readings == [SHA]


def test_a_blob_that_is_not_there_has_no_path(store: BlobStore) -> None:
    assert store.path_of(SHA) is None


def test_files_that_are_deleted_at_once_are_not_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    with temporary_store(tmp_path) as streamed:
        path = streamed.put(b"read once")
        assert (path.read_bytes(), flushed) == (b"read once", [])
        kept = BlobStore(tmp_path / "kept")
        kept.put(b"kept")
        assert len(flushed) == 2, "the bytes, and the name"
        kept.take_over(hashlib.sha256(b"read once").hexdigest(), streamed)
        assert len(flushed) == 4, "it is kept now"
