"""How an adapter was trained, as tools write it into model cards: hyperparameters, datasets, tool and
versions.

Read line by line, each line cut, with expressions that never look back: a hostile card costs no more than
its size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

_MAX_LINE = 600
_MAX_LINES = 5_000
_NUMBER = r"([0-9]{1,15}(?:\.[0-9]{0,15})?(?:[eE][-+]?[0-9]{1,3})?)(?![0-9])"
# `- learning_rate: 0.0002`, `learning_rate: 2e-4` (a configuration), `| Learning Rate | 2e-4 |`
_FIELD = re.compile(
    r"\s{0,20}[-*|]?\s{0,4}[`*]{0,3}([A-Za-z][A-Za-z_ -]{2,40})[`*]{0,3}\s{0,4}[:=|][\s*`]{0,8}(\S.*)"
)
_VERSION = re.compile(
    r"\s{0,8}[-*]\s{0,4}([A-Za-z][A-Za-z-]{1,30}):?\s{1,4}`?([0-9][0-9A-Za-z.+-]{0,60})`?\s*\Z"
)
_AXOLOTL = re.compile(r"axolotl version: `?([0-9][0-9A-Za-z.+-]{0,60})")
_DATASETS = re.compile(r" on (?:the|an?) (.{1,400}) datasets?\b")
_PATH = re.compile(r"\s{0,8}- path: (\S{1,300})")
_IN_PROSE: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("learning_rate", re.compile(rf"learning[ -]rate (?:of )?{_NUMBER}", re.IGNORECASE)),
    ("batch_size", re.compile(r"batch(?: size)? (?:of )?([0-9]{1,6})\b", re.IGNORECASE)),
    ("steps", re.compile(r"\b([0-9]{1,9}) (?:training )?steps", re.IGNORECASE)),
    ("epochs", re.compile(rf"\b{_NUMBER} epochs?", re.IGNORECASE)),
)
_FIELDS: Mapping[str, str] = {
    "learning_rate": "learning_rate",
    "lr": "learning_rate",
    "lr_scheduler_type": "schedule",
    "lr_scheduler": "schedule",
    "train_batch_size": "batch_size",
    "per_device_train_batch_size": "batch_size",
    "micro_batch_size": "batch_size",
    "batch_size": "batch_size",
    "total_train_batch_size": "total_batch_size",
    "effective_batch_size": "total_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "gradient_accumulation": "gradient_accumulation",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "epochs": "epochs",
    "training_steps": "steps",
    "max_steps": "steps",
    "iters": "steps",
    "optimizer": "optimizer",
    "optim": "optimizer",
    "lr_scheduler_warmup_steps": "warmup_steps",
    "warmup_steps": "warmup_steps",
    "lr_scheduler_warmup_ratio": "warmup_ratio",
    "warmup_ratio": "warmup_ratio",
    "seed": "seed",
}
_WHOLE = frozenset(
    {"batch_size", "total_batch_size", "gradient_accumulation", "steps", "warmup_steps", "seed"}
)
_REAL = frozenset({"learning_rate", "epochs", "warmup_ratio"})
# A tool and what it leaves in the text of a card; the first that fits, the more special ones first.
_MARKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Axolotl", ("built with axolotl", "axolotl version:", "see axolotl config")),
    ("LLaMA-Factory", ("llama-factory", "llamafactory")),
    ("Unsloth", ("github.com/unslothai/unsloth", "trained 2x faster with [unsloth]")),
    ("AutoTrain", ("model trained using autotrain", "autotrain-advanced")),
    ("TRL", ("github.com/huggingface/trl", "cite trl as")),
    ("mlx-lm", ("mlx-lm", "mlx_lm")),
    ("Trainer", ("information the trainer had access to", "hyperparameters were used during training")),
)
_TAGS: Mapping[str, str] = {
    "axolotl": "Axolotl",
    "llama-factory": "LLaMA-Factory",
    "unsloth": "Unsloth",
    "autotrain": "AutoTrain",
    "trl": "TRL",
    "mlx": "mlx-lm",
    "generated_from_trainer": "Trainer",
}
_PACKAGES = frozenset(
    {
        "accelerate",
        "bitsandbytes",
        "datasets",
        "mlx-lm",
        "peft",
        "pytorch",
        "safetensors",
        "tokenizers",
        "torch",
    }
    | {"transformers", "trl", "unsloth"}
)
_NO_DATASET = frozenset({"none", "unknown", "custom", "following", "generator", "null"})


@dataclass(frozen=True, slots=True)
class TrainingFacts:
    """What a card says of the training; None if it does not mention it. `batch_size` is that of one
    device."""

    learning_rate: float | None = None
    schedule: str | None = None
    batch_size: int | None = None
    total_batch_size: int | None = None
    gradient_accumulation: int | None = None
    epochs: float | None = None
    steps: int | None = None
    optimizer: str | None = None
    warmup_steps: int | None = None
    warmup_ratio: float | None = None
    seed: int | None = None
    datasets: tuple[str, ...] = ()
    tool: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def has_hyperparameters(self) -> bool:
        """Whether the numbers that decide a training run are there, at least in part."""
        return any(value is not None for value in (self.learning_rate, self.epochs, self.steps))

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> TrainingFacts:
        """The facts that `as_json` gave; what it does not give is left out."""
        known = {row.name for row in fields(cls)}
        return cls(**{name: value for name, value in facts.items() if name in known})

    def as_json(self) -> dict[str, Any]:
        """The facts that are known, as JSON values."""
        return {name: value for name, value in asdict(self).items() if value not in (None, (), {})}


def training_facts(body: str, tags: Sequence[str] = (), datasets: Sequence[str] = ()) -> TrainingFacts:
    """The training facts in the body of a card, its tags and the datasets of its front matter; the first
    statement counts.
    """
    facts: dict[str, Any] = {}
    dataset_names: list[str] = list(datasets)
    versions: dict[str, str] = {}
    lines = [line[:_MAX_LINE] for line in body.split("\n", _MAX_LINES)[:_MAX_LINES]]
    for line in lines:
        _read_version(line, versions)
        _read_field(line, facts)
        dataset_names.extend(_datasets(line))
    for line in lines:
        # Prose counts if the tools' lists do not mention it.
        if "train" in line.lower():
            _read_prose(line, facts)
    tool = _tool("\n".join(lines).lower(), tags, versions)
    return TrainingFacts(
        **facts, datasets=tuple(dict.fromkeys(dataset_names))[:50], tool=tool, versions=versions
    )


def _read_version(line: str, versions: dict[str, str]) -> None:
    match = _VERSION.match(line)
    if match is not None and match[1].lower() in _PACKAGES:
        versions.setdefault(match[1].lower(), match[2])
    match = _AXOLOTL.search(line)
    if match is not None:
        versions.setdefault("axolotl", match[1])


def _read_field(line: str, facts: dict[str, Any]) -> None:
    match = _FIELD.match(line)
    if match is None:
        return
    name = _FIELDS.get(match[1].strip().lower().replace(" ", "_").replace("-", "_"))
    if name is not None and name not in facts:
        value = _value(name, match[2].strip(" |`*\r"))
        if value is not None:
            facts[name] = value


def _read_prose(line: str, facts: dict[str, Any]) -> None:
    for name, pattern in _IN_PROSE:
        match = pattern.search(line)
        if match is not None and name not in facts:
            value = _value(name, match[1])
            if value is not None:
                facts[name] = value


def _value(name: str, text: str) -> float | int | str | None:
    if name in _WHOLE or name in _REAL:
        number = re.match(_NUMBER, text)
        if number is None:
            return None
        real = float(number[1])
        if not math.isfinite(real):
            return None
        return real if name in _REAL else int(real) if real < 2**62 else None
    return text[:200] or None


def _datasets(line: str) -> list[str]:
    path = _PATH.match(line)
    if path is not None:
        return [path[1].strip("'\"")]
    match = _DATASETS.search(line)
    if match is None or "fine-tuned version" not in line:
        return []
    parts = re.split(r", the |,? and the ", match[1])
    return [part.strip() for part in parts if part.strip().lower() not in _NO_DATASET]


def _tool(text: str, tags: Sequence[str], versions: Mapping[str, str]) -> str | None:
    for tool, marks in _MARKS:
        if any(mark in text for mark in marks) and tool != "Trainer":
            return tool
    by_tag = next((tool for tag, tool in _TAGS.items() if tag in tags), None)
    if by_tag is not None:
        return by_tag
    if any(mark in text for mark in dict(_MARKS)["Trainer"]):
        return "Trainer"
    return "PEFT" if "peft" in versions else None
