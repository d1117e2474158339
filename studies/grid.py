"""A study as steps: what each cell of its grid needs, every step once however many cells share it.

The order is that of the report: seeds, then tasks, then methods with their pools and settings. What decides a
result is in the steps' parameters: digests of the base, the tasks and the adapters, and every setting.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from catalog.adapters import is_adapter_folder
from catalog.errors import ConfigError, LoradexError, NotFoundError, UsageError
from catalog.files import UNSTORABLE, load_json
from catalog.pools import ADAPTERS as EXPORTED
from catalog.samples import sample_data
from crawler.reading import parse_card
from merging.evaluation import score_metric
from merging.learning import TRAIN_RECORD, Recipe, TrainingSettings, default_rates
from merging.members import digest_of, load_member
from merging.methods import find_method
from merging.model import (
    TASK_NAME,
    Task,
    chat_format,
    checkpoint,
    date_of,
    default_dtype,
    find_protocol,
    find_task,
    first_look,
)
from merging.static import refuse_misfits
from studies.design import (
    Adapt,
    Adapters,
    Base,
    Ensemble,
    Merge,
    Method,
    Sets,
    Single,
    Study,
    StudyPool,
    Tasks,
    Train,
    judgements,
    label,
    points,
    pools_of,
    seeds_of,
    settle_method,
)
from studies.store import Place, Step

# What PEFT folders say of the task they were trained on: ours, and a common plain file.
_TRAINED_ON = (TRAIN_RECORD, "training.json")
_MOST_BYTES = 16 * 1024 * 1024
_LEGO = "lora-lego"
# Examples, and products with the Hessian, for the curvature at the start of a training.
_SAMPLES, _ITERATIONS = 16, 20
_OWN_DATA = "../data/"


@dataclass(frozen=True)
class GridCell:
    """One score of the grid: `step` gives it, and `about` says more of it."""

    task: str
    group: str
    seed: int
    method: str
    pool: str | None
    settings: Mapping[str, Any]
    step: Step
    about: tuple[Step, ...] = ()

    @property
    def label(self) -> str:
        """What the cell's row is called."""
        return label(self.method, self.pool, self.settings)


@dataclass(frozen=True)
class Grid:
    """A study with everything found that it names: `facts` is what study.json says of it."""

    place: Place
    cells: tuple[GridCell, ...]
    wild: Step | None
    facts: Mapping[str, Any]

    @property
    def steps(self) -> list[Step]:
        """The steps that cells need, not those that these need."""
        steps = [step for cell in self.cells for step in (*cell.about, cell.step)]
        return [*steps, *([self.wild] if self.wild else [])]


