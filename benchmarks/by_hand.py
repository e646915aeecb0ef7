"""A typical hand-written loop for comparison: `python -m benchmarks.by_hand …`.

Reads with confluent-kafka, marks event ids with SET NX EX, adds totals with HINCRBY, inserts rows into ClickHouse once
per 20 records, then commits the offset. The loop is not exact: a crash between marks and totals loses a batch; after a
crash between totals and offset, only marks that expire prevent a second count.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Final

import clickhouse_connect
import msgspec
from confluent_kafka import Consumer, TopicPartition
from redis import Redis

from schemas.events import EventStruct
from schemas.log import EVENTS_TOPIC

RECORDS_AT_ONCE: Final = 20
MARK_TTL_S: Final = 72 * 3600
VALUES: Final = {"llm.completion": "tokens", "seats.changed": "seats"}
COLUMNS: Final = ("account", "id", "type", "time", "data")
TABLE: Final = """
CREATE TABLE IF NOT EXISTS by_hand (account String, id String, type LowCardinality(String), time String, data String)
ENGINE = ReplacingMergeTree ORDER BY (account, id)
"""


def consume(servers: str, partitions: int, events: int, redis_url: str, clickhouse_port: int) -> dict[str, float]:
    """Read from the start until `events` events are processed."""
    redis = Redis.from_url(redis_url)
    clickhouse = clickhouse_connect.get_client(host="127.0.0.1", port=clickhouse_port)
    clickhouse.command(TABLE)
    consumer = Consumer({
        "bootstrap.servers": servers, "group.id": "by-hand", "enable.auto.commit": False,
        "auto.offset.reset": "earliest", "max.partition.fetch.bytes": 4 * 1024 * 1024,
    })  # fmt: skip
    consumer.assign([TopicPartition(EVENTS_TOPIC, partition, 0) for partition in range(partitions)])
    decode = msgspec.json.Decoder(list[EventStruct]).decode
    encode = msgspec.json.Encoder().encode
    seen = 0
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    while seen < events:
        messages = consumer.consume(RECORDS_AT_ONCE, 1.0)
        values = [value for message in messages if (value := message.value() or b"")[:1] == b"["]
        batch = [event for value in values for event in decode(value)]
        if not batch:
            continue
        seen += len(batch)
        pipe = redis.pipeline(transaction=False)
        for event in batch:
            pipe.set(f"seen:{event.subject}:{event.id}", 1, nx=True, ex=MARK_TTL_S)
        fresh = [event for event, is_new in zip(batch, pipe.execute(), strict=True) if is_new]
        totals: dict[tuple[str, str, str], int] = {}
        for event in fresh:
            name = VALUES.get(event.type)
            key = (event.subject, event.type, (event.time or "")[:13])
            totals[key] = totals.get(key, 0) + (int((event.data or {})[name]) if name else 1)
        pipe = redis.pipeline(transaction=False)
        for (account, kind, hour), total in totals.items():
            pipe.hincrby(f"usage:{account}:{hour}", kind, total)
        pipe.execute()
        rows = [(new.subject, new.id, new.type, new.time, encode(new.data).decode()) for new in fresh]
        if rows:
            clickhouse.insert("by_hand", rows, column_names=COLUMNS)
        consumer.commit(message=messages[-1], asynchronous=True)
    result = {
        "seconds": time.perf_counter() - began_s,
        "cpu_seconds": time.process_time() - began_cpu_s,
        "events": seen,
    }
    consumer.close()
    return result


def main() -> None:
    """Run and print."""
    servers, partitions, events, redis_url, port = sys.argv[1:6]
    result = consume(servers, int(partitions), int(events), redis_url, int(port))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
