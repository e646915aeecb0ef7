"""Compares Stripe's sums with the meter events that were sent, per meter, customer and period.

Accounts of one customer may have different periods, so Stripe's sum over a period may contain meter events of another
account's period. The expected sum therefore depends on the timestamps that were sent, not on the intents' periods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from aggregators.quantities import decimal_text
from aggregators.report_records import ReportedIntent
from aggregators.stripe_sums import SCALE_MAX, StripeSum, SumBounds, bounds_of, may_contain, units_of
from reconciler.causes import Cause, Pair
from reconciler.compare import Range
from reconciler.coverage import NOTHING_DUE, Coverage
from reconciler.reading import Answer, LastRead, Readable, coverage, plan, read_all
from reconciler.report import Findings, Row, names_text
from reconciler.reports_index import ReportsIndex
from reconciler.views import ReconcilePolicy, Views
from schemas.clock import DAY_MS, SECOND_MS, Clock
from schemas.errors import InvalidInput, OperatorNeeded, Refused, Transient
from schemas.periods import Period
from schemas.reports import Intent, MeterSummary, Rejection

SENT_BY_OTHERS: Final = "more than was sent: sent twice, or by somebody else"
CONTAINED: Final = "; but Stripe's sum contains it: it is billed, do not send it again"
PERHAPS_CONTAINED: Final = (
    "; but Stripe's sum contains some of the dead letters of this meter and customer, perhaps this one: look at the "
    "customer's usage in Stripe before it is sent by hand"
)
TOO_MANY_DEAD: Final = (
    "too many different dead letters to find out whether Stripe has some of them and the difference is their sum"
)
REJECTIONS_DAYS: Final = 30


class Compared(NamedTuple):
    """A sum at Stripe, the intents that Stripe may add up in it, and Stripe's answer."""

    key: StripeSum
    sent: Sequence[ReportedIntent]
    bounds: SumBounds
    answer: Answer[MeterSummary]


