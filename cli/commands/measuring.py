"""What `select` asks a base model for: a task's slope, or scores of adapters while they race."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.candidates import candidates, pinned
from catalog.errors import NotFoundError
from catalog.export import export, member_folder
from catalog.pools import Manifest
from catalog.racing import Measure
from cli.app import App
from cli.commands.asking import asked_base
from cli.commands.fetching import fetching

if TYPE_CHECKING:
    from merging.members import Member
    from merging.tasks import Task


def slope(app: App, base: str, task: Task, samples: int, seed: int, device: str) -> tuple[Any, Any]:
    """The sketch of minus the task's gradient, and of its backgrounds, from training examples."""
    from merging.gradient import direction
    from merging.tasks import draw

    model = asked_base(app, base, device)
    app.output.say(f"following the gradient of {task.name}")
    return direction(model, task, draw(task, "train", samples, seed=seed))


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
    device: str,
) -> Iterator[Measure]:
    """Inside the block, what scores the catalog's adapters of a base on further training examples.

    An adapter's files are brought here when its turn comes first, and all of them go when the block ends.
    """
    from merging.evaluate import Sampler

    model = asked_base(app, base, device)
    app.settings.data.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=app.settings.data, prefix=".race-") as scratch:
        find = _finder(app, session, refusing, canonical, Path(scratch))
        sampler = Sampler(model, task, find, seed)
        with app.output.progress("racing") as bar:

            def measure(adapters: Sequence[str], samples: int) -> Sequence[float | None]:
                found = []
                for adapter in adapters:
                    found += sampler([adapter], samples)
                    bar.working(sampler.spent, budget)
                return found

            yield measure


def _finder(
    app: App, session: Any, refusing: Collection[str], base: str, scratch: Path
) -> Callable[[str], Member]:
    """What gives the adapter of a short name, its pinned files below `scratch`."""
    from merging.members import load_member

    rows = {row.adapter: row for row in candidates(session, refusing, base)}
    found: dict[str, Member] = {}

    def find(name: str) -> Member:
        if name not in found:
            if name not in rows:
                raise NotFoundError(f"There is no adapter {name} of {base}.")
            row = rows[name]
            (member,) = pinned(session, {row.id: (None, "")}, [row])
            manifest = Manifest("race", base, (member,))
            with fetching(app, manifest) as fetch:
                folder = export(manifest, scratch, "peft", fetch, lambda _done, _all: None)
            found[name] = load_member(folder / member_folder(member), name=name)
        return found[name]

    return find
