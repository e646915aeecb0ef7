"""Redrives of the quarantine in SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, insert, select, update

from schemas.catalog_changes import NO_ACCOUNT
from schemas.errors import Fenced
from schemas.redrives import REDRIVE_ENTITY, Redrive, RedriveCounts, RedriveState, Selection
from sinks.sql import audit
from sinks.sql.intents import Run
from sinks.sql.key_tables import redrives
from sinks.sql.keys import lock_audit
from sinks.sql.queries import save_heads

CAUSE: Final = "quarantine redrive"


class SqlRedrives:
    """Implements `schemas.redrives.Redrives`, whose docstrings hold."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def running(self, selection: Selection) -> Redrive | None:
        return await self._run(lambda connection: _running(connection, selection))

    async def begin(self, redrive: Redrive) -> Redrive:
        audit.check_said(("by", redrive.by), ("why", redrive.reason))

        def body(connection: Connection) -> Redrive:
            # Whoever begins the same one at the same time waits here.
            lock_audit(connection, redrive.touched_ms)
            found = _running(connection, redrive.selection)
            if found is not None:
                return found
            connection.execute(insert(redrives), _row(redrive))
            _noted(connection, redrive, before=None)
            return redrive

        return await self._run(body)

    async def move(self, believed: Redrive, moved: Redrive) -> None:
        column = redrives.c
        here = (column.id == believed.id) & (column.steps == believed.steps)
        row = _row(moved._replace(steps=believed.steps + 1))
        row = {name: row[name] for name in ("positions_json", "steps", "counts_json", "state", "touched_ms")}

        def body(connection: Connection) -> None:
            if moved.state is RedriveState.DONE:
                _noted(connection, moved, before=believed)
            if not connection.execute(update(redrives).where(here).values(row)).rowcount:
                raise Fenced(f"another process goes on with the redrive {believed.id}")

        await self._run(body)

    async def listed(self, limit: int) -> Sequence[Redrive]:
        wanted = select(redrives).order_by(redrives.c.begun_ms.desc(), redrives.c.id).limit(limit)
        return await self._run(lambda connection: [_redrive(row) for row in connection.execute(wanted).mappings()])


def _running(connection: Connection, selection: Selection) -> Redrive | None:
    column = redrives.c
    wanted = select(redrives).where(column.selection_json == _selection(selection))
    row = connection.execute(wanted.where(column.state == RedriveState.RUNNING.value)).mappings().first()
    return None if row is None else _redrive(row)


def _noted(connection: Connection, redrive: Redrive, before: Redrive | None) -> None:
    """Add a row to the audit."""
    head = lock_audit(connection, redrive.touched_ms)
    row = audit.next_row(
        head, NO_ACCOUNT, redrive.touched_ms, actor=redrive.by, cause=CAUSE, entity=(REDRIVE_ENTITY, redrive.id),
        before=None if before is None else {"state": before.state.value},
        after={"state": redrive.state.value, **redrive.selection._asdict(), **redrive.counts._asdict()},
        reason=redrive.reason,
    )  # fmt: skip
    audit.append(connection, [(row, head.audit_hash)])
    save_heads(connection, {NO_ACCOUNT: head})


def _selection(selection: Selection) -> str:
    return audit.canonical(selection._asdict())


def _row(redrive: Redrive) -> dict[str, Any]:
    return {
        "id": redrive.id, "selection_json": _selection(redrive.selection), "by": redrive.by, "reason": redrive.reason,
        "ends_json": audit.canonical(list(redrive.ends)), "positions_json": audit.canonical(list(redrive.positions)),
        "steps": redrive.steps, "counts_json": audit.canonical(redrive.counts._asdict()),
        "state": redrive.state.value, "begun_ms": redrive.begun_ms, "touched_ms": redrive.touched_ms,
    }  # fmt: skip


def _redrive(row: Mapping[Any, Any]) -> Redrive:
    read = msgspec.json.decode
    return Redrive(
        row["id"], Selection(**read(row["selection_json"])), row["by"], row["reason"], read(row["ends_json"]),
        read(row["positions_json"]), row["steps"], RedriveCounts(**read(row["counts_json"])),
        RedriveState(row["state"]), row["begun_ms"], row["touched_ms"],
    )  # fmt: skip
