"""Scores of adapters on tasks, one line of a log each, resumable.

Adapters take turns over one base that stays in memory; the next is read while one is measured, and each is
added to the weights or applied next to them, whichever costs less for the number of tokens. A log has one
line for each score, keyed by everything that the score depends on, so that a killed run continues where it
stopped and counts nothing twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.adapters import CONFIG_NAME
from catalog.errors import (
    ConfigError,
    EvaluationError,
    HubAccessError,
    IntegrityError,
    LoradexError,
    MemoryLimitError,
    MergeError,
    StorageError,
    UsageError,
    WeightsError,
)
from catalog.scores import (
    MOST_ITEMS,
    item_hash,
    list_sha,
    pack_bitmap,
    pack_margins,
    read_outcomes,
    score_problem,
    to_text,
)
from merging.evaluation.ensembles import measure_ensemble_asked
from merging.evaluation.measurement import (
    Measured,
    measure,
    measure_asked,
    new_tokens,
    score_metric,
    without_defaults,
)
from merging.evaluation.questions import Questions, TooLong, ask, prompt_date, reads_plainly
from merging.evaluation.scoring import (
    likelihoods,
    mean_loss,
    targets_only,
)
from merging.evaluation.trees import pack_prompts, tree_of
from merging.members import MergeMember, digest_of
from merging.model import (
    BUDGET,
    OWN,
    Example,
    LoadedBase,
    Protocol,
    Split,
    Task,
    chat_format,
    draw,
    examples,
    first_examples,
)

if TYPE_CHECKING:
    from merging.live import LiveStack

# Incremented when the same model would get a different score.
VERSION = 1
BASE = "base"
# Errors of a single adapter; any other one (the network, the disk) ends a race.
_UNFIT = (MergeError, WeightsError, ConfigError, EvaluationError, HubAccessError, IntegrityError)
# The beginning of every line of a log.
_LINE = '{"adapter": '
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One score as `scores.json` has it; `adapter` is "base" for the base model alone.

    `metric` names the rule by which answers are compared. `date` is that of the prompts, if they include one;
    `plain` means that prompts were read individually, since a tree of them would be wrong for the model;
    `left_out` the examples that are too long for it; and `protocol` is the name of the protocol, "" for the
    project's own. `loss` is None and `stderr` the standard error of the value, if known, where another
    program's rules made the score. `items_sha`, `outcomes` and `margins` are the answers to single examples,
    texts of `catalog.scores.outcomes`, and `item_hashes` (not in the document) the hashes of these. Raises
    ValueError for a value that the metric cannot have, or that its outcomes contradict.
    """

    adapter: str
    task: str
    split: str
    metric: str
    value: float
    n: int
    loss: float | None
    base: str
    seed: int
    key: str
    date: str | None = None
    plain: bool = False
    left_out: int = 0
    protocol: str = ""
    stderr: float | None = None
    items_sha: str = field(default="", repr=False)
    outcomes: str = field(default="", repr=False)
    margins: str = field(default="", repr=False)
    item_hashes: str = field(default="", repr=False, compare=False)

    def document(self) -> dict[str, Any]:
        """The score as JSON; fields with their usual values are left out."""
        return without_defaults(self, "item_hashes")

    def __post_init__(self) -> None:
        problem = score_problem(self.metric, self.value, self.n)
        if problem or (self.loss is not None and not math.isfinite(self.loss)):
            raise ValueError(problem or "its loss is not finite")
        if self.items_sha or self.outcomes or self.margins:
            try:
                read_outcomes(self.items_sha, self.outcomes, self.margins, self.n).check(self.value, self.n)
            except UsageError as error:
                raise ValueError(str(error)) from error


class ScoreRound(typing.Protocol):
    """The questions of a task for any adapter: what `evaluate` takes in place of a task of this project."""

    @property
    def tokens(self) -> int:
        """The number of tokens to read."""
        ...

    def known(self, done: Mapping[str, TaskScore], name: str, adapter: str) -> list[TaskScore]:
        """The scores of the adapter with this identity in a log, under this name, if all are there."""
        ...

    def score(self, base: LoadedBase, name: str, adapter: str) -> list[TaskScore]:
        """The scores of the model in its current state, under this name."""
        ...


