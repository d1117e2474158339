"""`python -m tools.generated_catalog N DIR`: a data folder with a catalog of N generated adapters, in SQLite.

Made for measuring: cards of about 170 invented words whose frequencies fall as in a language (Zipf), a few
licenses, ranks and base models, owners with one to many adapters, and sketches in families of Zipf size
around a few directions, whose members are two seeds of a run (cosine 0.56) or its checkpoints (0.9). Every
card has vectors, drawn near the direction of its topic, under the name of the encoder that `--encoder`
loads, else of `Drawn`. Of more than 100,000 adapters so many are drawn, and the others are copies of them
whose cards and vectors begin at another place: families and topics of their own, of the same sizes. The same
N gives the same rows. `--page` adds what the page shows beside these, see `tools.generated_details`.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, insert

from catalog.database import (
    Adapter,
    BaseModelRow,
    DocumentRow,
    Embedding,
    FingerprintRow,
    Repository,
    TableBase,
    WeightsFile,
    make_engine,
    opening,
)
from catalog.fingerprints import DELTA_SIZE, FINGERPRINT_VERSION, OUTPUT_SIZE
from catalog.index import DEFAULT_MODEL, Embedder, chunks, content_of, load_embedder
from tools.bench.search import Drawn, vocabulary, zipf
from tools.generated_details import Details, add_annotations, add_pools, add_scores

NOW = datetime(2026, 1, 1, tzinfo=UTC)
# The name that git gives the configuration {}.
CONFIG = "9e26dfeeb6e641a33dae4961196235bdb965b21b"
BASES = ("meta-llama/Llama-3.1-8B-Instruct", "acme/small", "acme/large", "acme/other")
BASE_SHARES = (0.7, 0.15, 0.1, 0.05)
LICENSES = ("mit", "apache-2.0", "llama3.1", "cc-by-nc-4.0", None)
RANKS = (8, 16, 32, 64)
WORDS = 170
DIRECTIONS, TOPICS = 39, 200
# Adapters that are drawn; more are made from these.
DRAWN = 100_000
# Of all adapters, the part that begins a family, and the noise over the signal of its two kinds of members.
FAMILY_PART = 0.46
SEEDS, CHECKPOINTS = 0.89, 0.33
_BATCH = 2000


def generate(data: Path, count: int, embedder: Embedder | None = None, *, page: bool = False) -> None:
    """Writes the catalog of `count` adapters into a data folder that has none, with all that a page shows or
    only with what is measured.
    """
    engine = make_engine(f"sqlite:///{data / 'catalog.db'}")
    drawn = min(count, DRAWN)
    details = Details(drawn, NOW, dict(enumerate(BASES, 1))) if page else None
    with opening.disposing(engine):
        opening.upgrade(engine)
        fill(engine, drawn, embedder or Drawn(), details)
        for start in range(DRAWN, count, DRAWN):
            add_copies(engine, start, min(DRAWN, count - start))
        if details is not None:
            details.add_history(engine)
            add_scores(engine, drawn)
            add_pools(engine, data, NOW)
            add_annotations(engine, drawn)


def fill(engine: Engine, count: int, embedder: Embedder, details: Details | None = None) -> None:
    """Writes base models and `count` adapters with all that is theirs into an empty catalog, each batch in a
    transaction; with details too, where there are some.
    """
    with engine.begin() as connection:
        bases = [{"id": n, "canonical": name} for n, name in enumerate(BASES, 1)]
        connection.execute(insert(BaseModelRow), bases)
        connection.execute(insert(DocumentRow), [{"digest": CONFIG, "content": b"{}"}])
    if details is not None:
        details.add_shared(engine, RANKS)
    generator = np.random.default_rng(count)
    words = np.array(vocabulary())
    family_of = _families(generator, count)
    sketches = (_sketches(np.random.default_rng(1), family_of, size) for size in (DELTA_SIZE, OUTPUT_SIZE))
    pairs = zip(*sketches, strict=True)
    directions = _unit(np.random.default_rng(2).standard_normal((TOPICS, embedder.size), dtype=np.float32))
    for start in range(1, count + 1, _BATCH):
        numbers = range(start, min(start + _BATCH, count + 1))
        adapters = [_adapter(generator, words, number) for number in numbers]
        rows: dict[type[TableBase], list[dict[str, Any]]] = {
            WeightsFile: [{"digest": row["weights_digest"], "size": 8} for row in adapters],
            Repository: [_repository(generator, row) for row in adapters],
            Adapter: adapters,
            FingerprintRow: [_fingerprint(row["weights_digest"], *next(pairs)) for row in adapters],
            Embedding: list(_embeddings(generator, adapters, directions, embedder.name)),
        }
        if details is not None:
            rows = details.add_to(rows)
        with engine.begin() as connection:
            for table, table_rows in rows.items():
                if table_rows:
                    connection.execute(insert(table), table_rows)


def add_copies(engine: Engine, start: int, count: int) -> None:
    """Adds copies of the first `count` adapters to a catalog in SQLite that has `start`, each with a card,
    vectors and names of its own.
    """
    turn = start // DRAWN
    # A text or a vector that begins at another place, the other part at its end.
    card = f"instr(substr(a.card_text, {80 * turn}), ' ') + {80 * turn}"
    card = f"substr(a.card_text, {card}) || ' ' || substr(a.card_text, 1, {card} - 2)"
    digest = f"(substr(a.weights_digest, {turn + 1}) || substr(a.weights_digest, 1, {turn}))"
    vector = f"CAST(substr({{0}}, {64 * turn + 1}) || substr({{0}}, 1, {64 * turn}) AS BLOB)"
    number = f"(a.id + {start})"
    changes = {
        "weights_file": {"digest": digest},
        "repository": {
            "id": number, "hub_id": f"printf('%024x', {number})", "name": f"r.name || '-' || {turn}",
            "commit": f"printf('%040x', {number})",
        },
        "adapter": {
            "id": number, "repository_id": number, "commit": f"printf('%040x', {number})", "card_text": card,
            "files": f"replace(a.files, a.weights_digest, {digest})", "weights_digest": digest,
        },
        "fingerprint": {
            "weights_digest": digest, "delta": vector.format("f.delta"), "output": vector.format("f.output"),
        },
        "embedding": {"content": f"content_of({card})", "vector": vector.format("e.vector")},
    }  # fmt: skip
    tables = {
        "weights_file": "JOIN weights_file w ON w.digest = a.weights_digest",
        "repository": "JOIN repository r ON r.id = a.repository_id",
        "adapter": "",
        "fingerprint": "JOIN fingerprint f USING (weights_digest, scaling_pattern)",
        "embedding": "JOIN embedding e ON e.content = content_of(a.card_text)",
    }
    with engine.begin() as connection:
        raw: Any = connection.connection.driver_connection
        raw.create_function("content_of", 1, content_of, deterministic=True)
        for table, joined in tables.items():
            names = [column.name for column in TableBase.metadata.tables[table].columns]
            columns = ", ".join(f'"{name}"' for name in names)
            values = ", ".join(changes[table].get(name, f'{table[0]}."{name}"') for name in names)
            connection.exec_driver_sql(
                f"INSERT INTO {table} ({columns}) SELECT {values} FROM adapter a {joined} "
                f"WHERE a.id <= {count} ORDER BY a.id"
            )


def _adapter(generator: np.random.Generator, words: NDArray[np.str_], number: int) -> dict[str, Any]:
    card = words[zipf(generator, WORDS)].tolist()
    paragraphs = [" ".join(card[start : start + 50]) for start in range(0, WORDS, 50)]
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    return {
        "id": number, "repository_id": number, "commit": f"{number:040x}", "subfolder": "", "main": True,
        "current": True, "files": [{"name": "adapter_model.safetensors", "size": 8, "digest": digest}],
        "weights_name": "adapter_model.safetensors", "weights_digest": digest, "config_digest": CONFIG,
        "targets": ["q_proj", "v_proj"], "dtypes": ["BF16"], "described_with": "", "training": {},
        "base_model_id": 1 + int(generator.choice(len(BASES), p=BASE_SHARES)),
        "peft_type": "LORA", "rank": RANKS[number % len(RANKS)], "alpha": 16.0,
        "scaling": 1.0, "use_rslora": False, "modules": 64,
        "parameters": 1000 * (1 + number % 97), "norm": 1.0 + number % 7, "health": "healthy",
        "scaling_pattern": "", "partial": [], "license": LICENSES[number % len(LICENSES)],
        "card_quality": "informative", "card_text": "\n\n".join(paragraphs),
        "card_front": {"datasets": [card[3]]},
    }  # fmt: skip


def _repository(generator: np.random.Generator, adapter: dict[str, Any]) -> dict[str, Any]:
    number, card = adapter["id"], adapter["card_text"].split(maxsplit=4)
    owner = f"owner{int(number ** generator.random())}"
    return {
        "id": number, "hub_id": f"{number:024x}", "name": f"{owner}/{card[1]}-{card[2]}-{number}",
        "owner": owner, "tags": ["peft", "lora", f"dataset:{card[3]}"], "disabled": False, "private": False,
        "downloads": int(1e6 / (1 + generator.integers(1, 10**6))), "likes": number % 13, "library": "peft",
        "created_at": NOW - timedelta(minutes=number), "last_modified": NOW - timedelta(minutes=number),
        "first_seen": NOW, "last_seen": NOW, "commit": adapter["commit"],
    }  # fmt: skip


def _families(generator: np.random.Generator, count: int) -> NDArray[np.int64]:
    """The number of each adapter's family; sizes fall as in a Zipf distribution."""
    families = max(1, int(FAMILY_PART * count))
    weights = 1 / (np.arange(families) + 10.0)
    drawn = generator.choice(families, size=max(0, count - families), p=weights / weights.sum())
    every: NDArray[np.int64] = np.concatenate([np.arange(families), drawn])[:count]
    return generator.permutation(every)


