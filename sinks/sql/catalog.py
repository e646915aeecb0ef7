"""The catalog in SQL: what is active, every version of every plan, and which object at Stripe is which."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Select, Table, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from schemas.catalog import AddOn, Catalog, Plan, PlanId
from schemas.catalog_changes import (
    NO_ACCOUNT,
    CatalogKind,
    CatalogPlan,
    KnownPlan,
    PlanState,
    Standing,
    StripeRecord,
)
from schemas.errors import InvalidInput
from sinks.sql import audit
from sinks.sql.intents import Run
from sinks.sql.queries import Values, insert_new, lock_accounts, save_heads
from sinks.sql.tables import accounts, catalog_versions, mirror, plan_versions, stripe_objects

COMMAND: Final = "catalog apply"
_ENDED: Final = ("canceled", "incomplete_expired")
_SCHEDULED: Final = ("not_started", "active")


class SqlCatalog:
    """Implements `schemas.catalog_changes.CatalogStore`, whose docstrings hold."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def standing(self) -> Standing:
        return await self._run(_standing)

    async def active_sha256(self) -> str:
        wanted = select(catalog_versions.c.sha256).where(catalog_versions.c.state == "active")
        return await self._run(lambda connection: str(connection.execute(wanted).scalar() or ""))

    async def subscriptions_by_price(self, *, with_planned: bool = True) -> Mapping[str, frozenset[str]]:
        return await self._run(lambda connection: _subscriptions_by_price(connection, with_planned=with_planned))

    async def begin_catalog(self, plan: CatalogPlan, actor: str, reason: str, now_ms: int) -> None:
        await self._run(lambda connection: _begin(connection, plan, actor, reason, now_ms))

    async def activate_catalog(
        self, plan: CatalogPlan, states: Mapping[PlanId, KnownPlan], records: Sequence[StripeRecord], now_ms: int
    ) -> None:
        await self._run(lambda connection: _activate(connection, plan, states, records, now_ms))


def _standing(connection: Connection) -> Standing:
    versions = _versions(connection)
    active, applying = versions.get("active"), versions.get("applying")
    plans = {
        PlanId(row["plan"], row["version"]): KnownPlan(
            (Plan if row["kind"] == "plan" else AddOn).model_validate_json(row["body"]), PlanState(row["state"])
        )
        for row in connection.execute(select(plan_versions)).mappings()
    }
    records = [_record(dict(row)) for row in connection.execute(select(stripe_objects)).mappings()]
    return Standing(
        catalog=Catalog.model_validate_json(active["body"]) if active else None,
        sha256=active["sha256"] if active else "",
        applying=applying["sha256"] if applying else "",
        applied_ms=active["applied_ms"] if active else 0,
        applied_by=active["applied_by"] if active else "",
        reason=active["reason"] if active else "",
        plans=plans,
        records={(record.kind, record.key): record for record in records},
    )


def _record(row: Values) -> StripeRecord:
    plan = PlanId(row["plan"], row["plan_version"]) if row["plan"] is not None else None
    return StripeRecord(
        row["lookup_key"], CatalogKind(row["kind"]), row["stripe_id"], plan, row["component"], row["price_interval"],
        row["currency"],
    )  # fmt: skip


def _object(record: StripeRecord) -> Values:
    return {
        "lookup_key": record.key, "kind": record.kind.value, "stripe_id": record.stripe_id,
        "plan": record.plan.name if record.plan else None,
        "plan_version": record.plan.version if record.plan else None,
        "component": record.component, "price_interval": record.interval, "currency": record.currency,
    }  # fmt: skip


def _versions(connection: Connection) -> dict[str, Values]:
    """The active catalog and the one that is being applied, by state."""
    wanted = select(catalog_versions).where(catalog_versions.c.state != "replaced")
    return {row["state"]: dict(row) for row in connection.execute(wanted).mappings()}


def _subscriptions_by_price(connection: Connection, *, with_planned: bool) -> dict[str, frozenset[str]]:
    items, subscriptions = mirror["subscription_items"].c, mirror["subscriptions"].c
    wanted = select(items.price_id, items.subscription_id).where(
        items.subscription_id == subscriptions.id,
        subscriptions.status.not_in(_ENDED),
        subscriptions.deleted.is_distinct_from(1),
        items.price_id.is_not(None),
    )
    found: dict[str, set[str]] = {}
    for price, subscription in connection.execute(wanted):
        found.setdefault(price, set()).add(subscription)
    for identifier, subscription, phases in connection.execute(_planned_changes()) if with_planned else ():
        for phase in json.loads(phases):
            for item in phase["prices"]:
                found.setdefault(item["price"], set()).add(subscription or identifier)
    return {price: frozenset(own) for price, own in found.items()}


