"""Periods in the oracle, by hand: closings, carried usage, bindings, and late bindings."""

from __future__ import annotations

import pytest

from oracle.model import Oracle
from oracle.records import Place
from oracle.rules import binding_of, period_containing
from tests.traffic.generate import METER_SET, rfc3339
from tests.worlds.oracle import APRIL, DAY, HOUR, JANUARY_31, MARCH, MAY, NOON, event, feed


def test_late_event_is_carried_forward_or_quarantined_by_its_meter() -> None:
    """I9: the last instant before end + grace is in time. The event keeps its own hour."""
    oracle = Oracle(METER_SET)
    time = rfc3339((APRIL - 1) * 1000)
    seats = event({"seats": 3}, type="seats.changed", time=time)

    assert feed(oracle, event(time=time), at=APRIL + HOUR - 1) == ["counted"]
    assert feed(oracle, event(id="2", time=time), seats | {"id": "3"}, at=APRIL + HOUR) == ["counted", "period_closed"]
    assert oracle.counter_sums()["late"] == 1
    assert list(oracle.totals) == [("a", "storage_gb", (MARCH, APRIL)), ("a", "storage_gb", (APRIL, MAY))]
    assert {cell[3] for cell in oracle.cells} == {APRIL - HOUR}


def test_repeat_that_arrives_after_closing_is_a_duplicate_and_a_first_arrival_is_late() -> None:
    """Usage that was counted in time does not become late through a retry."""
    oracle = Oracle(METER_SET)
    seats = event({"seats": 3}, type="seats.changed", time=rfc3339((APRIL - 1) * 1000))

    assert feed(oracle, seats, at=APRIL) == ["counted"]
    assert feed(oracle, seats, at=APRIL + HOUR) == ["duplicate"]
    assert feed(oracle, {**seats, "id": "another"}, at=APRIL + HOUR) == ["period_closed"]


def test_explicit_close_applies_from_its_place_in_the_log_and_carries_past_closed_periods() -> None:
    """The period of the stream time is closed too, so the next open period takes the event."""
    oracle = Oracle(METER_SET)
    feed(oracle, event())
    oracle.close(0, "a", NOON)
    feed(oracle, event(id="2"))
    oracle.close(0, "a", APRIL)
    feed(oracle, event(id="3"))

    assert [key[2] for key in oracle.totals] == [(MARCH, APRIL), (APRIL, MAY), (MAY, MAY + 31 * DAY)]


@pytest.mark.parametrize(
    ("fields", "instant_ms", "expected"),
    [
        pytest.param({}, JANUARY_31 + 27 * DAY, (JANUARY_31, MARCH - DAY), id="31 Jan to 28 Feb"),
        pytest.param({}, MARCH - DAY, (MARCH - DAY, APRIL - DAY), id="28 Feb to 31 Mar"),
        pytest.param({}, APRIL - DAY, (APRIL - DAY, MAY - DAY), id="31 Mar to 30 Apr"),
        pytest.param({"interval_count": 2}, MARCH, (JANUARY_31, APRIL - DAY), id="two months"),
        pytest.param({"interval": "day"}, NOON, (NOON - 12 * HOUR, NOON + 12 * HOUR), id="day"),
        pytest.param(
            {"interval": "week"}, JANUARY_31 + 7 * DAY, (JANUARY_31 + 7 * DAY, JANUARY_31 + 14 * DAY), id="week"
        ),
        pytest.param({"interval": "year"}, NOON, (JANUARY_31, JANUARY_31 + 365 * DAY), id="year"),
        pytest.param(
            {"interval": "year", "anchor_ms": 1_709_164_800_000},
            NOON,
            (MARCH - DAY, APRIL + 333 * DAY),
            id="29 Feb 2024",
        ),
    ],
)
def test_periods_count_from_the_anchor_without_drift(
    fields: dict[str, object], instant_ms: int, expected: tuple[int, int]
) -> None:
    """I8, by the calendar of 2026; the anchor is 31 January 2026."""
    binding = binding_of({"effective_from_ms": JANUARY_31 - 2000 * DAY, "anchor_ms": JANUARY_31, **fields})
    assert period_containing([binding], instant_ms) == expected


REACH = NOON + 6 * 60_000  # the first whole minute after stream time plus the future limit of five minutes


def test_binding_cuts_the_running_period_after_every_event_that_it_may_contain() -> None:
    """Before the first binding, calendar months apply. No accepted event can lie after the cut."""
    oracle = Oracle(METER_SET)
    oracle.bind(0, "a", {"effective_from_ms": MARCH, "billing": "free"}, NOON)
    oracle.bind(0, "a", {"effective_from_ms": MARCH, "anchor_ms": MARCH + 14 * DAY, "interval": "month"})

    assert oracle.period("a", REACH - 1) == (MARCH, REACH)
    assert oracle.period("a", REACH) == (REACH, MARCH + 14 * DAY)
    assert oracle.period("b", NOON) == (MARCH, APRIL)


def test_binding_without_a_new_anchor_cuts_nothing() -> None:
    """A new customer in the middle of a month does not end the month."""
    oracle = Oracle(METER_SET)
    oracle.bind(0, "a", {"effective_from_ms": MARCH}, NOON)

    assert oracle.period("a", NOON) == (MARCH, APRIL)


