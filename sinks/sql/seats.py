"""Seats in SQL, and which accounts are to pay for theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, case, delete, func, insert, or_, select, update

from schemas.errors import InvalidInput
from schemas.seats import (
    HOLDERS_MAX,
    QUIET_MS,
    QUIET_MS_MAX,
    Holders,
    Room,
    Seat,
    Seats,
    SeatState,
    Taken,
    Unpaid,
    Waiting,
)
from sinks.sql import audit
from sinks.sql.entitlements import billed_now, newest_version
from sinks.sql.intents import Run
from sinks.sql.queries import Head, insert_new, lock_accounts, save_heads
from sinks.sql.seat_tables import seats, unpaid_seats
from sinks.sql.tables import accounts

CAUSE: Final = "seat"
EXPIRY: Final = "expiry"
_ACTIVE: Final = SeatState.ACTIVE.value
_RESERVED: Final = SeatState.RESERVED.value
_RELEASED: Final = SeatState.RELEASED.value


class SqlSeats(Seats):
    """Implements `schemas.seats.Seats`, whose docstrings hold."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def take(self, seat: Seat, room: Room, actor: str, now_ms: int) -> Taken:
        return await self._run(lambda connection: _take(connection, seat, room, actor, now_ms))

    async def activate(self, account: str, seat: str, actor: str, now_ms: int) -> Seat | None:
        return await self._run(lambda connection: _move(connection, account, seat, SeatState.ACTIVE, actor, now_ms))

    async def release(self, account: str, seat: str, actor: str, now_ms: int) -> Seat | None:
        return await self._run(lambda connection: _move(connection, account, seat, SeatState.RELEASED, actor, now_ms))

    async def listed(self, account: str, feature: str, now_ms: int, limit: int, after: str = "") -> Sequence[Seat]:
        if "\0" in feature + after:
            # PostgreSQL refuses the whole statement.
            return []
        wanted = select(seats).where(seats.c.account == account, seats.c.id > after, _is_held(now_ms))
        if feature:
            wanted = wanted.where(seats.c.feature == feature)
        wanted = wanted.order_by(seats.c.id).limit(limit)
        return await self._run(lambda connection: [_seat(row) for row in connection.execute(wanted).mappings()])

    async def holders(self, account: str, now_ms: int) -> Mapping[str, Holders]:
        return await self._run(lambda connection: _holders(connection, account, now_ms))

    async def sweep(self, now_ms: int, limit: int) -> int:
        return await self._run(lambda connection: _sweep(connection, now_ms, limit))

    async def unpaid(self, now_ms: int, limit: int) -> Sequence[Unpaid]:
        wanted = select(unpaid_seats).where(unpaid_seats.c.due_ms <= now_ms)
        wanted = wanted.order_by(unpaid_seats.c.due_ms, unpaid_seats.c.account).limit(limit)
        return await self._run(lambda connection: [_unpaid(row) for row in connection.execute(wanted).mappings()])

    async def followed(self, unpaid: Unpaid) -> None:
        await self._run(lambda connection: connection.execute(delete(unpaid_seats).where(_is_same(unpaid))))

    async def postpone(self, unpaid: Unpaid, due_ms: int, detail: str) -> None:
        values = {"due_ms": due_ms, "tries": unpaid.tries + 1, "detail": detail}
        changed = update(unpaid_seats).where(_is_same(unpaid)).values(**values)
        await self._run(lambda connection: connection.execute(changed))

    async def waiting(self) -> Waiting:
        wanted = select(func.count(), func.min(unpaid_seats.c.since_ms)).select_from(unpaid_seats)
        return await self._run(lambda connection: Waiting(*connection.execute(wanted).one()))


def _is_same(unpaid: Unpaid) -> ColumnElement[bool]:
    return (unpaid_seats.c.account == unpaid.account) & (unpaid_seats.c.number == unpaid.number)


def _is_held(now_ms: int) -> ColumnElement[bool]:
    """That a seat counts. The index of a holder's one seat says the state first."""
    return or_(seats.c.state == _ACTIVE, and_(seats.c.state == _RESERVED, seats.c.expires_ms > now_ms))


def _holders(connection: Connection, account: str, now_ms: int) -> dict[str, Holders]:
    is_reserved = and_(seats.c.state == _RESERVED, seats.c.expires_ms > now_ms)
    reserved = func.sum(case((is_reserved, 1), else_=0))
    active = func.sum(case((seats.c.state == _ACTIVE, 1), else_=0))
    wanted = select(seats.c.feature, reserved, active).where(seats.c.account == account).group_by(seats.c.feature)
    return {feature: Holders(int(first), int(second)) for feature, first, second in connection.execute(wanted)}


def _take(connection: Connection, seat: Seat, room: Room, actor: str, now_ms: int) -> Taken:
    heads = _locked(connection, seat.account, now_ms)
    here = seats.c.account == seat.account
    if seat.key:
        row = connection.execute(select(seats).where(here, seats.c.request_key == seat.key)).mappings().first()
        if row is not None:
            same = _seat(row)
            if (same.feature, same.holder) != (seat.feature, seat.holder):
                message = "was sent before with another feature or holder: send another key"
                raise InvalidInput("Idempotency-Key", message)
            return Taken(same, 0)
    _expire(connection, heads, here & (seats.c.feature == seat.feature), now_ms)
    one = here & (seats.c.feature == seat.feature) & (seats.c.holder == seat.holder) & (seats.c.state != _RELEASED)
    row = connection.execute(select(seats).where(one)).mappings().first()
    held = _holders(connection, seat.account, now_ms).get(seat.feature, Holders()).held
    if row is not None:
        known = _seat(row)
        if known.state is SeatState.RESERVED and seat.state is SeatState.ACTIVE:
            known = _moved(connection, heads, known, SeatState.ACTIVE, actor, now_ms)
        save_heads(connection, heads)
        return Taken(known, held)
    if held >= HOLDERS_MAX:
        raise InvalidInput("holder", f"an account has at most {HOLDERS_MAX} seats of a feature: release some")
    most = room(newest_version(connection, seat.account), billed_now(connection, seat.account, now_ms))
    if most is not None and held >= most:
        save_heads(connection, heads)
        return Taken(None, held)
    connection.execute(insert(seats), _row(seat))
    _note(connection, heads, seat, None, actor, now_ms)
    _mark(connection, seat.account, now_ms, is_fewer=False)
    save_heads(connection, heads)
    return Taken(seat, held + 1, is_new=True)


