"""All current adapters as columns, by one statement: what a page or a bulk table shows. Writes nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from catalog.adapters import Engine, EngineFacts, adapter_name, load_engines, verdict
from catalog.database import (
    Adapter,
    AdapterReason,
    Annotation,
    AnnotationTag,
    BaseModelRow,
    ChangeToken,
    Crawl,
    CrawlItem,
    DocumentRow,
    Evaluation,
    Repository,
    SavedPool,
    annotation_store,
    has_reason,
)
from catalog.query import FIELDS, AsciiLower, Query, fold, stored_facts, texts_in
from catalog.search.rows import BY_NAME, from_current, from_visible

_PAGE = 5000
# What is settled without a change is not news.
UNCHANGED = ("unchanged", "pending")
# The keys of `catalog.query.query_row` that are columns of the adapter, and of its repository.
_OF_ADAPTER = (
    *("commit", "rank", "alpha", "scaling", "use_rslora", "targets", "modules", "parameters", "dtypes"),
    *("norm", "health", "partial", "license", "task_type", "peft_type", "card_quality", "main"),
)
_OF_ENGINES = ("engine_features", "engine_rank", "engine_whole", "engine_version")
_OF_REPOSITORY = ("owner", "hub_id", "downloads", "likes", "tags", "library", "gated", "private")
_COLUMNS: dict[str, Any] = {
    "id": Adapter.id,
    "subfolder": Adapter.subfolder,
    "repository": Repository.name,
    "base": BaseModelRow.canonical,
    "created": Repository.created_at,
    "modified": Repository.last_modified,
    "datasets": Adapter.card_front["datasets"],
    "languages": Adapter.card_front["language"],
    **{name: getattr(Adapter, name) for name in (*_OF_ADAPTER, *_OF_ENGINES)},
    **{name: getattr(Repository, name) for name in _OF_REPOSITORY},
}
# Keys of `query_row` that follow from others, or that no list has room for.
DERIVED = frozenset({"name", "uses", "verdict", "card"})


def adapter_columns(
    session: Session,
    *,
    where: Query | None = None,
    refusing: Collection[str] = (),
    public: bool = False,
    notes: bool = True,
    hidden: bool = False,
    engines: Sequence[Engine] | None = None,
) -> dict[str, list[Any]]:
    """The current adapters, sorted by name, as lists of the same length by the keys of `query_row`.

    With the row's `id`, whether its repository is `private`, the names of the engines in `runs` and
    `runs_unknown`, and without what `DERIVED` names.

    Args:
        session: A session on the catalog.
        where: Only those that this filter accepts, judged by the reasons `refusing`.
        refusing: The reasons for which rules refuse.
        public: Whether to leave out repositories that are private or gated.
        notes: Whether to read what the user wrote; without it those columns are empty.
        hidden: Whether to list what the user hid too, as a filter that asks for `hidden` does.
        engines: The rules of engines, by default the program's own.
    """
    columns_of = select(*_COLUMNS.values())
    query = (from_current(columns_of) if hidden else from_visible(columns_of, where)).order_by(*BY_NAME)
    if where is not None:
        query = query.where(where.clause(refusing))
    if public:
        query = query.where(~Repository.private, Repository.gated.is_(None))
    rows = list(session.execute(query.execution_options(yield_per=_PAGE)))
    columns = dict(zip(_COLUMNS, ([*column] for column in zip(*rows, strict=True)), strict=True))
    columns = columns or {name: [] for name in _COLUMNS}
    for name in ("datasets", "languages"):
        columns[name] = [list(texts_in(value)) for value in columns[name]]
    del columns["hub_id"]
    columns["adapter"] = list(map(adapter_name, columns.pop("repository"), columns.pop("subfolder")))
    facts = list(map(stored_facts, rows))
    for name in _OF_ENGINES:
        del columns[name]
    columns |= _engine_columns(facts, load_engines() if engines is None else engines)
    reasons: dict[int, list[str]] = {}
    refusals = select(AdapterReason.adapter_id, AdapterReason.reason).join(
        Adapter, Adapter.id == AdapterReason.adapter_id
    )
    for key, reason in session.execute(refusals.where(Adapter.current).order_by(AdapterReason.position)):
        reasons.setdefault(key, []).append(reason)
    columns["reasons"] = [reasons.get(key, []) for key in columns["id"]]
    columns |= _note_columns(session, [(row.hub_id, row.subfolder) for row in rows], notes=notes)
    return columns


def _note_columns(
    session: Session, places: Sequence[tuple[str, str]], *, notes: bool
) -> dict[str, list[Any]]:
    """What the user wrote about the adapters at these places."""
    written = (
        {(row.hub_id, row.subfolder): row for row in annotation_store.all_notes(session)} if notes else {}
    )
    rows = [written.get(place) for place in places]
    return {
        "own_tags": [[] if row is None else list(row.tags) for row in rows],
        "note": [None if row is None else row.note for row in rows],
        "hidden": [row is not None and row.hidden for row in rows],
    }


def _engine_columns(facts: Sequence[EngineFacts], engines: Sequence[Engine]) -> dict[str, list[Any]]:
    """The names of the engines that run each adapter, and of those of which that is not known."""
    names: dict[EngineFacts, dict[bool | None, list[str]]] = {}
    for row in dict.fromkeys(facts):
        by_verdict = names.setdefault(row, {})
        for engine in engines:
            by_verdict.setdefault(verdict(engine, row).runs, []).append(fold(engine.name))
    return {
        "runs": [names[row].get(True, []) for row in facts],
        "runs_unknown": [names[row].get(None, []) for row in facts],
    }


def listed_fields() -> list[str]:
    """The names of the filter fields whose values `adapter_columns` gives, or from which they follow."""
    keys = {*_COLUMNS, "adapter", "reasons", "own_tags", "note", "hidden", *DERIVED}
    return [name for name, field in FIELDS.items() if field.key in keys or field.kind == "engine"]


def matching_ids(session: Session, where: Query, refusing: Collection[str], *, every: bool) -> set[int]:
    """The rows of the current adapters that a filter accepts, with `every` those that are refused too."""
    query = from_visible(select(Adapter.id), where).where(where.clause(refusing))
    return set(session.scalars(query if every else query.where(~has_reason(refusing))))


def left_out_counts(session: Session) -> dict[str, int]:
    """The numbers of current adapters that `public` leaves out, by the first reason."""
    current = from_current(select(func.count(Adapter.id)))
    private = session.scalar(current.where(Repository.private)) or 0
    gated = session.scalar(current.where(~Repository.private, Repository.gated.is_not(None))) or 0
    return {"private": private, "gated": gated}


def hidden_repositories(session: Session) -> set[str]:
    """The names of the repositories that `public` leaves out."""
    hidden = Repository.private | Repository.gated.is_not(None)
    return set(session.scalars(select(Repository.name).where(hidden)))


def card_source(session: Session, adapter: Adapter) -> str | None:
    """The card of an adapter as it was read, with its mark-up; None where there is none."""
    content = session.scalar(select(DocumentRow.content).where(DocumentRow.digest == adapter.card_digest))
    return None if content is None else content.decode("utf-8", "replace")


def rows_with_word(session: Session, word: str) -> list[int]:
    """The ids of the current adapters whose card contains a text, without regard to the case of A to Z."""
    inside = AsciiLower(Adapter.card_text).contains(fold(word), autoescape=True)
    return list(session.scalars(from_current(select(Adapter.id)).where(inside).order_by(Adapter.id)))


def crawl_rows(session: Session) -> list[dict[str, Any]]:
    """All crawls, the newest first: when, state, cost, what was asked, and how many items ended how."""
    counts: dict[int, dict[str, int]] = {}
    query = select(CrawlItem.crawl_id, CrawlItem.outcome, func.count()).group_by(
        CrawlItem.crawl_id, CrawlItem.outcome
    )
    for crawl, outcome, count in session.execute(query):
        counts.setdefault(crawl, {})[outcome.value] = count
    return [
        {
            "id": crawl.id,
            "state": crawl.state.value,
            "started": crawl.started_at,
            "finished": crawl.finished_at,
            "asked": crawl.asked,
            "requests": {"api": crawl.api_requests, "resolver": crawl.resolver_requests},
            "bytes": crawl.bytes,
            "seconds": crawl.seconds,
            "outcomes": counts.get(crawl.id, {}),
        }
        for crawl in session.scalars(select(Crawl).order_by(Crawl.id.desc()))
    ]


def crawl_news(session: Session, crawl: int) -> Iterator[dict[str, Any]]:
    """The repositories of a crawl that are new, changed, gone, failed or quarantined, in listing order."""
    query = (
        select(CrawlItem.name, CrawlItem.outcome, CrawlItem.error, CrawlItem.detail)
        .where(CrawlItem.crawl_id == crawl, CrawlItem.outcome.not_in(UNCHANGED))
        .order_by(CrawlItem.position)
    )
    for name, outcome, error, detail in session.execute(query):
        yield {"repository": name, "outcome": outcome.value, "error": error, "detail": detail}


def catalog_state(session: Session) -> str:
    """A text that differs where adapters, scores, pools, notes or crawls do: 16 digits of a sha256."""
    repository = (
        *(func.count(), func.max(Repository.last_seen), func.sum(Repository.downloads)),
        *(func.sum(Repository.likes), func.count(Repository.gone_at)),
    )
    crawl = (
        *(func.max(Crawl.id), func.sum(Crawl.api_requests), func.sum(Crawl.resolver_requests)),
        *(func.max(Crawl.finished_at), func.count(Crawl.finished_at)),
    )
    counts = (
        select(*repository).select_from(Repository),
        select(*crawl).select_from(Crawl),
        select(func.count(), func.max(Evaluation.id), func.sum(Evaluation.value)),
    )
    facts: list[Sequence[Any]] = [tuple(session.execute(query).one()) for query in counts]
    facts.append(session.scalars(select(ChangeToken.token).order_by(ChangeToken.topic)).all())
    notes = (
        select(Annotation.hub_id, Annotation.subfolder, Annotation.hidden, Annotation.note),
        select(AnnotationTag.hub_id, AnnotationTag.subfolder, AnnotationTag.tag),
    )
    facts.extend(
        [list(row) for row in session.execute(query.order_by(*query.selected_columns))] for query in notes
    )
    facts.append(session.scalars(select(SavedPool.digest).order_by(SavedPool.name)).all())
    text = json.dumps(facts, default=_text_of)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _text_of(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
