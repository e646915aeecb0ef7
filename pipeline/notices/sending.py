"""Sends what waits in the outbox of notices.

A delivery is claimed first, in a transaction of its own, and settled after the receiver's answer, in another one: no
lock is held while the receiver is asked. A process that ends in between leaves a claim that runs out, and the next one
sends the same notice under the same id.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Final

from pipeline.notices.truth import Truth
from schemas.clock import HOUR_MS, MINUTE_MS, SECOND_MS, Clock
from schemas.errors import Transient
from schemas.notices import Channel, ChannelName, Delivery, DeliveryState, NoticeOutbox

SENT_AT_ONCE: Final = 20
# Longer than the question whether a notice is true and one attempt can take together.
CLAIM_MS: Final = 5 * MINUTE_MS
UNKNOWN_MS: Final = 30 * SECOND_MS
# The pauses after each failure: three days in all. After the last one the delivery is dead.
PAUSES_MS: Final = (
    5 * SECOND_MS, MINUTE_MS, 5 * MINUTE_MS, 30 * MINUTE_MS, 2 * HOUR_MS, 5 * HOUR_MS, 10 * HOUR_MS, 14 * HOUR_MS,
    18 * HOUR_MS, 22 * HOUR_MS,
)  # fmt: skip

_log: Final = logging.getLogger(__name__)


class Sending:
    """Sends deliveries. `results` counts what became of the attempts since the start, by channel and result."""

    def __init__(
        self, outbox: NoticeOutbox, truth: Truth, channels: Mapping[ChannelName, Channel], clock: Clock
    ) -> None:
        self._outbox = outbox
        self._truth = truth
        self._channels = channels
        self._clock = clock
        self.results: Counter[tuple[ChannelName, str]] = Counter()

    async def turn(self, channel: ChannelName | None = None) -> int:
        """Send what is due, up to `SENT_AT_ONCE` side by side; with `channel`, only what goes there, so that a receiver
        that hangs holds up no other. Returns how many were claimed; 0 if nothing is due. Raises `Transient` if SQL
        does not answer; repeatable."""
        now_ms = self._clock.now_ms()
        claimed = await self._outbox.claim(now_ms, now_ms + CLAIM_MS, SENT_AT_ONCE, channel)
        answers = await asyncio.gather(*map(self._deliver, claimed), return_exceptions=True)
        for answer in answers:
            # The other deliveries of the turn have ended; this one's claim runs out.
            if isinstance(answer, BaseException):
                raise answer
        return len(claimed)

    async def _deliver(self, delivery: Delivery) -> None:
        channel = self._channels.get(delivery.channel)
        if channel is None:
            await self._settle(delivery, DeliveryState.OBSOLETE, f"no {delivery.channel} is set any more")
            return
        try:
            why_not = await self._truth.why_not(delivery.notice)
        except Transient as error:
            # Not a failure of the receiver.
            await self._postpone(delivery, UNKNOWN_MS, delivery.failures, f"not known whether it is true: {error}")
            return
        if why_not:
            await self._settle(delivery, DeliveryState.OBSOLETE, why_not)
            return
        try:
            is_sent = await channel.send(delivery.notice)
        except Transient as error:
            await self._failed(delivery, str(error))
            return
        if is_sent:
            await self._settle(delivery, DeliveryState.SENT, "")
        else:
            await self._settle(delivery, DeliveryState.UNADDRESSED, "no address is known")

    async def _failed(self, delivery: Delivery, detail: str) -> None:
        if delivery.failures < len(PAUSES_MS):
            await self._postpone(delivery, PAUSES_MS[delivery.failures], delivery.failures + 1, detail)
            return
        # What the receiver answered may name a customer, so only the outbox keeps it.
        _log.error(
            "a notice is dead: `tidemark notices list` says why, `tidemark notices retry` sends it again: %s by %s",
            delivery.notice.id,
            delivery.channel,
        )
        await self._settle(delivery, DeliveryState.DEAD, detail)

    async def _postpone(self, delivery: Delivery, pause_ms: int, failures: int, detail: str) -> None:
        self.results[delivery.channel, "failed" if failures > delivery.failures else "postponed"] += 1
        await self._outbox.postpone(delivery, self._clock.now_ms() + pause_ms, failures, detail)

    async def _settle(self, delivery: Delivery, state: DeliveryState, detail: str) -> None:
        self.results[delivery.channel, state.value] += 1
        await self._outbox.settle(delivery, state, detail, self._clock.now_ms())
