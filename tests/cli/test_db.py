"""`loradex db` and `loradex hub serve` as a user meets them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, text

from catalog.database import opening
from cli.main import loradex

ROOT = Path(__file__).parents[2]


def run(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(loradex, ["--catalog", url, *arguments])


def test_upgrade_makes_the_catalog_and_says_so(empty_url: str) -> None:
    assert run(empty_url, "db", "check").exit_code == 1
    first = run(empty_url, "db", "upgrade")
    assert (first.exit_code, first.stdout) == (0, "")
    assert first.stderr == f"schema none -> {opening.head()}\n"
    assert run(empty_url, "db", "upgrade").stderr == f"schema {opening.head()}, as before\n"
    assert run(empty_url, "db", "check").stderr == f"schema {opening.head()}, the newest\n"
    assert run(empty_url, "-q", "db", "check").stderr == ""


def test_upgrade_waits_for_nobody(catalog_url: str, engine: Engine) -> None:
    with opening.writer_lock(engine):
        result = run(catalog_url, "db", "upgrade")
    assert result.exit_code == 1
    assert "another process is writing" in result.stderr


def test_a_newer_catalog(catalog_url: str, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {opening.VERSION_TABLE} SET version_num = 'future'"))
    for command in ("check", "upgrade"):
        result = run(catalog_url, "db", command)
        assert result.exit_code == 1
        assert "made by a newer loradex" in result.stderr
    output = run(catalog_url, "db", "info")
    assert output.exit_code == 0
    assert "future (newest" in output.stdout


def test_info(catalog_url: str) -> None:
    result = run(catalog_url, "db", "info", "--json")
    document = json.loads(result.stdout)
    assert document["revision"] == document["head"] == opening.head()
    assert document["rows"]["adapter"] == 0
    assert document["dialect"] == catalog_url.split("+")[0].split(":")[0]
    assert result.stderr == ""
    table = run(catalog_url, "db", "info")
    assert re.search(r"^  adapter +0$", table.stdout, re.MULTILINE)
    assert run(catalog_url, "db", "info", "--jsonl").exit_code == 2


def test_info_makes_no_catalog(tmp_path: Path) -> None:
    result = run(f"sqlite:///{tmp_path}/new/catalog.db", "db", "info")
    assert result.exit_code == 1
    assert "run `loradex crawl` first" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_hub_serve_says_how_to_use_it_and_stops_when_interrupted(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "zoo" / "one"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n")
    with subprocess.Popen(
        [sys.executable, "-m", "cli", "hub", "serve", str(tmp_path / "hub"), "--port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stderr is not None
        assert server.stdout is not None
        first, second = server.stderr.readline(), server.stderr.readline()
        endpoint = second.removeprefix("export HF_ENDPOINT=").strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", endpoint)
        assert first == f"serving {tmp_path / 'hub'} at {endpoint}\n"
        with urllib.request.urlopen(f"{endpoint}/api/models") as answer:
            assert [row["id"] for row in json.load(answer)] == ["zoo/one"]
        server.send_signal(signal.SIGINT)
        assert server.stdout.read() == ""
    assert server.returncode == 0


def test_hub_serve_needs_a_folder(tmp_path: Path) -> None:
    result = CliRunner().invoke(loradex, ["hub", "serve", str(tmp_path / "nowhere")])
    assert result.exit_code == 2
    assert "does not exist" in result.stderr
