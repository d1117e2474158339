"""`loradex snapshot`: the catalog as Parquet files, to be shared and imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from cli.app import App, Exit, pass_app
from cli.options import EXISTING_FOLDER, FOLDER, overwrite_option
from cli.output import label_lines, output_options
from cli.tables import counts_text
from loradex.snapshots import push_snapshot, verify_snapshot
from loradex.text import format_bytes


@click.group()
def snapshot() -> None:
    """The catalog as a folder of Parquet files, to be shared and imported."""


@snapshot.command("export")
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--cards", is_flag=True, help="With the cards of adapters whose licenses allow it.")
@click.option("--with-private", is_flag=True, help="With what is private, or was read behind a gate.")
@click.option("--with-notes", is_flag=True, help="With your own tags, notes, hidden marks and base names.")
@overwrite_option
@output_options(lists=False)
@pass_app
def export(
    app: App, folder: Path, cards: bool, with_private: bool, with_notes: bool, overwrite: bool
) -> None:
    """Write facts, fingerprints and scores into DIR; weights and pools are never in it.

    pandas, DuckDB and `datasets` read the tables. Equal catalogs give equal bytes.
    """
    with app.output.show_progress() as progress:
        report = app.catalog.export_snapshot(
            folder,
            cards=cards,
            with_private=with_private,
            with_notes=with_notes,
            overwrite=overwrite,
            progress=progress,
        )
    app.output.document(asdict(report), _render_export)


@snapshot.command("import")
@click.argument("source", metavar="DIR|REPO")
@output_options(lists=False)
@pass_app
def import_(app: App, source: str) -> None:
    """Bring a snapshot into the catalog: what is missing, and repositories that it crawled later.

    REPO is a data set of the Hub, OWNER/NAME, OWNER/NAME@COMMIT or hf://datasets/OWNER/NAME, which is fetched
    at one commit; the first form only where there is no folder OWNER. All files are compared with their
    sha256 first; one transaction writes the rows. Pools, tags, notes and scores that are there stay. The next
    crawl of the same Hub reads what changed since.
    """
    with app.output.show_progress() as progress:
        counts = app.catalog.import_snapshot(source, progress=progress)
    app.output.document(asdict(counts), _render_import)


@snapshot.command("push")
@click.argument("repository", metavar="REPO")
@click.argument("folder", metavar="DIR", type=EXISTING_FOLDER)
@click.option("--public", is_flag=True, help="Let anybody read it.")
@click.option("--yes", "upload", is_flag=True, help="Upload it.")
@output_options(lists=False)
@pass_app
def push(app: App, repository: str, folder: Path, public: bool, upload: bool) -> None:
    """Upload the snapshot DIR to the data set OWNER/NAME of the Hub.

    Says first what it would upload; --yes does it. The data set is made private unless --public; a public one
    that is there is written with --public alone. Files of an earlier snapshot that DIR lacks are removed.
    """
    report = push_snapshot(repository, folder, public=public, upload=upload)
    app.output.document(asdict(report), _render_push)
    if not upload:
        app.output.say("Add --yes to upload it.")


@snapshot.command("verify")
@click.argument("folder", metavar="DIR", type=EXISTING_FOLDER)
@click.option(
    "--sample", metavar="N", type=click.IntRange(0), default=0, help="Compare N adapters with the Hub."
)
@click.option("--seed", metavar="N", type=int, default=0, help="Of the drawing of these.")
@click.option("--weights", is_flag=True, help="Fetch and measure the weights of these.")
@output_options(lists=False)
@pass_app
def verify(app: App, folder: Path, sample: int, seed: int, weights: bool) -> None:
    """Check the snapshot DIR as an import does; exit code 1 where it is wrong.

    With --sample adapters are drawn at random, and the names, sizes and hashes of their files compared with
    those on the Hub at their commits; with --weights their tensors and fingerprints too.
    """
    with app.output.show_progress() as progress:
        report = verify_snapshot(folder, sample=sample, seed=seed, weights=weights, progress=progress)
    app.output.document(asdict(report), _render_check)
    if not report.ok:
        click.get_current_context().exit(Exit.ERROR)


def _render_check(report: Mapping[str, Any]) -> str:
    rows = [
        ("rows", counts_text({name: count for name, count in report["tables"].items() if count})),
        ("bytes", format_bytes(report["bytes"])),
    ]
    lines = [f"{row['state']:<9}{row['adapter']}  {row['detail']}".rstrip() for row in report["adapters"]]
    return "\n".join(["the snapshot is as its manifest says", label_lines(rows), *lines])


def _render_export(report: Mapping[str, Any]) -> str:
    left_out = {name: count for name, count in report["left_out"].items() if count}
    rows = [
        ("written to", f"{report['folder']} ({format_bytes(report['bytes'])})"),
        ("rows", counts_text({name: count for name, count in report["tables"].items() if count})),
        ("left out", counts_text(left_out)),
    ]
    return label_lines(rows)


def _render_push(report: Mapping[str, Any]) -> str:
    visible = "private" if report["private"] else "public"
    place = f"{report['repository']} ({'new, ' if report['new'] else ''}{visible})"
    left_out = {name: count for name, count in report["left_out"].items() if count}
    rows = [
        ("data set", place),
        ("files", f"{report['files']:,} ({format_bytes(report['bytes'])})"),
        ("rows", counts_text({name: count for name, count in report["tables"].items() if count})),
        ("left out", counts_text(left_out)),
        ("commit", report["commit"] or ""),
    ]
    return label_lines(rows)


def _render_import(report: Mapping[str, Any]) -> str:
    changes = ("added", "replaced", "left")
    rows = [
        ("from", report["source"]),
        ("repositories", counts_text({name: report[f"repositories_{name}"] for name in changes})),
        ("adapters", counts_text({name: report[f"adapters_{name}"] for name in changes[:2]})),
        ("other rows", counts_text({name: count for name, count in report["rows"].items() if count})),
        ("no card", f"{report['cards_missing']:,} not in the snapshot" if report["cards_missing"] else ""),
        ("watermarks", f"{report['watermarks']:,}"),
    ]
    return label_lines(rows)
