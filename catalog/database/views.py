"""Views for strangers' SQL: one row an adapter, a score, a member of a pool, with comments on the columns.

They are defined here alone, made at the end of all migrations and dropped before; the program itself does not
read them. SQLite keeps the comments in the text of a view, PostgreSQL as comments of its columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection

# PostgreSQL's own text of a view differs from the one that made it; its digests stand in the comment.
_MARK = "loradex view"


@dataclass(frozen=True)
class _View:
    """A view: its name, a sentence, its columns as (name, SQL, comment), and what follows FROM."""

    name: str
    sentence: str
    columns: tuple[tuple[str, str, str], ...]
    source: str


_ADAPTER_NAME = (
    "CASE WHEN adapter.subfolder = '' THEN repository.name "
    "ELSE repository.name || ':' || adapter.subfolder END"
)
_REASONS = {
    "sqlite": "(SELECT json_group_array(reason) FROM (SELECT reason FROM adapter_reason "
    "WHERE adapter_reason.adapter_id = adapter.id ORDER BY position))",
    "postgresql": "(SELECT coalesce(json_agg(reason ORDER BY position), '[]'::json) FROM adapter_reason "
    "WHERE adapter_reason.adapter_id = adapter.id)",
}
_OWN_TAGS = {
    "sqlite": "(SELECT json_group_array(tag) FROM (SELECT tag FROM annotation_tag WHERE "
    "annotation_tag.hub_id = repository.hub_id AND annotation_tag.subfolder = adapter.subfolder "
    "ORDER BY tag))",
    "postgresql": "(SELECT coalesce(json_agg(tag ORDER BY tag), '[]'::json) FROM annotation_tag "
    "WHERE annotation_tag.hub_id = repository.hub_id AND annotation_tag.subfolder = adapter.subfolder)",
}


def _views(dialect: str) -> tuple[_View, ...]:
    adapters = _View(
        "adapters",
        "One row for each adapter at its current commit, of repositories that still exist.",
        (
            ("adapter", _ADAPTER_NAME, "owner/name, with :folder below the root"),
            ("owner", "repository.owner", "the user or organisation it belongs to"),
            ("repository", "repository.name", "owner/name on the Hub"),
            ("subfolder", "adapter.subfolder", "path below the repository's root, empty for the root"),
            ("commit", 'adapter."commit"', "the commit at which it was read"),
            ("base", "base_model.canonical", "Hub id of its base model"),
            ("rank", "adapter.rank", "r of its configuration"),
            ("alpha", "adapter.alpha", "lora_alpha of its configuration"),
            ("scaling", "adapter.scaling", "alpha/r, or alpha/sqrt(r) with rsLoRA"),
            ("use_rslora", "adapter.use_rslora", "whether it is scaled by alpha/sqrt(r)"),
            ("targets", "adapter.targets", "JSON list of the modules it adapts"),
            ("modules", "adapter.modules", "number of adapted modules"),
            ("parameters", "adapter.parameters", "number of its parameters"),
            ("dtypes", "adapter.dtypes", "JSON list of the data types of its weights"),
            ("norm", "adapter.norm", "Frobenius norm of scaling * B A; null where not measured"),
            ("health", "adapter.health", "healthy, or the defect of its values; null where not measured"),
            ("partial", "adapter.partial", "JSON list: what its update has in addition to scaling * B A"),
            ("license", "adapter.license", "license id, such as apache-2.0"),
            ("reasons", _REASONS[dialect], "JSON list of the reasons against it, in the order of the rules"),
            ("peft_type", "adapter.peft_type", "peft_type of its configuration"),
            ("task_type", "adapter.task_type", "task_type of its configuration"),
            ("card_quality", "adapter.card_quality", "how informative its card is"),
            ("downloads", "repository.downloads", "downloads of the last month"),
            ("likes", "repository.likes", "likes on the Hub"),
            ("tags", "repository.tags", "JSON list of the tags of its repository"),
            ("library", "repository.library", "the library that the Hub names for it"),
            ("created", "repository.created_at", "when its repository was created, UTC"),
            ("modified", "repository.last_modified", "when its repository changed, UTC"),
            ("gated", "repository.gated", "auto or manual where the Hub requires consent, else null"),
            ("private", "repository.private", "whether its repository is private"),
            ("main", "adapter.main", "whether it stands for its repository"),
            ("weights_digest", "adapter.weights_digest", "sha256 of its weights file"),
            ("weights_bytes", "weights_file.size", "bytes of its weights file"),
            ("own_tags", _OWN_TAGS[dialect], "JSON list of your tags"),
            ("note", "annotation.note", "your note"),
            ("hidden", "coalesce(annotation.hidden, false)", "whether you hid it"),
            ("hub_id", "repository.hub_id", "the Hub's _id of its repository"),
            ("adapter_id", "adapter.id", "its row in the table adapter"),
        ),
        "adapter JOIN repository ON repository.id = adapter.repository_id "
        "LEFT JOIN base_model ON base_model.id = adapter.base_model_id "
        "LEFT JOIN weights_file ON weights_file.digest = adapter.weights_digest "
        "LEFT JOIN annotation ON annotation.hub_id = repository.hub_id "
        "AND annotation.subfolder = adapter.subfolder "
        "WHERE adapter.current AND repository.gone_at IS NULL",
    )
    scores = _View(
        "scores",
        "One row for each measured score.",
        (
            ("adapter", "evaluation.subject", "owner/name[@commit][:folder], merge:<digest>, or base"),
            ("task", "evaluation.task", "name of the task"),
            ("split", "evaluation.split", "the part of the task's examples"),
            ("metric", "evaluation.metric", "what was measured"),
            ("protocol", "evaluation.protocol", "how the model was asked; empty for loradex's own way"),
            ("value", "evaluation.value", "the score"),
            ("n", "evaluation.n", "number of samples; null where the source does not say"),
            ("source", "evaluation.source", "who measured it"),
            ("adapter_id", "evaluation.adapter_id", "its row in the table adapter, if the catalog has it"),
        ),
        "evaluation",
    )
    pool_members = _View(
        "pool_members",
        "One row for each member of a saved pool that the catalog contains.",
        (
            ("pool", "pool.name", "name of the pool"),
            ("position", "pool_member.position", "its place in the pool, from 0"),
            ("adapter", _ADAPTER_NAME, "owner/name, with :folder below the root"),
            ("commit", 'adapter."commit"', "the commit that the pool pins"),
            ("rank", "adapter.rank", "r of its configuration"),
            ("license", "adapter.license", "license id"),
            ("adapter_id", "adapter.id", "its row in the table adapter"),
        ),
        "pool_member JOIN pool ON pool.id = pool_member.pool_id "
        "JOIN adapter ON adapter.id = pool_member.adapter_id "
        "JOIN repository ON repository.id = adapter.repository_id",
    )
    return adapters, scores, pool_members


def create_views(connection: Connection) -> None:
    """Makes the views with their comments."""
    for view in _views(connection.dialect.name):
        connection.exec_driver_sql(_definition(view, connection.dialect.name))
        if connection.dialect.name == "postgresql":
            for name, _, comment in view.columns:
                _comment(connection, f'COLUMN {view.name}."{name}"', comment)
            text = f"{view.sentence} [{_MARK} {_digest(view)} {_stored(connection, view.name)}]"
            _comment(connection, f"VIEW {view.name}", text)


def drop_views(connection: Connection) -> None:
    """Removes the views, whatever their version."""
    for name in _present(connection):
        connection.exec_driver_sql(f'DROP VIEW "{name}"')


def missing_views(connection: Connection) -> list[str]:
    """The names of the views that are absent or of another definition."""
    present = _present(connection)
    dialect = connection.dialect.name
    missing = []
    for view in _views(dialect):
        expected = _definition(view, dialect)
        if dialect == "postgresql":
            expected = f"[{_MARK} {_digest(view)} {_stored(connection, view.name)}]"
        if not present.get(view.name, "").endswith(expected):
            missing.append(view.name)
    return missing


def _present(connection: Connection) -> dict[str, str]:
    """The views of these names in the database, with their SQL, on PostgreSQL with their comment."""
    dialect = connection.dialect.name
    names = ", ".join(f"'{view.name}'" for view in _views(dialect))
    if dialect == "sqlite":
        query = f"SELECT name, sql FROM sqlite_master WHERE type = 'view' AND name IN ({names})"  # noqa: S608
    else:
        query = (
            "SELECT relname, coalesce(obj_description(oid, 'pg_class'), '') FROM pg_class "  # noqa: S608
            f"WHERE relkind = 'v' AND relnamespace = current_schema()::regnamespace AND relname IN ({names})"
        )
    return dict(connection.exec_driver_sql(query).all())


def _definition(view: _View, dialect: str) -> str:
    lines = list(_column_lines(view, comments=dialect == "sqlite"))
    head = f"/* {view.sentence} */\n" if dialect == "sqlite" else ""
    return f"CREATE VIEW {view.name} AS {head}SELECT\n" + "\n".join(lines) + f"\nFROM {view.source}"


def _column_lines(view: _View, *, comments: bool) -> Iterator[str]:
    for place, (name, sql, comment) in enumerate(view.columns, 1):
        comma = "," if place < len(view.columns) else ""
        text = f" /* {comment} */" if comments else ""
        yield f'  {sql} AS "{name}"{comma}{text}'


def _digest(view: _View) -> str:
    text = _definition(view, "sqlite")
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _stored(connection: Connection, name: str) -> str:
    """The digest of PostgreSQL's own text of a view, empty if it does not exist."""
    query = "SELECT substr(md5(pg_get_viewdef(oid)), 1, 12) FROM pg_class WHERE relkind = 'v' AND relname = "
    where = f"'{name}' AND relnamespace = current_schema()::regnamespace"
    return str(connection.exec_driver_sql(query + where).scalar() or "")


def _comment(connection: Connection, what: str, text: str) -> None:
    quoted = text.replace("'", "''").replace("%", "%%")
    connection.exec_driver_sql(f"COMMENT ON {what} IS '{quoted}'")
