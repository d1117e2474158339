"""`loradex.doctor` measures a machine, says what it left out, and names no folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import loradex
from catalog.errors import MemoryLimitError, UsageError
from tests.merging.tiny import save_base, tiny_base

ON_CPU = {
    "read_tokens_per_second",
    "tree_speedup",
    "tree_difference",
    "tree_right",
    "generated_tokens_per_second",
    "adapter_bytes",
    "step_seconds",
    "step_tokens",
    "gradient_checkpointing",
}


def test_a_tiny_model_shows_that_everything_runs() -> None:
    events: list[loradex.ProgressEvent] = []
    before = torch.random.get_rng_state()
    report = loradex.doctor(progress=events.append)
    assert set(report.measures) >= ON_CPU
    assert report.measures["tree_right"] is True
    # Rank 16, float32: q, o of 64 to 64, k, v of 64 to 32, three of 64 and 128, in two layers.
    assert report.measures["adapter_bytes"] == 2 * 16 * 4 * (2 * 128 + 2 * 96 + 3 * 192)
    assert "largest batch" in report.skipped
    assert report.advice["batch"] == "8"
    assert [(event.done, event.total) for event in events][-1] == (5, 5)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_busy_machine_is_told_from_an_idle_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loradex.diagnosis._measures", dict)
    monkeypatch.setattr(os, "getloadavg", lambda: (float(os.cpu_count() or 1), 0.0, 0.0))
    assert "speed of an idle machine" not in loradex.doctor().skipped
    monkeypatch.setattr(os, "getloadavg", lambda: (50.0, 0.0, 0.0))
    assert loradex.doctor().skipped["speed of an idle machine"].startswith("50 processes want its")


def test_a_report_names_no_folder(tmp_path: Path) -> None:
    folder = save_base(tiny_base(), tmp_path / "secret-model")
    report = loradex.doctor(str(folder), dtype="bfloat16")
    text = json.dumps(report.document())
    assert "secret-model" not in text
    assert os.uname().nodename not in text or len(os.uname().nodename) < 4
    assert report.model["dtype"] == "bfloat16"
    assert report.measures["load_seconds"] >= 0


def test_a_model_that_does_not_fit_is_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryLimitError("The base model large does not fit into memory.")

    monkeypatch.setattr("loradex.diagnosis.open_base", refuse)
    report = loradex.doctor("large")
    assert report.measures == {}
    assert "does not fit" in report.skipped["everything"]
    with pytest.raises(UsageError, match="give a `base`"):
        loradex.doctor(dtype="4bit")
