"""What each kind of step does: a function of what it is told, of its inputs' results, and of a new folder.

Every function is given a job and gives what result.json says. An adapter that a step made is named by
"adapter", its folder below the steps; members are told by "members", each an adapter of the study by "name"
or made by a step ("adapter"). What ends in a cell of the results is in "score" and "detail".
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from catalog.errors import ConfigError, EvaluationError
from studies.design import eligible
from studies.store import Place

if TYPE_CHECKING:
    from merging.members import MergeMember
    from merging.model import BaseDtype, ExampleBudget, LoadedBase, Protocol, Task

Told = Mapping[str, Any]
Found = Mapping[str, dict[str, Any]]
ADAPTER = "adapter"
_MAX_CONFIG = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Job:
    """What a step is given: the place, its key, its parameters, its inputs' results, and a new folder."""

    place: Place
    key: str
    params: Told
    inputs: Found
    out: Path


class Asking(TypedDict):
    """The keywords by which functions of merging ask a model."""

    protocol: Protocol
    too_long: Literal["error", "skip"]


def score(job: Job) -> dict[str, Any]:
    """The score on test examples of the base, or of the adapter that an input made or chose."""
    from merging.evaluation import measure
    from merging.model import draw

    base, task = _base(job.place), _task(job)
    questions = draw(task, "test", job.params["test"])
    with _with_adapter(job, base, job.inputs["adapter"]) if job.inputs else contextlib.nullcontext():
        return {"score": measure(base, task, questions, **_asking(job)).document()}


def train(job: Job) -> dict[str, Any]:
    """A new LoRA at one learning rate."""
    from merging.learning import train as trained

    report = trained(
        _base(job.place),
        _task(job),
        _budget(job),
        job.out / ADAPTER,
        learning_rates=[job.params["learning_rate"]],
        seed=job.params["budget"]["seed"],
        **job.params["settings"],
        **_asking(job),
    )
    detail = {
        "learning_rate": report.learning_rate,
        "valid_loss": report.valid_loss,
        "valid_before": report.record["valid_loss_before"],
        "rank": report.record["settings"]["rank"],
    }
    adapter = {"adapter": f"{job.key}/{ADAPTER}", "called": "new LoRA"}
    return {**adapter, "mergeable": report.record["mergeable"], "detail": detail}


def curvature(job: Job) -> dict[str, Any]:
    """The largest curvature of the loss in the parameters of a new adapter at its start."""
    from merging.learning import Recipe, TrainingSettings, curvature_at_start

    params, settings = job.params, job.params["settings"]
    targets = settings["targets"]
    result = curvature_at_start(
        _base(job.place),
        _task(job),
        _budget(job).train[: params["samples"]],
        TrainingSettings(
            rank=settings["rank"],
            alpha=settings["alpha"],
            targets=targets if isinstance(targets, str) else tuple(targets),
            variant=settings["variant"],
            dropout=0.0,
            dtype="float32",
            recipe=Recipe(1, seed=params["budget"]["seed"]),
        ),
        iterations=params["iterations"],
        **_asking(job),
    )
    return {"detail": {"curvature": result.value, "curvature_residual": result.residual}}


def pick(job: Job) -> dict[str, Any]:
    """The one of several trainings with the lowest validation loss, the lower rate of equals."""
    if not job.inputs:
        raise EvaluationError("The loss became infinite with every learning rate; choose lower ones.")
    best = min(
        job.inputs.values(),
        key=lambda result: (result["detail"]["valid_loss"], result["detail"]["learning_rate"]),
    )
    rates = sorted(result["detail"]["learning_rate"] for result in job.inputs.values())
    edge = {rates[0]: "lowest", rates[-1]: "highest"}.get(best["detail"]["learning_rate"])
    return {**best, "detail": {**best["detail"], "edge": edge if len(rates) > 1 else None}}


