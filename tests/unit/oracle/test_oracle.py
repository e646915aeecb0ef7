"""The oracle's own vectors, calculated by hand, and the promises of the generated traffic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiokafka.partitioner import murmur2 as kafka_murmur2

from oracle.model import COUNTERS, Oracle
from oracle.producers import from_producer_files
from oracle.records import Place
from oracle.rules import decode, murmur2, partition_of, time_us_of
from tests.traffic.faults import EVENT_FAULTS, RECORD_FAULTS
from tests.traffic.generate import METER_SET, Rates, records, rfc3339
from tests.worlds.oracle import APRIL, HOUR, MARCH, NOON, event, feed


def only_meter(**fields: object) -> dict[str, Any]:
    return {"version": 1, "meters": [{"slug": "m", "event_type": "storage.sampled", **fields}]}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({}, "counted", id="valid"),
        pytest.param({"type": "nobody.wants"}, "unmetered", id="unmetered"),
        pytest.param({"specversion": "0.3", "time": "never"}, "bad_field", id="field before time"),
        pytest.param({"id": "", "time": "never"}, "bad_field", id="empty id"),
        pytest.param({"id": "x" * 129}, "bad_field", id="id of 129 characters"),
        pytest.param({"id": "ß" * 128}, "counted", id="id of 128 characters, not bytes"),
        pytest.param({"data": None, "type": "page.viewed"}, "unmetered", id="data null is no data"),
        pytest.param({"time": "2026-03-10T12:00:00"}, "bad_time", id="no offset"),
        pytest.param({"time": "2026-03-10t14:00:00.1234567+02:00"}, "counted", id="offset and seven digits"),
        pytest.param({"time": rfc3339(NOON * 1000 + 300_000_000)}, "counted", id="future limit itself"),
        pytest.param({"time": rfc3339(NOON * 1000 + 300_000_001)}, "too_far_in_future", id="just beyond the future"),
        pytest.param({"time": rfc3339((NOON - 72 * HOUR + 300_000) * 1000)}, "counted", id="window itself"),
        pytest.param({"time": rfc3339((NOON - 72 * HOUR + 300_000) * 1000 - 1)}, "deferred", id="just outside"),
        pytest.param({"time": rfc3339((NOON - 35 * 24 * HOUR) * 1000)}, "deferred", id="late limit itself"),
        pytest.param({"time": rfc3339((NOON - 35 * 24 * HOUR) * 1000 - 1)}, "too_old", id="just beyond the late limit"),
        pytest.param({"time": "1970-01-01T00:00:00Z"}, "too_old", id="first instant"),
        pytest.param(
            {"type": "tidemark.adjusted.storage_gb", "data": {"quantity": "1"}, "time": "1970-01-01T00:00:00Z"},
            "deferred",
            id="an adjustment is never too old",
        ),
        pytest.param({"time": None}, "counted", id="time null"),
        pytest.param({"time": "1969-12-31T23:59:59.999999Z"}, "too_far_in_past", id="just before 1970"),
        pytest.param({"time": "0001-01-01T00:00:00Z", "data": {}}, "too_far_in_past", id="time before quantity"),
        pytest.param({"extension": "x" * 70_000, "id": 7}, "too_large", id="size before fields"),
        pytest.param({"data": {}}, "missing_quantity", id="no quantity"),
        pytest.param({"data": {"gigabytes": None}}, "missing_quantity", id="null"),
        pytest.param({"data": {"gigabytes": "12.5"}}, "counted", id="decimal string"),
        pytest.param({"data": {"gigabytes": "1.0000"}}, "counted", id="zeros are no digits"),
        pytest.param({"data": {"gigabytes": "1.0001"}}, "too_many_digits", id="four digits at scale 3"),
        pytest.param({"data": {"gigabytes": "999999999999999.999"}}, "counted", id="largest"),
        pytest.param({"data": {"gigabytes": 10**15}}, "quantity_too_large", id="one more than the largest"),
        pytest.param({"data": {"gigabytes": "1e999999999"}}, "quantity_too_large", id="huge exponent costs nothing"),
        pytest.param({"data": {"gigabytes": "-0.0"}}, "counted", id="minus nothing"),
        pytest.param({"data": {"gigabytes": "-0.001"}}, "negative_quantity", id="negative"),
        pytest.param({"data": {"gigabytes": 1, "tier": 1.5}}, "bad_dimension", id="fraction as dimension"),
        pytest.param({"data": {"gigabytes": 1, "tier": None}}, "counted", id="null as dimension"),
        pytest.param({"type": "api.request", "data": {"user": []}}, "bad_for_one_meter", id="two meters, all or none"),
        pytest.param(
            {"type": "completion.finished", "data": {"model": "other"}}, "unmetered", id="filtered out before checks"
        ),
    ],
)
def test_each_rule_decides_one_event(changes: dict[str, object], expected: str) -> None:
    """The order of the checks is part of the contract: the first reason wins."""
    assert feed(Oracle(METER_SET), event() | changes) == [expected]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param(b"\xff", "bad_encoding", id="not UTF-8"),
        pytest.param(b"", "bad_json", id="empty"),
        pytest.param(b"[1,", "bad_json", id="cut off"),
        pytest.param(b'{"a":NaN}', "bad_json", id="NaN"),
        pytest.param(b'{"a":-Infinity}', "bad_json", id="Infinity"),
        pytest.param('{"a":1}'.encode("utf-16"), "bad_encoding", id="UTF-16 is not guessed"),
        pytest.param(b"[" * 100_000, "too_deep", id="deep and cut off"),
        pytest.param(b"[" + b"0," * 65_536 + b"0]", "too_many_events", id="65 537 events"),
        pytest.param(b"17", "not_an_event", id="a number"),
    ],
)
def test_rejected_record_counts_as_one_event(value: bytes, reason: str) -> None:
    """I1 needs one received event for one rejected record."""
    oracle = Oracle(METER_SET)
    oracle.feed(0, 0, NOON, value)

    assert [verdict.reason for verdict in oracle.rulings.values()] == [reason]
    assert oracle.counter_sums() == dict.fromkeys(COUNTERS, 0) | {"received": 1, "rejected": 1}


def test_repeats_of_every_kind_are_duplicates_and_the_first_wins() -> None:
    """I3: the account is part of the identity; timestamp and payload are not."""
    oracle = Oracle(METER_SET)
    first = event({"gigabytes": 5})
    outcomes = feed(
        oracle,
        first,
        first,
        first | {"time": rfc3339((NOON - 2 * HOUR) * 1000)},
        event({"gigabytes": 9}),
        event({"gigabytes": "bad"}),
        event(subject="b"),
        event(id="2", type="nobody.wants"),
        event(id="2", type="nobody.wants"),
    )

    assert outcomes == ["counted", *["duplicate"] * 3, "bad_quantity", "counted", "unmetered", "duplicate"]
    assert oracle.conflicts == {("a", "1")}
    assert [duplicate.conflict for duplicate in oracle.duplicates] == [False, False, True, False]
    totals = {account: total for (account, _, _), total in oracle.totals.items()}
    assert totals == {"a": 5_000, "b": 1_000}

    seats = event({"seats": 3}, id="3", type="seats.changed")
    feed(oracle, seats, seats, seats | {"id": "4"}, seats | {"id": "4", "time": rfc3339((NOON - HOUR) * 1000)})
    assert oracle.order_sensitive == {("a", "1"), ("a", "4")}


def test_same_id_of_another_source_or_type_is_a_conflict() -> None:
    """The identity is (account, id) alone: the second operation is not counted, and that is reported."""
    oracle = Oracle(METER_SET)
    outcomes = feed(
        oracle,
        event({"gigabytes": 1}),
        event({"gigabytes": 1}, source="another"),
        event({"gigabytes": 1}, id="2"),
        event({"gigabytes": 1}, id="2", type="page.viewed"),
    )

    assert outcomes == ["counted", "duplicate", "counted", "duplicate"]
    assert oracle.conflicts == {("a", "1"), ("a", "2")}


def test_rejected_event_leaves_no_mark() -> None:
    """A corrected event with the same id must count."""
    assert feed(Oracle(METER_SET), event({"gigabytes": -1}), event({"gigabytes": 1})) == [
        "negative_quantity",
        "counted",
    ]


@pytest.mark.parametrize(
    ("fields", "values", "total", "cells"),
    [
        pytest.param({"aggregation": "count"}, [{}, {}, {}], 3, [2, 1], id="count"),
        pytest.param(
            {"aggregation": "sum", "value_path": "$.v", "scale": 2}, [1, "0.25", 3], 425, [125, 300], id="sum"
        ),
        pytest.param(
            {"aggregation": "max", "value_path": "$.v", "allow_negative": True}, [-5, -9, -7], -5, [-5, -7], id="max"
        ),
        pytest.param({"aggregation": "unique", "value_path": "$.v"}, ["1", True, 1], 2, [2, 0], id="unique"),
        pytest.param({"aggregation": "latest", "value_path": "$.v"}, [4, 6, 5], 5, [6, 5], id="latest"),
    ],
)
def test_aggregation_of_two_events_in_one_hour_and_one_in_the_next(
    fields: dict[str, object], values: list[object], total: int, cells: list[int]
) -> None:
    """Totals and cells by hand. Text "1" and number 1 are one value; of equal times the later position wins."""
    oracle = Oracle(only_meter(**fields))
    hours = [rfc3339(NOON * 1000), rfc3339(NOON * 1000), rfc3339((NOON + HOUR) * 1000)]
    for index, value in enumerate(values):
        assert feed(oracle, event({"v": value}, id=str(index), time=hours[index]), at=NOON + HOUR) == ["counted"]

    assert oracle.totals == {("a", "m", (MARCH, APRIL)): total}
    merged = {} if fields["aggregation"] == "unique" else {("a", "m", (MARCH, APRIL), "{}"): total}
    assert oracle.by_dimension() == merged
    assert list(oracle.cells.values()) == cells
    assert [cell[3:] for cell in oracle.cells] == [(NOON, "{}", NOON + HOUR), (NOON + HOUR, "{}", NOON + HOUR)]


def test_dimensions_are_compact_sorted_text_and_a_missing_one_is_empty() -> None:
    """Cells are compared as text with the contents of the stores."""
    oracle = Oracle(METER_SET)
    feed(oracle, event({"region": True, "user": 1}, type="api.request"))
    feed(oracle, event({"method": "GET", "region": "é", "user": 1}, type="api.request", id="2"))

    assert [key[3] for key in oracle.by_dimension()] == [
        '{"method":"","region":"true"}',
        '{"method":"GET","region":"é"}',
    ]


def test_unique_value_seen_in_two_arrival_buckets_belongs_to_the_first() -> None:
    """A cell's value is the number of values that the period saw first in the cell's events."""
    oracle = Oracle(only_meter(aggregation="unique", value_path="$.v"))
    feed(oracle, event({"v": "x"}))
    feed(oracle, event({"v": "x"}, id="2"), at=NOON + HOUR)

    assert list(oracle.cells.values()) == [1, 0]


def test_stream_time_never_goes_back() -> None:
    """Stream time is the running maximum, so a record with an older append time gets the newer bucket."""
    oracle = Oracle(METER_SET)
    oracle.tick(0, NOON + HOUR)
    feed(oracle, event(), at=NOON)

    assert [cell[5] for cell in oracle.cells] == [NOON + HOUR]
    assert oracle.counter_sums()["received"] == 1


def test_meter_set_applies_from_its_place_in_the_log() -> None:
    """An unmetered event stays unmetered when its repetition arrives under a meter set that wants the event."""
    oracle = Oracle({"version": 1, "meters": []})
    assert feed(oracle, event()) == ["unmetered"]
    oracle.set_meter_set(0, METER_SET)
    assert feed(oracle, event(), event(id="2")) == ["duplicate", "counted"]


def test_record_order_is_enforced() -> None:
    """Records in another order would make the oracle wrong silently."""
    oracle = Oracle(METER_SET)
    feed(oracle, event(), offset=5)
    with pytest.raises(ValueError, match="in order"):
        feed(oracle, event(), offset=5)


def test_murmur2_is_kafkas() -> None:
    """Written independently; with all tail lengths, and text beyond ASCII."""
    samples = [bytes(range(200, 200 + length)) for length in range(40)]
    samples += [f"acct_{number}_ß".encode() for number in range(500)]

    assert [murmur2(sample) for sample in samples] == [kafka_murmur2(sample) for sample in samples]
    assert {partition_of(f"acct_{number}", 8) for number in range(500)} == set(range(8))


def test_rfc3339_survives_writing_and_reading() -> None:
    """Generator and oracle must agree on time before either can judge anything."""
    for shift_minutes in (0, 120, -330):
        assert time_us_of(rfc3339(NOON * 1000 + 123_456, shift_minutes=shift_minutes)) == NOON * 1000 + 123_456


def test_same_seed_gives_the_same_bytes() -> None:
    """A failing seed must be repeatable."""
    once, again, other = (list(records(seed, 20, 2_000, NOON * 1000, partitions=4)) for seed in (1, 1, 2))
    assert once == again
    assert once != other


@pytest.mark.parametrize("partitions", [1, 4])
def test_traffic_meets_every_outcome_and_malformed_events_their_own_reason(partitions: int) -> None:
    """Across a month's end, so periods close during the run. Each fault is rejected for its own reason."""
    rates = Rates(malformed=0.2)
    start_us, span_us = (APRIL - 12 * HOUR) * 1000, 36 * HOUR * 1000
    oracle = Oracle(METER_SET, partitions=partitions)
    met, sent = set(), 0
    for offset, record in enumerate(
        records(7, 50, 6_000, start_us, partitions=partitions, span_us=span_us, rates=rates)
    ):
        oracle.feed(record.partition, offset, record.sent_ms, record.value, record.headers)
        sent += len(record.kinds)
        for index, kind in enumerate(record.kinds):
            verdict = oracle.rulings[Place(record.partition, offset, index)]
            met.add(verdict.reason or verdict.outcome)
            expected = kind if kind in EVENT_FAULTS + RECORD_FAULTS else None
            assert (verdict.reason if verdict.outcome == "rejected" else None) == expected, record.value[:500]

    wrong = {"wrong_partition"} if partitions == 1 else set()
    assert met == {*EVENT_FAULTS, *RECORD_FAULTS, "counted", "duplicate", "unmetered", "period_closed"} - wrong
    sums = oracle.counter_sums()
    assert sums["received"] == sent == sum(sums[name] for name in COUNTERS[1:])
    assert {key[1] for key in oracle.totals} == {meter["slug"] for meter in METER_SET["meters"]}
    assert oracle.conflicts


