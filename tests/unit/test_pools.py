"""A manifest is the same bytes for the same pool, and nothing hostile or edited gets through."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.adapters.licenses import USES, WITHHELD, objection
from catalog.errors import NotFoundError, PoolError
from catalog.pools.manifest import (
    FORMAT,
    Manifest,
    Member,
    PinnedFile,
    check_name,
    license_problems,
    parse_manifest,
    read_manifest,
)
from catalog.pools.recipes import check_recipe, recipes

WEIGHTS = PinnedFile("adapter_model.safetensors", 8, "a" * 64)
CONFIG = PinnedFile("adapter_config.json", 2, "b" * 64)


def member(name: str = "ann/one", **over: Any) -> Member:
    """A complete member."""
    facts: dict[str, Any] = {
        "repository": name,
        "hub_id": "0" * 24,
        "commit": "c" * 40,
        "subfolder": "",
        "files": (CONFIG, WEIGHTS),
        "rank": 8,
        "alpha": 16.0,
        "scaling": 2.0,
        "targets": ("q_proj", "v_proj"),
        "parameters": 100,
        "norm": 1.5,
        "license": "mit",
        "score": 0.5,
        "why": "drawn at random (seed 0)",
    }
    return Member(**(facts | over))


def pool(*members: Member, **over: Any) -> Manifest:
    """A pool of these members."""
    facts: dict[str, Any] = {"name": "mine", "base": "acme/base", "chosen": {"by": "random", "seed": 0}}
    return Manifest(members=members or (member(),), **(facts | over))


def edit_manifest(change: Callable[[dict[str, Any]], object]) -> bytes:
    """The canonical bytes of a manifest after a change that somebody made."""
    document = json.loads(pool().canonical())
    change(document)
    return (json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()


def test_the_bytes_are_canonical_and_name_the_pool() -> None:
    result = pool()
    data = result.canonical()
    assert data == pool().canonical()
    assert result.digest == hashlib.sha256(data).hexdigest()
    assert result.folder_name == f"mine-{result.digest[:8]}"
    document = json.loads(data)
    assert document["format"] == FORMAT
    assert data.decode() == json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    assert parse_manifest(data) == result


TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20)
NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False)
MEMBERS = st.builds(
    member,
    st.from_regex(r"[a-z]{1,5}/[a-z]{1,5}", fullmatch=True),
    rank=st.none() | st.integers(1, 512),
    score=NUMBERS,
    norm=NUMBERS,
    license=st.none() | TEXTS,
    why=TEXTS,
    subfolder=st.sampled_from(["", "checkpoint-10", "a/b"]),
)


@given(st.lists(MEMBERS, max_size=4, unique_by=lambda item: item.folder_name), TEXTS)
def test_what_is_written_is_read(members: list[Member], query: str) -> None:
    result = pool(*members, chosen={"by": "text", "query": query, "k": len(members)})
    assert parse_manifest(result.canonical()) == result


HOSTILE: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("a-path-that-leaves", lambda d: d["members"][0].update(subfolder="../x"), "leaves its folder"),
    ("an-absolute-path", lambda d: d["members"][0].update(subfolder="/etc"), "empty part"),
    ("a-file-elsewhere", lambda d: d["members"][0]["files"][0].update(name="../x"), "leaves its folder"),
    ("a-file-below", lambda d: d["members"][0]["files"][0].update(name="a/b"), "own folder"),
    ("a-repository-that-leaves", lambda d: d["members"][0].update(repository="../.."), "repository"),
    ("a-short-commit", lambda d: d["members"][0].update(commit="main"), "commit"),
    ("a-hash-that-is-none", lambda d: d["members"][0]["files"][0].update(sha256="A" * 64), "sha256"),
    ("a-negative-size", lambda d: d["members"][0]["files"][0].update(size=-1), "size"),
    ("a-size-that-is-true", lambda d: d["members"][0]["files"][0].update(size=True), "size"),
    ("a-rank-that-is-text", lambda d: d["members"][0].update(rank="8"), "rank"),
    ("a-name-that-leaves", lambda d: d.update(name="../x"), "not a valid name for a pool"),
    ("an-unknown-field", lambda d: d.update(extra=1), "unknown field 'extra'"),
    ("an-unknown-field-of-a-member", lambda d: d["members"][0].update(extra=1), "unknown field 'extra'"),
    ("an-unknown-use", lambda d: d.update(use="war"), "not a use"),
    ("another-format", lambda d: d.update(format="other/1"), "of the format"),
    ("no-members", lambda d: d.pop("members"), "members"),
    ("the-same-member-twice", lambda d: d["members"].append(d["members"][0]), "twice"),
]


@pytest.mark.parametrize(("change", "told"), [pytest.param(c, t, id=i) for i, c, t in HOSTILE])
def test_a_manifest_from_elsewhere_is_not_believed(change: Callable[[Any], object], told: str) -> None:
    with pytest.raises(PoolError, match=told):
        parse_manifest(edit_manifest(change))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"null",
        pool().canonical().replace(b"  ", b"    "),
        pool().canonical() + b"\n",
    ],
)
def test_other_bytes_are_no_manifest(data: bytes) -> None:
    with pytest.raises(PoolError):
        parse_manifest(data)


def test_a_manifest_is_found_by_its_folder(tmp_path: Path) -> None:
    (tmp_path / "pool.json").write_bytes(pool().canonical())
    assert read_manifest(tmp_path) == read_manifest(tmp_path / "pool.json") == pool()
    with pytest.raises(NotFoundError, match="does not exist"):
        read_manifest(tmp_path / "other")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "a b", "con", "x" * 101, "a\n", "é"])
def test_a_pool_has_a_name_that_is_a_folder(name: str) -> None:
    with pytest.raises(PoolError):
        check_name(name)


def test_a_license_that_forbids_is_a_problem_of_that_member() -> None:
    result = pool(
        member("a/open"),
        member("b/silent", license=None),
        member("c/no-sale", license="cc-by-nc-4.0"),
        member("d/closed", license="cc-by-nd-4.0"),
        member("e/odd", license="other"),
        base_license="llama3.1",
    )
    actual = {use: [problem.member for problem in license_problems(result, use)] for use in USES}
    assert actual == {
        "research": [],
        "publish": ["b/silent", "d/closed", "e/odd"],
        "commercial": ["b/silent", "c/no-sale", "d/closed", "e/odd"],
    }
    assert license_problems(replace(result, use="commercial")) == license_problems(result, "commercial")


def test_what_is_withheld_from_less_is_withheld_from_more() -> None:
    for license_ in (*WITHHELD, None, "unheard-of"):
        refused = [objection(license_, use) is not None for use in USES]
        assert refused == sorted(refused)


HOSTILE = ("a;touch PWNED #$(id)", "```\nrm -rf x", "a b", "it's", "`id`")


@pytest.mark.parametrize("form", ["vllm", "sglang", "gguf", "ollama"])
@pytest.mark.parametrize("subfolder", HOSTILE)
def test_a_hostile_name_is_one_word_of_a_command_and_stays_in_its_block(form: str, subfolder: str) -> None:
    where = Path("nowhere") if form in ("gguf", "ollama") else None
    plain, hostile = (recipes(pool(member(subfolder=name)), form, where) for name in ("sub", subfolder))
    text, expected = hostile["README.md"], plain["README.md"]
    fences = [line for line in text.splitlines() if re.fullmatch("`{3,}", line)]
    assert len(fences) == len([line for line in expected.splitlines() if re.fullmatch("`{3,}", line)])
    for block in re.findall(r"^(`{3,})$\n(.*?)^\1$", text, re.MULTILINE | re.DOTALL):
        words = shlex.split(block[1].replace("\\\n", " "), comments=True)
        assert not {"PWNED", "-rf", "$(id)"} & set(words)


@pytest.mark.parametrize("base", ["me/base\nrm -rf x #", "me/`id`", "$(id)"])
def test_a_base_that_a_command_could_misread_is_refused(base: str) -> None:
    with pytest.raises(PoolError, match="could misread"):
        check_recipe(pool(member(), base=base), "vllm")


def test_a_recipe_needs_a_base_and_members() -> None:
    with pytest.raises(PoolError, match="single base model"):
        check_recipe(pool(member(), base=None), "sglang")
    with pytest.raises(PoolError, match="has no members"):
        check_recipe(replace(pool(member()), members=()), "vllm")
    check_recipe(replace(pool(member()), members=()), "peft")