def measure_adapters(job: Job) -> dict[str, Any]:
    """The score of the base and of every adapter alone on examples that may be learned from."""
    from merging.evaluation import measure

    base, task, examples = _base(job.place), _task(job), _budget(job).all[: job.params.get("samples")]
    scores: dict[str, Any] = {}
    asking = _asking(job)
    for adapter in job.params["adapters"]:
        with _with_adapter(job, base, {"name": adapter["name"]}):
            scores[adapter["name"]] = measure(base, task, examples, **asking).document()
    return {"base": measure(base, task, examples, **asking).document(), "scores": scores}


def gradient(job: Job) -> dict[str, Any]:
    """How far downhill every adapter points on the task, exactly, per norm of its update."""
    from merging.learning import exact_scores

    names = [adapter["name"] for adapter in job.params["adapters"]]
    members = [_member(job.place, {"name": name}) for name in names]
    examples = _budget(job).train[: job.params["samples"]]
    scores = exact_scores(_base(job.place), _task(job), examples, members, **_asking(job))
    return {"scores": dict(zip(names, scores, strict=True))}


def pool(job: Job) -> dict[str, Any]:
    """The members of a pool, best first; those of equal worth by name."""
    params, task = job.params, job.params["task"]["name"]
    own = {adapter["name"] for adapter in params["adapters"] if adapter["trained_on"] == task}
    worth = _WORTH[params["by"]](job, [adapter["name"] for adapter in params["adapters"]])
    order = sorted(eligible(params), key=lambda name: ([-value for value in worth[name]], name))
    if params["own"] == "first":
        order.sort(key=lambda name: name not in own)
    members = order[: params["k"]]
    if not members:
        raise EvaluationError(f"No adapter is left for a pool on {task}; allow others.")
    detail = {"members": members, "own": any(name in own for name in members)}
    return {"members": [{"name": name} for name in members], "detail": detail}


def take_set(job: Job) -> dict[str, Any]:
    """The members of a set in its order, or the best of them; those of equal worth in its order."""
    members = [adapter["name"] for adapter in job.params["adapters"]]
    if "k" in job.params:
        worth = _by_prior(job, members)
        members = sorted(members, key=lambda name: -worth[name][0])[: job.params["k"]]
    return {"members": [{"name": name} for name in members], "detail": {"members": members}}


def take_trainings(job: Job) -> dict[str, Any]:
    """The new LoRAs of other tasks, each called by its task."""
    tasks = job.params["tasks"]
    members = [{"adapter": job.inputs[task]["adapter"], "called": task} for task in tasks]
    return {"members": members, "detail": {"members": tasks}}


def relevance(job: Job) -> dict[str, Any]:
    """How much the members alone lower the loss on the budget's examples, in nats a token, on average."""
    scores, before = job.inputs["measured"]["scores"], job.inputs["measured"]["base"]["loss"]
    gains = [before - scores[member["name"]]["loss"] for member in job.inputs["pool"]["members"]]
    return {"detail": {"relevance": math.fsum(gains) / len(gains)}}


def stand_ins(job: Job) -> dict[str, Any]:
    """Stand-ins of a pool's members."""
    from merging.static import stand_ins as made

    _take_threads(job.place)
    members = made(
        _members(job.place, job.inputs["pool"]),
        job.params["control"],
        job.out / "members",
        job.params["seed"],
        base=job.place.base,
    )
    below = [f"{job.key}/members/{member.folder.name}" for member in members]
    detail = {**job.inputs["pool"]["detail"], "control": job.params["control"]}
    return {"members": [{"adapter": adapter} for adapter in below], "detail": detail}


def merge(job: Job) -> dict[str, Any]:
    """A merge of a pool."""
    from merging.static import carry_out, plan

    _take_threads(job.place)
    members = _members(job.place, job.inputs["pool"])
    weight = job.params.get("weight")
    planned = plan(
        members,
        job.params["method"],
        weights=None if weight is None else [weight] * len(members),
        parameters=job.params["parameters"],
        rank=job.params["rank"],
        seed=job.params["seed"],
        base=job.place.base,
        dtype="float32",
    )
    report = carry_out(planned, job.out / ADAPTER)
    ranks = [module.rank for module in report.modules.values()]
    # The norm of an untruncated sum of high rank is not measured.
    energy = {} if report.energy_share is None else {"energy": report.energy_share}
    detail = {"rank": max(ranks, default=0), **energy}
    return {"adapter": f"{job.key}/{ADAPTER}", "detail": detail}


