"""Names of base models in the wild, and what they mean."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.adapters import BaseSpelling, BaseTable, bases, initial_spellings
from catalog.errors import UsageError
from tests.shared_data import index, shared

INSTRUCT = "meta-llama/Llama-3.1-8B-Instruct"
TABLE = BaseTable(initial_spellings())
CACHE = "/root/.cache/huggingface/hub/models--meta-llama--Llama-3.1-8B-Instruct"


@pytest.mark.parametrize(
    ("raw", "canonical", "kind", "evidence"),
    [
        pytest.param(INSTRUCT, INSTRUCT, "canonical", "spelling table", id="case-70-canonical"),
        pytest.param(
            "meta-llama/Meta-Llama-3.1-8B-Instruct",
            INSTRUCT,
            "renamed",
            "spelling table",
            id="case-70-renamed",
        ),
        pytest.param(
            "NousResearch/Meta-Llama-3.1-8B-Instruct",
            INSTRUCT,
            "mirror",
            "spelling table",
            id="case-70-mirror",
        ),
        pytest.param(
            "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit",
            INSTRUCT,
            "quantised",
            "spelling table",
            id="case-70-quantised",
        ),
        pytest.param(
            "unsloth/meta-llama-3.1-8b-instruct-unsloth-bnb-4bit",
            INSTRUCT,
            "quantised",
            "spelling table",
            id="case-70-unsloth",
        ),
        pytest.param(
            "meta-llama/meta-llama-3.1-8b-instruct",
            INSTRUCT,
            "case",
            "spelling table",
            id="case-70-lower-case",
        ),
        pytest.param(
            "Meta-Llama/LLAMA-3.1-8B-instruct",
            INSTRUCT,
            "case",
            "case-insensitive match of " + INSTRUCT,
            id="case-70-mixed-case",
        ),
        pytest.param(
            INSTRUCT + "-GPTQ-Int4", INSTRUCT, "quantised", "quantised suffix -GPTQ-Int4", id="case-70-suffix"
        ),
        pytest.param(
            "a/B-7B-bnb-4bit",
            "a/B-7B-bnb-4bit",
            "canonical",
            "not in the spelling table, taken as written",
            id="case-70-suffix-of-unknown",
        ),
        pytest.param(
            "/nfs/hub/Meta-Llama-3.1-8B-Instruct/",
            INSTRUCT,
            "local_path",
            "local path ends in Meta-Llama-3.1-8B-Instruct",
            id="case-70-path",
        ),
        pytest.param(
            f"{CACHE}/snapshots/0e9e39f249a16976918f6564b8830bc894c89659",
            INSTRUCT,
            "local_path",
            f"local path ends in {INSTRUCT}",
            id="case-70-cache",
        ),
        pytest.param(
            CACHE, INSTRUCT, "local_path", f"local path ends in {INSTRUCT}", id="case-70-cache-folder"
        ),
        pytest.param(
            "C:\\llm\\Llama-2-7b-hf",
            "meta-llama/Llama-2-7b-hf",
            "local_path",
            "local path ends in Llama-2-7b-hf",
            id="case-70-windows",
        ),
        pytest.param(
            "Llama-3.1-8B-Instruct", INSTRUCT, "local_path", "name without an owner", id="case-70-no-owner"
        ),
        pytest.param("./flan", None, "local_path", "local path", id="case-70-relative"),
        pytest.param("~/models/mine", None, "local_path", "local path", id="case-70-home"),
        pytest.param("models/llama-13b", None, "local_path", "local path", id="case-70-models-folder"),
        pytest.param("out/sft/checkpoint-100", None, "local_path", "local path", id="case-70-checkpoint"),
        pytest.param("checkpoint-100", None, "local_path", "local path", id="case-70-bare-checkpoint"),
        pytest.param("../Llama", None, "local_path", "local path", id="case-70-parent"),
        pytest.param("a model of mine", None, "local_path", "local path", id="case-70-words"),
        pytest.param(
            "https://huggingface.co/" + INSTRUCT,
            INSTRUCT,
            "case",
            "case-insensitive match of " + INSTRUCT,
            id="address",
        ),
        pytest.param(
            "gpt2", "gpt2", "canonical", "not in the spelling table, taken as written", id="unlisted-old"
        ),
        pytest.param(
            "a/B-7B", "a/B-7B", "canonical", "not in the spelling table, taken as written", id="unlisted"
        ),
        pytest.param(None, None, "local_path", "no base model is named", id="case-70-null"),
        pytest.param("  ", None, "local_path", "no base model is named", id="case-70-blank"),
    ],
)
def test_identify(raw: str | None, canonical: str | None, kind: str, evidence: str) -> None:
    result = TABLE.identify(raw)
    assert (result.canonical, result.kind, result.evidence, result.raw) == (canonical, kind, evidence, raw)


def test_tags_help_where_the_words_say_nothing() -> None:
    tags = ["base_model:a/B", f"base_model:adapter:{INSTRUCT}", "base_model:adapter:/home/x", "peft"]
    assert TABLE.identify(None, tags=tags).canonical == INSTRUCT
    assert TABLE.identify(None, tags=tags).evidence == f"tag base_model:adapter:{INSTRUCT}"
    by_path = TABLE.identify("/home/me/mine", tags=tags)
    assert (by_path.canonical, by_path.kind, by_path.raw) == (INSTRUCT, "local_path", "/home/me/mine")
    assert TABLE.identify("a/C", tags=tags).canonical == "a/C"


def test_spellings_of_a_known_base() -> None:
    result = TABLE.spellings("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit")
    assert result[0] == INSTRUCT
    assert list(result[1:]) == sorted(result[1:])
    assert {"meta-llama/Meta-Llama-3.1-8B-Instruct", "meta-llama/meta-llama-3.1-8b-instruct"} <= set(result)
    assert not any("Instruct" not in name and "instruct" not in name for name in result)
    assert TABLE.spellings(INSTRUCT) == result


def test_a_copy_that_nobody_listed_is_a_spelling_where_it_is_asked_for() -> None:
    result = TABLE.spellings("someone/Llama-3.1-8B-Instruct-GGUF")
    assert result[0] == INSTRUCT
    assert set(result) - set(TABLE.spellings(INSTRUCT)) == {"someone/Llama-3.1-8B-Instruct-GGUF"}
    assert TABLE.spellings("/kaggle/input/llama-3.1/transformers/8b-instruct/2") == TABLE.spellings(INSTRUCT)
    assert TABLE.spellings(INSTRUCT.upper()) == TABLE.spellings(INSTRUCT)


def test_spellings_of_an_unlisted_base_are_derived() -> None:
    assert TABLE.spellings("a/B-7B") == (
        "a/B-7B",
        "a/b-7b",
        "unsloth/B-7B",
        "unsloth/B-7B-bnb-4bit",
        "unsloth/B-7B-unsloth-bnb-4bit",
        "unsloth/b-7b",
        "unsloth/b-7b-bnb-4bit",
        "unsloth/b-7b-unsloth-bnb-4bit",
    )


def test_rows_of_a_user_extend_the_table() -> None:
    rows = [
        *initial_spellings(),
        BaseSpelling(INSTRUCT, "/data/llama", "local_path"),
        BaseSpelling("a/B", "c/D", "mirror"),
    ]
    table = BaseTable(rows)
    assert table.identify("/data/llama").canonical == INSTRUCT
    assert "/data/llama" in table.spellings(INSTRUCT)
    assert table.spellings("a/B") == ("a/B", "c/D")


def test_a_user_may_say_that_a_known_name_is_another_base() -> None:
    table = BaseTable([*initial_spellings(), BaseSpelling("a/B", INSTRUCT, "mirror")])
    assert table.identify(INSTRUCT).canonical == "a/B"


def test_a_short_name_of_two_bases_tells_nothing() -> None:
    table = BaseTable([BaseSpelling("a/X", "a/X", "canonical"), BaseSpelling("b/X", "b/X", "canonical")])
    assert table.identify("/disk/X").canonical is None


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UsageError):
        BaseSpelling("a/B", "c/D", "cousin")  # type: ignore[arg-type]  # what a database row may hold


def test_the_seeds_contradict_each_other_nowhere() -> None:
    rows = initial_spellings()
    assert len({row.spelling for row in rows}) == len(rows)
    folded: dict[str, set[str]] = {}
    for row in rows:
        folded.setdefault(row.spelling.casefold(), set()).add(row.canonical)
    assert [name for name, canonical in folded.items() if len(canonical) > 1] == []


def test_dimensions_and_licences() -> None:
    dims = bases.dims(INSTRUCT)
    assert dims == bases.BaseDims(4096, 32, 4096, 1024, 14336, 128256, 128, "llama")
    assert dims.shape("v_proj") == (4096, 1024)
    assert dims.shape("down_proj") == (14336, 4096)
    assert dims.shape("lm_head") == (4096, None)
    assert dims.shape("fc_in") is None
    assert bases.license_of_base(INSTRUCT) == "llama3.1"
    assert (bases.license_of_base("a/B"), bases.dims("a/B")) == (None, None)
    # 2,621,440 numbers a rank on all seven linear modules.
    widths = [
        dims.shape(name)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    ]
    assert 32 * sum((a or 0) + (b or 0) for a, b in (pair for pair in widths if pair)) == 2_621_440


@given(
    st.none() | st.text(max_size=60), st.lists(st.text(max_size=40).map("base_model:".__add__), max_size=3)
)
def test_any_text_gives_an_identity(raw: str | None, tags: list[str]) -> None:
    assert TABLE.identify(raw, tags=tags).raw == raw


FAMILIES = {
    "Llama-3.1-8B": {"meta-llama/Llama-3.1-8B", INSTRUCT},
    "Llama-3.1-70B": {"meta-llama/Llama-3.1-70B-Instruct"},
    "Llama-3-8B": {"meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct"},
    "TinyLlama": {"TinyLlama/TinyLlama-1.1B-Chat-v1.0"},
}


@shared
def test_the_wild_base_models_are_of_the_family_that_the_index_says() -> None:
    for row in index("wild"):
        result = TABLE.identify(row["base_model"])
        family = row["base_family"]
        if family in FAMILIES:
            assert result.canonical in FAMILIES[family], row["dir"]
        elif family == "Llama-3.2":
            assert (result.canonical or "").startswith("meta-llama/Llama-3.2-"), row["dir"]
        elif row["base_model"] is None:
            assert result.canonical is None
