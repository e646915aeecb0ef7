"""Views that agree are equal after any history: bindings, closings, meter sets and live traffic."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import reconciler
from pipeline.logs.control_records import append_everywhere
from reconciler.causes import Cause, Pair, Verdict
from reconciler.report import Report
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.control import MeterSetRecord
from schemas.meters import MeterSet
from schemas.periods import Billing
from schemas.reports import MeterSummary, StripeMeters
from schemas.rollup import Checkpoint, TotalKey
from tests.worlds.deployment import SECRET
from tests.worlds.reconciler import ACCOUNTS, DECEMBER_MS, METER_SET, NOVEMBER_MS, Deployment, rows_of, settled

PAID = {"stripe_customer": "cus_ada"}


def assert_equal(report: Report, *, allowed: Sequence[Cause] = ()) -> None:
    assert [row for row in report.rows if row.cause not in allowed] == []


async def some(deployment: Deployment, account: str = "ada", **fields: Any) -> None:
    """Events that contribute to every aggregation."""
    await deployment.emit(account, gb="1.5", user="u1", region="eu", **fields)
    await deployment.emit(account, gb="0.5", user="u2", region="us", **fields)
    await deployment.emit(account, type_="seats", seats=7, **fields)


async def test_a_binding_that_cuts_a_running_period_leaves_no_difference() -> None:
    """A period is identified by its start: usage before and after the binding is one total."""
    deployment = await Deployment().start()
    await some(deployment)
    await deployment.bind("ada", effective_from_ms=NOVEMBER_MS, anchor_ms=NOVEMBER_MS + 14 * DAY_MS, **PAID)
    await some(deployment)
    await deployment.advance(HOUR_MS)
    await some(deployment)
    await some(deployment, at_ms=deployment.clock.ms - 50 * MINUTE_MS)
    await deployment.settle()

    report = await deployment.reconcile()

    assert_equal(report)
    totals = deployment.store.server.partitions[deployment.partition("ada")].totals
    assert len([key for key in totals if key.account == "ada"]) == 2


async def test_a_binding_that_is_replaced_before_it_takes_effect_leaves_no_difference() -> None:
    """The period is cut, then whole, then cut elsewhere: the usage stays in one total all the time."""
    deployment = await Deployment().start()
    await some(deployment)
    await deployment.bind("ada", effective_from_ms=NOVEMBER_MS + 11 * DAY_MS, anchor_ms=5 * DAY_MS, **PAID)
    await some(deployment)
    await deployment.bind("ada", effective_from_ms=NOVEMBER_MS + 11 * DAY_MS, **PAID)
    await some(deployment)
    await deployment.bind("ada", effective_from_ms=NOVEMBER_MS + 12 * DAY_MS, interval="week", **PAID)
    await some(deployment)
    await deployment.settle()

    assert_equal(await deployment.reconcile())


async def test_a_difference_of_an_account_with_a_cut_is_still_reported() -> None:
    """The cut must not hide an error."""
    deployment = await Deployment().start()
    await some(deployment)
    await deployment.bind("ada", effective_from_ms=NOVEMBER_MS, anchor_ms=NOVEMBER_MS + 14 * DAY_MS, **PAID)
    await some(deployment)
    await deployment.settle()
    deployment.totals("ada")["requests"] = "5"

    report = await deployment.reconcile()

    (row,) = rows_of(report, Cause.EXTRA, Pair.REDIS)
    assert row.period is not None
    assert (row.expected, row.found, row.period.start_ms) == ("4", "5", NOVEMBER_MS)
    assert row.period.end_ms < DECEMBER_MS


async def test_late_usage_is_recounted_in_the_period_to_which_it_was_carried() -> None:
    """Once by grace, once by an explicit closing, which moves usage past the running month."""
    deployment = await Deployment().start()
    deployment.clock.ms = DECEMBER_MS - HOUR_MS
    await some(deployment)
    await deployment.advance(3 * HOUR_MS)
    await some(deployment, at_ms=DECEMBER_MS - 90 * MINUTE_MS)
    await deployment.close_period("ada", deployment.clock.ms)
    await some(deployment)
    await deployment.bind("bob", effective_from_ms=NOVEMBER_MS, interval="day", stripe_customer="cus_bob")
    await some(deployment, "bob")
    await deployment.close_period("bob", deployment.clock.ms)
    await some(deployment, "bob")
    await deployment.settle()

    report = await deployment.reconcile()

    assert_equal(report, allowed=[Cause.IN_FLIGHT])
    assert {row.pair for row in report.rows} <= {Pair.STRIPE}
    january_ms = DECEMBER_MS + 31 * DAY_MS
    assert deployment.store.server.partitions[deployment.partition("ada")].totals.keys() >= {
        TotalKey("ada", NOVEMBER_MS),
        TotalKey("ada", january_ms),
    }


def period_starts(deployment: Deployment, account: str = "ada") -> list[int]:
    """The starts of the periods for which Redis has totals of an account."""
    totals = deployment.store.server.partitions[deployment.partition(account)].totals
    return sorted(key.period_start_ms for key in totals if key.account == account)


async def test_a_binding_does_not_cut_a_period_that_takes_carried_usage() -> None:
    """The running period is closed, so usage counts in a later period. A cut before it would orphan the usage."""
    deployment = await Deployment().start()
    await deployment.close_period("ada", deployment.clock.ms)
    await some(deployment)
    await deployment.bind("ada", effective_from_ms=NOVEMBER_MS, anchor_ms=NOVEMBER_MS + 20 * DAY_MS, **PAID)
    await some(deployment)
    await deployment.settle()

    assert (await deployment.reconcile()).differences == 0
    assert period_starts(deployment) == [DECEMBER_MS]


async def test_a_later_binding_keeps_the_cut_that_carried_usage_counts_from() -> None:
    """The later binding takes effect at the same instant, and would otherwise replace the binding that cuts there."""
    deployment = await Deployment().start()
    cut_ms = NOVEMBER_MS + 11 * DAY_MS
    await deployment.bind("ada", effective_from_ms=cut_ms, interval="week", **PAID)
    await deployment.close_period("ada", deployment.clock.ms)
    await some(deployment)
    await deployment.bind("ada", effective_from_ms=NOVEMBER_MS, **PAID)
    await some(deployment)
    await deployment.settle()

    assert (await deployment.reconcile()).differences == 0
    assert period_starts(deployment) == [cut_ms]


async def test_a_closing_of_a_period_that_no_longer_exists_closes_no_other() -> None:
    """A closing is identified by the period's start; if no period starts there, the closing has no effect."""
    deployment = await Deployment().start()
    await deployment.close_period("ada", DECEMBER_MS)
    cut_ms = NOVEMBER_MS + 11 * DAY_MS
    await deployment.bind("ada", effective_from_ms=cut_ms, anchor_ms=cut_ms, **PAID)
    await deployment.advance(3 * DAY_MS)
    await some(deployment)
    await deployment.settle()

    assert (await deployment.reconcile()).differences == 0
    assert period_starts(deployment) == [cut_ms]


