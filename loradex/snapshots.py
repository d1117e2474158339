"""Snapshots of a catalog: exported as a folder, checked, and imported."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from catalog.database import Session, disposing, for_writing, open_catalog, reading, take_turn, writer_lock
from catalog.errors import StorageError, UsageError
from catalog.extras import require_extra
from catalog.files import replace_folder, temporary_folder
from catalog.snapshots import (
    MANIFEST,
    ImportCounts,
    SnapshotChoice,
    import_snapshot,
    verify_snapshot,
    write_snapshot,
)
from loradex.progress import ProgressOption, ProgressStep, reporting

if TYPE_CHECKING:
    from catalog.settings import Settings


@dataclass(frozen=True)
class SnapshotExport:
    """A snapshot that was written: its folder, the rows of each table, its size, and what was left out.

    `left_out` counts repositories that are `private` or were read behind a gate (`gated`), `cards`, names of
    base models and `scores` that are the user's own, and `crawls` whose listing the snapshot has in part.
    """

    folder: Path
    tables: dict[str, int]
    bytes: int
    left_out: dict[str, int]


def export_to(
    settings: Settings, folder: Path, choice: SnapshotChoice, *, overwrite: bool, progress: ProgressOption
) -> SnapshotExport:
    """Writes a snapshot, in whole or not at all."""
    require_extra("table", "A snapshot")
    _check_target(folder, overwrite=overwrite)
    with reading(settings) as session:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with reporting(progress) as report, temporary_folder(folder.parent) as temporary:
                step = ProgressStep(report, "writing repositories")
                new = temporary / "snapshot"
                new.mkdir()
                counts = write_snapshot(session, new, choice, version("loradex"), step.working)
                if folder.exists() and not any(folder.iterdir()):
                    folder.rmdir()
                replace_folder(new, folder, temporary)
        except OSError as error:
            why = error.strerror or error
            raise StorageError(f"The snapshot cannot be written to {folder}: {why}.") from error
    return SnapshotExport(folder, counts.tables, counts.bytes, counts.left_out)


def import_from(settings: Settings, folder: Path) -> ImportCounts:
    """Brings a snapshot into the catalog in one transaction, after all of its files were checked."""
    require_extra("table", "A snapshot")
    with disposing(open_catalog(settings, create=True)) as engine:
        manifest = verify_snapshot(folder)
        with writer_lock(engine), Session(for_writing(engine)) as session, session.begin():
            take_turn(session)
            return import_snapshot(session, manifest)


def _check_target(folder: Path, *, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / MANIFEST).is_file():
        raise UsageError(f"{folder} is not empty and not a snapshot; choose another folder.")
    if not overwrite:
        raise UsageError(f"{folder} is a snapshot already; use `overwrite` to replace it.")
