"""Stand-in until the resources of coupons are merged."""

from __future__ import annotations

from fractions import Fraction

from stripe_simulator.engine.discounts import Coupon, Discount
from stripe_simulator.mode import Mode
from stripe_simulator.store import Object


def engine_discount(mode: Mode, body: Object) -> Discount:
    """The engine's form of a stored discount."""
    coupon = mode.fetch("coupon", body["source"]["coupon"])
    percent = None if coupon["percent_off"] is None else Fraction(str(coupon["percent_off"]))
    form = Coupon(coupon["id"], percent, coupon["amount_off"], coupon["duration"], coupon["duration_in_months"])
    return Discount(form, body["start"], body["end"])
