"""The simulator answers on the wire as Stripe's documents and observed answers say."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from stripe_simulator import Fault, FaultKind, Simulator, SimulatorSettings, parse_clock
from stripe_simulator.contract.parameters import parse_form
from stripe_simulator.errors import ApiError
from tests.services.stripe import serve_simulator, simulator_process
from tests.services.stripe_wire import DAY_S, EVENT, METER, NOW_MS, NOW_S, Wire
from tests.worlds.clock import ManualClock


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        ("Bearer sk_test_one", 200),
        ("Bearer rk_live_one", 200),
        ("Basic c2tfdGVzdF9vbmU6", 200),
        ("Bearer pk_test_one", 401),
        ("Bearer nonsense", 401),
        ("Basic !!", 401),
        ("", 401),
    ],
)
async def test_key_is_checked(wire: Wire, authorization: str, status: int) -> None:
    """Only well-formed secret and restricted keys, as a bearer token or a basic user name."""
    answer = await wire.http.get("/v1/account", headers={"Authorization": authorization})

    assert answer.status_code == status
    assert answer.headers["request-id"].startswith("req_")


async def test_modes_are_separate(wire: Wire) -> None:
    """A live key does not see the objects of a test key."""
    live = {"Authorization": "Bearer sk_live_one"}

    assert (await wire.http.get(f"/v1/billing/meters/{wire.meter}", headers=live)).status_code == 404
    assert (await wire.http.get("/v1/billing/meters", headers=live)).json()["data"] == []


@pytest.mark.parametrize(
    ("data", "code", "param"),
    [
        ({**EVENT, "colour": "red"}, "parameter_unknown", "colour"),
        ({"payload[value]": "1"}, "parameter_missing", "event_name"),
        ({"event_name": "tokens"}, "parameter_missing", "payload"),
        ({**EVENT, "timestamp": "now"}, "parameter_invalid_integer", "timestamp"),
        ({"event_name": "tokens", "payload": "x"}, "parameter_invalid", "payload"),
    ],
    ids=["unknown", "missing", "empty map", "not an integer", "not a map"],
)
async def test_bad_parameters_are_reported_by_name(wire: Wire, data: dict[str, str], code: str, param: str) -> None:
    """Stripe's error has type, code and param."""
    answer = await wire.post("/v1/billing/meter_events", data)

    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"], error["param"]) == (
        400,
        "invalid_request_error",
        code,
        param,
    )


async def test_unknown_url_is_stripes_404(wire: Wire) -> None:
    """Not the framework's page."""
    answer = await wire.post("/v1/no_such_thing")

    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_duplicate_identifier_is_exactly_as_observed(wire: Wire) -> None:
    """Type, message, no code, and stripe-should-retry: false; senders match on these values."""
    await wire.send(identifier="one")
    answer = await wire.send(identifier="one")

    assert answer.status_code == 400
    assert answer.json() == {
        "error": {"message": "An event already exists with identifier one.", "type": "invalid_request_error"}
    }
    assert answer.headers["stripe-should-retry"] == "false"


async def test_identifier_is_forgotten_after_24_hours_of_its_clock(wire: Wire) -> None:
    """To the second, so an event that is sent a moment too late counts twice here too."""
    await wire.send(identifier="one")
    wire.clock.advance((DAY_S - 1) * 1_000)
    assert (await wire.send(identifier="one")).status_code == 400

    wire.clock.advance(1_000)
    assert (await wire.send(identifier="one")).status_code == 200


@pytest.mark.parametrize(
    ("offset_s", "status"),
    [(-35 * DAY_S, 200), (-35 * DAY_S - 1, 400), (300, 200), (301, 400)],
    ids=["35 days", "too old", "5 minutes", "too far ahead"],
)
async def test_timestamps_are_accepted_within_stripes_bounds(wire: Wire, offset_s: int, status: int) -> None:
    """Both bounds are accepted."""
    assert (await wire.send(timestamp=str(NOW_S + offset_s))).status_code == status


