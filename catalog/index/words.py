"""Full-text search as a cache: an FTS5 file in the folder `index/`, whatever database the catalog is in.

The file `words.db` holds the texts of each adapter split into words; `words.json` has the stamp of its texts
and its sha256. A current file is opened; one of other texts is copied and updated text by text; a damaged one
is rebuilt. No file is changed in place: each is written to a temporary file and renamed, so that readers keep
the file that they opened.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import sqlite3
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from catalog.errors import CatalogError, UsageError
from catalog.files import DAMAGES, open_cache, read_facts, write_cache

log = logging.getLogger(__name__)

COLUMNS = ("name", "card", "tags", "datasets", "base")
# Version of how texts become words and of the tables: a change raises it, and files are rebuilt.
_FORMAT = 1
# English words without a topic.
_EMPTY_WORDS = frozenset(
    {"a", "about", "an", "and", "any", "are", "as", "at", "be", "by", "can", "do", "does", "for", "from"}
    | {"has", "have", "how", "i", "in", "into", "is", "it", "its", "me", "my", "no", "not", "of", "on"}
    | {"or", "our", "so", "some", "such", "than", "that", "the", "their", "them", "then", "there", "these"}
    | {"they", "this", "to", "up", "was", "we", "were", "what", "when", "where", "which", "who", "why"}
    | {"will", "with", "would", "you", "your"}
)
_MOST_TERMS = 32
_MARKS = ("\x01", "\x02")
_MARKED = re.compile(f"{_MARKS[0]}([^{_MARKS[1]}]*){_MARKS[1]}")
_NO_MARKS = dict.fromkeys(map(ord, _MARKS), " ")
_INSERT = f"INSERT INTO texts(rowid, {', '.join(COLUMNS)}) VALUES (?{', ?' * len(COLUMNS)})"  # noqa: S608
# At most this many adapters are scored for a search: 5,000, or a fifth of a larger catalog.
LEAST_SCORED, _PART_SCORED = 5000, 5
_SCHEMA = f"""
CREATE TABLE stamp (stamp TEXT NOT NULL);
CREATE TABLE source (id INTEGER PRIMARY KEY, adapter TEXT NOT NULL, digest BLOB NOT NULL);
CREATE VIRTUAL TABLE texts USING fts5({", ".join(COLUMNS)}, tokenize = 'porter unicode61');
"""
_SCRIPTS = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff"
_IDEOGRAPH = re.compile(f"[{_SCRIPTS}]")
_RUN = re.compile(rf"[{_SCRIPTS}]+|[^\W_{_SCRIPTS}]+")
# A run of letters and digits in which a word ends without a sign: CamelCase, ABCWord, word2, 8B.
_JOINED = re.compile(
    r"(?<![A-Za-z0-9])[A-Za-z0-9]{0,60}?(?:[a-z][A-Z]|[A-Z]{2}[a-z]|[A-Za-z][0-9]|[0-9][A-Za-z])[A-Za-z0-9]*"
)
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_HEX_RUN = re.compile(r"[0-9a-f]{8,}|(?=[0-9a-f]*[0-9])[0-9a-f]{4}")


@dataclass(frozen=True)
class AdapterText:
    """The texts of one adapter for full-text search; `digest` covers all other fields."""

    id: int
    name: str
    card: str
    tags: str
    datasets: str
    base: str

    @property
    def digest(self) -> bytes:
        """The sha256 of everything except the id."""
        digest = hashlib.sha256()
        for text in (self.name, self.name, self.card, self.tags, self.datasets, self.base):
            data = text.encode()
            digest.update(b"%d:" % len(data))
            digest.update(data)
        return digest.digest()


class TextSource(Protocol):
    """The source of the texts."""

    def digests(self) -> Mapping[int, bytes]:
        """The digest of every adapter's text by its id."""
        ...

    def texts(self, ids: Collection[int]) -> Iterable[AdapterText]:
        """The texts of those of these adapters that still exist."""
        ...


@dataclass(frozen=True)
class WordHit:
    """An adapter that contains one of the words; `score` is BM25, higher is better."""

    id: int
    score: float


