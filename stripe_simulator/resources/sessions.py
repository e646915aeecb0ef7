"""Sessions of a payer's hosted pages: checkout, and the customer portal with what its page changes.

Sources: docs.stripe.com/api/checkout/sessions, …/customer_portal/sessions. A checkout is completed on its page.
"""

from __future__ import annotations

from typing import Any, Final

from stripe_simulator import invoice_lines as form
from stripe_simulator import invoicing, payments
from stripe_simulator.engine.periods import Period
from stripe_simulator.engine.tiers import total
from stripe_simulator.errors import not_simulated, require_urls
from stripe_simulator.mode import Call, Mode, Route, new_object
from stripe_simulator.resources import customers, previews, subscriptions
from stripe_simulator.resources.conventions import Object, Params, check, reads, require
from stripe_simulator.resources.payment_methods import attached, card_error
from stripe_simulator.resources.portal_configurations import KIND as CONFIGURATION
from stripe_simulator.resources.prices import engine_price

KIND: Final = "checkout.session"
PORTAL: Final = "billing_portal.session"
# What the hosted page shows and what completion needs: {"lines": [...], "items": [...], "subscription": {...}}.
REQUEST: Final = "simulator.checkout"
EXPIRE: Final = "checkout.expire"
OPEN_S: Final = 86_400
INDEXED = {KIND: ("customer", "payment_intent", "subscription")}
CREATE: Final = (
    "automatic_tax[enabled]", "cancel_url", "client_reference_id", "currency", "customer", "customer_email",
    "customer_update[address]", "customer_update[name]", "discounts", "expires_at", "invoice_creation[enabled]",
    "invoice_creation[invoice_data]", "line_items", "metadata", "mode",
    "payment_method_collection", "subscription_data[billing_mode]", "subscription_data[description]",
    "subscription_data[metadata]", "subscription_data[trial_end]", "subscription_data[trial_period_days]",
    "subscription_data[trial_settings]", "success_url", "tax_id_collection[enabled]",
)  # fmt: skip
PORTAL_CREATE: Final = ("configuration", "customer", "flow_data[type]", "return_url")
# How long a session may live (docs.stripe.com/api/checkout/sessions/create, `expires_at`).
LIFE_S: Final = (1_800, 86_400)
_FLOWS: Final = ("subscription_cancel", "subscription_pause", "subscription_update", "subscription_update_confirm")
_NULL: Final = (
    "amount_subtotal", "amount_total", "cancel_url", "client_reference_id", "currency", "customer", "customer_details",
    "customer_email", "invoice", "payment_intent", "setup_intent", "subscription", "success_url", "total_details",
)  # fmt: skip


def request_of(mode: Mode, session: str) -> Object:
    """What a session sells: `lines` with description and amount, and the `subscription`'s parameters."""
    return mode.fetch(REQUEST, f"{session}/request")


def asks_for_country(mode: Mode, session: Object) -> bool:
    """Whether the page must know the payer's country before it can say an amount: tax is automatic."""
    if session["status"] != "open" or not session["automatic_tax"]["enabled"] or not session["customer"]:
        return False
    return not (mode.fetch("customer", session["customer"])["address"] or {}).get("country")


def needs_card(session: Object) -> bool:
    """Whether a session asks for a card, also if nothing is due."""
    return bool(session["amount_total"]) or session["payment_method_collection"] != "if_required"


def move_payer(mode: Mode, session: Object, country: str) -> Object:
    """Set the country of a session's customer, and the amounts that follow. Returns the session."""
    check(len(country) == 2 and country.isalpha(), "A country has two letters, such as FR.", "country")
    customers.update(mode, Call("", {"address": {"country": country.upper()}}, (session["customer"],)))
    request = request_of(mode, session["id"])
    data = request["subscription"]
    lines = (
        _priced(mode, session, data) if session["mode"] == "subscription" else _one_time(mode, session, data["items"])
    )
    mode.store.put({**request, "lines": lines})
    return mode.store.put(session)


