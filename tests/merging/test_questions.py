"""Examples that are too long are counted and never cut; a date in a prompt is the one that was asked for."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import normalizers

from catalog.errors import UsageError
from merging.evaluation import TooLong, ask, measure, measure_ensemble
from merging.evaluation.scores import Sampler, TaskScore, evaluate
from merging.learning import adapt, direction, exact_scores, train
from merging.model import LoadedBase, Task, budget, examples, find_protocol, read_task
from merging.model.prompts import DATE, date_of, encode, normalise_text, question_text
from tests.merging.test_evaluate import ROWS, tiny_adapter
from tests.merging.tiny import tiny_base, tiny_tokenizer, write_task

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
# Of 20 examples the second is too long for 60 tokens.
LONG = [(f"{'ab'[n % 2]}{n}" if n != 1 else "z" * 60, "yes" if n % 3 else "no") for n in range(20)]
_ANSWER = "{{ messages[0]['content'] }}<|assistant|>"
# Llama 3.2's, Llama 3.1's and gpt-oss's ways of saying the date, and none.
TODAY = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}"
    "{% endif %}{% endif %}Today Date: {{ date_string }}\n" + _ANSWER
)
FIXED = (
    "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}"
    + _ANSWER
)
CALLED = "Current date: {{ strftime_now('%Y-%m-%d') }}" + _ANSWER


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return read_task(write_task(tmp_path / "tasks" / "long", LONG))


@pytest.fixture
def base() -> LoadedBase:
    return replace(tiny_base(), limit=60)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("12.5", "125", False),
        ("U.S.", "us", False),
        ("U.S.", "u.s", True),
        ("Yes.", "yes", True),
        (" Yes ...", "yes", True),
        ("...yes", "yes", True),
        ("New York", "newyork", True),
        ("one\ntwo", "onetwo", False),
        ("one\n", "one", True),
        ("1,000", "1000", False),
        ("a\tb", "ab", False),
        ("½", "1/2", False),
        # Full stops are taken off after blanks and line ends, as in the paper's code.
        ("yes.\n.", "yes", False),
    ],
)
def test_answers_are_compared_as_the_paper_does(one: str, other: str, same: bool) -> None:
    def paper(text: str) -> str:
        return text.replace(" ", "").strip().strip(".").lower()

    assert (normalise_text(one) == normalise_text(other)) is same
    assert (normalise_text(one), normalise_text(other)) == (paper(one), paper(other))


def test_an_example_that_is_too_long_is_named_with_what_to_do(base: LoadedBase, task: Task) -> None:
    with pytest.raises(
        UsageError, match=r"Example 2 of long has \d+ tokens, more than the 60 .*too_long=.skip"
    ):
        measure(base, task, examples(task, "test"))


def test_scores_without_the_long_ones_say_how_many(base: LoadedBase, task: Task, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    (result,) = evaluate(base, [], [task], too_long="skip", log=log)
    assert isinstance(result, TaskScore)
    assert (result.n, result.left_out) == (19, 1)
    assert json.loads(log.read_text())["left_out"] == 1
    assert result.document()["left_out"] == 1
    shorter = [example for example in examples(task, "test") if "z" not in example.input]
    expected = measure(base, task, shorter)
    assert (result.value, result.loss) == (expected.value, pytest.approx(expected.loss, abs=1e-6))
    # The same without anything too long: nothing is said, and the key is that of all examples.
    (complete,) = evaluate(tiny_base(), [], [task], too_long="skip")
    (usual,) = evaluate(tiny_base(), [], [task])
    assert complete == usual
    assert isinstance(complete, TaskScore)
    assert "left_out" not in complete.document()
    assert complete.key != result.key


def test_a_task_of_nothing_but_long_examples_is_one_sentence(tmp_path: Path) -> None:
    task = read_task(write_task(tmp_path / "long", [("z" * 99, "yes"), ("y" * 99, "no")]))
    with pytest.raises(UsageError, match="All 2 examples of long are longer than the 60 tokens"):
        list(evaluate(replace(tiny_base(), limit=60), [], [task], too_long="skip"))


def test_no_examples_are_one_sentence(task: Task, tmp_path: Path) -> None:
    member = tiny_adapter(tmp_path / "a", 0)
    ways: tuple[TooLong, ...] = ("error", "skip")
    for too_long in ways:
        with pytest.raises(UsageError, match="no examples of long to read; give at least one"):
            measure(tiny_base(), task, [], too_long)
        with pytest.raises(UsageError, match="no examples of long to read; give at least one"):
            measure_ensemble(tiny_base(), [member], task, [], too_long)


@pytest.mark.parametrize("rule", ["", "-open", "-per-token", "-per-character"])
def test_a_choice_that_a_tokenizer_does_not_have_is_one_sentence(tmp_path: Path, rule: str) -> None:
    """Some tokenizers drop characters that they do not have."""
    base = tiny_base()
    base.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("é", "")
    rows = [("a", "no"), ("b", "é")]
    choice = read_task(write_task(tmp_path / "choice", rows, choices=("no", "é")))
    text = read_task(write_task(tmp_path / "text", rows, choices=None, metric="exact_match"))
    if not rule:
        # The closing token is left of it.
        assert measure(base, choice, examples(choice, "test")).n == 2
        return
    protocol = find_protocol(f"likelihood{rule}")
    with pytest.raises(UsageError, match=r"Example 1 of choice has the choice 'é'.*no tokens; use another"):
        measure(base, choice, examples(choice, "test"), "error", protocol)
    assert measure(base, text, examples(text, "test"), "error", protocol).n == 2


def test_training_leaves_long_examples_out_and_says_so(base: LoadedBase, task: Task, tmp_path: Path) -> None:
    some = budget(task, 20)
    settings: Any = {"learning_rates": [1e-3], "steps": 2, "batch": 2, "evaluate_every": 1, "rank": 2}
    with pytest.raises(UsageError, match='too_long="skip"'):
        train(base, task, some, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
    report = train(base, task, some, tmp_path / "out", too_long="skip", **settings)
    assert report.record["left_out"] == 1
    assert report.record["budget"]["train"] + report.record["budget"]["valid"] == 19


def test_adapting_leaves_long_examples_out_and_says_so(base: LoadedBase, task: Task, tmp_path: Path) -> None:
    members, some = [tiny_adapter(tmp_path / "one", 1)], budget(task, 20)
    with pytest.raises(UsageError, match='too_long="skip"'):
        adapt(base, members, task, some, "recycling", steps=1)
    result = adapt(base, members, task, some, "recycling", steps=1, too_long="skip")
    assert result.record["left_out"] == 1


def test_gradients_and_races_leave_long_examples_out(base: LoadedBase, task: Task, tmp_path: Path) -> None:
    some, member = examples(task, "train"), tiny_adapter(tmp_path / "one", 1)
    shorter = [item for item in some if "z" not in item.input]
    with pytest.raises(UsageError, match='too_long="skip"'):
        direction(base, task, some)
    vector, _ = direction(base, task, some, too_long="skip")
    assert vector.tolist() == direction(base, task, shorter)[0].tolist()
    assert exact_scores(base, task, some, [member], too_long="skip") == exact_scores(
        base, task, shorter, [member]
    )
    with pytest.raises(UsageError, match='too_long="skip"'):
        Sampler(base, task, lambda _: member)
    sampler = Sampler(base, task, lambda _: member, too_long="skip")
    assert sampler.asked.left_out == 1
    assert sampler(["one"], 19)[0] is not None
    assert sampler(["one"], 1) == [None]


def in_template(template: str) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture
def midnight(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the clock of chat templates to a day of 2030."""
    from transformers.utils import chat_template_utils

    def set_day(day: int) -> None:
        class FixedDateTime(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime.datetime:
                return datetime.datetime(2030, 5, day, 23, 59, tzinfo=tz)

        monkeypatch.setattr(chat_template_utils, "datetime", FixedDateTime)

    return set_day


@pytest.mark.parametrize(
    ("template", "day", "recorded", "text"),
    [
        (TODAY, DATE, "2024-07-26", "Today Date: 26 Jul 2024"),
        (TODAY, datetime.date(2025, 3, 1), "2025-03-01", "Today Date: 01 Mar 2025"),
        (CALLED, DATE, "2024-07-26", "Current date: 2024-07-26"),
        (CALLED, datetime.date(2025, 3, 1), "2025-03-01", "Current date: 2025-03-01"),
        # The template's own fixed date is nobody's choice, and the keys of its scores stay what they were.
        (FIXED, DATE, None, "26 Jul 2024"),
        (FIXED, datetime.date(2025, 3, 1), "2025-03-01", "01 Mar 2025"),
        (_ANSWER, datetime.date(2025, 3, 1), None, "Answer yes or no."),
    ],
)
def test_the_date_of_a_prompt_is_the_one_asked_for(
    task: Task,
    midnight: Callable[[int], None],
    template: str,
    day: datetime.date,
    recorded: str | None,
    text: str,
) -> None:
    tokenizer, some = in_template(template), examples(task, "test")[:2]
    midnight(1)
    before = encode(tokenizer, task, some, 500, date=day)
    assert question_text(tokenizer, task, some[0], day).startswith(text)
    assert date_of(tokenizer, day) == recorded
    midnight(2)
    assert encode(tokenizer, task, some, 500, date=day) == before
    assert date_of(tokenizer, day) == recorded


def test_a_tokenizer_without_a_template_has_no_date() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    assert date_of(tokenizer) is None


def test_the_date_is_a_part_of_keys_and_records_only_where_it_is_said(task: Task, tmp_path: Path) -> None:
    result: dict[tuple[str, int], TaskScore] = {}
    for template in (TODAY, _ANSWER):
        for year in (2024, 2025):
            base = replace(tiny_base(), tokenizer=in_template(template), date=datetime.date(year, 7, 26))
            (score,) = evaluate(base, [], [task], limit=4)
            assert isinstance(score, TaskScore)
            result[template, year] = score
    assert result[_ANSWER, 2024] == result[_ANSWER, 2025]
    assert "date" not in result[_ANSWER, 2024].document()
    assert result[TODAY, 2024].document()["date"] == "2024-07-26"
    assert result[TODAY, 2025].document()["date"] == "2025-07-26"
    assert result[TODAY, 2024].key != result[TODAY, 2025].key
    settings: Any = {"learning_rates": [1e-3], "steps": 1, "batch": 2, "rank": 2}
    base = replace(tiny_base(), tokenizer=in_template(TODAY))
    assert train(base, task, budget(task, 10), tmp_path / "out", **settings).record["date"] == "2024-07-26"
    members = [tiny_adapter(tmp_path / "one", 1)]
    assert adapt(base, members, task, budget(task, 10), "average").record["date"] == "2024-07-26"


def test_asking_nothing_too_long_keeps_all(task: Task) -> None:
    some = examples(task, "test")
    requests = ask(tiny_base(), task, some, "skip")
    assert (requests.examples, requests.left_out) == (some, 0)
    assert len(ROWS) == 30


@pytest.mark.parametrize(
    "start", ["", "\n", "  {% if true %}x{% endif %}\n", "{%- if true -%} y {% endif %}"]
)
def test_the_clock_changes_nothing_else_of_a_template(
    start: str, midnight: Callable[[int], None], task: Task
) -> None:
    ways = ("%d %b %Y", "%Y-%m-%d", "%A, %-d %B %Y %H:%M", "%%")
    calls = "".join(f"{{{{ strftime_now({way!r}) }}}}|" for way in ways)
    macro = "{% macro say() %}{{ strftime_now('%d').upper() }}{% endmacro %}{{ say() }}"
    tokenizer = in_template(start + calls + macro + _ANSWER)
    midnight(9)
    day, example = datetime.date(2030, 5, 9), examples(task, "test")[0]
    turn = [{"role": "user", "content": f"{task.instruction}\n\n{example.input}"}]
    plain = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    assert question_text(tokenizer, task, example, day) == plain.replace("23:59", "00:00")


@pytest.mark.parametrize("kind", ["gpt2", "opt", "gptj", "openai-gpt"])
def test_a_question_that_leaves_no_room_for_its_answer_is_one_sentence(kind: str, tmp_path: Path) -> None:
    from catalog.errors import EvaluationError
    from tests.merging.architectures import architecture

    name = "max_position_embeddings" if kind == "opt" else "n_positions"
    task = read_task(
        write_task(
            tmp_path / "text", [("q" * n, "yes") for n in range(1, 5)], choices=None, metric="exact_match"
        )
    )
    longest = max(len(p.question) for p in ask(tiny_base(), task, examples(task, "test")).prompts)
    room = architecture(kind, **{name: longest + 30})
    assert measure(room, task, examples(task, "test")).n == 4
    with pytest.raises(
        EvaluationError, match=rf"question of {longest} tokens leaves no room for an answer of 30"
    ):
        measure(architecture(kind, **{name: longest + 29}), task, examples(task, "test"))
    small = architecture(kind, **{name: longest + 29})
    skipped = measure(small, task, examples(task, "test"), "skip")
    assert (skipped.n, skipped.left_out) == (3, 1)
    # What is only read needs no room.
    assert ask(small, task, examples(task, "test"), "skip").left_out == 0
    with pytest.raises(UsageError, match=r"All 4 .* longer with answers of 30 than the \d+ tokens"):
        measure(architecture(kind, **{name: longest + 20}), task, examples(task, "test"), "skip")
