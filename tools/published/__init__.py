"""The recycling paper's own published tables: parts that each give rows, and the report of these rows."""

from tools.published.exhibits import sections
from tools.published.parts import PARTS
from tools.published.quoted import Row
from tools.published.tables import digests

# The folder of the results in docs/results.
NAME = "published"

__all__ = ["NAME", "PARTS", "Row", "digests", "sections"]
