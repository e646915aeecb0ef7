"""Control records: what the fold needs besides events, in the same log and signed (I7, S2).

A control record is marked by the header `tidemark-control` (its kind) and signed in `tidemark-signature`
(hex HMAC-SHA256 with the deployment secret over topic, partition, kind and value; `aggregators.signing`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.events import NAME_CHARACTERS_MAX
from schemas.log import POSITION_MAX
from schemas.meters import MeterSet
from schemas.periods import INSTANT_MAX_MS, INSTANT_MIN_MS, Binding

CONTROL_HEADER: Final = "tidemark-control"
SIGNATURE_HEADER: Final = "tidemark-signature"
DECISIONS_MAX: Final = 1_000


class ControlKind(StrEnum):
    """The kinds of control record; each is also the class that carries it."""

    GENESIS = "genesis"
    TICK = "tick"
    METER_SET = "meter_set"
    BINDING = "binding"
    CLOSE = "close"
    DEDUP_DECISION = "decision"
    RESTATEMENT = "restatement"


class _Control(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Genesis(_Control):
    """The first record of each partition: which log this is and how many partitions it has, for ever."""

    log_id: str = Field(min_length=1, max_length=64)
    partitions: int = Field(ge=1, le=65_535)
    livemode: bool = False
    stripe_account: str = Field(default="", max_length=255)


class Tick(Genesis):
    """Moves stream time where no events arrive, and says again what the genesis record said, so that a log that has
    outlived its first records still tells which one it is. A tick of another log is rejected."""


class MeterSetRecord(_Control):
    """The whole meter set, effective from this record's offset on this partition."""

    meter_set: MeterSet


class BindingRecord(_Control):
    """A binding of one account, on the account's partition only."""

    account: str = Field(min_length=1, max_length=NAME_CHARACTERS_MAX)
    binding: Binding


class CloseRecord(_Control):
    """Closes the account's period that contains `instant_ms`, before its grace has passed (I9)."""

    account: str = Field(min_length=1, max_length=NAME_CHARACTERS_MAX)
    instant_ms: int = Field(ge=INSTANT_MIN_MS, le=INSTANT_MAX_MS)
    reason: Literal["operator"] = "operator"


class DedupDecision(_Control):
    """What the archive says of one deferred event: whether its own arrival is the first of its identity.

    `position` is where the event stands. `time_us` and `quarantine` (one of its meters keeps out late usage) are the
    event's own, so that the archive can follow a decision without the event.
    """

    position: int = Field(ge=0, le=POSITION_MAX)
    account: str = Field(min_length=1, max_length=NAME_CHARACTERS_MAX)
    time_us: int
    new: bool
    quarantine: bool


class DedupDecisionRecord(_Control):
    """Dedup decisions on deferred events of this partition, in effect from here on; a repeated one changes nothing."""

    decisions: tuple[DedupDecision, ...] = Field(min_length=1, max_length=DECISIONS_MAX)


class RestatementRecord(_Control):
    """Begins or ends the restatement of an account that waits for one; `position` is that of the record it answers.

    With `begins` it answers a binding, or a restatement that took too long: from here on the account's events wait.
    Else it answers the record that began: `content`, as `schemas.restatement` packs it, is what the account's usage
    before that is when it is cut by the binding, counted again out of the archive; the archive keeps the record without
    it. `declined` says why the usage was not counted again: then the binding takes effect beyond it. A record that is
    repeated, or comes too late, changes nothing.
    """

    account: str = Field(min_length=1, max_length=NAME_CHARACTERS_MAX)
    position: int = Field(ge=0, le=POSITION_MAX)
    begins: bool = False
    declined: str = Field(default="", max_length=500)
    content: str = ""


AccountControlRecord = BindingRecord | CloseRecord | RestatementRecord
Control = Genesis | Tick | MeterSetRecord | DedupDecisionRecord | AccountControlRecord

CONTROL_CLASSES: Final[dict[ControlKind, type[Control]]] = {
    ControlKind.GENESIS: Genesis,
    ControlKind.TICK: Tick,
    ControlKind.METER_SET: MeterSetRecord,
    ControlKind.BINDING: BindingRecord,
    ControlKind.CLOSE: CloseRecord,
    ControlKind.DEDUP_DECISION: DedupDecisionRecord,
    ControlKind.RESTATEMENT: RestatementRecord,
}
# A process that starts anew applies these records again to know the meter set and the states of the accounts.
REPLAYED_KINDS: Final = (ControlKind.METER_SET, ControlKind.BINDING, ControlKind.CLOSE, ControlKind.RESTATEMENT)
