"""A long call says nothing by default, and to a function, or in bars or lines, how far it is."""

from __future__ import annotations

import io
import re
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from loradex.bars import ProgressBars
from loradex.events import ByteRate, ProgressEvent, ProgressLines, ProgressStep
from loradex.progress import reporting
from loradex.text import plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("owner/name", "owner/name"),
        ("日本 🤗 é", "日本 🤗 é"),
        ("a\tb\nc", "a\\x09b\\x0ac"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\x9b31m\x7f", "\\x9b31m\\x7f"),
        ("\u202egpj.exe\u2069", "\\u202egpj.exe\\u2069"),
        ("\u2028\ufeff", "\\u2028\\ufeff"),
        ("\ud800", "\\ud800"),
    ],
)
def test_plain(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_a_function_gets_every_event() -> None:
    events: list[ProgressEvent] = []
    with reporting(events.append) as report:
        step = ProgressStep(report, "merging")
        step.report_listing(3)
        step.working(1, 3)
        step.note("a note")
        step.watch_bytes(lambda: 7)
    assert [(event.step, event.done, event.total, event.note) for event in events] == [
        ("listing", 3, None, ""),
        ("merging", 1, 3, ""),
        ("merging", None, None, "a note"),
        ("merging", None, None, ""),
    ]
    assert events[3].received is not None
    assert events[3].received() == 7


@pytest.mark.parametrize(
    ("shell", "bars"), [(None, False), (object(), False), (SimpleNamespace(kernel=1), True)]
)
def test_bars_are_for_a_kernel_and_not_for_whoever_imported_one(
    shell: object, bars: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    with reporting(True) as report:
        assert isinstance(report, ProgressBars) is bars


def test_silent_by_default_and_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for progress in (False, True):
        with reporting(progress) as report:
            ProgressStep(report, "merging").note("a note\x1b")
            ProgressStep(report, "merging").working(1, 2)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "a note\\x1b\n")


def test_without_a_terminal_a_line_a_minute_says_how_far_it_is() -> None:
    now, received = 0.0, 0
    lines: list[str] = []
    step = ProgressStep(ProgressLines(lines.append, lambda: now), "reading")
    step.watch_bytes(lambda: received)
    step.report_listing(3)
    for now, done in ((30.0, 1), (61.0, 10), (100.0, 20), (125.0, 30)):
        received = round(now * 2e6)
        step.working(done, 330)
    now = 200.0
    step.report_listing(1200)
    assert lines == [
        "reading: 10 of 330, about 18 min left (122.0 MB)",
        "reading: 30 of 330, about 16 min left (250.0 MB, 2.0 MB/s)",
        "listing: 1,200 so far (250.0 MB, 0 B/s)",
    ]


def test_the_time_left_is_that_of_the_step() -> None:
    now = 0.0
    lines: list[str] = []
    progress = ProgressLines(lines.append, lambda: now)
    for seconds, name, done in ((0.0, "a", 0), (10.0, "a", 9), (100.0, "b", 0), (170.0, "b", 1)):
        now = seconds
        ProgressStep(progress, name).working(done, 10)
    assert lines == ["b: 0 of 10", "b: 1 of 10, about 10 min left"]


def test_bytes_and_their_rate_are_those_of_the_last_half_minute() -> None:
    now, received = 0.0, 0
    rate = ByteRate(lambda: received, lambda: now)
    assert rate.text() == "0 B"
    now, received = 10.0, 820_000
    assert rate.text() == "820 kB, 82 kB/s"
    for now in (20.0, 30.0, 40.0, 50.0):
        received = round(1e9 + now * 1e7)
        rate.text()
    assert rate.text() == "1.5 GB, 10.0 MB/s"


def terminal() -> tuple[io.StringIO, Console]:
    written = io.StringIO()
    return written, Console(file=written, force_terminal=True, width=100, color_system=None)


@pytest.mark.parametrize(("reads", "shown"), [(False, "listing .* 0 "), (True, "reading .* 0/41 ")])
def test_bars_show_the_bytes_from_the_start(reads: bool, shown: str) -> None:
    written, console = terminal()
    with ProgressBars(print, console) as bars:
        step = ProgressStep(bars, "reading")
        step.watch_bytes(lambda: 33_400_000)
        step.report_listing(0)
        if reads:
            step.working(0, 41)
    assert re.search(shown + r" *33\.4 MB 0:00:00", written.getvalue())


def test_bars_show_what_is_done_the_rate_and_the_time() -> None:
    written, console = terminal()
    early: list[str] = []
    with ProgressBars(early.append, console) as bars:
        step = ProgressStep(bars, "crawling [bold]x")
        step.note("early")
        step.report_listing(31)
        step.working(0, 31)
        step.working(31, 31)
        step.note("resumed\x1b")
    output = written.getvalue()
    assert early == ["early"]
    assert "crawling [bold]x" in output
    assert "31/31" in output
    assert "0:00:0" in output
    assert "resumed\\x1b" in output


def test_bars_give_each_step_a_line_and_end_the_listing() -> None:
    written, console = terminal()
    with ProgressBars(print, console) as bars:
        ProgressStep(bars, "bringing").report_listing(2)
        ProgressStep(bars, "bringing").working(2, 2)
        ProgressStep(bars, "merging").working(1, 9)
    last = written.getvalue().rsplit("bringing", 1)[1]
    assert "2/2" in last
    assert re.search("merging.* 1/9", last)
    assert "listing" not in last


def test_the_time_left_is_said_to_be_that() -> None:
    written, console = terminal()
    with ProgressBars(print, console) as bars:
        for done in range(5):
            ProgressStep(bars, "reading").working(done, 9)
    assert re.search(r"4/9 .*/s +\d:\d\d:\d\d \d:\d\d:\d\d left", written.getvalue())
