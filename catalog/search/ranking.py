"""Search by words and by meaning: filters, BM25 and vectors of cards → one ranked list with reasons.

Two rankings are joined by reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009): an adapter
scores the sum over rankings of weight / (60 + rank). Ranks need no calibration between a BM25 and a cosine.
Writes no rows; the indexes write their caches.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import Session

from catalog.database import Adapter
from catalog.errors import UsageError
from catalog.index import (
    LEAST_SCORED,
    MOST_CHUNKS,
    Embedder,
    Space,
    VectorIndex,
    WordHit,
    WordIndex,
    check_vectors,
    chunks,
    content_of,
    open_index,
    open_words,
)
from catalog.query import Query
from catalog.search.rows import Among, from_current, matching, without_hidden
from catalog.search.texts import CardTexts, CardVectors, count_missing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The constant of the fusion, from the paper.
FUSION = 60
# The minimum number of the best of each ranking that are joined.
DEPTH = 200
# In a catalog of more than LEAST_SCORED adapters a filter examines this many times the depth first, then as
# many times more, and the whole catalog only if too few of them pass.
_AHEAD = 8
_MOST_AHEAD = 20_000
MOST_TEXT = 10_000
_EXCERPT = 160


@dataclass(frozen=True)
class SearchWeights:
    """The weight of each ranking; raises UsageError unless finite, not negative, and not both zero.

    Equal by default: they are not tuned, for lack of judged queries.
    """

    words: float = 1.0
    meaning: float = 1.0

    def __post_init__(self) -> None:
        weights = (self.words, self.meaning)
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
            raise UsageError("The weights of words and meaning must be non-negative numbers, not both zero.")


EVEN = SearchWeights()


@dataclass(frozen=True)
class SearchHit:
    """An adapter in the results.

    `words` are those that the text's words met, by column; `cosine` is that of the best chunk of its card, of
    which `excerpt` is the beginning, None and "" if it was not found by meaning.
    """

    id: int
    adapter: str
    score: float
    commit: str
    rank: int | None
    license: str | None
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cosine: float | None = None
    excerpt: str = ""

    @property
    def why(self) -> str:
        """The basis of the score, in words."""
        parts = [f"{column}: {', '.join(words)}" for column, words in self.words.items()]
        if self.cosine is not None:
            parts.append(f"meaning {self.cosine:z.2f}" + (f": “{self.excerpt}”" if self.excerpt else ""))
        return "; ".join(parts)


@dataclass(frozen=True)
class Found:
    """The hits, best first, and notes on how they were found."""

    hits: tuple[SearchHit, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Texts:
    """Both indexes over the texts of a catalog as it was when `open_texts` made this."""

    session: Session
    words: WordIndex
    vectors: VectorIndex | None
    embedder: Embedder | None

    @cached_property
    def missing(self) -> int:
        """The number of distinct cards without a vector."""
        if self.embedder is None:
            return self.words.cards
        return count_missing(self.session, self.words, self.embedder.name)


@dataclass(frozen=True)
class _Near:
    """The result of an adapter by meaning: its rank among the distinct cards, the cosine, the best chunk."""

    rank: int
    cosine: float
    chunk: str


@contextmanager
def open_texts(session: Session, folder: Path, embedder: Embedder | None) -> Iterator[Texts]:
    """Both indexes from the folder of caches, brought up to date; without an encoder, words alone.

    Vectors are those that `catalog.search.embed_cards` wrote: nothing is embedded here. Raises CatalogError
    as `open_words` and `open_index` do.
    """
    index = None
    with closing(open_words(folder, CardTexts(session))) as words:
        if embedder is not None:
            space = Space("text", embedder.name, embedder.size)
            index = open_index(folder, space, CardVectors(session, embedder.name))
        yield Texts(session, words, index, embedder)


def search(
    session: Session,
    texts: Texts,
    text: str,
    k: int,
    *,
    query: Query | None = None,
    refusing: Collection[str] = (),
    weights: SearchWeights = EVEN,
    among: Among | None = None,
    most: int | None = None,
    joined: int | None = None,
) -> Found:
    """The k adapters that match a text best by words and by meaning, among those that match the filter.

    With `among` the rows that it gives are ranked, whatever else the catalog holds, without a filter and by
    all words; at most `most` are given. With `joined` only so many of the best of each ranking have a score;
    adapters that are among neither come after them, by their ranks, with a score of 0. Up to `joined` hits
    are then found without ranking the rest.

    Words that are common in a large catalog count only where the others find too few. `refusing` decides the
    verdict that the filter may use; without a filter all adapters are searched. Equal scores share a rank in
    each ranking; of equal sums those that words found come first, then names decide.
    Raises UsageError for an empty text, one of more than 10,000 characters, and k below 1.
    """
    text = text.strip()
    if not text or len(text) > MOST_TEXT:
        raise UsageError(f"The text to search for must have 1 to {MOST_TEXT:,} characters.")
    if k < 1:
        raise UsageError(f"The number of hits must be at least 1, not {k}.")
    if not texts.words.size:
        return Found((), ("The catalog contains no adapters to search.",))
    depth = max(DEPTH, 2 * k)
    joined = depth if joined is None else min(depth, joined)
    if most is not None and most <= joined:
        depth = joined
    if among is None and (query := without_hidden(session, query)) is not None:
        matches: Among | None = partial(_matching_ids, session, query, refusing)
    else:
        matches = among
    vector = _text_vector(texts, text) if weights.meaning else None

    def rank(*, every_word: bool) -> _Ranking | None:
        def heads(depth: int, ids: set[int] | None) -> _Heads:
            words = texts.words.search(text, depth, ids, every_word=every_word) if weights.words else []
            return _Heads(words, *_cards(texts, vector, depth, ids), ids)

        # With `among`, about k adapters are admitted.
        ahead = _AHEAD * depth if among is None else 5 * depth * texts.words.size // (4 * k)
        found = _heads(heads, texts.words.size, depth, matches, ahead)
        return None if found is None else _join(texts, found, depth, joined, weights)

    wanted = k if most is None else min(k, most)
    ranking = rank(every_word=among is not None)
    found_few = ranking is not None and len(ranking.best) < wanted
    if found_few and among is None and weights.words and not texts.words.counts_all(text):
        ranking = rank(every_word=True)
    if ranking is None:
        return Found((), ("No adapter matches the filter.",))
    best = ranking.best[:wanted]
    words = texts.words.where(text, [key for key in best if key in ranking.ranks])
    scores = {key: ranking.scores.get(key, 0.0) for key in best}
    hits = _hits(session, texts.words.names(best), scores, words, ranking.near)
    return Found(
        hits,
        (
            *_notes(texts, weights),
            *(() if hits else ("No adapter contains any of these words, and no card is similar to them.",)),
        ),
    )


@dataclass(frozen=True)
class _Ranking:
    """The adapters of both rankings, best first; the scores of those that have one; and either ranking."""

    best: list[int]
    scores: dict[int, float]
    ranks: dict[int, int]
    near: dict[int, _Near]


def _join(texts: Texts, heads: _Heads, depth: int, joined: int, weights: SearchWeights) -> _Ranking:
    """The joined ranking: those of the first `joined` of each by their scores, the others after them."""
    ranks, near = _word_ranks(heads.words[:joined]), _near_ranks(heads, joined)
    scores, later = _sum_ranks(ranks, near, weights), dict[int, float]()
    if joined < depth:
        all_ranks, all_near = _word_ranks(heads.words[:depth]), _near_ranks(heads, depth)
        later = {
            key: score for key, score in _sum_ranks(all_ranks, all_near, weights).items() if key not in scores
        }
        ranks |= {key: all_ranks[key] for key in later if key in all_ranks}
        near |= {key: all_near[key] for key in later if key in all_near}
    # For equal sums, a matching word counts more than a near vector.
    every = {**scores, **later}
    names = texts.words.names(every)
    best = sorted(every, key=lambda key: (key in later, -every[key], key not in ranks, names[key], key))
    return _Ranking(best, scores, ranks, near)


def _sum_ranks(
    ranks: Mapping[int, int], near: Mapping[int, _Near], weights: SearchWeights
) -> dict[int, float]:
    """The score of each adapter of two rankings."""
    return {
        key: (weights.words / (FUSION + ranks[key]) if key in ranks else 0.0)
        + (weights.meaning / (FUSION + near[key].rank) if key in near else 0.0)
        for key in {**ranks, **near}
    }


@dataclass(frozen=True)
class _Heads:
    """The heads of both rankings, best first: adapters by words, cards by meaning with the cosine and the key
    of their best chunk, and the adapters that have each. Of these, `allowed` can be found; None for all.
    """

    words: list[WordHit]
    cards: dict[str, tuple[float, str]]
    adapters: dict[str, list[int]]
    allowed: set[int] | None = None

    def among(self, allowed: set[int]) -> _Heads:
        """The remaining ones."""
        cards = {key: card for key, card in self.cards.items() if allowed.intersection(self.adapters[key])}
        return _Heads([hit for hit in self.words if hit.id in allowed], cards, self.adapters, allowed)


def _heads(
    heads: Callable[[int, set[int] | None], _Heads],
    size: int,
    depth: int,
    matches: Among | None,
    ahead: int,
) -> _Heads | None:
    """Both rankings to this depth at least, of the adapters that match, of `size` in the catalog; None if
    there are none. `ahead` is the depth at which so many are expected to match.

    Filtering the head of a ranking of all gives the head of the filtered one, and reads a few rows of a large
    catalog instead of all. Where too few of it match, those that match are ranked by themselves.
    """
    if matches is None:
        return heads(depth, None)
    ahead = max(depth, ahead)
    while depth < _MOST_AHEAD and size > LEAST_SCORED:
        ahead = min(ahead, _MOST_AHEAD)
        head = heads(ahead, None)
        ids = {hit.id for hit in head.words}.union(*(head.adapters[key] for key in head.cards))
        left = head.among(matches(ids))
        if all(
            len(after) >= depth or len(before) < ahead
            for before, after in ((head.words, left.words), (head.cards, left.cards))
        ) and (left.words or left.cards):
            return left
        if ahead == _MOST_AHEAD:
            break
        ahead *= _AHEAD
    matching_ids = matches(None)
    return heads(depth, matching_ids) if matching_ids else None


def _matching_ids(
    session: Session, query: Query, refusing: Collection[str], among: Collection[int] | None
) -> set[int]:
    """The listed adapters that match the filter, of all or of some."""
    return matching(session, from_current(select(Adapter.id)).where(query.clause(refusing)), among)


def _word_ranks(hits: Sequence[WordHit]) -> dict[int, int]:
    """The rank by BM25 of adapters: 1 and the number of those with a higher score."""
    ranks: dict[int, int] = {}
    for place, hit in enumerate(hits):
        level = place > 0 and hit.score == hits[place - 1].score
        ranks[hit.id] = ranks[hits[place - 1].id] if level else place + 1
    return ranks


def _cards(
    texts: Texts, vector: NDArray[np.float32] | None, depth: int, allowed: set[int] | None
) -> tuple[dict[str, tuple[float, str]], dict[str, list[int]]]:
    """The best cards by the cosine of their best chunk with a vector: `depth` of them, or all there are;
    and the adapters that have each.

    Cards whose cosine is not above 0 are left out. More chunks are requested until there are enough cards.
    """
    if vector is None or texts.vectors is None:
        return {}, {}
    among, count, adapters = None, 2 * depth, dict[str, list[int]]()
    if allowed is not None and MOST_CHUNKS * len(allowed) < texts.vectors.count:
        among = _chunk_keys(texts, allowed)
    elif allowed:
        # As many as would do if the chunks of the allowed ones lay evenly in the ranking.
        count = min(count * max(1, texts.words.size // len(allowed)), max(texts.vectors.count, 1))
    while True:
        hits = texts.vectors.search(vector, count, among)
        best: dict[str, tuple[float, str]] = {}
        for hit in hits:
            if hit.score > 0:
                best.setdefault(hit.key.partition(":")[0], (hit.score, hit.key))
        adapters |= texts.words.adapters(best.keys() - adapters.keys())
        # Vectors of cards that no adapter has any more, or none that is allowed, are passed over.
        best = {
            content: card
            for content, card in best.items()
            if content in adapters and (allowed is None or not allowed.isdisjoint(adapters[content]))
        }
        if len(best) >= depth or len(hits) < count or hits[-1].score <= 0:
            return dict(list(best.items())[:depth]), adapters
        count *= 2


def _chunk_keys(texts: Texts, allowed: set[int]) -> list[str]:
    """The keys of all chunks that the cards of these adapters may have."""
    contents = set(texts.words.contents(allowed).values())
    return [f"{content}:{chunk:02}" for content in contents for chunk in range(MOST_CHUNKS)]


def _near_ranks(heads: _Heads, depth: int) -> dict[int, _Near]:
    """The best adapters by meaning; a card that several share takes one rank, as do cards of equal cosine."""
    near: dict[int, _Near] = {}
    rank, last = 0, math.inf
    for place, (content, (cosine, chunk)) in enumerate(list(heads.cards.items())[:depth], 1):
        rank, last = (rank, last) if cosine == last else (place, cosine)
        for key in heads.adapters[content]:
            if heads.allowed is None or key in heads.allowed:
                near[key] = _Near(rank, cosine, chunk)
    return near


def _text_vector(texts: Texts, text: str) -> NDArray[np.float32] | None:
    """The vector of a text, None where there is nothing to compare it with."""
    if texts.embedder is None or texts.vectors is None or not texts.vectors.count:
        return None
    return query_vector(texts.embedder, text)


def query_vector(embedder: Embedder, text: str) -> NDArray[np.float32]:
    """The vector of one text, (size,), worked out by one thread where the encoder computes with torch.

    A second thread slows the first down: on two busy cores it took 235 ms against 27.
    """
    encode_query = getattr(embedder, "encode_query", None)
    if encode_query is not None:
        vector: NDArray[np.float32] = check_vectors(encode_query(text)[None], 1, embedder)[0]
        return vector
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 1
    if torch:
        torch.set_num_threads(1)
    try:
        vector = check_vectors(embedder.encode([text]), 1, embedder)[0]
    finally:
        if torch:
            torch.set_num_threads(threads)
    return vector


def _hits(
    session: Session,
    names: Mapping[int, str],
    scores: Mapping[int, float],
    words: Mapping[int, Mapping[str, tuple[str, ...]]],
    near: Mapping[int, _Near],
) -> tuple[SearchHit, ...]:
    """The hits with their reasons, in the order of `scores`."""
    columns = Adapter.id, Adapter.card_text, Adapter.commit, Adapter.rank, Adapter.license
    rows = {row.id: row for row in session.execute(select(*columns).where(Adapter.id.in_(scores)))}
    return tuple(
        SearchHit(
            id=key,
            adapter=names[key],
            score=score,
            commit=rows[key].commit,
            rank=rows[key].rank,
            license=rows[key].license,
            words=words.get(key, {}),
            cosine=near[key].cosine if key in near else None,
            excerpt=_excerpt(rows[key].card_text, near[key].chunk) if key in near else "",
        )
        for key, score in scores.items()
    )


def _excerpt(card: str, key: str) -> str:
    """The beginning of a chunk on one line; empty if the card changed since it was embedded."""
    content, _, number = key.partition(":")
    pieces = chunks(card) if content_of(card) == content else ()
    line = " ".join(pieces[int(number)].split()) if int(number) < len(pieces) else ""
    if len(line) <= _EXCERPT:
        return line
    return (line[:_EXCERPT].rpartition(" ")[0] or line[:_EXCERPT]) + " …"


def _notes(texts: Texts, weights: SearchWeights) -> tuple[str, ...]:
    if texts.vectors is None or not weights.meaning or not texts.missing:
        return ()
    cards = f"{texts.missing:,} of {texts.words.cards:,} cards"
    return (f"{cards} have no vector yet and were searched by words alone.",)
