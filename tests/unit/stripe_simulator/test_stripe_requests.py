"""The kinds of request that a run notes, and how stripe-mock's answers to them are judged."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from stripe_simulator import Simulator, SimulatorSettings, create_app
from tests import stripe_mock
from tests.services.stripe_requests import Notebook, Request, distinct, read
from tests.services.stripe_wire import NOW_MS
from tests.stripe_mock import Difference, judge
from tests.worlds.clock import ManualClock

CUSTOMERS = "POST /v1/customers"
UPDATE = "POST /v1/subscriptions/{subscription_exposed_id}"


def _post(route: str, content: str) -> Request:
    return Request(route, route.partition(" ")[2].replace("{subscription_exposed_id}", "sub_1"), content)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("name=Ada", "name=Grace", True),
        ("name=Ada", "email=Ada", False),
        ("name=Ada", "name=", False),
        ("balance=-5", "balance=70", True),
        ("balance=5", "balance=5.5", False),
        ("metadata[a]=x", "metadata[b]=y", True),
        ("items[0][price]=a", "items[0][price]=a&items[1][price]=b", True),
        ("items[0][price]=a", "items[0][quantity]=2", False),
        ("proration_behavior=none", "proration_behavior=always_invoice", False),
        ("a=1&b=2", "b=3&a=4", True),
    ],
)
def test_what_makes_two_requests_one_kind(one: str, other: str, same: bool) -> None:
    """Names, the form of the values, and the values of enums."""
    assert len(distinct([_post(UPDATE, one), _post(UPDATE, other)])) == (1 if same else 2)


def test_json_of_api_v2_has_kinds_too() -> None:
    """Numbers and nested lists as in a form."""
    route = "POST /v2/billing/meter_event_stream"
    bodies = [
        '{"events": [{"event_name": "a"}]}',
        '{"events": [{"event_name": "b"}, {"event_name": "c"}]}',
        '{"events": []}',
    ]

    assert [request.content for request in distinct(_post(route, body) for body in bodies)] == [bodies[2], bodies[0]]


async def test_a_run_notes_what_the_simulator_carried_out(tmp_path: Path) -> None:
    """One line for each kind, none for a refused request or a page."""
    file = tmp_path / "requests.jsonl"
    app = Notebook(create_app(Simulator(ManualClock(NOW_MS), SimulatorSettings())), file)
    transport, headers = httpx.ASGITransport(app), {"Authorization": "Bearer sk_test_one"}
    async with httpx.AsyncClient(transport=transport, base_url="http://stripe.test", headers=headers) as http:
        for name in ("Ada", "Grace"):
            assert (await http.post("/v1/customers", data={"name": name})).status_code == 200
        assert (await http.post("/v1/customers", data={"nmae": "Ada"})).status_code == 400
        assert (await http.get("/v1/customers", params={"limit": 3})).status_code == 200
        assert (await http.get("/_simulator/health")).status_code == 200

    assert read(file) == [
        Request("GET /v1/customers", "/v1/customers", "limit=3"), Request(CUSTOMERS, "/v1/customers", "name=Ada"),
    ]  # fmt: skip


def _judge(request: httpx.Request) -> httpx.Response:
    """A stripe-mock that knows no `new`, wants an old word, and refuses made-up parameters."""
    content = request.content.decode()
    for wrong in ("new=", "no_such_parameter", "anchor[type]"):
        if wrong in content:
            return httpx.Response(400, json={"error": {"message": f"no {wrong}"}})
    return httpx.Response(200, json={})


KNOWN = Difference(UPDATE, "no anchor", "newer", "anchor[type]=now", "anchor=now")
JUDGED = [
    pytest.param([_post(CUSTOMERS, "name=a")], [], True, "accepts 1 of 1", id="all accepted"),
    pytest.param([_post(CUSTOMERS, "new=a")], [], False, "REFUSED 400: POST /v1/customers new=a", id="refused"),
    pytest.param([_post(UPDATE, "anchor[type]=now")], [KNOWN], True, "known: 1 of", id="a known difference"),
    pytest.param([_post(UPDATE, "anchor[type]=now&new=1")], [KNOWN], False, "REFUSED", id="the rest is judged too"),
    pytest.param([_post(CUSTOMERS, "anchor[type]=now")], [KNOWN], False, "REFUSED", id="another route"),
    pytest.param([_post(CUSTOMERS, "name=a")], [KNOWN], False, "NOT REFUSED", id="a reason without a refusal"),
]


@pytest.mark.parametrize(("requests", "differences", "good", "line"), JUDGED)
def test_every_refusal_needs_a_reason(
    requests: list[Request], differences: list[Difference], good: bool, line: str
) -> None:
    """And every reason a refusal."""
    with httpx.Client(transport=httpx.MockTransport(_judge), base_url="http://mock.test") as http:
        lines, is_good = judge(http, requests, differences)

    assert is_good is good
    assert line in "\n".join(lines)


def test_a_judge_that_accepts_everything_proves_nothing() -> None:
    """A parameter that Stripe does not have must be refused."""
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={}))
    with httpx.Client(transport=transport, base_url="http://mock.test") as http:
        lines, good = judge(http, [_post(CUSTOMERS, "name=a")], [])

    assert not good
    assert "judges nothing" in lines[-1]


def test_without_go_the_run_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line and a failure, before the tests run."""
    monkeypatch.setattr(stripe_mock, "FOLDER", tmp_path)
    monkeypatch.setattr(stripe_mock, "GO_FOLDER", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(SystemExit, match="install Go"):
        stripe_mock.main([])
