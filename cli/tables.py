"""Texts and columns that the output of several commands shares."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.adapters import adapter_name
from cli.output import NO_BREAK, Column, label_lines, table
from crawler.crawl import refusing
from loradex.rows import cell_text

if TYPE_CHECKING:
    from catalog.adapters import EngineVerdict
    from loradex.pool import Pool

# Between things of one line; a line may end after it.
DOT = f"{NO_BREAK}· "
RUNS = {True: "yes", False: "no", None: "unknown"}
LLAMA_LINEAR = ("q", "k", "v", "o", "gate", "up", "down")


def score_column(digits: int = 3) -> Column:
    """A score, empty if there is none."""
    return Column("score", right=True, show=lambda score: "" if score is None else f"{score:.{digits}f}")


def runs_column() -> Column:
    """Whether an engine runs an adapter, in a word."""
    return Column("runs", show=lambda runs: RUNS[runs])


def engine_lines(rows: Sequence[EngineVerdict]) -> list[tuple[str, str]]:
    """Which engines run an adapter, which do not and why, and for which its file must be read."""
    running = [f"{row.engine} ({row.option})" if row.option else row.engine for row in rows if row.runs]
    unknown = [row.engine for row in rows if row.runs is None]
    refusals = [f"{row.engine}: {'; '.join(row.reasons)}" for row in rows if row.runs is False]
    lines = [("runs in", ", ".join(running)), ("unknown", ", ".join(unknown))]
    lines += zip_longest(["not in"], refusals, fillvalue="") if refusals else []
    return [(label, text) for label, text in lines if text]


def reasons_with_counts(reasons: Mapping[str, int]) -> str:
    """Reasons, each with the number of adapters that it holds for."""
    return "; ".join(f"{text} ({count:,})" for text, count in reasons.items())


def short_targets(names: Sequence[str] | None) -> str:
    """Target modules in few letters: `q,v`, or `all-linear` for the seven of a Llama layer."""
    short = {name.removesuffix("_proj") for name in names or ()}
    unusual = first_of(sorted(short.difference(LLAMA_LINEAR)), 4)
    if short.issuperset(LLAMA_LINEAR):
        return ", ".join(["all-linear", *unusual])
    return ",".join([*(name for name in LLAMA_LINEAR if name in short), *unusual])


def first_of(texts: Sequence[str], most: int) -> list[str]:
    """The first of many texts, and how many more there are."""
    more = len(texts) - most
    return [*texts[:most], f"and {more:,} more"] if more > 0 else list(texts)


def short_count(number: int | None) -> str:
    """A number of parameters in three digits: 41.9M."""
    if number is None:
        return ""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return str(number)


# The rank of an adapter, its target modules in few letters, and the number of its parameters.
RANK = Column("rank", right=True)
TARGETS = Column("targets", show=short_targets)
SIZE = Column("parameters", "size", True, short_count)


def reasons_text(reasons: Sequence[str], refusals: Collection[str]) -> str:
    """The reasons that refuse, then in parentheses those that do not."""
    against = ", ".join(name for name in reasons if name in refusals)
    noted = ", ".join(name for name in reasons if name not in refusals)
    return f"{against} ({noted})".strip() if noted else against


def verdict_text(reasons: Sequence[str], refusals: Collection[str]) -> str:
    """The verdict with its reasons."""
    refused = any(name in refusals for name in reasons)
    text = reasons_text(reasons, refusals)
    return f"skipped: {text}" if refused else f"accepted {text}".strip()


def verdict_lines(counts: Mapping[str, Any], rules: str) -> list[tuple[str, str]]:
    """How many adapters there are, how many the rules accept, and why not the others, as labelled values."""
    refusals, reasons = refusing(rules), counts["reasons"]
    unread = f" ({counts['unmeasured']:,} unmeasured)" if counts.get("unmeasured") else ""
    accepted, skipped = (
        f"accepted {counts['accepted']:,}{unread}",
        f"skipped {counts['skipped']:,} (rules:{NO_BREAK}{rules})",
    )
    by_paper = "accepted_by_paper" in counts and rules != "paper"
    return [
        ("adapters", DOT.join([f"{counts['adapters']:,}", accepted, skipped])),
        ("paper's rules", f"accepted {counts['accepted_by_paper']:,}" if by_paper else ""),
        ("skipped for", counts_text({name: n for name, n in reasons.items() if name in refusals})),
        ("also noted", counts_text({name: n for name, n in reasons.items() if name not in refusals})),
    ]


def cost_text(crawl: Mapping[str, Any]) -> str:
    """What a crawl took: requests, bytes and seconds, as far as they are known."""
    requests = crawl["requests"]
    parts = [f"{requests['api']:,} API and {requests['resolver']:,} resolver requests"]
    if "bytes" in crawl:
        size = crawl["bytes"]
        amount = f"{size / 1e3:,.0f} kB" if size < 1e5 else f"{size / 1e6:,.1f} MB"
        parts += [amount, f"{crawl['seconds']:,.1f} s"]
    return DOT.join(part.replace(" ", NO_BREAK) for part in parts)


def counts_text(counts: Mapping[str, int]) -> str:
    """Counts by name, the largest first, to be wrapped between the pairs."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return DOT.join(f"{name}{NO_BREAK}{n:,}" for name, n in ordered)


def pool_paths(pool: Pool) -> dict[str, Path]:
    """Where a pool and its controls were saved, by their names."""
    return {row.name: row.path for row in (pool, *pool.control_pools) if row.path is not None}


def pool_text(pool: Mapping[str, Any], places: Mapping[str, Path]) -> str:
    """A pool as lines: what it is, then its members."""
    members = [
        {**member, "adapter": adapter_name(member["repository"], member["subfolder"])}
        for member in pool["members"]
    ]
    without = pool["chosen"].get("without", ())
    choice = DOT.join(f"{name} {cell_text(value)}" for name, value in pool["chosen"].items())
    rows = [
        ("pool", f"{pool['name']}  {len(members)} members of {pool['base']}"),
        ("chosen", choice),
        ("use", pool["use"]),
        ("merge with", f"--without {','.join(without)}" if without else ""),
        ("digest", pool["digest"]),
        *(("saved" if name == pool["name"] else "control", str(path)) for name, path in places.items()),
        ("to compare", ", ".join(row["kind"] for row in pool["controls"])),
    ]
    columns = (score_column(), Column("adapter"), RANK, Column("license"), Column("why"))
    lines = [label_lines(rows), "", *table(members, columns)]
    if verdicts := pool.get("runs_in"):
        lines += ["", label_lines(member_engine_lines(verdicts))]
    return "\n".join(lines)


def member_engine_lines(verdicts: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """For each engine how many members it runs, with which option, and why not the others."""
    lines = []
    for engine in dict.fromkeys(row["engine"] for row in verdicts):
        rows = [row for row in verdicts if row["engine"] == engine]
        counts = {label: sum(row["runs"] is runs for row in rows) for runs, label in RUNS.items()}
        options = sorted({row["option"] for row in rows if row["option"]}, key=len)
        reasons: dict[str, list[str]] = {}
        for row in rows:
            for reason in row["reasons"]:
                reasons.setdefault(reason, []).append(row["adapter"])
        parts = [f"runs {counts['yes']:,} of {len(rows):,}{f' ({options[-1]})' if options else ''}"]
        parts += [f"unknown {counts['unknown']:,}"] if counts["unknown"] else []
        parts += [f"{', '.join(first_of(names, 3))}: {reason}" for reason, names in reasons.items()]
        lines.append((engine, DOT.join(parts)))
    return lines
