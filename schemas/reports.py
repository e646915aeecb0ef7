"""What is reported to Stripe and the outcome (I10), in the topic `billing.reports`; Stripe's meters; who pays.

The topic's records are JSON with a `kind`: an *intent* is made when a report bucket closes; an *attempt* is durable
before the first send; an *outcome* settles the intent. The topic from the lowest pending offset on shows what is still
to be done.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field

from schemas.clock import SECOND_MS
from schemas.periods import Billing


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Intent(_Frozen):
    """The change of one total over one report bucket. Deterministic: a rebuild makes the same one.

    `delta_minor` = total at the bucket's end minus total at its start, for every aggregation.
    `identifier` = hash of (livemode, Stripe account, log id, meter, account, period start, bucket, delta).
    """

    kind: Literal["intent"] = "intent"
    identifier: str
    livemode: bool
    stripe_account: str
    log_id: str
    meter: str
    event_name: str
    account: str
    period_start_ms: int
    period_end_ms: int
    bucket_start_ms: int
    bucket_end_ms: int
    delta_minor: int
    scale: int

    @property
    def instant_ms(self) -> int:
        """The usage's own instant: the last second of the bucket, moved into the period. The payer at this instant
        pays, whatever timestamp Stripe gets."""
        return max(min(self.bucket_end_ms, self.period_end_ms) - SECOND_MS, self.period_start_ms)


class Attempt(_Frozen):
    """Written before the first send, so that after a crash "never sent" and "perhaps sent" differ.

    The first attempt in the log is sent. An attempt made after a lookup that did not find the event has in
    `replaces_ms` the `attempted_at_ms` of the attempt that it replaces; it counts only if that attempt is in force.
    """

    kind: Literal["attempt"] = "attempt"
    identifier: str
    stripe_customer: str
    timestamp_s: int
    value: str
    attempted_at_ms: int
    replaces_ms: int | None = None


class OutcomeStatus(StrEnum):
    """How an intent ended."""

    ACCEPTED = "accepted"
    FREE = "free"
    REPLACED = "replaced"
    DEAD = "dead"


class ReportOutcome(_Frozen):
    """The intent is settled: Stripe has it; or it is never sent, because its account is free or a restatement reports
    the usage by other intents; or an operator must act (dead letter)."""

    kind: Literal["outcome"] = "outcome"
    identifier: str
    status: OutcomeStatus
    detail: str = ""
    stripe_customer: str = ""
    settled_at_ms: int = 0


ReportEntry = Annotated[Intent | Attempt | ReportOutcome, Field(discriminator="kind")]


class MeterEvent(NamedTuple):
    """One Stripe meter event, ready to send (docs.stripe.com/api/billing/meter-event/create).

    `value` is a decimal string, `timestamp_s` Unix seconds inside the usage's period.
    """

    identifier: str
    event_name: str
    stripe_customer: str
    value: str
    timestamp_s: int


class SendStatus(StrEnum):
    """Stripe's answer to one meter event, by what the sender does next."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    RETRY = "retry"
    DEAD = "dead"
    STOP = "stop"


class SendResult(NamedTuple):
    """`detail` is for people; `retry_after_s` is set for `RETRY` only."""

    status: SendStatus
    detail: str = ""
    retry_after_s: float = 0.0


class MeterSummary(NamedTuple):
    """Stripe's own sum for (meter, customer) over `[start_s, end_s)`, as a decimal string."""

    value: str
    rows: int


class StripeMeters(Protocol):
    """Stripe's meters API v1, or a fake of it. Never raises for an answer of Stripe. Raises `Transient` if a read got
    no answer, and `Refused` if the key is wrong."""

    async def identity(self) -> tuple[bool, str]:
        """(livemode, Stripe account id) of the configured key."""
        ...

    async def ensure_meter(self, event_name: str, display_name: str) -> str:
        """The id of the active meter of `event_name` (formula sum, raw), created if it is missing."""
        ...

    async def send(self, event: MeterEvent) -> SendResult:
        """Send one meter event under its identifier. May repeat harmlessly within Stripe's 24 h window.

        `RETRY` covers 409, 429, 5xx, timeouts and lost connections: it may or may not have been taken.
        """
        ...

    async def summary(self, event_name: str, stripe_customer: str, start_s: int, end_s: int) -> MeterSummary:
        """Stripe's aggregate; lags behind `send`. Both instants are whole minutes."""
        ...

    async def close(self) -> None:
        """Release connections. Safe to call twice."""
        ...


class Rejection(NamedTuple):
    """Meter events that Stripe answered with 200 and rejected afterwards, of one meter and error code.

    `identifiers` are samples, not all of the `errors`: Stripe's reports (v1.billing.meter.error_report_triggered) have
    only some. `[window_start_ms, window_end_ms)` is when they were validated. `event_name` is empty if the meter is not
    known any more.
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

        Costs one read per 100 reports. Raises `Transient` if no answer came, and `Refused` if the key is wrong.
        """
        ...


class Payer(NamedTuple):
    """Who pays for an intent, with the Stripe customer if the account is mapped. `period_end_ms` is the end of the
    usage's period as known now: a binding may have cut the period since the intent was made."""

    billing: Billing
    stripe_customer: str
    period_end_ms: int


class CustomerResolver(Protocol):
    """Who pays for an account."""

    async def __call__(self, intent: Intent, instant_ms: int) -> Payer | None:
        """The payer by the binding in force at `instant_ms`; None if a restatement reports the usage by another intent.

        Bindings are effective-dated: usage of last month belongs to the customer of last month. May raise `Transient`,
        also if what was known when the intent was made is not known yet.
        """
        ...
