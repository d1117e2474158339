"""Training: the loss falls, the base stays, the best rate wins, and what is stored is what was trained."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from catalog.adapters import CONFIG_NAME, WEIGHTS_NAME
from catalog.errors import EvaluationError, MergeError, UsageError
from merging.evaluation import losses
from merging.learning.course import Recipe, batches, gradients, run, set_seeds, valid_loss
from merging.learning.training import TRAIN_RECORD, TrainingSettings, TrainReport, default_rates, train
from merging.learning.variants import VARIANTS, adapt_model, difference, factors, optimiser
from merging.members import load_member, read_module
from merging.model import ExampleBudget, LoadedBase, Prompt, Task, budget, encode, read_task
from tests.merging.tiny import tiny_base, write_task

peft = pytest.importorskip("peft")

# PEFT 0.21 asks a model of transformers 5.23 for an attribute by its old name; training itself silences that.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
ROOT = Path(__file__).parents[2]
ROWS = [(f"item {number}", "yes" if number % 3 else "no") for number in range(24)]
# Trains two rates and kills itself in the first step of the second one.
KILLED = """
import os, signal, sys
from pathlib import Path
from tests.merging.test_train import quick
def progress(done, total):
    if done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)
quick(Path(sys.argv[1]), Path(sys.argv[2]), learning_rates=[1e-3, 1e-2], progress=progress)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("tasks") / "thirds", ROWS)


@pytest.fixture(scope="module")
def task(folder: Path) -> Task:
    return read_task(folder)


def drawn(task: Task) -> ExampleBudget:
    return budget(task, 10)


def quick(folder: Path, out: Path, base: LoadedBase | None = None, **arguments: Any) -> TrainReport:
    """A training of a second: rank 4, six steps of four examples, in float32."""
    task = read_task(folder)
    settings: dict[str, Any] = {
        "rank": 4,
        "steps": 6,
        "batch": 4,
        "evaluate_every": 2,
        "dtype": "float32",
        "learning_rates": [5e-3],
    }
    return train(base or tiny_base(), task, drawn(task), out, **{**settings, **arguments})


def logits(model: Any, task: Task, base: LoadedBase) -> Tensor:
    """What the model says to a fixed text."""
    with torch.no_grad():
        tokens = torch.tensor([encode(base.tokenizer, task, drawn(task).valid, 512)[0].question])
        result: Tensor = model(tokens).logits
        return result.clone()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def timeless(folder: Path) -> dict[str, Any]:
    """train.json without what a clock has measured."""
    document: dict[str, Any] = json.loads((folder / TRAIN_RECORD).read_text())
    for item in (document, *document["rates"]):
        del item["seconds"]
    return document


@contextmanager
def assert_unchanged(base: LoadedBase) -> Iterator[None]:
    """Asserts that the base is what it was: modules, bits, flags, modes, attributes."""

    def state() -> list[Any]:
        model = base.model
        return [
            [(name, id(module), module.training) for name, module in model.named_modules()],
            [(name, item.requires_grad, item.grad) for name, item in model.named_parameters()],
            sorted(vars(model)),
            [item.numpy().tobytes() for item in model.state_dict().values()],
        ]

    before = state()
    yield
    assert state() == before


@pytest.mark.slow
def test_the_loss_falls_and_the_lowest_one_is_chosen(folder: Path, tmp_path: Path) -> None:
    report = quick(folder, tmp_path / "out", steps=20, learning_rates=[1e-5, 1e-3, 2e-2])
    document = report.record
    result = {rate["learning_rate"]: rate["valid_loss"] for rate in document["rates"]}
    assert report.learning_rate == min(result, key=result.__getitem__) == document["learning_rate"]
    assert [rate["learning_rate"] for rate in document["rates"] if rate["chosen"]] == [report.learning_rate]
    assert report.valid_loss < result[1e-5] < document["valid_loss_before"]
    assert report.valid_loss < 0.8 * document["valid_loss_before"]
    for rate in document["rates"]:
        assert rate["valid_loss"] == min(measure["valid"] for measure in rate["losses"])
        assert [measure["step"] for measure in rate["losses"]] == list(range(2, 21, 2))
    assert document == json.loads((tmp_path / "out" / TRAIN_RECORD).read_text())


