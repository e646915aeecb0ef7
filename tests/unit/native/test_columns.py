"""The maker of columns in C takes a part of what Python takes, with the same values, and leaves out the rest."""

from __future__ import annotations

import ctypes
import json
import random
from typing import Any, Final

import pytest

from aggregators.columns import Segment
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.log import EVENTS_TOPIC, Record
from schemas.rollup import MarkSlice
from tests.fuzz.core import fuzz_core
from tests.traffic.odd_records import METER_SET, NOW_MS
from tests.worlds.native import BothMakers, Share

FUZZED_S: Final = 3.0


def event(data: str = "{}", **fields: Any) -> bytes:
    """An event of `seats.changed`; `data` is JSON text."""
    whole = {"specversion": "1.0", "id": "e", "source": "s", "type": "seats.changed", "subject": "ada", **fields}
    return json.dumps(whole, ensure_ascii=False).encode()[:-1] + b',"data":' + data.encode() + b"}"


def quantity(text: str, event_type: str = "seats.changed", name: str = "seats") -> bytes:
    """An event with a quantity."""
    return event(f'{{"{name}":{text}}}', type=event_type)


def compared(library: ctypes.CDLL, *records: bytes, now_ms: int = NOW_MS) -> Share:
    """Both makers over some records."""
    makers, events, taken = BothMakers(library, METER_SET), 0, 0
    for offset, record in enumerate(records):
        makers.go_to(now_ms)
        share = makers.compare(offset, record)
        events, taken = events + share.events, taken + share.taken
    return Share(events, taken)


