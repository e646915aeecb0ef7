"""Why an event was not counted: a closed set of reasons, and the remedy for each."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why an event or record went to the quarantine topic."""

    BAD_ENCODING = "bad_encoding"
    BAD_JSON = "bad_json"
    TOO_DEEP = "too_deep"
    TOO_LARGE = "too_large"
    TOO_MANY_EVENTS = "too_many_events"
    NOT_AN_EVENT = "not_an_event"
    MISSING_FIELD = "missing_field"
    BAD_FIELD = "bad_field"
    BAD_TIME = "bad_time"
    TOO_FAR_IN_FUTURE = "too_far_in_future"
    TOO_FAR_IN_PAST = "too_far_in_past"
    TOO_OLD = "too_old"
    TOO_MANY_DEFERRED = "too_many_deferred"
    MISSING_QUANTITY = "missing_quantity"
    BAD_QUANTITY = "bad_quantity"
    TOO_MANY_DIGITS = "too_many_digits"
    QUANTITY_TOO_LARGE = "quantity_too_large"
    NEGATIVE_QUANTITY = "negative_quantity"
    BAD_DIMENSION = "bad_dimension"
    BAD_FOR_ONE_METER = "bad_for_one_meter"
    RESERVED_TYPE = "reserved_type"
    WRONG_PARTITION = "wrong_partition"
    FORGED_CONTROL = "forged_control"
    BAD_CONTROL = "bad_control"
    PERIOD_CLOSED = "period_closed"
    BAD_STRIPE_EVENT = "bad_stripe_event"
    FOREIGN_STRIPE_EVENT = "foreign_stripe_event"
    STRIPE_OBJECT_MISSING = "stripe_object_missing"


# A redrive sends the same bytes, so an event with one of these reasons is rejected again, or not counted.
UNCHANGED_BY_REDRIVE = frozenset({
    Reason.BAD_ENCODING, Reason.BAD_JSON, Reason.TOO_DEEP, Reason.TOO_MANY_EVENTS, Reason.NOT_AN_EVENT,
    Reason.MISSING_FIELD, Reason.BAD_FIELD, Reason.BAD_TIME, Reason.TOO_FAR_IN_PAST, Reason.TOO_MANY_DEFERRED,
    Reason.RESERVED_TYPE, Reason.FORGED_CONTROL, Reason.BAD_CONTROL, Reason.PERIOD_CLOSED, Reason.BAD_STRIPE_EVENT,
    Reason.FOREIGN_STRIPE_EVENT, Reason.STRIPE_OBJECT_MISSING,
})  # fmt: skip

_LEAVE_OUT = "To accept such events without counting them in the meter, set on_bad: skip_meter, or give it a filter"

REMEDIES: dict[Reason, str] = {
    Reason.BAD_ENCODING: "send UTF-8",
    Reason.BAD_JSON: ("send well-formed JSON with numbers of fewer than 4300 digits; NaN and Infinity are not JSON"),
    Reason.TOO_DEEP: "nest objects and lists at most a few hundred levels deep",
    Reason.TOO_LARGE: "keep the event below the meter set's policy.event_bytes_max",
    Reason.TOO_MANY_EVENTS: "put at most 65 536 events into one record",
    Reason.NOT_AN_EVENT: "send a CloudEvents 1.0 JSON object, or a list of them",
    Reason.MISSING_FIELD: "add the field",
    Reason.BAD_FIELD: "correct the field's type or length",
    Reason.BAD_TIME: "send an RFC 3339 time with an offset, such as 2026-11-21T10:00:00Z",
    Reason.TOO_FAR_IN_FUTURE: "correct the producer's clock, then redrive",
    Reason.TOO_FAR_IN_PAST: "the time is before 1970: correct the producer's clock",
    Reason.TOO_OLD: (
        "the time is more than policy.late_max_ms (35 days by default) ago: correct the time; if the usage is to be "
        "billed now, raise policy.late_max_ms, then redrive"
    ),
    Reason.TOO_MANY_DEFERRED: (
        "more than policy.deferred_max late events wait for the archive: repair it, then send the event under a new id"
    ),
    Reason.MISSING_QUANTITY: f"add the value that the meter's value_path names. {_LEAVE_OUT}",
    Reason.BAD_QUANTITY: (
        "send a finite number or a decimal string of at most 64 characters; for a unique meter, send text, an integer "
        f"or a boolean of at most 256 characters. {_LEAVE_OUT}"
    ),
    Reason.TOO_MANY_DIGITS: (f"send no more decimal digits than the meter's scale; nothing is rounded. {_LEAVE_OUT}"),
    Reason.QUANTITY_TOO_LARGE: f"keep one quantity below 10^18 minor units. {_LEAVE_OUT}",
    Reason.NEGATIVE_QUANTITY: f"send a quantity of 0 or more, or set allow_negative on the meter. {_LEAVE_OUT}",
    Reason.BAD_DIMENSION: f"send text, an integer or a boolean of at most 256 characters. {_LEAVE_OUT}",
    Reason.BAD_FOR_ONE_METER: (
        "an event counts in all of its meters or in none: correct the value in the detail. To count the event in the "
        "other meters, set on_bad: skip_meter on the meter in the detail, or give that meter a filter"
    ),
    Reason.RESERVED_TYPE: (
        "types that begin with tidemark. are of Tidemark's own events, and so are ids of the form of an adjustment's: "
        "name another type or id. To take usage back, send a correction"
    ),
    Reason.WRONG_PARTITION: "write to usage.inbox, or key usage.events by murmur2 of the account; then redrive",
    Reason.FORGED_CONTROL: "control records are signed: write them with the tidemark command and TIDEMARK_SECRET",
    Reason.BAD_CONTROL: "the control record is signed but of an unknown form: use a matching version",
    Reason.PERIOD_CLOSED: (
        "the detail says why the usage is not carried forward: the late policy of its meter, or another payer; "
        "bill it by hand"
    ),
    Reason.BAD_STRIPE_EVENT: (
        "Stripe signed a body that this version cannot read: upgrade, then run `tidemark billing resync`"
    ),
    Reason.FOREIGN_STRIPE_EVENT: (
        "the endpoint's secret belongs to another mode or account of Stripe than TIDEMARK_STRIPE_ACCOUNT: give every "
        "deployment an endpoint and a secret of its own"
    ),
    Reason.STRIPE_OBJECT_MISSING: (
        "Stripe does not answer for one object of the event, or the database refuses the object; the detail says "
        "which. The event is set aside and read again every hour; `tidemark billing status` counts such events"
    ),
}
