"""Where memory is short, work goes on in smaller pieces and says the same; the smallest is one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from catalog.errors import EvaluationError, MemoryLimitError
from merging.evaluation import generation, scoring, sizing
from merging.evaluation.generation import generate
from merging.evaluation.questions import check_reading, reads_plainly
from merging.evaluation.scores import Sampler, TaskScore, evaluate
from merging.evaluation.scoring import likelihoods
from merging.evaluation.sizing import fitting_tokens
from merging.learning import adapt, train
from merging.learning.candidates import evaluate_candidates
from merging.learning.course import gradients
from merging.learning.gradients import direction, exact_scores, task_gradient
from merging.live import LiveStack
from merging.model import (
    LoadedBase,
    MemoryRecord,
    Prompt,
    Sizes,
    Task,
    budget,
    examples,
    in_pieces,
    is_shortage,
    memory_limit,
    read_task,
)
from tests.merging.architectures import architecture, some_prompts
from tests.merging.test_evaluate import ROWS, tiny_adapter
from tests.merging.tiny import tiny_base, write_task

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
# As CUDA, the CPU's allocator, Apple's GPUs, the libraries of CUDA and numpy say it.
SHORTAGES = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 99999999999 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.00 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return read_task(write_task(tmp_path / "tasks" / "choice", ROWS))


def narrow(base: LoadedBase, most: int, error: BaseException = SHORTAGES[1]) -> LoadedBase:
    """The base on a device that holds a batch of `most` tokens."""

    def refuse(_module: Any, _words: Any, by_name: dict[str, Any]) -> None:
        if by_name["input_ids"].numel() > most:
            raise error

    base.model.register_forward_pre_hook(refuse, with_kwargs=True)
    return base


@pytest.mark.parametrize("error", SHORTAGES)
def test_a_shortage_is_known_in_every_wording(error: Exception) -> None:
    assert is_shortage(error)
    with (
        pytest.raises(MemoryLimitError, match="The pool does not fit into memory; use a device"),
        memory_limit("The pool"),
    ):
        raise error


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("no")]
)
def test_another_fault_stays_what_it_is(error: Exception) -> None:
    def work(_: Any) -> None:
        raise error

    assert not is_shortage(error)
    with pytest.raises(type(error)) as caught, memory_limit("The pool"):
        list(in_pieces([[1, 2]], work, lambda _: "too large"))
    assert caught.value is error


def test_pieces_are_halved_in_their_order_until_the_smallest_is_refused() -> None:
    def work(group: Any) -> int:
        if len(group) > 2:
            raise MemoryError
        return sum(group)

    assert list(in_pieces([[1, 2, 3, 4, 5], [6]], work, str)) == [
        ([1, 2], 3),
        ([3], 3),
        ([4, 5], 9),
        ([6], 6),
    ]

    def never(_: Any) -> int:
        raise MemoryError

    with pytest.raises(MemoryLimitError, match="item 7 is too large"):
        list(in_pieces([[7, 8]], never, lambda item: f"item {item} is too large"))


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize("error", [SHORTAGES[0], SHORTAGES[1], SHORTAGES[4]])
def test_likelihoods_and_answers_are_the_same_in_pieces(kind: str, error: Exception) -> None:
    prompts = [
        Prompt(prompt.question, (*prompt.answers, (3, 4), (5,)), 0) for prompt in some_prompts(6, 20, 40)
    ]
    complete, texts = likelihoods(architecture(kind), prompts), generate(architecture(kind), prompts, most=3)
    calls: list[int] = []
    base = narrow(architecture(kind), 45, error)
    base.model.register_forward_hook(lambda *_: calls.append(1))
    for values, expected in zip(likelihoods(base, prompts), complete, strict=True):
        assert values == pytest.approx(expected, abs=1e-5)
    assert len(calls) >= len(prompts)
    assert generate(base, prompts, most=3) == texts
    with pytest.raises(
        MemoryLimitError, match=r"A prompt of \d+ tokens does not fit into memory; use a device"
    ):
        likelihoods(narrow(architecture(kind), 10, error), prompts)
    with pytest.raises(MemoryLimitError, match=r"A prompt of \d+ tokens does not fit into memory"):
        generate(narrow(architecture(kind), 10, error), prompts, most=3)


def test_a_prompt_of_many_answers_is_read_in_parts() -> None:
    prompt = Prompt(tuple(range(20)), tuple((n, n + 1, n + 2) for n in range(30)), 4)
    (complete,) = likelihoods(tiny_base(), [prompt])
    (parts,) = likelihoods(narrow(tiny_base(), 30), [prompt])
    assert parts == pytest.approx(complete, abs=1e-5)


def test_scores_are_the_same_in_pieces(tmp_path: Path, task: Task) -> None:
    members = [tiny_adapter(tmp_path / "one", 1)]
    scores = list(evaluate(tiny_base(), members, [task]))
    for result, expected in zip(evaluate(narrow(tiny_base(), 60), members, [task]), scores, strict=True):
        assert isinstance(result, TaskScore)
        assert isinstance(expected, TaskScore)
        assert (result.value, result.key) == (expected.value, expected.key)
        assert result.loss == pytest.approx(expected.loss, abs=1e-5)
    with pytest.raises(MemoryLimitError, match="does not fit into memory"):
        list(evaluate(narrow(tiny_base(), 10), members, [task]))


def test_gradients_are_the_same_in_pieces(tmp_path: Path, task: Task) -> None:
    some, member = examples(task, "train")[:8], tiny_adapter(tmp_path / "one", 1)
    complete, _ = direction(tiny_base(dtype=torch.float64), task, some, kind="delta")
    parts, _ = direction(narrow(tiny_base(dtype=torch.float64), 60), task, some, kind="delta")
    assert parts.tolist() == pytest.approx(complete.tolist(), rel=1e-4, abs=1e-7)
    scores = exact_scores(tiny_base(), task, some, [member])
    assert exact_scores(narrow(tiny_base(), 60), task, some, [member]) == pytest.approx(scores, rel=1e-4)
    with pytest.raises(MemoryLimitError, match="does not fit into memory"):
        direction(narrow(tiny_base(), 10), task, some)


def test_a_training_is_the_same_in_pieces(tmp_path: Path, task: Task) -> None:
    settings: Any = {"learning_rates": [1e-2], "steps": 3, "batch": 4, "evaluate_every": 1, "rank": 2}
    losses = []
    for number, base in enumerate((tiny_base(), narrow(tiny_base(), 60))):
        report = train(base, task, budget(task, 10), tmp_path / str(number), **settings)
        assert report.record["settings"]["recipe"]["batch"] == 4
        losses.append([loss["train"] for loss in report.record["rates"][0]["losses"]])
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    with pytest.raises(MemoryLimitError, match="does not fit into memory"):
        train(narrow(tiny_base(), 10), task, budget(task, 10), tmp_path / "none", **settings)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("method", ["recycling", "lorahub"])
def test_an_adaptation_is_the_same_in_pieces(tmp_path: Path, task: Task, method: str) -> None:
    members = [tiny_adapter(tmp_path / name, number) for number, name in enumerate(("one", "two"))]
    complete = adapt(tiny_base(), members, task, budget(task, 10), method, steps=3)
    # A generation of lorahub is several rows of one batch, and one of them fits.
    parts = adapt(narrow(tiny_base(), 60), members, task, budget(task, 10), method, steps=3)
    assert parts.valid_loss == pytest.approx(complete.valid_loss, abs=1e-4)
    # What a shortage turned on is on record; without gradients there is nothing to turn on.
    assert "gradient_checkpointing" not in complete.record
    assert parts.record.get("gradient_checkpointing", False) is (method == "recycling")
    with pytest.raises(MemoryLimitError, match="does not fit into memory"):
        adapt(narrow(tiny_base(), 10), members, task, budget(task, 10), method, steps=3)


def test_candidates_that_do_not_fit_together_are_asked_in_turn(tmp_path: Path) -> None:
    prompts = some_prompts(2, 20, 22)
    weights = [[0.0], [0.5], [1.0], [1.5], [-1.0]]
    result = []
    for base in (tiny_base(), narrow(tiny_base(), 50)):
        live = LiveStack(base.model, [tiny_adapter(tmp_path / str(len(result)), 1)])
        result.append([candidate.loss for candidate in evaluate_candidates(base, live, prompts, weights)])
    assert result[1] == pytest.approx(result[0], abs=1e-5)


def test_a_race_leaves_out_an_adapter_that_does_not_fit(
    tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {name: tiny_adapter(tmp_path / name, number) for number, name in enumerate(("good", "large"))}
    sampler = Sampler(tiny_base(), task, members.__getitem__)
    inner = LiveStack._settle

    def settle(stack: LiveStack, host: Any) -> None:
        if any(member.name == "large" for member in host.members):
            raise SHORTAGES[0]
        inner(stack, host)

    monkeypatch.setattr(LiveStack, "_settle", settle)
    scores = sampler(["good", "large"], 5)
    assert scores[0] is not None
    assert scores[1] is None
    assert "does not fit into memory" in sampler.left_out["large"]
    result = list(
        evaluate(tiny_base(), [members["large"], members["good"]], [task], limit=4, with_base=False)
    )
    assert isinstance(result[0], EvaluationError)
    assert isinstance(result[1], TaskScore)


def test_an_adapter_stays_beside_weights_that_cannot_be_copied(
    tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    from merging.live import stack as live

    members = [tiny_adapter(tmp_path / "one", 1)]
    (complete,) = evaluate(tiny_base(), members, [task], with_base=False)

    def refuse(*_: Any) -> Iterator[None]:
        raise SHORTAGES[0]

    monkeypatch.setattr(live, "_sum", refuse)
    monkeypatch.setattr(LiveStack, "worthwhile", lambda *_: True)
    (result,) = evaluate(tiny_base(), members, [task], with_base=False)
    assert isinstance(result, TaskScore)
    assert isinstance(complete, TaskScore)
    assert result.loss == pytest.approx(complete.loss, abs=1e-5)


def test_sums_of_a_gradient_that_do_not_fit_are_one_sentence(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    from merging.learning import gradients as gradient

    def refuse(*_: Any) -> None:
        raise SHORTAGES[0]

    monkeypatch.setattr(gradient._SketchSums, "add", refuse)
    with pytest.raises(MemoryLimitError, match="The gradient of the task does not fit into memory"):
        task_gradient(tiny_base(), some_prompts(2, 20, 22))


@pytest.mark.parametrize("kind", ["llama", "mpt"])
def test_the_way_of_reading_is_tried_with_trees_that_fit(kind: str) -> None:
    prompts = some_prompts(4, 20, 22)
    base = narrow(architecture(kind), 90)
    check_reading(base, prompts)
    assert (base.reading.right > 0) is (kind == "llama")
    assert reads_plainly(base, prompts) is (kind == "mpt")
    # Where not even two prompts fit, nothing is known, and nothing is said.
    base = narrow(architecture(kind), 10)
    check_reading(base, prompts)
    assert (base.reading.right, base.reading.depends_on_order) == (0, False)


def test_what_did_not_fit_is_not_tried_again() -> None:
    record, tried = MemoryRecord(), []

    def work(group: Any) -> int:
        tried.append(len(group))
        if len(group) > 2:
            raise MemoryError
        return sum(group)

    sizes = Sizes(record, "sums", len)
    for _ in range(2):
        assert [total for _, total in in_pieces([[1, 2, 3, 4], [5, 6, 7]], work, str, sizes)] == [3, 7, 5, 13]
    assert tried == [4, 2, 2, 3, 1, 2, 2, 2, 1, 2]
    assert record.refused == {"sums": 3}
    assert not record.fits("sums", 4)
    assert record.fits("others", 4)


@pytest.mark.parametrize(
    ("free", "probes", "tokens"),
    [
        # 1 MB a token: 70 % of 8 GB are 5,600 tokens, of 800 MB 560.
        (8_000_000_000, [(256, 256_000_000), (1024, 1_024_000_000)], 4096),
        (4_000_000_000, [(256, 256_000_000), (1024, 1_024_000_000)], 2048),
        (800_000_000, [(256, 256_000_000), (1024, 1_024_000_000)], 512),
        # 1,000 n^2 bytes: the root of 2.8e6 is 1,673; with 1 MB a token besides, 1,247 and 1,010.
        (4_000_000_000, [(256, 65_536_000), (1024, 1_048_576_000)], 1024),
        (4_000_000_000, [(256, 256_000_000 + 65_536_000), (1024, 1_024_000_000 + 1_048_576_000)], 1024),
        (2_900_000_000, [(256, 256_000_000 + 65_536_000), (1024, 1_024_000_000 + 1_048_576_000)], 512),
        # A peak that grows more slowly than the tokens counts as the larger one of each.
        (1_000_000_000, [(256, 256_000_000), (1024, 512_000_000)], 512),
        (1_000, [(256, 256_000_000), (1024, 1_024_000_000)], 64),
        (0, [(256, 1), (1024, 4)], 64),
        (1_000, [(256, 0), (1024, 0)], 4096),
    ],
)
def test_a_size_follows_from_free_memory_and_two_peaks(
    free: int, probes: list[tuple[int, int]], tokens: int
) -> None:
    assert fitting_tokens(free, probes, 4096) == tokens


def test_a_gpu_is_measured_once_for_each_kind_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the readings of a device that is not there."""
    base: Any = SimpleNamespace(device=torch.device("cuda"), memory=MemoryRecord())
    asked: list[int] = []
    monkeypatch.setattr(sizing, "peak_bytes", lambda _base, read: read() or 1_000_000 * asked[-1])
    monkeypatch.setattr(sizing, "free_bytes", lambda _: 1_000_000_000)
    assert [sizing.batch_tokens(base, "reading", asked.append) for _ in range(2)] == [512, 512]
    assert asked == [256, 1024]
    monkeypatch.setattr(sizing, "free_bytes", lambda _: 100_000_000_000)
    assert sizing.batch_tokens(base, "generation", asked.append) == 65536
    assert base.memory.sizes == {"reading": 512, "generation": 65536}

    def fail(_tokens: int) -> None:
        raise SHORTAGES[0]

    base.memory.sizes.clear()
    assert sizing.batch_tokens(base, "reading", fail) == 64
    assert sizing.batch_tokens(tiny_base(), "reading", fail) == sizing.FIXED["reading"]


