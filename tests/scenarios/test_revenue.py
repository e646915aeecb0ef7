"""Revenue of customers whose story is played at the simulator and mirrored: exact cents."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, cast

from sqlalchemy import Connection, text

from pipeline.access.revenue import amounts_of, day_of, read_recognition, read_revenue
from reconciler.report import Findings, Report
from reconciler.revenue import RevenueComparison
from reconciler.views import Views
from schemas.clock import Clock
from schemas.recognition import Effect
from schemas.revenue import RevenueStores
from sinks.sql.fake import FakeSideTables
from tests.scenarios.selling import ACME, BASIC_AND_PRO, Seller
from tests.scenarios.vocabulary import Account, at
from tests.scenarios.walk import Walk

# Those of a small walk.
ACCOUNTS: Final = 2
MONTHS: Final = 24


async def moved(seller: Seller, moment: str) -> Sequence[tuple[str, int, str, int]]:
    """The movements until a moment: whose, when, why, and the cents a month after them."""
    found = await read_revenue(seller.tables.catalog, seller.tables.revenue, at(moment) * 1_000, 12)
    return [(each.account, each.at_ms // 1_000, each.kind.value, each.after_minor) for each in found.movements]


async def test_a_customer_comes_grows_shrinks_and_goes(account: Account) -> None:
    seller = Seller(account)
    await seller.open(BASIC_AND_PRO, "2027-02-01")
    await account.sign_up(seller.price("basic.v1.base.month.usd"))
    await seller.reach("2027-02-10")
    await account.change_plan(seller.price("pro.v1.base.month.usd"))
    await seller.reach("2027-03-05")
    await account.change_plan(seller.price("pro.v1.base.year.usd"), billing_cycle_anchor={"type": "now"})
    await account.sdk("v1.subscriptions.update", account.subscription, {"cancel_at_period_end": True})
    await seller.reach("2027-03-20")
    grown = [(ACME, at("2027-02-01"), "new", 7_900), (ACME, at("2027-02-10"), "expansion", 14_900)]
    shrunk = [*grown, (ACME, at("2027-03-05"), "contraction", 12_900)]
    assert await moved(seller, "2027-03-01") == grown
    assert await moved(seller, "2027-03-20") == shrunk
    await seller.reach("2028-03-10")
    assert await moved(seller, "2028-03-10") == [*shrunk, (ACME, at("2028-03-05"), "churn", 0)]


async def test_a_customer_who_was_there_before_the_link(account: Account) -> None:
    """The subscription is weeks old when somebody says whose it is."""
    seller = Seller(account)
    await seller.open(BASIC_AND_PRO, "2027-02-01")
    await account.another_customer()
    await account.sign_up(seller.price("basic.v1.base.month.usd"))
    await seller.reach("2027-02-20")
    assert await moved(seller, "2027-02-20") == []
    await seller.link("late")
    assert await moved(seller, "2027-02-20") == [("late", at("2027-02-01"), "new", 7_900)]


async def months(seller: Seller, *firsts: str) -> Sequence[Sequence[int]]:
    """What each span between days recognizes, and why: earned, credited, voided; bad debt, and deferred at its end."""
    found = await read_recognition(seller.tables.invoice_books, [day_of("", first) for first in firsts])
    effects = (Effect.EARNED, Effect.CREDIT_NOTE, Effect.VOID)
    return [[*(each.effects[effect] for effect in effects), each.bad_debt, each.deferred_end] for each in found]


async def checked(tables: FakeSideTables, clock: Clock) -> Report:
    """What the nightly check finds."""
    nothing: Any = None
    stores = RevenueStores(tables.catalog, tables.revenue, tables.invoice_books)
    amounts = partial(amounts_of, tables.catalog)
    views = Views(nothing, nothing, nothing, nothing, tables=cast("Any", tables), revenue=stores, amounts=amounts)
    findings = Findings()
    await RevenueComparison(views, clock, findings).run()
    return findings.report(0, None, None)


async def test_a_year_is_earned_day_by_day_and_a_credit_note_takes_its_share_back(account: Account) -> None:
    """1 548 dollars for 365 days; after 59 of them, 365 dollars are given back."""
    seller = Seller(account)
    await seller.open(BASIC_AND_PRO, "2027-02-01")
    await account.sign_up(seller.price("pro.v1.base.year.usd"))
    (invoice,) = (await account.sdk("v1.invoices.list", {"customer": account.customer}))["data"]
    await seller.reach("2027-04-01")
    note = {"invoice": invoice["id"], "amount": 36_500, "refund_amount": 36_500}
    await account.sdk("v1.credit_notes.create", note)
    await seller.hear("2027-04-01")
    before, after = 154_800, 154_800 - 36_500
    february, until_april = before * 28 // 365, before * 59 // 365
    back = after * 59 // 365 - until_april
    april = after * 89 // 365 - after * 59 // 365
    assert await months(seller, "2027-02", "2027-03", "2027-04", "2027-05") == [
        [february, 0, 0, 0, before - february],
        [until_april - february, 0, 0, 0, before - until_april],
        [april, back, 0, 0, after - after * 89 // 365],
    ]
    assert (await checked(seller.tables, seller.clock)).differences == 0


async def test_a_discount_that_recurs_lowers_what_recurs_until_it_ends(account: Account) -> None:
    """Half of it for three months; the audit has no row at the end of the discount."""
    seller = Seller(account)
    await seller.open(BASIC_AND_PRO, "2027-02-01")
    coupon = {"id": "half", "percent_off": 50, "duration": "repeating", "duration_in_months": 3}
    await account.sdk("v1.coupons.create", coupon)
    await account.sign_up(seller.price("pro.v1.base.month.usd"), discounts=[{"coupon": "half"}])
    for month in ("2027-03-10", "2027-04-10", "2027-05-10", "2027-06-10"):
        await seller.reach(month)
    assert await moved(seller, "2027-06-10") == [
        (ACME, at("2027-02-01"), "new", 7_450), (ACME, at("2027-05-01"), "expansion", 14_900),
    ]  # fmt: skip
    recognized = await months(seller, "2027-02", "2027-03", "2027-04", "2027-05", "2027-06")
    assert [month[0] for month in recognized] == [7_450, 7_450, 7_450, 14_900]


async def test_the_revenue_of_random_accounts_adds_up() -> None:
    """Two years of plans, seats, trials, failures and voids, and then credit notes of some paid invoices."""
    walk = Walk(ACCOUNTS, MONTHS, 1)
    await walk.run()
    draw, stripe = random.Random(1), walk.world.stripe
    paid = [body for body in stripe.pages("GET /v1/invoices", {"status": "paid"}) if body["amount_paid"] > 1]
    for body in draw.sample(paid, len(paid) // 3):
        amount = draw.choice([body["amount_paid"], draw.randrange(1, body["amount_paid"])])
        stripe.call("POST /v1/credit_notes", {"invoice": body["id"], "amount": amount, "credit_amount": amount})
    await walk.world.settle()
    report = await checked(walk.world.sql, walk.world.clock)
    assert (report.rows, report.differences) == ((), 0)
    (summary,) = (each for each in report.summaries if each.equal)
    assert summary.equal >= ACCOUNTS + len(paid)


async def test_a_lost_audit_row_and_a_lost_line_are_found(account: Account) -> None:
    """Somebody changed the mirror, and no event said so."""
    seller = Seller(account)
    await seller.open(BASIC_AND_PRO, "2027-02-01")
    await account.sign_up(seller.price("basic.v1.base.month.usd"))
    await seller.hear("2027-02-01")
    assert (await checked(seller.tables, seller.clock)).rows == ()
    for statement in ("UPDATE subscription_items SET quantity = 3", "UPDATE invoice_lines SET amount_minor = 7800"):
        await seller.tables._run(partial(Connection.execute, statement=text(statement)))
    rows = (await checked(seller.tables, seller.clock)).rows
    assert [(row.account, row.meter, row.expected, row.found) for row in rows] == [
        (ACME, "mrr usd", "23700", "7900"), ("", "recognized usd", "7900", "7800"),
    ]  # fmt: skip
