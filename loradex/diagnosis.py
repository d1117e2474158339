"""`loradex.doctor`: what this machine can do with a base model, and what to set."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.errors import LoradexError, MemoryLimitError, UsageError
from catalog.extras import require_extra
from catalog.settings import Settings
from loradex.arguments import check_arguments
from loradex.bases import open_base
from loradex.members import settings_of
from loradex.models import BaseDtype
from loradex.progress import ProgressOption, ProgressStep, reporting
from studies.pricing import LOCAL_MODEL

if TYPE_CHECKING:
    from loradex.catalog import Catalog
    from merging.model import LoadedBase

FORMAT = "loradex-doctor/1"
PACKAGES = ("loradex", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors")
RANK, BATCH = 16, 8
# Differences of log p a token up to which trees are as good as each text alone, by size of the data type.
_ROUNDING = {2: 0.4, 4: 2.4e-4, 8: 2.4e-4}


@dataclass(frozen=True)
class DoctorReport:
    """What a machine can do with a base model.

    `machine` has the system, the device and its memory in bytes; `model` the base model's sizes. `measures`
    has what was measured: `load_seconds`, `read_tokens_per_second`, `tree_speedup` (against each text alone),
    `tree_difference` (the largest, nats a token), `tree_right`, `generated_tokens_per_second`,
    `adapter_bytes` (rank 16, all linear layers), `adapters_resident`, `largest_batch` (rows of 128 tokens),
    `step_seconds` (rank 16, 8 examples) and the `step_tokens` of these examples. `skipped` says why something
    was not measured, and `advice` what to set. It names no folder and no user.
    """

    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    model: Mapping[str, Any]
    measures: Mapping[str, Any]
    skipped: Mapping[str, str] = field(default_factory=dict)
    advice: Mapping[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The report as plain values, as the command prints it."""
        return {"format": FORMAT, **asdict(self)}


@check_arguments
def doctor(
    base: str | Path | None = None,
    *,
    device: str = "cpu",
    dtype: BaseDtype | None = None,
    catalog: Catalog | Settings | None = None,
    progress: ProgressOption = False,
) -> DoctorReport:
    """What this machine can do with a base model, measured in a minute or so, and what to set.

    Args:
        base: As for `load_base`; by default a tiny model of random weights, which shows that everything runs.
        device, dtype, catalog: As for `load_base`.
        progress: See `loradex.progress`.

    Raises:
        UsageError: The device or data type is not available, or the model is not a causal language model.
        NotFoundError: The model does not exist.

    Example:
        >>> report = loradex.doctor()
        >>> report.measures["read_tokens_per_second"] > 0
        True
    """
    require_extra("eval", "A measurement")
    _import_libraries()
    measures: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    with reporting(progress) as report:
        step = ProgressStep(report, "measuring")
        began = time.perf_counter()
        model = _open(base, device, dtype, settings_of(catalog), report, skipped)
        if model is not None:
            if base is not None:
                measures["load_seconds"] = round(time.perf_counter() - began, 3)
            work = _measures()
            step.working(0, len(work))
            for number, (name, measure) in enumerate(work.items(), 1):
                try:
                    measures |= {key: value for key, value in measure(model).items() if value is not None}
                except LoradexError as error:
                    skipped[name] = str(error)
                step.working(number, len(work))
    if model is not None and model.device.type == "cpu":
        skipped["largest batch"] = "a system without free memory ends the process"
        if (load := os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0) > 1 + (os.cpu_count() or 1):
            skipped["speed of an idle machine"] = (
                f"{load:.0f} processes want its {os.cpu_count()} processors; times are longer by as much"
            )
    return DoctorReport(
        versions=_versions(),
        machine=_machine(model, device),
        model={} if model is None else _model(model, base),
        measures=measures,
        skipped=skipped,
        advice=_advice(model, measures),
    )


def _import_libraries() -> None:
    """Imports what loading a model needs, whose time is not that of the model."""
    import peft  # noqa: F401
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401


