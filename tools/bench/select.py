"""Selecting thirty adapters from a generated catalog, by each way that needs no scores and no text."""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Engine, insert
from sqlalchemy.orm import Session

from catalog.database import (
    Adapter,
    BaseModelRow,
    DocumentRow,
    FingerprintRow,
    Repository,
    WeightsFile,
    make_engine,
    opening,
)
from catalog.files import BlobStore
from catalog.fingerprints import DELTA_SIZE, FINGERPRINT_VERSION, OUTPUT_SIZE
from catalog.search import Subject
from catalog.selection import Question, Sources, select

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CONFIG = "c" * 40
WAYS: dict[str, dict[str, Any]] = {
    "random": {"by": "random"},
    "random, at most 2 an owner": {"by": "random", "per_owner": 2},
    "random, with controls": {"by": "random"},
    "rank": {"by": "rank"},
    "like one adapter": {"by": "adapter", "like": "one"},
    "random, distinct by delta": {"by": "random", "distinct": "delta"},
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.select", description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000])
    counts = parser.parse_args(argv).counts
    say("", *(f"{count:,}" for count in counts))
    with tempfile.TemporaryDirectory() as place:
        columns = [measure_catalog(Path(place, str(count)), count) for count in counts]
    for way in WAYS:
        say(way, *(f"{column[way][0]:.2f} s ({column[way][1]:.2f})" for column in columns))


def measure_catalog(place: Path, count: int) -> dict[str, tuple[float, float]]:
    """Seconds of each way on a catalog of so many adapters, and of processor time; the better of two runs."""
    place.mkdir()
    engine = make_engine(f"sqlite:///{place / 'catalog.db'}")
    with opening.disposing(engine):
        opening.upgrade(engine)
        fill(engine, count)
        random = np.random.default_rng(1)
        subject = Subject(
            name="one",
            base="acme/tiny",
            vectors={
                "delta": random.normal(size=DELTA_SIZE).astype(np.float32),
                "output": random.normal(size=OUTPUT_SIZE).astype(np.float32),
            },
        )
        with Session(engine) as session:
            sources = Sources(session, (), place / "index", BlobStore(place), lambda: None, lambda _: subject)
            return {way: min(seconds(way, sources) for _ in range(2)) for way in WAYS}


def seconds(way: str, sources: Sources) -> tuple[float, float]:
    """How long one selection of thirty takes, and how much processor time, which others change less."""
    began, worked = time.perf_counter(), time.process_time()
    select(Question(name="bench", count=30, **WAYS[way]), sources, controls="controls" in way)
    return time.perf_counter() - began, time.process_time() - worked


def fill(engine: Engine, count: int) -> None:
    """Writes adapters of a hundred owners with random vectors."""
    random = np.random.default_rng(0)
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]
    with engine.begin() as connection:
        connection.execute(insert(BaseModelRow), [{"id": 1, "canonical": "acme/tiny"}])
        connection.execute(insert(DocumentRow), [{"digest": CONFIG, "content": b"{}"}])
        connection.execute(insert(WeightsFile), [{"digest": digest, "size": 8} for digest in digests])
        connection.execute(
            insert(Repository),
            [
                {"id": n, "hub_id": f"{n:024x}", "name": f"o{n % 100}/r{n}", "owner": f"o{n % 100}",
                 "tags": [], "disabled": False, "private": False, "first_seen": NOW, "last_seen": NOW}
                for n in range(1, count + 1)
            ],
        )  # fmt: skip
        connection.execute(
            insert(Adapter),
            [
                {"repository_id": n, "commit": f"{n:040x}", "subfolder": "", "main": True, "current": True,
                 "files": [{"name": "adapter_model.safetensors", "size": 8, "digest": digests[n - 1]}],
                 "weights_name": "adapter_model.safetensors", "weights_digest": digests[n - 1],
                 "config_digest": CONFIG, "targets": ["q_proj"], "dtypes": ["BF16"], "described_with": "",
                 "training": {}, "base_model_id": 1, "rank": (8, 16, 32, 64)[n % 4], "parameters": 1000,
                 "norm": 1 + n % 7, "scaling": 1.0, "scaling_pattern": "", "card_quality": "absent",
                 "card_text": "", "card_front": {}}
                for n in range(1, count + 1)
            ],
        )  # fmt: skip
        connection.execute(
            insert(FingerprintRow),
            [
                {"weights_digest": digest, "scaling_pattern": "", "version": FINGERPRINT_VERSION,
                 "spectrum": b"", "delta": random.normal(size=DELTA_SIZE).astype("<f4").tobytes(),
                 "output": random.normal(size=OUTPUT_SIZE).astype("<f4").tobytes()}
                for digest in digests
            ],
        )  # fmt: skip


def say(first: str, *cells: str) -> None:
    """Writes a line of the table at once."""
    sys.stdout.write(f"{first:<28}" + "".join(f"{cell:>16}" for cell in cells) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
