"""The bulk table: every field of an adapter that is a scalar or a list, for spreadsheets, pandas or DuckDB.

Rows come from column statements in pages, in bounded memory. Writes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from catalog.adapters import Engine, adapter_name, allowed_uses, verdict
from catalog.database import (
    Adapter,
    BaseModelRow,
    Repository,
    WeightsFile,
)
from catalog.query import fold, stored_facts, texts_in
from catalog.search.browse import Listing, list_statement
from catalog.search.rows import read_page_notes

_PAGE = 2000
# The largest numbers that a column holds.
LARGEST = {"number": sys.float_info.max, "whole": 2**63 - 1}
# What a card says of its training, in columns of their own.
TRAINING = {
    "learning_rate": "number",
    "batch_size": "whole",
    "total_batch_size": "whole",
    "gradient_accumulation": "whole",
    "epochs": "number",
    "steps": "whole",
    "warmup_ratio": "number",
    "warmup_steps": "whole",
    "schedule": "text",
    "optimizer": "text",
    "seed": "whole",
    "tool": "text",
    "datasets": "list",
}
# The columns of the table in their order, with the kind of their values.
KINDS: dict[str, str] = {
    **dict.fromkeys(("adapter", "owner", "repository", "hub_id", "subfolder", "commit"), "text"),
    "main": "flag",
    **dict.fromkeys(("base", "base_raw", "base_kind", "base_evidence", "peft_type", "task_type"), "text"),
    "rank": "whole",
    **dict.fromkeys(("alpha", "scaling"), "number"),
    "use_rslora": "flag",
    "targets": "list",
    **dict.fromkeys(("modules", "parameters"), "whole"),
    "dtypes": "list",
    "norm": "number",
    "health": "text",
    "partial": "list",
    "verdict": "text",
    "reasons": "list",
    "license": "text",
    "uses": "list",
    "card_quality": "text",
    **dict.fromkeys(("datasets", "languages"), "list"),
    **{f"training_{name}": kind for name, kind in TRAINING.items()},
    **dict.fromkeys(("downloads", "downloads_all_time", "likes"), "whole"),
    "tags": "list",
    **dict.fromkeys(("library", "pipeline_tag", "gated"), "text"),
    **dict.fromkeys(("disabled", "private"), "flag"),
    **dict.fromkeys(("created", "modified", "first_seen", "last_seen"), "date"),
    **dict.fromkeys(("weights_name", "weights_digest"), "text"),
    "weights_bytes": "whole",
    "tensor_digest": "text",
    **dict.fromkeys(("runs", "runs_unknown", "own_tags"), "list"),
    "note": "text",
    "hidden": "flag",
}
_OF_ADAPTER = (
    *("subfolder", "commit", "main", "base_raw", "base_kind", "base_evidence", "peft_type", "task_type"),
    *("rank", "alpha", "scaling", "use_rslora", "targets", "modules", "parameters", "dtypes", "norm"),
    *("health", "partial", "license", "card_quality", "weights_name", "weights_digest", "training"),
    *("engine_features", "engine_rank", "engine_whole", "engine_version"),
)
_OF_REPOSITORY = (
    *("owner", "hub_id", "downloads", "downloads_all_time", "likes", "tags", "library", "pipeline_tag"),
    *("gated", "disabled", "private", "first_seen", "last_seen"),
)
_COLUMNS: dict[str, Any] = {
    "id": Adapter.id,
    "repository": Repository.name,
    "base": BaseModelRow.canonical,
    "created": Repository.created_at,
    "modified": Repository.last_modified,
    "datasets": Adapter.card_front["datasets"],
    "languages": Adapter.card_front["language"],
    "weights_bytes": WeightsFile.size,
    "tensor_digest": WeightsFile.tensor_digest,
    **{name: getattr(Adapter, name) for name in _OF_ADAPTER},
    **{name: getattr(Repository, name) for name in _OF_REPOSITORY},
}


def table_rows(
    session: Session, listing: Listing, refusing: Collection[str], engines: Sequence[Engine]
) -> Iterator[dict[str, Any]]:
    """The rows of the bulk table of a listing, by the names of `KINDS`."""
    columns = select(*(value.label(name) for name, value in _COLUMNS.items()))
    query = list_statement(columns, listing, refusing)
    query = query.outerjoin(WeightsFile, WeightsFile.digest == Adapter.weights_digest)
    for page in session.execute(query.execution_options(yield_per=_PAGE)).partitions():
        yield from _page_rows(session, page, refusing, engines)


def _page_rows(
    session: Session, page: Sequence[Any], refusing: Collection[str], engines: Sequence[Engine]
) -> Iterator[dict[str, Any]]:
    notes = read_page_notes(session, page)
    for row in page:
        values, place = dict(row._mapping), (row.hub_id, row.subfolder)
        facts, (note, hidden) = stored_facts(row), notes.marks.get(place, (None, False))
        training = values["training"] if isinstance(values["training"], dict) else {}
        verdicts = [(fold(engine.name), verdict(engine, facts).runs) for engine in engines]
        values |= {
            "adapter": adapter_name(row.repository, row.subfolder),
            "verdict": notes.verdict(row.id, refusing),
            "reasons": notes.reasons.get(row.id, []),
            "uses": list(allowed_uses(row.license)),
            "runs": [name for name, runs in verdicts if runs],
            "runs_unknown": [name for name, runs in verdicts if runs is None],
            "own_tags": notes.tags.get(place, []),
            "note": note,
            "hidden": hidden,
            **{f"training_{name}": training.get(name) for name in TRAINING},
        }
        yield {name: _cell(values[name], kind) for name, kind in KINDS.items()}


def _cell(value: Any, kind: str) -> Any:
    """The value as its column has it; what is of another kind in a card is none."""
    if kind == "list":
        return list(texts_in(value))
    if kind in ("number", "whole") and (
        isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > LARGEST[kind]
    ):
        return None
    if kind == "number":
        return float(value)
    if kind == "whole":
        return int(value) if float(value).is_integer() else None
    if kind == "text":
        return value if isinstance(value, str) else None
    return value
