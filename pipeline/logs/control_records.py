"""Writes and reads control records. Creates the topics, the genesis of each partition and the first meter set."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Final

from pydantic import BaseModel

from aggregators.signing import sign, signature_holds
from schemas.control import (
    CONTROL_CLASSES,
    CONTROL_HEADER,
    SIGNATURE_HEADER,
    Control,
    ControlKind,
    Genesis,
    MeterSetRecord,
    Tick,
)
from schemas.errors import OperatorNeeded
from schemas.log import EVENTS_TOPIC, Bounds, Headers, Log, Record, TopicSpec
from schemas.meters import MeterSet

GENESIS_SEARCH_RECORDS_MAX: Final = 10_000

_KINDS: Final = {control: kind for kind, control in CONTROL_CLASSES.items()}
_KINDS_WITH_LOG_ID: Final = (ControlKind.GENESIS.value.encode(), ControlKind.TICK.value.encode())


def control_record(secret: bytes, partition: int, control: Control, topic: str = EVENTS_TOPIC) -> tuple[bytes, Headers]:
    """The value and the headers of a signed control record for one partition."""
    kind = _KINDS[type(control)].value
    value = control.model_dump_json().encode()
    signature = sign(secret, topic, partition, kind, value)
    return value, ((CONTROL_HEADER, kind.encode()), (SIGNATURE_HEADER, signature))


async def append_control(log: Log, secret: bytes, partition: int, control: Control) -> int:
    """Append a signed control record to one partition of `usage.events`. Return the offset after the durable write."""
    value, headers = control_record(secret, partition, control)
    return await log.append(EVENTS_TOPIC, partition, value, headers=headers)


async def append_everywhere(log: Log, secret: bytes, control: Control) -> list[int]:
    """Append a control record to every partition of `usage.events`. Callers may repeat the call after an error."""
    count = await log.partition_count(EVENTS_TOPIC)
    return [await append_control(log, secret, partition, control) for partition in range(count)]


def read_control(secret: bytes, record: Record, kind: ControlKind) -> BaseModel | None:
    """The control record of that kind. None if the record has another kind or a wrong signature."""
    headers = dict(record.headers)
    value, signature = record.value or b"", headers.get(SIGNATURE_HEADER, b"")
    if headers.get(CONTROL_HEADER) != kind.value.encode():
        return None
    if not signature_holds(secret, record.topic, record.partition, kind.value, value, signature):
        return None
    return CONTROL_CLASSES[kind].model_validate_json(value)


async def find_genesis(
    log: Log, secret: bytes, partition: int, log_id: str | None = None, bounds: Bounds | None = None
) -> Genesis | None:
    """The genesis in the partition's first genesis record or tick with a valid signature. None without such a record.

    With `log_id`, a record of that log is preferred: other programs may have appended records of other logs. `bounds`
    saves the request for the partition's bounds. Raises `OperatorNeeded` if another secret signed all such records.
    """
    bounds = bounds or await log.bounds(EVENTS_TOPIC, partition)
    first: Genesis | None = None
    unsigned = False
    # The genesis is almost always the first record, and later records may be large.
    offset, records_max = bounds.first, 1
    while offset < min(bounds.next, bounds.first + GENESIS_SEARCH_RECORDS_MAX):
        records = await log.read(EVENTS_TOPIC, partition, offset, records_max)
        if not records:
            break
        for record in records:
            control = read_control(secret, record, ControlKind.GENESIS) or read_control(
                secret, record, ControlKind.TICK
            )
            if isinstance(control, Genesis):
                first = first or Genesis(**control.model_dump())
                if log_id in (None, control.log_id):
                    return Genesis(**control.model_dump())
            unsigned |= dict(record.headers).get(CONTROL_HEADER) in _KINDS_WITH_LOG_ID and control is None
        offset, records_max = records[-1].next_offset, 100
    if first is None and unsigned:
        raise OperatorNeeded(
            f"{EVENTS_TOPIC}-{partition} holds control records that TIDEMARK_SECRET did not sign, and none that it "
            "did: set the secret this log was made with"
        )
    return first


async def ensure_deployment(
    log: Log,
    secret: bytes,
    topics: Sequence[TopicSpec],
    *,
    livemode: bool = False,
    stripe_account: str = "",
    create: bool = True,
) -> Genesis:
    """Create the missing topics and genesis records. All roles call this at start, also concurrently.

    The first genesis of partition 0 names the log; other processes adopt that genesis. With `create` off nothing is
    written. Raises `OperatorNeeded` if the log belongs to the other Stripe mode or another Stripe account (I12), has
    another number of partitions, or is missing while `create` is off.
    """
    if create:
        await log.create_topics(topics)
    count = await log.partition_count(EVENTS_TOPIC)
    first = await find_genesis(log, secret, 0) if count else None
    if first is None and not create:
        raise OperatorNeeded("there is no Tidemark log here yet: start a role (`tidemark worker`), or `tidemark dev`")
    if first is None:
        bounds = await log.bounds(EVENTS_TOPIC, 0)
        if bounds.first > 0:
            raise OperatorNeeded(f"{EVENTS_TOPIC}-0 starts at {bounds.first} and has no genesis record: it was trimmed")
        proposed = Genesis(log_id=uuid.uuid4().hex, partitions=count, livemode=livemode, stripe_account=stripe_account)
        await append_control(log, secret, 0, proposed)
        first = await find_genesis(log, secret, 0)
        assert first is not None, "a genesis record was appended"  # noqa: S101 - an invariant, not input
    if first.partitions != count:
        raise OperatorNeeded(
            f"{EVENTS_TOPIC} has {count} partitions, its genesis says {first.partitions}: accounts would move. "
            "Restore the topic with its first number of partitions."
        )
    for partition in range(1, count) if create else ():
        if (await log.bounds(EVENTS_TOPIC, partition)).first == 0 and await find_genesis(
            log, secret, partition
        ) is None:
            await append_control(log, secret, partition, first)
    if stripe_account and (first.livemode, first.stripe_account) != (livemode, stripe_account):
        raise OperatorNeeded(
            f"this log belongs to {'live' if first.livemode else 'test'} mode of Stripe account "
            f"{first.stripe_account or '(none)'}; the key is for {'live' if livemode else 'test'} mode of "
            f"{stripe_account}. Live and test mode never mix: use the key the log was made for, or a new log."
        )
    return first


async def ensure_meter_set(log: Log, secret: bytes, meter_set: MeterSet) -> None:
    """Append the meter set to every partition. An equal or older version changes nothing."""
    await append_everywhere(log, secret, MeterSetRecord(meter_set=meter_set))


async def tick(log: Log, secret: bytes, genesis: Genesis) -> None:
    """Append a tick to every partition. Several processes may append ticks."""
    await append_everywhere(log, secret, Tick(**genesis.model_dump()))
