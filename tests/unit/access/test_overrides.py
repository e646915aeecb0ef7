"""When the command that grants something only repeats what a person granted before."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import pytest

from aggregators.overrides import repeated
from schemas.entitlements import Grant, Operation, Override, SourceKind

SET, ADD = Operation.SET, Operation.ADD


def grant(operation: Operation, value: int, kind: SourceKind = SourceKind.OVERRIDE, starts_ms: int = 0) -> Grant:
    return Grant("calls", kind, f"made at {starts_ms}", operation, Decimal(value), starts_ms, reason="ticket 1")


@pytest.mark.parametrize(
    ("before", "now", "number"),
    [
        ([], grant(SET, 5), None),
        ([grant(SET, 5)], grant(SET, 5), 1),
        ([grant(SET, 5), grant(SET, 7)], grant(SET, 5), None),
        ([grant(SET, 5), grant(SET, 7, SourceKind.CONTRACT)], grant(SET, 5), 1),
        ([grant(ADD, 5), grant(ADD, 7)], grant(ADD, 5), 1),
        ([grant(SET, 5)], grant(ADD, 5), None),
    ],
    ids=["the first", "the same", "set otherwise meanwhile", "a contract beside", "additions", "another operation"],
)
def test_a_grant_repeats_what_is_in_force(before: Sequence[Grant], now: Grant, number: int | None) -> None:
    known = [Override("acme", place, made, "ann", 0) for place, made in enumerate(before, 1)]
    found = repeated(known, now._replace(source="another", starts_ms=9))

    assert (found.number if found else None) == number


def test_what_was_taken_back_is_granted_again() -> None:
    assert repeated([Override("acme", 1, grant(SET, 5), "ann", 0, revoked_ms=3)], grant(SET, 5, starts_ms=9)) is None
