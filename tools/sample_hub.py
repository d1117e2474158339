"""The trained adapters of data/sample_hub, made anew: `python -m tools.sample_hub --tasks DIR --bases DIR`.

Each row of ADAPTERS is one training by `merging.learning` on a task whose data has an open licence, and one
repository of the sample Hub: configuration, weights, a card, and the dates and counters in `.hub.json`. A
finished training is kept below --work and is not repeated; the folders of the Hub are written again each
time. --measure asks each adapter about test examples of its task, in plain PEFT and in this program.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from catalog.adapters import CONFIG_NAME, WEIGHTS_NAME
from merging.evaluation import Measured, measure
from merging.learning.training import ALL_LINEAR, TRAIN_RECORD, loss_on_disk, train
from merging.learning.training_record import card as informative
from merging.live import LiveStack
from merging.members import load_member
from merging.model import LoadedBase, Task, budget, draw, encode, find_task, load_base

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB = Path(__file__).resolve().parents[1] / "data" / "sample_hub"
OWNER = "zoo"
STEPS = 40
TEST = 100
QV = ("q_proj", "v_proj")
QKVO = ("k_proj", "o_proj", "q_proj", "v_proj")
# As in the wild: described, only what the trainer was set to, or PEFT's template as it came.
Kind = Literal["informative", "hyperparameters", "template"]
# What `train` says of its own folder; a repository of the Hub has no such file.
_BESIDE = re.compile(r"\s+train\.json beside this file has [^.]*\.\s*\Z")


@dataclass(frozen=True, slots=True)
class SampleAdapter:
    """A repository of the sample Hub, and everything that its training depends on beside the data."""

    name: str
    task: str
    seed: int
    rank: int
    alpha: int
    targets: str | tuple[str, ...]
    learning_rate: float
    samples: int
    card: Kind
    variant: str = "lora"
    steps: int = STEPS


ADAPTERS: tuple[SampleAdapter, ...] = (
    SampleAdapter("banking77", "banking77", 13, 4, 8, QV, 2e-3, 400, "template", "rslora"),
    SampleAdapter("banking77-r2", "banking77", 31, 2, 4, ALL_LINEAR, 1e-3, 200, "informative"),
    SampleAdapter("banking77-seed104", "banking77", 104, 4, 8, QV, 2e-3, 400, "template", "rslora"),
    SampleAdapter("boolean-r16", "boolean_expressions", 52, 16, 16, QV, 2e-3, 100, "hyperparameters"),
    SampleAdapter("boolean_expressions", "boolean_expressions", 7, 4, 8, QKVO, 2e-3, 100, "informative"),
    SampleAdapter("clinc_oos", "clinc_oos", 4, 4, 8, ALL_LINEAR, 1e-3, 200, "template"),
    SampleAdapter("clinc_oos-r2", "clinc_oos", 36, 2, 4, QKVO, 2e-3, 200, "informative", "lora", 30),
    SampleAdapter("clinc_oos-r8", "clinc_oos", 71, 8, 8, QV, 2e-3, 200, "template"),
    SampleAdapter("colored_objects", "colored_objects", 20, 4, 8, QKVO, 2e-3, 100, "hyperparameters"),
    SampleAdapter(
        "colored_objects-r2", "colored_objects", 44, 2, 2, ALL_LINEAR, 2e-3, 100, "informative", "lora", 30
    ),
    SampleAdapter("disfl_qa", "disfl_qa", 16, 4, 8, ALL_LINEAR, 1e-3, 200, "informative"),
    SampleAdapter("disfl_qa-r2", "disfl_qa", 58, 2, 4, QKVO, 2e-3, 200, "hyperparameters", "lora", 30),
    SampleAdapter("disfl_qa-r8", "disfl_qa", 83, 8, 8, QV, 2e-3, 200, "template"),
    SampleAdapter("fig_qa", "fig_qa", 24, 8, 16, QV, 2e-3, 200, "template"),
    SampleAdapter("fig_qa-r4", "fig_qa", 67, 4, 4, QKVO, 2e-3, 200, "hyperparameters", "lora", 30),
    SampleAdapter(
        "hate_or_offensive", "hate_or_offensive", 33, 4, 4, QKVO, 1e-3, 200, "informative", "rslora"
    ),
    SampleAdapter(
        "hate_or_offensive-r2", "hate_or_offensive", 49, 2, 4, ALL_LINEAR, 1e-3, 200, "template", "lora", 30
    ),
    SampleAdapter("hyperbaton", "hyperbaton", 27, 4, 8, QV, 2e-3, 100, "template"),
    SampleAdapter("hyperbaton-r8", "hyperbaton", 75, 8, 8, QKVO, 2e-3, 100, "hyperparameters"),
    SampleAdapter("object_counting", "object_counting", 40, 2, 2, ALL_LINEAR, 2e-3, 100, "template"),
    SampleAdapter("object_counting-r16", "object_counting", 88, 16, 32, QV, 1e-3, 100, "informative"),
    SampleAdapter("overruling", "overruling", 22, 4, 8, ALL_LINEAR, 1e-3, 200, "hyperparameters"),
    SampleAdapter("overruling-r2", "overruling", 61, 2, 4, QV, 2e-3, 200, "hyperparameters", "lora", 30),
    SampleAdapter("overruling-r8", "overruling", 95, 8, 8, QKVO, 2e-3, 200, "informative"),
)


def train_adapter(base: LoadedBase, task: Task, adapter: SampleAdapter, work: Path) -> dict[str, Any]:
    """The record of the adapter's training, which is carried out unless the folder `work` holds it."""
    out = work / adapter.name
    if (out / TRAIN_RECORD).is_file():
        record: dict[str, Any] = json.loads((out / TRAIN_RECORD).read_text("utf-8"))
        if _is_of(record, task, adapter):
            return record
    return train(
        base,
        task,
        budget(task, adapter.samples, seed=adapter.seed),
        out,
        rank=adapter.rank,
        alpha=adapter.alpha,
        targets=adapter.targets,
        learning_rates=[adapter.learning_rate],
        steps=adapter.steps,
        variant=adapter.variant,
        seed=adapter.seed,
        overwrite=True,
    ).record


