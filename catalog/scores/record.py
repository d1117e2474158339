"""A measured score with its subject, task, number of samples and source."""

from __future__ import annotations

from dataclasses import dataclass

from catalog.errors import UsageError
from catalog.files import clean_text
from catalog.scores.metrics import score_problem
from catalog.scores.outcomes import Outcomes

# The subject of a score of the base model without any adapter.
BASE = "base"
# Five texts of this length and a protocol fit into a row of PostgreSQL's index.
_MOST_BYTES = 500
_MOST_PROTOCOL_BYTES = 100


@dataclass(frozen=True)
class Score:
    """One measurement: of an adapter (owner/name[@commit][:folder]), a merge, or the base model alone.

    `value` is in the metric's unit (accuracies from 0 to 1), `n` the number of samples, None if the source
    does not give it. `protocol` names how the model was asked, "" for the project's own way, and `outcomes`
    are the answers to single items, if known. Raises UsageError for texts that are empty, too long or not
    storable, for a value outside the metric's range or that the outcomes contradict, and for a number of
    samples below 1 or beyond 63 bits.
    """

    subject: str
    task: str
    split: str
    metric: str
    value: float
    n: int | None
    source: str
    protocol: str = ""
    outcomes: Outcomes | None = None

    def __post_init__(self) -> None:
        for name in ("subject", "task", "split", "metric", "source"):
            text = getattr(self, name)
            if not text.strip():
                raise UsageError(f"A score requires {name}; give it.")
            _check_text(name, text, _MOST_BYTES)
        _check_text("protocol", self.protocol, _MOST_PROTOCOL_BYTES)
        if problem := score_problem(self.metric, self.value, self.n):
            raise UsageError(f"The score of {self.subject} on {self.task} cannot be stored: {problem}.")
        if self.outcomes is not None:
            try:
                self.outcomes.check(self.value, self.n)
            except UsageError as error:
                raise UsageError(
                    f"The score of {self.subject} on {self.task} cannot be stored: {error}"
                ) from error


def _check_text(name: str, text: str, most: int) -> None:
    if len(text.encode("utf-8", "replace")) > most or clean_text(text) != text:
        raise UsageError(f"A score whose {name} is {text[:40]!a} cannot be stored; write a short text.")