def evaluate(
    base: LoadedBase,
    members: Sequence[MergeMember],
    tasks: Sequence[Task | ScoreRound],
    *,
    split: Split = "test",
    limit: int | None = None,
    seed: int = 0,
    log: Path | None = None,
    with_base: bool = True,
    ensemble: str = "",
    too_long: TooLong = "error",
    protocol: Protocol = OWN,
    progress: Progress | None = None,
) -> Iterator[TaskScore | LoradexError]:
    """The score of the base (unless `with_base` is False) and of each member alone, on each task, then that
    of the ensemble of all members under the name `ensemble`, if one is given.

    At most `limit` examples of the split, drawn by `seed`, the same for all; those too long for the base
    model are an error, or left out and counted (`too_long`). A member that does not match the base model
    gives its error in place of its scores. Scores in `log` are not measured again; new ones are appended to
    it immediately. Raises UsageError for a file that is not a log and for examples that are too long,
    MemoryLimitError if the base model does not fit, and StorageError if the log cannot be read or written.
    """
    rounds = [
        _round(base, task, split, draw(task, split, limit, seed=seed), seed, too_long, protocol)
        if isinstance(task, Task)
        else task
        for task in tasks
    ]
    own = [task_round for task_round in rounds if isinstance(task_round, _Round)]
    if ensemble and len(own) < len(rounds):
        raise UsageError(
            "Tasks of lm-evaluation-harness are asked of one model at a time; leave them out, or `ensemble`."
        )
    done = _read_log(log)
    total, count = (len(members) + with_base + bool(ensemble)) * len(rounds), 0
    single = _scores(base, members, rounds, done, with_base)
    together = _ensemble_scores(base, members, own, done, ensemble) if ensemble else ()
    for scores in chain(single, together):
        if isinstance(scores, LoradexError):
            count += len(rounds) - count % len(rounds)
        else:
            new = [score for score in scores if score.key not in done]
            _append(log, new)
            done |= {score.key: score for score in new}
            count += 1
        if progress is not None:
            progress(count, total)
        yield from [scores] if isinstance(scores, LoradexError) else scores


class Sampler:
    """Measures adapters on a few training examples at a time, never twice on the same: a race's callback.

    `find` gives the adapter of a name. All adapters see the examples `asked` in one order, drawn by `seed`;
    `spent` counts examples, and `left_out` says why an adapter cannot be measured.
    """

    def __init__(
        self,
        base: LoadedBase,
        task: Task,
        find: Callable[[str], MergeMember],
        seed: int = 0,
        too_long: TooLong = "error",
    ) -> None:
        self.base, self.task, self.find, self.spent = base, task, find, 0
        # A race reads only the examples that a training with this seed reads.
        order = first_examples(task, min(BUDGET, len(examples(task, "train"))), seed=seed)
        self.asked = ask(base, task, order, too_long, new_tokens=new_tokens(task, OWN))
        self.left_out: dict[str, str] = {}
        self._place: dict[str, int] = {}

    def __call__(self, adapters: Sequence[str], samples: int) -> list[float | None]:
        """The score of each adapter on its next `samples` examples, None if it cannot be measured."""
        return [self._one(name, samples) for name in adapters]

    def _one(self, name: str, samples: int) -> float | None:
        from merging.live import apply_member

        start = self._place.get(name, 0)
        questions = self.asked.examples[start : start + samples]
        if len(questions) < samples:
            return None
        self._place[name] = start + samples
        try:
            with apply_member(self.base.model, self.find(name)):
                measurement = measure(self.base, self.task, questions)
        except _UNFIT as error:
            self.left_out.setdefault(name, str(error))
            return None
        self.spent += samples
        return measurement.value


