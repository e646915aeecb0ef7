"""The bodies of the gateway's answers. `/openapi.json` is made from these models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.events import NAME_CHARACTERS_MAX
from schemas.holds import HOLD_S_MAX

Instant = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
Decimal = Annotated[str, Field(description="An exact decimal number as text.")]

# What a person writes for the audit.
Words = Annotated[str, Field(min_length=1, max_length=1_000)]
PeriodState = Annotated[Literal["open", "closed"], Field(description="A closed period takes no more usage.")]


class Answer(BaseModel):
    """A JSON object of an answer. A field that is not set is absent."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=True)


class ErrorBody(Answer):
    """Why a whole request was refused."""

    code: str = Field(description="A fixed word for programs.")
    message: str = Field(description="What to do, for people.")
    field: str = Field(default="", description="The parameter or header that is the cause; absent without one.")


class ErrorAnswer(Answer):
    """The answer to a request that was refused as a whole."""

    error: ErrorBody


class SkippedMeter(Answer):
    """A meter with `on_bad: skip_meter` that does not count an accepted event because of the event's data."""

    meter: str
    reason: str = Field(description="One of the reasons in docs/errors.md.")
    field: str = Field(default="", description="The field that is the cause.")


class EventResult(Answer):
    """What became of one event of a request."""

    index: int = Field(description="The event's place in the request, from 0.")
    id: str | None = Field(description="The event's id; null if the id could not be read.")
    status: Literal["accepted", "duplicate", "rejected", "unknown"]
    reason: str = Field(default="", description="Of a rejected event: one of the reasons in docs/errors.md.")
    field: str = Field(default="", description="Of a rejected event: the field that is the cause.")
    detail: str = Field(default="", description="Of a rejected, unknown or unmetered event.")
    remedy: str = Field(default="", description="Of a rejected, unknown or unmetered event: what to do.")
    skipped: list[SkippedMeter] = Field(default=[], description="Meters that do not count the event; absent if none.")


class EventsAnswer(Answer):
    """What became of the events of a request, in their order."""

    accepted: int
    rejected: int
    duplicates: int = Field(default=0, description="With `verify=1`: events that arrived before; absent if 0.")
    dry_run: bool = Field(default=False, description="Only with `dry_run=1`: nothing was written.")
    verified: bool = Field(default=False, description="Only with `verify=1`: whether Redis answered in time.")
    unknown: int = Field(default=0, description="Events that the log did not confirm; absent if 0.")
    unmetered: int = Field(default=0, description="Accepted events that no meter wants at the moment; absent if 0.")
    events: list[EventResult]


class MeterValue(Answer):
    """The total of one meter."""

    meter: str
    value: Decimal | None = Field(description="Null for `max`, `min` and `latest` without an event.")
    unit: str
    aggregation: str


class CurrentUsage(Answer):
    """An account's usage in its current period."""

    account: str
    period_start: Instant
    period_end: Instant
    state: PeriodState
    later_usage_in: Instant | None = Field(
        default=None,
        description="Only of a closed period: the start of the period that counts usage from now on. Null if usage is "
        "quarantined, because another payer pays for that period. A meter with `late: quarantine` counts none.",
    )
    complete_up_to: Instant = Field(
        description="Everything that arrived before this instant and is counted in this period is in the answer."
    )
    deferred: int = Field(default=0, description="Events that wait for a dedup decision; absent if 0.")
    meters: list[MeterValue]


class Flushed(Answer):
    """The flush is in the log."""

    account: str
    instant: Instant = Field(description="Usage so far is reported with a timestamp before this instant.")
    partition: int
    offset: int = Field(description="The offset of the flush in `usage.events`.")


class LinkAnswer(Answer):
    """To which Stripe customer an account belongs in a span of time."""

    stripe_customer: str | None = Field(description="Null: to none, since the account was unlinked.")
    from_: Instant = Field(alias="from")
    to: Instant | None = Field(description="Null: until another link.")


