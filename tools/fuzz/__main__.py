"""`python -m tools.fuzz`: mutated inputs for every reader, and what became of them as a table.

The exit code is 1 where a reader crashed: where it raised anything but one of its own refusals. The smallest
input of each crash is written to a folder, and a line says how to run it again.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import click

from tools.fuzz.mutation import mutations
from tools.fuzz.readers import Reader, readers

# Seconds of the processor after which an input counts as one that never ends.
LONGEST_SECONDS = 20.0
# Readers that load whole libraries for each input get fewer.
COSTLY = {"GGUF": 20, "weights": 5, "study": 4, "task": 4, "scores.json": 2, "scores.csv": 2}


@dataclass
class FuzzReport:
    """What became of the inputs of one reader; `crashes` has one input for each place in the code."""

    inputs: int = 0
    refused: int = 0
    slowest: float = 0.0
    crashes: dict[str, bytes] = field(default_factory=dict)


def crash_of(reader: Reader, data: bytes) -> str | None:
    """Where and how the reader fails on an input, None where it reads or refuses it."""
    try:
        with _limit_time():
            reader.read(data)
    except reader.refusals:
        return None
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
    return None


@contextmanager
def _limit_time() -> Iterator[None]:
    """Raises TimeoutError inside the block after LONGEST_SECONDS of the processor."""

    def stop(_number: int, _frame: object) -> None:
        raise TimeoutError("the reader does not end")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def run(reader: Reader, name: str, seed: int, count: int) -> FuzzReport:
    """Tries `count` inputs on one reader."""
    outcome = FuzzReport()
    for data in islice(mutations(reader.seeds, reader.pieces, f"{name}:{seed}"), count):
        before = time.process_time()
        outcome.inputs += 1
        try:
            with _limit_time():
                reader.read(data)
        except reader.refusals:
            outcome.refused += 1
        except Exception:
            where = crash_of(reader, data) or "not repeated"
            outcome.crashes.setdefault(where, data)
        outcome.slowest = max(outcome.slowest, time.process_time() - before)
    outcome.crashes = {where: smaller(reader, data, where) for where, data in outcome.crashes.items()}
    return outcome


def smaller(reader: Reader, data: bytes, where: str) -> bytes:
    """A smaller input that fails in the same place, found by leaving out ever shorter parts."""
    size = len(data) // 2
    while size:
        for part in _without(data, size):
            if crash_of(reader, part) == where:
                data = part
                break
        else:
            size //= 2
    return data


def _without(data: bytes, size: int) -> Iterator[bytes]:
    for begin in range(0, len(data), size):
        yield data[:begin] + data[begin + size :]


def main(words: Sequence[str]) -> int:
    """Runs the readers named, all without a name; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__)
    parser.add_argument("reader", nargs="*", help="all of them without one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", type=int, default=20_000, help="for each reader; costly ones get fewer")
    parser.add_argument("--crashes", type=Path, default=Path("fuzz-crashes"), help="where crashing inputs go")
    parser.add_argument("--again", type=Path, help="run this one input on the reader named")
    options = parser.parse_args(words)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    table = readers()
    names = options.reader or list(table)
    if unknown := [name for name in names if name not in table]:
        parser.error(f"no reader {unknown[0]!r}; there are {', '.join(table)}")
    if options.again:
        table[names[0]].read(options.again.read_bytes())
        return 0
    crashed = False
    click.echo(f"{'reader':<16}{'inputs':>9}{'read':>9}{'refused':>9}{'crashes':>9}{'slowest':>10}")
    for name in names:
        outcome = run(table[name], name, options.seed, max(1, options.inputs // COSTLY.get(name, 1)))
        read = outcome.inputs - outcome.refused - len(outcome.crashes)
        numbers = (outcome.inputs, read, outcome.refused, len(outcome.crashes))
        click.echo(f"{name:<16}" + "".join(f"{n:>9,}" for n in numbers) + f"{outcome.slowest:>8.2f} s")
        for number, (where, data) in enumerate(sorted(outcome.crashes.items())):
            crashed = True
            options.crashes.mkdir(parents=True, exist_ok=True)
            path = options.crashes / f"{name.replace(' ', '-')}-{number}"
            path.write_bytes(data)
            click.echo(f"  {where}: {data[:60]!r}\n  python -m tools.fuzz '{name}' --again {path}")
    return 1 if crashed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
