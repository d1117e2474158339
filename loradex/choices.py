"""Arguments that take one of a few values, or a number of something."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from catalog.errors import UsageError

Choice = TypeVar("Choice", bound=str | None)


def check_choice(parameter: str, value: str | None, choices: Iterable[Choice]) -> Choice:
    """The one of the choices that the value equals; raises UsageError for another value."""
    values = list(choices)
    for choice in values:
        if choice == value:
            return choice
    names = ", ".join(repr(str(choice)) for choice in values if choice is not None)
    raise UsageError(f"`{parameter}` is {value!r}; use one of {names}.")


def check_count(parameter: str, value: int | None) -> None:
    """Raises UsageError for a number below 1."""
    if value is not None and value < 1:
        raise UsageError(f"`{parameter}` must be at least 1, not {value}.")
