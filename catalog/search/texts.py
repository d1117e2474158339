"""The texts of the catalog: model cards as vectors, and all names of an adapter as words.

The database keeps the vectors, by the sha256 of the text: a card that many adapters share, or that comes back
after a change, is embedded once. `CardVectors` and `CardTexts` are what the two indexes are made from.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Select, func, select, true
from sqlalchemy.orm import Session

from catalog.adapters import adapter_name
from catalog.database import (
    Adapter,
    BaseModelRow,
    Embedding,
    Repository,
    TextVersion,
    read_token,
    read_versions,
    store,
)
from catalog.errors import ReadOnlyCatalogError
from catalog.index import (
    PART_LENGTH,
    AdapterText,
    Embedder,
    WordIndex,
    check_vectors,
    chunks,
    content_of,
    has_content,
    open_words,
)
from catalog.query import texts_in
from catalog.search.rows import from_current, plain_rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

_BATCH = 32
_PAGE = 500
# More parts than this are picked out of all rows.
_MOST_PARTS = 200


@dataclass(frozen=True)
class EmbedCounts:
    """The counts of `embed_cards`: adapters, those of them whose card says too little, distinct texts of
    the others, how many of these had their vectors already, how many were embedded, and in how many chunks.
    """

    adapters: int
    missing: int
    texts: int
    known: int
    new: int
    chunks: int


def embed_cards(
    session: Session, embedder: Embedder, progress: Callable[[int, int], None] = lambda done, total: None
) -> EmbedCounts:
    """Writes the vectors of all cards that have none by this encoder yet; commits after every batch.

    An interrupted run continues where it stopped; a read-only catalog gets none. `progress` is called with
    the number of new texts done. Texts go to the encoder in the order of their digests, so that two runs
    embed the same batches. Raises CatalogError for vectors of another size, or that are not finite.
    """
    adapters, missing = 0, 0
    adapter_of_content: dict[str, int] = {}
    cards = from_current(select(Adapter.id, Adapter.card_quality, Adapter.card_text))
    for key, quality, text in session.execute(cards.execution_options(yield_per=_PAGE)):
        adapters += 1
        if has_content(quality, text):
            adapter_of_content.setdefault(content_of(text), key)
        else:
            missing += 1
    embedded = set(
        session.scalars(select(Embedding.content).where(Embedding.model == embedder.name).distinct())
    )
    new = sorted(adapter_of_content.keys() - embedded)
    session.commit()
    written = _embed_texts(session, embedder, {key: adapter_of_content[key] for key in new}, progress)
    known_texts, all_texts = len(adapter_of_content) - len(new), len(adapter_of_content)
    embedded_texts, chunk_count = (0, 0) if written is None else (len(new), written)
    return EmbedCounts(adapters, missing, all_texts, known_texts, embedded_texts, chunk_count)


def _embed_texts(
    session: Session, embedder: Embedder, new: Mapping[str, int], progress: Callable[[int, int], None]
) -> int | None:
    """Embeds texts, sorted, given as the adapter that has each; the number of chunks, None for a read-
    only catalog.
    """
    written, contents = 0, list(new)
    for start in range(0, len(contents), _BATCH):
        progress(start, len(contents))
        try:
            written += _embed_batch(
                session, embedder, {key: new[key] for key in contents[start : start + _BATCH]}
            )
        except ReadOnlyCatalogError as error:
            log.info("Vectors of cards are not stored: %s.", error)
            session.rollback()
            return None
    progress(len(contents), len(contents))
    return written


def _embed_batch(session: Session, embedder: Embedder, batch: Mapping[str, int]) -> int:
    """Embeds texts, given as the adapter that has each, and commits; the number of chunks."""
    cards = session.scalars(select(Adapter.card_text).where(Adapter.id.in_(batch.values())))
    # A card that changed since it was listed is of the next run.
    texts = {content: card for card in cards if (content := content_of(card)) in batch}
    # No transaction is open while the encoder works, and the one below begins with its write: on SQLite, one
    # that reads first would fail where another process wrote in between.
    session.commit()
    places = [
        (content, n, chunk) for content in sorted(texts) for n, chunk in enumerate(chunks(texts[content]))
    ]
    if not places:
        return 0
    vectors = check_vectors(embedder.encode([chunk for _, _, chunk in places]), len(places), embedder)
    rows = [
        {"content": content, "model": embedder.name, "chunk": n, "vector": vector.tobytes()}
        for (content, n, _), vector in zip(places, vectors, strict=True)
    ]
    # Another process that embeds at the same time writes the same.
    store.insert_new(session, Embedding, rows)
    session.commit()
    return len(rows)


def embed_new_cards(
    session: Session,
    folder: Path,
    embedder: Embedder,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Writes the vectors of the cards that have none, as `embed_cards` does; the number of those left
    without.

    The index of words in the folder knows all cards and whether they have vectors, so that nothing is read
    where nothing has changed; it is brought up to date.
    """
    with closing(open_words(folder, CardTexts(session))) as words:
        token = read_token(session, "texts", "embeddings")
        if words.missing_vectors(embedder.name, token) == 0:
            return 0
        missing = _without_vector(session, words, embedder.name)
        new = {content: ids[-1] for content, ids in sorted(words.adapters(missing).items())}
        words.note_vectors(embedder.name, token, len(new))
    session.commit()
    if new and _embed_texts(session, embedder, new, progress) is None:
        return len(new)
    return 0


