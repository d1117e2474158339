"""All current adapters as columns, by one statement: what a page or a bulk table shows. Writes nothing."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

from sqlalchemy import Text, cast, func, select
from sqlalchemy.orm import Session

from catalog.adapters import AdapterNotes, Engine, EngineFacts, adapter_name, load_engines, verdict
from catalog.database import (
    Adapter,
    AdapterReason,
    Annotation,
    AnnotationTag,
    BaseModelRow,
    CleanJSON,
    Crawl,
    CrawlItem,
    DocumentRow,
    Repository,
    RepositoryAlias,
    SavedPool,
    annotation_store,
    has_reason,
    read_token,
)
from catalog.query import FIELDS, AsciiLower, Query, fold, stored_facts, texts_in
from catalog.search.rows import BY_NAME, from_current, from_visible, matching

_PAGE = 5000
# Parts of names and addresses in a text: any two that follow one another may be the name of a repository.
_PARTS = re.compile(r"[\w.-]+(?:/+[\w.-]+)+")
_PUNCTUATION = ".-_"
# What is settled without a change is not news.
UNCHANGED = ("unchanged", "pending")
# The keys of `catalog.query.query_row` that are columns of the adapter, and of its repository.
_OF_ADAPTER = (
    *("commit", "rank", "alpha", "scaling", "use_rslora", "targets", "modules", "parameters", "dtypes"),
    *("norm", "health", "partial", "license", "task_type", "peft_type", "card_quality", "main"),
)
_OF_ENGINES = ("engine_features", "engine_rank", "engine_whole", "engine_version")
_OF_REPOSITORY = ("owner", "downloads", "likes", "tags", "library", "gated", "private")
_OF_CARD = {"datasets": "datasets", "languages": "language"}
_COLUMNS: dict[str, Any] = {
    "id": Adapter.id,
    "subfolder": Adapter.subfolder,
    "repository": Repository.name,
    "base": BaseModelRow.canonical,
    "created": Repository.created_at,
    "modified": Repository.last_modified,
    **{name: Adapter.card_front[key] for name, key in _OF_CARD.items()},
    **{name: getattr(Adapter, name) for name in (*_OF_ADAPTER, *_OF_ENGINES)},
    **{name: getattr(Repository, name) for name in _OF_REPOSITORY},
}
# Columns of JSON are read as text: their few different values are decoded once each.
_OF_JSON = tuple(name for name, column in _COLUMNS.items() if isinstance(column.type, CleanJSON))
# Columns of what the user wrote.
OWN_COLUMNS = ("own_tags", "note", "hidden")
# Keys of `query_row` that follow from others, or that no list has room for.
DERIVED = frozenset({"name", "uses", "verdict", "card"})


def adapter_columns(
    session: Session,
    *,
    where: Query | None = None,
    refusing: Collection[str] = (),
    public: bool = False,
    hidden: bool = False,
    engines: Sequence[Engine] | None = None,
) -> dict[str, list[Any]]:
    """The current adapters, sorted by name, as lists of the same length by the keys of `query_row`.

    With the row's `id`, whether its repository is `private`, the names of the engines in `runs` and
    `runs_unknown`, and without what `DERIVED` and `OWN_COLUMNS` name.

    Args:
        session: A session on the catalog.
        where: Only those that this filter accepts, judged by the reasons `refusing`.
        refusing: The reasons for which rules refuse.
        public: Whether to leave out repositories that are private or gated.
        hidden: Whether to list what the user hid too, as a filter that asks for `hidden` does.
        engines: The rules of engines, by default the program's own.
    """
    texts = {name: cast(_COLUMNS[name], Text) for name in _OF_JSON}
    columns_of = select(*(texts.get(name, column).label(name) for name, column in _COLUMNS.items()))
    query = (from_current(columns_of) if hidden else from_visible(columns_of, where)).order_by(*BY_NAME)
    if where is not None:
        query = query.where(where.clause(refusing))
    if public:
        query = query.where(~Repository.private, Repository.gated.is_(None))
    rows = list(session.execute(query.execution_options(yield_per=_PAGE)))
    facts = _stored_facts(rows)
    values = zip(*rows, strict=True) if rows else ((),) * len(_COLUMNS)
    columns = {name: [*column] for name, column in zip(_COLUMNS, values, strict=True)}
    for name in _OF_JSON:
        columns[name] = _decoded(columns[name], _json_texts if name in _OF_CARD else json.loads)
    columns["adapter"] = list(map(adapter_name, columns.pop("repository"), columns.pop("subfolder")))
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
    return columns


def _decoded(texts: Sequence[str | None], read: Callable[[str], Any]) -> list[Any]:
    """The values of a column of JSON; equal ones are one object."""
    values = {text: read("null" if text is None else text) for text in dict.fromkeys(texts)}
    return [values[text] for text in texts]


def _json_texts(text: str) -> list[str]:
    return list(texts_in(json.loads(text)))


def _stored_facts(rows: Sequence[Any]) -> list[EngineFacts]:
    """What is stored for engines of each row; equal ones are one object."""
    keys = [tuple(getattr(row, name) for name in _OF_ENGINES) for row in rows]
    facts = {}
    for key in dict.fromkeys(keys):
        values = dict(zip(_OF_ENGINES, key, strict=True))
        if (features := values["engine_features"]) is not None:
            values["engine_features"] = json.loads(features)
        facts[key] = stored_facts(SimpleNamespace(**values))
    return [facts[key] for key in keys]


def note_columns(session: Session, ids: Sequence[int], *, notes: bool = True) -> dict[str, list[Any]]:
    """What the user wrote about the adapters of these rows, as lists in their order by `OWN_COLUMNS`; without
    `notes` nothing.
    """
    stored = annotation_store.all_notes(session) if notes else ()
    written = {(row.hub_id, row.subfolder): row for row in stored}
    by_id: dict[int, AdapterNotes] = {}
    if written:
        places = select(Adapter.id, Repository.hub_id, Adapter.subfolder).join(Adapter.repository)
        for id_, hub_id, subfolder in session.execute(places.where(Adapter.current)):
            if row := written.get((hub_id, subfolder)):
                by_id[id_] = row
    rows = [by_id.get(id_) for id_ in ids]
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
    keys = {*_COLUMNS, "adapter", "reasons", *OWN_COLUMNS, *DERIVED}
    return [name for name, field in FIELDS.items() if field.key in keys or field.kind == "engine"]


def matching_ids(
    session: Session,
    where: Query,
    refusing: Collection[str],
    among: Collection[int] | None = None,
    *,
    every: bool,
) -> set[int]:
    """The rows of the current adapters that a filter accepts, of all or of some; with `every` those that are
    refused too.
    """
    query = from_visible(select(Adapter.id), where).where(where.clause(refusing))
    return matching(session, query if every else query.where(~has_reason(refusing)), among)


def left_out_counts(session: Session) -> dict[str, int]:
    """The numbers of current adapters that `public` leaves out, by the first reason."""
    current = from_current(select(func.count(Adapter.id)))
    private = session.scalar(current.where(Repository.private)) or 0
    gated = session.scalar(current.where(~Repository.private, Repository.gated.is_not(None))) or 0
    return {"private": private, "gated": gated}


@dataclass(frozen=True)
class ChosenNames:
    """The names, earlier ones too, of some adapters of a catalog and of all others: what may be told of where
    only the chosen ones are shown.

    `repositories` have one of them, `others` are adapters that are none of them.
    """

    repositories: frozenset[str]
    others: frozenset[str]

    def has(self, subject: str) -> bool:
        """Whether a repository, or an adapter at any commit, is one of them."""
        repository, _, folder = subject.partition(":")
        repository = repository.partition("@")[0]
        return repository in self.repositories and adapter_name(repository, folder) not in self.others

    def names_others(self, text: str) -> bool:
        """Whether a text has the name of another one, in letters of any case, alone or within an address."""
        for spelling in {text, unquote(text)}:
            folded = fold(spelling)
            if not self._other_repositories.isdisjoint(_possible_names(folded)):
                return True
            if any(name in folded for name in self._other_folders):
                return True
        return False

    @cached_property
    def _other_repositories(self) -> frozenset[str]:
        names = {name.partition(":")[0] for name in self.others} - self.repositories
        return frozenset(map(fold, names))

    @cached_property
    def _other_folders(self) -> frozenset[str]:
        """Folders of chosen repositories; those of others are named with their repositories."""
        names = (name for name in self.others if ":" in name)
        return frozenset(fold(name) for name in names if name.partition(":")[0] in self.repositories)


def _possible_names(text: str) -> Iterator[str]:
    """Every two parts of a text that a slash divides, with and without punctuation around them."""
    for match in _PARTS.finditer(text):
        for owner, name in pairwise(re.split("/+", match[0])):
            for one in (owner, owner.lstrip(_PUNCTUATION)):
                yield f"{one}/{name}"
                yield f"{one}/{name.rstrip(_PUNCTUATION)}"


def chosen_names(session: Session, ids: Collection[int]) -> ChosenNames:
    """The names of the adapters of these rows, and of all others of the catalog."""
    aliases: dict[int, list[str]] = {}
    for key, alias in session.execute(select(RepositoryAlias.repository_id, RepositoryAlias.name)):
        aliases.setdefault(key, []).append(alias)
    query = select(Adapter.id, Adapter.subfolder, Repository.id, Repository.name).join(Adapter.repository)
    chosen, names, every = set(ids), set[str](), set[str]()
    repositories = set[str]()
    for id_, subfolder, key, name in session.execute(query.execution_options(yield_per=_PAGE)):
        here = [name, *aliases.get(key, ())]
        every.update(adapter_name(one, subfolder) for one in here)
        if id_ in chosen:
            names.update(adapter_name(one, subfolder) for one in here)
            repositories.update(here)
    unread = select(Repository.name).where(~Repository.adapters.any())
    every.update(session.scalars(unread))
    return ChosenNames(frozenset(repositories), frozenset(every - names))


def card_source(session: Session, adapter: Adapter) -> str | None:
    """The card of an adapter as it was read, with its mark-up; None where there is none."""
    content = session.scalar(select(DocumentRow.content).where(DocumentRow.digest == adapter.card_digest))
    return None if content is None else content.decode("utf-8", "replace")


def rows_with_word(session: Session, word: str) -> list[int]:
    """The ids of the current adapters whose card contains a text, without regard to the case of A to Z."""
    inside = AsciiLower(Adapter.card_text).contains(fold(word), autoescape=True)
    return list(session.scalars(from_current(select(Adapter.id)).where(inside).order_by(Adapter.id)))


def crawl_rows(session: Session) -> list[dict[str, Any]]:
    """All crawls, the newest first: when, state, cost, and how many items ended how.

    A repository counts for the newest crawl of its listing that met it, and as changed for the newest that
    found it changed.
    """
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
            "requests": {"api": crawl.api_requests, "resolver": crawl.resolver_requests},
            "bytes": crawl.bytes,
            "seconds": crawl.seconds,
            "outcomes": counts.get(crawl.id, {}),
        }
        for crawl in session.scalars(select(Crawl).order_by(Crawl.id.desc()))
    ]


def crawled_hub(session: Session) -> str | None:
    """The address of the Hub of the newest crawl, None where there was none."""
    asked = session.scalar(select(Crawl.asked).order_by(Crawl.id.desc()).limit(1))
    return None if asked is None else str(asked["hub"])


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
    facts: list[Any] = [adapter_state(session)]
    facts.append(read_token(session, "scores"))
    notes = (
        select(Annotation.hub_id, Annotation.subfolder, Annotation.hidden, Annotation.note),
        select(AnnotationTag.hub_id, AnnotationTag.subfolder, AnnotationTag.tag),
    )
    facts.extend(
        [list(row) for row in session.execute(query.order_by(*query.selected_columns))] for query in notes
    )
    pools = select(SavedPool.name, SavedPool.digest, SavedPool.created_at).order_by(SavedPool.name)
    facts.append([list(row) for row in session.execute(pools)])
    return _digest(facts)


def adapter_state(session: Session) -> str:
    """A text that differs where adapters or crawls do, whatever else is written: 16 digits of a sha256."""
    crawls = select(
        *(Crawl.id, Crawl.asked, Crawl.state, Crawl.started_at, Crawl.finished_at),
        *(Crawl.api_requests, Crawl.resolver_requests, Crawl.bytes, Crawl.seconds),
    )
    tokens = read_token(session, "texts", "fingerprints", "embeddings", "adapters", "crawls")
    return _digest([tokens, [list(row) for row in session.execute(crawls.order_by(Crawl.id))]])


def _digest(facts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(facts, default=_text_of).encode()).hexdigest()[:16]


def _text_of(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
