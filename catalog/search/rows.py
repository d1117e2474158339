"""The current adapters of a catalog as plain values: the data for comparing, drawing and selecting them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, exists
from sqlalchemy.orm import InstrumentedAttribute

from catalog.adapters import adapter_name
from catalog.database import Adapter, AdapterReason, BaseModelRow, Repository, WeightsFile
from catalog.search.vectors import vector_key


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter at its current commit; `id` is its row.

    `partial` are the reasons why its B A is not its whole update; `is_refused`: the rules refuse it.
    The fields of maps (`health`, `library`, `front`) are None if they were not requested.
    """

    id: int
    repository: str
    hub_id: str
    owner: str
    commit: str
    subfolder: str
    base: str | None
    rank: int | None
    alpha: float | None
    scaling: float | None
    use_rslora: bool | None
    targets: Any
    parameters: int | None
    norm: float | None
    license: str | None
    partial: Any
    scaling_pattern: str | None
    weights_digest: str
    weights_name: str | None
    tensor_digest: str | None
    config_digest: str | None
    card_digest: str | None
    health: str | None = None
    library: str | None = None
    front: Any = None
    is_refused: bool = False

    @property
    def adapter(self) -> str:
        """Its short name."""
        return adapter_name(self.repository, self.subfolder)

    @property
    def key(self) -> str:
        """The key of its vectors."""
        return vector_key(self.weights_digest, self.scaling_pattern or "")

    @property
    def datasets(self) -> tuple[str, ...]:
        """The datasets that its card's front matter names."""
        datasets = self.front.get("datasets") if isinstance(self.front, dict) else None
        datasets = [datasets] if isinstance(datasets, str) else datasets
        return tuple(name for name in datasets if isinstance(name, str)) if isinstance(datasets, list) else ()


# In the order of the fields of `StoredAdapter`; those of maps follow.
COLUMNS = (
    Adapter.id,
    Repository.name.label("repository"),
    Repository.hub_id,
    Repository.owner,
    Adapter.commit,
    Adapter.subfolder,
    BaseModelRow.canonical.label("base"),
    Adapter.rank,
    Adapter.alpha,
    Adapter.scaling,
    Adapter.use_rslora,
    Adapter.targets,
    Adapter.parameters,
    Adapter.norm,
    Adapter.license,
    Adapter.partial,
    Adapter.scaling_pattern,
    Adapter.weights_digest,
    Adapter.weights_name,
    WeightsFile.tensor_digest,
    Adapter.config_digest,
    Adapter.card_digest,
)
SHOWN_COLUMNS = (Adapter.health, Repository.library, Adapter.card_front.label("front"))
BY_NAME: tuple[InstrumentedAttribute[Any], ...] = (Repository.name, Repository.hub_id, Adapter.subfolder)


def from_current(columns: Select[Any]) -> Select[Any]:
    """The statement over the current adapters that still exist, with their repository and base model."""
    query = columns.join(Adapter.repository).outerjoin(Adapter.base_model)
    return query.where(Adapter.current, Repository.gone_at.is_(None))


def is_refused(reasons: Collection[str]) -> ColumnElement[bool]:
    """Whether an adapter has one of these reasons."""
    return exists().where(AdapterReason.adapter_id == Adapter.id, AdapterReason.reason.in_(reasons))
