"""Has an hour go by in the log, so that arrival hours and report intervals close without anybody waiting for them."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any, Final

from confluent_kafka import Producer

from pipeline.logs.control_records import control_record
from pipeline.logs.open import kafka_servers
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.control import Tick
from schemas.log import EVENTS_TOPIC
from tests.torture.deployment import Tortured

CONFIRM_S: Final = 30.0


async def pass_an_hour(deployment: Tortured) -> int:
    """Append ticks of a minute past the next full hour; the instant of that hour.

    From here on the broker takes the producers' times, and those are behind: stream time is their running maximum.
    """
    hour_ms = (deployment.base.clock.now_ms() // HOUR_MS + 1) * HOUR_MS
    await asyncio.to_thread(_append, deployment, hour_ms + MINUTE_MS)
    return hour_ms


def _append(deployment: Tortured, instant_ms: int) -> None:
    servers = {"bootstrap.servers": ",".join(kafka_servers(deployment.settings.log_url))}
    # Its own types do not say what it exports.
    admin: Any = importlib.import_module("confluent_kafka.admin")
    wanted = {"message.timestamp.type": "CreateTime", "message.timestamp.after.max.ms": str(DAY_MS)}
    entries = [
        admin.ConfigEntry(name, value, incremental_operation=admin.AlterConfigOpType.SET)
        for name, value in wanted.items()
    ]
    resource = admin.ConfigResource(admin.RESOURCE_TOPIC, EVENTS_TOPIC, incremental_configs=entries)
    client = admin.AdminClient(servers)
    for each in client.incremental_alter_configs([resource]).values():
        each.result(CONFIRM_S)
    producer: Any = Producer({**servers, "acks": "all"})
    refused: list[Any] = []
    for partition in deployment.partitions:
        tick = Tick(**deployment.base.genesis.model_dump())
        value, headers = control_record(deployment.settings.secret_bytes(), partition, tick)
        producer.produce(
            EVENTS_TOPIC, value, partition=partition, headers=list(headers), timestamp=instant_ms,
            on_delivery=lambda error, _: refused.append(error) if error else None,
        )  # fmt: skip
    assert not producer.flush(CONFIRM_S)
    assert not refused, refused
