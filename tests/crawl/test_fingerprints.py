"""Fingerprints are made while the file is at hand, kept when it is not, and made again when they must be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, delete, select, text, update
from sqlalchemy.orm import Session

from catalog.adapters import read_folder
from catalog.database import Adapter, FingerprintRow, Repository, WeightsFile, make_engine, waiting
from catalog.database.opening import downgrade, upgrade
from catalog.database.remeasurement import Reread, reread
from catalog.files import BlobStore
from catalog.fingerprints import DELTA_SIZE, FINGERPRINT_VERSION, OUTPUT_SIZE, fingerprint
from tests.crawl.test_run import TINY
from tests.crawling import crawl
from tests.hubs import lora_files, lora_tensors, make_repo, safetensors_bytes
from tests.localhub import FaultHub


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """A SQLite catalog."""
    engine = make_engine(f"sqlite:///{tmp_path / 'catalog.db'}")
    upgrade(engine)
    yield engine
    engine.dispose()


def put(root: Path, name: str, tensors: Mapping[str, Any], **config: Any) -> Path:
    """A repository with an adapter of these tensors."""
    files = lora_files(TINY, **config) | {"adapter_model.safetensors": safetensors_bytes(tensors)}
    return make_repo(root, name, files)


def fingerprint_keys(engine: Engine) -> dict[str, list[tuple[str, int]]]:
    """(pattern of scalings, version) of the fingerprints of each repository's adapter."""
    with Session(engine) as session:
        rows = session.execute(
            select(Repository.name, FingerprintRow.scaling_pattern, FingerprintRow.version)
            .join(Adapter, Adapter.repository_id == Repository.id)
            .join(FingerprintRow, FingerprintRow.weights_digest == Adapter.weights_digest)
            .where(Adapter.scaling_pattern == FingerprintRow.scaling_pattern)
            .order_by(Repository.name, FingerprintRow.scaling_pattern)
        )
        result: dict[str, list[tuple[str, int]]] = {}
        for name, pattern, version in rows:
            result.setdefault(name, []).append((pattern, version))
    return result


def test_stream_keeps_the_fingerprint_and_no_file(tmp_path: Path, engine: Engine) -> None:
    folder = put(tmp_path / "hub", "ann/one", lora_tensors(seed=1))
    with FaultHub(tmp_path / "hub") as hub:
        crawl(hub.url, engine, tmp_path, weights="stream")
    local = read_folder(folder)
    expected = fingerprint(local.weights, local.config)
    with Session(engine) as session:
        row = session.scalars(select(FingerprintRow)).one()
        file = session.scalars(select(WeightsFile)).one()
        assert session.scalars(select(Adapter.health)).one() == "healthy"
        assert file.tensor_digest == expected.tensor_digest
        assert not BlobStore(tmp_path / "blobs").has(file.digest)
        assert (len(row.delta), len(row.output)) == (4 * DELTA_SIZE, 4 * OUTPUT_SIZE)
        stored = [np.frombuffer(blob, "<f4") for blob in (row.spectrum, row.delta, row.output)]
    for result, vector in zip(
        stored, (expected.spectrum.ravel(), expected.delta, expected.output), strict=True
    ):
        np.testing.assert_allclose(result, vector, rtol=1e-5, atol=1e-7)


def test_headers_make_no_fingerprint(tmp_path: Path, engine: Engine) -> None:
    put(tmp_path / "hub", "ann/one", lora_tensors())
    with FaultHub(tmp_path / "hub") as hub:
        crawl(hub.url, engine, tmp_path, weights="headers")
    with Session(engine) as session:
        assert session.scalars(select(FingerprintRow)).all() == []
        assert session.scalars(select(Adapter.health)).one() is None
        assert session.scalars(select(Adapter.scaling_pattern)).one() == ""


def test_one_file_has_a_fingerprint_for_each_pattern_of_scalings(tmp_path: Path, engine: Engine) -> None:
    tensors = lora_tensors(seed=2)
    root = tmp_path / "hub"
    put(root, "a/plain", tensors)
    put(root, "b/other-alpha", tensors, lora_alpha=64)
    put(root, "c/pattern", tensors, alpha_pattern={"q_proj": 32})
    put(root, "d/same-relation", tensors, lora_alpha=64, alpha_pattern={"q_proj": 256})
    with FaultHub(root) as hub:
        crawl(hub.url, engine, tmp_path, weights="stream")
        complete = [r for r in hub.log if r.path.endswith(".safetensors") and "range" not in r.headers]
        assert len(complete) <= 2, "the file was fetched for each repository"
        hub.clear()
        crawl(hub.url, engine, tmp_path, weights="stream", full=True)
        assert hub.count("resolver") == 0
    result = fingerprint_keys(engine)
    assert result["a/plain"] == result["b/other-alpha"] == [("", FINGERPRINT_VERSION)]
    [(pattern, _)] = result["c/pattern"]
    assert pattern
    with Session(engine) as session:
        assert len(session.scalars(select(WeightsFile)).all()) == 1
        rows = session.scalars(select(FingerprintRow).order_by(FingerprintRow.scaling_pattern)).all()
        assert len({row.delta for row in rows}) == len(rows) >= 2
        assert len({row.output for row in rows}) == 1


def test_what_an_old_version_made_is_made_again_and_never_mixed(tmp_path: Path, engine: Engine) -> None:
    put(tmp_path / "hub", "ann/one", lora_tensors(seed=3))
    with FaultHub(tmp_path / "hub") as hub:
        crawl(hub.url, engine, tmp_path, weights="stream")
        with engine.begin() as connection:
            connection.execute(text("UPDATE fingerprint SET version = 0"))
        crawl(hub.url, engine, tmp_path, weights="stream", full=True)
        assert fingerprint_keys(engine) == {"ann/one": [("", 0), ("", FINGERPRINT_VERSION)]}
        hub.clear()
        crawl(hub.url, engine, tmp_path, weights="stream", full=True)
        assert hub.count("resolver") == 0