class AccountAnswer(Answer):
    """The Stripe customer of an account, and its links so far."""

    account: str
    stripe_customer: str | None = Field(description="The customer of now; null if the account is linked to none.")
    links: list[LinkAnswer] = Field(description="The oldest first.")


class IntentAnswer(Answer):
    """A report to Stripe: the change of an account's total over one report bucket."""

    identifier: str
    account: str
    meter: str
    state: str
    quantity: str = Field(description="The change, exact, in units of the meter.")
    drawn: str | None = Field(description="What credits pay of the quantity; null: nothing.")
    instant: Instant = Field(description="The usage's instant; the payer at this instant pays.")
    period_start: Instant
    period_end: Instant
    stripe_customer: str | None = Field(description="Null: nobody was named.")
    hold: str | None = Field(description="Why a pending report waits; null if it does not.")
    detail: str = Field(description="The reason of the hold, or how the report ended.")
    settled_at: Instant | None = Field(description="Null: it is pending.")
    in_doubt: bool = Field(description="Stripe may have the event, although it did not say so.")


class IntentsAnswer(Answer):
    """Reports to Stripe, by identifier."""

    intents: list[IntentAnswer]
    next_cursor: str = Field(default="", description="The `cursor` of the next page; absent on the last page.")


class NoticeAnswer(Answer):
    """A notice on its way through one channel."""

    id: str = Field(description="The header `webhook-id`; equal in every attempt and channel.")
    type: str
    account: str
    made_at: Instant
    channel: str
    state: str
    detail: str = Field(description="Why it waits, or how it ended.")
    failures: int = Field(description="How often the receiver did not take it.")
    due_at: Instant | None = Field(description="When it is sent again; null if it is settled.")
    settled_at: Instant | None = Field(description="Null: it waits.")
    data: dict[str, Any] = Field(description="The notice's `data`, as it is delivered.")


class NoticesAnswer(Answer):
    """Deliveries of notices, the newest first."""

    notices: list[NoticeAnswer]
    next_cursor: str = Field(default="", description="The `cursor` of the next page; absent on the last page.")


class AccountWish(Answer):
    """The body of a request that links an account."""

    stripe_customer: str = Field(pattern="^cus_[A-Za-z0-9_]{1,251}$", description="The Stripe customer, `cus_…`.")
    from_: Instant | None = Field(
        default=None,
        alias="from",
        description="From when on: now or later, cut to its minute; any instant for the first link, which has all "
        "earlier usage that nobody was named for if this is absent.",
    )


class TopAccount(Answer):
    """One account and its total."""

    account: str
    value: Decimal


class Top(Answer):
    """The accounts with the greatest totals of a meter, greatest first."""

    meter: str
    unit: str
    aggregation: str
    period_start: Instant
    compared: str = Field(description="Which accounts are compared.")
    complete_up_to: Instant = Field(
        description="Everything that arrived before this instant and is counted in this period is in the answer."
    )
    accounts: list[TopAccount]


class UsageRowAnswer(Answer):
    """The usage of one window and one combination of groups."""

    window_start: Instant | None = Field(description="Null without a window.")
    groups: dict[str, str]
    value: Decimal


class UsageOverTime(Answer):
    """The usage of one meter over time."""

    meter: str
    unit: str
    aggregation: str
    account: str | None
    from_: Instant = Field(alias="from")
    to: Instant
    window: str | None
    timezone: str
    group_by: list[str]
    complete_up_to: Instant | None = Field(description="Null if a part of the data has never been counted.")
    rows: list[UsageRowAnswer]
    next_cursor: str = Field(default="", description="The `cursor` of the next page; absent on the last page.")


class PeriodRow(Answer):
    """What one billing period counted."""

    period_start: Instant
    period_end: Instant
    state: PeriodState
    value: Decimal = Field(description="All usage that is counted, and billed, in this period.")
    carried_in: Decimal | None = Field(
        description="Of `value`: usage of hours that ended before the period began, and that arrived after their own "
        "period was closed. Null for `max`, `min` and `latest` without any."
    )


