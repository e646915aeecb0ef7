"""The demo's plan: three simulated hours around a month's end, at 300 times real speed."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from schemas.clock import HOUR_MS, MINUTE_MS
from schemas.periods import Billing, Binding

METER_SET: Final = Path(__file__).parent / "meters.yaml"
FACTOR: Final = 300
MONTH_END_MS: Final = 1_793_491_200_000  # 2026-11-01T00:00:00Z
START_MS: Final = MONTH_END_MS - 70 * MINUTE_MS
END_MS: Final = MONTH_END_MS + 110 * MINUTE_MS
# Grace is an hour. Five more minutes avoid a race at the end of grace.
LATE_FROM_MS: Final = MONTH_END_MS + 65 * MINUTE_MS
# The value in the demo's meter set. With whole hours, arrival hours and report buckets close together.
REPORT_INTERVAL_MS: Final = 2 * HOUR_MS

# Few partitions and large inserts, because one machine runs everything.
ENVIRONMENT: Final = {
    "TIDEMARK_PARTITIONS": "2",
    "TIDEMARK_TICK_INTERVAL_S": "1",
    "TIDEMARK_RELAY_INTERVAL_S": "2",
    "TIDEMARK_ARCHIVE_LINGER_S": "3",
}
# Ten real seconds for the archive, which collects records for three seconds.
ARCHIVE_WAIT_S: Final = 10.0 * FACTOR

ACCOUNTS: Final = tuple(f"acct_{number:04d}" for number in range(220))
# The features that a customer uses, by account number modulo three.
FEATURES: Final = (("api", "completions", "page"), ("api", "login", "storage"), ("api", "completions", "seats"))
FREE_ACCOUNTS: Final = frozenset(ACCOUNTS[:3])
# Accounts with a period that begins in the middle of an hour.
ANCHORED_ACCOUNTS: Final = frozenset(ACCOUNTS[10:30])
ANCHOR_MS: Final = MONTH_END_MS - 30 * MINUTE_MS


def bindings(account: str, stripe_customer: str) -> tuple[Binding, ...]:
    """The bindings of an account. They precede its first event."""
    if account in FREE_ACCOUNTS:
        return (Binding(effective_from_ms=0, billing=Billing.FREE),)
    calendar = Binding(effective_from_ms=0, billing=Billing.MAPPED, stripe_customer=stripe_customer)
    if account not in ANCHORED_ACCOUNTS:
        return (calendar,)
    return calendar, calendar.model_copy(update={"effective_from_ms": ANCHOR_MS, "anchor_ms": ANCHOR_MS})
