"""The fields of the filter language: the name of each, its clause in SQL, and its value in a plain row.

A field has zero values in an adapter if it is missing, one, or many if it is a list. A term of a filter
(`catalog.query`) matches if one of the values does. That is why a missing value matches no value and no
range, why its negation does match, and why SQL's third truth value never appears: every clause made here is
true or false.

Texts are compared without regard to the case of the letters A to Z. Other letters are compared as they are,
since the databases and Python disagree on their case.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    and_,
    case,
    column,
    exists,
    false,
    func,
    literal,
    literal_column,
    or_,
    true,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import FunctionElement

from catalog.adapters import (
    DTYPE_BITS,
    FACTS_VERSION,
    USES,
    WITHHELD,
    Engine,
    EngineFacts,
    Use,
    adapter_name,
    allowed_uses,
    objection,
)
from catalog.database import (
    Adapter,
    AdapterReason,
    Annotation,
    AnnotationTag,
    BaseModelRow,
    CleanText,
    Repository,
    has_reason,
    is_hidden,
)

Kind = Literal["text", "whole", "number", "date", "flag", "engine"]
Condition = Callable[[Any], ColumnElement[bool]]
# Makes the clause "some value of the field satisfies the condition", by the refusing reasons.
Some = Callable[[Condition, Collection[str]], ColumnElement[bool]]

_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_KINDS: dict[Kind, str] = {
    "text": "text",
    "whole": "whole number",
    "number": "number",
    "date": "date",
    "flag": "yes or no",
    "engine": "engine",
}


@dataclass(frozen=True)
class Field:
    """One field: `key` names its value in a row, `some` makes its clause, `help` is one sentence.

    `many` marks a list, `choices` are the only values it can have, and `absent` is the meaning of a missing
    value.
    """

    name: str
    kind: Kind
    key: str
    some: Some
    help: str
    many: bool = False
    aliases: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    absent: Any = None

    @property
    def kind_in_words(self) -> str:
        """The kind of its values, for people."""
        return f"list of {_KINDS[self.kind]}s" if self.many else _KINDS[self.kind]

    def values(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        """Its values in a row, empty if missing; raises KeyError for a row without its key."""
        value = row[self.key]
        if self.kind == "engine":
            return (value,)
        if self.many:
            return texts_in(value)
        value = self.absent if value is None else value
        if value is None:
            return ()
        return (bool(value),) if self.kind == "flag" else (value,)


class AsciiLower(FunctionElement[str]):
    """A text in SQL with A to Z in lower case, as `fold` gives it."""

    type = CleanText()
    inherit_cache = True
    name = "ascii_lower"


class TextsIn(FunctionElement[Any]):
    """The rows `value` of the texts in a JSON column, or below a key of it, as `texts_in` gives them."""

    inherit_cache = True
    name = "texts_in"


def fold(text: str) -> str:
    """The text with A to Z in lower case and every other character as it is."""
    return text.translate(_ASCII_LOWER)


def texts_in(value: object) -> tuple[str, ...]:
    """The texts in a list, or the text itself; empty for any other value.

    YAML reads the bare word "no", the language of Norway, as false; it is a text again here.
    """
    entries = value if isinstance(value, (list, tuple)) else [value]
    texts = ("no" if entry is False else entry for entry in entries)
    return tuple(entry for entry in texts if isinstance(entry, str))


# SQLite's lower() knows A to Z alone; PostgreSQL's does where the collation is "C".
@compiles(AsciiLower, "sqlite")
def _lower_on_sqlite(element: AsciiLower, compiler: SQLCompiler, **kw: Any) -> str:
    return f"lower({compiler.process(element.clauses, **kw)})"


@compiles(AsciiLower, "postgresql")
def _lower_on_postgresql(element: AsciiLower, compiler: SQLCompiler, **kw: Any) -> str:
    return f'lower(({compiler.process(element.clauses, **kw)}) COLLATE "C")'


@compiles(TextsIn, "sqlite")
def _texts_on_sqlite(element: TextsIn, compiler: SQLCompiler, **kw: Any) -> str:
    document, *key = (compiler.process(clause, **kw) for clause in element.clauses)
    place = f"{document}, '$.' || {key[0]}" if key else document
    # json_each goes through the values of an object too; those are not lists.
    return (
        f"(SELECT CASE type WHEN 'false' THEN 'no' ELSE value END AS value FROM json_each({place}) "  # noqa: S608
        f"WHERE type IN ('text', 'false') AND json_type({place}) <> 'object')"
    )


@compiles(TextsIn, "postgresql")
def _texts_on_postgresql(element: TextsIn, compiler: SQLCompiler, **kw: Any) -> str:
    document, *key = (compiler.process(clause, **kw) for clause in element.clauses)
    place = f"({document} -> {key[0]})" if key else document
    return (
        "(SELECT CASE json_typeof(entry) WHEN 'boolean' THEN 'no' ELSE entry #>> '{}' END AS value "  # noqa: S608
        f"FROM json_array_elements(CASE json_typeof({place}) WHEN 'array' THEN {place} "
        f"ELSE json_build_array({place}) END) AS entries(entry) "
        "WHERE json_typeof(entry) = 'string' OR entry #>> '{}' = 'false' AND json_typeof(entry) = 'boolean')"
    )


def _one(value: Any) -> Some:
    """The clauses of a single value that may be null."""
    return lambda condition, refusing: and_(value.is_not(None), condition(value))


def _texts(document: Any, key: str | None = None) -> Some:
    """The clauses of the texts in a JSON column, or below one of its keys."""
    arguments = (document,) if key is None else (document, literal_column(f"'{key}'"))

    def some(condition: Condition, refusing: Collection[str]) -> ColumnElement[bool]:
        rows = TextsIn(*arguments).table_valued(column("value", CleanText))
        return exists().where(condition(rows.c.value)).correlate(Adapter, Repository)

    return some


def _linked(link: Any, value: Any) -> Some:
    """The clauses of a value in another table, whose rows `link` joins to the adapter."""
    return lambda condition, refusing: exists().where(link, condition(value)).correlate(Adapter, Repository)


def _of_user(table: type[Annotation] | type[AnnotationTag], value: Any) -> Some:
    """The clauses of a value that a user gave an adapter."""
    link = and_(table.hub_id == Repository.hub_id, table.subfolder == Adapter.subfolder)
    return _linked(and_(link, value.is_not(None)), value)


_base = _linked(BaseModelRow.id == Adapter.base_model_id, BaseModelRow.canonical)
_reason = _linked(AdapterReason.adapter_id == Adapter.id, AdapterReason.reason)


def _verdict(condition: Condition, refusing: Collection[str]) -> ColumnElement[bool]:
    return condition(case((has_reason(sorted(refusing)), "skipped"), else_="accepted"))


def _use(condition: Condition, refusing: Collection[str]) -> ColumnElement[bool]:
    return or_(*(and_(_is_allowed(use), condition(literal(use, CleanText()))) for use in USES))


def _is_allowed(use: Use) -> ColumnElement[bool]:
    """Whether nothing in an adapter's license speaks against a use, as `catalog.adapters.objection` says."""
    folded = AsciiLower(Adapter.license)
    if objection(None, use) is None:
        withheld = [name for name in WITHHELD if objection(name, use)]
        return or_(Adapter.license.is_(None), folded.not_in(withheld))
    allowed = [name for name in WITHHELD if objection(name, use) is None]
    return and_(Adapter.license.is_not(None), folded.in_(allowed))