def clusters(job: Job) -> dict[str, Any]:
    """The share of the energy of its members' units that LoRA-LEGO holds in its centroids."""
    from merging.methods import centroid_energy
    from merging.static import plan, works

    _take_threads(job.place)
    params = job.params
    planned = plan(
        _members(job.place, job.inputs["pool"]),
        params["method"],
        parameters=params["parameters"],
        rank=params["rank"],
        seed=params["seed"],
        base=job.place.base,
    )
    held, total = zip(*(centroid_energy(work) for work in works(planned)), strict=True)
    return {"detail": {"energy": math.fsum(held) / math.fsum(total) if any(total) else 1.0}}


def single(job: Job) -> dict[str, Any]:
    """The first member of a pool, as an adapter."""
    return {**job.inputs["pool"]["members"][0], "detail": {}}


def ensemble(job: Job) -> dict[str, Any]:
    """The score of the mean over members of the probabilities that each gives."""
    from merging.evaluation import measure_ensemble
    from merging.model import draw

    base, task = _base(job.place), _task(job)
    members = _members(job.place, job.inputs["pool"])
    value = measure_ensemble(base, members, task, draw(task, "test", job.params["test"]), **_asking(job))
    return {"score": value.document(), "detail": {}}


def adapt(job: Job) -> dict[str, Any]:
    """The score of an adaptive merge, measured where it was learned."""
    from merging.evaluation import measure
    from merging.learning import adapt as adapted
    from merging.model import draw

    base, task = _base(job.place), _task(job)
    target = _member(job.place, job.inputs["target"]) if "target" in job.inputs else None
    done = adapted(
        base,
        _members(job.place, job.inputs["pool"]) if "pool" in job.inputs else [],
        task,
        _budget(job),
        job.params["method"],
        target=target,
        seed=job.params["budget"]["seed"],
        **job.params["settings"],
        **_asking(job),
    )
    with done.apply():
        value = measure(base, task, draw(task, "test", job.params["test"]), **_asking(job))
    detail = {"valid_before": done.valid_before, "valid_loss": done.valid_loss}
    return {"score": value.document(), "detail": detail}


KINDS: Mapping[str, Callable[[Job], dict[str, Any]]] = {
    "adapt": adapt,
    "cards": lambda job: hyperparameters(job.place.source),
    "clusters": clusters,
    "curvature": curvature,
    "ensemble": ensemble,
    "gradient": gradient,
    "measured": measure_adapters,
    "merge": merge,
    "pick": pick,
    "pool": pool,
    "relevance": relevance,
    "score": score,
    "set": take_set,
    "single": single,
    "stand-ins": stand_ins,
    "train": train,
    "trainings": take_trainings,
}


# How much each adapter is worth, the more the better; what follows in a tuple decides among equals.
_Worth = Mapping[str, tuple[float, ...]]


def _by_gradient(job: Job, names: Sequence[str]) -> _Worth:
    from merging.learning import center_scores

    backgrounds = [result["scores"] for key, result in job.inputs.items() if key != "own"]
    rows = [[row[name] for name in names] for row in (job.inputs["own"]["scores"], *backgrounds)]
    return {name: (value,) for name, value in zip(names, center_scores(rows), strict=True)}


def _by_measure(job: Job, names: Sequence[str]) -> _Worth:
    scores = job.inputs["own"]["scores"]
    return {name: (scores[name]["value"], -scores[name]["loss"]) for name in names}


def _by_prior(job: Job, names: Sequence[str]) -> _Worth:
    rows = [result["scores"] for result in job.inputs.values()]
    return {name: (math.fsum(row[name]["value"] for row in rows) / len(rows),) for name in names}


