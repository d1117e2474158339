"""Which engines run an adapter as PEFT does: features of its files, joined with a table of rules.

The features are facts of a configuration and a weights file; the rules are data, `engines.toml`, each with
the version and the source of its engine. A newer table can be used in place of the one that comes with the
program.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from catalog.adapters.base_modules import modules_of_spelling
from catalog.adapters.config import AdapterConfig
from catalog.adapters.feature import features
from catalog.adapters.peft_config import peft_refusals
from catalog.adapters.spec import AdapterSpec, LoraModule
from catalog.errors import UsageError
from catalog.files import read_limited

Effect = Literal["refuses", "misreads", "drops"]
Kinds = frozenset[str]
Remedy = Literal["", "normalise", "fold", "leave-out", "gguf"]
_ENGINE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
RULES_NAME = "engines.toml"
# Counted up by a change that gives adapters other features: stored ones of another version are not used.
FACTS_VERSION = 1
_FORMAT = "loradex-engines/1"
_MOST_BYTES = 1024 * 1024
# Scalings that differ by less are equal: configurations write alpha / r in decimals.
_TOLERANCE = 1e-9
# The problems of a file for which some factors have no pair.
_BROKEN = frozenset(
    {
        "unpaired_factor",
        "rank_mismatch",
        "empty_tensor",
        "not_a_matrix",
        "duplicate_factor",
        "bad_dtype",
        "bad_pattern",
    }
)
_SAME_REASON = (
    "not_lora",
    "use_dora",
    "layer_replication",
    "alora",
    "lora_variant",
    "relative_init",
    "lora_bias",
)
# Every feature, and what it means.
FEATURES: Mapping[str, str] = {
    "any": "Every adapter.",
    "not_lora": "Another method than LoRA.",
    "use_dora": "DoRA: learned magnitudes of the rows of the weights.",
    "relative_init": "Its update is relative to a modified base model, as by PiSSA or OLoRA.",
    "layer_replication": "It runs on a base model with repeated layers.",
    "alora": "It is active only after certain tokens.",
    "lora_variant": "A variant whose update is not B A.",
    "lora_bias": "Its factors have biases.",
    "has_bias": "Its file contains biases of the base model.",
    "bias_setting": "Its configuration has a bias setting other than none.",
    "modules_to_save_setting": "Its configuration names modules to save.",
    "saved_weights": "Its file contains whole weights beside the factors.",
    "base_copy": "Its file contains copies of weights of the base model, as beside an adapted head.",
    "trainable_tokens": "It trains embeddings of single tokens.",
    "target_parameters": "It adapts bare parameters, such as stacked experts.",
    "target_regex": "Its target_modules are a regular expression.",
    "config_refused": "PEFT does not load its configuration.",
    "key_spelling": "Some names of its factors are not those that PEFT looks for.",
    "module_absent": "Its base model has no module for some of its factors.",
    "broken_factors": "Some factors have no partner of the same rank.",
    "mixed_ranks": "Its modules have several ranks.",
    "mixed_ranks_of_a_kind": "Modules of one kind, such as q_proj, have several ranks.",
    "rank_off_grid": "A rank is neither 8 nor a multiple of 16.",
    "scale_of_config": "The scaling of some module is not lora_alpha / r of the configuration.",
    "scale_of_modules": "Its modules have several scalings.",
    "scale_of_tensors": "The scaling of some module is not lora_alpha over the rank of its factors.",
    "scale_of_tensors_rslora": "Nor is it lora_alpha over its square root, where use_rslora is set.",
    "part_of_qkv": "Some layer adapts q_proj, k_proj or v_proj, and neither all nor q and v.",
    "up_without_gate": "Some layer adapts up_proj and not gate_proj.",
    "uneven_layers": "Some layer lacks a kind of module that another layer has.",
    "head": "It adapts lm_head.",
    "embedding": "It adapts the embedding of tokens.",
}


@dataclass(frozen=True, slots=True)
class Rule:
    """What an engine does with an adapter that has the feature `when`, in words, and what makes it run."""

    when: str
    effect: Effect
    text: str
    remedy: Remedy = ""


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine at a version, with the source of its rules.

    `ranks` are the values that its option for the largest rank takes (none: any), `rank_default` the largest
    rank without the option, `rank_limit` the largest of all; 0 where there is none.
    """

    name: str
    title: str
    version: str
    source: str
    rules: tuple[Rule, ...] = field(repr=False)
    ranks: tuple[int, ...] = ()
    rank_option: str = ""
    rank_default: int = 0
    rank_limit: int = 0

    def option_for(self, rank: int) -> str:
        """The option with the value that an adapter of this rank needs; empty if it needs none."""
        if not self.rank_option or rank <= self.rank_default:
            return ""
        return f"{self.rank_option} {next((size for size in self.ranks if size >= rank), rank)}"


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """The features of an adapter, and its largest rank; `whole` unless its weights file was not read."""

    features: tuple[str, ...] = ()
    rank: int | None = None
    whole: bool = True


