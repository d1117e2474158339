"""`loradex search` and `select`: the adapters that fit a task, and a pool of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import click

from catalog import browse, pool_store, store
from catalog.bases import BaseTable
from catalog.blobs import BlobStore
from catalog.database import reading, writing
from catalog.embed import DEFAULT_MODEL, Embedder, load_embedder
from catalog.errors import UsageError
from catalog.licenses import USES
from catalog.pools import Manifest
from catalog.query import parse
from catalog.reference import AdapterReference, adapter_name
from catalog.search import Weights, open_texts, search
from catalog.selection import STRATEGIES, Question, Sources, select
from catalog.texts import embed_cards
from cli.app import App, pass_app
from cli.commands.alike import subject
from cli.commands.browse import rules_option, where_option
from cli.commands.crawl import DOT
from cli.output import Column, cell, labelled, output_options, table
from crawler.screen import refusing

HITS = (
    Column("score", right=True, show=lambda score: f"{score:.4f}"),
    Column("adapter"),
    Column("rank", right=True),
    Column("license"),
    Column("why"),
)
MEMBERS = (
    Column("score", right=True, show=lambda score: "" if score is None else f"{score:.3f}"),
    Column("adapter"),
    Column("rank", right=True),
    Column("license"),
    Column("why"),
)
model_option = click.option(
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    help="The text encoder: an id on the Hub, or a local folder.",
)


@click.command("search")
@click.argument("text")
@where_option
@click.option("-k", "count", metavar="N", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--words", "words_only", is_flag=True, help="By words alone: no text encoder is loaded.")
@click.option(
    "--weights",
    metavar="W,M",
    default="1,1",
    show_default=True,
    help="How much the ranking by words and the one by meaning count.",
)
@model_option
@rules_option
@output_options(lists=True)
@pass_app
def search_(app: App, /, text: str, where: str, model: str, rules: str, **given: Any) -> None:
    """The adapters whose name, card, datasets, tags or base fit TEXT, by words and by meaning.

    Cards are embedded once, the first time they are searched. A card that says nothing is not embedded: such
    an adapter is found by its name and tags.
    """
    query = parse(where)
    weights = _weights(given["weights"])
    with reading(app.settings) as session:
        embedder = None if given["words_only"] else _embedded(app, session, model)
        with open_texts(session, app.settings.index, embedder) as texts:
            found = search(
                session,
                texts,
                text,
                given["count"],
                query=query,
                refusing=refusing(rules),
                weights=weights,
            )
        rows = _described(session, [(hit.adapter, hit.score, hit.why) for hit in found.hits])
    for note in found.notes:
        app.output.say(note)
    app.output.rows(rows, HITS)


def _weights(text: str) -> Weights:
    try:
        words, meaning = (float(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter("write two numbers, such as 1,0.5", param_hint="--weights") from error
    return Weights(words, meaning)


def _embedded(app: App, session: Any, model: str) -> Embedder:
    """The encoder, after it embedded what is new in the catalog."""
    embedder = load_embedder(model)
    with app.output.progress("embedding cards") as bar:
        embed_cards(session, embedder, bar.working)
    return embedder


def _described(session: Any, hits: Sequence[tuple[str, float, str]]) -> list[dict[str, Any]]:
    """The hits as rows, with what a user asks next."""
    rows = []
    for name, score, why in hits:
        adapter = browse.find_adapter(session, AdapterReference.parse(name))
        rows.append(
            {
                "adapter": name,
                "score": score,
                "why": why,
                "commit": adapter.commit,
                "rank": adapter.rank,
                "license": adapter.license,
            }
        )
    return rows


# A paragraph that click does not fill anew.
_WAYS = "\b\n" + "\n".join(f"{name:<11}{row.sentence}" for name, row in STRATEGIES.items())


@click.command("select", epilog=_WAYS)
@click.argument("name")
@click.option("--by", type=click.Choice(list(STRATEGIES)), required=True, help="How to choose; see below.")
@click.option("-k", "count", metavar="N", type=int, default=10, show_default=True, help="How many members.")
@click.option("--query", "text", metavar="TEXT", help="What the adapters should be good for (text).")
@click.option(
    "--task", metavar="T", help="The task whose scores decide (score, prior, tasks, completion, worst)."
)
@click.option("--like", metavar="ADAPTER|DIR", help="The adapter that members should resemble (adapter).")
@click.option("--to", metavar="POOL", help="The pool to be matched (matched).")
@click.option("--kind", type=click.Choice(["output", "delta"]), default="output", help="By which (adapter).")
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
@click.option("--base", metavar="ID", help="Of this base model.  [default: the most frequent one]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--per-owner", metavar="N", type=int, help="At most so many of one owner.")
@click.option("--per-family", metavar="N", type=int, help="At most so many of one family.")
@click.option(
    "--distinct", type=click.Choice(["file", "tensor", "delta"]), help="One of each group of duplicates."
)
@click.option("--parameters", metavar="N", type=int, help="At most so many LoRA parameters in all.")
@click.option("--exclude", metavar="NAME", multiple=True, help="An adapter, repository or owner.")
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
    **given: Any,
) -> None:
    """Choose members and save them as the pool NAME, pinned to commits and hashes.

    The same catalog, question and seed give the same pool, byte for byte.
    """
    texts, digest = _task_texts(texts_file)
    question = Question(rules=rules, texts=digest, **given)
    with reading(app.settings) as session:
        if question.base is not None:
            canonical = BaseTable(store.spellings(session)).spellings(question.base)[0]
            question = replace(question, base=canonical)
        found = select(question, _sources(app, session, model, rules, texts), controls=controls)
    pools = (found.pool, *found.controls)
    if not dry_run:
        with writing(app.settings) as session:
            for manifest in pools:
                pool_store.save_pool(session, manifest, datetime.now(timezone.utc), replace=instead)
            session.commit()
    places = {} if dry_run else {one.name: save_manifest(app, one) for one in pools}
    app.output.document(_manifest(found.pool), partial(render_pool, places=places))


def _task_texts(file: Path | None) -> tuple[dict[str, str], str | None]:
    """The instructions of tasks in a file, and the sha256 of its bytes; a task is a text or has one."""
    import yaml

    if file is None:
        return {}, None
    try:
        data = file.read_bytes()
        found = yaml.safe_load(data)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{file} is no YAML or JSON: {' '.join(str(error).split())[:200]}.") from error
    rows = found if isinstance(found, dict) else {}
    texts = {
        str(name): row.get("instruction", "") if isinstance(row, dict) else row for name, row in rows.items()
    }
    if not texts or not all(isinstance(text, str) for text in texts.values()):
        raise UsageError(f"{file} must map names of tasks to instructions.")
    return texts, hashlib.sha256(data).hexdigest()


def _sources(app: App, session: Any, model: str, rules: str, texts: dict[str, str]) -> Sources:
    blobs = BlobStore(app.settings.blobs)
    return Sources(
        session=session,
        refusing=refusing(rules),
        index=app.settings.index,
        blobs=blobs,
        embedder=lambda: _embedded(app, session, model),
        subject=lambda name: subject(session, name, blobs),
        texts=texts,
    )


def save_manifest(app: App, manifest: Manifest) -> Path:
    """Writes the manifest below the pools of the data folder and gives its place."""
    folder = app.settings.pools / manifest.folder_name
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "pool.json"
    aside = place.with_name(".pool.json.new")
    aside.write_bytes(manifest.canonical())
    aside.replace(place)
    return place


def _manifest(manifest: Manifest) -> dict[str, Any]:
    """The manifest as it is written, with its digest."""
    return {**asdict(manifest), "digest": manifest.digest}


def _adapter(member: dict[str, Any]) -> str:
    return adapter_name(member["repository"], member["subfolder"])


def render_pool(found: dict[str, Any], places: dict[str, Path]) -> str:
    """A pool as lines: what it is, then its members."""
    members = [{**member, "adapter": _adapter(member)} for member in found["members"]]
    chosen = DOT.join(f"{name} {cell(value)}" for name, value in found["chosen"].items())
    rows = [
        ("pool", f"{found['name']}  {len(members)} members of {found['base']}"),
        ("chosen", chosen),
        ("use", found["use"]),
        ("digest", found["digest"]),
        *(("saved" if name == found["name"] else "control", str(at)) for name, at in places.items()),
        ("to compare", ", ".join(row["kind"] for row in found["controls"])),
    ]
    return "\n".join([labelled(rows), "", *table(members, MEMBERS)])