def _is_of(record: Mapping[str, Any], task: Task, adapter: SampleAdapter) -> bool:
    """Whether a training was of this row on this data."""
    settings, recipe, parts = record["settings"], record["settings"]["recipe"], record["budget"]
    targets = settings["targets"] if isinstance(settings["targets"], str) else tuple(settings["targets"])
    return bool(
        record["task"]["digest"] == task.digest
        and (settings["rank"], settings["alpha"], targets) == (adapter.rank, adapter.alpha, adapter.targets)
        and (settings["variant"], record["learning_rate"]) == (adapter.variant, adapter.learning_rate)
        and (recipe["steps"], recipe["seed"]) == (adapter.steps, adapter.seed)
        and parts["train"] + parts["valid"] == adapter.samples
    )


def card(task: Task, adapter: SampleAdapter, record: Mapping[str, Any]) -> str:
    """The README.md of the repository."""
    if adapter.card == "template":
        return template_card(record["versions"]["peft"])
    if adapter.card == "hyperparameters":
        return hyperparameters_card(adapter, record)
    text, times = _BESIDE.subn("\n", informative(task, record))
    if times != 1:
        raise ValueError("the card of `train` no longer speaks of train.json at its end")
    return text


def template_card(peft: str) -> str:
    """The card that PEFT writes beside an adapter, which nobody filled in."""
    from huggingface_hub import ModelCard, ModelCardData

    tags = [f"base_model:adapter:{BASE}", "lora", "transformers"]
    data = ModelCardData(base_model=BASE, library_name="peft", pipeline_tag="text-generation", tags=tags)
    text = str(ModelCard.from_template(data)).rstrip("\n")
    return f"{text}\n### Framework versions\n\n- PEFT {peft}\n"


