"""The adaptive methods: the learned parameters, their effect, and the published settings.

Sources of formulas and settings are named in each row; deviations from the source are part of the summary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from catalog.errors import UsageError
from merging.learning.course import Objective
from merging.methods import nearest

if TYPE_CHECKING:
    from merging.learning.coefficients import Activation, Granularity, Init

RECYCLING = "https://arxiv.org/abs/2602.12323"
Learner = Literal["none", "coefficients", "candidates", "routing"]


@dataclass(frozen=True, slots=True)
class AdaptiveMethod:
    """A row of the table.

    `learner`: "none" learns nothing, "coefficients" follows gradients of coefficients, "candidates" tries
    vectors of them, "routing" lets each token choose. `granularity`, `activation` and `init` are those of
    `merging.learning`. `rate` is the learning rate, `steps` the number of steps or of tries. `objective`
    is the loss of the right answers, or the entropy among the choices, which needs no labels. `factors` says
    that A and B are trained too, `alone` that only the target adapter takes part, `folds` that the result is
    one adapter.
    """

    name: str
    summary: str
    paper: str
    learner: Learner
    granularity: Granularity = "module"
    activation: Activation = "linear"
    init: Init = "equal"
    rate: float = 0.0
    steps: int = 0
    objective: Objective = "loss"
    factors: bool = False
    alone: bool = False
    folds: bool = True


_learned = partial(AdaptiveMethod, learner="coefficients", init="zero", rate=5e-2, steps=100)

_ROWS = (
    AdaptiveMethod(
        "average",
        "Every member with weight 1/N; nothing is learned. The floor.",
        "https://arxiv.org/abs/2212.04089",
        "none",
        granularity="adapter",
    ),
    _learned(
        "recycling",
        "One coefficient a member and module through a leaky ReLU, from 0 on: the recycling paper's own.",
        RECYCLING,
        activation="leaky_relu",
    ),
    _learned(
        "adamerging",
        "One coefficient a member and module, from 1/sqrt N on, with labels: AdaMerging as the "
        "recycling paper runs it.",
        "https://arxiv.org/abs/2310.02575",
        init="equal_root",
    ),
    _learned(
        "adamerging-entropy",
        "One coefficient a member and layer that make the model sure, without labels: AdaMerging.",
        "https://arxiv.org/abs/2310.02575",
        granularity="layer",
        init="equal",
        rate=1e-2,
        objective="entropy",
    ),
    AdaptiveMethod(
        "lorahub",
        "One coefficient a member within 1.5 of 0, by trial without gradients: LoraHub, but on updates "
        "instead of separate factors, and by CMA-ES instead of NGOpt.",
        "https://arxiv.org/abs/2307.13269",
        "candidates",
        granularity="adapter",
        init="zero",
        steps=100,
    ),
    _learned(
        "soups",
        "A softmax over members in each module: LoRA Soups (CAT), at the rate of the recycling paper.",
        "https://arxiv.org/abs/2410.13025",
        activation="softmax",
    ),
    _learned(
        "pi-tuning",
        "A softmax over members in each module, and the members' factors trained with it: pi-Tuning.",
        "https://arxiv.org/abs/2304.14381",
        activation="softmax",
        rate=1e-4,
        factors=True,
    ),
    AdaptiveMethod(
        "arrow",
        "Each token goes to the 4 members whose strongest direction it fits; nothing is learned: Arrow.",
        "https://arxiv.org/abs/2405.11157",
        "routing",
        folds=False,
    ),
    AdaptiveMethod(
        "arrow-trained",
        "Arrow with its directions trained, as the recycling paper runs it.",
        RECYCLING,
        "routing",
        rate=1e-2,
        steps=400,
        folds=False,
    ),
    _learned(
        "target-rescaled",
        "The target adapter alone, with coefficients learned as by recycling: what rescaling alone gives.",
        RECYCLING,
        activation="leaky_relu",
        init="one_hot",
        alone=True,
    ),
    _learned(
        "target-continued",
        "The target adapter alone, trained on for as many steps: what more training alone gives.",
        RECYCLING,
        activation="softmax",
        rate=1e-4,
        factors=True,
        alone=True,
    ),
)
ADAPTIVE: Mapping[str, AdaptiveMethod] = {row.name: row for row in _ROWS}


def find_adaptive(name: str) -> AdaptiveMethod:
    """The row of that name; raises UsageError with the nearest names."""
    if name not in ADAPTIVE:
        raise UsageError(f"Unknown adaptive method {name!r}; {nearest(name, ADAPTIVE)}.")
    return ADAPTIVE[name]
