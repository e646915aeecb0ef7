"""Subscriptions and their items (docs.stripe.com/api/subscriptions, …/subscription_items).

`subscription_changes` computes, `subscription_cycle` renews.
"""

from __future__ import annotations

from typing import Any, Final

from stripe_simulator import payments
from stripe_simulator.contract.parameters import Params
from stripe_simulator.engine.collection import DAY_S
from stripe_simulator.errors import ApiError, not_simulated
from stripe_simulator.mode import Call, Mode, Route, new_object, retrieve
from stripe_simulator.pagination import LIST, page
from stripe_simulator.resources import coupons, subscription_cycle
from stripe_simulator.resources import subscription_changes as changes
from stripe_simulator.resources.conventions import changed, check, require
from stripe_simulator.store import Object

_SHARED: Final = (
    "automatic_tax[enabled]", "billing_thresholds[amount_gte]", "cancel_at", "cancel_at_period_end",
    "collection_method", "days_until_due", "default_payment_method", "description", "discounts", "items", "metadata",
    "off_session", "payment_behavior", "payment_settings[save_default_payment_method]", "proration_behavior",
    "trial_end", "trial_settings",
)  # fmt: skip
CREATE: Final = (
    *_SHARED, "billing_cycle_anchor", "billing_mode[type]", "currency", "customer", "trial_period_days",
)  # fmt: skip
UPDATE: Final = (*_SHARED, "billing_cycle_anchor[type]", "cancellation_details", "proration_date")
_NULL: Final = (
    "application", "application_fee_percent", "billing_cycle_anchor_config", "billing_thresholds", "cancel_at",
    "canceled_at", "days_until_due", "default_payment_method", "default_source", "description", "ended_at",
    "latest_invoice", "next_pending_invoice_item_invoice", "on_behalf_of", "pause_collection",
    "pending_invoice_item_interval", "pending_setup_intent", "pending_update", "schedule", "status_details",
    "transfer_data", "trial_end", "trial_start",
)  # fmt: skip
_KIND: Final = changes.SUBSCRIPTION_ITEM
_OF_ITEM: Final = ("metadata", "price", "quantity")
_OF_CHANGE: Final = ("payment_behavior", "proration_behavior", "proration_date")
_FILTERS: Final = ("customer", "price", "status", "test_clock")
# `pending_if_incomplete` takes only these.
_PENDING: Final = {
    "items", "payment_behavior", "proration_behavior", "proration_date", "billing_cycle_anchor", "expand",
    "off_session",
}  # fmt: skip


def create(mode: Mode, call: Call) -> Object:
    """`POST /v1/subscriptions`."""
    params = call.params
    require(params, "customer", "items")
    customer = mode.fetch("customer", params["customer"], param="customer")
    at = mode.now_of(customer)
    body = _new(mode, customer, at)
    trial_end = params.get("trial_end")
    if trial_end is None and params.get("trial_period_days"):
        trial_end = at + params["trial_period_days"] * DAY_S
    if trial_end not in (None, "now"):
        _check_future(trial_end, at, "trial_end")
        body |= {"status": "trialing", "trial_start": at, "trial_end": trial_end}
    body["billing_mode"] |= {"type": params.get("billing_mode", {}).get("type", "flexible")}
    body["billing_cycle_anchor"] = params.get("billing_cycle_anchor") or body["trial_end"] or at
    if params.get("billing_cycle_anchor"):
        _check_future(body["billing_cycle_anchor"], at, "billing_cycle_anchor")
    body = _changed(mode, body, params)
    first = changes.plan(mode, body, params["items"], at, params.get("proration_behavior", "create_prorations"))
    items = first.state["items"]
    body["currency"] = items[0]["price"]["currency"]
    changes.apply(mode, _cancel_at(body, params, items, at), first.state)
    behavior = params.get("payment_behavior", "allow_incomplete")
    collect_now = behavior != "default_incomplete"
    made = changes.invoice(mode, body["id"], first.lines, "subscription_create", collect_now=collect_now)
    _check_payment(mode, made, behavior)
    body = mode.fetch("subscription", body["id"])
    if body["status"] == "incomplete" and body["collection_method"] == "send_invoice":
        mode.store.save({**body, "status": "active"})
    if body["status"] == "trialing" and body["trial_end"] - at <= changes.WILL_END_S:
        mode.store.save(body, "customer.subscription.trial_will_end")
    return changes.watch(mode, body["id"])


def update(mode: Mode, call: Call) -> Object:
    """`POST /v1/subscriptions/{subscription_exposed_id}`."""
    return change(mode, mode.fetch("subscription", call.id), call.params)


