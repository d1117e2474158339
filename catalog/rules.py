"""The reasons for which an adapter can be refused, and which set of rules refuses for which.

Three sets. `paper`: the collector of "The Appeal and Reality of Recycling LoRAs" (arXiv 2602.12323), filter
by filter; what it silently accepts is not refused here either. `ours`: whatever makes the update
differ from scaling * B A on a known base, or the file unusable; a pattern, a rank-stabilised scaling or a
subfolder is not refused. `licensed`: ours, and a license that a downstream user can rely on.

Decisions:

* Norm. The paper keeps 1 < ||dW|| <= 1000. Ours refuses an update that is exactly zero or not finite, and
one above
  NORM_EXPLODED: all weights of an 8B model together have a norm of a few thousands, so that the base model
  would no longer matter. Between the two a norm is a fact to filter by, not a defect.
* Settings. The content of the weights file decides (`catalog.adapters.feature`): a configuration that names
  biases or modules absent from the file is harmless. The paper's collector reads only the configuration, so
  that its rules refuse for such a setting too (`unused_setting`).
* Initialisation. PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA and KaSA change the base weights when training starts;
their
  B A belongs to that changed base (PEFT writes `true` into the configuration when it converts such an
  adapter, so one that says `pissa` is not converted). EVA, orthogonal, gaussian and MiCA leave the base
  alone. The paper looks at the sub-configurations loftq, eva and corda instead, which is a reason of its
  own.
* License. A derivative of a community-licensed base (Llama, Gemma, ...) that says apache-2.0 grants what
its author
  does not have, and one that names another community license misleads too. That is `license_conflict`.
  No reason is given if the license of the base is unknown or permissive: a stricter license on an adapter
  is its author's right.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from catalog.adapters import SENTENCES

RuleSet = Literal["paper", "ours", "licensed"]
RULE_SETS: tuple[RuleSet, ...] = get_args(RuleSet)
Needs = Literal["listing", "files", "config", "header", "weights"]

PAPER_NORM = (1.0, 1000.0)
NORM_EXPLODED = 1e5


class Reason(enum.StrEnum):
    """A reason against an adapter, or a fact worth knowing about it; stored by value."""

    GATED = "gated"
    DISABLED = "disabled"
    PRIVATE = "private"
    VANISHED = "vanished"
    NO_ADAPTER = "no_adapter"
    UNUSABLE_FILES = "unusable_files"
    INTEGRITY = "integrity"
    TOO_LARGE = "too_large"
    NOT_READ = "not_read"
    NOT_ROOT = "not_root"
    NO_SAFETENSORS = "no_safetensors"
    PICKLE_ONLY = "pickle_only"
    CONFIG_LFS_POINTER = "config_lfs_pointer"
    CONFIG_UNREADABLE = "config_unreadable"
    CONFIG_NOT_PEFT = "config_not_peft"
    CONFIG_PEFT_REFUSES = "config_peft_refuses"
    NOT_LORA = "not_lora"
    NOT_CAUSAL_LM = "not_causal_lm"
    TASK_TYPE_MISSING = "task_type_missing"
    BASE_MISSING = "base_missing"
    BASE_LOCAL_PATH = "base_local_path"
    BASE_MISMATCH = "base_mismatch"
    USE_DORA = "use_dora"
    HAS_BIAS = "has_bias"
    LORA_BIAS = "lora_bias"
    MODULES_TO_SAVE = "modules_to_save"
    RANK_PATTERN = "rank_pattern"
    ALPHA_PATTERN = "alpha_pattern"
    BAD_PATTERN = "bad_pattern"
    LAYER_REPLICATION = "layer_replication"
    ALORA = "alora"
    TRAINABLE_TOKENS = "trainable_tokens"
    TARGET_PARAMETERS = "target_parameters"
    LORA_VARIANT = "lora_variant"
    RELATIVE_INIT = "relative_init"
    INIT_CONFIG = "init_config"
    TRUNCATED = "truncated"
    HEADER_INVALID = "header_invalid"
    WEIGHTS_UNREADABLE = "weights_unreadable"
    NO_LORA_TENSORS = "no_lora_tensors"
    UNPAIRED_FACTOR = "unpaired_factor"
    RANK_MISMATCH = "rank_mismatch"
    EMPTY_TENSOR = "empty_tensor"
    NOT_A_MATRIX = "not_a_matrix"
    DUPLICATE_FACTOR = "duplicate_factor"
    BAD_DTYPE = "bad_dtype"
    FULL_WEIGHTS = "full_weights"
    BASE_COPY = "base_copy"
    UNKNOWN_TENSOR = "unknown_tensor"
    UNUSED_SETTING = "unused_setting"
    KEY_SPELLING = "key_spelling"
    NO_SUCH_MODULE = "no_such_module"
    EMBEDDING_LORA = "embedding_lora"
    WRONG_BASE_SHAPE = "wrong_base_shape"
    NON_FINITE = "non_finite"
    ZERO_UPDATE = "zero_update"
    NORM_OUT_OF_RANGE = "norm_out_of_range"
    NORM_EXPLODED = "norm_exploded"
    CARD_UNREADABLE = "card_unreadable"
    LICENSE_MISSING = "license_missing"
    LICENSE_CONFLICT = "license_conflict"


@dataclass(frozen=True, slots=True)
class Rule:
    """A reason in words, the rule sets that refuse for it, and the file that must be read to know it."""

    sentence: str
    paper: bool
    ours: bool
    licensed: bool
    needs: Needs


def _rule(needs: Needs, refuse: str, sentence: str) -> Rule:
    """A row of the table; `refuse` is both, ours, paper, licensed or noted (no rule set refuses for it)."""
    ours = refuse in {"both", "ours"}
    return Rule(sentence, refuse in {"both", "paper"}, ours, ours or refuse == "licensed", needs)


# Why the weights of an adapter with readable factors were not read: trying again would not change that.
UNREADABLE: tuple[Reason, ...] = (
    *(Reason.GATED, Reason.DISABLED, Reason.PRIVATE, Reason.VANISHED, Reason.INTEGRITY, Reason.TOO_LARGE),
    *(Reason.NOT_READ, Reason.TRUNCATED, Reason.HEADER_INVALID, Reason.WEIGHTS_UNREADABLE),
)
# In the order of reporting: reasons that end the reading first, licenses last.
RULES: Mapping[Reason, Rule] = {
    Reason.GATED: _rule("listing", "both", "its files are behind a gate that this account has not passed"),
    Reason.DISABLED: _rule("listing", "both", "the Hub has disabled the repository"),
    Reason.PRIVATE: _rule("listing", "both", "the repository is private to this account"),
    Reason.VANISHED: _rule("listing", "both", "the repository or its commit is no longer there"),
    Reason.NO_ADAPTER: _rule("files", "both", "no folder of the repository holds an adapter_config.json"),
    Reason.UNUSABLE_FILES: _rule("files", "noted", "the repository lists files that nobody can use"),
    Reason.INTEGRITY: _rule("files", "both", "a file does not match its hash or size"),
    Reason.TOO_LARGE: _rule("files", "both", "a file is larger than the limit"),
    Reason.NOT_READ: _rule("files", "both", "it was listed but not read"),
    Reason.NOT_ROOT: _rule("files", "paper", "it lies in a subfolder, not in the root of the repository"),
    Reason.NO_SAFETENSORS: _rule("files", "both", "adapter_model.safetensors is missing next to the config"),
    Reason.PICKLE_ONLY: _rule("files", "both", "its weights are a pickle only, which is never opened"),
    Reason.CONFIG_LFS_POINTER: _rule("config", "both", "adapter_config.json is a Git LFS pointer"),
    Reason.CONFIG_UNREADABLE: _rule("config", "both", "adapter_config.json cannot be read"),
    Reason.CONFIG_NOT_PEFT: _rule("config", "both", "adapter_config.json was not written by PEFT"),
    Reason.CONFIG_PEFT_REFUSES: _rule("config", "noted", "PEFT does not load its config"),
    Reason.NOT_LORA: _rule("config", "both", SENTENCES["not_lora"]),
    Reason.NOT_CAUSAL_LM: _rule("config", "both", "it is not for a causal language model"),
    Reason.TASK_TYPE_MISSING: _rule("config", "paper", "its config states no task type"),
    Reason.BASE_MISSING: _rule("config", "both", "its base model is not named"),
    Reason.BASE_LOCAL_PATH: _rule(
        "config", "ours", "its base model is a path that does not name a known model"
    ),
    Reason.BASE_MISMATCH: _rule("config", "paper", "its config spells the base model in another way"),
    Reason.USE_DORA: _rule("config", "both", SENTENCES["use_dora"]),
    Reason.HAS_BIAS: _rule("config", "both", SENTENCES["has_bias"]),
    Reason.LORA_BIAS: _rule("config", "both", SENTENCES["lora_bias"]),
    Reason.MODULES_TO_SAVE: _rule("config", "both", SENTENCES["modules_to_save"]),
    Reason.RANK_PATTERN: _rule("config", "paper", "modules have different ranks"),
    Reason.ALPHA_PATTERN: _rule("config", "paper", "modules have different alphas"),
    Reason.BAD_PATTERN: _rule("config", "both", SENTENCES["bad_pattern"]),
    Reason.LAYER_REPLICATION: _rule("config", "both", SENTENCES["layer_replication"]),
    Reason.ALORA: _rule("config", "ours", SENTENCES["alora"]),
    Reason.TRAINABLE_TOKENS: _rule("config", "both", SENTENCES["trainable_tokens"]),
    Reason.TARGET_PARAMETERS: _rule("config", "ours", SENTENCES["target_parameters"]),
    Reason.LORA_VARIANT: _rule("config", "ours", SENTENCES["lora_variant"]),
    Reason.RELATIVE_INIT: _rule("config", "ours", SENTENCES["relative_init"]),
    Reason.INIT_CONFIG: _rule("config", "paper", "its config has LoftQ, EVA or CorDA settings"),
    Reason.TRUNCATED: _rule("header", "both", "its weights file is cut off or padded"),
    Reason.HEADER_INVALID: _rule("header", "both", "the header of its weights file is broken"),
    Reason.WEIGHTS_UNREADABLE: _rule("header", "both", "its weights file makes a parser fail"),
    Reason.NO_LORA_TENSORS: _rule("header", "both", SENTENCES["no_lora_tensors"]),
    Reason.UNPAIRED_FACTOR: _rule("header", "both", SENTENCES["unpaired_factor"]),
    Reason.RANK_MISMATCH: _rule("header", "both", SENTENCES["rank_mismatch"]),
    Reason.EMPTY_TENSOR: _rule("header", "both", SENTENCES["empty_tensor"]),
    Reason.NOT_A_MATRIX: _rule("header", "both", SENTENCES["not_a_matrix"]),
    Reason.DUPLICATE_FACTOR: _rule("header", "ours", SENTENCES["duplicate_factor"]),
    Reason.BAD_DTYPE: _rule("header", "ours", SENTENCES["bad_dtype"]),
    Reason.FULL_WEIGHTS: _rule("header", "ours", SENTENCES["full_weights"]),
    Reason.BASE_COPY: _rule("header", "noted", "it contains a copy of weights of the base model"),
    Reason.UNKNOWN_TENSOR: _rule("header", "ours", SENTENCES["unknown_tensor"]),
    Reason.UNUSED_SETTING: _rule(
        "header", "paper", "its weights file contains no tensors for a setting of its config"
    ),
    Reason.KEY_SPELLING: _rule("header", "noted", "PEFT does not find its factors under their names"),
    Reason.NO_SUCH_MODULE: _rule("header", "ours", "it adapts modules that its base model does not have"),
    Reason.EMBEDDING_LORA: _rule("header", "noted", "it adapts the embeddings or the output head"),
    Reason.WRONG_BASE_SHAPE: _rule("header", "both", "its factors do not fit its base model"),
    Reason.NON_FINITE: _rule("weights", "both", "its weights contain NaN or infinity"),
    Reason.ZERO_UPDATE: _rule("weights", "both", "its update is zero: it has no effect"),
    Reason.NORM_OUT_OF_RANGE: _rule(
        "weights", "paper", "the norm of its update is not above 1 and at most 1000"
    ),
    Reason.NORM_EXPLODED: _rule("weights", "ours", "its update is many times larger than the base model"),
    Reason.CARD_UNREADABLE: _rule("files", "noted", "its card, or its card's front matter, cannot be read"),
    Reason.LICENSE_MISSING: _rule("files", "licensed", "it states no license"),
    Reason.LICENSE_CONFLICT: _rule("listing", "licensed", "its license grants more than its base model's"),
}


def reason_sentence(reason: str, detail: str = "") -> str:
    """A reason with its sentence and what was seen."""
    return f"{reason}: {RULES[Reason(reason)].sentence}{f' ({detail})' if detail else ''}"
