"""Which ClickHouse errors are transient and which need an operator."""

from __future__ import annotations

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError

from schemas.errors import HeldUp, Refused, TidemarkError, Transient
from sinks.clickhouse.client import translated


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Code: 243. DB::Exception: Cannot reserve 1.00 MiB, not enough space. (NOT_ENOUGH_SPACE)", Transient),
        ("Code: 75. DB::Exception: Cannot write to file, errno: 28 (CANNOT_WRITE_TO_FILE_DESCRIPTOR)", Transient),
        ("Code: 76. DB::Exception: Cannot open file x, errno: 24, strerror: … (CANNOT_OPEN_FILE)", Transient),
        ("Code: 76. DB::Exception: Cannot open file x, errno: 13, strerror: … (CANNOT_OPEN_FILE)", HeldUp),
        ("Code: 1001. DB::Exception: in create_directories: No space left on device (STD_EXCEPTION)", Transient),
        ("Code: 27. DB::Exception: Cannot parse 'No space left on device' (CANNOT_PARSE_INPUT)", HeldUp),
        ("Code: 473. DB::Exception: WRITE locking attempt has timed out! (DEADLOCK_AVOIDED)", Transient),
        ("Code: 745. DB::Exception: CPU is overloaded (SERVER_OVERLOADED)", Transient),
        ("Code: 285. DB::Exception: Number of alive replicas (TOO_FEW_LIVE_REPLICAS)", Transient),
        ("Code: 203. DB::Exception: No free connection (NO_FREE_CONNECTION)", Transient),
        ("Code: 173. DB::Exception: Cannot allocate (CANNOT_ALLOCATE_MEMORY)", Transient),
        ("Code: 499. DB::Exception: SlowDown (S3_ERROR)", Transient),
        ("Code: 735. DB::Exception: Cancelled (QUERY_WAS_CANCELLED_BY_CLIENT)", Transient),
        ("Code: 241. DB::Exception: Memory limit (MEMORY_LIMIT_EXCEEDED)", Transient),
        ("Code: 516. DB::Exception: Authentication failed (AUTHENTICATION_FAILED)", Refused),
        ("Code: 164. DB::Exception: Cannot execute query in readonly mode (READONLY)", Refused),
        ("Code: 60. DB::Exception: Table does not exist. (UNKNOWN_TABLE)", HeldUp),
        ("Code: 62. DB::Exception: Syntax error (SYNTAX_ERROR)", HeldUp),
    ],
    ids=lambda value: value.rpartition("(")[2].rstrip(")") if isinstance(value, str) else value.__name__,
)
def test_errors_are_classified_by_whether_they_pass(text: str, expected: type[TidemarkError]) -> None:
    """A full disk or an absent replica must not need a restart once it is repaired."""
    for error in (DatabaseError(text), OperationalError(text)):
        assert type(translated(error)) is expected
