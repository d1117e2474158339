"""`loradex.engines`, `runs_in` and `normalise`: which engines run an adapter as PEFT does, and how all do."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from catalog.adapters import (
    CONFIG_NAME,
    count_verdicts,
    engine_facts,
    read_engine_facts,
    read_folder,
    verdicts,
)
from catalog.adapters import EngineCount as EngineCount
from catalog.adapters import EngineVerdict as EngineVerdict
from catalog.errors import NotFoundError
from catalog.settings import Settings
from loradex.arguments import check_arguments
from loradex.members import load_folded, read_engines, split_layers
from loradex.progress import ProgressOption, ProgressStep, reporting
from loradex.rows import Rows

if TYPE_CHECKING:
    from loradex.catalog import Catalog
    from merging.static import NormaliseReport


@dataclass(frozen=True)
class EngineRow:
    """An engine at the version that its rules were read from, and where.

    Without its option it takes ranks up to `default_rank`, at all up to `rank_limit`; None is no limit.
    """

    engine: str
    title: str
    version: str
    default_rank: int | None
    rank_limit: int | None
    option: str
    source: str


@check_arguments
def engines(catalog: Catalog | Settings | None = None) -> Rows[EngineRow]:
    """The engines that the table of rules knows.

    Args:
        catalog: With the rules that it was opened with, or those of an engines.toml in its data folder, in
            place of loradex's own.

    Raises:
        UsageError, NotFoundError: The file of rules is not a table of engines, or missing.

    Example:
        >>> [row.engine for row in loradex.engines() if row.default_rank == 16]
        ['vllm']
    """
    rows = (
        EngineRow(
            engine.name,
            engine.title,
            engine.version,
            engine.rank_default or None,
            engine.rank_limit or None,
            engine.rank_option,
            engine.source,
        )
        for engine in read_engines(catalog)
    )
    return Rows(rows, EngineRow)


@check_arguments
def runs_in(folder: str | Path, catalog: Catalog | Settings | None = None) -> Rows[EngineVerdict]:
    """Which engines compute with the adapter in a folder what PEFT computes, and why others do not.

    Args:
        folder: An adapter as PEFT saves it; its configuration and the header of its weights are read.
        catalog: As for `engines`.

    Returns:
        A row an engine: `runs`, the `reasons` why not, the `remedies` ("normalise", "fold", "leave-out",
        "gguf") and the `option` that the engine must be started with.

    Raises:
        NotFoundError: The folder contains no adapter.
        ConfigError, WeightsError: Its files cannot be read.
        UsageError: The file of rules is not a table of engines.

    Example:
        >>> [row.option for row in loradex.runs_in("merged") if row.engine == "vllm"]
        ['--max-lora-rank 32']
    """
    adapter = read_folder(Path(folder))
    facts = engine_facts(adapter.config, adapter.spec)
    return Rows(verdicts(facts, read_engines(catalog)), EngineVerdict)


@check_arguments
def count_engines(folder: str | Path, catalog: Catalog | Settings | None = None) -> Rows[EngineCount]:
    """How many of the adapters below a folder each engine runs as PEFT does, and why not the others.

    Args:
        folder: It is searched for adapter_config.json. Where one has no adapter_model.safetensors beside it,
            the configuration alone decides, and what it does not decide is not known.
        catalog: As for `engines`.

    Returns:
        A row an engine: `runs`, `runs_not`, `unknown`, and how often there is each reason.

    Raises:
        NotFoundError: `folder` is not a folder that can be read.
        UsageError, NotFoundError: The file of rules is not a table of engines, or missing.

    Example:
        >>> [row.runs_not for row in loradex.count_engines("out") if row.engine == "peft"]
        [0]
    """
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise NotFoundError(
            f"{folder} cannot be searched for adapters: {error.strerror or error}."
        ) from error
    folders = sorted(path.parent for path in Path(folder).rglob(CONFIG_NAME))
    counts = count_verdicts(map(read_engine_facts, folders), read_engines(catalog))
    return Rows(counts, EngineCount)


@check_arguments
def normalise(
    adapter: str | Path,
    *,
    out: str | Path,
    dtype: str | None = None,
    without: str | Collection[str] = (),
    heads: str | None = None,
    base: str | None = None,
    rank: int | None = None,
    overwrite: bool = False,
    catalog: Catalog | Settings | None = None,
    progress: ProgressOption = False,
) -> NormaliseReport:
    """The adapter in a folder, written to `out` in the form that every engine reads.

    The update stays the same. It gets one rank (8, 16, 32, 64, 128, 256, 320, 512 or the next multiple of 16)
    and `lora_alpha` equal to it: ranks are filled up with zeros, scalings, rsLoRA and patterns folded into B.
    Tensors have PEFT's names. Where the base model's modules are known, q, k and v, gate and up, and all
    layers get zero factors if others of their group have some.

    Args:
        adapter: The folder of a LoRA adapter.
        out: The folder to write. It appears complete or not at all.
        dtype: "float32", "bfloat16" or "float16"; by default that of the adapter. Scaled values are rounded
            in the shorter ones if the scaling is not a power of two.
        without: Layers, such as "lm_head", of which whole weights and factors are left out.
        heads: "first" or "average" keep an output head or embeddings that it saves whole, "drop" leaves them
            out.
        base: The base model if the configuration does not name it: an id, or a folder with its config.json.
            With a folder that has its weights in safetensors, DoRA is folded and truncated to `rank`.
        rank: Of a folded DoRA, whose update has full rank; the record has the energy that it keeps.
        overwrite: Replace what an earlier call has written to `out`.
        catalog: As for `engines`.
        progress: See `loradex.progress`.

    Returns:
        The folder, the record that normalise.json holds, and `misread`: what engines still do not run.

    Raises:
        UsageError: An argument is not valid, or the folder contains no adapter.
        MergeError: The update is not scaling * B A: DoRA without the base's weights, biases, saved layers.
        ConfigError, WeightsError: A file of the adapter cannot be used.
        StorageError: The disk refuses.

    Writes:
        adapter_config.json, adapter_model.safetensors, normalise.json and the model card as it was.

    Example:
        >>> report = loradex.normalise("first", out="portable")
        >>> {row.engine for row in loradex.runs_in(report.folder) if not row.runs}
        {'ollama'}
    """
    from merging.members import check_heads, load_member
    from merging.static import normalise as write

    check_heads(heads)

    engines = read_engines(catalog)
    with reporting(progress) as report:
        load = partial(
            load_member,
            Path(adapter),
            without=split_layers(without),
            purpose="normalised",
            heads=heads,
        )
        (member,) = load_folded([load], (base,))
        step = ProgressStep(report, "normalising")
        written = write(
            member,
            Path(out),
            dtype=dtype,
            base=base,
            rank=rank,
            overwrite=overwrite,
            engines=engines,
            progress=step.working,
        )
        for note in written.notes:
            step.note(note)
    return written
