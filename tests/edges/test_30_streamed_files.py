"""Row 30 a: a crawl that streams weights leaves none, however it ends, and touches none that are kept."""

from __future__ import annotations

import hashlib
import signal
from multiprocessing import Pipe
from pathlib import Path

import pytest

from catalog.files import BlobStore, temporary_folder
from cli.app import Exit
from tests.cli.conftest import TINY, Program
from tests.crawl_process import crawl_and_wait_for_weights
from tests.hubs import lora_files, lora_tensors, make_repo, safetensors_bytes
from tests.localhub import FaultHub
from tests.processes import send_signal, start_process, wait_for

CRAWL = ("crawl", "--any-base", "--weights")


def add_adapter(root: Path, name: str) -> bytes:
    """Makes a repository with an adapter of its own below a Hub's folder; its weights."""
    weights = safetensors_bytes(lora_tensors(seed=len(name)))
    make_repo(root, name, lora_files(TINY) | {"adapter_model.safetensors": weights})
    return weights


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder but locks, with its inode and its bytes."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def temporary_folders(data: Path) -> list[Path]:
    """The temporary folders in the data folder."""
    return list(data.glob(".loradex-*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGKILL, -signal.SIGKILL),
        (signal.SIGTERM, Exit.TERMINATED),
        (signal.SIGHUP, Exit.HUNG_UP),
        (signal.SIGINT, Exit.INTERRUPTED),
    ],
)
def test_weights_that_were_being_read_are_gone_after_the_next_crawl(
    hub: FaultHub, run: Program, data: Path, tmp_path: Path, number: int, code: int
) -> None:
    assert run(*CRAWL, "keep").exit_code == 0
    remaining = files(data / "blobs")
    add_adapter(hub.root, "dan/four")
    ours, theirs = Pipe()
    words = ("--data", str(data), *CRAWL, "stream", "--workers", "1")
    process = start_process(crawl_and_wait_for_weights, words, theirs, output=tmp_path / "talk")
    theirs.close()
    place = ours.recv()
    assert place.is_file()
    assert place.is_relative_to(temporary_folders(data)[0])
    send_signal(process, number)
    ours.close()
    assert wait_for(process) == code
    talk = (tmp_path / "talk").read_text()
    assert ("run the same command again" in talk) == (number != signal.SIGKILL)
    assert bool(temporary_folders(data)) == (number == signal.SIGKILL)
    assert files(data / "blobs") == remaining, "a streamed file lies among those that are kept"
    assert run(*CRAWL, "stream").exit_code == 0
    assert not temporary_folders(data)
    assert files(data / "blobs") == remaining
    assert run("show", "dan/four", "--json").exit_code == 0


def test_a_folder_in_use_survives_the_start_of_another_crawl(hub: FaultHub, run: Program, data: Path) -> None:
    data.mkdir()
    with temporary_folder(data) as folder:
        (folder / "streaming").write_bytes(b"half a file")
        assert run(*CRAWL, "stream").exit_code == 0
        assert (folder / "streaming").is_file()
    assert not temporary_folders(data)


def test_a_file_that_is_kept_is_read_there_and_stays(hub: FaultHub, run: Program, data: Path) -> None:
    weights = add_adapter(hub.root, "dan/four")
    sha256 = hashlib.sha256(weights).hexdigest()
    blobs = BlobStore(data / "blobs")
    with blobs.writer(sha256, len(weights)) as blob:
        blob.write(weights)
    assert run(*CRAWL, "stream").exit_code == 0
    assert blobs.verify(sha256)
    requests = [item for item in hub.log if "four" in item.path and item.path.endswith(".safetensors")]
    assert requests
    assert all(request.headers.get("range") for request in requests), "fetched though it is kept"


def test_a_kept_file_with_other_bytes_is_not_measured_and_not_deleted(
    hub: FaultHub, run: Program, data: Path
) -> None:
    weights = add_adapter(hub.root, "dan/four")
    sha256 = hashlib.sha256(weights).hexdigest()
    blobs = BlobStore(data / "blobs")
    blobs.path(sha256).parent.mkdir(parents=True)
    blobs.path(sha256).write_bytes(weights[:-1] + b"x")
    result = run(*CRAWL, "keep", "--json")
    assert result.exit_code == 0
    assert "loradex blobs repair" in result.stderr
    assert blobs.path(sha256).read_bytes() == weights[:-1] + b"x"
    output = run("show", "dan/four", "--json")
    assert '"health": "healthy"' in output.stdout
