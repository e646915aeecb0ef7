"""Stand-in until the resources of payments are merged: every payment method succeeds, and none is declined."""

from __future__ import annotations

from typing import NamedTuple

from stripe_simulator.mode import Mode


class Outcome(NamedTuple):
    """The outcome of a charge: succeeded, declined or requires_action."""

    status: str
    code: str = ""
    decline_code: str = ""
    payment_intent: str = ""


def charge(
    mode: Mode,
    _customer: str,
    payment_method: str | None,
    _amount: int,
    _currency: str,
    *,
    invoice: str = "",  # noqa: ARG001
) -> Outcome:
    """Charge an amount."""
    if payment_method is None:
        return Outcome("declined", "payment_method_missing")
    if "chargeDeclined" in payment_method:
        return Outcome("declined", "card_declined", "insufficient_funds", mode.store.new_id("pi"))
    return Outcome("succeeded", payment_intent=mode.store.new_id("pi"))
