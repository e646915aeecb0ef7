"""What `billing.reports` says: intents, what was sent for them and what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from pydantic import TypeAdapter, ValidationError

from reconciler.recount import TotalName
from schemas.errors import OperatorNeeded
from schemas.log import REPORTS_TOPIC, Log
from schemas.periods import Period
from schemas.reports import Attempt, Intent, Outcome, OutcomeStatus, ReportEntry

READ_RECORDS_MAX: Final = 2_000

_ENTRY: Final[TypeAdapter[ReportEntry]] = TypeAdapter(ReportEntry)
_ENTRIES: Final[TypeAdapter[list[ReportEntry]]] = TypeAdapter(list[ReportEntry])


class Told(NamedTuple):
    """One intent and how far it came."""

    partition: int
    intent: Intent
    attempt: Attempt | None
    outcome: Outcome | None

    @property
    def total(self) -> TotalName:
        """The total it changes; the period's end is as it was known when the intent was made."""
        return self.intent.account, self.intent.meter, Period(self.intent.period_start_ms, self.intent.period_end_ms)

    @property
    def accepted(self) -> bool:
        """Whether Stripe said that it took it."""
        return self.outcome is not None and self.outcome.status is OutcomeStatus.ACCEPTED

    @property
    def is_dead(self) -> bool:
        """Whether it is a dead letter."""
        return self.outcome is not None and self.outcome.status is OutcomeStatus.DEAD


class ReportsIndex:
    """Everything that was read of `billing.reports`; grows with the topic, up to `entries_max` per partition."""

    def __init__(self, log: Log, entries_max: int) -> None:
        self._log = log
        self._entries_max = entries_max
        self._read_to: dict[int, int] = {}
        self._entries: dict[int, int] = {}
        self._intents: dict[str, tuple[int, Intent]] = {}
        self._attempts: dict[str, Attempt] = {}
        self._outcomes: dict[str, Outcome] = {}

    async def catch_up(self, partition: int) -> None:
        """Read what was appended since the last call, up to the end as it is now.

        Raises `OperatorNeeded` over the limit, or for an entry this version does not know.
        """
        bounds = await self._log.bounds(REPORTS_TOPIC, partition)
        offset = max(self._read_to.get(partition, 0), bounds.first)
        while offset < bounds.next:
            records = await self._log.read(REPORTS_TOPIC, partition, offset, READ_RECORDS_MAX)
            if not records:
                break
            for record in records:
                for entry in parse_entries(record.value):
                    self._add(partition, entry)
            offset = records[-1].next_offset
        self._read_to[partition] = max(offset, bounds.next)

    def told(self, partition: int | None = None) -> Iterator[Told]:
        """Each intent once, of one partition or of all, in the log's order."""
        for identifier, (held, intent) in self._intents.items():
            if partition is None or held == partition:
                yield Told(held, intent, self._attempts.get(identifier), self._outcomes.get(identifier))

    def _add(self, partition: int, entry: ReportEntry) -> None:
        self._entries[partition] = self._entries.get(partition, 0) + 1
        if self._entries[partition] > self._entries_max:
            raise OperatorNeeded(
                f"billing.reports/{partition} holds more than {self._entries_max} entries: raise reports_max, which "
                "costs about 2 kB of memory an entry"
            )
        match entry:
            case Intent():
                self._intents.setdefault(entry.identifier, (partition, entry))
            case Attempt():
                known = self._attempts.setdefault(entry.identifier, entry)
                # As the sender follows them: only one made after looking for the attempt in force replaces that one.
                # What a sender appends that was suspended for a day changes nothing, nor does anything once settled.
                if entry.replaces_ms == known.attempted_at_ms and entry.identifier not in self._outcomes:
                    self._attempts[entry.identifier] = entry
            case Outcome():
                self._outcomes.setdefault(entry.identifier, entry)


def parse_entries(value: bytes | None) -> Iterable[ReportEntry]:
    """The entries of a record: one JSON object, or a list of them.

    Bytes that cannot be ours (no object with a `kind`) give none, as in the sender: whoever may append to the topic
    must not end the comparison. Raises `OperatorNeeded` for an entry of a shape this version does not know.
    """
    text = (value or b"").strip()
    try:
        return _ENTRIES.validate_json(text) if text.startswith(b"[") else [_ENTRY.validate_json(text)]
    except ValidationError:
        return _ours_among(text)


def _ours_among(text: bytes) -> Iterable[ReportEntry]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return []
    candidates = parsed if isinstance(parsed, list) else [parsed]
    try:
        return _ENTRIES.validate_python([each for each in candidates if isinstance(each, dict) and "kind" in each])
    except ValidationError as error:
        raise OperatorNeeded(
            f"billing.reports holds an entry this version does not understand; run the version that wrote it: {error}"
        ) from error