@dataclass(frozen=True, slots=True)
class EngineVerdict:
    """Whether an engine computes what PEFT computes with an adapter; None if its file must be read.

    `reasons` say why not, `remedies` what makes it run, and `option` is what the engine must be started with.
    """

    engine: str
    runs: bool | None
    reasons: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()
    option: str = ""


@dataclass(frozen=True, slots=True)
class EngineCount:
    """How many adapters an engine runs as PEFT does, how many not, and of how many that is not known.

    `reasons` count those that it does not run, each reason by itself; an adapter may have several.
    """

    engine: str
    runs: int
    runs_not: int
    unknown: int
    reasons: Mapping[str, int]


def engine_facts(config: AdapterConfig, spec: AdapterSpec | None = None) -> EngineFacts:
    """What engines look at in an adapter, from its configuration and, if it was read, its weights file."""
    settings = set(_settings(config))
    if spec is None:
        names = settings | set(_config_features(config)) | set(_rank_settings(config))
        ranks = [config.rank or 0, *config.rank_pattern.values()]
        return EngineFacts(_in_order(names), max(ranks) or None, whole=False)
    names = settings | set(_file_features(config, spec)) | set(_layer_features(config, spec.modules))
    return EngineFacts(_in_order(names), max((module.rank for module in spec.modules), default=None))


def engine_columns(facts: EngineFacts | None) -> dict[str, Any]:
    """The columns of a catalog for these facts; None for an adapter without a valid configuration."""
    return {
        "engine_features": None if facts is None else facts.features,
        "engine_rank": None if facts is None else facts.rank,
        "engine_whole": None if facts is None else facts.whole,
        "engine_version": FACTS_VERSION,
    }


def verdict(engine: Engine, facts: EngineFacts) -> EngineVerdict:
    """Whether an engine runs an adapter with these features as PEFT does."""
    broken = [rule for rule in engine.rules if rule.when == "any" or rule.when in facts.features]
    reasons = [rule.text for rule in broken]
    if engine.rank_limit and (facts.rank or 0) > engine.rank_limit:
        reasons.append(f"takes ranks up to {engine.rank_limit}")
    remedies = dict.fromkeys(rule.remedy for rule in broken if rule.remedy)
    if reasons:
        return EngineVerdict(engine.name, False, tuple(reasons), tuple(remedies))
    return EngineVerdict(
        engine.name, True if facts.whole else None, option=engine.option_for(facts.rank or 0)
    )


def verdicts(facts: EngineFacts, engines: Iterable[Engine]) -> tuple[EngineVerdict, ...]:
    """The verdict of each engine."""
    return tuple(verdict(engine, facts) for engine in engines)


def count_verdicts(every: Iterable[EngineFacts | None], engines: Iterable[Engine]) -> tuple[EngineCount, ...]:
    """How many of these adapters each engine runs; None is an adapter of which nothing can be read."""
    facts = [EngineFacts(whole=False) if one is None else one for one in every]
    counts = []
    for engine in engines:
        rows = [verdict(engine, one) for one in facts]
        answers = Counter(row.runs for row in rows)
        reasons = Counter(reason for row in rows for reason in row.reasons)
        ordered = dict(sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0])))
        counts.append(EngineCount(engine.name, answers[True], answers[False], answers[None], ordered))
    return tuple(counts)


def load_engines(path: Path | None = None) -> tuple[Engine, ...]:
    """The engines of the table of rules in a file, by default of the program's own.

    Raises NotFoundError for a missing file, UsageError for one that is not such a table.
    """
    if path is None:
        return _own_engines()
    advice = "give a table of engines; without one, that of loradex is used"
    return _engines(
        read_limited(path, _MOST_BYTES, kind="a table of engines", advice=advice, error=UsageError), str(path)
    )


