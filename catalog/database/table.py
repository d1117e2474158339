"""What all tables share: the declarative base, names of constraints, how keys and enums are stored."""

from __future__ import annotations

import enum
from datetime import datetime
from typing import Annotated, Any

from sqlalchemy import BigInteger, Enum, Integer, LargeBinary, MetaData
from sqlalchemy.orm import DeclarativeBase, mapped_column

from catalog.database.columns import CleanJSON, CleanText, Counter, Real, UTCDateTime

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


def enum_column(kind: type[enum.Enum], name: str) -> Enum:
    """The column type of an enum: its values as text, with a CHECK of this name that admits no others."""
    return Enum(
        kind,
        native_enum=False,
        create_constraint=True,
        values_callable=_values,
        length=16,
        name=name,
    )


def _values(kind: type[enum.Enum]) -> list[str]:
    return [member.value for member in kind]


Key = Annotated[int, mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)]
