"""Tasks of lm-evaluation-harness, named harness:NAME: found, checked, and scored by the harness's own rules.

The harness builds prompts and computes metrics; `merging.evaluation.requests` answers its requests, so that
many adapters take turns over one base and prompts are built and tokenised once. No task runs code that was
fetched or found in a folder: tasks marked as unsafe, metrics of the Hub and functions in a folder's files are
refused, and templates are rendered in a sandbox.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from catalog.errors import EvaluationError, LoradexError, NotFoundError, UsageError
from catalog.extras import require_extra
from loradex.hubdata import SourceFacts, first_line, quiet_datasets

if TYPE_CHECKING:
    from merging.evaluation import HarnessModel, TaskScore
    from merging.model import LoadedBase

PREFIX = "harness:"
_NAMES_OF_ADVICE = 5
_FILTER = "none"
# The harness gives these from 0 to 100.
_IN_PERCENT = frozenset({"bleu", "chrf"})
_PERCENT = 100.0
# Incremented when the same model would get a different score.
_VERSION = "harness 1"


@dataclass(frozen=True)
class HarnessTask:
    """A task, group or tag of the harness with its data: `tasks` and `groups` are the harness's own objects.

    `digest` is a hash of its configuration files.
    """

    name: str
    tasks: Mapping[str, Any]
    groups: Mapping[str, Any]
    digest: str


def is_harness_task(source: object) -> bool:
    """Whether a task is one of the harness, by its name."""
    return isinstance(source, str) and source.startswith(PREFIX)


def load_harness_task(name: str, folder: Path | None = None, *, shots: int | None = None) -> HarnessTask:
    """The task harness:NAME with its data: of the files *.yaml below `folder`, or of the harness itself.

    Args:
        name: With or without the prefix; a task, a group or a tag.
        folder: Where files of tasks are; None for those of the harness.
        shots: Examples before each question, if the task does not fix the number 0; by default its own.

    Raises:
        NotFoundError: There is no such task; the message has similar names.
        UsageError: The extra is missing, the task would run code, or its data cannot be loaded.
    """
    require_extra("harness", "A task of lm-evaluation-harness")
    from lm_eval.tasks import TaskManager

    short = name.removeprefix(PREFIX)
    with guard_harness() as refused:
        index: Mapping[str, Any] = {}
        if folder is not None:
            manager = TaskManager(include_path=str(folder), include_defaults=False)
            index = manager.task_index
            if short not in index:
                _check_files(folder)
        foreign = short in index
        if not foreign:
            manager = TaskManager()
            names = sorted({*manager.task_index, *index})
            if short not in manager.task_index:
                raise NotFoundError(f"Task {PREFIX}{short} not found; {_similar(short, names)}.")
        configs = _check_code(manager.task_index, short, foreign=foreign)
        loaded = _load(manager, short, refused)
        for task_name, task in loaded["tasks"].items():
            _check_task(task_name, task)
            _set_shots(task, shots)
    text = json.dumps(configs, sort_keys=True, default=str)
    return HarnessTask(
        short, loaded["tasks"], loaded.get("groups", {}), hashlib.sha256(text.encode()).hexdigest()
    )


@contextlib.contextmanager
def guard_harness() -> Iterator[list[str]]:
    """A block in which the harness fetches no metrics, renders templates in a sandbox, and prints nothing.

    The list has the names of metrics that it tried to fetch.
    """
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    refused: list[str] = []

    def refuse(name: str, *_: Any, **__: Any) -> None:
        refused.append(name)
        raise ImportError(f"{name} is not fetched")

    environment = utils.env
    sandbox = SandboxedEnvironment(undefined=environment.undefined, keep_trailing_newline=True)
    sandbox.filters.update(environment.filters)
    # Metrics of the Hub are loaded by this library, which also takes ten seconds to import.
    library, stand_in = sys.modules.get("evaluate"), ModuleType("evaluate")
    stand_in.__dict__["load"] = refuse
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    utils.env, sys.modules["evaluate"] = sandbox, stand_in
    try:
        with quiet_datasets():
            yield refused
    finally:
        utils.env = environment
        logger.setLevel(level)
        if library is None:
            del sys.modules["evaluate"]
        else:
            sys.modules["evaluate"] = library


def _similar(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, _NAMES_OF_ADVICE)
    if close:
        return f"similar names are {', '.join(close)}"
    return "its tasks are listed by `lm_eval ls tasks`"


def _load(manager: Any, name: str, refused: Sequence[str]) -> Mapping[str, Any]:
    """What the manager loads under a name; its errors, which are not documented, become one sentence."""
    loaded: Mapping[str, Any] = {}
    problem: Exception | None = None
    try:
        loaded = manager.load([name])
    except Exception as error:
        problem = error
    if refused:
        raise UsageError(
            f"The metric {refused[0]} of {PREFIX}{name} is code that would be fetched from the Hub; use a "
            "task with metrics of lm-evaluation-harness itself."
        ) from problem
    if problem is not None:
        raise UsageError(
            f"The task {PREFIX}{name} cannot be loaded: {first_line(problem)}; data sets of the Hub require "
            "the network once."
        ) from problem
    return loaded


def _check_files(folder: Path) -> None:
    """Raises UsageError for the first file of a task that cannot be read, which the harness passes over."""
    from lm_eval.tasks._index import TaskIndex

    for path in sorted(folder.glob("**/*.yaml")):
        try:
            TaskIndex.entry_from_path(path)
        except Exception as error:
            raise UsageError(
                f"{path} is not a task of lm-evaluation-harness: {first_line(error)}."
            ) from error


def _check_code(index: Mapping[str, Any], name: str, *, foreign: bool) -> list[Any]:
    """The configurations of a name and of all that it consists of.

    Raises UsageError if one is marked as unsafe or, where the files are `foreign`, contains a function.
    """
    configs, waiting, done = [], [name], set()
    while waiting:
        entry = index.get(waiting.pop())
        if entry is None or entry.name in done:
            continue
        done.add(entry.name)
        config = entry.cfg or {}
        configs.append([entry.name, config])
        if config.get("unsafe_code"):
            raise _unsafe(entry.name)
        if foreign and entry.yaml_path and ("class" in config or _has_code(Path(entry.yaml_path), set())):
            raise UsageError(
                f"{entry.yaml_path} contains Python functions, which are run only from lm-evaluation-harness "
                "itself; use a task without functions."
            )
        waiting += list(entry.tags) if entry.kind.name == "TAG" else _members(config)
    return configs


def _unsafe(name: str) -> UsageError:
    return UsageError(
        f"The task {PREFIX}{name} runs code that a model writes, which is not supported; use another task."
    )


def _members(config: Mapping[str, Any]) -> list[str]:
    """The names of the members of a group."""
    tasks = config.get("task")
    rows = tasks if isinstance(tasks, list) else []
    names = [row if isinstance(row, str) else row.get("task") or row.get("group") for row in rows]
    nested = [name for row in rows if isinstance(row, dict) for name in _members(row)]
    return [name for name in [*names, *nested] if isinstance(name, str)]


def _has_code(path: Path, done: set[Path]) -> bool:
    """Whether a file, or one that it includes, contains a tag other than YAML's own plain ones."""
    import yaml

    path = path.resolve()
    if path in done:
        return False
    done.add(path)
    waiting = [yaml.compose(path.read_text("utf-8"), Loader=yaml.SafeLoader)]
    known: set[int] = set()
    while waiting:
        node = waiting.pop()
        # An alias may lead back to a node that holds it.
        if node is None or id(node) in known:
            continue
        known.add(id(node))
        if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
            return True
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                waiting += [key, value]
                includes = value.value if isinstance(value, yaml.SequenceNode) else [value]
                if key.value == "include" and any(
                    _has_code(path.parent / item.value, done)
                    for item in includes
                    if isinstance(item, yaml.ScalarNode)
                ):
                    return True
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
    return False


