"""The main job in ten lines of Python, against the sample Hub."""

from __future__ import annotations

from pathlib import Path

import pytest

import loradex
from tests.conftest import SAMPLE_HUB
from tests.localhub import FaultHub

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_from_a_crawl_to_a_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with FaultHub(SAMPLE_HUB) as hub, loradex.open("data") as catalog:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        events: list[loradex.ProgressEvent] = []
        report = catalog.crawl(base=BASE, weights="stream", progress=events.append)
        assert report.status == "complete"
        assert events[0].note.startswith(f"Crawling {hub.url} for adapters of {BASE}")
        assert max(event.done or 0 for event in events) == report.repositories_seen
        rows = catalog.adapters("rank:..64 license:mit,apache-2.0", sort="downloads", limit=100)
        assert 0 < len(rows) <= 100
        assert catalog["zoo/banking77"].adapter == "zoo/banking77"
        names, vectors = catalog.fingerprints("output", base=BASE)
        assert len(names) == len(vectors)
        assert len(catalog.similar("zoo/banking77", k=5)) == 5
        assert catalog.search("bank customers", k=10, where="use:commercial", words_only=True)
        assert catalog.duplicates(level="delta")
        assert list(catalog.preview(base=BASE).counts) == ["new", "changed", "unchanged"]
        pool = catalog.select("mine", by="random", k=3, seed=1, controls=True)
        folders = pool.export("out", weights=True)
    merged = loradex.merge(folders, method="svd", rank=16, out="merged")
    assert Path("merged/adapter_model.safetensors").is_file()
    assert merged.folder == Path("merged")
