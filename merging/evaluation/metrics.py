"""Generated answers compared with their targets, by the metrics of `catalog.scores.TASK_METRICS`.

Exact match and F1 are computed here, the others by the libraries of the field: math-verify, rouge-score and
sacrebleu. None of them reads anything from a network.
"""

from __future__ import annotations

import contextlib
import json
import queue
import re
import string
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from catalog.errors import EvaluationError
from catalog.extras import require_extra
from catalog.scores import TASK_METRICS
from merging.model import final_answer, normalise_text

# Seconds for one comparison of formulas; an answer that takes longer is wrong.
PATIENCE = 10.0
# Seconds until the process that compares has loaded its library.
_START = 120.0
_WORKER = Path(__file__).with_name("formulas.py")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def compare_texts(
    metric: str, answers: Sequence[str], targets: Sequence[str], *, marker: str = ""
) -> tuple[float, tuple[float, ...]]:
    """The score of answers by a metric of task.json, from 0 to 1, and those of the single answers.

    The second is empty for a metric that is computed on all answers together. If `marker` is not empty, only
    what follows its last occurrence in answer and target is compared. Raises UsageError if the library of the
    metric is not installed.
    """
    row = TASK_METRICS[metric]
    answers = [final_answer(text, marker) for text in answers]
    targets = [final_answer(text, marker) for text in targets]
    if row.library:
        require_extra("metrics", f"The metric {metric}")
    if row.whole:
        return _WHOLE[metric](answers, targets), ()
    values = tuple(_EACH[metric](answers, targets))
    return sum(values) / len(values), values


def word_f1(answer: str, target: str) -> float:
    """F1 of the words of two texts without case, punctuation and articles; 1 if both have none.

    As the evaluation of SQuAD (arXiv 1606.05250, section 6.1): words count as often as they occur in both.
    """
    ours, theirs = _words(answer), _words(target)
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _equal_texts(answers: Sequence[str], targets: Sequence[str]) -> list[float]:
    pairs = zip(answers, targets, strict=True)
    return [float(normalise_text(answer) == normalise_text(target)) for answer, target in pairs]


def _f1(answers: Sequence[str], targets: Sequence[str]) -> list[float]:
    return [word_f1(answer, target) for answer, target in zip(answers, targets, strict=True)]


def _rouge(kind: str) -> Callable[[Sequence[str], Sequence[str]], list[float]]:
    def values(answers: Sequence[str], targets: Sequence[str]) -> list[float]:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer([kind], use_stemmer=False)
        pairs = zip(answers, targets, strict=True)
        return [float(scorer.score(target, answer)[kind].fmeasure) for answer, target in pairs]

    return values


def _bleu(answers: Sequence[str], targets: Sequence[str]) -> float:
    from sacrebleu import corpus_bleu

    return min(float(corpus_bleu(list(answers), [list(targets)]).score) / 100, 1.0)


def _chrf(answers: Sequence[str], targets: Sequence[str]) -> float:
    from sacrebleu import corpus_chrf

    return min(float(corpus_chrf(list(answers), [list(targets)]).score) / 100, 1.0)


def _equal_formulas(answers: Sequence[str], targets: Sequence[str]) -> list[float]:
    with FormulaComparer() as comparer:
        return [
            float(comparer.compare(answer, target)) for answer, target in zip(answers, targets, strict=True)
        ]


class FormulaComparer:
    """Compares formulas by math-verify in a process of its own, which ends if a comparison takes too long.

    A power such as 9^9^9^9 cannot be interrupted within a process. `command` starts the process: it writes a
    line when it is ready, and then answers each line, [answer, target] as JSON, by "true" or "false".
    """

    def __init__(self, command: Sequence[str] = (sys.executable, "-P", str(_WORKER))) -> None:
        self._command = command
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str] = queue.Queue()

    def __enter__(self) -> FormulaComparer:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._end()

    def compare(self, answer: str, target: str, patience: float = PATIENCE) -> bool:
        """Whether the answer equals the target as a number or formula; False if this takes longer than
        `patience` seconds.

        Raises EvaluationError if the process cannot start.
        """
        process = self._process or self._start()
        if process.stdin is None:
            raise TypeError("the process has no input")
        try:
            process.stdin.write(json.dumps([answer, target]) + "\n")
            process.stdin.flush()
            line = self._lines.get(timeout=patience)
        except (OSError, queue.Empty):
            line = ""
        if not line:
            # Too slow, too large for its memory, or ended: the next comparison has a new process.
            self._end()
        return line.strip() == "true"

    def _start(self) -> subprocess.Popen[str]:
        self._process = process = subprocess.Popen(  # noqa: S603 - this program's own script
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        )
        lines: queue.Queue[str] = queue.Queue()
        self._lines = lines
        threading.Thread(target=_read_lines, args=(process.stdout, lines), daemon=True).start()
        try:
            first = lines.get(timeout=_START)
        except queue.Empty:
            first = ""
        if not first:
            self._end()
            raise EvaluationError("Formulas cannot be compared: math-verify does not start.")
        return process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()
        process.wait()


def _read_lines(stream: Any, lines: queue.Queue[str]) -> None:
    """Puts every line into the queue, and an empty one at the end."""
    with contextlib.suppress(OSError, ValueError):
        for line in stream:
            lines.put(line)
    lines.put("")


_EACH: Mapping[str, Callable[[Sequence[str], Sequence[str]], list[float]]] = {
    "exact_match": _equal_texts,
    "f1": _f1,
    "math_verify": _equal_formulas,
    **{kind: _rouge(kind) for kind in ("rouge1", "rouge2", "rougeL")},
}
_WHOLE: Mapping[str, Callable[[Sequence[str], Sequence[str]], float]] = {"bleu": _bleu, "chrf": _chrf}