def _check_task(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise _unsafe(name)
    if getattr(task, "MULTIMODAL", False):
        raise UsageError(f"The task {PREFIX}{name} has pictures or sounds; only texts are supported.")


def _set_shots(task: Any, shots: int | None) -> None:
    """The number of examples before each question, as the harness sets it."""
    own = task.get_config("num_fewshot")
    if own is None or (shots is not None and own != 0):
        task.set_config(key="num_fewshot", value=shots or 0)


def harness_splits(task: HarnessTask) -> tuple[dict[str, list[dict[str, Any]]], SourceFacts]:
    """The documents of a single task by split, as rows of input, target and choices (empty for free text).

    Raises UsageError for a group, and for a task without one right text for each prompt.
    """
    if len(task.tasks) != 1 or task.groups:
        raise UsageError(
            f"{PREFIX}{task.name} consists of {', '.join(sorted(task.tasks))}; import one of them."
        )
    ((name, subtask),) = task.tasks.items()
    kind = subtask.get_config("output_type")
    if kind not in ("multiple_choice", "generate_until"):
        raise UsageError(f"{PREFIX}{name} has neither choices nor text answers ({kind}); use another task.")
    splits: dict[str, list[dict[str, Any]]] = {}
    with guard_harness():
        for split, exists, read in (
            ("train", subtask.has_training_docs, subtask.training_docs),
            ("valid", subtask.has_validation_docs, subtask.validation_docs),
            ("test", subtask.has_test_docs, subtask.test_docs),
        ):
            if exists():
                splits[split] = [_document_row(subtask, document, name, split) for document in read()]
    settings = subtask.get_config("generation_kwargs") or {}
    most = next((settings[key] for key in ("max_gen_toks", "max_new_tokens") if settings.get(key)), None)
    description = str(subtask.get_config("description") or "").strip()
    metadata = subtask.get_config("metadata") or {}
    place = f"lm-evaluation-harness {version('lm_eval')} {name} version {metadata.get('version', 'unknown')}"
    path = subtask.get_config("dataset_path")
    place += f", data {path}" + (f" ({config})" if (config := subtask.get_config("dataset_name")) else "")
    return splits, SourceFacts(place, instruction=description, max_new_tokens=most)


def _document_row(task: Any, document: Mapping[str, Any], name: str, split: str) -> dict[str, Any]:
    text, target = task.doc_to_text(document), task.doc_to_target(document)
    choices = task.doc_to_choice(document) if task.get_config("output_type") == "multiple_choice" else []
    if isinstance(target, list) and len(target) == 1:
        target = target[0]
    if choices and isinstance(target, int) and 0 <= target < len(choices):
        target = choices[target]
    if not isinstance(text, str) or not isinstance(target, (str, int, float)):
        raise UsageError(f"A {split} document of {PREFIX}{name} has not one prompt and one right answer.")
    # Blanks join a prompt and its answer in the harness; both are without them here.
    return {"input": text, "target": str(target).strip(), "choices": [str(row).strip() for row in choices]}


def protocol_name(shots: int | None, chat: bool) -> str:
    """The protocol of the harness's scores: its version, and settings other than the task's own."""
    parts = [f"lm-eval {version('lm_eval')}"]
    parts += [f"{shots}-shot"] if shots is not None else []
    parts += ["chat template"] if chat else []
    return ", ".join(parts)


@dataclass(frozen=True)
class HarnessRound:
    """One task of the harness for any adapter: its requests, built once, and how they are scored.

    `documents` are the indices of those that the model can read, None for all; `left_out` are the others.
    `item_hashes` are by task those of its documents: of prompt, target and choices.
    """

    task: HarnessTask
    model: HarnessModel
    protocol: str
    seed: int
    date: str | None
    plain: bool
    limit: int | None
    documents: Mapping[str, list[int]] | None
    left_out: int
    tokens: int
    identity: str
    item_hashes: Mapping[str, bytes]

    def known(self, done: Mapping[str, TaskScore], name: str, adapter: str) -> list[TaskScore]:
        """The scores of an adapter that a log has, if it has all of them."""
        from catalog.scores import to_text

        start = f"{self._key(adapter)}-"
        hashes = {f"{PREFIX}{task}": to_text(text) for task, text in self.item_hashes.items()}
        entries = [
            replace(score, adapter=name, item_hashes=hashes.get(score.task, "") if score.items_sha else "")
            for key, score in done.items()
            if key.startswith(start)
        ]
        return entries if entries and len(entries) == int(entries[0].key.rpartition("-")[2]) else []

    def score(self, base: LoadedBase, name: str, adapter: str) -> list[TaskScore]:
        """The scores of the model in its current state, one a metric, under this name.

        Raises EvaluationError for a value that is not a finite number.
        """
        from lm_eval.evaluator import evaluate

        from catalog.scores import score_problem
        from merging.evaluation import TaskScore

        with guard_harness():
            results = evaluate(
                self.model,
                {"tasks": self.task.tasks, "groups": self.task.groups},
                limit=None if self.documents else self.limit,
                samples=self.documents,
                # Errors of the mean have a formula; others would be drawn 100,000 times.
                bootstrap_iters=0,
                log_samples=True,
            )
        rows = [
            (task, key, value, results["results"][task])
            for task in sorted(results["results"])
            for key, value in sorted(results["results"][task].items())
            if "," in key and not key.partition(",")[0].endswith("_stderr")
        ]
        scores = []
        for number, (task, key, value, metrics) in enumerate(rows):
            metric, _, filter_name = key.partition(",")
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise EvaluationError(f"The {metric} of {PREFIX}{task} is not a finite number.")
            samples = [
                sample[metric]
                for sample in results["samples"].get(task, ())
                if sample["filter"] == filter_name and metric in sample
            ]
            title = metric if filter_name == _FILTER else key
            # Rounding may exceed the range.
            value = min(value / _PERCENT, 1.0) if metric in _IN_PERCENT else float(value)
            n = len(samples) or int(metrics["sample_len"])
            if problem := score_problem(title, value, n):
                raise EvaluationError(f"The score on {PREFIX}{task} cannot be recorded: {problem}.")
            scores.append(
                TaskScore(
                    adapter=name,
                    task=f"{PREFIX}{task}",
                    split=self._split(task),
                    metric=title,
                    value=value,
                    n=n,
                    loss=None,
                    base=base.name,
                    seed=self.seed,
                    key=f"{self._key(adapter)}-{number}-{len(rows)}",
                    date=self.date,
                    plain=self.plain,
                    left_out=self.left_out,
                    protocol=self.protocol,
                    stderr=self._error(task, metric, samples),
                    **self._outcomes(task, value, samples),
                )
            )
        return scores

    def _split(self, name: str) -> str:
        """The split that a task judges on; for a group that of its first task."""
        task = self.task.tasks.get(name) or next(iter(self.task.tasks.values()))
        return "test" if task.has_test_docs() else "valid"

    def _error(self, name: str, metric: str, samples: Sequence[Any]) -> float | None:
        """The standard error of a mean over documents, as the harness has it; None for other aggregations."""
        from lm_eval.api.metrics import mean, mean_stderr

        task = self.task.tasks.get(name)
        if task is None or len(samples) < 2 or task.aggregation().get(metric) is not mean:
            return None
        return float(mean_stderr(samples))

    def _outcomes(self, task: str, value: float, samples: Sequence[Any]) -> dict[str, str]:
        """Which documents were right, where the value is the share of those."""
        from catalog.scores import list_sha, pack_bitmap, to_text

        hashes = self.item_hashes.get(task, b"")
        whole = bool(samples) and len(hashes) == len(samples) * hashlib.sha256().digest_size
        if not whole or any(sample not in (0, 1) for sample in samples):
            return {}
        if not math.isclose(sum(samples) / len(samples), value, abs_tol=1e-9):
            return {}
        bits = to_text(pack_bitmap([bool(sample) for sample in samples]))
        return {"items_sha": list_sha(hashes), "outcomes": bits, "item_hashes": to_text(hashes)}

    def _key(self, adapter: str) -> str:
        return hashlib.sha256(f"{self.identity}\n{adapter}".encode()).hexdigest()


def harness_round(
    task: HarnessTask,
    base: LoadedBase,
    *,
    limit: int | None = None,
    seed: int = 0,
    shots: int | None = None,
    chat: bool = False,
    too_long: str = "error",
) -> HarnessRound:
    """The requests of a task for a base model and its adapters.

    Args:
        task: As `load_harness_task` returns it, with these `shots`.
        base: The model whose tokenizer and chat template are used.
        limit: The first documents of each task only.
        seed: For the record; the harness draws nothing.
        shots: For the record; None if the task's own.
        chat: Put prompts into the chat template.
        too_long: "error", or "skip" to leave out and count documents that are longer than the model reads.

    Raises:
        UsageError: A document is too long, or none is left; the task samples its answers; the tokenizer has
            no chat template.
    """
    from merging.evaluation import HarnessModel, prompt_date

    model = HarnessModel(base)
    with guard_harness():
        for subtask in task.tasks.values():
            _build(subtask, model, limit, chat)
        long = {name: model.too_long(subtask.instances) for name, subtask in task.tasks.items()}
        left_out = sum(map(len, long.values()))
        documents = None
        if left_out:
            documents = _short_documents(task, base, long, too_long)
            for name, subtask in task.tasks.items():
                _leave_out(subtask, documents[name])
        requests = [request for subtask in task.tasks.values() for request in subtask.instances]
        contents = [[item.task_name, item.request_type, item.args, item.doc] for item in requests]
        text = json.dumps(contents, default=str, sort_keys=True)
        mark = model.mark(requests)
        for subtask in task.tasks.values():
            # Requests are the same for all adapters; only answers are taken away.
            subtask.build_all_requests = partial(_forget_answers, subtask)
    date = prompt_date(base) if chat else None
    protocol, plain = protocol_name(shots, chat), model.reads_plainly(requests)
    parts = [
        _VERSION,
        protocol,
        base.name,
        base.revision,
        base.dtype,
        mark,
        task.digest,
        date,
        plain,
        left_out,
    ]
    parts += [hashlib.sha256(text.encode()).hexdigest()]
    return HarnessRound(
        task,
        model,
        protocol,
        seed,
        date,
        plain,
        limit,
        documents,
        left_out,
        model.tokens(requests),
        "\n".join(map(str, parts)),
        {name: _item_hashes(subtask) for name, subtask in task.tasks.items()},
    )


def _build(task: Any, model: HarnessModel, limit: int | None, chat: bool) -> None:
    """Build the requests of a task, with the same examples in them whenever they are built."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    try:
        # Of its class: a round before this one has replaced the task's own.
        type(task).build_all_requests(
            task,
            limit=limit,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            chat_template=model.apply_chat_template if chat else None,
            tokenizer_name=model.tokenizer_name,
        )
    except LoradexError:
        raise
    except Exception as error:
        raise UsageError(
            f"The prompts of {PREFIX}{task.task_name} cannot be built: {first_line(error)}."
        ) from error


def _leave_out(task: Any, documents: list[int]) -> None:
    """Keeps the requests of these documents alone, numbered as the harness numbers chosen ones.

    They are not built again: examples would be drawn for other documents, and lengths not be those measured.
    """
    numbers = {document: number for number, document in enumerate(documents)}
    task._instances = [request for request in task.instances if request.doc_id in numbers]
    for request in task.instances:
        request.doc_id = numbers[request.doc_id]


def _item_hashes(task: Any) -> bytes:
    """The hashes of a task's documents in their order: prompt, target, and the answers to choose from."""
    from catalog.scores import MOST_ITEMS, item_hash

    documents: dict[int, list[Any]] = {}
    for request in task.instances:
        documents.setdefault(request.doc_id, []).append(request)
    if len(documents) > MOST_ITEMS:
        return b""
    return b"".join(
        item_hash(
            str(requests[0].args[0]),
            str(task.doc_to_target(requests[0].doc)),
            [str(item.args[1]) for item in requests] if len(requests) > 1 else [],
        )
        for requests in documents.values()
    )


def _forget_answers(task: Any, **_: Any) -> None:
    for request in task.instances:
        request.resps, request.filtered_resps = [], {}


def _short_documents(
    task: HarnessTask, base: LoadedBase, long: Mapping[str, Mapping[int | None, int]], too_long: str
) -> dict[str, list[int]]:
    """By task, the documents that the model can read; raises UsageError if they must be all, or none is."""
    documents = {}
    for name, subtask in task.tasks.items():
        if long[name] and too_long == "error":
            number, length = next(iter(long[name].items()))
            raise UsageError(
                f"Document {number} of {PREFIX}{name} has {length} tokens with its answer, more than the "
                f'{base.limit} that the model reads; leave such examples out (`too_long="skip"`).'
            )
        documents[name] = sorted({request.doc_id for request in subtask.instances} - set(long[name]))
        if not documents[name]:
            raise UsageError(
                f"All documents of {PREFIX}{name} are longer than the {base.limit} tokens that the model "
                "reads; choose another model."
            )
    return documents
