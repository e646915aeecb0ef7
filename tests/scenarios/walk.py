"""`python -m tests.scenarios.walk [--accounts 200] [--months 14] [--seed 1]`: a year of random accounts, recomputed.

Each account signs up, changes its plan, interval, seats and add-ons, takes changes back, ends and comes back, and has a
card that fails and is repaired, or never is. All are customers of one business on one clock, and all they do goes
through quotes, acceptances and Stripe's events. `tests.scenarios.walk_model` says what each of them must cost, and what
each account may do, at every instant at which something happens, and a millisecond before a plan is lost.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import itertools
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from schemas.periods import Interval
from schemas.plan_changes import ChangeKind, ChangeRequest, OperationState, Quote, Refusal
from tests.scenarios import walk_model as model
from tests.scenarios.billing_model import DAY_S, months_later
from tests.scenarios.walk_model import Account, Terms, Wish, has_seats
from tests.scenarios.walk_world import BAD_CARD, WalkWorld

HOUR_S: Final = 3_600
LIFE_S: Final = 900
START_S: Final = int(datetime(2027, 1, 1, tzinfo=UTC).timestamp())
PLANS: Final = tuple(model.PLANS)


@dataclass
class Person:
    """One account of the walk: what happens to it, decided by the seed and its number alone."""

    name: str
    draw: random.Random
    oracle: Account
    done: list[str] = field(default_factory=list)
    asked: tuple[Quote, Wish, int, int, object] | None = None
    repair: int = 0
    is_watched: int = 0


class Different(AssertionError):
    """The product and the oracle disagree about an account."""


class Walk:
    """The lives of all accounts, in the order of their instants."""

    def __init__(self, accounts: int, months: int, seed: int, only: int | None = None) -> None:
        self.accounts, self.months, self.seed, self.only = accounts, months, seed, only
        self.world = WalkWorld(START_S * 1_000, seed)
        self.people: list[Person] = []
        self.agenda: list[tuple[int, int, int, str]] = []
        self.numbers = itertools.count()
        self.count: Counter[str] = Counter()
        self.end_ms = months_later(START_S, months) * 1_000

    async def run(self) -> None:
        """Live all lives. Raises `Different` with the history of the account that differs."""
        await self.world.sell()
        for number in range(self.accounts):
            draw = random.Random(f"{self.seed} {number}")
            person = Person(f"a{number}", draw, Account(draw.choice(("usd", "usd", "jpy"))))
            self.people.append(person)
            if self.only in (None, number):
                await self.world.new_account(person.name)
                self._plan(self._first(draw), number, "act")
        month = 1
        while True:
            look_ms = months_later(START_S, month) * 1_000
            now_ms, due = self._next(min(look_ms, self.end_ms))
            if now_ms >= self.end_ms:
                break
            await self._reach(now_ms, due)
            if now_ms == look_ms:
                month += 1
                await self._look()
        await self._reach(self.end_ms, [])
        await self._look()

    def _first(self, draw: random.Random) -> int:
        """Half of the accounts begin on one of the last days of a month."""
        day = draw.choice((28, 29, 30)) if draw.random() < 0.5 else draw.randrange(58)
        return (START_S + day * DAY_S + draw.randrange(DAY_S)) * 1_000 + draw.randrange(1_000)

    def _plan(self, at_ms: int, number: int, what: str) -> None:
        heapq.heappush(self.agenda, (at_ms, next(self.numbers), number, what))

    def _next(self, until_ms: int) -> tuple[int, list[tuple[int, str]]]:
        """The next instant at which something is due, and what is."""
        due_ms = self.world.stripe.simulator.test.clockwork.next_due_ms()
        now_ms = min(until_ms, *(ms for ms in (due_ms, self.agenda[0][0] if self.agenda else None) if ms is not None))
        now_ms = max(now_ms, self.world.clock.ms)
        found = []
        while self.agenda and self.agenda[0][0] <= now_ms:
            _, _, number, what = heapq.heappop(self.agenda)
            found.append((number, what))
        return now_ms, found

    async def _reach(self, now_ms: int, due: list[tuple[int, str]]) -> None:
        """Let time pass, and everybody do what is due."""
        world = self.world
        world.clock.ms = now_ms
        world.stripe.simulator.catch_up()
        touched = self._touched() | {number for number, what in due if what != "before"}
        if touched:
            await world.settle()
        for number, _ in (each for each in due if each[1] == "before"):
            await self._check_access(self.people[number], now_ms)
        for number in sorted(touched):
            self.people[number].oracle.advance(now_ms // 1_000)
        for number, what in due:
            await self._act(number, what)
        if more := self._touched():
            touched |= more
            await world.settle()
        for number in sorted(touched):
            await self._check(number)

    def _touched(self) -> set[int]:
        by_customer = {customer: int(name[1:]) for name, customer in self.world.customers.items()}
        return {by_customer[customer] for customer in self.world.happened_to() if customer in by_customer}

    # What people do.

    async def _act(self, number: int, what: str) -> None:
        person = self.people[number]
        acts: dict[str, Callable[[int], Any]] = {
            "act": self._do, "accept": self._accept, "repair": self._repair, "give up": self._give_up,
        }  # fmt: skip
        if what not in acts:
            return
        self.world.choose(person.name)
        try:
            await acts[what](number)
        except Different:
            raise
        except Exception as error:
            raise self._different(person, f"{type(error).__name__}: {error}") from error

    async def _do(self, number: int) -> None:
        """One step of a life."""
        person, at = self.people[number], self._now()
        draw, oracle = person.draw, person.oracle
        kind = draw.choice(self._kinds(person, at))
        if kind == "break":
            self._break(person, number, at)
        elif kind == "extra":
            await self._extra(person, at)
        else:
            await self._ask(person, number, self._wish(person, kind), at)
        if not (person.asked or (oracle.live and oracle.live.status == "canceled")):
            self._later(number)

    def _later(self, number: int) -> None:
        """When the next step is: mostly weeks later, sometimes within minutes."""
        draw = self.people[number].draw
        gap_s = draw.randrange(20, 1_200) if draw.random() < 0.12 else HOUR_S + draw.expovariate(1 / (24 * DAY_S))
        self._plan(self.world.clock.ms + round(gap_s * 1_000), number, "act")

    def _kinds(self, person: Person, at: int) -> list[str]:
        """What may be done now, as often as it is likely."""
        sub, oracle = person.oracle.live, person.oracle
        if sub is None:
            return ["sign up"] * 9 + ["try"] * 4 + ["cancel", "undo"] + ["break"] * bool(oracle.works)
        later = ["down", "cancel", "undo", "nothing", "shorter"] + ["currency"] * (not sub.update)
        drafts = any(bill.status == "draft" and bill.final_at for bill in oracle.bills)
        if drafts or sub.end - at < 2 * HOUR_S or (not oracle.works and sub.end - at < 26 * HOUR_S):
            return later
        more = ["up"] * 4 + ["longer"] * 2 + ["seats down"] * 2 + ["down"] * 2 + ["undo"] * (3 * bool(sub.pending))
        # A schedule knows no change that waits for its payment.
        more += ["seats up"] * (3 * (oracle.works or not isinstance(sub.pending, Terms)))
        return [*later, *more, *["extra"] * (2 * self._can_add(oracle)), *["break"] * (3 * oracle.works)]

    def _can_add(self, oracle: Account) -> bool:
        """Whether an add-on can be bought in the dashboard and is paid at once."""
        sub, drafts = oracle.live, any(bill.status == "draft" for bill in oracle.bills)
        if sub is None or drafts or sub.end - self._now() < 2 * HOUR_S:
            return False
        return oracle.works and sub.status == "active" and not (sub.pending or sub.update) and has_seats(sub.terms.plan)

    def _wish(self, person: Person, kind: str) -> Wish:
        """What is asked for, to the letter."""
        draw, sub = person.draw, person.oracle.live
        if kind in ("cancel", "undo"):
            return Wish(kind)
        if sub is None:
            plan = model.TRIED if kind == "try" else draw.choice(PLANS)
            interval = draw.choice(("month", "month", "month", "year"))
            seats = draw.randrange(1, 6) if has_seats(plan) else 0
            return Wish("trial" if kind == "try" else "plan", plan, interval, seats, currency=person.oracle.currency)
        now = sub.terms
        place = PLANS.index(now.plan)
        seats = draw.randrange(1, 6)
        if kind == "currency":
            return Wish("plan", now.plan, used=now.seats, currency="jpy" if person.oracle.currency == "usd" else "usd")
        if kind == "nothing":
            return Wish("plan", now.plan, used=now.seats)
        if kind in ("longer", "shorter"):
            return Wish("plan", now.plan, "year" if kind == "longer" else "month", used=now.seats)
        if kind in ("seats up", "seats down") and has_seats(now.plan):
            wanted = (
                now.seats + draw.randrange(1, 4) if kind == "seats up" else max(1, now.seats - draw.randrange(1, 3))
            )
            return Wish("plan", now.plan, seats=wanted, used=min(now.seats, wanted))
        plan = (
            PLANS[min(2, place + draw.randrange(1, 3))] if kind == "up" else PLANS[max(0, place - draw.randrange(1, 3))]
        )
        if not has_seats(plan):
            return Wish("plan", plan)
        named = seats if not has_seats(now.plan) or draw.random() < 0.3 else 0
        if plan == now.plan:
            named = min(named, now.seats)
        used = draw.randrange(1, (named or now.seats) + 1 + (draw.random() < 0.15))
        return Wish("plan", plan, seats=named, used=used)

    async def _ask(self, person: Person, number: int, wish: Wish, at: int) -> None:
        """Ask for a quote, and plan its acceptance."""
        oracle = person.oracle
        expected = oracle.judged(wish)
        self._note(person, f"asks {_words(wish)}, expecting {expected}")
        found = await self.world.quote_of(person.name, _request(wish))
        if isinstance(found, Quote) and expected == frozenset({"trial_used"}):
            # The keys of a trial are taken, or are another trial's, when the quote is accepted.
            refused = await self.world.accept(person.name, found.id)
            found = refused if isinstance(refused, Refusal) else found
        if isinstance(found, Refusal) or not isinstance(expected, int):
            code = str(found.code) if isinstance(found, Refusal) else f"a quote of row {found.decided.row}"
            if isinstance(expected, int) or code not in expected:
                self._same(person, "refusal", code, expected)
            self.count[f"refused {code}"] += 1
            return
        total, following, then = oracle.quoted(wish, expected, at)
        self._same(person, "row", found.decided.row, expected)
        self._same(person, "quote", found.total.minor, total)
        self._same(person, "next", (found.next_minor, found.next_ms), (following, then and then * 1_000))
        if found.ours_minor is not None and not (oracle.live and oracle.live.is_reduced(at)):
            self._same(person, "our own rating", found.ours_minor, total)
        draw = person.draw
        gap_s = 0 if draw.random() < 0.7 else draw.randrange(1, LIFE_S) if draw.random() < 0.85 else LIFE_S
        person.asked = found, wish, expected, at, _base(oracle)
        if gap_s:
            self._plan(self.world.clock.ms + gap_s * 1_000, number, "accept")
        else:
            await self._accept(number)

    async def _accept(self, number: int) -> None:
        person, at = self.people[number], self._now()
        assert person.asked
        (quote, wish, row, quoted, base), person.asked = person.asked, None
        oracle = person.oracle
        if at > quoted:
            self._later(number)
            if self._can_add(oracle) and person.draw.random() < 0.15:
                await self._extra(person, at)
        found = await self.world.accept(person.name, quote.id)
        refusal = "quote_expired" if at - quoted >= LIFE_S else "changed" if base != _base(oracle) else ""
        self._note(person, f"accepts it, row {row}{', expecting ' + refusal if refusal else ''}")
        if isinstance(found, Refusal) or refusal:
            self._same(person, "refusal", str(found.code) if isinstance(found, Refusal) else "accepted", refusal)
            self.count[f"refused {refusal}"] += 1
            return
        kept, operation = found
        fails = oracle.fails(wish, row)
        bill = oracle.take(wish, row, quoted, at)
        self._same(person, "operation", operation.state, OperationState.FAILED if fails else OperationState.DONE)
        self._same(person, "charge", kept.charged_minor, bill.total if bill else None)
        self._same(person, "differing", kept.is_differing, False)
        self.count[f"row {row}{' failed' if fails else ''}"] += 1

    async def _extra(self, person: Person, at: int) -> None:
        """Buy or give back add-ons in the dashboard."""
        sub = person.oracle.live
        assert sub
        now = sub.terms.extra
        wanted = person.draw.choice([each for each in (0, 1, 2) if each != now])
        self._note(person, f"has {wanted} add-ons from now on, instead of {now}")
        stripe, how = self.world.stripe, {"proration_behavior": "always_invoice"}
        (body,) = stripe.pages("GET /v1/subscriptions", {"customer": self.world.customer})
        price = self.world.prices[f"tm.extra.v1.addon.{sub.terms.interval}.{sub.currency}"]
        held = [item["id"] for item in body["items"]["data"] if item["price"]["id"] == price]
        if not now:
            stripe.call(
                "POST /v1/subscription_items", {"subscription": body["id"], "price": price, "quantity": wanted, **how}
            )
        elif wanted:
            stripe.call("POST /v1/subscription_items/{item}", {"quantity": wanted, **how}, held[0])
        else:
            stripe.call("DELETE /v1/subscription_items/{item}", how, held[0])
        person.oracle.buy_extra(wanted, at)
        self.count["add-ons"] += 1

    def _break(self, person: Person, number: int, at: int) -> None:
        """The card fails from now on. Most are repaired some day; of the others the operator lets go in the end."""
        draw, sub = person.draw, person.oracle.live
        person.oracle.works = False
        self.world.use_card(BAD_CARD)
        fails = (sub.end if sub else at) + HOUR_S
        is_never = draw.random() < 0.25
        until = fails + (
            47 * DAY_S + draw.randrange(1, 30 * DAY_S) if is_never else draw.randrange(-2 * DAY_S, 60 * DAY_S)
        )
        until = max(until, at + draw.randrange(60, DAY_S))
        self._note(
            person, f"has a card that fails, until {_time(until)}{' when the operator gives up' if is_never else ''}"
        )
        self._plan(until * 1_000, number, "give up" if is_never else "repair")

    async def _repair(self, number: int) -> None:
        """Another card, which pays what is open now, or when Stripe tries again."""
        person, at = self.people[number], self._now()
        oracle = person.oracle
        if oracle.live and oracle.live.update and oracle.live.update.restarts:
            self._plan((at + model.UPDATE_S) * 1_000, number, "repair")
            return
        oracle.works = True
        self.world.use_card("pm_card_visa")
        waits = any(bill.next_attempt for bill in oracle.bills if bill.status == "open") and person.draw.random() < 0.4
        self._note(person, f"has a good card{' and waits' if waits else ' and pays'}")
        self.count["repaired"] += 1
        if waits:
            return
        paid = oracle.pay(at)
        rows = self.world.invoices_of(person.name)
        for row in [each for each in rows if each["status"] == "open"] + [
            each for each in rows if each["status"] == "draft" and not each["automatically_finalizes_at"]
        ]:
            self.world.stripe.call("POST /v1/invoices/{invoice}/pay", {}, row["id"])
        self.count["paid by hand"] += len(paid)

    async def _give_up(self, number: int) -> None:
        """Nobody pays: the operator ends the subscription and voids what is open. Later there is another card."""
        person = self.people[number]
        oracle, stripe = person.oracle, self.world.stripe
        if oracle.live:
            self._note(person, "is given up")
            (body,) = stripe.pages("GET /v1/subscriptions", {"customer": self.world.customer})
            if body["schedule"]:
                stripe.call("POST /v1/subscription_schedules/{schedule}/cancel", {"prorate": False}, body["schedule"])
            else:
                stripe.call("DELETE /v1/subscriptions/{subscription_exposed_id}", {"prorate": False}, body["id"])
            for row in self.world.invoices_of(person.name):
                if row["status"] == "open":
                    stripe.call("POST /v1/invoices/{invoice}/void", {}, row["id"])
            oracle.give_up()
            self.count["given up"] += 1
        self._plan(self.world.clock.ms + person.draw.randrange(1, 20) * DAY_S * 1_000, number, "repair")

    # What must be so.

    async def _look(self) -> None:
        """Compare everything of everybody."""
        for number, person in enumerate(self.people):
            if person.name in self.world.customers:
                person.oracle.advance(self._now())
                await self._check(number)
                self._check_invoices(person)

    async def _check(self, number: int) -> None:
        person, at = self.people[number], self._now()
        rows = await self.world.rows_of(person.name)
        subs = sorted(rows["subscriptions"], key=lambda row: (row["start_ms"], row["id"]))
        oracle = person.oracle
        self._same(person, "status", [row["status"] for row in subs], [sub.status for sub in oracle.subscriptions])
        if oracle.live:
            items = [row for row in rows["subscription_items"] if row["subscription_id"] == subs[-1]["id"]]
            found = {(self.world.names[row["price_id"]], row["quantity"]) for row in items}
            self._same(person, "items", found, _keys(oracle.live.terms, oracle.currency))
            # An item that is added inside a period has a start of its own.
            self._same(person, "period", {row["period_end_ms"] for row in items}, {oracle.live.end * 1_000})
        bills = sorted(
            (row["created_ms"] // 1_000, row["total_minor"], row["status"], row["attempt_count"])
            for row in rows["invoices"]
        )
        self._same(
            person,
            "invoices",
            bills,
            sorted((bill.created, bill.total, bill.status, bill.attempts) for bill in oracle.bills),
        )
        await self._check_access(person, self.world.clock.ms)
        for sub in oracle.subscriptions[-1:]:
            if sub.case:
                cases = await self.world.sql.dunning.listed(account=person.name, limit=1)
                self._same(
                    person,
                    "dunning",
                    [str(each.case.outcome or each.case.state) for each in cases],
                    [sub.case.state(at)],
                )
        self._watch(number)

    def _watch(self, number: int) -> None:
        """Look again when something is to happen without an event, and a millisecond before."""
        person, at = self.people[number], self._now()
        due = min((each for each in person.oracle.edges() if each > at), default=0)
        if due and due != person.is_watched:
            person.is_watched = due
            self._plan(due * 1_000 - 1, number, "before")
            self._plan(due * 1_000, number, "watch")

    async def _check_access(self, person: Person, now_ms: int) -> None:
        found, wanted = await self.world.access(person.name), person.oracle.gives(now_ms // 1_000)
        self._same(person, "access", (found.pos, found.calls, found.locations), wanted[1:])
        self.count[f"access {wanted.why}"] += 1
        if wanted.pos or wanted.why == "grace":
            self._same(
                person,
                "reason",
                (found.pos_why if wanted.pos else wanted.why, found.calls_why),
                (wanted.why, wanted.why),
            )

    def _check_invoices(self, person: Person) -> None:
        rows, bills = self.world.invoices_of(person.name), person.oracle.bills
        found = sorted(
            (row["created"], row["total"], row["status"], row["amount_due"]) for row in rows if row["status"] != "draft"
        )
        self._same(
            person,
            "invoices at Stripe",
            found,
            sorted((bill.created, bill.total, bill.status, bill.due) for bill in bills if bill.status != "draft"),
        )
        charged = self.world.charged(person.name)
        self._same(
            person,
            "charges",
            sorted(itertools.chain(*charged.values())),
            sorted(bill.due for bill in bills if bill.status == "paid" and bill.due),
        )
        self._same(person, "charges of one invoice", max(map(len, charged.values()), default=0) > 1, False)

    def _now(self) -> int:
        return self.world.clock.ms // 1_000

    def _note(self, person: Person, words: str) -> None:
        person.done.append(f"{_time(self._now())} {words}")

    def _same(self, person: Person, what: str, found: object, wanted: object) -> None:
        if found != wanted:
            raise self._different(person, f"{what}\n  product {found}\n  oracle  {wanted}")

    def _different(self, person: Person, words: str) -> Different:
        again = f"--accounts {self.accounts} --months {self.months} --seed {self.seed} --only {person.name[1:]}"
        lines = [
            f"account {person.name} at {_time(self._now())}: {words}",
            person.oracle.currency,
            *person.done,
            f"python -m tests.scenarios.walk {again}",
        ]
        return Different("\n".join(lines))


def _time(at: int) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"


def _words(wish: Wish) -> str:
    return " ".join(f"{name}={value}" for name, value in wish._asdict().items() if value)


def _base(oracle: Account) -> object:
    sub = oracle.live
    return sub and (sub.number, sub.status, sub.terms, sub.periods, sub.anchor, sub.pending, sub.update is None)


def _keys(terms: Terms, currency: str) -> set[tuple[str, int]]:
    names = {"extra": "extra.v1.addon"}
    return {
        (f"{names.get(name, f'{terms.plan}.v1.{name}')}.{terms.interval}.{currency}", quantity)
        for name, (_, quantity) in terms.items(currency).items()
    }


def _request(wish: Wish) -> ChangeRequest:
    quantities = {"locations": wish.seats} if wish.seats else {}
    used = {"locations": Decimal(wish.used)} if wish.used else {}
    interval = Interval(wish.interval) if wish.interval else None
    return ChangeRequest(ChangeKind(wish.kind), wish.plan, interval, wish.currency, quantities, used)


def main() -> None:
    """Run one walk."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accounts", type=int, default=200)
    parser.add_argument("--months", type=int, default=14)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="the number of the one account that lives")
    options = parser.parse_args()
    began = time.monotonic()
    walk = Walk(options.accounts, options.months, options.seed, options.only)
    try:
        asyncio.run(walk.run())
    except Different as found:
        print(found)
        sys.exit(1)
    finally:
        for name, number in sorted(walk.count.items()):
            print(f"{number:7} {name}")
        print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
