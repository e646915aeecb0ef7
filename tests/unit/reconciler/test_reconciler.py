"""Each test injects one cause into a deployment whose views agree; the reconciler reports that cause."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest

from aggregators.codec import parse_value
from pipeline.billing.redrive import Redriver, failed_intents
from reconciler.causes import Cause, Pair, Verdict
from reconciler.report import GaugeKey, gauge_values
from reconciler.views import ReconcilePolicy
from schemas.analytics import RecountKey
from schemas.clock import HOUR_MS
from schemas.log import REPORTS_TOPIC
from schemas.reports import Intent, Rejection
from schemas.rollup import TotalKey
from sinks.stripe.fake import FakeFault, FakeStripe, HeldEvent
from tests.worlds.reconciler import (
    DECEMBER_MS,
    METER_SET,
    NOVEMBER_MS,
    START_MS,
    Deployment,
    after,
    causes_by_pair,
    rows_of,
    settled,
)


async def test_views_that_agree_are_equal_and_everything_is_compared() -> None:
    """The baseline of every other test: nothing in flight, nothing unchecked."""
    report = await (await settled()).reconcile()

    assert report.verdict is Verdict.EQUAL
    assert report.rows == ()
    assert {s.pair: s.compared for s in report.summaries} == {
        Pair.REDIS: 20, Pair.HOURLY: 64, Pair.INTENTS: 16, Pair.STRIPE: 16, Pair.INVOICES: 0, Pair.MIRROR: 0,
        Pair.ENTITLEMENTS: 0, Pair.FLAGS: 0, Pair.REVENUE: 0, Pair.CREDITS: 0, Pair.MEASURED: 0,
        Pair.COUNTERS: 4, Pair.DUPLICATES: 0,
    }  # fmt: skip
    assert all(s.equal == s.compared for s in report.summaries)


def lose_event(deployment: Deployment) -> None:
    key = next(key for key, row in deployment.clickhouse.events.items() if row.account == "ada" and "gb" in row.data)
    del deployment.clickhouse.events[key]


def add_event(deployment: Deployment) -> None:
    key, row = next((key, row) for key, row in deployment.clickhouse.events.items() if row.account == "bob")
    deployment.clickhouse.events[key[0], "nobody sent it"] = row._replace(id="nobody sent it")


async def test_a_row_lost_from_the_archive_is_missing_there_and_not_extra_elsewhere() -> None:
    """Redis, usage_hourly and the intents agree with each other, so the archive is wrong."""
    report = await after(lose_event)

    assert report.verdict is Verdict.DRIFT
    pairs = (Pair.REDIS, Pair.HOURLY, Pair.INTENTS, Pair.COUNTERS)
    assert causes_by_pair(report) == {(pair, Cause.MISSING) for pair in pairs}
    assert all("missing in usage_events" in row.detail for row in report.rows)
    assert {row.account for row in report.rows if row.pair is not Pair.COUNTERS} == {"ada"}
    requests = next(row for row in report.rows if row.pair is Pair.REDIS and row.meter == "requests")
    assert (requests.expected, requests.found) == ("11", "12")


async def test_a_row_added_to_the_archive_is_extra_there() -> None:
    """A broken import repeats an id under another name."""
    report = await after(add_event)

    assert report.verdict is Verdict.DRIFT
    assert {cause for _, cause in report.causes} == {Cause.EXTRA}
    assert all("extra in usage_events" in row.detail for row in report.rows)
    assert {row.account for row in report.rows if row.pair is not Pair.COUNTERS} == {"bob"}


async def test_the_archived_count_shows_that_an_archive_lost_an_event_of_an_open_bucket() -> None:
    """An open hour has no settled cell to compare; the checkpoint's counters give the number of events."""
    deployment = await settled()
    await deployment.emit("ada", id="in the open hour", gb="7", user="user-1", region="eu")
    await deployment.fold()
    await deployment.archive()
    del deployment.clickhouse.events["ada", "in the open hour"]

    report = await deployment.reconcile()

    (count,) = rows_of(report, Cause.MISSING, Pair.COUNTERS)
    assert int(count.expected) == int(count.found) + 1
    assert all("missing in usage_events" in row.detail for row in rows_of(report, Cause.MISSING))
    assert not rows_of(report, Cause.EXTRA)


