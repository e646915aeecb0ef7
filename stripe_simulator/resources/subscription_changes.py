"""The items of a subscription, what a change of the items bills, and the state from which later changes follow.

`plan` and `renewal` compute and save nothing. `apply` saves their state.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final, NamedTuple

from stripe_simulator import invoicing
from stripe_simulator.contract.parameters import Params
from stripe_simulator.engine.collection import INCOMPLETE_S
from stripe_simulator.engine.discounts import apply as cuts_of
from stripe_simulator.engine.lines import (
    Item,
    Line,
    Usage,
    billed_by_threshold,
    cycle_lines,
    licensed_line,
    usage_lines,
)
from stripe_simulator.engine.periods import Period, period_containing
from stripe_simulator.engine.proration import Debit, Prorated, debits_of, prorate, restarts_period
from stripe_simulator.engine.totals import totals
from stripe_simulator.errors import ApiError, missing_parameter, no_such, not_simulated
from stripe_simulator.invoice_lines import usage_of
from stripe_simulator.mode import Mode
from stripe_simulator.resources import coupons
from stripe_simulator.resources.conventions import changed, check
from stripe_simulator.resources.prices import engine_price
from stripe_simulator.store import Object

SUBSCRIPTION_ITEM: Final = "subscription_item"
NESTED_MAX: Final = 10
TICK: Final = "subscription.tick"
ENDED: Final = ("canceled", "incomplete_expired")
# Stripe announces the end of a trial three days before.
WILL_END_S: Final = 3 * 86_400
# Stripe does not say how often thresholds are looked at.
_LOOK_S: Final = 3_600
_LEDGER: Final = "subscription.ledger"
# The parts of the ledger that a plan changes.
_BILLED: Final = ("debits", "usage_from", "billed")
_TAKES: Final = frozenset({"id", "price", "quantity", "deleted", "metadata"})
_PLAN_FIELDS: Final = (
    "id", "active", "billing_scheme", "created", "currency", "livemode", "metadata", "nickname", "product",
    "tiers_mode",
)  # fmt: skip


class Plan(NamedTuple):
    """What a change bills, and the state after it. A change that `restarted` a period is invoiced at once."""

    lines: tuple[Line, ...]
    state: Object
    restarted: bool = False


def ledger(mode: Mode, subscription: str) -> Object:
    """A copy of what a subscription remembers beside its Stripe object.

    `debits` is the engine's ledger; `usage_from` has the second from which an item's price counts, and `billed` what
    threshold invoices billed of an item; `job` and `due` are the next job; `pending` is a change that waits for its
    payment: an update, or the end of a pause if it `resumes`.
    """
    identifier = f"ledger_{subscription}"
    return mode.store.edit(_LEDGER, identifier) or {
        "id": identifier, "object": _LEDGER, "debits": [], "usage_from": {}, "billed": {}, "job": 0, "due": 0,
        "pending": None,
    }  # fmt: skip


def items_of(mode: Mode, subscription: str) -> list[Object]:
    """The items of a subscription, oldest first; do not change them."""
    return list(mode.store.newest(SUBSCRIPTION_ITEM, "subscription", subscription))[::-1]


def state_of(mode: Mode, subscription: Object) -> Object:
    """What the next change or renewal starts from: items, billing cycle anchor, and what the ledger says of both."""
    notes, anchor = ledger(mode, subscription["id"]), subscription["billing_cycle_anchor"]
    # All items of one price share the stored price: a copy for each of them would fill the memory.
    items = [{**item} for item in items_of(mode, subscription["id"])]
    return {"items": items, "anchor": anchor, **{name: notes[name] for name in _BILLED}}


def plan(
    mode: Mode, subscription: Object, wanted: Sequence[Params], at: int, behavior: str, *, anchor_now: bool = False
) -> Plan:
    """The change to the items that `wanted`, the parameter `items`, describes. `behavior` is `proration_behavior`."""
    state = state_of(mode, subscription)
    before, after = state["items"], _after(mode, subscription, state["items"], wanted, at)
    old, new = ([_engine_item(subscription, item) for item in items] for items in (before, after))
    is_trial, billing_mode = subscription["status"] == "trialing", subscription["billing_mode"]["type"]
    restarted = not is_trial and (anchor_now or restarts_period(billing_mode, old, new))
    state |= {"items": after, "anchor": at if restarted else state["anchor"]}
    recurrences = {item.id: item.price.recurrence for item in old}
    for index, (body, item) in enumerate(zip(after, new, strict=True)):
        if is_trial:
            whole = Period(subscription["trial_start"], subscription["trial_end"])
        elif restarted or recurrences.get(item.id) != item.price.recurrence:
            whole = period_containing(state["anchor"], item.price.recurrence, at)
        else:
            continue
        start = whole.start if is_trial else max(at, whole.start)
        body |= {"current_period_start": start, "current_period_end": whole.end}
        new[index] = item._replace(period=whole)
    if is_trial:
        # The first invoice of a trial has lines of 0.
        free = [licensed_line(item) for item in new if not before and not item.price.metered]
        return Plan(tuple(line._replace(amount=0, unit_amount=Fraction(0)) for line in free), state)
    if (mode.store.get("subscription", subscription["id"]) or {}).get("status") == "trialing":
        # The trial ends now: nothing was billed until now.
        before, old = [], []
    prorated = _prorated(mode, subscription, state, old, new, at, credit=behavior != "none")
    lines, kept = list(prorated.lines), {item.id: (item.price, item.period) for item in new}
    for body, item in zip(before, old, strict=True):
        if kept.get(item.id) == (item.price, item.period):
            continue
        if usage := _usage(mode, subscription, state, body, at):
            ends = restarted or body["current_period_end"] <= at
            # Flexible mode bills the usage until the change at the old price. Classic mode never bills this usage.
            is_swapped = billing_mode == "flexible" and behavior != "none" and usage.value > 0
            lines += usage_lines(item, usage) if ends or is_swapped else ()
        # What the item counts from now on belongs to its new price.
        state["usage_from"][item.id] = at
        state["billed"].pop(item.id, None)
    state["debits"] = [_row(debit) for debit in prorated.debits]
    return Plan(tuple(lines), state, restarted or any(not line.proration for line in prorated.lines))


def renewal(mode: Mode, subscription: Object, at: int, *, was_trial: bool) -> Plan:
    """The lines and the state when the periods that end until `at` are renewed. The usage of a trial is free."""
    state = state_of(mode, subscription)
    usages: dict[str, Usage] = {}
    renewed = []
    for body in state["items"]:
        if body["current_period_end"] > at:
            continue
        item = _engine_item(subscription, body)
        if not was_trial and (usage := _usage(mode, subscription, state, body, at)):
            usages[item.id] = usage
        period = period_containing(state["anchor"], item.price.recurrence, at)
        body |= {"current_period_start": period.start, "current_period_end": period.end}
        renewed.append(item._replace(period=period))
    lines = cycle_lines(renewed, usages)
    discounts = list(coupons.discounts_of(mode, subscription, at).values())
    cuts = zip(lines, cuts_of(lines, discounts), strict=True)
    discounted = {line.item: sum(cut.amount for cut in own) for line, own in cuts if not line.metered}
    ends = {item.id for item in renewed}
    state["debits"] = [row for row in state["debits"] if row[0] not in ends]
    state["debits"] += [_row(debit) for debit in debits_of(renewed, discounted)]
    for name in ("usage_from", "billed"):
        state[name] = {key: value for key, value in state[name].items() if key not in ends}
    return Plan(lines, state)


def threshold(mode: Mode, subscription: Object, at: int) -> Plan | None:
    """The invoice that `billing_thresholds` ask for now, and the state after it. Discounts count, and tax does not."""
    state = state_of(mode, subscription)
    used = _used(mode, subscription, state, at)
    lines = tuple(line for item, usage in used for line in usage_lines(item, usage))
    discounts = list(coupons.discounts_of(mode, subscription, at).values())
    if totals(lines, discounts=discounts).total < subscription["billing_thresholds"]["amount_gte"]:
        return None
    state["billed"] |= {item.id: billed_by_threshold(item, usage).billed for item, usage in used}
    return Plan(lines, state)


def has_threshold(subscription: Object) -> bool:
    """Whether usage can cause an invoice inside a period."""
    return bool(subscription["billing_thresholds"]) and subscription["status"] in ("active", "past_due")


def closing_lines(mode: Mode, subscription: Object, at: int, *, credit: bool, usage: bool) -> tuple[Line, ...]:
    """What the end of all items at `at` bills: the credit for unused time, and the usage that no invoice has.

    A trial has neither. The usage of a pause is free.
    """
    if subscription["status"] == "trialing":
        return ()
    state = state_of(mode, subscription)
    items = [_engine_item(subscription, body) for body in state["items"]]
    lines = _prorated(mode, subscription, state, items, (), at, credit=True).lines if credit else ()
    used = _used(mode, subscription, state, at) if usage and subscription["status"] != "paused" else ()
    return (*lines, *(line for item, amount in used for line in usage_lines(item, amount)))


def apply(mode: Mode, subscription: Object, state: Object) -> Object:
    """Save the subscription with the state of a plan, and return the stored subscription."""
    identifier, items = subscription["id"], state["items"]
    before, kept = items_of(mode, identifier), {item["id"] for item in items}
    for item in before:
        if item["id"] not in kept:
            mode.store.remove(SUBSCRIPTION_ITEM, item["id"])
    for item in items:
        mode.store.put(item)
    mode.store.put(ledger(mode, identifier) | {name: state[name] for name in _BILLED})
    subscription["billing_cycle_anchor"] = state["anchor"]
    if subscription["cancel_at_period_end"]:
        subscription["cancel_at"] = max(item["current_period_end"] for item in items)
    url = f"/v1/subscription_items?subscription={identifier}"
    shown = {"object": "list", "data": items[:NESTED_MAX], "has_more": len(items) > NESTED_MAX, "url": url}
    # An item that the nested list does not show is a part of the subscription too.
    types = ("customer.subscription.updated",) if before and before != items else ()
    return mode.store.save({**subscription, "items": shown}, *types)


def invoice(mode: Mode, subscription: str, lines: Sequence[Line], reason: str, **how: Any) -> Object:
    """Create an invoice of a stored subscription, which becomes its `latest_invoice`. `how` is for `invoicing`."""
    made = invoicing.subscription_invoice(mode, mode.fetch("subscription", subscription), lines, reason, **how)
    # The payment may have changed the subscription.
    body = mode.fetch("subscription", subscription)
    # A proration has its discount already; a period that begins is discounted whatever made it begin.
    is_discounted = reason != "subscription_update" or any(not line.proration for line in lines)
    if is_discounted and made["subtotal"]:
        body["discounts"] = coupons.remaining_after(mode, body, mode.now_of(body))
    mode.store.save({**body, "latest_invoice": made["id"]})
    return made


def commit(mode: Mode, subscription: Object, change: Plan, behavior: str, *, collect_now: bool = True) -> Object:
    """Save a change and bill its lines by `proration_behavior`. Returns the stored subscription."""
    now = bool(change.lines) and (change.restarted or behavior == "always_invoice")
    return bill(mode, apply(mode, subscription, change.state), change.lines, now=now, collect_now=collect_now)


def bill(mode: Mode, subscription: Object, lines: Sequence[Line], *, now: bool, collect_now: bool = True) -> Object:
    """Bill lines by an invoice of now or by the next one. Returns the stored subscription."""
    if now:
        invoice(mode, subscription["id"], lines, "subscription_update", collect_now=collect_now)
    else:
        invoicing.add_pending(mode, subscription, lines)
    return watch(mode, subscription["id"])


def commit_when_paid(
    mode: Mode, subscription: Object, change: Plan, *, resumes: bool, collect_now: bool = True
) -> Object:
    """Invoice a change that takes effect when the invoice is paid within 23 hours. Returns the stored subscription."""
    identifier, until = mode.store.save(subscription)["id"], mode.now_of(subscription) + INCOMPLETE_S
    pending = {"state": change.state, "expires_at": until, "resumes": resumes, "invoice": None}
    mode.store.put(ledger(mode, identifier) | {"pending": pending})
    made = invoice(mode, identifier, change.lines, "subscription_update", collect_now=collect_now)
    notes = ledger(mode, identifier)
    if notes["pending"]:
        mode.store.put(notes | {"pending": {**pending, "invoice": made["id"]}})
        shown = {"billing_cycle_anchor": change.state["anchor"] if change.restarted else None, "expires_at": until}
        shown |= {"subscription_items": change.state["items"], "trial_end": None, "trial_from_plan": None}
        mode.store.save(mode.fetch("subscription", identifier) | {"pending_update": None if resumes else shown})
    return watch(mode, identifier)


def end(mode: Mode, subscription: Object, at: int, reason: str = "cancellation_requested") -> Object:
    """Cancel a subscription now, without any invoice. A schedule ends with its subscription, and so does a change that
    waits for its payment."""
    if (notes := ledger(mode, subscription["id"]))["pending"]:
        mode.store.put({**notes, "pending": None})
    body = end_schedule(mode, subscription, "canceled")
    body["cancellation_details"] = {**body["cancellation_details"], "reason": reason}
    body |= {"status": "canceled", "canceled_at": body["canceled_at"] or at, "ended_at": at}
    return mode.store.save(body, "customer.subscription.deleted")


def end_schedule(mode: Mode, subscription: Object, status: str) -> Object:
    """End a subscription's schedule as `canceled`, `completed` or `released`. Returns the subscription to save."""
    schedule = mode.store.edit("subscription_schedule", subscription["schedule"] or "")
    if schedule:
        schedule |= {"status": status, f"{status}_at": mode.now_of(subscription), "current_phase": None}
        if status == "released":
            schedule |= {"released_subscription": subscription["id"], "subscription": None}
        mode.store.save(schedule, f"subscription_schedule.{status}")
    return {**subscription, "schedule": None}


