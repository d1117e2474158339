"""Arguments of another type than the signature names are refused in one sentence, before a call begins."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loradex
from loradex.arguments import _fit, argument_type, check_arguments

# Classes that the API names without importing them, so that a name loads what it needs alone.
UNIMPORTED = {"Task", "LoadedBase", "Catalog"}


def calls() -> Iterator[tuple[str, Callable[..., object]]]:
    for name in loradex.__all__:
        value = getattr(loradex, name)
        if inspect.isfunction(value):
            yield name, value
        elif value in (loradex.Catalog, loradex.Pool, loradex.MergeRequest, loradex.StudyRequest):
            methods = inspect.getmembers(value, inspect.isfunction)
            yield from ((f"{name}.{row}", method) for row, method in methods if not row.startswith("_"))


CALLS = dict(calls())


@pytest.mark.parametrize("name", CALLS)
def test_every_public_call_checks_its_arguments(name: str) -> None:
    parameters = [row for row in inspect.signature(CALLS[name]).parameters if row != "self"]
    assert not parameters or hasattr(CALLS[name], "__wrapped__")


def test_every_type_of_a_parameter_is_known() -> None:
    unknown = {
        part.__name__
        for call in CALLS.values()
        for row in inspect.signature(call).parameters.values()
        if row.name != "self"
        for part in _parts(argument_type(call, row))
        if isinstance(part, type) and part.__module__ == "loradex.arguments"
    }
    assert unknown == UNIMPORTED


def _parts(wanted: Any) -> Iterator[Any]:
    yield wanted
    for item in typing.get_args(wanted):
        yield from _parts(item)


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("adapters", {"where": 5}, "`where` is 5; use a text."),
        ("adapters", {"limit": "3"}, "`limit` is '3'; use a whole number or None."),
        ("adapters", {"limit": True}, "`limit` is True; use a whole number or None."),
        ("adapters", {"limit": 0}, "`limit` must be at least 1, not 0."),
        ("adapters", {"sort": ["rank"]}, "`sort` is ['rank']; use a text."),
        ("similar", {"adapter": "a/b", "k": 1.5}, "`k` is 1.5; use a whole number."),
        ("search", {"text": b"bank"}, "`text` is b'bank'; use a text."),
        ("search", {"text": "bank", "weights": [1]}, "`weights` is [1]; use 2 values (a number, a number)."),
        ("search", {"text": "bank", "progress": 5}, "`progress` is 5; use True or False or a function."),
        ("select", {"name": "x", "by": "random", "exclude": "zoo"}, "`exclude` is 'zoo'; use a list, each"),
        ("select", {"name": "x", "by": "random", "splits": [1]}, "`splits` is [1]; use a list, each item"),
        (
            "select",
            {"name": "x", "by": "random", "splits": {"a"}},
            "`splits` is {'a'}; use a list, each item",
        ),
        ("select", {"name": "x", "by": "random", "seed": None}, "`seed` is None; use a whole number."),
        ("select", {"name": "x", "by": "random", "budget": -1}, "`budget` must be at least 1, not -1."),
        ("select", {"name": "x", "by": "random", "date": "2024-07-26"}, "use a date or None."),
        (
            "select",
            {"name": "x", "by": "score", "task": 5},
            "`task` is 5; use a text, a path, a Task",
        ),
        ("save_pool", {"pool": "mine"}, "`pool` is 'mine'; use a Pool."),
        ("import_scores", {"file": None}, "`file` is None; use a text or a path."),
        ("crawl", {"base": None}, "`base` is None; use a text or a list, each item of it a text."),
    ],
)
def test_an_argument_of_another_type_is_one_sentence(
    catalog: loradex.Catalog, method: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(loradex.UsageError) as caught:
        getattr(catalog, method)(**arguments)
    assert message in str(caught.value)


PATHS = [
    (f"{name}-{row.name}", row.name, argument_type(call, row))
    for name, call in CALLS.items()
    for row in inspect.signature(call).parameters.values()
    if row.name != "self" and Path in _parts(argument_type(call, row))
]


@pytest.mark.parametrize(
    "path", ["x" * 5000, "a\0b", "\ud800", Path("x" * 300)], ids=["xs", "nul", "half", "x"]
)
def test_no_call_takes_a_path_that_no_file_can_have(path: str | Path) -> None:
    assert len(PATHS) > 20
    for name, parameter, hint in PATHS:
        for value in (path, [path]):
            with pytest.raises(loradex.UsageError, match=rf"`{parameter}` is .*(no path|use)") as caught:
                _fit(parameter, value, hint)
            assert len(str(caught.value)) < 300, name
        is_list = typing.get_origin(hint) is Sequence
        possible = ["zoo/banking77"] if is_list else "zoo/banking77"
        assert _fit(parameter, possible, hint) == possible


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b"], ids=["xs", "nul"])
def test_a_path_that_no_file_can_have_is_one_sentence(catalog: loradex.Catalog, path: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: catalog.identify(path),
        lambda: catalog.similar(path),
        lambda: catalog.compare("zoo/banking77", path),
        lambda: catalog.export_annotations(path),
        lambda: catalog.pool(path),
        lambda: loradex.fingerprint(path),
        lambda: loradex.merge([path], "sum", out="out"),
        lambda: loradex.open(path),
        lambda: loradex.open(url=f"sqlite:///{path}").adapters(),
    ]
    for call in calls:
        with pytest.raises(loradex.UsageError, match=r"path.*: it (is too long|contains a character)"):
            call()


def test_functions_refuse_other_types_too(tmp_path: Path) -> None:
    with pytest.raises(loradex.UsageError, match="`rank` is 'high'; use a whole number or None"):
        loradex.merge([tmp_path], "sum", out=tmp_path / "out", rank="high")  # type: ignore[arg-type]
    with pytest.raises(loradex.UsageError, match="`catalog` is 'data'; use"):
        loradex.merge([tmp_path], "sum", out=tmp_path / "out", catalog="data")  # type: ignore[arg-type]
    with pytest.raises(loradex.UsageError, match="`data` is 5; use a text or a path"):
        loradex.open(5)  # type: ignore[arg-type]


def test_numbers_of_numpy_and_what_is_read_once_are_taken(catalog: loradex.Catalog) -> None:
    assert len(catalog.adapters(limit=np.int64(3))) == 3  # type: ignore[arg-type]
    names = [row.adapter for row in catalog.adapters(verdict="accepted", limit=5)]
    pools = [
        catalog.select("x", by="random", k=3, exclude=exclude, dry_run=True)
        for exclude in (names, (name for name in names), np.array(names))  # type: ignore[list-item]
    ]
    assert len({pool.digest for pool in pools}) == 1


def test_a_sequence_stays_the_same_object() -> None:
    @check_arguments
    def identity(values: list[str] | tuple[float, float]) -> object:
        return values

    values = ["a", "b"]
    assert identity(values) is values
    assert identity((1.0, 2)) == (1.0, 2)
    assert isinstance(CALLS["merge"], types.FunctionType)
