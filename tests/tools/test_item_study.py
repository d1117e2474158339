"""The study of items reads a log as `evaluate` writes it; its numbers are those of a slow computation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from catalog.scores import item_hash, list_sha, pack_bitmap, pack_margins, to_text
from tools import item_study
from tools.item_study import adapter_effects, pairing, placement, read_answers, report_lines

ITEMS, ADAPTERS = 20, 12


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of the base and twelve adapters on three tasks, the third without one of them."""
    draw = np.random.default_rng(0)
    skill, lines = draw.random(ADAPTERS), []
    for task in ("one", "two", "part"):
        sha = list_sha(b"".join(item_hash(f"{task} {n}", "yes", ("yes", "no")) for n in range(ITEMS)))
        for number in range(-1, ADAPTERS - (task == "part")):
            right = draw.random(ITEMS) < (0.5 if number < 0 else skill[number])
            row = {
                "adapter": f"a{number:02}" if number >= 0 else "base",
                "task": task,
                "n": ITEMS,
                "loss": 1.0,
            }
            row |= {"items_sha": sha, "outcomes": to_text(pack_bitmap(right)), "value": float(right.mean())}
            row |= {"margins": to_text(pack_margins(np.where(right, -1.0, 1.0)))}
            lines.append(json.dumps(row))
    file = tmp_path / "log.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_a_log_becomes_the_outcomes_of_complete_tasks(log: Path) -> None:
    answers = read_answers(log)
    assert [row.task for row in answers] == ["one", "two"]
    assert answers[0].right.shape == (ADAPTERS, ITEMS)
    assert (answers[0].bitmap_bytes, answers[0].margin_bytes) == (3, 40)


def test_errors_are_those_of_the_definition(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_study, "RANDOM_SETS", 2)
    monkeypatch.setattr(item_study, "DRAWS", 2)
    answers = read_answers(log)
    right = answers[0].right.astype(float)
    differences = [left - other for at, left in enumerate(right) for other in right[at + 1 :]]
    expected = np.sqrt(np.mean([row.var() for row in differences]) / ITEMS)
    assert pairing(answers[0])["paired"] == pytest.approx(expected)
    draw = np.random.default_rng(0)
    sets = [draw.choice(ITEMS, 4, replace=False) for _ in range(2)]
    plain = [right[at, places].mean() - right[at].mean() for places in sets for at in range(ADAPTERS)]
    assert placement(answers[0], 4)["plain"] == pytest.approx(np.sqrt(np.mean(np.square(plain))))
    # Ridge regression on indicators of adapters and items, by the normal equations.
    asked = np.where(draw.random(right.shape) < 0.7, right, np.nan)
    rows, columns = np.nonzero(~np.isnan(asked))
    design = np.zeros((len(rows), ADAPTERS + ITEMS))
    design[np.arange(len(rows)), rows] = design[np.arange(len(rows)), ADAPTERS + columns] = 1.0
    values = asked[rows, columns] - np.nanmean(asked)
    effects = np.linalg.solve(design.T @ design + np.eye(ADAPTERS + ITEMS), design.T @ values)[:ADAPTERS]
    assert adapter_effects(asked) == pytest.approx(effects, abs=1e-6)
    lines = list(report_lines(answers, {}))
    assert lines[0] == "12 adapters, 2 tasks, 20 items each."
    diagonal = [line.split("|") for line in lines if "| diagonal |" in line]
    assert [row[4].strip() for row in diagonal] == ["+0.0000 ± 0.0000"] * 2
    assert [line.split("|")[1].strip() for line in lines[-2:]] == ["plain", "difficulty removed"]
    assert not any("nan" in line for line in lines)
