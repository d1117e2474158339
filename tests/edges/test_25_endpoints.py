"""Row 25: an HF_ENDPOINT that is no URL is one sentence that names it, before anything is sent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from catalog.errors import UsageError
from crawler.hub import HubSettings
from tests.cli.conftest import ROOT, Program
from tests.edges.rows import row
from tests.shared_data import shared

NONE = {
    "http://127.0.0.1:99999": "out of range",
    "http://127.0.0.1:abc": "not a URL",
    "http://127.0.0.1:-1": "not a URL",
    "http://127.0.0.1:0": "its port is 0",
    "http://[::1": "not a URL",
    "http://h:8 0": "a space",
    "http://h\n": "a space",
    "http://h\x01": "control character",
    "": "it is empty",
    "  ": "it is empty",
    "127.0.0.1:8000": "begin with http",
    "hub.example": "begin with http",
    "ftp://hub.example": "begin with http",
    "http://": "its host",
    "http://..": "its host",
    "http://" + "x" * 300: "its host",
    "https://me:secret@hub.example": "a name or a password",
    "https://hub.example/?a=b": "? or #",
}


def start(endpoint: str, *words: str, data: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *words, "--data", str(data)],
        cwd=ROOT,
        env={**os.environ, "HF_ENDPOINT": endpoint},
        capture_output=True,
        text=True,
        check=False,
    )


@shared
@pytest.mark.slow
@pytest.mark.parametrize("words", [("crawl",), ("adapters",)])
def test_the_row(words: tuple[str, ...], data: Path) -> None:
    for endpoint in row("25-endpoints").joinpath("endpoints.txt").read_text().splitlines():
        # A process of its own: huggingface_hub reads the setting when it is imported.
        refused = start(endpoint, *words, data=data)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.startswith(
            "Error: The Hub's endpoint cannot be used, as it is not a URL (Port out of range"
        )
        assert "HF_ENDPOINT" in refused.stderr
        assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("endpoint", NONE)
def test_every_endpoint_that_is_none_is_refused_with_its_reason(
    endpoint: str, run: Program, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    refused = run("crawl", "--any-base")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert NONE[endpoint] in refused.stderr
    assert "HF_ENDPOINT" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert "secret" not in refused.stderr
    with pytest.raises(UsageError, match="HF_ENDPOINT"):
        HubSettings.from_environment()


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://127.0.0.1:8000",
        "https://hub.example/hf/",
        "http://[::1]:8000",
        "http://h_x.local.",
        "http://日本.example",
    ],
)
def test_an_endpoint_that_can_be_used(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert HubSettings.from_environment().endpoint == endpoint.rstrip("/")


def test_a_command_that_needs_no_hub_asks_nothing_of_it(
    run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "hub.example")
    assert run("fields").exit_code == 0
