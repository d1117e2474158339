"""Full-text search as a cache: an FTS5 file in the folder `index/`, whatever database the catalog is in.

The file `words.db` holds the texts of each adapter split into words, with the version of each text and the
token of the catalog that they were read at. A file of another token is changed in place: texts of another
version are read again, in one transaction with the new token, and readers keep what they opened (write-
ahead log). A file that is damaged or of another format is built again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sqlite3
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from catalog.errors import CatalogError, StorageError, UsageError
from catalog.files import lock_cache, replace_file
from catalog.index.vectors import IndexState

log = logging.getLogger(__name__)

COLUMNS = ("name", "card", "tags", "datasets", "base")
# Version of how texts become words and of the tables: a change raises it, and files are rebuilt.
_FORMAT = 3
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
# The head of a ranking whose names are read, so that ties are broken by them.
_HEAD = 1000
# Of a file with more changed texts than this part, all are read again.
_PART_CHANGED = 2
_BUSY_SECONDS = 30
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_REFUSED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
_SCHEMA = f"""
CREATE TABLE state (
    format INTEGER NOT NULL, token TEXT NOT NULL, size INTEGER NOT NULL, cards INTEGER NOT NULL
);
CREATE TABLE embedded (model TEXT PRIMARY KEY, token TEXT NOT NULL, missing INTEGER NOT NULL);
CREATE TABLE source (
    id INTEGER PRIMARY KEY, version INTEGER NOT NULL, digest BLOB NOT NULL, adapter TEXT NOT NULL, content
    TEXT
);
CREATE INDEX source_content ON source (content, id);
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
    """The texts of one adapter for full-text search; `digest` covers all other fields.

    `content` names the vectors of its card (`catalog.index.content_of`), None for a card that has none.
    """

    id: int
    name: str
    card: str
    tags: str
    datasets: str
    base: str
    content: str | None = None

    @property
    def digest(self) -> bytes:
        """The sha256 of everything except the id."""
        digest = hashlib.sha256()
        for text in (self.name, self.content or "", self.card, self.tags, self.datasets, self.base):
            data = text.encode()
            digest.update(b"%d:" % len(data))
            digest.update(data)
        return digest.digest()