@pytest.mark.slow
def test_the_best_rate_at_an_edge_is_told(folder: Path, tmp_path: Path) -> None:
    assert quick(folder, tmp_path / "a", learning_rates=[1e-5, 5e-3]).record["edge"] == "highest"
    assert quick(folder, tmp_path / "b", learning_rates=[5e-3]).record["edge"] is None
    assert quick(folder, tmp_path / "c", learning_rates=[1e-5, 5e-3, 1e6]).record["edge"] is None


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_the_base_is_as_it_was(variant: str, folder: Path, tmp_path: Path) -> None:
    base = tiny_base()
    with assert_unchanged(base):
        quick(folder, tmp_path / "out", base, variant=variant, steps=2, dropout=0.1)


@pytest.mark.parametrize("error", [EvaluationError("no"), KeyboardInterrupt(), torch.OutOfMemoryError("no")])
@pytest.mark.parametrize("variant", ["lora", "olora", "lora-ga"])
def test_the_base_is_as_it_was_after_an_error(
    variant: str, error: BaseException, folder: Path, tmp_path: Path
) -> None:
    base, calls = tiny_base(), 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise error

    base.model.register_forward_hook(fail)
    with assert_unchanged(base), pytest.raises((EvaluationError, KeyboardInterrupt)):
        quick(folder, tmp_path / "out", base, variant=variant)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_plain_peft_reads_what_was_trained(variant: str, folder: Path, task: Task, tmp_path: Path) -> None:
    """The trained model itself is made a second time, step by step, and asked in memory."""
    base, row, remaining = tiny_base(), VARIANTS[variant], []
    report = quick(folder, tmp_path / "out", base, variant=variant, steps=2, learning_rates=[2e-3])
    recipe = Recipe(steps=2, batch=4, evaluate_every=2)
    prompts = [encode(base.tokenizer, task, part, 512) for part in (drawn(task).train, drawn(task).valid)]
    config = peft.LoraConfig(r=4, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")

    def first() -> None:
        gradients(base, next(batches(prompts[0], recipe)), base.model.zero_grad)

    with set_seeds(0, base), adapt_model(base.model, row, config, first) as model:
        course = run(
            base,
            optimiser(row, model, 2e-3),
            2e-3,
            recipe,
            *prompts,
            better=lambda: remaining.append(logits(base.model, task, base)),
        )
    assert course.valid_loss == report.record["rates"][0]["valid_loss"]
    plain = peft.PeftModel.from_pretrained(tiny_base().model, tmp_path / "out")
    torch.testing.assert_close(logits(plain, task, base), remaining[-1], rtol=1e-4, atol=1e-4)
    moved = (remaining[-1] - logits(tiny_base().model, task, base)).abs().max()
    assert moved > 100 * (logits(plain, task, base) - remaining[-1]).abs().max()


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_what_is_mergeable_is_a_member(variant: str, folder: Path, task: Task, tmp_path: Path) -> None:
    quick(folder, tmp_path / "out", variant=variant, steps=2)
    if not VARIANTS[variant].mergeable:
        with pytest.raises(MergeError, match="cannot be merged"):
            load_member(tmp_path / "out")
        return
    member, base = load_member(tmp_path / "out"), tiny_base()
    assert len(member.modules) == 14
    for name, module in member.modules.items():
        a, b = read_module(member, name)
        base.model.get_submodule(name).weight.add_(module.scaling * b @ a)
    plain = peft.PeftModel.from_pretrained(tiny_base().model, tmp_path / "out")
    torch.testing.assert_close(logits(base.model, task, base), logits(plain, task, base))


def test_three_steps_are_those_of_adamw_by_hand(task: Task) -> None:
    """B A added to W by hand, gradients by autograd, AdamW and the cosine by their formulas, in float64."""
    base = tiny_base(dtype=torch.float64)
    prompts = encode(base.tokenizer, task, drawn(task).train, 512)
    recipe, rate = Recipe(steps=3, batch=4, evaluate_every=3), 0.01
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["down_proj"], task_type="CAUSAL_LM")
    with set_seeds(0, base), adapt_model(base.model, VARIANTS["lora"], config, lambda: None) as model:
        ours = {name: item.requires_grad_() for name, item in factors(model).items()}
        run(base, optimiser(VARIANTS["lora"], model, rate), rate, recipe, prompts, prompts)
        theirs = factors(model)
    layers = [base.model.model.layers[number].mlp.down_proj for number in (0, 1)]
    weights = [layer.weight.data.clone() for layer in layers]
    momenta = {name: (torch.zeros_like(item), torch.zeros_like(item)) for name, item in ours.items()}
    for step, batch in enumerate(batches(prompts, recipe), 1):
        for number, layer in enumerate(layers):
            stem = f"base_model.model.model.layers.{number}.mlp.down_proj.lora_"
            del layer.weight
            layer.weight = weights[number] + 3 * ours[f"{stem}B.weight"] @ ours[f"{stem}A.weight"]
        result = torch.autograd.grad(losses(base, batch)[0].mean(), list(ours.values()))
        norm = math.sqrt(sum(float(item.square().sum()) for item in result))
        now = rate * (1 + math.cos(math.pi * (step - 1) / 3)) / 2
        for (name, values), gradient in zip(ours.items(), result, strict=True):
            g = gradient * min(1.0, 1.0 / (norm + 1e-6))
            m, v = momenta[name]
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g.square())
            change = (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
            values.data -= now * change
    for name, values in ours.items():
        assert theirs[name].abs().max() > 0.005
        torch.testing.assert_close(theirs[name], values.detach().to(theirs[name].dtype), rtol=1e-6, atol=1e-9)


def test_a_difference_is_exact_and_survives_bfloat16() -> None:
    """A small update beside a large start: PEFT's [A; A0] and [B, -B0] lose it when they are rounded."""
    torch.manual_seed(0)
    start = {"x.lora_A.weight": torch.randn(3, 40), "x.lora_B.weight": torch.randn(30, 3)}
    now = {name: item + 1e-3 * torch.randn_like(item) for name, item in start.items()}

    def product(pair: dict[str, Tensor]) -> Tensor:
        return pair["x.lora_B.weight"].double() @ pair["x.lora_A.weight"].double()

    def rounded(pair: dict[str, Tensor]) -> Tensor:
        return product({name: item.bfloat16() for name, item in pair.items()})

    true = product(now) - product(start)
    result = difference(now, start)
    assert [tuple(item.shape) for item in result.values()] == [(6, 40), (30, 6)]
    joined = {
        "x.lora_A.weight": torch.cat([now["x.lora_A.weight"], start["x.lora_A.weight"]]),
        "x.lora_B.weight": torch.cat([now["x.lora_B.weight"], -start["x.lora_B.weight"]], dim=1),
    }
    assert float((product(result) - true).norm() / true.norm()) < 1e-5
    assert float((rounded(result) - true).norm() / true.norm()) < 5e-3
    assert float((rounded(joined) - true).norm() / true.norm()) > 0.5


def test_a_layer_narrower_than_the_difference_keeps_its_shape() -> None:
    torch.manual_seed(1)
    start = {"x.lora_A.weight": torch.randn(3, 4), "x.lora_B.weight": torch.randn(5, 3)}
    now = {name: torch.randn_like(item) for name, item in start.items()}
    result = difference(now, start)
    assert [tuple(item.shape) for item in result.values()] == [(6, 4), (5, 6)]
    true = (
        now["x.lora_B.weight"] @ now["x.lora_A.weight"] - start["x.lora_B.weight"] @ start["x.lora_A.weight"]
    )
    torch.testing.assert_close(result["x.lora_B.weight"] @ result["x.lora_A.weight"], true)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_the_same(folder: Path, tmp_path: Path) -> None:
    out, complete = tmp_path / "out", tmp_path / "whole"
    command = [sys.executable, "-c", KILLED, str(folder), str(out)]
    ended = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert not out.exists()
    document: list[int] = []
    quick(folder, out, learning_rates=[1e-3, 1e-2], progress=lambda done, _: document.append(done))
    assert document == [6, 7, 8, 9, 10, 11, 12, 12]
    quick(folder, complete, learning_rates=[1e-3, 1e-2])
    assert sorted(contents(out)) == ["README.md", CONFIG_NAME, WEIGHTS_NAME, TRAIN_RECORD]
    for name in ("README.md", CONFIG_NAME, WEIGHTS_NAME):
        assert contents(out)[name] == contents(complete)[name]
    assert timeless(out) == timeless(complete)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "whole"}


