"""Adapters compared by their weights: fingerprints of folders, what neighbours are sought of, and the map."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.adapters import (
    AdapterReference,
    BaseTable,
    ScalingRule,
    adapter_name,
    health,
    is_adapter_folder,
    load_problems,
    read_folder,
    tensor_digest,
)
from catalog.errors import ConfigError, NotFoundError, UsageError, WeightsError
from catalog.files import digest_of
from catalog.fingerprints import fingerprint as fingerprint_of
from catalog.fingerprints import partial_reasons, stable_rank, use_one_thread, verdict
from catalog.rules import reason_sentence
from loradex.arguments import check_arguments
from loradex.results import Comparison
from loradex.rows import FamilyRow, FolderFingerprint, GroupRow, IdentifiedRow, Rows

if TYPE_CHECKING:
    from catalog.adapters import StoredAdapter
    from catalog.database import Adapter, Session
    from catalog.files import BlobStore
    from catalog.fingerprints import Family, Group
    from catalog.search import CopyRow, Neighbour, Subject

# What the points of a map can be coloured by.
COLOURS: dict[str, Callable[[StoredAdapter], str | float | None]] = {
    "owner": lambda row: row.owner,
    "rank": lambda row: row.rank,
    "norm": lambda row: row.norm,
    "tool": lambda row: row.library,
    "task": lambda row: row.datasets[0] if row.datasets else None,
    "health": lambda row: row.health,
    "verdict": lambda row: "skipped" if row.is_refused else "accepted",
    "partial": lambda row: ", ".join(row.partial or ()) or "whole",
}


@check_arguments
def fingerprint(folder: str | Path) -> FolderFingerprint:
    """The norms, spectrum and health of the LoRA adapter in a local folder; needs no catalog.

    All numbers are of the products scaling * B A. Where the update is more than these, as with DoRA or layers
    that are saved whole, `partial` names what they leave out.

    Args:
        folder: The folder of adapter_config.json and adapter_model.safetensors.

    Returns:
        The numbers of the whole adapter, and the norm of each module.

    Raises:
        ConfigError: adapter_config.json cannot be used.
        WeightsError: The weights file cannot be used.

    Examples:
        >>> adapter = loradex.fingerprint("adapters/banking77")
        >>> adapter.rank, adapter.health
        (4, 'healthy')
    """
    content = read_folder(Path(folder))
    use_one_thread()
    numbers = fingerprint_of(content.weights, content.config)
    rules = ScalingRule(content.config)
    ranks = sorted(rank for row in numbers.spectrum if math.isfinite(rank := stable_rank(row)))
    details = {feature.reason: feature.detail for feature in content.partial}
    return FolderFingerprint(
        adapter=str(folder),
        base=content.config.base_model,
        rank=content.config.rank,
        alpha=content.config.alpha,
        targets=sorted({name.rpartition(".")[2] for name in numbers.modules}),
        modules=len(numbers.modules),
        parameters=content.spec.parameters,
        norm=health(numbers.norms, content.config).norm,
        stable_rank=ranks[len(ranks) // 2] if ranks else None,
        health=verdict(numbers.norms, content.config),
        partial={reason: details.get(reason, "") for reason in partial_reasons(content, numbers)},
        load_problems=list(load_problems(Path(folder))),
        tensor_digest=numbers.tensor_digest,
        norms={name: norm and norm * abs(rules.scaling(name)) for name, norm in numbers.norms.items()},
    )


def find_subject(session: Session, adapter: str, blobs: BlobStore) -> Subject:
    """The local folder of that name where there is one, else the adapter of the catalog."""
    from catalog.database import store
    from catalog.search import nearest

    if not is_adapter_folder(Path(adapter)):
        return find_stored_subject(session, adapter, blobs)
    folder = read_folder(Path(adapter))
    use_one_thread()
    base = folder.config.base_model
    canonical = BaseTable(store.spellings(session)).identify(base, tags=()).canonical if base else None
    return nearest.subject_of_folder(folder, fingerprint_of(folder.weights, folder.config), canonical)


def find_stored_subject(session: Session, adapter: str, blobs: BlobStore) -> Subject:
    """The adapter of the catalog that a reference names, whatever folders there are."""
    from catalog.search import browse, nearest

    return nearest.subject_of(session, browse.find_adapter(session, AdapterReference.parse(adapter)), blobs)


def identify_file(
    session: Session, path: Path, blobs: BlobStore, index: Path, count: int
) -> Rows[IdentifiedRow]:
    """The adapters of a catalog that a weights file is: the same file, else the same tensors, else the
    nearest by sketch.
    """
    from catalog.search import likeness

    file = _weights_file(path)
    try:
        digests = [digest_of(file), _git_oid(file)]
    except OSError as error:
        raise NotFoundError(f"{file} cannot be read: {error.strerror}") from error
    if rows := likeness.adapters_of_files(session, digests):
        return _identified(rows, "file")
    try:
        rows = likeness.adapters_with_tensors(session, tensor_digest(file))
    except WeightsError as error:
        note = f"No adapter has the same file, and only safetensors are compared further: {error}"
        return Rows([], IdentifiedRow, [note])
    return _identified(rows, "tensors") if rows else _nearest(session, file, blobs, index, count)


def _weights_file(path: Path) -> Path:
    """The file, or the weights in a folder; raises NotFoundError."""
    names = ("adapter_model.safetensors", "adapter_model.bin")
    candidates = [path / name for name in names] if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise NotFoundError(f"{path} is not a weights file, nor a folder with {' or '.join(names)}.")


def _git_oid(path: Path) -> str:
    """Git's name of the content of a file, by which the Hub names files outside LFS."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _identified(rows: Sequence[Adapter], by: str) -> Rows[IdentifiedRow]:
    return Rows(
        (
            IdentifiedRow(adapter_name(row.repository.name, row.subfolder), by, 1.0, row.commit, row.current)
            for row in rows
        ),
        IdentifiedRow,
    )


