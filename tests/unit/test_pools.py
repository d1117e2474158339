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

from catalog.adapters import load_engines
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


@pytest.mark.parametrize("form", ["vllm", "sglang", "gguf", "ollama", "lm-eval"])
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


def commands_of(form: str, subfolder: str, folder: Path | None = None) -> list[str]:
    """The words of the last command beside an export with one such member."""
    text = recipes(pool(member(subfolder=subfolder)), form, folder)["README.md"]
    blocks = re.findall(r"^(`{3,})$\n(.*?)^\1$", text, re.MULTILINE | re.DOTALL)
    return shlex.split(blocks[-1][1].replace("\\\n", " "), comments=True)


def test_signs_between_words_of_an_engine_are_not_taken_from_names() -> None:
    folder = "ann--one--a=b,c"
    vllm, sglang = (json.loads(commands_of(form, "a=b,c")[-1]) for form in ("vllm", "sglang"))
    assert vllm == {"name": folder, "path": f"adapters/{folder}/a=b,c"}
    assert sglang == {"lora_name": folder, "lora_path": f"adapters/{folder}/a=b,c", "pinned": False}
    harness = commands_of("lm-eval", "a=b,c")
    arguments = json.loads(harness[harness.index("--model_args") + 1])
    assert arguments == {"pretrained": "acme/base", "peft": f"adapters/{folder}/a=b,c"}
    assert commands_of("vllm", "a b")[-1] == "ann--one--a b=adapters/ann--one--a b/a b"
    recipe = recipes(pool(member(subfolder="a+b")), "mergekit", Path("nowhere"))["mergekit.yaml"]
    (model,) = [line for line in recipe.splitlines() if "- model:" in line]
    parts = json.loads(model.partition("model: ")[2])
    assert parts == {"model": {"path": "acme/base"}, "lora": {"path": "adapters/ann--one--a+b"}}
    assert recipes(pool(), "mergekit", None)["mergekit.yaml"].count("+ann/one@") == 1


def test_llama_cpp_is_not_given_a_name_with_a_comma(tmp_path: Path) -> None:
    for name in ("ann--one--a,b", "ann--one"):
        (tmp_path / "adapters" / name).mkdir(parents=True)
        (tmp_path / "adapters" / name / "adapter.gguf").touch()
    readme = recipes(pool(member(subfolder="a,b"), member()), "gguf", tmp_path)["README.md"]
    assert "--lora adapters/ann--one/adapter.gguf\n" in readme
    assert "With a comma in the name, and not in the commands: ann--one--a,b." in readme
    ollama = recipes(pool(member(subfolder="a,b"), member()), "ollama", tmp_path)["README.md"]
    assert "ollama create ann--one--a-b -f adapters/ann--one--a,b/Modelfile" in ollama


def test_the_option_for_the_rank_follows_the_rules_in_use() -> None:
    newer = replace(load_engines()[1], rank_option="--lora-rank", rank_default=4, ranks=(4, 12))
    assert newer.name == "vllm"
    assert "--lora-rank 12 \\" in recipes(pool(), "vllm", None, [newer])["README.md"]
    assert "rank" not in recipes(pool(), "vllm", None, [])["README.md"]


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