def watch(mode: Mode, subscription: str) -> Object:
    """Schedule the next job of a subscription: at the next instant at which its state changes by itself."""
    body, notes = mode.fetch("subscription", subscription), ledger(mode, subscription)
    schedule = mode.store.get("subscription_schedule", body["schedule"] or "")
    dues: list[Any] = []
    if body["status"] == "incomplete":
        dues = [body["created"] + INCOMPLETE_S]
    elif body["status"] not in (*ENDED, "paused"):
        dues = [
            *(item["current_period_end"] for item in items_of(mode, subscription)),
            body["cancel_at"],
            body["trial_end"] and body["trial_end"] - WILL_END_S,
            schedule["current_phase"]["end_date"] if schedule else None,
        ]
    at = mode.now_of(body)
    dues.append((notes["pending"] or {}).get("expires_at"))
    if has_threshold(body):
        dues.append(at - at % _LOOK_S + _LOOK_S)
    due = min((due for due in dues if due and due > at), default=0)
    if due != notes["due"]:
        clock, arguments = body["test_clock"] or "", {"subscription": subscription}
        mode.clockwork.cancel(notes["job"])
        job = mode.clockwork.schedule(due * 1_000, TICK, arguments, clock) if due else 0
        mode.store.put({**notes, "due": due, "job": job})
    return body


