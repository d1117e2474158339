"""`loradex fingerprint`, `similar`, `duplicates`: adapters known by their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from catalog.adapters import (
    AdapterFolder,
    AdapterReference,
    BaseTable,
    ScalingRule,
    health,
    is_adapter_folder,
    load_problems,
    read_folder,
)
from catalog.database import disposing, open_catalog, reading, reread, store
from catalog.errors import LoradexError
from catalog.files import BlobStore
from catalog.fingerprints import Family, Fingerprint, Group, duplicates, families, stable_rank, use_one_thread
from catalog.fingerprints import fingerprint as fingerprint_of
from catalog.fingerprints import verdict as health_in_a_word
from catalog.search import Fingerprinted, browse, likeness
from catalog.search import nearest as nearest
from cli.app import App, pass_app
from cli.options import rules_option, verdict_option
from cli.output import Column, labelled, output_options
from cli.tables import short_count, short_targets
from crawler.crawl import RULES, Reason, refusing


@click.command()
@click.argument(
    "folders", nargs=-1, metavar="[DIR]…", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@output_options(lists=True)
@pass_app
def fingerprint(app: App, folders: tuple[Path, ...]) -> None:
    """What the weights of an adapter in each local folder DIR say: norm, health, rank in use.

    All of it is of the products scaling * B A. Where the update is more than these, as with DoRA or layers
    saved whole, `leaves out` names what is missing. What PEFT does not load of a folder is said beside.

    Without a folder: make the fingerprints that are missing of files kept in the data folder, as after an
    upgrade that changes their definition. A crawl makes those of all that it reads.
    """
    if folders:
        _fingerprint_folders(app, folders)
        return
    blobs = BlobStore(app.settings.blobs)
    with disposing(open_catalog(app.settings, create=False)) as engine, app.output.progress("reading") as bar:
        found = reread(engine, blobs, bar.working)
    app.output.document(
        asdict(found), lambda done: labelled((k.replace("_", " "), f"{v:,}") for k, v in done.items())
    )


def _fingerprint_folders(app: App, folders: Sequence[Path]) -> None:
    """Shows the folders that can be read, then raises the last error of one that cannot."""
    rows, errors = [], []
    for folder in folders:
        try:
            rows.append(_folder_row(folder))
        except LoradexError as error:
            errors.append(error)
    if rows:
        partial = any(row["partial"] for row in rows)
        app.output.rows(rows, (*FOLDER_COLUMNS, LEAVES_OUT) if partial else FOLDER_COLUMNS)
    for row in rows:
        for reason, detail in row["partial"].items():
            app.output.say(f"the numbers of {row['adapter']} leave out {_in_words(reason, detail)}")
        for problem in row["load_problems"]:
            app.output.say(f"{row['adapter']}: {problem}")
    for unreadable in errors[:-1]:
        app.output.say(str(unreadable))
    if errors:
        raise errors[-1]


LEAVES_OUT = Column("partial", "leaves out", show=", ".join)
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
        "health": health_in_a_word(made.norms, folder.config),
        "partial": _partial(folder, made),
        "load_problems": list(load_problems(path)),
        "tensor_digest": made.tensor_digest,
        "norms": {name: norm and norm * abs(rules.scaling(name)) for name, norm in made.norms.items()},
    }


def _partial(folder: AdapterFolder, made: Fingerprint) -> dict[str, str]:
    """What the numbers of a folder leave out: what was seen, by the crawl's reason."""
    details = {feature.reason: feature.detail for feature in folder.partial}
    return {reason: details.get(reason, "") for reason in nearest.partial_of(folder, made)}