def _nearest(session: Session, file: Path, blobs: BlobStore, index: Path, count: int) -> Rows[IdentifiedRow]:
    from catalog.search import browse, neighbours

    if not is_adapter_folder(file.parent):
        note = "No adapter has the same file or tensors; sketches require adapter_config.json beside it."
        return Rows([], IdentifiedRow, [note])
    try:
        subject = find_subject(session, str(file.parent), blobs)
        near = neighbours(session, subject, index, blobs, (), count=count, every=True)
    except (ConfigError, WeightsError, NotFoundError) as error:
        note = f"No adapter has the same file or tensors, and sketches cannot be compared: {error}"
        return Rows([], IdentifiedRow, [note])
    rows = []
    for row in near:
        adapter = browse.find_adapter(session, AdapterReference.parse(row.adapter))
        rows.append(IdentifiedRow(row.adapter, "sketch", row.score, adapter.commit, True))
    return Rows(rows, IdentifiedRow, ["No adapter has the same file or tensors; these are the nearest."])


def subject_notes(adapter: str, subject: Subject) -> list[str]:
    """Sentences on what the comparison with a subject leaves out."""
    problems = load_problems(Path(adapter)) if subject.adapter_id is None else ()
    return [
        *(f"{adapter} is not loaded by PEFT: {problem}" for problem in problems),
        *(f"{subject.name} is compared without {reason_sentence(reason)}" for reason in subject.partial),
    ]


def exactness_notes(rows: Sequence[Neighbour]) -> list[str]:
    """A sentence where neighbours that were to be compared by their weights were not."""
    if all(row.exact for row in rows):
        return []
    return ['Some files are not kept (see `crawl(weights="keep")`): their scores are sketched.']


def compare_subjects(left: Subject, right: Subject) -> Comparison:
    """The cosines of two adapters; raises UsageError where they have different base models."""
    from catalog.search import likeness, sketch_cosine

    if None not in (left.base, right.base) and left.base != right.base:
        raise UsageError(
            f"{left.name} and {right.name} have different base models ({left.base}, {right.base}), whose "
            "modules cannot be compared."
        )
    exact = likeness.compare(left.files, right.files) if left.files and right.files else None
    sketched = {kind: sketch_cosine(vector, right.vectors[kind]) for kind, vector in left.vectors.items()}
    return Comparison(
        left=left.name,
        right=right.name,
        delta=exact.delta if exact else sketched["delta"],
        output=exact.output if exact else sketched["output"],
        norm_ratio=exact.norm_ratio if exact else None,
        exact=exact is not None,
        same_tensors=left.tensor_digest is not None and left.tensor_digest == right.tensor_digest,
        left_partial=left.partial,
        right_partial=right.partial,
    )


def group_rows(groups: Sequence[Group], adapters: Sequence[CopyRow]) -> Rows[GroupRow]:
    """Groups of duplicates as rows."""
    by_name = {row.adapter: row for row in adapters}
    return Rows(
        (
            GroupRow(**asdict(group), size=len(group.members), **_marks(group.members, by_name))
            for group in groups
        ),
        GroupRow,
    )


def family_rows(families: Sequence[Family], adapters: Sequence[CopyRow]) -> Rows[FamilyRow]:
    """Families as rows."""
    by_name = {row.adapter: row for row in adapters}
    return Rows(
        (
            FamilyRow(row.name, len(row.members), row.why, row.members, **_marks(row.members, by_name))
            for row in families
        ),
        FamilyRow,
    )


def _marks(members: Sequence[str], adapters: Mapping[str, CopyRow]) -> dict[str, Any]:
    """The members that the rules refuse, and those whose B A is not the whole update, with the reasons."""
    rows = [adapters[member] for member in members]
    return {
        "skipped": [row.adapter for row in rows if row.is_refused],
        "partial": {row.adapter: list(row.partial) for row in rows if row.partial},
    }