async def test_meter_of_an_event_name_must_be_active(wire: Wire) -> None:
    """An inactive meter refuses events, a reactivated meter accepts them, and an event name has one active meter."""
    assert (await wire.post("/v1/billing/meters", METER)).status_code == 400
    await wire.post(f"/v1/billing/meters/{wire.meter}/deactivate")
    refused = await wire.send()
    await wire.post(f"/v1/billing/meters/{wire.meter}/reactivate")

    assert refused.status_code == 400
    assert refused.json()["error"]["message"].startswith("No active meter found for event name")
    assert (await wire.send()).status_code == 200


async def test_idempotency_key_replays_status_and_body(wire: Wire) -> None:
    """The stored answer is returned with a mark, and nothing is executed again."""
    first = await wire.send("key", identifier="one")
    again = await wire.send("key", identifier="one")

    assert (again.status_code, again.json()) == (first.status_code, first.json())
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["original-request"] == first.headers["request-id"]


async def test_idempotency_key_replays_a_500(wire: Wire) -> None:
    """Even after the fault is gone, which is why one key must not be used for ever."""
    wire.simulator.faults.add(Fault(FaultKind.SERVER_ERROR))

    statuses = [(await wire.send("key", identifier="one")).status_code for _ in range(3)]

    assert statuses == [500, 500, 500]
    assert (await wire.send("other", identifier="one")).status_code == 200


async def test_idempotency_key_with_other_parameters_is_an_error(wire: Wire) -> None:
    """400, type idempotency_error."""
    await wire.send("key", identifier="one")
    answer = await wire.send("key", identifier="two")

    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "idempotency_error")


async def test_failed_validation_and_rate_limits_are_not_stored(wire: Wire) -> None:
    """The same key may be used again afterwards."""
    wire.simulator.faults.add(Fault(FaultKind.RATE_LIMITED, reason="endpoint-concurrency"))
    limited = await wire.send("key")
    broken = await wire.send("key", timestamp="never")

    assert (limited.status_code, limited.headers["stripe-rate-limited-reason"]) == (429, "endpoint-concurrency")
    assert broken.status_code == 400
    assert (await wire.send("key")).status_code == 200


async def test_concurrent_events_of_one_customer_and_meter_conflict() -> None:
    """409 for the second event; another customer has another lock."""
    settings = SimulatorSettings(latency_s=0.2, summary_lag_s=0)
    headers = {"Authorization": "Bearer sk_test_one"}
    async with (
        serve_simulator(ManualClock(NOW_MS), settings) as served,
        httpx.AsyncClient(base_url=served.url, headers=headers, trust_env=False) as http,
    ):
        wire = Wire(served, http)
        await wire.post("/v1/billing/meters", METER)
        other = {"payload[stripe_customer_id]": "cus_two"}
        answers = await asyncio.gather(wire.send(), wire.send(), wire.send(**other))

    assert sorted(answer.status_code for answer in answers[:2]) == [200, 409]
    assert answers[2].status_code == 200


@pytest.mark.parametrize("age_s", [0, 3 * DAY_S], ids=["new", "older than an identifier is known"])
async def test_injected_event_is_an_extra_one(wire: Wire, age_s: int) -> None:
    """The fault that a reconciler must report: the same usage twice at Stripe."""
    await wire.send(identifier="one")
    wire.clock.advance(age_s * 1_000)
    answer = await wire.http.post("/_simulator/meter_events", json={"identifier": "one"})

    assert answer.status_code == 200
    assert await wire.total() == [4.0]
    state = (await wire.http.get("/_simulator/state")).json()
    assert [event["injected"] for event in state["meter_events"]] == [0, 1]


