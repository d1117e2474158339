"""A catalog made before all read names of modules in one way: every row stays, nothing stale is paired."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from catalog.adapters import (
    AdapterRecord,
    DocumentRecord,
    FingerprintRecord,
    RepositoryRecord,
    WeightsRecord,
    parse_config,
    scaling_pattern,
)
from catalog.database import opening, store
from catalog.fingerprints import DELTA_SIZE, OUTPUT_SIZE
from catalog.search.likeness import adapters_with_fingerprint
from tests.db import rows

NOW = datetime(2026, 9, 1, tzinfo=UTC)
PREFIX = "base_model.model.model.layers.0."
NAMES = {
    "plain": PREFIX,
    "outside": f"module._orig_mod.{PREFIX}",
    "wrapped": f"{PREFIX}_fsdp_wrapped_module.",
    "repeated": f"base_model.model.model.{PREFIX.removeprefix('base_model.model.')}",
    "moved": "base_model.model.language_model.model.layers.0.",
}
CHANGED = {"wrapped", "repeated", "moved"}


def record(prefix: str, **config: Any) -> AdapterRecord:
    """An adapter that was measured with the names that its file has."""
    shapes = {"A": (2, 4), "B": (4, 2)}
    tensors = {
        f"{prefix}{m}_proj.lora_{s}.weight": np.ones(shapes[s], np.float32) for m in "qv" for s in "AB"
    }
    data = save(tensors)
    digest = hashlib.sha256(data).hexdigest()
    header = data[: 8 + int.from_bytes(data[:8], "little")]
    message = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": "made/x", **config}
    document = DocumentRecord(
        hashlib.sha256(json.dumps(message).encode()).hexdigest(), json.dumps(message).encode()
    )
    first = [
        name.partition("base_model.model.")[2].removesuffix(".lora_A.weight")
        for name in tensors
        if "A" in name
    ]
    pattern = scaling_pattern(first, parse_config(document.content))
    vectors = [np.arange(size, dtype="<f4").tobytes() for size in (16, DELTA_SIZE, OUTPUT_SIZE)]
    result = FingerprintRecord(pattern, 1, *vectors)
    return AdapterRecord(
        commit="c" * 40,
        subfolder="",
        main=True,
        modules=2,
        norm=1.5,
        health="healthy",
        scaling_pattern=pattern,
        config=document,
        weights=WeightsRecord(digest, len(data), header, "e" * 64, (result,)),
    )


def repository(name: str) -> RepositoryRecord:
    facts = dict.fromkeys(RepositoryRecord.__dataclass_fields__)
    names = {"hub_id": name, "name": f"made/{name}", "disabled": False, "private": False, "tags": ()}
    return RepositoryRecord(**{**facts, **names})  # type: ignore[arg-type]


def fill(engine: Engine, result: dict[str, AdapterRecord]) -> None:
    with Session(engine) as session, session.begin():
        store.save_repositories(session, [(repository(name), [item]) for name, item in result.items()], NOW)


@pytest.fixture
def before(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of a catalog of revision 0004."""
    result = {name: record(prefix) for name, prefix in NAMES.items()}
    result["patterned"] = record(NAMES["wrapped"], rank_pattern={"layers.0.q_proj": 2, "x": 1}, lora_alpha=3)
    result["unreadable"] = record(f"{PREFIX}k_")
    broken = result["unreadable"].weights
    assert broken is not None
    result["unreadable"] = replace(result["unreadable"], weights=replace(broken, header=b"\x00\xff"))
    # The columns of later revisions are dropped again.
    fill(engine, result)
    opening.downgrade(engine, "0004")
    return rows.dump(engine)


def test_no_row_is_lost_and_no_fingerprint_changes(engine: Engine, before: dict[str, list[Any]]) -> None:
    opening.upgrade(engine)
    after = rows.dump(engine)
    assert {name: len(result) for name, result in after.items() if name in before} == {
        n: len(result) for n, result in before.items()
    }
    changed = {name for name, result in before.items() if result != after[name]}
    assert changed == {"adapter"}
    assert sorted(after["fingerprint"]) == sorted(before["fingerprint"])


def test_what_was_made_with_other_names_is_not_paired_and_waits(
    engine: Engine, before: dict[str, list[Any]]
) -> None:
    opening.upgrade(engine)
    with Session(engine) as session:
        paired = {row.repository.partition("/")[2] for row in adapters_with_fingerprint(session, ())}
        assert paired == {"plain", "outside", "unreadable"}
        assert store.waiting(session, ()) == len(CHANGED) + 1
        missing = {digest for digest, _, _ in store.without_fingerprint(session)}
    assert len(missing) == len(CHANGED)
    opening.downgrade(engine, "0004")
    opening.upgrade(engine)
    with Session(engine) as session:
        assert store.waiting(session, ()) == len(CHANGED) + 1
