"""What the wild uses: learning rates and ranks, as model cards and configurations of adapters tell them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from catalog.adapters import parse_config
from catalog.errors import ConfigError
from crawler.reading import MAX_CARD, parse_card

CARD_NAME, CONFIG_NAME = "README.md", "adapter_config.json"
_MAX_CONFIG = 1024 * 1024


def hyperparameters(folder: Path) -> dict[str, Any]:
    """Every stated learning rate and every rank of the LoRA adapters below a folder, sorted.

    {"cards": adapters seen, "learning_rate": [...], "rank": [...]}; an adapter is a folder with an
    adapter_config.json, and its card the README.md beside it. What cannot be read counts as silent.
    """
    rates, ranks, cards_read = [], [], 0
    for path in sorted(folder.rglob(CONFIG_NAME)):
        try:
            config = parse_config(_start(path, _MAX_CONFIG))
        except ConfigError:
            continue
        if not config.is_lora:
            continue
        cards_read += 1
        ranks.append(config.rank)
        card = path.with_name(CARD_NAME)
        training = parse_card(_start(card, MAX_CARD)).training if card.is_file() else None
        if training is not None and training.learning_rate:
            rates.append(training.learning_rate)
    return {"cards": cards_read, "learning_rate": sorted(rates), "rank": sorted(ranks)}


def _start(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        return file.read(most + 1)
