"""Sessions of the customer portal (docs.stripe.com/api/customer_portal/sessions), and what its hosted page changes."""

from __future__ import annotations

from stripe_simulator import invoicing, payments
from stripe_simulator.errors import require_urls
from stripe_simulator.mode import Call, Mode, Route, new_object
from stripe_simulator.resources import customers, subscriptions
from stripe_simulator.resources.conventions import Object, require

KIND = "billing_portal.session"


def replace_card(mode: Mode, customer: str, method: Object, *, agreed: bool = False) -> list[Object]:
    """Pay with a new card from now on, and pay each open invoice once. Returns the invoices that could not be paid.

    `agreed`: the cardholder has confirmed. Raises `ApiError` for a card that declines at once, and with the code
    `authentication_required` if the cardholder must confirm first.
    """
    payments.set_up(mode, method, customer, agreed=agreed)
    settings = {"invoice_settings": {"default_payment_method": method["id"]}}
    customers.update(mode, Call("", settings, (customer,)))
    for body in list(mode.store.newest("subscription", "customer", customer)):
        if body["default_payment_method"]:
            mode.store.save({**mode.fetch("subscription", body["id"]), "default_payment_method": method["id"]})
    due = [
        mode.fetch("invoice", invoice["id"])
        for invoice in mode.store.newest("invoice", "customer", customer)
        if invoice["status"] == "open" and invoice["collection_method"] == "charge_automatically"
    ]
    outcomes = [
        (invoice, payments.confirmed(mode, invoicing.collect(mode, invoice, method["id"]), agreed=agreed))
        for invoice in due[::-1]
    ]
    return [invoice for invoice, outcome in outcomes if outcome.status != "succeeded"]


def cancel_at_period_end(mode: Mode, customer: str, subscription: str, *, is_set: bool) -> None:
    """Cancel a subscription of the customer at the end of its period, or take that back."""
    body = mode.fetch("subscription", subscription)
    if body["customer"] == customer:
        subscriptions.change(mode, body, {"cancel_at_period_end": is_set})


def _create(mode: Mode, call: Call) -> Object:
    """Stripe has no event for it."""
    require(call.params, "customer")
    require_urls(call.params, "return_url")
    customer = mode.fetch("customer", call.params["customer"], param="customer")
    body: Object = dict.fromkeys(("flow", "locale", "on_behalf_of")) | new_object(mode, KIND, "bps", {})
    del body["metadata"]
    body |= {"configuration": "bpc_simulator", "customer": customer["id"], "return_url": call.params.get("return_url")}
    return mode.store.put({**body, "url": f"{mode.settings.pages_url}/_simulator/portal/{body['id']}"})


ROUTES = (Route("POST", "/v1/billing_portal/sessions", _create, ("customer", "return_url")),)
