"""What must stand in the log before anything else: topics, a genesis record per partition, a meter set."""

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
_NAMING_KINDS: Final = (ControlKind.GENESIS.value.encode(), ControlKind.TICK.value.encode())


def control_record(secret: bytes, partition: int, control: Control, topic: str = EVENTS_TOPIC) -> tuple[bytes, Headers]:
    """(value, headers) of a signed control record for one partition."""
    kind = _KINDS[type(control)].value
    value = control.model_dump_json().encode()
    signature = sign(secret, topic, partition, kind, value)
    return value, ((CONTROL_HEADER, kind.encode()), (SIGNATURE_HEADER, signature))


async def append_control(log: Log, secret: bytes, partition: int, control: Control) -> int:
    """Append a signed control record to one partition of `usage.events`; its offset once it is durable."""
    value, headers = control_record(secret, partition, control)
    return await log.append(EVENTS_TOPIC, partition, value, headers=headers)


async def append_everywhere(log: Log, secret: bytes, control: Control) -> list[int]:
    """Append a control record to every partition; may repeat harmlessly after an error."""
    count = await log.partition_count(EVENTS_TOPIC)
    return [await append_control(log, secret, partition, control) for partition in range(count)]


def read_control(secret: bytes, record: Record, kind: ControlKind) -> BaseModel | None:
    """The control record of that kind, or None where the record is something else or its signature fails."""
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
    """What the partition's first genuine genesis record says, or, where retention has removed it, the first tick.

    `log_id`: of several, one that names this log is taken; anybody may have appended records of another log, or
    forged ones, and the fold rejects those. `bounds`: the log's, if the caller has asked for them already. None where
    the partition has no such record yet. Raises `OperatorNeeded` where there are only records that another secret
    signed.
    """
    bounds = bounds or await log.bounds(EVENTS_TOPIC, partition)
    first: Genesis | None = None
    unsigned = False
    # Nearly always the very first record; the ones after it may be large batches.
    offset, records_max = bounds.first, 1
    while offset < min(bounds.next, bounds.first + GENESIS_SEARCH_RECORDS_MAX):
        records = await log.read(EVENTS_TOPIC, partition, offset, records_max)
        if not records:
            break
        for record in records:
            found = read_control(secret, record, ControlKind.GENESIS) or read_control(secret, record, ControlKind.TICK)
            if isinstance(found, Genesis):
                first = first or Genesis(**found.model_dump())
                if log_id in (None, found.log_id):
                    return Genesis(**found.model_dump())
            unsigned |= dict(record.headers).get(CONTROL_HEADER) in _NAMING_KINDS and found is None
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
    """Create what is missing of topics and genesis records; every role may call it at start, any number at once.

    The first genesis of partition 0 names the log; whoever loses a race adopts it. Raises `OperatorNeeded` where
    the log belongs to the other mode or to another Stripe account (I12), or where there is no log and `create` is
    off: what only looks must not decide for ever whose log it is.
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
    """Append the meter set to every partition. Harmless when repeated: an equal or older version changes nothing."""
    await append_everywhere(log, secret, MeterSetRecord(meter_set=meter_set))


async def tick(log: Log, secret: bytes, genesis: Genesis) -> None:
    """Move stream time on every partition. Two tickers do no harm."""
    await append_everywhere(log, secret, Tick(**genesis.model_dump()))