def _by_chance(job: Job, names: Sequence[str]) -> _Worth:
    key = f"pool:{job.params['task']['name']}:{job.params['seed']}"
    draw = random.Random(key)  # noqa: S311 - a draw, not a secret
    return {name: (draw.random(),) for name in sorted(names)}


_WORTH: Mapping[str, Callable[[Job, Sequence[str]], _Worth]] = {
    "all": lambda job, names: dict.fromkeys(names, ()),
    "gradient": _by_gradient,
    "measured": _by_measure,
    "prior": _by_prior,
    "random": _by_chance,
}


def _take_threads(place: Place) -> None:
    """Torch works on the study's threads from here, whatever this process did before."""
    import torch

    torch.set_num_threads(place.threads)


def _base(place: Place) -> LoadedBase:
    _take_threads(place)
    return _load_once(place.base, place.bases, place.device, place.dtype)


@lru_cache(maxsize=1)
def _load_once(base: str, bases: Path | None, device: str, dtype: BaseDtype | None) -> LoadedBase:
    """The base model, read once a process."""
    from merging.model import load_base

    return load_base(base, bases=bases, device=device, dtype=dtype)


def _asking(job: Job) -> Asking:
    """The protocol of the study; by the recycling paper's, examples that are too long are left out."""
    from merging.model import find_protocol

    protocol = find_protocol(job.params.get("protocol", ""))
    return {"protocol": protocol, "too_long": "skip" if protocol.question_limit else "error"}


def _task(job: Job) -> Task:
    from merging.model import read_task

    return read_task(job.place.tasks[job.params["task"]["name"]])


def _budget(job: Job) -> ExampleBudget:
    from merging.model import budget

    example_counts = job.params["budget"]
    n = example_counts["train"] + example_counts["valid"]
    return budget(_task(job), n, seed=example_counts["seed"], valid=example_counts["valid"] / n)


@contextlib.contextmanager
def _with_adapter(job: Job, base: LoadedBase, member: Mapping[str, Any]) -> Iterator[None]:
    """Inside the block the base has the adapter that an input made or chose."""
    from merging.learning import wear_adapter
    from merging.live import LiveStack

    if member.get("mergeable", True):
        live = LiveStack(base.model, [_member(job.place, member)])
        with live.dense(live.scales_of([1.0])):
            yield
    else:
        with wear_adapter(base, job.place.steps / member["adapter"]):
            yield


def _member(place: Place, member: Mapping[str, Any]) -> MergeMember:
    """An adapter of the study by name, or one that a step made."""
    from merging.members import load_member

    if "name" in member:
        return load_member(place.adapters[member["name"]], name=member["name"])
    return load_member(place.steps / member["adapter"], name=member.get("called"))


def _members(place: Place, pool: Told) -> list[MergeMember]:
    return [_member(place, member) for member in pool["members"]]


def hyperparameters(folder: Path) -> dict[str, Any]:
    """Every stated learning rate and every rank of the LoRA adapters below a folder, sorted.

    {"cards": adapters seen, "learning_rate": [...], "rank": [...]}; an adapter is a folder with an
    adapter_config.json, and its card the README.md beside it. What cannot be read counts as silent.
    """
    from catalog.adapters import CONFIG_NAME, parse_config
    from crawler.reading import MAX_CARD, parse_card

    rates, ranks, cards_read = [], [], 0
    for path in sorted(folder.rglob(CONFIG_NAME)):
        try:
            config = parse_config(_start(path, _MAX_CONFIG))
        except ConfigError:
            continue
        if not config.is_lora:
            continue
        cards_read += 1
        ranks.append(config.rank)
        card = path.with_name("README.md")
        training = parse_card(_start(card, MAX_CARD)).training if card.is_file() else None
        if training is not None and training.learning_rate:
            rates.append(training.learning_rate)
    return {"cards": cards_read, "learning_rate": sorted(rates), "rank": sorted(ranks)}


def _start(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        return file.read(most + 1)
