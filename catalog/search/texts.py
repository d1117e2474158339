"""The texts of the catalog: model cards as vectors, and all names of an adapter as words.

The database keeps the vectors, by the sha256 of the text: a card that many adapters share, or that comes back
after a change, is embedded once. `CardVectors` and `CardTexts` are what the two indexes are made from.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Select, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from catalog.adapters import adapter_name
from catalog.database import Adapter, BaseModelRow, Embedding, Repository
from catalog.errors import ReadOnlyCatalogError
from catalog.index import AdapterText, Embedder, check_vectors, chunks, content_of, has_content
from catalog.query import texts_in
from catalog.search.rows import from_current

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

_BATCH = 32
_PAGE = 500


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
    written = 0
    known_texts = len(adapter_of_content) - len(new)
    for start in range(0, len(new), _BATCH):
        progress(start, len(new))
        batch = {key: adapter_of_content[key] for key in new[start : start + _BATCH]}
        try:
            written += _embed_batch(session, embedder, batch)
        except ReadOnlyCatalogError as error:
            log.info("Vectors of cards are not stored: %s.", error)
            session.rollback()
            return EmbedCounts(adapters, missing, len(adapter_of_content), known_texts, 0, 0)
    progress(len(new), len(new))
    return EmbedCounts(adapters, missing, len(adapter_of_content), known_texts, len(new), written)


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
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    # Another process that embeds at the same time writes the same.
    session.execute(insert(Embedding).on_conflict_do_nothing(), rows)
    session.commit()
    return len(rows)


class CardVectors:
    """The vectors of some texts by one encoder; a `catalog.index.vectors.VectorSource`.

    A key is `content:chunk`, the chunk with two digits. Content and encoder decide the vector.
    """

    def __init__(self, session: Session, model: str, contents: frozenset[str]) -> None:
        self._session, self._model, self._contents = session, model, contents

    def keys(self) -> Sequence[str]:
        """The keys of all chunks that have a vector, sorted."""
        rows = self._session.execute(
            select(Embedding.content, Embedding.chunk).where(Embedding.model == self._model)
        )
        return sorted(f"{content}:{chunk:02}" for content, chunk in rows if content in self._contents)

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
    """The names and texts of listed adapters, as words; a `catalog.index.words.TextSource`.

    `names` and `contents` are filled by `digests`: the adapter's name, and the name of its card's vectors
    where it has content, by id.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.names: dict[int, str] = {}
        self.contents: dict[int, str] = {}

    def digests(self) -> Mapping[int, bytes]:
        """The digest of every adapter's text by its id; reads all cards once."""
        digests_by_id: dict[int, bytes] = {}
        self.names, self.contents = {}, {}
        for row in self._session.execute(_select_names().execution_options(yield_per=_PAGE)):
            text = _text(row)
            digests_by_id[text.id] = text.digest
            self.names[text.id] = text.name
            if has_content(row.card_quality, row.card_text):
                self.contents[text.id] = content_of(row.card_text)
        return digests_by_id

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
    )
