"""What a study is: tasks x pools x methods x seeds, and what the report compares.

These are the values that a YAML file says (`studies.file` reads it); paths in them are relative to the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from catalog.errors import UsageError
from merging.learning import VARIANTS, find_adaptive
from merging.methods import find_method
from merging.model import find_protocol
from merging.static import KINDS

# Names are parts of labels, "method | pool, key=value".
Name = Annotated[str, Field(pattern=r"^[^|\s,=\p{C}][^|=,\p{C}\p{Zl}\p{Zp}]{0,59}$")]
Names = Annotated[tuple[str, ...], Field(min_length=1)]
Value = bool | int | float | str
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
# No matrix of a model is wider.
Rank = Annotated[int, Field(ge=1, le=2**18)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]

# The members of pools that are not chosen among the adapters of the study.
_MEMBERS = {"set": "the members of the set", "training": "new LoRAs of the other tasks"}


class StudyPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Tasks(StudyPart):
    """The tasks, their folder, and the numbers of examples for training, validation and test."""

    source: Annotated[str, Field(alias="from")] = "tasks"
    names: Names | Literal["all"] = "all"
    train: Count = 80
    valid: Count = 20
    test: Count | None = None


class Adapters(StudyPart):
    """The adapters that pools are chosen from: a folder with one folder of PEFT's for each.

    Where they are measured one by one, it is on `measure` of the examples that may be learned from, on all of
    them unless said.
    """

    source: Annotated[str, Field(alias="from")] = "adapters"
    names: Names | Literal["all"] = "all"
    measure: Count | None = None


class Sets(StudyPart):
    """Sets of adapters, one a seed: each is merged once, and judged on the tasks that its members were
    trained on and on `others` more, or on all that there are where `others` is not given.

    A set has `size` adapters of as many tasks, drawn by the seed; `named` names the members of the first
    ones.
    """

    size: Annotated[Count, Field(ge=2)] = 7
    others: Annotated[int, Field(ge=0, le=2**31 - 1)] = 7
    named: tuple[tuple[str, ...], ...] = ()


class StudyPool(StudyPart):
    """The selection of a pool, separate for every task and seed.

    `gradient` asks the task's gradient on `samples` of the training examples, `measured` takes the best
    scores on the budget, `prior` the best mean score on the other tasks, `random` draws by the seed, `all`
    takes everything, and `set` is the set of a study of sets, or with `k` the members of it that alone have
    the best mean score on the budgets of its own tasks. `training` draws by the seed among the new LoRAs that
    `method` trains on the other tasks of the study, and needs no adapters. Adapters that were trained on the
    task itself are left out, allowed, put first, or taken alone (`own`). `among` names the adapters to choose
    from, `control` replaces the members by stand-ins. With `seeds` the pool is for some of the study's seeds
    only.
    """

    by: Literal["gradient", "measured", "prior", "random", "all", "set", "training"]
    k: Count | None = None
    method: Name | None = None
    samples: Count = 40
    own: Literal["leave out", "allow", "first", "only"] = "leave out"
    among: Names | None = None
    control: Literal[KINDS] | None = None  # type: ignore[valid-type]
    seeds: Seeds | None = None

    @model_validator(mode="after")
    def _check_settings(self) -> StudyPool:
        if self.k is None and self.by not in ("all", "set", "training"):
            raise ValueError("give the number of members by k")
        if (self.method is None) == (self.by == "training"):
            raise ValueError(
                "a pool by training has the new LoRAs of a method that trains; name it by method"
                if self.method is None
                else f"method is that of a pool by training; remove it from one by {self.by}"
            )
        fields = type(self).model_fields
        ignored = [
            name for name in ("samples", "own", "among") if getattr(self, name) != fields[name].default
        ]
        if self.by in _MEMBERS and ignored:
            raise ValueError(f"a pool by {self.by} has {_MEMBERS[self.by]}; remove {ignored[0]}")
        return self

    @model_serializer(mode="wrap")
    def _leave_out_default(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The pool without `method` if it has none, so that records stay the same."""
        document: dict[str, Any] = serialise(self)
        return {key: value for key, value in document.items() if key != "method" or value}


