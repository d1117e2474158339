"""Every machine-readable output of the program, compared byte for byte with what was recorded.

`recorded/` holds what a fixed list of commands (`commands.py`) printed and wrote: JSON, JSON lines, CSV,
`pool.json`, `merge.json`, score logs, study steps, stamps of caches, digests of vectors and weights. What
changes from run to run is replaced by the narrow rules of `normalise.py`. Wording is not compared.

`python -m tests.golden` records again. It is for deliberate changes of a format alone: a difference that
nobody meant is a fault of the program, and is mended there.
"""
