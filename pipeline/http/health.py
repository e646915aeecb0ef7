"""`/healthz` and `/readyz`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from aggregators.instants import format_instant_ms
from pipeline.http.dependencies import GatewayDependencies
from pipeline.http.errors import json_answer
from pipeline.logs.answering import silent_partitions
from schemas.errors import TidemarkError, Transient
from schemas.log import EVENTS_TOPIC

CHECK_TIMEOUT_S: Final = 2.0
# Five reads of the meter set without an answer of Redis.
METER_SET_AGE_S_MAX: Final = 10.0

_STORES: Final = {"log": "the log", "meter_set": "Redis", "redis": "Redis", "clickhouse": "ClickHouse"}

_log: Final = logging.getLogger(__name__)


class Health:
    """`/healthz` and `/readyz`."""

    def __init__(self, dependencies: GatewayDependencies) -> None:
        self._dependencies = dependencies

    async def alive(self, _request: Request) -> Response:
        return json_answer({"status": "alive"})

    async def ready(self, _request: Request) -> Response:
        """503 if a partition of the log does not answer. If only another store is down, the status is `degraded`."""
        given = self._dependencies
        checks: dict[str, Callable[[], Awaitable[dict[str, Any]]] | None] = {
            "log": self._log,
            "meter_set": self._meter_set if given.meter_set_age_s else None,
            "redis": self._redis if given.live else None,
            "clickhouse": self._clickhouse if given.hourly or given.usage else None,
        }
        present = {name: check for name, check in checks.items() if check is not None}
        outcomes = await asyncio.gather(*(_checked(name, check) for name, check in present.items()))
        results = dict(zip(present, outcomes, strict=True))
        ready = bool(results["log"]["ok"])
        whole = all(outcome["ok"] for outcome in outcomes)
        status = "ready" if whole else "degraded" if ready else "not_ready"
        return json_answer({"status": status, "checks": results}, 200 if ready else 503)

    async def _log(self) -> dict[str, Any]:
        given = self._dependencies
        partitions = await given.log.partition_count(EVENTS_TOPIC)
        if partitions != given.genesis.partitions:
            problem = f"the log has {partitions} partitions, and this deployment has {given.genesis.partitions}"
            return {"ok": False, "partitions": partitions, "problem": problem}
        silent = await silent_partitions(given.log, EVENTS_TOPIC, range(partitions))
        if len(silent) == partitions:
            raise Transient("no partition answers")
        return {"ok": not silent, "partitions": partitions, **({"silent_partitions": silent} if silent else {})}

    async def _meter_set(self) -> dict[str, Any]:
        given = self._dependencies
        assert given.meter_set_age_s is not None  # noqa: S101  # `ready` checks the meter set only with its age
        age_s = given.meter_set_age_s()
        if age_s is None:
            return {"ok": False, "age_s": None, "problem": "Redis has not answered since the gateway started"}
        fresh = age_s < METER_SET_AGE_S_MAX
        problem = {} if fresh else {"problem": f"Redis has not answered for {age_s:.0f} s"}
        return {"ok": fresh, "age_s": round(age_s, 1), **problem}

    async def _redis(self) -> dict[str, Any]:
        live = self._dependencies.live
        assert live is not None  # noqa: S101  # `ready` checks Redis only with a live view
        partitions = range(self._dependencies.genesis.partitions)
        answers = await asyncio.gather(*(live.totals.account_totals(partition, []) for partition in partitions))
        times_ms = [checkpoint.stream_time_ms for checkpoint, _ in answers if checkpoint is not None]
        counted_up_to = format_instant_ms(min(times_ms)) if len(times_ms) == len(answers) else None
        lag_s = (self._dependencies.clock.now_ms() - min(times_ms)) / 1000 if times_ms else None
        return {"ok": True, "counted_up_to": counted_up_to, "lag_s": lag_s}

    async def _clickhouse(self) -> dict[str, Any]:
        given = self._dependencies
        if given.hourly is not None:
            times = [position.stream_time_ms for position in (await given.hourly.load_relayed()).values()]
        else:
            assert given.usage is not None  # noqa: S101  # `ready` checks ClickHouse only with a reader
            times = [position.stream_time_ms for position in (await given.usage.archive_positions()).values()]
        whole = len(times) == given.genesis.partitions
        return {"ok": True, "complete_up_to": format_instant_ms(min(times)) if whole else None}


async def _checked(name: str, check: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            return await check()
    except (Transient, TimeoutError, OSError):
        # The error's own text has addresses, and everybody may ask.
        return {"ok": False, "problem": f"{_STORES[name]} does not answer"}
    except TidemarkError as error:
        _log.error("%s", error)
        return {"ok": False, "problem": f"{_STORES[name]} rejects the gateway's requests; the gateway's log says why"}
