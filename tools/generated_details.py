"""What a page shows of a generated catalog beside its adapters, for `tools.generated_catalog --page`.

Cards with front matter, headings, a list, a table and code; configurations, headers of weights and spectra
that fit the rank and the norm of their adapter; training facts, reasons, gates; crawls with what each found,
earlier commits of what changed; scores, pools, and what a user wrote. A generator of its own draws all this:
the rows that a catalog has without `--page` are the same with it.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, func, insert, select
from sqlalchemy.orm import Session

import loradex
from catalog.database import (
    Adapter,
    AdapterReason,
    Annotation,
    AnnotationTag,
    Crawl,
    CrawlItem,
    DocumentRow,
    FingerprintRow,
    Repository,
    TableBase,
    WeightsFile,
    pool_store,
    score_store,
)
from catalog.fingerprints import FINGERPRINT_VERSION
from catalog.rules import Reason
from catalog.scores import BASE, Outcomes, Score, pack_bitmap

Rows = dict[type[TableBase], list[dict[str, Any]]]

WEEK = timedelta(weeks=1)
LAYERS, HIDDEN, KEPT_VALUES = 32, 2048, 7
# The modules of each layer with the rows of their B, and the norm of their updates in the middle layers.
MODULES = {"self_attn.q_proj": (2048, 1.0), "self_attn.v_proj": (512, 0.6)}
ALPHA = 16
# Reasons that some adapters have, each with its part of them.
REASONS = {Reason.BASE_MISMATCH: 0.04, Reason.MODULES_TO_SAVE: 0.06, Reason.UNKNOWN_TENSOR: 0.02}
GATED_PART = 0.02
# The part of the files with the tensors of an earlier one of the same rank.
COPIED_PART = 0.01
# The weeks before NOW in which the crawls began, and the part of the repositories that each met last.
CRAWLS = {4: 0.9, 3: 0.05, 1: 0.03, 0: 0.02}
# What the crawls after the first found, each with its part.
OUTCOMES = {"new": 0.5, "changed": 0.35, "gone": 0.07, "failed": 0.05, "quarantined": 0.03}
TASKS = ("arc_easy", "boolq", "hellaswag", "openbookqa", "piqa", "rte", "sciq", "winogrande")
# Adapters with scores, those with outcomes of items among them, and items.
SCORED, ANSWERED, ITEMS = 400, 40, 500
# How a pool is chosen, by its name.
POOLS: dict[str, dict[str, Any]] = {
    "random-30": {"by": "random", "k": 30},
    "publishable-12": {"by": "rank", "k": 12, "use": "publish"},
    "two": {"by": "random", "k": 2, "where": "rank:8"},
}
CARD = """---
base_model: {base}
library_name: peft
{license}datasets:
- {words[3]}
---

# {words[0]} {words[1]} {words[2]}

{body}

## Training

| learning rate | epochs | batch size |
|---|---|---|
| {training[learning_rate]} | {training[epochs]} | {training[batch_size]} |

- trained on `{words[3]}`
- rank {rank}, alpha {alpha}