def _after(mode: Mode, subscription: Object, before: list[Object], wanted: Sequence[Params], at: int) -> list[Object]:
    """The items after a change. A new item gets its period from `plan`."""
    after = {item["id"]: {**item} for item in before}
    for index, change in enumerate(wanted):
        param, identifier = f"items[{index}]", change.get("id")
        if other := change.keys() - _TAKES:
            raise not_simulated(f"subscription items with the parameter {min(other)}")
        if identifier is not None and identifier not in after:
            raise no_such("subscription item", identifier, f"{param}[id]", 400)
        if change.get("deleted"):
            del after[identifier]
            continue
        item = after.get(identifier or "") or {
            "id": mode.store.new_id("si"), "object": SUBSCRIPTION_ITEM, "billing_thresholds": None, "created": at,
            "discounts": [], "metadata": {}, "subscription": subscription["id"], "tax_rates": [],
            "current_period_start": at, "current_period_end": at + 1,
        }  # fmt: skip
        if "price" in change or "price" not in item:
            item |= _priced(mode, change.get("price"), f"{param}[price]")
        if item["price"]["recurring"]["usage_type"] == "licensed":
            item["quantity"] = change.get("quantity", item.get("quantity", 1))
        elif change.get("quantity") is not None:
            raise ApiError(400, "You cannot set the quantity for metered plans.", param=f"{param}[quantity]")
        else:
            item.pop("quantity", None)
        after[item["id"]] = changed(item, change, ())
    check(bool(after), "A subscription must have at least one active plan. To cancel it, delete the subscription.")
    currencies = {item["price"]["currency"] for item in after.values()}
    check(len(currencies) == 1, "All prices on a subscription must have the same currency.", "items")
    return list(after.values())