@dataclass(frozen=True, slots=True)
class StripeComparison:
    """Compares all partitions at once, because a customer's accounts may be on several partitions."""

    views: Views
    policy: ReconcilePolicy
    clock: Clock
    index: ReportsIndex
    period_of: Callable[[ReportedIntent], Period]
    findings: Findings
    limits: Range
    past: Mapping[StripeSum, LastRead]
    contained: set[str] = field(default_factory=set)
    perhaps_contained: set[str] = field(default_factory=set)

    async def run(self, partitions: Iterable[int], reads_max: int) -> Coverage:
        """Compare the sums that Stripe holds with the reports that were sent; differences go to the findings. Reads at
        most `reads_max` sums.

        The dead letters are known from the log, and are reported also if Stripe cannot be read. Raises `Transient` or
        `OperatorNeeded` if the log cannot be read to its end.
        """
        meters = self.views.stripe
        if meters is None:
            self._unread("no Stripe key is set: TIDEMARK_STRIPE_API_KEY")
            self._refused(self.index.reported())
            return NOTHING_DUE
        try:
            livemode, account = await meters.identity()
        except (Transient, Refused, OperatorNeeded, InvalidInput) as error:
            self._unread(str(error))
            self._refused(self.index.reported())
            return NOTHING_DUE
        sums = {key: None for reported in self._ours(livemode, account) for key in self._sums(reported)}
        read_from_ms = self.clock.now_ms()
        sent_before = _sent(sums, list(self._ours(livemode, account)))
        readables = (_readable(key, sent, self.past.get(key)) for key, sent in sent_before.items())
        planned = plan(readables, read_from_ms)
        chosen = [each.key for each in planned.keys[:reads_max]]

        async def ask(key: StripeSum) -> MeterSummary:
            start_s, end_s = key.period.start_ms // SECOND_MS, key.period.end_ms // SECOND_MS
            return await meters.summary(key.event_name, key.stripe_customer, start_s, end_s)

        answers = await read_all(chosen, ask, self.clock, self.policy)
        self.findings.stripe_reads += len(answers)
        over = Answer[MeterSummary](None, f"over the limit of {reads_max} reads of Stripe (stripe_reads_max)")
        answers |= {each.key: over for each in planned.keys[reads_max : planned.due]}
        # The topic has the attempts of all events that were sent while Stripe was read.
        for partition in partitions:
            await self.index.catch_up(partition)
        ours = list(self._ours(livemode, account))
        unequal = []
        for key, sent in _sent(answers, ours).items():
            bounds = bounds_of(sent, read_from_ms - self.policy.stripe_settle_ms, try_unsettled=False)
            compared = Compared(key, sent, bounds, answers[key])
            cause = self._judge(compared)
            if cause in (Cause.MISSING, Cause.EXTRA):
                unequal.append((cause, compared))
        await self._unequal(unequal)
        self._refused(ours)
        self._of_others(livemode, account)
        read = (key for key in chosen if answers[key].value is not None)
        return coverage(planned, read, len(sums) - len(planned.keys))

    def _ours(self, livemode: bool, account: str) -> Iterable[ReportedIntent]:
        return (reported for reported in self.index.reported() if is_of(reported.intent, livemode, account))

    def _of_others(self, livemode: bool, account: str) -> None:
        """Report the intents of another mode or account than the key's: with this key, Stripe would answer zero."""
        others = [
            reported.intent
            for reported in self.index.reported()
            if not is_of(reported.intent, livemode, account) and self.limits.overlaps(self.period_of(reported))
        ]
        if others:
            theirs = sorted({_mode_text(intent.livemode, intent.stripe_account) for intent in others})
            detail = (
                f"the key is of {_mode_text(livemode, account)}, these intents are of {', '.join(theirs)}: set "
                "TIDEMARK_STRIPE_API_KEY to a key of the deployment's own account and mode"
            )
            self.findings.add(Row(Pair.STRIPE, Cause.UNCHECKED, detail=detail), len(others))

    def _sums(self, reported: ReportedIntent) -> list[StripeSum]:
        period = self.period_of(reported)
        if reported.attempt is None or not self.limits.overlaps(period):
            return []
        return [StripeSum(reported.intent.event_name, reported.attempt.stripe_customer, period)]

    def _judge(self, compared: Compared) -> Cause | None:
        """Report a sum that is equal, in flight or unread. `missing` and `extra` are only returned, for `_unequal`."""
        bounds, summary = compared.bounds, compared.answer.value
        if summary is None:
            self._add(Cause.UNCHECKED, compared, compared.answer.unread)
            return Cause.UNCHECKED
        found = units_of(summary.value)
        if bounds.agrees(bounds.accepted, found) and bounds.highest == bounds.accepted:
            self.findings.confirm(self._row(Cause.CONFIRMED, compared, ""))
            return None
        is_more = found > bounds.highest and not bounds.agrees(bounds.highest, found)
        is_less = found < bounds.lowest and not bounds.agrees(bounds.lowest, found)
        if is_more or is_less:
            contained = bounds.contained(found)
            if contained is None:
                return Cause.EXTRA if is_more else Cause.MISSING
            # The rows of the dead letters show the difference.
            self.contained.update(contained.certain)
            self.perhaps_contained.update(contained.possible)
            if not contained.tried:
                self._add(Cause.UNCHECKED, compared, TOO_MANY_DEAD)
                return Cause.UNCHECKED
            if bounds.highest == bounds.lowest:
                # Not recorded as confirmed: the sum is read again each time, because the dead letters' rows need it.
                self.findings.equal(Pair.STRIPE, 1)
                return None
        self._add(Cause.IN_FLIGHT, compared, "not settled, or accepted too recently for Stripe's summary")
        return Cause.IN_FLIGHT

    async def _unequal(self, unequal: Sequence[tuple[Cause, Compared]]) -> None:
        """Report sums that differ from what Stripe accepted: events were rejected afterwards, lost, or sent by somebody
        else. Rejected negative events make Stripe's sum too large."""
        if not unequal:
            return
        rejections: Sequence[Rejection] | None = None
        if self.views.rejections is not None:
            try:
                since_ms = self.clock.now_ms() - REJECTIONS_DAYS * DAY_MS
                rejections = await self.views.rejections.rejections(since_ms)
            except (Transient, Refused, OperatorNeeded, InvalidInput):
                # The difference is reported all the same.
                rejections = None
        for by_sign, compared in unequal:
            if by_sign is Cause.EXTRA and not (rejections and _may_lack_reductions(compared)):
                self._add(by_sign, compared, SENT_BY_OTHERS)
            else:
                cause, detail = _why_not(by_sign, compared, rejections)
                self._add(cause, compared, detail)

    def _refused(self, ours: Iterable[ReportedIntent]) -> None:
        """Report the dead letters: intents that Stripe refused, or that became too old."""
        for reported in ours:
            outcome, period, intent = reported.outcome, self.period_of(reported), reported.intent
            is_contained = intent.identifier in self.contained
            is_mentioned = is_contained or intent.identifier in self.perhaps_contained
            if outcome is None or not reported.is_dead or not (is_mentioned or self.limits.overlaps(period)):
                continue
            amount = decimal_text(reported.billed_minor, intent.scale)
            detail = outcome.detail or "a dead letter without a reason"
            if is_mentioned:
                detail += CONTAINED if is_contained else PERHAPS_CONTAINED
            row = Row(
                Pair.STRIPE, Cause.REJECTED_BY_STRIPE, reported.partition, intent.account, intent.meter, period,
                stripe_customer=outcome.stripe_customer,
                expected=amount, found=amount if is_contained else "", detail=detail,
            )  # fmt: skip
            self.findings.add(row)

    def _unread(self, detail: str) -> None:
        waiting = {
            (reported.intent.account, reported.intent.meter, reported.intent.period_start_ms)
            for reported in self.index.reported()
            if self.limits.overlaps(self.period_of(reported))
        }
        if waiting:
            self.findings.add(Row(Pair.STRIPE, Cause.UNCHECKED, detail=detail), len(waiting))

    def _add(self, cause: Cause, compared: Compared, detail: str) -> None:
        self.findings.add(self._row(cause, compared, detail))

    def _row(self, cause: Cause, compared: Compared, detail: str) -> Row:
        key, summary = compared.key, compared.answer.value
        shown = names_text({reported.intent.account for reported in compared.sent})
        meter = ", ".join(sorted({reported.intent.meter for reported in compared.sent}))
        return Row(
            Pair.STRIPE, cause, None, shown, meter, key.period, None, "", key.stripe_customer,
            decimal_text(compared.bounds.accepted, SCALE_MAX), _found(summary), detail, key.event_name,
        )  # fmt: skip


