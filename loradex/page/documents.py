"""The documents of the page: bytes that a server and an export deliver alike, each made by one function.

`head.json` has a stamp of the catalog's state; every other document is named below it and never changes.
Rules are applied in the browser: the list has all reasons, the head says which rules refuse for which.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from catalog.adapters import (
    USES,
    AdapterReference,
    adapter_name,
    load_engines,
    objection,
)
from catalog.database import Adapter, pool_store, reading, score_store
from catalog.errors import LoradexError, NotFoundError, UsageError
from catalog.files import BlobStore
from catalog.fingerprints import duplicates, families
from catalog.index import DEFAULT_MODEL, find_encoder
from catalog.pools import license_problems
from catalog.query import FIELDS, asks_for, fold, parse
from catalog.rules import RULE_SETS, UNREADABLE, Reason
from catalog.scores import BASE
from catalog.search import (
    SPACES,
    NeighbourSearch,
    browse,
    hidden_notes,
    likeness,
    listing,
    nearest,
    open_texts,
    search,
)
from catalog.selection import STRATEGIES
from crawler.crawl import refusing
from loradex.catalog import Catalog
from loradex.comparison import family_rows, group_rows
from loradex.page import points
from loradex.page.encoding import encode_column, encode_json, encode_sketch, rounded
from loradex.page.keeping import KeptDocuments

if TYPE_CHECKING:
    from catalog.adapters import Engine
    from catalog.database import Session
    from catalog.pools import Manifest
    from catalog.search import CopyRow, Neighbour, SearchHit
    from loradex.rows import SearchRow

FORMAT = "loradex-page/1"
# Neighbours of each adapter.
NEAREST = 12
# Duplicates of an adapter, and members of its family, that are listed with it.
MOST_COPIES = 30
# The longest card that a page shows, in characters.
LONGEST_CARD = 200_000
# The most repositories of a crawl that are listed by name.
MOST_NEWS = 20_000
# Columns that the first view needs; the others are read when a filter or a column asks for them.
_FIRST = (
    *("adapter", "owner", "base", "rank", "license", "reasons", "norm", "health", "downloads", "likes"),
    *("created", "modified", "library", "main"),
)
# What the head says of the whole catalog.
_TOTALS = ("repositories", "gone", "measured", "waiting")
# Counts up when the documents of the same catalog differ.
_REVISION = 5
# Columns of names of engines.
_ENGINE_KEYS = ("runs", "runs_unknown")
_NUMBERED = re.compile(r"([a-z]+)/(0|[1-9][0-9]{0,8})(?:-(output|delta))?\.(?:json|bin)")
_NAMED = re.compile(r"pool/([A-Za-z0-9][A-Za-z0-9._-]{0,99})\.json")
# Fields of what the user wrote.
_OWN_FIELDS = tuple(name for name, field in FIELDS.items() if field.key in listing.OWN_COLUMNS)
# How the subject of a score begins that is a merge.
_MERGE = "merge:"
# What a page knows of each member anyway.
_MARKS = ("skipped", "partial")
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

    What follows from the adapters alone is kept in the folder of indexes for the whole catalog, as reading
    100,000 of them takes seconds: another start, or a note of the user, reads them from there.

    Args:
        catalog: The catalog.
        choice: What of it is shown.

    Attributes:
        stamp: 16 digits that differ where the catalog, the choice, the rules of engines or the program do.
    """

    def __init__(self, catalog: Catalog, choice: Choice | None = None) -> None:
        self.settings = catalog.settings
        self.choice = choice or Choice()
        self._lock, self._comparing = threading.RLock(), threading.RLock()
        self._engines = load_engines(self.settings.engines)
        with reading(self.settings) as session:
            self.stamp = self._stamp(session)
            state = listing.adapter_state(session)
        self._key = _digest_of(state, self._engines)
        self._kept = KeptDocuments(self.settings.index) if self.choice == Choice() else None

    def _stamp(self, session: Session) -> str:
        return _digest_of(listing.catalog_state(session), load_engines(self.settings.engines), self.choice)

    def is_current(self) -> bool:
        """Whether the catalog and the rules of engines are still in the state of these documents."""
        with reading(self.settings) as session:
            return self._stamp(session) == self.stamp

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
                hidden=self.choice.notes,
                engines=self._engines,
            )

    def _read_or_make(self, name: str, make: Callable[[], bytes], facts: object = None) -> bytes:
        """A document that follows from the adapters, and maybe some facts more, or as it was kept."""
        if self._kept is None:
            return make()
        key = self._key if facts is None else _digest_of(f"{self._key} {facts!r}", self._engines)
        return self._kept.read(name, key, make)

    @cached_property
    def _rows(self) -> dict[str, Any]:
        """Of the list its rows `id`, their names `adapter`, base models and how many of each are measured."""
        with self._lock:
            rows: dict[str, Any] = json.loads(self._read_or_make("rows.json", self._rows_document))
            return rows

    def _rows_document(self) -> bytes:
        columns = self.columns
        counts: dict[str, int] = {}
        for base, norm in zip(columns["base"], columns["norm"], strict=True):
            if base is not None:
                counts[base] = counts.get(base, 0) + (norm is not None)
        rows = {"id": columns["id"], "adapter": columns["adapter"], "bases": list(counts)}
        return encode_json({**rows, "measured": list(counts.values())})

    @property
    def ids(self) -> list[int]:
        """The rows of the list in its order."""
        ids: list[int] = self._rows["id"]
        return ids

    @cached_property
    def names(self) -> dict[str, int]:
        """The place of each adapter in the list."""
        return {name: place for place, name in enumerate(self._rows["adapter"])}

    @property
    def bases(self) -> list[str]:
        """The base models of the list, in the order of its words."""
        bases: list[str] = self._rows["bases"]
        return bases

    @cached_property
    def _notes(self) -> dict[str, list[Any]]:
        """The columns of what the user wrote."""
        with reading(self.settings) as session:
            return listing.note_columns(session, self.ids, notes=self.choice.notes)

    @cached_property
    def _chosen(self) -> listing.ChosenNames | None:
        """The names that may be told, None where all may: what is not in the list is named nowhere."""
        if self.choice == Choice(cards=self.choice.cards):
            return None
        with reading(self.settings) as session:
            return listing.chosen_names(session, self.ids)

    def _is_shown(self, subject: str) -> bool:
        """Whether the subject of a score is in the list, or no adapter: a merge, the base model."""
        is_adapter = subject != BASE and not subject.startswith(_MERGE)
        return self._chosen is None or not is_adapter or self._chosen.has(subject)

    @cached_property
    def _hidden(self) -> listing.ChosenNames | None:
        """The names of the adapters of the list that the user hid, None where there are none."""
        ids = [key for key, hidden in zip(self.ids, self._notes["hidden"], strict=True) if hidden]
        if not ids:
            return None
        with reading(self.settings) as session:
            return listing.chosen_names(session, ids)

    def _split_hidden(self, subjects: Iterable[str]) -> tuple[set[str], int]:
        """Those of these subjects of scores that are shown, and how many more the user hid."""
        shown = set(filter(self._is_shown, subjects))
        if self._hidden is None:
            return shown, 0
        hidden = set(filter(self._hidden.has, shown))
        return shown - hidden, len(hidden)

    def head(self, host: Mapping[str, object] | None = None) -> bytes:
        """`head.json`: totals, fields, rules, and what the server can do, None for an export."""
        return encode_json({**self._head, "host": host})

    @cached_property
    def _head(self) -> dict[str, Any]:
        with reading(self.settings) as session:
            left_out = listing.left_out_counts(session) if self.choice.public else {}
        listed = listing.listed_fields()
        is_whole = not self.choice.public and not self.choice.where
        totals = json.loads(self._read_or_make("totals.json", self._totals_document)) if is_whole else {}
        where = self.choice.where
        return {
            "format": FORMAT,
            "stamp": self.stamp,
            "adapters": len(self.ids),
            "totals": {name: totals[name] for name in _TOTALS if name in totals},
            "retries": totals.get("retries", 0),
            "where": where if self.choice.notes or not self._asks_for_notes(where) else "",
            "left_out": left_out,
            "own": {name: sum(map(bool, values)) for name, values in self._notes.items()},
            "cards": self.choice.cards,
            "fields": field_rows(self._engines),
            "unlisted": [name for name in FIELDS if name not in listed],
            "reasons": {reason.value: reason.sentence for reason in Reason},
            "rules": {rules: list(refusing(rules)) for rules in RULE_SETS},
            "uses": list(USES),
            "measured": self._rows["measured"],
            "strategies": list(STRATEGIES),
        }

    def _totals_document(self) -> bytes:
        with reading(self.settings) as session:
            totals = browse.totals(session, refusing("ours"), [reason.value for reason in UNREADABLE])
        return encode_json({**{name: totals[name] for name in _TOTALS}, "retries": len(totals["retries"])})

    def document(self, name: str) -> bytes:
        """The bytes of a document by its name below the stamp; raises NotFoundError for another name."""
        makers: dict[str, Callable[[], bytes]] = {
            "list.json": lambda: self._read_or_make("list.json", self._list),
            "more.json": lambda: self._read_or_make("more.json", self._more),
            "own.json": lambda: _columns_document(self._notes, listing.OWN_COLUMNS),
            "groups.json": lambda: self._groups,
            "pools.json": self._pools,
            "scores.json": self._scores,
            "crawls.json": self._crawls,
        }
        if name in makers:
            return makers[name]()
        if match := _NAMED.fullmatch(name):
            return self._pool(match[1])
        match = _NUMBERED.fullmatch(name)
        numbered: dict[str, Callable[[int], bytes]] = {
            "adapter": self._adapter,
            "nearest": self._nearest,
            "copies": self._copies,
            "leaderboard": self._leaderboard,
            "crawl": self._crawl,
        }
        if match and match[1] == "points" and match[3]:
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
            *(
                "list.json",
                "more.json",
                "own.json",
                "groups.json",
                "pools.json",
                "scores.json",
                "crawls.json",
            ),
            *(f"pool/{name}.json" for name in pools),
            *(f"crawl/{number}.json" for number in crawls),
            *(f"leaderboard/{number}.json" for number in boards),
            *(
                f"points/{base}-{kind}.bin"
                for base, n in enumerate(self._rows["measured"])
                if n > 1
                for kind in SPACES
            ),
        ]

    def _list(self) -> bytes:
        return _columns_document(self.columns, _FIRST)

    def _more(self) -> bytes:
        return _columns_document(self.columns, [key for key in self.columns if key not in (*_FIRST, "id")])

    def keep(self) -> None:
        """Makes what is kept, and frees the columns that it is made of."""
        for name in ("list.json", "more.json"):
            self.document(name)
        if self._kept is not None and self.names:
            self.__dict__.pop("_columns", None)
        self.document("groups.json")

    def _place(self, number: int) -> int:
        if number >= len(self.ids):
            raise NotFoundError(f"The list has {len(self.ids):,} adapters; use a number below that.")
        return self.ids[number]

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
        if self._chosen is not None:
            document["other_adapters"] = [
                folder
                for folder in document["other_adapters"]
                if self._chosen.has(adapter_name(row.repository.name, folder))
            ]
        card = listing.card_source(session, row) if self.choice.cards else None
        document["card"] = None if card is None else card[:LONGEST_CARD]
        document["card_length"] = len(card or "")
        document["scores"] = score_store.scores_of(session, details.adapter)
        document |= self._measurements(session, row)
        return document

    def _measurements(self, session: Session, row: Adapter) -> dict[str, Any]:
        """The norms, singular values and the sketch of an adapter; None where its weights were not read, or
        their modules are not known.
        """
        sketch = None
        try:
            subject = nearest.subject_of(session, row, BlobStore(self.settings.blobs))
            sketch = encode_sketch(subject.vectors["output"])
            spectrum = likeness.spectrum(session, row)
        except LoradexError as error:
            return {"spectrum": None, "sketch": sketch, "unmeasured": str(error)}
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
            "sketch": sketch,
            "unmeasured": None,
        }

    def _nearest(self, number: int) -> bytes:
        with reading(self.settings) as session:
            row = session.get_one(Adapter, self._place(number))
            return self.nearest_of(session, row)

    @cached_property
    def _ids(self) -> set[int]:
        """The rows among which neighbours are sought."""
        return set(self.ids)

    def nearest_of(self, session: Session, row: Adapter) -> bytes:
        """The neighbours of an adapter, by the sketches of its output."""
        return self.nearest_by(session)(row)

    def nearest_by(self, session: Session) -> Callable[[Adapter], bytes]:
        """A function for the neighbours of any number of adapters, which reads each index and row once."""
        blobs = BlobStore(self.settings.blobs)
        limited = self.choice.public or self.choice.where
        among = (lambda ids: self._ids.intersection(ids or ())) if limited else None
        search = NeighbourSearch(session, self.settings.index, blobs, (), among=among, every=True)

        def document(row: Adapter) -> bytes:
            try:
                subject = nearest.subject_of(session, row, blobs)
                found = search.neighbours(subject, count=NEAREST)
            except LoradexError as error:
                return encode_json({"rows": [], "note": str(error), "hidden": 0})
            # Of a part of the catalog nobody is told what is not in it.
            hidden = 0 if limited else search.hidden_count(subject, found, count=NEAREST)
            return encode_json({"rows": [_neighbour(row) for row in found], "note": "", "hidden": hidden})

        return document

    def measured_rows(
        self, session: Session, base: str | None = None, ids: Sequence[int] | None = None
    ) -> list[CopyRow]:
        """The adapters of the list that have a fingerprint, hidden ones too; of one base model, of some rows,
        or all.
        """
        rows = likeness.measured_copies(session, refusing("ours"), base, every=True, hidden=True, ids=ids)
        return [row for row in rows if row.adapter in self.names]

    @cached_property
    def _hidden_names(self) -> frozenset[str]:
        """The adapters of the list that the user hid."""
        marks = zip(self._rows["adapter"], self._notes["hidden"], strict=True)
        return frozenset(name for name, hidden in marks if hidden)

    def _points(self, base: int, kind: str) -> bytes:
        if base >= len(self.bases):
            raise NotFoundError(f"The list has {len(self.bases)} base models; use a number below that.")
        with reading(self.settings) as session:
            # Hidden ones are laid out too, so that nothing moves, and nothing is laid out again, when one is.
            rows, places = self.measured_rows(session, self.bases[base]), self.names
            index, hidden = self.settings.index, [places[name] for name in self._hidden_names]
            return points.points_document(session, rows, places, likeness.kind(kind), index, hidden)

    @property
    def _groups(self) -> bytes:
        """`groups.json`: all duplicates and families, which take seconds to find."""
        with self._comparing:
            return self._groups_document

    @cached_property
    def _groups_document(self) -> bytes:
        # Beside the adapters, files that are kept decide.
        kept = sorted(blob.sha256 for blob in BlobStore(self.settings.blobs).blobs())
        groups = self._read_or_make("groups.json", self._make_groups, kept)
        return self._leave_out_hidden(json.loads(groups)) if self._hidden_names else groups

    @cached_property
    def _groups_by_name(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The duplicates and the family of each adapter that has some."""
        groups = json.loads(self._groups)
        return {
            kind: {name: row for row in groups[kind] for name in row["members"]}
            for kind in ("duplicates", "families")
        }

    def _copies(self, number: int) -> bytes:
        self._place(number)
        return self.copies_of(self._rows["adapter"][number])

    def copies_of(self, adapter: str) -> bytes:
        """Of `groups.json` the duplicates and the family of one adapter, None where it has none, with the
        first of the other members.
        """
        return encode_json(
            {kind: _group_of(rows.get(adapter), adapter) for kind, rows in self._groups_by_name.items()}
        )

    @property
    def _finders(self) -> dict[str, Callable[..., list[dict[str, Any]]]]:
        return {"duplicates": self._find_duplicates, "families": self._find_families}

    def _make_groups(self) -> bytes:
        """The groups of all adapters of the list, hidden ones too."""
        with reading(self.settings) as session:
            return encode_json({kind: find(session) for kind, find in self._finders.items()})

    def _leave_out_hidden(self, groups: dict[str, list[dict[str, Any]]]) -> bytes:
        """The groups without the adapters that the user hid: those that had some are found again among the
        others of each, as two members may have belonged together by a hidden one alone.
        """
        shown: dict[str, list[dict[str, Any]]] = {}
        with reading(self.settings) as session:
            for kind, find in self._finders.items():
                whole = [row for row in groups[kind] if self._hidden_names.isdisjoint(row["members"])]
                broken = [row for row in groups[kind] if not self._hidden_names.isdisjoint(row["members"])]
                left = {name for row in broken for name in row["members"]} - self._hidden_names
                found = find(session, sorted(self.ids[self.names[name]] for name in left))
                shown[kind] = sorted([*whole, *found], key=_place_of_group)
        return encode_json(shown)

    def _find_duplicates(self, session: Session, ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """The duplicates among these rows of the list, or among all."""
        found = likeness.with_weights(session, refusing("ours"), every=True, hidden=True, ids=ids)
        rows = [row for row in found if row.adapter in self.names]
        blobs = BlobStore(self.settings.blobs)
        exact = likeness.exact_delta(session, rows, blobs)
        kept = {blob.sha256 for blob in blobs.blobs()}
        groups = duplicates(rows, "delta", exact, deltas=likeness.read_deltas(session), kept=kept)
        return [_without(asdict(row), _MARKS) for row in group_rows(groups, rows)]

    def _find_families(self, session: Session, ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """The families among these rows of the list, or among all."""
        rows = self.measured_rows(session, ids=ids)
        found = families(rows, deltas=likeness.read_deltas(session))
        return [_without(asdict(row), _MARKS) for row in family_rows(found, rows)]

    def _pool_rows(self, session: Session) -> list[dict[str, Any]]:
        rows = pool_store.pools(session)
        return [row for row in rows if self._may_show(pool_store.find_pool(session, row["pool"]))]

    def _may_show(self, pool: Manifest) -> bool:
        """Whether a pool names no adapter that is not in the list, nor what the user wrote."""
        if self._chosen is None:
            return True
        if not all(self._chosen.has(member.adapter) for member in pool.members):
            return False
        where = str(pool.chosen.get("where", ""))
        if not self.choice.notes and self._asks_for_notes(where):
            return False
        return not any(map(self._chosen.names_others, _texts(json.loads(pool.canonical()))))

    def _asks_for_notes(self, where: str) -> bool:
        """Whether a filter has words of the user; so it is said of one that cannot be read."""
        try:
            query = parse(where, _CHOICES, self._engines) if where else None
        except UsageError:
            return True
        return query is not None and any(asks_for(query, field) for field in _OWN_FIELDS)

    def _pools(self) -> bytes:
        with reading(self.settings) as session:
            rows = self._pool_rows(session)
            count = len(pool_store.pools(session))
        return encode_json({"rows": rows, "left_out": count - len(rows)})

    def _pool(self, name: str) -> bytes:
        with reading(self.settings) as session:
            manifest = pool_store.find_pool(session, name)
            if not self._may_show(manifest):
                raise NotFoundError(f"Pool {name!r} not found; `pools()` lists all pools.")
        return encode_json(
            {**asdict(manifest), "digest": manifest.digest, "problems": license_problems(manifest)}
        )

    def _scores(self) -> bytes:
        with reading(self.settings) as session:
            rows = score_store.scores_of(session)
            boards = self._boards(session)
        shown, hidden = self._split_hidden(row["adapter"] for row in rows)
        rows = [row for row in rows if row["adapter"] in shown]
        kinds = {"value": "number", "n": "whole"}
        keys = ("adapter", "task", "split", "metric", "value", "n", "source", "protocol")
        columns = {
            key: encode_column([row[key] for row in rows], kinds.get(key, "text"), many=False) for key in keys
        }
        document = {"n": len(rows), "columns": columns, "boards": boards, "sources": _count_sources(rows)}
        return encode_json({**document, "hidden": hidden})

    def _boards(self, session: Session) -> list[dict[str, str]]:
        """The questions that a leaderboard answers: a task, split, metric and protocol."""
        keys = ("task", "split", "metric", "protocol")
        rows = score_store.scores_of(session)
        shown, _ = self._split_hidden(row["adapter"] for row in rows)
        boards = sorted({tuple(row[key] for key in keys) for row in rows if row["adapter"] in shown})
        return [dict(zip(keys, board, strict=True)) for board in boards]

    def _leaderboard(self, number: int) -> bytes:
        from loradex.outcomes import leaderboard_rows

        with reading(self.settings) as session:
            boards = self._boards(session)
            if number >= len(boards):
                raise NotFoundError(f"The catalog has {len(boards)} leaderboards; use a number below that.")
            board = boards[number]
            scores = score_store.stored_scores(session, score_store.ScoreFilter(**board))
        shown, hidden = self._split_hidden(score.subject for score in scores)
        document: dict[str, Any] = {"board": board, "hidden": hidden}
        try:
            rows = leaderboard_rows([score for score in scores if score.subject in shown], board["task"])
        except LoradexError as error:
            return encode_json({**document, "rows": [], "note": str(error)})
        return encode_json({**document, "rows": rows, "note": ""})

    def _crawls(self) -> bytes:
        with reading(self.settings) as session:
            return encode_json({"rows": listing.crawl_rows(session)})

    def _crawl(self, number: int) -> bytes:
        with reading(self.settings) as session:
            rows = list(listing.crawl_news(session, number))
        if self._chosen is not None:
            # Of a repository that was never read nobody knows whether it is private.
            names = self._chosen.repositories
            rows = [replace_error(row) for row in rows if row["repository"] in names]
        counts = Counter(row["outcome"] for row in rows)
        return encode_json({"id": number, "rows": rows[:MOST_NEWS], "counts": counts})

    def rows_with_word(self, word: str) -> bytes:
        """The places in the list of the adapters whose card contains a text."""
        with reading(self.settings) as session:
            ids = set(listing.rows_with_word(session, word))
        return encode_json([place for place, key in enumerate(self.ids) if key in ids])

    def search_stored(self, text: str, where: str, count: int, rules: str = "ours") -> bytes:
        """The hits of a text by words and by the vectors that the catalog has: no card is embedded, and no
        encoder is loaded that was not used before.
        """
        query = parse(where, _CHOICES, self._engines) if where else None
        embedder = find_encoder(self.settings.index, DEFAULT_MODEL)
        with reading(self.settings) as session:
            if query is not None:
                browse.refuse_unknown_bases(session, query)
            with open_texts(session, self.settings.index, embedder) as texts:
                found = search(session, texts, text, count, query=query, refusing=refusing(rules))
            notes = [*hidden_notes(session, query, " of the search"), *found.notes]
        if embedder is None:
            notes.insert(0, "searching by words alone: the cards of this catalog were never embedded here")
        return encode_hits(found.hits, notes)


def encode_hits(hits: Iterable[SearchHit | SearchRow], notes: Sequence[str]) -> bytes:
    """Hits of a search as a document."""
    rows = [{"adapter": hit.adapter, "score": hit.score, "why": hit.why} for hit in hits]
    return encode_json({"rows": rows, "notes": notes})


def _digest_of(state: str, engines: Sequence[Engine], choice: Choice | None = None) -> str:
    """What documents follow from: a state of the catalog, and the program and rules that describe it."""
    described = (FORMAT, str(_REVISION), version("loradex"), state, repr(engines), repr(choice))
    return hashlib.sha256("\n".join(described).encode()).hexdigest()[:16]


def _columns_document(columns: Mapping[str, list[Any]], keys: Iterable[str]) -> bytes:
    """Columns of the list as a document, with what licenses say against each use beside them."""
    fields = {field.key: field for field in FIELDS.values()}
    encoded = {}
    for key in keys:
        field = fields.get(key)
        kind, many = (field.kind, field.many) if field else ("text", key in _ENGINE_KEYS)
        encoded[key] = encode_column(columns[key], kind, many=many)
    document: dict[str, object] = {"columns": encoded}
    if "license" in encoded:
        licenses = dict.fromkeys(columns["license"])
        document["objections"] = [[name, [objection(name, use) for use in USES]] for name in licenses]
    return encode_json(document)


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


def _texts(value: Any) -> Iterator[str]:
    """Every text within a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield key
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)


