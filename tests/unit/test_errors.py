"""`loradex.errors` has every class of the errors."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Iterator
from pathlib import Path

import loradex.errors
from catalog import errors

ROOT = Path(__file__).parents[2]
ROOMS = ("catalog", "crawler", "merging", "studies", "loradex")


def names(kind: type[errors.LoradexError]) -> Iterator[str]:
    yield kind.__name__
    for below in kind.__subclasses__():
        yield from names(below)


def test_the_public_errors_are_all_classes_of_the_tree() -> None:
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*.py")):
            if "LoradexError)" in file.read_text(encoding="utf-8"):
                importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    public = [name for name in vars(loradex.errors) if name.endswith("Error")]
    assert sorted(public) == sorted(names(errors.LoradexError))


def test_an_error_comes_back_whole_from_another_process() -> None:
    """Also one whose constructor takes other arguments than its text."""
    first = errors.HubBusyError("busy", url="https://x/y", status=429, retry_after=1.5)
    for error in (first, errors.WeightsError("truncated", "too short"), errors.UsageError("wrong")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
