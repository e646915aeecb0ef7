"""A processor without a store, and a runner's Kafka client without a broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

from aiokafka import AIOKafkaConsumer

from pipeline.clock import SystemClock
from pipeline.runner.kafka import KafkaThread
from pipeline.runner.runner import Runner, RunnerSettings
from schemas.log import Record

PATIENCE_S = 60.0


@dataclass
class Steps:
    """A processor that records its steps and waits at a gate."""

    topic: str = "t"
    taken: list[list[int]] = field(default_factory=list)
    starts: dict[int, int] = field(default_factory=dict)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def start_offset(self, partition: int) -> int | None:
        return self.starts.get(partition)

    async def step(self, partition: int, records: Sequence[Record]) -> None:
        assert all(record.partition == partition for record in records)
        self.taken.append([record.offset for record in records])
        await self.gate.wait()

    async def revoked(self, partition: int) -> None:
        pass

    async def idle(self, partition: int) -> None:
        pass


async def until(condition: Callable[[], bool]) -> None:
    """Lets other tasks run until `condition` is true; raises `TimeoutError` after `PATIENCE_S`."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  there is no event to wait for
            await asyncio.sleep(0)


async def client(settings: RunnerSettings) -> AIOKafkaConsumer:
    """The client as a runner creates it."""
    app = Runner([Steps()], "kafka://nowhere:1", SystemClock(), settings)._new_app(None)
    transport = SimpleNamespace(servers=["nowhere:1"])
    return KafkaThread._create_worker_consumer(SimpleNamespace(app=app), transport)  # type: ignore[arg-type]  # the method reads only `app`
