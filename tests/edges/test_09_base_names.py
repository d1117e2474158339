"""A base model as tools write it: the paths of caches, addresses, revisions, names without an owner."""

from __future__ import annotations

import json

import pytest

from catalog.adapters import BaseSpelling, BaseTable, initial_spellings, initial_table
from catalog.adapters.base_names import words
from tests.edges.rows import row
from tests.shared_data import index, shared

INSTRUCT = "meta-llama/Llama-3.1-8B-Instruct"
COMMIT = "0e9e39f249a16976918f6564b8830bc894c89659"

# One line a tool: what it writes, and the model that is meant.
WRITTEN = {
    # ModelScope keeps hub/[models/]OWNER/NAME and writes a point as three underscores.
    "/root/.cache/modelscope/hub/LLM-Research/Llama-3___2-1B-Instruct": "meta-llama/Llama-3.2-1B-Instruct",
    "/root/.cache/modelscope/hub/models/Qwen/Qwen2___5-7B-Instruct": "Qwen/Qwen2.5-7B-Instruct",
    "/root/.cache/modelscope/hub/Qwen/Qwen1___5-32B-Chat": "Qwen/Qwen1.5-32B-Chat",
    "/mnt/AI-ModelScope/Mistral-7B-Instruct-v0___2": "mistralai/Mistral-7B-Instruct-v0.2",
    "C:\\Users\\me\\.cache\\modelscope\\hub\\LLM-Research\\gemma-2-9b-it": "google/gemma-2-9b-it",
    "shakechen/Llama-2-7b-chat-hf": "meta-llama/Llama-2-7b-chat-hf",
    "https://www.modelscope.cn/models/LLM-Research/Meta-Llama-3.1-8B-Instruct/summary": INSTRUCT,
    # Kaggle: MODEL/FRAMEWORK/VARIATION/VERSION, for notebooks, with the owner, and for kagglehub.
    "/kaggle/input/llama-3.1/transformers/8b-instruct/2": INSTRUCT,
    "/kaggle/input/llama-3.2/transformers/3b-instruct/1": "meta-llama/Llama-3.2-3B-Instruct",
    "/kaggle/input/llama-3/transformers/8b-chat-hf/1": "meta-llama/Meta-Llama-3-8B-Instruct",
    "/kaggle/input/llama-2/pytorch/7b-chat-hf/1": "meta-llama/Llama-2-7b-chat-hf",
    "/kaggle/input/gemma-2/transformers/gemma-2-9b-it/2": "google/gemma-2-9b-it",
    "/kaggle/input/mistral/pytorch/7b-instruct-v0.1-hf/1": "mistralai/Mistral-7B-Instruct-v0.1",
    "/kaggle/input/models/qwen-lm/qwen2.5/transformers/7b-instruct/1": "Qwen/Qwen2.5-7B-Instruct",
    "/root/.cache/kagglehub/models/metaresearch/llama-3.1/transformers/8b/2": "meta-llama/Llama-3.1-8B",
    "https://www.kaggle.com/models/metaresearch/llama-3.1/transformers/8b-instruct": INSTRUCT,
    "/kaggle/input/llama-3-1-8b-instruct": INSTRUCT,
    # The Hub's cache, whoever the model is of.
    f"/x/hub/models--Qwen--Qwen3-8B/snapshots/{COMMIT}/": "Qwen/Qwen3-8B",
    f"C:\\hub\\models--meta-llama--Llama-2-7b-hf\\snapshots\\{COMMIT}": "meta-llama/Llama-2-7b-hf",
    "models--google--gemma-2-2b-it": "google/gemma-2-2b-it",
    f"/x/models--someone--Other-7B/snapshots/{COMMIT}": "someone/Other-7B",
    f"/x/models--unsloth--Other-7B-bnb-4bit/snapshots/{COMMIT}": "unsloth/Other-7B-bnb-4bit",
    # Folders, with owner and name put together in some way.
    "Llama3.1-8B-Instruct": INSTRUCT,
    "meta-llama_Llama-3.1-8B-Instruct": INSTRUCT,
    "meta-llama--Llama-3.1-8B-Instruct": INSTRUCT,
    "Qwen_Qwen2.5-7B-Instruct": "Qwen/Qwen2.5-7B-Instruct",
    "/mnt/mistralai__Mistral-7B-v0.1": "mistralai/Mistral-7B-v0.1",
    "/mnt/unsloth_Meta-Llama-3.1-8B-Instruct-bnb-4bit": INSTRUCT,
    "/models/llama-3.1/8b-instruct": INSTRUCT,
    "/data/Qwen2.5-3B-Instruct/original/": "Qwen/Qwen2.5-3B-Instruct",
    "D:/llm/SmolLM2-1.7B-Instruct": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "/data/Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf": INSTRUCT,
    "Llama 3.1 8B Instruct": INSTRUCT,
    "accounts/fireworks/models/llama-v3p1-8b-instruct": INSTRUCT,
    # Addresses and revisions.
    "https://huggingface.co/google/gemma-2-2b/blob/main/config.json": "google/gemma-2-2b",
    "https://huggingface.co/Qwen/Qwen3-4B?library=transformers": "Qwen/Qwen3-4B",
    "https://user:word@huggingface.co/meta-llama/Llama-3.2-1B.git": "meta-llama/Llama-3.2-1B",
    "Qwen/Qwen3-8B/tree/main": "Qwen/Qwen3-8B",
    "git@hf.co:meta-llama/Llama-3.2-1B": "meta-llama/Llama-3.2-1B",
    "https://hf.co/someone/Other-7B/resolve/main/model.safetensors": "someone/Other-7B",
    "hf://meta-llama/Llama-3.1-8B@main": "meta-llama/Llama-3.1-8B",
    f"{INSTRUCT}@main": INSTRUCT,
    f"{INSTRUCT}:0e9e39f": INSTRUCT,
    "someone/Other-7B@v1": "someone/Other-7B",
    f"'{INSTRUCT}'": INSTRUCT,
    f"{INSTRUCT}/": INSTRUCT,
}
# What looks like a known model and is somebody's own, or nothing that can be told.
OTHERS = (
    "/out/Llama-3.1-8B-Instruct/checkpoint-100",
    "/out/Llama-3.1-8B-Instruct/merged",
    "/out/Llama-3.1-8B-Instruct/20240501",
    "/out/llama-3.1-8b/instruct",
    "/out/my-Llama-3.1-8B-Instruct",
    "/out/Llama-3.1-8B-Instruct-sft",
    "/out/Llama-3.1-8B-Instruct-中文",
    "/kaggle/input/llama-3.1/transformers/my-own/1",
    "/kaggle/input/gemma/transformers/2b-it/3",
    f"/x/models--someone--Other-7B/snapshots/{COMMIT}/checkpoint-100",
    "/root/.cache/modelscope/hub/LLM-Research/Phi-3-mini",
    "https://huggingface.co/datasets/someone/words",
    "llama3.1:8b",
    "someone@example.org",
)
# Other repositories with names near to those of known models.
AS_WRITTEN = (
    f"someone/{INSTRUCT.rpartition('/')[2]}",
    f"{INSTRUCT}-evals",
    "meta-llama/Llama-3.2-11B-Vision-Instruct",
    "meta-llama/Llama-Guard-3-8B",
    "Qwen/Qwen2.5-7B-Instruct-1M",
    "Qwen/Qwen2.5-Coder-7B-Instruct",
    "Qwen/Qwen3-4B-Thinking-2507",
)


