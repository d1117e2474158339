"""SIGTERM and SIGHUP end the program as Ctrl-C does."""

from __future__ import annotations

import logging
import signal
import sqlite3
import sys
import threading
import weakref
from collections.abc import Iterator
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine

from cli.app import Exit
from cli.main import loradex
from cli.signals import StopSignal, set_up_signals

ENDING = {signal.SIGTERM: Exit.TERMINATED, signal.SIGHUP: Exit.HUNG_UP}


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Puts the handlers and the hook of this process back."""
    before, hook = {number: signal.getsignal(number) for number in ENDING}, sys.unraisablehook
    yield
    sys.unraisablehook = hook
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDING)
def test_a_command_that_is_told_to_end_says_how_to_go_on(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command()
    def waiting() -> None:
        signal.raise_signal(number)

    set_up_signals()
    monkeypatch.setattr(loradex, "get_command", lambda *_: waiting)
    result = CliRunner().invoke(loradex, ["status"])
    assert result.exit_code == ENDING[number] == 128 + number
    assert result.stderr == "interrupted; run the same command again to continue\n"


def test_a_second_signal_does_not_interrupt_the_tidying_up() -> None:
    set_up_signals()
    with pytest.raises(StopSignal):
        signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGTERM)


def test_what_was_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    set_up_signals()
    signal.raise_signal(signal.SIGHUP)


@pytest.mark.parametrize("number", [*ENDING, signal.SIGINT])
def test_a_signal_that_falls_into_a_callback_of_python_is_not_lost(number: signal.Signals) -> None:
    set_up_signals()

    class Thing:
        pass

    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(number))
    with pytest.raises(KeyboardInterrupt) as caught:  # noqa: PT012 - the signal comes while it waits
        del thing
        threading.Event().wait(10)
    assert reference() is None
    assert getattr(caught.value, "number", signal.SIGINT) == number


@pytest.mark.parametrize("verbose", [0, 1])
@pytest.mark.parametrize("what", ["cursor", "reset"])
def test_what_sqlalchemy_cannot_close_after_an_interrupt_is_told_to_those_who_ask(
    what: str, verbose: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise sqlite3.ProgrammingError("it is at work")

    logger = logging.getLogger("sqlalchemy.pool")
    monkeypatch.setattr(logger, "level", logger.level)
    assert CliRunner().invoke(loradex, [*["-v"] * verbose, "methods"]).exit_code == 0
    engine = create_engine("sqlite://")
    if what == "cursor":
        with engine.connect() as connection:
            connection._safe_close_cursor(SimpleNamespace(close=fail))  # type: ignore[arg-type]
    else:
        engine.connect().close()
        monkeypatch.setattr(engine.dialect, "do_rollback", fail)
        engine.raw_connection().close()
    assert bool(caplog.records) == bool(verbose)
