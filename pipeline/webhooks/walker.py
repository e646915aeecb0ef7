"""Finds the events that Stripe did not deliver: the walker over Stripe's list of events, and the canary.

Stripe keeps its events for 30 days (docs.stripe.com/api/events). The walker reads the list from where it was before,
and appends the events that never came. The canary is a customer of ours: a change of the customer makes an
event, and if the event does not come as a webhook within minutes, webhooks are lost.
"""

from __future__ import annotations

import logging
from typing import Final, NamedTuple

import msgspec

from aggregators.billing_events import read_event
from pipeline.webhooks.appending import append_events
from schemas.billing_events import StripeObjects, Via
from schemas.clock import SECOND_MS, Clock
from schemas.errors import InvalidInput, Transient
from schemas.log import Log
from schemas.side_tables import SideTables

KEPT_S: Final = 30 * 86_400
# An event may appear in the list after a later one, and the clocks of Stripe and of this machine differ.
OVERLAP_S: Final = 600
CURSOR: Final = "stripe_events"
CHUNK_EVENTS: Final = 500
CANARY_PATIENCE_S: Final = 120
CANARY_LOOK_S: Final = 5.0

_log: Final = logging.getLogger(__name__)


class Walked(NamedTuple):
    """A walk over `[since_s, until_s)`: how many events Stripe listed that concern the side tables, and how many of
    them were appended because they had not been processed."""

    since_s: int
    until_s: int
    listed: int
    appended: int


class Walker:
    """Walks over Stripe's list of events."""

    def __init__(self, log: Log, objects: StripeObjects, tables: SideTables, clock: Clock) -> None:
        self._log = log
        self._objects = objects
        self._tables = tables
        self._clock = clock

    async def go_on(self) -> Walked:
        """Walk from the last walk's end, less `OVERLAP_S`, until now; without one, from the oldest event that Stripe
        keeps. Raises `Transient`, `Refused`, and `OperatorNeeded` if there are too many events."""
        now_s = self._now_s()
        cursor = await self._tables.cursor(CURSOR)
        since_s = now_s - KEPT_S if cursor is None else max(cursor - OVERLAP_S, now_s - KEPT_S)
        walked = await self.walk(since_s)
        await self._tables.move_cursor(CURSOR, walked.until_s, self._clock.now_ms())
        return walked

    async def walk(self, since_s: int) -> Walked:
        """Walk from an instant until now. Leaves the cursor where it is. Errors as `go_on`."""
        until_s = self._now_s() + 1
        wanted: dict[str, bytes] = {}
        for document in await self._objects.events(since_s, until_s):
            value = msgspec.json.encode(document)
            try:
                event = read_event(value)
            except InvalidInput as error:
                _log.warning("an event in Stripe's list is not understood, and is left out: %s", error)
                continue
            if event.objects:
                wanted[event.id] = value
        ids, appended = list(wanted), 0
        for first in range(0, len(ids), CHUNK_EVENTS):
            chunk = ids[first : first + CHUNK_EVENTS]
            seen = await self._tables.seen(chunk)
            values = [wanted[event_id] for event_id in chunk if event_id not in seen]
            appended += await append_events(self._log, values, Via.LIST)
        return Walked(since_s, until_s, len(wanted), appended)

    def _now_s(self) -> int:
        return self._clock.now_ms() // SECOND_MS


class Canary:
    """Proves that webhooks arrive: changes a customer of ours and waits for the event."""

    def __init__(self, customer: str, objects: StripeObjects, tables: SideTables, clock: Clock) -> None:
        self._customer = customer
        self._objects = objects
        self._tables = tables
        self._clock = clock
        self.heard_s: int | None = None

    async def sings(self) -> bool:
        """Change the customer, and say whether the event came as a webhook and was processed within
        `CANARY_PATIENCE_S`. Raises `Transient`, `Refused`, and `InvalidInput` if Stripe has no such customer."""
        began_s = self._clock.now_ms() // SECOND_MS
        await self._objects.touch(self._customer, str(self._clock.now_ms()))
        event_id = ""
        while self._clock.now_ms() // SECOND_MS <= began_s + CANARY_PATIENCE_S:
            try:
                event_id = event_id or await self._event_since(began_s)
                if event_id and (await self._tables.seen([event_id])).get(event_id) is Via.WEBHOOK:
                    self.heard_s = self._clock.now_ms() // SECOND_MS
                    return True
            except Transient as error:
                _log.warning("the canary cannot be looked for: %s", error)
            await self._clock.sleep(CANARY_LOOK_S)
        return False

    async def _event_since(self, since_s: int) -> str:
        """The id of the newest event about the customer; "" before Stripe lists one."""
        listed = await self._objects.events(since_s - 1, since_s + CANARY_PATIENCE_S)
        events = [read_event(msgspec.json.encode(document)) for document in listed]
        ids = [event.id for event in events if event.customer == self._customer and event.type == "customer.updated"]
        return ids[-1] if ids else ""
