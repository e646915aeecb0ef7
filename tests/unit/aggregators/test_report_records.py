"""The parsing of billing.reports: foreign records have no entries; entries of an unknown version stop the reader."""

from __future__ import annotations

import pytest

from aggregators.report_records import parse_entries
from schemas.errors import OperatorNeeded
from tests.worlds.reconciler import INTENT


@pytest.mark.parametrize("value", [None, b"\xff\xfe", b'["x", 1]', b"[" * 200_000], ids=lambda value: repr(value)[:20])
def test_a_foreign_record_has_no_entries(value: bytes | None) -> None:
    """Otherwise anybody who may append to the topic could stop all billing."""
    assert parse_entries(value) == []


def test_an_entry_of_another_version_stops_the_reader() -> None:
    """The sink could send an intent again if it did not understand the outcome."""
    with pytest.raises(OperatorNeeded, match="version"):
        parse_entries(b'{"kind": "outcome", "identifier": "x", "status": "paused"}')


def test_two_entries_outside_a_list_are_foreign() -> None:
    """No writer of Tidemark makes such a record."""
    one = INTENT.model_dump_json().encode()

    assert parse_entries(one + b"," + one) == []


def test_entries_are_read_from_a_list_with_foreign_values() -> None:
    """A foreign value must not hide an outcome."""
    assert parse_entries(b'["x", ' + INTENT.model_dump_json().encode() + b"]") == [INTENT]
