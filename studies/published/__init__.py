"""The recycling paper's own published tables: parts that each give rows, and the report of these rows."""

from studies.published.exhibits import sections
from studies.published.parts import PARTS
from studies.published.quoted import Row
from studies.published.tables import digests

__all__ = ["PARTS", "Row", "digests", "sections"]
