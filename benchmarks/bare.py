"""The baseline: `python -m benchmarks.bare SERVERS PARTITIONS EVENTS` only consumes and decodes.

Runs aiokafka and msgspec on uvloop, like the worker. Prints {"seconds": …, "events": …}.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import msgspec
import uvloop
from aiokafka import AIOKafkaConsumer, TopicPartition

from schemas.events import EventStruct
from schemas.log import EVENTS_TOPIC


async def consume(servers: str, partitions: int, events: int) -> dict[str, float]:
    """Read from the start until `events` events are decoded."""
    decode = msgspec.json.Decoder(list[EventStruct]).decode
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, max_partition_fetch_bytes=4 * 1024 * 1024)
    await consumer.start()
    try:
        consumer.assign([TopicPartition(EVENTS_TOPIC, partition) for partition in range(partitions)])
        await consumer.seek_to_beginning()
        seen = 0
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        while seen < events:
            for messages in (await consumer.getmany(timeout_ms=1000, max_records=200)).values():
                for message in messages:
                    if message.value[:1] == b"[":
                        seen += len(decode(message.value))
        return {
            "seconds": time.perf_counter() - began_s,
            "cpu_seconds": time.process_time() - began_cpu_s,
            "events": seen,
        }
    finally:
        await consumer.stop()


def main() -> None:
    """Run and print."""
    servers, partitions, events = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(consume(servers, partitions, events))))


if __name__ == "__main__":
    main()