```python
model = PeftModel.from_pretrained(base, "{name}")
```
"""


class Details:
    """What a page shows of the adapters of a catalog, made for one batch after the other.

    Args:
        count: The adapters of the catalog, from which all is drawn.
        now: When the newest crawl began.
        bases: The names of the base models by their keys.
    """

    def __init__(self, count: int, now: datetime, bases: Mapping[int, str]) -> None:
        self._generator = np.random.default_rng([count, 1])
        self._now, self._bases = now, bases
        self._changed: list[dict[str, Any]] = []
        self._position = 0
        # The adapter that the newest file of a rank has its tensors of.
        self._newest: dict[int, int] = {}
        modules = sorted(f"{layer}.{name}" for layer in range(LAYERS) for name in MODULES)
        layers = np.array([int(name.partition(".")[0]) for name in modules])
        sizes = np.array([MODULES[name.partition(".")[2]][1] for name in modules])
        self._profile = sizes * (0.4 + np.sin(np.pi * (layers + 1) / (LAYERS + 1)))

    def add_shared(self, engine: Engine, ranks: Sequence[int]) -> None:
        """Writes the configurations and the crawls, before the batches."""
        configs = [_config(base, rank) for base in self._bases.values() for rank in ranks]
        crawls = [_crawl(number, self._now - weeks * WEEK) for number, weeks in enumerate(CRAWLS, 1)]
        with engine.begin() as connection:
            rows = [{"digest": _oid(content), "content": content} for content in configs]
            connection.execute(insert(DocumentRow), rows)
            connection.execute(insert(Crawl), crawls)

    def add_to(self, rows: Rows) -> Rows:
        """The rows of a batch with what belongs to them, in an order in which they can be written."""
        adapters, repositories = rows[Adapter], rows[Repository]
        documents, reasons, items = [], [], []
        spectra = self._spectra(adapters)
        for adapter, repository, file, fingerprint, spectrum in zip(
            adapters, repositories, rows[WeightsFile], rows[FingerprintRow], spectra, strict=True
        ):
            config = _config(self._bases[adapter["base_model_id"]], adapter["rank"])
            adapter["training"] = self._training()
            card = self._card(adapter, repository).encode()
            documents.append({"digest": _oid(card), "content": card})
            file |= _weights(adapter["rank"]) | {"tensor_digest": self._tensors(adapter)}
            fingerprint["spectrum"] = spectrum.tobytes()
            adapter |= {
                "card_digest": _oid(card), "config_digest": _oid(config), "task_type": "CAUSAL_LM",
                "scaling": ALPHA / adapter["rank"], "parameters": _parameters(adapter["rank"]),
                "files": [
                    {"name": "README.md", "size": len(card), "digest": _oid(card)},
                    {"name": "adapter_config.json", "size": len(config), "digest": _oid(config)},
                    {"name": adapter["weights_name"], "size": file["size"], "digest": file["digest"]},
                ],
            }  # fmt: skip
            repository["gated"] = "auto" if self._generator.random() < GATED_PART else None
            reasons += self._reasons(adapter)
            items.append(self._item(adapter, repository))
        return {DocumentRow: documents, **rows, AdapterReason: reasons, CrawlItem: items}

    def add_history(self, engine: Engine) -> None:
        """Writes the commits before of what a crawl found changed, after the batches."""
        with engine.begin() as connection:
            newest = connection.scalar(select(func.max(Adapter.id))) or 0
            rows = [{**row, "id": newest + place} for place, row in enumerate(self._changed, 1)]
            if rows:
                connection.execute(insert(Adapter), rows)

    def _spectra(self, adapters: Sequence[dict[str, Any]]) -> NDArray[np.float32]:
        """The norm of B A and its first singular values of each module, (adapters, modules, 8): the norms lie
        on an arc over the layers and make the adapter's, the values fall by a power of their own.
        """
        draw, modules = self._generator, len(self._profile)
        ranks = np.array([row["rank"] for row in adapters])
        norms = self._profile * np.exp(0.15 * draw.standard_normal((len(adapters), modules)))
        wanted = np.array([row["norm"] * row["rank"] / ALPHA for row in adapters])
        norms *= (wanted / np.linalg.norm(norms, axis=1))[:, None]
        ratio = np.exp(-2 * draw.uniform(0.1, 0.8, norms.shape))
        # The squares are a geometric series that has as many terms as the rank.
        first = norms * np.sqrt((1 - ratio) / (1 - ratio ** ranks[:, None]))
        values = first[..., None] * np.sqrt(ratio[..., None]) ** np.arange(KEPT_VALUES)
        return np.concatenate([norms[..., None], values], axis=2).astype("<f4")

    def _tensors(self, adapter: dict[str, Any]) -> str:
        """A digest of tensors, sometimes that of another adapter of the rank, which differs in metadata."""
        number, before = adapter["id"], self._newest.get(adapter["rank"])
        if before is not None and self._generator.random() < COPIED_PART:
            number = before
        self._newest[adapter["rank"]] = number
        return hashlib.sha256(f"tensors {number}".encode()).hexdigest()

    def _training(self) -> dict[str, Any]:
        rate, epochs, size = self._generator.integers(5, size=3).tolist()
        return {
            "learning_rate": (1e-5, 5e-5, 1e-4, 2e-4, 5e-4)[rate],
            "epochs": 1.0 + epochs,
            "batch_size": 2**size,
            "optimizer": "adamw_torch",
        }

    def _card(self, adapter: dict[str, Any], repository: dict[str, Any]) -> str:
        license_ = f"license: {adapter['license']}\n" if adapter["license"] else ""
        return CARD.format(
            base=self._bases[adapter["base_model_id"]],
            license=license_,
            words=adapter["card_text"].split(maxsplit=4),
            body=adapter["card_text"],
            name=repository["name"],
            **{key: adapter[key] for key in ("training", "rank", "alpha")},
        )

    def _reasons(self, adapter: dict[str, Any]) -> list[dict[str, Any]]:
        drawn = self._generator.random(len(REASONS)) < list(REASONS.values())
        found = [reason for reason, has in zip(REASONS, drawn.tolist(), strict=True) if has]
        if adapter["license"] is None:
            found.append(Reason.LICENSE_MISSING)
        if Reason.MODULES_TO_SAVE in found:
            adapter["partial"] = [Reason.MODULES_TO_SAVE.value]
        return [
            {"adapter_id": adapter["id"], "reason": reason.value, "position": place, "detail": "generated"}
            for place, reason in enumerate(found)
        ]

    def _item(self, adapter: dict[str, Any], repository: dict[str, Any]) -> dict[str, Any]:
        """What the newest crawl that met a repository found; the repository says so too."""
        draw = self._generator
        place = int(draw.choice(len(CRAWLS), p=list(CRAWLS.values())))
        began = [self._now - weeks * WEEK for weeks in CRAWLS]
        outcome = "new" if place == 0 else str(draw.choice(list(OUTCOMES), p=list(OUTCOMES.values())))
        is_new = outcome == "new"
        repository |= {
            "first_seen": began[place if is_new else 0], "last_seen": began[place],
            "gone_at": began[place] if outcome == "gone" else None,
        }  # fmt: skip
        if outcome == "changed":
            before = {"commit": f"{10**12 + adapter['id']:040x}", "current": False}
            if draw.random() < 1 / 3:
                before["license"] = "mit" if adapter["license"] != "mit" else "apache-2.0"
            self._changed.append({**adapter, **before})
        self._position += 1
        error = {"failed": "timeout", "quarantined": "duplicate_id"}.get(outcome)
        return {
            "crawl_id": 1 + place, "position": self._position, "hub_id": repository["hub_id"],
            "name": repository["name"], "outcome": outcome, "error": error,
            "detail": error and "generated",
        }  # fmt: skip


def add_annotations(engine: Engine, count: int) -> None:
    """Writes tags, notes and hidden marks about some of the first `count` adapters."""
    generator = np.random.default_rng([count, 2])
    marked = generator.permutation(count)[: min(300, count // 4)] + 1
    tags, notes = [], []
    for place, number in enumerate(marked.tolist()):
        key = {"hub_id": f"{number:024x}", "subfolder": ""}
        if place % 3:
            tags.append(key | {"tag": ("to try", "baseline", "for the report")[place % 7 % 3]})
        if place % 3 == 0:
            notes.append(key | {"note": f"Note {place}: compare it again.", "hidden": place % 6 == 0})
    with engine.begin() as connection:
        if tags:
            connection.execute(insert(AnnotationTag), tags)
        if notes:
            connection.execute(insert(Annotation), notes)


def add_scores(engine: Engine, count: int) -> None:
    """Writes scores of the base model and of some of the first `count` adapters, of a few with outcomes."""
    generator = np.random.default_rng([count, 3])
    with Session(engine) as session:
        first = select(Repository.name).order_by(Repository.id).limit(min(SCORED, count))
        subjects = [BASE, *session.scalars(first)]
        skills = np.append(0.0, 0.08 * generator.standard_normal(len(subjects) - 1))
        chances = generator.uniform(0.35, 0.7, len(TASKS))
        scores = []
        for place, (subject, skill) in enumerate(zip(subjects, skills.tolist(), strict=True)):
            for task, chance in zip(TASKS, chances.tolist(), strict=True):
                right = generator.random(ITEMS) < np.clip(chance + skill, 0.02, 0.98)
                items = hashlib.sha256(task.encode()).hexdigest()
                outcomes = Outcomes(items, pack_bitmap(right)) if place <= ANSWERED else None
                value = float(right.mean())
                scores.append(
                    Score(subject, task, "valid", "accuracy", value, ITEMS, "generated", "", outcomes)
                )
        score_store.save_scores(session, scores)
        session.commit()


def add_pools(engine: Engine, data: Path, now: datetime) -> None:
    """Writes the pools that the catalog of a data folder has adapters for."""
    with loradex.open(data) as catalog, Session(engine) as session:
        for name, options in POOLS.items():
            pool = catalog.select(name, dry_run=True, **options)
            pool_store.save_pool(session, pool.manifest, now)
        session.commit()


def _crawl(number: int, began: datetime) -> dict[str, Any]:
    asked = {
        "hub": "https://huggingface.co", "queries": [[["peft"], True]], "since": None, "limit": None,
        "weights": "stream", "rules": "ours", "described_with": "",
        "fingerprint_version": FINGERPRINT_VERSION,
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    return {
        "id": number, "listing": digest, "scope": digest, "asked": asked, "state": "complete",
        "started_at": began, "finished_at": began + timedelta(hours=1), "watermark": began,
        "api_requests": 1000 // number, "resolver_requests": 200_000 // number, "bytes": 10**12 // number,
        "seconds": 3600.0 / number,
    }  # fmt: skip


def _config(base: str, rank: int) -> bytes:
    targets = [name.rpartition(".")[2] for name in MODULES]
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": rank,
        "lora_alpha": ALPHA, "target_modules": targets, "lora_dropout": 0.0, "bias": "none",
    }  # fmt: skip
    return json.dumps(config, indent=2).encode()


@cache
def _weights(rank: int) -> dict[str, Any]:
    """The header and the size of a weights file of this rank."""
    tensors, end = {}, 0
    for layer in range(LAYERS):
        for name, (rows, _) in MODULES.items():
            for factor, shape in {"lora_A": [rank, HIDDEN], "lora_B": [rows, rank]}.items():
                begin, end = end, end + 2 * shape[0] * shape[1]
                key = f"base_model.model.model.layers.{layer}.{name}.{factor}.weight"
                tensors[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    content = json.dumps(tensors).encode()
    header = zlib.compress(len(content).to_bytes(8, "little") + content)
    return {"header": header, "size": 8 + len(content) + end}


def _parameters(rank: int) -> int:
    return sum(LAYERS * rank * (HIDDEN + rows) for rows, _ in MODULES.values())


def _oid(content: bytes) -> str:
    """The name that git gives these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
