"""Stand-in until the resource of prices is merged."""

from __future__ import annotations

from stripe_simulator.engine.amounts import exact_amount
from stripe_simulator.engine.periods import Recurrence
from stripe_simulator.engine.tiers import Price
from stripe_simulator.store import Object


def engine_price(price: Object) -> Price:
    """A stored price as the engine computes with it."""
    return Price(price["id"], Recurrence("month"), exact_amount(price["unit_amount_decimal"]), price["product"])
