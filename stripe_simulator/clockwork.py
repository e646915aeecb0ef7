"""Due jobs: one ordered queue for the real clock and one for each test clock.

A job is data, a kind and JSON arguments, so that the journal can restore the queue. While a job runs, its clock shows
the job's due time. Jobs of the same instant run in an order that the seed decides; a job that must come after another
is scheduled by the other.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from stripe_simulator.clock import Clock
from stripe_simulator.journal import Journal

REAL = ""

JobHandler = Callable[[dict[str, Any]], None]


class Job(NamedTuple):
    """A due job; the first three fields are its place in the queue."""

    due_ms: int
    tie: int
    number: int
    kind: str
    arguments: dict[str, Any]


class Clockwork:
    """The queues of one mode. `handlers` maps a kind of job to its function."""

    def __init__(
        self, clock: Clock, journal: Journal, seed: str, handlers: Mapping[str, JobHandler], name: str
    ) -> None:
        self._clock = clock
        self._journal = journal
        self._seed = seed
        self._handlers = handlers
        self._name = name
        self._queues: dict[str, list[Job]] = {REAL: []}
        self._waiting: set[int] = set()
        self._times_ms: dict[str, int | None] = {}
        self._numbers = 0
        journal.register(f"{name}.schedule", self._apply_schedule)
        journal.register(f"{name}.done", self._apply_done)
        journal.register(f"{name}.time", self._apply_time)

    def now_ms(self, clock: str = REAL) -> int:
        """The time of a clock: of the running job, of the frozen test clock, or the real time."""
        frozen_ms = self._times_ms.get(clock)
        return self._clock.now_ms() if frozen_ms is None else frozen_ms

    def schedule(self, due_ms: int, kind: str, arguments: dict[str, Any], clock: str = REAL) -> int:
        """Add a job. Returns its number for `cancel`. A job in the past runs at the next opportunity."""
        if kind not in self._handlers:
            raise LookupError(f"no resource has a job of kind {kind}")
        number = self._numbers + 1
        with self._journal.transaction():
            self._journal.change(f"{self._name}.schedule", number, due_ms, kind, arguments, clock)
        return number

    def cancel(self, number: int) -> None:
        """Remove a job. Nothing happens if the job has run."""
        if number in self._waiting:
            with self._journal.transaction():
                self._journal.change(f"{self._name}.done", number)

    def set_time(self, clock: str, now_ms: int) -> None:
        """Start or move a test clock without running its jobs."""
        with self._journal.transaction():
            self._journal.change(f"{self._name}.time", clock, now_ms)

    def next_due_ms(self, clock: str = REAL) -> int | None:
        """When the next job of a clock is due, or None."""
        queue = self._queues.get(clock, [])
        while queue and queue[0].number not in self._waiting:
            heapq.heappop(queue)
        return queue[0].due_ms if queue else None

    def catch_up(self) -> None:
        """Run every job of the real clock that is due now."""
        if self._queues[REAL]:
            self.run(REAL, self._clock.now_ms())

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
                with self._journal.transaction():
                    self._journal.change(f"{self._name}.done", job.number)
                    if clock != REAL:
                        self._journal.change(f"{self._name}.time", clock, self._times_ms[clock])
                    self._handlers[job.kind](job.arguments)
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
        tie = int.from_bytes(hashlib.blake2b(f"{self._seed}:{number}".encode(), digest_size=8).digest())
        heapq.heappush(self._queues.setdefault(clock, []), Job(due_ms, tie, number, kind, arguments))
        self._waiting.add(number)
        self._numbers = number
        self._journal.undo(lambda: self._waiting.discard(number))

    def _apply_done(self, number: int) -> None:
        self._waiting.discard(number)
        self._journal.undo(lambda: self._waiting.add(number))

    def _apply_time(self, clock: str, now_ms: int) -> None:
        before_ms = self._times_ms.get(clock)
        self._times_ms[clock] = now_ms
        self._journal.undo(lambda: self._times_ms.update({clock: before_ms}))
