"""What the documents say of the program, made from the program: `python -m tools.documents` writes it.

Each page of docs/ that `PAGES` names has places for it, between two comments; `tests/cli/test_readme.py`
compares. The reports of studies and what docs/results quotes of them are written by `tools.study_pages`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import click
from click.testing import CliRunner

from catalog.adapters import FEATURES, load_engines
from catalog.query import FIELDS
from catalog.rules import Reason
from catalog.selection import STRATEGIES
from cli.main import COMMANDS, loradex
from loradex import count_engines
from merging.methods import METHODS
from tools import coverage, study_pages

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
SAMPLE_HUB = ROOT / "data" / "sample_hub"
DOCS = ROOT / "docs"
CHOOSE = DOCS / "choose.md"
HELP = DOCS / "reference" / "commands.md"
REASONS = DOCS / "reference" / "reasons.md"
FILTERS = DOCS / "reference" / "filters.md"
MERGING = DOCS / "reference" / "merging.md"
ENGINES = DOCS / "reference" / "engines.md"
ARCHITECTURE = DOCS / "architecture.md"
STUDIES = DOCS / "reference" / "studies.md"


def paths(command: click.Command = loradex, name: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command by the words that call it, the program itself first."""
    yield name
    if isinstance(command, click.Group):
        context = click.Context(command)
        for word in command.list_commands(context):
            subcommand = command.get_command(context, word)
            assert subcommand is not None
            yield from paths(subcommand, (*name, word))


def help_sections() -> str:
    """The `--help` of every command under a heading of its own."""
    return "\n".join(_section(name) for name in paths()).rstrip()


def _section(name: tuple[str, ...]) -> str:
    result = CliRunner().invoke(loradex, [*name, "--help"], prog_name="loradex", terminal_width=100)
    return f"## {' '.join(('loradex', *name))}\n\n```\n{result.output.rstrip()}\n```\n"


def command_table() -> str:
    """A row a command that does something: its words, and its line of help."""
    rows = [
        f"| [`loradex {' '.join(name)}`](#loradex-{'-'.join(name)}) | {line} |"
        for name, line in _lines_of_help(loradex, ())
    ]
    return "\n".join(["| command | what it does |", "|---|---|", *rows])


