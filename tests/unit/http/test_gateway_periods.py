"""What past billing periods counted, and long answers in pages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from schemas.clock import DAY_MS
from schemas.meters import MeterSet
from schemas.periods import Billing
from tests.traffic.generate import METER_SET
from tests.worlds.deployment import World
from tests.worlds.gateway import NOW, NOW_MS, Gateway, event, running
from tests.worlds.relay import relay

SPAN = {"from_": "2026-11-01T00:00:00Z", "to": "2026-12-01T00:00:00Z"}


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway whose stores and log all work."""
    async with running(tmp_path) as running_gateway:
        yield running_gateway


async def test_a_past_period_is_answered_with_what_was_carried_into_it(gateway: Gateway) -> None:
    """December counts November's usage that came after November was closed: the invoice of December has it."""
    await gateway.post([event("1"), event("2", subject="other")])
    gateway.world.clock.ms += 12 * 24 * 3_600_000
    in_time = event("3", time="2026-12-03T10:00:00Z", data={"usage": {"tokens": 100}, "model": "small"})
    late = event("4", time="2026-11-30T23:59:59Z", data={"usage": {"tokens": 20}, "model": "small"})
    answer = await gateway.post([in_time, late])
    await relay(gateway)

    periods = await gateway.get(
        "/v1/usage/periods", meter="tokens", account="acme", from_="2026-01-01T00:00:00Z", to="2027-01-01T00:00:00Z"
    )

    assert answer.json()["accepted"] == 2
    assert periods.json() == {
        "meter": "tokens",
        "unit": "",
        "aggregation": "sum",
        "account": "acme",
        "complete_up_to": "2026-12-03T10:30:00Z",
        "periods": [
            {
                "period_start": "2026-11-01T00:00:00Z", "period_end": "2026-12-01T00:00:00Z", "state": "closed",
                "value": "7", "carried_in": "0",
            },
            {
                "period_start": "2026-12-01T00:00:00Z", "period_end": "2027-01-01T00:00:00Z", "state": "open",
                "value": "120", "carried_in": "20",
            },
        ],
    }  # fmt: skip


async def periods_of(gateway: Gateway, from_: str = "2026-01-01T00:00:00Z") -> list[tuple[str, ...]]:
    """The periods of acme: start, end, state and value."""
    answer = await gateway.get(
        "/v1/usage/periods", meter="tokens", account="acme", from_=from_, to="2027-01-01T00:00:00Z"
    )
    names = ("period_start", "period_end", "state", "value")
    return [tuple(row[name] for name in names) for row in answer.json()["periods"]]


async def test_a_period_ends_where_another_payer_took_over_after_its_usage_was_written(gateway: Gateway) -> None:
    """Two overlapping periods would both claim to be billed for the same days. The present end decides what `from`
    finds, too."""
    await gateway.bind("acme", effective_from_ms=0, billing=Billing.FREE)
    await gateway.post(event("1"))
    await relay(gateway)
    await gateway.bind("acme", effective_from_ms=NOW_MS, billing=Billing.MAPPED, stripe_customer="cus_a")
    await relay(gateway)
    alone = await periods_of(gateway)
    gateway.world.clock.ms += 60 * 60_000
    await gateway.post(event("2", time="2026-11-21T11:00:00Z"))
    await relay(gateway)

    cut = "2026-11-21T10:36:00Z"
    first = ("2026-11-01T00:00:00Z", cut, "open", "7")
    second = (cut, "2026-12-01T00:00:00Z", "open", "7")
    assert alone == [first]
    assert await periods_of(gateway) == [first, second]
    assert await periods_of(gateway, from_=cut) == [second]


async def test_a_period_whose_end_was_moved_to_later_is_found_and_has_that_end(gateway: Gateway) -> None:
    """A binding that was written ahead ends the period; a later binding replaces it."""
    await gateway.bind("acme", effective_from_ms=NOW_MS + DAY_MS, anchor_ms=NOW_MS + DAY_MS)
    await gateway.post(event("1"))
    await relay(gateway)
    short = await periods_of(gateway)
    await gateway.bind("acme", effective_from_ms=NOW_MS + 3 * DAY_MS, anchor_ms=NOW_MS + 3 * DAY_MS)
    await gateway.bind("acme", effective_from_ms=0)
    await relay(gateway)

    assert short == [("2026-11-01T00:00:00Z", "2026-11-22T10:30:00Z", "open", "7")]
    assert await periods_of(gateway, from_="2026-11-23T00:00:00Z") == [
        ("2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z", "open", "7")
    ]


