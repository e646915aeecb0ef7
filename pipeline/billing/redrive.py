"""Sends again, under a new identifier, what Stripe rejected: `tidemark billing list` and `redrive`.

Stripe may keep the identifier of a rejected event, so the same identifier again would be answered as a duplicate. The
next revision of the intent has another one. A redrive that is repeated, or run twice at once, appends the same intent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from typing import Final, NamedTuple

from aggregators.intents import revised, root_of
from aggregators.meter_events import event_time_s
from aggregators.report_records import parse_entries, recorded
from aggregators.stripe_sums import StripeSum
from pipeline.billing.late_usage import LateUsage
from pipeline.billing.lookup import READ_RECORDS_MAX, LookupResult, Presence, StripeLookup
from schemas.bills import Closings
from schemas.clock import DAY_MS, HOUR_MS, SECOND_MS, Clock
from schemas.errors import InvalidInput, OperatorNeeded
from schemas.intent_ledger import IntentLedger, IntentState, LedgerIntent
from schemas.log import REPORTS_TOPIC, Log
from schemas.periods import Period
from schemas.reports import (
    Attempt,
    Intent,
    Redrive,
    Rejection,
    ReportEntry,
    StripeMeters,
    StripeRejections,
)

# Stripe keeps error reports for 30 days.
REPORTS_KEPT_MS: Final = 30 * DAY_MS
# How long Stripe's sum may lack an event, and how long after its instant a report is usually sent.
SETTLE_MS: Final = 3 * HOUR_MS
REPORTED_MS: Final = 3 * HOUR_MS


class Redriven(NamedTuple):
    """What a redrive did with one identifier: `successor` is the new identifier, or empty if `refused` says why."""

    identifier: str
    successor: str
    refused: str = ""
    is_new: bool = False


class Failed(NamedTuple):
    """An intent that Stripe refused, or accepted and rejected afterwards; `detail` is the reason."""

    known: LedgerIntent
    detail: str


async def failed_intents(
    ledger: IntentLedger, rejections: Iterable[Rejection], account: str = "", limit: int = 10_000
) -> list[Failed]:
    """The dead letters, and the accepted intents that Stripe's error reports name, the newest last, at most `limit`.

    Redriven intents are left out. Memory grows with the result. Raises `Transient`.
    """
    failed: list[Failed] = []
    after = ""
    while page := await ledger.listed([IntentState.DEAD], account, after=after):
        failed += [Failed(known, known.detail) for known in page]
        after = page[-1].intent.identifier
    rejected = {identifier: each.code for each in rejections for identifier in each.identifiers}
    for known in await ledger.found(list(rejected)):
        if known.state is IntentState.ACCEPTED and account in ("", known.intent.account):
            code = rejected[known.intent.identifier]
            failed.append(Failed(known, f"accepted, then rejected by Stripe: {code}"))
    failed.sort(key=lambda each: (each.known.settled_at_ms or 0, each.known.partition, each.known.offset))
    return failed[-limit:]


class Redriver:
    """Appends the next revision of intents that Stripe does not have.

    With `closings`, an intent whose invoice is final needs no proof: what Stripe has of it does not change the invoice.
    """

    def __init__(
        self,
        log: Log,
        ledger: IntentLedger,
        meters: StripeMeters,
        rejections: StripeRejections,
        clock: Clock,
        closings: Closings | None = None,
    ) -> None:
        self._log = log
        self._ledger = ledger
        self._late = LateUsage(closings)
        self._meters = meters
        self._rejections = rejections
        self._clock = clock
        self._lookup = StripeLookup(log, meters, clock, SETTLE_MS)

    async def redrive(self, identifiers: Iterable[str], actor: str, reason: str) -> list[Redriven]:
        """Redrive the intents, named by the identifier of any of their revisions; one result for each.

        Refuses an intent that is not settled, and one that Stripe accepted without reporting a rejection of its meter.
        Refuses, unless its invoice is final, one that Stripe's sum holds or may hold, or whose period is too old for
        Stripe. Costs one read of error reports, and one of Stripe's sums for each intent. Raises `Transient` or
        `Refused`, and `OperatorNeeded` if the key is of another mode or account; repeating does no harm.
        """
        if not actor.strip() or not reason.strip():
            raise InvalidInput("--reason", "say who redrives the reports, and why: the log keeps both")
        roots = dict.fromkeys(map(root_of, identifiers))
        latest = await self._latest(roots)
        rejections = await self._rejections.rejections(self._clock.now_ms() - REPORTS_KEPT_MS)
        suspects = {reported.intent.identifier for reported in latest.values()}
        suspects |= {identifier for each in rejections for identifier in each.identifiers}
        results: dict[str, Redriven] = {}
        proven: dict[str, tuple[LedgerIntent, str]] = {}
        for root in roots:
            judged = await self._judge(root, latest, rejections, suspects)
            if isinstance(judged, Redriven):
                results[root] = judged
            else:
                proven[root] = judged
        # Nothing is appended before all are judged: the sink sends at once, and recent sends blur the sums.
        for root, (reported, evidence) in proven.items():
            results[root] = await self._append(reported, evidence, actor, reason)
        self._lookup.forget()
        return [results[root] for root in roots]

    async def _latest(self, roots: Collection[str]) -> dict[str, LedgerIntent]:
        """The highest revision of each of these intents, by the ledger and by what the log has beyond it."""
        known: dict[str, LedgerIntent] = {}
        wanted = list(roots)
        while wanted:
            found = await self._ledger.found(wanted)
            known |= {each.intent.identifier: each for each in found}
            wanted = [revised(each.intent).identifier for each in found if each.state is IntentState.REDRIVEN]
        async for partition, offset, entry in self._beyond():
            if root_of(entry.identifier) in roots:
                after = recorded(known.get(entry.identifier), partition, offset, entry)
                known |= {entry.identifier: after} if after is not None else {}
        in_order = sorted(known.values(), key=lambda each: each.intent.revision)
        return {root_of(each.intent.identifier): each for each in in_order}

    async def _beyond(self) -> AsyncIterator[tuple[int, int, ReportEntry]]:
        """The entries that the ledger does not have yet, with their partitions and offsets."""
        for partition in range(await self._log.partition_count(REPORTS_TOPIC)):
            bounds = await self._log.bounds(REPORTS_TOPIC, partition)
            offset = await self._ledger.position(partition) or bounds.first
            while offset < bounds.next and (
                records := await self._log.read(REPORTS_TOPIC, partition, offset, READ_RECORDS_MAX)
            ):
                for record in records:
                    for entry in parse_entries(record.value):
                        yield partition, record.offset, entry
                offset = records[-1].next_offset

    async def _judge(
        self,
        root: str,
        latest: Mapping[str, LedgerIntent],
        rejections: Iterable[Rejection],
        suspects: Collection[str],
    ) -> Redriven | tuple[LedgerIntent, str]:
        """The intent and why Stripe does not have its event, or the result without a redrive."""
        reported = latest.get(root)
        if reported is None:
            return Redriven(root, "", "no such report is in billing.reports: see `tidemark billing list`")
        intent = reported.intent
        if reported.state is IntentState.PENDING:
            if intent.revision:
                return Redriven(root, intent.identifier)
            return Redriven(root, "", "it is not settled: the sink still sends it, or holds it")
        await self._check_mode(intent)
        invoice = await self._final_invoice(reported)
        refused = self._refusal(reported, rejections, is_billed=bool(invoice))
        if refused:
            return Redriven(intent.identifier, "", refused)
        if invoice:
            return reported, f"invoice {invoice} is final, so an invoice item bills it, whatever Stripe has"
        result = await self._look(reported, [each for each in latest.values() if each.attempt], suspects)
        if result.presence is not Presence.ABSENT:
            return Redriven(intent.identifier, "", f"Stripe may bill it twice: {result.detail}")
        return reported, result.detail

    async def _final_invoice(self, reported: LedgerIntent) -> str:
        intent, attempt = reported.intent, reported.attempt
        if not reported.stripe_customer or self._clock.now_ms() < intent.period_end_ms:
            return ""
        at_ms = attempt.timestamp_s * SECOND_MS if attempt else intent.instant_ms
        return await self._late.invoice(intent.event_name, reported.stripe_customer, at_ms)

    async def _append(self, reported: LedgerIntent, evidence: str, actor: str, reason: str) -> Redriven:
        intent = reported.intent
        successor = revised(intent)
        redrive = Redrive(
            identifier=intent.identifier,
            successor=successor.identifier,
            actor=actor,
            reason=reason,
            evidence=evidence,
            redriven_at_ms=self._clock.now_ms(),
        )
        value = f"[{redrive.model_dump_json()},{successor.model_dump_json()}]".encode()
        await self._log.append(REPORTS_TOPIC, reported.partition, value, key=intent.account.encode())
        return Redriven(intent.identifier, successor.identifier, is_new=True)

    async def _check_mode(self, intent: Intent) -> None:
        if (intent.livemode, intent.stripe_account) != await self._meters.identity():
            raise OperatorNeeded(
                f"the report {intent.identifier} is not of the key's mode and Stripe account: set "
                "TIDEMARK_STRIPE_API_KEY to a key of the deployment's own account and mode"
            )

    def _refusal(self, reported: LedgerIntent, rejections: Iterable[Rejection], *, is_billed: bool) -> str:
        """Why the intent cannot be redriven, as far as the log and the error reports tell; empty if nothing does.
        `is_billed`: an invoice item can bill it."""
        intent, attempt = reported.intent, reported.attempt
        is_accepted = reported.state is IntentState.ACCEPTED
        if not is_accepted and reported.state is not IntentState.DEAD:
            return f"it is settled as {reported.state}: nothing is to be sent"
        if is_accepted and not any(_may_name(each, intent, attempt) for each in rejections):
            return "Stripe accepted it and reports no rejection of its meter since"
        if not is_billed and event_time_s(intent, intent.period_end_ms, self._clock.now_ms()) is None:
            return "its period ended more than 35 days ago and Stripe no longer accepts it: add an invoice item"
        return ""

    async def _look(
        self, reported: LedgerIntent, all_wanted: Iterable[LedgerIntent], suspects: Collection[str]
    ) -> LookupResult:
        """Whether Stripe has the event, by its sum from the period's start to a few hours ago.

        What was sent later may not show in the sum yet, and would make it useless. An event of these hours needs no
        sum if Stripe clearly refused it.
        """
        intent, attempt = reported.intent, reported.attempt
        is_refused = reported.state is IntentState.DEAD and not reported.in_doubt
        if attempt is None:
            return LookupResult(Presence.ABSENT, "it was never sent")
        span = self._span(intent)
        is_shown = span.start_ms <= attempt.timestamp_s * SECOND_MS < span.end_ms
        if not is_shown and not is_refused:
            hours = (SETTLE_MS + REPORTED_MS) // HOUR_MS + 1
            return LookupResult(Presence.UNKNOWN, f"its sum at Stripe is certain {hours} h after its instant: wait")
        result = LookupResult(Presence.UNKNOWN, "its period has only begun")
        if span.start_ms < span.end_ms:
            key = StripeSum(intent.event_name, attempt.stripe_customer, span)
            sums = [StripeSum(each.intent.event_name, "", self._span(each.intent)) for each in all_wanted]
            result = await self._lookup.look_up(intent.identifier, key, sums, suspects)
        is_unshown = result.presence is Presence.UNKNOWN and not is_shown
        if is_refused and (result.presence is Presence.ABSENT or is_unshown):
            return LookupResult(Presence.ABSENT, f"Stripe refused it ({reported.detail}); {result.detail}")
        return result

    def _span(self, intent: Intent) -> Period:
        until_ms = (self._clock.now_ms() - SETTLE_MS - REPORTED_MS) // HOUR_MS * HOUR_MS
        return Period(intent.period_start_ms, min(intent.period_end_ms, until_ms))


def _may_name(rejection: Rejection, intent: Intent, attempt: Attempt | None) -> bool:
    """Whether an error report names the event, or is of its meter and of its time: Stripe names only some events."""
    if intent.identifier in rejection.identifiers:
        return True
    sent_ms = attempt.attempted_at_ms if attempt else 0
    return rejection.event_name == intent.event_name and rejection.window_end_ms >= sent_ms