class _Method(StudyPart):
    over: Mapping[str, Annotated[tuple[Value, ...], Field(min_length=1)]] = {}
    tasks: Names | None = None
    seeds: Seeds | None = None


class Base(_Method):
    """The base model alone."""

    use: Literal["base"]


class Train(_Method):
    """A new LoRA, with one learning rate, several, or the default four."""

    use: Literal["train"]
    rank: Rank = 16
    alpha: Rate | None = None
    targets: tuple[str, ...] | str = "all-linear"
    learning_rate: Rate | None = None
    learning_rates: Annotated[tuple[Rate, ...], Field(min_length=1)] | None = None
    steps: Count = 100
    batch: Count = 8
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    variant: Literal[tuple(VARIANTS)] = "lora"  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _one_way(self) -> Train:
        if self.learning_rate is not None and self.learning_rates is not None:
            raise ValueError("give learning_rate or learning_rates, not both")
        return self


class Pooled(_Method):
    pools: tuple[str, ...] | None = None


class Single(Pooled):
    """The first member of a pool alone."""

    use: Literal["single"]


class Ensemble(Pooled):
    """The mean over the members of the probabilities that each alone gives the answers."""

    use: Literal["ensemble"]


class Merge(Pooled):
    """A merge of a pool; `weight` is that of every member, the method's own unless given."""

    use: Literal["merge"]
    method: str
    rank: Rank | None = None
    weight: Annotated[float, Field(ge=-1e9, le=1e9)] | None = None
    parameters: Mapping[str, Value] = {}


class Adapt(Pooled):
    """An adaptive merge of a pool, with the adapter of another method (`with`) first where one is named."""

    use: Literal["adapt"]
    method: str
    target: Annotated[str | None, Field(alias="with")] = None
    steps: Count | None = None
    learning_rate: Rate | None = None


Method = Base | Train | Single | Ensemble | Merge | Adapt


