"""Options that several commands share, and help in which options stand in groups."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast

import click

from catalog.index import DEFAULT_MODEL
from catalog.rules import RULE_SETS

if TYPE_CHECKING:
    from loradex.models import TooLong

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
Options = TypeVar("Options", bound=Mapping[str, Any])
FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
EXISTING_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
COUNT = click.IntRange(min=1)
# Titles of groups of options that several commands have.
LEARNING = "Learning"
MODEL = "Model"
RESULT = "Result"
SCORING = "Scoring"


class GroupedOption(click.Option):
    """An option that stands under the title `group` in the help of its command."""

    def __init__(self, *args: Any, group: str = "", **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.group = group


class Command(click.Command):
    """A command whose help lists the options by group: those without one first, under Options.

    `titles` are other titles of groups by their names.
    """

    def __init__(self, *args: Any, titles: Mapping[str, str] | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.titles = titles or {}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes a section for each group, in the order of the first option of each."""
        sections: dict[str, list[tuple[str, str]]] = {"": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                group = parameter.group if isinstance(parameter, GroupedOption) else ""
                sections.setdefault(self.titles.get(group, group), []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title or "Options"):
                    formatter.write_dl(records)


def option(*names: str, group: str = "", **settings: Any) -> Callable[[Decorated], Decorated]:
    """The decorator of an option that stands under the title `group` in the help."""
    return click.option(*names, cls=GroupedOption, group=group, **settings)


def combine(*options: Callable[[Any], Any]) -> Callable[[Decorated], Decorated]:
    """The decorator of several options, in their order in the help."""
    return lambda command: reduce(lambda decorated, decorate: decorate(decorated), options[::-1], command)


def explicit_options(options: Options) -> Options:
    """The options of the current command that somebody wrote, if there is a preset; else all of them."""
    context = click.get_current_context()
    if not context.params["preset"]:
        return options
    default = click.core.ParameterSource.DEFAULT
    written = {key: options[key] for key in options if context.get_parameter_source(key) != default}
    return cast("Options", written)


def split_names(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[str, ...]:
    """The names in a list with commas between them."""
    return tuple(filter(None, (part.strip() for part in (value or "").split(","))))


def split_numbers(
    noun: str, example: str
) -> Callable[[click.Context, click.Parameter, str | None], list[float] | None]:
    """The callback that reads a list of numbers with commas between them."""

    def split(_context: click.Context, _option: click.Parameter, value: str | None) -> list[float] | None:
        try:
            return [float(part) for part in value.split(",")] if value else None
        except ValueError as error:
            raise click.BadParameter(f"write {noun} with commas between them, such as {example}.") from error

    return split


def base_name(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    """The name of a base model as it was written; what names nothing, such as None, is refused."""
    from catalog.adapters import names_nothing

    if value is not None and names_nothing(value):
        raise click.BadParameter(f"{value!r} names no base model; write owner/name.")
    return value


def _day(
    _context: click.Context, _option: click.Parameter, value: datetime.datetime | None
) -> datetime.date | None:
    return None if value is None else value.date()


base_option = option(
    "--base", metavar="ID|DIR", required=True, help="A base model: kept, a folder, or on the Hub."
)
tasks_option = option("--tasks", metavar="DIR", type=FOLDER, help="Where tasks are.")
task_option = option("--task", metavar="T", required=True, help="A task's folder, or its name in --tasks.")
samples_option = option(
    "--samples",
    metavar="N",
    type=click.IntRange(min=3),
    default=100,
    help="Examples, a fifth to choose by.",
)
control_option = option(
    "--control",
    metavar="KIND",
    help="Stand-ins: random-pooled, random-each, random-directions, shuffled-layers or permuted-ranks.",
)
overwrite_option = option("--overwrite", group=RESULT, is_flag=True, help="Replace what is there.")
rank_option = option("--rank", group=RESULT, metavar="R", type=COUNT, help="The largest rank of the result.")
mixed_ranks_option = option(
    "--mixed-ranks",
    group=RESULT,
    is_flag=True,
    help="Write the rank that each module needs, not the one rank that all engines read.",
)
device_option = option("--device", group=MODEL, metavar="D", default="cpu", help="cpu, cuda or cuda:N.")
base_device_option = option(
    "--device", group=MODEL, metavar="D", default="cpu", help="cpu, cuda, cuda:N or auto."
)
DTYPES = ("bfloat16", "float16", "float32", "8bit", "4bit")
_dtype: dict[str, Any] = {
    "group": MODEL,
    "metavar": "TYPE",
    "type": click.Choice(DTYPES),
    "help": "Of the base: float32, bfloat16, 4bit, …",
}
dtype_option = option("--dtype", **_dtype)
base_dtype_option = option("--base-dtype", **_dtype)
checkpointing_option = option(
    "--checkpointing",
    "gradient_checkpointing",
    group=MODEL,
    is_flag=True,
    help="Of gradients: less memory, more time.",
)
too_long_option = option(
    "--too-long",
    group=MODEL,
    metavar="error|skip",
    type=click.Choice(["error", "skip"]),
    default="error",
    help="Examples too long for the model.",
)
protocol_option = option(
    "--protocol",
    group=MODEL,
    metavar="P",
    default="",
    show_default=False,
    help="How tasks are asked, such as recycling-paper.",
)
preset_option = option(
    "--preset",
    group=MODEL,
    metavar="P",
    default="",
    show_default=False,
    help="Take defaults from a paper: recycling-paper.",
)
date_option = option(
    "--date",
    group=MODEL,
    metavar="DAY",
    type=click.DateTime(["%Y-%m-%d"]),
    callback=_day,
    help="That prompts name.  [default: 2024-07-26]",
)


class AskingOptions(TypedDict):
    """The options of `asking_options`."""

    too_long: TooLong
    protocol: str
    preset: str
    date: datetime.date | None
    device: str


asking_options = combine(too_long_option, protocol_option, preset_option, date_option, base_device_option)
rules_option = option(
    "--rules",
    metavar="RULES",
    type=click.Choice(RULE_SETS),
    default="ours",
    help="ours, paper or licensed: what is skipped.",
)
verdict_option = option(
    "--verdict",
    type=click.Choice(["accepted", "any"]),
    default="accepted",
    help="any: also adapters that the rules refuse, marked as skipped.",
)
where_option = option(
    "--where",
    metavar="W",
    default="",
    show_default=False,
    help="A filter such as `rank:8..64 -owner:someone`.",
)
model_option = option(
    "--model",
    group=MODEL,
    metavar="ID|DIR",
    default=DEFAULT_MODEL,
    show_default=False,
    help="The text encoder.  [default: all-MiniLM-L6-v2]",
)
