"""How a control record of an account is appended: from the account's standing in the log, under the next revision.

The commands of operators, the outbox of bindings and flushes do so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from aggregators.bindings import apply
from aggregators.meters import in_force_after
from aggregators.partitioning import partition_of
from pipeline.logs.control_records import append_control, read_control
from schemas.clock import Clock
from schemas.control import (
    BindingRecord,
    CloseRecord,
    ControlKind,
    FlushRecord,
    MeterSetRecord,
    RestatementRecord,
    RevisedRecord,
)
from schemas.errors import Transient
from schemas.live_view import AccountDirectory
from schemas.log import EVENTS_TOPIC, Log, Record, position
from schemas.meters import MeterSet, Policy
from schemas.periods import AccountState, Binding

# How many records are read that the worker has not folded yet.
UNFOLDED_MAX: Final = 200_000
READ_RECORDS_MAX: Final = 1_000
_Control = MeterSetRecord | RevisedRecord | RestatementRecord
_KINDS: Final = (
    ControlKind.METER_SET, ControlKind.BINDING, ControlKind.CLOSE, ControlKind.FLUSH, ControlKind.RESTATEMENT,
)  # fmt: skip


class HasAccounts(Protocol):
    """A live view, or the part of one that knows the accounts."""

    @property
    def accounts(self) -> AccountDirectory: ...


class AccountLog(NamedTuple):
    """The log of the accounts: its number of partitions, the deployment's secret, and the clock."""

    log: Log
    partitions: int
    secret: bytes
    clock: Clock


class Standing(NamedTuple):
    """An account after all records of its partition below `next_offset`, folded or not. The last of them is at
    `stream_time_ms`; `now_ms` is that or the clock's time, whichever is later."""

    partition: int
    next_offset: int
    now_ms: int
    state: AccountState
    meter_set: MeterSet | None
    stream_time_ms: int = 0

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self.meter_set.policy if self.meter_set else Policy()

    def after(self, record: RevisedRecord) -> AccountState:
        """The account's state after one more record."""
        return apply(self.state, record, position(self.next_offset), self.policy, self.now_ms)


class Plan(NamedTuple):
    """A record that is not appended yet. `lines` say what it will do. `is_final`: what it does cannot be undone, so the
    command asks. `after_offset`: the record was planned from all records below."""

    partition: int
    after_offset: int
    record: RevisedRecord
    lines: tuple[str, ...] = ()
    is_final: bool = False


async def standing(accounts: AccountLog, view: HasAccounts, account: str) -> Standing:
    """The account's state in the live view, and in the records that the worker has not folded yet.

    Raises `Transient` if those are more than `UNFOLDED_MAX`, or if the live view lost the partition's state.
    """
    return await Standings(accounts, view).of(account)


class Standings:
    """The standings of many accounts: the records that the worker has not folded yet are read once."""

    def __init__(self, accounts: AccountLog, view: HasAccounts) -> None:
        self._accounts = accounts
        self._view = view
        self._tails: dict[int, _Tail] = {}

    async def of(self, account: str) -> Standing:
        """See `standing`. Nothing that was in the log at the call is missing."""
        partition = partition_of(account, self._accounts.partitions)
        checkpoint, states = await self._view.accounts.accounts(partition, [account])
        bounds = await self._accounts.log.bounds(EVENTS_TOPIC, partition)
        offset = checkpoint.next_offset if checkpoint else bounds.first
        if checkpoint is None and bounds.first > 0:
            raise Transient(
                f"the live view has no state of partition {partition}, and the log's start is gone: build the live "
                "view again with `tidemark rebuild redis`, then repeat the command"
            )
        if bounds.next - offset > UNFOLDED_MAX:
            raise Transient(
                f"the worker has {bounds.next - offset} records of partition {partition} to fold: repeat the command "
                f"when fewer than {UNFOLDED_MAX} are left"
            )
        tail = self._tails.get(partition)
        # A live view that went back, or is far ahead: reading from its position is the shorter way.
        if tail is None or not tail.first_offset <= offset <= tail.next_offset:
            tail = self._tails[partition] = _Tail(partition, offset, self._accounts.secret)
        await tail.read_to(self._accounts.log, bounds.next)
        stream_time_ms = checkpoint.stream_time_ms if checkpoint else 0
        meter_set = checkpoint.meter_set if checkpoint else None
        known = Standing(partition, offset, stream_time_ms, states[account], meter_set)
        for after in tail.of(account, offset):
            known = _after(known, after, stream_time_ms)
        stream_time_ms = max(stream_time_ms, tail.time_ms)
        now_ms = max(stream_time_ms, self._accounts.clock.now_ms())
        return known._replace(next_offset=tail.next_offset, now_ms=now_ms, stream_time_ms=stream_time_ms)


class _Placed(NamedTuple):
    """A control record of the log. `time_ms` is the highest time of a record up to this one."""

    offset: int
    next_offset: int
    time_ms: int
    control: _Control


