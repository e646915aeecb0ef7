"""A process of the deployment: it can die at any await, and what it does after that has no effect."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from schemas.errors import Transient
from simulation.faults import SERVICE_FAULTS, Fault, Faults, Rates

LATENCY_S: Final = 0.02
# ClickHouse may take minutes under load, long enough for the fold to go on between two steps of a relay.
SLOW_LATENCY_S: Final = {"redis": 2.0, "log": 5.0, "stripe": 20.0, "clickhouse": 900.0}
# Shares of calls: answered before anybody else runs, and (the rest) answered slowly. ClickHouse often, so that the fold
# goes on in the middle of a relay.
AT_ONCE: Final = 0.5
SLOW: Final = {"redis": 0.985, "log": 0.985, "stripe": 0.985, "clickhouse": 0.9}
STALL_S_MAX: Final = 900.0


class Killed(BaseException):
    """Raised in a dead process at its next call; no handler of the product may hold it up."""


class Trace:
    """A digest of everything that happened, in its order: two equal runs have the same."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self.calls = 0

    def note(self, *what: object) -> None:
        """Add one happening."""
        self.calls += 1
        self._hash.update(repr(what).encode())

    def hexdigest(self) -> str:
        """The digest so far."""
        return self._hash.hexdigest()


class Process:
    """One incarnation of a role: reaches services through `Reached`, runs tasks, dies as a whole."""

    def __init__(self, name: str, chance: random.Random, faults: Faults, rates: Rates, trace: Trace) -> None:
        self.name = name
        self.alive = True
        self.stalled: Callable[[], None] = lambda: None
        self._chance = chance
        self._faults = faults
        self._rates = rates
        self._trace = trace
        self._calls = 0
        self._tasks: list[asyncio.Task[None]] = []

    def run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task of this process."""
        task = asyncio.ensure_future(work)
        self._tasks.append(task)
        return task

    def kill(self) -> None:
        """Die now, as by kill -9."""
        self.alive = False
        self._trace.note("killed", self.name)
        for task in self._tasks:
            task.cancel()

    def check(self) -> None:
        """Raise `Killed` in a dead process."""
        if not self.alive:
            raise Killed(self.name)

    async def reach(self, service: str, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        """Make one call to a service, with what may befall it. The draws are the same whatever is suppressed."""
        self.check()
        self._calls += 1
        key = f"{self.name}.{service}.{name}#{self._calls}"
        draw = self._chance.random
        fault_draw, crash_draw, stall_draw, latency_draw = draw(), draw(), draw(), draw()
        if latency_draw > AT_ONCE:
            slow = latency_draw > SLOW[service]
            await asyncio.sleep(latency_draw * (SLOW_LATENCY_S[service] if slow else LATENCY_S))
            self.check()
        rates = self._rates
        if stall_draw < rates.stall and self._faults.strike(Fault.STALL, key):
            self.stalled()
            await asyncio.sleep(STALL_S_MAX * stall_draw / rates.stall)
            self.check()
        if crash_draw < rates.crash / 2 and self._faults.strike(Fault.CRASH_BEFORE, key):
            self.kill()
            raise Killed(self.name)
        refused, lost = SERVICE_FAULTS[service]
        sends = service == "stripe" and name == "send"
        if fault_draw < rates.refused and not sends and self._faults.strike(refused, key):
            raise Transient(f"{service} does not answer", 0.1 + latency_draw)
        self._trace.note(self.name, service, name)
        result = await call()
        self.check()
        if rates.crash / 2 <= crash_draw < rates.crash and self._faults.strike(Fault.CRASH_AFTER, key):
            self.kill()
            raise Killed(self.name)
        if fault_draw > 1 - rates.answer_lost and not sends and self._faults.strike(lost, key):
            raise Transient(f"{service}'s answer was lost", 0.1 + latency_draw)
        return result


class Reached:
    """A service as one process reaches it: every coroutine method goes through `Process.reach`.

    It stands in for whatever protocol the service has; `cast` it where it is made.
    """

    def __init__(self, process: Process, service: str, target: object) -> None:
        self._process = process
        self._service = service
        self._target = target

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)
        if not asyncio.iscoroutinefunction(method):
            return method
        process, service = self._process, self._service

        async def reached(*arguments: Any, **named: Any) -> Any:
            return await process.reach(service, name, lambda: method(*arguments, **named))

        setattr(self, name, reached)
        return reached
