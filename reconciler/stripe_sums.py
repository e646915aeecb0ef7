"""Stripe's own sums against what was sent, per meter, customer and period.

Several accounts may share a customer and be cut differently, so Stripe's sum over a period can hold meter events of
another account's period. What is expected is therefore counted by the instants that were sent, not by the intents'
periods.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Final, NamedTuple

from reconciler.causes import Cause, Pair
from reconciler.compare import Range, exact_text
from reconciler.report import Findings, Row
from reconciler.reports_index import ReportsIndex, Told
from reconciler.stripe_bounds import SCALE_MAX, Bounds, Sum, bounds_of, units_of
from reconciler.views import ReconcilePolicy, Views
from schemas.clock import DAY_MS, SECOND_MS, Clock
from schemas.errors import InvalidInput, OperatorNeeded, Refused, Transient
from schemas.periods import Period
from schemas.reports import Intent, MeterSummary, StripeMeters
from schemas.sink import Rejection

SENT_BY_OTHERS: Final = "more than was sent: sent twice, or by somebody else"
CONTAINED: Final = "; but Stripe's sum contains it: it is billed, do not send it again"
PERHAPS_CONTAINED: Final = (
    "; but Stripe's sum contains some of the dead letters of this meter and customer, perhaps this one: look at the "
    "customer's usage in Stripe before it is sent by hand"
)
TOO_MANY_DEAD: Final = (
    "too many different dead letters to tell whether some of them, which Stripe may hold, make up the difference"
)
REJECTIONS_DAYS: Final = 30
TRIES_MAX: Final = 3


class Answer(NamedTuple):
    """Stripe's answer, or None and why there is none."""

    summary: MeterSummary | None
    unread: str = ""


