"""Due jobs: one ordered queue for the real clock and one for each test clock.

A job is data, a kind and JSON arguments, so that the journal can restore the queue. While a job runs, its clock shows
the job's due time. Jobs of the same instant run in an order that the seed decides; a job that must come after another
is scheduled by the other.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from stripe_simulator.clock import Clock
from stripe_simulator.journal import Journal

REAL = ""


class Job(NamedTuple):
    """A due job; the first three fields are its place in the queue."""

    due_ms: int
    tie: int
    number: int
    kind: str
    arguments: dict[str, Any]


@dataclass(eq=False)
class Clockwork:
    """The queues of one mode. `handlers` maps a kind of job to its function."""

    clock: Clock
    journal: Journal
    seed: str
    handlers: Mapping[str, Callable[[dict[str, Any]], None]]
    name: str
    _queues: dict[str, list[Job]] = field(default_factory=lambda: {REAL: []})
    _waiting: set[int] = field(default_factory=set)
    _times_ms: dict[str, int | None] = field(default_factory=dict)
    _numbers: int = 0

    def __post_init__(self) -> None:
        self.journal.register(f"{self.name}.schedule", self._apply_schedule)
        self.journal.register(f"{self.name}.done", self._apply_done)
        self.journal.register(f"{self.name}.time", self._apply_time)

    def now_ms(self, clock: str = REAL) -> int:
        """The time of a clock: of the running job, of the frozen test clock, or the real time."""
        frozen_ms = self._times_ms.get(clock)
        return self.clock.now_ms() if frozen_ms is None else frozen_ms

    def schedule(self, due_ms: int, kind: str, arguments: dict[str, Any], clock: str = REAL) -> int:
        """Add a job. Returns its number for `cancel`. A job in the past runs at the next opportunity."""
        if kind not in self.handlers:
            raise LookupError(f"no resource has a job of kind {kind}")
        number = self._numbers + 1
        with self.journal.transaction():
            self.journal.change(f"{self.name}.schedule", number, due_ms, kind, arguments, clock)
        return number

    def cancel(self, number: int) -> None:
        """Remove a job. Nothing happens if the job has run."""
        if number in self._waiting:
            with self.journal.transaction():
                self.journal.change(f"{self.name}.done", number)

    def set_time(self, clock: str, now_ms: int) -> None:
        """Start or move a test clock without running its jobs."""
        with self.journal.transaction():
            self.journal.change(f"{self.name}.time", clock, now_ms)

    def next_due_ms(self, clock: str = REAL) -> int | None:
        """When the next job of a clock is due, or None."""
        queue = self._queues.get(clock, [])
        while queue and queue[0].number not in self._waiting:
            heapq.heappop(queue)
        return queue[0].due_ms if queue else None

    def catch_up(self) -> None:
        """Run every job of the real clock that is due now."""
        if self._queues[REAL]:
            self.run(REAL, self.clock.now_ms())

    def run(self, clock: str, until_ms: int) -> None:
        """Run the jobs of a clock that are due until `until_ms`, in order, each in a transaction of its own.

        Afterwards a test clock shows `until_ms`. An exception of a job is a defect of the simulator: it goes to the
        caller, and the job stays in the queue.
        """
        while (due_ms := self.next_due_ms(clock)) is not None and due_ms <= until_ms:
            job = self._queues[clock][0]
            before_ms = self._times_ms.get(clock)
            self._times_ms[clock] = max(due_ms, before_ms or due_ms)
            try:
                with self.journal.transaction():
                    self.journal.change(f"{self.name}.done", job.number)
                    if clock != REAL:
                        self.journal.change(f"{self.name}.time", clock, self._times_ms[clock])
                    self.handlers[job.kind](job.arguments)
            finally:
                if clock == REAL:
                    del self._times_ms[clock]
        if clock != REAL:
            self.set_time(clock, until_ms)

    def waiting(self) -> list[tuple[int, str, str]]:
        """(due time, clock, kind) of every job, in order."""
        jobs = [(job, clock) for clock, queue in self._queues.items() for job in queue if job.number in self._waiting]
        return [(job.due_ms, clock, job.kind) for job, clock in sorted(jobs)]

    def _apply_schedule(self, number: int, due_ms: int, kind: str, arguments: dict[str, Any], clock: str) -> None:
        tie = int.from_bytes(hashlib.blake2b(f"{self.seed}:{number}".encode(), digest_size=8).digest())
        heapq.heappush(self._queues.setdefault(clock, []), Job(due_ms, tie, number, kind, arguments))
        self._waiting.add(number)
        self._numbers = number
        self.journal.undo(lambda: self._waiting.discard(number))

    def _apply_done(self, number: int) -> None:
        self._waiting.discard(number)
        self.journal.undo(lambda: self._waiting.add(number))

    def _apply_time(self, clock: str, now_ms: int) -> None:
        before_ms = self._times_ms.get(clock)
        self._times_ms[clock] = now_ms
        self.journal.undo(lambda: self._times_ms.update({clock: before_ms}))
