"""An ensemble answers with the mean of its members' probabilities, in choices and in texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from catalog.errors import EvaluationError, MergeError, UsageError
from merging.evaluation import ensembles, likelihoods, measure, measure_ensemble, scores
from merging.evaluation.generation import generate, generate_together, question_groups
from merging.evaluation.scores import TaskScore, evaluate
from merging.live import apply_member
from merging.members import MergeMember, load_member
from merging.model import (
    METRICS,
    LoadedBase,
    Prompt,
    Task,
    draw,
    encode,
    examples,
    find_protocol,
    read_task,
)
from tests.merging.test_evaluate import ROWS, tiny_adapter
from tests.merging.test_peft_layers import write_dora
from tests.merging.tiny import tiny_base, write_task

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
TEXTS = [(f"{'xyz'[number % 3] * (number + 1)}", "ab" * (number % 4 + 1)) for number in range(9)]


@pytest.fixture
def members(tmp_path: Path) -> list[MergeMember]:
    return [tiny_adapter(tmp_path / f"a{number}", number, rank=number + 1) for number in range(3)]


@pytest.fixture
def choice(tmp_path: Path) -> Task:
    return read_task(write_task(tmp_path / "choice", ROWS[:9]))


@pytest.fixture
def text(tmp_path: Path) -> Task:
    return read_task(write_task(tmp_path / "text", TEXTS, choices=None, metric="exact_match"))


def test_the_choice_of_the_highest_mean_share_is_the_answer(members: list[MergeMember], choice: Task) -> None:
    base, questions = tiny_base(), examples(choice, "test")
    result = measure_ensemble(base, members, choice, questions)
    prompts = encode(base.tokenizer, choice, questions, 512)
    values = []
    for member in members:
        with apply_member(base.model, member):
            values.append([[math.exp(value) for value in row] for row in likelihoods(base, prompts)])
    right, loss, margins = [], 0.0, []
    for number, prompt in enumerate(prompts):
        rows = [value[number] for value in values]
        shares = [sum(row[at] / sum(row) for row in rows) / 3 for at in range(2)]
        right.append(shares[prompt.right] >= max(shares))
        margins.append(math.log(shares[1 - prompt.right] / shares[prompt.right]))
        loss -= math.log(sum(row[prompt.right] for row in rows) / 3) / len(prompt.target) / len(prompts)
    assert list(result.outcomes) == right
    assert 0 < sum(right) < len(right)
    assert result.value == sum(right) / len(right)
    assert result.loss == pytest.approx(loss, rel=1e-5)
    assert result.margins == pytest.approx(margins, rel=1e-4)


def naive_text(base: LoadedBase, members: list[MergeMember], question: tuple[int, ...], most: int) -> str:
    """The definition: every member reads the whole text anew for each token."""
    tokens: list[int] = []
    while len(tokens) < most:
        mean: Any = 0
        for member in members:
            with apply_member(base.model, member), torch.no_grad():
                logits = base.model(torch.tensor([[*question, *tokens]])).logits[0, -1]
            mean = mean + logits.softmax(-1) / len(members)
        token = int(mean.argmax())
        if token == base.tokenizer.eos_token_id:
            break
        tokens.append(token)
    return str(base.tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def test_every_token_of_a_text_has_the_highest_mean_probability(
    members: list[MergeMember], text: Task
) -> None:
    base, questions = tiny_base(dtype=torch.float64), examples(text, "test")
    prompts = encode(base.tokenizer, text, questions, 512)
    texts = [naive_text(base, members, prompt.question, text.max_new_tokens) for prompt in prompts]
    # The ensemble is none of its members.
    for member in members:
        with apply_member(base.model, member):
            assert generate(base, prompts, most=text.max_new_tokens) != texts
    rows = [(item.input, answer or "-") for item, answer in zip(questions, texts, strict=True)]
    rows[-1] = (rows[-1][0], "certainly not this")
    own = read_task(write_task(text.folder.parent / "own", rows, choices=None, metric="exact_match"))
    result = measure_ensemble(base, members, own, examples(own, "test"))
    assert list(result.outcomes) == [*(answer != "" for answer in texts[:-1]), False]
    assert result.value == sum(result.outcomes) / 9
    logs = []
    for member in members:
        with apply_member(base.model, member):
            logs.append(likelihoods(base, encode(base.tokenizer, own, examples(own, "test"), 512)))
    expected = 0.0
    for number, prompt in enumerate(encode(base.tokenizer, own, examples(own, "test"), 512)):
        mean = sum(math.exp(values[number][0]) for values in logs) / 3
        expected -= math.log(mean) / len(prompt.target) / 9
    assert result.loss == pytest.approx(expected, rel=1e-9)


def test_texts_end_one_by_one(members: list[MergeMember], text: Task) -> None:
    """Rows leave the batches of all states together, whatever their limits."""
    base = tiny_base(dtype=torch.float64)
    prompts = encode(base.tokenizer, text, examples(text, "test"), 512)
    limits = [1 + 4 * (number % 3) for number in range(len(prompts))]
    states = [lambda member=member: apply_member(base.model, member) for member in members]
    together = generate_together(base, prompts, states, most=limits)
    for prompt, limit, answer in zip(prompts, limits, together, strict=True):
        assert answer == naive_text(base, members, prompt.question, limit)


@pytest.mark.parametrize("task_name", ["choice", "text"])
def test_an_ensemble_of_one_is_that_one(
    members: list[MergeMember], task_name: str, request: pytest.FixtureRequest
) -> None:
    base, task = tiny_base(), request.getfixturevalue(task_name)
    before = {name: values.clone() for name, values in base.model.state_dict().items()}
    result = measure_ensemble(base, members[1:2], task, examples(task, "test"))
    assert all(torch.equal(before[name], values) for name, values in base.model.state_dict().items())
    with apply_member(base.model, members[1]):
        alone = measure(base, task, examples(task, "test"))
    assert (result.value, result.outcomes) == (alone.value, alone.outcomes)
    assert result.loss == pytest.approx(alone.loss, rel=1e-6)


def test_by_the_papers_protocol_choices_are_generated(members: list[MergeMember], choice: Task) -> None:
    base, protocol = tiny_base(), find_protocol("recycling-paper")
    result = measure_ensemble(base, members, choice, examples(choice, "test"), "skip", protocol)
    assert result.margins == ()
    assert len(result.outcomes) == 9


def test_an_ensemble_is_scored_after_its_members_and_never_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, members: list[MergeMember], choice: Task, text: Task
) -> None:
    base, log = tiny_base(), tmp_path / "scores.jsonl"
    done: list[tuple[int, int]] = []
    settings: Any = {"limit": 5, "log": log, "progress": lambda *at: done.append(at)}
    rows = list(evaluate(base, members, [choice, text], ensemble="both", **settings))
    assert [row.adapter for row in rows][-4:] == ["a2", "a2", "both", "both"]
    assert done[-1] == (10, 10)
    for task, row in zip((choice, text), rows[-2:], strict=True):
        result = measure_ensemble(base, members, task, draw(task, "test", 5))
        assert (row.value, row.loss, row.metric) == (result.value, result.loss, METRICS[task.metric])
    with monkeypatch.context() as patch:
        patch.setattr(scores, "measure_ensemble_asked", None)
        # The order of the members is nothing to it, and neither is its name.
        again = list(evaluate(base, members[::-1], [choice, text], ensemble="again", **settings))
        assert [(row.adapter, row.value) for row in again[-2:]] == [("again", row.value) for row in rows[-2:]]
    few = list(evaluate(base, members[:2], [choice], ensemble="both", **settings))
    assert few[-1].key not in {row.key for row in rows}


def test_a_member_that_does_not_fit_ends_its_ensemble_in_one_sentence(
    tmp_path: Path, members: list[MergeMember], choice: Task
) -> None:
    other = tiny_adapter(tmp_path / "other", 0)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        file = other.folder / name
        file.write_bytes(file.read_bytes().replace(b"q_proj", b"k_proj"))
    other = load_member(other.folder)
    rows = list(evaluate(tiny_base(), [*members, other], [choice], ensemble="all", limit=5))
    assert [row.adapter for row in rows[:4] if isinstance(row, TaskScore)] == ["base", "a0", "a1", "a2"]
    assert all(isinstance(row, MergeError) for row in rows[4:])
    assert [str(row).startswith("all: ") for row in rows[4:]] == [False, True]


def test_what_an_ensemble_cannot_do_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, members: list[MergeMember], choice: Task, text: Task
) -> None:
    base = tiny_base()
    with pytest.raises(UsageError, match="at least one member; give adapters"):
        measure_ensemble(base, [], choice, examples(choice, "test"))
    harness: Any = SimpleNamespace(tokens=0)
    with pytest.raises(UsageError, match=r"one model at a time; leave them out, or `ensemble`"):
        list(evaluate(base, members, [choice, harness], ensemble="all"))
    other = tiny_base(hidden=64)
    with pytest.raises(MergeError):
        measure_ensemble(other, members, text, examples(text, "test"))
    write_dora(tmp_path / "dora", tiny_base(), 1)
    dora = load_member(tmp_path / "dora", purpose="evaluated", peft_layers=True)
    assert measure_ensemble(base, [members[0], dora], choice, examples(choice, "test")).n == 9
    with monkeypatch.context() as patch:
        # Before any member has read anything.
        patch.setattr(ensembles, "likelihoods", None)
        with pytest.raises(EvaluationError, match=r"by PEFT alone.*leave it out, or use tasks with choices"):
            measure_ensemble(base, [members[0], dora], text, examples(text, "test"))
    base.reading.learn(4, False)
    with pytest.raises(EvaluationError, match="reads each text from its beginning; use tasks with choices"):
        measure_ensemble(base, members, text, examples(text, "test"))
    assert measure_ensemble(base, members[:1], text, examples(text, "test")).n == 9


@pytest.mark.parametrize(("states", "tokens"), [(1, 4096), (4, 4096), (5, 2048), (40, 409)])
def test_batches_of_many_states_are_shorter(states: int, tokens: int) -> None:
    prompts = [Prompt((1, 2, 3), ((4,),), 0)] * 2000
    groups = question_groups(tiny_base(), prompts, [7] * 2000, states)
    assert max(map(len, groups)) == tokens // 10
    assert sorted(at for group in groups for at in group) == list(range(2000))


@pytest.mark.parametrize("task_name", ["choice", "text"])
def test_a_member_that_overflows_is_named(
    tmp_path: Path, members: list[MergeMember], task_name: str, request: pytest.FixtureRequest
) -> None:
    base, task = tiny_base(), request.getfixturevalue(task_name)
    huge = tiny_adapter(tmp_path / "huge", 1, size=1e18)
    with pytest.raises(EvaluationError, match=rf"with huge on {task_name} is not finite.*leave it out"):
        measure_ensemble(base, [*members, huge], task, examples(task, "test"))


def test_a_member_without_probability_for_a_text_is_named(
    monkeypatch: pytest.MonkeyPatch, members: list[MergeMember], text: Task
) -> None:
    """An infinite logit of another token gives a text the probability 0, and generates none."""
    calls: list[int] = []

    def second_fails(base: LoadedBase, prompts: Sequence[Prompt]) -> list[Any]:
        calls.append(len(prompts))
        return [(-math.inf,)] * len(prompts) if len(calls) == 2 else likelihoods(base, prompts)

    monkeypatch.setattr(ensembles, "likelihoods", second_fails)
    with pytest.raises(EvaluationError, match="with a1 on text is not finite"):
        measure_ensemble(tiny_base(), members, text, examples(text, "test"))
    assert calls == [9, 9]
