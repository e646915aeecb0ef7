"""The first step of a flush: decode records in order, check events, evaluate meters, follow control records.

Nothing here depends on an account's state, so it needs no store; the archive runs the same step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec
from pydantic import ValidationError

from aggregators.decode import Rejected, decode, raw_event
from aggregators.instants import parse_instant_us
from aggregators.meters import CompiledCatalog, Contribution, Failure, compiled, definition_change, successor
from aggregators.parked import VerdictStep, far_late_us, parked_entry
from aggregators.partitioning import partition_of
from aggregators.signing import signature_holds
from schemas.clock import MILLISECOND_US
from schemas.control import (
    CONTROL_CLASSES,
    CONTROL_HEADER,
    SIGNATURE_HEADER,
    AccountRecord,
    CatalogRecord,
    CloseRecord,
    Control,
    ControlKind,
    Genesis,
    RecutRecord,
    Tick,
    Verdict,
    VerdictRecord,
)
from schemas.errors import InvalidInput
from schemas.events import TIME_MIN_US
from schemas.log import Record, position
from schemas.meters import Catalog, Policy
from schemas.reasons import Reason
from schemas.recut import RecutContent, unpacked
from schemas.rollup import Parked

EVENTS_BEFORE_A_CATALOG: Final = Policy()
NOTHING_RECUT: Final = RecutContent()
_RECUT: Final = ControlKind.RECUT.value.encode()


class LogState(NamedTuple):
    """What reading a partition depends on; part of the fence, and of the archive's position."""

    log_id: str
    partitions: int
    log_time_ms: int
    catalog: Catalog | None


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """A well-formed event where and when it arrived, with what it adds to each meter.

    A struct, as all that is made once per event: it costs a fifth of a NamedTuple. `parked` is set where it came later
    than the dedup window. With a `verdict` it is such an event once more, where its verdict stands: `position` and
    `log_time_ms` are the verdict's.
    """

    position: int
    log_time_ms: int
    account: str
    id: str
    type: str
    source: str
    time_us: int
    data: dict[str, Any]
    contributions: tuple[Contribution, ...]
    parked: Parked | None = None
    verdict: Verdict | None = None


class AccountControl(NamedTuple):
    """A binding, a closing or a re-cut, in its place among the events; `content` is what a re-cut puts in place."""

    position: int
    log_time_ms: int
    control: AccountRecord | CloseRecord | RecutRecord
    content: RecutContent = NOTHING_RECUT


Step = Arrival | AccountControl | VerdictStep


class Quarantined(NamedTuple):
    """An event or record for the quarantine topic, with where it stood."""

    position: int
    log_time_ms: int
    reason: Reason
    detail: str
    raw: bytes


class ControlEntry(NamedTuple):
    """A control record that was accepted, for the archive's control log."""

    position: int
    log_time_ms: int
    kind: ControlKind
    account: str
    value: str


class Moment(NamedTuple):
    """One record: its offset, log time with it, and how many events it held."""

    offset: int
    log_time_ms: int
    received: int


class Scan(NamedTuple):
    """What a run of records says, in log order. `state` is the log state after the last of them;
    `policies` says which policy was in force at each record's offset, `moments` are all records."""

    steps: list[Step]
    quarantined: list[Quarantined]
    controls: list[ControlEntry]
    state: LogState
    received: int
    next_offset: int
    policies: dict[int, Policy]
    moments: Sequence[Moment] = ()

    @property
    def accounts(self) -> set[str]:
        """The accounts whose states the plan needs."""
        return {_account(step) for step in self.steps}

    @property
    def judged(self) -> list[int]:
        """The positions that verdicts name and whose events did not arrive in this run."""
        here = {step.position for step in self.steps if isinstance(step, Arrival)}
        named = (step.verdict.position for step in self.steps if isinstance(step, VerdictStep))
        return [position for position in dict.fromkeys(named) if position not in here]


def _account(step: Step) -> str:
    if isinstance(step, Arrival):
        return step.account
    return step.verdict.account if isinstance(step, VerdictStep) else step.control.account


