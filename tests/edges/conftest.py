"""The program, a Hub in a folder and a data folder, as for the tests of the command line."""

from tests.cli.conftest import data, hub, root, run, sample, start

__all__ = ["data", "hub", "root", "run", "sample", "start"]