def complete(mode: Mode, session: Object, method: Object | None, payer: Params, *, agreed: bool = False) -> Object:
    """Pay an open session and complete it. `payer` has the `email` and `name` of a customer without an object.
    Without a `method`, nothing may be due.

    `agreed`: the cardholder has confirmed. Raises `ApiError`, after which no change may stay: a decline, or
    `authentication_required` if the cardholder must confirm first.
    """
    check(session["status"] == "open", "This Checkout Session is no longer open.")
    customer = session["customer"] or customers.new(mode, payer)["id"]
    done: Object = {"customer": customer}
    if method is None:
        check(session["mode"] == "subscription" and not needs_card(session), "A payment method is required.")
        done |= _subscribed(mode, request_of(mode, session["id"]), customer, None, agreed=agreed)
    elif session["mode"] == "setup":
        done["setup_intent"] = payments.set_up(mode, method, customer, agreed=agreed)["id"]
    elif session["mode"] == "payment":
        attached(mode, method, customer)
        done |= _bought(mode, session, customer, method, agreed=agreed)
    else:
        done |= _subscribed(mode, request_of(mode, session["id"]), customer, method, agreed=agreed)
    owner = mode.fetch("customer", customer)
    details = {name: owner[name] for name in ("email", "name", "phone", "address", "tax_exempt")}
    done["customer_details"] = {**details, "business_name": None, "individual_name": None, "tax_ids": None}
    done |= {"payment_status": "paid" if session["amount_total"] else "no_payment_required"}
    return mode.store.save({**session, **done, "status": "complete", "url": None}, "checkout.session.completed")


def _create(mode: Mode, call: Call) -> Object:
    """For a hosted page. Stripe has no event for it."""
    params, kind = call.params, call.params.get("mode")
    if params.get("customer"):
        mode.fetch("customer", params["customer"], param="customer")
    require(params, "mode", "success_url", "currency" if kind == "setup" else "line_items")
    require_urls(params, "success_url", "cancel_url")
    check(kind == "payment" or "invoice_creation" not in params, "`invoice_creation` is for `payment` mode.")
    if kind != "subscription" and params.keys() & {"subscription_data", "discounts"}:
        raise not_simulated(f"subscription_data or discounts with mode={kind}")
    if kind != "subscription" and "automatic_tax" in params and not params.get("invoice_creation", {}).get("enabled"):
        raise not_simulated(f"automatic_tax without an invoice with mode={kind}")
    _check_updates(params)
    body: Object = dict.fromkeys(_NULL) | new_object(mode, KIND, "cs_live" if mode.livemode else "cs_test", params)
    tax = {"enabled": params.get("automatic_tax", {}).get("enabled", False)}
    body |= {name: params[name] for name in _NULL if name in params} | {
        "automatic_tax": {**tax, "liability": None, "provider": None, "status": None}, "custom_fields": [],
        "custom_text": dict.fromkeys(("after_submit", "shipping_address", "submit", "terms_of_service_acceptance")),
        "expires_at": _expiry(params, body["created"]), "mode": kind,
        "payment_method_collection": params.get("payment_method_collection", "always"),
        "tax_id_collection": {"enabled": False, "required": "never"} | params.get("tax_id_collection", {}),
        "payment_method_types": ["card"],
        "payment_status": "unpaid", "shipping_options": [], "status": "open", "ui_mode": "hosted_page",
        "url": f"{mode.settings.pages_url}/_simulator/checkout/{body['id']}",
    }  # fmt: skip
    items = [_item(mode, f"line_items[{number}]", item) for number, item in enumerate(params.get("line_items", ()))]
    data = {**params.get("subscription_data", {}), "items": items}
    data |= {name: params[name] for name in ("automatic_tax", "discounts") if name in params}
    lines = _priced(mode, body, data) if kind == "subscription" else _one_time(mode, body, items)
    request = {"lines": lines, "subscription": data, "invoice_creation": params.get("invoice_creation", {})}
    mode.store.put({"object": REQUEST, "id": f"{body['id']}/request", **request})
    mode.clockwork.schedule(body["expires_at"] * 1_000, EXPIRE, {"session": body["id"]})
    return mode.store.put(body)