def hyperparameters_card(adapter: SampleAdapter, record: Mapping[str, Any]) -> str:
    """A card as trainers write them: what they were set to, and the losses."""
    course = next(rate for rate in record["rates"] if rate["chosen"])
    recipe = record["settings"]["recipe"]
    measured = [
        (0, record["valid_loss_before"]),
        *((rate["step"], rate["valid"]) for rate in course["losses"]),
    ]
    losses = [f"| {step} | {loss:.4f} |" for step, loss in dict(measured).items()]
    lines = [
        *("---", "library_name: peft", f"base_model: {BASE}", "tags:"),
        *(f"- base_model:adapter:{BASE}", "- lora", "---", ""),
        *(f"# {adapter.name}", "", "### Training hyperparameters", ""),
        "The following hyperparameters were used during training:",
        f"- learning_rate: {adapter.learning_rate:g}",
        f"- train_batch_size: {recipe['batch']}",
        f"- seed: {adapter.seed}",
        "- optimizer: AdamW with betas=(0.9,0.999)",
        "- lr_scheduler_type: cosine",
        "- lr_scheduler_warmup_ratio: 0.1",
        f"- training_steps: {course['steps']}",
        *("", "### Training results", "", "| Step | Validation Loss |", "|:---:|:---:|", *losses),
    ]
    return "\n".join(lines) + "\n"


def write(task: Task, adapter: SampleAdapter, record: Mapping[str, Any], work: Path, hub: Path) -> Path:
    """The repository's folder in the Hub, written anew."""
    folder = hub / OWNER / adapter.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        shutil.copyfile(work / adapter.name / name, folder / name)
    (folder / "README.md").write_text(card(task, adapter, record), encoding="utf-8")
    number = ADAPTERS.index(adapter)
    date = f"2026-01-{number + 2:02d}T12:00:00.000Z"
    override = {"createdAt": date, "downloads": 40 + 7 * number, "lastModified": date, "likes": number % 4}
    (folder / ".hub.json").write_text(json.dumps(override, indent=1) + "\n", encoding="utf-8")
    return folder


def measure_adapter(base: LoadedBase, task: Task, folder: Path, before: Measured) -> str:
    """A row of the table: loss and score of the base and of the adapter, and its loss in plain PEFT."""
    test = draw(task, "test", TEST)
    live = LiveStack(base.model, [load_member(folder)])
    with live.dense(live.scales_of([1.0])):
        after = measure(base, task, test)
    plain = loss_on_disk(base, folder, encode(base.tokenizer, task, test, base.limit))
    losses = f"{before.loss:.3f} | {after.loss:.3f} | {plain:.3f}"
    return f"| {folder.name} | {losses} | {before.value:.2f} | {after.value:.2f} |"


def main() -> None:
    """Trains what is missing and writes the Hub's folders; with --measure prints how good they are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=Path, required=True, help="folder of tasks")
    parser.add_argument("--bases", type=Path, default=Path("data/bases"), help="folder of base models")
    parser.add_argument("-o", "--out", type=Path, default=HUB, help="folder of the Hub")
    parser.add_argument("--work", type=Path, default=Path("build/sample_hub"), help="of finished trainings")
    parser.add_argument("--measure", action="store_true", help="ask the adapters about test examples")
    options = parser.parse_args()
    import torch

    # The weights depend on the number of threads.
    torch.set_num_threads(1)
    base = load_base(BASE, bases=options.bases)
    if options.measure:
        _measure_all(base, options.tasks, options.out)
        return
    for adapter in ADAPTERS:
        task = find_task(adapter.task, options.tasks)
        record = train_adapter(base, task, adapter, options.work)
        write(task, adapter, record, options.work, options.out)
        losses = f"{record['valid_loss_before']:.3f} to {record['valid_loss']:.3f}"
        say(f"{adapter.name}: validation loss {losses}, {record['seconds']:.0f} s")


def _measure_all(base: LoadedBase, tasks: Path, hub: Path) -> None:
    """Prints a row for each adapter; the base is asked once a task."""
    say("| adapter | base: loss | adapter: loss | in plain PEFT | base: score | adapter: score |")
    say("|---|--:|--:|--:|--:|--:|")
    alone: dict[str, Measured] = {}
    for adapter in ADAPTERS:
        task = find_task(adapter.task, tasks)
        if task.name not in alone:
            alone[task.name] = measure(base, task, draw(task, "test", TEST))
        say(measure_adapter(base, task, hub / OWNER / adapter.name, alone[task.name]))


def say(line: str) -> None:
    """Writes a line at once, so that a long run shows where it is."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
