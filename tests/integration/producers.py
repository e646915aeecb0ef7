"""Single events as producers send them, in every mode, and the same events found again in the log."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from cloudevents.core.bindings.kafka import to_binary, to_structured
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from oracle.rules import RejectedError, canonical, decode, time_us_of
from schemas.log import EVENTS_TOPIC
from tests.integration.deployment import Deployment

VALID: Final = ("fresh", "duplicate", "retry", "conflict", "shared_id", "late", "ahead", "timeless", "unmetered")

Words = tuple[str, str, str, int, str]


def in_mode(mode: int, body: bytes) -> tuple[bytes, dict[str, bytes]]:
    """(value, headers): structured and binary by hand, then binary and structured by the `cloudevents` package."""
    if mode == 0:
        return body, {"content-type": b"application/cloudevents+json"}
    document = {name: value for name, value in json.loads(body).items() if value is not None}
    data = document.pop("data")
    # The package gives the present time to an event without one.
    if mode == 1 or "time" not in document:
        headers = {f"ce_{name}": str(text).encode() for name, text in document.items()}
        return json.dumps(data).encode(), {**headers, "content-type": b"application/json"}
    event = CloudEvent({**document, "time": datetime.fromisoformat(document["time"])}, data)
    message = (to_binary if mode == 2 else to_structured)(event, JSONFormat())
    return message.value, message.headers


def words_of(values: Iterable[bytes]) -> set[Words]:
    """(account, id, type, time, data) of every event that can be read."""
    words = set()
    for value in values:
        try:
            found = decode(value)
        except RejectedError:
            continue
        for event in found:
            if isinstance(event, dict):
                try:
                    time_us = time_us_of(event["time"]) if event.get("time") else -1
                    # An event that was sent without a time has one in the log: that of its arrival in the inbox.
                    for time in (time_us, -1):
                        words.add((event["subject"], event["id"], event["type"], time, canonical(event["data"])))
                except (KeyError, ValueError, TypeError):
                    continue
    return words


async def words_in_the_log(deployment: Deployment) -> set[Words]:
    """The same of all records of `usage.events`."""
    values: list[bytes] = []
    for partition in deployment.partitions:
        values += [record.value or b"" for record in await deployment.records(EVENTS_TOPIC, partition)]
    return words_of(values)
