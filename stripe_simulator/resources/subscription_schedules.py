"""Subscription schedules (docs.stripe.com/api/subscription_schedules), of existing subscriptions only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from stripe_simulator.contract.parameters import Params
from stripe_simulator.engine.lines import Line
from stripe_simulator.engine.periods import Recurrence, boundary
from stripe_simulator.errors import ApiError, not_simulated
from stripe_simulator.mode import Call, Mode, Route, new_object
from stripe_simulator.resources import subscription_changes as changes
from stripe_simulator.resources.conventions import changed, check, reads, require
from stripe_simulator.store import Object

INDEXED = {"subscription_schedule": ("customer",)}
_KIND: Final = "subscription_schedule"
_NULL: Final = ("application", "canceled_at", "completed_at", "released_at", "released_subscription")
_PHASE: Final = frozenset(
    {
        "automatic_tax", "discounts", "duration", "end_date", "items", "metadata", "proration_behavior", "start_date",
        "trial",
    }
)  # fmt: skip
_NO_TAX: Final = {"disabled_reason": None, "enabled": False, "liability": None}
_ITEM: Final = frozenset({"price", "quantity", "metadata"})


def create(mode: Mode, call: Call) -> Object:
    """`POST /v1/subscription_schedules` with `from_subscription`: one phase, which is the current period."""
    require(call.params, "from_subscription")
    subscription = mode.fetch("subscription", call.params["from_subscription"], param="from_subscription")
    message = "You cannot migrate a subscription that is already attached to a schedule or that has ended."
    is_free = not subscription["schedule"] and subscription["status"] not in changes.ENDED
    check(is_free, message, "from_subscription")
    items = changes.items_of(mode, subscription["id"])
    span = (min(it["current_period_start"] for it in items), max(it["current_period_end"] for it in items))
    phase = _phase(
        mode,
        {
            "items": [{**it, "price": it["price"]["id"]} for it in items],
            "discounts": [{"discount": discount} for discount in subscription["discounts"]],
            "automatic_tax": subscription["automatic_tax"],
            "trial": subscription["status"] == "trialing",
        },
        *span,
    )
    settings = {name: subscription[name] for name in ("collection_method", "default_payment_method")}
    body = dict.fromkeys(_NULL) | new_object(mode, _KIND, "sub_sched", {}, subscription["test_clock"] or "")
    body |= {name: subscription[name] for name in ("billing_mode", "customer", "test_clock")}
    body |= {
        "current_phase": _dates(phase),
        "default_settings": {
            "billing_cycle_anchor": "automatic", "invoice_settings": {"issuer": {"type": "self"}}, **settings,
        },
        "end_behavior": "release", "pause_schedules": [], "phases": [phase], "status": "active",
        "subscription": subscription["id"],
    }  # fmt: skip
    mode.store.save({**subscription, "schedule": mode.store.save(body)["id"]})
    changes.watch(mode, subscription["id"])
    return body


def update(mode: Mode, call: Call) -> Object:
    """`POST /v1/subscription_schedules/{schedule}`: given phases replace all phases; past ones can be omitted."""
    (body, subscription), params = _active(mode, call), call.params
    body = changed(body, params, ("end_behavior",))
    if "phases" not in params:
        return mode.store.save(body)
    at = mode.now_of(subscription)
    body["phases"] = _phases(mode, params["phases"], body["current_phase"]["start_date"], at)
    phase = _phase_at(body, at)
    if phase is None:
        raise ApiError(400, "The phases of a schedule must include the current phase.", param="phases")
    mode.store.save(body | {"current_phase": _dates(phase)})
    behavior = params.get("proration_behavior", "create_prorations")
    if subscription["status"] == "trialing" and phase["trial_end"] is None:
        raise not_simulated("a phase that ends a trial")
    subscription = _in_phase(subscription, phase)
    changes.commit(mode, subscription, _plan(mode, subscription, phase, at, behavior), behavior)
    return mode.fetch(_KIND, call.id)


def release(mode: Mode, call: Call) -> Object:
    """`POST /v1/subscription_schedules/{schedule}/release`: the subscription goes on as it is."""
    _, subscription = _active(mode, call)
    mode.store.save(changes.end_schedule(mode, subscription, "released"))
    changes.watch(mode, subscription["id"])
    return mode.fetch(_KIND, call.id)


def cancel(mode: Mode, call: Call) -> Object:
    """`POST /v1/subscription_schedules/{schedule}/cancel`, with the subscription."""
    _, subscription = _active(mode, call)
    changes.end(mode, subscription, mode.now_of(subscription))
    return mode.fetch(_KIND, call.id)


def move_on(mode: Mode, subscription: Object, at: int, *, at_boundary: bool) -> tuple[Object, Sequence[Line], bool]:
    """Start the phase of this instant, or end the schedule.

    Returns the subscription, the lines of the change that belong to the invoice of the period's boundary, and whether
    the subscription ends with the schedule.
    """
    body = mode.fetch(_KIND, subscription["schedule"])
    phase = _phase_at(body, at)
    if phase and _dates(phase) == body["current_phase"]:
        return subscription, (), False
    if phase is None:
        is_over = body["end_behavior"] == "cancel"
        ended = changes.end_schedule(mode, subscription, "completed" if is_over else "released")
        return mode.store.save(ended), (), is_over
    mode.store.save({**body, "current_phase": _dates(phase)})
    subscription = _in_phase(subscription, phase)
    change = _plan(mode, subscription, phase, at, phase["proration_behavior"])
    if at_boundary:
        return changes.apply(mode, subscription, change.state), change.lines, False
    return changes.commit(mode, subscription, change, phase["proration_behavior"]), (), False


def _in_phase(subscription: Object, phase: Object) -> Object:
    """The subscription with what a phase says beside its items: what the phase does not name is dropped."""
    named = [each["discount"] for each in phase["discounts"]]
    # A discount that has ended is not there any more.
    kept = [discount for discount in subscription["discounts"] if discount in named]
    return {**subscription, "discounts": kept, "automatic_tax": phase["automatic_tax"] or _NO_TAX}


def _phase_at(schedule: Object, at: int) -> Object | None:
    return next((phase for phase in schedule["phases"] if phase["start_date"] <= at < phase["end_date"]), None)


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
    return changes.plan(mode, subscription, wanted, at, behavior)


def _phases(mode: Mode, wanted: Sequence[Params], start: int, at: int) -> list[Object]:
    phases = []
    for number, params in enumerate(wanted):
        prefix = f"phases[{number}]"
        if other := params.keys() - _PHASE | {key for item in params["items"] for key in item.keys() - _ITEM}:
            raise not_simulated(f"{prefix} with the parameter {min(other)}")
        first, last = (at if params.get(key) == "now" else params.get(key) for key in ("start_date", "end_date"))
        first = start if first is None else first
        if last is None:
            price = mode.fetch("price", params["items"][0].get("price", ""), param=f"{prefix}[items][0][price]")
            length = params.get("duration") or price["recurring"]
            last = boundary(first, Recurrence(length["interval"], length.get("interval_count", 1)), 1)
        check(not number or first == start, "A phase must begin at the end of the one before.", f"{prefix}[start_date]")
        check(last > first, "A phase must end after its start_date.", f"{prefix}[end_date]")
        phases.append(_phase(mode, params, first, last))
        start = last
    return phases


def _phase(mode: Mode, params: Params, start: int, end: int) -> Object:
    items = []
    for item in params["items"]:
        price = mode.fetch("price", item.get("price", ""), param="phases[items][price]")
        body: Object = {"plan": price["id"], "price": price["id"], "metadata": item.get("metadata") or {}}
        body |= {"billing_thresholds": None, "discounts": [], "tax_rates": []}
        if price["recurring"]["usage_type"] == "licensed":
            body["quantity"] = item.get("quantity") or 1
        items.append(body)
    behavior = params.get("proration_behavior", "create_prorations")
    dates = {"start_date": start, "end_date": end, "billing_cycle_anchor": None}
    body = {"add_invoice_items": [], "currency": price["currency"], "items": items, **dates}
    if any(each.keys() != {"discount"} for each in params.get("discounts") or ()):
        raise not_simulated("phases[discounts] with anything but a discount")
    tax = params.get("automatic_tax")
    body |= {
        "automatic_tax": tax and {**_NO_TAX, **tax}, "trial_end": end if params.get("trial") else None,
        "discounts": [
            {"coupon": None, "promotion_code": None, "discount": mode.fetch("discount", each["discount"])["id"]}
            for each in params.get("discounts") or ()
        ],
    }  # fmt: skip
    return {**body, "metadata": params.get("metadata", {}), "proration_behavior": behavior}


def _active(mode: Mode, call: Call) -> tuple[Object, Object]:
    """The schedule of a path and its subscription. Raises `ApiError` if the schedule has ended."""
    body = mode.fetch(_KIND, call.id)
    message = f"The subscription schedule {body['id']} is {body['status']} and cannot be changed."
    check(body["status"] == "active", message)
    return body, mode.fetch("subscription", body["subscription"])


_PATH: Final = "/v1/subscription_schedules"
ROUTES = (
    Route("POST", _PATH, create, ("from_subscription",)),
    *reads(f"{_PATH}/{{schedule}}", _KIND, "customer"),
    Route("POST", f"{_PATH}/{{schedule}}", update, ("end_behavior", "metadata", "phases", "proration_behavior")),
    Route("POST", f"{_PATH}/{{schedule}}/cancel", cancel),
    Route("POST", f"{_PATH}/{{schedule}}/release", release),
)
