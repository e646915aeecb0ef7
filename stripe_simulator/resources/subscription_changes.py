"""The items of a subscription, what a change of the items bills, and the state from which later changes follow.

`plan` and `renewal` compute and save nothing. `apply` saves their state.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final, NamedTuple

from stripe_simulator import invoicing
from stripe_simulator.contract.parameters import Params
from stripe_simulator.engine.collection import expires_at
from stripe_simulator.engine.cycle import cycle_lines, totals
from stripe_simulator.engine.discounts import Discount
from stripe_simulator.engine.lines import Item, Line, licensed_line
from stripe_simulator.engine.periods import Period, period_containing
from stripe_simulator.engine.proration import Debit, debits_of, prorate, restarts_period
from stripe_simulator.engine.usage import Usage, swap_lines, usage_lines
from stripe_simulator.errors import ApiError, no_such, not_simulated
from stripe_simulator.metadata import merged
from stripe_simulator.mode import Mode
from stripe_simulator.resources import coupons
from stripe_simulator.resources.meter_event_summaries import aggregate
from stripe_simulator.resources.prices import engine_price
from stripe_simulator.store import Object, copied
from stripe_simulator.usage import DECIMAL_PLACES_MAX

SUBSCRIPTION_ITEM: Final = "subscription_item"
NESTED_MAX: Final = 10
TICK: Final = "subscription.tick"
ENDED: Final = ("canceled", "incomplete_expired")
# Stripe announces the end of a trial three days before.
WILL_END_S: Final = 3 * 86_400
_TAKES: Final = frozenset({"id", "price", "quantity", "deleted", "metadata"})
_LEDGER: Final = "subscription.ledger"
_UNIT: Final = 10**DECIMAL_PLACES_MAX


class Plan(NamedTuple):
    """What a change bills, and the state after the change as `state_of` describes it.

    `restarted`: the change starts a new period now, so it is invoiced at once.
    """

    lines: tuple[Line, ...]
    state: Object
    restarted: bool = False


def ledger(mode: Mode, subscription: str) -> Object:
    """A copy of what a subscription remembers beside its Stripe object; `mode.store.put` stores the copy.

    `debits` is the engine's ledger, `usage_from` by metered item the second from which its price counts, `job` and
    `due` the next job, `pending` a pending update's state and invoice, `resuming` the invoice that ends a pause.
    """
    new = {"debits": [], "usage_from": {}, "job": 0, "due": 0, "pending": None, "resuming": None}
    return mode.store.edit(_LEDGER, f"ledger_{subscription}") or {
        "id": f"ledger_{subscription}", "object": _LEDGER, **new
    }  # fmt: skip


def items_of(mode: Mode, subscription: str) -> list[Object]:
    """Copies of the items of a subscription, oldest first."""
    rows = mode.store.newest(SUBSCRIPTION_ITEM, "subscription", subscription)
    return [copied(row) for row in rows if "deleted" not in row][::-1]


def state_of(mode: Mode, subscription: Object) -> Object:
    """What the next change or renewal starts from: items, billing cycle anchor, debits, start of usage."""
    notes = ledger(mode, subscription["id"])
    return {
        "items": items_of(mode, subscription["id"]),
        "anchor": subscription["billing_cycle_anchor"],
        "debits": notes["debits"],
        "usage_from": notes["usage_from"],
    }


def plan(
    mode: Mode,
    subscription: Object,
    wanted: Sequence[Params],
    at: int,
    *,
    prorations: bool = True,
    anchor_now: bool = False,
) -> Plan:
    """The change to the items that `wanted` describes, as in the parameter `items`. Raises `ApiError`."""
    state = state_of(mode, subscription)
    before = state["items"]
    after = _after(mode, subscription, before, wanted, at)
    old = [_engine_item(mode, subscription, item) for item in before]
    new = [_engine_item(mode, subscription, item) for item in after]
    billing_mode = subscription["billing_mode"]["type"]
    is_trial = subscription["status"] == "trialing"
    restarted = not is_trial and (anchor_now or restarts_period(billing_mode, old, new))
    anchor = at if restarted else subscription["billing_cycle_anchor"]
    recurrences = {item.id: item.price.recurrence for item in old}
    for index, (body, item) in enumerate(zip(after, new, strict=True)):
        if is_trial:
            whole = Period(subscription["trial_start"], subscription["trial_end"])
        elif restarted or recurrences.get(item.id) != item.price.recurrence:
            whole = period_containing(anchor, item.price.recurrence, at)
        else:
            continue
        start = whole.start if is_trial else max(at, whole.start)
        body |= {"current_period_start": start, "current_period_end": whole.end}
        new[index] = item._replace(period=whole)
    state |= {"items": after, "anchor": anchor}
    if is_trial:
        # A trial is invoiced with lines of 0.
        free = [] if before else [licensed_line(item) for item in new if not item.price.metered]
        return Plan(tuple(line._replace(amount=0, unit_amount=Fraction(0)) for line in free), state)
    trial_ends = (mode.store.get("subscription", subscription["id"]) or {}).get("status") == "trialing"
    prorated = prorate(
        billing_mode, () if trial_ends else old, new, at,
        discounts=_discounts(mode, subscription, at),
        debits=[_debit(mode, row) for row in state["debits"]],
        prorations=prorations,
    )  # fmt: skip
    state["debits"] = [_row(debit) for debit in prorated.debits]
    lines = list(prorated.lines)
    kept = {item.id: item for item in new}
    # An item that becomes metered counts from now on.
    begun = [item.id for item in old if not item.price.metered and item.id in kept and kept[item.id].price.metered]
    state["usage_from"] = {**state["usage_from"], **dict.fromkeys(begun, at)}
    for body, item in zip(before, old, strict=True):
        then = kept.get(item.id)
        if not item.price.metered or (then and (then.price, then.period) == (item.price, item.period)):
            continue
        usage = None if trial_ends else _usage(mode, subscription, state, body, min(at, body["current_period_end"]))
        state["usage_from"] = {**state["usage_from"], item.id: at}
        if usage and (restarted or body["current_period_end"] <= at):
            lines += usage_lines(item, usage)
        elif usage and prorations:
            lines += swap_lines(billing_mode, item, usage)
    return Plan(tuple(lines), state, restarted or any(not line.proration for line in prorated.lines))


def renewal(
    mode: Mode, subscription: Object, at: int, state: Object | None = None, *, usage_counts: bool = True
) -> Plan:
    """The lines and the state when the periods that end until `at` are renewed. `state` is that of a plan."""
    state = state or state_of(mode, subscription)
    usages: dict[str, Usage] = {}
    renewed = []
    items = copied(state["items"])
    for body in items:
        if body["current_period_end"] > at:
            continue
        item = _engine_item(mode, subscription, body)
        if usage_counts and (usage := _usage(mode, subscription, state, body, body["current_period_end"])):
            usages[item.id] = usage
        period = period_containing(state["anchor"], item.price.recurrence, at)
        body |= {"current_period_start": period.start, "current_period_end": period.end}
        renewed.append(item._replace(period=period))
    lines = cycle_lines(renewed, usages)
    cut_of: dict[str, int] = {}
    for line, amounts in zip(lines, totals(lines, discounts=_discounts(mode, subscription, at)).lines, strict=True):
        if not line.metered:
            cut_of[line.item] = cut_of.get(line.item, 0) + sum(cut.amount for cut in amounts.cuts)
    ends = {item.id for item in renewed}
    debits = [row for row in state["debits"] if row[0] not in ends] + [_row(it) for it in debits_of(renewed, cut_of)]
    usage_from = {key: value for key, value in state["usage_from"].items() if key not in ends}
    return Plan(lines, {**state, "items": items, "debits": debits, "usage_from": usage_from})


def final_usage(mode: Mode, subscription: Object, at: int) -> tuple[Line, ...]:
    """The lines of the metered usage that no invoice has, until `at`."""
    lines: list[Line] = []
    state = state_of(mode, subscription)
    for body in state["items"]:
        usage = _usage(mode, subscription, state, body, min(at, body["current_period_end"]))
        lines += usage_lines(_engine_item(mode, subscription, body), usage) if usage else ()
    return tuple(lines)


def unused_time(mode: Mode, subscription: Object, at: int) -> tuple[Line, ...]:
    """The credits for the unused time of all licensed items, as for an immediate cancellation."""
    old = [_engine_item(mode, subscription, item) for item in items_of(mode, subscription["id"])]
    debits = [_debit(mode, row) for row in ledger(mode, subscription["id"])["debits"]]
    discounts = _discounts(mode, subscription, at)
    return prorate(subscription["billing_mode"]["type"], old, (), at, discounts=discounts, debits=debits).lines


def hold(mode: Mode, subscription: Object, lines: Sequence[Line]) -> None:
    """Keep lines for the customer's next invoice of the subscription."""
    if lines:
        invoicing.pending_items(mode, subscription, lines)


