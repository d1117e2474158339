"""Adapters of a snapshot, drawn at random, with what their repositories on the Hub must agree with."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from catalog.adapters import FingerprintRecord
from catalog.fingerprints import FINGERPRINT_VERSION
from catalog.snapshots.layout import (
    ADAPTERS,
    DOCUMENTS,
    FILES,
    FINGERPRINTS,
    WEIGHTS,
    AdapterKey,
    SnapshotTable,
    adapter_key,
)
from catalog.snapshots.verification import SnapshotManifest

_FINGERPRINT = ("scaling_pattern", "version", "spectrum", "delta", "output")


@dataclass(frozen=True)
class SampledAdapter:
    """An adapter of a snapshot: its files {name, size, digest}, and its configuration and fingerprint if any.

    `git_oid` is git's name of weights outside LFS, `tensor_digest` that of their tensors.
    """

    repository: str
    commit: str
    subfolder: str
    files: Sequence[Mapping[str, Any]]
    weights_name: str | None
    weights_digest: str | None
    git_oid: str | None
    tensor_digest: str | None
    config: bytes | None
    fingerprint: FingerprintRecord | None


def sample_adapters(manifest: SnapshotManifest, count: int, seed: int) -> list[SampledAdapter]:
    """`count` adapters, or all there are, the same for each seed, in the order of the snapshot."""
    total = manifest.rows_of_tables["adapters"]
    drawn = random.Random(seed).sample(range(total), min(count, total))  # noqa: S311 - a draw, not a secret
    places = set(drawn)
    adapters = [row for place, row in enumerate(_rows(manifest, ADAPTERS)) if place in places]
    names = set(map(adapter_key, adapters))
    files: dict[AdapterKey, list[Mapping[str, Any]]] = {}
    for row in _rows(manifest, FILES):
        if (key := adapter_key(row)) in names:
            files.setdefault(key, []).append(row["file"])
    digests = {row["weights_digest"] for row in adapters}
    weights = _found(manifest, WEIGHTS, lambda row: row["digest"], digests)
    configs = _found(
        manifest, DOCUMENTS, lambda row: row["digest"], {row["config_digest"] for row in adapters}
    )
    measured: dict[tuple[str, str], dict[str, Any]] = {}
    patterns = {(row["weights_digest"], row["scaling_pattern"]) for row in adapters}
    for row in _rows(manifest, FINGERPRINTS):
        pattern = row["weights_digest"], row["scaling_pattern"]
        # One of this version can be compared; others are there where there is none.
        if pattern in patterns and (row["version"] == FINGERPRINT_VERSION or pattern not in measured):
            measured[pattern] = row
    sampled = []
    for row in adapters:
        file = weights.get(row["weights_digest"], {})
        vectors = measured.get((row["weights_digest"], row["scaling_pattern"]))
        sampled.append(
            SampledAdapter(
                repository=row["repository"],
                commit=row["commit"],
                subfolder=row["subfolder"],
                files=files.get(adapter_key(row), []),
                weights_name=row["weights_name"],
                weights_digest=row["weights_digest"],
                git_oid=file.get("git_oid"),
                tensor_digest=file.get("tensor_digest"),
                config=configs.get(row["config_digest"], {}).get("content"),
                fingerprint=FingerprintRecord(*(vectors[name] for name in _FINGERPRINT)) if vectors else None,
            )
        )
    return sampled


def _rows(manifest: SnapshotManifest, table: SnapshotTable) -> Iterator[dict[str, Any]]:
    return (row for batch in manifest.rows(table) for row in batch)


def _found(
    manifest: SnapshotManifest,
    table: SnapshotTable,
    key: Callable[[dict[str, Any]], Any],
    keys: Collection[Any],
) -> dict[Any, dict[str, Any]]:
    return {key(row): row for row in _rows(manifest, table) if key(row) in keys}
