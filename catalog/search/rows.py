"""The current adapters of a catalog as plain values: the data for comparing, drawing and selecting them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from sqlalchemy import Select

from catalog.adapters import StoredAdapter
from catalog.database import Adapter, BaseModelRow, Repository, WeightsFile

# The fields of `StoredAdapter` that are no columns of its own table.
_ELSEWHERE: dict[str, Any] = {
    "repository": Repository.name,
    "hub_id": Repository.hub_id,
    "owner": Repository.owner,
    "base": BaseModelRow.canonical,
    "tensor_digest": WeightsFile.tensor_digest,
    "library": Repository.library,
    "front": Adapter.card_front,
}
_NAMES = [field.name for field in fields(StoredAdapter)]
_COLUMNS = [
    _ELSEWHERE[name] if name in _ELSEWHERE else getattr(Adapter, name)
    for name in _NAMES[: _NAMES.index("is_refused")]
]
# In the order of the fields of `StoredAdapter`; those of maps follow.
COLUMNS, SHOWN_COLUMNS = _COLUMNS[: _NAMES.index("health")], _COLUMNS[_NAMES.index("health") :]
BY_NAME: tuple[Any, ...] = (Repository.name, Repository.hub_id, Adapter.subfolder)


def from_current(columns: Select[*tuple[Any, ...]]) -> Select[Any]:
    """The statement over the current adapters that still exist, with their repository and base model."""
    query = columns.join(Adapter.repository).outerjoin(Adapter.base_model)
    return query.where(Adapter.current, Repository.gone_at.is_(None))
