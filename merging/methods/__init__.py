"""The table of merge methods: one row each, in the order in which they are listed."""

from __future__ import annotations

from catalog.errors import UsageError
from merging.methods import averaging, clustering, regression, sign_election, sparsifying, spectral
from merging.methods.clustering import centroid_energy
from merging.methods.lowrank import (
    Grams,
    Update,
    concatenate,
    coordinates,
    grams,
    pair_products,
    precise_truncation,
    truncate,
    truncate_dense,
)
from merging.methods.method import MergeMethod, ModuleWork, Value, nearest

__all__ = [
    "METHODS",
    "Grams",
    "MergeMethod",
    "ModuleWork",
    "Update",
    "Value",
    "centroid_energy",
    "concatenate",
    "coordinates",
    "find_method",
    "grams",
    "nearest",
    "pair_products",
    "precise_truncation",
    "truncate",
    "truncate_dense",
]

METHODS: dict[str, MergeMethod] = {
    row.name: row
    for family in (averaging, sign_election, sparsifying, spectral, clustering, regression)
    for row in family.METHODS
}


def find_method(name: str) -> MergeMethod:
    """The row of a method; raises UsageError with the nearest names."""
    if name not in METHODS:
        raise UsageError(f"Unknown merge method {name!r}; {nearest(name, METHODS)}.")
    return METHODS[name]
