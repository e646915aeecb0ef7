"""What earlier runs have read at Stripe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aggregators.stripe_sums import StripeSum
from reconciler.causes import Cause, Pair
from reconciler.reading import LastRead
from schemas.periods import Period
from schemas.reconciliation import PastRead


class Past:
    """The last reads of sums, and of customers' invoices and features."""

    def __init__(self, reads: Iterable[PastRead]) -> None:
        self._reads = list(reads)

    def sums(self) -> Mapping[StripeSum, LastRead]:
        """The last read of each sum."""
        return {
            StripeSum(
                read.event_name, read.stripe_customer, Period(read.period_start_ms, read.period_end_ms)
            ): LastRead(read.read_at_ms, frozenset({Cause(read.cause)}))
            for read in self._reads
            if read.pair == Pair.STRIPE.name.lower()
        }  # fmt: skip

    def flags(self) -> Mapping[str, LastRead]:
        """The last read of each customer's features."""
        return {
            read.stripe_customer: LastRead(read.read_at_ms, frozenset({Cause(read.cause)}))
            for read in self._reads
            if read.pair == Pair.FLAGS.name.lower()
        }

    def invoices(self) -> Mapping[str, LastRead]:
        """The last read of each customer's invoices. What was in flight because its period ran is left out: the
        period's end is a change of its own."""
        last: dict[str, tuple[int, set[Cause]]] = {}
        for read in self._reads:
            if read.pair != Pair.INVOICES.name.lower():
                continue
            at_ms, causes = last.get(read.stripe_customer, (0, set()))
            # An older row is of a span that is in no list any more.
            if read.read_at_ms < at_ms:
                continue
            causes = causes if read.read_at_ms == at_ms else set()
            cause = Cause(read.cause)
            if cause is not Cause.IN_FLIGHT or read.period_end_ms <= read.read_at_ms:
                causes.add(cause)
            last[read.stripe_customer] = (read.read_at_ms, causes)
        return {customer: LastRead(at_ms, frozenset(causes)) for customer, (at_ms, causes) in last.items()}
