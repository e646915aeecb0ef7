"""Deliberate defects, to prove the proof: the simulation must catch each. The switch exists in this folder only.

`python -m tests.simulation.mutants` runs seeds under each defect until one fails, and prints what it took.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

import msgspec

import aggregators.flush_plan
import aggregators.fold
import aggregators.scan
import pipeline.billing.customers
import pipeline.billing.sender
import pipeline.ingest.archive
import pipeline.rollup.processor
import pipeline.rollup.relays
import pipeline.rollup.resolver
from aggregators.meters import CompiledMeterSet, Contribution, Failure
from aggregators.steps import Arrival
from pipeline.ingest.archive import ArchiveProcessor
from pipeline.ingest.router import ROUTER_GROUP, RouterProcessor
from pipeline.rollup.cache import StateCache
from pipeline.rollup.processor import ROLLUP_GROUP, RollupProcessor
from schemas.analytics import ArchivePosition, EventRow
from schemas.control import Genesis, Tick
from schemas.errors import Transient
from schemas.log import EVENTS_TOPIC, INBOX_TOPIC
from simulation.traffic import ORIGIN_MS
from sinks.clickhouse.fake import FakeClickHouse
from sinks.redis.fake import FakeOutbox, FakeServer
from tests.simulation.access_mutants import ACCESS
from tests.simulation.billing_mutants import BILLING
from tests.simulation.binding_mutants import BINDINGS
from tests.simulation.closing_mutants import CLOSING
from tests.simulation.flush_mutants import FLUSHES
from tests.simulation.late_binding_mutants import LATE_BINDINGS
from tests.simulation.mirror_mutants import MIRROR
from tests.simulation.mutant import RUNS_MAX, Method, Mutant, inner, runs_to_catch


def _without_bindings(original: Any) -> Any:
    async def replayed(rows: Any) -> Any:
        meter_set, _ = await original(rows)
        return meter_set, {}

    return replayed


def _starts_at_committed(original: Method) -> Method:
    async def start_offset(self: RollupProcessor, partition: int) -> int:
        fenced: int = await original(self, partition)
        return await self._log.committed(ROLLUP_GROUP, EVENTS_TOPIC, partition) or fenced

    return start_offset


def _commits_offset_first(original: Method) -> Method:
    at_committed = _starts_at_committed(original)

    async def start_offset(self: RollupProcessor, partition: int) -> int:
        offset: int = await at_committed(self, partition)
        if "step" not in vars(self):
            step = self.step

            async def commit_and_step(partition: int, records: Any) -> None:
                await self._log.commit(ROLLUP_GROUP, {(EVENTS_TOPIC, partition): records[-1].next_offset})  # type: ignore[attr-defined]  # the simulation's log has it
                await step(partition, records)

            vars(self)["step"] = commit_and_step
        return offset

    return start_offset


def _increments_outside_the_commit(original: Method) -> Method:
    async def commit(self: RollupProcessor, partition: int, checkpoint: Any, changes: Any) -> None:
        if changes.replaced:
            # A restatement says totals of which the cache knows nothing.
            await original(self, partition, checkpoint, changes)
            return
        stored = inner(self._store)._server.at(partition).totals
        for key, fields in changes.totals.items():
            seen, now = self._caches[partition]._totals[key], stored.setdefault(key, {})
            for meter, text in fields.items():
                if ":" not in text:
                    now[meter] = str(int(now.get(meter, "0")) + int(text) - int(seen.get(meter, "0")))
        absolute = {
            key: {meter: text for meter, text in fields.items() if ":" in text}
            for key, fields in changes.totals.items()
        }
        await original(self, partition, checkpoint, changes._replace(totals=absolute))

    return commit


def _wall_clock_ms() -> int:
    return ORIGIN_MS + round(asyncio.get_running_loop().time() * 1000)


def _any_logs_tick(original: Any) -> Any:
    def apply(self: Any, control: Any, at: int) -> str | None:
        problem: str | None = original(self, control, at)
        return None if isinstance(control, Tick | Genesis) else problem

    return apply


def _router_commits_first(original: Method) -> Method:
    async def step(self: RouterProcessor, partition: int, records: Any) -> None:
        await self._log.commit(ROUTER_GROUP, {(INBOX_TOPIC, partition): records[-1].next_offset})  # type: ignore[attr-defined]  # the simulation's log has it
        await original(self, partition, records)

    return step


def _believes_anything(_original: Any) -> Any:
    def believe(self: FakeServer, partition: int, _believed: Any) -> Any:
        return self.at(partition)

    return believe


def _marks_first(original: Method) -> Method:
    async def commit(self: RollupProcessor, partition: int, checkpoint: Any, changes: Any) -> None:
        held = inner(self._store)._server.at(partition)
        for key, members in changes.marks.items():
            held.marks.setdefault(key, set()).update(members)
        await original(self, partition, checkpoint, changes)

    return commit


def _forgets_all_dirty(_original: Method) -> Method:
    async def confirm_dirty(self: FakeOutbox, partition: int, _relayed: Any) -> None:
        self._server.at(partition).dirty.clear()

    return confirm_dirty


def _forgets_moved_dirty(_original: Method) -> Method:
    async def confirm_dirty(self: FakeOutbox, partition: int, relayed: Any) -> None:
        for cell in relayed:
            self._server.at(partition).dirty.pop(cell.key, None)

    return confirm_dirty


def _forgets_all_duplicates(_original: Method) -> Method:
    async def confirm_duplicates(self: FakeOutbox, partition: int, _positions: Any) -> None:
        self._server.at(partition).duplicates.clear()

    return confirm_duplicates


def _identity_with_time(original: Any) -> Any:
    def scan(*arguments: Any, **named: Any) -> Any:
        scanned = original(*arguments, **named)
        steps = [
            msgspec.structs.replace(step, id=f"{step.id}@{step.time_us}") if isinstance(step, Arrival) else step
            for step in scanned.steps
        ]
        return scanned._replace(steps=steps)

    return scan


def _starts_from_nothing(original: Method) -> Method:
    async def first_checkpoint(self: RollupProcessor, partition: int, committed: int | None, *log: Any) -> Any:
        if not committed:
            return await original(self, partition, committed, *log)
        settings, self._settings = self._settings, self._settings._replace(replay_from_start=True)
        checkpoint = await original(self, partition, committed, *log)
        self._settings = settings
        checkpoint = inner(self._store)._server.at(partition).checkpoint = msgspec.structs.replace(
            checkpoint, next_offset=committed
        )
        return checkpoint

    return first_checkpoint


def _last_arrival_wins(_original: Method) -> Method:
    async def insert_events(self: FakeClickHouse, rows: Sequence[EventRow]) -> None:
        self.events.update({(row.account, row.id): row for row in rows})

    return insert_events


def _archive_position_first(original: Method) -> Method:
    async def step(self: ArchiveProcessor, partition: int, records: Any) -> None:
        state = self._partitions[partition].state
        last = records[-1]
        at = ArchivePosition(partition, last.next_offset, max(state.stream_time_ms, last.timestamp_ms), state.log_id)
        await self._store.save_position(at)
        await original(self, partition, records)

    return step


def _decided_again(original: Any) -> Any:
    def judge(self: Any, candidate: Any, deferred: Any, decision: Any) -> None:
        was_open = deferred.position in self.open
        original(self, candidate, deferred, decision)
        if was_open:
            self.decided = [each for each in self.decided if each.position != deferred.position]

    return judge


def _cell_for_each_report_bucket(original: Any) -> Any:
    def contribute(self: Any, number: int, *arguments: Any) -> None:
        cell = self.targets[number].cell
        read, running = vars(self).setdefault("mutant", (list(self.cells), {}))
        self.cells[cell] = running.get(number, read[cell])
        original(self, number, *arguments)
        running[number] = self.cells[cell]

    return contribute


def _versions_by_flush(original: Any) -> Any:
    flushes: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

    def fold(*arguments: Any) -> Any:
        folded = original(*arguments)
        # A queue is a task of its own in each incarnation of a worker: the numbers begin anew with it.
        queue = asyncio.current_task()
        flushes[queue] = flushes.get(queue, 0) + 1
        dirty = dict.fromkeys(folded.changes.dirty, flushes[queue])
        return folded._replace(changes=folded.changes._replace(dirty=dirty))

    return fold


def _readers_clock(original: Any) -> Any:
    return lambda event, _arrival_ms: original(event, _wall_clock_ms())


def _without_late_limit(original: Any) -> Any:
    return lambda *arguments: msgspec.structs.replace(original(*arguments), earliest_us=0)


def _counts_what_it_cannot_use(original: Any) -> Any:
    def contributions(self: Any, event_type: str, data: Any) -> Any:
        answer = original(self, event_type, data)
        if isinstance(answer, Failure):
            return answer
        skipped = [self.meter_set.meter(slug) for slug, _ in self.skips(event_type, data)]
        return answer + tuple(Contribution(meter, 1, "1", "{}") for meter in skipped)

    return contributions


def _always_new(original: Any) -> Any:
    return lambda deferred, first: original(deferred, deferred.position if first else first)


def _cache_survives(original: Method) -> Method:
    held: dict[tuple[int, int], tuple[Any, StateCache]] = {}

    async def start_offset(self: RollupProcessor, partition: int) -> int:
        offset: int = await original(self, partition)
        log = inner(self._log)
        cache = held.setdefault((id(log), partition), (log, self._caches[partition]))[1]
        self._caches[partition] = cache
        return offset

    return start_offset


def _quarantine_may_fail(original: Method) -> Method:
    async def quarantine(*arguments: Any) -> None:
        try:
            await original(*arguments)
        except Transient:
            return

    return quarantine


_PLAN, _ROLLUP, _OUTBOX = aggregators.flush_plan, pipeline.rollup.processor, FakeOutbox
MUTANTS: Final = (
    Mutant("start at the group's committed offset", RollupProcessor, "start_offset", _starts_at_committed),
    Mutant("commit the offset before the state", RollupProcessor, "start_offset", _commits_offset_first),
    Mutant("increment outside the commit", RollupProcessor, "_commit", _increments_outside_the_commit),
    Mutant("router commits its offset before its appends", RouterProcessor, "step", _router_commits_first),
    Mutant("skip the checkpoint", FakeServer, "believe", _believes_anything),
    Mutant("write marks before the commit", RollupProcessor, "_commit", _marks_first),
    Mutant("forget a dirty entry", _OUTBOX, "confirm_dirty", _forgets_all_dirty),
    Mutant("delete a dirty entry whose version moved", _OUTBOX, "confirm_dirty", _forgets_moved_dirty),
    Mutant("forget a duplicate", _OUTBOX, "confirm_duplicates", _forgets_all_duplicates),
    Mutant("dedup key with timestamp", _ROLLUP, "scan", _identity_with_time),
    Mutant("dedup key without account", _PLAN, "mark", lambda mark: lambda key, _account, name: mark(key, "", name)),
    Mutant("<= at a period's end", _PLAN, "period_at", lambda made: lambda state, at_ms: made(state, at_ms - 1)),
    Mutant("count in a closed period", _PLAN, "is_closed", lambda _made: lambda *_arguments: False),
    Mutant("close without grace", _PLAN, "is_closed", lambda made: lambda s, p, _grace, at_ms: made(s, p, 0, at_ms)),
    Mutant(
        "marks expire too early", _PLAN, "live_slices",
        lambda made: lambda slices, at_ms, window_ms: made(slices, at_ms, window_ms // 4),
    ),
    Mutant(
        "close by wall clock", _PLAN, "is_closed",
        lambda made: lambda state, period, grace_ms, _at_ms: made(state, period, grace_ms, _wall_clock_ms()),
    ),
    Mutant(
        "marks expire by wall clock", _PLAN, "live_slices",
        lambda made: lambda slices, _at_ms, window_ms: made(slices, _wall_clock_ms(), window_ms),
    ),
    Mutant("accept a tick of another log", aggregators.scan._Scanner, "_apply", _any_logs_tick),
    Mutant("start from zero on an empty Redis", RollupProcessor, "_first_checkpoint", _starts_from_nothing),
    Mutant("archive: the last arrival wins", FakeClickHouse, "insert_events", _last_arrival_wins),
    Mutant("archive: position before rows", ArchiveProcessor, "step", _archive_position_first),
    Mutant(
        "archive forgets bindings at a restart", pipeline.ingest.archive, "_replayed",
        _without_bindings,
    ),
    Mutant(
        "a cell of its own for each report bucket", aggregators.fold._Fold, "_contribute", _cell_for_each_report_bucket,
    ),
    Mutant("cell version by flush", _ROLLUP, "fold", _versions_by_flush),
    Mutant("decision applied twice", aggregators.fold._Fold, "_decide", _decided_again),
    Mutant("decision: everything is new", pipeline.rollup.resolver, "_decision", _always_new),
    Mutant(
        "decision before the archive has passed", pipeline.rollup.resolver, "position",
        lambda _made: lambda _offset: 1 << 60,
    ),
    Mutant("the reader's clock for an event without a time", aggregators.scan, "event_time_us", _readers_clock),
    Mutant("late without limit", aggregators.scan, "rules_at", _without_late_limit),
    Mutant("count what a meter must skip", CompiledMeterSet, "contributions", _counts_what_it_cannot_use),
    Mutant("cache survives its checkpoint", RollupProcessor, "start_offset", _cache_survives),
    Mutant("a lost quarantine entry", _ROLLUP, "quarantine", _quarantine_may_fail),
    *BILLING,
    *BINDINGS,
    *LATE_BINDINGS,
    *FLUSHES,
    *CLOSING,
    *MIRROR,
    *ACCESS,
)  # fmt: skip


def main() -> int:
    """Print the table; 1 where a defect was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutants", description=__doc__)
    parser.add_argument("--runs-max", type=int, default=RUNS_MAX, help="runs until a defect counts as missed")
    parser.add_argument("--only", default="", help="the defects whose name contains this")
    arguments = parser.parse_args()
    missed = 0
    sys.stdout.write("| Defect | Runs to catch | First seen in |\n|---|---|---|\n")
    for mutant in MUTANTS:
        if arguments.only not in mutant.name:
            continue
        runs, outcome = runs_to_catch(mutant, arguments.runs_max)
        missed += outcome is None
        seen = outcome.failures[0].where.split(".")[0] if outcome else "MISSED"
        sys.stdout.write(f"| {mutant.name} | {runs} | {seen} |\n")
        sys.stdout.flush()
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
