"""Words and exit codes only."""
