"""A simulated process. The process can die at any await; its later calls have no effect."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from schemas.errors import Transient
from simulation.faults import SERVICE_FAULTS, Fault, Faults, Rates

LATENCY_S: Final = 0.02
# ClickHouse may take minutes under load; the fold goes on between two steps of a relay.
SLOW_LATENCY_S: Final = {"redis": 2.0, "log": 5.0, "stripe": 20.0, "sql": 2.0, "clickhouse": 900.0}
# Shares of calls: AT_ONCE answers before another task runs; above SLOW the answer is slow.
AT_ONCE: Final = 0.5
SLOW: Final = {"redis": 0.985, "log": 0.985, "stripe": 0.985, "sql": 0.985, "clickhouse": 0.9}
STALL_S_MAX: Final = 900.0
# Calls of Stripe with faults of their own: nobody can tell whether they had an effect.
SENDS: Final = frozenset({"send", "create"})


class Killed(BaseException):
    """Raised in a dead process at its next call. The product's handlers must not catch it."""


class Trace:
    """A digest of all events of a run in order. Equal runs have equal digests."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self.calls = 0

    def note(self, *what: object) -> None:
        """Add an event to the digest."""
        self.calls += 1
        self._hash.update(repr(what).encode())

    def hexdigest(self) -> str:
        """The digest so far."""
        return self._hash.hexdigest()


class Process:
    """One incarnation of a role. Calls services through `Reached`; all its tasks die together."""

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
        """Die now, like after kill -9."""
        self.alive = False
        self._trace.note("killed", self.name)
        for task in self._tasks:
            task.cancel()

    def check(self) -> None:
        """Raise `Killed` in a dead process."""
        if not self.alive:
            raise Killed(self.name)

    async def reach(self, service: str, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        """Call a service, with possible faults. Suppressed faults do not change the random draws."""
        self.check()
        self._calls += 1
        key = f"{self.name}.{service}.{name}#{self._calls}"
        draw = self._chance.random
        fault_draw, crash_draw, stall_draw, latency_draw = draw(), draw(), draw(), draw()
        if latency_draw > AT_ONCE:
            slow = latency_draw > SLOW[service] and self._faults.active
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
        sends = service == "stripe" and name in SENDS
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
    """A proxy of a service for one process: every coroutine method goes through `Process.reach`.

    Callers `cast` the proxy to the protocol of the service.
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