def rank_option(engines: Iterable[Engine] | None, name: str, rank: int) -> str:
    """The option that the engine of this name needs for a rank, empty where the rules have no such engine."""
    every = load_engines() if engines is None else engines
    return next((engine.option_for(rank) for engine in every if engine.name == name), "")


@functools.cache
def _own_engines() -> tuple[Engine, ...]:
    return _engines(files("catalog.adapters").joinpath(RULES_NAME).read_bytes(), RULES_NAME)


def _engines(data: bytes, name: str) -> tuple[Engine, ...]:
    try:
        document = tomllib.loads(data.decode("utf-8"))
        if document.get("format") != _FORMAT:
            raise ValueError(f"its format is not {_FORMAT}")
        engines = tuple(_engine(entry) for entry in document["engine"])
    except (
        AttributeError,
        UnicodeDecodeError,
        tomllib.TOMLDecodeError,
        KeyError,
        TypeError,
        ValueError,
        RecursionError,
    ) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise UsageError(f"{name} is not a table of engines: {reason}.") from error
    if len({engine.name.lower() for engine in engines}) < len(engines):
        raise UsageError(f"{name} is not a table of engines: two engines have one name.")
    return engines


def _engine(entry: Mapping[str, Any]) -> Engine:
    rules = tuple(Rule(**rule) for rule in entry.get("rule", ()))
    for rule in rules:
        if (
            rule.when not in FEATURES
            or rule.effect not in get_args(Effect)
            or rule.remedy not in get_args(Remedy)
        ):
            raise ValueError(f"{rule.when}: {rule.effect} ({rule.remedy or 'no remedy'}) is not a known rule")
    values = {key: value for key, value in entry.items() if key != "rule"}
    engine = Engine(**{**values, "ranks": tuple(entry.get("ranks", ()))}, rules=rules)
    texts = (
        engine.name,
        engine.title,
        engine.version,
        engine.source,
        engine.rank_option,
        *(r.text for r in rules),
    )
    numbers = (engine.rank_default, engine.rank_limit, *engine.ranks)
    if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
        raise TypeError(f"a field of {engine.name} has another type")
    if not _ENGINE_NAME.fullmatch(engine.name):
        raise ValueError(f"{engine.name!r} is not a name of letters, digits, dots, signs and hyphens")
    return engine


def _in_order(names: Collection[str]) -> tuple[str, ...]:
    return tuple(name for name in FEATURES if name in names)


def _config_features(config: AdapterConfig) -> Iterator[str]:
    """The features that a configuration leads to expect of its weights file."""
    own = {feature.reason for feature in features(config)}
    yield from own & {*_SAME_REASON, "trainable_tokens", "target_parameters"}
    if peft_refusals(config):
        yield "config_refused"


def _settings(config: AdapterConfig) -> Iterator[str]:
    """The features that are settings of the configuration, whatever the file contains."""
    settings = {
        "bias_setting": config.bias != "none",
        "modules_to_save_setting": bool(config.modules_to_save),
        "target_regex": isinstance(config.target_modules, str)
        and config.target_modules not in ("all-linear", "all"),
    }
    yield from (name for name, is_set in settings.items() if is_set)


def _rank_settings(config: AdapterConfig) -> Iterator[str]:
    """The features of the ranks and scalings that a configuration gives."""
    ranks = {rank for rank in (config.rank, *config.rank_pattern.values()) if rank}
    if len(ranks) > 1:
        yield "mixed_ranks"
    if any(rank != 8 and rank % 16 for rank in ranks):
        yield "rank_off_grid"
    if config.use_rslora and (config.rank or 1) > 1 and config.alpha:
        yield from ("scale_of_config", "scale_of_tensors")
    if any(alpha != config.alpha for alpha in config.alpha_pattern.values()):
        yield from ("scale_of_config", "scale_of_modules", "scale_of_tensors", "scale_of_tensors_rslora")


def _file_features(config: AdapterConfig, spec: AdapterSpec) -> Iterator[str]:
    """The features that the names and kinds of the tensors show."""
    own = {feature.reason for feature in features(config, spec)}
    yield from own & {*_SAME_REASON, "has_bias", "trainable_tokens"}
    kinds = {other.kind for other in spec.others}
    if "saved" in kinds:
        yield "saved_weights"
    if "base_copy" in kinds:
        yield "base_copy"
    if spec.of_parameters:
        yield "target_parameters"
    if spec.respelled:
        yield "key_spelling"
    if spec.absent:
        yield "module_absent"
    if peft_refusals(config, spec):
        yield "config_refused"
    if not spec.modules or any(problem.reason in _BROKEN for problem in spec.problems):
        yield "broken_factors"