@pytest.mark.parametrize("finished", [True, False])
def test_rates_of_a_run_that_was_killed_at_its_very_end_go(
    folder: Path, tmp_path: Path, finished: bool
) -> None:
    out, working = tmp_path / "out", tmp_path / ".out.training"
    quick(folder, out)
    before = contents(out)
    working.mkdir()
    if finished:
        (working / "finished").touch()
    with pytest.raises(UsageError, match="overwrite"):
        quick(folder, out)
    assert working.exists() is not finished
    assert contents(out) == before


def failing(base: LoadedBase, calls: int) -> Callable[[], None]:
    """Interrupts the model at that forward pass; what is returned ends that."""
    left = [calls]

    def count(*_: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    handle = base.model.register_forward_hook(count)
    return lambda: handle.remove()


@pytest.mark.slow
def test_rates_of_other_settings_do_not_count(folder: Path, tmp_path: Path) -> None:
    """The run that is left behind had another seed: nothing of it is used."""
    base = tiny_base()
    # How it reads is known, so that no pass is made to find out.
    base.reading.right = base.limit
    end = failing(base, 14)
    with pytest.raises(KeyboardInterrupt):
        quick(folder, tmp_path / "out", base, learning_rates=[1e-3, 1e-2], seed=7)
    end()
    assert (tmp_path / ".out.training" / "rate-0.001" / "rate.json").is_file()
    document: list[int] = []
    quick(
        folder, tmp_path / "out", learning_rates=[1e-3, 1e-2], progress=lambda done, _: document.append(done)
    )
    quick(folder, tmp_path / "clean", learning_rates=[1e-3, 1e-2])
    assert document[:3] == [1, 2, 3]
    assert timeless(tmp_path / "out") == timeless(tmp_path / "clean")


def test_a_rate_that_diverges_is_recorded_and_not_chosen(folder: Path, tmp_path: Path) -> None:
    report = quick(folder, tmp_path / "out", learning_rates=[1e-3, 1e6])
    bad = report.record["rates"][1]
    assert report.learning_rate == 1e-3
    assert bad["learning_rate"] == 1e6
    assert 1 <= bad["diverged"] == bad["steps"] <= 6
    assert not bad["chosen"]


def test_where_every_rate_diverges_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="every learning rate, the lowest 1e\\+06; choose lower ones"):
        quick(folder, tmp_path / "out", learning_rates=[1e6, 1e8])
    assert not (tmp_path / "out").exists()