def _readable(key: StripeSum, sent: Sequence[ReportedIntent], last: LastRead | None) -> Readable[StripeSum]:
    changed_ms = max((reported.outcome.settled_at_ms for reported in sent if reported.outcome), default=0)
    return Readable(key, key.period.end_ms, changed_ms, last)


def _sent(sums: Iterable[StripeSum], ours: Iterable[ReportedIntent]) -> dict[StripeSum, list[ReportedIntent]]:
    """The intents that Stripe may add up in these sums."""
    queues: dict[tuple[str, str], list[ReportedIntent]] = {}
    for reported in ours:
        if reported.attempt is not None:
            queues.setdefault((reported.intent.event_name, reported.attempt.stripe_customer), []).append(reported)
    return {key: [reported for reported in queues.get(key[:2], ()) if may_contain(key, reported)] for key in sums}


def _found(summary: MeterSummary | None) -> str:
    """Stripe's sum in the form of our quantities: Stripe writes 272 as "272.0"."""
    if summary is None:
        return ""
    units = units_of(summary.value)
    return decimal_text(int(units), SCALE_MAX) if units == int(units) else summary.value


def is_of(intent: Intent, livemode: bool, account: str) -> bool:
    """Whether an intent is for the key's mode and account."""
    return intent.livemode is livemode and intent.stripe_account in ("", account)


def _mode_text(livemode: bool, account: str) -> str:
    mode = "live mode" if livemode else "test mode"
    return f"{mode} of Stripe account {account}" if account else mode


def _may_lack_reductions(compared: Compared) -> bool:
    """Whether Stripe's sum is greater than expected by no more than the negative events that Stripe accepted."""
    bounds, summary = compared.bounds, compared.answer.value
    if summary is None or not bounds.reductions:
        return False
    more = units_of(summary.value) - bounds.highest
    return more <= bounds.reductions or bounds.agrees(bounds.reductions, more)


def _why_not(by_sign: Cause, compared: Compared, rejections: Sequence[Rejection] | None) -> tuple[Cause, str]:
    if rejections is None:
        return Cause.REJECTED_BY_STRIPE, "accepted, then not in Stripe's sum: rejected afterwards (reports not read)"
    accepted = {reported.intent.identifier for reported in compared.sent if reported.is_accepted}
    sampled = [rejection for rejection in rejections if accepted & set(rejection.identifiers)]
    of_meter = sampled or [rejection for rejection in rejections if rejection.event_name == compared.key.event_name]
    if of_meter:
        codes = ", ".join(sorted({rejection.code for rejection in of_meter}))
        # Stripe's reports have only samples. If none is ours, the surplus may also have another cause.
        otherwise = f", or {SENT_BY_OTHERS}" if by_sign is Cause.EXTRA and not sampled else ""
        return Cause.REJECTED_BY_STRIPE, f"accepted, then rejected by Stripe: {codes}{otherwise}"
    if by_sign is Cause.EXTRA:
        return by_sign, SENT_BY_OTHERS
    return Cause.MISSING, "accepted, but not in Stripe's sum, and Stripe reports no rejection of this meter"