class Periods(Answer):
    """What the billing periods of an account counted, oldest first."""

    meter: str
    unit: str
    aggregation: str
    account: str
    complete_up_to: Instant | None = Field(description="Null if a part of the data has never been counted.")
    periods: list[PeriodRow]


class FilterAnswer(Answer):
    """A condition on an event's data: the meter counts only events that meet all of its conditions."""

    path: str
    operator: Literal["eq", "ne", "in", "not_in"]
    values: list[str]


class MeterAnswer(Answer):
    """One meter of the meter set."""

    slug: str
    event_type: str
    aggregation: str
    value_path: str | None
    dimensions: list[str] = Field(description="The names for `group_by`.")
    filters: list[FilterAnswer]
    unit: str
    scale: int
    late: str = Field(description="`carry_forward` or `quarantine`: what becomes of usage of a closed period.")
    on_bad: str = Field(description="`reject_event` or `skip_meter`: what becomes of data that the meter cannot use.")
    per: str | None = Field(
        description="Of `time_weighted` and `duration`: the unit of time, `second`, `minute` or `hour`. This field and "
        "the next five are null where the meter has none."
    )
    series_path: str | None = Field(description="Levels with another text there stand beside each other, and add up.")
    stands_s_max: int | None = Field(description="A level stands at most so many seconds; null: until the next sample.")
    start_path: str | None = Field(
        description="Of `duration`: where an event has the instant at which its span begins."
    )
    session_path: str | None = Field(description="Of `duration`: events with the same text there are one session.")
    session_gap_s_max: int | None = Field(
        description="A longer gap between two events of a session, in s, is not counted."
    )
    description: str


class MetersAnswer(Answer):
    """The meter set in force."""

    version: int | None = Field(description="Null before the first meter set.")
    meters: list[MeterAnswer]


class Alive(Answer):
    """The process answers."""

    status: Literal["alive"]


class Readiness(Answer):
    """Whether the gateway takes events, and how far its stores have come."""

    status: Literal["ready", "degraded", "not_ready"]
    checks: dict[str, dict[str, Any]]


class Links(Answer):
    """Where to go on."""

    docs: str
    openapi: str
    readiness: str
    metrics: str


class Front(Answer):
    """What answers here."""

    name: str
    description: str
    version: str
    status: Literal["ready", "degraded", "not_ready"]
    links: Links


class AccessCheck(Answer):
    """One check: may the account use so much more of the feature?"""

    account: str = Field(min_length=1, max_length=NAME_CHARACTERS_MAX)
    feature: str = Field(description="A feature of the catalog.")
    quantity: Decimal = Field(default="1", description="How much more, as a decimal number in text.")
    used: Decimal | None = Field(
        default=None, description="Of seats: how many are taken. Usage is counted by Tidemark."
    )
    hold_s: int = Field(
        default=0,
        ge=0,
        le=HOLD_S_MAX,
        description="If it is allowed: for how many seconds the quantity is held for the caller. 0: nothing is held.",
    )


class AccessAnswers(Answer):
    """The answers to a list of checks, in their order."""

    answers: list[AccessAnswer]


class HoldAnswer(Answer):
    """A quantity that is held for a caller."""

    id: str
    account: str
    feature: str
    quantity: Decimal
    state: Literal["held", "used", "released", "expired"]
    expires_at: Instant
    used: Decimal | None = Field(description="What was used of it; null until somebody said so.")


class HoldUse(Answer):
    """What was used of a hold."""

    quantity: Decimal | None = Field(default=None, description="At most what is held; all of it if absent.")


class GiveAnswer(Answer):
    """A grant that takes part in a value."""

    source: Literal["default", "plan", "fallback", "trial", "addon", "promotion", "contract", "override"]
    id: str = Field(description="The plan or add-on with its version, or the name of a person's grant.")
    does: Literal["set", "add", "at_least", "at_most", "deny"]
    value: str = Field(description="A number, `unlimited`, `true`, `false`, or the JSON of a config.")
    ends_at: Instant | None


