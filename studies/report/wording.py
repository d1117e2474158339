"""Numbers and verdicts in the words of a report.

Values are shares of 0 to 1 and are shown as points, hundredths of them: 0.813 is 81.3, a difference of
0.018 is +1.8 points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from catalog.pictures import count_noun
from studies.report.comparing import Difference, Spread
from studies.report.judging import (
    BETTER,
    EQUAL,
    LITTLE_BETTER,
    LITTLE_WORSE,
    ONE,
    SAME,
    TOO_FEW,
    UNTOLD,
    WORSE,
    Compared,
    Judgement,
)
from studies.report.judging import NOTHING as NO_TASK

NOTHING = "—"
# Too few tasks, and the differences are zero.
NO_GAP = "no gap"
# By the word of `studies.report.judging`; {a} and {b} are compared, over units such as tasks.
VERDICTS: Mapping[str, str] = {
    NO_TASK: "No {unit} has complete results for both ‘{a}’ and ‘{b}’, so nothing can be said.",
    ONE: (
        "On the one {unit} that both have, ‘{a}’ differs from ‘{b}’ by {mean} points; "
        "one {unit} gives no interval."
    ),
    TOO_FEW: (
        "‘{a}’ less ‘{b}’ is between {low} and {high} points; with {units} nothing is called better, worse "
        "or the same."
    ),
    NO_GAP: (
        "‘{a}’ and ‘{b}’ do not differ on any {unit}; with {units} nothing is called better, worse or the "
        "same."
    ),
    BETTER: "‘{a}’ is better than ‘{b}’{rests}.",
    WORSE: "‘{a}’ is worse than ‘{b}’{rests}.",
    LITTLE_BETTER: "‘{a}’ is better than ‘{b}’, by less than the margin of {margin}{rests}.",
    LITTLE_WORSE: "‘{a}’ is worse than ‘{b}’, by less than the margin of {margin}{rests}.",
    EQUAL: "‘{a}’ and ‘{b}’ are about the same, within the margin of {margin}{rests}.",
    SAME: "‘{a}’ and ‘{b}’ are the same on every {unit}{rests}.",
    UNTOLD: (
        "Which of ‘{a}’ and ‘{b}’ is better cannot be told: the difference is between {low} and {high} "
        "points."
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
    return f"{value:z.2f}".replace("-", "−")


def nats(loss: float | None) -> str:
    """A loss with three decimals."""
    return NOTHING if loss is None else f"{loss:z.3f}".replace("-", "−")


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


def p_value(p: float | None) -> str:
    """A p-value with two digits: .19, .032, below .001; a dash where there is none."""
    if p is None:
        return NOTHING
    if p >= 0.995:
        return "1"
    return "below .001" if p < 0.001 else f"{p:.2g}".removeprefix("0")


def span(ends: tuple[float, float] | None) -> str:
    """A range of differences in points: +0.1 to +0.5."""
    return NOTHING if ends is None else " to ".join(map(format_difference, ends))


def resting(names: Sequence[str]) -> str:
    """The remark on a word that does not stand without some tasks, "" where there are none."""
    return f" (rests on {list_names(names, 3)})" if names else ""


def sentence(judgement: Judgement, a: str, b: str, compared: Compared, unit: str = "task") -> str:
    """What a claim's numbers allow to say, then the numbers; `unit` is what counts once."""
    difference, word = compared.difference, judgement.word
    template = VERDICTS[NO_GAP if word == TOO_FEW and difference and difference.p is None else word]
    if difference is None:
        return template.format(a=a, b=b, unit=unit)
    low, high = difference.low or 0.0, difference.high or 0.0
    units = count_noun(difference.tasks, unit)
    text = template.format(
        a=a,
        b=b,
        mean=format_difference(difference.mean),
        low=format_difference(low),
        high=format_difference(high),
        margin=level(compared.margin),
        unit=unit,
        units=units,
        rests=resting(judgement.rests_on),
    )
    if difference.low is None or difference.high is None:
        return f"{text} It says nothing about other {unit}s."
    return (
        f"{text} Mean difference {format_difference(difference.mean)} points, "
        f"95 % interval {format_difference(low)} to {format_difference(high)}, "
        f"p {p_value(difference.p)}, by Holm {p_value(judgement.holm_p)}, by sign flips "
        f"{p_value(difference.sign_flip_p)}; with any one {unit} left out {span(judgement.left_out)}. "
        f"Over {units}: "
        f"won on {difference.wins}, tied on {difference.ties}, lost on {difference.losses}."
    )


FALLS, RISES = "falls", "rises"
# By the word of a slope; the claim before it says what falls with what.
_SLOPES: Mapping[str, str] = {
    FALLS: "It does{rests}.",
    RISES: "It rises with it{rests}.",
    SAME: "It does not depend on it on any {unit}{rests}.",
    UNTOLD: "Whether it does cannot be told.",
    TOO_FEW: "With {units} nothing is said.",
    ONE: "One {unit} gives no interval.",
    NO_TASK: "No {unit} has a slope yet, so nothing can be said.",
}


def slope_word(word: str) -> str:
    """The word for a slope by that of its difference to zero."""
    if word in (BETTER, LITTLE_BETTER):
        return RISES
    return {WORSE: FALLS, LITTLE_WORSE: FALLS, EQUAL: UNTOLD}.get(word, word)


def slope_sentence(judgement: Judgement, word: str, slope: Difference | None, unit: str = "task") -> str:
    """Whether a quantity falls with another, then the slope of their logarithms, of which −1 is expected."""
    if slope is None:
        return _SLOPES[word].format(unit=unit)
    units = count_noun(slope.tasks, unit)
    text = _SLOPES[word].format(unit=unit, units=units, rests=resting(judgement.rests_on))
    if slope.low is None or slope.high is None:
        return f"{text} The slope of the logarithms is {number(slope.mean)} there; −1 is expected."
    place = "inside" if slope.low <= -1 <= slope.high else "outside"
    return (
        f"{text} Mean slope of the logarithms {number(slope.mean)}, 95 % interval {number(slope.low)} to "
        f"{number(slope.high)}, p {p_value(slope.p)}, by Holm {p_value(judgement.holm_p)}, by sign flips "
        f"{p_value(slope.sign_flip_p)}; the −1 that is expected lies {place} the interval. Over {units}."
    )


def slope_interval(slope: Difference | None) -> str:
    """slope −0.21 [−0.35, −0.07], without the interval where there is none."""
    if slope is None:
        return NOTHING
    ends = "" if slope.low is None else f" [{number(slope.low)}, {number(slope.high)}]"
    return f"slope {number(slope.mean)}{ends}"


def name_word(word: str, unit: str) -> str:
    """The word of a judgement where `unit` is what counts once."""
    return word.replace("task", unit) if word in (ONE, TOO_FEW) else word


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
