"""What a cache compares to know whether the catalog has changed: random tokens, drawn by triggers.

`change_token` has a token for each topic: what full text is made from, which fingerprints belong to which
base model, the vectors of cards, and what the page shows of adapters, of scores and of crawls. Every write
that changes one of these draws a new random token, whoever writes; other writes leave it. Equal tokens mean
equal content, also after a backup was restored that grew differently, where a counter would lie.
`text_version` has a random version for the text of each adapter, so that a cache finds the texts that
changed; `vector_version` one for each part of the fingerprints and of the vectors of cards, those whose
digests begin with the same characters.

The triggers are defined here alone. A migration runs without them; `create_triggers` makes them at its end,
and draws everything anew where one was missing. On PostgreSQL they are constraint triggers, deferred to the
end of the transaction: the row of a token, which others wait for, is the last one that a transaction locks.
Those for TRUNCATE, which locks its tables to the end, run at once. There all are always on, also where a
session replicates or restores; `ENABLE TRIGGER ALL` after a restore without them makes them ordinary ones,
by which `missing_triggers` notices it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from sqlalchemy import Connection, Text, cast, delete, func, inspect, select
from sqlalchemy.orm import Session

from catalog.database.schema import ChangeToken, TextVersion, VectorVersion
from catalog.index import PART_LENGTH

Topic = Literal["texts", "fingerprints", "embeddings", "adapters", "scores", "crawls"]
TOPICS: tuple[Topic, ...] = ("texts", "fingerprints", "embeddings", "adapters", "scores", "crawls")
TRIGGER_PREFIX = "loradex_changes"


@dataclass(frozen=True)
class _Trigger:
    """A trigger: its topic, table and event; for an update, the columns of which one must differ; and for
    texts the adapters that change, as a condition on `adapter` with {row} for NEW or OLD; for vectors the
    column whose beginning is their part, none for all parts.
    """

    topic: Topic
    table: str
    event: Literal["INSERT", "UPDATE", "DELETE", "TRUNCATE"]
    columns: tuple[str, ...] = ()
    adapters: str = ""
    part: str = ""

    @property
    def name(self) -> str:
        return f"{TRIGGER_PREFIX}_{self.topic}_{self.table}_{self.event.lower()}"

    @property
    def row(self) -> str:
        return "OLD" if self.event == "DELETE" else "NEW"

    @property
    def rows(self) -> tuple[str, ...]:
        return ("OLD", "NEW") if self.event == "UPDATE" else (self.row,)


_TEXT_COLUMNS = (
    "repository_id",
    "subfolder",
    "current",
    "card_text",
    "card_quality",
    "card_front",
    "base_model_id",
)
_OF_REPOSITORY = "adapter.repository_id = {row}.id"
# What the page shows of them, or what that follows from.
_ADAPTER_COLUMNS = (
    *("repository_id", "subfolder", "main", "current", "config_digest", "card_digest", "weights_digest"),
    *("weights_name", "files", "base_model_id", "base_raw", "base_kind", "base_evidence", "peft_type"),
    *("task_type", "rank", "alpha", "scaling", "use_rslora", "targets", "modules", "parameters", "dtypes"),
    *("norm", "health", "scaling_pattern", "partial", "engine_features", "engine_rank", "engine_whole"),
    *("engine_version", "license", "card_quality", "card_text", "card_front", "training"),
)
_REPOSITORY_COLUMNS = (
    *("hub_id", "name", "owner", "created_at", "last_modified", "gated", "disabled", "private", "downloads"),
    *("downloads_all_time", "likes", "library", "pipeline_tag", "tags", "gone_at"),
)
_SCORE_COLUMNS = (
    *("subject", "adapter_id", "task", "split", "metric", "value", "n", "source", "protocol", "items_sha"),
    *("outcomes", "margins"),
)


def _of_table(topic: Topic, table: str, columns: tuple[str, ...], part: str = "") -> tuple[_Trigger, ...]:
    """The triggers by which every change of these columns of a table changes a token."""
    return (
        _Trigger(topic, table, "INSERT", part=part),
        _Trigger(topic, table, "UPDATE", columns, part=part),
        _Trigger(topic, table, "DELETE", part=part),
        _Trigger(topic, table, "TRUNCATE"),
    )


_WEIGHTS_COLUMNS = ("base_model_id", "weights_digest", "scaling_pattern")
_FINGERPRINT_COLUMNS = ("weights_digest", "scaling_pattern", "version", "delta", "output")
_TRIGGERS = (
    _Trigger("texts", "adapter", "INSERT", adapters="adapter.id = {row}.id"),
    _Trigger("texts", "adapter", "UPDATE", _TEXT_COLUMNS, "adapter.id = {row}.id"),
    _Trigger("texts", "adapter", "DELETE"),
    _Trigger("texts", "adapter", "TRUNCATE"),
    _Trigger("texts", "repository", "UPDATE", ("name", "tags", "gone_at"), _OF_REPOSITORY),
    _Trigger("texts", "repository", "DELETE", (), _OF_REPOSITORY),
    _Trigger("texts", "base_model", "UPDATE", ("canonical",), "adapter.base_model_id = {row}.id"),
    *_of_table("fingerprints", "adapter", _WEIGHTS_COLUMNS, "weights_digest"),
    *_of_table("fingerprints", "fingerprint", _FINGERPRINT_COLUMNS, "weights_digest"),
    _Trigger("fingerprints", "base_model", "UPDATE", ("canonical",)),
    *_of_table("embeddings", "embedding", ("content", "model", "chunk", "vector"), "content"),
    *_of_table("adapters", "adapter", _ADAPTER_COLUMNS),
    *_of_table("adapters", "adapter_reason", ("adapter_id", "reason", "position", "detail")),
    *_of_table("adapters", "repository", _REPOSITORY_COLUMNS),
    *_of_table("adapters", "repository_alias", ("repository_id", "name")),
    _Trigger("adapters", "base_model", "UPDATE", ("canonical", "license")),
    *_of_table("scores", "evaluation", _SCORE_COLUMNS),
    *_of_table("crawls", "crawl_item", ("crawl_id", "name", "outcome", "error", "detail")),
)
# The columns that the parts of all vectors are made from.
_OF_PARTS = {"fingerprints": ("fingerprint", "weights_digest"), "embeddings": ("embedding", "content")}
_DRAW = {"sqlite": "random()", "postgresql": "hashtextextended(gen_random_uuid()::text, 0)"}
# JSON of PostgreSQL has no equality; its text does, and unchanged values keep theirs.
_JSON = ("card_front", "tags", "files", "targets", "dtypes", "partial", "engine_features", "training")


def read_token(session: Session, *topics: Topic) -> str:
    """The tokens of these topics as one text. Read it before what it stands for."""
    tokens: dict[str, int] = dict(session.execute(select(ChangeToken.topic, ChangeToken.token)).all())
    return " ".join(str(tokens[topic]) for topic in topics)


def read_versions(session: Session, topic: Topic) -> dict[str, int]:
    """The version of each part of the vectors of a topic. Read it before what it stands for."""
    # One text instead of up to 65,536 rows.
    is_sqlite = session.get_bind().dialect.name == "sqlite"
    make_object = func.json_group_object if is_sqlite else func.json_object_agg
    versions = cast(make_object(VectorVersion.part, VectorVersion.version), Text)
    found = session.scalar(select(versions).where(VectorVersion.topic == topic))
    return dict(json.loads(found or "{}"))


def create_triggers(connection: Connection) -> None:
    """Makes the triggers and draws all tokens and versions anew."""
    for statements in _definitions(connection.dialect.name).values():
        for statement in statements:
            connection.exec_driver_sql(statement)
    for table in (TextVersion, VectorVersion, ChangeToken):
        connection.execute(delete(table))
    draw = _DRAW[connection.dialect.name]
    versions = f"INSERT INTO text_version (adapter_id, version) SELECT id, {draw} FROM adapter"  # noqa: S608
    connection.exec_driver_sql(versions)
    for topic, (table_name, column) in _OF_PARTS.items():
        parts = f"SELECT DISTINCT substr({column}, 1, {PART_LENGTH}) AS part FROM {table_name}"  # noqa: S608
        connection.exec_driver_sql(
            f"INSERT INTO vector_version (topic, part, version) SELECT '{topic}', part, {draw} "  # noqa: S608
            f"FROM ({parts}) AS parts"
        )
    for topic in TOPICS:
        token = f"INSERT INTO change_token (topic, token) VALUES ('{topic}', {draw})"  # noqa: S608
        connection.exec_driver_sql(token)


def drop_triggers(connection: Connection) -> None:
    """Removes every trigger of this program, whatever its version."""
    for name in _present(connection):
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql(f'DROP TRIGGER "{name}"')
        else:
            connection.exec_driver_sql(f'DROP FUNCTION "{name}"() CASCADE')


def missing_triggers(connection: Connection) -> list[str]:
    """The names of the triggers that are absent, switched off or of another definition."""
    present = _present(connection)
    expected = _expected(connection.dialect.name)
    return [name for name, body in expected.items() if present.get(name) != body]


@cache
def _expected(dialect: str) -> dict[str, str]:
    """What each trigger does, by its name."""
    return {name: _body(first) for name, (first, *_) in _definitions(dialect).items()}


def _present(connection: Connection) -> dict[str, str]:
    """The triggers in the database by name, with what they do: on PostgreSQL the bodies of their functions,
    empty where the trigger is not always on.
    """
    if connection.dialect.name == "sqlite":
        query = (
            f"SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND name LIKE '{TRIGGER_PREFIX}%'"  # noqa: S608
        )
    elif not inspect(connection).has_table("adapter"):
        return {}
    else:
        query = (
            "SELECT proname, CASE WHEN EXISTS (SELECT 1 FROM pg_trigger WHERE tgfoid = pg_proc.oid "  # noqa: S608
            "AND tgenabled = 'A') THEN prosrc ELSE '' END FROM pg_proc "
            f"WHERE proname LIKE '{TRIGGER_PREFIX}%%' AND pronamespace = current_schema()::regnamespace"
        )
    return {name: _body(sql) for name, sql in connection.exec_driver_sql(query)}


def _body(statement: str) -> str:
    """What a trigger does, without its spaces: the statement, or the body of its function."""
    _, _, quoted = statement.partition("$body$")
    return " ".join((quoted.partition("$body$")[0] or statement).split())


def _definitions(dialect: str) -> dict[str, tuple[str, ...]]:
    """The statements that make each trigger, by its name; the first has what it does."""
    if dialect == "sqlite":
        triggers = (trigger for trigger in _TRIGGERS if trigger.event != "TRUNCATE")
        return {trigger.name: _sqlite_statements(trigger) for trigger in triggers}
    return {trigger.name: _postgres_statements(trigger) for trigger in _TRIGGERS}


def _sqlite_statements(trigger: _Trigger) -> tuple[str, ...]:
    differs = " OR ".join(f"OLD.{name} IS NOT NEW.{name}" for name in trigger.columns)
    of = f" OF {', '.join(trigger.columns)}" if trigger.columns else ""
    when = f" WHEN {differs}" if differs else ""
    draw = f"UPDATE change_token SET token = {_DRAW['sqlite']} WHERE topic = '{trigger.topic}'"  # noqa: S608
    body = "; ".join([*_version_statements(trigger, "sqlite"), draw])
    head = f"CREATE TRIGGER {trigger.name} AFTER {trigger.event}{of} ON {trigger.table}"
    return (f"{head} FOR EACH ROW{when} BEGIN {body}; END",)


def _postgres_statements(trigger: _Trigger) -> tuple[str, ...]:
    """All tokens are locked in one order, before the versions, so that transactions wait without a
    deadlock.
    """
    setting = f"loradex.{trigger.topic}"
    versions = "".join(f"{statement};\n" for statement in _version_statements(trigger, "postgresql"))
    function = f"""
