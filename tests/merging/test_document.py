"""The document says what the table of methods says."""

from __future__ import annotations

from tests.merging.document import DOCUMENT, with_table


def test_the_table_of_methods_is_the_one_in_the_document() -> None:
    """`python -m tests.merging.document` writes it anew."""
    text = DOCUMENT.read_text(encoding="utf-8")
    assert with_table(text) == text
