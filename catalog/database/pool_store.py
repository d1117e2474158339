"""Pools in the catalog: the manifest unchanged, and links to the adapters of the catalog."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from catalog.adapters import EngineFacts
from catalog.database import store
from catalog.database.schema import Adapter, PoolMember, Repository, SavedPool
from catalog.errors import NotFoundError, PoolError
from catalog.pools import Manifest, Member, parse_manifest


def save_pool(session: Session, manifest: Manifest, now: datetime, *, replace: bool = False) -> SavedPool:
    """Writes a pool under its name; the same pool again changes nothing.

    Raises PoolError if another pool has the name, unless it is to be replaced.
    """
    row = session.scalar(select(SavedPool).where(SavedPool.name == manifest.name))
    if row is not None and row.digest == manifest.digest:
        return row
    if row is not None and not replace:
        raise PoolError(
            f"A different pool called {manifest.name} exists; choose a new name or add `replace=True`."
        )
    row = row or SavedPool(name=manifest.name)
    row.digest, row.created_at = manifest.digest, now
    row.manifest = manifest.canonical().decode()
    session.add(row)
    session.flush()
    session.execute(delete(PoolMember).where(PoolMember.pool_id == row.id))
    for position, member in enumerate(manifest.members):
        adapter_id = known_adapter(session, member)
        if adapter_id is not None:
            session.add(PoolMember(pool_id=row.id, position=position, adapter_id=adapter_id))
    session.flush()
    return row


def known_adapter(session: Session, member: Member) -> int | None:
    """The row of a member at its commit, None where the catalog does not know it."""
    return session.scalar(
        select(Adapter.id)
        .join(Adapter.repository)
        .where(Repository.hub_id == member.hub_id, Adapter.commit == member.commit)
        .where(Adapter.subfolder == member.subfolder)
    )


def engine_facts_of(session: Session, member: Member) -> EngineFacts | None:
    """What engines look at in a member at its commit, None where the catalog does not hold its files."""
    adapter_id = known_adapter(session, member)
    return None if adapter_id is None else store.read_facts(session, session.get_one(Adapter, adapter_id))


def find_pool(session: Session, name: str) -> Manifest:
    """The manifest of a pool by name; raises NotFoundError, and PoolError for an invalid row."""
    row = session.scalar(select(SavedPool).where(SavedPool.name == name))
    if row is None:
        raise NotFoundError(f"Pool {name!r} not found; `pools()` lists all pools.")
    return parse_manifest(row.manifest.encode())


def pools(session: Session) -> list[dict[str, Any]]:
    """Name, digest, number of members, strategy and time of all pools, by name."""
    rows = []
    for row in session.scalars(select(SavedPool).order_by(SavedPool.name)):
        manifest = parse_manifest(row.manifest.encode())
        rows.append(
            {
                "pool": row.name,
                "members": len(manifest.members),
                "by": manifest.chosen.get("by"),
                "base": manifest.base,
                "use": manifest.use,
                "controls": [control.get("pool") or control.get("kind") for control in manifest.controls],
                "digest": row.digest,
                "created": row.created_at,
            }
        )
    return rows


def remove_pools(session: Session, names: Sequence[str]) -> int:
    """Removes pools by name; returns the number removed."""
    rows = session.scalars(select(SavedPool).where(SavedPool.name.in_(names))).all()
    for row in rows:
        session.execute(delete(PoolMember).where(PoolMember.pool_id == row.id))
        session.delete(row)
    session.flush()
    return len(rows)
