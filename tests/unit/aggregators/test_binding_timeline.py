"""Which bindings follow from what Stripe holds: one case for each rule of `aggregators.binding_timeline`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest

from aggregators.binding_timeline import overlaps, timeline
from schemas.clock import DAY_MS, MINUTE_MS
from schemas.periods import Billing, Binding
from schemas.side_tables import Link, Row

ACME, CUS, OTHER = "acme", "cus_1", "cus_2"


def at(text: str) -> int:
    """The instant of a date or time in November 2026, such as `10` or `10T09:30:15`."""
    day, _, clock = text.partition("T")
    return round(datetime.fromisoformat(f"2026-11-{day}T{clock or '00:00'}").replace(tzinfo=UTC).timestamp()) * 1000


NOW = at("10T12:00:30")


def subscription(**changes: Any) -> Row:
    """An active subscription since the 5th."""
    row: dict[str, Any] = {
        "id": "sub_1", "customer_id": CUS, "status": "active", "billing_mode": "flexible",
        "collection_method": "charge_automatically", "currency": "usd", "anchor_ms": at("05T10:00:15"),
        "start_ms": at("05T10:00:15"), "trial_end_ms": None, "cancel_at_ms": None, "ended_ms": None,
        "pause_reason": None, "schedule_id": None, "pending_update_until_ms": None, "latest_invoice_id": None,
        "default_payment_method": None, "discounts_json": "[]", "deleted": 0,
    }  # fmt: skip
    return {**row, **changes}


def item(of: str = "sub_1", price: str = "price_calls", **changes: Any) -> Row:
    """A metered monthly item."""
    row: dict[str, Any] = {
        "id": f"si_{of}_{price}", "subscription_id": of, "price_id": price, "meter_id": "mtr_1",
        "usage_type": "metered", "interval": "month", "interval_count": 1, "quantity": None,
        "period_start_ms": at("05"), "period_end_ms": at("05") + 30 * DAY_MS,
    }  # fmt: skip
    return {**row, **changes}


def flat(of: str = "sub_1", **changes: Any) -> Row:
    """A licensed yearly item."""
    return item(of, "price_flat", **{"meter_id": None, "usage_type": "licensed", "interval": "year", **changes})


def schedule(*phases: dict[str, Any], **changes: Any) -> Row:
    """A schedule of `sub_1`."""
    row: dict[str, Any] = {
        "id": "sub_sched_1", "customer_id": CUS, "subscription_id": "sub_1", "status": "active",
        "end_behavior": "release", "phases_json": json.dumps(phases), "deleted": 0,
    }  # fmt: skip
    return {**row, **changes}


def phase(starts: str, ends: str, price: str = "price_calls", **changes: Any) -> dict[str, Any]:
    """A phase with one price."""
    prices = [{"price": price, "quantity": None}]
    return {
        "start_ms": at(starts),
        "end_ms": at(ends),
        "trial_end_ms": None,
        "anchor": None,
        "prices": prices,
        **changes,
    }


FREE_SINCE_EVER = Binding(effective_from_ms=0, billing=Billing.FREE)


def mapped(from_: str | int, anchor: str | int = "05T10:00:15", customer: str = CUS, **changes: Any) -> Binding:
    """A binding to a customer."""
    given = {
        "effective_from_ms": at(from_) if isinstance(from_, str) else from_,
        "anchor_ms": at(anchor) if isinstance(anchor, str) else anchor,
        "billing": Billing.MAPPED, "stripe_customer": customer, **changes,
    }  # fmt: skip
    return Binding.model_validate(given)


def free(from_: str | int, anchor: str | int = 0, **changes: Any) -> Binding:
    """A binding to nobody, with the periods of the payer after or before."""
    return mapped(from_, anchor, "", **{"billing": Billing.FREE, **changes})


KNOWN: list[Row] = [{"id": CUS, "deleted": 0}, {"id": OTHER, "deleted": 0}]
SINCE_EVER = [Link(ACME, CUS, 0)]
# A customer whose subscription has begun, and the binding that is known for it.
STARTED = [FREE_SINCE_EVER, mapped("05T10:00")]


class Case(NamedTuple):
    """What Stripe holds and what was planned, and what must be sent."""

    sends: Sequence[Binding]
    subscriptions: Sequence[Row] = ()
    items: Sequence[Row] = ()
    schedules: Sequence[Row] = ()
    customers: Sequence[Row] = KNOWN
    sent: Sequence[Binding] = ()
    links: Sequence[Link] = SINCE_EVER

    def mirror(self) -> dict[str, Sequence[Row]]:
        """The rows by table."""
        return {
            "stripe_customers": self.customers, "subscriptions": self.subscriptions, "subscription_items": self.items,
            "subscription_schedules": self.schedules,
        }  # fmt: skip


TRIAL = subscription(status="trialing", trial_end_ms=at("20T08:00:40"), anchor_ms=at("20T08:00:40"))
ENDED: dict[str, Any] = {"status": "canceled", "ended_ms": at("09T11:00:59")}
YEARLY = item("sub_0", "price_yearly", interval="year")
AHEAD = [phase("05", "20"), phase("20", "30", "price_yearly")]
NEWER = subscription(id="sub_2", start_ms=at("06"), anchor_ms=at("06"))
CASES = {
    "no link": Case([], [subscription()], [item()], links=[]),
    "linked without a subscription": Case([FREE_SINCE_EVER]),
    "a customer that was not read": Case([], customers=KNOWN[1:]),
    "a customer that was not read, of an account that pays": Case([], customers=[], sent=STARTED),
    "a customer that was not read, by a later link": Case(
        [],
        [subscription()],
        [item()],
        customers=KNOWN[:1],
        links=[Link(ACME, CUS, 0, at("09")), Link(ACME, OTHER, at("09"))],
        sent=STARTED,
    ),
    "linked from an instant, without a subscription": Case(
        [free("10T12:01")], links=[Link(ACME, CUS, at("10T12:00:01"))]
    ),
    "linked from tomorrow": Case([mapped("11")], [subscription()], [item()], links=[Link(ACME, CUS, at("11"))]),
    "a subscription that has begun, at the first link": Case([mapped("05T10:00")], [subscription()], [item()]),
    "a subscription that began before the link": Case(
        [mapped("07")], [subscription()], [item()], links=[Link(ACME, CUS, at("07"))]
    ),
    "a new subscription of a free account": Case(
        [mapped("05T10:00")], [subscription()], [item()], sent=[FREE_SINCE_EVER]
    ),
    "nothing new": Case([], [subscription()], [item()], sent=STARTED),
    "past due": Case([], [subscription(status="past_due")], [item()], sent=STARTED),
    "the metered item's interval wins over the flat one's": Case(
        [mapped("05T10:00", interval="week", interval_count=2)],
        [subscription()],
        [flat(), item(interval="week", interval_count=2)],
        sent=[FREE_SINCE_EVER],
    ),
    "only flat items": Case(
        [mapped("05T10:00", interval="year")], [subscription()], [flat()], sent=[FREE_SINCE_EVER]
    ),
    "a trial": Case(
        [mapped("20T08:00", "20T08:00:40")], [TRIAL], [item()], sent=[FREE_SINCE_EVER]
    ),
    "a trial at the first link": Case(
        [free(0, "20T08:00:40"), mapped("20T08:00", "20T08:00:40")], [TRIAL], [item()]
    ),
    "a trial that is extended": Case(
        [free("20T08:00", "25"), mapped("25", "25")],
        [{**TRIAL, "trial_end_ms": at("25"), "anchor_ms": at("25")}],
        [item()],
        sent=[FREE_SINCE_EVER, mapped("20T08:00", "20T08:00:40")],
    ),
    "a trial that is shortened": Case(
        [mapped("15", "15")],
        [{**TRIAL, "trial_end_ms": at("15"), "anchor_ms": at("15")}],
        [item()],
        sent=[FREE_SINCE_EVER, mapped("20T08:00", "20T08:00:40")],
    ),
    "a trial that has ENDED, and Stripe's word comes late": Case(
        [mapped("09", "09")],
        [{**TRIAL, "trial_end_ms": at("09"), "anchor_ms": at("09")}],
        [item()],
        sent=[FREE_SINCE_EVER],
    ),
    "a trial that will be canceled at its end": Case(
        [], [{**TRIAL, "cancel_at_ms": at("20T08:00:40")}], [item()], sent=[FREE_SINCE_EVER]
    ),
    "paused": Case(
        [free("10T12:00", "05T10:00:15")], [subscription(status="paused")], [item()], sent=STARTED
    ),
    "paused, and known": Case(
        [], [subscription(status="paused")], [item()], sent=[*STARTED, free("10T11:00", "05T10:00:15")]
    ),
    "resumed with a new anchor": Case(
        [mapped("10T12:00", "10T11:59:30")],
        [subscription(anchor_ms=at("10T11:59:30"))],
        [item()],
        sent=[*STARTED, free("10T11:00", "05T10:00:15")],
    ),
    "collection paused": Case([], [subscription(pause_reason="void")], [item()], sent=STARTED),
    "unpaid": Case([free("10T12:00", "05T10:00:15")], [subscription(status="unpaid")], [item()], sent=STARTED),
    "incomplete": Case([], [subscription(status="incomplete")], [item()], sent=[FREE_SINCE_EVER]),
    "incomplete and expired": Case(
        [], [subscription(status="incomplete_expired", ended_ms=at("06"))], [item()], sent=[FREE_SINCE_EVER]
    ),
    "canceled": Case([free("09T11:00", "05T10:00:15")], [subscription(**ENDED)], [item()], sent=STARTED),
    "canceled within the trial": Case([], [{**TRIAL, **ENDED}], [item()], sent=[FREE_SINCE_EVER]),
    "canceled, at the first link": Case(
        [free("09T11:00")], [subscription(**ENDED)], [item()]
    ),
    "gone at Stripe": Case(
        [free("10T12:00", "05T10:00:15")], [subscription(deleted=1)], [item()], sent=STARTED
    ),
    "the customer is deleted": Case(
        [free("10T12:00", "05T10:00:15")],
        [subscription()],
        [item()],
        customers=[{"id": CUS, "deleted": 1}],
        sent=STARTED,
    ),
    "to be canceled": Case(
        [free("25T07:00", "05T10:00:15")], [subscription(cancel_at_ms=at("25T07:00:59"))], [item()], sent=STARTED
    ),
    "no longer to be canceled": Case(
        [mapped("25T07:00")], [subscription()], [item()], sent=[*STARTED, free("25T07:00", "05T10:00:15")]
    ),
    "should be canceled by now, and Stripe's word comes late": Case(
        [free("10T11:00", "05T10:00:15")], [subscription(cancel_at_ms=at("10T11:00"))], [item()], sent=STARTED
    ),
    "the anchor moves": Case(
        [mapped("10T12:00", "10T09:00")], [subscription(anchor_ms=at("10T09:00"))], [item()], sent=STARTED
    ),
    "the anchor moves within its minute": Case(
        [], [subscription(anchor_ms=at("05T10:00:59"))], [item()], sent=STARTED
    ),
    "a phase ahead with another interval": Case(
        [mapped("20", "20", interval="year")], [subscription()], [item(), YEARLY], [schedule(*AHEAD)], sent=STARTED
    ),
    "a phase ahead with a price that is unknown": Case(
        [], [subscription()], [item()], [schedule(*AHEAD)], sent=STARTED
    ),
    "a phase ahead that moves the anchor": Case(
        [mapped("20", "20")],
        [subscription()],
        [item()],
        [schedule(phase("05", "20"), phase("20", "30", anchor="phase_start"))],
        sent=STARTED,
    ),
    "a phase ahead with a trial": Case(
        [free("20", "25"), mapped("25", "25")],
        [subscription()],
        [item()],
        [schedule(phase("05", "20"), phase("20", "30", trial_end_ms=at("25")))],
        sent=STARTED,
    ),
    "a phase that has begun, and the items were read before": Case(
        [mapped("09", "09", interval="year")],
        [subscription()],
        [item(), YEARLY],
        [schedule(phase("05", "09"), phase("09", "30", "price_yearly"))],
        sent=STARTED,
    ),
    "a phase that is over": Case(
        [], [subscription()], [item(), YEARLY],
        [schedule(phase("05", "06", "price_yearly"), phase("06", "30"))], sent=STARTED,
    ),
    "a schedule that cancels": Case(
        [free("30", "05T10:00:15")],
        [subscription()],
        [item()],
        [schedule(phase("05", "30"), end_behavior="cancel")],
        sent=STARTED,
    ),
    "a schedule that was released": Case(
        [], [subscription()], [item(), YEARLY], [schedule(*AHEAD, status="released")], sent=STARTED
    ),
    "a schedule that is given up after its phase was planned": Case(
        [mapped("20")], [subscription()], [item(), YEARLY], sent=[*STARTED, mapped("20", "20", interval="year")]
    ),
    "a schedule whose subscription begins later": Case(
        [mapped("15", "15")], [], [item("sub_0")],
        [schedule(phase("15", "30"), subscription_id=None, status="not_started")], sent=[FREE_SINCE_EVER],
    ),
    "a schedule whose subscription begins later, with an unknown price": Case(
        [], [], [], [schedule(phase("15", "30"), subscription_id=None, status="not_started")],
        sent=[FREE_SINCE_EVER],
    ),
    "another customer by a later link": Case(
        [mapped("12", "08", OTHER)],
        [subscription(), subscription(id="sub_2", customer_id=OTHER, anchor_ms=at("08"), start_ms=at("08"))],
        [item(), item("sub_2")],
        links=[Link(ACME, CUS, 0, at("12")), Link(ACME, OTHER, at("12"))],
        sent=STARTED,
    ),
    "another customer without a subscription": Case(
        [free("12", "05T10:00:15")],
        [subscription()],
        [item()],
        links=[Link(ACME, CUS, 0), Link(ACME, OTHER, at("12"))],
        sent=STARTED,
    ),
    "a link that ends": Case(
        [mapped("12", "05T10:00:15", "", billing=Billing.UNMAPPED)],
        [subscription()],
        [item()],
        links=[Link(ACME, CUS, 0, at("12"))],
        sent=STARTED,
    ),
    "an account that is unlinked": Case(
        [mapped("12", "05T10:00:15", "", billing=Billing.UNMAPPED)],
        [subscription()],
        [item()],
        links=[Link(ACME, CUS, 0, at("12")), Link(ACME, "", at("12"))],
        sent=STARTED,
    ),
    "another customer after a time without one": Case(
        [mapped("12", "08", "", billing=Billing.UNMAPPED), mapped("14", "08", OTHER)],
        [subscription(), subscription(id="sub_2", customer_id=OTHER, anchor_ms=at("08"), start_ms=at("08"))],
        [item(), item("sub_2")],
        links=[Link(ACME, CUS, 0, at("12")), Link(ACME, "", at("12"), at("14")), Link(ACME, OTHER, at("14"))],
        sent=STARTED,
    ),
    "unlinked before the first link begins": Case(
        [mapped("10T12:00", 0, "", billing=Billing.UNMAPPED)],
        links=[Link(ACME, "", at("10T12:00"))],
        sent=[mapped("20", "20")],
    ),
    "a subscription of another customer": Case(
        [], [subscription(customer_id=OTHER)], [item()], sent=[FREE_SINCE_EVER]
    ),
    "two that bill: the older one": Case([], [NEWER, subscription()], [item("sub_2"), item()], sent=STARTED),
    "two that bill: the metered one": Case(
        [mapped("06", "06")], [subscription(), NEWER], [flat(), item("sub_2")], sent=STARTED
    ),
    "the older one ends, the other one bills on": Case(
        [mapped("25", "06")],
        [NEWER, subscription(cancel_at_ms=at("25"))],
        [item("sub_2"), item()],
        sent=STARTED,
    ),
    "another customer was planned": Case(
        [mapped("10T12:00")], [subscription()], [item()], sent=[mapped("06", customer="cus_9")]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_what_is_sent(case: Case) -> None:
    sends = timeline(case.links, case.mirror(), case.sent, NOW)

    assert sends == case.sends
    assert all(binding.effective_from_ms % MINUTE_MS == 0 for binding in sends)
    assert not timeline(case.links, case.mirror(), [*case.sent, *sends], NOW)


SECOND = {"id": "sub_2", "start_ms": at("06"), "anchor_ms": at("06")}


@pytest.mark.parametrize(
    ("subscriptions", "items", "said"),
    [
        pytest.param([subscription()], [item()], None, id="one"),
        pytest.param(
            [subscription(**SECOND), subscription()], [item(), item("sub_2")], "both bill the meter mtr_1",
            id="one meter",
        ),
        pytest.param(
            [subscription(), subscription(**SECOND)], [item(), item("sub_2", meter_id="mtr_2")],
            "in different periods", id="two meters, two anchors",
        ),
        pytest.param(
            [subscription(), subscription(id="sub_2")], [item(), item("sub_2", meter_id="mtr_2")], None,
            id="two meters, one anchor",
        ),
        pytest.param([subscription(), subscription(**SECOND)], [flat(), item("sub_2")], None, id="one is flat"),
        pytest.param(
            [subscription(cancel_at_ms=at("15")), subscription(**SECOND, trial_end_ms=at("15"))],
            [item(), item("sub_2")], None, id="one after the other",
        ),
        pytest.param(
            [subscription(), subscription(**SECOND, status="canceled", ended_ms=at("09"))],
            [item(), item("sub_2")], None, id="over",
        ),
    ],
)  # fmt: skip
def test_which_subscriptions_cannot_both_be_right(
    subscriptions: Sequence[Row], items: Sequence[Row], said: str | None
) -> None:
    found = overlaps({"subscriptions": subscriptions, "subscription_items": items}, NOW)

    if said is None:
        assert found == []
    else:
        (overlap,) = found
        assert (overlap.customer, overlap.subscription, overlap.other) == (CUS, "sub_1", "sub_2")
        assert said in overlap.reason
        assert overlap.reason.endswith("sub_1 is followed")
