"""Copies by owners that nobody listed: the model they are named after or their own name, never a third."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.adapters import initial_spellings, initial_table, parse_config
from catalog.rules import Reason
from crawler.crawl.screening import Evidence, screen
from tests.cli.conftest import TINY, Program
from tests.edges.rows import row
from tests.hubs import card, lora_files, lora_tensors, make_repo, safetensors_bytes
from tests.localhub import FaultHub
from tests.shared_data import shared

INSTRUCT = "meta-llama/Llama-3.1-8B-Instruct"
KNOWN = sorted({one.canonical for one in initial_spellings()})
SUFFIXES = (
    *(
        "-FP8",
        "-FP8-dynamic",
        "-AWQ-INT4",
        "-GPTQ-Int8",
        "-GGUF",
        "-Q4_K_M-GGUF",
        "-quantized.w4a16",
        "-4bit",
    ),
    *("-bnb-4bit", "-unsloth-bnb-4bit", "-NVFP4", "-AWQ", "-4bit-128g", "-6.0bpw-exl2", "-mlx-8bit", "_gptq"),
)


@shared
def test_the_names_of_the_row() -> None:
    for item in json.loads((row("10-unknown-mirrors") / "names.json").read_text(encoding="utf-8")):
        assert initial_table().identify(item["name"]).canonical in item["right"], item["name"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_quantised_copy_of_a_known_model_is_that_model(suffix: str) -> None:
    for names in KNOWN:
        result = initial_table().identify(f"someone/{names.rpartition('/')[2]}{suffix}")
        assert (result.canonical, result.kind) == (names, "quantised")
        assert result.evidence == f"quantised suffix {suffix}"


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "stem", ["someone/Other-7B", "unsloth/Phi-4", "someone/Llama-3.1-8B-Instruct-abliterated"]
)
def test_a_quantised_copy_of_an_unknown_model_keeps_its_name(stem: str, suffix: str) -> None:
    result = initial_table().identify(stem + suffix)
    assert (result.canonical, result.kind) == (stem + suffix, "canonical")


@given(
    st.from_regex(r"[A-Za-z0-9]{1,8}/[A-Za-z0-9.-]{0,12}[A-Za-z0-9]", fullmatch=True),
    st.sampled_from(("", *SUFFIXES)),
)
def test_a_repository_is_a_known_model_or_itself(name: str, suffix: str) -> None:
    result = initial_table().identify(name + suffix).canonical
    assert result in {None, name + suffix, *KNOWN}


@pytest.mark.parametrize(
    "word",
    ["None", "none", "NONE", "null", "", " ", "NaN", "nan", "'None'", "undefined", "N/A", "unknown", "-"],
)
def test_words_for_nothing_name_no_base(word: str) -> None:
    result = initial_table().identify(word, tags=["base_model:None", "base_model:adapter:null"])
    assert (result.canonical, result.evidence) == (None, "no base model is named")
    by_tag = initial_table().identify(word, tags=[f"base_model:adapter:{INSTRUCT}"])
    assert by_tag.canonical == INSTRUCT


@pytest.mark.parametrize("word", ["None", "null", ""])
def test_an_adapter_whose_base_is_a_word_for_nothing_has_no_base(word: str) -> None:
    document = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 4,
        "base_model_name_or_path": word,
        "target_modules": ["q_proj"],
    }
    config = parse_config(json.dumps(document).encode())
    findings = screen(Evidence(config=config, base=initial_table().identify(config.base_model)))
    assert [item.reason for item in findings if item.reason.startswith("base_")] == [Reason.BASE_MISSING]


@pytest.mark.parametrize(
    ("word", "of_card"),
    [("None", TINY), ("null", [TINY, "None"]), ("", [f"https://huggingface.co/{TINY}", TINY])],
)
def test_the_card_is_asked_where_the_configuration_says_none(
    word: str, of_card: object, hub: FaultHub, root: Path, run: Program
) -> None:
    files = lora_files(word)
    files["README.md"] = card("Some words.\n", base_model=of_card, license="mit")
    files["adapter_model.safetensors"] = safetensors_bytes(lora_tensors(seed=9))
    make_repo(root, "dan/four", files, {})
    assert run("-q", "crawl", "--any-base").exit_code == 0
    document = json.loads(run("show", "dan/four", "--json").stdout)
    assert document["base"] == TINY


def test_a_name_that_was_made_up_before_is_known_no_more(
    hub: FaultHub, root: Path, run: Program, data: Path
) -> None:
    """A catalog in which a suffix was cut: the next crawl describes the adapter again, in its old row."""
    make_repo(root, "dan/four", lora_files("someone/Other-7B-AWQ"), {})
    crawl = ("-q", "crawl", "--any-base", "--weights", "headers")
    assert run(*crawl).exit_code == 0
    with closing(sqlite3.connect(data / "catalog.db")) as catalog, catalog:
        (spellings,) = catalog.execute("SELECT count(*) FROM base_spelling").fetchone()
        catalog.execute(
            "UPDATE base_model SET canonical = 'someone/Other-7B' WHERE canonical = 'someone/Other-7B-AWQ'"
        )
        catalog.execute("UPDATE adapter SET described_with = 'before'")
    assert run(*crawl).exit_code == 0
    assert json.loads(run("show", "dan/four", "--json").stdout)["base"] == "someone/Other-7B-AWQ"
    assert (
        "No base model is known as someone/Other-7B;" in run("adapters", "--base", "someone/Other-7B").stderr
    )
    with closing(sqlite3.connect(data / "catalog.db")) as catalog:
        assert catalog.execute("SELECT count(*) FROM base_spelling").fetchone() == (spellings,)


@pytest.mark.parametrize("part", ["-4bit", "_q1", "_q4_k_m", "_q1_s", ".6.0bpw", "-fp8-dynamic", "-128g"])
def test_a_long_suffix_ends_soon_that_is_none(part: str) -> None:
    name = f"someone/Other-7B{part * (480 // len(part))}!"
    assert initial_table().identify(name).canonical is None
