"""The records of the topic `billing.reports` (I10), the protocols of Stripe's meters, and who pays.

The records are JSON with a `kind`. A report bucket that closes makes an *intent*. An *attempt* is durable before the
first send. An *outcome* settles the intent. From the lowest pending offset on, the topic has all unsettled intents.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field

from schemas.clock import MINUTE_MS, SECOND_MS
from schemas.periods import Billing


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Intent(_Frozen):
    """The change of one total over one report bucket. A rebuild makes the same intent.

    `delta_minor` = total at the bucket's end minus total at its start, for every aggregation.
    `identifier` = hash of (livemode, Stripe account, log id, meter, account, period start, bucket, delta). A delta with
    more digits than Stripe takes in one value is published as several intents, with `-0`, `-1` and so on behind the
    identifier. `revision`: how often the intent was redriven; then `-r1`, `-r2` and so on are behind the identifier.
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
    scale: Annotated[int, Field(ge=0, le=12)]
    revision: Annotated[int, Field(ge=0)] = 0

    @property
    def instant_ms(self) -> int:
        """The instant of the usage: the last whole second of the bucket, moved into the period. The payer at this
        instant pays, even if Stripe gets another timestamp.

        A flush may end the bucket within a second. A price that is swapped in that second is valid from its start, so
        the instant lies before it. Stripe's period may begin some seconds after ours, which begins with the anchor's
        minute. So the earliest instant is the last second of the period's first minute, unless a flush ends the bucket
        before that.
        """
        last_ms = min(self.bucket_end_ms, self.period_end_ms) // SECOND_MS * SECOND_MS - SECOND_MS
        is_flushed = self.period_start_ms < self.bucket_end_ms < self.period_start_ms + MINUTE_MS
        return max(last_ms, self.period_start_ms + (0 if is_flushed else MINUTE_MS - SECOND_MS))


class Attempt(_Frozen):
    """Written before the first send: after a crash, the sender knows whether an event may have been sent.

    The first attempt in the log is sent. If Stripe refused its event, or a lookup at Stripe does not find the event, a
    new attempt replaces the one whose `attempted_at_ms` is `replaces_ms`. The new attempt counts only if the other one
    is in force.
    """

    kind: Literal["attempt"] = "attempt"
    identifier: str
    stripe_customer: str
    timestamp_s: int
    value: str
    attempted_at_ms: int
    replaces_ms: int | None = None


class Allocation(_Frozen):
    """What credits pay of an intent, written before the first attempt. The first allocation in the log counts, unless
    an attempt precedes it.

    Stripe is sent `remainder_minor`. `drawn_minor` and `remainder_minor` add up to the intent's delta. `draws`: the
    credits that each grant lost; negative: got back.
    """

    kind: Literal["allocation"] = "allocation"
    identifier: str
    drawn_minor: int
    remainder_minor: int
    draws: dict[str, int] = {}


class OutcomeStatus(StrEnum):
    """How an intent ended."""

    ACCEPTED = "accepted"
    CREDITED = "credited"
    FREE = "free"
    REPLACED = "replaced"
    LATE = "late"
    DEAD = "dead"


class ReportOutcome(_Frozen):
    """Settles an intent: Stripe accepted it; or credits paid all of it; or the account is free; or a restatement
    reports the usage by other intents; or its invoice was finalized, so an invoice item bills it (late); or an operator
    must act (dead letter). `in_doubt`: Stripe may have the event of the dead letter, or of the late intent."""

    kind: Literal["outcome"] = "outcome"
    identifier: str
    status: OutcomeStatus
    detail: str = ""
    stripe_customer: str = ""
    settled_at_ms: int = 0
    in_doubt: bool = False


class Redrive(_Frozen):
    """Replaces a settled intent, which Stripe does not have, by its next revision.

    One record of the log has the redrive and the new intent, so neither is there without the other. `identifier` is
    that of the settled intent, `successor` that of the new one. `actor` and `reason`: who redrove it, and why.
    `evidence`: why Stripe does not have the event.
    """

    kind: Literal["redrive"] = "redrive"
    identifier: str
    successor: str
    actor: str
    reason: str
    evidence: str
    redriven_at_ms: int


ReportEntry = Annotated[Intent | Allocation | Attempt | ReportOutcome | Redrive, Field(discriminator="kind")]


class MeterEvent(NamedTuple):
    """One Stripe meter event, ready to send (docs.stripe.com/api/billing/meter-event/create). `value` is a decimal
    string; `timestamp_s` is in the usage's period."""

    identifier: str
    event_name: str
    stripe_customer: str
    value: str
    timestamp_s: int


