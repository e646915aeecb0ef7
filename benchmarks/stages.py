"""The processor time per event of each stage of the pure code, on records of 1 000 events and without I/O.

The garbage collector is configured as in the worker.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Final

import msgspec

from aggregators.columns import Books, MakerOf, PythonColumns
from aggregators.decode import decode
from aggregators.flush import Flush
from aggregators.fold import fold
from aggregators.signing import fingerprint, hash_key
from benchmarks.figures import Figure
from benchmarks.services import SECRET
from benchmarks.traffic import RECORD_EVENTS, Traffic
from pipeline.native.load import load, maker_of
from pipeline.runner.runner import COLLECTOR_THRESHOLDS
from schemas.events import EventStruct
from schemas.log import EVENTS_TOPIC, Record
from schemas.meters import MeterSet
from schemas.periods import AccountState
from schemas.rollup import Checkpoint, Counters, View

FLUSH_RECORDS: Final = 20
EVENT_BYTES_MAX: Final = 65_536
COLUMNS: Final = "columns (decode and more)"

_bare_decode: Final = msgspec.json.Decoder(list[EventStruct]).decode


class _Stopwatch:
    """Processor times of named stages in microseconds per event, one entry per flush."""

    def __init__(self) -> None:
        self.costs_us: dict[str, list[float]] = {}

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        began_s = time.thread_time()
        yield
        cost_us = (time.thread_time() - began_s) / (FLUSH_RECORDS * RECORD_EVENTS) * 1e6
        self.costs_us.setdefault(stage, []).append(cost_us)


def stage_figures(meter_set: MeterSet, now_ms: int, accounts: int, flushes: int) -> list[Figure]:
    """Measure `flushes` flushes of 20 records on one partition. The result is the median flush."""
    gc.set_threshold(*COLLECTOR_THRESHOLDS)
    watch = _Stopwatch()
    library = load(enabled=True).library
    runs = [_Run("", PythonColumns, _first_checkpoint(meter_set, now_ms))]
    if library is not None:
        runs.append(_Run(", C core", maker_of(library), _first_checkpoint(meter_set, now_ms)))
    traffic = Traffic(accounts, 1, now_ms)
    states = {f"acct_{number:06d}": AccountState() for number in range(accounts)}
    for _ in range(flushes):
        records = [
            Record(EVENTS_TOPIC, 0, runs[0].checkpoint.next_offset + number, now_ms, None, batch.value)
            for number, batch in enumerate(traffic.records(FLUSH_RECORDS))
        ]
        values = [record.value or b"" for record in records]
        gc.collect()
        with watch.time("decode by msgspec alone"):
            for value in values:
                _bare_decode(value)
        with watch.time("decode"):
            for value in values:
                decode(value, EVENT_BYTES_MAX)
        for run in runs:
            run.flush(records, states, watch)
    costs_us = {stage: median(costs) for stage, costs in watch.costs_us.items()}
    for run in runs:
        costs_us[f"columns, request and fold together{run.name}"] = sum(
            costs_us[f"{stage}{run.name}"] for stage in (COLUMNS, "request", "fold")
        )
    section = f"(a) Pure core: {accounts} accounts, {FLUSH_RECORDS} records of {RECORD_EVENTS} events a flush"
    return [Figure(section, stage, cost_us, "µs", cost_us) for stage, cost_us in costs_us.items()]


class _Run:
    """A partition that is folded with one maker of columns."""

    def __init__(self, name: str, maker_of: MakerOf, checkpoint: Checkpoint) -> None:
        self.name = name
        self.checkpoint = checkpoint
        self._books = Books(hash_key(SECRET.encode()), maker_of)

    def flush(self, records: Sequence[Record], states: Mapping[str, AccountState], watch: _Stopwatch) -> None:
        """Fold the records, with an empty store."""
        flush = Flush(0, self.checkpoint, self._books, SECRET.encode())
        gc.collect()
        with watch.time(f"{COLUMNS}{self.name}"):
            for needed in flush.take(records, 1 << 30):
                flush.know(View(accounts={account: states[account] for account in needed.accounts}))
        with watch.time(f"request{self.name}"):
            request = flush.request()
        stored = View(totals={total: {} for total in request.totals})
        with watch.time(f"fold{self.name}"):
            changes = fold(flush, stored).changes
            self._books.ledger.commit(changes)
        self.checkpoint = changes.checkpoint


def _first_checkpoint(meter_set: MeterSet, now_ms: int) -> Checkpoint:
    return Checkpoint(
        log_id="log", partitions=1, livemode=False, stripe_account="", generation=1, next_offset=0,
        stream_time_ms=now_ms, secret_fingerprint=fingerprint(SECRET.encode()), meter_set=meter_set,
        counters=Counters(), slices=(),
    )  # fmt: skip
