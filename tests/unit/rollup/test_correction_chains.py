"""Random corrections of one event after another, some settled outside: what totals have, whatever ended when (S16)."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import pytest

from pipeline.rollup.corrector import Corrector
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.control import CorrectionRecord
from schemas.errors import Transient
from schemas.log import EVENTS_TOPIC
from sinks.clickhouse.fake_corrections import FakeCorrections
from tests.worlds.reconciler import Deployment

METERS: Final[list[dict[str, Any]]] = [
    {"slug": "calls", "event_type": "job", "aggregation": "count", "filters": [{"path": "$.kind", "values": ["real"]}]},
    {"slug": "units", "event_type": "job", "aggregation": "sum", "value_path": "$.units", "scale": 2,
     "dimensions": {"site": "$.site"}, "allow_negative": True},
]  # fmt: skip
ACCOUNTS: Final = ("ada", "bob")
Data = dict[str, Any] | None
# What data add to each meter; None adds nothing.
ADDS: Final[dict[str, Callable[[Data], int]]] = {
    "units": lambda data: round(float(data["units"]) * 100) if data else 0,
    "calls": lambda data: int(data is not None and data["kind"] == "real"),
}


class Chains:
    """Three correctors of one deployment, whose appends fail before or after they act."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.world = Deployment()
        self.correctors = [self.corrector() for _ in range(3)]
        # By event: the account, the data, and the corrections: whether totals follow, and the data then.
        self.events: dict[str, tuple[str, Data, list[tuple[str, Data]]]] = {}
        self.names: set[tuple[str, str]] = set()
        self.failing = 0.3
        self.append = self.world.log.append
        self.world.log.append = self._append  # type: ignore[method-assign]  # a fault of this log

    def corrector(self) -> Corrector:
        return Corrector(self.world.log, self.world.clickhouse, FakeCorrections(self.world.clickhouse))

    async def _append(self, topic: str, partition: int, value: bytes, **more: Any) -> Any:
        is_told = topic == EVENTS_TOPIC and b'"tidemark.adjusted.' in value
        chance = self.chance.random() if is_told else 1.0
        if chance < self.failing / 2:
            raise Transient("lost")
        appended = await self.append(topic, partition, value, **more)
        if chance < self.failing:
            raise Transient("the answer is lost")
        return appended

    async def write(self) -> None:
        world, chance = self.world, self.chance
        await world.start({"version": 1, "meters": METERS})
        for _ in range(50):
            await world.advance(chance.choice([1, HOUR_MS, 5 * HOUR_MS, DAY_MS, 2 * DAY_MS]))
            for _ in range(chance.randrange(4)):
                account, data = chance.choice(ACCOUNTS), self.data()
                at_ms = world.clock.ms - chance.choice([0, HOUR_MS, 5 * DAY_MS])
                self.events[await world.emit(account, type_="job", at_ms=at_ms, **data)] = account, data, []
            for _ in range(chance.randrange(3) if self.events else 0):
                await self.correct(chance.choice(sorted(self.events)))
            if chance.random() < 0.1:
                await self.move(chance.choice(ACCOUNTS))
            await chance.choice([world.fold, world.archive, world.catch_up])()
            await self.tell()
        self.failing = 0.0
        while await self.tell(everybody=True):
            await self.world.catch_up()

    async def correct(self, event: str) -> None:
        account, _, corrections = self.events[event]
        treatment = self.chance.choice(["next_period"] * 3 + ["credit_note", "write_off"])
        data = self.chance.choice([None, self.data()])
        name = f"c-{len(self.names) - self.chance.choice([0, 0, 0, 1])}"
        record = CorrectionRecord.model_validate({
            "account": account, "correction": name, "event": event, "kind": "void" if data is None else "amend",
            "data": "" if data is None else json.dumps(data), "by": "ann", "reason": "wrong", "treatment": treatment,
            "counts": treatment == "next_period",
        })  # fmt: skip
        await self.world.world.control(self.world.partition(account), record)
        if (account, name) not in self.names:
            corrections.append((treatment, data))
        self.names.add((account, name))

    def data(self) -> dict[str, Any]:
        chance = self.chance
        units = chance.choice(["1", "2.5", "-0.75", "0"])
        return {"units": units, "site": chance.choice(["", "eu"]), "kind": chance.choice(["real", "test"])}

    async def move(self, account: str) -> None:
        """Close the account's period, or bind the account anew, from a few days ago on."""
        world, chance = self.world, self.chance
        if chance.random() < 0.5:
            await world.close_period(account, world.clock.ms)
            return
        from_ms = (world.clock.ms - chance.choice([0, 3 * DAY_MS])) // MINUTE_MS * MINUTE_MS
        anchor_ms = world.clock.ms - chance.randrange(20) * DAY_MS
        await world.bind(account, stripe_customer=f"cus_{account}", effective_from_ms=from_ms, anchor_ms=anchor_ms)

    async def tell(self, *, everybody: bool = False) -> int:
        told = 0
        if everybody:
            await self.world.advance(HOUR_MS)
            await self.world.catch_up()
        for corrector in self.correctors:
            for partition in range(self.world.world.partitions) if everybody or self.chance.random() < 0.4 else ():
                try:
                    told += await corrector.correct(partition)
                except Transient:
                    continue
        if self.chance.random() < 0.1:
            self.correctors[0] = self.corrector()
        return told

    def expected(self) -> dict[tuple[str, str], int]:
        sums: Counter[tuple[str, str]] = Counter()
        for account, data, corrections in self.events.values():
            for slug, adds in ADDS.items():
                total, paid = adds(data), data
                for treatment, later in corrections:
                    total += adds(later) - adds(paid) if treatment == "next_period" else 0
                    paid = paid if treatment == "write_off" else later
                sums[account, slug] += total
        return {key: total for key, total in sums.items() if total}


@pytest.mark.parametrize("seed", [5, 11, 25, 32])
async def test_totals_follow_the_corrections_and_not_what_was_settled_outside(seed: int) -> None:
    """Also where a corrector looks at an event before its dedup decision, and for the reconciler."""
    chains = Chains(seed)
    await chains.write()

    assert chains.world.live() == chains.expected()
    await chains.world.relay()
    report = await chains.world.reconcile()
    assert report.differences == 0, report.rows
