"""The requests of one account in a row of the catalog, of which all processes that crawl draw."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from catalog.database import for_writing, leases
from crawler.hub import MARGIN, Draw, Hub, HubSettings, Kind, Lane, RateLimit, SharedBudget, limits_of, usable

Result = TypeVar("Result")


class CatalogLedger:
    """The ledger of an account in a catalog; `limits` hold until the server names others."""

    def __init__(self, engine: Engine, settings: HubSettings) -> None:
        self._engine, self._limits = engine, limits_of(settings)
        account = f"{settings.endpoint} {settings.token or ''}"
        self._account = hashlib.sha256(account.encode()).hexdigest()[:32]

    def draw(self, kind: Kind, most: int, limit: RateLimit | None) -> Draw:
        """As `crawler.hub.Ledger` says."""

        def take(lane: Lane, now: float) -> Draw:
            if limit is not None:
                lane.observe(now, limit, MARGIN)
            return lane.draw(now, most)

        return self._change(kind, take)

    def give_back(self, kind: Kind, draw: Draw, count: int) -> None:
        """As `crawler.hub.Ledger` says."""
        self._change(kind, lambda lane, _now: lane.give_back(draw, count))

    def _change(self, kind: Kind, change: Callable[[Lane, float], Result]) -> Result:
        """Changes the row while no other process does; times are those of the database."""
        quota = usable(self._limits[kind]) if kind in self._limits else None
        with Session(for_writing(self._engine)) as session, session.begin():
            row, now = leases.lock_budget(session, self._account, kind, Lane(quota).as_json())
            lane = Lane.from_json(row.state)
            result = change(lane, now)
            row.state = lane.as_json()
        return result


@contextmanager
def share_budget(hub: Hub, engine: Engine) -> Iterator[None]:
    """Inside the block a client draws of the budget that the processes of its account share in PostgreSQL.

    At its end it returns what it did not send.
    """
    if engine.dialect.name == "sqlite":
        yield
        return
    budget = SharedBudget(CatalogLedger(engine, hub.settings))
    hub.use_budget(budget)
    try:
        yield
    finally:
        budget.close()
