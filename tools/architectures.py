"""What works for which architecture, tried on tiny random models: `python -m tools.architectures` writes it.

Every cell is run and its numbers compared with those of plain PEFT, or of the model with the dense updates
added to its weights: a cell says "yes" only where they agree. The outcomes are kept in `architectures.json`
beside this file, from which the page docs/reference/architectures.md is made; a test tries a few again and
compares. With names of architectures only these are tried.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from catalog.errors import LoradexError
from merging.evaluation import TaskScore, ask, losses
from merging.evaluation.scores import evaluate
from merging.learning import adapt, train, wear_adapter
from merging.learning.gradients import task_gradient
from merging.live import LiveStack
from merging.members import load_member
from merging.model import LoadedBase, Task, budget, encode, examples, is_conv1d, quiet, read_task
from merging.static import apply_to, carry_out, plan
from tests.merging.adapters import deltas
from tests.merging.architectures import KINDS, architecture, plain_likelihoods
from tests.merging.tiny import save_base, write_task

RECORD = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).parents[1] / "docs" / "reference" / "architectures.md"
ROWS = [(f"{letter}{number}", ("yes", "no")[number % 2]) for number in range(4) for letter in "abc"]
SETTINGS: Any = {"learning_rates": [1e-2], "steps": 1, "batch": 2, "rank": 2, "dtype": "float32"}
TOKENS = torch.arange(3, 23).reshape(2, 10)
# The largest difference, relative to what the adapter changes: numbers are float32.
CLOSE = 1e-2
_STEP = 1e-3
YES = "yes"
NONE = "none"
_INTRODUCTION = """\
# Architectures

What works for which architecture of transformers, by its `model_type`. `python -m tools.architectures` wrote
this page: it runs every cell on a tiny random model, and compares the numbers with those of plain PEFT, or of
dense updates ({libraries}; float32 on a CPU).

