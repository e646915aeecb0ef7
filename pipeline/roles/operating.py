"""What the gateway needs for the operator's page: the same stores and steps as the commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.billing.redrive import Redriver
from pipeline.http.operator_stores import OperatorStores, OperatorTables
from pipeline.open import Base, open_stripe
from pipeline.roles.account_links import OpenedAccountLinks
from pipeline.webhooks.walker import CURSOR
from schemas.errors import InvalidInput
from sinks.clickhouse.client import ClickHouse
from sinks.clickhouse.reconciliations import ClickHouseReconciliations

if TYPE_CHECKING:
    from sinks.sql.side_tables import SqlSideTables


def operator_tables(tables: SqlSideTables) -> OperatorTables:
    """The stores of a database."""
    return OperatorTables(
        tables,
        tables.account_records,
        tables.acknowledgements,
        tables.bills,
        tables.catalog,
        tables.dunning,
        tables.duplicates,
        tables.entitlements,
        tables.intents,
        tables.migrations,
        tables.notices,
        tables.plan_changes,
        tables.redrives,
        tables.seats,
        tables.trials,
        tables.unfinalized,
    )


def operating(base: Base, accounts: OpenedAccountLinks | None, clickhouse: ClickHouse) -> OperatorStores | None:
    """The stores of the operator's page; None without PostgreSQL."""
    if accounts is None:
        return None

    async def tables() -> OperatorTables:
        return operator_tables(await accounts.tables())

    async def redrive(identifier: str, by: str, reason: str) -> str:
        return await redriven(base, await accounts.tables(), identifier, by, reason)

    return OperatorStores(tables, ClickHouseReconciliations(clickhouse), CURSOR, redrive)


async def redriven(base: Base, tables: SqlSideTables, identifier: str, by: str, reason: str) -> str:
    """Redrive one report, as `tidemark billing redrive` does; returns what was done in words.

    Raises `InvalidInput` without a Stripe key or if the report is refused, and `Transient`.
    """
    meters = open_stripe(base.settings)
    if meters is None:
        raise InvalidInput(
            "TIDEMARK_STRIPE_API_KEY", "is not set; Stripe's sums are read before anything is sent again"
        )
    try:
        redriver = Redriver(base.log, tables.intents, meters, meters, base.clock, tables.bills)
        (result,) = await redriver.redrive([identifier], by, reason)
    finally:
        await meters.close()
    if result.refused:
        raise InvalidInput("report", f"{result.identifier} is not sent again: {result.refused}")
    verb = "is sent again" if result.is_new else "is being sent already"
    return f"{result.identifier} {verb}, as {result.successor}."
