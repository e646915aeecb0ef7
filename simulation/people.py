"""People at the business: they apply the catalogs one after the other, and grant accounts what no plan gives."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any, Final, NamedTuple, cast

from aggregators.catalog_plan import catalog_hash
from oracle.entitlements import EVER_MS, PersonsGrant
from schemas.catalog_changes import CatalogPlan, CatalogStore, KnownPlan, PlanState
from schemas.clock import HOUR_MS, MINUTE_MS
from schemas.entitlements import UNLIMITED, Entitlements, Grant, Operation, SourceKind, Value
from simulation.commands import Commands
from simulation.commerce import CATALOGS, METER, Commerce, catalog_of
from simulation.faults import Fault
from simulation.processes import Process, Reached
from simulation.services import Deployment
from simulation.traffic import ACCOUNTS, LINKED

GRANTS: Final = 16
# The accounts that are linked to customers, and one that only people know.
ENTITLED: Final = (*LINKED, ACCOUNTS[0])
ACTOR: Final = "ann"
# What people grant: the feature, the operation, and the value as the catalog file would say it.
_WISHES: Final[tuple[tuple[str, str, Any], ...]] = (
    ("seats", "add", 3), ("seats", "at_most", 2), ("seats", "at_least", 4), ("seats", "set", 9),
    ("desks", "add", 1), ("desks", "deny", 0), (METER, "set", "unlimited"), (METER, "add", 500),
    (METER, "at_most", 700), ("sso", "set", True), ("sso", "set", False), ("sso", "deny", False), ("seats", "deny", 0),
    ("reporting", "set", {"days": 999}),
)  # fmt: skip


class Made(NamedTuple):
    """What a person granted to an account, under the number that the store gave it."""

    account: str
    grant: PersonsGrant
    number: int


class People(Commands):
    """They apply catalogs and grant.

    `granted` has what people granted and did not take back. `made` counts all that was ever granted.
    """

    def __init__(self, world: Deployment, commerce: Commerce) -> None:
        super().__init__(world, "people")
        self._commerce = commerce
        self.granted: list[Made] = []
        self.made = 0

    async def live(self, span_s: float) -> None:
        """Apply the first catalog, soon or late; then grant, take back, and apply the others."""
        await asyncio.sleep(self._chance.choice((0.0, self._chance.uniform(0, span_s / 6))))
        await self._apply()
        while True:
            await asyncio.sleep(self._chance.expovariate(GRANTS / span_s))
            draw = self._chance.random()
            if draw < 0.05 and self._commerce.applied < len(CATALOGS):
                await self._apply()
            elif draw < 0.25 and self.granted:
                await self._revoke(self._chance.choice(self.granted))
            else:
                await self._grant()

    async def settle(self) -> None:
        """End what was begun, and apply the catalogs that are left: then every price of ours is known."""
        await self.finish()
        while self._commerce.applied < len(CATALOGS):
            await self._apply()

    async def _apply(self) -> None:
        """Make the next catalog active, as `tidemark catalog apply` does once the prices are at Stripe."""
        number = self._commerce.applied
        if number and not self._strike(Fault.CATALOG_REPLACED) and self._world.faults.active:
            return
        catalog = catalog_of(number)
        sha256 = catalog_hash(catalog)
        states = {plan: KnownPlan(sold, PlanState.OPEN) for plan, sold in catalog.sold().items()}

        async def apply(process: Process) -> None:
            store = cast("CatalogStore", Reached(process, "sql", self._world.tables.catalog))
            standing = await store.standing()
            plan = CatalogPlan(catalog, sha256, standing.sha256, standing.applying, False, (), (), (), {})
            now_ms = self._world.clock.now_ms()
            await store.begin_catalog(plan, ACTOR, "simulated", now_ms)
            await store.activate_catalog(plan, states, self._commerce.records(catalog), now_ms)
            self._commerce.applied = number + 1

        await self._done(apply)

    async def _grant(self) -> None:
        feature, operation, value = self._chance.choice(_WISHES)
        account, kind = self._chance.choice(ENTITLED), self._chance.choice(("override", "override", "contract"))
        starts_ms = self._world.clock.now_ms() + self._chance.choice((0, 0, HOUR_MS))
        ends_ms = self._chance.choice((EVER_MS, EVER_MS, starts_ms + self._chance.randrange(MINUTE_MS, 12 * HOUR_MS)))
        if not self._strike(Fault.OVERRIDE_CHANGED):
            return
        self.made += 1
        grant = Grant(
            feature, SourceKind(kind), f"ticket {self.made:03}", Operation(operation), _exact(value), starts_ms,
            None if ends_ms == EVER_MS else ends_ms, cause=ACTOR, reason="simulated",
        )  # fmt: skip

        async def override(process: Process) -> None:
            made = await self._entitlements(process).override(account, grant, ACTOR, self._world.clock.now_ms())
            said = PersonsGrant(feature, kind, operation, value, starts_ms, ends_ms, made.number)
            self.granted.append(Made(account, said, made.number))

        await self._done(override)

    async def _revoke(self, made: Made) -> None:
        if not self._strike(Fault.OVERRIDE_CHANGED):
            return

        async def revoke(process: Process) -> None:
            now_ms = self._world.clock.now_ms()
            await self._entitlements(process).revoke(made.account, made.number, ACTOR, "simulated", now_ms)
            self.granted.remove(made)

        await self._done(revoke)

    def _entitlements(self, process: Process) -> Entitlements:
        return cast("Entitlements", Reached(process, "sql", self._world.tables.entitlements))


def _exact(value: Any) -> Value:
    if value == "unlimited":
        return UNLIMITED
    if isinstance(value, bool):
        return value
    return Decimal(value) if isinstance(value, int) else '{"days":999}'
