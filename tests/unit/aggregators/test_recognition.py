"""Recognition: an example business whose days were computed by hand, and random lines against an oracle that lays out
every cent."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Final

import pytest

from aggregators.recognition import (
    Totals,
    billed_until,
    deferred_at,
    effects_of,
    lines_of,
    recognized_until,
    schedule_of,
    spread,
    unbilled_at,
)
from schemas.clock import DAY_MS
from schemas.recognition import (
    ChangeKind,
    CreditUse,
    Effect,
    FinalLine,
    InvoiceBook,
    LineChange,
    Pace,
    Recognized,
    Schedule,
)

NOTE, VOID, BAD = ChangeKind.CREDIT_NOTE, ChangeKind.VOID, ChangeKind.UNCOLLECTIBLE
GONE = ChangeKind.ENDED


def ms(day: str) -> int:
    """An instant of a text such as `2026-10-01`."""
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) * 1_000


def number(day: str) -> int:
    return ms(day) // DAY_MS


# An example business of ten lines, in dollars. It is docs/revenue.md's.
# account: amount, from, to, when the invoice became final; then what happened.
LINES: Final = """
ann     300  2026-10-01 2026-11-01 2026-10-01
bob     310  2026-10-16 2026-11-16 2026-10-16
cleo   3650  2026-10-01 2027-10-01 2026-10-01
dora   -150  2026-11-16 2026-12-01 2026-12-01
dora     75  2026-11-16 2026-12-01 2026-12-01
emil    610  2026-10-16 2026-12-16 2026-10-16  2026-11-16 credit_note 122
fay     300  2026-11-01 2026-12-01 2026-11-01  2026-12-10 void
gus     310  2026-10-16 2026-11-16 2026-10-16  2026-11-01 uncollectible
hana    310  2026-12-01 2027-01-01 2026-12-01
ivo     100  2026-11-01 2026-12-01 2026-12-01
june    500  2026-11-01 2026-11-01 2026-11-01
"""
# hana's refund of 100 has no credit note: cash, and no line of this table. ivo used 60 % on November 10 and 40 % on
# November 20. june bought 1,000 credits that expire with the year: 300 were drawn in November, 200 in December.
PACES: Final = {
    "ivo": Pace(((number("2026-11-10"), 6_000), (number("2026-11-20"), 4_000)), 10_000, number("2026-11-30"), True),
    "june": Pace(((number("2026-11-05"), 300), (number("2026-12-05"), 200)), 1_000, number("2026-12-31"), False),
}
# Month: recognized of each account.
RECOGNIZED: Final = """
           ann   bob  cleo  dora  emil   fay   gus  hana   ivo  june