class WordIndex:
    """The words of all adapters; made by `open_words`, closed by the caller."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.size = int(connection.execute("SELECT count(*) FROM source").fetchone()[0])

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    def search(self, text: str, k: int, among: Collection[int] | None = None) -> list[WordHit]:
        """The k adapters that have words of the text, best first, ties by the adapter's name.

        Ranked by BM25 as FTS5 works it out (k1 1.2, b 0.75), all columns weighing the same; any word matches.
        Words are taken from the rarest on while at most 5,000 adapters, or a fifth of all, have them; the
        common ones left over, to which BM25 gives little weight, do not count. `among` admits only these ids;
        up to 5,000 of them are scored by all words. Raises UsageError for k below 1.
        """
        if k < 1:
            raise UsageError(f"The number of hits must be at least 1, not {k}.")
        few = among is not None and len(among) <= LEAST_SCORED
        match = _any(terms(text) if few else self._telling(terms(text)))
        if not match or (few and not among):
            return []
        # The + keeps SQLite from asking FTS5 for one adapter after the other.
        only = "AND +texts.rowid IN (SELECT value FROM json_each(?))" if among is not None else ""
        rows = self._connection.execute(
            "SELECT texts.rowid, -bm25(texts) AS score FROM texts JOIN source ON source.id = texts.rowid "  # noqa: S608
            f"WHERE texts MATCH ? {only} ORDER BY score DESC, source.adapter LIMIT ?",
            (match, *((json.dumps(list(among)),) if among is not None else ()), k),
        )
        return [WordHit(key, score) for key, score in rows]

    def where(self, text: str, ids: Collection[int]) -> dict[int, dict[str, tuple[str, ...]]]:
        """The words of these adapters that the text's words met, by id and column, in lower case."""
        match = _any(terms(text))
        if not match or not ids:
            return {}
        marked = ", ".join(
            f"highlight(texts, {n}, '{_MARKS[0]}', '{_MARKS[1]}')" for n in range(len(COLUMNS))
        )
        rows = self._connection.execute(
            f"SELECT rowid, {marked} FROM texts WHERE texts MATCH ? AND rowid IN "  # noqa: S608
            "(SELECT value FROM json_each(?))",
            (match, json.dumps(list(ids))),
        )
        return {
            key: {
                column: words
                for column, content in zip(COLUMNS, columns, strict=True)
                if (words := tuple(dict.fromkeys(word.lower() for word in _MARKED.findall(content))))
            }
            for key, *columns in rows
        }

    def _telling(self, looked_for: Collection[str]) -> list[str]:
        """The terms that some adapter has, the rarest first, as far as the number to be scored allows."""
        count = "SELECT count(*) FROM texts WHERE texts MATCH ?"
        counts = {
            term: int(self._connection.execute(count, (f'"{term}"',)).fetchone()[0]) for term in looked_for
        }
        left = max(LEAST_SCORED, self.size // _PART_SCORED)
        telling_terms: list[str] = []
        for term in sorted(filter(counts.get, counts), key=lambda term: counts[term]):
            left -= counts[term]
            if telling_terms and left < 0:
                break
            telling_terms.append(term)
        return telling_terms


def _any(terms_found: Collection[str]) -> str:
    """The FTS5 expression "one of these terms"."""
    return " OR ".join(f'"{term}"' for term in terms_found)


def separate_words(text: str) -> str:
    """The text with the words inside compounds added: `LlamaGuard2` is llama and guard too.

    snake_case and kebab-case fall apart by themselves. Hexadecimal runs, as UUIDs have, stay whole.
    Characters of scripts without spaces stand alone.
    """
    text = unicodedata.normalize("NFC", text).translate(_NO_MARKS)
    return _IDEOGRAPH.sub(r" \g<0> ", _JOINED.sub(_with_parts, text))


def _with_parts(match: re.Match[str]) -> str:
    word = match[0]
    if _HEX_RUN.fullmatch(word):
        return word
    return " ".join(dict.fromkeys((word, *(part for part in _PART.findall(word) if len(part) > 1))))


def terms(text: str) -> tuple[str, ...]:
    """The search terms of a user's text: its words, and pairs of characters in scripts without spaces.

    At most 32. They hold letters, digits and spaces only: nothing in them is FTS5's syntax. Stop words (the,
    of, to…) are left out unless there are no other words.
    """
    words_found: list[str] = []
    for run in _RUN.findall(unicodedata.normalize("NFC", text)):
        if _IDEOGRAPH.match(run):
            words_found += [" ".join(run[n : n + 2]) for n in range(max(len(run) - 1, 1))]
        else:
            words_found += separate_words(run).split()
    distinct = {term.lower(): term for term in words_found}
    telling = {word: term for word, term in distinct.items() if word not in _EMPTY_WORDS}
    return tuple((telling or distinct).values())[:_MOST_TERMS]


def open_words(folder: Path, source: TextSource) -> WordIndex:
    """The words of all adapters of the source, from the file in the folder as far as that fits.

    Writes the file where it was not current; where the folder cannot be written to, the log has a warning and
    the index works from memory. Raises CatalogError if Python's SQLite lacks FTS5.
    """
    digests = source.digests()
    place, stamp = folder / "words.db", _stamp(digests)
    with suppress(sqlite3.Error, OSError):  # replaced by another process just now
        if _stamp_of(place) == stamp:
            return _open(place, stamp)
    if write_cache(place, lambda new: _renew(new, place, source, digests, stamp)):
        with suppress(sqlite3.Error, OSError):
            return _open(place, stamp)
    connection = sqlite3.connect(":memory:")
    try:
        _fill(connection, source, digests, stamp, fresh=True)
    except BaseException:
        connection.close()
        raise
    return WordIndex(connection)


def _renew(
    new: Path, place: Path, source: TextSource, digests: Mapping[int, bytes], stamp: str
) -> dict[str, object]:
    """Makes a file of this stamp from the one in place, or from nothing; its facts."""
    fresh = _stamp_of(place) is None
    if not fresh:
        shutil.copyfile(place, new)
    elif place.exists():
        log.warning("%s is damaged or of another version: rebuilding it", place)
    with closing(sqlite3.connect(new)) as connection:
        connection.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")
        _fill(connection, source, digests, stamp, fresh=fresh)
    return {"format": _FORMAT, "stamp": stamp}


def _fill(
    connection: sqlite3.Connection,
    source: TextSource,
    digests: Mapping[int, bytes],
    stamp: str,
    *,
    fresh: bool,
) -> None:
    """Brings the tables up to date: removes texts that changed or went, adds those that changed or came."""
    if fresh:
        try:
            connection.executescript(_SCHEMA)
        except sqlite3.OperationalError as error:
            raise CatalogError(
                "The SQLite of this Python does not support full-text search; use a Python with FTS5: "
                f"{error}."
            ) from error
    stored_digests = dict(connection.execute("SELECT id, digest FROM source"))
    changed = sorted(key for key, digest in digests.items() if stored_digests.get(key) != digest)
    gone = [(key,) for key in stored_digests if stored_digests[key] != digests.get(key)]
    connection.executemany("DELETE FROM texts WHERE rowid = ?", gone)
    connection.executemany("DELETE FROM source WHERE id = ?", gone)
    for text in source.texts(changed):
        connection.execute("INSERT INTO source VALUES (?, ?, ?)", (text.id, text.name, text.digest))
        columns = (text.id, *(separate_words(getattr(text, column)) for column in COLUMNS))
        connection.execute(_INSERT, columns)
    connection.execute("DELETE FROM stamp")
    connection.execute("INSERT INTO stamp VALUES (?)", (stamp,))
    if fresh:
        connection.execute("INSERT INTO texts(texts) VALUES ('optimize')")
    connection.commit()


def _open(file: Path, stamp: str) -> WordIndex:
    """The index in an immutable file; raises sqlite3.Error if it does not have this stamp."""
    connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        # The file is never shortened, so that it can be memory-mapped: a third faster at 100,000 adapters.
        connection.execute(f"PRAGMA mmap_size = {file.stat().st_size}")
        if connection.execute("SELECT stamp FROM stamp").fetchone() != (stamp,):
            raise sqlite3.DatabaseError("another file")
        return WordIndex(connection)
    except sqlite3.Error:
        connection.close()
        raise


def _stamp_of(place: Path) -> str | None:
    """The stamp of a file of this version that is byte for byte what was written; None for any other."""
    with suppress(*DAMAGES):
        facts = read_facts(place)
        if facts["format"] == _FORMAT:
            with open_cache(place, facts):
                return str(facts["stamp"])
    return None


def _stamp(digests: Mapping[int, bytes]) -> str:
    """The sha256 of everything that determines the file."""
    stamp = hashlib.sha256(f"{_FORMAT} {_SCHEMA}".encode())
    for key in sorted(digests):
        stamp.update(b"%d %s" % (key, digests[key]))
    return stamp.hexdigest()
