"""An adapter of a catalog as lists show it, and everything known of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from catalog.adapters.engine_rules import EngineVerdict


@dataclass(frozen=True)
class AdapterRow:
    """One adapter of a catalog at its current commit.

    `verdict` and `reasons` say what the rules in use make of it; `partial` lists the reasons for which its
    update is more than scaling * B A. `norm` is the Frobenius norm of that product. None stands for a value
    that the catalog does not hold.
    """

    adapter: str
    commit: str
    base: str | None
    rank: int | None
    alpha: float | None
    scaling: float | None
    targets: Sequence[str] | None
    parameters: int | None
    license: str | None
    verdict: str
    reasons: Sequence[str]
    norm: float | None
    health: str | None
    partial: Sequence[str] | None


@dataclass(frozen=True)
class AdapterDetails(AdapterRow):
    """Everything known of one adapter: its row, its repository, its configuration, files, card and training.

    `details` says what was seen, by reason. `base_raw` is the base model as the adapter spells it.
    """

    hub_id: str
    aliases: Sequence[str]
    created: datetime | None
    modified: datetime | None
    gone: datetime | None
    gated: str | None
    downloads: int | None
    likes: int | None
    tags: Sequence[str] | None
    current: bool
    main: bool
    other_adapters: Sequence[str]
    base_raw: str | None
    base_kind: str | None
    base_evidence: str | None
    peft_type: str | None
    task_type: str | None
    use_rslora: bool | None
    modules: int | None
    dtypes: Sequence[str] | None
    weights: Mapping[str, str | None]
    files: Sequence[Mapping[str, Any]] | None
    card_quality: str | None
    card: str
    training: Mapping[str, Any]
    details: Mapping[str, str]
    runs_in: Sequence[EngineVerdict]
