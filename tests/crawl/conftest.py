"""An environment for the Hub's client in which nothing but the local Hub is reachable or remembered."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
