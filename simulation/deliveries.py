"""Stripe's deliveries and the receiver: an event comes once, twice, late, after later ones, or never."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any, Final

from aggregators.billing_events import event_key, read_event
from aggregators.partitioning import partition_of
from schemas.billing_events import MIRRORED_TYPES, VIA_HEADER, Via
from schemas.log import BILLING_EVENTS_TOPIC
from simulation.faults import Fault
from simulation.services import Deployment
from simulation.traffic import PARTITIONS

# In a sandbox, Stripe repeats a delivery three times over a few hours (docs.stripe.com/webhooks).
RETRIES_S: Final = (600.0, 3_600.0, 7_200.0)
USUAL_S: Final = 3.0
LATE_S_MAX: Final = 7_200.0
_HEADERS: Final = ((VIA_HEADER, Via.WEBHOOK.value.encode()),)


class Deliveries:
    """Delivers the events of the account to the receiver, which keeps their bytes in the log before it answers."""

    def __init__(self, world: Deployment) -> None:
        self._world = world
        self._tasks: set[asyncio.Task[None]] = set()
        mode = world.account.simulator.test
        # After the transaction of the event, as Stripe does.
        mode.store.subscribers.append(lambda event: mode.journal.after(partial(self._announced, event)))

    def _announced(self, event: dict[str, Any]) -> None:
        if event["type"] not in MIRRORED_TYPES:
            return
        task = asyncio.ensure_future(self._deliver(event))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, event: dict[str, Any]) -> None:
        """All attempts of an event's delivery. If none succeeds, Stripe gives up."""
        faults, rate, chance = self._world.faults, self._world.rates.webhooks, self._world.chance(event["id"])
        dropped, doubled, late, anonymous = (chance.random() for _ in range(4))
        delay_s, late_s = chance.expovariate(1 / USUAL_S), chance.uniform(0, LATE_S_MAX)
        if dropped < rate and faults.strike(Fault.WEBHOOK_DROPPED, event["id"]):
            return
        value = json.dumps(event).encode()
        key = event_key(read_event(value))
        thing = event["data"]["object"].get("id")
        if thing and anonymous < 2 * rate and faults.strike(Fault.WEBHOOK_WITHOUT_CUSTOMER, event["id"]):
            # As a thin event, which names the object alone: two partitions may have the same object.
            key = thing
        if late < rate and faults.strike(Fault.WEBHOOK_LATE, event["id"]):
            delay_s = late_s
        copies = 2 if doubled < rate and faults.strike(Fault.WEBHOOK_DOUBLED, event["id"]) else 1
        for wait_s in (delay_s, *RETRIES_S):
            await asyncio.sleep(wait_s)
            for _ in range(copies):
                is_answered = await self._received(event["id"], key, value, chance.random())
            if is_answered:
                return

    async def _received(self, event_id: str, key: str, value: bytes, draw: float) -> bool:
        """What the receiver does with a delivery that it found to be Stripe's; whether it answers with 2xx."""
        world = self._world
        if draw > 1 - world.rates.refused and world.faults.strike(Fault.LOG_REFUSED, f"receiver {event_id}"):
            return False
        partition = partition_of(key, PARTITIONS)
        await world.log.append(BILLING_EVENTS_TOPIC, partition, value, key=key.encode(), headers=_HEADERS)
        return not (draw < world.rates.webhooks / 3 and world.faults.strike(Fault.RECEIVER_CRASH, event_id))
