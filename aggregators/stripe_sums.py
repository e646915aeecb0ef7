"""Compares Stripe's sum over a meter, a customer and a period with the meter events that were sent.

Amounts are whole numbers of 10^-12, the finest scale of a meter, so that meters of any scale add up exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal, localcontext
from typing import Final, NamedTuple

from aggregators.report_records import ReportedIntent
from schemas.clock import SECOND_MS
from schemas.periods import Period
from schemas.reports import Intent

SCALE_MAX: Final = 12
# Stripe adds doubles of 53 bits: every amount and every addition may be off by half of the last bit. ROUNDED_BESIDES
# allows for Stripe's other roundings: groups that are added first, and the text of the answer.
DOUBLE_BITS: Final = 53
ROUNDED_BESIDES: Final = 8
# Up to this many different sums of doubtful events, every sum is tried; beyond, only the least and the greatest, each
# of which only one choice of events has.
TRIED_SUMS_MAX: Final = 4_096
# Holds the 308 digits of the greatest double and the digits after its point.
_DIGITS: Final = 400


class StripeSum(NamedTuple):
    """What Stripe adds up in one answer."""

    event_name: str
    stripe_customer: str
    period: Period


class DoubtfulEvent(NamedTuple):
    """A meter event that Stripe may or may not have.

    Stripe gave no clear answer; or refused, but an earlier try may have arrived or a person may have sent the event; or
    another sender settled the intent as free before it read the attempt.
    """

    identifier: str
    units: int


class Contained(NamedTuple):
    """Which doubtful events explain a sum: those that the sum must contain, and those that it may contain.

    `tried` is False if there were too many different sums: then it is unknown whether they explain it.
    """

    certain: frozenset[str]
    possible: frozenset[str]
    tried: bool = True


class SumBounds(NamedTuple):
    """The bounds of Stripe's sum, without the doubtful events.

    `accepted` is the sum of accepted events. Stripe's sum is from `lowest` to `highest`, because events that are not
    settled or were accepted a moment ago may not show yet. `gross` is the sum of the absolute amounts of all `events`.
    `reductions` is the absolute sum of the accepted negative events.
    """

    accepted: int
    lowest: int
    highest: int
    gross: int
    events: int
    reductions: int
    doubtful: tuple[DoubtfulEvent, ...]

    def agrees(self, expected: int, found: Decimal) -> bool:
        """Whether Stripe's sum `found` is the expected one, as exactly as a sum of so many doubles can tell."""
        with localcontext() as context:
            context.prec = _DIGITS
            return bool(abs(found - expected) * 2**DOUBLE_BITS <= self.gross * (self.events + ROUNDED_BESIDES))

    def contained(self, found: Decimal) -> Contained | None:
        """Which doubtful events Stripe has if its sum is `found`; None if no choice of them explains the sum.
        If a choice does, the customer is billed as intended with these events, even if the sum has another reason."""
        sums = _sums(self.doubtful)
        if sums is None:
            lowest = sum(min(event.units, 0) for event in self.doubtful)
            highest = sum(max(event.units, 0) for event in self.doubtful)
            if not self._holds(found, lowest, highest):
                return None
            step = min(abs(event.units) for event in self.doubtful)
            if self._holds(found, lowest, lowest) and not self._holds(found, lowest + step, highest):
                return Contained(frozenset(event.identifier for event in self.doubtful if event.units < 0), frozenset())
            if self._holds(found, highest, highest) and not self._holds(found, lowest, highest - step):
                return Contained(frozenset(event.identifier for event in self.doubtful if event.units > 0), frozenset())
            return Contained(frozenset(), self._identifiers((1 << len(self.doubtful)) - 1), tried=False)
        fitting = [masks for units, masks in sums.items() if self._holds(found, units, units)]
        if not fitting:
            return None
        certain, possible = (1 << len(self.doubtful)) - 1, 0
        for in_all, in_some in fitting:
            certain, possible = certain & in_all, possible | in_some
        return Contained(self._identifiers(certain), self._identifiers(possible & ~certain))

    def _holds(self, found: Decimal, least: int, most: int) -> bool:
        """Whether `found` is within the bounds if the doubtful events add from `least` to `most`."""
        low, high = self.lowest + least, self.highest + most
        return low <= found <= high or self.agrees(low, found) or self.agrees(high, found)

    def _identifiers(self, mask: int) -> frozenset[str]:
        return frozenset(event.identifier for bit, event in enumerate(self.doubtful) if mask >> bit & 1)


def _sums(events: Sequence[DoubtfulEvent]) -> dict[int, tuple[int, int]] | None:
    """Sums of all choices of the events → (bits of the events in all choices with this sum, bits of those in some).
    None if there are more than `TRIED_SUMS_MAX` sums."""
    sums = {0: (0, 0)}
    for bit, event in enumerate(events):
        grown = dict(sums)
        for units, (in_all, in_some) in sums.items():
            with_event = (in_all | 1 << bit, in_some | 1 << bit)
            # -1 has every bit set.
            known = grown.get(units + event.units, (-1, 0))
            grown[units + event.units] = (known[0] & with_event[0], known[1] | with_event[1])
        if len(grown) > TRIED_SUMS_MAX:
            return None
        sums = grown
    return sums


def bounds_of(sent: Iterable[ReportedIntent], recent_from_ms: int, *, try_unsettled: bool) -> SumBounds:
    """The bounds of a sum of the `sent` intents. Events accepted after `recent_from_ms` may not show yet.

    `try_unsettled`: events without an outcome are doubtful events; otherwise they widen the bounds.
    """
    accepted = lowest = highest = gross = events = reductions = 0
    doubtful = []
    for reported in sent:
        units, outcome = _units(reported), reported.outcome
        events, gross = events + 1, gross + abs(units)
        if outcome is not None and reported.is_accepted:
            accepted, reductions = accepted + units, reductions - min(units, 0)
            if outcome.settled_at_ms > recent_from_ms:
                lowest, highest = lowest - max(units, 0), highest - min(units, 0)
        elif outcome is None and not try_unsettled:
            lowest, highest = lowest + min(units, 0), highest + max(units, 0)
        else:
            doubtful.append(DoubtfulEvent(reported.intent.identifier, units))
    return SumBounds(accepted, accepted + lowest, accepted + highest, gross, events, reductions, tuple(doubtful))


def may_contain(key: StripeSum, reported: ReportedIntent) -> bool:
    """Whether Stripe's sum may contain the intent's event. Stripe uses the timestamp that was sent, not the intent's
    period: accounts of one customer may have different periods, and a binding may cut a period that has reports."""
    intent, attempt, period = reported.intent, reported.attempt, key.period
    # Stripe did not have a redriven event, and its identifier is not sent again.
    if attempt is None or reported.redrive is not None or (intent.event_name, attempt.stripe_customer) != key[:2]:
        return False
    # A person may have sent a dead letter with any instant of its period.
    by_hand = reported.is_dead and overlaps(intent, period)
    return by_hand or period.start_ms <= attempt.timestamp_s * SECOND_MS < period.end_ms


def overlaps(intent: Intent, period: Period) -> bool:
    """Whether the intent's period and `period` have instants in common."""
    return intent.period_start_ms < period.end_ms and period.start_ms < intent.period_end_ms


def units_of(value: str) -> Decimal:
    """A decimal text in units of 10^-12, exactly."""
    with localcontext() as context:
        context.prec = _DIGITS
        return Decimal(value).scaleb(SCALE_MAX)


def _units(reported: ReportedIntent) -> int:
    """What Stripe adds up of an intent."""
    return reported.billed_minor * int(10 ** (SCALE_MAX - reported.intent.scale))