def _engine_columns(condition: Condition, refusing: Collection[str]) -> ColumnElement[bool]:
    """The clause of what is stored for engines: its condition takes the columns of the adapter."""
    return condition(Adapter)


def refused_by(engine: Engine) -> ColumnElement[bool]:
    """Whether an engine is known not to run an adapter as PEFT does (`verdict(…).runs is False`)."""
    whens = sorted({rule.when for rule in engine.rules})
    if "any" in whens:
        return true()
    rows = TextsIn(Adapter.engine_features).table_valued(column("value", CleanText))
    has_one = exists().where(rows.c.value.in_(whens)).correlate(Adapter)
    too_large = func.coalesce(Adapter.engine_rank, 0) > engine.rank_limit if engine.rank_limit else false()
    return and_(_has_features(), or_(has_one, too_large))


def is_read() -> ColumnElement[bool]:
    """Whether the features of an adapter are those of its weights file, too (`EngineFacts.whole`)."""
    return and_(_has_features(), func.coalesce(Adapter.engine_whole, false()))


def _has_features() -> ColumnElement[bool]:
    is_current = func.coalesce(Adapter.engine_version, 0) == FACTS_VERSION
    return and_(is_current, Adapter.engine_features.is_not(None))


def full_name() -> ColumnElement[str]:
    """The name of an adapter in SQL, as `catalog.adapters.adapter_name` gives it."""
    return case((Adapter.subfolder == "", Repository.name), else_=Repository.name + ":" + Adapter.subfolder)


