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

import aggregators.columns
import aggregators.flush
import aggregators.ledger
import aggregators.placement
import aggregators.scan
import pipeline.billing.customers
import pipeline.billing.sender
import pipeline.ingest.archive
import pipeline.rollup.processor
import pipeline.rollup.relays
import pipeline.rollup.resolver
from aggregators.columns import Books, PythonColumns
from aggregators.fold import _Rulings
from aggregators.ledger import Ledger
from aggregators.meters import CompiledMeterSet, Contribution, Failure
from aggregators.scan import LogFollower
from pipeline.ingest.archive import ArchiveProcessor
from pipeline.ingest.router import ROUTER_GROUP, RouterProcessor
from pipeline.rollup.processor import ROLLUP_GROUP, RollupProcessor
from schemas.analytics import ArchivePosition, EventRow
from schemas.control import Genesis, Tick
from schemas.errors import Transient
from schemas.log import EVENTS_TOPIC, INBOX_TOPIC
from simulation.traffic import ORIGIN_MS
from sinks.clickhouse.fake import FakeClickHouse
from sinks.redis.fake import FakeOutbox, FakeServer
from tests.simulation.access_mutants import ACCESS
from tests.simulation.adjusting_mutants import ADJUSTING
from tests.simulation.billing_mutants import BILLING
from tests.simulation.binding_mutants import BINDINGS
from tests.simulation.closing_mutants import CLOSING
from tests.simulation.flush_mutants import FLUSHES
from tests.simulation.fold_mutants import SEEN_IN_RUNS
from tests.simulation.late_binding_mutants import LATE_BINDINGS
from tests.simulation.level_mutants import LEVELS_IN_RUNS
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
            # A restatement says totals of which the ledger knows nothing.
            await original(self, partition, checkpoint, changes)
            return
        stored = inner(self._store)._server.at(partition).totals
        seen = vars(self).setdefault("seen", {})
        for key, fields in changes.totals.items():
            now = stored.setdefault(key, {})
            for meter, text in fields.items():
                if ":" not in text:
                    held = now.get(meter, "0")
                    now[meter] = str(int(held) + int(text) - int(seen.get((partition, key, meter), held)))
                    seen[partition, key, meter] = text
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
    def decode(*arguments: Any) -> Any:
        decoded = original(*arguments)
        events = [
            (place, msgspec.structs.replace(event, id=f"{event.id}@{event.time}")) for place, event in decoded.events
        ]
        return decoded._replace(events=events)

    return decode


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
    def hold_and_decide(self: Any) -> None:
        original(self)
        self.decided = []

    return hold_and_decide


def _cell_for_each_report_bucket(original: Any) -> Any:
    def turn(self: Ledger) -> None:
        original(self)
        self._cells = {}

    return turn


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
    def contributions(self: Any, event_type: str, data: Any, time_us: int) -> Any:
        answer = original(self, event_type, data, time_us)
        if isinstance(answer, Failure):
            return answer
        skipped = [self.meter_set.meter(slug) for slug, _ in self.skips(event_type, data, time_us)]
        return answer + tuple(Contribution(meter, 1, "1", "{}") for meter in skipped)

    return contributions


def _always_new(original: Any) -> Any:
    return lambda deferred, first: original(deferred, deferred.position if first else first)


def _ledger_survives(original: Method) -> Method:
    held: dict[tuple[int, int], tuple[Any, Books]] = {}

    async def start_offset(self: RollupProcessor, partition: int) -> int:
        offset: int = await original(self, partition)
        log = inner(self._log)
        first = log, Books(self._hash_key, PythonColumns)
        self._books[partition] = held.setdefault((id(log), partition), first)[1]
        return offset

    return start_offset


def _quarantine_may_fail(original: Method) -> Method:
    async def quarantine(*arguments: Any) -> None:
        try:
            await original(*arguments)
        except Transient:
            return

    return quarantine


_FLUSH, _PLACEMENT, _ROLLUP = aggregators.flush, aggregators.placement, pipeline.rollup.processor
_OUTBOX = FakeOutbox
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
    Mutant("dedup key with timestamp", aggregators.columns, "decode", _identity_with_time),
    Mutant("dedup key without account", aggregators.ledger, "marker", lambda made: lambda key, _account: made(key, "")),
    Mutant("count in a closed period", _PLACEMENT, "is_closed", lambda _made: lambda *_arguments: False),
    Mutant(
        "close without grace", _PLACEMENT, "is_closed",
        lambda made: lambda state, period, _grace_ms, at_ms: made(state, period, 0, at_ms),
    ),
    Mutant(
        "marks expire too early", _FLUSH, "live_slices",
        lambda made: lambda slices, at_ms, window_ms: made(slices, at_ms, window_ms // 4),
    ),
    Mutant(
        "close by wall clock", _PLACEMENT, "is_closed",
        lambda made: lambda state, period, grace_ms, _at_ms: made(state, period, grace_ms, _wall_clock_ms()),
    ),
    Mutant(
        "marks expire by wall clock", _FLUSH, "live_slices",
        lambda made: lambda slices, _at_ms, window_ms: made(slices, _wall_clock_ms(), window_ms),
    ),
    Mutant("accept a tick of another log", LogFollower, "_apply", _any_logs_tick),
    Mutant("start from zero on an empty Redis", RollupProcessor, "_first_checkpoint", _starts_from_nothing),
    Mutant("archive: the last arrival wins", FakeClickHouse, "insert_events", _last_arrival_wins),
    Mutant("archive: position before rows", ArchiveProcessor, "step", _archive_position_first),
    Mutant(
        "archive forgets bindings at a restart", pipeline.ingest.archive, "_replayed",
        _without_bindings,
    ),
    Mutant(
        "a cell of its own for each report bucket", Ledger, "turn", _cell_for_each_report_bucket,
    ),
    Mutant("cell version by flush", _ROLLUP, "fold", _versions_by_flush),
    Mutant("decision applied twice", _Rulings, "_hold_and_decide", _decided_again),
    Mutant("decision: everything is new", pipeline.rollup.resolver, "_decision", _always_new),
    Mutant(
        "decision before the archive has passed", pipeline.rollup.resolver, "position",
        lambda _made: lambda _offset: 1 << 60,
    ),
    Mutant("the reader's clock for an event without a time", aggregators.scan, "event_time_us", _readers_clock),
    Mutant("late without limit", _FLUSH, "rules_at", _without_late_limit),
    Mutant("count what a meter must skip", CompiledMeterSet, "contributions", _counts_what_it_cannot_use),
    Mutant("the ledger survives its checkpoint", RollupProcessor, "start_offset", _ledger_survives),
    Mutant("a lost quarantine entry", _ROLLUP, "quarantine", _quarantine_may_fail),
    *SEEN_IN_RUNS,
    *BILLING,
    *BINDINGS,
    *LATE_BINDINGS,
    *LEVELS_IN_RUNS,
    *ADJUSTING,
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