@pytest.mark.parametrize(
    ("change", "cause", "expected", "found"),
    [
        pytest.param(1, Cause.EXTRA, "11.535", "11.536", id="one minor unit more"),
        pytest.param(-11_535, Cause.MISSING, "11.535", "0", id="all of it"),
    ],
)
async def test_an_altered_redis_total_is_reported_with_exact_quantities(
    change: int, cause: Cause, expected: str, found: str
) -> None:
    """usage_hourly agrees with the recount, so Redis differs."""

    def alter(deployment: Deployment) -> None:
        totals = deployment.totals("ada")
        totals["gigabytes"] = str(parse_value(totals["gigabytes"]).minor + change)

    report = await after(alter)

    (row,) = report.rows
    assert (row.pair, row.cause, row.account, row.meter) == (Pair.REDIS, cause, "ada", "gigabytes")
    assert (row.expected, row.found, row.period) == (expected, found, (NOVEMBER_MS, DECEMBER_MS))
    assert report.verdict is Verdict.DRIFT


async def test_a_total_that_redis_lacks_is_missing_and_one_that_nothing_explains_is_extra() -> None:
    """Both directions: keys that only the recount has, and keys that only Redis has."""

    def swap(deployment: Deployment) -> None:
        partition = deployment.store.server.partitions[deployment.partition("cyd")]
        total = partition.totals.pop(TotalKey("cyd", NOVEMBER_MS))
        partition.totals[TotalKey("cyd", DECEMBER_MS)] = total

    report = await after(swap)

    assert {(row.cause, row.meter) for row in rows_of(report, Cause.MISSING, Pair.REDIS)} == {
        (Cause.MISSING, slug) for slug in ("requests", "gigabytes", "peak", "users", "seats")
    }
    assert {row.found for row in rows_of(report, Cause.MISSING)} == {""}
    assert {row.expected for row in rows_of(report, Cause.EXTRA)} == {""}
    assert len(report.rows) == 10


def hourly_key(deployment: Deployment, meter: str) -> RecountKey:
    return next(key for key in deployment.clickhouse.cells if key.account == "dora" and key.meter == meter)


@pytest.mark.parametrize(
    ("meter", "change", "cause", "per_hour"),
    [
        pytest.param("requests", None, Cause.MISSING, True, id="row deleted"),
        pytest.param("gigabytes", 5, Cause.EXTRA, True, id="value too large"),
        pytest.param("peak", -1, Cause.MISSING, False, id="max too small: reported per period"),
        pytest.param("seats", None, Cause.MISSING, False, id="latest deleted: reported per period"),
    ],
)
async def test_an_altered_hourly_row_is_reported(meter: str, change: int | None, cause: Cause, per_hour: bool) -> None:
    """Per hour if hours add up, otherwise per period."""

    def alter(deployment: Deployment) -> None:
        key = hourly_key(deployment, meter)
        row = deployment.clickhouse.cells.pop(key)
        if change is not None:
            deployment.clickhouse.cells[key] = row._replace(value_minor=row.value_minor + change)

    report = await after(alter)

    (row,) = report.rows
    assert (row.pair, row.cause, row.account, row.meter) == (Pair.HOURLY, cause, "dora", meter)
    assert (row.hour_ms is not None) == per_hour
    assert row.period == (NOVEMBER_MS, DECEMBER_MS)


