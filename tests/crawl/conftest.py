"""An environment for the Hub's client in which nothing but the local Hub is reachable or remembered."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from crawler.hub import Hub, HubSettings
from tests.client import NAME, TOKEN
from tests.fakes import VirtualClock
from tests.hubs import make_repo
from tests.localhub import FaultHub

OFF = (
    "HF_HUB_DISABLE_XET",
    "HF_HUB_DISABLE_TELEMETRY",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN",
    "HF_HUB_DISABLE_PROGRESS_BARS",
    "HF_HUB_DISABLE_UPDATE_CHECK",
)


@pytest.fixture
def hub_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a subprocess; HF_ENDPOINT is for the test to add.

    It is set in this process as well, but the client reads most of it when it is imported: in this
    process tests name the endpoint, the cache folder and `token=False` themselves.
    """
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name in OFF:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    return dict(os.environ)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of a Hub with one repository, which had another name once."""
    folder = tmp_path / "hub"
    make_repo(folder, NAME, hub={"_id": "0123456789abcdef01234567", "previous_names": ["someone/old"]})
    return folder


@pytest.fixture
def server(root: Path) -> Iterator[FaultHub]:
    """That Hub."""
    with FaultHub(root) as running:
        yield running


@pytest.fixture
def clock() -> VirtualClock:
    """The clock by which the client waits."""
    return VirtualClock()


@pytest.fixture
def hub(server: FaultHub, clock: VirtualClock) -> Iterator[Hub]:
    """A client of it, with a token."""
    with Hub(HubSettings(server.url, token=TOKEN, timeout=5), clock=clock) as opened:
        yield opened
