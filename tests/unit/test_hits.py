"""What a hit of a search says of itself."""

from __future__ import annotations

import pytest

from catalog.search.ranking import SearchHit


@pytest.mark.parametrize(
    ("cosine", "text"), [(-0.004, "0.00"), (0.004, "0.00"), (-0.006, "-0.01"), (1.0, "1.00")]
)
def test_a_cosine_that_rounds_to_nothing_has_no_sign(cosine: float, text: str) -> None:
    hit = SearchHit(id=1, adapter="o/r", score=1.0, commit="c", rank=8, license=None, cosine=cosine)
    assert hit.why == f"meaning {text}"
