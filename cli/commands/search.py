"""`loradex search`: the adapters that fit a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from catalog.adapters import AdapterReference
from catalog.database import reading
from catalog.errors import EncoderError, UsageError
from catalog.index import DEFAULT_MODEL, Embedder, load_embedder
from catalog.query import parse
from catalog.search import Weights, browse, embed_cards, open_texts, search
from cli.app import App, pass_app
from cli.options import rules_option, where_option
from cli.output import Column, output_options
from crawler.crawl import refusing

HITS = (
    Column("score", right=True, show=lambda score: f"{score:.4f}"),
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
    an adapter is found by its name and tags. Where the text encoder cannot be loaded, words alone decide.
    """
    query = parse(where)
    weights = _weights(given["weights"])
    if given["words_only"] and not weights.words:
        raise UsageError("By words alone, words must count: leave out --words, or give them a weight.")
    with reading(app.settings) as session:
        browse.refuse_unknown_bases(session, query)
        embedder = None if given["words_only"] else _encoder(app, session, model, weights)
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


def _encoder(app: App, session: Any, model: str, weights: Weights) -> Embedder | None:
    """The encoder; None, with a line on stderr, where it cannot be loaded and words count."""
    try:
        return embedded(app, session, model)
    except EncoderError as error:
        if not weights.words:
            raise
        app.output.say(f"searching by words alone: {error}")
        return None


def embedded(app: App, session: Any, model: str) -> Embedder:
    """The encoder, after it embedded what is new in the catalog."""
    embedder = load_embedder(model)
    with app.output.progress("embedding cards") as bar:
        counts = embed_cards(session, embedder, bar.working)
    if left := counts.texts - counts.known - counts.new:
        app.output.say(f"The catalog takes no vectors: {left:,} of {counts.texts:,} cards go by words alone.")
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
