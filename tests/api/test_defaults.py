"""What a command can do, a call can do: the same parameters with the same defaults, option by option."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import click
import pytest

import loradex
from cli.main import loradex as program

# Options of the terminal alone, and parameters of Python alone.
OF_PROGRAM = {"json", "jsonl", "csv", "tsv", "catalog", "data", "engines", "quiet", "verbose"}
OF_PYTHON = {"self", "progress", "catalog"}
# What an option is in Python where it is not a keyword of the call.
ELSEWHERE = {
    "crawl": {
        "dry_run": loradex.Catalog.preview,
        "role": loradex.Catalog.work_for_crawl,
        "ray": loradex.Catalog.work_for_crawl,
        "address": loradex.Catalog.work_for_crawl,
    },
    "show": {"plot": loradex.Catalog.draw_adapter, "card": loradex.Catalog.card},
    "adapters": {"columns": loradex.Catalog.iterate_table, "parquet": loradex.Catalog.export_table},
    "engines": {"counts": loradex.count_engines, "where": loradex.Catalog.count_engines},
    "merge": {"dry_run": loradex.MergeRequest.cost},
    "scores show": {"items": loradex.Catalog.score_items},
    "inspect-merge": {"plot": "Inspection.plot"},
    "train": {"tasks": loradex.load_task},
    "adapt": {"tasks": loradex.load_task},
    "study run": {"dry_run": loradex.StudyRequest.plan, "doctor": loradex.StudyRequest.plan},
    "fingerprint": {"processes": loradex.Catalog.remeasure},
    "pool export": {"pool": loradex.Catalog.pool},
    "pool verify": {"pool": loradex.Catalog.pool},
}
# An option that is off by default and a keyword that is on: Python exports what can be used at once.
DIFFERENT: dict[tuple[str, str], object] = {
    ("pool export", "weights"): True,
    ("select", "k"): 10,  # "10" or "all" on the command line
    ("search", "weights"): (1.0, 1.0),  # "1,1"
}
NAMES = {"map": {"file": "path"}, "study report": {"folder": "out"}, "fingerprint": {"folders": "folder"}}
CALLS: dict[str, Callable[..., Any]] = {
    "crawl": loradex.Catalog.crawl,
    "status": loradex.Catalog.status,
    "adapters": loradex.Catalog.adapters,
    "fields": loradex.Catalog.fields,
    "changes": loradex.Catalog.changes,
    "identify": loradex.Catalog.identify,
    "show": loradex.Catalog.details,
    "tag": loradex.Catalog.tag,
    "note": loradex.Catalog.note,
    "hide": loradex.Catalog.hide,
    "annotations list": loradex.Catalog.annotations,
    "annotations export": loradex.Catalog.export_annotations,
    "annotations import": loradex.Catalog.import_annotations,
    "search": loradex.Catalog.search,
    "similar": loradex.Catalog.similar,
    "duplicates": loradex.Catalog.duplicates,
    "map": loradex.Catalog.map,
    "page export": loradex.export_page,
    "snapshot export": loradex.Catalog.export_snapshot,
    "snapshot import": loradex.Catalog.import_snapshot,
    "snapshot push": loradex.push_snapshot,
    "snapshot verify": loradex.verify_snapshot,
    "scores import": loradex.Catalog.import_scores,
    "scores compare": loradex.Catalog.compare_scores,
    "scores export": loradex.Catalog.export_scores,
    "scores leaderboard": loradex.Catalog.leaderboard,
    "scores show": loradex.Catalog.scores,
    "select": loradex.Catalog.select,
    "pools": loradex.Catalog.pools,
    "pool export": loradex.Pool.export,
    "pool import": loradex.Catalog.import_pool,
    "pool show": loradex.Catalog.pool,
    "pool verify": loradex.Pool.verify,
    "methods": loradex.methods,
    "merge": loradex.merge,
    "inspect-merge": loradex.inspect,
    "train": loradex.train,
    "adaptive": loradex.adaptive_methods,
    "adapt": loradex.adapt,
    "evaluate": loradex.evaluate,
    "doctor": loradex.doctor,
    "study list": loradex.built_in_studies,
    "study report": loradex.report_study,
    "study run": loradex.run_study,
    "task import": loradex.import_task,
    "task import-paper": loradex.import_paper_tasks,
    "task list": loradex.list_tasks,
    "engines": loradex.runs_in,
    "fingerprint": loradex.fingerprint,
    "normalise": loradex.normalise,
    "base add": loradex.Catalog.add_base_name,
    "base keep": loradex.Catalog.keep_base,
    "base list": loradex.Catalog.base_names,
    "blobs gc": loradex.Catalog.collect_garbage,
    "blobs repair": loradex.Catalog.repair_weights,
    "blobs verify": loradex.Catalog.verify_weights,
    "hub serve": loradex.serve_hub,
    "index check": loradex.Catalog.check_indexes,
    "index rebuild": loradex.Catalog.rebuild_indexes,
    "db check": loradex.Catalog.check,
    "db info": loradex.Catalog.info,
    "db upgrade": loradex.Catalog.upgrade,
}


def commands(group: click.Group, path: str = "") -> dict[str, click.Command]:
    rows: dict[str, click.Command] = {}
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        if isinstance(command, click.Group):
            rows |= commands(command, f"{path}{name} ")
        elif command is not None:
            rows[f"{path}{name}"] = command
    return rows


COMMANDS = commands(program)


def test_every_command_has_a_call() -> None:
    assert set(COMMANDS) - set(CALLS) == {"demo"}


@pytest.mark.parametrize("name", CALLS)
def test_an_option_is_a_keyword_with_the_same_default(name: str) -> None:
    command, call = COMMANDS[name], CALLS[name]
    # click keeps the option --help as the first context has it, so this one is like the program's.
    settings = {"help_option_names": ["-h", "--help"]}
    defaults = command.make_context(name, [], resilient_parsing=True, **settings).params
    keywords = {key: row for key, row in inspect.signature(call).parameters.items() if key not in OF_PYTHON}
    options = {row.name: row for row in command.params if row.name not in OF_PROGRAM and not _hidden(row)}
    elsewhere = ELSEWHERE.get(name, {})
    differences = {}
    for key, option in options.items():
        if key in elsewhere:
            continue
        keyword = keywords.pop(NAMES.get(name, {}).get(key, key), None)
        if keyword is None:
            differences[key] = "no keyword"
        elif option.required or keyword.default is inspect.Parameter.empty:
            continue
        else:
            default = DIFFERENT.get((name, key), defaults[key])
            if (default or None) != (keyword.default or None):
                differences[key] = f"{default!r} and {keyword.default!r}"
    differences |= dict.fromkeys(keywords, "no option")
    assert differences == {}


def _hidden(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Option) and parameter.hidden
