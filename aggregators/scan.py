"""Follows the log: stream time, the meter set in force, control records, and what an event is at its arrival.

The worker and the archive follow the log by the same code. The archive scans all events; the worker makes columns of
them (`aggregators.flush`), and only exceptions become arrivals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
from pydantic import ValidationError

from aggregators.decode import Raws, decode
from aggregators.deferred import deferred_entry, far_late_us
from aggregators.judge import WITHOUT_METERS, Home, Rules, event_time_us, judge, rules_at
from aggregators.meters import Failure, compiled, definition_change, in_force_after
from aggregators.partitioning import partition_of
from aggregators.signing import signature_holds
from aggregators.steps import NO_RESTATEMENT, AccountControl, Arrival, DedupDecisionStep, Quarantined, Step
from schemas.control import (
    CONTROL_CLASSES,
    CONTROL_HEADER,
    SIGNATURE_HEADER,
    AccountControlRecord,
    Control,
    ControlKind,
    CorrectionRecord,
    DedupDecisionRecord,
    Genesis,
    MeterSetRecord,
    RestatementRecord,
    Tick,
)
from schemas.errors import InvalidInput
from schemas.events import EventStruct
from schemas.log import Record, index_of, offset_of, position
from schemas.meters import MeterSet, Policy
from schemas.reasons import Reason
from schemas.restatement import unpacked
from schemas.validation import first_problem

_RESTATEMENT: Final = ControlKind.RESTATEMENT.value.encode()


class LogState(NamedTuple):
    """What the scan of a partition depends on; part of the checkpoint, and of the archive's position."""

    log_id: str
    partitions: int
    stream_time_ms: int
    meter_set: MeterSet | None


class ControlEntry(NamedTuple):
    """A control record that was accepted, for the archive's control log."""

    position: int
    stream_time_ms: int
    kind: ControlKind
    account: str
    value: str


class Scan(NamedTuple):
    """The steps of a run of records, in log order. `state` is the log state after the last record.

    `policies` (in force) and `raws` (bytes of the events) are by record offset.
    """

    steps: list[Step]
    quarantined: list[Quarantined]
    controls: list[ControlEntry]
    state: LogState
    received: int
    next_offset: int
    policies: dict[int, Policy]
    raws: Mapping[int, Raws]

    def raw(self, position: int) -> bytes:
        """The original bytes of the event at a position of these records."""
        return self.raws[offset_of(position)].parts[index_of(position)]


def arrival_of(
    event: EventStruct, at: int, stream_time_ms: int, rules: Rules, policy: Policy, raws: Raws
) -> Arrival | Quarantined:
    """The event at a position as an arrival, deferred if it is far-late; or as an entry for the quarantine if it cannot
    be counted. `raws` are the bytes of its record's events."""
    time_us = event_time_us(event, stream_time_ms)
    contributions = judge(event, time_us, rules)
    if isinstance(contributions, Failure):
        return Quarantined(at, stream_time_ms, *contributions, raws.parts[index_of(at)])
    assert time_us is not None, "judge rejects a malformed time"  # noqa: S101 - an invariant, not input
    arrival = Arrival(
        at, stream_time_ms, event.subject, event.id, event.type, event.source, time_us, event.data or {}, contributions
    )
    if time_us < far_late_us(policy, stream_time_ms):
        return msgspec.structs.replace(arrival, deferred=deferred_entry(arrival, raws.parts[index_of(at)]))
    return arrival


