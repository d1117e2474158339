"""`loradex select`: adapters chosen and pinned as a pool."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from catalog.adapters import USES, adapter_name
from catalog.database import pool_store, reading, store, writing
from catalog.errors import UsageError
from catalog.files import BlobStore, read_yaml, replace_file
from catalog.pools import Manifest
from catalog.query import parse
from catalog.search import browse
from catalog.selection import STRATEGIES, Question, Sources, left_out_in_words, select
from cli.app import App, pass_app
from cli.commands.measuring import Asking, measuring, other_tasks, sloping
from cli.options import (
    date_option,
    device_option,
    model_option,
    rules_option,
    split_names,
    tasks_option,
    too_long_option,
    where_option,
)
from cli.output import Column, cell, labelled, output_options, table
from cli.tables import DOT
from crawler.crawl import refusing
from loradex.comparison import find_subject
from loradex.encoding import embed_catalog

if TYPE_CHECKING:
    from catalog.index import Embedder
    from merging.evaluation import TooLong
    from merging.model import Task

# The ways to choose that ask a base model, and how many examples a gradient reads.
MODELLED = ("gradient", "racing")
SAMPLES = 100
MEMBERS = (
    Column("score", right=True, show=lambda score: "" if score is None else f"{score:.3f}"),
    Column("adapter"),
    Column("rank", right=True),
    Column("license"),
    Column("why"),
)

# A paragraph that click does not fill anew.
_WAYS = "\b\n" + "\n".join(f"{name:<11}{row.sentence}" for name, row in STRATEGIES.items())


def _count(_context: click.Context, _option: click.Parameter, text: str) -> int | None:
    """So many members; None for all."""
    if text == "all":
        return None
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither a number nor all") from None


@click.command("select", epilog=_WAYS)
@click.argument("name")
@click.option("--by", type=click.Choice(list(STRATEGIES)), required=True, help="How to choose; see below.")
@click.option(
    "-k",
    "count",
    metavar="N|all",
    default="10",
    show_default=True,
    callback=_count,
    help="How many members; all: every adapter that can be ranked, within the limits.",
)
@click.option("--query", "text", metavar="TEXT", help="What the adapters should be good for (text).")
@click.option(
    "--task",
    metavar="T",
    help="The task whose scores decide (score, prior, tasks, completion, worst); its folder, or its name in "
    "--tasks, where a model reads it (gradient, racing).",
)
@tasks_option
@click.option(
    "--samples",
    metavar="N",
    type=click.IntRange(min=1),
    help="Training examples to read (gradient).  [default: 100]",
)
@click.option(
    "--exact", is_flag=True, help="Read the weights of the best, and order them exactly (gradient)."
)
@click.option("--budget", metavar="N", type=click.IntRange(min=1), help="Examples to spend in all (racing).")
@too_long_option
@date_option
@device_option
@click.option("--like", metavar="ADAPTER|DIR", help="The adapter that members should resemble (adapter).")
@click.option("--to", metavar="POOL", help="The pool to be matched (matched).")
@click.option(
    "--kind", type=click.Choice(["output", "delta"]), default="output", help="By which (adapter, gradient)."
)
@click.option(
    "--splits",
    metavar="SPLIT",
    multiple=True,
    help="Scores of these splits alone.  [default: all but test, which is there to judge]",
)
@click.option(
    "--texts",
    "texts_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="YAML or JSON of task names and instructions (tasks, completion); --query is that of --task.",
)
@where_option
@click.option(
    "--base",
    metavar="ID",
    help="Of this base model; the one to load (gradient, racing).  [default: the most frequent one]",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--per-owner", metavar="N", type=int, help="At most so many of one owner.")
@click.option("--per-family", metavar="N", type=int, help="At most so many of one family.")
@click.option(
    "--distinct", type=click.Choice(["file", "tensor", "delta"]), help="One of each group of duplicates."
)
@click.option("--parameters", metavar="N", type=int, help="At most so many LoRA parameters in all.")
@click.option("--exclude", metavar="NAME", multiple=True, help="An adapter, repository or owner.")
@click.option(
    "--without",
    metavar="LAYER,…",
    callback=split_names,
    help="Also adapters that are plain LoRA without these layers, such as lm_head,embed_tokens; merge takes "
    "the same option.",
)
@click.option(
    "--use",
    type=click.Choice(list(USES)),
    default="research",
    show_default=True,
    help="What the pool is for: adapters whose licence forbids it are left out.",
)
@click.option("--controls", is_flag=True, help="Also save NAME-random, NAME-matched, NAME-shuffled.")
@click.option("--replace", "instead", is_flag=True, help="Take the place of another pool of this name.")
@click.option("--dry-run", is_flag=True, help="Show the members and save nothing.")
@model_option
@rules_option
@output_options(lists=False)
@pass_app
def select_(
    app: App,
    /,
    model: str,
    rules: str,
    controls: bool,
    instead: bool,
    dry_run: bool,
    texts_file: Path | None,
    tasks: Path | None,
    device: str,
    date: datetime.date | None,
    too_long: TooLong,
    **given: Any,
) -> None:
    """Choose members and save them as the pool NAME, pinned to commits and hashes.

    The same catalog, question and seed give the same pool, byte for byte.
    """
    texts, digest = _task_texts(texts_file)
    task = _asked_task(given, tasks)
    question = Question(rules=rules, texts=digest, **given)
    with reading(app.settings) as session:
        if question.base is not None:
            question = replace(question, base=store.find_base(session, question.base))
        if question.where:
            browse.refuse_unknown_bases(session, parse(question.where))
        sources = _sources(app, session, model, rules, texts)
        asking = Asking(device, date, too_long)
        with _measured(app, sources, question, given["base"], task, tasks, asking) as (ready, question):
            found = select(question, ready, controls=controls)
    if found.left_out:
        reasons = left_out_in_words(found.left_out) or "none"
        count = len(found.pool.members)
        app.output.say(f"{count:,} adapter{'s' * (count != 1)}; left out: {reasons}")
    pools = (found.pool, *found.controls)
    if not dry_run:
        with writing(app.settings) as session:
            for manifest in pools:
                pool_store.save_pool(session, manifest, datetime.datetime.now(datetime.UTC), replace=instead)
            session.commit()
    places = {} if dry_run else {one.name: save_manifest(app, one) for one in pools}
    app.output.document(_manifest(found.pool), partial(render_pool, places=places))


def _task_texts(file: Path | None) -> tuple[dict[str, str], str | None]:
    """The instructions of tasks in a file, and the sha256 of its bytes; a task is a text or has one."""
    if file is None:
        return {}, None
    try:
        data = file.read_bytes()
        found = read_yaml(data.decode()).value
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # YamlError, UnicodeDecodeError
        raise UsageError(f"{file} is no YAML or JSON: {error}.") from error
    rows = found if isinstance(found, dict) else {}
    texts = {
        str(name): row.get("instruction", "") if isinstance(row, dict) else row for name, row in rows.items()
    }
    if not texts or not all(isinstance(text, str) for text in texts.values()):
        raise UsageError(f"{file} must map names of tasks to instructions.")
    return texts, hashlib.sha256(data).hexdigest()


def _asked_task(given: dict[str, Any], tasks: Path | None) -> Task | None:
    """The task that a model is to read, its name and digest put among what was given; else None."""
    if given["by"] not in MODELLED or given["task"] is None:
        return None
    from merging.model import find_task

    if given["base"] is None:
        raise UsageError(f"Choosing by {given['by']} asks a model; name it with --base.")
    task = find_task(given["task"], tasks)
    given |= {"task": task.name, "task_digest": task.digest}
    if given["by"] == "gradient":
        given["samples"] = given["samples"] or SAMPLES
        others = other_tasks(task, tasks, given["seed"])
        given["beside"] = tuple(f"{other.name} {other.digest}" for other in others)
    return task


@contextmanager
def _measured(
    app: App,
    sources: Sources,
    question: Question,
    base: str | None,
    task: Task | None,
    tasks: Path | None,
    asking: Asking,
) -> Iterator[tuple[Sources, Question]]:
    """The sources with what a model says, for the ways to choose that ask one, and the question with how."""
    if task is None or base is None:
        yield sources, question
    elif question.by == "gradient":
        others = other_tasks(task, tasks, question.seed)
        with sloping(app, sources, base, task, others, question, asking) as ready:
            yield ready
    else:
        with measuring(
            app,
            sources.session,
            sources.refusing,
            base,
            question.base or base,
            task,
            question.budget or 0,
            question.seed,
            asking,
        ) as (measure, told):
            yield replace(sources, measure=measure), replace(question, **told)


def _sources(app: App, session: Any, model: str, rules: str, texts: dict[str, str]) -> Sources:
    blobs = BlobStore(app.settings.blobs)
    return Sources(
        session=session,
        refusing=refusing(rules),
        index=app.settings.index,
        blobs=blobs,
        embedder=lambda: _embedder(app, session, model),
        subject=lambda name: find_subject(session, name, blobs),
        texts=texts,
    )


def _embedder(app: App, session: Any, model: str) -> Embedder:
    notes: list[str] = []
    with app.output.progress("embedding cards") as step:
        embedder = embed_catalog(session, model, step, notes)
    app.output.say_all(notes)
    return embedder


def save_manifest(app: App, manifest: Manifest) -> Path:
    """Writes the manifest below the pools of the data folder and gives its place."""
    folder = app.settings.pools / manifest.folder_name
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "pool.json"
    with replace_file(place) as new:
        new.write_bytes(manifest.canonical())
    return place


def _manifest(manifest: Manifest) -> dict[str, Any]:
    """The manifest as it is written, with its digest."""
    return {**asdict(manifest), "digest": manifest.digest}


def _adapter(member: dict[str, Any]) -> str:
    return adapter_name(member["repository"], member["subfolder"])


def render_pool(found: dict[str, Any], places: dict[str, Path]) -> str:
    """A pool as lines: what it is, then its members."""
    members = [{**member, "adapter": _adapter(member)} for member in found["members"]]
    left_out = found["chosen"].get("without", ())
    chosen = DOT.join(f"{name} {cell(value)}" for name, value in found["chosen"].items())
    rows = [
        ("pool", f"{found['name']}  {len(members)} members of {found['base']}"),
        ("chosen", chosen),
        ("use", found["use"]),
        ("merge with", f"--without {','.join(left_out)}" if left_out else ""),
        ("digest", found["digest"]),
        *(("saved" if name == found["name"] else "control", str(at)) for name, at in places.items()),
        ("to compare", ", ".join(row["kind"] for row in found["controls"])),
    ]
    return "\n".join([labelled(rows), "", *table(members, MEMBERS)])
