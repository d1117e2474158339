"""`loradex fingerprint`, `similar`, `duplicates`: adapters known by their weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from catalog import browse, likeness, store
from catalog import neighbours as nearest
from catalog.adapter_config import ScalingRule
from catalog.bases import BaseTable
from catalog.blobs import BlobStore
from catalog.database import disposing, open_catalog, reading
from catalog.duplicates import Group, duplicates
from catalog.families import Family, families
from catalog.fingerprint import fingerprint as fingerprint_of
from catalog.fingerprint import stable_rank, use_one_thread, verdict
from catalog.folder import is_adapter_folder, read_folder
from catalog.reference import AdapterReference
from catalog.reread import reread
from catalog.weights import health
from cli.app import App, pass_app
from cli.commands.browse import rules_option, short_count, short_targets
from cli.output import Column, labelled, output_options
from crawler.screen import refusing


@click.command()
@click.argument(
    "folders", nargs=-1, metavar="[DIR]…", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@output_options(lists=True)
@pass_app
def fingerprint(app: App, folders: tuple[Path, ...]) -> None:
    """What the weights of an adapter in each local folder DIR say: norm, health, rank in use.

    Without a folder: make the fingerprints that are missing of files kept in the data folder, as after an
    upgrade that changes their definition. A crawl makes those of all that it reads.
    """
    if folders:
        app.output.rows((_folder_row(folder) for folder in folders), FOLDER_COLUMNS)
        return
    blobs = BlobStore(app.settings.blobs)
    with disposing(open_catalog(app.settings, create=False)) as engine, app.output.progress("reading") as bar:
        found = reread(engine, blobs, bar.working)
    app.output.document(
        asdict(found), lambda done: labelled((k.replace("_", " "), f"{v:,}") for k, v in done.items())
    )


FOLDER_COLUMNS = (
    Column("adapter"),
    Column("rank", right=True),
    Column("targets", show=short_targets),
    Column("parameters", "size", True, short_count),
    Column("norm", right=True),
    Column("stable_rank", "stable rank", True),
    Column("health"),
)


def _folder_row(path: Path) -> dict[str, Any]:
    folder = read_folder(path)
    use_one_thread()
    made = fingerprint_of(folder.weights, folder.config)
    found = health(made.norms, folder.config)
    rules = ScalingRule(folder.config)
    ranks = sorted(rank for row in made.spectrum if math.isfinite(rank := stable_rank(row)))
    return {
        "adapter": str(path),
        "base": folder.config.base_model,
        "rank": folder.config.rank,
        "alpha": folder.config.alpha,
        "targets": sorted({name.rpartition(".")[2] for name in made.modules}),
        "modules": len(made.modules),
        "parameters": folder.spec.parameters,
        "norm": found.norm,
        "stable_rank": ranks[len(ranks) // 2] if ranks else None,
        "health": verdict(made.norms, folder.config),
        "tensor_digest": made.tensor_digest,
        "norms": {name: norm and norm * abs(rules.scaling(name)) for name, norm in made.norms.items()},
    }


@click.command()
@click.argument("adapter", metavar="ADAPTER|DIR")
@click.option(
    "--by",
    type=click.Choice(["output", "delta"]),
    default="output",
    show_default=True,
    help="output: where updates write to, whatever they were initialised with. delta: the whole update.",
)
@click.option(
    "-k", "count", metavar="N", type=click.IntRange(min=1), default=10, show_default=True, help="So many."
)
@click.option("--exact", is_flag=True, help="Compare the best by their weights, as far as files are kept.")
@rules_option
@output_options(lists=True)
@pass_app
def similar(app: App, adapter: str, by: str, count: int, exact: bool, rules: str) -> None:
    """The adapters most like ADAPTER, or like the one in the local folder DIR, by their weights.

    Only adapters of the same base model are compared. `score` is a cosine: 1 for the same update, 0 for
    unrelated ones; sketched scores are off by about 0.03.
    """
    blobs = BlobStore(app.settings.blobs)
    with reading(app.settings) as session:
        found = nearest.neighbours(
            session,
            subject(session, adapter, blobs),
            app.settings.index,
            blobs,
            refusing(rules),
            by=likeness.kind(by),
            count=count,
            exact=exact,
        )
    if exact and not all(row.exact for row in found):
        app.output.say("Some files are not kept (crawl with --weights keep): their scores are sketched.")
    app.output.rows(({**asdict(row), "why": row.why} for row in found), NEIGHBOUR_COLUMNS)


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


NEIGHBOUR_COLUMNS = (
    Column("score", right=True, show=_score),
    Column("adapter"),
    Column("rank", right=True),
    Column("license"),
    Column("why"),
)


def subject(session: Any, adapter: str, blobs: BlobStore) -> nearest.Subject:
    """The local folder of that name where there is one, else the adapter of the catalog."""
    if is_adapter_folder(Path(adapter)):
        folder = read_folder(Path(adapter))
        use_one_thread()
        base = folder.config.base_model
        canonical = BaseTable(store.spellings(session)).identify(base, tags=()).canonical if base else None
        return nearest.subject_of_folder(folder, fingerprint_of(folder.weights, folder.config), canonical)
    return nearest.subject_of(session, browse.find_adapter(session, AdapterReference.parse(adapter)), blobs)


@click.command("duplicates")
@click.option(
    "--level",
    type=click.Choice(["file", "tensor", "delta", "family"]),
    default="delta",
    show_default=True,
    help="file: the same bytes. tensor: the same tensors. delta: the same update but for rounding or scale. "
    "family: one owner's series and one run's checkpoints. Each but family includes those before.",
)
@rules_option
@output_options(lists=True)
@pass_app
def duplicates_(app: App, level: str, rules: str) -> None:
    """Groups of adapters with the same or nearly the same weights, and the level that matched."""
    blobs = BlobStore(app.settings.blobs)
    with reading(app.settings) as session:
        rows = list(likeness.fingerprinted(session, refusing(rules)))
        copies = likeness.copies(session, rows)
        if level == "family":
            app.output.rows([_family_row(family) for family in families(copies)], FAMILY_COLUMNS)
            return
        groups = duplicates(copies, level, exact=likeness.exact_delta(session, rows, blobs))
    app.output.rows([_group_row(group) for group in groups], GROUP_COLUMNS)


def _names(members: Sequence[str]) -> str:
    return " ".join(members)


GROUP_COLUMNS = (
    Column("level"),
    Column("size", right=True),
    Column("cosine", right=True),
    Column("members", show=_names),
    Column("note"),
)
FAMILY_COLUMNS = (Column("family"), Column("size", right=True), Column("why"), Column("members", show=_names))


def _group_row(group: Group) -> dict[str, Any]:
    return {**asdict(group), "members": list(group.members), "size": len(group.members)}


def _family_row(family: Family) -> dict[str, Any]:
    return {
        "family": family.name,
        "size": len(family.members),
        "why": family.why,
        "members": list(family.members),
    }
