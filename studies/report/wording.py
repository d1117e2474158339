"""Numbers and verdicts in the words of a report.

Values are shares of 0 to 1 and are shown as points, hundredths of them: 0.813 is 81.3, a difference of
0.018 is +1.8 points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from catalog.pictures import count_noun
from studies.report.comparing import FEW, Difference, Spread

NOTHING = "—"
# By what `studies.report.comparing.verdict` says; {a} and {b} are compared.
VERDICTS: Mapping[str, str] = {
    "nothing to compare": "No task has complete results for both ‘{a}’ and ‘{b}’, so nothing can be said.",
    "one task": (
        "On the one task that both have, ‘{a}’ differs from ‘{b}’ by {mean} points; "
        "one task gives no interval."
    ),
    "more": "‘{a}’ is better than ‘{b}’ by more than the margin of {margin}.",
    "more, perhaps little": (
        "‘{a}’ is better than ‘{b}’; "
        "whether by more than the margin of {margin} cannot be told from these {tasks}."
    ),
    "about the same": ("‘{a}’ and ‘{b}’ are about the same: what differs is within the margin of {margin}."),
    "less, perhaps little": (
        "‘{a}’ is worse than ‘{b}’; "
        "whether by more than the margin of {margin} cannot be told from these {tasks}."
    ),
    "less": "‘{a}’ is worse than ‘{b}’ by more than the margin of {margin}.",
    "cannot be told": (
        "Which of ‘{a}’ and ‘{b}’ is better cannot be told from these {tasks}; "
        "differences up to {largest} points are possible."
    ),
}


def points(share: float) -> str:
    """A share in points with one decimal: 81.3."""
    text = f"{100 * abs(share):.1f}"
    return f"−{text}" if share < 0 and float(text) else text


def format_difference(share: float) -> str:
    """A difference of shares in points with its sign: +1.8, −0.4, 0.0."""
    text = points(share)
    return f"+{text}" if share > 0 and float(text) else text


def level(share: float) -> str:
    """A margin as it was given: 2 points, 0.5 points."""
    text = f"{100 * share:g}"
    return f"{text} {'point' if text == '1' else 'points'}"


def number(value: float | None) -> str:
    """A number with two decimals: −0.31."""
    if value is None:
        return NOTHING
    return f"{value:.2f}".replace("-", "−") if abs(value) >= 0.005 else "0.00"


def nats(loss: float | None) -> str:
    """A loss with three decimals."""
    return NOTHING if loss is None else f"{loss:.3f}".replace("-", "−")


def mean(spread: Spread | None) -> str:
    """81.3 ± 1.2, without the standard error where there is none."""
    if spread is None:
        return NOTHING
    return points(spread.mean) + (f" ± {points(spread.error)}" if spread.error is not None else "")


def interval(difference: Difference | None) -> str:
    """+1.8 [−0.4, +3.9], without the interval where there is none."""
    if difference is None:
        return NOTHING
    if difference.low is None or difference.high is None:
        return format_difference(difference.mean)
    mean, low, high = map(format_difference, (difference.mean, difference.low, difference.high))
    return f"{mean} [{low}, {high}]"


def record(difference: Difference | None) -> str:
    """Wins/ties/losses over tasks: 5/1/2."""
    return f"{difference.wins}/{difference.ties}/{difference.losses}" if difference else NOTHING


def sentence(kind: str, a: str, b: str, difference: Difference | None, margin: float) -> str:
    """What a claim's numbers allow to say, then the numbers."""
    if difference is None:
        return VERDICTS[kind].format(a=a, b=b)
    low, high = difference.low, difference.high
    text = VERDICTS[kind].format(
        a=a,
        b=b,
        mean=format_difference(difference.mean),
        margin=level(margin),
        tasks=count_noun(difference.tasks, "task"),
        largest=points(max(abs(low or 0.0), abs(high or 0.0))),
    )
    if low is None or high is None:
        return f"{text} It says nothing about other tasks."
    if kind == "about the same" and (low > 0 or high < 0):
        text += f" A small advantage of ‘{a if low > 0 else b}’ is there."
    if difference.tasks < FEW:
        few = count_noun(difference.tasks, "task")
        text = f"With {few} the interval is not to be trusted. As far as it goes: {text}"
    return (
        f"{text} Mean difference {format_difference(difference.mean)} points, "
        f"95 % interval {format_difference(low)} to {format_difference(high)}, "
        f"over {count_noun(difference.tasks, 'task')}: "
        f"won on {difference.wins}, tied on {difference.ties}, lost on {difference.losses}."
    )


def rate(value: float) -> str:
    """A learning rate as people write it: 1e-4, 3.6e-4, 0.05."""
    if 0.01 <= value < 100:
        return f"{value:.2g}"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"


def duration(seconds: float) -> str:
    """45 s, 12 min, 3.4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def counts(words: Mapping[str, int]) -> str:
    """3 done, 1 failed; what is zero is left out."""
    return ", ".join(f"{count:,} {word}" for word, count in words.items() if count) or "none"


def list_names(names: Sequence[str], most: int = 12) -> str:
    """The names with commas; of many the first, and how many more."""
    text = ", ".join(names[:most])
    return text if len(names) <= most else f"{text} and {len(names) - most} more"