def has_pending(mode: Mode, subscription: Object) -> bool:
    """Whether invoice items of the subscription wait for its next invoice."""
    return any(
        item["invoice"] is None
        and ((item["parent"] or {}).get("subscription_details") or {}).get("subscription") == subscription["id"]
        for item in mode.store.newest("invoiceitem", "customer", subscription["customer"])
    )


def metered_lines(mode: Mode, customer: str, item: str, price: str, period: Period) -> tuple[Line, ...]:
    """The lines of a metered item's usage in `period` as it is now: a draft's lines are computed again when the draft
    becomes final."""
    body = mode.fetch("price", price)
    value = _value(mode, customer, body, period)
    return usage_lines(Item(item, engine_price(body), period), Usage(value, period))


def apply(mode: Mode, subscription: Object, state: Object) -> Object:
    """Save the subscription with the state of a plan, and return the stored subscription."""
    identifier = subscription["id"]
    kept = {item["id"] for item in state["items"]}
    for item in state["items"]:
        mode.store.put(item)
    for item in items_of(mode, identifier):
        if item["id"] not in kept:
            mode.store.put({**item, "deleted": True})
    notes = ledger(mode, identifier)
    mode.store.put({**notes, "debits": state["debits"], "usage_from": state["usage_from"]})
    subscription["billing_cycle_anchor"] = state["anchor"]
    if subscription["cancel_at_period_end"]:
        subscription["cancel_at"] = max(item["current_period_end"] for item in state["items"])
    subscription["items"] = {
        "object": "list",
        "data": state["items"][:NESTED_MAX],
        "has_more": len(state["items"]) > NESTED_MAX,
        "url": f"/v1/subscription_items?subscription={identifier}",
    }
    return mode.store.save(subscription)


