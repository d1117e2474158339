"""What a study will take here, and what its tasks and seeds can tell, before it runs.

Costs are those of the steps that are done, by kind. The spread of differences is that of the recorded studies
(docs/results): rows with the new LoRA among the members differ by 3.1 points over tasks and 3.4 over seeds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from studies.design import Study
from studies.store import Place, Step

TASK_SPREAD, SEED_SPREAD = 3.1, 3.4
EFFECTS = (1.0, 2.0, 3.0)
_LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Power:
    """What a number of tasks and seeds can tell: half the width of a 95 % interval in points, None for one
    task, and the chance in percent that a true difference of 1, 2 or 3 points is found among the claims.

    The chance is that at Bonferroni's level, the worst case of Holm's adjustment.
    """

    tasks: int
    seeds: int
    half_width: float | None
    found: dict[str, int]


@dataclass(frozen=True, slots=True)
class Cost:
    """The seconds that the steps which are left will take here, as those of their kinds took on average.

    `measured` counts the steps that this rests on; `unmeasured` the steps that are left of kinds of which
    none is done, which are not in the seconds.
    """

    seconds: float
    measured: int
    unmeasured: dict[str, int]


def power_of(tasks: int, seeds: int, claims: int = 1) -> Power:
    """The power of paired differences over this many tasks and seeds.

    The noncentral t distribution; seeds are averaged within a task first.
    """
    from scipy.stats import nct, t

    if tasks < 2:
        return Power(tasks, seeds, None, {})
    error, df = math.sqrt((TASK_SPREAD**2 + SEED_SPREAD**2 / seeds) / tasks), tasks - 1
    bound = float(t.ppf(1 - _LEVEL / max(claims, 1) / 2, df))
    found = {}
    for effect in EFFECTS:
        chance = nct.sf(bound, df, effect / error) + nct.cdf(-bound, df, effect / error)
        found[f"{effect:g}"] = round(100 * float(chance))
    return Power(tasks, seeds, float(t.ppf(1 - _LEVEL / 2, df)) * error, found)


def study_powers(study: Study, tasks: int) -> list[Power]:
    """The power of the study, then that of cheaper cuts: one seed, half of the tasks, and both.

    Sets of adapters count as tasks, each once.
    """
    seeds, claims = len(study.seeds), len(study.report.claims)
    if study.sets:
        tasks, seeds = seeds, 1
    cuts = [(tasks, seeds), (tasks, 1), (tasks // 2, seeds), (tasks // 2, 1)]
    return [power_of(*cut, claims) for cut in dict.fromkeys(cuts) if cut[0] > 0]


def estimate_cost(place: Place, steps: Sequence[Step], pending: Sequence[Step]) -> Cost:
    """What the `pending` ones of the steps will take, by the mean of those of their kind that are done."""
    left = {step.key for step in pending}
    seconds_by_kind: dict[str, list[float]] = defaultdict(list)
    for step in steps:
        if step.key not in left:
            seconds_by_kind[step.kind].append(place.seconds(step))
    total, unmeasured = 0.0, defaultdict[str, int](int)
    for step in pending:
        if times := seconds_by_kind.get(step.kind):
            total += math.fsum(times) / len(times)
        else:
            unmeasured[step.kind] += 1
    return Cost(total, sum(map(len, seconds_by_kind.values())), dict(sorted(unmeasured.items())))
