"""Results on stdout, talk on stderr, and nothing in the data that could steer a terminal."""

from __future__ import annotations

import csv
import enum
import io
import json
import math
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from catalog.settings import Settings
from cli.app import App, pass_app
from cli.output import (
    NO_BREAK,
    Column,
    Format,
    Output,
    delimited_text,
    fold,
    jsonable,
    label_lines,
    name_options,
    output_options,
    table,
)
from loradex.progress import ProgressStep
from loradex.rows import cell_text
from tests.cli.conftest import Program

HOSTILE = "\x1b[31mred\x1b[0m\r\n[bold]x[/bold] \x9b2J \u202eevil\u2066 :smile: \ud800"
NOON = datetime(2026, 9, 1, 14, 30, tzinfo=timezone(timedelta(hours=2)))


class Colour(enum.Enum):
    RED = "red"


@dataclass(frozen=True)
class Pair:
    name: str
    rank: Any


def test_a_table_of_hostile_rows_is_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    Output().rows([{"name": HOSTILE, "rank": 8}], ["name", Column("rank", "r", right=True)])
    output = capsys.readouterr().out
    assert all(character == "\n" or character.isprintable() for character in output)
    assert "\\x1b[31mred" in output
    assert "[bold]x[/bold]" in output
    assert ":smile:" in output


WIDE = [{"name": f"owner/{'long-name-' * 20}", "about": "words " * 40, "rank": 8} for _ in range(3)]


@pytest.mark.usefixtures("eighty_columns")
def test_on_a_terminal_a_table_is_as_wide_as_it(capsys: pytest.CaptureFixture[str]) -> None:
    Output().rows(WIDE, ["name", "about", Column("rank", right=True)])
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= 80
    assert set("".join(lines)) <= set("abcdefghijklmnopqrstuvwxyz/- 8")
    joined = "".join("".join(line.split()) for line in lines)
    assert joined.count("words") + joined.count("word") > 0


