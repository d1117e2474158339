"""Tokens change with what they stand for and with nothing else, whoever writes; on both databases."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from catalog.database import changes, make_engine, opening
from catalog.database.schema import TextVersion
from catalog.errors import SchemaVersionError
from tests.db import rows

# What a stranger's client does, the topics of which it changes the tokens, and whether the text gets a
# version.
WRITES = {
    "UPDATE repository SET last_seen = first_seen": ((), False),
    "UPDATE repository SET downloads = 7, last_seen = first_seen, likes = 1": (("adapters",), False),
    "UPDATE repository SET private = NOT private": (("adapters",), False),
    "UPDATE repository SET gated = 'manual'": (("adapters",), False),
    "UPDATE adapter SET described_with = 'x'": ((), False),
    "UPDATE adapter SET norm = 2, license = 'mit'": (("adapters",), False),
    "UPDATE adapter SET files = files, training = training, dtypes = dtypes": ((), False),
    "UPDATE adapter SET training = '[]'": (("adapters",), False),
    "UPDATE adapter_reason SET detail = 'new'": (("adapters",), False),
    "UPDATE base_model SET license = 'other'": (("adapters",), False),
    "UPDATE repository_alias SET name = 'an/alias'": (("adapters",), False),
    "UPDATE crawl_item SET position = position, outcome = outcome": ((), False),
    "UPDATE crawl_item SET outcome = 'failed'": (("crawls",), False),
    "UPDATE adapter SET card_text = card_text, base_model_id = base_model_id": ((), False),
    "UPDATE repository SET name = name": ((), False),
    "UPDATE evaluation SET value = 0.25": (("scores",), False),
    "UPDATE evaluation SET value = 0.25, task = task": ((), False),
    "UPDATE adapter SET card_text = 'another'": (("texts", "adapters"), True),
    'UPDATE adapter SET card_front = \'{"datasets": "x"}\'': (("texts", "adapters"), True),
    "UPDATE adapter SET current = NOT current": (("texts", "adapters"), True),
    "UPDATE repository SET name = 'new/name'": (("texts", "adapters"), True),
    "UPDATE repository SET tags = '[\"a\"]'": (("texts", "adapters"), True),
    "UPDATE repository SET gone_at = NULL": (("texts", "adapters"), True),
    "UPDATE base_model SET canonical = 'x/y'": (("texts", "fingerprints", "adapters"), True),
    "UPDATE adapter SET scaling_pattern = 'p'": (("fingerprints", "adapters"), False),
    "UPDATE adapter SET weights_digest = NULL": (("fingerprints", "adapters"), False),
    "UPDATE fingerprint SET version = 2": (("fingerprints",), False),
    "DELETE FROM fingerprint": (("fingerprints",), False),
    "UPDATE embedding SET chunk = 2": (("embeddings",), False),
    "DELETE FROM embedding": (("embeddings",), False),
}


def tokens(engine: Engine) -> dict[str, str]:
    with Session(engine) as session:
        return {topic: changes.read_token(session, topic) for topic in changes.TOPICS}


def versions(engine: Engine) -> dict[int, int]:
    with engine.connect() as connection:
        return dict(connection.execute(select(TextVersion.adapter_id, TextVersion.version)).all())


def run(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement))


def test_each_write_changes_the_tokens_of_its_topics(engine: Engine) -> None:
    empty = tokens(engine)
    rows.fill(engine)
    assert all(token != empty[topic] for topic, token in tokens(engine).items())
    for statement, (topics, text_changes) in WRITES.items():
        before, texts = tokens(engine), versions(engine)
        run(engine, statement)
        changed = tuple(topic for topic, token in tokens(engine).items() if token != before[topic])
        assert (changed, versions(engine) != texts) == (topics, text_changes), statement
    run(engine, "DELETE FROM pool_member")
    before = tokens(engine)
    run(engine, "DELETE FROM repository")
    assert [tokens(engine)[topic] != before[topic] for topic in changes.TOPICS] == [
        *(True, True, False, True, True, False)
    ]
    assert versions(engine) == {}


def test_a_write_of_replication_changes_the_same_tokens(engine: Engine) -> None:
    """What a restore or a replica writes in this role fires no trigger that is not always on."""
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has no roles of sessions")
    rows.fill(engine)
    for statement, (topics, text_changes) in WRITES.items():
        before, texts = tokens(engine), versions(engine)
        run(engine, f"SET LOCAL session_replication_role = replica; {statement}")
        changed = tuple(topic for topic, token in tokens(engine).items() if token != before[topic])
        assert (changed, versions(engine) != texts) == (topics, text_changes), statement


@pytest.mark.parametrize("role", ["origin", "replica"])
@pytest.mark.parametrize(
    ("table", "topics"),
    [
        ("adapter", ["texts", "fingerprints", "adapters", "scores"]),
        ("repository", ["texts", "fingerprints", "adapters", "scores"]),
        ("base_model", ["texts", "fingerprints", "adapters", "scores"]),
        ("fingerprint", ["fingerprints"]),
        ("embedding", ["embeddings"]),
        ("evaluation", ["scores"]),
        ("adapter_reason", ["adapters"]),
        ("crawl", ["crawls"]),
        ("pool", []),
    ],
)
def test_a_table_that_is_emptied_changes_the_tokens(
    engine: Engine, table: str, topics: list[changes.Topic], role: str
) -> None:
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has no TRUNCATE")
    rows.fill(engine)
    before, parts = tokens(engine), {topic: part_versions(engine, topic) for topic in changes.TOPICS}
    run(engine, f"SET LOCAL session_replication_role = {role}; TRUNCATE {table} CASCADE")
    assert [topic for topic, token in tokens(engine).items() if token != before[topic]] == topics
    assert (versions(engine) == {}) == ("texts" in topics)
    for topic in ("fingerprints", "embeddings"):
        assert (part_versions(engine, topic) != parts[topic]) == (topic in topics), topic


def part_versions(engine: Engine, topic: changes.Topic) -> dict[str, int]:
    with Session(engine) as session:
        return changes.read_versions(session, topic)


def test_a_write_that_is_rolled_back_changes_nothing(engine: Engine) -> None:
    rows.fill(engine)
    before = tokens(engine)
    with engine.connect() as connection:
        connection.execute(text("UPDATE adapter SET card_text = 'another'"))
        connection.rollback()
    assert tokens(engine) == before


@pytest.mark.parametrize("what", ["drop", "other", "off", "restore"])
def test_a_trigger_that_is_missing_is_noticed_and_made_again(engine: Engine, what: str) -> None:
    rows.fill(engine)
    name = "loradex_changes_texts_adapter_update"
    for statement in _damage(engine, name, what):
        run(engine, statement)
    run(engine, "UPDATE adapter SET card_text = 'unnoticed'")
    before, texts = tokens(engine), versions(engine)
    with pytest.raises(
        SchemaVersionError, match=r"lacks the trigger loradex_changes_texts_adapter_\w+, .*upgrade"
    ):
        opening.check(engine)
    opening.upgrade(engine)
    opening.check(engine)
    assert all(token != before[topic] for topic, token in tokens(engine).items())
    assert versions(engine) != texts
    same = tokens(engine)
    opening.upgrade(engine)
    assert tokens(engine) == same


def _damage(engine: Engine, name: str, what: str) -> Iterator[str]:
    sqlite = engine.dialect.name == "sqlite"
    if what == "off" and not sqlite:
        yield f"ALTER TABLE adapter DISABLE TRIGGER {name}"
        return
    if what == "restore" and not sqlite:  # as pg_restore --disable-triggers does
        yield "ALTER TABLE adapter DISABLE TRIGGER ALL"
        yield "UPDATE adapter SET card_text = 'restored'"
        yield "ALTER TABLE adapter ENABLE TRIGGER ALL"
        return
    yield f"DROP TRIGGER {name}" + ("" if sqlite else " ON adapter")
    if what == "other" and sqlite:
        yield f"CREATE TRIGGER {name} AFTER UPDATE ON adapter BEGIN SELECT 1; END"


def test_a_restored_backup_that_grows_differently_has_another_token(tmp_path: Path) -> None:
    """A counter would count to the same number again."""
    file, backup = tmp_path / "catalog.db", tmp_path / "backup.db"
    engine = make_engine(f"sqlite:///{file}")
    opening.upgrade(engine)
    rows.fill(engine)
    engine.dispose()
    shutil.copy(file, backup)
    seen = set()
    for card in ("one way", "another way"):
        shutil.copy(backup, file)
        engine = make_engine(f"sqlite:///{file}")
        run(engine, f"UPDATE adapter SET card_text = '{card}'")
        seen.add((tokens(engine)["texts"], *versions(engine).values()))
        engine.dispose()
    assert len({token for token, _ in seen}) == len({version for _, version in seen}) == 2


def test_transactions_that_change_the_same_in_another_order_wait_and_end(engine: Engine) -> None:
    """On PostgreSQL tokens are drawn when a transaction ends, so that nobody waits for one with a lock in
    hand.
    """
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer")
    rows.fill(engine)
    with engine.connect() as one, engine.connect() as two:
        one.execute(text("UPDATE adapter SET card_text = 'one'"))
        two.execute(text("DELETE FROM embedding"))
        one.execute(text("UPDATE base_model SET canonical = 'x/y'"))
        two.execute(text("UPDATE fingerprint SET version = 2"))
        one.commit()
        two.commit()
    assert len(versions(engine)) == 1
