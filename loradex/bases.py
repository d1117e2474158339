"""The base model that a call asks, and what is unusual about its prompts."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from catalog.errors import NotFoundError
from loradex.progress import ProgressCallback, ProgressEvent

if TYPE_CHECKING:
    from catalog.settings import Settings
    from merging.model import BaseDtype, LoadedBase


def open_base(
    base: str,
    *,
    settings: Settings | None,
    device: str,
    dtype: BaseDtype | None,
    day: datetime.date | None,
    report: ProgressCallback,
) -> LoadedBase:
    """The base model on the device; its chat template names the day, or 2024-07-26 where that is None.

    `base` is a folder, an id on the Hub, or an id that is kept in the data folder of `settings`.
    """
    from merging.model import DATE, checkpoint
    from merging.model import load_base as load

    bases = settings.bases if settings else None
    if base.startswith(("/", ".", "~")) and checkpoint(base, bases) is None and not Path(base).is_file():
        raise NotFoundError(
            f"{base} is not the folder of a model with config.json; give one, or an id such as owner/name."
        )

    report(ProgressEvent("loading", note=f"loading {base}"))
    return load(base, bases=bases, device=device, dtype=dtype, date=day or DATE)


def prompt_notes(record: Mapping[str, object]) -> list[str]:
    """Sentences on what a record (train.json, adapt.json, a score) states about unusual prompts."""
    notes = []
    if record.get("date"):
        notes.append(f"the prompts say the date {record['date']}, whatever the day is; `date` sets another")
    if record.get("plain"):
        notes.append(
            "prompts are read one by one where a tree of them would be wrong for this model (a short window "
            "of attention, or recurrent layers); this takes longer"
        )
    if record.get("folded"):
        notes.append(
            "the model's chat template has no system message; the instruction is the beginning of the user's"
        )
    if record.get("gradient_checkpointing"):
        notes.append(
            "layers are computed again in the backward pass (gradient checkpointing), which takes less "
            "memory and more time"
        )
    if record.get("left_out"):
        notes.append(f"examples longer than the model reads, left out: {record['left_out']}")
    return notes