def _own_name() -> ColumnElement[str]:
    first = case((Repository.owner == "", 1), else_=func.length(Repository.owner) + 2)
    return func.substr(full_name(), first, type_=CleanText())


_QUALITIES = ("absent", "template", "generated", "hyperparameters", "informative")
_HEALTH = ("healthy", "empty", "zero_update", "non_finite", "exploding", "barely_trained")
_ALL = (
    Field("adapter", "text", "adapter", _one(full_name()), "Its whole name, as lists show it."),
    Field("name", "text", "name", _one(_own_name()), "Its name without the owner."),
    Field("owner", "text", "owner", _one(Repository.owner), "The user or organisation it belongs to."),
    Field("base", "text", "base", _base, "The Hub id of its base model."),
    Field("rank", "whole", "rank", _one(Adapter.rank), "r of its configuration."),
    Field("alpha", "number", "alpha", _one(Adapter.alpha), "lora_alpha of its configuration."),
    Field("scaling", "number", "scaling", _one(Adapter.scaling), "alpha/r, or alpha/sqrt(r) with rsLoRA."),
    Field(
        "rslora", "flag", "use_rslora", _one(Adapter.use_rslora), "Whether it is scaled by alpha/sqrt(r).",
        aliases=("use_rslora",),
    ),
    Field(
        "target", "text", "targets", _texts(Adapter.targets), "A kind of module it adapts, such as q_proj.",
        many=True, aliases=("targets",),
    ),
    Field("modules", "whole", "modules", _one(Adapter.modules), "How many modules it adapts."),
    Field(
        "parameters", "whole", "parameters", _one(Adapter.parameters), "How many parameters it has.",
        aliases=("params", "size"),
    ),
    Field(
        "dtype", "text", "dtypes", _texts(Adapter.dtypes), "A data type of its weights, such as BF16.",
        many=True, aliases=("dtypes",), choices=tuple(fold(name) for name in DTYPE_BITS),
    ),
    Field("norm", "number", "norm", _one(Adapter.norm), "The Frobenius norm of its update scaling * B A."),
    Field(
        "health", "text", "health", _one(Adapter.health), "healthy, or the defect of its values.",
        choices=_HEALTH,
    ),
    Field(
        "partial", "text", "partial", _texts(Adapter.partial),
        "A feature of its update in addition to scaling * B A, such as use_dora.", many=True,
    ),
    Field(
        "license", "text", "license", _one(Adapter.license), "Its license id, such as apache-2.0.",
        aliases=("licence",),
    ),
    Field(
        "use", "text", "uses", _use, "A use that its license allows: research, publish or commercial.",
        many=True, choices=USES,
    ),
    Field(
        "verdict", "text", "verdict", _verdict, "Whether the rules accept or skip it.",
        choices=("accepted", "skipped"),
    ),
    Field(
        "reason", "text", "reasons", _reason, "A reason against it, such as zero_update.",
        many=True, aliases=("reasons",),
    ),
    Field("created", "date", "created", _one(Repository.created_at), "When its repository was created."),
    Field("modified", "date", "modified", _one(Repository.last_modified), "When its repository changed."),
    Field("downloads", "whole", "downloads", _one(Repository.downloads), "Downloads of the last month."),
    Field("likes", "whole", "likes", _one(Repository.likes), "Likes on the Hub."),
    Field(
        "tag", "text", "tags", _texts(Repository.tags), "A tag of its repository.",
        many=True, aliases=("tags",),
    ),
    Field(
        "dataset", "text", "datasets", _texts(Adapter.card_front, "datasets"), "A dataset its card names.",
        many=True, aliases=("datasets",),
    ),
    Field(
        "language", "text", "languages", _texts(Adapter.card_front, "language"), "A language its card names.",
        many=True, aliases=("languages",),
    ),
    Field(
        "task", "text", "task_type", _one(Adapter.task_type), "task_type of its configuration.",
        aliases=("task_type",),
    ),
    Field(
        "peft", "text", "peft_type", _one(Adapter.peft_type), "peft_type of its configuration.",
        aliases=("peft_type",),
    ),
    Field(
        "quality", "text", "card_quality", _one(Adapter.card_quality), "How informative its card is.",
        aliases=("card_quality",), choices=_QUALITIES,
    ),
    Field(
        "tool", "text", "library", _one(Repository.library), "The library that the Hub names for it.",
        aliases=("library",),
    ),
    Field(
        "gated", "flag", "gated", _one(Repository.gated.is_not(None)), "Whether the Hub requires consent.",
        absent=False,
    ),
    Field(
        "runs", "engine", "engine_facts", _engine_columns,
        "An engine that runs it as PEFT does, such as vllm.", many=True,
    ),
    Field(
        "runs_unknown", "engine", "engine_facts", _engine_columns,
        "An engine of which that is not known, as its weights file was not read.", many=True,
    ),
    Field(
        "mytag", "text", "own_tags", _of_user(AnnotationTag, AnnotationTag.tag), "A tag that you gave it.",
        many=True, aliases=("own_tags",),
    ),
    Field("note", "text", "note", _of_user(Annotation, Annotation.note), "Your note on it."),
    Field(
        "hidden", "flag", "hidden", lambda condition, refusing: condition(is_hidden()),
        "Whether you hid it.", absent=False,
    ),
    Field("main", "flag", "main", _one(Adapter.main), "Whether it stands for its repository."),
    Field("commit", "text", "commit", _one(Adapter.commit), "The commit at which it was read."),
)  # fmt: skip
FIELDS: dict[str, Field] = {field.name: field for field in _ALL}
NAMES: dict[str, str] = {name: field.name for field in _ALL for name in (field.name, *field.aliases)}