def test_the_same_call_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        quick(folder, tmp_path / name, dropout=0.2, dtype="bfloat16", seed=seed)
    first, second, other = (contents(tmp_path / name) for name in "abc")
    assert first[WEIGHTS_NAME] == second[WEIGHTS_NAME] != other[WEIGHTS_NAME]
    assert first[CONFIG_NAME] == second[CONFIG_NAME] == other[CONFIG_NAME]
    assert timeless(tmp_path / "a") == timeless(tmp_path / "b")


def test_the_generator_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    base = tiny_base()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    quick(folder, tmp_path / "out", base, dropout=0.2)
    assert torch.equal(torch.rand(3), expected)


def test_dropout_changes_what_is_trained(folder: Path, tmp_path: Path) -> None:
    plain, dropped = quick(folder, tmp_path / "a"), quick(folder, tmp_path / "b", dropout=0.5)
    assert plain.record["rates"][0]["losses"] != dropped.record["rates"][0]["losses"]


def test_the_loss_told_is_that_of_the_rounded_adapter(folder: Path, task: Task, tmp_path: Path) -> None:
    report, base = quick(folder, tmp_path / "out", dtype="bfloat16"), tiny_base()
    valid = encode(base.tokenizer, task, drawn(task).valid, 512)
    peft.PeftModel.from_pretrained(base.model, tmp_path / "out")
    assert report.valid_loss == pytest.approx(valid_loss(base, valid), abs=1e-6)
    assert report.valid_loss != report.record["rates"][0]["valid_loss"]


def test_a_bfloat16_base_is_trained_by_float32_factors(folder: Path, tmp_path: Path) -> None:
    base = tiny_base(dtype=torch.bfloat16)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with adapt_model(base.model, VARIANTS["lora"], config, lambda: None) as model:
        assert {factor.dtype for factor in factors(model).values()} == {torch.float32}
    report = quick(folder, tmp_path / "out", base, steps=20, learning_rates=[2e-2])
    assert report.valid_loss < 0.8 * report.record["valid_loss_before"]


def test_patience_ends_a_rate(folder: Path, tmp_path: Path) -> None:
    """At this rate the loss rises soon; the state before that is kept."""
    settings: dict[str, Any] = {"steps": 40, "evaluate_every": 1, "learning_rates": [0.1]}
    item = quick(folder, tmp_path / "a", patience=2, **settings).record["rates"][0]
    assert item["steps"] < 40
    assert item["steps"] == item["best_step"] + 2
    last = [measure["valid"] for measure in item["losses"]][-3:]
    assert last[0] == min(last) == item["valid_loss"]


