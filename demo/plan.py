"""The demo's plan: customers sign up; two and a half simulated hours around a month's end at 300
times real speed; invoices; an upgrade."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from schemas.clock import HOUR_MS, MINUTE_MS

CATALOG: Final = Path(__file__).parent / "catalog.yaml"
FACTOR: Final = 300
MONTH_END_MS: Final = 1_793_491_200_000  # 2026-11-01T00:00:00Z
START_MS: Final = MONTH_END_MS - 60 * MINUTE_MS
END_MS: Final = MONTH_END_MS + 90 * MINUTE_MS
# The customers sign up in the hours before. Then, and when the invoices come, time is slower: a webhook may take real
# seconds to arrive, and Stripe's signature expires after five minutes.
SIGN_UP_MS: Final = START_MS - 4 * HOUR_MS
BILLING_FACTOR: Final = 30
# From here on, customers pay for their accounts. A binding is in time if it comes before events of this instant may
# arrive, which the future limit allows five minutes before.
PAID_FROM_MS: Final = START_MS - 10 * MINUTE_MS
BOUND_BY_MS: Final = PAID_FROM_MS - 6 * MINUTE_MS
# Grace is an hour. Five more minutes avoid a race at the end of grace.
LATE_FROM_MS: Final = MONTH_END_MS + 65 * MINUTE_MS
# The value in the demo's meter set. With whole hours, arrival hours and report buckets close together.
REPORT_INTERVAL_MS: Final = 2 * HOUR_MS

# What the demo proves. Nobody is notified.
ROLES: Final = ("worker", "archive", "router", "sink", "gateway", "mirror")
# Few partitions and large inserts, because one machine runs everything.
ENVIRONMENT: Final = {
    "TIDEMARK_PARTITIONS": "2",
    "TIDEMARK_TICK_INTERVAL_S": "1",
    "TIDEMARK_RELAY_INTERVAL_S": "2",
    "TIDEMARK_ARCHIVE_LINGER_S": "3",
    # No canary: its two minutes of patience are less than a real second.
    "TIDEMARK_CANARY_CUSTOMER": "",
}
# Ten real seconds for the archive, which collects records for three seconds.
ARCHIVE_WAIT_S: Final = 10.0 * FACTOR

ACCOUNTS: Final = tuple(f"acct_{number:04d}" for number in range(220))
# The features that a customer uses, by account number modulo three.
FEATURES: Final = (("api", "completions", "page"), ("api", "login", "storage"), ("api", "completions", "seats"))
FREE_ACCOUNTS: Final = frozenset(ACCOUNTS[:3])
# Accounts whose billing period begins in the middle of an hour.
ANCHORED_ACCOUNTS: Final = frozenset(ACCOUNTS[10:30])
ANCHOR_MS: Final = MONTH_END_MS - 30 * MINUTE_MS


# What a subscription costs: a licensed price for a month in advance, and a metered price for each unit afterwards.
CURRENCY: Final = "usd"
BASE_CENTS: Final = 4_900
METER: Final = "api_requests"
UNIT_CENTS: Final = 3
# The longest time that Stripe leaves the invoice of a period a draft. Shorter is enough if it is longer than the meter
# set's grace and report interval together.
INVOICE_GRACE_MS: Final = 72 * HOUR_MS
INVOICES_FINAL_MS: Final = MONTH_END_MS + INVOICE_GRACE_MS + 30 * MINUTE_MS
# Each paying account gets one.
INVOICES: Final = len(ACCOUNTS) - len(FREE_ACCOUNTS)

# One more customer, who comes at the end and buys what the catalog sells.
NEW_ACCOUNT: Final = f"acct_{len(ACCOUNTS):04d}"
STARTER_PRICE: Final = "tm.starter.v1.base.month.usd"
BUSINESS_PRICE: Final = "tm.business.v1.base.month.usd"
# What the plan starter gives, and what only the plan business gives.
STARTER_FEATURE: Final = "exports"
ASKED_FEATURE: Final = "single_sign_on"


def anchor_ms(account: str) -> int:
    """When the first billing period of an account's subscription ends."""
    return ANCHOR_MS if account in ANCHORED_ACCOUNTS else MONTH_END_MS


def bindings() -> dict[str, list[dict[str, object]]]:
    """The bindings that must follow from the subscriptions, as the oracle reads them. Free accounts have none."""
    return {
        account: [
            {
                "effective_from_ms": PAID_FROM_MS,
                "anchor_ms": anchor_ms(account),
                "interval": "month",
                "interval_count": 1,
            }
        ]
        for account in ACCOUNTS
        if account not in FREE_ACCOUNTS
    }
