"""What was run, for a report: base, tasks, adapters, versions, machine, time, and how small all of it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from studies.report.findings import Findings
from studies.report.page import Section, TableSection, Text
from studies.report.wording import NOTHING, count_noun, counts, duration, list_names

# A model below so many parameters and a task below so many test examples are called small.
_SMALL_MODEL, _SMALL_TASK = 1e9, 1000
_PARAMETERS = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([MB])(?![A-Za-z0-9])", re.IGNORECASE)
_DIGEST = 12


def facts(findings: Findings) -> list[Section]:
    """A sentence about size, a table of what was run, and one of the tasks."""
    return [Text("How large this is", (size(findings),)), _run(findings), _tasks(findings)]


def size(findings: Findings) -> str:
    """How many tasks, seeds and adapters over which base, and whether that is small."""
    base, adapters = findings.study.get("base") or {}, findings.study.get("adapters") or {}
    examples = list(findings.results.examples.values())
    name = str(base.get("name") or "unknown")
    parameters = _parameters(name)
    model, tasks = _a_model(parameters), _some_tasks(examples)
    text = f"{model} and {tasks}"
    complete = (
        f"{count_noun(len(findings.results.tasks), 'task')}{_each(examples)}, "
        f"{count_noun(len(findings.results.seeds), 'seed')}, "
        f"{count_noun(len(adapters), 'adapter') + ', ' if adapters else ''}base model {name}: {text}."
    )
    if "small" in text:
        complete += " What holds here need not hold for larger ones."
    return complete


def _each(examples: Sequence[int]) -> str:
    """How many test examples a task has."""
    if not examples:
        return ""
    low, high = min(examples), max(examples)
    return (
        f" of {count_noun(low, 'test example')}" if low == high else f" of {low:,} to {high:,} test examples"
    )


def _parameters(name: str) -> float | None:
    """The number of parameters that a model's name states: 135M, 0.6B."""
    match = _PARAMETERS.search(name)
    return float(match[1]) * {"M": 1e6, "B": 1e9}[match[2].upper()] if match else None


def _a_model(parameters: float | None) -> str:
    if parameters is None:
        return "a model of a size that its name does not tell"
    size_text = f"{parameters / 1e9:g} billion" if parameters >= 1e9 else f"{parameters / 1e6:g} million"
    small = "small " if parameters < _SMALL_MODEL else ""
    return f"a {small}model ({size_text} parameters, by its name)"


def _some_tasks(examples: Sequence[int]) -> str:
    if not examples:
        return "tasks without results"
    return "small tasks" if max(examples) < _SMALL_TASK else "tasks of different sizes"


def _run(findings: Findings) -> TableSection:
    study, record = findings.study, findings.record
    base, steps = study.get("base") or {}, study.get("steps") or {}
    seeds = record.get("seeds") or findings.results.seeds
    state = {status: findings.count(status) for status in ("done", "failed", "missing")}
    rows = {
        "base model": _with_digest(base.get("name"), base.get("digest")),
        "tasks": count_noun(len(findings.results.tasks), "task"),
        "seeds": list_names([str(seed) for seed in seeds]),
        "adapters": count_noun(len(adapters), "adapter") if (adapters := study.get("adapters")) else "",
        "cells": counts(state),
        "steps": counts(steps),
        "time": f"{duration(study['seconds'])}, summed over steps"
        if study.get("seconds") is not None
        else "",
        "device": _device(study),
        "versions": list_names(
            [f"{name} {version}" for name, version in sorted((study.get("versions") or {}).items())]
        ),
        "study file": _with_digest(record.get("name") or record.get("study"), study.get("file_sha256")),
    }
    return TableSection(
        "What was run",
        ("what", "which"),
        tuple((name, value or NOTHING) for name, value in rows.items()),
        "Digests are the first 12 digits of a sha256.",
    )


def _device(study: Mapping[str, Any]) -> str:
    threads = study.get("threads")
    parts = [
        study.get("device"),
        count_noun(int(threads), "thread") if threads else None,
        study.get("machine"),
    ]
    return ", ".join(str(part) for part in parts if part)


def _tasks(findings: Findings) -> TableSection:
    tasks = findings.study.get("tasks") or {}
    rows = []
    for name in dict.fromkeys((*findings.results.tasks, *tasks)):
        task, examples = tasks.get(name) or {}, findings.results.examples.get(name)
        texts = [str(task.get(key) or NOTHING) for key in ("group", "metric", "license")]
        digest = str(task.get("digest") or NOTHING)[:_DIGEST]
        rows.append((name, *texts[:2], f"{examples:,}" if examples else NOTHING, texts[2], digest))
    columns = ("task", "group", "metric", "test examples", "licence", "digest")
    return TableSection("The tasks", columns, tuple(rows))


def _with_digest(name: Any, digest: Any) -> str:
    return " ".join(str(part) for part in (name, f"({str(digest)[:_DIGEST]})" if digest else None) if part)
