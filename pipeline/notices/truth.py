"""Whether a notice is still true: asked before each attempt, of the stores themselves."""

from __future__ import annotations

from aggregators.codec import parse_value
from aggregators.notices import STRIPE_KINDS, is_reached, stripe_notice, used_units
from aggregators.partitioning import partition_of
from aggregators.periods import period_at
from pipeline.notices.terms import Terms
from schemas.clock import Clock
from schemas.errors import Transient
from schemas.live_view import AccountDirectory, LiveTotals
from schemas.notices import Notice, NoticeKind, NoticeOutbox
from schemas.rollup import TotalKey


class Truth:
    """Compares a notice with the newest entitlements and the live usage."""

    def __init__(
        self,
        terms: Terms,
        accounts: AccountDirectory,
        totals: LiveTotals,
        outbox: NoticeOutbox,
        clock: Clock,
        log_id: str,
        partitions: int,
    ) -> None:
        self._outbox = outbox
        self._log_id = log_id
        self._terms = terms
        self._accounts = accounts
        self._totals = totals
        self._clock = clock
        self._partitions = partitions

    async def why_not(self, notice: Notice) -> str:
        """Why a notice is not true any more; "" if it is. Raises `Transient` if a store does not say."""
        if notice.kind is NoticeKind.JOURNAL_ENTRY:
            return ""
        if notice.kind in STRIPE_KINDS:
            return await self._why_not_at_stripe(notice)
        partition = partition_of(notice.account, self._partitions)
        _, states = await self._accounts.accounts(partition, [notice.account])
        if period_at(states[notice.account], self._clock.now_ms()).start_ms != notice.period_start_ms:
            return "the period is over"
        bounds = await self._terms.newest(notice.account)
        bound = next((each for each in bounds if (each.kind, each.feature) == (notice.kind, notice.subject)), None)
        if bound is None or notice.percent not in self._terms.features[bound.feature].warn_percent:
            return "the account is no longer warned about it: the limit is gone, or the catalog does not warn"
        key = TotalKey(notice.account, notice.period_start_ms)
        checkpoint, totals = await self._totals.account_totals(partition, [key])
        if checkpoint is None or checkpoint.meter_set is None:
            raise Transient("nothing has been counted on this account's partition yet: is a worker running?")
        meter, text = checkpoint.meter_set.meter(bound.meter), totals[key].get(bound.meter)
        used = used_units(parse_value(text).minor, meter) if meter and text is not None else None
        if used is None or not is_reached(used, bound.quantity, notice.percent):
            return f"{'0' if used is None else f'{used:f}'} of {bound.quantity:f} are used now"
        return ""

    async def _why_not_at_stripe(self, notice: Notice) -> str:
        now_ms = self._clock.now_ms()
        facts = await self._outbox.facts(notice.kind, now_ms, subject=notice.subject)
        made = (stripe_notice(self._log_id, fact, now_ms, self._terms.card_days) for fact in facts)
        is_so = any(each is not None and each.id == notice.id for each in made)
        return "" if is_so else "Stripe says otherwise by now"
