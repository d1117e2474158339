"""What a large catalog costs: processor seconds of each question, warm, and of a command from a cold start.

Run as `python -m tools.bench.scale [--data DIR | --count N]`; DIR is what `tools.generated_catalog` made,
with `--encoder` for searches by meaning with the default encoder. Each question is asked in this process
until two answers in a row are served by the same caches; the second counts. `--only NAME…` measures some.
"""

from __future__ import annotations

import argparse
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import loradex
from catalog.index import load_embedder
from tools.bench.peak import peak_during
from tools.generated_catalog import generate

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def questions(catalog: loradex.Catalog, adapter: str) -> dict[str, Callable[[], object]]:
    """The questions of the table, by their names."""
    words = text_of(catalog.settings.data / "catalog.db")
    select = catalog.select
    return {
        "search": lambda: catalog.search(words),
        "search --words": lambda: catalog.search(words, words_only=True),
        "search --where": lambda: catalog.search(words, words_only=True, where="rank:64 license:mit"),
        "similar": lambda: catalog.similar(adapter),
        "select random": lambda: select("r", by="random", k=30, dry_run=True),
        "select rank": lambda: select("k", by="rank", k=30, dry_run=True),
        "select text": lambda: select("t", by="text", query=words, k=30, dry_run=True),
        "select adapter": lambda: select("a", by="adapter", like=adapter, k=30, dry_run=True),
        "select --distinct delta": lambda: select("d", by="random", distinct="delta", k=30, dry_run=True),
        "duplicates --level delta": lambda: catalog.duplicates("delta"),
        "adapters": lambda: sum(1 for _ in catalog.iterate_adapters()),
    }


def text_of(file: Path) -> str:
    """Four words of a card in the middle of the catalog, the same ones after `add_adapter`."""
    with closing(sqlite3.connect(file)) as connection:
        middle = "SELECT max(id) / 1000 * 500 FROM adapter"
        query = f"SELECT card_text FROM adapter WHERE id >= ({middle}) LIMIT 1"
        [card] = connection.execute(query).fetchone()
    words: list[str] = card.split()
    return " ".join(words[20:24])


def add_adapter(file: Path) -> None:
    """Adds an adapter as a stranger's SQL client would, with the fingerprint of the first, changed a
    little.
    """
    with closing(sqlite3.connect(file)) as connection, connection:
        [newest] = connection.execute("SELECT max(id) FROM adapter").fetchone()
        key = {"new": newest + 1, "digest": f"{newest + 1:064x}", "hub": f"{newest + 1:024x}"}
        for table, changes in {
            "weights_file": {"digest": ":digest"},
            "repository": {"id": ":new", "hub_id": ":hub", "name": "name || '-' || :new"},
            "adapter": {"id": ":new", "repository_id": ":new", "weights_digest": ":digest"},
            "fingerprint": {"weights_digest": ":digest"},
        }.items():
            names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            values = ", ".join(changes.get(name, f'"{name}"') for name in names)
            columns = ", ".join(f'"{name}"' for name in names)
            where = "id = 1" if "id" in changes else "rowid = 1"
            connection.execute(
                f"INSERT INTO {table} ({columns}) SELECT {values} FROM {table} WHERE {where}",
                {name: value for name, value in key.items() if f":{name}" in values},
            )


def measure_question(ask: Callable[[], object]) -> tuple[float, float, float, int]:
    """Processor seconds of the first and the second time, wall seconds of the second, and its memory."""
    began = time.process_time()
    ask()
    first = time.process_time() - began
    began, wall = time.process_time(), time.perf_counter()
    _, memory = peak_during(ask)
    return first, time.process_time() - began, time.perf_counter() - wall, memory


def cold(data: Path, *arguments: str) -> float:
    """Processor seconds of a command of its own process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "loradex", "--data", str(data), *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | ONE_THREAD)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure_catalog(data: Path, only: Sequence[str]) -> None:
    """Prints the table of one catalog."""
    say("", "first cpu s", "warm cpu s", "warm wall s", "MiB")
    with loradex.open(data) as catalog:
        adapter = next(catalog.iterate_adapters("base:meta-llama/llama-3.1-8b-instruct", limit=1)).adapter
        asked = questions(catalog, adapter)
        for name, ask in asked.items():
            if not only or name in only:
                first, warm, wall, memory = measure_question(ask)
                say(name, f"{first:.2f}", f"{warm:.3f}", f"{wall:.3f}", f"{memory / 2**20:.0f}")
        if not only or "one new adapter, similar" in only:
            asked["similar"]()
            add_adapter(data / "catalog.db")
            began = time.process_time()
            asked["similar"]()
            say("one new adapter, similar", "", f"{time.process_time() - began:.3f}", "", "")
    for words in (
        ("search", text_of(data / "catalog.db")),
        ("search", "--words", "bank"),
        ("similar", adapter),
    ):
        name = f"cold: {words[0]}{' --words' if '--words' in words else ''}"
        if not only or name in only:
            say(name, "", f"{cold(data, *words):.2f}", "", "")


def say(first: str, *cells: str) -> None:
    """Writes a line of the table at once."""
    sys.stdout.write(f"{first:<28}" + "".join(f"{cell:>14}" for cell in cells) + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.scale", description=__doc__)
    parser.add_argument("--data", type=Path, help="a generated data folder")
    parser.add_argument("--count", type=int, default=20_000, help="the adapters of a temporary one")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    options = parser.parse_args(argv)
    if "OMP_NUM_THREADS" not in os.environ:
        command = [sys.executable, "-m", "tools.bench.scale", *(sys.argv[1:] if argv is None else argv)]
        return subprocess.run(command, env=os.environ | ONE_THREAD, check=False).returncode
    if options.data is not None:
        measure_catalog(options.data, options.only)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        # Vectors under the name of the default encoder, else the first search would embed every card.
        generate(data, options.count, load_embedder())
        measure_catalog(data, options.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