def _sketches(
    generator: np.random.Generator, families: NDArray[np.int64], size: int
) -> Iterator[NDArray[np.float32]]:
    """The sketch of each adapter: its direction, its family's own, and noise; made again, not held."""
    directions = _unit(generator.standard_normal((DIRECTIONS, size), dtype=np.float32))
    for number, family in enumerate(families.tolist()):
        centre = np.random.default_rng(family).standard_normal(size, dtype=np.float32)
        centre = _unit(0.5 * directions[family % DIRECTIONS] + centre / np.float32(size**0.5))
        noise = np.random.default_rng(10**9 + number).standard_normal(size, dtype=np.float32)
        ratio = CHECKPOINTS if family % 2 else SEEDS
        yield (centre + np.float32(ratio / size**0.5) * noise).astype("<f4")


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return unit


def _fingerprint(digest: str, delta: NDArray[np.float32], output: NDArray[np.float32]) -> dict[str, Any]:
    sketches = {"delta": delta.tobytes(), "output": output.tobytes()}
    return {
        "weights_digest": digest, "scaling_pattern": "", "version": FINGERPRINT_VERSION, "spectrum": b"",
    } | sketches  # fmt: skip


def _embeddings(
    generator: np.random.Generator,
    adapters: Sequence[dict[str, Any]],
    directions: NDArray[np.float32],
    model: str,
) -> Iterator[dict[str, Any]]:
    size = directions.shape[1]
    for row in adapters:
        topic = directions[row["id"] % TOPICS]
        for number, _ in enumerate(chunks(row["card_text"])):
            noise = generator.standard_normal(size, dtype=np.float32) / np.float32(size**0.5)
            vector = _unit(topic + noise).astype("<f4").tobytes()
            content = content_of(row["card_text"])
            yield {"content": content, "model": model, "chunk": number, "vector": vector}


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the catalog, and how long it took."""
    parser = argparse.ArgumentParser(prog="python -m tools.generated_catalog", description=__doc__)
    parser.add_argument("count", type=int, metavar="N")
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument(
        "--encoder",
        metavar="MODEL",
        nargs="?",
        const=DEFAULT_MODEL,
        help="name the vectors after this encoder, the default one without MODEL",
    )
    parser.add_argument("--page", action="store_true", help="add what the page shows, see above")
    options = parser.parse_args(argv)
    if (options.folder / "catalog.db").exists():
        parser.error(f"{options.folder} already contains a catalog")
    embedder = None if options.encoder is None else load_embedder(options.encoder)
    began = time.process_time()
    generate(options.folder, options.count, embedder, page=options.page)
    sys.stdout.write(f"{options.count:,} adapters in {time.process_time() - began:.0f} processor seconds\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
