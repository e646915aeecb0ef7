"""How invoices are collected: retries, hard declines, and the next state of invoice and subscription.

Sources: docs.stripe.com, "billing/revenue-recovery/smart-retries" (policy, hard decline codes, end action),
"billing/subscriptions/overview" (statuses, 23 hours for the first payment), "invoicing/overview" (statuses of an
invoice), and the API's `attempt_count`.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

DAY_S: Final = 86_400
# An incomplete subscription expires after 23 hours, and a pending update is dropped.
INCOMPLETE_S: Final = 23 * 3600

# Stripe does not retry these without a new payment method. Every other code, `expired_card` among them, is retried.
HARD_DECLINE_CODES: Final = frozenset(
    ["authentication_required", "highest_risk_level", "incorrect_number", "lost_card", "pickup_card",
     "revocation_of_all_authorizations", "revocation_of_authorization", "stolen_card", "transaction_not_allowed"]
)  # fmt: skip

InvoiceStatus = Literal["draft", "open", "paid", "uncollectible", "void"]
SubscriptionStatus = Literal[
    "incomplete", "incomplete_expired", "trialing", "active", "past_due", "canceled", "unpaid", "paused"
]

INVOICE_MOVES: Final[dict[InvoiceStatus, frozenset[InvoiceStatus]]] = {
    "draft": frozenset({"open", "paid"}),
    "open": frozenset({"paid", "uncollectible", "void"}),
    "uncollectible": frozenset({"paid", "void"}),
    "paid": frozenset(),
    "void": frozenset(),
}


class RetryPolicy(NamedTuple):
    """The days from the first failed attempt to each retry, and what becomes of both after the last retry."""

    days: tuple[int, ...]
    subscription_end: Literal["canceled", "unpaid", "past_due", "paused"] = "canceled"
    invoice_end: Literal["open", "uncollectible"] = "open"


# Smart Retries' default is 8 tries within 2 weeks. Stripe chooses the times; the engine spreads them evenly.
SMART_RETRIES: Final = RetryPolicy(days=(1, 3, 5, 7, 9, 11, 13, 14))


class Collection(NamedTuple):
    """The state after a failed attempt. `next_payment_attempt` is None when nothing more is scheduled."""

    invoice: InvoiceStatus
    subscription: SubscriptionStatus
    next_payment_attempt: int | None


def after_payment(subscription: SubscriptionStatus, *, latest_invoice: bool = True) -> SubscriptionStatus:
    """The status after an open invoice was paid: the latest invoice repairs a subscription. A terminal status stays."""
    recovers = subscription == "incomplete" or (latest_invoice and subscription in {"past_due", "unpaid"})
    return "active" if recovers else subscription


def after_failure(
    policy: RetryPolicy, subscription: SubscriptionStatus, first_attempt_at: int, attempt_count: int
) -> Collection:
    """The state after attempt number `attempt_count` (from 1) failed.

    The first invoice of a subscription is not retried: the subscription stays `incomplete` until it expires. Retries
    stay scheduled after a hard decline. A manual payment does not change the schedule.
    """
    if subscription in {"incomplete", "incomplete_expired", "canceled", "paused"}:
        return Collection("open", subscription, None)
    if attempt_count > len(policy.days):
        return Collection(policy.invoice_end, policy.subscription_end, None)
    due = first_attempt_at + policy.days[attempt_count - 1] * DAY_S
    return Collection("open", subscription if subscription in {"trialing", "unpaid"} else "past_due", due)
