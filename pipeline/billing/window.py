"""The pending intents of one partition that the sender works on: a part of the ledger that fits into memory. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from schemas.clock import SECOND_MS
from schemas.intent_ledger import IntentState, LedgerIntent
from schemas.reports import Attempt, Intent

# An intent takes about 3 kB of memory.
WINDOW_MAX: Final = 2_000
# How often the ledger is asked for intents whose wait has ended.
REFILL_MS: Final = SECOND_MS
# Attempts of waiting intents that are remembered because Stripe does not have their events. A forgotten one is in
# doubt, as after a restart.
CERTAIN_MAX: Final = 10_000


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

    `known` is what the ledger has. `in_doubt`: Stripe may have received a send whose answer was lost. `refused_at_ms`:
    when this sender last sent the attempt and Stripe refused the event because of its meter or customer.
    `absent_at_ms`: when a lookup first found that Stripe does not have the event, and none since found otherwise.
    `awaited_offset`: the offset of this sender's own attempt; the intent waits until the attempt was read back.
    `period_end_ms`: the end of the usage's period.
    """

    known: LedgerIntent
    attempt: Attempt | None
    stripe_customer: str
    hold: Hold
    detail: str
    not_before_ms: int
    failures: int
    absent_at_ms: int | None
    in_doubt: bool
    period_end_ms: int
    refused_at_ms: int | None = None
    awaited_offset: int = -1

    @property
    def intent(self) -> Intent:
        """The intent."""
        return self.known.intent

    def was_refused(self, now_ms: int, within_ms: int) -> bool:
        """Whether Stripe refused the attempt's event a moment ago, and every answer to the attempt was a refusal."""
        if self.in_doubt or self.refused_at_ms is None:
            return False
        return 0 <= now_ms - self.refused_at_ms <= within_ms

    def look_again_ms(self, now_ms: int, wait_ms: int) -> int:
        """How long to wait until a second lookup may confirm that Stripe does not have the event; 0 if this one does.
        A clock that was put back begins the wait again."""
        if self.absent_at_ms is None or self.absent_at_ms > now_ms:
            self.absent_at_ms = now_ms
        return max(0, self.absent_at_ms + wait_ms - now_ms)

    def progress(self) -> LedgerIntent:
        """The intent with the progress that the ledger keeps."""
        return self.known._replace(
            stripe_customer=self.stripe_customer,
            hold=self.hold,
            detail=self.detail,
            not_before_ms=self.not_before_ms,
            failures=self.failures,
            absent_at_ms=self.absent_at_ms,
        )


class SendWindow:
    """At most `size` pending intents in queues.

    Intents that wait go back to the ledger, and come again when they are due.
    """

    def __init__(self, size: int = WINDOW_MAX) -> None:
        self.queues: dict[SendQueueKey, dict[str, Pending]] = {}
        self._size = size
        self._pending: dict[str, Pending] = {}
        self._certain: dict[str, tuple[int, int | None]] = {}
        self._is_whole = False
        self._filled_at_ms = 0

    def __len__(self) -> int:
        return len(self._pending)

    def __iter__(self) -> Iterator[Pending]:
        return iter(self._pending.values())

    def wanted(self, now_ms: int) -> int:
        """How many due intents to read from the ledger, those of the window among them; 0 if none are needed yet."""
        is_current = self._is_whole and self._filled_at_ms <= now_ms < self._filled_at_ms + REFILL_MS
        return 0 if is_current or len(self) > self._size // 2 else self._size

    def filled(self, due: Sequence[LedgerIntent], now_ms: int) -> None:
        """Add what the ledger answered to `wanted`."""
        self._is_whole, self._filled_at_ms = len(due) < self._size, now_ms
        for known in due:
            if known.intent.identifier not in self._pending:
                self._add(known)

    def note(self, known: LedgerIntent, *, own_offset: int | None) -> None:
        """Apply a change of the ledger. `own_offset`: the offset of the attempt in force, if that came just now."""
        identifier = known.intent.identifier
        pending = self._pending.get(identifier)
        if known.state is not IntentState.PENDING:
            self.drop(identifier)
        elif pending is None:
            self._add(known)
        elif known.attempt != pending.attempt:
            pending.known, pending.attempt, pending.stripe_customer = known, known.attempt, known.stripe_customer
            # An attempt of this sender follows a proof that Stripe does not have the event.
            pending.in_doubt = own_offset != pending.awaited_offset
            pending.refused_at_ms = pending.absent_at_ms = None
        else:
            # An allocation came.
            pending.known = known

    def drop(self, identifier: str) -> None:
        """Forget an intent that is settled or waits."""
        pending = self._pending.pop(identifier, None)
        if pending is None:
            return
        key = _queue_of(pending)
        del self.queues[key][identifier]
        if not self.queues[key]:
            del self.queues[key]

    def waiting(self, now_ms: int, next_offset: int) -> list[LedgerIntent]:
        """Take the intents that wait out of the window. Those behind one that failed wait as long."""
        taken: list[Pending] = []
        for queue in self.queues.values():
            until_ms = 0
            for pending in in_order(queue):
                if pending.awaited_offset >= next_offset:
                    break
                pending.not_before_ms = max(pending.not_before_ms, until_ms)
                if pending.not_before_ms > now_ms:
                    taken.append(pending)
                    until_ms = until_ms if pending.hold else pending.not_before_ms
        for pending in taken:
            self._remember(pending)
            self.drop(pending.intent.identifier)
        return [pending.progress() for pending in taken]

    def end_waits(self) -> None:
        """Read the ledger again before the next round."""
        self._is_whole = False

    def _add(self, known: LedgerIntent) -> None:
        if len(self) >= self._size:
            self._is_whole = False
            return
        attempted_at_ms, refused_at_ms = self._certain.pop(known.intent.identifier, (None, None))
        is_certain = known.attempt is not None and known.attempt.attempted_at_ms == attempted_at_ms
        pending = Pending(
            known=known,
            attempt=known.attempt,
            stripe_customer=known.stripe_customer,
            hold=Hold(known.hold),
            detail=known.detail,
            not_before_ms=known.not_before_ms,
            failures=known.failures,
            absent_at_ms=known.absent_at_ms,
            in_doubt=known.attempt is not None and not is_certain,
            period_end_ms=known.intent.period_end_ms,
            refused_at_ms=refused_at_ms if is_certain else None,
        )
        self._pending[known.intent.identifier] = pending
        self.queues.setdefault(_queue_of(pending), {})[pending.intent.identifier] = pending

    def _remember(self, pending: Pending) -> None:
        if pending.attempt is None or pending.in_doubt:
            return
        while len(self._certain) >= CERTAIN_MAX:
            del self._certain[next(iter(self._certain))]
        self._certain[pending.intent.identifier] = (pending.attempt.attempted_at_ms, pending.refused_at_ms)


def in_order(queue: dict[str, Pending]) -> list[Pending]:
    """The intents of a queue in the log's order. Those that waited come after newer ones from the ledger."""
    return sorted(queue.values(), key=lambda pending: pending.known.offset)


def _queue_of(pending: Pending) -> SendQueueKey:
    return SendQueueKey(pending.intent.event_name, pending.intent.account)