`train` is with `all-linear`, and the other columns are of the adapter that it makes. `gradient` is the
strategy of `select`, and `apply` folds the adapter into the weights of the base model. `experts` is
`evaluate` of an adapter of stacked experts (PEFT's `target_parameters`), where the model has such.
`one expert` is `apply` of an adapter of one expert's layer, where checkpoints have a tensor for each; beside
the loaded model, whose experts are one tensor, such an adapter is refused with a sentence.
"""


@dataclass(frozen=True)
class Bench:
    """An architecture with two adapters of random factors, for the layers that `train` chose, and a task."""

    kind: str
    folder: Path
    task: Task
    adapters: Sequence[Path]

    def base(self) -> LoadedBase:
        """A new model, the same each time."""
        return architecture(self.kind)


def logits(model: Any) -> Tensor:
    """The model's logits of some tokens."""
    with torch.no_grad():
        result: Tensor = model(TOKENS, attention_mask=torch.ones_like(TOKENS), use_cache=False).logits
    return result


def with_updates(bench: Bench, weights: Sequence[float]) -> Tensor:
    """The logits with the weighted dense updates of the adapters added to the layers' weights."""
    base = bench.base()
    for folder, weight in zip(bench.adapters, weights, strict=True):
        for name, update in deltas(folder).items():
            module = base.model.get_submodule(name)
            total = module.weight.double() + weight * (update.T if is_conv1d(module) else update)
            module.weight.data = total.to(module.weight.dtype)
    return logits(base.model)


def with_peft(base: LoadedBase, folder: Path) -> Tensor:
    """The logits with an adapter as plain PEFT loads it."""
    with wear_adapter(base, folder):
        return logits(base.model)


def require(condition: bool, what: str) -> None:
    """Raises AssertionError with the text unless the condition holds."""
    if not condition:
        raise AssertionError(what)


def require_close(bench: Bench, actual: Tensor, expected: Tensor) -> None:
    """Raises AssertionError where logits differ by more than rounding, for what the adapters change."""
    effect = float((expected - logits(bench.base().model)).abs().max())
    apart = float((actual - expected).abs().max())
    require(apart < CLOSE * effect, f"logits differ by {apart:.2g} where adapters change {effect:.2g}")


def try_evaluate(bench: Bench) -> str:
    """The loss of an adapter is that of plain PEFT, text by text."""
    return compare_losses(bench, bench.adapters[0])


def try_experts(bench: Bench) -> str:
    """The loss of an adapter of stacked experts, `target_parameters`, is that of plain PEFT."""
    base, folder = bench.base(), bench.folder / "experts"
    stacked = [name for name, item in base.model.named_parameters() if item.ndim == 3 and "experts" in name]
    if not stacked:
        return NONE
    config = LoraConfig(r=2, target_modules=[], target_parameters=stacked, task_type="CAUSAL_LM")
    get_peft_model(base.model, config).save_pretrained(str(folder))
    return compare_losses(bench, random_adapter(folder, bench.folder / "experts0", 0))


def try_one_expert(bench: Bench) -> str:
    """An adapter of a layer of one expert is folded into its weights, and refused beside the model."""
    base, folder = bench.base(), bench.folder / "one"
    source = save_base(base, bench.folder / "split")
    values = {
        name: tensor for file in source.glob("*.safetensors") for name, tensor in load_file(file).items()
    }
    layers = sorted(name for name in values if re.search(r"experts\.1\.\w+\.weight$", name))
    stacked = any(item.ndim == 3 and "experts" in name for name, item in base.model.named_parameters())
    if not layers or not stacked:
        return NONE
    path = layers[0].removesuffix(".weight")
    outer, inner = values[layers[0]].shape
    config = LoraConfig(r=2, target_modules=[path.rpartition(".")[2]], task_type="CAUSAL_LM")
    config.save_pretrained(str(folder))
    factors = {"lora_A": torch.zeros(2, inner), "lora_B": torch.zeros(outer, 2)}
    written = {f"base_model.model.{path}.{part}.weight": tensor for part, tensor in factors.items()}
    save_file(written, folder / "adapter_model.safetensors")
    adapter = random_adapter(folder, bench.folder / "one0", 0)
    (refusal,) = evaluate(base, [load_member(adapter)], [bench.task], limit=2, with_base=False)
    require("is a layer of one expert" in str(refusal), f"it is not refused: {refusal}")
    apply_to(source, adapter, bench.folder / "with_one")
    (update,) = deltas(adapter).values()
    expected = values | {layers[0]: (values[layers[0]].double() + update).to(values[layers[0]].dtype)}
    target = save_base(base, bench.folder / "expected")
    for file in target.glob("*.safetensors"):
        save_file({name: expected[name] for name in load_file(file)}, file, metadata={"format": "pt"})
    models: list[Any] = []
    for place in (bench.folder / "with_one", target):
        with quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
        models.append(model.eval())
    require_close(bench, *map(logits, models))
    return YES


def compare_losses(bench: Bench, folder: Path) -> str:
    """The mean loss of an adapter on some examples is that of plain PEFT, text by text."""
    member = load_member(folder, peft_layers=True)
    plain, score = evaluate(bench.base(), [member], [bench.task], limit=4)
    if isinstance(score, LoradexError):
        raise score
    assert isinstance(score, TaskScore)
    assert isinstance(plain, TaskScore)
    assert score.loss is not None
    assert plain.loss is not None
    base = bench.base()
    prompts = encode(base.tokenizer, bench.task, score_examples(bench), base.limit)
    with wear_adapter(base, folder):
        values = [-plain_likelihoods(base, prompt)[prompt.right] / len(prompt.target) for prompt in prompts]
    apart = abs(score.loss - sum(values) / len(values))
    effect = abs(score.loss - plain.loss)
    require(apart < CLOSE * effect, f"the loss differs by {apart:.2g} where the adapter changes {effect:.2g}")
    return YES


def score_examples(bench: Bench) -> Sequence[Any]:
    """The examples that `evaluate` draws."""
    from merging.model import draw

    return draw(bench.task, "test", 4, seed=0)


def try_adapt(bench: Bench) -> str:
    """Coefficients learn, and the average that is written is that of the dense updates."""
    members, some = [load_member(folder) for folder in bench.adapters], budget(bench.task, 6)
    adapt(bench.base(), members, bench.task, some, "recycling", steps=2, batch=2)
    adapt(bench.base(), members, bench.task, some, "average").write(bench.folder / "adapted", dtype="float32")
    require_close(bench, with_peft(bench.base(), bench.folder / "adapted"), with_updates(bench, [0.5, 0.5]))
    return YES


def try_gradient(bench: Bench) -> str:
    """A little of an adapter lowers the loss by as much as its product with the gradient says."""
    base, member = bench.base(), load_member(bench.adapters[0])
    prompts = ask(base, bench.task, examples(bench.task, "train")[:4]).prompts
    (expected,) = task_gradient(base, prompts, members=[member]).exact
    live = LiveStack(base.model, [member])

    def loss(weight: float) -> float:
        live.set_scales(live.scales_of([weight]))
        with live.attach(), torch.no_grad():
            return float(losses(base, prompts).double().mean())

    slope = (loss(-_STEP) - loss(_STEP)) / (2 * _STEP)
    apart = abs(slope - expected.raw)
    require(apart < 3 * CLOSE * abs(slope) + _STEP, f"{expected.raw:.4g}, not {slope:.4g}")
    return YES


def try_merge(bench: Bench) -> str:
    """PEFT loads the sum of two adapters, which is that of the dense updates."""
    carry_out(plan(list(bench.adapters), "sum", dtype="float32"), bench.folder / "merged")
    require_close(bench, with_peft(bench.base(), bench.folder / "merged"), with_updates(bench, [1, 1]))
    return YES


def try_apply(bench: Bench) -> str:
    """The model that the adapter was folded into is the model with the dense update."""
    source = save_base(bench.base(), bench.folder / "base")
    apply_to(source, bench.adapters[0], bench.folder / "folded")
    with quiet():
        folded: Any = AutoModelForCausalLM.from_pretrained(bench.folder / "folded", dtype=torch.float32)
    require_close(bench, logits(folded.eval()), with_updates(bench, [1, 0]))
    return YES


TRIALS: Mapping[str, Callable[[Bench], str]] = {
    "adapt": try_adapt,
    "evaluate": try_evaluate,
    "gradient": try_gradient,
    "merge": try_merge,
    "apply": try_apply,
    "experts": try_experts,
    "one expert": try_one_expert,
}
COLUMNS = ("train", *TRIALS)


def try_architecture(kind: str) -> dict[str, str]:
    """What each column says of an architecture: "yes", what it leaves out, or the error."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        task = read_task(write_task(folder / "task", ROWS))
        outcomes = {"train": outcome_of(partial(train_adapter, kind, task, folder / "trained"))}
        if not (folder / "trained").exists():
            return outcomes | dict.fromkeys(TRIALS, "no adapter")
        adapters = [random_adapter(folder / "trained", folder / f"random{seed}", seed) for seed in range(2)]
        bench = Bench(kind, folder, task, adapters)
        for column, trial in TRIALS.items():
            outcomes[column] = outcome_of(partial(trial, bench))
        return outcomes


def train_adapter(kind: str, task: Task, out: Path) -> str:
    """Trains an adapter for one step; what was left out."""
    report = train(architecture(kind), task, budget(task, 6), out, **SETTINGS)
    require(report.record["valid_loss"] != report.record["valid_loss_before"], "nothing was learned")
    left_out = report.record.get("untrained") or []
    return YES + (f", without {', '.join(left_out)}" if left_out else "")


def outcome_of(trial: Callable[[], str]) -> str:
    """What a trial says, or the first clause of the sentence with which it is refused."""
    try:
        return trial()
    except LoradexError as error:
        return "refused: " + str(error).partition(";")[0].rstrip(".")
    except Exception as error:
        text = next(iter(str(error).splitlines()), "")
        return f"fails: {type(error).__name__}: {text}"[:160]


def random_adapter(source: Path, target: Path, seed: int) -> Path:
    """A copy of an adapter with random factors."""
    target.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(source / "adapter_model.safetensors")
    drawn = {name: torch.randn(t.shape, generator=generator) * 0.1 for name, t in sorted(tensors.items())}
    save_file(drawn, target / "adapter_model.safetensors")
    (target / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    return target


def page(record: Mapping[str, Any]) -> str:
    """The page of docs/reference, from the record."""
    notes: dict[str, int] = {}
    rows = [f"| `{kind}` | {' | '.join(cells(row, notes))} |" for kind, row in record["rows"].items()]
    libraries = f"torch {record['torch']}, transformers {record['transformers']}, PEFT {record['peft']}"
    lines = [
        _INTRODUCTION.format(libraries=libraries),
        f"| architecture | {' | '.join(COLUMNS)} |",
        "|---|" + "---|" * len(COLUMNS),
        *rows,
    ]
    lines += ["", *(f"{number}. {text}" for text, number in notes.items())] if notes else []
    return "\n".join([*lines, ""])


def cells(row: Mapping[str, str], notes: dict[str, int]) -> Iterator[str]:
    """The cells of a row; what is more than a yes is a note below the table."""
    for column in COLUMNS:
        word, _, more = row[column].replace(", ", ": ", 1).partition(": ")
        if more:
            text = f"{word}: {more}" if word != YES else more
            yield f"{word} ({notes.setdefault(text[0].upper() + text[1:] + '.', len(notes) + 1)})"
        else:
            yield word


def versions() -> dict[str, str]:
    """The versions of the libraries that decide."""
    from importlib.metadata import version

    return {name: version(name).partition("+")[0] for name in ("torch", "transformers", "peft")}


def main(kinds: Sequence[str] = ()) -> None:
    """Tries the architectures, all by default, and writes the record and the page."""
    torch.set_num_threads(1)
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError):
        known = json.loads(RECORD.read_text("utf-8"))["rows"]
    for kind in kinds or KINDS:
        known[kind] = try_architecture(kind)
        sys.stdout.write(f"{kind} {json.dumps(known[kind])}\n")
    rows = {kind: known[kind] for kind in KINDS if kind in known}
    record = {**versions(), "rows": rows}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(record), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
