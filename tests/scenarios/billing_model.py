"""What random histories must be billed and paid: arithmetic that shares no code with the simulator.

`Model` follows the items of one subscription, `Payments` the attempts to collect its invoices. Both know Stripe's rules
from docs.stripe.com: "billing/subscriptions/prorations", "billing/subscriptions/trials",
"billing/subscriptions/usage-based", "billing/subscriptions/pause" and "billing/revenue-recovery/smart-retries".
"""

from __future__ import annotations

import calendar
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, Final, NamedTuple

DAY_S: Final = 86_400
GRACE_S: Final = 3_600
HARD_DECLINE: Final = "lost_card"

# The tiers of a metered price: (the last unit, cents for each unit). The last tier has no last unit.
Rate = tuple[tuple[int | None, Fraction], ...]


def months_later(start: int, months: int) -> int:
    """The same day and time some months later, or the last day of a shorter month."""
    moment = datetime.fromtimestamp(start, UTC)
    year, month = moment.year + (moment.month - 1 + months) // 12, (moment.month - 1 + months) % 12 + 1
    day = min(moment.day, calendar.monthrange(year, month)[1])
    return calendar.timegm((year, month, day, moment.hour, moment.minute, moment.second))


def part(cents: int, seconds: int, of_seconds: int) -> int:
    """The price of some seconds, rounded half up."""
    return (2 * cents * seconds + of_seconds) // (2 * of_seconds)


def price_of(rate: Rate, units: int, percent_off: int) -> int:
    """The price of some units: each tier is rounded half up, then discounted without a remainder."""
    cents, first = 0, 0
    for last, each in rate:
        inside = max(0, (units if last is None else min(units, last)) - first)
        net = (2 * inside * each + 1) // 2 * (100 - percent_off)
        assert net % 100 == 0
        cents, first = cents + net // 100, last or 0
    return cents


@dataclass
class Span:
    """Seconds of an item that are billed, at `cents` for the whole period."""

    start: int
    end: int
    cents: int
    period_s: int


@dataclass
class Item:
    """What a licensed item costs for a period, and the spans that are billed of it."""

    cents: int
    spans: list[Span] = field(default_factory=list)
    is_live: bool = True


@dataclass
class Metered:
    """The price of a metered item, and the second from which usage is not billed yet."""

    rate: Rate
    since: int
    is_live: bool = True


class Used(NamedTuple):
    """Usage of `[start, end)` that is billed: the first `known` reports, and those received before `final_at`."""

    item: str
    start: int
    end: int
    final_at: int
    known: int
    rate: Rate
    percent_off: int


class Report(NamedTuple):
    """A meter event."""

    timestamp: int
    received_at: int
    units: int


