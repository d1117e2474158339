"""The use case of `Catalog.select`: a question, the model it may ask, and the pools that are saved."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from catalog.adapters import load_engines
from catalog.database import reading, store
from catalog.errors import UsageError
from catalog.files import BlobStore, read_limited, read_yaml
from catalog.query import parse
from catalog.search import browse, hidden_notes
from catalog.selection import HIDDEN, Question, Sources, left_out_in_words, select
from crawler.crawl import refusing
from loradex.comparison import find_subject
from loradex.encoding import embed_catalog
from loradex.measuring import ModelRequest, TaskOptions, other_tasks, with_model
from loradex.pool import Pool, save_pools
from loradex.progress import ProgressCallback, ProgressStep

if TYPE_CHECKING:
    from catalog.index import Embedder
    from catalog.settings import Settings
    from merging.model import Task

# The strategies that ask a base model, and how many examples a gradient reads.
MODELLED = ("gradient", "racing")
SAMPLES = 100
# The largest file of instructions.
MOST_BYTES = 16 * 1024 * 1024
_SCORED = ("score", "prior", "tasks", "completion", "racing", "worst")
# The strategies that use a parameter which others do not.
USED_BY = {
    "query": ("text", "tasks", "completion", "racing"),
    "like": ("adapter",),
    "adapters": ("named",),
    "task": (*_SCORED, "gradient"),
    "tasks": MODELLED,
    "texts": ("tasks", "completion", "racing"),
    "samples": ("gradient",),
    "exact": ("gradient",),
    "budget": ("racing",),
    "to": ("matched",),
    "splits": _SCORED,
}


def select_pool(
    question: Question,
    options: TaskOptions,
    settings: Settings,
    *,
    model: str,
    controls: bool,
    save: bool,
    replace_others: bool,
    report: ProgressCallback,
) -> Pool:
    """The pool that answers the question, saved with its controls unless `save` is False."""
    texts, digest = _read_instructions(options.texts)
    question, request = _model_request(replace(question, texts=digest), options)
    notes = _parameter_notes(question, options)
    engines = load_engines(settings.engines)
    with reading(settings) as session:
        if question.base is not None:
            question = replace(question, base=store.find_base(session, question.base))
        if question.where:
            browse.refuse_unknown_bases(session, parse(question.where, engines=engines))

        def load_encoder() -> Embedder:
            step = ProgressStep(report, "embedding cards")
            return embed_catalog(session, settings.index, model, step, notes)

        blobs = BlobStore(settings.blobs)
        sources = Sources(
            session=session,
            refusing=refusing(question.rules),
            index=settings.index,
            blobs=blobs,
            embedder=load_encoder,
            subject=lambda name: find_subject(session, name, blobs),
            texts=texts,
            engines=engines,
            note=notes.append,
        )
        with with_model(request, question, sources, settings, report) as (prepared, final):
            selection = select(final, prepared, controls=controls)
        if not selection.left_out.get(HIDDEN):
            where = parse(question.where, engines=engines) if question.where else None
            notes += hidden_notes(session, where)
    if question.count is None or any(selection.left_out.values()):
        count = len(selection.pool.members)
        reasons = left_out_in_words(selection.left_out) or "none"
        notes.append(f"{count:,} adapter{'s' * (count != 1)}; left out: {reasons}")
    pools = [Pool(manifest, settings) for manifest in (selection.pool, *selection.controls)]
    if save:
        pools = save_pools(pools, settings, replace_others=replace_others)
    return replace(pools[0], control_pools=tuple(pools[1:]), left_out=selection.left_out, notes=tuple(notes))


def _parameter_notes(question: Question, options: TaskOptions) -> list[str]:
    """A sentence on the parameters that were given and that the strategy does not use."""
    values = {**vars(options), **{name: getattr(question, name, None) for name in USED_BY if name != "tasks"}}
    values |= {"query": question.text}
    unused = [name for name, users in USED_BY.items() if values.get(name) and question.by not in users]
    names = " and ".join(f"`{name}`" for name in unused)
    return [f"Selecting by {question.by} does not use {names}."] if unused else []


def _model_request(question: Question, options: TaskOptions) -> tuple[Question, ModelRequest | None]:
    """The question with the task's name, and what a model is asked for the strategies that ask one."""
    task = options.task
    if question.by not in MODELLED or task is None:
        name = task if task is None or isinstance(task, (str, Path)) else task.name
        return replace(question, task=None if name is None else str(name)), None
    from merging.model import find_task

    if question.base is None:
        raise UsageError(f"Selecting by {question.by} requires a model; give it by `base`.")
    folder = None if options.tasks is None else Path(options.tasks)
    if isinstance(task, (str, Path)):
        task = find_task(str(task), folder)
    question = replace(question, task=task.name, task_digest=task.digest)
    backgrounds: list[Task] = []
    if question.by == "gradient":
        backgrounds = other_tasks(task, folder, question.seed)
        names = tuple(f"{row.name} {row.digest}" for row in backgrounds)
        question = replace(question, samples=question.samples or SAMPLES, beside=names)
    return question, ModelRequest(question.base or "", task, backgrounds, options)


def _read_instructions(file: str | Path | None) -> tuple[dict[str, str], str | None]:
    """The instructions of tasks in a file, and the sha256 of its bytes; a task is a text or has one."""
    if file is None:
        return {}, None
    advice = "give a file of instructions"
    data = read_limited(Path(file), MOST_BYTES, kind="instructions", advice=advice, error=UsageError)
    try:
        document = read_yaml(data.decode()).value
    except ValueError as error:  # YamlError, UnicodeDecodeError
        raise UsageError(f"{file} is no YAML or JSON: {error}.") from error
    rows = document if isinstance(document, dict) else {}
    texts = {
        str(name): row.get("instruction", "") if isinstance(row, dict) else row for name, row in rows.items()
    }
    if not texts or not all(isinstance(text, str) for text in texts.values()):
        raise UsageError(f"{file} must map names of tasks to instructions.")
    return texts, hashlib.sha256(data).hexdigest()
