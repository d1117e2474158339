"""The table of merge methods in docs/reference/merging.md; `python -m tests.merging.document` writes it."""

from __future__ import annotations

from pathlib import Path

from merging.methods import METHODS

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reference" / "merging.md"
BEGIN, END = "<!-- methods -->\n", "<!-- end of methods -->"


def table() -> str:
    """Every row of the table of methods in Markdown."""
    lines = [
        "| method | what it does | weight | parameters | exact | gauge | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in METHODS.values():
        parameters = "<br>".join(
            f"`{p.name}` = {p.default} ({p.range.replace('|', 'or')})" for p in row.parameters
        )
        exact = "needs activations" if row.data else "yes" if row.exact else "no"
        source = row.paper.removeprefix("https://").removeprefix("arxiv.org/abs/").partition("/")[0]
        cells = (
            f"`{row.name}`",
            row.summary,
            row.default_weight,
            parameters,
            exact,
            row.gauge,
            f"[{source}]({row.paper})",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def with_table(text: str) -> str:
    """A text with the table between its two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(with_table(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