class _Scanner:
    """Builds one Scan; lives for one call."""

    def __init__(self, partition: int, state: LogState, secret: bytes) -> None:
        self.partition = partition
        self.secret = secret
        self.log_id, self.partitions, self.log_time_ms, self.catalog = state
        self.compiled: CompiledCatalog | None = compiled(self.catalog) if self.catalog else None
        self.policy = self.catalog.policy if self.catalog else EVENTS_BEFORE_A_CATALOG
        self.steps: list[Step] = []
        self.quarantined: list[Quarantined] = []
        self.controls: list[ControlEntry] = []
        self.received = 0
        self.at_home: set[str] = set()

    def take(self, record: Record) -> None:
        self.log_time_ms = max(self.log_time_ms, record.timestamp_ms)
        headers = dict(record.headers)
        if CONTROL_HEADER in headers:
            self._control(record, headers)
        else:
            self._events(record)

    def _events(self, record: Record) -> None:
        decoded = decode(record.value, self.policy.event_bytes_max)
        self.received += decoded.received
        base, log_time_ms = position(record.offset), self.log_time_ms
        for rejected in decoded.rejected:
            self._quarantine(record, rejected)
        latest_us = (log_time_ms + self.policy.future_ms) * MILLISECOND_US
        earliest_us = far_late_us(self.policy, log_time_ms)
        partition, partitions, at_home = self.partition, self.partitions, self.at_home
        contributions_of = self.compiled.contributions if self.compiled else None
        append = self.steps.append
        for place, event in decoded.events:
            time_us = parse_instant_us(event.time)
            account = event.subject
            if time_us is not None and TIME_MIN_US <= time_us <= latest_us:
                if account in at_home or partition_of(account, partitions) == partition:
                    at_home.add(account)
                    made = contributions_of(event.type, event.data) if contributions_of else ()
                    if not isinstance(made, Failure):
                        arrival = Arrival(
                            base | place, log_time_ms, account, event.id, event.type, event.source,
                            time_us, event.data, made,
                        )  # fmt: skip
                        if time_us < earliest_us:
                            raw = raw_event(record.value, place)
                            arrival = msgspec.structs.replace(arrival, parked=parked_entry(arrival, raw))
                        append(arrival)
                        continue
                    failure = made
                else:
                    detail = f"subject belongs on partition {partition_of(account, partitions)} of {partitions}"
                    failure = Failure(Reason.WRONG_PARTITION, detail)
            elif time_us is None:
                failure = Failure(Reason.BAD_TIME, f"time: {event.time[:50]!r}")
            elif partition_of(account, partitions) != partition:
                failure = Failure(
                    Reason.WRONG_PARTITION, f"subject belongs on partition {partition_of(account, partitions)}"
                )
            else:
                reason = Reason.TOO_FAR_IN_FUTURE if time_us > latest_us else Reason.TOO_FAR_IN_PAST
                failure = Failure(reason, f"time: {event.time} at log time {log_time_ms} ms")
            self._quarantine(record, Rejected(place, failure.reason, failure.detail, b""))

    def _quarantine(self, record: Record, rejected: Rejected) -> None:
        self.quarantined.append(
            Quarantined(
                position(record.offset, rejected.place),
                self.log_time_ms,
                rejected.reason,
                rejected.detail,
                rejected.raw or raw_event(record.value, rejected.place),
            )
        )

    def _control(self, record: Record, headers: dict[str, bytes]) -> None:
        kind_text = headers[CONTROL_HEADER].decode("ascii", "replace")
        value, signature = record.value or b"", headers.get(SIGNATURE_HEADER, b"")
        if not signature_holds(self.secret, record.topic, self.partition, kind_text, value, signature):
            return self._refuse(record, Reason.FORGED_CONTROL, f"{kind_text[:50]}: the signature does not hold")
        try:
            kind = ControlKind(kind_text)
            control = CONTROL_CLASSES[kind].model_validate_json(value)
        except (ValidationError, ValueError) as error:
            return self._refuse(record, Reason.BAD_CONTROL, f"{kind_text[:50]}: {str(error)[:200]}")
        problem = self._apply(control, position(record.offset))
        if problem:
            return self._refuse(record, Reason.BAD_CONTROL, problem)
        if isinstance(control, CatalogRecord) and not self._is_in_force(control.catalog):
            return None
        account = control.account if isinstance(control, AccountRecord | CloseRecord | RecutRecord) else ""
        kept = control.model_copy(update={"content": ""}) if isinstance(control, RecutRecord) else None
        text = value.decode() if kept is None else kept.model_dump_json()
        self.controls.append(ControlEntry(position(record.offset), self.log_time_ms, kind, account, text))
        return None

    def _apply(self, control: Control, at: int) -> str | None:
        """Follow a genuine control record; what is wrong with it, or None."""
        if isinstance(control, Tick | Genesis):
            return (
                None if control.log_id == self.log_id else f"it belongs to log {control.log_id}, this is {self.log_id}"
            )
        if isinstance(control, CatalogRecord):
            change = definition_change(self.catalog, control.catalog)
            if change:
                return change
            # An older version is a late repeat of a record that another apply has overtaken.
            if self.catalog is None or control.catalog.version > self.catalog.version:
                try:
                    self.catalog = successor(self.catalog, control.catalog)
                except ValidationError as error:
                    return f"retired: {error.errors(include_url=False)[0]['msg']}: too many meters were taken away"
                self.policy, self.compiled = self.catalog.policy, compiled(self.catalog)
            return None
        if isinstance(control, VerdictRecord):
            return self._verdicts(control, at)
        if partition_of(control.account, self.partitions) != self.partition:
            return f"account {control.account[:100]} does not live on partition {self.partition}"
        content = NOTHING_RECUT
        if isinstance(control, RecutRecord) and not (control.begins or control.declined):
            try:
                content = unpacked(control.content)
            except InvalidInput as error:
                return str(error)
        self.steps.append(AccountControl(at, self.log_time_ms, control, content))
        return None

    def _is_in_force(self, said: Catalog) -> bool:
        held = self.catalog
        return held is not None and (held.version, held.meters, held.policy) == (
            said.version, said.meters, said.policy,
        )  # fmt: skip

    def _verdicts(self, record: VerdictRecord, at: int) -> str | None:
        for each in record.verdicts:
            if partition_of(each.account, self.partitions) != self.partition:
                return f"account {each.account[:100]} does not live on partition {self.partition}"
        for index, each in enumerate(record.verdicts):
            # Nothing can be said of an event that is still to come.
            if each.position < at:
                self.steps.append(VerdictStep(at | index, self.log_time_ms, each, self.catalog))
        return None

    def _refuse(self, record: Record, reason: Reason, detail: str) -> None:
        self.received += 1
        self._quarantine(record, Rejected(0, reason, detail, record.value or b"{}"))


