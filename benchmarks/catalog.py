"""How long the plan of a large catalog takes, and how many customers a backtest rates. Part of `--only access`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import psycopg

from aggregators.backtest import months_before
from aggregators.catalog import read_catalog
from aggregators.periods import anchored_period
from benchmarks.figures import Figure
from pipeline.commands.backtest import backtest_file
from pipeline.commands.catalog import apply_file, plan_file
from pipeline.local.dev import Dev
from pipeline.open import DEFAULT_CATALOG, open_base, open_clickhouse_store, open_side_tables
from pipeline.settings import Settings
from schemas.aggregations import Aggregation
from schemas.analytics import HourlyRow
from schemas.catalog import Catalog
from schemas.catalog_changes import CatalogKind
from schemas.clock import DAY_MS, HOUR_MS
from schemas.periods import Interval, Period

PLANS: Final = 50
CURRENCIES: Final = {"usd": 2, "eur": 2, "jpy": 0, "gbp": 2}
SECTION: Final = f"(l) Plan of {PLANS} plans in {len(CURRENCIES)} currencies"
BACKTEST: Final = "(m) Backtest of six months"
PLAN_S_MAX: Final = 5.0
MONTHS: Final = 6
DAYS: Final = (3, 17)
AT_ONCE: Final = 5_000
# A customer with two seats of a plan of the benchmark, linked to an account, who has paid since seven months.
CUSTOMERS: Final = """
INSERT INTO subscriptions (id, customer_id, status, currency, anchor_ms, start_ms, discounts_json, deleted, fetch_seq,
    fetched_ms)
SELECT 'sub_b' || number, 'cus_b' || number, 'active', 'usd', %(start)s, %(start)s, '[]', 0, 1, 1
FROM generate_series(1, %(count)s) AS number
"""
ITEMS: Final = """
INSERT INTO subscription_items (id, subscription_id, price_id, usage_type, quantity, period_end_ms)
SELECT 'si_b' || number || component, 'sub_b' || number, price, kind, 2, %(end)s
FROM generate_series(1, %(count)s) AS number,
    (VALUES ('s', %(seat)s, 'licensed'), ('t', %(tokens)s, 'metered')) AS item (component, price, kind)
