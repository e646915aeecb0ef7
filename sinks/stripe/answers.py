"""Writes parts of requests and reads the objects of Stripe's answers. Pure: no library, no network.

A proxy, a newer API version or a fault of Stripe can put anything into a field. A field of another type raises
`Malformed`, and only what the object is about waits: one meter, one sum or one report.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple

from schemas.reports import MeterEvent, MeterSummary, Rejection

CUSTOMER_KEY: Final = "stripe_customer_id"
VALUE_KEY: Final = "value"
NO_METER: Final = (
    "Stripe has no meter of the event name {event_name}: create it with `tidemark meters apply FILE "
    "--create-at-stripe`, or correct stripe_event_name in the meter set"
)
UNREADABLE_REPORT: Final = "an error report without details"


class Malformed(ValueError):
    """The answer does not have the form that Stripe documents."""


class Meter(NamedTuple):
    """A Stripe meter. `fault` says why Tidemark cannot send to the meter; empty if it can."""

    id: str
    event_name: str
    is_active: bool
    fault: str


def payload_of(event: MeterEvent) -> dict[str, str]:
    """The payload of a meter event, with the keys that the meters read."""
    return {CUSTOMER_KEY: event.stripe_customer, VALUE_KEY: event.value}


def rfc3339(instant_s: int) -> str:
    """An instant in Unix seconds as API v2 has it."""
    return f"{datetime.fromtimestamp(instant_s, UTC):%Y-%m-%dT%H:%M:%SZ}"


def text_of(value: object, *path: str) -> str:
    """The text at the end of a path of attributes. Raises `Malformed` if it is missing, empty or of another type."""
    for name in path:
        value = getattr(value, name, None)
    if not isinstance(value, str) or not value:
        raise Malformed(f"{'.'.join(path)} is not a text")
    return value


def rows_of(page: object) -> list[Any]:
    """The rows of one page of a list. Raises `Malformed` if `data` is no list."""
    rows = getattr(page, "data", None)
    if not isinstance(rows, list):
        raise Malformed("data is not a list")
    return rows


def account_of(answer: object) -> str:
    """The id of the key's account. Raises `Malformed` for another object: the account is part of every identifier."""
    if text_of(answer, "object") != "account":
        raise Malformed("it is no account")
    return text_of(answer, "id")


def meter_of(row: object) -> Meter:
    """A meter of the list. A meter with unreadable settings has a fault. Raises `Malformed` without id and name."""
    identifier, event_name = text_of(row, "id"), text_of(row, "event_name")
    status = getattr(row, "status", None)
    if status == "inactive":
        remedy = f"the Stripe meter of {event_name} ({identifier}) is deactivated: reactivate it"
        return Meter(identifier, event_name, False, remedy)
    try:
        keys = (
            text_of(row, "customer_mapping", "event_payload_key"),
            text_of(row, "value_settings", "event_payload_key"),
        )
        formula = text_of(row, "default_aggregation", "formula")
    except Malformed as error:
        return Meter(identifier, event_name, status == "active", f"Stripe's answer about {event_name}: {error}")
    if (formula, getattr(row, "event_time_window", None), *keys) != ("sum", None, CUSTOMER_KEY, VALUE_KEY):
        remedy = (
            f"the Stripe meter of {event_name} ({identifier}) must have formula sum, no event_time_window and the "
            f"payload keys {CUSTOMER_KEY} and {VALUE_KEY}: use another stripe_event_name in the meter set"
        )
        return Meter(identifier, event_name, status == "active", remedy)
    fault = "" if status == "active" else f"Stripe's answer about {event_name}: its status is unknown"
    return Meter(identifier, event_name, status == "active", fault)


def summary_of(page: object) -> MeterSummary:
    """The sum of a summary's rows. Raises `Malformed` if a row has no finite number, or if rows are left off."""
    rows = rows_of(page)
    if getattr(page, "has_more", False):
        raise Malformed("the summary has more rows than one page")
    total = Decimal(0)
    for row in rows:
        value = getattr(row, "aggregated_value", None)
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or not math.isfinite(value):
            raise Malformed("aggregated_value is not a finite number")
        total += Decimal(repr(float(value)))
    return MeterSummary(format(total, "f"), len(rows))


def rejections_of(event: object, names: Mapping[str, str]) -> list[Rejection]:
    """The rejections of one error report. A report without readable details gives one rejection that says so.

    Stripe may answer `data: null`. The report still proves that Stripe rejected something of the meter.
    """
    report = str(getattr(event, "id", ""))
    event_name = names.get(str(getattr(getattr(event, "related_object", None), "id", "")), "")
    try:
        data: Any = getattr(event, "data", None)
        window = (_instant_ms(data, "validation_start"), _instant_ms(data, "validation_end"))
        return [
            Rejection(report, event_name, text_of(kind, "code"), int(kind.error_count), tuple(_samples(kind)), *window)
            for kind in data.reason.error_types
        ]
    except (AttributeError, TypeError, ValueError, OverflowError):
        return [Rejection(report, event_name, UNREADABLE_REPORT, 0, (), 0, 0)]


def _samples(kind: Any) -> Iterable[str]:
    """The identifiers of the sampled meter events.

    Stripe gives the identifier or the Idempotency-Key of the request. The client's key begins with the identifier and a
    point.
    """
    for sample in kind.sample_errors or ():
        request = getattr(sample, "request", None)
        name = getattr(request, "identifier", None) or getattr(request, "idempotency_key", None)
        if isinstance(name, str):
            yield name.partition(".")[0]


def _instant_ms(data: object, name: str) -> int:
    return round(datetime.fromisoformat(text_of(data, name)).timestamp() * 1_000)