def scan(
    partition: int,
    state: LogState,
    secret: bytes,
    records: Sequence[Record],
    *,
    before_ms: int | None = None,
    events_max: int = 10_000,
) -> Scan:
    """Scan records of one partition, in order, from `state` on.

    Takes at least one record and stops, between records, before log time reaches `before_ms` (the end of a mark
    slice) or once `events_max` events were received, and takes a re-cut alone: see `Scan.next_offset` for where to go
    on. Never raises.
    """
    scanner = _Scanner(partition, state, secret)
    next_offset = records[0].offset
    policies: dict[int, Policy] = {}
    moments: list[Moment] = []
    for number, record in enumerate(records):
        alone = bool(record.headers) and _is_recut(record)
        if number and (
            alone
            or scanner.received >= events_max
            or (before_ms is not None and max(scanner.log_time_ms, record.timestamp_ms) >= before_ms)
        ):
            break
        policies[record.offset] = scanner.policy
        before = scanner.received
        scanner.take(record)
        moments.append(Moment(record.offset, scanner.log_time_ms, scanner.received - before))
        next_offset = record.next_offset
        if alone:
            break
    return Scan(
        scanner.steps,
        scanner.quarantined,
        scanner.controls,
        LogState(scanner.log_id, scanner.partitions, scanner.log_time_ms, scanner.catalog),
        scanner.received,
        next_offset,
        policies,
        moments,
    )


def _is_recut(record: Record) -> bool:
    return (CONTROL_HEADER, _RECUT) in record.headers
