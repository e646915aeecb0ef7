"""Finds what accounts must hear of: a walk over all totals of the live view, page by page.

The walk asks no event. It reads each total of a period and compares it with the account's bounds; what is reached
becomes a row. The same rows are found again in every turn, and written once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Final, NamedTuple

from aggregators.codec import parse_value
from aggregators.notices import STRIPE_KINDS, Crossing, crossings, stripe_notice, used_units, warning
from aggregators.periods import period_at
from pipeline.notices.terms import Terms
from schemas.clock import DAY_MS, Clock
from schemas.live_view import AccountDirectory, LiveTotals
from schemas.meters import Meter
from schemas.notices import ChannelName, Notice, NoticeKind, NoticeOutbox
from schemas.rollup import Checkpoint, TotalKey

# Totals that are read at once: some milliseconds of the server, between which it answers others.
PAGE: Final = 500
# Deliveries that may wait. What is reached beyond stays reached, and is found again by a later turn.
WAITING_MAX: Final = 100_000
KEPT_MS: Final = 90 * DAY_MS
PRUNED_AT_ONCE: Final = 1_000

_log: Final = logging.getLogger(__name__)


class Swept(NamedTuple):
    """What one turn looked at and found: totals, thresholds that are reached in running periods, and new deliveries.

    `is_whole`: every total was looked at; else too many deliveries wait.
    """

    totals: int = 0
    reached: int = 0
    new: int = 0
    is_whole: bool = True


class Sweep:
    """Finds notices, again and again. Two processes that sweep at once write the same rows."""

    def __init__(
        self,
        terms: Terms,
        accounts: AccountDirectory,
        totals: LiveTotals,
        outbox: NoticeOutbox,
        channels: Sequence[ChannelName],
        clock: Clock,
        log_id: str,
        partitions: int,
        waiting_max: int = WAITING_MAX,
    ) -> None:
        self._terms = terms
        self._accounts = accounts
        self._totals = totals
        self._outbox = outbox
        self._channels = channels
        self._clock = clock
        self._log_id = log_id
        self._partitions = partitions
        self._waiting_max = waiting_max

    async def turn(self) -> Swept:
        """Look at every total once, and forget what ended long ago. Raises `Transient`; repeatable."""
        swept = Swept()
        await self._outbox.prune(self._clock.now_ms() - KEPT_MS, PRUNED_AT_ONCE)
        if not self._channels:
            return swept
        await self._terms.refresh()
        # The journal has a queue of its own: a finance system that is away keeps no customer from a warning.
        room = self._waiting_max - (await self._outbox.counts(but=ChannelName.FINANCE)).waiting
        for kind in STRIPE_KINDS:
            swept = await self._facts(kind, swept)
        if not self._terms.features:
            return swept
        for partition in range(self._partitions):
            cursor = -1
            while cursor:
                cursor, keys = await self._totals.total_keys(partition, max(0, cursor), PAGE)
                for start in range(0, len(keys), PAGE):
                    if room <= swept.new:
                        _log.warning("%s deliveries wait: no more are made until some are sent", self._waiting_max)
                        return swept._replace(is_whole=False)
                    page = keys[start : start + PAGE]
                    found = await self._page(partition, page)
                    new = await self._outbox.add(found, self._channels)
                    swept = Swept(swept.totals + len(page), swept.reached + len(found), swept.new + new)
        return swept

    async def _facts(self, kind: NoticeKind, swept: Swept) -> Swept:
        """Find what the mirror says. It is much less than what waits at most."""
        now_ms, after = self._clock.now_ms(), ""
        while page := await self._outbox.facts(kind, now_ms, after, PAGE):
            made = (stripe_notice(self._log_id, fact, now_ms, self._terms.card_days) for fact in page)
            found = [notice for notice in made if notice is not None]
            new = await self._outbox.add(found, self._channels)
            swept = swept._replace(reached=swept.reached + len(found), new=swept.new + new)
            after = page[-1].subject
        return swept

    async def _page(self, partition: int, keys: Sequence[TotalKey]) -> Sequence[Notice]:
        """The notices that follow from these totals."""
        now_ms = self._clock.now_ms()
        # PostgreSQL stores no NUL, so such an account has no entitlements of its own and no row.
        wanted = list(dict.fromkeys(key for key in keys if key.period_start_ms <= now_ms and "\0" not in key.account))
        checkpoint, texts = await self._totals.account_totals(partition, wanted)
        meters = {name: meter for name in self._meters() if (meter := _meter(checkpoint, name)) is not None}
        used = {key: usage for key in wanted if (usage := _usage(texts[key], meters))}
        if not used:
            return ()
        bounds = await self._terms.bounds(list(dict.fromkeys(key.account for key in used)), now_ms)
        reached = {
            key: found
            for key, usage in used.items()
            if (found := crossings(bounds[key.account], self._terms.features, usage))
        }
        return await self._running(partition, reached, meters, now_ms)

    def _meters(self) -> Iterable[str]:
        return {feature.meter for feature in self._terms.features.values() if feature.meter}

    async def _running(
        self, partition: int, reached: Mapping[TotalKey, Sequence[Crossing]], meters: Mapping[str, Meter], now_ms: int
    ) -> Sequence[Notice]:
        """The notices of those totals whose period is the account's running one."""
        if not reached:
            return ()
        _, states = await self._accounts.accounts(partition, list(dict.fromkeys(key.account for key in reached)))
        periods = {account: period_at(state, now_ms) for account, state in states.items()}
        return [
            warning(
                self._log_id, key.account, crossing, meters[crossing.bound.meter].unit, periods[key.account], now_ms
            )
            for key, found in reached.items()
            if periods[key.account].start_ms == key.period_start_ms
            for crossing in found
        ]


def _meter(checkpoint: Checkpoint | None, slug: str) -> Meter | None:
    return checkpoint.meter_set.meter(slug) if checkpoint and checkpoint.meter_set else None


def _usage(texts: Mapping[str, str], meters: Mapping[str, Meter]) -> dict[str, Decimal]:
    return {slug: used_units(parse_value(texts[slug]).minor, meter) for slug, meter in meters.items() if slug in texts}