@shared
def test_the_names_of_the_row() -> None:
    for item in json.loads((row("09-base-names") / "names.json").read_text(encoding="utf-8")):
        assert initial_table().identify(item["name"]).canonical == item["base"], item["name"]


@pytest.mark.parametrize(("written", "meant"), WRITTEN.items())
def test_what_tools_write_means_the_model(written: str, meant: str) -> None:
    result = initial_table().identify(written)
    assert (result.canonical, result.raw) == (meant, written)
    assert result.evidence
    assert "\n" not in result.evidence


@pytest.mark.parametrize("written", OTHERS)
def test_a_folder_of_ones_own_is_no_known_model(written: str) -> None:
    assert initial_table().identify(written).canonical is None


@pytest.mark.parametrize("written", AS_WRITTEN)
def test_another_repository_is_taken_as_it_is_written(written: str) -> None:
    result = initial_table().identify(written)
    assert (result.canonical, result.kind) == (written, "canonical")


def test_a_revision_is_told() -> None:
    result = initial_table().identify(f"{INSTRUCT}@refs/pr/1")
    assert result.evidence == f"case-insensitive match of {INSTRUCT}, revision refs/pr/1 left out"


def test_every_known_name_is_found_in_a_folder_however_its_words_are_set_apart() -> None:
    for spelling in initial_spellings():
        short = spelling.spelling.rpartition("/")[2]
        for name in (short, short.replace("-", "_"), short.replace(".", "___"), short.lower()):
            assert initial_table().identify(f"/disk/{name}").canonical == spelling.canonical, name


def test_the_words_of_a_name_keep_numbers_apart() -> None:
    same = ("Llama-3.1-8B", "Llama3.1-8b", "llama_3_1_8b", "llama-v3p1-8b")
    assert {words(name) for name in same} == {("llama", "3", "1", "8b")}
    assert words("gemma-2-2b") != words("gemma-22b")
    assert words("Llama-3.1-8B") != words("Llama-31-8B")


def test_a_folder_that_a_user_named_says_nothing_of_others_of_its_name() -> None:
    table = BaseTable([*initial_spellings(), BaseSpelling(INSTRUCT, "/data/mine", "local_path")])
    assert table.identify("/data/mine").canonical == INSTRUCT
    assert table.identify("/elsewhere/mine").canonical is None


@shared
def test_no_real_configuration_means_less_than_it_says() -> None:
    """Of the real configurations and cards one more is known: Kaggle's path in a card."""
    by_name = {item[key] for item in index("wild") for key in ("base_model", "card_base_model")}
    result = {name: initial_table().identify(name) for name in by_name if isinstance(name, str)}
    read = {
        name: item.canonical for name, item in result.items() if item.kind == "local_path" and item.canonical
    }
    assert {name for name, item in result.items() if item.canonical is None} == {
        "./flan",
        "/root/autodl-tmp/google/flan-t5-xxl",
    }
    assert read == {
        "/kaggle/input/llama-3.1/transformers/8b-instruct/2": INSTRUCT,
        "/nfs/huggingfacehub/Meta-Llama-3.1-8B/": "meta-llama/Llama-3.1-8B",
        "/root/model/Meta-Llama-3-8B": "meta-llama/Meta-Llama-3-8B",
    }