async def test_a_level_stands_in_a_period_without_events(tmp_path: Path) -> None:
    """Three seats are set once in November, and four in January: December has three too, and February four."""
    seats = next(meter for meter in METER_SET["meters"] if meter["slug"] == "seats")
    meter_set = MeterSet.model_validate({"version": 1, "meters": [{**seats, "carry_over": True}]})
    world = World(NOW_MS)
    await world.start(meter_set.model_dump(mode="json"))

    async def in_force() -> MeterSet:
        return meter_set

    async with running(tmp_path, world, meter_set=in_force) as gateway:
        await gateway.post(event("1", type=seats["event_type"], data={"seats": 3}))
        await relay(gateway)
        world.clock.ms += 50 * DAY_MS
        await gateway.post(event("2", type=seats["event_type"], data={"seats": 4}, time="2027-01-10T10:00:00Z"))
        world.clock.ms += 25 * DAY_MS
        await gateway.post(event("3", subject="other", type=seats["event_type"], data={"seats": 1}, time=None))
        await relay(gateway)
        asked = {"meter": "seats", "account": "acme", "to": "2027-06-01T00:00:00Z"}
        answers = [
            (await gateway.get("/v1/usage/periods", **asked, from_=from_)).json()["periods"]
            for from_ in ("2026-01-01T00:00:00Z", "2026-12-01T00:00:00Z")
        ]

    rows = [(row["period_start"][:7], row["period_end"][:7], row["value"], row["carried_in"]) for row in answers[0]]
    assert rows == [
        ("2026-11", "2026-12", "3", None), ("2026-12", "2027-01", "3", "3"), ("2027-01", "2027-02", "4", "3"),
        ("2027-02", "2027-03", "4", "4"),
    ]  # fmt: skip
    assert answers[1] == answers[0][1:]


@pytest.mark.parametrize(
    ("changes", "key", "status", "field"),
    [
        pytest.param({"account": ""}, "read", 400, "account", id="no name"),
        pytest.param({"account": None}, "read", 400, "account", id="no account"),
        pytest.param({"account": "other"}, "acme", 403, "account", id="another account"),
        pytest.param({"meter": "nothing"}, "read", 404, "meter", id="unknown meter"),
        pytest.param({"to": "2026-11-01T00:00:00Z"}, "read", 400, "to", id="empty range"),
        pytest.param({"from_": "never"}, "read", 400, "from", id="no time"),
        pytest.param({"window": "day"}, "read", 400, "window", id="unknown parameter"),
    ],
)
async def test_a_bad_question_about_periods_is_refused_with_its_parameter(
    gateway: Gateway, changes: dict[str, Any], key: str, status: int, field: str
) -> None:
    """The caller learns what to correct."""
    asked = {"meter": "tokens", "account": "acme", **SPAN, **changes}
    given = {name: value for name, value in asked.items() if value is not None}

    answer = await gateway.get("/v1/usage/periods", key=key, **given)

    assert (answer.status_code, answer.json()["error"]["field"]) == (status, field)


async def test_a_key_of_one_account_sees_its_own_periods_by_default(gateway: Gateway) -> None:
    """As in `GET /v1/usage`."""
    await gateway.post(event())
    await relay(gateway)

    answer = await gateway.get("/v1/usage/periods", key="acme", meter="tokens", **SPAN)

    assert (answer.json()["account"], answer.json()["complete_up_to"]) == ("acme", NOW)


async def test_pages_together_are_the_whole_answer(gateway: Gateway) -> None:
    """Each page has its rows, `next_cursor` and completeness; the last page has no `next_cursor`."""
    await gateway.post([event(str(n), subject=f"{n % 7}\n/{n % 5}") for n in range(200)])
    await relay(gateway)
    asked = {"meter": "tokens", **SPAN, "window": "day", "group_by": "account,model"}

    whole = (await gateway.get("/v1/usage", **asked)).json()
    rows: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    for _ in range(100):
        page = (await gateway.get("/v1/usage", **asked, limit="4", **cursor)).json()
        rows += page.pop("rows")
        if "next_cursor" not in page:
            break
        cursor = {"cursor": page.pop("next_cursor")}

    assert rows == whole.pop("rows")
    assert len(rows) == 35
    assert page == whole


