"""The state of one partition of `billing.reports`: which intents are settled, and which are pending.

No I/O: records are applied in the log's order, and the same records give the same ledger however they are batched.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from aggregators.meter_events import PAST_MAX_MS, deadline_ms
from aggregators.report_records import parse_entries, supersedes
from schemas.clock import DAY_MS
from schemas.errors import OperatorNeeded
from schemas.log import Record
from schemas.reports import Attempt, Intent, Redrive, ReportOutcome

PENDING_MAX: Final = 500_000


class SendQueueKey(NamedTuple):
    """Intents of one queue are sent one after the other."""

    event_name: str
    account: str


class Hold(StrEnum):
    """Why the sink does not send an intent yet."""

    NONE = ""
    UNMAPPED = "unmapped"
    METER = "meter"
    BREAKER = "breaker"
    ACCOUNT = "account"
    EARLY = "early"
    UNKNOWN = "unknown"


@dataclass(slots=True)
class Pending:
    """An intent without an outcome, and its progress.

    `in_doubt`: Stripe may have received a send whose answer was lost. `refused_at_ms`: when this sender last sent the
    attempt and Stripe refused the event because of its meter or customer. `absent_at_ms`: when a lookup first found
    that Stripe does not have the event, and none since found otherwise. `awaited_offset`: the offset of this sender's
    own attempt; the intent waits until the attempt was read back.
    """

    intent: Intent
    offset: int
    attempt: Attempt | None = None
    not_before_ms: int = 0
    failures: int = 0
    in_doubt: bool = False
    refused_at_ms: int | None = None
    absent_at_ms: int | None = None
    awaited_offset: int = -1
    hold: Hold = Hold.NONE
    detail: str = ""


@dataclass(slots=True)
class SendQueue:
    """The pending intents of one queue, in the log's order. No intent of the queue is due before `not_before_ms`."""

    pending: dict[str, Pending] = field(default_factory=dict)
    not_before_ms: int = 0


class ReportLedger:
    """The intents of one partition: those that are pending, and the identifiers of settled ones.

    A settled identifier is kept until Stripe would refuse its event, because a rebuild may publish the intent again.
    `has_doubts`: an intent arrived that may be settled and forgotten. Nothing may be sent before `recall` restored the
    forgotten identifiers.
    """

    def __init__(self, pending_max: int = PENDING_MAX) -> None:
        self.queues: dict[SendQueueKey, SendQueue] = {}
        self.next_offset = 0
        self.unreadable = 0
        self.has_doubts = False
        self._forgot_day = 0
        self._forgot_at_ms = 0
        self._pending_max = pending_max
        self._pending: dict[str, Pending] = {}
        self._settled: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def settled(self) -> int:
        """The number of settled identifiers that are kept."""
        return len(self._settled)

    def pending(self) -> Iterable[Pending]:
        """All intents without an outcome, in the log's order."""
        return self._pending.values()

    def low_watermark(self) -> int:
        """The offset of the lowest pending intent, or the next offset if none is pending."""
        first = next(iter(self._pending.values()), None)
        return self.next_offset if first is None else first.offset

    def apply(self, record: Record) -> None:
        """Apply one record. Repeated records, and entries of another sender, do no harm.

        Raises `OperatorNeeded` beyond `pending_max` pending intents.
        """
        entries = parse_entries(record.value)
        self.unreadable += not entries
        for entry in entries:
            match entry:
                case Intent():
                    self._add(entry, record.offset)
                case Attempt():
                    self._note_attempt(entry, record.offset)
                case ReportOutcome():
                    self.settle(entry.identifier)
                case Redrive():
                    # The new revision is an intent of its own in the same record.
                    continue
        self.next_offset = max(self.next_offset, record.next_offset)

    def _note_attempt(self, attempt: Attempt, offset: int) -> None:
        pending = self._pending.get(attempt.identifier)
        if pending is not None and supersedes(attempt, pending.attempt):
            pending.attempt = attempt
            # An attempt of this sender follows a proof that Stripe does not have the event.
            pending.in_doubt = offset != pending.awaited_offset
            pending.refused_at_ms = pending.absent_at_ms = None

    def settle(self, identifier: str) -> None:
        """Remove a pending intent and keep its identifier as settled."""
        pending = self._pending.pop(identifier, None)
        if pending is None:
            self._settled.setdefault(identifier, 1 << 62)
            return
        self._settled[identifier] = _kept_until_ms(pending.intent)
        key = SendQueueKey(pending.intent.event_name, pending.intent.account)
        queue = self.queues[key]
        del queue.pending[identifier]
        if not queue.pending:
            del self.queues[key]

    def forget_expired(self, now_ms: int) -> None:
        """Drop settled identifiers of periods that Stripe has refused for a day. Runs once a day."""
        if now_ms // DAY_MS == self._forgot_day:
            return
        self._forgot_day = now_ms // DAY_MS
        self._forgot_at_ms = max(self._forgot_at_ms, now_ms)
        self._settled = {key: until_ms for key, until_ms in self._settled.items() if until_ms >= now_ms}

    def recall(self, whole: ReportLedger) -> None:
        """Settle the pending intents that are settled in `whole`, a complete ledger of the same records.

        Keeps all identifiers until the next day, because a rebuild publishes many intents at a time.
        """
        for identifier in [identifier for identifier in self._pending if identifier in whole._settled]:
            self.settle(identifier)
        self._settled |= whole._settled
        self._forgot_at_ms, self.has_doubts = 0, False

    def _add(self, intent: Intent, offset: int) -> None:
        if intent.identifier in self._pending or intent.identifier in self._settled:
            return
        if len(self._pending) >= self._pending_max:
            raise OperatorNeeded(
                f"more than {self._pending_max} reports are unresolved on one partition: map the accounts that are "
                "unmapped, or mark them free"
            )
        self.has_doubts |= _kept_at_least_until_ms(intent) < self._forgot_at_ms
        pending = Pending(intent, offset)
        self._pending[intent.identifier] = pending
        queue = self.queues.setdefault(SendQueueKey(intent.event_name, intent.account), SendQueue())
        queue.pending[intent.identifier] = pending
        queue.not_before_ms = 0


def _kept_until_ms(intent: Intent) -> int:
    return deadline_ms(intent) + DAY_MS


def _kept_at_least_until_ms(intent: Intent) -> int:
    """A lower bound of `_kept_until_ms` for all copies of the intent.

    A binding between two copies may end the period earlier, but not before the report bucket began.
    """
    return min(intent.bucket_start_ms, intent.period_end_ms) + PAST_MAX_MS + DAY_MS
