"""Whether Stripe has an event whose answer was lost more than a day ago (I10): found out by looking.

Stripe's identifier window is over, so sending again could count twice. But its sum for the queue and period can
be compared with what the topic says it must hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from itertools import combinations
from typing import Final, NamedTuple

from pipeline.billing.ledger import parse_entries, supersedes
from schemas.clock import SECOND_MS, Clock
from schemas.log import REPORTS_TOPIC, Log
from schemas.periods import Period
from schemas.reports import Attempt, Intent, MeterSummary, Outcome, OutcomeStatus, ReportEntry, StripeMeters
from sinks.stripe.sums import agrees, tolerance

UNKNOWN_MAX: Final = 12
READ_RECORDS_MAX: Final = 1_000


class Presence(StrEnum):
    """What looking told."""

    PRESENT = "present"
    ABSENT = "absent"
    UNKNOWN = "unknown"


class LookupResult(NamedTuple):
    """`detail` says for people why it cannot be told."""

    presence: Presence
    detail: str = ""


class Question(NamedTuple):
    """What Stripe adds up: a meter over a span of time (then per customer)."""

    event_name: str
    period: Period


def question_of(intent: Intent) -> Question:
    """The sum an intent is part of."""
    return Question(intent.event_name, Period(intent.period_start_ms, intent.period_end_ms))


class Sent(NamedTuple):
    """An attempt in force, and what came of it."""

    identifier: str
    attempt: Attempt
    outcome: Outcome | None

    @property
    def is_dead(self) -> bool:
        """Whether it is a dead letter."""
        return self.outcome is not None and self.outcome.status is OutcomeStatus.DEAD


@dataclass(slots=True)
class _Index:
    """The topic's entries about some questions, and how far each partition was read for them."""

    questions: frozenset[Question]
    positions: dict[int, int] = field(default_factory=dict)
    intents: dict[str, Intent] = field(default_factory=dict)
    attempts: dict[str, Attempt] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    _spans: dict[str, Period] = field(default_factory=dict)
    _queues: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for event_name, (start_ms, end_ms) in self.questions:
            known = self._spans.get(event_name, Period(start_ms, end_ms))
            self._spans[event_name] = Period(min(start_ms, known.start_ms), max(end_ms, known.end_ms))

    def add(self, entry: ReportEntry) -> None:
        """Keep what may belong to a question. Outcomes and attempts stand behind their intent."""
        if isinstance(entry, Intent):
            # What is sent for an intent has an instant of the intent's own period.
            span = self._spans.get(entry.event_name)
            if span is not None and _overlaps(entry, span):
                self.intents.setdefault(entry.identifier, entry)
        elif entry.identifier in self.intents:
            if isinstance(entry, Attempt):
                self._add_attempt(entry)
            else:
                self.outcomes.setdefault(entry.identifier, entry)

    def _add_attempt(self, attempt: Attempt) -> None:
        known = self.attempts.get(attempt.identifier)
        if supersedes(attempt, known):
            self.attempts[attempt.identifier] = attempt
            if known is None:
                queue = (self.intents[attempt.identifier].event_name, attempt.stripe_customer)
                self._queues.setdefault(queue, []).append(attempt.identifier)

    def sent(self, question: Question, customer: str) -> list[Sent]:
        """Everything that Stripe's answer may hold: it adds up by the instants that were sent, whatever the periods.
        Accounts of one customer may be cut differently, and a binding may cut a period that has reports already."""
        start_ms, end_ms = question.period
        found = []
        for identifier in self._queues.get((question.event_name, customer), ()):
            each = Sent(identifier, self.attempts[identifier], self.outcomes.get(identifier))
            # A person may have sent a dead letter with any instant of its period.
            by_hand = each.is_dead and _overlaps(self.intents[identifier], question.period)
            if by_hand or start_ms <= each.attempt.timestamp_s * SECOND_MS < end_ms:
                found.append(each)
        return found


def _overlaps(intent: Intent, span: Period) -> bool:
    return intent.period_start_ms < span.end_ms and span.start_ms < intent.period_end_ms


