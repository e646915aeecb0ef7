"""Limits and messages that all drivers of the log share, so that all drivers refuse the same input."""

from __future__ import annotations

from collections.abc import Mapping

from schemas.errors import InvalidInput, OperatorNeeded
from schemas.log import Headers, TopicSpec

# Upper bound of the bytes that Kafka's format adds to a record.
RECORD_OVERHEAD_BYTES = 1024
# A producer packs small records into batches of up to half of this size, and a topic must accept such a batch.
RECORD_BYTES_MAX_LEAST = 512 * 1024


def check_spec(spec: TopicSpec) -> None:
    """Raise `InvalidInput` if the topic's settings are not possible."""
    if spec.partitions < 1:
        raise InvalidInput("partitions", f"{spec.name} needs at least one partition")
    if spec.record_bytes_max < RECORD_BYTES_MAX_LEAST:
        raise InvalidInput("record_bytes_max", f"{spec.name} must accept records of {RECORD_BYTES_MAX_LEAST} bytes")
    if spec.retention_ms != -1 and spec.retention_ms <= 0:
        raise InvalidInput("retention_ms", f"{spec.name} must keep records for a positive time, or -1 for ever")


def check_partitions(spec: TopicSpec, existing: int) -> None:
    """Raise `OperatorNeeded` if an existing topic has another number of partitions than the settings."""
    if existing != spec.partitions:
        raise OperatorNeeded(
            f"topic {spec.name} has {existing} partitions, the settings say {spec.partitions}: the number is fixed for "
            f"the topic's life. Set it back to {existing}, or point the settings at a new, empty log."
        )


def check_size(topic: str, limit_bytes: int, value: bytes, key: bytes | None, headers: Headers) -> None:
    """Raise `InvalidInput` if the uncompressed record is over the topic's limit."""
    size = len(value) + len(key or b"") + sum(len(name) + len(content) for name, content in headers)
    if size + RECORD_OVERHEAD_BYTES > limit_bytes:
        raise InvalidInput(
            "value", f"a record of {size} bytes is over the {limit_bytes} that {topic} accepts: send smaller batches"
        )


def unknown_partition(topic: str, partition: int) -> InvalidInput:
    """The error for a topic or partition that does not exist."""
    return InvalidInput("partition", f"{topic}/{partition} does not exist: create the topics first")


def settings_of(spec: TopicSpec) -> Mapping[str, str]:
    """A topic's settings under Kafka's names."""
    return {
        "message.timestamp.type": "LogAppendTime",
        "retention.ms": str(spec.retention_ms),
        "min.insync.replicas": str(spec.min_insync_replicas),
        "max.message.bytes": str(spec.record_bytes_max),
        "cleanup.policy": "delete",
    }