TAKEN: Final = {
    "an integer": quantity("7"),
    "the largest quantity": quantity("999999999999999999"),
    "the smallest quantity": quantity("-999999999999999999"),
    "18 decimal digits": quantity("999999999999999.999", "storage.sampled", "gigabytes"),
    "18 decimal digits as a text": quantity('"999999999999999.999"', "storage.sampled", "gigabytes"),
    "12 digits after the point": quantity("999999.000000000000", "llm.completion", "tokens"),
    "zeros behind the scale": quantity('"1.500000"', "storage.sampled", "gigabytes"),
    "a text of 256 characters": event(f'{{"user":"{"é" * 256}"}}', type="user.active"),
    "a truth value as a distinct text": event('{"user":true}', type="user.active"),
    "an integer as a distinct text": event('{"user":9999999999999999999}', type="user.active"),
    "a deep path": event('{"extra":{"a":{"b":7},"model":"x"}}', type="deep.thing"),
    "a path through a list": event('{"extra":{"a":{"b":7},"model":null},"user":""}', type="deep.thing"),
    "the last of equal keys of the data": event('{"seats":1,"seats":2}'),
    "the last of equal keys of a deep path": event('{"extra":{"a":{"b":1,"b":2}}}', type="deep.thing"),
    "an escape in a text that no meter needs": event('{"seats":1,"note":"a\\"b"}'),
    "an event without a time": event('{"seats":1}', time=None),
    "a time with milliseconds": event('{"seats":1}', time="2026-11-29T19:00:00.999Z"),
    "a time without milliseconds": event('{"seats":1}', time="2026-11-29T19:00:00Z"),
    "a time with microseconds": event('{"seats":1}', time="2026-11-29T19:00:00.999999Z"),
    "a time whose finer digits are cut off": event('{"seats":1}', time="2026-11-29T19:00:00.9999999Z"),
    "a time with an offset": event('{"seats":1}', time="2026-11-29T20:00:00.5+01:30"),
    "no meter wants its type": event(type="other"),
    "data is null": event("null", type="other"),
    "the longest names": event("{}", type="other", id="é" * 128, source="s" * 256, subject="😀" * 256),
    "an object and no list": quantity("7"),
}
LEFT_OUT: Final = {
    "a quantity of 19 digits": quantity("1000000000000000000"),
    "a quantity beyond 64 bits": quantity("18446744073709551616"),
    "a quantity with an exponent": quantity("1e3"),
    "a quantity with a very large exponent": quantity("1e999999999999999999999"),
    "a truth value as a quantity": quantity("true"),
    "minus zero": quantity("-0"),
    "too many digits": quantity('"0.0001"', "storage.sampled", "gigabytes"),
    "no quantity": event(),
    "an escape in a text that a meter needs": event('{"user":"\\u0041"}', type="user.active"),
    "NUL in a text that a meter needs": event('{"user":"\\u0000"}', type="user.active"),
    "a text of 257 characters": event(f'{{"user":"{"é" * 257}"}}', type="user.active"),
    "minus zero as a distinct text": event('{"user":-0}', type="user.active"),
    "an empty distinct text": event('{"user":""}', type="user.active"),
    "half of a surrogate pair": event('{"seats":1,"note":"\\ud800"}'),
    "a surrogate pair": event('{"seats":1,"note":"\\ud83d\\ude00"}'),
    "an escape in a key": event('{"se\\u0061ts":1}'),
    "an escape in a key of a deep path": event('{"extra":{"\\u0061":{"b":7}}}', type="deep.thing"),
    "equal keys of the event": event('{"seats":1}')[:-1] + b',"id":"f"}',
    "an escape in an id": event("{}", type="other").replace(b'"e"', b'"\\u0065"'),
    "an empty id": event(type="other", id=""),
    "an id that is too long": event(type="other", id="x" * 129),
    "another version": event(type="other", specversion="1.1"),
    "a time in small letters": event(type="other", time="2026-11-29t19:00:00z"),
    "an empty time": event(type="other", time=""),
    "a time that is no text": event(type="other", time=1),
    "an offset of a day": event(type="other", time="2026-11-29T19:00:00+24:00"),
    "a fraction of ten digits": event(type="other", time="2026-11-29T19:00:00.0123456789Z"),
    "a leap second": event(type="other", time="2026-11-29T19:00:60Z"),
    "a day that does not exist": event(type="other", time="2026-11-31T00:00:00Z"),
    "the future": event(type="other", time="2026-11-29T20:05:00.001Z"),
    "another payload": event("null", type="other", data_base64="e30="),
    "data is no object": event("[]", type="other"),
    "more than 64 fields": event(json.dumps({f"k{number}": number for number in range(65)}), type="other"),
    "a number of 4 300 digits": event(f'{{"seats":1,"n":{"1" * 301}}}'),
    "an event that is too large": event(json.dumps({"n": "x" * 2048}), type="other"),
}
REFUSED: Final = {
    "nothing": b"",
    "no JSON": b"[{]",
    "not closed": b'[{"id":"',
    "not closed after an escape": b'[{"id":"\\',
    "not closed within an escape": b'[{"id":"\\u00',
    "a comma before the end": b"[" + event(type="other") + b",]",
    "a comma before the end of an event": event(type="other")[:-1] + b",}",
    "more after the end": b"[" + event(type="other") + b"]x",
    "NUL after the end": b"[" + event(type="other") + b"]\0",
    "a NUL byte in a text": event(type="other").replace(b'"e"', b'"\0"'),
    "a control character in a text": event(type="other").replace(b'"e"', b'"\x1f"'),
    "not UTF-8": event(type="other").replace(b'"e"', b'"\xff"'),
    "a surrogate in UTF-8": event(type="other").replace(b'"e"', b'"\xed\xa0\x80"'),
    "UTF-8 that ends too early": b'[{"id":"\xf0\x9f',
    "more than 64 levels": event(f'{{"n":{"[" * 70}{"]" * 70}}}', type="other"),
    "a number with a leading zero": event('{"n":01}', type="other"),
    "a list within the list": b"[[]]",
}


@pytest.mark.parametrize("value", TAKEN.values(), ids=TAKEN.keys())
def test_the_core_takes_plain_events(library: ctypes.CDLL, value: bytes) -> None:
    """With the values that Python takes."""
    assert compared(library, value, b"[" + value + b" , " + value + b"]") == Share(3, 3)


