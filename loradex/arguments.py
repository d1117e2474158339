"""Arguments of the public calls: compared with the types of the signature before a call does anything."""

from __future__ import annotations

import builtins
import functools
import inspect
import operator
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from datetime import date
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from catalog.errors import UsageError
from catalog.files import path_fault

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Choice = TypeVar("Choice", bound=str | None)

_WORDS: dict[Any, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    Path: "a path",
    date: "a date",
    types.NoneType: "None",
}
# What an argument becomes that fits no type of its parameter.
_MISFIT = object()


def check_arguments(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """The function, which raises UsageError for an argument of another type than its annotation.

    A single text is not taken for a list of texts, nor True for a number. Numbers and arrays of numpy become
    numbers and tuples. A class that is imported for type checkers alone is recognised by its name.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: Parameters.args, **keywords: Parameters.kwargs) -> Result:
        bound = signature.bind(*args, **keywords)
        for name, value in bound.arguments.items():
            parameter = signature.parameters[name]
            if parameter.annotation is not inspect.Parameter.empty:
                bound.arguments[name] = _check(parameter, value, argument_type(function, parameter))
        return function(*bound.args, **bound.kwargs)

    return checked


def argument_type(function: Callable[..., object], parameter: inspect.Parameter) -> Any:
    """The type that the annotation of a parameter names."""
    return _Names(inspect.unwrap(function).__globals__).read(parameter.annotation)


class _Names(dict[str, Any]):
    """The names of a module; aliases that are texts are read, absent names are classes called so."""

    def read(self, annotation: str) -> Any:
        return eval(annotation, {}, self)  # noqa: S307 - the text is our own source

    def __getitem__(self, name: str) -> Any:
        value = self.get(name, getattr(builtins, name, None))
        if value is None:
            return type(name, (), {})
        return self.read(value) if isinstance(value, str) else value


def _check(parameter: inspect.Parameter, value: Any, hint: Any) -> Any:
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        return tuple(_fit(parameter.name, item, hint) for item in value)
    return _fit(parameter.name, value, hint)


def _fit(name: str, value: Any, hint: Any) -> Any:
    fitted = _convert(value, hint)
    if fitted is _MISFIT:
        raise UsageError(f"`{name}` is {reprlib.repr(value)}; use {_describe(hint)}.")
    _check_paths(name, fitted, hint)
    return fitted


def _check_paths(name: str, value: Any, hint: Any) -> None:
    """Raises UsageError for a path that no file can have, alone or in a list."""
    kinds = typing.get_args(hint)
    if isinstance(value, (str, Path)):
        if (hint is Path or Path in kinds) and (fault := path_fault(value)):
            raise UsageError(f"`{name}` is {reprlib.repr(str(value))}, which is no path: {fault}.")
    elif isinstance(value, Sequence):
        origin = typing.get_origin(hint)
        is_list = isinstance(origin, type) and issubclass(origin, Iterable)
        for item in value if is_list else (value,):
            for kind in kinds:
                _check_paths(name, item, kind)


def _convert(value: Any, hint: Any) -> Any:
    """The value as one of the wanted type, or _MISFIT."""
    origin, items = typing.get_origin(hint), typing.get_args(hint)
    if hint is object:
        return value
    if origin in (typing.Union, types.UnionType):
        fits = (_convert(value, item) for item in items)
        return next((fit for fit in fits if fit is not _MISFIT), _MISFIT)
    if origin is Literal:
        return value if isinstance(value, str) and value in items else _MISFIT
    if origin is tuple:
        return _convert_items(value, items, len(items))
    if isinstance(origin, type):
        return _convert_generic(value, origin, items)
    return _convert_plain(value, hint)


def _convert_generic(value: Any, origin: type, items: tuple[Any, ...]) -> Any:
    if issubclass(origin, Mapping) or not issubclass(origin, Iterable):
        return value if isinstance(value, origin) else _MISFIT
    if isinstance(value, Set) and origin is Sequence:  # its order differs from run to run
        return _MISFIT
    return _convert_items(value, items, None)


def _convert_items(value: Any, items: tuple[Any, ...], count: int | None) -> Any:
    """The value, where it is a sequence of such items; what can be read once, or is an array, as a tuple."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        return _MISFIT
    values = tuple(value)
    if count is not None and len(values) != count:
        return _MISFIT
    kinds = items if count is not None else items * len(values)
    fits = tuple(_convert(item, kind) for item, kind in zip(values, kinds, strict=True))
    if any(fit is _MISFIT for fit in fits):
        return _MISFIT
    unchanged = isinstance(value, (Sequence, Set)) and all(map(operator.is_, fits, values))
    return value if unchanged else fits


def _convert_plain(value: Any, hint: Any) -> Any:
    hint = types.NoneType if hint is None else hint
    if hint in (int, float):
        return _convert_number(value, hint)
    fits = isinstance(value, hint) or hint.__name__ in (row.__name__ for row in type(value).__mro__)
    return value if fits else _MISFIT


def _convert_number(value: Any, hint: type) -> Any:
    if isinstance(value, bool):
        return _MISFIT
    if isinstance(value, int if hint is int else (int, float)):
        return value
    if hint is float:
        return float(value) if isinstance(value, Real) else _MISFIT
    return operator.index(value) if isinstance(value, Integral) else _MISFIT


def _describe(hint: Any) -> str:
    """The type in words."""
    origin, items = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        words = list(dict.fromkeys(_describe(item) for item in items))
        return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    if origin is Literal:
        return " or ".join(map(repr, items))
    if origin is tuple:
        return f"{len(items)} values ({', '.join(map(_describe, items))})"
    if origin is not None:
        kinds = {"Mapping": "a mapping", "Callable": "a function"}
        return kinds.get(origin.__name__) or f"a list, each item of it {_describe(items[0])}"
    return _WORDS.get(hint) or f"a {hint.__name__}"


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
