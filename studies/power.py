"""What a study will take here, and what its tasks and seeds can tell, before it runs.

Costs are those of the steps that are done, by kind; of those that were done here before those of a log, which
may be of another machine. The spread of differences is that of the recorded studies (docs/results): rows with
the new LoRA among the members differ by 3.1 points over tasks and 3.4 over seeds, merges without it, as in
sets of adapters, by 5.5 and 4.3.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from studies.design import Study
from studies.store import Place, Step

TASK_SPREAD, SEED_SPREAD = 3.1, 3.4
MERGE_TASK_SPREAD, MERGE_SEED_SPREAD = 5.5, 4.3
EFFECTS = (1.0, 2.0, 3.0)
_LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Power:
    """What a number of tasks and seeds can tell: half the width of a 95 % interval in points, None for one
    task, and the chance in percent that a true difference of 1, 2 or 3 points is found among the claims.

    The chance is that at Bonferroni's level, the worst case of Holm's adjustment. With `set_size` what counts
    once are sets of adapters, each by the mean over that many tasks.
    """

    tasks: int
    seeds: int
    half_width: float | None
    found: dict[str, int]
    set_size: int | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """The seconds that the steps which are left will take, as those of their kinds took here on average.

    `measured` counts the steps that this rests on. Steps of kinds that were done elsewhere alone, `logged` of
    them, are in `seconds_elsewhere`; `unmeasured` are the steps that are left of kinds of which none is done.
    """

    seconds: float
    measured: int
    unmeasured: dict[str, int]
    seconds_elsewhere: float = 0.0
    logged: int = 0


def power_of(tasks: int, seeds: int, claims: int = 1, set_size: int | None = None) -> Power:
    """The power of paired differences over this many tasks and seeds, or sets of adapters in place of tasks.

    By the noncentral F distribution, that of t squared; scipy's noncentral t is NaN at 1,000 tasks. Seeds are
    averaged within a task first. Of a set the tasks are averaged, as if their differences did not depend on
    one another.
    """
    from scipy.stats import ncf, t

    if tasks < 2:
        return Power(tasks, seeds, None, {}, set_size)
    variance = TASK_SPREAD**2 + SEED_SPREAD**2 / seeds
    if set_size:
        variance = (MERGE_TASK_SPREAD**2 + MERGE_SEED_SPREAD**2 / seeds) / set_size
    error, df = math.sqrt(variance / tasks), tasks - 1
    bound = float(t.ppf(1 - _LEVEL / max(claims, 1) / 2, df))
    found = {}
    for effect in EFFECTS:
        chance = ncf.sf(bound**2, 1, df, (effect / error) ** 2)
        found[f"{effect:g}"] = round(100 * float(chance))
    return Power(tasks, seeds, float(t.ppf(1 - _LEVEL / 2, df)) * error, found, set_size)


def study_powers(study: Study, tasks: int) -> list[Power]:
    """The power of the study, then that of cheaper cuts: one seed, half of the tasks, and both.

    Sets of adapters, one a seed, stand in the place of tasks.
    """
    seeds, claims, size = len(study.seeds), len(study.report.claims), None
    if study.sets:
        tasks, seeds, size = seeds, 1, study.sets.size
    cuts = [(tasks, seeds), (tasks, 1), (tasks // 2, seeds), (tasks // 2, 1)]
    return [power_of(*cut, claims, size) for cut in dict.fromkeys(cuts) if cut[0] > 0]


def estimate_cost(place: Place, steps: Sequence[Step], pending: Sequence[Step]) -> Cost:
    """What the `pending` ones of the steps will take, by the mean of those of their kind that are done."""
    left = {step.key for step in pending}
    here: dict[str, list[float]] = defaultdict(list)
    elsewhere: dict[str, list[float]] = defaultdict(list)
    for step in steps:
        if step.key not in left:
            seconds = place.seconds_here(step)
            if seconds is not None:
                here[step.kind].append(seconds)
            else:
                elsewhere[step.kind].append(place.seconds(step))
    total, total_elsewhere, unmeasured = 0.0, 0.0, defaultdict[str, int](int)
    kinds_elsewhere = set()
    for step in pending:
        if times := here.get(step.kind):
            total += math.fsum(times) / len(times)
        elif times := elsewhere.get(step.kind):
            total_elsewhere += math.fsum(times) / len(times)
            kinds_elsewhere.add(step.kind)
        else:
            unmeasured[step.kind] += 1
    return Cost(
        seconds=total,
        measured=sum(len(here[kind]) for kind in {step.kind for step in pending} if kind in here),
        unmeasured=dict(sorted(unmeasured.items())),
        seconds_elsewhere=total_elsewhere,
        logged=sum(len(elsewhere[kind]) for kind in kinds_elsewhere),
    )