async def test_a_closing_outlives_a_grace_that_is_lengthened_later() -> None:
    """No meter set can reopen a closed period (I9), even if the closing seemed superseded."""
    deployment = await Deployment().start()
    await deployment.advance(DECEMBER_MS + 10 * MINUTE_MS - deployment.clock.ms)
    await deployment.close_period("ada", DECEMBER_MS - DAY_MS)
    await deployment.advance(3 * HOUR_MS)
    await deployment.close_period("ada", DECEMBER_MS + 40 * DAY_MS)
    longer = MeterSet.model_validate({**METER_SET, "version": 2, "policy": {"grace_ms": DAY_MS}})
    await append_everywhere(deployment.log, SECRET, MeterSetRecord(meter_set=longer))
    await some(deployment, at_ms=DECEMBER_MS - HOUR_MS)
    await deployment.settle()

    assert (await deployment.reconcile()).differences == 0
    assert period_starts(deployment) == [DECEMBER_MS]


async def test_a_meter_set_that_lowers_the_future_limit_is_refused() -> None:
    """A binding under the lower limit could cut usage that was accepted under the higher limit."""
    deployment = await Deployment().start({**METER_SET, "policy": {"future_ms": DAY_MS}})
    await some(deployment, at_ms=deployment.clock.ms + 20 * HOUR_MS)
    await apply(deployment, 2)
    await deployment.bind("ada", effective_from_ms=NOVEMBER_MS, anchor_ms=deployment.clock.ms + HOUR_MS, **PAID)
    await some(deployment)
    await deployment.settle()

    assert (await deployment.reconcile()).differences == 0
    checkpoint = await deployment.checkpoint("ada")
    assert checkpoint.meter_set is not None
    assert (checkpoint.meter_set.version, checkpoint.counters.rejected) == (1, 1)


