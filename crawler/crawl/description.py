"""The content of one adapter folder → the record that the catalog stores; no network, no disk."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from catalog.adapters import (
    PARTIAL,
    AdapterConfig,
    AdapterRecord,
    AdapterSpec,
    BaseIdentity,
    BaseTable,
    DocumentRecord,
    Finding,
    WeightsHealth,
    WeightsRecord,
    engine_columns,
    engine_facts,
    names_nothing,
)
from catalog.adapters import bases as base_facts
from catalog.errors import ConfigError, WeightsError
from catalog.fingerprints import health_of, pattern_of
from crawler.crawl.screening import Evidence, screen
from crawler.hub import Folder, ListedRepository
from crawler.reading import Card

_Measured = tuple[WeightsHealth, str] | None
MOST_FILES = 500
# Version of the readers of configs, cards and headers and of the rules: a change that would change the rows
# of known adapters raises it, and they are described again from the catalog's content.
DESCRIBE_VERSION = 4


@dataclass(frozen=True, kw_only=True)
class Draft(Evidence):
    """One adapter folder as far as it was read; what its names and values mean is added by `findings`."""

    folder: Folder
    card: Card = field(default_factory=Card)
    config_document: DocumentRecord | None = None
    card_document: DocumentRecord | None = None
    weights: WeightsRecord | None = None


def description_digest(bases: BaseTable) -> str:
    """What an adapter's description depends on in addition to its files: the rules' version and the
    spellings."""
    spellings = [[row.canonical, row.spelling, row.kind] for row in bases.rows]
    return hashlib.sha256(json.dumps([DESCRIBE_VERSION, spellings]).encode()).hexdigest()[:16]


def describe(listed: ListedRepository, draft: Draft, bases: BaseTable, described_with: str) -> AdapterRecord:
    """The record of one adapter folder with all reasons against it."""
    identity, (pattern, measured) = _identity(listed, draft, bases), _measure(draft)
    findings = screen(_evidence(listed, draft, identity, measured))
    health, verdict = measured or (None, None)
    return AdapterRecord(
        commit=listed.commit or "",
        subfolder=draft.folder.subfolder,
        main=draft.folder.main,
        files=_files(draft),
        weights_name=None if draft.folder.weights is None else draft.folder.weights.path.rpartition("/")[2],
        base_canonical=identity.canonical,
        base_raw=identity.raw,
        base_kind=identity.kind,
        base_evidence=identity.evidence,
        described_with=described_with,
        norm=None if health is None else health.norm,
        health=verdict,
        scaling_pattern=pattern,
        partial=_partial(draft, findings),
        **_engine_fields(draft),
        license=_license(listed, draft),
        card_quality=draft.card.quality.value,
        card_text=draft.card.text,
        card_front=draft.card.front,
        training=draft.card.training.as_json(),
        config=draft.config_document,
        card=draft.card_document,
        weights=draft.weights,
        reasons=findings,
        **_config_fields(draft.config),
        **_spec_fields(draft),
    )


def findings(listed: ListedRepository, draft: Draft, bases: BaseTable) -> tuple[Finding, ...]:
    """All reasons against an adapter as far as it was read."""
    return screen(_evidence(listed, draft, _identity(listed, draft, bases), _measure(draft)[1]))


def _identity(listed: ListedRepository, draft: Draft, bases: BaseTable) -> BaseIdentity:
    """The base model by the adapter's own config, else the Hub's copy of it, else the card, else the tags."""
    config = draft.config.base_model if isinstance(draft.config, AdapterConfig) else None
    copied = None if draft.folder.subfolder else listed.config_base
    # A card may list the base under several names, or several bases: then it is ambiguous.
    of_card = {bases.canonical(name): name for name in draft.card.base_models if not names_nothing(name)}
    card = next(iter(of_card.values())) if len(of_card) == 1 else None
    names = (text for text in (config, copied, card) if not names_nothing(text))
    return bases.identify(next(names, config), tags=listed.tags)


def _evidence(
    listed: ListedRepository, draft: Draft, identity: BaseIdentity, measured: _Measured
) -> Evidence:
    canonical = identity.canonical
    return replace(
        draft,
        subfolder=draft.folder.subfolder,
        files=draft.folder.names,
        base=identity,
        dims=base_facts.dims(canonical) if canonical else None,
        base_license=base_facts.license_of_base(canonical) if canonical else None,
        card_license=_license(listed, draft),
        health=measured and measured[0],
        problems=draft.problems if draft.folder.main else (),
        card_problems=draft.card.problems,
    )


def _measure(draft: Draft) -> tuple[str | None, _Measured]:
    """The pattern of scalings, and norm and health of the values: None as far as they cannot be computed.

    Patterns that cannot be applied, and broken headers, are reasons of their own.
    """
    if draft.weights is None or not isinstance(draft.config, AdapterConfig) or not draft.config.is_lora:
        return None, None
    try:
        return pattern_of(draft.weights, draft.config), health_of(draft.weights, draft.config)
    except (ConfigError, WeightsError):
        return None, None


def _partial(draft: Draft, findings: Iterable[Finding]) -> tuple[str, ...] | None:
    """The reasons for which the norm and the vectors of B A are not those of the whole update."""
    if not isinstance(draft.spec, AdapterSpec) or not draft.spec.modules:
        return None
    return tuple(finding.reason for finding in findings if finding.reason in PARTIAL)


def _engine_fields(draft: Draft) -> dict[str, Any]:
    if not isinstance(draft.config, AdapterConfig):
        return engine_columns(None)
    spec = draft.spec if isinstance(draft.spec, AdapterSpec) else None
    return engine_columns(engine_facts(draft.config, spec))


def _license(listed: ListedRepository, draft: Draft) -> str | None:
    """The license id of the card, else of the repository's tags."""
    stated = draft.card.license_in_words or draft.card.license
    if stated is not None:
        return stated
    return next((tag.partition(":")[2] for tag in listed.tags if tag.startswith("license:")), None)


