"""Usage compared with Stripe's invoices, which the simulator makes: billed, billed late, and not billed at all."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from reconciler.causes import Cause, Pair, Verdict
from reconciler.records import finding_rows, run_row
from reconciler.report import Report, Row
from reconciler.views import ReconcilePolicy
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from sinks.clickhouse.fake_reconciliations import FakeReconciliations
from stripe_simulator import Fault, FaultKind
from tests.worlds.billed import BilledDeployment, billed_deployment
from tests.worlds.reconciler import DECEMBER_MS, NOVEMBER_MS, rows_of

FLAT = (("inf", "2"),)
DAY_20_MS = NOVEMBER_MS + 19 * DAY_MS


@pytest_asyncio.fixture
async def billed() -> AsyncIterator[BilledDeployment]:
    """A deployment on the simulator."""
    async with billed_deployment(BilledDeployment) as deployment:
        yield deployment


def bills(report: Report) -> list[Row]:
    """All rows about invoices, confirmed ones first."""
    rows = [*report.confirmed, *report.rows]
    return [row for row in rows if row.pair is Pair.INVOICES]


async def test_a_month_that_is_billed_exactly_is_confirmed(billed: BilledDeployment) -> None:
    """Scenario 1: 137 510 calls in three tiers, one line for each; December runs and is no gap."""
    price = await billed.price((10_000, "0"), (100_000, "0.2"), ("inf", "0.1"))
    await billed.subscribe("ada", price)
    await billed.until(NOVEMBER_MS + 4 * DAY_MS)
    await billed.use("ada", "100000")
    await billed.until(DAY_20_MS)
    await billed.use("ada", "37510")
    await billed.settle()
    running = await billed.reconcile()
    await billed.until(DECEMBER_MS + 10 * MINUTE_MS)
    draft = await billed.reconcile()
    await billed.until(DECEMBER_MS + 2 * HOUR_MS)
    await billed.use("ada", "5")
    await billed.settle()

    report = await billed.reconcile()

    assert [(row.cause, row.detail) for row in bills(running)] == [(Cause.IN_FLIGHT, "the period runs")]
    assert [(row.cause, row.detail) for row in bills(draft)] == [(Cause.IN_FLIGHT, "the invoice is a draft")]
    november, december = bills(report)
    assert (november.cause, november.expected, november.found, november.items) == (
        Cause.CONFIRMED, "137510", "137510", "",
    )  # fmt: skip
    assert november.invoices.startswith("in_")
    assert (december.cause, december.expected) == (Cause.IN_FLIGHT, "5")
    assert running.verdict is report.verdict is Verdict.EQUAL


async def test_usage_that_stripe_took_after_finalization_is_unbilled_until_an_item_bills_it(
    billed: BilledDeployment,
) -> None:
    """B1, first case, and scenario 25: Stripe's sum agrees, and nobody is billed. An invoice item settles it."""
    await billed.subscribe("ada", await billed.price(*FLAT))
    await billed.until(DAY_20_MS)
    await billed.use("ada", "1000")
    await billed.settle()
    await billed.until(DECEMBER_MS + 30 * MINUTE_MS)
    await billed.use("ada", "125", DECEMBER_MS - 10 * MINUTE_MS)
    await billed.until(DECEMBER_MS + 3 * HOUR_MS)
    await billed.settle()

    before = await billed.reconcile()
    await billed.add_item("ada", NOVEMBER_MS, DECEMBER_MS, ("1000", "1125"), 250)
    after = await billed.reconcile()

    (row,) = rows_of(before, Cause.UNBILLED)
    assert (before.verdict, row.expected, row.found, row.account) == (Verdict.DRIFT, "1125", "1000", "ada")
    assert not [each for each in before.rows if each.pair is Pair.STRIPE]
    assert row.detail.startswith("125 reported and not billed: ")
    assert "invoice item" in row.detail
    (row,) = bills(after)
    assert (after.verdict, row.cause, row.found, row.items) == (Verdict.EQUAL, Cause.CONFIRMED, "1125", "125")


async def test_usage_of_an_account_that_was_mapped_after_its_invoice_is_unbilled(billed: BilledDeployment) -> None:
    """B1, second case: the customer's November invoice is final when the account is mapped on December 12."""
    await billed.customer("ada")
    customer = billed.customers["ada"]
    body = {"customer": customer, "items": [{"price": await billed.price(*FLAT)}]}
    await billed.sdk("v1.subscriptions.create", body)
    await billed.until(NOVEMBER_MS + 9 * DAY_MS)
    await billed.use("ada", "7.125")
    await billed.settle()
    await billed.until(DECEMBER_MS + 11 * DAY_MS)
    await billed.bind("ada", stripe_customer=customer)
    await billed.settle()

    report = await billed.reconcile()

    (row,) = rows_of(report, Cause.UNBILLED)
    assert (report.verdict, row.expected, row.found, row.stripe_customer) == (Verdict.DRIFT, "7.125", "0", customer)


