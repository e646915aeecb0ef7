"""A gateway on in-memory fakes, with an API key of each kind."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from fastapi import FastAPI
from pydantic import SecretStr

from aggregators.decode import decode
from aggregators.partitioning import partition_of
from pipeline.http.api_keys import KeyFile, Role, create_key
from pipeline.http.app import GatewayDependencies, create_gateway
from pipeline.http.dependencies import LiveUsage
from pipeline.settings import Settings
from schemas.control import BindingRecord, CloseRecord, Genesis
from schemas.log import REJECTED_TOPIC, Record
from schemas.meters import MeterSet
from schemas.periods import Binding
from sinks.clickhouse.fake import FakeClickHouse
from tests.traffic.generate import METER_SET
from tests.worlds.deployment import SECRET, World

NOW_MS: Final = 1_795_257_000_000
NOW: Final = "2026-11-21T10:30:00Z"
BODY_BYTES_MAX: Final = 200_000


def event(event_id: str = "op-1", **changes: Any) -> dict[str, Any]:
    """A good event with changes; a value of None removes the field."""
    document = {
        "specversion": "1.0", "id": event_id, "source": "test", "type": "completion.finished", "subject": "acme",
        "time": NOW, "data": {"usage": {"tokens": 7}, "model": "small"}, **changes,
    }  # fmt: skip
    return {name: value for name, value in document.items() if value is not None}


def tokens(quantity: object) -> dict[str, Any]:
    """An event with this number of tokens."""
    return event(data={"usage": {"tokens": quantity}, "model": "small"})


@dataclass
class Gateway:
    """A gateway, its dependencies, and an API key of each kind."""

    world: World
    app: FastAPI
    client: httpx.AsyncClient
    clickhouse: FakeClickHouse
    keys: Mapping[str, str]

    async def post(
        self, body: object, content_type: str = "application/json", key: str = "ingest", **headers: str
    ) -> httpx.Response:
        """POST /v1/events. A body that is not bytes is sent as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"content-type": content_type, **self.bearer(key)}
        sent |= {name.replace("_", "-"): text for name, text in headers.items()}
        return await self.client.post("/v1/events", content=content, headers=sent)

    async def get(self, path: str, key: str = "read", **parameters: str) -> httpx.Response:
        """GET with an API key; `from_` stands for the parameter `from`."""
        given = {name.rstrip("_"): value for name, value in parameters.items()}
        return await self.client.get(path, params=given or None, headers=self.bearer(key))

    async def bind(self, account: str, **fields: Any) -> None:
        """Append a binding of the account."""
        binding = Binding.model_validate(fields)
        record = BindingRecord(account=account, revision=self.world.revision(account), binding=binding)
        await self.world.control(partition_of(account, self.world.partitions), record)

    async def close_period(self, account: str, instant_ms: int) -> None:
        """Append a close record of the account's period that contains the instant."""
        record = CloseRecord(account=account, revision=self.world.revision(account), instant_ms=instant_ms)
        await self.world.control(partition_of(account, self.world.partitions), record)

    def bearer(self, key: str) -> dict[str, str]:
        """The header of one of the keys; no header for an empty name."""
        return {"authorization": f"Bearer {self.keys[key]}"} if key else {}

    async def stored(self) -> list[dict[str, Any]]:
        """The events in the log, decoded as the fold decodes them."""
        events = []
        for partition in range(self.world.partitions):
            for record in await self.world.records(partition):
                if not record.headers:
                    decoded = decode(record.value, 65_536)
                    assert decoded.rejected == []
                    assert all(partition_of(each.subject, 2) == partition for _, each in decoded.events)
                    events += json.loads(record.value or b"")
        return events

    async def quarantined(self) -> list[Record]:
        """The quarantined events."""
        return [
            record
            for partition in range(self.world.partitions)
            for record in await self.world.records(partition, REJECTED_TOPIC)
        ]


@asynccontextmanager
async def running(
    tmp_path: Path, world: World | None = None, settings: Mapping[str, Any] | None = None, **changes: Any
) -> AsyncIterator[Gateway]:
    """A gateway over `world`; `changes` replace dependencies, and `settings` are set besides the usual ones."""
    world = world or World(NOW_MS)
    await world.start(METER_SET)
    meter_set = MeterSet.model_validate(METER_SET)

    async def in_force() -> MeterSet | None:
        return meter_set

    path = tmp_path / "keys.jsonl"
    keys = {
        "ingest": create_key(path, Role.INGEST, world.clock)[0],
        "read": create_key(path, Role.READ, world.clock)[0],
        "check": create_key(path, Role.CHECK, world.clock)[0],
        "operator": create_key(path, Role.OPERATOR, world.clock)[0],
        "finance": create_key(path, Role.FINANCE, world.clock)[0],
        "admin": create_key(path, Role.ADMIN, world.clock)[0],
        "acme": create_key(path, Role.ADMIN, world.clock, account="acme")[0],
        "forged": "tm_000000000000_" + "x" * 43,
    }
    clickhouse = FakeClickHouse()
    given: dict[str, Any] = {
        "log": world.log,
        "genesis": Genesis(log_id=world.log_id, partitions=world.partitions),
        "settings": Settings(body_bytes_max=BODY_BYTES_MAX, secret=SecretStr(SECRET.decode()), **(settings or {})),
        "clock": world.clock,
        "keys": KeyFile(path),
        "meter_set": in_force,
        "live": LiveUsage(world.store.accounts, world.store.deferred, world.store.totals, world.store.marks),
        "usage": clickhouse,
        "hourly": clickhouse,
        **changes,
    }
    app = create_gateway(GatewayDependencies(**given))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        yield Gateway(world, app, client, clickhouse, keys)
