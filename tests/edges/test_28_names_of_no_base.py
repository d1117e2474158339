"""A base model that nobody knows is likelier a slip than a wish: a sentence with the nearest known names."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from catalog.adapters import BaseSpelling, BaseTable, initial_table
from catalog.errors import NotFoundError
from cli.main import loradex
from tests.cli.conftest import TINY, Program
from tests.edges.rows import row
from tests.hubs import lora_files, make_repo
from tests.localhub import FaultHub
from tests.shared_data import shared

INSTRUCT = "meta-llama/Llama-3.1-8B-Instruct"
# A slip, and the name that should stand first.
SLIPS = {
    "meta-llama/Llama-3.1-8B-Instrct": INSTRUCT,
    "meta-lama/Llama-3.1-8B": "meta-llama/Llama-3.1-8B",
    "qwen/qwen25-7b-instruct": "Qwen/Qwen2.5-7B-Instruct",
    "google/gemma2-9b-itt": "google/gemma-2-9b-it",
    "Mistral-7B-v0.33": "mistralai/Mistral-7B-v0.3",
}


def said(result: object) -> str:
    return " ".join(str(getattr(result, "stderr", "")).split())


@shared
def test_the_names_of_the_row(hub: FaultHub, run: Program) -> None:
    for name in (row("28-names-of-no-base") / "bases.txt").read_text().split():
        done = run("crawl", "--base", name)
        assert done.exit_code == 0, done.output
        assert f"No repository lists an adapter of {name}, and no base model is known as {name}; " in said(
            done
        )
        assert "the nearest known names are " in said(done)


@pytest.mark.parametrize(("slip", "meant"), SLIPS.items())
def test_the_nearest_name_stands_first(slip: str, meant: str) -> None:
    with pytest.raises(NotFoundError, match=f"known as {slip}; the nearest known names are {meant}, "):
        initial_table().find(slip)


def test_names_that_only_a_catalog_has_are_found_and_near() -> None:
    assert initial_table().find("Some/Base", ["some/base", "Some/Base"]) == "Some/Base"
    assert initial_table().find("some/BASE", ["some/base"]) == "some/base"
    with pytest.raises(NotFoundError, match="nearest known names are some/base, "):
        initial_table().find("some/bas", ["some/base"])
    with pytest.raises(NotFoundError, match="the only known name is a/B"):
        BaseTable([BaseSpelling("a/B", "a/B", "canonical")]).find("c/D")
    with pytest.raises(NotFoundError, match="no base model is known yet"):
        BaseTable([]).find("c/D")


@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_a_crawl_that_lists_nothing_says_so_of_every_base(
    words: tuple[str, ...], hub: FaultHub, run: Program
) -> None:
    done = run("crawl", "--base", "google/gemma-2-2b", "--base", "some/slip", *words)
    assert done.exit_code == 0, done.output
    assert "No repository lists an adapter of google/gemma-2-2b, under any of its 3 names." in said(done)
    assert "No repository lists an adapter of some/slip, and no base model is known as some/slip" in said(
        done
    )


def test_a_crawl_says_it_of_the_base_alone_that_nobody_names(hub: FaultHub, run: Program) -> None:
    first = run("crawl", "--base", TINY, "--base", "some/slip")
    assert f"adapter of {TINY}" not in said(first)
    assert "adapter of some/slip" in said(first)
    again = run("crawl", "--base", TINY)
    assert "No repository lists" not in said(again)
    limited = run("crawl", "--base", TINY, "--base", "some/slip", "--limit", "1")
    assert "No repository lists" not in said(limited), "listings that were not read say nothing"


@pytest.mark.parametrize(
    "written",
    [
        f"https://huggingface.co/{INSTRUCT}",
        f"{INSTRUCT}@main",
        "/x/models--meta-llama--Llama-3.1-8B-Instruct",
    ],
)
def test_what_is_no_id_is_answered_with_the_one_that_it_means(written: str, run: Program) -> None:
    refused = run("crawl", "--base", written)
    assert refused.exit_code == 2
    assert f"is not a base model; write {INSTRUCT}." in said(refused)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The program on a catalog with one adapter of one base model that the program does not know."""
    place = tmp_path_factory.mktemp("filled")
    make_repo(place / "hub", "ann/one", lora_files(TINY))
    data = ["--data", str(place / "data")]
    with FaultHub(place / "hub") as running, pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_ENDPOINT", running.url)
        done = CliRunner().invoke(loradex, [*data, "-q", "crawl", "--any-base"])
    assert done.exit_code == 0, done.output
    return lambda *words: CliRunner().invoke(loradex, [*data, *words])


@pytest.mark.parametrize(
    "words",
    [
        ("adapters", "--base", "acme/tin"),
        ("adapters", "--where", "base:acme/tin"),
        ("adapters", "--where", "rank:4 (base:acme/tin | base:acme/tiny)"),
        ("adapters", "--where", "base:acme/tina*"),
        ("search", "words", "--words", "--where", "base:acme/tin"),
        ("select", "mine", "--by", "random", "-k", "1", "--base", "acme/tin"),
        ("select", "mine", "--by", "random", "-k", "1", "--where", "base:acme/tin"),
        ("map", "map.svg", "--base", "acme/tin"),
    ],
)
def test_a_slip_is_answered_with_the_name_that_is_near(words: tuple[str, ...], filled: Program) -> None:
    done = filled(*words)
    assert done.exit_code == 1
    assert "No base model is known as acme/tin" in said(done)
    assert "the nearest known names are acme/tiny, " in said(done)


def test_another_name_in_a_filter_is_answered_with_the_one_that_is_right(filled: Program) -> None:
    done = filled("adapters", "--where", "base:unsloth/llama-3.1-8b-instruct")
    assert done.exit_code == 2
    assert f"unsloth/llama-3.1-8b-instruct is another name of {INSTRUCT}; write base:{INSTRUCT}." in said(
        done
    )


@pytest.mark.parametrize(
    "where",
    ["base:acme/tiny", "base:ACME/Tiny", "base:acme*", "-base:some/slip", "base:*", "base:google/gemma-2-2b"],
)
def test_what_is_known_or_left_out_is_asked_for(where: str, filled: Program) -> None:
    assert filled("adapters", "--where", where).exit_code == 0


def test_a_base_that_is_new_is_told_once(run: Program) -> None:
    first = run("base", "add", "some/slip", "some/copy")
    assert first.exit_code == 0
    assert "some/slip was not known before; the nearest known names are " in said(first)
    assert "not known before" not in said(run("base", "add", "some/slip", "some/other"))
    assert "not known before" not in said(run("base", "add", INSTRUCT, "some/third"))
    assert run("base", "list", "--base", "some/copy").stdout.split()[0] == "base"
