"""`loradex.engines` and `runs_in`: the engines that read PEFT adapters, and which run one as PEFT does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from catalog.adapters import Engine, engine_facts, load_engines, read_folder, verdicts
from catalog.adapters import EngineVerdict as EngineVerdict
from catalog.settings import Settings
from loradex.arguments import check_arguments
from loradex.members import settings_of
from loradex.rows import Rows

if TYPE_CHECKING:
    from loradex.catalog import Catalog


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
        catalog: Whose data folder may hold an engines.toml of newer rules, used in place of loradex's own.

    Raises:
        UsageError: That file is not a table of engines.

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
        for engine in _rules(catalog)
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
        UsageError: The engines.toml in the data folder is not a table of engines.

    Example:
        >>> [row.option for row in loradex.runs_in("merged") if row.engine == "vllm"]
        ['--max-lora-rank 32']
    """
    adapter = read_folder(Path(folder))
    facts = engine_facts(adapter.config, adapter.spec)
    return Rows(verdicts(facts, _rules(catalog)), EngineVerdict)


def _rules(catalog: Catalog | Settings | None) -> tuple[Engine, ...]:
    settings = settings_of(catalog)
    return load_engines(None if settings is None else settings.engines)
