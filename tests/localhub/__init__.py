"""The local Hub as tests need it: with faults, limits, redirects and a log of what it was asked for."""

from tests.localhub.server import FaultHub, Limits

__all__ = ["FaultHub", "Limits"]