def _layer_features(config: AdapterConfig, modules: Collection[LoraModule]) -> Iterator[str]:
    """The features of ranks, scalings and the modules of each layer."""
    yield from _rank_features(modules)
    # Hundreds of modules have one rank and one scaling.
    scaled = list({(module.rank, module.scaling): module for module in modules}.values())
    for name, scaling in _SCALINGS.items():
        if not all(_close(module.scaling, scaling(config, module)) for module in scaled):
            yield name
    if not all(_close(module.scaling, scaled[0].scaling) for module in scaled):
        yield "scale_of_modules"
    if any(module.kind == "embedding" for module in modules):
        yield "embedding"
    if any(module.short_name == "lm_head" for module in modules):
        yield "head"
    towers = kinds_by_tower(config, modules).values()
    layers = frozenset[Kinds]().union(*towers)
    if any({"q_proj", "k_proj", "v_proj"} & kinds not in _WHOLE_ATTENTION for kinds in layers):
        yield "part_of_qkv"
    if any("up_proj" in kinds and "gate_proj" not in kinds for kinds in layers):
        yield "up_without_gate"
    if any(len(tower) > 1 for tower in towers):
        yield "uneven_layers"


def _rank_features(modules: Collection[LoraModule]) -> Iterator[str]:
    ranks = {module.rank for module in modules}
    if len(ranks) > 1:
        yield "mixed_ranks"
    if len({(module.short_name, module.rank) for module in modules}) > len(
        {module.short_name for module in modules}
    ):
        yield "mixed_ranks_of_a_kind"
    if any(rank != 8 and rank % 16 for rank in ranks):
        yield "rank_off_grid"


def kinds_by_tower(config: AdapterConfig, modules: Iterable[LoraModule]) -> dict[str, frozenset[Kinds]]:
    """The sets of short names of adapted modules that layers have, by the tower that the layers belong to.

    A tower is what stands before the number of a layer, such as `model.layers.`. Its layers are those of the
    base model if the built-in table has it, else all up to the last adapted one.
    """
    towers: dict[str, dict[int, set[str]]] = {}
    for module in modules:
        if (place := _LAYER.match(module.name)) is not None:
            layers = towers.setdefault(place[1], {})
            layers.setdefault(int(place[2]), set()).add(module.short_name)
    counts = {tower: max(layers) + 1 for tower, layers in towers.items()}
    base = modules_of_spelling(config.base_model) if towers else None
    for name in base.shapes if base is not None else ():
        if (place := _LAYER.match(name)) is not None and place[1] in counts:
            counts[place[1]] = max(counts[place[1]], int(place[2]) + 1)
    # Layers without any adapted module are one more set, and not as many entries as a number in a name says.
    return {
        tower: frozenset({*map(frozenset, layers.values()), *([_NONE] * (counts[tower] > len(layers)))})
        for tower, layers in towers.items()
    }


# What stands before the first number in a name, and the number.
_LAYER = re.compile(r"((?:(?![0-9]{1,6}\.)[^.]*\.)*)([0-9]{1,6})\.")
_NONE: Kinds = frozenset()
_WHOLE_ATTENTION: tuple[Kinds, ...] = (
    _NONE,
    frozenset({"q_proj", "v_proj"}),
    frozenset({"q_proj", "k_proj", "v_proj"}),
)
# The scalings that engines take instead of PEFT's, by the feature that an adapter has where they differ.
_SCALINGS: Mapping[str, Callable[[AdapterConfig, LoraModule], float]] = {
    "scale_of_config": lambda config, module: config.alpha / (config.rank or module.rank),
    "scale_of_tensors": lambda config, module: config.alpha / module.rank if config.alpha else 1.0,
    "scale_of_tensors_rslora": lambda config, module: (
        config.alpha / (module.rank**0.5 if config.use_rslora else module.rank)
    ),
}


def _close(left: float, right: float) -> bool:
    return abs(left - right) <= _TOLERANCE * max(abs(left), abs(right))
