"""Which values at Stripe a run reads, in which order, and at which pace.

Stripe allows few reads a month. A value that was confirmed in an earlier run, and of which nothing was settled since,
is read again only once in a while. Everything else is due.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, Generic, NamedTuple, TypeVar

from reconciler.causes import Cause
from reconciler.coverage import Coverage
from reconciler.views import ReconcilePolicy
from schemas.clock import DAY_MS, Clock
from schemas.errors import InvalidInput, OperatorNeeded, Refused, Transient

# How often a confirmed value is read again, because others may write to Stripe too.
REREAD_AFTER_MS: Final = 30 * DAY_MS
TRIES_MAX: Final = 3
RETRY_AFTER_MAX_S: Final = 10.0

K = TypeVar("K")
T = TypeVar("T")


class LastRead(NamedTuple):
    """When a value was last read, and the results: several for the spans of a customer's invoices."""

    at_ms: int
    causes: frozenset[Cause]


class Readable(NamedTuple, Generic[K]):
    """A value that can be read. `ends_ms` is the end of its oldest period that is not confirmed, or of its last one;
    `changed_ms` is when its expected value last changed: an intent was settled, or a period ended."""

    key: K
    ends_ms: int
    changed_ms: int
    last: LastRead | None


class Plan(NamedTuple, Generic[K]):
    """What to read, in this order: the first `due` are due, the others are confirmed and read again."""

    keys: Sequence[Readable[K]]
    due: int


def plan(readables: Iterable[Readable[K]], now_ms: int) -> Plan[K]:
    """The values in the order of reading: drift of the last run, ended periods, changed values, each oldest first;
    then those that were confirmed longer than `REREAD_AFTER_MS` ago. The others are left out."""
    due: list[tuple[int, int, int, int, Readable[K]]] = []
    again: list[tuple[int, int, Readable[K]]] = []
    for each in readables:
        rank = _rank(each, now_ms)
        if rank is not None:
            due.append((rank, each.last.at_ms if each.last else 0, each.ends_ms, len(due), each))
        elif each.last is not None and each.last.at_ms <= now_ms - REREAD_AFTER_MS:
            again.append((each.last.at_ms, len(again), each))
    return Plan([each for *_, each in sorted(due)] + [each for *_, each in sorted(again)], len(due))


def _rank(readable: Readable[K], now_ms: int) -> int | None:
    last = readable.last
    if last is not None and any(cause.is_drift for cause in last.causes):
        return 0
    if last is None or last.at_ms <= readable.changed_ms:
        return 1 if readable.ends_ms <= now_ms else 2
    return 2 if any(cause is not Cause.CONFIRMED for cause in last.causes) else None


def coverage(planned: Plan[K], read: Iterable[K], confirmed: int) -> Coverage:
    """The coverage of a run that has read the values `read`, with `confirmed` values that were not due."""
    done = set(read)
    due = planned.keys[: planned.due]
    unread = [each.ends_ms for each in due if each.key not in done]
    return Coverage(len(due), len(due) - len(unread), confirmed, min(unread, default=None))


class Answer(NamedTuple, Generic[T]):
    """Stripe's answer, or None and the reason why there is none."""

    value: T | None
    unread: str = ""


async def read_all(
    keys: Sequence[K], ask: Callable[[K], Awaitable[T]], clock: Clock, policy: ReconcilePolicy
) -> dict[K, Answer[T]]:
    """Stripe's answers to all keys, within the limits of rate and concurrency of the policy."""
    pending = iter(keys)
    answers: dict[K, Answer[T]] = {}
    workers = min(policy.stripe_concurrency_max, max(1, len(keys)))
    spacing_ms = int(1_000 * policy.stripe_concurrency_max / policy.stripe_reads_per_s)

    async def work() -> None:
        due_ms = clock.now_ms()
        for key in pending:
            due_ms += spacing_ms
            answers[key] = await _asked(key, ask, clock)
            now_ms = clock.now_ms()
            if due_ms > now_ms:
                await clock.sleep((due_ms - now_ms) / 1_000)
            # After a slow answer, the next reads must not come in a burst.
            due_ms = max(due_ms, now_ms)

    await asyncio.gather(*(work() for _ in range(workers)))
    return answers


async def _asked(key: K, ask: Callable[[K], Awaitable[T]], clock: Clock) -> Answer[T]:
    detail = ""
    for attempt in range(TRIES_MAX):
        try:
            return Answer(await ask(key))
        except Transient as error:
            detail = f"no answer after {TRIES_MAX} tries: {error}"
            if attempt + 1 < TRIES_MAX:
                await clock.sleep(min(error.retry_after_s, RETRY_AFTER_MAX_S) * 2**attempt)
        except (InvalidInput, OperatorNeeded, Refused) as error:
            return Answer(None, str(error))
    return Answer(None, detail)
