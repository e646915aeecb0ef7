"""The query parameters of the gateway's paths, and what is wrong with a query in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from fastapi import Path
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from aggregators.instants import parse_instant_us
from schemas.analytics import USAGE_ROWS_MAX, Window
from schemas.clock import HOUR_MS, MILLISECOND_US
from schemas.events import NAME_CHARACTERS_MAX
from schemas.intent_ledger import IntentState
from schemas.notices import DeliveryState

INSTANT_LAST_MS: Final = 4_102_444_800_000  # 2100-01-01, within the range of ClickHouse's DateTime64

TOP_ACCOUNTS_MAX: Final = 1_000
NOTICES_MAX: Final = 1_000
CASES_MAX: Final = 1_000
SEATS_MAX: Final = 1_000
INTENTS_MAX: Final = 1_000
ENTRIES_MAX: Final = 1_000
HOURS_MAX: Final = 10_000
JOURNAL_MAX: Final = 1_000

# An error of this type has our own words; the library's words are replaced.
_PLAIN: Final = "plain"
_WORDS: Final[Mapping[str, str]] = {
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "enum": "must be {expected}",
}


def query_problem(errors: Sequence[Mapping[str, Any]], parameters: Sequence[str]) -> tuple[str, str]:
    """The parameter that is the cause of the first error, and what is wrong with it."""
    first = errors[0]
    field = ".".join(str(part) for part in first["loc"][1:])[:100]
    if first["type"] == _PLAIN:
        return field, str(first["msg"])
    if first["type"] == "missing":
        return field, f"is missing; the parameters are: {', '.join(parameters)}"
    if first["type"] == "extra_forbidden":
        return field, f"is not a parameter; they are: {', '.join(parameters)}"
    words = _WORDS.get(first["type"], "is not a value of this parameter; /docs describes it")
    return field, words.format_map({**first.get("ctx", {})}).replace("'", "")


def plain(message: str) -> PydanticCustomError:
    """An error of a validator whose message is shown to the client as it is."""
    return PydanticCustomError(_PLAIN, "{message}", {"message": message})


def _instant(text: object) -> int:
    instant_us = parse_instant_us(str(text))
    if instant_us is None:
        remedy = "write + as %2B in a URL" if " " in str(text) else "such as 2026-11-21T10:00:00Z"
        raise plain(f"is not an RFC 3339 time with an offset: {remedy}")
    instant_ms = instant_us // MILLISECOND_US
    if not 0 <= instant_ms <= INSTANT_LAST_MS:
        raise plain("must lie between 1970 and 2100")
    return instant_ms


def _whole_hour(text: object) -> int:
    instant_us = parse_instant_us(str(text))
    if instant_us is not None and instant_us % (HOUR_MS * MILLISECOND_US):
        raise plain("must be a whole hour of UTC: usage is kept by the hour")
    return _instant(text)


_TIME: Final = WithJsonSchema({"type": "string", "format": "date-time"})
_DAY: Final = {"pattern": r"^\d{4}-\d{2}(-\d{2})?$"}
Instant = Annotated[int, BeforeValidator(_instant), _TIME]
WholeHour = Annotated[int, BeforeValidator(_whole_hour), _TIME]
Account = Annotated[str, Field(min_length=1, max_length=NAME_CHARACTERS_MAX)]
MeterSlug = Annotated[str, Field(min_length=1, description="The meter's slug; `GET /v1/meters` lists them.")]
# No name is none: stores take it for all accounts, or for the deployment.
AccountInPath = Annotated[str, Path(min_length=1, description="The account, percent-encoded as one part of the path.")]
MeterInPath = Annotated[str, Path(description="The meter's slug; `GET /v1/meters` lists them.")]


class Parameters(BaseModel):
    """The query parameters of a path. Others are refused, because a misspelt parameter would change the question."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AccountParameters(Parameters):
    """The parameters of `GET /v1/usage/current`."""

    account: Annotated[Account, Field(description="The account, percent-encoded. Any name fits here.")]


class IntentsParameters(Parameters):
    """The parameters of `GET /v1/billing/intents`."""

    state: Annotated[IntentState, Field(description="The state of the reports.")]
    account: Annotated[
        Account | None, Field(description="One account. Without it, all; a key of one account gets its own.")
    ] = None
    limit: Annotated[int, Field(ge=1, le=INTENTS_MAX, description="How many reports.")] = 100
    cursor: Annotated[str, Field(max_length=200, description="The `next_cursor` of the page before.")] = ""


class NoticesParameters(Parameters):
    """The parameters of `GET /v1/notices`."""

    state: Annotated[DeliveryState | None, Field(description="One state of deliveries. Without it, all.")] = None
    account: Annotated[
        Account | None, Field(description="One account. Without it, all; a key of one account gets its own.")
    ] = None
    limit: Annotated[int, Field(ge=1, le=NOTICES_MAX, description="How many deliveries.")] = 100
    cursor: Annotated[str, Field(max_length=200, description="The `next_cursor` of the page before.")] = ""


