"""How good adapters are at tasks: scores by example counts, one line of a log each, resumable.

Adapters take turns over one base that stays in memory; the next is read while one is measured, and each is
added to the weights or left beside them, whichever costs less for the tokens at hand. A log has one line for
each score, keyed by everything that the score depends on, so that a run that was killed goes on where it
was and counts nothing twice.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.errors import (
    ConfigError,
    EvaluationError,
    HubAccessError,
    IntegrityError,
    LoradexError,
    MergeError,
    StorageError,
    UsageError,
    WeightsError,
)
from catalog.metrics import score_problem
from merging.members import CONFIG_NAME, Member, digest_of
from merging.model import BaseModel
from merging.prompt import Prompt, encode, normalised
from merging.scoring import accuracy, generate, likelihoods, mean_loss, targets_only
from merging.tasks import BUDGET, Example, Split, Task, draw, examples, seen
from merging.tree import packed, tree_of

if TYPE_CHECKING:
    from merging.live import LiveStack

# Counts up when the same model would get another score.
VERSION = 1
BASE = "base"
# What speaks against one adapter; anything else (the network, the disk) ends a race.
_UNFIT = (MergeError, WeightsError, ConfigError, EvaluationError, HubAccessError, IntegrityError)
# How every line of a log begins.
_LINE = '{"adapter": '
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Measured:
    """A score on n examples: `value` by the task's metric, from 0 to 1, and the mean over examples of the
    right answer's loss a token, in nats.
    """

    value: float
    loss: float
    n: int


@dataclass(frozen=True, slots=True)
class Score:
    """One score as `scores.json` has it; `adapter` is "base" for the base model alone.

    Raises ValueError for a value that the metric cannot have.
    """

    adapter: str
    task: str
    split: str
    metric: str
    value: float
    n: int
    loss: float
    base: str
    seed: int
    key: str

    def __post_init__(self) -> None:
        problem = score_problem(self.metric, self.value, self.n)
        if problem or not math.isfinite(self.loss):
            raise ValueError(problem or "its loss is not finite")


def measure(base: BaseModel, task: Task, questions: Sequence[Example]) -> Measured:
    """The score of the model as it is now on these examples.

    Accuracy: the choice with the highest log-likelihood, its end included, is the answer. Exact match: the
    greedy text equals the target after normalisation (recycling paper, 1.5). Raises EvaluationError where
    the model gives no number.
    """
    return _measured(base, task, questions, encode(base.tokenizer, task, questions, base.limit))


def _measured(
    base: BaseModel, task: Task, questions: Sequence[Example], prompts: Sequence[Prompt]
) -> Measured:
    if task.metric == "accuracy":
        found = likelihoods(base, prompts)
        value, loss = accuracy(prompts, found), mean_loss(prompts, found)
    else:
        alone = targets_only(prompts)
        loss = mean_loss(alone, likelihoods(base, alone))
        texts = generate(base, prompts)
        right = [normalised(t) == normalised(q.target) for t, q in zip(texts, questions, strict=True)]
        value = sum(right) / len(right)
    if not math.isfinite(loss):
        raise EvaluationError(f"The model gives no number on {task.name}; its weights overflow.")
    return Measured(value, loss, len(prompts))


def evaluate(
    base: BaseModel,
    members: Sequence[Member],
    tasks: Sequence[Task],
    *,
    split: Split = "test",
    limit: int | None = None,
    seed: int = 0,
    log: Path | None = None,
    with_base: bool = True,
    progress: Progress | None = None,
) -> Iterator[Score | LoradexError]:
    """The score of the base (unless `with_base` is False) and of each member alone, on each task.

    At most `limit` examples of the split, drawn by `seed`, the same for everybody. A member that cannot be
    put on the base gives its error in place of its scores. What `log` holds already is not measured again,
    and what is measured is added to it at once. Raises UsageError for a log that holds something else and
    StorageError where it cannot be written.
    """
    rounds = [_round(base, task, split, limit, seed) for task in tasks]
    done = _logged(log)
    total, count = (len(members) + with_base) * len(rounds), 0
    for found in _scores(base, members, rounds, done, with_base):
        if isinstance(found, Score):
            if found.key not in done:
                _append(log, found)
                done[found.key] = found
            count += 1
        else:
            count += len(rounds) - count % len(rounds)
        if progress is not None:
            progress(count, total)
        yield found


def scores_document(scores: Sequence[Score]) -> dict[str, Any]:
    """The document that `scores import` reads: {"scores": [{adapter, task, split, metric, value, n, …}]}."""
    return {"scores": [asdict(score) for score in scores]}


class Sampler:
    """Measures adapters on a few training examples at a time, never twice on the same: a race's callback.

    `find` gives the adapter of a name. All adapters see the examples in one order, drawn by `seed`; `spent`
    counts examples, and `left_out` says why an adapter cannot be measured.
    """

    def __init__(self, base: BaseModel, task: Task, find: Callable[[str], Member], seed: int = 0) -> None:
        self.base, self.task, self.find, self.spent = base, task, find, 0
        # A race reads the examples that a training with this seed reads, and no others.
        self._order = seen(task, min(BUDGET, len(examples(task, "train"))), seed=seed)
        self.left_out: dict[str, str] = {}
        self._place: dict[str, int] = {}
        self._live: LiveStack | None = None

    def __call__(self, adapters: Sequence[str], samples: int) -> list[float | None]:
        """The score of each adapter on its next `samples` examples, None where it cannot be measured."""
        return [self._one(name, samples) for name in adapters]

    def _one(self, name: str, samples: int) -> float | None:
        start = self._place.get(name, 0)
        questions = self._order[start : start + samples]
        if len(questions) < samples:
            return None
        self._place[name] = start + samples
        try:
            with self._resident(self.find(name)).attached():
                found = measure(self.base, self.task, questions)
        except _UNFIT as error:
            self.left_out.setdefault(name, str(error))
            return None
        self.spent += samples
        return found.value

    def _resident(self, member: Member) -> LiveStack:
        from merging.live import LiveStack

        if self._live is None:
            self._live = LiveStack(self.base.model)
        self._live.swap([member])
        return self._live


@dataclass(frozen=True, slots=True)
class _Round:
    """One task's examples, ready for any adapter; `tokens` is what reading them once takes."""

    task: Task
    split: str
    seed: int
    base: str
    questions: tuple[Example, ...]
    prompts: tuple[Prompt, ...]
    tokens: int
    identity: str

    def key(self, adapter: str) -> str:
        """A hash of all that the score depends on."""
        return hashlib.sha256(f"{self.identity}\n{adapter}".encode()).hexdigest()

    def score(self, base: BaseModel, name: str, key: str) -> Score:
        """The score of the model as it is now, under this name."""
        found = _measured(base, self.task, self.questions, self.prompts)
        return Score(
            adapter=name,
            task=self.task.name,
            split=self.split,
            metric=self.task.metric,
            value=found.value,
            n=found.n,
            loss=found.loss,
            base=self.base,
            seed=self.seed,
            key=key,
        )