async def test_an_intent_that_was_never_published_is_missing() -> None:
    """All views count the usage, but Stripe never gets it: the least visible loss."""

    def lose(deployment: Deployment) -> None:
        for partition in range(deployment.world.partitions):
            records = deployment.log._partition(REPORTS_TOPIC, partition).records
            victim = next((record for record in records if b'"kind":"intent"' in (record.value or b"")), None)
            if victim is not None:
                identifier = msgspec.json.decode(victim.value or b"")["identifier"].encode()
                records[:] = [record for record in records if identifier not in (record.value or b"")]
                return

    report = await after(lose)

    (row,) = rows_of(report, Cause.MISSING, Pair.INTENTS)
    assert row.detail == "missing in the intents"
    # Stripe has the event although no intent explains it.
    assert causes_by_pair(report) == {(Pair.INTENTS, Cause.MISSING), (Pair.STRIPE, Cause.EXTRA)}


async def test_an_intent_that_no_usage_explains_is_extra() -> None:
    """A foreign record in billing.reports, or two rollups that published under different identifiers."""
    deployment = await settled()
    forged = Intent(
        identifier="tm_forged", livemode=False, stripe_account="", log_id=deployment.world.log_id, meter="requests",
        event_name="requests", account="ada", period_start_ms=NOVEMBER_MS, period_end_ms=DECEMBER_MS,
        bucket_start_ms=START_MS, bucket_end_ms=START_MS + HOUR_MS, delta_minor=3, scale=0,
    )  # fmt: skip
    await deployment.log.append(REPORTS_TOPIC, deployment.partition("ada"), forged.model_dump_json().encode())

    report = await deployment.reconcile()

    (row,) = rows_of(report, Cause.EXTRA)
    assert (row.pair, row.account, row.meter, row.expected, row.found) == (
        Pair.INTENTS, "ada", "requests", "12", "15",
    )  # fmt: skip
    assert [row.detail for row in rows_of(report, Cause.IN_FLIGHT)] == ["1 intents wait: not settled yet"]


async def test_a_meter_event_that_stripe_counts_twice_is_extra() -> None:
    """Stripe would bill the event twice, here because Stripe forgot an identifier after a day."""

    def twice(deployment: Deployment) -> None:
        event = deployment.sent("bob", "gigabytes")
        deployment.stripe.inject(event._replace(identifier="sent again"))

    report = await after(twice)

    (row,) = report.rows
    assert (row.pair, row.cause, row.stripe_customer) == (Pair.STRIPE, Cause.EXTRA, "cus_bob")
    assert (row.account, row.meter, row.period) == ("bob", "gigabytes", (NOVEMBER_MS, DECEMBER_MS))
    assert (row.expected, row.found) == ("20.535", "27.08")


@pytest.mark.parametrize("rejections", [True, False], ids=["error reports read", "error reports not read"])
async def test_a_meter_event_that_stripe_rejects_after_its_answer_is_rejected_by_stripe(rejections: bool) -> None:
    """A 200 is no acceptance: only Stripe's sum shows the loss."""
    deployment = await settled(rejections=rejections)
    stored = next(stored for stored in deployment.stripe.events if stored.event.event_name == "users")
    stored.code = "meter_event_no_customer_defined"

    report = await deployment.reconcile()

    (row,) = report.rows
    assert (row.pair, row.cause) == (Pair.STRIPE, Cause.REJECTED_BY_STRIPE)
    assert ("meter_event_no_customer_defined" in row.detail) == rejections


async def rejected_reduction() -> tuple[Deployment, HeldEvent]:
    """A deployment and its report of -5 seats, which Stripe confirmed and then rejected."""
    deployment = await Deployment().start({**METER_SET, "meters": [
        {**meter, "stripe_event_name": meter["slug"]} for meter in METER_SET["meters"]
    ]})  # fmt: skip
    for seats in (9, 4):
        await deployment.emit("ada", type_="seats", seats=seats)
        await deployment.settle()
    stored = next(each for each in deployment.stripe.events if each.event.value == "-5")
    stored.code = "meter_event_invalid_value"
    return deployment, stored


