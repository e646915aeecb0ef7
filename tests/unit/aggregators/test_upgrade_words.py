"""Upgrades in words, for every currency and kind of amount."""

from __future__ import annotations

import pytest

from aggregators.instants import parse_instant_us
from aggregators.upgrade_words import date_text, money_text, upgrade_words
from schemas.periods import Interval
from schemas.upgrades import Money, Renewal


def at(text: str) -> int:
    return (parse_instant_us(f"{text}Z") or 0) // 1_000


NOW = at("2026-11-21T00:00:00")
END = at("2026-12-10T00:00:00")
MONTHLY = Renewal(Money(14900, "usd", 2), Interval.MONTH, END, has_usage=False)


@pytest.mark.parametrize(
    ("money", "text"),
    [
        (Money(3167, "usd", 2), "$31.67"),
        (Money(-3167, "usd", 2), "$31.67"),
        (Money(154800, "eur", 2), "€1,548.00"),
        (Money(5, "gbp", 2), "£0.05"),
        (Money(228000, "jpy", 0), "¥228,000"),
        (Money(1200, "chf", 2), "12.00 CHF"),
        (Money(1234567, "kwd", 3), "1,234.567 KWD"),
        (Money(10**15, "usd", 2), "$10,000,000,000,000.00"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_money(money: Money, text: str) -> None:
    assert money_text(money) == text


@pytest.mark.parametrize(
    ("instant", "text"),
    [
        ("2026-12-10T00:00:00", "December 10"),
        ("2026-12-31T23:59:59", "December 31"),
        ("2027-01-01T00:00:00", "January 1, 2027"),
    ],
)
def test_a_date_is_that_of_utc(instant: str, text: str) -> None:
    assert date_text(at(instant), NOW) == text


WORDS = {
    "the rest of a period": (
        (3167, END, MONTHLY),
        "Pro includes it: $31.67 today for the 19 days left, then $149.00 a month from December 10.",
    ),
    "a part of a day more": (
        (3167, END + 1, MONTHLY),
        "Pro includes it: $31.67 today for the 20 days left, then $149.00 a month from December 10.",
    ),
    "the last day": (
        (500, NOW + 60_000, MONTHLY),
        "Pro includes it: $5.00 today for the day left, then $149.00 a month from December 10.",
    ),
    "a whole period": (
        (14900, None, MONTHLY),
        "Pro includes it: $149.00 today, then $149.00 a month from December 10.",
    ),
    "a credit": (
        (-4750, END, MONTHLY),
        "Pro includes it: a credit of $47.50 today for the 19 days left, then $149.00 a month from December 10.",
    ),
    "nothing now": ((0, END, MONTHLY), "Pro includes it: nothing today, then $149.00 a month from December 10."),
    "usage beside it": (
        (0, None, MONTHLY._replace(has_usage=True)),
        "Pro includes it: nothing today, then $149.00 a month and the usage from December 10.",
    ),
    "usage alone": (
        (0, None, MONTHLY._replace(amount=Money(0, "usd", 2), has_usage=True)),
        "Pro includes it: nothing today, then the usage from December 10.",
    ),
    "nothing ever": (
        (0, None, MONTHLY._replace(amount=Money(0, "usd", 2))),
        "Pro includes it: nothing today, then nothing from December 10.",
    ),
    "it ends with the period": ((3167, END, None), "Pro includes it: $31.67 today for the 19 days left."),
}


@pytest.mark.parametrize(("facts", "text"), WORDS.values(), ids=WORDS)
def test_words(facts: tuple[int, int | None, Renewal | None], text: str) -> None:
    minor, until_ms, renewal = facts

    assert upgrade_words("Pro includes it", Money(minor, "usd", 2), until_ms, renewal, NOW) == text