class StudyClaim(StudyPart):
    """A statement, and the two labels whose difference speaks for or against it.

    `margin` is the difference below which both are about the same, a share of 0 to 1; `expects` what the
    statement says of `compare` beside `with`. Without it the claim is open whatever the numbers say.
    """

    claim: str
    compare: str
    against: Annotated[str, Field(alias="with")]
    margin: Annotated[float, Field(ge=0, le=1)] = 0.02
    expects: Literal["better", "worse", "same", "not better", "not worse"] | None = None

    @model_serializer(mode="wrap")
    def _leave_out_default(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The claim without `expects` if it is not given, so that records stay the same."""
        document: dict[str, Any] = serialise(self)
        return {key: value for key, value in document.items() if key != "expects" or value}


class Report(StudyPart):
    """What the report compares and draws."""

    against: str | None = None
    claims: tuple[StudyClaim, ...] = ()
    figures: tuple[Literal["gains", "relevance", "tuning", "curve", "energy", "wild", "curvature"], ...] = (
        "gains",
    )


class Study(StudyPart):
    """A grid of tasks, pools, methods and seeds over one base model; `protocol` "" is the project's own.

    `dtype` is that of the base's weights, by default float32 on a CPU and bfloat16 on a GPU.
    """

    study: Name
    title: str
    question: str = ""
    base: Annotated[str, Field(min_length=1)]
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    tasks: Tasks
    adapters: Adapters | None = None
    seeds: Seeds = (0,)
    pools: Mapping[Name, StudyPool] = {}
    methods: Annotated[Mapping[Name, Annotated[Method, Field(discriminator="use")]], Field(min_length=1)]
    cards: str | None = None
    report: Report = Report()
    protocol: str = ""
    sets: Sets | None = None

    @field_validator("protocol")
    @classmethod
    def _check_protocol(cls, name: str) -> str:
        try:
            return find_protocol(name).name
        except UsageError as error:
            raise ValueError(str(error)) from error

    @model_serializer(mode="wrap")
    def _leave_out_default(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The study without `dtype`, `protocol` and `sets` if it has none, so that records stay the same."""
        document: dict[str, Any] = serialise(self)
        optional = ("dtype", "protocol", "sets")
        return {key: value for key, value in document.items() if key not in optional or value}


KINDS_OF_METHOD: tuple[type[_Method], ...] = (Base, Train, Single, Ensemble, Merge, Adapt)


def label(method: str, pool: str | None, settings: Mapping[str, Any]) -> str:
    """The name of a cell in claims and tables: "method | pool, key=value"."""
    text = f"{method} | {pool}" if pool else method
    return ", ".join([text, *(f"{key}={_format_value(settings[key])}" for key in sorted(settings))])


def points(over: Mapping[str, Sequence[Value]]) -> Iterator[dict[str, Value]]:
    """Every point of a grid of settings, the last name changing fastest; one empty point without names."""
    grid_points: list[dict[str, Value]] = [{}]
    for name, values in over.items():
        grid_points = [{**point, name: value} for point in grid_points for value in values]
    yield from grid_points


def settle_method(method: Method, point: Mapping[str, Value]) -> Method:
    """The method with the settings of a point; a name that it does not have is a parameter of its merge.

    Raises ValidationError and UsageError for invalid settings.
    """
    document = method.model_dump(by_alias=True, exclude_unset=True) | {"over": {}}
    for name, value in point.items():
        if isinstance(method, Merge) and name not in Merge.model_fields:
            document["parameters"] = {**document.get("parameters", {}), name: value}
        else:
            document[name] = value
    result = type(method).model_validate(document)
    if isinstance(result, Merge):
        find_method(result.method).options(result.parameters)
    return result


def needs_pool(method: Method) -> bool:
    """Whether a method is asked once for every pool."""
    return isinstance(method, Pooled) and not (
        isinstance(method, Adapt) and find_adaptive(method.method).alone
    )


def seeds_of(study: Study, method: Method, pool: str | None) -> tuple[int, ...]:
    """The seeds with which a method is asked on a pool, in the order of the study."""
    own_seeds = (method.seeds, study.pools[pool].seeds if pool else None)
    return tuple(seed for seed in study.seeds if all(some is None or seed in some for some in own_seeds))


def judgements(study: Study) -> tuple[dict[str, Value], ...]:
    """The settings by which the cells of a method differ in what judges them: one without any, or for sets
    their own tasks and others."""
    if study.sets is None:
        return ({},)
    return ({"judged": "own"}, {"judged": "others"}) if study.sets.others else ({"judged": "own"},)


def pools_of(study: Study, method: Method) -> tuple[str | None, ...]:
    """The names of the pools that a method is asked on; None alone for a method without."""
    if not needs_pool(method):
        return (None,)
    names = getattr(method, "pools", None)
    return tuple(study.pools) if names is None else tuple(names)


def eligible(params: Mapping[str, Any]) -> list[str]:
    """The names of the adapters that may be members, by the parameters of the step that chooses a pool."""
    task, own = params["task"]["name"], params["own"]
    alone, kept = own == "only", own in ("first", "allow")
    return [row["name"] for row in params["adapters"] if kept or (row["trained_on"] == task) == alone]


def all_labels(study: Study) -> Iterator[str]:
    """The label of every row of the grid, in its order."""
    for name, method in study.methods.items():
        for pool in pools_of(study, method):
            for point in points(method.over):
                for judged in judgements(study):
                    yield label(name, pool, {**point, **judged})


def use_of(kind: type[_Method]) -> str:
    """The name of the kind of method in a file."""
    use: str = get_args(kind.model_fields["use"].annotation)[0]
    return use


def _format_value(value: Any) -> str:
    return (
        f"{value:g}"
        if isinstance(value, float)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )
