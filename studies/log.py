"""The log of a study's steps, read: one line of JSON for each step that is done, from whatever machine.

A log may come from elsewhere: its size is bounded, every line is checked, and the paths in it stay below the
folder of the steps.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catalog.errors import ConfigError, StorageError
from catalog.files import load_json, read_limited, unsafe_path

_MOST_BYTES = 512 * 1024 * 1024
# Sums of larger numbers overflow.
_LARGEST = 1e100
# A mean of shares can be above 1 by as much as it is rounded.
_EXACT = 1e-9
_KEY = re.compile(r"[0-9a-f]{32}")
# What a result of these kinds must hold, and those that read it rely on.
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "adapt": ("score",),
    "cards": ("cards", "learning_rate", "rank"),
    "clusters": ("detail",),
    "curvature": ("detail",),
    "ensemble": ("score",),
    "gradient": ("scores",),
    "measured": ("base", "scores"),
    "merge": ("adapter",),
    "pick": ("adapter", "detail"),
    "pool": ("members", "detail"),
    "relevance": ("detail",),
    "score": ("score",),
    "set": ("members", "detail"),
    "stand-ins": ("members", "detail"),
    "train": ("adapter", "detail"),
    "trainings": ("members", "detail"),
}
_SCORING = ("measured", "gradient")
# By these numbers the best of several trainings is picked.
_TRAINED, _TRAINED_BY = ("pick", "train"), ("valid_loss", "learning_rate")


def read_log(path: Path) -> dict[str, dict[str, Any]]:
    """The kind, seconds and result of each step of a log by the step's key; a last line that was cut off, as
    by an interrupted copy, is left out.

    Raises FileNotFoundError, and StorageError, with the line, for one that is not the result of a step.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    advice = "run the study again"
    data = read_limited(path, _MOST_BYTES, kind="the log of a study", advice=advice, error=StorageError)
    *lines, last = data.split(b"\n")
    steps: dict[str, dict[str, Any]] = {}
    for number, line in enumerate([*lines, *([last] if last else [])], 1):
        try:
            document: Any = load_json(line, max_bytes=_MOST_BYTES)
        except ConfigError as error:
            if number > len(lines):
                break
            raise _wrong(path, number, "it is not JSON") from error
        if problem := _problem(document):
            raise _wrong(path, number, problem)
        step = {key: document[key] for key in ("kind", "seconds", "result")}
        known = steps.setdefault(document["step"], step)
        if known["result"] != step["result"]:
            raise _wrong(path, number, "an earlier line has another result of it")
    return steps


def result_problem(result: Any, kind: str) -> str | None:
    """What is wrong with the result of a step of a kind, in words; None for a sound one."""
    if not isinstance(result, dict):
        return "its result is not an object"
    for name, is_sound in _PARTS.items():
        if name in result and not is_sound(result[name]):
            return f"{name} of its result is not valid"
    missing = [name for name in _NEEDED.get(kind, ()) if name not in result]
    if missing:
        return f"its result lacks {missing[0]}"
    if kind == "single" and not _is_member(result):
        return "its result names no adapter"
    is_sound = _is_score if kind == "measured" else is_number
    if kind in _SCORING and not all(map(is_sound, result["scores"].values())):
        return "scores of its result is not valid"
    if kind in _TRAINED and not all(map(is_number, map(result["detail"].get, _TRAINED_BY))):
        return f"detail of its result lacks {' or '.join(_TRAINED_BY)}"
    return None


def _wrong(path: Path, number: int, what: str) -> StorageError:
    return StorageError(f"{path} line {number} is not the result of a step: {what}; remove that line.")


def _problem(document: Any) -> str | None:
    if not isinstance(document, dict):
        return "it is not an object"
    if missing := [name for name in ("step", "kind", "seconds", "result") if name not in document]:
        return f"{missing[0]} is missing"
    if not is_key(document["step"]):
        return "step is not a key of 32 hexadecimal digits"
    if not isinstance(document["kind"], str):
        return "kind is not a name"
    if not is_number(document["seconds"]) or document["seconds"] < 0:
        return "seconds is not a number from 0 on"
    return result_problem(document["result"], document["kind"])


def is_key(value: Any) -> bool:
    """Whether it is the key of a step, the name of its folder."""
    return isinstance(value, str) and _KEY.fullmatch(value) is not None


def is_number(value: Any) -> bool:
    """Whether it is a finite number, and not too large for a sum."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _is_score(value: Any) -> bool:
    if not isinstance(value, dict) or not {"value", "loss", "n"} <= value.keys():
        return False
    share, loss, n = value["value"], value["loss"], value["n"]
    if not (is_number(share) and is_number(loss) and is_number(n) and isinstance(n, int)):
        return False
    return 0 <= share <= 1 + _EXACT and n > 0


def _is_made(value: Any) -> bool:
    """Whether it is the path of what a step made, below the folder of the steps."""
    if not isinstance(value, str) or unsafe_path(value):
        return False
    return is_key(value.partition("/")[0])


def _is_member(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return isinstance(value.get("name"), str) or _is_made(value.get("adapter"))


def _are_members(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_member, value))


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_number, value))


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


_PARTS = {
    "adapter": _is_made,
    "base": _is_score,
    "cards": is_number,
    "detail": _is_object,
    "learning_rate": _are_numbers,
    "members": _are_members,
    "rank": _are_numbers,
    "score": _is_score,
    "scores": _is_object,
}