async def test_usage_that_no_subscription_item_bills_is_unbilled_once_its_period_is_over(
    billed: BilledDeployment,
) -> None:
    """B20: the meter exists and takes events, and no price of the customer uses it."""
    other = {"display_name": "x", "event_name": "other", "default_aggregation": {"formula": "sum"}}
    meter = (await billed.sdk("v1.billing.meters.create", other))["id"]
    await billed.subscribe("ada", await billed.price(*FLAT, meter=meter))
    await billed.until(DAY_20_MS)
    await billed.use("ada", "12")
    await billed.settle()
    during = await billed.reconcile()
    await billed.until(DECEMBER_MS + 3 * HOUR_MS)

    after = await billed.reconcile()

    (row,) = bills(during)
    assert (row.cause, during.verdict) == (Cause.IN_FLIGHT, Verdict.EQUAL)
    assert "subscribe the customer" in row.detail
    (row,) = rows_of(after, Cause.UNBILLED)
    assert row.detail.startswith("12 reported and not billed: no subscription item")


async def recorded(deployment: BilledDeployment, records: FakeReconciliations, reads_max: int) -> Report:
    """A reconciliation that knows the ones before, and is kept."""
    policy = ReconcilePolicy(archive_wait_s=1.0, stripe_reads_max=reads_max)
    report = await deployment.reconcile(policy=policy, past=await records.past_reads())
    run = f"run-{len(records.runs)}"
    await records.insert(run_row(report, run, "command", report.started_at_ms, deployment.clock.ms),
                         finding_rows(report, run))  # fmt: skip
    deployment.clock.ms += MINUTE_MS
    return report


async def test_customers_take_turns_and_come_again_when_something_changed(billed: BilledDeployment) -> None:
    """A confirmed month is not read again, until usage of it is settled late, here of an account that was mapped late.
    A running month is no reason, and drift is read each time."""
    price, records = await billed.price(*FLAT), FakeReconciliations()
    for account in ("ada", "bob"):
        await billed.subscribe(account, price)
        await billed.use(account, "1000")
    await billed.use("cyd", "125")
    await billed.settle()
    await billed.until(DECEMBER_MS + 3 * HOUR_MS)
    await billed.use("ada", "5")
    await billed.settle()

    turns = [await recorded(billed, records, 6) for _ in range(3)]
    await billed.bind("cyd", stripe_customer=billed.customers["bob"])
    await billed.settle()
    late = [await recorded(billed, records, 60) for _ in range(2)]
    await billed.add_item("bob", NOVEMBER_MS, DECEMBER_MS, ("1000", "1125"), 250)
    settled = [await recorded(billed, records, 60) for _ in range(2)]

    assert [(2, 1, 0), (1, 1, 1), (0, 0, 2)] == [report.invoices[:3] for report in turns]
    assert [Verdict.INCOMPLETE, Verdict.EQUAL, Verdict.EQUAL] == [report.verdict for report in turns]
    assert DECEMBER_MS == turns[0].invoices.oldest_unread_ms
    (unread,) = rows_of(turns[0], Cause.UNCHECKED, Pair.INVOICES)
    assert "over the limit of 3 reads" in unread.detail
    assert [(1, 1, 1)] * 2 == [report.invoices[:3] for report in late]
    assert [[("bob, cyd", "1125", "1000")]] * 2 == [
        [(row.account, row.expected, row.found) for row in rows_of(report, Cause.UNBILLED)] for report in late
    ]
    assert [(1, 1, 1), (0, 0, 2)] == [report.invoices[:3] for report in settled]
    assert [Verdict.EQUAL, Verdict.EQUAL] == [report.verdict for report in settled]
    assert sum(report.stripe_reads for report in (*turns, *late, *settled)) == await records.stripe_reads(0)


async def test_two_accounts_of_one_customer_are_one_bill(billed: BilledDeployment) -> None:
    """Stripe adds their usage up; each alone would look unbilled or too much."""
    await billed.subscribe("ada", await billed.price(*FLAT))
    await billed.bind("bob", stripe_customer=billed.customers["ada"])
    await billed.use("ada", "10.25")
    await billed.use("bob", "5")
    await billed.settle()
    await billed.until(DECEMBER_MS + 3 * HOUR_MS)
    await billed.settle()

    report = await billed.reconcile()

    (row,) = bills(report)
    assert (row.cause, row.account, row.expected, row.found) == (Cause.CONFIRMED, "ada, bob", "15.25", "15.25")


async def test_stripe_that_does_not_answer_leaves_bills_unchecked(billed: BilledDeployment) -> None:
    """The reason is in the row, and nothing is called equal."""
    await billed.subscribe("ada", await billed.price(*FLAT))
    await billed.use("ada", "10")
    await billed.settle()
    for _ in range(3):
        billed.simulator.faults.add(Fault(FaultKind.SERVER_ERROR, method="GET", path="/v1/invoiceitems"))

    report = await billed.reconcile()

    (row,) = rows_of(report, Cause.UNCHECKED, Pair.INVOICES)
    assert (report.verdict, row.stripe_customer) == (Verdict.INCOMPLETE, billed.customers["ada"])
    assert "no answer after 3 tries" in row.detail