@dataclass(frozen=True, slots=True)
class _Round:
    """One task's examples, for any adapter; `tokens` is the number of tokens to read."""

    task: Task
    split: str
    seed: int
    base: str
    asked: Questions
    date: str | None
    plain: bool
    tokens: int
    identity: str
    item_hashes: bytes

    @property
    def items_sha(self) -> str:
        """What identifies the list of examples."""
        return list_sha(self.item_hashes)

    def key(self, adapter: str) -> str:
        """A hash of everything that the score depends on."""
        return hashlib.sha256(f"{self.identity}\n{adapter}".encode()).hexdigest()

    def known(self, done: Mapping[str, TaskScore], name: str, adapter: str) -> list[TaskScore]:
        """The score of the adapter with this identity in a log, under this name, if it is there."""
        entry = done.get(self.key(adapter))
        if entry is None:
            return []
        hashes = to_text(self.item_hashes) if entry.items_sha == self.items_sha else ""
        return [replace(entry, adapter=name, item_hashes=hashes)]

    def score(self, base: LoadedBase, name: str, adapter: str) -> list[TaskScore]:
        """The score of the model in its current state, under this name."""
        return self._as_scores(measure_asked(base, self.task, self.asked), name, adapter)

    def score_ensemble(
        self, base: LoadedBase, members: Sequence[MergeMember], name: str, adapter: str
    ) -> list[TaskScore]:
        """The score of the members' ensemble, under this name."""
        return self._as_scores(measure_ensemble_asked(base, members, self.task, self.asked), name, adapter)

    def _as_scores(self, measurement: Measured, name: str, adapter: str) -> list[TaskScore]:
        if measurement.n > MOST_ITEMS:
            # Answers to so many items are not stored.
            measurement = replace(measurement, outcomes=(), margins=())
        score = TaskScore(
            adapter=name,
            task=self.task.name,
            split=self.split,
            metric=score_metric(self.task, self.asked.protocol),
            value=measurement.value,
            n=measurement.n,
            loss=measurement.loss,
            base=self.base,
            seed=self.seed,
            key=self.key(adapter),
            date=self.date,
            plain=self.plain,
            left_out=measurement.left_out,
            items_sha=self.items_sha if measurement.outcomes else "",
            outcomes=to_text(pack_bitmap(measurement.outcomes)),
            margins=to_text(pack_margins(measurement.margins)),
            item_hashes=to_text(self.item_hashes if measurement.outcomes else b""),
            protocol=self.asked.protocol.name,
        )
        return [score]


def item_round(
    base: LoadedBase, task: Task, split: Split, items: Sequence[Example], protocol: Protocol = OWN
) -> ScoreRound:
    """These examples of a task, and no others, as what `evaluate` takes in place of the task.

    Raises UsageError for an example that is too long for the model.
    """
    task_round = _round(base, task, split, items, 0, "error", protocol)
    return replace(task_round, identity=f"{task_round.identity}\nitems {task_round.items_sha}")


def _round(
    base: LoadedBase,
    task: Task,
    split: Split,
    items: Sequence[Example],
    seed: int,
    too_long: TooLong,
    protocol: Protocol,
) -> _Round:
    questions = ask(base, task, items, too_long, protocol, new_tokens(task, protocol))
    prompts, date, plain = questions.prompts, prompt_date(base), reads_plainly(base, questions.prompts)
    tokens = sum(len(tree_of(prompts[i] for i in group).tokens) for group in pack_prompts(prompts, 1 << 12))
    # A model of the same name may be different: its losses identify it.
    few = targets_only(prompts[:4])
    mark = f"{mean_loss(few, likelihoods(base, few)):.4g}"
    parts: list[object] = [VERSION, base.name, base.revision, base.dtype, mark, task.digest, split]
    parts += [len(prompts), seed]
    # Only if they matter, so that all other keys stay unchanged.
    metric = score_metric(task, protocol)
    parts += [f"answers {metric}"] if metric != "accuracy" else []
    parts += [f"protocol {protocol.name}"] if protocol.name else []
    parts += _format_parts(base.tokenizer)
    parts += [f"date {date}"] if date else []
    parts += ["read plainly"] if plain else []
    parts += [f"weights {base.quantised}"] if base.quantised else []
    parts += [f"left out {questions.left_out}"] if questions.left_out else []
    identity = "\n".join(str(part) for part in parts)
    hashes = b"".join(item_hash(row.input, row.target, row.choices) for row in questions.examples)
    return _Round(task, split, seed, base.name, questions, date, plain, tokens, identity, hashes)


def _format_parts(tokenizer: Any) -> list[str]:
    """The properties of prompts by which those of a model differ from those of the first versions."""
    chat = chat_format(tokenizer)
    closed = [f"closed by {chat.closing_token}"] if chat.closing_token != tokenizer.eos_token_id else []
    return closed + (["without thoughts"] if chat.silences else [])


