"""Search by words and meaning as the catalog grows: seconds to fill and load, milliseconds a search.

Run as `python -m tools.bench.search [--large] [--default-encoder]`. Cards are generated, of 60 to 500 words
whose frequencies fall as in a language (Zipf), and so are their vectors, about three chunks a card: only the
time of a query's own vector depends on the encoder, and it is measured by itself.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, insert
from sqlalchemy.orm import Session

from catalog.database import Adapter, BaseModelRow, Repository, make_engine, opening
from catalog.index import load_embedder
from catalog.query import Query, parse
from catalog.search import embed_cards
from catalog.search.ranking import SearchWeights, Texts, open_texts, query_vector, search

SIZE = 384
VOCABULARY = 20_000
QUERIES = 60
HITS = 10
NOW = datetime(2026, 1, 1, tzinfo=UTC)
# p50 and p95 of a search, then the p50 of its processor time, of each ranking alone, and with a filter.
COLUMNS = ("cards", "chunks", "embed s", "make s", "load s")
TIMES = ("p50 ms", "p95 ms", "of cpu", "words", "meaning", "filtered")


class Drawn:
    """An encoder whose vector of a text is drawn from the text's digest."""

    name = "drawn@1"
    size = SIZE

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of length 1, the same for the same text."""
        seeds = (int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in texts)
        normals = np.array([np.random.default_rng(seed).standard_normal(SIZE) for seed in seeds])
        vectors: NDArray[np.float32] = normals / np.linalg.norm(normals, axis=1, keepdims=True)
        return vectors.astype(np.float32)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--large", action="store_true", help="also 100,000 cards, which takes some GB and minutes"
    )
    parser.add_argument(
        "--default-encoder", action="store_true", help="also the vector of a query by the default encoder"
    )
    options = parser.parse_args(argv)
    say(*COLUMNS, *TIMES)
    for count in (1000, 20_000, 100_000) if options.large else (1000, 20_000):
        with tempfile.TemporaryDirectory() as place:
            say(*measure_catalog(Path(place), count))
    if options.default_encoder:
        encoder = load_embedder()
        for clock in (time.perf_counter, time.process_time):
            took = sorted(time_work(partial(query_vector, encoder, text), clock) for text in queries())
            say(f"a query's vector, {clock.__name__}: p50 {1e3 * percentile(took, 50):.1f} ms")


def measure_catalog(place: Path, count: int) -> list[str]:
    """The row of a catalog of so many cards."""
    engine = make_engine(f"sqlite:///{place / 'catalog.db'}")
    with opening.disposing(engine):
        opening.upgrade(engine)
        fill(engine, count)
        with Session(engine) as session:
            began = time.perf_counter()
            counts = embed_cards(session, Drawn())
            embedded = time.perf_counter() - began
            index_seconds = time_work(lambda: open_indexes(session, place))
            loaded = time_work(lambda: open_indexes(session, place))
            with open_texts(session, place, Drawn()) as texts:
                both, cpu = times(session, texts), busy(session, texts)
                arms = [
                    times(session, texts, weights=weights)
                    for weights in (SearchWeights(1, 0), SearchWeights(0, 1))
                ]
                filtered = times(session, texts, query=parse("rank:16"))
    counts_row = [
        f"{count:,}",
        f"{counts.chunks:,}",
        f"{embedded:.1f}",
        f"{index_seconds:.1f}",
        f"{loaded:.2f}",
    ]
    halves = (percentile(took, 50) for took in (cpu, *arms, filtered))
    cells = [percentile(both, 50), percentile(both, 95), *halves]
    return [*counts_row, *(f"{1e3 * seconds:.1f}" for seconds in cells)]


def open_indexes(session: Session, place: Path) -> None:
    """Opens the indexes and closes them."""
    with open_texts(session, place, Drawn()):
        pass


def busy(session: Session, texts: Texts) -> list[float]:
    """Seconds of processor time of each search, sorted: nearly the same on a machine that others use."""
    return sorted(
        time_work(partial(search, session, texts, text, HITS), time.process_time) for text in queries()
    )


def times(
    session: Session, texts: Texts, *, query: Query | None = None, weights: SearchWeights | None = None
) -> list[float]:
    """Seconds of each search, sorted; the first search, which fills caches, does not count."""
    options: dict[str, Any] = {"query": query, "weights": weights or SearchWeights()}
    search(session, texts, "a first one", HITS, **options)
    return sorted(time_work(partial(search, session, texts, text, HITS, **options)) for text in queries())


def time_work(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that the work took."""
    began = clock()
    work()
    return clock() - began


def percentile(took: Sequence[float], percent: int) -> float:
    """The percentile of sorted times."""
    return statistics.quantiles(took, n=100, method="inclusive")[percent - 1]


def vocabulary() -> list[str]:
    """Made-up words of two to four syllables, the frequent ones first."""
    generator = np.random.default_rng(1)
    syllables = [a + b for a in "bdfgklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er", "ing", "us")]
    return ["".join(generator.choice(syllables, size=generator.integers(2, 5))) for _ in range(VOCABULARY)]


def zipf(generator: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Ranks of words as in a language: the n-th is drawn in proportion to 1/(n + 2.7)."""
    weights = 1 / (np.arange(VOCABULARY) + 2.7)
    ranks: NDArray[np.int64] = generator.choice(VOCABULARY, size=count, p=weights / weights.sum())
    return ranks


def queries() -> list[str]:
    """Texts of three to six words, frequent and rare ones, as people write them."""
    generator, words = np.random.default_rng(2), vocabulary()
    return [
        " ".join(words[n] for n in zipf(generator, int(generator.integers(3, 7)))) for _ in range(QUERIES)
    ]


def fill(engine: Engine, count: int) -> None:
    """A catalog of so many adapters with a card each."""
    generator, words = np.random.default_rng(3), np.array(vocabulary())
    lengths = generator.integers(60, 501, size=count)
    drawn_words = np.split(words[zipf(generator, int(lengths.sum()))], np.cumsum(lengths)[:-1])
    repositories, adapters = [], []
    for number, card in enumerate(drawn_words, 1):
        paragraphs = (" ".join(card[start : start + 50]) for start in range(0, len(card), 50))
        name = f"{card[0]}/{card[1]}-{card[2]}-{number}"
        repositories.append(
            {"id": number, "hub_id": str(number), "name": name, "owner": card[0], "disabled": False,
             "private": False, "tags": ["peft", "lora", f"dataset:{card[3]}"], "first_seen": NOW,
             "last_seen": NOW}
        )  # fmt: skip
        adapters.append(
            {"repository_id": number, "commit": f"{number:040x}", "subfolder": "", "main": True,
             "current": True, "files": [], "targets": ["q", "v"], "dtypes": ["BF16"], "described_with": "",
             "training": {}, "base_model_id": 1, "rank": (8, 16, 32, 64)[number % 4],
             "card_quality": "informative", "card_text": "\n\n".join(paragraphs),
             "card_front": {"datasets": [str(card[3])]}}
        )  # fmt: skip
    with engine.begin() as connection:
        connection.execute(insert(BaseModelRow), [{"id": 1, "canonical": "acme/tiny"}])
        connection.execute(insert(Repository), repositories)
        connection.execute(insert(Adapter), adapters)


def say(*cells: str) -> None:
    """Writes a line of the table at once."""
    sys.stdout.write("".join(f"{cell:>10}" for cell in cells) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
