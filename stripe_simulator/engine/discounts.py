"""What coupons take off invoice lines.

Sources: docs.stripe.com, "billing/subscriptions/coupons" (duration, several discounts in order) and
"billing/subscriptions/prorations" (a coupon of 500 over 1000 and 2000 is 166 and 334).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

from stripe_simulator.engine.amounts import allocated, rounded
from stripe_simulator.engine.lines import Line
from stripe_simulator.engine.periods import add_months


class Coupon(NamedTuple):
    """A coupon with either `percent_off` or `amount_off`. `applies_to` empty means: all products."""

    id: str
    percent_off: Fraction | None = None
    amount_off: int | None = None
    duration: Literal["once", "repeating", "forever"] = "once"
    duration_in_months: int | None = None
    applies_to: frozenset[str] = frozenset()


class Discount(NamedTuple):
    """A coupon in use from `start`; `end` is None for `once` and `forever`."""

    coupon: Coupon
    start: int
    end: int | None = None

    def active_at(self, at: int) -> bool:
        """True when an invoice of the instant `at` has the discount."""
        return self.start <= at and (self.end is None or at < self.end)


def discount_from(coupon: Coupon, start: int) -> Discount:
    """The discount of a coupon that is redeemed at `start`. `repeating` ends after `duration_in_months`."""
    months = coupon.duration_in_months if coupon.duration == "repeating" else None
    return Discount(coupon, start, None if months is None else add_months(start, months))


def remaining(discounts: Sequence[Discount], at: int) -> tuple[Discount, ...]:
    """The discounts that the invoice after one of the instant `at` still has: without `once` and expired ones."""
    return tuple(discount for discount in discounts if discount.coupon.duration != "once" and discount.active_at(at))


class Cut(NamedTuple):
    """What a discount takes off a line: an entry of `discount_amounts`."""

    discount: Discount
    amount: int


def apply(lines: Sequence[Line], discounts: Sequence[Discount]) -> tuple[tuple[Cut, ...], ...]:
    """The cuts of each line. Each discount, in order, sees what the earlier ones left.

    A percentage is taken of the sum of the lines and rounded once; the last line gets the remainder (undocumented for
    percentages). No line falls below 0, and the unused rest of an amount is lost.
    """
    cuts: list[list[Cut]] = [[] for _ in lines]
    left = [line.amount for line in lines]
    for discount in discounts:
        coupon = discount.coupon
        eligible = [
            index
            for index, line in enumerate(lines)
            if line.discountable and (not coupon.applies_to or line.product in coupon.applies_to)
        ]
        # A negative line lowers the base but takes no share.
        base = max(0, sum(left[index] for index in eligible))
        percentage = rounded(base * (coupon.percent_off or Fraction(0)) / 100)
        off = percentage if coupon.amount_off is None else coupon.amount_off
        shares = allocated(min(base, off), [max(0, left[index]) for index in eligible])
        for index, share in zip(eligible, shares, strict=True):
            if share:
                left[index] -= share
                cuts[index].append(Cut(discount, share))
    return tuple(tuple(line) for line in cuts)
