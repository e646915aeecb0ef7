"""Holds in SQL. The transactions of an account come one after the other."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, delete, func, insert, select, text, update

from aggregators.holds import NOTHING, held_by, is_open, open_since_ms, until_ms
from schemas.errors import InvalidInput
from schemas.holds import KEPT_MS, OPEN_MAX, Hold, Taken
from sinks.sql.intents import Run
from sinks.sql.queries import LOCK_SPACE
from sinks.sql.tables import holds

# The first key of the locks of accounts' holds. They are apart from the accounts' rows, because the mirror keeps those
# locked for the length of its steps, and an account that nobody made has none.
HOLDS_LOCK_SPACE: Final = LOCK_SPACE + 1


class SqlHolds:
    """Implements `schemas.holds.Holds`, whose docstrings hold."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def take(
        self,
        hold: Hold,
        features: frozenset[str],
        allows: Callable[[Decimal], bool],
        complete_up_to_ms: int | None,
        now_ms: int,
    ) -> Taken:
        return await self._run(lambda connection: _take(connection, hold, features, allows, complete_up_to_ms, now_ms))

    async def get(self, hold_id: str) -> Hold | None:
        return await self._run(lambda connection: _get(connection, hold_id))

    async def end(self, hold_id: str, used: Decimal, now_ms: int) -> Hold | None:
        return await self._run(lambda connection: _end(connection, hold_id, used, now_ms))

    async def open(self, account: str, since_ms: int) -> Sequence[Hold]:
        return await self._run(lambda connection: _since(connection, account, since_ms))

    async def holders(self, since_ms: int, limit: int) -> Mapping[str, int] | None:
        wanted = (
            select(holds.c.account, func.max(holds.c.until_ms))
            .where(holds.c.until_ms >= since_ms)
            .group_by(holds.c.account)
            .limit(limit + 1)
        )
        found = await self._run(lambda connection: {row[0]: int(row[1]) for row in connection.execute(wanted)})
        return found if len(found) <= limit else None

    async def sweep(self, now_ms: int, limit: int) -> int:
        old = select(holds.c.id).where(holds.c.until_ms < now_ms - KEPT_MS).order_by(holds.c.until_ms).limit(limit)
        return await self._run(lambda connection: connection.execute(delete(holds).where(holds.c.id.in_(old))).rowcount)


def _lock(connection: Connection, account: str) -> None:
    """Lock an account's holds until the transaction ends. In SQLite a transaction has the whole database."""
    if connection.dialect.name == "postgresql":
        number = zlib.crc32(account.encode()) - (1 << 31)
        statement = text("SELECT pg_advisory_xact_lock(:space, :number)")
        connection.execute(statement, {"space": HOLDS_LOCK_SPACE, "number": number})


def _take(
    connection: Connection,
    hold: Hold,
    features: frozenset[str],
    allows: Callable[[Decimal], bool],
    complete_up_to_ms: int | None,
    now_ms: int,
) -> Taken:
    _lock(connection, hold.account)
    if hold.key:
        here = (holds.c.account == hold.account) & (holds.c.request_key == hold.key)
        row = connection.execute(select(holds).where(here)).mappings().first()
        if row is not None:
            _check_same(_hold(row), hold)
            return Taken(_hold(row), NOTHING, is_repeated=True)
    known_ms = open_since_ms(complete_up_to_ms, now_ms)
    counted = [each for each in _since(connection, hold.account, known_ms) if is_open(each, complete_up_to_ms, now_ms)]
    held = held_by(counted, features, complete_up_to_ms, now_ms)
    if not allows(held):
        return Taken(None, held)
    if len(counted) >= OPEN_MAX:
        message = f"the account has {OPEN_MAX} open holds: use or release some, or hold for a shorter time"
        raise InvalidInput("hold_s", message)
    connection.execute(insert(holds), _row(hold))
    return Taken(hold, held)


def _since(connection: Connection, account: str, since_ms: int) -> list[Hold]:
    wanted = select(holds).where(holds.c.account == account, holds.c.until_ms >= since_ms)
    return [_hold(row) for row in connection.execute(wanted).mappings()]


def _check_same(found: Hold, hold: Hold) -> None:
    """Raise `InvalidInput` if a key was sent with another request."""
    asked, before = [(each.feature, each.quantity, each.expires_ms - each.taken_ms) for each in (hold, found)]
    if asked != before:
        message = "was sent before with another feature, quantity or hold_s: send another key"
        raise InvalidInput("Idempotency-Key", message)


def _get(connection: Connection, hold_id: str) -> Hold | None:
    if "\0" in hold_id:
        # PostgreSQL refuses the whole statement.
        return None
    row = connection.execute(select(holds).where(holds.c.id == hold_id)).mappings().first()
    return None if row is None else _hold(row)


def _end(connection: Connection, hold_id: str, used: Decimal, now_ms: int) -> Hold | None:
    found = _get(connection, hold_id)
    if found is None:
        return None
    if used > found.quantity:
        raise InvalidInput("quantity", f"only {found.quantity:f} are held: take another hold for more")
    _lock(connection, found.account)
    found = _get(connection, hold_id)
    # Once a hold is over, its room may be another's.
    if found is None or found.used is not None or (used and now_ms > found.expires_ms):
        return found
    ended = found._replace(used=used, ended_ms=now_ms)
    connection.execute(update(holds).where(holds.c.id == hold_id).values(_row(ended)))
    return ended


def _hold(row: RowMapping) -> Hold:
    used = row["used"]
    return Hold(
        row["id"], row["account"], row["feature"], Decimal(row["quantity"]), row["taken_ms"], row["expires_ms"],
        bool(row["is_metered"]), row["request_key"], None if used is None else Decimal(used), row["ended_ms"],
    )  # fmt: skip


def _row(hold: Hold) -> dict[str, Any]:
    return {
        "id": hold.id, "account": hold.account, "feature": hold.feature, "quantity": f"{hold.quantity:f}",
        "taken_ms": hold.taken_ms, "expires_ms": hold.expires_ms, "is_metered": int(hold.is_metered),
        "request_key": hold.key, "used": None if hold.used is None else f"{hold.used:f}", "ended_ms": hold.ended_ms,
        "until_ms": until_ms(hold),
    }  # fmt: skip
