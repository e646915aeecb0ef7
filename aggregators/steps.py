"""The steps of a scan: arrivals, control records of accounts, dedup decisions, and quarantined events."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from aggregators.meters import Contribution
from schemas.control import AccountControlRecord, DedupDecision
from schemas.meters import MeterSet
from schemas.reasons import Reason
from schemas.restatement import RestatementContent
from schemas.rollup import Deferred

NO_RESTATEMENT: Final = RestatementContent()


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """A valid event with its position, its stream time and its contributions to meters.

    `deferred` is set if the event is deferred.
    """

    position: int
    stream_time_ms: int
    account: str
    id: str
    type: str
    source: str
    time_us: int
    data: dict[str, Any]
    contributions: tuple[Contribution, ...]
    deferred: Deferred | None = None


class AccountControl(NamedTuple):
    """A binding, close or restatement record at its position. `content` is the content of a restatement."""

    position: int
    stream_time_ms: int
    control: AccountControlRecord
    content: RestatementContent = NO_RESTATEMENT


class DedupDecisionStep(NamedTuple):
    """One dedup decision at its position, with the meter set in force there."""

    position: int
    stream_time_ms: int
    decision: DedupDecision
    meter_set: MeterSet | None


Step = Arrival | AccountControl | DedupDecisionStep


class Quarantined(NamedTuple):
    """An event or a control record for the quarantine topic, with its position and its stream time."""

    position: int
    stream_time_ms: int
    reason: Reason
    detail: str
    raw: bytes