@dataclass
class Model:
    """The billed seconds and the billed usage of one subscription."""

    anchor: int
    months: int = 1
    number: int = 0
    trial_end: int = 0
    percent_off: int = 0
    is_once: bool = False
    is_paused: bool = False
    items: dict[str, Item] = field(default_factory=dict)
    metered: dict[str, Metered] = field(default_factory=dict)
    used: list[Used] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    total: int = 0
    lines: int = 0
    ends: bool = False
    is_over: bool = False

    @property
    def start(self) -> int:
        """The start of the current period."""
        return self.anchor if self.trial_end else months_later(self.anchor, self.number * self.months)

    @property
    def end(self) -> int:
        """The end of the current period."""
        return self.trial_end or months_later(self.anchor, (self.number + 1) * self.months)

    def bill_period(self) -> None:
        """The lines of the current period of all items. A coupon for one invoice is used up."""
        self._charge_all(self.start)
        if self.is_once:
            self.percent_off, self.is_once = 0, False

    def change(self, identifier: str, cents: int, at: int, *, prorated: bool) -> None:
        """Another price or number of seats; a new item has another identifier. Nothing is prorated in a trial."""
        item = self.items.setdefault(identifier, Item(0))
        if item.cents != cents and prorated and not self.trial_end:
            self.credit(item, at)
            item.cents = cents
            self._charge(item, at)
        item.cents = cents

    def remove(self, identifier: str, at: int, *, prorated: bool) -> None:
        """End a licensed item now."""
        if prorated:
            self.credit(self.items[identifier], at)
        self.items[identifier].is_live = False

    def restart(self, at: int, months: int, cents: dict[str, int], rates: dict[str, Rate]) -> None:
        """A new period from now on for all items, at new prices."""
        self.credit_all(at)
        self.close_usage(at, at)
        for identifier, amount in cents.items():
            self.items[identifier].cents = amount
        for identifier, rate in rates.items():
            self.metered[identifier].rate = rate
        self._begin(at, months)

    def end_trial(self, at: int) -> None:
        """The first period begins now."""
        self.close_usage(at, at)
        self.trial_end = 0
        self._begin(at, self.months)

    def pause(self, at: int) -> None:
        """Give the unused time back, and bill the usage until now."""
        self.credit_all(at)
        self.close_usage(at, at, billed=True)
        self.is_paused = True

    def resume(self, at: int) -> None:
        """A new period from then on. What was used during the pause is free."""
        for item in self.metered.values():
            item.since = at
        self.is_paused = False
        self._begin(at, self.months)

    def cancel(self, at: int, *, prorated: bool, usage: bool) -> None:
        """The end, now."""
        if prorated:
            self.credit_all(at)
        self.close_usage(at, at, billed=usage and not self.is_paused)
        self.ends = self.is_over = True

    def credit_all(self, at: int) -> None:
        """Give the unused time of all items back."""
        for item in self.items.values():
            if item.is_live:
                self.credit(item, at)

    def credit(self, item: Item, at: int) -> None:
        """Give the billed seconds from now on back."""
        for span in item.spans:
            if span.end > at:
                self.total -= part(span.cents, span.end - max(at, span.start), span.period_s)
                self.lines += 1
                span.end = max(at, span.start)

    def close_usage(self, at: int, final_at: int, *, billed: bool = True, only: str = "") -> None:
        """Bill the usage until `at`, or drop the usage. The usage of a trial is free."""
        for key, item in self.metered.items():
            if item.is_live and only in ("", key):
                if billed and not self.trial_end:
                    self.used.append(
                        Used(key, item.since, at, final_at, len(self.reports), item.rate, self.percent_off)
                    )
                item.since = at

    def pass_time(self, until: int) -> None:
        """Renew until a moment; the end of a subscription that was cancelled renews nothing."""
        while self.end <= until and not self.is_over and not self.is_paused:
            self.close_usage(self.end, self.end + GRACE_S)
            if self.ends:
                self.is_over = True
            elif self.trial_end:
                self.anchor, self.number, self.trial_end = self.trial_end, 0, 0
                self.bill_period()
            else:
                self.number += 1
                self.bill_period()

    def value(self) -> Fraction:
        """The exact price of all billed seconds."""
        spans = (span for item in self.items.values() for span in item.spans)
        return sum((Fraction(span.cents * (span.end - span.start), span.period_s) for span in spans), Fraction(0))

    def usage(self) -> dict[tuple[str, int, int], int]:
        """Cents by (item, start, end) of what was used and reported in time."""
        cents = {}
        for used in self.used:
            inside = (
                report.units
                for number, report in enumerate(self.reports)
                if used.start <= report.timestamp < used.end
                and (number < used.known or report.received_at < used.final_at)
            )
            cents[used[:3]] = price_of(used.rate, max(0, sum(inside)), used.percent_off)
        return {key: amount for key, amount in cents.items() if amount}

    def _begin(self, at: int, months: int) -> None:
        self.anchor, self.months, self.number = at, months, 0
        self._charge_all(at)

    def _charge_all(self, at: int) -> None:
        for item in self.items.values():
            if item.is_live:
                self._charge(item, at)

    def _charge(self, item: Item, at: int) -> None:
        net = item.cents * (100 - self.percent_off)
        assert net % 100 == 0
        span = Span(at, self.end, net // 100, self.end - self.start)
        item.spans.append(span)
        self.total += part(span.cents, span.end - span.start, span.period_s)
        self.lines += 1


@dataclass
class Payments:
    """When each invoice is charged, and with what result. `days` are those from the first attempt to each retry.

    `own` is the subscription's card, which is charged before the customer's. `refused` are the cards that fail, and
    `declines` the answers to the next charges of any card.
    """

    days: tuple[int, ...]
    ends: str
    gives_up: str
    default: str = ""
    own: str = ""
    refused: set[str] = field(default_factory=set)
    declines: list[str] = field(default_factory=list)
    attempts: dict[str, int] = field(default_factory=dict)
    paid: dict[str, int] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    by_hand: set[str] = field(default_factory=set)
    ended_at: int = 0

    @property
    def card(self) -> str:
        """The card that is charged."""
        return self.own or self.default

    @property
    def works(self) -> bool:
        """Whether the next charge succeeds."""
        return self.card not in self.refused and not self.declines

    def pass_time(self, invoices: Sequence[dict[str, Any]], until: int) -> None:
        """Charge what is due until a moment, oldest first. `invoices` are all of the subscription, oldest first.

        Nobody says which of two invoices is charged first that are due in the same second. The one that was not paid
        then is taken first, so that a decline meets it.
        """
        while not self.ended_at:
            dues = [
                (due, body["status_transitions"]["paid_at"] == due, place)
                for place, body in enumerate(invoices)
                if (due := self.due(body)) and due <= until
            ]
            if not dues:
                return
            at, _, place = min(dues)
            self._attempt(invoices[place]["id"], at)
            if self.ends == "canceled" and self._is_given_up(invoices[place]):
                self.ended_at = at

    def pay(self, invoice: str, at: int) -> None:
        """Someone pays an invoice by hand, with a card that works."""
        self.attempts[invoice] = self.attempts.get(invoice, 0) + 1
        self.paid[invoice] = at

    def due(self, body: dict[str, Any]) -> int:
        """When an invoice is charged next, 0 for never."""
        identifier, finalized_at = body["id"], body["status_transitions"]["finalized_at"]
        if not finalized_at or not body["amount_due"] or identifier in self.paid or identifier in self.by_hand:
            return 0
        made = self.attempts.get(identifier, 0)
        if made > len(self.days):
            return 0
        return int(finalized_at) + (self.days[made - 1] * DAY_S if made else 0)

    def expected(self, body: dict[str, Any]) -> dict[str, Any]:
        """The fields of a final invoice that tell its collection."""
        identifier, due = body["id"], self.due(body)
        free_at = 0 if body["amount_due"] else body["status_transitions"]["finalized_at"]
        paid_at = self.paid.get(identifier, free_at) or None
        status = "paid" if paid_at else self.gives_up if self._is_given_up(body) else "open"
        attempts = self.attempts.get(identifier, 0)
        return {"status": status, "paid_at": paid_at, "attempt_count": attempts, "next_payment_attempt": due or None}

    def _attempt(self, invoice: str, at: int) -> None:
        self.attempts[invoice] = self.attempts.get(invoice, 0) + 1
        if self.lost.get(invoice) == self.card:
            return
        answer = self.declines.pop(0) if self.declines else ""
        if answer == HARD_DECLINE:
            self.lost[invoice] = self.card
        elif not answer and self.card not in self.refused:
            self.paid[invoice] = at

    def _is_given_up(self, body: dict[str, Any]) -> bool:
        return self.attempts.get(body["id"], 0) > len(self.days) and body["id"] not in self.paid