class TextSource(Protocol):
    """The source of the texts."""

    def token(self) -> str:
        """A text that differs whenever a version does; quick."""
        ...

    def versions(self) -> Mapping[int, int]:
        """The version of every adapter's text by its id."""
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
    """The words of all adapters, as they were when `open_words` made this; closed by the caller."""

    def __init__(self, connection: sqlite3.Connection, file: Path | None = None) -> None:
        self._connection, self._file = connection, file
        [[size, cards]] = self._rows("SELECT size, cards FROM state")
        self.size, self.cards = int(size), int(cards)

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    def versions(self) -> dict[int, int]:
        """The version of every adapter's text by its id."""
        return dict(self._rows("SELECT id, version FROM source"))

    def names(self, ids: Collection[int]) -> dict[int, str]:
        """The names of those of these adapters that are there."""
        query = "SELECT id, adapter FROM source WHERE id IN (SELECT value FROM json_each(?))"
        return dict(self._rows(query, json.dumps(list(ids))))

    def contents(self, ids: Collection[int]) -> dict[int, str]:
        """What names the vectors of the cards of these adapters, for those that have one."""
        query = (
            "SELECT id, content FROM source WHERE content IS NOT NULL "
            "AND id IN (SELECT value FROM json_each(?))"
        )
        return dict(self._rows(query, json.dumps(list(ids))))

    def card_contents(self) -> set[str]:
        """What names the vectors of the cards of all adapters."""
        query = "SELECT DISTINCT content FROM source WHERE content IS NOT NULL"
        return {content for (content,) in self._rows(query)}

    def adapters(self, contents: Collection[str]) -> dict[str, list[int]]:
        """The adapters with a card of one of these contents, by content."""
        ids: dict[str, list[int]] = {}
        query = "SELECT content, id FROM source WHERE content IN (SELECT value FROM json_each(?)) ORDER BY id"
        for content, key in self._rows(query, json.dumps(list(contents))):
            ids.setdefault(content, []).append(key)
        return ids

    def missing_vectors(self, model: str, token: str) -> int | None:
        """What `note_vectors` recorded for a model at this token; None where it did not."""
        rows = self._rows("SELECT missing FROM embedded WHERE model = ? AND token = ?", model, token)
        return int(rows[0][0]) if rows else None

    def note_vectors(self, model: str, token: str, missing: int) -> None:
        """Records how many cards have no vector by a model at this token; nothing where the file takes
        none.
        """
        if self._file is None:
            return
        with suppress(sqlite3.Error), closing(sqlite3.connect(self._file)) as connection, connection:
            connection.execute("INSERT OR REPLACE INTO embedded VALUES (?, ?, ?)", (model, token, missing))

    def _rows(self, query: str, *parameters: Any) -> list[Any]:
        """The rows of a query; raises StorageError for a damaged file, which is removed."""
        try:
            return self._connection.execute(query, parameters).fetchall()
        except sqlite3.DatabaseError as error:
            if self._file is None or error.sqlite_errorcode & 0xFF not in _DAMAGED:
                raise
            with suppress(OSError):
                _remove(self._file)
            raise StorageError(
                f"The index {self._file} is damaged and was removed: run the command again, to rebuild it."
            ) from error

    def search(
        self, text: str, k: int, among: Collection[int] | None = None, *, every_word: bool = False
    ) -> list[WordHit]:
        """The k adapters that have words of the text, best first, ties by the adapter's name.

        Ranked by BM25 as FTS5 works it out (k1 1.2, b 0.75), all columns weighing the same; any word matches.
        Words are taken from the rarest on while at most 5,000 adapters, or a fifth of all, have them; the
        common ones left over, to which BM25 gives little weight, do not count, unless `every_word` is to.
        `among` admits only these ids; up to 5,000 of them are scored by all words. Raises UsageError for k
        below 1.
        """
        if k < 1:
            raise UsageError(f"The number of hits must be at least 1, not {k}.")
        few = among is not None and len(among) <= LEAST_SCORED
        match = _any(terms(text) if few or every_word else self._telling(self._counts(terms(text))))
        if not match or (few and not among):
            return []
        # The + keeps SQLite from asking FTS5 for one adapter after the other.
        only = "AND +texts.rowid IN (SELECT value FROM json_each(?))" if among is not None else ""
        allowed = (json.dumps(list(among)),) if among is not None else ()
        columns = "SELECT texts.rowid, -bm25(texts) AS score FROM texts"
        # A few more are seldom equal to the last one; names are then read of these alone.
        size = max(_HEAD, 2 * k)
        head = f"{columns} WHERE texts MATCH ? {only} ORDER BY score DESC LIMIT ?"
        rows = self._rows(head, match, *allowed, size)
        if len(rows) < size or rows[k - 1][1] != rows[-1][1]:
            least = rows[min(k, len(rows)) - 1][1] if rows else 0.0
            hits = [WordHit(key, score) for key, score in rows if score >= least]
            names = self.names([hit.id for hit in hits])
            return sorted(hits, key=lambda hit: (-hit.score, names[hit.id]))[:k]
        rows = self._rows(
            f"{columns} JOIN source ON source.id = texts.rowid WHERE texts MATCH ? {only} "
            "ORDER BY score DESC, source.adapter LIMIT ?",
            match,
            *allowed,
            k,
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
        rows = self._rows(
            f"SELECT rowid, {marked} FROM texts WHERE texts MATCH ? AND rowid IN "  # noqa: S608
            "(SELECT value FROM json_each(?))",
            match,
            json.dumps(list(ids)),
        )
        return {
            key: {
                column: words
                for column, content in zip(COLUMNS, columns, strict=True)
                if (words := tuple(dict.fromkeys(word.lower() for word in _MARKED.findall(content))))
            }
            for key, *columns in rows
        }

    def counts_all(self, text: str) -> bool:
        """Whether a search of all adapters for a text counts each of its words, however common."""
        counts = self._counts(terms(text))
        return len(self._telling(counts)) == len(counts)

    def _counts(self, looked_for: Collection[str]) -> dict[str, int]:
        """The number of adapters that have each term, for those that some adapter has."""
        query = "SELECT count(*) FROM texts WHERE texts MATCH ?"
        counts = {term: int(self._rows(query, f'"{term}"')[0][0]) for term in looked_for}
        return {term: count for term, count in counts.items() if count}

    def _telling(self, counts: Mapping[str, int]) -> list[str]:
        """The terms of `counts`, the rarest first, as far as the number of adapters to be scored allows."""
        left = max(LEAST_SCORED, self.size // _PART_SCORED)
        telling_terms: list[str] = []
        for term in sorted(counts, key=lambda term: counts[term]):
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

    Changes the file where it was not current; where the folder cannot be written to, the log has a warning
    and the index works from memory. Raises CatalogError if Python's SQLite lacks FTS5.
    """
    place, token = folder / "words.db", source.token()
    index = _open(place, token)
    if index is not None:
        return index
    with lock_cache(place) as locked:
        if locked:
            _update(place, token, source)
    index = _open(place, token)
    if index is not None:
        return index
    versions = source.versions()
    index = _open_same(place, versions)
    if index is not None:
        return index
    connection = sqlite3.connect(":memory:")
    try:
        _fill(connection, token, source, versions)
        return WordIndex(connection)
    except BaseException:
        connection.close()
        raise


def check_words(folder: Path, source: TextSource) -> IndexState:
    """The state of the file of words, by reading all texts and comparing them with what is indexed."""
    place = folder / "words.db"
    if not place.is_file():
        return IndexState("missing", 0, place)
    try:
        with closing(sqlite3.connect(place, timeout=_BUSY_SECONDS)) as connection:
            state = connection.execute("SELECT format, token FROM state").fetchone()
            if state is None or state[0] != _FORMAT:
                return IndexState("stale", 0, place)
            count = int(connection.execute("SELECT count(*) FROM source").fetchone()[0])
            if connection.execute("PRAGMA quick_check").fetchone() != ("ok",):
                return IndexState("corrupt", 0, place)
            with suppress(sqlite3.OperationalError):  # a file that may only be read
                connection.execute("INSERT INTO texts(texts, rank) VALUES ('integrity-check', 1)")
                connection.rollback()
            stored = dict(connection.execute("SELECT id, digest FROM source"))
    except sqlite3.DatabaseError:
        return IndexState("corrupt", 0, place)
    digests = {text.id: text.digest for text in source.texts(source.versions())}
    current = digests == stored and state[1] == source.token()
    return IndexState("current" if current else "stale", count, place)


def rebuild_words(folder: Path, source: TextSource) -> IndexState:
    """Builds the file of words again; its state. Raises StorageError."""
    place = folder / "words.db"
    try:
        _remove(place)
    except OSError as error:
        raise StorageError(f"The index {place} cannot be removed: {error.strerror}.") from error
    open_words(folder, source).close()
    state = check_words(folder, source)
    if state.state != "current":
        raise StorageError(f"The index {place} cannot be written: it is still {state.state}.")
    return state


def _open_same(place: Path, versions: Mapping[int, int]) -> WordIndex | None:
    """The index in the file, of whatever token, if it has the texts of these versions; else None."""
    with suppress(StorageError):
        index = _open(place)
        if index is not None and index.versions() == versions:
            return index
        if index is not None:
            index.close()
    return None


def _open(place: Path, token: str | None = None) -> WordIndex | None:
    """The index in the file if it has this token, or any, at the state that it has now; else None."""
    if not place.is_file():
        return None
    for options in ("mode=ro", "mode=ro&immutable=1"):
        log_file = place.with_name(f"{place.name}-wal")
        if "immutable" in options and log_file.exists() and log_file.stat().st_size:
            break
        with suppress(sqlite3.Error, OSError):
            address = f"{place.absolute().as_uri()}?{options}"
            connection = sqlite3.connect(address, uri=True, isolation_level=None, timeout=_BUSY_SECONDS)
            try:
                # The file is never shortened, so that it can be memory-mapped: a third faster for 100,000
                # texts.
                connection.execute(f"PRAGMA mmap_size = {1 << 40}")
                connection.execute("BEGIN")
                connection.execute("SELECT id FROM source LIMIT 1")
                state = connection.execute("SELECT format, token FROM state").fetchone()
                if state and state[0] == _FORMAT and token in (None, state[1]):
                    return WordIndex(connection, place)
            except BaseException:
                connection.close()
                raise
            connection.close()
            return None
    return None


def _update(place: Path, token: str, source: TextSource) -> None:
    """Brings the file to this token: in place where it is sound and most texts are the same, else as a new
    one.

    Raises OSError, sqlite3.OperationalError.
    """
    versions = source.versions()
    if place.is_file():
        try:
            with closing(sqlite3.connect(place, isolation_level=None, timeout=_BUSY_SECONDS)) as connection:
                connection.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;")
                connection.execute("BEGIN IMMEDIATE")
                if _change(connection, token, source, versions):
                    connection.execute("COMMIT")
                    return
                log.info("%s is of another format, or most texts are new: rebuilding it", place)
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF in _REFUSED:
                raise
            log.warning("%s is damaged: rebuilding it", place)
    _remove(place)
    with replace_file(place) as new, closing(sqlite3.connect(new)) as connection:
        connection.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")
        _fill(connection, token, source, versions)
        connection.execute("PRAGMA journal_mode = WAL")


def _change(
    connection: sqlite3.Connection, token: str, source: TextSource, versions: Mapping[int, int]
) -> bool:
    """Removes the texts that changed or went, and adds those that changed or came; False where all must
    be read.
    """
    if connection.execute("SELECT format FROM state").fetchone() != (_FORMAT,):
        return False
    stored = dict(connection.execute("SELECT id, version FROM source"))
    changed = [key for key, version in versions.items() if stored.get(key) != version]
    if len(changed) * _PART_CHANGED > len(stored):
        return False
    gone = [(key,) for key, version in stored.items() if versions.get(key) != version]
    connection.executemany("DELETE FROM texts WHERE rowid = ?", gone)
    connection.executemany("DELETE FROM source WHERE id = ?", gone)
    _insert(connection, token, source, versions, changed)
    return True


def _fill(
    connection: sqlite3.Connection, token: str, source: TextSource, versions: Mapping[int, int]
) -> None:
    """Makes the tables, with all texts."""
    try:
        connection.executescript(_SCHEMA)
    except sqlite3.OperationalError as error:
        raise CatalogError(
            f"The SQLite of this Python does not support full-text search; use a Python with FTS5: {error}."
        ) from error
    _insert(connection, token, source, versions, versions)
    connection.execute("INSERT INTO texts(texts) VALUES ('optimize')")
    connection.commit()


def _insert(
    connection: sqlite3.Connection,
    token: str,
    source: TextSource,
    versions: Mapping[int, int],
    ids: Collection[int],
) -> None:
    """Adds the texts of these adapters, and sets the token."""
    for text in source.texts(sorted(ids)):
        row = (text.id, versions[text.id], text.digest, text.name, text.content)
        connection.execute("INSERT INTO source VALUES (?, ?, ?, ?, ?)", row)
        columns = (text.id, *(separate_words(getattr(text, column)) for column in COLUMNS))
        connection.execute(_INSERT, columns)
    counts = connection.execute("SELECT count(*), count(DISTINCT content) FROM source").fetchone()
    connection.execute("DELETE FROM state")
    connection.execute("INSERT INTO state VALUES (?, ?, ?, ?)", (_FORMAT, token, *counts))


def _remove(place: Path) -> None:
    """Removes the file with its log, and the facts that earlier versions wrote; raises OSError."""
    for end in ("-wal", "-shm", ""):
        place.with_name(place.name + end).unlink(missing_ok=True)
    place.with_suffix(".json").unlink(missing_ok=True)
