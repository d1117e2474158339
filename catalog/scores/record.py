"""A measured score with its subject, task, number of samples and source."""

from __future__ import annotations

from dataclasses import dataclass

from catalog.errors import UsageError
from catalog.files import clean_text
from catalog.scores.metrics import score_problem

# The subject of a score of the base model without any adapter.
BASE = "base"
# Five texts of this length fit into a row of PostgreSQL's index.
_MOST_BYTES = 500


@dataclass(frozen=True)
class Score:
    """One measurement: of an adapter (owner/name[@commit][:folder]), a merge, or the base model alone.

    `value` is in the metric's unit (accuracies from 0 to 1), `n` the number of samples, None if the source
    does not give it. Raises UsageError for texts that are empty, too long or not storable, for a value
    outside the metric's range, and for a number of samples below 1 or beyond 63 bits.
    """

    subject: str
    task: str
    split: str
    metric: str
    value: float
    n: int | None
    source: str

    def __post_init__(self) -> None:
        for name in ("subject", "task", "split", "metric", "source"):
            text = getattr(self, name)
            if not text.strip():
                raise UsageError(f"A score requires {name}; give it.")
            if len(text.encode("utf-8", "replace")) > _MOST_BYTES or clean_text(text) != text:
                raise UsageError(
                    f"A score whose {name} is {text[:40]!a} cannot be stored; write a short text."
                )
        if problem := score_problem(self.metric, self.value, self.n):
            raise UsageError(f"The score of {self.subject} on {self.task} cannot be stored: {problem}.")
