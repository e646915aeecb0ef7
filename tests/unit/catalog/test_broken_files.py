"""Broken catalog files are read or refused with a line, a field and words for people; `make fuzz` reads more."""

from __future__ import annotations

from tests.fuzz.files import fuzz_files


def test_a_broken_file_is_refused_by_line_and_field_never_by_a_traceback() -> None:
    """Whoever edits prices by hand looks for the line."""
    outcomes = fuzz_files(0, 200)

    assert "refused 1" in outcomes
    assert "read " in outcomes
