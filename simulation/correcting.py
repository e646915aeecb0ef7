"""People at the business who void and amend what came, sometimes two of them under one name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, cast

from aggregators.partitioning import partition_of
from pipeline.logs.bindings import AccountLog
from pipeline.logs.correcting import Uncorrectable, plan_correction, write_correction
from schemas.analytics import EventRow
from schemas.control import CorrectionRecord
from schemas.corrections import CorrectionArchive
from schemas.live_view import AccountDirectory
from schemas.log import EVENTS_TOPIC
from simulation.commands import Commands
from simulation.faults import Fault
from simulation.processes import Process, Reached
from simulation.roles import SECRET
from simulation.services import Deployment
from simulation.traffic import DISKS, PARTITIONS, POLICY, encoded, time_text
from sinks.clickhouse.fake_corrections import FakeCorrections
from sinks.redis.fake import FakeAccounts

CORRECTIONS: Final = 30
# Of the events that the archive has, people look at the newest ones.
SEEN_MAX: Final = 150
TYPES: Final = ("request", "request", "sample", "beat", "seats")
SAME_EVENT: Final = 0.2
SAME_NAME: Final = 0.35


class _View(NamedTuple):
    accounts: AccountDirectory


class Correcting(Commands):
    """Corrects one event after the other. `wishes` are those that were made at all, also those that were refused."""

    def __init__(self, world: Deployment, accounts: Sequence[str]) -> None:
        super().__init__(world, "correcting")
        self._accounts = accounts
        self.wishes: list[CorrectionRecord] = []

    async def live(self, span_s: float) -> None:
        """Correct events until the task is cancelled."""
        while True:
            await asyncio.sleep(self._chance.expovariate(CORRECTIONS / span_s))
            if (first := self._wish()) is not None and self._strike(Fault.CORRECTED):
                second = self._wish(first.correction) if self._chance.random() < SAME_NAME else None
                await self._correct([first] if second is None else [first, second])

    async def settle(self) -> None:
        """End what was begun, and end all levels: a level that stands is told hour by hour."""
        await self.finish()
        end_ms = self._world.clock.now_ms() + POLICY["future_ms"]
        for account in self._accounts:
            empty: list[dict[str, Any]] = [
                {"specversion": "1.0", "id": f"empty-{disk}", "source": "/simulation", "type": "sample",
                 "subject": account, "time": time_text(end_ms, 0), "data": {"gb": 0, "disk": disk}}
                for disk in DISKS
            ]  # fmt: skip
            await self._world.log.append(EVENTS_TOPIC, partition_of(account, PARTITIONS), encoded(empty))

    def _wish(self, name: str = "") -> CorrectionRecord | None:
        """A correction of an event that the archive has; None if it has none of a type that is drawn."""
        chance, wanted = self._chance, self._chance.choice(TYPES)
        earlier = {(wish.account, wish.event) for wish in self.wishes}
        rows = [row for row in self._world.clickhouse.events.values() if row.type == wanted]
        if chance.random() < SAME_EVENT:
            rows = [row for row in rows if (row.account, row.id) in earlier] or rows
        if name:
            rows = [row for row in rows if row.account == self.wishes[-1].account]
        if not rows:
            return None
        row, kind = chance.choice(rows[-SEEN_MAX:]), chance.choice(("void", "void", "amend"))
        wish = CorrectionRecord.model_validate({
            "account": row.account, "correction": name or f"ticket-{len(self.wishes)}", "event": row.id, "kind": kind,
            "data": self._other_data(row) if kind == "amend" else "", "by": "ann", "reason": "simulated",
            "treatment": chance.choice(("next_period", "next_period", "next_period", "write_off")),
        })  # fmt: skip
        self.wishes.append(wish)
        return wish

    def _other_data(self, row: EventRow) -> str:
        data, chance = json.loads(row.data), self._chance
        if row.type == "request":
            data["gb"] = f"{chance.randrange(5)}.{chance.randrange(1000):03d}"
            data["region"] = chance.choice(("eu", "us"))
            data["weight"] = chance.choice((1, 2.5, 0, -4, "heavy"))
        return json.dumps(data)

    async def _correct(self, wishes: Sequence[CorrectionRecord]) -> None:
        async def correct(process: Process) -> None:
            await asyncio.gather(*(self._write(process, wish) for wish in wishes))

        await self._done(correct)

    async def _write(self, process: Process, wish: CorrectionRecord) -> None:
        """What `tidemark correct` does."""
        world = self._world
        log = AccountLog(cast("Any", Reached(process, "log", world.log)), PARTITIONS, SECRET, world.clock)
        accounts = cast("AccountDirectory", Reached(process, "redis", FakeAccounts(world.store.server)))
        archive = cast("CorrectionArchive", Reached(process, "clickhouse", FakeCorrections(world.clickhouse)))
        try:
            planned = await plan_correction(log, _View(accounts), archive, wish)
        except Uncorrectable:
            world.faults.note(Fault.CORRECTION_REFUSED)
            return
        await write_correction(log, planned)
