"""The filter language: text → a query for the database and for plain rows.

`rank:8..64 target:q_proj license:apache-2.0 -owner:someone created:2024-08..` selects adapters.

* Words and terms next to each other must all match; `|` or `OR` between them means either, and binds less
  tightly; parentheses group; `-` directly before a term excludes what it matches.
* `field:value`; `field:a,b` for any of several; `field:begin*`; `field:*` for any value and `-field:*` for a
  missing one; "quotes" around a value or word with spaces or signs, with a backslash before a quote or
  backslash inside.
* Numbers and dates have ranges, both ends included, either end open: `norm:1..100`, `rank:..16`,
  `created:2023-06..2024`. Numbers may end in k, M or B. A date is a year, a month or a day, in UTC.
* A word without a field matches inside the name, a tag or the text of the card.
* The syntax of other languages (`rank>4`, `license = mit`, `a AND b`) raises UsageError with the equivalent
  filter. In quotes it is a word.

`catalog.query.fields` defines the fields and the comparison of texts. A query has two faces that agree:
`clause` for SQL that selects from Adapter joined with Repository, and `match` for a row of `query_row`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from types import MappingProxyType
from typing import Any, NoReturn

from catalog.adapters import Engine, load_engines
from catalog.errors import UsageError
from catalog.files import clean_text
from catalog.query.fields import FIELDS, NAMES, Field, fold
from catalog.query.terms import (
    And,
    Between,
    Equals,
    Flag,
    Not,
    Or,
    Period,
    Prefix,
    Present,
    Query,
    Runs,
    Word,
    number_text,
    to_text,
)

EVERYTHING = And(())
# Filters are typed by people; larger ones are errors, and SQLite nests at most 1,000 expressions.
MAX_LENGTH = 10_000
MAX_TERMS = 250
MAX_DEPTH = 20
_INT64 = 2**63 - 1
_SPACE = re.compile(r"\s*")
_NAME = re.compile(r'([^\s()|":]+):')
_BARE_WORD = re.compile(r'[^\s()|"]+')
_BARE_VALUE = re.compile(r'[^\s()|",]+')
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_NUMBER = re.compile(r"([+-]?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?)([kKmMbB]?)")
_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_PERIOD = re.compile(r"([0-9]{4})(?:-([0-9]{2})(?:-([0-9]{2}))?)?")
_FLAGS = {"yes": True, "true": True, "no": False, "false": False}
_BESIDE = "leave it out, since terms next to each other must all match"
_NO_OPERATORS = {
    "AND": _BESIDE,
    "&&": _BESIDE,
    "&": _BESIDE,
    "NOT": "write - directly before the term",
}
# Words of a text as well, so that they are operators only beside a field or a group.
_MAYBE_OPERATORS = {"and": _BESIDE, "or": "write | or OR", "not": _NO_OPERATORS["NOT"]}
_GROUP_AHEAD = re.compile(r'\s+-*(?:\(|([^\s()|":]+):)')
# A comparison in the syntax of other languages; signs without a value may follow a field.
_COMPARED = re.compile(
    r"([A-Za-z_]+)(\s*)(>=|<=|==|!=|<>|=~|!~|~=|:=|=>|=<|[=><~≥≤≠]|(?<=\s):)"
    r"""\s*("(?:[^"\\]|\\.)*"\*?|'[^']*'|[^\s()|"]*)"""
)
# The same in words, as in SQL; they are part of a text where no field stands before them.
_COMPARED_IN_WORDS = re.compile(
    r"([A-Za-z_]+)\s+(not\s+)?(is\s+not|is|in|like|contains|equals|between)"
    r"""\s+(\([^()]*\)?|"(?:[^"\\]|\\.)*"|'[^']*'|[^\s()|",]+(?:\s+and\s+[^\s()|",:]+(?=[\s)|]|$))?)""",
    re.IGNORECASE,
)
_VALUE_COMPARED = re.compile(r"[0-9][0-9.,kKmMbB-]*\s*(?:[<>]=?|[=≥≤])\s*([A-Za-z_]+)")


def parse(
    text: str,
    choices: Mapping[str, Collection[str]] = MappingProxyType({}),
    engines: Sequence[Engine] | None = None,
) -> Query:
    """The query that a text says; an empty text matches everything.

    `choices` are the only values of fields, by name, that have none of their own in `catalog.query.fields`.
    `engines` have the rules of the fields on engines, by default the program's own.
    Raises UsageError with the position, counted in characters from 1, and a correction.
    """
    if len(text) > MAX_LENGTH:
        raise UsageError(
            f"A filter may have at most {MAX_LENGTH:,} characters, not {len(text):,}: shorten it."
        )
    reader = _QueryReader(clean_text(text), choices, engines)
    reader.skip()
    if reader.at == len(reader.text):
        return EVERYTHING
    query = reader.either()
    if reader.at < len(reader.text):
        reader.fail("The ) has no matching (", "leave it out, or put a ( before")
    return query


class _QueryReader:
    """Reads a text from left to right, with one method per rule of the grammar; `at` is the position."""

    def __init__(
        self, text: str, choices: Mapping[str, Collection[str]], engines: Sequence[Engine] | None
    ) -> None:
        self.text, self.at, self.depth, self.terms = text, 0, 0, 0
        self.choices, self.engines = choices, engines

    def fail(self, problem: str, advice: str, at: int | None = None) -> NoReturn:
        """Raises UsageError with the position."""
        raise UsageError(f"{problem} at character {(self.at if at is None else at) + 1}: {advice}.")

    def skip(self) -> None:
        """Skips white space."""
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def peek(self) -> str:
        """The next character, empty at the end."""
        return self.text[self.at : self.at + 1]

    def either(self) -> Query:
        """Conjunctions, with | or OR between them."""
        parts = [self.all_of()]
        while self.bar():
            parts.append(self.all_of())
        return Or(tuple(parts)) if len(parts) > 1 else parts[0]

    def bar(self) -> bool:
        """Skips one | or OR; returns whether it was present."""
        if self.peek() == "|":
            self.at += 1
        elif self.bare() == "OR":
            self.at += 2
        else:
            return False
        return True

    def bare(self) -> str:
        """The bare word at the position, empty if there is none; does not advance."""
        match = _BARE_WORD.match(self.text, self.at)
        return match[0] if match else ""

    def all_of(self) -> Query:
        """Terms next to each other."""
        parts = []
        self.skip()
        while self.peek() not in ("", ")", "|") and self.bare() != "OR":
            parts.append(self.one())
            self.skip()
        if not parts:
            self.fail("A term is missing", "write one, such as rank:8..64 or a word")
        return And(tuple(parts)) if len(parts) > 1 else parts[0]

    def one(self) -> Query:
        """A term, a negation or a group."""
        if self.peek() in ("-", "("):
            self.depth += 1
            if self.depth > MAX_DEPTH:
                self.fail(f"More than {MAX_DEPTH} levels are nested", "write it with fewer parentheses")
            query = self.negation() if self.peek() == "-" else self.group()
            self.depth -= 1
            return query
        name = _NAME.match(self.text, self.at)
        if name is not None:
            return self.term(name)
        return self.word()

    def negation(self) -> Query:
        """The operand of a -."""
        self.at += 1
        if self.peek().strip() in ("", ")", "|"):
            self.fail("The - excludes nothing", "put it directly before a term", self.at - 1)
        return Not(self.one())

    def group(self) -> Query:
        """The content of parentheses."""
        opened = self.at
        self.at += 1
        query = self.either()
        if self.peek() != ")":
            self.fail("The ( is never closed", "put a ) at the end of the group", opened)
        self.at += 1
        return query

    def word(self) -> Query:
        """A word without a field."""
        self.refuse_comparison()
        start, (text, quoted) = self.at, self.piece(_BARE_WORD)
        if not quoted and (advice := self.operator(text)):
            self.fail(f"{text} is not an operator", f"{advice}, or put the word in quotes", start)
        if not quoted and "*" in text:
            self.fail(
                f"The word {_format_term(text)} has a *",
                "leave it out, since words match parts of words",
                start,
            )
        if not text:
            self.fail("The word is empty", "write something between the quotes", start)
        self.boundary('put the whole word in quotes, such as "a (b)"')
        self.count(start)
        return Word(fold(text))

    def operator(self, word: str) -> str | None:
        """The correction for a bare word that is an operator in other languages; None for a word."""
        if word in _NO_OPERATORS:
            return _NO_OPERATORS[word]
        ahead = _GROUP_AHEAD.match(self.text, self.at)
        next_is_term = ahead is not None and (ahead[1] is None or fold(ahead[1]) in NAMES)
        return _MAYBE_OPERATORS.get(word.lower()) if next_is_term else None

    def refuse_comparison(self) -> None:
        """Raises UsageError, with the correction, for a comparison of another language at the position."""
        turned = _VALUE_COMPARED.match(self.text, self.at)
        if turned is not None and fold(turned[1]) in NAMES:
            advice = f"write the field first and a range after a colon, such as {turned[1]}:8..64"
            self.fail("Filters do not support this comparison", advice)
        in_words = _COMPARED_IN_WORDS.match(self.text, self.at)
        if in_words is not None and fold(in_words[1]) in NAMES:
            advice = _instead_of_words(FIELDS[NAMES[fold(in_words[1])]], *in_words.groups()[1:])
            problem = f"{in_words[3].upper()} is not an operator"
            self.fail(problem, f"write {advice}, or put the word in quotes", in_words.start(3))
        compared = _COMPARED.match(self.text, self.at)
        if compared is None:
            return
        name, space, sign, text = compared.groups()
        near = difflib.get_close_matches(fold(name), NAMES, n=1, cutoff=0.75)
        if not near:
            # Text such as lr=1e-4 is a word; a sign of two characters or before a number compares.
            if len(sign) == 1 and (sign not in "<>≥≤" or not _NUMBER.fullmatch(text)):
                return
            advice = f"no field is called {_format_term(name)} (the fields are {', '.join(FIELDS)})"
        elif sign == ":" and fold(name) not in NAMES:
            return
        else:
            advice = f"write {_instead(FIELDS[NAMES[near[0]]], sign, text)}"
        place = self.at + len(name) + len(space)
        problem = (
            "There is a space before the :" if sign == ":" else f"{sign} is not part of the filter language"
        )
        self.fail(problem, f"{advice}, or put a word with it in quotes", place)

    def term(self, name: re.Match[str]) -> Query:
        """A field and its values."""
        start, field = self.at, self.field(name[1])
        self.at = name.end()
        parts = [self.value(field)]
        while self.peek() == ",":
            self.at += 1
            parts.append(self.value(field))
        self.boundary('put the whole value in quotes, such as name:"a (b)"')
        self.count(start, sum(len(part.parts) if isinstance(part, Or) else 1 for part in parts))
        return Or(tuple(parts)) if len(parts) > 1 else parts[0]

    def field(self, name: str) -> Field:
        """The field of this name, of whichever case."""
        field = NAMES.get(fold(name))
        if field is None:
            near = difflib.get_close_matches(fold(name), NAMES, n=1)
            advice = f"write {near[0]}" if near else f"the fields are {', '.join(FIELDS)}"
            self.fail(
                f"No field is called {_format_term(name)}", f"{advice}, or put a word with a colon in quotes"
            )
        return FIELDS[field]

    def value(self, field: Field) -> Query:
        """One value, range or pattern of a field."""
        start, (text, quoted) = self.at, self.piece(_BARE_VALUE)
        starred = text.endswith("*") and not quoted
        if quoted and self.peek() == "*":
            starred = True
            self.at += 1
        elif starred:
            text = text[:-1]
        if "*" in text and not quoted:
            self.fail(
                f"{_format_term(text)} contains a *", "put it at the end, or the value in quotes", start
            )
        if not text and starred and not quoted and field.kind != "engine":
            return Present(field.name)
        if not text and (quoted or not starred):
            advice = f"write one directly after the colon, or -{field.name}:* for adapters without"
            self.fail(f"{field.name} has no value", advice, start)
        try:
            if field.kind == "engine":
                return _engines_named(field, text, starred, self.engines)
            return _test(field, text, starred, field.choices or self.choices.get(field.name, ()))
        except ValueError as error:
            self.fail(f"{field.name} cannot be {_format_term(text)}", str(error), start)

    def piece(self, pattern: re.Pattern[str]) -> tuple[str, bool]:
        """The quoted or bare text at the position, and whether it was quoted."""
        if self.peek() == '"':
            match = _QUOTED.match(self.text, self.at)
            if match is None:
                self.fail("The quote is never closed", 'put a " after the text')
            self.at = match.end()
            return re.sub(r"\\(.)", r"\1", match[1], flags=re.DOTALL), True
        match = pattern.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return (match[0] if match else ""), False

    def boundary(self, advice: str) -> None:
        """Raises UsageError unless a term may end here."""
        following = self.peek()
        if following.strip() not in ("", ")", "|"):
            self.fail(f"A space is missing before {following}", advice)

    def count(self, start: int, terms: int = 1) -> None:
        """Raises UsageError where there are too many terms."""
        self.terms += terms
        if self.terms > MAX_TERMS:
            self.fail(f"The filter has more than {MAX_TERMS} terms", "split the filter", start)


def _format_term(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")


def _test(field: Field, text: str, starred: bool, choices: Collection[str]) -> Query:
    """The term of a field and a value; raises ValueError with a correction."""
    if field.kind == "text":
        text = fold(text)
        if choices:
            _check_choice(text, starred, choices)
        return Prefix(field.name, text) if starred else Equals(field.name, text)
    if starred:
        raise ValueError("a * may only end a text")
    if field.kind == "flag":
        if fold(text) not in _FLAGS:
            raise ValueError("it is yes or no")
        return Flag(field.name, _FLAGS[fold(text)])
    if field.kind == "date":
        return _date_range(field.name, text)
    return _number_range(field, text)


def _check_choice(text: str, starred: bool, choices: Collection[str]) -> None:
    if not any(_fits(choice, text, starred) for choice in choices):
        near = "".join(
            f"write {near_choice}; " for near_choice in difflib.get_close_matches(text, choices, n=1)
        )
        raise ValueError(f"{near}it is one of {', '.join(choices)}")


def _engines_named(field: Field, text: str, starred: bool, engines: Sequence[Engine] | None) -> Query:
    """The term of a field on engines, or one for each whose name begins so; raises ValueError likewise."""
    by_name = {fold(engine.name): engine for engine in (load_engines() if engines is None else engines)}
    text = fold(text)
    _check_choice(text, starred, tuple(by_name))
    parts = tuple(Runs(field.name, by_name[name]) for name in by_name if _fits(name, text, starred))
    return Or(parts) if len(parts) > 1 else parts[0]


def _fits(choice: str, text: str, starred: bool) -> bool:
    return choice.startswith(text) if starred else choice == text


def _instead(field: Field, sign: str, text: str) -> str:
    """The equivalent filter of a comparison of a field with a text; a sample if the text is not a value."""
    # Other languages put texts in single quotes.
    value = f'"{text[1:-1]}"' if len(text) > 2 and text[0] == text[-1] == "'" else text
    try:
        equal = parse(f"{field.name}:{value}")
        return to_text(_comparison(field, sign, equal))
    except (UsageError, ValueError):
        return (
            f"{field.name}: and a value directly after it, such as {_SAMPLES[field.kind].format(field.name)}"
        )


def _instead_of_words(field: Field, negation: str | None, word: str, text: str) -> str:
    """The equivalent filter of a comparison in words: `in (a, b)`, `between 1 and 2`, `is not null`."""
    negated = bool(negation) or word.lower().endswith("not")
    if text.lower() in ("null", "none"):
        return f"{field.name}:*" if negated else f"-{field.name}:*"
    first, *remaining = re.split(r"\s+and\s+", text, flags=re.IGNORECASE)
    if word.lower() == "between":
        text = "..".join([first, *remaining])
    else:
        text = ",".join(re.sub(r"^'(.*)'$", r'"\1"', value.strip()) for value in first.strip("()").split(","))
    return _instead(field, "!=" if negated else "=", text)


def _comparison(field: Field, sign: str, equal: Query) -> Query:
    """The term that a comparison means, from the one of equality; raises ValueError if there is none."""
    if "~" in sign and isinstance(equal, Equals):
        equal = Prefix(field.name, equal.text)
    if sign in ("!=", "<>", "!~", "≠"):
        return Not(equal)
    if not isinstance(equal, Between) or not set(sign) & set("<>≥≤"):
        return equal
    if equal.low != equal.high or equal.low is None:
        raise ValueError("a range already includes both ends")
    return _beyond(equal, above=bool(set(sign) & set(">≥")), included=bool(set(sign) & set("=≥≤")))


_SAMPLES = {
    "text": "{}:value",
    "whole": "{}:8..64",
    "number": "{}:0.5..2",
    "date": "{}:2024..",
    "flag": "{}:yes",
    "engine": "{}:vllm",
}


def _beyond(equal: Between, *, above: bool, included: bool) -> Between:
    """The range from a value or to it; a real number is always included, as it has no neighbour."""
    end = equal.low
    step = 0 if included else 1 if above else -1
    if isinstance(end, Period):
        end = end.shift(step)
    elif isinstance(end, int):
        end += step
    return Between(equal.field, end, None) if above else Between(equal.field, None, end)


def _ends(text: str, read: Callable[[str], Any]) -> tuple[Any, Any]:
    """Both ends of a range, or a single value twice."""
    low, dots, high = text.partition("..")
    if not dots:
        return (value := read(text)), value
    if not low and not high:
        raise ValueError("a range has at least one end, such as 8..64, 8.. or ..64")
    return (read(low) if low else None), (read(high) if high else None)


def _number_range(field: Field, text: str) -> Between:
    low, high = _ends(text, _whole if field.kind == "whole" else _real)
    if low is not None and high is not None and low > high:
        raise ValueError(f"it contains no number, so write {number_text(high)}..{number_text(low)}")
    return Between(field.name, low, high)


def _decimal(text: str) -> Decimal:
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ValueError("write a number such as 8, 0.5 or 16k, or a range such as 8..64, 8.. or ..64")
    return Decimal(match[1]) * _FACTORS[match[2].lower()]


def _whole(text: str) -> int:
    value = _decimal(text)
    if abs(value) > _INT64 or value != value.to_integral_value():
        raise ValueError(f"it must be one of the whole numbers up to {_INT64}")
    return int(value)


def _real(text: str) -> float:
    value = float(_decimal(text))
    if value in (float("inf"), float("-inf")):
        raise ValueError("it must be at most about 1.8e308")
    return value


def _date_range(name: str, text: str) -> Between:
    low, high = _ends(text, _period)
    if low is not None and high is not None and high.end is not None and low.start >= high.end:
        raise ValueError(f"it contains no day, so write {high}..{low}")
    return Between(name, low, high)


def _period(text: str) -> Period:
    match = _PERIOD.fullmatch(text)
    if match is not None:
        year, month, day = (None if part is None else int(part) for part in match.groups())
        with suppress(ValueError):  # a month 13, a 30th of February
            return Period(year or 0, month, day)
    raise ValueError("write a date such as 2024, 2024-08 or 2024-08-15, or a range such as ..2024-08")
