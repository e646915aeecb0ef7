"""Subscription schedules (docs.stripe.com/api/subscription_schedules), of existing subscriptions only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from stripe_simulator.contract.parameters import Params
from stripe_simulator.engine.lines import Line
from stripe_simulator.engine.periods import Recurrence, boundary
from stripe_simulator.errors import ApiError, missing_parameter, not_simulated
from stripe_simulator.metadata import merged
from stripe_simulator.mode import Call, Mode, Route
from stripe_simulator.pagination import LIST, page
from stripe_simulator.resources import subscription_changes as changes
from stripe_simulator.store import Object

INDEXED = {"subscription_schedule": ("customer",)}
_KIND: Final = "subscription_schedule"
_PHASE: Final = frozenset({"items", "start_date", "end_date", "duration", "proration_behavior", "metadata"})
_ITEM: Final = frozenset({"price", "quantity", "metadata"})


def create(mode: Mode, call: Call) -> Object:
    """`POST /v1/subscription_schedules` with `from_subscription`: one phase, which is the current period."""
    if "from_subscription" not in call.params:
        raise missing_parameter("from_subscription")
    subscription = mode.fetch("subscription", call.params["from_subscription"], param="from_subscription")
    if subscription["schedule"] or subscription["status"] in changes.ENDED:
        message = "You cannot migrate a subscription that is already attached to a schedule or that has ended."
        raise ApiError(400, message, param="from_subscription")
    items = changes.items_of(mode, subscription["id"])
    span = (min(it["current_period_start"] for it in items), max(it["current_period_end"] for it in items))
    phase_items = [
        {"price": it["price"]["id"], "metadata": it["metadata"], "quantity": it.get("quantity")} for it in items
    ]
    phase = _phase(mode, {"items": phase_items}, *span)
    body: Object = {
        "id": mode.store.new_id("sub_sched"),
        "object": _KIND,
        "application": None,
        "billing_mode": subscription["billing_mode"],
        "canceled_at": None,
        "completed_at": None,
        "created": changes.now_s(mode, subscription),
        "current_phase": {"start_date": span[0], "end_date": span[1]},
        "customer": subscription["customer"],
        "default_settings": {
            "billing_cycle_anchor": "automatic",
            "collection_method": subscription["collection_method"],
            "default_payment_method": subscription["default_payment_method"],
            "invoice_settings": {"issuer": {"type": "self"}},
        },
        "end_behavior": "release",
        "livemode": mode.livemode,
        "metadata": {},
        "pause_schedules": [],
        "phases": [phase],
        "released_at": None,
        "released_subscription": None,
        "status": "active",
        "subscription": subscription["id"],
        "test_clock": subscription["test_clock"],
    }
    mode.store.save(body)
    mode.store.save({**subscription, "schedule": body["id"]})
    changes.watch(mode, subscription["id"])
    return body


def retrieve(mode: Mode, call: Call) -> Object:
    """`GET /v1/subscription_schedules/{schedule}`."""
    return mode.fetch(_KIND, call.id)


def update(mode: Mode, call: Call) -> Object:
    """`POST /v1/subscription_schedules/{schedule}`: given phases replace all phases; past ones can be omitted."""
    body, params = _active(mode, call), call.params
    body["end_behavior"] = params.get("end_behavior", body["end_behavior"])
    if "metadata" in params:
        body["metadata"] = merged(body["metadata"], params["metadata"])
    subscription = mode.fetch("subscription", body["subscription"])
    if "phases" in params:
        at = changes.now_s(mode, subscription)
        body["phases"] = _phases(mode, params["phases"], body["current_phase"]["start_date"], at)
        now = next((phase for phase in body["phases"] if phase["start_date"] <= at < phase["end_date"]), None)
        if now is None:
            raise ApiError(400, "The phases of a schedule must include the current phase.", param="phases")
        body["current_phase"] = _dates(now)
        behavior = params.get("proration_behavior", "create_prorations")
        change = _plan(mode, subscription, now, at, behavior)
        mode.store.save(body)
        changes.commit(mode, subscription, change, behavior)
    return mode.store.save(body)


def release(mode: Mode, call: Call) -> Object:
    """`POST /v1/subscription_schedules/{schedule}/release`: the subscription goes on as it is."""
    body = _active(mode, call)
    subscription = mode.fetch("subscription", body["subscription"])
    released = _release(mode, body, subscription)
    changes.watch(mode, subscription["id"])
    return released


def cancel(mode: Mode, call: Call) -> Object:
    """`POST /v1/subscription_schedules/{schedule}/cancel`, with the subscription."""
    body = _active(mode, call)
    subscription = mode.fetch("subscription", body["subscription"])
    changes.end(mode, subscription, changes.now_s(mode, subscription))
    return mode.fetch(_KIND, body["id"])


def list_all(mode: Mode, call: Call) -> Object:
    """`GET /v1/subscription_schedules`."""
    return page(mode, call, _KIND, {"customer": call.params.get("customer")})


def move_on(mode: Mode, subscription: Object, at: int, *, at_boundary: bool) -> tuple[Object, Sequence[Line], bool]:
    """Start the phase of this instant, or end the schedule.

    Returns the subscription, the lines of the change that belong to the invoice of the period's boundary, and whether
    the subscription ends with the schedule.
    """
    body = mode.fetch(_KIND, subscription["schedule"])
    if at < body["current_phase"]["end_date"]:
        return subscription, (), False
    phase = next((phase for phase in body["phases"] if phase["start_date"] <= at < phase["end_date"]), None)
    if phase is None and body["end_behavior"] == "cancel":
        moved = {"status": "completed", "completed_at": at, "current_phase": None}
        mode.store.save({**body, **moved}, f"{_KIND}.completed")
        return mode.store.save({**subscription, "schedule": None}), (), True
    if phase is None:
        _release(mode, body, subscription)
        return mode.fetch("subscription", subscription["id"]), (), False
    mode.store.save({**body, "current_phase": _dates(phase)})
    behavior = phase["proration_behavior"]
    change = _plan(mode, subscription, phase, at, behavior)
    if at_boundary:
        return changes.apply(mode, subscription, change.state), change.lines, False
    changes.commit(mode, subscription, change, behavior)
    return mode.fetch("subscription", subscription["id"]), (), False


def _dates(phase: Object) -> Object:
    return {name: phase[name] for name in ("start_date", "end_date")}


def _plan(mode: Mode, subscription: Object, phase: Object, at: int, behavior: str) -> changes.Plan:
    """The change to the items of a phase. An item keeps its id if its price stays; the other ids are used again."""
    items = {item["id"]: item["price"]["id"] for item in changes.items_of(mode, subscription["id"])}
    wanted: list[Params] = []
    swapped: list[Params] = []
    for item in phase["items"]:
        same = next((key for key, price in items.items() if price == item["price"]), None)
        change = {name: item[name] for name in ("price", "quantity") if item.get(name) is not None}
        (wanted if same else swapped).append({**change, "id": same} if same else change)
        items.pop(same or "", None)
    wanted += [{**change, "id": items.popitem()[0]} if items else change for change in swapped]
    wanted += [{"id": key, "deleted": True} for key in items]
    return changes.plan(mode, subscription, wanted, at, prorations=behavior != "none")


def _phases(mode: Mode, wanted: Sequence[Params], start: int, at: int) -> list[Object]:
    phases = []
    for number, params in enumerate(wanted):
        prefix = f"phases[{number}]"
        if other := params.keys() - _PHASE | {key for item in params["items"] for key in item.keys() - _ITEM}:
            raise not_simulated(f"{prefix} with the parameter {min(other)}")
        first = at if params.get("start_date") == "now" else params.get("start_date", start)
        if number and first != start:
            message = "The start_date of a phase must be the end_date of the phase before it."
            raise ApiError(400, message, param=f"{prefix}[start_date]")
        last = params.get("end_date")
        if last is None:
            price = mode.fetch("price", params["items"][0]["price"], param=f"{prefix}[items][0][price]")
            length = params.get("duration") or price["recurring"]
            last = boundary(first, Recurrence(length["interval"], length.get("interval_count", 1)), 1)
        start = at if last == "now" else last
        if start <= first:
            message = "The end_date of a phase must be after its start_date."
            raise ApiError(400, message, param=f"{prefix}[end_date]")
        phases.append(_phase(mode, params, first, start))
    return phases


def _phase(mode: Mode, params: Params, start: int, end: int) -> Object:
    items = []
    for item in params["items"]:
        price = mode.fetch("price", item["price"], param="phases[items][price]")
        body: Object = {
            "billing_thresholds": None,
            "discounts": [],
            "metadata": item.get("metadata") or {},
            "tax_rates": [],
        }
        body |= {"plan": price["id"], "price": price["id"]}
        if price["recurring"]["usage_type"] == "licensed":
            body["quantity"] = item.get("quantity") or 1
        items.append(body)
    return {
        "add_invoice_items": [],
        "billing_cycle_anchor": None,
        "currency": price["currency"],
        "discounts": [],
        "end_date": end,
        "items": items,
        "metadata": params.get("metadata", {}),
        "proration_behavior": params.get("proration_behavior", "create_prorations"),
        "start_date": start,
        "trial_end": None,
    }


def _active(mode: Mode, call: Call) -> Object:
    body = mode.fetch(_KIND, call.id)
    if body["status"] != "active":
        raise ApiError(400, f"The subscription schedule {body['id']} is {body['status']} and cannot be changed.")
    return body


def _release(mode: Mode, body: Object, subscription: Object) -> Object:
    at = changes.now_s(mode, subscription)
    mode.store.save({**subscription, "schedule": None})
    moved = {"status": "released", "released_at": at, "released_subscription": body["subscription"]}
    return mode.store.save({**body, **moved, "subscription": None, "current_phase": None}, f"{_KIND}.released")


ROUTES = (
    Route("POST", "/v1/subscription_schedules", create, ("from_subscription",)),
    Route("GET", "/v1/subscription_schedules", list_all, (*LIST, "created", "customer")),
    Route("GET", "/v1/subscription_schedules/{schedule}", retrieve),
    Route(
        "POST",
        "/v1/subscription_schedules/{schedule}",
        update,
        ("end_behavior", "metadata", "phases", "proration_behavior"),
    ),
    Route("POST", "/v1/subscription_schedules/{schedule}/cancel", cancel),
    Route("POST", "/v1/subscription_schedules/{schedule}/release", release),
)