def invoice(mode: Mode, subscription: str, lines: Sequence[Line], reason: str, **how: Any) -> Object:
    """Create an invoice of a stored subscription, which becomes its `latest_invoice`. `how` is for `invoicing`."""
    body = mode.fetch("subscription", subscription)
    made = invoicing.subscription_invoice(mode, body, lines, reason, **how)
    # The payment may have changed the subscription.
    body = mode.fetch("subscription", subscription)
    if reason != "subscription_update" and made["subtotal"]:
        body["discounts"] = coupons.remaining_after(mode, body, now_s(mode, body))
    mode.store.save({**body, "latest_invoice": made["id"]})
    return made


def commit(mode: Mode, subscription: Object, change: Plan, behavior: str, *, collect_now: bool = True) -> Object:
    """Save a change and bill its lines by `proration_behavior`. Returns the stored subscription."""
    stored = apply(mode, subscription, change.state)
    if change.lines and (change.restarted or behavior == "always_invoice"):
        invoice(mode, stored["id"], change.lines, "subscription_update", collect_now=collect_now)
    else:
        hold(mode, stored, change.lines)
    return watch(mode, stored["id"])


def end(mode: Mode, subscription: Object, at: int, reason: str | None = "cancellation_requested") -> Object:
    """Cancel a subscription now, without any invoice. A schedule ends with its subscription."""
    schedule = mode.store.edit("subscription_schedule", subscription["schedule"] or "")
    if schedule:
        schedule |= {"status": "canceled", "canceled_at": at, "current_phase": None}
        mode.store.save(schedule, "subscription_schedule.canceled")
    details = {**subscription["cancellation_details"], "reason": reason}
    moved = {"status": "canceled", "canceled_at": subscription["canceled_at"] or at, "ended_at": at, "schedule": None}
    body = {**subscription, **moved, "cancellation_details": details, "pause_collection": None}
    return mode.store.save(body, "customer.subscription.deleted")