def _priced(mode: Mode, identifier: str | None, param: str) -> Object:
    """The fields of an item that follow from its price; `plan` is the older form of the price."""
    if identifier is None:
        raise missing_parameter(param)
    price = mode.store.get("price", identifier)
    if price is None:
        raise no_such("price", identifier, param, 400)
    recurring = price["recurring"]
    state = "set to `type=one_time`" if recurring is None else "inactive"
    message = f"The price specified is {state}. This field only accepts active prices with `type=recurring`."
    check(recurring is not None and price["active"], message, param)
    older = {
        "object": "plan", "amount": price["unit_amount"], "amount_decimal": price["unit_amount_decimal"],
        "transform_usage": price["transform_quantity"], **{name: price[name] for name in _PLAN_FIELDS}, **recurring,
    }  # fmt: skip
    return {"price": price, "plan": older}


def _engine_item(subscription: Object, item: Object) -> Item:
    """An item as the engine computes with it. Its period is a whole one, also if the item began inside the period."""
    price = engine_price(item["price"])
    period = Period(item["current_period_start"], item["current_period_end"])
    if subscription["status"] != "trialing":
        period = period_containing(subscription["billing_cycle_anchor"], price.recurrence, period.end - 1)
    return Item(item["id"], price, period, item.get("quantity", 1))