async def test_every_row_names_a_meter_by_its_slug() -> None:
    """Stripe's event name is another word for the same meter: a person looks one word up in all views."""
    deployment = await Deployment().start({**METER_SET, "meters": [
        {**meter, "stripe_event_name": f"prefix_{meter['slug']}"} for meter in METER_SET["meters"]
    ]})  # fmt: skip
    await deployment.emit("ada", type_="seats", seats=9)
    await deployment.settle()
    deployment.stripe.events[0].code = "meter_event_invalid_value"
    deployment.totals("ada")["seats"] = "8"

    report = await deployment.reconcile()

    assert {row.pair for row in report.rows} >= {Pair.REDIS, Pair.STRIPE}
    assert {row.meter for row in report.rows} == {"seats"}


async def test_a_reduction_that_stripe_rejects_is_rejected_by_stripe_and_not_extra() -> None:
    """Stripe's sum is then too high, although nobody sent anything twice."""
    deployment, _ = await rejected_reduction()

    report = await deployment.reconcile()

    (row,) = report.rows
    assert (row.pair, row.cause, row.expected, row.found) == (Pair.STRIPE, Cause.REJECTED_BY_STRIPE, "4", "9")


@pytest.mark.parametrize(
    ("sent_besides", "cause"),
    [([], Cause.REJECTED_BY_STRIPE), (["1"], Cause.EXTRA)],
    ids=["as much as the reduction", "more than the reduction"],
)
async def test_a_rejected_reduction_outside_stripes_samples_is_recognised_by_its_amount(
    monkeypatch: pytest.MonkeyPatch, sent_besides: list[str], cause: Cause
) -> None:
    """Stripe names only samples of its rejections. The meter had rejections, and the difference equals the amount."""
    deployment, stored = await rejected_reduction()
    for number, value in enumerate(sent_besides):
        event = stored.event._replace(identifier=f"somebody else's {number}", value=value)
        deployment.stripe.events.append(dataclasses.replace(stored, event=event, code=""))
    rejections = deployment.stripe.rejections

    async def without_samples(_stripe: FakeStripe, since_ms: int) -> list[Rejection]:
        return [each._replace(identifiers=("another",)) for each in await rejections(since_ms)]

    monkeypatch.setattr(FakeStripe, "rejections", without_samples)

    (row,) = (await deployment.reconcile()).rows
    assert (row.cause, "sent twice, or by somebody else" in row.detail) == (cause, True)


async def test_a_meter_event_that_vanished_without_a_rejection_is_missing() -> None:
    """Stripe answered 200, reports no error, and does not count the event."""

    def vanish(deployment: Deployment) -> None:
        deployment.stripe.events[:] = [
            stored for stored in deployment.stripe.events if stored.event != deployment.sent("ada", "requests")
        ]

    report = await after(vanish)

    (row,) = report.rows
    assert (row.pair, row.cause, row.meter) == (Pair.STRIPE, Cause.MISSING, "requests")


async def test_a_dead_letter_is_rejected_by_stripe_with_stripes_message() -> None:
    """The operator needs Stripe's own words."""
    deployment = await Deployment().start()
    deployment.stripe.fault = lambda event: FakeFault.BAD_REQUEST if event.event_name == "peak" else None
    await deployment.traffic(1)
    await deployment.settle()

    report = await deployment.reconcile()

    rows = rows_of(report, Cause.REJECTED_BY_STRIPE)
    assert {(row.account, row.meter) for row in rows} == {(name, "peak") for name in ("ada", "bob", "cyd", "dora")}
    assert all("Invalid request" in row.detail for row in rows)
    assert report.verdict is Verdict.DRIFT


async def test_a_dead_letter_that_was_redriven_is_no_drift() -> None:
    """Neither is the amount missing at Stripe, nor is it counted twice among the intents."""
    deployment = await Deployment().start()
    deployment.stripe.fault = lambda event: FakeFault.BAD_REQUEST if event.event_name == "peak" else None
    await deployment.traffic(1)
    await deployment.settle()
    deployment.stripe.fault = lambda _event: None
    failed = await failed_intents(deployment.ledger, ())
    redriver = Redriver(deployment.log, deployment.ledger, deployment.stripe, deployment.stripe, deployment.clock)

    await redriver.redrive([each.known.intent.identifier for each in failed], "ada", "the meter is corrected")
    await deployment.settle()
    report = await deployment.reconcile()

    assert len(failed) == 4
    assert report.verdict is Verdict.EQUAL, report.rows


