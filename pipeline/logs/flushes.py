"""Flushes: an account's usage so far becomes intents now, before the report bucket ends by itself (I10)."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.logs.bindings import AccountLog, HasAccounts, Plan, append_revised, standing
from schemas.control import FlushRecord


class Flush(NamedTuple):
    """A flush in the log: the account's usage of records below `offset` is reported with a timestamp before
    `instant_ms`, which is the stream time of the record, and later usage with a later one."""

    account: str
    partition: int
    offset: int
    revision: int
    instant_ms: int


async def flush_account(accounts: AccountLog, view: HasAccounts, account: str) -> Flush:
    """Append a flush record of one account, and return without waiting for the worker.

    Call it before a metered price is swapped, a subscription is cancelled at once, or a draft invoice is finalized, and
    then wait for `pipeline.commands.flushes.wait_for_flush` or look at `flush_progress`. Cheap: one record in the log,
    and no other account is reported. Repeating the call does no harm: the second flush reports what came in between.

    Raises `Transient` if the log or the live view does not answer, or if another command changed the account at the
    same time; in the latter case, and perhaps in the former, nothing was flushed: repeat the call.
    """
    known = await standing(accounts, view, account)
    record = FlushRecord(account=account, revision=known.state.revision + 1)
    appended = await append_revised(accounts, Plan(known.partition, known.next_offset, record))
    stream_time_ms = max(known.stream_time_ms, appended.latest_ms)
    after = known._replace(now_ms=stream_time_ms).after(record)
    # In its bucket's last millisecond a flush changes nothing, because the bucket ends by itself.
    is_cut = after.flushed_ms != known.state.flushed_ms
    instant_ms = after.flushed_ms if is_cut else known.policy.report_bucket_end_ms(stream_time_ms)
    return Flush(account, known.partition, appended.offset, record.revision, instant_ms)