def _files(draft: Draft) -> tuple[Mapping[str, Any], ...]:
    """Name, size and hash of the files in the folder: pickles are listed and never opened.

    The number of listed files is limited, but those of the adapter are always included; the hash of the
    weights is that of their row.
    """
    folder = draft.folder
    own = (folder.config, folder.weights, folder.card)
    weights = draft.weights.digest if draft.weights is not None else None
    return tuple(
        {
            "name": file.path.rpartition("/")[2],
            "size": file.size,
            "digest": (weights if file == folder.weights else None) or file.sha256 or file.oid,
        }
        for number, file in enumerate(folder.files)
        if number < MOST_FILES or file in own
    )


def _config_fields(config: AdapterConfig | ConfigError | None) -> dict[str, Any]:
    if not isinstance(config, AdapterConfig):
        return {}
    fields: dict[str, Any] = {
        "peft_type": config.peft_type,
        "task_type": config.task_type,
        "rank": config.rank,
    }
    if config.rank is not None:
        divisor = math.sqrt(config.rank) if config.use_rslora else config.rank
        fields |= {"alpha": config.alpha, "use_rslora": config.use_rslora, "scaling": config.alpha / divisor}
    return fields


def _spec_fields(draft: Draft) -> dict[str, Any]:
    """Targets and sizes from the weights' header where it was read, targets else as the config names them."""
    if isinstance(draft.spec, AdapterSpec):
        spec = draft.spec
        return {
            "targets": spec.targets,
            "modules": len(spec.modules),
            "parameters": spec.parameters,
            "dtypes": spec.dtypes,
        }
    targets = draft.config.target_modules if isinstance(draft.config, AdapterConfig) else None
    return {"targets": (targets,) if isinstance(targets, str) else tuple(targets or ())}
