"""Automatic tax: one exclusive rate for each country of a customer's address (docs.stripe.com/api/tax_rates)."""

from __future__ import annotations

from fractions import Fraction
from typing import Final, NamedTuple

from stripe_simulator.mode import Mode, new_object
from stripe_simulator.resources.conventions import Object, check, reads

INDEXED = {"tax_rate": ("country",)}
# Standard rates in percent. Customers of other countries pay no tax.
RATES: Final = {"AT": 20, "DE": 19, "FR": 20, "GB": 20, "IE": 23, "IT": 22, "NL": 21}


# An address in this country is one that no tax follows from.
NOWHERE: Final = "ZZ"


class AppliedRate(NamedTuple):
    """A rate in percent, and the id of the stored `tax_rate` for the invoice."""

    percentage: Fraction
    id: str


def rate_of(mode: Mode, customer: Object) -> AppliedRate | None:
    """The rate of a customer, or None. A customer who is `exempt` or `reverse` pays no tax."""
    country = (customer["address"] or {}).get("country")
    if country not in RATES or customer["tax_exempt"] != "none":
        return None
    stored = next(mode.store.newest("tax_rate", "country", country), None) or mode.store.save(
        new_object(mode, "tax_rate", "txr", {})
        | {"active": True, "inclusive": False, "percentage": float(RATES[country]), "rate_type": "percentage"}
        | {"country": country, "display_name": "VAT", "jurisdiction": country, "tax_type": "vat"}
    )
    return AppliedRate(Fraction(RATES[country]), stored["id"])


def check_location(customer: Object) -> None:
    """Raises `ApiError` (400) if no tax follows from a customer's address."""
    message = "The customer's location isn't recognized. Set a valid customer address in order to calculate tax."
    is_known = (customer["address"] or {}).get("country") != NOWHERE
    check(is_known, message, "automatic_tax", "customer_tax_location_invalid")


ROUTES = reads("/v1/tax_rates/{tax_rate}", "tax_rate")