def test_reread_makes_what_is_missing_of_kept_files_without_a_hub(tmp_path: Path, engine: Engine) -> None:
    put(tmp_path / "hub", "ann/one", lora_tensors(seed=3))
    put(tmp_path / "hub", "bob/two", lora_tensors(seed=4))
    with FaultHub(tmp_path / "hub") as hub:
        crawl(hub.url, engine, tmp_path, weights="keep")
    with Session(engine) as session:
        before = {row.weights_digest: row.delta for row in session.scalars(select(FingerprintRow))}
    blobs = BlobStore(tmp_path / "blobs")
    blobs.remove(sorted(before)[0])
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM fingerprint"))
    document: list[tuple[int, int]] = []
    assert reread(engine, blobs, lambda done, total: document.append((done, total))) == Reread(1, 1, 0)
    assert document == [(0, 1), (1, 1)]
    with Session(engine) as session:
        after = {row.weights_digest: row.delta for row in session.scalars(select(FingerprintRow))}
    assert after == {sorted(before)[1]: before[sorted(before)[1]]}
    assert reread(engine, blobs, lambda done, total: None).made == 0


@pytest.mark.parametrize("workers", [1, 4])
def test_the_number_of_workers_changes_no_vector(tmp_path: Path, workers: int) -> None:
    for number in range(5):
        put(tmp_path / "hub", f"o/a{number}", lora_tensors(seed=number, layers=2))
    result = []
    with FaultHub(tmp_path / "hub") as hub:
        for place in ("one", "two"):
            engine = make_engine(f"sqlite:///{tmp_path / place}.db")
            upgrade(engine)
            crawl(hub.url, engine, tmp_path / place, weights="stream", workers=workers)
            with Session(engine) as session:
                rows = session.scalars(select(FingerprintRow).order_by(FingerprintRow.weights_digest))
                result.append([(row.weights_digest, row.spectrum, row.delta, row.output) for row in rows])
            engine.dispose()
    assert len(result[0]) == 5
    assert result[0] == result[1]


def downloads(hub: FaultHub) -> list[str]:
    """The repositories whose weights were fetched whole."""
    complete = [r for r in hub.log if r.path.endswith(".safetensors") and "range" not in r.headers]
    return sorted({"/".join(r.path.split("/")[1:3]) for r in complete})


def test_a_catalog_made_before_keeps_every_fingerprint_and_what_was_refused_is_read(
    tmp_path: Path, engine: Engine
) -> None:
    """Until revision 0003 adapters that the rules refuse were not measured."""
    put(tmp_path / "hub", "ann/one", lora_tensors(seed=1))
    put(tmp_path / "hub", "bob/dora", lora_tensors(seed=2), use_dora=True)
    with FaultHub(tmp_path / "hub") as hub:
        crawl(hub.url, engine, tmp_path, weights="stream")
        with Session(engine) as session, session.begin():
            refused = session.scalars(
                select(Adapter).join(Repository).where(Repository.name == "bob/dora")
            ).one()
            session.execute(
                delete(FingerprintRow).where(FingerprintRow.weights_digest == refused.weights_digest)
            )
            refused.norm = refused.health = None
            session.execute(update(Adapter).values(described_with="by an earlier version"))
        downgrade(engine, "0003")
        upgrade(engine)
        with Session(engine) as session:
            before = {row.weights_digest: bytes(row.delta) for row in session.scalars(select(FingerprintRow))}
            partial = dict(session.execute(select(Repository.name, Adapter.partial).join(Repository)).all())
            assert waiting(session, ()) == 1
        assert (len(before), partial) == (1, {"ann/one": [], "bob/dora": ["use_dora"]})
        hub.clear()
        crawl(hub.url, engine, tmp_path, weights="headers", full=True)
        assert downloads(hub) == []
        crawl(hub.url, engine, tmp_path, weights="stream", full=True)
        assert downloads(hub) == ["bob/dora"]
        hub.clear()
        crawl(hub.url, engine, tmp_path, weights="stream", full=True)
        assert downloads(hub) == []
    with Session(engine) as session:
        after = {row.weights_digest: bytes(row.delta) for row in session.scalars(select(FingerprintRow))}
        assert len(after) == 2
        assert before.items() <= after.items()
        assert waiting(session, ()) == 0


def test_files_of_refused_adapters_are_read_and_not_kept(tmp_path: Path, engine: Engine) -> None:
    put(tmp_path / "hub", "ann/one", lora_tensors(seed=1))
    put(tmp_path / "hub", "bob/dora", lora_tensors(seed=2), use_dora=True)
    put(tmp_path / "hub", "cat/other", lora_tensors(seed=3), peft_type="LOHA")
    blobs = BlobStore(tmp_path / "blobs")
    with FaultHub(tmp_path / "hub") as hub:
        crawl(hub.url, engine, tmp_path, weights="keep")
        assert downloads(hub) == ["ann/one", "bob/dora"]
        with Session(engine) as session:
            rows = session.execute(
                select(Repository.name, Adapter.weights_digest, Adapter.norm).join(Repository)
            )
            result = {name: (digest and blobs.has(digest), norm is not None) for name, digest, norm in rows}
        assert result == {"ann/one": (True, True), "bob/dora": (False, True), "cat/other": (None, False)}
        hub.clear()
        crawl(hub.url, engine, tmp_path, weights="keep", full=True)
        assert downloads(hub) == []
