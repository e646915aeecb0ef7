"""Notices of what Stripe says: a trial that ends, a payment that failed, a subscription that ended."""

from __future__ import annotations

import json
import re

import pytest

from aggregators.notices import STRIPE_KINDS, stripe_notice, words
from pipeline.notices.sending import PAUSES_MS
from schemas.clock import DAY_MS
from schemas.notices import DeliveryState, NoticeKind, StripeFact
from tests.worlds.mirrored import NOW_MS, customer, invoice, subscription
from tests.worlds.notices import SMALL_WITHOUT_WARNINGS, NoticeWorld

DUNNING_DATA = [
    "account", "amount", "currency", "decline_code", "downgrade_at", "needs_another_card", "pay_url", "subscription",
]  # fmt: skip


@pytest.mark.parametrize(
    ("days_left", "trial_days", "reminded"),
    [(7.1, 30, None), (7, 30, 7), (1.1, 30, 7), (1, 30, 1), (0.1, 30, 1), (3, 3, None), (1, 3, 1), (0.5, 0.5, None)],
)
def test_which_reminder_of_a_trial_is_due(days_left: float, trial_days: float, reminded: int | None) -> None:
    """None of a time at which the trial had not begun."""
    end_ms = NOW_MS + round(days_left * DAY_MS)
    fact = StripeFact(NoticeKind.TRIAL_ENDS, "acme", "sub_1", end_ms, end_ms - round(trial_days * DAY_MS))
    made = stripe_notice("log", fact, NOW_MS)
    assert (json.loads(made.body)["data"]["days"] if made else None) == reminded


def test_each_kind_has_words_and_data() -> None:
    said = {}
    for kind in STRIPE_KINDS:
        fact = StripeFact(kind, "acme", "x_1", NOW_MS + DAY_MS, 0, 14_900, "usd", 2, "https://pay")
        made = stripe_notice("log", fact, NOW_MS)
        assert made is not None
        said[kind] = words(made)[0], sorted(json.loads(made.body)["data"])
    assert said == {
        NoticeKind.TRIAL_ENDS: (
            "The trial of acme ends at 2026-11-22T10:30:00Z", ["account", "days", "subscription", "trial_end"],
        ),
        NoticeKind.PAYMENT_FAILED: (
            "A payment of acme failed: 149.00 usd are open",
            ["account", "amount", "currency", "decline_code", "invoice", "needs_another_card", "pay_url"],
        ),
        NoticeKind.SUBSCRIPTION_ENDED: (
            "A subscription of acme ended at 2026-11-22T10:30:00Z", ["account", "ended_at", "subscription"],
        ),
        NoticeKind.CARD_EXPIRES: (
            "The card of acme expires at 2026-11-22T10:30:00Z: the next payment needs another one",
            ["account", "days", "expires_at", "subscription"],
        ),
        NoticeKind.PAYMENT_URGENT: ("The payment of acme failed again: 149.00 usd are open", DUNNING_DATA),
        NoticeKind.DOWNGRADE_WARNING: (
            "acme loses its plan at 2026-11-22T10:30:00Z: 149.00 usd are open", DUNNING_DATA,
        ),
        NoticeKind.DOWNGRADED: ("acme has lost its plan: 149.00 usd are open", DUNNING_DATA),
        NoticeKind.WIN_BACK: ("acme can have its plan back: 149.00 usd are open", DUNNING_DATA),
    }  # fmt: skip


async def test_a_failed_payment_is_noticed_once_and_not_after_it_was_paid() -> None:
    world = NoticeWorld()
    await world.begin()
    world.clock.ms = NOW_MS
    await world.sql.link("acme", "cus_1", 0, "ann", "", NOW_MS)
    await invoice(world.sql, status="open", attempt_count=1)
    sweep, sending = world.notifier()
    world.receiver.answers = ["refused"]
    for _ in range(2):
        await sweep.turn()
        await sending.turn()
    assert [row.state for row in await world.rows()] == [DeliveryState.WAITING]
    await invoice(world.sql, status="paid", attempt_count=2)
    world.clock.advance(PAUSES_MS[0])
    await sending.turn()
    (row,) = await world.rows()
    assert (row.state, row.detail, world.receiver.taken) == (DeliveryState.OBSOLETE, "Stripe says otherwise by now", [])

    await invoice(world.sql, status="open", attempt_count=3)
    for _ in range(2):
        await sweep.turn()
        await sending.turn()
    assert [notice.kind for notice in world.receiver.taken] == [NoticeKind.PAYMENT_FAILED]