def test_every_round_of_batches_has_every_example_once() -> None:
    prompts = [Prompt((number,), ((0,),), 0) for number in range(7)]
    recipe = Recipe(steps=14, batch=3, seed=5)
    result = [list(batch) for batch in batches(prompts, recipe)]
    requests = [prompt.question[0] for batch in result for prompt in batch]
    assert [len(batch) for batch in result] == [3] * 14
    assert all(sorted(requests[at : at + 7]) == list(range(7)) for at in range(0, 42, 7))
    assert requests[:7] != requests[7:14]
    assert result == [list(batch) for batch in batches(prompts, recipe)]
    assert result != [list(batch) for batch in batches(prompts, Recipe(steps=14, batch=3, seed=6))]


def narrow(base: LoadedBase, most: int) -> None:
    """A model that runs out of memory where a tree has more than `most` tokens."""

    def refuse(_module: Any, _words: Any, by_name: dict[str, Any]) -> None:
        if by_name["input_ids"].shape[1] > most:
            raise torch.OutOfMemoryError("out of memory")

    base.model.register_forward_pre_hook(refuse, with_kwargs=True)


def test_where_memory_is_short_the_gradient_is_the_same(task: Task) -> None:
    result = []
    for most in (10_000, 90):
        base = tiny_base(dtype=torch.float64)
        prompts = encode(base.tokenizer, task, drawn(task).train, 512)
        narrow(base, most)
        weight = base.model.model.layers[0].mlp.up_proj.weight.requires_grad_()
        result.append((gradients(base, prompts, base.model.zero_grad), weight.grad))
    (loss, complete), (other, parts) = result
    assert loss == pytest.approx(other, rel=1e-12)
    torch.testing.assert_close(parts, complete)


def test_a_prompt_that_does_not_fit_is_told(folder: Path, tmp_path: Path) -> None:
    base = tiny_base()

    def refuse(*_: Any) -> None:
        if torch.is_grad_enabled():
            raise torch.OutOfMemoryError("out of memory")

    base.model.register_forward_pre_hook(refuse)
    with assert_unchanged(base), pytest.raises(EvaluationError, match=r"Training on a prompt of \d+ tokens"):
        quick(folder, tmp_path / "out", base)


def settings(rank: int = 128, alpha: float | None = None, variant: str = "lora") -> TrainingSettings:
    return TrainingSettings(rank, alpha or rank, "all-linear", variant, 0.0, "bfloat16", Recipe())


def test_default_rates_lie_on_the_grid_around_the_best_of_the_paper() -> None:
    """The grid of "Learning Rate Matters" as printed there; 2e-4 was best at rank 128, alpha = r."""
    assert default_rates(settings()) == (1.1247e-4, 2e-4, 3.5566e-4, 6.3246e-4)
    assert default_rates(settings(16)) == (2e-4, 3.5566e-4, 6.3246e-4, 1.1247e-3)
    # From rank 256 to rank 4 the best rate rises by 5.6, rounded to two or three points of the grid.
    low, high = default_rates(settings(256))[0], default_rates(settings(4))[0]
    assert 10**0.5 * 0.999 < high / low < 10**0.75 * 1.001
    # Twice the scaling is half the rate, to the next point of the grid.
    assert default_rates(settings(16, 32))[0] in (1.1247e-4, 6.3246e-5)
    assert default_rates(settings(variant="pissa"))[0] == pytest.approx(1.1247e-5)
    rooted = default_rates(settings(16, variant="rslora"))[0]
    assert default_rates(settings(16))[0] / rooted == pytest.approx(4, rel=0.5)


@pytest.mark.parametrize("rank", [1, 4, 64, 1024])
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_default_rates_are_four_a_decade(variant: str, rank: int) -> None:
    rates = default_rates(settings(rank, variant=variant))
    assert len(rates) == 4
    for low, high in itertools.pairwise(rates):
        assert high / low == pytest.approx(10**0.25, rel=1e-3)


