"""Parses the records of `billing.reports` and finds the attempt in force and the outcome of each intent.

The sender and the reconciler read the topic with this module, so both see the same attempts and outcomes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final, NamedTuple

from pydantic import TypeAdapter, ValidationError

from aggregators.quantities import decimal_text
from schemas.clock import SECOND_MS
from schemas.errors import OperatorNeeded
from schemas.events import NAME_CHARACTERS_MAX
from schemas.intent_ledger import IntentState, LedgerIntent
from schemas.periods import INSTANT_MAX_MS, INSTANT_MIN_MS
from schemas.reports import Allocation, Attempt, Intent, OutcomeStatus, Redrive, ReportEntry, ReportOutcome

_ENTRY: Final[TypeAdapter[ReportEntry]] = TypeAdapter(ReportEntry)
_ENTRIES: Final[TypeAdapter[list[ReportEntry]]] = TypeAdapter(list[ReportEntry])


def parse_entries(value: bytes | None) -> list[ReportEntry]:
    """The entries of a record: one JSON object, or a list of them.

    Foreign bytes (no object with a `kind`) give no entries: a foreign writer must not stop the readers. Raises
    `OperatorNeeded` for an entry of an unknown shape: if the entry is an outcome, its intent could be sent again.
    """
    text = (value or b"").strip()
    try:
        return _ENTRIES.validate_json(text) if text.startswith(b"[") else [_ENTRY.validate_json(text)]
    except ValidationError:
        return _own_entries(text)


def _own_entries(text: bytes) -> list[ReportEntry]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return []
    candidates = parsed if isinstance(parsed, list) else [parsed]
    try:
        return _ENTRIES.validate_python([entry for entry in candidates if isinstance(entry, dict) and "kind" in entry])
    except ValidationError as error:
        raise OperatorNeeded(
            f"billing.reports holds an entry this version does not understand; run the version that wrote it: {error}"
        ) from error


def has_long_name(entry: ReportEntry) -> bool:
    """Whether a name is longer than any of ours. A foreign writer may write any text, and an index of PostgreSQL takes
    none of more than 2 700 bytes."""
    names = ("identifier", "account", "event_name", "stripe_customer")
    return any(len(getattr(entry, name, "")) > NAME_CHARACTERS_MAX for name in names)


def within_time(entry: ReportEntry) -> ReportEntry:
    """The entry with each time beyond year 1 or 9999 moved to that limit. A foreign writer may write any number, and
    the ledger's columns have 64 bits. An intent of the far future waits, and what does not depend on the time stays."""
    changes: dict[str, int] = {}
    for name, value in entry:
        if isinstance(value, int) and not name.endswith("_minor"):
            unit_ms = SECOND_MS if name.endswith("_s") else 1
            within = min(max(value, INSTANT_MIN_MS // unit_ms), INSTANT_MAX_MS // unit_ms)
            changes |= {name: within} if within != value else {}
    return entry.model_copy(update=changes) if changes else entry


def supersedes(attempt: Attempt, known: Attempt | None) -> bool:
    """Whether `attempt` is in force after `known`: a compare-and-swap in the log's order.

    The first attempt fixes the bytes and starts Stripe's window. A sender that has not read the first attempt may
    write another one, which changes nothing. Only an attempt made after a refusal by Stripe or a lookup at Stripe
    replaces an attempt, and only the one that was refused or looked up.
    """
    return known is None or attempt.replaces_ms == known.attempted_at_ms


def _allocates(entry: Allocation, intent: Intent) -> bool:
    """Whether an allocation is one of the intent: a foreign writer may write any numbers."""
    return entry.drawn_minor + entry.remainder_minor == intent.delta_minor


def _knows(attempt: Attempt, intent: Intent, drawn_minor: int | None) -> bool:
    """Whether an attempt was made by who had read the allocation; without one, every attempt was."""
    return drawn_minor is None or attempt.value == decimal_text(intent.delta_minor - drawn_minor, intent.scale)


def recorded(known: LedgerIntent | None, partition: int, offset: int, entry: ReportEntry) -> LedgerIntent | None:
    """What the ledger knows of an intent after an entry, of what it knew before; None if the entry's intent is unknown.

    The first outcome wins, and nothing but a redrive changes a settled intent. Stripe may have the event as soon as an
    attempt is in the log.
    """
    if known is None:
        return LedgerIntent(partition, offset, entry) if isinstance(entry, Intent) else None
    is_pending = known.state is IntentState.PENDING
    match entry:
        case Allocation() if is_pending and known.attempt is None and known.drawn_minor is None:
            return known._replace(drawn_minor=entry.drawn_minor) if _allocates(entry, known.intent) else known
        case Attempt() if (
            is_pending and supersedes(entry, known.attempt) and _knows(entry, known.intent, known.drawn_minor)
        ):
            customer = entry.stripe_customer
            return known._replace(attempt=entry, stripe_customer=customer, in_doubt=True, hold="", absent_at_ms=None)
        case ReportOutcome() if is_pending:
            return known._replace(
                state=IntentState(entry.status),
                stripe_customer=entry.stripe_customer or known.stripe_customer,
                hold="",
                detail=entry.detail,
                settled_at_ms=entry.settled_at_ms,
                in_doubt=entry.in_doubt,
            )
        case Redrive():
            return known._replace(state=IntentState.REDRIVEN, hold="")
    return known


class ReportedIntent(NamedTuple):
    """An intent of a partition of `billing.reports`, its attempt and allocation in force, its outcome and its redrive.

    A redriven intent is neither accepted nor dead: its next revision stands for it.
    """

    partition: int
    intent: Intent
    attempt: Attempt | None = None
    outcome: ReportOutcome | None = None
    redrive: Redrive | None = None
    allocation: Allocation | None = None

    @property
    def billed_minor(self) -> int:
        """What is left for Stripe of the intent's delta."""
        return self.intent.delta_minor if self.allocation is None else self.allocation.remainder_minor

    @property
    def is_accepted(self) -> bool:
        """Whether Stripe answered that it took the event."""
        return self._ended(OutcomeStatus.ACCEPTED)

    @property
    def is_dead(self) -> bool:
        """Whether it is a dead letter."""
        return self._ended(OutcomeStatus.DEAD)

    @property
    def is_refused(self) -> bool:
        """Whether it is a dead letter whose event Stripe does not have, as Stripe's answers say."""
        return self.is_dead and self.outcome is not None and not self.outcome.in_doubt

    def _ended(self, status: OutcomeStatus) -> bool:
        return self.redrive is None and self.outcome is not None and self.outcome.status is status


class ReportedIntents:
    """Intents with their attempts and outcomes. Entries are added in the log's order; repeated ones change nothing."""

    def __init__(self) -> None:
        self._intents: dict[str, tuple[int, Intent]] = {}
        self._attempts: dict[str, Attempt] = {}
        self._outcomes: dict[str, ReportOutcome] = {}
        self._redrives: dict[str, Redrive] = {}
        self._allocations: dict[str, Allocation] = {}

    def add(self, partition: int, entry: ReportEntry) -> None:
        """Add an entry. The first outcome wins; an attempt after the outcome replaces no other attempt."""
        identifier = entry.identifier
        match entry:
            case Intent():
                self._intents.setdefault(identifier, (partition, entry))
            case Allocation():
                self._allocate(entry)
            case Attempt():
                self._attempt(entry)
            case ReportOutcome():
                self._outcomes.setdefault(identifier, entry)
            case Redrive():
                self._redrives.setdefault(identifier, entry)

    def _allocate(self, entry: Allocation) -> None:
        identifier = entry.identifier
        before = (self._attempts, self._outcomes, self._redrives, self._allocations)
        is_late = any(identifier in known for known in before)
        if identifier in self._intents and not is_late and _allocates(entry, self._intents[identifier][1]):
            self._allocations[identifier] = entry

    def _attempt(self, entry: Attempt) -> None:
        identifier = entry.identifier
        known, allocation = self._attempts.get(identifier), self._allocations.get(identifier)
        if allocation and not _knows(entry, self._intents[identifier][1], allocation.drawn_minor):
            return
        if known is None or (identifier not in self._outcomes and supersedes(entry, known)):
            self._attempts[identifier] = entry

    def forget(self, identifier: str) -> None:
        """Drop an intent and what is known of it."""
        for known in (self._intents, self._attempts, self._outcomes, self._redrives, self._allocations):
            known.pop(identifier, None)

    def get(self, identifier: str) -> ReportedIntent | None:
        """The intent with this identifier, or None if no such intent was added."""
        if identifier not in self._intents:
            return None
        return ReportedIntent(
            *self._intents[identifier],
            self._attempts.get(identifier),
            self._outcomes.get(identifier),
            self._redrives.get(identifier),
            self._allocations.get(identifier),
        )

    def __iter__(self) -> Iterator[ReportedIntent]:
        """Every intent once, in the order in which they were added."""
        return (reported for reported in map(self.get, self._intents) if reported is not None)
