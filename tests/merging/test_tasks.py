"""Tasks are read strictly, budgets are drawn by seed, prompts follow the chat template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from catalog.errors import NotFoundError, UsageError
from merging.model import budget, draw, examples, find_task, first_examples, read_task
from merging.model.prompts import encode, normalise_text, question_text
from tests.merging.tiny import tiny_tokenizer, write_task
from tests.shared_data import SHARED, shared

ROWS = [(f"question {number}", "yes" if number % 2 else "no") for number in range(120)]


def test_a_task_and_its_examples_are_as_written(tmp_path: Path) -> None:
    task = read_task(write_task(tmp_path / "odd", ROWS))
    assert (task.name, task.metric, task.choices, task.license) == (
        "odd",
        "accuracy",
        ("yes", "no"),
        "CC0-1.0",
    )
    result = examples(task, "test")
    assert [(item.input, item.target) for item in result] == ROWS
    assert all(item.choices == ("yes", "no") for item in result)


def test_the_digest_changes_with_any_byte_of_an_example(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "odd", ROWS)
    before = read_task(folder).digest
    assert read_task(folder).digest == before
    file = folder / "test.jsonl"
    file.write_text(file.read_text().replace("question 7", "question 8", 1))
    assert read_task(folder).digest != before


def test_a_budget_is_drawn_from_training_examples_by_seed(tmp_path: Path) -> None:
    task = read_task(write_task(tmp_path / "odd", ROWS))
    item = budget(task, 100, seed=3)
    assert (len(item.train), len(item.valid)) == (80, 20)
    assert len({example.input for example in item.all}) == 100
    assert budget(task, 100, seed=3) == item
    assert budget(task, 100, seed=4) != item
    with pytest.raises(UsageError, match="odd has 120 training examples, fewer than the requested 200"):
        budget(task, 200)
    with pytest.raises(UsageError, match="cannot be split"):
        budget(task, 2)


def test_whoever_sees_fewer_sees_no_others(tmp_path: Path) -> None:
    task = read_task(write_task(tmp_path / "odd", ROWS))
    complete = first_examples(task, 100, seed=3)
    assert set(budget(task, 100, seed=3).all) == set(complete)
    assert first_examples(task, 24, seed=3) == complete[:24]
    assert budget(task, 40, seed=3).all[-8:] == complete[:8]
    assert first_examples(task, 100, seed=4) != complete


def test_a_line_may_hold_any_separator_of_unicode(tmp_path: Path) -> None:
    rows = [("one\u2028two\x85three", "yes")]
    folder = write_task(tmp_path / "odd", rows)
    (folder / "train.jsonl").write_text(
        json.dumps({"input": rows[0][0], "target": "yes"}, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    assert examples(read_task(folder), "train")[0].input == rows[0][0]


def test_a_limit_draws_the_same_examples_for_everybody(tmp_path: Path) -> None:
    task = read_task(write_task(tmp_path / "odd", ROWS))
    assert draw(task, "test", 10, seed=1) == draw(task, "test", 10, seed=1)
    assert len(draw(task, "test", 10)) == 10
    assert draw(task, "test", 5000) == examples(task, "test")
    with pytest.raises(UsageError, match="at least 1"):
        draw(task, "test", 0)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"input": "x"}, "line 1 is not a valid example: it does not contain target"),
        ({"input": "x", "target": "maybe"}, "line 1 has the target 'maybe', which is not a choice"),
        ({"input": " ", "target": "yes"}, "line 1 is not a valid example: input must be a non-empty string"),
        (
            {"input": "x", "target": "yes", "choices": ["yes", "yes"]},
            "at least two different entries",
        ),
        ([1], "line 1 is not a valid example"),
    ],
)
def test_an_example_that_cannot_be_used_is_named_by_line(tmp_path: Path, line: object, words: str) -> None:
    folder = write_task(tmp_path / "odd", ROWS)
    (folder / "train.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(UsageError, match=words):
        examples(read_task(folder), "train")


def test_a_task_of_choices_needs_choices(tmp_path: Path) -> None:
    task = read_task(write_task(tmp_path / "odd", ROWS, choices=None))
    with pytest.raises(UsageError, match="line 1 has no choices"):
        examples(task, "train")


def test_missing_and_broken_tasks_are_said(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "tasks" / "odd", ROWS)
    assert find_task("odd", tmp_path / "tasks").name == find_task(str(folder)).name
    with pytest.raises(NotFoundError, match=r"Task even not found; .*tasks contains odd"):
        find_task("even", tmp_path / "tasks")
    (folder / "test.jsonl").unlink()
    with pytest.raises(NotFoundError, match="no test examples"):
        examples(read_task(folder), "test")
    (folder / "task.json").write_text('{"name": "odd", "instruction": "x", "metric": "f2"}')
    with pytest.raises(UsageError, match=r"one of accuracy, exact_match, f1, .*, not 'f2'"):
        read_task(folder)
    (folder / "task.json").write_text("[]")
    with pytest.raises(UsageError, match="not contain a JSON object"):
        read_task(folder)


def test_a_prompt_is_one_turn_and_answers_end_it(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    task = read_task(write_task(tmp_path / "odd", ROWS))
    example = examples(task, "train")[1]
    text = "<|user|>Answer yes or no.\n\nquestion 1<|end|><|assistant|>"
    assert question_text(tokenizer, task, example) == text
    prompt = encode(tokenizer, task, [example], 200)[0]
    assert tokenizer.decode(prompt.question) == text
    assert [tokenizer.decode(answer) for answer in prompt.answers] == ["yes<|end|>", "no<|end|>"]
    assert tokenizer.decode(prompt.target) == "yes<|end|>"
    with pytest.raises(
        UsageError, match=r"Example 1 of odd has \d+ tokens, more than the 20 that the model reads"
    ):
        encode(tokenizer, task, [example], 20)


def test_without_a_template_the_question_is_plain(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    task = read_task(write_task(tmp_path / "odd", ROWS))
    prompt = encode(tokenizer, task, examples(task, "train")[:1], 200)[0]
    assert tokenizer.decode(prompt.question) == "Answer yes or no.\n\nquestion 0\n\n"


def test_free_text_has_one_answer(tmp_path: Path) -> None:
    task = read_task(write_task(tmp_path / "sum", [("1+1", "2")], choices=None, metric="exact_match"))
    prompt = encode(tiny_tokenizer(), task, examples(task, "test"), 200)[0]
    assert len(prompt.answers) == 1


def test_exact_match_ignores_case_white_space_and_full_stops() -> None:
    assert normalise_text(" The answer.\n") == normalise_text("theanswer")
    assert normalise_text("yes") != normalise_text("no")


@shared
def test_the_collected_tasks_can_be_read() -> None:
    assert SHARED is not None
    folders = sorted((SHARED / "data" / "tasks").iterdir())
    tasks = [read_task(folder) for folder in folders]
    assert len(tasks) == 36
    for task in tasks:
        for split in ("train", "valid", "test"):
            assert examples(task, split)
