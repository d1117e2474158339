"""What engines look at in an adapter: stored by a crawl, filled in for older catalogs, asked by rules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, select, update
from sqlalchemy.orm import Session

import loradex
from catalog.adapters import FACTS_VERSION, count_verdicts, load_engines
from catalog.adapters import Engine as ServingEngine
from catalog.database import (
    Adapter,
    DocumentRow,
    Repository,
    WeightsFile,
    refresh_engine_features,
    remeasurement,
    store,
)
from catalog.database.opening import downgrade, upgrade
from catalog.query import parse
from catalog.search import browse
from tests.crawl.test_run import TINY
from tests.crawling import crawl
from tests.hubs import lora_files, lora_tensors, make_repo, safetensors_bytes
from tests.localhub import FaultHub


def stored(engine: Engine) -> dict[str, tuple[Any, ...]]:
    """The stored features of each repository's adapter."""
    columns = (Adapter.engine_features, Adapter.engine_rank, Adapter.engine_whole, Adapter.engine_version)
    with Session(engine) as session:
        rows = session.execute(select(Repository.name, *columns).join(Adapter.repository))
        return {name: tuple(values) for name, *values in rows}


def computed(engine: Engine) -> dict[str, Any]:
    """The same from the stored configurations and headers; None without a valid configuration."""
    with Session(engine) as session:
        query = select(Repository.name, DocumentRow.content, WeightsFile.header, WeightsFile.size)
        query = query.select_from(Adapter).join(Adapter.repository)
        query = query.outerjoin(DocumentRow, DocumentRow.digest == Adapter.config_digest)
        query = query.outerjoin(WeightsFile, WeightsFile.digest == Adapter.weights_digest)
        rows = session.execute(query)
        return {name: store.engine_facts_of(config, head, size or 0) for name, config, head, size in rows}


def named(engine: Engine, where: str, engines: tuple[ServingEngine, ...] | None = None) -> set[str]:
    with Session(engine) as session:
        query = select(Repository.name).join(Adapter.repository)
        return set(session.scalars(query.where(parse(where, engines=engines).clause(()))))


def put(root: Path, name: str, **config: Any) -> None:
    tensors = safetensors_bytes(lora_tensors(seed=1))
    make_repo(root, name, lora_files(TINY, **config) | {"adapter_model.safetensors": tensors})


def test_a_crawl_stores_what_engines_look_at_and_an_older_catalog_gets_it(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "hub"
    put(root, "ann/one")
    put(root, "bob/dora", use_dora=True)
    put(root, "cat/other", peft_type="LOHA")
    make_repo(root, "dan/broken", lora_files(TINY) | {"adapter_config.json": b"{"})
    with FaultHub(root) as hub:
        crawl(hub.url, engine, tmp_path, weights="headers")
    before = stored(engine)
    assert before["ann/one"][1:] == (4, True, FACTS_VERSION)
    assert "use_dora" in before["bob/dora"][0]
    assert before["dan/broken"] == (None, None, None, FACTS_VERSION)
    expected = {
        name: (None, None, None) if facts is None else (list(facts.features), facts.rank, facts.whole)
        for name, facts in computed(engine).items()
    }
    assert {name: row[:3] for name, row in before.items()} == expected
    with Session(engine) as session:
        counts = count_verdicts(browse.stored_engine_facts(session, None, ()), load_engines())
    assert counts == tuple(loradex.count_engines(root))
    assert named(engine, "runs:peft") == {"ann/one", "bob/dora"}
    assert named(engine, "runs:vllm") == {"ann/one"}
    assert named(engine, "-runs:vllm -runs_unknown:vllm") == {"bob/dora", "cat/other"}
    assert named(engine, "runs_unknown:vllm") == {"dan/broken"}

    downgrade(engine, "0007")
    upgrade(engine)
    assert named(engine, "runs_unknown:vllm") == set(before)
    assert named(engine, "runs:*") == set()
    # Each row is looked at once, however many blocks there are.
    monkeypatch.setattr(remeasurement, "_BATCH", 1)
    asked: list[int] = []

    def note(*call: Any) -> None:
        if "weights_file.header" in call[2]:
            [values] = call[4].compiled_parameters
            asked.append(next(value for name, value in values.items() if name.startswith("id_")))

    event.listen(engine, "before_cursor_execute", note)
    assert (refresh_engine_features(engine), refresh_engine_features(engine)) == (4, 0)
    with Session(engine) as session:
        ids = session.scalars(select(Adapter.id).order_by(Adapter.id)).all()
    assert asked == [0, *ids, 0]
    assert stored(engine) == before


def test_the_filter_follows_the_rules_it_is_asked_with(tmp_path: Path, engine: Engine) -> None:
    put(tmp_path / "hub", "ann/one")
    put(tmp_path / "hub", "bob/dora", use_dora=True)
    with FaultHub(tmp_path / "hub") as hub:
        crawl(hub.url, engine, tmp_path, weights="headers")
    newer = ServingEngine("vllm", "vLLM", "99", "x", (), rank_limit=3)
    assert named(engine, "runs:vllm", (newer,)) == set()
    assert named(engine, "runs:vllm", (replace(newer, rank_limit=4),)) == {"ann/one", "bob/dora"}
    # features of another version of their definition count as not known
    with Session(engine) as session, session.begin():
        session.execute(update(Adapter).values(engine_version=FACTS_VERSION + 1))
    assert named(engine, "runs_unknown:vllm", (newer,)) == {"ann/one", "bob/dora"}