def grid(
    study: Study,
    study_folder: Path,
    folder: Path,
    *,
    bases: Path | None = None,
    tasks: Path | None = None,
    adapters: Path | None = None,
    cards: Path | None = None,
    device: str = "cpu",
    threads: int = 1,
) -> Grid:
    """The study's cells, its work in `folder`; tasks, adapters and cards lie in these folders, else where the
    study says, relative to `study_folder`.

    Reads the digests of tasks, base and adapters; writes nothing. Raises NotFoundError for what is not there,
    UsageError for a study that makes no sense and MergeError for an adapter of another base.
    """
    task_table = _tasks(study.tasks, tasks or _data_folder(study_folder, study.tasks.source))
    local_copy = checkpoint(study.base, bases)
    members = {}
    if study.adapters:
        members = _adapters(
            study.adapters, adapters or _data_folder(study_folder, study.adapters.source), local_copy
        )
    for name in (*task_table, *members):
        if UNSTORABLE.search(name):
            raise UsageError(f"The folder {name!r} has a name that is not UTF-8; rename it.")
    for name, method in study.methods.items():
        if missing := [task for task in method.tasks or () if task not in task_table]:
            raise UsageError(f"{name} is asked on {missing[0]}, which is not a task of the study.")
    wild = cards or (study_folder / study.cards if study.cards else None)
    if study.cards and not (wild and wild.is_dir()):
        raise NotFoundError(f"{wild} is not a folder of model cards; give one by `cards`.")
    # Absolute, since the processes of a cluster begin in folders of their own.
    place = Place(
        folder=folder.absolute(),
        base=str(Path(study.base).absolute()) if Path(study.base).is_dir() else study.base,
        bases=bases.absolute() if bases else None,
        device=device,
        dtype=study.dtype,
        threads=threads,
        tasks={name: task.folder.absolute() for name, task in task_table.items()},
        adapters={name: Path(row["folder"]).absolute() for name, row in members.items()},
        source=(wild or Path()).absolute(),
    )
    reading = _reading(str(local_copy or study.base))
    builder = _GridBuilder(study, task_table, members, _identity(study, bases, device), reading)
    facts = {
        "base": {**builder.base, **reading},
        "tasks": {
            name: {
                "digest": task.digest,
                "group": task.group,
                "license": task.license,
                "metric": score_metric(task, find_protocol(study.protocol)),
            }
            for name, task in task_table.items()
        },
        "adapters": {name: row["sha256"] for name, row in members.items()},
    }
    read = Step("cards", {"digest": _listing(wild)}) if study.cards and wild else None
    return Grid(place, tuple(builder.cells()), read, facts)


