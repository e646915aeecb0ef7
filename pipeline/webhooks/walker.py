"""Finds the events that Stripe did not deliver: the walker over Stripe's list of events, and the canary.

Stripe keeps its events for 30 days (docs.stripe.com/api/events). The walker reads the list from where it was before,
and appends the events that never came. The canary is a customer of ours: a change of the customer makes an
event, and if the event does not come as a webhook within minutes, webhooks are lost.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from aggregators.billing_events import read_event
from aggregators.instants import format_instant_ms
from pipeline.webhooks.appending import append_events
from pipeline.webhooks.backlog import log_ends, unprocessed
from schemas.billing_events import StripeObjects, Via
from schemas.clock import MINUTE_MS, SECOND_MS, Clock
from schemas.errors import InvalidInput, Transient
from schemas.log import Log
from schemas.side_tables import SideTables

KEPT_S: Final = 30 * 86_400
# An event may appear in the list after a later one, and the clocks of Stripe and of this machine differ.
OVERLAP_S: Final = 600
# The list is read in slices, so that a walk which is interrupted goes on where it was. Slices without events grow.
SLICE_S: Final = 3_600
SLICE_S_MAX: Final = 86_400
CURSOR: Final = "stripe_events"
CANARY_CURSOR: Final = "canary"
CHUNK_EVENTS: Final = 500
# If the role `mirror` does not run, the walk goes on without it.
STALLED_MS: Final = MINUTE_MS
CANARY_PATIENCE_S: Final = 120
CANARY_LOOK_S: Final = 5.0
# The event may be processed by another machine, whose clock is behind.
CLOCKS_DIFFER_MS: Final = 10_000

_log: Final = logging.getLogger(__name__)


class Walked(NamedTuple):
    """A walk over `[since_s, until_s)`: how many events Stripe listed that concern the side tables, and how many of
    them were appended because they never came."""

    since_s: int
    until_s: int
    listed: int
    appended: int


class Walker:
    """Walks over Stripe's list of events.

    `until_s` is up to where the list was read, None before the first slice. `gaps` counts the times that the list began
    after the cursor. `patience` is the clock of the wait for the role `mirror`, which takes its time also where the
    deployment's `clock` is a fast one.
    """

    def __init__(
        self, log: Log, objects: StripeObjects, tables: SideTables, clock: Clock, patience: Clock | None = None
    ) -> None:
        self._log = log
        self._objects = objects
        self._tables = tables
        self._clock = clock
        self._patience = patience or clock
        self.until_s: int | None = None
        self.gaps = 0

    async def resume(self) -> int | None:
        """When the cursor was moved last, in seconds; None if never. Raises `Transient`."""
        cursor = await self._tables.cursor(CURSOR)
        if cursor is None:
            return None
        self.until_s = cursor.until_s
        return cursor.moved_ms // SECOND_MS

    async def go_on(self) -> Walked:
        """Walk from the last walk's end, less `OVERLAP_S`, until now; without one, from the oldest event that Stripe
        keeps. Moves the cursor after each slice. Raises `Transient`, `Refused`, `InvalidInput`, and `OperatorNeeded` if
        there are too many events."""
        oldest_s = self._now_s() - KEPT_S
        cursor = await self._tables.cursor(CURSOR)
        if cursor is not None and cursor.until_s < oldest_s:
            self.gaps += 1
            _log.error(
                "Stripe's list of events was read up to %s, and begins at %s: what was not delivered in between is "
                "unknown, run `tidemark billing resync`",
                format_instant_ms(cursor.until_s * SECOND_MS), format_instant_ms(oldest_s * SECOND_MS),
            )  # fmt: skip
        since_s = oldest_s if cursor is None else max(cursor.until_s - OVERLAP_S, oldest_s)
        return await self._walk(since_s, moves_cursor=True)

    async def walk(self, since_s: int) -> Walked:
        """Walk from an instant until now. Leaves the cursor where it is. Errors as `go_on`."""
        return await self._walk(since_s, moves_cursor=False)

    async def _walk(self, since_s: int, *, moves_cursor: bool) -> Walked:
        until_s = self._now_s() + 1
        begins_s, length_s, listed, appended = since_s, SLICE_S, 0, 0
        while begins_s < until_s:
            ends_s = min(begins_s + length_s, until_s)
            documents = await self._objects.events(begins_s, ends_s)
            wanted = _wanted(documents)
            listed += len(wanted)
            appended += await self._append_unseen(wanted)
            if moves_cursor:
                await self._tables.move_cursor(CURSOR, ends_s, self._clock.now_ms())
                self.until_s = ends_s
            begins_s, length_s = ends_s, SLICE_S if documents else min(2 * length_s, SLICE_S_MAX)
        return Walked(since_s, until_s, listed, appended)

    async def _append_unseen(self, wanted: Mapping[str, bytes]) -> int:
        """Append the events that never came. What came is in the log by now, but not seen until it is processed."""
        if not await self._unseen(list(wanted)):
            return 0
        await unprocessed(self._tables, await log_ends(self._log), self._patience, STALLED_MS)
        unseen = await self._unseen(list(wanted))
        return await append_events(self._log, [wanted[event_id] for event_id in unseen], Via.LIST)

    async def _unseen(self, ids: Sequence[str]) -> list[str]:
        unseen: list[str] = []
        for first in range(0, len(ids), CHUNK_EVENTS):
            chunk = ids[first : first + CHUNK_EVENTS]
            seen = await self._tables.seen(chunk)
            unseen += [event_id for event_id in chunk if event_id not in seen]
        return unseen

    def _now_s(self) -> int:
        return self._clock.now_ms() // SECOND_MS


def _wanted(documents: Sequence[Mapping[str, object]]) -> dict[str, bytes]:
    """The events that concern the side tables, by id."""
    wanted: dict[str, bytes] = {}
    for document in documents:
        value = msgspec.json.encode(document)
        try:
            event = read_event(value)
        except InvalidInput as error:
            _log.warning("an event in Stripe's list is not understood, and is left out: %s", error)
            continue
        if event.objects:
            wanted[event.id] = value
    return wanted


async def set_back(tables: SideTables, clock: Clock) -> None:
    """Have the next walk read the list from its start. A walk that runs now may move the cursor on again."""
    now_ms = clock.now_ms()
    begins_s = now_ms // SECOND_MS - KEPT_S + SLICE_S
    cursor = await tables.cursor(CURSOR)
    if cursor is not None and cursor.until_s > begins_s:
        await tables.move_cursor(CURSOR, begins_s, now_ms)


class Canary:
    """Proves that webhooks arrive: changes a customer of ours and waits for the event."""

    def __init__(self, customer: str, objects: StripeObjects, tables: SideTables, clock: Clock) -> None:
        self._customer = customer
        self._objects = objects
        self._tables = tables
        self._clock = clock
        self.heard_s: int | None = None

    async def resume(self) -> tuple[int, bool] | None:
        """When the customer was changed last, in seconds, and whether the event is overdue; None if never. Raises
        `Transient`."""
        cursor = await self._tables.cursor(CANARY_CURSOR)
        if cursor is None:
            return None
        is_heard = await self._is_heard(cursor.moved_ms)
        waited_ms = self._clock.now_ms() - cursor.moved_ms
        return cursor.until_s, not is_heard and waited_ms > CANARY_PATIENCE_S * SECOND_MS

    async def sings(self) -> bool:
        """Change the customer, and say whether the event came as a webhook and was processed within
        `CANARY_PATIENCE_S`. Raises `Transient`, `Refused`, and `InvalidInput` if Stripe has no such customer."""
        began_ms = self._clock.now_ms()
        await self._objects.touch(self._customer, str(began_ms))
        await self._tables.move_cursor(CANARY_CURSOR, began_ms // SECOND_MS, began_ms)
        while self._clock.now_ms() <= began_ms + CANARY_PATIENCE_S * SECOND_MS:
            try:
                if await self._is_heard(began_ms):
                    return True
            except Transient as error:
                _log.warning("the canary cannot be looked for: %s", error)
            await self._clock.sleep(CANARY_LOOK_S)
        return False

    async def _is_heard(self, since_ms: int) -> bool:
        heard_ms = await self._tables.heard_ms(self._customer, since_ms - CLOCKS_DIFFER_MS)
        if heard_ms is not None:
            self.heard_s = heard_ms // SECOND_MS
        return heard_ms is not None