def _move(
    connection: Connection, account: str, identifier: str, state: SeatState, actor: str, now_ms: int
) -> Seat | None:
    """Activate or release a seat, if that is to be done."""
    if "\0" in identifier:
        # PostgreSQL refuses the whole statement.
        return None
    heads = lock_accounts(connection, {account})
    here = (seats.c.account == account) & (seats.c.id == identifier)
    if heads:
        _expire(connection, heads, here, now_ms)
    row = connection.execute(select(seats).where(here)).mappings().first()
    if row is None:
        return None
    seat = _seat(row)
    if seat.state not in (state, SeatState.RELEASED):
        seat = _moved(connection, heads, seat, state, actor, now_ms)
    save_heads(connection, heads)
    return seat


def _sweep(connection: Connection, now_ms: int, limit: int) -> int:
    expired = seats.c.expires_ms <= now_ms
    wanted = select(seats.c.id, seats.c.account).where(seats.c.state == _RESERVED, expired)
    found = connection.execute(wanted.order_by(seats.c.expires_ms).limit(limit)).all()
    if not found:
        return 0
    heads = lock_accounts(connection, {row.account for row in found})
    released = _expire(connection, heads, seats.c.id.in_([row.id for row in found]), now_ms)
    save_heads(connection, heads)
    return released


def _locked(connection: Connection, account: str, now_ms: int) -> dict[str, Head]:
    new = {"account": account, "created_ms": now_ms, "audit_seq": 0, "audit_hash": "", "binding_number": 0}
    insert_new(connection, accounts, [new])
    return lock_accounts(connection, {account})


def _expire(connection: Connection, heads: Mapping[str, Head], where: ColumnElement[bool], now_ms: int) -> int:
    """Release the expired reservations among some seats of locked accounts."""
    wanted = select(seats).where(where, seats.c.state == _RESERVED, seats.c.expires_ms <= now_ms).order_by(seats.c.id)
    found = [_seat(row) for row in connection.execute(wanted).mappings()]
    for seat in found:
        _moved(connection, heads, seat, SeatState.RELEASED, EXPIRY, now_ms)
    return len(found)


def _moved(
    connection: Connection, heads: Mapping[str, Head], seat: Seat, state: SeatState, actor: str, now_ms: int
) -> Seat:
    """Change the state of a seat of a locked account."""
    after = seat._replace(state=state, changed_ms=now_ms, expires_ms=None)
    connection.execute(update(seats).where(seats.c.id == seat.id).values(_row(after)))
    _note(connection, heads, after, seat, actor, now_ms)
    if state is SeatState.RELEASED:
        _mark(connection, seat.account, now_ms, is_fewer=True)
    return after


def _note(
    connection: Connection, heads: Mapping[str, Head], after: Seat, before: Seat | None, actor: str, now_ms: int
) -> None:
    """Write the audit row of a change. It does not name the holder, who may be a person."""
    head = heads[after.account]
    row = audit.next_row(
        head, after.account, now_ms, actor=actor, cause=CAUSE, entity=("seat", after.id),
        before={"state": before.state.value} if before else None,
        after={"feature": after.feature, "state": after.state.value}, reason="",
    )  # fmt: skip
    audit.append(connection, [(row, head.audit_hash)])


def _mark(connection: Connection, account: str, now_ms: int, *, is_fewer: bool) -> None:
    """Note that the number of holders of a locked account changed."""
    row = connection.execute(select(unpaid_seats).where(unpaid_seats.c.account == account)).mappings().first()
    before = Unpaid(account, 0, now_ms, now_ms) if row is None else _unpaid(row)
    due_ms = min(now_ms + QUIET_MS, max(now_ms, before.since_ms + QUIET_MS_MAX))
    # A row that was removed and made anew has another number.
    marked = Unpaid(account, max(before.number + 1, now_ms), before.since_ms, due_ms)._asdict()
    marked["is_fewer"] = int(is_fewer or before.is_fewer)
    if row is None:
        connection.execute(insert(unpaid_seats), marked)
    else:
        connection.execute(update(unpaid_seats).where(unpaid_seats.c.account == account).values(marked))


def _unpaid(row: RowMapping) -> Unpaid:
    return Unpaid(**row)._replace(is_fewer=bool(row["is_fewer"]))


def _seat(row: RowMapping) -> Seat:
    return Seat(
        row["id"], row["account"], row["feature"], row["holder"], SeatState(row["state"]), row["made_ms"],
        row["changed_ms"], row["expires_ms"], row["request_key"],
    )  # fmt: skip


def _row(seat: Seat) -> dict[str, Any]:
    row = {**seat._asdict(), "state": seat.state.value, "request_key": seat.key}
    del row["key"]
    return row
