from . import scores
from .ensembles import measure_ensemble
from .generation import MOST_NEW_TOKENS, end_tokens, generate
from .measurement import Measured, measure, score_metric
from .metrics import compare_texts, word_f1
from .questions import Questions, TooLong, ask, prompt_date, unusual
from .requests import HarnessModel
from .scores import BASE, Sampler, ScoreRound, TaskScore, item_round
from .scoring import (
    candidate_likelihoods,
    entropies,
    likelihoods,
    losses,
    mean_loss,
    read_tokens,
    reading_groups,
    targets_only,
    too_large,
    tree_width,
)

__all__ = [
    "BASE",
    "MOST_NEW_TOKENS",
    "HarnessModel",
    "Measured",
    "Questions",
    "Sampler",
    "ScoreRound",
    "TaskScore",
    "TooLong",
    "ask",
    "candidate_likelihoods",
    "compare_texts",
    "end_tokens",
    "entropies",
    "generate",
    "item_round",
    "likelihoods",
    "losses",
    "mean_loss",
    "measure",
    "measure_ensemble",
    "prompt_date",
    "read_tokens",
    "reading_groups",
    "score_metric",
    "scores",
    "targets_only",
    "too_large",
    "tree_width",
    "unusual",
    "word_f1",
]
