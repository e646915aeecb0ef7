"""The subscription that the page is about, and what becomes of it, from the mirror's rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from aggregators.plan_change import ENDED
from aggregators.plan_offer import Shop, followed, view_of
from portal.account import Facts
from schemas.plan_changes import SubscriptionView
from schemas.side_tables import Row
from schemas.stripe_changes import StripeItem, StripeSubscription

OPEN_SCHEDULES: Final = frozenset({"active", "not_started"})


class Seen(NamedTuple):
    """The subscription that the page is about, and what becomes of it. `phases`: those of its schedule that are still
    to come, with their start; `ends_ms`: when it ends, None: not."""

    view: SubscriptionView
    phases: tuple[tuple[int, tuple[tuple[str, int | None], ...]], ...] = ()
    ends_ms: int | None = None
    trial_end_ms: int | None = None


def subscriptions_of(mirror: Mapping[str, Sequence[Row]]) -> list[StripeSubscription]:
    """The subscriptions of the mirror's rows that have not ended, in the terms of plan changes, without schedules."""
    items: dict[str, list[StripeItem]] = {}
    for row in mirror.get("subscription_items", ()):
        if row["interval"]:
            quantity = None if row["quantity"] is None else int(row["quantity"])
            span = int(row["period_start_ms"] or 0), int(row["period_end_ms"] or 0)
            item = StripeItem(str(row["id"]), str(row["price_id"]), quantity, str(row["interval"]), *span)
            items.setdefault(str(row["subscription_id"]), []).append(item)
    found = []
    for row in mirror.get("subscriptions", ()):
        if row["deleted"] or row["status"] in ENDED:
            continue
        found.append(
            StripeSubscription(
                id=str(row["id"]),
                customer=str(row["customer_id"]),
                status=str(row["status"]),
                currency=str(row["currency"]),
                collection=str(row["collection_method"]),
                has_card=bool(row["default_payment_method"]),
                anchor_ms=int(row["anchor_ms"] or 0),
                cancel_at_ms=None if row["cancel_at_ms"] is None else int(row["cancel_at_ms"]),
                ends_with_period=False,
                is_update_pending=row["pending_update_until_ms"] is not None,
                is_discounted=row["discounts_json"] not in (None, "", "[]"),
                has_item_discounts=False,
                is_taxed=False,
                latest_invoice=str(row["latest_invoice_id"] or ""),
                items=tuple(items.get(str(row["id"]), ())),
            )
        )
    return sorted(found, key=lambda each: each.id)


def _schedule(mirror: Mapping[str, Sequence[Row]], subscription: str) -> Row | None:
    return next(
        (
            row
            for row in mirror.get("subscription_schedules", ())
            if row["subscription_id"] == subscription and row["status"] in OPEN_SCHEDULES and not row["deleted"]
        ),
        None,
    )


def _phases(schedule: Row) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(str(schedule["phases_json"]))
    return found


def subscription_of(shop: Shop, mirror: Mapping[str, Sequence[Row]]) -> StripeSubscription | None:
    """The subscription of an account that has the plan of the highest rank; None without one."""
    return followed(shop, subscriptions_of(mirror))


def seen_of(facts: Facts) -> Seen:
    """The subscription that the page is about: the one with the plan of the highest rank."""
    found = subscription_of(facts.shop, facts.mirror)
    if found is None:
        return Seen(SubscriptionView())
    view = view_of(facts.shop, found.customer, found, facts.now_ms, has_card=False, is_contract=False)
    row = next(row for row in facts.mirror["subscriptions"] if row["id"] == found.id)
    schedule = _schedule(facts.mirror, found.id)
    planned = _phases(schedule) if schedule else []
    phases = tuple(
        (int(phase["start_ms"]), tuple((str(item["price"]), item["quantity"]) for item in phase["prices"]))
        for phase in planned
        if phase["start_ms"] > facts.now_ms
    )
    ends = schedule is not None and schedule["end_behavior"] == "cancel"
    ends_ms = int(planned[-1]["end_ms"]) if ends and planned else found.cancel_at_ms
    trial_end_ms = row["trial_end_ms"] if found.status == "trialing" else None
    return Seen(view, phases, ends_ms, None if trial_end_ms is None else int(trial_end_ms))


def renews_ms(seen: Seen, now_ms: int) -> int | None:
    """The first end of a period that is still to come."""
    ends = [item.end_ms for item in seen.view.items if item.end_ms > now_ms]
    return min(ends, default=None)


def method_of(facts: Facts) -> Row | None:
    """The payment method that pays: that of the subscription, or else that of the customer."""
    wanted = [row["default_payment_method"] for row in facts.mirror.get("subscriptions", ()) if not row["ended_ms"]]
    wanted += [row["default_payment_method"] for row in facts.mirror.get("stripe_customers", ())]
    methods = {row["id"]: row for row in facts.mirror.get("payment_methods", ())}
    return next((methods[each] for each in wanted if each in methods), None)


def card_expires_ms(facts: Facts) -> int | None:
    """When the payment method that pays expires; None if it does not, or nobody knows."""
    method = method_of(facts)
    return None if method is None or method["expires_ms"] is None else int(method["expires_ms"])