2026-10    300   160   310     0   160     0   160     0     0     0
2026-11      0   150   300     0   208   300     0     0   100   150
2026-12      0     0   310   -75   120  -300     0   310     0   350
2027-01      0     0   310     0     0     0     0     0     0     0
"""
# Month: earned, broken, credited, voided, bad debt; billed, taken back; deferred and unbilled at the month's end.
FIGURES: Final = """
2026-10   1090     0     0     0     0   5180     0   4090     0
2026-11   1270     0   -62     0   160    800  -272   3510   100
2026-12    765   250     0  -300     0    335  -300   2730     0
2027-01    310     0     0     0     0      0     0   2420     0
"""
STARTS: Final = [number(f"{month}-01") for month in ("2026-10", "2026-11", "2026-12", "2027-01", "2027-02")]


def business() -> Mapping[str, Sequence[Schedule]]:
    found: dict[str, list[Schedule]] = {}
    for place, text in enumerate(LINES.strip().splitlines()):
        account, dollars, start, end, final, *happened = text.split()
        changes = []
        if happened:
            at, kind, *minor = happened
            changes = [LineChange(ms(at), ChangeKind(kind), 100 * int(minor[0]) if minor else 0, 1)]
        line = FinalLine(
            f"il_{place}", f"in_{place}", account, "usd", 100 * int(dollars), ms(start), ms(end), ms(final),
            PACES.get(account), tuple(changes),
        )  # fmt: skip
        found.setdefault(account, []).append(schedule_of(line))
    return found


def test_the_example_business_account_by_account() -> None:
    accounts, *rows = [line.split() for line in RECOGNIZED.strip("\n").splitlines()]
    lines = business()
    for (month, *cells), (start, end) in zip(rows, pairwise(STARTS), strict=True):
        found = {
            account: sum(recognized_until(each, end) - recognized_until(each, start) for each in lines[account])
            for account in accounts
        }
        assert found == {account: 100 * int(cell) for account, cell in zip(accounts, cells, strict=True)}, month


def months() -> Sequence[Recognized]:
    totals = Totals(STARTS)
    for own in business().values():
        for each in own:
            totals.add_line(each)
    return totals.rows()


def test_the_example_business_by_month() -> None:
    found = [
        [*(each.effects[effect] for effect in (Effect.EARNED, Effect.BREAKAGE, Effect.CREDIT_NOTE, Effect.VOID)),
         each.bad_debt, each.billed, each.taken_back, each.deferred_end, each.unbilled_end]
        for each in months()
    ]  # fmt: skip
    assert found == [[100 * int(cell) for cell in line.split()[1:]] for line in FIGURES.strip().splitlines()]


def test_what_is_deferred_rolls_forward() -> None:
    for each in months():
        start, end = each.deferred_start - each.unbilled_start, each.deferred_end - each.unbilled_end
        assert start + each.billed + each.taken_back - each.recognized == end


def line(amount: int, start: str, end: str, final: str, *changes: LineChange, pace: Pace | None = None) -> Schedule:
    return schedule_of(FinalLine("il", "in", "cus", "usd", amount, ms(start), ms(end), ms(final), pace, changes))


def at(day: str, kind: ChangeKind, minor: int = 0, whole: int = 0) -> LineChange:
    return LineChange(ms(day), kind, minor, whole)


USED: Final = Pace(((number("2027-01-02"), 3),), 4, number("2027-01-03"), True)
# A schedule and what each day from 2027-01-01 on recognizes.
DAYS: Final[Mapping[str, tuple[Schedule, Sequence[int]]]] = {
    "ten cents in three days": (line(10, "2027-01-01", "2027-01-04", "2027-01-01"), [3, 3, 4, 0]),
    "a credit has the same days": (line(-10, "2027-01-01", "2027-01-04", "2027-01-01"), [-3, -3, -4, 0]),
    "within one day": (line(10, "2027-01-02 10:00", "2027-01-02 11:00", "2027-01-02"), [0, 10, 0]),
    "days begin with the period's": (line(10, "2027-01-01 22:00", "2027-01-03 22:00", "2027-01-01 23:00"), [5, 5, 0]),
    "final late: that day catches up": (line(10, "2027-01-01", "2027-01-06", "2027-01-03"), [0, 0, 6, 2, 2, 0]),
    "final after the end": (line(10, "2027-01-01", "2027-01-02", "2027-01-03"), [0, 0, 10, 0]),
    "final before the begin": (line(10, "2027-01-03", "2027-01-05", "2027-01-01"), [0, 0, 5, 5]),
    "usage: before it is final, the rest on the last day": (
        line(11, "2027-01-01", "2027-01-04", "2027-01-05", pace=USED), [0, 8, 3, 0, 0],
    ),
    "usage of which nothing was reported": (
        line(11, "2027-01-01", "2027-01-04", "2027-01-05", pace=Pace((), 0, number("2027-01-03"), True)), [0, 0, 11],
    ),
    "usage that a correction takes back": (
        line(8, "2027-01-01", "2027-01-04", "2027-01-05", pace=USED._replace(
            by_day=((number("2027-01-01"), 4), (number("2027-01-02"), -2), (number("2027-01-03"), 2)))), [8, -4, 4],
    ),
    "credits that never expire": (
        line(8, "2027-01-01", "2027-01-01", "2027-01-01", pace=USED._replace(last_day=None, is_usage=False)), [0, 6, 0],
    ),
    "a credit note takes back, and lowers the rest": (
        line(40, "2027-01-01", "2027-01-05", "2027-01-01", at("2027-01-03", NOTE, 20)), [10, 10, -5, 5, 0],
    ),
    "a credit note of all": (
        line(40, "2027-01-01", "2027-01-05", "2027-01-01", at("2027-01-03", NOTE, 40)), [10, 10, -20, 0],
    ),
    "a credit note that is voided": (
        line(40, "2027-01-01", "2027-01-05", "2027-01-01", at("2027-01-02", NOTE, 20),
             at("2027-01-03", ChangeKind.NOTE_VOIDED, 20)), [10, 0, 20, 10, 0],
    ),
    "a credit note after the end": (
        line(40, "2027-01-01", "2027-01-03", "2027-01-01", at("2027-01-04", NOTE, 10)), [20, 20, 0, -10, 0],
    ),
    "a credit note on the day of a late invoice": (
        line(40, "2027-01-01", "2027-01-03", "2027-01-04", at("2027-01-04", NOTE, 10)), [0, 0, 0, 30, 0],
    ),
    "a void takes all back": (
        line(40, "2027-01-01", "2027-01-05", "2027-01-01", at("2027-01-03", VOID)), [10, 10, -20, 0, 0],
    ),
    "nobody pays: what was earned stays, the rest does not come": (
        line(40, "2027-01-01", "2027-01-05", "2027-01-01", at("2027-01-03", BAD, 0, 40)), [10, 10, 0, 0, 0],
    ),
    "a half is paid and goes on": (
        line(40, "2027-01-01", "2027-01-05", "2027-01-01", at("2027-01-03", BAD, 20, 40)), [10, 10, 5, 5, 0],
    ),
    "credits that are taken away: the rest is not earned": (
        line(8, "2027-01-01", "2027-01-01", "2027-01-01", at("2027-01-03", GONE),
             pace=USED._replace(last_day=None, is_usage=False)), [0, 6, 0, 0],
    ),
    "credits that are taken away and credited: what was drawn stays": (
        line(8, "2027-01-01", "2027-01-01", "2027-01-01", at("2027-01-03", GONE), at("2027-01-03 10:00", NOTE, 3),
             pace=USED._replace(last_day=None, is_usage=False)), [0, 6, -1, 0],
    ),
    "a credit note of more than the line that is voided": (
        line(40, "2027-01-01", "2027-01-05", "2027-01-01", at("2027-01-02", NOTE, 41),
             at("2027-01-03", ChangeKind.NOTE_VOIDED, 41)), [10, -10, 30, 10, 0],
    ),
    "a credit note that is voided after the invoice was": (
        line(40, "2027-01-01", "2027-01-05", "2027-01-01", at("2027-01-02", NOTE, 20), at("2027-01-03", VOID),
             at("2027-01-04", ChangeKind.NOTE_VOIDED, 20)), [10, 0, -10, 0, 0],
    ),
    "given up, then voided": (
        line(40, "2027-01-01", "2027-01-05", "2027-01-01", at("2027-01-02", BAD, 0, 40), at("2027-01-03", VOID)),
        [10, 0, -10, 0],
    ),
    "given up, then credited": (
        line(40, "2027-01-01", "2027-01-05", "2027-01-01", at("2027-01-03", BAD, 0, 40), at("2027-01-04", NOTE, 15)),
        [10, 10, 0, -15, 0],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("schedule", "expected"), DAYS.values(), ids=DAYS)
def test_the_days_of_a_line(schedule: Schedule, expected: Sequence[int]) -> None:
    first = number("2027-01-01")
    days = range(first, first + len(expected))
    assert list(expected) == [recognized_until(schedule, each + 1) - recognized_until(schedule, each) for each in days]
    assert list(expected) == [sum(effects_of(schedule, each, each + 1).values()) for each in days]


class Oracle:
    """The books of one line, day by day, cent by cent: each cent has the day on which it is earned. Shares nothing with
    the product but the rules: a day books what changes, and nothing is computed for a span."""

    def __init__(self, amount: int, first: int, days: int, final: int) -> None:
        self.sign = 1 if amount > 0 else -1
        self.cents = [self._day_of(cent, abs(amount), first, days) for cent in range(1, abs(amount) + 1)]
        self.first, self.days, self.final = first, days, final
        self.frozen = self.booked = self.bad_debt = 0
        self.journal: list[int] = []

    @staticmethod
    def _day_of(cent: int, amount: int, first: int, days: int) -> int:
        # The first day at whose end so many cents are earned.
        return next(first + day for day in range(days) if amount * (day + 1) // days >= cent)

    def _lay(self, amount: int) -> None:
        self.cents = [self._day_of(cent, amount, self.first, self.days) for cent in range(1, amount + 1)]

    def _before(self, day: int) -> int:
        return sum(at < day for at in self.cents)

    def credit(self, minor: int) -> None:
        """Cents of what goes on go first, then those that were written off."""
        left = max(0, len(self.cents) - minor)
        self.frozen = max(0, self.frozen - (minor - (len(self.cents) - left)))
        self._lay(left)

    def void(self) -> None:
        self.cents, self.frozen = [], 0

    def give_up(self, day: int, paid: int, whole: int) -> None:
        earned = self._before(day)
        self._lay(len(self.cents) * paid // whole)
        lost = earned - self._before(day)
        self.frozen, self.bad_debt = self.frozen + lost, self.bad_debt + lost

    def close(self, day: int) -> int:
        """Book a day; returns what it recognizes."""
        total = self.frozen + sum(at <= day for at in self.cents) if day >= self.final else 0
        booked, self.booked = self.sign * (total - self.booked), total
        return booked


@pytest.mark.parametrize("seed", range(40))
def test_a_random_line_of_24_months_is_exact_on_every_day(seed: int) -> None:
    dice = random.Random(seed)
    first, days = number("2027-01-01") + dice.randrange(30), dice.choice([1, 7, 28, 31, 90, 365, 366, 730])
    amount = dice.choice([-1, 1]) * dice.randrange(1, 700)
    sign, final = (1 if amount > 0 else -1), first + dice.choice([0, 0, 0, 1, 12, 40])
    oracle = Oracle(amount, first, days, final)
    happens = {}
    for day in sorted(dice.sample(range(final, first + 760), dice.randrange(4))):
        kind = dice.choice([NOTE, NOTE, NOTE, BAD, VOID])
        whole = dice.randrange(1, 100)
        happens[day] = (kind, dice.randrange(1, 300) if kind is NOTE else dice.randrange(whole), whole)
    changes = [
        LineChange(day * DAY_MS + dice.randrange(DAY_MS), kind, sign * minor if kind is NOTE else minor, whole)
        for day, (kind, minor, whole) in happens.items()
    ]
    dice.shuffle(changes)
    start_ms = first * DAY_MS + dice.randrange(DAY_MS)
    made = FinalLine("il", "in", "cus", "usd", amount, start_ms, start_ms + days * DAY_MS, final * DAY_MS + 5,
                     None, tuple(changes))  # fmt: skip
    schedule = schedule_of(made)
    total = 0
    for day in range(first - 1, first + 790):
        if day in happens:
            kind, minor, whole = happens[day]
            if kind is NOTE:
                oracle.credit(minor)
            elif kind is VOID:
                oracle.void()
            else:
                oracle.give_up(day, minor, whole)
        booked = oracle.close(day)
        total += booked
        found = effects_of(schedule, day, day + 1)
        assert sum(found.values()) == booked, f"seed {seed}, day {day - first}"
        assert recognized_until(schedule, day + 1) == total
        billed = sign * (oracle.frozen + len(oracle.cents)) if day >= final else 0
        assert billed_until(schedule, day + 1) == billed
        assert deferred_at(schedule, day + 1) == billed - total
        assert unbilled_at(schedule, day + 1) == 0
    assert sum(each.bad_debt for each in schedule.segments) == sign * oracle.bad_debt
    end = first + 790
    assert total == recognized_until(schedule, end) == billed_until(schedule, end)


@pytest.mark.parametrize(
    ("amount", "weights", "expected"),
    [
        (100, [1, 1, 1], [33, 33, 34]), (50, [100, -30], [71, -21]), (70, [100, -30], [100, -30]), (5, [], []),
        (7, [0, 7], [0, 7]), (3, [5, -5], [0, 0]),
    ],
    ids=str,
)  # fmt: skip
def test_an_amount_is_spread_exactly(amount: int, weights: Sequence[int], expected: Sequence[int]) -> None:
    assert spread(amount, weights) == list(expected)


INVOICE: Final[Mapping[str, Any]] = {
    "id": "in_1", "customer_id": "cus_1", "currency": "usd", "status": "paid", "finalized_ms": ms("2027-01-01"),
    "voided_ms": None, "uncollectible_ms": None, "tax_minor": 0, "paid_minor": 0, "remaining_minor": 0,
}  # fmt: skip


def row(identifier: str, amount: int, **columns: Any) -> dict[str, Any]:
    return {
        "id": identifier, "amount_minor": amount, "discount_minor": 0, "inclusive_tax_minor": 0, "credit_minor": 0,
        "start_ms": ms("2027-01-01"), "end_ms": ms("2027-02-01"), **columns,
    }  # fmt: skip


def note(*lines: Mapping[str, Any], **columns: Any) -> dict[str, Any]:
    made = {"id": "cn_1", "created_ms": ms("2027-01-05"), "effective_ms": None, "voided_ms": None, "tax_minor": 0}
    return {**made, **columns, "lines": [{"credit_note_id": "cn_1", **each} for each in lines]}


def part_of(amount: int, line: str | None = None, **columns: Any) -> dict[str, Any]:
    return {"invoice_line_id": line, "amount_minor": amount, "discount_minor": 0, "inclusive_tax_minor": 0, **columns}


def read(invoice: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], *notes: dict[str, Any]) -> list[FinalLine]:
    parts = [each for made in notes for each in made.pop("lines")]
    return list(lines_of(InvoiceBook({**INVOICE, **invoice}, lines, notes, parts, {}, {})))


def test_a_line_is_net_of_taxes_discounts_and_credits() -> None:
    lines = [row("a", 1_000, discount_minor=100, inclusive_tax_minor=30, credit_minor=20), row("b", 0), row("c", -50)]
    assert [(each.line, each.amount_minor) for each in read({}, lines)] == [("a", 850), ("c", -50)]


@pytest.mark.parametrize(
    ("invoice", "made", "expected"),
    [
        pytest.param({}, note(part_of(90)), [("a", 60), ("b", 30)], id="an amount is spread"),
        pytest.param({}, note(part_of(90, "b")), [("b", 90)], id="of a line"),
        pytest.param(
            {}, note(part_of(90, "b", discount_minor=10, inclusive_tax_minor=5)), [("b", 75)], id="net like a line"
        ),
        pytest.param({}, note(part_of(30, "b"), part_of(60)), [("a", 40), ("b", 50)], id="both"),
        pytest.param({"tax_minor": 60}, note(part_of(120)), [("a", 66), ("b", 34)], id="an amount has its tax within"),
        pytest.param(
            {"tax_minor": 60}, note(part_of(120), tax_minor=20), [("a", 80), ("b", 40)], id="unless the note says it"
        ),
    ],
)
def test_a_credit_note_is_spread(
    invoice: Mapping[str, Any], made: dict[str, Any], expected: Sequence[tuple[str, int]]
) -> None:
    found = read(invoice, [row("a", 200), row("b", 100)], dict(made))
    assert [(each.line, change.minor) for each in found for change in each.changes] == list(expected)


@pytest.mark.parametrize(
    ("invoice", "expected"),
    [
        pytest.param({"status": "void", "voided_ms": 9}, [LineChange(9, VOID)], id="void"),
        pytest.param(
            {"status": "uncollectible", "uncollectible_ms": 9, "paid_minor": 40, "remaining_minor": 60},
            [LineChange(9, BAD, 40, 100)], id="given up",
        ),
        pytest.param({"status": "paid", "uncollectible_ms": 9, "paid_minor": 100}, [], id="given up, then paid"),
        pytest.param({"status": "void", "voided_ms": 9, "uncollectible_ms": 5}, [LineChange(9, VOID)], id="both"),
    ],
)  # fmt: skip
def test_how_an_invoice_ended(invoice: Mapping[str, Any], expected: Sequence[LineChange]) -> None:
    (found,) = read(invoice, [row("a", 100)])
    assert list(found.changes) == list(expected)


def test_credits_are_earned_as_they_are_drawn() -> None:
    """What expires is earned on its last day; what is taken away ends on the day before its credit note."""
    day = number("2027-01-05")
    uses = {
        "a": CreditUse(100, [(day, 30), (day + 2, -5)], expires_ms=ms("2027-02-01")),
        "b": CreditUse(1),
        "c": CreditUse(100, [(day, 30)], voided_ms=ms("2027-01-09 17:00")),
    }
    lines = [row(name, 1_000) for name in uses]
    found = [schedule_of(each) for each in lines_of(InvoiceBook({**INVOICE}, lines, [], [], {}, uses))]
    days = [number(each) for each in ("2027-01-06", "2027-01-08", "2027-02-01")]
    assert [[recognized_until(each, at) for at in days] for each in found] == [
        [300, 250, 1_000], [0, 0, 0], [300, 300, 300],
    ]  # fmt: skip
    assert effects_of(found[0], days[1], days[2])[Effect.BREAKAGE] == 750
    assert [deferred_at(each, days[2]) for each in found] == [0, 1_000, 0]


def test_a_voided_note_gives_back() -> None:
    made = note(part_of(40), effective_ms=7, voided_ms=9)
    (found,) = read({}, [row("a", 100)], made)
    assert found.changes == (LineChange(7, NOTE, 40), LineChange(9, ChangeKind.NOTE_VOIDED, 40))
