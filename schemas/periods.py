"""Billing periods and the bindings that cut them (I8)."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from schemas.clock import MINUTE_MS

# 0001-01-01 and 9999-12-31, the years of `datetime`.
INSTANT_MIN_MS = -62_135_596_800_000
INSTANT_MAX_MS = 253_402_300_799_999
INTERVAL_COUNT_MAX = 1200


class Interval(StrEnum):
    """The length of a period. Months and years are those of the calendar, counted from the anchor without drift."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    YEAR = "year"


class Billing(StrEnum):
    """How an account's usage is billed: to a Stripe customer, not at all, or not yet."""

    MAPPED = "mapped"
    FREE = "free"
    UNMAPPED = "unmapped"


class Period(NamedTuple):
    """A half-open span of UTC instants, `[start_ms, end_ms)`."""

    start_ms: int
    end_ms: int


class Binding(BaseModel):
    """An account's anchor, interval and Stripe customer from `effective_from_ms` on.

    Periods begin at whole minutes, because Stripe's meter summaries are minute-aligned
    (docs.stripe.com/api/billing/meter-event-summary/list). An anchor may have seconds, as a subscription's has. Periods
    are counted from the start of the anchor's minute: a period that ended later than Stripe's would have usage of its
    last seconds billed in Stripe's next period.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    effective_from_ms: int = Field(ge=INSTANT_MIN_MS, le=INSTANT_MAX_MS)
    anchor_ms: int = Field(default=0, ge=INSTANT_MIN_MS, le=INSTANT_MAX_MS)
    interval: Interval = Interval.MONTH
    interval_count: int = Field(default=1, ge=1, le=INTERVAL_COUNT_MAX)
    billing: Billing = Billing.UNMAPPED
    stripe_customer: str = Field(default="", max_length=255)

    @field_validator("effective_from_ms")
    @classmethod
    def _whole_minutes(cls, value: int) -> int:
        if value % MINUTE_MS:
            raise ValueError("must be a whole minute, because Stripe's summaries are minute-aligned")
        return value


class Customer(NamedTuple):
    """Who pays for usage from `from_ms` on."""

    from_ms: int
    billing: Billing
    stripe_customer: str


class Restatement(NamedTuple):
    """Usage that was recounted in other periods. Reports of periods from `from_ms` on in report buckets before
    `before_bucket_ms` are replaced by the reports from that bucket on."""

    from_ms: int
    before_bucket_ms: int


class PendingCut(BaseModel):
    """A late binding that waits for the restatement of the usage counted before it.

    `position` is that of the binding's record, or of the record that began the restatement. Usage before `position` is
    recounted; later events are deferred until stream time `until_ms`. If `until_ms` is None, no restatement has begun.
    `begun` counts the attempts. `from_ms` is the start of the first period that may change. `binding` will take effect
    at its `effective_from_ms`; its record asked for `requested_ms`. `later` are the bindings that came afterwards.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    position: int
    from_ms: int
    requested_ms: int
    binding: Binding
    until_ms: int | None = None
    begun: int = 0
    later: tuple[Binding, ...] = ()


class AccountState(BaseModel):
    """The fold's state of one account: its bindings by effective date, and the periods that a record closed.

    No binding means calendar months (UTC) and an unmapped customer. `customers` are separate from `bindings`, because
    a binding may name the payer of counted usage that had none, but does not move its periods. At the instants
    `payer_cuts_ms` another payer takes effect and the period ends. `has_payer` becomes true with the first mapped or
    free binding and stays true. `flushed_ms` is the instant of the last flush, where the account's report bucket ended
    and its next one began. `revision` is that of the last binding, closing or flush; `repeated` counts the records that
    changed nothing because their revision was not higher.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bindings: tuple[Binding, ...] = ()
    customers: tuple[Customer, ...] = ()
    payer_cuts_ms: tuple[int, ...] = ()
    has_payer: bool = False
    closed_start_ms: tuple[int, ...] = ()
    pending: PendingCut | None = None
    restatements: tuple[Restatement, ...] = ()
    flushed_ms: int = 0
    revision: int = 0
    repeated: int = 0