def change(mode: Mode, body: Object, params: Params) -> Object:
    """Change a subscription as its route and those of its items do."""
    now = mode.now_of(body)
    is_possible = body["status"] not in changes.ENDED or params.keys() <= {"cancellation_details", "metadata", "expand"}
    check(is_possible, "A canceled subscription can only update its cancellation_details and metadata.")
    if params.keys() & {"cancel_at", "cancel_at_period_end"}:
        _refuse_scheduled(body, "updating any cancelation behavior directly")
    pending = params.get("payment_behavior") == "pending_if_incomplete"
    if pending and (other := params.keys() - _PENDING):
        message = f"You cannot set `{min(other)}` together with `payment_behavior=pending_if_incomplete`."
        raise ApiError(400, message, param=min(other))
    body = _cancel_at(_changed(mode, body, params), params, changes.items_of(mode, body["id"]), now)
    at = params.get("proration_date", now)
    behavior = params.get("proration_behavior", "create_prorations")
    if "trial_end" in params:
        body = _trial(body, params["trial_end"], now)
    anchor_now = (params.get("billing_cycle_anchor") or {}).get("type") == "now" or params.get("trial_end") == "now"
    planned = changes.plan(mode, body, params.get("items") or (), at, behavior, anchor_now=anchor_now)
    if pending and planned.lines and (planned.restarted or behavior == "always_invoice"):
        return changes.commit_when_paid(mode, body, planned, resumes=False)
    before = body["latest_invoice"]
    changes.commit(mode, body, planned, behavior, collect_now=params.get("payment_behavior") != "default_incomplete")
    latest = mode.fetch("subscription", body["id"])["latest_invoice"]
    if latest != before:
        _check_payment(mode, mode.fetch("invoice", latest), params.get("payment_behavior", "allow_incomplete"))
    return mode.fetch("subscription", body["id"])


def cancel(mode: Mode, call: Call) -> Object:
    """`DELETE /v1/subscriptions/{subscription_exposed_id}`: now. Open usage is billed only on request."""
    body, params = mode.fetch("subscription", call.id), call.params
    if body["status"] in changes.ENDED:
        raise ApiError(404, f"No such subscription: '{call.id}'", code="resource_missing", param="id")
    _refuse_scheduled(body, "canceling it directly")
    at, invoice_now = mode.now_of(body), params.get("invoice_now", False)
    lines = changes.closing_lines(mode, body, at, credit=params.get("prorate", False), usage=invoice_now)
    body["cancellation_details"] |= params.get("cancellation_details") or {}
    return changes.bill(mode, changes.end(mode, body, at), lines, now=invoice_now)


def pause(mode: Mode, call: Call) -> Object:
    """`POST /v1/subscriptions/{subscription}/pause`: no invoices until it resumes."""
    body, params = mode.fetch("subscription", call.id), call.params
    is_possible = body["billing_mode"]["type"] == "flexible" and body["status"] == "active" and not body["schedule"]
    check(is_possible, "Only an active subscription in flexible billing mode without a schedule can be paused.")
    at = mode.now_of(body)
    lines = changes.closing_lines(mode, body, at, credit=True, usage=True)
    # A cancellation does not credit the same time again.
    mode.store.put(changes.ledger(mode, body["id"]) | {"debits": []})
    now = bool(lines) and params.get("invoicing_behavior") == "invoice"
    return changes.bill(mode, subscription_cycle.pause(mode, body, at), lines, now=now)


def resume(mode: Mode, call: Call) -> Object:
    """`POST /v1/subscriptions/{subscription}/resume` with a new period from now on, or with the present one."""
    body, params = mode.fetch("subscription", call.id), call.params
    check(body["status"] == "paused", "You can only resume a subscription that is paused.")
    at = mode.now_of(body)
    if params.get("billing_cycle_anchor", {"type": "now"})["type"] != "now":
        state = changes.state_of(mode, body)
        if any(item["current_period_end"] <= at for item in state["items"]):
            raise not_simulated("resume with billing_cycle_anchor[type]=unchanged after the end of the period")
        stored = changes.apply(mode, body | {"status": "active", "status_details": None}, state)
        mode.store.save(stored, "customer.subscription.resumed")
        return changes.watch(mode, body["id"])
    planned = changes.plan(mode, body, (), at, "none", anchor_now=True)
    # What was used before the pause is billed by the pause.
    planned = planned._replace(lines=tuple(line for line in planned.lines if not line.metered))
    collect_now = params.get("payment_behavior") == "resume_on_payment_success"
    return changes.commit_when_paid(mode, body, planned, resumes=True, collect_now=collect_now)