class LogFollower:
    """Follows the records of a partition: stream time, the meter set in force, and control records.

    A control record that is not genuine, or not understood, is quarantined. Of the others, `steps` has those that
    change accounts or deferred events.
    """

    def __init__(self, partition: int, state: LogState, secret: bytes) -> None:
        self.partition = partition
        self.secret = secret
        self.log_id, self.partitions, self.stream_time_ms, self.meter_set = state
        self.compiled = compiled(self.meter_set) if self.meter_set else WITHOUT_METERS
        self.policy = self.compiled.meter_set.policy
        self.home = Home(partition, self.partitions, set())
        self.steps: list[Step] = []
        self.quarantined: list[Quarantined] = []
        self.controls: list[ControlEntry] = []
        self.received = 0

    @property
    def state(self) -> LogState:
        """The log state after the last record."""
        return LogState(self.log_id, self.partitions, self.stream_time_ms, self.meter_set)

    def is_control(self, record: Record) -> bool:
        """Go to the stream time of a record. Returns whether it is a control record, and applies it if so."""
        self.stream_time_ms = max(self.stream_time_ms, record.timestamp_ms)
        if not has_control_header(record):
            return False
        self._control(record, dict(record.headers))
        return True

    def _quarantine(self, event_position: int, reason: Reason, detail: str, raw: bytes) -> None:
        self.quarantined.append(Quarantined(event_position, self.stream_time_ms, reason, detail, raw))

    def _control(self, record: Record, headers: dict[str, bytes]) -> None:
        kind_text = headers[CONTROL_HEADER].decode("ascii", "replace")
        value, signature = record.value or b"", headers.get(SIGNATURE_HEADER, b"")
        if not signature_holds(self.secret, record.topic, self.partition, kind_text, value, signature):
            return self._refuse(record, Reason.FORGED_CONTROL, f"{kind_text[:50]}: the signature does not hold")
        try:
            kind = ControlKind(kind_text)
            control = CONTROL_CLASSES[kind].model_validate_json(value)
        except ValidationError as error:
            field, message, _ = first_problem(error)
            return self._refuse(record, Reason.BAD_CONTROL, f"{kind_text[:50]}: {field}: {message}"[:300])
        except ValueError:
            return self._refuse(record, Reason.BAD_CONTROL, f"{kind_text[:50]}: no such kind of control record")
        problem = self._apply(control, position(record.offset))
        if problem:
            return self._refuse(record, Reason.BAD_CONTROL, problem)
        if isinstance(control, MeterSetRecord) and not self._is_in_force(control.meter_set):
            return None
        account = control.account if isinstance(control, AccountControlRecord | CorrectionRecord) else ""
        kept = control.model_copy(update={"content": ""}) if isinstance(control, RestatementRecord) else None
        text = value.decode() if kept is None else kept.model_dump_json()
        self.controls.append(ControlEntry(position(record.offset), self.stream_time_ms, kind, account, text))
        return None

    def _apply(self, control: Control, record_position: int) -> str | None:
        """Apply a genuine control record to the log state, or append a step, because the account's state is not read
        yet (`bindings.apply`). Returns what is wrong with the record, or None."""
        if isinstance(control, Tick | Genesis):
            ours = control.log_id == self.log_id
            return None if ours else f"it belongs to log {control.log_id}, this is {self.log_id}"
        if isinstance(control, MeterSetRecord):
            return self._meter_set(control.meter_set)
        if isinstance(control, DedupDecisionRecord):
            return self._decisions(control, record_position)
        if partition_of(control.account, self.partitions) != self.partition:
            return f"account {control.account[:100]} does not live on partition {self.partition}"
        if isinstance(control, CorrectionRecord):
            return None
        content = NO_RESTATEMENT
        if isinstance(control, RestatementRecord) and not (control.begins or control.declined):
            try:
                content = unpacked(control.content)
            except InvalidInput as error:
                return str(error)
        self.steps.append(AccountControl(record_position, self.stream_time_ms, control, content))
        return None

    def _meter_set(self, proposed: MeterSet) -> str | None:
        change = definition_change(self.meter_set, proposed)
        if change:
            return change
        try:
            after = in_force_after(self.meter_set, proposed)
        except ValidationError as error:
            return f"retired: {first_problem(error).message}: too many meters were taken away"
        if after is not self.meter_set:
            # All partitions share one object per meter set: comparing large meter sets is slow.
            self.compiled = compiled(after)
            self.meter_set, self.policy = self.compiled.meter_set, after.policy
        return None

    def _is_in_force(self, recorded: MeterSet) -> bool:
        current = self.meter_set
        return current is not None and (current.version, current.meters, current.policy) == (
            recorded.version, recorded.meters, recorded.policy,
        )  # fmt: skip

    def _decisions(self, record: DedupDecisionRecord, record_position: int) -> str | None:
        for decision in record.decisions:
            if partition_of(decision.account, self.partitions) != self.partition:
                return f"account {decision.account[:100]} does not live on partition {self.partition}"
        for index, decision in enumerate(record.decisions):
            # A decision cannot precede its event.
            if decision.position < record_position:
                self.steps.append(
                    DedupDecisionStep(record_position | index, self.stream_time_ms, decision, self.meter_set)
                )
        return None

    def _refuse(self, record: Record, reason: Reason, detail: str) -> None:
        self.received += 1
        self._quarantine(position(record.offset), reason, detail, record.value or b"{}")


class _OfAccount(msgspec.Struct):
    account: str = ""


class _OfAccounts(_OfAccount):
    decisions: list[_OfAccount] = []


_accounts: Final = msgspec.json.Decoder(_OfAccounts).decode


def has_control_header(record: Record) -> bool:
    """Whether a record says that it is a control record."""
    return bool(record.headers) and any(name == CONTROL_HEADER for name, _ in record.headers)


def accounts_of_control(record: Record) -> set[str]:
    """The accounts that a control record names, genuine or not; empty if the record cannot be read."""
    try:
        named = _accounts(record.value or b"")
    except msgspec.MsgspecError:
        return set()
    return {each.account for each in (named, *named.decisions)} - {""}


def is_restatement(record: Record) -> bool:
    """Whether a record says that it is a restatement record."""
    return (CONTROL_HEADER, _RESTATEMENT) in record.headers


def scan(partition: int, state: LogState, secret: bytes, records: Sequence[Record], *, events_max: int) -> Scan:
    """Scan records of one partition, in order, from `state` on. Never raises.

    Takes at least one record. Stops after `events_max` events. Go on at `Scan.next_offset`.
    """
    log = LogFollower(partition, state, secret)
    next_offset = records[0].offset
    policies: dict[int, Policy] = {}
    raws: dict[int, Raws] = {}
    for record in records:
        if policies and log.received >= events_max:
            break
        policies[record.offset] = log.policy
        if not log.is_control(record):
            raws[record.offset] = _events(record, log)
        next_offset = record.next_offset
    return Scan(log.steps, log.quarantined, log.controls, log.state, log.received, next_offset, policies, raws)


def _events(record: Record, log: LogFollower) -> Raws:
    """Append the events of a record to the steps; those that cannot be counted to the quarantine."""
    decoded = decode(record.value, log.policy.event_bytes_max)
    log.received += decoded.received
    base, stream_time_ms = position(record.offset), log.stream_time_ms
    log.quarantined += [
        Quarantined(base | rejected.place, stream_time_ms, rejected.reason, rejected.detail, rejected.raw)
        for rejected in decoded.rejected
    ]
    rules = rules_at(stream_time_ms, log.compiled, log.home)
    for place, event in decoded.events:
        step = arrival_of(event, base | place, stream_time_ms, rules, log.policy, decoded.raws)
        if isinstance(step, Quarantined):
            log.quarantined.append(step)
        else:
            log.steps.append(step)
    return decoded.raws