async def test_usage_of_an_account_without_customer_waits_and_is_no_drift() -> None:
    """Nothing is lost, but Stripe accepts the usage for 35 days only."""
    deployment = await settled()
    await deployment.emit("eve", gb="2.5", user="u", region="eu")
    await deployment.settle()

    report = await deployment.reconcile()

    assert causes_by_pair(report) == {(Pair.STRIPE, Cause.UNKNOWN_CUSTOMER)}
    gigabytes = next(row for row in report.rows if row.meter == "gigabytes")
    assert (gigabytes.account, gigabytes.expected) == ("eve", "2.5")
    assert report.verdict is Verdict.EQUAL


async def test_one_id_with_two_payloads_is_a_conflict_and_no_drift() -> None:
    """Every view counts the first payload; an operator must decide which one was right."""
    deployment = await settled()
    event_id = await deployment.emit("ada", gb="1", user="u", region="eu")
    await deployment.emit("ada", id=event_id, gb="100", user="u", region="eu")
    await deployment.settle()

    report = await deployment.reconcile()

    (row,) = report.rows
    assert (row.cause, row.account) == (Cause.CONFLICT, "ada")
    assert event_id in row.detail
    assert report.verdict is Verdict.EQUAL


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        pytest.param({"source": "/another"}, "source", id="the first operation of two sources"),
        pytest.param({"type_": "sample"}, "type", id="one operation under two types"),
        pytest.param({"type_": "sample", "source": "/another", "gb": "2"}, "type and source and data", id="all"),
    ],
)
async def test_one_id_of_two_types_or_sources_is_a_conflict(changes: dict[str, Any], differing: str) -> None:
    """The second operation is not counted. The report says what differs, and a gauge counts it."""
    deployment = await settled()
    event_id = await deployment.emit("ada", gb="1", user="u", region="eu")
    await deployment.emit("ada", id=event_id, **{"gb": "1", "user": "u", "region": "eu", **changes})
    await deployment.settle()

    report = await deployment.reconcile()

    (row,) = report.rows
    assert (row.cause, row.account) == (Cause.CONFLICT, "ada")
    assert f"came 1 more times with another {differing}; the first was counted" in row.detail
    labels = (("pair", "duplicates"), ("cause", "conflict"))
    assert gauge_values(report)[GaugeKey("tidemark_reconcile_rows", labels)] == 1


async def test_conflicts_beyond_the_reports_limit_are_counted_and_not_read() -> None:
    """A producer that reuses its event numbers each day makes a conflict of every event."""
    deployment = await settled()
    for number in range(9):
        await deployment.emit("ada", id=f"day's {number}", gb="1", user="u", region="eu")
        await deployment.emit("ada", id=f"day's {number}", gb="2", user="u", region="eu")
    await deployment.settle()

    report = await deployment.reconcile(policy=ReconcilePolicy(rows_max=4))

    assert [row.cause for row in report.rows] == [Cause.CONFLICT] * 4
    assert (report.rows_left_off, report.causes[Pair.DUPLICATES, Cause.CONFLICT]) == (5, 9)


async def test_counters_that_do_not_add_up_are_drift() -> None:
    """I1: an event that is received and neither counted nor rejected was lost in the fold."""
    deployment = await settled()
    checkpoint = await deployment.checkpoint("ada")
    partition = deployment.store.server.partitions[deployment.partition("ada")]
    counters = checkpoint.counters._replace(counted=checkpoint.counters.counted - 1)
    partition.checkpoint = msgspec.structs.replace(checkpoint, counters=counters)

    report = await deployment.reconcile()

    (row,) = report.rows
    assert (row.pair, row.cause) == (Pair.COUNTERS, Cause.MISSING)
    assert f"counted={counters.counted}" in row.detail