def list_all(mode: Mode, call: Call) -> Object:
    """`GET /v1/subscriptions`: by default without canceled ones, and without those of test clocks."""
    customer, price, status, clock = (call.params.get(name) for name in _FILTERS)

    def is_kept(body: Object) -> bool:
        is_wanted = {None: body["status"] != "canceled", "all": True, "ended": body["status"] in changes.ENDED}
        has_price = price is None or any(item["price"]["id"] == price for item in changes.items_of(mode, body["id"]))
        is_listed = bool(customer or body["test_clock"] == clock) and has_price
        return is_listed and is_wanted.get(status, bool(body["status"] == status))

    return page(mode, call, "subscription", {"customer": customer}, is_kept)


def create_item(mode: Mode, call: Call) -> Object:
    """`POST /v1/subscription_items`."""
    subscription = mode.fetch("subscription", call.params["subscription"], param="subscription")
    before = {item["id"] for item in changes.items_of(mode, subscription["id"])}
    _change_item(mode, subscription, call.params, {})
    return next(item for item in changes.items_of(mode, subscription["id"]) if item["id"] not in before)


def update_item(mode: Mode, call: Call) -> Object:
    """`POST /v1/subscription_items/{item}`."""
    item = mode.fetch(_KIND, call.id)
    _change_item(mode, mode.fetch("subscription", item["subscription"]), call.params, {"id": call.id})
    return mode.fetch(_KIND, call.id)


def delete_item(mode: Mode, call: Call) -> Object:
    """`DELETE /v1/subscription_items/{item}`."""
    wanted, item = {"id": call.id, "deleted": True}, mode.fetch(_KIND, call.id)
    _change_item(mode, mode.fetch("subscription", item["subscription"]), call.params, wanted)
    return {"id": call.id, "object": _KIND, "deleted": True}


def list_items(mode: Mode, call: Call) -> Object:
    """`GET /v1/subscription_items`."""
    subscription = mode.fetch("subscription", call.params["subscription"], param="subscription")
    return page(mode, call, _KIND, {"subscription": subscription["id"]})


def _change_item(mode: Mode, subscription: Object, params: Params, wanted: Params) -> None:
    item = wanted | {name: params[name] for name in _OF_ITEM if name in params}
    shared: Params = {name: params[name] for name in _OF_CHANGE if name in params}
    change(mode, subscription, {**shared, "items": [item]})


def _new(mode: Mode, customer: Object, at: int) -> Object:
    body = dict.fromkeys(_NULL) | new_object(mode, "subscription", "sub", {}, customer["test_clock"] or "")
    body |= {name: [] for name in ("billing_schedules", "default_tax_rates", "discounts")}
    return body | {
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
        "billing_mode": {"flexible": None, "type": "flexible", "updated_at": None}, "cancel_at_period_end": False,
        "cancellation_details": {"comment": None, "feedback": None, "reason": None},
        "collection_method": "charge_automatically", "customer": customer["id"],
        "invoice_settings": {"account_tax_ids": None, "issuer": {"type": "self"}},
        "payment_settings": {
            "payment_method_options": None, "payment_method_types": None, "save_default_payment_method": "off",
        },
        "start_date": at, "status": "incomplete", "test_clock": customer["test_clock"],
        "trial_settings": {"end_behavior": {"missing_payment_method": "create_invoice"}},
    }  # fmt: skip


def _changed(mode: Mode, body: Object, params: Params) -> Object:
    """The body with the parameters that do not touch periods."""
    names = ("billing_thresholds", "collection_method", "days_until_due", "default_payment_method", "description")
    body, param = changed(body, params, names), "default_payment_method"
    if body["billing_thresholds"]:
        body["billing_thresholds"] = {"reset_billing_cycle_anchor": None, **body["billing_thresholds"]}
    if body[param]:
        method = mode.fetch("payment_method", body[param], "PaymentMethod", param)
        message = f"The customer does not have a payment method with the ID {method['id']}."
        check(method["customer"] == body["customer"], message, param, "resource_missing")
    message = "You must pass `days_until_due` with `collection_method=send_invoice`, and only with that."
    has_days = body["days_until_due"] is not None
    check((body["collection_method"] == "send_invoice") == has_days, message, "days_until_due")
    for name in ("automatic_tax", "cancellation_details", "payment_settings"):
        if params.get(name):
            body[name] = {**body[name], **params[name]}
    if "trial_settings" in params:
        ends = body["trial_settings"]["end_behavior"] | params["trial_settings"]["end_behavior"]
        if ends.pop("billing_cycle_anchor", "now") != "now":
            raise not_simulated("trial_settings[end_behavior][billing_cycle_anchor]=unchanged")
        body["trial_settings"] = {"end_behavior": ends}
    if "discounts" in params:
        body["discounts"] = [
            coupons.redeem(mode, entry, body["customer"], f"discounts[{number}]", subscription=body["id"])["id"]
            for number, entry in enumerate(params["discounts"] or ())
        ]
    return body


