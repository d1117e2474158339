"""Views for strangers' SQL: one row an adapter, a score, a member of a pool, with comments on the columns.

They are defined here alone, made at the end of all migrations and dropped before; the program itself does not
read them. SQLite keeps the comments in the text of a view, PostgreSQL as comments of its columns. What others
made, under these names or above these views, is never dropped.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from catalog.database import changes
from catalog.errors import CatalogError

# PostgreSQL's own text of a view differs from the one that made it; its digests stand in the comment.
_MARK = "loradex view"
_SCHEMA = "current_schema()::regnamespace"


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


class Grant(NamedTuple):
    """A privilege on a view, or on a column of it, that a role has on PostgreSQL."""

    view: str
    column: str
    privilege: str
    grantable: bool
    role: str


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


def create_views(connection: Connection, grants: Iterable[Grant] = ()) -> None:
    """Makes the views with their comments, and with these privileges alone where they had any."""
    for view in _views(connection.dialect.name):
        connection.exec_driver_sql(_definition(view, connection.dialect.name))
        if connection.dialect.name == "postgresql":
            for name, _, comment in view.columns:
                _comment(connection, f'COLUMN {view.name}."{name}"', comment)
            text = f"{view.sentence} [{_MARK} {_digest(view)} {_stored(connection, view.name)}]"
            _comment(connection, f"VIEW {view.name}", text)
    _grant(connection, grants)


def drop_views(connection: Connection) -> list[Grant]:
    """Removes the views of this program, whatever their version; returns the privileges on them."""
    grants = [] if connection.dialect.name == "sqlite" else _grants(connection)
    for name in _own(connection):
        connection.exec_driver_sql(f'DROP VIEW "{name}"')
    return grants


def missing_views(connection: Connection) -> list[str]:
    """The names of the views that are absent or of another definition."""
    present = _own(connection)
    dialect = connection.dialect.name
    missing = []
    for view in _views(dialect):
        expected = _definition(view, dialect)
        if dialect == "postgresql":
            expected = f"[{_MARK} {_digest(view)} {_stored(connection, view.name)}]"
        if not present.get(view.name, "").endswith(expected):
            missing.append(view.name)
    return missing


def foreign_names(connection: Connection) -> list[str]:
    """The names of views that belong to something which this program did not make."""
    return sorted(_present(connection).keys() - _own(connection).keys())


@contextlib.contextmanager
def without_foreign_objects(connection: Connection) -> Iterator[None]:
    """Inside the block SQLite has no views and triggers of others; then they are made again as they were.

    SQLite changes no table while any view does not fit, and a table that is rebuilt loses its triggers.
    Raises CatalogError for a view that could be read before the block and cannot be read after it, and for a
    trigger whose table or view is gone. PostgreSQL keeps them, and refuses to drop what they depend on.
    """
    if connection.dialect.name != "sqlite":
        yield
        return
    own = _own(connection)
    query = (
        "SELECT type, name, sql FROM sqlite_master WHERE type IN ('view', 'trigger') "  # noqa: S608
        f"AND name NOT LIKE '{changes.TRIGGER_PREFIX}%' ORDER BY type = 'trigger', rowid"
    )
    others = [row for row in connection.exec_driver_sql(query).all() if row.name not in own]
    readable = {row.name for row in others if row.type == "view" and not _fault(connection, row.name)}
    for row in reversed(others):
        connection.exec_driver_sql(f"DROP {row.type} {_quote(row.name)}")
    yield
    for row in others:
        _remake(connection, row.type, row.name, row.sql)
    for name in sorted(readable):
        if fault := _fault(connection, name):
            raise _unfit("view", name, fault)


def _remake(connection: Connection, kind: str, name: str, sql: str) -> None:
    try:
        connection.exec_driver_sql(sql)
    except OperationalError as error:
        raise _unfit(kind, name, str(error.orig)) from error


def _fault(connection: Connection, view: str) -> str:
    """Why SQLite cannot read a view, empty if it can."""
    try:
        connection.exec_driver_sql(f"SELECT * FROM {_quote(view)} LIMIT 0")  # noqa: S608
    except OperationalError as error:
        return str(error.orig)
    return ""


def _unfit(kind: str, name: str, fault: str) -> CatalogError:
    return CatalogError(
        f"the {kind} {name} does not fit the other schema ({fault}): drop it, run the command again, and "
        "make it again after that"
    )


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _own(connection: Connection) -> dict[str, str]:
    """The views that this program made, with their SQL, on PostgreSQL with their comment."""
    mark = {
        view.name: f"CREATE VIEW {view.name} AS /* {view.sentence} */"
        if connection.dialect.name == "sqlite"
        else f"[{_MARK} "
        for view in _views(connection.dialect.name)
    }
    return {name: text for name, text in _present(connection).items() if mark[name] in text}


def _present(connection: Connection) -> dict[str, str]:
    """What the database has under these names: the SQL of it, on PostgreSQL the comment of a view."""
    dialect = connection.dialect.name
    names = ", ".join(f"'{view.name}'" for view in _views(dialect))
    if dialect == "sqlite":
        query = (
            "SELECT lower(name), coalesce(sql, '') FROM sqlite_master "  # noqa: S608
            f"WHERE type <> 'trigger' AND lower(name) IN ({names})"
        )
    else:
        query = (
            "SELECT relname, CASE relkind WHEN 'v' THEN coalesce(obj_description(oid, 'pg_class'), '') "  # noqa: S608
            f"ELSE '' END FROM pg_class WHERE relnamespace = {_SCHEMA} AND relname IN ({names}) "
            f"UNION ALL SELECT typname, '' FROM pg_type WHERE typrelid = 0 AND typnamespace = {_SCHEMA} "
            f"AND typname IN ({names})"
        )
    return dict(connection.exec_driver_sql(query).all())


def _grants(connection: Connection) -> list[Grant]:
    """The privileges on the views of this program."""
    names = ", ".join(f"'{name}'" for name in _own(connection)) or "NULL"
    where = f"relnamespace = {_SCHEMA} AND relname IN ({names})"
    role = "CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END"
    fields = f"privilege_type, is_grantable, {role}"
    query = (
        f"SELECT relname, '', {fields} FROM pg_class, "  # noqa: S608
        f"aclexplode(coalesce(relacl, acldefault('r', relowner))) WHERE {where} "
        f"UNION ALL SELECT relname, attname, {fields} FROM pg_attribute "
        f"JOIN pg_class ON pg_class.oid = attrelid, aclexplode(attacl) WHERE {where}"
    )
    return [Grant(*row) for row in connection.exec_driver_sql(query)]


def _grant(connection: Connection, grants: Iterable[Grant]) -> None:
    wanted = set(grants)
    columns = {(view.name, name) for view in _views("postgresql") for name, _, _ in view.columns}
    views = {grant.view for grant in wanted if not grant.column}
    # New views have the default privileges, which the previous ones may not have had.
    for grant in sorted(set(_grants(connection)) - wanted) if views else ():
        if grant.view in views:
            connection.exec_driver_sql(f"REVOKE {grant.privilege} ON {grant.view} FROM {grant.role}")
    for grant in sorted(wanted):
        if grant.column and (grant.view, grant.column) not in columns:
            continue
        what = f"{grant.privilege} ({_quote(grant.column)})" if grant.column else grant.privilege
        option = " WITH GRANT OPTION" if grant.grantable else ""
        connection.exec_driver_sql(f"GRANT {what} ON {grant.view} TO {grant.role}{option}")


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
    where = f"'{name}' AND relnamespace = {_SCHEMA}"
    return str(connection.exec_driver_sql(query + where).scalar() or "")


def _comment(connection: Connection, what: str, text: str) -> None:
    quoted = text.replace("'", "''").replace("%", "%%")
    connection.exec_driver_sql(f"COMMENT ON {what} IS '{quoted}'")