"""
LINKS: Final = """
INSERT INTO account_customers SELECT 'bench-' || number, 0, 'cus_b' || number
FROM generate_series(1, %(count)s) AS number
"""
ACCOUNTS: Final = """
INSERT INTO accounts (account, created_ms, audit_seq, audit_hash, binding_number, entitled_seq)
SELECT 'bench-' || number, 0, 0, '', 0, 0 FROM generate_series(1, %(count)s) AS number
"""


def large_catalog(version: int, usd: str) -> bytes:
    """The catalog that ships with fifty more plans, each with seats by month and year, and tokens in tiers."""
    shipped = DEFAULT_CATALOG.read_text().replace("version: 1\n", f"version: {version}\n", 1)
    amounts = f'{{usd: "{usd}", eur: "9.99", jpy: 990, gbp: "8.99"}}'
    free, each = "{usd: 0, eur: 0, jpy: 0, gbp: 0}", '{usd: "0.0001", eur: "0.0001", jpy: "0.01", gbp: "0.0001"}'
    plans = "".join(
        f"  bench{number}:\n    version: {version}\n    prices:\n"
        f"      - {{component: seat, quantity: members, month: {amounts}, year: {amounts}}}\n"
        f"      - {{component: tokens, meter: tokens, unit: tokens, "
        f"tiers: [{{up_to: included, price: {free}}}, {{up_to: inf, price: {each}}}]}}\n"
        f"    included: {{tokens: 1000}}\n    grants: {{members: quantity}}\n"
        for number in range(PLANS)
    )
    text = shipped.replace("currencies: {", "currencies: {gbp: 2, ", 1).replace("\nplans:\n", f"\nplans:\n{plans}", 1)
    return text.encode()


async def plan_figures(settings: Settings, folder: Path) -> list[Figure]:
    """The plan of everything, then, behind its application, of another price of everything."""
    path, seconds = folder / "large.yaml", []
    for version, usd in ((2, "9.99"), (3, "10.99")):
        path.write_bytes(large_catalog(version, usd))
        began_s = time.perf_counter()
        plan, problems = await plan_file(settings, path)
        seconds.append(time.perf_counter() - began_s)
        assert plan is not None, problems
        assert len(plan.actions) > PLANS, plan.refusals
        if version == 2:
            await apply_file(settings, plan, "a benchmark", "a benchmark", lambda _: None)
    notes = ("nothing at Stripe yet", f"{PLANS * len(CURRENCIES) * 3} prices at Stripe")
    return [
        Figure(SECTION, name, took_s, "s", None, note, "met" if took_s <= PLAN_S_MAX else "missed")
        for name, took_s, note in zip(("first plan", "plan of other prices"), seconds, notes, strict=True)
    ]


def hourly_rows(accounts: range, months: Sequence[Period]) -> list[HourlyRow]:
    """Tokens of each account on two days of each month."""
    return [
        HourlyRow(
            f"bench-{number}", "tokens", *month, hour_ms, "{}", hour_ms, Aggregation.SUM, 0, number * 10, 0, 0, 0, 1
        )
        for number in accounts
        for month in months
        for hour_ms in (month.start_ms // HOUR_MS * HOUR_MS + day * DAY_MS for day in DAYS)
    ]


async def backtest_figures(settings: Settings, folder: Path, customers: int) -> list[Figure]:
    """The backtest of the other prices: every customer has seats and tokens, and usage in each of six months."""
    base = await open_base(settings, create=False)
    tables = await open_side_tables(base)
    records = (await tables.catalog.standing()).records
    now_ms = base.clock.now_ms()
    values: dict[str, Any] = {
        "count": customers,
        "seat": records[CatalogKind.PRICE, "tm.bench0.v2.seat.month.usd"].stripe_id,
        "tokens": records[CatalogKind.PRICE, "tm.bench0.v2.tokens.month.usd"].stripe_id,
    }
    start_ms = months_before(now_ms - 2 * DAY_MS, MONTHS + 1)
    months = [anchored_period(start_ms, Interval.MONTH, 1, start_ms)]
    while months[-1].end_ms < now_ms:
        months.append(anchored_period(start_ms, Interval.MONTH, 1, months[-1].end_ms))
    values |= {"start": start_ms, "end": months[-1].end_ms}
    async with await psycopg.AsyncConnection.connect(settings.sql_url) as connection:
        for statement in (ACCOUNTS, LINKS, CUSTOMERS, ITEMS):
            await connection.execute(statement.encode(), values)
    store = await open_clickhouse_store(settings)
    for first in range(1, customers + 1, AT_ONCE):
        await store.insert_hourly(hourly_rows(range(first, min(first + AT_ONCE, customers + 1)), months))
    catalog, problems = read_catalog(large_catalog(3, "10.99"), (await tables.catalog.standing()).sold())
    for each in (store, tables, base.log):
        await each.close()
    assert isinstance(catalog, Catalog), problems
    result = await backtest_file(settings, catalog, MONTHS, folder / "bills.csv")
    total = result.totals["usd"]
    assert total.more == customers, (total, result.omitted)
    assert total.after_minor - total.before_minor == customers * MONTHS * 200, total
    note = f"{customers:,} customers with seats and tokens, {MONTHS} invoices each, {result.took_s:.1f} s"
    return [Figure(BACKTEST, "customers", customers / result.took_s, "/s", None, note)]


async def catalog_figures(dev: Dev, folder: Path, say: Callable[[str], None], *, quick: bool) -> list[Figure]:
    """All figures of the catalog, at a running deployment."""
    say("Plan of a large catalog")
    figures = await plan_figures(dev.settings(), folder)
    say("Backtest")
    return figures + await backtest_figures(dev.settings(), folder, 5_000 if quick else 20_000)
