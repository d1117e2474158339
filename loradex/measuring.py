"""What a selection asks a base model for: the gradient of a task, or scores of adapters while they race."""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.errors import NotFoundError
from catalog.files import temporary_folder
from catalog.pools import Manifest, export, member_folder
from catalog.selection import Ranked, candidates, pin_members
from loradex.bases import open_base, prompt_notes
from loradex.fetching import fetching, writable_folder
from loradex.progress import ProgressCallback, ProgressEvent, ProgressStep

if TYPE_CHECKING:
    from catalog.database import Session
    from catalog.selection import Question, Sources
    from catalog.settings import Settings
    from merging.evaluation import Questions, TooLong
    from merging.members import MergeMember
    from merging.model import BaseDtype, LoadedBase, Task

# How many other tasks a gradient is compared with, and by how many examples each (docs/results/gradient.md).
BACKGROUNDS = 8
BACKGROUND_SAMPLES = 24


@dataclass(frozen=True)
class TaskOptions:
    """The parameters of a selection that name a task and say how a model reads it."""

    task: str | Path | Task | None
    tasks: str | Path | None
    texts: str | Path | None
    device: str
    dtype: BaseDtype | None
    date: datetime.date | None
    too_long: TooLong


@dataclass(frozen=True)
class ModelRequest:
    """How a selection uses a model: its name, the task, the other tasks (`backgrounds`), and the options."""

    base: str
    task: Task
    backgrounds: Sequence[Task]
    options: TaskOptions

    def open_base(self, settings: Settings, report: ProgressCallback) -> LoadedBase:
        """The base model."""
        device, dtype, day = self.options.device, self.options.dtype, self.options.date
        return open_base(self.base, settings=settings, device=device, dtype=dtype, day=day, report=report)


@contextmanager
def with_model(
    request: ModelRequest | None,
    question: Question,
    sources: Sources,
    settings: Settings,
    report: ProgressCallback,
) -> Iterator[tuple[Sources, Question]]:
    """The sources with what a model says, for the strategies that ask one, and the question with what is
    unusual about the prompts.

    Files of adapters are fetched when they are needed, and removed when the block ends.
    """
    if request is None:
        yield sources, question
    else:
        prepare = _with_gradient if question.by == "gradient" else _with_scores
        yield from prepare(request, question, sources, settings, report)


def _with_gradient(
    request: ModelRequest,
    question: Question,
    sources: Sources,
    settings: Settings,
    report: ProgressCallback,
) -> Iterator[tuple[Sources, Question]]:
    """The sources with the direction to ask the index with, those of other tasks, and exact products where
    the question asks for these.
    """
    from merging.evaluation import ask
    from merging.learning import direction, exact_scores
    from merging.model import first_examples

    model, task = request.open_base(settings, report), request.task
    names = ", ".join(row.name for row in request.backgrounds)
    text = f"following the gradient of {task.name}{names and f', beside {names}'}"
    report(ProgressEvent("gradient", note=text))
    count, seed = question.samples or 0, question.seed
    sizes = [(task, count), *((other, min(count, BACKGROUND_SAMPLES)) for other in request.backgrounds)]
    prompts = [
        ask(model, row, first_examples(row, size, seed=seed), request.options.too_long) for row, size in sizes
    ]
    question = replace(question, **_unusual(model, report, *prompts))
    examples = prompts[0].examples
    backgrounds = [(other, row.examples) for other, row in zip(request.backgrounds, prompts[1:], strict=True)]
    kind: Any = question.kind
    vector, vectors = direction(model, task, examples, backgrounds, kind=kind, cache=settings.gradients)
    sources = replace(sources, direction=vector, backgrounds=vectors)
    if not question.exact:
        yield sources, question
        return
    with _scratch(settings) as scratch:
        base = question.base or request.base
        load = _loader(settings, sources.session, sources.refusing, base, scratch, peft_layers=False)

        def exact(names: Sequence[str]) -> Sequence[float]:
            report(ProgressEvent("gradient", note=f"reading the weights of the best {len(names)}"))
            return exact_scores(model, task, examples, [load(name) for name in names], backgrounds)

        yield replace(sources, exact=exact), question