def _open(
    base: str | Path | None,
    device: str,
    dtype: BaseDtype | None,
    settings: Settings | None,
    report: Callable[..., None],
    skipped: dict[str, str],
) -> LoadedBase | None:
    """The model to measure; None if it does not fit, with the reason in `skipped`."""
    if base is None:
        from merging.learning import random_base

        if dtype in ("8bit", "4bit"):
            raise UsageError(f"A tiny model of random weights is not loaded in {dtype}; give a `base`.")
        skipped["speed of a model"] = "no `base` is given: speeds are those of a tiny one of random weights"
        return random_base(device, dtype)
    try:
        return open_base(str(base), settings=settings, device=device, dtype=dtype, day=None, report=report)
    except MemoryLimitError as error:
        skipped["everything"] = str(error)
        return None


def _read(model: LoadedBase) -> dict[str, Any]:
    from merging.learning import reading_speed

    speed = reading_speed(model)
    return {
        "read_tokens_per_second": round(speed["tokens_per_second"], 1),
        "tree_speedup": round(speed["tree_speedup"], 2),
        "tree_difference": float(f"{speed['difference']:.3g}"),
        "tree_right": bool(speed["trees"] and speed["difference"] <= _ROUNDING[model.dtype.itemsize]),
    }


def _measures() -> dict[str, Callable[[LoadedBase], dict[str, Any]]]:
    """What is measured, in order."""
    from merging.learning import (
        adapter_bytes,
        adapters_that_fit,
        generating_speed,
        largest_batch,
        step_seconds,
        step_tokens,
    )

    return {
        "reading": _read,
        "generation": lambda model: {"generated_tokens_per_second": round(generating_speed(model), 1)},
        "resident adapters": lambda model: {
            "adapter_bytes": adapter_bytes(model, RANK),
            "adapters_resident": adapters_that_fit(model, RANK),
        },
        "largest batch": lambda model: {"largest_batch": largest_batch(model)},
        "training step": lambda model: {
            "step_seconds": round(step_seconds(model, RANK, BATCH), 4),
            "step_tokens": step_tokens(BATCH),
            "gradient_checkpointing": model.memory.checkpointing,
        },
    }


def _versions() -> dict[str, str]:
    import torch

    from merging.members import package_versions

    numbers = package_versions(*PACKAGES) | {"cuda": torch.version.cuda}
    return {name: number for name, number in numbers.items() if number}


def _machine(model: LoadedBase | None, device: str) -> dict[str, Any]:
    """The system and the device, without names of machines, folders and users."""
    import torch

    machine: dict[str, Any] = {
        "system": platform.system(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "gpus": torch.cuda.device_count(),
        "device": device,
    }
    if torch.cuda.is_available() and device != "cpu":
        place = model.device if model is not None else torch.device("cuda")
        machine["name"] = torch.cuda.get_device_name(place)
        machine["free_bytes"], machine["total_bytes"] = torch.cuda.mem_get_info(place)
    elif model is not None:
        from merging.learning import free_memory

        machine["free_bytes"] = free_memory(model.device)
    return machine


def _model(model: LoadedBase, base: str | Path | None) -> dict[str, Any]:
    config = model.model.config.get_text_config()
    local = base is not None and Path(base).exists()
    return {
        "name": LOCAL_MODEL if local else model.name,
        "type": config.model_type,
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "vocabulary": config.vocab_size,
        "dtype": model.quantised or str(model.dtype).removeprefix("torch."),
        "bytes": sum(values.numel() * values.itemsize for values in model.model.parameters()),
        "attention": getattr(config, "_attn_implementation", None),
    }


def _advice(model: LoadedBase | None, measures: Mapping[str, Any]) -> dict[str, str]:
    """What to set, as options of the commands."""
    import torch

    gpus = torch.cuda.device_count()
    advice = {"device": "cuda" if gpus else "cpu", "dtype": "float32"}
    if gpus:
        advice["dtype"] = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    if model is None:
        return advice | ({"device": "auto"} if gpus > 1 else {"dtype": "4bit"} if gpus else {})
    if "step_seconds" in measures:
        advice["batch"] = str(BATCH)
    if measures.get("gradient_checkpointing"):
        advice["gradient_checkpointing"] = "yes"
    return advice
