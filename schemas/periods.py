"""Billing periods and the bindings that cut them (I8)."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from schemas.clock import MINUTE_MS

# 0001-01-01 and 9999-12-31, the years datetime can name.
INSTANT_MIN_MS = -62_135_596_800_000
INSTANT_MAX_MS = 253_402_300_799_999


class Interval(StrEnum):
    """How long a period is; months and years are calendar ones, counted from the anchor without drift."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    YEAR = "year"


class Billing(StrEnum):
    """What becomes of an account's usage at Stripe."""

    MAPPED = "mapped"
    FREE = "free"
    UNMAPPED = "unmapped"


class Period(NamedTuple):
    """A half-open span of UTC instants, `[start_ms, end_ms)`."""

    start_ms: int
    end_ms: int


class Binding(BaseModel):
    """From `effective_from_ms` on, this account is cut by this anchor and interval and billed to this customer.

    Instants are whole minutes because Stripe's meter summaries are minute-aligned
    (docs.stripe.com/api/billing/meter-event-summary/list).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    effective_from_ms: int = Field(ge=INSTANT_MIN_MS, le=INSTANT_MAX_MS)
    anchor_ms: int = Field(default=0, ge=INSTANT_MIN_MS, le=INSTANT_MAX_MS)
    interval: Interval = Interval.MONTH
    interval_count: int = Field(default=1, ge=1, le=1200)
    billing: Billing = Billing.UNMAPPED
    stripe_customer: str = Field(default="", max_length=255)

    @field_validator("effective_from_ms", "anchor_ms")
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
    """Usage that was counted again in other periods: whatever was to be reported of periods from `from_ms` on, in
    report buckets before `before_bucket_ms`, is replaced by what is reported from that bucket on."""

    from_ms: int
    before_bucket_ms: int


class PendingCut(BaseModel):
    """A binding that takes effect in the past, while what it cuts is to be counted again.

    `position` is that of its record, or of the one that began the restatement: events before that are counted again,
    and those after it wait, as long as stream time is before `until_ms`. Without `until_ms` nothing was begun and
    nothing waits. `begun` counts the beginnings. `from_ms` is where the first period begins that may change. `binding`
    takes effect at its `effective_from_ms`; `requested_ms` is what was asked for. `later` are the bindings that came
    meanwhile: they take effect after it.
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
    """What the fold knows of one account: its bindings by effective date and the periods closed by a record.

    No binding means calendar months (UTC) and an unmapped customer. `customers` are kept apart from `bindings`,
    because a customer may be named for usage that is already counted, and a period may not be cut there. `has_payer`
    is true once any binding was mapped or free, and stays true.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bindings: tuple[Binding, ...] = ()
    customers: tuple[Customer, ...] = ()
    has_payer: bool = False
    closed_start_ms: tuple[int, ...] = ()
    pending: PendingCut | None = None
    restatements: tuple[Restatement, ...] = ()