def test_without_a_terminal_each_row_is_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    Output().rows(WIDE, ["name", "about", Column("rank", right=True)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(WIDE)
    assert len({line.index(text) for line, text in zip(lines, ["about", *3 * ["words"]], strict=True)}) == 1
    assert [line.split("  ")[0] for line in lines[1:]] == [row["name"] for row in WIDE]
    Output().document({}, lambda _: label_lines([("about", "words " * 400)]))
    assert capsys.readouterr().out.count("\n") == 1


CELLS = st.text(st.characters(codec="utf-8"), max_size=40) | st.text("ab-/ 日", max_size=90)


@given(st.integers(1, 200), st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=4), st.integers(1, 3))
def test_a_terminal_of_any_width_gets_its_table(
    columns: int, rows: list[tuple[str, str, str]], count: int
) -> None:
    names = ["first", "second", "third"][:count]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cli.output.WIDTH_WITHOUT_TERMINAL", columns)
        lines = table([dict(zip(names, row, strict=False)) for row in rows], names)
        output = label_lines(zip(names, rows[0], strict=False)) if rows else ""
        folded = fold("".join(rows[0]) if rows else "", columns - 2)
    room = max(columns, 2 * count + 2 * (count - 1))
    assert all(cell_len(line) <= room for line in lines)
    assert bool(lines) == bool(rows)
    assert "".join("".join(folded).split()) == "".join("".join("".join(row) for row in rows[:1]).split())
    assert output.count("\n") < 600


SHEET = [
    {
        "name": '=HYPERLINK("http://x",A1)',
        "rank": -8,
        "size": -0.5,
        "tags": ["-x", "é"],
        "none": None,
        "on": True,
    },
    {"name": 'a,"b"\nc\td\x1b\x00', "rank": None, "more": {"b": math.nan, "a": NOON}},
]


@pytest.mark.parametrize(
    ("chosen", "dialect", "end"), [(Format.CSV, "excel", "\r\n"), (Format.TSV, "excel-tab", "\n")]
)
def test_case_77_what_a_spreadsheet_reads_is_a_table_of_values_and_no_formula(
    chosen: Format, dialect: str, end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Output(chosen).rows(
        iter(SHEET), [Column("rank", "r", right=True), Column("name", show=str.upper), "absent"]
    )
    written = capsys.readouterr().out
    rows = list(csv.reader(io.StringIO(written, newline=""), dialect))
    assert rows == [
        ["rank", "name", "more", "none", "on", "size", "tags"],
        ["-8", '\'=HYPERLINK("http://x",A1)', "", "", "true", "-0.5", '["-x", "é"]'],
        ["", 'a,"b"\nc\td\x1b\x00', '{"a": "2026-09-01T12:30:00Z", "b": null}', "", "", "", ""],
    ]
    assert written.count(end) == 3 + (end == "\n")


@pytest.mark.parametrize("sign", "=+-@\t\r\n＝＋－＠")
def test_case_77_every_way_to_begin_a_formula_is_a_text(sign: str) -> None:
    assert list(csv.reader(io.StringIO(delimited_text([{"a": f"{sign}1"}], (), Format.CSV), newline=""))) == [
        ["a"],
        [f"'{sign}1"],
    ]


def test_a_list_without_rows_has_its_names(capsys: pytest.CaptureFixture[str]) -> None:
    Output(Format.CSV).rows([], ["name", Column("rank")])
    Output(Format.TSV).document({"b": 1, "a": "x"}, str)
    message = capsys.readouterr()
    assert (message.out, message.err) == ("name,rank\r\na\tb\nx\t1\n", "")


PLAIN_TEXTS = st.text(st.characters(codec="utf-8")).map(lambda text: f"x{text}") | st.just("")
VALUES = st.none() | st.booleans() | st.integers() | PLAIN_TEXTS


@given(st.lists(st.dictionaries(st.sampled_from("abc"), VALUES, min_size=1), min_size=1))
def test_csv_gives_back_what_json_has(rows: list[dict[str, Any]]) -> None:
    written = io.StringIO(delimited_text(rows, ["b"], Format.CSV), newline="")
    for given_, result in zip(rows, csv.DictReader(written), strict=True):
        for name, text in result.items():
            value = given_.get(name)
            assert text == ("" if value is None else value if isinstance(value, str) else json.dumps(value))


def test_nothing_of_a_name_is_cut_off(capsys: pytest.CaptureFixture[str]) -> None:
    name = "owner/" + "".join(f"{number:03d}" for number in range(60))
    Output().rows([{"name": name}], ["name"])
    assert "".join(capsys.readouterr().out.split()) == "name" + name


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Pair("b", 2), {"rank": 1, "name": "a"}]
    Output(Format.JSON).rows(iter(rows), ["name"])
    assert json.loads(capsys.readouterr().out) == [{"name": "b", "rank": 2}, {"name": "a", "rank": 1}]
    Output(Format.JSONL).rows(iter(rows), ["name"])
    assert capsys.readouterr().out == '{"name": "b", "rank": 2}\n{"name": "a", "rank": 1}\n'
    Output().rows(iter(rows), ["name"])
    assert capsys.readouterr().out.split() == ["name", "b", "a"]


def test_documents(capsys: pytest.CaptureFixture[str]) -> None:
    Output(Format.JSON).document({"b": 1, "a": HOSTILE}, str)
    output = capsys.readouterr().out
    assert json.loads(output) == {"a": HOSTILE, "b": 1}
    assert output.index('"a"') < output.index('"b"')
    assert output.isascii()
    Output().document({"a": HOSTILE}, lambda result: f"first\n{result['a']}")
    output = capsys.readouterr().out
    assert output.startswith("first\n\\x1b[31mred")
    assert "\x1b" not in output
    Output().document({}, lambda result: "empty")
    assert capsys.readouterr().out == "empty\n"


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (NOON, "2026-09-01T12:30:00Z"),
        ([math.nan, math.inf, 1.5], [None, None, 1.5]),
        (Colour.RED, "red"),
        (Path("a/b"), "a/b"),
        ({3, 1}, [1, 3]),
        ((1, True, None), [1, True, None]),
        ({1: Pair("a", 8)}, {"1": {"name": "a", "rank": 8}}),
        (Pair("a", [Pair("b", {Colour.RED})]), {"name": "a", "rank": [{"name": "b", "rank": ["red"]}]}),
    ],
)
def test_jsonable(value: Any, stored: Any) -> None:
    assert jsonable(value) == stored


def test_what_is_no_result_is_a_bug() -> None:
    with pytest.raises(TypeError, match="object is not a result"):
        jsonable(object())


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, ""),
        (True, "yes"),
        (False, "no"),
        (8, "8"),
        (0.123456, "0.1235"),
        (NOON, "2026-09-01"),
        (["q_proj", "v_proj"], "q_proj, v_proj"),
        ({"b", "a"}, "a, b"),
        (Colour.RED, "red"),
    ],
)
def test_cell(value: Any, shown: str) -> None:
    assert cell_text(value) == shown


@pytest.mark.parametrize(
    ("lists", "flags", "chosen"),
    [
        (True, [], Format.TABLE),
        (True, ["--json"], Format.JSON),
        (True, ["--jsonl"], Format.JSONL),
        (True, ["--csv"], Format.CSV),
        (True, ["--tsv"], Format.TSV),
        (True, ["--csv", "--tsv"], None),
        (False, ["--csv"], None),
        (False, ["--json"], Format.JSON),
        (False, ["--jsonl"], None),
    ],
)
def test_the_options_choose_the_format(lists: bool, flags: list[str], chosen: Format | None) -> None:
    requests: list[Output] = []

    @click.command()
    @output_options(lists=lists)
    @pass_app
    def command(app: App) -> None:
        requests.append(app.output)

    app = App(Settings("sqlite:///x", Path("x")), quiet=True, verbose=0, output=Output(quiet=True))
    result = CliRunner().invoke(command, flags, obj=app)
    assert result.exit_code == (0 if chosen else 2)
    assert [output.format for output in requests] == ([chosen] if chosen else [])
    assert all(output.quiet for output in requests)
    assert app.output.format is Format.TABLE


