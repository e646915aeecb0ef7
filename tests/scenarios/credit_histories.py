"""Random histories of credits: the product pays exactly what a small model says, whatever is repeated.

`python -m tests.scenarios.credit_histories` runs a million draws, some minutes of one core; `--store` runs them
through the SQL of the ledger, whose transactions end at random statements. `--seed 7 --histories 1` runs one again.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from fractions import Fraction
from random import Random
from typing import Protocol

from sqlalchemy import event

from aggregators import credits as rules
from schemas.credits import (
    Category,
    Coverage,
    CreditEntry,
    CreditGrant,
    EntryKind,
    Included,
    NewGrant,
    Pool,
    Terms,
    Usage,
)
from sinks.sql.fake import FakeSideTables
from tests.scenarios.credit_model import Model, ModelGrant, ModelPool

PERIOD = 1_000
RATES = ("1", "1", "2", "1/3", "1/1000", "7/5", "100")
ACCOUNT = "acme"


class Book(Protocol):
    """Where a history keeps its credits."""

    async def grant(self, new: NewGrant) -> str: ...
    async def void(self, grant: str, *, owes: bool) -> None: ...
    async def use(self, usage: Usage) -> int: ...
    async def left(self) -> dict[str, int]: ...


class PureBook:
    """The pure functions alone, over dictionaries."""

    def __init__(self, pools: Sequence[Pool], included: dict[str, Included]) -> None:
        self._pools, self._included = pools, included
        self._grants: dict[str, CreditGrant] = {}
        self._entries: dict[tuple[str, int], list[CreditEntry]] = {}
        self._coverage: dict[tuple[str, int], list[Coverage]] = {}
        self._paid: dict[str, int] = {}
        self._number = 0

    async def grant(self, new: NewGrant) -> str:
        name = rules.grant_id(ACCOUNT, new.source_key)
        self._grants[name] = CreditGrant(
            name, ACCOUNT, new.pool, new.category, new.credits, new.credits, new.priority, new.effective_ms,
            new.expires_ms, new.source_key, 0, new.rollover_max, new.rolls_until_ms,
        )  # fmt: skip
        return name

    async def void(self, grant: str, *, owes: bool) -> None:
        raise NotImplementedError

    async def use(self, usage: Usage) -> int:
        if usage.identifier in self._paid:
            return self._paid[usage.identifier]
        known = [each for each in self._grants.values() if each.category is Category.INCLUDED]
        span = (usage.period_start_ms, usage.period_end_ms)
        changes = rules.included_changes(ACCOUNT, *span, self._included, known)
        for new in changes.new:
            await self.grant(new)
        self._grants |= {each.id: each for each in changes.changed}
        key = (usage.meter, usage.period_start_ms)
        coverage, entries = self._coverage.get(key, []), self._entries.setdefault(key, [])
        spent = rules.spend(usage, self._pools, self._grants.values(), coverage, entries)
        for name, lost in spent.allocated.draws.items():
            self._grants[name] = rules.moved(self._grants[name], lost, usage.instant_ms)
            kind = EntryKind.DRAW if lost > 0 else EntryKind.RETURN
            self._number += 1
            if lost:
                entries.append(CreditEntry(ACCOUNT, self._number, name, kind, -lost, usage.identifier, 0, *key))
        self._coverage[key] = rules.with_parts(coverage, spent.parts)
        self._paid[usage.identifier] = spent.allocated.remainder_minor
        return spent.allocated.remainder_minor

    async def left(self) -> dict[str, int]:
        return {each.source_key: each.remaining for each in self._grants.values()}


class Ended(Exception):
    """The database ended the transaction."""


class SqlBook:
    """The ledger in SQL. Some transactions end at a random statement, and some answers are lost: the call is repeated,
    as a sender repeats it after its restart."""

    def __init__(self, pools: Sequence[Pool], included: dict[str, Included], random: Random) -> None:
        self.tables = FakeSideTables(lambda *_: (), lambda *_: ())
        self._terms = Terms("", pools, lambda _billed: included)
        self._random = random
        self._ends_in = 0
        self.ended = 0
        event.listen(self.tables._engine, "before_cursor_execute", self._count)

    def _count(self, *_arguments: object) -> None:
        self._ends_in -= 1
        if not self._ends_in:
            self.ended += 1
            raise Ended

    async def open(self) -> None:
        await self.tables.migrate("test:acct", "log")

    async def grant(self, new: NewGrant) -> str:
        return (await self.tables.credits.grant(new, "ann", "a test", 1)).grant.id

    async def void(self, grant: str, *, owes: bool) -> None:
        await self.tables.credits.void(ACCOUNT, grant, "ann", "a test", 1, owes=owes)

    async def use(self, usage: Usage) -> int:
        for _ in range(self._random.choice((1, 1, 1, 2))):
            self._ends_in = self._random.choice((0, 0, self._random.randrange(1, 25)))
            try:
                found = await self.tables.credits.allocate(usage, self._terms, 1)
            except Ended:
                found = await self.tables.credits.allocate(usage, self._terms, 1)
            self._ends_in = 0
        return found.remainder_minor

    async def left(self) -> dict[str, int]:
        assert await self.tables.credits.wrong() == []
        grants = (await self.tables.credits.of_account(ACCOUNT)).grants
        return {each.source_key: each.remaining for each in grants}


class Differs(AssertionError):
    """The product and the model disagree."""


class History:
    """One account's history: pools, plans and usage at random. Both sides see the same steps."""

    def __init__(self, seed: int, *, store: bool = False) -> None:
        self.random = random = Random(seed)
        names = ["alpha", "beta", "gamma"][: random.randrange(1, 4)]
        self.scales = {"calls": 0, "tokens": random.choice((0, 2, 3))}
        rates = {
            name: {meter: Fraction(random.choice(RATES)) for meter in self.scales if random.random() < 0.8} or
            {"calls": Fraction(1)}
            for name in names
        }  # fmt: skip
        overdrafts = {name: random.choice(("next", "next", "bill")) for name in names}
        pools = [
            Pool(name, "", order, overdrafts[name], rates[name])  # type: ignore[arg-type]  # one of the three
            for order, name in enumerate(names)
        ]
        self.included = {
            name: Included(random.randrange(1, 400), random.choice((0, 0, 50, 500)))
            for name in names
            if random.random() < 0.5
        }
        self.model = Model([ModelPool(each, rates[each], overdrafts[each] == "next") for each in names], self.scales)
        self.is_stored = store
        self.book: Book = SqlBook(pools, self.included, random) if store else PureBook(pools, self.included)
        self.names, self.now, self.number, self.draws = names, 0, 0, 0
        self.said: list[str] = []

    async def run(self, steps: int) -> None:
        """So many steps. Raises `Differs` with the last ones."""
        if isinstance(self.book, SqlBook):
            await self.book.open()
        for _ in range(steps):
            self.number += 1
            choice = self.random.random()
            if choice < 0.08:
                await self._grant()
            elif choice < 0.1 and self.is_stored:
                await self._void()
            elif choice < 0.14:
                self.now += self.random.choice((1, 1, 1, 4)) * self.random.randrange(1, PERIOD)
            else:
                await self._use()
        self._compare("left", {name: each.left for name, each in self.model.grants.items()}, await self.book.left())

    async def _grant(self) -> None:
        random, pool = self.random, self.random.choice(self.names)
        begins = max(0, self.now + random.randrange(-PERIOD, PERIOD // 2))
        # Of grants that are alike the one with the lower id is drawn first, and the model knows no ids.
        while any(each.begins == begins for each in self.model.grants.values()):
            begins += 1
        ends = random.choice((None, begins + random.randrange(1, 3 * PERIOD)))
        category = random.choice((Category.PROMOTIONAL, Category.PAID))
        size, priority, key = random.randrange(1, 300), random.choice((10, 50, 50)), f"gift {self.number:06}"
        new = NewGrant(ACCOUNT, pool, category, size, begins, key, ends, priority)
        self.said.append(f"grant {new}")
        await self.book.grant(new)
        self._given(ModelGrant(key, pool, category.value, size, priority, begins, ends))

    def _given(self, grant: ModelGrant) -> None:
        grant.tie = rules.grant_id(ACCOUNT, grant.name)
        self.model.grant(grant)

    async def _void(self) -> None:
        gifts = [name for name in self.model.grants if name.startswith("gift")]
        if gifts:
            key, owes = self.random.choice(gifts), self.random.random() < 0.5
            self.said.append(f"void {key} {owes}")
            await self.book.void(rules.grant_id(ACCOUNT, key), owes=owes)
            self.model.void(key, owes=owes)

    async def _use(self) -> None:
        random = self.random
        # Some usage comes late, and belongs to the period before.
        at = max(0, self.now - random.choice((0, 0, 0, random.randrange(PERIOD))))
        start = at // PERIOD * PERIOD
        meter = random.choice(list(self.scales))
        change = random.choice((1, 1, 2, 3, 5, 9, 30, -1, -2, -6)) * random.choice((1, 1, 1, 3))
        usage = Usage(
            f"intent {self.number}", ACCOUNT, meter, start, start + PERIOD, at, change, self.scales[meter]
        )  # fmt: skip
        self.said.append(f"use {usage}")
        self._include(start)
        wanted = self.model.use(meter, start, at, change)
        again = dict(self.model.again)
        self.model.again.clear()
        for (name, payer), paid in again.items():
            terms = self.model.grants[payer]
            key = f"return:{usage.identifier}:{rules.grant_id(ACCOUNT, name)}:{rules.grant_id(ACCOUNT, payer)}"
            category = "promotional" if terms.category == "included" else terms.category
            new = ModelGrant(key, terms.pool, category, paid, terms.priority, terms.begins, terms.ends)
            self._given(new)
        self._compare("remainder", wanted, await self.book.use(usage))
        self.draws += 1

    def _include(self, start: int) -> None:
        """The plan gives each period; of idle periods the last one counts."""
        for pool, gives in sorted(self.included.items()):
            key = f"included:{pool}:"
            own = {each.begins: each for each in self.model.grants.values() if each.name.startswith(key)}
            if start in own:
                continue
            begins = [start]
            earlier = [each.ends or 0 for begin, each in own.items() if begin < start]
            if earlier and gives.rollover_max and max(earlier) < start:
                begins.append(max(earlier))
            for begin in sorted(begins):
                name = f"included:{pool}:{begin}"
                ends = start if begin < start else start + PERIOD
                ends = min([ends, *(other for other in own if other > begin)])
                grant = ModelGrant(name, pool, "included", gives.credits, 50, begin, ends, gives.rollover_max)
                self._given(grant)
                own[begin] = grant
            for each in own.values():
                each.ends = min([each.ends or 0, *(begin for begin in own if begin > each.begins)])
            for each in own.values():
                after = own.get(each.ends or 0)
                each.rolls_until = after.ends if after and gives.rollover_max else None

    def _compare(self, what: str, wanted: object, found: object) -> None:
        if wanted != found:
            raise Differs("\n".join([*self.said[-30:], f"{what}: the model says {wanted}, the product {found}"]))


async def run_all(seed: int, histories: int, steps: int, *, store: bool = False) -> int:
    """Run histories; returns the number of draws. Raises `Differs`, with the seed of the history."""
    draws = 0
    for number in range(seed, seed + histories):
        history = History(number, store=store)
        try:
            await history.run(steps)
        except Differs as error:
            raise Differs(f"seed {number}\n{error}") from error
        draws += history.draws
    return draws


def main() -> None:
    """Run as many histories as there are draws wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--histories", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--store", action="store_true")
    arguments = parser.parse_args()
    began, draws, seed = time.monotonic(), 0, arguments.seed
    while draws < arguments.draws and seed - arguments.seed < (arguments.histories or arguments.draws):
        draws += asyncio.run(run_all(seed, 1, arguments.steps, store=arguments.store))
        seed += 1
    print(f"{draws} draws of {seed - arguments.seed} accounts agree with the model, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