def _round(base: BaseModel, task: Task, split: Split, limit: int | None, seed: int) -> _Round:
    questions = draw(task, split, limit, seed=seed)
    prompts = encode(base.tokenizer, task, questions, base.limit)
    tokens = sum(len(tree_of(prompts[i] for i in group).tokens) for group in packed(prompts, 1 << 12))
    # A model of the same name may be another one: its own losses tell.
    few = targets_only(prompts[:4])
    mark = f"{mean_loss(few, likelihoods(base, few)):.4g}"
    parts = (VERSION, base.name, base.revision, base.dtype, mark, task.digest, split, len(questions), seed)
    identity = "\n".join(str(part) for part in parts)
    return _Round(task, split, seed, base.name, questions, tuple(prompts), tokens, identity)


def _scores(
    base: BaseModel,
    members: Sequence[Member],
    rounds: Sequence[_Round],
    done: Mapping[str, Score],
    with_base: bool,
) -> Iterator[Score | LoradexError]:
    """Scores that are known, then those that are measured, one adapter after the other."""
    from merging.live import LiveStack

    def known(name: str, one: _Round, adapter: str) -> Score | None:
        found = done.get(one.key(adapter))
        return replace(found, adapter=name) if found else None

    for one in rounds if with_base else ():
        yield known(BASE, one, BASE) or one.score(base, BASE, one.key(BASE))
    identities = {id(member): _identity(member) for member in members}
    waiting: list[Member] = []
    for member in members:
        found = [known(member.name, one, identities[id(member)]) for one in rounds]
        if all(found):
            yield from (score for score in found if score)
        else:
            waiting.append(member)
    tokens = sum(one.tokens for one in rounds)
    live = LiveStack(base.model)
    for (member,), failed in live.sweep([[member] for member in waiting]):
        if failed is not None:
            yield failed
            continue
        adapter = identities[id(member)]
        try:
            with _alone(live, tokens):
                for one in rounds:
                    yield known(member.name, one, adapter) or one.score(base, member.name, one.key(adapter))
        except (EvaluationError, MergeError) as error:
            yield type(error)(f"{member.name}: {error}")


def _alone(live: LiveStack, tokens: int) -> AbstractContextManager[LiveStack]:
    """A block in which the resident member counts with weight 1, added or beside, whichever costs less."""
    scales = live.scales_of([1.0] * len(live.members))
    if live.worthwhile(tokens):
        return live.dense(scales)
    live.set_scales(scales)
    return live.attached()


def _identity(member: Member) -> str:
    """What tells an adapter apart: its weights and its configuration."""
    config = hashlib.sha256((member.folder / CONFIG_NAME).read_bytes()).hexdigest()
    return f"{member.digest or digest_of(member.weights)} {config}"


def _logged(log: Path | None) -> dict[str, Score]:
    """The scores of a log by key; its last line may be torn off."""
    if log is None or not log.exists():
        return {}
    try:
        lines = log.read_text("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{log} is no log of scores; name another.") from error
    torn = lines.pop()
    if torn:
        # Killed while it was written; what does not begin like a score is somebody else's.
        if not (torn.startswith(_LINE) or _LINE.startswith(torn)):
            raise UsageError(f"{log} is no log of scores; name another.")
        _cut(log, torn)
    found = {}
    for number, line in enumerate(lines, 1):
        try:
            score = Score(**json.loads(line))
        except (TypeError, ValueError) as error:
            raise UsageError(f"{log} line {number} is no score; name another log.") from error
        found[score.key] = score
    return found


def _cut(log: Path, torn: str) -> None:
    """Take a line that was never finished off the end of the log."""
    with log.open("r+b") as file:
        file.truncate(log.stat().st_size - len(torn.encode()))


def _append(log: Path | None, score: Score) -> None:
    if log is None:
        return
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(score), sort_keys=True) + "\n")
            file.flush()
    except OSError as error:
        raise StorageError(f"{log} cannot be written: {error.strerror or error}.") from error