def watch(mode: Mode, subscription: str) -> Object:
    """Schedule the next job of a subscription: at the next instant at which its state changes by itself."""
    body, notes = mode.fetch("subscription", subscription), ledger(mode, subscription)
    schedule = mode.store.get("subscription_schedule", body["schedule"] or "")
    dues: list[Any] = []
    if body["status"] == "incomplete":
        dues = [expires_at(body["created"])]
    elif body["status"] == "paused":
        dues = [notes["resuming"] and notes["resuming"]["expires_at"]]
    elif body["status"] not in ENDED:
        dues = [
            *(item["current_period_end"] for item in items_of(mode, subscription)),
            body["cancel_at"],
            body["trial_end"] and body["trial_end"] - WILL_END_S,
            (body["pause_collection"] or {}).get("resumes_at"),
            (body["pending_update"] or {}).get("expires_at"),
            schedule["current_phase"]["end_date"] if schedule else None,
        ]
    at = now_s(mode, body)
    due = min((due for due in dues if due and due > at), default=0)
    if due != notes["due"]:
        mode.clockwork.cancel(notes["job"])
        job = mode.clockwork.schedule(due * 1_000, TICK, {"subscription": subscription}, clock_of(body)) if due else 0
        mode.store.put({**notes, "due": due, "job": job})
    return body


def now_s(mode: Mode, subscription: Object) -> int:
    """The time of a subscription's clock in seconds."""
    return mode.now_s(clock_of(subscription))


def clock_of(subscription: Object) -> str:
    """The test clock of a subscription, or the real clock."""
    return subscription["test_clock"] or ""


def _after(mode: Mode, subscription: Object, before: list[Object], wanted: Sequence[Params], at: int) -> list[Object]:
    after = {item["id"]: copied(item) for item in before}
    for index, change in enumerate(wanted):
        if other := change.keys() - _TAKES:
            raise not_simulated(f"subscription items with the parameter {min(other)}")
        identifier = change.get("id")
        if identifier is not None and identifier not in after:
            raise no_such("subscription item", identifier, f"items[{index}][id]", 400)
        if change.get("deleted"):
            del after[identifier]
            continue
        old = after.get(identifier) if identifier else None
        item = old or {
            "id": mode.store.new_id("si"), "object": SUBSCRIPTION_ITEM, "billing_thresholds": None, "created": at,
            "discounts": [], "metadata": {}, "subscription": subscription["id"], "tax_rates": [],
            "current_period_start": at, "current_period_end": at + 1,
        }  # fmt: skip
        if "price" in change or old is None:
            price = _price(mode, change.get("price"), f"items[{index}][price]")
            item |= {"price": price, "plan": _plan_of(price)}
        is_metered = item["price"]["recurring"]["usage_type"] == "metered"
        if is_metered and change.get("quantity") is not None:
            message = "You cannot set the quantity for metered plans."
            raise ApiError(400, message, param=f"items[{index}][quantity]")
        if is_metered:
            item.pop("quantity", None)
        else:
            item["quantity"] = change.get("quantity", item.get("quantity", 1))
        if "metadata" in change:
            item["metadata"] = merged(item["metadata"], change["metadata"])
        after[item["id"]] = item
    if not after:
        raise ApiError(400, "A subscription must have at least one active plan. To cancel it, delete the subscription.")
    if len({item["price"]["currency"] for item in after.values()}) > 1:
        raise ApiError(400, "All prices on a subscription must have the same currency.", param="items")
    return list(after.values())