def _count_sources(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The numbers of scores of each source, as `score_store.summary` counts those of a whole catalog."""
    keys, groups = ("source", "split", "metric", "protocol"), dict[tuple[str, ...], list[Any]]()
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append((row["adapter"], row["task"]))
    return [
        {
            **dict(zip(keys, key, strict=True)),
            "scores": len(group),
            "subjects": len({adapter for adapter, _ in group}),
            "tasks": len({task for _, task in group}),
        }
        for key, group in sorted(groups.items())
    ]


def _place_of_group(row: Mapping[str, Any]) -> tuple[str, str]:
    """Duplicates are sorted by their first member, families by their name."""
    return row.get("family", ""), row["members"][0]


def _group_of(row: Mapping[str, Any] | None, adapter: str) -> dict[str, Any] | None:
    """A group without one of its members, whose page shows it."""
    if row is None:
        return None
    others = [name for name in row["members"] if name != adapter]
    return {**row, "members": others[:MOST_COPIES]}


def _neighbour(row: Neighbour) -> dict[str, Any]:
    keys = ("adapter", "score", "delta", "output", "rank", "license", "why", "partial", "same_tensors")
    values = asdict(row)
    return {key: rounded(values[key]) if isinstance(values[key], float) else values[key] for key in keys}


def _without(row: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in keys}
