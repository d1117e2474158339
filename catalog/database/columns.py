"""What all tables share: column types that store any value of the Hub, and names of constraints.

The types return the same on SQLite and PostgreSQL. Bytes from outside may hold NUL, lone surrogates, NaN and
5,000-digit integers; PostgreSQL refuses all four, SQLite some. They are replaced here, once for every table.
"""

from __future__ import annotations

import enum
import math
from datetime import UTC, datetime
from typing import Annotated, Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Enum,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    Text,
)
from sqlalchemy.orm import DeclarativeBase, mapped_column
from sqlalchemy.types import TypeDecorator

from catalog.files import clean_json, clean_text

_INT64 = 2**63 - 1


class CleanText(TypeDecorator[str]):
    """Text of any length, cleaned when written."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else clean_text(value)


class CleanJSON(TypeDecorator[Any]):
    """JSON, cleaned when written; Python's None is SQL's NULL."""

    impl = JSON(none_as_null=True)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return clean_json(value)


class Counter(TypeDecorator[int]):
    """A 64-bit integer; a larger one is stored as NULL."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> int | None:
        return value if value is not None and abs(value) <= _INT64 else None


class Real(TypeDecorator[float]):
    """A finite double; NaN and infinities, which the databases treat differently, are stored as NULL."""

    impl = Float(53)
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> float | None:
        try:
            return value if value is not None and math.isfinite(value) else None
        except OverflowError:  # an integer beyond the range of a double
            return None


class UTCDateTime(TypeDecorator[datetime]):
    """An instant: aware on both sides of the database, in UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a datetime without time zone cannot be stored in the catalog")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class TableBase(DeclarativeBase):
    """All tables, with constraints named the same on every database."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012  (SQLAlchemy reads it from the class)
        str: CleanText,
        int: Counter,
        float: Real,
        bytes: LargeBinary,
        datetime: UTCDateTime,
        Any: CleanJSON,
    }


def enum_column(kind: type[enum.Enum] | tuple[str, ...], name: str) -> Enum:
    """The column type of an enum or of texts: as text, with a CHECK of this name that admits no others."""
    values = kind if isinstance(kind, tuple) else (kind,)
    return Enum(
        *values,
        native_enum=False,
        create_constraint=True,
        values_callable=lambda kind: [member.value for member in kind],
        length=16,
        name=name,
    )


Key = Annotated[int, mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)]