def test_sums_of_cells_are_the_totals_of_additive_meters() -> None:
    """Two ways of counting must agree, `unique` included: first sightings add up within a period."""
    oracle = Oracle(METER_SET)
    for offset, record in enumerate(records(3, 5, 3_000, NOON * 1000)):
        oracle.feed(0, offset, record.sent_ms, record.value, record.headers)
    for key, total in oracle.totals.items():
        values = [value for cell, value in oracle.cells.items() if cell[:3] == key]
        assert total in (
            {"storage_gb": [max(values)], "lowest_balance": [min(values)], "seats": values}.get(key[1]) or [sum(values)]
        )


def test_producer_files_recount_the_same_in_any_order(tmp_path: Path) -> None:
    """Lines count in the order in which they were sent, in any file; an incomplete line is cut off."""
    lines = []
    for record in records(5, 10, 400, NOON * 1000, rates=Rates(malformed=0)):
        events = record.value if record.value.startswith(b"[") else b"[" + record.value + b"]"
        lines.append(b'{"sent_at":%d,"events":%s}\n' % (record.sent_ms, events))
    left, right = tmp_path / "left", tmp_path / "right"
    left.write_bytes(b"".join(lines[::2]) + b'{"sent_at":17,"ev')
    right.write_bytes(b"".join(reversed(lines[1::2])))
    live = Oracle(METER_SET)
    for offset, line in enumerate(lines):
        (parsed,) = decode(line)
        live.feed(0, offset, parsed["sent_at"], line[line.index(b"[") : -2])

    recounts = [from_producer_files(paths, METER_SET) for paths in ((left, right), (right, left))]

    assert live.totals
    assert live.duplicates
    for recount in recounts:
        assert recount.totals == live.totals
        assert recount.by_dimension() == live.by_dimension()
        assert recount.counter_sums() == live.counter_sums()


def test_broken_producer_line_is_an_error(tmp_path: Path) -> None:
    """A recount that skipped lines would prove nothing."""
    path = tmp_path / "producer"
    path.write_bytes(b'{"sent_at":1}\n')
    with pytest.raises(ValueError, match="not a producer's line"):
        from_producer_files([path], METER_SET)
