"""Retries and the states of invoices and subscriptions."""

from __future__ import annotations

import pytest

from stripe_simulator.engine.collection import (
    DAY_S,
    INVOICE_MOVES,
    SMART_RETRIES,
    Collection,
    RetryPolicy,
    SubscriptionStatus,
    after_failure,
    after_payment,
)


def test_smart_retries_are_eight_in_two_weeks() -> None:
    """ "The recommended default is 8 tries within 2 weeks"."""
    moments = [after_failure(SMART_RETRIES, "past_due", 0, count).next_payment_attempt for count in range(1, 10)]

    assert None not in moments[:8]
    assert moments[8] is None
    assert moments[7] == 14 * DAY_S
    assert sorted(set(moments[:8]), key=str) == sorted(moments[:8], key=str)


@pytest.mark.parametrize(
    ("status", "attempt", "expected"),
    [
        ("active", 1, Collection("open", "past_due", 3 * DAY_S)),
        ("past_due", 2, Collection("open", "past_due", 8 * DAY_S)),
        ("past_due", 3, Collection("uncollectible", "unpaid", None)),
        ("unpaid", 1, Collection("open", "unpaid", 3 * DAY_S)),
        ("trialing", 1, Collection("open", "trialing", 3 * DAY_S)),
        ("incomplete", 1, Collection("open", "incomplete", None)),
        ("canceled", 3, Collection("open", "canceled", None)),
    ],
)
def test_after_a_failure(status: SubscriptionStatus, attempt: int, expected: Collection) -> None:
    """Past due while retries are left; then what the account's settings say."""
    policy = RetryPolicy((3, 8), subscription_end="unpaid", invoice_end="uncollectible")

    assert expected == after_failure(policy, status, 0, attempt)


@pytest.mark.parametrize("end", ["canceled", "unpaid", "past_due", "paused"])
def test_every_end_action(end: SubscriptionStatus) -> None:
    """The account chooses what becomes of the subscription."""
    policy = RetryPolicy((1,), subscription_end=end)  # type: ignore[arg-type]  # one of the four

    assert after_failure(policy, "past_due", 0, 2) == Collection("open", end, None)


@pytest.mark.parametrize(
    ("status", "latest", "expected"),
    [
        ("incomplete", True, "active"),
        ("past_due", True, "active"),
        ("unpaid", True, "active"),
        ("past_due", False, "past_due"),
        ("trialing", True, "trialing"),
        ("canceled", True, "canceled"),
        ("incomplete_expired", True, "incomplete_expired"),
        ("paused", True, "paused"),
        ("active", False, "active"),
    ],
)
def test_after_a_payment(status: SubscriptionStatus, latest: bool, expected: SubscriptionStatus) -> None:
    """A terminal status stays: a paid invoice does not bring a cancelled subscription back."""
    assert after_payment(status, latest_invoice=latest) == expected


def test_terminal_invoices_do_not_move() -> None:
    """Paid and void are final; an uncollectible invoice can still be paid; only a draft is opened."""
    assert {status for status, moves in INVOICE_MOVES.items() if not moves} == {"paid", "void"}
    assert {status for status, moves in INVOICE_MOVES.items() if "open" in moves} == {"draft"}
    assert "paid" in INVOICE_MOVES["uncollectible"]