def _cancel_at(body: Object, params: Params, items: list[Object], at: int) -> Object:
    ends = [item["current_period_end"] for item in items]
    if "cancel_at_period_end" in params:
        is_set = params["cancel_at_period_end"]
        details = {**body["cancellation_details"], "reason": "cancellation_requested" if is_set else None}
        body |= {"cancel_at_period_end": is_set, "cancellation_details": details}
        body |= {"cancel_at": max(ends), "canceled_at": at} if is_set else {"cancel_at": None, "canceled_at": None}
    if "cancel_at" in params:
        moment: Any = params["cancel_at"]
        if moment == "max_billed_until":
            raise not_simulated("cancel_at=max_billed_until")
        moment = {"min_period_end": min(ends), "max_period_end": max(ends)}.get(moment, moment)
        if moment is not None:
            _check_future(moment, at, "cancel_at")
        body |= {"cancel_at": moment, "canceled_at": moment and at}
    return body


def _check_future(moment: int, at: int, param: str) -> None:
    check(moment > at, f"Invalid timestamp: {param} must be an integer Unix timestamp in the future.", param)


def _trial(body: Object, trial_end: int | str, at: int) -> Object:
    """Move the end of a running trial, or end the trial now."""
    if body["status"] != "trialing":
        raise not_simulated("trial_end of a subscription that is not trialing")
    if trial_end == "now":
        return {**body, "status": "active", "trial_end": at}
    _check_future(int(trial_end), at, "trial_end")
    return {**body, "trial_end": trial_end, "billing_cycle_anchor": trial_end}


def _check_payment(mode: Mode, invoice: Object, behavior: str) -> None:
    """Raise what Stripe answers when an invoice could not be paid; the change is undone then."""
    if invoice["status"] != "open" or invoice["collection_method"] != "charge_automatically":
        return
    body = mode.fetch("subscription", invoice["parent"]["subscription_details"]["subscription"])
    if behavior != "default_incomplete" and invoice["billing_reason"] == "subscription_create":
        method = body["default_payment_method"] or payments.default_method(mode, invoice["customer"])
        message = "This customer has no attached payment source or default payment method."
        check(bool(method), message, code="resource_missing")
    if behavior == "error_if_incomplete":
        intent = payments.intent_of(mode, invoice["customer"], invoice["id"]) or {}
        if error := intent.get("last_payment_error"):
            fields = {"decline_code": error["decline_code"]}
            raise ApiError(402, error["message"], kind="card_error", code=error["code"], fields=fields)
        message = "Payment for this subscription requires additional user action."
        raise ApiError(402, message, kind="card_error", code="subscription_payment_intent_requires_action")


def _refuse_scheduled(body: Object, what: str) -> None:
    message = f"The subscription is managed by the subscription schedule `{body['schedule']}`, and {what}"
    check(not body["schedule"], f"{message} is not allowed. Please update the schedule instead.")


_PATH: Final = "/v1/subscriptions"
_ONE: Final = f"{_PATH}/{{subscription_exposed_id}}"
_ITEM: Final = "/v1/subscription_items/{item}"
ROUTES = (
    Route("POST", _PATH, create, CREATE),
    Route("GET", _PATH, list_all, (*LIST, "created", *_FILTERS)),
    Route("GET", _ONE, retrieve("subscription")),
    Route("POST", _ONE, update, UPDATE),
    Route("DELETE", _ONE, cancel, ("cancellation_details", "invoice_now", "prorate")),
    Route("POST", f"{_PATH}/{{subscription}}/pause", pause, ("invoicing_behavior", "type")),
    Route("POST", f"{_PATH}/{{subscription}}/resume", resume, ("billing_cycle_anchor", "payment_behavior")),
    Route("POST", "/v1/subscription_items", create_item, (*_OF_ITEM, *_OF_CHANGE, "subscription")),
    Route("GET", "/v1/subscription_items", list_items, (*LIST, "subscription")),
    Route("GET", _ITEM, retrieve(_KIND)),
    Route("POST", _ITEM, update_item, (*_OF_ITEM, *_OF_CHANGE)),
    Route("DELETE", _ITEM, delete_item, _OF_CHANGE),
)
