"""Mutated inputs for every reader of foreign bytes; run by `make fuzz`, or `python -m tools.fuzz --help`."""
