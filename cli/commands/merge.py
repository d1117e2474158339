"""`loradex methods`, `merge` and `inspect-merge`: many adapters into one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from catalog.adapters import is_adapter_folder, misreadings, names_nothing
from catalog.errors import PoolError, UsageError
from catalog.files import Verified
from catalog.pools import Manifest, export, in_export, member_folder, read_record, verify_files
from cli.app import App, pass_app
from cli.commands.base import base_table
from cli.commands.fetching import fetching, folder_for_files
from cli.commands.pools import found_pool
from cli.options import split_names
from cli.output import Column, labelled, output_options, table

if TYPE_CHECKING:
    from catalog.adapters import BaseTable
    from merging.members import MergeMember

Command = TypeVar("Command", bound=Callable[..., Any])
METHODS = (
    Column("method"),
    Column("summary", "what it does"),
    Column("weight", "weight", show=lambda weight: "1/N" if weight == "mean" else f"{weight:g}"),
    Column("parameters", show=lambda rows: ", ".join(f"{row['name']}={row['default']}" for row in rows)),
    Column("exact", show=lambda exact: "exact" if exact else ""),
)


@click.command()
@output_options(lists=True)
@pass_app
def methods(app: App) -> None:
    """List the merge methods, their parameters and where they come from (--json has all of it).

    The weight is a member's where --weights gives none: 1/N makes a mean, 1 a sum.
    """
    from merging.methods import METHODS as ROWS

    app.output.rows([_method(row) for row in ROWS.values()], METHODS)


def _method(row: Any) -> dict[str, Any]:
    parameters = [
        {"name": one.name, "default": one.default, "range": one.range, "meaning": one.meaning}
        for one in row.parameters
    ]
    names = ("summary", "paper", "weight", "normalised", "exact", "gauge", "data")
    facts = {name: getattr(row, name) for name in names}
    return {"method": row.name, **facts, "parameters": parameters}


def _parameters(_context: click.Context, _option: click.Parameter, given: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    if wrong := next((name for name, sign, _ in pairs if not (name and sign)), None):
        raise click.BadParameter(f"{wrong!r} is not KEY=VALUE, such as density=0.2.")
    return {name: value for name, _, value in pairs}


def _numbers(_context: click.Context, _option: click.Parameter, given: str | None) -> list[float] | None:
    try:
        return [float(part) for part in given.split(",")] if given else None
    except ValueError as error:
        raise click.BadParameter("write numbers with commas between them, such as 1,0.5,0.5.") from error


def _base(_context: click.Context, _option: click.Parameter, given: str | None) -> str | None:
    if given is not None and names_nothing(given):
        raise click.BadParameter(f"{given!r} names no base model; write owner/name.")
    return given


members_argument = click.argument("pool", nargs=-1, required=True, metavar="POOL|DIR…")


def weights_option(default: str) -> Callable[[Command], Command]:
    """The option --weights, with what is taken where it is not given."""
    text = f"One a member, in the order of the pool.  [default: {default}]"
    return click.option("--weights", metavar="W,…", callback=_numbers, help=text)


without_option = click.option(
    "--without",
    metavar="LAYER,…",
    callback=split_names,
    help="Leave out what members hold of these layers, such as lm_head, whole weights and factors alike.",
)
merge_base_option = click.option(
    "--base",
    metavar="ID",
    callback=_base,
    help="The base model that the members share, where they do not say, or say different ones.",
)
device_option = click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")


@click.command()
@members_argument
@click.option("--method", metavar="M", required=True, help="A row of `loradex methods`.")
@click.option(
    "-p", "parameters", metavar="KEY=VALUE", multiple=True, callback=_parameters, help="Of the method."
)
@click.option("--rank", metavar="R", type=click.IntRange(min=1), help="The largest rank of the result.")
@weights_option("1/N or 1 each, as `methods` says")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Of the result.  [default: the members']",
)
@device_option
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of methods that draw, and of --control."
)
@without_option
@merge_base_option
@click.option(
    "--control",
    metavar="KIND",
    help="Merge stand-ins of the members: random-pooled, random-each, random-directions, shuffled-layers "
    "or permuted-ranks.",
)
@click.option(
    "-o",
    "--out",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder to write; only --dry-run needs none.",
)
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
@click.option(
    "--apply-to",
    metavar="BASE",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Add the merge to the base model in this folder, and write the full model.",
)
@click.option("--dry-run", is_flag=True, help="Say what it would cost, and write nothing.")
@output_options(lists=False)
@pass_app
def merge(
    app: App,
    /,
    pool: tuple[str, ...],
    out: Path | None,
    overwrite: bool,
    apply_to: Path | None,
    dry_run: bool,
    without: tuple[str, ...],
    control: str | None,
    **given: Any,
) -> None:
    """Merge a POOL, or adapters in folders, into one adapter that plain PEFT loads.

    Beside its weights the folder holds merge.json (members, digests, method, parameters, energy kept) and a
    model card. The same call writes the same bytes.
    """
    from merging.static import carry_out, plan, price, refuse_unfoldable, stand_ins

    if out is None and not dry_run:
        raise UsageError("Name the folder to write the merge to, by -o DIR.")
    purpose = "merged or added to a base" if apply_to else "merged"
    table = base_table(app)
    members, manifest = members_of(app, pool, without, purpose, table)
    unused = _unused(without, members)
    if control and out is not None and not dry_run:
        place = out.with_name(f"{out.name}-members")
        members = list(stand_ins(members, control, place, given["seed"], base=given["base"], table=table))
    planned = plan(members, table=table, **given)
    for note in (*planned.notes, *_strange(table, given["base"], members), *unused):
        app.output.say(note)
    if apply_to:
        refuse_unfoldable(apply_to, planned.members)
    if out is None or dry_run:
        app.output.document(asdict(price(planned)), _render_price)
        return
    source = {"name": manifest.name, "digest": manifest.digest} if manifest else None
    made = out.with_name(f"{out.name}-adapter") if apply_to else out
    with app.output.progress("merging") as bar:
        report = carry_out(planned, made, overwrite=overwrite, pool=source, progress=bar.working)
    ranks = {module.rank for module in report.modules.values()}
    found = {"folder": str(made), "kept": report.energy_share, "misread": misreadings(ranks), **report.record}
    if apply_to:
        found["model"] = str(_fold(app, apply_to, made, out, given["device"], overwrite))
    app.output.document(found, _render_merge)


def _strange(table: BaseTable, base: str | None, members: Sequence[MergeMember]) -> list[str]:
    """A sentence on a base that was given and is known neither here nor to a member, or a folder of none."""
    named = {member.config.base_model for member in members}
    if base is None or base in named or table.known(base):
        return []
    if Path(base).is_dir():
        is_model = (Path(base) / "config.json").is_file()
        return [] if is_model else [f"{base} holds no config.json, so that its modules are not known."]
    return [f"No base model is known as {base}; {table.nearest(base)}."]


def _unused(without: Sequence[str], members: Sequence[MergeMember]) -> list[str]:
    """A sentence on each layer that was to be left out and of which no member holds anything."""
    left_out = [f".{tensor}." for member in members for tensor in member.left_out]
    unused = [layer for layer in without if not any(f".{layer}." in tensor for tensor in left_out)]
    return [f"No member holds anything of {layer}, which --without names." for layer in unused]


def _fold(app: App, base: Path, adapter: Path, out: Path, device: str, overwrite: bool) -> Path:
    from merging.static import apply_to

    with app.output.progress("adding to the base") as bar:
        return apply_to(base, adapter, out, device=device, overwrite=overwrite, progress=bar.working).folder


def members_of(
    app: App,
    given: Sequence[str],
    without: Sequence[str] = (),
    purpose: str = "merged",
    table: BaseTable | None = None,
) -> tuple[list[MergeMember], Manifest | None]:
    """The members in the folders given, or of the one pool given, whose files are brought here first.

    `purpose` is what they are loaded for, in the words of a refusal. Those of a pool have its base model by
    the canonical name that `table` has for it.
    """
    from merging.members import load_member

    if all(is_adapter_folder(Path(name)) for name in given):
        return [load_member(Path(name), without=without, purpose=purpose) for name in given], None
    if len(given) > 1:
        wrong = next(name for name in given if not is_adapter_folder(Path(name)))
        raise UsageError(f"{wrong} is no folder of an adapter; name one pool, or folders of adapters.")
    manifest = found_pool(app, given[0])
    folder = _exported(app, manifest, Path(given[0]))
    members = [
        load_member(
            folder / member_folder(member),
            name=member.adapter,
            digest=next((f.sha256 for f in member.files if f.name.endswith(".safetensors")), None),
            licence=member.license,
            source={"repository": member.repository, "commit": member.commit, "subfolder": member.subfolder},
            without=without,
            purpose=purpose,
            base=manifest.canonical_base(table),
        )
        for member in manifest.members
    ]
    return members, manifest


def _exported(app: App, manifest: Manifest, pool: Path) -> Path:
    """The folder of a pool's files: its export where one was named, else one made below the data folder.

    The files of an export are compared with their digests, once after each change of one.
    """
    folder = pool if pool.is_dir() else pool.parent
    place = in_export(manifest, folder) if pool.exists() else None
    if place is not None:
        verified = Verified(app.settings.blobs / "verified")
        with app.output.progress("verifying the members") as bar:
            problems = verify_files(manifest, place, bar.working, read_record(folder), verified)
        if problems:
            raise PoolError(f"{problems[0].detail} Export the pool again.")
        return folder
    with fetching(app, manifest) as fetch, app.output.progress("bringing the members") as bar:
        return export(manifest, folder_for_files(app.settings.pools), "peft", fetch, bar.working)


@click.command("inspect-merge")
@members_argument
@click.option(
    "--result",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The merge of them: how much of it is whose.",
)
@weights_option("1/N each")
@without_option
@merge_base_option
@device_option
@click.option(
    "--plot",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw cosines and energy by rank.",
)
@output_options(lists=False)
@pass_app
def inspect_merge(
    app: App,
    /,
    pool: tuple[str, ...],
    result: Path | None,
    plot: Path | None,
    without: tuple[str, ...],
    **given: Any,
) -> None:
    """How alike the members of a POOL are, how much they interfere, and the energy that each rank keeps."""
    from merging.members import base_note, base_of
    from merging.static import inspection as inspect

    table = base_table(app)
    members, _ = members_of(app, pool, without, table=table)
    with app.output.progress("reading") as bar:
        found = inspect.inspect(members, result=result, table=table, progress=bar.working, **given)
    note = base_note(members, base_of(members, given["base"], table), table)
    for sentence in filter(
        None, (note, *_strange(table, given["base"], members), *_unused(without, members))
    ):
        app.output.say(sentence)
    if plot:
        inspect.plot(found, plot)
        app.output.say(f"drawn into {plot}")
    ranks = {f"rank_for_{share}": found.rank_for(share / 100) for share in (50, 90, 99)}
    app.output.document({**asdict(found), **ranks}, partial(_render_inspection, found.names))


def _render_price(found: dict[str, Any]) -> str:
    return labelled(
        [
            ("members", f"{found['members']} with {found['modules']:,} modules"),
            ("result", f"rank {found['rank']} · {found['parameters']:,} parameters"),
            ("size", f"{found['size'] / 1e6:,.1f} MB"),
            ("reads", f"{found['read'] / 1e6:,.1f} MB"),
            ("memory", f"about {found['memory'] / 1e6:,.0f} MB beside the program"),
            ("time", f"about {found['seconds']:,.1f} s on this device"),
        ]
    )


def _render_merge(found: dict[str, Any]) -> str:
    return labelled(
        [
            ("merge", found["folder"]),
            ("method", found["method"]),
            ("members", f"{len(found['members'])}"),
            ("energy kept", "" if found["kept"] is None else f"{found['kept']:.4f}"),
            ("left out", _left_out(found["members"])),
            ("misread", " ".join(found["misread"])),
            ("model", found.get("model", "")),
        ]
    )


def _left_out(members: Sequence[dict[str, Any]]) -> str:
    lacking = [member for member in members if member.get("left_out")]
    tensors = [name for member in lacking for name in member["left_out"]]
    if not tensors:
        return ""
    more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
    return f"{tensors[0]}{more}, in {len(lacking)} of {len(members)} members"


def _render_inspection(names: Sequence[str], found: dict[str, Any]) -> str:
    """Members with their norms and shares, the table of cosines, and what the sum is like."""
    rows = [
        {"number": n + 1, "member": name, "norm": found["norms"][n], "cosines": found["cosines"][n]}
        | ({"share": found["shares"][n]} if found["shares"] else {})
        for n, name in enumerate(names)
    ]
    columns = [
        Column("number", "", True),
        Column("member"),
        Column("norm", right=True, show=lambda norm: f"{norm:.3g}"),
        *([Column("share", right=True, show=lambda share: f"{share:.3f}")] if found["shares"] else []),
        Column("cosines", show=lambda row: " ".join(f"{value:+.2f}" for value in row)),
    ]
    facts = [
        ("interference", f"{found['interference']:.3f} (unrelated 1, equal {len(names)})"),
        ("rank that keeps", " · ".join(f"{share} %: {found[f'rank_for_{share}']}" for share in (50, 90, 99))),
    ]
    return "\n".join([*table(rows, columns), "", labelled(facts)])
