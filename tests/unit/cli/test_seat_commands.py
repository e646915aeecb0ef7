"""What `tidemark seats` prints, hands on and ends with."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from pipeline.changes.seating import SeatWish, Standing
from pipeline.commands import seats
from pipeline.commands.seats import Listed
from schemas.entitlements import UNLIMITED
from schemas.errors import InvalidInput
from schemas.seats import Holders, Seat, SeatState
from tests.unit.cli.command_lines import run

SEAT = Seat("seat_1", "acme", "members", "user_1", SeatState.RESERVED, 0, 0, 3_600_000)
ACTIVE = SEAT._replace(state=SeatState.ACTIVE, expires_ms=None)
LISTED = Listed(
    [
        Standing("members", Holders(1, 2), Decimal(5), 5, can_grow=True),
        Standing("locations", Holders(), UNLIMITED, 0, can_grow=False),
    ],
    [SEAT], 1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of a deployment that nothing opens."""
    for name, value in {"LOG_URL": "embedded:///nowhere", "SECRET": "s" * 40, "SQL_URL": "postgresql://x"}.items():
        monkeypatch.setenv(f"TIDEMARK_{name}", value)


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, answer: Any) -> list[tuple[Any, ...]]:
    """Answer a command with a value, or an error; returns what it is called with."""
    calls: list[tuple[Any, ...]] = []

    async def call(_settings: Any, *arguments: Any) -> Any:
        calls.append(arguments)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(seats, name, call)
    return calls


def test_the_seats_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(monkeypatch, "list_seats", LISTED)
    result = run(["seats", "list", "acme", "--feature", "members"])

    assert (calls, result.code) == ([("acme", "members")], 0)
    assert result.out.splitlines() == [
        "members: 3 held (1 reserved), 5 allowed, quantity 5, and more can be bought",
        "locations: 0 held (0 reserved), unlimited allowed, quantity 0",
        "seat_1  members  reserved until 1970-01-01T01:00:00Z  user_1",
    ]
    answer = json.loads(run(["seats", "list", "acme", "--json"]).out)
    assert [(each["feature"], each["allowed"]) for each in answer["features"]] == [
        ("members", "5"), ("locations", "unlimited"),
    ]  # fmt: skip
    assert answer["seats"][0]["holder"] == "user_1"


def test_a_seat_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(monkeypatch, "add_seat", (SEAT, True))
    result = run(["seats", "add", "acme", "members", "user_1", "--reserve", "--by", "ann"])

    assert calls == [(SeatWish("acme", "members", "user_1", is_reserved=True), "ann")]
    assert (result.code, result.out) == (0, "seat_1  members  reserved until 1970-01-01T01:00:00Z  user_1\n")
    assert json.loads(run(["seats", "add", "acme", "members", "user_1", "--json"]).out)["id"] == "seat_1"


@pytest.mark.parametrize(("verb", "state"), [("activate", SeatState.ACTIVE), ("release", SeatState.RELEASED)])
def test_a_seat_is_moved(monkeypatch: pytest.MonkeyPatch, verb: str, state: SeatState) -> None:
    calls = stand_in(monkeypatch, "move_seat", ACTIVE._replace(state=state))
    result = run(["seats", verb, "acme", "seat_1", "--by", "ann"])

    assert calls == [("acme", "seat_1", state, "ann")]
    assert (result.code, result.out) == (0, f"seat_1  members  {state.value}  user_1\n")


def test_a_refusal_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "add_seat", InvalidInput("HOLDER", "all 3 members are held: release one first"))
    result = run(["seats", "add", "acme", "members", "user_1"])

    assert (result.code, result.err) == (2, "tidemark: HOLDER: all 3 members are held: release one first\n")