async def test_stripe_is_asked_once_about_a_period_that_was_cut() -> None:
    """Intents from before the binding have an older end; the period is the same one with its current end."""
    deployment = await Deployment().start()
    await some(deployment)
    await deployment.advance(HOUR_MS)
    await deployment.bind("ada", effective_from_ms=NOVEMBER_MS, anchor_ms=NOVEMBER_MS + 14 * DAY_MS, **PAID)
    await deployment.emit("ada", gb="1", user="u3", region="eu")
    await deployment.settle()
    asked: list[tuple[str, int, int]] = []

    class Noting:
        """A Stripe fake that records every question."""

        def __getattr__(self, name: str) -> object:
            return getattr(deployment.stripe, name)

        async def summary(self, event_name: str, stripe_customer: str, start_s: int, end_s: int) -> MeterSummary:
            asked.append((event_name, start_s, end_s))
            return await deployment.stripe.summary(event_name, stripe_customer, start_s, end_s)

    deployment.views = replace(deployment.views, stripe=cast("StripeMeters", Noting()))
    report = await deployment.reconcile()

    assert_equal(report)
    assert sorted(name for name, _, _ in asked) == ["gigabytes", "peak", "requests", "users"]
    assert {start_s for _, start_s, _ in asked} == {NOVEMBER_MS // 1000}
    assert all(end_s < DECEMBER_MS // 1000 for _, _, end_s in asked)


async def apply(deployment: Deployment, version: int, **event_names: str | None) -> None:
    """Appends a further meter set with other Stripe event names."""
    meters = [{**meter, "stripe_event_name": event_names.get(meter["slug"])} for meter in METER_SET["meters"]]
    meter_set = MeterSet.model_validate({"version": version, "meters": meters})
    await append_everywhere(deployment.log, SECRET, MeterSetRecord(meter_set=meter_set))


async def test_a_meter_with_a_later_start_of_reporting_is_expected_from_that_start() -> None:
    """Its intents start at the total of that time. A meter set of an older version changes nothing."""
    deployment = await Deployment().start({**METER_SET, "version": 3, "meters": [
        {**meter, "stripe_event_name": None} for meter in METER_SET["meters"]
    ]})  # fmt: skip
    await some(deployment)
    await deployment.advance(HOUR_MS)
    await apply(deployment, 2, gigabytes="too old to matter")
    await some(deployment)
    await deployment.advance(HOUR_MS)
    await apply(deployment, 4, requests="requests", users="users")
    await some(deployment)
    await deployment.emit("ada", gb="1", user="u3", region="eu")
    await deployment.settle()

    report = await deployment.reconcile()

    assert_equal(report)
    assert next(s for s in report.summaries if s.pair is Pair.INTENTS).compared == 2


async def test_only_periods_that_overlap_the_range_are_compared() -> None:
    """A closed range can be proved while later periods still change."""
    deployment = await settled()
    deployment.totals("ada")["requests"] = "1"

    inside = await deployment.reconcile(from_ms=NOVEMBER_MS + DAY_MS, to_ms=NOVEMBER_MS + 2 * DAY_MS)
    outside = await deployment.reconcile(from_ms=DECEMBER_MS)
    before = await deployment.reconcile(to_ms=NOVEMBER_MS)

    assert inside.verdict is Verdict.DRIFT
    assert outside.verdict is before.verdict is Verdict.EQUAL
    assert {s.pair for s in outside.summaries if s.compared} == {Pair.COUNTERS}


async def test_two_accounts_of_one_customer_with_different_anchors_agree_with_stripe() -> None:
    """Stripe's sum over one account's period includes meter events of the other."""
    deployment = await Deployment().start()
    await deployment.bind("ada", effective_from_ms=NOVEMBER_MS, stripe_customer="cus_bob", interval="day")
    await deployment.advance(DAY_MS)
    for _ in range(2):
        await some(deployment, "ada")
        await some(deployment, "bob")
        await deployment.advance(DAY_MS)
    await deployment.settle()

    assert_equal(await deployment.reconcile())


async def test_free_accounts_are_not_compared_with_stripe() -> None:
    """Free usage is counted and never sent."""
    deployment = await Deployment().start()
    await deployment.bind("ada", billing=Billing.FREE)
    # The customer pays until the binding takes effect.
    await deployment.advance(10 * MINUTE_MS)
    await some(deployment)
    await deployment.settle()

    report = await deployment.reconcile()

    assert_equal(report)
    assert next(s for s in report.summaries if s.pair is Pair.STRIPE).compared == 0


async def test_concurrent_traffic_makes_no_difference() -> None:
    """Each read of Redis has its own checkpoint; the recount follows each checkpoint, even into new periods."""
    deployment = await settled()
    read = deployment.store.totals.account_totals
    checkpoints: list[int] = []

    async def read_and_move(
        partition: int, keys: Sequence[TotalKey]
    ) -> tuple[Checkpoint | None, dict[TotalKey, dict[str, str]]]:
        if len(checkpoints) < 4:
            deployment.clock.ms += 12 * DAY_MS
            for account in (*ACCOUNTS, f"new {len(checkpoints)}"):
                await some(deployment, account)
            await deployment.fold()
            await deployment.archive()
        answer = await read(partition, keys)
        assert answer[0] is not None
        checkpoints.append(answer[0].next_offset)
        return answer

    deployment.store.totals.account_totals = read_and_move  # type: ignore[method-assign]  # a race, made certain
    report = await deployment.reconcile()

    assert report.differences == 0
    assert len(set(checkpoints)) > 1
    assert next(s for s in report.summaries if s.pair is Pair.REDIS).equal > 20


OPERATIONS = ("use", "use", "use", "late", "hour", "day", "bind", "close", "again")


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
async def test_no_difference_is_invented(data: st.DataObject) -> None:
    """Any order of usage, late usage, bindings and closings: the real fold and the recount must agree."""
    deployment = await Deployment().start()
    for operation in data.draw(st.lists(st.sampled_from(OPERATIONS), min_size=5, max_size=25)):
        account = data.draw(st.sampled_from(ACCOUNTS[:2]))
        now_ms = deployment.clock.ms
        match operation:
            case "use":
                await some(deployment, account)
            case "late":
                await some(deployment, account, at_ms=now_ms - data.draw(st.integers(-4 * MINUTE_MS, 70 * HOUR_MS)))
            case "again":
                # Within the dedup window: later repetitions are counted, and the reconciler reports them.
                await deployment.emit(account, id=f"same {now_ms // DAY_MS}", gb="1", user="u9", region="eu")
            case "hour" | "day":
                await deployment.advance(HOUR_MS if operation == "hour" else DAY_MS)
            case "close":
                await deployment.close_period(account, now_ms - data.draw(st.integers(-2, 2)) * DAY_MS)
            case "bind":
                await deployment.bind(
                    account,
                    effective_from_ms=(now_ms // MINUTE_MS + data.draw(st.integers(-3000, 3000))) * MINUTE_MS,
                    anchor_ms=data.draw(st.integers(0, 3)) * 5 * DAY_MS,
                    interval=data.draw(st.sampled_from(["month", "week", "day"])),
                    stripe_customer=f"cus_{account}",
                )
    await deployment.settle()

    report = await deployment.reconcile()

    assert report.differences == 0, report.rows


def test_the_recount_shares_no_code_with_the_fold() -> None:
    """The recount may share only the texts of stored values and the report records, or both could share an error. The
    rating of prices is checked against the amounts of Stripe's invoices, and the sums of revenue against the mirror."""
    imported = {
        node.module
        for path in Path(reconciler.__path__[0]).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        and node.module
        and node.module.split(".")[0] not in {"reconciler", "schemas"}
    }

    ours = {"aggregators", "sinks", "pipeline", "emitter", "stripe_simulator", "portal"}
    assert {module for module in imported if module.split(".")[0] in ours} == {
        "aggregators.codec",
        "aggregators.mrr",
        "aggregators.quantities",
        "aggregators.rating",
        "aggregators.recognition",
        "aggregators.report_records",
        "aggregators.stripe_sums",
    }


@pytest.mark.parametrize("cause", list(Cause))
def test_every_cause_has_a_remedy_for_the_operator(cause: Cause) -> None:
    """A cause without a remedy helps nobody."""
    assert f"- `{cause.value}`: " in (Cause.__doc__ or "")
