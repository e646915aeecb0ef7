"""Decoding: the fast decoder and the contract agree, a bad event harms no other, and hostile bytes cost little time."""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from aggregators.decode import LEVELS_MAX, decode, levels, normalised
from aggregators.scan import LogState, scan
from schemas.events import UsageEvent
from schemas.log import Record
from schemas.reasons import Reason

GOOD: dict[str, Any] = {
    "specversion": "1.0",
    "id": "1",
    "source": "test",
    "type": "api.request",
    "subject": "acme",
    "time": "2026-03-01T00:00:00Z",
    "data": {"method": "GET"},
}


def encoded(**changes: Any) -> bytes:
    """A good event with changes. A field with the value `...` is left out."""
    return json.dumps({name: value for name, value in {**GOOD, **changes}.items() if value is not ...}).encode()


def nested(levels: int) -> bytes:
    """An event with exactly this many levels of nesting."""
    return encoded(data="HERE").replace(b'"HERE"', b'{"a":' * (levels - 1) + b"1" + b"}" * (levels - 1))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        pytest.param(b"", Reason.BAD_JSON, id="nothing"),
        pytest.param(b"{not json", Reason.BAD_JSON, id="garbage"),
        pytest.param(b"\xff\xfe\x00", Reason.BAD_ENCODING, id="not UTF-8"),
        pytest.param(encoded().replace(b"GET", b"\xc3\x28"), Reason.BAD_ENCODING, id="bad UTF-8 inside a text"),
        pytest.param(encoded(data="X").replace(b'"X"', b"NaN"), Reason.BAD_JSON, id="NaN"),
        pytest.param(encoded(data="X").replace(b'"X"', b'{"v":-Infinity}'), Reason.BAD_JSON, id="Infinity"),
        pytest.param(b'"text"', Reason.NOT_AN_EVENT, id="a text"),
        pytest.param(b"7", Reason.NOT_AN_EVENT, id="a number"),
        pytest.param(b"null", Reason.NOT_AN_EVENT, id="null"),
        pytest.param(b"{}", Reason.MISSING_FIELD, id="empty object"),
        pytest.param(encoded(id=...), Reason.MISSING_FIELD, id="no id"),
        pytest.param(encoded(subject=...), Reason.MISSING_FIELD, id="no account"),
        pytest.param(encoded(id=""), Reason.BAD_FIELD, id="empty id"),
        pytest.param(encoded(id="x" * 10_000), Reason.BAD_FIELD, id="id of 10 000 characters"),
        pytest.param(encoded(id=7), Reason.BAD_FIELD, id="id is a number"),
        pytest.param(encoded(subject="a" * 257), Reason.BAD_FIELD, id="account too long"),
        pytest.param(encoded(specversion="0.3"), Reason.BAD_FIELD, id="another specversion"),
        pytest.param(encoded(data=[1]), Reason.BAD_FIELD, id="data is a list"),
        pytest.param(encoded(padding="x" * 70_000), Reason.TOO_LARGE, id="70 kB"),
        pytest.param(nested(LEVELS_MAX + 1), Reason.TOO_DEEP, id="one level too deep"),
        pytest.param(b"[" * 100_000, Reason.TOO_DEEP, id="100 000 levels"),
        pytest.param(nested(5_000), Reason.TOO_DEEP, id="5 000 levels, well-formed"),
    ],
)
def test_a_bad_event_has_its_reason(raw: bytes, reason: Reason) -> None:
    """The event is alone in its record. The rejection keeps the original bytes."""
    decoded = decode(raw, 65_536)

    assert ([], 1) == (decoded.events, decoded.received)
    assert [(0, reason, raw)] == [(each.place, each.reason, each.raw) for each in decoded.rejected]


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(encoded(id=...), id="missing field"),
        pytest.param(encoded(padding="x" * 70_000), id="too large"),
        pytest.param(encoded(data="X").replace(b'"X"', b'{"v":"\\ud800"}'), id="half a surrogate pair"),
        pytest.param(nested(LEVELS_MAX + 1), id="too deep"),
        pytest.param(b"17", id="no event"),
    ],
)
def test_a_bad_event_never_costs_its_neighbours(bad: bytes) -> None:
    """The events before and after the bad event are decoded and keep their index."""
    value = b"[" + encoded(id="first") + b", " + bad + b"," + encoded(id="last") + b"]"

    decoded = decode(value, 65_536)

    assert [(0, "first"), (2, "last")] == [(place, event.id) for place, event in decoded.events]
    assert [(1, bad)] == [(each.place, each.raw) for each in decoded.rejected]
    assert decoded.raws.parts[2] == encoded(id="last")


