"""`loradex hub serve`: a folder as a Hub, crawled by the program itself."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Program

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.mark.slow
def test_a_served_folder_can_be_crawled(
    root: Path, run: Program, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start("hub", "serve", str(root), "--port", "0") as server:
        assert server.stderr is not None
        assert server.stderr.readline().startswith(f"serving {root} at http://127.0.0.1:")
        name, _, value = server.stderr.readline().removeprefix("export ").strip().partition("=")
        monkeypatch.setenv(name, value)
        crawled = run("crawl", "--any-base", "--weights", "headers")
        server.send_signal(signal.SIGINT)
        printed, message = server.communicate()
    assert name == "HF_ENDPOINT"
    assert crawled.stdout.startswith("complete: 3 repositories listed · new 3\n")
    assert (server.returncode, printed, message) == (0, "", "")


def test_a_port_that_is_taken(root: Path, run: Program) -> None:
    with socket.create_server(("127.0.0.1", 0)) as selected:
        port = str(selected.getsockname()[1])
        result = run("hub", "serve", str(root), "--port", port)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: Cannot serve on 127.0.0.1 port {port} (")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        pytest.param(["{root}/ann/one/README.md"], "is a file", id="a-file"),
        pytest.param(["{root}/nowhere"], "does not exist", id="nothing"),
        pytest.param([], "Missing argument", id="no-folder"),
        pytest.param(["{root}", "--port", "65536"], "is not in the range", id="no-port"),
        pytest.param(["{root}", "--host", "256.1.1.1"], "Cannot serve on 256.1.1.1", id="no-address"),
    ],
)
def test_what_cannot_be_served_is_2(words: list[str], told: str, root: Path, run: Program) -> None:
    result = run("hub", "serve", *(word.format(root=root) for word in words))
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in " ".join(result.stderr.split())