@pytest.mark.parametrize("tokens", [256, 1024])
def test_what_is_read_to_measure_memory_has_its_size(tokens: int) -> None:
    base, counts = tiny_base(), []
    hook = lambda _module, _inputs, named: counts.append(named["input_ids"].numel())  # noqa: E731
    base.model.register_forward_pre_hook(hook, with_kwargs=True)
    scoring._read_probe(base, tokens)
    generation._read_probe(base, tokens)
    assert counts == pytest.approx([tokens, tokens], abs=1)


def test_layers_that_are_computed_again_give_the_same_gradients() -> None:
    prompts = some_prompts(3, 10, 12)
    for kind in ("llama", "opt", "gpt2"):
        base = architecture(kind)
        weight = next(iter(base.model.parameters())).requires_grad_(True)
        gradients_of = []
        for again in (False, True):
            base.memory.checkpointing, weight.grad = again, None
            gradients(base, prompts, base.model.zero_grad)
            gradients_of.append(weight.grad)
        assert torch.equal(*gradients_of), kind
        assert not any("forward" in layer.__dict__ for layer in base.model.modules())


def test_memory_is_saved_before_batches_are_halved_and_once_for_all_steps(tmp_path: Path, task: Task) -> None:
    base = tiny_base()
    refusals: list[bool] = []

    def refuse(_module: Any, _words: Any, by_name: dict[str, Any]) -> None:
        if by_name["input_ids"].numel() > 40 and torch.is_grad_enabled():
            refusals.append(base.memory.checkpointing)
            raise SHORTAGES[0]

    base.model.register_forward_pre_hook(refuse, with_kwargs=True)
    settings: Any = {"learning_rates": [1e-2], "steps": 4, "batch": 4, "rank": 2}
    report = train(base, task, budget(task, 10), tmp_path / "out", **settings)
    # With stored layers, computed again, and perhaps once more in half: never in a later step.
    assert refusals[:2] == [False, True]
    assert len(refusals) <= 3
    assert report.record["gradient_checkpointing"] is True
