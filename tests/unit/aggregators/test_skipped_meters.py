"""`on_bad`: a meter that cannot use an event's data rejects the event, or leaves it to the other meters."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from aggregators.meters import Failure, compiled, definition_change
from oracle.model import Oracle
from pipeline.rollup.processor import RollupProcessor
from schemas.log import EVENTS_TOPIC, REJECTED_TOPIC
from schemas.meters import MeterSet
from schemas.reasons import Reason
from sinks.redis.fake import FakeLiveView
from tests.worlds.deployment import SECRET, World

NOON_MS: Final = 1_773_144_000_000
CALLS: Final[dict[str, Any]] = {"slug": "calls", "event_type": "t", "aggregation": "count"}
COST: Final[dict[str, Any]] = {
    "slug": "cost", "event_type": "t", "aggregation": "sum", "value_path": "$.cost", "scale": 6,
}  # fmt: skip
USERS: Final[dict[str, Any]] = {
    "slug": "users", "event_type": "t", "aggregation": "unique", "value_path": "$.user", "late": "quarantine",
}  # fmt: skip
SKIP: Final = {"on_bad": "skip_meter"}


def meter_set(*meters: dict[str, Any], version: int = 1) -> MeterSet:
    return MeterSet.model_validate({"version": version, "meters": meters})


def of(data: dict[str, Any], *meters: dict[str, Any]) -> tuple[object, list[tuple[str, Reason]]]:
    """The slugs of the meters that count the event, or the reason of its rejection; and what skips it."""
    rules = compiled(meter_set(*meters))
    result = rules.contributions("t", data, 0)
    skips = [(slug, failure.reason) for slug, failure in rules.skips("t", data, 0)]
    return result.reason if isinstance(result, Failure) else [each.meter.slug for each in result], skips


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param({"user": "u"}, Reason.MISSING_QUANTITY, id="missing cost"),
        pytest.param({"user": "u", "cost": "7.500000000000001e-05"}, Reason.TOO_MANY_DIGITS, id="a float's digits"),
        pytest.param({"user": "u", "cost": -1}, Reason.NEGATIVE_QUANTITY, id="negative"),
        pytest.param({"user": "u", "cost": True}, Reason.BAD_QUANTITY, id="no number"),
        pytest.param({"user": "u", "cost": 10**15}, Reason.QUANTITY_TOO_LARGE, id="too large"),
    ],
)
def test_one_bad_value_costs_its_meter_or_the_event(data: dict[str, Any], reason: Reason) -> None:
    """By default the event counts nowhere. With `skip_meter`, the other meters count it."""
    assert of(data, CALLS, COST, USERS) == (Reason.BAD_FOR_ONE_METER, [])
    assert of(data, CALLS, COST | SKIP, USERS) == (["calls", "users"], [("cost", reason)])
    assert of(data, COST | SKIP) == ([], [("cost", reason)])


def test_a_strict_meter_rejects_the_event_also_beside_a_tolerant_one() -> None:
    """A meter that skips the event does not want it, so the reason is the strict meter's own."""
    assert of({}, COST, USERS | SKIP) == (Reason.MISSING_QUANTITY, [("users", Reason.MISSING_QUANTITY)])
    assert of({}, CALLS, COST, USERS | SKIP)[0] is Reason.BAD_FOR_ONE_METER
    assert of({"cost": 1, "user": 1.5}, CALLS, COST, USERS | SKIP) == (
        ["calls", "cost"], [("users", Reason.BAD_QUANTITY)],
    )  # fmt: skip
    assert of({"user": "u"}, {**CALLS, "dimensions": {"model": "$.user"}} | SKIP) == (["calls"], [])
    assert of({"user": []}, {**CALLS, "dimensions": {"model": "$.user"}} | SKIP) == (
        [], [("calls", Reason.BAD_DIMENSION)],
    )  # fmt: skip


def test_on_bad_may_change_under_a_slug() -> None:
    """What a meter counts of an event it can use stays the same; a recount judges by the meter set of the arrival."""
    assert definition_change(meter_set(COST), meter_set(COST | SKIP, version=2)) is None
    assert definition_change(meter_set(COST | SKIP), meter_set(COST, version=2)) is None


async def test_worker_reports_what_meters_skip_and_counts_as_the_oracle_does() -> None:
    """Nothing is quarantined and nothing is lost: the event is counted, and the skip is noted with its reason."""
    meters = (CALLS, COST | SKIP, USERS | SKIP)
    store = FakeLiveView()
    world = World(NOON_MS, 1, store)
    await world.start(meter_set(*meters))
    oracle = Oracle({"version": 1, "meters": list(meters)})
    bodies = [
        {"specversion": "1.0", "id": f"{number}", "source": "s", "type": "t", "subject": "acme", "data": data}
        for number, data in enumerate([
            {"cost": 1, "user": "u"}, {"user": "u"}, {"cost": "0.0000001"}, {"cost": "1", "user": 1.5}, {},
        ])
    ]  # fmt: skip
    value = json.dumps([*bodies, bodies[1]]).encode()
    offset = await world.log.append(EVENTS_TOPIC, 0, value)
    oracle.feed(0, offset, NOON_MS, value)
    noted: dict[tuple[str, str], int] = {}

    worker = RollupProcessor(
        world.log, world.store.state, world.clock, SECRET,
        note_skipped=lambda slug, reason, events: noted.update({(slug, reason.value): events}),
    )  # fmt: skip
    await world.fold_all(worker)

    assert noted == {
        ("cost", "missing_quantity"): 3, ("cost", "too_many_digits"): 1,
        ("users", "missing_quantity"): 2, ("users", "bad_quantity"): 1,
    }  # fmt: skip
    counters = worker.checkpoints[0].counters
    assert (counters.counted, counters.duplicate, counters.rejected, counters.unmetered) == (5, 1, 0, 0)
    assert await world.records(0, REJECTED_TOPIC) == []
    period = oracle.period("acme", NOON_MS)
    assert oracle.totals == {
        ("acme", "calls", period): 5, ("acme", "cost", period): 2_000_000, ("acme", "users", period): 1,
    }  # fmt: skip
    (totals,) = store.server.partitions[0].totals.values()
    assert dict(totals) == {"calls": "5", "cost": "2000000", "users": "1"}