async def test_dunning_is_noticed_step_by_step_and_only_while_it_is_true() -> None:
    """Each state of a case once, with the page that pays; a warning that was paid before it was sent is not sent."""
    world = NoticeWorld(SMALL_WITHOUT_WARNINGS)
    await world.begin()
    world.clock.ms = NOW_MS
    await world.sql.link("acme", "cus_1", 0, "ann", "", NOW_MS)
    await subscription(world.sql, status="past_due", collection_method="charge_automatically")
    owed = {"subscription_id": "subscription_1", "finalized_ms": NOW_MS, "hosted_url": "https://pay"}
    await invoice(world.sql, status="open", attempt_count=2, next_attempt_ms=1, **owed)
    sweep, sending = world.notifier()

    async def turn(days: int) -> None:
        world.clock.ms = NOW_MS + days * DAY_MS
        while await world.renewal.turn():
            pass
        for _ in range(2):
            await sweep.turn()
            await sending.turn()

    for days in (0, 1, 3, 21, 24, 25, 31):
        await turn(days)
    assert [notice.kind for notice in world.receiver.taken] == [
        NoticeKind.PAYMENT_FAILED, NoticeKind.PAYMENT_URGENT, NoticeKind.DOWNGRADE_WARNING, NoticeKind.DOWNGRADED,
        NoticeKind.WIN_BACK,
    ]  # fmt: skip
    texts = [words(notice)[1] for notice in world.receiver.taken]
    assert all(text.endswith("\n\nhttps://pay\n") and "149.00 usd" in text for text in texts)
    assert "at 2026-12-15T10:30:00Z" in texts[2]

    number_two = {**owed, "number": 2, "finalized_ms": NOW_MS + 31 * DAY_MS, "created_ms": NOW_MS}
    await invoice(world.sql, status="paid", **owed)
    await turn(31)
    await invoice(world.sql, status="open", attempt_count=2, next_attempt_ms=1, **number_two)
    world.receiver.answers = ["refused"] * 2
    await turn(35)
    await invoice(world.sql, status="paid", **number_two)
    await turn(36)
    late = [row for row in await world.rows() if row.notice.made_ms >= NOW_MS + 35 * DAY_MS]
    assert [(row.notice.kind, row.state) for row in late] == [(NoticeKind.PAYMENT_URGENT, DeliveryState.OBSOLETE)]


async def test_a_card_is_noticed_a_month_and_a_week_before_it_expires_unless_it_was_replaced() -> None:
    """On the days that the catalog says."""
    world = NoticeWorld(SMALL_WITHOUT_WARNINGS.replace("{fallback_plan", "{card_expiry_days: [20, 7], fallback_plan"))
    await world.begin()
    world.clock.ms = NOW_MS
    await world.sql.link("acme", "cus_1", 0, "ann", "", NOW_MS)
    await subscription(world.sql, status="active", start_ms=0)
    sweep, sending = world.notifier()
    ends_ms = NOW_MS + 40 * DAY_MS
    await customer(world.sql, "pm_old", pm_old=ends_ms)
    for days_left in (30, 20, 19, 7):
        world.clock.ms = ends_ms - days_left * DAY_MS
        world.receiver.answers = ["refused"] if days_left == 7 else []
        await sweep.turn()
        await sending.turn()
    await customer(world.sql, "pm_new", pm_old=ends_ms, pm_new=ends_ms + 900 * DAY_MS)
    world.clock.advance(PAUSES_MS[0])
    await sweep.turn()
    await sending.turn()

    assert [json.loads(notice.body)["data"]["days"] for notice in world.receiver.taken] == [20]
    assert [row.state for row in await world.rows()] == [DeliveryState.SENT, DeliveryState.OBSOLETE]


@pytest.mark.parametrize("kind", STRIPE_KINDS)
def test_a_mail_has_one_link(kind: NoticeKind) -> None:
    """To the account's page where there is one: there the card is changed and what is open is paid."""
    made = stripe_notice("log", StripeFact(kind, "acme", "x_1", NOW_MS + DAY_MS, 0, 1, "usd", 2, "https://pay"), NOW_MS)
    assert made is not None
    links = [re.findall(r"https://\S+", words(made, page)[1]) for page in ("", "https://page")]
    expected = {
        NoticeKind.TRIAL_ENDS: [[], []], NoticeKind.SUBSCRIPTION_ENDED: [[], []],
        NoticeKind.CARD_EXPIRES: [[], ["https://page"]],
    }  # fmt: skip
    assert links == expected.get(kind, [["https://pay"], ["https://page"]])


@pytest.mark.parametrize(("code", "is_hard"), [("insufficient_funds", False), ("stolen_card", True), ("", False)])
@pytest.mark.parametrize("kind", [NoticeKind.PAYMENT_FAILED, NoticeKind.PAYMENT_URGENT, NoticeKind.DOWNGRADED])
def test_after_a_decline_for_good_nobody_speaks_of_this_card_again(kind: NoticeKind, code: str, is_hard: bool) -> None:
    made = stripe_notice("log", StripeFact(kind, "acme", "x_1", NOW_MS, 0, 1, "usd", 2, "https://pay", code), NOW_MS)
    assert made is not None
    data = json.loads(made.body)["data"]
    said = "for good" in words(made)[1] or "cannot be used any more" in words(made)[1]
    assert (data["needs_another_card"], said) == (is_hard, is_hard and kind is not NoticeKind.DOWNGRADED)
