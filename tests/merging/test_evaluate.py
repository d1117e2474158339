"""Scores are right, the same alone and in a sweep, and a killed run goes on without counting twice."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from catalog.errors import EvaluationError, LoradexError, MergeError, StorageError, UsageError
from catalog.scores import (
    from_text,
    item_hash,
    list_sha,
    read_outcomes,
    read_scores,
    to_text,
    unpack_bitmap,
    unpack_margins,
)
from merging.evaluation.measurement import measure
from merging.evaluation.scores import BASE, Sampler, TaskScore, evaluate
from merging.members import MergeMember, load_member
from merging.model import LoadedBase, Task, draw, examples, read_task
from tests.merging.tiny import NAME, tiny_base, write_task

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
ROWS = [(f"{'ab'[number % 2]}{number}", "yes" if number % 3 else "no") for number in range(30)]


def tiny_adapter(folder: Path, seed: int, rank: int = 2, size: float = 0.5) -> MergeMember:
    """A random adapter of the tiny base that PEFT has written."""
    model = get_peft_model(tiny_base().model, LoraConfig(r=rank, target_modules=["q_proj", "up_proj"]))
    torch.manual_seed(seed)
    for name, values in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(values, std=size)
    model.peft_config["default"].base_model_name_or_path = NAME
    model.save_pretrained(folder, save_embedding_layers=False)
    return load_member(folder)


@pytest.fixture
def tasks(tmp_path: Path) -> list[Task]:
    choice = write_task(tmp_path / "choice", ROWS)
    text = write_task(tmp_path / "text", ROWS, choices=None, metric="exact_match")
    return [read_task(choice), read_task(text)]


def test_a_score_is_that_of_plain_peft(tmp_path: Path, tasks: list[Task]) -> None:
    members = [tiny_adapter(tmp_path / f"a{n}", n, rank=n + 1) for n in range(3)]
    base = tiny_base()
    scores = [item for item in evaluate(base, members, tasks[:1]) if isinstance(item, TaskScore)]
    assert [item.adapter for item in scores] == [BASE, "a0", "a1", "a2"]
    for score, member in zip(scores[1:], members, strict=True):
        other = tiny_base()
        model = PeftModel.from_pretrained(other.model, member.folder)
        alone = measure(type(other)(NAME, model, other.tokenizer, 512), tasks[0], examples(tasks[0], "test"))
        assert score.value == alone.value
        assert score.loss == pytest.approx(alone.loss, abs=1e-5)
    assert len({round(item.loss, 6) for item in scores}) == 4


def test_the_base_is_what_it_was(tmp_path: Path, tasks: list[Task]) -> None:
    base = tiny_base()
    before = {name: values.clone() for name, values in base.model.state_dict().items()}
    list(evaluate(base, [tiny_adapter(tmp_path / "a", 1)], tasks))
    after = base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_exact_match_counts_generated_texts(tmp_path: Path, tasks: list[Task]) -> None:
    base = tiny_base()
    questions = examples(tasks[1], "test")[:4]
    from merging.evaluation.generation import generate
    from merging.model import encode

    texts = generate(base, encode(base.tokenizer, tasks[1], questions, 512))
    # A task whose targets are what the model says, but for the last.
    rows = [(item.input, text or "-") for item, text in zip(questions, texts, strict=True)]
    rows[-1] = (rows[-1][0], "certainly not this")
    own = read_task(write_task(tmp_path / "own", rows, choices=None, metric="exact_match"))
    expected = sum(text != "" for text in texts[:-1]) / 4
    assert measure(base, own, examples(own, "test")).value == expected


def test_outcomes_say_which_examples_were_right(tmp_path: Path, tasks: list[Task]) -> None:
    log = tmp_path / "scores.jsonl"
    scores = [
        item for item in evaluate(tiny_base(), [], tasks, limit=9, log=log) if isinstance(item, TaskScore)
    ]
    for score, task in zip(scores, tasks, strict=True):
        questions = draw(task, "test", 9)
        right = [measure(tiny_base(), task, [row]).value == 1.0 for row in questions]
        assert isinstance(score, TaskScore)
        record = read_outcomes(score.items_sha, score.outcomes, score.margins, 9)
        assert unpack_bitmap(record.bitmap, 9).tolist() == right
        hashes = b"".join(item_hash(row.input, row.target, row.choices) for row in questions)
        assert score.item_hashes == to_text(hashes)
        assert score.items_sha == list_sha(hashes)
    alone = measure(tiny_base(), tasks[0], draw(tasks[0], "test", 9))
    choice, text = (json.loads(line) for line in log.read_text().splitlines())
    margins = unpack_margins(from_text(choice["margins"], "margins", 18), 9)
    assert margins == pytest.approx(alone.margins, rel=1e-3)
    assert "margins" not in text
    assert "item_hashes" not in text
    again = list(evaluate(tiny_base(), [], tasks, limit=9, log=log))
    assert again == scores
    assert [item.item_hashes for item in again if isinstance(item, TaskScore)] == [
        item.item_hashes for item in scores if isinstance(item, TaskScore)
    ]


def test_answers_to_more_items_than_are_stored_are_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tasks: list[Task]
) -> None:
    (whole,) = evaluate(tiny_base(), [], tasks[:1])
    monkeypatch.setattr("catalog.scores.outcomes.MOST_ITEMS", len(ROWS) - 1)
    monkeypatch.setattr("merging.evaluation.scores.MOST_ITEMS", len(ROWS) - 1)
    log = tmp_path / "log.jsonl"
    for _ in range(2):
        (score,) = evaluate(tiny_base(), [], tasks[:1], log=log)
        assert isinstance(whole, TaskScore)
        assert isinstance(score, TaskScore)
        assert (score.value, score.n, score.key) == (whole.value, whole.n, whole.key)
        assert score.items_sha == score.outcomes == score.margins == score.item_hashes == ""


def test_a_line_whose_value_contradicts_its_outcomes_is_refused(tmp_path: Path, tasks: list[Task]) -> None:
    log = tmp_path / "scores.jsonl"
    list(evaluate(tiny_base(), [], tasks[:1], limit=9, log=log))
    row = json.loads(log.read_text())
    log.write_text(json.dumps({**row, "value": (row["value"] * 9 + 1) % 10 / 9}) + "\n")
    with pytest.raises(UsageError, match="line 1 is not a score"):
        list(evaluate(tiny_base(), [], tasks[:1], limit=9, log=log))


def test_a_run_goes_on_where_it_was(tmp_path: Path, tasks: list[Task]) -> None:
    members = [tiny_adapter(tmp_path / f"a{n}", n) for n in range(2)]
    log = tmp_path / "out" / "scores.jsonl"
    scores = list(evaluate(tiny_base(), members, tasks, limit=10, log=log))
    lines = log.read_text().splitlines(keepends=True)
    assert len(lines) == len(scores) == 6
    # Killed while the fourth line was written.
    log.write_text("".join(lines[:3]) + lines[3][:20])
    document: list[tuple[int, int]] = []
    again = list(
        evaluate(
            tiny_base(), members, tasks, limit=10, log=log, progress=lambda *counts: document.append(counts)
        )
    )
    assert again == scores
    assert log.read_text() == "".join(lines)
    assert document[-1] == (6, 6)


class _TwoScores:
    """Two scores of each adapter, as a task of another program has several metrics."""

    tokens = 10

    def known(self, done: dict[str, TaskScore], name: str, adapter: str) -> list[TaskScore]:
        entries = [score for key, score in done.items() if key.startswith(f"{adapter}-")]
        return entries if len(entries) == 2 else []

    def score(self, base: LoadedBase, name: str, adapter: str) -> list[TaskScore]:
        logits = base.model(torch.tensor([[1, 2, 3]])).logits
        values = {"acc": float(logits.softmax(-1)[0, -1, 5]), "f1": 0.5}
        return [
            TaskScore(
                name, "other", "test", metric, value, 9, None, NAME, 0, f"{adapter}-{metric}", stderr=0.1
            )
            for metric, value in values.items()
        ]


def test_a_round_of_several_scores_is_logged_and_continued_whole(tmp_path: Path, tasks: list[Task]) -> None:
    members, log = [tiny_adapter(tmp_path / f"a{n}", n) for n in range(2)], tmp_path / "scores.jsonl"
    rounds = [_TwoScores(), tasks[0]]
    counts: list[tuple[int, int]] = []
    scores = list(evaluate(tiny_base(), members, rounds, log=log, progress=lambda *n: counts.append(n)))
    assert [score.metric for score in scores if isinstance(score, TaskScore)] == ["acc", "f1", "accuracy"] * 3
    assert counts == [(n, 6) for n in range(1, 7)]
    values = [score.value for score in scores[::3] if isinstance(score, TaskScore)]
    assert len(set(values)) == 3, "each adapter is measured, and not the base"
    lines = log.read_text().splitlines(keepends=True)
    assert json.loads(lines[0])["loss"] is None
    # Killed within the two scores of the second adapter.
    log.write_text("".join(lines[:4]) + lines[4][:20])
    assert list(evaluate(tiny_base(), members, rounds, log=log)) == scores


def test_the_same_weights_under_two_names_are_measured_once(tmp_path: Path, tasks: list[Task]) -> None:
    members = [tiny_adapter(tmp_path / name, 1) for name in ("one", "copy")]
    log = tmp_path / "scores.jsonl"
    scores = list(evaluate(tiny_base(), members, tasks[:1], log=log, with_base=False))
    assert [item.adapter for item in scores if isinstance(item, TaskScore)] == ["one", "copy"]
    assert len(log.read_text().splitlines()) == 1


def test_another_question_is_another_line(tmp_path: Path, tasks: list[Task]) -> None:
    log = tmp_path / "scores.jsonl"
    for limit, seed in ((10, 0), (10, 1), (12, 0)):
        list(evaluate(tiny_base(), [], tasks[:1], limit=limit, seed=seed, log=log))
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(row["n"], row["seed"]) for row in rows] == [(10, 0), (10, 1), (12, 0)]
    assert len({row["key"] for row in rows}) == 3


def test_a_log_of_something_else_is_left_alone(tmp_path: Path, tasks: list[Task]) -> None:
    log = tmp_path / "notes.txt"
    log.write_text("shopping\nlist\n")
    with pytest.raises(UsageError, match=r"notes.txt line 1 is not a score"):
        list(evaluate(tiny_base(), [], tasks, log=log))
    assert log.read_text() == "shopping\nlist\n"


def test_an_adapter_of_another_base_is_named_and_others_go_on(tmp_path: Path, tasks: list[Task]) -> None:
    good = tiny_adapter(tmp_path / "good", 1)
    wide = tiny_base(hidden=64)
    model = get_peft_model(wide.model, LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "wide", save_embedding_layers=False)
    members = [load_member(tmp_path / "wide"), good]
    scores = list(evaluate(tiny_base(), members, tasks[:1], with_base=False))
    assert isinstance(scores[0], LoradexError)
    assert "wide" in str(scores[0])
    assert isinstance(scores[1], TaskScore)
    assert scores[1].adapter == "good"


def test_an_adapter_that_overflows_is_named_and_others_go_on(tmp_path: Path, tasks: list[Task]) -> None:
    members = [tiny_adapter(tmp_path / "huge", 1, size=1e19), tiny_adapter(tmp_path / "good", 2)]
    log = tmp_path / "scores.jsonl"
    scores = list(evaluate(tiny_base(), members, tasks[:1], with_base=False, log=log))
    assert isinstance(scores[0], LoradexError)
    assert str(scores[0]).startswith("huge: ")
    assert isinstance(scores[1], TaskScore)
    assert (scores[1].adapter, len(log.read_text().splitlines())) == ("good", 1)


def test_a_log_whose_last_line_lost_its_end_goes_on(tmp_path: Path, tasks: list[Task]) -> None:
    log = tmp_path / "scores.jsonl"
    scores = list(evaluate(tiny_base(), [], tasks, limit=5, log=log))
    text = log.read_text()
    log.write_text(text[:-1])
    assert list(evaluate(tiny_base(), [], tasks, limit=5, log=log)) == scores
    assert log.read_text() == text


def test_a_line_that_lost_its_end_in_a_log_that_cannot_be_written_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tasks: list[Task]
) -> None:
    log = tmp_path / "scores.jsonl"
    log.write_text('{"adapter": ')

    opened = Path.open

    def open_to_read(file: Path, mode: str = "r", *options: Any, **named: Any) -> Any:
        if "+" in mode:
            raise PermissionError(13, "Permission denied")
        return opened(file, mode, *options, **named)

    base = tiny_base()
    monkeypatch.setattr(Path, "open", open_to_read)
    with pytest.raises(StorageError, match=r"scores.jsonl cannot be written: Permission denied"):
        list(evaluate(base, [], tasks, limit=5, log=log))
    assert log.read_text() == '{"adapter": '


@pytest.mark.parametrize(
    "wrong", [{"value": 55}, {"value": math.nan}, {"n": 2**63}, {"loss": math.inf}, {"key": []}]
)
def test_a_line_that_no_evaluation_writes_is_named(
    tmp_path: Path, tasks: list[Task], wrong: dict[str, object]
) -> None:
    log = tmp_path / "scores.jsonl"
    list(evaluate(tiny_base(), [], tasks[:1], limit=5, log=log))
    row = json.loads(log.read_text())
    log.write_text(log.read_text() + json.dumps(row | wrong, sort_keys=True) + "\n")
    with pytest.raises(UsageError, match=r"scores.jsonl line 2 is not a score"):
        list(evaluate(tiny_base(), [], tasks[:1], limit=5, log=log))


@pytest.mark.parametrize("data", [b'{"precious": 1}', b"\xff\xfe", b"one line"])
def test_a_file_that_is_no_log_keeps_its_bytes(tmp_path: Path, tasks: list[Task], data: bytes) -> None:
    log = tmp_path / "mine"
    log.write_bytes(data)
    with pytest.raises(UsageError, match="not a log of scores"):
        list(evaluate(tiny_base(), [], tasks, log=log))
    assert log.read_bytes() == data


def test_a_folder_and_endless_brackets_are_no_log(tmp_path: Path, tasks: list[Task]) -> None:
    with pytest.raises(StorageError, match=r"cannot be read: .+\."):
        list(evaluate(tiny_base(), [], tasks, log=tmp_path))
    log = tmp_path / "deep"
    log.write_text("[" * 100_000 + "\n")
    with pytest.raises(UsageError, match="deep line 1 is not a score"):
        list(evaluate(tiny_base(), [], tasks, log=log))


def test_another_model_of_the_same_name_is_measured_anew(tmp_path: Path, tasks: list[Task]) -> None:
    log = tmp_path / "scores.jsonl"
    for seed in (0, 1):
        list(evaluate(tiny_base(seed), [], tasks[:1], log=log))
    assert len(log.read_text().splitlines()) == 2


def test_a_model_that_overflows_is_no_score(tmp_path: Path, tasks: list[Task]) -> None:
    base = tiny_base()
    base.model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(EvaluationError, match="on choice is not finite"):
        measure(base, tasks[0], examples(tasks[0], "test"))


def test_scores_can_be_imported(tmp_path: Path, tasks: list[Task]) -> None:
    scores = [item for item in evaluate(tiny_base(), [], tasks, limit=5) if isinstance(item, TaskScore)]
    file = tmp_path / "scores.json"
    file.write_text(json.dumps({"scores": [score.document() for score in scores]}))
    rows = read_scores(file, source="here", split="", metric="", n=None)
    assert [(row.subject, row.task, row.value, row.n) for row in rows] == [
        (item.adapter, item.task, item.value, 5) for item in scores
    ]


def test_a_race_sees_each_example_once_and_never_more_than_there_are(
    tmp_path: Path, tasks: list[Task]
) -> None:
    member = tiny_adapter(tmp_path / "a", 1)

    def find(name: str) -> MergeMember:
        if name != "a":
            raise MergeError(f"{name} does not fit.")
        return member

    sampler = Sampler(tiny_base(), tasks[0], find)
    parts = [sampler(["a", "unknown"], 10) for _ in range(4)]
    assert [part[1] for part in parts] == [None] * 4
    assert parts[3] == [None, None]
    assert sampler.spent == 30
    assert sampler.left_out == {"unknown": "unknown does not fit."}
    complete = draw(tasks[0], "train", 30)
    from merging.live import LiveStack

    base = tiny_base()
    with LiveStack(base.model, [member]).attach():
        expected = measure(base, tasks[0], complete).value
    assert sum(part[0] or 0.0 for part in parts[:3]) / 3 == pytest.approx(expected)