class StripeComparison:
    """Compares all partitions at once, because a customer's accounts live on several."""

    def __init__(
        self,
        views: Views,
        policy: ReconcilePolicy,
        clock: Clock,
        index: ReportsIndex,
        period_of: Callable[[Told], Period],
        findings: Findings,
        limits: Range,
    ) -> None:
        self._views = views
        self._policy = policy
        self._clock = clock
        self._index = index
        self._period_of = period_of
        self._findings = findings
        self._range = limits
        self._contained: set[str] = set()
        self._perhaps_contained: set[str] = set()

    async def run(self, partitions: Iterable[int]) -> None:
        """Compare. Raises `Transient`, `Refused` or `OperatorNeeded` where nothing could be compared at all."""
        meters = self._views.stripe
        if meters is None:
            self._unread("no Stripe key is set: TIDEMARK_STRIPE_API_KEY")
            return
        livemode, account = await meters.identity()
        sums = {key: None for told in self._ours(livemode, account) for key in self._questions(told)}
        asked_at_ms = self._clock.now_ms()
        answers = await self._read(meters, list(sums))
        # Whatever was sent while Stripe was read has its attempt in the topic by now.
        for partition in partitions:
            await self._index.catch_up(partition)
        told = list(self._ours(livemode, account))
        doubtful = []
        expected = bounds_of(sums, told, asked_at_ms - self._policy.stripe_settle_ms)
        for key, answer in answers.items():
            cause = self._judge(key, expected[key], answer)
            if cause in (Cause.MISSING, Cause.EXTRA):
                doubtful.append((cause, key, expected[key], answer))
        await self._unequal(doubtful)
        self._refused(told)
        self._of_others(livemode, account)

    def _ours(self, livemode: bool, account: str) -> Iterable[Told]:
        return (told for told in self._index.told() if _is_of(told.intent, livemode, account))

    def _of_others(self, livemode: bool, account: str) -> None:
        """Intents of another mode or account than the key's: Stripe would answer zero for what it was sent."""
        others = [
            told.intent
            for told in self._index.told()
            if not _is_of(told.intent, livemode, account) and self._range.overlaps(self._period_of(told))
        ]
        if others:
            theirs = sorted({_mode_text(intent.livemode, intent.stripe_account) for intent in others})
            detail = (
                f"the key is of {_mode_text(livemode, account)}, these intents are of {', '.join(theirs)}: set "
                "TIDEMARK_STRIPE_API_KEY to a key of the deployment's own account and mode"
            )
            self._findings.add(Row(Pair.STRIPE, Cause.UNCHECKED, detail=detail), len(others))

    def _questions(self, told: Told) -> list[Sum]:
        period = self._period_of(told)
        if told.attempt is None or not self._range.overlaps(period):
            return []
        return [Sum(told.intent.event_name, told.attempt.stripe_customer, period)]

    async def _read(self, meters: StripeMeters, sums: Sequence[Sum]) -> dict[Sum, Answer]:
        """An answer for each, bounded in number, rate and overlap."""
        limit = self._policy.stripe_reads_max
        pending = iter(sums[:limit])
        answers: dict[Sum, Answer] = {}

        workers = min(self._policy.stripe_concurrency_max, max(1, len(sums)))
        spacing_ms = int(1_000 * self._policy.stripe_concurrency_max / self._policy.stripe_reads_per_s)

        async def work() -> None:
            due_ms = self._clock.now_ms()
            for key in pending:
                due_ms += spacing_ms
                answers[key] = await self._ask(meters, key)
                now_ms = self._clock.now_ms()
                if due_ms > now_ms:
                    await self._clock.sleep((due_ms - now_ms) / 1_000)
                # A slow answer earns no burst.
                due_ms = max(due_ms, now_ms)

        await asyncio.gather(*(work() for _ in range(workers)))
        over = f"over the limit of {limit} reads of Stripe (stripe_reads_max)"
        return answers | {key: Answer(None, over) for key in sums[limit:]}

    async def _ask(self, meters: StripeMeters, key: Sum) -> Answer:
        detail = ""
        for attempt in range(TRIES_MAX):
            try:
                start_s, end_s = key.period.start_ms // SECOND_MS, key.period.end_ms // SECOND_MS
                return Answer(await meters.summary(key.event_name, key.stripe_customer, start_s, end_s))
            except Transient as error:
                detail = f"no answer after {TRIES_MAX} tries: {error}"
                if attempt + 1 < TRIES_MAX:
                    await self._clock.sleep(error.retry_after_s * 2**attempt)
            except (InvalidInput, OperatorNeeded, Refused) as error:
                return Answer(None, str(error))
        return Answer(None, detail)

    def _judge(self, key: Sum, bounds: Bounds, answer: Answer) -> Cause | None:
        """Settle what is equal, in flight or unread here; `missing` and `extra` are left to `_unequal`."""
        if answer.summary is None:
            self._add(Cause.UNCHECKED, key, bounds, answer, answer.unread)
            return Cause.UNCHECKED
        found = units_of(answer.summary.value)
        if bounds.agrees(bounds.accepted, found) and bounds.highest == bounds.accepted:
            self._findings.equal(Pair.STRIPE, 1)
            return None
        is_more = found > bounds.highest and not bounds.agrees(bounds.highest, found)
        is_less = found < bounds.lowest and not bounds.agrees(bounds.lowest, found)
        if is_more or is_less:
            held = bounds.explained(found)
            if held is None:
                return Cause.EXTRA if is_more else Cause.MISSING
            # The rows of the dead letters tell the difference.
            self._contained |= held.certain
            self._perhaps_contained |= held.possible
            if not held.tried:
                self._add(Cause.UNCHECKED, key, bounds, answer, TOO_MANY_DEAD)
                return Cause.UNCHECKED
            if bounds.highest == bounds.lowest:
                self._findings.equal(Pair.STRIPE, 1)
                return None
        self._add(Cause.IN_FLIGHT, key, bounds, answer, "not settled, or accepted too recently for Stripe's summary")
        return Cause.IN_FLIGHT

    async def _unequal(self, doubtful: Sequence[tuple[Cause, Sum, Bounds, Answer]]) -> None:
        """Less than Stripe accepted, or more where the change was downwards: rejected afterwards, or lost, or sent by
        somebody else. Stripe's error reports name samples only."""
        if not doubtful:
            return
        rejections: Sequence[Rejection] | None = None
        if self._views.rejections is not None:
            try:
                since_ms = self._clock.now_ms() - REJECTIONS_DAYS * DAY_MS
                rejections = await self._views.rejections.rejections(since_ms)
            except (Transient, Refused, OperatorNeeded):
                rejections = None
        for by_sign, key, bounds, answer in doubtful:
            more = units_of(answer.summary.value) - bounds.highest if answer.summary else Decimal(0)
            explained = more <= bounds.reductions or bounds.agrees(bounds.reductions, more)
            if by_sign is Cause.EXTRA and not (bounds.reductions and explained and rejections):
                self._add(by_sign, key, bounds, answer, SENT_BY_OTHERS)
                continue
            cause, detail = _why_not(by_sign, key, bounds, rejections)
            self._add(cause, key, bounds, answer, detail)

    def _refused(self, told: Iterable[Told]) -> None:
        """Dead letters: intents that Stripe refused outright, or that became too old."""
        for each in told:
            outcome, period, intent = each.outcome, self._period_of(each), each.intent
            is_contained = intent.identifier in self._contained
            is_named = is_contained or intent.identifier in self._perhaps_contained
            if outcome is None or not each.is_dead or not (is_named or self._range.overlaps(period)):
                continue
            amount = exact_text(intent.delta_minor, intent.scale)
            detail = outcome.detail or "a dead letter without a reason"
            if is_named:
                detail += CONTAINED if is_contained else PERHAPS_CONTAINED
            row = Row(
                Pair.STRIPE, Cause.REJECTED_BY_STRIPE, each.partition, intent.account, intent.meter, period,
                stripe_customer=outcome.stripe_customer,
                expected=amount, found=amount if is_contained else "", detail=detail,
            )  # fmt: skip
            self._findings.add(row)

    def _unread(self, detail: str) -> None:
        waiting = {
            (told.intent.account, told.intent.meter, told.intent.period_start_ms)
            for told in self._index.told()
            if self._range.overlaps(self._period_of(told))
        }
        if waiting:
            self._findings.add(Row(Pair.STRIPE, Cause.UNCHECKED, detail=detail), len(waiting))

    def _add(self, cause: Cause, key: Sum, bounds: Bounds, answer: Answer, detail: str) -> None:
        accounts = sorted(bounds.accounts)
        shown = ", ".join(accounts[:3]) + (f" and {len(accounts) - 3} more" if len(accounts) > 3 else "")
        row = Row(
            Pair.STRIPE, cause, None, shown, key.event_name, key.period, None, "", key.stripe_customer,
            exact_text(bounds.accepted, SCALE_MAX), answer.summary.value if answer.summary else "", detail,
        )  # fmt: skip
        self._findings.add(row)


