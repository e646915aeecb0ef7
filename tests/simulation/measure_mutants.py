"""Deliberate defects of measured meters: how levels and spans become areas, how areas are rounded, and which
differences are told; and of the reconciler's check. The histories of `python -m tests.measures --mutants` catch all of
them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Final
from unittest.mock import patch

import aggregators.judge
import aggregators.measures
import pipeline.rollup.measurer
import reconciler.measured
import reconciler.measured_pieces
from schemas.clock import SECOND_US
from sinks.clickhouse.fake_measures import FakeMeasures
from tests.simulation.mutant import Mutant
from tests.worlds.measured_faults import differences_of

_PURE, _MEASURER = aggregators.measures, pipeline.rollup.measurer
_CHECK, _PIECES = reconciler.measured, reconciler.measured_pieces


def _half_down(_original: Any) -> Any:
    return lambda area, unit_us: (2 * area + unit_us - 1) // (2 * unit_us)


def _towards_0(_original: Any) -> Any:
    return lambda area, unit_us: (2 * abs(area) + unit_us) // (2 * unit_us) * (1 if area >= 0 else -1)


def _each_alone(_original: Any) -> Any:
    return lambda meter, found: [_PURE._rounded(area, meter.per.us) for area in found]


def _earlier_wins(original: Any) -> Any:
    return lambda meter, reads: original(meter, sorted(reads, key=lambda read: (read.time_us, -read.position)))


def _by_position(original: Any) -> Any:
    def levels(meter: Any, reads: Any) -> Any:
        spans = original(meter, sorted(reads, key=lambda read: read.position))
        return [span for span in spans if span.start_us < span.end_us]

    return levels


def _for_ever(original: Any) -> Any:
    return lambda meter, reads: original(meter.model_copy(update={"stands_s_max": None}), reads)


def _no_gap(original: Any) -> Any:
    return lambda meter, reads: original(meter.model_copy(update={"session_gap_s_max": 1 << 30}), reads)


def _counts_up_to_the_gap(_original: Any) -> Any:
    def session(meter: Any, reads: Any) -> Any:
        gap_us = meter.session_gap_s_max * SECOND_US
        for first, second in pairwise(reads):
            yield _PURE.Span(first.time_us, min(second.time_us, first.time_us + gap_us), first.sample.minor)

    return session


def _one_series(original: Any) -> Any:
    def spans_of(meter: Any, samples: Iterable[Any]) -> Any:
        return original(meter, [each._replace(sample=each.sample._replace(group="")) for each in samples])

    return spans_of


def _never_less(original: Any) -> Any:
    return lambda *arguments: [each for each in original(*arguments) if each.minor > 0]


def _one_id(original: Any) -> Any:
    return lambda meter, difference: original(meter, difference._replace(number=0))


def _answers(answer: Any) -> Any:
    return lambda _original: lambda *_arguments: answer


def _no_step_down(original: Any) -> Any:
    return lambda meter, own: [step for step in original(meter, own) if step.minor > 0]


def _says_yes(original: Any) -> Any:
    return lambda self, expected, _found: original(self, expected, expected)


def _too_little_only(original: Any) -> Any:
    def compared(self: Any, expected: Any, found: Any) -> Any:
        equal, differing = original(self, expected, found)
        return equal, [each for each in differing if each.expected > each.found]

    return compared


def _whenever(original: Any) -> Any:
    return lambda self, partition, meter, _spans: original(self, partition, meter, [(0, 1 << 62)])


MEASURES: Final = (
    Mutant("measure: rounds half down", _PURE, "_rounded", _half_down),
    Mutant("measure: rounds towards 0", _PURE, "_rounded", _towards_0),
    Mutant("measure: rounds each piece alone", _PURE, "quantities", _each_alone),
    Mutant("measure: the earlier of two equal times wins", _PURE, "_levels", _earlier_wins),
    Mutant("measure: levels in the order of arrival", _PURE, "_levels", _by_position),
    Mutant("measure: a lost heartbeat costs for ever", _PURE, "_levels", _for_ever),
    Mutant("measure: the series of an account are one", _PURE, "spans_of", _one_series),
    Mutant("measure: a session covers its gaps", _PURE, "_session", _no_gap),
    Mutant("measure: a session counts on into a gap", _PURE, "_session", _counts_up_to_the_gap),
    Mutant("measure: a span reaches back to the last pass only", _MEASURER, "reaches_back_us", _answers(0)),
    Mutant("measure: a level stands until the next pass", _MEASURER, "reaches_beyond", _answers(False)),
    Mutant("measure: nothing is taken back", _MEASURER, "differences", _never_less),
    Mutant("measure: the second difference has the first id", _MEASURER, "difference_id", _one_id),
    Mutant("measure: voided samples count", FakeMeasures, "_voided", _answers(frozenset())),
    Mutant("measure: samples from before the meter count", FakeMeasures, "_samples", _whenever),
    Mutant("measure: adjustments may be too old", aggregators.judge, "is_reserved", _answers(False)),
    Mutant("check: always says yes", _CHECK._Account, "compared", _says_yes),
    Mutant("check: too much is no drift", _CHECK._Account, "compared", _too_little_only),
    Mutant("check: voided samples count", _CHECK._Now, "voided", _answers(frozenset())),
    Mutant("check: a level never ends", _PIECES, "_level_steps", _no_step_down),
)


def seed_that_catches(mutant: Mutant, seeds: Iterable[int]) -> int | None:
    """The first of the seeds whose history differs under the defect; None if no history does."""
    replaced = mutant.made(vars(mutant.target)[mutant.attribute])
    with patch.object(mutant.target, mutant.attribute, replaced):
        return next((seed for seed in seeds if asyncio.run(differences_of(seed))), None)
