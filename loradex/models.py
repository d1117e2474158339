"""Base models and tasks: what training, adapting and evaluating start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from loradex.progress import ProgressCallback, ProgressEvent

if TYPE_CHECKING:
    from merging.model import LoadedBase, Task


def open_base(
    base: str, *, bases: Path, device: str, day: date | None, report: ProgressCallback
) -> LoadedBase:
    """The base model on the device; its chat template names the day, or 2024-07-26 where that is None.

    `base` is a folder, an id on the Hub, or an id that is kept in the folder `bases`.
    """
    from merging.model import DATE, load_base

    report(ProgressEvent("loading", note=f"loading {base}"))
    return load_base(base, bases=bases, device=device, date=day or DATE)


def find_tasks(names: Sequence[str], folder: Path | None) -> list[Task]:
    """The tasks of these names, or in these folders; ["all"] is every task in the folder."""
    from merging.model import TASK_NAME, find_task

    if folder is not None and list(names) == ["all"]:
        names = sorted(path.parent.name for path in folder.glob(f"*/{TASK_NAME}"))
    return [find_task(name, folder) for name in names]


def prompt_notes(record: Mapping[str, object]) -> list[str]:
    """Sentences on what a record (train.json, adapt.json, a score) states about unusual prompts."""
    notes = []
    if record.get("date"):
        notes.append(f"the prompts say the date {record['date']}, whatever the day is; --date sets another")
    if record.get("plain"):
        notes.append(
            "prompts are read one by one where a tree of them would be wrong for this model (a short window "
            "of attention, or recurrent layers); this takes longer"
        )
    if record.get("left_out"):
        notes.append(f"examples longer than the model reads, left out: {record['left_out']}")
    return notes
