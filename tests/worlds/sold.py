"""A billed deployment that sells what a catalog says: `catalog apply` makes the prices at the simulator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from aggregators.account_grants import Commerce
from aggregators.catalog import read_catalog
from aggregators.catalog_prices import all_prices
from aggregators.plan_offer import Shop
from aggregators.price_list import price_list
from pipeline.commands.catalog import Parts, apply_plan, plan_content
from schemas.catalog import Catalog
from schemas.catalog_changes import CatalogKind, Pin
from schemas.meters import MeterSet
from schemas.reports import StripeCatalog
from sinks.sql.side_tables import SqlSideTables
from sinks.stripe.catalog import StripeClientCatalog
from tests.services.stripe import TEST_KEY
from tests.worlds.billed import CALLS, BilledDeployment


async def sell(deployment: BilledDeployment, tables: SqlSideTables, text: str) -> Mapping[str, str]:
    """Plan and apply a catalog file whose meters are those of the deployment. Returns the price ids by lookup key."""
    objects = StripeClientCatalog(TEST_KEY, deployment.url, scope="test:acct_simulator", nonce="t")
    meters = cast("StripeCatalog", deployment.meters)
    parts = Parts(deployment.clock, tables.catalog, objects, meters, _in_force, _refused)
    checked = await plan_content(parts, text.encode())
    assert checked.plan is not None, checked.problems
    assert [] == checked.plan.refusals
    await apply_plan(parts, checked.plan, "ann", "a test", lambda _: None)
    await objects.close()
    records = (await tables.catalog.standing()).records
    return {key: record.stripe_id for (kind, key), record in records.items() if kind is CatalogKind.PRICE}


async def _in_force() -> MeterSet:
    return MeterSet.model_validate(CALLS)


async def _refused(meter_set: MeterSet) -> None:
    raise AssertionError(f"the meters of the file are not those of the deployment: {meter_set}")


async def bill_totals(deployment: BilledDeployment, account: str) -> list[int]:
    """What Stripe's invoices of an account bill, oldest first, in minor units."""
    rows = (await deployment.sdk("v1.invoices.list", {"customer": deployment.customers[account], "limit": 100}))["data"]
    return [row["total"] for row in sorted(rows, key=lambda row: row["created"])]


def catalog_file(plans: str, version: int = 1) -> str:
    """A catalog with the deployment's meter and these plans."""
    return f"""\
version: {version}
meters:
  - {{slug: calls, event_type: calls, aggregation: sum, value_path: $.calls, scale: 3, stripe_event_name: calls}}
currencies: {{usd: 2, jpy: 0}}
features:
  seats: {{type: seat, merge: sum}}
plans:
{plans}"""


def parsed(text: str) -> Catalog:
    """A catalog that must be right."""
    catalog, problems = read_catalog(text.encode(), {})
    assert catalog is not None, problems
    return catalog


def shop_of(text: str) -> Shop:
    """What a catalog sells, with the lookup keys of prices as their ids."""
    catalog = parsed(text)
    pins = {key: Pin(price.plan, price.component) for key, price in all_prices(catalog).items()}
    commerce = Commerce(catalog, dict(catalog.sold()), pins)
    ids = {(p.plan, p.component, str(p.terms.interval), p.terms.currency): k for k, p in all_prices(catalog).items()}
    return Shop(commerce, price_list(commerce), ids)
