"""Sends every intent of `billing.reports` to Stripe once (I10).

The steps of an intent, and the state after a crash behind each step:
1. The intent is in the log: nothing was sent, and the restart reads the intent again.
   Then credits pay (`pipeline.billing.drawing`); what they leave is sent.
2. The attempt is in the log: it may have been sent. Within Stripe's identifier window the same bytes are sent again
   with the same identifier; later Stripe's summary decides. A refusal by Stripe proves that Stripe does not have the
   event, so the sender that was refused needs no summary.
3. The attempt was read back and sent: as 2, and Stripe answers "already exists".
4. The outcome is in the log: the intent is settled.

An attempt is sent only after it was read back from its offset. If two senders believe that they own the partition, each
reads the other's earlier attempt first, and both send the bytes of the first attempt. A sender that was suspended for
days reads the outcome before its own attempt.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Sequence
from typing import Final

from aggregators.meter_events import event_time_s, meter_event, too_early_ms
from aggregators.quantities import decimal_text
from aggregators.stripe_sums import StripeSum
from pipeline.billing.breakers import Breakers
from pipeline.billing.concurrency import KeyedLocks, TokenBucket
from pipeline.billing.drawing import Drawing
from pipeline.billing.holds import Held, Holds
from pipeline.billing.late_usage import LateUsage
from pipeline.billing.lookup import LookupResult, Presence, StripeLookup, hour_of
from pipeline.billing.partition import ReportPartition, status_of
from pipeline.billing.policy import DEFAULT_POLICY, SenderPolicy, SenderStatus
from pipeline.billing.window import Hold, Pending, in_order
from pipeline.logs.tasks import all_or_first_error
from schemas.bills import Closings
from schemas.clock import MINUTE_MS, SECOND_MS, Clock
from schemas.errors import InvalidInput, OperatorNeeded, Refused, Transient
from schemas.intent_ledger import IntentLedger
from schemas.log import REPORTS_TOPIC, Log, Record
from schemas.periods import Billing
from schemas.reports import (
    Allocation,
    Attempt,
    CustomerResolver,
    OutcomeStatus,
    ReportOutcome,
    SendStatus,
    StripeMeters,
)

# An intent that waits for a person is tried again after this part of the time that it has waited.
PATIENCE: Final = 10
TOO_OLD: Final = "its period ended more than 35 days ago and Stripe no longer accepts it"
REPLACED: Final = "a late binding put the usage into other periods"

_LOG: Final = logging.getLogger(__name__)


class StripeSender:
    """The processor of `billing.reports`.

    Sends only inside `step` and `idle`: nothing is sent after `revoked` returned or the runner cancelled a call. Starts
    at the ledger's position, or at the log's first record if the ledger is empty, and sends nothing until the end of
    the log at the assignment was read. Keeps a window of the pending intents in memory. The topic grows by three short
    records per meter, account and report bucket.

    With `closings`, usage whose invoice is final is settled as late and not sent. With `drawing`, credits pay first.
    Raises `OperatorNeeded` if Stripe refuses the key, or if the key is of another mode or account than the intents, and
    `Transient` if the log or the ledger does not answer, or if another process has moved the ledger's position; a
    restart repeats harmlessly.
    """

    def __init__(
        self,
        log: Log,
        ledger: IntentLedger,
        meters: StripeMeters,
        resolve: CustomerResolver,
        clock: Clock,
        rng: random.Random,
        policy: SenderPolicy = DEFAULT_POLICY,
        closings: Closings | None = None,
        drawing: Drawing | None = None,
    ) -> None:
        self._log = log
        self._ledger = ledger
        self._late = LateUsage(closings)
        self._drawing = drawing
        self._meters = meters
        self._resolve = resolve
        self._clock = clock
        self._random = rng
        self._policy = policy
        self._partitions: dict[int, ReportPartition] = {}
        self._locks = KeyedLocks()
        self._slots = asyncio.Semaphore(policy.queues_max)
        self._bucket = TokenBucket(clock, policy.rate_per_s)
        self._lookup = StripeLookup(log, meters, clock, policy.settle_ms)
        self._lookup_lock = asyncio.Lock()
        self._identity: tuple[bool, str] | None = None
        self._usable: set[str] = set()
        self._holds = Holds(clock, policy)
        self._breakers = Breakers(clock, policy)
        self._round_ms = 0
        self._counts: Counter[str] = Counter()

    @property
    def topic(self) -> str:
        """`billing.reports`."""
        return REPORTS_TOPIC

    async def start_offset(self, partition: int) -> int | None:
        """The ledger's position. Notes the log's end, which must be read before anything is sent.

        Raises `OperatorNeeded` if the log does not have the records between the position and its end.
        """
        part = self._partitions[partition] = ReportPartition(partition, self._log, self._ledger, self._policy)
        return await part.begin(self._clock.now_ms())

    async def step(self, partition: int, records: Sequence[Record]) -> None:
        """Write the records into the ledger, then send for up to about `round_s` if the partition is caught up."""
        part = self._partitions[partition]
        await part.apply(records)
        await self._round(part)

    async def idle(self, partition: int) -> None:
        """Send due intents. Also detects the end of a partition whose last offsets hold no records."""
        part = self._partitions[partition]
        await part.look_for_end()
        await self._round(part)

    async def revoked(self, partition: int) -> None:
        """Forget the partition. Its next owner starts at the ledger's position."""
        self._partitions.pop(partition, None)

    def status(self) -> SenderStatus:
        """The current values. Those of pending intents are up to `count_interval_ms` old."""
        return status_of(list(self._partitions.values()), self._breakers.open, self._counts)

    async def _round(self, part: ReportPartition) -> None:
        """Process every queue of the window: queues concurrently, the intents of a queue one after the other."""
        now_ms = self._clock.now_ms()
        if part.caught_up:
            if now_ms < self._round_ms - MINUTE_MS:
                await self._end_waits(now_ms)
            self._round_ms = now_ms
            await part.fill(now_ms)
            await self._send_due(part)
            await part.put_back(self._clock.now_ms())
        await part.count(now_ms)

    async def _send_due(self, part: ReportPartition) -> None:
        queues = list(part.window.queues.values())
        waiting = iter(queues)
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._policy.round_s

        async def work() -> None:
            for queue in waiting:
                await self._run_queue(part, queue, deadline_s)
                if loop.time() >= deadline_s:
                    return

        await all_or_first_error(work() for _ in range(min(self._policy.queues_max, len(queues))))
        self._lookup.forget()
        self._late.forget()
        if self._drawing:
            self._drawing.forget()

    async def _end_waits(self, now_ms: int) -> None:
        """Try everything again, because the clock was put back: the ends of all waits are too late by as much."""
        self._holds.clear()
        self._breakers.clear()
        for part in self._partitions.values():
            await part.end_waits(now_ms)

    async def _run_queue(self, part: ReportPartition, queue: dict[str, Pending], deadline_s: float) -> None:
        loop = asyncio.get_running_loop()
        for pending in in_order(queue):
            if pending.not_before_ms <= self._clock.now_ms():
                await self._advance(part, pending)
            is_open = pending.intent.identifier in queue
            if (is_open and not pending.hold) or loop.time() >= deadline_s:
                break

    async def _advance(self, part: ReportPartition, pending: Pending) -> None:
        """Advance one intent as far as possible now: to its outcome, to a hold, or to its next try."""
        if pending.awaited_offset >= part.next_offset:
            return
        was_unknown = pending.hold is Hold.UNKNOWN
        pending.hold = Hold.NONE
        try:
            await self._check_mode(pending)
            attempt = pending.attempt
            if attempt is None:
                await self._begin(part, pending)
            elif await self._is_late(part, pending, attempt.timestamp_s * SECOND_MS):
                return
            elif self._is_void(pending, attempt):
                await self._begin(part, pending)
            elif self._is_stale(attempt):
                await self._resolve_by_lookup(part, pending, attempt, was_unknown)
            elif await self._has_meter(pending):
                await self._send(part, pending, attempt)
        except Transient as error:
            # Nothing is lost: a second copy of an attempt or outcome in the log is harmless.
            self._back_off(pending, str(error), error.retry_after_s)
        except Refused as error:
            raise OperatorNeeded(str(error)) from error

    async def _check_mode(self, pending: Pending) -> None:
        if self._identity is None:
            self._identity = await self._meters.identity()
        intent = pending.intent
        if (intent.livemode, intent.stripe_account) != self._identity:
            modes = {True: "live", False: "test"}
            raise OperatorNeeded(
                f"the reports are for {modes[intent.livemode]} mode of Stripe account {intent.stripe_account}, but the "
                f"key is for {modes[self._identity[0]]} mode of {self._identity[1]}: set TIDEMARK_STRIPE_API_KEY to a "
                "key of the deployment's own account and mode"
            )

    async def _begin(self, part: ReportPartition, pending: Pending) -> None:
        """Append an attempt with the payer, timestamp and value; or settle the intent, or put it on hold."""
        intent, now_ms = pending.intent, self._clock.now_ms()
        if wait_ms := too_early_ms(intent.instant_ms, now_ms):
            self._hold(pending, Hold.EARLY, "its period begins in the future", wait_ms)
            return
        # Not the timestamp: that is later than the usage's own instant if Stripe would refuse the instant as too old.
        payer = await self._resolve(intent, intent.instant_ms)
        if payer is None:
            await self._settle(part, pending, OutcomeStatus.REPLACED, REPLACED)
            return
        pending.period_end_ms = payer.period_end_ms
        pending.stripe_customer = payer.stripe_customer if payer.billing is Billing.MAPPED else ""
        timestamp_s = event_time_s(intent, payer.period_end_ms, now_ms)
        if payer.billing is Billing.FREE:
            await self._settle(part, pending, OutcomeStatus.FREE, "the account is free")
            return
        if await self._is_drawn(part, pending):
            return
        instant_ms = intent.instant_ms if timestamp_s is None else timestamp_s * SECOND_MS
        if await self._is_late(part, pending, instant_ms):
            return
        if timestamp_s is None:
            detail = f"{TOO_OLD}: add an invoice item" + (f"; before: {pending.detail}" if pending.detail else "")
            await self._settle_unsent(part, pending, detail)
            return
        if not pending.stripe_customer:
            detail = "bind the account to a Stripe customer, or mark it free"
            self._hold(pending, Hold.UNMAPPED, detail, self._patience_ms(pending, self._policy.hold_retry_ms))
            return
        if await self._has_meter(pending) and not self._is_held(pending, payer.stripe_customer):
            value = decimal_text(pending.known.billed_minor, intent.scale)
            await self._write_attempt(part, pending, payer.stripe_customer, timestamp_s, value)

    async def _is_drawn(self, part: ReportPartition, pending: Pending) -> bool:
        """Whether credits are at work: their allocation was just written, or they paid all and the intent is settled.
        If not, what is left is for Stripe. An allocation behind an attempt would not count."""
        if pending.known.drawn_minor is not None:
            if not pending.known.billed_minor:
                await self._settle(part, pending, OutcomeStatus.CREDITED, "credits paid all of it")
            return not pending.known.billed_minor
        if self._drawing is None or pending.attempt is not None or not pending.stripe_customer:
            return False
        if allocation := await self._drawing.allocation(pending.intent, pending.period_end_ms):
            pending.awaited_offset = await self._append(part, pending, allocation)
        return allocation is not None

    async def _is_late(self, part: ReportPartition, pending: Pending, instant_ms: int) -> bool:
        """Whether an invoice that is final should have billed the usage. If so, settle the intent: what Stripe has or
        gets of it does not change the invoice."""
        if not pending.stripe_customer or self._clock.now_ms() < pending.period_end_ms:
            return False
        invoice = await self._late.invoice(pending.intent.event_name, pending.stripe_customer, instant_ms)
        if not invoice:
            return False
        detail = f"invoice {invoice} was final before the usage was reported"
        await self._settle(part, pending, OutcomeStatus.LATE, detail, in_doubt=pending.in_doubt)
        return True

    async def _settle_unsent(
        self, part: ReportPartition, pending: Pending, detail: str, *, in_doubt: bool = False
    ) -> None:
        """Settle an intent that Stripe does not take any more: as late if its payer is known and somebody bills late
        usage, otherwise as a dead letter."""
        is_billed = self._late.is_billed and bool(pending.stripe_customer)
        status = OutcomeStatus.LATE if is_billed else OutcomeStatus.DEAD
        await self._settle(part, pending, status, detail, in_doubt=in_doubt)

    async def _has_meter(self, pending: Pending) -> bool:
        """Whether the meter takes events. If not, hold the intent. Asks Stripe once per meter and `hold_retry_ms`."""
        event_name = pending.intent.event_name
        if event_name in self._usable:
            return True
        held = self._holds.meter(event_name)
        if held is None:
            try:
                await self._meters.find_meter(event_name)
            except (OperatorNeeded, InvalidInput) as error:
                # A fault of one meter must not stop the reports of others.
                held = self._holds.hold_meter(event_name, str(error))
            else:
                self._holds.release_meter(event_name)
                self._usable.add(event_name)
                return True
        wait_ms = self._patience_ms(pending, held.retry_at_ms - self._clock.now_ms())
        self._hold(pending, Hold.METER, held.detail, wait_ms)
        return False

    def _is_held(self, pending: Pending, customer: str) -> bool:
        """Whether Stripe refused the meter's last event of this customer, or those of many customers. If so, hold the
        intent until the next try.

        Most intents of a refused customer thus get no attempt, so nothing about them can be in doubt.
        """
        held = self._holds.customer(pending.intent.event_name, customer)
        if held is not None:
            self._hold_as(pending, Hold.ACCOUNT, held)
            return True
        return self._is_broken(pending)

    def _is_broken(self, pending: Pending) -> bool:
        """Whether the meter's breaker is open. If so, hold the intent."""
        event_name = pending.intent.event_name
        wait_ms = self._breakers.wait_ms(event_name, pending.intent.identifier)
        if not wait_ms:
            return False
        # An event that was tried comes after those that were not, so that one bad event does not hold the others.
        self._hold(pending, Hold.BREAKER, self._breakers.detail(event_name), wait_ms + pending.failures)
        return True

    async def _write_attempt(
        self, part: ReportPartition, pending: Pending, customer: str, timestamp_s: int, value: str
    ) -> None:
        """Append the attempt. It takes effect when it is read back, unless another sender's attempt precedes it."""
        attempt = Attempt(
            identifier=pending.intent.identifier,
            stripe_customer=customer,
            timestamp_s=timestamp_s,
            value=value,
            attempted_at_ms=self._clock.now_ms(),
            replaces_ms=pending.attempt.attempted_at_ms if pending.attempt else None,
        )
        pending.awaited_offset = await self._append(part, pending, attempt)

    def _is_stale(self, attempt: Attempt) -> bool:
        return self._clock.now_ms() - attempt.attempted_at_ms >= self._policy.resend_window_ms

    def _is_void(self, pending: Pending, attempt: Attempt) -> bool:
        """Whether a new attempt may replace this one without a lookup. Another sender may send this attempt after that
        refusal. Stripe still knows its event when the new attempt is sent, at most a resend window after it is written.
        """
        now_ms, policy = self._clock.now_ms(), self._policy
        is_recent = pending.was_refused(now_ms, 2 * policy.hold_retry_max_ms)
        return is_recent and now_ms - attempt.attempted_at_ms >= policy.resend_window_ms // 2

    async def _resolve_by_lookup(
        self, part: ReportPartition, pending: Pending, attempt: Attempt, was_unknown: bool
    ) -> None:
        """After Stripe's identifier window: settle the intent, append a new attempt, or put the intent on hold.

        A new attempt needs two lookups, hours apart, that do not find the event: the attempt may have been sent again
        just before the window ended, and Stripe's sum may not show that send yet.
        `was_unknown`: the last lookup did not decide either. An intent that Stripe refuses for its age becomes a dead
        letter after the second such lookup, when a recent send can no longer be the reason.
        """
        key, sums = hour_of(pending.intent, attempt), self._stale_sums(part)
        async with self._locks.hold((key.event_name, key.stripe_customer)), self._lookup_lock:
            try:
                result = await self._lookup.look_up(pending.intent.identifier, key, sums)
            except (InvalidInput, OperatorNeeded, Refused) as error:
                # Stripe rejects the read of this one sum; all other events can still be sent.
                result = LookupResult(Presence.UNKNOWN, f"Stripe's sum cannot be read: {error}")
            self._counts[f"looked_{result.presence}"] += 1
            if result.presence is not Presence.ABSENT:
                pending.absent_at_ms = None
            if result.presence is Presence.PRESENT:
                await self._settle(part, pending, OutcomeStatus.ACCEPTED, result.detail)
                return
            is_over = event_time_s(pending.intent, pending.intent.period_end_ms, self._clock.now_ms()) is None
            if result.presence is Presence.UNKNOWN and was_unknown and is_over:
                detail = f"{result.detail}, and its period is too old; Stripe may have it"
                await self._settle_unsent(part, pending, detail, in_doubt=True)
                return
            if result.presence is Presence.UNKNOWN:
                self._hold(pending, Hold.UNKNOWN, result.detail, self._policy.look_retry_ms)
                return
            if wait_ms := pending.look_again_ms(self._clock.now_ms(), self._policy.look_again_ms):
                self._hold(pending, Hold.UNKNOWN, f"{result.detail}; Stripe is asked once more", wait_ms)
                return
            payer = await self._resolve(pending.intent, pending.intent.instant_ms)
            period_end_ms = payer.period_end_ms if payer else pending.intent.period_end_ms
            timestamp_s = event_time_s(pending.intent, period_end_ms, self._clock.now_ms())
            if timestamp_s is None:
                await self._settle_unsent(part, pending, f"{result.detail}, and its period is too old")
                return
            await self._write_attempt(part, pending, attempt.stripe_customer, timestamp_s, attempt.value)

    def _stale_sums(self, part: ReportPartition) -> set[StripeSum]:
        attempted = ((pending.intent, pending.attempt) for pending in part.window)
        return {hour_of(intent, attempt) for intent, attempt in attempted if attempt and self._is_stale(attempt)}

    async def _send(self, part: ReportPartition, pending: Pending, attempt: Attempt) -> None:
        event = meter_event(pending.intent, attempt)
        async with self._locks.hold((event.event_name, event.stripe_customer)), self._slots:
            if self._is_held(pending, event.stripe_customer):
                return
            await self._bucket.take()
            if self._is_stale(attempt):
                # Stripe's window ended during the wait (or a suspension): the next round looks the event up.
                return
            # The call may be cancelled while Stripe executes it, and the outcome of an accepted event may get lost.
            was_in_doubt, pending.in_doubt, sent_at_ms = pending.in_doubt, True, self._clock.now_ms()
            result = await self._meters.send(event)
            if result.status in (SendStatus.HOLD_METER, SendStatus.HOLD_ACCOUNT, SendStatus.DEAD):
                pending.in_doubt = was_in_doubt
        self._counts[f"sent_{result.status}"] += 1
        match result.status:
            case SendStatus.ACCEPTED | SendStatus.DUPLICATE:
                self._breakers.taken(event.event_name)
                detail = "" if result.status is SendStatus.ACCEPTED else "Stripe already had it"
                await self._settle(part, pending, OutcomeStatus.ACCEPTED, detail)
            case SendStatus.RETRY:
                self._bucket.pause(round(result.retry_after_s * SECOND_MS))
                self._back_off(pending, result.detail, result.retry_after_s)
            case SendStatus.HOLD_METER:
                pending.refused_at_ms = sent_at_ms
                self._usable.discard(event.event_name)
                self._hold_as(pending, Hold.METER, self._holds.hold_meter(event.event_name, result.detail))
            case SendStatus.HOLD_ACCOUNT:
                pending.refused_at_ms = sent_at_ms
                held = self._holds.hold_customer(event.event_name, event.stripe_customer, result.detail)
                self._hold_as(pending, Hold.ACCOUNT, held)
            case SendStatus.DEAD if self._breakers.refused(
                event.event_name, event.stripe_customer, result.cause, result.detail
            ):
                pending.refused_at_ms, pending.failures = sent_at_ms, pending.failures + 1
                self._is_broken(pending)
            case SendStatus.DEAD:
                doubt = "; an earlier try got no clear answer, so Stripe may have it" if pending.in_doubt else ""
                await self._settle(part, pending, OutcomeStatus.DEAD, result.detail + doubt, in_doubt=pending.in_doubt)
            case SendStatus.STOP:
                raise OperatorNeeded(
                    f"Stripe refuses the key, correct TIDEMARK_STRIPE_API_KEY and restart: {result.detail}"
                )

    async def _settle(
        self, part: ReportPartition, pending: Pending, status: OutcomeStatus, detail: str, *, in_doubt: bool = False
    ) -> None:
        if self._drawing is not None and status in (OutcomeStatus.FREE, OutcomeStatus.REPLACED):
            await self._drawing.take_back(pending.known, pending.period_end_ms)
        outcome = ReportOutcome(
            identifier=pending.intent.identifier,
            status=status,
            detail=detail,
            stripe_customer=pending.stripe_customer,
            settled_at_ms=self._clock.now_ms(),
            in_doubt=in_doubt,
        )
        await self._append(part, pending, outcome)
        part.window.drop(pending.intent.identifier)
        self._holds.release_customer(pending.intent.event_name, outcome.stripe_customer)
        self._counts[f"outcome_{status}"] += 1
        if status is OutcomeStatus.DEAD:
            _LOG.error("a report of %s is a dead letter, a person must look: %s", pending.intent.account, detail)

    async def _append(
        self, part: ReportPartition, pending: Pending, entry: Allocation | Attempt | ReportOutcome
    ) -> int:
        value, key = entry.model_dump_json().encode(), pending.intent.account.encode()
        return await self._log.append(REPORTS_TOPIC, part.number, value, key=key)

    def _hold_as(self, pending: Pending, hold: Hold, held: Held) -> None:
        self._hold(pending, hold, held.detail, held.retry_at_ms - self._clock.now_ms())

    def _hold(self, pending: Pending, hold: Hold, detail: str, wait_ms: int) -> None:
        if pending.detail != detail:
            _LOG.warning("a report of %s is held (%s): %s", pending.intent.account, hold, detail)
        pending.hold, pending.detail = hold, detail
        pending.not_before_ms = self._clock.now_ms() + wait_ms

    def _patience_ms(self, pending: Pending, wait_ms: int) -> int:
        """How long an intent waits that a person must help: the longer, the longer it has waited. So many that wait do
        not keep the ledger busy."""
        waited_ms = self._clock.now_ms() - pending.intent.bucket_end_ms
        return max(wait_ms, min(waited_ms // PATIENCE, self._policy.hold_retry_max_ms))

    def _back_off(self, pending: Pending, detail: str, retry_after_s: float) -> None:
        """Schedule the next try, with doubled waits and jitter. Later intents of the queue wait as well."""
        policy = self._policy
        wait_s = min(policy.backoff_max_s, policy.backoff_min_s * 2 ** min(pending.failures, 30))
        wait_ms = round(max(wait_s * self._random.uniform(0.5, 1.0), retry_after_s) * SECOND_MS)
        pending.failures += 1
        pending.detail = detail
        pending.not_before_ms = self._clock.now_ms() + wait_ms
