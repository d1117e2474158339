"""The public API on the catalog of the sample Hub, which a process crawls once."""

from __future__ import annotations

from pathlib import Path

import pytest

import loradex


@pytest.fixture
def catalog(sample_data: Path) -> loradex.Catalog:
    """The catalog of the sample Hub, to be read."""
    return loradex.open(sample_data)
