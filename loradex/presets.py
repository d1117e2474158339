"""Presets: the settings of a published work as defaults of a call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

from catalog.errors import UsageError

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

# By preset and function, its keywords. The recycling paper (arXiv 2602.12323): the scripts of
# r-three/realistic-adaptive-merging at cfc70df. An adaptive method has steps and a rate of its own, for
# `recycling` the paper's 100 and 5e-2.
PRESETS: Mapping[str, Mapping[str, Mapping[str, object]]] = {
    "recycling-paper": {
        "train": {
            "protocol": "recycling-paper",
            "too_long": "skip",
            "samples": 100,
            "rank": 64,
            "alpha": 16.0,
            "targets": "all-linear",
            "dropout": 0.1,
            "variant": "lora",
            "learning_rates": (3e-4,),
            "steps": 400,
            "batch": 8,
            "evaluate_every": 10,
            "patience": 20,
        },
        "adapt": {
            "protocol": "recycling-paper",
            "too_long": "skip",
            "samples": 100,
            "method": "recycling",
            "batch": 8,
        },
        "evaluate": {"protocol": "recycling-paper", "too_long": "skip"},
    }
}


def with_presets(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """The function, whose keywords have the values of its `preset` unless the call gives others."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def filled(*args: Parameters.args, **keywords: Parameters.kwargs) -> Result:
        bound = signature.bind(*args, **keywords)
        name = bound.arguments.get("preset", "")
        if name and name not in PRESETS:
            raise UsageError(f"{name} is not a preset; use {' or '.join(PRESETS)}.")
        values = PRESETS[name][function.__name__] if name else {}
        bound.arguments.update({key: value for key, value in values.items() if key not in bound.arguments})
        return function(*bound.args, **bound.kwargs)

    return filled