@pytest.mark.parametrize("quiet", [False, True])
def test_without_a_terminal_only_the_notes_of_progress_are_said(
    quiet: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with Output(quiet=quiet).show_progress() as progress:
        step = ProgressStep(progress, "crawling")
        step.report_listing(5)
        step.working(1, 5)
        step.note("a note\x1b")
    message = capsys.readouterr()
    assert (message.out, message.err) == ("", "" if quiet else "a note\\x1b\n")


@pytest.mark.parametrize(
    ("text", "room", "lines"),
    [
        ("", 5, [""]),
        ("one two", 7, ["one two"]),
        ("one two three", 7, ["one two", "three"]),
        ("owner/name-of-it", 10, ["owner/", "name-of-it"]),
        ("ab/cdefghij", 8, ["ab/cdefg", "hij"]),
        ("abcdefghij xy", 4, ["abcd", "efgh", "ij", "xy"]),
        ("日本語日本語", 5, ["日本", "語日", "本語"]),
        ("日", 1, ["日"]),
        (f"name{NO_BREAK}1 name{NO_BREAK}2", 11, ["name 1", "name 2"]),
    ],
)
def test_fold(text: str, room: int, lines: list[str]) -> None:
    assert fold(text, room) == lines


@given(
    st.text(st.characters(exclude_categories=["C", "Z", "M"])).map(" ".join) | st.text("ab-/ ", max_size=60)
)
def test_folding_loses_nothing_but_spaces(text: str) -> None:
    lines = fold(text, 12)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(cell_len(line) <= 12 for line in lines)


@pytest.mark.usefixtures("eighty_columns")
def test_words_give_way_before_names(capsys: pytest.CaptureFixture[str]) -> None:
    name = "some-owner/some-adapter-of-a-long-name"
    rows = [{"name": name, "reasons": "no_safetensors, license_missing, norm_out_of_range", "rank": 8}]
    Output().rows(rows, ["name", Column("rank", right=True), "reasons"])
    assert capsys.readouterr().out.splitlines() == [
        "name                                    rank  reasons",
        f"{name}     8  no_safetensors, license_missing,",
        "                                              norm_out_of_range",
    ]


def test_an_empty_table_is_a_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    Output().rows([], ["name"])
    message = capsys.readouterr()
    assert (message.out, message.err) == ("", "nothing to list\n")


@pytest.mark.usefixtures("eighty_columns")
def test_labels_are_aligned_and_values_wrapped() -> None:
    value = " ".join(["word"] * 20)
    output = label_lines([("a", value), ("", "next"), ("empty", " "), ("long", "x\x1b")], indent="  ")
    assert output.splitlines() == [
        "  a     " + " ".join(["word"] * 14),
        "        " + " ".join(["word"] * 6),
        "        next",
        "  long  x\\x1b",
    ]


@pytest.mark.parametrize("pair", [("--csv", "--tsv"), ("--json", "--csv"), ("--jsonl", "--json")])
def test_two_formats_of_one_output_are_refused(pair: tuple[str, str], run: Program) -> None:
    refused = run("methods", *pair)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert all(flag in refused.stderr for flag in pair)
    assert run("methods", pair[0], pair[0]).exit_code == 0


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Use `rank`.", "Use --rank."),
        ("`rank=16` and `flag=True`", "--rank 16 and --flag"),
        ('`too_long="skip"`', "--too-long skip"),
        ("`learning_rates` and `lr`", "--lr and --lr"),
        ("`tasks` and `folder`", "--tasks and --tasks"),
        ('`crawl(weights="keep")`', "`loradex crawl --weights keep`"),
        ("`upgrade()`, `pools()`", "`loradex db upgrade`, `loradex pools`"),
        ("`run_study(FILE, out)`", "`loradex study run FILE out`"),
        ("`absent`, `loradex methods` and `adapter_config.json`",) * 2,
    ],
)
def test_parameters_in_texts_of_the_library_are_options(text: str, shown: str) -> None:
    @click.command()
    @click.option("--rank")
    @click.option("--too-long")
    @click.option("--flag", is_flag=True)
    @click.option("--lr", "learning_rates")
    @click.option("--task", "tasks")
    @click.option("--tasks", "folder")
    def command(**_values: object) -> None:
        click.echo(name_options(text))

    assert CliRunner().invoke(command, []).stdout == f"{shown}\n"
    # Where no command runs, in a thread, calls alone are known.
    assert name_options(text) == (shown if "loradex " in shown else text)