@dataclass(frozen=True)
class _GridBuilder:
    study: Study
    tasks: Mapping[str, Task]
    adapters: Mapping[str, Mapping[str, Any]]
    base: Mapping[str, Any]
    reading: Mapping[str, Any] = field(default_factory=dict)
    _made: dict[str, Step] = field(default_factory=dict)

    def cells(self) -> Iterator[GridCell]:
        """Every cell in the order of the report."""
        if self.study.sets:
            yield from self._cells_of_sets(self.study.sets)
            return
        for seed in self.study.seeds:
            for task in self.tasks.values():
                for name, method in self.study.methods.items():
                    if method.tasks is not None and task.name not in method.tasks:
                        continue
                    for pool in pools_of(self.study, method):
                        if seed not in seeds_of(self.study, method, pool):
                            continue
                        for point in points(method.over):
                            yield self._cell(task, seed, name, pool, settle_method(method, point), point)

    def _cells_of_sets(self, sets: Sets) -> Iterator[GridCell]:
        for number, seed in enumerate(self.study.seeds):
            named = sets.named[number] if number < len(sets.named) else None
            judges = self._draw_set(sets, seed, named)[1]
            for name, method in self.study.methods.items():
                for pool in pools_of(self.study, method):
                    if seed not in seeds_of(self.study, method, pool):
                        continue
                    for point in points(method.over):
                        settled = settle_method(method, point)
                        for judged in judgements(self.study):
                            for task in judges[str(judged["judged"])]:
                                cell = self._cell(self.tasks[task], seed, name, pool, settled, point)
                                yield replace(cell, settings={**point, **judged})

    def _draw_set(
        self, sets: Sets, seed: int, named: Sequence[str] | None
    ) -> tuple[list[str], dict[str, list[str]]]:
        """The members of a set by name, and the tasks that judge it."""
        adapters: dict[str, str] = {}
        for name, row in self.adapters.items():
            if row["trained_on"] in self.tasks:
                adapters.setdefault(row["trained_on"], name)
        draw = random.Random(f"set:{seed}")  # noqa: S311 - a draw, not a secret
        if named is None:
            if len(adapters) < sets.size:
                raise UsageError(
                    f"A set of {sets.size} requires adapters of as many tasks of the study; there are those "
                    f"of {len(adapters)}."
                )
            own = draw.sample(sorted(adapters), sets.size)
            members = [adapters[task] for task in own]
        else:
            members = list(named)
            if missing := [name for name in members if name not in self.adapters]:
                raise UsageError(f"A set names {missing[0]}, which is not one of the adapters.")
            own = [str(self.adapters[name]["trained_on"]) for name in members]
            if missing := [task for task in own if task not in self.tasks]:
                raise UsageError(f"A set has an adapter of {missing[0]}, which is not a task of the study.")
            if twice := [task for at, task in enumerate(own) if task in own[:at]]:
                raise UsageError(f"A set has two adapters of {twice[0]}; name one of each task.")
        rest = sorted(set(self.tasks) - set(own))
        if len(rest) < sets.others and "others" in sets.model_fields_set:
            raise UsageError(
                f"A set is to be judged on {sets.others} other tasks, and the study has {len(rest)} besides "
                "its own; lower others."
            )
        return members, {"own": own, "others": draw.sample(rest, min(sets.others, len(rest)))}

    def _set_step(self, sets: Sets, seed: int, k: int | None) -> Step:
        """The members of the set of a seed, or the best `k` of them; one step for all tasks that judge it."""
        number = self.study.seeds.index(seed)
        named = sets.named[number] if number < len(sets.named) else None
        members, judges = self._draw_set(sets, seed, named)
        if k is None:
            return self._step("set", {"adapters": self._digest_rows(members)})
        tasks = {task: self._measure_step(self.tasks[task], seed, members) for task in judges["own"]}
        return self._step("set", {"adapters": self._digest_rows(members), "k": k}, tasks)

    def _cell(
        self, task: Task, seed: int, name: str, pool: str | None, method: Method, point: Mapping[str, Any]
    ) -> GridCell:
        members = self._members(task, seed, self.study.pools[pool]) if pool else None
        about, figures = [members] if members else [], self.study.report.figures
        if members and members.kind in ("pool", "set") and "relevance" in figures:
            # Of adapters of the study, with the examples of one seed, since every one is measured for it.
            inputs = {"pool": members, "measured": self._measure_step(task, self.study.seeds[0])}
            about.append(self._step("relevance", {}, inputs))
        step = self._score(task, seed, method, members)
        merged = [source for source in step.inputs.values() if source is not members]
        about += merged
        if members and isinstance(method, Merge) and method.method == _LEGO and "energy" in figures:
            # Its rank cuts nothing off; what is lost is lost among the units of a cluster.
            params = {key: merged[0].params[key] for key in ("method", "parameters", "rank", "seed")}
            about.append(self._step("clusters", params, {"pool": members}))
        if isinstance(method, Train) and "curvature" in figures:
            about.append(self._curvature_step(task, seed, method))
        about.append(step)
        return GridCell(task.name, task.group, seed, name, pool, dict(point), step, tuple(about))

    def _score(self, task: Task, seed: int, method: Method, members: Step | None) -> Step:
        """The step that gives a method's score."""
        test = {**self._judgement(task), "test": self.study.tasks.test}
        if isinstance(method, Base):
            return self._step("score", test)
        if isinstance(method, Train):
            return self._step("score", test, {"adapter": self._train_step(task, seed, method)})
        if isinstance(method, Adapt):
            return self._adapt_step(task, seed, method, members)
        if members is None:
            raise TypeError(f"{method.use} needs a pool")
        if isinstance(method, Ensemble):
            return self._step("ensemble", test, {"pool": members})
        if isinstance(method, Single):
            return self._step("score", test, {"adapter": self._step("single", {}, {"pool": members})})
        params = {
            "method": method.method,
            "parameters": dict(method.parameters),
            "rank": method.rank,
            "seed": seed,
            "base": self.base,
            **({} if method.weight is None else {"weight": method.weight}),
            **({"revision": revision} if (revision := find_method(method.method).revision) > 1 else {}),
        }
        return self._step("score", test, {"adapter": self._step("merge", params, {"pool": members})})

    def _train_step(self, task: Task, seed: int, method: Method) -> Step:
        """A training at one rate, or the best of several."""
        if not isinstance(method, Train):
            raise TypeError(f"{method.use} does not train")
        rank, alpha = method.rank, float(method.alpha or method.rank)
        targets = method.targets if isinstance(method.targets, str) else list(method.targets)
        settings = {
            "rank": rank,
            "alpha": alpha,
            "targets": targets,
            "steps": method.steps,
            "batch": method.batch,
            "dropout": method.dropout,
            "variant": method.variant,
        }
        rates = method.learning_rates or ((method.learning_rate,) if method.learning_rate else None)
        if rates is None:
            recipe = Recipe(method.steps, method.batch)
            rates = default_rates(
                TrainingSettings(
                    rank, alpha, tuple(targets), method.variant, method.dropout, "bfloat16", recipe
                )
            )
        params = {**self._examples(task, seed), "settings": settings}
        step_by_rate = {f"{rate!r}": self._step("train", {**params, "learning_rate": rate}) for rate in rates}
        return (
            next(iter(step_by_rate.values()))
            if len(step_by_rate) == 1
            else self._step("pick", {}, step_by_rate)
        )

    def _curvature_step(self, task: Task, seed: int, method: Train) -> Step:
        """The curvature at the start of a training, the same for all its rates."""
        training = self._train_step(task, seed, method)
        while training.kind == "pick":
            training = next(iter(training.inputs.values()))
        settings = {key: training.params["settings"][key] for key in ("rank", "alpha", "targets", "variant")}
        how = {"settings": settings, "samples": _SAMPLES, "iterations": _ITERATIONS}
        return self._step("curvature", {**self._examples(task, seed), **how})

    def _adapt_step(self, task: Task, seed: int, method: Adapt, members: Step | None) -> Step:
        settings = {"steps": method.steps, "rate": method.learning_rate}
        params = {
            **self._examples(task, seed),
            **self._judgement(task),
            "method": method.method,
            "settings": {name: value for name, value in settings.items() if value is not None},
            "test": self.study.tasks.test,
        }
        inputs = {"pool": members} if members else {}
        if method.target is not None:
            inputs["target"] = self._train_step(task, seed, self.study.methods[method.target])
        return self._step("adapt", params, inputs)

    def _members(self, task: Task, seed: int, pool: StudyPool) -> Step:
        """The step that chooses a pool, or makes stand-ins of it."""
        pool_step = self._choose_pool(task, seed, pool)
        if pool.control is None:
            return pool_step
        return self._step("stand-ins", {"control": pool.control, "seed": seed}, {"pool": pool_step})

    def _choose_pool(self, task: Task, seed: int, pool: StudyPool) -> Step:
        if pool.by == "set":
            if self.study.sets is None:
                raise UsageError("A pool by set requires a study of sets; describe them by `sets`.")
            return self._set_step(self.study.sets, seed, pool.k)
        if pool.by == "training":
            return self._pool_of_trainings(task, seed, str(pool.method), pool.k)
        params = {
            "task": {"name": task.name},
            "by": pool.by,
            "k": pool.k or len(self.adapters),
            "own": pool.own,
            "adapters": self._candidates(pool.among),
        }
        inputs: dict[str, Step] = {}
        other_tasks = [other for other in self.tasks.values() if other.name != task.name]
        if pool.by == "gradient":
            inputs["own"] = self._gradient(task, seed, pool.samples)
            for other in other_tasks:
                inputs[_name_background(other)] = self._gradient(other, seed, pool.samples)
        elif pool.by == "measured":
            inputs["own"] = self._measure_step(task, seed)
        elif pool.by == "prior":
            if not other_tasks:
                raise UsageError("A pool by prior requires scores on other tasks; name more than one task.")
            inputs = {other.name: self._measure_step(other, seed) for other in other_tasks}
        elif pool.by == "random":
            params["seed"] = seed
        return self._step("pool", params, inputs)

    def _pool_of_trainings(self, task: Task, seed: int, name: str, k: int | None) -> Step:
        """The new LoRAs of `k` of the other tasks that a method is asked on, or of all, in the order of a
        draw by the seed."""
        method = self.study.methods[name]
        others = sorted(set(self.tasks if method.tasks is None else method.tasks) - {task.name})
        if not others:
            raise UsageError(
                f"A pool by training on {task.name} has no members, since {name} trains on no other task; "
                "name more tasks."
            )
        draw = random.Random(f"pool:{task.name}:{seed}")  # noqa: S311 - a draw, not a secret
        chosen = draw.sample(others, min(k or len(others), len(others)))
        inputs = {other: self._train_step(self.tasks[other], seed, method) for other in chosen}
        return self._step("trainings", {"tasks": chosen}, inputs)

    def _gradient(self, task: Task, seed: int, samples: int) -> Step:
        samples = min(samples, self.study.tasks.train)
        params = {
            **self._examples(task, seed),
            "samples": samples,
            "adapters": self._digest_rows(self.adapters),
        }
        return self._step("gradient", params)

    def _measure_step(self, task: Task, seed: int, names: Sequence[str] | None = None) -> Step:
        """The scores of the adapters of those names, or of all, on the task's budget."""
        params: dict[str, Any] = {
            **self._examples(task, seed),
            **self._judgement(task),
            "adapters": self._digest_rows(self.adapters if names is None else sorted(names)),
        }
        if self.study.adapters and self.study.adapters.measure:
            params["samples"] = self.study.adapters.measure
        return self._step("measured", params)

    def _candidates(self, among: Sequence[str] | None) -> list[dict[str, Any]]:
        """The adapters that a pool is chosen from."""
        keys = ("name", "sha256", "trained_on")
        names = list(self.adapters) if among is None else sorted(set(among))
        if missing := [name for name in names if name not in self.adapters]:
            raise UsageError(
                f"A pool is to be selected among {missing[0]}, which is not one of the adapters."
            )
        return [{key: self.adapters[name][key] for key in keys} for name in names]

    def _digest_rows(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Name and sha256 of adapters."""
        return [{key: self.adapters[name][key] for key in ("name", "sha256")} for name in names]

    def _question(self, task: Task) -> dict[str, Any]:
        protocol = {"protocol": self.study.protocol} if self.study.protocol else {}
        return {
            "task": {"name": task.name, "digest": task.digest},
            "base": self.base,
            **self.reading,
            **protocol,
        }

    def _judgement(self, task: Task) -> dict[str, Any]:
        """What is asked, with the rule by which answers are compared where they are texts."""
        metric = score_metric(task, find_protocol(self.study.protocol))
        return {**self._question(task), **({} if metric == "accuracy" else {"answers": metric})}

    def _examples(self, task: Task, seed: int) -> dict[str, Any]:
        selection = self.study.tasks
        return {
            **self._question(task),
            "budget": {"train": selection.train, "valid": selection.valid, "seed": seed},
        }

    def _step(self, kind: str, params: Mapping[str, Any], inputs: Mapping[str, Step] | None = None) -> Step:
        """The step, one object however often it is asked for."""
        step = Step(kind, params, inputs or {})
        return self._made.setdefault(step.key, step)


def _name_background(task: Task) -> str:
    """The input of a pool by gradient that is another task's; `own` is the task's own."""
    return task.name if task.name != "own" else "the task own"


def _data_folder(study_folder: Path, source: str) -> Path:
    """The folder that a study names, relative to its own; a study of loradex itself names data of loradex."""
    if source.startswith(_OWN_DATA) and study_folder == Path(str(files("studies"))):
        return sample_data() / source.removeprefix(_OWN_DATA)
    return study_folder / source


def _tasks(selection: Tasks, folder: Path) -> dict[str, Task]:
    names = selection.names
    if names == "all":
        names = tuple(sorted(path.parent.name for path in folder.glob(f"*/{TASK_NAME}")))
    if not names:
        raise NotFoundError(f"{folder} contains no tasks; give their folder by tasks.from or `tasks`.")
    task_list = [find_task(name, folder) for name in names]
    return {task.name: task for task in task_list}


def _adapters(selection: Adapters, folder: Path, base: Path | None) -> dict[str, dict[str, Any]]:
    """Name, folder, sha256 of the weights, and the task trained on of every adapter, sorted by name.

    Raises MergeError for one that belongs to another model than the base in a folder.
    """
    # A pool that was exported has its adapters in a folder of their own.
    folder = folder / EXPORTED if (folder / EXPORTED).is_dir() else folder
    folders = {path.name: path for path in sorted(folder.glob("*")) if is_adapter_folder(path)}
    names = tuple(folders) if selection.names == "all" else selection.names
    if not folders or (missing := [name for name in names if name not in folders]):
        what = f"no adapter {missing[0]}" if folders else "no adapters"
        raise NotFoundError(f"{folder} contains {what}; give their folder by adapters.from or `adapters`.")
    members = {
        name: load_member(folders[name], name=name, purpose="used in a study") for name in sorted(names)
    }
    if base is not None:
        refuse_misfits(base, members.values())
    return {
        name: {
            "name": name,
            "folder": str(folders[name]),
            "sha256": digest_of(member.weights),
            "trained_on": _task_of_adapter(folders[name]),
        }
        for name, member in members.items()
    }


def _task_of_adapter(folder: Path) -> str | None:
    """The task that an adapter says it was trained on, by its record or as the one dataset of its card; None
    where nothing says so."""
    for name in _TRAINED_ON:
        try:
            document = load_json((folder / name).read_bytes(), max_bytes=_MOST_BYTES)
        except (OSError, ConfigError):
            continue
        task = document.get("task") if isinstance(document, dict) else None
        task = task.get("name") if isinstance(task, dict) else task
        if isinstance(task, str):
            return task
    card = folder / "README.md"
    datasets = parse_card(card.read_bytes()).datasets if card.is_file() else ()
    return datasets[0] if len(datasets) == 1 else None


def _identity(study: Study, bases: Path | None, device: str) -> dict[str, Any]:
    """What a base model is known by; results of a CPU and of a GPU are not the same, nor those of two data
    types."""
    place, default = checkpoint(study.base, bases), default_dtype(device)
    return {
        "name": study.base,
        "digest": _digest(place) if place else None,
        "device": device.partition(":")[0],
        **({"dtype": study.dtype} if study.dtype not in (None, default) else {}),
    }


@lru_cache(maxsize=4)
def _reading(base: str) -> Mapping[str, Any]:
    """How a base is asked where this is not as in the first versions: on which date, not in trees, by another
    token that ends answers, and without thoughts.
    """
    try:
        tokenizer, plain = first_look(base)
    except LoradexError:
        # Nothing can be asked of a base that is not there; the steps will say so.
        return {}
    date = date_of(tokenizer)
    chat = chat_format(tokenizer)
    return {
        **({"date": date} if date else {}),
        **({"reading": "plain"} if plain else {}),
        **({"closing": chat.closing_token} if chat.closing_token != tokenizer.eos_token_id else {}),
        **({"thoughts": "off"} if chat.silences else {}),
    }


@lru_cache(maxsize=4)
def _digest(folder: Path) -> str:
    """The sha256 over the names and hashes of a checkpoint's files."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".safetensors", ".model", ".txt", ".jinja"):
            digest.update(f"{file.name} {digest_of(file)}\n".encode())
    return digest.hexdigest()


def _listing(folder: Path) -> str:
    """The sha256 over names and contents of the cards and configurations below a folder."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.name in ("README.md", "adapter_config.json") and file.is_file():
            digest.update(f"{file.relative_to(folder)} {digest_of(file)}\n".encode())
    return digest.hexdigest()