def _in_words(reason: str, detail: str) -> str:
    """A reason with its sentence and what was seen."""
    return f"{reason}: {RULES[Reason(reason)].sentence}{f' ({detail})' if detail else ''}"


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
@verdict_option
@rules_option
@output_options(lists=True)
@pass_app
def similar(app: App, adapter: str, by: str, count: int, exact: bool, verdict: str, rules: str) -> None:
    """The adapters most like ADAPTER, or like the one in the local folder DIR, by their weights.

    Only adapters of the same base model are compared. `score` is a cosine: 1 for the same update, 0 for
    unrelated ones; sketched scores are off by about 0.03. It compares the products B A: where an update is
    more than these, `why` names what is left out.
    """
    blobs = BlobStore(app.settings.blobs)
    with reading(app.settings) as session:
        of = subject(session, adapter, blobs)
        found = nearest.neighbours(
            session,
            of,
            app.settings.index,
            blobs,
            refusing(rules),
            by=likeness.kind(by),
            count=count,
            exact=exact,
            every=verdict == "any",
        )
    for problem in load_problems(Path(adapter)) if is_adapter_folder(Path(adapter)) else ():
        app.output.say(f"{adapter} is not loaded by PEFT: {problem}")
    for reason in of.partial:
        app.output.say(f"{of.name} is compared without {_in_words(reason, '')}")
    if exact and not all(row.exact for row in found):
        app.output.say("Some files are not kept (crawl with --weights keep): their scores are sketched.")
    columns = (*NEIGHBOUR_COLUMNS, Column("verdict")) if verdict == "any" else NEIGHBOUR_COLUMNS
    app.output.rows(({**asdict(row), "why": row.why} for row in found), columns)


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
@verdict_option
@rules_option
@output_options(lists=True)
@pass_app
def duplicates_(app: App, level: str, verdict: str, rules: str) -> None:
    """Groups of adapters with the same or nearly the same weights, and the level that matched.

    Files are compared by the digests that the Hub names, whether they were read or not. Updates are the
    products B A; members of which these are a part only are marked.
    """
    blobs = BlobStore(app.settings.blobs)
    every = verdict == "any"
    with reading(app.settings) as session:
        if level == "family":
            named = list(likeness.fingerprinted(session, refusing(rules), every=every))
            found = families(likeness.copies(session, named))
            by_name = {row.adapter: row for row in named}
            app.output.rows([_family_row(family, by_name) for family in found], FAMILY_COLUMNS)
            return
        rows = list(likeness.with_weights(session, refusing(rules), every=every))
        copies = likeness.copies(session, rows, deltas=level == "delta")
        groups = duplicates(copies, level, exact=likeness.exact_delta(session, rows, blobs))
    by_name = {row.adapter: row for row in rows}
    app.output.rows([_group_row(group, by_name) for group in groups], GROUP_COLUMNS)


def _names(members: Sequence[str]) -> str:
    return " ".join(members)


def _reasons(partial: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{member} without {', '.join(reasons)}" for member, reasons in partial.items())


MARKS = (Column("skipped", show=_names), Column("partial", show=_reasons))
GROUP_COLUMNS = (
    Column("level"),
    Column("size", right=True),
    Column("cosine", right=True),
    Column("members", show=_names),
    Column("note"),
    *MARKS,
)
FAMILY_COLUMNS = (
    Column("family"),
    Column("size", right=True),
    Column("why"),
    Column("members", show=_names),
    *MARKS,
)


def _group_row(group: Group, rows: Mapping[str, Fingerprinted]) -> dict[str, Any]:
    marks = _marks(group.members, rows)
    return {**asdict(group), "members": list(group.members), "size": len(group.members), **marks}


def _family_row(family: Family, rows: Mapping[str, Fingerprinted]) -> dict[str, Any]:
    return {
        "family": family.name,
        "size": len(family.members),
        "why": family.why,
        "members": list(family.members),
        **_marks(family.members, rows),
    }


def _marks(members: Sequence[str], rows: Mapping[str, Fingerprinted]) -> dict[str, Any]:
    """The members that the rules refuse, and those whose B A is not the whole update, with the reasons."""
    inside = [rows[member] for member in members]
    return {
        "skipped": [row.adapter for row in inside if row.skipped],
        "partial": {row.adapter: list(row.partial) for row in inside if row.partial},
    }