def _expiry(params: Params, created_s: int) -> int:
    expires_s: int = params.get("expires_at", created_s + OPEN_S)
    message = "The `expires_at` timestamp must be from 30 minutes to 24 hours after Checkout Session creation."
    check(LIFE_S[0] <= expires_s - created_s <= LIFE_S[1], message, "expires_at")
    return expires_s


def _check_updates(params: Params) -> None:
    """Raises `ApiError` if the page could not keep of a customer what it must ask for."""
    if not params.get("customer"):
        return
    updates = params.get("customer_update", {})
    if params.get("automatic_tax", {}).get("enabled"):
        message = "Automatic tax calculation in Checkout requires a valid address on the Customer. Add a valid address"
        message += " to the Customer or set `customer_update[address]` to 'auto'."
        check(updates.get("address") == "auto", message, "customer_update[address]", "customer_tax_location_invalid")
    if params.get("tax_id_collection", {}).get("enabled"):
        message = "Tax ID collection requires updating business name on the customer. To enable tax ID collection for "
        message += "an existing customer, please set `customer_update[name]` to `auto`."
        check(updates.get("name") == "auto", message, "customer_update[name]")


def _expire(mode: Mode, call: Call) -> Object:
    session = mode.fetch(KIND, call.id)
    check(session["status"] == "open", "Only Checkout Sessions with a status of `open` can be expired.")
    return mode.store.save({**session, "status": "expired", "url": None}, "checkout.session.expired")


def _run_expire(mode: Mode, arguments: dict[str, Any]) -> None:
    if mode.fetch(KIND, arguments["session"])["status"] == "open":
        _expire(mode, Call("", {}, (arguments["session"],)))


def _item(mode: Mode, param: str, item: Params) -> Object:
    if other := item.keys() - {"price", "quantity"}:
        raise not_simulated(f"line_items[{min(other)}] of a checkout session")
    require(item, "price", within=param)
    mode.fetch("price", item["price"], param=f"{param}[price]")
    return dict(item)


def _priced(mode: Mode, session: Object, data: Params) -> list[Object]:
    """Set the session's amounts to those of the subscription's first invoice, and return its lines."""
    with mode.journal.discarded():
        customer = session["customer"] or customers.new(mode, {})["id"]
        invoice = previews.create(mode, Call("", {"customer": customer, "subscription_details": data}))
    sums = (invoice["total_discount_amounts"], invoice["total_taxes"])
    discount, tax = (sum(entry["amount"] for entry in entries) for entries in sums)
    session |= _amounts(invoice["currency"], invoice["subtotal"], discount, tax)
    return [{"description": line["description"], "amount": line["amount"]} for line in invoice["lines"]["data"]]


def _one_time(mode: Mode, session: Object, items: list[Object]) -> list[Object]:
    """The same for a session that sells once, and for a session that sets a card up: it has no amounts."""
    lines: list[Object] = []
    for item in items:
        price, quantity = mode.fetch("price", item["price"]), item.get("quantity", 1)
        check(not price["recurring"], "You specified `payment` mode but passed a recurring price.", "line_items")
        name = mode.fetch("product", price["product"])["name"]
        lines.append({"description": f"{quantity} × {name}", "amount": total(engine_price(price), quantity)})
        session |= _amounts(price["currency"], sum(line["amount"] for line in lines))
    if session["automatic_tax"]["enabled"]:
        with mode.journal.discarded():
            draft = _drafted(mode, session, session["customer"] or customers.new(mode, {})["id"], items)
        session |= _amounts(
            draft["currency"], draft["subtotal"], 0, sum(each["amount"] for each in draft["total_taxes"])
        )
    return lines


def _amounts(currency: str, subtotal: int, discount: int = 0, tax: int = 0) -> Object:
    details = {"amount_discount": discount, "amount_shipping": 0, "amount_tax": tax}
    sums = {"amount_subtotal": subtotal, "amount_total": subtotal - discount + tax}
    return {**sums, "currency": currency, "total_details": details}


