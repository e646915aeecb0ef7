"""What credits pay is no drift: our total is Stripe's total and what was drawn."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest_asyncio
from sqlalchemy import update

from aggregators.report_records import parse_entries
from pipeline.billing.customers import BindingResolver
from pipeline.billing.sender import StripeSender
from reconciler.causes import Cause, Pair, Verdict
from schemas.clock import DAY_MS, HOUR_MS
from schemas.log import REPORTS_TOPIC
from schemas.reports import Allocation
from sinks.sql.credit_tables import credit_allocations, credit_grants
from tests.worlds.billed import BilledDeployment, billed_deployment
from tests.worlds.credits import CALLS, Purse
from tests.worlds.reconciler import DECEMBER_MS, NOVEMBER_MS


@pytest_asyncio.fixture
async def billed() -> AsyncIterator[BilledDeployment]:
    """A deployment on the simulator."""
    async with billed_deployment(BilledDeployment) as deployment:
        yield deployment


async def opened(billed: BilledDeployment) -> Purse:
    """Let the deployment's sender draw credits."""
    purse = await Purse(billed.clock).open(CALLS)
    payers = BindingResolver(billed.store.accounts, billed.world.partitions)
    billed.views = replace(billed.views, credits=purse.tables.credits)
    parts = (billed.log, billed.ledger, billed.meters, payers, billed.clock, random.Random(1))
    billed._sender = StripeSender(*parts, drawing=purse.drawing())
    for partition in range(billed.world.partitions):
        billed._reports_read_to[partition] = await billed._sender.start_offset(partition) or 0
    return purse


async def test_total_is_what_stripe_has_and_what_was_drawn(billed: BilledDeployment) -> None:
    purse = await opened(billed)
    await purse.give("ada", 900)
    await purse.give("bob", 900)
    for account in ("ada", "bob"):
        await billed.subscribe(account, await billed.price(("inf", "2")))
    await billed.until(NOVEMBER_MS + 19 * DAY_MS)
    await billed.use("ada", "1000")
    await billed.use("bob", "200")
    await billed.settle()
    await billed.until(DECEMBER_MS + 3 * HOUR_MS)
    await billed.settle()
    report = await billed.reconcile()

    found = {
        row.pair: (row.cause, row.expected, row.found)
        for row in (*report.confirmed, *report.rows)
        if row.pair is not Pair.MIRROR
    }
    assert (report.verdict, found) == (
        Verdict.EQUAL, dict.fromkeys((Pair.STRIPE, Pair.INVOICES), (Cause.CONFIRMED, "100", "100")),
    )  # fmt: skip
    assert [await purse.left(account) for account in ("ada", "bob")] == [0, 700]
    assert [each.equal for each in report.summaries if each.pair is Pair.CREDITS] == [2]


async def drawn(billed: BilledDeployment) -> tuple[Purse, Allocation]:
    """Ada has used 1 000 calls, of which credits pay 900."""
    purse = await opened(billed)
    await purse.give("ada", 900)
    await billed.subscribe("ada", await billed.price(("inf", "2")))
    await billed.until(NOVEMBER_MS + 19 * DAY_MS)
    await billed.use("ada", "1000")
    await billed.settle()
    [allocation] = [
        entry
        for partition in range(billed.world.partitions)
        for record in await billed.log.read(REPORTS_TOPIC, partition, 0, 1_000)
        for entry in parse_entries(record.value)
        if isinstance(entry, Allocation)
    ]
    return purse, allocation


async def credit_rows(billed: BilledDeployment) -> list[tuple[Cause, str, str]]:
    report = await billed.reconcile()
    return [(row.cause, row.expected, row.found) for row in report.rows if row.pair is Pair.CREDITS]


async def test_a_draw_that_a_restored_database_lacks_is_named(billed: BilledDeployment) -> None:
    await drawn(billed)
    billed.views = replace(billed.views, credits=(await Purse(billed.clock).open(CALLS)).tables.credits)
    assert await credit_rows(billed) == [(Cause.MISSING, "900", "0")]


async def test_credits_that_were_drawn_for_nothing_are_named(billed: BilledDeployment) -> None:
    """The ledger has a draw that the log does not: another sender had sent all of it."""
    purse, allocation = await drawn(billed)
    row = credit_allocations.c
    changed = update(credit_allocations).where(row.identifier == allocation.identifier).values(drawn_minor=950_000)
    await purse.tables._run(lambda connection: connection.execute(changed))
    assert await credit_rows(billed) == [(Cause.EXTRA, "900", "950")]


async def test_a_grant_that_is_not_the_sum_of_its_rows_is_named(billed: BilledDeployment) -> None:
    purse, _ = await drawn(billed)
    changed = update(credit_grants).values(remaining=5)
    await purse.tables._run(lambda connection: connection.execute(changed))
    assert await credit_rows(billed) == [(Cause.DIFFERING, "", "")]
