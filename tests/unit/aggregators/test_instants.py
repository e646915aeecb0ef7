"""Instants: the parser and the civil calendar agree with the standard library's `datetime`, and refuse other texts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregators.instants import civil_from_days, days_from_civil, format_instant_ms, month_days, parse_instant_us
from oracle.rules import time_us_of
from schemas.periods import INSTANT_MAX_MS, INSTANT_MIN_MS

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST, LAST = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
LONGEST_S = int((LAST - FIRST).total_seconds())


def microseconds(moment: datetime) -> int:
    """Whole microseconds since 1970; exact, while `timestamp` returns a float."""
    return (moment - EPOCH) // timedelta(microseconds=1)


@settings(max_examples=300, deadline=None)
@given(
    whole=st.integers(86_400, LONGEST_S - 86_400).map(lambda seconds: FIRST + timedelta(seconds=seconds)),
    fraction=st.text("0123456789", max_size=20),
    offset_minutes=st.none() | st.integers(-1439, 1439),
    letters=st.sampled_from(["TZ", "tz"]),
)
def test_any_rfc_3339_text_is_its_instant(
    whole: datetime, fraction: str, offset_minutes: int | None, letters: str
) -> None:
    """An offset moves the instant. Digits below the microsecond are cut off, never rounded up into the next period."""
    zone = letters[1]
    if offset_minutes is not None:
        hours, minutes = divmod(abs(offset_minutes), 60)
        zone = f"{'-' if offset_minutes < 0 else '+'}{hours:02d}:{minutes:02d}"
    clock = whole.strftime("%H:%M:%S") + (f".{fraction}" if fraction else "")
    text = f"{whole.year:04d}-{whole.month:02d}-{whole.day:02d}{letters[0]}{clock}{zone}"

    expected = microseconds(whole - timedelta(minutes=offset_minutes or 0)) + int(fraction[:6].ljust(6, "0"))

    assert parse_instant_us(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("1970-01-01T00:00:00Z", 0, id="the epoch"),
        pytest.param("1969-12-31T23:59:59.999999Z", -1, id="one microsecond before it"),
        pytest.param("0001-01-01T00:00:00Z", INSTANT_MIN_MS * 1000, id="first instant"),
        pytest.param("9999-12-31T23:59:59.999Z", INSTANT_MAX_MS * 1000, id="last millisecond"),
        pytest.param("9999-12-31T23:59:59.99999999999999Z", INSTANT_MAX_MS * 1000 + 999, id="last microsecond"),
        pytest.param("2026-03-31T23:59:59.999999999Z", 1_775_001_599_999_999, id="cut, not rounded into April"),
        pytest.param("2026-03-31T23:59:59.9Z", 1_775_001_599_900_000, id="one digit is tenths"),
        pytest.param("2026-04-01T01:30:00+01:30", 1_775_001_600_000_000, id="east of UTC"),
        pytest.param("2026-03-31T18:30:00-05:30", 1_775_001_600_000_000, id="west of UTC"),
        pytest.param("2026-04-01T00:00:00-00:00", 1_775_001_600_000_000, id="unknown offset is UTC"),
        pytest.param("2024-02-29T00:00:00Z", 1_709_164_800_000_000, id="leap day"),
        pytest.param("2000-02-29T00:00:00Z", 951_782_400_000_000, id="leap day of a fourth century"),
    ],
)
def test_instants_at_the_edges(text: str, expected: int) -> None:
    """Fixed numbers, because parser and `datetime` could share an error."""
    assert parse_instant_us(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("2026-03-01", id="a date"),
        pytest.param("2026-03-01T00:00:00", id="no offset"),
        pytest.param("2026-03-01 00:00:00Z", id="a space"),
        pytest.param("2026-03-01T00:00Z", id="no seconds"),
        pytest.param("2026-3-1T00:00:00Z", id="one digit"),
        pytest.param("26-03-01T00:00:00Z", id="two digits of year"),
        pytest.param("12026-03-01T00:00:00Z", id="five digits of year"),
        pytest.param("0000-01-01T00:00:00Z", id="year 0"),
        pytest.param("2026-00-01T00:00:00Z", id="month 0"),
        pytest.param("2026-13-01T00:00:00Z", id="month 13"),
        pytest.param("2026-04-31T00:00:00Z", id="31 April"),
        pytest.param("2025-02-29T00:00:00Z", id="no leap year"),
        pytest.param("2100-02-29T00:00:00Z", id="a century is no leap year"),
        pytest.param("2026-03-01T24:00:00Z", id="hour 24"),
        pytest.param("2026-03-01T00:60:00Z", id="minute 60"),
        pytest.param("2026-03-01T00:00:60Z", id="leap second"),
        pytest.param("2026-03-01T00:00:00.Z", id="a point without digits"),
        pytest.param("2026-03-01T00:00:00,5Z", id="a comma"),
        pytest.param("2026-03-01T00:00:00+24:00", id="offset of a day"),
        pytest.param("2026-03-01T00:00:00+00:60", id="offset of sixty minutes"),
        pytest.param("2026-03-01T00:00:00+0100", id="offset without a colon"),
        pytest.param("2026-03-01T00:00:00Z\n", id="a line break after it"),
        pytest.param(" 2026-03-01T00:00:00Z", id="a space before it"),
        pytest.param("٢٠٢٦-03-01T00:00:00Z", id="digits of another script"),
        pytest.param("2026-03-01T00:00:٠٠Z", id="seconds of another script"),
        pytest.param("0001-01-01T00:00:00+00:01", id="moved before year 1"),
        pytest.param("9999-12-31T23:59:59-00:01", id="moved beyond year 9999"),
        pytest.param("1772323200", id="Unix seconds"),
    ],
)
def test_text_that_is_no_instant_is_refused(text: str) -> None:
    """The product and the oracle both refuse the text."""
    assert parse_instant_us(text) is None
    with pytest.raises(ValueError, match=r".+"):
        time_us_of(text)


@settings(max_examples=200, deadline=None)
@given(st.text("0123456789-:.TtZz+ ", max_size=30) | st.text(max_size=30))
def test_any_text_is_an_instant_for_both_or_for_none(text: str) -> None:
    """Parser and oracle agree about any text that a producer may write."""
    try:
        expected = time_us_of(text)
    except ValueError:
        expected = None

    assert parse_instant_us(text) == expected


@given(st.integers((FIRST - EPOCH).days, (LAST - EPOCH).days))
def test_civil_days_are_those_of_datetime(days: int) -> None:
    """In both directions, for every day that `datetime` knows."""
    moment = EPOCH + timedelta(days=days)

    assert civil_from_days(days) == (moment.year, moment.month, moment.day)
    assert days_from_civil(moment.year, moment.month, moment.day) == days


@pytest.mark.parametrize(
    ("year", "expected"),
    [(2023, 28), (2024, 29), (1900, 28), (2000, 29), (2100, 28), (2400, 29)],
    ids=["common", "leap", "century", "fourth century", "next century", "2400"],
)
def test_february_follows_the_leap_year_rule(year: int, expected: int) -> None:
    """Every fourth year is a leap year, except every hundredth, except every four-hundredth."""
    assert month_days(year, 2) == expected


@given(st.integers(INSTANT_MIN_MS, INSTANT_MAX_MS))
def test_formatted_instants_are_parsed_back(instant_ms: int) -> None:
    """A user can copy an instant from an answer into a question."""
    assert parse_instant_us(format_instant_ms(instant_ms)) == instant_ms * 1000