def _bought(mode: Mode, session: Object, customer: str, method: Object, *, agreed: bool) -> Object:
    """Pay what is sold once, with an invoice if the session says so."""
    request = request_of(mode, session["id"])
    creation = request.get("invoice_creation") or {}
    if not creation.get("enabled"):
        outcome = payments.charge(mode, customer, method["id"], session["amount_total"], session["currency"])
        return {"payment_intent": _paid(mode, outcome, agreed=agreed)}
    draft = _drafted(mode, session, customer, request["subscription"]["items"])
    draft["metadata"] = dict(creation.get("invoice_data", {}).get("metadata") or {})
    invoice, intent = invoicing.finalize(mode, mode.store.save(draft)), None
    if invoice["amount_due"]:
        intent = _paid(mode, invoicing.collect(mode, invoice, method["id"]), agreed=agreed)
    return {"payment_intent": intent, "invoice": invoice["id"]}


def _drafted(mode: Mode, session: Object, customer: str, sold: list[Object]) -> Object:
    """The draft of the invoice of what is sold once, not yet stored."""
    owner, lines = mode.fetch("customer", customer), []
    invoice = invoicing.new(mode, owner, session["currency"], "manual")
    invoice["automatic_tax"] |= {"enabled": session["automatic_tax"]["enabled"]}
    period = Period(invoice["created"], invoice["created"])
    for each in sold:
        line = form.one_time_line(mode, mode.fetch("price", each["price"]), each.get("quantity", 1), period)
        item = form.new_item(mode, owner, line, session["currency"], invoice=invoice["id"])
        lines.append(form.line_of_item(mode, invoice, mode.store.save(item)))
    invoicing.set_lines(mode, invoice, lines)
    return invoice


def _subscribed(mode: Mode, request: Object, customer: str, method: Object | None, *, agreed: bool) -> Object:
    params: dict[str, Any] = {**request["subscription"], "customer": customer}
    if method is not None:
        attached(mode, method, customer)
        params["default_payment_method"] = method["id"]
    params["payment_behavior"] = "default_incomplete"
    subscription = subscriptions.create(mode, Call("", params))
    invoice = mode.fetch("invoice", subscription["latest_invoice"])
    if invoice["status"] == "open":
        _paid(mode, invoicing.collect(mode, invoice), agreed=agreed)
    return {"subscription": subscription["id"], "invoice": invoice["id"]}


def _paid(mode: Mode, outcome: payments.Outcome, *, agreed: bool) -> str:
    """The PaymentIntent of a payment that succeeded, with the cardholder's confirmation if the card asks."""
    outcome = payments.confirmed(mode, outcome, agreed=agreed)
    if outcome.status != "succeeded":
        raise card_error(outcome.decline_code or "authentication_required")
    return outcome.payment_intent


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


def _create_portal(mode: Mode, call: Call) -> Object:
    """Stripe has no event for it."""
    require(call.params, "customer")
    require_urls(call.params, "return_url")
    customer = mode.fetch("customer", call.params["customer"], param="customer")
    body: Object = dict.fromkeys(("flow", "locale", "on_behalf_of")) | new_object(mode, PORTAL, "bps", {})
    del body["metadata"]
    configuration = call.params.get("configuration")
    if configuration is not None:
        mode.fetch(CONFIGURATION, configuration, "portal configuration", "configuration")
    if flow := call.params.get("flow_data"):
        if flow["type"] != "payment_method_update":
            raise not_simulated(f"flow_data[type]={flow['type']}")
        parts = dict.fromkeys(_FLOWS) | {"type": flow["type"]}
        ends = {"hosted_confirmation": None, "redirect": None, "type": "portal_homepage"}
        body["flow"] = parts | {"after_completion": ends}
    body |= {
        "configuration": configuration or "bpc_simulator",
        "customer": customer["id"],
        "return_url": call.params.get("return_url"),
    }
    return mode.store.put({**body, "url": f"{mode.settings.pages_url}/_simulator/portal/{body['id']}"})


JOBS = {EXPIRE: _run_expire}
_ITEM: Final = "/v1/checkout/sessions/{session}"
ROUTES = (
    Route("POST", "/v1/checkout/sessions", _create, CREATE),
    *reads(_ITEM, KIND, "customer", "payment_intent", "status", "subscription"),
    Route("POST", f"{_ITEM}/expire", _expire),
    Route("POST", "/v1/billing_portal/sessions", _create_portal, PORTAL_CREATE),
)
