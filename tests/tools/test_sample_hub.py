"""The trained adapters of the sample Hub are those of the table that makes them; its README names them."""

from __future__ import annotations

import json

import pytest

from catalog.adapters import CONFIG_NAME, WEIGHTS_NAME
from crawler.reading import parse_card
from merging.learning.training import ALL_LINEAR
from merging.members import load_member
from tools.sample_hub import ADAPTERS, BASE, HUB, OWNER, SampleAdapter

README = (HUB / "README.md").read_text(encoding="utf-8")
FILES = {".hub.json", "README.md", CONFIG_NAME, WEIGHTS_NAME}
MOST_BYTES = 30_000_000


def test_there_are_no_other_trained_adapters() -> None:
    names = [adapter.name for adapter in ADAPTERS]
    assert names == sorted(set(names))
    assert sorted(folder.name for folder in (HUB / OWNER).iterdir()) == names
    assert f"{len(names)} LoRAs" in README


def test_they_stay_small() -> None:
    assert sum(file.stat().st_size for file in (HUB / OWNER).glob(f"*/{WEIGHTS_NAME}")) <= MOST_BYTES


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.name)
def test_a_repository_is_what_its_row_says(adapter: SampleAdapter) -> None:
    folder = HUB / OWNER / adapter.name
    assert {file.name for file in folder.iterdir()} == FILES
    config = json.loads((folder / CONFIG_NAME).read_text("utf-8"))
    assert config["base_model_name_or_path"] == BASE
    assert (config["r"], config["lora_alpha"]) == (adapter.rank, adapter.alpha)
    assert config["use_rslora"] == (adapter.variant == "rslora")
    assert adapter.targets == ALL_LINEAR or tuple(config["target_modules"]) == adapter.targets
    assert len(load_member(folder).places) == 30 * len(config["target_modules"])
    card = parse_card((folder / "README.md").read_bytes())
    assert card.quality.value == adapter.card
    assert "train.json beside" not in card.text
    [row] = [line for line in README.splitlines() if line.startswith(f"| {adapter.task} |")]
    assert f"`{OWNER}/{adapter.name}`" in row
