"""Filters with the rows that they match, or the place of their error, for the parser in the browser.

`python -m tests.page.filters` writes filters.json from the Python parser; a test compares the two. The
texts are those of the parser's own tests, some composed at random, and all of these with a sign changed.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from catalog.adapters import EngineFacts, verdict
from catalog.errors import UsageError
from catalog.query import FIELDS, fold, parse, to_text
from catalog.rules import Reason
from loradex.page.documents import field_rows
from loradex.page.encoding import plain_value
from tests.db import test_query as of_database
from tests.unit import test_query as of_parser

FILE = Path(__file__).with_name("filters.json")
CHOICES = {"reason": [reason.value for reason in Reason]}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
WHOLES = [None, 0, 1, 8, 16, 64, 1_000_000, 2**53 - 1, -3]
SIGNS = ' "()|-*:,.<>=~ä\u2003\x85\U0001f600'


def rows() -> list[dict[str, Any]]:
    """Rows in which every odd value occurs."""
    columns = zip(
        *(
            itertools.cycle(values)
            for values in (
                of_database.NAMES,
                of_database.TEXTS,
                of_database.CARDS,
                of_database.INSTANTS,
                WHOLES,
                of_database.REALS,
            )
        ),
        strict=True,
    )
    made = []
    for n, (name, text, card, instant, whole, real) in zip(range(40), columns, strict=False):
        entries = [value for value in (name, text, "no", "q_proj") if value][: n % 4]
        row = {field.key: None for field in FIELDS.values()}
        row |= {field.key: entries for field in FIELDS.values() if field.many}
        row |= {field.key: text for field in FIELDS.values() if field.kind == "text" and not field.many}
        row |= {field.key: real for field in FIELDS.values() if field.kind == "number"}
        row |= {field.key: whole for field in FIELDS.values() if field.kind == "whole"}
        row |= {field.key: instant for field in FIELDS.values() if field.kind == "date"}
        row |= {field.key: [None, True, False][n % 3] for field in FIELDS.values() if field.kind == "flag"}
        row |= {"adapter": name, "verdict": ["accepted", "skipped"][n % 2], "card": card}
        row |= {
            "uses": ["research", "publish", "commercial"][: n % 4],
            "reasons": ["zero_update", "no_card"][: n % 3],
        }
        row |= {"gated": [None, "auto", "manual"][n % 3]}
        row |= {"engine_facts": EngineFacts(("use_dora", "rank_off_grid")[: n % 3], n, n % 4 > 0)}
        made.append(row)
    return [*made, of_parser.ROW]


def texts() -> Iterator[str]:
    """The texts of filters, wrong ones too."""
    for function in (*vars(of_parser).values(), *vars(of_database).values()):
        for mark in getattr(function, "pytestmark", ()):
            if mark.name == "parametrize" and "".join(mark.args[0]).startswith("text"):
                values = (value if isinstance(value, str) else value[0] for value in mark.args[1])
                yield from (text for text in values if isinstance(text, str) and len(text) < 500)
    dice = random.Random(1)
    terms = [
        *(
            "rank:8..64",
            "rank:..16",
            "norm:0.1..",
            "-rank:*",
            "license:mit,apache-2.0",
            "-owner:jo",
            "main:yes",
        ),
        *("created:2024-08..", "modified:..2023", 'adapter:"jo/tweet-emotion"', "name:a*", "use:commercial"),
        *(
            "joy",
            "100%",
            '"of anger"',
            "gated:no",
            "main:yes",
            "downloads:1M..",
            "likes:1e1",
            "tag:no",
            "reason:no_*",
            "mytag:no",
            "-note:*",
            "hidden:yes",
        ),
    ]
    composed = []
    for _ in range(150):
        parts = dice.choices(terms, k=dice.randint(1, 4))
        text = dice.choice([" ", " | ", " OR ", " -"]).join(parts)
        composed.append(f"({text}) {dice.choice(terms)}" if dice.random() < 0.3 else text)
    yield from composed
    for text in composed:
        place = dice.randrange(len(text))
        yield text[:place] + dice.choice(SIGNS) + text[place + dice.randint(0, 1) :]


def document() -> dict[str, Any]:
    """The fields, the rows, and each text with what the Python parser makes of it."""
    listed = rows()
    cases = []
    for text in dict.fromkeys(texts()):
        try:
            query = parse(text, CHOICES, of_parser.ENGINES)
        except UsageError as error:
            place = int(str(error).rpartition(" at character ")[2].partition(":")[0])
            cases.append({"text": text, "place": place, "error": str(error)})
        else:
            matches = [place for place, row in enumerate(listed) if query.match(row)]
            cases.append({"text": text, "matches": matches, "canonical": to_text(query)})
    shown = [{key: _seconds(value) for key, value in row.items()} | _engines_of(row) for row in listed]
    for row in shown:
        del row["engine_facts"]
    return plain_value({"fields": field_rows(of_parser.ENGINES), "rows": shown, "cases": cases})


def _seconds(value: Any) -> Any:
    return (value - EPOCH) // timedelta(seconds=1) if isinstance(value, datetime) else value


def _engines_of(row: dict[str, Any]) -> dict[str, list[str]]:
    """The columns of the list from which the browser reads what engines run an adapter."""
    by_name = {fold(engine.name): verdict(engine, row["engine_facts"]).runs for engine in of_parser.ENGINES}
    return {
        "runs": [name for name, runs in by_name.items() if runs],
        "runs_unknown": [name for name, runs in by_name.items() if runs is None],
    }


def written() -> str:
    """The text of filters.json."""
    document_ = document()
    lines = [f'"{name}": {json.dumps(document_[name])}' for name in ("fields",)]
    for name in ("rows", "cases"):
        entries = ",\n".join(json.dumps(entry) for entry in document_[name])
        lines.append(f'"{name}": [\n{entries}\n]')
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    FILE.write_text(written())
