"""Totals, lists and the details of one adapter. Writes nothing.

Whether an adapter is accepted depends on the rule set, so every query takes `refusing`: the reasons for which
the rules refuse (`crawler.crawl.screening`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session

from catalog.adapters import (
    USES,
    AdapterDetails,
    AdapterReference,
    AdapterRow,
    Engine,
    EngineFacts,
    EngineVerdict,
    adapter_name,
    objection,
    verdicts,
)
from catalog.database import (
    Adapter,
    AdapterReason,
    BaseModelRow,
    Crawl,
    Embedding,
    FingerprintRow,
    Repository,
    RepositoryAlias,
    count_rows,
    has_reason,
    retries,
    store,
    waiting,
)
from catalog.errors import NotFoundError, UsageError
from catalog.query import FIELDS, Prefix, Query, fold, query_row, stored_facts, texts_asked
from catalog.search.rows import BY_NAME, from_current, from_visible, read_page_notes

SORTS: dict[str, tuple[ColumnElement[Any], ...]] = {
    "adapter": (),
    "downloads": (Repository.downloads.desc().nulls_last(),),
    "likes": (Repository.likes.desc().nulls_last(),),
    "modified": (Repository.last_modified.desc().nulls_last(),),
    "created": (Repository.created_at.desc().nulls_last(),),
    "rank": (Adapter.rank.desc().nulls_last(),),
    "parameters": (Adapter.parameters.desc().nulls_last(),),
    "norm": (Adapter.norm.desc().nulls_last(),),
}
_PAGE = 2000
# The fields of a row of a list that are columns, and the columns that the others are made from.
_OF_ROW = (
    *("base", "commit", "rank", "alpha", "scaling", "targets", "parameters", "license", "norm", "health"),
    "partial",
)
_LISTED: dict[str, Any] = {
    "id": Adapter.id,
    "repository": Repository.name,
    "hub_id": Repository.hub_id,
    "subfolder": Adapter.subfolder,
    **{name: BaseModelRow.canonical if name == "base" else getattr(Adapter, name) for name in _OF_ROW},
}
# The columns that the details of an adapter have beyond those of its row.
_OF_ADAPTER = ("current", "base_raw", "base_kind", "base_evidence", "files", "training")


@dataclass(frozen=True)
class Listing:
    """Which adapters to list: at the current commit, of repositories that still exist."""

    verdict: str | None = None
    reason: str | None = None
    base: str | None = None
    where: Query | None = None
    sort: str = "adapter"
    count: int | None = None

    def __post_init__(self) -> None:
        if self.sort not in SORTS:
            raise UsageError(f"{self.sort!r} is not a sort order; use one of {', '.join(SORTS)}.")


def list_statement(
    columns: Select[*tuple[Any, ...]], listing: Listing, refusing: Collection[str]
) -> Select[Any]:
    """The statement for some columns of the adapters of a listing, in its order."""
    query = from_visible(columns, listing.where)
    if listing.verdict not in (None, "any"):
        query = query.where(has_reason(refusing) if listing.verdict == "skipped" else ~has_reason(refusing))
    if listing.reason is not None:
        query = query.where(has_reason([listing.reason]))
    if listing.base is not None:
        query = query.where(BaseModelRow.canonical == listing.base)
    if listing.where is not None:
        query = query.where(listing.where.clause(refusing))
    return query.order_by(*SORTS[listing.sort], *BY_NAME).limit(listing.count)


def adapters(session: Session, listing: Listing, refusing: Collection[str]) -> Iterator[AdapterRow]:
    """The rows of a listing, in bounded memory."""
    columns = select(*(value.label(name) for name, value in _LISTED.items()))
    query = list_statement(columns, listing, refusing).execution_options(yield_per=_PAGE)
    for page in session.execute(query).partitions():
        notes = read_page_notes(session, page)
        for row in page:
            place = row.hub_id, row.subfolder
            note, hidden = notes.marks.get(place, (None, False))
            yield AdapterRow(
                adapter=adapter_name(row.repository, row.subfolder),
                verdict=notes.verdict(row.id, refusing),
                reasons=notes.reasons.get(row.id, []),
                own_tags=notes.tags.get(place, []),
                note=note,
                hidden=hidden,
                **{name: getattr(row, name) for name in _OF_ROW},
            )


def find_adapter(session: Session, reference: AdapterReference) -> Adapter:
    """The adapter that a reference means: by default the main one at the current commit.

    An old name of a renamed repository is understood. Raises NotFoundError, and UsageError if the beginning
    of a commit matches several.
    """
    # A union, since neither database looks up both sides of an OR in its index.
    by_name = select(Repository.id).where(Repository.name == reference.name)
    by_alias = select(RepositoryAlias.repository_id).where(RepositoryAlias.name == reference.name)
    query = select(Adapter).join(Adapter.repository).where(Repository.id.in_(by_name.union(by_alias)))
    if reference.commit is None:
        query = query.where(Adapter.current)
    else:
        query = query.where(Adapter.commit.startswith(reference.commit, autoescape=True))
    if reference.subfolder is None:
        query = query.where(Adapter.main)
    else:
        query = query.where(Adapter.subfolder == reference.subfolder)
    rows = session.scalars(
        query.order_by(
            Repository.gone_at.is_(None).desc(), (Repository.name == reference.name).desc(), Adapter.id
        )
    ).all()
    if not rows:
        raise NotFoundError(f"Adapter {reference} not found in the catalog; `adapters()` lists all adapters.")
    if reference.commit is not None and len({row.commit for row in rows}) > 1:
        raise UsageError(f"{reference} matches several commits; give more of its digits.")
    return rows[0]


def details(
    session: Session, adapter: Adapter, refusing: Collection[str], engines: Sequence[Engine]
) -> AdapterDetails:
    """The details of one adapter, with the verdicts of engines."""
    repository, values = adapter.repository, query_row(adapter, refusing)
    other_adapters = session.scalars(
        select(Adapter.subfolder)
        .where(
            Adapter.repository_id == repository.id, Adapter.commit == adapter.commit, Adapter.id != adapter.id
        )
        .order_by(Adapter.subfolder)
    )
    values |= {
        "hub_id": repository.hub_id,
        "aliases": [alias.name for alias in repository.aliases],
        "gone": repository.gone_at,
        "other_adapters": list(other_adapters),
        **{name: getattr(adapter, name) for name in _OF_ADAPTER},
        "card_left_out": adapter.card_left_out,
        "weights": {"name": adapter.weights_name, "digest": adapter.weights_digest},
        "details": {reason.reason: reason.detail for reason in adapter.reasons},
        "runs_in": engine_verdicts(session, adapter, engines),
        "uses": {use: objection(adapter.license, use) for use in USES},
    }
    return AdapterDetails(**{field.name: values[field.name] for field in fields(AdapterDetails)})


def engine_verdicts(
    session: Session, adapter: Adapter, engines: Sequence[Engine]
) -> tuple[EngineVerdict, ...]:
    """Which engines run an adapter, by its stored configuration and header; none if it has no valid one."""
    facts = store.read_facts(session, adapter)
    return () if facts is None else verdicts(facts, engines)


def stored_engine_facts(
    session: Session, where: Query | None, refusing: Collection[str]
) -> Iterator[EngineFacts]:
    """What engines look at in each current adapter that a filter accepts."""
    facts = (Adapter.engine_version, Adapter.engine_features, Adapter.engine_rank, Adapter.engine_whole)
    query = from_current(select(*facts))
    if where is not None:
        query = query.where(where.clause(refusing))
    for row in session.execute(query.execution_options(yield_per=_PAGE)):
        yield stored_facts(row)


def totals(
    session: Session, refusing: Collection[str], unreadable: Collection[str], crawls: int = 5
) -> dict[str, Any]:
    """The content of the catalog, and the newest crawls.

    `waiting` counts the adapters whose factors a crawl that reads weights would read, except those with a
    reason in `unreadable`; `partial` those measured whose factors are not their whole update.
    """
    current = from_current(select(Adapter.id))
    ids = current.subquery()
    count, skipped = count_rows(session, current), count_rows(session, current.where(has_reason(refusing)))
    measured = current.where(Adapter.norm.is_not(None))
    reasons = session.execute(
        select(AdapterReason.reason, func.count())
        .join(ids, ids.c.id == AdapterReason.adapter_id)
        .group_by(AdapterReason.reason)
        .order_by(func.count().desc(), AdapterReason.reason)
    )
    here = select(Repository.id)
    newest = select(Crawl).order_by(Crawl.id.desc()).limit(crawls)
    return {
        "repositories": count_rows(session, here.where(Repository.gone_at.is_(None))),
        "gone": count_rows(session, here.where(Repository.gone_at.is_not(None))),
        "adapters": count,
        "accepted": count - skipped,
        "skipped": skipped,
        "reasons": dict(reasons.all()),
        "fingerprints": count_rows(session, select(FingerprintRow.version)),
        "measured": count_rows(session, measured),
        "partial": count_rows(session, measured.where(FIELDS["partial"].some(lambda name: name != "", ()))),
        "waiting": waiting(session, unreadable),
        "embeddings": count_rows(session, select(Embedding.chunk)),
        "retries": retries.list_retries(session),
        "crawls": [_crawl_row(crawl) for crawl in session.scalars(newest)],
    }


def _crawl_row(crawl: Crawl) -> dict[str, Any]:
    return {
        "id": crawl.id,
        "state": crawl.state.value,
        "started": crawl.started_at,
        "finished": crawl.finished_at,
        "asked": crawl.asked,
        "requests": {"api": crawl.api_requests, "resolver": crawl.resolver_requests},
        "bytes": crawl.bytes,
        "seconds": crawl.seconds,
    }


def refuse_unknown_bases(session: Session, query: Query) -> None:
    """Raises NotFoundError for an unknown base model in a filter, with the nearest names, and UsageError for
    one that is not named by its canonical name.

    An excluded base model (-base:…) may be unknown.
    """
    base_names = [fold(name) for name in store.base_names(session)]
    for term in texts_asked(query, "base"):
        begins = isinstance(term, Prefix)
        if not any(name == term.text or (begins and name.startswith(term.text)) for name in base_names):
            canonical = store.find_base(session, term.text)
            if fold(canonical) != term.text:
                raise UsageError(f"{term.text} is another name of {canonical}; write base:{canonical}.")