class SendStatus(StrEnum):
    """The result of sending one meter event. It decides what the sender does next.

    `HOLD_METER`, `HOLD_ACCOUNT`: Stripe did not take the event and will take it when the meter, or the account's
    customer, is corrected.
    """

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    RETRY = "retry"
    HOLD_METER = "hold_meter"
    HOLD_ACCOUNT = "hold_account"
    DEAD = "dead"
    STOP = "stop"


class SendResult(NamedTuple):
    """Stripe's answer to one meter event. `detail` is for people. Only `RETRY` has `retry_after_s`. Equal refusals
    have the same `cause`."""

    status: SendStatus
    detail: str = ""
    retry_after_s: float = 0.0
    cause: str = ""


class MeterSummary(NamedTuple):
    """Stripe's own sum for (meter, customer) over `[start_s, end_s)`, as a decimal string."""

    value: str
    rows: int


class MeterEventsApi(StrEnum):
    """The API of Stripe that takes the meter events.

    `V1` and `V2` answer each event. `STREAM` is API v2's stream of meter events, in live mode only. It takes up to 100
    events in one call and judges them later: an answer of 200 promises less.
    """

    V1 = "v1"
    V2 = "v2"
    STREAM = "stream"


class StripeMeters(Protocol):
    """Stripe's meters, or a fake of them. Never raises for an answer of Stripe. Raises `Transient` if a read got no
    answer, and `Refused` if the key is wrong."""

    async def identity(self) -> tuple[bool, str]:
        """(livemode, Stripe account id) of the configured key."""
        ...

    async def find_meter(self, event_name: str) -> str:
        """The id of the active meter of `event_name` (formula sum, raw). Raises `OperatorNeeded` with the remedy if no
        such meter takes events."""
        ...

    async def send(self, event: MeterEvent) -> SendResult:
        """Send one meter event under its identifier. Repeatable within Stripe's window of 24 h. `RETRY` stands for 409,
        429, 5xx, timeouts and lost connections: Stripe may or may not have accepted the event.

        With `MeterEventsApi.STREAM`, `ACCEPTED` also stands for a duplicate and for what Stripe rejects later.
        """
        ...

    async def summary(self, event_name: str, stripe_customer: str, start_s: int, end_s: int) -> MeterSummary:
        """Stripe's sum, which lags behind `send`. Both instants are whole minutes."""
        ...

    async def hour_summary(self, event_name: str, stripe_customer: str, hour_s: int) -> MeterSummary:
        """Stripe's sum of the UTC hour that begins at `hour_s`, which lags behind `send`. No rows without events."""
        ...

    async def close(self) -> None:
        """Release connections. Safe to call twice."""
        ...


class Rejection(NamedTuple):
    """Meter events that Stripe answered with 200 and rejected afterwards, of one meter and error code.

    Stripe's reports (v1.billing.meter.error_report_triggered) have the number of `errors` and some `identifiers` as
    samples. Stripe validated the events in `[window_start_ms, window_end_ms)`. `event_name` is empty if the meter no
    longer exists.
    """

    report: str
    event_name: str
    code: str
    errors: int
    identifiers: tuple[str, ...]
    window_start_ms: int
    window_end_ms: int


class StripeCatalog(Protocol):
    """The meters of a Stripe account and their prices, for commands. Only commands create meters."""

    async def create_meter(self, event_name: str, display_name: str) -> bool:
        """Create the meter of `event_name` (formula sum, raw) if it is missing; whether it was. Raises as `find_meter`,
        and `Transient`, `Refused` and `InvalidInput`."""
        ...

    async def has_price(self, event_name: str) -> bool:
        """Whether an active price bills the meter of `event_name`. Raises `Transient`, `Refused`, `InvalidInput`."""
        ...


class StripeRejections(Protocol):
    """Stripe's asynchronous error reports, or a fake of them."""

    async def rejections(self, since_ms: int) -> Sequence[Rejection]:
        """The reports since `since_ms`, oldest first; Stripe keeps 30 days. Costs one read per 100 reports. Raises
        `Transient` if no answer came, and `Refused` if the key is wrong."""
        ...


class StripeAdjustments(Protocol):
    """Takes meter events back, for commands."""

    async def cancel(self, event_name: str, identifier: str) -> None:
        """Cancel a meter event that Stripe received within the last 24 h. Repeatable. Raises `InvalidInput` with
        Stripe's words, `Transient` (Stripe may have done it) and `Refused`."""
        ...


class Payer(NamedTuple):
    """Who pays for an intent. `period_end_ms` is the present end of the usage's period: a binding may have moved the
    end after the intent was made."""

    billing: Billing
    stripe_customer: str
    period_end_ms: int


class CustomerResolver(Protocol):
    """Finds who pays for an intent."""

    async def __call__(self, intent: Intent, instant_ms: int) -> Payer | None:
        """The payer by the binding in force at `instant_ms`; None if a restatement reports the usage by another intent.

        May raise `Transient`, also if the resolver has not read all that was in the log when the intent was made.
        """
        ...
