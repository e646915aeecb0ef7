"""What Stripe's sum over a meter, a customer and a period may be, by what the log says of each meter event."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal, localcontext
from typing import Final, NamedTuple

from reconciler.reports_index import Told
from schemas.clock import SECOND_MS
from schemas.periods import Period

# Amounts of meters of any scale are added up as whole numbers of 10^-12, the finest scale a meter may have.
SCALE_MAX: Final = 12
# Stripe adds up in doubles, of 53 bits: each amount and each addition may be off by half of the last one. So many more
# stand for what it rounds besides (groups that it adds up first, the answer's own text).
DOUBLE_BITS: Final = 53
ROUNDED_BESIDES: Final = 8
# Of so many different sums of dead letters each is tried; of more, only their least and their greatest.
DEAD_SUMS_MAX: Final = 4_096


class Sum(NamedTuple):
    """One question to Stripe."""

    event_name: str
    stripe_customer: str
    period: Period


class DeadLetter(NamedTuple):
    """A meter event that Stripe refused, or whose last answer was a refusal: it may hold it all the same, by an earlier
    try whose answer was lost, or because a person sent it. Also one that another sender called free, which had not yet
    read the attempt of the one that sends it."""

    identifier: str
    units: int


class Held(NamedTuple):
    """Which dead letters explain a sum: those that it contains, and those of which that cannot be told. With too many
    of them it is not known whether they explain it: `tried` is False."""

    certain: frozenset[str]
    possible: frozenset[str]
    tried: bool = True


class Bounds(NamedTuple):
    """What Stripe must show, in units of 10^-12: `accepted`, and from `lowest` to `highest` by what is not settled, or
    was accepted a moment ago. `gross` adds up the amounts of all `events` without their signs. `reductions` adds up
    those of what was accepted that are negative: without them Stripe holds so much more."""

    accepted: int
    lowest: int
    highest: int
    gross: int
    events: int
    reductions: int
    dead: tuple[DeadLetter, ...]
    identifiers: frozenset[str]
    accounts: frozenset[str]

    def agrees(self, expected: int, found: Decimal) -> bool:
        """Whether Stripe's sum is the expected one, as far as a sum of so many doubles can tell."""
        with localcontext() as context:
            context.prec = 400
            return bool(abs(found - expected) * 2**DOUBLE_BITS <= self.gross * (self.events + ROUNDED_BESIDES))

    def explained(self, found: Decimal) -> Held | None:
        """Which dead letters Stripe holds, if it shows `found`; None where they do not explain it.

        Where they do, the customer is billed as much as was meant with them, whatever else may explain the sum.
        """
        sums = _sums(self.dead)
        if sums is not None:
            fitting = [held for units, held in sums.items() if self._holds(found, units, units)]
            if not fitting:
                return None
            certain, possible = (1 << len(self.dead)) - 1, 0
            for common, some in fitting:
                certain, possible = certain & common, possible | some
            return Held(self._named(certain), self._named(possible & ~certain))
        lowest = sum(min(each.units, 0) for each in self.dead)
        highest = sum(max(each.units, 0) for each in self.dead)
        if not self._holds(found, lowest, highest):
            return None
        return Held(frozenset(), self._named((1 << len(self.dead)) - 1), tried=False)

    def _holds(self, found: Decimal, least: int, most: int) -> bool:
        """Whether `found` lies within the bounds with so much of the dead letters."""
        low, high = self.lowest + least, self.highest + most
        return low <= found <= high or self.agrees(low, found) or self.agrees(high, found)

    def _named(self, mask: int) -> frozenset[str]:
        return frozenset(each.identifier for at, each in enumerate(self.dead) if mask >> at & 1)


def _sums(dead: Sequence[DeadLetter]) -> dict[int, tuple[int, int]] | None:
    """Every sum of some of the dead letters, with the bits of those that all its ways to add up share and of those in
    any of them; None over the limit."""
    sums = {0: (0, 0)}
    for at, each in enumerate(dead):
        grown = dict(sums)
        for units, (common, some) in sums.items():
            known = grown.get(units + each.units)
            with_it = (common | 1 << at, some | 1 << at)
            grown[units + each.units] = (known[0] & with_it[0], known[1] | with_it[1]) if known else with_it
        if len(grown) > DEAD_SUMS_MAX:
            return None
        sums = grown
    return sums


def bounds_of(sums: Iterable[Sum], told: Iterable[Told], recent_from_ms: int) -> Mapping[Sum, Bounds]:
    """What Stripe must show for each question, by customer and the instants that were sent; what was accepted after
    `recent_from_ms` need not show yet."""
    queues: dict[tuple[str, str], list[Told]] = {}
    for each in told:
        if each.attempt is not None:
            queues.setdefault((each.intent.event_name, each.attempt.stripe_customer), []).append(each)
    return {
        key: _bounds(
            [each for each in queues.get((key.event_name, key.stripe_customer), ()) if _is_inside(each, key.period)],
            recent_from_ms,
        )
        for key in sums
    }


def _is_inside(told: Told, period: Period) -> bool:
    """By the instant that was sent. A person may have sent a dead letter with any instant of its own period."""
    intent, attempt = told.intent, told.attempt
    overlaps = intent.period_start_ms < period.end_ms and period.start_ms < intent.period_end_ms
    if told.is_dead and overlaps:
        return True
    return attempt is not None and period.start_ms <= attempt.timestamp_s * SECOND_MS < period.end_ms


def _bounds(inside: Sequence[Told], recent_from_ms: int) -> Bounds:
    accepted = lowest = highest = gross = reductions = 0
    dead = []
    for each in inside:
        units = each.intent.delta_minor * 10 ** (SCALE_MAX - each.intent.scale)
        gross += abs(units)
        if each.outcome is None:
            lowest, highest = lowest + min(units, 0), highest + max(units, 0)
        elif each.accepted:
            accepted += units
            reductions -= min(units, 0)
            if each.outcome.settled_at_ms > recent_from_ms:
                lowest, highest = lowest - max(units, 0), highest - min(units, 0)
        else:
            dead.append(DeadLetter(each.intent.identifier, units))
    return Bounds(
        accepted, accepted + lowest, accepted + highest, gross, len(inside), reductions, tuple(dead),
        frozenset(each.intent.identifier for each in inside if each.accepted),
        frozenset(each.intent.account for each in inside),
    )  # fmt: skip


def units_of(value: str) -> Decimal:
    """A decimal text in units of 10^-12, exactly."""
    with localcontext() as context:
        context.prec = 400
        return Decimal(value).scaleb(SCALE_MAX)