CREATE FUNCTION {trigger.name}() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $body$
BEGIN
IF current_setting('{setting}', true) IS DISTINCT FROM pg_current_xact_id()::text THEN
PERFORM 1 FROM change_token ORDER BY topic FOR UPDATE;
UPDATE change_token SET token = {_DRAW["postgresql"]} WHERE topic = '{trigger.topic}';
PERFORM set_config('{setting}', pg_current_xact_id()::text, true);
END IF;
{versions}RETURN NULL;
END
$body$"""  # noqa: S608
    casts = {name: f"{name}::text" if name in _JSON else name for name in trigger.columns}
    differs = " OR ".join(f"OLD.{name} IS DISTINCT FROM NEW.{name}" for name in casts.values())
    of = f" OF {', '.join(trigger.columns)}" if trigger.columns else ""
    when = f" WHEN ({differs})" if differs else ""
    at = f"{trigger.name} AFTER {trigger.event}{of} ON {trigger.table}"
    run = f"EXECUTE FUNCTION {trigger.name}()"
    made = f"CREATE CONSTRAINT TRIGGER {at} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW{when} {run}"
    if trigger.event == "TRUNCATE":
        made = f"CREATE TRIGGER {at} FOR EACH STATEMENT {run}"
    return function, made, f"ALTER TABLE {trigger.table} ENABLE ALWAYS TRIGGER {trigger.name}"


def _version_statements(trigger: _Trigger, dialect: str) -> Iterator[str]:
    """What gives the adapters whose text changed, or the parts whose vectors did, new versions.

    Never INSERT OR REPLACE: in a trigger, the conflict policy of the statement that fired it counts.
    """
    draw = _DRAW[dialect]
    if trigger.adapters:
        where = trigger.adapters.format(row=trigger.row)
        yield f"DELETE FROM text_version WHERE adapter_id IN (SELECT id FROM adapter WHERE {where})"  # noqa: S608
        yield (
            f"INSERT INTO text_version (adapter_id, version) SELECT id, {draw} "  # noqa: S608
            f"FROM adapter WHERE {where}"
        )
    elif trigger.topic == "texts":
        where = "" if trigger.event == "TRUNCATE" else " WHERE adapter_id = OLD.id"
        yield f"DELETE FROM text_version{where}"  # noqa: S608
    elif trigger.topic not in _OF_PARTS:
        return
    elif not trigger.part:
        yield f"UPDATE vector_version SET version = {draw} WHERE topic = '{trigger.topic}'"  # noqa: S608
    else:
        for row in trigger.rows:
            part = f"substr({row}.{trigger.part}, 1, {PART_LENGTH})"
            yield f"DELETE FROM vector_version WHERE topic = '{trigger.topic}' AND part = {part}"  # noqa: S608
            yield (
                f"INSERT INTO vector_version (topic, part, version) SELECT '{trigger.topic}', {part}, {draw} "
                f"WHERE {part} IS NOT NULL"
            )