def _price(mode: Mode, identifier: str | None, param: str) -> Object:
    if identifier is None:
        raise ApiError(400, "You must pass a price.", code="parameter_missing", param=param)
    price = mode.fetch("price", identifier, param=param)
    if price["recurring"] is None:
        message = (
            "The price specified is set to `type=one_time` but this field only accepts prices with `type=recurring`."
        )
        raise ApiError(400, message, param=param)
    if not price["active"]:
        message = "The price specified is inactive. This field only accepts active prices."
        raise ApiError(400, message, param=param)
    return price


def _plan_of(price: Object) -> Object:
    """The older form of a price, which an item still has."""
    recurring = price["recurring"]
    same = (
        "id", "active", "billing_scheme", "created", "currency", "livemode", "metadata", "nickname", "product",
        "tiers_mode",
    )  # fmt: skip
    return {
        **{name: price[name] for name in same},
        "object": "plan",
        "amount": price["unit_amount"],
        "amount_decimal": price["unit_amount_decimal"],
        "transform_usage": price["transform_quantity"],
        "trial_period_days": None,
        **{name: recurring[name] for name in ("interval", "interval_count", "meter", "usage_type")},
    }


def _engine_item(mode: Mode, subscription: Object, item: Object) -> Item:
    # The stored price has the tiers, the price inside the item has not.
    price = engine_price(mode.fetch("price", item["price"]["id"]))
    if subscription["status"] == "trialing":
        period = Period(item["current_period_start"], item["current_period_end"])
    else:
        period = period_containing(
            subscription["billing_cycle_anchor"], price.recurrence, item["current_period_end"] - 1
        )
    return Item(item["id"], price, period, item.get("quantity", 1))


def _discounts(mode: Mode, subscription: Object, at: int) -> tuple[Discount, ...]:
    customer = mode.fetch("customer", subscription["customer"])
    ids = subscription["discounts"] or ([customer["discount"]["id"]] if customer["discount"] else [])
    return tuple(coupons.discounts_of(mode, {"discounts": ids}, at).values())


def _usage(mode: Mode, subscription: Object, state: Object, item: Object, until: int) -> Usage | None:
    """The usage of a metered item in its period until an instant; None for another item or an empty span."""
    start = max(item["current_period_start"], state["usage_from"].get(item["id"], 0))
    if item["price"]["recurring"]["usage_type"] != "metered" or start >= until:
        return None
    period = Period(start, until)
    return Usage(_value(mode, subscription["customer"], item["price"], period), period)


def _value(mode: Mode, customer: str, price: Object, period: Period) -> Fraction:
    """Usage is known by minute: a minute belongs to the period in which it begins."""
    meter = mode.fetch("billing.meter", price["recurring"]["meter"])
    cells = list(mode.usage.cells(meter["id"], customer, period.start, period.end))
    return Fraction(aggregate(meter, cells), _UNIT)


def _row(debit: Debit) -> list[Any]:
    item = debit.item
    return [item.id, item.price.id, item.quantity, str(debit.net), *debit.period, *debit.billed]


def _debit(mode: Mode, row: Sequence[Any]) -> Debit:
    item, price, quantity, net, *seconds = row
    period = Period(*seconds[:2])
    engine = Item(item, engine_price(mode.fetch("price", price)), period, quantity)
    return Debit(engine, Fraction(net), period, Period(*seconds[2:]))
