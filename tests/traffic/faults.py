"""What can be wrong with an event or a record, and examples of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

EVENT_FAULTS: Final = (
    "not_an_event",
    "missing_field",
    "bad_field",
    "bad_time",
    "too_large",
    "too_far_in_future",
    "too_far_in_past",
    "too_old",
    "missing_quantity",
    "bad_quantity",
    "too_many_digits",
    "quantity_too_large",
    "negative_quantity",
    "bad_dimension",
    "bad_for_one_meter",
    "wrong_partition",
)
"""Reasons that cost one event only; it may stand in a batch."""

RECORD_FAULTS: Final = ("bad_encoding", "bad_json", "too_deep", "too_many_events", "forged_control")
"""Reasons that cost a record as one."""

BULKY: Final = ("too_large", "too_deep", "too_many_events")

BAD_TIMES: Final = ("yesterday", "2026-02-30T10:00:00Z", "2026-03-01T25:00:00Z", "2026-03-01T10:00:00", "2026-03-01")

BAD_FIELDS: Final[tuple[dict[str, Any], ...]] = (
    {"specversion": "0.3"},
    {"specversion": 1},
    {"id": ""},
    {"id": 7},
    {"id": "x" * 10_000},
    {"source": None},
    {"source": "s" * 300},
    {"type": ["api.request"]},
    {"subject": ""},
    {"subject": 12},
    {"time": 1_700_000_000},
    {"time": ""},
    {"data": "text"},
    {"data": [1]},
)

BAD_DATA: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "missing_quantity": ("storage.sampled", ('{"tier":"hot"}', "{}")),
    "bad_quantity": (
        "storage.sampled",
        ('{"gigabytes":"twelve"}', '{"gigabytes":true}', '{"gigabytes":"NaN"}', '{"gigabytes":{"value":1}}'),
    ),
    "too_many_digits": ("storage.sampled", ('{"gigabytes":1.0625}', '{"gigabytes":"0.0001"}')),
    "quantity_too_large": (
        "storage.sampled",
        ('{"gigabytes":1e400}', '{"gigabytes":"1000000000000000"}', f'{{"gigabytes":{10**30}}}'),
    ),
    "negative_quantity": ("seats.changed", ('{"seats":-1}', '{"seats":"-20"}')),
    "bad_dimension": (
        "storage.sampled",
        ('{"gigabytes":1,"tier":1.5}', '{"gigabytes":1,"tier":["hot"]}', f'{{"gigabytes":1,"tier":"{"t" * 400}"}}'),
    ),
    "bad_for_one_meter": (
        "api.request",
        ('{"method":"GET","user":{}}', '{"method":"GET"}', '{"method":[],"user":"a"}'),
    ),
}

WHOLE_RECORDS: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "bad_encoding": lambda event: event[:-1] + b',"note":"\xff\xfe"}',
    "bad_json": lambda event: event[: len(event) // 2],
    "too_deep": lambda _: b"[" * 100_000 + b"]" * 100_000,
    "too_many_events": lambda _: b"[" + b",".join([b"0"] * 70_000) + b"]",
    "forged_control": lambda _: b'{"log_id":"somebody"}',
}
