"""The commands `seats list`, `add`, `activate` and `release`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.changes.seating import SeatParts, SeatsFull, SeatWish, Standing, standings, take_seat
from pipeline.open import side_tables_of
from pipeline.settings import Settings
from schemas.errors import InvalidInput
from schemas.seats import Seat, SeatState

LISTED_MAX = 1_000


class Listed(NamedTuple):
    """The seats of an account: by feature, and the oldest ones that are held. `at_ms`: when they were read."""

    standings: Sequence[Standing]
    seats: Sequence[Seat]
    at_ms: int


async def list_seats(settings: Settings, account: str, feature: str) -> Listed:
    """The seats of an account, of one feature or with "" of all, at most `LISTED_MAX`. Raises `Transient`."""
    async with side_tables_of(settings) as (base, tables):
        parts, now_ms = SeatParts(base.clock, tables.catalog, tables.entitlements, tables.seats), base.clock.now_ms()
        found = await tables.seats.listed(account, feature, now_ms, LISTED_MAX)
        return Listed(await standings(parts, account), found, now_ms)


async def add_seat(settings: Settings, wish: SeatWish, by: str) -> tuple[Seat, bool]:
    """Give a holder a seat; returns it, and whether it is new. Raises `InvalidInput` if there is no room, with what
    would make some, and `Transient`."""
    async with side_tables_of(settings) as (base, tables):
        parts = SeatParts(base.clock, tables.catalog, tables.entitlements, tables.seats)
        found = await take_seat(parts, wish, by)
        if isinstance(found, SeatsFull):
            raise InvalidInput("HOLDER", found.message)
        return found


async def move_seat(settings: Settings, account: str, seat: str, state: SeatState, by: str) -> Seat:
    """Activate or release a seat; returns it as it is then. Raises `InvalidInput` if the account has no such seat, or
    one to be activated was released, and `Transient`."""
    async with side_tables_of(settings) as (base, tables):
        move = tables.seats.activate if state is SeatState.ACTIVE else tables.seats.release
        found = await move(account, seat, by, base.clock.now_ms())
    if found is None:
        raise InvalidInput("SEAT", f"the account has no seat {seat[:100]!r}: see `tidemark seats list`")
    if found.state is not state:
        raise InvalidInput("SEAT", "the seat was released, or its reservation has expired: add the holder again")
    return found
