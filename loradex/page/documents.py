"""The documents of the page: bytes that a server and an export deliver alike, each made by one function.

`head.json` has a stamp of the catalog's state; every other document is named below it and never changes.
Rules are applied in the browser: the list has all reasons, the head says which rules refuse for which.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from catalog.adapters import USES, AdapterReference, StoredAdapter, load_engines, objection
from catalog.database import Adapter, pool_store, reading, score_store
from catalog.errors import LoradexError, NotFoundError
from catalog.files import BlobStore
from catalog.fingerprints import duplicates, families
from catalog.pools import license_problems
from catalog.query import FIELDS, fold, parse
from catalog.rules import RULE_SETS, UNREADABLE, Reason
from catalog.search import SPACES, browse, likeness, listing, nearest, neighbours
from catalog.selection import STRATEGIES
from crawler.crawl import refusing
from loradex.catalog import Catalog
from loradex.comparison import family_rows, group_rows
from loradex.page import points
from loradex.page.encoding import encode_column, encode_json, encode_sketch, rounded

if TYPE_CHECKING:
    from catalog.adapters import Engine
    from catalog.database import Session
    from catalog.search import Neighbour

FORMAT = "loradex-page/1"
# Neighbours of each adapter.
NEAREST = 12
# The longest card that a page shows, in characters.
LONGEST_CARD = 200_000
# The most repositories of a crawl that are listed by name.
MOST_NEWS = 20_000
# Columns that the first view needs; the others are read when a filter or a column asks for them.
_FIRST = (
    *("adapter", "owner", "base", "rank", "license", "reasons", "norm", "health", "downloads", "likes"),
    *("created", "modified", "library", "main", "hidden"),
)
# Columns of names of engines.
_ENGINE_KEYS = ("runs", "runs_unknown")
_NUMBERED = re.compile(r"([a-z]+)/(0|[1-9][0-9]{0,8})(?:-(output|delta))?\.(?:json|bin)")
_NAMED = re.compile(r"pool/([A-Za-z0-9][A-Za-z0-9._-]{0,99})\.json")
# The only values of fields that have none of their own in `catalog.query`.
_CHOICES = {"reason": [reason.value for reason in Reason]}


@dataclass(frozen=True)
class Choice:
    """What of a catalog a page shows: the adapters of a filter, the public ones alone, with or without cards
    and what the user wrote.
    """

    where: str = ""
    public: bool = False
    cards: bool = True
    notes: bool = True


class Documents:
    """The documents of a catalog at one state.

    Args:
        catalog: The catalog.
        choice: What of it is shown.

    Attributes:
        stamp: 16 digits that differ where the catalog or the choice does.
    """

    def __init__(self, catalog: Catalog, choice: Choice | None = None) -> None:
        self.settings = catalog.settings
        self.choice = choice or Choice()
        self._lock = threading.RLock()
        self._engines = load_engines(self.settings.engines)
        with reading(self.settings) as session:
            self.stamp = listing.catalog_state(session)

    def is_current(self) -> bool:
        """Whether the catalog is still in the state of these documents."""
        with reading(self.settings) as session:
            return listing.catalog_state(session) == self.stamp

    @property
    def columns(self) -> dict[str, list[Any]]:
        """The columns of the list, see `catalog.search.listing.adapter_columns`."""
        with self._lock:
            return self._columns

    @cached_property
    def _columns(self) -> dict[str, list[Any]]:
        with reading(self.settings) as session:
            query = parse(self.choice.where, _CHOICES, self._engines) if self.choice.where else None
            if query is not None:
                browse.refuse_unknown_bases(session, query)
            return listing.adapter_columns(
                session,
                where=query,
                refusing=refusing("ours"),
                public=self.choice.public,
                notes=self.choice.notes,
                hidden=self.choice.notes,
                engines=self._engines,
            )

    @cached_property
    def names(self) -> dict[str, int]:
        """The place of each adapter in the list."""
        return {name: place for place, name in enumerate(self.columns["adapter"])}

    @cached_property
    def bases(self) -> list[str]:
        """The base models of the list, in the order of its words."""
        return list(dict.fromkeys(base for base in self.columns["base"] if base is not None))

    @cached_property
    def _hidden(self) -> set[str]:
        if not self.choice.public:
            return set()
        with reading(self.settings) as session:
            return listing.hidden_repositories(session)

    def head(self, host: Mapping[str, object] | None = None) -> bytes:
        """`head.json`: totals, fields, rules, and what the server can do, None for an export."""
        with self._lock:
            return encode_json({**self._head, "host": host})

    @cached_property
    def _head(self) -> dict[str, Any]:
        with reading(self.settings) as session:
            totals = browse.totals(session, refusing("ours"), [reason.value for reason in UNREADABLE])
            left_out = listing.left_out_counts(session) if self.choice.public else {}
        listed = listing.listed_fields()
        is_whole = not self.choice.public and not self.choice.where
        shown = ("repositories", "gone", "measured", "waiting") if is_whole else ()
        return {
            "format": FORMAT,
            "stamp": self.stamp,
            "adapters": len(self.columns["adapter"]),
            "totals": {name: totals[name] for name in shown},
            "retries": len(totals["retries"]) if is_whole else 0,
            "where": self.choice.where,
            "left_out": left_out,
            "own": self._own(),
            "cards": self.choice.cards,
            "fields": field_rows(self._engines),
            "unlisted": [name for name in FIELDS if name not in listed],
            "reasons": {reason.value: reason.sentence for reason in Reason},
            "rules": {rules: list(refusing(rules)) for rules in RULE_SETS},
            "uses": list(USES),
            "measured": self._measured(),
            "strategies": list(STRATEGIES),
        }

    def _measured(self) -> list[int]:
        """How many adapters of each base model were measured."""
        counts = dict.fromkeys(self.bases, 0)
        for base, norm in zip(self.columns["base"], self.columns["norm"], strict=True):
            if base is not None and norm is not None:
                counts[base] += 1
        return list(counts.values())

    def _own(self) -> dict[str, int]:
        """How many adapters the user gave tags, a note, or hid."""
        names = ("own_tags", "note", "hidden")
        return {name: sum(map(bool, self.columns[name])) for name in names}

    def document(self, name: str) -> bytes:
        """The bytes of a document by its name below the stamp; raises NotFoundError for another name."""
        makers: dict[str, Callable[[], bytes]] = {
            "list.json": lambda: self._columns_document(_FIRST),
            "more.json": lambda: self._columns_document(
                [key for key in self.columns if key not in (*_FIRST, "id")]
            ),
            "groups.json": self._groups,
            "pools.json": self._pools,
            "scores.json": self._scores,
            "crawls.json": self._crawls,
        }
        if name in makers:
            with self._lock:
                return makers[name]()
        if match := _NAMED.fullmatch(name):
            return self._pool(match[1])
        match = _NUMBERED.fullmatch(name)
        numbered: dict[str, Callable[[int], bytes]] = {
            "adapter": self._adapter,
            "nearest": self._nearest,
            "leaderboard": self._leaderboard,
            "crawl": self._crawl,
        }
        if match and match[1] == "points" and match[3]:
            with self._lock:
                return self._points(int(match[2]), match[3])
        if match and match[1] in numbered and not match[3]:
            return numbered[match[1]](int(match[2]))
        raise NotFoundError(f"The page has no document {name[:80]!r}.")

    def shared_names(self) -> list[str]:
        """The names of the documents that are not of one adapter, in the order of an export."""
        with reading(self.settings) as session:
            pools = [row["pool"] for row in self._pool_rows(session)]
            crawls = [row["id"] for row in listing.crawl_rows(session)]
            boards = range(len(self._boards(session)))
        return [
            *("list.json", "more.json", "groups.json", "pools.json", "scores.json", "crawls.json"),
            *(f"pool/{name}.json" for name in pools),
            *(f"crawl/{number}.json" for number in crawls),
            *(f"leaderboard/{number}.json" for number in boards),
            *(
                f"points/{base}-{kind}.bin"
                for base, n in enumerate(self._measured())
                if n > 1
                for kind in SPACES
            ),
        ]

    def _columns_document(self, keys: Iterable[str]) -> bytes:
        fields = {field.key: field for field in FIELDS.values()}
        columns = {}
        for key in keys:
            if key in self.columns:
                field = fields.get(key)
                kind, many = (field.kind, field.many) if field else ("text", key in _ENGINE_KEYS)
                columns[key] = encode_column(self.columns[key], kind, many=many)
        document: dict[str, object] = {"n": len(self.columns["adapter"]), "columns": columns}
        if "license" in columns:
            licenses = dict.fromkeys(self.columns["license"])
            document["objections"] = [[name, [objection(name, use) for use in USES]] for name in licenses]
        return encode_json(document)

    def _place(self, number: int) -> int:
        if number >= len(self.columns["id"]):
            raise NotFoundError(
                f"The list has {len(self.columns['id']):,} adapters; use a number below that."
            )
        return int(self.columns["id"][number])

    def _adapter(self, number: int) -> bytes:
        with reading(self.settings) as session:
            return self.adapter_of(session, session.get_one(Adapter, self._place(number)))

    def adapter_at(self, reference: str) -> bytes:
        """The document of an adapter by its reference, of an older commit too."""
        with reading(self.settings) as session:
            row = browse.find_adapter(session, AdapterReference.parse(reference))
            return self.adapter_of(session, row)

    def adapter_of(self, session: Session, row: Adapter) -> bytes:
        """The document of an adapter."""
        return encode_json(self._details(session, row))

    def _details(self, session: Session, row: Adapter) -> dict[str, Any]:
        details = browse.details(session, row, refusing("ours"), self._engines)
        document = {name: value for name, value in vars(details).items() if name != "verdict"}
        if not self.choice.notes:
            document |= {"own_tags": (), "note": None, "hidden": False}
        card = listing.card_source(session, row) if self.choice.cards else None
        document["card"] = None if card is None else card[:LONGEST_CARD]
        document["card_length"] = len(card or "")
        document["scores"] = score_store.scores_of(session, details.adapter)
        document |= self._measurements(session, row)
        return document

    def _measurements(self, session: Session, row: Adapter) -> dict[str, Any]:
        """The norms, singular values and the sketch of an adapter; None where its weights were not read."""
        try:
            spectrum = likeness.spectrum(session, row)
            subject = nearest.subject_of(session, row, BlobStore(self.settings.blobs))
        except LoradexError as error:
            return {"spectrum": None, "sketch": None, "unmeasured": str(error)}
        scaled = (
            abs(scaling) * float(values[0])
            for scaling, values in zip(spectrum.scalings, spectrum.spectrum, strict=True)
        )
        return {
            "spectrum": {
                "modules": spectrum.modules,
                "norms": [rounded(norm) for norm in scaled],
                "values": [[rounded(float(value)) for value in row[1:]] for row in spectrum.spectrum],
            },
            "sketch": encode_sketch(subject.vectors["output"]),
            "unmeasured": None,
        }

    def _nearest(self, number: int) -> bytes:
        with reading(self.settings) as session:
            row = session.get_one(Adapter, self._place(number))
            return self.nearest_of(session, row)

    @cached_property
    def _ids(self) -> set[int] | None:
        """The rows among which neighbours are sought, None for all."""
        return set(self.columns["id"]) if self.choice.public or self.choice.where else None

    def nearest_of(self, session: Session, row: Adapter) -> bytes:
        """The neighbours of an adapter, by the sketches of its output."""
        blobs = BlobStore(self.settings.blobs)
        try:
            subject = nearest.subject_of(session, row, blobs)
            found = neighbours(
                session, subject, self.settings.index, blobs, (), count=NEAREST, ids=self._ids, every=True
            )
        except LoradexError as error:
            return encode_json({"rows": [], "note": str(error)})
        return encode_json({"rows": [_neighbour(row) for row in found], "note": ""})

    def measured_rows(self, session: Session) -> list[StoredAdapter]:
        """The adapters of the list that have a fingerprint."""
        rows = likeness.adapters_with_fingerprint(session, refusing("ours"), every=True)
        return [row for row in rows if row.adapter in self.names]

    def _points(self, base: int, kind: str) -> bytes:
        if base >= len(self.bases):
            raise NotFoundError(f"The list has {len(self.bases)} base models; use a number below that.")
        with reading(self.settings) as session:
            rows = [row for row in self.measured_rows(session) if row.base == self.bases[base]]
            return points.points_document(session, rows, self.names, likeness.kind(kind), self.settings.index)

    def _groups(self) -> bytes:
        with reading(self.settings) as session:
            rows = [
                row
                for row in likeness.with_weights(session, refusing("ours"), every=True)
                if row.adapter in self.names
            ]
            blobs = BlobStore(self.settings.blobs)
            found = duplicates(
                rows,
                "delta",
                likeness.exact_delta(session, rows, blobs),
                deltas=likeness.read_deltas(session),
                kept={blob.sha256 for blob in blobs.blobs()},
            )
            groups = group_rows(found, rows)
            measured = likeness.with_deltas(session, self.measured_rows(session))
            series = family_rows(families(measured), measured)
        marks = ("skipped", "partial")
        return encode_json(
            {
                "duplicates": [_without(asdict(row), marks) for row in groups],
                "families": [_without(asdict(row), marks) for row in series],
            }
        )

    def _pool_rows(self, session: Session) -> list[dict[str, Any]]:
        rows = pool_store.pools(session)
        if self.choice.public:
            rows = [row for row in rows if not self._has_hidden(session, row["pool"])]
        return rows

    def _has_hidden(self, session: Session, pool: str) -> bool:
        members = pool_store.find_pool(session, pool).members
        return any(member.repository in self._hidden for member in members)

    def _pools(self) -> bytes:
        with reading(self.settings) as session:
            rows = self._pool_rows(session)
            count = len(pool_store.pools(session))
        return encode_json({"rows": rows, "left_out": count - len(rows)})

    def _pool(self, name: str) -> bytes:
        with reading(self.settings) as session:
            if self.choice.public and self._has_hidden(session, name):
                raise NotFoundError(f"Pool {name!r} not found; `pools()` lists all pools.")
            manifest = pool_store.find_pool(session, name)
        return encode_json(
            {**asdict(manifest), "digest": manifest.digest, "problems": license_problems(manifest)}
        )

    def _scores(self) -> bytes:
        with reading(self.settings) as session:
            rows = [row for row in score_store.scores_of(session) if not self._is_hidden(row["adapter"])]
            boards = self._boards(session)
            sources = score_store.summary(session)
        kinds = {"value": "number", "n": "whole"}
        keys = ("adapter", "task", "split", "metric", "value", "n", "source", "protocol")
        columns = {
            key: encode_column([row[key] for row in rows], kinds.get(key, "text"), many=False) for key in keys
        }
        return encode_json({"n": len(rows), "columns": columns, "boards": boards, "sources": sources})

    def _boards(self, session: Session) -> list[dict[str, str]]:
        """The questions that a leaderboard answers: a task, split, metric and protocol."""
        keys = ("task", "split", "metric", "protocol")
        rows = score_store.scores_of(session)
        boards = sorted(
            {tuple(row[key] for key in keys) for row in rows if not self._is_hidden(row["adapter"])}
        )
        return [dict(zip(keys, board, strict=True)) for board in boards]

    def _is_hidden(self, subject: str) -> bool:
        return re.split("[@:]", subject, maxsplit=1)[0] in self._hidden

    def _leaderboard(self, number: int) -> bytes:
        from loradex.outcomes import leaderboard_rows

        with reading(self.settings) as session:
            boards = self._boards(session)
            if number >= len(boards):
                raise NotFoundError(f"The catalog has {len(boards)} leaderboards; use a number below that.")
            board = boards[number]
            scores = score_store.stored_scores(session, score_store.ScoreFilter(**board))
        scores = [score for score in scores if not self._is_hidden(score.subject)]
        try:
            return encode_json({"board": board, "rows": leaderboard_rows(scores, board["task"]), "note": ""})
        except LoradexError as error:
            return encode_json({"board": board, "rows": [], "note": str(error)})

    def _crawls(self) -> bytes:
        with reading(self.settings) as session:
            return encode_json({"rows": listing.crawl_rows(session)})

    def _crawl(self, number: int) -> bytes:
        with reading(self.settings) as session:
            rows = list(listing.crawl_news(session, number))
        if self.choice.public:
            # Of a repository that was never read nobody knows whether it is private.
            public = {name.partition(":")[0] for name in self.names}
            rows = [replace_error(row) for row in rows if row["repository"] in public]
        return encode_json({"id": number, "rows": rows[:MOST_NEWS], "beyond": max(0, len(rows) - MOST_NEWS)})

    def rows_with_word(self, word: str) -> bytes:
        """The places in the list of the adapters whose card contains a text."""
        with reading(self.settings) as session:
            ids = set(listing.rows_with_word(session, word))
        return encode_json([place for place, key in enumerate(self.columns["id"]) if key in ids])


def field_rows(engines: Sequence[Engine]) -> list[dict[str, Any]]:
    """The fields of the filter language as the browser's parser reads them, those that the list has."""
    keys = ("name", "kind", "key", "many", "aliases", "absent", "help", "choices")
    names = [fold(engine.name) for engine in engines]
    rows = []
    for name in listing.listed_fields():
        row = {key: getattr(FIELDS[name], key) for key in keys}
        if row["kind"] == "engine":
            row |= {"key": name, "choices": names}
        rows.append(row | {"choices": _CHOICES[name]} if name in _CHOICES else row)
    return rows


def replace_error(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a crawl without what a server said, which may name accounts."""
    return {**row, "detail": None}


def _neighbour(row: Neighbour) -> dict[str, Any]:
    keys = ("adapter", "score", "delta", "output", "rank", "license", "why", "partial", "same_tensors")
    values = asdict(row)
    return {key: rounded(values[key]) if isinstance(values[key], float) else values[key] for key in keys}


def _without(row: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in keys}
