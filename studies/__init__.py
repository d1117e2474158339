"""Studies: a YAML file becomes steps, steps become results, results a report."""

from catalog.extras import require_extra

require_extra("study", "A study")