async def test_an_answer_without_a_limit_is_whole_or_refused(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that knows no pages must not take the first page for the whole."""
    monkeypatch.setattr("pipeline.http.usage.USAGE_ROWS_MAX", 3)
    await gateway.post([event(str(n), subject=str(n)) for n in range(4)])
    await relay(gateway)
    asked = {"meter": "tokens", **SPAN, "group_by": "account"}

    whole = await gateway.get("/v1/usage", **asked)
    page = await gateway.get("/v1/usage", **asked, limit="3")

    assert (whole.status_code, whole.json()["error"]["code"]) == (400, "answer_too_large")
    assert "`limit`" in whole.json()["error"]["message"]
    assert (len(page.json()["rows"]), "next_cursor" in page.json()) == (3, True)


@pytest.mark.parametrize("cursor", ["", "x", "%", "AAAA", "e30", "W10", "é", "WyJhIiwgMSwgW11d", "W" * 16_385])
async def test_a_cursor_that_the_gateway_did_not_make_is_refused(gateway: Gateway, cursor: str) -> None:
    """Nothing in a cursor is trusted."""
    answer = await gateway.get("/v1/usage", meter="tokens", **SPAN, cursor=cursor)

    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "cursor")


async def test_a_cursor_of_another_question_is_refused(gateway: Gateway) -> None:
    """Its row has another place in the answer, so rows would be missing."""
    await gateway.post([event(str(n), subject=str(n)) for n in range(4)])
    await relay(gateway)
    asked = {"meter": "tokens", **SPAN, "group_by": "account", "limit": "2"}
    cursor = (await gateway.get("/v1/usage", **asked)).json()["next_cursor"]

    other = await gateway.get("/v1/usage", **{**asked, "group_by": "model"}, cursor=cursor)
    longer = await gateway.get("/v1/usage", **{**asked, "from_": "2026-10-01T00:00:00Z"}, cursor=cursor)
    same = await gateway.get("/v1/usage", **{**asked, "limit": "4"}, cursor=cursor)

    assert (other.status_code, longer.status_code, same.status_code) == (400, 400, 200)
    assert [row["groups"]["account"] for row in same.json()["rows"]] == ["2", "3"]


@pytest.mark.parametrize(
    ("more", "key", "status"),
    [
        pytest.param({}, "read", 400, id="all accounts"),
        pytest.param({"window": "day"}, "read", 400, id="all accounts by day"),
        pytest.param({"account": "acme"}, "read", 200, id="one account"),
        pytest.param({"group_by": "account"}, "read", 200, id="by account"),
        pytest.param({}, "acme", 200, id="key of one account"),
    ],
)
async def test_the_latest_value_of_all_accounts_together_is_refused(
    gateway: Gateway, more: dict[str, str], key: str, status: int
) -> None:
    """It would be the value of whoever reported last: the seats of a random customer."""
    answer = await gateway.get("/v1/usage", key=key, meter="seats", **SPAN, **more)

    assert answer.status_code == status
    if status == 400:
        assert answer.json()["error"]["field"] == "account"
        assert "group by account" in answer.json()["error"]["message"]


PYTHON = (
    "NoneType",
    "Traceback",
    "Input should",
    "valid string",
    "valid integer",
    "dict",
    "None",
    "Error",
    "object at",
)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/usage", "/v1/usage?meter=tokens", "/v1/usage?meter=tokens&from=1&to=2", "/v1/usage?meter=%00&from=1",
        "/v1/usage?window=week", "/v1/usage?limit=x", "/v1/usage?limit=9999999999999999999999", "/v1/usage?limit=-1",
        "/v1/usage?timezone=" + "x" * 101, "/v1/usage?x=1", "/v1/usage?=1", "/v1/usage?&&", "/v1/usage/current",
        "/v1/usage/current?account=", "/v1/usage/top?meter=", "/v1/usage/top?meter=tokens&limit=1e3",
        "/v1/usage/periods?meter=tokens", "/v1/nothing", "/v1/usage?meter=tokens&from=now&to=later&window=DAY",
        "/v1/usage?" + "&".join(f"p{n}=1" for n in range(101)),
    ],
)  # fmt: skip
async def test_no_answer_speaks_python(gateway: Gateway, path: str) -> None:
    """A client's developer knows the API, not the language and the libraries that it is written in."""
    answer = await gateway.get(path)

    error = answer.json()["error"]
    assert answer.status_code in (400, 404)
    assert error["message"]
    assert [word for word in PYTHON if word in error["message"]] == []
