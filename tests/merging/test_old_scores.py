"""A log of the first version goes on; only scores of its rule for comparing texts are measured anew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from merging.evaluation import scores as evaluating
from merging.evaluation.scores import TaskScore, evaluate
from merging.members import MergeMember, load_member
from merging.model import read_task
from tests.merging.test_evaluate import ROWS
from tests.merging.tiny import tiny_base, write_task

# Written by loradex before its scores had rules, for the base and adapter of these tests.
LOG = Path(__file__).parent / "fixtures" / "scores.jsonl"
CONFIG = (
    '{"base_model_name_or_path": "tests/tiny-llama", "lora_alpha": 2, "peft_type": "LORA", "r": 2, '
    '"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}\n'
)


def adapter(folder: Path) -> MergeMember:
    """The adapter of the recorded scores, the same bytes wherever it is made."""
    folder.mkdir()
    tensors = {}
    for at in range(2):
        name = f"base_model.model.model.layers.{at}.self_attn.q_proj"
        numbers = torch.arange(64, dtype=torch.float32)
        tensors[f"{name}.lora_A.weight"] = (numbers.reshape(2, 32) % 7 - 3) / 8
        tensors[f"{name}.lora_B.weight"] = (numbers.reshape(32, 2) % 5 - 2) / (4 + at)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(CONFIG)
    return load_member(folder)


def test_recorded_scores_of_choices_are_used_and_those_of_texts_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "scores.jsonl"
    shutil.copyfile(LOG, log)
    choice = read_task(write_task(tmp_path / "tasks" / "choice", ROWS))
    text = read_task(write_task(tmp_path / "tasks" / "text", ROWS, choices=None, metric="exact_match"))
    members = [adapter(tmp_path / "one")]
    measured = []
    inner = evaluating.measure_asked
    monkeypatch.setattr(
        evaluating,
        "measure_asked",
        lambda *arguments: measured.append(arguments[1].name) or inner(*arguments),
    )
    old = [json.loads(line) for line in LOG.read_text().splitlines()]
    result = []
    for split, seed in (("test", 0), ("valid", 1)):
        result += list(
            evaluate(tiny_base(), members, [choice, text], split=split, limit=10, seed=seed, log=log)  # type: ignore[arg-type]
        )
    assert measured == ["text"] * 4
    assert all(isinstance(score, TaskScore) for score in result)
    documents = [score.document() for score in result if isinstance(score, TaskScore)]
    assert [document for document in documents if document["task"] == "choice"] == [
        document for document in old if document["task"] == "choice"
    ]
    assert log.read_text().startswith(LOG.read_text())
    new = [document for document in documents if document["task"] == "text"]
    assert not {document["key"] for document in new} & {document["key"] for document in old}
    # No column mixes the two: the present rule has a name of its own.
    assert {document["metric"] for document in new} == {"exact_match_stripped"}
    assert {document["metric"] for document in old if document["task"] == "text"} == {"exact_match"}
    assert [document["loss"] for document in new] == pytest.approx(
        [document["loss"] for document in old if document["task"] == "text"]
    )
