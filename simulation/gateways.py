"""The gateways in the simulation: the product's checks, read again and again, and asked by applications."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable
from decimal import Decimal
from typing import Final, NamedTuple, cast

from pipeline.access.checks import AccessChecks
from pipeline.access.usage import LiveUsageSource
from schemas.access import Reason
from schemas.catalog_changes import CatalogStore
from schemas.entitlements import Entitlements
from schemas.errors import InvalidInput, Transient
from schemas.live_view import LiveTotals
from simulation.commerce import METER
from simulation.loop import SimulatedClock
from simulation.people import ENTITLED
from simulation.processes import Process, Reached
from simulation.services import LosingView, SharedTables
from simulation.traffic import PARTITIONS

GATEWAYS: Final = 2
# The product reads every half a second, which would cost a run real time.
REFRESH_S: Final = (60.0, 1_500.0)
ASK_S: Final = (10.0, 900.0)
ASKING: Final = 2
FEATURES: Final = ("sso", "seats", "desks", "reporting", METER)
_FALLBACK: Final = (Reason.FALLBACK_ALLOW, Reason.FALLBACK_DENY)


class Serving(NamedTuple):
    """What a running gateway answers from."""

    process: Process
    checks: AccessChecks
    clock: SimulatedClock


class Gateways:
    """The gateways that run, by their slot, and the versions that they have answered from."""

    def __init__(self, fail: Callable[[str, str], None]) -> None:
        self._fail = fail
        self._answered: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.serving: dict[str, Serving] = {}

    async def ask(self, slot: str, account: str, feature: str) -> None:
        """Ask for more of a feature. An answer is of no older version than an answer that came before the question."""
        checks, before = self.serving[slot].checks, self._answered[slot, account]
        try:
            answer = await checks.check(account, feature, Decimal(1), Decimal(0))
        except InvalidInput:
            # The first catalog is not active yet.
            return
        if answer.decision.reason in _FALLBACK:
            return
        if answer.version < before:
            self._fail("gateways", f"{slot} answers of {account} by version {answer.version} after version {before}")
        self._answered[slot, account] = max(self._answered[slot, account], answer.version)


async def serve(
    gateways: Gateways,
    tables: SharedTables,
    view: LosingView,
    slot: str,
    process: Process,
    clock: SimulatedClock,
    chance: random.Random,
) -> None:
    """Run one gateway until it fails. Never returns."""
    usage = LiveUsageSource(cast("LiveTotals", Reached(process, "redis", view.totals)), PARTITIONS, clock)
    checks = AccessChecks(
        cast("CatalogStore", Reached(process, "sql", tables.catalog)),
        cast("Entitlements", Reached(process, "sql", tables.entitlements)),
        usage,
        clock,
        chance.choice((2, 100_000)),
    )
    gateways.serving[slot] = Serving(process, checks, clock)

    async def refreshing() -> None:
        while True:
            try:
                await checks.refresh()
            except Transient:
                await asyncio.sleep(1)
                continue
            await asyncio.sleep(chance.uniform(*REFRESH_S))

    async def asking(asks: random.Random) -> None:
        while True:
            await asyncio.sleep(asks.uniform(*ASK_S))
            try:
                await gateways.ask(slot, asks.choice(ENTITLED), asks.choice(FEATURES))
            except Transient:
                continue

    works = [refreshing(), *(asking(random.Random(chance.random())) for _ in range(ASKING))]
    await asyncio.gather(*(process.run(work) for work in works))