def _planned_changes() -> Select[str, str, str]:
    """The schedules that still change a subscription: their prices must not be archived before."""
    schedules = mirror["subscription_schedules"].c
    return select(schedules.id, schedules.subscription_id, schedules.phases_json).where(
        schedules.status.in_(_SCHEDULED), schedules.deleted.is_distinct_from(1), schedules.phases_json.is_not(None)
    )


def _begin(connection: Connection, plan: CatalogPlan, actor: str, reason: str, now_ms: int) -> None:
    _lock(connection, now_ms)
    versions = {state: row["sha256"] for state, row in _versions(connection).items()}
    active, applying = versions.get("active", ""), versions.get("applying", "")
    if plan.sha256 in (active, applying):
        return
    if (active, applying) != (plan.base, plan.applying):
        raise InvalidInput(
            "plan", "another catalog was applied, or is being applied, since the plan was made: plan again"
        )
    connection.execute(delete(catalog_versions).where(catalog_versions.c.state == "applying"))
    row = {
        "version": plan.catalog.version, "sha256": plan.sha256, "body": plan.catalog.model_dump_json(),
        "state": "applying", "applied_ms": now_ms, "applied_by": actor, "reason": reason,
    }  # fmt: skip
    connection.execute(insert(catalog_versions), row)


def _activate(
    connection: Connection,
    plan: CatalogPlan,
    states: Mapping[PlanId, KnownPlan],
    records: Sequence[StripeRecord],
    now_ms: int,
) -> None:
    heads = _lock(connection, now_ms)
    versions = _versions(connection)
    before, begun = versions.get("active"), versions.get("applying")
    if before and before["sha256"] == plan.sha256:
        # What somebody had taken away at Stripe may have been made again.
        _upsert(connection, stripe_objects, [_object(record) for record in records], ("stripe_id",))
        return
    if begun is None or begun["sha256"] != plan.sha256:
        raise InvalidInput("plan", "another application was begun meanwhile, so this one ends here: plan again")
    state, version = catalog_versions.c.state, catalog_versions.c.version
    connection.execute(update(catalog_versions).where(state == "active").values(state="replaced"))
    connection.execute(
        update(catalog_versions).where(version == begun["version"]).values(state="active", applied_ms=now_ms)
    )
    plans = [
        {
            "plan": name.name, "version": name.version, "kind": "plan" if isinstance(known.sold, Plan) else "addon",
            "catalog_version": plan.catalog.version, "body": known.sold.model_dump_json(), "state": known.state.value,
        }
        for name, known in states.items()
    ]  # fmt: skip
    _upsert(connection, plan_versions, plans, ("body", "state"))
    _upsert(connection, stripe_objects, [_object(record) for record in records], ("stripe_id",))
    # What accounts may do follows from the catalog too. They are locked in ascending order first, as everywhere;
    # 100 000 accounts take three seconds.
    locked = select(accounts.c.account).order_by(accounts.c.account).with_for_update().subquery()
    connection.execute(select(func.count()).select_from(locked))
    connection.execute(update(accounts).values(entitled_seq=-1))
    row = audit.next_row(
        heads[NO_ACCOUNT],
        NO_ACCOUNT,
        now_ms,
        actor=begun["applied_by"],
        cause=COMMAND,
        entity=("catalog", str(plan.catalog.version)),
        before={name: before[name] for name in ("version", "sha256")} if before else None,
        after={
            "version": plan.catalog.version,
            "sha256": plan.sha256,
            "plans": {str(name): known.state.value for name, known in states.items()},
        },
        reason=begun["reason"],
    )
    audit.append(connection, [(row, heads[NO_ACCOUNT].audit_hash)])
    save_heads(connection, heads)


def _lock(connection: Connection, now_ms: int) -> dict[str, Any]:
    """Lock the catalog until the transaction ends, by the row that ends its audit."""
    new = {"account": NO_ACCOUNT, "created_ms": now_ms, "audit_seq": 0, "audit_hash": "", "binding_number": 0}
    insert_new(connection, accounts, [new])
    return lock_accounts(connection, {NO_ACCOUNT})


def _upsert(connection: Connection, table: Table, rows: list[Values], changed: Sequence[str]) -> None:
    if not rows:
        return
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    new = make(table)
    connection.execute(
        new.on_conflict_do_update(
            index_elements=list(table.primary_key), set_={name: new.excluded[name] for name in changed}
        ),
        rows,
    )
