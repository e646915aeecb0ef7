"""What a year of plan changes must cost and allow: an oracle that shares no code with the product or the simulator.

An `Account` follows what the customer, an operator and time do to one account, in whole seconds and whole minor units.
The rules are those of docs/plan-changes.md, docs/dunning.md, docs/entitlements.md and of docs.stripe.com:
"billing/subscriptions/prorations", "billing/subscriptions/pending-updates" and
"billing/revenue-recovery/smart-retries".
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tests.scenarios.billing_model import DAY_S, Span, months_later, part

GRACE_S: Final = 3_600
UPDATE_S: Final = 23 * 3_600
RETRY_DAYS: Final = (1, 3, 5, 7, 9, 11, 13, 14)
# The smallest charge in dollars and yen, in minor units. Less than that is kept on the balance.
CHARGE_MIN: Final = 50
UNLIMITED: Final = -1
# The one plan that can be tried, for how long, and its calls meanwhile.
TRIED: Final = "professional"
TRIAL_S: Final = 14 * DAY_S
TRIAL_CALLS: Final = 5_000
MONTHS: Final = {"month": 1, "year": 12}
NAMED: Final = {1: "month", 12: "year"}


class Sold(NamedTuple):
    """A plan: the price of a unit of each component by interval and currency, and what the plan gives."""

    rank: int
    prices: Mapping[str, Mapping[tuple[str, str], int]]
    pos: bool
    calls: int


PLANS: Final = {
    "essential": Sold(
        10,
        {
            "location": {
                ("month", "usd"): 7900, ("year", "usd"): 79000, ("month", "jpy"): 11800, ("year", "jpy"): 118000,
            },
        },
        False,
        20_000,
    ),
    "professional": Sold(
        20,
        {
            "base": {("month", "usd"): 5000, ("year", "usd"): 50001, ("month", "jpy"): 7501, ("year", "jpy"): 75000},
            "location": {
                ("month", "usd"): 9900, ("year", "usd"): 104800, ("month", "jpy"): 14900, ("year", "jpy"): 150007,
            },
        },
        True,
        50_000,
    ),
    "scale": Sold(
        30,
        {"base": {("month", "usd"): 40000, ("year", "usd"): 400000, ("month", "jpy"): 60001, ("year", "jpy"): 600011}},
        True,
        200_000,
    ),
}  # fmt: skip
EXTRA: Final = {("month", "usd"): 2000, ("year", "usd"): 19200, ("month", "jpy"): 3000, ("year", "jpy"): 28800}
EXTRA_CALLS: Final = 10_000


class Gives(NamedTuple):
    """What an account may do: the flag, the limit and the seats. `why`: plan, trial, grace, fallback or none."""

    why: str
    pos: bool
    calls: int
    locations: int


FREE: Final = Gives("none", False, 1_000, 1)
FALLBACK: Final = Gives("fallback", False, 200, 2)


class Terms(NamedTuple):
    """What is bought. `seats`: paid locations, 0 of a plan without any. `extra`: how often the add-on."""

    plan: str
    interval: str
    seats: int
    extra: int = 0

    def items(self, currency: str) -> dict[str, tuple[int, int]]:
        """The price of a unit and the quantity of each component."""
        key = (self.interval, currency)
        found = {
            name: (prices[key], self.seats if name == "location" else 1)
            for name, prices in PLANS[self.plan].prices.items()
        }
        return found | ({"extra": (EXTRA[key], self.extra)} if self.extra else {})

    def total(self, currency: str) -> int:
        """What a period costs."""
        return sum(unit * quantity for unit, quantity in self.items(currency).values())


def has_seats(plan: str) -> bool:
    """Whether locations of a plan are paid one by one."""
    return "location" in PLANS[plan].prices


class Wish(NamedTuple):
    """What an account asks for. `kind`: plan, trial, cancel or undo. `seats` 0: as they are. `used`: in use."""

    kind: str
    plan: str = ""
    interval: str = ""
    seats: int = 0
    used: int = 0
    currency: str = ""


class Ends(NamedTuple):
    """That a subscription ends with its period: by itself, or by a schedule that was there before."""

    by_schedule: bool = False


@dataclass
class Bill:
    """An invoice. `number`: that of the subscription. `final_at`: when a draft is made final, None for never."""

    number: int
    created: int
    reason: str
    lines: tuple[int, ...]
    status: str = "draft"
    final_at: int | None = None
    finalized: int = 0
    due: int = 0
    from_balance: int = 0
    attempts: int = 0
    next_attempt: int | None = None

    @property
    def total(self) -> int:
        return sum(self.lines)


@dataclass
class Case:
    """A story of dunning. `first`: the first failure. `retry`, `last`: when a retry failed, and when the last one."""

    bill: Bill
    first: int
    retry: int | None = None
    last: int | None = None
    outcome: str = ""
    is_paid: bool = False

    @property
    def final(self) -> int:
        """When the last warning is due."""
        latest = self.first + 21 * DAY_S
        return latest if self.last is None else min(latest, max(self.last, self.first + 3 * DAY_S))

    @property
    def downgrade(self) -> int:
        """When the plan is lost."""
        return self.final + 3 * DAY_S

    def steps(self) -> list[tuple[int, str]]:
        """Each state with the instant from which it holds, as far as is known now."""
        found = [(self.first, "notified")]
        if self.retry is not None:
            found.append((max(self.retry, self.first + 3 * DAY_S), "urgent"))
        later = ((0, "downgraded"), (7, "win_back"), (30, "churned"))
        return [*found, (self.final, "final_warning"), *((self.downgrade + days * DAY_S, name) for days, name in later)]

    def state(self, at: int) -> str:
        """The state at an instant, or how the case was closed."""
        return self.outcome or max(step for step in self.steps() if step[0] <= at)[1]


@dataclass
class Update:
    """A change that waits for its payment."""

    terms: Terms
    at: int
    bill: Bill
    restarts: bool

    @property
    def expires(self) -> int:
        return self.bill.created + UPDATE_S


@dataclass
class Subscription:
    """What an account has bought. `pending`: what holds from the end of the period. `spans`: the billed seconds."""

    number: int
    terms: Terms
    currency: str
    anchor: int
    periods: int = 0
    status: str = "active"
    pending: Terms | Ends | None = None
    update: Update | None = None
    case: Case | None = None
    spans: dict[str, list[Span]] = field(default_factory=dict)
    trial_end: int = 0

    @property
    def start(self) -> int:
        return months_later(self.anchor, self.periods * MONTHS[self.terms.interval])

    @property
    def end(self) -> int:
        return self.trial_end or months_later(self.anchor, (self.periods + 1) * MONTHS[self.terms.interval])

    def is_reduced(self, at: int) -> bool:
        """Whether more is paid for than is held, because seats were given up without a credit."""
        paid = {name: span.cents for name, spans in self.spans.items() for span in spans if span.end > at}
        return any(
            paid.get(name) != unit * quantity for name, (unit, quantity) in self.terms.items(self.currency).items()
        )

    def paid(self, at: int) -> int:
        """How many locations are paid for now."""
        found = [span.cents for span in self.spans.get("location", []) if span.end > at]
        unit = self.terms.items(self.currency)["location"][0]
        return found[0] // unit if found else 0

    def begin(self, at: int, terms: Terms) -> list[int]:
        """A new period from now on; returns the charges."""
        self.terms, self.anchor, self.periods, self.trial_end = terms, at, 0, 0
        return self.charge(self.terms.items(self.currency), at)

    def charge(self, items: Mapping[str, tuple[int, int]], at: int) -> list[int]:
        """Bill items from now to the end of the period."""
        start, end, lines = self.start, self.end, []
        for name, (unit, quantity) in items.items():
            span = Span(at, end, unit * quantity, end - start)
            self.spans.setdefault(name, []).append(span)
            lines.append(part(span.cents, end - at, span.period_s))
        return lines

    def credit(self, names: Mapping[str, object], at: int) -> list[int]:
        """Give back what was billed of items from now on."""
        lines = []
        for name in names:
            for span in self.spans.get(name, []):
                if span.end > at:
                    lines.append(-part(span.cents, span.end - max(at, span.start), span.period_s))
                    span.end = max(at, span.start)
        return lines

    def change(self, terms: Terms, at: int) -> list[int]:
        """Other items for the rest of the period; returns credits and charges."""
        before, after = self.terms.items(self.currency), terms.items(self.currency)
        credits_ = self.credit({name: 0 for name in before if before[name] != after.get(name)}, at)
        self.terms = terms
        return credits_ + self.charge({name: row for name, row in after.items() if before.get(name) != row}, at)


@dataclass
class Account:
    """One account with its customer. `works`: the customer's card pays."""

    currency: str
    works: bool = True
    balance: int = 0
    has_tried: bool = False
    bills: list[Bill] = field(default_factory=list)
    subscriptions: list[Subscription] = field(default_factory=list)

    @property
    def live(self) -> Subscription | None:
        """The subscription that has not ended."""
        found = self.subscriptions[-1:]
        return found[0] if found and found[0].status != "canceled" else None

    # What an account asks for.

    def wanted(self, wish: Wish) -> Terms:
        """What is bought after a wish for a plan came true."""
        now = self.live.terms if self.live else Terms("", "month", 0)
        plan, interval = wish.plan or now.plan, wish.interval or now.interval
        seats = (wish.seats or now.seats or 1) if has_seats(plan) else 0
        return Terms(plan, interval, seats, now.extra if has_seats(plan) else 0)

    def judged(self, wish: Wish) -> int | frozenset[str]:
        """The row of the table that a wish is, or the codes of which one must refuse the wish."""
        sub = self.live
        if sub is None:
            codes = {"undo": {"nothing_pending", "no_subscription"}, "cancel": {"no_subscription"}}
            if wish.kind in codes:
                return frozenset(codes[wish.kind])
            return 2 if wish.kind == "plan" else frozenset({"trial_used"}) if self.has_tried else 3
        if sub.update:
            return frozenset({"update_pending"})
        if wish.kind == "undo":
            return 15 if isinstance(sub.pending, Ends) else 9 if sub.pending else frozenset({"nothing_pending"})
        if wish.kind == "cancel":
            return frozenset({"nothing_changes", "cancel_pending"}) if isinstance(sub.pending, Ends) else 14
        if wish.kind == "trial":
            return frozenset({"trial_used"})
        codes_ = self._refusals(sub, wish)
        return frozenset(codes_) if codes_ else self._row(sub, self.wanted(wish))

    def _refusals(self, sub: Subscription, wish: Wish) -> set[str]:
        wanted, now, codes = self.wanted(wish), sub.terms, set()
        if wish.currency not in ("", self.currency):
            codes.add("other_currency")
        only_seats = wanted != now and wanted == now._replace(seats=wanted.seats)
        if isinstance(sub.pending, Ends) and (sub.pending.by_schedule or not only_seats):
            codes.add("cancel_pending")
        if sub.status in ("past_due", "unpaid") and _is_more(now, wanted):
            codes.add("pay_first")
        if has_seats(wanted.plan) and wish.used > wanted.seats:
            codes.add("over_limit")
        if wanted == now and not sub.pending and not sub.trial_end:
            codes.add("nothing_changes")
        return codes

    def _row(self, sub: Subscription, wanted: Terms) -> int:
        now, is_pending = sub.terms, isinstance(sub.pending, Terms)
        if sub.trial_end:
            return 4 if wanted == now else 5
        if wanted == now:
            return 9
        if wanted.plan == now.plan and wanted.interval == now.interval:
            return 24
        if _is_more(now, wanted):
            return 12 if wanted.interval != now.interval else 11 if is_pending else 6
        return 13 if wanted.interval != now.interval else 10 if is_pending else 8

    def take(self, wish: Wish, row: int, quoted: int, at: int) -> Bill | None:
        """Carry a wish out that was quoted and is accepted at these seconds. Returns the invoice."""
        sub, wanted = self.live, self.wanted(wish)
        is_paid = self.works or wanted.total(self.currency) + self.balance < CHARGE_MIN
        if sub is None:
            return self._sign_up(wanted, at, is_trial=row == 3) if is_paid or row == 3 else None
        if row == 5 and wanted.plan == TRIED:
            sub.terms = wanted
            return None
        if row in (4, 5):
            return self._end_trial(sub, wanted, at) if is_paid else None
        if row in (9, 14, 15):
            sub.pending = Ends(isinstance(sub.pending, Terms)) if row == 14 else None
            return None
        if row in (8, 10, 13):
            sub.pending = wanted
            return None
        later = sub.pending if row == 24 else None
        if isinstance(later, Terms) and has_seats(later.plan):
            later = later._replace(seats=wanted.seats)
        sub.pending = later
        if row == 24 and wanted.seats <= max(sub.terms.seats, sub.paid(at)):
            sub.terms = wanted
            return None
        if row == 24:
            sub.terms = sub.terms._replace(seats=max(sub.terms.seats, sub.paid(at)))
        # Neither a schedule nor a new period can be told an instant.
        restarts = wanted.interval != sub.terms.interval
        is_dated = not restarts and not isinstance(later, Terms)
        return self._update(sub, Update(wanted, quoted if is_dated else at, Bill(0, at, "update", ()), restarts))

    def quoted(self, wish: Wish, row: int, at: int) -> tuple[int, int | None, int | None]:
        """The totals of the invoice of a change and of the one after, and when that is, if there is one."""
        then = copy.deepcopy(self)
        then.works = True
        bill = then.take(wish, row, at, at)
        assert then.live
        total = bill.total if bill else 0
        if isinstance(then.live.pending, Ends):
            return total, None, None
        return total, (then.live.pending or then.live.terms).total(self.currency), then.live.end

    def buy_extra(self, quantity: int, at: int) -> Bill:
        """An add-on, or another number of them, bought in the dashboard and invoiced at once."""
        sub = self.live
        assert sub
        terms = sub.terms._replace(extra=quantity)
        return self._update(sub, Update(terms, at, Bill(0, at, "update", ()), restarts=False))

    def fails(self, wish: Wish, row: int) -> bool:
        """Whether nothing is made, because the card does not pay what must be paid first."""
        wanted = self.wanted(wish)
        if row not in (2, 4, 5) or (row == 5 and wanted.plan == TRIED):
            return False
        return not self.works and wanted.total(self.currency) + self.balance >= CHARGE_MIN

    def _sign_up(self, terms: Terms, at: int, *, is_trial: bool) -> Bill:
        sub = Subscription(len(self.subscriptions), terms, self.currency, at)
        self.subscriptions.append(sub)
        if is_trial:
            sub.status, sub.trial_end, self.has_tried = "trialing", at + TRIAL_S, True
        lines = [0] if is_trial else sub.begin(at, terms)
        return self._billed(Bill(sub.number, at, "create", tuple(lines)), at)

    def _end_trial(self, sub: Subscription, terms: Terms, at: int) -> Bill:
        sub.status = "active"
        return self._billed(Bill(sub.number, at, "update", tuple(sub.begin(at, terms))), at)

    def _billed(self, bill: Bill, at: int) -> Bill:
        self.bills.append(bill)
        self._finalize(bill, at)
        return bill

    def _update(self, sub: Subscription, update: Update) -> Bill:
        after = copy.deepcopy(sub)
        if update.restarts:
            lines = after.credit(after.spans, update.at) + after.begin(update.at, update.terms)
        else:
            lines = after.change(update.terms, update.at)
        bill = update.bill
        bill.number, bill.lines = sub.number, tuple(lines)
        self.bills.append(bill)
        sub.update = update
        self._finalize(bill, bill.created)
        return bill

    def _apply(self, sub: Subscription) -> None:
        update = sub.update
        assert update
        sub.update = None
        if update.restarts:
            sub.credit(sub.spans, update.at)
            sub.begin(update.at, update.terms)
        else:
            sub.change(update.terms, update.at)

    # What a customer or an operator does beside.

    def pay(self, at: int) -> list[Bill]:
        """Pay what is open, and what was kept as a draft because nobody paid, oldest first."""
        kept = [bill for bill in self.bills if bill.status == "draft" and bill.final_at is None]
        found = [*(bill for bill in self.bills if bill.status == "open"), *kept]
        for bill in found:
            if bill.status == "draft":
                self._final(bill, at)
            if bill.status == "open":
                self._collect(bill, at)
        return found

    def give_up(self) -> list[Bill]:
        """End the subscription now without proration, and void what is open."""
        assert self.live
        if self.live.case and not self.live.case.outcome:
            # Nobody asks for the money any more.
            self.live.case.outcome = "written_off"
        self._end(self.live)
        found = [bill for bill in self.bills if bill.status == "open"]
        for bill in found:
            self._void(bill)
        return found

    def _void(self, bill: Bill) -> None:
        bill.status, bill.next_attempt = "void", None
        self.balance += bill.from_balance

    # Time.

    def advance(self, until: int) -> None:
        """Let everything happen that is due up to a second, in its order."""
        while dues := [due for due in self._dues() if due[0] <= until]:
            at, _, what, bill = min(dues, key=lambda due: due[:2])
            sub = self.live
            if bill is not None and what == "final":
                self._finalize(bill, at)
            elif bill is not None:
                self._collect(bill, at)
            elif sub and what == "expiry" and sub.update:
                self._void(sub.update.bill)
                sub.update = None
            elif sub:
                self._renew(sub, at)
        for sub in self.subscriptions:
            case = sub.case
            if case and not case.outcome and case.state(until) == "churned":
                case.outcome = "churned"

    def _dues(self) -> Iterator[tuple[int, int, str, Bill | None]]:
        sub = self.live
        for bill in self.bills:
            if bill.status == "draft" and bill.final_at is not None:
                yield bill.final_at, 1, "final", bill
            if bill.status == "open" and bill.next_attempt is not None:
                yield bill.next_attempt, 2, "collect", bill
        if sub:
            yield sub.end, 3, "renewal", None
            if sub.update:
                yield sub.update.expires, 0, "expiry", None

    def edges(self) -> Iterator[int]:
        """The seconds at which the account may lose or get something without an event of Stripe."""
        for sub in self.subscriptions[-1:]:
            if sub.pending and sub.status != "canceled":
                yield sub.end
            if sub.case and not sub.case.outcome:
                yield from (at for at, _ in sub.case.steps())

    def _renew(self, sub: Subscription, at: int) -> None:
        if isinstance(sub.pending, Ends):
            self._end(sub)
            return
        terms, sub.pending = sub.pending or sub.terms, None
        if sub.trial_end:
            sub.status = "active"
            lines = sub.begin(at, terms)
        elif terms.interval == sub.terms.interval:
            sub.terms, sub.periods = terms, sub.periods + 1
            lines = sub.charge(terms.items(sub.currency), at)
        else:
            lines = sub.begin(at, terms)
        final_at = None if sub.status == "unpaid" else at + GRACE_S
        self.bills.append(Bill(sub.number, at, "cycle", tuple(lines), final_at=final_at))

    def _end(self, sub: Subscription) -> None:
        sub.status, sub.pending, sub.update = "canceled", None, None
        if sub.case and not sub.case.outcome:
            sub.case.outcome = "churned"

    def _final(self, bill: Bill, at: int) -> None:
        due = bill.total + self.balance
        bill.due = due if due >= CHARGE_MIN else 0
        bill.from_balance = self.balance - (0 if bill.due else due)
        self.balance -= bill.from_balance
        bill.finalized, bill.status = at, "open" if bill.due else "paid"
        if not bill.due:
            self._paid(bill)

    def _finalize(self, bill: Bill, at: int) -> None:
        self._final(bill, at)
        if bill.status == "open":
            self._collect(bill, at)

    def _collect(self, bill: Bill, at: int) -> None:
        bill.attempts += 1
        if self.works:
            bill.status, bill.next_attempt = "paid", None
            self._paid(bill)
            return
        tries_left = bill.attempts <= len(RETRY_DAYS)
        bill.next_attempt = bill.finalized + RETRY_DAYS[bill.attempts - 1] * DAY_S if tries_left else None
        sub = self.subscriptions[bill.number]
        if sub.status != "canceled" and bill.reason == "cycle":
            self._failed(sub, bill, at)

    def _failed(self, sub: Subscription, bill: Bill, at: int) -> None:
        is_last = bill.next_attempt is None
        sub.status = "unpaid" if is_last else "past_due"
        if sub.case is None or sub.case.is_paid:
            sub.case = Case(bill, at)
            return
        if sub.case.retry is None:
            sub.case.retry = at
        if is_last:
            sub.case.last = at

    def _paid(self, bill: Bill) -> None:
        sub = self.subscriptions[bill.number]
        if sub.update and sub.update.bill is bill:
            self._apply(sub)
            return
        is_latest = bill is [each for each in self.bills if each.number == sub.number][-1]
        if is_latest and sub.status in ("past_due", "unpaid"):
            sub.status = "active"
        if sub.case and not self._owed(sub):
            sub.case.is_paid, sub.case.outcome = True, sub.case.outcome or "recovered"

    def _owed(self, sub: Subscription) -> bool:
        return any(bill.number == sub.number and bill.status == "open" for bill in self.bills)

    # What follows from it.

    def gives(self, at: int) -> Gives:
        """What the account may do at a second, and why."""
        sub = self.live
        if sub is None:
            return FREE
        case, why = sub.case, "plan"
        if case and not case.is_paid:
            if at >= case.downgrade:
                return FALLBACK
            why = "grace"
        plan = PLANS[sub.terms.plan]
        seats = sub.terms.seats if has_seats(sub.terms.plan) else UNLIMITED
        if sub.trial_end:
            return Gives("trial", plan.pos, TRIAL_CALLS, seats)
        return Gives(why, plan.pos, plan.calls + EXTRA_CALLS * sub.terms.extra, seats)


def _is_more(now: Terms, wanted: Terms) -> bool:
    longer = MONTHS[wanted.interval] > MONTHS[now.interval]
    if wanted.plan == now.plan:
        return longer or (wanted.interval == now.interval and wanted.seats > now.seats)
    return longer or (wanted.interval == now.interval and PLANS[wanted.plan].rank > PLANS[now.plan].rank)