def _scores(
    base: LoadedBase,
    members: Sequence[MergeMember],
    rounds: Sequence[ScoreRound],
    done: Mapping[str, TaskScore],
    with_base: bool,
) -> Iterator[list[TaskScore] | LoradexError]:
    """By adapter and round, the scores that are known, then those that are measured."""
    from merging.live import LiveStack

    for task_round in rounds if with_base else ():
        yield task_round.known(done, BASE, BASE) or task_round.score(base, BASE, BASE)
    identities = {id(member): _identity(member) for member in members}
    waiting: list[MergeMember] = []
    for member in members:
        entries = [task_round.known(done, member.name, identities[id(member)]) for task_round in rounds]
        if all(entries):
            yield from entries
        else:
            waiting.append(member)
    tokens = sum(task_round.tokens for task_round in rounds)
    live = LiveStack(base.model)
    swept = live.sweep([[member] for member in waiting if not member.apart])
    one_by_one = (([member], None) for member in waiting if member.apart)
    for (member,), failed in chain(swept, one_by_one):
        if failed is not None:
            yield failed
            continue
        adapter = identities[id(member)]
        try:
            with _single_member(live, member, tokens):
                for task_round in rounds:
                    yield task_round.known(done, member.name, adapter) or task_round.score(
                        base, member.name, adapter
                    )
        except (EvaluationError, MergeError) as error:
            yield type(error)(f"{member.name}: {error}")
        except WeightsError as error:
            yield error


def _ensemble_scores(
    base: LoadedBase,
    members: Sequence[MergeMember],
    rounds: Sequence[_Round],
    done: Mapping[str, TaskScore],
    name: str,
) -> Iterator[list[TaskScore] | LoradexError]:
    """By round, the scores of the members' ensemble that are known, then those that are measured."""
    identity = "\n".join(["ensemble", *sorted(map(_identity, members))])
    try:
        for task_round in rounds:
            known = task_round.known(done, name, identity)
            yield known or task_round.score_ensemble(base, members, name, identity)
    except (EvaluationError, MergeError) as error:
        yield type(error)(f"{name}: {error}")
    except WeightsError as error:
        yield error


@contextlib.contextmanager
def _single_member(live: LiveStack, member: MergeMember, tokens: int) -> Iterator[None]:
    """A block in which the resident member has weight 1, added or live, whichever costs less.

    Live too if memory does not suffice for adding. An adapter that PEFT alone can apply is not resident.
    """
    from merging.live import apply_with_peft

    if member.apart:
        with apply_with_peft(live.model, member):
            yield
        return
    scales = live.scales_of([1.0] * len(live.members))
    with contextlib.ExitStack() as stack:
        added = live.worthwhile(tokens)
        if added:
            try:
                stack.enter_context(live.dense(scales))
            except MemoryLimitError:
                added = False
        if not added:
            live.set_scales(scales)
            stack.enter_context(live.attach())
        yield


def _identity(member: MergeMember) -> str:
    """The identity of an adapter: its weights and its configuration."""
    config = hashlib.sha256((member.folder / CONFIG_NAME).read_bytes()).hexdigest()
    return f"{member.digest or digest_of(member.weights)} {config}"


def _read_log(log: Path | None) -> dict[str, TaskScore]:
    """The scores of a log by key; its last line may be torn off."""
    if log is None or not log.exists():
        return {}
    try:
        lines = log.read_text("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{log} is not a log of scores; give another file.") from error
    except OSError as error:
        raise StorageError(f"{log} cannot be read: {error.strerror or error}.") from error
    torn = lines.pop()
    if torn:
        # An interrupted write; a line that does not begin like a score is not ours.
        if not (torn.startswith(_LINE) or _LINE.startswith(torn)):
            raise UsageError(f"{log} is not a log of scores; give another file.")
        with _writing(log), log.open("r+b") as file:
            file.truncate(log.stat().st_size - len(torn.encode()))
    entries = {}
    for number, line in enumerate(lines, 1):
        try:
            score = TaskScore(**json.loads(line))
            entries[score.key] = score
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"{log} line {number} is not a score; give another log.") from error
    return entries


def _append(log: Path | None, scores: Sequence[TaskScore]) -> None:
    """Appends the scores to the log in one write."""
    if log is None or not scores:
        return
    with _writing(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(score.document(), sort_keys=True) + "\n" for score in scores))
            file.flush()


@contextlib.contextmanager
def _writing(log: Path) -> Iterator[None]:
    """Translates an error of writing the log inside the block."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{log} cannot be written: {error.strerror or error}.") from error
