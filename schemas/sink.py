"""What sinks offer besides writing: reading back what the outside says it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from schemas.periods import Billing
from schemas.reports import Intent


class Rejection(NamedTuple):
    """Meter events that Stripe answered with 200 and rejected afterwards, of one meter and error code.

    `identifiers` are samples, not all of the `errors`: Stripe names only some
    (v1.billing.meter.error_report_triggered). `[window_start_ms, window_end_ms)` is when they were validated.
    `event_name` is empty where the meter is not known any more.
    """

    report: str
    event_name: str
    code: str
    errors: int
    identifiers: tuple[str, ...]
    window_start_ms: int
    window_end_ms: int


class StripeRejections(Protocol):
    """Stripe's asynchronous error reports, or a fake of them."""

    async def rejections(self, since_ms: int) -> Sequence[Rejection]:
        """What was reported since `since_ms`, oldest first; Stripe keeps 30 days.

        Costs one read per 100 reports. Raises `Transient` where no answer came, `Refused` where the key is wrong.
        """
        ...


class Payer(NamedTuple):
    """Who pays for an intent, with the Stripe customer where it is mapped, and where the period of its usage ends by
    what is known now: a binding may have cut it since the intent was made."""

    billing: Billing
    stripe_customer: str
    period_end_ms: int


class CustomerResolver(Protocol):
    """Who pays for an account."""

    async def __call__(self, intent: Intent, instant_ms: int) -> Payer | None:
        """What the binding of the intent's account in force at `instant_ms` says; None where the usage was counted
        again since, so that another intent tells it.

        Bindings are effective-dated: usage of last month belongs to the customer of last month. May raise
        `Transient`, also where it does not know yet what was known when the intent was made.
        """
        ...