def _lines_of_help(group: click.Group, name: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    context = click.Context(group)
    for word in group.list_commands(context):
        subcommand = group.get_command(context, word)
        if isinstance(subcommand, click.Group):
            yield from _lines_of_help(subcommand, (*name, word))
        elif subcommand is not None:
            yield (*name, word), COMMANDS[word].help if not name else subcommand.get_short_help_str(limit=200)


def reason_table() -> str:
    """A row a reason: its name, its sentence, and a mark under each set of rules that refuses for it."""
    rows = (
        " | ".join(
            [
                f"| `{reason.value}`",
                reason.sentence,
                *map(_mark, (reason.ours, reason.paper, reason.licensed)),
            ]
        )
        for reason in Reason
    )
    return "\n".join(
        [
            "| reason | in words | ours | paper | licensed |",
            "|---|---|:-:|:-:|:-:|",
            *(f"{row} |" for row in rows),
        ]
    )


def _mark(refuses: bool) -> str:
    return "✗" if refuses else ""


def field_table() -> str:
    """A row a field of the filter language: its name, its kind and what it is."""
    rows = [
        f"| {', '.join(f'`{name}`' for name in (field.name, *field.aliases))} "
        f"| {field.kind_in_words} | {field.help.replace('*', '·')} |"
        for field in FIELDS.values()
    ]
    return "\n".join(["| field | kind | what it is |", "|---|---|---|", *rows])


def method_table() -> str:
    """A row a merge method: what it does, its weight and parameters, whether it is exact, and its source."""
    rows = []
    for method in METHODS.values():
        parameters = "<br>".join(
            f"`{p.name}` = {p.default} ({p.range.replace('|', 'or')})" for p in method.parameters
        )
        exact = "needs activations" if method.data else "yes" if method.exact else "no"
        source = method.paper.removeprefix("https://").removeprefix("arxiv.org/abs/").partition("/")[0]
        cells = (
            f"`{method.name}`",
            method.summary,
            "1/N" if method.weight == "mean" else f"{method.weight:g}",
            parameters,
            exact,
            method.gauge,
            f"[{source}]({method.paper})",
        )
        rows.append(f"| {' | '.join(cells)} |")
    head = "| method | what it does | weight | parameters | exact | gauge | source |"
    return "\n".join([head, "|---|---|---|---|---|---|---|", *rows])


def strategy_table() -> str:
    """A row a strategy of selection: its name, and what it ranks by."""
    rows = [f"| `{name}` | {row.sentence} |" for name, row in STRATEGIES.items()]
    return "\n".join(["| strategy | ranks by |", "|---|---|", *rows])


def engine_table() -> str:
    """A row an engine: its version, its ranks, and where its rules were read."""
    rows = []
    for engine in load_engines():
        sizes = f"`{engine.rank_option}` above {engine.rank_default}" if engine.rank_option else ""
        limit = f"{engine.rank_limit}" if engine.rank_limit else ""
        rows.append(
            f"| {engine.title} (`{engine.name}`) | {engine.version} | {sizes} | {limit} | {engine.source} |"
        )
    return "\n".join(["| engine | version | ranks | limit | source |", "|---|---|---|---|---|", *rows])


def engine_counts(folder: Path) -> str:
    """A row an engine: how many of the adapters below a folder it runs, and why not the others."""
    lines = ["| engine | runs | not | unknown | because it |", "|---|---:|---:|---:|---|"]
    for row in count_engines(folder):
        reasons = "; ".join(f"{text} ({count})" for text, count in row.reasons.items())
        lines.append(f"| {row.engine} | {row.runs} | {row.runs_not} | {row.unknown} | {reasons} |")
    return "\n".join(lines)


def feature_table() -> str:
    """A row a feature of an adapter, and what each engine does that does not run it."""
    rows = []
    for name, sentence in FEATURES.items():
        rules = [(engine, rule) for engine in load_engines() for rule in engine.rules if rule.when == name]
        effects = "<br>".join(f"{engine.title} {rule.text}" for engine, rule in rules)
        rows.append(f"| `{name}` | {sentence} | {effects} |")
    return "\n".join(["| feature | what it is | engines |", "|---|---|---|", *rows])


def layer_drawing() -> str:
    """The levels of the rooms and of the packages in each, from top to bottom, by the import contracts."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lines = ["```"]
    for contract in project["tool"]["importlinter"]["contracts"]:
        if contract["type"] == "layers":
            lines += [contract.get("containers", ["rooms"])[0], *map(_level, contract["layers"]), ""]
    return "\n".join([*lines[:-1], "```"])


def _level(layer: str) -> str:
    return "    " + " · ".join(name.strip() for name in re.split(r"[|:]", layer))


PAGES: Mapping[Path, Mapping[str, Callable[[], str]]] = {
    HELP: {"commands": command_table, "help": help_sections},
    REASONS: {"reasons": reason_table},
    FILTERS: {"fields": field_table},
    MERGING: {"methods": method_table},
    CHOOSE: {"strategies": strategy_table},
    ENGINES: {
        "engines": engine_table,
        "counts": lambda: engine_counts(SAMPLE_HUB),
        "features": feature_table,
    },
    ARCHITECTURE: {"levels": layer_drawing},
    STUDIES: {"coverage": coverage.table},
}


def fill(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """The text of a page with its tables as the program has them; ValueError where one has no place in it."""
    for name, table in tables.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        rows = table()
        text, count = place.subn(lambda match, rows=rows: f"{match[1]}\n{rows}\n\n{match[2]}", text)  # type: ignore[misc]  # bound now
        if count != 1:
            raise ValueError(f"the page has {count} places for the table {name}")
    return text


def main() -> None:
    """Writes every page of `PAGES`, and the reports of studies."""
    for page, tables in PAGES.items():
        page.write_text(fill(page.read_text(encoding="utf-8"), tables), encoding="utf-8")
    study_pages.main()


if __name__ == "__main__":
    main()
