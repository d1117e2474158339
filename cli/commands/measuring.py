"""What `select` asks a base model for: a task's slope, or scores of adapters while they race."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.errors import NotFoundError
from catalog.files import temporary_folder
from catalog.pools import Manifest, export, member_folder
from catalog.scores import Measure
from catalog.selection import candidates, pin_members
from cli.app import App
from loradex.fetching import fetching, writable_folder
from loradex.models import open_base, prompt_notes

# How many other tasks a gradient is compared with, and by how many examples each (docs/results/gradient.md).
BACKGROUNDS = 8
BACKGROUND_SAMPLES = 24

if TYPE_CHECKING:
    from catalog.selection import Question, Sources
    from merging.evaluation import Questions, TooLong
    from merging.members import MergeMember
    from merging.model import LoadedBase, Task


@dataclass(frozen=True)
class Asking:
    """How a model is asked: where, on which day, and what becomes of examples that are too long for it."""

    device: str
    date: datetime.date | None
    too_long: TooLong


@contextmanager
def sloping(
    app: App,
    sources: Sources,
    base: str,
    task: Task,
    others: Sequence[Task],
    question: Question,
    asking: Asking,
) -> Iterator[tuple[Sources, Question]]:
    """The sources with what to ask the index of the question's kind with, and the same of other tasks; and
    the question with what is not as usual.

    Where the question asks for exact products too, members' files are brought here for as long as the block.
    """
    from merging.evaluation import ask
    from merging.learning import direction, exact_scores
    from merging.model import first_examples

    model = open_base(
        base,
        bases=app.settings.bases,
        device=asking.device,
        day=asking.date,
        report=lambda event: app.output.say(event.note),
    )
    aside = f", beside {', '.join(other.name for other in others)}" if others else ""
    app.output.say(f"following the gradient of {task.name}{aside}")
    count, seed = question.samples or 0, question.seed
    rest = [(other, first_examples(other, min(count, BACKGROUND_SAMPLES), seed=seed)) for other in others]
    asked = [
        ask(model, one, some, asking.too_long)
        for one, some in ((task, first_examples(task, count, seed=seed)), *rest)
    ]
    told = _unusual(app, model, *asked)
    question, own = replace(question, **told), asked[0].examples
    rest = [(other, one.examples) for other, one in zip(others, asked[1:], strict=True)]
    kind: Any = question.kind
    vector, backgrounds = direction(model, task, own, rest, kind=kind)
    ready = replace(sources, direction=vector, backgrounds=backgrounds)
    if not question.exact:
        yield ready, question
        return
    with _scratch(app) as scratch:
        find = _finder(app, sources.session, sources.refusing, question.base or base, scratch)

        def exact(names: Sequence[str]) -> Sequence[float]:
            app.output.say(f"reading the weights of the best {len(names)}")
            return exact_scores(model, task, own, [find(name) for name in names], rest)

        yield replace(ready, exact=exact), question


def _unusual(app: App, model: LoadedBase, *asked: Questions) -> dict[str, Any]:
    """What the manifest says of questions that are not read as usual; said aloud too."""
    from merging.evaluation import unusual

    told = unusual(model, *asked)
    for note in prompt_notes(told):
        app.output.say(note)
    return {name: value for name, value in told.items() if name != "plain"}


def other_tasks(task: Task, folder: Path | None, seed: int) -> list[Task]:
    """At most so many tasks of other kinds in the folder, drawn by the seed: what to compare a task with."""
    import random

    from merging.model import TASK_NAME, read_task

    if folder is None:
        return []
    found = [read_task(path.parent) for path in sorted(folder.glob(f"*/{TASK_NAME}"))]
    strange = [one for one in found if one.name != task.name and (not one.group or one.group != task.group)]
    drawn = random.Random(f"{task.name}:{seed}")  # noqa: S311 - a draw, not a secret
    return sorted(drawn.sample(strange, min(BACKGROUNDS, len(strange))), key=lambda one: one.name)


@contextmanager
def measuring(
    app: App,
    session: Any,
    refusing: Collection[str],
    base: str,
    canonical: str,
    task: Task,
    budget: int,
    seed: int,
    asking: Asking,
) -> Iterator[tuple[Measure, dict[str, Any]]]:
    """Inside the block, what scores the catalog's adapters of a base on further training examples, and what
    of the examples is not as usual.

    An adapter's files are brought here when its turn comes first, and all of them go when the block ends.
    """
    from merging.evaluation import Sampler

    model = open_base(
        base,
        bases=app.settings.bases,
        device=asking.device,
        day=asking.date,
        report=lambda event: app.output.say(event.note),
    )
    with _scratch(app) as scratch:
        find = _finder(app, session, refusing, canonical, scratch)
        sampler = Sampler(model, task, find, seed, asking.too_long)
        told = _unusual(app, model, sampler.asked)
        with app.output.progress("racing") as bar:

            def measure(adapters: Sequence[str], samples: int) -> Sequence[float | None]:
                found = []
                for adapter in adapters:
                    found += sampler([adapter], samples)
                    bar.working(sampler.spent, budget)
                return found

            yield measure, told
        for name, reason in sampler.left_out.items():
            app.output.say(f"not measured: {name} ({reason})")


@contextmanager
def _scratch(app: App) -> Iterator[Path]:
    """A folder beside the kept files, whose blocks copies may share; it goes when the block ends."""
    with writable_folder(app.settings.data) as folder, temporary_folder(folder) as scratch:
        yield scratch


def _finder(
    app: App, session: Any, refusing: Collection[str], base: str, scratch: Path
) -> Callable[[str], MergeMember]:
    """What gives the adapter of a short name, its pinned files below `scratch`."""
    from merging.members import load_member

    rows = {row.adapter: row for row in candidates(session, refusing, base)}
    found: dict[str, MergeMember] = {}

    def find(name: str) -> MergeMember:
        if name not in found:
            if name not in rows:
                raise NotFoundError(f"There is no adapter {name} of {base}.")
            row = rows[name]
            (member,) = pin_members(session, {row.id: (None, "")}, [row])
            manifest = Manifest("race", base, (member,))
            with fetching(app.settings, manifest) as fetch:
                folder = export(manifest, scratch, "peft", fetch, lambda _done, _all: None)
            found[name] = load_member(folder / member_folder(member), name=name, purpose="evaluated")
        return found[name]

    return find
