"""A processor that records what it was given, a runner in this process, and workers in others."""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from pipeline.clock import SystemClock
from pipeline.local.processes import LocalProcess, python
from pipeline.runner.runner import Runner, RunnerSettings
from schemas.log import Log, Record

PARTITIONS = 4
PATIENCE_S = 90.0


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for `condition`, which others make true."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"timed out: {what}"
        await asyncio.sleep(0.01)


class Recorder:
    """A processor that keeps what it was given, and can be made to fail or to wait."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.positions: dict[int, int] = {}
        self.seen: dict[int, list[int]] = defaultdict(list)
        self.calls: list[tuple[str, int]] = []
        self.fail_at: int | None = None
        self.gates: dict[int, asyncio.Event] = {}
        self.starts: dict[int, int | None] = {}
        self.in_step: set[int] = set()

    @property
    def count(self) -> int:
        return sum(map(len, self.seen.values()))

    async def start_offset(self, partition: int) -> int | None:
        self.calls.append(("start", partition))
        return self.starts.get(partition, self.positions.get(partition))

    async def step(self, partition: int, records: Sequence[Record]) -> None:
        assert partition not in self.in_step
        self.in_step.add(partition)
        self.calls.append(("step", partition))
        if partition in self.gates:
            await self.gates[partition].wait()
        if self.fail_at is not None and any(record.offset == self.fail_at for record in records):
            raise ValueError(f"cannot process offset {self.fail_at}")
        self.seen[partition] += [record.offset for record in records]
        self.positions[partition] = records[-1].next_offset
        self.in_step.discard(partition)

    async def revoked(self, partition: int) -> None:
        assert partition not in self.in_step
        self.calls.append(("revoked", partition))

    async def idle(self, partition: int) -> None:
        assert partition not in self.in_step
        self.calls.append(("idle", partition))


def settings_for(group: str) -> RunnerSettings:
    return RunnerSettings(
        group, flush_events_max=5, queue_events_max=20, fetch_records_max=20, commit_interval_s=0.1,
        session_timeout_s=6, heartbeat_interval_s=0.5, idle_interval_s=0.1,
    )  # fmt: skip


@asynccontextmanager
async def running(processor: Recorder, log_url: str, group: str) -> AsyncIterator[tuple[Runner, asyncio.Task[None]]]:
    """A runner in this process, stopped in order at the end."""
    runner = Runner([processor], log_url, SystemClock(), settings_for(group))
    stop = asyncio.Event()
    task = asyncio.create_task(runner.run(stop))
    try:
        yield runner, task
    finally:
        stop.set()
        await asyncio.wait({task})
    if not task.cancelled() and task.exception() is None:
        task.result()


async def fill(log: Log, topic: str, count: int) -> None:
    """`count` records over all partitions."""
    await asyncio.gather(*(log.append(topic, number % PARTITIONS, b"%d" % number) for number in range(count)))


async def committed(log: Log, group: str, topic: str) -> list[int | None]:
    return [await log.committed(group, topic, partition) for partition in range(PARTITIONS)]


async def until_committed(log: Log, topic: str, expected: list[int | None]) -> None:
    """Wait until the group named as the topic has committed `expected`."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while (offsets := await committed(log, topic, topic)) != expected:
        assert asyncio.get_running_loop().time() < deadline, f"timed out: committed {offsets}, not {expected}"


class Worker:
    """`runner_worker` in a process of its own."""

    def __init__(self, log_url: str, topic: str, store_path: Path, pause_s: float = 0.01) -> None:
        command = python("tests.integration.runner_worker", log_url, topic, topic, str(store_path), str(pause_s))
        self._process = LocalProcess("the worker", command, store_path.with_name(f"worker-{uuid.uuid4().hex}.log"))

    async def start(self) -> int:
        """Returns the process id."""
        self._process.start()
        assert self._process.pid is not None
        return self._process.pid

    async def kill(self) -> None:
        self._process.kill()

    async def terminate(self) -> int:
        """Stop in order; returns the exit code."""
        await asyncio.to_thread(self._process.stop)
        assert self._process.exit_code == 0, self._process.output()
        return self._process.exit_code