class StripeLook:
    """Answers "has Stripe got it?" from the whole topic (every partition, since accounts of one customer may lie
    on several) and Stripe's summary. Reads the topic once for all questions of a round; `forget()` drops it."""

    def __init__(self, log: Log, meters: StripeMeters, clock: Clock, settle_ms: int) -> None:
        self._log = log
        self._meters = meters
        self._clock = clock
        self._settle_ms = settle_ms
        self._index = _Index(frozenset())

    def forget(self) -> None:
        """Drop what was read. Call once nothing is left to ask."""
        self._index = _Index(frozenset())

    async def look_up(self, identifier: str, questions: Iterable[Question]) -> LookupResult:
        """Whether Stripe holds the attempted intent `identifier`; `questions` are all that will be asked soon.

        The caller keeps the queue of the intent still. Reads the topic and one summary; may raise `Transient`.
        Whatever could make the comparison lie (a recent send that the summary may not show yet, an entry that
        appeared meanwhile, two sums that fit) answers unknown.
        """
        wanted = frozenset(questions)
        if not wanted <= self._index.questions:
            self._index = _Index(wanted)
        index = self._index
        await self._catch_up(index)
        intent, attempt = index.intents.get(identifier), index.attempts.get(identifier)
        if intent is None or attempt is None:
            return LookupResult(Presence.UNKNOWN, "its intent or attempt is not in the log any more")
        question = question_of(intent)
        sent = index.sent(question, attempt.stripe_customer)
        certain, unsure, recent = self._sorted(sent)
        if identifier not in unsure:
            return LookupResult(
                Presence.UNKNOWN, "it is settled meanwhile, or was sent with an instant of another period"
            )
        if recent - {identifier}:
            return LookupResult(Presence.UNKNOWN, "Stripe's summary may not show the latest sends yet")
        if len(unsure) > UNKNOWN_MAX:
            return LookupResult(
                Presence.UNKNOWN, f"{len(unsure)} events of this customer and period are in doubt at once"
            )
        start_s, end_s = question.period.start_ms // SECOND_MS, question.period.end_ms // SECOND_MS
        summary = await self._meters.summary(question.event_name, attempt.stripe_customer, start_s, end_s)
        await self._catch_up(index)
        if index.sent(question, attempt.stripe_customer) != sent:
            return LookupResult(Presence.UNKNOWN, "other events of this customer and period were sent meanwhile")
        return _compare(identifier, certain, unsure, summary)

    def _sorted(self, sent: Iterable[Sent]) -> tuple[list[Decimal], dict[str, Decimal], set[str]]:
        """The values that Stripe surely took, the values in doubt, and which of all are too recent to be seen."""
        certain: list[Decimal] = []
        unsure: dict[str, Decimal] = {}
        recent: set[str] = set()
        settled_before_ms = self._clock.now_ms() - self._settle_ms
        for identifier, attempt, outcome in sent:
            if outcome is not None and outcome.status is OutcomeStatus.ACCEPTED:
                certain.append(Decimal(attempt.value))
            else:
                unsure[identifier] = Decimal(attempt.value)
            latest_ms = attempt.attempted_at_ms if outcome is None else outcome.settled_at_ms
            if latest_ms > settled_before_ms:
                recent.add(identifier)
        return certain, unsure, recent

    async def _catch_up(self, index: _Index) -> None:
        for partition in range(await self._log.partition_count(REPORTS_TOPIC)):
            bounds = await self._log.bounds(REPORTS_TOPIC, partition)
            offset = max(index.positions.get(partition, 0), bounds.first)
            while records := await self._log.read(REPORTS_TOPIC, partition, offset, READ_RECORDS_MAX):
                for record in records:
                    for entry in parse_entries(record.value):
                        index.add(entry)
                offset = records[-1].next_offset
            index.positions[partition] = offset


def _compare(
    identifier: str, certain: Sequence[Decimal], unsure: dict[str, Decimal], summary: MeterSummary
) -> LookupResult:
    """Which sets of the doubtful events explain Stripe's sum; told only where all of them agree on this one."""
    base, off_by = sum(certain, Decimal(0)), tolerance([*certain, *unsure.values()])
    seen = {
        identifier in chosen
        for chosen in _subsets(list(unsure))
        if agrees(base + sum((unsure[key] for key in chosen), Decimal(0)), summary, off_by)
    }
    if seen == {True}:
        return LookupResult(Presence.PRESENT, f"Stripe's summary {summary.value} contains it")
    if seen == {False}:
        return LookupResult(Presence.ABSENT, f"Stripe's summary {summary.value} does not contain it")
    expected = f"{base} for certain, {len(unsure)} events in doubt"
    return LookupResult(Presence.UNKNOWN, f"Stripe's summary {summary.value} does not tell: {expected}")


def _subsets(keys: Sequence[str]) -> Iterable[tuple[str, ...]]:
    for size in range(len(keys) + 1):
        yield from combinations(keys, size)