class SeatsParameters(Parameters):
    """The parameters of `GET /v1/accounts/{account}/seats`."""

    feature: Annotated[str, Field(max_length=200, description="One feature of type seat. Without it, all.")] = ""
    limit: Annotated[int, Field(ge=1, le=SEATS_MAX, description="How many seats.")] = 100
    cursor: Annotated[str, Field(max_length=200, description="The `next_cursor` of the page before.")] = ""


class DunningParameters(Parameters):
    """The parameters of `GET /v1/dunning/cases`."""

    state: Annotated[Literal["open", "closed"] | None, Field(description="Without it, all cases.")] = None
    account: Annotated[
        Account | None, Field(description="One account. Without it, all; a key of one account gets its own.")
    ] = None
    limit: Annotated[int, Field(ge=1, le=CASES_MAX, description="How many cases.")] = 100
    cursor: Annotated[str, Field(max_length=200, description="The `next_cursor` of the page before.")] = ""


class RevenueParameters(Parameters):
    """The parameters of the paths of revenue."""

    from_: Annotated[
        str | None,
        Field(
            alias="from",
            max_length=10,
            json_schema_extra=_DAY,
            description="The first day in UTC, such as 2027-03-01 or 2027-03; "
            "without it, five months before the last one.",
        ),
    ] = None
    to: Annotated[
        str | None,
        Field(
            max_length=10,
            json_schema_extra=_DAY,
            description="The day behind the last one; without it, the end of this month.",
        ),
    ] = None
    by: Annotated[
        Literal["month", "day", "whole"], Field(description="A row for each month or day, or one for the whole span.")
    ] = "month"


class TimelineParameters(Parameters):
    """The parameters of `GET /v1/accounts/{account}/timeline`."""

    limit: Annotated[int, Field(ge=1, le=ENTRIES_MAX, description="How many entries of the past.")] = 100
    cursor: Annotated[int | None, Field(ge=0, le=10**15, description="The `next_cursor` of the page before.")] = None


class ExplainParameters(Parameters):
    """The parameters of `GET /v1/accounts/{account}/invoices/{invoice}/lines/{line}/explain`."""

    limit: Annotated[int, Field(ge=1, le=HOURS_MAX, description="How many hours.")] = 1_000
    after: Annotated[Instant | None, Field(description="The `next_hour` of the page before.")] = None


class JournalParameters(Parameters):
    """The parameters of `GET /v1/revenue/journal`."""

    after: Annotated[int, Field(ge=0, le=2**62, description="Only entries behind this number.")] = 0
    account: Annotated[Account | None, Field(description="One account. Without it, all.")] = None
    limit: Annotated[int, Field(ge=1, le=JOURNAL_MAX, description="How many entries.")] = 100


class TopOfMeterParameters(Parameters):
    """The parameters of `GET /v1/meters/{meter}/top`."""

    period: Annotated[
        Instant | None,
        Field(description="The start of the period. Without it, the current calendar month of UTC."),
    ] = None
    limit: Annotated[int, Field(ge=1, le=TOP_ACCOUNTS_MAX, description="How many accounts.")] = 10


class TopParameters(TopOfMeterParameters):
    """The parameters of `GET /v1/usage/top`."""

    meter: MeterSlug


class UsageParameters(Parameters):
    """The parameters of `GET /v1/usage`."""

    meter: MeterSlug
    account: Annotated[
        Account | None,
        Field(description="One account. Without it, all accounts; a key of one account asks for its own."),
    ] = None
    from_: Annotated[
        WholeHour, Field(alias="from", description="Event time, from this whole hour of UTC on. Write `+` as `%2B`.")
    ]
    to: Annotated[WholeHour, Field(description="Event time, up to but not including this whole hour of UTC.")]
    window: Annotated[
        Window | None,
        Field(description="One row for each hour (up to 366 days), day or month. Without it, one total."),
    ] = None
    timezone: Annotated[
        str,
        Field(
            max_length=100,
            description="IANA name of the time zone of days and months, a whole number of hours from UTC.",
        ),
    ] = "UTC"
    group_by: Annotated[str, Field(description="The meter's dimensions and `account`, separated by commas.")] = ""
    limit: Annotated[
        int | None,
        Field(ge=1, le=USAGE_ROWS_MAX, description="The rows of a page. Without it, the answer is whole or refused."),
    ] = None
    cursor: Annotated[
        str | None, Field(max_length=16_384, description="The page behind the one whose `next_cursor` this is.")
    ] = None


class PeriodParameters(Parameters):
    """The parameters of `GET /v1/usage/periods`."""

    meter: MeterSlug
    account: Annotated[
        Account | None,
        Field(description="The account. Without it, the account of the key; a key of all accounts must name one."),
    ] = None
    from_: Annotated[Instant, Field(alias="from", description="Periods that end after this instant.")]
    to: Annotated[Instant, Field(description="Periods that begin before this instant.")]
