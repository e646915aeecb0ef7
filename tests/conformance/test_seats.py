"""Seats in SQL's fake and in PostgreSQL."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from schemas.clock import HOUR_MS
from schemas.entitlements import EntitlementVersion
from schemas.errors import InvalidInput
from schemas.seats import QUIET_MS, QUIET_MS_MAX, Holders, Room, Seat, Seats, SeatState, Taken, Waiting
from schemas.side_tables import SideTables
from schemas.upgrades import Billed
from sinks.sql.side_tables import SqlSideTables

NOW_MS = 1_800_000_000_000
RESERVED, ACTIVE, RELEASED = SeatState.RESERVED, SeatState.ACTIVE, SeatState.RELEASED


@pytest.fixture
def seats(side_tables: SideTables) -> Seats:
    return cast("SqlSideTables", side_tables).seats


def seat(holder: str, state: SeatState = ACTIVE, *, key: str = "", account: str = "acme") -> Seat:
    expires_ms = NOW_MS + HOUR_MS if state is RESERVED else None
    return Seat(f"seat_{account}_{holder}", account, "members", holder, state, NOW_MS, NOW_MS, expires_ms, key)


def up_to(most: int | None) -> Room:
    def room(_version: EntitlementVersion | None, _billed: Billed) -> int | None:
        return most

    return room


async def take(seats: Seats, wanted: Seat, most: int | None = None, now_ms: int = NOW_MS) -> Taken:
    return await seats.take(wanted, up_to(most), "ann", now_ms)


async def test_a_seat_is_taken_activated_and_released(seats: Seats, side_tables: SideTables) -> None:
    ann = seat("ann", RESERVED)
    assert await take(seats, ann) == Taken(ann, 1, is_new=True)
    assert await seats.holders("acme", NOW_MS) == {"members": Holders(1, 0)}
    active = await seats.activate("acme", ann.id, "ann", NOW_MS + 1)
    assert active == ann._replace(state=ACTIVE, changed_ms=NOW_MS + 1, expires_ms=None)
    assert [await seats.activate("acme", ann.id, "bob", NOW_MS + 2) for _ in range(2)] == [active, active]
    assert await seats.listed("acme", "", NOW_MS, 10) == [active]
    released = await seats.release("acme", ann.id, "ann", NOW_MS + 3)
    assert released == active._replace(state=RELEASED, changed_ms=NOW_MS + 3)
    assert await seats.release("acme", ann.id, "bob", NOW_MS + 4) == released
    assert await seats.activate("acme", ann.id, "bob", NOW_MS + 5) == released
    assert await seats.listed("acme", "", NOW_MS, 10) == []
    assert await seats.holders("acme", NOW_MS) == {"members": Holders()}
    trail = await side_tables.audit("acme")
    assert [(row.actor, row.entity_id, row.after) for row in trail] == [
        ("ann", ann.id, f'{{"feature":"members","state":"{state}"}}') for state in ("reserved", "active", "released")
    ]


async def test_a_seat_of_another_account_is_none(seats: Seats) -> None:
    ann = seat("ann")
    await take(seats, ann)
    for account, name in (("globex", ann.id), ("acme", "seat_2"), ("acme", "\0")):
        assert await seats.activate(account, name, "ann", NOW_MS) is None
        assert await seats.release(account, name, "ann", NOW_MS) is None
    assert (await seats.holders("acme", NOW_MS), await seats.holders("globex", NOW_MS)) == (
        {"members": Holders(0, 1)}, {},
    )  # fmt: skip


async def test_a_holder_has_one_seat(seats: Seats) -> None:
    first = (await take(seats, seat("ann", RESERVED))).seat
    again = await take(seats, seat("ann", RESERVED)._replace(id="seat_2"))
    active = await take(seats, seat("ann")._replace(id="seat_3"), 1)
    still = await take(seats, seat("ann", RESERVED)._replace(id="seat_4"))

    assert first is not None
    assert again == Taken(first, 1)
    assert active == still == Taken(first._replace(state=ACTIVE, expires_ms=None), 1)


async def test_without_room_no_seat_is_made(seats: Seats, side_tables: SideTables) -> None:
    ann = seat("ann", RESERVED)
    assert (await take(seats, ann, 1)).is_new
    assert await take(seats, seat("bob"), 1) == Taken(None, 1)
    assert len(await side_tables.audit("acme")) == 1
    activated = await seats.activate("acme", ann.id, "ann", NOW_MS)
    assert activated is not None
    assert activated.state is ACTIVE


async def test_the_same_key_gives_the_same_seat(seats: Seats) -> None:
    first = await take(seats, seat("ann", key="k1"))
    assert first.seat is not None
    await seats.release("acme", first.seat.id, "ann", NOW_MS)
    again = await take(seats, seat("ann", key="k1")._replace(id="seat_2"), 0)
    assert again.seat is not None
    assert (again.seat.id, again.seat.state, again.is_new) == (first.seat.id, RELEASED, False)
    with pytest.raises(InvalidInput, match="another key"):
        await take(seats, seat("bob", key="k1"))
    assert (await take(seats, seat("ann", key="k2")._replace(id="seat_2"))).is_new
    assert (await take(seats, seat("bob", key="k1", account="globex"))).is_new


async def test_an_expired_reservation_does_not_count(seats: Seats) -> None:
    later_ms = NOW_MS + HOUR_MS
    ann, bob = seat("ann", RESERVED), seat("bob", RESERVED)
    await take(seats, ann)
    await take(seats, bob)
    assert (await seats.holders("acme", later_ms - 1))["members"] == Holders(2, 0)
    assert (await seats.holders("acme", later_ms))["members"] == Holders()
    assert await seats.listed("acme", "", later_ms, 10) == []
    gone = await seats.activate("acme", bob.id, "bob", later_ms)
    assert gone is not None
    assert gone.state is RELEASED
    assert (await take(seats, seat("ann", RESERVED)._replace(id="seat_2"), 1, later_ms)).is_new


async def test_expired_reservations_are_swept(seats: Seats, side_tables: SideTables) -> None:
    for number in range(3):
        await take(seats, seat(f"holder {number}", RESERVED))
    await take(seats, seat("ann"))
    later_ms = NOW_MS + HOUR_MS
    for unpaid in await seats.unpaid(later_ms, 10):
        await seats.followed(unpaid)
    found = [await seats.sweep(now_ms, 2) for now_ms in (later_ms - 1, later_ms, later_ms, later_ms)]

    assert found == [0, 2, 1, 0]
    assert (await seats.holders("acme", NOW_MS))["members"] == Holders(0, 1)
    assert [row.actor for row in await side_tables.audit("acme")] == ["ann"] * 4 + ["expiry"] * 3
    assert [each.account for each in await seats.unpaid(later_ms + QUIET_MS, 10)] == ["acme"]


async def test_seats_taken_at_once_never_pass_the_room(seats: Seats, side_tables: SideTables) -> None:
    found = await asyncio.gather(*(take(seats, seat(f"holder {number}"), 5) for number in range(12)))

    assert sum(taken.is_new for taken in found) == 5
    assert (await seats.holders("acme", NOW_MS))["members"] == Holders(0, 5)
    assert [row.seq for row in await side_tables.audit("acme")] == [1, 2, 3, 4, 5]


async def test_one_holder_who_asks_at_once_gets_one_seat(seats: Seats) -> None:
    found = await asyncio.gather(*(take(seats, seat("ann")._replace(id=f"seat_{each}")) for each in range(6)))
    assert len({taken.seat for taken in found}) == 1


async def test_seats_are_listed_in_pages(seats: Seats) -> None:
    made = [seat(f"holder {number}") for number in range(3)]
    for each in (*made, seat("ann", account="globex")):
        await take(seats, each)
    await take(seats, seat("hq")._replace(id="seat_z", feature="locations"))
    first = await seats.listed("acme", "members", NOW_MS, 2)

    assert first == made[:2]
    assert await seats.listed("acme", "members", NOW_MS, 2, first[-1].id) == made[2:]
    assert len(await seats.listed("acme", "", NOW_MS, 10)) == 4
    assert [await seats.listed("acme", *wrong) for wrong in (("\0", NOW_MS, 9), ("", NOW_MS, 9, "\0"))] == [[], []]


async def test_a_change_is_due_after_a_quiet_time(seats: Seats) -> None:
    assert await seats.waiting() == Waiting(0, None)
    ann = seat("ann", RESERVED)
    await take(seats, ann)
    await take(seats, seat("bob"), now_ms=NOW_MS + 1_500)
    await take(seats, seat("bob"), now_ms=NOW_MS + 1_700)
    await seats.activate("acme", ann.id, "ann", NOW_MS + 1_800)
    assert await seats.unpaid(NOW_MS + 1_499 + QUIET_MS, 10) == []
    (unpaid,) = await seats.unpaid(NOW_MS + 1_500 + QUIET_MS, 10)
    assert (unpaid.since_ms, await seats.waiting()) == (NOW_MS, Waiting(1, NOW_MS))
    await seats.followed(unpaid)
    assert await seats.waiting() == Waiting(0, None)


async def test_many_changes_put_a_change_off_for_a_bounded_time(seats: Seats) -> None:
    for number in range(15):
        await take(seats, seat(f"holder {number}"), now_ms=NOW_MS + 1_000 * number)
    (unpaid,) = await seats.unpaid(NOW_MS + QUIET_MS_MAX + 4_000, 10)
    assert unpaid.due_ms == NOW_MS + 14_000


async def test_a_seat_that_changes_meanwhile_keeps_its_account_due(seats: Seats) -> None:
    await take(seats, seat("ann"))
    (before,) = await seats.unpaid(NOW_MS + QUIET_MS, 10)
    await take(seats, seat("bob"), now_ms=NOW_MS + 100)
    await seats.followed(before)
    await seats.postpone(before, NOW_MS + HOUR_MS, "no answer")
    (after,) = await seats.unpaid(NOW_MS + 100 + QUIET_MS, 10)
    assert (after.number > before.number, after.tries, after.since_ms, after.is_fewer) == (True, 0, NOW_MS, False)
    await seats.postpone(after, NOW_MS + HOUR_MS, "no answer")
    assert await seats.unpaid(NOW_MS + HOUR_MS - 1, 10) == []
    (waiting,) = await seats.unpaid(NOW_MS + HOUR_MS, 10)
    assert waiting == after._replace(due_ms=NOW_MS + HOUR_MS, tries=1, detail="no answer")


async def test_a_release_among_the_changes_is_noted(seats: Seats) -> None:
    ann = seat("ann")
    await take(seats, ann)
    await seats.release("acme", ann.id, "ann", NOW_MS)
    await take(seats, seat("bob"))
    (unpaid,) = await seats.unpaid(NOW_MS + QUIET_MS, 10)
    assert unpaid.is_fewer is True
    await seats.followed(unpaid)
    await take(seats, seat("cid"))
    (unpaid,) = await seats.unpaid(NOW_MS + QUIET_MS, 10)
    assert unpaid.is_fewer is False


async def test_an_account_that_is_followed_and_changes_again_is_another_row(seats: Seats) -> None:
    """A second process that read the first row removes nothing."""
    await take(seats, seat("ann"))
    (first,) = await seats.unpaid(NOW_MS + QUIET_MS, 10)
    await seats.followed(first)
    await take(seats, seat("bob"), now_ms=NOW_MS + 5)
    await seats.followed(first)
    assert (await seats.waiting()).accounts == 1
