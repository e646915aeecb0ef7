"""The table of plan changes: each row with its number, the Stripe calls that follow, and what is refused."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import pytest

from aggregators.plan_change import decide, item_changes
from schemas.catalog import Changes, OverLimit, PlanId
from schemas.periods import Interval
from schemas.plan_changes import (
    Calls,
    ChangeKind,
    Excess,
    HeldItem,
    Owner,
    Pending,
    Refusal,
    RefusalCode,
    SubscriptionView,
    Wanted,
    WantedItem,
    When,
)
from schemas.trials import TrialTerms

START_MS, END_MS = 1_800_000_000_000, 1_802_592_000_000
NOBODY: Final = SubscriptionView("cus_1", has_card=False)
CARD: Final = SubscriptionView("cus_1", has_card=True)


def held(component: str, price: str, quantity: int | None = 1, interval: str = "month") -> HeldItem:
    return HeldItem(f"si_{component}", component, price, quantity, interval, START_MS, END_MS)


def has(plan: str, rank: int, *items: HeldItem, **more: Any) -> SubscriptionView:
    """An active subscription by the month with a card."""
    found = SubscriptionView(
        "cus_1", has_card=True, id="sub_1", status="active", currency="usd", plan=PlanId(plan, 1), rank=rank,
        interval=Interval.MONTH, family="paid", items=items or (held("base", f"{plan}_m"),),
    )  # fmt: skip
    return found._replace(**more)


def wants(plan: str, rank: int, *items: WantedItem, **more: Any) -> Wanted:
    found = Wanted(
        ChangeKind.PLAN, PlanId(plan, 1), rank, Interval.MONTH, "usd", "paid",
        items or (WantedItem("base", f"{plan}_m", 1),),
    )  # fmt: skip
    return found._replace(**more)


BASIC, PRO, TOP = has("basic", 10), has("pro", 20), has("top", 30)
TO_BASIC, TO_PRO, TO_TOP = wants("basic", 10), wants("pro", 20), wants("top", 30)
CANCEL, NOW, UNDO = (
    Wanted(kind, currency="usd") for kind in (ChangeKind.CANCEL, ChangeKind.CANCEL_NOW, ChangeKind.UNDO)
)
TO_BASIC_PENDING = Pending("sub_sched_1", Owner.OPERATION)
ENDS = TO_BASIC_PENDING._replace(ends=True)
OVER = TO_BASIC_PENDING._replace(is_over=True)
YEARLY = has("pro", 20, held("base", "pro_y", interval="year"), interval=Interval.YEAR)
TO_YEARLY = wants("pro", 20, WantedItem("base", "pro_y", 1), interval=Interval.YEAR)
TOKENS = has("basic", 10, held("base", "basic_m"), held("tokens", "basic_tokens", None))
TO_TOKENS = wants("pro", 20, WantedItem("base", "pro_m", 1), WantedItem("tokens", "pro_tokens", None))

PAID: Final = "pending_if_incomplete"
SURE: Final = "error_if_incomplete"
ALWAYS: Final = "always_invoice"
TO_PRO_ITEMS: Final = [{"id": "si_base", "price": "pro_m", "quantity": 1}]
NEW: Final = {"customer": "cus_1", "items": [{"price": "pro_m", "quantity": 1}], "billing_mode": {"type": "flexible"}}
UPGRADE: Final = ("update", {"items": TO_PRO_ITEMS, "proration_behavior": ALWAYS, "payment_behavior": PAID})


def phases(*items: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return "phases", {"items": list(items), "end_behavior": "release"}


LATER: Final = TO_BASIC_PENDING._replace(later=(WantedItem("base", "basic_m", 7),))
PRORATE: Final = Changes(seats_down="prorate")


def _changed(quantity: int) -> list[dict[str, Any]]:
    return [{"id": "si_base", "price": "pro_m", "quantity": quantity}]


def seats(quantity: int, prorations: str) -> tuple[str, dict[str, Any]]:
    """The update of a quantity, which can fail for want of its payment only if that is at once."""
    paid = {"payment_behavior": PAID} if prorations == ALWAYS else {}
    return "update", {"items": _changed(quantity), "proration_behavior": prorations, **paid}


def both_phases(quantity: int, prorations: str) -> tuple[str, dict[str, Any]]:
    """The change of a quantity in the present phase of a schedule, beside its later phase."""
    now, items = [{"price": "pro_m", "quantity": quantity}], [{"price": "basic_m", "quantity": 7}]
    more = {"now": now, "items": items, "changes": _changed(quantity), "end_behavior": "release"}
    return "phases", {"proration_behavior": prorations, **more}


BASIC_PHASE: Final = phases({"price": "basic_m", "quantity": 1})
RELEASE: Final[tuple[str, dict[str, Any]]] = ("release", {})
SCHEDULE: Final[tuple[str, dict[str, Any]]] = ("schedule", {})


class Row(NamedTuple):
    """A case of a row: the calls and when the change holds."""

    now: SubscriptionView
    wanted: Wanted
    when: When
    calls: list[tuple[str, dict[str, Any]]]
    policy: Changes = Changes()


def checkout(more: dict[str, Any] | None = None, **data: Any) -> tuple[str, dict[str, Any]]:
    return "checkout", {
        "mode": "subscription", "line_items": [{"price": "pro_m", "quantity": 1}], "customer": "cus_1",
        "tax_id_collection": {"enabled": True}, "customer_update": {"address": "auto", "name": "auto"},
        "subscription_data": {"billing_mode": {"type": "flexible"}, **data}, **(more or {}),
    }  # fmt: skip


TERMS = TrialTerms("pro@1", "paid", 14)
TRIAL = TO_PRO._replace(kind=ChangeKind.TRIAL, trial=TERMS)
TRIED: Final = {
    "trial_period_days": 14, "trial_settings": {"end_behavior": {"missing_payment_method": "cancel"}},
}  # fmt: skip
PAUSED: Final = {
    "trial_period_days": 14, "trial_settings": {"end_behavior": {"missing_payment_method": "pause"}},
}  # fmt: skip
CREATE: Final = ("create", {**NEW, "payment_behavior": SURE})
PROMOTION: Final = ("promotion", {"percent": "30", "expires_at": END_MS // 1_000})
EARLY: Final = {
    "trial_end": "now", "payment_behavior": SURE, "discounts": [{"discount": "di_1"}, {"promotion_code": ""}],
}  # fmt: skip
RESUME: Final = (
    "resume", {"billing_cycle_anchor": {"type": "now"}, "payment_behavior": "resume_on_payment_success"},
)  # fmt: skip
EXPIRE: Final[tuple[str, dict[str, Any]]] = ("expire_checkout", {})
ROWS: Final = {
    "1 no card": Row(NOBODY, TO_PRO, When.NOW, [EXPIRE, checkout()]),
    "1 canceled": Row(BASIC._replace(status="canceled", has_card=False), TO_PRO, When.NOW, [EXPIRE, checkout()]),
    "1 a card, and the page is wanted": Row(CARD, TO_PRO._replace(by_page=True), When.NOW, [EXPIRE, checkout()]),
    "2": Row(CARD, TO_PRO, When.NOW, [EXPIRE, CREATE]),
    "3 card": Row(CARD, TRIAL, When.NOW, [EXPIRE, ("create", {**CREATE[1], **TRIED})]),
    "3 card, and the trial ends": Row(
        CARD, TRIAL._replace(trial=TERMS._replace(card="cancel")), When.NOW,
        [EXPIRE, ("create", {**CREATE[1], **TRIED, "cancel_at_period_end": True})],
    ),
    "3 no card": Row(
        NOBODY, TRIAL, When.NOW, [EXPIRE, checkout({"payment_method_collection": "if_required"}, **TRIED)]
    ),
    "3 card required, and a pause without": Row(
        NOBODY, TRIAL._replace(trial=TERMS._replace(is_card_required=True, no_card="pause")), When.NOW,
        [EXPIRE, checkout({"payment_method_collection": "always"}, **PAUSED)],
    ),
    "4": Row(
        PRO._replace(status="trialing"), TO_PRO, When.NOW, [("update", {"trial_end": "now", "payment_behavior": SURE})]
    ),
    "4 early": Row(
        PRO._replace(status="trialing", early_percent="30", discounts=("di_1",)), TO_PRO, When.NOW,
        [PROMOTION, ("update", EARLY)],
    ),
    "5 early, other family": Row(
        BASIC._replace(status="trialing", family="other", early_percent="30", discounts=("di_1",)), TO_PRO, When.NOW,
        [PROMOTION, ("update", {"items": TO_PRO_ITEMS, "proration_behavior": "none", **EARLY})],
    ),
    "5 early, same family": Row(
        BASIC._replace(status="trialing", early_percent="30"), TO_PRO, When.NOW,
        [("update", {"items": TO_PRO_ITEMS, "proration_behavior": "none"})],
    ),
    "5 same family": Row(
        BASIC._replace(status="trialing"), TO_PRO, When.NOW,
        [("update", {"items": TO_PRO_ITEMS, "proration_behavior": "none"})],
    ),
    "5 other family": Row(
        BASIC._replace(status="trialing", family="other"), TO_PRO, When.NOW,
        [("update", {
            "items": TO_PRO_ITEMS, "proration_behavior": "none", "trial_end": "now", "payment_behavior": SURE,
        })],
    ),
    "6": Row(BASIC, TO_PRO, When.NOW, [UPGRADE]),
    "6 full price": Row(
        BASIC, TO_PRO, When.NOW,
        [("update", {
            "items": TO_PRO_ITEMS, "proration_behavior": "none", "payment_behavior": PAID,
            "billing_cycle_anchor": {"type": "now"},
        })],
        Changes(upgrade="full_price"),
    ),
    "7": Row(
        TOKENS, TO_TOKENS, When.NOW,
        [UPGRADE, SCHEDULE, phases({"price": "pro_m", "quantity": 1}, {"price": "pro_tokens"})],
    ),
    "6 new meter": Row(
        BASIC, TO_TOKENS, When.NOW,
        [("update", {**UPGRADE[1], "items": [*TO_PRO_ITEMS, {"price": "pro_tokens"}]})],
    ),
    "6 same meter": Row(
        TOKENS, wants("pro", 20, WantedItem("base", "pro_m", 1), WantedItem("tokens", "basic_tokens", None)), When.NOW,
        [UPGRADE],
    ),
    "7 meter goes": Row(
        TOKENS, TO_PRO, When.NOW, [UPGRADE, SCHEDULE, phases({"price": "pro_m", "quantity": 1})]
    ),
    "8": Row(PRO, TO_BASIC, When.PERIOD_END, [SCHEDULE, BASIC_PHASE]),
    "8 same rank": Row(PRO, wants("basic", 20), When.PERIOD_END, [SCHEDULE, BASIC_PHASE]),
    "8 once more": Row(PRO._replace(pending=OVER), TO_BASIC, When.PERIOD_END, [RELEASE, SCHEDULE, BASIC_PHASE]),
    "8 past due": Row(PRO._replace(status="past_due"), TO_BASIC, When.PERIOD_END, [SCHEDULE, BASIC_PHASE]),
    "9": Row(PRO._replace(pending=TO_BASIC_PENDING), UNDO, When.NOW, [RELEASE]),
    "9 by its plan": Row(PRO._replace(pending=TO_BASIC_PENDING), TO_PRO, When.NOW, [RELEASE]),
    "10": Row(TOP._replace(pending=TO_BASIC_PENDING), TO_BASIC, When.PERIOD_END, [BASIC_PHASE]),
    "11": Row(BASIC._replace(pending=TO_BASIC_PENDING), TO_PRO, When.NOW, [RELEASE, UPGRADE]),
    "12": Row(
        PRO, TO_YEARLY, When.NOW,
        [("update", {
            "items": [{"id": "si_base", "price": "pro_y", "quantity": 1}], "billing_cycle_anchor": {"type": "now"},
            "proration_behavior": ALWAYS, "payment_behavior": PAID,
        })],
    ),
    "12 at the end": Row(
        PRO, TO_YEARLY, When.PERIOD_END, [SCHEDULE, phases({"price": "pro_y", "quantity": 1})],
        Changes(interval_longer="period_end"),
    ),
    "13": Row(YEARLY, TO_PRO, When.PERIOD_END, [SCHEDULE, phases({"price": "pro_m", "quantity": 1})]),
    "13 higher": Row(YEARLY, TO_TOP, When.PERIOD_END, [SCHEDULE, phases({"price": "top_m", "quantity": 1})]),
    "14": Row(PRO, CANCEL, When.PERIOD_END, [("update", {"cancel_at_period_end": True})]),
    "14 two intervals": Row(
        has("pro", 20, held("base", "pro_y", interval="year"), held("tokens", "t", None)), CANCEL, When.PERIOD_END,
        [("update", {"cancel_at": "max_period_end"})],
    ),
    "14 with a schedule": Row(
        PRO._replace(pending=TO_BASIC_PENDING), CANCEL, When.PERIOD_END,
        [("phases", {"items": None, "end_behavior": "cancel"})],
    ),
    "14 after a downgrade": Row(
        PRO._replace(pending=OVER), CANCEL, When.PERIOD_END, [RELEASE, ("update", {"cancel_at_period_end": True})]
    ),
    "14 unpaid": Row(
        PRO._replace(status="unpaid"), CANCEL, When.PERIOD_END, [("update", {"cancel_at_period_end": True})]
    ),
    "15": Row(
        PRO._replace(cancel_at_ms=END_MS, ends_with_period=True), UNDO, When.NOW,
        [("update", {"cancel_at_period_end": False})],
    ),
    "15 at an instant": Row(PRO._replace(cancel_at_ms=END_MS), UNDO, When.NOW, [("update", {"cancel_at": ""})]),
    "15 with a schedule": Row(PRO._replace(pending=ENDS), UNDO, When.NOW, [RELEASE]),
    "16": Row(PRO, NOW._replace(by_operator=True), When.NOW, [("cancel", {"invoice_now": True, "prorate": True})]),
    "16 with usage and a schedule": Row(
        TOKENS._replace(pending=TO_BASIC_PENDING), NOW._replace(by_operator=True), When.NOW,
        [("flush", {}), RELEASE, ("cancel", {"invoice_now": True, "prorate": True})],
    ),
    "18": Row(
        BASIC._replace(status="paused"), TO_PRO, When.NOW,
        [("update", {"items": TO_PRO_ITEMS, "proration_behavior": "none"}), RESUME],
    ),
    "18 same": Row(PRO._replace(status="paused"), TO_PRO, When.NOW, [RESUME]),
    "18 lower": Row(
        TOP._replace(status="paused"), TO_PRO, When.NOW,
        [("update", {"items": TO_PRO_ITEMS, "proration_behavior": "none"}), RESUME],
    ),
    "18 owing": Row(PRO._replace(status="paused", pay_url="https://pay"), TO_PRO, When.NOW, [("pay", {}), RESUME]),
    "18 end": Row(PRO._replace(status="paused"), CANCEL, When.NOW, [("cancel", {})]),
    "19 same": Row(
        PRO._replace(status="incomplete", pay_url="https://pay"), TO_PRO, When.NOW, [("invoice", {"url": "https://pay"})]
    ),
    "19 other": Row(
        BASIC._replace(status="incomplete"), TO_PRO, When.NOW,
        [("cancel", {}), EXPIRE, CREATE],
    ),
    "21": Row(
        BASIC._replace(collection="send_invoice"), TO_PRO, When.NOW,
        [("update", {**UPGRADE[1], "payment_behavior": "allow_incomplete"})],
    ),
    "22 operator": Row(BASIC._replace(is_contract=True), TO_PRO._replace(by_operator=True), When.NOW, [UPGRADE]),
    "24 more": Row(
        PRO, wants("pro", 20, WantedItem("base", "pro_m", 3)), When.NOW,
        [("update", {**UPGRADE[1], "items": [{"id": "si_base", "price": "pro_m", "quantity": 3}]})],
    ),
    "24 fewer": Row(
        has("pro", 20, held("base", "pro_m", 3)), TO_PRO, When.NOW,
        [("update", {"items": TO_PRO_ITEMS, "proration_behavior": "none"})],
    ),
    "24 fewer with a credit": Row(
        has("pro", 20, held("base", "pro_m", 3)), TO_PRO, When.NOW,
        [("update", {"items": TO_PRO_ITEMS, "proration_behavior": "create_prorations"})], PRORATE,
    ),
    "24 more with a credit": Row(
        has("pro", 20, held("base", "pro_m", 3)._replace(paid=5)), wants("pro", 20, WantedItem("base", "pro_m", 6)),
        When.NOW, [seats(6, ALWAYS)], PRORATE,
    ),
    "24 up to what is paid": Row(
        has("pro", 20, held("base", "pro_m", 3)._replace(paid=5)), wants("pro", 20, WantedItem("base", "pro_m", 5)),
        When.NOW, [seats(5, "none")],
    ),
    "24 beyond what is paid": Row(
        has("pro", 20, held("base", "pro_m", 3)._replace(paid=5)), wants("pro", 20, WantedItem("base", "pro_m", 6)),
        When.NOW, [seats(5, "none"), seats(6, ALWAYS)],
    ),
    "24 until the end": Row(
        PRO._replace(cancel_at_ms=END_MS), wants("pro", 20, WantedItem("base", "pro_m", 3)), When.NOW,
        [seats(3, ALWAYS)],
    ),
    "24 fewer with a schedule": Row(
        has("pro", 20, held("base", "pro_m", 3), pending=LATER), TO_PRO._replace(later=LATER.later), When.NOW,
        [both_phases(1, "none")],
    ),
    "24 more with a schedule": Row(
        has("pro", 20, held("base", "pro_m", 3)._replace(paid=5), pending=LATER),
        wants("pro", 20, WantedItem("base", "pro_m", 6), later=LATER.later), When.NOW,
        [both_phases(5, "none"), both_phases(6, ALWAYS)],
    ),
    "25": Row(
        PRO, wants("pro", 20, WantedItem("base", "pro2_m", 1))._replace(plan=PlanId("pro", 2)), When.PERIOD_END,
        [SCHEDULE, phases({"price": "pro2_m", "quantity": 1})],
    ),
    "26": Row(PRO, Wanted(ChangeKind.SEEN), When.NOW, []),
}  # fmt: skip


def number(name: str) -> int:
    """The row of a case."""
    return int(name.partition(" ")[0])


@pytest.mark.parametrize(("name", "row"), ROWS.items(), ids=ROWS)
def test_a_row_of_the_table(name: str, row: Row) -> None:
    found = decide(row.now, row.wanted, row.policy)

    assert isinstance(found, Calls), found
    assert [(call.kind.value, dict(call.params)) for call in found.calls] == row.calls
    assert (found.row, found.when) == (6 if name == "22 operator" else number(name), row.when)


OTHERS = Pending("sub_sched_2", Owner.OTHER)
MOVES = Pending("sub_sched_3", Owner.MOVE)
BLOCKED = Excess("locations", "3", "1", OverLimit.BLOCK_DOWNGRADE)
REFUSALS: Final[dict[str, tuple[SubscriptionView, Wanted, RefusalCode, str]]] = {
    "1 nothing to cancel": (NOBODY, CANCEL, RefusalCode.NO_SUBSCRIPTION, "account"),
    "1 nothing to undo": (CARD, UNDO, RefusalCode.NO_SUBSCRIPTION, "account"),
    "4 the trial runs": (
        PRO._replace(status="trialing"), TO_PRO._replace(kind=ChangeKind.TRIAL), RefusalCode.NOTHING_CHANGES, "plan",
    ),
    "5 over the limit": (
        PRO._replace(status="trialing"), TO_BASIC._replace(excess=(BLOCKED,)), RefusalCode.OVER_LIMIT, "locations",
    ),
    "8 over the limit": (PRO, TO_BASIC._replace(excess=(BLOCKED,)), RefusalCode.OVER_LIMIT, "locations"),
    "14 over the limit": (
        PRO, CANCEL._replace(plan=PlanId("free", 1), excess=(BLOCKED,)), RefusalCode.OVER_LIMIT, "locations",
    ),
    "9 nothing": (PRO, UNDO, RefusalCode.NOTHING_PENDING, "account"),
    "9 after it": (PRO._replace(pending=OVER), UNDO, RefusalCode.NOTHING_PENDING, "account"),
    "9 a new version": (PRO._replace(pending=MOVES), UNDO, RefusalCode.OTHERS_SCHEDULE, "account"),
    "14 again": (PRO._replace(cancel_at_ms=END_MS), CANCEL, RefusalCode.NOTHING_CHANGES, "cancel"),
    "14 again with a schedule": (PRO._replace(pending=ENDS), CANCEL, RefusalCode.NOTHING_CHANGES, "cancel"),
    "15 change while ending": (PRO._replace(cancel_at_ms=END_MS), TO_TOP, RefusalCode.CANCEL_PENDING, "account"),
    "16 not an operator": (PRO, NOW, RefusalCode.OPERATOR_ONLY, "cancel"),
    "17": (BASIC._replace(status="past_due", pay_url="https://pay"), TO_PRO, RefusalCode.PAY_FIRST, "account"),
    "17 unpaid": (BASIC._replace(status="unpaid"), TO_PRO, RefusalCode.PAY_FIRST, "account"),
    "17 longer": (PRO._replace(status="past_due"), TO_YEARLY, RefusalCode.PAY_FIRST, "account"),
    "17 seats": (
        PRO._replace(status="past_due"), wants("pro", 20, WantedItem("base", "pro_m", 2)), RefusalCode.PAY_FIRST,
        "account",
    ),
    "3 a plan": (PRO, TRIAL, RefusalCode.TRIAL_USED, "trial"),
    "5 another trial": (
        BASIC._replace(status="trialing", family="other"), TRIAL, RefusalCode.TRIAL_USED, "trial",
    ),
    "18 unpaid": (
        BASIC._replace(status="paused", pay_url="https://pay", has_card=False), TO_PRO, RefusalCode.PAY_FIRST,
        "account",
    ),
    "18 nothing to undo": (BASIC._replace(status="paused"), UNDO, RefusalCode.NOTHING_PENDING, "account"),
    "18 over the limit": (
        PRO._replace(status="paused"), TO_BASIC._replace(excess=(BLOCKED,)), RefusalCode.OVER_LIMIT, "locations",
    ),
    "23 operator": (
        BASIC, TO_PRO._replace(currency="eur", by_operator=True), RefusalCode.NOT_OFFERED, "currency",
    ),
    "19 undo": (BASIC._replace(status="incomplete"), UNDO, RefusalCode.NOTHING_PENDING, "account"),
    "20": (
        BASIC._replace(is_update_pending=True, pay_url="https://pay"), TO_PRO, RefusalCode.UPDATE_PENDING, "account",
    ),
    "22": (BASIC._replace(is_contract=True), TO_PRO, RefusalCode.CONTRACT, "account"),
    "23": (BASIC, TO_PRO._replace(currency="eur"), RefusalCode.OTHER_CURRENCY, "currency"),
    "24 a schedule of another form": (
        PRO._replace(pending=TO_BASIC_PENDING), wants("pro", 20, WantedItem("base", "pro_m", 3)),
        RefusalCode.NOT_OFFERED, "quantities",
    ),
    "24 nothing": (PRO, TO_PRO, RefusalCode.NOTHING_CHANGES, "plan"),
    "26 somebody else's schedule": (PRO._replace(pending=OTHERS), TO_TOP, RefusalCode.OTHERS_SCHEDULE, "account"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "case"), REFUSALS.items(), ids=REFUSALS)
def test_what_is_refused_names_the_field_and_the_remedy(
    name: str, case: tuple[SubscriptionView, Wanted, RefusalCode, str]
) -> None:
    now, wanted, code, field = case
    found = decide(now, wanted, Changes())

    assert isinstance(found, Refusal), found
    assert (found.row, found.code, found.field) == (number(name), code, field)
    assert ("https://pay" in found.message) == bool(now.pay_url)


def test_every_row_has_a_case() -> None:
    assert {number(name) for name in (*ROWS, *REFUSALS)} == set(range(1, 27))


@pytest.mark.parametrize("policy", [each for each in OverLimit if each is not OverLimit.BLOCK_DOWNGRADE])
def test_other_policies_let_a_downgrade_through_and_say_what_is_too_much(policy: OverLimit) -> None:
    excess = (BLOCKED._replace(policy=policy),)
    found = decide(PRO, TO_BASIC._replace(excess=excess), Changes())

    assert isinstance(found, Calls)
    assert (found.when, found.excess) == (When.PERIOD_END, excess)


def test_a_blocked_downgrade_names_what_must_go() -> None:
    both = (BLOCKED, BLOCKED._replace(feature="members", used="9", allowed="5"))
    found = decide(PRO, TO_BASIC._replace(excess=both), Changes())

    assert isinstance(found, Refusal)
    assert found.message == (
        "locations: 3 are in use, basic@1 allows 1; members: 9 are in use, basic@1 allows 5: "
        "give back what is too much, and ask again"
    )


def test_an_item_keeps_its_id_where_its_component_stays() -> None:
    now = [held("base", "a"), held("seat", "b", 3), held("addon boost", "c")]
    wanted = [WantedItem("base", "a", 1), WantedItem("seat", "d", 4), WantedItem("tokens", "e", None)]

    assert item_changes(now, wanted) == [
        {"id": "si_seat", "price": "d", "quantity": 4}, {"price": "e"}, {"id": "si_addon boost", "deleted": True},
    ]  # fmt: skip
