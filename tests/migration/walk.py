"""The walk through a migration: the months, the kills, the planted difference, and what must be true at the end."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from aggregators.migration_report import Report, report_of
from pipeline.changes.comparing import resume
from pipeline.changes.migrating import watch
from pipeline.changes.operating import PATIENCE_MS, turn
from schemas.errors import InvalidInput
from schemas.flat_to_metered import ItemState
from tests.worlds.counting import Counting
from tests.worlds.ending import Ends
from tests.worlds.migrating import ANN, FLAT, METERED, NAME, at_ms

WAVES: Final = (1, 10, 100)
FLAT_MINOR: Final = 9_900
# 240 000 calls, of which 100 000 are included, at 0.06 cents.
USAGE_MINOR: Final = 8_400
USED: Final = (100_000, 140_000)
# A process lives for fewer writing calls than the customers are, times this.
CALLS: Final = 1.5
Said = Callable[[str], None]


class Failed(Exception):
    """Something is not as it must be."""


def check(what: str, found: object, wanted: object) -> None:
    """Raise `Failed` unless two values are equal."""
    if found != wanted:
        raise Failed(f"{what}: {found!r}, and not {wanted!r}")


class Walk:
    """One migration of so many customers. `kills` counts the ends of processes by command."""

    def __init__(self, customers: int, seed: int, said: Said) -> None:
        self.number, self.random, self.said = customers, random.Random(seed), said
        self.world = Counting("2026-12-15")
        self.kills: Counter[str] = Counter()
        self.began_s = time.monotonic()
        self.back = ""

    def say(self, text: str) -> None:
        """Print where the walk is."""
        self.said(f"{time.monotonic() - self.began_s:6.1f} s  {text}")

    async def command(self, name: str, run: Callable[..., Awaitable[Any]]) -> Any:
        """Run a command whose process ends at random writing calls, before or after them, until one does not."""
        while True:
            try:
                found = await run(
                    countdown=[self.random.randint(1, int(CALLS * self.number))], after=bool(self.random.getrandbits(1))
                )
            except Ends:
                self.kills[name] += 1
                if self.random.random() < 0.3:
                    await self.world.settle()
                if self.random.random() < 0.5:
                    self.world.clock.ms += PATIENCE_MS
                    await turn(self.world.stores().parts)
            else:
                return found

    async def use(self) -> None:
        """Every customer uses 240 000 calls now."""
        for account in self.world.customers:
            for calls in USED:
                await self.world.use(account, calls)

    async def shadow_month(self) -> None:
        """The flat price with prices of 0 beside it, through January."""
        world = self.world
        await world.customers_join(self.number, billing_cycle_anchor=at_ms("2027-01-01") // 1_000)
        self.say(f"{self.number} customers have the flat price of {FLAT_MINOR}")
        await self.command("plan", world.plan)
        await self.command("shadow", world.shadow)
        check("states after shadow", await world.states(), {ItemState.SHADOW: self.number})
        await world.until("2027-01-20")
        await self.use()
        await world.until("2027-01-25")
        await world.until("2027-01-31 23:00")
        await self.command("compare", world.compare)
        check("states without an invoice", await world.states(), {ItemState.SHADOW: self.number})
        await world.until("2027-02-01 02:00")
        bills = [world.bills_of(account)[2] for account in world.customers]
        check("paid in the shadow month", sum(minor for _, minor in bills), self.number * FLAT_MINOR)
        check("what is paid", set(bills), {("paid", FLAT_MINOR)})
        self.say(f"the invoices of February 1 are {self.number * FLAT_MINOR}, and every line of usage is 0")

    async def sabotage(self) -> None:
        """The archive loses an event of one customer of the last wave: all waves halt until it is mended."""
        world = self.world
        last = (await world.items())[-1]
        name = next(name for name in world.clickhouse.events if name[0] == last.account)
        lost = world.clickhouse.events.pop(name)
        found = await self.command("compare", world.compare)
        if not found.migration.halted.startswith(f"{last.subscription} of {last.account}: invoice "):
            raise Failed(f"not halted for {last.account}: {found.migration.halted}")
        for wave in range(1, len(WAVES) + 2):
            for run in (world.approve(wave, FLAT_MINOR, "2027-01-28"), world.promote(wave)):
                try:
                    await run
                except InvalidInput as error:
                    if "is halted" not in str(error):
                        raise Failed(f"wave {wave}: {error}") from error
                else:
                    raise Failed(f"wave {wave} went on although the migration is halted")
        self.say(f"HALTED, and no wave goes on: {found.migration.halted}")
        world.clickhouse.events[name] = lost
        await self.command("compare", world.compare)
        await resume(world.stores(), NAME, ANN)
        check("states", await world.states(), {ItemState.COMPARED: self.number})
        items = await world.items()
        figures = {(each.figures.compared.ours_minor, each.figures.rated.stripe_minor) for each in items}  # type: ignore[union-attr]  # all are compared
        check("our rating and Stripe's", figures, {(USAGE_MINOR, USAGE_MINOR)})
        self.say(f"mended; our rating and Stripe's preview of the new price are {USAGE_MINOR} for each")

    async def promotion(self) -> None:
        """All waves are approved and scheduled; one customer goes back before March."""
        world = self.world
        sizes = Counter(item.wave for item in await world.items())
        for wave, size in sorted(sizes.items()):
            await self.command("approve", partial(world.approve, wave, size * FLAT_MINOR, "2027-01-28"))
            await self.command("promote", partial(world.promote, wave))
        await world.settle()
        check("states", await world.states(), {ItemState.SCHEDULED: self.number})
        self.say(f"{len(sizes)} waves are scheduled for March 1: {dict(sorted(sizes.items()))}")
        await world.until("2027-02-10")
        self.back = (await world.items())[-1].account
        await self.command("revert", partial(world.revert, self.back))
        await self.use()
        await world.until("2027-03-01 02:00")
        await self.command("compare", world.compare)
        check("states", await world.states(), {ItemState.PROMOTED: self.number - 1, ItemState.REVERTED: 1})

    async def first_invoices(self) -> None:
        """March is billed by usage on April 1."""
        world = self.world
        await world.until("2027-03-15")
        await self.use()
        await world.until("2027-03-20")
        await world.until("2027-04-01 02:00")
        await self.command("compare", world.compare)
        check("states", await world.states(), {ItemState.SETTLED: self.number - 1, ItemState.REVERTED: 1})

    async def proof(self) -> Report:
        """Compare every invoice with what was written down by hand."""
        world = self.world
        for account in world.customers:
            is_back = account == self.back
            bills = [FLAT_MINOR, FLAT_MINOR] if is_back else [0, USAGE_MINOR]
            wanted = [("paid", minor) for minor in [FLAT_MINOR, FLAT_MINOR, *bills]]
            check(f"invoices of {account}", world.bills_of(account)[1:], wanted)
            check(f"prices of {account}", world.has(account), {FLAT} if is_back else {METERED})
            check(f"schedules of {account}", len(world.schedules()), 1)
            trail = [row for row in await world.tables.audit(account) if row.entity == "migration_item"]
            check(f"audit of {account}", len({(row.before, row.after) for row in trail}), len(trail))
        sql = world.sql
        await watch(sql.catalog, sql.plan_moves, sql.migrations, world.clock)
        found = await world.status()
        check("halted", found.migration.halted, "")
        moved = self.number - 1
        self.say(f"March 1: {moved} invoices of 0, and {FLAT_MINOR} for {self.back}, who went back")
        self.say(f"April 1: {moved} invoices of {USAGE_MINOR}, together {moved * USAGE_MINOR}")
        return report_of(found.migration, found.items)


async def walk(customers: int, seed: int, said: Said) -> tuple[Walk, Report]:
    """Walk through a migration. Raises `Failed` at the first thing that is not as it must be."""
    found = Walk(customers, seed, said)
    await found.shadow_month()
    await found.sabotage()
    await found.promotion()
    await found.first_invoices()
    return found, await found.proof()
