"""Adaptive methods do what their sources say, keep what validation prefers, and fold into what was seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from catalog.errors import EvaluationError, MergeError, UsageError
from merging.evaluation import likelihoods, mean_loss, measure, targets_only
from merging.learning import ADAPTIVE, adapt
from merging.learning.candidates import BOUND, PENALTY, evaluate_candidates, search
from merging.live import ArrowGate, LiveStack, prototypes
from merging.members import MergeMember, Stack, digest_of, load_member
from merging.model import ExampleBudget, LoadedBase, Task, budget, encode, read_task
from tests.merging.test_evaluate import tiny_adapter
from tests.merging.tiny import NAME, tiny_base, write_task

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
ROWS = [(f"{'ab'[number % 2]}{number}", "yes" if number % 2 else "no") for number in range(40)]
FOLDING = [row.name for row in ADAPTIVE.values() if row.folds]
ROUTING = [row.name for row in ADAPTIVE.values() if not row.folds]


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return read_task(write_task(tmp_path / "parity", ROWS))


@pytest.fixture
def some(task: Task) -> ExampleBudget:
    return budget(task, 30, seed=1)


@pytest.fixture
def members(tmp_path: Path) -> list[MergeMember]:
    return [tiny_adapter(tmp_path / f"a{n}", n + 1, rank=n + 1, size=0.3) for n in range(3)]


def valid_loss(base: LoadedBase, task: Task, some: ExampleBudget) -> float:
    prompts = targets_only(encode(base.tokenizer, task, some.valid, base.limit))
    return mean_loss(prompts, likelihoods(base, prompts))


@pytest.mark.parametrize("method", FOLDING)
def test_what_is_written_is_what_was_learned(
    tmp_path: Path, task: Task, some: ExampleBudget, members: list[MergeMember], method: str
) -> None:
    base = tiny_base()
    before = {name: values.clone() for name, values in base.model.state_dict().items()}
    steps = None if method == "average" else 12
    rate = 0.05 if ADAPTIVE[method].factors else None
    done = adapt(base, members[1:], task, some, method, target=members[0], steps=steps, rate=rate)
    with done.apply():
        expected = measure(base, task, some.valid)
    if done.method.objective == "loss":
        assert expected.loss == pytest.approx(done.valid_loss, abs=1e-5)
    assert all(torch.equal(before[name], values) for name, values in base.model.state_dict().items())
    if done.numbers is not None and not any(any(number) for number in done.numbers.values()):
        with pytest.raises(MergeError, match="result is the base model"):
            done.write(tmp_path / "out")
        return
    report = done.write(tmp_path / "out", base=NAME)
    other = tiny_base()
    plain = PeftModel.from_pretrained(other.model, report.folder)
    result = measure(LoadedBase(NAME, plain, other.tokenizer, 512), task, some.valid)
    assert result.loss == pytest.approx(expected.loss, abs=2e-4)
    record = json.loads((report.folder / "adapt.json").read_text())
    assert record["method"]["name"] == method
    assert record["task"]["digest"] == task.digest
    assert record["members"][0]["name"] == "a0"
    weights = [digest_of(member.weights) for member in members]
    assert [item["sha256"] for item in record["members"]] == weights[: len(record["members"])]
    load_member(report.folder)


@pytest.mark.parametrize(
    "method", [name for name, row in ADAPTIVE.items() if row.steps and row.objective == "loss"]
)
def test_validation_never_gets_worse_than_the_start(
    task: Task, some: ExampleBudget, members: list[MergeMember], method: str
) -> None:
    done = adapt(tiny_base(), members[1:], task, some, method, target=members[0], steps=10)
    if done.method.learner != "candidates":
        assert done.valid_loss <= done.valid_before


def test_learning_helps_on_what_it_learns_from(
    task: Task, some: ExampleBudget, members: list[MergeMember]
) -> None:
    base = tiny_base()
    done = adapt(base, members, task, some, "recycling", steps=30, rate=0.2)
    assert done.valid_before == pytest.approx(valid_loss(base, task, some), abs=1e-6)
    assert done.valid_loss < done.valid_before - 0.1


def test_the_same_seed_gives_the_same_numbers(
    task: Task, some: ExampleBudget, members: list[MergeMember]
) -> None:
    def once(seed: int) -> object:
        return adapt(tiny_base(), members, task, some, "recycling", steps=5, seed=seed).numbers

    assert once(0) == once(0)
    assert once(0) != once(1)


def test_zero_is_the_base_and_one_hot_the_target(
    task: Task, some: ExampleBudget, members: list[MergeMember]
) -> None:
    base = tiny_base()
    start = adapt(base, members, task, some, "recycling", steps=1, rate=1e-12)
    assert start.valid_before == pytest.approx(valid_loss(base, task, some), abs=1e-6)
    alone = adapt(base, members[1:], task, some, "target-rescaled", target=members[0], steps=1, rate=1e-12)
    with LiveStack(base.model, [members[0]]).attach():
        assert alone.valid_before == pytest.approx(valid_loss(base, task, some), abs=1e-6)
    assert [member["name"] for member in alone.record["members"]] == ["a0"]


def test_entropy_needs_no_labels(task: Task, some: ExampleBudget, members: list[MergeMember]) -> None:
    flipped = ExampleBudget(
        tuple(
            type(item)(item.input, {"yes": "no", "no": "yes"}[item.target], item.choices)
            for item in some.train
        ),
        some.valid,
        some.seed,
    )
    result = [
        adapt(tiny_base(), members, task, part, "adamerging-entropy", steps=6).numbers
        for part in (some, flipped)
    ]
    assert result[0] == result[1]
    supervised = [
        adapt(tiny_base(), members, task, part, "adamerging", steps=6).numbers for part in (some, flipped)
    ]
    assert supervised[0] != supervised[1]


def test_entropy_is_for_choices(tmp_path: Path, members: list[MergeMember]) -> None:
    text = read_task(write_task(tmp_path / "text", ROWS, choices=None, metric="exact_match"))
    with pytest.raises(UsageError, match="adamerging-entropy chooses among answers, and text has no choices"):
        adapt(tiny_base(), members, text, budget(text, 30), "adamerging-entropy", steps=2)


@pytest.mark.parametrize("method", ROUTING)
def test_routing_is_measured_and_never_folded(
    tmp_path: Path, task: Task, some: ExampleBudget, members: list[MergeMember], method: str
) -> None:
    base = tiny_base()
    done = adapt(base, members, task, some, method, steps=4 if ADAPTIVE[method].steps else None)
    with done.apply():
        assert valid_loss(base, task, some) == pytest.approx(done.valid_loss, abs=1e-6)
    with pytest.raises(MergeError, match="routes every token separately"):
        done.write(tmp_path / "out")


def test_arrow_with_one_member_is_that_member(
    task: Task, some: ExampleBudget, members: list[MergeMember]
) -> None:
    base = tiny_base()
    done = adapt(base, members[:1], task, some, "arrow")
    with LiveStack(base.model, members[:1]).attach():
        assert done.valid_loss == pytest.approx(valid_loss(base, task, some), abs=1e-5)


def test_a_prototype_is_the_top_right_singular_vector(members: list[MergeMember]) -> None:
    live = LiveStack(tiny_base().model, members)
    result = prototypes(live)
    from merging.members import iterate_stacks

    for stack in iterate_stacks(members):
        for number, place in enumerate(place for place in stack.ranges() if place.stop > place.start):
            update = stack.b[:, place].double() @ stack.a[place].double()
            top = torch.linalg.svd(update).Vh[0]
            assert abs(float(result[stack.name][number].double() @ top)) == pytest.approx(1, abs=1e-6)


def test_the_gate_mixes_the_best_by_a_softmax() -> None:
    stack = Stack("m", torch.zeros(5, 2), torch.zeros(2, 5), (2, 0, 1, 2), (1.0, 0.0, 1.0, 1.0))
    directions = {"m": torch.tensor([[1.0, 0.0], [0.0, 1.0], [-3.0, 0.0]])}
    gate = ArrowGate((_shape(stack),), directions, top=2)
    weights = gate("m", torch.tensor([[[2.0, 1.0]]]), torch.zeros(1, 1, 5))
    # |x.p| is 2, 1, 6: the second of the three members that are there is left out.
    first, last = torch.tensor([2.0, 6.0]).softmax(0).tolist()
    assert weights[0, 0].tolist() == pytest.approx([first, first, 0.0, last, last])


def _shape(stack: Stack) -> object:
    from merging.members import Shape

    return Shape(stack.name, "linear", 2, 2, stack.ranks, stack.scalings)


def test_candidates_of_a_generation_are_those_one_by_one(
    task: Task, some: ExampleBudget, members: list[MergeMember]
) -> None:
    base = tiny_base()
    prompts = encode(base.tokenizer, task, some.all, base.limit)
    live = LiveStack(base.model, members)
    vectors = [[0.5, -0.2, 0.0], [0.0, 0.0, 0.0], [1.5, 1.0, -1.5]]
    together = evaluate_candidates(base, live, prompts, vectors)
    for weights, item in zip(vectors, together, strict=True):
        live.set_scales(live.scales_of(weights))
        with live.attach():
            result = mean_loss(targets_only(prompts), likelihoods(base, targets_only(prompts)))
        assert item.loss == pytest.approx(result, abs=1e-5)
        assert item.value == pytest.approx(result + PENALTY * sum(map(abs, weights)) / 3, abs=1e-5)


def test_a_search_keeps_to_its_bounds_and_budget_and_never_ends_above_the_base(
    task: Task, some: ExampleBudget, members: list[MergeMember]
) -> None:
    base = tiny_base()
    prompts = encode(base.tokenizer, task, some.all, base.limit)
    for pool in (members, members[:1]):
        hits = search(base, LiveStack(base.model, pool), prompts, 20, seed=0)
        assert len(hits) == 20
        assert all(abs(weight) <= BOUND for item in hits for weight in item.weights)
        assert hits[0].weights == (0.0,) * len(pool)
        assert min(item.value for item in hits) < hits[0].value


def test_members_that_overflow_are_an_error_and_no_result(
    tmp_path: Path, task: Task, some: ExampleBudget, members: list[MergeMember]
) -> None:
    huge = tiny_adapter(tmp_path / "huge", 9, size=1e19)
    for method in ("average", "adamerging", "arrow"):
        with pytest.raises(EvaluationError, match="is not finite"):
            adapt(
                tiny_base(), [huge, *members], task, some, method, steps=None if method != "adamerging" else 3
            )
    # A candidate that overflows is only not chosen.
    result = adapt(tiny_base(), [huge, *members], task, some, "lorahub", steps=10)
    json.dumps(result.record, allow_nan=False)


def test_factors_are_trained_in_float32(task: Task, some: ExampleBudget, members: list[MergeMember]) -> None:
    base = tiny_base(dtype=torch.bfloat16)
    done = adapt(base, members, task, some, "pi-tuning", steps=2)
    assert {part.dtype for pair in done.live.factors.values() for part in pair} == {torch.float32}
    assert base.dtype == torch.bfloat16


def test_any_seed_will_do(task: Task, some: ExampleBudget, members: list[MergeMember]) -> None:
    def once(seed: int) -> object:
        return adapt(tiny_base(), members, task, some, "lorahub", steps=8, seed=seed).numbers

    assert once(-1) == once(-1)
    once(-4)


def test_nonsense_is_said(task: Task, some: ExampleBudget, members: list[MergeMember]) -> None:
    base = tiny_base()
    with pytest.raises(UsageError, match="did you mean recycling"):
        adapt(base, members, task, some, "recyclin")
    with pytest.raises(UsageError, match="target-rescaled takes a target adapter alone"):
        adapt(base, members, task, some, "target-rescaled")
    with pytest.raises(UsageError, match="at least one adapter"):
        adapt(base, [], task, some, "recycling")
    with pytest.raises(UsageError, match="learning rate must be above 0, not -1"):
        adapt(base, members, task, some, "recycling", rate=-1.0)
    with pytest.raises(UsageError, match="arrow does not learn"):
        adapt(base, members, task, some, "arrow", steps=5)
    with pytest.raises(UsageError, match="steps must be at least 1, not 0"):
        adapt(base, members, task, some, "recycling", steps=0)


def test_the_document_has_every_method_as_it_is() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reference" / "evaluation.md").read_text(encoding="utf-8")
    for row in ADAPTIVE.values():
        line = f"| `{row.name}` | {row.summary} | {row.rate:g} | {row.steps} | [source]({row.paper}) |"
        assert line in text