def test_the_deepest_allowed_event_decodes_at_any_depth_of_the_stack() -> None:
    """Whether an event decodes must not depend on the caller (I7)."""

    def at_depth(frames: int) -> int:
        return at_depth(frames - 1) if frames else len(decode(nested(LEVELS_MAX), 65_536).events)

    assert {1} == {at_depth(frames) for frames in (0, 100, 400)}


def test_a_record_of_too_many_events_is_one_rejection() -> None:
    """A position has 16 bits for the index in the batch."""
    decoded = decode(b"[" + b",".join([encoded()] * 65_537) + b"]", 65_536)

    assert ([], 1, [Reason.TOO_MANY_EVENTS]) == (
        decoded.events,
        decoded.received,
        [each.reason for each in decoded.rejected],
    )


def test_normalised_data_is_exact_and_the_last_of_two_equal_keys_wins() -> None:
    """ClickHouse recounts from the same data that the fold uses."""
    raw = encoded(data="X").replace(b'"X"', b'{"b":0.1000000000000000000001,"a":1,"a":2,"c":1e2}')

    ((_, event),) = decode(raw, 65_536).events

    assert normalised(event.data or {}) == '{"a":2,"b":0.1000000000000000000001,"c":1E+2}'


_TEXTS = st.text(max_size=20) | st.sampled_from(["1.0", "", "é", "\x00", "2026-03-01T00:00:00Z"])
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=8,
)
_PAYLOADS = st.just(...) | st.sampled_from(["e30=", "eyJhIjoxfQ==", "", "e30", "WzFd", "/w==", "e30=\n"])


def contract_accepts(raw: bytes) -> bool:
    """Whether the pydantic contract alone accepts these bytes as one event."""
    try:
        UsageEvent.model_validate(json.loads(raw.decode(), parse_float=Decimal))
    except (ValidationError, RecursionError, InvalidOperation, ValueError):
        return False
    return True


@settings(max_examples=300, deadline=None)
@given(changes=st.dictionaries(st.sampled_from([*GOOD, "extension", "data_base64"]), _VALUES | _PAYLOADS, max_size=3))
def test_the_fast_decoder_and_the_contract_accept_the_same_events(changes: dict[str, Any]) -> None:
    """msgspec decodes on the hot path and pydantic is the contract: two decoders of one definition."""
    raw = encoded(**changes)

    assert contract_accepts(raw) is (len(decode(raw, 1_000_000).events) == 1)


@settings(max_examples=300, deadline=None)
@given(raw=st.binary(max_size=60))
def test_any_bytes_are_decoded_or_rejected_and_never_raise(raw: bytes) -> None:
    """Conservation (I1) starts here: each received event is decoded or rejected."""
    decoded = decode(raw, 1_000)

    assert decoded.received == len(decoded.events) + len(decoded.rejected)


@pytest.mark.parametrize("opening", [b"{" * 201, b"[" + b"{" * 201], ids=["an event", "a batch"])
@pytest.mark.parametrize("inside", [b'\\"', b"\\\\", b"a"], ids=["escaped quotes", "backslashes", "letters"])
def test_a_text_without_an_end_is_scanned_once(opening: bytes, inside: bytes) -> None:
    """A scan from each quote would take days and block the gateway and every reader of the log."""
    value = opening + b'"' + inside * (900_000 // len(inside))

    decoded = decode(value, 65_536)

    assert (len(decoded.rejected), decoded.received) == (1, 1)


@given(texts=st.lists(st.text(alphabet='"\\{}[]a\n')), nested=st.integers(0, 300))
@settings(max_examples=50)
def test_brackets_within_texts_do_not_nest(texts: list[str], nested: int) -> None:
    """Only objects and lists add to the depth."""
    document: object = [texts, ["["] * 300]
    for _ in range(nested):
        document = [document]

    assert levels(json.dumps(document).encode()) == (nested + 2 if nested + 2 + 300 > LEVELS_MAX else 0)


def test_a_record_of_which_every_event_is_refused_is_split_once() -> None:
    """A new split for each event would take hours if the record contains half a surrogate pair."""
    odd = encoded(id="odd", data="X").replace(b'"X"', b'{"v":"\\ud800"}')
    value = b"[" + b",".join([odd, *(encoded(id=f"{at}", time="2099-01-01T00:00:00Z") for at in range(5_000))]) + b"]"
    record = Record("usage.events", 0, 7, 1_772_323_200_000, None, value)

    scanned = scan(0, LogState("log", 1, 1_772_323_200_000, None), b"secret", [record], events_max=1)

    assert len(scanned.quarantined) == scanned.received == 5_001
