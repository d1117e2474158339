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
from typing import Literal, Self, get_args

from catalog.adapters import SENTENCES

RuleSet = Literal["paper", "ours", "licensed"]
RULE_SETS: tuple[RuleSet, ...] = get_args(RuleSet)

PAPER_NORM = (1.0, 1000.0)
NORM_EXPLODED = 1e5


class Reason(enum.StrEnum):
    """A reason against an adapter, or a fact worth knowing about it; stored by value.

    `sentence` is the reason in words; `paper`, `ours` and `licensed` say which rule sets refuse for it.
    Members are in the order of reporting: reasons that end the reading first, licenses last.
    """

    paper: bool
    ours: bool
    licensed: bool
    sentence: str

    def __new__(cls, value: str, refuse: str = "noted", sentence: str = "") -> Self:
        """One reason; `refuse` is both, ours, paper, licensed or noted (no rule set refuses for it)."""
        reason = str.__new__(cls, value)
        reason._value_, reason.sentence = value, sentence or SENTENCES[value]
        reason.paper, reason.ours = refuse in {"both", "paper"}, refuse in {"both", "ours"}
        reason.licensed = reason.ours or refuse == "licensed"
        return reason

    GATED = "gated", "both", "its files are behind a gate that this account has not passed"
    DISABLED = "disabled", "both", "the Hub has disabled the repository"
    PRIVATE = "private", "both", "the repository is private to this account"
    VANISHED = "vanished", "both", "the repository or its commit is no longer there"
    NO_ADAPTER = "no_adapter", "both", "no folder of the repository holds an adapter_config.json"
    UNUSABLE_FILES = "unusable_files", "noted", "the repository lists files that nobody can use"
    INTEGRITY = "integrity", "both", "a file does not match its hash or size"
    TOO_LARGE = "too_large", "both", "a file is larger than the limit"
    NOT_READ = "not_read", "both", "it was listed but not read"
    NOT_ROOT = "not_root", "paper", "it lies in a subfolder, not in the root of the repository"
    NO_SAFETENSORS = "no_safetensors", "both", "adapter_model.safetensors is missing next to the config"
    PICKLE_ONLY = "pickle_only", "both", "its weights are a pickle only, which is never opened"
    CONFIG_LFS_POINTER = "config_lfs_pointer", "both", "adapter_config.json is a Git LFS pointer"
    CONFIG_UNREADABLE = "config_unreadable", "both", "adapter_config.json cannot be read"
    CONFIG_NOT_PEFT = "config_not_peft", "both", "adapter_config.json was not written by PEFT"
    CONFIG_PEFT_REFUSES = "config_peft_refuses", "noted", "PEFT does not load its config"
    NOT_LORA = "not_lora", "both"
    NOT_CAUSAL_LM = "not_causal_lm", "both", "it is not for a causal language model"
    TASK_TYPE_MISSING = "task_type_missing", "paper", "its config states no task type"
    BASE_MISSING = "base_missing", "both", "its base model is not named"
    BASE_LOCAL_PATH = "base_local_path", "ours", "its base model is a path that does not name a known model"
    BASE_MISMATCH = "base_mismatch", "paper", "its config spells the base model in another way"
    USE_DORA = "use_dora", "both"
    HAS_BIAS = "has_bias", "both"
    LORA_BIAS = "lora_bias", "both"
    MODULES_TO_SAVE = "modules_to_save", "both"
    RANK_PATTERN = "rank_pattern", "paper", "modules have different ranks"
    ALPHA_PATTERN = "alpha_pattern", "paper", "modules have different alphas"
    BAD_PATTERN = "bad_pattern", "both"
    LAYER_REPLICATION = "layer_replication", "both"
    ALORA = "alora", "ours"
    TRAINABLE_TOKENS = "trainable_tokens", "both"
    TARGET_PARAMETERS = "target_parameters", "ours"
    LORA_VARIANT = "lora_variant", "ours"
    RELATIVE_INIT = "relative_init", "ours"
    INIT_CONFIG = "init_config", "paper", "its config has LoftQ, EVA or CorDA settings"
    TRUNCATED = "truncated", "both", "its weights file is cut off or padded"
    HEADER_INVALID = "header_invalid", "both", "the header of its weights file is broken"
    WEIGHTS_UNREADABLE = "weights_unreadable", "both", "its weights file makes a parser fail"
    NO_LORA_TENSORS = "no_lora_tensors", "both"
    UNPAIRED_FACTOR = "unpaired_factor", "both"
    RANK_MISMATCH = "rank_mismatch", "both"
    EMPTY_TENSOR = "empty_tensor", "both"
    NOT_A_MATRIX = "not_a_matrix", "both"
    DUPLICATE_FACTOR = "duplicate_factor", "ours"
    BAD_DTYPE = "bad_dtype", "ours"
    FULL_WEIGHTS = "full_weights", "ours"
    BASE_COPY = "base_copy", "noted", "it contains a copy of weights of the base model"
    UNKNOWN_TENSOR = "unknown_tensor", "ours"
    UNUSED_SETTING = (
        "unused_setting",
        "paper",
        "its weights file contains no tensors for a setting of its config",
    )
    KEY_SPELLING = "key_spelling", "noted", "PEFT does not find its factors under their names"
    NO_SUCH_MODULE = "no_such_module", "ours", "it adapts modules that its base model does not have"
    EMBEDDING_LORA = "embedding_lora", "noted", "it adapts the embeddings or the output head"
    WRONG_BASE_SHAPE = "wrong_base_shape", "both", "its factors do not fit its base model"
    NON_FINITE = "non_finite", "both", "its weights contain NaN or infinity"
    ZERO_UPDATE = "zero_update", "both", "its update is zero: it has no effect"
    NORM_OUT_OF_RANGE = "norm_out_of_range", "paper", "the norm of its update is not above 1 and at most 1000"
    NORM_EXPLODED = "norm_exploded", "ours", "its update is many times larger than the base model"
    CARD_UNREADABLE = "card_unreadable", "noted", "its card, or its card's front matter, cannot be read"
    LICENSE_MISSING = "license_missing", "licensed", "it states no license"
    LICENSE_CONFLICT = "license_conflict", "licensed", "its license grants more than its base model's"


# Why the weights of an adapter with readable factors were not read: trying again would not change that.
UNREADABLE: tuple[Reason, ...] = (
    *(Reason.GATED, Reason.DISABLED, Reason.PRIVATE, Reason.VANISHED, Reason.INTEGRITY, Reason.TOO_LARGE),
    *(Reason.NOT_READ, Reason.TRUNCATED, Reason.HEADER_INVALID, Reason.WEIGHTS_UNREADABLE),
)


def reason_sentence(reason: str, detail: str = "") -> str:
    """A reason with its sentence and what was seen."""
    return f"{reason}: {Reason(reason).sentence}{f' ({detail})' if detail else ''}"
