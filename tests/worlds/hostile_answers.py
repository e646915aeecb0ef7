"""Answers that a proxy, a fault or a newer version of Stripe's API may send: a table for the tests of all calls."""

from __future__ import annotations

import json
from typing import Final, NamedTuple

import httpx

HTML: Final = b"<html>we are moving</html>"


class Hostile(NamedTuple):
    """An answer. `names_event`: it says that the event itself is wrong, so a dead letter is right."""

    name: str
    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    names_event: bool = False

    def response(self) -> httpx.Response:
        """The answer over HTTP."""
        return httpx.Response(self.status, content=self.body, headers=dict(self.headers))


def error(status: int, code: str = "", message: str = "refused", **headers: str) -> Hostile:
    """A failure in Stripe's form."""
    detail = {"type": "invalid_request_error", "message": message, **({"code": code} if code else {})}
    names_event = status == 400 and not headers and code not in ("no_meter", "resource_missing", "rate_limit")
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    label = f"{status} {code or message[:16]} {' '.join(headers.values())}".strip()
    return Hostile(
        label.encode("ascii", "replace").decode(), status, json.dumps({"error": detail}).encode(), named, names_event
    )


def listed(name: str, rows: object, **fields: object) -> Hostile:
    """A list in Stripe's form."""
    body = {"object": "list", "data": rows, "has_more": False, "url": "/x", **fields}
    return Hostile(name, 200, json.dumps(body).encode())


STATUSES: Final = (
    *(error(status) for status in (400, 402, 404, 405, 406, 409, 410, 413, 415, 418, 422, 424, 429, 451)),
    *(error(status) for status in (408, 500, 502, 503, 504, 520, 599)),
    error(400, "no_meter"),
    error(400, "resource_missing", "No such customer: 'cus_a'"),
    error(404, "resource_missing", "No such billing meter"),
    error(400, "rate_limit"),
    error(400, "a_code_of_next_year"),
    error(400, "", "x" * 1_000_000),
    error(400, "", "\ud800 \0 \r\n lone surrogate"),
    error(400, "", "later", stripe_should_retry="true"),
    *(error(429, "", "slow", retry_after=value) for value in ("nan", "inf", "-inf", "-7", "1e999", "soon", "", "7, 8")),
)
FOREIGN: Final = (
    *(Hostile(f"{status} page", status, HTML) for status in (200, 302, 400, 401, 403, 404, 407, 413, 502)),
    *(Hostile(f"200 {body[:12]!r}", 200, body) for body in (b"", b"null", b"[]", b"7", b"NaN", b"{}", b"\xff\xfe")),
    Hostile("cut", 200, b'{"object": "list", "da'),
    Hostile("deep", 200, b"[" * 100_000),
    Hostile("deep object", 200, b'{"a":' * 5_000 + b"1" + b"}" * 5_000),
    Hostile("a number of 5000 digits", 200, b'{"object": "list", "data": ' + b"9" * 5_000 + b"}"),
    Hostile("error without type", 400, b'{"error": {"type": null, "code": ""}}'),
    Hostile("another object", 200, b'{"object": "customer", "id": "cus_x"}'),
    Hostile("object is null", 200, b'{"object": null}'),
)
_DATA: Final[tuple[object, ...]] = (None, "x", 7, {}, [None], [7], ["x"], [[]], [{}])
_FIELDS: Final[tuple[object, ...]] = (None, 7, "x", [], {})
LISTS: Final = (
    *(listed(f"data {rows!r}"[:30], rows) for rows in _DATA),
    listed("has_more without rows", [], has_more=True),
)
SUMS: Final = tuple(
    Hostile(f"a sum of {text[:8]}", 200, b'{"object": "list", "data": [{"aggregated_value": ' + text.encode() + b"}]}")
    for text in ("null", '"12"', "true", "NaN", "Infinity", "-Infinity", "1e999", "[]", "{}")
)
REPORTS: Final = tuple(
    listed(f"report {json.dumps(fields)}"[:60], [{"object": "v2.core.event", "id": "evt_1", **fields}])
    for fields in (
        {"data": None, "related_object": None},
        {"data": None, "related_object": {"id": "mtr_requests"}},
        {"data": {}, "related_object": {"id": 7}},
        {"data": {"reason": None}, "related_object": {"id": "mtr_requests"}},
        {"data": {"reason": {"error_types": None}, "validation_start": "x", "validation_end": "y"}},
        {"data": {"reason": {"error_types": [{"code": None, "error_count": "many"}]}}},
        {"data": {"reason": {"error_types": [None]}, "validation_start": 7, "validation_end": []}},
    )
)
METERS: Final = tuple(
    {name: value}
    for name in ("status", "customer_mapping", "value_settings", "default_aggregation", "event_time_window")
    for value in _FIELDS
    if (name, value) != ("event_time_window", None)
)