async def test_faults_are_set_over_http(wire: Wire) -> None:
    """A demo or a test in another process needs the faults too; nonsense is refused."""
    added = await wire.http.post("/_simulator/faults", json={"kind": "conflict", "contains": "victim", "count": 2})
    assert (await wire.send(identifier="bystander")).status_code == 200
    assert (await wire.send(identifier="victim")).status_code == 409

    assert added.status_code == 200
    assert (await wire.http.get("/_simulator/faults")).json()["waiting"][0]["left"] == 1
    await wire.http.delete("/_simulator/faults")
    assert (await wire.send(identifier="victim")).status_code == 200
    refused: list[Any] = [{"kind": "flood"}, {"kind": "conflict", "when": "now"}, []]
    for bad in refused:
        assert (await wire.http.post("/_simulator/faults", json=bad)).status_code == 400


@pytest.mark.parametrize(
    ("kind", "taken"),
    [(FaultKind.CONNECTION_DROPPED, 0), (FaultKind.CONNECTION_DROPPED_AFTER_COMMIT, 1)],
)
async def test_dropped_connection_hides_whether_the_event_counted(wire: Wire, kind: FaultKind, taken: int) -> None:
    """The client sees the same error; Stripe's state differs."""
    wire.simulator.faults.add(Fault(kind))
    with pytest.raises(httpx.RemoteProtocolError):
        await wire.send(identifier="one")

    assert await wire.total() == [2.0 * taken]


@pytest.mark.parametrize("body", [b"\xff\xfe=1", b"a[b=1", b"a" + b"[b]" * 20 + b"=1", b"%ff=1", b"a=1&a[b]=2"])
async def test_garbage_is_a_400(wire: Wire, body: bytes) -> None:
    """Never a stack trace."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = await wire.http.post("/v1/billing/meter_events", content=body, headers=headers)

    assert answer.status_code == 400
    assert "error" in answer.json()


async def test_huge_body_is_refused(wire: Wire) -> None:
    """Reading stops at the limit."""
    assert (await wire.http.post("/v1/customers", content=b"a=" + b"x" * 3_000_000)).status_code == 413


async def test_state_survives_the_process(tmp_path: Path) -> None:
    """With --state, everything that got a 200 exists after a kill, including the identifiers."""
    path = tmp_path / "stripe.db"
    arguments = ("--state", str(path), "--summary-lag-s", "0", "--clock", f"scaled:0:{NOW_MS}:1/1000000000")
    headers = {"Authorization": "Bearer sk_test_one"}
    answers = []
    for _ in range(2):
        with simulator_process(tmp_path, *arguments) as url:
            async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as http:
                await http.post("/_simulator/customers", json={"id": "cus_one"})
                meter = await http.post("/v1/billing/meters", data=METER)
                sent = await http.post("/v1/billing/meter_events", data={**EVENT, "identifier": "one"})
                answers.append((meter.status_code, sent.status_code))

    assert answers == [(200, 200), (400, 400)]


@pytest.mark.parametrize("text", ["", "scaled:1:2", "scaled:a:b:c", "scaled:0:0:-1", "lunar"])
def test_invalid_clock_text_is_refused(text: str) -> None:
    """The command line must not fall back to another time."""
    with pytest.raises(ValueError, match=r"clock|invalid|Invalid"):
        parse_clock(text)


def test_scaled_clock_runs_from_its_origin() -> None:
    """Two processes with the same text agree."""
    clock = parse_clock(f"scaled:0:{NOW_MS}:1/1000000000000")

    assert clock.now_ms() in (NOW_MS, NOW_MS + 1)


def test_form_brackets_nest() -> None:
    """Maps, indexed lists and appended lists."""
    assert parse_form("a[b][c]=1&d[0]=x&d[1]=y&e[]=z&f=") == {
        "a": {"b": {"c": "1"}},
        "d": {"0": "x", "1": "y"},
        "e": {"0": "z"},
        "f": "",
    }
    with pytest.raises(ApiError):
        parse_form("&".join(f"a{number}=1" for number in range(2_000)))


def test_two_simulators_share_nothing() -> None:
    """Each test has its own simulator."""
    one, two = Simulator(ManualClock(NOW_MS)), Simulator(ManualClock(NOW_MS))
    one.create_customer(False, {}, "cus_x")

    assert [simulator.test.store.get("customer", "cus_x") is None for simulator in (one, two)] == [False, True]
    one.close()
    two.close()
