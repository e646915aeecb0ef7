"""The boxes of the operator's page, from the facts: each says in one line whether it is fine. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from aggregators.instants import format_instant_ms
from aggregators.quantities import decimal_text
from portal.operator_facts import (
    Away,
    BoughtFacts,
    ChangeFacts,
    DriftFacts,
    DunningFacts,
    FlowFacts,
    MigrationFacts,
    OperatorFacts,
    QuarantineFacts,
    SinkFacts,
    UnmappedFacts,
    WebhookFacts,
)
from schemas.bills import BillState
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS
from schemas.duplicates import DuplicateState
from schemas.flat_to_metered import ItemState
from schemas.plan_changes import OperationState
from schemas.trials import TrialState

# Counting and relaying take seconds; more than this is a standstill.
LAG_MS_MAX: Final = 2 * MINUTE_MS
WEBHOOK_LAG_MAX: Final = 1_000
WALK_MS_MAX: Final = HOUR_MS
CANARY_MS_MAX: Final = 35 * MINUTE_MS
RECONCILED_MS_MAX: Final = 30 * HOUR_MS
OPERATION_MS_MAX: Final = 15 * MINUTE_MS
RECOVERY_PERCENT_MIN: Final = 30
ROWS_MAX: Final = 20
COUNTERS: Final = ("received", "counted", "duplicate", "late", "rejected", "unmetered", "deferred")
# Holds that end by themselves.
_PASSING: Final = frozenset({"", "early"})
# What a newcomer cannot know: shown beside the number or state that has the word.
WORDS: Final = {
    "late": "came after their period was closed, and a meter does not count such events",
    "unmetered": "archived, but no meter counts them",
    "deferred": "wait for the archive to say whether they are new",
    "canary heard": "The canary is a customer of ours at Stripe that changes every 15 minutes: its webhook must come.",
    "held": "events of customers who have no account yet: link the account, and they go on",
    "set aside": "events of which an object could not be read at Stripe; read again every hour",
    "unmapped": "held: nobody is known who pays",
    "meter": "held: Stripe does not take events of the meter now",
    "breaker": "held: Stripe refused events of several customers of the meter for one cause",
    "account": "held: Stripe does not take events of the customer now",
    "unknown": "held: Stripe did not answer, and may have the report",
    "dead": "Stripe refused it for good: nobody is billed until somebody sends it again",
    "invoices held": "a person must look at them",
}


class Mood(StrEnum):
    """Whether a box is fine, must be watched, is wrong, or cannot be seen."""

    GOOD = "good"
    WAIT = "wait"
    BAD = "bad"
    AWAY = "away"


class Act(NamedTuple):
    """A way to a form: what it does, and the address below the page."""

    text: str
    target: str


class Ref(NamedTuple):
    """A text that leads to an address below the page."""

    text: str
    target: str


class Box(NamedTuple):
    """A part of the page. `line`: in one line whether it is fine. `runbook`: the page that says what to do."""

    id: str
    title: str
    mood: Mood
    line: str
    runbook: str
    numbers: tuple[tuple[str, str], ...] = ()
    heads: tuple[str, ...] = ()
    rows: tuple[tuple[object, ...], ...] = ()


def boxes(facts: OperatorFacts) -> tuple[Box, ...]:
    """All boxes, those that are wrong first."""
    makers: tuple[tuple[str, str, str, Any, Callable[[OperatorFacts, Any], Box]], ...] = (
        ("flow", "Events", "lag", facts.flow, _flow),
        ("webhooks", "From Stripe", "webhooks", facts.webhooks, _webhooks),
        ("sink", "To Stripe", "stripe-dead-letters", facts.sink, _sink),
        ("drift", "Reconciliation", "drift", facts.drift, _drift),
        ("quarantine", "Quarantine", "quarantine", facts.quarantine, _quarantine),
        ("unmapped", "Without a customer", "unmapped-accounts", facts.unmapped, _unmapped),
        ("changes", "Plan changes", "plan-changes", facts.changes, _changes),
        ("dunning", "Dunning", "dunning", facts.dunning, _dunning),
        ("bought", "Trials and purchases", "duplicate-subscriptions", facts.bought, _bought),
        ("migrations", "Migrations", "plan-changes", facts.migrations, _migrations),
    )
    made = []
    for name, title, runbook, part, make in makers:
        if isinstance(part, Away):
            made.append(Box(name, title, Mood.AWAY, f"Not known: {part.why}", "store-hangs"))
        else:
            made.append(make(facts, part)._replace(id=name, title=title, runbook=runbook))
    order = [Mood.BAD, Mood.AWAY, Mood.WAIT, Mood.GOOD]
    return tuple(sorted(made, key=lambda box: order.index(box.mood)))


def verdict(made: Sequence[Box]) -> tuple[Mood, str]:
    """Whether anything is wrong now, in one line."""
    bad = [f"{box.title}: {box.line}" for box in made if box.mood is Mood.BAD]
    away = [box.title for box in made if box.mood is Mood.AWAY]
    waits = [box.title for box in made if box.mood is Mood.WAIT]
    if bad:
        more = f" Not known: {', '.join(away)}." if away else ""
        return Mood.BAD, f"Wrong now. {' '.join(bad)}{more}"
    if away:
        return Mood.AWAY, f"Nothing wrong was seen, but not all can be seen: {', '.join(away)}."
    if waits:
        return Mood.WAIT, f"Nothing is wrong. To watch: {', '.join(waits)}."
    return Mood.GOOD, "Nothing is wrong."


def _box(mood: Mood, line: str, **more: Any) -> Box:
    return Box("", "", mood, line, "", **more)


def _worst(*problems: tuple[bool, Mood, str], good: str) -> tuple[Mood, str]:
    """The first problem that is there; the worse ones come first."""
    return next(((mood, line) for is_there, mood, line in problems if is_there), (Mood.GOOD, good))


def _flow(facts: OperatorFacts, flow: FlowFacts) -> Box:
    counters = flow.counters
    lag_ms = None if flow.counted_ms is None else max(0, facts.now_ms - flow.counted_ms)
    shown_ms = None if flow.complete_ms is None else max(0, facts.now_ms - flow.complete_ms)
    mood, line = _worst(
        (not counters.conserved, Mood.BAD, "The counters do not add up: a worker lost or doubled events."),
        (lag_ms is None, Mood.WAIT, "No worker has counted yet."),
        ((lag_ms or 0) > LAG_MS_MAX, Mood.BAD, f"Counting is {_span(lag_ms or 0)} behind: is a worker down?"),
        (shown_ms is None, Mood.WAIT, "ClickHouse has no hours yet."),
        ((shown_ms or 0) > 5 * LAG_MS_MAX, Mood.BAD, f"ClickHouse is {_span(shown_ms or 0)} behind."),
        good="Events are counted as they come.",
    )
    rates = flow.rates or {}
    numbers = [
        (name, f"{getattr(counters, name):,}" + (f"  ({rates[name]:.1f}/s)" if name in rates else ""))
        for name in COUNTERS
    ]
    numbers += [("not counted yet", f"{flow.behind:,} records"), ("complete up to", _at(flow.complete_ms))]
    return _box(mood, line, numbers=tuple(numbers))


def _drift(facts: OperatorFacts, drift: DriftFacts) -> Box:
    run = drift.run
    if run is None:
        return _box(Mood.WAIT, "Nothing was reconciled yet: run tidemark reconcile, or start the role auditor.")
    mood, line = _worst(
        (run.verdict == "drift", Mood.BAD, f"{run.differences:,} values differ between copies."),
        (
            facts.now_ms - run.started_ms > RECONCILED_MS_MAX,
            Mood.WAIT,
            f"The last one began {_ago(facts, run.started_ms)}.",
        ),
        (run.verdict == "incomplete", Mood.WAIT, "Nothing differs, but not everything was looked at."),
        good="All copies agree.",
    )
    numbers = (
        ("begun", _at(run.started_ms)),
        ("Stripe's sums read", f"{run.sums_read:,} of {run.sums_due:,}"),
        ("customers' invoices read", f"{run.invoices_read:,} of {run.invoices_due:,}"),
    )
    rows = tuple((pair, cause, f"{count:,}") for pair, cause, count in drift.causes[:ROWS_MAX])
    return _box(mood, line, numbers=numbers, heads=("Compared", "Cause", "Rows"), rows=rows)


def _webhooks(facts: OperatorFacts, found: WebhookFacts) -> Box:
    quiet_ms = None if found.heard_ms is None else facts.now_ms - found.heard_ms
    walked_ms = None if found.walked_ms is None else facts.now_ms - found.walked_ms
    is_deaf = bool(found.canary) and (quiet_ms is None or quiet_ms > CANARY_MS_MAX)
    mood, line = _worst(
        (is_deaf, Mood.BAD, "The canary was not heard: webhooks are lost."),
        (found.behind > WEBHOOK_LAG_MAX, Mood.BAD, f"{found.behind:,} events wait: is the role mirror down?"),
        ((walked_ms or 0) > WALK_MS_MAX, Mood.BAD, f"Stripe's list was last read {_span(walked_ms or 0)} ago."),
        (found.set_aside > 0, Mood.WAIT, f"{found.set_aside:,} events wait for an object that is missing."),
        (found.held > 0, Mood.WAIT, f"{found.held:,} events are of customers without an account."),
        (walked_ms is None, Mood.WAIT, "Stripe's list of events was not read yet."),
        good="Stripe's events come and are processed.",
    )
    numbers = (
        ("to process", f"{found.behind:,}"),
        ("canary heard", _ago(facts, found.heard_ms) if found.canary else "no canary is set"),
        ("Stripe's list read up to", _at(found.walked_ms)),
        ("held", f"{found.held:,}"),
        ("set aside", f"{found.set_aside:,}"),
        ("bindings to send", f"{found.due_bindings:,}"),
    )
    return _box(mood, line, numbers=numbers)


def _sink(facts: OperatorFacts, sink: SinkFacts) -> Box:
    held = {hold: each for hold, each in sink.waiting.items() if hold not in _PASSING}
    first_ms = min((end_ms + facts.grace_ms for _, end_ms in held.values()), default=None)
    count = sum(number for number, _ in held.values())
    dead = [known for known in sink.dead if known.intent.identifier not in sink.left]
    is_late = first_ms is not None and first_ms - facts.now_ms < DAY_MS
    unbilled = sink.bills.get(BillState.UNBILLED, 0) + sink.bills.get(BillState.HELD, 0)
    mood, line = _worst(
        (bool(dead), Mood.BAD, f"Stripe refused {_reports(len(dead))}{_more(len(sink.dead))}: not billed."),
        (
            is_late,
            Mood.BAD,
            f"Not sent yet (held): {_reports(count)}; the first invoice is final {_until(facts, first_ms)}.",
        ),
        (sink.bills.get(BillState.HELD, 0) > 0, Mood.BAD, "A person must look at an invoice of late usage."),
        (
            count > 0,
            Mood.WAIT,
            f"Not sent yet (held): {_reports(count)}; the first invoice is final {_until(facts, first_ms)}.",
        ),
        (unbilled > 0, Mood.WAIT, f"{unbilled:,} invoices get an item for late usage."),
        good="Usage is reported as it comes.",
    )
    numbers = [
        (hold or "about to be sent", f"{number:,}; invoice final {_until(facts, end_ms + facts.grace_ms)}")
        for hold, (number, end_ms) in sorted(sink.waiting.items())
    ]
    numbers += [("not read yet", f"{sink.unread:,} records"), ("drafts final within a day", f"{sink.deadlines:,}")]
    numbers += [(f"invoices {state.value}", f"{number:,}") for state, number in sorted(sink.bills.items())]
    rows = []
    for known in sink.dead[:ROWS_MAX]:
        intent, left = known.intent, sink.left.get(known.intent.identifier)
        done: object = Act("Redrive or leave", f"reports/{intent.identifier}")
        if left is not None:
            done = f"left by {left.actor}: {left.reason}"
        quantity = f"{decimal_text(intent.delta_minor, intent.scale)} {intent.meter}"
        rows.append((_account(intent.account), quantity, known.detail[:300], done))
    heads = ("Account", "Refused", "Why", "What to do")
    return _box(mood, line, numbers=tuple(numbers), heads=heads, rows=tuple(rows))


def _changes(facts: OperatorFacts, found: ChangeFacts) -> Box:
    unknown = [each for each in found.open if each.state is OperationState.UNKNOWN]
    old = [each for each in found.open if not each.url and facts.now_ms - each.made_ms > OPERATION_MS_MAX]
    mood, line = _worst(
        (bool(unknown), Mood.BAD, f"Of {len(unknown)} operations nobody knows yet what Stripe did."),
        (found.differing > 0, Mood.BAD, f"{found.differing:,} invoices of the last month are not what was quoted."),
        (bool(old), Mood.BAD, f"{len(old)} operations are open for more than {OPERATION_MS_MAX // MINUTE_MS} minutes."),
        good="Changes are carried out as they are accepted, and cost what was quoted.",
    )
    numbers = (("open operations", f"{len(found.open)}"), ("quotes that differ", f"{found.differing:,}"))
    rows = tuple(
        (_account(each.account), each.state.value, f"step {each.step}", _ago(facts, each.made_ms), each.detail[:200])
        for each in found.open[:ROWS_MAX]
    )
    return _box(mood, line, numbers=numbers, heads=("Account", "State", "Done", "Accepted", "Note"), rows=rows)


def _dunning(_facts: OperatorFacts, found: DunningFacts) -> Box:
    low = []
    rows = []
    for each in found.recoveries[:ROWS_MAX]:
        settled = each.opened - each.running
        percent = None if settled <= 0 else each.recovered * 100 // settled
        if percent is not None and percent < RECOVERY_PERCENT_MIN and settled >= 10:
            low.append(each.currency)
        month = format_instant_ms(each.opened_from_ms)[:7]
        rate = "not yet known" if percent is None else f"{percent} %"
        rows.append((month, each.currency, f"{each.opened:,}", f"{each.running:,}", f"{each.recovered:,}", rate))
    counts = found.counts
    mood, line = _worst(
        (
            bool(low),
            Mood.BAD,
            f"Less than {RECOVERY_PERCENT_MIN} % of failed payments were recovered ({', '.join(low)}).",
        ),
        (counts.canceled > 0, Mood.WAIT, f"Stripe canceled {counts.canceled:,} subscriptions that were not paid."),
        good=f"Payments that failed and are followed: {sum(counts.open.values()):,}.",
    )
    numbers = tuple((state.value.replace("_", " "), f"{number:,}") for state, number in counts.open.items())
    heads = ("Month", "Currency", "Failed", "Running", "Recovered", "Rate")
    return _box(mood, line, numbers=numbers, heads=heads, rows=tuple(rows))


def _bought(_facts: OperatorFacts, found: BoughtFacts) -> Box:
    double = [each for each in found.duplicates if each.subscription not in found.left]
    stuck = [each for each in found.unfinalized if each.invoice not in found.left]
    mood, line = _worst(
        (bool(double), Mood.BAD, f"{len(double)} customers pay two subscriptions."),
        (bool(stuck), Mood.BAD, f"{len(stuck)} invoices cannot become final, so nobody is asked to pay."),
        (found.flagged > 0, Mood.WAIT, f"{found.flagged:,} running trials have a card that had one before."),
        good="No second subscription, and every invoice becomes final.",
    )
    numbers = [(f"trials {state.value}", f"{found.trials.get(state, 0):,}") for state in TrialState]
    numbers.append(("trials whose card had a trial before", f"{found.flagged:,}"))
    rows: list[tuple[object, ...]] = []
    for each in found.duplicates[:ROWS_MAX]:
        what = "its refund is proposed" if each.state is DuplicateState.REFUND_PROPOSED else each.state.value
        pair = f"{each.subscription} beside {each.kept}"
        rows.append((_account(each.account), pair, what, _left(found, each.account, each.subscription)))
    for draft in found.unfinalized[:ROWS_MAX]:
        done = _left(found, draft.account, draft.invoice)
        rows.append((_account(draft.account), f"draft {draft.invoice}", draft.error, done))
    heads = ("Account", "What", "State", "What to do")
    return _box(mood, line, numbers=tuple(numbers), heads=heads, rows=tuple(rows))


def _left(found: BoughtFacts, account: str, what: str) -> object:
    left = found.left.get(what)
    if left is not None:
        return f"left by {left.actor}: {left.reason}"
    if not account:
        return "link the customer first"
    return Act("Leave as it is", f"accounts/{_part(account)}/leave/{_part(what)}")


def _unmapped(facts: OperatorFacts, found: UnmappedFacts) -> Box:
    rows: list[tuple[object, ...]] = []
    deadlines = []
    for each in found.customers[:ROWS_MAX]:
        own_ms = None if each.period_end_ms is None else each.period_end_ms + facts.grace_ms
        deadline_ms = min((ms for ms in (each.finalizes_ms, own_ms) if ms is not None), default=None)
        deadlines.append(deadline_ms)
        until = "no metered invoice" if deadline_ms is None else f"invoice final {_until(facts, deadline_ms)}"
        rows.append((each.customer, "customer without an account", until))
    for name, count in found.accounts[:ROWS_MAX]:
        rows.append((_account(name), "account without a customer", f"{_reports(count)} waiting"))
    first_ms = min((ms for ms in deadlines if ms is not None), default=None)
    is_late = first_ms is not None and first_ms - facts.now_ms < DAY_MS
    mood, line = _worst(
        (is_late, Mood.BAD, f"An invoice of a customer without an account is final {_until(facts, first_ms)}."),
        (
            bool(rows),
            Mood.WAIT,
            f"{len(found.customers)} customers and {len(found.accounts)} accounts wait for a link.",
        ),
        good="Every customer has an account, and every account a customer.",
    )
    return _box(mood, line, heads=("Who", "What is missing", "Until when"), rows=tuple(rows))


def _migrations(_facts: OperatorFacts, found: MigrationFacts) -> Box:
    rows: list[tuple[object, ...]] = []
    problems = 0
    for migration, items in found.migrations[:ROWS_MAX]:
        waves = sorted({item.wave for item in items})
        for wave in waves:
            own = [item for item in items if item.wave == wave]
            problems += sum(bool(item.problem) for item in own)
            states = Counter(item.state for item in own)
            shown = ", ".join(f"{states[state]} {state.value}" for state in ItemState if states[state])
            rows.append((migration.name, f"{wave}", f"{len(own):,}", shown))
    halted = [migration.name for migration, _ in found.migrations if migration.halted]
    mood, line = _worst(
        (bool(halted), Mood.BAD, f"Halted by a difference: {', '.join(halted)}."),
        (problems > 0, Mood.BAD, f"{problems} subscriptions differ."),
        good="No migration is halted." if rows else "There is no migration.",
    )
    return _box(mood, line, heads=("Migration", "Wave", "Subscriptions", "States"), rows=tuple(rows))


def _quarantine(facts: OperatorFacts, found: QuarantineFacts) -> Box:
    recent = found.newest_ms is not None and facts.now_ms - found.newest_ms < HOUR_MS
    count = sum(number for _, number in found.reasons)
    mood, line = _worst(
        (recent, Mood.WAIT, f"Events were refused within the last hour, the last one {_ago(facts, found.newest_ms)}."),
        (count > 0, Mood.GOOD, f"No event was refused in the last hour; the last one {_ago(facts, found.newest_ms)}."),
        good="No event was refused.",
    )
    rows = tuple(
        (Ref(reason, f"quarantine/{_part(reason)}") if reason else "no reason", f"{number:,}")
        for reason, number in found.reasons[:ROWS_MAX]
    )
    heads = (f"Reason, of the newest {found.looked:,}", "Events")
    return _box(mood, line, heads=heads, rows=rows)


def _account(name: str) -> object:
    return Ref(name, f"accounts/{_part(name)}/") if name else "no account"


def _part(text: str) -> str:
    return quote(text, safe="")


def _at(instant_ms: int | None) -> str:
    return "not known" if instant_ms is None else format_instant_ms(instant_ms)


def _ago(facts: OperatorFacts, instant_ms: int | None) -> str:
    return "never" if instant_ms is None else f"{_span(max(0, facts.now_ms - instant_ms))} ago"


def _until(facts: OperatorFacts, instant_ms: int | None) -> str:
    if instant_ms is None:
        return "at no known time"
    left_ms = instant_ms - facts.now_ms
    return f"in {_span(left_ms)}" if left_ms > 0 else f"since {_span(-left_ms)}"


def _span(span_ms: int) -> str:
    for unit_ms, name in ((DAY_MS, "days"), (HOUR_MS, "hours"), (MINUTE_MS, "minutes")):
        if span_ms >= 2 * unit_ms:
            return f"{span_ms // unit_ms} {name}"
    return f"{span_ms // SECOND_MS} seconds"


def _reports(count: int) -> str:
    return "1 report" if count == 1 else f"{count:,} reports"


def _more(count: int) -> str:
    return " or more" if count >= 50 else ""
