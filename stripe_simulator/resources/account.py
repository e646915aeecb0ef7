"""The account (docs.stripe.com/api/accounts)."""

from __future__ import annotations

from stripe_simulator.mode import Call, Mode, Route
from stripe_simulator.resources.conventions import Object


def _retrieve(mode: Mode, _call: Call) -> Object:
    """Stripe's account has no `livemode`: the API key's prefix gives the mode."""
    return {
        "id": mode.settings.account, "object": "account", "business_type": "company", "charges_enabled": True,
        "country": "US", "default_currency": "usd", "details_submitted": True, "email": None, "metadata": {},
        "payouts_enabled": True, "type": "standard",
    }  # fmt: skip


ROUTES = (Route("GET", "/v1/account", _retrieve),)
