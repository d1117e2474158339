"""What the recycling paper's pool is made of: ranks, scalings, target modules, sizes, owners, no-op adapters.

Counts of the published lists; nothing here was drawn, so that no number has an interval.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from catalog.adapters import BaseDims, dims
from catalog.errors import UsageError
from tools.published.quoted import Row, make_row
from tools.published.tables import MEASURED, adapter_info, idle_scores, pool_names, scores, scores_on_test

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_DRAWN, _DRAWS = 30, 20_000


def composition(folder: Path) -> list[Row]:
    """A row for each count."""
    names, info = pool_names(folder), adapter_info(folder)
    if not info:
        raise UsageError(
            f"{folder} tells of no adapter's configuration; take the published adapter_info.json."
        )
    owners = Counter(_owner(name) for name in info)
    uuids = [match[0] for name in names if (match := _UUID.search(name))]
    miners = [name for name in info if _UUID.fullmatch(name.rpartition("/")[2])]
    counts: dict[str, float] = {
        "adapters": len(names),
        "with a known configuration": len(info),
        "owners": len({_owner(name) for name in names}),
        "owners of adapters with a known configuration": len(owners),
        **{f"owner {name}": count for name, count in _sort_counts(owners)[:8]},
        "a UUID in the name": len(uuids),
        "different UUIDs in names": len(set(uuids)),
        "named by a UUID, configuration known": len(miners),
        "owners of those": len({_owner(name) for name in miners}),
        "copies of llama381binstruct_summarize": sum("llama381binstruct_summarize" in name for name in names),
        **_configurations(list(info.values())),
        **_sizes(list(info.values())),
        **_count_scored(folder, set(names)),
    }
    return [make_row("pool", name, "value", value) for name, value in counts.items()]


def _owner(name: str) -> str:
    return name.partition("/")[0]


def _sort_counts(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _configurations(info: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How many adapters have which rank, alpha, dropout and target modules."""
    ranks = Counter(int(config["r"]) for config in info)
    targets = [tuple(sorted(config["target_modules"])) for config in info]
    scales = Counter(f"{config['lora_alpha'] / config['r']:.3g}" for config in info)
    beyond = [names for names in targets if {"lm_head", "embed_tokens"} & set(names)]
    return {
        **{f"rank {rank}": count for rank, count in sorted(ranks.items())},
        "rank, mean": sum(ranks.elements()) / len(info),
        "rank, sum": sum(ranks.elements()),
        **{
            f"alpha {config}": count
            for config, count in sorted(Counter(a["lora_alpha"] for a in info).items())
        },
        **{f"alpha / rank {scale}": count for scale, count in _sort_counts(scales)},
        **{
            f"dropout {config}": count
            for config, count in _sort_counts(Counter(f"{a['lora_dropout']:g}" for a in info))
        },
        **{
            f"end of sequence {token}": count
            for token, count in _sort_counts(
                Counter(config.get("eos_token") or "not said" for config in info)
            )
        },
        "sets of target modules": len(set(targets)),
        "pairs of rank and target modules": len(
            {(config["r"], t) for config, t in zip(info, targets, strict=True)}
        ),
        "targets with lm_head or embed_tokens": len(beyond),
        **{f"targets {name}": count for name, count in _sort_counts(Counter(map(_short, targets)))[:6]},
    }


def _short(targets: Sequence[str]) -> str:
    linear = [name.removesuffix("_proj") for name in _LINEAR if name in targets]
    other_targets = [name for name in targets if name not in _LINEAR]
    return ", ".join([*(["all 7 linear"] if len(linear) == len(_LINEAR) else linear), *other_targets])


def _sizes(info: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Parameters in the layers' linear modules, and what 30 adapters drawn at random add up to in rank."""
    base = cast(BaseDims, dims(MODEL))
    sizes = []
    for config in info:
        widths = 0
        for target in config["target_modules"]:
            name = target.rpartition(".")[2]
            inputs, outputs = (base.shape(name) if name in _LINEAR else None) or (0, 0)
            widths += ((inputs or 0) + (outputs or 0)) * (1 if ".layers." in target else base.layers)
        sizes.append(config["r"] * widths)
    ranks, rng = np.array([config["r"] for config in info]), np.random.default_rng(0)
    count = min(_DRAWN, len(ranks))
    sums = [rng.choice(ranks, count, replace=False).sum() for _ in range(_DRAWS)]
    return {
        "parameters, 10⁹": sum(sizes) / 1e9,
        "bytes in bfloat16, 10⁹": 2 * sum(sizes) / 1e9,
        "parameters, mean, 10⁶": sum(sizes) / len(sizes) / 1e6,
        "parameters, median, 10⁶": float(np.median(sizes)) / 1e6,
        "parameters, largest, 10⁶": max(sizes) / 1e6,
        # Of draws without replacement the mean needs no drawing.
        "ranks of 30 at random, mean of the sum": float(count * ranks.mean()),
        "ranks of 30 at random, 5 % of sums below": float(np.quantile(sums, 0.05)),
        "ranks of 30 at random, 95 % of sums below": float(np.quantile(sums, 0.95)),
    }


def _count_scored(folder: Path, inside: set[str]) -> dict[str, float]:
    """How many adapters were scored, and how many of them score as the base does, on every task."""
    measured, tested = scores(folder, MEASURED), scores_on_test(folder)
    base = idle_scores(folder, tested)
    idle = [name for name, row in tested.items() if row and all(base.get(t) == v for t, v in row.items())]
    return {
        "adapters scored on the 100 samples": len(measured),
        "adapters scored on test": len(tested),
        "adapters scored on test, not in the pool": len(set(tested) - inside),
        "no-op adapters": len(idle),
        "no-op adapters in the pool": len(set(idle) & inside),
    }
