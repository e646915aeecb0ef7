"""Control records: what the fold needs besides events, in the same log and signed (I7, S2).

The header `tidemark-control` contains the kind. The header `tidemark-signature` contains the hex HMAC-SHA256 of topic,
partition, kind and value with the deployment's secret (`aggregators.signing`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.events import ID_CHARACTERS_MAX, NAME_CHARACTERS_MAX
from schemas.log import POSITION_MAX
from schemas.meters import MeterSet
from schemas.periods import INSTANT_MAX_MS, INSTANT_MIN_MS, Binding

CONTROL_HEADER: Final = "tidemark-control"
SIGNATURE_HEADER: Final = "tidemark-signature"
DECISIONS_MAX: Final = 1_000


class ControlKind(StrEnum):
    """The kinds of control record; `CONTROL_CLASSES` has the class of each kind."""

    GENESIS = "genesis"
    TICK = "tick"
    METER_SET = "meter_set"
    BINDING = "binding"
    CLOSE = "close"
    FLUSH = "flush"
    DEDUP_DECISION = "decision"
    RESTATEMENT = "restatement"
    CORRECTION = "correction"


class _Control(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Genesis(_Control):
    """The first record of each partition: the log's identity, number of partitions, and Stripe mode and account. They
    never change."""

    log_id: str = Field(min_length=1, max_length=64)
    partitions: int = Field(ge=1, le=65_535)
    livemode: bool = False
    stripe_account: str = Field(default="", max_length=255)


class Tick(Genesis):
    """Moves stream time when no events arrive. A tick repeats the genesis record, so the log is identified even after
    its first records are deleted. A tick of another log is rejected."""


class MeterSetRecord(_Control):
    """The whole meter set, effective from this record's offset on this partition."""

    meter_set: MeterSet


class BindingRecord(_Control):
    """A binding of one account, on the account's partition only.

    The bindings, closings and flushes of an account share one sequence of revisions. A record whose revision is not
    above that of the last one changes nothing: an outbox may append a record again after later ones.
    """

    account: str = Field(min_length=1, max_length=NAME_CHARACTERS_MAX)
    revision: int = Field(ge=1, le=POSITION_MAX)
    binding: Binding


class CloseRecord(_Control):
    """Closes the account's period that contains `instant_ms`, before its grace has passed (I9). `revision` is that of
    `BindingRecord`: after a later binding, the same instant may lie in another period."""

    account: str = Field(min_length=1, max_length=NAME_CHARACTERS_MAX)
    revision: int = Field(ge=1, le=POSITION_MAX)
    instant_ms: int = Field(ge=INSTANT_MIN_MS, le=INSTANT_MAX_MS)
    reason: Literal["operator"] = "operator"


class FlushRecord(_Control):
    """Ends the account's report bucket here (I10): what was counted so far becomes an intent of its own. `revision` is
    that of `BindingRecord`, so a repeated record ends nothing."""

    account: str = Field(min_length=1, max_length=NAME_CHARACTERS_MAX)
    revision: int = Field(ge=1, le=POSITION_MAX)


class DedupDecision(_Control):
    """Whether a deferred event is the first arrival of its identity, according to the archive.

    `position`, `time_us`, `metered` (the event adds to a meter) and `quarantine` (one of its meters quarantines late
    usage) are those of the event, so that the archive can follow a decision without the event.
    """

    position: int = Field(ge=0, le=POSITION_MAX)
    account: str = Field(min_length=1, max_length=NAME_CHARACTERS_MAX)
    time_us: int
    new: bool
    metered: bool
    quarantine: bool


class DedupDecisionRecord(_Control):
    """Dedup decisions on deferred events of this partition, in effect from here on. Repeatable."""

    decisions: tuple[DedupDecision, ...] = Field(min_length=1, max_length=DECISIONS_MAX)


class RestatementRecord(_Control):
    """Begins or ends the restatement of an account with a pending cut. `position` is that of the record it answers.

    With `begins`, the record answers a late binding or a restatement that timed out: from here on the account's events
    are deferred. Without `begins`, the record answers the one that began the restatement. Then `content`, packed by
    `schemas.restatement`, is the account's earlier usage in the new periods, recounted from the archive. The archive
    stores the record without `content`. `declined` is the reason if usage was not recounted: then the binding takes
    effect after all counted usage. A repeated record, or one that is too late, changes nothing.
    """

    account: str = Field(min_length=1, max_length=NAME_CHARACTERS_MAX)
    position: int = Field(ge=0, le=POSITION_MAX)
    begins: bool = False
    declined: str = Field(default="", max_length=500)
    content: str = ""


class CorrectionRecord(_Control):
    """Voids or amends one event of an account: the newest record of an event says what counts instead.

    The fold and the archive only keep the record: adjustments follow from it (S16). `data` is the JSON text of an
    amended event's data, "" for a void. Of two records with one `correction`, the first counts. `counts` is false if
    the period of the event was closed and the correction is settled outside: `treatment` says how.
    """

    account: str = Field(min_length=1, max_length=NAME_CHARACTERS_MAX)
    correction: str = Field(min_length=1, max_length=NAME_CHARACTERS_MAX)
    event: str = Field(min_length=1, max_length=ID_CHARACTERS_MAX)
    kind: Literal["void", "amend"]
    data: str = ""
    by: str = Field(min_length=1, max_length=NAME_CHARACTERS_MAX)
    reason: str = Field(min_length=1, max_length=1_000)
    treatment: Literal["next_period", "credit_note", "write_off"] = "next_period"
    counts: bool = True


RevisedRecord = BindingRecord | CloseRecord | FlushRecord
AccountControlRecord = RevisedRecord | RestatementRecord
Control = Genesis | Tick | MeterSetRecord | DedupDecisionRecord | AccountControlRecord | CorrectionRecord

CONTROL_CLASSES: Final[dict[ControlKind, type[Control]]] = {
    ControlKind.GENESIS: Genesis,
    ControlKind.TICK: Tick,
    ControlKind.METER_SET: MeterSetRecord,
    ControlKind.BINDING: BindingRecord,
    ControlKind.CLOSE: CloseRecord,
    ControlKind.FLUSH: FlushRecord,
    ControlKind.DEDUP_DECISION: DedupDecisionRecord,
    ControlKind.RESTATEMENT: RestatementRecord,
    ControlKind.CORRECTION: CorrectionRecord,
}
# A process that restarts applies these records again to restore the meter set and the states of the accounts.
REPLAYED_KINDS: Final = (
    ControlKind.METER_SET,
    ControlKind.BINDING,
    ControlKind.CLOSE,
    ControlKind.FLUSH,
    ControlKind.RESTATEMENT,
)
