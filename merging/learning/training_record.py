"""The files written with a trained adapter: train.json and the model card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from catalog.adapters import WEIGHTS_NAME
from merging.evaluation import Questions, unusual
from merging.learning.course import Course
from merging.learning.variants import ALL_LINEAR, VARIANTS, reachable
from merging.members import digest_of, package_versions
from merging.model import LoadedBase, Task

RECORD_VERSION = 1
# The libraries that train.
LIBRARIES = ("loradex", "peft", "torch", "transformers")
# Terms of a task's data that consist of the name of a license; the Hub writes them in lower case.
_LICENSE = re.compile(r"(MIT|Apache-2\.0|CC0-1\.0|CC[ -]BY(-NC)?(-SA|-ND)?[ -][1-4]\.0)")
# The characters allowed in a line of Markdown; others are removed from untrusted texts.
_STRANGE = re.compile(r"[^\w .,:;()@/+'\"?!%=’‘“”–—-]")


def record(
    base: LoadedBase,
    task: Task,
    seed: int,
    question_sets: tuple[Questions, Questions],
    settings: Mapping[str, Any],
    courses: Sequence[Course],
    best: Course,
    losses: tuple[float, float],
    folder: Path,
    preset: str = "",
) -> dict[str, Any]:
    """train.json: the training's settings, every rate with its losses, and the result.

    `question_sets` are the examples learned from and chosen by, drawn with `seed`; `losses` are those on the
    validation examples of the base alone and of the stored adapter. `edge` says that the best rate is the
    lowest or the highest tried, so that a better one may be outside; `untrained` names layers that
    "all-linear" does not reach in this model.
    """
    untrained = reachable(base.model)[1] if settings["targets"] == ALL_LINEAR else ()
    document = {
        "record_version": RECORD_VERSION,
        "base_model": base.name,
        "revision": base.revision,
        "base_dtype": base.quantised or str(base.dtype).removeprefix("torch."),
        "device": base.device.type,
        "task": {
            "name": task.name,
            "digest": task.digest,
            "source": task.source,
            "license": task.license,
            "instruction": task.instruction,
        },
        "budget": {
            "train": len(question_sets[0].prompts),
            "valid": len(question_sets[1].prompts),
            "seed": seed,
        },
        **({"preset": preset} if preset else {}),
        **unusual(base, *question_sets),
        **({"untrained": list(untrained)} if untrained else {}),
        **({"gradient_checkpointing": True} if base.memory.checkpointing else {}),
        "settings": dict(settings),
        "paper": VARIANTS[settings["variant"]].paper,
        "mergeable": VARIANTS[settings["variant"]].mergeable,
        "learning_rate": best.learning_rate,
        "edge": _edge(courses, best),
        "rates": [{**asdict(course), "chosen": course is best} for course in courses],
        "valid_loss_before": losses[0],
        "valid_loss": losses[1],
        "sha256": digest_of(folder / WEIGHTS_NAME),
        "seconds": round(sum(course.seconds for course in courses), 3),
        "versions": package_versions(*LIBRARIES),
    }
    # As read from the file: lists for tuples.
    read: dict[str, Any] = json.loads(json.dumps(document))
    return read


def card(task: Task, document: Mapping[str, Any]) -> str:
    """The text of README.md: front matter, then data, settings and measurements.

    Front matter as https://huggingface.co/docs/hub/model-cards has it. The license is that of the task's data
    if its terms consist of a license.
    """
    front = {
        "base_model": document["base_model"],
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "license": task.license.lower().replace(" ", "-") if _LICENSE.fullmatch(task.license) else None,
        "datasets": [task.name],
        "tags": ["lora", "loradex"],
    }
    settings, recipe = document["settings"], document["settings"]["recipe"]
    row, budget = VARIANTS[settings["variant"]], document["budget"]
    best = next(rate for rate in document["rates"] if rate["chosen"])
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items() if value), "---", ""]
    lines += [
        f"# A LoRA for {_plain(task.name)}",
        "",
        f"Trained by loradex on {budget['train']} examples of the task {_plain(task.name)}; learning rate",
        f"and best step were chosen on {budget['valid']} others (both drawn with seed {budget['seed']}).",
        "",
        f"* Instruction: {_plain(task.instruction)}",
        f"* Data: {_plain(task.source) or 'not named'}",
        f"* Terms of the data: {_plain(task.license)}; those of the base model hold as well.",
        "",
        f"Variant: [{row.name}]({row.paper}). {row.summary}",
        "",
        f"* rank {settings['rank']}, alpha {settings['alpha']:g}, dropout {settings['dropout']:g}",
        f"* modules: {_modules(settings['targets'])}",
        f"* learning rate {best['learning_rate']:g} of {len(document['rates'])} tried, cosine with warm-up",
        f"* AdamW, {best['steps']} of {recipe['steps']} steps of {recipe['batch']} examples",
        f"* the state after step {best['best_step']}; seed {recipe['seed']}",
        "",
        "| loss a token on the validation examples, in nats | |",
        "|---|---|",
        f"| base model alone | {document['valid_loss_before']:.4f} |",
        f"| with this adapter | {document['valid_loss']:.4f} |",
        "",
        "Rate and step were chosen by this loss, so that it is lower than on new examples. Nothing else was",
        "measured. train.json beside this file has every rate, setting and version.",
    ]
    return "\n".join(lines) + "\n"


def _edge(courses: Sequence[Course], best: Course) -> str | None:
    """Whether the best of several rates is the last on its side."""
    rates = sorted(course.learning_rate for course in courses)
    if len(rates) < 2 or best.learning_rate not in (rates[0], rates[-1]):
        return None
    return "lowest" if best.learning_rate == rates[0] else "highest"


def _modules(targets: str | Sequence[str]) -> str:
    return targets if isinstance(targets, str) else ", ".join(map(_plain, targets))


def _plain(text: str) -> str:
    return _STRANGE.sub("?", " ".join(text.split()))