@pytest.mark.parametrize("value", LEFT_OUT.values(), ids=LEFT_OUT.keys())
def test_the_core_leaves_out_an_unusual_event_alone(library: ctypes.CDLL, value: bytes) -> None:
    """The events around it are taken."""
    plain = quantity("7")

    assert compared(library, b"[" + plain + b"," + value + b"," + plain + b"]") == Share(3, 2)


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED.keys())
def test_python_takes_a_record_that_the_core_refuses(library: ctypes.CDLL, value: bytes) -> None:
    """The next record is the core's again."""
    plain = quantity("7")

    assert compared(library, plain, value, plain).taken == 2


def test_sums_beyond_64_bits_stay_exact(library: ctypes.CDLL) -> None:
    """The core makes quantities of up to 18 digits; only Python adds them up."""
    makers = BothMakers(library, METER_SET)
    makers.go_to(NOW_MS)
    largest = quantity("999999999999999999")
    record = Record(EVENTS_TOPIC, 0, 0, NOW_MS, None, b"[" + b",".join([largest] * 1_000) + b"]")
    makers.enter(makers.native.unknown([record]))
    makers.native.take(record, lambda _place, item: pytest.fail(str(item)))

    (column,) = makers.native.taken().columns

    assert sum(column.minors) == 1_000 * (10**18 - 1) > 2**63


def test_buckets_and_periods_that_end_between_records(library: ctypes.CDLL) -> None:
    """The hour, the report bucket and the month end; events of both months arrive on both sides."""
    makers = BothMakers(library, METER_SET)
    month_end_ms = NOW_MS + DAY_MS + 4 * HOUR_MS
    times = ("2026-11-30T23:59:59.999Z", "2026-12-01T00:00:00Z", "2026-12-01T00:00:30Z")
    record = b"[" + b",".join(event('{"seats":1}', time=time) for time in times) + b"]"
    taken = []
    for offset, after_ms in enumerate((-MINUTE_MS, 0, MINUTE_MS, HOUR_MS, HOUR_MS + 1, 25 * HOUR_MS)):
        makers.go_to(month_end_ms + after_ms)
        makers.enter({"ada"})
        taken.append(makers.compare(offset, record).taken)

    assert taken == [1, 2, 2, 2, 2, 2]


def test_a_period_that_is_closed_is_left_to_python(library: ctypes.CDLL) -> None:
    """The ledger still has the account's old period when its grace has passed."""
    makers = BothMakers(library, METER_SET)
    month_end_ms, record = NOW_MS + DAY_MS + 4 * HOUR_MS, event('{"seats":1}', time="2026-11-30T23:59:00Z")
    taken = []
    for offset, after_ms in enumerate((-1, HOUR_MS - 1, HOUR_MS)):
        makers.go_to(month_end_ms + after_ms)
        taken.append(makers.compare(offset, record).taken)

    assert taken == [1, 1, 0]


@pytest.mark.parametrize("sets", [1, 64, 4_096, 1 << 20])
@pytest.mark.parametrize("count", [0, 1, 700, 5_000])
def test_both_say_the_same_of_any_marks(library: ctypes.CDLL, count: int, sets: int) -> None:
    """Also of the least and the greatest member, of equal ones, and of some that are left out."""
    chance, makers = random.Random(count + sets), BothMakers(library, METER_SET)
    edges = [0, -1, 9, 10, 99, -(2**63), 2**63 - 1, 10**18, -(10**18)]
    members = [chance.choice((chance.choice(edges), chance.getrandbits(64) - 2**63)) for _ in range(count)]
    buckets, positions = [chance.getrandbits(32) for _ in members], range(7, 7 + 3 * count, 3)
    half = count // 2
    segments = [
        Segment(positions[cut], buckets[cut], members[cut], [], []) for cut in (slice(half), slice(half, count))
    ]

    makers.compare_marks(segments, frozenset(positions[::5]), MarkSlice(0, 1, sets))


def test_odd_and_broken_records_of_a_fresh_look(library: ctypes.CDLL) -> None:
    """`make fuzz` takes longer."""
    _, events, taken = fuzz_core(1, FUZZED_S, 1 << 60)

    assert events > taken > events // 3 > 0
