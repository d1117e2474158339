"""Steps that were done stay done: a key changes only where the step would find something else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from merging.model import read_task
from studies.design import Study
from studies.grid import _GridBuilder, _reading
from studies.store import in_order
from tests.merging.architectures import architecture
from tests.merging.tiny import save_base, tiny_base, write_task
from tests.studies.small import ROWS, TEXT

BASE = {"name": "owner/base", "digest": "0" * 64, "device": "cpu"}
# sha256 over the sorted keys of each kind of step, as the first version made them.
KEYS: dict[str, dict[str, str]] = {
    "accuracy": {
        "score": "fb1e07c88125fcf3",
        "train": "85ab5730735e1d8c",
        "pick": "d431d9550081adb2",
        "gradient": "871759356d54c8fb",
        "pool": "0db1e6db686f7dfc",
        "merge": "6d22ad4faef09601",
        "stand-ins": "84c5145fb6003575",
        "measured": "c8822a0ce4af3967",
        "ensemble": "7a239c7cc1f9c0b9",
        "adapt": "a1c3957ddbc8ba18",
    },
    "exact_match": {
        "score": "e90e0bf5c361f2c2",
        "train": "1b803847a13b8d0c",
        "pick": "cb882b0468e88d6b",
        "gradient": "3bbe73aade746b40",
        "pool": "586ded872bc95990",
        "merge": "5475b849203ace3f",
        "stand-ins": "84c5145fb6003575",
        "measured": "1699e3d1baa9ea05",
        "adapt": "e71ccfb0ea65e771",
    },
}


def keys(
    folder: Path, metric: str, reading: Mapping[str, str] | None = None, protocol: str = ""
) -> dict[str, str]:
    """A hash of the keys of each kind of step in the tiny study, whose tasks are judged by the metric."""
    import yaml

    document = yaml.safe_load(TEXT.format(base="owner/base").replace("1e-3", "0.001").replace("1e-2", "0.01"))
    document["pools"]["known"] = {"by": "measured", "k": 1}
    document["protocol"] = protocol
    names = ("thirds", "halves")
    choices = ("yes", "no") if metric == "accuracy" else None
    tasks = {n: read_task(write_task(folder / n, ROWS, metric=metric, choices=choices)) for n in names}
    adapters: dict[str, Any] = {
        name: {"name": name, "folder": name, "sha256": name * 32, "trained_on": None} for name in ("a0", "a1")
    }
    if metric == "exact_match":
        del document["methods"]["both"]
    grid = _GridBuilder(
        Study.model_validate(document), tasks, adapters, BASE, **({"reading": reading} if reading else {})
    )
    result: dict[str, list[str]] = {}
    for step in in_order([cell.step for cell in grid.cells()]):
        result.setdefault(step.kind, []).append(step.key)
    return {
        kind: hashlib.sha256(json.dumps(sorted(values)).encode()).hexdigest()[:16]
        for kind, values in result.items()
    }


def test_whatever_asks_a_model_by_another_protocol_is_made_anew(tmp_path: Path) -> None:
    paper = keys(tmp_path / "paper", "accuracy", protocol="recycling-paper")
    assert kinds_with_other_keys(paper, KEYS["accuracy"]) == set(KEYS["accuracy"]) - {"stand-ins"}
    length = keys(tmp_path / "length", "accuracy", protocol="likelihood-per-token")
    assert "score" in kinds_with_other_keys(length, paper)


def kinds_with_other_keys(now: Mapping[str, str], before: Mapping[str, str]) -> set[str]:
    """The kinds of steps whose keys are others."""
    assert now.keys() == before.keys()
    return {kind for kind in now if now[kind] != before[kind]}


def test_steps_judged_by_choices_are_known_again(tmp_path: Path) -> None:
    assert kinds_with_other_keys(keys(tmp_path, "accuracy"), KEYS["accuracy"]) == set()


def test_steps_judged_by_texts_are_made_anew_and_what_was_trained_is_not(tmp_path: Path) -> None:
    # Of pools and merges those that were chosen by such scores.
    result = kinds_with_other_keys(keys(tmp_path, "exact_match"), KEYS["exact_match"])
    assert result == {"score", "measured", "adapt", "pool", "merge"}


def test_a_base_that_is_read_otherwise_now_is_asked_anew(tmp_path: Path) -> None:
    result = kinds_with_other_keys(keys(tmp_path, "accuracy", {"reading": "plain"}), KEYS["accuracy"])
    assert "stand-ins" not in result
    assert {"score", "measured", "adapt", "gradient", "train", "ensemble"} <= result


@pytest.mark.parametrize(
    ("kind", "extra", "expected"),
    [
        ("mistral", {"sliding_window": 512}, {"reading": "plain"}),
        ("mistral", {"sliding_window": 4096}, {}),
        ("lfm2", {}, {"reading": "plain"}),
        ("mpt", {}, {"reading": "plain"}),
        ("gpt2", {}, {}),
    ],
)
def test_the_configuration_says_how_a_base_is_read(
    kind: str, extra: dict[str, Any], expected: dict[str, str], tmp_path: Path
) -> None:
    save_base(architecture(kind, **extra), tmp_path / "base")
    assert _reading(str(tmp_path / "base")) == expected


def test_a_date_counts_where_the_template_says_one(tmp_path: Path) -> None:
    base = tiny_base()
    base.tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}{{ messages[0]['content'] }}"
    save_base(base, tmp_path / "dated")
    save_base(tiny_base(), tmp_path / "plain")
    assert _reading(str(tmp_path / "dated")) == {"date": "2024-07-26"}
    assert _reading(str(tmp_path / "plain")) == {}
    assert _reading(str(tmp_path / "nowhere")) == {}