def count_missing(session: Session, words: WordIndex, model: str) -> int:
    """The number of distinct cards in the index of words that have no vector by a model."""
    token = read_token(session, "texts", "embeddings")
    missing = words.missing_vectors(model, token)
    if missing is None:
        missing = len(_without_vector(session, words, model))
        words.note_vectors(model, token, missing)
    return missing


def _without_vector(session: Session, words: WordIndex, model: str) -> set[str]:
    """The distinct cards in the index of words that have no vector by a model."""
    missing = words.card_contents()
    embedded = select(Embedding.content).where(Embedding.model == model, Embedding.chunk == 0)
    missing.difference_update(content for (content,) in plain_rows(session, embedded))
    return missing


def read_parts(
    session: Session, query: Select[*tuple[Any, ...]], column: Any, parts: Collection[str] | None
) -> Iterator[Any]:
    """The rows of a statement whose first column, `column`, begins with one of some parts; all without
    these.
    """
    conditions: list[Any] = [true()]
    if parts is not None and len(parts) <= _MOST_PARTS:
        if session.get_bind().dialect.name == "sqlite":
            # A range, which an index can find: digests have letters and digits, of which z is the last.
            conditions = [column.between(part, part + 60 * "z") for part in sorted(parts)]
        else:
            # No order: it is that of the database's collation, of which some sort "aa" after "z".
            conditions = [func.substr(column, 1, PART_LENGTH).in_(sorted(parts))] if parts else []
    for condition in conditions:
        for row in session.execute(query.where(condition)):
            if parts is None or row[0][:PART_LENGTH] in parts:
                yield row


class CardVectors:
    """The vectors of all cards by one encoder, of old ones too; a `catalog.index.VectorSource`.

    A key is `content:chunk`, the chunk with two digits.
    """

    def __init__(self, session: Session, model: str) -> None:
        self._session, self._model = session, model

    def token(self) -> str:
        """The token of all vectors of cards."""
        return read_token(self._session, "embeddings")

    def versions(self) -> Mapping[str, int]:
        """The version of each part of all vectors of cards."""
        return read_versions(self._session, "embeddings")

    def keys(self, parts: Collection[str] | None = None) -> Sequence[str]:
        """The keys of all chunks that have a vector, sorted; of some parts, or all."""
        query = select(Embedding.content, Embedding.chunk).where(Embedding.model == self._model)
        rows = read_parts(self._session, query, Embedding.content, parts)
        return sorted(f"{content}:{chunk:02}" for content, chunk in rows)

    def vectors(self, keys: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        """The vectors of these keys in their order, in blocks of (at most 500, size)."""
        import numpy as np

        query = select(Embedding.content, Embedding.chunk, Embedding.vector)
        query = query.where(Embedding.model == self._model)
        for start in range(0, len(keys), _PAGE):
            block = keys[start : start + _PAGE]
            contents = {key.partition(":")[0] for key in block}
            rows = self._session.execute(query.where(Embedding.content.in_(contents)))
            vectors_by_key = {f"{content}:{chunk:02}": vector for content, chunk, vector in rows}
            yield np.stack([np.frombuffer(vectors_by_key[key], dtype="<f4") for key in block])


class CardTexts:
    """The names and texts of listed adapters, as words; a `catalog.index.words.TextSource`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def token(self) -> str:
        """The token of all texts."""
        return read_token(self._session, "texts")

    def versions(self) -> Mapping[int, int]:
        """The version of every adapter's text by its id."""
        # An index has what this asks of adapters.
        listed = select(Adapter.id, TextVersion.version).join(Adapter.repository)
        listed = listed.join(TextVersion, TextVersion.adapter_id == Adapter.id)
        listed = listed.where(Adapter.current, Repository.gone_at.is_(None))
        return dict(plain_rows(self._session, listed))

    def texts(self, ids: Collection[int]) -> Iterator[AdapterText]:
        """The texts of those of these adapters that still exist."""
        sorted_ids = sorted(ids)
        for start in range(0, len(sorted_ids), _PAGE):
            page = sorted_ids[start : start + _PAGE]
            for row in self._session.execute(
                _select_names().where(Adapter.id.in_(page)).order_by(Adapter.id)
            ):
                yield _text(row)


def _select_names() -> Select[Any]:
    own = (Adapter.id, Adapter.subfolder, Adapter.card_quality, Adapter.card_text, Adapter.card_front)
    return from_current(select(*own, Repository.name, Repository.tags, BaseModelRow.canonical))


def _text(row: Any) -> AdapterText:
    front = row.card_front if isinstance(row.card_front, dict) else {}
    return AdapterText(
        id=row.id,
        name=adapter_name(row.name, row.subfolder),
        card=row.card_text,
        tags=" ".join(texts_in(row.tags)),
        datasets=" ".join(texts_in(front.get("datasets"))),
        base=row.canonical or "",
        content=content_of(row.card_text) if has_content(row.card_quality, row.card_text) else None,
    )
