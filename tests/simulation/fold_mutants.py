"""Deliberate defects of the fold: versions of cells, the end of a period, and what its ledger keeps for too long.

No run is known to catch most of them, and the end of a period takes twenty. `tests/unit/aggregators/test_cuts.py` sees
all.
"""

from __future__ import annotations

from typing import Any, Final
from weakref import WeakKeyDictionary

import msgspec

from aggregators import exceptions
from aggregators.columns import Column, Columns
from aggregators.fold import _Sums
from aggregators.ledger import Account, Ledger
from aggregators.meters import CompiledMeterSet, Failure
from pipeline.rollup.processor import RollupProcessor
from schemas.adjustments import is_reserved
from tests.simulation.mutant import Method, Mutant


def _odd_positions(original: Any) -> Any:
    def merge(self: _Sums, *arguments: Any) -> None:
        original(self, *arguments)
        self.positions = {number: at | 1 for number, at in self.positions.items()}

    return merge


def _kept_after_an_error(original: Method) -> Method:
    async def flush(self: RollupProcessor, partition: int, records: Any) -> None:
        books = self._books.get(partition)
        try:
            await original(self, partition, records)
        except Exception:
            if books is not None:
                self._books[partition] = books
            raise

    return flush


def _turned_by_buckets_only(original: Any) -> Any:
    buckets_ms: WeakKeyDictionary[Ledger, tuple[int, int]] = WeakKeyDictionary()

    def turn(self: Ledger) -> None:
        now_ms = self._arrival_ms, self._report_ms
        if buckets_ms.get(self) != now_ms:
            buckets_ms[self] = now_ms
            original(self)

    return turn


def _text_made_once(original: Any) -> Any:
    made: WeakKeyDictionary[Ledger, dict[tuple[Any, str], str]] = WeakKeyDictionary()

    def totals_and_rankings(self: _Sums) -> Any:
        totals, rankings = original(self)
        texts = made.setdefault(self._ledger, {})
        stale = {
            key: {slug: texts.setdefault((key, slug), text) for slug, text in fields.items()}
            for key, fields in totals.items()
        }
        return stale, rankings

    return totals_and_rankings


def _one_millisecond_longer(original: Any) -> Any:
    def made(self: Account, *arguments: Any) -> None:
        original(self, *arguments)
        if self.until_us:
            self.from_us, self.until_us = self.from_us + 1_000, self.until_us + 1_000

    return made


def _last_adjustment_wins(original: Any) -> Any:
    def merge(self: _Sums, column: Column, *arguments: Any) -> None:
        original(self, column, *arguments)
        if is_reserved(column.meter.event_type):
            self.positions.update(zip(column.numbers, column.positions, strict=True))

    return merge


def _counts_adjustments(_original: Any) -> Any:
    return lambda self, contribution: self.meters[contribution.meter.slug]


def _without_samples(original: Any) -> Any:
    def contributions(*arguments: Any) -> Any:
        found = original(*arguments)
        return found if isinstance(found, Failure) else tuple(each for each in found if not each.is_sample)

    return contributions


def _late_samples(original: Any) -> Any:
    def placed(state: Any, time_us: int, contributions: Any, *arguments: Any) -> Any:
        adding = tuple(msgspec.structs.replace(each, dimensions="{}") for each in contributions)
        return original(state, time_us, adding, *arguments)

    return placed


SEEN_IN_RUNS: Final = (
    Mutant("<= at a period's end", Account, "__init__", _one_millisecond_longer),
    Mutant("fold: the text of a total is made once", _Sums, "totals_and_rankings", _text_made_once),
)
FOLD: Final = (
    Mutant("fold: a cell's version is not of its last event", _Sums, "_merge", _odd_positions),
    Mutant("fold: the ledger is kept after an error", RollupProcessor, "_flush", _kept_after_an_error),
    Mutant("fold: a target is kept over a change of the meter set", Ledger, "turn", _turned_by_buckets_only),
    Mutant("fold: the version of a count is of its last adjustment", _Sums, "_merge", _last_adjustment_wins),
    Mutant("fold: an adjustment of a count counts 1", Columns, "of", _counts_adjustments),
    Mutant("fold: a sample is unmetered", CompiledMeterSet, "contributions", _without_samples),
    Mutant("fold: a sample is late", exceptions, "placed_at_arrival", _late_samples),
    *SEEN_IN_RUNS,
)
