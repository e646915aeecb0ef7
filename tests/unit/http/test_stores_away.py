"""Which store does not answer, in the words of each answer and of `/readyz`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from pipeline.http import health
from pipeline.http.dependencies import LiveUsage
from schemas.errors import Refused, Transient
from tests.worlds.gateway import Gateway, running

REDIS = "Redis at 10.1.2.3:6379 did not answer in 1.0 s"
SPAN = {"meter": "tokens", "account": "acme", "from_": "2026-11-01T00:00:00Z", "to": "2026-12-01T00:00:00Z"}


class _Away:
    """A store, or a part of one, that answers no call. Without an error it hangs."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        async def call(*_arguments: object, **_more: object) -> Any:
            if self._error is None:
                await asyncio.Event().wait()
            raise self._error or AssertionError

        return call


def away(live: Exception | None, clickhouse: Exception | None) -> dict[str, Any]:
    """Dependencies of a gateway without Redis and ClickHouse."""
    part: Any = _Away(live)
    return {"live": LiveUsage(part, part, part), "usage": _Away(clickhouse), "hourly": _Away(clickhouse)}


async def message(gateway: Gateway, path: str, **parameters: str) -> str:
    """The message of a 503."""
    answer = await gateway.get(path, **parameters)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    return str(answer.json()["error"]["message"])


async def test_an_answer_names_the_store_that_is_away_and_not_its_address(tmp_path: Path) -> None:
    """The caller can say what is down. Addresses are no business of an application."""
    clickhouse = Transient("ClickHouse did not answer in 10 s; check that it runs")
    async with running(tmp_path, **away(Transient(REDIS), clickhouse)) as gateway:
        current = await message(gateway, "/v1/usage/current", account="acme")
        top = await message(gateway, "/v1/usage/top", meter="tokens")
        over_time = await message(gateway, "/v1/usage", **SPAN)

    assert current == top == "Redis did not answer; send the request again"
    assert over_time == "ClickHouse did not answer; send the request again"


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        pytest.param(Transient(REDIS), "does not answer", id="does not answer"),
        pytest.param(TimeoutError(), "does not answer", id="an error without text"),
        pytest.param(None, "does not answer", id="hangs"),
        pytest.param(
            Refused("10.1.2.3: wrong password"),
            "rejects the gateway's requests; the gateway's log says why",
            id="refuses",
        ),
    ],
)
async def test_readiness_says_in_a_sentence_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None, problem: str
) -> None:
    """The name of an exception's class helps nobody. The front page names the check."""
    monkeypatch.setattr(health, "CHECK_TIMEOUT_S", 1.0)
    dependencies = {**away(error, error), "meter_set_age_s": lambda: 93.4}
    async with running(tmp_path, **dependencies) as gateway:
        ready = (await gateway.get("/readyz", key="")).json()
        front = await gateway.client.get("/", headers={"accept": "text/html"})

    assert ready["status"] == "degraded"
    problems = {name: check.get("problem", "") for name, check in ready["checks"].items()}
    fresh = "Redis has not answered for 93 s"
    away_ = {"redis": f"Redis {problem}", "clickhouse": f"ClickHouse {problem}"}
    assert problems == {"log": "", "meter_set": fresh, **away_}
    assert "Failing: <code>meter_set</code>, <code>redis</code>, <code>clickhouse</code>" in front.text
