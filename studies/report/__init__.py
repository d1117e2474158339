"""The report of a study: what its numbers allow to say, tables and pictures, as a page and as Markdown."""
