"""Reads many of Stripe's sums for a reconciliation, within what Stripe allows to read.

Stripe allows at least 10 000 reads a month and by default 25 a second on one endpoint (docs.stripe.com/
rate-limits), so a full daily reconciliation of a large deployment does not fit: what the budget does not cover
is answered as unread, never as equal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, NamedTuple

from schemas.clock import SECOND_MS, Clock
from schemas.errors import Transient
from schemas.periods import Period
from schemas.reports import MeterSummary, StripeMeters

# A double keeps 53 bits; Stripe adds up in doubles or rounds to one, so the last three bits prove nothing.
DOUBLE_TOLERANCE: Final = Decimal(2) ** -50


class SummaryKey(NamedTuple):
    """One question: a meter's sum for a customer over a period (whole minutes)."""

    event_name: str
    stripe_customer: str
    period: Period


class SummaryAnswer(NamedTuple):
    """Stripe's answer, or None and why there is none; without an answer nothing may be called equal."""

    summary: MeterSummary | None
    unread: str = ""


@dataclass(frozen=True, slots=True)
class ReadPolicy:
    """Limits of one reconciliation: concurrent reads, reads per second, reads in all, tries per read."""

    concurrency_max: int = 4
    reads_per_s: float = 15.0
    reads_max: int = 5_000
    tries_max: int = 4


class SummaryReader:
    """Asks Stripe for sums. Holds no state between calls."""

    def __init__(self, meters: StripeMeters, clock: Clock, policy: ReadPolicy = ReadPolicy()) -> None:
        self._meters = meters
        self._clock = clock
        self._policy = policy

    async def read(self, keys: Sequence[SummaryKey]) -> Mapping[SummaryKey, SummaryAnswer]:
        """An answer for every key. Keys beyond `reads_max` are unread, as are those Stripe did not answer.

        Raises `Refused` where the key is wrong. Takes about keys / `reads_per_s` seconds of the clock.
        """
        wanted = list(dict.fromkeys(keys))
        over = {
            key: SummaryAnswer(None, f"over the budget of {self._policy.reads_max} reads")
            for key in wanted[self._policy.reads_max :]
        }
        pending = iter(wanted[: self._policy.reads_max])
        answers: dict[SummaryKey, SummaryAnswer] = {}

        async def work() -> None:
            for key in pending:
                answers[key] = await self._one(key)
                await self._clock.sleep(self._policy.concurrency_max / self._policy.reads_per_s)

        tasks = [asyncio.ensure_future(work()) for _ in range(self._policy.concurrency_max)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return {**answers, **over}

    async def _one(self, key: SummaryKey) -> SummaryAnswer:
        detail = ""
        for attempt in range(self._policy.tries_max):
            try:
                start_s, end_s = key.period.start_ms // SECOND_MS, key.period.end_ms // SECOND_MS
                return SummaryAnswer(await self._meters.summary(key.event_name, key.stripe_customer, start_s, end_s))
            except Transient as error:
                detail = str(error)
                await self._clock.sleep(error.retry_after_s * 2**attempt)
        return SummaryAnswer(None, f"no answer after {self._policy.tries_max} tries: {detail}")


def agrees(expected: Decimal, summary: MeterSummary) -> bool:
    """Whether Stripe's sum is the expected one, as far as a double can tell."""
    return abs(Decimal(summary.value) - expected) <= abs(expected) * DOUBLE_TOLERANCE


def resolution(expected: Decimal) -> Decimal:
    """The smallest difference that `agrees` can see at this size."""
    return abs(expected) * DOUBLE_TOLERANCE
