"""Random requests: every answer is in Stripe's form and every success in the SDK's shape."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from stripe_simulator import Simulator, SimulatorSettings, create_app
from stripe_simulator.registry import ROUTES
from tests.services.stripe import check_shapes
from tests.services.stripe_shapes import problems
from tests.services.stripe_wire import METER, NOW_MS, NOW_S
from tests.worlds.clock import ManualClock

VALUES = (
    "", "0", "-1", "1.5", "NaN", "1_000", "９", "true", "now", "tokens", "cus_one", "a@b.c", "sum", "hour", "active",
    "customer.*", str(NOW_S), str(NOW_S // 3_600 * 3_600), "2026-11-21T12:00:00Z", "9" * 30, "x" * 600,
    "data.test_clock",
)  # fmt: skip
KINDS = ("customer", "billing.meter", "event", "webhook_endpoint", "simulator.delivery", "entitlements.feature")
KEYS = ("", "0", "1", "gte", "city", "formula", "value", "stripe_customer_id", "footer", "custom_fields", "[", "é")


def _form(chance: random.Random, names: list[str]) -> list[tuple[str, str]]:
    """Mostly known names, sometimes nested, with any values."""
    form = []
    for _ in range(chance.randrange(6)):
        name = chance.choice(names)
        for _ in range(chance.choice((0, 0, 1, 2))):
            name += f"[{chance.choice(KEYS)}]"
        form.append((name, chance.choice(VALUES)))
    return form


def _json(chance: random.Random, depth: int = 0) -> Any:
    """Any JSON value with names that mean something."""
    if depth == 0 or (depth < 3 and chance.random() < 0.3):
        names = ("event_name", "payload", "timestamp", "identifier", "value", "colour")
        return {chance.choice(names): _json(chance, depth + 1) for _ in range(4)}
    return chance.choice((None, True, 5, 1.5, [], ["a"], {}, *VALUES))


@pytest.mark.parametrize("seed", range(3))
async def test_nothing_breaks_the_simulator(seed: int, tmp_path: Path) -> None:
    """400 or 404 for what is wrong, 501 for what is missing, no exception, and a journal with the same objects."""
    chance = random.Random(seed)
    settings = SimulatorSettings(summary_lag_s=0)
    simulator = Simulator(ManualClock(NOW_MS), settings, tmp_path / "journal", problems)
    simulator.create_customer(False, {}, "cus_one")
    statuses = Counter[int]()
    headers = {"Authorization": "Bearer sk_test_one"}
    transport = httpx.ASGITransport(create_app(simulator))
    async with httpx.AsyncClient(transport=transport, base_url="http://stripe.test", headers=headers) as http:
        meter = (await http.post("/v1/billing/meters", data=METER)).json()["id"]
        for _ in range(500):
            route = chance.choice(ROUTES)
            path = route.path
            for template in ("{id}", "{customer}", "{product}", "{webhook_endpoint}"):
                path = path.replace(template, chance.choice((meter, "cus_one", "evt_1", "%00", "..")))
            names = [*route.takes, "expand", "colour"]
            if route.method != "POST":
                answer = await http.request(route.method, path, params=urlencode(_form(chance, names)))
            elif path.startswith("/v2/"):
                answer = await http.post(path, json=_json(chance))
            else:
                answer = await http.post(path, data=dict(_form(chance, names)))
            statuses[answer.status_code] += 1
            assert answer.status_code != 401 or route.authenticate
            assert answer.status_code == 200 or answer.json()["error"]["message"], (route.name, answer.text)

    check_shapes(simulator.violations, simulator.checked)
    assert set(statuses) <= {200, 400, 401, 404, 501}
    assert statuses[200] >= 10
    simulator.close()
    replayed = Simulator(ManualClock(NOW_MS), settings, tmp_path / "journal")
    for kind in KINDS:
        assert list(replayed.test.store.newest(kind)) == list(simulator.test.store.newest(kind))
    assert replayed.test.usage.events == simulator.test.usage.events
    replayed.close()