def test_a_budget_smaller_than_a_batch_trains(folder: Path, task: Task, tmp_path: Path) -> None:
    few = budget(task, 5)
    report = train(tiny_base(), task, few, tmp_path / "out", rank=2, steps=2, batch=8, learning_rates=[1e-3])
    assert report.record["budget"] == {"train": 4, "valid": 1, "seed": 0}
    with pytest.raises(UsageError, match="24 training examples, fewer than the requested 100"):
        budget(task)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"variant": "lola"}, "Unknown variant 'lola'; choose one of lora, rslora"),
        ({"rank": 0}, "rank must be at least 1, not 0"),
        ({"alpha": 0.0}, "alpha must be a positive number, not 0"),
        ({"alpha": float("nan")}, "positive number, not nan"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"batch": 0}, "batch must be at least 1, not 0"),
        ({"patience": 0}, "patience must be at least 1, not 0"),
        ({"dropout": 1.0}, "below 1, not 1.0"),
        ({"dtype": "int8"}, "data type must be one of"),
        ({"targets": []}, "Name the modules"),
        ({"targets": ["nope_proj"]}, "An adapter of the variant lora cannot be created: .*nope_proj"),
        ({"learning_rates": []}, "earning rates must be positive numbers"),
        ({"learning_rates": [0.0]}, "earning rates must be positive numbers"),
        ({"learning_rates": [math.inf]}, "earning rates must be positive numbers"),
        ({"variant": "orthogonal", "rank": 3}, "An adapter of the variant orthogonal"),
        ({"variant": "pissa", "rank": 20}, "only 16 singular vectors for the rank 20"),
    ],
)
def test_settings_that_make_no_sense(given: dict[str, Any], words: str, folder: Path, tmp_path: Path) -> None:
    base = tiny_base()
    with assert_unchanged(base), pytest.raises(UsageError, match=words):
        quick(folder, tmp_path / "out", base, **given)
    assert not (tmp_path / "out").exists()


def test_only_a_training_is_overwritten(folder: Path, tmp_path: Path) -> None:
    quick(folder, tmp_path / "out", steps=1)
    with pytest.raises(UsageError, match="exists; use another"):
        quick(folder, tmp_path / "out", steps=2)
    assert quick(folder, tmp_path / "out", steps=2, overwrite=True).record["rates"][0]["steps"] == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    with pytest.raises(UsageError, match="not overwritten"):
        quick(folder, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "notes").read_text() == "mine"


def test_named_modules_alone_are_trained(folder: Path, tmp_path: Path) -> None:
    quick(folder, tmp_path / "out", targets=["v_proj", "q_proj"], alpha=8)
    member = load_member(tmp_path / "out")
    assert {name.rpartition(".")[2] for name in member.modules} == {"q_proj", "v_proj"}
    assert {module.scaling for module in member.modules.values()} == {2.0}
    assert json.loads((tmp_path / "out" / CONFIG_NAME).read_text())["target_modules"] == ["q_proj", "v_proj"]


def test_all_linear_layers_are_named_shortly(folder: Path, tmp_path: Path) -> None:
    quick(folder, tmp_path / "out", steps=1)
    config = json.loads((tmp_path / "out" / CONFIG_NAME).read_text())
    assert config["target_modules"] == [
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ]
    assert config["base_model_name_or_path"] == "tests/tiny-llama"


def test_the_card_says_what_was_measured(folder: Path, tmp_path: Path) -> None:
    report = quick(folder, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert load_member(tmp_path / "out").license == "cc0-1.0"
    assert text.startswith('---\nbase_model: "tests/tiny-llama"\nlibrary_name: "peft"\n')
    assert f"| base model alone | {report.record['valid_loss_before']:.4f} |" in text
    assert f"| with this adapter | {report.valid_loss:.4f} |" in text
    assert "Trained by loradex on 8 examples of the task thirds" in text


@pytest.mark.parametrize(
    ("terms", "licence"),
    [
        ("MIT", "mit"),
        ("CC BY 4.0", "cc-by-4.0"),
        ("CC BY-NC-SA 3.0", "cc-by-nc-sa-3.0"),
        ("MIT (the repository; terms of the data not checked)", None),
        ("unknown", None),
    ],
)
def test_a_licence_is_named_where_it_is_one(terms: str, licence: str | None, tmp_path: Path) -> None:
    where = write_task(tmp_path / "task", ROWS)
    document = json.loads((where / "task.json").read_text()) | {"license": terms, "source": "x`\n# Pat's <b>"}
    (where / "task.json").write_text(json.dumps(document))
    quick(where, tmp_path / "out", steps=1)
    assert load_member(tmp_path / "out").license == licence
    text = (tmp_path / "out" / "README.md").read_text()
    assert ("\nlicense:" in text) == (licence is not None)
    assert "* Data: x? ? Pat's ?b?\n" in text