class Freshness(Answer):
    """How old an answer is."""

    version: int = Field(description="The version of the account's entitlements; 0: none, so the default plan holds.")
    computed_at: Instant | None
    read_at: Instant | None = Field(description="When the gateway last heard which versions are the newest.")
    usage_complete_up_to: Instant | None
    overshoot_bound: str | None = Field(
        description="Of a limit: how much more than `used` may be used by now, at the rate of the last minute and if "
        "all that is held was used. Null: the rate is not known."
    )


class MoneyAnswer(Answer):
    """An amount of money."""

    minor: int = Field(description="In minor units of the currency: cents, or whole yen. Negative: a credit.")
    currency: str
    exponent: int = Field(description="The number of decimals of the currency at Stripe.")


class UpgradeAnswer(Answer):
    """The cheapest plan or add-on that would allow what was denied; docs/entitlements.md has the rules."""

    plan: str = Field(default="", description="The plan with its version; absent if an add-on would do.")
    addon: str = Field(default="", description="The add-on with its version.")
    quantity: int = Field(default=0, description="How many of the add-on or of the seats there would be then.")
    due_now: MoneyAnswer = Field(description="What is charged at once, before tax and discounts.")
    words: str = Field(description="The same in English, for people.")


class OverageAnswer(Answer):
    """Usage beyond the included quantity, which is billed beside the base price."""

    quantity: Decimal = Field(description="With the quantity asked for, and all that is held.")
    so_far: MoneyAnswer | None = Field(description="What the usage until now costs beyond it; null: not known.")
    cap: MoneyAnswer | None = Field(description="What it may cost in a period at most; null without a cap.")


class AccessAnswer(Answer):
    """Whether an account may use more of a feature, and why."""

    account: str
    feature: str
    allowed: bool
    reason: str = Field(description="One of the reasons in docs/entitlements.md.")
    type: Literal["flag", "limit", "seat", "config"]
    limit: str = Field(default="", description="Of a limit or seats: a decimal number, or `unlimited`.")
    used: str = Field(default="", description="Of a limit: the usage of the running period.")
    held: str = Field(default="", description="Of a limit or seats: what is promised to other callers.")
    remaining: str = Field(default="", description="Of a limit or seats: a decimal number, or `unlimited`.")
    included: str = Field(default="", description="The usage that the base price covers; absent without a price.")
    overage: OverageAnswer | None = Field(default=None, description="With `included`: the usage beyond it.")
    value: Any = Field(default=None, description="Of a config: its settings.")
    gives: list[GiveAnswer]
    upgrade: UpgradeAnswer | None = Field(description="What would allow it; null if allowed, or if nothing would.")
    fallback: bool = Field(description="Whether a store did not answer, so that the catalog's `on_error` decided.")
    resets_at: Instant | None = Field(description="Of a limit: the end of the running period.")
    hold: HoldAnswer | None = Field(default=None, description="With `hold_s`: what is held; null if nothing is.")
    freshness: Freshness


class GrantAnswer(GiveAnswer):
    """A grant, and which person made it."""

    by: str | None = Field(description="Of a contract or an override: who granted it.")
    reason: str | None = Field(description="Of a contract or an override: why.")
    granted_at: Instant | None = Field(description="Of a contract or an override: when.")


class EntitlementAnswer(Answer):
    """The value of one feature."""

    value: str = Field(description="A number, `unlimited`, `true`, `false`, or the JSON of a config.")
    denied: bool
    gives: list[GrantAnswer]


class EntitlementsAnswer(Answer):
    """What an account may do at an instant."""

    account: str
    at: Instant
    version: int
    computed_at: Instant
    cause: str = Field(description="The event of Stripe, or the command, that happened to the account last before.")
    features: dict[str, EntitlementAnswer]
