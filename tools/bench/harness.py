"""Tasks of lm-evaluation-harness for many adapters: its own model class with PEFT, and this engine.

`python -m tools.bench.harness --base DIR --adapter DIR… --task DIR…` takes folders of tasks of this project,
makes harness tasks of their test examples (multiple choice, acc and acc_norm, chat template), scores the base
and each adapter both ways in one process on one thread, and prints the largest difference of scores and
the ratio of CPU seconds. The harness loads base and adapter for each model, as its command line does; its
seconds of evaluation alone are printed too.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import loradex
from loradex.harness import guard_harness
from merging.model import read_task
from tools.bench.live import run_with_one_thread

METRICS = ("acc", "acc_norm")


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints a table, in a child that has one thread."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.harness", description=__doc__)
    parser.add_argument("--base", required=True, help="the folder of a base model")
    parser.add_argument("--adapter", dest="adapters", action="append", required=True, help="a folder")
    parser.add_argument("--task", dest="tasks", action="append", required=True, help="a folder")
    parser.add_argument("--limit", type=int, default=20, help="documents of each task")
    parser.add_argument("--batch", type=int, default=8, help="of the harness's model class")
    options = parser.parse_args(argv)
    if (status := run_with_one_thread("harness", argv)) is not None:
        return status
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        names = [write_yaml(Path(task), Path(place)) for task in options.tasks]
        start = time.process_time()
        scores = loradex.evaluate(
            options.base,
            [f"harness:{name}" for name in names],
            options.adapters,
            folder=place,
            limit=options.limit,
            chat_template=True,
        )
        ours = time.process_time() - start
        values = {(row.adapter, row.task.partition(":")[2], row.metric): row.value for row in scores}
        theirs, alone, others = run_harness(options, names, place)
    worst = max(abs(values[key] - others[key]) for key in others)
    for key in sorted(others):
        say(" ".join(key), f"{values[key]:.3f} and {others[key]:.3f}")
    say("models, tasks, documents of each", f"{1 + len(options.adapters)}, {len(names)}, {options.limit}")
    say("largest difference of two scores", f"{worst:.4f}")
    say("CPU seconds, this engine", f"{ours:.0f}")
    say("CPU seconds, hf with peft", f"{theirs:.0f}, of which evaluation {alone:.0f}")
    say("ratio", f"{theirs / ours:.1f}, evaluation alone {alone / ours:.1f}")
    return 0


def run_harness(
    options: argparse.Namespace, names: Sequence[str], place: str
) -> tuple[float, float, dict[tuple[str, str, str], float]]:
    """The CPU seconds of the harness's own way, those of its evaluations alone, and its scores."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    values: dict[tuple[str, str, str], float] = {}
    start, alone = time.process_time(), 0.0
    with guard_harness():
        loaded = TaskManager(include_path=place, include_defaults=False).load(list(names))
        for adapter in (None, *options.adapters):
            model: Any = HFLM(
                pretrained=options.base,
                peft=adapter,
                dtype="float32",
                device="cpu",
                batch_size=options.batch,
            )
            begin = time.process_time()
            results = evaluate(
                model, loaded, limit=options.limit, bootstrap_iters=0, apply_chat_template=True
            )["results"]
            alone += time.process_time() - begin
            name = Path(adapter).name if adapter else "base"
            values |= {(name, task, key): results[task][f"{key},none"] for task in names for key in METRICS}
    return time.process_time() - start, alone, values


def write_yaml(folder: Path, place: Path) -> str:
    """Writes the harness's task of a task with choices; its name."""
    task = read_task(folder)
    lines = [
        f"task: {task.name}",
        "dataset_path: json",
        f"dataset_kwargs: {{data_files: {{test: {json.dumps(str(folder.resolve() / 'test.jsonl'))}}}}}",
        "test_split: test",
        "output_type: multiple_choice",
        f"doc_to_text: {json.dumps(task.instruction + chr(10) * 2 + '{{input}}')}",
        f"doc_to_choice: {json.dumps(list(task.choices))}",
        'doc_to_target: "{{target}}"',
        "metric_list: [{metric: acc}, {metric: acc_norm}]",
    ]
    (place / f"{task.name}.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return task.name


def say(label: str, value: str) -> None:
    """Writes one line."""
    sys.stdout.write(f"{label:<44} {value}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