# The values of a row that are columns of the adapter, or of its repository, under their own names.
_OF_ADAPTER = (
    *(
        "commit",
        "rank",
        "alpha",
        "scaling",
        "use_rslora",
        "targets",
        "modules",
        "parameters",
        "dtypes",
        "norm",
    ),
    *("health", "partial", "license", "task_type", "peft_type", "card_quality", "main"),
)
_OF_REPOSITORY = ("owner", "downloads", "likes", "tags", "library", "gated")


def query_row(adapter: Adapter, refusing: Collection[str]) -> dict[str, Any]:
    """The row of an adapter for a filter's `match`: the values in lists and those with a field."""
    repository, front = adapter.repository, adapter.card_front
    name, owner = adapter_name(repository.name, adapter.subfolder), repository.owner
    front = front if isinstance(front, dict) else {}
    reasons = [reason.reason for reason in adapter.reasons]
    annotation = adapter.annotation
    return {
        **{column: getattr(adapter, column) for column in _OF_ADAPTER},
        **{column: getattr(repository, column) for column in _OF_REPOSITORY},
        "adapter": name,
        "name": name[len(owner) + 1 :] if owner else name,
        "base": adapter.base_model.canonical if adapter.base_model else None,
        "uses": allowed_uses(adapter.license),
        "verdict": "skipped" if set(reasons) & set(refusing) else "accepted",
        "reasons": reasons,
        "created": repository.created_at,
        "modified": repository.last_modified,
        "datasets": list(texts_in(front.get("datasets"))),
        "languages": list(texts_in(front.get("language"))),
        "card": adapter.card_text,
        "own_tags": adapter.own_tags,
        "note": annotation.note if annotation else None,
        "hidden": annotation is not None and annotation.hidden,
        "engine_facts": stored_facts(adapter),
    }


def stored_facts(adapter: Any) -> EngineFacts:
    """What is stored for engines of an adapter, or of a row with these columns of its table; nothing where
    that is missing or of another version.
    """
    if adapter.engine_version != FACTS_VERSION or adapter.engine_features is None:
        return EngineFacts(whole=False)
    features = texts_in(adapter.engine_features)
    return EngineFacts(features, adapter.engine_rank, bool(adapter.engine_whole))
