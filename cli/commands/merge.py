"""`loradex methods`, `merge` and `inspect-merge`: many adapters into one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict, Unpack

import click

import loradex
from catalog.errors import UsageError
from cli.app import App, pass_app
from cli.options import (
    EXISTING_FOLDER,
    FILE,
    FOLDER,
    RESULT,
    Command,
    Decorated,
    base_name,
    control_option,
    device_option,
    mixed_ranks_option,
    option,
    overwrite_option,
    rank_option,
    split_names,
    split_numbers,
)
from cli.output import Column, label_lines, output_options, table

METHODS = (
    Column("method"),
    Column("summary", "what it does"),
    Column("weight", "weight", show=lambda weight: "1/N" if weight == "mean" else f"{weight:g}"),
    Column("parameters", in_table=False),
    Column("exact", show=lambda exact: "exact" if exact else ""),
)


@click.command()
@output_options(lists=True)
@pass_app
def methods(app: App) -> None:
    """List the merge methods; --json has their parameters and where they come from too.

    The weight is a member's where --weights gives none: 1/N makes a mean, 1 a sum.
    """
    app.output.rows(loradex.methods(), METHODS)


def _parameters(
    _context: click.Context, _option: click.Parameter, values: Sequence[str]
) -> dict[str, object]:
    pairs = [text.partition("=") for text in values]
    if wrong := next((name for name, sign, _ in pairs if not (name and sign)), None):
        raise click.BadParameter(f"{wrong!r} is not KEY=VALUE, such as density=0.2.")
    return {name: value for name, _, value in pairs}


members_argument = click.argument("members", nargs=-1, required=True, metavar="POOL|DIR…")
_MEMBERS = "Members"


def weights_option(default: str) -> Callable[[Decorated], Decorated]:
    """The option --weights, with what is taken where it is not given."""
    text = f"One a member, in their order.  [default: {default}]"
    return option(
        "--weights", group=_MEMBERS, metavar="W,…", callback=split_numbers("numbers", "1,0.5,0.5"), help=text
    )


without_option = option(
    "--without",
    group=_MEMBERS,
    metavar="LAYER,…",
    callback=split_names,
    help="Leave out these layers of all members, such as lm_head.",
)
merge_base_option = option(
    "--base",
    group=_MEMBERS,
    metavar="ID|DIR",
    callback=base_name,
    help="Their base model, if they name none or several; its folder folds DoRA.",
)


class InspectOptions(TypedDict):
    """The options that are keywords of `loradex.inspect`."""

    result: Path | None
    weights: list[float] | None
    without: tuple[str, ...]
    base: str | None
    device: str


class MergeOptions(TypedDict):
    """The options that are fields of `loradex.MergeRequest`."""

    parameters: dict[str, object]
    weights: list[float] | None
    without: tuple[str, ...]
    heads: str | None
    base: str | None
    control: str | None
    rank: int | None
    mixed_ranks: bool
    dtype: str | None
    apply_to: Path | None
    form: str
    device: str
    seed: int


@click.command(cls=Command)
@members_argument
@option("--method", metavar="M", required=True, help="A row of `loradex methods`.")
@option("-p", "parameters", metavar="KEY=VALUE", multiple=True, callback=_parameters, help="Of the method.")
@weights_option("1/N or 1 each")
@without_option
@option(
    "--heads",
    group=_MEMBERS,
    metavar="H",
    help="Saved heads and embeddings: first, average or drop.",
)
@merge_base_option
@control_option
@option("-o", "--out", group=RESULT, metavar="DIR", type=FOLDER, help="The folder to write.")
@overwrite_option
@rank_option
@mixed_ranks_option
@option(
    "--dtype",
    group=RESULT,
    metavar="TYPE",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="float32, bfloat16 or float16.  [default: the members']",
)
@option(
    "--apply-to",
    group=RESULT,
    metavar="BASE",
    type=EXISTING_FOLDER,
    help="Add the merge to this base model, and write it all.",
)
@option(
    "--format",
    "form",
    group=RESULT,
    metavar="F",
    type=click.Choice(["peft", "gguf"]),
    default="peft",
    help="peft, or gguf: with adapter.gguf and a Modelfile.",
)
@device_option
@option("--seed", metavar="N", default=0, help="Of draws, and of --control.")
@option("--dry-run", is_flag=True, help="Say what it would cost, and write nothing; needs no -o.")
@output_options(lists=False)
@pass_app
def merge(
    app: App,
    /,
    members: tuple[str, ...],
    method: str,
    out: Path | None,
    overwrite: bool,
    dry_run: bool,
    **options: Unpack[MergeOptions],
) -> None:
    """Merge a POOL, or adapters in folders, into one adapter that plain PEFT loads.

    Beside its weights the folder holds merge.json (members, digests, method, parameters, energy kept) and a
    model card. The same call writes the same bytes.
    """
    if out is None and not dry_run:
        raise UsageError("Name the folder to write the merge to, by -o DIR.")
    request = loradex.MergeRequest(members, method, **options, catalog=app.settings)
    with app.output.show_progress() as progress:
        if out is None or dry_run:
            result: dict[str, Any] = asdict(request.cost(progress=progress))
        else:
            result = request.run(out, overwrite=overwrite, progress=progress).document()
    app.output.document(result, _render_price if out is None or dry_run else _render_merge)


@click.command("inspect-merge", cls=Command)
@members_argument
@option("--result", metavar="DIR", type=EXISTING_FOLDER, help="The merge of them: how much of it is whose.")
@weights_option("1/N each")
@without_option
@merge_base_option
@device_option
@option("--plot", metavar="FILE", type=FILE, help="Draw cosines and energy by rank.")
@output_options(lists=False)
@pass_app
def inspect_merge(
    app: App,
    /,
    members: tuple[str, ...],
    plot: Path | None,
    **options: Unpack[InspectOptions],
) -> None:
    """How alike the members of a POOL are, how much they interfere, and the energy that each rank keeps."""
    with app.output.show_progress() as progress:
        inspection = loradex.inspect(members, **options, catalog=app.settings, progress=progress)
    if plot:
        inspection.plot(plot)
        app.output.say(f"drawn into {plot}")
    app.output.document(inspection.document(), _render_inspection)


def _render_price(result: dict[str, Any]) -> str:
    return label_lines(
        [
            ("members", f"{result['members']} with {result['modules']:,} modules"),
            ("result", f"rank {result['rank']} · {result['parameters']:,} parameters"),
            ("size", f"{result['size'] / 1e6:,.1f} MB"),
            ("reads", f"{result['read'] / 1e6:,.1f} MB"),
            ("memory", f"about {result['memory'] / 1e6:,.0f} MB in addition to the program"),
            ("time", f"about {result['seconds']:,.1f} s on this device"),
        ]
    )


def _render_merge(result: dict[str, Any]) -> str:
    return label_lines(
        [
            ("merge", result["folder"]),
            ("method", result["method"]),
            ("members", f"{len(result['members'])}"),
            ("energy kept", "" if result["kept"] is None else f"{result['kept']:.4f}"),
            ("left out", _left_out(result["members"])),
            ("heads", _saved(result.get("heads") or {})),
            ("misread", " ".join(result["misread"])),
            ("model", result.get("model", "")),
            ("gguf", result.get("gguf", "")),
        ]
    )


def _saved(heads: dict[str, Any]) -> str:
    """Which saved layers the result has, of how many members."""
    layers = heads.get("layers") or {}
    texts = [f"{layer} of {', '.join(row['member'] for row in rows)}" for layer, rows in layers.items()]
    return "; ".join(texts)


def _left_out(members: Sequence[dict[str, Any]]) -> str:
    lacking = [member for member in members if member.get("left_out")]
    tensors = [name for member in lacking for name in member["left_out"]]
    if not tensors:
        return ""
    more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
    return f"{tensors[0]}{more}, in {len(lacking)} of {len(members)} members"


def _render_inspection(result: dict[str, Any]) -> str:
    """Members with their norms and shares, the table of cosines, and what the sum is like."""
    names = result["names"]
    rows = [
        {"number": n + 1, "member": name, "norm": result["norms"][n], "cosines": result["cosines"][n]}
        | ({"share": result["shares"][n]} if result["shares"] else {})
        for n, name in enumerate(names)
    ]
    columns = [
        Column("number", "", True),
        Column("member"),
        Column("norm", right=True, show=lambda norm: f"{norm:.3g}"),
        *([Column("share", right=True, show=lambda share: f"{share:.3f}")] if result["shares"] else []),
        Column("cosines", show=lambda row: " ".join(f"{value:+z.2f}" for value in row)),
    ]
    ranks = " · ".join(f"{share} %: {result[f'rank_for_{share}']}" for share in (50, 90, 99))
    facts = [
        ("interference", f"{result['interference']:.3f} (unrelated 1, equal {len(names)})"),
        ("rank that keeps", ranks),
    ]
    return "\n".join([*table(rows, columns), "", label_lines(facts)])