def _prorated(
    mode: Mode, subscription: Object, state: Object, old: Sequence[Item], new: Sequence[Item], at: int, *, credit: bool
) -> Prorated:
    debits = [_debit(mode, row) for row in state["debits"]]
    discounts = list(coupons.discounts_of(mode, subscription, at).values())
    kind = subscription["billing_mode"]["type"]
    return prorate(kind, old, new, at, discounts=discounts, debits=debits, prorations=credit)


def _usage(mode: Mode, subscription: Object, state: Object, item: Object, at: int) -> Usage | None:
    """The usage of a metered item in its period until an instant; None for another item or an empty span."""
    start = max(item["current_period_start"], state["usage_from"].get(item["id"], 0))
    period = Period(start, min(at, item["current_period_end"]))
    if item["price"]["recurring"]["usage_type"] != "metered" or period.start >= period.end:
        return None
    return usage_of(mode, subscription["customer"], item["price"], period, state["billed"].get(item["id"], 0))


def _used(mode: Mode, subscription: Object, state: Object, at: int) -> list[tuple[Item, Usage]]:
    """The metered items with their usage until an instant."""
    pairs = ((_engine_item(subscription, body), _usage(mode, subscription, state, body, at)) for body in state["items"])
    return [(item, usage) for item, usage in pairs if usage]


def _row(debit: Debit) -> list[Any]:
    """A debit as JSON."""
    item = debit.item
    return [item.id, item.price.id, item.quantity, str(debit.net), *item.period, *debit.billed]


def _debit(mode: Mode, row: Sequence[Any]) -> Debit:
    item, price, quantity, net, *seconds = row
    whole = Item(item, engine_price(mode.store.get("price", price) or {}), Period(*seconds[:2]), quantity)
    return Debit(whole, Fraction(net), Period(*seconds[2:]))
