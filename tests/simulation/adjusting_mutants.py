"""Deliberate defects of the measurer and the corrector: what they believe was told, and when they look again."""

from __future__ import annotations

from typing import Any, Final
from weakref import WeakKeyDictionary

import pipeline.logs.correcting
import pipeline.rollup.measurer
from pipeline.rollup.corrector import Corrector
from pipeline.rollup.measurer import Measurer
from schemas.corrections import CORRECTIONS_OF_EVENT_MAX
from schemas.log import EVENTS_TOPIC, position
from simulation.seeds import ADJUSTING_STRIDE
from sinks.clickhouse.fake_corrections import FakeCorrections
from sinks.clickhouse.fake_measures import FakeMeasures
from tests.simulation.mutant import Method, Mutant

_MEASURER = pipeline.rollup.measurer


def _forgets(_original: Any) -> Any:
    return lambda *_arguments: {}


def _waits_for_nothing(original: Method) -> Method:
    async def call(self: Any, partition: int) -> Any:
        if partition in self._partitions:
            self._partitions[partition].behind = 0
        return await original(self, partition)

    return call


def _never_again(original: Method) -> Method:
    """What a pass told is not looked at again."""

    async def measure(self: Measurer, partition: int) -> Any:
        if partition in self._partitions:
            self._partitions[partition].again = {}
        return await original(self, partition)

    return measure


def _believes_any_archive(original: Method) -> Method:
    return _waits_for_nothing(_never_again(original))


def _own_memory(original: Method) -> Method:
    """A corrector that believes only what it told itself: the one after a crash tells all again."""
    numbers: WeakKeyDictionary[Corrector, int] = WeakKeyDictionary()
    started: list[int] = []

    async def adjustments(self: Corrector, *arguments: Any) -> Any:
        if self not in numbers:
            started.append(1)
            numbers[self] = len(started)
        archive, mark = self._corrections, f":{numbers[self]}"

        class Own:
            def __getattr__(self, name: str) -> Any:
                return getattr(archive, name)

            async def told(self, *asked: Any) -> Any:
                return [row for row in await archive.told(*asked) if row.id.endswith(mark)]

        vars(self)["_corrections"] = Own()
        try:
            return [{**each, "id": each["id"] + mark} for each in await original(self, *arguments)]
        finally:
            vars(self)["_corrections"] = archive

    return adjustments


def _goes_on_from_the_logs_end(original: Method) -> Method:
    """Records that the archive had not reached are never looked at."""

    async def correct(self: Corrector, partition: int) -> Any:
        end = (await self._log.bounds(EVENTS_TOPIC, partition)).next
        told = await original(self, partition)
        known = self._partitions[partition]
        known.since = max(known.since or 0, position(end))
        return told

    return correct


def _any_record(_original: Method) -> Method:
    async def deciding(self: FakeCorrections, account: str, event: str, before: int) -> Any:
        rows = await self.corrections_of(account, event, CORRECTIONS_OF_EVENT_MAX)
        return [row for row in rows if row.position < before]

    return deciding


_DEFECTS: Final = (
    Mutant("measurer: forgets what was told", _MEASURER, "told_by_piece", _forgets),
    Mutant("measurer: believes an archive without its own append", Measurer, "measure", _believes_any_archive),
    Mutant(
        "measurer: voided samples count", FakeMeasures, "_voided", lambda _made: lambda _self: frozenset(),
    ),
    Mutant("corrector: a correction counts again after a crash", Corrector, "_adjustments", _own_memory),
    Mutant(
        "corrector: skips what is archived after it looked", Corrector, "correct", _goes_on_from_the_logs_end,
    ),
    Mutant("corrector: each record of a name counts", FakeCorrections, "deciding", _any_record),
    Mutant("corrector: forgets what was told", pipeline.logs.correcting, "told_by_meter", _forgets),
)  # fmt: skip
ADJUSTING: Final = tuple(each._replace(stride=ADJUSTING_STRIDE) for each in _DEFECTS)
