"""RFC 3339 instants and civil calendar arithmetic in whole numbers.

`datetime` is not used: it ends at year 9999, some of its parsers round below the microsecond, and it has no half-open
month arithmetic. The civil-day algorithms are Howard Hinnant's ("chrono-Compatible Low-Level Date Algorithms").
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from schemas.clock import HOUR_US, MINUTE_MS, SECOND_MS, SECOND_US
from schemas.periods import INSTANT_MAX_MS, INSTANT_MIN_MS

_SHAPE: Final = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)
SECONDS_US: Final = {f"{number:02d}": number * SECOND_US for number in range(60)}
_MILLISECONDS_US: Final = {f".{number:03d}": number * 1000 for number in range(1000)}
_MONTH_DAYS: Final = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def month_days(year: int, month: int) -> int:
    """Days of a month of the proleptic Gregorian calendar."""
    if month == 2 and year % 4 == 0 and (year % 100 != 0 or year % 400 == 0):
        return 29
    return _MONTH_DAYS[month - 1]


def days_from_civil(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01."""
    year -= month <= 2
    era = year // 400
    year_of_era = year - era * 400
    day_of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    day_of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    return era * 146_097 + day_of_era - 719_468


def civil_from_days(days: int) -> tuple[int, int, int]:
    """(year, month, day) of a day since 1970-01-01."""
    days += 719_468
    era = days // 146_097
    day_of_era = days - era * 146_097
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted_month = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * shifted_month + 2) // 5 + 1
    month = shifted_month + (3 if shifted_month < 10 else -9)
    return year_of_era + era * 400 + (month <= 2), month, day


def parse_instant_us(text: str) -> int | None:
    """Microseconds since 1970-01-01T00:00:00Z of an RFC 3339 text, with finer digits cut off.

    None for any other text, a text without an offset, a leap second (`:60`), and an instant that the offset moves out
    of the years 1 to 9999.
    """
    if len(text) in (20, 24) and text[-1] == "Z":
        minute_us, second_us = _minute_us(text[:17]), SECONDS_US.get(text[17:19])
        if minute_us is not None and second_us is not None:
            if len(text) == 20:
                return minute_us + second_us
            millisecond_us = _MILLISECONDS_US.get(text[19:23])
            if millisecond_us is not None:
                return minute_us + second_us + millisecond_us
    return _parse_slowly(text)


def why_no_instant(text: str) -> str:
    """Why `parse_instant_us` returns None for a text, in words that follow the text."""
    if _SHAPE.fullmatch(text) is None:
        return "is no RFC 3339 time with an offset"
    return "names a day, a time of day or an offset that does not exist"


@lru_cache(maxsize=16_384)
def _minute_us(prefix: str) -> int | None:
    return _parse_slowly(prefix + "00Z")


def _parse_slowly(text: str) -> int | None:
    shape = _SHAPE.fullmatch(text)
    if shape is None:
        return None
    year, month, day, hour, minute, second = (int(part) for part in shape.groups()[:6])
    if not (1 <= month <= 12 and year >= 1 and 1 <= day <= month_days(year, month)):
        return None
    if hour > 23 or minute > 59 or second > 59:
        return None
    seconds = days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second
    if shape[8]:
        offset_hour, offset_minute = int(shape[9]), int(shape[10])
        if offset_hour > 23 or offset_minute > 59:
            return None
        offset_s = offset_hour * 3600 + offset_minute * 60
        seconds += -offset_s if shape[8] == "+" else offset_s
    if not INSTANT_MIN_MS <= seconds * SECOND_MS <= INSTANT_MAX_MS:
        return None
    return seconds * SECOND_US + int((shape[7] or "").ljust(6, "0")[:6])


def format_instant_ms(instant_ms: int) -> str:
    """RFC 3339 text in UTC, with milliseconds only if they are not zero."""
    minutes, rest_ms = divmod(instant_ms, MINUTE_MS)
    seconds, milliseconds = divmod(rest_ms, SECOND_MS)
    fraction = f".{milliseconds:03d}" if milliseconds else ""
    return f"{_minute_text(minutes)}:{seconds:02d}{fraction}Z"


@lru_cache(maxsize=16_384)
def _minute_text(minutes: int) -> str:
    """A minute since 1970-01-01T00:00:00Z without its seconds. Many instants are of the same minutes."""
    days, minute = divmod(minutes, 1440)
    year, month, day = civil_from_days(days)
    return f"{year:04d}-{month:02d}-{day:02d}T{minute // 60:02d}:{minute % 60:02d}"


def hour_of_us(instant_us: int) -> int:
    """The start of the UTC hour, in milliseconds, of an instant in microseconds."""
    return instant_us // HOUR_US * 3_600_000
