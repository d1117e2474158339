"""`loradex.run_study`, `report_study` and the studies that come with the program."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from catalog.errors import UsageError
from catalog.settings import Settings
from loradex.arguments import check_arguments
from loradex.members import settings_of
from loradex.progress import ProgressOption, ProgressStep, reporting
from loradex.rows import Rows
from studies.power import Power
from studies.pricing import LOCAL_MODEL, StudyPrice
from studies.store import StudyOutcome as StudyOutcome

if TYPE_CHECKING:
    from loradex.catalog import Catalog
    from studies.design import Study
    from studies.file import StudyFile
    from studies.grid import Grid
    from studies.run import Executor

_MOST_PROCESSES = 10_000


@dataclass(frozen=True)
class StudyRow:
    """A study that comes with the program: the name for `run_study`, and its title."""

    study: str
    title: str


@dataclass(frozen=True)
class SmallPool:
    """A pool of `k` members on a task for which there are only so many (`members`); one for each seed."""

    task: str
    k: int
    members: int


@dataclass(frozen=True)
class StudyPlan:
    """What a study has to do: its cells, its steps by kind, and how many steps are done.

    `seconds_left` is the time here of the steps that are left, by the mean of the `measured` steps of the
    same kind that were done here. `seconds_elsewhere` is that of kinds which only the log has, by `logged`
    steps of it; their run may have been on another machine. Steps of kinds not done yet are counted in
    `unmeasured`. `power` says what the study can tell, then what cheaper cuts of it could. `price` says what
    is left on the machine of a doctor report. `base` is the base model that the study asks, and `dtype` its
    data type where the study names one. `small_pools` has the tasks' pools that will have fewer members than
    they ask for, since there are no more to choose from.
    """

    cells: int
    steps: int
    done: int
    kinds: dict[str, int]
    seconds_left: float = 0.0
    measured: int = 0
    unmeasured: dict[str, int] = field(default_factory=dict)
    power: tuple[Power, ...] = ()
    price: StudyPrice | None = None
    seconds_elsewhere: float = 0.0
    logged: int = 0
    base: str = ""
    dtype: str = ""
    small_pools: tuple[SmallPool, ...] = ()

    def sentences(self) -> list[str]:
        """How long the rest will take, what the study and its cuts can tell, and which pools are small."""
        cost = _cost_sentences(self) if self.price is None else _price_sentences(self, self.price)
        return [*cost, *map(_power_sentence, self.power), *_small_pool_sentences(self.small_pools)]


@dataclass(frozen=True)
class StudyReport:
    """The files of a report, and the sentences that the numbers allow."""

    page: str
    markdown: str
    says: Sequence[str]


@dataclass(frozen=True)
class StudyRequest:
    """A study to be counted (`plan`) or run (`run`); the arguments are those of `run_study`."""

    file: str | Path
    out: str | Path
    tasks: str | Path | None = None
    adapters: str | Path | None = None
    cards: str | Path | None = None
    device: str = "cpu"
    threads: int = 1
    ray: bool = False
    address: str | None = None
    workers: int | None = None
    gpu_share: float | None = None
    catalog: Catalog | Settings | None = None

    @check_arguments
    def plan(self, *, doctor: str | Path | None = None) -> StudyPlan:
        """Checks the file and counts what there is to do; writes nothing.

        With `doctor`, a file with the JSON document of `loradex.doctor`, what is left is priced in hours of
        the machine that it describes; neither that machine nor the base model need be here. Raises
        UsageError and NotFoundError.
        """
        return _make_plan(*self._read(), doctor=_path(doctor))

    @check_arguments
    def run(self, *, progress: ProgressOption = False) -> StudyOutcome:
        """Runs what is not done; see `run_study`."""
        from studies.run import run

        file, grid = self._read()
        with reporting(progress) as report:
            step = ProgressStep(report, "steps")
            for sentence in _make_plan(file, grid).sentences():
                step.note(sentence)
            outcome = run(file, grid, executor=self._executor(), progress=step.working)
            for error in outcome.errors:
                step.note(f"failed: {error}")
        return replace(outcome, folder=Path(self.out))

    def _read(self) -> tuple[StudyFile, Grid]:
        from studies.file import read_study
        from studies.grid import grid
        from studies.run import refuse_other

        self._check_numbers()
        file = read_study(str(self.file))
        self._executor()
        out, tasks, adapters, cards = _folders(self.out, self.tasks, self.adapters, self.cards)
        refuse_other(out)
        settings = settings_of(self.catalog)
        return file, grid(
            file.study,
            file.folder,
            out,
            bases=settings.bases if settings else None,
            tasks=tasks,
            adapters=adapters,
            cards=cards,
            device=self.device,
            threads=self.threads,
        )

    def _check_numbers(self) -> None:
        for name, value in (("threads", self.threads), ("workers", self.workers)):
            if value is not None and not 1 <= value <= _MOST_PROCESSES:
                raise UsageError(f"`{name}` must be from 1 to {_MOST_PROCESSES:,}, not {value}.")
        if self.gpu_share is not None and not 0 <= self.gpu_share <= _MOST_PROCESSES:
            raise UsageError(f"`gpu_share` must be a number from 0 up, not {self.gpu_share}.")
        if self.device in ("", "auto"):
            raise UsageError("A study is of one kind of `device`, since results differ; give cpu or cuda.")

    def _executor(self) -> Executor:
        from studies.run import one_by_one

        if not self.ray:
            if self.address or self.workers or self.gpu_share is not None:
                raise UsageError(
                    "`address`, `workers` and `gpu_share` belong to Ray; ask for it by `ray=True`."
                )
            return one_by_one
        from studies.run import Ray

        if self.address and self.workers:
            raise UsageError("A cluster at `address` has its own workers; leave out `workers`.")
        share = self.gpu_share
        if share is None:
            share = 1.0 if self.device.startswith("cuda") else 0.0
        return Ray(self.address, self.workers, share)


@check_arguments
def run_study(
    file: str | Path,
    out: str | Path,
    *,
    tasks: str | Path | None = None,
    adapters: str | Path | None = None,
    cards: str | Path | None = None,
    device: str = "cpu",
    threads: int = 1,
    ray: bool = False,
    address: str | None = None,
    workers: int | None = None,
    gpu_share: float | None = None,
    catalog: Catalog | Settings | None = None,
    progress: ProgressOption = False,
) -> StudyOutcome:
    """Runs a study (tasks x pools x methods x seeds) as far as it is not done.

    Args:
        file: A YAML file, or the name of a row of `built_in_studies()`.
        out: The folder of the study's work. A run that was stopped continues there; a changed line of the
            file computes again only what depends on it.
        tasks: The folder of the tasks, where the file does not name one.
        adapters: The folder of the adapters, where the file does not name one.
        cards: The folder of model cards of adapters from the wild.
        device: "cpu", "cuda" or "cuda:N".
        threads: Threads of a step; other numbers round differently.
        ray: Distribute the steps by Ray, on this machine or at `address`.
        address: A Ray cluster to use.
        workers: Ray workers on this machine.
        gpu_share: GPUs of a step with Ray; 1 on cuda by default.
        catalog: Whose data folder holds base models.
        progress: See `loradex.progress`.

    Returns:
        How many cells are done, failed and missing. Failed cells keep their error, and the others go on.

    Raises:
        UsageError: The file or an argument is not valid, or another run is at work in the folder.
        NotFoundError: Tasks, adapters or cards are not found.
        StorageError: The disk refuses.

    Writes:
        results.jsonl (one line a cell), study.json, and one folder a step.

    Example:
        >>> loradex.run_study("small", "small-study").missing
        0
    """
    study = StudyRequest(
        file,
        out,
        tasks=tasks,
        adapters=adapters,
        cards=cards,
        device=device,
        threads=threads,
        ray=ray,
        address=address,
        workers=workers,
        gpu_share=gpu_share,
        catalog=catalog,
    )
    return study.run(progress=progress)


@check_arguments
def report_study(out: str | Path) -> StudyReport:
    """Writes the report of a study into its folder: report.html, report.md, summary.json and pictures/.

    Reads only study.json and results.jsonl.

    Raises:
        NotFoundError: The folder does not contain a study.
        StorageError: The disk refuses.

    Example:
        >>> loradex.report_study("small-study").page
        'small-study/report.html'
    """
    from studies.run import report

    return StudyReport(**report(Path(out)))


def built_in_studies() -> Rows[StudyRow]:
    """The studies that come with the program."""
    from studies.file import built_in, read_study

    return Rows((StudyRow(name, read_study(name).study.title) for name in built_in()), StudyRow)


def _make_plan(file: StudyFile, grid: Grid, *, doctor: Path | None = None) -> StudyPlan:
    from studies.power import estimate_cost, study_powers
    from studies.pricing import price, read_speed
    from studies.store import in_order, pending_steps

    steps, pending = list(in_order(grid.steps)), pending_steps(grid.place, grid.steps)
    cost = estimate_cost(grid.place, steps, pending)
    tasks = len({cell.task for cell in grid.cells})
    return StudyPlan(
        cells=len(grid.cells),
        steps=len(steps),
        done=len(steps) - len(pending),
        kinds=dict(sorted(Counter(step.kind for step in steps).items())),
        seconds_left=round(cost.seconds, 1),
        measured=cost.measured,
        unmeasured=cost.unmeasured,
        power=tuple(study_powers(file.study, tasks)),
        price=None if doctor is None else price(grid.place, pending, read_speed(doctor)),
        seconds_elsewhere=round(cost.seconds_elsewhere, 1),
        logged=cost.logged,
        base=file.study.base,
        dtype=file.study.dtype or "",
        small_pools=tuple(_small_pools(file.study, grid)),
    )


def _small_pools(study: Study, grid: Grid) -> Iterator[SmallPool]:
    from studies.design import eligible

    steps: set[str] = set()
    for cell in grid.cells:
        pool = study.pools[cell.pool] if cell.pool else None
        if pool is None or pool.k is None or pool.by in ("all", "set"):
            continue
        step = cell.about[0]
        step = step.inputs["pool"] if pool.control else step
        members = len(step.inputs) if pool.by == "training" else len(eligible(step.params))
        if members < pool.k and step.key not in steps:
            steps.add(step.key)
            yield SmallPool(cell.task, pool.k, members)


def _small_pool_sentences(pools: Sequence[SmallPool]) -> Iterator[str]:
    from catalog.pictures import count_noun

    for k in sorted({pool.k for pool in pools}):
        sizes = [pool.members for pool in pools if pool.k == k]
        least, most = min(sizes), max(sizes)
        some = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        tasks = count_noun(len({pool.task for pool in pools if pool.k == k}), "task")
        yield f"pools of {k:,} have {some} members on {tasks}, since there are no more to choose from"


def _cost_sentences(plan: StudyPlan) -> Iterator[str]:
    from catalog.pictures import count_noun
    from studies.pricing import PRICED
    from studies.report.wording import counts, duration

    if plan.seconds_left:
        left, steps = duration(plan.seconds_left), count_noun(plan.measured, "step")
        yield f"about {left} left here on one process, by {steps} done here"
    if plan.seconds_elsewhere:
        left = duration(plan.seconds_elsewhere)
        steps = count_noun(plan.logged, "step")
        yield f"about {left} by the times of {steps} that the log has of another run, on its machine"
    if plan.unmeasured:
        yield f"time not known before a first step of each kind is done: {counts(plan.unmeasured)}"
    if PRICED & plan.unmeasured.keys():
        dtype = f" --dtype {plan.dtype}" if plan.dtype else ""
        doctor = f"loradex doctor --base {shlex.quote(plan.base)}{dtype} --json > doctor.json"
        yield (
            f"to have it estimated before: `{doctor}` on the machine that is to do it, then count the study "
            "with --dry-run --doctor doctor.json"
        )


def _price_sentences(plan: StudyPlan, price: StudyPrice) -> Iterator[str]:
    from studies.report.wording import counts, duration

    parts = ", ".join(f"{kind} {duration(3600 * hours)}" for kind, hours in price.hours.items())
    if parts:
        total = duration(3600 * price.total)
        yield f"about {total} on {price.machine} with {price.model}, by its doctor report: {parts}"
        if price.model not in (plan.base, LOCAL_MODEL):
            yield f"the study asks {plan.base}, for which {price.model} may be too fast or too slow"
        if plan.dtype and price.dtype not in (plan.dtype, ""):
            asked = f"{plan.base} in {plan.dtype}"
            yield f"the study asks {asked}, for which {price.dtype} may be too fast or too slow"
    else:
        yield "no step is left that is priced by a doctor report"
    if price.unpriced:
        yield f"not priced: {counts(price.unpriced)}"


def _power_sentence(power: Power) -> str:
    from catalog.pictures import count_noun

    size = f"{count_noun(power.tasks, 'task')} × {count_noun(power.seeds, 'seed')}"
    if power.set_size:
        size = f"{count_noun(power.tasks, 'set')} of {count_noun(power.set_size, 'adapter')}"
    if power.half_width is None:
        return f"{size}: no interval"
    chances = " / ".join(f"{chance} %" for chance in power.found.values())
    return f"{size}: ± {power.half_width:.1f} points; finds {' / '.join(power.found)} points with {chances}"


@check_arguments
def _folders(
    out: str | Path, tasks: str | Path | None, adapters: str | Path | None, cards: str | Path | None
) -> tuple[Path, Path | None, Path | None, Path | None]:
    return Path(out), _path(tasks), _path(adapters), _path(cards)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
