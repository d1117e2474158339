"""Row 21: a file that says no study is one sentence with its line, before anything is computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Program
from tests.edges.rows import row
from tests.shared_data import shared

SIBLINGS = {
    "merge-bomb": b"a: &a {x: 1, y: 2}\n"
    + b"".join(b"%c: &%c [%s]\n" % (n + 1, n + 1, b",".join([b"*%c" % n] * 20)) for n in range(97, 105)),
    "merges-itself": b"study: &s {<<: *s}\n",
    "deep-blocks": b"".join(b"%sa:\n" % (b" " * n) for n in range(400)),
    "int-word": b"study: !!int ''\n",
    "python": b"study: !!python/object/apply:os.system [true]\n",
    "no-such-day": b"study: 2024-13-45\n",
    "latin-1": b"study: x\ntitle: caf\xe9\n",
    "utf-16": "study: x\n".encode("utf-16"),
    "nul": b"study: x\x00\n",
    "a-list": b"- study\n",
    "a-number": b"1\n",
    "empty": b"",
    "two": b"study: a\n---\nstudy: b\n",
    "long-number": b"study: x\ntitle: y\nbase: z\nseeds: [" + b"9" * 5000 + b"]\n",
    "not-a-number": b"study: x\ntitle: y\nbase: z\ntasks: {names: [a], train: .nan}\n",
    "infinite": b"study: x\ntitle: y\nbase: z\ntasks: {names: [a], train: 1e999}\n",
    "names-of-numbers": b"1: 2\n3.5: 4\nnull: x\n",
    "half-a-tag": b"study: !!\n",
    "no-list": b"study: x\nmethods: [[[]]]\npools: !!null\n",
}


@shared
@pytest.mark.parametrize("name", ["alias-bomb", "points-to-itself", "deep", "bool-word"])
def test_the_row(name: str, run: Program, tmp_path: Path) -> None:
    refused = run("study", "run", str(row("21-study-files") / f"{name}.yaml"), "-o", str(tmp_path / "out"))
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert f"{name}.yaml line " in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", SIBLINGS)
def test_other_files_that_are_no_study(name: str, run: Program, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_bytes(SIBLINGS[name])
    refused = run("study", "run", str(file), "-o", str(tmp_path / "out"))
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"Error: {file} ")
    assert refused.stderr.count("\n") == 1
    assert len(refused.stderr) < 600


def test_a_name_that_no_file_has(run: Program, tmp_path: Path) -> None:
    refused = run("study", "run", "x" * 5000, "-o", str(tmp_path))
    assert (refused.exit_code, refused.stdout) == (1, "")


@pytest.mark.parametrize(
    "text", ["a: &a [*a]", "a: !!bool x", "[" * 5000, "a: 1\na: 2", "- 1", "a: [1]", "\udcff"]
)
def test_texts_of_tasks_are_read_with_the_same_guard(text: str, run: Program, tmp_path: Path) -> None:
    file = tmp_path / "texts.yaml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    refused = run("select", "name", "--by", "tasks", "--task", "t", "--texts", str(file))
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"Error: {file} ")
    assert refused.stderr.count("\n") == 1