def _with_scores(
    request: ModelRequest,
    question: Question,
    sources: Sources,
    settings: Settings,
    report: ProgressCallback,
) -> Iterator[tuple[Sources, Question]]:
    """The sources with what scores adapters on further training examples."""
    from merging.evaluation import Sampler, score_metric

    model, step = request.open_base(settings, report), ProgressStep(report, "racing")
    with _scratch(settings) as scratch:
        base = question.base or request.base
        load = _loader(settings, sources.session, sources.refusing, base, scratch, peft_layers=True)
        sampler = Sampler(model, request.task, load, question.seed, request.options.too_long)
        unusual = _unusual(model, report, sampler.asked)

        def measure(adapters: Sequence[str], samples: int) -> Sequence[float | None]:
            scores: list[float | None] = []
            for adapter in adapters:
                scores += sampler([adapter], samples)
                step.working(sampler.spent, question.budget or 0)
            return scores

        metric = score_metric(request.task)
        yield replace(sources, measure=measure, metric=metric), replace(question, **unusual)
        for name, reason in sampler.left_out.items():
            step.note(f"not measured: {name} ({reason})")


def other_tasks(task: Task, folder: Path | None, seed: int) -> list[Task]:
    """Up to eight tasks of other kinds in the folder, drawn by the seed: what to compare a task with."""
    from merging.model import TASK_NAME, read_task

    if folder is None:
        return []
    tasks = [read_task(path.parent) for path in sorted(folder.glob(f"*/{TASK_NAME}"))]
    strangers = [row for row in tasks if row.name != task.name and (not row.group or row.group != task.group)]
    generator = random.Random(f"{task.name}:{seed}")  # noqa: S311 - a draw, not a secret
    sample = generator.sample(strangers, min(BACKGROUNDS, len(strangers)))
    return sorted(sample, key=lambda row: row.name)


def _unusual(model: LoadedBase, report: ProgressCallback, *prompts: Questions) -> dict[str, Any]:
    """What the manifest states of prompts that are not read as usual, which is reported too."""
    from merging.evaluation import unusual

    record = unusual(model, *prompts)
    for note in prompt_notes(record):
        report(ProgressEvent("prompts", note=note))
    return {name: value for name, value in record.items() if name != "plain"}


@contextmanager
def _scratch(settings: Settings) -> Iterator[Path]:
    """A folder beside the kept files, whose blocks copies may share; it is removed when the block ends."""
    with writable_folder(settings.data) as folder, temporary_folder(folder) as scratch:
        yield scratch


def _loader(
    settings: Settings,
    session: Session,
    refusing: Collection[str],
    base: str,
    scratch: Path,
    *,
    peft_layers: bool,
) -> Callable[[str], MergeMember]:
    """What loads the adapter of a short name, its pinned files below `scratch`.

    With `peft_layers` also one that PEFT's own layers alone can apply.
    """
    from merging.members import load_member

    rows = {row.adapter: row for row in candidates(session, refusing, base).rows}
    members: dict[str, MergeMember] = {}

    def load(name: str) -> MergeMember:
        if name not in members:
            if name not in rows:
                raise NotFoundError(f"Adapter {name} of {base} not found.")
            row = rows[name]
            (member,) = pin_members(session, [Ranked(row, None, "")])
            manifest = Manifest("race", base, (member,))
            with fetching(settings, manifest) as fetch:
                folder = export(manifest, scratch, "peft", fetch, lambda _done, _all: None)
            members[name] = load_member(
                folder / member_folder(member), name=name, purpose="evaluated", peft_layers=peft_layers
            )
        return members[name]

    return load
