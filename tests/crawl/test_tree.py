"""Rows of the tree route → files: unsafe and unknown entries are dropped one at a time and named."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.files import unsafe_path
from crawler.hub.tree import RemoteFile, RepositoryTree, read_tree

SHA1, SHA256 = "1" * 40, "2" * 64
GOOD = {"type": "file", "path": "README.md", "size": 5, "oid": SHA1}


def entry(**over: Any) -> dict[str, Any]:
    return {**GOOD, **over}


def lfs(**over: Any) -> dict[str, Any]:
    pointer = {"oid": SHA256, "size": 900, "pointerSize": 133, **over}
    return entry(path="adapter_model.safetensors", size=900, lfs=pointer)


def test_plain_files_lfs_files_and_directories() -> None:
    tree = read_tree([entry(), {"type": "directory", "path": "sub", "oid": SHA1, "size": 0}, lfs()])
    assert tree == RepositoryTree(
        (
            RemoteFile("README.md", 5, SHA1, None),
            RemoteFile("adapter_model.safetensors", 900, None, SHA256),
        ),
        (),
    )


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("../x", id="case-29-parent"),
        pytest.param("a/../../x", id="case-29-parent-inside"),
        pytest.param("./x", id="case-29-here"),
        pytest.param("/abs", id="case-29-absolute"),
        pytest.param("C:\\x", id="case-29-drive"),
        pytest.param("C:/x", id="case-29-drive-with-slashes"),
        pytest.param("\\\\server\\share", id="case-29-unc"),
        pytest.param("//server/share", id="case-29-unc-with-slashes"),
        pytest.param("a\x00b", id="case-29-nul-character"),
        pytest.param("nul", id="case-29-nul-device"),
        pytest.param("sub/COM1.txt", id="case-29-device"),
        pytest.param("a\nb", id="case-29-line-break"),
        pytest.param("a//b", id="case-29-empty-part"),
        pytest.param("a/", id="case-29-trailing-slash"),
        pytest.param("", id="case-29-empty"),
        pytest.param("a./b", id="case-29-trailing-dot"),
        pytest.param("a ", id="case-29-trailing-space"),
        pytest.param("x" * 256, id="case-29-long-name"),
        pytest.param("x/" * 600 + "x", id="case-29-long-path"),
        pytest.param("\ud800", id="case-29-surrogate"),
    ],
)
def test_an_unsafe_path_costs_one_entry(path: str) -> None:
    tree = read_tree([entry(path=path), entry()])
    assert [file.path for file in tree.files] == ["README.md"]
    assert len(tree.problems) == 1
    assert len(tree.problems[0]) < 200
    assert tree.problems[0].isascii()


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(entry(type="symlink"), id="case-30-unknown-type"),
        pytest.param({**GOOD, "type": None}, id="case-30-null-type"),
        pytest.param(entry(path=5), id="case-30-number-as-path"),
        pytest.param("README.md", id="case-30-text-as-entry"),
        pytest.param(None, id="case-30-null-entry"),
        pytest.param(entry(size="5"), id="case-30-text-as-size"),
        pytest.param(entry(size=-1), id="case-30-negative-size"),
        pytest.param(entry(size=2**63), id="case-30-huge-size"),
        pytest.param(entry(size=True), id="case-30-bool-as-size"),
        pytest.param(entry(lfs=[]), id="case-30-list-as-lfs"),
        pytest.param(lfs(size=None), id="case-30-lfs-without-size"),
    ],
)
def test_an_odd_entry_is_dropped_and_named(row: object) -> None:
    tree = read_tree([row, entry(path="other")])
    assert [file.path for file in tree.files] == ["other"]
    assert len(tree.problems) == 1


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(lfs(oid=None), id="case-32-lfs-without-oid"),
        pytest.param(lfs(oid="../../x"), id="case-32-lfs-with-a-path-as-oid"),
        pytest.param(lfs(oid="F" * 64), id="case-32-lfs-with-an-upper-case-oid"),
        pytest.param(entry(oid=None), id="case-32-plain-without-oid"),
    ],
)
def test_a_file_without_hash_is_listed_and_named(row: dict[str, Any]) -> None:
    tree = read_tree([row])
    assert [(file.path, file.oid, file.sha256) for file in tree.files] == [(row["path"], None, None)]
    assert "no hash" in tree.problems[0]


@pytest.mark.parametrize(
    ("paths", "kept", "words"),
    [
        pytest.param(["a.txt", "A.TXT"], ["a.txt", "A.TXT"], "differ only", id="case-29-case-collision"),
        pytest.param(["é", "e\u0301"], ["é", "e\u0301"], "differ only", id="case-29-nfc-nfd-collision"),
        pytest.param(["a", "a"], ["a"], "twice", id="case-29-twice"),
        pytest.param(["a", "a/b", "c"], ["a", "c"], "below a file", id="case-29-file-and-directory"),
        pytest.param(["a/b/c", "a"], ["a"], "below a file", id="case-29-file-and-directory-later"),
    ],
)
def test_colliding_paths_are_named(paths: list[str], kept: list[str], words: str) -> None:
    tree = read_tree([entry(path=path) for path in paths])
    assert [file.path for file in tree.files] == kept
    assert len(tree.problems) == 1
    assert words in tree.problems[0]


@pytest.mark.parametrize(
    "path", ["README.md", "checkpoint-100/adapter_config.json", ".gitattributes", "a b", "文"]
)
def test_ordinary_paths_are_safe(path: str) -> None:
    assert unsafe_path(path) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec=None), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(JSON | st.fixed_dictionaries({}, optional=dict.fromkeys([*GOOD, "lfs"], JSON)), max_size=5))
def test_case_28_no_rows_raise(rows: list[object]) -> None:
    tree = read_tree(rows)
    assert all(unsafe_path(file.path) is None for file in tree.files)