def _is_of(intent: Intent, livemode: bool, account: str) -> bool:
    return intent.livemode is livemode and intent.stripe_account in ("", account)


def _mode_text(livemode: bool, account: str) -> str:
    mode = "live mode" if livemode else "test mode"
    return f"{mode} of Stripe account {account}" if account else mode


def _why_not(by_sign: Cause, key: Sum, bounds: Bounds, rejections: Sequence[Rejection] | None) -> tuple[Cause, str]:
    if rejections is None:
        return Cause.REJECTED_BY_STRIPE, "accepted, then not in Stripe's sum: rejected afterwards (reports not read)"
    named = [each for each in rejections if bounds.identifiers & set(each.identifiers)]
    of_meter = named or [each for each in rejections if each.event_name == key.event_name]
    if of_meter:
        codes = ", ".join(sorted({each.code for each in of_meter}))
        # Where the one that is missing is no sample, more than was sent may have another cause, with the same remedy.
        otherwise = f", or {SENT_BY_OTHERS}" if by_sign is Cause.EXTRA and not named else ""
        return Cause.REJECTED_BY_STRIPE, f"accepted, then rejected by Stripe: {codes}{otherwise}"
    if by_sign is Cause.EXTRA:
        return by_sign, SENT_BY_OTHERS
    return Cause.MISSING, "accepted, but not in Stripe's sum, and Stripe reports no rejection of this meter"