class _Tail:
    """The control records of a partition from an offset on."""

    def __init__(self, partition: int, offset: int, secret: bytes) -> None:
        self.partition = partition
        self.first_offset = self.next_offset = offset
        self.time_ms = 0
        self._secret = secret
        self._meter_sets: list[_Placed] = []
        self._of: dict[str, list[_Placed]] = defaultdict(list)

    async def read_to(self, log: Log, offset: int) -> None:
        """Read on, up to an offset."""
        while self.next_offset < offset and (
            records := await log.read(EVENTS_TOPIC, self.partition, self.next_offset, READ_RECORDS_MAX)
        ):
            for record in records:
                self.next_offset = record.next_offset
                self.time_ms = max(self.time_ms, record.timestamp_ms)
                control = _control(self._secret, record)
                if control is not None:
                    placed = _Placed(record.offset, record.next_offset, self.time_ms, control)
                    if isinstance(control, MeterSetRecord):
                        self._meter_sets.append(placed)
                    else:
                        self._of[control.account].append(placed)

    def of(self, account: str, offset: int) -> list[_Placed]:
        """What concerns an account from an offset on, in the log's order."""
        found = [*self._meter_sets, *self._of.get(account, ())]
        return sorted((placed for placed in found if placed.offset >= offset), key=lambda placed: placed.offset)


def planned(known: Standing, account: str, binding: Binding, revision: int = 0) -> Plan:
    """The plan of a binding under a revision, without words; 0: the account's next one."""
    record = BindingRecord(account=account, revision=revision or known.state.revision + 1, binding=binding)
    return Plan(known.partition, known.next_offset, record)


def present(known: Standing, account: str, bindings: Sequence[Binding]) -> int:
    """How many of the first of these bindings the account has: appending those in this order would change nothing."""
    if known.state.pending is not None:
        pending, wanted = known.state.pending, list(bindings)
        asked = pending.binding.model_copy(update={"effective_from_ms": pending.requested_ms})
        queue = [asked, *pending.later]
        counts = range(min(len(queue), len(wanted)), 0, -1)
        return next((count for count in counts if queue[-count:] == wanted[:count]), 0)
    found, repeated = 0, known
    for number, binding in enumerate(bindings, start=1):
        repeated = repeated._replace(state=repeated.after(planned(repeated, account, binding).record))
        if _content(repeated.state) == _content(known.state):
            found = number
    return found


def _content(state: AccountState) -> AccountState:
    return state.model_copy(update={"revision": 0, "repeated": 0})


def _after(known: Standing, placed: _Placed, stream_time_ms: int) -> Standing:
    """The account's standing after one more control record. All records below the live view's position have at most
    `stream_time_ms`, so a time from below it changes nothing."""
    known = known._replace(next_offset=placed.next_offset, now_ms=max(stream_time_ms, placed.time_ms))
    if isinstance(placed.control, MeterSetRecord):
        return known._replace(meter_set=in_force_after(known.meter_set, placed.control.meter_set))
    state = apply(known.state, placed.control, position(placed.offset), known.policy, known.now_ms)
    return known._replace(state=state)


def _control(secret: bytes, record: Record) -> _Control | None:
    if not record.headers:
        return None
    for kind in _KINDS:
        control = read_control(secret, record, kind)
        if isinstance(control, _Control):
            return control
    return None


async def append_plan(accounts: AccountLog, plan: Plan) -> str:
    """Append a planned record; returns a message with the offset. Raises as `append_revised`."""
    record = plan.record
    offset = (await append_revised(accounts, plan)).offset
    done = "bound" if isinstance(record, BindingRecord) else "its period is closed"
    return f"{record.account}: {done} by record {offset} of partition {plan.partition}"


class Appended(NamedTuple):
    """The offset of a record, and the latest time of the records from the plan's `after_offset` to it."""

    offset: int
    latest_ms: int


async def append_revised(accounts: AccountLog, plan: Plan) -> Appended:
    """Append a planned record.

    The log takes a record that was planned without knowledge of another one. So what came between is read back: if
    another record of the account has the revision, that one counts and this one changes nothing. Then raises
    `Transient`.
    """
    record = plan.record
    offset = await append_control(accounts.log, accounts.secret, plan.partition, record)
    between, latest_ms = plan.after_offset, 0
    while between <= offset:
        records = await accounts.log.read(EVENTS_TOPIC, plan.partition, between, READ_RECORDS_MAX)
        for other in records:
            latest_ms = max(latest_ms, other.timestamp_ms if other.offset <= offset else 0)
            if other.offset < offset and _precedes(_control(accounts.secret, other), record):
                raise Transient(
                    f"{record.account}: another command changed the account at the same time, by record "
                    f"{other.offset} of partition {plan.partition}, and this one changed nothing: look at `tidemark "
                    "account show`, and repeat the command if it is still needed"
                )
        between = records[-1].next_offset if records else offset + 1
    return Appended(offset, latest_ms)


def _precedes(other: _Control | None, record: RevisedRecord) -> bool:
    """Whether an earlier record of the account has the same revision, or a higher one."""
    if not isinstance(other, BindingRecord | CloseRecord | FlushRecord) or other.account != record.account:
        return False
    return other.revision >= record.revision
