"""Facts of listings and cards at the ends of their kinds: the earliest date, a set without an order."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.cli.conftest import ROOT, Program
from tests.localhub import FaultHub
from tests.localhub.faults import EditJson, Fault

FRONT = b"---\ntags: !!set {alpha, beta, gamma, delta}\n---\n"


@pytest.mark.parametrize("year", ["0001", "1969", "9999"])
def test_a_date_that_no_repository_can_have_stops_no_later_crawl(
    year: str, hub: FaultHub, run: Program
) -> None:
    date = {"lastModified": f"{year}-01-01T00:00:00.000Z"}
    hub.faults.append(Fault("filter=peft", EditJson(lambda rows: [row | date for row in rows])))
    words = ("crawl", "--any-base", "--weights", "headers", "--json")
    reports = [run(*words) for _ in range(3)]
    assert [report.exit_code for report in reports] == [0, 0, 0]
    assert [json.loads(report.stdout)["unchanged"] for report in reports] == [0, 3, 3]


def test_a_set_in_a_card_has_one_order_in_every_process() -> None:
    code = f"from crawler.reading.cards import parse_card; print(parse_card({FRONT!r}).front['tags'])"
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert texts == {"['alpha', 'beta', 'delta', 'gamma']\n"}
