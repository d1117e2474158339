"""An index finds the vectors that the catalog holds now, whoever changed them; on both databases."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, event, insert, text
from sqlalchemy.orm import Session

from catalog.database import Embedding, make_engine, opening
from catalog.fingerprints import DELTA_SIZE
from catalog.index import VectorSource, check_index, open_index
from catalog.index.vectors import Space
from catalog.search.texts import CardVectors
from catalog.search.vectors import BaseFingerprints, Fingerprints, base_space
from tools.bench.search import Drawn
from tools.generated_catalog import BASES, fill

COUNT = 300
DELTA = np.random.default_rng(7).standard_normal((3, DELTA_SIZE)).astype("<f4")
CARDS = np.random.default_rng(8).standard_normal((3, Drawn().size)).astype("<f4")
FIRST = "SELECT min(id) FROM adapter WHERE base_model_id = 1 AND weights_digest IS NOT NULL"
OWN = f"weights_digest = (SELECT weights_digest FROM adapter WHERE id = ({FIRST}))"
CONTENT = "content = (SELECT min(content) FROM embedding)"

# What a stranger's client does, statements of one transaction.
WRITES: dict[str, Sequence[str]] = {
    "other bytes of a fingerprint": (f"UPDATE fingerprint SET delta = :delta0 WHERE {OWN}",),
    "the same key removed and inserted again": (
        f"CREATE TEMPORARY TABLE kept AS SELECT * FROM fingerprint WHERE {OWN}",
        f"DELETE FROM fingerprint WHERE {OWN}",
        "UPDATE kept SET delta = :delta1",
        "INSERT INTO fingerprint SELECT * FROM kept",
        "DROP TABLE kept",
    ),
    "a vector that became zero": (f"UPDATE fingerprint SET delta = :zero WHERE {OWN}",),
    "and one again": (f"UPDATE fingerprint SET delta = :delta2 WHERE {OWN}",),
    "an adapter of another base model": (f"UPDATE adapter SET base_model_id = 2 WHERE id = ({FIRST})",),
    "an adapter without weights": (f"UPDATE adapter SET weights_digest = NULL WHERE id = ({FIRST})",),
    "adapters that are no longer there": ("DELETE FROM adapter WHERE id IN (20, 21, 22)",),
    "fingerprints that are no longer there": (f"DELETE FROM fingerprint WHERE {OWN}",),
    "other bytes of a card's vector": (f"UPDATE embedding SET vector = :card0 WHERE {CONTENT}",),
    "a card's vector under another key": (f"UPDATE embedding SET chunk = chunk + 20 WHERE {CONTENT}",),
    "a card's vector of another encoder": (f"UPDATE embedding SET model = 'other' WHERE {CONTENT}",),
    "an insert that ignores what is there": (
        """INSERT INTO embedding SELECT content, model, 30, CAST(:card1 AS {bytes}) FROM embedding
        WHERE content = (SELECT max(content) FROM embedding) AND chunk = 1 ON CONFLICT DO NOTHING""",
    ),
}
PARAMETERS: dict[str, Any] = {
    "delta0": DELTA[0].tobytes(),
    "delta1": DELTA[1].tobytes(),
    "delta2": DELTA[2].tobytes(),
    "zero": bytes(4 * DELTA_SIZE),
    "card0": CARDS[0].tobytes(),
    "card1": CARDS[1].tobytes(),
}


class CountingSource:
    """A source that records the keys whose vectors it was asked for."""

    def __init__(self, source: VectorSource) -> None:
        self._source, self.read = source, set[str]()
        self.token, self.versions, self.keys = source.token, source.versions, source.keys

    def vectors(self, keys: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        self.read.update(keys)
        yield from self._source.vectors(keys)


def sources(session: Session) -> dict[Space, VectorSource]:
    bases = (BASES[0], BASES[1], None)
    return {
        Space("text", Drawn().name, Drawn().size): CardVectors(session, Drawn().name),
        **{base_space("delta", base): BaseFingerprints(session, "delta", base) for base in bases},
    }


def write(engine: Engine, statements: Sequence[str]) -> None:
    with engine.begin() as connection:
        for statement in statements:
            names = {name: value for name, value in PARAMETERS.items() if f":{name}" in statement}
            kind = "BLOB" if engine.dialect.name == "sqlite" else "bytea"
            connection.execute(text(statement.replace("{bytes}", kind)), names)


def vectors_of(source: VectorSource) -> dict[str, bytes]:
    keys = source.keys()
    rows = np.concatenate(list(source.vectors(keys))) if keys else np.empty((0, 1))
    return {key: row.tobytes() for key, row in zip(keys, rows, strict=True)}


def check(engine: Engine, folder: Path, fresh: Path, before: dict[str, dict[str, bytes]]) -> bool:
    """Compares each index with one that is made anew; whether any vector differs from those before, which
    become those of now.
    """
    differs = False
    with Session(engine) as session:
        for space, source in sources(session).items():
            now, was = vectors_of(source), before.get(space.name)
            differs |= now != was
            counting = CountingSource(source)
            kept, anew = open_index(folder, space, counting), open_index(fresh, space, source)
            if was is not None:
                changed = {key for key, vector in now.items() if was.get(key) != vector}
                assert changed <= counting.read
                assert len(counting.read) <= len(changed) + 5, "vectors that did not change were read"
            assert kept.keys == anew.keys
            for query in np.random.default_rng(3).standard_normal((3, space.size)):
                assert kept.search(query, COUNT) == anew.search(query, COUNT)
            assert check_index(folder, space, source).state == "current"
            before[space.name] = now
    shutil.rmtree(fresh)
    return differs


def test_an_index_follows_every_change_and_reads_little_else(engine: Engine, tmp_path: Path) -> None:
    fill(engine, COUNT, Drawn())
    held: dict[str, dict[str, bytes]] = {}
    check(engine, tmp_path / "index", tmp_path / "fresh", held)
    for name, statements in WRITES.items():
        write(engine, statements)
        assert check(engine, tmp_path / "index", tmp_path / "fresh", held), name
    write(engine, ["UPDATE base_model SET canonical = 'x/y' WHERE id = 1"])
    check(engine, tmp_path / "index", tmp_path / "fresh", {})


def test_vectors_are_the_same_by_key_and_in_the_order_of_the_table(engine: Engine) -> None:
    fill(engine, 60, Drawn())
    with Session(engine) as session:
        source = Fingerprints(session, "delta")
        keys = BaseFingerprints(session, "delta", BASES[0]).keys()
        for some in (keys, keys[::12], [*keys[:20], "0" * 64], []):
            expected = source.by_key(some)
            found = dict(source.stored(some))
            assert found.keys() == expected.keys()
            assert all(np.array_equal(found[key], expected[key]) for key in found)


def test_a_restored_backup_in_which_a_key_got_other_vectors_is_noticed(tmp_path: Path) -> None:
    file, backup = tmp_path / "catalog.db", tmp_path / "backup.db"
    engine = make_engine(f"sqlite:///{file}")
    opening.upgrade(engine)
    fill(engine, COUNT, Drawn())
    write(engine, [f"DELETE FROM fingerprint WHERE {OWN}"])
    engine.dispose()
    shutil.copy(file, backup)
    for vector in ("delta0", "delta1"):
        shutil.copy(backup, file)
        engine = make_engine(f"sqlite:///{file}")
        insert = f"""INSERT INTO fingerprint SELECT (SELECT weights_digest FROM adapter WHERE id = ({FIRST})),
            scaling_pattern, version, spectrum, :{vector}, output FROM fingerprint LIMIT 1"""
        columns = "weights_digest, scaling_pattern, version, spectrum, delta, output"
        write(engine, [insert.replace("fingerprint SELECT", f"fingerprint ({columns}) SELECT", 1)])
        check(engine, tmp_path / "index", tmp_path / "fresh", {})
        engine.dispose()


def test_parts_are_found_whatever_the_collation_of_the_database(engine: Engine) -> None:
    """In Danish "aa" sorts after z, in Welsh "dd" and "ff" after d and f: PostgreSQL compares no order."""
    fill(engine, 60, Drawn())
    digests = {part + 60 * "0": part for part in ("3aaa", "aaaa", "12aa", "0ddd", "0fff")}
    digests |= {part + "a" * 60: part for part in ("123a", "aaa0", "0000")}
    vector = CARDS[0].tobytes()
    statements = list[str]()
    event.listen(engine, "before_cursor_execute", lambda _c, _d, statement, *_: statements.append(statement))
    with Session(engine) as session:
        session.execute(
            insert(Embedding),
            [{"content": key, "model": "m", "chunk": 0, "vector": vector} for key in digests],
        )
        cards, fingerprints = CardVectors(session, "m"), BaseFingerprints(session, "delta", BASES[0])
        every = fingerprints.keys()
        own = {key[:4] for key in every}
        statements.clear()
        for key, part in digests.items():
            assert [found for found in cards.keys({part}) if found[:64] == key] == [f"{key}:00"]
        assert cards.keys(set(digests.values())) == cards.keys()
        assert fingerprints.keys(own) == every
        assert cards.keys(set()) == []
        ordered = [statement for statement in statements if "BETWEEN" in statement]
        assert bool(ordered) == (engine.dialect.name == "sqlite")