def test_later_binding_replaces_those_that_take_effect_with_it_or_after_it() -> None:
    """The newest record wins if two are effective at the same instant."""
    oracle = Oracle(METER_SET)
    for effective_ms, interval in ((APRIL, "week"), (MAY, "week"), (APRIL, "day")):
        oracle.bind(0, "a", {"effective_from_ms": effective_ms, "anchor_ms": MARCH, "interval": interval}, NOON)

    assert oracle.period("a", MAY + DAY) == (MAY + DAY, MAY + 2 * DAY)
    assert oracle.period("a", APRIL - 1) == (MARCH, APRIL)


def test_binding_that_arrives_within_a_minute_starts_with_the_next() -> None:
    """Bindings take effect at whole minutes, and the past is not cut again."""
    oracle = Oracle(METER_SET)
    oracle.bind(0, "a", {"effective_from_ms": MARCH, "billing": "free"}, NOON)
    oracle.bind(0, "a", {"effective_from_ms": MARCH, "interval": "day"}, NOON + 1)

    assert oracle.period("a", REACH)[0] == REACH


def test_late_binding_restates_all_usage_as_if_it_had_come_first() -> None:
    """Usage on both sides of the cut, and the distinct values of each period. Later events wait for the restatement."""
    of_samples = {"event_type": "storage.sampled"}
    meters = [
        {"slug": "n", "aggregation": "count", **of_samples},
        {"slug": "gb", "aggregation": "sum", "value_path": "$.gb", **of_samples},
        {"slug": "users", "aggregation": "unique", "value_path": "$.user", **of_samples},
    ]
    oracle, cut_ms = Oracle({"version": 1, "meters": meters}), NOON - 2 * HOUR
    for number, at_ms in enumerate((NOON - 3 * HOUR, NOON - HOUR, NOON)):
        body = event({"gb": 10**number, "user": "same"}, id=f"e{number}", time=rfc3339(at_ms * 1000))
        assert feed(oracle, body, offset=number, at=at_ms) == ["counted"]
    oracle.bind(0, "a", {"effective_from_ms": cut_ms, "anchor_ms": cut_ms, "interval": "day"}, NOON, 5)
    oracle.begin_restatement(0, "a", 4, 6, NOON)
    oracle.begin_restatement(0, "a", 5, 7, NOON)
    assert feed(oracle, event({"gb": 1000, "user": "new"}, id="e3"), offset=8) == ["deferred"]

    def totals() -> dict[tuple[str, int], int]:
        return {(meter, period[0]): value for (_, meter, period), value in oracle.totals.items()}

    oracle.restatement(0, "a", 6, timestamp_ms=NOON)
    oracle.resolve(Place(0, 8, 0), 9, 0, NOON)
    assert totals() == {("n", MARCH): 3, ("gb", MARCH): 111, ("users", MARCH): 1}

    for _ in range(2):
        oracle.restatement(0, "a", 7, timestamp_ms=NOON)
        assert totals() == {
            ("n", MARCH): 1, ("gb", MARCH): 1, ("users", MARCH): 1,
            ("n", cut_ms): 2, ("gb", cut_ms): 110, ("users", cut_ms): 1,
        }  # fmt: skip
    oracle.resolve(Place(0, 8, 0), 10, 0, NOON)
    assert (totals()["n", cut_ms], totals()["gb", cut_ms], totals()["users", cut_ms]) == (3, 1110, 2)
    assert sum(value for cell, value in oracle.cells.items() if cell[1] == "gb") == 1111


@pytest.mark.parametrize("billing", ["mapped", "free"])
def test_binding_of_an_account_that_had_a_payer_is_not_late(billing: str) -> None:
    """Usage that may have been sent to Stripe, or settled as free, keeps its period."""
    oracle = Oracle(METER_SET)
    oracle.bind(0, "a", {"effective_from_ms": 0, "billing": billing}, NOON)
    oracle.bind(0, "a", {"effective_from_ms": MARCH, "anchor_ms": MARCH, "interval": "day"}, NOON)

    assert oracle.period("a", NOON) == (MARCH, REACH)
    assert feed(oracle, event()) == ["counted"]


def test_flush_notes_the_totals_before_it_and_no_bucket_is_empty() -> None:
    """A report bucket is an hour by default. A flush that comes again, or at the end of the bucket, notes nothing."""
    oracle = Oracle(METER_SET)
    for number, at in enumerate((NOON, NOON, NOON + 1, NOON + HOUR - 1, NOON + HOUR - 1)):
        feed(oracle, event({"gigabytes": number + 1}, id=str(number)), at=at)
        oracle.flush(0, "a", at, revision=number + 1)
        oracle.flush(0, "a", at, revision=1)

    peaks = {instant: values["a", "storage_gb", (MARCH, APRIL)] for (_, instant), values in oracle.flushed.items()}
    unit = peaks[NOON + 1]
    assert peaks == {NOON + 1: unit, NOON + 2: 2 * unit, NOON + 3: 3 * unit, NOON + HOUR - 1: 4 * unit}
    assert oracle.accounts.repeated == {"a": 5}
